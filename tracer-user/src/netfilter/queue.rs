//! Packets that a rule gave to a queue of user space, where nobody took them: nf_queue() (net/netfilter/nf_queue.c) frees
//! them when no program listens there, when the queue is full, or for lack of memory.
//!
//! Neither rule nor queue can be told from the drop, so the rule is looked for among those that queue in this netns. That
//! is never `exact`: the rule set may have been another one at the drop, and a verdict map or another module may queue
//! packets, too. `bypass` excludes no rule, for it is of use only where nobody listens.

use super::attribute;
use super::model::{Backend, Confidence, Family, Method, Netfilter, RuleRef};
use super::nft::{Found, Ruleset};
use crate::event::packet::ethertype;

/// The verdict.
pub const QUEUE: &str = "queue";

/// A rule that queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who keeps it.
    pub backend: Backend,
    /// The table's family.
    pub family: Family,
    /// Where it is; `rule` and `handle` as in [`Netfilter`].
    pub place: RuleRef,
    /// The hook of its chain, if that is a base chain.
    pub hook: Option<u8>,
}

impl Rule {
    /// An nft rule.
    #[must_use]
    pub fn of_nft(ruleset: &Ruleset, found: Found) -> Option<Self> {
        let chain = ruleset.chains.get(found.chain)?;
        let table = ruleset.table_of(chain)?;
        Some(Self {
            backend: Backend::Nft,
            family: table.family,
            place: RuleRef {
                table: table.name.clone(),
                chain: chain.name.clone(),
                rule: table.is_iptables.then_some(found.ordinal),
                handle: Some(found.handle),
                text: None,
            },
            hook: chain.base.map(|base| base.hook),
        })
    }

    /// True if a table of this family sees packets of that ethertype (host byte order; 0: any).
    fn sees(&self, kind: u16) -> bool {
        !matches!(
            (self.family, kind),
            (Family::Ipv4, ethertype::IPV6 | ethertype::ARP)
                | (Family::Ipv6, ethertype::IPV4 | ethertype::ARP)
                | (Family::Inet, ethertype::ARP)
                | (Family::Arp, ethertype::IPV4 | ethertype::IPV6)
        )
    }
}

/// The answer for a packet of that ethertype, from the rules that queue in its netns. `is_complete` says that these are all.
#[must_use]
pub fn answer(rules: &[Rule], kind: u16, is_complete: bool) -> Netfilter {
    let rules: Vec<&Rule> = rules.iter().filter(|rule| rule.sees(kind)).collect();
    let unsure = Netfilter {
        verdict: Some(QUEUE.to_owned()),
        method: Some(Method::Evaluated),
        confidence: Confidence::Ambiguous,
        ..Netfilter::default()
    };
    match rules.as_slice() {
        [one] if is_complete => {
            let hook = one.hook.map(|number| attribute::Hook { family: one.family.number(), number });
            Netfilter {
                backend: Some(one.backend),
                family: Some(one.family),
                hook: attribute::at_hook(hook).hook,
                table: Some(one.place.table.clone()),
                chain: Some(one.place.chain.clone()),
                rule: one.place.rule,
                handle: one.place.handle,
                confidence: Confidence::Inferred,
                ..unsure
            }
        }
        several => {
            Netfilter { candidates: several.iter().map(|rule| rule.place.clone()).collect(), ..unsure }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(family: Family, chain: &str) -> Rule {
        Rule {
            backend: Backend::Nft,
            family,
            place: RuleRef { table: "t".into(), chain: chain.into(), handle: Some(4), ..RuleRef::default() },
            hook: Some(2),
        }
    }

    fn told(rules: &[Rule], kind: u16, is_complete: bool) -> (Option<String>, usize, Confidence) {
        let answer = answer(rules, kind, is_complete);
        assert_eq!(answer.verdict.as_deref(), Some("queue"));
        (answer.chain, answer.candidates.len(), answer.confidence)
    }

    #[test]
    fn the_only_rule_is_inferred() {
        let rules = [rule(Family::Inet, "c")];
        let answer = answer(&rules, ethertype::IPV4, true);
        assert_eq!(answer.confidence, Confidence::Inferred);
        assert_eq!((answer.hook.as_deref(), answer.handle), (Some("FORWARD"), Some(4)));
        assert_eq!((answer.table.as_deref(), answer.rule), (Some("t"), None));
        // There may be more.
        assert_eq!(told(&rules, ethertype::IPV4, false), (None, 1, Confidence::Ambiguous));
    }

    #[test]
    fn several_are_candidates() {
        let rules = [rule(Family::Ipv4, "a"), rule(Family::Inet, "b"), rule(Family::Ipv6, "c")];
        assert_eq!(told(&rules, ethertype::IPV4, true), (None, 2, Confidence::Ambiguous));
        assert_eq!(told(&rules, 0, true), (None, 3, Confidence::Ambiguous));
        assert_eq!(told(&rules[1..2], ethertype::IPV6, true).0.as_deref(), Some("b"));
        assert_eq!(told(&[], ethertype::IPV4, true), (None, 0, Confidence::Ambiguous));
    }

    #[test]
    fn a_table_sees_packets_of_its_family() {
        let seen = |family, kind| rule(family, "c").sees(kind);
        assert!(seen(Family::Bridge, ethertype::ARP) && seen(Family::Inet, ethertype::IPV6));
        assert!(seen(Family::Arp, ethertype::ARP) && seen(Family::Ipv4, ethertype::IPV4));
        assert!(!seen(Family::Ipv4, ethertype::IPV6) && !seen(Family::Ipv6, ethertype::IPV4));
        assert!(!seen(Family::Arp, ethertype::IPV4) && !seen(Family::Inet, ethertype::ARP));
        // A tagged frame may carry anything.
        assert!(seen(Family::Ipv4, 0x8100));
    }
}
