//! One dropped packet, from the tracepoint to its count and its event.

use crate::{
    counts, emit, filter,
    maps::{CONTROL, CPUS, SCRATCH, has, offset, skb_field},
    memory::{copy, read},
    netns, packet, stack,
};
use aya_ebpf::{EbpfContext, helpers::bpf_get_smp_processor_id, programs::BtfTracePointContext};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{Control, CpuState, FlowKey, Layout, Offsets};

/// Counts the packet, and sends a full event if it is its turn.
#[inline(always)]
pub fn on_kfree_skb(ctx: &BtfTracePointContext) {
    // SAFETY: the helper has no preconditions.
    let cpu_id = unsafe { bpf_get_smp_processor_id() } as u32;
    let first = cpu_id * Layout::LEVELS;
    let (Some(cpu), Some(control)) = (CPUS.get_ptr_mut(first), CONTROL.get_ptr(0)) else { return };
    // SAFETY: map values. Only programs on this CPU write `cpu`; one that interrupts this one puts `level` back
    // before this one goes on, so plain reads and writes do.
    unsafe {
        let level = read_volatile(&raw const (*cpu).level);
        write_volatile(&raw mut (*cpu).level, level + 1);
        let own = if level < Layout::LEVELS { level } else { Layout::LEVELS - 1 };
        if let Some(state) = CPUS.get_ptr_mut(first + own) {
            (*state).seen += 1;
            if level < Layout::LEVELS {
                on_drop(ctx, control, state, cpu_id, level);
            } else {
                (*state).too_deep += 1;
                counts::overflow(control, state, cpu_id, own, 1);
            }
        }
        write_volatile(&raw mut (*cpu).level, level);
    }
}

#[inline(always)]
unsafe fn on_drop(
    ctx: &BtfTracePointContext,
    control: *const Control,
    cpu: *mut CpuState,
    cpu_id: u32,
    level: u32,
) {
    let Some(scratch) = SCRATCH.get_ptr_mut(cpu_id * Layout::LEVELS + level) else { return };
    // SAFETY: map values; this level of this CPU is ours until we return.
    unsafe {
        // The tracepoint's arguments (include/trace/events/skb.h): skb, location, reason (5.17), rx_sk (6.11).
        // Pointers pass through the scratch memory to become plain numbers: most of what is done with them
        // here is arithmetic that the verifier refuses on typed pointers.
        let pointers = &raw mut (*scratch).pointers;
        write_volatile(&raw mut (*pointers)[0], ctx.arg::<u64>(0));
        let location: u64 = ctx.arg(1);
        let reason = if offset!(arg_reason) == 2 { ctx.arg::<u64>(2) as u32 } else { 0 };
        let mut receiving_socket = 0;
        if offset!(arg_rx_sk) == 3 {
            write_volatile(&raw mut (*pointers)[1], ctx.arg::<u64>(3));
            receiving_socket = read_volatile(&raw const (*pointers)[1]);
        }
        let skb = read_volatile(&raw const (*pointers)[0]);
        write_volatile(&raw mut (*pointers)[1], ctx.as_ptr() as u64);
        let context = read_volatile(&raw const (*pointers)[1]);

        let key = &raw mut (*scratch).key;
        clear(key);
        let size = offset!(skb_size);
        if size as usize > Offsets::SKB_MAX
            || !copy((&raw mut (*scratch).skb).cast(), size, skb)
        {
            (*cpu).unreadable += 1;
            counts::overflow(control, cpu, cpu_id, level, 1);
            return;
        }

        (*key).location = location;
        (*key).reason = reason;
        let layers = packet::parse(scratch);
        let state = if stack::is_netfilter(control, location) {
            stack::hook_state(control, scratch, location, skb, context)
        } else {
            None
        };
        let state_net = match &state {
            Some(state) => (state.net, state.inode),
            None => (0, 0),
        };
        let netns = netns::of_packet(control, scratch, receiving_socket, state_net);
        (*key).netns = netns.inode;

        if !filter::passes(control, scratch, &layers, netns, state) {
            (*cpu).filtered += 1;
            return;
        }

        let segments = segments(scratch);
        let Some(counted) = counts::count(control, cpu, cpu_id, level, key, segments) else { return };
        if let Some(first) = emit::turn(control, cpu, counted.slot) {
            let packet = emit::Packet {
                skb,
                context,
                receiving_socket,
                layers,
                netns,
                state,
                segments: segments as u16,
                first,
                level,
                cpu_id,
            };
            emit::event(ctx, control, cpu, scratch, &counted, &packet);
        }
    }
}

#[inline(always)]
unsafe fn clear(key: *mut FlowKey) {
    let words = key.cast::<u64>();
    let mut i = 0;
    while i < size_of::<FlowKey>() / 8 {
        // SAFETY: within the key.
        unsafe { write_volatile(words.add(i), 0) };
        i += 1;
    }
}

/// Segments of the packet: `skb_shinfo(skb)->gso_segs`, at least 1.
#[inline(always)]
unsafe fn segments(scratch: *const crate::maps::Scratch) -> u64 {
    if !has!(skb_head, skb_end, shinfo_gso_segs) {
        return 1;
    }
    // SAFETY: a map value. `end` is an offset from head on 64-bit kernels; the shared info lies there
    // (skb_end_pointer, include/linux/skbuff.h).
    let shared = unsafe { skb_field!(scratch, skb_head, u64) + skb_field!(scratch, skb_end, u32) as u64 };
    match read::<u16>(shared + offset!(shinfo_gso_segs) as u64) {
        Some(segments) if segments > 1 => segments as u64,
        _ => 1,
    }
}
