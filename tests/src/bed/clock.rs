//! The wall clock, read and set.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// CLOCK_REALTIME, since 1970.
#[must_use]
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Moves CLOCK_REALTIME by so many seconds.
///
/// # Errors
/// Without CAP_SYS_TIME.
pub fn step(seconds: i64) -> Result<()> {
    let now = now();
    let time = libc::timespec {
        tv_sec: i64::try_from(now.as_secs())? + seconds,
        tv_nsec: now.subsec_nanos().into(),
    };
    // SAFETY: the argument lives through the call.
    let set = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
    ensure!(set == 0, "clock_settime: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Reads `2026-11-20T22:14:03.112345Z`, since 1970.
///
/// # Errors
/// When it is no RFC 3339 time after 1970.
pub fn parse(text: &str) -> Result<Duration> {
    let time: jiff::Timestamp = text.parse().with_context(|| format!("time {text:?}"))?;
    Duration::try_from(time.duration_since(jiff::Timestamp::UNIX_EPOCH)).context("a time before 1970")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_utc() -> Result<()> {
        assert_eq!(parse("1970-01-02T00:00:01.500000Z")?, Duration::from_millis(86_401_500));
        assert!(parse("yesterday").is_err());
        Ok(())
    }
}
