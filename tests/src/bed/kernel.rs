//! What the running kernel is and has.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The Debian suite whose kernel this is, inside a virtual machine of the test matrix.
#[must_use]
pub fn suite() -> Option<String> {
    std::env::var("DROPTRACE_VM").ok().filter(|suite| !suite.is_empty())
}

/// True inside a virtual machine of the test matrix.
#[must_use]
pub fn in_vm() -> bool {
    suite().is_some()
}

/// Major and minor number of the running kernel; (0, 0) if they cannot be read.
#[must_use]
pub fn version() -> (u32, u32) {
    numbers(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()).unwrap_or((0, 0))
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// True if this kernel's BTF describes its modules' types (from 5.11).
#[must_use]
pub fn describes_modules() -> bool {
    version() >= (5, 11)
}

/// True if this kernel has the drop reason (`enum skb_drop_reason`, without its prefix).
///
/// BTF keeps every name in one table of NUL-terminated strings, so a name that is not there is in no enum.
#[must_use]
pub fn has_reason(name: &str) -> bool {
    has_name(&format!("SKB_DROP_REASON_{name}")) || has_name(&format!("QDISC_DROP_{name}"))
}

/// True if this kernel tells drop reasons at all (from 5.17).
#[must_use]
pub fn has_reasons() -> bool {
    has_name("skb_drop_reason")
}

fn has_name(name: &str) -> bool {
    // Each name is asked for often, and there are many megabytes to look through.
    static KNOWN: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(has) = known.get(name) {
        return *has;
    }
    let has = is_in_btf(name);
    known.insert(name.to_owned(), has);
    has
}

fn is_in_btf(name: &str) -> bool {
    static BTF: OnceLock<Vec<u8>> = OnceLock::new();
    let btf = BTF.get_or_init(|| std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default());
    let wanted: Vec<u8> = [&[0], name.as_bytes(), &[0]].concat();
    find(btf, &wanted)
}

/// True if `wanted`, which starts with a NUL byte, is part of `text`.
fn find(text: &[u8], wanted: &[u8]) -> bool {
    // Strings are long compared with the gaps between NUL bytes, so this compares rarely.
    text.iter().enumerate().filter(|&(_, byte)| *byte == 0).any(|(at, _)| text[at..].starts_with(wanted))
}

#[cfg(test)]
mod tests {
    use super::{find, numbers};

    #[test]
    fn releases_of_distributions_are_read() {
        assert_eq!(numbers("5.10.0-32-cloud-amd64\n"), Some((5, 10)));
        assert_eq!(numbers("7.2-rc1"), Some((7, 2)));
        assert_eq!(numbers("next"), None);
    }

    #[test]
    fn only_whole_names_are_found() {
        let table = b"\0NO_SOCKET\0PKT_TOO_SMALL\0";
        assert!(find(table, b"\0NO_SOCKET\0"));
        assert!(find(table, b"\0PKT_TOO_SMALL\0"));
        assert!(!find(table, b"\0SOCKET\0"));
        assert!(!find(table, b"\0PKT_TOO\0"));
    }
}
