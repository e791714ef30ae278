//! Any bytes, read as a recording: nothing panics, nothing asks for more memory than libFuzzer allows, and reading ends.
//! The reader tells the kinds of recording apart by their first bytes, so one target has them all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use tracer_user::recording::{Reads, Source};

/// In memory, where there is such a place.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("droptrace-fuzz-{}", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    if fs::write(&*FILE, bytes).is_err() {
        return;
    }
    for reads in [Reads::All, Reads::Only(["source.port"].into())] {
        if let Ok(mut source) = Source::open(&FILE, &reads) {
            let records = source.by_ref().count();
            // What is printed of it is bounded, too.
            assert!(source.damage().len() <= records + bytes.len() + 1);
        }
    }
});
