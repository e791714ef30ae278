//! Rule sets as data, written down in iptables' or nft's words, and what their counters tell.
//!
//! Each rule has a number of its own in its comment, and what it counts is read from the kernel: nothing here says
//! which rule a packet meets.

use super::backend::Backend;
use super::listing::Listed;
use super::topology::Family;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A rule's own number; its comment is `u` and the number.
pub type Id = u32;

/// The hooks, in the order in which a packet meets those it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Arrived.
    Prerouting,
    /// For this host.
    Input,
    /// For another.
    Forward,
    /// Sent by this host.
    Output,
    /// Leaves.
    Postrouting,
}

impl Hook {
    /// As nft writes it.
    #[must_use]
    pub fn lower(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    /// As iptables and droptrace write it.
    #[must_use]
    pub fn upper(self) -> String {
        self.lower().to_uppercase()
    }
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its hook.
    pub hook: Hook,
    /// Its place among the hook's functions. iptables has its own, by table.
    pub priority: i32,
    /// What happens at its end: true drops.
    pub drops: bool,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its table.
    pub table: &'static str,
    /// Its name.
    pub name: String,
    /// `None`: rules jump to it.
    pub base: Option<Base>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A rule; all rules are about UDP, and all but maps have a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub id: Id,
    /// Which packets it takes.
    pub takes: Match,
    /// What it does.
    pub target: Target,
}

/// Which packets a rule takes: all of these must hold. Ranges include their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Anything but UDP.
    pub not_udp: bool,
    /// Source address.
    pub source: Option<std::net::IpAddr>,
    /// Source ports.
    pub source_ports: Option<(u16, u16)>,
    /// Destination ports.
    pub ports: Option<(u16, u16)>,
}

impl Match {
    /// One destination port.
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self { ports: Some((port, port)), ..Self::default() }
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Only counts.
    Count,
    /// Accepts.
    Accept,
    /// Drops.
    Drop,
    /// Rejects.
    Reject,
    /// Jumps to a chain.
    Jump(String),
    /// Goes to a chain for good.
    Goto(String),
    /// Leaves the chain.
    Return,
    /// A verdict map by destination port; nft only.
    Map(Vec<(u16, Target)>),
    /// Counts what the next rule, a map, drops: the destination ports. nft only.
    CountPorts(Vec<u16>),
}

impl Rule {
    /// A rule that takes one destination port.
    #[must_use]
    pub fn port(id: Id, port: u16, target: Target) -> Self {
        Self { id, takes: Match::port(port), target }
    }

    /// A rule that takes all UDP.
    #[must_use]
    pub fn all(id: Id, target: Target) -> Self {
        Self { id, takes: Match::default(), target }
    }
}

/// The comment of a rule.
#[must_use]
pub fn comment(id: Id) -> String {
    format!("u{id}")
}

/// The number in a comment.
#[must_use]
pub fn id_of(comment: &str) -> Option<Id> {
    comment.strip_prefix('u')?.parse().ok()
}

/// The rules in their tool's words; `nft_family` is the tables' family for nft.
#[must_use]
pub fn write_down(chains: &[Chain], backend: Backend, family: Family, nft_family: &str) -> String {
    let mut tables: Vec<&str> = chains.iter().map(|chain| chain.table).collect();
    tables.sort_unstable();
    tables.dedup();
    let mut text = String::new();
    for table in tables {
        let own: Vec<&Chain> = chains.iter().filter(|chain| chain.table == table).collect();
        // Writing to a string cannot fail.
        let _ = match backend {
            Backend::Nft => nft_table(&mut text, nft_family, table, &own, family),
            _ => iptables_table(&mut text, table, &own, family),
        };
    }
    text
}

fn iptables_table(text: &mut String, table: &str, chains: &[&Chain], family: Family) -> std::fmt::Result {
    writeln!(text, "*{table}")?;
    for chain in chains {
        let policy = chain.base.map_or("-", |base| if base.drops { "DROP" } else { "ACCEPT" });
        writeln!(text, ":{} {policy} [0:0]", chain.name)?;
    }
    for chain in chains {
        for rule in &chain.rules {
            writeln!(text, "{}", iptables_rule(&chain.name, rule, family))?;
        }
    }
    writeln!(text, "COMMIT")
}

/// A rule as iptables-save writes it.
#[must_use]
pub fn iptables_rule(chain: &str, rule: &Rule, family: Family) -> String {
    let takes = &rule.takes;
    let mut text = format!("-A {chain}");
    if let Some(source) = takes.source {
        text += &format!(" -s {source}/{}", family.pick(32, 128));
    }
    text += if takes.not_udp { " ! -p udp" } else { " -p udp" };
    if takes.source_ports.is_some() || takes.ports.is_some() {
        text += " -m udp";
    }
    for (option, range) in [("--sport", takes.source_ports), ("--dport", takes.ports)] {
        match range {
            Some((first, last)) if first == last => text += &format!(" {option} {first}"),
            Some((first, last)) => text += &format!(" {option} {first}:{last}"),
            None => {}
        }
    }
    text += &format!(" -m comment --comment {}", comment(rule.id));
    text += &match &rule.target {
        // Maps are nft's alone: iptables would only count.
        Target::Count | Target::Map(_) | Target::CountPorts(_) => String::new(),
        Target::Accept => " -j ACCEPT".to_owned(),
        Target::Drop => " -j DROP".to_owned(),
        Target::Reject => format!(" -j REJECT --reject-with {}", reject_with(family)),
        Target::Jump(to) => format!(" -j {to}"),
        Target::Goto(to) => format!(" -g {to}"),
        Target::Return => " -j RETURN".to_owned(),
    };
    text
}

