//! Saved registers on the kernel stack.
//!
//! When netfilter frees a packet, the function that frees it has pushed its caller's registers, and one of them
//! points to the hook's `struct nf_hook_state` (or to an nft_pktinfo that does). They lie a small fixed distance
//! above the program's *context*: its own frame may be on another stack. Which word it is is the compiler's
//! choice: learned and proven in the self-test. Where that could not be done it is found by looking, remembered for
//! each call site, and checked again for every packet, which may take a leftover of an earlier one for the living one.

use crate::{
    maps::{SCAN_WORDS, SITES, Scratch, control, has, offset, scratch, state_field},
    memory::{copy, is_kernel_address, read},
    netns,
    roles::site,
};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{ABSENT, Control, NEAR_WORDS, Offsets, Site, lead, state_path};

/// Hooks and protocol families that exist, with room (NF_INET_INGRESS is 5; NFPROTO_NUMPROTO is 13;
/// include/uapi/linux/netfilter.h).
const HOOKS: u8 = 8;
const FAMILIES: u8 = 16;

/// True if netfilter freed the packet.
///
/// # Safety
/// `control` must be a map value.
#[inline(always)]
pub unsafe fn is_netfilter(control: *const Control, location: u64) -> bool {
    // SAFETY: a map value.
    unsafe { (*control).nf_hook_slow.has_return(location) || (*control).nft_do_chain.has_return(location) }
}

/// True if nf_hook_slow itself freed the packet.
///
/// # Safety
/// `control` must be a map value.
#[inline(always)]
pub unsafe fn is_hook_loop(control: *const Control, location: u64) -> bool {
    // SAFETY: a map value.
    unsafe { (*control).nf_hook_slow.has_return(location) }
}

/// The packet's hook, as family and number, if its state was found.
///
/// # Safety
/// `scratch` must be a map value.
#[inline(always)]
pub unsafe fn hook(scratch: *const Scratch) -> Option<(u8, u8)> {
    // SAFETY: the caller's.
    unsafe {
        if !has!(state_hook, state_pf) || (*scratch).state == 0 {
            return None;
        }
        Some((state_field!(scratch, state_pf, u8), state_field!(scratch, state_hook, u8)))
    }
}

/// Copies the stack above the program's context. In pieces: a read across the end of the stack fails, and what
/// can't be read the helper leaves zero.
///
/// # Safety
/// `to` must have room for `words` words, a multiple of 8.
#[inline(always)]
pub unsafe fn copy_window(to: *mut u64, words: usize, context: u64) {
    const PIECE: usize = 8;
    let mut at = 0;
    while at < words {
        // SAFETY: within the window.
        unsafe { copy(to.add(at).cast(), (PIECE * 8) as u32, context + at as u64 * 8) };
        at += PIECE;
    }
}

/// Step: finds the hook state of a packet that netfilter freed, where this call site's layout is known; 0 if it is
/// not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_hook_state(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values. Several CPUs may write one site: each writes the same, or it is not believed.
    unsafe {
        match read_volatile(&raw const (*scratch).site) {
            // Proven in the self-test: nothing else is looked at.
            site::KNOWN if (*scratch).depth.state_path == state_path::STATE => {
                follow(control, scratch, (*scratch).depth.state_word as u32, state_path::STATE);
                return 1;
            }
            site::KNOWN if (*scratch).depth.state_path == state_path::CALLER => {
                if is_hook_loop(control, (*scratch).key.location) {
                    find_state_in_caller(index);
                } else {
                    find_in_caller(index);
                }
                return 1;
            }
            // What a search finds may be a leftover.
            site::OTHER_DEPTH => return 1,
            _ => {}
        }
        let location = (*scratch).key.location;
        let Some(found) = SITES.get_ptr_mut(site_index(location)) else { return 0 };
        if (*found).location != location || (*found).word == 0 {
            return 0;
        }
        if (*found).path == state_path::ON_STACK as u32 {
            return 1;
        }
        follow(control, scratch, (*found).word - 1, (*found).path as u8) as u32
    }
}

/// Step: finds the nft_pktinfo in the frame of nft_do_chain's caller. Where in the frame it lies is remembered for each
/// caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_in_caller(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let frame = (*scratch).depth.state_word as u32 + 1;
        let Some(caller) = read::<u64>((*scratch).context + (frame - 1) as u64 * 8) else { return 0 };
        let Some(known) = SITES.get_ptr_mut(site_index(caller)) else { return 0 };
        if (*known).location == caller && (*known).word != 0 {
            return follow(control, scratch, frame + (*known).word - 1, state_path::IN_PKTINFO) as u32;
        }
        let window = (&raw mut (*scratch).window).cast::<u64>();
        copy_window(window, CALLER_WORDS, (*scratch).context + frame as u64 * 8);
        let mut word = 0;
        while word < CALLER_WORDS {
            // The frame begins with it: the first one is the living one, others lie in frames above.
            if *window.add(word) == (*scratch).packet && try_pktinfo(index, frame + word as u32) != 0 {
                return remember(caller, word as u32, state_path::IN_PKTINFO);
            }
            word += 1;
        }
    }
    0
}

