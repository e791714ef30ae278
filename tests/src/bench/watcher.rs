//! A droptrace that knows the rules of a storm before anything is measured.

use super::storm::Storm;
use crate::bed::{
    droptrace::{Droptrace, Output},
    record::Record,
    send,
};
use anyhow::Result;
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// How long it may take to name a rule. Some rule sets have more rules than it can tell apart: then it never does.
const LEARNING: Duration = Duration::from_secs(8);

/// A running droptrace, and how many of the drops it saw are from before the measurement.
#[derive(Debug)]
pub struct Watcher {
    droptrace: Droptrace,
    netns: u32,
    before: Drops,
}

/// Drops in a netns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// All.
    pub all: u64,
    /// Those whose rule is told exactly.
    pub named: u64,
}

impl Drops {
    /// What came after an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { all: self.all.saturating_sub(earlier.all), named: self.named.saturating_sub(earlier.named) }
    }

    fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        records.fold(Self::default(), |sum, record| Self {
            all: sum.all + record.count(),
            named: sum.named + if is_named(record) { record.count() } else { 0 },
        })
    }
}

impl Watcher {
    /// Starts it with some arguments, and lets a few packets be dropped until it has named their rule, or will not.
    ///
    /// # Errors
    /// When it does not attach.
    pub fn start(storm: &Storm, arguments: &[&str]) -> Result<Self> {
        let droptrace = Droptrace::start(arguments)?;
        let netns = storm.receiver().netns.inode();
        let deadline = Instant::now() + LEARNING;
        let mut before = Drops::default();
        while before.named == 0 && Instant::now() < deadline {
            storm.sender().enter(|| {
                let any = SocketAddr::from(([0, 0, 0, 0], 0));
                send::udp(any, storm.target(), b"which rule?", 4)
            })?;
            thread::sleep(Duration::from_millis(50));
            before = drops(&droptrace.output(), netns);
        }
        Ok(Self { droptrace, netns, before })
    }

    /// Ends it; says what it saw dropped since it knew the rules.
    ///
    /// # Errors
    /// When it ends badly.
    pub fn stop(self) -> Result<Drops> {
        Ok(drops(&self.droptrace.stop()?, self.netns).since(self.before))
    }
}

fn drops(output: &Output, netns: u32) -> Drops {
    Drops::of(output.drops_in(&[netns]))
}

/// True if a line tells the rule exactly.
#[must_use]
pub fn is_named(record: &Record) -> bool {
    let has = |field| !record.get(field).is_null();
    record.text("/drop/netfilter/confidence") == Some("exact")
        && (has("/drop/netfilter/rule") || has("/drop/netfilter/handle"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_exact_rules_are_named() {
        let line = |count: u64, netfilter| {
            Record(json!({"type": "drop", "count": count, "drop": {"netfilter": netfilter}}))
        };
        let records = [
            line(1, json!({"confidence": "exact", "rule": 3, "handle": null})),
            line(20, json!({"confidence": "exact", "rule": null, "handle": 7})),
            line(300, json!({"confidence": "inferred", "rule": 3, "handle": 7})),
            line(4000, json!({"confidence": "exact", "rule": null, "handle": null})),
            line(50_000, json!(null)),
        ];
        let drops = Drops::of(records.iter());
        assert_eq!(drops, Drops { all: 54_321, named: 21 });
        assert_eq!(drops.since(Drops { all: 1, named: 1 }), Drops { all: 54_320, named: 20 });
    }
}
