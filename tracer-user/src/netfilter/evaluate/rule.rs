//! A rule of iptables out of its text, as `iptables-save` prints it.

use super::mark::Write;
use super::matches::{AddressTypes, End, Ends, Held, Match, Net, Test, state};
use super::packet::Packet;
use super::truth::Truth;
use super::{Verdict, mark::Mark};
use crate::event::conntrack::Direction;
use crate::event::packet::tcp_flag;
use crate::netfilter::marks::value_and_mask;
use crate::netfilter::text;
use std::ops::RangeInclusive;

/// More tests than that are not looked at: the rule is not understood then.
const MAX_MATCHES: usize = 64;
/// Ports and ranges of one test; the kernel's multiport has 15 (XT_MULTI_PORTS).
const MAX_PORTS: usize = 15;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    pub(super) matches: Vec<Match<'a>>,
    /// What follows `-j`; `None` without.
    pub(super) target: Option<&'a str>,
    pub(super) action: Action<'a>,
}

/// What a rule does with a packet that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action<'a> {
    /// It may drop it, or always does.
    pub(super) drops: Option<Verdict<'a>>,
    /// How it goes on if it isn't dropped.
    pub(super) next: Next<'a>,
    pub(super) writes: Writes,
}

/// Where a packet goes after a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// It is dropped.
    Nowhere,
    /// To the next rule.
    On,
    /// Out of the table.
    Accept,
    /// Back to the chain that jumped here.
    Return,
    Jump(&'a str),
    Goto(&'a str),
    /// Any of on, accept and return.
    Anywhere,
}

/// What a target changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Writes {
    pub(super) mark: Write,
    pub(super) ttl: bool,
    pub(super) length: bool,
    pub(super) connection: bool,
    pub(super) addresses: bool,
}

impl Writes {
    pub(super) const NOTHING: Self =
        Self { mark: Write::NOTHING, ttl: false, length: false, connection: false, addresses: false };
    const ANYTHING: Self =
        Self { mark: Write::ANYTHING, ttl: true, length: true, connection: true, addresses: true };
}

/// What a rule says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) truth: Truth,
    /// One of its matches may drop the packet.
    pub(super) may_drop: bool,
    /// The packet's mark, if it matches.
    pub(super) taken: Mark,
    /// The packet's mark, if it doesn't.
    pub(super) passed: Mark,
}

impl<'a> Rule<'a> {
    /// Reads a rule from `-A` on. One that is not understood matches perhaps and may do anything.
    pub(super) fn parse(text: &'a str) -> Self {
        let words: Vec<&str> = text::words(text).collect();
        let cut_off = words.len() >= text::MAX_WORDS;
        let rest = words.get(2..).unwrap_or_default();
        let parsed = Parser { rest, module: "", has_state: false, matches: Vec::new() }.rule();
        parsed.filter(|_| !cut_off && words.first() == Some(&"-A")).unwrap_or_else(|| Self {
            matches: vec![Match { name: "", test: Test::Unknown { may_drop: true }, inverted: false }],
            target: None,
            action: Action::unknown(None),
        })
    }

    /// The first match that may hold or not, or may drop the packet.
    pub(super) fn doubt(&self, packet: &Packet<'_>, mark: Mark) -> Option<&'a str> {
        let is_doubtful = |one: &&Match<'_>| {
            let Held { truth, may_drop } = one.holds(packet, mark);
            may_drop || truth == Truth::Unknown
        };
        self.matches.iter().find(is_doubtful).map(|one| one.name)
    }

