//! `droptrace trace`: packets on their way. Programs at many places see each packet; the ones that pass the filter are followed
//! from then on by their sk_buff, whatever becomes of their addresses.
//!
//! The kernel uses the memory of an sk_buff again at once, and not every end of one is seen. So a followed packet is recognised
//! by its *print*: what neither routers nor NAT nor tunnels change in it.

use crate::{
    drop, emit, filter,
    level::Run,
    maps::{
        EXPECTED, FOLLOWED, STEPS, Scratch, TRACE, TRACED, constant, control, has, offset, scratch, skb_field,
    },
    memory::{copy, is_kernel_address, read},
    moved, netns, packet,
    packet::{ETH_P_IP, ETH_P_IPV6, protocol},
    stack,
};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
    generated::{bpf_get_current_comm, bpf_probe_read_kernel_str},
};
use core::{
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};
use network_types::ip::Ipv4Hdr;
use tracer_common::{Step, event_flag, flow_flag, place};

/// A followed packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Followed {
    /// Its number.
    pub packet: u64,
    /// Its print.
    pub print: u64,
}

/// Packets that a CPU begins to follow in an interval, at most.
const SHARE: u32 = 500;

/// AF_INET and AF_INET6 (include/linux/socket.h).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What a program tells of the place that it is at.
#[derive(Clone, Copy)]
pub struct Sight {
    /// `place`
    pub place: u32,
    /// Address of the sk_buff.
    pub skb: u64,
    /// Address of the program's context.
    pub context: u64,
    /// Address of netfilter's hook state; 0 without.
    pub state: u64,
    /// Priority on the hook.
    pub priority: i32,
    /// Who frees it.
    pub location: u64,
    /// Whether to begin to follow here.
    pub begins: bool,
}

impl Sight {
    /// A place without more to say.
    #[inline(always)]
    pub fn at(place: u32, skb: u64) -> Self {
        Self { place, skb, context: 0, state: 0, priority: 0, location: 0, begins: true }
    }

    /// A place behind one at which packets that are asked for are followed already: looking at others again costs too much.
    #[inline(always)]
    pub fn later(place: u32, skb: u64) -> Self {
        Self { begins: false, ..Self::at(place, skb) }
    }

    /// A place where a packet's way ends.
    #[inline(always)]
    pub fn end(place: u32, skb: u64, location: u64) -> Self {
        Self { location, begins: false, ..Self::at(place, skb) }
    }
}

/// True in a trace.
#[inline(always)]
pub fn is_tracing() -> bool {
    constant(&TRACE) != 0
}

/// A packet on a hook, in a program there (struct bpf_nf_ctx, include/linux/bpf.h).
#[inline(always)]
pub fn on_hook(context: u64, priority: i32, begins: bool) {
    /// NF_INET_LOCAL_OUT (include/uapi/linux/netfilter.h): where packets that are made here are seen first.
    const OUTPUT: u8 = 3;
    let (Some(state), Some(skb)) = (read::<u64>(context), read::<u64>(context + 8)) else { return };
    let is_first = priority == tracer_common::priority::FIRST;
    let begins = begins
        && (!is_first
            || (has!(state_hook) && read::<u8>(state + offset!(state_hook) as u64) == Some(OUTPUT)));
    see(Sight { context, state, priority, begins, ..Sight::at(place::HOOK, skb) });
}

/// A packet comes to a hook: nf_hook_slow(skb, state, ...), net/netfilter/core.c. `arguments` is the program's context.
#[inline(always)]
pub fn enters_hook(arguments: u64) {
    let (Some(skb), Some(state)) = (read::<u64>(arguments), read::<u64>(arguments + 8)) else { return };
    see(Sight { context: arguments, state, ..Sight::at(place::HOOK_ENTERED, skb) });
}

/// It leaves the hook again, with a result: 1 to go on.
#[inline(always)]
pub fn leaves_hook(arguments: u64) {
    let (Some(skb), Some(state)) = (read::<u64>(arguments), read::<u64>(arguments + 8)) else { return };
    if read::<i32>(arguments + 4 * 8) == Some(1) {
        see(Sight { context: arguments, state, ..Sight::at(place::HOOK_LEFT, skb) });
    }
}

/// UDP has put a packet into its socket's buffer: __udp_enqueue_schedule_skb(sk, skb), with 0.
#[inline(always)]
pub fn queued_by_udp(arguments: u64) {
    // A reader may have freed it meanwhile: then it isn't recognised.
    if let Some(skb) = read::<u64>(arguments + 8)
        && read::<i32>(arguments + 2 * 8) == Some(0)
    {
        see(Sight::end(place::TAKEN, skb, 0));
    }
}

