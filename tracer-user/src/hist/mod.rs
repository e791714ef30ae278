//! Histograms of drops, over time and by any [`Key`]: of a live run, or of whatever else has records. [`Histogram`] is the
//! [`Sink`] that they go to. `aggregate` adds up, `compare` sets two windows against each other; `chart`, `table`, `json`
//! and `csv` are pure functions from a [`view::View`] to text.

pub mod aggregate;
pub mod bars;
pub mod chart;
pub mod compare;
pub mod csv;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod json;
pub mod key;
mod screen;
mod sink;
pub mod table;
pub mod view;
pub mod window;

pub use bars::Charset;
pub use key::Key;
pub use screen::{Size, size};
pub use sink::Histogram;
pub use window::Window;

use crate::{cli, live, recording::replay};
use jiff::tz::TimeZone;
use std::{ffi::OsString, io, time::Duration};

/// The form of the histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Bars, and the course over time, for people
    #[default]
    Chart,
    /// A line a group
    Table,
    /// One JSON object a line: the whole, then each group with its buckets
    #[value(alias = "jsonl")]
    Json,
    /// A line for each group and bucket
    Csv,
}

/// What is counted, and how it is printed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What drops are grouped by.
    pub by: Vec<Key>,
    /// How wide the buckets of time are, to begin with.
    pub bucket: Duration,
    /// How many groups have a row; `None`: the format's own.
    pub top: Option<usize>,
    /// Two windows to compare, instead of buckets.
    pub compare: Option<[Window; 2]>,
    /// The form.
    pub format: Format,
    /// Count routine drops, too.
    pub all: bool,
    /// Stop once so many drops are counted.
    pub count: Option<u64>,
    /// Of the times that people read.
    pub zone: TimeZone,
    /// Letters.
    pub charset: Charset,
    /// The terminal that is drawn on, as it is by then; `None` without one.
    pub size: fn() -> Option<Size>,
}

/// Makes a histogram; returns the exit code.
///
/// # Errors
/// What went wrong, for people.
pub fn run(hist: &cli::Hist, arguments: &[OsString]) -> anyhow::Result<u8> {
    let histogram = Histogram::new(hist.settings(), io::stdout(), io::stderr());
    if hist.files.is_empty() {
        live::run(&hist.watch, arguments, histogram)
    } else {
        let run = &hist.watch.run;
        let causes = hist.watch.causes.load()?;
        replay::run(&hist.files, &hist.part, &causes, (run.assert_no_drops, run.strict), histogram)
    }
}

#[cfg(test)]
mod tests;
