//! What can go wrong before the guest gives a verdict.

use std::{io, path::Path};

use super::Suite;

/// Why a guest could not be prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file of ours failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, as a verb: `read`, `write`, ...
        action: &'static str,
        /// The file or folder it was done to.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A helper program could not be started or failed.
    #[error("`{command}` {outcome}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended, with the end of what it wrote to stderr.
        outcome: String,
    },
    /// The kernel could not be fetched.
    #[error("cannot fetch the kernel of {suite}: {source}")]
    Fetch {
        /// The suite whose kernel was wanted.
        suite: Suite,
        /// What went wrong.
        source: Box<Error>,
    },
    /// The package archive or a package is not what we expect.
    #[error("{0}")]
    Unexpected(String),
    /// Programs that the test bed needs are missing.
    #[error(
        "missing on this machine: {programs}\n  install them: apt-get install --no-install-recommends {packages}"
    )]
    MissingPrograms {
        /// The programs, separated by spaces.
        programs: String,
        /// The Debian packages that have them, separated by spaces.
        packages: String,
    },
}

/// Adds to an I/O error what was being done to which file.
pub(super) trait IoContext<T> {
    /// `action` is a verb, such as `read`.
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.display().to_string(), source })
    }
}
