//! What the user asked to see (semantics: `tracer_common::filter`).
//!
//! Addresses and ports are looked for in the packet, in both tuples of its conntrack entry (turned to the packet's
//! direction) and in the packet that a tunnel carries; one of these must satisfy address and port together. Pods and
//! services are looked for in the same, but they may be found in different ones: where both ends were translated no
//! tuple has both pods.

use crate::{
    conntrack, emit,
    maps::{
        FILTER, FILTER_ADDRESS, FILTER_END, FILTER_END_NETNS, FILTER_INTERFACE, FILTER_NETNS, FILTER_PORT,
        FILTER_PROTOCOL, FILTER_REASON, Scratch, constant, control, has, offset, scratch, skb_field,
    },
    memory::{copy, is_kernel_address, read},
    netns,
    packet::{self, Carried, ETH_P_ARP, protocol, set_ipv4},
};
use aya_ebpf::maps::lpm_trie::Key;
use core::mem::offset_of;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use tracer_common::{ABSENT, Control, EndKey, dimension, filter_bit, flow_flag};

/// Positive bits; the negative ones are `<< NEGATIVE` of them.
const POSITIVE: u32 = filter_bit::EITHER | filter_bit::FROM | filter_bit::TO;
const NEGATIVE: u32 = 3;

/// Kinds of words about either end, the source, the destination: of pods and of services, wanted and unwanted.
const EITHER: u32 = both(filter_bit::EITHER | filter_bit::NOT_EITHER);
const FROM: u32 = both(filter_bit::FROM | filter_bit::NOT_FROM);
const TO: u32 = both(filter_bit::TO | filter_bit::NOT_TO);
const UNWANTED: u32 = both(POSITIVE << NEGATIVE);

/// Bits about pods, and the same about services.
const fn both(bits: u32) -> u32 {
    bits | bits << filter_bit::SERVICE
}

/// `ip_conntrack_info` of a packet in the reply direction (IP_CT_IS_REPLY) up to the untracked mark.
const REPLY_FIRST: u8 = 3;
const REPLY_LAST: u8 = 5;

/// `nf_conntrack_tuple.src.l3num` (NFPROTO_IPV4).
const NFPROTO_IPV4: u16 = 2;

macro_rules! active {
    ($dimension:ident) => {
        constant(&FILTER.active) & dimension::$dimension != 0
    };
}

macro_rules! required {
    ($dimension:ident) => {
        constant(&FILTER.required[dimension::$dimension.trailing_zeros() as usize])
    };
}

/// True if there is anything to filter by.
#[inline(always)]
pub fn is_active() -> bool {
    constant(&FILTER.active) != 0
}

/// True if protocols were asked for.
#[inline(always)]
pub fn is_about_protocols() -> bool {
    active!(PROTOCOL)
}

/// Step: 1 if the packet is one that the user asked for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn passes_filter(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    (unsafe { passes(control, scratch) }) as u32
}

#[inline(always)]
unsafe fn passes(control: *const Control, scratch: *mut Scratch) -> bool {
    // SAFETY: map values.
    unsafe {
        let key = &raw const (*scratch).key;
        if active!(REASON) {
            let reason = (*key).reason;
            let bits = FILTER_REASON.get(&reason).copied().unwrap_or(0);
            if !single(bits, required!(REASON)) {
                return false;
            }
        }
        if active!(NETNS) {
            let bits = FILTER_NETNS.get(&(*key).netns).copied().unwrap_or(0);
            if !single(bits, required!(NETNS)) {
                return false;
            }
        }
        if active!(PROTOCOL) {
            let (transport, ethertype) = ((*key).transport as u32, (*key).ethertype as u32);
            let mut bits = 0;
            if (*key).flags & flow_flag::ADDRESSES != 0 && ethertype != ETH_P_ARP as u32 {
                bits |= FILTER_PROTOCOL.get(&transport).copied().unwrap_or(0);
            }
            bits |= FILTER_PROTOCOL.get(&(ethertype | dimension::ETHERTYPE)).copied().unwrap_or(0);
            if !single(bits, required!(PROTOCOL)) {
                return false;
            }
        }
        if active!(INTERFACE) && !single(interfaces(control, scratch), required!(INTERFACE)) {
            return false;
        }
        if active!(ADDRESS) || active!(PORT) || active!(END) {
            return tuples(control, scratch);
        }
        true
    }
}

/// For dimensions with one value: every kind of word asked for is satisfied, none unwanted is.
#[inline(always)]
fn single(bits: u32, required: u32) -> bool {
    bits & required == required && bits & (POSITIVE << NEGATIVE) == 0
}

