//! Texts with facts in them.
//!
//! `{fact}` is the fact's value. It must be known wherever the entry holds; one that may be unknown stands in brackets:
//! `[for {service}]` is left out where the service is not known, and `[{service}|{destination}|it]` takes the first part
//! whose facts are. The two ends of a packet need no brackets: they are told as `the sender` and `the receiver` then.
//! Values come from the packet, from rules and from names that anybody may choose: they are cut to a length, and between
//! backquotes, where a command stands that somebody may copy, a value that a shell would take apart is told as `<fact>`.

use super::facts::{Fact, Facts};
use super::language::Language;
use std::fmt::Write as _;

/// Letters of a value that are told.
const LONGEST: usize = 160;

/// A text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Fact {
        fact: Fact,
        is_in_command: bool,
    },
    /// The first that all facts are known for.
    Either(Template, Template),
}

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut is_in_command = false;
        let mut rest = text;
        let mut parts = Vec::new();
        while let Some(at) = rest.find(['[', ']']) {
            let (before, after) = rest.split_at(at);
            simple(before, &mut is_in_command, &mut parts)?;
            let inner = after.strip_prefix('[').ok_or("a `]` without its `[`")?;
            let (inner, behind) = inner.split_once(']').ok_or("a `[` without its `]`")?;
            if inner.contains('[') {
                return Err("brackets in brackets".to_owned());
            }
            let mut alternatives = Vec::new();
            let only_one = (!inner.contains('|')).then_some("");
            for text in inner.split('|').chain(only_one) {
                let mut ends_in_command = is_in_command;
                let mut parts = Vec::new();
                simple(text, &mut ends_in_command, &mut parts)?;
                if ends_in_command != is_in_command {
                    return Err("one backquote in a bracket: it takes both".to_owned());
                }
                alternatives.push(Self(parts));
            }
            let last = alternatives.pop().unwrap_or_default();
            let joined = alternatives
                .into_iter()
                .rev()
                .fold(last, |other, known| Self(vec![Part::Either(known, other)]));
            parts.extend(joined.0);
            rest = behind;
        }
        simple(rest, &mut is_in_command, &mut parts)?;
        if is_in_command {
            return Err("a backquote without its second".to_owned());
        }
        Ok(Self(parts))
    }

    /// The text for a drop; `None` if a fact that it can't do without is not known.
    pub(super) fn fill(&self, facts: &Facts<'_>, language: Language) -> Option<String> {
        let mut text = String::new();
        self.fill_into(facts, language, &mut text)?;
        Some(if language == Language::Chinese { typeset(&text) } else { text })
    }

    fn fill_into(&self, facts: &Facts<'_>, language: Language, text: &mut String) -> Option<()> {
        for part in &self.0 {
            match part {
                Part::Text(own) => text.push_str(own),
                Part::Fact { fact, is_in_command } => {
                    let value = facts.get(*fact).map(|value| value.to_string());
                    match (value, end(*fact, language)) {
                        (Some(value), _) if !is_in_command || value.chars().all(is_plain) => {
                            bounded(&value, text);
                        }
                        (None, Some(end)) if !is_in_command => text.push_str(end),
                        (None, None) => return None,
                        // Writing to a String cannot fail.
                        _ => drop(write!(text, "<{}>", fact.name())),
                    }
                }
                Part::Either(known, other) => {
                    let before = text.len();
                    if !known.is_known(facts) || known.fill_into(facts, language, text).is_none() {
                        text.truncate(before);
                        other.fill_into(facts, language, text)?;
                    }
                }
            }
        }
        Some(())
    }

    /// True if all facts in it are known, those of the ends included.
    fn is_known(&self, facts: &Facts<'_>) -> bool {
        let mut all = Vec::new();
        self.facts(&mut all);
        all.into_iter().all(|fact| facts.get(fact).is_some())
    }

    /// All facts in it.
    pub(super) fn facts(&self, out: &mut Vec<Fact>) {
        self.walk(true, &mut |fact, _| out.push(fact));
    }

    /// The facts that it can't do without.
    pub(super) fn needed(&self) -> Vec<Fact> {
        let mut needed = Vec::new();
        self.walk(true, &mut |fact, is_needed| {
            needed.extend((is_needed && end(fact, Language::English).is_none()).then_some(fact));
        });
        needed
    }

    fn walk(&self, is_needed: bool, each: &mut dyn FnMut(Fact, bool)) {
        for part in &self.0 {
            match part {
                Part::Text(_) => {}
                Part::Fact { fact, .. } => each(*fact, is_needed),
                Part::Either(known, other) => {
                    known.walk(false, each);
                    other.walk(is_needed, each);
                }
            }
        }
    }
}

/// Text and facts, without brackets.
fn simple(text: &str, is_in_command: &mut bool, parts: &mut Vec<Part>) -> Result<(), String> {
    let mut rest = text;
    let push = |own: &str, is_in_command: &mut bool| {
        *is_in_command ^= own.matches('`').count() % 2 == 1;
        if own.is_empty() { None } else { Some(Part::Text(own.to_owned())) }
    };
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').ok_or("a `{` without its `}`")?;
        parts.extend(push(before, is_in_command));
        parts.push(Part::Fact { fact: Fact::named(name)?, is_in_command: *is_in_command });
        rest = behind;
    }
    if rest.contains('}') {
        return Err("a `}` without its `{`".to_owned());
    }
    parts.extend(push(rest, is_in_command));
    Ok(())
}

