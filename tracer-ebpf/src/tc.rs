//! What was on the tc hook where a packet was dropped.
//!
//! The drop does not say which of several programs and filters gave the verdict, but they are read here, in the same
//! moment, so that a program that is replaced or gone later is still named. A program's id is not used again.

use crate::{
    maps::{Scratch, control, has, scratch, skb_field},
    memory::{copy, is_kernel_address, read},
};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{
    ABSENT, Control, TC_FILTERS, TcFilter, TcLayout, attribution_kind, attribution_word, tc_word,
};

/// Programs, classifiers, and programs of a classifier that are looked at.
const MOST: usize = 8;
/// tcf_proto_ops.kind of BPF programs (net/sched/cls_bpf.c).
const BPF: u32 = u32::from_ne_bytes(*b"bpf\0");

/// Which tc hook dropped a packet.
#[derive(Clone, Copy)]
pub enum Hook {
    /// None.
    None,
    Ingress,
    Egress,
    /// The programs of a netkit device, which are at no tc hook.
    Netkit,
}

/// The hook, and whether the drop reason says so.
///
/// # Safety
/// The pointers must be map values.
#[inline(always)]
pub unsafe fn hook(control: *const Control, scratch: *const Scratch) -> (Hook, bool) {
    // SAFETY: map values.
    unsafe {
        let layout = &raw const (*control).tc;
        let (reason, location) = ((*scratch).key.reason, (*scratch).key.location);
        if reason == (*layout).reason_ingress {
            (Hook::Ingress, true)
        } else if reason == (*layout).reason_egress {
            (Hook::Egress, true)
        } else if (*layout).receive.has_return(location) {
            (Hook::Ingress, false)
        } else if (*layout).transmit.has_return(location) {
            (Hook::Egress, false)
        } else if (*layout).netkit.has_return(location) {
            (Hook::Netkit, false)
        } else {
            (Hook::None, false)
        }
    }
}

/// Step: lists what is on the hook, and puts the programs into the key.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attribute_tc(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let layout = &raw const (*control).tc;
        let (hook, by_reason) = hook(control, scratch);
        let (entry, miniq, egress) = match hook {
            Hook::None => return 0,
            Hook::Netkit => return attribute_netkit(index),
            Hook::Ingress => ((*layout).entry_ingress, (*layout).miniq_ingress, 0),
            Hook::Egress => ((*layout).entry_egress, (*layout).miniq_egress, tc_word::EGRESS),
        };
        if !has!(skb_dev) {
            return 0;
        }
        let device = skb_field!(scratch, skb_dev, u64);
        write_volatile(&raw mut (*scratch).filters, 0);
        write_volatile(&raw mut (*scratch).faults, 0);
        let mut qdisc = field(device, miniq);
        if entry != ABSENT {
            let entry = field(device, entry);
            list_entry(scratch, layout, entry);
            let bundle = field(entry, (*layout).entry_parent);
            if bundle != 0 && (*layout).miniq_before_bundle != ABSENT {
                qdisc = field(bundle - (*layout).miniq_before_bundle as u64, 0);
            }
        }
        write_volatile(&raw mut (*scratch).filter, field(qdisc, (*layout).miniq_filters));
        list_filters(index);
        let count = read_volatile(&raw const (*scratch).filters);
        if count == 0 && !by_reason {
            // The function frees packets for other reasons, too.
            return 0;
        }
        let by_reason = if by_reason { tc_word::BY_REASON } else { 0 };
        let faults = read_volatile(&raw const (*scratch).faults);
        let count = if count > tc_word::COUNT { tc_word::COUNT } else { count };
        (*scratch).key.attribution[1] =
            attribution_word(attribution_kind::TC, None, count | egress | by_reason | faults);
    }
    1
}

/// Step: lists the programs of the netkit device that was sending, and puts them into the key. netkit_xmit
/// (drivers/net/netkit.c) has made `skb->dev` the device that receives before it runs them. Where it gives up before, for
/// that one is not up, `skb->dev` is still the sender: then no program was run.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attribute_netkit(index: u32) -> u32 {
    /// IFF_UP (include/uapi/linux/if.h).
    const UP: u32 = 1;
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let layout = &raw const (*control).tc;
        let private = (*layout).device_private;
        if !has!(skb_dev) || private == ABSENT {
            return 0;
        }
        let device = skb_field!(scratch, skb_dev, u64);
        let sender = field(device + private as u64, (*layout).netkit_peer);
        if sender == 0 || number(sender, (*layout).device_flags) & UP == 0 {
            return 0;
        }
        write_volatile(&raw mut (*scratch).filters, 0);
        write_volatile(&raw mut (*scratch).faults, 0);
        let entry = field(sender + private as u64, (*layout).netkit_active);
        list_entry(scratch, layout, entry);
        let count = read_volatile(&raw const (*scratch).filters);
        if count == 0 {
            return 0;
        }
        let faults = read_volatile(&raw const (*scratch).faults);
        let count = if count > tc_word::COUNT { tc_word::COUNT } else { count };
        (*scratch).key.attribution[1] =
            attribution_word(attribution_kind::TC, None, count | tc_word::NETKIT | faults);
    }
    1
}

/// A pointer in a structure; 0 if there is none, or it can't be read.
#[inline(always)]
fn field(at: u64, offset: u32) -> u64 {
    if !is_kernel_address(at) || offset == ABSENT {
        return 0;
    }
    match read::<u64>(at + offset as u64) {
        Some(pointer) if is_kernel_address(pointer) => pointer,
        _ => 0,
    }
}

