//! `cargo xtask dist`: one static `droptrace` that runs where nothing else is installed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build, ebpf, process,
    setup::{self, Need},
    workspace::Workspace,
};

/// Builds, checks and names the program, and writes its SHA-256 next to it.
///
/// # Errors
/// When it does not build, needs a dynamic linker, or does not have the eBPF object inside.
pub(crate) fn dist(workspace: &Workspace) -> Result<()> {
    let tools = setup::ensure(workspace, Need::Build)?;
    let object = ebpf::build(workspace, &tools)?;
    build_static(workspace, &object).map(drop)
}

/// The same with an eBPF object that is there already; returns where the program is.
///
/// # Errors
/// As [`dist`].
pub(crate) fn build_static(workspace: &Workspace, object: &Path) -> Result<PathBuf> {
    let program = static_program(workspace, object, "tracer-user", "droptrace")?;
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    check(&bytes, &fs::read(object).with_context(|| format!("cannot read {}", object.display()))?)
        .with_context(|| program.display().to_string())?;

    let folder = workspace.target.join("dist");
    let name = format!("droptrace-{}-{}-linux", env!("CARGO_PKG_VERSION"), env::consts::ARCH);
    let result = folder.join(&name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // A copy over a running program is refused; a new file is not.
    let _absent = fs::remove_file(&result);
    fs::copy(&program, &result).with_context(|| format!("cannot write {}", result.display()))?;
    let sum = process::output(Command::new("sha256sum").arg(&name).current_dir(&folder))?;
    write(&folder.join(format!("{name}.sha256")), &sum)?;
    process::say(&format!("{}\n{} bytes, static, SHA-256 {}", result.display(), bytes.len(), sum.trim()));
    Ok(result)
}

/// Builds a program that needs no dynamic linker, and returns where it is.
///
/// # Errors
/// When it does not build.
pub(crate) fn static_program(
    workspace: &Workspace,
    object: &Path,
    package: &str,
    name: &str,
) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let built_in = workspace.target.join("dist-build");
    // With a target named, the flags are not for build scripts and procedural macros, which cannot be static.
    let mut cargo = build::cargo_with_object(workspace, "build", object);
    cargo
        .args(["--package", package, "--bin", name, "--release", "--target", &triple])
        .env("CARGO_TARGET_DIR", &built_in)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    process::run(&mut cargo)?;
    Ok(built_in.join(&triple).join("release").join(name))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks that the program needs no dynamic linker and that the eBPF object is in it.
fn check(program: &[u8], object: &[u8]) -> Result<()> {
    if needs_interpreter(program).context("not an ELF file of this machine")? {
        bail!("it is not static: it asks for a dynamic linker");
    }
    ensure!(!object.is_empty() && contains(program, object), "the eBPF object is not inside");
    Ok(())
}

/// Whether an ELF file names a dynamic linker (a `PT_INTERP` program header); `None` when it is no little-endian
/// 64-bit ELF file. Layout: `Elf64_Ehdr` and `Elf64_Phdr` of elf(5).
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    const CLASS_64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
    const PT_INTERP: u32 = 3;
    if !elf.starts_with(b"\x7fELF") || elf.get(4..6)? != CLASS_64_LITTLE_ENDIAN {
        return None;
    }
    let short = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let headers = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(short(54)?), usize::from(short(56)?));
    for index in 0..count {
        let at = headers.checked_add(index.checked_mul(size)?)?;
        let kind = u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_dynamic_test_is_told_from_a_static_program() {
        let mut elf = fs::read("/proc/self/exe").unwrap();
        assert_eq!(needs_interpreter(&elf), Some(true));
        // Without program headers there is none that names an interpreter.
        elf[56..58].fill(0);
        assert_eq!(needs_interpreter(&elf), Some(false));
        assert_eq!(needs_interpreter(&elf[..40]), None);
        assert_eq!(needs_interpreter(b"#!/bin/sh"), None);
    }

    #[test]
    fn the_object_is_found_wherever_it_is() {
        assert!(contains(b"aabaabc", b"aabc"));
        assert!(!contains(b"aabaab", b"aabc"));
        let mut elf = fs::read("/proc/self/exe").unwrap();
        elf[56..58].fill(0);
        assert!(check(&elf, b"").is_err(), "an empty object is no object");
    }
}
