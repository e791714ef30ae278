//! Running the binary under test and reading what it prints.

use super::record::{Record, Tally};
use anyhow::{Context, Result, bail, ensure};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What droptrace says on standard error once its programs are attached.
pub(crate) const ATTACHED: &str = "watching";
/// Lines kept; the tally goes on beyond it.
const KEPT: usize = 20_000;

/// The binary under test: `$DROPTRACE`.
///
/// # Errors
/// When the variable is not set.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("DROPTRACE").context("set DROPTRACE to the path of the droptrace binary")?;
    Ok(path.into())
}

/// The command `droptrace ARGUMENTS`.
///
/// # Errors
/// When `DROPTRACE` is not set.
pub fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    Ok(command)
}

/// What it printed so far.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Its JSON lines.
    pub records: Vec<Record>,
    /// Sums over all of them.
    pub tally: Tally,
    /// Lines of standard output that are no JSON objects.
    pub strays: Vec<String>,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Drop lines of some namespaces.
    pub fn drops_in<'a>(&'a self, netns: &'a [u32]) -> impl Iterator<Item = &'a Record> {
        let ours = |record: &&Record| record.netns().is_some_and(|inode| netns.contains(&inode));
        self.records.iter().filter(|record| record.is_drop()).filter(ours)
    }
}

/// A running droptrace, killed when this is dropped.
#[derive(Debug)]
pub struct Droptrace {
    child: Child,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    output: Mutex<Output>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Output)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// What it had printed, and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// All that it printed.
    pub output: Output,
    /// How it ended.
    pub status: ExitStatus,
}

impl Ended {
    /// Checks the exit code.
    ///
    /// # Errors
    /// When it is another one.
    pub fn expect_code(&self, code: i32) -> Result<()> {
        ensure!(
            self.status.code() == Some(code),
            "droptrace ended with {} instead of {code}; stderr:\n{}",
            self.status,
            self.output.stderr
        );
        Ok(())
    }
}

impl Droptrace {
    /// Starts `droptrace -o json ARGUMENTS` and waits until it watches.
    ///
    /// # Errors
    /// When it ends instead, or does not attach in time.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        let started = Self::spawn(command(&all)?)?;
        started.wait("attached", |output| output.stderr.contains(ATTACHED))?;
        Ok(started)
    }

    /// Starts a prepared command; does not wait.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let shared = Arc::new(Shared::default());
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(read_lines(stdout, &shared, |output, line| match serde_json::from_str(&line) {
                Ok(value @ serde_json::Value::Object(_)) => {
                    let record = Record(value);
                    output.tally.add(&record);
                    if output.records.len() < KEPT {
                        output.records.push(record);
                    }
                }
                _ => output.strays.push(line),
            }));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(read_lines(stderr, &shared, |output, line| {
                output.stderr.push_str(&line);
                output.stderr.push('\n');
            }));
        }
        Ok(Self { child, shared, readers })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    #[must_use]
    pub fn output(&self) -> Output {
        self.shared.lock().clone()
    }

    /// Takes the lines that are kept so far: there is room for more then.
    #[must_use]
    pub fn take_records(&self) -> Vec<Record> {
        std::mem::take(&mut self.shared.lock().records)
    }

    /// Lines that are kept so far.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.shared.lock().records.len()
    }

    /// True until it has ended and all that it printed is read.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // The readers hold the shared state while the process lives.
        Arc::strong_count(&self.shared) > 1
    }

    /// Waits until what it printed satisfies the predicate.
    ///
    /// # Errors
    /// When that does not come in time, or the process ended without it.
    pub fn wait(&self, what: &str, mut enough: impl FnMut(&Output) -> bool) -> Result<()> {
        let deadline = Instant::now() + super::patience();
        let mut output = self.shared.lock();
        while !enough(&output) {
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = !self.is_alive();
            if left.is_zero() || ended {
                let why = if ended { "droptrace ended" } else { "too long" };
                let missed = output.tally.missed();
                bail!("{why}: waited until {what}; {missed} missed; stderr:\n{}", output.stderr);
            }
            let pause = left.min(Duration::from_millis(50));
            output =
                self.shared.changed.wait_timeout(output, pause).map_or_else(|e| e.into_inner().0, |(g, _)| g);
            // Lines come in bursts, and the predicate looks at all there are.
            drop(output);
            std::thread::sleep(Duration::from_millis(5));
            output = self.shared.lock();
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: our own child, not yet waited for: the number cannot belong to another process.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Interrupts it (SIGINT) and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time, does not end with 0, or printed anything but JSON.
    pub fn stop(self) -> Result<Output> {
        self.signal(libc::SIGINT);
        let ended = self.end()?;
        ended.expect_code(0)?;
        ensure!(ended.output.strays.is_empty(), "no JSON on stdout: {:?}", ended.output.strays);
        Ok(ended.output)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(mut self) -> Result<Ended> {
        let deadline = Instant::now() + super::patience();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "droptrace does not end; stderr:\n{}", self.output().stderr);
            std::thread::sleep(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            // A reader that panicked has lost lines: the caller's own checks will miss them.
            let _ = reader.join();
        }
        Ok(Ended { output: self.output(), status })
    }
}

impl Drop for Droptrace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        note_missed(self.shared.lock().tally.missed());
    }
}

/// Adds to [`missed_here`].
pub(super) fn note_missed(drops: u64) {
    MISSED.set(MISSED.get() + drops);
}

thread_local! {
    static MISSED: Cell<u64> = const { Cell::new(0) };
}

/// The drops that droptraces of this thread, ended by now, said they had missed.
#[must_use]
pub fn missed_here() -> u64 {
    MISSED.get()
}

fn read_lines(
    source: impl Read + Send + 'static,
    shared: &Arc<Shared>,
    take: impl Fn(&mut Output, String) + Send + 'static,
) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n') {
            let Ok(line) = line else { break };
            shared.change(|output| take(output, String::from_utf8_lossy(&line).into_owned()));
        }
    })
}
