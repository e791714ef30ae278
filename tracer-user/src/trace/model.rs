//! What a trace tells: what was seen of a packet, place by place, and the story that follows from it. Field names of what is
//! serialised are a contract, those of `-o json`.

use crate::event::model::{Cause, Drop, Endpoint, Timestamp};
use crate::netfilter::model::{Backend, Confidence, Family};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;

/// A packet at one place, as the kernel half saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The packet's number, given by the kernel half: the same as long as the kernel keeps the packet in one sk_buff, through
    /// NAT, veths and tunnels.
    pub packet: u64,
    /// Where.
    pub place: Place,
    /// The packet as it was there: when, its ends (named), devices, netns, headers, connection, what a tunnel carried. What it
    /// says of a drop holds only where it was [dropped](Place::Dropped).
    pub view: Drop,
    /// `namespace/name` of the pod whose netns that is.
    pub pod: Option<String>,
    /// Where the packet was routed to by then.
    pub route: Option<Route>,
    /// Destination and source of the link-layer header, if there was one.
    pub mac: Option<[[u8; 6]; 2]>,
    /// The packet's first bytes, from its network header on.
    pub bytes: Vec<u8>,
    /// What kind of device it is at (struct rtnl_link_ops.kind): `veth`, `bridge`, `vxlan` ...; `None` for hardware, or where
    /// that is not known.
    pub link: Option<String>,
}

/// Where a packet was seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A device gives it to the stack (tracepoint netif_receive_skb, net/core/dev.c).
    Received,
    /// At the tc hook of a device, before all programs there (tcx).
    TcIngress,
    /// Likewise.
    TcEgress,
    /// It comes to the device's qdisc (tracepoint net_dev_queue).
    Queued,
    /// It is given to the driver (tracepoint net_dev_start_xmit).
    Sent,
    /// On a hook of netfilter.
    Hook(Box<Passed>),
    /// A program reads it from its socket (tracepoint skb_copy_datagram_iovec).
    Read {
        /// The program's name (`comm`).
        process: String,
        /// Its process id.
        pid: u32,
    },
    /// An established TCP connection (tracepoint tcp_probe) or a UDP socket takes it.
    Taken,
    /// The kernel is done with it and frees it, not as dropped (tracepoint consume_skb).
    Consumed {
        /// `symbol+0xoffset` of who freed it; not all kernels tell.
        location: Option<String>,
    },
    /// It was dropped: `view.drop` says by what and why.
    Dropped,
}

/// How far a packet came on a hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Passed {
    /// The hook's family.
    pub family: Family,
    /// The hook: `PREROUTING` ...
    pub hook: &'static str,
    /// How far.
    pub point: Point,
    /// What rules it met since the point before, in order.
    pub rules: Vec<RuleMet>,
    /// Why these are not all, in words; `None` if they are.
    pub unsure: Option<String>,
}

/// How far a packet came on a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// It enters.
    Entered,
    /// It is past all functions with a smaller priority (NF_IP_PRI_*, include/uapi/linux/netfilter_ipv4.h).
    Past(i32),
    /// It leaves, and goes on.
    Left,
}

/// A rule that a packet met and that matched, the end of a chain, or a base chain's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMet {
    /// Which engine.
    pub backend: Backend,
    /// The table's family: a table of `inet` has chains on the hooks of IPv4 and IPv6.
    pub family: Family,
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub chain: String,
    /// Which of them.
    pub kind: Met,
    /// The rule's number in its chain, from 1; of a chain's end or policy, one more than the last rule has. `None` for rules of
    /// native nft.
    pub rule: Option<u32>,
    /// Handle of a rule of native nft; of one of iptables-nft, too, where nft itself told of it.
    pub handle: Option<u64>,
    /// What came of it: `continue`, `jump CHAIN`, `goto CHAIN`, `return`, `accept`, `drop`, `reject` ..., or
    /// `target NAME` (in lower case) where the target only changes the packet and lets it go on.
    pub verdict: String,
    /// The rule's text.
    pub text: Option<String>,
    /// skb->mark as the packet came to it; `None` where that is not known.
    pub mark: Option<u32>,
    /// How that is known.
    pub confidence: Confidence,
    /// Likewise: `evaluated`, `counter`, `probe`.
    pub method: &'static str,
}

/// What of a chain a packet met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Met {
    /// A rule.
    Rule,
    /// The end of a chain that was jumped to.
    Return,
    /// A base chain's policy.
    Policy,
}

/// Where a packet was routed to (struct dst_entry, include/net/dst.h).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Route {
    /// What is to be done with it.
    pub decision: Decision,
    /// The device of the route.
    pub interface: Option<String>,
    /// The next hop, if it is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// The kernel's function that says so: `ip_forward`.
    pub function: Option<String>,
}

/// What the route says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It is for this netns.
    Local,
    /// It is to be forwarded.
    Forward,
    /// It was made here and leaves.
    Output,
    /// There is no way: the kernel answers with an error, or is silent.
    Refused,
    /// Something else.
    #[default]
    Other,
}

