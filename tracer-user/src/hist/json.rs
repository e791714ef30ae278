//! One object a line: first `histogram` (or `comparison`) with what is true of all of it, then a `group` each, and `other`
//! for what is in none of them. The counts of groups and other add up to those of the first line.

use super::aggregate::{Counts, Group, Labels, Rest};
use super::compare::{Change, Compared};
use super::key::Key;
use super::view::View;
use crate::event::model::{LostPlace, Timestamp};
use crate::output::escape;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Histogram {
        #[serde(flatten)]
        run: Run<'a>,
        bucket_seconds: f64,
        #[serde(flatten)]
        course: Course,
    },
    Comparison {
        #[serde(flatten)]
        run: Run<'a>,
        before_seconds: f64,
        after_seconds: f64,
        /// In neither.
        outside: u64,
        #[serde(flatten)]
        change: Windows,
    },
    Group {
        key: Named<'a>,
        #[serde(flatten)]
        counts: Body,
    },
    Other {
        groups: usize,
        /// Drops among these that came when there were too many groups to tell theirs.
        beyond_limit: u64,
        #[serde(flatten)]
        counts: Body,
    },
}

#[derive(Serialize)]
struct Run<'a> {
    time: Timestamp,
    time_last: Timestamp,
    by: Vec<String>,
    hidden: BTreeMap<String, u64>,
    lost: &'a BTreeMap<LostPlace, u64>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body {
    Course(Course),
    Windows(Windows),
}

#[derive(Serialize)]
struct Course {
    count: u64,
    segments: u64,
    buckets: Vec<Bucket>,
}

#[derive(Serialize)]
struct Bucket {
    time: Timestamp,
    count: u64,
    segments: u64,
}

#[derive(Serialize)]
struct Windows {
    change: Option<Change>,
    before: Window,
    after: Window,
}

#[derive(Serialize)]
struct Window {
    count: u64,
    segments: u64,
    per_second: Option<f64>,
}

/// Labels by the names of their keys, in the order that was asked for.
struct Named<'a>(&'a [Key], &'a Labels);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|key| key.name()).zip(self.1))
    }
}

/// The lines.
#[must_use]
pub fn json(view: &View<'_>) -> String {
    // Labels are safe to print already, and these types have nothing that can't be written.
    let line = |line: &Line<'_>| serde_json::to_string(line).map(|line| line + "\n").unwrap_or_default();
    lines(view).iter().map(line).collect()
}

fn lines<'a>(view: &'a View<'_>) -> Vec<Line<'a>> {
    let run = Run {
        time: view.begin,
        time_last: view.end,
        by: view.keys(),
        hidden: view.summary.hidden.iter().map(|(id, &count)| (escape(id).into_owned(), count)).collect(),
        lost: &view.summary.lost,
    };
    let group = |labels, counts| Line::Group { key: Named(view.aggregator.keys(), labels), counts };
    let other = |rest: &Rest, counts| {
        let (groups, beyond_limit) = (rest.groups, rest.beyond.drops);
        (groups > 0 || beyond_limit > 0).then_some(Line::Other { groups, beyond_limit, counts })
    };
    let mut lines = Vec::new();
    if let Some((compared, [before, after])) = view.comparison() {
        lines.push(Line::Comparison {
            run,
            before_seconds: before as f64 / 1e6,
            after_seconds: after as f64 / 1e6,
            outside: view.aggregator.outside().drops,
            change: windows(&compared.total),
        });
        lines.extend(compared.rows.iter().map(|(labels, row)| group(labels, Body::Windows(windows(row)))));
        lines.extend(other(&compared.rest.0, Body::Windows(windows(&compared.rest.1))));
    } else {
        let ranked = view.aggregator.ranked(view.top);
        let course = |group| course(view, group);
        let bucket_seconds = view.width() as f64 / 1e6;
        lines.push(Line::Histogram { run, bucket_seconds, course: course(view.aggregator.total()) });
        lines.extend(ranked.rows.iter().map(|(labels, of)| group(labels, Body::Course(course(of)))));
        lines.extend(other(&ranked.rest, Body::Course(course(&ranked.rest.group))));
    }
    lines
}

fn course(view: &View<'_>, group: &Group) -> Course {
    let Counts { drops: count, segments } = group.counts;
    let bucket = |(&slot, &Counts { drops: count, segments }): (&i64, &Counts)| Bucket {
        time: view.time(slot),
        count,
        segments,
    };
    Course { count, segments, buckets: group.slots.iter().map(bucket).collect() }
}

fn windows(row: &Compared) -> Windows {
    let window = |at: usize| {
        let Counts { drops: count, segments } = row.counts[at];
        Window { count, segments, per_second: row.rates[at] }
    };
    Windows { change: row.change, before: window(0), after: window(1) }
}
