//! `cargo xtask test`: the unit tests, the end-to-end tests on this kernel, and the same in virtual machines.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    build, dist, duckdb, ebpf, process,
    report::{Part, Place, Report, Tally},
    setup::{self, Need},
    workspace::Workspace,
};

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave out the virtual machines.
    #[arg(long)]
    no_vm: bool,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
    /// Run every test on every kernel; without, virtual machines of older ones run what differs there.
    #[arg(long, conflicts_with_all = ["no_vm", "only"])]
    whole: bool,
    /// Boot only these kernels (may be repeated).
    #[arg(long = "kernel", value_name = "SUITE", conflicts_with = "no_vm")]
    kernels: Vec<Suite>,
}

/// The release of Debian or Ubuntu that a virtual machine's kernel comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// 5.10.
    Bullseye,
    /// Ubuntu's 5.15.
    Jammy,
    /// 6.1.
    Bookworm,
    /// 6.12.
    Trixie,
    /// The newest.
    Sid,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Jammy => "jammy",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    fn row(self) -> String {
        format!("VM {}", self.name())
    }

    /// The tests that run there unless others are asked for: parts of their names, and after `!` of those left out. The newest runs
    /// nearly all. The others run what differs between kernels: what is learned from a kernel's stack and read from its memory, and on the
    /// oldest and on 6.1 what their drop reasons, none and fewer than later, lead to. IPv6 is read like IPv4 from there, and is left to the
    /// newest and to this machine's.
    const fn filters(self) -> &'static [&'static str] {
        match self {
            Self::Bullseye => &[
                "attribution::",
                "cli::killed_leaves_nothing",
                "counters::",
                "differential::",
                "device::",
                "doctor::",
                "hooks::",
                "netfilter::",
                "outages::",
                "queue::",
                "routing::",
                "socket::",
                "startup::",
                "storm::",
                "tc::",
                "trace::",
                "!::ipv6",
                "!trace_differential::",
            ],
            Self::Jammy => &[
                "attribution::",
                "counters::iptables_nft",
                "counters::nft",
                "hooks::arp",
                "hooks::nft_arp",
                "hooks::nft_bridge_forward",
                "hooks::nft_netdev_ingress",
                "differential::iptables_nft",
                "trace::counters_decide",
                "!::ipv6",
                "!trace_differential::",
            ],
            Self::Bookworm => &[
                "attribution::",
                "cli::killed_leaves_nothing",
                "counters::",
                "differential::",
                "hooks::",
                "netfilter::",
                "outages::",
                "queue::",
                "routing::",
                "socket::",
                "storm::",
                "tc::",
                "trace::",
                "!::ipv6",
            ],
            Self::Trixie => &[
                "attribution::",
                "cli::killed_leaves_nothing",
                "counters::",
                "differential::legacy",
                "hooks::",
                "netfilter::",
                "storm::",
                "tc::",
                "trace::",
                "!::ipv6",
                "!trace_differential::",
            ],
            Self::Sid => &["!trace_differential::"],
        }
    }
}

/// The programs that the end-to-end tests consist of.
#[derive(Debug)]
struct Programs {
    droptrace: PathBuf,
    e2e: PathBuf,
    /// The test bed of virtual machines; not built when none is asked for.
    vm: Option<PathBuf>,
    /// A Python with DuckDB, where it can be had.
    duckdb: Option<PathBuf>,
}

