//! The full event: everything about one dropped packet that cannot be read later, because the packet is gone.

use crate::{ABSENT, FlowKey, TC_FILTERS, TcFilter};
use core::mem::size_of;

/// Return addresses of the kernel stack kept in an event.
pub const STACK_FRAMES: usize = 24;
/// Words of the kernel stack above the program's context among which lie the registers that the function that freed the
/// packet saved.
pub const NEAR_WORDS: usize = 32;
/// Words of the kernel stack above the program's context kept in the self-test: up to the frame of nft_do_chain's caller.
pub const WINDOW_WORDS: usize = 160;
/// Words below the context kept in the self-test: up to the registers that the program saved, below its own stack of at
/// most 512 bytes.
pub const BELOW_WORDS: usize = 96;
/// Packet bytes kept in an event, from the network header on.
pub const HEADER_BYTES: usize = 192;
/// Words of an nft expression kept in an event: its `ops`, and a verdict or a reject's type.
pub const EXPRESSION_WORDS: usize = 4;
/// Bytes of a conntrack tuple (struct nf_conntrack_tuple has 40).
pub const TUPLE_BYTES: usize = 40;

/// A network device as the kernel half saw it. All zero: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The interface's name, NUL-padded (IFNAMSIZ, include/uapi/linux/if.h). Not trusted: any bytes but `/`.
    pub name: [u8; 16],
    /// The interface's index in its netns.
    pub ifindex: u32,
    /// Inode number of the device's netns.
    pub netns: u32,
}

/// The packet's connection tracking entry, as raw tuples: [`ConntrackOffsets`](crate::ConntrackOffsets) tells
/// where their fields are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// The tuple of the original direction.
    pub original: [u8; TUPLE_BYTES],
    /// The tuple of the reply direction.
    pub reply: [u8; TUPLE_BYTES],
    /// nf_conn.status (`IPS_*`, include/uapi/linux/netfilter/nf_conntrack_common.h).
    pub status: u32,
    /// nf_conn.mark
    pub mark: u32,
    /// Zone id; `u16::MAX` where this kernel has none.
    pub zone: u16,
    /// `enum ip_conntrack_info` of the packet (low three bits of `skb->_nfct`).
    pub info: u8,
    /// TCP state (`enum tcp_conntrack`); `u8::MAX` where it does not apply.
    pub tcp_state: u8,
    /// Explicit padding.
    pub padding: u32,
}

/// Which structure told the packet's netns, in the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NetnsSource {
    /// None was valid.
    None = 0,
    /// The socket that was to receive it (the tracepoint's `rx_sk`).
    ReceivingSocket = 1,
    /// Netfilter's hook state.
    HookState = 2,
    /// `skb->dev`.
    Device = 3,
    /// The device of the packet's route.
    Route = 4,
    /// `skb->sk`: last, because a packet that crossed a veth keeps its sender's socket for a while.
    Socket = 5,
}

/// Bits of [`Event::flags`].
pub mod event_flag {
    /// `stack` is filled.
    pub const STACK: u32 = 1;
    /// `conntrack` is filled.
    pub const CONNTRACK: u32 = 4;
    /// `state_in`, `state_out`, `hook` and `family` are filled.
    pub const HOOK_STATE: u32 = 8;
    /// `skb->dev` was a device of the packet's netns.
    pub const DEVICE: u32 = 16;
    /// The program had interrupted another one on this CPU.
    pub const NESTED: u32 = 64;
    /// `expression` is filled.
    pub const EXPRESSION: u32 = 128;
    /// `hooked` is filled.
    pub const HOOKED: u32 = 256;
}

