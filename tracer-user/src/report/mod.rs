//! One HTML page of recordings, for the review of an incident. [`Reporting`] is the sink that records go to: `gather` adds them
//! up in bounded memory (with `facts` about rules and causes, a `sample` of the records and what is `recorded` of the
//! recordings) and makes the [`page`], plain data: its `tables`, its `timeline`, the `changes` at a `moment`. `render` makes
//! HTML of that, `write` a file.

mod changes;
mod facts;
mod gather;
mod moment;
pub mod page;
mod recorded;
mod render;
mod sample;
mod sink;
mod tables;
mod timeline;
mod write;

pub use changes::Choice;
pub use gather::{Gatherer, Settings};
pub use render::render;
pub use sink::Reporting;
pub use write::Target;

use crate::cli;
use crate::recording::{find, replay};
use jiff::tz::TimeZone;
use std::io;

/// Makes a page; returns the exit code.
///
/// # Errors
/// What went wrong, for people.
pub fn run(report: &cli::Report) -> anyhow::Result<u8> {
    let cli::PageArgs { write, title, at, compare, rows, all, utc } = report.page.clone();
    let choice = match (at, <[crate::hist::Window; 2]>::try_from(compare)) {
        (Some(at), _) => Choice::At(at),
        // clap sees to it that there are two or none.
        (None, Ok(windows)) => Choice::Windows(windows),
        (None, Err(_)) => Choice::Rise,
    };
    let settings = Settings {
        title,
        choice,
        rows: usize::try_from(rows).unwrap_or(usize::MAX),
        all,
        zone: if utc { TimeZone::UTC } else { TimeZone::system() },
        part: report.part.clone(),
    };
    let target = Target::new(&write, &find(&report.files)?)?;
    let sink = Reporting::new(Gatherer::new(settings), target, io::stderr());
    replay::run(&report.files, &report.part, &report.causes.load()?, (false, false), sink)
}

#[cfg(test)]
mod tests;
