//! The sink that is a report: records in, one page out at the end.

use super::gather::Gatherer;
use super::render::render;
use super::write::Target;
use crate::event::model::Record;
use crate::output::{Now, Sink, Stop, Summary};
use crate::recording::About;
use std::io::{self, Write};
use std::ops::ControlFlow;

/// Gathers records. The page goes to its target, all else to `err`.
pub struct Reporting<E: Write> {
    gatherer: Gatherer,
    target: Target,
    err: E,
}

impl<E: Write> Reporting<E> {
    /// Without a record.
    pub fn new(gatherer: Gatherer, target: Target, err: E) -> Self {
        Self { gatherer, target, err }
    }

    fn write(&mut self) -> io::Result<()> {
        // What could not be read at all is no page; whoever reads it says so.
        if self.gatherer.is_unread() {
            return Ok(());
        }
        let page = render(&self.gatherer.page()).map_err(io::Error::other)?;
        self.target.write(&page)?;
        if let Some(path) = self.target.path() {
            // stderr may be closed; the page is what matters.
            let _ = writeln!(
                self.err,
                "droptrace: {} is written, {} KiB",
                path.display(),
                page.len().div_ceil(1024)
            );
        }
        Ok(())
    }
}

impl<E: Write> Sink for Reporting<E> {
    fn record(&mut self, record: &Record, now: Now) -> ControlFlow<Stop> {
        self.gatherer.record(record, now);
        ControlFlow::Continue(())
    }

    fn tick(&mut self, _now: Now) -> ControlFlow<Stop> {
        ControlFlow::Continue(())
    }

    fn recording(&mut self, about: &About) {
        self.gatherer.recording(about);
    }

    fn unread(&mut self, what: &str) {
        self.gatherer.unread(what);
    }

    fn is_waiting(&self) -> bool {
        false
    }

    fn shown(&self) -> u64 {
        self.gatherer.summary(std::time::Duration::ZERO).drops
    }

    fn finish(mut self, now: Now) -> (Summary, ControlFlow<Stop>) {
        let summary = self.gatherer.summary(now.elapsed);
        let flow = match self.write() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error.into()),
        };
        let _ = write!(self.err, "{summary}");
        let _ = self.err.flush();
        (summary, flow)
    }
}
