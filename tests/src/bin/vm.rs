//! Runs commands and the end-to-end tests on stock Debian kernels in QEMU.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use droptrace_tests::vm::{
    Cache, Error, Initramfs, Job, Kernel, Machine, Mirrors, Outcome, Suite, Verdict, boot,
};

/// The exit code for a kernel that could not be fetched: the suite was skipped, not failed.
const EXIT_SKIPPED: u8 = 77;
/// The exit code for a test bed that does not work.
const EXIT_BROKEN: u8 = 2;

/// Run commands and the end-to-end tests on stock Debian kernels in QEMU.
///
/// Exit codes: 0 passed; 1 the guest's command failed; 124 time ran out; 125 the guest died;
/// 77 the kernel could not be fetched; 2 the test bed does not work here.
#[derive(Parser)]
#[command(name = "vm", verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Run the end-to-end tests
    Run {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        size: Size,
        /// The droptrace binary to test
        #[arg(long)]
        droptrace: PathBuf,
        /// The end-to-end test binary
        #[arg(long)]
        e2e: PathBuf,
        /// Only the tests whose name contains this (may be repeated); after `!`: not these
        #[arg(long, value_name = "FILTER")]
        only: Vec<String>,
    },
    /// Run a shell command, with the tools and mounts that the tests have
    Exec {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        size: Size,
        /// Copy a file or folder into the guest; a program's libraries come along
        #[arg(long = "file", value_name = "HOST:GUEST", value_parser = parse_file)]
        files: Vec<(PathBuf, PathBuf)>,
        /// The command: its words, joined by spaces, are run by /bin/sh
        #[arg(required = true, last = true)]
        words: Vec<String>,
    },
    /// Get the suite's current kernel, unless it is cached already
    Fetch {
        #[command(flatten)]
        place: Place,
    },
    /// List the cached kernels
    List {
        /// The folder that keeps kernels between runs
        #[arg(long)]
        cache: PathBuf,
    },
}

#[derive(Args)]
struct Place {
    /// The suite whose kernel to boot: Debian's bullseye, bookworm, trixie or sid, or Ubuntu's jammy
    #[arg(long)]
    suite: Suite,
    /// The folder that keeps kernels between runs
    #[arg(long)]
    cache: PathBuf,
    /// The Debian mirror [default: the one in apt's sources]
    #[arg(long, env = "DROPTRACE_DEBIAN_MIRROR", value_name = "URL")]
    mirror: Option<String>,
}

#[derive(Args)]
struct Size {
    /// Give up after this many seconds
    #[arg(long, default_value_t = 1500, value_name = "SECS")]
    timeout: u64,
    /// Processors
    #[arg(long, default_value_t = 2)]
    smp: u32,
    /// Memory in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
}

impl Place {
    fn mirrors(&self) -> Option<Mirrors> {
        if !self.suite.is_debian() {
            return Some(Mirrors::of_ubuntu());
        }
        self.mirror.as_deref().map_or_else(Mirrors::of_this_machine, |url| Some(Mirrors::at(url)))
    }
}

fn parse_file(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.rsplit_once(':') {
        Some((host, guest)) if guest.starts_with('/') => Ok((host.into(), guest.into())),
        _ => Err("expected HOST:GUEST with an absolute path in the guest".to_owned()),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("vm: {error}");
            if matches!(error, Error::Fetch { .. }) {
                eprintln!("vm: SKIPPED: NOTHING RAN ON THIS KERNEL");
                EXIT_SKIPPED.into()
            } else {
                EXIT_BROKEN.into()
            }
        }
    }
}

fn run(cli: Cli) -> Result<u8, Error> {
    match cli.command {
        Cmd::Run { place, size, droptrace, e2e, only } => {
            run_job(&place, &size, &Job::tests(&droptrace, &e2e, &only))
        }
        Cmd::Exec { place, size, files, words } => {
            let job =
                files.into_iter().fold(Job::new(words.join(" ")), |job, (host, guest)| job.file(host, guest));
            run_job(&place, &size, &job)
        }
        Cmd::Fetch { place } => {
            let cache = Cache::open(&place.cache)?;
            let lock = cache.lock(place.suite)?;
            let kernel = Kernel::fetch(&cache, &lock, place.suite, place.mirrors().as_ref())?;
            eprintln!("vm: {}: kernel {} ({})", kernel.suite, kernel.release, kernel.version);
            Ok(0)
        }
        Cmd::List { cache } => {
            let cache = Cache::open(&cache)?;
            let mut out = io::stdout().lock();
            for suite in Suite::ALL {
                let line = Kernel::cached(&cache, suite).map_or_else(
                    || "not fetched".to_owned(),
                    |kernel| format!("{} {}", kernel.release, kernel.version),
                );
                // Nobody to tell when stdout is closed.
                let _ = writeln!(out, "{suite:<9} {line}");
            }
            Ok(0)
        }
    }
}

/// Boots of one job at most: see [`Outcome::is_emulators_fault`].
const BOOTS: u32 = 3;

fn run_job(place: &Place, size: &Size, job: &Job) -> Result<u8, Error> {
    let cache = Cache::open(&place.cache)?;
    let mut attempt = 1;
    loop {
        let outcome = run_once(&cache, place, size, job)?;
        if attempt == BOOTS || !outcome.is_emulators_fault() {
            return Ok(outcome.verdict.exit_code());
        }
        attempt += 1;
        eprintln!(
            "vm: {}: THE EMULATOR BROKE THE GUEST (its kernel met a breakpoint of its own that was gone already); boot \
             {attempt} of {BOOTS} follows",
            place.suite
        );
    }
}

fn run_once(cache: &Cache, place: &Place, size: &Size, job: &Job) -> Result<Outcome, Error> {
    let lock = cache.lock(place.suite)?;
    let kernel = Kernel::cached_or_fetched(cache, &lock, place.suite, place.mirrors().as_ref())?;
    let initramfs = Initramfs::base(cache, &lock, &kernel)?;
    let machine = Machine { cpus: size.smp, memory: size.memory, timeout: Duration::from_secs(size.timeout) };
    let outcome = boot(cache, lock, &machine, &kernel, &initramfs, job, &mut io::stdout())?;
    if let Some(tail) = &outcome.console_tail {
        eprintln!("vm: {}: the end of {}:\n{tail}", kernel.suite, outcome.console.display());
    }
    if let Some(oops) = &outcome.oops {
        // Nobody to tell when stdout is closed.
        let _ = writeln!(io::stdout(), "guest's kernel: {oops}");
    }
    let first = outcome
        .first_output
        .map_or_else(|| "no output".to_owned(), |at| format!("first output after {:.1} s", at.as_secs_f64()));
    let total = outcome.total.as_secs_f64();
    eprintln!(
        "vm: {} {}: {}; {first}, done after {total:.1} s",
        kernel.suite, kernel.release, outcome.verdict
    );
    if outcome.verdict == Verdict::TimedOut {
        eprintln!("vm: {}: raise the limit with --timeout (it was {} s)", kernel.suite, size.timeout);
    }
    Ok(outcome)
}
