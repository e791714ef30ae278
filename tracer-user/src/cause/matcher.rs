//! Which entries of the knowledge base hold for a drop.

use super::condition::Key;
use super::entry::{Base, Entry, Proven};
use super::facts::{Fact, Facts, NodeState, Origin, function};
use super::language::Language;
use crate::event::model::{Cause, Class, Drop, Evidence};
use crate::netfilter::model::Confidence;

const EXACT: &str = "exact";
const INFERRED: &str = "inferred";
const AMBIGUOUS: &str = "ambiguous";

impl Base {
    /// The most specific cause that holds, with the ids of the others.
    pub(super) fn explain(
        &self,
        drop: &Drop,
        language: Language,
        node: Option<&dyn NodeState>,
    ) -> Option<Cause> {
        let candidates = self.candidates(drop);
        let wanted: Vec<Fact> = candidates.iter().flat_map(|entry| &entry.node_facts).copied().collect();
        let facts = Facts::new(drop, node, &wanted);
        let mut holding = candidates.into_iter().filter(|entry| entry.when.holds(&facts));
        let mut cause = holding.next().and_then(|entry| cause(entry, &facts, drop, language))?;
        cause.others = holding.map(|entry| entry.id.clone()).collect();
        Some(cause)
    }

    /// The entries that may hold, most specific first. Of frees that are no drops only those for such.
    fn candidates(&self, drop: &Drop) -> Vec<&Entry> {
        let why = &drop.drop;
        let upper = |text: &str| text.to_ascii_uppercase();
        let mut found: Vec<usize> = Vec::new();
        let mut add = |key: Key| found.extend(self.index.get(&key).into_iter().flatten());
        if let Some(cilium) = &why.cilium {
            add(Key::AnyCilium);
            cilium.code.into_iter().for_each(|code| add(Key::Cilium(code.into())));
        }
        if why.class == Class::Routine {
            why.cause.iter().for_each(|cause| add(Key::Routine(upper(&cause.id))));
        } else {
            why.bpf.iter().for_each(|_| add(Key::Bpf));
            why.netfilter.iter().for_each(|_| add(Key::Netfilter));
            why.reason.iter().for_each(|reason| add(Key::Reason(upper(reason))));
            let at = why.location.as_deref().and_then(function);
            at.into_iter().for_each(|name| add(Key::Function(upper(name))));
            found.extend(&self.of_any);
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().filter_map(|number| self.entries.get(number)).collect()
    }
}

/// The cause that an entry tells; `None` if its text lacks a fact, which it does not (`Entry` sees to that).
fn cause(entry: &Entry, facts: &Facts<'_>, drop: &Drop, language: Language) -> Option<Cause> {
    let evidence: Vec<Evidence> =
        entry.node_facts.iter().filter_map(|fact| facts.evidence(*fact)).cloned().collect();
    Some(Cause {
        id: entry.id.clone(),
        severity: entry.severity.name().to_owned(),
        why: entry.why.of(language).fill(facts, language)?,
        fix: match &entry.fix {
            Some(fix) => fix.of(language).fill(facts, language)?,
            None => String::new(),
        },
        confidence: confidence(entry, facts, drop).to_owned(),
        owner: entry.owner.clone(),
        resets: entry.resets.as_ref().and_then(|resets| resets.of(language).fill(facts, language)),
        evidence,
        others: Vec::new(),
    })
}

/// As sure as the least sure of what the entry rests on. What the node was asked after the drop may have changed since.
fn confidence(entry: &Entry, facts: &Facts<'_>, drop: &Drop) -> &'static str {
    let mut support = Vec::new();
    entry.when.support(facts, &mut support);
    let rests_on = |origin| support.iter().any(|fact: &Fact| fact.origin() == origin);
    let mut sure = if entry.proven == Proven::Facts { INFERRED } else { entry.confidence };
    let told = [
        (Origin::Netfilter, drop.drop.netfilter.as_ref().map(|it| it.confidence)),
        (Origin::Bpf, drop.drop.bpf.as_ref().map(|it| it.confidence)),
        (Origin::Node, Some(Confidence::Inferred)),
    ];
    for (origin, confidence) in told {
        if let Some(confidence) = confidence.filter(|_| rests_on(origin)) {
            sure = match (sure, confidence) {
                (AMBIGUOUS, _) | (_, Confidence::Ambiguous) => AMBIGUOUS,
                (INFERRED, _) | (_, Confidence::Inferred) => INFERRED,
                _ => EXACT,
            };
        }
    }
    sure
}

/// What is left of a confidence where the node could not be asked.
pub(super) fn weaker(confidence: &str) -> String {
    (if confidence == EXACT { INFERRED } else { confidence }).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Causes;
    use super::*;
    use crate::cause::facts::Reading;
    use crate::cause::node::Question;
    use crate::event::model::{Network, Packet, Reason};
    use crate::netfilter::model::Netfilter;
    use std::cell::Cell;
    use std::sync::Arc;

    const TEXT: &str = r#"
[[cause]]
id = "narrow"
severity = "error"
proven = { kernel = ["a::b"] }
when = { reason = "NO_SOCKET", ttl = 1 }
why = "ttl {ttl}"
[[cause]]
id = "rule"
severity = "error"
proven = { kernel = ["a::b"] }
when = { chain = "X" }
why = "x"
[[cause]]
id = "asks"
severity = "warning"
proven = { kernel = ["a::b"] }
when = { reason = "NO_SOCKET", forwarding = 0 }
why = "forwarding is {forwarding}"
fix = "fix"
[[cause]]
id = "wide"
severity = "error"
proven = "facts"
when = { reason = ["NO_SOCKET", "OTHER"] }
why = "wide"
"#;

    struct Asked<'a>(&'a Cell<u32>, &'static str);

    impl NodeState for Asked<'_> {
        fn read(&self, question: Question) -> Vec<Reading> {
            self.0.set(self.0.get() + 1);
            assert_eq!(question.wanted, [Fact::Forwarding]);
            let evidence = Evidence {
                name: "net.x".into(),
                value: self.1.into(),
                source: "sysctl".into(),
                change: None,
            };
            vec![Reading { fact: Fact::Forwarding, evidence }]
        }
    }

    fn base() -> Arc<Base> {
        Arc::new(Base::parse("test.toml", TEXT).unwrap())
    }

    fn drop_of(reason: &str, ttl: u8) -> Drop {
        Drop {
            network: Network { netns: Some(7), ..Network::default() },
            packet: Packet { ttl: Some(ttl), ..Packet::default() },
            drop: Reason { reason: Some(reason.into()), ..Reason::default() },
            ..Drop::default()
        }
    }

    #[test]
    fn the_first_is_told_and_the_others_are_listed() {
        let cause = base().explain(&drop_of("NO_SOCKET", 1), Language::English, None).unwrap();
        assert_eq!((cause.id.as_str(), cause.why.as_str(), cause.fix.as_str()), ("narrow", "ttl 1", ""));
        assert_eq!((cause.others, cause.confidence.as_str()), (vec!["wide".to_owned()], EXACT));
        let cause = base().explain(&drop_of("NO_SOCKET", 2), Language::English, None).unwrap();
        assert_eq!((cause.id.as_str(), cause.confidence.as_str()), ("wide", INFERRED));
        assert_eq!(base().explain(&drop_of("ELSE", 1), Language::English, None), None);
    }

    #[test]
    fn the_node_is_asked_once_and_only_if_it_matters() {
        let asked = Cell::new(0);
        let node = Asked(&asked, "0");
        let cause = base().explain(&drop_of("NO_SOCKET", 2), Language::English, Some(&node)).unwrap();
        assert_eq!((cause.id.as_str(), cause.why.as_str(), asked.get()), ("asks", "forwarding is 0", 1));
        assert_eq!((cause.confidence.as_str(), cause.evidence[0].value.as_str()), (INFERRED, "0"));
        base().explain(&drop_of("OTHER", 2), Language::English, Some(&node)).unwrap();
        assert_eq!(asked.get(), 1);
        let one = Asked(&asked, "1");
        assert_eq!(
            base().explain(&drop_of("NO_SOCKET", 2), Language::English, Some(&one)).unwrap().id,
            "wide"
        );
    }

    #[test]
    fn as_sure_as_the_rule_is() {
        let with = |confidence| {
            let netfilter = Netfilter { chain: Some("x".into()), confidence, ..Netfilter::default() };
            let mut drop = drop_of("NETFILTER_DROP", 9);
            drop.drop.netfilter = Some(Box::new(netfilter));
            base().explain(&drop, Language::English, None).unwrap().confidence
        };
        assert_eq!(with(Confidence::Exact), EXACT);
        assert_eq!(with(Confidence::Inferred), INFERRED);
        assert_eq!(with(Confidence::Ambiguous), AMBIGUOUS);
    }

    #[test]
    fn a_recorded_cause_stays() {
        let causes = Causes::new(base(), Language::English);
        let mut drop = drop_of("NO_SOCKET", 1);
        causes.explain_recorded(&mut drop);
        let own = drop.drop.cause.clone().unwrap();
        assert_eq!((own.id.as_str(), own.confidence.as_str()), ("narrow", INFERRED));
        drop.packet.ttl = Some(2);
        causes.explain_recorded(&mut drop);
        assert_eq!(drop.drop.cause, Some(own));
    }
}
