//! One droptrace for many tests. On an emulated machine its start takes seconds, far longer than most tests; each of them
//! looks only at what it says of the test's own network namespaces from then on.

use super::clock;
use super::droptrace::{Droptrace, Output, note_missed};
use super::record::Record;
use anyhow::Result;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long after a drop droptrace has told of it and of all before it: it settles its counts every second.
const SETTLED: Duration = Duration::from_millis(1300);
/// How far the times that droptrace prints may be from the wall clock.
const TOLERANCE: Duration = Duration::from_millis(100);
/// Lines after which another droptrace is started: each test reads on from where it came in, so they are all kept.
const LINES: usize = 4000;

/// The droptrace that the next test shares.
static CURRENT: Mutex<Option<Running>> = Mutex::new(None);

#[derive(Debug)]
struct Running {
    stream: Arc<Droptrace>,
    /// The kernel's modules at its start. What a test has loaded since, droptrace would have to learn first.
    modules: BTreeSet<String>,
}

/// A test's part of a shared droptrace.
#[derive(Debug)]
pub struct Shared {
    stream: Arc<Droptrace>,
    own: RefCell<Output>,
    /// Lines told before, and those read since.
    read: Cell<usize>,
    /// The wall clock when it joined, or a little before. A network namespace that goes drops what was on its way, and its inode number is given
    /// to another at once: what is told late of the one is not of the other.
    joined: Duration,
}

impl Shared {
    /// Joins the one that runs, or starts one; returns when it watches.
    ///
    /// # Errors
    /// When it does not start.
    pub fn join() -> Result<Self> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let modules = modules();
        let fits = |running: &Running| {
            running.modules == modules && running.stream.is_alive() && running.stream.lines() < LINES
        };
        if !current.as_ref().is_some_and(fits) {
            *current = None;
            let stream = Arc::new(Droptrace::start(&["--all"])?);
            *current = Some(Running { stream, modules });
        }
        let stream = current.as_ref().map(|running| Arc::clone(&running.stream));
        let stream = stream.ok_or_else(|| anyhow::anyhow!("no droptrace"))?;
        let read = Cell::new(stream.lines());
        let joined = clock::now().saturating_sub(TOLERANCE);
        Ok(Self { stream, own: RefCell::default(), read, joined })
    }

    /// Waits until what it printed since satisfies the predicate.
    ///
    /// # Errors
    /// When that does not come in time, or the process ended without it.
    pub fn wait(&self, what: &str, mut enough: impl FnMut(&Output) -> bool) -> Result<()> {
        self.stream.wait(what, |output| {
            self.read_on(output);
            enough(&self.own.borrow())
        })
    }

    /// All that it has told of what happened until now.
    ///
    /// # Errors
    /// When it ended.
    pub fn settled(self) -> Result<Output> {
        thread::sleep(SETTLED);
        self.wait("it is read", |_| true)?;
        Ok(self.own.take())
    }

    fn is_new(&self, record: &Record) -> bool {
        let last = record.text("/time_last").or_else(|| record.text("/time"));
        // What has another form is for the test to find out.
        last.and_then(|time| clock::parse(time).ok()).is_none_or(|time| time >= self.joined)
    }

    fn read_on(&self, output: &Output) {
        let mut own = self.own.borrow_mut();
        let is_new = |record: &&Record| self.is_new(record);
        for record in output.records.iter().skip(self.read.get()).filter(is_new) {
            own.tally.add(record);
            own.records.push(record.clone());
        }
        own.stderr.clone_from(&output.stderr);
        self.read.set(output.records.len());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        note_missed(self.own.borrow().tally.missed());
    }
}

/// Ends the one that runs, when the last test that shares it is done: what comes next wants the machine for itself.
pub fn end() {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// The loaded modules; none where the kernel doesn't say (proc(5)).
fn modules() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/modules").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}
