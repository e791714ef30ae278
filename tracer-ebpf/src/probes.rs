//! Programs that run on packets that are not dropped, too: attached only where the user asks for them (`--probes always`).
//!
//! On its way through a hook they note, by the packet's address, where its hook state is and which nft expression said
//! "drop". If it is dropped, the program on the tracepoint takes the note: as the answer where the stack has none, and as
//! a check of it where it has.

use crate::{
    maps::{CONTROL, CPUS, PROBED, control, scratch},
    memory::{is_kernel_address, read},
    roles::site,
    stack,
};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use core::ptr::read_volatile;
use tracer_common::{
    ABSENT, Control, Layout, attribution_kind, attribution_word, kind_of, state_path, with_index_of,
};

/// What is noted of a packet on a hook.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Probed {
    /// Address of its struct nf_hook_state.
    pub state: u64,
    /// Address of the nft expression that dropped it; 0 if none did.
    pub expression: u64,
}

/// NFT_REG_VERDICT and NF_DROP (include/uapi/linux/netfilter/nf_tables.h, include/uapi/linux/netfilter.h).
const REG_VERDICT: u8 = 0;
const DROP: u32 = 0;
/// NF_VERDICT_MASK (include/uapi/linux/netfilter.h): errors of nft's own (jump, return ...) have it set.
const VERDICT_MASK: u32 = 0xff;

/// A packet comes to a hook: nf_hook_slow(skb, state, ...), net/netfilter/core.c. `arguments` is the program's context.
pub fn on_hook(arguments: u64) -> Option<()> {
    // Read like any memory: they are plain numbers then.
    let (skb, state) = (read::<u64>(arguments)?, read::<u64>(arguments + 8)?);
    PROBED.insert(&skb, &Probed { state, expression: 0 }, 0).ok()
}

/// It leaves the hook again, with a result: 1 to go on, negative if it was dropped, 0 if somebody has it now.
pub fn after_hook(arguments: u64) -> Option<()> {
    let (skb, result) = (read::<u64>(arguments)?, read::<i32>(arguments + 4 * 8)?);
    if result < 0 && PROBED.get_ptr(&skb).is_some() {
        // The program on the tracepoint takes the note of each drop that it sees.
        // SAFETY: the helper has no preconditions.
        let cpu = CPUS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() } as u32 * Layout::LEVELS)?;
        // SAFETY: a field of a map value. Where one run interrupts another an addition may get lost.
        unsafe { (*cpu).probe_unseen += 1 };
        let _ = PROBED.remove(&skb);
    }
    Some(())
}

/// nft_immediate_eval(expr, regs, pkt), net/netfilter/nft_immediate.c: a verdict, or a value for a register.
pub fn on_immediate(expression: u64, pktinfo: u64) -> Option<()> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: a map value.
    let probes = unsafe { (*control).probes };
    let data = expression + probes.expression_data as u64;
    if read::<u8>(data + probes.immediate_register as u64)? != REG_VERDICT
        || read::<u32>(data + probes.immediate_code as u64)? & VERDICT_MASK != DROP
    {
        return None;
    }
    note(control, expression, pktinfo)
}

/// nft_reject_*_eval(expr, regs, pkt): always drops.
pub fn on_reject(expression: u64, pktinfo: u64) -> Option<()> {
    note(CONTROL.get_ptr(0)?, expression, pktinfo)
}

/// nft_target_eval_xt(expr, regs, pkt), net/netfilter/nft_compat.c: a target of iptables; REJECT always drops.
pub fn on_target(expression: u64, pktinfo: u64) -> Option<()> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: a map value.
    let probes = unsafe { (*control).probes };
    let ops = read::<u64>(expression)?;
    let target = read::<u64>(ops + probes.ops_data as u64)?;
    if read::<[u8; 7]>(target + probes.target_name as u64)? != *b"REJECT\0" {
        return None;
    }
    note(control, expression, pktinfo)
}

fn note(control: *const Control, expression: u64, pktinfo: u64) -> Option<()> {
    // SAFETY: a map value.
    let (skb_at, state_at) = unsafe { ((*control).pktinfo_skb, (*control).pktinfo_state) };
    if skb_at == ABSENT || state_at == ABSENT {
        return None;
    }
    let skb = read::<u64>(pktinfo + skb_at as u64)?;
    let state = read::<u64>(pktinfo + state_at as u64)?;
    PROBED.insert(&skb, &Probed { state, expression }, 0).ok()
}

/// Step: takes the note of a packet that netfilter freed, and its hook state from there. 0 without one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_note(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        (*scratch).expression = 0;
        let skb = read_volatile(&raw const (*scratch).packet);
        let Some(noted) = PROBED.get_ptr(&skb) else { return 0 };
        let Probed { state, expression } = *noted;
        let _ = PROBED.remove(&skb);
        if !stack::believe(control, scratch, state) {
            return 0;
        }
        (*scratch).expression = expression;
        let depth = (*scratch).depth;
        if read_volatile(&raw const (*scratch).site) == site::KNOWN && depth.state_path == state_path::STATE {
            check(index, read::<u64>((*scratch).context + depth.state_word as u64 * 8) == Some(state));
        }
    }
    1
}

/// Step: the nft rule that was noted goes into the key; where the stack has told another one, none does.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attribute_note(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let expression = (*scratch).expression;
        if !is_kernel_address(expression) {
            return 0;
        }
        let [address, word] = (*scratch).key.attribution;
        let is_told = kind_of(word) == attribution_kind::NFT_RULE;
        if is_told {
            check(index, address == expression);
        }
        let kind = if is_told && address != expression {
            attribution_kind::NONE
        } else {
            attribution_kind::NFT_RULE
        };
        let sequence = crate::nft::sequence(control, (*scratch).netns);
        let answer = attribution_word(kind, stack::hook(scratch), sequence);
        (*scratch).key.attribution = [expression, with_index_of(answer, word)];
    }
    1
}

/// Counts whether probes and the stack tell the same.
#[inline(always)]
unsafe fn check(index: u32, is_same: bool) {
    let Some(cpu) = CPUS.get_ptr_mut(index) else { return };
    // SAFETY: fields of a map value that this level of this CPU writes alone.
    unsafe { *if is_same { &raw mut (*cpu).probe_agreed } else { &raw mut (*cpu).probe_disagreed } += 1 };
}
