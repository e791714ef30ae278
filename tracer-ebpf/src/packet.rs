//! Addresses and ports from the packet's headers. Only what a count is kept by; the user half reads the rest from
//! the bytes that the full event carries.

use crate::{
    maps::{HEADER_WORDS, Scratch, control, has, offset, scratch, skb_field},
    memory::{copy, is_kernel_address, read},
    stack,
};
use core::mem::offset_of;
use network_types::{
    arp::ArpHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};
use tracer_common::{FlowKey, flow_flag};

/// Ethertypes (include/uapi/linux/if_ether.h).
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_ARP: u16 = 0x0806;
pub const ETH_P_TEB: u16 = 0x6558;
pub const ETH_P_IPV6: u16 = 0x86dd;

/// IP protocol numbers (IANA).
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
    pub const UDPLITE: u8 = 136;
}

/// Extension headers looked at in one packet.
const EXTENSIONS: u32 = 6;

/// Step: fills the flow's part of the key from the packet, and finds its layers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn parse_packet(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    if !has!(skb_protocol, skb_head, skb_network_header, skb_tail) {
        return 0;
    }
    // SAFETY: a map value with the sk_buff's copy and a cleared key in it.
    unsafe {
        (*scratch).network = 0;
        (*scratch).transport = 0;
        let mut ethertype = u16::from_be(skb_field!(scratch, skb_protocol, u16));
        if ethertype == 0 && stack::is_netfilter(control, (*scratch).key.location) {
            ethertype = of_raw_socket(scratch);
        }
        (*scratch).key.ethertype = ethertype;

        let start = skb_field!(scratch, skb_network_header, u16);
        // An offset from head on 64-bit kernels (sk_buff_data_t).
        let tail = skb_field!(scratch, skb_tail, u32);
        if start == u16::MAX || start as u32 >= tail {
            return 0;
        }
        let network = skb_field!(scratch, skb_head, u64) + start as u64;
        (*scratch).available = tail - start as u32;
        let header = (&raw mut (*scratch).header).cast::<u8>();
        if !copy(header, (HEADER_WORDS * 8) as u32, network) {
            return 0;
        }
        (*scratch).network = network;
        let found = match ethertype {
            ETH_P_IP => ipv4(scratch, header),
            ETH_P_IPV6 => ipv6(scratch, header),
            ETH_P_ARP => arp(scratch, header),
            _ => true,
        };
        if !found {
            (*scratch).network = 0;
        }
    }
    0
}

/// The protocol of a packet on a hook of netfilter that has none yet: older kernels set it after the hooks where the sender
/// of a raw socket wrote the header itself (raw_send_hdrinc, net/ipv4/raw.c). Its socket tells; 0 without.
#[inline(always)]
unsafe fn of_raw_socket(scratch: *const Scratch) -> u16 {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    if !has!(skb_sk, sock_family) {
        return 0;
    }
    // SAFETY: a map value.
    let socket = unsafe { skb_field!(scratch, skb_sk, u64) };
    if !is_kernel_address(socket) {
        return 0;
    }
    match read::<u16>(socket + offset!(sock_family) as u64) {
        Some(AF_INET) => ETH_P_IP,
        Some(AF_INET6) => ETH_P_IPV6,
        _ => 0,
    }
}

/// The first four bytes of an IPv4-mapped address's last eight (`::ffff:0:0/96`, RFC 4291 2.5.5.2).
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Writes an IPv4 address, in network byte order as read from memory, as a mapped IPv6 address.
#[inline(always)]
pub unsafe fn set_ipv4(to: *mut [u8; 16], address: u32) {
    let to = to.cast::<u32>();
    // SAFETY: 16 bytes, aligned to 4.
    unsafe {
        *to = 0;
        *to.add(1) = 0;
        *to.add(2) = MAPPED;
        *to.add(3) = address;
    }
}

