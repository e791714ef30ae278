//! Packets made by hand, with right checksums. All bytes are in network order.

use std::net::{IpAddr, SocketAddr};

/// A hardware address.
pub type Mac = [u8; 6];

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// The IPv6 fragment header (RFC 8200, 4.5).
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// TCP flag bits (RFC 9293, 3.1).
pub mod tcp_flag {
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// PSH.
    pub const PSH: u8 = 8;
    /// ACK.
    pub const ACK: u8 = 16;
}

/// The addresses and options of an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// Source; must be of the destination's family.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification, or that of the IPv6 fragment header.
    pub id: u16,
    /// True: this is the first fragment of something longer. False: whole, and not to be fragmented.
    pub first_fragment: bool,
}

impl Ip {
    /// TTL 64, not fragmented.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self { source, destination, ttl: 64, id: 0x1234, first_fragment: false }
    }

    /// Puts the header before a payload. Layouts: RFC 791, 3.1 and RFC 8200, 3.
    #[must_use]
    pub fn wrap(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let fragment: u16 = if self.first_fragment { 0x2000 } else { 0x4000 };
                let mut header = vec![0x45, 0];
                header.extend(length(20 + payload.len()));
                header.extend(self.id.to_be_bytes());
                header.extend(fragment.to_be_bytes());
                header.extend([self.ttl, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = fold(sum(&header));
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header.extend(payload);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extension = Vec::new();
                if self.first_fragment {
                    extension.extend([protocol, 0, 0, 1, 0, 0]);
                    extension.extend(self.id.to_be_bytes());
                }
                let next = if self.first_fragment { protocol::FRAGMENT } else { protocol };
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length(extension.len() + payload.len()));
                header.extend([next, self.ttl]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(extension);
                header.extend(payload);
                header
            }
            // A mix of families is no packet: the test that sends nothing will say so.
            _ => Vec::new(),
        }
    }
}

/// A whole UDP packet (RFC 768).
#[must_use]
pub fn udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    Ip::new(source.ip(), destination.ip()).wrap(protocol::UDP, &udp_segment(source, destination, data))
}

/// A UDP header and its data.
#[must_use]
pub fn udp_segment(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend(length(8 + data.len()));
    segment.extend([0, 0]);
    segment.extend(data);
    seal(&mut segment, 6, source.ip(), destination.ip(), protocol::UDP);
    segment
}

/// A whole TCP packet without options (RFC 9293, 3.1).
#[must_use]
pub fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    seq: u32,
    ack: u32,
    flags: u8,
    data: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    seal(&mut segment, 16, source.ip(), destination.ip(), protocol::TCP);
    Ip::new(source.ip(), destination.ip()).wrap(protocol::TCP, &segment)
}

/// A whole echo request (RFC 792; RFC 4443, 4.1).
#[must_use]
pub fn echo_request(source: IpAddr, destination: IpAddr, id: u16, sequence: u16) -> Vec<u8> {
    let v4 = source.is_ipv4();
    let mut message = vec![if v4 { 8 } else { 128 }, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(b"droptrace");
    let number = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
    if v4 {
        let sum = fold(sum(&message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    } else {
        seal(&mut message, 2, source, destination, number);
    }
    Ip::new(source, destination).wrap(number, &message)
}

/// VXLAN (RFC 7348, 5) around an Ethernet frame: what follows the outer UDP header.
#[must_use]
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(frame);
    bytes
}

/// Geneve (RFC 8926, 3.4) with one 4-byte option around an Ethernet frame: what follows the outer UDP header.
#[must_use]
pub fn geneve(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0x65, 0x58];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend([0x01, 0x02, 0x03, 0x01, 0xaa, 0xbb, 0xcc, 0xdd]);
    bytes.extend(frame);
    bytes
}

/// An ARP request (RFC 826) in its Ethernet frame, to everybody.
#[must_use]
pub fn arp_request(mac: Mac, source: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(source);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// An Ethernet frame around an IP packet.
#[must_use]
pub fn frame(source: Mac, destination: Mac, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + packet.len());
    frame.extend(destination);
    frame.extend(source);
    frame.extend(if packet.first().is_some_and(|byte| byte >> 4 == 6) { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(packet);
    frame
}

/// `02:00:0a:4d:00:01`
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Writes the checksum of a segment, over the pseudo header too (RFC 9293, 3.1; RFC 8200, 8.1), at `at`.
fn seal(segment: &mut [u8], at: usize, source: IpAddr, destination: IpAddr, protocol: u8) {
    let pseudo: Vec<u8> = match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
        (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
        _ => Vec::new(),
    };
    let tail = [length(segment.len()), [0, protocol]].concat();
    let total = sum(&pseudo) + sum(&tail) + sum(segment);
    // UDP writes a zero sum as ones: zero means "no checksum".
    let value = match fold(total) {
        0 if protocol == protocol::UDP => 0xffff,
        value => value,
    };
    segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum of the 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// Folds the carries in and complements.
fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn length(bytes: usize) -> [u8; 2] {
    (bytes as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_header_checksum_of_a_known_packet() {
        // The example of RFC 1071's method in wide use: 192.168.0.1 -> 192.168.0.199, UDP, 115 bytes, sum b861.
        let mut header = vec![0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0];
        header.extend([192, 168, 0, 1, 192, 168, 0, 199]);
        assert_eq!(fold(sum(&header)), 0xb861);
    }

    #[test]
    fn a_sealed_segment_sums_to_zero() -> Result<(), std::net::AddrParseError> {
        for (a, b) in [("10.0.0.1:53", "10.0.0.2:77"), ("[fd00::1]:53", "[fd00::2]:77")] {
            let (a, b): (SocketAddr, SocketAddr) = (a.parse()?, b.parse()?);
            let segment = udp_segment(a, b, b"odd");
            let addresses: Vec<u8> = match (a.ip(), b.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
                (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
                _ => unreachable!(),
            };
            let all = sum(&addresses) + sum(&[0, 11, 0, protocol::UDP]) + sum(&segment);
            assert_eq!(fold(all), 0);
        }
        Ok(())
    }

    #[test]
    fn a_first_fragment_says_that_more_follows() {
        let mut v4 = Ip::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        v4.first_fragment = true;
        assert_eq!(v4.wrap(protocol::UDP, &[0; 8])[6..8], [0x20, 0]);
        let one = std::net::Ipv6Addr::LOCALHOST;
        let mut v6 = Ip::new(one.into(), one.into());
        v6.first_fragment = true;
        let packet = v6.wrap(protocol::UDP, &[0; 8]);
        assert_eq!((packet[6], packet[40], packet[43]), (protocol::FRAGMENT, protocol::UDP, 1));
    }
}
