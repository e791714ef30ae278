//! One dropped packet, from the tracepoint to its count and its event.

use crate::{
    counts, emit, filter, hooked,
    level::Run,
    maps::{CONTROL, CPUS, SCRATCH, Scratch, has, offset, skb_field},
    memory::{copy, read},
    netns, nft, packet, path, probes, roles, stack, tc, watch,
};
use aya_ebpf::{EbpfContext, programs::BtfTracePointContext};
use aya_log_ebpf::{debug, warn};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{Control, CpuState, FlowKey, Layout, Offsets, attribution_kind, attribution_word, place};

/// Counts the packet, and sends a full event if it is its turn.
#[inline(always)]
pub fn on_kfree_skb(ctx: &BtfTracePointContext) {
    let Some(run) = Run::begin() else { return };
    // SAFETY: map values; this level of this CPU is ours until the run ends.
    unsafe {
        if let Some(state) = CPUS.get_ptr_mut(run.index()) {
            (*state).seen += 1;
            if run.is_too_deep {
                (*state).too_deep += 1;
                counts::overflow(state, run.cpu, run.level, 1);
            } else {
                on_drop(ctx, state, run.index());
            }
        }
    }
    run.end();
}

/// The steps of one drop; `index` is that of the working memory.
#[inline(always)]
unsafe fn on_drop(ctx: &BtfTracePointContext, state: *mut CpuState, index: u32) {
    let (Some(scratch), Some(control)) = (SCRATCH.get_ptr_mut(index), CONTROL.get_ptr(0)) else { return };
    // SAFETY: map values; this level of this CPU is ours until we return.
    unsafe {
        // The tracepoint's arguments (include/trace/events/skb.h): skb, location, reason (5.17), rx_sk (6.11).
        // Typed pointers become plain numbers in the working memory: most of what is done with them is arithmetic
        // that the verifier refuses on pointers.
        write_volatile(&raw mut (*scratch).packet, ctx.arg::<u64>(0));
        write_volatile(&raw mut (*scratch).context, ctx.as_ptr() as u64);
        if offset!(arg_rx_sk) == 3 {
            write_volatile(&raw mut (*scratch).receiving_socket, ctx.arg::<u64>(3));
        }
        clear(&raw mut (*scratch).key);
        (*scratch).key.location = ctx.arg(1);
        if offset!(arg_reason) == 2 {
            (*scratch).key.reason = ctx.arg::<u64>(2) as u32;
        }

        if !read_packet(scratch) {
            (*state).unreadable += 1;
            warn!(ctx, "the sk_buff at {:x} can't be read", read_volatile(&raw const (*scratch).packet));
            counts::overflow(state, index / Layout::LEVELS, index % Layout::LEVELS, 1);
            return;
        }
        packet::parse_packet(index);
        (*scratch).state = 0;
        (*scratch).state_inode = 0;
        write_volatile(&raw mut (*scratch).hooked[0], 0);
        let netfilter = stack::is_netfilter(control, (*scratch).key.location);
        if netfilter {
            roles::find_role(index);
        }
        let is_noted = netfilter && (*control).has_probes != 0 && probes::take_note(index) != 0;
        if netfilter && !is_noted && stack::find_hook_state(index) == 0 {
            let found = stack::search_hook_state(index);
            debug!(
                ctx,
                "hook state of the call site {:x} searched, found: {}",
                (*scratch).key.location,
                found
            );
        }
        if !netns::of_hook(scratch) {
            netns::find_netns(index);
        }
        if (*scratch).key.netns == 0
            && (*control).own_netns != 0
            && netns::own_process() == (*control).own_process
        {
            // A netlink message of the self-test; they have no netns (nfnetlink_rcv_batch frees one on 6.1).
            (*scratch).key.netns = (*control).own_netns;
        }
        if netfilter {
            (*scratch).key.attribution[1] = attribution_word(attribution_kind::NONE, stack::hook(scratch), 0);
            if stack::is_hook_loop(control, (*scratch).key.location) {
                watch::attribute_counted(index);
                hooked::attribute_hook(index);
            } else {
                nft::attribute_nft(index);
            }
            if is_noted {
                probes::attribute_note(index);
            }
        } else if !matches!(tc::hook(control, scratch).0, tc::Hook::None) {
            tc::attribute_tc(index);
        }
        let is_wanted = !filter::is_active() || filter::passes_filter(index) != 0;
        let is_followed = path::is_tracing() && path::recognise(index, is_wanted as u32) != 0;
        if !is_wanted && !is_followed && !is_own(control, scratch) {
            (*state).filtered += 1;
            return;
        }

        let slot = counts::count_drop(index);
        let turn = emit::turn(control, state, slot);
        if matches!(turn, emit::Turn::Silent) && !is_own(control, scratch) && !is_followed {
            return;
        }
        if (*scratch).state == 0 && stack::is_hook_loop(control, (*scratch).key.location) {
            // No saved register led to it. The search costs more than all else, so only packets with an event have it.
            stack::search_state_on_stack(index);
        }
        if stack::is_hook_loop(control, (*scratch).key.location) {
            hooked::complete_hooked(index);
        }
        emit::fill_event(index);
        emit::take_slot(scratch, slot);
        if is_own(control, scratch) && netfilter {
            emit::add_stack(ctx, scratch);
            stack::note_leads(index);
            emit::send_own(scratch, state);
            return;
        }
        if matches!(turn, emit::Turn::First) || is_followed {
            emit::add_stack(ctx, scratch);
        }
        if is_followed {
            path::tell(index, place::DROPPED);
        }
        if !matches!(turn, emit::Turn::Silent) {
            emit::send(scratch, state);
        }
    }
}

