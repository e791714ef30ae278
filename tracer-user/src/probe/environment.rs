//! What this process and this kernel allow. Facts are gathered first and judged then, so that every refusal can be
//! tested without the machine it is about.

use super::btf::Btf;
use super::offsets::MissingField;
use std::fmt;
use std::io;
use std::path::Path;

/// Exit code of every refusal: a missing privilege or kernel feature.
pub const EXIT_CODE: u8 = 3;

/// The oldest kernel that can do it: ring buffers, CAP_BPF and CAP_PERFMON came with 5.8.
pub(crate) const OLDEST: KernelVersion = KernelVersion { major: 5, minor: 8 };
/// The oldest kernel that droptrace is tested on.
pub(crate) const TESTED: KernelVersion = KernelVersion { major: 5, minor: 10 };
/// The first that counts BPF memory by cgroup, not by RLIMIT_MEMLOCK.
const NO_MEMLOCK: KernelVersion = KernelVersion { major: 5, minor: 11 };
/// USER_NS_INIT_INO (include/uapi/linux/nsfs.h; PROC_USER_INIT_INO before): inode of the first user namespace.
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";
/// Longest node name, in bytes (a DNS subdomain, RFC 1123).
const MAX_NODE_NAME: usize = 253;

/// Capabilities (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Implies CAP_BPF and CAP_PERFMON (`bpf_capable`, `perfmon_capable`), not CAP_SYSLOG.
    SysAdmin = 21,
    /// Raises RLIMIT_MEMLOCK.
    SysResource = 24,
    /// Shows kernel addresses.
    Syslog = 34,
    /// Lets programs read kernel memory.
    Perfmon = 38,
    /// Loads programs.
    Bpf = 39,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Syslog => "CAP_SYSLOG",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        })
    }
}

/// A set of capabilities, as in `CapEff` of /proc/self/status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    pub(crate) fn has(self, capability: Capability) -> bool {
        let bit = |capability: Capability| self.0 >> (capability as u8) & 1 != 0;
        let implied =
            matches!(capability, Capability::Bpf | Capability::Perfmon) && bit(Capability::SysAdmin);
        bit(capability) || implied
    }
}

/// The first two numbers of a kernel's release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of `6.12.117-cloud-amd64`.
    pub major: u32,
    /// 12 of it.
    pub minor: u32,
}

impl KernelVersion {
    /// Reads a release (`uname -r`).
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|character: char| !character.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self { major: next()?, minor: next()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// Effective capabilities.
    pub capabilities: Capabilities,
    /// True unless the process is in a user namespace other than the first, where capabilities don't count for BPF.
    pub initial_user_namespace: bool,
    /// /sys/kernel/btf/vmlinux is there.
    pub btf: bool,
    /// /sys/kernel/security/lockdown is `confidentiality`: programs may not read kernel memory.
    pub confidentiality: bool,
    /// kernel.kptr_restrict: 0 and 1 show addresses with CAP_SYSLOG, 2 never. `None`: unknown.
    pub kptr_restrict: Option<u8>,
    /// RLIMIT_MEMLOCK is unlimited.
    pub memlock_unlimited: bool,
}

/// Why droptrace cannot run here. Ends with [`EXIT_CODE`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The kernel is too old.
    #[error(
        "this kernel is {release}: droptrace needs Linux {OLDEST} or later (BPF ring buffers), and is tested from \
         {TESTED} on; boot a newer kernel"
    )]
    Kernel {
        /// `uname -r`, printable.
        release: String,
    },
    /// Privileges are missing.
    #[error(
        "missing {}: loading the tracing program needs {}; run it with sudo, or grant it once: \
         sudo setcap cap_bpf,cap_perfmon,cap_syslog+ep \"$(command -v droptrace)\"; in a container, add the \
         capabilities BPF, PERFMON and SYSLOG to its security context",
        list(.missing), if .missing.len() > 1 { "them" } else { "it" }
    )]
    Capabilities {
        /// Which.
        missing: Vec<Capability>,
    },
    /// It is root only in a user namespace.
    #[error(
        "this process is in a user namespace of its own (a rootless container?), where the kernel lets nobody \
         trace it; run droptrace as root of the machine itself"
    )]
    UserNamespace,
    /// No type information.
    #[error(
        "/sys/kernel/btf/vmlinux does not exist: this kernel was built without type information \
         (CONFIG_DEBUG_INFO_BTF), or /sys is not mounted here; boot a kernel that has it (Debian 11, Ubuntu 20.10, \
         RHEL 8.2, Fedora 31 and later do), or mount it: mount -t sysfs sysfs /sys"
    )]
    NoBtf,
    /// Kernel lockdown.
    #[error(
        "kernel lockdown is in confidentiality mode, in which programs may not read kernel memory; boot with \
         lockdown=integrity or without lockdown"
    )]
    Lockdown,
    /// The tracepoint, or a field without which there is nothing to say.
    #[error(
        "this kernel has no {what} that droptrace knows: {consequence}; please report it with the kernel's version"
    )]
    Layout {
        /// What is missing.
        what: &'static str,
        /// What that means.
        consequence: &'static str,
    },
}

