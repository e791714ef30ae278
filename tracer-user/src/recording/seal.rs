//! A spool becomes a Parquet file: at the end, when a recording is rotated, and when what a killed one left is found.

use super::columns::SCHEMA;
use super::encode::Rows;
use super::header::{HEADER_KEY, Header, TOTALS_KEY, Totals};
use super::spool::{Piece, Reader};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Rows of one row group.
const GROUP: usize = 131_072;
/// Rows that are encoded at once.
const ROWS: usize = 8192;

/// Why it didn't.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Parquet(#[from] ParquetError),
    #[error("{0}")]
    Arrow(#[from] arrow_schema::ArrowError),
}

/// Writes what is in `spool` to `sealed`, which is there whole or not at all, and takes the spool away.
pub(super) fn seal(spool: &Path, sealed: &Path, recovered: bool) -> Result<Totals, SealError> {
    let unfinished = sealed.with_extension("parquet.tmp");
    let written = write(spool, &unfinished, recovered);
    let totals = written.inspect_err(|_| {
        // The spool has it all.
        let _ = fs::remove_file(&unfinished);
    })?;
    fs::rename(&unfinished, sealed)?;
    if let Some(folder) = sealed.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    fs::remove_file(spool)?;
    Ok(totals)
}

fn write(spool: &Path, to: &Path, recovered: bool) -> Result<Totals, SealError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(GROUP))
        .build();
    let file = File::create(to)?;
    let mut writer = ArrowWriter::try_new(file, SCHEMA.clone(), Some(properties))?;
    let mut totals = Totals { recovered, ..Totals::default() };
    let mut header = Header::default();
    let mut rows = Rows::new();
    for piece in Reader::open(spool)? {
        match piece? {
            Piece::Header(it) => header = it,
            Piece::Damage(damage) => totals.damaged += damage.bytes.max(damage.lines),
            Piece::Record(record) => {
                totals.add(&record);
                if rows.add(&record).is_err() {
                    totals.damaged += 1;
                }
                if rows.len() >= ROWS {
                    writer.write(&rows.take()?)?;
                }
            }
        }
    }
    writer.write(&rows.take()?)?;
    for (key, value) in
        [(HEADER_KEY, serde_json::to_string(&header)), (TOTALS_KEY, serde_json::to_string(&totals))]
    {
        let value = value.map_err(io::Error::from)?;
        writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }
    writer.into_inner()?.sync_all()?;
    Ok(totals)
}