/// A packet at a place.
#[inline(always)]
pub fn see(sight: Sight) {
    // The kernel's pointers become plain numbers in the working memory, and so in keys.
    // A copy, so that only this is on the stack.
    let skb = sight.skb;
    if !sight.begins && FOLLOWED.get_ptr(&skb).is_none() {
        return;
    }
    let Some(run) = Run::begin() else { return };
    if !run.is_too_deep {
        let index = run.index();
        if let Some(scratch) = crate::maps::SCRATCH.get_ptr_mut(index) {
            // SAFETY: a map value; this level of this CPU is ours until the run ends.
            unsafe {
                write_volatile(&raw mut (*scratch).packet, sight.skb);
                write_volatile(&raw mut (*scratch).context, sight.context);
                write_volatile(&raw mut (*scratch).state, sight.state);
                write_volatile(&raw mut (*scratch).head.place, sight.place);
                write_volatile(&raw mut (*scratch).head.priority, sight.priority);
                write_volatile(&raw mut (*scratch).head.location, sight.location);
                if sight.place == place::READ {
                    // Here, not in a step: those are shared with programs on hooks and devices, which may not ask this on all kernels (seen:
                    // 6.12).
                    (*scratch).head.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
                    let to = &raw mut (*scratch).head.process;
                    bpf_get_current_comm(to.cast(), size_of_val(&*to) as u32);
                }
            }
            look(index);
        }
    }
    run.end();
}

/// Step: tells of the packet, if it is followed or is to be from now on.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let place = (*scratch).head.place;
        let state = read_volatile(&raw const (*scratch).state);
        drop::clear(&raw mut (*scratch).key);
        // One by one: together they would become a call of memset.
        write_volatile(&raw mut (*scratch).state, 0);
        write_volatile(&raw mut (*scratch).state_inode, 0);
        write_volatile(&raw mut (*scratch).receiving_socket, 0);
        write_volatile(&raw mut (*scratch).netns_source, 0);
        write_volatile(&raw mut (*scratch).netns, 0);
        zero((&raw mut (*scratch).hooked).cast(), 4);
        if !drop::read_packet(scratch) {
            return 0;
        }
        if place == place::RECEIVED {
            // The device has taken off its header; the stack has not yet noted where the next one begins
            // (__netif_receive_skb_core, net/core/dev.c).
            let start = skb_field!(scratch, skb_data, u64) - skb_field!(scratch, skb_head, u64);
            let at = (&raw mut (*scratch).skb).cast::<u8>().add(offset!(skb_network_header) as usize);
            *at.cast::<u16>() = start as u16;
        }
        packet::parse_packet(index);
        if is_kernel_address(state) {
            stack::believe(control, scratch, state);
        }
        if !netns::of_hook(scratch) {
            netns::find_netns(index);
        }
        if (*control).own_netns != 0 && (*control).own_netns == (*scratch).key.netns {
            return 0;
        }
        let ends = matches!(place, place::CONSUMED | place::READ | place::TAKEN);
        // Questions for a next hop's address are steps of no packet, unless they were asked for; nor is what has no addresses.
        let has_addresses = (*scratch).key.flags & flow_flag::ADDRESSES != 0;
        let is_packet = has_addresses && matches!((*scratch).key.ethertype, ETH_P_IP | ETH_P_IPV6)
            || filter::is_about_protocols();
        let is_wanted = !ends && is_packet && (filter::passes_filter(index) != 0 || is_expected(scratch));
        if recognise(index, is_wanted as u32) == 0 {
            return 0;
        }
        emit::fill_event(index);
        (*scratch).own.event.slot = u32::MAX;
    }
    tell(index, unsafe { (*scratch).head.place })
}

/// Step: 1 if the packet is followed, or is from now on because it is wanted. Its number is in the head then.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn recognise(index: u32, is_wanted: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let skb = read_volatile(&raw const (*scratch).packet);
        let print = print(scratch).unwrap_or(0);
        if let Some(followed) = FOLLOWED.get_ptr(&skb)
            && (*followed).print == print
        {
            (*scratch).head.packet = (*followed).packet;
            return 1;
        }
        if is_wanted == 0 {
            return 0;
        }
        let Some(traced) = TRACED.get_ptr_mut(0) else { return 0 };
        let interval = (*control).interval;
        if (*traced).interval != interval {
            (*traced).interval = interval;
            (*traced).used = 0;
        }
        if (*traced).used >= SHARE {
            (*traced).refused += 1;
            return 0;
        }
        (*traced).used += 1;
        (*traced).begun += 1;
        let cpu = bpf_get_smp_processor_id() as u64;
        let packet = (*traced).begun << 16 | cpu & 0xffff;
        (*scratch).head.packet = packet;
        let _ = FOLLOWED.insert(&skb, &Followed { packet, print }, 0);
    }
    1
}

