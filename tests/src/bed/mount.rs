//! Mounts, and a mount namespace of a test's own.

use anyhow::{Result, anyhow, ensure};
use std::ffi::CStr;
use std::io;

/// Runs `work` in a thread whose mounts, and those of what it starts, are its own, with an empty bpffs on /sys/fs/bpf.
///
/// # Errors
/// When it can't be mounted, or `work` fails.
pub fn with_bpffs<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let run = || {
        // SAFETY: plain system calls; unshare changes the calling thread only.
        ensure!(unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0, "unshare: {}", io::Error::last_os_error());
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
        mount(c"bpf", c"/sys/fs/bpf", c"bpf", 0)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| anyhow!("the test panicked"))?
}

/// mount(2), without data.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> Result<()> {
    // SAFETY: NUL-terminated strings, and no data.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    let error = io::Error::last_os_error();
    ensure!(result == 0, "mount {}: {error}", target.to_string_lossy());
    Ok(())
}
