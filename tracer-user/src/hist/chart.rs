//! The histogram for a terminal: a row for each group with its share, a bar, and its course over time.

use super::aggregate::Group;
use super::view::{Look, View, clock, cut, length, rest, shown};
use crate::output::{summary, words};

/// Room between columns.
const GAP: usize = 2;
/// A share: `100.0%`.
const SHARE: usize = 6;
/// Labels of all keys but the last are in columns of at most this.
const LABEL: usize = 40;
/// On lines shorter than this the course over time has no room.
const NARROW: usize = 60;

/// How wide the columns are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    count: usize,
    bar: usize,
    /// 0: none.
    course: usize,
    /// 0: as long as it is.
    label: usize,
}

impl Layout {
    fn of(look: &Look, count: usize, slots: u64) -> Self {
        let width = look.width;
        let bar = (width / 5).clamp(6, 40);
        let most = if width < NARROW { 0 } else { (width / 4).min(60) };
        let course = usize::try_from(slots).unwrap_or(usize::MAX).min(most);
        let before = count + SHARE + bar + 3 * GAP + if course > 0 { course + GAP } else { 0 };
        let label = if look.cut { width.saturating_sub(before).max(1) } else { 0 };
        Self { count, bar, course, label }
    }
}

/// The columns of a course over time: which slots are in which.
#[derive(Clone, Copy, Debug)]
struct Course {
    first: i64,
    columns: usize,
    /// Slots in a column.
    each: u64,
}

impl Course {
    fn of(first: i64, slots: u64, most: usize) -> Self {
        let each = slots.div_ceil(most.max(1) as u64).max(1);
        Self { first, columns: usize::try_from(slots.div_ceil(each)).unwrap_or(most).min(most), each }
    }

    fn values(&self, group: &Group) -> Vec<u64> {
        let mut values = vec![0_u64; self.columns];
        for (&slot, counts) in &group.slots {
            let at = (i128::from(slot) - i128::from(self.first)) / i128::from(self.each);
            if let Some(value) = usize::try_from(at).ok().and_then(|at| values.get_mut(at)) {
                *value = value.saturating_add(counts.drops);
            }
        }
        values
    }
}

/// The chart, with an end after each line.
#[must_use]
pub fn chart(view: &View<'_>, look: &Look) -> String {
    let total = view.aggregator.total();
    let ranked = view.aggregator.ranked(view.top);
    let (first, slots) = slots(view);
    let count = words::thousands(total.counts.drops).len().max("drops".len());
    let layout = Layout::of(look, count, slots);
    let course = Course::of(first, slots, layout.course);

    let mut lines = head(view, look, &course, &layout);
    let others = rest(&ranked.rest);
    let rows = ranked.rows.iter().map(|(labels, group)| (shown(labels), *group));
    let rows: Vec<_> =
        rows.chain(others.iter().map(|name| (vec![name.as_str()], &ranked.rest.group))).collect();
    let most = rows.iter().map(|(_, group)| group.counts.drops).max().unwrap_or(0);
    let named: Vec<&[&str]> = rows.iter().map(|(labels, _)| labels.as_slice()).collect();
    let labels = columns(&named);
    let mut row = |label: &str, group: &Group, bar: String| {
        let drops = group.counts.drops;
        let share = summary::share(drops, total.counts.drops);
        let mut line = format!("{:>count$}  {share:>SHARE$}  {bar:<1$}", words::thousands(drops), layout.bar);
        if layout.course > 0 {
            let course = look.charset.sparkline(&course.values(group));
            line.push_str(&format!("  {course:<0$}", layout.course));
        }
        let label = if layout.label > 0 { cut(label, layout.label, look.charset) } else { label.to_owned() };
        lines.push(format!("{line}  {label}"));
    };
    row("all", total, String::new());
    for ((_, group), label) in rows.iter().zip(&labels) {
        row(label, group, look.charset.bar(group.counts.drops, most, layout.bar));
    }
    let width = if look.cut { look.width } else { usize::MAX };
    lines.into_iter().map(|line| format!("{}\n", cut(line.trim_end(), width, look.charset))).collect()
}

/// What it is about, and the names of the columns.
fn head(view: &View<'_>, look: &Look, course: &Course, layout: &Layout) -> Vec<String> {
    let total = view.aggregator.total().counts;
    let (from, to) = (clock(view.begin, &look.zone, true), clock(view.end, &look.zone, true));
    // The date again only where it is another one.
    let is_same_day = from.get(..10) == to.get(..10);
    let to = clock(view.end, &look.zone, !is_same_day);
    let mut about =
        format!("{from} to {to}: {} drop{}", words::thousands(total.drops), words::plural(total.drops));
    if total.segments != total.drops {
        about.push_str(&format!(" ({} segments)", words::thousands(total.segments)));
    }
    let unseen = summary::background(view.summary.hidden_total(), view.summary.lost_total());
    let mut lines = vec![about, unseen];
    if let Some((time, counts)) = view.peak() {
        let each = length(view.width());
        let drops = words::thousands(counts.drops);
        lines.push(format!("most in {each}: {drops} at {}", clock(time, &look.zone, !is_same_day)));
    }
    lines.push(String::new());
    let mut names = format!("{:>1$}  {2:>SHARE$}  {3:<4$}", "drops", layout.count, "share", "", layout.bar);
    if layout.course > 0 {
        let column = view.width().saturating_mul(i64::try_from(course.each).unwrap_or(i64::MAX));
        let each = format!("each {}", length(column));
        let each = if each.len() <= layout.course { each } else { String::new() };
        names.push_str(&format!("  {each:<0$}", layout.course));
    }
    lines.push(format!("{names}  {}", view.keys().join(", ")));
    lines
}

/// The slots that a course over time has: all of the run, and whatever drops say of their time. The first, and how many.
fn slots(view: &View<'_>) -> (i64, u64) {
    let run = [view.begin, view.end].map(|time| super::aggregate::micros(time).div_euclid(view.width()));
    let slots = &view.aggregator.total().slots;
    let first = slots.keys().next().map_or(run[0], |&first| first.min(run[0]));
    let last = slots.keys().next_back().map_or(run[1], |&last| last.max(run[1]));
    (first, u64::try_from(i128::from(last) - i128::from(first) + 1).unwrap_or(1))
}

/// Labels of several keys, each key in its column.
fn columns(rows: &[&[&str]]) -> Vec<String> {
    let keys = rows.iter().map(|labels| labels.len()).max().unwrap_or(0);
    let width = |key: usize| {
        let of_key = rows.iter().filter(|labels| labels.len() == keys).filter_map(|labels| labels.get(key));
        of_key.map(|label| label.chars().count()).max().unwrap_or(0).min(LABEL)
    };
    let widths: Vec<usize> = (0..keys).map(width).collect();
    let joined = |labels: &&[&str]| {
        let padded = labels.iter().zip(&widths).map(|(label, width)| format!("{label:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(joined).collect()
}
