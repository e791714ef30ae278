//! When a filter's words are looked up anew: at once after a quiet while, for a pod that has just begun is traced from its
//! first packet; and where the cluster changes all the time, one part of [`SHARE`] of the time.

use std::time::{Duration, Instant};

/// Looking up takes at most one part of so many.
const SHARE: u32 = 10;
/// However long one takes, the next is not put off longer.
const LONGEST: Duration = Duration::from_millis(100);

/// The pace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// True if it may be done now.
    pub(super) fn is_due(self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// When it may be done; `None` is any time.
    pub(super) fn next(self) -> Option<Instant> {
        self.not_before
    }

    /// It was done, from `began` until `now`.
    pub(super) fn done(&mut self, began: Instant, now: Instant) {
        let pause = now.saturating_duration_since(began) * (SHARE - 1);
        self.not_before = Some(now + pause.min(LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn after_a_quiet_while_it_is_done_at_once() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.is_due(start));
        pace.done(start, start + MS);
        assert!(!pace.is_due(start + 9 * MS) && pace.is_due(start + 10 * MS));
        assert_eq!(pace.next(), Some(start + 10 * MS));
    }

    #[test]
    fn where_everything_changes_all_the_time_it_takes_a_tenth() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut times = 0;
        // 1,000 changes a second for a second, of which each look takes 2 ms.
        for change in 0..1000 {
            let now = start + change * MS;
            if pace.is_due(now) {
                pace.done(now, now + 2 * MS);
                times += 1;
            }
        }
        assert_eq!(times, 50);
    }

    #[test]
    fn it_is_never_put_off_for_long() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.done(start, start + 1000 * MS);
        assert_eq!(pace.next(), Some(start + 1000 * MS + LONGEST));
    }
}
