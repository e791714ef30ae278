//! Which netfilter rule dropped a packet.

pub mod attribute;
pub mod bridge;
pub(crate) mod budget;
pub mod conntrack;
pub mod counted;
pub mod counters;
pub mod evaluate;
pub mod expressions;
pub mod hooks;
pub mod legacy;
mod listings;
pub mod marks;
pub mod memory;
pub mod mixed;
pub mod model;
pub mod moved;
pub(crate) mod netns;
pub mod nft;
pub mod owner;
pub mod program;
pub mod queue;
pub mod roles;
pub mod rulesets;
pub mod text;
pub mod tools;
pub mod traced;
pub mod watch;
pub mod words;

/// A network namespace, as the kernel knows it. Addresses and inode numbers are used again as soon as it is gone; the
/// cookie never is (net->net_cookie; 0 where the kernel has none, before 5.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// Address of the struct net; 0 if it is not known.
    pub address: u64,
    /// Inode number.
    pub inode: u32,
    /// Cookie.
    pub cookie: u64,
}
