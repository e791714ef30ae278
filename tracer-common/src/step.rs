//! `droptrace trace`: a followed packet at one place on its way.

use crate::{Device, Event, moved::CounterLook};
use core::mem::size_of;

/// Where a packet is seen ([`StepHead::place`]).
pub mod place {
    /// Tracepoint net/netif_receive_skb: a device gives it to the stack.
    pub const RECEIVED: u32 = 1;
    /// A device's tc hook (tcx), ingress.
    pub const TC_INGRESS: u32 = 2;
    /// Likewise, egress.
    pub const TC_EGRESS: u32 = 3;
    /// Tracepoint net/net_dev_queue: it comes to the device's qdisc.
    pub const QUEUED: u32 = 4;
    /// Tracepoint net/net_dev_start_xmit: it is given to the driver.
    pub const SENT: u32 = 5;
    /// A hook of netfilter, at the priority that [`StepHead::priority`](super::StepHead::priority) says.
    pub const HOOK: u32 = 6;
    /// nf_hook_slow begins.
    pub const HOOK_ENTERED: u32 = 7;
    /// nf_hook_slow has let it pass.
    pub const HOOK_LEFT: u32 = 8;
    /// Tracepoint skb/skb_copy_datagram_iovec: a program reads it from its socket.
    pub const READ: u32 = 9;
    /// Tracepoint tcp/tcp_probe: an established connection takes it.
    pub const TAKEN: u32 = 10;
    /// Tracepoint skb/consume_skb: the kernel is done with it.
    pub const CONSUMED: u32 = 11;
    /// Tracepoint skb/kfree_skb: it is dropped.
    pub const DROPPED: u32 = 12;
}

/// Priorities of the programs on netfilter's hooks: just behind each that tables and connection tracking have (NF_IP_PRI_*,
/// include/uapi/linux/netfilter_ipv4.h).
pub mod priority {
    /// Before everything: the smallest one is not for BPF programs (net/netfilter/nf_bpf_link.c).
    pub const FIRST: i32 = i32::MIN + 1;
    /// Behind raw (-300).
    pub const RAW: i32 = -299;
    /// Behind connection tracking (-200).
    pub const CONNTRACK: i32 = -199;
    /// Behind mangle (-150).
    pub const MANGLE: i32 = -149;
    /// Behind the nat table's change of destinations (-100).
    pub const DSTNAT: i32 = -99;
    /// Behind filter (0).
    pub const FILTER: i32 = 1;
    /// Behind security (50).
    pub const SECURITY: i32 = 51;
    /// Behind the nat table's change of sources (100).
    pub const SRCNAT: i32 = 101;
}

/// What comes before the packet in a [`Step`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepHead {
    /// The packet's number, from 1: the same while the kernel keeps it in one sk_buff.
    pub packet: u64,
    /// [`place`]
    pub place: u32,
    /// Of a hook: priority of the program there (NF_IP_PRI_*, include/uapi/linux/netfilter_ipv4.h).
    pub priority: i32,
    /// Who freed a consumed packet (a return address); 0 where the kernel doesn't tell.
    pub location: u64,
    /// dst_entry.input of the packet's route (include/net/dst.h): the function that it is given to when it came in; 0 without
    /// a route.
    pub route_input: u64,
    /// dst_entry.output, likewise.
    pub route_output: u64,
    /// dst_entry.dev
    pub route_device: Device,
    /// Next hop, IPv4 in the first four bytes, network byte order; see `gateway_family`.
    pub gateway: [u8; 16],
    /// AF_INET or AF_INET6; 0 where the destination itself is the next hop.
    pub gateway_family: u32,
    /// What kind of device the packet is at (rtnl_link_ops.kind, include/net/rtnetlink.h), NUL-padded; empty for hardware.
    pub link: [u8; 16],
    /// Process that reads it from its socket; 0 at other places.
    pub pid: u32,
    /// Its name, NUL-padded (TASK_COMM_LEN). Not trusted.
    pub process: [u8; 16],
    /// Link-layer header: destination, source, ethertype (struct ethhdr, include/uapi/linux/if_ether.h).
    pub ethernet: [u8; 14],
    /// 1 if there was one.
    pub has_ethernet: u16,
    /// On a hook, and where it was dropped on one: what the rules' counters told.
    pub counters: CounterLook,
}

/// A followed packet at one place: a record of the ring `STEPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Where, and what there is to say of it.
    pub head: StepHead,
    /// The packet, in the form of a drop's event; what is of drops only (slot and counts, a rule ...) holds where it was dropped.
    pub event: Event,
}

/// What a CPU has done for a trace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// Packets that it began to follow.
    pub begun: u64,
    /// Packets that passed the filter when the interval's share was used up.
    pub refused: u64,
    /// Steps that found no room in the ring.
    pub lost: u64,
    /// Interval of `used`.
    pub interval: u32,
    /// Packets that it began to follow in it.
    pub used: u32,
    /// Looks at rules' counters ([`CounterLook::number`]).
    pub looks: u32,
    /// Explicit padding.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Traced>() == 40);
const _: () =
    assert!(size_of::<StepHead>() == 8 + 8 + 24 + 24 + 16 + 4 + 16 + 4 + 16 + 16 + size_of::<CounterLook>());
const _: () = assert!(size_of::<Step>() == size_of::<StepHead>() + size_of::<Event>());
