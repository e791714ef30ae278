//! Wire bytes of a [`tracer_common::Event`] to an owned [`Raw`].
//!
//! The bytes come from our own program, but through memory that it shares: the length must fit exactly, every
//! length inside is clamped, every enumeration has a fallback.

use bytes::Buf;
use std::mem::{offset_of, size_of};
use tracer_common::{
    BELOW_WORDS, Conntrack, Device, EXPRESSION_WORDS, Event, FlowKey, HEADER_BYTES, NEAR_WORDS, NetnsSource,
    OwnEvent, STACK_FRAMES, TC_FILTERS, TUPLE_BYTES, TcFilter, WINDOW_WORDS, event_flag,
};

/// Why bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The halves of the tracer were built from different wire types, or the ring buffer is corrupt.
    #[error(
        "the kernel half sent an event of {found} bytes where {expected} were expected: \
         rebuild both halves together with `cargo xtask run`"
    )]
    Length {
        /// Bytes that an event has.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
}

/// Netfilter's hook state at the drop (struct nf_hook_state, include/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookState {
    /// Number of the hook (NF_INET_*, NF_BR_* ...).
    pub hook: u8,
    /// Protocol family of the hook (NFPROTO_*).
    pub family: u8,
    /// The device that the packet came in by, if the hook has one.
    pub input: Option<Device>,
    /// The device that it was to leave by, if the hook has one.
    pub output: Option<Device>,
}

/// One dropped packet as the kernel half saw it; [`Event`] documents the fields of the same names.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time: u64,
    /// Address of the sk_buff.
    pub skb: u64,
    /// `count` of its slot after this drop.
    pub count: u64,
    /// `segments` of its slot after this drop.
    pub segments: u64,
    /// net_cookie of the netns.
    pub netns_cookie: Option<u64>,
    /// Address of the struct net; 0 if it is not known.
    pub net: u64,
    /// The key of the flow.
    pub key: FlowKey,
    /// The slot that the drop was counted in.
    pub slot: u32,
    /// [`event_flag`] bits.
    pub flags: u32,
    /// skb->len, bytes.
    pub length: u32,
    /// skb->data_len, bytes.
    pub data_length: u32,
    /// skb->mark
    pub mark: u32,
    /// skb->skb_iif, 0 if the packet was made here.
    pub ingress_ifindex: u32,
    /// The CPU.
    pub cpu: u32,
    /// gso_segs, at least 1.
    pub gso_segments: u16,
    /// gso_size, bytes.
    pub gso_size: u16,
    /// AF_* of the packet's or the receiving socket; 0 without.
    pub socket_family: u16,
    /// `sk_protocol` of that socket.
    pub socket_protocol: u16,
    /// skb->pkt_type (PACKET_*, include/uapi/linux/if_packet.h).
    pub packet_type: u8,
    /// Which structure told the netns.
    pub netns_source: NetnsSource,
    /// skb->dev, where it was a device of the packet's netns.
    pub device: Option<Device>,
    /// Netfilter's hook state, where the packet died in a hook.
    pub hook: Option<HookState>,
    /// The conntrack entry.
    pub conntrack: Option<Conntrack>,
    /// skb->cb.
    pub control_block: [u8; 48],
    /// What was on the tc hook, if the key says that it was dropped at one.
    pub filters: [TcFilter; TC_FILTERS],
    /// Return addresses, innermost first, the tracer's own frames included. At most [`STACK_FRAMES`].
    pub stack: Vec<u64>,
    /// The start of the nft expression that dropped the packet.
    pub expression: Option<[u64; EXPRESSION_WORDS]>,
    /// The hook function that dropped the packet, and what it is given, as they stood at the drop.
    pub hooked: Option<[u64; 2]>,
    /// The packet from its network header on. At most [`HEADER_BYTES`].
    pub headers: Vec<u8>,
    /// What there is to learn, if it was a packet of the self-test.
    pub lesson: Option<Lesson>,
}

/// The kernel stack of a drop in the self-test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// The words from the program's context upwards.
    pub window: Vec<u64>,
    /// Where the first of them lead ([`tracer_common::lead`]).
    pub leads: Vec<u8>,
    /// The words below the context, the lowest first.
    pub below: Vec<u64>,
}

