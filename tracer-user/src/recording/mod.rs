//! Recordings: what was dropped, kept for later. While a recording is written it is a spool of JSON lines, which survives a
//! kill; when it is done it becomes a Parquet file, whose columns many engines read.

mod columns;
mod decode;
mod encode;
#[cfg(test)]
mod example;
mod files;
mod header;
mod place;
mod recorder;
pub mod replay;
mod run;
mod seal;
mod sink;
mod source;
mod spool;

pub use columns::Reads;
pub use files::{Merged, find};
pub use header::{About, Header, Totals, VERSION};
pub use place::{Folder, Place};
pub use recorder::{Progress, RecordError, Recorder};
pub(crate) use run::header;
pub use run::run;
pub use sink::Recording;
pub use source::{Source, SourceError};

#[cfg(test)]
mod tests;
