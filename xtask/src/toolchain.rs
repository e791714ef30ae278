//! Which Rust compilers can build the eBPF half.
//!
//! The target `bpfel-unknown-none` comes without a prebuilt `core`. Three kinds of toolchain get around that: a
//! nightly with the standard library's source (`-Z build-std`), Debian's own, for which `core` is packaged, and
//! Ubuntu's, which have that source in a package.

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// The BPF target of a little-endian machine.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The oldest Rust, `1.` and this, that the eBPF half is known to build with. The user half asks for a newer one.
pub(crate) const OLDEST_RUST: u32 = 89;

/// A toolchain that can build for [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The folder that holds `bin/cargo`, `bin/rustc` and `lib/rustlib`.
    pub(crate) sysroot: PathBuf,
    /// Whether `core` is built from source or comes prebuilt.
    pub(crate) build_std: bool,
}

impl Toolchain {
    /// Those on this machine, best first.
    pub(crate) fn all() -> Vec<Self> {
        let rustup = env::var_os("RUSTUP_HOME")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
        let rustup = rustup.map(|home| folders(&home.join("toolchains"))).unwrap_or_default();
        sort(rustup, Path::new("/usr"), folders(Path::new("/usr/lib")), Path::exists)
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

/// What is in a folder; nothing where there is no such folder.
fn folders(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// Prefers the plain nightly, then the newest dated one, then the system's toolchain, then the newest of those that
/// stand side by side (`rust-1.89`) among the system's `libraries`.
fn sort(
    mut rustup: Vec<PathBuf>,
    system: &Path,
    libraries: Vec<PathBuf>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<Toolchain> {
    const SOURCE: &str = "src/rust/library/core";
    let works = |toolchain: &Toolchain| {
        let library = if toolchain.build_std { SOURCE } else { TARGET };
        [toolchain.cargo(), toolchain.rustc(), toolchain.sysroot.join("lib/rustlib").join(library)]
            .iter()
            .all(|path| exists(path))
    };
    // `nightly-2026-05-20-…` sorts before `nightly-x86_64-…`.
    rustup.sort_by_cached_key(|path| Reverse(name(path)));
    let nightlies = rustup.into_iter().filter(|path| name(path).starts_with("nightly"));
    let mut versioned: Vec<(u32, PathBuf)> =
        libraries.into_iter().filter_map(|path| Some((minor_version(&name(&path))?, path))).collect();
    versioned.sort_by(|one, other| other.cmp(one));
    let versioned =
        versioned.into_iter().filter(|(minor, _)| *minor >= OLDEST_RUST).map(|(_, sysroot)| sysroot);
    let from_source = |sysroot| Toolchain { sysroot, build_std: true };
    nightlies
        .map(from_source)
        .chain([Toolchain { sysroot: system.to_path_buf(), build_std: false }])
        .chain(versioned.map(from_source))
        .filter(works)
        .collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The 89 of `rust-1.89`.
fn minor_version(folder: &str) -> Option<u32> {
    folder.strip_prefix("rust-1.")?.parse().ok()
}

/// The `LLVM version: 22.1.8` of `rustc -vV`.
fn llvm_version(verbose_version: &str) -> Option<u32> {
    let version = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these folders are toolchains, given the files that there are besides `cargo` and `rustc`.
    fn sorted(rustup: &[&str], libraries: &[&str], files: &[&str]) -> Vec<(String, bool)> {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect();
        let exists = |path: &Path| {
            path.ends_with("bin/cargo")
                || path.ends_with("bin/rustc")
                || files.iter().any(|file| path == Path::new(file))
        };
        sort(paths(rustup), Path::new("/usr"), paths(libraries), exists)
            .into_iter()
            .map(|toolchain| (toolchain.sysroot.display().to_string(), toolchain.build_std))
            .collect()
    }

    fn sources(sysroots: &[&str]) -> Vec<String> {
        sysroots.iter().map(|sysroot| format!("{sysroot}/lib/rustlib/src/rust/library/core")).collect()
    }

    const SYSTEM: &str = "/usr/lib/rustlib/bpfel-unknown-none";

    #[test]
    fn a_nightly_counts_only_with_the_library_source() {
        let source = "/r/nightly-x/lib/rustlib/src/rust/library/core";
        let (nightly, debian) = (("/r/nightly-x".to_owned(), true), ("/usr".to_owned(), false));
        assert_eq!(sorted(&["/r/nightly-x"], &[], &[source, SYSTEM]), [nightly, debian.clone()]);
        assert_eq!(sorted(&["/r/nightly-x"], &[], &[SYSTEM]), [debian]);
        assert_eq!(sorted(&["/r/stable-x"], &[], &["/r/stable-x/lib/rustlib/src/rust/library/core"]), []);
    }

    #[test]
    fn the_plain_nightly_goes_before_dated_ones() {
        let names =
            ["/r/nightly-2026-01-01-x86_64-a", "/r/nightly-x86_64-a", "/r/nightly-2026-05-20-x86_64-a"];
        let sources = sources(&names);
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let sorted: Vec<String> = sorted(&names, &[], &sources).into_iter().map(|(name, _)| name).collect();
        assert_eq!(sorted, [names[1], names[2], names[0]]);
    }

    #[test]
    fn compilers_side_by_side_come_last_and_the_newest_of_them_first() {
        let names = ["/usr/lib/rust-1.89", "/usr/lib/rust-1.100", "/usr/lib/rust-1.85", "/usr/lib/rust"];
        let sources = sources(&names);
        let mut files: Vec<&str> = sources.iter().map(String::as_str).collect();
        files.push(SYSTEM);
        let found = sorted(&[], &names, &files);
        assert_eq!(
            found,
            [("/usr", false), (names[1], true), (names[0], true)].map(|(name, std)| (name.to_owned(), std))
        );
        assert_eq!(sorted(&[], &names, &[]), [], "without the source");
    }

    #[test]
    fn the_llvm_version_is_read() {
        assert_eq!(llvm_version("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_version("rustc 1.96.0\n"), None);
    }
}
