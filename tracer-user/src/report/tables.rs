//! Groups as rows of a table that adds up: those with most drops, all others, and what belongs to no group.

use super::page::{Amount, Note, Row, Table, Text};
use super::timeline::course;
use crate::hist::aggregate::{Aggregator, Axis, Group, Rest};
use crate::hist::view;
use std::collections::BTreeMap;

/// Columns of a course over time.
const COLUMNS: usize = 60;

/// A table of groups of one key; `None` if no drop has a label. `none` is what drops without one are called.
#[must_use]
pub(super) fn table(
    aggregator: &Aggregator,
    name: &'static str,
    none: &str,
    top: usize,
    notes: impl Fn(&str) -> Vec<Note>,
) -> Option<Table> {
    let all = aggregator.total().counts.drops;
    let (mut rows, mut without) = (Vec::new(), None);
    let mut ranked = aggregator.ranked(None);
    for (labels, group) in ranked.rows {
        match labels.first().and_then(Option::as_ref) {
            None => without = Some(group),
            Some(label) if rows.len() < top => rows.push(Row {
                name: Text::of(label),
                amount: Amount::of(group.counts.drops, all),
                notes: notes(label),
                ..Row::default()
            }),
            Some(_) => {
                ranked.rest.groups += 1;
                ranked.rest.group.merge(group);
            }
        }
    }
    if rows.is_empty() && ranked.rest.group.counts.drops == 0 {
        return None;
    }
    let mut ends: Vec<Row> = other(&ranked.rest, all).into_iter().collect();
    ends.extend(without.map(|group| end(none, group.counts.drops, all)));
    Some(Table { name, rows, ends, total: Amount::of(all, all) })
}

fn end(name: &str, drops: u64, all: u64) -> Row {
    Row { name: Text::of(name), amount: Amount::of(drops, all), ..Row::default() }
}

fn other(rest: &Rest, all: u64) -> Option<Row> {
    view::rest(rest).map(|name| end(&name, rest.group.counts.drops, all))
}

/// What drops have in common where their cause is known, and where it isn't.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Cause(String),
    Place(Option<String>, Option<String>),
}

/// The table of causes, of groups by class, cause, reason and location: a cause is one row, wherever it strikes; what has
/// none is told by reason and location. `from` and `to` are the ends of the courses.
#[must_use]
pub(super) fn causes(
    aggregator: &Aggregator,
    (from, to): (i64, i64),
    top: usize,
    notes: impl Fn(&str) -> Vec<Note>,
) -> Table {
    let all = aggregator.total().counts.drops;
    let Axis::Buckets(width) = aggregator.axis() else { return Table::default() };
    let mut ranked = aggregator.ranked(None);
    // The class of a cause is that of most of its drops.
    let mut merged = BTreeMap::<Why, BTreeMap<String, Group>>::new();
    for (labels, group) in ranked.rows {
        let label = |at: usize| labels.get(at).cloned().flatten();
        let why = label(1).map_or_else(|| Why::Place(label(2), label(3)), Why::Cause);
        merged.entry(why).or_default().entry(label(0).unwrap_or_default()).or_default().merge(group);
    }
    let mut whole: Vec<(Why, Option<&'static str>, Group)> = Vec::new();
    for (why, classes) in merged {
        let mut sum = Group::default();
        classes.values().for_each(|group| sum.merge(group));
        let class = classes.iter().max_by_key(|(_, group)| group.counts.drops);
        whole.push((why, class.and_then(|(name, _)| class_named(name)), sum));
    }
    // Stable: of as many drops the first by name.
    whole.sort_by_key(|(_, _, group)| std::cmp::Reverse(group.counts.drops));
    for (_, _, group) in whole.split_off(top.min(whole.len())) {
        ranked.rest.groups += 1;
        ranked.rest.group.merge(&group);
    }
    let rows = whole.into_iter().map(|(why, class, group)| {
        let (name, notes) = match why {
            Why::Cause(id) => (id.clone(), notes(&id)),
            Why::Place(reason, location) => {
                let known: Vec<String> = [reason, location].into_iter().flatten().collect();
                let name = if known.is_empty() { "unknown reason".to_owned() } else { known.join(" ") };
                (name, vec![Note { name: "why", text: Text::of("no cause is known"), code: false }])
            }
        };
        Row {
            name: Text::of(&name),
            amount: Amount::of(group.counts.drops, all),
            class,
            course: course(&group, width, from, to, COLUMNS),
            notes,
        }
    });
    let rows = rows.collect();
    Table {
        name: "Cause",
        rows,
        ends: other(&ranked.rest, all).into_iter().collect(),
        total: Amount::of(all, all),
    }
}

/// The classes in the order in which they are drawn, and what they mean.
pub(super) const CLASSES: [(&str, &str); 4] = [
    ("policy", "somebody decided it: a rule, a policy, a program"),
    ("error", "something is wrong: the packet, a route, a listener"),
    ("resource", "something is full"),
    ("routine", "nothing is wrong"),
];

fn class_named(name: &str) -> Option<&'static str> {
    CLASSES.iter().map(|(class, _)| *class).find(|class| *class == name)
}

/// Drops by class over time, of the same groups; what came when there were too many groups has the class `other`.
#[must_use]
pub(super) fn classes(aggregator: &Aggregator) -> Vec<(&'static str, Group)> {
    let ranked = aggregator.ranked(None);
    let mut classes: Vec<(&'static str, Group)> =
        CLASSES.iter().map(|(class, _)| (*class, Group::default())).collect();
    let mut other = ranked.rest.group;
    for (labels, group) in ranked.rows {
        let name = labels.first().and_then(Option::as_deref).unwrap_or_default();
        match classes.iter_mut().find(|(class, _)| *class == name) {
            Some((_, sum)) => sum.merge(group),
            None => other.merge(group),
        }
    }
    classes.push(("other", other));
    classes.retain(|(_, group)| group.counts.drops > 0);
    classes
}
