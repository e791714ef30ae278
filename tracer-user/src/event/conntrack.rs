//! Raw connection tracking tuples to a connection, and what NAT did to the packet.

use super::model::{Endpoint, Original};
use super::packet::{has_ports, is_icmp, protocol};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tracer_common::{ABSENT, ConntrackOffsets, TUPLE_BYTES};

/// Address families of nf_conntrack_tuple.src.l3num (include/linux/socket.h).
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// One direction of a connection (struct nf_conntrack_tuple,
/// include/net/netfilter/nf_conntrack_tuple.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Source port, host byte order; null for protocols without ports.
    pub source_port: Option<u16>,
    /// Destination port, likewise.
    pub destination_port: Option<u16>,
    /// ICMP and ICMPv6: identifier, type and code.
    pub icmp: Option<(u16, u8, u8)>,
}

/// Which way a packet goes in its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the connection's first packet.
    Original,
    /// Against it.
    Reply,
}

/// What conntrack says of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// `new`, `established`, `related`, `invalid` or `untracked`.
    pub name: &'static str,
    /// Null where there is no connection.
    pub direction: Option<Direction>,
}

impl Direction {
    /// `original` or `reply`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Reply => "reply",
        }
    }
}

/// `enum ip_conntrack_info` (include/uapi/linux/netfilter/nf_conntrack_common.h), the low three bits of
/// `skb->_nfct`.
#[must_use]
pub fn state(info: u8) -> State {
    let (name, direction) = match info {
        0 => ("established", Some(Direction::Original)),
        1 => ("related", Some(Direction::Original)),
        2 => ("new", Some(Direction::Original)),
        3 => ("established", Some(Direction::Reply)),
        4 => ("related", Some(Direction::Reply)),
        7 => ("untracked", None),
        _ => ("invalid", None),
    };
    State { name, direction }
}

/// Names of the `IPS_*` bits that are set, joined by `,` (same header; bit 12 is IPS_NAT_CLASH, which kernels
/// before 4.12 used for IPS_UNTRACKED).
#[must_use]
pub fn status_names(status: u32) -> String {
    const NAMES: [&str; 16] = [
        "expected",
        "seen_reply",
        "assured",
        "confirmed",
        "src_nat",
        "dst_nat",
        "seq_adjust",
        "src_nat_done",
        "dst_nat_done",
        "dying",
        "fixed_timeout",
        "template",
        "nat_clash",
        "helper",
        "offload",
        "hw_offload",
    ];
    let set = NAMES.iter().enumerate().filter(|(bit, _)| status & (1 << bit) != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

/// Name of an `enum tcp_conntrack` value (include/uapi/linux/netfilter/nf_conntrack_tcp.h), as
/// /proc/net/nf_conntrack prints it.
#[must_use]
pub fn tcp_state_name(state: u8) -> Option<&'static str> {
    const NAMES: [&str; 10] = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ];
    NAMES.get(usize::from(state)).copied()
}

/// True for a template (IPS_TEMPLATE): it carries settings from a `CT` target and is no connection.
#[must_use]
pub fn is_template(status: u32) -> bool {
    status & (1 << 11) != 0
}

/// Decodes a raw tuple. `None` if the layout is not known or it is neither IPv4's nor IPv6's.
#[must_use]
pub fn tuple(raw: &[u8; TUPLE_BYTES], offsets: &ConntrackOffsets) -> Option<Tuple> {
    let family = u16::from_ne_bytes(field(raw, offsets.tuple_family)?);
    let address = |offset| match family {
        AF_INET => field::<4>(raw, offset).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
        AF_INET6 => field::<16>(raw, offset).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => None,
    };
    let protocol = field::<1>(raw, offsets.tuple_protocol).map(|[protocol]| protocol);
    let port = |offset| {
        let bytes = field(raw, offset).filter(|_| protocol.is_some_and(has_ports))?;
        Some(u16::from_be_bytes(bytes))
    };
    let icmp = || {
        protocol.filter(|protocol| is_icmp(*protocol))?;
        let id = u16::from_be_bytes(field(raw, offsets.tuple_source_port)?);
        let [kind, code] = field(raw, offsets.tuple_destination_port)?;
        Some((id, kind, code))
    };
    Some(Tuple {
        source: address(offsets.tuple_source)?,
        destination: address(offsets.tuple_destination)?,
        protocol,
        source_port: port(offsets.tuple_source_port),
        destination_port: port(offsets.tuple_destination_port),
        icmp: icmp(),
    })
}

