//! The suites of Debian and Ubuntu whose kernels we test on.

use std::{fmt, str::FromStr};

/// A suite; each stands for the kernel that its metapackage depends on today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 11, kernel 5.10: no drop reasons, no module BTF.
    Bullseye,
    /// Ubuntu 22.04, kernel 5.15: the last that frees nft's packets in nf_hook_slow, and has module BTF.
    Jammy,
    /// Debian 12, kernel 6.1.
    Bookworm,
    /// Debian 13, kernel 6.12.
    Trixie,
    /// Debian unstable: the newest kernel.
    Sid,
}

impl Suite {
    /// Every suite, oldest kernel first.
    pub const ALL: [Suite; 5] = [Suite::Bullseye, Suite::Jammy, Suite::Bookworm, Suite::Trixie, Suite::Sid];

    /// The suite's name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Bullseye => "bullseye",
            Suite::Jammy => "jammy",
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
            Suite::Sid => "sid",
        }
    }

    /// Whether it is one of Debian's.
    pub fn is_debian(self) -> bool {
        self != Suite::Jammy
    }

    /// The metapackage whose dependencies are the suite's current kernel.
    pub(super) fn metapackage(self) -> &'static str {
        if self.is_debian() { "linux-image-cloud-amd64" } else { "linux-image-generic" }
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
