//! DuckDB for Python, which reads recordings in a test: Debian has no package of it, so it is put into the target folder.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{process, workspace::Workspace};

/// What is installed.
const PACKAGE: &str = "duckdb==2.0.1";

/// The variable that tells the tests of it.
pub(crate) const VARIABLE: &str = "DROPTRACE_DUCKDB";

/// A Python that has it; `None`, with a note, where it can't be had: the test says what it skips.
pub(crate) fn ensure(workspace: &Workspace) -> Option<PathBuf> {
    let python = workspace.target.join("tools/bin/python-duckdb");
    if works(&python) {
        return Some(python);
    }
    match install(workspace, &python) {
        Ok(()) => Some(python),
        Err(error) => {
            process::note(&format!("no DuckDB, what needs it will be skipped: {error:#}"));
            None
        }
    }
}

fn works(python: &PathBuf) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", "import duckdb"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn install(workspace: &Workspace, python: &PathBuf) -> Result<()> {
    let folder = workspace.target.join("tools/duckdb");
    let _fresh = fs::remove_dir_all(&folder);
    process::note(&format!("installing {PACKAGE} into {}", folder.display()));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
    // As a variable: older ones don't know the option.
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    pip.arg("--target").arg(&folder).arg(PACKAGE);
    process::output(&mut pip)?;
    let script = format!("#!/bin/sh\nPYTHONPATH='{}' exec python3 \"$@\"\n", folder.display());
    let bin = workspace.target.join("tools/bin");
    fs::create_dir_all(&bin)
        .and_then(|()| fs::write(python, script))
        .and_then(|()| fs::set_permissions(python, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", python.display()))?;
    ensure!(works(python), "{PACKAGE} does not work with this machine's python3");
    Ok(())
}
