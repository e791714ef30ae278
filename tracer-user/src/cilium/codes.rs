//! What Cilium's numbers mean: drop codes (`codes.txt`), their extended errors, source files.

use crate::event::model::Class;
use std::sync::LazyLock;

/// No policy entry allows the packet.
pub const POLICY: u8 = 133;
/// Neither IPv4, IPv6 nor ARP; IPv6 where the cluster has none.
pub const UNKNOWN_L3: u8 = 139;
/// A tail call that leads nowhere; the extended error is its slot.
const MISSED_TAIL_CALL: u8 = 140;
/// bpf_fib_lookup() failed; the extended error is what it returned.
const NO_FIB: u8 = 169;
/// A policy entry denies the packet.
pub const POLICY_DENY: u8 = 181;
/// A policy entry wants the peers to authenticate first; the extended error is how.
pub const POLICY_AUTH_REQUIRED: u8 = 189;

/// The smallest code of a drop: smaller numbers in cilium_metrics are of packets that were not dropped.
pub const FIRST: u8 = 130;

/// A drop code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Its number, positive.
    pub number: u8,
    /// What kind of drop it stands for.
    pub class: Class,
    /// Its name in the datapath, without `DROP_`.
    pub name: &'static str,
    /// What Cilium's agent says for it.
    pub text: &'static str,
}

/// The code of that number; `None` if no version known here has it.
#[must_use]
pub fn find(number: u8) -> Option<&'static Code> {
    CODES.iter().find(|code| code.number == number)
}

/// What the extended error of a code says; `None` if it has none, or nothing is known of it.
#[must_use]
pub fn extended(code: u8, error: i8) -> Option<String> {
    match (code, error) {
        (_, 0) => None,
        (MISSED_TAIL_CALL, slot) => Some(format!("tail call slot {slot}")),
        (NO_FIB, error) => Some(match usize::try_from(error).ok().and_then(|at| FIB.get(at)) {
            Some(text) => format!("bpf_fib_lookup returned {error}: {text}"),
            None => format!("bpf_fib_lookup returned {error}"),
        }),
        // pkg/policy/types/auth.go
        (POLICY_AUTH_REQUIRED, 1) => Some("authentication type 1: SPIRE".to_owned()),
        (POLICY_AUTH_REQUIRED, 2) => Some("authentication type 2: test-always-fail".to_owned()),
        (POLICY_AUTH_REQUIRED, kind) => Some(format!("authentication type {kind}")),
        _ => None,
    }
}

/// The source file that dropped. Those of programs kept their ids from 1.13 on; headers (101 and up) are numbered anew
/// now and then, so they have no name without the version (bpf/source_names_to_ids.h).
#[must_use]
pub fn file(id: u8) -> String {
    const PROGRAMS: [&str; 7] = [
        "bpf_host.c",
        "bpf_lxc.c",
        "bpf_overlay.c",
        "bpf_xdp.c",
        "bpf_sock.c",
        "bpf_network.c",
        "bpf_wireguard.c",
    ];
    match usize::from(id).checked_sub(1).and_then(|at| PROGRAMS.get(at)) {
        Some(name) => (*name).to_owned(),
        None => format!("header #{id}"),
    }
}

/// BPF_FIB_LKUP_RET_* (include/uapi/linux/bpf.h).
const FIB: [&str; 10] = [
    "success",
    "a blackhole route",
    "an unreachable route",
    "a prohibit route",
    "not forwarded",
    "forwarding is off on the interface",
    "the route needs a light-weight tunnel",
    "no neighbour entry for the next hop",
    "larger than the MTU",
    "no source address",
];

static CODES: LazyLock<Vec<Code>> =
    LazyLock::new(|| include_str!("codes.txt").lines().filter_map(entry).collect());

/// An entry of the file: `None` for a comment (and for a faulty line, of which there is none: tested).
fn entry(line: &'static str) -> Option<Code> {
    let (number, rest) = line.split_once(' ')?;
    let (class, rest) = rest.split_once(' ')?;
    let (name, text) = rest.split_once(' ')?;
    let class = match class {
        "policy" => Class::Policy,
        "error" => Class::Error,
        "resource" => Class::Resource,
        "routine" => Class::Routine,
        _ => return None,
    };
    Some(Code { number: number.parse().ok()?, class, name, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_file_is_a_code() {
        let lines: Vec<_> = include_str!("codes.txt").lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), CODES.len());
        assert!(CODES.is_sorted_by(|a, b| a.number < b.number));
        for code in &*CODES {
            assert!(code.number >= FIRST && !code.text.is_empty(), "{code:?}");
            let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            assert!(code.name.chars().all(is_name), "{code:?}");
        }
        let unused: Vec<u8> = (FIRST..=206).filter(|number| find(*number).is_none()).collect();
        assert_eq!(unused, [138, 148, 149, 152]);
    }

    #[test]
    fn the_constants_are_those_of_the_file() {
        let names = [POLICY, UNKNOWN_L3, MISSED_TAIL_CALL, NO_FIB, POLICY_DENY, POLICY_AUTH_REQUIRED]
            .map(|number| find(number).map(|code| code.name));
        assert_eq!(
            names.map(Option::unwrap),
            ["POLICY", "UNKNOWN_L3", "MISSED_TAIL_CALL", "NO_FIB", "POLICY_DENY", "POLICY_AUTH_REQUIRED"]
        );
        assert_eq!(find(POLICY).unwrap().text, "Policy denied");
        assert_eq!(find(155).unwrap().class, Class::Resource);
    }

    #[test]
    fn extended_errors_mean_something_with_their_code_only() {
        assert_eq!(extended(189, 1).as_deref(), Some("authentication type 1: SPIRE"));
        assert_eq!(extended(140, 7).as_deref(), Some("tail call slot 7"));
        assert_eq!(
            extended(169, 7).as_deref(),
            Some("bpf_fib_lookup returned 7: no neighbour entry for the next hop")
        );
        assert_eq!(extended(169, -22).as_deref(), Some("bpf_fib_lookup returned -22"));
        assert_eq!([extended(133, 1), extended(189, 0)], [None, None]);
    }

    #[test]
    fn programs_have_names_and_headers_numbers() {
        assert_eq!([1, 2, 7].map(file), ["bpf_host.c", "bpf_lxc.c", "bpf_wireguard.c"]);
        assert_eq!([0, 8, 103].map(file), ["header #0", "header #8", "header #103"]);
    }
}
