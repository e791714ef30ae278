//! Which network namespace a packet was in.
//!
//! Every pointer is doubted: `skb->dev` is a union that UDP, TCP's out-of-order queue, netem and fragment queues
//! overwrite, and `skb->sk` and `_skb_refdst` have such unions too. A candidate counts only if it leads to memory
//! whose `ns.ops` is that of network namespaces.

use crate::{
    maps::{OWN_NETNS, has, offset, skb_field},
    memory::{is_kernel_address, read},
};
use aya_ebpf::helpers::bpf_get_current_task;
use tracer_common::{Control, NetnsSource};

use crate::maps::Scratch;

/// A network namespace, proven to be one.
#[derive(Clone, Copy)]
pub struct Netns {
    pub address: u64,
    pub inode: u32,
    pub source: NetnsSource,
}

impl Netns {
    pub const UNKNOWN: Self = Self { address: 0, inode: 0, source: NetnsSource::None };
}

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

/// The netns of the packet, from the most to the least trusted source. `state_net` is the netns of netfilter's
/// hook state, already proven, or 0.
#[inline(always)]
pub unsafe fn of_packet(
    control: *const Control,
    scratch: *const Scratch,
    receiving_socket: u64,
    state: (u64, u32),
) -> Netns {
    // SAFETY: map values.
    unsafe {
        if receiving_socket != 0
            && let Some(netns) = of_socket(control, receiving_socket, NetnsSource::ReceivingSocket)
        {
            return netns;
        }
        if state.1 != 0 {
            return Netns { address: state.0, inode: state.1, source: NetnsSource::HookState };
        }
        if has!(skb_sk) {
            let socket = skb_field!(scratch, skb_sk, u64);
            if socket != 0
                && let Some(netns) = of_socket(control, socket, NetnsSource::Socket)
            {
                return netns;
            }
        }
        if has!(skb_refdst, dst_dev) {
            // The lowest bit says that the reference is not counted (SKB_DST_NOREF, include/linux/skbuff.h).
            let route = skb_field!(scratch, skb_refdst, u64) & !1;
            if is_kernel_address(route)
                && let Some(device) = read::<u64>(route + offset!(dst_dev) as u64)
                && let Some(netns) = of_device(control, device, NetnsSource::Route)
            {
                return netns;
            }
        }
        if has!(skb_dev)
            && let Some(netns) = of_device(control, skb_field!(scratch, skb_dev, u64), NetnsSource::Device)
        {
            return netns;
        }
        Netns::UNKNOWN
    }
}

#[inline(always)]
unsafe fn of_socket(control: *const Control, socket: u64, source: NetnsSource) -> Option<Netns> {
    if !is_kernel_address(socket) || !has!(sock_net) {
        return None;
    }
    let address = read::<u64>(socket + offset!(sock_net) as u64)?;
    // SAFETY: a map value.
    match unsafe { inode(control, address) } {
        0 => None,
        inode => Some(Netns { address, inode, source }),
    }
}

/// The netns of a device, unless the pointer is none, or a stand-in: a route whose device was unregistered points
/// to `blackhole_netdev`, which has no index and is in the initial netns.
#[inline(always)]
unsafe fn of_device(control: *const Control, device: u64, source: NetnsSource) -> Option<Netns> {
    if !is_kernel_address(device) || !has!(dev_net, dev_ifindex) {
        return None;
    }
    let address = read::<u64>(device + offset!(dev_net) as u64)?;
    // SAFETY: a map value.
    let inode = unsafe { inode(control, address) };
    if inode == 0 || read::<i32>(device + offset!(dev_ifindex) as u64)? <= 0 {
        return None;
    }
    Some(Netns { address, inode, source })
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
        unsafe { *found = [net, ops, inum as u64] };
    }
}