/// What the packet's interfaces satisfy: `skb->dev` if it is to be believed, and the hook's two.
#[inline(always)]
unsafe fn interfaces(control: *const Control, scratch: *const Scratch) -> u32 {
    let mut bits = 0;
    // SAFETY: map values.
    unsafe {
        let inode = (*scratch).key.netns;
        if has!(skb_dev) {
            bits |= interface(control, skb_field!(scratch, skb_dev, u64), inode);
        }
        if (*scratch).state != 0 {
            let (incoming, outgoing) = emit::state_devices(scratch);
            bits |= interface(control, incoming, inode);
            bits |= interface(control, outgoing, inode);
        }
    }
    bits
}

#[inline(always)]
unsafe fn interface(control: *const Control, device: u64, inode: u32) -> u32 {
    if !is_kernel_address(device) || !has!(dev_net, dev_name) {
        return 0;
    }
    let Some(net) = read::<u64>(device + offset!(dev_net) as u64) else { return 0 };
    // SAFETY: a map value.
    if inode == 0 || unsafe { netns::inode(control, net) } != inode {
        return 0;
    }
    let Some(mut name) = read::<[u8; 16]>(device + offset!(dev_name) as u64) else { return 0 };
    // The kernel may leave old bytes behind the NUL (a renamed device).
    let mut ended = false;
    let mut i = 0;
    while i < 16 {
        ended |= name[i] == 0;
        if ended {
            name[i] = 0;
        }
        i += 1;
    }
    // SAFETY: the map's value is not written while programs run.
    unsafe { FILTER_INTERFACE.get(&name) }.copied().unwrap_or(0)
}

/// One pair of ends.
#[derive(Clone, Copy)]
struct Ports {
    source: u16,
    destination: u16,
    known: bool,
    /// Of which protocol.
    protocol: u8,
}

/// What the tuples looked at until now say.
struct Found {
    /// One of them satisfies all wanted words about addresses and ports.
    wanted: bool,
    /// One of them satisfies an unwanted one.
    unwanted: bool,
    /// Kinds of words about pods and services that they satisfy.
    ends: u32,
}

#[inline(always)]
unsafe fn tuples(control: *const Control, scratch: *mut Scratch) -> bool {
    // SAFETY: map values.
    unsafe {
        let key = &raw const (*scratch).key;
        let tuple = (&raw mut (*scratch).tuple).cast::<[u8; 16]>();
        // Without such words no tuple is needed: a packet in a pod's netns may have none.
        let mut found = Found { wanted: !active!(ADDRESS) && !active!(PORT), unwanted: false, ends: 0 };
        if active!(END) {
            found.ends = FILTER_END_NETNS.get(&(*key).netns).copied().unwrap_or(0);
        }

        if (*key).flags & flow_flag::ADDRESSES != 0 {
            *tuple = (*key).source;
            *tuple.add(1) = (*key).destination;
            let icmp = (*key).transport == protocol::ICMP || (*key).transport == protocol::ICMPV6;
            let known = (*key).flags & flow_flag::PORTS != 0 && !icmp;
            let ports = Ports {
                source: (*key).source_port,
                destination: (*key).destination_port,
                known,
                protocol: (*key).transport,
            };
            judge(tuple, ports, &mut found);
        }

        let (entry, info) = conntrack::of_packet(scratch);
        let (original, reply) = ((*control).conntrack.original, (*control).conntrack.reply);
        if entry != 0 && original != ABSENT && reply != ABSENT {
            let in_reply = info >= REPLY_FIRST && info <= REPLY_LAST;
            if let Some(ports) = conntrack_tuple(control, entry + original as u64, tuple, in_reply) {
                judge(tuple, ports, &mut found);
            }
            if let Some(ports) = conntrack_tuple(control, entry + reply as u64, tuple, !in_reply) {
                judge(tuple, ports, &mut found);
            }
        }

        if let Some(ports) = inner(scratch, tuple) {
            judge(tuple, ports, &mut found);
        }
        let has_ends =
            !active!(END) || (found.ends & required!(END) == required!(END) && found.ends & UNWANTED == 0);
        found.wanted && !found.unwanted && has_ends
    }
}

/// Adds what one pair of ends says.
#[inline(always)]
unsafe fn judge(tuple: *const [u8; 16], ports: Ports, found: &mut Found) {
    let mut satisfied = true;
    if active!(END) {
        // SAFETY: `tuple` has two addresses.
        let (source, destination) = unsafe {
            (end_bits(tuple, ports.source, &ports), end_bits(tuple.add(1), ports.destination, &ports))
        };
        found.ends |= ((source | destination) & EITHER) | (source & FROM) | (destination & TO);
    }
    if active!(ADDRESS) {
        // SAFETY: `tuple` has two addresses.
        let (source, destination) = unsafe { (address_bits(tuple), address_bits(tuple.add(1))) };
        let (positive, negative) = combine(source, destination);
        satisfied &= positive & required!(ADDRESS) == required!(ADDRESS);
        found.unwanted |= negative;
    }
    if active!(PORT) {
        let (source, destination) =
            if ports.known { (port_bits(ports.source), port_bits(ports.destination)) } else { (0, 0) };
        let (positive, negative) = combine(source, destination);
        satisfied &= positive & required!(PORT) == required!(PORT);
        found.unwanted |= negative;
    }
    found.wanted |= satisfied;
}

