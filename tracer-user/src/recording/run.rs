//! The command `record`.

use super::header::{Header, VERSION};
use super::place::{Folder, Place};
use super::recorder::Recorder;
use super::sink::Recording;
use crate::cli::{Record, RecordArgs};
use crate::event::model::Timestamp;
use crate::output::Printer;
use crate::{live, probe::environment};
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::Path;

/// Of the bytes that all files may have, the part that one may have: there must be room for those that are being written.
const SHARE: u64 = 8;

/// Records until it is told to stop; returns the exit code.
///
/// # Errors
/// What went wrong, for people.
pub fn run(record: &Record, arguments: &[OsString]) -> anyhow::Result<u8> {
    let recorder = Recorder::begin(place(&record.recording), header(arguments))?;
    let printer = record.printing().map(|settings| Printer::new(settings, io::stdout(), io::stderr()));
    let is_terminal = io::stderr().is_terminal();
    let sink = Recording::new(recorder, printer, io::stderr(), is_terminal, record.watch.run.count);
    live::run(&record.watch, arguments, sink)
}

/// What a recording that begins now, of this node, says of itself.
pub(crate) fn header(arguments: &[OsString]) -> Header {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Header {
        version: VERSION,
        droptrace: env!("CARGO_PKG_VERSION").to_owned(),
        node: environment::node_name(),
        kernel: kernel.trim().to_owned(),
        started: Timestamp(jiff::Timestamp::now().as_nanosecond()),
        arguments: arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect(),
    }
}

/// A name that ends in `.parquet` is a file's, any other a folder's.
fn place(args: &RecordArgs) -> Place {
    let RecordArgs { write, cluster, keep, rotate_size, rotate_after } = args;
    if write.extension().is_some_and(|end| end == "parquet") && !write.is_dir() && !ends_as_folder(write) {
        return Place::File(write.clone());
    }
    Place::Folder(Folder {
        root: write.clone(),
        cluster: cluster.clone(),
        rotate_bytes: keep.map_or(*rotate_size, |keep| (keep / SHARE).min(*rotate_size).max(1)),
        rotate_after: *rotate_after,
        keep: *keep,
    })
}

fn ends_as_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}
