//! Packet headers to facts. The bytes are whatever somebody sent: nothing is read past their end, every loop is
//! bounded, and what cannot be read stays unknown.

use network_types::arp::ArpHdr;
use network_types::geneve::GeneveHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;
use network_types::vxlan::VxlanHdr;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wincode::SchemaRead;
use wincode::config::DefaultConfig;

/// Ethertypes, host byte order (`ETH_P_*`, include/uapi/linux/if_ether.h).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// An Ethernet frame inside a tunnel (transparent Ethernet bridging).
    pub const TEB: u16 = 0x6558;
    /// An 802.1Q tag follows.
    pub const VLAN: u16 = 0x8100;
    /// An 802.1ad tag follows.
    pub const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers (IANA protocol numbers; `IPPROTO_*`).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// Bits of a TCP header's flags byte (RFC 9293, 3.1).
pub mod tcp_flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
    /// Urgent.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

/// IPv6 extension headers looked at before the transport protocol counts as unknown.
pub const EXTENSION_HEADERS: usize = 8;
/// VLAN tags looked at.
const VLAN_TAGS: usize = 2;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// UDP destination ports of VXLAN: IANA's, and Linux' (flannel's, Cilium's) older one.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// UDP destination port of Geneve (RFC 8926).
const GENEVE_PORT: u16 = 6081;

/// What a packet's headers tell. `None`: not there, or out of reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Source address; ARP: the sender's.
    pub source: Option<IpAddr>,
    /// Destination address; ARP: the target's.
    pub destination: Option<IpAddr>,
    /// IP protocol number after extension headers.
    pub transport: Option<u8>,
    /// Source port, host byte order.
    pub source_port: Option<u16>,
    /// Destination port, host byte order.
    pub destination_port: Option<u16>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// IPv4 identification, or that of the IPv6 fragment header.
    pub ip_id: Option<u32>,
    /// True for a fragment other than the first, false for other IP packets.
    pub fragment: Option<bool>,
    /// [`tcp_flag`] bits.
    pub tcp_flags: Option<u8>,
    /// ICMP or ICMPv6 type.
    pub icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code.
    pub icmp_code: Option<u8>,
    /// Identifier of an echo request or reply.
    pub icmp_id: Option<u16>,
    /// Sequence number of an echo request or reply.
    pub icmp_sequence: Option<u16>,
    /// Bytes from the transport header on, as far as they are here.
    pub transport_bytes: usize,
    /// ARP operation: 1 request, 2 reply (RFC 826).
    pub arp_operation: Option<u16>,
    /// The packet inside, of a tunnel or of an ICMP error.
    pub inner: Option<InnerPacket>,
}

/// A packet inside another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InnerPacket {
    /// `vxlan`, `geneve`, `ipip`, `sit`, `ip6tnl`, `gre` or `icmp-error`.
    pub kind: &'static str,
    /// VXLAN or Geneve network identifier.
    pub vni: Option<u32>,
    /// Source address.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// Source port, host byte order.
    pub source_port: Option<u16>,
    /// Destination port, host byte order.
    pub destination_port: Option<u16>,
    /// IP protocol number.
    pub transport: Option<u8>,
}

/// One IP header with what follows it.
struct Layer<'a> {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    ip_id: Option<u32>,
    fragment: bool,
    /// Unknown where the chain of extension headers is cut off or too long.
    transport: Option<u8>,
    /// From the transport header on; empty for a fragment other than the first.
    payload: &'a [u8],
}

/// Parses a packet from its network header on. `ethertype` is skb->protocol in host byte order.
#[must_use]
pub fn parse(ethertype: u16, headers: &[u8]) -> Parsed {
    let (ethertype, bytes) = untag(ethertype, headers);
    if ethertype == ethertype::ARP {
        return arp(bytes);
    }
    let Some(layer) = internet(ethertype, bytes) else {
        return Parsed::default();
    };
    let ports = layer.ports();
    let icmp = layer.icmp();
    let echo = layer.echo();
    Parsed {
        source: Some(layer.source),
        destination: Some(layer.destination),
        transport: layer.transport,
        source_port: ports.map(|ports| ports.0),
        destination_port: ports.map(|ports| ports.1),
        ttl: Some(layer.ttl),
        ip_id: layer.ip_id,
        fragment: Some(layer.fragment),
        tcp_flags: layer.tcp_flags(),
        icmp_type: icmp.map(|icmp| icmp.0),
        icmp_code: icmp.map(|icmp| icmp.1),
        icmp_id: echo.map(|echo| echo.0),
        icmp_sequence: echo.map(|echo| echo.1),
        transport_bytes: layer.payload.len(),
        arp_operation: None,
        inner: layer.inner(),
    }
}

