//! Totals of a run, and what is said at its end.

use super::group::Group;
use super::words;
use crate::event::model::{Drop, Lost, LostPlace};
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::time::Duration;

/// Kinds of drops counted separately; those beyond are "of any other kind".
const MAX_KINDS: usize = 4096;
/// Kinds named at the end.
const TOP: usize = 5;

/// The totals as they grow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    drops: u64,
    segments: u64,
    unprinted: u64,
    hidden: BTreeMap<String, u64>,
    lost: BTreeMap<LostPlace, u64>,
    kinds: HashMap<Group, (u64, String)>,
}

impl Totals {
    pub(crate) fn drops(&self) -> u64 {
        self.drops
    }

    /// Drops that are shown, of kinds that are told elsewhere.
    pub(crate) fn counted(&mut self, drop: &Drop) {
        self.drops = self.drops.saturating_add(drop.count);
        self.segments = self.segments.saturating_add(drop.segments);
    }

    /// Drops that are shown, or would be if there were room.
    pub(super) fn shown(&mut self, drop: &Drop) {
        self.counted(drop);
        let mut group = Group::of(drop);
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&group) {
            group = Group::default();
        }
        let fix = || drop.drop.cause.as_ref().map(|cause| cause.fix.clone()).unwrap_or_default();
        self.kinds.entry(group).or_insert_with(|| (0, fix())).0 += drop.count;
    }

    /// Drops that are not shown because they are routine.
    pub(crate) fn hidden(&mut self, drop: &Drop) {
        let id = words::routine_id(drop);
        let is_known = self.hidden.len() < MAX_KINDS || self.hidden.contains_key(id);
        let id = if is_known { id } else { "other" };
        *self.hidden.entry(id.to_owned()).or_default() += drop.count;
    }

    pub(crate) fn lost(&mut self, lost: &Lost) {
        *self.lost.entry(lost.place).or_default() += lost.count;
    }

    /// Drops already counted as shown that nobody sees, because `-c` lines were printed.
    pub(super) fn unprinted(&mut self, count: u64) {
        self.unprinted += count;
    }

    /// (hidden drops, losses)
    pub(crate) fn background(&self) -> (u64, u64) {
        (self.hidden.values().sum(), self.lost.values().sum())
    }

    pub(crate) fn summary(&self, duration: Duration) -> Summary {
        let Self { drops, segments, unprinted, hidden, lost, kinds } = self;
        let mut kinds: Vec<_> = kinds.iter().collect();
        kinds.sort_by(|(a, (a_count, _)), (b, (b_count, _))| b_count.cmp(a_count).then_with(|| a.cmp(b)));
        let top = kinds.into_iter().take(TOP);
        let top =
            top.map(|(group, (count, fix))| Top { kind: group.to_string(), count: *count, fix: fix.clone() });
        Summary {
            duration,
            drops: *drops,
            segments: *segments,
            unprinted: *unprinted,
            hidden: hidden.clone(),
            lost: lost.clone(),
            top: top.collect(),
        }
    }
}

/// What a run saw. `drops + hidden` is all that the filter let through, except what was lost with its count
/// ([`LostPlace::loses_counts`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How long it ran.
    pub duration: Duration,
    /// Dropped skbs that were not hidden.
    pub drops: u64,
    /// Their segments.
    pub segments: u64,
    /// How many of `drops` are on no line, because `-c` lines had been printed.
    pub unprinted: u64,
    /// Routine drops that were hidden, by name.
    pub hidden: BTreeMap<String, u64>,
    /// Losses, by place.
    pub lost: BTreeMap<LostPlace, u64>,
    /// The most frequent kinds of `drops`; empty where kinds were not counted.
    pub top: Vec<Top>,
}

/// One kind of drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// Rule, or reason and location; cause; who. Safe to print.
    pub kind: String,
    /// Dropped skbs.
    pub count: u64,
    /// What to do about it; empty if nothing is known.
    pub fix: String,
}

impl Summary {
    /// All losses.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        self.lost.values().sum()
    }

    /// All hidden drops.
    #[must_use]
    pub fn hidden_total(&self) -> u64 {
        self.hidden.values().sum()
    }
}

/// `1,204 routine drops hidden, 0 events lost`
pub(crate) fn background(hidden: u64, lost: u64) -> String {
    format!(
        "{} routine drop{} hidden, {} event{} lost",
        words::thousands(hidden),
        words::plural(hidden),
        words::thousands(lost),
        words::plural(lost)
    )
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = words::thousands;
        write!(
            f,
            "-- {:.1} s: {} drop{}",
            self.duration.as_secs_f64(),
            count(self.drops),
            words::plural(self.drops)
        )?;
        if self.segments != self.drops {
            write!(f, " ({} segments)", count(self.segments))?;
        }
        writeln!(f, ", {} --", background(self.hidden_total(), self.lost_total()))?;
        for Top { kind, count: drops, fix } in &self.top {
            writeln!(f, "{:>12}  {:>6}  {kind}", count(*drops), share(*drops, self.drops))?;
            if !fix.is_empty() {
                writeln!(f, "{:22}fix: {}", "", super::escape(fix))?;
            }
        }
        let rest = self.drops - self.top.iter().map(|top| top.count).sum::<u64>();
        // Without a top the kinds were not counted.
        if rest > 0 && !self.top.is_empty() {
            writeln!(f, "{:>12}  {:>6}  others", count(rest), share(rest, self.drops))?;
        }
        if self.unprinted > 0 {
            writeln!(f, "not printed, because -c lines were: {}", count(self.unprinted))?;
        }
        list(f, "hidden (--all shows them)", self.hidden.iter().map(|(id, &count)| (id.as_str(), count)))?;
        list(f, "lost", self.lost.iter().map(|(&place, &count)| (place_name(place), count)))
    }
}

/// `LABEL: 12 ring, 3 flow`, the most frequent first; nothing if there is none.
fn list<'a>(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    entries: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let mut entries: Vec<(&str, u64)> = entries.collect();
    entries.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let mut text = String::new();
    for (position, (name, count)) in entries.iter().enumerate() {
        let comma = if position > 0 { "," } else { "" };
        write!(text, "{comma} {} {}", words::thousands(*count), super::escape(name))?;
    }
    if text.is_empty() { Ok(()) } else { writeln!(f, "{label}:{text}") }
}

/// As in the JSON.
pub(crate) fn place_name(place: LostPlace) -> &'static str {
    match place {
        LostPlace::Ring => "ring",
        LostPlace::Flow => "flow",
        LostPlace::Overflow => "overflow",
        LostPlace::Recursion => "recursion",
        LostPlace::Recording => "recording",
    }
}

/// A share in percent with one digit.
pub(crate) fn share(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}%", tenths / 10, tenths % 10)
}
