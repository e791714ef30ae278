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
    fs,
    io::{self, Write as _},
    ops::Range,
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
    release_code();
}

/// Lets go of the program's own code, most of which only start-up runs: the kernel has it in its page cache, and maps what runs again.
fn release_code() {
    let (Ok(maps), Ok(program)) = (fs::read_to_string("/proc/self/maps"), fs::read_link("/proc/self/exe"))
    else {
        return;
    };
    let Some(program) = program.to_str() else { return };
    for range in maps.lines().filter_map(|line| code(line, program)) {
        // SAFETY: a mapping of this process that nothing can write to and that no relocation changed, for it is code: what is
        // read or run there next comes from the same file (madvise(2), MADV_DONTNEED).
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

/// Where a line of /proc/PID/maps (proc_pid_maps(5)) has code of a program.
fn code(line: &str, program: &str) -> Option<Range<usize>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let is_it = rest.starts_with("r-xp ")
        && rest.split_once('/').is_some_and(|(_, path)| path == program.trim_start_matches('/'));
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?).filter(|range| is_it && !range.is_empty())
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

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn only_the_programs_own_code() {
        let line = |perms: &str, path: &str| format!("55d0-55f0 {perms} 00001000 fd:00 123    {path}");
        assert_eq!(code(&line("r-xp", "/usr/bin/droptrace"), "/usr/bin/droptrace"), Some(0x55d0..0x55f0));
        for (perms, path) in [
            ("r--p", "/usr/bin/droptrace"),
            ("rwxp", "/usr/bin/droptrace"),
            ("r-xs", "/usr/bin/droptrace"),
            ("r-xp", "/usr/bin/other"),
            ("r-xp", "/usr/bin/droptrace (deleted)"),
            ("r-xp", "[vdso]"),
            ("r-xp", ""),
        ] {
            assert_eq!(code(&line(perms, path), "/usr/bin/droptrace"), None, "{perms} {path}");
        }
        assert_eq!(code("nonsense", "/usr/bin/droptrace"), None);
    }
}
