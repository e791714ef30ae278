//! The Debian suites whose kernels we test on.

use std::{fmt, str::FromStr};

/// A Debian suite; each stands for the kernel that its `linux-image-cloud-amd64` depends on today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 11, kernel 5.10: no drop reasons, no module BTF.
    Bullseye,
    /// Debian 12, kernel 6.1.
    Bookworm,
    /// Debian 13, kernel 6.12.
    Trixie,
    /// Debian unstable: the newest kernel.
    Sid,
}

impl Suite {
    /// Every suite, oldest kernel first.
    pub const ALL: [Suite; 4] = [Suite::Bullseye, Suite::Bookworm, Suite::Trixie, Suite::Sid];

    /// The suite's name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Bullseye => "bullseye",
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
            Suite::Sid => "sid",
        }
    }

    /// Whether the security archive has a `SUITE-security`; sid has none.
    pub fn has_security(self) -> bool {
        self != Suite::Sid
    }

    /// Whether the archive's dates can be relied on: sid's index expires within days, and mirrors that are
    /// frozen in time, or a machine whose clock is ahead, would fail for that alone.
    pub fn check_date(self) -> bool {
        self != Suite::Sid
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|suite| suite.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|suite| suite.name()).collect();
            format!("no such suite; one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse(), Ok(suite));
        }
        assert!("buster".parse::<Suite>().is_err());
    }
}
