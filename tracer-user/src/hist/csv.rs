//! CSV (RFC 4180, but with Unix line ends) for spreadsheets and dataframes: a line for each group and bucket in which it
//! had drops. `type` is `group`, or `other` for what is in no group; a label that a drop does not have is an empty field.
//! The lines' counts add up to all that was counted.

use super::aggregate::{Counts, Labels};
use super::view::View;

/// The lines, after one with the names of the columns.
#[must_use]
pub fn csv(view: &View<'_>) -> String {
    match view.comparison() {
        Some(_) => of_windows(view),
        None => of_buckets(view),
    }
}

fn of_buckets(view: &View<'_>) -> String {
    let mut text = head(view, &["type", "time"], &["count", "segments"]);
    let none = vec![None; view.aggregator.keys().len()];
    let ranked = view.aggregator.ranked(view.top);
    let groups = ranked.rows.iter().map(|(labels, group)| ("group", *labels, *group));
    for (kind, labels, group) in groups.chain([("other", &none, &ranked.rest.group)]) {
        for (&slot, Counts { drops, segments }) in &group.slots {
            let time = view.time(slot).to_string();
            let counts = [drops.to_string(), segments.to_string()];
            text.push_str(&line(&[kind.to_owned(), time], labels, &counts));
        }
    }
    text
}

fn of_windows(view: &View<'_>) -> String {
    let Some((compared, _)) = view.comparison() else { return String::new() };
    let numbers =
        ["before", "after", "before_segments", "after_segments", "before_per_second", "after_per_second"];
    let mut text = head(view, &["type", "change"], &numbers);
    let none = vec![None; view.aggregator.keys().len()];
    let (rest, other) = &compared.rest;
    let has_rest = rest.groups > 0 || rest.beyond.drops > 0;
    let groups = compared.rows.iter().map(|(labels, row)| ("group", *labels, row));
    for (kind, labels, row) in groups.chain(has_rest.then_some(("other", &none, other))) {
        let change = row.change.map(super::compare::Change::name).unwrap_or_default();
        let counts = row.counts.map(|counts| counts.drops.to_string());
        let segments = row.counts.map(|counts| counts.segments.to_string());
        let rates = row.rates.map(|rate| rate.map(|rate| rate.to_string()).unwrap_or_default());
        let numbers: Vec<String> = counts.into_iter().chain(segments).chain(rates).collect();
        text.push_str(&line(&[kind.to_owned(), change.to_owned()], labels, &numbers));
    }
    text
}

fn head(view: &View<'_>, first: &[&str], last: &[&str]) -> String {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    line(&owned(first), &view.keys().into_iter().map(Some).collect(), &owned(last))
}

fn line(first: &[String], labels: &Labels, last: &[String]) -> String {
    let labels = labels.iter().map(|label| label.as_deref().unwrap_or_default());
    let fields = first.iter().map(String::as_str).chain(labels).chain(last.iter().map(String::as_str));
    let fields: Vec<String> = fields.map(field).collect();
    format!("{}\n", fields.join(","))
}

fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