/// The kinds of words that two ends satisfy, and whether they satisfy an unwanted one.
#[inline(always)]
fn combine(source: u32, destination: u32) -> (u32, bool) {
    let all = ((source | destination) & (filter_bit::EITHER | filter_bit::NOT_EITHER))
        | (source & (filter_bit::FROM | filter_bit::NOT_FROM))
        | (destination & (filter_bit::TO | filter_bit::NOT_TO));
    (all & POSITIVE, all & (POSITIVE << NEGATIVE) != 0)
}

#[inline(always)]
unsafe fn address_bits(address: *const [u8; 16]) -> u32 {
    // SAFETY: the caller's.
    let key = Key::new(128, unsafe { *address });
    FILTER_ADDRESS.get(&key).copied().unwrap_or(0)
}

/// What an end satisfies: all of its address, or just this port of it.
#[inline(always)]
unsafe fn end_bits(address: *const [u8; 16], port: u16, ports: &Ports) -> u32 {
    // SAFETY: the caller's; the map's values are plain numbers.
    unsafe {
        let mut key = EndKey { address: *address, port: 0, protocol: 0 };
        let mut bits = FILTER_END.get(&key).copied().unwrap_or(0);
        if ports.known {
            key.port = port;
            key.protocol = ports.protocol as u16;
            bits |= FILTER_END.get(&key).copied().unwrap_or(0);
        }
        bits
    }
}

#[inline(always)]
fn port_bits(port: u16) -> u32 {
    // SAFETY: the map's values are not written while programs run.
    unsafe { FILTER_PORT.get(&(port as u32)) }.copied().unwrap_or(0)
}

/// Reads a conntrack tuple, turned round if it is that of the other direction.
#[inline(always)]
unsafe fn conntrack_tuple(
    control: *const Control,
    at: u64,
    tuple: *mut [u8; 16],
    turned: bool,
) -> Option<Ports> {
    // SAFETY: map values.
    unsafe {
        let layout = &raw const (*control).conntrack;
        let family = read::<u16>(at + (*layout).tuple_family as u64)?;
        let transport = read::<u8>(at + (*layout).tuple_protocol as u64)?;
        let (first, second) = if turned { (1, 0) } else { (0, 1) };
        address(at + (*layout).tuple_source as u64, family, tuple.add(first))?;
        address(at + (*layout).tuple_destination as u64, family, tuple.add(second))?;
        let source = u16::from_be(read::<u16>(at + (*layout).tuple_source_port as u64)?);
        let destination = u16::from_be(read::<u16>(at + (*layout).tuple_destination_port as u64)?);
        let known = transport != protocol::ICMP && transport != protocol::ICMPV6;
        Some(if turned {
            Ports { source: destination, destination: source, known, protocol: transport }
        } else {
            Ports { source, destination, known, protocol: transport }
        })
    }
}

#[inline(always)]
unsafe fn address(from: u64, family: u16, to: *mut [u8; 16]) -> Option<()> {
    // SAFETY: `to` has room for an address.
    unsafe {
        if family == NFPROTO_IPV4 {
            set_ipv4(to, read::<u32>(from)?);
            Some(())
        } else if copy(to.cast(), 16, from) {
            Some(())
        } else {
            None
        }
    }
}

/// Reads the ends of the packet that this one carries.
#[inline(always)]
unsafe fn inner(scratch: *const Scratch, tuple: *mut [u8; 16]) -> Option<Ports> {
    // SAFETY: map values.
    unsafe {
        let Carried { version, at, .. } = packet::carried(scratch)?;
        let (next, after) = packet::next_header(version, at)?;
        if version == 4 {
            set_ipv4(tuple, read::<u32>(at + offset_of!(Ipv4Hdr, src_addr) as u64)?);
            set_ipv4(tuple.add(1), read::<u32>(at + offset_of!(Ipv4Hdr, dst_addr) as u64)?);
        } else if !copy(tuple.cast(), 32, at + offset_of!(Ipv6Hdr, src_addr) as u64) {
            return None;
        }
        let known = matches!(next, protocol::TCP | protocol::UDP | protocol::SCTP);
        let word = read::<u32>(after).unwrap_or(0).to_ne_bytes();
        Some(Ports {
            source: u16::from_be_bytes([word[0], word[1]]),
            destination: u16::from_be_bytes([word[2], word[3]]),
            known,
            protocol: next,
        })
    }
}
