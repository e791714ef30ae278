//! The way of a packet through one table: the rules that it surely matched, as the kernel's TRACE target would log them
//! (trace_packet(), net/ipv4/netfilter/ip_tables.c).
//!
//! It is followed only as far as it is sure. Where a rule perhaps matches, or does what can't be known, it ends, and says why. Where
//! the counters of the rules were compared before and behind the table, they say what matched, and evaluating only keeps them from
//! being believed when they tell of other packets, too.

use super::counts::{Contradiction, Counts};
use super::mark::Mark;
use super::packet::Packet;
use super::rule::{Action, Asked, Next, Rule};
use super::truth::Truth;
use super::walk::{Changes, MAX_DEPTH, Table};
use super::{MAX_STEPS, TableText, Verdict};
use crate::netfilter::model::{Backend, Confidence};
use crate::netfilter::moved::CountedTable;
use crate::netfilter::text::SavedRule;
use crate::trace::model::{Met, RuleMet};
use std::collections::HashMap;

/// Most rules that are told.
const MAX_MET: usize = 1024;

/// A packet's way through a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The rules that it matched, the ends of chains and the policy that it came to, in order.
    pub met: Vec<RuleMet>,
    /// Why these are not all; `None` if they are.
    pub unsure: Option<String>,
    /// What came of it.
    pub ends: Ends,
    /// The packet's mark then, as far as it is known.
    mark: Mark,
    /// What rules changed besides.
    changes: Changes,
}

impl Path {
    /// The packet behind the table, as far as it is known.
    #[must_use]
    pub fn after<'p>(&self, packet: &Packet<'p>) -> Packet<'p> {
        Packet { mark: self.mark.whole(), ..self.changes.before(packet) }
    }
}

/// What came of a packet in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// It goes on to what comes after the table.
    Accepted,
    /// It was dropped, or rejected.
    Dropped,
    /// It can't be known: [`Path::unsure`] says why.
    Unknown,
}

/// The way of a packet through a table, whose rules `backend` keeps. `packet` is as it was when it came to the table, with the
/// mark of that moment. Of a nat table only the first packet of a connection comes to the rules. Takes time in proportion to
/// the listing, and asks at most 200,000 rules.
#[must_use]
pub fn path(packet: &Packet<'_>, table: &TableText<'_>, backend: Backend) -> Path {
    follow(packet, table, backend, None)
}

/// The same, as the counters of its rules tell it: `moved` has those that have moved while the packet was in the table, and how
/// far. `None` if other packets may have moved some, or not all can be told that way.
#[must_use]
pub fn counted_path(
    packet: &Packet<'_>,
    table: &TableText<'_>,
    counted: &CountedTable,
    moved: HashMap<u64, u64>,
) -> Option<Path> {
    let path = follow(packet, table, counted.backend, Some(Counts::new(counted, table.chain, moved)));
    path.unsure.is_none().then_some(path)
}

/// The first of the rules that a packet met by evaluating whose counter has not moved: it can't have.
#[must_use]
pub fn unmoved(met: &[RuleMet], counted: &CountedTable, moved: &HashMap<u64, u64>) -> Option<usize> {
    met.iter().position(|it| {
        let chain = counted.chains.get(&it.chain);
        let counter = chain.and_then(|chain| match it.kind {
            Met::Rule => *chain.rules.get((it.rule? as usize).checked_sub(1)?)?,
            Met::Return | Met::Policy => chain.end,
        });
        counter.is_some_and(|counter| !moved.contains_key(&counter))
    })
}

fn follow(packet: &Packet<'_>, table: &TableText<'_>, backend: Backend, counts: Option<Counts<'_>>) -> Path {
    let table = Table::read(table);
    let mark = packet.mark.map_or(Mark::default(), |mark| Mark::new(mark, u32::MAX));
    let mut way = Way {
        table: &table,
        packet,
        backend,
        mark,
        changes: Changes::default(),
        steps: MAX_STEPS,
        met: Vec::new(),
        counts,
    };
    let end = match table.policy() {
        Some(policy) if table.is_whole() => way.table(policy),
        Some(_) => Err(format!("table {} can't be read to its end", table.name())),
        None => Err(format!("table {} has no base chain {} here", table.name(), table.base())),
    };
    let Way { met, mut mark, mut changes, counts, .. } = way;
    let end = end.and_then(|ends| match counts {
        Some(counts) if !counts.are_used_up() => Err(contradicted(Contradiction)),
        _ => Ok(ends),
    });
    let (ends, unsure) = match end {
        Ok(ends) => (ends, None),
        Err(why) => {
            // Of the rules that follow any may have been met.
            changes.join(table.writes());
            mark = Mark::default();
            (Ends::Unknown, Some(why))
        }
    };
    Path { met, unsure, ends, mark, changes }
}

struct Way<'w, 'a> {
    table: &'w Table<'a>,
    packet: &'w Packet<'w>,
    backend: Backend,
    /// The packet's mark by now.
    mark: Mark,
    /// What rules may have changed besides.
    changes: Changes,
    steps: u32,
    met: Vec<RuleMet>,
    /// What the rules' counters tell; without, rules are evaluated.
    counts: Option<Counts<'w>>,
}

/// Where a packet goes after a rule or a chain.
enum After {
    On,
    Back,
    Out(Ends),
}

