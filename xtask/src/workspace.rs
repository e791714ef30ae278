//! Where things are, and the environment that cargo is started with.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// The folders of this checkout.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder: everything built, fetched and cached is below it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the workspace that this program was started in.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("the xtask package has no folder above it")?.to_path_buf();
        let target = env::var_os("CARGO_TARGET_DIR")
            .or_else(|| env::var_os("CARGO_BUILD_TARGET_DIR"))
            .filter(|path| !path.is_empty())
            .map_or_else(|| root.join("target"), |path| root.join(path));
        Ok(Self { root, target })
    }

    /// Puts the tools in the target folder first in `PATH`, for us and all that we start.
    pub(crate) fn prepend_path(&self) {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.target.join("tools/bin")).chain(env::split_paths(&path));
        if let Ok(path) = env::join_paths(folders) {
            // SAFETY: called first thing in main, while there is one thread.
            unsafe { env::set_var("PATH", path) };
        }
    }

    /// The cargo, and so the compiler, that builds the user half: the one that started this program.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg(subcommand).current_dir(&self.root);
        // One target folder for all, and no other target than this machine: the paths of what is built are known.
        cargo.env("CARGO_TARGET_DIR", &self.target).env_remove("CARGO_BUILD_TARGET");
        if let (Some(rustc), None) = (env::var_os("RUSTC"), env::var_os("RUSTDOC")) {
            cargo.envs(rustdoc_beside(Path::new(&rustc), Path::exists).map(|rustdoc| ("RUSTDOC", rustdoc)));
        }
        self.clean_library_path(&mut cargo);
        cargo
    }

    /// A cargo of another toolchain, free of everything that `cargo run` told us about our own.
    pub(crate) fn foreign_cargo(&self, cargo: &Path, rustc: &Path) -> Command {
        let mut command = Command::new(cargo);
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            if !keep_for_foreign_cargo(&name) {
                command.env_remove(name);
            }
        }
        command.env("RUSTC", rustc);
        self.clean_library_path(&mut command);
        command
    }

    /// Takes out of `LD_LIBRARY_PATH` what `cargo run` and rustup put there.
    pub(crate) fn clean_library_path(&self, command: &mut Command) {
        const NAME: &str = "LD_LIBRARY_PATH";
        let Some(paths) = env::var_os(NAME) else { return };
        match without_cargo_libraries(&paths, &self.target) {
            Some(paths) => command.env(NAME, paths),
            None => command.env_remove(NAME),
        };
    }
}

/// The rustdoc that belongs to a compiler named in `RUSTC`, as Ubuntu's `cargo-1.97` does; that leaves cargo to look for
/// a rustdoc in `PATH`, where there is none, or that of another Rust.
fn rustdoc_beside(rustc: &Path, exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let rustdoc = rustc.parent().filter(|folder| folder.is_absolute())?.join("rustdoc");
    exists(&rustdoc).then_some(rustdoc)
}

/// Whether an environment variable still says something true to the cargo of another toolchain: where its home
/// and the registries are, yes; which compiler, flags, target and package, no.
fn keep_for_foreign_cargo(name: &OsStr) -> bool {
    const KEEP: [&str; 9] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "RUSTUP_HOME",
        "RUST_BACKTRACE",
    ];
    let name = name.to_string_lossy();
    !(name.starts_with("CARGO") || name.starts_with("RUST") || name == "__CARGO_DEFAULT_LIB_METADATA")
        || KEEP.iter().any(|keep| name.starts_with(keep))
}

/// A library path without the target folder's and the toolchains' entries; `None` when nothing is left.
fn without_cargo_libraries(paths: &OsStr, target: &Path) -> Option<OsString> {
    let left: Vec<PathBuf> = env::split_paths(paths)
        .filter(|path| {
            let text = path.to_string_lossy();
            !(path.as_os_str().is_empty()
                || path.starts_with(target)
                || text.contains("/lib/rustlib/")
                || text.contains("/toolchains/") && text.ends_with("/lib"))
        })
        .collect();
    (!left.is_empty()).then(|| env::join_paths(left).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_cargo_hears_nothing_of_our_toolchain() {
        for name in
            ["CARGO", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_PKG_NAME", "CARGO_ENCODED_RUSTFLAGS"]
        {
            assert!(!keep_for_foreign_cargo(OsStr::new(name)), "{name}");
        }
        for name in ["RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_BOOTSTRAP", "RUSTDOC"]
        {
            assert!(!keep_for_foreign_cargo(OsStr::new(name)), "{name}");
        }
        for name in
            ["CARGO_HOME", "CARGO_REGISTRIES_X_INDEX", "CARGO_HTTP_PROXY", "RUSTUP_HOME", "PATH", "HOME"]
        {
            assert!(keep_for_foreign_cargo(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn a_compiler_in_a_folder_of_its_own_brings_its_rustdoc() {
        let rustdoc = |rustc: &str, there: bool| rustdoc_beside(Path::new(rustc), |_| there);
        assert_eq!(
            rustdoc("/usr/lib/rust-1.97/bin/rustc", true),
            Some("/usr/lib/rust-1.97/bin/rustdoc".into())
        );
        assert_eq!(rustdoc("/opt/wrapper/rustc", false), None);
        assert_eq!(rustdoc("rustc", true), None, "one in PATH");
    }

    #[test]
    fn only_the_users_own_library_path_is_left() {
        let target = Path::new("/src/target");
        let paths = "/src/target/debug/deps:/src/target/debug:/h/.rustup/toolchains/stable/lib/rustlib/x/lib\
                     :/h/.rustup/toolchains/stable/lib:/opt/mine/lib";
        assert_eq!(without_cargo_libraries(OsStr::new(paths), target), Some("/opt/mine/lib".into()));
        assert_eq!(without_cargo_libraries(OsStr::new("/src/target/debug"), target), None);
    }
}
