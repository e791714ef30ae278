//! Random rule sets, and which rules dropped how many packets, read from their counters.
//!
//! The generator never evaluates a rule. It keeps to a shape in which counters tell everything: each base chain
//! begins with a rule that counts what comes in; each rule that drops or accepts counts; a chain whose policy accepts
//! ends with a rule that counts what gets there. At most one policy drops, so it dropped what is left over.

use super::backend::Backend;
use super::random::Random;
use super::ruleset::{Base, Chain, Counts, Hook, Id, Match, Rule, Target};
use super::topology::Family;
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The destination ports that rules tell apart.
pub const PORTS: (u16, u16) = (20_000, 64);
/// Source addresses that rules tell apart.
pub const SOURCES: usize = 8;

/// Chains that rules jump to, by table.
const USER_CHAINS: [(&str, usize); 3] = [("raw", 3), ("mangle", 5), ("filter", 14)];
const BASE_RULES: usize = 11;
const USER_RULES: usize = 11;

/// What dropped packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Culprit {
    /// A rule.
    Rule(Id),
    /// The policy of the one chain whose policy drops.
    Policy,
}

/// A rule that can drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropper {
    /// The rule whose counter counts its drops: itself, or for a verdict map the rule before it.
    pub counter: Id,
    /// True if it sends an answer.
    pub rejects: bool,
}

/// A random rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Its chains; base chains first, in the order in which packets meet them.
    pub chains: Vec<Chain>,
    /// The nft tables' family.
    pub nft_family: &'static str,
    /// The rules that can drop.
    pub droppers: BTreeMap<Id, Dropper>,
    /// For each base chain the rule that counts what comes in.
    entries: BTreeMap<Id, Hook>,
    /// The rules that count what gets through.
    ends: BTreeSet<Id>,
}

/// Makes the rule set of a seed.
#[must_use]
pub fn generate(
    seed: u64,
    backend: Backend,
    family: Family,
    sources: &[IpAddr],
    policy_at: Hook,
) -> Generated {
    let mut random = Random::new(seed);
    let own = family.pick("ip", "ip6");
    let nft_family = if random.percent(50) { "inet" } else { own };
    let made = Generated {
        chains: Vec::new(),
        nft_family,
        droppers: BTreeMap::new(),
        entries: BTreeMap::new(),
        ends: BTreeSet::new(),
    };
    let mut maker = Maker { random, backend, sources, next: 0, made };
    maker.base_chains(policy_at);
    for (table, count) in USER_CHAINS {
        for number in 0..count {
            maker.user_chain(table, number, count);
        }
    }
    maker.made
}

struct Maker<'a> {
    random: Random,
    backend: Backend,
    sources: &'a [IpAddr],
    next: Id,
    made: Generated,
}

