//! What the self-test learned about call sites in netfilter that free packets (`tracer_common::Role`).

use crate::{maps::Scratch, memory::read};
use tracer_common::{Control, Role};

/// The kind of the role of the call site that freed the packet, and the word of the stack that it speaks of.
///
/// # Safety
/// The pointers must be map values.
#[inline(always)]
pub unsafe fn value(control: *const Control, scratch: *const Scratch) -> Option<(u8, u64)> {
    // SAFETY: the caller's.
    unsafe {
        let location = (*scratch).key.location;
        let roles = (&raw const (*control).roles).cast::<Role>();
        let mut at = 0;
        while at < Role::COUNT {
            let role = roles.add(at);
            if (*role).location == location {
                return Some(((*role).kind as u8, word(scratch, role, location)?));
            }
            at += 1;
        }
    }
    None
}

/// The word that the role speaks of. `None` where the depth of the stack is not one that was learned.
#[inline(always)]
unsafe fn word(scratch: *const Scratch, role: *const Role, location: u64) -> Option<u64> {
    // SAFETY: map values.
    unsafe {
        let context = (*scratch).context;
        let [near, far] = (*role).depths;
        let is_at = |word: u8| word != 0 && read::<u64>(context + word as u64 * 8) == Some(location);
        // Below the return address are living frames only, above it may be leftovers: the nearer one decides.
        let word = if is_at(near.return_word) {
            near.value_word
        } else if is_at(far.return_word) {
            far.value_word
        } else {
            return None;
        };
        read::<u64>(context + word as u64 * 8)
    }
}