/// The name of an IP protocol, or its number.
#[must_use]
pub fn transport_name(number: u8) -> Cow<'static, str> {
    let name = match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipip",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "icmpv6",
        89 => "ospf",
        103 => "pim",
        108 => "ipcomp",
        112 => "vrrp",
        132 => "sctp",
        136 => "udplite",
        _ => return Cow::Owned(number.to_string()),
    };
    Cow::Borrowed(name)
}

/// The name of an ethertype, or `0x` and its number; `None` for 0, which the kernel uses for "not known".
#[must_use]
pub fn family_name(ethertype: u16) -> Option<Cow<'static, str>> {
    match ethertype {
        0 => None,
        ethertype::IPV4 => Some("ipv4".into()),
        ethertype::IPV6 => Some("ipv6".into()),
        ethertype::ARP => Some("arp".into()),
        other => Some(format!("0x{other:04x}").into()),
    }
}

/// The set flags, SYN first: `SYN,ACK`, `FIN,ACK`, `PSH,ACK`. Empty if none is set.
#[must_use]
pub fn tcp_flag_names(flags: u8) -> String {
    const NAMES: [(u8, &str); 8] = [
        (tcp_flag::SYN, "SYN"),
        (tcp_flag::FIN, "FIN"),
        (tcp_flag::RST, "RST"),
        (tcp_flag::PSH, "PSH"),
        (tcp_flag::ACK, "ACK"),
        (tcp_flag::URG, "URG"),
        (tcp_flag::ECE, "ECE"),
        (tcp_flag::CWR, "CWR"),
    ];
    let set: Vec<&str> = NAMES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    set.join(",")
}

/// True for the protocols whose header begins with a source and a destination port.
#[must_use]
pub fn has_ports(transport: u8) -> bool {
    matches!(transport, protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDPLITE)
}

/// True for ICMP and ICMPv6.
#[must_use]
pub fn is_icmp(transport: u8) -> bool {
    matches!(transport, protocol::ICMP | protocol::ICMPV6)
}

/// Reads a header from the front of `bytes`, wherever they are aligned; `None` if they are too few.
fn header<'a, T>(bytes: &'a [u8]) -> Option<T>
where
    T: SchemaRead<'a, DefaultConfig, Dst = T>,
{
    wincode::deserialize(bytes).ok()
}

/// Two bytes in network byte order.
fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Skips VLAN tags (IEEE 802.1Q: tag control information, then the next ethertype).
fn untag(mut ethertype: u16, mut bytes: &[u8]) -> (u16, &[u8]) {
    for _ in 0..VLAN_TAGS {
        if !matches!(ethertype, ethertype::VLAN | ethertype::QINQ) {
            break;
        }
        let (Some(next), Some(rest)) = (word(bytes, 2), bytes.get(4..)) else {
            return (0, &[]);
        };
        (ethertype, bytes) = (next, rest);
    }
    (ethertype, bytes)
}

/// ARP for IPv4 over Ethernet (RFC 826); other kinds tell their operation only.
fn arp(bytes: &[u8]) -> Parsed {
    let operation = word(bytes, 6);
    let ends = header::<ArpHdr>(bytes).filter(|arp| arp.hlen() == 6 && arp.plen() == 4);
    let ends = ends.filter(|arp| arp.ptype() == ethertype::IPV4);
    Parsed {
        source: ends.map(|arp| Ipv4Addr::from(arp.spa()).into()),
        destination: ends.map(|arp| Ipv4Addr::from(arp.tpa()).into()),
        arp_operation: operation,
        ..Parsed::default()
    }
}

/// The IP header of a packet with that ethertype, tags skipped.
fn internet(ethertype: u16, bytes: &[u8]) -> Option<Layer<'_>> {
    match ethertype {
        ethertype::IPV4 => ipv4(bytes),
        ethertype::IPV6 => ipv6(bytes),
        _ => None,
    }
}

/// RFC 791.
fn ipv4(bytes: &[u8]) -> Option<Layer<'_>> {
    let ip: Ipv4Hdr = header(bytes)?;
    if ip.version() != 4 {
        return None;
    }
    let length = usize::from(ip.ihl());
    let fragment = ip.frag_offset() != 0;
    let sane = length >= Ipv4Hdr::LEN;
    // A GSO packet's total length may be 0 (BIG TCP): then everything belongs to it.
    let end = match usize::from(ip.tot_len()) {
        total if total >= length => total.min(bytes.len()),
        _ => bytes.len(),
    };
    let payload = if sane && !fragment { bytes.get(length..end).unwrap_or_default() } else { &[] };
    Some(Layer {
        source: ip.src_addr().into(),
        destination: ip.dst_addr().into(),
        ttl: ip.ttl,
        ip_id: Some(u32::from(ip.id())),
        fragment,
        transport: sane.then_some(ip.proto),
        payload,
    })
}