/// Decodes one record of the ring buffer.
///
/// # Errors
/// [`DecodeError::Length`] if it is neither as long as an [`Event`] nor as an [`OwnEvent`]. Any bytes of that length decode.
pub fn decode(bytes: &[u8]) -> Result<Raw, DecodeError> {
    let is_own = bytes.len() == size_of::<OwnEvent>();
    if !is_own && bytes.len() != size_of::<Event>() {
        return Err(DecodeError::Length { expected: size_of::<Event>(), found: bytes.len() });
    }
    // The length is checked, so none of the reads below can run out of bytes. Fields in the order of `Event`.
    let mut rest = bytes;
    let time = rest.get_u64_ne();
    let skb = rest.get_u64_ne();
    let count = rest.get_u64_ne();
    let segments = rest.get_u64_ne();
    let netns_cookie = rest.get_u64_ne();
    let net = rest.get_u64_ne();
    let key = read_flow_key(&mut rest);
    let slot = rest.get_u32_ne();
    let flags = rest.get_u32_ne();
    let length = rest.get_u32_ne();
    let data_length = rest.get_u32_ne();
    let mark = rest.get_u32_ne();
    let ingress_ifindex = rest.get_u32_ne();
    let cpu = rest.get_u32_ne();
    let gso_segments = rest.get_u16_ne();
    let gso_size = rest.get_u16_ne();
    let socket_family = rest.get_u16_ne();
    let socket_protocol = rest.get_u16_ne();
    let hook = rest.get_u8();
    let family = rest.get_u8();
    let netns_source = rest.get_u8();
    let packet_type = rest.get_u8();
    let header_length = usize::from(rest.get_u16_ne());
    let stack_length = usize::from(rest.get_u16_ne());
    let device = read_device(&mut rest);
    let input = read_device(&mut rest);
    let output = read_device(&mut rest);
    let conntrack = read_conntrack(&mut rest);
    let control_block = array(&mut rest);
    let filters = std::array::from_fn(|_| read_filter(&mut rest));
    // The words that follow are aligned to 8 bytes.
    let mut rest = &bytes[offset_of!(Event, stack)..];
    let stack = words(&mut rest, STACK_FRAMES, stack_length);
    let expression = std::array::from_fn(|_| rest.get_u64_ne());
    let hooked = std::array::from_fn(|_| rest.get_u64_ne());
    let headers = rest[..header_length.min(HEADER_BYTES)].to_vec();
    let lesson = is_own.then(|| {
        let mut rest = &bytes[offset_of!(OwnEvent, window)..];
        let window = words(&mut rest, WINDOW_WORDS, WINDOW_WORDS);
        let leads = array::<NEAR_WORDS>(&mut rest).to_vec();
        Lesson { window, leads, below: words(&mut rest, BELOW_WORDS, BELOW_WORDS) }
    });

    let has = |flag| flags & flag != 0;
    Ok(Raw {
        time,
        skb,
        count,
        segments,
        netns_cookie: (netns_cookie != 0).then_some(netns_cookie),
        net,
        key,
        slot,
        flags,
        length,
        data_length,
        mark,
        ingress_ifindex,
        cpu,
        gso_segments: gso_segments.max(1),
        gso_size,
        socket_family,
        socket_protocol,
        packet_type,
        netns_source: netns_by(netns_source),
        device: has(event_flag::DEVICE).then_some(device).and_then(present),
        hook: has(event_flag::HOOK_STATE).then(|| HookState {
            hook,
            family,
            input: present(input),
            output: present(output),
        }),
        conntrack: has(event_flag::CONNTRACK).then_some(conntrack),
        control_block,
        filters,
        stack: if has(event_flag::STACK) { stack } else { Vec::new() },
        expression: has(event_flag::EXPRESSION).then_some(expression),
        hooked: has(event_flag::HOOKED).then_some(hooked),
        headers,
        lesson,
    })
}

/// An array of bytes; the caller has checked that there are enough.
fn array<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    rest.copy_to_slice(&mut bytes);
    bytes
}

/// Reads `room` words and keeps the first `used` of them.
fn words(rest: &mut &[u8], room: usize, used: usize) -> Vec<u64> {
    let mut words: Vec<u64> = (0..room).map(|_| rest.get_u64_ne()).collect();
    words.truncate(used);
    words
}

fn read_flow_key(rest: &mut &[u8]) -> FlowKey {
    FlowKey {
        location: rest.get_u64_ne(),
        attribution: [rest.get_u64_ne(), rest.get_u64_ne()],
        source: array(rest),
        destination: array(rest),
        reason: rest.get_u32_ne(),
        netns: rest.get_u32_ne(),
        source_port: rest.get_u16_ne(),
        destination_port: rest.get_u16_ne(),
        ethertype: rest.get_u16_ne(),
        transport: rest.get_u8(),
        flags: rest.get_u8(),
    }
}

fn read_device(rest: &mut &[u8]) -> Device {
    Device { name: array(rest), ifindex: rest.get_u32_ne(), netns: rest.get_u32_ne() }
}

fn read_filter(rest: &mut &[u8]) -> TcFilter {
    TcFilter {
        program: rest.get_u32_ne(),
        priority: rest.get_u32_ne(),
        handle: rest.get_u32_ne(),
        kind: array(rest),
    }
}

