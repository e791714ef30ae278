//! Programs of our own for devices: tracer-ebpf/src/bin/fixture.rs.

use super::program::lift_limit;
use anyhow::{Context, Result, ensure};
use aya::{Ebpf, EbpfLoader};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fixture.bpf.o"));

/// The programs, none of them loaded yet. `words` are what those that drop leave in a packet's control block.
///
/// # Errors
/// When these tests were built without them, or the kernel refuses.
pub(super) fn open(words: Option<&[u32; 5]>) -> Result<Ebpf> {
    ensure!(!OBJECT.is_empty(), "built without the fixture: `cargo xtask test` builds it");
    lift_limit();
    let leaves = 1_u32;
    let mut loader = EbpfLoader::new();
    // The kernel's own types are of no use to it, and take a while to read.
    loader.btf(None);
    if let Some(words) = words {
        loader.override_global("WORDS", words.as_slice(), true).override_global(
            "LEAVES_WORDS",
            &leaves,
            true,
        );
    }
    loader.load(OBJECT).context("the fixture")
}