/// What works less well than it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// Works, but nobody tried.
    #[error("Linux {0} is older than what droptrace is tested on ({TESTED})")]
    Untested(KernelVersion),
    /// No addresses for want of a capability.
    #[error(
        "no CAP_SYSLOG: places in the kernel may have no names; run droptrace with sudo, or add cap_syslog"
    )]
    NoSyslog,
    /// No addresses for anyone.
    #[error(
        "kernel.kptr_restrict is 2: places in the kernel have no names; sysctl -w kernel.kptr_restrict=1 shows them \
         to root"
    )]
    KptrRestrict,
    /// RLIMIT_MEMLOCK has to be raised before anything is loaded: [`raise_memlock`].
    #[error("Linux {0} counts BPF maps as locked memory: raising RLIMIT_MEMLOCK")]
    Memlock(KernelVersion),
}

/// Judges: what stands in the way, or else what to tell the user.
///
/// # Errors
/// The first thing that stands in the way.
pub fn check(facts: &Facts) -> Result<Vec<Note>, Refusal> {
    let kernel = KernelVersion::parse(&facts.release).filter(|kernel| *kernel >= OLDEST);
    let Some(kernel) = kernel else {
        return Err(Refusal::Kernel { release: facts.release.escape_debug().take(64).collect() });
    };
    let memlock = must_raise_memlock(facts, kernel);
    let missing = missing(facts, kernel);
    if !missing.is_empty() {
        return Err(Refusal::Capabilities { missing });
    }
    if !facts.initial_user_namespace {
        return Err(Refusal::UserNamespace);
    }
    if facts.confidentiality {
        return Err(Refusal::Lockdown);
    }
    if !facts.btf {
        return Err(Refusal::NoBtf);
    }
    let notes = [
        (kernel < TESTED, Note::Untested(kernel)),
        (memlock, Note::Memlock(kernel)),
        (!facts.capabilities.has(Capability::Syslog), Note::NoSyslog),
        (facts.kptr_restrict.is_some_and(|level| level >= 2), Note::KptrRestrict),
    ];
    Ok(notes.into_iter().filter(|(applies, _)| *applies).map(|(_, note)| note).collect())
}

fn must_raise_memlock(facts: &Facts, kernel: KernelVersion) -> bool {
    kernel < NO_MEMLOCK && !facts.memlock_unlimited
}

/// The capabilities that droptrace needs on this kernel and does not have.
pub(crate) fn missing(facts: &Facts, kernel: KernelVersion) -> Vec<Capability> {
    let memlock = must_raise_memlock(facts, kernel);
    let needed = [(Capability::Bpf, true), (Capability::Perfmon, true), (Capability::SysResource, memlock)];
    needed
        .into_iter()
        .filter(|(capability, needed)| *needed && !facts.capabilities.has(*capability))
        .map(|(capability, _)| capability)
        .collect()
}

/// Judges what BTF told: the tracepoint and the fields without which nothing can be said.
///
/// # Errors
/// The first that is missing.
pub fn check_layout(vmlinux: &Btf, missing: &[MissingField]) -> Result<(), Refusal> {
    if vmlinux.typedef_arguments("btf_trace_kfree_skb").is_none() {
        let consequence = "without it droptrace cannot see drops (CONFIG_TRACEPOINTS is off?)";
        return Err(Refusal::Layout { what: "tracepoint skb:kfree_skb", consequence });
    }
    match missing.iter().find(|field| field.essential) {
        Some(field) => Err(Refusal::Layout { what: field.what, consequence: field.consequence }),
        None => Ok(()),
    }
}

impl Facts {
    /// Looks around.
    ///
    /// # Errors
    /// If /proc cannot be read. What is unknown otherwise counts as allowed: the kernel has the last word.
    pub fn gather() -> io::Result<Self> {
        Self::gather_from(Path::new("/proc"), Path::new("/sys"))
    }

