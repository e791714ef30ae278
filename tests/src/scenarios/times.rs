//! How long the tests took: a suite that emulated machines run several times has to stay short.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tests named by [`slowest`].
const NAMED: usize = 12;

static TAKEN: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// Runs a test and notes how long it took.
pub(super) fn taken<T>(name: &str, test: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let ended = test();
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed(), name.to_owned()));
    ended
}

/// A line with the slowest tests, and one with the time that each group of tests took in all.
#[must_use]
pub fn summary() -> String {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    taken.sort_by(|a, b| b.cmp(a));
    let mut groups: Vec<(Duration, u32, &str)> = Vec::new();
    for (time, name) in &taken {
        let group = name.split("::").next().unwrap_or(name);
        match groups.iter_mut().find(|(_, _, known)| *known == group) {
            Some(known) => (known.0, known.1) = (known.0 + *time, known.1 + 1),
            None => groups.push((*time, 1, group)),
        }
    }
    groups.sort_by(|a, b| b.cmp(a));
    let mut text = String::from("slowest tests:");
    for (time, name) in taken.iter().take(NAMED) {
        let _ = write!(text, " {name} {:.1} s;", time.as_secs_f64());
    }
    text += "\nby group, tests beside each other counted each:";
    for (time, count, group) in groups {
        let _ = write!(text, " {group} {:.0} s ({count});", time.as_secs_f64());
    }
    text
}