/// `N` bytes of the tuple at an offset that came from BTF; `None` if absent or outside.
fn field<const N: usize>(raw: &[u8; TUPLE_BYTES], offset: u32) -> Option<[u8; N]> {
    if offset == ABSENT {
        return None;
    }
    raw.get(usize::try_from(offset).ok()?..)?.first_chunk().copied()
}

impl Tuple {
    /// The tuple's ends as the event model has them.
    #[must_use]
    pub fn ends(&self) -> Original {
        let end = |address, port| Endpoint { address: Some(address), port, k8s: None };
        Original {
            source: end(self.source, self.source_port),
            destination: end(self.destination, self.destination_port),
        }
    }
}

/// The original direction of the packet's connection, if NAT made it different from the packet's own ends.
///
/// A packet of the reply direction is compared with the tuple turned round. An ICMP error that belongs to a
/// connection (`related`) has ends of its own and tells nothing about NAT, so it has none; neither have packets
/// of which no address is known.
#[must_use]
pub fn original(
    tuple: &Tuple,
    state: State,
    transport: Option<u8>,
    source: &Endpoint,
    destination: &Endpoint,
) -> Option<Original> {
    let direction = state.direction?;
    let error = transport.is_some_and(is_icmp) && state.name == "related";
    if error || transport != tuple.protocol {
        return None;
    }
    let ends = tuple.ends();
    let (first, second) = match direction {
        Direction::Original => (source, destination),
        Direction::Reply => (destination, source),
    };
    let differs = |packet: &Endpoint, tuple: &Endpoint| {
        let ports = matches!((packet.port, tuple.port), (Some(packet), Some(tuple)) if packet != tuple);
        packet.address.is_some_and(|address| Some(address) != tuple.address) || ports
    };
    (differs(first, &ends.source) || differs(second, &ends.destination)).then_some(ends)
}