/// RFC 8200, with the extension headers that ipv6_ext_hdr() (net/ipv6/exthdrs_core.c) knows.
fn ipv6(bytes: &[u8]) -> Option<Layer<'_>> {
    let ip: Ipv6Hdr = header(bytes)?;
    if ip.version() != 6 {
        return None;
    }
    let mut layer = Layer {
        source: Ipv6Addr::from(ip.src_addr).into(),
        destination: Ipv6Addr::from(ip.dst_addr).into(),
        ttl: ip.hop_limit,
        ip_id: None,
        fragment: false,
        transport: None,
        payload: bytes.get(Ipv6Hdr::LEN..).unwrap_or_default(),
    };
    let mut next = ip.next_hdr;
    for _ in 0..=EXTENSION_HEADERS {
        let rest = layer.payload;
        // Length in bytes of the extension header `next`, if it is one.
        let length = match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                rest.get(1).map(|units| (usize::from(*units) + 1) * 8)
            }
            protocol::AH => rest.get(1).map(|units| (usize::from(*units) + 2) * 4),
            protocol::FRAGMENT => Some(8),
            _ => {
                layer.transport = Some(next);
                return Some(layer);
            }
        };
        let Some((extension, rest)) = length.and_then(|length| rest.split_at_checked(length)) else {
            break;
        };
        if next == protocol::FRAGMENT {
            layer.ip_id = extension.last_chunk().map(|id| u32::from_be_bytes(*id));
            layer.fragment = word(extension, 2).is_some_and(|offset| offset & 0xfff8 != 0);
        }
        next = extension[0];
        layer.payload = rest;
        if layer.fragment {
            layer.transport = Some(next);
            layer.payload = &[];
            return Some(layer);
        }
    }
    layer.payload = &[];
    Some(layer)
}

impl<'a> Layer<'a> {
    fn ports(&self) -> Option<(u16, u16)> {
        self.transport.filter(|transport| has_ports(*transport))?;
        Some((word(self.payload, 0)?, word(self.payload, 2)?))
    }

    fn tcp_flags(&self) -> Option<u8> {
        self.transport.filter(|transport| *transport == protocol::TCP)?;
        let tcp: TcpHdr = header(self.payload)?;
        let bits = [
            (tcp.fin(), tcp_flag::FIN),
            (tcp.syn(), tcp_flag::SYN),
            (tcp.rst(), tcp_flag::RST),
            (tcp.psh(), tcp_flag::PSH),
            (tcp.ack(), tcp_flag::ACK),
            (tcp.urg(), tcp_flag::URG),
            (tcp.ece(), tcp_flag::ECE),
            (tcp.cwr(), tcp_flag::CWR),
        ];
        Some(bits.into_iter().filter(|(set, _)| *set != 0).fold(0, |flags, (_, bit)| flags | bit))
    }

    /// Type and code of ICMP (RFC 792) or ICMPv6 (RFC 4443).
    fn icmp(&self) -> Option<(u8, u8)> {
        self.transport.filter(|transport| is_icmp(*transport))?;
        Some((*self.payload.first()?, *self.payload.get(1)?))
    }

    /// Identifier and sequence number of an echo request or reply.
    fn echo(&self) -> Option<(u16, u16)> {
        let (kind, _) = self.icmp()?;
        let echo = match self.transport {
            Some(protocol::ICMP) => matches!(kind, 0 | 8),
            _ => matches!(kind, 128 | 129),
        };
        let icmp: Icmpv4Hdr = header(self.payload).filter(|_| echo)?;
        Some((word(&icmp.data, 0)?, word(&icmp.data, 2)?))
    }

    fn inner(&self) -> Option<InnerPacket> {
        match self.transport? {
            protocol::UDP => self.udp_tunnel(),
            protocol::IPIP => {
                let kind = if self.source.is_ipv4() { "ipip" } else { "ip6tnl" };
                inner(kind, None, ethertype::IPV4, self.payload)
            }
            protocol::IPV6 => {
                let kind = if self.source.is_ipv4() { "sit" } else { "ip6tnl" };
                inner(kind, None, ethertype::IPV6, self.payload)
            }
            protocol::GRE => gre(self.payload),
            protocol::ICMP | protocol::ICMPV6 => self.quoted(),
            _ => None,
        }
    }