/// Ends of a packet, and its protocol.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow {
    /// Source and destination, as in the key.
    pub ends: [[u8; 16]; 2],
    /// Their ports; of ICMP, its identifier.
    pub ports: [u16; 2],
    /// IP protocol number.
    pub transport: u32,
}

/// The packet's flow, or the opposite one.
#[inline(always)]
unsafe fn flow(scratch: *const Scratch, is_opposite: bool) -> Option<Flow> {
    // SAFETY: a map value with a parsed packet in it.
    unsafe {
        let key = &raw const (*scratch).key;
        const KNOWN: u8 = flow_flag::ADDRESSES | flow_flag::PORTS;
        if (*key).flags & KNOWN != KNOWN {
            return None;
        }
        let transport = (*key).transport;
        let is_icmp = transport == protocol::ICMP || transport == protocol::ICMPV6;
        let (source, destination) = ((*key).source_port, if is_icmp { 0 } else { (*key).destination_port });
        let ends = if is_opposite {
            [(*key).destination, (*key).source]
        } else {
            [(*key).source, (*key).destination]
        };
        let ports = if is_opposite && !is_icmp { [destination, source] } else { [source, destination] };
        Some(Flow { ends, ports, transport: transport as u32 })
    }
}

/// True if it answers a packet that was followed until it left: by the addresses that NAT gave that one, which the filter may not
/// mean.
#[inline(always)]
unsafe fn is_expected(scratch: *const Scratch) -> bool {
    // SAFETY: the caller's.
    match unsafe { flow(scratch, false) } {
        Some(flow) => EXPECTED.get_ptr(&flow).is_some(),
        None => false,
    }
}

/// Step: sends what is in the working memory as a step of a followed packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell(index: u32, place: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let head = &raw mut (*scratch).head;
        (*head).place = place;
        if place == place::DROPPED {
            (*head).priority = 0;
            (*head).location = (*scratch).key.location;
        }
        if place != place::READ {
            write_volatile(&raw mut (*head).pid, 0);
            zero((&raw mut (*head).process).cast(), 4);
        }
        write_volatile(&raw mut (*head).counters.version, 0);
        write_volatile(&raw mut (*head).counters.length, 0);
        if matches!(place, place::HOOK | place::HOOK_ENTERED | place::HOOK_LEFT | place::DROPPED) {
            moved::look_at_counters(index);
        }
        route(control, scratch);
        link(scratch);
        ethernet(scratch);
        if place == place::SENT
            && let Some(answer) = flow(scratch, true)
        {
            let _ = EXPECTED.insert(&answer, &1, 0);
        }
        let skb = read_volatile(&raw const (*scratch).packet);
        if matches!(place, place::CONSUMED | place::DROPPED) {
            let _ = FOLLOWED.remove(&skb);
        }
        // The event follows the head.
        let step = head.cast::<Step>();
        if STEPS.output::<Step>(&*step, 0).is_err()
            && let Some(traced) = TRACED.get_ptr_mut(0)
        {
            (*traced).lost += 1;
        }
    }
    1
}

/// What of the packet (of the innermost one, in a tunnel) stays the same on its way: protocol, IPv4 identification, and of the
/// transport header what NAT leaves alone.
#[inline(always)]
unsafe fn print(scratch: *const Scratch) -> Option<u64> {
    // SAFETY: a map value with a parsed packet in it.
    unsafe {
        let own = (*scratch).network;
        let (version, at) = match packet::carried(scratch) {
            Some(carried) => (carried.version, carried.at),
            None if own == 0 => return None,
            None => match (*scratch).key.ethertype {
                ETH_P_IP => (4, own),
                ETH_P_IPV6 => (6, own),
                _ => return read::<u64>(own + 8),
            },
        };
        let (next, after) = if at == own && (*scratch).transport != 0 {
            ((*scratch).key.transport, own + (*scratch).transport as u64)
        } else {
            packet::next_header(version, at)?
        };
        let id = if version == 4 { read::<u16>(at + offset_of!(Ipv4Hdr, id) as u64)? } else { 0 };
        // Sequence number of TCP (RFC 9293 3.1); length of UDP (RFC 768); sequence number of an echo (RFC 792).
        let own = match next {
            protocol::TCP => read::<u32>(after + 4)?,
            protocol::UDP => read::<u16>(after + 4)? as u32,
            protocol::ICMP | protocol::ICMPV6 => read::<u16>(after + 6)? as u32,
            _ => 0,
        };
        Some(1 << 63 | (next as u64) << 48 | (id as u64) << 32 | own as u64)
    }
}