#[inline(always)]
unsafe fn ipv4(scratch: *mut Scratch, header: *const u8) -> bool {
    // SAFETY: `header` has HEADER_WORDS words; the offsets below are at most 60 + 8.
    unsafe {
        let key = &raw mut (*scratch).key;
        let first = *header;
        let length = ((first & 0x0f) as u32) << 2;
        if first >> 4 != 4 || length < Ipv4Hdr::LEN as u32 || (*scratch).available < Ipv4Hdr::LEN as u32 {
            return false;
        }
        let transport = *header.add(offset_of!(Ipv4Hdr, proto));
        set_ipv4(&raw mut (*key).source, *header.add(offset_of!(Ipv4Hdr, src_addr)).cast());
        set_ipv4(&raw mut (*key).destination, *header.add(offset_of!(Ipv4Hdr, dst_addr)).cast());
        (*key).transport = transport;
        let mut flags = flow_flag::ADDRESSES;
        let fragment = u16::from_be(*header.add(offset_of!(Ipv4Hdr, frags)).cast::<u16>()) & 0x1fff;
        if fragment != 0 {
            flags |= flow_flag::FRAGMENT;
        } else if length + 8 <= (*scratch).available {
            (*scratch).transport = length;
            flags |= ports(*header.add(length as usize).cast::<u64>(), transport, key);
        }
        (*key).flags = flags;
        true
    }
}

#[inline(always)]
unsafe fn ipv6(scratch: *mut Scratch, header: *const u8) -> bool {
    // SAFETY: as for ipv4.
    unsafe {
        let key = &raw mut (*scratch).key;
        if *header >> 4 != 6 || (*scratch).available < Ipv6Hdr::LEN as u32 {
            return false;
        }
        let source = header.add(offset_of!(Ipv6Hdr, src_addr)).cast::<u64>();
        let to = (&raw mut (*key).source).cast::<u64>();
        let mut i = 0;
        while i < 4 {
            // The destination follows the source, in the header as in the key.
            *to.add(i) = *source.add(i);
            i += 1;
        }
        let mut flags = flow_flag::ADDRESSES;
        let mut next = *header.add(offset_of!(Ipv6Hdr, next_hdr));
        let mut offset = Ipv6Hdr::LEN as u32;
        let mut word = *header.add(Ipv6Hdr::LEN).cast::<u64>();
        let mut seen = 0;
        while seen < EXTENSIONS && is_extension(next) {
            if offset + 8 > (*scratch).available {
                break;
            }
            let bytes = word.to_ne_bytes();
            let length = if next == protocol::FRAGMENT {
                if u16::from_be_bytes([bytes[2], bytes[3]]) & 0xfff8 != 0 {
                    flags |= flow_flag::FRAGMENT;
                }
                8
            } else if next == protocol::AH {
                (bytes[1] as u32 + 2) << 2
            } else {
                (bytes[1] as u32 + 1) << 3
            };
            next = bytes[0];
            offset += length;
            if flags & flow_flag::FRAGMENT != 0 {
                break;
            }
            match read::<u64>((*scratch).network + offset as u64) {
                Some(read) => word = read,
                None => break,
            }
            seen += 1;
        }
        (*key).transport = next;
        if flags & flow_flag::FRAGMENT == 0 && offset + 8 <= (*scratch).available {
            (*scratch).transport = offset;
            flags |= ports(word, next, key);
        }
        (*key).flags = flags;
        true
    }
}

/// IPv6 extension headers that say what follows them (RFC 8200, 4; RFC 4302; RFC 6275).
#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AH
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
    )
}

/// Ports, or ICMP's type, code and identifier, from the first eight bytes of the transport header.
#[inline(always)]
unsafe fn ports(word: u64, transport: u8, key: *mut FlowKey) -> u8 {
    let bytes = word.to_ne_bytes();
    let (source, destination) = match transport {
        protocol::TCP | protocol::UDP | protocol::SCTP | protocol::DCCP | protocol::UDPLITE => {
            (u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]]))
        }
        protocol::ICMP | protocol::ICMPV6 => {
            // Echo request and reply (RFC 792; RFC 4443, 4).
            let echo = if transport == protocol::ICMP {
                bytes[0] == 8 || bytes[0] == 0
            } else {
                bytes[0] == 128 || bytes[0] == 129
            };
            let id = if echo { u16::from_be_bytes([bytes[4], bytes[5]]) } else { 0 };
            (id, u16::from_be_bytes([bytes[0], bytes[1]]))
        }
        _ => return 0,
    };
    // SAFETY: a map value.
    unsafe {
        (*key).source_port = source;
        (*key).destination_port = destination;
    }
    flow_flag::PORTS
}