/// A line of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// A step of a packet.
    Step(Box<Step>),
    /// The end of its story.
    End(Box<End>),
}

/// A packet's story.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// How it ended.
    pub end: End,
}

/// One step of a packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// The packet's number.
    pub packet: String,
    /// The step's, from 1.
    pub step: u32,
    /// When.
    pub time: Timestamp,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    /// `namespace/name` of the pod whose netns that is.
    pub pod: Option<String>,
    /// What kind of step.
    pub kind: Kind,
    /// The interface that the packet came in by.
    pub interface_in: Option<String>,
    /// The one that it leaves by.
    pub interface_out: Option<String>,
    /// Where the packet comes from, as on the wire after this step.
    pub source: Endpoint,
    /// Where it goes.
    pub destination: Endpoint,
    /// How this is known: `tracepoint`, `tc`, `hook`, `probe`, `counter`, `evaluated`, `compared` (with the step before), `headers`.
    pub method: &'static str,
    /// How sure it is.
    pub confidence: Confidence,
    /// Of netfilter.
    pub netfilter: Option<NetfilterStep>,
    /// Of address translation.
    pub nat: Option<NatStep>,
    /// Of routing.
    pub route: Option<Route>,
    /// Of a tunnel.
    pub tunnel: Option<TunnelStep>,
    /// In words, what is to be said besides: what could not be seen, who reads the packet, its next hop.
    pub note: Option<String>,
    /// The packet there, for the formats that print or write it.
    #[serde(skip)]
    pub seen: Option<Arc<Seen>>,
}

/// What kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A device gives it to the stack, or takes it.
    Device,
    /// A tc hook.
    Tc,
    /// A hook of netfilter, or a rule there.
    Netfilter,
    /// Addresses or ports were translated.
    Nat,
    /// A route was found, or none.
    Route,
    /// From one port of a bridge to another.
    Bridge,
    /// Put into a tunnel, or taken out.
    Tunnel,
    /// The next hop's address is looked for.
    Neighbour,
    /// A qdisc.
    Qdisc,
    /// A socket.
    Socket,
    /// Dropped.
    Drop,
}

/// A hook, or a rule there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetfilterStep {
    /// `legacy` or `nft`; null for the hook itself.
    pub backend: Option<Backend>,
    /// The table's family; of the hook itself the hook's.
    pub family: Family,
    /// The hook.
    pub hook: &'static str,
    /// The table; null for the hook itself.
    pub table: Option<String>,
    /// The chain.
    pub chain: Option<String>,
    /// `rule`, `return` or `policy`.
    pub what: Option<Met>,
    /// The number, as in [`RuleMet::rule`].
    pub rule: Option<u32>,
    /// As in [`RuleMet::handle`].
    pub handle: Option<u64>,
    /// As in [`RuleMet::verdict`].
    pub verdict: Option<String>,
    /// The rule's text.
    pub text: Option<String>,
    /// As in [`RuleMet::mark`].
    pub mark: Option<u32>,
    /// Of the hook itself: the packet is past all functions with a smaller priority.
    pub priority: Option<i32>,
}

/// A translation of addresses or ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NatStep {
    /// The ends before.
    pub before: Ends,
    /// After.
    pub after: Ends,
}

/// Source and destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// Source.
    pub source: Endpoint,
    /// Destination.
    pub destination: Endpoint,
}

/// Into a tunnel, or out of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TunnelStep {
    /// True for into.
    pub encapsulated: bool,
    /// As in [`crate::event::model::Inner`].
    #[serde(rename = "type")]
    pub kind: String,
    /// The network's identifier.
    pub vni: Option<u32>,
    /// The tunnel's ends.
    pub outer: Ends,
    /// Those of the packet that it carries.
    pub inner: Ends,
}

/// How a packet's story ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct End {
    /// The packet's number.
    pub packet: String,
    /// When the last step was.
    pub time: Timestamp,
    /// How many steps there were.
    pub steps: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// The last step's kind.
    pub last: Option<Kind>,
    /// One sentence: where it was last, and what that means.
    pub note: String,
    /// The drop, as the line of a drop's event; a routine one may be what happens to a packet that was delivered.
    #[serde(serialize_with = "as_event")]
    pub drop: Option<Box<Drop>>,
    /// Its cause.
    pub cause: Option<Cause>,
}

/// With its `type`, so that what reads drops reads this.
fn as_event<S: serde::Serializer>(drop: &Option<Box<Drop>>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(tag = "type", rename = "drop")]
    struct Event<'a> {
        #[serde(flatten)]
        drop: &'a Drop,
    }
    drop.as_deref().map(|drop| Event { drop }).serialize(serializer)
}

/// How a packet's story ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was dropped.
    Dropped,
    /// A socket here has it.
    Delivered,
    /// It left the node.
    Left,
    /// It left the node, and no answer came.
    NoReply,
    /// It was seen no more.
    Vanished,
}
