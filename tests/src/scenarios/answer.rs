//! What droptrace answers about a rule (`drop.netfilter`), compared with what the rule tools say.

use crate::bed::backend::Backend;
use crate::bed::kernel;
use crate::bed::listing::{Listed, without_counts};
use crate::bed::ruleset::Hook;
use serde_json::{Value, json};

/// True where every drop by a rule must be told exactly. Elsewhere an exact answer must still be right.
///
/// Before 5.15 there is no module BTF for what the distribution builds as modules. Debian's 6.1 frees nft's packets where
/// the kernels from 6.7 do; Ubuntu's 5.15 doesn't, so there rules are known by their counters, which verdict maps and many
/// policies lack.
pub(super) fn expects_exact(backend: Backend, kernel: (u32, u32)) -> bool {
    match backend {
        Backend::Legacy | Backend::IptablesNft => kernel >= (5, 15),
        Backend::Nft => kernel >= (6, 1),
    }
}

/// [`expects_exact`] of the running kernel.
pub(super) fn expects_exact_here(backend: Backend) -> bool {
    expects_exact(backend, kernel::version())
}

/// Where something that drops is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// `ipv4`, `ipv6`, `inet`, `bridge` or `netdev`.
    pub(super) family: String,
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) slot: Slot,
}

/// Which of a chain's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    /// A rule by its number (iptables on either backend).
    Number(u64),
    /// A rule by its handle (nft).
    Handle(u64),
    /// The policy.
    Policy,
}

impl Place {
    /// Where an answer says that the drop was, in the terms of the tool that made the rules.
    pub(super) fn answered(backend: Backend, netfilter: &Value) -> Option<Self> {
        let text = |name: &str| netfilter[name].as_str().map(str::to_owned);
        let number = netfilter["rule"].as_u64().map(Slot::Number);
        let handle = netfilter["handle"].as_u64().map(Slot::Handle);
        let slot = if backend == Backend::Nft { handle.or(number) } else { number.or(handle) };
        let slot = slot.unwrap_or(Slot::Policy);
        Some(Self { family: text("family")?, table: text("table")?, chain: text("chain")?, slot })
    }
}

/// What is to blame for a drop. What is `None` is not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blame {
    engine: &'static str,
    pub(super) place: Place,
    handle: Option<u64>,
    verdict: &'static str,
    pub(super) hook: Option<String>,
    text: Option<String>,
    /// A word that the rule's text must have.
    word: Option<String>,
    reject_with: Option<String>,
}

impl Blame {
    /// A rule as its tool lists it.
    pub(super) fn rule(backend: Backend, rule: &Listed, verdict: &'static str) -> Self {
        let slot = match (backend, rule.handle) {
            (Backend::Nft, Some(handle)) => Slot::Handle(handle),
            _ => Slot::Number(rule.number),
        };
        let (family, table, chain) =
            (family(&rule.family).to_owned(), rule.table.clone(), rule.chain.clone());
        Self {
            engine: backend.engine(),
            place: Place { family, table, chain, slot },
            handle: rule.handle,
            verdict,
            hook: None,
            text: None,
            word: None,
            reject_with: None,
        }
    }

    /// A base chain's policy; `nft_family` is the table's family.
    pub(super) fn policy(backend: Backend, nft_family: &str, table: &str, chain: &str) -> Self {
        Self {
            engine: backend.engine(),
            place: Place {
                family: family(nft_family).to_owned(),
                table: table.to_owned(),
                chain: chain.to_owned(),
                slot: Slot::Policy,
            },
            handle: None,
            verdict: "policy",
            hook: None,
            text: None,
            word: None,
            reject_with: None,
        }
    }

    /// At this hook.
    pub(super) fn at(self, hook: Hook) -> Self {
        self.at_named(&hook.upper())
    }

    /// At the hook of this name, in upper case.
    pub(super) fn at_named(mut self, hook: &str) -> Self {
        self.hook = Some(hook.to_owned());
        self
    }

