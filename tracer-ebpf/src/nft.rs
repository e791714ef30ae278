//! Which nft rule or policy dropped a packet.
//!
//! nft_do_chain (net/netfilter/nf_tables_core.c) frees the packet itself. Whoever it calls for that saves its
//! registers on the stack, and one of them holds the expression that gave the verdict, or the base chain where the
//! policy did. Which word that is, for each call site, the user half's self-test has learned. Only the address is
//! taken here: it means something together with the ruleset's generation, which is read along with it.

use crate::{
    maps::{control, scratch},
    memory::{is_kernel_address, read},
    roles, stack,
};
use tracer_common::{ABSENT, Control, attribution_kind, attribution_word};

/// Step: puts what is known into the key.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attribute_nft(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let Some((kind, address)) = roles::value(scratch) else { return 0 };
        if !is_kernel_address(address) {
            return 0;
        }
        (*scratch).key.attribution[0] = address;
        (*scratch).key.attribution[1] =
            attribution_word(kind, stack::hook(scratch), sequence(control, (*scratch).netns));
    }
    1
}

/// True if the key names an nft rule.
#[inline(always)]
pub fn is_rule(attribution: [u64; 2]) -> bool {
    tracer_common::kind_of(attribution[1]) == attribution_kind::NFT_RULE
}

/// The generation of the nft ruleset in the netns at `net`; 0 if it is not known.
///
/// # Safety
/// `control` must be a map value.
#[inline(always)]
pub unsafe fn sequence(control: *const Control, net: u64) -> u32 {
    // SAFETY: a map value.
    let offsets = unsafe { (*control).sequence };
    if net == 0 {
        return 0;
    }
    if offsets.direct != ABSENT {
        return read::<u32>(net + offsets.direct as u64).unwrap_or(0);
    }
    if offsets.generic == ABSENT || offsets.pointer == ABSENT || offsets.base_seq == ABSENT {
        return 0;
    }
    let Some(generic) = read::<u64>(net + offsets.generic as u64) else { return 0 };
    let Some(pernet) = read::<u64>(generic + offsets.pointer as u64) else { return 0 };
    read::<u32>(pernet + offsets.base_seq as u64).unwrap_or(0)
}
