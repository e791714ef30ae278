//! Where a recording goes: one file, or a folder for long runs and many nodes, `cluster=C/date=D/node=N/`, which engines read
//! as a table with those columns. What is being written ends in `.jsonl.zst`, what is done in `.parquet`.

use crate::event::model::Timestamp;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ends the name of a file that is being written.
pub(super) const SPOOL: &str = ".jsonl.zst";
/// Ends the name of one that is done.
pub(super) const SEALED: &str = ".parquet";

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// One file, whose name ends in `.parquet`.
    File(PathBuf),
    /// Files in a folder.
    Folder(Folder),
}

/// A folder of recordings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Which.
    pub root: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// A file that has so many bytes is done.
    pub rotate_bytes: u64,
    /// So is one that is so old.
    pub rotate_after: Duration,
    /// Bytes that this node's files may have together; the oldest go first.
    pub keep: Option<u64>,
}

/// Two names of one recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) spool: PathBuf,
    pub(super) sealed: PathBuf,
}

impl Place {
    /// The names of a recording that begins at a time.
    pub(super) fn names(&self, node: &str, started: Timestamp) -> Names {
        match self {
            Self::File(sealed) => Names { spool: spool_of(sealed), sealed: sealed.clone() },
            Self::Folder(folder) => {
                let time = started.to_string();
                let date = time.split('T').next().unwrap_or_default();
                // 2026-11-20T22:14:03.112345Z: sorted by name they are sorted by time.
                let name: String = time.chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
                let within = folder
                    .root
                    .join(format!("cluster={}", segment(&folder.cluster)))
                    .join(format!("date={date}"))
                    .join(format!("node={}", segment(node)));
                let at = |end: &str| within.join(format!("part-{name}{end}"));
                Names { spool: at(SPOOL), sealed: at(SEALED) }
            }
        }
    }
}

impl Folder {
    /// Files of a node that are there: path and length, the oldest first. `end` says which.
    pub(super) fn files(&self, node: &str, end: &str) -> io::Result<Vec<(PathBuf, u64)>> {
        let cluster = self.root.join(format!("cluster={}", segment(&self.cluster)));
        let node = format!("node={}", segment(node));
        let mut found = Vec::new();
        for date in entries(&cluster)? {
            for file in entries(&date.join(&node))? {
                if file.file_name().is_some_and(|name| name.to_string_lossy().ends_with(end)) {
                    // One that has gone meanwhile has no length.
                    let length = fs::metadata(&file).map_or(0, |metadata| metadata.len());
                    found.push((file, length));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Takes away the oldest that are done until there is room for what is being written; returns how many went.
    pub(super) fn make_room(&self, node: &str) -> io::Result<usize> {
        /// At most so many are written at once: a spool, the one before it that is being sealed, and what becomes of that.
        const WRITTEN: u64 = 3;
        let Some(keep) = self.keep else { return Ok(0) };
        let most = keep.saturating_sub(self.rotate_bytes.saturating_mul(WRITTEN));
        let sealed = self.files(node, SEALED)?;
        let mut all: u64 = sealed.iter().map(|(_, length)| length).sum();
        let mut gone = 0;
        for (file, length) in sealed {
            if all <= most {
                break;
            }
            fs::remove_file(&file)?;
            // A date without files is of no use; one that has some can't be removed.
            let _ = file.parent().map(fs::remove_dir);
            all = all.saturating_sub(length);
            gone += 1;
        }
        Ok(gone)
    }
}

/// The spool of a file.
pub(super) fn spool_of(sealed: &Path) -> PathBuf {
    let name = sealed.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(SEALED).unwrap_or(&name);
    sealed.with_file_name(format!("{stem}{SPOOL}"))
}

/// What a spool is to become.
pub(super) fn sealed_of(spool: &Path) -> PathBuf {
    let name = spool.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(SPOOL).unwrap_or(&name);
    spool.with_file_name(format!("{stem}{SEALED}"))
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// A name as a part of a path: a node's name is what somebody says it is.
fn segment(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).take(128).collect();
    if plain.is_empty() || plain.starts_with('.') { format!("_{plain}") } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(root: &Path, keep: Option<u64>) -> Folder {
        Folder {
            root: root.to_owned(),
            cluster: "c".into(),
            rotate_bytes: 1,
            rotate_after: Duration::from_secs(1),
            keep,
        }
    }

    #[test]
    fn names_are_those_that_engines_read() {
        let place = Place::Folder(folder(Path::new("/r"), None));
        let names = place.names("../n", Timestamp(1_795_000_000_123_456_789));
        assert_eq!(
            names.sealed,
            Path::new("/r/cluster=c/date=2026-11-18/node=_.._n/part-20261118T110640123456Z.parquet")
        );
        assert_eq!((spool_of(&names.sealed), sealed_of(&names.spool)), (names.spool.clone(), names.sealed));
        let names = Place::File("f.parquet".into()).names("n", Timestamp(0));
        assert_eq!(names.spool, Path::new("f.jsonl.zst"));
    }

    #[test]
    fn the_oldest_goes_first() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(root.path(), None);
        let place = Place::Folder(folder.clone());
        let at = |seconds: i128| place.names("n", Timestamp(seconds * 86_400_000_000_000));
        for day in 0..3 {
            fs::create_dir_all(at(day).sealed.parent().unwrap()).unwrap();
            fs::write(at(day).sealed, [0; 100]).unwrap();
        }
        // Another node's doesn't count; for what is being written there is room: three bytes here.
        let other = place.names("m", Timestamp(0));
        fs::create_dir_all(other.sealed.parent().unwrap()).unwrap();
        fs::write(&other.sealed, [0; 1000]).unwrap();
        fs::write(at(2).spool, [0; 100]).unwrap();
        let folder = |keep| Folder { keep: Some(keep), ..folder.clone() };
        assert_eq!((folder(303).make_room("n").unwrap(), folder(302).make_room("n").unwrap()), (0, 1));
        assert!(!at(0).sealed.exists() && at(1).sealed.exists() && at(2).sealed.exists());
        assert!(at(2).spool.exists() && other.sealed.exists() && !at(0).sealed.parent().unwrap().exists());
        assert_eq!(folder(302).make_room("n").unwrap(), 0);
    }
}
