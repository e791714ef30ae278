//! A way into a network namespace that is known by its inode number.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// Opens the network namespace with this inode number: droptrace's own, one with a name under `/run/netns`, one that is
/// mounted somewhere else, or that of a process. `None` if nothing of these leads to it. The file is closed on exec; it
/// keeps the namespace alive, so drop it soon.
///
/// # Errors
/// If it was found, but can't be opened.
pub(crate) fn open(inode: u32) -> io::Result<Option<File>> {
    open_in(inode, Path::new("/run/netns"), Path::new("/proc"))
}

/// Inode numbers of all network namespaces that something leads to: a name, a mount, a process.
pub(crate) fn reachable() -> io::Result<HashSet<u32>> {
    let proc = Path::new("/proc");
    let nsfs = proc.join("self/ns/net").metadata()?.dev();
    let mounted = fs::read(proc.join("self/mountinfo"))?;
    let mounted = String::from_utf8_lossy(&mounted);
    let files = entries(Path::new("/run/netns"))
        .chain(entries(proc).filter(|path| is_process(path)).map(|path| path.join("ns/net")));
    let named = files.filter_map(|path| path.metadata().ok()).filter(|found| found.dev() == nsfs);
    let named = named.filter_map(|found| u32::try_from(found.ino()).ok());
    Ok(named.chain(mounted.lines().filter_map(mounted_inode)).collect())
}

/// Does something in a network namespace: on a thread of its own, which ends with it, and is waited for no longer than
/// `patience`. `is_busy` is set as long as it runs, so that who asks again and again starts no second one meanwhile.
///
/// # Errors
/// If it can't be entered, if the work fails, or if it takes too long.
pub(crate) fn visit<T: Send + 'static>(
    inode: u32,
    name: &str,
    is_busy: &Arc<AtomicBool>,
    patience: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, answer) = mpsc::channel();
    let busy = Arc::clone(is_busy);
    let visit = move || {
        let answer = enter(inode).and_then(|()| work());
        busy.store(false, Ordering::Relaxed);
        // Nobody may wait any more.
        let _ = tell.send(answer);
    };
    is_busy.store(true, Ordering::Relaxed);
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(visit) {
        is_busy.store(false, Ordering::Relaxed);
        return Err(error);
    }
    answer.recv_timeout(patience).map_err(io::Error::other)?
}

/// Moves this thread into a network namespace, which is held open for that moment only.
fn enter(inode: u32) -> io::Result<()> {
    let namespace = open(inode)?.ok_or(io::ErrorKind::NotFound)?;
    // SAFETY: an open descriptor of a network namespace; only this thread moves.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn open_in(inode: u32, names: &Path, proc: &Path) -> io::Result<Option<File>> {
    let own = proc.join("self/ns/net");
    // All namespace files are on one file system, nsfs.
    let nsfs = own.metadata()?.dev();
    let is_it = |found: &Metadata| found.dev() == nsfs && found.ino() == u64::from(inode);
    let mounted = fs::read(proc.join("self/mountinfo"))?;
    let mounted = String::from_utf8_lossy(&mounted);
    let paths = std::iter::once(own)
        .chain(entries(names))
        .chain(mounted.lines().filter_map(|line| mount_point(line, inode)))
        .chain(entries(proc).filter(|path| is_process(path)).map(|path| path.join("ns/net")));
    // A path is looked at before it is opened: only nsfs files are opened.
    for path in paths.filter(|path| path.metadata().is_ok_and(|found| is_it(&found))) {
        let file = match File::open(&path) {
            Ok(file) => file,
            // The process or the mount has just gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if is_it(&file.metadata()?) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn is_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// The inode number of the namespace that a line of mountinfo mounts.
fn mounted_inode(line: &str) -> Option<u32> {
    let root = line.split(' ').nth(3)?;
    root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)) if it is the namespace with this inode: an nsfs mount's
/// root is `net:[INODE]`. A point with escaped letters is not understood.
fn mount_point(line: &str, inode: u32) -> Option<PathBuf> {
    (mounted_inode(line)? == inode).then(|| line.split(' ').nth(4).map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_namespace_is_found_by_every_way() {
        let inode = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        let found = open(inode).unwrap().unwrap();
        assert_eq!(found.metadata().unwrap().ino(), u64::from(inode));
        // Through a directory of names.
        let proc = Path::new("/proc");
        assert!(open_in(inode, Path::new("/proc/self/ns"), proc).unwrap().is_some());
        // Another kind of namespace is not taken for it, and no namespace has this number.
        assert!(open(1).unwrap().is_none());
        let reachable = reachable().unwrap();
        assert!(reachable.contains(&inode) && !reachable.contains(&1));
    }

    #[test]
    fn a_mount_names_its_namespace() {
        let line = "63 28 0:4 net:[4026532277] /run/docker/netns/3f rw shared:33 - nsfs nsfs rw";
        assert_eq!(mount_point(line, 4_026_532_277), Some(PathBuf::from("/run/docker/netns/3f")));
        assert_eq!(mount_point(line, 4_026_532_278), None);
        assert_eq!(mount_point("63 28 0:4 mnt:[5] /x rw - nsfs nsfs rw", 5), None);
        assert_eq!(mount_point("", 5), None);
    }
}
