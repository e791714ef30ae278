//! What is known of a dropped packet.

use crate::event::conntrack::{self, Direction};
use crate::event::decode::Raw;
use crate::event::packet::{self, protocol};
use crate::netfilter::model::Family;
use std::net::IpAddr;
use tracer_common::{ABSENT, ConntrackOffsets, Device};

/// A dropped packet, as it was when it was dropped. What is not known is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// [`Family::Ipv4`] or [`Family::Ipv6`]: the hook's.
    pub family: Family,
    /// Source address.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// IP protocol number; for IPv6 that after the extension headers.
    pub protocol: Option<u8>,
    /// Source port, host byte order.
    pub source_port: Option<u16>,
    /// Destination port, host byte order.
    pub destination_port: Option<u16>,
    /// Type and code of ICMP or ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// [`packet::tcp_flag`] bits.
    pub tcp_flags: Option<u8>,
    /// skb->mark.
    pub mark: Option<u32>,
    /// Bytes from the IP header on.
    pub length: Option<u32>,
    /// The device that it came in by.
    pub interface_in: Interface<'a>,
    /// The device that it was to leave by.
    pub interface_out: Interface<'a>,
    /// What connection tracking says.
    pub connection: Option<Connection>,
    /// True for a fragment other than the first.
    pub fragment: Option<bool>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
}

/// Bytes of the header that matches of a protocol ask for: tcphdr, sctphdr and dccp_hdr; udphdr, icmphdr and icmp6hdr
/// (net/netfilter/xt_tcpudp.c, xt_sctp.c, xt_dccp.c).
fn header_bytes(number: u8) -> usize {
    match number {
        protocol::TCP => 20,
        protocol::SCTP | protocol::DCCP => 12,
        _ => 8,
    }
}

/// A device of the hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface<'a> {
    /// It is not known which, nor whether there is one.
    #[default]
    Unknown,
    /// The hook has none, such as OUTPUT an incoming one.
    None,
    /// Its name.
    Named(&'a str),
}

/// What connection tracking says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It belongs to one.
    Tracked {
        /// New, established or related.
        state: State,
        /// Which way it goes.
        direction: Option<Direction>,
        /// nf_conn.status (`IPS_*`, include/uapi/linux/netfilter/nf_conntrack_common.h).
        status: Option<u32>,
    },
    /// To none, because a rule said so.
    Untracked,
    /// To none: `INVALID` for rules.
    Invalid,
    /// To none; which of the two is not known.
    None,
}

/// The state of a packet in its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `NEW`
    New,
    /// `ESTABLISHED`
    Established,
    /// `RELATED`
    Related,
}

impl<'a> Packet<'a> {
    /// A packet of which nothing else is known.
    #[must_use]
    pub fn unknown(family: Family) -> Self {
        Self {
            family,
            source: None,
            destination: None,
            protocol: None,
            source_port: None,
            destination_port: None,
            icmp: None,
            tcp_flags: None,
            mark: None,
            length: None,
            interface_in: Interface::Unknown,
            interface_out: Interface::Unknown,
            connection: None,
            fragment: None,
            ttl: None,
        }
    }

    /// From an event of a packet that was dropped in a netfilter hook. `None` if that was no hook of IPv4 or IPv6.
    /// `offsets` tell which fields of a connection this kernel's types name.
    #[must_use]
    pub fn of(raw: &'a Raw, offsets: &ConntrackOffsets) -> Option<Self> {
        let hook = raw.hook.as_ref()?;
        let family = Family::from_number(hook.family)
            .filter(|family| matches!(family, Family::Ipv4 | Family::Ipv6))?;
        let parsed = packet::parse(raw.key.ethertype, &raw.headers);
        // Which devices a hook never has: NF_INET_* (include/uapi/linux/netfilter.h).
        let (no_input, no_output) = (hook.hook == 3, matches!(hook.hook, 0 | 1));
        // Of a header that is cut off matches see nothing.
        let is_whole = parsed.transport.is_some_and(|number| parsed.transport_bytes >= header_bytes(number));
        let parsed = if is_whole {
            parsed
        } else {
            let (source_port, destination_port, tcp_flags, icmp_type) = Default::default();
            packet::Parsed { source_port, destination_port, tcp_flags, icmp_type, ..parsed }
        };
        Some(Self {
            source: parsed.source,
            destination: parsed.destination,
            protocol: parsed.transport,
            source_port: parsed.source_port,
            destination_port: parsed.destination_port,
            icmp: parsed.icmp_type.zip(parsed.icmp_code),
            tcp_flags: parsed.tcp_flags,
            mark: Some(raw.mark),
            // Longer ones don't fit into the header's field, which rules look at.
            length: Some(raw.length).filter(|length| *length <= u32::from(u16::MAX)),
            interface_in: Interface::of(hook.input.as_ref(), no_input),
            interface_out: Interface::of(hook.output.as_ref(), no_output),
            connection: Connection::of(raw, offsets),
            fragment: parsed.fragment,
            ttl: parsed.ttl,
            ..Self::unknown(family)
        })
    }

    /// Whether the header behind the IP header is there, as a match on it needs it.
    pub(super) fn has_transport_header(&self) -> bool {
        match self.protocol {
            Some(protocol::TCP) => self.tcp_flags.is_some() && self.source_port.is_some(),
            Some(number) if packet::is_icmp(number) => self.icmp.is_some(),
            Some(number) if packet::has_ports(number) => self.source_port.is_some(),
            _ => false,
        }
    }
}

impl<'a> Interface<'a> {
    fn of(device: Option<&'a Device>, is_none: bool) -> Self {
        let Some(device) = device else { return if is_none { Self::None } else { Self::Unknown } };
        let name = device.name.split(|byte| *byte == 0).next().unwrap_or_default();
        // A listing is text.
        match std::str::from_utf8(name) {
            Ok(name) if !name.is_empty() => Self::Named(name),
            _ => Self::Unknown,
        }
    }

