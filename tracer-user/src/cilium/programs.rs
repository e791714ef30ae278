//! Which programs are Cilium's.

/// Programs on a hook until 1.12, which have no prefix, and the policy of a pod until 1.17 (bpf/bpf_*.c).
const OLD: [&str; 9] = [
    "handle_xgress",
    "handle_to_container",
    "handle_policy",
    "from_netdev",
    "to_netdev",
    "from_host",
    "to_host",
    "from_overlay",
    "to_overlay",
];
/// What the names of its programs begin with from 1.13 on.
const PREFIX: &str = "cil_";
/// Letters of a name that the kernel keeps: BPF_OBJ_NAME_LEN without the NUL (include/uapi/linux/bpf.h).
const KEPT: usize = 15;

/// True for a name of Cilium's programs: whole, as in the program's BTF, or as the kernel cut it.
#[must_use]
pub fn is_ciliums(name: &str) -> bool {
    name.starts_with(PREFIX) || OLD.iter().any(|old| name == *old || old.get(..KEPT) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_new_old_and_cut() {
        let ciliums = [
            "cil_from_container",
            "cil_from_contai",
            "cil_lxc_policy",
            "cil_to_netdev",
            "handle_xgress",
            "handle_to_container",
            "handle_to_conta",
            "handle_policy",
            "from_netdev",
            "to_overlay",
        ];
        for name in ciliums {
            assert!(is_ciliums(name), "{name}");
        }
        for name in ["", "cil", "handle_to_cont", "handle_to_contai", "from_netdev2", "my_cil_program", "to"]
        {
            assert!(!is_ciliums(name), "{name}");
        }
    }
}
