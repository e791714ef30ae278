//! The full event.

use crate::{
    conntrack,
    counts::Counted,
    maps::{EVENTS, Scratch, has, offset, skb_field},
    memory::{copy, is_kernel_address, read},
    netns::{self, Netns},
    packet::Layers,
    stack::{self, HookState},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_stack, bpf_ktime_get_ns},
    programs::BtfTracePointContext,
};
use core::mem::size_of;
use tracer_common::{Control, CpuState, Device, Event, HEADER_BYTES, Slot, event_flag};

/// What is already known of the packet.
pub struct Packet {
    pub skb: u64,
    pub context: u64,
    pub receiving_socket: u64,
    pub layers: Layers,
    pub netns: Netns,
    pub state: Option<HookState>,
    pub segments: u16,
    pub first: bool,
    pub level: u32,
    pub cpu_id: u32,
}

/// Whether this drop sends an event: the first of its slot in an interval does, and others while the CPU's budget
/// lasts. `Some(true)` for a first one.
///
/// # Safety
/// The pointers must be map values.
#[inline(always)]
pub unsafe fn turn(control: *const Control, cpu: *mut CpuState, slot: *mut Slot) -> Option<bool> {
    // SAFETY: map values; `cpu` and `slot` are this CPU's.
    unsafe {
        let interval = (*control).interval;
        if (*slot).interval != interval {
            (*slot).interval = interval;
            return Some(true);
        }
        if (*cpu).interval != interval {
            (*cpu).interval = interval;
            (*cpu).used = 0;
        }
        if (*cpu).used >= (*control).budget {
            return None;
        }
        (*cpu).used += 1;
        Some(false)
    }
}

/// Sends the full event.
///
/// # Safety
/// The pointers must be map values, `scratch` filled.
#[inline(always)]
pub unsafe fn event(
    ctx: &BtfTracePointContext,
    control: *const Control,
    cpu: *mut CpuState,
    scratch: *mut Scratch,
    counted: &Counted,
    packet: &Packet,
) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        // SAFETY: a map value of this CPU.
        unsafe { (*cpu).ring_full += 1 };
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the ring's memory has room for an Event; every field is written, or its flag is not set.
    unsafe {
        let mut flags = if packet.first { event_flag::FIRST } else { 0 };
        if packet.level > 0 {
            flags |= event_flag::NESTED;
        }
        (*event).time = bpf_ktime_get_ns();
        (*event).skb = packet.skb;
        (*event).count = (*counted.slot).count;
        (*event).segments = (*counted.slot).segments;
        (*event).slot = counted.index;
        (*event).key = (*scratch).key;
        (*event).netns_cookie = if has!(net_cookie) && packet.netns.address != 0 {
            read::<u64>(packet.netns.address + offset!(net_cookie) as u64).unwrap_or(0)
        } else {
            0
        };
        (*event).netns_source = packet.netns.source as u8;
        (*event).cpu = packet.cpu_id;
        (*event).gso_segments = packet.segments;
        (*event).gso_size = gso_size(scratch);

        (*event).length = if has!(skb_len) { skb_field!(scratch, skb_len, u32) } else { 0 };
        (*event).data_length = if has!(skb_data_len) { skb_field!(scratch, skb_data_len, u32) } else { 0 };
        (*event).mark = if has!(skb_mark) { skb_field!(scratch, skb_mark, u32) } else { 0 };
        (*event).ingress_ifindex = if has!(skb_iif) { skb_field!(scratch, skb_iif, u32) } else { 0 };
        // The lowest three bits (struct sk_buff, include/linux/skbuff.h).
        (*event).packet_type = if has!(skb_pkt_type) { skb_field!(scratch, skb_pkt_type, u8) & 7 } else { 0 };

        socket(event, scratch, packet.receiving_socket);
        if has!(skb_dev)
            && device(control, skb_field!(scratch, skb_dev, u64), &raw mut (*event).device)
            && (*event).device.netns == packet.netns.inode
        {
            flags |= event_flag::DEVICE;
        }
        (*event).hook = 0;
        (*event).family = 0;
        if let Some(state) = packet.state {
            flags |= event_flag::HOOK_STATE;
            (*event).hook = read::<u8>(state.address + offset!(state_hook) as u64).unwrap_or(0);
            (*event).family = read::<u8>(state.address + offset!(state_pf) as u64).unwrap_or(0);
            state_device(control, state.address, offset!(state_in), &raw mut (*event).state_in);
            state_device(control, state.address, offset!(state_out), &raw mut (*event).state_out);
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
        headers(event, &packet.layers);

        (*event).stack_length = 0;
        if packet.first {
            let to = &raw mut (*event).stack;
            let bytes = bpf_get_stack(ctx.as_ptr(), to.cast(), size_of_val(&*to) as u32, 0);
            if bytes > 0 {
                flags |= event_flag::STACK;
                (*event).stack_length = (bytes / 8) as u16;
            }
        }
        if stack::is_netfilter(control, (*scratch).key.location) {
            stack::copy_window(&raw mut (*event).window, packet.context);
            flags |= event_flag::WINDOW;
        }
        (*event).flags = flags;
    }
    entry.submit(0);
}

