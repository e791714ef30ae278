//! The programs that the tests use: they drop packets in every way there is and boot other kernels.

use std::path::Path;

use crate::process;

/// A program or file that the tests need and where Debian and Ubuntu have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool {
    /// A program's name, or a file's full path.
    pub(crate) name: &'static str,
    /// Packages that have it; the first that the machine's sources know is taken.
    pub(crate) packages: &'static [&'static str],
    /// Whether a machine that cannot have it does without.
    pub(crate) is_optional: bool,
}

impl Tool {
    const fn new(name: &'static str, packages: &'static [&'static str]) -> Self {
        Self { name, packages, is_optional: false }
    }

    const fn optional(name: &'static str, packages: &'static [&'static str]) -> Self {
        Self { name, packages, is_optional: true }
    }

    fn is_there(&self) -> bool {
        if self.name.starts_with('/') {
            Path::new(self.name).exists()
        } else {
            process::find_program(self.name).is_some()
        }
    }
}

/// For the tests in network namespaces of this kernel.
pub(crate) const NAMESPACE_TOOLS: [Tool; 20] = [
    Tool::new("ip", &["iproute2"]),
    Tool::new("iptables-legacy", &["iptables"]),
    Tool::new("iptables-nft", &["iptables"]),
    Tool::new("nft", &["nftables"]),
    Tool::new("ipset", &["ipset"]),
    Tool::new("ipvsadm", &["ipvsadm"]),
    Tool::new("conntrack", &["conntrack"]),
    Tool::new("tcpdump", &["tcpdump"]),
    Tool::new("bpftool", &["bpftool", "linux-tools-common"]),
    Tool::new("ethtool", &["ethtool"]),
    Tool::new("ping", &["iputils-ping"]),
    Tool::new("ncat", &["ncat"]),
    Tool::new("sysctl", &["procps"]),
    Tool::new("modprobe", &["kmod"]),
    // Pods: a container runtime, its network plug-ins, what runs in them.
    Tool::new("containerd", &["containerd"]),
    Tool::new("runc", &["runc"]),
    Tool::new("/usr/lib/cni/bridge", &["containernetworking-plugins"]),
    Tool::new("busybox", &["busybox-static", "busybox"]),
    // What reads recordings, too: see `duckdb`.
    Tool::optional("pip3", &["python3-pip"]),
    // Looks at what `report` makes. Ubuntu has no such package, only a stub of another name that asks for a snap.
    Tool::optional("chromium", &["chromium"]),
];

/// Services that come with packages of the tests, which start their own: installing a package must not leave one that
/// runs, now or after the machine's next start.
pub(crate) const SERVICES: [(&str, &str); 1] = [("containerd", "containerd.service")];

/// What droptrace is measured against.
pub(crate) const BENCH_TOOLS: [Tool; 1] = [Tool::new("bpftrace", &["bpftrace"])];

/// For the virtual machines.
pub(crate) const VM_TOOLS: [Tool; 7] = [
    Tool::new("qemu-system-x86_64", &["qemu-system-x86"]),
    Tool::new("dash", &["dash"]),
    Tool::new("depmod", &["kmod"]),
    Tool::new("cpio", &["cpio"]),
    Tool::new("xz", &["xz-utils"]),
    Tool::new("zstd", &["zstd"]),
    Tool::new("/usr/share/keyrings/debian-archive-keyring.gpg", &["debian-archive-keyring"]),
];

/// Those that are not there.
pub(crate) fn missing(tools: &[Tool]) -> Vec<Tool> {
    tools.iter().copied().filter(|tool| !tool.is_there()).collect()
}