    /// The whole text must be the tool's.
    pub(super) fn text(mut self, text: &str) -> Self {
        self.text = Some(text.to_owned());
        self
    }

    /// The text must have this word.
    pub(super) fn word(mut self, word: String) -> Self {
        self.word = Some(word);
        self
    }

    /// What a reject sends.
    pub(super) fn reject_with(mut self, what: &str) -> Self {
        self.reject_with = Some(what.to_owned());
        self
    }

    /// What is wrong in an answer, whatever its confidence.
    pub(super) fn faults(&self, netfilter: &Value) -> Vec<String> {
        let (number, handle) = match self.place.slot {
            Slot::Number(number) => (Some(number), self.handle),
            Slot::Handle(handle) => (None, Some(handle)),
            Slot::Policy => (None, None),
        };
        let mut wanted = vec![
            ("backend", json!(self.engine)),
            ("family", json!(self.place.family)),
            ("table", json!(self.place.table)),
            ("chain", json!(self.place.chain)),
            ("rule", json!(number)),
        ];
        // iptables-nft's handles are known only where nft was asked too.
        if self.engine == "legacy" || handle.is_some() || self.place.slot == Slot::Policy {
            wanted.push(("handle", json!(handle)));
        }
        let mut faults: Vec<String> = wanted
            .into_iter()
            .filter(|(name, value)| &netfilter[*name] != value)
            .map(|(name, value)| format!("{name} is {}, not {value}", netfilter[name]))
            .collect();
        if let Some(said) = netfilter["text"].as_str() {
            if self.text.as_deref().is_some_and(|text| without_counts(said) != without_counts(text)) {
                faults.push(format!("text is {said:?}, not {:?}", self.text));
            }
            if self.word.as_deref().is_some_and(|word| !has_word(said, word)) {
                faults.push(format!("text is {said:?}, without {:?}", self.word));
            }
        }
        for (name, wanted) in self.words() {
            if let Some(said) = netfilter[name].as_str().filter(|said| Some(*said) != wanted) {
                faults.push(format!("{name} is {said:?}, not {wanted:?}"));
            }
        }
        faults
    }

    /// Fields that may be unknown, but not wrong.
    fn words(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        [
            ("verdict", Some(self.verdict)),
            ("hook", self.hook.as_deref()),
            ("reject_with", self.reject_with.as_deref()),
        ]
        .into_iter()
        .filter(|(_, wanted)| wanted.is_some())
    }

    /// What an answer that is not wrong leaves out.
    pub(super) fn gaps(&self, netfilter: &Value) -> Vec<&'static str> {
        self.words()
            .chain([("text", self.text.as_deref())])
            .filter(|(name, wanted)| wanted.is_some() && netfilter[*name].is_null())
            .map(|(name, _)| name)
            .collect()
    }

    /// What is wrong in an answer: an exact one must be right; one that is not exact, or missing, is wrong where
    /// exactness is demanded.
    pub(super) fn verdict_on(&self, netfilter: &Value, demand_exact: bool) -> Result<(), String> {
        if is_exact(netfilter) {
            let (faults, gaps) = (self.faults(netfilter), self.gaps(netfilter));
            if !faults.is_empty() {
                return Err(format!("WRONG EXACT: {}", faults.join("; ")));
            }
            if demand_exact && !gaps.is_empty() {
                return Err(format!("right so far, without its {}", gaps.join(" and ")));
            }
            return Ok(());
        }
        if demand_exact {
            return Err(match netfilter {
                Value::Null => "drop.netfilter is null".to_owned(),
                some => format!("not exact: {some}"),
            });
        }
        Ok(())
    }
}

/// True if the answer claims to be exact.
pub(super) fn is_exact(netfilter: &Value) -> bool {
    netfilter["confidence"] == "exact"
}

/// A family of nft's as the JSON lines name it.
pub(super) fn family(nft: &str) -> &str {
    match nft {
        "ip" => "ipv4",
        "ip6" => "ipv6",
        other => other,
    }
}