    /// VXLAN (RFC 7348) and Geneve (RFC 8926), known by their destination ports.
    fn udp_tunnel(&self) -> Option<InnerPacket> {
        let port = header::<UdpHdr>(self.payload)?.dst_port();
        let bytes = self.payload.get(UdpHdr::LEN..)?;
        if VXLAN_PORTS.contains(&port) {
            let vxlan: VxlanHdr = header::<VxlanHdr>(bytes).filter(VxlanHdr::vni_present)?;
            ethernet("vxlan", Some(vxlan.vni()), bytes.get(VxlanHdr::LEN..)?)
        } else if port == GENEVE_PORT {
            let geneve = geneve(bytes).filter(|geneve| geneve.ver() == 0)?;
            let payload = bytes.get(GeneveHdr::LEN + usize::from(geneve.opt_len()) * 4..)?;
            match geneve.protocol_type() {
                ethertype::TEB => ethernet("geneve", Some(geneve.vni()), payload),
                ethertype => inner("geneve", Some(geneve.vni()), ethertype, payload),
            }
        } else {
            None
        }
    }

    /// The packet that an ICMP error is about: it follows the 8 bytes of the error's header.
    fn quoted(&self) -> Option<InnerPacket> {
        let (kind, _) = self.icmp()?;
        let (error, ethertype) = match self.transport {
            // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
            Some(protocol::ICMP) => (matches!(kind, 3 | 4 | 5 | 11 | 12), ethertype::IPV4),
            // Destination unreachable, packet too big, time exceeded, parameter problem.
            _ => (matches!(kind, 1..=4), ethertype::IPV6),
        };
        let quoted = self.payload.get(Icmpv4Hdr::LEN..).filter(|_| error)?;
        inner("icmp-error", None, ethertype, quoted)
    }
}

/// A Geneve header (network-types has no reader for this one).
fn geneve(bytes: &[u8]) -> Option<GeneveHdr> {
    let [ver_opt_len, o_c_rsvd, p0, p1, v0, v1, v2, reserved2] = *bytes.first_chunk()?;
    Some(GeneveHdr { ver_opt_len, o_c_rsvd, protocol_type: [p0, p1], vni: [v0, v1, v2], reserved2 })
}

/// GRE version 0 (RFC 2784, RFC 2890): checksum, key and sequence number are optional, 4 bytes each.
fn gre(bytes: &[u8]) -> Option<InnerPacket> {
    const CHECKSUM: u16 = 0x8000;
    const KEY: u16 = 0x2000;
    const SEQUENCE: u16 = 0x1000;
    const VERSION: u16 = 0x0007;
    let (flags, ethertype) = (word(bytes, 0)?, word(bytes, 2)?);
    if flags & VERSION != 0 {
        return None;
    }
    let optional = [CHECKSUM, KEY, SEQUENCE].into_iter().filter(|bit| flags & bit != 0).count();
    let payload = bytes.get(4 + 4 * optional..)?;
    match ethertype {
        ethertype::TEB => ethernet("gre", None, payload),
        ethertype => inner("gre", None, ethertype, payload),
    }
}

/// An Ethernet frame inside a tunnel.
fn ethernet(kind: &'static str, vni: Option<u32>, frame: &[u8]) -> Option<InnerPacket> {
    inner(kind, vni, word(frame, ETHERNET - 2)?, frame.get(ETHERNET..)?)
}

