//! What a followed packet meets in nft's rules. For its own tracing (`meta nftrace set 1`) the kernel calls a function for each
//! rule that matches, each chain's end and each policy, as soon as any rule in the system could ask for that; whether a packet
//! is traced is only looked at inside. So a probe there sees them all, and no packet needs to be marked.

use crate::{
    maps::{CONTROL, FOLLOWED, STEPS, TRACED, has, offset},
    memory::{is_kernel_address, read},
};
use tracer_common::{ABSENT, Control, NftStep, trace_type};

/// What the function is called with: as many arguments as any kernel's has.
pub type Arguments = [u64; 5];

/// NFT_JUMP and NFT_GOTO (include/uapi/linux/netfilter/nf_tables.h).
const JUMP: i32 = -3;
const GOTO: i32 = -4;

/// The lowest bit of a rule's word: it is none, but the end of the chain's (nft_rule_dp.is_last).
const IS_LAST: u64 = 1;

/// __nft_trace_packet(), net/netfilter/nf_tables_core.c. Most packets are none that is followed.
#[inline(always)]
pub fn on_rule(arguments: Arguments) -> Option<()> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: fields of a map value.
    unsafe {
        let at = &raw const (*control).nft_trace;
        let info = argument(arguments, (*at).argument_info)?;
        let of_info = |index: u32, field: u32| match argument(arguments, index) {
            Some(value) => Some(value),
            None if field != ABSENT => read::<u64>(info + field as u64),
            None => None,
        };
        let packet = of_info((*at).argument_packet, (*at).info_packet)?;
        let skb = read::<u64>(packet + (*control).pktinfo_skb as u64)?;
        let number = (*FOLLOWED.get_ptr(&skb)?).packet;
        // What else is in there is not written where the key was switched on behind the chain's begin (nft_trace_init()).
        if read::<u8>(info + (*at).info_trace as u64)? == 0 {
            return None;
        }
        let base = read::<u64>(info + (*at).info_base_chain as u64)?;
        let base_chain = base + (*at).base_chain as u64;
        let table = read::<u64>(base_chain + (*at).chain_table as u64)?;
        let verdict = of_info((*at).argument_verdict, (*at).info_verdict)?;
        let kind = argument(arguments, (*at).argument_type)? as u32;
        let is_policy = kind == trace_type::POLICY;
        let code = match is_policy {
            true => read::<u8>(base + (*at).base_policy as u64)? as i32,
            false => read::<i32>(verdict + (*at).verdict_code as u64)?,
        };
        let rule = if is_policy { 0 } else { of_info((*at).argument_rule, (*at).info_rule).unwrap_or(0) };
        // At the end of a chain it may point to nothing.
        let word =
            if is_kernel_address(rule) { read::<u64>(rule + (*at).rule_word as u64).unwrap_or(0) } else { 0 };
        let target = match code {
            JUMP | GOTO => handle(control, read::<u64>(verdict + (*at).verdict_chain as u64)?),
            _ => 0,
        };
        let chain = match argument(arguments, (*at).argument_chain) {
            Some(chain) => chain,
            None if is_policy => base_chain,
            None if word & IS_LAST != 0 && (*at).last_chain != ABSENT => {
                read::<u64>(rule + (*at).last_chain as u64).unwrap_or(0)
            }
            None => 0,
        };
        let state = read::<u64>(packet + (*control).pktinfo_state as u64)?;
        if !has!(state_net, state_pf, state_hook, skb_mark) {
            return None;
        }
        let step = NftStep {
            packet: number,
            net: read::<u64>(state + offset!(state_net) as u64)?,
            table: read::<u64>(table + (*at).table_handle as u64)?,
            base_chain: handle(control, base_chain),
            chain: handle(control, chain),
            rule: word,
            target,
            verdict: code,
            kind,
            mark: read::<u32>(skb + offset!(skb_mark) as u64)?,
            family: read::<u8>(state + offset!(state_pf) as u64)?,
            hook: read::<u8>(state + offset!(state_hook) as u64)?,
            reserved: 0,
        };
        if STEPS.output::<NftStep>(&step, 0).is_err()
            && let Some(traced) = TRACED.get_ptr_mut(0)
        {
            (*traced).lost += 1;
        }
    }
    Some(())
}

/// Handle of the chain at an address; 0 where there is none.
#[inline(always)]
unsafe fn handle(control: *const Control, chain: u64) -> u64 {
    if !is_kernel_address(chain) {
        return 0;
    }
    // SAFETY: the caller's.
    let at = unsafe { (*control).nft_trace.chain_handle };
    read::<u64>(chain + at as u64).unwrap_or(0)
}

/// An argument; `None` if the function has none of that kind.
#[inline(always)]
fn argument([first, second, third, fourth, fifth]: Arguments, index: u32) -> Option<u64> {
    match index {
        0 => Some(first),
        1 => Some(second),
        2 => Some(third),
        3 => Some(fourth),
        4 => Some(fifth),
        _ => None,
    }
}