/// All zero stands for no device.
fn present(device: Device) -> Option<Device> {
    (device != Device::default()).then_some(device)
}

fn read_conntrack(rest: &mut &[u8]) -> Conntrack {
    Conntrack {
        original: array::<TUPLE_BYTES>(rest),
        reply: array::<TUPLE_BYTES>(rest),
        status: rest.get_u32_ne(),
        mark: rest.get_u32_ne(),
        zone: rest.get_u16_ne(),
        info: rest.get_u8(),
        tcp_state: rest.get_u8(),
        padding: rest.get_u32_ne(),
    }
}

fn netns_by(value: u8) -> NetnsSource {
    const SOURCES: [NetnsSource; 5] = [
        NetnsSource::ReceivingSocket,
        NetnsSource::HookState,
        NetnsSource::Socket,
        NetnsSource::Route,
        NetnsSource::Device,
    ];
    SOURCES.into_iter().find(|source| *source as u8 == value).unwrap_or(NetnsSource::None)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An event's bytes, written field by field at the offsets that the compiler gives [`Event`].
    pub(crate) struct Wire(pub(crate) Vec<u8>);

    impl Wire {
        pub(crate) fn new() -> Self {
            Self(vec![0; size_of::<Event>()])
        }

        pub(crate) fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
            self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
            self
        }

        pub(crate) fn flags(self, flags: u32) -> Self {
            self.put(offset_of!(Event, flags), &flags.to_ne_bytes())
        }
    }

    fn named(name: &[u8], ifindex: u32) -> Vec<u8> {
        let mut bytes = name.to_vec();
        bytes.resize(16, 0);
        bytes.extend(ifindex.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn every_field_comes_from_its_place() {
        const KEY: usize = offset_of!(Event, key);
        const CONNTRACK: usize = offset_of!(Event, conntrack);
        let wire = Wire::new()
            .put(offset_of!(Event, time), &1u64.to_ne_bytes())
            .put(offset_of!(Event, skb), &2u64.to_ne_bytes())
            .put(offset_of!(Event, count), &3u64.to_ne_bytes())
            .put(offset_of!(Event, segments), &4u64.to_ne_bytes())
            .put(offset_of!(Event, netns_cookie), &5u64.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, location), &6u64.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, attribution), &7u64.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, attribution) + 8, &8u64.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, source), &[9; 16])
            .put(KEY + offset_of!(FlowKey, destination), &[10; 16])
            .put(KEY + offset_of!(FlowKey, reason), &11u32.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, netns), &12u32.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, source_port), &13u16.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, destination_port), &14u16.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, ethertype), &15u16.to_ne_bytes())
            .put(KEY + offset_of!(FlowKey, transport), &[16])
            .put(KEY + offset_of!(FlowKey, flags), &[17])
            .put(offset_of!(Event, slot), &18u32.to_ne_bytes())
            .flags(event_flag::STACK | event_flag::CONNTRACK | event_flag::HOOK_STATE | event_flag::DEVICE)
            .put(offset_of!(Event, length), &19u32.to_ne_bytes())
            .put(offset_of!(Event, data_length), &20u32.to_ne_bytes())
            .put(offset_of!(Event, mark), &21u32.to_ne_bytes())
            .put(offset_of!(Event, ingress_ifindex), &22u32.to_ne_bytes())
            .put(offset_of!(Event, cpu), &23u32.to_ne_bytes())
            .put(offset_of!(Event, gso_segments), &24u16.to_ne_bytes())
            .put(offset_of!(Event, gso_size), &25u16.to_ne_bytes())
            .put(offset_of!(Event, socket_family), &26u16.to_ne_bytes())
            .put(offset_of!(Event, socket_protocol), &27u16.to_ne_bytes())
            .put(offset_of!(Event, hook), &[28])
            .put(offset_of!(Event, family), &[29])
            .put(offset_of!(Event, netns_source), &[NetnsSource::Route as u8])
            .put(offset_of!(Event, packet_type), &[30])
            .put(offset_of!(Event, header_length), &3u16.to_ne_bytes())
            .put(offset_of!(Event, stack_length), &2u16.to_ne_bytes())
            .put(offset_of!(Event, device), &named(b"eth0", 31))
            .put(offset_of!(Event, state_out), &named(b"eth1", 32))
            .put(CONNTRACK + offset_of!(Conntrack, original), &[33; TUPLE_BYTES])
            .put(CONNTRACK + offset_of!(Conntrack, reply), &[34; TUPLE_BYTES])
            .put(CONNTRACK + offset_of!(Conntrack, status), &35u32.to_ne_bytes())
            .put(CONNTRACK + offset_of!(Conntrack, mark), &36u32.to_ne_bytes())
            .put(CONNTRACK + offset_of!(Conntrack, zone), &37u16.to_ne_bytes())
            .put(CONNTRACK + offset_of!(Conntrack, info), &[2])
            .put(CONNTRACK + offset_of!(Conntrack, tcp_state), &[3])
            .put(offset_of!(Event, control_block), &[38; 48])
            .put(offset_of!(Event, filters) + size_of::<TcFilter>(), &[43; size_of::<TcFilter>()])
            .put(offset_of!(Event, stack) + 8, &39u64.to_ne_bytes())
            .put(offset_of!(Event, headers), &[40, 41, 42, 43]);
        let raw = decode(&wire.0).unwrap();
        assert_eq!((raw.time, raw.skb, raw.count, raw.segments, raw.netns_cookie), (1, 2, 3, 4, Some(5)),);
        assert_eq!(
            raw.key,
            FlowKey {
                location: 6,
                attribution: [7, 8],
                source: [9; 16],
                destination: [10; 16],
                reason: 11,
                netns: 12,
                source_port: 13,
                destination_port: 14,
                ethertype: 15,
                transport: 16,
                flags: 17,
            }
        );
        assert_eq!((raw.slot, raw.length, raw.data_length, raw.mark), (18, 19, 20, 21));
        assert_eq!((raw.ingress_ifindex, raw.cpu, raw.gso_segments, raw.gso_size), (22, 23, 24, 25));
        assert_eq!((raw.socket_family, raw.socket_protocol, raw.packet_type), (26, 27, 30));
        assert_eq!(raw.netns_source, NetnsSource::Route);
        assert_eq!(raw.device.unwrap().ifindex, 31);
        let hook = raw.hook.unwrap();
        assert_eq!((hook.hook, hook.family, hook.input), (28, 29, None));
        assert_eq!(&hook.output.unwrap().name[..5], b"eth1\0");
        let entry = raw.conntrack.unwrap();
        assert_eq!((entry.original, entry.reply), ([33; TUPLE_BYTES], [34; TUPLE_BYTES]));
        assert_eq!((entry.status, entry.mark, entry.zone, entry.info, entry.tcp_state), (35, 36, 37, 2, 3));
        assert_eq!(raw.control_block, [38; 48]);
        let number = u32::from_ne_bytes([43; 4]);
        let filter = TcFilter { program: number, priority: number, handle: number, kind: [43; 16] };
        assert_eq!(raw.filters[..2], [TcFilter::default(), filter]);
        assert_eq!(raw.stack, [0, 39]);
        assert_eq!(raw.headers, [40, 41, 42]);
        assert_eq!(raw.lesson, None);
    }

    #[test]
    fn the_self_test_sends_the_stack() {
        let mut wire = vec![0; size_of::<OwnEvent>()];
        wire[offset_of!(OwnEvent, window) + 8..][..8].copy_from_slice(&5u64.to_ne_bytes());
        wire[offset_of!(OwnEvent, leads) + 1] = 6;
        let lesson = decode(&wire).unwrap().lesson.unwrap();
        assert_eq!((lesson.window.len(), &lesson.window[..3]), (WINDOW_WORDS, &[0, 5, 0][..]));
        assert_eq!((lesson.leads.len(), &lesson.leads[..3]), (NEAR_WORDS, &[0, 6, 0][..]));
    }

    #[test]
    fn nothing_is_kept_that_is_not_flagged() {
        let wire = Wire::new()
            .put(offset_of!(Event, stack_length), &4u16.to_ne_bytes())
            .put(offset_of!(Event, device), &named(b"eth0", 1))
            .put(offset_of!(Event, state_in), &named(b"eth0", 1));
        let raw = decode(&wire.0).unwrap();
        assert_eq!((raw.device, raw.hook, raw.conntrack, raw.netns_cookie), (None, None, None, None));
        assert!(raw.stack.is_empty() && raw.headers.is_empty());
        assert_eq!(raw.gso_segments, 1);
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        for length in [0, 1, size_of::<Event>() - 1, size_of::<Event>() + 1, 1 << 16] {
            let error = decode(&vec![0; length]).unwrap_err();
            assert_eq!(error, DecodeError::Length { expected: size_of::<Event>(), found: length });
        }
    }

    #[test]
    fn lengths_inside_are_clamped() {
        let raw = decode(&vec![0xff; size_of::<Event>()]).unwrap();
        assert_eq!(raw.headers.len(), HEADER_BYTES);
        assert_eq!(raw.stack.len(), STACK_FRAMES);
        assert_eq!(raw.netns_source, NetnsSource::None);
    }
}
