//! Booting a guest in QEMU and watching it to its end.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    Cache, Error, Initramfs, Job, Kernel, Verdict,
    cache::{SuiteLock, remove_dir},
    command::last_lines,
    error::IoContext,
    oops,
    verdict::exit_code,
};

/// The kernel's command line. A panic reboots at once, which `-no-reboot` turns into QEMU's end; the rest
/// saves time or keeps an emulated machine's timing from looking like a fault.
const KERNEL_ARGUMENTS: &str = "console=ttyS0,115200 quiet loglevel=4 panic=-1 oops=panic mitigations=off \
     nokaslr no_timer_check tsc=reliable random.trust_cpu=on cryptomgr.notests nowatchdog audit=0";
/// How often we look whether the guest has ended.
const POLL: Duration = Duration::from_millis(10);
/// How long a guest that has reported its exit code may take to power off.
const GRACE: Duration = Duration::from_secs(10);
/// How much of a dead guest's console is shown, in lines.
const CONSOLE_TAIL: usize = 60;

/// The virtual machine's size and time.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Number of processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// When to give up, counted from QEMU's start.
    pub timeout: Duration,
}

/// How a boot went.
#[derive(Debug)]
pub struct Outcome {
    /// The result.
    pub verdict: Verdict,
    /// From QEMU's start to the job's first output.
    pub first_output: Option<Duration>,
    /// From QEMU's start to its end.
    pub total: Duration,
    /// The end of the console, when the guest died or hung.
    pub console_tail: Option<String>,
    /// What its kernel died of, if it said so.
    pub oops: Option<String>,
    /// The whole console.
    pub console: PathBuf,
}

impl Outcome {
    /// True if QEMU broke the guest: a processor that is emulated in a thread of its own may run an instruction that
    /// another one has just replaced, the breakpoint that the kernel sets for a moment where it patches its code
    /// (text_poke_bp(), arch/x86/kernel/alternative.c). Then nobody knows of it any more, and the kernel dies of "int3".
    /// Seen with QEMU 7.2, and by others with 8.0: <https://bugzilla.redhat.com/show_bug.cgi?id=2216496>.
    #[must_use]
    pub fn is_emulators_fault(&self) -> bool {
        let is_breakpoint = |oops: &String| oops.starts_with("Oops: int3:") || oops.starts_with("int3:");
        self.verdict == Verdict::Died && self.oops.as_ref().is_some_and(is_breakpoint)
    }
}

/// The files of one boot, removed with it.
struct RunDir(PathBuf);

impl Drop for RunDir {
    fn drop(&mut self) {
        // Whatever stays is swept by a later run.
        let _ = remove_dir(&self.0);
    }
}

/// Boots `kernel` with `job` behind `initramfs` and copies the job's output to `out` as it comes. The lock is
/// released as soon as the boot has its own copies of the cached files.
///
/// # Errors
/// When the boot cannot be prepared or QEMU cannot be run; whatever happens in the guest is the verdict's.
pub fn boot(
    cache: &Cache,
    lock: SuiteLock,
    machine: &Machine,
    kernel: &Kernel,
    initramfs: &Initramfs,
    job: &Job,
    out: &mut (impl Write + Send),
) -> Result<Outcome, Error> {
    let run = RunDir(cache.run_dir(kernel.suite)?);
    let image = run.0.join("vmlinuz");
    fs::copy(kernel.image(), &image).context("copy", &kernel.image())?;
    initramfs.with_job(kernel, job, &run.0.join("run.cpio"))?;
    drop(lock);

    let started = Instant::now();
    let mut child = start(machine, &run.0)?;
    let output = child.stdout.take();
    let status_file = run.0.join("status");
    let (timed_out, first_output) = thread::scope(|scope| {
        let copier = scope.spawn(move || output.and_then(|output| copy_output(output, out)));
        let timed_out = wait(&mut child, started + machine.timeout, &status_file);
        if timed_out.is_err() {
            // The copier reads until QEMU is gone.
            let _ = child.kill();
        }
        (timed_out, copier.join().ok().flatten())
    });
    let timed_out = timed_out?;
    let total = started.elapsed();

    let status = fs::read(&status_file).unwrap_or_default();
    let verdict = Verdict::from_status(&String::from_utf8_lossy(&status), timed_out);
    let console_now = run.0.join("console");
    let console_text = matches!(verdict, Verdict::Died | Verdict::TimedOut).then(|| {
        let text = fs::read(&console_now).unwrap_or_default();
        printable(&String::from_utf8_lossy(&text))
    });
    let oops = console_text.as_deref().and_then(oops::summary);
    let console_tail = console_text.map(|text| last_lines(&text, CONSOLE_TAIL));
    let console = cache.console_log(kernel.suite);
    fs::rename(&console_now, &console).context("keep", &console_now)?;
    Ok(Outcome {
        verdict,
        first_output: first_output.map(|at| at - started),
        total,
        console_tail,
        oops,
        console,
    })
}