    /// Asks its matches in their order, as the kernel does: after one that doesn't hold none is asked.
    pub(super) fn ask(&self, packet: &Packet<'_>, mark: Mark) -> Asked {
        let mut asked = Asked { truth: Truth::Yes, may_drop: false, taken: mark, passed: mark };
        let mut doubts = 0;
        for one in &self.matches {
            let Held { truth, may_drop } = one.holds(packet, mark);
            asked.may_drop |= may_drop;
            asked.truth = asked.truth.min(truth);
            match truth {
                Truth::No => return Asked { truth, passed: mark, ..asked },
                Truth::Yes => {}
                Truth::Unknown => {
                    doubts += 1;
                    if let Test::Mark { value, mask } = one.test {
                        asked.taken = asked.taken.given(value, mask, !one.inverted);
                        asked.passed = mark.given(value, mask, one.inverted);
                    }
                }
            }
        }
        // Only a single doubt tells why it didn't match.
        if doubts != 1 {
            asked.passed = mark;
        }
        asked
    }
}

impl<'a> Action<'a> {
    const fn to(next: Next<'a>) -> Self {
        Self { drops: None, next, writes: Writes::NOTHING }
    }

    const fn dropping(verdict: Verdict<'a>, next: Next<'a>) -> Self {
        Self { drops: Some(verdict), next, writes: Writes::NOTHING }
    }

    const fn writing(writes: Writes) -> Self {
        Self { drops: None, next: Next::On, writes }
    }

    /// Of a target that isn't known.
    pub(super) const fn unknown(name: Option<&'a str>) -> Self {
        Self { drops: Some(Verdict::Other(name)), next: Next::Anywhere, writes: Writes::ANYTHING }
    }

    /// Of `-j NAME OPTIONS`. Failures for want of memory or by a broken header are left out: most targets could drop then.
    fn of(name: &'a str, options: &[&str]) -> Self {
        let marks = |mark| Writes { mark, ..Writes::NOTHING };
        match name {
            "DROP" | "ACCEPT" | "RETURN" | "QUEUE" if !options.is_empty() => Self::unknown(None),
            "DROP" => Self::dropping(Verdict::Drop, Next::Nowhere),
            "ACCEPT" => Self::to(Next::Accept),
            "RETURN" => Self::to(Next::Return),
            "REJECT" => Self::dropping(Verdict::Reject, Next::Nowhere),
            // Without a listener, or by it.
            "QUEUE" | "NFQUEUE" => Self::dropping(Verdict::Queue, Next::Accept),
            "SNAT" | "DNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => {
                Self::dropping(Verdict::NatFailed, Next::Accept)
            }
            // Without a socket (net/netfilter/xt_TPROXY.c).
            "TPROXY" => {
                let mark = operand(options, "--tproxy-mark")
                    .map_or(Write::ANYTHING, |(value, mask)| Write::xmark(value, mask));
                Self { writes: marks(mark), ..Self::dropping(Verdict::Other(Some(name)), Next::Accept) }
            }
            "SYNPROXY" | "CLUSTERIP" => Self::dropping(Verdict::Other(Some(name)), Next::On),
            "DNPT" | "SNPT" => Self {
                writes: Writes { addresses: true, ..Writes::NOTHING },
                ..Self::dropping(Verdict::Other(Some(name)), Next::On)
            },
            "MARK" => Self::writing(marks(mark_write(options).unwrap_or(Write::ANYTHING))),
            "CONNMARK" => Self::writing(marks(restored_mark(options))),
            "HMARK" => Self::writing(marks(Write::ANYTHING)),
            "SET" if options.contains(&"--map-set") => Self::writing(marks(Write::ANYTHING)),
            "TTL" | "HL" => Self::writing(Writes { ttl: true, ..Writes::NOTHING }),
            "CT" | "NOTRACK" => Self::writing(Writes { connection: true, ..Writes::NOTHING }),
            "TCPMSS" => Self::writing(Writes { length: true, ..Writes::NOTHING }),
            "LOG" | "NFLOG" | "ULOG" | "TRACE" | "TCPOPTSTRIP" | "CLASSIFY" | "DSCP" | "TOS" | "ECN"
            | "SET" | "AUDIT" | "CHECKSUM" | "CONNSECMARK" | "SECMARK" | "IDLETIMER" | "LED" | "RATEEST"
            | "TEE" => Self::to(Next::On),
            _ if options.is_empty() => Self::to(Next::Jump(name)),
            _ => Self::unknown(Some(name)),
        }
    }
}

