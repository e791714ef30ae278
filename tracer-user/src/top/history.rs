//! How many in each of the last seconds.

use std::collections::VecDeque;

/// Counts of the last `N` seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct History<const N: usize> {
    /// The newest last; at most `N`.
    counts: VecDeque<u32>,
    /// The second of the last one.
    second: u64,
}

impl<const N: usize> History<N> {
    /// Counts some more in a second, which is not before the one that was spoken of last.
    pub(super) fn add(&mut self, second: u64, count: u64) {
        self.advance(second);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        match self.counts.back_mut() {
            Some(last) => *last = last.saturating_add(count),
            None => self.counts.push_back(count),
        }
    }

    fn advance(&mut self, second: u64) {
        if self.counts.is_empty() {
            self.second = second;
        }
        let empty = second.saturating_sub(self.second).min(N as u64);
        for _ in 0..empty {
            self.counts.push_back(0);
        }
        self.second = self.second.max(second);
        while self.counts.len() > N {
            self.counts.pop_front();
        }
    }

    /// The counts of `length` seconds, the last of which is `second`.
    pub(super) fn until(&self, second: u64, length: usize) -> Vec<u64> {
        let at = |back: u64| {
            let second = second.checked_sub(back)?;
            let index = (self.counts.len() as u64 + second).checked_sub(self.second + 1)?;
            self.counts.get(usize::try_from(index).ok()?).copied()
        };
        (0..length as u64).rev().map(|back| at(back).unwrap_or(0).into()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_count() {
        let mut history = History::<4>::default();
        assert_eq!(history.until(9, 3), [0, 0, 0]);
        history.add(5, 2);
        history.add(5, 1);
        history.add(7, 4);
        assert_eq!(history.until(7, 4), [0, 3, 0, 4]);
        assert_eq!(history.until(8, 4), [3, 0, 4, 0]);
        assert_eq!(history.until(6, 2), [3, 0]);
        assert_eq!(history.until(1, 3), [0, 0, 0]);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut history = History::<3>::default();
        history.add(1, 9);
        history.add(1_000_000, 1);
        assert_eq!(history.until(1_000_000, 5), [0, 0, 0, 0, 1]);
        assert!(history.counts.len() <= 3);
        history.add(1_000_000, u64::MAX);
        assert_eq!(history.until(1_000_000, 1), [u64::from(u32::MAX)]);
    }
}
