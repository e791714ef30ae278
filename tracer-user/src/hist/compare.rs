//! What became different from one window to another. Windows may differ in length, so rates are compared, not counts.

use super::aggregate::{Aggregator, Counts, Group, Labels, Rest};

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It was not there before.
    New,
    /// It is not there any more.
    Gone,
    /// More drops a second.
    Grew,
    /// Fewer drops a second.
    Shrank,
    /// As many drops a second.
    Same,
}

impl Change {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Gone => "gone",
            Self::Grew => "grew",
            Self::Shrank => "shrank",
            Self::Same => "same",
        }
    }

    /// From the drops in both windows and how much was seen of each, in microseconds; `None` if one was not seen at all.
    fn of(drops: [u64; 2], seen: [u64; 2]) -> Option<Self> {
        if seen.contains(&0) {
            return None;
        }
        let [before, after] =
            [u128::from(drops[0]) * u128::from(seen[1]), u128::from(drops[1]) * u128::from(seen[0])];
        Some(match (before, after) {
            (0, 1..) => Self::New,
            (1.., 0) => Self::Gone,
            _ if after > before => Self::Grew,
            _ if after < before => Self::Shrank,
            _ => Self::Same,
        })
    }
}

/// One group in both windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Its counts in each.
    pub counts: [Counts; 2],
    /// Drops a second in each; `None` if the window was not seen.
    pub rates: [Option<f64>; 2],
    /// What became of it; `None` if a window was not seen.
    pub change: Option<Change>,
}

impl Compared {
    /// A group in two windows of which so much was seen, in microseconds.
    #[must_use]
    pub fn of(group: &Group, seen: [u64; 2]) -> Self {
        let counts = [0, 1].map(|slot| group.slots.get(&slot).copied().unwrap_or_default());
        let drops = counts.map(|counts| counts.drops);
        let rate = |at: usize| (seen[at] > 0).then(|| drops[at] as f64 * 1e6 / seen[at] as f64);
        Self { counts, rates: [rate(0), rate(1)], change: Change::of(drops, seen) }
    }

    fn difference(&self) -> f64 {
        (self.rates[1].unwrap_or(0.0) - self.rates[0].unwrap_or(0.0)).abs()
    }
}

/// All groups, those that changed most first, and the rest.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// With their names.
    pub rows: Vec<(&'a Labels, Compared)>,
    /// What has no row, and in how many groups.
    pub rest: (Rest, Compared),
    /// All of it.
    pub total: Compared,
}

/// Compares the windows that drops were added up in.
#[must_use]
pub fn compare(aggregator: &Aggregator, top: Option<usize>, seen: [u64; 2]) -> Comparison<'_> {
    let ranked = aggregator.ranked(None);
    let mut rows: Vec<(&Labels, &Group, Compared)> =
        ranked.rows.into_iter().map(|(labels, group)| (labels, group, Compared::of(group, seen))).collect();
    rows.sort_by(|(a, _, one), (b, _, other)| {
        other.difference().total_cmp(&one.difference()).then_with(|| a.cmp(b))
    });
    let mut rest = ranked.rest;
    for (_, group, _) in rows.split_off(top.unwrap_or(usize::MAX).min(rows.len())) {
        rest.groups += 1;
        rest.group.merge(group);
    }
    let of_rest = Compared::of(&rest.group, seen);
    Comparison {
        rows: rows.into_iter().map(|(labels, _, compared)| (labels, compared)).collect(),
        rest: (rest, of_rest),
        total: Compared::of(aggregator.total(), seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::Record;
    use crate::hist::aggregate::Axis;
    use crate::hist::fixtures::{at, dropped};
    use crate::hist::key::Key;
    use crate::hist::window::Window;

    #[test]
    fn rates_tell_what_grew_though_windows_differ_in_length() {
        let windows = ["0s..10s", "10s..40s"].map(|text| Window::parse(text).unwrap().span(at(0.0)));
        let mut aggregator = Aggregator::new(vec![Key::Reason], Axis::Windows(windows));
        let drops = [
            ("GONE", 1.0, 10),
            ("NEW", 39.0, 300),
            ("SAME", 1.0, 2),
            ("SAME", 20.0, 6),
            ("SHRANK", 2.0, 10),
            ("SHRANK", 10.0, 20),
            ("GREW", 9.9, 1),
            ("GREW", 10.0, 4),
            ("OUTSIDE", 40.0, 7),
        ];
        for (reason, seconds, count) in drops {
            let Record::Drop(drop) = dropped(reason, seconds, count) else { continue };
            aggregator.add(&drop);
        }
        let seen = windows.map(|window| window.seen(at(0.0), at(60.0)));
        let changes = |top| {
            let compared = compare(&aggregator, top, seen);
            let name = |labels: &Labels| labels[0].clone().unwrap_or_default();
            let rows =
                compared.rows.iter().map(|(labels, row)| (name(labels), row.change)).collect::<Vec<_>>();
            let mut sums = compared.rest.1.counts;
            for (_, row) in &compared.rows {
                sums[0].add(row.counts[0]);
                sums[1].add(row.counts[1]);
            }
            assert_eq!(sums, compared.total.counts);
            assert_eq!(sums.map(|counts| counts.drops), [23, 330]);
            (rows, compared.rest.0.groups)
        };
        let (rows, rest) = changes(None);
        let named = [Change::New, Change::Gone, Change::Shrank, Change::Grew, Change::Same];
        let expected: Vec<_> =
            named.into_iter().map(|change| (change.name().to_uppercase(), Some(change))).collect();
        assert_eq!((rows, rest), (expected, 0));
        assert_eq!(changes(Some(2)).1, 3);
        assert_eq!(aggregator.outside().drops, 7);
        // A window that was not reached tells nothing.
        let unseen = compare(&aggregator, None, [10_000_000, 0]);
        assert!(unseen.rows.iter().all(|(_, row)| row.change.is_none() && row.rates[1].is_none()));
    }
}
