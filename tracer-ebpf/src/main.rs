//! droptrace's kernel half: what runs when the kernel drops a packet.
//!
//! ```text
//! drop     one dropped packet, start to end
//! packet   addresses and ports from the packet's headers
//! netns    which network namespace it was in
//! watch    which rule dropped it, by the rules' counters
//! hooked   which hook function dropped it
//! nft      which nft rule or policy dropped it
//! tc       what was on the tc hook where it was dropped
//! probes   what programs on the way noted, where the user asks for them
//! roles    what the self-test learned about call sites
//! stack    saved registers on the kernel stack: netfilter's hook state
//! conntrack  the packet's connection tracking entry
//! filter   what the user asked to see
//! path     packets on their way, in a trace
//! level    program runs that interrupt each other
//! retransmit  segments that TCP had to repeat
//! counts   the slots in which every drop is counted
//! emit     the full event
//! maps     maps and load-time constants shared with the user half
//! memory   reading kernel memory
//! ```
#![no_std]
#![no_main]
#![allow(unreachable_pub, missing_docs, reason = "a program: nothing here is anybody's interface")]

mod conntrack;
mod counts;
mod drop;
mod emit;
mod filter;
mod hooked;
mod level;
mod maps;
mod memory;
mod moved;
mod netns;
mod nft;
mod nft_trace;
mod packet;
mod path;
mod probes;
mod retransmit;
mod roles;
mod stack;
mod tc;
mod watch;

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, classifier, fentry, fexit, kprobe, raw_tracepoint},
    programs::{
        BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RawTracePointContext, TcContext,
    },
};
use path::Sight;
use tracer_common::{place, priority};

/// Every packet that the kernel frees as dropped (include/trace/events/skb.h).
#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
    drop::on_kfree_skb(&ctx);
    0
}

/// Each segment that TCP repeats (include/trace/events/tcp.h). Attached only with a filter, to say what is seen where it
/// finds no drop.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit(ctx: BtfTracePointContext) -> i32 {
    retransmit::on_retransmit(&ctx);
    0
}

/// Does nothing. Attached for moments in the self-test: with a second program on it, the tracepoint calls both through a
/// loop, and the stack is deeper.
#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb_too(ctx: BtfTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    0
}

/// With `--probes always`: each packet that comes to a hook.
#[fentry(function = "nf_hook_slow")]
pub fn hook_entered(ctx: FEntryContext) -> i32 {
    probes::on_hook(ctx.as_ptr() as u64);
    0
}

/// With `--probes always`: each packet that leaves it.
#[fexit(function = "nf_hook_slow")]
pub fn hook_left(ctx: FExitContext) -> i32 {
    probes::after_hook(ctx.as_ptr() as u64);
    0
}

/// With `--probes always`: each verdict of an nft rule that stands in the rule itself.
#[kprobe(function = "nft_immediate_eval")]
pub fn nft_immediate(ctx: ProbeContext) -> u32 {
    if let (Some(expression), Some(pktinfo)) = (ctx.arg(0), ctx.arg(2)) {
        probes::on_immediate(expression, pktinfo);
    }
    0
}

/// With `--probes always`: each `reject` of nft.
#[kprobe]
pub fn nft_reject(ctx: ProbeContext) -> u32 {
    if let (Some(expression), Some(pktinfo)) = (ctx.arg(0), ctx.arg(2)) {
        probes::on_reject(expression, pktinfo);
    }
    0
}

/// With `--probes always`: each target of iptables in an nft rule.
#[kprobe(function = "nft_target_eval_xt")]
pub fn nft_target(ctx: ProbeContext) -> u32 {
    if let (Some(expression), Some(pktinfo)) = (ctx.arg(0), ctx.arg(2)) {
        probes::on_target(expression, pktinfo);
    }
    0
}

/// In a trace: a device gives a packet to the stack (include/trace/events/net.h).
#[btf_tracepoint(function = "netif_receive_skb")]
pub fn path_received(ctx: BtfTracePointContext) -> i32 {
    path::see(Sight::at(place::RECEIVED, ctx.arg(0)));
    0
}

/// In a trace: a packet comes to a device's qdisc, or past it.
#[btf_tracepoint(function = "net_dev_queue")]
pub fn path_queued(ctx: BtfTracePointContext) -> i32 {
    path::see(Sight::at(place::QUEUED, ctx.arg(0)));
    0
}

/// In a trace: a driver is given a packet.
#[btf_tracepoint(function = "net_dev_start_xmit")]
pub fn path_sent(ctx: BtfTracePointContext) -> i32 {
    path::see(Sight::later(place::SENT, ctx.arg(0)));
    0
}

/// In a trace: a program reads a packet from its socket (include/trace/events/skb.h).
#[btf_tracepoint(function = "skb_copy_datagram_iovec")]
pub fn path_read(ctx: BtfTracePointContext) -> i32 {
    path::see(Sight::end(place::READ, ctx.arg(0), 0));
    0
}

