//! Programs and filters at tc hooks: what the kernel half notes of them when a packet is dropped there.

use crate::{ABSENT, TextRange};
use core::mem::size_of;

/// Filters of a hook that an event lists; more are only counted.
pub const TC_FILTERS: usize = 4;

/// A filter at a tc hook, as it was when the packet was dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcFilter {
    /// Id of the BPF program, as `bpftool prog` shows it; 0: a classifier of another kind, classic BPF, or a program that
    /// could not be read.
    pub program: u32,
    /// tcf_proto.prio (include/net/sch_generic.h): `tc`'s preference in the upper 16 bits. 0 for a tcx program.
    pub priority: u32,
    /// cls_bpf_prog.handle (net/sched/cls_bpf.c); 0 where there is none.
    pub handle: u32,
    /// tcf_proto_ops.kind, NUL-padded: `bpf`, `u32`, `flower` ... All zero for a tcx program. Not trusted.
    pub kind: [u8; 16],
}

/// The low 32 bits of the second attribution word of a drop at a tc hook
/// ([`attribution_kind::TC`](crate::attribution_kind::TC)).
pub mod tc_word {
    /// Filters on that hook, at most this: a bit field.
    pub const COUNT: u32 = 0xff;
    /// The hook is egress, not ingress.
    pub const EGRESS: u32 = 1 << 8;
    /// The drop reason says that it was dropped there. Without (kernels that have no reasons), the function that freed it does
    /// so for other reasons, too.
    pub const BY_REASON: u32 = 1 << 9;
    /// Not all filters could be read.
    pub const INCOMPLETE: u32 = 1 << 10;
    /// A filter doesn't give its verdict itself, as tcx programs and those with `direct-action` do: its actions may go on to
    /// the filters of another chain, which are not looked at.
    pub const INDIRECT: u32 = 1 << 11;
    /// No tc hook, but a netkit device (drivers/net/netkit.c, from 6.7), whose programs are run as it sends.
    pub const NETKIT: u32 = 1 << 12;
}

/// Where the kernel keeps what is on tc hooks: offsets in bytes, [`ABSENT`] where this kernel has no such field.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcLayout {
    /// Text of __netif_receive_skb_core (net/core/dev.c), which frees packets that are dropped at ingress; all zero where
    /// reasons tell.
    pub receive: TextRange,
    /// Text of __dev_queue_xmit, likewise for egress.
    pub transmit: TextRange,
    /// Text of netkit_xmit (drivers/net/netkit.c), which frees what a netkit device's programs drop.
    pub netkit: TextRange,
    /// Number of the drop reason TC_INGRESS.
    pub reason_ingress: u32,
    /// Number of the drop reason TC_EGRESS.
    pub reason_egress: u32,
    /// net_device.tcx_ingress (struct bpf_mprog_entry *, from 6.6)
    pub entry_ingress: u32,
    /// net_device.tcx_egress
    pub entry_egress: u32,
    /// bpf_mprog_entry.fp_items (include/linux/bpf_mprog.h): pointers to struct bpf_prog, up to a null pointer.
    pub entry_items: u32,
    /// bpf_mprog_entry.parent: the struct bpf_mprog_bundle in a struct tcx_entry.
    pub entry_parent: u32,
    /// tcx_entry.bundle minus tcx_entry.miniq (include/net/tcx.h): how far before the bundle the mini_Qdisc is.
    pub miniq_before_bundle: u32,
    /// net_device.miniq_ingress (struct mini_Qdisc *, before 6.6)
    pub miniq_ingress: u32,
    /// net_device.miniq_egress
    pub miniq_egress: u32,
    /// mini_Qdisc.filter_list (include/net/sch_generic.h): the first struct tcf_proto.
    pub miniq_filters: u32,
    /// tcf_proto.next
    pub proto_next: u32,
    /// tcf_proto.root
    pub proto_root: u32,
    /// tcf_proto.ops
    pub proto_ops: u32,
    /// tcf_proto.prio
    pub proto_priority: u32,
    /// tcf_proto_ops.kind
    pub ops_kind: u32,
    /// cls_bpf_head.plist (net/sched/cls_bpf.c); cls_bpf may be a module that loads later.
    pub bpf_list: u32,
    /// cls_bpf_prog.link
    pub bpf_link: u32,
    /// cls_bpf_prog.filter
    pub bpf_program: u32,
    /// cls_bpf_prog.handle
    pub bpf_handle: u32,
    /// cls_bpf_prog.exts_integrated (bool)
    pub bpf_direct: u32,
    /// bpf_prog.aux
    pub program_aux: u32,
    /// bpf_prog_aux.id
    pub aux_id: u32,
    /// Where a driver's own structure begins, from the start of struct net_device (netdev_priv(),
    /// include/linux/netdevice.h).
    pub device_private: u32,
    /// net_device.flags
    pub device_flags: u32,
    /// netkit.peer (struct net_device *, drivers/net/netkit.c), in a netkit device's own structure.
    pub netkit_peer: u32,
    /// netkit.active (struct bpf_mprog_entry *)
    pub netkit_active: u32,
}

impl TcLayout {
    /// Nothing known.
    pub const NONE: Self = Self {
        receive: TextRange { start: 0, end: 0 },
        transmit: TextRange { start: 0, end: 0 },
        netkit: TextRange { start: 0, end: 0 },
        reason_ingress: ABSENT,
        reason_egress: ABSENT,
        entry_ingress: ABSENT,
        entry_egress: ABSENT,
        entry_items: ABSENT,
        entry_parent: ABSENT,
        miniq_before_bundle: ABSENT,
        miniq_ingress: ABSENT,
        miniq_egress: ABSENT,
        miniq_filters: ABSENT,
        proto_next: ABSENT,
        proto_root: ABSENT,
        proto_ops: ABSENT,
        proto_priority: ABSENT,
        ops_kind: ABSENT,
        bpf_list: ABSENT,
        bpf_link: ABSENT,
        bpf_program: ABSENT,
        bpf_handle: ABSENT,
        bpf_direct: ABSENT,
        program_aux: ABSENT,
        aux_id: ABSENT,
        device_private: ABSENT,
        device_flags: ABSENT,
        netkit_peer: ABSENT,
        netkit_active: ABSENT,
    };
}

impl Default for TcLayout {
    fn default() -> Self {
        Self::NONE
    }
}

const _: () = assert!(size_of::<TcFilter>() == 28);
const _: () = assert!(size_of::<TcLayout>() == 48 + 4 * 26);
