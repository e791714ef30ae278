//! `cargo xtask`: set-up, build, run, test, bench and dist for droptrace.
//!
//! Every command first finds or installs what it needs ([`setup`]), then builds the eBPF object ([`ebpf`]) and
//! embeds it into `droptrace` ([`build`]).

mod apt;
mod bench;
mod build;
mod dist;
mod duckdb;
mod ebpf;
mod fuzz;
mod linker;
mod process;
mod report;
mod run;
mod setup;
mod test;
mod toolchain;
mod tools;
mod unpacked;
mod ways;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{build::Profile, setup::Need, workspace::Workspace};

/// Builds, runs and tests droptrace; installs what that takes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or install everything that the other commands need.
    Setup,
    /// Build droptrace with its eBPF programs inside.
    Build {
        /// Build without optimisation.
        #[arg(long)]
        debug: bool,
    },
    /// Build droptrace and run it (as root, through sudo where that is needed).
    Run {
        /// Build without optimisation.
        #[arg(long)]
        debug: bool,
        /// What droptrace itself is given.
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Run the unit tests, the end-to-end tests on this kernel, and those in virtual machines.
    Test(test::Options),
    /// Measure what a drop costs in a storm, next to bpftrace (`storm`), what packets cost where rules are many (`rules`), and
    /// the user half (`names`, `causes`, `recordings`).
    Bench {
        /// The name of only one of them, then what it is given (`--help`); without a name, the storm is.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Feed any bytes to what reads recordings (libFuzzer; takes a C++ compiler).
    Fuzz {
        /// What libFuzzer is given instead of a minute (`-help=1`).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build one static droptrace that runs where nothing else is installed.
    Dist,
    /// Run the virtual machine tool of the test crate.
    Vm {
        /// What the tool itself is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            process::note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::find()?;
    workspace.prepend_path();
    match command {
        Command::Setup => {
            setup::ensure(&workspace, Need::Everything)?;
            process::say("Everything is there: `cargo xtask run`, `cargo xtask test`.");
        }
        Command::Build { debug } => {
            let droptrace = run::build(&workspace, Profile::new(debug))?;
            process::say(&droptrace.display().to_string());
        }
        Command::Run { debug, args } => return Err(run::run(&workspace, Profile::new(debug), &args)),
        Command::Test(options) => return Ok(test::test(&workspace, &options)),
        Command::Bench { args } => return bench::bench(&workspace, &args),
        Command::Fuzz { args } => return fuzz::fuzz(&workspace, &args),
        Command::Dist => dist::dist(&workspace)?,
        Command::Vm { args } => return Err(run::vm(&workspace, &args)),
    }
    Ok(ExitCode::SUCCESS)
}