    /// The name that rules compare: empty where there is no device (nulldevname, net/ipv4/netfilter/ip_tables.c).
    pub(super) fn name(self) -> Option<&'a str> {
        match self {
            Self::Unknown => None,
            Self::None => Some(""),
            Self::Named(name) => Some(name),
        }
    }
}

impl Connection {
    /// `None` where it is not known.
    fn of(raw: &Raw, offsets: &ConntrackOffsets) -> Option<Self> {
        let Some(entry) = raw.conntrack else {
            // The kernel half tells of every entry whose layout is known.
            return (offsets.original != ABSENT && offsets.reply != ABSENT).then_some(Self::None);
        };
        let status = (offsets.status != ABSENT).then_some(entry.status);
        // A template is no connection, and only where the status is known it can be told apart.
        if status.is_none_or(conntrack::is_template) {
            return None;
        }
        let told = conntrack::state(entry.info);
        let state = match told.name {
            "new" => State::New,
            "established" => State::Established,
            "related" => State::Related,
            "untracked" => return Some(Self::Untracked),
            _ => return Some(Self::Invalid),
        };
        Some(Self::Tracked { state, direction: told.direction, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::decode::tests::Wire;
    use crate::event::decode::{HookState, decode};
    use tracer_common::{Conntrack, TUPLE_BYTES};

    const OFFSETS: ConntrackOffsets =
        ConntrackOffsets { original: 0, reply: 56, status: 112, ..ConntrackOffsets::NONE };

    /// 192.0.2.1:4097 to 192.0.2.2:53, UDP, TTL 64.
    const UDP: [u8; 28] =
        [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0x10, 1, 0, 53, 0, 8, 0, 0];

    fn raw(hook: u8, family: u8) -> Raw {
        let mut raw = decode(&Wire::new().0).unwrap();
        raw.key.ethertype = 0x800;
        raw.headers = UDP.to_vec();
        raw.length = 28;
        raw.mark = 5;
        raw.hook = Some(HookState { hook, family, input: None, output: None });
        raw
    }

    #[test]
    fn an_event_tells_the_packet() {
        let mut raw = raw(1, 2);
        raw.hook.as_mut().unwrap().input =
            Some(Device { name: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0", ..Device::default() });
        let packet = Packet::of(&raw, &OFFSETS).unwrap();
        let expected = Packet {
            source: Some([192, 0, 2, 1].into()),
            destination: Some([192, 0, 2, 2].into()),
            protocol: Some(17),
            source_port: Some(4097),
            destination_port: Some(53),
            mark: Some(5),
            length: Some(28),
            interface_in: Interface::Named("eth0"),
            interface_out: Interface::None,
            connection: Some(Connection::None),
            fragment: Some(false),
            ttl: Some(64),
            ..Packet::unknown(Family::Ipv4)
        };
        assert_eq!(packet, expected);
        assert!(packet.has_transport_header());
        // The ports are there, but not the whole header.
        raw.headers.truncate(24);
        let cut_off = Packet::of(&raw, &OFFSETS).unwrap();
        let expected = Packet { source_port: None, destination_port: None, ..expected };
        assert_eq!(cut_off, expected);
        assert!(!cut_off.has_transport_header());
        raw.hook = None;
        assert_eq!(Packet::of(&raw, &OFFSETS), None);
    }

    #[test]
    fn only_a_device_that_a_hook_never_has_is_none() {
        for (hook, input, output) in [
            (0, Interface::Unknown, Interface::None),
            (1, Interface::Unknown, Interface::None),
            (2, Interface::Unknown, Interface::Unknown),
            (3, Interface::None, Interface::Unknown),
            (4, Interface::Unknown, Interface::Unknown),
        ] {
            let raw = raw(hook, 2);
            let packet = Packet::of(&raw, &OFFSETS).unwrap();
            assert_eq!((packet.interface_in, packet.interface_out), (input, output), "{hook}");
        }
        assert_eq!(Packet::of(&raw(1, 7), &OFFSETS), None);
        let strange = Device { name: [0xff; 16], ..Device::default() };
        assert_eq!(Interface::of(Some(&strange), false), Interface::Unknown);
    }

    #[test]
    fn a_connection_is_known_where_its_layout_is() {
        let with = |info, status, offsets: &ConntrackOffsets| {
            let mut raw = raw(1, 2);
            raw.conntrack = Some(Conntrack {
                original: [0; TUPLE_BYTES],
                reply: [0; TUPLE_BYTES],
                status,
                mark: 0,
                zone: 0,
                info,
                tcp_state: 0,
                padding: 0,
            });
            Connection::of(&raw, offsets)
        };
        let tracked = |state, direction, status| {
            Some(Connection::Tracked { state, direction: Some(direction), status: Some(status) })
        };
        assert_eq!(with(2, 8, &OFFSETS), tracked(State::New, Direction::Original, 8));
        assert_eq!(with(3, 8, &OFFSETS), tracked(State::Established, Direction::Reply, 8));
        assert_eq!(with(4, 8, &OFFSETS), tracked(State::Related, Direction::Reply, 8));
        assert_eq!(with(7, 8, &OFFSETS), Some(Connection::Untracked));
        assert_eq!(with(2, 1 << 11, &OFFSETS), None);
        assert_eq!(with(2, 8, &ConntrackOffsets { status: ABSENT, ..OFFSETS }), None);
        assert_eq!(Connection::of(&raw(1, 2), &ConntrackOffsets { original: ABSENT, ..OFFSETS }), None);
    }
}