/// Whether iptables has a target of that name: no chain can be told from it.
pub(super) fn is_target(name: &str) -> bool {
    Action::of(name, &[]).next != Next::Jump(name)
}

/// The value and mask that follow an option.
fn operand(options: &[&str], name: &str) -> Option<(u32, u32)> {
    let at = options.iter().position(|&word| word == name)?;
    value_and_mask(options.get(at + 1)?)
}

/// libxt_MARK.c (iptables) tells how its options become `(mark & keep) ^ flip`.
fn mark_write(options: &[&str]) -> Option<Write> {
    let &[name, value] = options else { return None };
    let (value, mask) = value_and_mask(value)?;
    match name {
        "--set-xmark" => Some(Write::xmark(value, mask)),
        "--set-mark" => Some(Write::xmark(value, value | mask)),
        "--or-mark" => Some(Write::xmark(value, value)),
        "--and-mark" => Some(Write::xmark(0, !value)),
        "--xor-mark" => Some(Write::xmark(value, 0)),
        _ => None,
    }
}

/// `--restore-mark`: `(mark & !nfmask) ^ (connection's mark & ctmask)` (net/netfilter/xt_connmark.c).
fn restored_mark(options: &[&str]) -> Write {
    match options {
        ["--restore-mark", "--nfmask", to, "--ctmask", from] => {
            let mask = |word: &str| value_and_mask(word).map_or(u32::MAX, |(mask, _)| mask);
            Write::lose(mask(to) | mask(from))
        }
        // Others write the connection's mark only.
        ["--save-mark" | "--set-xmark" | "--set-mark", ..] if !options.contains(&"--restore-mark") => {
            Write::NOTHING
        }
        _ => Write::ANYTHING,
    }
}

/// Modules that are not asked, but don't drop a packet either.
const OPAQUE: &[&str] = &[
    "bpf",
    "cgroup",
    "cluster",
    "connbytes",
    "connlabel",
    "connlimit",
    "connmark",
    "cpu",
    "devgroup",
    "dscp",
    "ecn",
    "helper",
    "ipvs",
    "limit",
    "mac",
    "nfacct",
    "osf",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "quota",
    "rateest",
    "realm",
    "recent",
    "rpfilter",
    "set",
    "socket",
    "statistic",
    "string",
    "time",
    "tos",
    "u32",
];

/// Reads the words of a rule one by one.
struct Parser<'w, 'a> {
    rest: &'w [&'a str],
    /// The module that options belong to.
    module: &'a str,
    /// `--ctstate` was there.
    has_state: bool,
    matches: Vec<Match<'a>>,
}

