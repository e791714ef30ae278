//! Builds the eBPF half into an object file.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{process, setup::EbpfTools, toolchain::TARGET, workspace::Workspace};

const PACKAGE: &str = "tracer-ebpf";

/// Builds the object and returns where it is.
///
/// # Errors
/// When it does not compile; the compiler has said why.
pub(crate) fn build(workspace: &Workspace, tools: &EbpfTools) -> Result<PathBuf> {
    let target = workspace.target.join("ebpf");
    let toolchain = &tools.toolchain;
    let mut cargo = workspace.foreign_cargo(&toolchain.cargo(), &toolchain.rustc());
    cargo
        .args(["build", "--package", PACKAGE, "--bin", PACKAGE, "--release", "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(env::consts::ARCH, &tools.linker.to_string_lossy()));
    if toolchain.build_std {
        cargo.args(["-Z", "build-std=core"]);
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
/// oldest supported kernel, 5.10, does not load what LLVM 22 makes for v3.
fn flags(arch: &str, linker: &str) -> String {
    [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Ctarget-cpu=v2",
        "-Clink-arg=--cpu=v2",
        &format!("-Clinker={linker}"),
    ]
    .join("\x1f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_and_linker_agree_on_the_cpu() {
        let flags = flags("x86_64", "/t/bpf-linker");
        let flags: Vec<&str> = flags.split('\x1f').collect();
        assert!(flags.contains(&"-Ctarget-cpu=v2") && flags.contains(&"-Clink-arg=--cpu=v2"));
        assert!(
            flags.contains(&"--cfg=bpf_target_arch=\"x86_64\"") && flags.contains(&"-Clinker=/t/bpf-linker")
        );
    }
}
