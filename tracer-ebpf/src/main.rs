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
mod maps;
mod memory;
mod netns;
mod nft;
mod packet;
mod probes;
mod retransmit;
mod roles;
mod stack;
mod tc;
mod watch;

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, fexit, kprobe, raw_tracepoint},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RawTracePointContext},
};

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
