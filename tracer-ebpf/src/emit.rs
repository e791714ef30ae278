//! The full event.

use crate::{
    conntrack,
    maps::{EVENTS, SLOTS, Scratch, control, has, offset, scratch, skb_field, state_field},
    memory::{copy, is_kernel_address, read},
    netns, nft, stack,
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_stack, bpf_ktime_get_ns},
    programs::BtfTracePointContext,
};
use tracer_common::{
    BELOW_WORDS, Control, CpuState, Device, Event, HEADER_BYTES, Layout, OwnEvent, WINDOW_WORDS, event_flag,
};

/// Whether a drop sends an event.
pub enum Turn {
    /// No: it is only counted.
    Silent,
    /// Yes: the first of its slot in this interval.
    First,
    /// Yes: the CPU's budget allows it.
    Another,
}

/// Whether this drop, counted in `slot`, sends an event.
///
/// # Safety
/// The pointers must be map values, `state` that of this CPU and level.
#[inline(always)]
pub unsafe fn turn(control: *const Control, state: *mut CpuState, slot: u32) -> Turn {
    let Some(slot) = SLOTS.get_ptr_mut(slot) else { return Turn::Silent };
    // SAFETY: map values.
    unsafe {
        let interval = (*control).interval;
        if (*slot).interval != interval {
            (*slot).interval = interval;
            return Turn::First;
        }
        if (*state).interval != interval {
            (*state).interval = interval;
            (*state).used = 0;
        }
        if (*state).used >= (*control).budget {
            return Turn::Silent;
        }
        (*state).used += 1;
        Turn::Another
    }
}

/// Step: puts the event together in the working memory, all but the stack and the slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fill_event(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values; every field but those of the slot is written, or its flag is not set.
    unsafe {
        let event = &raw mut (*scratch).own.event;
        let mut flags = if index % Layout::LEVELS > 0 { event_flag::NESTED } else { 0 };
        (*event).time = bpf_ktime_get_ns();
        (*event).skb = (*scratch).packet;
        (*event).key = (*scratch).key;
        (*event).net = (*scratch).netns;
        (*event).netns_cookie = if has!(net_cookie) && (*scratch).netns != 0 {
            read::<u64>((*scratch).netns + offset!(net_cookie) as u64).unwrap_or(0)
        } else {
            0
        };
        (*event).netns_source = (*scratch).netns_source as u8;
        (*event).cpu = index / Layout::LEVELS;
        (*event).gso_segments = (*scratch).segments as u16;
        (*event).gso_size = gso_size(scratch);

        (*event).length = if has!(skb_len) { skb_field!(scratch, skb_len, u32) } else { 0 };
        (*event).data_length = if has!(skb_data_len) { skb_field!(scratch, skb_data_len, u32) } else { 0 };
        (*event).mark = if has!(skb_mark) { skb_field!(scratch, skb_mark, u32) } else { 0 };
        (*event).ingress_ifindex = if has!(skb_iif) { skb_field!(scratch, skb_iif, u32) } else { 0 };
        // The lowest three bits (struct sk_buff, include/linux/skbuff.h).
        (*event).packet_type = if has!(skb_pkt_type) { skb_field!(scratch, skb_pkt_type, u8) & 7 } else { 0 };

        socket(event, scratch);
        if has!(skb_dev)
            && device(control, skb_field!(scratch, skb_dev, u64), &raw mut (*event).device)
            && (*event).device.netns == (*scratch).key.netns
        {
            flags |= event_flag::DEVICE;
        }
        (*event).hook = 0;
        (*event).family = 0;
        if has!(state_hook, state_pf) && (*scratch).state != 0 {
            flags |= event_flag::HOOK_STATE;
            (*event).hook = state_field!(scratch, state_hook, u8);
            (*event).family = state_field!(scratch, state_pf, u8);
            let (incoming, outgoing) = state_devices(scratch);
            device(control, incoming, &raw mut (*event).state_in);
            device(control, outgoing, &raw mut (*event).state_out);
        }
        let (nfct, info) = conntrack::of_packet(scratch);
        if conntrack::read_entry(control, nfct, info, &raw mut (*event).conntrack) {
            flags |= event_flag::CONNTRACK;
        }
        if has!(skb_cb) {
            let from = (&raw const (*scratch).skb).cast::<u8>().add(offset!(skb_cb) as usize).cast::<u64>();
            let to = (&raw mut (*event).control_block).cast::<u64>();
            let mut i = 0;
            while i < 6 {
                core::ptr::write_volatile(to.add(i), *from.add(i));
                i += 1;
            }
        }
        headers(event, scratch);
        (*event).stack_length = 0;
        if nft::is_rule((*scratch).key.attribution) {
            let to = &raw mut (*event).expression;
            if copy(to.cast(), size_of_val(&*to) as u32, (*scratch).key.attribution[0]) {
                flags |= event_flag::EXPRESSION;
            }
        }
        if (*scratch).hooked[0] != 0 {
            (*event).hooked = (*scratch).hooked;
            flags |= event_flag::HOOKED;
        }
        (*event).flags = flags;
    }
    0
}

/// Adds in which slot the drop was counted, and how far that has counted.
///
/// # Safety
/// `scratch` must be a map value with the event in it.
#[inline(always)]
pub unsafe fn take_slot(scratch: *mut Scratch, slot_index: u32) {
    let Some(slot) = SLOTS.get_ptr_mut(slot_index) else { return };
    // SAFETY: map values.
    unsafe {
        let event = &raw mut (*scratch).own.event;
        (*event).count = (*slot).count;
        (*event).segments = (*slot).segments;
        (*event).slot = slot_index;
    }
}

