//! `cargo xtask bench`: what a drop costs in a storm, next to bpftrace.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    ebpf, process,
    setup::{self, Need},
    workspace::Workspace,
};

/// Builds everything optimised and lets the storm measure; `args` go to it.
///
/// # Errors
/// When something does not build or start. The storm's own failure is in the exit code.
pub(crate) fn bench(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    let tools = setup::ensure(workspace, Need::Bench)?;
    let object = ebpf::build(workspace, &tools)?;
    let droptrace = build::droptrace(workspace, &object, Profile::Release)?;
    let storm = build::test_program(workspace, &object, "storm")?;
    let mut command: Command = process::as_root(&storm, &[("DROPTRACE", droptrace.as_os_str())])?;
    command.args(args);
    workspace.clean_library_path(&mut command);
    let described = process::describe(&command);
    let status = command.status().with_context(|| format!("cannot start `{described}`"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
