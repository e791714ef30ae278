//! Where the page goes: stdout, or a file that is there whole or not at all.

use anyhow::{Context as _, bail};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A place that was found to take a page.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// The standard output.
    Stdout,
    /// What is no plain file, such as a pipe: it is written to as it is.
    Special(PathBuf),
    /// A file: written beside, then renamed.
    File(PathBuf),
}

impl Target {
    /// Finds out, before hours of reading, whether a page can be written there. `recordings` are what is read.
    ///
    /// # Errors
    /// If it can't, or should not.
    pub fn new(path: &Path, recordings: &[PathBuf]) -> anyhow::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        let shown = path.display();
        let end = path.to_string_lossy();
        if [".parquet", ".jsonl", ".jsonl.zst"].iter().any(|kind| end.ends_with(kind)) {
            bail!("{shown} has a recording's name: give the page another one, such as report.html");
        }
        if let Ok(there) = fs::canonicalize(path)
            && recordings
                .iter()
                .any(|read| fs::canonicalize(read).is_ok_and(|read| read == there && !read.is_dir()))
        {
            bail!("{shown} is one of the recordings that are to be read: give the page another name");
        }
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                bail!("{shown} is a folder: name a file in it, such as report.html")
            }
            Ok(there) if !there.is_file() => Ok(Self::Special(path.to_owned())),
            _ => {
                let beside = beside(path)?;
                File::create_new(&beside)
                    .and_then(|_| fs::remove_file(&beside))
                    .with_context(|| format!("can't write {shown}"))?;
                Ok(Self::File(path.to_owned()))
            }
        }
    }

    /// Writes the page.
    ///
    /// # Errors
    /// If it can't be written; a file that was there before is still there then.
    pub fn write(&self, page: &str) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(page.as_bytes())?;
                out.flush()
            }
            Self::Special(path) => named(path, fs::write(path, page)),
            Self::File(path) => {
                let unfinished = beside(path)?;
                let written = File::create_new(&unfinished).and_then(|mut file| {
                    file.write_all(page.as_bytes())?;
                    file.sync_all()?;
                    fs::rename(&unfinished, path)
                });
                if written.is_err() {
                    // Half a page is none.
                    let _ = fs::remove_file(&unfinished);
                }
                named(path, written)
            }
        }
    }

    /// The file; `None` for stdout.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdout => None,
            Self::Special(path) | Self::File(path) => Some(path),
        }
    }
}

/// An error with the file's name.
fn named(path: &Path, done: io::Result<()>) -> io::Result<()> {
    done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// A name beside it that no other process takes.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it is no file's name"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &Path, recordings: &[PathBuf]) -> String {
        Target::new(path, recordings)
            .unwrap_err()
            .chain()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    }

    #[test]
    fn a_file_is_there_whole_or_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        let target = Target::new(&path, &[]).unwrap();
        assert!(!path.exists(), "it is only tried");
        target.write("one").unwrap();
        target.write("two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_can_not_or_should_not_be_written_is_said_before() {
        let folder = tempfile::tempdir().unwrap();
        assert!(said(folder.path(), &[]).contains("is a folder"));
        assert!(said(&folder.path().join("no/such/report.html"), &[]).contains("No such file"));
        assert!(said(&folder.path().join("drops.parquet"), &[]).contains("a recording's name"));
        let lines = folder.path().join("lines.json");
        fs::write(&lines, "{}").unwrap();
        assert!(said(&lines, std::slice::from_ref(&lines)).contains("one of the recordings"));
        assert!(said(Path::new("/"), &[]).contains("is a folder"));
        assert_eq!(Target::new(Path::new("/dev/null"), &[]).unwrap(), Target::Special("/dev/null".into()));
    }
}
