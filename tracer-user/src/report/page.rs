//! What is on the page: plain data, made by `gather` and worded by the template. All text from outside is a [`Text`].

use crate::output::{escape, summary, words};
use serde::Serialize;
use std::fmt;

/// Characters of one text at most: a page must stay a page, whatever a recording has for a name.
const LONGEST: usize = 1000;

/// Text that is safe to look at: no control character, nothing that turns text around, not too long. What it could mean in
/// HTML is the template's affair, which escapes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Text(String);

impl Text {
    /// Makes it safe.
    #[must_use]
    pub fn of(text: &str) -> Self {
        // Before it is escaped, too: that is work and room for what is cut off.
        let head: String = text.chars().take(LONGEST + 1).collect();
        let safe = escape(&head);
        match safe.char_indices().nth(LONGEST) {
            Some((end, _)) => Self(format!("{}…", safe.get(..end).unwrap_or_default())),
            None => Self(safe.into_owned()),
        }
    }

    /// As it is shown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The whole page.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Page {
    /// The window's title, and the page's.
    pub title: Text,
    /// droptrace's version.
    pub version: &'static str,
    /// The answer, in a sentence or two.
    pub answer: Answer,
    /// The numbers that matter most.
    pub figures: Vec<Figure>,
    /// What makes the numbers less than the truth, or a part of it.
    pub warnings: Vec<Text>,
    /// All drops.
    pub drops: u64,
    /// From when until when, and in which time zone.
    pub span: Option<Span>,
    /// Drops over time, drawn for wide and for narrow screens.
    pub charts: Vec<Chart>,
    /// What the colours mean.
    pub legend: Vec<Legend>,
    /// What became different.
    pub comparison: Option<Comparison>,
    /// The tables, by section.
    pub sections: Vec<Section>,
    /// The records one by one.
    pub records: Records,
    /// How it was recorded.
    pub recorded: Recorded,
    /// What was lost, and what is not counted here.
    pub unseen: Unseen,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answer {
    /// `12,431 drops in 14 min on node n1`
    pub what: Text,
    /// What most of them have in common; `None` without a drop.
    pub most: Option<Most>,
}

/// What most drops have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Most {
    /// Of all drops.
    pub share: String,
    /// The rule, program or policy, else reason and location.
    pub place: Text,
    /// The rule's own text.
    pub rule: Option<Text>,
    /// Who wrote it.
    pub owner: Option<Text>,
    /// The cause, and what to do.
    pub cause: Option<Said>,
}

/// What is said of a cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Said {
    /// One sentence.
    pub why: Text,
    /// One sentence, or nothing.
    pub fix: Text,
}

/// A number.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figure {
    /// What it counts.
    pub name: &'static str,
    /// The number.
    pub value: String,
    /// More about it.
    pub note: String,
    /// True if it is bad news.
    pub bad: bool,
}

/// A span of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Span {
    /// In the page's time zone.
    pub from: String,
    /// Likewise.
    pub to: String,
    /// `UTC`, or `UTC+01:00 (Europe/Berlin)`.
    pub zone: String,
    /// In UTC (RFC 3339).
    pub from_utc: String,
    /// Likewise.
    pub to_utc: String,
}

/// Drops over time, in the units of an SVG's view box.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Chart {
    /// `wide` or `narrow`.
    pub name: &'static str,
    /// How wide.
    pub width: f64,
    /// How high.
    pub height: f64,
    /// The plot's edges.
    pub left: f64,
    /// Likewise.
    pub right: f64,
    /// Likewise.
    pub top: f64,
    /// Likewise.
    pub bottom: f64,
    /// `10 s`: how much time a bar is.
    pub each: String,
    /// A bar for each stretch of time that has drops.
    pub bars: Vec<Bar>,
    /// Times below.
    pub times: Vec<Tick>,
    /// Numbers at the left.
    pub numbers: Vec<Tick>,
    /// Where before ends and after begins.
    pub split: Option<f64>,
}

/// A bar of several parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bar {
    /// Its left edge.
    pub x: f64,
    /// Its width.
    pub width: f64,
    /// What it says.
    pub title: String,
    /// The lowest first.
    pub parts: Vec<Part>,
}

/// A part of a bar.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Part {
    /// The drops' class.
    pub class: &'static str,
    /// Its upper edge.
    pub y: f64,
    /// Its height.
    pub height: f64,
}

/// A mark on an axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tick {
    /// Where.
    pub at: f64,
    /// What it says.
    pub text: String,
}

/// A colour's meaning.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Legend {
    /// The class.
    pub class: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// How many drops.
    pub drops: String,
}

/// How many, and how much of all that is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Amount {
    /// Drops.
    pub drops: u64,
    /// The same for people.
    pub text: String,
    /// Of all.
    pub share: String,
    /// Of all, in percent: as long as a bar is.
    pub percent: f64,
}

impl Amount {
    /// So many of so many.
    #[must_use]
    pub fn of(drops: u64, all: u64) -> Self {
        let percent = if all == 0 { 0.0 } else { drops as f64 * 100.0 / all as f64 };
        let percent = (percent * 100.0).round() / 100.0;
        Self { drops, text: words::thousands(drops), share: summary::share(drops, all), percent }
    }
}

