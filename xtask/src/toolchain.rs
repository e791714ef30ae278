//! Which Rust compiler builds the eBPF half.
//!
//! The target `bpfel-unknown-none` comes without a prebuilt `core`. Two kinds of toolchain get around that: a
//! nightly with the standard library's source (`-Z build-std`), and Debian's own, for which `core` is packaged.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// The BPF target of a little-endian machine.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// A toolchain that can build for [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The folder that holds `bin/cargo`, `bin/rustc` and `lib/rustlib`.
    pub(crate) sysroot: PathBuf,
    /// Whether `core` is built from source (nightly) or comes prebuilt (the distribution's).
    pub(crate) build_std: bool,
}

impl Toolchain {
    /// The toolchain to use on this machine; `None` when there is none.
    pub(crate) fn find() -> Option<Self> {
        let rustup = env::var_os("RUSTUP_HOME")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
        let installed = rustup
            .and_then(|home| fs::read_dir(home.join("toolchains")).ok())
            .map(|folders| folders.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        choose(installed, Path::new("/usr"), Path::exists)
    }

    pub(crate) fn cargo(&self) -> PathBuf {
        self.sysroot.join("bin/cargo")
    }

    pub(crate) fn rustc(&self) -> PathBuf {
        self.sysroot.join("bin/rustc")
    }

    /// The major version of the compiler's LLVM: what it writes, only the same or a newer LLVM can link.
    pub(crate) fn llvm(&self) -> Result<u32> {
        let said = process::output(Command::new(self.rustc()).arg("-vV"))?;
        llvm_version(&said)
            .with_context(|| format!("{} -vV names no LLVM version:\n{said}", self.rustc().display()))
    }
}

/// Prefers the plain nightly, then the newest dated one, then the system's toolchain.
fn choose(mut installed: Vec<PathBuf>, system: &Path, exists: impl Fn(&Path) -> bool) -> Option<Toolchain> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // `nightly-2026-05-20-…` sorts before `nightly-x86_64-…`.
    installed.sort_by_key(|path| name(path));
    let works = |toolchain: &Toolchain, library: &str| {
        [toolchain.cargo(), toolchain.rustc(), toolchain.sysroot.join("lib/rustlib").join(library)]
            .iter()
            .all(|path| exists(path))
    };
    installed
        .into_iter()
        .rev()
        .filter(|path| name(path).starts_with("nightly"))
        .map(|sysroot| Toolchain { sysroot, build_std: true })
        .find(|toolchain| works(toolchain, "src/rust/library/core"))
        .or_else(|| {
            let toolchain = Toolchain { sysroot: system.to_path_buf(), build_std: false };
            works(&toolchain, TARGET).then_some(toolchain)
        })
}

/// The `LLVM version: 22.1.8` of `rustc -vV`.
fn llvm_version(verbose_version: &str) -> Option<u32> {
    let version = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(installed: &[&str], files: &[&str]) -> Option<(String, bool)> {
        let installed = installed.iter().map(PathBuf::from).collect();
        let exists = |path: &Path| {
            path.ends_with("bin/cargo")
                || path.ends_with("bin/rustc")
                || files.iter().any(|file| path == Path::new(file))
        };
        choose(installed, Path::new("/usr"), exists)
            .map(|toolchain| (toolchain.sysroot.display().to_string(), toolchain.build_std))
    }

    const SYSTEM: &str = "/usr/lib/rustlib/bpfel-unknown-none";

    #[test]
    fn a_nightly_counts_only_with_the_library_source() {
        let source = "/r/nightly-x/lib/rustlib/src/rust/library/core";
        assert_eq!(chosen(&["/r/nightly-x"], &[source, SYSTEM]), Some(("/r/nightly-x".into(), true)));
        assert_eq!(chosen(&["/r/nightly-x"], &[SYSTEM]), Some(("/usr".into(), false)));
        assert_eq!(chosen(&["/r/stable-x"], &["/r/stable-x/lib/rustlib/src/rust/library/core"]), None);
    }

    #[test]
    fn the_plain_nightly_goes_before_dated_ones() {
        let names =
            ["/r/nightly-x86_64-a", "/r/nightly-2026-05-20-x86_64-a", "/r/nightly-2026-01-01-x86_64-a"];
        let sources = names.map(|name| format!("{name}/lib/rustlib/src/rust/library/core"));
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        assert_eq!(chosen(&names, &sources).unwrap().0, names[0]);
        assert_eq!(chosen(&names[1..], &sources).unwrap().0, names[1]);
    }

    #[test]
    fn the_llvm_version_is_read() {
        assert_eq!(llvm_version("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_version("rustc 1.96.0\n"), None);
    }
}