impl<'a> Way<'_, 'a> {
    /// `Err` says why the way can't be followed further.
    fn table(&mut self, policy: &str) -> Result<Ends, String> {
        let base = self.table.base();
        if let After::Out(ends) = self.chain(base, 0)? {
            return Ok(ends);
        }
        let (verdict, ends) = match policy {
            "ACCEPT" => ("accept", Ends::Accepted),
            "DROP" => ("drop", Ends::Dropped),
            other => return Err(format!("the policy {other} is not known")),
        };
        self.end(base, Met::Policy, verdict)?;
        Ok(ends)
    }

    fn chain(&mut self, name: &str, depth: u32) -> Result<After, String> {
        let table = self.table;
        if depth > MAX_DEPTH {
            return Err(format!("chains jump to each other more than {MAX_DEPTH} deep"));
        }
        for saved in table.rules(name).unwrap_or_default() {
            self.steps = self.steps.checked_sub(1).ok_or("there are too many rules")?;
            if self.met.len() >= MAX_MET {
                return Err("it matched too many rules".to_owned());
            }
            match self.rule(saved, depth)? {
                After::On => {}
                other => return Ok(other),
            }
        }
        if depth > 0 {
            self.end(name, Met::Return, "return")?;
        }
        Ok(After::Back)
    }

    fn rule(&mut self, saved: &SavedRule<'a>, depth: u32) -> Result<After, String> {
        let rule = Rule::parse(saved.text);
        let packet = self.changes.before(self.packet);
        let Asked { truth, may_drop, .. } = rule.ask(&packet, self.mark);
        let place = || format!("{}:{}:rule:{}", self.table.name(), saved.chain, saved.ordinal);
        let truth = match &mut self.counts {
            // What a match drops moves no counter.
            Some(_) if may_drop && self.backend == Backend::Nft => Truth::Unknown,
            Some(counts) => {
                let counted = counts.rule(saved.chain, saved.ordinal, truth).map_err(contradicted)?;
                if counted { Truth::Yes } else { Truth::No }
            }
            None if may_drop => Truth::Unknown,
            None => truth,
        };
        if truth == Truth::Unknown {
            let what = match rule.doubt(&packet, self.mark) {
                None | Some("") => "it is not understood".to_owned(),
                Some(name) if name.starts_with('-') => format!("{name} can't be judged"),
                Some(name) => format!("-m {name} can't be judged"),
            };
            return Err(format!("whether {} matched can't be known: {what}", place()));
        }
        if truth == Truth::No {
            return Ok(After::On);
        }
        let unknown = format!("what {} did can't be known: -j {}", place(), rule.target.unwrap_or("?"));
        let verdict = verdict(&rule);
        self.push(saved.chain, Met::Rule, Some(saved.ordinal), verdict, Some(saved.text));
        self.act(&rule.action, depth).unwrap_or(Err(unknown))
    }

    /// `None` if it can't be known what it did.
    fn act(&mut self, action: &Action<'_>, depth: u32) -> Option<Result<After, String>> {
        let is_known = match action.drops {
            // That NAT found no address is rare, and told as the drop that it is.
            None | Some(Verdict::Drop | Verdict::Reject | Verdict::NatFailed) => true,
            Some(_) => false,
        };
        if !is_known {
            return None;
        }
        self.mark = self.mark.written(action.writes.mark);
        self.changes.add(&action.writes);
        Some(Ok(match action.next {
            Next::Nowhere => After::Out(Ends::Dropped),
            Next::Accept => After::Out(Ends::Accepted),
            Next::On => After::On,
            Next::Return => After::Back,
            Next::Anywhere => return None,
            Next::Jump(name) | Next::Goto(name) => {
                self.table.rules(name)?;
                match (self.chain(name, depth + 1), action.next) {
                    (Ok(After::Back), Next::Jump(_)) => After::On,
                    (Ok(after), _) => after,
                    (Err(why), _) => return Some(Err(why)),
                }
            }
        }))
    }

    /// The end of a chain: its number is one more than its last rule has.
    fn end(&mut self, chain: &str, kind: Met, verdict: &str) -> Result<(), String> {
        if let Some(counts) = &mut self.counts {
            counts.end(chain).map_err(contradicted)?;
        }
        let rules = self.table.rules(chain).map_or(0, <[_]>::len);
        let number = u32::try_from(rules).ok().and_then(|rules| rules.checked_add(1));
        self.push(chain, kind, number, verdict.to_owned(), None);
        Ok(())
    }

    fn push(&mut self, chain: &str, kind: Met, rule: Option<u32>, verdict: String, text: Option<&str>) {
        let (confidence, method) = match self.counts {
            Some(_) => (Confidence::Exact, "counter"),
            None => (Confidence::Inferred, "evaluated"),
        };
        self.met.push(RuleMet {
            backend: self.backend,
            family: self.packet.family,
            table: self.table.name().to_owned(),
            chain: chain.to_owned(),
            kind,
            rule,
            handle: None,
            verdict,
            text: text.map(str::to_owned),
            mark: self.mark.whole(),
            confidence,
            method,
        });
    }
}

fn contradicted(_: Contradiction) -> String {
    "the rules' counters tell of other packets, too".to_owned()
}

/// As in [`RuleMet::verdict`].
pub(super) fn verdict(rule: &Rule<'_>) -> String {
    match (rule.action.next, rule.target) {
        (Next::Goto(chain), _) => format!("goto {chain}"),
        (Next::Jump(chain), _) => format!("jump {chain}"),
        (_, None) => "continue".to_owned(),
        (_, Some(name @ ("ACCEPT" | "DROP" | "REJECT" | "RETURN"))) => name.to_lowercase(),
        (_, Some("QUEUE" | "NFQUEUE")) => "queue".to_owned(),
        (_, Some(name)) => format!("target {}", name.to_lowercase()),
    }
}
