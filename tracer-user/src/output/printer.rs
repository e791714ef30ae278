//! The sink of the stream: records in, lines out. The caller hands it the descriptors, too.

use super::fold::{Fold, Kind, Line};
use super::line::{self, Palette};
use super::sink::{Now, Sink, Stop};
use super::summary::{Summary, Totals, background};
use super::time::{Clock, TimeFormat};
use super::{Format, Settings, escape, iptables, words};
use crate::event::model::{Cause, Class, Drop, Lost, Record, Stalled};
use serde::Serialize;
use std::collections::HashSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

/// How often stderr says what stdout does not show.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);
/// Causes whose `why` and `fix` are remembered as said; when it is full they are said again.
const MAX_SAID: usize = 4096;

/// Prints records. Lines about records go to `out`, everything else to `err`. Each call that has something to print
/// writes and flushes `out` once, so that a reader of a pipe sees whole lines, at once.
pub struct Printer<O: Write, E: Write> {
    settings: Settings,
    out: O,
    err: E,
    fold: Fold,
    clock: Clock,
    palette: Palette,
    totals: Totals,
    /// Causes already explained, by their name and for whom.
    said: HashSet<(String, String)>,
    printed: u64,
    broken: bool,
    next_notice: Duration,
    noticed: (u64, u64),
}