    /// As [`Self::gather`], with other mount points.
    ///
    /// # Errors
    /// Likewise.
    pub fn gather_from(proc: &Path, sys: &Path) -> io::Result<Self> {
        let text = |path: &Path| std::fs::read_to_string(path).ok();
        let status = std::fs::read_to_string(proc.join("self/status"))?;
        let capabilities = parse_capabilities(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no CapEff"))?;
        let namespace = std::fs::read_link(proc.join("self/ns/user")).ok();
        let lockdown = text(&sys.join("kernel/security/lockdown"));
        let kptr_restrict = text(&proc.join("sys/kernel/kptr_restrict"));
        Ok(Self {
            release: std::fs::read_to_string(proc.join("sys/kernel/osrelease"))?.trim().to_owned(),
            capabilities,
            initial_user_namespace: namespace.is_none_or(|link| link == Path::new(INITIAL_USER_NAMESPACE)),
            btf: sys.join("kernel/btf/vmlinux").exists(),
            confidentiality: lockdown.is_some_and(|modes| modes.contains("[confidentiality]")),
            kptr_restrict: kptr_restrict.and_then(|level| level.trim().parse().ok()),
            memlock_unlimited: memlock_limit().is_ok_and(|limit| limit.rlim_cur == libc::RLIM_INFINITY),
        })
    }
}

/// `CapEff` of /proc/PID/status (proc_pid_status(5)).
fn parse_capabilities(status: &str) -> Option<Capabilities> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok().map(Capabilities)
}

fn memlock_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit to write to.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

/// Lifts RLIMIT_MEMLOCK: for [`Note::Memlock`].
///
/// # Errors
/// If the system refuses.
pub fn raise_memlock() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The node's name: NODE_NAME (which a DaemonSet sets from `spec.nodeName`), else the host's name, else `localhost`.
#[must_use]
pub fn node_name() -> String {
    let from_environment = std::env::var("NODE_NAME").ok();
    let from_host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_environment
        .and_then(|name| clean_node_name(&name))
        .or_else(|| clean_node_name(&from_host()?))
        .unwrap_or_else(|| "localhost".to_owned())
}

/// A name fit for printing; `None` if nothing is left of it.
fn clean_node_name(name: &str) -> Option<String> {
    let name: String = name.trim().chars().filter(char::is_ascii_graphic).take(MAX_NODE_NAME).collect();
    (!name.is_empty()).then_some(name)
}

/// The id of this boot (random(4)): monotonic times of one boot are comparable.
///
/// # Errors
/// If /proc cannot be read.
pub fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().chars().filter(char::is_ascii_graphic).take(64).collect())
}

