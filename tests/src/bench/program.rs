//! How long a tracer's own BPF programs run, as the kernel measures it.

use anyhow::{Context, Result};
use std::{
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
};

/// BPF_ENABLE_STATS and BPF_STATS_RUN_TIME (include/uapi/linux/bpf.h).
const ENABLE_STATS: libc::c_int = 32;
const RUN_TIME: u32 = 0;

/// While it lives the kernel takes the time of every run of every BPF program, which itself costs some.
#[derive(Debug)]
pub struct Stopwatch(#[expect(dead_code, reason = "closing it ends the measuring")] OwnedFd);

impl Stopwatch {
    /// Starts it (kernel 5.8).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start() -> Result<Self> {
        let attributes = [RUN_TIME];
        // SAFETY: the attributes are 4 bytes, which the call reads; it returns a descriptor that is ours.
        unsafe {
            let size = size_of_val(&attributes);
            let fd = libc::syscall(libc::SYS_bpf, ENABLE_STATS, attributes.as_ptr(), size);
            let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
            let fd = fd.ok_or_else(io::Error::last_os_error).context("measure BPF programs")?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }
}

/// Runs of a process's programs, and the nanoseconds they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often they ran.
    pub count: u64,
    /// How long, in all.
    pub nanoseconds: u64,
}

impl Runs {
    /// Those of the programs that process `pid` holds open, so far.
    ///
    /// # Errors
    /// When its descriptors cannot be read.
    pub fn of(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/fdinfo");
        let entries = fs::read_dir(&folder).with_context(|| format!("list {folder}"))?;
        let mut runs = Self::default();
        for entry in entries.flatten() {
            // A descriptor may be closed meanwhile.
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            runs.count += field(&text, "run_cnt").unwrap_or(0);
            runs.nanoseconds += field(&text, "run_time_ns").unwrap_or(0);
        }
        Ok(runs)
    }

    /// Nanoseconds of one run, between an earlier look and this one.
    #[must_use]
    pub fn mean_since(&self, earlier: &Self) -> Option<f64> {
        let count = self.count.checked_sub(earlier.count).filter(|count| *count > 0)?;
        Some(self.nanoseconds.checked_sub(earlier.nanoseconds)? as f64 / count as f64)
    }
}

/// A field of fdinfo, `name:\tvalue` (bpf_prog_show_fdinfo, kernel/bpf/syscall.c).
fn field(fdinfo: &str, name: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{Runs, field};

    #[test]
    fn means_are_of_the_time_between() {
        let (earlier, later) = (Runs { count: 10, nanoseconds: 5000 }, Runs { count: 30, nanoseconds: 7000 });
        assert_eq!(later.mean_since(&earlier), Some(100.0));
        assert_eq!(later.mean_since(&later), None);
        assert_eq!(field("prog_type:\t2\nrun_cnt:\t17\n", "run_cnt"), Some(17));
    }
}
