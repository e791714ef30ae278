//! What a recording says of itself.

use crate::event::model::{LostPlace, Record, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The version of what is written. A reader takes older ones, and of newer ones what it knows.
pub const VERSION: u32 = 1;
/// The key of the [`Header`] among a Parquet file's metadata.
pub(super) const HEADER_KEY: &str = "droptrace";
/// The key of the [`Totals`].
pub(super) const TOTALS_KEY: &str = "droptrace.totals";

/// How it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// droptrace's version.
    pub droptrace: String,
    /// The node's name.
    pub node: String,
    /// The kernel's release.
    pub kernel: String,
    /// When it began.
    pub started: Timestamp,
    /// droptrace's arguments, the filter among them.
    pub arguments: Vec<String>,
}

/// A recording that is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Where it is; `-` for stdin.
    pub path: PathBuf,
    /// What it says of itself; lines of `-o json` say nothing.
    pub header: Header,
    /// What is in it, where it was ended in order.
    pub totals: Option<Totals>,
}

/// A spool's first line.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Line {
    Recording(Header),
}

/// What is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Lines.
    pub records: u64,
    /// Dropped packets.
    pub drops: u64,
    /// Their segments.
    pub segments: u64,
    /// What the tracer lost, by place.
    pub lost: BTreeMap<LostPlace, u64>,
    /// The time of the first and the last record.
    pub first: Option<Timestamp>,
    /// Likewise.
    pub last: Option<Timestamp>,
    /// True if it was sealed after whoever wrote it had been killed.
    pub recovered: bool,
    /// Bytes of what was written that were not intact then.
    pub damaged: u64,
}

impl Totals {
    /// Counts a record.
    pub fn add(&mut self, record: &Record) {
        self.records += 1;
        let (first, last) = match record {
            Record::Drop(drop) => {
                self.drops += drop.count;
                self.segments += drop.segments;
                (drop.time, drop.time_last)
            }
            Record::Lost(lost) => {
                *self.lost.entry(lost.place).or_default() += lost.count;
                (lost.time, lost.time)
            }
            Record::Stalled(stalled) => (stalled.time, stalled.time),
        };
        self.first = Some(self.first.map_or(first, |known| known.min(first)));
        self.last = Some(self.last.map_or(last, |known| known.max(last)));
    }
}
