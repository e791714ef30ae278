//! Network namespaces that a mount keeps, where ip-netns(8) keeps its own: made without that tool, for a test makes several
//! and starting a program takes an emulated machine long.

use super::link;
use super::mount::mount;
use anyhow::{Context, Result, anyhow, ensure};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where `ip netns` keeps its namespaces.
pub(super) const FOLDER: &CStr = c"/run/netns";

/// The file that stands for a namespace.
pub(super) fn path(name: &str) -> PathBuf {
    Path::new(&*FOLDER.to_string_lossy()).join(name)
}

/// Makes an empty namespace of this name, its loopback up, and runs `settle` in it.
///
/// # Errors
/// When the kernel refuses, or `settle` fails; then there is none.
pub(super) fn make(name: &str, settle: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    prepare_folder()?;
    let path = path(name);
    File::create_new(&path).with_context(|| format!("create {}", path.display()))?;
    let inside = || {
        // SAFETY: changes this thread only, which ends with this closure.
        ensure!(unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0, "unshare: {}", io::Error::last_os_error());
        let target = CString::new(path.as_os_str().as_encoded_bytes())?;
        mount(c"/proc/thread-self/ns/net", &target, c"none", libc::MS_BIND)?;
        settle()?;
        link::up("lo")
    };
    let made = std::thread::scope(|scope| scope.spawn(inside).join());
    made.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))).inspect_err(|_| {
        // Whatever there is of it by now.
        let _ = remove(name);
    })
}

/// Takes the mount away; the namespace goes with the last process, socket and device that hold it.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove(name: &str) -> Result<()> {
    let path = path(name);
    let target = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: a NUL-terminated string. What is not mounted (EINVAL) is a file that can be removed all the same.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}

/// Makes the folder once, as `ip netns add` does: a mount of its own that passes on what is mounted in it, so that
/// namespaces can be deleted from any mount namespace.
fn prepare_folder() -> Result<()> {
    static PREPARED: OnceLock<Result<(), String>> = OnceLock::new();
    let prepare = || -> Result<()> {
        fs::create_dir_all(&*FOLDER.to_string_lossy())?;
        let share = || mount(c"none", FOLDER, c"none", libc::MS_SHARED | libc::MS_REC);
        if share().is_err() {
            mount(FOLDER, FOLDER, c"none", libc::MS_BIND | libc::MS_REC)?;
            share()?;
        }
        Ok(())
    };
    let prepared = PREPARED.get_or_init(|| prepare().map_err(|error| format!("{error:#}")));
    prepared.clone().map_err(anyhow::Error::msg)
}