/// One dropped packet. Everything in host byte order unless a field says otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds (bpf_ktime_get_ns).
    pub time: u64,
    /// Address of the sk_buff: identity of the packet while it lived.
    pub skb: u64,
    /// `count` of its slot after this drop.
    pub count: u64,
    /// `segments` of its slot after this drop.
    pub segments: u64,
    /// net_cookie of the netns; 0 where the kernel has none.
    pub netns_cookie: u64,
    /// Address of the struct net; 0 if it is not known.
    pub net: u64,
    /// The key of the flow (also where the drop was counted in a coarse slot).
    pub key: FlowKey,
    /// The slot that the drop was counted in.
    pub slot: u32,
    /// [`event_flag`] bits.
    pub flags: u32,
    /// skb->len, bytes.
    pub length: u32,
    /// skb->data_len: bytes not in the linear part.
    pub data_length: u32,
    /// skb->mark
    pub mark: u32,
    /// skb->skb_iif: index of the interface that the packet came in by, 0 if made here.
    pub ingress_ifindex: u32,
    /// The CPU.
    pub cpu: u32,
    /// gso_segs, at least 1.
    pub gso_segments: u16,
    /// gso_size, bytes of payload of each segment; 0 without GSO.
    pub gso_size: u16,
    /// `sk_family` of `skb->sk` or of the receiving socket (AF_*); 0 without.
    pub socket_family: u16,
    /// `sk_protocol` of that socket.
    pub socket_protocol: u16,
    /// nf_hook_state.hook
    pub hook: u8,
    /// nf_hook_state.pf (NFPROTO_*)
    pub family: u8,
    /// [`NetnsSource`]
    pub netns_source: u8,
    /// skb->pkt_type (PACKET_*)
    pub packet_type: u8,
    /// Bytes valid in `headers`.
    pub header_length: u16,
    /// Entries valid in `stack`.
    pub stack_length: u16,
    /// skb->dev.
    pub device: Device,
    /// nf_hook_state.in.
    pub state_in: Device,
    /// nf_hook_state.out.
    pub state_out: Device,
    /// The conntrack entry.
    pub conntrack: Conntrack,
    /// qdisc and tc leave their words here: `skb->cb`.
    pub control_block: [u8; 48],
    /// What was on the tc hook, in order, if the key says that the packet was dropped at one: as many as its count says, or
    /// all of these.
    pub filters: [TcFilter; TC_FILTERS],
    /// Explicit padding.
    pub padding: u32,
    /// Return addresses, innermost first. The tracer's own frames come first.
    pub stack: [u64; STACK_FRAMES],
    /// The start of the nft expression that dropped the packet (struct nft_expr), if the key names one.
    pub expression: [u64; EXPRESSION_WORDS],
    /// The hook function that dropped the packet, and what it is given, as they stood at the drop (struct nf_hook_entry).
    pub hooked: [u64; 2],
    /// The packet from its network header on.
    pub headers: [u8; HEADER_BYTES],
}

/// One dropped packet of the self-test, with what there is to learn from it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OwnEvent {
    /// The event.
    pub event: Event,
    /// The kernel stack from the program's context upwards.
    pub window: [u64; WINDOW_WORDS],
    /// Where its first words lead ([`lead`](crate::lead)).
    pub leads: [u8; NEAR_WORDS],
    /// The stack below the context, upwards.
    pub below: [u64; BELOW_WORDS],
}

impl Conntrack {
    /// No entry.
    pub const NONE: Self = Self {
        original: [0; TUPLE_BYTES],
        reply: [0; TUPLE_BYTES],
        status: 0,
        mark: 0,
        zone: u16::MAX,
        info: 0,
        tcp_state: u8::MAX,
        padding: 0,
    };
}

const _: () = assert!(size_of::<Device>() == 24);
const _: () = assert!(size_of::<Conntrack>() == 96);
const _: () = assert!(
    size_of::<Event>()
        == 48
            + 72
            + 28
            + 8
            + 4
            + 4
            + 72
            + 96
            + 48
            + 28 * TC_FILTERS
            + 4
            + 192
            + 8 * EXPRESSION_WORDS
            + 16
            + 192
);
const _: () =
    assert!(size_of::<OwnEvent>() == size_of::<Event>() + 8 * (WINDOW_WORDS + BELOW_WORDS) + NEAR_WORDS);
const _: () = assert!(ABSENT == u32::MAX);
