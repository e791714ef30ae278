//! How long to wait before the next try.

use super::Timing;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A try that lasted so many times the pause before it was worth it: the next failure is the first again.
const WORTH: u32 = 2;

/// Doubles the pause with each failure.
#[derive(Debug)]
pub(super) struct Pace {
    first: Duration,
    most: Duration,
    failures: u32,
    before: Duration,
}

impl Pace {
    pub(super) fn new(timing: &Timing) -> Self {
        Self { first: timing.retry, most: timing.retry_most, failures: 0, before: timing.retry }
    }

    /// The pause after a try that lasted so long.
    pub(super) fn after(&mut self, lasted: Duration) -> Duration {
        if lasted >= self.before * WORTH {
            self.failures = 0;
        }
        self.before = stray(pause(self.first, self.most, self.failures));
        self.failures = self.failures.saturating_add(1);
        self.before
    }
}

/// The longest pause after so many failures.
fn pause(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(most)
}

/// A time between a half of that and that, so that not every node does the same at once.
pub(super) fn stray(whole: Duration) -> Duration {
    part(whole, RandomState::new().hash_one(0))
}

fn part(whole: Duration, random: u64) -> Duration {
    let share = f64::from((random >> 32) as u32) / f64::from(u32::MAX);
    whole.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_stray() {
        let (first, most) = (Duration::from_secs(1), Duration::from_secs(30));
        assert_eq!(pause(first, most, 0), first);
        assert_eq!(pause(first, most, 3), first * 8);
        assert_eq!(pause(first, most, 1000), most);
        assert_eq!((part(first, 0), part(first, u64::MAX)), (first / 2, first));
        let strays: Vec<_> = (0..8).map(|_| stray(most)).collect();
        assert!(strays.iter().all(|time| *time >= most / 2 && *time <= most));
        assert!(strays.iter().any(|time| *time != strays[0]));
    }

    #[test]
    fn a_try_that_lasted_begins_anew() {
        let timing = Timing::default();
        let mut pace = Pace::new(&timing);
        for _ in 0..10 {
            pace.after(Duration::ZERO);
        }
        assert!(pace.after(Duration::ZERO) >= timing.retry_most / 2);
        assert!(pace.after(timing.retry_most * WORTH) <= timing.retry);
    }
}
