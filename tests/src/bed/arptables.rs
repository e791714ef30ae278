//! A table of arptables-legacy without rules, whose INPUT policy drops. No distribution needs to have the tool for it.

use super::command;
use super::namespace::Namespace;
use anyhow::Result;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// ARPT_SO_SET_REPLACE (include/uapi/linux/netfilter_arp/arp_tables.h).
const REPLACE: libc::c_int = 96;
/// NF_ARP_IN, NF_ARP_OUT, NF_ARP_FORWARD (include/uapi/linux/netfilter_arp.h): the first drops, the others don't.
const HOOKS: usize = 3;
/// `-NF_DROP - 1` and `-NF_ACCEPT - 1`, as standard targets have them.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
/// Entries of this table and of the empty one that it replaces, whose counters the kernel gives back: a policy for each
/// hook and the end (arpt_alloc_initial_table).
const ENTRIES: usize = HOOKS + 1;

/// struct arpt_entry, which matches all, with its target (struct xt_entry_target and what it decides).
#[repr(C, align(8))]
struct Entry<const DATA: usize> {
    /// struct arpt_arp
    arp: [u8; 164],
    target_offset: u16,
    next_offset: u16,
    comefrom: u32,
    counters: [u64; 2],
    target_size: u16,
    target: [u8; 29],
    revision: u8,
    data: [u8; DATA],
}

/// A policy: XT_STANDARD_TARGET, whose name is empty.
type Policy = Entry<8>;
/// The table's end: XT_ERROR_TARGET.
type End = Entry<32>;

/// struct arpt_replace, with the entries.
#[repr(C)]
struct Replace {
    name: [u8; 32],
    valid_hooks: u32,
    entries: u32,
    size: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
    counters: u32,
    counters_at: *mut [u64; 2],
    policies: [Policy; HOOKS],
    end: End,
}

impl<const DATA: usize> Entry<DATA> {
    fn new(target: &str, data: &[u8]) -> Self {
        const TARGET: usize = 192;
        Self {
            arp: [0; 164],
            target_offset: TARGET as u16,
            next_offset: size_of::<Self>() as u16,
            comefrom: 0,
            counters: [0; 2],
            target_size: (size_of::<Self>() - TARGET) as u16,
            target: padded(target),
            revision: 0,
            data: padded(data),
        }
    }
}

/// Makes the filter table of ARP drop all that comes in.
///
/// # Errors
/// When the kernel has no such table, or refuses this one.
pub fn drop_incoming(netns: &Namespace) -> Result<()> {
    // As the tool does; where it is built in, or not there at all, that fails.
    let _ = command::run("modprobe arptable_filter");
    netns.enter(|| Ok(set()?))
}

fn set() -> io::Result<()> {
    let mut counters = [[0_u64; 2]; ENTRIES];
    let policies = [DROP, ACCEPT, ACCEPT].map(|verdict| Policy::new("", verdict.to_ne_bytes().as_slice()));
    let starts = [0, 1, 2].map(|hook| hook * size_of::<Policy>() as u32);
    let replace = Replace {
        name: padded("filter"),
        valid_hooks: (1 << HOOKS) - 1,
        entries: ENTRIES as u32,
        size: (size_of_val(&policies) + size_of::<End>()) as u32,
        hook_entry: starts,
        underflow: starts,
        counters: ENTRIES as u32,
        counters_at: counters.as_mut_ptr(),
        policies,
        end: End::new("ERROR", b"ERROR"),
    };
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: the option reads such a structure, and writes so many counters.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            REPLACE,
            (&raw const replace).cast(),
            size_of::<Replace>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn padded<const SIZE: usize>(text: impl AsRef<[u8]>) -> [u8; SIZE] {
    let (mut bytes, text) = ([0; SIZE], text.as_ref());
    bytes[..text.len()].copy_from_slice(text);
    bytes
}

const _: () = assert!(std::mem::offset_of!(Policy, target_size) == 192);
const _: () = assert!(size_of::<Policy>() == 232 && size_of::<End>() == 256);
const _: () = assert!(std::mem::offset_of!(Replace, policies) == 80);
