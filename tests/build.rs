//! Puts the fixture, the programs that tests put on devices, where they embed it from: `OUT_DIR/fixture.bpf.o`.
//!
//! `cargo xtask` builds it beside droptrace's own object, whose path is `DROPTRACE_EBPF_OBJECT`. Without that an empty file
//! is embedded, so that a plain `cargo build` or `cargo test` needs no eBPF toolchain.

use std::{
    env, fs, io,
    io::{Error, Write as _},
    path::PathBuf,
};

const OBJECT: &str = "DROPTRACE_EBPF_OBJECT";

fn main() -> io::Result<()> {
    let mut cargo = io::stdout().lock();
    writeln!(cargo, "cargo::rerun-if-changed=build.rs")?;
    writeln!(cargo, "cargo::rerun-if-env-changed={OBJECT}")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| Error::other("cargo sets no OUT_DIR"))?)
        .join("fixture.bpf.o");
    let Some(object) = env::var_os(OBJECT).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return fs::write(out, []);
    };
    let fixture = object.with_file_name("fixture");
    writeln!(cargo, "cargo::rerun-if-changed={}", fixture.display())?;
    let bytes = fs::read(&fixture).map_err(|error| {
        Error::new(error.kind(), format!("{}: {error}; build it with `cargo xtask build`", fixture.display()))
    })?;
    fs::write(out, bytes)
}
