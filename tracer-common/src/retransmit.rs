//! Key of the counts of TCP's repeated segments.

use core::mem::size_of;

/// To whom segments were repeated. Addresses are as in [`FlowKey`](crate::FlowKey): IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Retransmit {
    /// The socket's own address.
    pub source: [u8; 16],
    /// Its peer's.
    pub destination: [u8; 16],
    /// Inode number of its network namespace; 0 if it is not known.
    pub netns: u32,
    /// The peer's port, host byte order.
    pub port: u16,
    /// 1 if the peer has never answered (TCP_SYN_SENT).
    pub is_syn: u8,
    /// 0.
    pub unused: [u8; 1],
}

const _: () = assert!(size_of::<Retransmit>() == 40);
