//! When an entry of the knowledge base speaks of a drop: a table of facts and what each must be.
//!
//! `{ reason = "NO_SOCKET", transport = ["tcp", "udp"], ttl = "<= 1" }` holds if all of its lines hold. A text is a pattern
//! (`*`, `?`, letters of either case) for the whole of a fact; of a list one must hold; a number, or a comparison with one, is
//! for facts that are numbers. `any` and `all` are lists of such tables, `not` is one that must not hold. A fact that is not
//! known fits nothing, so `not = { reason = "*" }` is: there is no reason.

use super::facts::{Fact, Facts, Origin, Value};
use crate::filter::Glob;

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Fact(Fact, Vec<Test>),
}

/// What a fact may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Like(Glob),
    Number(Comparison, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Is,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Test {
    fn holds(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Like(glob), Value::Text(text)) => glob.matches(text),
            (Self::Like(glob), Value::Texts(texts)) => texts.iter().any(|text| glob.matches(text)),
            // Any number is like `*`; that is how one asks whether it is known.
            (Self::Like(glob), Value::Number(_)) => glob.pattern() == "*",
            (Self::Number(comparison, wanted), Value::Number(number)) => match comparison {
                Comparison::Is => number == wanted,
                Comparison::Less => number < wanted,
                Comparison::AtMost => number <= wanted,
                Comparison::More => number > wanted,
                Comparison::AtLeast => number >= wanted,
            },
            (Self::Number(..), _) => false,
        }
    }
}

impl Condition {
    /// Reads a table.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn parse(table: &toml::Table) -> Result<Self, String> {
        let mut all = Vec::with_capacity(table.len());
        for (name, value) in table {
            all.push(match name.as_str() {
                "any" => Self::Any(Self::list(name, value)?),
                "all" => Self::All(Self::list(name, value)?),
                "not" => Self::Not(Box::new(Self::parse(value.as_table().ok_or("`not` takes a table")?)?)),
                _ => {
                    let fact = Fact::named(name)?;
                    let tests = match value {
                        toml::Value::Array(values) => {
                            values.iter().map(|value| test(fact, value)).collect::<Result<_, _>>()?
                        }
                        one => vec![test(fact, one)?],
                    };
                    Self::Fact(fact, tests)
                }
            });
        }
        match all.len() {
            0 => Err("an empty condition would hold for every drop".to_owned()),
            1 => Ok(all.remove(0)),
            _ => Ok(Self::All(all)),
        }
    }

    fn list(name: &str, value: &toml::Value) -> Result<Vec<Self>, String> {
        let tables = value.as_array().filter(|list| !list.is_empty());
        let tables = tables.ok_or_else(|| format!("`{name}` takes a list of tables"))?;
        let table = |value: &toml::Value| {
            Self::parse(value.as_table().ok_or_else(|| format!("`{name}` takes a list of tables"))?)
        };
        tables.iter().map(table).collect()
    }

    /// True if it holds.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.holds(facts)),
            Self::Any(any) => any.iter().any(|one| one.holds(facts)),
            Self::Not(not) => !not.holds(facts),
            Self::Fact(fact, tests) => {
                facts.get(*fact).is_some_and(|value| tests.iter().any(|test| test.holds(&value)))
            }
        }
    }

    /// All facts that it asks for.
    pub(super) fn facts(&self, out: &mut Vec<Fact>) {
        match self {
            Self::All(list) | Self::Any(list) => list.iter().for_each(|one| one.facts(out)),
            Self::Not(not) => not.facts(out),
            Self::Fact(fact, _) => out.push(*fact),
        }
    }

    /// The facts that it holds by: of several ways in which it may hold, the first that it does. True if it holds.
    pub(super) fn support(&self, facts: &Facts<'_>, out: &mut Vec<Fact>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.support(facts, out)),
            Self::Any(any) => {
                any.iter().find(|one| one.holds(facts)).is_some_and(|one| one.support(facts, out))
            }
            Self::Not(_) | Self::Fact(..) => {
                self.facts(out);
                self.holds(facts)
            }
        }
    }

    /// True if this fact is known wherever it holds.
    pub(super) fn makes_known(&self, fact: Fact) -> bool {
        match self {
            Self::All(all) => all.iter().any(|one| one.makes_known(fact)),
            Self::Any(any) => any.iter().all(|one| one.makes_known(fact)),
            Self::Not(_) => false,
            Self::Fact(own, _) => *own == fact || fact.comes_with() == Some(*own),
        }
    }

    /// What tells most drops for which it can't hold: one of these keys must be the drop's. `None`: any drop's.
    pub(super) fn keys(&self) -> Option<Vec<Key>> {
        match self {
            Self::All(all) => all.iter().filter_map(Self::keys).min_by_key(|keys| rank(keys)),
            Self::Any(any) => Some(any.iter().map(Self::keys).collect::<Option<Vec<_>>>()?.concat()),
            Self::Not(_) => None,
            Self::Fact(fact, tests) => {
                let exact = |make: fn(String) -> Key| -> Option<Vec<Key>> {
                    let word = |test: &Test| match test {
                        Test::Like(glob) if !glob.pattern().contains(['*', '?']) => {
                            Some(make(glob.pattern().to_owned()))
                        }
                        _ => None,
                    };
                    tests.iter().map(word).collect()
                };
                let own = match fact {
                    Fact::Reason => exact(Key::Reason),
                    Fact::Function => exact(Key::Function),
                    Fact::Routine => exact(Key::Routine),
                    Fact::CiliumCode => tests
                        .iter()
                        .map(|test| match test {
                            Test::Number(Comparison::Is, code) => Some(Key::Cilium(*code)),
                            _ => None,
                        })
                        .collect(),
                    _ => None,
                };
                own.or_else(|| match fact.origin() {
                    Origin::Netfilter => Some(vec![Key::Netfilter]),
                    Origin::Bpf => Some(vec![Key::Bpf]),
                    Origin::Cilium => Some(vec![Key::AnyCilium]),
                    Origin::Packet | Origin::Node => None,
                })
            }
        }
    }
}

