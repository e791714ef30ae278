//! Builds the eBPF half into an object file, and the tests' fixture into another.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{process, setup::EbpfTools, toolchain::TARGET, workspace::Workspace};

const PACKAGE: &str = "tracer-ebpf";

/// Builds the objects and returns where droptrace's is; the fixture is beside it, where the tests' build script looks.
///
/// # Errors
/// When it does not compile; the compiler has said why.
pub(crate) fn build(workspace: &Workspace, tools: &EbpfTools) -> Result<PathBuf> {
    let target = workspace.target.join("ebpf");
    let toolchain = &tools.toolchain;
    let in_ci = env::var_os("CI").is_some();
    let mut cargo = workspace.foreign_cargo(&toolchain.cargo(), &toolchain.rustc());
    cargo
        .args(["build", "--package", PACKAGE, "--bins", "--release", "--target", TARGET])
        // The workspace's Rust is the user half's; toolchain.rs knows the oldest for this one.
        .arg("--ignore-rust-version")
        .env("CARGO_TARGET_DIR", &target)
        // What its verified size was measured with. The user half is not linked so: it would take minutes.
        .env("CARGO_PROFILE_RELEASE_LTO", "thin")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "4")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(env::consts::ARCH, &tools.linker.to_string_lossy(), in_ci));
    if toolchain.build_std {
        // Only a nightly offers this unasked.
        cargo.args(["-Z", "build-std=core"]).env("RUSTC_BOOTSTRAP", "1");
    } else {
        // aya-ebpf turns on one language feature that is not stable yet.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf");
    }
    process::run(&mut cargo).context("the eBPF half does not build")?;
    Ok(target.join(TARGET).join("release").join(PACKAGE))
}

/// The compiler flags, in cargo's encoding (unit separators between them).
///
/// `arch` is the machine whose kernel runs the programs: registers are laid out after it. The BPF CPU is v2: the
/// oldest supported kernel, 5.10, does not load what LLVM 22 makes for v3. The compiler hands it on to the linker,
/// which generates the code.
///
/// Clippy does not see this package, for which there is no host build: where `strict`, its warnings are errors.
fn flags(arch: &str, linker: &str, strict: bool) -> String {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Ctarget-cpu=v2".to_owned(),
        format!("-Clinker={linker}"),
    ];
    if strict {
        flags.push("-Dwarnings".to_owned());
    }
    flags.join("\x1f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_name_machine_cpu_and_linker() {
        let flags = flags("x86_64", "/t/bpf linker", true);
        let flags: Vec<&str> = flags.split('\x1f').collect();
        for flag in
            ["--cfg=bpf_target_arch=\"x86_64\"", "-Ctarget-cpu=v2", "-Clinker=/t/bpf linker", "-Dwarnings"]
        {
            assert!(flags.contains(&flag), "{flag}");
        }
    }
}
