//! Recordings through a [`Sink`], as if their drops happened now.

use super::columns::Reads;
use super::files::{Merged, find, time};
use crate::cause::Causes;
use crate::event::model::{Record, Timestamp};
use crate::filter::{Filter, matches};
use crate::output::{End, Now, Outcome, Sink, escape, exit_code};
use crate::start::say;
use anyhow::bail;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

/// Between two moments that a sink which waits for time to pass is told of.
const TICK: Duration = Duration::from_millis(100);
/// How long such a sink waits at most: what is in between of a pause need not be told.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// Which part of recordings.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Which drops.
    pub filter: Filter,
    /// Records from then on.
    pub since: Option<Timestamp>,
    /// Records before then.
    pub until: Option<Timestamp>,
    /// The first so many records about drops.
    pub first: Option<u64>,
    /// The last so many.
    pub last: Option<u64>,
}

impl Part {
    /// True if it is all records that the filter lets through.
    #[must_use]
    pub fn is_all(&self) -> bool {
        let Self { filter: _, since, until, first, last } = self;
        since.is_none() && until.is_none() && first.is_none() && last.is_none()
    }

    fn has(&self, record: &Record) -> bool {
        let at = time(record);
        let is_then = self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until);
        is_then
            && match record {
                Record::Drop(drop) => matches(&self.filter, drop),
                // What was lost may have been any drop.
                Record::Lost(_) => true,
                Record::Stalled(_) => self.filter.is_empty(),
            }
    }
}

/// Fills a sink; returns the exit code.
///
/// # Errors
/// What went wrong, for people.
pub fn run(
    files: &[PathBuf],
    part: &Part,
    causes: &Causes,
    (assert_no_drops, strict): (bool, bool),
    mut sink: impl Sink,
) -> anyhow::Result<u8> {
    if part.filter.has_selector() {
        bail!("recordings have no labels, so -l selects nothing: name pods, workloads or namespaces");
    }
    let files = find(files)?;
    if files.is_empty() {
        bail!("there is no recording: they end in .parquet, or in .jsonl.zst while they are written");
    }
    let count = files.len();
    // A filter may ask for anything.
    let reads = if part.filter.is_empty() { sink.reads() } else { Reads::All };
    // Of a part of what is known of a drop another cause might follow.
    let explains = reads == Reads::All;
    let mut merged = Merged::new(files, reads);
    let mut unread = 0;
    let mut clock = Clock::default();
    let mut flow = ControlFlow::Continue(());
    let mut kept: VecDeque<Record> = VecDeque::new();
    let mut taken = 0;
    while flow.is_continue()
        && part.first.is_none_or(|first| taken < first)
        && let Some(mut record) = merged.next()
    {
        unread += tell(&mut merged, &mut sink);
        if let Record::Drop(drop) = &mut record
            && explains
        {
            causes.explain_recorded(drop);
        }
        if !part.has(&record) {
            continue;
        }
        taken += u64::from(matches!(record, Record::Drop(_)));
        match part.last {
            Some(last) => {
                kept.push_back(record);
                if kept.len() as u64 > last {
                    kept.pop_front();
                }
            }
            None => flow = clock.pass(&record, &mut sink),
        }
    }
    for record in kept {
        if flow.is_continue() {
            flow = clock.pass(&record, &mut sink);
        }
    }
    unread += tell(&mut merged, &mut sink);
    let (summary, ended) = sink.finish(clock.now);
    for end in [flow, ended] {
        if let ControlFlow::Break(crate::output::Stop::Output(error)) = end {
            return Err(anyhow::Error::new(error).context("cannot write the output"));
        }
    }
    if unread >= count && taken == 0 {
        bail!("nothing could be read");
    }
    Ok(exit_code(&Outcome {
        end: End::Done,
        drops: summary.drops,
        lost: summary.lost_total(),
        assert_no_drops,
        strict,
    }))
}

/// Tells of the recordings that were opened, and says what could not be read; returns how much that is.
fn tell(merged: &mut Merged, sink: &mut impl Sink) -> usize {
    for about in merged.opened() {
        sink.recording(&about);
    }
    let said = merged.said();
    for line in &said {
        sink.unread(line);
        say(&format!("note: {}", escape(line)));
    }
    said.len()
}

/// The recording's time.
#[derive(Debug, Default)]
struct Clock {
    first: Option<Timestamp>,
    now: Now,
}

impl Clock {
    fn pass(&mut self, record: &Record, sink: &mut impl Sink) -> ControlFlow<crate::output::Stop> {
        let at = time(record);
        let first = *self.first.get_or_insert(at);
        let elapsed =
            u64::try_from(at.0.saturating_sub(first.0)).map_or(Duration::ZERO, Duration::from_nanos);
        let elapsed = elapsed.max(self.now.elapsed);
        let until = elapsed.min(self.now.elapsed + LONGEST_WAIT);
        while sink.is_waiting() && self.now.elapsed + TICK <= until {
            self.now.elapsed += TICK;
            self.now.wall.0 += TICK.as_nanos() as i128;
            sink.tick(self.now)?;
        }
        self.now = Now { elapsed, wall: at.max(self.now.wall) };
        sink.record(record, self.now)
    }
}
