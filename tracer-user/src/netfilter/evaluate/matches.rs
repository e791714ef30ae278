//! Whether a packet matches: one test of a rule at a time. What the kernel does is named at each test.

use super::mark::Mark;
use super::packet::{Connection, Interface, Packet, State};
use super::truth::Truth;
use crate::event::conntrack::Direction;
use crate::event::packet::protocol;
use crate::netfilter::model::Family;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

/// One test of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match<'a> {
    /// The option, or the module, in the rule's text; empty for a rule that is not understood.
    pub(super) name: &'a str,
    pub(super) test: Test<'a>,
    pub(super) inverted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test<'a> {
    Address(End, Net),
    Protocol(u8),
    InterfaceIn(&'a str),
    InterfaceOut(&'a str),
    /// A fragment other than the first.
    Fragment,
    /// A module that looks at the header behind the IP header: it never matches other fragments than the first, and drops a
    /// packet whose header is cut off (`hotdrop`).
    Header,
    Ports(Ends, Vec<RangeInclusive<u16>>),
    /// Of the bits of `mask`, exactly those of `set` are set.
    TcpFlags {
        mask: u8,
        set: u8,
    },
    Icmp {
        kind: u8,
        codes: RangeInclusive<u8>,
    },
    Mark {
        value: u32,
        mask: u32,
    },
    /// [`state`] bits.
    State(u8),
    /// A question about the packet's connection: which way, or one that isn't understood. Without a connection the
    /// match holds if the state was asked for as well, and not otherwise (net/netfilter/xt_conntrack.c).
    Connection {
        direction: Option<Direction>,
        with_state: bool,
    },
    AddressType(End, AddressTypes),
    Length(RangeInclusive<u32>),
    Ttl(RangeInclusive<u8>),
    Range(End, IpAddr, IpAddr),
    /// It always holds.
    Any,
    /// It can't be told. Some modules may also drop the packet themselves (`hotdrop`).
    Unknown {
        may_drop: bool,
    },
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// Which ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    One(End),
    Either,
}

/// Addresses: those that are `address` in the bits of `mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Net {
    is_ipv4: bool,
    address: u128,
    mask: u128,
}

/// What `--ctstate` asks for.
pub(super) mod state {
    pub(in super::super) const NEW: u8 = 1;
    pub(in super::super) const ESTABLISHED: u8 = 2;
    pub(in super::super) const RELATED: u8 = 4;
    pub(in super::super) const INVALID: u8 = 8;
    pub(in super::super) const UNTRACKED: u8 = 16;
    pub(in super::super) const SNAT: u8 = 32;
    pub(in super::super) const DNAT: u8 = 64;
}

/// Bits of nf_conn.status (include/uapi/linux/netfilter/nf_conntrack_common.h).
pub(super) mod status {
    pub(in super::super) const CONFIRMED: u32 = 1 << 3;
    pub(in super::super) const SRC_NAT: u32 = 1 << 4;
    pub(in super::super) const DST_NAT: u32 = 1 << 5;
    pub(in super::super) const SRC_NAT_DONE: u32 = 1 << 7;
    pub(in super::super) const DST_NAT_DONE: u32 = 1 << 8;
}

/// What `-m addrtype` asks for, as far as an address tells it without routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AddressTypes {
    pub(super) multicast: bool,
    pub(super) broadcast: bool,
    pub(super) others: bool,
}

/// What a match says, and what it may do besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) truth: Truth,
    /// It may drop the packet itself.
    pub(super) may_drop: bool,
}

