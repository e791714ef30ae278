//! Keeps a stream readable without losing a count: repeats within a second become one line, and what is above the
//! allowed lines a second becomes one line per kind. A pure state machine: drops and the time go in, lines come out,
//! and the counts that come out add up to those that went in.

use super::group::Group;
use super::words;
use crate::event::model::{Drop, Endpoint, Network};
use crate::netfilter::model::Netfilter;
use crate::tc::model::Filter;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// How long repeats are gathered, and the unit of the limit.
const SECOND: Duration = Duration::from_secs(1);
/// How often the windows are looked through for those that ended, at most: they may be many.
const SCAN_INTERVAL: Duration = Duration::from_millis(50);
/// Flows whose repeats are gathered at a time: bounds memory. Those beyond are printed as they come.
const MAX_WINDOWS: usize = 4096;
/// Kinds of suppressed drops told apart within a second; those beyond share a line.
const MAX_GROUPS: usize = 256;

/// What a line stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A drop as it came.
    Event,
    /// Repeats of one that was printed.
    Repeats,
    /// Drops of one kind that were above the limit: counts only.
    Suppressed,
}

/// A line to print. Its `drop.count` is a delta like any other.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) kind: Kind,
    pub(super) drop: Drop,
}

/// What is folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Gather repeats within a second.
    pub(super) repeats: bool,
    /// Lines a second.
    pub(super) lines: Option<u32>,
}

/// What makes a drop a repeat of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    ends: [(Option<IpAddr>, Option<u16>, Option<String>); 2],
    family: Option<String>,
    transport: Option<String>,
    icmp: (Option<u8>, Option<u8>),
    netns: Option<u32>,
    reason: Option<String>,
    location: Option<String>,
    rule: Option<Box<Netfilter>>,
    filter: Option<Filter>,
    cilium: Option<u8>,
    cause: Option<String>,
}

impl Key {
    fn of(drop: &Drop) -> Self {
        let pod = |end: &Endpoint| end.k8s.as_ref().and_then(words::who);
        let end = |end: &Endpoint| (end.address, end.port, pod(end));
        let why = &drop.drop;
        Self {
            ends: [end(&drop.source), end(&drop.destination)],
            family: drop.network.family.clone(),
            transport: drop.network.transport.clone(),
            icmp: (drop.packet.icmp_type, drop.packet.icmp_code),
            netns: drop.network.netns,
            reason: why.reason.clone(),
            location: why.location.clone(),
            rule: why.netfilter.clone(),
            cilium: why.cilium.as_ref().and_then(|cilium| cilium.code),
            filter: why.bpf.as_ref().map(|bpf| bpf.filter.clone()),
            cause: why.cause.as_ref().map(|cause| cause.id.clone()),
        }
    }
}

/// A flow that was printed and whose repeats are being gathered.
struct Window {
    end: Duration,
    /// The best detail known of the flow.
    like: Drop,
    repeats: Option<Drop>,
}

/// The state.
pub(super) struct Fold {
    limits: Limits,
    windows: HashMap<Key, Window>,
    /// No window is ended before.
    next_end: Duration,
    second_end: Duration,
    lines: u32,
    groups: HashMap<Group, Drop>,
}

