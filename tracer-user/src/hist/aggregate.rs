//! Adds up drops by group and time. Memory is bounded: of groups there are at most so many, what comes after is added
//! up as one; where groups and buckets together are too many, buckets become twice as wide. Neither loses a count:
//! the groups and what is beyond them always add up to the total.

use super::key::Key;
use super::window::Span;
use crate::event::model::{Drop, Timestamp};
use std::collections::{BTreeMap, HashMap};

/// Groups told apart.
const MAX_GROUPS: usize = 10_000;
/// Counts kept: groups times buckets, as far as they are not empty. About 50 bytes each.
const MAX_CELLS: usize = 1 << 20;

/// How many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Dropped skbs.
    pub drops: u64,
    /// Their segments.
    pub segments: u64,
}

impl Counts {
    /// Adds others. Only numbers that no kernel counts (in a damaged file) reach the end.
    pub fn add(&mut self, other: Self) {
        self.drops = self.drops.saturating_add(other.drops);
        self.segments = self.segments.saturating_add(other.segments);
    }
}

/// How time is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Into buckets of so many microseconds, from 1970 on.
    Buckets(i64),
    /// Two windows to compare: slots 0 and 1. They may overlap; what is in neither is counted apart.
    Windows([Span; 2]),
}

impl Axis {
    /// Two windows: before a moment, in microseconds since 1970, and from then on.
    #[must_use]
    pub fn divided(at: i64) -> Self {
        Self::Windows([Span { from: i64::MIN, to: at }, Span { from: at, to: i64::MAX }])
    }

    fn slots(&self, micros: i64) -> [Option<i64>; 2] {
        match self {
            Self::Buckets(width) => [Some(micros.div_euclid(*width)), None],
            Self::Windows([first, second]) => {
                [first.contains(micros).then_some(0), second.contains(micros).then_some(1)]
            }
        }
    }
}

/// A group's counts, in all and by slot: bucket number or window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// In all.
    pub counts: Counts,
    /// By slot; empty ones are not there.
    pub slots: BTreeMap<i64, Counts>,
}

impl Group {
    fn add(&mut self, slots: [Option<i64>; 2], counts: Counts) {
        self.counts.add(counts);
        for slot in slots.into_iter().flatten() {
            self.slots.entry(slot).or_default().add(counts);
        }
    }

    /// Adds another group.
    pub fn merge(&mut self, other: &Self) {
        self.counts.add(other.counts);
        for (&slot, &counts) in &other.slots {
            self.slots.entry(slot).or_default().add(counts);
        }
    }

    fn coarsen(&mut self) {
        let mut slots = BTreeMap::<i64, Counts>::new();
        for (slot, counts) in std::mem::take(&mut self.slots) {
            slots.entry(slot.div_euclid(2)).or_default().add(counts);
        }
        self.slots = slots;
    }
}

/// A group's name: a label for each key, `None` where it has none.
pub type Labels = Vec<Option<String>>;

/// The groups with most drops, and the rest.
#[derive(Debug)]
pub struct Ranked<'a> {
    /// Those with most drops first, then by name.
    pub rows: Vec<(&'a Labels, &'a Group)>,
    /// All others.
    pub rest: Rest,
}

/// What has no row of its own.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    /// Groups that are among it.
    pub groups: usize,
    /// How many of its drops came when there were too many groups to tell theirs.
    pub beyond: Counts,
    /// Its counts.
    pub group: Group,
}

/// The groups as they grow.
#[derive(Debug)]
pub struct Aggregator {
    keys: Vec<Key>,
    axis: Axis,
    groups: HashMap<Labels, Group>,
    max_groups: usize,
    max_cells: usize,
    /// Of drops that found no room for their group.
    beyond: Group,
    total: Group,
    outside: Counts,
    cells: usize,
}

impl Aggregator {
    /// Nothing yet.
    #[must_use]
    pub fn new(keys: Vec<Key>, axis: Axis) -> Self {
        Self {
            keys,
            axis,
            groups: HashMap::new(),
            max_groups: MAX_GROUPS,
            max_cells: MAX_CELLS,
            beyond: Group::default(),
            total: Group::default(),
            outside: Counts::default(),
            cells: 0,
        }
    }

    /// With room for so many counts, groups times buckets.
    #[must_use]
    pub fn with_cells(self, max_cells: usize) -> Self {
        Self { max_cells, ..self }
    }

    /// Counts drops.
    pub fn add(&mut self, drop: &Drop) {
        let counts = Counts { drops: drop.count, segments: drop.segments };
        let slots = self.axis.slots(middle(drop));
        if slots == [None, None] {
            self.outside.add(counts);
            return;
        }
        let labels: Labels = self.keys.iter().map(|key| key.label(drop)).collect();
        let has_room = self.groups.len() < self.max_groups || self.groups.contains_key(&labels);
        let group = if has_room { self.groups.entry(labels).or_default() } else { &mut self.beyond };
        let before = group.slots.len();
        group.add(slots, counts);
        self.cells += group.slots.len() - before;
        self.total.add(slots, counts);
        while self.cells > self.max_cells && self.coarsen() {}
    }

