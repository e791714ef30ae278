//! Walks a packet through the chains of one table, along every way that it may have taken.
//!
//! Where a rule matches perhaps, both ways are walked on as one: of the mark is kept what both have in common. So the walk
//! visits each rule once for each jump to its chain, not once for each way to it.

use super::mark::Mark;
use super::packet::{Connection, Packet};
use super::rule::{Action, Next, Rule, Writes, is_target};
use super::truth::Truth;
use super::{Culprit, TableText, Verdict};
use crate::netfilter::text::{self, SavedRule};
use std::collections::HashMap;

/// Most culprits that are told.
pub(super) const MAX_CULPRITS: usize = 16;
/// Chains that a packet may be in at once. nf_tables has 16 (NFT_JUMP_STACK_SIZE), x_tables as many as there are chains.
pub(super) const MAX_DEPTH: u32 = 64;

/// A table's chains.
pub(super) struct Table<'a> {
    name: &'a str,
    /// The base chain on the hook.
    base: &'a str,
    /// The base chain's policy; `None` if it is not there.
    policy: Option<&'a str>,
    /// Rules are read when they are asked: all of them, read, would take ten times the memory of the text.
    chains: HashMap<&'a str, Vec<SavedRule<'a>>>,
    /// No rule is missing.
    is_whole: bool,
}

impl<'a> Table<'a> {
    pub(super) fn read(table: &TableText<'a>) -> Self {
        let mut chains: HashMap<&str, Vec<SavedRule<'_>>> = HashMap::new();
        let mut policy = None;
        let mut is_whole = text::is_whole(table.listing);
        for (name, found) in text::saved_chains(table.listing) {
            // A jump to it would look like the target.
            is_whole &= !is_target(name);
            if name == table.chain && found != "-" {
                policy = Some(found);
            }
            chains.entry(name).or_default();
        }
        for saved in text::saved_rules(table.listing) {
            chains.entry(saved.chain).or_default().push(saved);
        }
        Self { name: table.table, base: table.chain, policy, chains, is_whole }
    }

    /// Its base chain on the hook.
    pub(super) fn base(&self) -> &'a str {
        self.base
    }

    /// The base chain's policy; `None` if there is no such chain.
    pub(super) fn policy(&self) -> Option<&'a str> {
        self.policy
    }

    /// The rules of a chain.
    pub(super) fn rules(&self, chain: &str) -> Option<&[SavedRule<'a>]> {
        self.chains.get(chain).map(Vec::as_slice)
    }

    /// Whether no rule is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    /// What its rules change, all of them.
    pub(super) fn writes(&self) -> Changes {
        let mut changes = Changes::default();
        for saved in self.chains.values().flatten() {
            changes.add(&Rule::parse(saved.text).action.writes);
        }
        changes
    }

    /// Of the nat table: whether it is about the destination on this hook, not about the source (HOOK2MANIP,
    /// include/net/netfilter/nf_nat.h).
    pub(super) fn rewrites_destination(&self) -> bool {
        matches!(self.base, "PREROUTING" | "OUTPUT")
    }
}

/// What was found on the way.
#[derive(Debug, Default)]
pub(super) struct Walked<'a> {
    /// At most [`MAX_CULPRITS`].
    pub(super) culprits: Vec<Culprit<'a>>,
    /// There are more culprits.
    pub(super) has_more: bool,
    /// It may have come through.
    pub(super) passes: bool,
    /// All rules are known, and all were asked that had to be.
    pub(super) is_complete: bool,
    pub(super) changes: Changes,
}

/// What rules may have changed in the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Bits of the mark.
    pub(super) mark: u32,
    pub(super) addresses: bool,
    ttl: bool,
    length: bool,
    connection: bool,
}

impl Changes {
    pub(super) fn add(&mut self, writes: &Writes) {
        self.mark |= writes.mark.changes();
        self.addresses |= writes.addresses;
        self.ttl |= writes.ttl;
        self.length |= writes.length;
        self.connection |= writes.connection;
    }

    /// With these changes, too.
    pub(super) fn join(&mut self, other: Self) {
        self.mark |= other.mark;
        self.addresses |= other.addresses;
        self.ttl |= other.ttl;
        self.length |= other.length;
        self.connection |= other.connection;
    }

    /// The packet as far as it is known from before the changes.
    pub(super) fn before<'p>(&self, packet: &Packet<'p>) -> Packet<'p> {
        let mut packet = *packet;
        if self.addresses {
            forget_addresses(&mut packet);
        }
        packet.ttl = packet.ttl.filter(|_| !self.ttl);
        packet.length = packet.length.filter(|_| !self.length);
        packet.connection = packet.connection.filter(|_| !self.connection);
        packet
    }
}

/// Makes unknown what NAT changes.
pub(super) fn forget_addresses(packet: &mut Packet<'_>) {
    (packet.source, packet.destination) = (None, None);
    (packet.source_port, packet.destination_port) = (None, None);
    if let Some(Connection::Tracked { status, .. }) = &mut packet.connection {
        *status = None;
    }
}