impl<'a> Parser<'_, 'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    /// `None` if the rule is not understood.
    fn rule(mut self) -> Option<Rule<'a>> {
        let mut inverted = false;
        while let Some(word) = self.next() {
            match word {
                "!" if !inverted => {
                    inverted = true;
                    continue;
                }
                "-j" if !inverted => {
                    let name = self.next()?;
                    let action = Action::of(name, self.rest);
                    return Some(Rule { matches: self.matches, target: Some(name), action });
                }
                "-g" if !inverted => {
                    let chain = self.next()?;
                    let is_last = self.rest.is_empty();
                    let action = Action::to(Next::Goto(chain));
                    return is_last.then_some(Rule { matches: self.matches, target: None, action });
                }
                "-m" if !inverted => self.module()?,
                "-s" | "-d" | "-p" | "-i" | "-o" | "-f" if self.module.is_empty() => {
                    self.plain(word, inverted)?;
                }
                _ if word.starts_with("--") => self.option(word, inverted)?,
                _ => return None,
            }
            inverted = false;
            if self.matches.len() > MAX_MATCHES {
                return None;
            }
        }
        let action = Action::to(Next::On);
        (!inverted).then_some(Rule { matches: self.matches, target: None, action })
    }

    fn push(&mut self, name: &'a str, test: Option<Test<'a>>, inverted: bool) {
        // What can't be read may be anything.
        self.matches.push(Match { name, test: test.unwrap_or(Test::Unknown { may_drop: false }), inverted });
    }

    /// What needs no module.
    fn plain(&mut self, word: &'a str, inverted: bool) -> Option<()> {
        if word == "-f" {
            self.push(word, Some(Test::Fragment), inverted);
            return Some(());
        }
        let value = self.next()?;
        let test = match word {
            "-s" => Net::parse(value).map(|net| Test::Address(End::Source, net)),
            "-d" => Net::parse(value).map(|net| Test::Address(End::Destination, net)),
            "-i" => Some(Test::InterfaceIn(value)),
            "-o" => Some(Test::InterfaceOut(value)),
            _ => match protocol_number(value) {
                // Any.
                Some(0) if !inverted => return Some(()),
                Some(0) => None,
                number => number.map(Test::Protocol),
            },
        };
        self.push(word, test, inverted);
        Some(())
    }

    fn module(&mut self) -> Option<()> {
        let name = self.next()?;
        let is_name = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-');
        if !is_name || name.starts_with('-') {
            return None;
        }
        self.module = name;
        self.has_state = false;
        match name {
            "tcp" | "udp" | "udplite" | "sctp" | "dccp" | "multiport" | "icmp" | "icmp6" | "icmpv6" => {
                self.push(name, Some(Test::Header), false);
            }
            "mark" | "conntrack" | "state" | "addrtype" | "length" | "ttl" | "hl" | "iprange" | "comment" => {
            }
            _ => self.push(name, Some(Test::Unknown { may_drop: !OPAQUE.contains(&name) }), false),
        }
        Some(())
    }

    /// An option of a module, with what follows it.
    fn option(&mut self, name: &'a str, inverted: bool) -> Option<()> {
        let test = match (self.module, name) {
            ("comment", "--comment") => {
                self.next()?;
                return Some(());
            }
            ("tcp" | "udp" | "udplite" | "sctp" | "dccp", "--sport" | "--dport") => {
                let end = if name == "--sport" { End::Source } else { End::Destination };
                ports(self.next()?).map(|range| Test::Ports(Ends::One(end), vec![range]))
            }
            ("multiport", "--sports" | "--dports" | "--ports") => {
                let ends = match name {
                    "--sports" => Ends::One(End::Source),
                    "--dports" => Ends::One(End::Destination),
                    _ => Ends::Either,
                };
                let ranges: Option<Vec<_>> = self.next()?.split(',').take(MAX_PORTS + 1).map(ports).collect();
                ranges.filter(|ranges| ranges.len() <= MAX_PORTS).map(|ranges| Test::Ports(ends, ranges))
            }
            ("tcp", "--tcp-flags") => {
                let (mask, set) = (self.next()?, self.next()?);
                tcp_flags(mask).zip(tcp_flags(set)).map(|(mask, set)| Test::TcpFlags { mask, set })
            }
            ("tcp", "--syn") => Some(Test::TcpFlags {
                mask: tcp_flag::FIN | tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK,
                set: tcp_flag::SYN,
            }),
            ("icmp", "--icmp-type") | ("icmp6" | "icmpv6", "--icmpv6-type") => {
                let value = self.next()?;
                if value == "any" && name == "--icmp-type" {
                    // Inverted, none (icmp_type_code_match(), net/netfilter/xt_tcpudp.c).
                    self.push(name, Some(Test::Any), inverted);
                    return Some(());
                }
                icmp_type(value, self.module == "icmp").map(|(kind, codes)| Test::Icmp { kind, codes })
            }
            ("mark", "--mark") => {
                value_and_mask(self.next()?).map(|(value, mask)| Test::Mark { value, mask })
            }
            ("conntrack", "--ctstate") | ("state", "--state") => {
                self.has_state = true;
                states(self.next()?).map(Test::State)
            }
            ("conntrack", _) => {
                let direction = match (name, self.arguments()) {
                    ("--ctdir", ["ORIGINAL"]) => Some(Direction::Original),
                    ("--ctdir", ["REPLY"]) => Some(Direction::Reply),
                    _ => None,
                };
                Some(Test::Connection { direction, with_state: self.has_state })
            }
            ("addrtype", "--src-type" | "--dst-type") => {
                let end = if name == "--src-type" { End::Source } else { End::Destination };
                address_types(self.next()?).map(|types| Test::AddressType(end, types))
            }
            // It changes nothing where the type is known by the address alone.
            ("addrtype", "--limit-iface-in" | "--limit-iface-out") if !inverted => return Some(()),
            ("length", "--length") => range(self.next()?).map(Test::Length),
            ("ttl", "--ttl-eq" | "--ttl-lt" | "--ttl-gt") | ("hl", "--hl-eq" | "--hl-lt" | "--hl-gt") => {
                let limit: Option<u8> = self.next()?.parse().ok();
                let range = |limit: u8| match name.get(name.len().saturating_sub(2)..) {
                    Some("eq") => Some(limit..=limit),
                    // Nothing is less than nothing.
                    Some("lt") => limit.checked_sub(1).map(|last| 0..=last),
                    _ => limit.checked_add(1).map(|first| first..=u8::MAX),
                };
                limit.and_then(range).map(Test::Ttl)
            }
            ("iprange", "--src-range" | "--dst-range") => {
                let end = if name == "--src-range" { End::Source } else { End::Destination };
                self.next()?
                    .split_once('-')
                    .and_then(|(first, last)| Some(Test::Range(end, first.parse().ok()?, last.parse().ok()?)))
            }
            ("", _) => return None,
            _ => {
                self.arguments();
                Some(Test::Unknown { may_drop: name == "--tcp-option" })
            }
        };
        self.push(name, test, inverted);
        Some(())
    }

    /// The words up to what looks like the next option.
    fn arguments(&mut self) -> &[&'a str] {
        let is_option = |word: &&str| matches!(*word, "!" | "-m" | "-j" | "-g") || word.starts_with("--");
        let end = self.rest.iter().position(is_option).unwrap_or(self.rest.len());
        let (arguments, rest) = self.rest.split_at(end);
        self.rest = rest;
        arguments
    }
}

