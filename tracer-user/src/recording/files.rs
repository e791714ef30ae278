//! The recordings that somebody names, files, folders and patterns, as one stream in the order of time.

use super::columns::Reads;
use super::header::About;
use super::place::{SEALED, SPOOL};
use super::source::{Source, SourceError};
use crate::event::model::{Record, Timestamp};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folders in folders are looked into so deep.
const DEPTH: usize = 16;

/// The files meant by paths and patterns (`*`, `?`), each once. `-` is stdin.
///
/// # Errors
/// If one of them is not there.
pub fn find(words: &[PathBuf]) -> Result<Vec<PathBuf>, SourceError> {
    let mut found = Vec::new();
    for word in words {
        if word.as_os_str() == "-" {
            found.push(word.clone());
            continue;
        }
        let io = |error| SourceError::Io { path: word.clone(), error };
        // A name is a name, also one with a star.
        let starts = if word.exists() { vec![word.clone()] } else { expand(word).map_err(io)? };
        if starts.is_empty() {
            return Err(io(io::Error::new(io::ErrorKind::NotFound, "there is no such file or folder")));
        }
        for start in starts {
            if start.is_dir() {
                walk(&start, DEPTH, &mut found).map_err(io)?;
            } else {
                found.push(start);
            }
        }
    }
    found.sort();
    found.dedup();
    // One that was being sealed when droptrace was killed is there twice; the whole one has it all.
    let sealed: Vec<PathBuf> = found.iter().filter(|path| is(path, SEALED)).cloned().collect();
    found.retain(|path| !is(path, SPOOL) || !sealed.contains(&super::place::sealed_of(path)));
    Ok(found)
}

fn is(path: &Path, end: &str) -> bool {
    path.to_string_lossy().ends_with(end)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() && depth > 0 {
            walk(&entry, depth - 1, found)?;
        } else if !kind.is_dir() && (is(&entry, SEALED) || is(&entry, SPOOL)) {
            found.push(entry);
        }
    }
    Ok(())
}

/// The paths that a pattern means.
fn expand(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut meant = vec![PathBuf::new()];
    for part in pattern {
        let text = part.to_string_lossy();
        if !text.contains(['*', '?']) {
            for path in &mut meant {
                path.push(part);
            }
            meant.retain(|path| path.exists());
            continue;
        }
        let mut next = Vec::new();
        for folder in meant {
            let within = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            if !within.is_dir() {
                continue;
            }
            for entry in fs::read_dir(within)? {
                let name = entry?.file_name();
                if matches(&text, &name.to_string_lossy()) {
                    next.push(folder.join(name));
                }
            }
        }
        next.sort();
        meant = next;
    }
    Ok(meant)
}

/// True if a name fits a pattern of `*` (anything) and `?` (one character). A leading dot is only met by a dot.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and what of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || Some(c) == name.get(n) => (p, n) = (p + 1, n + 1),
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, n) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

/// Records of several recordings in the order of their times; within one as they were written.
pub struct Merged {
    /// Not open yet, by when they began, the earliest last.
    closed: Vec<(Timestamp, PathBuf)>,
    open: BinaryHeap<Reverse<Ahead>>,
    said: Vec<String>,
    about: Vec<About>,
    opened: u64,
    reads: Reads,
}

struct Ahead {
    time: Timestamp,
    /// Of two at one time the first that was opened.
    number: u64,
    record: Record,
    source: Source,
}

impl PartialEq for Ahead {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ahead {}

impl PartialOrd for Ahead {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ahead {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time, self.number).cmp(&(other.time, other.number))
    }
}

/// When a record was made.
pub(super) fn time(record: &Record) -> Timestamp {
    match record {
        Record::Drop(drop) => drop.time_last,
        Record::Lost(lost) => lost.time,
        Record::Stalled(stalled) => stalled.time,
    }
}

impl Merged {
    /// Of these files. One that can't be read is said ([`Merged::said`]), and the others are read.
    #[must_use]
    pub fn new(files: Vec<PathBuf>, reads: Reads) -> Self {
        let (closed, open) = (Vec::new(), BinaryHeap::new());
        let (said, about) = (Vec::new(), Vec::new());
        let mut merged = Self { closed, open, said, about, opened: 0, reads };
        let is_alone = files.len() == 1;
        for path in files {
            if is_alone || path.as_os_str() == "-" {
                merged.closed.push((Timestamp(i128::MIN), path));
                continue;
            }
            // Many may not be open at once: each when it is its turn.
            match Source::open(&path, &merged.reads) {
                Ok(source) => {
                    let first = source.totals().and_then(|totals| totals.first);
                    let began = source.header().started;
                    merged.closed.push((first.map_or(began, |first| first.min(began)), path));
                }
                Err(error) => merged.said.push(error.to_string()),
            }
        }
        merged.closed.sort_by(|a, b| b.cmp(a));
        merged
    }

    /// What could not be read until now, a line each; they are told once.
    pub fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    /// The recordings that were opened until now; they are told once.
    pub fn opened(&mut self) -> Vec<About> {
        std::mem::take(&mut self.about)
    }

    fn open_due(&mut self) {
        while let Some((began, _)) = self.closed.last()
            && self.open.peek().is_none_or(|Reverse(ahead)| *began <= ahead.time)
            && let Some((_, path)) = self.closed.pop()
        {
            let source =
                if path.as_os_str() == "-" { Ok(Source::stdin()) } else { Source::open(&path, &self.reads) };
            match source {
                Ok(source) => {
                    self.opened += 1;
                    self.about.push(source.about());
                    self.go_on(source, self.opened);
                }
                Err(error) => self.said.push(error.to_string()),
            }
        }
    }

    fn go_on(&mut self, mut source: Source, number: u64) {
        match source.next() {
            Some(record) => {
                self.open.push(Reverse(Ahead { time: time(&record), number, record, source }));
            }
            None => self.said.extend(source.damage().iter().cloned()),
        }
    }
}

impl Iterator for Merged {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        self.open_due();
        let Reverse(Ahead { number, record, source, .. }) = self.open.pop()?;
        self.go_on(source, number);
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*.parquet", "a.parquet", true),
            ("*.parquet", "a.parquet.tmp", false),
            ("part-*Z.*", "part-2026Z.parquet", true),
            ("?", "a", true),
            ("?", "ab", false),
            ("*", ".hidden", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("**", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
