//! Debian's and Ubuntu's packages: which there are, and installing them.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result};

use crate::process;

/// Whether this machine installs its software with apt.
pub(crate) fn is_here() -> bool {
    process::find_program("apt-get").is_some() && process::find_program("dpkg").is_some()
}

/// Rereads what the machine's sources have. A source that cannot be read is left out, as apt does.
pub(crate) fn update() -> Result<()> {
    process::output(apt_get().args(["-qq", "update"])).map(|_quiet| ())
}

/// Those of `names` that the machine's sources, as last read, have.
pub(crate) fn available(names: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    if names.is_empty() {
        return Ok(BTreeSet::new());
    }
    let policy = process::output(Command::new("apt-cache").arg("policy").args(names).env("LC_ALL", "C"))?;
    Ok(with_candidate(&policy))
}

/// Installs packages without recommended ones, and without removing any of the machine's.
pub(crate) fn install(packages: &BTreeSet<String>) -> Result<()> {
    process::output(
        apt_get()
            .args(["-qq", "install", "--yes", "--no-install-recommends", "--no-remove"])
            .args(["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"])
            .args(packages),
    )
    .map(|_quiet| ())
    .context("the packages cannot be installed")
}

/// What a person types to have them.
pub(crate) fn install_command(packages: &BTreeSet<String>) -> String {
    let names = packages.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    format!("sudo apt-get update && sudo apt-get install --no-install-recommends {names}")
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_MODE", "l");
    apt
}

/// The packages of `apt-cache policy` that have a version to install.
fn with_candidate(policy: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut package = None;
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = Some(name);
        } else if let Some(version) = line.trim().strip_prefix("Candidate: ")
            && version != "(none)"
        {
            found.extend(package.map(str::to_owned));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_is_not_available() {
        let policy = "\
rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
        500 http://mirror.example/debian-security bookworm-security/main amd64 Packages
bpftool:
  Installed: (none)
  Candidate: (none)
  Version table:
nftables:
  Installed: 1.0.6-2
  Candidate: 1.0.6-2
";
        assert_eq!(with_candidate(policy), BTreeSet::from(["rustc-web".into(), "nftables".into()]));
    }
}