/// Tables of one subject.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Section {
    /// Its anchor.
    pub id: &'static str,
    /// Its name.
    pub title: &'static str,
    /// What is to be known before reading it.
    pub lead: &'static str,
    /// True if its tables are small and stand beside each other.
    pub beside: bool,
    /// Its tables.
    pub tables: Vec<Table>,
}

/// A table of groups. Its rows, with those at its end, add up to the total.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// What the groups are: `Rule`.
    pub name: &'static str,
    /// Those with most drops first.
    pub rows: Vec<Row>,
    /// All others, and what belongs to no group.
    pub ends: Vec<Row>,
    /// All of them.
    pub total: Amount,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: Text,
    /// How many.
    pub amount: Amount,
    /// Its class, where it has one.
    pub class: Option<&'static str>,
    /// Its course over time, in parts of 100 of the highest; empty where it is not drawn.
    pub course: Vec<u8>,
    /// What is known of it.
    pub notes: Vec<Note>,
}

/// Something that is known of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Note {
    /// `why`, `fix`, `rule` ...
    pub name: &'static str,
    /// What.
    pub text: Text,
    /// True if it is code.
    pub code: bool,
}

/// Two windows of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// How they were chosen.
    pub chosen: Text,
    /// Before and after.
    pub windows: [Side; 2],
    /// Drops in neither.
    pub outside: u64,
    /// The same for people.
    pub outside_text: String,
    /// By what.
    pub tables: Vec<Changes>,
}

/// One window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// `05:51:31 to 05:51:43`
    pub when: String,
    /// Drops.
    pub drops: u64,
    /// The same for people.
    pub text: String,
    /// `12.3`: drops a second; `-` where the window was not seen.
    pub rate: String,
}

/// What became of groups.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Changes {
    /// What the groups are.
    pub name: &'static str,
    /// Those that changed most first.
    pub rows: Vec<Changed>,
    /// All others, if there are any.
    pub other: Option<Changed>,
    /// All of them.
    pub total: Changed,
}

/// What became of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Changed {
    /// Its name.
    pub name: Text,
    /// `new`, `gone`, `grew`, `shrank`, `same`, or nothing.
    pub change: &'static str,
    /// Drops in each window.
    pub drops: [u64; 2],
    /// The same for people.
    pub texts: [String; 2],
    /// Drops a second in each.
    pub rates: [String; 2],
}

/// The records one by one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Records {
    /// In the order in which they came.
    pub rows: Vec<Record>,
    /// How many there are.
    pub count: u64,
    /// The same for people.
    pub text: String,
    /// How many of them are shown, for people.
    pub shown: String,
    /// Which they are, where they are not all.
    pub chosen: Option<String>,
    /// Drops that they stand for.
    pub drops: u64,
    /// Drops of those that are not shown.
    pub others: u64,
    /// The same for people.
    pub others_text: String,
}

/// A record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When the first drop was: microseconds since 1970.
    pub micros: i64,
    /// The same for people.
    pub time: String,
    /// The same in UTC (RFC 3339).
    pub utc: String,
    /// How many drops.
    pub drops: u64,
    /// The same for people.
    pub text: String,
    /// Who, and to whom.
    pub ends: Text,
    /// What kind of packet.
    pub protocol: Text,
    /// Its class.
    pub class: &'static str,
    /// What dropped it.
    pub place: Text,
    /// The kernel's reason and location, where that does not say it already.
    pub reason: Text,
    /// The cause's name.
    pub cause: Text,
    /// Where in the network.
    pub interfaces: Text,
    /// On which node.
    pub node: Text,
}

/// How it was recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Recorded {
    /// Recordings alike are one.
    pub runs: Vec<Run>,
    /// Recordings that have no row.
    pub others: usize,
    /// The files' names.
    pub files: Vec<Text>,
    /// How many there are.
    pub count: usize,
    /// What of them is shown: `--pod x`, since when ...
    pub part: Vec<Note>,
    /// Where a filter found nothing for a while: what was said then.
    pub silences: Vec<Text>,
    /// Silences that are not shown.
    pub more_silences: u64,
}

/// Recordings made alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Run {
    /// Where.
    pub node: Text,
    /// The node's kernel.
    pub kernel: Text,
    /// droptrace's version.
    pub droptrace: Text,
    /// What was typed.
    pub command: Text,
    /// When the first began.
    pub started: String,
    /// How many files.
    pub files: String,
    /// Records in those that were ended in order.
    pub records: String,
    /// What is to be known of them.
    pub notes: Vec<String>,
}

/// What is not counted here.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Unseen {
    /// Losses by place.
    pub lost: Vec<Figure>,
    /// Routine drops that are hidden, by name.
    pub hidden: Vec<(Text, String)>,
    /// How many those are.
    pub hidden_total: String,
    /// What could not be read.
    pub damage: Vec<Text>,
    /// Such lines that are not shown.
    pub more_damage: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_harmless_and_bounded() {
        assert_eq!(Text::of("a\u{0}\u{1b}[31m\u{202e}b\n").as_str(), "a\\x00\\x1b[31m\\u{202e}b\\x0a");
        let long = Text::of(&"\u{202e}ü".repeat(10_000));
        assert_eq!(long.as_str().chars().count(), LONGEST + 1);
        assert!(long.as_str().ends_with('…'));
        let fits = "x".repeat(LONGEST);
        assert_eq!(Text::of(&fits).as_str(), fits);
    }
}
