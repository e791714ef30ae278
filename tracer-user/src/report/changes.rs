//! What became different from one window of time to another.

use super::moment::rise;
use super::page::{Changed, Changes, Comparison, Side, Text};
use super::timeline::View;
use crate::event::model::Timestamp;
use crate::hist::Window;
use crate::hist::aggregate::{Aggregator, Axis, micros, timestamp};
use crate::hist::compare::{Change, Compared, compare};
use crate::hist::view::{clock, rest};
use crate::hist::window::Span;
use crate::output::words;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

/// Groups with a row.
const TOP: usize = 10;

/// Which windows are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// What came before the rate rose most, and what from then on.
    #[default]
    Rise,
    /// What came before a moment, and what from then on.
    At(Timestamp),
    /// Two windows.
    Windows([Window; 2]),
}

impl Choice {
    /// How a comparison counts time, in a run that began at `begin`: in windows where they are known from the start, else
    /// in buckets of `width` microseconds, to be divided later.
    #[must_use]
    pub fn axis(self, begin: Timestamp, width: i64) -> Axis {
        match self {
            Self::Rise => Axis::Buckets(width),
            Self::At(time) => Axis::divided(micros(time)),
            Self::Windows(windows) => Axis::Windows(windows.map(|window| window.span(begin))),
        }
    }
}

/// Where time is divided, and why there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    /// In microseconds since 1970.
    pub at: i64,
    /// True if the rate rises there; false if it is the middle.
    pub is_rise: bool,
}

/// Divides time from `from` to `to`, at a place where all aggregators have an end of a bucket; `None` where it is too short.
#[must_use]
pub(super) fn divide(
    course: &Aggregator,
    others: &[&Aggregator],
    (from, to): (i64, i64),
) -> Option<Division> {
    let width_of = |aggregator: &Aggregator| match aggregator.axis() {
        Axis::Buckets(width) => Some(width),
        Axis::Windows(_) => None,
    };
    let width = width_of(course)?;
    // All began alike and became twice as wide some times: the widest one's ends are ends of all.
    let widest = others.iter().filter_map(|it| width_of(it)).chain([width]).max()?;
    let drops: BTreeMap<i64, u64> =
        course.total().slots.iter().map(|(&slot, counts)| (slot, counts.drops)).collect();
    let rises = rise(&drops, from.div_euclid(width), to.div_euclid(width).saturating_add(1));
    let is_rise = rises.is_some();
    let middle = i64::try_from((i128::from(from) + i128::from(to)) / 2).ok()?;
    let at = rises.map_or(middle, |slot| slot.saturating_mul(width));
    let at = at.div_euclid(widest).saturating_mul(widest);
    (from < at && at < to).then_some(Division { at, is_rise })
}

/// How the windows came about, for people.
#[must_use]
pub(super) fn chosen(choice: Choice, division: Option<Division>, zone: &TimeZone, date: bool) -> String {
    let at = |micros: i64| clock(timestamp(micros), zone, date);
    match (choice, division) {
        (Choice::Windows(_), _) => "Two windows of time, as asked.".to_owned(),
        (Choice::At(time), _) => {
            format!("Divided at {}, as asked.", at(micros(time)))
        }
        (Choice::Rise, Some(Division { at: moment, is_rise: true })) => format!(
            "Divided at {}, where the rate of drops rose most (found in the counts; --at TIME chooses another moment).",
            at(moment)
        ),
        (Choice::Rise, Some(Division { at: moment, is_rise: false })) => format!(
            "The rate of drops never rose much, so time is divided in its middle, at {} (--at TIME chooses another moment).",
            at(moment)
        ),
        (Choice::Rise, None) => String::new(),
    }
}

/// The comparison, of aggregators that have two windows. `view` says from when until when was recorded.
#[must_use]
pub(super) fn comparison(
    tables: &[(&'static str, &'static str, &Aggregator)],
    chosen: &str,
    view: &View<'_>,
    date: bool,
) -> Option<Comparison> {
    let (_, _, first) = tables.first()?;
    let Axis::Windows(windows) = first.axis() else { return None };
    let (begin, end) = (timestamp(view.from), timestamp(view.to));
    let seen = windows.map(|window| window.seen(begin, end));
    let total = Compared::of(first.total(), seen);
    let side = |at: usize| {
        let Span { from, to } = windows[at];
        let [from, to] = [from, to].map(|end| timestamp(end.clamp(view.from, view.to.max(view.from))));
        let drops = total.counts[at].drops;
        Side {
            when: format!("{} to {}", clock(from, view.zone, date), clock(to, view.zone, date)),
            drops,
            text: words::thousands(drops),
            rate: rate(total.rates[at]),
        }
    };
    let has_names = |it: &&(_, _, &Aggregator)| {
        let (_, _, aggregator) = it;
        aggregator.ranked(None).rows.iter().any(|(labels, _)| labels.iter().any(Option::is_some))
    };
    Some(Comparison {
        chosen: Text::of(chosen),
        windows: [side(0), side(1)],
        outside: first.outside().drops,
        outside_text: words::thousands(first.outside().drops),
        tables: tables
            .iter()
            .filter(has_names)
            .map(|(name, none, aggregator)| changes(name, none, aggregator, seen))
            .collect(),
    })
}

