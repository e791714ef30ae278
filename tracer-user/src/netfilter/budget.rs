//! Time that something may take beside the drops: a burst at once, then a share of all time.

use std::time::{Duration, Instant};

/// One part in this many of all time.
const SHARE: u32 = 4;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Time that was taken and not yet made up for.
    debt: Duration,
    since: Option<Instant>,
}

impl Budget {
    /// True if there is some left of a burst of this length.
    pub(crate) fn is_left(&mut self, burst: Duration) -> bool {
        self.is_left_at(Instant::now(), burst)
    }

    /// Notes that time was taken.
    pub(crate) fn take(&mut self, time: Duration) {
        self.debt += time;
    }

    fn is_left_at(&mut self, now: Instant, burst: Duration) -> bool {
        let passed = self.since.replace(now).map_or(Duration::ZERO, |since| now - since);
        self.debt = self.debt.saturating_sub(passed / SHARE);
        self.debt < burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_share() {
        let (start, burst) = (Instant::now(), Duration::from_secs(2));
        let mut budget = Budget::default();
        let is_left =
            |budget: &mut Budget, seconds| budget.is_left_at(start + Duration::from_secs(seconds), burst);
        assert!(is_left(&mut budget, 0));
        budget.take(Duration::from_secs(4));
        // Two of the four are above the burst, and take eight to make up for.
        assert!(!is_left(&mut budget, 5));
        assert!(!is_left(&mut budget, 8));
        assert!(is_left(&mut budget, 9));
        budget.take(Duration::from_secs(1));
        assert!(!is_left(&mut budget, 9));
    }
}
