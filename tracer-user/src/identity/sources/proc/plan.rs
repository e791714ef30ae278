//! When to read /proc, and what to tell of it. Nothing here reads anything or asks the clock.

use super::Request;
use crate::identity::object::{Change, Flow, Key, Kind, Object};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// Between two scans for network namespaces, at least.
const NETNS: Duration = Duration::from_millis(250);
/// Between two scans for ports, at least.
const SOCKETS: Duration = Duration::from_secs(1);
/// Between two looks at IPVS's connections, at least: a drop waits for the answer.
const FLOWS: Duration = Duration::from_millis(100);
/// Flows that wait for one.
const MOST_FLOWS: usize = 1024;
/// Reading takes at most one part of so many of the time.
const SHARE: u32 = 10;
/// How soon a scan is made again for a netns that the last one was made for: first, and at most. One without processes
/// stays unknown however often it is looked for.
const AGAIN: Duration = Duration::from_secs(1);
const AT_MOST: Duration = Duration::from_secs(60);
/// How many of them are remembered.
const MOST: usize = 4096;

/// What to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Whose the network namespaces are.
    Netns,
    /// Whose the ports are.
    Sockets,
    /// What IPVS has of flows: of [`Plan::flows`].
    Flows,
}

/// What is wanted, and when it may be read.
#[derive(Debug, Default)]
pub(super) struct Plan {
    netns: Task,
    sockets: Task,
    flows: Task,
    asked: HashSet<Flow>,
    /// Those that a scan was made for: when the next may be, and the pause after that.
    looked: HashMap<u32, (Instant, Duration)>,
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Task {
    wanted: bool,
    not_before: Option<Instant>,
}

impl Task {
    fn is_due(&self, now: Instant) -> bool {
        self.wanted && self.not_before.is_none_or(|at| at <= now)
    }

    fn done(&mut self, pause: Duration, began: Instant, now: Instant) {
        let took = now.saturating_duration_since(began);
        self.not_before = Some((began + pause).max(now + took * SHARE));
    }
}

impl Plan {
    /// Wants the network namespaces, and to know whether there is IPVS, whoever asks.
    pub(super) fn begin(&mut self) {
        self.netns.wanted = true;
        self.flows.wanted = true;
    }

    /// The flows that were asked about; they are no more after that.
    pub(super) fn flows(&mut self) -> Vec<Flow> {
        self.asked.drain().collect()
    }

    /// Somebody asks.
    pub(super) fn ask(&mut self, request: Request, now: Instant) {
        match request {
            Request::Sockets => self.sockets.wanted = true,
            Request::Flow(flow) => {
                self.flows.wanted = true;
                if self.asked.len() < MOST_FLOWS {
                    self.asked.insert(flow);
                }
            }
            Request::Netns(inode) => {
                self.forget(now);
                let is_full = self.looked.len() >= MOST;
                match self.looked.get_mut(&inode) {
                    Some((next, _)) if *next > now => {}
                    Some((next, pause)) => {
                        *pause = (*pause * 2).min(AT_MOST);
                        *next = now + *pause;
                        self.netns.wanted = true;
                    }
                    None if !is_full => {
                        self.looked.insert(inode, (now + AGAIN, AGAIN));
                        self.netns.wanted = true;
                    }
                    None => {}
                }
            }
        }
    }

    /// Forgets those that may be looked for again, where there are too many to remember; that is looked for once a second.
    fn forget(&mut self, now: Instant) {
        let swept = |at: Instant| now.saturating_duration_since(at) < AGAIN;
        if self.looked.len() >= MOST && !self.swept.is_some_and(swept) {
            self.looked.retain(|_, (next, _)| *next > now);
            self.swept = Some(now);
        }
    }

    /// What to read now.
    pub(super) fn take(&mut self, now: Instant) -> Option<Work> {
        for (task, work) in [
            (&mut self.flows, Work::Flows),
            (&mut self.netns, Work::Netns),
            (&mut self.sockets, Work::Sockets),
        ] {
            if task.is_due(now) {
                task.wanted = false;
                return Some(work);
            }
        }
        None
    }

    /// That was read, from `began` until `now`.
    pub(super) fn done(&mut self, work: Work, began: Instant, now: Instant) {
        match work {
            Work::Netns => self.netns.done(NETNS, began, now),
            Work::Sockets => self.sockets.done(SOCKETS, began, now),
            Work::Flows => self.flows.done(FLOWS, began, now),
        }
    }

    /// When to read what is wanted and may not be read yet.
    pub(super) fn next(&self) -> Option<Instant> {
        let wanted = [&self.netns, &self.sockets, &self.flows].into_iter().filter(|task| task.wanted);
        wanted.filter_map(|task| task.not_before).min()
    }
}

/// What was told of one kind, so that only what is different is told again.
#[derive(Debug)]
pub(super) struct Known {
    kind: Kind,
    objects: Option<BTreeMap<Key, Object>>,
}

impl Known {
    /// Nothing was told of this kind.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, objects: None }
    }