/// A protocol's number: by the names that iptables and /etc/protocols have for the common ones. 0 for any.
fn protocol_number(word: &str) -> Option<u8> {
    Some(match word {
        "all" => 0,
        "icmp" => 1,
        "igmp" => 2,
        "ipencap" | "ipip" => 4,
        "tcp" => 6,
        "udp" => 17,
        "dccp" => 33,
        "ipv6" => 41,
        "gre" => 47,
        "esp" | "ipv6-crypt" => 50,
        "ah" | "ipv6-auth" => 51,
        "ipv6-icmp" | "icmpv6" | "icmp6" => 58,
        "ipv6-nonxt" => 59,
        "ospf" | "ospfigp" => 89,
        "pim" => 103,
        "ipcomp" => 108,
        "vrrp" | "carp" => 112,
        "l2tp" => 115,
        "sctp" => 132,
        "ipv6-mh" | "mobility-header" | "mh" => 135,
        "udplite" => 136,
        number => return number.parse().ok(),
    })
}

/// `80` or `80:90`.
fn range<T: std::str::FromStr + Copy>(word: &str) -> Option<RangeInclusive<T>> {
    let (first, last) = word.split_once(':').unwrap_or((word, word));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn ports(word: &str) -> Option<RangeInclusive<u16>> {
    range(word)
}

/// `SYN,ACK`, `ALL` or `NONE`; for iptables these are the six flags of RFC 793.
fn tcp_flags(word: &str) -> Option<u8> {
    word.split(',').try_fold(0, |flags, name| {
        Some(
            flags
                | match name {
                    "FIN" => tcp_flag::FIN,
                    "SYN" => tcp_flag::SYN,
                    "RST" => tcp_flag::RST,
                    "PSH" => tcp_flag::PSH,
                    "ACK" => tcp_flag::ACK,
                    "URG" => tcp_flag::URG,
                    "ALL" => 0x3f,
                    "NONE" => 0,
                    _ => return None,
                },
        )
    })
}

/// `8`, `3/3`, or one of the common names (extensions/libxt_icmp.h of iptables). The kernel takes 255 of ICMP for any.
fn icmp_type(word: &str, is_icmp: bool) -> Option<(u8, RangeInclusive<u8>)> {
    const ICMP: &[(&str, &str)] = &[
        ("echo-reply", "0"),
        ("destination-unreachable", "3"),
        ("network-unreachable", "3/0"),
        ("host-unreachable", "3/1"),
        ("protocol-unreachable", "3/2"),
        ("port-unreachable", "3/3"),
        ("fragmentation-needed", "3/4"),
        ("source-quench", "4"),
        ("redirect", "5"),
        ("echo-request", "8"),
        ("router-advertisement", "9"),
        ("router-solicitation", "10"),
        ("time-exceeded", "11"),
        ("parameter-problem", "12"),
        ("timestamp-request", "13"),
        ("timestamp-reply", "14"),
    ];
    const ICMPV6: &[(&str, &str)] = &[
        ("destination-unreachable", "1"),
        ("no-route", "1/0"),
        ("communication-prohibited", "1/1"),
        ("address-unreachable", "1/3"),
        ("port-unreachable", "1/4"),
        ("packet-too-big", "2"),
        ("time-exceeded", "3"),
        ("parameter-problem", "4"),
        ("echo-request", "128"),
        ("echo-reply", "129"),
        ("router-solicitation", "133"),
        ("router-advertisement", "134"),
        ("neighbour-solicitation", "135"),
        ("neighbour-advertisement", "136"),
        ("redirect", "137"),
    ];
    let names = if is_icmp { ICMP } else { ICMPV6 };
    let word = names.iter().find(|(name, _)| *name == word).map_or(word, |(_, numbers)| numbers);
    let (kind, codes) = match word.split_once('/') {
        Some((kind, code)) => {
            let code = code.parse().ok()?;
            (kind, code..=code)
        }
        None => (word, 0..=u8::MAX),
    };
    let kind = kind.parse().ok()?;
    (kind != u8::MAX).then_some((kind, codes))
}

/// `NEW,ESTABLISHED`
fn states(word: &str) -> Option<u8> {
    word.split(',').try_fold(0, |states, name| {
        Some(
            states
                | match name {
                    "NEW" => state::NEW,
                    "ESTABLISHED" => state::ESTABLISHED,
                    "RELATED" => state::RELATED,
                    "INVALID" => state::INVALID,
                    "UNTRACKED" => state::UNTRACKED,
                    "SNAT" => state::SNAT,
                    "DNAT" => state::DNAT,
                    _ => return None,
                },
        )
    })
}

/// `LOCAL,MULTICAST`
fn address_types(word: &str) -> Option<AddressTypes> {
    word.split(',').try_fold(AddressTypes::default(), |types, name| {
        Some(match name {
            "MULTICAST" => AddressTypes { multicast: true, ..types },
            "BROADCAST" => AddressTypes { broadcast: true, ..types },
            "UNSPEC" | "UNICAST" | "LOCAL" | "ANYCAST" | "BLACKHOLE" | "UNREACHABLE" | "PROHIBIT"
            | "THROW" | "NAT" | "XRESOLVE" => AddressTypes { others: true, ..types },
            _ => return None,
        })
    })
}
