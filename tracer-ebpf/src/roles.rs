//! What the self-test learned about call sites in netfilter that free packets (`tracer_common::Role`).

use crate::{
    maps::{Scratch, control, scratch},
    memory::read,
};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{Depth, Role};

/// What is known of the call site that freed a packet.
pub mod site {
    /// Nothing.
    pub const UNKNOWN: u32 = 0;
    /// Something, but not at the depth that the stack has now.
    pub const OTHER_DEPTH: u32 = 1;
    /// What its words are.
    pub const KNOWN: u32 = 2;
}

/// Step: finds the role of the call site that freed the packet, and the depth of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_role(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        write_volatile(&raw mut (*scratch).site, site::UNKNOWN);
        let (location, context) = ((*scratch).key.location, (*scratch).context);
        let roles = (&raw const (*control).roles).cast::<Role>();
        let mut at = 0;
        while at < Role::COUNT {
            let role = roles.add(at);
            if (*role).location == location {
                let [near, far] = (*role).depths;
                let is_at = |word: u8| word != 0 && read::<u64>(context + word as u64 * 8) == Some(location);
                // Below the return address are living frames only, above it may be leftovers: the nearer one decides.
                let (known, depth) = if is_at(near.return_word) {
                    (site::KNOWN, near)
                } else if is_at(far.return_word) {
                    (site::KNOWN, far)
                } else {
                    (site::OTHER_DEPTH, Depth::NONE)
                };
                (*scratch).role = (*role).kind;
                (*scratch).depth = depth;
                write_volatile(&raw mut (*scratch).site, known);
                return 1;
            }
            at += 1;
        }
    }
    0
}

/// The kind of the role of the call site that freed the packet, and the word of the stack that answers. `None` where
/// the depth of the stack is not one that was learned.
///
/// # Safety
/// `scratch` must be a map value, after [`find_role`].
#[inline(always)]
pub unsafe fn value(scratch: *const Scratch) -> Option<(u8, u64)> {
    // SAFETY: the caller's.
    unsafe {
        if read_volatile(&raw const (*scratch).site) != site::KNOWN || (*scratch).depth.value_word == 0 {
            return None;
        }
        let word = read::<u64>((*scratch).context + (*scratch).depth.value_word as u64 * 8)?;
        Some(((*scratch).role as u8, word))
    }
}