/// The programs of a struct bpf_mprog_entry.
#[inline(always)]
unsafe fn list_entry(scratch: *mut Scratch, layout: *const TcLayout, entry: u64) {
    // SAFETY: map values.
    unsafe {
        let items = (*layout).entry_items;
        if entry == 0 || items == ABSENT {
            return;
        }
        let mut at = 0;
        while at < MOST {
            let program = field(entry, items + 8 * at as u32);
            if program == 0 {
                return;
            }
            let id = id(layout, program);
            if id == 0 {
                note(scratch, tc_word::INCOMPLETE);
            }
            add(scratch, [id, 0, 0], 0);
            at += 1;
        }
        note(scratch, tc_word::INCOMPLETE);
    }
}

/// Step: the classifiers (struct tcf_proto) from `scratch.filter` on.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn list_filters(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let layout = &raw const (*control).tc;
        let mut at = 0;
        while at < MOST {
            let filter = read_volatile(&raw const (*scratch).filter);
            if filter == 0 {
                return 0;
            }
            list_filter(index);
            let next = field(filter, (*layout).proto_next);
            write_volatile(&raw mut (*scratch).filter, next);
            at += 1;
        }
        note(scratch, tc_word::INCOMPLETE);
    }
    0
}

/// Step: the classifier at `scratch.filter`; one of BPF programs may have several.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn list_filter(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let layout = &raw const (*control).tc;
        let filter = read_volatile(&raw const (*scratch).filter);
        let ops = field(filter, (*layout).proto_ops);
        if ops == 0 || (*layout).ops_kind == ABSENT {
            note(scratch, tc_word::INCOMPLETE);
            return 0;
        }
        let kind = ops + (*layout).ops_kind as u64;
        let priority = number(filter, (*layout).proto_priority);
        if read::<u32>(kind) != Some(BPF) {
            note(scratch, tc_word::INDIRECT);
            add(scratch, [0, priority, 0], kind);
            return 0;
        }
        let head = field(filter, (*layout).proto_root);
        if head == 0 || (*layout).bpf_list == ABSENT || (*layout).bpf_link == ABSENT {
            // Where cls_bpf's own structures are is not known.
            note(scratch, tc_word::INDIRECT);
            add(scratch, [0, priority, 0], kind);
            return 0;
        }
        let list = head + (*layout).bpf_list as u64;
        write_volatile(&raw mut (*scratch).node, field(list, 0));
        let mut at = 0;
        while at < MOST {
            let node = read_volatile(&raw const (*scratch).node);
            if node == list || node == 0 {
                return 0;
            }
            let own = node - (*layout).bpf_link as u64;
            // Classic BPF, which `tc` gives as bytecode, has no id.
            let program = id(layout, field(own, (*layout).bpf_program));
            if !is_set(own, (*layout).bpf_direct) {
                note(scratch, tc_word::INDIRECT);
            }
            add(scratch, [program, priority, number(own, (*layout).bpf_handle)], kind);
            write_volatile(&raw mut (*scratch).node, field(node, 0));
            at += 1;
        }
        note(scratch, tc_word::INCOMPLETE);
    }
    0
}

#[inline(always)]
fn number(at: u64, offset: u32) -> u32 {
    if offset == ABSENT { 0 } else { read::<u32>(at + offset as u64).unwrap_or(0) }
}

#[inline(always)]
fn is_set(at: u64, offset: u32) -> bool {
    offset != ABSENT && read::<u8>(at + offset as u64).is_some_and(|byte| byte & 1 == 1)
}

#[inline(always)]
unsafe fn note(scratch: *mut Scratch, fault: u32) {
    // SAFETY: a map value.
    unsafe {
        let faults = &raw mut (*scratch).faults;
        write_volatile(faults, read_volatile(faults) | fault);
    }
}

/// The id of the program at `program` (struct bpf_prog); 0 if it has none, or can't be read.
#[inline(always)]
unsafe fn id(layout: *const TcLayout, program: u64) -> u32 {
    // SAFETY: a map value.
    unsafe {
        let aux = field(program, (*layout).program_aux);
        if aux == 0 { 0 } else { number(aux, (*layout).aux_id) }
    }
}

/// Adds a filter to the event, and the first two to the key: its program, priority and handle, and the address of its kind
/// (0: none). Field by field, for a whole one would be cleared by a call of `memset`.
#[inline(always)]
unsafe fn add(scratch: *mut Scratch, [program, priority, handle]: [u32; 3], kind: u64) {
    // SAFETY: map values, and indices within the arrays.
    unsafe {
        let count = read_volatile(&raw const (*scratch).filters);
        if (count as usize) < TC_FILTERS {
            let to = (&raw mut (*scratch).own.event.filters).cast::<TcFilter>().add(count as usize);
            write_volatile(&raw mut (*to).program, program);
            write_volatile(&raw mut (*to).priority, priority);
            write_volatile(&raw mut (*to).handle, handle);
            let words = (&raw mut (*to).kind).cast::<u32>();
            // What can't be read is cleared by the helper.
            if kind == 0 || !copy(words.cast(), size_of::<[u8; 16]>() as u32, kind) {
                write_volatile(words, 0);
            }
        }
        let ids = &raw mut (*scratch).key.attribution[0];
        match count {
            0 => write_volatile(ids, program as u64),
            1 => write_volatile(ids, read_volatile(ids) | (program as u64) << 32),
            _ => {}
        }
        write_volatile(&raw mut (*scratch).filters, count + 1);
    }
}
