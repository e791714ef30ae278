//! What Calico's eBPF dataplane leaves where one looks for it.

use super::program::{self, MAP_CREATE};
use anyhow::{Context, Result};
use std::os::fd::{FromRawFd, OwnedFd};

/// The map of what clients dial, by its name; it goes when this is dropped. The whole machine sees it.
///
/// # Errors
/// When the kernel refuses.
pub fn frontends() -> Result<OwnedFd> {
    /// The head of `union bpf_attr` for BPF_MAP_CREATE.
    #[repr(C)]
    struct Create {
        kind: u32,
        key: u32,
        value: u32,
        most: u32,
        flags: u32,
        inner: u32,
        numa_node: u32,
        name: [u8; 16],
    }
    /// BPF_MAP_TYPE_HASH; the sizes do not matter here.
    const HASH: u32 = 1;
    program::lift_limit();
    let name = *b"cali_v4_nat_fe3\0";
    let create = Create { kind: HASH, key: 16, value: 16, most: 8, flags: 0, inner: 0, numa_node: 0, name };
    // SAFETY: the command reads such a structure; it returns a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(program::bpf(MAP_CREATE, &create).context("create a map")?) })
}
