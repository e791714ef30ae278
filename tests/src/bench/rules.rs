//! Rule sets of any size: the first rule drops the storm, the others take neither the storm nor what is delivered.

use super::storm;
use crate::bed::{
    backend::Backend,
    ruleset::{self, Base, Chain, Hook, Id, Match, Rule, Target},
    topology::Family,
};

/// Rules of a chain that nft's base chain jumps to.
const PER_CHAIN: usize = 100;
/// Destination ports of the other rules: none is the storm's or the delivery's.
const PORTS: std::ops::Range<u16> = 10_000..60_000;

/// How many rules of which kind there are in the INPUT hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whose.
    pub backend: Backend,
    /// Rules in all; for nft with those that jump to chains.
    pub rules: usize,
    /// Of these, rules that can drop, at least one. They come first.
    pub drop_capable: usize,
}

impl Shape {
    /// The rules in their tool's words.
    #[must_use]
    pub fn text(self) -> String {
        ruleset::write_down(&self.chains(), self.backend, Family::V4, "inet")
    }

    /// iptables' rules are in one chain, so that the counters of those that can drop are neighbours. nft's are in chains
    /// of [`PER_CHAIN`], as large nft rule sets are.
    fn chains(self) -> Vec<Chain> {
        let base = Base { hook: Hook::Input, priority: 0, drops: false };
        let (table, name) = match self.backend {
            Backend::Nft => ("bench", Hook::Input.lower().to_owned()),
            _ => ("filter", Hook::Input.upper()),
        };
        let dropping = Rule::port(0, storm::PORT, Target::Drop);
        let mut numbers = 1..self.rules;
        let mut first = Chain { table, name, base: Some(base), rules: vec![dropping] };
        if self.backend != Backend::Nft {
            first.rules.extend(numbers.map(|number| self.other(number)));
            return vec![first];
        }
        let mut chains = Vec::new();
        while let Some(number) = numbers.next() {
            let name = format!("c{}", chains.len());
            let jump = Rule { id: id(number), takes: Match::default(), target: Target::Jump(name.clone()) };
            first.rules.push(jump);
            let rules = numbers.by_ref().take(PER_CHAIN - 1).map(|number| self.other(number)).collect();
            chains.push(Chain { table, name, base: None, rules });
        }
        // nft wants a chain to be there before a rule jumps to it.
        chains.push(first);
        chains
    }

    fn other(self, number: usize) -> Rule {
        let port = PORTS.start + (number % PORTS.len()) as u16;
        let target = if number < self.drop_capable { Target::Drop } else { Target::Accept };
        Rule::port(id(number), port, target)
    }
}

fn id(number: usize) -> Id {
    Id::try_from(number).unwrap_or(Id::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::delivery;

    fn rules(shape: Shape) -> Vec<Rule> {
        shape.chains().into_iter().flat_map(|chain| chain.rules).collect()
    }

    #[test]
    fn there_are_as_many_rules_as_asked_for() {
        for backend in Backend::ALL {
            for count in [1, 2, 10, 100, 101, 102, 1000] {
                let rules = rules(Shape { backend, rules: count, drop_capable: 1 });
                assert_eq!(rules.len(), count, "{backend:?}");
            }
        }
    }

    #[test]
    fn as_many_can_drop_as_asked_for() {
        let rules = rules(Shape { backend: Backend::Legacy, rules: 1016, drop_capable: 16 });
        assert_eq!(rules.iter().filter(|rule| rule.target == Target::Drop).count(), 16);
        assert!(rules[..16].iter().all(|rule| rule.target == Target::Drop));
    }

    #[test]
    fn only_the_first_rule_takes_the_storm_and_none_the_delivery() {
        for backend in Backend::ALL {
            let chains = Shape { backend, rules: 60_000, drop_capable: 30_000 }.chains();
            let base = chains.iter().find(|chain| chain.base.is_some()).unwrap();
            assert_eq!(base.rules[0], Rule::port(0, storm::PORT, Target::Drop));
            let takes = |port| {
                chains.iter().flat_map(|chain| &chain.rules).filter(|r| r.takes == Match::port(port)).count()
            };
            assert_eq!((takes(storm::PORT), takes(delivery::PORT)), (1, 0));
        }
    }

    #[test]
    fn chains_are_written_before_the_jumps_to_them() {
        let text = Shape { backend: Backend::Nft, rules: 250, drop_capable: 125 }.text();
        assert!(text.find("chain c2 {") < text.find("jump c0"), "{text}");
    }
}
