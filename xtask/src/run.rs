//! `cargo xtask run` and the other commands that end in a program of ours: they become it, so that its signals
//! and its exit code are the shell's.

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Error, Result};

use crate::{
    build::{self, Profile},
    ebpf, process,
    setup::{self, Need},
    workspace::Workspace,
};

/// Sets up and builds everything that `droptrace` consists of.
pub(crate) fn build(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    let tools = setup::ensure(workspace, Need::Build)?;
    let object = ebpf::build(workspace, &tools)?;
    build::droptrace(workspace, &object, profile)
}

/// Builds `droptrace` and becomes it. Returns only when that fails.
pub(crate) fn run(workspace: &Workspace, profile: Profile, args: &[OsString]) -> Error {
    let become_it = || -> Result<Command> {
        let mut droptrace = process::as_root(&build(workspace, profile)?, &[])?;
        droptrace.args(args);
        Ok(droptrace)
    };
    match become_it() {
        Ok(command) => become_program(workspace, command),
        Err(error) => error,
    }
}

/// Builds the tool that boots virtual machines and becomes it. Returns only when that fails.
pub(crate) fn vm(workspace: &Workspace, args: &[OsString]) -> Error {
    let become_it = || -> Result<Command> {
        let tools = setup::ensure(workspace, Need::Everything)?;
        let object = ebpf::build(workspace, &tools)?;
        let mut vm = Command::new(build::test_program(workspace, &object, "vm")?);
        vm.args(args);
        Ok(vm)
    };
    match become_it() {
        Ok(command) => become_program(workspace, command),
        Err(error) => error,
    }
}

fn become_program(workspace: &Workspace, mut command: Command) -> Error {
    workspace.clean_library_path(&mut command);
    let error = command.exec();
    Error::new(error).context(format!("cannot start `{}`", process::describe(&command)))
}
