//! From nothing to a running trace: checks, loads, attaches, and learns how this kernel shows what drops a packet.

use crate::{
    cli::Refusal as Usage,
    filter::{Filter, compile},
    probe::{
        btf::BtfError,
        clock::{Clock, sample_now},
        environment::{self, Facts, Note},
        kernel::Kernel,
        tracer::{Settings, Tracer},
    },
    stream::Stream,
};
use anyhow::Context as _;
use std::{
    ffi::OsString,
    io::{self, Write as _},
    sync::{Mutex, PoisonError, mpsc::Sender},
};

/// Starts; the exit code where that has no point here.
///
/// # Errors
/// What went wrong, for people.
pub fn start(
    filter: &Filter,
    settings: Settings,
    arguments: &[OsString],
) -> anyhow::Result<Result<Stream, u8>> {
    let facts = Facts::gather().context("can't find out what this system allows")?;
    let notes = match environment::check(&facts) {
        Ok(notes) => notes,
        Err(refusal) => return Ok(Err(refuse(&refusal))),
    };
    for note in &notes {
        if matches!(note, Note::Memlock(_)) {
            environment::raise_memlock().context("can't raise RLIMIT_MEMLOCK (CAP_SYS_RESOURCE)")?;
        } else {
            say(&format!("note: {note}"));
        }
    }
    let (kernel, vmlinux, no_symbols) = match Kernel::load() {
        Ok(loaded) => loaded,
        Err(error @ BtfError::Missing { .. }) => return Ok(Err(refuse(&error))),
        Err(error) => return Err(error.into()),
    };
    if let Err(refusal) = environment::check_layout(&vmlinux, kernel.missing()) {
        return Ok(Err(refuse(&refusal)));
    }
    // Six megabytes that are not needed any more.
    drop(vmlinux);
    if let Some(error) = no_symbols {
        say(&format!("note: {error}"));
    }
    for missing in kernel.missing() {
        say(&format!("note: {missing}"));
    }
    let filter = match compile(filter, &kernel.reason_names()) {
        Ok(filter) => filter,
        Err(error) => {
            let usage = Usage::word(arguments, &error);
            usage.print()?;
            return Ok(Err(usage.exit_code()));
        }
    };
    let clock = Clock::new(sample_now().context("can't read the clock")?);
    let tracer = Tracer::start(kernel.layout(), &filter, settings)?;
    release_memory();
    let node = environment::node_name();
    let mut stream = Stream::new(tracer, kernel, clock, node).context("can't read the clock")?;
    if settings.probes
        && let Err(error) = stream.attach_probes()
    {
        say(&format!(
            "error: --probes always: {error}; this kernel allows no probes, or not to this user (CAP_PERFMON, \
             CAP_SYS_ADMIN; locked down?): leave the option out"
        ));
        return Ok(Err(environment::EXIT_CODE));
    }
    if let Err(error) = stream.self_test() {
        say(&format!(
            "note: drops by nft rules come without the rule, others in netfilter without their function: {error}"
        ));
    }
    if let Err(error) = stream.watch_counters() {
        say(&format!("note: drops by iptables-legacy rules come without the rule: {error}"));
    }
    Ok(Ok(stream))
}

/// Gives the memory that start-up needed (types, symbols as text) back to the system, and from now on each large block
/// when it is freed: glibc would keep as much as the largest took, for large rule sets some ten megabytes. A node tool
/// stays small.
fn release_memory() {
    /// Bytes that glibc begins with; set, they don't grow (mallopt(3), M_MMAP_THRESHOLD).
    #[cfg(target_env = "gnu")]
    const LARGE: libc::c_int = 128 << 10;
    // SAFETY: no preconditions (malloc_trim(3), mallopt(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

fn refuse(why: &dyn std::error::Error) -> u8 {
    say(&format!("error: {why}"));
    environment::EXIT_CODE
}

/// Who is told instead of stderr, while a screen is drawn there.
static TOLD: Mutex<Option<Sender<String>>> = Mutex::new(None);

/// What is said from now on goes there; `None`: to stderr.
pub(crate) fn say_to(told: Option<Sender<String>>) {
    *TOLD.lock().unwrap_or_else(PoisonError::into_inner) = told;
}

/// A line for people. If stderr is gone there is nobody to tell.
pub fn say(line: &str) {
    if let Some(told) = &*TOLD.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = told.send(line.to_owned());
        return;
    }
    let _ = writeln!(io::stderr(), "droptrace: {line}");
}
