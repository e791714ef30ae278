//! Builds the user half with the eBPF object inside, and the tests' programs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{process, workspace::Workspace};

/// Read by the build script of `tracer-user`: the path of the object to embed.
const OBJECT: &str = "DROPTRACE_EBPF_OBJECT";

/// How to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Fast code.
    Release,
    /// Fast compilation.
    Debug,
}

impl Profile {
    /// The profile that a `--debug` flag asks for.
    pub(crate) const fn new(debug: bool) -> Self {
        if debug { Self::Debug } else { Self::Release }
    }

    const fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }
}

/// A cargo that embeds the object wherever it builds the user half.
pub(crate) fn cargo_with_object(workspace: &Workspace, subcommand: &str, object: &Path) -> Command {
    let mut cargo = workspace.cargo(subcommand);
    cargo.env(OBJECT, object);
    cargo
}

/// Builds `droptrace`.
pub(crate) fn droptrace(workspace: &Workspace, object: &Path, profile: Profile) -> Result<PathBuf> {
    binary(workspace, object, profile, "tracer-user", "droptrace")
}

/// Builds one program of the test crate, optimised.
pub(crate) fn test_program(workspace: &Workspace, object: &Path, name: &str) -> Result<PathBuf> {
    binary(workspace, object, Profile::Release, "droptrace-tests", name)
}

fn binary(
    workspace: &Workspace,
    object: &Path,
    profile: Profile,
    package: &str,
    name: &str,
) -> Result<PathBuf> {
    let mut cargo = cargo_with_object(workspace, "build", object);
    cargo.args(["--package", package, "--bin", name]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    process::run(&mut cargo)?;
    Ok(workspace.target.join(profile.folder()).join(name))
}