/// True if the text has the word, whole.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Listed {
        Listed {
            family: "ip".into(),
            table: "filter".into(),
            chain: "INPUT".into(),
            number: 3,
            handle: None,
            comment: Some("u7".into()),
            packets: Some(1),
            text: "-A INPUT -m comment --comment u7 -j DROP".into(),
        }
    }

    fn blame() -> Blame {
        Blame::rule(Backend::Legacy, &listed(), "drop").at(Hook::Input).text(&listed().text).word("u7".into())
    }

    fn answer() -> Value {
        json!({"backend":"legacy","family":"ipv4","hook":"INPUT","table":"filter","chain":"INPUT","rule":3,
               "handle":null,"text":"-A INPUT -m comment --comment u7 -j DROP","verdict":"drop",
               "confidence":"exact"})
    }

    #[test]
    fn a_right_answer_has_no_fault() {
        assert_eq!(blame().verdict_on(&answer(), true), Ok(()));
        assert_eq!(Place::answered(Backend::Legacy, &answer()), Some(blame().place));
    }

    #[test]
    fn every_falsified_field_is_caught() {
        for (name, value) in [
            ("backend", json!("nft")),
            ("family", json!("ipv6")),
            ("hook", json!("FORWARD")),
            ("table", json!("raw")),
            ("chain", json!("OUTPUT")),
            ("rule", json!(4)),
            ("rule", Value::Null),
            ("handle", json!(3)),
            ("text", json!("-A INPUT -m comment --comment u77 -j DROP")),
            ("verdict", json!("policy")),
        ] {
            let mut false_answer = answer();
            false_answer[name] = value;
            assert!(blame().verdict_on(&false_answer, false).is_err(), "{name}");
        }
    }

    #[test]
    fn a_missing_text_is_no_lie_but_not_enough() {
        let mut short = answer();
        short["text"] = Value::Null;
        assert_eq!(blame().verdict_on(&short, false), Ok(()));
        assert!(blame().verdict_on(&short, true).is_err_and(|why| !why.contains("WRONG")));
    }

    #[test]
    fn only_exact_answers_can_be_wrong_where_exactness_is_not_demanded() {
        let mut vague = answer();
        vague["confidence"] = json!("ambiguous");
        vague["rule"] = json!(9);
        assert_eq!(blame().verdict_on(&vague, false), Ok(()));
        assert!(blame().verdict_on(&vague, true).is_err());
        assert_eq!(blame().verdict_on(&Value::Null, false), Ok(()));
        assert!(blame().verdict_on(&Value::Null, true).is_err());
    }

    #[test]
    fn a_policy_has_neither_number_nor_handle() {
        let policy = Blame::policy(Backend::Nft, "inet", "filter", "input");
        let mut said = json!({"backend":"nft","family":"inet","table":"filter","chain":"input","rule":null,
                              "handle":null,"verdict":"policy","confidence":"exact"});
        assert_eq!(policy.verdict_on(&said, true), Ok(()));
        said["handle"] = json!(5);
        assert!(policy.verdict_on(&said, true).is_err());
    }

    #[test]
    fn nft_counters_are_no_part_of_the_text() {
        let rule = Listed { family: "inet".into(), handle: Some(4), text: "counter drop".into(), ..listed() };
        let blame = Blame::rule(Backend::Nft, &rule, "drop").text(&rule.text);
        let said = json!({"backend":"nft","family":"inet","table":"filter","chain":"INPUT","rule":null,
            "handle":4,"verdict":"drop","text":"counter packets 8 bytes 90 drop","confidence":"exact"});
        assert_eq!(blame.verdict_on(&said, true), Ok(()));
    }

    #[test]
    fn old_kernels_need_not_be_exact() {
        assert!(!expects_exact(Backend::Nft, (5, 10)) && expects_exact(Backend::Nft, (6, 1)));
    }
}
