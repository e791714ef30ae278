//! BPF programs on netfilter's hooks (BPF_PROG_TYPE_NETFILTER, from 6.4), which aya does not know; and bpf(2). Numbers and
//! structures: include/uapi/linux/bpf.h.

use super::namespace::Namespace;
use super::topology::Family;
use anyhow::{Context, Result};
use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Commands of bpf(2).
pub(super) const MAP_CREATE: c_long = 0;
pub(super) const MAP_UPDATE: c_long = 2;
const PROG_LOAD: c_long = 5;
pub(super) const OBJ_PIN: c_long = 6;
const OBJ_GET_INFO_BY_FD: c_long = 15;
pub(super) const LINK_CREATE: c_long = 28;
/// BPF_PROG_TYPE_NETFILTER
const TYPE_NETFILTER: u32 = 32;
/// BPF_NETFILTER, the attach type.
const ATTACH_NETFILTER: u32 = 45;

/// A program on a hook; it leaves when this is dropped.
#[derive(Debug)]
pub struct Attached {
    /// Its id.
    pub id: u32,
    _fds: [OwnedFd; 2],
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    instructions_at: u64,
    license_at: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// Likewise for BPF_LINK_CREATE, as netfilter reads it.
#[repr(C)]
struct Create {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    family: u32,
    hook: u32,
    priority: i32,
    netfilter_flags: u32,
}

/// Likewise for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct Info {
    program: u32,
    length: u32,
    info_at: u64,
}

/// Puts a program that drops or accepts everything on a hook (NF_INET_*).
///
/// # Errors
/// When the kernel refuses: before 6.4 it knows no such programs.
pub fn attach(
    netns: &Namespace,
    name: &str,
    drops: bool,
    family: Family,
    hook: u32,
    priority: i32,
) -> Result<Attached> {
    let verdict = u64::from(!drops);
    // `r0 = NF_DROP or NF_ACCEPT; exit`: BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT (struct bpf_insn).
    let instructions = [0xb7 | verdict << 32, 0x95_u64];
    let program = load(name, &instructions).context("load a BPF program")?;
    let descriptor = u32::try_from(program.as_raw_fd())?;
    let id = id_of(&program).context("ask for a BPF program's id")?;
    let create = Create {
        program: descriptor,
        target: 0,
        attach_type: ATTACH_NETFILTER,
        flags: 0,
        // NFPROTO_IPV4 and NFPROTO_IPV6.
        family: family.pick(2, 10),
        hook,
        priority,
        netfilter_flags: 0,
    };
    // SAFETY: the command reads such a structure; it returns a new descriptor.
    let link = netns.enter(|| Ok(unsafe { OwnedFd::from_raw_fd(bpf(LINK_CREATE, &create)?) }));
    Ok(Attached { id, _fds: [link.context("attach a BPF program")?, program] })
}

fn load(name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut padded = [0; 16];
    for (to, from) in padded[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let load = Load {
        kind: TYPE_NETFILTER,
        instructions: instructions.len() as u32,
        instructions_at: instructions.as_ptr() as u64,
        license_at: c"GPL".as_ptr() as u64,
        log: [0; 4],
        kernel_version: 0,
        flags: 0,
        name: padded,
        interface: 0,
        attach_type: ATTACH_NETFILTER,
    };
    lift_limit();
    // SAFETY: the command reads such a structure and what it points to; it returns a new descriptor.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(PROG_LOAD, &load)?)) }
}

/// A program's id.
pub(super) fn id_of(program: &OwnedFd) -> io::Result<u32> {
    // Type and id come first in struct bpf_prog_info.
    let mut info = [0_u32; 2];
    let program = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    let ask = Info { program, length: size_of_val(&info) as u32, info_at: info.as_mut_ptr() as u64 };
    // SAFETY: the command reads such a structure and writes as much as it says.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &ask)? };
    Ok(info[1])
}

/// Lifts the limit that kernels before 5.11 count programs and maps against (RLIMIT_MEMLOCK).
pub(super) fn lift_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a plain structure. If it fails, so does what needs it.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// bpf(2).
///
/// # Safety
/// `attributes` must be what the command reads.
pub(super) unsafe fn bpf<T>(command: c_long, attributes: &T) -> io::Result<RawFd> {
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: the caller's.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        result => RawFd::try_from(result).map_err(io::Error::other),
    }
}

const _: () = assert!(size_of::<Load>() == 72);
const _: () = assert!(size_of::<Create>() == 32);