impl Fold {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            windows: HashMap::new(),
            next_end: Duration::MAX,
            second_end: Duration::ZERO,
            lines: 0,
            groups: HashMap::new(),
        }
    }

    /// Takes a drop; `now` counts from any fixed time and never goes back. Lines to print are added to `out`.
    pub(super) fn push(&mut self, drop: &Drop, now: Duration, out: &mut Vec<Line>) {
        self.tick(now, out);
        if !self.limits.repeats {
            self.limit(Line { kind: Kind::Event, drop: drop.clone() }, out);
            return;
        }
        let key = Key::of(drop);
        if let Some(window) = self.windows.get_mut(&key) {
            if drop.detail && !window.like.detail {
                window.like = without_stack(drop);
            }
            match &mut window.repeats {
                Some(repeats) => merge(repeats, drop),
                none => *none = Some(without_stack(drop)),
            }
            return;
        }
        if self.windows.len() < MAX_WINDOWS {
            let end = now + SECOND;
            self.next_end = self.next_end.min(end);
            self.windows.insert(key, Window { end, like: without_stack(drop), repeats: None });
        }
        self.limit(Line { kind: Kind::Event, drop: drop.clone() }, out);
    }

    /// Ends what ends by `now`.
    pub(super) fn tick(&mut self, now: Duration, out: &mut Vec<Line>) {
        if now >= self.second_end {
            self.flush_groups(out);
            self.lines = 0;
            self.second_end = now + SECOND;
        }
        if now >= self.next_end {
            self.end_windows(now, out);
        }
    }

    /// True if nothing is kept back: time brings no new line.
    pub(super) fn is_empty(&self) -> bool {
        self.windows.is_empty() && self.groups.is_empty()
    }

    /// Ends everything.
    pub(super) fn finish(&mut self, out: &mut Vec<Line>) {
        self.end_windows(Duration::MAX, out);
        self.flush_groups(out);
    }

    fn end_windows(&mut self, now: Duration, out: &mut Vec<Line>) {
        let mut ended: Vec<Drop> = Vec::new();
        self.windows.retain(|_, window| {
            if now < window.end {
                return true;
            }
            let Some(repeats) = window.repeats.take() else {
                return false;
            };
            // A flow that goes on gets one line a second.
            window.end = now.saturating_add(SECOND);
            let like = &window.like;
            ended.push(if repeats.detail {
                repeats
            } else {
                Drop {
                    time: repeats.time,
                    time_last: repeats.time_last,
                    count: repeats.count,
                    segments: repeats.segments,
                    ..like.clone()
                }
            });
            true
        });
        let next_end = self.windows.values().map(|window| window.end).min().unwrap_or(Duration::MAX);
        self.next_end = next_end.max(now.saturating_add(SCAN_INTERVAL));
        ended.sort_by_key(|drop| drop.time);
        for drop in ended {
            self.limit(Line { kind: Kind::Repeats, drop }, out);
        }
    }

    /// Lets a line out, or puts it into its group if this second has had its lines.
    fn limit(&mut self, line: Line, out: &mut Vec<Line>) {
        match self.limits.lines {
            Some(limit) if self.lines >= limit => self.suppress(&line.drop),
            _ => {
                self.lines += 1;
                out.push(line);
            }
        }
    }

    fn suppress(&mut self, drop: &Drop) {
        let mut group = Group::of(drop);
        let full = self.groups.len() >= MAX_GROUPS;
        if full && !self.groups.contains_key(&group) {
            group = Group::default();
        }
        match self.groups.get_mut(&group) {
            Some(sum) => merge(sum, drop),
            None => {
                let sum = if group == Group::default() { only_counts(drop) } else { counts_of_kind(drop) };
                self.groups.insert(group, sum);
            }
        }
    }

    fn flush_groups(&mut self, out: &mut Vec<Line>) {
        let mut ended: Vec<Drop> = self.groups.drain().map(|(_, sum)| sum).collect();
        ended.sort_by(|a, b| (a.time, &a.drop.location).cmp(&(b.time, &b.drop.location)));
        out.extend(ended.into_iter().map(|drop| Line { kind: Kind::Suppressed, drop }));
    }
}

fn merge(sum: &mut Drop, drop: &Drop) {
    sum.count += drop.count;
    sum.segments += drop.segments;
    sum.time = sum.time.min(drop.time);
    sum.time_last = sum.time_last.max(drop.time_last);
}

/// Stacks are large, and a repeat's is not printed.
fn without_stack(drop: &Drop) -> Drop {
    Drop { stack: Vec::new(), ..drop.clone() }
}

/// Counts and times, and nothing else.
fn only_counts(drop: &Drop) -> Drop {
    Drop {
        time: drop.time,
        time_last: drop.time_last,
        node: drop.node.clone(),
        count: drop.count,
        segments: drop.segments,
        ..Drop::default()
    }
}

/// Counts and times, and what the members of a group have in common.
fn counts_of_kind(drop: &Drop) -> Drop {
    let end = |end: &Endpoint| Endpoint { k8s: end.k8s.clone(), ..Endpoint::default() };
    Drop {
        source: end(&drop.source),
        destination: end(&drop.destination),
        network: Network { netns: drop.network.netns, ..Network::default() },
        drop: drop.drop.clone(),
        ..only_counts(drop)
    }
}