impl Maker<'_> {
    fn id(&mut self) -> Id {
        self.next += 1;
        self.next
    }

    fn base_chains(&mut self, policy_at: Hook) {
        let mut bases = vec![
            ("raw", Hook::Prerouting, -300, "PREROUTING"),
            ("raw", Hook::Output, -300, "OUTPUT"),
            ("mangle", Hook::Forward, -150, "FORWARD"),
            ("filter", Hook::Input, 0, "INPUT"),
            ("filter", Hook::Forward, 0, "FORWARD"),
            ("filter", Hook::Output, 0, "OUTPUT"),
            ("mangle", Hook::Postrouting, -150, "POSTROUTING"),
        ];
        if self.backend == Backend::Nft {
            // More base chains on one hook than iptables can have.
            bases.insert(4, ("filter", Hook::Input, 10, "late-input"));
            bases.insert(6, ("filter", Hook::Forward, 10, "late-forward"));
        }
        for (table, hook, priority, name) in bases {
            let drops = table == "filter" && hook == policy_at && priority == 0;
            let base = Some(Base { hook, priority, drops });
            let mut rules = vec![
                // Answers, neighbour discovery: none of them is a packet of the test.
                Rule {
                    id: self.id(),
                    takes: Match { not_udp: true, ..Match::default() },
                    target: Target::Accept,
                },
            ];
            let entry = self.id();
            self.made.entries.insert(entry, hook);
            rules.push(Rule::all(entry, Target::Count));
            for _ in 0..BASE_RULES {
                // Leaving a chain whose policy accepts would pass by the rule that counts at its end.
                self.rule(
                    &mut rules,
                    Place { table, next: 0, may_leave: drops, may_reject: table == "filter" },
                );
            }
            if !drops {
                let end = self.id();
                self.made.ends.insert(end);
                rules.push(Rule::all(end, Target::Count));
            }
            // Chains of iptables' names, in its tables, are iptables' to every tool.
            let name = if self.backend == Backend::Nft { name.to_lowercase() } else { name.to_owned() };
            self.made.chains.push(Chain { table, name, base, rules });
        }
    }

    fn user_chain(&mut self, table: &'static str, number: usize, count: usize) {
        let mut rules = Vec::new();
        let place = Place {
            table,
            next: if number + 1 < count { number + 1 } else { usize::MAX },
            may_leave: true,
            may_reject: table == "filter",
        };
        for _ in 0..USER_RULES {
            self.rule(&mut rules, place);
        }
        self.made.chains.push(Chain { table, name: user_chain_name(table, number), base: None, rules });
    }

    fn rule(&mut self, rules: &mut Vec<Rule>, place: Place) {
        if self.backend == Backend::Nft && self.random.percent(12) {
            return self.map(rules, place);
        }
        let id = self.id();
        let target = match self.random.below(100) {
            0..35 => Target::Drop,
            35..42 if place.may_reject => Target::Reject,
            42..62 => self.chain(place).map_or(Target::Count, Target::Jump),
            62..70 if place.may_leave => self.chain(place).map_or(Target::Return, Target::Goto),
            70..75 if place.may_leave => Target::Return,
            75..79 => Target::Accept,
            _ => Target::Count,
        };
        match target {
            Target::Drop | Target::Reject => {
                let rejects = target == Target::Reject;
                self.made.droppers.insert(id, Dropper { counter: id, rejects });
            }
            Target::Accept => {
                self.made.ends.insert(id);
            }
            _ => {}
        }
        let takes = self.takes(&target);
        rules.push(Rule { id, takes, target });
    }

    /// A verdict map, and before it a rule that counts what it drops.
    fn map(&mut self, rules: &mut Vec<Rule>, place: Place) {
        let (counter, id) = (self.id(), self.id());
        let mut entries: BTreeMap<u16, Target> = BTreeMap::new();
        for _ in 0..6 {
            let target = match self.random.below(10) {
                0..5 => Target::Drop,
                5..8 => self.chain(place).map_or(Target::Drop, Target::Jump),
                _ if place.may_leave => Target::Return,
                _ => Target::Drop,
            };
            entries.insert(self.random.port(PORTS.0, PORTS.1), target);
        }
        // There is always something to count.
        entries.insert(self.random.port(PORTS.0, PORTS.1), Target::Drop);
        let dropped: Vec<u16> =
            entries.iter().filter(|(_, target)| **target == Target::Drop).map(|(port, _)| *port).collect();
        let takes = Match { source_ports: Some(self.source_ports(6)), ..Match::default() };
        rules.push(Rule { id: counter, takes: takes.clone(), target: Target::CountPorts(dropped) });
        rules.push(Rule { id, takes, target: Target::Map(entries.into_iter().collect()) });
        self.made.droppers.insert(id, Dropper { counter, rejects: false });
    }

    /// A chain further down: never in a circle.
    fn chain(&mut self, place: Place) -> Option<String> {
        let count = USER_CHAINS.iter().find(|(table, _)| *table == place.table)?.1;
        let choice = count.checked_sub(place.next)?.min(4);
        (choice > 0).then(|| user_chain_name(place.table, place.next + self.random.below(choice)))
    }

    /// Verdicts take few packets, so that many rules get some; jumps take many.
    fn takes(&mut self, target: &Target) -> Match {
        let narrow = !matches!(target, Target::Jump(_) | Target::Goto(_) | Target::Count);
        let width = if narrow { 1 + self.random.below(5) } else { 8 + self.random.below(40) } as u16;
        let first = self.random.port(PORTS.0, PORTS.1 - width + 1);
        let mut takes = Match { ports: Some((first, first + width - 1)), ..Match::default() };
        if narrow || self.random.percent(30) {
            takes.source_ports = Some(self.source_ports(if narrow { 6 } else { 14 }));
        }
        if self.random.percent(10) {
            takes.source = self.sources.get(self.random.below(self.sources.len())).copied();
        }
        takes
    }

    /// Up to so many sixteenths of all source ports.
    fn source_ports(&mut self, most: usize) -> (u16, u16) {
        let width = 1 + self.random.below(most);
        let first = self.random.below(17 - width);
        ((first * 4096) as u16, ((first + width) * 4096 - 1) as u16)
    }
}

/// Where a rule stands, and what it may do there.
#[derive(Clone, Copy)]
struct Place {
    table: &'static str,
    /// The first user chain that it may jump to.
    next: usize,
    /// It may return or go to another chain for good.
    may_leave: bool,
    /// iptables rejects in the filter table only.
    may_reject: bool,
}

fn user_chain_name(table: &str, number: usize) -> String {
    format!("{}-{number}", table.to_uppercase())
}

