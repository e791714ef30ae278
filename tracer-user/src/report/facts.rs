//! What is known of rules, causes and policies beside how many drops they stand for: kept by name, in bounded memory. What
//! is said of one name in several ways (a rule's number is another rule's after a change) is kept in so many as fit.

use super::page::{Note, Said, Text};
use crate::event::model::{Cause, Drop};
use crate::netfilter::model::{Confidence, Netfilter, RuleRef};
use crate::output::words;
use std::collections::HashMap;

/// Names that something is kept of: as many as groups are told apart.
const NAMES: usize = 10_000;
/// Ways in which something is said of one name.
const WAYS: usize = 3;
/// Policies, candidates and such of one name.
const LIST: usize = 8;

/// What is known, by name.
#[derive(Debug)]
pub(super) struct Facts<F>(HashMap<String, F>);

impl<F: Default> Facts<F> {
    /// Nothing yet.
    #[must_use]
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Where to add to what is known of a name; `None` if there are too many names.
    pub(super) fn about(&mut self, name: String) -> Option<&mut F> {
        if self.0.len() >= NAMES && !self.0.contains_key(&name) {
            return None;
        }
        Some(self.0.entry(name).or_default())
    }

    /// What is known of a name.
    #[must_use]
    pub(super) fn get(&self, name: &str) -> Option<&F> {
        self.0.get(name)
    }
}

/// Different values, a few.
#[derive(Debug)]
struct Few<T> {
    values: Vec<T>,
    are_all: bool,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { values: Vec::new(), are_all: true }
    }
}

impl<T: PartialEq> Few<T> {
    fn add(&mut self, most: usize, is_known: impl Fn(&T) -> bool, value: impl FnOnce() -> T) {
        if self.values.iter().any(is_known) {
            return;
        }
        if self.values.len() < most {
            self.values.push(value());
        } else {
            self.are_all = false;
        }
    }

