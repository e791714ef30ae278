//! A second, tiny evaluator to compare with: of rules as data, for packets that are fully known.

use super::*;
use crate::netfilter::model::{Backend, Family};
use std::cell::Cell;
use std::fmt::Write;
use std::net::IpAddr;

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 33).unwrap() % end
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

const CHAINS: [&str; 5] = ["INPUT", "a", "b", "c", "d"];

#[derive(Clone, Copy)]
enum Fact {
    /// The last bits of the source: 10.0.0.0/29.
    Source(u32),
    Port(u32),
    Udp,
    New,
    Mark(u32, u32),
    Input(u32),
    Ttl(u32),
}

#[derive(Clone, Copy)]
enum Does {
    Drop,
    Reject,
    Accept,
    Return,
    Log,
    Mark(u32, u32),
    Jump(usize),
    Goto(usize),
}

struct Entry {
    facts: Vec<(Fact, bool)>,
    does: Does,
}

struct Model {
    chains: Vec<Vec<Entry>>,
    drops: bool,
}

struct Known {
    source: u32,
    port: u32,
    udp: bool,
    new: bool,
    mark: u32,
    input: u32,
    ttl: u32,
}

impl Model {
    fn random(random: &mut Random, marks: bool) -> Self {
        let chains = (0..CHAINS.len())
            .map(|chain| (0..random.below(6)).map(|_| Entry::random(random, chain, marks)).collect());
        Self { chains: chains.collect(), drops: random.one_in(2) }
    }

    fn listing(&self) -> String {
        let mut text = format!("*filter\n:INPUT {} [0:0]\n", if self.drops { "DROP" } else { "ACCEPT" });
        for chain in &CHAINS[1..] {
            writeln!(text, ":{chain} - [0:0]").unwrap();
        }
        for (chain, rules) in CHAINS.iter().zip(&self.chains) {
            for rule in rules {
                writeln!(text, "-A {chain}{}", rule.text()).unwrap();
            }
        }
        text + "COMMIT\n"
    }

    /// `Some(None)` for accepted, `Some(Some(..))` for dropped by that rule; `None`: came to the end.
    fn run(&self, chain: usize, packet: &mut Known) -> Option<Option<(usize, usize)>> {
        for (index, rule) in self.chains[chain].iter().enumerate() {
            if !rule.facts.iter().all(|(fact, inverted)| fact.holds(packet) != *inverted) {
                continue;
            }
            match rule.does {
                Does::Drop | Does::Reject => return Some(Some((chain, index + 1))),
                Does::Accept => return Some(None),
                Does::Return => return None,
                Does::Log => {}
                Does::Mark(value, mask) => packet.mark = packet.mark & !mask ^ value,
                Does::Goto(to) => return self.run(to, packet),
                Does::Jump(to) => {
                    if let Some(end) = self.run(to, packet) {
                        return Some(end);
                    }
                }
            }
        }
        None
    }
}

impl Entry {
    fn random(random: &mut Random, chain: usize, marks: bool) -> Self {
        let fact = |random: &mut Random| match random.below(7) {
            0 => Fact::Source(random.below(4)),
            1 => Fact::Port(random.below(3)),
            2 => Fact::Udp,
            3 => Fact::New,
            4 => Fact::Mark(random.below(4), 1 + random.below(3)),
            5 => Fact::Input(random.below(3)),
            _ => Fact::Ttl(random.below(3)),
        };
        let facts = (0..random.below(3)).map(|_| (fact(random), random.one_in(3))).collect();
        let after = u32::try_from(CHAINS.len() - chain - 1).unwrap();
        let next = |random: &mut Random| chain + 1 + usize::try_from(random.below(after)).unwrap();
        let does = match random.below(9) {
            0 => Does::Drop,
            1 => Does::Reject,
            2 => Does::Accept,
            3 => Does::Return,
            4 | 5 if after > 0 => Does::Jump(next(random)),
            6 if after > 0 => Does::Goto(next(random)),
            7 if marks => Does::Mark(random.below(4), random.below(4)),
            _ => Does::Log,
        };
        Self { facts, does }
    }

