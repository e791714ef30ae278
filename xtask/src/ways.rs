//! Which packages would let this machine build the eBPF half.
//!
//! That takes a compiler with `core` for BPF and a linker whose LLVM is at least as new as the compiler's: the newest
//! compiler is of no use where only an older LLVM is packaged.

use std::collections::BTreeSet;

use crate::{
    linker::{self, Linker},
    toolchain::OLDEST_RUST,
};

/// Compilers with `core` for BPF prebuilt: Debian's backported one, and its newest.
const PREBUILT: [[&str; 3]; 2] =
    [["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"], ["rustc", "cargo", "libstd-rust-dev-bpf"]];

/// What the names of the packages of [`from_source`] start with that have the library's source.
pub(crate) const SOURCE_PREFIX: &str = "rust-1.";

/// Packages to install together.
pub(crate) type Packages = BTreeSet<String>;

/// Sets of packages, each of which would do, best first.
///
/// `compilers` are the LLVMs of the compilers that are there but have no linker; `rusts` are the versions of Rust that
/// are packaged with the source of their library. `linker` tells what linking for an LLVM takes.
pub(crate) fn ways(compilers: &[u32], rusts: &[u32], linker: impl Fn(u32) -> Linker) -> Vec<Packages> {
    let there = compilers.iter().map(|llvm| (Packages::new(), *llvm));
    // Any LLVM will do for these: the one in the sources fits the compiler next to it.
    let prebuilt = PREBUILT.iter().map(|set| (set.iter().copied().map(str::to_owned).collect(), 0));
    let mut rusts: Vec<u32> = rusts.iter().copied().filter(|minor| *minor >= OLDEST_RUST).collect();
    rusts.sort_unstable_by(|one, other| other.cmp(one));
    let from_source = rusts.into_iter().map(|minor| (from_source(minor), bundled_llvm(minor)));
    let mut ways = Vec::new();
    for (compiler, llvm) in there.chain(prebuilt).chain(from_source) {
        match linker(llvm) {
            Linker::Ready(_) | Linker::Build(_) => ways.push(compiler),
            Linker::NeedsLlvm(llvms) => ways.extend(
                llvms
                    .into_iter()
                    .map(|llvm| compiler.iter().cloned().chain(linker::packages(llvm)).collect()),
            ),
        }
    }
    ways
}

/// Ubuntu's compilers, many versions of which can be installed side by side: `core` is built from source.
fn from_source(minor: u32) -> Packages {
    [format!("rustc-1.{minor}"), format!("cargo-1.{minor}"), format!("{SOURCE_PREFIX}{minor}-src")].into()
}

/// The Rust whose library's source a package of [`from_source`] has.
pub(crate) fn source_version(package: &str) -> Option<u32> {
    package.strip_prefix(SOURCE_PREFIX)?.strip_suffix("-src")?.parse().ok()
}

/// The LLVM in a Rust that is not there yet to be asked. A Rust newer than these lines has that of the last, or a newer
/// one, which shows when it is there.
fn bundled_llvm(minor: u32) -> u32 {
    const SINCE: [(u32, u32); 3] = [(95, 22), (91, 21), (0, 20)];
    SINCE.iter().find(|(since, _)| minor >= *since).map_or(0, |(_, llvm)| *llvm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(names: &[&str], llvm: Option<u32>) -> Packages {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .chain(llvm.into_iter().flat_map(linker::packages))
            .collect()
    }

    /// No linker, and these LLVMs in the sources.
    fn first(compilers: &[u32], rusts: &[u32], available: &[u32]) -> Option<Packages> {
        let linker = |compiler| {
            Linker::NeedsLlvm(available.iter().copied().filter(|llvm| *llvm >= compiler).collect())
        };
        let is_debians = |way: &Packages| way.iter().any(|name| name.contains("dev-bpf"));
        ways(compilers, rusts, linker).into_iter().find(|way| !is_debians(way))
    }

    #[test]
    fn a_compiler_that_is_there_needs_only_an_llvm_as_new() {
        assert_eq!(first(&[22], &[89], &[23, 20]), Some(packages(&[], Some(23))));
    }

    #[test]
    fn debians_own_compiler_goes_before_one_that_builds_core_from_source() {
        let all = ways(&[], &[97], |_| Linker::Build(22));
        assert_eq!(all.len(), 3);
        assert_eq!(all[0], packages(&PREBUILT[0], None));
        assert_eq!(all[2], packages(&["rustc-1.97", "cargo-1.97", "rust-1.97-src"], None));
    }

    #[test]
    fn of_ubuntus_compilers_the_newest_that_can_be_linked_for_is_taken() {
        let with = |minor: u32, llvm| {
            let names =
                [format!("rustc-1.{minor}"), format!("cargo-1.{minor}"), format!("rust-1.{minor}-src")];
            Some(packages(&names.each_ref().map(String::as_str), Some(llvm)))
        };
        let noble = [85, 97, 91, 89];
        assert_eq!(first(&[], &noble, &[20]), with(89, 20));
        assert_eq!(first(&[], &noble, &[21, 20]), with(91, 21));
        assert_eq!(first(&[], &noble, &[22, 20]), with(97, 22));
        // Its own nightly cannot be linked for, so one more compiler is installed.
        assert_eq!(first(&[23], &noble, &[20]), with(89, 20));
        assert_eq!(first(&[], &[85], &[20]), None, "too old for the eBPF half");
    }

    #[test]
    fn only_packages_of_source_name_a_version() {
        assert_eq!(source_version("rust-1.89-src"), Some(89));
        for other in ["rust-1.89-clippy", "rust-src", "rust-1.-src", "rustc-1.89"] {
            assert_eq!(source_version(other), None, "{other}");
        }
    }
}
