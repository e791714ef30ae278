//! Debian's and Ubuntu's packages: which there are, and installing them.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

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

/// The packages that the machine's sources, as last read, name with this prefix; not all need be there to install.
pub(crate) fn named(prefix: &str) -> Result<Vec<String>> {
    let names = process::output(Command::new("apt-cache").args(["pkgnames", prefix]).env("LC_ALL", "C"))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Those of `names` that the machine's sources, as last read, have.
pub(crate) fn available(names: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    if names.is_empty() {
        return Ok(BTreeSet::new());
    }
    let policy = process::output(Command::new("apt-cache").arg("policy").args(names).env("LC_ALL", "C"))?;
    Ok(with_candidate(&policy))
}

/// Installs packages without recommended ones, and without removing any of the machine's. Services that come along are
/// not started: systemctl, which their packages' scripts call, then takes the machine for one that is not running.
pub(crate) fn install(packages: &BTreeSet<String>) -> Result<()> {
    process::output(
        apt_get()
            .args(["-qq", "install", "--yes", "--no-install-recommends", "--no-remove"])
            .args(["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"])
            .args(packages)
            .env(OFFLINE.0, OFFLINE.1),
    )
    .map(|_quiet| ())
    .context("the packages cannot be installed")
}

/// Lets a service not start with the machine. One that runs is left alone.
pub(crate) fn disable(service: &str) -> Result<()> {
    if process::find_program("systemctl").is_none() {
        return Ok(());
    }
    process::output(Command::new("systemctl").args(["--quiet", "disable", service]).env(OFFLINE.0, OFFLINE.1))
        .map(|_quiet| ())
}

/// systemd's docs/ENVIRONMENT.md
const OFFLINE: (&str, &str) = ("SYSTEMD_OFFLINE", "1");

/// Those of `packages` that can be installed, and those that others would have to be removed for.
pub(crate) fn split(packages: &BTreeSet<String>) -> (BTreeSet<String>, BTreeSet<String>) {
    let fit = |names: &[&String]| {
        let simulated = apt_get()
            .args(["-qq", "--simulate", "install", "--no-install-recommends", "--no-remove"])
            .args(names)
            .output();
        // What apt cannot do at all it says best itself, when it is asked in earnest.
        simulated.is_ok_and(|simulated| {
            simulated.status.success() || !String::from_utf8_lossy(&simulated.stderr).contains(REMOVAL)
        })
    };
    if fit(&packages.iter().collect::<Vec<_>>()) {
        return (packages.clone(), BTreeSet::new());
    }
    packages.iter().cloned().partition(|name| fit(&[name]))
}

/// What apt says where `--no-remove` is in the way.
const REMOVAL: &str = "remove is disabled";

/// Fetches a package, and what it needs beyond the packages of this machine, into the folder `archives`, as if those
/// that are in its way were not here. `status` is a file for apt's view of that.
pub(crate) fn download(package: &str, status: &Path, archives: &Path) -> Result<()> {
    const INSTALLED: &str = "/var/lib/dpkg/status";
    let plan =
        process::output(apt_get().args(["--simulate", "install", "--no-install-recommends", package]))?;
    let installed = fs::read_to_string(INSTALLED).with_context(|| format!("cannot read {INSTALLED}"))?;
    fs::write(status, without(&installed, &removals(&plan)))
        .with_context(|| format!("cannot write {}", status.display()))?;
    let option = |name: &str, path: &Path, end: &str| format!("{name}={}{end}", path.display());
    process::output(
        apt_get()
            .args(["-qq", "install", "--yes", "--no-install-recommends", "--no-remove", "--download-only"])
            .args([
                "-o",
                &option("Dir::State::status", status, ""),
                "-o",
                &option("Dir::Cache::archives", archives, "/"),
            ])
            .arg(package),
    )
    .map(|_quiet| ())
    .with_context(|| format!("the package {package} cannot be fetched"))
}

/// The packages that a simulated installation would remove.
fn removals(plan: &str) -> BTreeSet<&str> {
    plan.lines().filter_map(|line| line.strip_prefix("Remv ")?.split_whitespace().next()).collect()
}

/// dpkg's list of what is installed, without some packages.
fn without(status: &str, names: &BTreeSet<&str>) -> String {
    let stays = |paragraph: &&str| {
        let name = paragraph.lines().find_map(|line| line.strip_prefix("Package: "));
        name.is_none_or(|name| !names.contains(name.trim()))
    };
    status.split_inclusive("\n\n").filter(stays).collect()
}

/// What a person types to have them.
pub(crate) fn install_command(packages: &BTreeSet<String>) -> String {
    let names = packages.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    format!("sudo apt-get update && sudo apt-get install --no-install-recommends {names}")
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_MODE", "l").env("LC_ALL", "C");
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

    #[test]
    fn what_is_in_the_way_is_left_out() {
        let plan = "NOTE: a simulation\nRemv qemu-utils [1:10.0.2]\nInst kmod (30 Debian:12 [amd64])\n";
        assert_eq!(removals(plan), BTreeSet::from(["qemu-utils"]));
        let status = "Package: a\nVersion: 1\n\nPackage: qemu-utils\nVersion: 2\n\nPackage: z\nVersion: 3\n";
        let left = without(status, &removals(plan));
        assert_eq!(left, "Package: a\nVersion: 1\n\nPackage: z\nVersion: 3\n");
    }
}