    fn text(&self) -> String {
        // What needs no module comes first.
        let (plain, rest): (Vec<_>, Vec<_>) = self
            .facts
            .iter()
            .partition(|(fact, _)| matches!(fact, Fact::Source(_) | Fact::Input(_) | Fact::Udp));
        let mut text = String::new();
        for (fact, inverted) in plain.into_iter().chain(rest) {
            let not = if inverted { "! " } else { "" };
            text += &match fact {
                Fact::Source(last) => format!(" {not}-s 10.0.0.{}/31", last & !1),
                Fact::Port(port) => format!(" -m multiport {not}--dports {port}"),
                Fact::Udp => format!(" {not}-p udp"),
                Fact::New => format!(" -m conntrack {not}--ctstate NEW"),
                Fact::Mark(value, mask) => format!(" -m mark {not}--mark {value:#x}/{mask:#x}"),
                Fact::Input(device) => format!(" {not}-i eth{device}"),
                Fact::Ttl(ttl) => format!(" -m ttl {not}--ttl-eq {ttl}"),
            };
        }
        text + &match self.does {
            Does::Drop => " -j DROP".to_owned(),
            Does::Reject => " -j REJECT --reject-with icmp-port-unreachable".to_owned(),
            Does::Accept => " -j ACCEPT".to_owned(),
            Does::Return => " -j RETURN".to_owned(),
            Does::Log => " -j LOG".to_owned(),
            Does::Mark(value, mask) => format!(" -j MARK --set-xmark {value:#x}/{mask:#x}"),
            Does::Jump(chain) => format!(" -j {}", CHAINS[chain]),
            Does::Goto(chain) => format!(" -g {}", CHAINS[chain]),
        }
    }
}

impl Fact {
    fn holds(self, packet: &Known) -> bool {
        match self {
            Self::Source(last) => packet.source & !1 == last & !1,
            Self::Port(port) => packet.port == port,
            Self::Udp => packet.udp,
            Self::New => packet.new,
            Self::Mark(value, mask) => packet.mark & mask == value,
            Self::Input(device) => packet.input == device,
            Self::Ttl(ttl) => packet.ttl == ttl,
        }
    }
}

impl Known {
    fn random(random: &mut Random) -> Self {
        Self {
            source: random.below(4),
            port: random.below(3),
            udp: random.one_in(2),
            new: random.one_in(2),
            mark: random.below(8),
            input: random.below(3),
            ttl: random.below(3),
        }
    }

    fn packet(&self) -> Packet<'static> {
        let state = if self.new { State::New } else { State::Established };
        Packet {
            source: Some(IpAddr::from([10, 0, 0, u8::try_from(self.source).unwrap()])),
            destination: Some(IpAddr::from([10, 0, 0, 99])),
            protocol: Some(if self.udp { 17 } else { 6 }),
            source_port: Some(1),
            destination_port: Some(u16::try_from(self.port).unwrap()),
            tcp_flags: (!self.udp).then_some(2),
            mark: Some(self.mark),
            interface_in: Interface::Named(["eth0", "eth1", "eth2"][usize::try_from(self.input).unwrap()]),
            interface_out: Interface::None,
            connection: Some(Connection::Tracked { state, direction: None, status: Some(0) }),
            fragment: Some(false),
            ttl: Some(u8::try_from(self.ttl).unwrap()),
            ..Packet::unknown(Family::Ipv4)
        }
    }
}

impl Model {
    /// As [`path`] tells it: the rules that match and the ends of chains, and whether the packet is accepted.
    fn path(&self, packet: &mut Known) -> (Vec<String>, bool) {
        let mut met = Vec::new();
        let end = self.follow(0, packet, &mut met);
        if end.is_none() {
            met.push(format!("INPUT:policy:{}", self.chains[0].len() + 1));
        }
        (met, end.unwrap_or(!self.drops))
    }

    /// Whether it is accepted; `None`: came to the end.
    fn follow(&self, chain: usize, packet: &mut Known, met: &mut Vec<String>) -> Option<bool> {
        for (index, rule) in self.chains[chain].iter().enumerate() {
            if !rule.facts.iter().all(|(fact, inverted)| fact.holds(packet) != *inverted) {
                continue;
            }
            met.push(format!("{}:rule:{}", CHAINS[chain], index + 1));
            match rule.does {
                Does::Drop | Does::Reject => return Some(false),
                Does::Accept => return Some(true),
                Does::Return => return None,
                Does::Log => {}
                Does::Mark(value, mask) => packet.mark = packet.mark & !mask ^ value,
                Does::Goto(to) => return self.follow(to, packet, met),
                Does::Jump(to) => {
                    if let Some(end) = self.follow(to, packet, met) {
                        return Some(end);
                    }
                }
            }
        }
        if chain > 0 {
            met.push(format!("{}:return:{}", CHAINS[chain], self.chains[chain].len() + 1));
        }
        None
    }
}

