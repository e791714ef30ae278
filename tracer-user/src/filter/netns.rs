//! Turns the value of `--netns` into the inode number of a network namespace. The only part of the filters that
//! asks the OS; it holds nothing open, so that it keeps no namespace alive.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The highest process id, PID_MAX_LIMIT (include/linux/threads.h). Inode numbers of namespaces are far above:
/// those made at boot just below, all others above PROC_DYNAMIC_FIRST, 0xf0000000 (fs/proc/generic.c).
const LAST_PROCESS: u32 = 1 << 22;

/// Why a word names no network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing of that name.
    #[error("no such network namespace, path or process")]
    NotFound {
        /// The word.
        word: String,
    },
    /// It may exist, but cannot be looked at.
    #[error("cannot look at {path}: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// It exists, but is something else.
    #[error("{path} is not a network namespace")]
    Other {
        /// The file.
        path: String,
    },
}

impl NetnsError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotFound { .. } => {
                "an inode number, a name that `ip netns` lists, a path such as /proc/1/ns/net, or a process id; \
                 `lsns -t net` lists inode numbers and process ids"
            }
            Self::Unreadable { .. } => "run droptrace as root, in the host's pid namespace",
            Self::Other { .. } => "a path such as /proc/1/ns/net or /run/netns/NAME",
        };
        Some(hint.to_owned())
    }
}

/// The inode number of the network namespace that `word` names: an inode number (also as `net:[N]`), a name under
/// `/run/netns`, a path, or a process id. A name wins over a process id.
///
/// # Errors
/// If there is none.
pub fn resolve(word: &str) -> Result<u32, NetnsError> {
    resolve_in(word, Path::new("/run/netns"), Path::new("/proc"))
}

fn resolve_in(word: &str, names: &Path, proc: &Path) -> Result<u32, NetnsError> {
    let not_found = || NetnsError::NotFound { word: word.to_owned() };
    let number = word.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']')).unwrap_or(word);
    let digits = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
    if let Some(inode) = digits.then(|| number.parse::<u32>().ok()).flatten()
        && inode > LAST_PROCESS
    {
        return Ok(inode);
    }
    if word.contains('/') {
        return inode_of(Path::new(word), proc)?.ok_or_else(not_found);
    }
    if word.is_empty() || word == "." || word == ".." {
        return Err(not_found());
    }
    if let Some(inode) = inode_of(&names.join(word), proc)? {
        return Ok(inode);
    }
    if digits && let Some(inode) = inode_of(&proc.join(word).join("ns/net"), proc)? {
        return Ok(inode);
    }
    Err(not_found())
}

/// The inode number of a namespace file; `None` if there is no such file.
fn inode_of(path: &Path, proc: &Path) -> Result<Option<u32>, NetnsError> {
    let shown = || crate::output::escape(&path.to_string_lossy()).into_owned();
    let unreadable = |error| NetnsError::Unreadable { path: shown(), error };
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error)),
    };
    // All namespace files are on one file system, nsfs; a link in /proc also says which kind it is.
    let own: PathBuf = proc.join("self/ns/net");
    let nsfs = own.metadata().map_err(unreadable)?.dev();
    let link = path.read_link().ok().map(|target| target.to_string_lossy().into_owned());
    let other_kind = link.is_some_and(|target| target.ends_with(']') && !target.starts_with("net:["));
    match u32::try_from(found.ino()) {
        Ok(inode) if found.dev() == nsfs && !other_kind => Ok(Some(inode)),
        _ => Err(NetnsError::Other { path: shown() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_names_the_same_namespace() {
        let own = resolve("/proc/self/ns/net").unwrap();
        assert!(own > LAST_PROCESS);
        assert_eq!(resolve(&std::process::id().to_string()).unwrap(), own);
        assert_eq!(resolve(&own.to_string()).unwrap(), own);
        assert_eq!(resolve(&format!("net:[{own}]")).unwrap(), own);
        // A name: any directory with a link to a namespace file.
        let names = Path::new("/proc/self/ns");
        assert_eq!(resolve_in("net", names, Path::new("/proc")).unwrap(), own);
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        assert!(matches!(resolve("no-such-name"), Err(NetnsError::NotFound { .. })));
        assert!(matches!(resolve("4194304"), Err(NetnsError::NotFound { .. })));
        assert!(matches!(resolve(""), Err(NetnsError::NotFound { .. })));
        assert!(matches!(resolve("/nowhere/net"), Err(NetnsError::NotFound { .. })));
        assert!(matches!(resolve("/proc/self/ns/mnt"), Err(NetnsError::Other { .. })));
        assert!(matches!(resolve("/proc/self/status"), Err(NetnsError::Other { .. })));
    }
}
