//! Which rules of iptables may have dropped a packet, where the kernel did not tell: the packet is evaluated against the
//! tables of its hook, as `iptables-save` prints them.
//!
//! Not all of a packet is known, and not all that rules ask for can be known afterwards: a set may have changed, a limit
//! was another. So a rule matches, doesn't, or perhaps does; and the answer is a set that has the true culprit in it, if a
//! rule of these tables was it. Only where that set has one member it says something.
//!
//! Facts are those of the moment of the drop, and rules may have changed the packet before. A packet that a table dropped
//! went through this table's rules only since it entered it: what they may have changed counts as unknown at its start.

mod counts;
mod mark;
pub mod matched;
mod matches;
#[cfg(test)]
mod model;
mod packet;
pub mod path;
mod rule;
#[cfg(test)]
mod tests;
mod truth;
mod walk;

pub use packet::{Connection, Interface, Packet, State};
pub use path::{Ends, Path, counted_path, path, unmoved};

use super::model::{Confidence, RuleRef};
use super::text;
use mark::Mark;
use matches::status;
use std::borrow::Cow;
use walk::{MAX_CULPRITS, Table, Walked, forget_addresses, walk};

/// Most rules that are asked, in all tables together.
const MAX_STEPS: u32 = 200_000;

/// A table on the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableText<'a> {
    /// Its name, such as `filter`.
    pub table: &'a str,
    /// Its base chain on the hook, such as `FORWARD`.
    pub chain: &'a str,
    /// What `iptables-save -t TABLE` prints of it (`ip6tables-save` for IPv6), legacy or nft.
    pub listing: &'a str,
}

/// What may have dropped the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Culprit<'a> {
    /// The table's name.
    pub table: &'a str,
    /// The chain: of the rule, or the base chain whose policy it was.
    pub chain: &'a str,
    /// The rule's number in its chain, from 1; `None` for a policy.
    pub rule: Option<u32>,
    /// The rule as it stands in the listing; `None` for a policy.
    pub text: Option<&'a str>,
    /// How.
    pub verdict: Verdict<'a>,
}

/// How a rule drops a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// `-j DROP`
    Drop,
    /// `-j REJECT`
    Reject,
    /// The base chain's policy.
    Policy,
    /// `-j NFQUEUE`: nobody listens, or who does dropped it.
    Queue,
    /// A target of NAT that found no address or port.
    NatFailed,
    /// A match dropped it: a header was cut off, or a table was full.
    Hotdrop,
    /// Another target, by name; `None` if the rule was not understood.
    Other(Option<&'a str>),
}

/// What [`evaluate`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluation<'a> {
    /// In the order in which they are asked. At most 16.
    pub culprits: Vec<Culprit<'a>>,
    /// False if there may be others: a listing was cut off or has no such chain, or there was too much to do.
    pub is_complete: bool,
}

impl Verdict<'_> {
    /// As [`super::model::Netfilter::verdict`].
    #[must_use]
    pub fn name(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Policy => "policy",
            Self::Queue => "queue",
            Self::NatFailed => "nat-failed",
            Self::Hotdrop => "hotdrop",
            Self::Other(Some(name)) => return Some(Cow::Owned(format!("expression:{name}"))),
            Self::Other(None) => return None,
        }))
    }
}

impl<'a> Culprit<'a> {
    /// What a reject sends back, such as `icmp-port-unreachable`.
    #[must_use]
    pub fn reject_with(&self) -> Option<&'a str> {
        let text = self.text.filter(|_| self.verdict == Verdict::Reject)?;
        text::words(text).skip_while(|word| *word != "--reject-with").nth(1)
    }

    /// As the event's model has it.
    #[must_use]
    pub fn reference(&self) -> RuleRef {
        RuleRef {
            table: self.table.to_owned(),
            chain: self.chain.to_owned(),
            rule: self.rule,
            handle: None,
            text: self.text.map(str::to_owned),
        }
    }
}

/// How sure an answer is, and the answer if there is one.
#[must_use]
pub fn confidence<'e, 'a>(evaluation: &'e Evaluation<'a>) -> (Confidence, Option<&'e Culprit<'a>>) {
    match evaluation.culprits.as_slice() {
        [one] if evaluation.is_complete => (Confidence::Inferred, Some(one)),
        _ => (Confidence::Ambiguous, None),
    }
}