    /// The changes that make what was told these: a whole list at first.
    pub(super) fn update(&mut self, objects: Vec<Object>) -> Vec<Change> {
        let new: BTreeMap<Key, Object> = objects.into_iter().map(|object| (object.key(), object)).collect();
        let mut changes = Vec::new();
        match &self.objects {
            None => {
                changes.push(Change::Begin(self.kind));
                changes.extend(new.values().cloned().map(Change::Set));
                changes.push(Change::End(self.kind));
            }
            Some(old) => {
                let gone = old.keys().filter(|key| !new.contains_key(*key));
                changes.extend(gone.map(|key| Change::Delete(self.kind, key.clone())));
                let other = new.iter().filter(|(key, object)| old.get(*key) != Some(object));
                changes.extend(other.map(|(_, object)| Change::Set(object.clone())));
            }
        }
        self.objects = Some(new);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::object::NetnsOwner;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn requests_are_joined_and_spaced() {
        let start = Instant::now();
        let mut plan = Plan::default();
        assert_eq!((plan.take(start), plan.next()), (None, None));
        (1..=5).for_each(|inode| plan.ask(Request::Netns(inode), start));
        assert_eq!((plan.take(start), plan.take(start)), (Some(Work::Netns), None));
        plan.done(Work::Netns, start, start + 2 * MS);
        // Another one: not at once.
        plan.ask(Request::Netns(6), start + 3 * MS);
        assert_eq!(plan.take(start + 3 * MS), None);
        assert_eq!(plan.next(), Some(start + NETNS));
        assert_eq!(plan.take(start + NETNS), Some(Work::Netns));
    }

    #[test]
    fn a_slow_scan_is_made_less_often() {
        let start = Instant::now();
        let mut plan = Plan::default();
        plan.ask(Request::Netns(1), start);
        assert_eq!(plan.take(start), Some(Work::Netns));
        plan.done(Work::Netns, start, start + 300 * MS);
        plan.ask(Request::Netns(2), start + 300 * MS);
        assert_eq!(plan.next(), Some(start + 3300 * MS));
    }

    #[test]
    fn one_that_is_never_found_is_looked_for_less_and_less() {
        let start = Instant::now();
        let mut plan = Plan::default();
        let mut scans = 0;
        // A drop in it every 10 ms for ten minutes.
        for n in 0..60_000 {
            let now = start + n * 10 * MS;
            plan.ask(Request::Netns(1), now);
            if let Some(work) = plan.take(now) {
                plan.done(work, now, now + MS);
                scans += 1;
            }
        }
        assert!((10..=20).contains(&scans), "{scans}");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let mut plan = Plan::default();
        (0..100_000).for_each(|inode| plan.ask(Request::Netns(inode), start));
        assert_eq!(plan.looked.len(), MOST);
        plan.ask(Request::Netns(1), start + AGAIN);
        assert_eq!(plan.looked.len(), 1);
    }

    #[test]
    fn ports_have_a_pace_of_their_own() {
        let start = Instant::now();
        let mut plan = Plan::default();
        plan.ask(Request::Sockets, start);
        assert_eq!(plan.take(start), Some(Work::Sockets));
        plan.done(Work::Sockets, start, start + MS);
        plan.ask(Request::Sockets, start + 2 * MS);
        plan.ask(Request::Netns(1), start + 2 * MS);
        assert_eq!(plan.take(start + 2 * MS), Some(Work::Netns));
        assert_eq!(plan.take(start + 2 * MS), None);
        assert_eq!(plan.next(), Some(start + SOCKETS));
    }

    #[test]
    fn flows_are_looked_for_together_and_bounded() {
        let start = Instant::now();
        let end = |port| std::net::SocketAddr::from(([10, 0, 0, 1], port));
        let flow = |port| Flow { netns: None, protocol: 6, source: end(port), destination: end(80) };
        let mut plan = Plan::default();
        plan.begin();
        assert_eq!((plan.take(start), plan.flows()), (Some(Work::Flows), vec![]));
        plan.done(Work::Flows, start, start + MS);
        assert_eq!(plan.take(start), Some(Work::Netns));
        (0..5000).chain(0..5000).for_each(|port| plan.ask(Request::Flow(flow(port)), start + MS));
        assert_eq!((plan.take(start + MS), plan.next()), (None, Some(start + FLOWS)));
        assert_eq!(plan.take(start + FLOWS), Some(Work::Flows));
        assert_eq!((plan.flows().len(), plan.flows().len()), (MOST_FLOWS, 0));
    }

    #[test]
    fn only_what_is_different_is_told_again() {
        let owner = |netns: u32, unit: &str| {
            let mut owner = NetnsOwner { netns, ..NetnsOwner::default() };
            owner.cgroup.unit = Some(unit.into());
            Object::Netns(owner)
        };
        let mut known = Known::new(Kind::Netns);
        let begun = known.update(vec![owner(1, "a"), owner(2, "b")]);
        assert_eq!(begun.len(), 4);
        assert_eq!((&begun[0], &begun[3]), (&Change::Begin(Kind::Netns), &Change::End(Kind::Netns)));
        assert!(known.update(vec![owner(1, "a"), owner(2, "b")]).is_empty());
        assert_eq!(
            known.update(vec![owner(2, "c"), owner(3, "d")]),
            [Change::Delete(Kind::Netns, "1".into()), Change::Set(owner(2, "c")), Change::Set(owner(3, "d"))]
        );
    }
}
