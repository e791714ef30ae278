//! `e2e`: every end-to-end scenario as one test, on this machine or inside a virtual machine.
//!
//! Environment: `DROPTRACE` is the path of the binary under test; `DROPTRACE_VM` is set to the Debian suite inside
//! a virtual machine; `DROPTRACE_STORM` overrides the number of packets of the big storm, and with it the sizes of the
//! other storms and of the differential tests, whose random rules and packets `DROPTRACE_SEED` repeats; `DROPTRACE_ONLY` are
//! parts of the names of the tests to run, with commas between them.

use droptrace_tests::{bed, scenarios};
use std::process::ExitCode;

/// Two tests at a time suit two CPUs: a drop stream watches the whole machine, so more would mostly watch each other.
const TEST_THREADS: usize = 2;

fn main() -> ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads.get_or_insert(TEST_THREADS);
    if !arguments.list {
        if let Err(error) = bed::check_environment() {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
        bed::containerd::remove_stale();
        bed::namespace::remove_stale();
    }
    let mut trials = scenarios::all();
    if let Ok(only) = std::env::var("DROPTRACE_ONLY") {
        trials.retain(|trial| only.split(',').any(|part| trial.name().contains(part)));
    }
    let ended = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        eprintln!("{}", scenarios::times::summary());
    }
    ended.exit_code()
}
