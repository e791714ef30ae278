//! Tables of ebtables-legacy without rules, whose policy drops. No distribution needs to have the tool for it.

use super::command;
use super::namespace::Namespace;
use anyhow::Result;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// EBT_SO_SET_ENTRIES (include/uapi/linux/netfilter_bridge/ebtables.h).
const SET_ENTRIES: libc::c_int = 128;
/// EBT_DROP and EBT_ACCEPT (same header).
const DROP: i32 = -2;
const ACCEPT: i32 = -1;
/// A table: its name, its three hooks (NF_BR_*), and the one whose policy drops.
struct Table {
    name: &'static str,
    hooks: [(usize, &'static str); 3],
    drops: &'static str,
}

/// net/bridge/netfilter/ebtable_filter.c
const FILTER: Table =
    Table { name: "filter", hooks: [(1, "INPUT"), (2, "FORWARD"), (3, "OUTPUT")], drops: "FORWARD" };
/// net/bridge/netfilter/ebtable_nat.c
const NAT: Table =
    Table { name: "nat", hooks: [(0, "PREROUTING"), (3, "OUTPUT"), (4, "POSTROUTING")], drops: "PREROUTING" };

/// struct ebt_replace
#[repr(C)]
struct Replace {
    name: [u8; 32],
    valid_hooks: u32,
    entries: u32,
    size: u32,
    hook_entry: [*const Chain; 6],
    counters: u32,
    counters_at: *const u8,
    entries_at: *const Chain,
}

/// struct ebt_entries: a chain and its policy.
#[repr(C, align(8))]
struct Chain {
    distinguisher: u32,
    name: [u8; 32],
    counter_offset: u32,
    policy: i32,
    entries: u32,
}

/// Makes the filter table of bridges drop what is forwarded.
///
/// # Errors
/// When the kernel has no such tables, or refuses this one.
pub fn drop_forwarded(netns: &Namespace) -> Result<()> {
    // As the tool does; where it is built in, or not there at all, that fails.
    let _ = command::run("modprobe ebtable_filter");
    netns.enter(|| Ok(set(&FILTER)?))
}

/// Makes the nat table of bridges drop all that comes in.
///
/// # Errors
/// When the kernel has no such tables, or refuses this one.
pub fn drop_incoming(netns: &Namespace) -> Result<()> {
    let _ = command::run("modprobe ebtable_nat");
    netns.enter(|| Ok(set(&NAT)?))
}

fn set(table: &Table) -> io::Result<()> {
    let chains = table.hooks.map(|(_, name)| Chain {
        distinguisher: 0,
        name: padded(name),
        counter_offset: 0,
        policy: if name == table.drops { DROP } else { ACCEPT },
        entries: 0,
    });
    let mut replace = Replace {
        name: padded(table.name),
        valid_hooks: table.hooks.iter().map(|(hook, _)| 1 << hook).sum(),
        entries: 0,
        size: size_of_val(&chains) as u32,
        hook_entry: [ptr::null(); 6],
        counters: 0,
        counters_at: ptr::null(),
        entries_at: chains.as_ptr(),
    };
    for ((hook, _), chain) in table.hooks.iter().zip(&chains) {
        replace.hook_entry[*hook] = chain;
    }
    // SAFETY: returns a new descriptor, or -1.
    let socket = match unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW)
    } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: it is open, and nobody else's.
        fd => unsafe { OwnedFd::from_raw_fd(fd) },
    };
    // As if the chains followed, though they are read where they are.
    let length = (size_of::<Replace>() + size_of_val(&chains)) as libc::socklen_t;
    // SAFETY: the option reads such a structure and the chains that it points to.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            SET_ENTRIES,
            ptr::from_ref(&replace).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn padded(name: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

const _: () = assert!(size_of::<Replace>() == 120);
const _: () = assert!(size_of::<Chain>() == 48);
