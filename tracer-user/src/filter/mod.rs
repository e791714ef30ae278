//! Filters: the words of the command line, as typed data, and their two readings: [`compile`] makes the kernel
//! half's maps of them, [`matches()`] evaluates them over an explained event. Both mean the same:
//!
//! - Words of one flag are joined by OR, different flags by AND. A negated word must not match; several negated
//!   words are several things that must not match.
//! - Address and port words look at the *tuples* of a packet: the packet itself, the original and the reply tuple
//!   of its conntrack entry (both turned into the packet's direction), and the packet inside it (of a tunnel or
//!   an ICMP error). There must be ONE tuple that satisfies all wanted address and port words together; no tuple
//!   at all may hit an unwanted one.
//! - Words about pods and services look at the tuples, too, and at the network namespace. But where both ends of a
//!   connection were translated no one tuple has both pods, so they need not be found in the same. Of the words about one
//!   end (`--pod`, `-n`, `-l`, `--workload` about either, `--from-pod` and so on about the source) one pod must satisfy
//!   all. Which addresses those are the inventory says ([`crate::identity`]), while droptrace runs.
//! - Every other word looks at the packet alone.

mod compile;
mod error;
mod matches;
mod names;
pub mod netns;
mod value;

pub use compile::{Compiled, compile};
pub(crate) use compile::{side_bit, word_bit};
pub use error::{WordError, near};
pub use matches::{matches, tuples};
pub use names::{Named, Selector, WorkloadName};
pub use value::{Glob, Prefix, Protocol, Value};

use std::fmt;

/// What a filter's flag speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flag {
    /// `--ip`, `--from-ip`, `--to-ip`.
    Ip(Side),
    /// `--port`, `--from-port`, `--to-port`.
    Port(Side),
    /// `--protocol`: of transport or of network.
    Protocol,
    /// `-4`, `-6`.
    Family(Family),
    /// `--interface`.
    Interface,
    /// `--netns`.
    Netns,
    /// `--reason`.
    Reason,
    /// `--cause`.
    Cause,
    /// `--pod`, `--from-pod`, `--to-pod`.
    Pod(Side),
    /// `-n`, `--from-namespace`, `--to-namespace`.
    Namespace(Side),
    /// `-l`, `--from-selector`, `--to-selector`.
    Selector(Side),
    /// `--workload`, `--from-workload`, `--to-workload`.
    Workload(Side),
    /// `--service`, `--from-service`, `--to-service`.
    Service(Side),
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Source or destination.
    Either,
    /// Source.
    From,
    /// Destination.
    To,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Flag {
    /// Every flag there is.
    pub const ALL: [Self; 28] = [
        Self::Ip(Side::Either),
        Self::Ip(Side::From),
        Self::Ip(Side::To),
        Self::Port(Side::Either),
        Self::Port(Side::From),
        Self::Port(Side::To),
        Self::Protocol,
        Self::Family(Family::V4),
        Self::Family(Family::V6),
        Self::Interface,
        Self::Netns,
        Self::Reason,
        Self::Cause,
        Self::Pod(Side::Either),
        Self::Pod(Side::From),
        Self::Pod(Side::To),
        Self::Namespace(Side::Either),
        Self::Namespace(Side::From),
        Self::Namespace(Side::To),
        Self::Selector(Side::Either),
        Self::Selector(Side::From),
        Self::Selector(Side::To),
        Self::Workload(Side::Either),
        Self::Workload(Side::From),
        Self::Workload(Side::To),
        Self::Service(Side::Either),
        Self::Service(Side::From),
        Self::Service(Side::To),
    ];

    /// Of which end of a packet a pod or service must be, for the flags that name some.
    #[must_use]
    pub fn end(self) -> Option<Side> {
        match self {
            Self::Pod(side)
            | Self::Namespace(side)
            | Self::Selector(side)
            | Self::Workload(side)
            | Self::Service(side) => Some(side),
            _ => None,
        }
    }

    /// As it is written on the command line.
    #[must_use]
    pub fn spelling(self) -> &'static str {
        match self {
            Self::Ip(Side::Either) => "--ip",
            Self::Ip(Side::From) => "--from-ip",
            Self::Ip(Side::To) => "--to-ip",
            Self::Port(Side::Either) => "--port",
            Self::Port(Side::From) => "--from-port",
            Self::Port(Side::To) => "--to-port",
            Self::Protocol => "--protocol",
            Self::Family(Family::V4) => "-4",
            Self::Family(Family::V6) => "-6",
            Self::Interface => "--interface",
            Self::Netns => "--netns",
            Self::Reason => "--reason",
            Self::Cause => "--cause",
            Self::Pod(Side::Either) => "--pod",
            Self::Pod(Side::From) => "--from-pod",
            Self::Pod(Side::To) => "--to-pod",
            Self::Namespace(Side::Either) => "-n",
            Self::Namespace(Side::From) => "--from-namespace",
            Self::Namespace(Side::To) => "--to-namespace",
            Self::Selector(Side::Either) => "-l",
            Self::Selector(Side::From) => "--from-selector",
            Self::Selector(Side::To) => "--to-selector",
            Self::Workload(Side::Either) => "--workload",
            Self::Workload(Side::From) => "--from-workload",
            Self::Workload(Side::To) => "--to-workload",
            Self::Service(Side::Either) => "--service",
            Self::Service(Side::From) => "--from-service",
            Self::Service(Side::To) => "--to-service",
        }
    }
}

