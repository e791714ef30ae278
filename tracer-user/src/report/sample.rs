//! Some of many records: the first, the last, and those with most drops. Which they are depends on the records alone.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

/// Keeps records of which there may be any number.
#[derive(Debug)]
pub(super) struct Sample<T> {
    first: Vec<Kept<T>>,
    last: VecDeque<Kept<T>>,
    /// The one with fewest drops on top. Of those that were neither among the first nor are among the last.
    most: BinaryHeap<Reverse<Kept<T>>>,
    room: Room,
    seen: u64,
}

/// How many of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// The first ones.
    pub first: usize,
    /// The last ones.
    pub last: usize,
    /// Those with most drops.
    pub most: usize,
}

impl Room {
    /// Room for so many in all.
    #[must_use]
    pub(super) fn of(all: usize) -> Self {
        let some = all * 3 / 10;
        Self { first: some, last: some, most: all - 2 * some }
    }
}

#[derive(Debug)]
struct Kept<T> {
    drops: u64,
    number: u64,
    record: T,
}

impl<T> Kept<T> {
    /// Of as many drops, the earlier record is the higher.
    fn rank(&self) -> (u64, Reverse<u64>) {
        (self.drops, Reverse(self.number))
    }
}

impl<T> PartialEq for Kept<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl<T> Eq for Kept<T> {}

impl<T> PartialOrd for Kept<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Kept<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl<T> Sample<T> {
    /// Without a record.
    #[must_use]
    pub(super) fn new(room: Room) -> Self {
        Self { first: Vec::new(), last: VecDeque::new(), most: BinaryHeap::new(), room, seen: 0 }
    }

    /// Takes a record that stands for so many drops.
    pub(super) fn add(&mut self, drops: u64, record: T) {
        let kept = Kept { drops, number: self.seen, record };
        self.seen += 1;
        if self.first.len() < self.room.first {
            self.first.push(kept);
            return;
        }
        self.last.push_back(kept);
        if self.last.len() > self.room.last
            && let Some(kept) = self.last.pop_front()
        {
            self.most.push(Reverse(kept));
            if self.most.len() > self.room.most {
                self.most.pop();
            }
        }
    }

    /// How many there were.
    #[must_use]
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Those that were kept, in the order in which they came.
    #[must_use]
    pub(super) fn kept(&self) -> Vec<&T> {
        let most = self.most.iter().map(|Reverse(kept)| kept);
        let mut all: Vec<&Kept<T>> = self.first.iter().chain(most).chain(&self.last).collect();
        all.sort_by_key(|kept| kept.number);
        all.into_iter().map(|kept| &kept.record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(drops: &[u64]) -> Vec<u64> {
        let mut sample = Sample::new(Room { first: 2, last: 2, most: 3 });
        for (number, &drops) in drops.iter().enumerate() {
            sample.add(drops, number as u64);
        }
        assert_eq!(sample.seen(), drops.len() as u64);
        sample.kept().into_iter().copied().collect()
    }

    #[test]
    fn all_are_kept_where_there_is_room() {
        assert_eq!(kept(&[]), [0; 0]);
        assert_eq!(kept(&[5, 1, 1, 9, 9, 1, 2]), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn of_many_the_ends_and_the_largest_are_kept() {
        assert_eq!(kept(&[1, 1, 7, 2, 9, 2, 8, 1, 3, 1, 1]), [0, 1, 2, 4, 6, 9, 10]);
        // Of equal ones the earliest.
        assert_eq!(kept(&[1; 20]), [0, 1, 2, 3, 4, 18, 19]);
    }

    #[test]
    fn room_is_divided() {
        assert_eq!(Room::of(1000), Room { first: 300, last: 300, most: 400 });
        let mut none = Sample::new(Room::of(0));
        none.add(1, ());
        assert_eq!((none.seen(), none.kept().len()), (1, 0));
    }
}
