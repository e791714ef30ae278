//! How it was recorded: what recordings say of themselves, those made alike as one.

use super::page::{Recorded, Run, Text};
use crate::event::model::Timestamp;
use crate::hist::view::clock;
use crate::output::words;
use crate::recording::{About, Header};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

/// Runs with a row.
const RUNS: usize = 50;
/// Files that are named, and lines about damage and silences.
const LINES: usize = 200;

/// Gathers it.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    runs: BTreeMap<Kind, Alike>,
    others: usize,
    files: Vec<Text>,
    count: usize,
    damage: Vec<Text>,
    more_damage: u64,
    silences: Vec<Text>,
    more_silences: u64,
    started: Option<Timestamp>,
}

/// What recordings made alike have in common.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    node: Text,
    kernel: Text,
    droptrace: Text,
    command: Text,
}

#[derive(Debug, Default)]
struct Alike {
    started: Option<Timestamp>,
    files: u64,
    records: u64,
    recovered: u64,
    damaged: u64,
    open: u64,
}

impl Recordings {
    /// Takes one.
    pub(super) fn add(&mut self, about: &About) {
        let Header { version, droptrace, node, kernel, started, arguments } = &about.header;
        self.count += 1;
        if self.files.len() < LINES {
            self.files.push(Text::of(&about.path.to_string_lossy()));
        }
        let is_known = *version > 0 && started.0 > 0;
        if is_known {
            self.started = Some(self.started.map_or(*started, |known| known.min(*started)));
        }
        let kind = Kind {
            node: Text::of(node),
            kernel: Text::of(kernel),
            droptrace: Text::of(droptrace),
            command: Text::of(&command(arguments)),
        };
        if self.runs.len() >= RUNS && !self.runs.contains_key(&kind) {
            self.others += 1;
            return;
        }
        let alike = self.runs.entry(kind).or_default();
        alike.files += 1;
        if is_known {
            alike.started = Some(alike.started.map_or(*started, |known| known.min(*started)));
        }
        match &about.totals {
            Some(totals) => {
                alike.records = alike.records.saturating_add(totals.records);
                alike.recovered += u64::from(totals.recovered);
                alike.damaged = alike.damaged.saturating_add(totals.damaged);
            }
            None => alike.open += 1,
        }
    }

    /// Takes a line about what could not be read.
    pub(super) fn unread(&mut self, line: &str) {
        if self.damage.len() < LINES {
            self.damage.push(Text::of(line));
        } else {
            self.more_damage += 1;
        }
    }

    /// Takes a line about a filter that let nothing through.
    pub(super) fn silent(&mut self, line: &str) {
        if self.silences.len() < LINES {
            self.silences.push(Text::of(line));
        } else {
            self.more_silences += 1;
        }
    }

    /// When the first recording began; `None` if none says so.
    #[must_use]
    pub(super) fn started(&self) -> Option<Timestamp> {
        self.started
    }

    /// How many there were.
    #[must_use]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many pieces could not be read.
    #[must_use]
    pub(super) fn damaged(&self) -> u64 {
        self.damage.len() as u64 + self.more_damage
    }

    /// Those lines, and how many more there are.
    #[must_use]
    pub(super) fn damage(&self) -> (&[Text], u64) {
        (&self.damage, self.more_damage)
    }

    /// For the page.
    #[must_use]
    pub(super) fn page(&self, zone: &TimeZone) -> Recorded {
        let run = |(kind, alike): (&Kind, &Alike)| Run {
            node: kind.node.clone(),
            kernel: kind.kernel.clone(),
            droptrace: kind.droptrace.clone(),
            command: kind.command.clone(),
            started: alike.started.map_or_else(|| "-".to_owned(), |time| clock(time, zone, true)),
            files: words::thousands(alike.files),
            records: if alike.open < alike.files { words::thousands(alike.records) } else { "-".to_owned() },
            notes: notes(alike),
        };
        Recorded {
            runs: self.runs.iter().map(run).collect(),
            others: self.others,
            files: self.files.clone(),
            count: self.count,
            part: Vec::new(),
            silences: self.silences.clone(),
            more_silences: self.more_silences,
        }
    }
}

fn notes(alike: &Alike) -> Vec<String> {
    let count = |count: u64, what: &str| (count > 0).then(|| format!("{} {what}", words::thousands(count)));
    [
        count(alike.open, "not ended in order, or lines of JSON: whether they are whole is not known"),
        count(alike.recovered, "made whole after droptrace was killed: the last second may be missing"),
        count(alike.damaged, "bytes or lines damaged when that was done"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// As it could be typed; empty where nothing is known.
fn command(arguments: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./@%".contains(c);
    let word = |word: &String| {
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    if arguments.is_empty() {
        return String::new();
    }
    let words: Vec<String> = arguments.iter().map(word).collect();
    format!("droptrace {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Totals;

    #[test]
    fn recordings_made_alike_are_one_row() {
        let mut all = Recordings::default();
        let about = |node: &str, started: i128, totals: Option<Totals>| About {
            header: Header {
                version: 1,
                node: node.into(),
                started: Timestamp(started),
                arguments: vec!["record".into(), "-w".into(), "it's".into()],
                ..Header::default()
            },
            totals,
            ..About::default()
        };
        let totals = Some(Totals { records: 500, recovered: true, ..Totals::default() });
        all.add(&about("n1", 2_000_000_000, totals.clone()));
        all.add(&about("n1", 1_000_000_000, totals));
        all.add(&about("n2", 3_000_000_000, None));
        all.add(&About::default());
        assert_eq!((all.count(), all.started()), (4, Some(Timestamp(1_000_000_000))));
        let page = all.page(&TimeZone::UTC);
        let [unknown, n1, n2] = page.runs.as_slice() else { panic!("{page:?}") };
        assert_eq!((unknown.node.as_str(), unknown.started.as_str()), ("", "-"));
        assert_eq!((n1.files.as_str(), n1.records.as_str()), ("2", "1,000"));
        assert_eq!(
            (n1.started.as_str(), n1.command.as_str()),
            ("1970-01-01 00:00:01", "droptrace record -w 'it'\\''s'")
        );
        assert!(n1.notes[0].starts_with("2 made whole") && n2.notes[0].starts_with("1 not ended"));
    }

    #[test]
    fn there_may_be_any_number() {
        let mut all = Recordings::default();
        for number in 0..1000 {
            let header = Header { node: number.to_string(), ..Header::default() };
            all.add(&About { header, ..About::default() });
            all.unread("damaged");
        }
        let page = all.page(&TimeZone::UTC);
        assert_eq!((page.runs.len(), page.others, page.files.len(), page.count), (RUNS, 950, LINES, 1000));
        assert_eq!((all.damaged(), all.damage().1), (1000, 800));
    }
}
