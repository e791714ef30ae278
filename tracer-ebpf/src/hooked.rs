//! Which hook function dropped a packet that nf_hook_slow freed.
//!
//! nf_hook_slow (net/netfilter/core.c) holds in registers the functions that the packet is on its way through, and the index
//! of the one that it called last. Those functions are replaced as a whole, at any time: what is in force a moment later may
//! be others. But these stay in memory as long as the packet is on its way (RCU), so what is read of them here is what was
//! called; only a function that is just being removed is no longer to be seen (accept_all stands in its place).

use crate::{
    maps::{Scratch, has, offset, scratch},
    memory::{is_kernel_address, read},
    roles, stack,
};
use core::ptr::write_volatile;
use tracer_common::{attribution_kind, attribution_word, fold, index_of, kind_of, undecided, with_index};

/// Functions on a hook at most (MAX_HOOK_COUNT, net/netfilter/core.c).
const MOST: u64 = 1024;

/// Step: puts the index of the hook function into the key, and the function itself where no rule is known.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attribute_hook(index: u32) -> u32 {
    let scratch = scratch!(index);
    // SAFETY: map values.
    unsafe {
        let Some((attribution_kind::HOOK, place)) = roles::value(scratch) else { return 0 };
        let word = (*scratch).key.attribution[1];
        // Where a rule is known the key has no room for the function: only an event has it.
        let is_function = kind_of(word) != attribution_kind::COUNTED && read_function(scratch, place);
        let [function, given] = (*scratch).hooked;
        let hook = stack::hook(scratch);
        let is_nothing = word == attribution_word(attribution_kind::NONE, hook, 0);
        let is_undecided = kind_of(word) == attribution_kind::UNDECIDED && word as u32 != undecided::REPLACED;
        let word = if is_function && (is_nothing || is_undecided) {
            (*scratch).key.attribution[0] = function;
            attribution_word(attribution_kind::HOOK, hook, fold(given))
        } else if is_nothing {
            attribution_word(attribution_kind::HOOK, hook, 0)
        } else {
            word
        };
        (*scratch).key.attribution[1] = with_index(word, place);
    }
    1
}

/// Step: reads the function for the event, where the key has its index only.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn complete_hooked(index: u32) -> u32 {
    let scratch = scratch!(index);
    // SAFETY: a map value.
    unsafe {
        match index_of((*scratch).key.attribution[1]) {
            Some(place) if (*scratch).hooked[0] == 0 => read_function(scratch, place as u64) as u32,
            _ => 0,
        }
    }
}

/// Reads the function at a place among those that the packet was on its way through, and what it is given.
#[inline(always)]
unsafe fn read_function(scratch: *mut Scratch, place: u64) -> bool {
    // SAFETY: the caller's: a map value.
    unsafe {
        let word = (*scratch).depth.entries_word as i64;
        if !has!(entries_hooks) || word == 0 || place >= MOST {
            return false;
        }
        let Some(entries) = read::<u64>((*scratch).context.wrapping_add_signed(word * 8)) else {
            return false;
        };
        if !is_kernel_address(entries) {
            return false;
        }
        let at = entries + offset!(entries_hooks) as u64 + place * 16;
        match read::<[u64; 2]>(at) {
            Some([function, given]) if is_kernel_address(function) => {
                write_volatile(&raw mut (*scratch).hooked[0], function);
                write_volatile(&raw mut (*scratch).hooked[1], given);
                true
            }
            _ => false,
        }
    }
}