impl Match<'_> {
    /// Asks it of a packet that has this mark at that moment.
    pub(super) fn holds(&self, packet: &Packet<'_>, mark: Mark) -> Held {
        if self.test == Test::Header {
            return header(packet);
        }
        let may_drop = match self.test {
            Test::Unknown { may_drop } => may_drop,
            // A chain of extension headers that is cut off (ip6_packet_match(), net/ipv6/netfilter/ip6_tables.c).
            Test::Protocol(_) => packet.family == Family::Ipv6 && packet.protocol.is_none(),
            _ => false,
        };
        let truth = if let Test::Connection { direction, with_state } = self.test {
            self.connection(packet, direction, with_state)
        } else {
            self.test.holds(packet, mark).inverted_if(self.inverted)
        };
        Held { truth, may_drop }
    }

    fn connection(&self, packet: &Packet<'_>, wanted: Option<Direction>, with_state: bool) -> Truth {
        match packet.connection {
            None => Truth::Unknown,
            Some(Connection::Tracked { direction, .. }) => {
                let same = wanted.zip(direction).map(|(wanted, direction)| wanted == direction);
                Truth::of(same).inverted_if(self.inverted)
            }
            Some(_) => Truth::of(Some(with_state)),
        }
    }
}

/// tcp_mt() and udp_mt() (net/netfilter/xt_tcpudp.c), multiport_mt(), icmp_match() and the like all begin so.
fn header(packet: &Packet<'_>) -> Held {
    if packet.fragment == Some(true) {
        // tcp_mt() drops a fragment that would overwrite the flags.
        return Held { truth: Truth::No, may_drop: packet.protocol == Some(protocol::TCP) };
    }
    if packet.has_transport_header() {
        return Held { truth: Truth::Yes, may_drop: false };
    }
    Held { truth: Truth::Unknown, may_drop: true }
}

impl Test<'_> {
    fn holds(&self, packet: &Packet<'_>, mark: Mark) -> Truth {
        let address = |end| match end {
            End::Source => packet.source,
            End::Destination => packet.destination,
        };
        match self {
            Self::Address(end, net) => Truth::of(address(*end).and_then(|address| net.has(address))),
            Self::Protocol(number) => Truth::of(packet.protocol.map(|protocol| protocol == *number)),
            Self::InterfaceIn(name) => interface(packet.interface_in, name),
            Self::InterfaceOut(name) => interface(packet.interface_out, name),
            Self::Fragment => Truth::of(packet.fragment),
            Self::Ports(ends, ranges) => {
                let has = |port: Option<u16>| {
                    Truth::of(port.map(|port| ranges.iter().any(|range| range.contains(&port))))
                };
                match ends {
                    Ends::One(End::Source) => has(packet.source_port),
                    Ends::One(End::Destination) => has(packet.destination_port),
                    Ends::Either => has(packet.source_port).max(has(packet.destination_port)),
                }
            }
            Self::TcpFlags { mask, set } => Truth::of(packet.tcp_flags.map(|flags| flags & mask == *set)),
            Self::Icmp { kind, codes } => {
                Truth::of(packet.icmp.map(|(found, code)| found == *kind && codes.contains(&code)))
            }
            Self::Mark { value, mask } => mark.is(*value, *mask),
            Self::State(wanted) => state_of(packet.connection, *wanted),
            Self::AddressType(end, types) => {
                Truth::of(address(*end).and_then(|address| types.have(packet.family, address)))
            }
            Self::Length(range) => Truth::of(packet.length.map(|length| range.contains(&length))),
            Self::Ttl(range) => Truth::of(packet.ttl.map(|ttl| range.contains(&ttl))),
            Self::Range(end, first, last) => Truth::of(
                address(*end)
                    .filter(|address| {
                        address.is_ipv4() == first.is_ipv4() && first.is_ipv4() == last.is_ipv4()
                    })
                    .map(|address| (*first..=*last).contains(&address)),
            ),
            Self::Any => Truth::Yes,
            // The others are asked by `Match::holds`.
            Self::Unknown { .. } | Self::Header | Self::Connection { .. } => Truth::Unknown,
        }
    }
}

