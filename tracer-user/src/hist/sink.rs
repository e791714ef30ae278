//! The sink that is a histogram: records in, one picture out at the end, and on a terminal one a second until then.

use super::Key;
use super::aggregate::{Aggregator, Axis};
use super::screen::{Screen, Size};
use super::view::{Look, View};
use super::{Format, Settings, chart, csv, json, table};
use crate::event::model::{Class, Record, Timestamp};
use crate::output::{Now, Sink, Stop, Summary, summary::Totals, words};
use crate::recording::Reads;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

/// How often a terminal is drawn: a little less than the ticks' second, so that none of them is left out.
const REDRAW: Duration = Duration::from_millis(900);
/// Columns where there is no terminal.
const WIDTH: usize = 80;
/// Groups with a row of their own in what people read.
const TOP: usize = 10;
/// Lines of a chart that are no groups, and the one that the cursor is on.
const OTHER_LINES: usize = 8;

/// Adds up records. The histogram goes to `out`, all else to `err`.
pub struct Histogram<O: Write, E: Write> {
    settings: Settings,
    out: O,
    err: E,
    /// Comes with the first moment: windows may count from there.
    started: Option<Started>,
    totals: Totals,
    screen: Screen,
    next_drawing: Duration,
}

#[derive(Debug)]
struct Started {
    begin: Timestamp,
    aggregator: Aggregator,
}

impl Started {
    fn new(settings: &Settings, now: Now) -> Self {
        let elapsed = i128::try_from(now.elapsed.as_nanos()).unwrap_or(0);
        let begin = Timestamp(now.wall.0.saturating_sub(elapsed));
        let bucket = i64::try_from(settings.bucket.as_micros()).unwrap_or(i64::MAX).max(1);
        let axis = match settings.compare {
            Some(windows) => Axis::Windows(windows.map(|window| window.span(begin))),
            None => Axis::Buckets(bucket),
        };
        Self { begin, aggregator: Aggregator::new(settings.by.clone(), axis) }
    }
}

impl<O: Write, E: Write> Histogram<O, E> {
    /// Without a drop.
    pub fn new(settings: Settings, out: O, err: E) -> Self {
        let (totals, screen) = (Totals::default(), Screen::default());
        Self { settings, out, err, started: None, totals, screen, next_drawing: Duration::ZERO }
    }

    fn started(&mut self, now: Now) -> &mut Started {
        self.started.get_or_insert_with(|| Started::new(&self.settings, now))
    }

    fn is_drawn(&self) -> bool {
        matches!(self.settings.format, Format::Chart | Format::Table) && (self.settings.size)().is_some()
    }

    /// The picture as it is now; of so many rows at most where they are drawn over.
    fn render(&mut self, now: Now, size: Option<Size>, rows: Option<usize>) -> String {
        let summary = self.totals.summary(now.elapsed);
        let started = self.started(now);
        let (begin, width) = (started.begin, started.aggregator.axis());
        let for_people = matches!(self.settings.format, Format::Chart | Format::Table);
        let own = (self.settings.format == Format::Chart || rows.is_some()).then_some(TOP);
        let top = self.settings.top.or(own);
        let top = match rows {
            Some(rows) => Some(top.unwrap_or(usize::MAX).min(rows)),
            None => top,
        };
        let Some(Started { aggregator, .. }) = &self.started else { return String::new() };
        let view = View { aggregator, summary: &summary, begin, end: now.wall, top };
        let look = Look {
            width: size.map_or(WIDTH, |size| size.width),
            cut: size.is_some(),
            charset: self.settings.charset,
            zone: self.settings.zone.clone(),
        };
        let is_compared = matches!(width, Axis::Windows(_));
        match self.settings.format {
            Format::Json => json::json(&view),
            Format::Csv => csv::csv(&view),
            _ if for_people && is_compared => table::comparison(&view),
            Format::Table => table::table(&view, &look),
            Format::Chart => chart::chart(&view, &look),
        }
    }

    fn write(&mut self, text: &str) -> ControlFlow<Stop> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error.into()),
        }
    }

    /// A line for people, where no drawing goes over it.
    fn say(&mut self, line: &str) -> ControlFlow<Stop> {
        let nothing = self.screen.erase();
        let flow = self.write(&nothing);
        // stderr may be closed; the histogram is what matters.
        let _ = writeln!(self.err, "{line}");
        let _ = self.err.flush();
        flow
    }
}

impl<O: Write, E: Write> Sink for Histogram<O, E> {
    fn record(&mut self, record: &Record, now: Now) -> ControlFlow<Stop> {
        match record {
            Record::Drop(drop) if drop.drop.class == Class::Routine && !self.settings.all => {
                self.totals.hidden(drop);
            }
            Record::Drop(drop) => {
                self.totals.counted(drop);
                self.started(now).aggregator.add(drop);
                if self.settings.count.is_some_and(|count| self.totals.drops() >= count) {
                    return ControlFlow::Break(Stop::Count);
                }
            }
            Record::Lost(lost) => self.totals.lost(lost),
            Record::Stalled(stalled) => return self.say(&format!("-- {} --", words::stalled(stalled))),
        }
        ControlFlow::Continue(())
    }

    fn tick(&mut self, now: Now) -> ControlFlow<Stop> {
        self.started(now);
        if now.elapsed < self.next_drawing || !self.is_drawn() {
            return ControlFlow::Continue(());
        }
        self.next_drawing = now.elapsed + REDRAW;
        let size = (self.settings.size)();
        let rows = size.map(|size| size.height.saturating_sub(OTHER_LINES).max(1));
        let picture = self.render(now, size, rows);
        let drawing = self.screen.draw(&picture);
        self.write(&drawing)
    }

    fn reads(&self) -> Reads {
        // A recording without causes has them found, in all that is known of a drop.
        if self.settings.by.contains(&Key::Cause) {
            return Reads::All;
        }
        Reads::Only(self.settings.by.iter().flat_map(|key| key.reads()).copied().collect())
    }

    fn is_waiting(&self) -> bool {
        false
    }

    fn shown(&self) -> u64 {
        self.totals.drops()
    }

    fn finish(mut self, now: Now) -> (Summary, ControlFlow<Stop>) {
        let picture = self.render(now, (self.settings.size)(), None);
        let nothing = self.screen.erase();
        let flow = self.write(&format!("{nothing}{picture}"));
        let summary = self.totals.summary(now.elapsed);
        if let Some(line) = self.started.as_ref().and_then(|it| coarser(&it.aggregator, self.settings.bucket))
        {
            let _ = writeln!(self.err, "{line}");
        }
        let _ = write!(self.err, "{summary}");
        let _ = self.err.flush();
        (summary, flow)
    }
}

/// What is said where buckets are wider than they were asked to be.
fn coarser(aggregator: &Aggregator, asked: Duration) -> Option<String> {
    let Axis::Buckets(width) = aggregator.axis() else { return None };
    let asked = i64::try_from(asked.as_micros()).unwrap_or(i64::MAX);
    let lengths = [width, asked].map(super::view::length);
    (width > asked)
        .then(|| format!("note: buckets are {} wide, not {}: there were too many", lengths[0], lengths[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_that_became_wider_are_said() {
        let of =
            |micros| coarser(&Aggregator::new(Vec::new(), Axis::Buckets(micros)), Duration::from_secs(10));
        assert_eq!(of(10_000_000), None);
        let said = of(20_000_000);
        assert_eq!(said.as_deref(), Some("note: buckets are 20 s wide, not 10 s: there were too many"));
    }
}