    fn add_text(&mut self, most: usize, text: &str)
    where
        T: From<Text> + AsRef<str>,
    {
        let text = Text::of(text);
        self.add(most, |known| known.as_ref() == text.as_str(), || T::from(text.clone()));
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// Drops by how sure the answer about them is.
#[derive(Clone, Copy, Debug, Default)]
struct Sure {
    exact: u64,
    inferred: u64,
    ambiguous: u64,
}

impl Sure {
    fn add(&mut self, confidence: Confidence, drops: u64) {
        let count = match confidence {
            Confidence::Exact => &mut self.exact,
            Confidence::Inferred => &mut self.inferred,
            Confidence::Ambiguous => &mut self.ambiguous,
        };
        *count = count.saturating_add(drops);
    }

    /// `exact`, or `exact 12, inferred 3`.
    fn text(self) -> String {
        let all = [("exact", self.exact), ("inferred", self.inferred), ("ambiguous", self.ambiguous)];
        let some: Vec<_> = all.into_iter().filter(|(_, drops)| *drops > 0).collect();
        match some.as_slice() {
            [(name, _)] => (*name).to_owned(),
            some => {
                let counted = some.iter().map(|(name, drops)| format!("{name} {}", words::thousands(*drops)));
                counted.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

/// Of a rule.
#[derive(Debug, Default)]
pub(super) struct OfRule {
    texts: Few<Text>,
    owners: Few<Text>,
    verdicts: Few<Text>,
    marks: Few<Text>,
    sure: Sure,
}

impl OfRule {
    /// Learns what a drop's answer says of it.
    pub(super) fn add(&mut self, netfilter: &Netfilter, drops: u64) {
        if let Some(text) = &netfilter.text {
            self.texts.add_text(WAYS, text);
        }
        if let Some(owner) = &netfilter.owner {
            self.owners.add_text(WAYS, owner);
        }
        if let Some(verdict) = &netfilter.verdict {
            let with = netfilter.reject_with.as_ref().map(|with| format!(" with {with}")).unwrap_or_default();
            self.verdicts.add_text(WAYS, &format!("{verdict}{with}"));
        }
        for rule in &netfilter.mark_set_by {
            self.marks.add_text(WAYS, &reference(rule));
        }
        self.sure.add(netfilter.confidence, drops);
    }

    /// The rule's text and owner, as they were first.
    pub(super) fn first(&self) -> (Option<Text>, Option<Text>) {
        (self.texts.values.first().cloned(), self.owners.values.first().cloned())
    }

    /// All of it.
    #[must_use]
    pub(super) fn notes(&self) -> Vec<Note> {
        let mut notes = listed("rule", &self.texts, true);
        notes.extend(listed("mark set by", &self.marks, true));
        for (name, few) in [("owner", &self.owners), ("verdict", &self.verdicts)] {
            notes.extend(joined(name, few));
        }
        notes.push(Note { name: "known", text: Text::of(&self.sure.text()), code: false });
        notes
    }
}

fn reference(rule: &RuleRef) -> String {
    let place = format!("{}:{}", rule.table, rule.chain);
    let number = rule.rule.map(|number| format!(":rule:{number}"));
    let number = number.or_else(|| rule.handle.map(|handle| format!(":handle:{handle}")));
    let text = rule.text.as_ref().map(|text| format!("  {text}")).unwrap_or_default();
    format!("{place}{}{text}", number.unwrap_or_default())
}

fn listed(name: &'static str, few: &Few<Text>, code: bool) -> Vec<Note> {
    let mut notes: Vec<Note> =
        few.values.iter().map(|text| Note { name, text: text.clone(), code }).collect();
    if !few.are_all {
        notes.push(Note { name, text: Text::of("… and others"), code: false });
    }
    notes
}

fn joined(name: &'static str, few: &Few<Text>) -> Option<Note> {
    let mut all: Vec<&str> = few.values.iter().map(Text::as_str).collect();
    if !few.are_all {
        all.push("…");
    }
    (!all.is_empty()).then(|| Note { name, text: Text::of(&all.join(", ")), code: false })
}

/// Of a cause.
#[derive(Debug, Default)]
pub(super) struct OfCause {
    said: Few<Said>,
    severities: Few<Text>,
    confidences: Few<Text>,
    owners: Few<Text>,
    resets: Few<Text>,
}

impl OfCause {
    /// Learns what a drop says of it.
    pub(super) fn add(&mut self, cause: &Cause) {
        let said = Said { why: Text::of(&cause.why), fix: Text::of(&cause.fix) };
        self.said.add(WAYS, |known| *known == said, || said.clone());
        self.severities.add_text(WAYS, &cause.severity);
        self.confidences.add_text(WAYS, &cause.confidence);
        for (few, said) in [(&mut self.owners, &cause.owner), (&mut self.resets, &cause.resets)] {
            said.iter().for_each(|text| few.add_text(WAYS, text));
        }
    }

    /// What was said first.
    #[must_use]
    pub(super) fn first(&self) -> Option<Said> {
        self.said.values.first().cloned()
    }

    /// All of it.
    #[must_use]
    pub(super) fn notes(&self) -> Vec<Note> {
        let mut notes = Vec::new();
        for Said { why, fix } in &self.said.values {
            let both = [("why", why), ("fix", fix)].into_iter().filter(|(_, text)| !text.as_str().is_empty());
            notes.extend(both.map(|(name, text)| Note { name, text: text.clone(), code: false }));
        }
        if !self.said.are_all {
            notes.push(Note { name: "why", text: Text::of("… and others of this kind"), code: false });
        }
        let others = [
            ("undone by", &self.resets),
            ("owner", &self.owners),
            ("severity", &self.severities),
            ("known", &self.confidences),
        ];
        notes.extend(others.into_iter().filter_map(|(name, few)| joined(name, few)));
        notes
    }
}

/// Of the policies that are said together.
#[derive(Debug, Default)]
pub(super) struct OfPolicies {
    policies: Few<Text>,
    verdicts: Few<Text>,
}

impl OfPolicies {
    /// Learns what a drop says of them.
    pub(super) fn add(&mut self, drop: &Drop) {
        let Some(cilium) = &drop.drop.cilium else { return };
        for policy in cilium.policies.iter().flatten() {
            let why = policy.why_not.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            self.policies.add_text(LIST, &format!("{} {}{why}", policy.kind, words::policy(policy)));
        }
        self.verdicts.add_text(WAYS, &cilium.message);
    }

    /// All of it.
    #[must_use]
    pub(super) fn notes(&self) -> Vec<Note> {
        let mut notes = listed("policy", &self.policies, false);
        notes.extend(joined("verdict", &self.verdicts));
        notes
    }
}

/// Of what dropped: the rule, and the cause.
#[derive(Debug, Default)]
pub(super) struct OfPlace {
    /// The rule's name.
    pub rule: Option<String>,
    /// The cause's.
    pub cause: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(notes: &[Note], name: &str) -> Vec<String> {
        notes.iter().filter(|note| note.name == name).map(|note| note.text.to_string()).collect()
    }

    #[test]
    fn what_a_rule_said_is_kept_once_each_and_not_without_end() {
        let mut of = OfRule::default();
        for number in 0..9 {
            let netfilter = Netfilter {
                text: Some(format!("-A INPUT -j DROP {}", number / 2)),
                owner: Some("docker".into()),
                verdict: Some("reject".into()),
                reject_with: Some("tcp-reset".into()),
                confidence: if number == 0 { Confidence::Inferred } else { Confidence::Exact },
                ..Netfilter::default()
            };
            of.add(&netfilter, 2000);
        }
        let notes = of.notes();
        assert_eq!(text_of(&notes, "rule").len(), WAYS + 1);
        assert_eq!(text_of(&notes, "rule")[0], "-A INPUT -j DROP 0");
        assert_eq!(text_of(&notes, "owner"), ["docker"]);
        assert_eq!(text_of(&notes, "verdict"), ["reject with tcp-reset"]);
        assert_eq!(text_of(&notes, "known"), ["exact 16,000, inferred 2,000"]);
    }

    #[test]
    fn names_are_bounded() {
        let mut facts = Facts::<OfPlace>::new();
        for name in 0..NAMES {
            assert!(facts.about(name.to_string()).is_some());
        }
        assert!(facts.about("one more".into()).is_none() && facts.about("7".into()).is_some());
    }

    #[test]
    fn a_cause_is_said_in_the_ways_it_was() {
        let cause = |why: &str, fix: &str| Cause {
            why: why.into(),
            fix: fix.into(),
            severity: "error".into(),
            confidence: "exact".into(),
            ..Cause::default()
        };
        let mut of = OfCause::default();
        of.add(&cause("eth0 is down", "set it up"));
        of.add(&cause("eth0 is down", "set it up"));
        of.add(&cause("eth1 is down", ""));
        let notes = of.notes();
        assert_eq!(text_of(&notes, "why"), ["eth0 is down", "eth1 is down"]);
        assert_eq!(text_of(&notes, "fix"), ["set it up"]);
        assert_eq!(of.first().unwrap().why.as_str(), "eth0 is down");
    }
}
