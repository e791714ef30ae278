//! Merging counts with details, so that every drop is in exactly one line.
//!
//! Counts come from the slots alone. A full event carries its slot's counter as it was after its drop, so it stands
//! for what was counted since the last line about that slot: one drop, or more where some sent no event. What no
//! event stands for comes out as a line of counts when the interval ends. The order at the end of an interval is
//! what makes it exact: read the slots, then take every event that was in the ring by then, then settle the rest.

use tracer_common::FlowKey;

/// What has already come out of one slot.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    count: u64,
    segments: u64,
}

/// Drops that came out together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Skbs.
    pub count: u64,
    /// Segments.
    pub segments: u64,
}

/// A slot whose counter is ahead of what came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The slot.
    pub slot: u32,
    /// What it counts.
    pub key: FlowKey,
    /// Its counter when it was read.
    pub count: u64,
    /// Likewise.
    pub segments: u64,
}

/// The account of all slots.
#[derive(Debug)]
pub struct Merge {
    told: Vec<Told>,
}

impl Merge {
    /// For so many slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self { told: vec![Told::default(); slots as usize] }
    }

    /// The drops that a counter at (`count`, `segments`) of `slot` stands for: those that no line has told yet.
    /// None if all were told, or if there is no such slot.
    pub fn settle(&mut self, slot: u32, count: u64, segments: u64) -> Option<Share> {
        let told = self.told.get_mut(slot as usize)?;
        if count <= told.count {
            return None;
        }
        let share = Share { count: count - told.count, segments: segments.saturating_sub(told.segments) };
        *told = Told { count, segments: segments.max(told.segments) };
        Some(share)
    }

    /// True if a counter of `slot` is ahead of what was told.
    #[must_use]
    pub fn is_ahead(&self, slot: u32, count: u64) -> bool {
        self.told.get(slot as usize).is_some_and(|told| count > told.count)
    }

    /// Forgets slots that were cleared.
    pub fn forget(&mut self, slots: std::ops::Range<u32>) {
        if let Some(told) = self.told.get_mut(slots.start as usize..slots.end as usize) {
            told.fill(Told::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_a_drop_tells_one_each() {
        let mut merge = Merge::new(4);
        for n in 1..=5 {
            assert_eq!(merge.settle(2, n, n), Some(Share { count: 1, segments: 1 }));
        }
        assert!(!merge.is_ahead(2, 5));
    }

    #[test]
    fn an_event_tells_the_silent_drops_before_it() {
        let mut merge = Merge::new(1);
        assert_eq!(merge.settle(0, 1, 4), Some(Share { count: 1, segments: 4 }));
        assert_eq!(merge.settle(0, 10, 40), Some(Share { count: 9, segments: 36 }));
    }

    #[test]
    fn an_event_older_than_the_last_line_tells_nothing() {
        let mut merge = Merge::new(1);
        assert_eq!(merge.settle(0, 10, 10), Some(Share { count: 10, segments: 10 }));
        assert_eq!(merge.settle(0, 7, 7), None);
        assert_eq!(merge.settle(0, 10, 10), None);
    }

    #[test]
    fn a_cleared_slot_starts_again() {
        let mut merge = Merge::new(3);
        merge.settle(1, 10, 10);
        merge.forget(1..2);
        assert_eq!(merge.settle(1, 1, 1), Some(Share { count: 1, segments: 1 }));
    }

    #[test]
    fn a_slot_that_does_not_exist_tells_nothing() {
        assert_eq!(Merge::new(1).settle(9, 1, 1), None);
    }

    /// Whatever mix of events and readings: what came out is what was counted.
    #[test]
    fn shares_add_up_to_the_counter() {
        let mut random = 0x1234_5678_9abc_def1_u64;
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut merge = Merge::new(8);
        let (mut counters, mut told) = ([0u64; 8], [0u64; 8]);
        for _ in 0..10_000 {
            let slot = next(8) as usize;
            counters[slot] += next(3);
            // An event may be older than the counter.
            let seen = counters[slot].saturating_sub(next(4));
            if let Some(share) = merge.settle(slot as u32, seen, seen) {
                told[slot] += share.count;
            }
        }
        for slot in 0..8 {
            if let Some(share) = merge.settle(slot as u32, counters[slot], counters[slot]) {
                told[slot] += share.count;
            }
        }
        assert_eq!(told, counters);
    }
}
