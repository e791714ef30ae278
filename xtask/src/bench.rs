//! `cargo xtask bench`: what a drop costs in a storm, next to bpftrace, and what packets cost where rules are many.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    ebpf, process,
    setup::{self, Need},
    workspace::Workspace,
};

/// The measuring programs of the test crate, in the order in which they run.
const PROGRAMS: [&str; 2] = ["storm", "rules"];

/// Benchmarks of the user half, which need no packets: of names and of causes (criterion's), and of recordings.
const BENCHES: [&str; 3] = ["names", "causes", "recordings"];

/// Builds everything optimised and lets one program measure, or all of them; see [`chosen`].
///
/// # Errors
/// When something does not build or start. A program's own failure is in the exit code.
pub(crate) fn bench(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode> {
    let (programs, args) = chosen(args);
    let tools = setup::ensure(workspace, Need::Bench)?;
    let object = ebpf::build(workspace, &tools)?;
    let droptrace = build::droptrace(workspace, &object, Profile::Release)?;
    let mut code = ExitCode::SUCCESS;
    for name in BENCHES {
        if !args.is_empty() && args.first().is_none_or(|first| first != name) {
            continue;
        }
        // With the object: the build is droptrace's own.
        let mut command = build::cargo_with_object(workspace, "bench", &object);
        command.args(["--package", "tracer-user", "--bench", name, "--"]);
        command.args(without_dashes(args.get(1..).unwrap_or_default()));
        let described = process::describe(&command);
        let status = command.status().with_context(|| format!("cannot start `{described}`"))?;
        if !status.success() {
            code = ExitCode::FAILURE;
        }
    }
    for name in programs {
        let program = build::test_program(workspace, &object, name)?;
        if !measure(workspace, &program, &droptrace, args)? {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Runs one program; true if it succeeded.
fn measure(workspace: &Workspace, program: &Path, droptrace: &Path, args: &[OsString]) -> Result<bool> {
    let mut command: Command = process::as_root(program, &[("DROPTRACE", droptrace.as_os_str())])?;
    command.args(args);
    workspace.clean_library_path(&mut command);
    let described = process::describe(&command);
    let status = command.status().with_context(|| format!("cannot start `{described}`"))?;
    Ok(status.success())
}

/// Which programs run, and what they are given: a program's name chooses it, and what follows is its; other arguments
/// are the storm's, alone; without any, all run.
fn chosen(args: &[OsString]) -> (&'static [&'static str], &[OsString]) {
    let is_named = |name: &&str| args.first().is_some_and(|first| first == OsStr::new(name));
    if BENCHES.iter().any(is_named) {
        return (&[], args);
    }
    match PROGRAMS.iter().position(is_named) {
        Some(at) => (&PROGRAMS[at..=at], without_dashes(&args[1..])),
        None if args.is_empty() => (&PROGRAMS, args),
        None => (&PROGRAMS[..1], without_dashes(args)),
    }
}

/// `--` only says that what follows is the program's.
fn without_dashes(args: &[OsString]) -> &[OsString] {
    match args {
        [first, rest @ ..] if first == "--" => rest,
        all => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen_of(line: &str) -> (Vec<&'static str>, Vec<String>) {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let (programs, args) = chosen(&args);
        (programs.to_vec(), args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn a_name_chooses_and_other_arguments_are_the_storms() {
        let of = |programs: &[&'static str], args: &[&str]| {
            (programs.to_vec(), args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(chosen_of(""), of(&["storm", "rules"], &[]));
        assert_eq!(chosen_of("rules"), of(&["rules"], &[]));
        assert_eq!(chosen_of("rules -- --rounds 3"), of(&["rules"], &["--rounds", "3"]));
        assert_eq!(chosen_of("rules --rounds 3"), of(&["rules"], &["--rounds", "3"]));
        assert_eq!(chosen_of("storm"), of(&["storm"], &[]));
        assert_eq!(chosen_of("names"), of(&[], &["names"]));
        assert_eq!(chosen_of("causes"), of(&[], &["causes"]));
        assert_eq!(chosen_of("recordings 1000"), of(&[], &["recordings", "1000"]));
        assert_eq!(chosen_of("--rounds 3"), of(&["storm"], &["--rounds", "3"]));
        assert_eq!(chosen_of("-- --help"), of(&["storm"], &["--help"]));
    }
}