    /// Makes buckets twice as wide, if that is possible.
    fn coarsen(&mut self) -> bool {
        let Axis::Buckets(width) = &mut self.axis else { return false };
        let Some(twice) = width.checked_mul(2) else { return false };
        *width = twice;
        let all = self.groups.values_mut().chain([&mut self.beyond]);
        self.cells = all
            .map(|group| {
                group.coarsen();
                group.slots.len()
            })
            .sum();
        self.total.coarsen();
        true
    }

    /// What drops are grouped by.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// How time is divided by now.
    #[must_use]
    pub fn axis(&self) -> Axis {
        self.axis
    }

    /// The same groups with two windows for their buckets, before a moment and from then on: a bucket is in the one that it
    /// begins in. `None` if there are no buckets.
    #[must_use]
    pub fn split(&self, at: i64) -> Option<Self> {
        let Axis::Buckets(width) = self.axis else { return None };
        let moved = |group: &Group| {
            let mut moved = Group { counts: group.counts, slots: BTreeMap::new() };
            for (slot, &counts) in &group.slots {
                let window = i64::from(slot.saturating_mul(width) >= at);
                moved.slots.entry(window).or_default().add(counts);
            }
            moved
        };
        let groups: HashMap<Labels, Group> =
            self.groups.iter().map(|(labels, group)| (labels.clone(), moved(group))).collect();
        let beyond = moved(&self.beyond);
        Some(Self {
            keys: self.keys.clone(),
            axis: Axis::divided(at),
            cells: groups.values().chain([&beyond]).map(|group| group.slots.len()).sum(),
            groups,
            beyond,
            total: moved(&self.total),
            ..*self
        })
    }

    /// All that was counted, but for what is [outside](Aggregator::outside).
    #[must_use]
    pub fn total(&self) -> &Group {
        &self.total
    }

    /// Drops in neither of two windows.
    #[must_use]
    pub fn outside(&self) -> Counts {
        self.outside
    }

    /// The groups with most drops, all of them without a `top`.
    #[must_use]
    pub fn ranked(&self, top: Option<usize>) -> Ranked<'_> {
        let mut rows: Vec<(&Labels, &Group)> = self.groups.iter().collect();
        rows.sort_by(|(a, one), (b, other)| other.counts.drops.cmp(&one.counts.drops).then_with(|| a.cmp(b)));
        let others = rows.split_off(top.unwrap_or(usize::MAX).min(rows.len()));
        let mut rest = Rest { groups: others.len(), beyond: self.beyond.counts, group: self.beyond.clone() };
        for (_, group) in others {
            rest.group.merge(group);
        }
        Ranked { rows, rest }
    }
}

/// When drops are said to have happened: in the middle between the first and the last. A line of counts only knows an
/// interval in which they were; its middle is off by half of that at most, and to neither side on the average.
/// In microseconds, as recordings keep it, so that live and recorded drops are in the same bucket.
fn middle(drop: &Drop) -> i64 {
    let (first, last) = (micros(drop.time), micros(drop.time_last));
    let middle = (i128::from(first) + i128::from(last)).div_euclid(2);
    i64::try_from(middle).unwrap_or(first)
}

/// Microseconds since 1970.
pub(crate) fn micros(time: Timestamp) -> i64 {
    let micros = time.0.div_euclid(1000);
    i64::try_from(micros).unwrap_or(if micros < 0 { i64::MIN } else { i64::MAX })
}

