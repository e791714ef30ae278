//! BPF programs as netfilter hook functions of the lab (BPF_PROG_TYPE_NETFILTER, from 6.4): what drops everything, or lets
//! everything pass, at any place on a hook. Numbers and structures: include/uapi/linux/bpf.h.

use super::Hook;
use crate::probe::bpf;
use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};

/// The command of bpf(2).
const PROG_LOAD: c_long = 5;
/// `BPF_PROG_TYPE_NETFILTER`
const TYPE_NETFILTER: u32 = 32;
/// `NFPROTO_IPV4` (include/uapi/linux/netfilter.h)
const IPV4: u8 = 2;

/// What a program answers: `NF_DROP` or `NF_ACCEPT` (include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Verdict {
    /// It drops.
    Drop = 0,
    /// It lets pass.
    Accept = 1,
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    instructions_at: u64,
    license_at: u64,
    log_level: u32,
    log_size: u32,
    log_at: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// A program on a hook; it leaves when this is closed.
#[derive(Debug)]
pub struct Link {
    _fd: OwnedFd,
}

/// Both programs, loaded.
#[derive(Debug)]
pub struct Programs {
    drop: OwnedFd,
    accept: OwnedFd,
}

impl Programs {
    /// Loads them.
    ///
    /// # Errors
    /// What the system says; EINVAL where the kernel has no such programs.
    pub fn load() -> io::Result<Self> {
        Ok(Self { drop: load(Verdict::Drop)?, accept: load(Verdict::Accept)? })
    }

    /// Puts one on a hook of IPv4 in the calling thread's network namespace.
    ///
    /// # Errors
    /// What the system says; EBUSY if there is one with that priority.
    pub fn attach(&self, verdict: Verdict, hook: Hook, priority: i32) -> io::Result<Link> {
        let program = match verdict {
            Verdict::Drop => &self.drop,
            Verdict::Accept => &self.accept,
        };
        let fd = bpf::link_to_hook(program.as_fd(), IPV4, hook as u8, priority)?;
        Ok(Link { _fd: fd })
    }
}

/// `r0 = verdict; exit`
fn load(verdict: Verdict) -> io::Result<OwnedFd> {
    /// `BPF_ALU64 | BPF_MOV | BPF_K` with register 0, and `BPF_JMP | BPF_EXIT`: struct bpf_insn in the low bytes.
    const MOVE: u64 = 0xb7;
    const EXIT: u64 = 0x95;
    let instructions = [MOVE | (verdict as u64) << 32, EXIT];
    let license = c"Dual MIT/GPL";
    let load = Load {
        kind: TYPE_NETFILTER,
        instructions: instructions.len() as u32,
        instructions_at: instructions.as_ptr().addr() as u64,
        license_at: license.as_ptr().addr() as u64,
        name: *b"droptrace_lab\0\0\0",
        expected_attach_type: bpf::ATTACH_NETFILTER,
        ..Load::default()
    };
    // SAFETY: the command reads such a structure, and the instructions and the license that it points to.
    unsafe { load_program(&raw const load) }
}

/// BPF_PROG_LOAD
///
/// # Safety
/// What `load` points to must be there.
unsafe fn load_program(load: *const Load) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, load, size_of::<Load>()) };
    match RawFd::try_from(result) {
        // SAFETY: a new descriptor, which nobody else knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

const _: () = assert!(size_of::<Load>() == 72);