/// ifname_compare_aligned() (include/linux/netfilter/x_tables.h): a name that ends in `+` is the beginning of one.
fn interface(interface: Interface<'_>, wanted: &str) -> Truth {
    Truth::of(interface.name().map(|name| match wanted.strip_suffix('+') {
        Some(beginning) => name.starts_with(beginning),
        None => name == wanted,
    }))
}

/// conntrack_mt() (net/netfilter/xt_conntrack.c).
fn state_of(connection: Option<Connection>, wanted: u8) -> Truth {
    let asks = |bit: u8| wanted & bit != 0;
    match connection {
        None => Truth::Unknown,
        Some(Connection::Untracked) => Truth::of(Some(asks(state::UNTRACKED))),
        Some(Connection::Invalid) => Truth::of(Some(asks(state::INVALID))),
        Some(Connection::None) => match (asks(state::UNTRACKED), asks(state::INVALID)) {
            (true, true) => Truth::Yes,
            (false, false) => Truth::No,
            _ => Truth::Unknown,
        },
        Some(Connection::Tracked { state, status, .. }) => {
            let bit = match state {
                State::New => state::NEW,
                State::Established => state::ESTABLISHED,
                State::Related => state::RELATED,
            };
            if asks(bit) {
                return Truth::Yes;
            }
            let nat = [(state::SNAT, status::SRC_NAT), (state::DNAT, status::DST_NAT)];
            let bits = nat.into_iter().filter(|&(asked, _)| asks(asked)).fold(0, |bits, (_, bit)| bits | bit);
            if bits == 0 { Truth::No } else { Truth::of(status.map(|status| status & bits != 0)) }
        }
    }
}

impl Net {
    /// `ADDRESS`, `ADDRESS/BITS` or `ADDRESS/MASK`. `None` if it isn't one, or has bits outside of its mask: iptables never
    /// makes those.
    pub(super) fn parse(word: &str) -> Option<Self> {
        let (address, mask) =
            word.split_once('/').map_or((word, None), |(address, mask)| (address, Some(mask)));
        let (is_ipv4, address) = number(address.parse().ok()?);
        let width = if is_ipv4 { 32 } else { 128 };
        let ones = if is_ipv4 { u128::from(u32::MAX) } else { u128::MAX };
        let mask = match mask {
            None => ones,
            Some(mask) => match mask.parse::<u32>() {
                Ok(bits) if bits <= width => ones & !ones.checked_shr(bits).unwrap_or(0),
                Ok(_) => return None,
                Err(_) => Some(number(mask.parse().ok()?)).filter(|mask| mask.0 == is_ipv4)?.1,
            },
        };
        (address & !mask == 0).then_some(Self { is_ipv4, address, mask })
    }

    /// `None` if the address is of the other family.
    fn has(self, address: IpAddr) -> Option<bool> {
        let (is_ipv4, address) = number(address);
        (is_ipv4 == self.is_ipv4).then_some(address & self.mask == self.address)
    }
}

/// Whether it is an IPv4 address, and its number.
fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (true, u32::from(address).into()),
        IpAddr::V6(address) => (false, address.into()),
    }
}

impl AddressTypes {
    /// Multicast and the broadcast address of all networks are known by themselves; others depend on routes
    /// (__inet_dev_addr_type(), net/ipv4/fib_frontend.c; match_type6(), net/netfilter/xt_addrtype.c).
    fn have(self, family: Family, address: IpAddr) -> Option<bool> {
        let only_multicast = self.multicast && !self.broadcast && !self.others;
        match address {
            IpAddr::V4(address) if family == Family::Ipv4 => {
                if address.is_multicast() {
                    Some(self.multicast)
                } else if address == Ipv4Addr::BROADCAST || address == Ipv4Addr::UNSPECIFIED {
                    Some(self.broadcast)
                } else {
                    only_multicast.then_some(false)
                }
            }
            // For IPv6 several types must all be true.
            IpAddr::V6(address) if family == Family::Ipv6 => only_multicast.then_some(address.is_multicast()),
            _ => None,
        }
    }
}
