//! A decoded event, or a counting slot, to the explained [`Drop`] of the event model. Names, clock and layouts
//! come from outside, so that live, replay and tests use the same code.

use super::class::{self, Classified, Facts};
use super::conntrack;
use super::decode::Raw;
use super::model::{
    Cause, Class, Conntrack, Drop, Endpoint, Inner, Network, Original, Packet, Reason, Timestamp,
};
use super::packet::{self, Parsed, ethertype, has_ports, is_icmp};
use std::borrow::Cow;
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};
use tracer_common::{ABSENT, ConntrackOffsets, Device, FlowKey, NetnsSource, flow_flag};

/// What the running kernel calls its things.
pub trait Names {
    /// Subsystem and name of a drop reason: (`core`, `NETFILTER_DROP`). `None` if this kernel has no such number.
    fn reason(&self, reason: u32) -> Option<(String, String)>;
    /// `symbol+0xoffset` or `symbol+0xoffset [module]` of a kernel address.
    fn symbol(&self, address: u64) -> Option<String>;
    /// False on kernels whose tracepoint tells no reason (before 5.17).
    fn has_reasons(&self) -> bool;
    /// Layout of connection tracking's structures.
    fn conntrack_offsets(&self) -> ConntrackOffsets;
}

/// Explains one full event. The result counts this packet only: `count` is 1 and `segments` its own; whoever
/// merges events with counts puts in what they stand for.
#[must_use]
pub fn explain(raw: &Raw, names: &dyn Names, clock: &dyn Fn(u64) -> Timestamp, node: &str) -> Drop {
    let parsed = packet::parse(raw.key.ethertype, &raw.headers);
    let time = clock(raw.time);
    let (stack, trimmed) = stack(raw, names);
    let (source, destination) = ends(&raw.key, Some(&parsed));
    let transport = transport(&raw.key, Some(&parsed));
    let icmp = icmp(&raw.key, &parsed);
    let frames: Vec<&str> = stack.iter().map(String::as_str).collect();
    let facts = Facts {
        stack: if trimmed { &frames } else { &[] },
        socket_family: raw.socket_family,
        ethertype: raw.key.ethertype,
        packet_type: Some(raw.packet_type),
        destination: destination.address,
        transport,
        tcp_flags: parsed.tcp_flags,
        icmp_type: icmp.map(|icmp| icmp.0),
        ..Facts::default()
    };
    let drop = reason(&raw.key, names, facts);
    let (conntrack, original) = connection(raw, names, transport, &source, &destination);
    let (interface, interface_in, interface_out) = interfaces(raw);
    Drop {
        time,
        time_last: time,
        node: node.to_owned(),
        count: 1,
        segments: u64::from(raw.gso_segments),
        detail: true,
        original,
        network: Network {
            interface,
            interface_in,
            interface_out,
            netns_by: netns_by(raw),
            ..network(&raw.key, transport)
        },
        packet: Packet {
            length: Some(raw.length),
            mark: Some(raw.mark),
            ttl: parsed.ttl,
            ip_id: parsed.ip_id,
            tcp_flags: parsed.tcp_flags.map(packet::tcp_flag_names),
            icmp_type: icmp.map(|icmp| icmp.0),
            icmp_code: icmp.map(|icmp| icmp.1),
            icmp_id: parsed.icmp_id,
            icmp_sequence: parsed.icmp_sequence,
            segments: Some(raw.gso_segments),
            fragment: parsed.fragment.or((raw.key.flags & flow_flag::FRAGMENT != 0).then_some(true)),
        },
        conntrack,
        inner: parsed.inner.as_ref().map(inner),
        drop,
        stack,
        source,
        destination,
    }
}