/// Back again.
pub(crate) fn timestamp(micros: i64) -> Timestamp {
    Timestamp(i128::from(micros) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::{Class, Record};
    use crate::hist::fixtures::{at, drop_of, dropped, random};
    use clap::ValueEnum as _;

    const SECOND: i64 = 1_000_000;

    fn sums(aggregator: &Aggregator, top: Option<usize>) -> (Counts, BTreeMap<i64, Counts>) {
        let Ranked { rows, rest } = aggregator.ranked(top);
        let mut sum = rest.group;
        rows.into_iter().for_each(|(_, group)| sum.merge(group));
        (sum.counts, sum.slots)
    }

    fn some_drop(state: &mut u64) -> Drop {
        let mut drop = drop_of(&format!("cart-{}", random(state, 9)), &format!("redis-{}", random(state, 9)));
        drop.time = at(random(state, 500) as f64 / 7.0);
        drop.time_last = Timestamp(drop.time.0 + i128::from(random(state, 2_000_000_000)));
        drop.count = random(state, 1000) * random(state, 1000);
        drop.segments = drop.count + random(state, 3);
        drop.drop.reason = (random(state, 4) > 0).then(|| format!("R{}", random(state, 50)));
        drop.drop.class = [Class::Policy, Class::Error, Class::Resource][random(state, 3) as usize];
        drop.destination.port = (random(state, 2) > 0).then(|| random(state, 300) as u16);
        if random(state, 5) == 0 {
            drop.destination.k8s = None;
        }
        drop
    }

    #[test]
    fn every_drop_is_in_exactly_one_group_whatever_the_keys_and_limits() {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let all = Key::value_variants();
        let pick = |state: &mut u64| all[random(state, all.len() as u64) as usize];
        let single = all.iter().map(|&key| vec![key]);
        let mut several = Vec::new();
        for _ in 0..60 {
            several.push((0..1 + random(&mut state, 3)).map(|_| pick(&mut state)).collect::<Vec<_>>());
        }
        for keys in single.chain(several) {
            let mut aggregator = Aggregator::new(keys.clone(), Axis::Buckets(SECOND));
            aggregator.max_groups = 1 + random(&mut state, 40) as usize;
            aggregator.max_cells = 100 + random(&mut state, 300) as usize;
            let mut sent = Counts::default();
            for _ in 0..300 {
                let drop = some_drop(&mut state);
                sent.add(Counts { drops: drop.count, segments: drop.segments });
                aggregator.add(&drop);
                assert!(aggregator.cells <= aggregator.max_cells, "{keys:?}");
            }
            assert!(aggregator.groups.len() <= aggregator.max_groups);
            assert_eq!(aggregator.total().counts, sent, "{keys:?}");
            for top in [None, Some(0), Some(3)] {
                let (counts, slots) = sums(&aggregator, top);
                assert_eq!(counts, sent, "{keys:?} {top:?}");
                assert_eq!(slots, aggregator.total().slots, "{keys:?} {top:?}");
                let of_slots = slots.values().fold(Counts::default(), |mut sum, &counts| {
                    sum.add(counts);
                    sum
                });
                assert_eq!(of_slots, sent, "{keys:?}");
            }
        }
    }

    #[test]
    fn groups_without_room_are_counted_together_and_said() {
        let mut aggregator = Aggregator::new(vec![Key::Reason], Axis::Buckets(SECOND));
        aggregator.max_groups = 2;
        for (reason, count) in [("A", 5), ("B", 4), ("C", 3), ("A", 2), ("D", 1)] {
            let Record::Drop(drop) = dropped(reason, 0.0, count) else { continue };
            aggregator.add(&drop);
        }
        let Ranked { rows, rest } = aggregator.ranked(None);
        let rows: Vec<_> =
            rows.iter().map(|(labels, group)| (labels[0].clone().unwrap(), group.counts.drops)).collect();
        assert_eq!(rows, [("A".to_owned(), 7), ("B".to_owned(), 4)]);
        assert_eq!((rest.groups, rest.beyond.drops, rest.group.counts.drops), (0, 4, 4));
        let rest = aggregator.ranked(Some(1)).rest;
        assert_eq!((rest.groups, rest.beyond.drops, rest.group.counts.drops), (1, 4, 8));
    }

    #[test]
    fn a_split_keeps_every_count() {
        let mut aggregator = Aggregator::new(vec![Key::Reason], Axis::Buckets(10 * SECOND));
        for (reason, seconds, count) in [("A", 1.0, 5), ("A", 9.0, 4), ("A", 10.0, 3), ("B", 31.0, 2)] {
            let Record::Drop(drop) = dropped(reason, seconds, count) else { continue };
            aggregator.add(&drop);
        }
        let split = aggregator.split(micros(at(10.0))).unwrap();
        let drops = |group: &Group| [0, 1].map(|slot| group.slots.get(&slot).map_or(0, |it| it.drops));
        assert_eq!(drops(split.total()), [9, 5]);
        let rows = split.ranked(None).rows;
        assert_eq!(rows.iter().map(|(_, group)| drops(group)).collect::<Vec<_>>(), [[9, 3], [0, 2]]);
        assert!(split.split(0).is_none());
    }

    #[test]
    fn an_interval_counts_in_the_bucket_of_its_middle() {
        let slot = |first: f64, last: f64| {
            let mut aggregator = Aggregator::new(vec![], Axis::Buckets(10 * SECOND));
            aggregator.add(&Drop { time: at(first), time_last: at(last), count: 1, ..Drop::default() });
            let slot = *aggregator.total().slots.keys().next().unwrap();
            timestamp(slot * 10 * SECOND)
        };
        assert_eq!(slot(9.0, 10.0), at(0.0));
        assert_eq!(slot(9.4, 10.4), at(0.0));
        assert_eq!(slot(9.6, 10.6), at(10.0));
        // What a recording keeps of a time is its microseconds.
        assert_eq!(slot(9.999_999_9, 9.999_999_9), at(0.0));
    }

    #[test]
    fn no_time_and_no_count_is_too_large() {
        let mut aggregator = Aggregator::new(vec![Key::Class], Axis::Buckets(1000));
        aggregator.max_cells = 1;
        for time in [i128::MIN, 0, i128::MAX, -1] {
            let time = Timestamp(time);
            let drop = Drop { time, time_last: time, count: u64::MAX, segments: u64::MAX, ..Drop::default() };
            aggregator.add(&drop);
        }
        assert_eq!(aggregator.total().counts.drops, u64::MAX);
    }
}
