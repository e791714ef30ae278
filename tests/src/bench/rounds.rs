//! The same measurement with droptrace off and on, in turns.

use super::figures::{self, median, span, whole};
use anyhow::Result;
use std::time::{Duration, Instant};

/// The least part of the healthy rate that must be left while droptrace watches.
pub const HEALTHY_GOAL: f64 = 0.99;

/// Nanoseconds a packet, a value for each round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounds {
    /// With nobody watching.
    pub off: Vec<f64>,
    /// With droptrace.
    pub on: Vec<f64>,
}

impl Rounds {
    /// Measures off (false) and on (true) at most `most` times each, each first in every other round; at least one round,
    /// and no new one after `until`.
    ///
    /// # Errors
    /// When a measurement fails.
    pub fn run(most: usize, until: Instant, mut measure: impl FnMut(bool) -> Result<f64>) -> Result<Self> {
        let mut rounds = Self::default();
        while rounds.off.is_empty() || (rounds.off.len() < most && Instant::now() < until) {
            let on_first = rounds.off.len() % 2 == 1;
            for on in [on_first, !on_first] {
                let value = measure(on)?;
                if on { &mut rounds.on } else { &mut rounds.off }.push(value);
            }
        }
        Ok(rounds)
    }

    /// Packets per second with droptrace, as a part of those without; round by round: neighbours in time share the
    /// machine's noise.
    #[must_use]
    pub fn ratios(&self) -> Vec<f64> {
        self.off.iter().zip(&self.on).map(|(off, on)| off / on).collect()
    }

    /// Nanoseconds a packet that droptrace adds, round by round.
    #[must_use]
    pub fn added(&self) -> Vec<f64> {
        self.off.iter().zip(&self.on).map(|(off, on)| on - off).collect()
    }
}

/// Heads the rows of [`healthy_row`].
pub const HEALTHY_HEAD: &str = "\
| rules | rounds | packets per second, off | quartiles | on | quartiles | on / off, median | quartiles | at least 0.99 |
|---|---:|---:|---:|---:|---:|---:|---:|---|
";

/// A line of the table of the healthy path.
#[must_use]
pub fn healthy_row(name: &str, rounds: &Rounds) -> String {
    let rates = |times: &[f64]| times.iter().map(|time| 1e9 / time).collect::<Vec<_>>();
    let (off, on, ratios) = (rates(&rounds.off), rates(&rounds.on), rounds.ratios());
    let ratio = median(&ratios);
    format!(
        "| {name} | {} | {} | {} | {} | {} | {ratio:.3} | {:.3} to {:.3} | {} |\n",
        rounds.off.len(),
        whole(median(&off)),
        span(&off),
        whole(median(&on)),
        span(&on),
        figures::quantile(&ratios, 0.25),
        figures::quantile(&ratios, 0.75),
        if ratio >= HEALTHY_GOAL { "met" } else { "MISSED" }
    )
}

/// Heads the rows of [`drop_row`].
pub const DROP_HEAD: &str = "\
| | rules | can drop | rounds | ns a drop, off | on | added, median | quartiles | rule told exactly |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
";

/// A line of the table of drops; `named` is the part of the drops whose rule droptrace told exactly.
#[must_use]
pub fn drop_row(name: &str, (rules, drop_capable): (usize, usize), rounds: &Rounds, named: f64) -> String {
    let added = rounds.added();
    format!(
        "| {name} | {rules} | {drop_capable} | {} | {} | {} | {} | {} | {:.1} % |\n",
        rounds.off.len(),
        whole(median(&rounds.off)),
        whole(median(&rounds.on)),
        whole(median(&added)),
        span(&added),
        named * 100.0
    )
}

/// A time that several measurements share: what one leaves is the others'.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    end: Instant,
    parts: u32,
}

impl Budget {
    /// From now on, for so many measurements.
    #[must_use]
    pub fn new(time: Duration, parts: u32) -> Self {
        Self { end: Instant::now() + time, parts }
    }

    /// When the next measurement has to come to its end.
    pub fn next_end(&mut self) -> Instant {
        let now = Instant::now();
        let part = share(self.end.saturating_duration_since(now), self.parts);
        self.parts = self.parts.saturating_sub(1);
        now + part
    }
}

fn share(left: Duration, parts: u32) -> Duration {
    left / parts.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_first_equally_often() -> Result<()> {
        let mut order = Vec::new();
        let far = Instant::now() + Duration::from_secs(3600);
        let rounds = Rounds::run(2, far, |on| {
            order.push(on);
            Ok(order.len() as f64)
        })?;
        assert_eq!(order, [false, true, true, false]);
        assert_eq!(rounds, Rounds { off: vec![1.0, 4.0], on: vec![2.0, 3.0] });
        Ok(())
    }

    #[test]
    fn there_is_one_round_even_without_time() -> Result<()> {
        let rounds = Rounds::run(9, Instant::now(), |_| Ok(1.0))?;
        assert_eq!((rounds.off.len(), rounds.on.len()), (1, 1));
        Ok(())
    }

    #[test]
    fn a_slower_packet_is_a_lower_rate() {
        let rounds = Rounds { off: vec![1000.0], on: vec![1250.0] };
        assert_eq!((rounds.ratios(), rounds.added()), (vec![0.8], vec![250.0]));
        assert_eq!(
            healthy_row("nft", &rounds),
            "| nft | 1 | 1000000 | 1000000 to 1000000 | 800000 | 800000 to 800000 | 0.800 | 0.800 to 0.800 | MISSED |\n"
        );
        let same = Rounds { off: vec![1000.0], on: vec![1005.0] };
        assert!(healthy_row("nft", &same).ends_with("| met |\n"));
    }

    #[test]
    fn what_one_leaves_is_the_others() {
        assert_eq!(share(Duration::from_secs(9), 3), Duration::from_secs(3));
        assert_eq!(share(Duration::from_secs(8), 2), Duration::from_secs(4));
        assert_eq!(share(Duration::from_secs(8), 0), Duration::from_secs(8));
    }
}