/// Step: finds the hook state in the frame of nf_hook_slow's caller. Where in the frame it lies is remembered for each
/// caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_state_in_caller(index: u32) -> u32 {
    let scratch = scratch!(index);
    if !has!(state_hook, state_pf, state_net) || offset!(state_net) as usize >= Offsets::STATE_MAX {
        return 0;
    }
    // SAFETY: map values.
    unsafe {
        let frame = (*scratch).depth.state_word as u32 + 1;
        let Some(caller) = read::<u64>((*scratch).context + (frame - 1) as u64 * 8) else { return 0 };
        let Some(known) = SITES.get_ptr_mut(site_index(caller)) else { return 0 };
        if (*known).location == caller && (*known).word != 0 {
            return try_state(index, frame + (*known).word - 1);
        }
        let window = (&raw mut (*scratch).window).cast::<u64>();
        copy_window(window, CALLER_WORDS, (*scratch).context + frame as u64 * 8);
        let net = offset!(state_net) as usize / 8;
        let mut word = 0;
        while word < CALLER_WORDS - Offsets::STATE_MAX / 8 {
            // The first one is the living one: others lie in frames above.
            if is_kernel_address(*window.add(word + net)) && try_state(index, frame + word as u32) != 0 {
                return remember(caller, word as u32, state_path::CALLER);
            }
            word += 1;
        }
    }
    0
}

/// Takes the state that a word of the stack leads to.
#[inline(always)]
unsafe fn follow(control: *const Control, scratch: *mut Scratch, word: u32, path: u8) -> bool {
    // SAFETY: map values.
    unsafe {
        let at = (*scratch).context + word as u64 * 8;
        let Some(value) = read::<u64>(at) else { return false };
        if path == state_path::STATE {
            return believe(control, scratch, value);
        }
        through_pktinfo(control, scratch, if path == state_path::PKTINFO { value } else { at })
    }
}

/// Step: notes in the event which words near the context lead to a hook state of the self-test's netns.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_leads(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    if !has!(state_hook, state_pf, state_net) {
        return 0;
    }
    // SAFETY: map values.
    unsafe {
        let leads = (&raw mut (*scratch).own.leads).cast::<u8>();
        let mut word = 0;
        while word < NEAR_WORDS {
            let path = try_pointer(index, word as u32) as u8;
            let is_own = path != state_path::NONE && (*scratch).state_inode == (*control).own_netns;
            let lead = if is_own { lead(path, state_field!(scratch, state_hook, u8)) } else { 0 };
            write_volatile(leads.add(word), lead);
            word += 1;
        }
    }
    1
}

/// Step: searches the stack for the hook state, and remembers where it was for this call site.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_hook_state(index: u32) -> u32 {
    let scratch = scratch!(index);
    if !has!(state_hook, state_pf, state_net) {
        return 0;
    }
    // SAFETY: map values.
    unsafe {
        let location = (*scratch).key.location;
        let window = (&raw mut (*scratch).window).cast::<u64>();
        copy_window(window, SCAN_WORDS, (*scratch).context);
        let mut word = 0;
        // Callee-saved registers lie close to the context: pointers are followed only there.
        while word < NEAR_WORDS {
            if is_kernel_address(*window.add(word)) {
                let path = try_pointer(index, word as u32);
                if path != state_path::NONE as u32 {
                    return remember(location, word as u32, path as u8);
                }
            }
            word += 1;
        }
        // nft's own frame is large and keeps old words. The living nft_pktinfo is in its caller's frame: the
        // highest one wins.
        // Found in memory, not in a variable: the verifier would follow every value that it may have.
        let found = &raw mut (*scratch).found;
        write_volatile(found, NONE);
        let mut word = 0;
        while word < SCAN_WORDS {
            if *window.add(word) == (*scratch).packet && try_pktinfo(index, word as u32) != 0 {
                write_volatile(found, word as u32);
            }
            word += 1;
        }
        let found = read_volatile(found);
        if found != NONE && try_pktinfo(index, found) != 0 {
            return remember(location, found, state_path::IN_PKTINFO);
        }
        remember(location, 0, state_path::ON_STACK);
    }
    0
}