/// A packet inside a tunnel, from its network header on. `None` where it cannot be read.
fn inner(kind: &'static str, vni: Option<u32>, ethertype: u16, bytes: &[u8]) -> Option<InnerPacket> {
    let (ethertype, bytes) = untag(ethertype, bytes);
    if ethertype == ethertype::ARP {
        let Parsed { source, destination, .. } = arp(bytes);
        return Some(InnerPacket { kind, vni, source, destination, ..InnerPacket::default() });
    }
    let Some(layer) = internet(ethertype, bytes) else {
        // A known network carries something unknown: still worth telling.
        return vni.map(|vni| InnerPacket { kind, vni: Some(vni), ..InnerPacket::default() });
    };
    let ports = layer.ports();
    Some(InnerPacket {
        kind,
        vni,
        source: Some(layer.source),
        destination: Some(layer.destination),
        source_port: ports.map(|ports| ports.0),
        destination_port: ports.map(|ports| ports.1),
        transport: layer.transport,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::hint::black_box;

    pub(crate) const A: [u8; 4] = [10, 0, 1, 1];
    pub(crate) const B: [u8; 4] = [10, 0, 2, 2];

    /// 2001:db8::`last`
    pub(crate) fn v6(last: u8) -> [u8; 16] {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        address[15] = last;
        address
    }

    /// An IPv4 packet: TTL 63, identification 0x1234.
    pub(crate) fn ipv4_packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        ipv4_fragment(protocol, 0, &[], payload)
    }

    fn ipv4_fragment(protocol: u8, frags: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let words = 5 + options.len() / 4;
        let total = u16::try_from(words * 4 + payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x40 | u8::try_from(words).unwrap(), 0, total[0], total[1], 0x12, 0x34];
        packet.extend(frags.to_be_bytes());
        packet.extend([63, protocol, 0, 0]);
        packet.extend(A);
        packet.extend(B);
        packet.extend(options);
        packet.extend(payload);
        packet
    }

    /// An IPv6 packet: hop limit 64.
    pub(crate) fn ipv6_packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        packet.extend([next, 64]);
        packet.extend(v6(1));
        packet.extend(v6(2));
        packet.extend(payload);
        packet
    }

    pub(crate) fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
        let mut segment = source.to_be_bytes().to_vec();
        segment.extend(destination.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment
    }

    pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = source.to_be_bytes().to_vec();
        datagram.extend(destination.to_be_bytes());
        datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        datagram
    }

    fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn ends(parsed: &Parsed) -> (String, Option<u16>, String, Option<u16>) {
        (
            parsed.source.unwrap().to_string(),
            parsed.source_port,
            parsed.destination.unwrap().to_string(),
            parsed.destination_port,
        )
    }

    fn inner_of(ethertype: u16, packet: &[u8]) -> InnerPacket {
        parse(ethertype, packet).inner.unwrap()
    }

    #[test]
    fn ipv4_with_each_protocol_that_has_ports() {
        for transport in [protocol::UDP, protocol::DCCP, protocol::SCTP, protocol::UDPLITE, protocol::TCP] {
            let packet = ipv4_packet(transport, &tcp(41822, 6379, 0));
            let parsed = parse(ethertype::IPV4, &packet);
            assert_eq!(ends(&parsed), ("10.0.1.1".into(), Some(41822), "10.0.2.2".into(), Some(6379)));
            assert_eq!(parsed.transport, Some(transport));
            assert_eq!((parsed.ttl, parsed.ip_id, parsed.fragment), (Some(63), Some(0x1234), Some(false)));
            assert_eq!(parsed.inner, None);
        }
        let esp = parse(ethertype::IPV4, &ipv4_packet(50, &tcp(1, 2, 0)));
        assert_eq!((esp.transport, esp.source_port), (Some(50), None));
    }

    #[test]
    fn ipv4_options_are_skipped() {
        let packet = ipv4_fragment(protocol::TCP, 0, &[1; 12], &tcp(1, 2, tcp_flag::SYN));
        let parsed = parse(ethertype::IPV4, &packet);
        assert_eq!((parsed.source_port, parsed.tcp_flags), (Some(1), Some(tcp_flag::SYN)));
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let first = parse(ethertype::IPV4, &ipv4_fragment(17, 0x2000, &[], &udp(1, 2, b"x")));
        assert_eq!((first.fragment, first.source_port), (Some(false), Some(1)));
        let second = parse(ethertype::IPV4, &ipv4_fragment(17, 0x0010, &[], &udp(1, 2, b"x")));
        assert_eq!((second.fragment, second.source_port), (Some(true), None));
        assert_eq!(second.transport, Some(17));
    }

    #[test]
    fn bytes_after_the_packet_are_padding() {
        let mut packet = ipv4_packet(protocol::TCP, &[]);
        packet.extend(tcp(1, 2, 0));
        assert_eq!(parse(ethertype::IPV4, &packet).source_port, None);
        // A total length of 0 is a GSO packet's.
        packet[2..4].fill(0);
        assert_eq!(parse(ethertype::IPV4, &packet).source_port, Some(1));
    }

    #[test]
    fn tcp_flags_have_names() {
        let flags = |flags| {
            let parsed = parse(ethertype::IPV4, &ipv4_packet(6, &tcp(1, 2, flags)));
            tcp_flag_names(parsed.tcp_flags.unwrap())
        };
        assert_eq!(flags(0x02), "SYN");
        assert_eq!(flags(0x12), "SYN,ACK");
        assert_eq!(flags(0x11), "FIN,ACK");
        assert_eq!(flags(0x04), "RST");
        assert_eq!(flags(0x18), "PSH,ACK");
        assert_eq!(flags(0xff), "SYN,FIN,RST,PSH,ACK,URG,ECE,CWR");
        assert_eq!(flags(0), "");
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let mut chain = vec![protocol::ROUTING, 0, 0, 0, 0, 0, 0, 0];
        chain.extend([protocol::DESTINATION_OPTIONS, 1]);
        chain.extend([0; 14]);
        chain.extend([protocol::AH, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend([protocol::UDP, 4]);
        chain.extend([0; 22]);
        chain.extend(udp(53, 54, b""));
        let parsed = parse(ethertype::IPV6, &ipv6_packet(protocol::HOP_BY_HOP, &chain));
        assert_eq!(ends(&parsed), ("2001:db8::1".into(), Some(53), "2001:db8::2".into(), Some(54)));
        assert_eq!((parsed.transport, parsed.ttl, parsed.ip_id), (Some(17), Some(64), None));
        assert_eq!(parsed.fragment, Some(false));
    }

    #[test]
    fn ipv6_fragments() {
        let fragment = |offset: u16| {
            let mut payload = vec![protocol::TCP, 0];
            payload.extend((offset << 3 | 1).to_be_bytes());
            payload.extend(0xdead_beef_u32.to_be_bytes());
            payload.extend(tcp(1, 2, 0));
            parse(ethertype::IPV6, &ipv6_packet(protocol::FRAGMENT, &payload))
        };
        let (first, second) = (fragment(0), fragment(185));
        assert_eq!((first.fragment, first.source_port), (Some(false), Some(1)));
        assert_eq!((second.fragment, second.source_port), (Some(true), None));
        assert_eq!((second.transport, second.ip_id), (Some(6), Some(0xdead_beef)));
    }

    #[test]
    fn the_chain_of_extension_headers_is_bounded() {
        let chain = |count: usize| {
            let mut payload = Vec::new();
            for index in 0..count {
                let next = if index + 1 == count { protocol::TCP } else { protocol::DESTINATION_OPTIONS };
                payload.extend([next, 0, 0, 0, 0, 0, 0, 0]);
            }
            payload.extend(tcp(1, 2, 0));
            parse(ethertype::IPV6, &ipv6_packet(protocol::DESTINATION_OPTIONS, &payload))
        };
        assert_eq!(chain(EXTENSION_HEADERS).source_port, Some(1));
        let long = chain(EXTENSION_HEADERS + 1);
        assert_eq!((long.transport, long.source_port), (None, None));
        assert!(long.source.is_some());
    }

    #[test]
    fn icmp_echo_has_an_identifier() {
        let packet = ipv4_packet(protocol::ICMP, &[8, 0, 0, 0, 0x0f, 0xe0, 0, 24]);
        let parsed = parse(ethertype::IPV4, &packet);
        assert_eq!((parsed.icmp_type, parsed.icmp_code), (Some(8), Some(0)));
        assert_eq!((parsed.icmp_id, parsed.icmp_sequence), (Some(4064), Some(24)));
        assert_eq!(parsed.source_port, None);
        let reply = parse(ethertype::IPV6, &ipv6_packet(protocol::ICMPV6, &[129, 0, 0, 0, 0, 7, 0, 9]));
        assert_eq!((reply.icmp_type, reply.icmp_id, reply.icmp_sequence), (Some(129), Some(7), Some(9)));
        let solicitation =
            parse(ethertype::IPV6, &ipv6_packet(protocol::ICMPV6, &[135, 0, 0, 0, 0, 7, 0, 9]));
        assert_eq!((solicitation.icmp_type, solicitation.icmp_id), (Some(135), None));
    }

    #[test]
    fn icmp_errors_quote_a_packet() {
        let mut error = vec![3, 4, 0, 0, 0, 0, 5, 0];
        error.extend(&ipv4_packet(protocol::UDP, &udp(1111, 53, b""))[..28]);
        let inner = inner_of(ethertype::IPV4, &ipv4_packet(protocol::ICMP, &error));
        assert_eq!((inner.kind, inner.transport), ("icmp-error", Some(17)));
        assert_eq!((inner.source_port, inner.destination_port), (Some(1111), Some(53)));
        let mut error = vec![2, 0, 0, 0, 0, 0, 5, 0];
        error.extend(ipv6_packet(protocol::TCP, &tcp(5, 6, 0)));
        let inner = inner_of(ethertype::IPV6, &ipv6_packet(protocol::ICMPV6, &error));
        assert_eq!((inner.kind, inner.source), ("icmp-error", Some(Ipv6Addr::from(v6(1)).into())));
        assert_eq!(inner.destination_port, Some(6));
        // An echo quotes nothing, whatever its data look like.
        let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1];
        echo.extend(ipv4_packet(protocol::UDP, &udp(1, 2, b"")));
        assert_eq!(parse(ethertype::IPV4, &ipv4_packet(protocol::ICMP, &echo)).inner, None);
    }

    #[test]
    fn arp_tells_who_asks_for_whom() {
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([2; 6]);
        request.extend(A);
        request.extend([0; 6]);
        request.extend(B);
        let parsed = parse(ethertype::ARP, &request);
        assert_eq!(ends(&parsed), ("10.0.1.1".into(), None, "10.0.2.2".into(), None));
        assert_eq!((parsed.arp_operation, parsed.transport), (Some(1), None));
        request[5] = 16;
        assert_eq!(parse(ethertype::ARP, &request).source, None);
    }

    #[test]
    fn vxlan_carries_a_frame() {
        for port in VXLAN_PORTS {
            let mut vxlan = vec![8, 0, 0, 0, 0, 0x12, 0x34, 0];
            vxlan.extend(frame(ethertype::IPV4, &ipv4_packet(protocol::TCP, &tcp(7, 80, 2))));
            let outer = udp(50000, port, &vxlan);
            let inner = inner_of(ethertype::IPV6, &ipv6_packet(protocol::UDP, &outer));
            assert_eq!((inner.kind, inner.vni, inner.transport), ("vxlan", Some(0x1234), Some(6)));
            assert_eq!((inner.source, inner.source_port), (Some(Ipv4Addr::from(A).into()), Some(7)));
            // Without the I flag there is no VNI, and this is something else on that port.
            vxlan[0] = 0;
            let outer = udp(50000, port, &vxlan);
            assert_eq!(parse(ethertype::IPV4, &ipv4_packet(protocol::UDP, &outer)).inner, None);
        }
    }

    #[test]
    fn vxlan_carries_a_tagged_frame_and_arp() {
        let mut tagged = vec![0, 100, 0x86, 0xdd];
        tagged.extend(ipv6_packet(protocol::UDP, &udp(3, 4, b"")));
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 1, 0];
        vxlan.extend(frame(ethertype::VLAN, &tagged));
        let inner = inner_of(ethertype::IPV4, &ipv4_packet(17, &udp(1, 8472, &vxlan)));
        assert_eq!((inner.source_port, inner.transport), (Some(3), Some(17)));

        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend([[2; 4], [2; 4], A, [0; 4], [0; 4], B].concat());
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 1, 0];
        vxlan.extend(frame(ethertype::ARP, &request));
        let inner = inner_of(ethertype::IPV4, &ipv4_packet(17, &udp(1, 8472, &vxlan)));
        assert_eq!((inner.vni, inner.transport), (Some(1), None));
    }

    #[test]
    fn geneve_skips_its_options() {
        let mut geneve = vec![2, 0, 0x65, 0x58, 0, 0, 9, 0];
        geneve.extend([0; 8]);
        geneve.extend(frame(ethertype::IPV4, &ipv4_packet(protocol::UDP, &udp(5, 6, b""))));
        let inner = inner_of(ethertype::IPV4, &ipv4_packet(protocol::UDP, &udp(1, 6081, &geneve)));
        assert_eq!((inner.kind, inner.vni, inner.destination_port), ("geneve", Some(9), Some(6)));
        let mut geneve = vec![0, 0, 0x86, 0xdd, 0, 0, 9, 0];
        geneve.extend(ipv6_packet(protocol::UDP, &udp(5, 6, b"")));
        let inner = inner_of(ethertype::IPV4, &ipv4_packet(protocol::UDP, &udp(1, 6081, &geneve)));
        assert_eq!(inner.source, Some(Ipv6Addr::from(v6(1)).into()));
    }

    #[test]
    fn ip_in_ip() {
        let four = ipv4_packet(protocol::TCP, &tcp(7, 8, 0));
        let six = ipv6_packet(protocol::TCP, &tcp(7, 8, 0));
        let cases = [
            (ethertype::IPV4, ipv4_packet(4, &four), "ipip"),
            (ethertype::IPV4, ipv4_packet(41, &six), "sit"),
            (ethertype::IPV6, ipv6_packet(4, &four), "ip6tnl"),
            (ethertype::IPV6, ipv6_packet(41, &six), "ip6tnl"),
        ];
        for (ethertype, packet, kind) in cases {
            let inner = inner_of(ethertype, &packet);
            assert_eq!((inner.kind, inner.vni, inner.source_port), (kind, None, Some(7)));
        }
    }

    #[test]
    fn gre_skips_its_optional_fields() {
        let packet = ipv4_packet(protocol::UDP, &udp(7, 8, b""));
        for (flags, optional) in [(0u16, 0), (0x2000, 4), (0xb000, 12)] {
            let mut gre = flags.to_be_bytes().to_vec();
            gre.extend(ethertype::IPV4.to_be_bytes());
            gre.extend(vec![0; optional]);
            gre.extend(&packet);
            let inner = inner_of(ethertype::IPV4, &ipv4_packet(protocol::GRE, &gre));
            assert_eq!((inner.kind, inner.destination_port), ("gre", Some(8)));
        }
        let mut gre = vec![0, 0, 0x65, 0x58];
        gre.extend(frame(ethertype::IPV4, &packet));
        assert_eq!(inner_of(ethertype::IPV4, &ipv4_packet(protocol::GRE, &gre)).source_port, Some(7));
        // Version 1 is PPTP's.
        let mut gre = vec![0, 1, 8, 0];
        gre.extend(&packet);
        assert_eq!(parse(ethertype::IPV4, &ipv4_packet(protocol::GRE, &gre)).inner, None);
    }

    #[test]
    fn truncation_keeps_what_is_known() {
        let packet = ipv4_packet(protocol::TCP, &tcp(1, 2, tcp_flag::SYN));
        let cut = |length| parse(ethertype::IPV4, &packet[..length]);
        assert_eq!(cut(19), Parsed::default());
        assert_eq!((cut(20).transport, cut(20).source_port), (Some(6), None));
        assert_eq!((cut(24).destination_port, cut(24).tcp_flags), (Some(2), None));
        assert_eq!(cut(40).tcp_flags, Some(tcp_flag::SYN));
    }

    #[test]
    fn insane_headers_are_not_believed() {
        assert_eq!(parse(ethertype::IPV4, &ipv6_packet(6, &tcp(1, 2, 0))), Parsed::default());
        assert_eq!(parse(ethertype::IPV6, &ipv4_packet(6, &tcp(1, 2, 0))), Parsed::default());
        assert_eq!(parse(0x88cc, &ipv4_packet(6, &tcp(1, 2, 0))), Parsed::default());
        let mut short = ipv4_packet(6, &tcp(1, 2, 0));
        short[0] = 0x44;
        let parsed = parse(ethertype::IPV4, &short);
        assert_eq!((parsed.transport, parsed.source_port), (None, None));
    }

    /// xorshift64 (Marsaglia 2003): the same numbers in every run.
    pub(crate) fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn hostile_bytes_do_not_panic() {
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 1, 0];
        vxlan.extend(frame(ethertype::IPV4, &ipv4_packet(protocol::TCP, &tcp(7, 80, 2))));
        let mut geneve = vec![2, 0, 0x65, 0x58, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        geneve.extend(frame(ethertype::IPV6, &ipv6_packet(protocol::TCP, &tcp(7, 80, 2))));
        let mut gre = vec![0x20, 0, 0x65, 0x58, 0, 0, 0, 0];
        gre.extend(frame(ethertype::VLAN, &[0, 1, 8, 0, 0x45]));
        let seeds = [
            (ethertype::IPV4, ipv4_packet(17, &udp(1, 8472, &vxlan))),
            (ethertype::IPV6, ipv6_packet(17, &udp(1, 6081, &geneve))),
            (ethertype::IPV4, ipv4_packet(47, &gre)),
            (
                ethertype::IPV6,
                ipv6_packet(0, &[60, 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 1]),
            ),
            (ethertype::ARP, vec![0, 1, 8, 0, 6, 4, 0, 1]),
            (ethertype::VLAN, vec![0; 64]),
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for round in 0..60_000 {
            let (ethertype, seed) = &seeds[round % seeds.len()];
            let mut packet = seed.clone();
            for _ in 0..random(&mut state) % 6 {
                let at = usize::try_from(random(&mut state)).unwrap() % packet.len();
                packet[at] = random(&mut state).to_le_bytes()[0];
            }
            packet.truncate(usize::try_from(random(&mut state)).unwrap() % (packet.len() + 1));
            black_box(parse(*ethertype, &packet));
            let noise: Vec<u8> = (0..random(&mut state) % 193).map(|_| random(&mut state) as u8).collect();
            black_box(parse(*ethertype, &noise));
        }
    }
}