/// Explains a counting slot of which no full event came through: `count` drops between `from` and `to`. What the
/// key does not hold is unknown; a coarse key holds no flow.
#[must_use]
pub fn explain_counts(
    key: &FlowKey,
    count: u64,
    segments: u64,
    names: &dyn Names,
    from: Timestamp,
    to: Timestamp,
    node: &str,
) -> Drop {
    let (source, destination) = ends(key, None);
    let transport = transport(key, None);
    let facts = Facts {
        ethertype: key.ethertype,
        destination: destination.address,
        transport,
        icmp_type: icmp(key, &Parsed::default()).map(|icmp| icmp.0),
        ..Facts::default()
    };
    Drop {
        time: from,
        time_last: to,
        node: node.to_owned(),
        count,
        segments,
        detail: false,
        network: network(key, transport),
        drop: reason(key, names, facts),
        source,
        destination,
        ..Drop::default()
    }
}

/// An interface's name as text. Names are any bytes but `/` and white space (dev_valid_name(),
/// net/core/dev.c): control characters, invisible ones that reorder text, and what is no UTF-8 become `\xNN`,
/// and so does the backslash. `None` if there is no name.
#[must_use]
pub fn interface_name(name: &[u8; 16]) -> Option<String> {
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let mut text = String::new();
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    };
    for chunk in name[..length].utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || is_invisible(character) || character == '\\' {
                escape(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    (!text.is_empty()).then_some(text)
}

/// Zero-width and direction-changing characters, line and paragraph separators (Unicode, general punctuation).
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Addresses and ports. What the kernel half put into the key counts first: filters and counts went by it.
fn ends(key: &FlowKey, parsed: Option<&Parsed>) -> (Endpoint, Endpoint) {
    let keyed = |bytes| has(key, flow_flag::ADDRESSES).then(|| address(key.ethertype, bytes));
    let ports = has(key, flow_flag::PORTS) && has_ports(key.transport);
    let end = |bytes, port: u16, told: Option<(Option<IpAddr>, Option<u16>)>| {
        let (told_address, told_port) = told.unwrap_or_default();
        Endpoint {
            address: keyed(bytes).or(told_address),
            port: ports.then_some(port).or(told_port),
            k8s: None,
        }
    };
    (
        end(key.source, key.source_port, parsed.map(|parsed| (parsed.source, parsed.source_port))),
        end(
            key.destination,
            key.destination_port,
            parsed.map(|parsed| (parsed.destination, parsed.destination_port)),
        ),
    )
}

/// True if the key is that of a flow and has this [`flow_flag`].
fn has(key: &FlowKey, flag: u8) -> bool {
    key.flags & flow_flag::COARSE == 0 && key.flags & flag != 0
}

/// An address of the key: IPv4 is mapped into IPv6 there (RFC 4291, 2.5.5.2).
fn address(ethertype: u16, bytes: [u8; 16]) -> IpAddr {
    let address = Ipv6Addr::from(bytes);
    match address.to_ipv4_mapped() {
        Some(mapped) if ethertype != ethertype::IPV6 => IpAddr::V4(mapped),
        _ => IpAddr::V6(address),
    }
}

/// The transport protocol. 0 in the key is no protocol: hop-by-hop options are not one.
fn transport(key: &FlowKey, parsed: Option<&Parsed>) -> Option<u8> {
    let keyed = has(key, flow_flag::ADDRESSES) && key.transport != 0;
    keyed.then_some(key.transport).or(parsed.and_then(|parsed| parsed.transport))
}

/// ICMP type and code: the key's destination port, or from the headers.
fn icmp(key: &FlowKey, parsed: &Parsed) -> Option<(u8, u8)> {
    let keyed = has(key, flow_flag::PORTS) && is_icmp(key.transport);
    let [kind, code] = key.destination_port.to_be_bytes();
    keyed.then_some((kind, code)).or(parsed.icmp_type.zip(parsed.icmp_code))
}

/// The part of the network that the key knows.
fn network(key: &FlowKey, transport: Option<u8>) -> Network {
    Network {
        family: packet::family_name(key.ethertype).map(Cow::into_owned),
        transport: transport.map(|transport| packet::transport_name(transport).into_owned()),
        netns: (key.netns != 0).then_some(key.netns),
        ..Network::default()
    }
}

fn netns_by(raw: &Raw) -> Option<String> {
    let name = match raw.netns_source {
        NetnsSource::None => return None,
        NetnsSource::ReceivingSocket => "receiving-socket",
        NetnsSource::HookState => "hook-state",
        NetnsSource::Socket => "socket",
        NetnsSource::Route => "route",
        NetnsSource::Device => "device",
    };
    (raw.key.netns != 0).then(|| name.to_owned())
}

/// The packet's interface, and those that it came in and was to leave by.
fn interfaces(raw: &Raw) -> (Option<String>, Option<String>, Option<String>) {
    let name = |device: Option<Device>| device.and_then(|device| interface_name(&device.name));
    let interface = name(raw.device);
    match raw.hook {
        Some(hook) => (interface, name(hook.input), name(hook.output)),
        None => {
            let came_in = |device: &Device| device.ifindex != 0 && device.ifindex == raw.ingress_ifindex;
            (interface, name(raw.device.filter(came_in)), None)
        }
    }
}

/// The stack from the frame that freed the packet on, and whether that frame was found: the frames before it are
/// the tracer's and the freeing function's own. If it was not found, everything is kept.
fn stack(raw: &Raw, names: &dyn Names) -> (Vec<String>, bool) {
    let start = raw.stack.iter().position(|address| *address == raw.key.location);
    let frames = &raw.stack[start.unwrap_or(0)..];
    (frames.iter().map(|address| symbol(names, *address)).collect(), start.is_some())
}

/// The symbol at an address, or the address itself.
fn symbol(names: &dyn Names, address: u64) -> String {
    names.symbol(address).unwrap_or_else(|| format!("0x{address:x}"))
}

/// Why and where, with its class; `facts` holds the rest of what is known.
fn reason(key: &FlowKey, names: &dyn Names, facts: Facts<'_>) -> Reason {
    let (subsystem, name) = match names.reason(key.reason) {
        _ if !names.has_reasons() => (None, None),
        Some((subsystem, name)) => (Some(subsystem), Some(name)),
        // Newer than what could be read of it: better a number than nothing.
        None => (None, Some(format!("0x{:x}", key.reason))),
    };
    let location = (key.location != 0).then(|| symbol(names, key.location));
    let facts = Facts {
        reason: name.as_deref(),
        subsystem: subsystem.as_deref(),
        symbol: location.as_deref(),
        ..facts
    };
    let Classified { class, routine_id } = class::classify(&facts);
    Reason {
        cause: routine_id.filter(|_| class == Class::Routine).map(routine_cause),
        reason: name,
        subsystem,
        location,
        class,
        ..Reason::default()
    }
}

/// The cause of a free that is no drop, by name: the knowledge base has the words.
fn routine_cause(id: &str) -> Cause {
    Cause {
        id: id.to_owned(),
        severity: "info".to_owned(),
        confidence: "exact".to_owned(),
        ..Cause::default()
    }
}

/// The packet's connection, and its original direction where NAT changed the packet.
fn connection(
    raw: &Raw,
    names: &dyn Names,
    transport: Option<u8>,
    source: &Endpoint,
    destination: &Endpoint,
) -> (Option<Conntrack>, Option<Original>) {
    let Some(entry) = raw.conntrack.filter(|entry| !conntrack::is_template(entry.status)) else {
        return (None, None);
    };
    let offsets = names.conntrack_offsets();
    let state = conntrack::state(entry.info);
    // Untracked packets have no entry behind them.
    let known = |raw| state.direction.and_then(|_| conntrack::tuple(raw, &offsets));
    let tuple = known(&entry.original);
    let tcp = tuple.as_ref().is_some_and(conntrack::is_tcp);
    let told = Conntrack {
        state: state.name.to_owned(),
        direction: state.direction.map(|direction| direction.name().to_owned()),
        status: conntrack::status_names(entry.status),
        zone: (entry.zone != u16::MAX).then_some(entry.zone),
        mark: state.direction.filter(|_| offsets.mark != ABSENT).map(|_| entry.mark),
        tcp_state: conntrack::tcp_state_name(entry.tcp_state).filter(|_| tcp).map(str::to_owned),
        original: tuple.map(|tuple| tuple.ends()).unwrap_or_default(),
        reply: known(&entry.reply).map(|tuple| tuple.ends()).unwrap_or_default(),
    };
    let original = tuple.and_then(|tuple| conntrack::original(&tuple, state, transport, source, destination));
    (Some(told), original)
}

/// The event model's form of a packet inside a packet.
fn inner(inner: &packet::InnerPacket) -> Inner {
    let end = |address, port| Endpoint { address, port, k8s: None };
    Inner {
        kind: inner.kind.to_owned(),
        vni: inner.vni,
        source: end(inner.source, inner.source_port),
        destination: end(inner.destination, inner.destination_port),
        transport: inner.transport.map(|transport| packet::transport_name(transport).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::conntrack::tests::{OFFSETS, raw4};
    use super::super::decode::{HookState, decode, tests::Wire};
    use super::super::packet::tests::{A, B, ipv4_packet, ipv6_packet, random, tcp, udp, v6};
    use super::super::packet::{protocol, tcp_flag};
    use super::*;
    use std::net::Ipv4Addr;
    use tracer_common::TUPLE_BYTES;

    struct Kernel {
        reasons: bool,
    }

    impl Names for Kernel {
        fn reason(&self, reason: u32) -> Option<(String, String)> {
            let (subsystem, name) = match reason {
                2 => ("core", "NOT_SPECIFIED"),
                8 => ("core", "NETFILTER_DROP"),
                90 => ("core", "IPV6DISABLED"),
                0x30001 => ("openvswitch", "LAST_ACTION"),
                _ => return None,
            };
            Some((subsystem.into(), name.into()))
        }

        fn symbol(&self, address: u64) -> Option<String> {
            let name = match address {
                100 => "nf_hook_slow+0x7d",
                101 => "ip_forward+0x4e3",
                102 => "skb_release_data+0x15e",
                103 => "kfree_skb_list+0x28",
                200 => "bpf_prog_1234_drop",
                201 => "sk_skb_reason_drop+0x90",
                _ => return None,
            };
            Some(name.into())
        }

        fn has_reasons(&self) -> bool {
            self.reasons
        }

        fn conntrack_offsets(&self) -> ConntrackOffsets {
            ConntrackOffsets { mark: 1, ..OFFSETS }
        }
    }

    fn mapped(address: [u8; 4]) -> [u8; 16] {
        Ipv4Addr::from(address).to_ipv6_mapped().octets()
    }

    fn key() -> FlowKey {
        FlowKey {
            location: 100,
            source: mapped(A),
            destination: mapped(B),
            reason: 8,
            netns: 4026532281,
            source_port: 41822,
            destination_port: 6379,
            ethertype: ethertype::IPV4,
            transport: protocol::TCP,
            flags: flow_flag::ADDRESSES | flow_flag::PORTS,
            ..FlowKey::default()
        }
    }

    /// A dropped SYN that agrees with [`key`].
    fn raw() -> Raw {
        Raw {
            time: 5,
            key: key(),
            length: 60,
            gso_segments: 3,
            stack: vec![200, 201, 100, 101],
            headers: ipv4_packet(protocol::TCP, &tcp(41822, 6379, tcp_flag::SYN)),
            netns_source: NetnsSource::HookState,
            ..decode(&Wire::new().0).unwrap()
        }
    }

    fn device(name: &str, ifindex: u32) -> Device {
        let mut device = Device { ifindex, ..Device::default() };
        device.name[..name.len()].copy_from_slice(name.as_bytes());
        device
    }

    fn explained(raw: &Raw) -> Drop {
        explain(raw, &Kernel { reasons: true }, &|time| Timestamp(i128::from(time) + 1000), "n1")
    }

    #[test]
    fn a_packet_that_a_rule_dropped() {
        let drop = explained(&raw());
        assert_eq!((drop.time, drop.time_last, drop.node.as_str()), (Timestamp(1005), Timestamp(1005), "n1"));
        assert_eq!((drop.count, drop.segments, drop.detail), (1, 3, true));
        assert_eq!(drop.source, Endpoint { address: Some(A.into()), port: Some(41822), k8s: None });
        assert_eq!(drop.destination, Endpoint { address: Some(B.into()), port: Some(6379), k8s: None });
        let network = &drop.network;
        assert_eq!((network.family.as_deref(), network.transport.as_deref()), (Some("ipv4"), Some("tcp")));
        assert_eq!((network.netns, network.netns_by.as_deref()), (Some(4026532281), Some("hook-state")));
        assert_eq!(
            (drop.packet.length, drop.packet.ttl, drop.packet.segments),
            (Some(60), Some(63), Some(3))
        );
        assert_eq!(drop.packet.tcp_flags.as_deref(), Some("SYN"));
        assert_eq!(drop.drop.reason.as_deref(), Some("NETFILTER_DROP"));
        assert_eq!(drop.drop.subsystem.as_deref(), Some("core"));
        assert_eq!(drop.drop.location.as_deref(), Some("nf_hook_slow+0x7d"));
        assert_eq!((drop.drop.class, &drop.drop.cause), (Class::Policy, &None));
        assert_eq!((&drop.conntrack, &drop.original, &drop.inner), (&None, &None, &None));
    }

    #[test]
    fn the_stack_begins_where_the_packet_died() {
        assert_eq!(explained(&raw()).stack, ["nf_hook_slow+0x7d", "ip_forward+0x4e3"]);
        let unknown = explained(&Raw { stack: vec![200, 101, 0xffff], ..raw() });
        assert_eq!(unknown.stack, ["bpf_prog_1234_drop", "ip_forward+0x4e3", "0xffff"]);
        assert!(explained(&Raw { stack: vec![], ..raw() }).stack.is_empty());
    }

    #[test]
    fn kernels_without_reasons_go_by_the_location() {
        let explained = |location| {
            let key = FlowKey { location, reason: 0, ..key() };
            let stack = vec![200, 103, 102, 101];
            explain(&Raw { key, stack, ..raw() }, &Kernel { reasons: false }, &|_| Timestamp(0), "n1").drop
        };
        let rule = explained(100);
        assert_eq!((&rule.reason, &rule.subsystem, rule.class), (&None, &None, Class::Policy));
        let fragment = explained(103);
        assert_eq!(fragment.class, Class::Routine);
        let cause = fragment.cause.unwrap();
        assert_eq!((cause.id.as_str(), cause.severity.as_str()), ("consumed-fragments", "info"));
        assert_eq!((cause.why.as_str(), cause.confidence.as_str()), ("", "exact"));
    }

    #[test]
    fn reasons_of_subsystems_and_unknown_ones() {
        let told = |reason| explained(&Raw { key: FlowKey { reason, ..key() }, ..raw() }).drop;
        let vswitch = told(0x30001);
        assert_eq!(vswitch.subsystem.as_deref(), Some("openvswitch"));
        assert_eq!(vswitch.class, Class::Policy);
        let unknown = told(0x70005);
        assert_eq!((unknown.reason.as_deref(), unknown.class), (Some("0x70005"), Class::Error));
    }

    #[test]
    fn interfaces_come_from_the_hook_if_there_is_one() {
        let names = |raw: &Raw| {
            let network = explained(raw).network;
            (network.interface, network.interface_in, network.interface_out)
        };
        let text = |name: &str| Some(name.to_owned());
        assert_eq!(names(&raw()), (None, None, None));
        let received = Raw { device: Some(device("veth1", 7)), ingress_ifindex: 7, ..raw() };
        assert_eq!(names(&received), (text("veth1"), text("veth1"), None));
        let leaving = Raw { ingress_ifindex: 9, ..received.clone() };
        assert_eq!(names(&leaving), (text("veth1"), None, None));
        let hook = HookState { hook: 2, family: 2, input: None, output: Some(device("eth0", 2)) };
        assert_eq!(names(&Raw { hook: Some(hook), ..received }), (text("veth1"), None, text("eth0")));
    }

    #[test]
    fn interface_names_are_made_harmless() {
        let name = |bytes: &[u8]| {
            let mut name = [0; 16];
            name[..bytes.len()].copy_from_slice(bytes);
            interface_name(&name)
        };
        assert_eq!(name(b""), None);
        assert_eq!(name(b"cali9f3@if2").as_deref(), Some("cali9f3@if2"));
        assert_eq!(name("größe".as_bytes()).as_deref(), Some("größe"));
        assert_eq!(name(b"a\x1b[31mb").as_deref(), Some(r"a\x1b[31mb"));
        assert_eq!(name(b"a\xff\xc3b").as_deref(), Some(r"a\xff\xc3b"));
        assert_eq!(name(b"a\\x1b").as_deref(), Some(r"a\x5cx1b"));
        assert_eq!(name("a\u{202e}b\u{85}".as_bytes()).as_deref(), Some(r"a\xe2\x80\xaeb\xc2\x85"));
        assert_eq!(name(b"0123456789abcdef").as_deref(), Some("0123456789abcdef"));
        assert_eq!(name(b"lo\0garbage").as_deref(), Some("lo"));
    }

    #[test]
    fn no_netns_is_null() {
        let network = explained(&Raw { key: FlowKey { netns: 0, ..key() }, ..raw() }).network;
        assert_eq!((network.netns, network.netns_by), (None, None));
    }

    #[test]
    fn packets_without_addresses_in_the_key_are_read_from_the_headers() {
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([[2; 4], [2; 4], A, [0; 4], [0; 4], B].concat());
        request.truncate(8 + 6);
        request.extend(A);
        request.extend([0; 6]);
        request.extend(B);
        let key = FlowKey { ethertype: ethertype::ARP, transport: 0, flags: 0, ..key() };
        let drop = explained(&Raw { key, headers: request, ..raw() });
        assert_eq!((drop.source.address, drop.source.port), (Some(A.into()), None));
        assert_eq!(drop.destination.address, Some(B.into()));
        assert_eq!((drop.network.family.as_deref(), drop.network.transport), (Some("arp"), None));
        assert_eq!((drop.packet.ttl, drop.packet.fragment), (None, None));

        let key = FlowKey { ethertype: 0x88cc, ..key };
        let lldp = explained(&Raw { key, headers: vec![2; 64], ..raw() });
        assert_eq!((lldp.network.family.as_deref(), lldp.source.address), (Some("0x88cc"), None));
    }

    #[test]
    fn icmp_has_type_and_code_instead_of_ports() {
        let key = FlowKey {
            source: v6(1),
            destination: v6(2),
            source_port: 77,
            destination_port: 0x8000,
            ethertype: ethertype::IPV6,
            transport: protocol::ICMPV6,
            ..key()
        };
        let headers = ipv6_packet(protocol::ICMPV6, &[128, 0, 0, 0, 0, 77, 0, 9]);
        let drop = explained(&Raw { key, headers, ..raw() });
        assert_eq!((drop.source.port, drop.destination.port), (None, None));
        assert_eq!((drop.packet.icmp_type, drop.packet.icmp_code), (Some(128), Some(0)));
        assert_eq!((drop.packet.icmp_id, drop.packet.icmp_sequence), (Some(77), Some(9)));
        assert_eq!(drop.network.transport.as_deref(), Some("icmpv6"));
        assert_eq!(drop.source.address, Some(Ipv6Addr::from(v6(1)).into()));
    }

    #[test]
    fn key_and_headers_agree() {
        for transport in [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::DCCP, protocol::UDPLITE] {
            let headers = ipv4_packet(transport, &tcp(41822, 6379, 0));
            let key = FlowKey { transport, ..key() };
            let parsed = packet::parse(key.ethertype, &headers);
            assert_eq!(ends(&key, None), ends(&FlowKey { flags: 0, ..key }, Some(&parsed)));
            assert_eq!(super::transport(&key, None), parsed.transport);
        }
    }

    #[test]
    fn a_tunnels_inner_packet() {
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 1, 0];
        vxlan.extend([2; 12]);
        vxlan.extend([8, 0]);
        vxlan.extend(ipv4_packet(protocol::TCP, &tcp(7, 80, 0)));
        let headers = ipv4_packet(protocol::UDP, &udp(50000, 8472, &vxlan));
        let inner = explained(&Raw { headers, ..raw() }).inner.unwrap();
        assert_eq!(
            (inner.kind.as_str(), inner.vni, inner.transport.as_deref()),
            ("vxlan", Some(1), Some("tcp"))
        );
        assert_eq!(inner.source, Endpoint { address: Some(A.into()), port: Some(7), k8s: None });
    }

    fn entry(info: u8, original: [u8; TUPLE_BYTES]) -> tracer_common::Conntrack {
        tracer_common::Conntrack {
            original,
            reply: raw4(6, B, (6379, 41822), A),
            status: 0x28,
            mark: 9,
            zone: 0,
            info,
            tcp_state: 3,
            padding: 0,
        }
    }

    #[test]
    fn a_connection_that_was_translated() {
        const VIP: [u8; 4] = [10, 96, 3, 4];
        let conntrack = Some(entry(0, raw4(6, A, (41822, 80), VIP)));
        let drop = explained(&Raw { conntrack, ..raw() });
        let told = drop.conntrack.unwrap();
        assert_eq!((told.state.as_str(), told.direction.as_deref()), ("established", Some("original")));
        assert_eq!((told.status.as_str(), told.zone, told.mark), ("confirmed,dst_nat", Some(0), Some(9)));
        assert_eq!(told.tcp_state.as_deref(), Some("ESTABLISHED"));
        assert_eq!(told.reply.source.port, Some(6379));
        let original = drop.original.unwrap();
        assert_eq!(original, told.original);
        assert_eq!(original.destination, Endpoint { address: Some(VIP.into()), port: Some(80), k8s: None });

        let plain = explained(&Raw { conntrack: Some(entry(0, raw4(6, A, (41822, 6379), B))), ..raw() });
        assert_eq!(plain.original, None);
    }

    #[test]
    fn untracked_packets_and_templates_have_no_connection() {
        let none = tracer_common::Conntrack { info: 7, ..tracer_common::Conntrack::NONE };
        let told = explained(&Raw { conntrack: Some(none), ..raw() }).conntrack.unwrap();
        assert_eq!(told, Conntrack { state: "untracked".into(), ..Conntrack::default() });
        let template = tracer_common::Conntrack { status: 0x808, ..entry(2, [0; TUPLE_BYTES]) };
        assert_eq!(explained(&Raw { conntrack: Some(template), ..raw() }).conntrack, None);
    }

    #[test]
    fn counts_know_what_the_key_knows() {
        let counts = |key: &FlowKey| {
            explain_counts(key, 7, 9, &Kernel { reasons: true }, Timestamp(1), Timestamp(2), "n1")
        };
        let drop = counts(&key());
        assert_eq!((drop.time, drop.time_last), (Timestamp(1), Timestamp(2)));
        assert_eq!((drop.count, drop.segments, drop.detail), (7, 9, false));
        assert_eq!((drop.source.address, drop.destination.port), (Some(A.into()), Some(6379)));
        assert_eq!(drop.packet, Packet::default());
        assert_eq!(drop.network.transport.as_deref(), Some("tcp"));
        assert_eq!(drop.drop.class, Class::Policy);

        let coarse = FlowKey { location: 100, reason: 8, netns: 3, ..FlowKey::default() };
        let drop = counts(&FlowKey { flags: flow_flag::COARSE, ..coarse });
        assert_eq!((&drop.source, &drop.destination), (&Endpoint::default(), &Endpoint::default()));
        assert_eq!(drop.network, Network { netns: Some(3), ..Network::default() });
        assert_eq!(drop.drop.reason.as_deref(), Some("NETFILTER_DROP"));

        let routine = counts(&FlowKey { reason: 90, ..key() });
        assert_eq!(routine.drop.cause.unwrap().id, "ipv6-off");
    }

    #[test]
    fn hostile_events_do_not_panic() {
        let mut state = 0x2545_f491_4f6c_dd1d;
        let mut bytes = Wire::new().0;
        for _ in 0..2_000 {
            bytes.iter_mut().for_each(|byte| *byte = random(&mut state) as u8);
            explained(&decode(&bytes).unwrap());
        }
    }
}
