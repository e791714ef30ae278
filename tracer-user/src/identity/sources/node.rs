//! The node's files, also as a container sees them: below `/`, or below `/host` where the node's root is mounted.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folders that may be the node's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    roots: Vec<PathBuf>,
}

impl Default for Node {
    fn default() -> Self {
        Self::new(["/", "/host"])
    }
}

impl Node {
    /// Roots to look below, in this order.
    pub fn new(roots: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { roots: roots.into_iter().map(Into::into).collect() }
    }

    /// Where a file of the node may be: its path below each root.
    pub(super) fn places(&self, path: &Path) -> impl Iterator<Item = PathBuf> {
        let below = path.strip_prefix("/").unwrap_or(path).to_owned();
        self.roots.iter().map(move |root| root.join(&below))
    }

    /// The node's /proc: `/host/proc` where there is one, for a container's own has but its own processes.
    pub(super) fn proc(&self) -> PathBuf {
        let places: Vec<PathBuf> = self.places(Path::new("/proc")).collect();
        let with_processes = |place: &&PathBuf| place.join("1/cgroup").exists();
        places.iter().rev().find(with_processes).or(places.first()).cloned().unwrap_or_else(|| "/proc".into())
    }

    /// Inode number of the network namespace that is mounted at a path of the node. `None` if nothing is: a container
    /// that does not get the node's later mounts sees an empty file there.
    pub(super) fn netns_at(&self, path: &Path) -> Option<u32> {
        let nsfs = fs::metadata("/proc/self/ns/net").ok()?.dev();
        let is_namespace = |found: &Metadata| found.dev() == nsfs;
        let found = self.places(path).filter_map(|place| fs::metadata(place).ok()).find(is_namespace)?;
        u32::try_from(found.ino()).ok()
    }

    /// Inode number of the network namespace of a process that a runtime calls `pid`. A runtime in a PID namespace of
    /// its own counts otherwise: so it is the process only if its control group has one of `names`.
    pub(super) fn netns_of(&self, pid: u32, names: &[&str]) -> Option<u32> {
        let process = self.proc().join(pid.to_string());
        let cgroup = fs::read_to_string(process.join("cgroup")).ok()?;
        let is_it = names.iter().any(|name| !name.is_empty() && cgroup.contains(name));
        let found = if is_it { fs::metadata(process.join("ns/net")).ok()? } else { return None };
        u32::try_from(found.ino()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_looked_for_below_each_root() {
        let places: Vec<PathBuf> = Node::default().places(Path::new("/run/crio/crio.sock")).collect();
        assert_eq!(places, [Path::new("/run/crio/crio.sock"), Path::new("/host/run/crio/crio.sock")]);
    }

    #[test]
    fn only_a_namespace_is_one() {
        let own = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        let node = Node::new(["/nothing-is-here", "/"]);
        assert_eq!(node.netns_at(Path::new("/proc/self/ns/net")), Some(own));
        assert_eq!(node.netns_at(Path::new("/proc/self/cgroup")), None);
        assert_eq!(node.netns_at(Path::new("/proc/self/ns/none")), None);
    }

    #[test]
    fn the_process_must_be_the_one_that_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("proc/7");
        fs::create_dir_all(process.join("ns")).unwrap();
        fs::create_dir_all(folder.path().join("proc/1")).unwrap();
        fs::write(folder.path().join("proc/1/cgroup"), "0::/init.scope\n").unwrap();
        fs::write(process.join("cgroup"), "0::/kubepods/pod1/5d1f\n").unwrap();
        fs::write(process.join("ns/net"), "").unwrap();
        let node = Node::new([folder.path()]);
        assert_eq!(node.proc(), folder.path().join("proc"));
        assert!(node.netns_of(7, &["", "5d1f"]).is_some());
        assert_eq!(node.netns_of(7, &["5d20"]), None);
        assert_eq!(node.netns_of(8, &["5d1f"]), None);
    }
}