/// Whether NAT has given its answer for a connection with this nf_conn.status, for its destination or for its source.
#[must_use]
pub fn is_translated(status: u32, is_destination: bool) -> bool {
    status & if is_destination { status::DST_NAT_DONE } else { status::SRC_NAT_DONE } != 0
}

/// Whether a connection with this nf_conn.status is in the table of connections: its first packet has come through.
#[must_use]
pub fn is_confirmed(status: u32) -> bool {
    status & status::CONFIRMED != 0
}

/// The rules and policies that may have dropped a packet on a hook. `tables` are the hook's, in the order in which they
/// are asked; `only` names the table that dropped it, if that is known. Takes time and memory in proportion to the
/// listings, and asks at most 200,000 rules.
#[must_use]
pub fn evaluate<'a>(packet: &Packet<'_>, tables: &[TableText<'a>], only: Option<&str>) -> Evaluation<'a> {
    let asked = tables.iter().filter(|table| only.is_none_or(|only| only == table.table));
    let tables: Vec<Table<'_>> = asked.map(Table::read).collect();
    let at_drop = packet.mark.map_or(Mark::default(), |mark| Mark::new(mark, u32::MAX));
    let mut steps = MAX_STEPS;
    let mut evaluation =
        Evaluation { culprits: Vec::new(), is_complete: only.is_none() || !tables.is_empty() };
    let entered = enter(packet, &tables, &mut steps);
    for (table, Walked { changes, passes, is_complete, .. }) in tables.iter().zip(entered) {
        evaluation.is_complete &= is_complete;
        if table.name() != NAT || only.is_some() || may_be_asked(table, packet) {
            let start = packet.mark.map_or(Mark::default(), |mark| Mark::new(mark, !changes.mark));
            let walked = walk(table, &changes.before(packet), start, at_drop, &mut steps);
            evaluation.is_complete &= walked.is_complete && !walked.has_more;
            evaluation.culprits.extend(walked.culprits);
        }
        // NAT is asked for a connection's first packet only.
        if !passes && table.name() != NAT {
            break;
        }
    }
    if evaluation.culprits.len() > MAX_CULPRITS {
        evaluation.culprits.truncate(MAX_CULPRITS);
        evaluation.is_complete = false;
    }
    evaluation
}

/// The table of NAT.
const NAT: &str = "nat";

/// What a packet that may have gone further met in each table: only what nothing on the hook changes is known of it.
fn enter<'a>(packet: &Packet<'_>, tables: &[Table<'a>], steps: &mut u32) -> Vec<Walked<'a>> {
    let nat = tables.iter().position(|table| table.name() == NAT);
    let mut enter = |addresses_change: bool| -> Vec<Walked<'a>> {
        let enter = |(index, table): (usize, &Table<'a>)| {
            let mut packet = Packet { ttl: None, length: None, ..*packet };
            if addresses_change || (nat.is_some_and(|nat| index <= nat) && may_be_changed(&packet)) {
                forget_addresses(&mut packet);
            }
            // Asked before connection tracking is, and it may set aside what that finds.
            if table.name() == "raw" {
                packet.connection = None;
            }
            walk(table, &packet, Mark::default(), Mark::default(), steps)
        };
        tables.iter().enumerate().map(enter).collect()
    };
    let entered = enter(false);
    let changes_addresses = |walked: &Walked<'_>| walked.changes.addresses;
    if entered.iter().any(changes_addresses) { enter(true) } else { entered }
}

/// Whether NAT may have changed the packet.
fn may_be_changed(packet: &Packet<'_>) -> bool {
    match packet.connection {
        None | Some(Connection::Tracked { status: None, .. }) => true,
        Some(Connection::Tracked { status: Some(status), .. }) => {
            status & (status::SRC_NAT | status::DST_NAT) != 0
        }
        Some(Connection::Untracked | Connection::Invalid | Connection::None) => false,
    }
}

/// Whether the nat table may have dropped the packet: it is asked for packets of new connections until it has given its
/// answer (nf_nat_inet_fn(), net/netfilter/nf_nat_core.c).
fn may_be_asked(table: &Table<'_>, packet: &Packet<'_>) -> bool {
    match packet.connection {
        None => true,
        Some(Connection::Tracked { state: State::New | State::Related, status, .. }) => {
            let done = if table.rewrites_destination() { status::DST_NAT_DONE } else { status::SRC_NAT_DONE };
            status.is_none_or(|status| status & done == 0)
        }
        Some(_) => false,
    }
}
