//! What a rendering of a histogram shows, in whatever form.

use super::aggregate::{Aggregator, Axis, Counts, Labels, Rest, micros, timestamp};
use super::bars::Charset;
use super::compare::{Comparison, compare};
use crate::event::model::Timestamp;
use crate::output::{Summary, words};
use jiff::tz::TimeZone;

/// A histogram at a moment.
#[derive(Debug)]
pub struct View<'a> {
    /// The counts.
    pub aggregator: &'a Aggregator,
    /// What was hidden and lost beside them.
    pub summary: &'a Summary,
    /// When it began.
    pub begin: Timestamp,
    /// Until when.
    pub end: Timestamp,
    /// How many groups have a row.
    pub top: Option<usize>,
}

/// How it is to look for people.
#[derive(Clone, Debug)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// True where longer lines would break: on a terminal.
    pub cut: bool,
    /// Letters.
    pub charset: Charset,
    /// Of the times.
    pub zone: TimeZone,
}

impl View<'_> {
    /// How long it ran, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        (micros(self.end) - micros(self.begin)).max(0) as f64 / 1e6
    }

    /// The two windows compared; `None` if it is over time.
    pub(super) fn comparison(&self) -> Option<(Comparison<'_>, [u64; 2])> {
        let Axis::Windows(windows) = self.aggregator.axis() else { return None };
        let seen = windows.map(|window| window.seen(self.begin, self.end));
        Some((compare(self.aggregator, self.top, seen), seen))
    }

    /// The width of the buckets in microseconds; 1 where there are none.
    pub(super) fn width(&self) -> i64 {
        match self.aggregator.axis() {
            Axis::Buckets(width) => width,
            Axis::Windows(_) => 1,
        }
    }

    /// When a bucket begins.
    pub(super) fn time(&self, slot: i64) -> Timestamp {
        timestamp(slot.saturating_mul(self.width()))
    }

    /// The bucket with most drops.
    pub(super) fn peak(&self) -> Option<(Timestamp, Counts)> {
        let slots = &self.aggregator.total().slots;
        let (&slot, &counts) =
            slots.iter().max_by_key(|(slot, counts)| (counts.drops, std::cmp::Reverse(**slot)))?;
        Some((self.time(slot), counts))
    }

    /// The names of the keys.
    pub(super) fn keys(&self) -> Vec<String> {
        self.aggregator.keys().iter().map(|key| key.name()).collect()
    }
}

/// A group's labels as people read them.
pub(super) fn shown(labels: &Labels) -> Vec<&str> {
    labels.iter().map(|label| label.as_deref().unwrap_or("(none)")).collect()
}

/// What the rest is called: `(other): 31 groups`, and what of it came when there were too many groups.
pub(crate) fn rest(rest: &Rest) -> Option<String> {
    if rest.groups == 0 && rest.beyond.drops == 0 {
        return None;
    }
    let mut parts = Vec::new();
    if rest.groups > 0 {
        parts.push(format!(
            "{} group{}",
            words::thousands(rest.groups as u64),
            words::plural(rest.groups as u64)
        ));
    }
    if rest.beyond.drops > 0 {
        let drops = words::thousands(rest.beyond.drops);
        parts.push(format!("{drops} drops of more groups than are told apart"));
    }
    Some(format!("(other): {}", parts.join(", ")))
}

/// A time of day, with its date if that is asked for.
pub(crate) fn clock(time: Timestamp, zone: &TimeZone, date: bool) -> String {
    let form = if date { "%Y-%m-%d %H:%M:%S" } else { "%H:%M:%S" };
    crate::output::zoned(time, zone).strftime(form).to_string()
}

/// A duration of whole units where it has them: `10 s`, `2 min`, `250 ms`.
pub(crate) fn length(micros: i64) -> String {
    for (unit, name) in [(3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1000, "ms")] {
        if micros >= unit && micros % unit == 0 {
            return format!("{} {name}", micros / unit);
        }
    }
    format!("{micros} us")
}

/// Text of at most so many characters.
pub(super) fn cut(text: &str, width: usize, charset: Charset) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push(charset.cut());
    short
}
