//! Puts the eBPF object that `cargo xtask` built where the user half embeds it from: `OUT_DIR/droptrace.bpf.o`.
//!
//! `DROPTRACE_EBPF_OBJECT` is the object's path. Without it an empty file is embedded, so that a plain `cargo
//! build` or `cargo test` needs no eBPF toolchain; such a `droptrace` refuses to load programs and says why.

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
        .join("droptrace.bpf.o");
    let Some(object) = env::var_os(OBJECT).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return fs::write(out, []);
    };
    writeln!(cargo, "cargo::rerun-if-changed={}", object.display())?;
    let bytes = fs::read(&object).map_err(|error| {
        Error::new(
            error.kind(),
            format!("{OBJECT}={}: {error}; build it with `cargo xtask build`", object.display()),
        )
    })?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(Error::other(format!("{OBJECT}={}: not an ELF object", object.display())));
    }
    fs::write(out, bytes)
}