/// True if that connection's tcp_state means anything.
#[must_use]
pub fn is_tcp(tuple: &Tuple) -> bool {
    tuple.protocol == Some(protocol::TCP)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A made-up layout, unlike any kernel's.
    pub(crate) const OFFSETS: ConntrackOffsets = ConntrackOffsets {
        tuple_protocol: 0,
        tuple_family: 1,
        tuple_destination_port: 3,
        tuple_source_port: 5,
        tuple_source: 7,
        tuple_destination: 23,
        ..ConntrackOffsets::NONE
    };

    pub(crate) fn raw4(protocol: u8, source: [u8; 4], ports: (u16, u16), destination: [u8; 4]) -> [u8; 40] {
        let mut raw = [0; TUPLE_BYTES];
        raw[0] = protocol;
        raw[1..3].copy_from_slice(&AF_INET.to_ne_bytes());
        raw[3..5].copy_from_slice(&ports.1.to_be_bytes());
        raw[5..7].copy_from_slice(&ports.0.to_be_bytes());
        raw[7..11].copy_from_slice(&source);
        raw[23..27].copy_from_slice(&destination);
        raw
    }

    const CLIENT: [u8; 4] = [10, 244, 3, 7];
    const VIP: [u8; 4] = [10, 96, 3, 4];
    const BACKEND: [u8; 4] = [10, 244, 1, 9];

    fn end(address: [u8; 4], port: Option<u16>) -> Endpoint {
        Endpoint { address: Some(Ipv4Addr::from(address).into()), port, k8s: None }
    }

    #[test]
    fn tcp_tuple() {
        let tuple = tuple(&raw4(6, CLIENT, (41822, 6379), VIP), &OFFSETS).unwrap();
        assert_eq!((tuple.source_port, tuple.destination_port), (Some(41822), Some(6379)));
        assert_eq!(tuple.source, IpAddr::from(CLIENT));
        assert_eq!(tuple.destination, IpAddr::from(VIP));
        assert_eq!((tuple.protocol, tuple.icmp), (Some(6), None));
        assert!(is_tcp(&tuple));
    }

    #[test]
    fn icmp_tuple_has_no_ports() {
        let tuple = tuple(&raw4(1, CLIENT, (77, 0x0800), VIP), &OFFSETS).unwrap();
        assert_eq!((tuple.source_port, tuple.destination_port), (None, None));
        assert_eq!(tuple.icmp, Some((77, 8, 0)));
    }

    #[test]
    fn ipv6_tuple() {
        let mut raw = raw4(17, [0; 4], (1, 2), [0; 4]);
        raw[1..3].copy_from_slice(&AF_INET6.to_ne_bytes());
        raw[7..23].copy_from_slice(&[0x20; 16]);
        raw[23..39].copy_from_slice(&[0x30; 16]);
        let tuple = tuple(&raw, &OFFSETS).unwrap();
        assert_eq!(tuple.source, IpAddr::from([0x20; 16]));
        assert_eq!(tuple.destination, IpAddr::from([0x30; 16]));
    }

    #[test]
    fn unknown_layouts_and_families_give_nothing() {
        let raw = raw4(6, CLIENT, (1, 2), VIP);
        assert_eq!(tuple(&raw, &ConntrackOffsets::NONE), None);
        for tuple_destination in [37, 40, 41, u32::MAX - 1] {
            assert_eq!(tuple(&raw, &ConntrackOffsets { tuple_destination, ..OFFSETS }), None);
        }
        assert_eq!(tuple(&[0; TUPLE_BYTES], &OFFSETS), None);
        // Without ports the addresses still count.
        let offsets = ConntrackOffsets { tuple_source_port: ABSENT, ..OFFSETS };
        assert_eq!(tuple(&raw, &offsets).unwrap().source_port, None);
    }

    #[test]
    fn infos_are_states() {
        let told = |info| (state(info).name, state(info).direction.map(Direction::name));
        assert_eq!(told(0), ("established", Some("original")));
        assert_eq!(told(1), ("related", Some("original")));
        assert_eq!(told(2), ("new", Some("original")));
        assert_eq!(told(3), ("established", Some("reply")));
        assert_eq!(told(4), ("related", Some("reply")));
        assert_eq!(told(7), ("untracked", None));
        assert_eq!(told(5), ("invalid", None));
    }

    #[test]
    fn bits_and_states_have_names() {
        assert_eq!(status_names(0), "");
        assert_eq!(status_names(0x1a8), "confirmed,dst_nat,src_nat_done,dst_nat_done");
        assert_eq!(status_names(u32::MAX).split(',').count(), 16);
        assert_eq!(tcp_state_name(1), Some("SYN_SENT"));
        assert_eq!(tcp_state_name(3), Some("ESTABLISHED"));
        assert_eq!(tcp_state_name(9), Some("SYN_SENT2"));
        assert_eq!(tcp_state_name(u8::MAX), None);
        assert!(is_template(0x800) && !is_template(0x7ff));
    }

    #[test]
    fn original_is_set_where_nat_made_a_difference() {
        let tuple = tuple(&raw4(6, CLIENT, (41822, 80), VIP), &OFFSETS).unwrap();
        let client = end(CLIENT, Some(41822));
        let (vip, backend) = (end(VIP, Some(80)), end(BACKEND, Some(6379)));
        let nat = |info, source, destination| original(&tuple, state(info), Some(6), source, destination);
        let expected = Some(Original { source: client.clone(), destination: vip.clone() });
        // On the way there: before and after the translation.
        assert_eq!(nat(2, &client, &vip), None);
        assert_eq!(nat(0, &client, &backend), expected);
        // On the way back: before and after it is undone.
        assert_eq!(nat(3, &backend, &client), expected);
        assert_eq!(nat(3, &vip, &client), None);
        // Only the port was translated.
        assert_eq!(nat(0, &client, &end(VIP, Some(6379))), expected);
    }

    #[test]
    fn original_is_not_guessed() {
        let tuple = tuple(&raw4(6, CLIENT, (41822, 80), VIP), &OFFSETS).unwrap();
        let (source, destination) = (end(BACKEND, None), end(CLIENT, None));
        // An ICMP error about the connection, an untracked packet, a packet without known ends.
        assert_eq!(original(&tuple, state(4), Some(1), &source, &destination), None);
        assert_eq!(original(&tuple, state(7), Some(6), &source, &destination), None);
        let unknown = Endpoint::default();
        assert_eq!(original(&tuple, state(0), Some(6), &unknown, &unknown), None);
        // A fragment's ports are not known: its addresses decide.
        assert_eq!(original(&tuple, state(0), Some(6), &end(CLIENT, None), &end(VIP, None)), None);
        let ping = super::tuple(&raw4(1, CLIENT, (7, 0x0800), VIP), &OFFSETS).unwrap();
        assert_eq!(original(&ping, state(4), Some(1), &source, &destination), None);
        assert!(original(&ping, state(0), Some(1), &destination, &source).is_some());
    }
}
