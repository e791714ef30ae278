//! A window of time on the command line, `A..B`: each end a time, or how long after the beginning, or nothing.

use super::aggregate::micros;
use crate::event::model::Timestamp;
use std::time::Duration;

/// A window: from its first end on, until before its second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    from: Option<Moment>,
    to: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// After the beginning of the run, or of the recording.
    After(Duration),
    At(Timestamp),
}

/// A window in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first microsecond in it.
    pub from: i64,
    /// The first one after it.
    pub to: i64,
}

impl Span {
    /// True if it is in the window.
    #[must_use]
    pub fn contains(self, micros: i64) -> bool {
        (self.from..self.to).contains(&micros)
    }

    /// How much of the window there was between two moments, in microseconds.
    #[must_use]
    pub fn seen(self, begin: Timestamp, end: Timestamp) -> u64 {
        let (from, to) = (self.from.max(micros(begin)), self.to.min(micros(end)));
        u64::try_from(i128::from(to) - i128::from(from)).unwrap_or(0)
    }
}

const FORM: &str = "two ends such as 0s..30s (since the beginning) or \
                    2026-11-20T22:10:00Z..2026-11-20T22:14:00Z; one may be left out";

impl Window {
    /// From `A..B`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once("..").ok_or(FORM)?;
        let window = Self { from: Moment::parse(from)?, to: Moment::parse(to)? };
        let is_empty = match (window.from, window.to) {
            (Some(Moment::After(from)), Some(Moment::After(to))) => from >= to,
            (Some(Moment::At(from)), Some(Moment::At(to))) => from >= to,
            _ => false,
        };
        if is_empty { Err("it ends before it begins".to_owned()) } else { Ok(window) }
    }

    /// When that is, where the run began at `begin`.
    #[must_use]
    pub fn span(self, begin: Timestamp) -> Span {
        let at = |moment: Moment| match moment {
            Moment::At(time) => micros(time),
            Moment::After(time) => {
                micros(begin).saturating_add(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
            }
        };
        // Drops that are only counted happened in an interval, the first of which began a moment before.
        let from = self.from.filter(|from| *from != Moment::After(Duration::ZERO));
        Span { from: from.map_or(i64::MIN, at), to: self.to.map_or(i64::MAX, at) }
    }
}

impl Moment {
    fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Some(Self::At(Timestamp(time.as_nanosecond()))));
        }
        let after = text.parse::<jiff::SignedDuration>().ok().and_then(|it| Duration::try_from(it).ok());
        after.map(|after| Some(Self::After(after))).ok_or_else(|| FORM.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hist::fixtures::at;

    #[test]
    fn ends_are_times_or_since_the_beginning() {
        let span = |text| Window::parse(text).unwrap().span(at(5.0));
        assert_eq!(span("0s..30s"), Span { from: i64::MIN, to: micros(at(35.0)) });
        assert_eq!(span("1s..30s").from, micros(at(6.0)));
        assert_eq!(span("..1m"), Span { from: i64::MIN, to: micros(at(65.0)) });
        let exact = span("2026-11-20T22:14:00Z..2026-11-20T23:15:00.5+01:00");
        assert_eq!(exact, Span { from: micros(at(0.0)), to: micros(at(60.5)) });
        for wrong in ["", "30s", "30s..10s", "a..b", "-3s..", "2026-11-20T22:14:00Z..2026-11-20T22:13:00Z"] {
            assert!(Window::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_was_watched_counts_for_a_rate() {
        let span = Window::parse("10s..20s").unwrap().span(at(0.0));
        assert_eq!(span.seen(at(0.0), at(15.0)), 5_000_000);
        assert_eq!(span.seen(at(0.0), at(60.0)), 10_000_000);
        assert_eq!(span.seen(at(0.0), at(9.0)), 0);
        let open = Window::parse("..").unwrap().span(at(0.0));
        assert_eq!(open.seen(at(0.0), at(1.0)), 1_000_000);
        assert!(!span.contains(micros(at(20.0))) && span.contains(micros(at(10.0))));
    }
}
