//! What filter words stand for: prefixes, protocols, interface names, patterns of reasons.

use super::Family;
use super::names::{Named, Selector, WorkloadName};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tracer_common::dimension;

/// What a filter word asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An address in a network.
    Address(Prefix),
    /// A port of TCP, UDP, UDP-Lite, SCTP or DCCP.
    Port(u16),
    /// A protocol.
    Protocol(Protocol),
    /// An interface of exactly this name.
    Interface(String),
    /// A network namespace, by inode number.
    Netns(u32),
    /// A drop reason.
    Reason(Glob),
    /// A cause.
    Cause(Glob),
    /// Pods by name.
    Pod(Named),
    /// Pods and services by namespace.
    Namespace(String),
    /// Pods by label.
    Selector(Selector),
    /// Pods by workload.
    Workload(WorkloadName),
    /// Services by name.
    Service(Named),
}

/// Why a text is no value, and what would be one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) problem: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: Some(hint.into()) }
    }
}

/// A network: an address and how many of its leading bits count. An IPv4 network is never an IPv6 one: the
/// IPv4-mapped addresses of RFC 4291, 2.5.5.2 are taken for the IPv4 addresses that they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The network of `length` leading bits that `address` is in; `None` if the address has no so many bits.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (address, length) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if (96..=128).contains(&length) => (mapped, length - 96),
            (given, _) => (given, length),
        };
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Self { address, length })
    }

    /// Its first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Leading bits that count: at most 32 for IPv4, 128 for IPv6.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// True if the address is in the network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.length) == Some(*self)
    }

    /// True if all of `other` is in the network.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && self.contains(other.address)
    }
}

/// A protocol of either layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// IANA's protocol number, after any extension headers.
    Transport(u8),
    /// `ETH_P_*` (include/uapi/linux/if_ether.h), host byte order.
    Network(u16),
}

/// ETH_P_IP
const ETH_IPV4: u16 = 0x0800;
/// ETH_P_ARP
const ETH_ARP: u16 = 0x0806;
/// ETH_P_IPV6
const ETH_IPV6: u16 = 0x86dd;

/// Names of transport protocols (IANA protocol numbers; /etc/protocols), our own spelling first.
const TRANSPORTS: &[(&str, u8)] = &[
    ("tcp", 6),
    ("udp", 17),
    ("sctp", 132),
    ("icmp", 1),
    ("icmpv6", 58),
    ("ipv6-icmp", 58),
    ("icmp6", 58),
    ("igmp", 2),
    ("ipip", 4),
    ("ipv6-in-ip", 41),
    ("sit", 41),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("udplite", 136),
];

impl Protocol {
    /// The network protocol of an IP version.
    #[must_use]
    pub fn of_family(family: Family) -> Self {
        match family {
            Family::V4 => Self::Network(ETH_IPV4),
            Family::V6 => Self::Network(ETH_IPV6),
        }
    }

    /// Key of the kernel half's protocol map ([`dimension::PROTOCOL`]).
    #[must_use]
    pub fn key(self) -> u32 {
        match self {
            Self::Transport(number) => number.into(),
            Self::Network(ethertype) => u32::from(ethertype) | dimension::ETHERTYPE,
        }
    }

    /// The protocol that an event's `network.transport` names.
    #[must_use]
    pub fn of_transport(name: &str) -> Option<Self> {
        let named = TRANSPORTS.iter().find(|(known, _)| *known == name).map(|&(_, number)| number);
        named.or_else(|| name.parse().ok()).map(Self::Transport)
    }

    /// The protocol that an event's `network.family` names.
    #[must_use]
    pub fn of_network(name: &str) -> Option<Self> {
        let ethertype = match name {
            "ipv4" => Some(ETH_IPV4),
            "ipv6" => Some(ETH_IPV6),
            "arp" => Some(ETH_ARP),
            other => other.strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok()),
        };
        ethertype.map(Self::Network)
    }
}

/// A pattern: `*` is any text, `?` any character, the rest itself in either case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob(String);

impl Glob {
    /// The pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_ascii_uppercase())
    }

    /// True if the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Where to go on if what follows the last `*` turns out not to match: the `*` takes one byte more.
        let mut retry: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p, t));
                    p += 1;
                }
                Some(&c) if c == b'?' || c == text[t].to_ascii_uppercase() => {
                    p += 1;
                    t += 1;
                }
                _ => match retry {
                    Some((star, start)) => {
                        retry = Some((star, start + 1));
                        p = star + 1;
                        t = start + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == b'*')
    }

    /// The pattern, in upper case.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.0
    }
}

pub(super) fn prefix(text: &str) -> Result<Prefix, Problem> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let hint = "an address, `10.1.2.3` or `fd00::1`, or a network, `10.0.0.0/8`";
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(if address.contains('%') {
            Problem::new("an address has no zone here", "leave `%...` out and add --interface")
        } else {
            Problem::new("not an IP address or network", hint)
        });
    };
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => Ok(bits),
        Some(digits) if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) => {
            return Err(Problem::new("what follows `/` is not a number of bits", hint));
        }
        Some(digits) => digits.parse(),
    };
    length.ok().and_then(|length| Prefix::new(address, length)).ok_or_else(|| {
        Problem::new(format!("this address has {bits} bits, and a network no more of them"), hint)
    })
}

pub(super) fn port(text: &str) -> Result<u16, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().ok_or_else(|| {
        Problem::new("not a port", "a number from 0 to 65535; repeat the flag for more than one")
    })
}

