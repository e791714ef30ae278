//! What doctor tells, as plain data: `words` and `json` print it.

use super::texts::Text;
pub use crate::cause::Severity;
use crate::event::model::Evidence;
use crate::netfilter::model::{Backend, Family};
use crate::probe::{selftest::Proof, tracer::Losses};
use crate::xdp::report::Known;
use serde::Serialize;

/// A misconfiguration, or what else one should know of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable; where a cause of drops (`causes.toml`) is what it leads to, that one's.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what to change, and where.
    pub text: Text,
    /// What was read that says so.
    pub evidence: Vec<Evidence>,
    /// Inode number of the network namespace that it is about; none where it is the cluster or the whole machine.
    pub netns: Option<u32>,
    /// The interface that it is about.
    pub interface: Option<String>,
}

/// Something that was read, as findings show it.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "callers give numbers and texts alike")]
pub fn evidence(name: impl Into<String>, value: impl ToString, source: &str) -> Evidence {
    Evidence { name: name.into(), value: value.to_string(), source: source.to_owned(), change: None }
}

/// How well something works here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As well as it can.
    Works,
    /// Less well than it could.
    Limited,
    /// Not at all.
    Off,
}

/// What droptrace needs or can do, and whether it is so here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mechanism {
    /// Which.
    pub name: &'static str,
    /// Whether.
    pub state: State,
    /// How, or why not.
    pub says: String,
    /// What to do about it; none where nothing is to be done.
    pub fix: Option<String>,
}

/// A table of rules, and how its drops are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Who keeps it.
    pub backend: Backend,
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// All rules (nft), or those that can drop (legacy).
    pub rules: usize,
    /// True if the kernel tells which of them dropped.
    pub exact: bool,
    /// Hooks whose drops are inferred at best, for too many rules can drop there.
    pub left_out: Vec<&'static str>,
}

/// What was dropped before droptrace began, by one counter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dropped {
    /// What counts.
    pub by: Counter,
    /// Inode number of the network namespace; none for counters of the whole machine.
    pub netns: Option<u32>,
    /// The pod whose network namespace that is.
    pub pod: Option<String>,
    /// The counter: `filter:INPUT:rule:3`, `TcpExtListenDrops`, `eth0 rx_dropped`.
    pub name: String,
    /// The rule as the node's own tool prints it, or what the counter means.
    pub text: Option<String>,
    /// Who wrote the rule.
    pub owner: Option<String>,
    /// Where that was read.
    pub source: String,
    /// Packets so far.
    pub count: u64,
    /// Packets in the last moments; none if it could not be read once more.
    pub more: Option<u64>,
    /// The same a second.
    pub rate: Option<f64>,
}

/// What counts drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counter {
    /// A rule that drops or rejects.
    Rule,
    /// The policy of a base chain.
    Policy,
    /// Connection tracking.
    Conntrack,
    /// A protocol of the network stack: IP, ICMP, TCP, UDP.
    Protocol,
    /// IPsec.
    Ipsec,
    /// The table of neighbours.
    Neighbour,
    /// The CPUs' backlog.
    Softnet,
    /// A network device, its driver, or its XDP program.
    Device,
    /// A queueing discipline.
    Qdisc,
    /// Cilium's datapath.
    Cilium,
}

/// Something that could not be looked at, or not in full.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unread {
    /// What.
    pub what: String,
    /// Why, and what to do.
    pub why: String,
}

/// An XDP program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Xdp {
    /// The interface.
    pub interface: String,
    /// `driver`, `generic` or `hardware`.
    pub mode: &'static str,
    /// Its name.
    pub program: Option<String>,
    /// Its id.
    pub id: u32,
    /// Its tag.
    pub tag: Option<String>,
    /// Where it is pinned.
    pub pinned: Option<String>,
    /// Packets that its drops were counted as; none where nothing counts them.
    pub dropped: Option<u64>,
    /// Of these, in the last moments.
    pub more: Option<u64>,
}

impl Xdp {
    /// Of what is known of a program.
    #[must_use]
    pub fn of(known: &Known) -> Self {
        let is_counted = !known.counters.is_empty();
        Self {
            interface: known.attached.interface.clone(),
            mode: known.attached.mode.name(),
            program: known.program.name.clone(),
            id: known.attached.program,
            tag: known.program.tag.clone(),
            pinned: known.program.pinned.clone(),
            dropped: is_counted.then(|| known.dropped()),
            more: known.more.filter(|_| is_counted),
        }
    }
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Most severe first.
    pub findings: Vec<Finding>,
    /// Those that go on first, then by count.
    pub dropped: Vec<Dropped>,
    /// What could not be looked at.
    pub unread: Vec<Unread>,
    /// What this kernel, the privileges and the container allow.
    pub system: Vec<Mechanism>,
    /// How it is known which rule drops a packet.
    pub rules: Vec<Mechanism>,
    /// The tables of all network namespaces.
    pub tables: Vec<Table>,
    /// The XDP programs of the network namespace, or why they are not known.
    pub xdp: Result<Vec<Known>, String>,
    /// The self-test in full: its drops, and how many of them were told; none if it was not asked for.
    pub proof: Option<Option<Proof>>,
    /// What probes and the stack agreed on; none without probes.
    pub probes: Option<Losses>,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            findings: Vec::new(),
            dropped: Vec::new(),
            unread: Vec::new(),
            system: Vec::new(),
            rules: Vec::new(),
            tables: Vec::new(),
            xdp: Ok(Vec::new()),
            proof: None,
            probes: None,
        }
    }
}

impl Report {
    /// True if something is wrong with the node.
    #[must_use]
    pub fn has_misconfiguration(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity < Severity::Info)
    }
}