fn changes(name: &'static str, none: &str, aggregator: &Aggregator, seen: [u64; 2]) -> Changes {
    let compared = compare(aggregator, Some(TOP), seen);
    let rows = compared
        .rows
        .iter()
        .map(|(labels, row)| changed(labels.first().and_then(Option::as_deref).unwrap_or(none), row));
    let (others, of_others) = &compared.rest;
    Changes {
        name,
        rows: rows.collect(),
        other: rest(others).map(|name| Changed { change: "", ..changed(&name, of_others) }),
        total: changed("all", &compared.total),
    }
}

fn changed(name: &str, row: &Compared) -> Changed {
    let drops = row.counts.map(|counts| counts.drops);
    Changed {
        name: Text::of(name),
        change: row.change.map(Change::name).unwrap_or_default(),
        drops,
        texts: drops.map(words::thousands),
        rates: row.rates.map(rate),
    }
}

/// Drops a second, with as many digits as mean something.
#[must_use]
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate >= 1000.0 => words::thousands(rate.round() as u64),
        Some(rate) if rate >= 10.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::Record;
    use crate::hist::Key;
    use crate::hist::aggregate::micros;
    use crate::hist::fixtures::{at, dropped};

    fn counted(drops: &[(&str, f64, u64)], width: i64) -> Aggregator {
        let mut aggregator = Aggregator::new(vec![Key::Reason], Axis::Buckets(width * 1_000_000));
        for &(reason, seconds, count) in drops {
            let Record::Drop(drop) = dropped(reason, seconds, count) else { continue };
            aggregator.add(&drop);
        }
        aggregator
    }

    #[test]
    fn time_is_divided_where_the_rate_rises_at_an_end_of_every_bucket() {
        let drops: Vec<_> =
            (0..60).map(|second| ("A", f64::from(second), if second < 37 { 1 } else { 50 })).collect();
        let span = (micros(at(0.0)), micros(at(59.0)));
        let of = |widths: [i64; 2]| {
            let [course, other] = widths.map(|width| counted(&drops, width));
            divide(&course, &[&other], span).unwrap()
        };
        assert_eq!(of([1, 1]), Division { at: micros(at(37.0)), is_rise: true });
        assert_eq!(of([1, 8]).at.rem_euclid(8_000_000), 0);
        let steady: Vec<_> = (0..60).map(|second| ("A", f64::from(second), 5)).collect();
        let steady = counted(&steady, 1);
        assert_eq!(divide(&steady, &[], span), Some(Division { at: micros(at(29.0)), is_rise: false }));
        assert_eq!(divide(&steady, &[], (span.0, span.0)), None);
    }

    #[test]
    fn both_windows_add_up() {
        let aggregator =
            counted(&[("OLD", 1.0, 10), ("BOTH", 2.0, 3), ("BOTH", 12.0, 30), ("NEW", 15.0, 7)], 1);
        let split = aggregator.split(micros(at(10.0))).unwrap();
        let zone = TimeZone::UTC;
        let (from, to) = (micros(at(0.0)), micros(at(20.0)));
        let view = View { classes: &[], width: 1, from, to, split: None, zone: &zone };
        let compared = comparison(&[("Reason", "(none)", &split)], "so", &view, false).unwrap();
        assert_eq!(compared.windows.clone().map(|side| side.drops), [13, 37]);
        assert_eq!(compared.windows[0].when, "22:14:00 to 22:14:10");
        assert_eq!(compared.windows[1].rate, "3.70");
        let rows: Vec<_> =
            compared.tables[0].rows.iter().map(|row| (row.name.as_str(), row.change, row.drops)).collect();
        assert_eq!(rows, [("BOTH", "grew", [3, 30]), ("OLD", "gone", [10, 0]), ("NEW", "new", [0, 7])]);
        assert_eq!(compared.tables[0].total.drops, [13, 37]);
    }

    #[test]
    fn rates_have_the_digits_that_mean_something() {
        assert_eq!([None, Some(0.0), Some(12.34), Some(12_345.6)].map(rate), ["-", "0.00", "12.3", "12,346"]);
    }
}
