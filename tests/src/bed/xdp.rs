//! XDP programs on interfaces, as BPF links (from 5.9). Numbers and structures: include/uapi/linux/bpf.h.

use super::namespace::Namespace;
use super::program::{self, LINK_CREATE};
use super::tc::index;
use anyhow::{Context, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// BPF_PROG_TYPE_XDP
const TYPE_XDP: u32 = 6;
/// BPF_XDP, the attach type.
const ATTACH_XDP: u32 = 37;
/// XDP_DROP
const DROP: u64 = 1;

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On the skb (XDP_FLAGS_SKB_MODE, include/uapi/linux/if_link.h).
    Generic,
    /// In the driver (XDP_FLAGS_DRV_MODE).
    Driver,
}

/// A program that drops all that comes in; it leaves when this is dropped.
#[derive(Debug)]
pub struct Attached {
    /// Its id.
    pub id: u32,
    _fds: [OwnedFd; 2],
}

/// Loads such a program and puts it on a device.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(netns: &Namespace, device: &str, name: &str, mode: Mode) -> Result<Attached> {
    /// The head of `union bpf_attr` for BPF_LINK_CREATE.
    #[repr(C)]
    struct Create {
        program: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    // `r0 = XDP_DROP; exit` (struct bpf_insn).
    let program =
        program::load(TYPE_XDP, 0, name, &[0xb7 | DROP << 32, 0x95]).context("load an XDP program")?;
    let id = program::id_of(&program).context("ask for a BPF program's id")?;
    let descriptor = u32::try_from(program.as_raw_fd())?;
    let flags = match mode {
        Mode::Generic => 2,
        Mode::Driver => 4,
    };
    let link = netns.enter(|| {
        let create = Create { program: descriptor, ifindex: index(device)?, attach_type: ATTACH_XDP, flags };
        // SAFETY: the command reads such a structure; it returns a new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(program::bpf(LINK_CREATE, &create)?) })
    });
    Ok(Attached { id, _fds: [link.context("attach an XDP program")?, program] })
}