pub(super) fn protocol(text: &str) -> Result<Protocol, Problem> {
    let name = text.to_ascii_lowercase();
    if let Some(network @ Protocol::Network(_)) = Protocol::of_network(&name) {
        return Ok(network);
    }
    match Protocol::of_transport(&name) {
        // Hop-by-hop options are no packet's transport protocol; 0 is what a packet without one has.
        Some(Protocol::Transport(number)) if number != 0 && !name.starts_with('+') => {
            Ok(Protocol::Transport(number))
        }
        _ => Err(Problem::new(
            "not a protocol",
            "tcp, udp, sctp, icmp, icmpv6, arp, ipv4, ipv6, gre, esp ..., a protocol number from 1 to 255, or an \
             ethertype such as 0x88cc",
        )),
    }
}

/// An interface's name as dev_valid_name (net/core/dev.c) allows it.
pub(super) fn interface(text: &str) -> Result<String, Problem> {
    let allowed = !text.is_empty()
        && text.len() < 16
        && text != "."
        && text != ".."
        && !text.bytes().any(|c| c == b'/' || c == b':' || c == 0 || c.is_ascii_whitespace() || c == 0x0b);
    if allowed {
        Ok(text.to_owned())
    } else {
        Err(Problem::new(
            "no interface can have this name",
            "1 to 15 bytes without `/`, `:` and white space; `ip -brief link` lists them",
        ))
    }
}

/// A cause's name, or a pattern.
pub(super) fn cause(text: &str) -> Result<Glob, Problem> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'*' | b'?');
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(Problem::new(
            "not the name of a cause",
            "a name such as conntrack-full, or a pattern such as 'svc-*'",
        ));
    }
    Ok(Glob::new(text))
}

/// A reason's pattern, and whether `!` excludes what it matches.
pub(super) fn reason(text: &str) -> Result<(bool, Glob), Problem> {
    let (excluded, pattern) = match text.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let upper = pattern.to_ascii_uppercase();
    let pattern = upper.strip_prefix("SKB_DROP_REASON_").unwrap_or(&upper);
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'*' | b'?' | b'-' | b'.');
    if pattern.is_empty() || !pattern.bytes().all(allowed) {
        return Err(Problem::new(
            "not the name of a drop reason",
            "a name such as NO_SOCKET, a pattern such as 'TCP_*', or '!NAME' to leave one out",
        ));
    }
    Ok((excluded, Glob::new(pattern)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_masked_and_contain_their_family_only() {
        let net = prefix("10.1.2.3/8").unwrap();
        assert_eq!((net.address(), net.length()), (ip("10.0.0.0"), 8));
        assert!(net.contains(ip("10.255.0.1")) && !net.contains(ip("11.0.0.1")));
        assert!(net.contains(ip("::ffff:10.0.0.1")), "a mapped address is the IPv4 address");
        assert!(!prefix("::/0").unwrap().contains(ip("10.0.0.1")));
        assert!(!prefix("0.0.0.0/0").unwrap().contains(ip("fd00::1")));
        assert!(prefix("0.0.0.0/0").unwrap().contains(ip("255.255.255.255")));
        assert_eq!(prefix("::ffff:10.0.0.0/104").unwrap(), prefix("10.0.0.0/8").unwrap());
        assert_eq!(prefix("fd00::1").unwrap().length(), 128);
        assert!(prefix("fd00::/8").unwrap().covers(&prefix("fdab::/16").unwrap()));
        assert!(!prefix("fdab::/16").unwrap().covers(&prefix("fd00::/8").unwrap()));
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in
            ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "fd00::/129", "fe80::1%eth0", "a"]
        {
            assert!(prefix(text).is_err(), "{text}");
        }
        assert_eq!(
            prefix("10.0.0.0/33").unwrap_err().problem,
            "this address has 32 bits, and a network no more of them"
        );
    }

    #[test]
    fn ports_and_protocols_have_names_and_bounds() {
        assert_eq!(port("65535").unwrap(), 65535);
        for text in ["", "65536", "-1", "+1", "http"] {
            assert!(port(text).is_err(), "{text}");
        }
        assert_eq!(protocol("TCP").unwrap().key(), 6);
        assert_eq!(protocol("ipv6-icmp").unwrap().key(), 58);
        assert_eq!(protocol("132").unwrap().key(), 132);
        assert_eq!(protocol("arp").unwrap().key(), 0x1_0806);
        assert_eq!(protocol("ipv6").unwrap().key(), 0x1_86dd);
        assert_eq!(protocol("0x88cc").unwrap().key(), 0x1_88cc);
        for text in ["", "0", "256", "+6", "tcpp", "0xfffff"] {
            assert!(protocol(text).is_err(), "{text}");
        }
    }

    #[test]
    fn interface_names_are_those_the_kernel_allows() {
        assert_eq!(interface("eth0.100").unwrap(), "eth0.100");
        for text in ["", "a/b", "a:b", "a b", ".", "..", "sixteen-bytes-xx"] {
            assert!(interface(text).is_err(), "{text}");
        }
    }

    #[test]
    fn globs_match_whole_names_in_either_case() {
        let matches = |pattern: &str, text: &str| Glob::new(pattern).matches(text);
        assert!(matches("TCP_*", "TCP_CSUM") && matches("*", "") && matches("n?_*et", "NO_SOCKET"));
        assert!(matches("*_DROP", "NETFILTER_DROP") && matches("*A*A*", "XAYAZ"));
        assert!(!matches("TCP", "TCP_CSUM") && !matches("TCP_?", "TCP_") && !matches("*_DROP", "DROP_X"));
        assert_eq!(reason("!skb_drop_reason_no_socket").unwrap(), (true, Glob::new("NO_SOCKET")));
        assert!(reason("!").is_err() && reason("a b").is_err() && reason("").is_err());
    }
}