/// Writes zeros, word by word: as one they would become a call of memset.
#[inline(always)]
unsafe fn zero(to: *mut u32, words: usize) {
    let mut at = 0;
    while at < words {
        // SAFETY: the caller's: fields of the working memory, aligned to 4.
        unsafe { write_volatile(to.add(at), 0) };
        at += 1;
    }
}

/// Where the packet was routed to.
#[inline(always)]
unsafe fn route(control: *const tracer_common::Control, scratch: *mut Scratch) {
    // SAFETY: map values.
    unsafe {
        let head = &raw mut (*scratch).head;
        write_volatile(&raw mut (*head).route_input, 0);
        write_volatile(&raw mut (*head).route_output, 0);
        zero((&raw mut (*head).route_device).cast(), 6);
        write_volatile(&raw mut (*head).gateway_family, 0);
        zero((&raw mut (*head).gateway).cast(), 4);
        if !has!(skb_refdst, dst_dev, dst_input, dst_output) {
            return;
        }
        // The lowest bit says that the reference is not counted (SKB_DST_NOREF, include/linux/skbuff.h).
        let route = skb_field!(scratch, skb_refdst, u64) & !1;
        if !is_kernel_address(route) {
            return;
        }
        let Some(device) = read::<u64>(route + offset!(dst_dev) as u64) else { return };
        // The union holds other things, too; what leads to a device is a route.
        if !emit::device(control, device, &raw mut (*head).route_device) {
            return;
        }
        (*head).route_input = read::<u64>(route + offset!(dst_input) as u64).unwrap_or(0);
        (*head).route_output = read::<u64>(route + offset!(dst_output) as u64).unwrap_or(0);
        let to = (&raw mut (*head).gateway).cast::<u8>();
        match (*scratch).key.ethertype {
            ETH_P_IP if has!(rt_gateway_family, rt_gateway) => {
                let family = read::<u8>(route + offset!(rt_gateway_family) as u64).unwrap_or(0);
                let size = match family {
                    AF_INET => 4,
                    AF_INET6 => 16,
                    _ => return,
                };
                if copy(to, size, route + offset!(rt_gateway) as u64) {
                    (*head).gateway_family = family as u32;
                }
            }
            ETH_P_IPV6 if has!(rt6_gateway) => {
                if copy(to, 16, route + offset!(rt6_gateway) as u64) {
                    (*head).gateway_family = AF_INET6 as u32;
                }
            }
            _ => {}
        }
    }
}

/// What kind of device the packet is at.
#[inline(always)]
unsafe fn link(scratch: *mut Scratch) {
    // SAFETY: a map value.
    unsafe {
        let head = &raw mut (*scratch).head;
        zero((&raw mut (*head).link).cast(), 4);
        if !has!(skb_dev, dev_link_ops, link_ops_kind) || (*scratch).own.event.flags & event_flag::DEVICE == 0
        {
            return;
        }
        let device = skb_field!(scratch, skb_dev, u64);
        let Some(ops) = read::<u64>(device + offset!(dev_link_ops) as u64) else { return };
        if !is_kernel_address(ops) {
            return;
        }
        let Some(kind) = read::<u64>(ops + offset!(link_ops_kind) as u64) else { return };
        let to = &raw mut (*head).link;
        bpf_probe_read_kernel_str(to.cast(), size_of_val(&*to) as u32, kind as *const _);
    }
}

/// The packet's link-layer header.
#[inline(always)]
unsafe fn ethernet(scratch: *mut Scratch) {
    const LENGTH: u32 = 14;
    // SAFETY: a map value.
    unsafe {
        let head = &raw mut (*scratch).head;
        (*head).has_ethernet = 0;
        zero((&raw mut (*head).ethernet).cast(), 3);
        if !has!(skb_mac_header) {
            return;
        }
        let start = skb_field!(scratch, skb_mac_header, u16);
        let network = skb_field!(scratch, skb_network_header, u16);
        if start == u16::MAX || start as u32 + LENGTH != network as u32 {
            return;
        }
        let at = skb_field!(scratch, skb_head, u64) + start as u64;
        (*head).has_ethernet = copy((&raw mut (*head).ethernet).cast(), LENGTH, at) as u16;
    }
}
