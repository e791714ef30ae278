//! What a boot came to, decided from the status channel.

use std::fmt;

/// The result of one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The job ended with exit code 0.
    Passed,
    /// The job ended with this non-zero exit code.
    Failed(i32),
    /// The time ran out before the job ended.
    TimedOut,
    /// The guest went away without reporting an exit code: a panic, or init was killed.
    Died,
}

impl Verdict {
    /// Reads the status channel: the first `exit N` line is the job's exit code, which counts even when the
    /// guest then failed to power off in time.
    pub fn from_status(status: &str, timed_out: bool) -> Verdict {
        match exit_code(status) {
            Some(0) => Verdict::Passed,
            Some(code) => Verdict::Failed(code),
            None if timed_out => Verdict::TimedOut,
            None => Verdict::Died,
        }
    }

    /// The exit code of the `vm` command for this verdict.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Passed => 0,
            Verdict::Failed(_) => 1,
            Verdict::TimedOut => 124,
            Verdict::Died => 125,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Passed => f.write_str("passed"),
            Verdict::Failed(code) => write!(f, "failed (exit code {code})"),
            Verdict::TimedOut => f.write_str("timed out"),
            Verdict::Died => f.write_str("the guest died"),
        }
    }
}

/// The job's exit code, from a complete line: a guest that dies while writing leaves half of one.
pub(super) fn exit_code(status: &str) -> Option<i32> {
    status
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .find_map(|line| line.trim_end_matches('\r').strip_prefix("exit ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reported_code_decides() {
        assert_eq!(Verdict::from_status("boot 6.1\nexit 0\n", false), Verdict::Passed);
        assert_eq!(Verdict::from_status("boot 6.1\r\nexit 3\r\n", false), Verdict::Failed(3));
        assert_eq!(Verdict::from_status("boot 6.1\nexit 0\n", true), Verdict::Passed);
    }

    #[test]
    fn silence_is_death_or_timeout() {
        assert_eq!(Verdict::from_status("boot 6.1\n", false), Verdict::Died);
        assert_eq!(Verdict::from_status("", true), Verdict::TimedOut);
        // Cut off in the middle of `exit 10`.
        assert_eq!(Verdict::from_status("exit 1", false), Verdict::Died);
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [Verdict::Passed, Verdict::Failed(9), Verdict::TimedOut, Verdict::Died];
        assert_eq!(codes.map(Verdict::exit_code), [0, 1, 124, 125]);
    }
}