/// Step: searches the stack for the state itself, where no saved register leads there (5.10, some call sites on 6.1).
///
/// It lies in the frame of nf_hook_slow's caller: above the return address into nf_hook_slow, of which the last copy
/// near the context is the real one (those below it are arguments of the tracepoint). What earlier calls left there
/// is told apart by its netns, which the packet itself has told by now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search_state_on_stack(index: u32) -> u32 {
    let scratch = scratch!(index);
    if !has!(state_hook, state_pf, state_net) || offset!(state_net) as usize >= Offsets::STATE_MAX {
        return 0;
    }
    // SAFETY: map values.
    unsafe {
        let netns = (*scratch).netns;
        if netns == 0 {
            return 0;
        }
        let window = (&raw mut (*scratch).window).cast::<u64>();
        copy_window(window, SCAN_WORDS, (*scratch).context);
        let location = (*scratch).key.location;
        write_volatile(&raw mut (*scratch).found, NONE);
        let mut word = 0;
        while word < RETURN_WORDS {
            if *window.add(word) == location {
                write_volatile(&raw mut (*scratch).found, word as u32);
            }
            word += 1;
        }
        let net = offset!(state_net) as usize / 8;
        let mut word = 0;
        while word < SCAN_WORDS - Offsets::STATE_MAX / 8 {
            // Above the return address that was found.
            let found = read_volatile(&raw const (*scratch).found);
            if found != NONE
                && word as u32 > found
                && *window.add(word + net) == netns
                && try_state(index, word as u32) != 0
            {
                return 1;
            }
            word += 1;
        }
    }
    0
}

/// Words of the frame of the caller of nft_do_chain or nf_hook_slow, a multiple of 8: an nft_pktinfo or a state, and little
/// else.
const CALLER_WORDS: usize = 40;

/// Words above the context among which the return address into nf_hook_slow lies.
const RETURN_WORDS: usize = 64;

/// No word.
const NONE: u32 = u32::MAX;

/// The largest kernel stack: THREAD_SIZE with KASAN (arch/x86/include/asm/page_64_types.h).
const STACK_BYTES: u64 = 32 << 10;

/// Step: tries a word of the stack as a pointer; returns the path that it leads to the hook state by.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn try_pointer(index: u32, word: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        let Some(value) = read::<u64>((*scratch).context + word as u64 * 8) else { return 0 };
        if believe(control, scratch, value) {
            state_path::STATE as u32
        } else if through_pktinfo(control, scratch, value) {
            state_path::PKTINFO as u32
        } else {
            state_path::NONE as u32
        }
    }
}

/// Step: tries the stack at a word as a hook state.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn try_state(index: u32, word: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe { believe(control, scratch, (*scratch).context + word as u64 * 8) as u32 }
}

/// Step: tries the stack at a word as an nft_pktinfo.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn try_pktinfo(index: u32, word: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe { through_pktinfo(control, scratch, (*scratch).context + word as u64 * 8) as u32 }
}

#[inline(always)]
fn site_index(location: u64) -> u32 {
    ((location >> 2) ^ (location >> 9)) as u32 & (Site::COUNT - 1)
}

#[inline(always)]
unsafe fn remember(location: u64, word: u32, path: u8) -> u32 {
    if let Some(site) = SITES.get_ptr_mut(site_index(location)) {
        // SAFETY: a map value.
        unsafe {
            (*site).word = word + 1;
            (*site).path = path as u32;
            (*site).location = location;
        }
    }
    1
}

/// Takes the state at `address` for the packet's, if it is one: it lies on this stack, its netns is a netns, hook and
/// family exist.
///
/// It is read whole, once: each read costs more than the bytes that it reads.
///
/// # Safety
/// `control` and `scratch` must be map values.
#[inline(always)]
pub unsafe fn believe(control: *const Control, scratch: *mut Scratch, address: u64) -> bool {
    if !is_kernel_address(address) || !has!(state_hook, state_pf, state_net) {
        return false;
    }
    // SAFETY: a map value.
    if address.wrapping_sub(unsafe { (*scratch).context }) >= STACK_BYTES {
        return false;
    }
    // SAFETY: map values; the verifier knows the offsets and checks them against the copy's size.
    unsafe {
        let state = &raw mut (*scratch).hook_state;
        if !copy(state.cast(), size_of_val(&*state) as u32, address) {
            return false;
        }
        let net = state_field!(scratch, state_net, u64);
        let inode = netns::inode(control, net);
        if inode == 0 {
            return false;
        }
        let hook = state_field!(scratch, state_hook, u8);
        let family = state_field!(scratch, state_pf, u8);
        if hook >= HOOKS || family >= FAMILIES || family == 0 {
            return false;
        }
        (*scratch).state = address;
        (*scratch).state_inode = inode;
        true
    }
}

/// Takes the state of the nft_pktinfo at `address`, if that speaks of this very packet.
#[inline(always)]
unsafe fn through_pktinfo(control: *const Control, scratch: *mut Scratch, address: u64) -> bool {
    // SAFETY: map values.
    unsafe {
        let (skb_at, state_at) = ((*control).pktinfo_skb, (*control).pktinfo_state);
        if skb_at == ABSENT || state_at == ABSENT {
            return false;
        }
        if read::<u64>(address + skb_at as u64) != Some((*scratch).packet) {
            return false;
        }
        match read::<u64>(address + state_at as u64) {
            Some(state) => believe(control, scratch, state),
            None => false,
        }
    }
}