/// Walks a packet that enters the table with the mark `start` and had the mark `at_drop` when it was dropped.
pub(super) fn walk<'a>(
    table: &Table<'a>,
    packet: &Packet<'_>,
    start: Mark,
    at_drop: Mark,
    steps: &mut u32,
) -> Walked<'a> {
    let walked = Walked { is_complete: table.is_whole, ..Walked::default() };
    let mut walk = Walk { table, packet, at_drop, steps, walked };
    let end = walk.chain(table.base, start, 0);
    match (end, table.policy) {
        (None, Some(_)) => {}
        (Some(_), Some("ACCEPT")) => walk.walked.passes = true,
        (Some(mark), Some("DROP")) => walk.blame(None, Verdict::Policy, mark),
        // The listing has no such chain: it is another rule set's.
        (_, None) | (Some(_), Some(_)) => {
            walk.walked.is_complete = false;
            walk.walked.passes = true;
        }
    }
    walk.walked
}

struct Walk<'w, 'a> {
    table: &'w Table<'a>,
    packet: &'w Packet<'w>,
    at_drop: Mark,
    steps: &'w mut u32,
    walked: Walked<'a>,
}

/// Where a packet may be after a rule, and with which mark; `None` if it can't be there.
#[derive(Default)]
struct After {
    on: Option<Mark>,
    returned: Option<Mark>,
}

/// One way or the other.
fn either(one: Option<Mark>, other: Option<Mark>) -> Option<Mark> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.or(other)),
        (one, other) => one.or(other),
    }
}

impl<'a> Walk<'_, 'a> {
    /// The mark with which the packet comes out at a chain's end; `None` if it doesn't.
    fn chain(&mut self, name: &str, mark: Mark, depth: u32) -> Option<Mark> {
        let table = self.table;
        let rules = table.chains.get(name)?;
        let mut here = Some(mark);
        let mut returned = None;
        for saved in rules {
            let Some(mark) = here else { break };
            if !self.step() {
                return Some(Mark::default());
            }
            let rule = Rule::parse(saved.text);
            let asked = rule.ask(self.packet, mark);
            if asked.may_drop {
                self.blame(Some(*saved), Verdict::Hotdrop, mark);
            }
            if asked.truth == Truth::No {
                continue;
            }
            let after = self.act(*saved, &rule.action, asked.taken, depth);
            returned = either(returned, after.returned);
            here = match asked.truth {
                Truth::Yes => after.on,
                _ => either(Some(asked.passed), after.on),
            };
        }
        either(returned, here)
    }

    /// False if there have been too many.
    fn step(&mut self) -> bool {
        let left = self.steps.checked_sub(1);
        match left {
            Some(left) => *self.steps = left,
            None => self.give_up(),
        }
        left.is_some()
    }

    /// What follows is not known.
    fn give_up(&mut self) {
        self.walked.is_complete = false;
        self.walked.passes = true;
    }

    fn act(&mut self, rule: SavedRule<'a>, action: &Action<'a>, mark: Mark, depth: u32) -> After {
        if let Next::Jump(name) | Next::Goto(name) = action.next
            && !self.table.chains.contains_key(name)
        {
            return self.act(rule, &Action::unknown(Some(name)), mark, depth);
        }
        self.walked.changes.add(&action.writes);
        if let Some(verdict) = action.drops {
            self.blame(Some(rule), verdict, mark);
        }
        let mark = mark.written(action.writes.mark);
        match action.next {
            Next::Nowhere => After::default(),
            Next::On => After { on: Some(mark), returned: None },
            Next::Return => After { on: None, returned: Some(mark) },
            Next::Accept => {
                self.walked.passes = true;
                After::default()
            }
            Next::Anywhere => {
                self.walked.passes = true;
                After { on: Some(mark), returned: Some(mark) }
            }
            Next::Jump(_) | Next::Goto(_) if depth >= MAX_DEPTH => {
                self.give_up();
                After { on: Some(Mark::default()), returned: None }
            }
            Next::Jump(name) => After { on: self.chain(name, mark, depth + 1), returned: None },
            // The end of a chain that was gone to is the end of this one.
            Next::Goto(name) => After { on: None, returned: self.chain(name, mark, depth + 1) },
        }
    }

    /// A rule, or the policy, may have dropped the packet, which had this mark then.
    fn blame(&mut self, rule: Option<SavedRule<'a>>, verdict: Verdict<'a>, mark: Mark) {
        if !mark.may_be(self.at_drop) {
            return;
        }
        let culprit = Culprit {
            table: self.table.name,
            chain: rule.map_or(self.table.base, |rule| rule.chain),
            rule: rule.map(|rule| rule.ordinal),
            text: rule.map(|rule| rule.text),
            verdict,
        };
        if self.walked.culprits.contains(&culprit) {
            return;
        }
        if self.walked.culprits.len() < MAX_CULPRITS {
            self.walked.culprits.push(culprit);
        } else {
            self.walked.has_more = true;
        }
    }
}
