//! What there is to show: drops by each key, the last of them in full, and how many came in each second. Bounded.

use super::history::History;
use crate::event::model::{Class, Drop, Lost, Timestamp};
use crate::hist::Key;
use crate::output::Summary;
use crate::output::summary::Totals;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What drops are always grouped by, for the keys that turn from one to the next.
pub(super) const KEYS: [Key; 12] = [
    Key::Cause,
    Key::Place,
    Key::Pod,
    Key::Workload,
    Key::Namespace,
    Key::Service,
    Key::Pair,
    Key::Port,
    Key::Reason,
    Key::Interface,
    Key::Owner,
    Key::Netns,
];
/// Groups of a key; what is beyond them is counted together.
const MAX_GROUPS: usize = 2000;
/// Drops that can be looked at in full.
const MAX_DROPS: usize = 4096;
/// Seconds of the whole's history, and of a group's.
pub(super) const SECONDS: usize = 300;
pub(super) const GROUP_SECONDS: usize = 30;

/// A group's name; `None`: what the key says nothing of.
pub(super) type Label = Option<String>;

/// Drops with the same label.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// How many.
    pub(super) drops: u64,
    /// When.
    pub(super) history: History<GROUP_SECONDS>,
    /// When the last of them was dropped.
    pub(super) last: Timestamp,
}

impl Group {
    fn add(&mut self, drop: &Drop, second: u64) {
        self.drops = self.drops.saturating_add(drop.count);
        self.history.add(second, drop.count);
        self.last = self.last.max(drop.time_last);
    }
}

/// The groups of a key.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    /// By label.
    pub(super) groups: HashMap<Label, Group>,
    /// Those for which there was no room.
    pub(super) beyond: Group,
}

/// A drop that can be looked at.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    /// Its number, from 0.
    pub(super) number: u64,
    /// Itself.
    pub(super) drop: Arc<Drop>,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Model {
    by: Vec<(Key, Groups)>,
    drops: VecDeque<Recent>,
    next: u64,
    /// Of all that are not hidden.
    pub(super) history: History<SECONDS>,
    /// The second that is now.
    pub(super) second: u64,
    totals: Arc<Totals>,
    shows_routine: bool,
}

impl Model {
    /// Nothing yet. `first` is what drops are grouped by to begin with; `shows_routine`: drops of class routine are counted, too.
    pub(super) fn new(first: Option<Key>, shows_routine: bool) -> Self {
        let others = KEYS.into_iter().filter(|key| Some(*key) != first);
        Self {
            by: first.into_iter().chain(others).map(|key| (key, Groups::default())).collect(),
            drops: VecDeque::new(),
            next: 0,
            history: History::default(),
            second: 0,
            totals: Arc::default(),
            shows_routine,
        }
    }

    /// Takes drops.
    pub(super) fn add(&mut self, drop: &Drop) {
        let second = self.second;
        let totals = Arc::make_mut(&mut self.totals);
        if drop.drop.class == Class::Routine && !self.shows_routine {
            totals.hidden(drop);
            return;
        }
        totals.counted(drop);
        self.history.add(second, drop.count);
        for (key, groups) in &mut self.by {
            let label = key.label(drop);
            let has_room = groups.groups.len() < MAX_GROUPS || groups.groups.contains_key(&label);
            let group = if has_room { groups.groups.entry(label).or_default() } else { &mut groups.beyond };
            group.add(drop, second);
        }
        if drop.detail {
            if self.drops.len() >= MAX_DROPS {
                self.drops.pop_front();
            }
            self.drops.push_back(Recent { number: self.next, drop: Arc::new(drop.clone()) });
            self.next += 1;
        }
    }

    /// Takes a loss.
    pub(super) fn lost(&mut self, lost: &Lost) {
        Arc::make_mut(&mut self.totals).lost(lost);
    }

    /// What drops are grouped by.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.by.iter().map(|(key, _)| *key)
    }

    /// The groups of the key with this number, which may be too large.
    pub(super) fn groups(&self, index: usize) -> (Key, &Groups) {
        static NONE: std::sync::LazyLock<Groups> = std::sync::LazyLock::new(Groups::default);
        let last = self.by.len().saturating_sub(1);
        self.by.get(index.min(last)).map_or((Key::Place, &NONE), |(key, groups)| (*key, groups))
    }

    /// The last drops of a group, the newest first.
    pub(super) fn drops_of<'a>(&'a self, key: Key, label: &'a Label) -> impl Iterator<Item = &'a Recent> {
        self.drops.iter().rev().filter(move |it| key.label(&it.drop) == *label)
    }

    /// All that can be looked at, the newest first.
    pub(super) fn drops(&self) -> impl Iterator<Item = &Recent> {
        self.drops.iter().rev()
    }

    /// Drops that were counted and not hidden.
    pub(super) fn counted(&self) -> u64 {
        self.totals.drops()
    }

    /// Hidden drops, and losses.
    pub(super) fn background(&self) -> (u64, u64) {
        self.totals.background()
    }

    /// The totals.
    pub(super) fn summary(&self, duration: Duration) -> Summary {
        self.totals.summary(duration)
    }
}