impl Generated {
    /// Who dropped how many packets, from what the counters counted meanwhile.
    ///
    /// # Errors
    /// When the counters contradict each other.
    pub fn drops(&self, moved: &Counts) -> Result<BTreeMap<Culprit, u64>> {
        let count = |id: &Id| moved.get(id).copied().unwrap_or(0);
        let mut drops: BTreeMap<Culprit, u64> =
            self.droppers.iter().map(|(id, dropper)| (Culprit::Rule(*id), count(&dropper.counter))).collect();
        let entered: u64 = self.entries.keys().map(count).sum();
        let gone: u64 = drops.values().sum::<u64>() + self.ends.iter().map(count).sum::<u64>();
        ensure!(
            gone <= entered,
            "counters contradict each other: {entered} entered chains, {gone} left them"
        );
        if entered > gone {
            ensure!(self.policy_chain().is_some(), "{} packets left no trace", entered - gone);
            drops.insert(Culprit::Policy, entered - gone);
        }
        drops.retain(|_, count| *count > 0);
        Ok(drops)
    }

    /// The hook of the last base chain that a single packet came to.
    #[must_use]
    pub fn last_hook(&self, moved: &Counts) -> Option<Hook> {
        // A packet's hooks come in the order of their names.
        self.entries.iter().filter(|(id, _)| moved.contains_key(id)).map(|(_, hook)| *hook).max()
    }

    /// The base chain whose policy drops.
    #[must_use]
    pub fn policy_chain(&self) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.base.is_some_and(|base| base.drops))
    }

    /// How many rules there are.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seed: u64, backend: Backend) -> Generated {
        generate(seed, backend, Family::V4, &[[10, 0, 0, 1].into()], Hook::Forward)
    }

    #[test]
    fn a_seed_makes_the_same_rules_again() {
        for backend in Backend::ALL {
            assert_eq!(sample(5, backend), sample(5, backend));
            assert!(sample(5, backend) != sample(6, backend));
        }
    }

    #[test]
    fn there_are_hundreds_of_rules_of_every_kind() {
        for backend in Backend::ALL {
            let made = sample(1, backend);
            assert!(made.rules() > 250, "{}", made.rules());
            assert!(made.droppers.len() > 80, "{}", made.droppers.len());
            let has = |wanted: fn(&Target) -> bool| {
                made.chains.iter().flat_map(|chain| &chain.rules).any(|rule| wanted(&rule.target))
            };
            assert!(has(|t| matches!(t, Target::Goto(_))) && has(|t| matches!(t, Target::Return)));
            assert!(has(|t| matches!(t, Target::Reject)) && has(|t| matches!(t, Target::Jump(_))));
            assert_eq!(has(|t| matches!(t, Target::Map(_))), backend == Backend::Nft);
        }
    }

    #[test]
    fn what_passes_an_accepting_base_chain_is_counted_at_its_end() {
        for seed in 0..20 {
            let made = sample(seed, Backend::Nft);
            for chain in made.chains.iter().filter(|chain| chain.base.is_some_and(|base| !base.drops)) {
                assert!(chain.rules.last().is_some_and(|rule| made.ends.contains(&rule.id)));
                let leaves = |target: &Target| match target {
                    Target::Goto(_) | Target::Return => true,
                    Target::Map(entries) => entries.iter().any(|(_, to)| *to == Target::Return),
                    _ => false,
                };
                assert!(!chain.rules.iter().any(|rule| leaves(&rule.target)));
            }
        }
    }

    #[test]
    fn the_policy_dropped_what_is_left_over() -> Result<()> {
        let made = sample(3, Backend::Legacy);
        let entry = *made.entries.keys().next().unwrap();
        let (rule, dropper) = made.droppers.iter().next().unwrap();
        let end = *made.ends.iter().next_back().unwrap();
        let moved = Counts::from([(entry, 10), (dropper.counter, 4), (end, 1)]);
        let drops = made.drops(&moved)?;
        assert_eq!(drops, BTreeMap::from([(Culprit::Rule(*rule), 4), (Culprit::Policy, 5)]));
        assert!(made.drops(&Counts::from([(entry, 1), (dropper.counter, 2)])).is_err());
        Ok(())
    }

    #[test]
    fn a_maps_drops_are_counted_by_the_rule_before_it() {
        let made = sample(2, Backend::Nft);
        for chain in &made.chains {
            for pair in chain.rules.windows(2) {
                if let (Target::CountPorts(ports), Target::Map(entries)) = (&pair[0].target, &pair[1].target)
                {
                    assert_eq!(made.droppers[&pair[1].id].counter, pair[0].id);
                    assert_eq!(pair[0].takes, pair[1].takes);
                    let dropped: Vec<u16> =
                        entries.iter().filter(|(_, t)| *t == Target::Drop).map(|(port, _)| *port).collect();
                    assert_eq!(&dropped, ports);
                }
            }
        }
    }
}
