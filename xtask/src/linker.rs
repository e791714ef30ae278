//! `bpf-linker`: found, or built into the target folder against the system's LLVM.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{process, workspace::Workspace};

/// The newest version of `bpf-linker`.
pub(crate) const VERSION: &str = "0.13.0";

/// The LLVM versions that it can be built against, in the order in which they are tried, and its newest version that
/// can. Ubuntu 24.04's newest LLVM is 20.
const SUPPORTED_LLVM: [(u32, &str); 4] = [(22, VERSION), (23, VERSION), (21, VERSION), (20, "0.10.3")];

/// How to come by a linker that understands what a compiler with a certain LLVM writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Linker {
    /// It is there.
    Ready(PathBuf),
    /// It can be built: this LLVM's development files are there.
    Build(u32),
    /// One of these LLVMs has to be installed first.
    NeedsLlvm(Vec<u32>),
}

impl Linker {
    /// Looks at the target folder, the system's LLVMs and `PATH`, in this order.
    pub(crate) fn find(workspace: &Workspace, compiler_llvm: u32) -> Self {
        let ours = binary(workspace);
        let built = fs::read_to_string(stamp(workspace)).ok().filter(|_| ours.exists());
        let installed: Vec<u32> = supported().filter(|llvm| is_installed(*llvm)).collect();
        // Ours is in PATH, too, but not for every compiler.
        let in_path = process::programs("bpf-linker").find(|file| *file != ours);
        choose(compiler_llvm, built.as_deref(), &ours, &installed, in_path)
    }
}

fn choose(
    compiler_llvm: u32,
    built: Option<&str>,
    ours: &Path,
    installed: &[u32],
    in_path: Option<PathBuf>,
) -> Linker {
    let new_enough = |llvm: &u32| *llvm >= compiler_llvm;
    if built.and_then(parse_stamp).as_ref().is_some_and(new_enough) {
        return Linker::Ready(ours.to_path_buf());
    }
    if let Some(llvm) = installed.iter().copied().find(new_enough) {
        return Linker::Build(llvm);
    }
    match in_path {
        Some(path) => Linker::Ready(path),
        None => Linker::NeedsLlvm(supported().filter(new_enough).collect()),
    }
}

fn supported() -> impl Iterator<Item = u32> {
    SUPPORTED_LLVM.into_iter().map(|(llvm, _)| llvm)
}

/// The version to build against an LLVM.
fn version(llvm: u32) -> Option<&'static str> {
    SUPPORTED_LLVM.into_iter().find_map(|(supported, version)| (supported == llvm).then_some(version))
}

/// The packages that building against an LLVM takes.
pub(crate) fn packages(llvm: u32) -> Vec<String> {
    let mut packages = vec![format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    packages.extend(["libzstd-dev", "zlib1g-dev", "libxml2-dev"].map(str::to_owned));
    packages
}

/// Builds the linker into the target folder: about a minute on two cores.
pub(crate) fn build(workspace: &Workspace, llvm: u32) -> Result<PathBuf> {
    let version = version(llvm).with_context(|| format!("no bpf-linker can be built against LLVM {llvm}"))?;
    process::note(&format!(
        "building bpf-linker {version} against LLVM {llvm}, once; this takes a minute or two"
    ));
    let tools = workspace.target.join("tools");
    let prefix = prefix(llvm);
    let mut cargo = workspace.cargo("install");
    cargo
        .args(["bpf-linker", "--version", version, "--locked", "--force", "--quiet"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&tools)
        .env("CARGO_TARGET_DIR", tools.join("build"))
        // Its build script takes the library folder from LLVM_PREFIX; llvm-sys wants its own variable.
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    process::output(&mut cargo).context("bpf-linker cannot be built")?;
    let _tidied = fs::remove_dir_all(tools.join("build"));
    let stamp = stamp(workspace);
    fs::write(&stamp, format!("{version} llvm-{llvm}\n"))
        .with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(binary(workspace))
}

fn binary(workspace: &Workspace) -> PathBuf {
    workspace.target.join("tools/bin/bpf-linker")
}

/// What the binary was built from: it cannot be asked for its LLVM.
fn stamp(workspace: &Workspace) -> PathBuf {
    workspace.target.join("tools/bpf-linker.stamp")
}

/// The LLVM of a binary that is of the version that would be built now.
fn parse_stamp(stamp: &str) -> Option<u32> {
    let (built, llvm) = stamp.trim().split_once(" llvm-")?;
    let llvm = llvm.parse().ok()?;
    (version(llvm) == Some(built)).then_some(llvm)
}

fn prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

fn is_installed(llvm: u32) -> bool {
    let prefix = prefix(llvm);
    ["bin/llvm-config", "lib/libLLVM.so", "include/llvm-c/Core.h", "lib/libPolly.a"]
        .iter()
        .all(|file| prefix.join(file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linker_older_than_the_compiler_is_not_taken() {
        let ours = Path::new("/t/bpf-linker");
        let choice = |compiler, built, installed: &[u32]| choose(compiler, built, ours, installed, None);
        assert_eq!(choice(22, Some("0.13.0 llvm-22\n"), &[]), Linker::Ready(ours.into()));
        assert_eq!(choice(23, Some("0.13.0 llvm-22\n"), &[22, 23]), Linker::Build(23));
        assert_eq!(choice(22, Some("0.12.0 llvm-22\n"), &[22]), Linker::Build(22));
        assert_eq!(choice(22, None, &[21]), Linker::NeedsLlvm(vec![22, 23]));
        assert_eq!(choice(20, Some("0.10.3 llvm-20\n"), &[]), Linker::Ready(ours.into()));
        assert_eq!(choice(22, Some("0.10.3 llvm-20\n"), &[20]), Linker::NeedsLlvm(vec![22, 23]));
        assert_eq!(choice(20, Some("0.13.0 llvm-20\n"), &[20]), Linker::Build(20));
    }

    #[test]
    fn the_users_own_linker_is_the_last_resort() {
        let theirs = Path::new("/home/u/.cargo/bin/bpf-linker");
        let choice = |installed: &[u32]| choose(22, None, Path::new("/t"), installed, Some(theirs.into()));
        assert_eq!(choice(&[22]), Linker::Build(22));
        assert_eq!(choice(&[]), Linker::Ready(theirs.into()));
    }
}