/// Runs both on a random rule set; gives what the model says and what was evaluated, of the packet with some facts hidden.
fn compare(
    random: &mut Random,
    marks: bool,
    hide: bool,
    check: impl Fn(Option<(&str, Option<u32>)>, &Evaluation<'_>, &str),
) {
    let model = Model::random(random, marks);
    let listing = model.listing();
    let tables = [TableText { table: "filter", chain: "INPUT", listing: &listing }];
    for _ in 0..8 {
        let mut known = Known::random(random);
        let culprit = match model.run(0, &mut known) {
            Some(end) => end.map(|(chain, rule)| (CHAINS[chain], Some(u32::try_from(rule).unwrap()))),
            None => model.drops.then_some(("INPUT", None)),
        };
        // With the mark that it has at the end.
        let mut packet = known.packet();
        if hide {
            match random.below(5) {
                0 => packet.mark = None,
                1 => packet.source = None,
                2 => packet.connection = None,
                3 => packet.interface_in = Interface::Unknown,
                _ => packet.ttl = None,
            }
        }
        check(culprit, &evaluate(&packet, &tables, None), &listing);
    }
}

#[test]
fn a_known_packet_has_the_models_culprit() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let dropped = Cell::new(0);
    for _ in 0..1000 {
        compare(&mut random, false, false, |culprit, found, listing| {
            assert!(found.is_complete);
            let found: Vec<_> = found.culprits.iter().map(|it| (it.chain, it.rule)).collect();
            assert_eq!(found, culprit.into_iter().collect::<Vec<_>>(), "{listing}");
            dropped.set(dropped.get() + found.len());
        });
    }
    // Both kinds come up.
    assert!((2000..6000).contains(&dropped.get()), "{}", dropped.get());
}

#[test]
fn the_true_culprit_is_among_those_of_a_packet_that_is_not_fully_known() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..1500 {
        for hide in [false, true] {
            compare(&mut random, true, hide, |culprit, found, listing| {
                let all: Vec<_> = found.culprits.iter().map(|it| (it.chain, it.rule)).collect();
                let is_there = culprit.is_none_or(|culprit| all.contains(&culprit));
                assert!(is_there && found.is_complete, "{culprit:?} of {all:?} in\n{listing}");
            });
        }
    }
}

/// As the model words them.
fn names(path: &Path) -> Vec<String> {
    let name = |met: &crate::trace::model::RuleMet| {
        let what = serde_json::to_value(met.kind).unwrap();
        format!("{}:{}:{}", met.chain, what.as_str().unwrap(), met.rule.unwrap())
    };
    path.met.iter().map(name).collect()
}

#[test]
fn a_known_packet_goes_the_models_way() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut longest = 0;
    for _ in 0..2000 {
        let model = Model::random(&mut random, true);
        let listing = model.listing();
        let table = TableText { table: "filter", chain: "INPUT", listing: &listing };
        for _ in 0..8 {
            let mut known = Known::random(&mut random);
            let found = path(&known.packet(), &table, Backend::Legacy);
            let (met, accepted) = model.path(&mut known);
            assert_eq!(names(&found), met, "{listing}");
            let ends = if accepted { Ends::Accepted } else { Ends::Dropped };
            assert_eq!((found.ends, found.unsure), (ends, None), "{listing}");
            longest = longest.max(met.len());
        }
    }
    assert!(longest > 8, "{longest}");
}

#[test]
fn of_a_packet_that_is_not_fully_known_only_the_beginning_is_told() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (mut whole, mut cut) = (0, 0);
    for _ in 0..2000 {
        let model = Model::random(&mut random, true);
        let listing = model.listing();
        let table = TableText { table: "filter", chain: "INPUT", listing: &listing };
        let mut known = Known::random(&mut random);
        let mut packet = known.packet();
        match random.below(4) {
            0 => packet.mark = None,
            1 => packet.source = None,
            2 => packet.connection = None,
            _ => packet.ttl = None,
        }
        let found = path(&packet, &table, Backend::Legacy);
        let (met, _) = model.path(&mut known);
        let told = names(&found);
        assert!(met.starts_with(&told), "{told:?} of {met:?} in\n{listing}");
        assert_eq!(found.unsure.is_none(), found.ends != Ends::Unknown);
        match found.unsure {
            None => (whole, _) = (whole + 1, assert_eq!(met, told)),
            Some(_) => cut += 1,
        }
    }
    assert!(whole > 500 && cut > 200, "{whole} {cut}");
}