/// Sender's and target's IPv4 address of an ARP packet over Ethernet (RFC 826).
#[inline(always)]
unsafe fn arp(scratch: *mut Scratch, header: *const u8) -> bool {
    // SAFETY: as for ipv4.
    unsafe {
        let key = &raw mut (*scratch).key;
        if (*scratch).available < ArpHdr::LEN as u32
            || *header.add(offset_of!(ArpHdr, hlen)) != 6
            || *header.add(offset_of!(ArpHdr, plen)) != 4
        {
            return false;
        }
        set_ipv4(&raw mut (*key).source, unaligned(header.add(offset_of!(ArpHdr, spa))));
        set_ipv4(&raw mut (*key).destination, unaligned(header.add(offset_of!(ArpHdr, tpa))));
        (*key).flags = flow_flag::ADDRESSES;
        true
    }
}

/// Four bytes at an address that is even at least.
#[inline(always)]
unsafe fn unaligned(from: *const u8) -> u32 {
    let from = from.cast::<u16>();
    // SAFETY: the caller's.
    unsafe { (*from as u32) | ((*from.add(1) as u32) << 16) }
}

/// The packet that a tunnel's packet carries.
#[derive(Clone, Copy)]
pub struct Carried {
    /// IP version.
    pub version: u8,
    /// Address of its IP header.
    pub at: u64,
}

/// Finds the packet that this one carries: VXLAN (RFC 7348), Geneve (RFC 8926), IP in IP.
///
/// # Safety
/// `scratch` must be a map value with a parsed packet in it.
#[inline(always)]
pub unsafe fn carried(scratch: *const Scratch) -> Option<Carried> {
    // SAFETY: the caller's.
    unsafe {
        let key = &raw const (*scratch).key;
        if (*scratch).network == 0 || (*scratch).transport == 0 {
            return None;
        }
        let transport = (*scratch).network + (*scratch).transport as u64;
        let (version, at) = match (*key).transport {
            protocol::IPIP => (4, transport),
            protocol::IPV6 => (6, transport),
            protocol::UDP => {
                let payload = transport + 8;
                let ethernet = match (*key).destination_port {
                    4789 | 8472 => payload + 8,
                    6081 => {
                        let first = read::<u32>(payload)?.to_ne_bytes();
                        if u16::from_be_bytes([first[2], first[3]]) != ETH_P_TEB {
                            return None;
                        }
                        payload + 8 + (((first[0] & 0x3f) as u64) << 2)
                    }
                    _ => return None,
                };
                // Past two MAC addresses.
                match u16::from_be(read::<u16>(ethernet + 12)?) {
                    ETH_P_IP => (4, ethernet + 14),
                    ETH_P_IPV6 => (6, ethernet + 14),
                    _ => return None,
                }
            }
            _ => return None,
        };
        if read::<u8>(at)? >> 4 != version {
            return None;
        }
        Some(Carried { version, at })
    }
}

/// What follows the IP header at `at`: its protocol number, and where it begins. IPv6 extension headers are not skipped.
#[inline(always)]
pub fn next_header(version: u8, at: u64) -> Option<(u8, u64)> {
    if version == 4 {
        let length = ((read::<u8>(at)? & 0x0f) as u64) << 2;
        Some((read::<u8>(at + offset_of!(Ipv4Hdr, proto) as u64)?, at + length))
    } else {
        Some((read::<u8>(at + offset_of!(Ipv6Hdr, next_hdr) as u64)?, at + Ipv6Hdr::LEN as u64))
    }
}
