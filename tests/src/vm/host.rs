//! The host's programs that go into the guest, and the libraries they need.

use std::{
    collections::BTreeSet,
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Error,
    command::{output_of, stdout_of},
    error::IoContext,
};

/// What the guest gets, with the Debian package that has it.
pub(super) const GUEST_PROGRAMS: [(&str, &str); 32] = [
    ("dash", "dash"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ss", "iproute2"),
    ("bridge", "iproute2"),
    ("iptables-legacy", "iptables"),
    ("iptables-legacy-save", "iptables"),
    ("iptables-legacy-restore", "iptables"),
    ("ip6tables-legacy", "iptables"),
    ("ip6tables-legacy-save", "iptables"),
    ("ip6tables-legacy-restore", "iptables"),
    ("iptables-nft", "iptables"),
    ("iptables-nft-save", "iptables"),
    ("iptables-nft-restore", "iptables"),
    ("ip6tables-nft", "iptables"),
    ("ip6tables-nft-save", "iptables"),
    ("ip6tables-nft-restore", "iptables"),
    ("nft", "nftables"),
    ("ipset", "ipset"),
    ("conntrack", "conntrack"),
    ("ipvsadm", "ipvsadm"),
    ("ethtool", "ethtool"),
    ("tcpdump", "tcpdump"),
    ("bpftool", "bpftool"),
    ("ping", "iputils-ping"),
    ("ncat", "ncat"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("sysctl", "procps"),
    ("modprobe", "kmod"),
    ("depmod", "kmod"),
];

/// What the test bed itself runs on the host.
pub(super) const HOST_PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ldd", "libc-bin"),
    ("find", "findutils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("dpkg", "dpkg"),
];

/// Finds a program on PATH and in the folders for administrators, which a user's PATH may lack.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Makes sure that every program is there: as root on Debian it installs what is missing.
///
/// # Errors
/// [`Error::MissingPrograms`] with the command to type, when it may not or cannot install.
pub(super) fn require(programs: &[(&str, &str)]) -> Result<(), Error> {
    let missing = || programs.iter().filter(|(program, _)| find(program).is_none());
    let packages: BTreeSet<&str> = missing().map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    // SAFETY: geteuid(2) has no preconditions and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if root && find("apt-get").is_some() {
        // On a bare machine the package lists are missing.
        install(&packages).or_else(|_| {
            stdout_of(Command::new("apt-get").args(["-q", "update"]))?;
            install(&packages)
        })?;
    }
    let still: Vec<&str> = missing().map(|(program, _)| *program).collect();
    if still.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing().map(|(_, package)| *package).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    Err(Error::MissingPrograms { programs: still.join(" "), packages: packages.join(" ") })
}

fn install(packages: &BTreeSet<&str>) -> Result<(), Error> {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-y", "--no-install-recommends", "install"]).args(packages);
    stdout_of(command.env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

/// The shared libraries, the dynamic loader included, that these ELF files need; none for static ones.
pub(super) fn libraries(files: &[PathBuf]) -> Result<BTreeSet<PathBuf>, Error> {
    if files.is_empty() {
        return Ok(BTreeSet::new());
    }
    // ldd exits non-zero when one of the files is static.
    let output = output_of(Command::new("ldd").args(files).env("LC_ALL", "C"))?;
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
}

/// Reads ldd's output: `NAME => PATH (ADDRESS)`, `PATH (ADDRESS)` for the loader, and lines without a path.
fn parse_ldd(text: &str) -> Result<BTreeSet<PathBuf>, Error> {
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if let Some((name, _)) = line.split_once(" => not found") {
            return Err(Error::Unexpected(format!("the library {name} is not installed on this machine")));
        }
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        if let Some((path, _)) = target.rsplit_once(" (0x").filter(|(path, _)| path.starts_with('/')) {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// Whether the file is an ELF file, so that it may need libraries.
pub(super) fn is_elf(path: &Path) -> Result<bool, Error> {
    let mut magic = [0; 4];
    let mut file = fs::File::open(path).context("read", path)?;
    let length = file.read(&mut magic).context("read", path)?;
    Ok(&magic[..length] == b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_of_several_files() {
        let text = "/usr/bin/ip:\n\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n/usr/bin/busybox:\n\tnot a dynamic executable\n";
        let libraries: Vec<PathBuf> = parse_ldd(text).unwrap().into_iter().collect();
        assert_eq!(
            libraries,
            [Path::new("/lib/x86_64-linux-gnu/libelf.so.1"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse_ldd("\tlibgone.so.7 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libgone.so.7"));
    }
}
