//! Which network namespace a packet was in.
//!
//! Every pointer is doubted: `skb->dev` is a union that UDP, TCP's out-of-order queue, netem and fragment queues
//! overwrite, and `skb->sk` and `_skb_refdst` have such unions too. A candidate counts only if it leads to memory
//! whose `ns.ops` is that of network namespaces.
//!
//! `skb->sk` comes last: a packet that crossed a veth keeps its sender's socket until ip_rcv() orphans it, so at tc
//! ingress that socket is in the netns that the packet came from.

use crate::{
    maps::{OWN_NETNS, Scratch, control, has, offset, scratch, skb_field, state_field},
    memory::{is_kernel_address, read},
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task};
use tracer_common::{Control, NetnsSource};

/// The inode number of the `struct net` at `address`; 0 if there is none.
#[inline(always)]
pub unsafe fn inode(control: *const Control, address: u64) -> u32 {
    if !is_kernel_address(address) || !has!(net_ops, net_inum) {
        return 0;
    }
    // SAFETY: a map value.
    let expected = unsafe { (*control).netns_ops };
    // In every kernel seen `inum` follows `ops` (include/linux/ns_common.h): one read serves both.
    let (ops, inum) = if offset!(net_inum) == offset!(net_ops) + 8 {
        match read::<[u64; 2]>(address + offset!(net_ops) as u64) {
            Some(words) => (words[0], words[1] as u32),
            None => return 0,
        }
    } else {
        match (
            read::<u64>(address + offset!(net_ops) as u64),
            read::<u32>(address + offset!(net_inum) as u64),
        ) {
            (Some(ops), Some(inum)) => (ops, inum),
            _ => return 0,
        }
    };
    if expected != 0 && ops == expected { inum } else { 0 }
}

/// The netns of a packet that netfilter freed on its way to no socket, which needs no step of its own: calls cost
/// more than what they do where returns are made safe (Safe RET, Documentation/admin-guide/hw-vuln/srso.rst).
///
/// # Safety
/// `scratch` must be a map value.
#[inline(always)]
pub unsafe fn of_hook(scratch: *mut Scratch) -> bool {
    // SAFETY: the caller's.
    unsafe { !is_kernel_address((*scratch).receiving_socket) && of_state(scratch) }
}

/// Takes the hook state's netns, if there is one; it is proven already.
#[inline(always)]
unsafe fn of_state(scratch: *mut Scratch) -> bool {
    // SAFETY: a map value.
    unsafe {
        if !has!(state_net) || (*scratch).state_inode == 0 {
            return false;
        }
        (*scratch).netns = state_field!(scratch, state_net, u64);
        (*scratch).key.netns = (*scratch).state_inode;
        (*scratch).netns_source = NetnsSource::HookState as u32;
        true
    }
}

/// Step: finds the packet's netns, from the most to the least trusted source.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_netns(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    // SAFETY: map values.
    unsafe {
        if of_socket(control, scratch, (*scratch).receiving_socket, NetnsSource::ReceivingSocket) {
            return 0;
        }
        if of_state(scratch) {
            return 0;
        }
        if has!(skb_dev)
            && of_device(control, scratch, skb_field!(scratch, skb_dev, u64), NetnsSource::Device)
        {
            return 0;
        }
        if has!(skb_refdst, dst_dev) {
            // The lowest bit says that the reference is not counted (SKB_DST_NOREF, include/linux/skbuff.h).
            let route = skb_field!(scratch, skb_refdst, u64) & !1;
            if is_kernel_address(route)
                && let Some(device) = read::<u64>(route + offset!(dst_dev) as u64)
                && of_device(control, scratch, device, NetnsSource::Route)
            {
                return 0;
            }
        }
        if has!(skb_sk) && of_socket(control, scratch, skb_field!(scratch, skb_sk, u64), NetnsSource::Socket)
        {
            return 0;
        }
        (*scratch).netns = 0;
        (*scratch).key.netns = 0;
        (*scratch).netns_source = NetnsSource::None as u32;
    }
    0
}

#[inline(always)]
unsafe fn of_socket(
    control: *const Control,
    scratch: *mut Scratch,
    socket: u64,
    source: NetnsSource,
) -> bool {
    if !is_kernel_address(socket) || !has!(sock_net) {
        return false;
    }
    // SAFETY: map values.
    match read::<u64>(socket + offset!(sock_net) as u64) {
        Some(address) => unsafe { believe(control, scratch, address, source) },
        None => false,
    }
}

/// The netns of a device, unless the pointer is none, or a stand-in: a route whose device was unregistered points
/// to `blackhole_netdev`, which has no index and is in the initial netns.
#[inline(always)]
unsafe fn of_device(
    control: *const Control,
    scratch: *mut Scratch,
    device: u64,
    source: NetnsSource,
) -> bool {
    if !is_kernel_address(device) || !has!(dev_net, dev_ifindex) {
        return false;
    }
    let (Some(address), Some(ifindex)) =
        (read::<u64>(device + offset!(dev_net) as u64), read::<i32>(device + offset!(dev_ifindex) as u64))
    else {
        return false;
    };
    // SAFETY: map values.
    ifindex > 0 && unsafe { believe(control, scratch, address, source) }
}

/// Takes the netns at `address` for the packet's, if it is one.
#[inline(always)]
unsafe fn believe(control: *const Control, scratch: *mut Scratch, address: u64, source: NetnsSource) -> bool {
    // SAFETY: map values.
    unsafe {
        let inode = inode(control, address);
        if inode == 0 {
            return false;
        }
        (*scratch).netns = address;
        (*scratch).key.netns = inode;
        (*scratch).netns_source = source as u32;
        true
    }
}

/// Id of the process that runs now, as the kernel counts them: a pid namespace has its own.
#[inline(always)]
pub fn own_process() -> u64 {
    bpf_get_current_pid_tgid() >> 32
}

/// Writes down address, `ops` and inode number of the current task's network namespace.
#[inline(always)]
pub fn learn_own() {
    if !has!(task_nsproxy, nsproxy_net, net_ops, net_inum) {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let Some(proxy) = read::<u64>(task + offset!(task_nsproxy) as u64) else { return };
    let Some(net) = read::<u64>(proxy + offset!(nsproxy_net) as u64) else { return };
    let Some(ops) = read::<u64>(net + offset!(net_ops) as u64) else { return };
    let Some(inum) = read::<u32>(net + offset!(net_inum) as u64) else { return };
    if let Some(found) = OWN_NETNS.get_ptr_mut(0) {
        // SAFETY: a map value.
        unsafe { *found = [net, ops, inum as u64, own_process()] };
    }
}
