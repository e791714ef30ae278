//! Which kernel modules go into the guest, and `modules.dep`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use super::{Error, command::stdout_of, error::IoContext};

/// Where the wanted modules live, below `kernel/`: all of the network stack, and the libraries and ciphers
/// that the kernel asks for by alias (crc32c for SCTP, AES for WireGuard and ESP), which no list of
/// dependencies shows. overlay is for container runtimes.
const WANTED: [&str; 7] =
    ["net/", "drivers/net/", "lib/", "crypto/", "arch/x86/crypto/", "arch/x86/lib/", "fs/overlayfs/"];
/// Hardware that the guest does not have.
const UNWANTED: [&str; 5] = [
    "drivers/net/ethernet/",
    "drivers/net/hyperv/",
    "drivers/net/vmxnet3/",
    "drivers/net/wwan/",
    "drivers/net/xen-",
];

/// The selection's rules, for telling whether a cached base is still right.
pub(super) fn recipe() -> String {
    format!("{WANTED:?} {UNWANTED:?}\n")
}

/// Decompresses all modules below `folder` in place.
pub(super) fn decompress(folder: &Path) -> Result<(), Error> {
    for (suffix, program) in [("xz", "xz"), ("zst", "zstd"), ("gz", "gzip")] {
        let pattern = format!("*.ko.{suffix}");
        let mut command = Command::new("find");
        command.arg(folder).args(["-name", &pattern, "-exec", program, "-q", "-d"]);
        if program == "zstd" {
            command.arg("--rm");
        }
        stdout_of(command.args(["{}", "+"]))?;
    }
    Ok(())
}

/// Fills `staging/lib/modules/RELEASE` with links to the wanted modules of `tree` (the folder that has
/// `kernel/` in it) and indexes them for the guest's modprobe.
pub(super) fn stage(tree: &Path, release: &str, staging: &Path) -> Result<(), Error> {
    let dep_file = tree.join("modules.dep");
    let dependencies = parse_dependencies(&fs::read_to_string(&dep_file).context("read", &dep_file)?);
    let folder = staging.join("lib/modules").join(release);
    for module in select(&dependencies) {
        let (from, to) = (tree.join(&module), folder.join(&module));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).context("create", parent)?;
        }
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).context("copy", &from)?;
    }
    // depmod reads these to order modules and to know what is built in.
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        let from = tree.join(name);
        if from.exists() {
            fs::copy(&from, folder.join(name)).context("copy", &from)?;
        }
    }
    index(staging, release)
}

/// Runs depmod on the modules below `root/lib/modules/RELEASE`.
pub(super) fn index(root: &Path, release: &str) -> Result<(), Error> {
    stdout_of(Command::new("depmod").arg("-b").arg(root).arg(release)).map(drop)
}

/// Reads `modules.dep`: `MODULE: DEPENDENCY...`, paths relative to the folder it is in (modules.dep(5)).
fn parse_dependencies(text: &str) -> BTreeMap<String, Vec<String>> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needed)| (module.to_owned(), needed.split_whitespace().map(str::to_owned).collect()))
        .collect()
}

/// The wanted modules and all that they need.
fn select(dependencies: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let mut open: Vec<&String> = dependencies.keys().filter(|module| is_wanted(module)).collect();
    let mut selected = BTreeSet::new();
    while let Some(module) = open.pop() {
        if selected.insert(module.clone()) {
            open.extend(dependencies.get(module).into_iter().flatten());
        }
    }
    selected
}

fn is_wanted(module: &str) -> bool {
    let Some(path) = module.strip_prefix("kernel/") else { return false };
    let below = |folders: &[&str]| folders.iter().any(|folder| path.starts_with(folder));
    below(&WANTED) && !below(&UNWANTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_along_from_anywhere() {
        let dependencies = parse_dependencies(
            "kernel/net/sctp/sctp.ko: kernel/lib/libcrc32c.ko kernel/net/udp.ko\n\
             kernel/net/udp.ko:\n\
             kernel/drivers/net/tap.ko: kernel/drivers/vhost/iotlb.ko\n\
             kernel/drivers/vhost/iotlb.ko: kernel/drivers/vhost/deep.ko\n\
             kernel/drivers/vhost/deep.ko:\n\
             kernel/drivers/net/ethernet/e1000.ko:\n\
             kernel/sound/snd.ko:\n",
        );
        let selected: Vec<String> = select(&dependencies).into_iter().collect();
        assert_eq!(
            selected,
            [
                "kernel/drivers/net/tap.ko",
                "kernel/drivers/vhost/deep.ko",
                "kernel/drivers/vhost/iotlb.ko",
                "kernel/lib/libcrc32c.ko",
                "kernel/net/sctp/sctp.ko",
                "kernel/net/udp.ko",
            ]
        );
    }
}
