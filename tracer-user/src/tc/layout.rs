//! Where the running kernel keeps what is on tc hooks, from its BTF. What a field is for stands at
//! [`tracer_common::TcLayout`].

use crate::probe::btf::Btf;
use tracer_common::{ABSENT, TcLayout, TextRange};

/// From the BTF of vmlinux, and of cls_bpf and netkit where they are modules that are loaded; the number of a drop reason by
/// its name. The functions are left out.
#[must_use]
pub fn resolve(
    vmlinux: &Btf,
    cls_bpf: Option<&Btf>,
    netkit: Option<&Btf>,
    reason: impl Fn(&str) -> Option<u32>,
) -> TcLayout {
    let at = |container, path| vmlinux.offset_of(container, path).unwrap_or(ABSENT);
    let of_bpf = |container, path| cls_bpf.unwrap_or(vmlinux).offset_of(container, path).unwrap_or(ABSENT);
    let of_netkit = |path| netkit.unwrap_or(vmlinux).offset_of("netkit", path).unwrap_or(ABSENT);
    let before = vmlinux.offset_of("tcx_entry", "bundle").zip(vmlinux.offset_of("tcx_entry", "miniq"));
    let layout = TcLayout {
        receive: TextRange::default(),
        transmit: TextRange::default(),
        netkit: TextRange::default(),
        reason_ingress: reason("TC_INGRESS").unwrap_or(ABSENT),
        reason_egress: reason("TC_EGRESS").unwrap_or(ABSENT),
        entry_ingress: at("net_device", "tcx_ingress"),
        entry_egress: at("net_device", "tcx_egress"),
        entry_items: at("bpf_mprog_entry", "fp_items"),
        entry_parent: at("bpf_mprog_entry", "parent"),
        miniq_before_bundle: before.and_then(|(bundle, miniq)| bundle.checked_sub(miniq)).unwrap_or(ABSENT),
        miniq_ingress: at("net_device", "miniq_ingress"),
        miniq_egress: at("net_device", "miniq_egress"),
        miniq_filters: at("mini_Qdisc", "filter_list"),
        proto_next: at("tcf_proto", "next"),
        proto_root: at("tcf_proto", "root"),
        proto_ops: at("tcf_proto", "ops"),
        proto_priority: at("tcf_proto", "prio"),
        ops_kind: at("tcf_proto_ops", "kind"),
        bpf_list: of_bpf("cls_bpf_head", "plist"),
        bpf_link: of_bpf("cls_bpf_prog", "link"),
        bpf_program: of_bpf("cls_bpf_prog", "filter"),
        bpf_handle: of_bpf("cls_bpf_prog", "handle"),
        bpf_direct: of_bpf("cls_bpf_prog", "exts_integrated"),
        program_aux: at("bpf_prog", "aux"),
        aux_id: at("bpf_prog_aux", "id"),
        device_private: private(vmlinux),
        device_flags: at("net_device", "flags"),
        netkit_peer: of_netkit("peer"),
        netkit_active: of_netkit("active"),
    };
    if lists_all(&layout) { layout } else { TcLayout::NONE }
}

/// Where netdev_priv() of include/linux/netdevice.h leads: the flexible array at the end of struct net_device (from 6.11), before
/// it had a name the first multiple of NETDEV_ALIGN behind the structure.
fn private(vmlinux: &Btf) -> u32 {
    const NETDEV_ALIGN: u32 = 32;
    let behind = || vmlinux.size_of("net_device")?.checked_next_multiple_of(NETDEV_ALIGN);
    vmlinux.offset_of("net_device", "priv").or_else(behind).unwrap_or(ABSENT)
}

/// True if nothing on a hook can be overlooked for want of a field: else one of several would look like the only one.
fn lists_all(layout: &TcLayout) -> bool {
    let has = |fields: &[u32]| fields.iter().all(|field| *field != ABSENT);
    let classic =
        [layout.miniq_filters, layout.proto_next, layout.proto_root, layout.proto_ops, layout.ops_kind];
    let places = if layout.entry_ingress == ABSENT && layout.entry_egress == ABSENT {
        has(&[layout.miniq_ingress, layout.miniq_egress])
    } else {
        let tcx = [layout.entry_items, layout.entry_parent, layout.miniq_before_bundle];
        has(&[layout.entry_ingress, layout.entry_egress]) && has(&tcx)
    };
    places && has(&classic) && has(&[layout.program_aux, layout.aux_id])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_less_is_nothing_known() {
        let old = TcLayout {
            miniq_ingress: 1,
            miniq_egress: 1,
            miniq_filters: 1,
            proto_next: 1,
            proto_root: 1,
            proto_ops: 1,
            ops_kind: 1,
            program_aux: 1,
            aux_id: 1,
            ..TcLayout::NONE
        };
        let tcx = TcLayout {
            entry_ingress: 1,
            entry_egress: 1,
            entry_items: 1,
            entry_parent: 1,
            miniq_before_bundle: 1,
            miniq_ingress: ABSENT,
            miniq_egress: ABSENT,
            ..old
        };
        assert!(lists_all(&old) && lists_all(&tcx));
        let lacking = [
            TcLayout { proto_next: ABSENT, ..old },
            TcLayout { miniq_egress: ABSENT, ..old },
            TcLayout { entry_items: ABSENT, ..tcx },
            TcLayout { miniq_before_bundle: ABSENT, ..tcx },
            TcLayout { entry_egress: ABSENT, ..tcx },
            TcLayout::NONE,
        ];
        assert!(!lacking.iter().any(lists_all));
    }
}
