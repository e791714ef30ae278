//! `cargo xtask fuzz`: libFuzzer on what reads recordings.

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    build, ebpf, process,
    setup::{self, Need},
    workspace::Workspace,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What lets libFuzzer see which code an input reaches; without a sanitizer, so the stable compiler does.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// Builds the target and runs it: for a minute, if nothing else is asked for. What it found stays in the target folder.
///
/// # Errors
/// When it does not build or start. What it finds is in the exit code.
pub(crate) fn fuzz(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    let tools = setup::ensure(workspace, Need::Build)?;
    let object = ebpf::build(workspace, &tools)?;
    let (folder, target) = (workspace.root.join("tracer-user/fuzz"), workspace.target.join("fuzz"));
    let mut cargo = build::cargo_with_object(workspace, "build", &object);
    cargo.args(["--release", "--target", TARGET, "--manifest-path"]).arg(folder.join("Cargo.toml"));
    cargo.env("CARGO_TARGET_DIR", &target).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    process::run(&mut cargo)?;

    let corpus = target.join("corpus");
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut command = std::process::Command::new(target.join(TARGET).join("release/recording"));
    command.arg(format!("-artifact_prefix={}/", target.display()));
    command.args(["-rss_limit_mb=1024", "-malloc_limit_mb=512", "-timeout=20", "-max_len=200000"]);
    if args.is_empty() {
        command.arg("-max_total_time=60");
    }
    command.args(args).arg(corpus).arg(folder.join("seeds"));
    let status =
        command.status().with_context(|| format!("cannot start `{}`", process::describe(&command)))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