/// What an end of the packet is called that is not known.
fn end(fact: Fact, language: Language) -> Option<&'static str> {
    match (fact, language) {
        (Fact::From | Fact::Source, Language::English) => Some("the sender"),
        (Fact::From | Fact::Source, Language::Chinese) => Some("发送方"),
        (Fact::To | Fact::Destination, Language::English) => Some("the receiver"),
        (Fact::To | Fact::Destination, Language::Chinese) => Some("接收方"),
        _ => None,
    }
}

/// What no shell gives a meaning to, and no reader stumbles over.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._:/@,=+-".contains(c)
}

/// Chinese as it is set: a space where it meets Latin letters or digits, none between its own.
fn typeset(text: &str) -> String {
    let is_chinese = |c: char| matches!(c, '\u{4e00}'..='\u{9fff}');
    let mut set = String::with_capacity(text.len() + 16);
    let mut letters = text.chars().peekable();
    let mut last = None;
    while let Some(letter) = letters.next() {
        let next = letters.peek().copied();
        if letter == ' ' && last.is_some_and(is_chinese) && next.is_some_and(is_chinese) {
            continue;
        }
        set.push(letter);
        last = Some(letter);
        if let Some(next) = next {
            let meets = |a: char, b: char| is_chinese(a) && b.is_ascii_alphanumeric();
            if meets(letter, next) || meets(next, letter) {
                set.push(' ');
            }
        }
    }
    set
}

fn bounded(value: &str, text: &mut String) {
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => text.extend([value.get(..end).unwrap_or_default(), "…"]),
        None => text.push_str(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::{Drop, Network, Packet};

    fn filled(text: &str, interface: &str) -> Option<String> {
        let drop = Drop {
            network: Network { interface: Some(interface.to_owned()), ..Network::default() },
            packet: Packet { ttl: Some(3), ..Packet::default() },
            ..Drop::default()
        };
        Template::parse(text).unwrap().fill(&Facts::new(&drop, None, &[]), Language::English)
    }

    #[test]
    fn a_fact_that_is_not_known_takes_its_bracket_along() {
        let eth0 = |text| filled(text, "eth0");
        assert_eq!(eth0("ttl {ttl} on {interface}.").as_deref(), Some("ttl 3 on eth0."));
        assert_eq!(eth0("lost[ with mark {mark}] on[ {interface}]").as_deref(), Some("lost on eth0"));
        assert_eq!(eth0("[mark {mark}|ttl {ttl}]!").as_deref(), Some("ttl 3!"));
        assert_eq!(eth0("[{ttl} and {mark}|no mark]").as_deref(), Some("no mark"));
        assert_eq!(eth0("[{mark}|{length}|]{ttl}[{mark}|{length}|none]").as_deref(), Some("3none"));
        assert_eq!(
            eth0("{from} to [{to}|nobody] `{source}`").as_deref(),
            Some("the sender to nobody `<source>`")
        );
        assert_eq!(eth0("mark {mark}"), None);
        assert_eq!(eth0("{ttl}[{mark}|{mark}]"), None);
    }

    #[test]
    fn values_are_harmless() {
        let long = "x".repeat(1000);
        assert_eq!(filled("{interface}", &long).unwrap().chars().count(), LONGEST + 1);
        assert_eq!(filled("{interface}", &"\u{e9}".repeat(400)).unwrap().chars().count(), LONGEST + 1);
        let evil = "e;$(reboot)`";
        assert_eq!(
            filled("`ip link show {interface}` of {interface}", evil).unwrap(),
            format!("`ip link show <interface>` of {evil}")
        );
        assert_eq!(filled("[`x {interface}`|`y`] {ttl}", evil).unwrap(), "`x <interface>` 3");
        assert_eq!(
            filled("`ip link show [{interface}]`", "cali9f3@if2").unwrap(),
            "`ip link show cali9f3@if2`"
        );
        assert_eq!(filled("{interface}", "{ttl}[").unwrap(), "{ttl}[");
    }

    #[test]
    fn chinese_keeps_its_distance_from_latin_letters() {
        assert_eq!(typeset("到eth0的MTU 为 1500，发往 接收方 的"), "到 eth0 的 MTU 为 1500，发往接收方的");
        assert_eq!(typeset("a b"), "a b");
    }

    #[test]
    fn broken_ones_are_refused() {
        for text in ["{ttl", "ttl}", "[ttl", "ttl]", "[[{ttl}]]", "{nothing}", "`x", "[`{ttl}] `"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_it_cannot_do_without() {
        let template = Template::parse("{ttl} [{mark}|{length}] [{interface}]").unwrap();
        assert_eq!(template.needed(), [Fact::Ttl, Fact::Length]);
        let mut all = Vec::new();
        template.facts(&mut all);
        assert_eq!(all, [Fact::Ttl, Fact::Mark, Fact::Length, Fact::Interface]);
    }
}