/// The packet's first bytes. A read may fail where they reach past the buffer's page; the parser's copy then does.
#[inline(always)]
unsafe fn headers(event: *mut Event, layers: &Layers) {
    // SAFETY: within the event.
    unsafe {
        let to = (&raw mut (*event).headers).cast::<u8>();
        let available =
            if layers.available > HEADER_BYTES as u32 { HEADER_BYTES as u32 } else { layers.available };
        (*event).header_length = 0;
        if layers.network != 0 && copy(to, HEADER_BYTES as u32, layers.network) {
            (*event).header_length = available as u16;
        } else if layers.network != 0 && copy(to, 64, layers.network) {
            (*event).header_length = if available > 64 { 64 } else { available as u16 };
        }
    }
}

#[inline(always)]
unsafe fn gso_size(scratch: *const Scratch) -> u16 {
    if !has!(skb_head, skb_end, shinfo_gso_size) {
        return 0;
    }
    // SAFETY: a map value.
    let shared = unsafe { skb_field!(scratch, skb_head, u64) + skb_field!(scratch, skb_end, u32) as u64 };
    read::<u16>(shared + offset!(shinfo_gso_size) as u64).unwrap_or(0)
}

/// Family and protocol of the socket that the packet belongs to, or was to be received by.
#[inline(always)]
unsafe fn socket(event: *mut Event, scratch: *const Scratch, receiving: u64) {
    // SAFETY: the ring's memory, and a map value.
    unsafe {
        (*event).socket_family = 0;
        (*event).socket_protocol = 0;
        if !has!(skb_sk, sock_family, sock_protocol) {
            return;
        }
        let own = skb_field!(scratch, skb_sk, u64);
        let socket = if is_kernel_address(receiving) { receiving } else { own };
        if is_kernel_address(socket) {
            (*event).socket_family = read::<u16>(socket + offset!(sock_family) as u64).unwrap_or(0);
            // Only full sockets have a protocol: TCP_TIME_WAIT and TCP_NEW_SYN_RECV are smaller structures
            // (include/net/tcp_states.h).
            let state = if has!(sock_state) {
                read::<u8>(socket + offset!(sock_state) as u64).unwrap_or(0)
            } else {
                0
            };
            if state != 6 && state != 12 {
                (*event).socket_protocol = read::<u16>(socket + offset!(sock_protocol) as u64).unwrap_or(0);
            }
        }
    }
}

#[inline(always)]
unsafe fn state_device(control: *const Control, state: u64, offset: u32, to: *mut Device) {
    let address =
        if offset == tracer_common::ABSENT { 0 } else { read::<u64>(state + offset as u64).unwrap_or(0) };
    // SAFETY: the caller's.
    unsafe { device(control, address, to) };
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