/// In a trace: an established connection takes a packet (include/trace/events/tcp.h).
#[btf_tracepoint(function = "tcp_probe")]
pub fn path_taken(ctx: BtfTracePointContext) -> i32 {
    path::see(Sight::end(place::TAKEN, ctx.arg(1), 0));
    0
}

/// In a trace: the kernel is done with a packet (include/trace/events/skb.h; `location` from 6.4).
#[btf_tracepoint(function = "consume_skb")]
pub fn path_consumed(ctx: BtfTracePointContext) -> i32 {
    let location = if maps::offset!(arg_consume_location) == 1 { ctx.arg(1) } else { 0 };
    path::see(Sight::end(place::CONSUMED, ctx.arg(0), location));
    0
}

/// In a trace, where the kernel has tcx: before all other programs on a device, which decide as they would without it.
#[classifier]
pub fn path_ingress(ctx: TcContext) -> i32 {
    path::see(Sight::later(place::TC_INGRESS, ctx.as_ptr() as u64));
    TCX_NEXT
}

/// Likewise.
#[classifier]
pub fn path_egress(ctx: TcContext) -> i32 {
    path::see(Sight::later(place::TC_EGRESS, ctx.as_ptr() as u64));
    TCX_NEXT
}

/// The next program decides (enum tcx_action_base, include/uapi/linux/bpf.h).
const TCX_NEXT: i32 = -1;

/// In a trace, where the kernel has BPF programs on netfilter's hooks (from 6.4). They are of a type that aya doesn't know: it takes
/// them for raw tracepoints, and the user half loads them itself (`probe::tracer::hook_programs`). `priority` is where each is
/// put, `begins` whether a packet may be followed from there on. Written out, since aya's macro would return 0, and that drops.
macro_rules! on_hook {
    ($($name:ident, $priority:expr, $begins:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[unsafe(link_section = concat!("raw_tp/", stringify!($name)))]
            extern "C" fn $name(context: *mut core::ffi::c_void) -> i32 {
                path::on_hook(context as u64, $priority, $begins);
                NF_ACCEPT
            }
        )*
    };
}

/// include/uapi/linux/netfilter.h
const NF_ACCEPT: i32 = 1;

on_hook! {
    path_hook_first, priority::FIRST, true;
    path_hook_raw, priority::RAW, false;
    path_hook_conntrack, priority::CONNTRACK, true;
    path_hook_mangle, priority::MANGLE, false;
    path_hook_dstnat, priority::DSTNAT, true;
    path_hook_filter, priority::FILTER, false;
    path_hook_security, priority::SECURITY, false;
    path_hook_srcnat, priority::SRCNAT, false;
}

/// In a trace, where the kernel has fentry: each packet that comes to a hook.
#[fentry(function = "nf_hook_slow")]
pub fn path_hook_entered(ctx: FEntryContext) -> i32 {
    path::enters_hook(ctx.as_ptr() as u64);
    0
}

/// Likewise, each packet that leaves it.
#[fexit(function = "nf_hook_slow")]
pub fn path_hook_left(ctx: FExitContext) -> i32 {
    path::leaves_hook(ctx.as_ptr() as u64);
    0
}

/// In a trace, where the kernel has fentry: UDP has put a packet into its socket's buffer (net/ipv4/udp.c).
#[fexit(function = "__udp_enqueue_schedule_skb")]
pub fn path_taken_by_udp(ctx: FExitContext) -> i32 {
    path::queued_by_udp(ctx.as_ptr() as u64);
    0
}

/// In a trace, where the kernel has kprobes: what nft tells its own tracing, of all packets.
#[kprobe(function = "__nft_trace_packet")]
pub fn path_nft_rule(ctx: ProbeContext) -> u32 {
    let arguments = (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3), ctx.arg(4));
    if let (Some(first), Some(second), Some(third), Some(fourth), Some(fifth)) = arguments {
        nft_trace::on_rule([first, second, third, fourth, fifth]);
    }
    0
}

/// Never attached: run once by the user half to learn what a network namespace looks like, from its own.
#[raw_tracepoint]
pub fn own_netns(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    netns::learn_own();
    0
}

/// Never attached: run by the user half to copy kernel memory, `args[1]` bytes from address `args[0]`.
#[raw_tracepoint]
pub fn read_memory(ctx: RawTracePointContext) -> i32 {
    memory::copy_out(ctx.arg(0), ctx.arg(1));
    0
}

/// Never attached: run by the user half on each CPU, to learn what that adds to per-CPU addresses.
#[raw_tracepoint]
pub fn own_per_cpu(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    memory::own_per_cpu();
    0
}

/// The licence that the kernel checks for GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}
