//! The rules around the one that dropped a packet, asked of the node's own tools on a thread of its own.

use crate::event::model::Drop;
use crate::netfilter::model::{Backend, Family, Netfilter};
use crate::netfilter::text;
use crate::netfilter::tools::{self, Limits, Wanted};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Rules on either side.
const BESIDE: usize = 4;
/// Bytes of a listing, and time that a tool may take.
const LIMITS: Limits = Limits { time: Duration::from_secs(3), bytes: 16 << 20 };

/// The rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbours {
    /// Their table and chain.
    pub(super) place: String,
    /// In order.
    pub(super) rules: Vec<Rule>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// In its chain, from 1.
    pub(super) number: usize,
    /// As the tool prints it.
    pub(super) text: String,
    /// The one that dropped the packet.
    pub(super) is_it: bool,
}

/// What comes back.
pub(super) type Answer = Receiver<Result<Neighbours, String>>;

/// Asks; `None` where no rule dropped it.
pub(super) fn ask(drop: &Drop) -> Option<Answer> {
    let netfilter = drop.drop.netfilter.as_deref()?.clone();
    let netns = drop.network.netns?;
    let chain = netfilter.chain.clone()?;
    if netfilter.rule.is_none() && netfilter.handle.is_none() {
        return None;
    }
    let (to, answer) = channel();
    let asking = thread::Builder::new().name("rules".to_owned()).spawn(move || {
        // Who asked may not want to know any more.
        let _ = to.send(listed(&netfilter, &chain, netns));
    });
    asking.is_ok().then_some(answer)
}

fn listed(netfilter: &Netfilter, chain: &str, netns: u32) -> Result<Neighbours, String> {
    let (Some(backend), Some(family), Some(table)) =
        (netfilter.backend, netfilter.family, netfilter.table.as_deref())
    else {
        return Err("the rule has no table".to_owned());
    };
    let is_iptables = netfilter.rule.is_some();
    let wanted = match backend {
        Backend::Legacy => Wanted::LegacyTable { family, table },
        Backend::Nft if is_iptables => Wanted::IptablesNftTable { family, table },
        Backend::Nft => Wanted::NftTable { family, table, json: false },
    };
    let listing = tools::listing(netns, &wanted, LIMITS).map_err(|error| error.to_string())?;
    let rules = match (netfilter.rule, netfilter.handle) {
        (Some(number), _) => around(&of_iptables(&listing, chain), |at, _| at + 1 == number as usize),
        (None, Some(handle)) => {
            let end = format!("# handle {handle}");
            around(&of_nft(&listing, chain), |_, text| text.ends_with(&end))
        }
        (None, None) => Vec::new(),
    };
    if rules.is_empty() {
        return Err("the rule is not there any more".to_owned());
    }
    Ok(Neighbours { place: place(family, table, chain, is_iptables), rules })
}

fn place(family: Family, table: &str, chain: &str, is_iptables: bool) -> String {
    if is_iptables { format!("{table}:{chain}") } else { format!("{}:{table}:{chain}", family.nft_name()) }
}

fn around(rules: &[&str], is_it: impl Fn(usize, &str) -> bool) -> Vec<Rule> {
    let Some(at) = rules.iter().enumerate().position(|(at, text)| is_it(at, text)) else { return Vec::new() };
    let rule = |(number, text): (usize, &&str)| Rule {
        number: number + 1,
        text: (*text).to_owned(),
        is_it: number == at,
    };
    rules
        .iter()
        .enumerate()
        .map(rule)
        .skip(at.saturating_sub(BESIDE))
        .take(at.min(BESIDE) + BESIDE + 1)
        .collect()
}

/// A chain's rules in what `iptables-save` prints.
fn of_iptables<'a>(listing: &'a str, chain: &str) -> Vec<&'a str> {
    text::saved_rules(listing).filter(|rule| rule.chain == chain).map(|rule| rule.text).collect()
}

/// A chain's rules in what `nft -a list table` prints: those of a chain stand between its head and the brace that closes it.
fn of_nft<'a>(listing: &'a str, chain: &str) -> Vec<&'a str> {
    let head = format!("chain {chain} {{");
    let lines = listing.lines().map(str::trim);
    let of_chain = lines.skip_while(|line| !line.starts_with(&head)).skip(1).take_while(|line| *line != "}");
    of_chain.filter(|line| line.contains("# handle ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_on_both_sides() {
        let listing: String =
            (1..=20).map(|number| format!("-A cali-x -m comment --comment {number}\n")).collect();
        let listing = format!("*filter\n:cali-x - [0:0]\n-A FORWARD -j cali-x\n{listing}COMMIT\n");
        let numbers = |rule: usize| {
            let rules = around(&of_iptables(&listing, "cali-x"), |at, _| at + 1 == rule);
            assert!(rules.iter().all(|it| it.is_it == (it.number == rule)));
            rules.into_iter().map(|it| it.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(10), (6..=14).collect::<Vec<_>>());
        assert_eq!(numbers(2), (1..=6).collect::<Vec<_>>());
        assert_eq!(numbers(20), (16..=20).collect::<Vec<_>>());
        assert_eq!(numbers(21), [0; 0]);
    }

    #[test]
    fn rules_of_a_native_chain() {
        let listing = "table inet f { # handle 1\n\tchain other { # handle 2\n\t\tdrop # handle 9\n\t}\n\
                       \tchain in { # handle 3\n\t\ttype filter hook input priority filter; policy accept;\n\
                       \t\ttcp dport 22 accept # handle 4\n\t\tdrop # handle 5\n\t}\n}\n";
        assert_eq!(of_nft(listing, "in"), ["tcp dport 22 accept # handle 4", "drop # handle 5"]);
        let found = around(&of_nft(listing, "in"), |_, text| text.ends_with("# handle 5"));
        assert_eq!((found.len(), found[1].number, found[1].is_it), (2, 2, true));
    }
}
