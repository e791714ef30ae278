//! The [`Sink`] that records, and prints as well where that is asked for.

use super::recorder::Recorder;
use crate::event::model::{Class, Record};
use crate::output::{Now, Printer, Sink, Stop, Summary, summary::Totals};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Duration;

/// How often the recorder is handed what came: what a kill can lose.
const FLUSH: Duration = Duration::from_secs(1);

/// See the module's documentation. All that it says itself goes to `err`.
pub struct Recording<O: Write, P: Write, E: Write> {
    recorder: Recorder,
    printer: Option<Printer<O, P>>,
    totals: Totals,
    err: E,
    /// True if `err` is a terminal, and nothing else is printed on it all the time.
    shows_progress: bool,
    is_progress_shown: bool,
    next_flush: Duration,
    count: Option<u64>,
}

impl<O: Write, P: Write, E: Write> Recording<O, P, E> {
    /// Without a record. `count` ends the run after so many drops, where no printer does.
    pub fn new(
        recorder: Recorder,
        printer: Option<Printer<O, P>>,
        err: E,
        is_terminal: bool,
        count: Option<u64>,
    ) -> Self {
        Self {
            recorder,
            shows_progress: is_terminal && printer.is_none(),
            printer,
            totals: Totals::default(),
            err,
            is_progress_shown: false,
            next_flush: Duration::ZERO,
            count,
        }
    }

    fn say(&mut self, lines: &[String]) {
        for line in lines {
            self.erase_progress();
            // stderr may be closed; the recording is what matters.
            let _ = writeln!(self.err, "droptrace: {}", crate::output::escape(line));
        }
    }

    fn erase_progress(&mut self) {
        if std::mem::take(&mut self.is_progress_shown) {
            let _ = write!(self.err, "\r\x1b[K");
        }
    }

    fn show_progress(&mut self) {
        if !self.shows_progress {
            return;
        }
        self.erase_progress();
        let _ = write!(self.err, "{}", self.words());
        let _ = self.err.flush();
        self.is_progress_shown = true;
    }

    fn words(&self) -> String {
        let progress = self.recorder.progress();
        let mut words = format!(
            "recorded {} drops in {} records, {} files done, {} kB in the one that is open",
            progress.written.drops,
            progress.written.records,
            progress.sealed,
            progress.bytes / 1000
        );
        if progress.left_out > 0 {
            words.push_str(&format!("; {} drops are not in it, the disk was too slow", progress.left_out));
        }
        words
    }

    /// Why it ends: nothing is recorded any more, and nothing else was asked for.
    fn failure(&self) -> Option<Stop> {
        self.recorder.failed().map(|why| Stop::Output(io::Error::other(why.to_owned())))
    }
}

impl<O: Write, P: Write, E: Write> Sink for Recording<O, P, E> {
    fn record(&mut self, record: &Record, now: Now) -> ControlFlow<Stop> {
        self.recorder.add(record);
        if let Some(printer) = &mut self.printer {
            return printer.record(record, now);
        }
        match record {
            // They are recorded; whoever reads the recording says whether to see them.
            Record::Drop(drop) if drop.drop.class == Class::Routine => self.totals.hidden(drop),
            Record::Drop(drop) => self.totals.counted(drop),
            Record::Lost(lost) => self.totals.lost(lost),
            Record::Stalled(_) => {}
        }
        if self.count.is_some_and(|count| self.totals.drops() >= count) {
            return ControlFlow::Break(Stop::Count);
        }
        ControlFlow::Continue(())
    }

    fn tick(&mut self, now: Now) -> ControlFlow<Stop> {
        if now.elapsed >= self.next_flush {
            self.next_flush = now.elapsed + FLUSH / 2;
            let lines = self.recorder.flush();
            self.say(&lines);
            self.show_progress();
        }
        match &mut self.printer {
            Some(printer) => printer.tick(now),
            None => self.failure().map_or(ControlFlow::Continue(()), ControlFlow::Break),
        }
    }

    fn is_waiting(&self) -> bool {
        self.printer.as_ref().is_some_and(Sink::is_waiting)
    }

    fn shown(&self) -> u64 {
        self.printer.as_ref().map_or_else(|| self.totals.drops(), Sink::shown)
    }

    fn finish(mut self, now: Now) -> (Summary, ControlFlow<Stop>) {
        let lines = self.recorder.finish();
        self.say(&lines);
        self.erase_progress();
        let failure = self.failure();
        let (summary, flow) = match self.printer.take() {
            Some(printer) => printer.finish(now),
            None => {
                let summary = self.totals.summary(now.elapsed);
                let _ = write!(self.err, "{summary}");
                (summary, ControlFlow::Continue(()))
            }
        };
        let progress = self.recorder.progress();
        let mut line = format!(
            "-- recorded {} drops in {} records, {} files",
            progress.written.drops, progress.written.records, progress.sealed
        );
        if progress.left_out > 0 {
            line.push_str(&format!(", {} drops are not in them", progress.left_out));
        }
        let _ = writeln!(self.err, "{line} --");
        let _ = self.err.flush();
        (summary, failure.map_or(flow, ControlFlow::Break))
    }
}
