//! Connections that nobody has answered, as connection tracking has them in droptrace's own network namespace: a dump over
//! netlink (RFC 3549; include/uapi/linux/netfilter/nfnetlink_conntrack.h). It is asked only where the part of the kernel
//! that answers is there already, for a question would load it.

use super::netlink::{self, attribute};
use crate::event::conntrack::Tuple;
use crate::event::packet::{has_ports, is_icmp};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// The module that answers.
const MODULE: &str = "/sys/module/nf_conntrack_netlink";
/// A function of it, of all versions.
const FUNCTION: &str = "ctnetlink_dump_table";
/// A dump takes no longer than this, and tells of no more unanswered connections; the rest stays untold.
const LONGEST: Duration = Duration::from_millis(500);
const MOST: usize = 100_000;

/// Size of `struct nfgenmsg`: family, version, resource id.
const FAMILY: usize = 4;
/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_GET`.
const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
/// Attributes of a connection: `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_STATUS`, `CTA_STATUS_MASK`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const STATUS_MASK: u16 = 26;
/// `IPS_SEEN_REPLY` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const SEEN_REPLY: u32 = 2;

/// A connection that was never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// As its first packet had it.
    pub original: Tuple,
    /// As an answer would have it.
    pub reply: Tuple,
}

/// Those of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its inode number.
    pub netns: Option<u32>,
    /// The connections.
    pub connections: Vec<Unanswered>,
}

/// Whether and how to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connections {
    /// Never.
    #[default]
    Off,
    /// The kernel has it built in.
    BuiltIn,
    /// It is a module: only while that is loaded.
    Module,
}

impl Connections {
    /// How it is on this kernel. `has_function` tells what functions it has.
    #[must_use]
    pub fn here(has_function: impl Fn(&str) -> bool) -> Self {
        if has_function(FUNCTION) && !Path::new(MODULE).exists() { Self::BuiltIn } else { Self::Module }
    }

    /// Those of this network namespace; `None` if they can't be asked for. Takes up to half a second where there are very
    /// many, and then not all are told.
    #[must_use]
    pub fn unanswered(self) -> Option<Table> {
        let is_there = match self {
            Self::Off => false,
            Self::BuiltIn => true,
            Self::Module => Path::new(MODULE).exists(),
        };
        let connections = if is_there { dump().ok()? } else { return None };
        let netns = fs::metadata("/proc/self/ns/net").ok().and_then(|file| u32::try_from(file.ino()).ok());
        Some(Table { netns, connections })
    }
}

fn dump() -> io::Result<Vec<Unanswered>> {
    let mut found = Vec::new();
    let question = netlink::message(CT_GET, &question());
    // What there is beyond that time and that many stays untold.
    let _is_whole = netlink::dump(libc::NETLINK_NETFILTER, &question, CT_NEW, LONGEST, &mut |body| {
        found.extend(told(body));
        if found.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

/// Asks for all connections; a kernel that can leave out those with `IPS_SEEN_REPLY` (from 5.15) does that.
fn question() -> Vec<u8> {
    // Any family, version 0, no resource.
    let mut bytes = vec![0; FAMILY];
    for (kind, value) in [(STATUS, 0_u32), (STATUS_MASK, SEEN_REPLY)] {
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value.to_be_bytes());
    }
    bytes
}

/// What a message tells of; `None` if it is not told.
fn told(body: &[u8]) -> Option<Unanswered> {
    body.get(FAMILY..).and_then(connection)
}

/// A connection's attributes; `None` if it was answered, or something is missing.
fn connection(bytes: &[u8]) -> Option<Unanswered> {
    let status = u32::from_be_bytes(attribute(bytes, STATUS)?.try_into().ok()?);
    let of = |kind| tuple(attribute(bytes, kind)?);
    (status & SEEN_REPLY == 0).then_some(Unanswered { original: of(ORIGINAL)?, reply: of(REPLY)? })
}

/// A tuple: `CTA_TUPLE_IP` (1) with source and destination of IPv4 (1, 2) or IPv6 (3, 4), and `CTA_TUPLE_PROTO` (2) with
/// the protocol's number (1), ports (2, 3), or of ICMP (4, 5, 6) and ICMPv6 (7, 8, 9) identifier, type and code.
fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, transport) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let address = |v4, v6| match attribute(ip, v4) {
        Some(found) => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(found).ok()?))),
        None => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?))),
    };
    let byte = |kind| attribute(transport, kind)?.first().copied();
    let short = |kind| Some(u16::from_be_bytes(attribute(transport, kind)?.try_into().ok()?));
    let protocol = byte(1)?;
    let port = |kind| short(kind).filter(|_| has_ports(protocol));
    let first = if attribute(transport, 4).is_some() { 4 } else { 7 };
    let icmp = || Some((short(first)?, byte(first + 1)?, byte(first + 2)?));
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: Some(protocol),
        source_port: port(2),
        destination_port: port(3),
        icmp: icmp().filter(|_| is_icmp(protocol)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::netlink::encoded as put;
    use super::*;

    fn tuple_of(addresses: &[Vec<u8>; 2], transport: &[Vec<u8>]) -> Vec<u8> {
        [put(0x8001, &addresses.concat()), put(0x8002, &transport.concat())].concat()
    }

    fn v4(source: [u8; 4], destination: [u8; 4], transport: &[Vec<u8>]) -> Vec<u8> {
        tuple_of(&[put(1, &source), put(2, &destination)], transport)
    }

    fn entry(status: u32, original: &[u8], reply: &[u8]) -> Vec<u8> {
        let attributes = [put(0x8001, original), put(0x8002, reply), put(3, &status.to_be_bytes())];
        [&[2, 0, 0, 0][..], &attributes.concat()].concat()
    }

    fn udp(ports: [u16; 2]) -> Vec<Vec<u8>> {
        vec![put(1, &[17]), put(2, &ports[0].to_be_bytes()), put(3, &ports[1].to_be_bytes())]
    }

    const CLIENT: [u8; 4] = [10, 244, 3, 7];
    const SERVICE: [u8; 4] = [10, 96, 0, 10];
    const BACKEND: [u8; 4] = [10, 244, 1, 9];

    #[test]
    fn only_what_was_never_answered_is_told() {
        let original = v4(CLIENT, SERVICE, &udp([40_000, 53]));
        let reply = v4(BACKEND, CLIENT, &udp([5353, 40_000]));
        assert_eq!(told(&entry(0x1aa, &original, &reply)), None);
        let one = told(&entry(0x1a8, &original, &reply)).unwrap();
        let ends = one.original.ends();
        assert_eq!((ends.destination.address, ends.destination.port), (Some(SERVICE.into()), Some(53)));
        let ends = one.reply.ends();
        assert_eq!((ends.source.address, ends.source.port), (Some(BACKEND.into()), Some(5353)));
        assert_eq!(one.original.protocol, Some(17));
    }

    #[test]
    fn icmp_of_both_families() {
        let echo = [put(1, &[1]), put(4, &7_u16.to_be_bytes()), put(5, &[8]), put(6, &[0])];
        let found = tuple(&v4(CLIENT, BACKEND, &echo)).unwrap();
        assert_eq!((found.protocol, found.icmp, found.source_port), (Some(1), Some((7, 8, 0)), None));
        let addresses = [put(3, &[0x20; 16]), put(4, &[0x30; 16])];
        let echo = [put(1, &[58]), put(7, &9_u16.to_be_bytes()), put(8, &[128]), put(9, &[0])];
        let found = tuple(&tuple_of(&addresses, &echo)).unwrap();
        assert_eq!((found.destination, found.icmp), (IpAddr::from([0x30; 16]), Some((9, 128, 0))));
    }

    #[test]
    fn what_is_cut_short_or_odd_is_left_out() {
        let whole = entry(8, &v4(CLIENT, BACKEND, &udp([1, 2])), &v4(BACKEND, CLIENT, &udp([2, 1])));
        assert!(told(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(told(&whole[..length]), None, "{length}");
        }
        // Lengths of nothing, or of more than there is.
        for length in [0_u16, 3, u16::MAX] {
            let mut odd = whole.clone();
            odd[FAMILY..FAMILY + 2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(told(&odd), None);
        }
    }

    #[test]
    fn where_the_module_is_not_loaded_nobody_asks() {
        assert_eq!(Connections::here(|_| false), Connections::Module);
        assert_eq!(Connections::Off.unanswered(), None);
        assert!(Path::new(MODULE).exists() || Connections::Module.unanswered().is_none());
    }
}
