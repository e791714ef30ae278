//! The folder that holds kernels and base initramfs files between runs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process,
};

use super::{Error, Suite, error::IoContext};

/// The cache folder. Layout: `SUITE/{apt,kernel,base.cpio,base.recipe,lock}` and `runs/SUITE-PID`.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Exclusive use of one suite's part of the cache, until dropped.
#[derive(Debug)]
pub struct SuiteLock {
    _file: File,
}

impl Cache {
    /// Opens the cache, making the folder when there is none.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(root: &Path) -> Result<Cache, Error> {
        fs::create_dir_all(root).context("create", root)?;
        // apt and QEMU run elsewhere: they need the whole path.
        let root = fs::canonicalize(root).context("find", root)?;
        Ok(Cache { root })
    }

    /// The folder of one suite's kernel and base initramfs.
    pub(super) fn suite_dir(&self, suite: Suite) -> PathBuf {
        self.root.join(suite.name())
    }

    /// Waits until no other process works on this suite's files.
    ///
    /// # Errors
    /// When the lock file cannot be made or locked.
    pub fn lock(&self, suite: Suite) -> Result<SuiteLock, Error> {
        let dir = self.suite_dir(suite);
        fs::create_dir_all(&dir).context("create", &dir)?;
        let path = dir.join("lock");
        let file = File::create(&path).context("create", &path)?;
        file.lock().context("lock", &path)?;
        Ok(SuiteLock { _file: file })
    }

    /// An empty folder for this process's boot of `suite`. Folders that processes left behind when they were
    /// killed are swept first.
    pub(super) fn run_dir(&self, suite: Suite) -> Result<PathBuf, Error> {
        let runs = self.root.join("runs");
        fs::create_dir_all(&runs).context("create", &runs)?;
        self.sweep(&runs)?;
        let dir = runs.join(format!("{suite}-{}", process::id()));
        remove_dir(&dir)?;
        fs::create_dir(&dir).context("create", &dir)?;
        Ok(dir)
    }

    /// Where a failed boot's console is kept, one per suite.
    pub(super) fn console_log(&self, suite: Suite) -> PathBuf {
        self.suite_dir(suite).join("console.log")
    }

    fn sweep(&self, runs: &Path) -> Result<(), Error> {
        for entry in fs::read_dir(runs).context("list", runs)? {
            let path = entry.context("list", runs)?.path();
            if owner(&path).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
                remove_dir(&path)?;
            }
        }
        Ok(())
    }
}

/// The process that made a run folder: the number after the last dash of its name.
fn owner(run_dir: &Path) -> Option<u32> {
    run_dir.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok()
}

/// Removes a folder and all in it; one that isn't there is fine.
pub(super) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_folders_of_dead_processes_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let runs = root.path().join("runs");
        // Above the highest pid that Linux gives out (PID_MAX_LIMIT, 2^22).
        let (dead, alive) = (runs.join("sid-4194999"), runs.join("sid-1"));
        fs::create_dir_all(&dead).unwrap();
        fs::create_dir_all(&alive).unwrap();
        let ours = cache.run_dir(Suite::Trixie).unwrap();
        assert!(ours.is_dir() && alive.is_dir() && !dead.exists());
    }

    #[test]
    fn the_lock_excludes() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let held = cache.lock(Suite::Sid).unwrap();
        let file = File::open(root.path().join("sid/lock")).unwrap();
        assert!(file.try_lock().is_err());
        drop(held);
        assert!(file.try_lock().is_ok());
    }
}
