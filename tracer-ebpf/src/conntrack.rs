//! The packet's connection tracking entry.

use crate::{
    maps::{Scratch, has, skb_field},
    memory::{copy, is_kernel_address, read},
};
use tracer_common::{ABSENT, Conntrack, Control, TUPLE_BYTES};

/// `skb->_nfct` keeps `enum ip_conntrack_info` in its lowest three bits (NFCT_INFOMASK, include/linux/skbuff.h).
const INFO_MASK: u64 = 7;

/// The entry's address and the packet's `ip_conntrack_info`; address 0 if there is none.
///
/// # Safety
/// `scratch` must be a map value with the sk_buff's copy in it.
#[inline(always)]
pub unsafe fn of_packet(scratch: *const Scratch) -> (u64, u8) {
    if !has!(skb_nfct) {
        return (0, 0);
    }
    // SAFETY: a map value.
    let word = unsafe { skb_field!(scratch, skb_nfct, u64) };
    let entry = word & !INFO_MASK;
    (if is_kernel_address(entry) { entry } else { 0 }, (word & INFO_MASK) as u8)
}

/// Copies the entry; false if its layout is not known or it can't be read.
///
/// # Safety
/// `control` must be a map value, `to` must be writable.
#[inline(always)]
pub unsafe fn read_entry(control: *const Control, entry: u64, info: u8, to: *mut Conntrack) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let layout = &raw const (*control).conntrack;
        (*to).info = info;
        (*to).padding = 0;
        (*to).status = 0;
        (*to).mark = 0;
        (*to).zone = u16::MAX;
        (*to).tcp_state = u8::MAX;
        let (original, reply) = ((*layout).original, (*layout).reply);
        if entry == 0 || original == ABSENT || reply == ABSENT {
            return false;
        }
        let size = TUPLE_BYTES as u32;
        if !copy((&raw mut (*to).original).cast(), size, entry + original as u64)
            || !copy((&raw mut (*to).reply).cast(), size, entry + reply as u64)
        {
            return false;
        }
        (*to).status = field::<u32>(entry, (*layout).status).unwrap_or(0);
        (*to).mark = field::<u32>(entry, (*layout).mark).unwrap_or(0);
        (*to).zone = field::<u16>(entry, (*layout).zone).unwrap_or(u16::MAX);
        (*to).tcp_state = field::<u8>(entry, (*layout).tcp_state).unwrap_or(u8::MAX);
        true
    }
}

#[inline(always)]
fn field<T: Copy>(entry: u64, offset: u32) -> Option<T> {
    if offset == ABSENT { None } else { read(entry + offset as u64) }
}
