//! What a process takes from the machine, as /proc tells it.

use anyhow::{Context, Result};
use std::fs;

/// CPU seconds of a process so far, in user and kernel mode (/proc/PID/stat, fields 14 and 15; proc(5)).
///
/// # Errors
/// When the process is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("look at process {pid}"))?;
    let ticks = ticks(&text).with_context(|| format!("/proc/{pid}/stat has another format"))?;
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second.max(1) as f64)
}

fn ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, may contain anything; field 3 follows the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Resident memory of a process in bytes, and the part of it that is not backed by files or shared with the kernel
/// (`VmRSS` and `RssAnon` of /proc/PID/status; proc(5)).
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("look at process {pid}"))?;
    let value =
        |name: &str| kibibytes(&text, name).with_context(|| format!("/proc/{pid}/status has no {name}"));
    Ok((value("VmRSS")? * 1024, value("RssAnon")? * 1024))
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{kibibytes, ticks};

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        assert_eq!(ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 40 2 0 0 20"), Some(42));
    }

    #[test]
    fn only_whole_names_count() {
        assert_eq!(kibibytes("VmRSSX:\t 1 kB\nVmRSS:\t   2048 kB\n", "VmRSS"), Some(2048));
    }
}