fn start(machine: &Machine, run: &Path) -> Result<Child, Error> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(arguments(machine)).current_dir(run).stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: getpid(2) has no preconditions and cannot fail.
    let parent = unsafe { libc::getpid() };
    // SAFETY: between fork and exec the closure only makes system calls that are async-signal-safe and
    // touches no memory of ours.
    unsafe {
        command.pre_exec(move || {
            // No guest outlives the process that watches it, however that one ends.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        });
    }
    command.spawn().map_err(|error| Error::Command {
        command: "qemu-system-x86_64".to_owned(),
        outcome: format!("could not be started: {error}"),
    })
}

/// QEMU's arguments; file names are relative to the run's folder, so that a comma in the cache's path cannot
/// end an option.
fn arguments(machine: &Machine) -> Vec<OsString> {
    // -cx16: QEMU 7.2 emulates cmpxchg16b wrongly with more than one thread, and the slab allocator of newer
    // kernels then panics in every other boot.
    let fixed = "-M pc -accel tcg,thread=multi,tb-size=256 -cpu Nehalem,-cx16 -nodefaults -no-user-config \
                 -display none -no-reboot -kernel vmlinuz -initrd run.cpio \
                 -serial file:console -serial stdio -serial file:status";
    let mut arguments: Vec<OsString> = fixed.split_whitespace().map(OsString::from).collect();
    arguments.extend(["-smp".into(), machine.cpus.to_string().into()]);
    arguments.extend(["-m".into(), machine.memory.to_string().into()]);
    arguments.extend(["-append".into(), KERNEL_ARGUMENTS.into()]);
    arguments
}

/// Waits for QEMU's end and returns false, or ends it at the deadline and returns true.
fn wait(child: &mut Child, deadline: Instant, status_file: &Path) -> Result<bool, Error> {
    let mut deadline = deadline;
    let mut reported = false;
    let mut last_look = Instant::now();
    loop {
        let qemu = Path::new("qemu-system-x86_64");
        if child.try_wait().context("wait for", qemu)?.is_some() {
            return Ok(false);
        }
        let now = Instant::now();
        if now >= deadline {
            child.kill().context("end", qemu)?;
            child.wait().context("wait for", qemu)?;
            return Ok(true);
        }
        if !reported && now - last_look > Duration::from_secs(1) {
            last_look = now;
            let status = fs::read(status_file).unwrap_or_default();
            reported = exit_code(&String::from_utf8_lossy(&status)).is_some();
            if reported {
                deadline = deadline.min(now + GRACE);
            }
        }
        thread::sleep(POLL);
    }
}

/// Copies the job's output and returns when its first byte came. Goes on reading when `out` is closed: a guest
/// whose output nobody reads would block.
fn copy_output(mut output: impl Read, out: &mut impl Write) -> Option<Instant> {
    let mut first = None;
    let mut open = true;
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = output.read(&mut buffer) {
        first.get_or_insert_with(Instant::now);
        open = open && out.write_all(&buffer[..length]).and_then(|()| out.flush()).is_ok();
    }
    first
}

/// The console's text without what could steer a terminal: firmware clears the screen.
fn printable(text: &str) -> String {
    text.chars().filter(|&c| c == '\n' || c == '\t' || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_that_keep_guests_alive() {
        let machine = Machine { cpus: 2, memory: 1024, timeout: Duration::from_secs(1) };
        let arguments: Vec<String> =
            arguments(&machine).into_iter().map(|argument| argument.into_string().unwrap()).collect();
        let after = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name).unwrap();
            arguments[at + 1].as_str()
        };
        assert!(after("-cpu").ends_with(",-cx16"));
        assert_eq!((after("-smp"), after("-m")), ("2", "1024"));
        assert!(after("-append").contains("panic=-1 oops=panic"));
        assert!(!after("-append").contains("  "));
        assert!(arguments.contains(&"-no-reboot".to_owned()));
    }

    #[test]
    fn output_is_read_to_its_end_even_when_nobody_listens() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut input = std::io::Cursor::new(vec![b'x'; 100_000]);
        assert!(copy_output(&mut input, &mut Closed).is_some());
        assert_eq!(input.position(), 100_000);
    }

    #[test]
    fn the_console_cannot_steer_the_terminal() {
        assert_eq!(printable("\x1b[2Ja\r\nb\tc\u{9b}"), "[2Ja\nb\tc");
    }
}