/// Runs the tests; the last line of the output is the count of all.
pub(crate) fn test(workspace: &Workspace, options: &Options) -> ExitCode {
    process::outlive_first_interrupt();
    let mut report = Report { parts: Vec::new(), without_vms: options.no_vm };
    run_parts(workspace, options, &mut report.parts);
    if process::interrupted() {
        report.parts.push(Part::broken("the rest", Place::Here, "interrupted", Duration::ZERO));
    }
    process::say(&format!("\n{report}"));
    if process::interrupted() {
        ExitCode::from(130)
    } else if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_parts(workspace: &Workspace, options: &Options, parts: &mut Vec<Part>) {
    let Some(object) = prepared(parts, "set-up, eBPF", || {
        let tools =
            setup::ensure(workspace, if options.no_vm { Need::Namespaces } else { Need::Everything })?;
        ebpf::build(workspace, &tools)
    }) else {
        return;
    };

    heading("unit tests");
    let mut cargo = build::cargo_with_object(workspace, "test", &object);
    cargo.args(["--workspace", "--exclude", "tracer-ebpf", "--no-fail-fast"]);
    cargo.args(options.only.iter().flat_map(|filter| ["--", filter]));
    parts.push(run_part("unit tests", Place::Here, Ok(cargo)));
    if process::interrupted() {
        return;
    }

    let Some(programs) = prepared(parts, "release build", || build_programs(workspace, options, &object))
    else {
        return;
    };

    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let name = format!("this kernel {}", kernel.trim());
    heading(&format!("end-to-end tests on {name}"));
    parts.push(run_part(&name, Place::Here, e2e_command(workspace, options, &programs)));

    let cache = env::var_os("DROPTRACE_CACHE").map_or_else(|| workspace.target.join("vm"), PathBuf::from);
    for suite in Suite::value_variants().iter().copied() {
        let Some(vm) = &programs.vm else {
            parts.push(Part::skipped(&suite.row(), Place::Vm, "--no-vm"));
            continue;
        };
        if process::interrupted() {
            return;
        }
        if !options.kernels.is_empty() && !options.kernels.contains(&suite) {
            parts.push(Part::skipped(&suite.row(), Place::Vm, "--kernel names others"));
            continue;
        }
        heading(&format!("end-to-end tests in a virtual machine, {}", suite.name()));
        let command = vm_command(workspace, options, &programs, vm, suite, &cache);
        parts.push(run_part(&suite.row(), Place::Vm, Ok(command)));
    }
    if programs.vm.is_none() {
        process::note("THE VIRTUAL MACHINES WERE SKIPPED (--no-vm): nothing is known about other kernels");
    }
}

/// Builds them as what is shipped is built: it is what is tested, and nothing is compiled twice.
fn build_programs(workspace: &Workspace, options: &Options, object: &Path) -> Result<Programs> {
    let of_tests = |name| dist::static_program(workspace, object, "droptrace-tests", name);
    Ok(Programs {
        droptrace: dist::build_static(workspace, object)?,
        e2e: of_tests("e2e")?,
        duckdb: duckdb::ensure(workspace),
        vm: (!options.no_vm).then(|| of_tests("vm")).transpose()?,
    })
}

fn e2e_command(workspace: &Workspace, options: &Options, programs: &Programs) -> Result<Command> {
    let mut variables = vec![("DROPTRACE", programs.droptrace.as_os_str())];
    variables.extend(programs.duckdb.iter().map(|python| (duckdb::VARIABLE, python.as_os_str())));
    let mut command = process::as_root(&programs.e2e, &variables)?;
    command.args(&options.only);
    workspace.clean_library_path(&mut command);
    Ok(command)
}

fn vm_command(
    workspace: &Workspace,
    options: &Options,
    programs: &Programs,
    vm: &Path,
    suite: Suite,
    cache: &Path,
) -> Command {
    let mut command = Command::new(vm);
    command.args(["run", "--suite", suite.name(), "--cache"]).arg(cache);
    command.arg("--droptrace").arg(&programs.droptrace).arg("--e2e").arg(&programs.e2e);
    let filters = match &options.only {
        Some(filter) => vec![filter.as_str()],
        None if options.whole => Vec::new(),
        None => suite.filters().to_vec(),
    };
    command.args(filters.into_iter().flat_map(|filter| ["--only", filter]));
    workspace.clean_library_path(&mut command);
    command
}

/// Runs one part with its output streaming by.
fn run_part(name: &str, place: Place, command: Result<Command>) -> Part {
    let started = Instant::now();
    let mut tally = Tally::default();
    match command.and_then(|mut command| process::tee(&mut command, |line| tally.watch(line))) {
        Ok(status) => Part::ended(name, place, status.code(), &tally, started.elapsed()),
        Err(error) => Part::broken(name, place, &format!("{error:#}"), started.elapsed()),
    }
}

/// Does what the parts after it need. A failure is told at once, and is a row of its own.
fn prepared<T>(parts: &mut Vec<Part>, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
    let started = Instant::now();
    match work() {
        Ok(value) => Some(value),
        Err(error) => {
            process::note(&format!("{error:#}"));
            parts.push(Part::broken(name, Place::Here, "see above; nothing after it ran", started.elapsed()));
            None
        }
    }
}

fn heading(text: &str) {
    process::say(&format!("\n=== {text} ==="));
}
