//! How often a runtime is asked that does not tell of changes by itself. Nothing here asks the clock.

use std::time::{Duration, Instant};

/// Between two questions while a change is due.
const FAST: Duration = Duration::from_millis(50);
/// Later, when it is late: a slow network plug-in.
const LATE: Duration = Duration::from_millis(250);
/// How long a change is looked for fast, and how long at all.
const SOON: Duration = Duration::from_secs(2);
const GIVE_UP: Duration = Duration::from_secs(10);
/// Asking takes at most one part of so many of the time.
const SHARE: u32 = 4;

/// Sandboxes with a network namespace of their own: so many come, so many lose it. Kept apart, lest one that goes be
/// taken for the one that is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Ready now.
    pub(super) made: usize,
    /// Without their network namespace now.
    pub(super) gone: usize,
}

impl Changes {
    /// No change.
    pub(super) const NONE: Self = Self { made: 0, gone: 0 };

    /// These and those.
    pub(super) fn and(self, other: Self) -> Self {
        Self { made: self.made.saturating_add(other.made), gone: self.gone.saturating_add(other.gone) }
    }

    fn without(self, other: Self) -> Self {
        Self { made: self.made.saturating_sub(other.made), gone: self.gone.saturating_sub(other.gone) }
    }
}

/// When to ask next.
#[derive(Debug)]
pub(super) struct Pace {
    /// Between two questions while nothing is due.
    idle: Duration,
    /// When it was asked last, and how long that took.
    asked: Instant,
    took: Duration,
    /// Since when changes are due, and how many.
    hunt: Option<(Instant, Changes)>,
    /// True if something happened since it was asked last.
    news: bool,
}

impl Pace {
    /// Begins with an answer that is as of `now`. `idle` is the pause while nothing happens.
    pub(super) fn new(now: Instant, idle: Duration) -> Self {
        Self { idle, asked: now, took: Duration::ZERO, hunt: None, news: false }
    }

    /// From now on the pause while nothing happens is this.
    pub(super) fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// Something changed, which the next answer tells.
    pub(super) fn changed(&mut self) {
        self.news = true;
    }

    /// Something began that these changes will come of, in a moment.
    pub(super) fn due(&mut self, now: Instant, changes: Changes) {
        let before = self.hunt.map_or(Changes::NONE, |(_, changes)| changes);
        self.hunt = Some((now, before.and(changes)));
        self.news = true;
    }

    /// It was asked, and told of these changes.
    pub(super) fn asked(&mut self, now: Instant, took: Duration, changes: Changes) {
        (self.asked, self.took, self.news) = (now, took, false);
        let left = self.hunt.map(|(since, due)| (since, due.without(changes)));
        let is_on = |&(since, due): &(Instant, Changes)| {
            due != Changes::NONE && now.saturating_duration_since(since) < GIVE_UP
        };
        self.hunt = left.filter(is_on);
    }

    /// When to ask next.
    pub(super) fn next(&self) -> Instant {
        let pause = match self.hunt {
            Some((since, _)) if self.asked.saturating_duration_since(since) >= SOON => LATE,
            Some(_) => FAST,
            None if self.news => FAST,
            None => self.idle,
        };
        self.asked + pause.max(self.took * SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(5);
    const MS: Duration = Duration::from_millis(1);
    const ONE: Changes = Changes { made: 1, gone: 0 };

    /// Asks from `start` until `end`, each time answered with `changes(n)`; how often that was.
    fn asks(pace: &mut Pace, start: Instant, end: Duration, changes: impl Fn(usize) -> Changes) -> usize {
        let mut count = 0;
        while pace.next().saturating_duration_since(start) < end {
            let now = pace.next().max(start);
            pace.asked(now, MS, changes(count));
            count += 1;
        }
        count
    }

    #[test]
    fn nothing_due_is_asked_for_rarely() {
        let start = Instant::now();
        let mut pace = Pace::new(start, IDLE);
        assert_eq!(asks(&mut pace, start, Duration::from_secs(61), |_| Changes::NONE), 12);
    }

    #[test]
    fn what_is_due_is_asked_for_at_once_and_until_it_is_there() {
        let start = Instant::now();
        let mut pace = Pace::new(start, IDLE);
        let now = start + Duration::from_secs(2);
        pace.due(now, ONE.and(ONE));
        assert!(pace.next() <= now);
        // Others go meanwhile.
        let other = Changes { made: 0, gone: 1 };
        // One at the fourth answer, one at the seventh: then no more.
        assert_eq!(
            asks(&mut pace, now, Duration::from_secs(5), |n| if n == 3 || n == 6 { ONE } else { other }),
            7
        );
        assert_eq!(pace.next(), now + 6 * FAST + IDLE);
    }

    #[test]
    fn what_never_comes_is_given_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start, IDLE);
        pace.due(start, ONE);
        let count = asks(&mut pace, start, GIVE_UP, |_| Changes::NONE);
        assert!((70..=80).contains(&count), "{count}");
        assert_eq!(asks(&mut pace, start + GIVE_UP, Duration::from_secs(6), |_| Changes::NONE), 2);
        assert!(pace.hunt.is_none());
    }

    #[test]
    fn a_slow_runtime_is_asked_less() {
        let start = Instant::now();
        let mut pace = Pace::new(start, IDLE);
        pace.due(start, ONE);
        pace.asked(start, 100 * MS, Changes::NONE);
        assert_eq!(pace.next(), start + 400 * MS);
    }

    #[test]
    fn news_are_asked_for_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start, IDLE);
        pace.changed();
        assert_eq!(pace.next(), start + FAST);
        pace.asked(start + FAST, MS, Changes::NONE);
        assert_eq!(pace.next(), start + FAST + IDLE);
    }
}
