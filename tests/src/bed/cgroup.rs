//! Control groups of pods, as the kubelet names them with the cgroupfs driver.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";

/// The path of a pod's control group in a hierarchy.
#[must_use]
pub fn of_pod(uid: &str) -> String {
    format!("/kubepods/burstable/pod{uid}")
}

/// Control groups of a pod that was not made by a runtime, removed when this is dropped with what runs in them.
#[derive(Debug)]
pub struct Made {
    uid: String,
    leaf: PathBuf,
}

impl Made {
    /// Makes that of a container, in the hierarchy of version 2 or else any.
    ///
    /// # Errors
    /// When there is no hierarchy, or nothing can be made in it.
    pub fn new(uid: &str, container: &str) -> Result<Self> {
        let hierarchies = [PathBuf::from(ROOT).join("unified"), ROOT.into()];
        let is_hierarchy = |folder: &PathBuf| folder.join("cgroup.procs").exists();
        let hierarchy = hierarchies.into_iter().chain(hierarchies_of_1()).find(is_hierarchy);
        let pod = hierarchy.context("no control groups")?.join(&of_pod(uid)[1..]);
        let made = Self { uid: uid.into(), leaf: pod.join(container) };
        fs::create_dir_all(&made.leaf).with_context(|| format!("make {}", made.leaf.display()))?;
        Ok(made)
    }

    /// Moves a process there.
    ///
    /// # Errors
    /// When it is gone.
    pub fn take(&self, pid: u32) -> Result<()> {
        let file = self.leaf.join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        remove(&self.uid);
    }
}

fn hierarchies_of_1() -> impl Iterator<Item = PathBuf> {
    fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// A pod's control groups that there are, one in each hierarchy.
#[must_use]
pub fn folders(uid: &str) -> Vec<PathBuf> {
    std::iter::once(PathBuf::from(ROOT))
        .chain(hierarchies_of_1())
        .map(|hierarchy| hierarchy.join(&of_pod(uid)[1..]))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// Uids of pods that have control groups and begin so.
#[must_use]
pub fn uids(beginning: &str) -> BTreeSet<String> {
    let hierarchies = std::iter::once(PathBuf::from(ROOT)).chain(hierarchies_of_1());
    let pods = hierarchies.filter_map(|hierarchy| fs::read_dir(hierarchy.join("kubepods/burstable")).ok());
    pods.flatten()
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("pod")?.to_owned()))
        .filter(|uid| uid.starts_with(beginning))
        .collect()
}

/// The processes in a pod's control groups, and the names of those groups: ids of containers.
#[must_use]
pub fn processes(uid: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for folder in folders(uid) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pids = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
            let pids = pids.lines().filter_map(|pid| pid.parse().ok());
            found.extend(pids.map(|pid| (pid, name.clone())));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Kills what is in a pod's control groups and removes them.
pub fn remove(uid: &str) {
    folders(uid).iter().for_each(|folder| remove_folder(folder));
}

/// Removes a control group with all below it, and those of all pods if this was the last one.
fn remove_folder(folder: &Path) {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|path| remove_folder(&path));
    let deadline = Instant::now() + Duration::from_secs(5);
    while folder.is_dir() && fs::remove_dir(folder).is_err() && Instant::now() < deadline {
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|pid| pid.parse().ok()) {
            // SAFETY: a plain system call; only what the test started is in its pods' control groups.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        thread::sleep(Duration::from_millis(5));
    }
    let above = folder.ancestors().skip(1).take_while(|path| path.iter().any(|part| part == "kubepods"));
    for path in above {
        // It fails while other pods are there.
        let _ = fs::remove_dir(path);
    }
}
