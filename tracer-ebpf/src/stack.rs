//! Saved registers on the kernel stack.
//!
//! When netfilter frees a packet, the function that frees it has pushed its caller's registers, and one of them
//! points to the hook's `struct nf_hook_state` (or to an nft_pktinfo that does). They lie a small fixed distance
//! above the program's *context*: its own frame may be on another stack. Which word it is is the compiler's
//! choice: found by looking, remembered for each call site, and proven again for every packet.

use crate::{
    maps::{SITES, Scratch, has, offset},
    memory::{copy, is_kernel_address, read},
    netns,
};
use tracer_common::{ABSENT, Control, Site, TextRange, WINDOW_WORDS};

/// Netfilter's hook state of this packet, proven.
#[derive(Clone, Copy)]
pub struct HookState {
    pub address: u64,
    pub net: u64,
    pub inode: u32,
}

/// Hooks and protocol families that exist, with room (NF_INET_INGRESS is 5; NFPROTO_NUMPROTO is 13;
/// include/uapi/linux/netfilter.h).
const HOOKS: u8 = 8;
const FAMILIES: u8 = 16;

#[inline(always)]
fn within(range: TextRange, address: u64) -> bool {
    address > range.start && address <= range.end
}

/// True if netfilter freed the packet.
///
/// # Safety
/// `control` must be a map value.
#[inline(always)]
pub unsafe fn is_netfilter(control: *const Control, location: u64) -> bool {
    // SAFETY: a map value.
    unsafe { within((*control).nf_hook_slow, location) || within((*control).nft_do_chain, location) }
}

/// Copies the stack above the program's context. In pieces: a read across the end of the stack fails, and what
/// can't be read the helper leaves zero.
///
/// # Safety
/// `to` must be writable.
#[inline(always)]
pub unsafe fn copy_window(to: *mut [u64; WINDOW_WORDS], context: u64) {
    const PIECE: usize = 64;
    let mut at = 0;
    while at < WINDOW_WORDS * 8 {
        // SAFETY: within the window.
        unsafe { copy(to.cast::<u8>().add(at), PIECE as u32, context + at as u64) };
        at += PIECE;
    }
}

/// The hook state of a packet that netfilter freed.
///
/// # Safety
/// The pointers must be map values.
#[inline(always)]
pub unsafe fn hook_state(
    control: *const Control,
    scratch: *mut Scratch,
    location: u64,
    skb: u64,
    context: u64,
) -> Option<HookState> {
    if !has!(state_hook, state_pf, state_net) {
        return None;
    }
    let index = ((location >> 2) ^ (location >> 9)) as u32 & (Site::COUNT - 1);
    let site = SITES.get_ptr_mut(index)?;
    // SAFETY: map values. Several CPUs may write one site: each writes the same, or it is not believed.
    unsafe {
        if (*site).location == location && (*site).word != 0 {
            let word = read::<u64>(context + (((*site).word - 1) as u64) * 8)?;
            let state =
                if (*site).through_pktinfo != 0 { through_pktinfo(control, word, skb) } else { proven(control, word) };
            if state.is_some() {
                return state;
            }
        }
        copy_window(&raw mut (*scratch).window, context);
        let window = (&raw const (*scratch).window).cast::<u64>();
        let mut word = 0;
        while word < WINDOW_WORDS {
            let value = *window.add(word);
            if is_kernel_address(value) {
                let direct = proven(control, value);
                let state = if direct.is_some() { direct } else { through_pktinfo(control, value, skb) };
                if state.is_some() {
                    (*site).word = word as u32 + 1;
                    (*site).through_pktinfo = direct.is_none() as u32;
                    (*site).location = location;
                    return state;
                }
            }
            word += 1;
        }
        None
    }
}

/// The state at `address`, if there is one: its netns is a netns, hook and family exist.
#[inline(always)]
unsafe fn proven(control: *const Control, address: u64) -> Option<HookState> {
    if !is_kernel_address(address) {
        return None;
    }
    let net = read::<u64>(address + offset!(state_net) as u64)?;
    // SAFETY: a map value.
    let inode = unsafe { netns::inode(control, net) };
    if inode == 0 {
        return None;
    }
    let hook = read::<u8>(address + offset!(state_hook) as u64)?;
    let family = read::<u8>(address + offset!(state_pf) as u64)?;
    if hook >= HOOKS || family >= FAMILIES || family == 0 {
        return None;
    }
    Some(HookState { address, net, inode })
}

/// The state of the nft_pktinfo at `address`, if that speaks of this very packet.
#[inline(always)]
unsafe fn through_pktinfo(control: *const Control, address: u64, skb: u64) -> Option<HookState> {
    // SAFETY: a map value.
    unsafe {
        let (skb_at, state_at) = ((*control).pktinfo_skb, (*control).pktinfo_state);
        if skb_at == ABSENT || state_at == ABSENT || !is_kernel_address(address) {
            return None;
        }
        if read::<u64>(address + skb_at as u64)? != skb {
            return None;
        }
        proven(control, read::<u64>(address + state_at as u64)?)
    }
}