/// True for a packet of the self-test.
#[inline(always)]
unsafe fn is_own(control: *const Control, scratch: *const Scratch) -> bool {
    // SAFETY: map values.
    unsafe { (*control).own_netns != 0 && (*control).own_netns == (*scratch).key.netns }
}

/// Copies the sk_buff into the working memory, with what is beside it; false if it can't be read.
///
/// # Safety
/// `scratch` must be a map value with the packet's address in it.
#[inline(always)]
pub unsafe fn read_packet(scratch: *mut Scratch) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let size = offset!(skb_size);
        let packet = read_volatile(&raw const (*scratch).packet);
        if size as usize > Offsets::SKB_MAX || !copy((&raw mut (*scratch).skb).cast(), size, packet) {
            return false;
        }
        (*scratch).shared_info = shared_info(scratch);
        (*scratch).segments = segments(scratch);
        true
    }
}

/// # Safety
/// `key` must be in a map value.
#[inline(always)]
pub unsafe fn clear(key: *mut FlowKey) {
    let words = key.cast::<u64>();
    let mut i = 0;
    while i < size_of::<FlowKey>() / 8 {
        // SAFETY: within the key.
        unsafe { write_volatile(words.add(i), 0) };
        i += 1;
    }
}

/// Address of `skb_shinfo(skb)`; 0 if it is not known. `end` is an offset from head on 64-bit kernels; the shared
/// info lies there (skb_end_pointer, include/linux/skbuff.h).
#[inline(always)]
unsafe fn shared_info(scratch: *const Scratch) -> u64 {
    if !has!(skb_head, skb_end) {
        return 0;
    }
    // SAFETY: a map value.
    unsafe { skb_field!(scratch, skb_head, u64) + skb_field!(scratch, skb_end, u32) as u64 }
}

/// Segments of the packet: `skb_shinfo(skb)->gso_segs`, at least 1.
#[inline(always)]
unsafe fn segments(scratch: *const Scratch) -> u64 {
    // SAFETY: a map value.
    let shared = unsafe { (*scratch).shared_info };
    if shared == 0 || !has!(shinfo_gso_segs) {
        return 1;
    }
    match read::<u16>(shared + offset!(shinfo_gso_segs) as u64) {
        Some(segments) if segments > 1 => segments as u64,
        _ => 1,
    }
}
