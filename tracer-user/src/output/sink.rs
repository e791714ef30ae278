//! Where records go: to a printer, into a histogram, a file. A sink knows no clock and no tracer: whoever has records
//! hands it both, so that live, replay and tests use the same code.

use super::Summary;
use crate::event::model::{Record, Timestamp};
use crate::recording::{About, Reads};
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

/// Takes records, in order, until it breaks or the run ends.
pub trait Sink {
    /// Takes a record. Breaks when there is nothing more to do.
    fn record(&mut self, record: &Record, now: Now) -> ControlFlow<Stop>;

    /// Does what is due by now; called some times a second while the sink [is waiting](Sink::is_waiting), and once a
    /// second otherwise.
    fn tick(&mut self, now: Now) -> ControlFlow<Stop>;

    /// What of recorded drops it looks at.
    fn reads(&self) -> Reads {
        Reads::All
    }

    /// Is told of a recording that records will come from; live there is none.
    fn recording(&mut self, _about: &About) {}

    /// Is told of what could not be read of a recording, in a line.
    fn unread(&mut self, _what: &str) {}

    /// True if something is kept back that a [`Sink::tick`] is to bring out soon.
    fn is_waiting(&self) -> bool;

    /// Drops that were taken and not hidden as routine.
    fn shown(&self) -> u64;

    /// Brings out what is left, says the summary, and returns it; breaks where that can't be done.
    fn finish(self, now: Now) -> (Summary, ControlFlow<Stop>);
}

/// A moment. Live it is the present; in a replay it is the recording's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since the run began; never goes back.
    pub elapsed: Duration,
    /// By the wall clock.
    pub wall: Timestamp,
}

/// Why there is nothing more to do.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// As much as `-c` asked for was seen: a clean end.
    #[error("as many lines as asked for were printed")]
    Count,
    /// Whoever watched has asked for the end: a clean one.
    #[error("it was ended")]
    Quit,
    /// Nobody reads stdout any more (`| head`): a clean end.
    #[error("nobody reads the output any more")]
    BrokenPipe,
    /// The output cannot be written, for example because a disk is full.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Output(error),
        }
    }
}