/// A line of JSON: [`Record`] by reference.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum JsonLine<'a> {
    Drop(&'a Drop),
    Lost(&'a Lost),
    Stalled(&'a Stalled),
}

impl<O: Write, E: Write> Printer<O, E> {
    /// A printer that has printed nothing.
    pub fn new(settings: Settings, out: O, err: E) -> Self {
        // LOG's lines have no time of their own.
        let own = if settings.format == Format::Iptables { TimeFormat::None } else { TimeFormat::Clock };
        Self {
            fold: Fold::new(settings.limits()),
            clock: Clock::new(settings.time.unwrap_or(own), settings.zone.clone()),
            palette: Palette::new(settings.color),
            settings,
            out,
            err,
            totals: Totals::default(),
            said: HashSet::new(),
            printed: 0,
            broken: false,
            next_notice: NOTICE_INTERVAL,
            noticed: (0, 0),
        }
    }

    fn render(&mut self, lines: Vec<Line>, text: &mut String) {
        for mut line in lines {
            if self.is_complete() {
                self.totals.unprinted(line.drop.count);
                continue;
            }
            self.printed += 1;
            if !self.settings.stack {
                line.drop.stack.clear();
            }
            match self.settings.format {
                Format::Json => render_json(&JsonLine::Drop(&line.drop), text),
                Format::Compact | Format::Wide | Format::Iptables => self.render_text(&line, text),
            }
        }
    }

    fn render_text(&mut self, line: &Line, text: &mut String) {
        let drop = &line.drop;
        let time = self.clock.line(if line.kind == Kind::Event { drop.time } else { drop.time_last });
        if self.settings.format == Format::Iptables {
            text.extend([time.as_str(), if time.is_empty() { "" } else { "  " }]);
            text.push_str(&iptables::line(drop));
        } else {
            text.push_str(&line::drop(line, &time, self.settings.format == Format::Wide, &self.palette));
        }
        text.push('\n');
        if self.settings.format != Format::Iptables
            && let Some(cause) = &drop.drop.cause
            && self.is_new(cause, drop)
        {
            text.push_str(&line::cause(cause, &time, self.settings.verbose, &self.palette));
            let other = drop.drop.netfilter.as_ref().and_then(|netfilter| netfilter.other_backend.as_deref());
            if let Some(other) = other.filter(|_| cause.id != "mixed-iptables") {
                text.push_str(&line::both_backends(other, &time, &self.palette));
            }
        }
        text.push_str(&line::stack(&drop.stack, &time, &self.palette));
    }

    fn render_lost(&mut self, lost: &Lost, text: &mut String) {
        if self.settings.format == Format::Json {
            render_json(&JsonLine::Lost(lost), text);
        } else {
            let time = self.clock.line(lost.time);
            text.push_str(&line::lost(lost, &time));
            text.push('\n');
        }
    }

    /// True the first time that a cause appears for a pod; where no pod is known, for a network namespace.
    fn is_new(&mut self, cause: &Cause, drop: &Drop) -> bool {
        let pods = [&drop.destination, &drop.source];
        let pod = pods.into_iter().find_map(|end| end.k8s.as_ref().and_then(words::who));
        let whom = pod.unwrap_or_else(|| format!("{:?}", drop.network.netns));
        if self.said.len() >= MAX_SAID {
            self.said.clear();
        }
        self.said.insert((cause.id.clone(), whom))
    }

    fn is_complete(&self) -> bool {
        self.settings.count.is_some_and(|count| self.printed >= count)
    }

    fn write(&mut self, text: &str) -> ControlFlow<Stop> {
        if !text.is_empty()
            && let Err(error) = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush())
        {
            self.broken = true;
            return ControlFlow::Break(error.into());
        }
        if self.is_complete() { ControlFlow::Break(Stop::Count) } else { ControlFlow::Continue(()) }
    }

    fn notice(&mut self, now: Now) {
        if now.elapsed < self.next_notice {
            return;
        }
        self.next_notice = now.elapsed + NOTICE_INTERVAL;
        let (hidden, lost) = self.totals.background();
        if (hidden, lost) != self.noticed {
            self.noticed = (hidden, lost);
            let time = self.clock.show(now.wall);
            let gap = if time.is_empty() { "" } else { "  " };
            // stderr may be closed; the stream is what matters.
            let _ = writeln!(self.err, "{time}{gap}-- {} --", background(hidden, lost));
            let _ = self.err.flush();
        }
    }
}

impl<O: Write, E: Write> Sink for Printer<O, E> {
    /// Takes a record: prints it, or keeps it to be counted in a later line, or hides it as routine. Breaks when
    /// there is nothing more to print.
    fn record(&mut self, record: &Record, now: Now) -> ControlFlow<Stop> {
        let mut text = String::new();
        match record {
            Record::Drop(drop) if drop.drop.class == Class::Routine && !self.settings.all => {
                self.totals.hidden(drop);
                return ControlFlow::Continue(());
            }
            Record::Drop(drop) => {
                self.totals.shown(drop);
                let mut lines = Vec::new();
                self.fold.push(drop, now.elapsed, &mut lines);
                self.render(lines, &mut text);
            }
            Record::Stalled(stalled) if self.settings.format == Format::Json => {
                render_json(&JsonLine::Stalled(stalled), &mut text);
            }
            Record::Stalled(stalled) => {
                let time = self.clock.show(now.wall);
                let gap = if time.is_empty() { "" } else { "  " };
                // stderr may be closed; the stream is what matters.
                let _ = writeln!(self.err, "{time}{gap}-- {} --", words::stalled(stalled));
                let _ = self.err.flush();
            }
            Record::Lost(lost) => {
                self.totals.lost(lost);
                self.render_lost(lost, &mut text);
            }
        }
        self.write(&text)
    }

    fn shown(&self) -> u64 {
        self.totals.drops()
    }

    /// True if lines are kept back: [`Sink::tick`] prints them when they are due.
    fn is_waiting(&self) -> bool {
        !self.fold.is_empty()
    }

    fn tick(&mut self, now: Now) -> ControlFlow<Stop> {
        let mut lines = Vec::new();
        self.fold.tick(now.elapsed, &mut lines);
        let mut text = String::new();
        self.render(lines, &mut text);
        let flow = self.write(&text);
        self.notice(now);
        flow
    }

    /// Prints what is left, and the summary.
    fn finish(mut self, now: Now) -> (Summary, ControlFlow<Stop>) {
        let mut lines = Vec::new();
        self.fold.finish(&mut lines);
        let mut text = String::new();
        self.render(lines, &mut text);
        let flow = if self.broken { ControlFlow::Continue(()) } else { self.write(&text) };
        let summary = self.totals.summary(now.elapsed);
        let _ = write!(self.err, "{summary}");
        let _ = self.err.flush();
        (summary, flow)
    }
}

/// A record as one line of JSON. These types have no map keys that could fail and no non-finite numbers.
pub(crate) fn render_json(record: &impl Serialize, text: &mut String) {
    if let Ok(json) = serde_json::to_string(record) {
        text.push_str(&escape::escape_json(&json));
        text.push('\n');
    }
}

#[cfg(test)]
mod tests;
