//! TCP's repeated segments: what a peer that does not answer shows on a node that drops nothing. Silent on healthy
//! connections.

use crate::{
    maps::{CONTROL, RETRANSMITS, has, offset},
    memory::{copy, is_kernel_address, read},
    netns,
    packet::set_ipv4,
};
use aya_ebpf::{EbpfContext, programs::BtfTracePointContext};
use core::mem::MaybeUninit;
use tracer_common::Retransmit;

/// AF_INET and AF_INET6 (include/linux/socket.h).
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// A connection that was asked for and not answered (include/net/tcp_states.h).
const TCP_SYN_SENT: u8 = 2;

/// Counts one repeated segment of a socket (include/trace/events/tcp.h: sk, skb).
#[inline(always)]
pub fn on_retransmit(ctx: &BtfTracePointContext) {
    // Read as a plain number: the verifier refuses arithmetic on a typed argument.
    let Some(socket) = read::<u64>(ctx.as_ptr() as u64) else { return };
    let Some(control) = CONTROL.get_ptr(0) else { return };
    if !is_kernel_address(socket)
        || !has!(sock_net, sock_family, sock_state, sock_destination, sock_source, sock_destination_port)
    {
        return;
    }
    let mut key = MaybeUninit::<Retransmit>::uninit();
    let words = key.as_mut_ptr().cast::<u32>();
    let mut i = 0;
    while i < size_of::<Retransmit>() / 4 {
        // SAFETY: within the key, which is aligned to 4. Written one by one: no memset() may remain.
        unsafe { words.add(i).write_volatile(0) };
        i += 1;
    }
    // SAFETY: it is integers only, and all of them were written.
    let key = unsafe { key.assume_init_mut() };
    // SAFETY: a map value; addresses are copied into a key of our own.
    unsafe {
        let Some(family) = read::<u16>(socket + offset!(sock_family) as u64) else { return };
        if family == AF_INET {
            let (Some(source), Some(destination)) = (
                read::<u32>(socket + offset!(sock_source) as u64),
                read::<u32>(socket + offset!(sock_destination) as u64),
            ) else {
                return;
            };
            set_ipv4(&raw mut key.source, source);
            set_ipv4(&raw mut key.destination, destination);
        } else if family == AF_INET6 && has!(sock_source_v6, sock_destination_v6) {
            if !copy((&raw mut key.source).cast(), 16, socket + offset!(sock_source_v6) as u64)
                || !copy((&raw mut key.destination).cast(), 16, socket + offset!(sock_destination_v6) as u64)
            {
                return;
            }
        } else {
            return;
        }
        if let Some(net) = read::<u64>(socket + offset!(sock_net) as u64) {
            key.netns = netns::inode(control, net);
        }
        key.port = u16::from_be(read::<u16>(socket + offset!(sock_destination_port) as u64).unwrap_or(0));
        key.is_syn = (read::<u8>(socket + offset!(sock_state) as u64) == Some(TCP_SYN_SENT)) as u8;
        match RETRANSMITS.get_ptr_mut(&*key) {
            Some(count) => *count += 1,
            // If there is no room even for that, it is not counted; the oldest make room, so that doesn't happen.
            None => {
                let _ = RETRANSMITS.insert(&*key, &1, 0);
            }
        }
    }
}