/// A drop's most telling traits. Texts are in upper case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Routine(String),
    Cilium(u64),
    AnyCilium,
    Bpf,
    Reason(String),
    Function(String),
    Netfilter,
}

/// How few drops have one of these keys; less is fewer.
fn rank(keys: &[Key]) -> Option<u8> {
    let rank = |key: &Key| match key {
        Key::Routine(_) => 0,
        Key::Cilium(_) => 1,
        Key::AnyCilium => 2,
        Key::Bpf => 3,
        // Most drops of netfilter have its one reason.
        Key::Reason(reason) => {
            if reason == "NETFILTER_DROP" {
                7
            } else {
                4
            }
        }
        Key::Function(_) => 5,
        Key::Netfilter => 6,
    };
    keys.iter().map(rank).max()
}

fn test(fact: Fact, value: &toml::Value) -> Result<Test, String> {
    let name = fact.name();
    match (fact.is_number(), value) {
        (true, toml::Value::Integer(number)) => {
            let number = u64::try_from(*number).map_err(|_| format!("{name} is never {number}"))?;
            Ok(Test::Number(Comparison::Is, number))
        }
        (true, toml::Value::String(text)) if text == "*" => Ok(Test::Like(Glob::new("*"))),
        (true, toml::Value::String(text)) => comparison(text)
            .ok_or_else(|| format!("{name} is a number: {text:?} is neither one nor \"< N\", \"<= N\", \"> N\", \">= N\" or \"*\"")),
        (false, toml::Value::String(text)) => Ok(Test::Like(Glob::new(text))),
        (false, other) => Err(format!("{name} is a text, which stands in quotes, not of type {}", other.type_str())),
        (true, other) => Err(format!("{name} is a number, not of type {}", other.type_str())),
    }
}

fn comparison(text: &str) -> Option<Test> {
    let signs = [
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("<", Comparison::Less),
        (">", Comparison::More),
    ];
    let (rest, comparison) = signs.into_iter().find_map(|(sign, it)| Some((text.strip_prefix(sign)?, it)))?;
    Some(Test::Number(comparison, rest.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::{Drop, Network, Packet, Reason};

    fn parse(text: &str) -> Result<Condition, String> {
        Condition::parse(&text.parse::<toml::Table>().map_err(|error| error.to_string())?)
    }

    fn holds(text: &str) -> bool {
        let drop = Drop {
            network: Network { transport: Some("tcp".into()), ..Network::default() },
            packet: Packet { ttl: Some(1), ..Packet::default() },
            drop: Reason {
                reason: Some("NO_SOCKET".into()),
                location: Some("tcp_v4_rcv.part.0+0x1f [m]".into()),
                ..Reason::default()
            },
            ..Drop::default()
        };
        parse(text).unwrap().holds(&Facts::new(&drop, None, &[]))
    }

    #[test]
    fn tables_of_facts() {
        for held in [
            r#"reason = "NO_SOCKET""#,
            r#"reason = ["X", "no_*"]"#,
            r#"function = "tcp_v4_rcv""#,
            "ttl = 1",
            r#"ttl = "<= 1""#,
            r#"ttl = "*""#,
            r#"ttl = [7, "< 2"]"#,
            "reason = \"*\"\ntransport = \"tcp\"",
            r#"any = [{ ttl = 2 }, { transport = "tcp" }]"#,
            r#"all = [{ ttl = "> 0" }, { not = { mark = "*" } }]"#,
            r#"not = { interface = "*" }"#,
        ] {
            assert!(holds(held), "{held}");
        }
        for not in [
            r#"reason = "NO_SOCKE""#,
            r#"ttl = "> 1""#,
            "mark = 0",
            r#"interface = "*""#,
            "reason = \"*\"\ntransport = \"udp\"",
            r#"any = [{ ttl = 2 }, { transport = "udp" }]"#,
            r#"not = { reason = "*" }"#,
        ] {
            assert!(!holds(not), "{not}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for (text, why) in [
            ("", "every drop"),
            ("reasn = \"X\"", "did you mean `reason`"),
            ("ttl = \"one\"", "ttl is a number"),
            ("ttl = -1", "never"),
            ("reason = 1", "reason is a text"),
            ("any = []", "list of tables"),
            ("not = 1", "table"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_rarest_trait_is_the_key() {
        let keys = |text| parse(text).unwrap().keys();
        assert_eq!(keys("reason = \"NO_SOCKET\"\nttl = 1"), Some(vec![Key::Reason("NO_SOCKET".into())]));
        assert_eq!(keys("chain = \"X\"\nreason = \"NETFILTER_DROP\""), Some(vec![Key::Netfilter]));
        assert_eq!(keys("cilium_code = [133, 181]"), Some(vec![Key::Cilium(133), Key::Cilium(181)]));
        assert_eq!(keys("reason = \"TCP_*\""), None);
        assert_eq!(keys("any = [{ reason = \"A\" }, { function = \"b\" }]").unwrap().len(), 2);
        assert_eq!(keys("any = [{ reason = \"A\" }, { ttl = 1 }]"), None);
        assert_eq!(keys("not = { reason = \"A\" }"), None);
    }
}