/// Adds the kernel's stack: the costliest part of an event.
///
/// # Safety
/// `scratch` must be a map value with the event in it.
#[inline(always)]
pub unsafe fn add_stack(ctx: &BtfTracePointContext, scratch: *mut Scratch) {
    // SAFETY: a map value.
    unsafe {
        let event = &raw mut (*scratch).own.event;
        let to = &raw mut (*event).stack;
        let bytes = bpf_get_stack(ctx.as_ptr(), to.cast(), size_of_val(&*to) as u32, 0);
        if bytes > 0 {
            (*event).flags |= event_flag::STACK;
            (*event).stack_length = (bytes / 8) as u16;
        }
    }
}

/// Sends the event that is in the working memory.
///
/// # Safety
/// The pointers must be map values.
#[inline(always)]
pub unsafe fn send(scratch: *const Scratch, state: *mut CpuState) {
    // SAFETY: map values.
    unsafe {
        if EVENTS.output::<Event>(&(*scratch).own.event, 0).is_err() {
            (*state).ring_full += 1;
        }
    }
}

/// Sends the event of a packet of the self-test, with what there is to learn from it.
///
/// # Safety
/// The pointers must be map values.
#[inline(always)]
pub unsafe fn send_own(scratch: *mut Scratch, state: *mut CpuState) {
    // SAFETY: map values.
    unsafe {
        let own = &raw mut (*scratch).own;
        stack::copy_window((&raw mut (*own).window).cast(), WINDOW_WORDS, (*scratch).context);
        let below = (*scratch).context - 8 * BELOW_WORDS as u64;
        stack::copy_window((&raw mut (*own).below).cast(), BELOW_WORDS, below);
        if EVENTS.output::<OwnEvent>(&*own, 0).is_err() {
            (*state).ring_full += 1;
        }
    }
}

/// The packet's first bytes. A read may fail where they reach past the buffer's page: then fewer.
#[inline(always)]
unsafe fn headers(event: *mut Event, scratch: *const Scratch) {
    const FEWER: u32 = 64;
    // SAFETY: within the event.
    unsafe {
        let to = (&raw mut (*event).headers).cast::<u8>();
        let (network, available) = ((*scratch).network, (*scratch).available);
        (*event).header_length = 0;
        if network == 0 {
            return;
        }
        let most = if copy(to, HEADER_BYTES as u32, network) {
            HEADER_BYTES as u32
        } else if copy(to, FEWER, network) {
            FEWER
        } else {
            0
        };
        (*event).header_length = if available < most { available } else { most } as u16;
    }
}

#[inline(always)]
unsafe fn gso_size(scratch: *const Scratch) -> u16 {
    // SAFETY: a map value.
    let shared = unsafe { (*scratch).shared_info };
    if shared == 0 || !has!(shinfo_gso_size) {
        return 0;
    }
    read::<u16>(shared + offset!(shinfo_gso_size) as u64).unwrap_or(0)
}

/// Family and protocol of the socket that was to receive the packet, or that it belongs to.
#[inline(always)]
unsafe fn socket(event: *mut Event, scratch: *const Scratch) {
    // TCP_TIME_WAIT and TCP_NEW_SYN_RECV (include/net/tcp_states.h): smaller structures without a protocol.
    const TIME_WAIT: u8 = 6;
    const NEW_SYN_RECV: u8 = 12;
    // SAFETY: map values.
    unsafe {
        (*event).socket_family = 0;
        (*event).socket_protocol = 0;
        if !has!(skb_sk, sock_family, sock_state, sock_protocol) {
            return;
        }
        let receiving = (*scratch).receiving_socket;
        let socket = if is_kernel_address(receiving) { receiving } else { skb_field!(scratch, skb_sk, u64) };
        if !is_kernel_address(socket) {
            return;
        }
        (*event).socket_family = read::<u16>(socket + offset!(sock_family) as u64).unwrap_or(0);
        let state = read::<u8>(socket + offset!(sock_state) as u64).unwrap_or(TIME_WAIT);
        if state != TIME_WAIT && state != NEW_SYN_RECV {
            (*event).socket_protocol = read::<u16>(socket + offset!(sock_protocol) as u64).unwrap_or(0);
        }
    }
}

/// Addresses of the devices that the hook state names; 0 for none.
///
/// # Safety
/// `scratch` must be a map value with the state's copy in it.
#[inline(always)]
pub unsafe fn state_devices(scratch: *const Scratch) -> (u64, u64) {
    // SAFETY: the caller's.
    unsafe {
        (
            if has!(state_in) { state_field!(scratch, state_in, u64) } else { 0 },
            if has!(state_out) { state_field!(scratch, state_out, u64) } else { 0 },
        )
    }
}

/// Name, index and netns of the device at `address`; false (and all zero) if there is none.
#[inline(always)]
pub unsafe fn device(control: *const Control, address: u64, to: *mut Device) -> bool {
    // SAFETY: `control` is a map value, `to` is in the ring's memory.
    unsafe {
        let words = to.cast::<u64>();
        core::ptr::write_volatile(words, 0);
        core::ptr::write_volatile(words.add(1), 0);
        core::ptr::write_volatile(words.add(2), 0);
        if !is_kernel_address(address) || !has!(dev_net, dev_ifindex, dev_name) {
            return false;
        }
        let Some(net) = read::<u64>(address + offset!(dev_net) as u64) else { return false };
        let inode = netns::inode(control, net);
        if inode == 0 {
            return false;
        }
        (*to).netns = inode;
        (*to).ifindex = read::<u32>(address + offset!(dev_ifindex) as u64).unwrap_or(0);
        copy((&raw mut (*to).name).cast(), size_of::<[u8; 16]>() as u32, address + offset!(dev_name) as u64)
    }
}
