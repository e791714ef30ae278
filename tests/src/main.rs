//! `e2e`: every end-to-end scenario as one test, on this machine or inside a virtual machine.
//!
//! Environment: `DROPTRACE` is the path of the binary under test; `DROPTRACE_VM` is set to the Debian suite inside
//! a virtual machine; `DROPTRACE_STORM` overrides the number of packets of the big storm, and with it the sizes of the
//! other storms and of the differential tests, whose random rules and packets `DROPTRACE_SEED` repeats; `DROPTRACE_ONLY` are
//! parts of the names of the tests to run, with commas between them, and after `!` of those not to run.

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
        trials.retain(|trial| is_meant(trial.name(), &only));
    }
    let ended = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        eprintln!("{}", scenarios::times::summary());
    }
    ended.exit_code()
}

/// Whether `DROPTRACE_ONLY` means a test.
fn is_meant(name: &str, only: &str) -> bool {
    let (unwanted, wanted): (Vec<&str>, Vec<&str>) =
        only.split(',').filter(|part| !part.is_empty()).partition(|part| part.starts_with('!'));
    let is_wanted = wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    is_wanted && !unwanted.iter().any(|part| name.contains(&part[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_names_take_tests_in_and_out() {
        assert!(is_meant("tc::drop::ipv4", "tc::,hooks::"));
        assert!(!is_meant("names::pod", "tc::,hooks::"));
        assert!(!is_meant("tc::drop::ipv6", "tc::,!::ipv6"));
        assert!(is_meant("names::pod", "!::ipv6") && is_meant("names::pod", ""));
    }
}
