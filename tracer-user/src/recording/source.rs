//! Reads one recording, done or not: Parquet, a spool, or JSON lines as `-o json` prints them.

use super::columns::{COLUMNS, Column, Reads};
use super::decode;
use super::header::{About, HEADER_KEY, Header, TOTALS_KEY, Totals};
use super::place::{SEALED, SPOOL};
use super::spool::{self, Damage, Piece};
use crate::event::model::Record;
use arrow_array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Rows that are decoded at once.
const ROWS: usize = 1024;
/// Bytes of a line of JSON at most.
const LINE: u64 = 16 << 20;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system says no.
    #[error("can't read {path}: {error}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is something else, or damaged.
    #[error("{path} is no recording of droptrace, or not whole: {why}")]
    Foreign {
        /// What.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// An open recording. Its records come as they were written; what is not intact is passed over and counted.
pub struct Source {
    path: PathBuf,
    header: Header,
    /// What a whole one says of itself.
    totals: Option<Totals>,
    inner: Inner,
    damage: Vec<String>,
    /// Read ahead.
    next: VecDeque<Record>,
}

enum Inner {
    Sealed(Box<ParquetRecordBatchReader>),
    Spool(Box<spool::Reader>),
    Lines(Box<dyn BufRead>),
    Done,
}

impl Source {
    /// Opens a file. Of one that is done only what is asked for is read.
    ///
    /// # Errors
    /// If it can't be read or is no recording.
    pub fn open(path: &Path, reads: &Reads) -> Result<Self, SourceError> {
        let io = |error| SourceError::Io { path: path.to_owned(), error };
        let mut file = File::open(path).map_err(io)?;
        let mut magic = [0; 4];
        let length = read_head(&mut file, &mut magic).map_err(io)?;
        let source = match magic.get(..length) {
            Some(b"PAR1") => Self::sealed(path, reads)?,
            _ if path.to_string_lossy().ends_with(SPOOL) || magic == spool::MAGIC => {
                let inner = Inner::Spool(Box::new(spool::Reader::open(path).map_err(io)?));
                Self::new(path, inner).begin()
            }
            Some([b'{', ..] | []) if !path.to_string_lossy().ends_with(SEALED) => {
                let file = File::open(path).map_err(io)?;
                Self::new(path, Inner::Lines(Box::new(BufReader::new(file)))).begin()
            }
            _ => {
                let why = "it is neither Parquet nor Zstandard nor JSON".to_owned();
                return Err(SourceError::Foreign { path: path.to_owned(), why });
            }
        };
        Ok(source)
    }

    /// JSON lines from stdin.
    #[must_use]
    pub fn stdin() -> Self {
        Self::new(Path::new("-"), Inner::Lines(Box::new(BufReader::new(io::stdin())))).begin()
    }

    fn new(path: &Path, inner: Inner) -> Self {
        Self {
            path: path.to_owned(),
            header: Header::default(),
            totals: None,
            inner,
            damage: Vec::new(),
            next: VecDeque::new(),
        }
    }

    /// Reads the first piece, where a spool says what it is.
    fn begin(mut self) -> Self {
        self.fill();
        self
    }

    fn sealed(path: &Path, reads: &Reads) -> Result<Self, SourceError> {
        let foreign = |why: String| SourceError::Foreign { path: path.to_owned(), why };
        let file = File::open(path).map_err(|error| SourceError::Io { path: path.to_owned(), error })?;
        let builder = quietly(|| ParquetRecordBatchReaderBuilder::try_new(file))
            .map_err(foreign)?
            .map_err(|error| foreign(error.to_string()))?;
        let values = builder.metadata().file_metadata().key_value_metadata();
        let value = |key: &str| {
            let found = values.into_iter().flatten().find(|value| value.key == key);
            found.and_then(|value| value.value.clone())
        };
        let header = value(HEADER_KEY).and_then(|text| serde_json::from_str(&text).ok());
        let header = header.ok_or_else(|| foreign("its metadata have no droptrace".to_owned()))?;
        let totals = value(TOTALS_KEY).and_then(|text| serde_json::from_str(&text).ok());
        let names: Vec<String> =
            COLUMNS.iter().filter(|column| reads.has(column)).map(Column::name).collect();
        let columns = builder.parquet_schema();
        let mask = ProjectionMask::columns(columns, names.iter().map(String::as_str));
        let reader = quietly(|| builder.with_projection(mask).with_batch_size(ROWS).build())
            .map_err(foreign)?
            .map_err(|error| foreign(error.to_string()))?;
        Ok(Self { header, totals, ..Self::new(path, Inner::Sealed(Box::new(reader))) })
    }

    /// Its path; `-` for stdin.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What is in it, where it was ended in order.
    #[must_use]
    pub fn totals(&self) -> Option<&Totals> {
        self.totals.as_ref()
    }

    /// All that.
    #[must_use]
    pub fn about(&self) -> About {
        About { path: self.path.clone(), header: self.header.clone(), totals: self.totals.clone() }
    }

    /// What was not intact until now, a line each.
    #[must_use]
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Reads on until there is a record or the end.
    fn fill(&mut self) {
        while self.next.is_empty() {
            match &mut self.inner {
                Inner::Done => return,
                Inner::Sealed(reader) => match quietly(|| reader.next()) {
                    Ok(None) => self.inner = Inner::Done,
                    Ok(Some(Ok(batch))) => self.take_batch(&batch),
                    Ok(Some(Err(error))) => self.end(&error.to_string()),
                    Err(why) => self.end(&why),
                },
                Inner::Spool(reader) => match reader.next() {
                    None => self.inner = Inner::Done,
                    // Its last frame is on its way.
                    Some(Ok(Piece::Damage(Damage { is_end: true, .. }))) if reader.is_being_written() => {}
                    Some(Ok(piece)) => self.take_piece(piece),
                    Some(Err(error)) => self.end(&error.to_string()),
                },
                Inner::Lines(reader) => {
                    let mut line = Vec::new();
                    match reader.take(LINE).read_until(b'\n', &mut line) {
                        Ok(0) => self.inner = Inner::Done,
                        Ok(_) if line.trim_ascii().is_empty() => {}
                        Ok(_) => self.take_piece(spool::piece(line.trim_ascii())),
                        Err(error) => self.end(&error.to_string()),
                    }
                }
            }
        }
    }

    fn take_batch(&mut self, batch: &RecordBatch) {
        let mut senseless = 0;
        for record in decode::Rows::new(batch) {
            match record {
                Ok(record) => self.next.push_back(record),
                Err(_) => senseless += 1,
            }
        }
        if senseless > 0 {
            self.damage.push(format!("{}: {senseless} rows make no sense", self.path.display()));
        }
    }

    fn take_piece(&mut self, piece: Piece) {
        match piece {
            Piece::Header(header) => self.header = header,
            Piece::Record(record) => self.next.push_back(record),
            Piece::Damage(damage) => {
                let what = match damage {
                    Damage { lines: 1.., .. } => "a line that means nothing".to_owned(),
                    Damage { is_end: true, bytes, .. } => format!("its last {bytes} bytes are not whole"),
                    Damage { bytes, .. } => format!("{bytes} bytes are damaged"),
                };
                self.damage.push(format!("{}: {what}", self.path.display()));
            }
        }
    }

    fn end(&mut self, why: &str) {
        self.damage.push(format!("{}: nothing can be read from here on: {why}", self.path.display()));
        self.inner = Inner::Done;
    }
}

impl Iterator for Source {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        self.fill();
        self.next.pop_front()
    }
}

/// Fills what there is for.
fn read_head(file: &mut File, head: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = head.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs what reads a file that may be damaged: a panic in there is an error like others, and not printed.
fn quietly<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    // What the closure leaves behind is not used after a panic: the reader ends.
    let outcome = panic::catch_unwind(AssertUnwindSafe(read));
    QUIET.set(false);
    outcome.map_err(|_| "its content contradicts itself".to_owned())
}