/// One filter as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWord {
    /// The flag.
    pub flag: Flag,
    /// Its value; empty for `-4` and `-6`.
    pub text: String,
    /// True after `--not`.
    pub negated: bool,
}

/// One filter, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The flag.
    pub flag: Flag,
    /// Its value as it was typed, for messages.
    pub text: String,
    /// True if it must not match (`--not`, or `!` in a reason; both together: it must).
    pub negated: bool,
    /// What must (not) match.
    pub value: Value,
}

/// All filters of a command line. The empty one lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In the order in which they were typed.
    pub words: Vec<Word>,
}

impl Filter {
    /// Understands the words. `resolve_netns` turns a `--netns` value into the inode number of the network
    /// namespace that it names: [`netns::resolve`], the only part that asks the OS.
    ///
    /// # Errors
    /// The first word that has no meaning.
    pub fn parse(
        words: &[RawWord],
        resolve_netns: &dyn Fn(&str) -> Result<u32, netns::NetnsError>,
    ) -> Result<Self, WordError> {
        let words = words.iter().map(|raw| parse_word(raw, resolve_netns)).collect::<Result<_, _>>()?;
        Ok(Self { words })
    }

    /// True if it has words about pods or services, which take an inventory.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.words.iter().any(|word| word.flag.end().is_some())
    }

    /// Its words about causes alone. The kernel half knows none, so whoever gives drops their causes has to look.
    #[must_use]
    pub fn of_causes(&self) -> Self {
        Self { words: self.words.iter().filter(|word| word.flag == Flag::Cause).cloned().collect() }
    }

    /// True if it has words about labels.
    #[must_use]
    pub fn has_selector(&self) -> bool {
        self.words.iter().any(|word| matches!(word.value, Value::Selector(_)))
    }

    /// True if it lets everything through.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

fn parse_word(
    raw: &RawWord,
    resolve_netns: &dyn Fn(&str) -> Result<u32, netns::NetnsError>,
) -> Result<Word, WordError> {
    let text = raw.text.as_str();
    let mut negated = raw.negated;
    let value = match raw.flag {
        Flag::Ip(_) => value::prefix(text).map(Value::Address),
        Flag::Port(_) => value::port(text).map(Value::Port),
        Flag::Protocol => value::protocol(text).map(Value::Protocol),
        Flag::Family(family) => Ok(Value::Protocol(Protocol::of_family(family))),
        Flag::Interface => value::interface(text).map(Value::Interface),
        Flag::Pod(_) => names::pod(text).map(Value::Pod),
        Flag::Namespace(_) => names::namespace(text).map(Value::Namespace),
        Flag::Selector(_) => names::selector(text).map(Value::Selector),
        Flag::Workload(_) => names::workload(text).map(Value::Workload),
        Flag::Service(_) => names::service(text).map(Value::Service),
        Flag::Netns => resolve_netns(text)
            .map(Value::Netns)
            .map_err(|error| value::Problem { problem: error.to_string(), hint: error.hint() }),
        Flag::Cause => value::cause(text).map(Value::Cause),
        Flag::Reason => value::reason(text).map(|(excluded, glob)| {
            negated ^= excluded;
            Value::Reason(glob)
        }),
    };
    match value {
        Ok(value) => Ok(Word { flag: raw.flag, text: raw.text.clone(), negated, value }),
        Err(value::Problem { problem, hint }) => {
            Err(WordError { flag: raw.flag, text: raw.text.clone(), problem, hint })
        }
    }
}

impl fmt::Display for Filter {
    /// The filter as it could be typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, word) in self.words.iter().enumerate() {
            if position > 0 {
                f.write_str(" ")?;
            }
            // A reason's `!` is part of its text.
            if word.negated != word.text.starts_with('!') {
                f.write_str("--not ")?;
            }
            f.write_str(word.flag.spelling())?;
            if !word.text.is_empty() {
                write!(f, " {}", crate::output::escape(&word.text))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse(words: &[(Flag, &str, bool)]) -> Result<Filter, WordError> {
        let raw: Vec<RawWord> = words
            .iter()
            .map(|&(flag, text, negated)| RawWord { flag, text: text.to_owned(), negated })
            .collect();
        Filter::parse(&raw, &|text| {
            text.parse().map_err(|_| netns::NetnsError::NotFound { word: text.to_owned() })
        })
    }

    #[test]
    fn a_filter_prints_as_it_is_typed() {
        let filter = parse(&[
            (Flag::Ip(Side::From), "10.0.0.0/8", false),
            (Flag::Port(Side::Either), "22", true),
            (Flag::Family(Family::V6), "", true),
            (Flag::Reason, "!TCP_*", false),
            (Flag::Reason, "!NO_SOCKET", true),
        ])
        .unwrap();
        assert_eq!(
            filter.to_string(),
            "--from-ip 10.0.0.0/8 --not --port 22 --not -6 --reason !TCP_* --not --reason !NO_SOCKET"
        );
        let negated: Vec<bool> = filter.words.iter().map(|word| word.negated).collect();
        assert_eq!(negated, [false, true, true, true, false]);
    }

    #[test]
    fn a_word_without_meaning_is_named() {
        let error =
            parse(&[(Flag::Port(Side::To), "80", false), (Flag::Ip(Side::Either), "10.0.0.0/33", false)])
                .unwrap_err();
        assert_eq!((error.flag, error.text.as_str()), (Flag::Ip(Side::Either), "10.0.0.0/33"));
        assert!(parse(&[(Flag::Netns, "nowhere", false)]).is_err());
    }
}
