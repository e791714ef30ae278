//! Tables for people and simple scripts, as kubectl's: a line a group, the numbers first, so that labels with spaces are
//! no trouble.

use super::compare::Compared;
use super::view::{Look, View, clock, rest, shown};
use crate::output::{summary, words};

/// A table of the groups, with an end after each line.
#[must_use]
pub fn table(view: &View<'_>, look: &Look) -> String {
    let ranked = view.aggregator.ranked(view.top);
    let (total, seconds) = (view.aggregator.total(), view.seconds());
    let mut rows = vec![heads(&["DROPS", "SEGMENTS", "SHARE", "DROPS/S", "FIRST", "LAST"], view)];
    let others = rest(&ranked.rest);
    let groups = ranked.rows.iter().map(|(labels, group)| (shown(labels), *group));
    let others = others.iter().map(|name| (vec![name.as_str()], &ranked.rest.group));
    for (labels, group) in groups.chain(others).chain([(vec!["(all)"], total)]) {
        let ends = [group.slots.keys().next(), group.slots.keys().next_back()];
        let [first, last] = ends.map(|slot| {
            slot.map_or_else(|| "-".to_owned(), |&slot| clock(view.time(slot), &look.zone, false))
        });
        let per_second = if seconds > 0.0 { group.counts.drops as f64 / seconds } else { 0.0 };
        let mut row = vec![
            group.counts.drops.to_string(),
            group.counts.segments.to_string(),
            summary::share(group.counts.drops, total.counts.drops),
            format!("{per_second:.1}"),
            first,
            last,
        ];
        row.extend(labels.into_iter().map(str::to_owned));
        rows.push(row);
    }
    aligned(&rows, 6)
}

/// A table of what became different; empty if nothing is compared.
#[must_use]
pub fn comparison(view: &View<'_>) -> String {
    let Some((compared, seen)) = view.comparison() else { return String::new() };
    let mut rows = vec![heads(&["CHANGE", "BEFORE", "AFTER", "BEFORE/S", "AFTER/S"], view)];
    let others = rest(&compared.rest.0);
    let groups = compared.rows.iter().map(|(labels, row)| (shown(labels), row));
    let others = others.iter().map(|name| (vec![name.as_str()], &compared.rest.1));
    for (labels, Compared { counts, rates, change }) in
        groups.chain(others).chain([(vec!["(all)"], &compared.total)])
    {
        let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}"));
        let mut row = vec![
            change.map_or("-", super::compare::Change::name).to_owned(),
            counts[0].drops.to_string(),
            counts[1].drops.to_string(),
            rate(rates[0]),
            rate(rates[1]),
        ];
        row.extend(labels.into_iter().map(str::to_owned));
        rows.push(row);
    }
    let [before, after] = seen.map(|micros| micros as f64 / 1e6);
    let outside = view.aggregator.outside().drops;
    let (hidden, lost) = (view.summary.hidden_total(), view.summary.lost_total());
    format!(
        "before {before:.1} s, after {after:.1} s; {} drop{} in neither, {}\n{}",
        words::thousands(outside),
        words::plural(outside),
        summary::background(hidden, lost),
        aligned(&rows, 5)
    )
}

fn heads(numbers: &[&str], view: &View<'_>) -> Vec<String> {
    let keys = view.keys().into_iter().map(|name| name.to_uppercase());
    numbers.iter().map(|&name| name.to_owned()).chain(keys).collect()
}

/// Columns as wide as they need to be: so many to the right, the others to the left.
fn aligned(rows: &[Vec<String>], right: usize) -> String {
    let count = rows.first().map_or(0, Vec::len);
    // What is not a whole row has a name that no column need be as wide as.
    let whole = || rows.iter().filter(|row| row.len() == count);
    let width = |at: usize| {
        let rows = if at < right { rows.iter().collect::<Vec<_>>() } else { whole().collect() };
        rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
            if at < right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