pub(crate) fn list(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    names.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A machine on which all is well.
    fn facts() -> Facts {
        Facts {
            release: "6.12.117-cloud-amd64".to_owned(),
            capabilities: Capabilities(0x1ff_ffff_ffff),
            initial_user_namespace: true,
            btf: true,
            confidentiality: false,
            kptr_restrict: Some(0),
            memlock_unlimited: false,
        }
    }

    fn only(capabilities: &[Capability]) -> Capabilities {
        Capabilities(capabilities.iter().fold(0, |set, capability| set | 1 << (*capability as u8)))
    }

    #[test]
    fn root_on_a_new_kernel_may() {
        assert_eq!(check(&facts()), Ok(vec![]));
        let capabilities = only(&[Capability::Bpf, Capability::Perfmon, Capability::Syslog]);
        assert_eq!(check(&Facts { capabilities, ..facts() }), Ok(vec![]));
    }

    #[test]
    fn names_the_missing_capability_and_the_fix() {
        let message = |capabilities: &[Capability]| {
            let refusal = check(&Facts { capabilities: only(capabilities), ..facts() }).unwrap_err();
            assert!(refusal.to_string().contains("sudo setcap"), "{refusal}");
            refusal.to_string()
        };
        assert!(message(&[]).starts_with("missing CAP_BPF and CAP_PERFMON: "));
        assert!(message(&[Capability::Bpf]).starts_with("missing CAP_PERFMON: "));
        assert!(message(&[Capability::Perfmon, Capability::Syslog]).starts_with("missing CAP_BPF: "));
        let admin = Facts { capabilities: only(&[Capability::SysAdmin]), ..facts() };
        assert_eq!(
            check(&admin),
            Ok(vec![Note::NoSyslog]),
            "CAP_SYS_ADMIN implies the others, not CAP_SYSLOG"
        );
    }

    #[test]
    fn old_kernels() {
        let with = |release: &str| check(&Facts { release: release.to_owned(), ..facts() });
        for old in ["4.19.0-27-amd64", "5.7.19", "3.10.0-1160.el7", "", "Darwin", "6"] {
            assert!(matches!(with(old), Err(Refusal::Kernel { .. })), "{old}");
        }
        let version = |major, minor| KernelVersion { major, minor };
        assert_eq!(with("5.8.0"), Ok(vec![Note::Untested(version(5, 8)), Note::Memlock(version(5, 8))]));
        assert_eq!(with("5.10.0-36-cloud-amd64"), Ok(vec![Note::Memlock(version(5, 10))]));
        for new in ["5.11.0", "6.1.0-39", "7.2.13+deb14-cloud-amd64", "10.0"] {
            assert_eq!(with(new), Ok(vec![]), "{new}");
        }
        let hostile = with("4.0\x1b[31m").unwrap_err().to_string();
        assert!(hostile.contains("4.0\\u{1b}[31m") && !hostile.contains('\x1b'), "{hostile}");
    }

    #[test]
    fn before_5_11_locked_memory_counts() {
        let capabilities = only(&[Capability::Bpf, Capability::Perfmon, Capability::Syslog]);
        let old = Facts { release: "5.10.0".to_owned(), capabilities, ..facts() };
        assert_eq!(check(&old), Err(Refusal::Capabilities { missing: vec![Capability::SysResource] }));
        assert_eq!(check(&Facts { memlock_unlimited: true, ..old }), Ok(vec![]));
    }

    #[test]
    fn other_obstacles_in_order() {
        let all = Facts { initial_user_namespace: false, confidentiality: true, btf: false, ..facts() };
        assert_eq!(check(&all), Err(Refusal::UserNamespace));
        let all = Facts { initial_user_namespace: true, ..all };
        assert_eq!(check(&all), Err(Refusal::Lockdown));
        let all = Facts { confidentiality: false, ..all };
        assert_eq!(check(&all), Err(Refusal::NoBtf));
        assert!(Refusal::NoBtf.to_string().contains("CONFIG_DEBUG_INFO_BTF"));
        assert_eq!(check(&Facts { kptr_restrict: Some(2), ..facts() }), Ok(vec![Note::KptrRestrict]));
    }

    #[test]
    fn layouts_without_the_tracepoint_or_a_field() {
        let mut builder = super::super::btf::synthetic::Builder::new();
        assert!(matches!(check_layout(&builder.build(), &[]), Err(Refusal::Layout { .. })));
        let proto = builder.proto(&[("", 0)]);
        let pointer = builder.pointer(proto);
        builder.typedef("btf_trace_kfree_skb", pointer);
        let btf = builder.build();
        assert_eq!(check_layout(&btf, &[]), Ok(()));
        let mut field = MissingField { what: "sk_buff.mark", consequence: "no marks", essential: false };
        assert_eq!(check_layout(&btf, &[field]), Ok(()));
        field.essential = true;
        let message = check_layout(&btf, &[field]).unwrap_err().to_string();
        assert!(message.starts_with("this kernel has no sk_buff.mark "), "{message}");
    }

    #[test]
    fn gathers_from_files() {
        let root = std::env::temp_dir().join(format!("droptrace-facts-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path: PathBuf = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(Facts::gather_from(&root, &root).is_err());
        write("proc/self/status", "Name:\tx\nCapInh:\t0\nCapEff:\t000000c000000000\n");
        write("proc/sys/kernel/osrelease", "5.10.0-36-cloud-amd64\n");
        write("proc/sys/kernel/kptr_restrict", "1\n");
        write("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
        std::fs::create_dir_all(root.join("proc/self/ns")).unwrap();
        std::os::unix::fs::symlink("user:[4026532000]", root.join("proc/self/ns/user")).unwrap();
        let facts = Facts::gather_from(&root.join("proc"), &root.join("sys")).unwrap();
        let expected = Facts {
            release: "5.10.0-36-cloud-amd64".to_owned(),
            capabilities: only(&[Capability::Bpf, Capability::Perfmon]),
            initial_user_namespace: false,
            btf: false,
            confidentiality: true,
            kptr_restrict: Some(1),
            memlock_unlimited: facts.memlock_unlimited,
        };
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(facts, expected);
    }

    #[test]
    fn this_machine() {
        let facts = Facts::gather().unwrap();
        assert!(KernelVersion::parse(&facts.release).is_some_and(|kernel| kernel.major >= 4));
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(!node_name().is_empty());
    }

    #[test]
    fn node_names_are_fit_for_printing() {
        assert_eq!(clean_node_name("n1.example\n").as_deref(), Some("n1.example"));
        assert_eq!(clean_node_name(" a\x1b[0m b"), Some("a[0mb".to_owned()));
        assert_eq!(clean_node_name(" \n"), None);
        assert_eq!(clean_node_name(&"n".repeat(1000)).map(|name| name.len()), Some(MAX_NODE_NAME));
    }
}