/// What iptables' reject rules send back.
#[must_use]
pub fn reject_with(family: Family) -> &'static str {
    family.pick("icmp-host-prohibited", "icmp6-adm-prohibited")
}

fn nft_table(
    text: &mut String,
    nft_family: &str,
    table: &str,
    chains: &[&Chain],
    family: Family,
) -> std::fmt::Result {
    writeln!(text, "table {nft_family} {table} {{")?;
    for chain in chains {
        writeln!(text, "chain {} {{", chain.name)?;
        if let Some(Base { hook, priority, drops }) = chain.base {
            let policy = if drops { "drop" } else { "accept" };
            writeln!(text, "type filter hook {} priority {priority}; policy {policy};", hook.lower())?;
        }
        for rule in &chain.rules {
            writeln!(text, "{}", nft_rule(rule, family))?;
        }
        writeln!(text, "}}")?;
    }
    writeln!(text, "}}")
}

/// A rule as nft reads it.
#[must_use]
pub fn nft_rule(rule: &Rule, family: Family) -> String {
    let takes = &rule.takes;
    let mut words: Vec<String> = Vec::new();
    if let Some(source) = takes.source {
        words.push(format!("{} saddr {source}", family.pick("ip", "ip6")));
    }
    for (end, range) in [("sport", takes.source_ports), ("dport", takes.ports)] {
        match range {
            Some((first, last)) if first == last => words.push(format!("udp {end} {first}")),
            Some((first, last)) => words.push(format!("udp {end} {first}-{last}")),
            None => {}
        }
    }
    if words.is_empty() && !matches!(rule.target, Target::Map(_) | Target::CountPorts(_)) {
        words.push(format!("meta l4proto {}udp", if takes.not_udp { "!= " } else { "" }));
    }
    words.push(match &rule.target {
        Target::Map(entries) => {
            let entries: Vec<String> =
                entries.iter().map(|(port, to)| format!("{port} : {}", nft_verdict(to))).collect();
            format!("udp dport vmap {{ {} }}", entries.join(", "))
        }
        Target::CountPorts(ports) => {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            format!("udp dport {{ {} }} counter", ports.join(", "))
        }
        other => format!("counter {}", nft_verdict(other)).trim_end().to_owned(),
    });
    words.push(format!("comment \"{}\"", comment(rule.id)));
    words.join(" ")
}

fn nft_verdict(target: &Target) -> String {
    match target {
        Target::Count | Target::Map(_) | Target::CountPorts(_) => String::new(),
        Target::Accept => "accept".to_owned(),
        Target::Drop => "drop".to_owned(),
        Target::Reject => "reject".to_owned(),
        Target::Jump(to) => format!("jump {to}"),
        Target::Goto(to) => format!("goto {to}"),
        Target::Return => "return".to_owned(),
    }
}

/// Packets that each rule counted.
pub type Counts = BTreeMap<Id, u64>;

/// The counters of a listing.
#[must_use]
pub fn counts(listed: &[Listed]) -> Counts {
    let one = |rule: &Listed| Some((id_of(rule.comment.as_deref()?)?, rule.packets?));
    listed.iter().filter_map(one).collect()
}

/// What each rule counted between two listings.
#[must_use]
pub fn difference(before: &Counts, after: &Counts) -> Counts {
    let since = |(id, count): (&Id, &u64)| (*id, count.saturating_sub(*before.get(id).unwrap_or(&0)));
    after.iter().map(since).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rule_in_both_languages() {
        let rule = Rule {
            id: 7,
            takes: Match { source_ports: Some((1, 9)), ..Match::port(53) },
            target: Target::Drop,
        };
        assert_eq!(
            iptables_rule("INPUT", &rule, Family::V4),
            "-A INPUT -p udp -m udp --sport 1:9 --dport 53 -m comment --comment u7 -j DROP"
        );
        assert_eq!(nft_rule(&rule, Family::V4), "udp sport 1-9 udp dport 53 counter drop comment \"u7\"");
        let count = Rule::all(8, Target::Count);
        assert_eq!(nft_rule(&count, Family::V6), "meta l4proto udp counter comment \"u8\"");
        let map = Target::Map(vec![(5, Target::Drop), (6, Target::Jump("x".into()))]);
        assert_eq!(
            nft_rule(&Rule::all(9, map), Family::V6),
            "udp dport vmap { 5 : drop, 6 : jump x } comment \"u9\""
        );
    }

    #[test]
    fn differences_leave_out_what_did_not_move() {
        let before = Counts::from([(1, 5), (2, 5)]);
        let after = Counts::from([(1, 5), (2, 8), (3, 1)]);
        assert_eq!(difference(&before, &after), Counts::from([(2, 3), (3, 1)]));
    }

    #[test]
    fn ids_come_back_from_comments() {
        assert_eq!(id_of(&comment(42)), Some(42));
        assert_eq!(id_of("x42"), None);
    }
}
