//! Who watches the storm.

use crate::bed::{command::Background, droptrace, patience};
use anyhow::{Context, Result, bail};
use std::{
    fmt, io,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::Instant,
};

/// Nobody, or a tracer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Nobody.
    Bare,
    /// bpftrace, counting by reason.
    Bpftrace,
    /// droptrace with this output (`-o`), to /dev/null.
    Droptrace(&'static str),
}

/// What bpftrace runs. The first probe says that it is attached.
const SCRIPT: &str =
    "BEGIN { printf(\"ready\\n\"); } tracepoint:skb:kfree_skb { @[args->reason] = count(); }";

impl fmt::Display for Contender {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => write!(to, "bare"),
            Self::Bpftrace => write!(to, "bpftrace"),
            Self::Droptrace(output) => write!(to, "droptrace -o {output}"),
        }
    }
}

impl Contender {
    /// Starts it and waits until it is attached; nothing for [`Contender::Bare`].
    ///
    /// # Errors
    /// When it ends or does not attach in time.
    pub fn start(self) -> Result<Option<Background>> {
        match self {
            Self::Bare => Ok(None),
            Self::Bpftrace => {
                let mut child = Background(spawn(bpftrace().stdout(Stdio::piped()).stderr(Stdio::null()))?);
                let pipe = child.0.stdout.take().context("bpftrace has no output")?;
                wait_for("ready", &lines(pipe))?;
                Ok(Some(child))
            }
            Self::Droptrace(output) => {
                let mut command = droptrace::command(&["-o", output])?;
                let mut child = Background(spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?);
                let pipe = child.0.stderr.take().context("droptrace has no standard error")?;
                wait_for(droptrace::ATTACHED, &lines(pipe))?;
                Ok(Some(child))
            }
        }
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).spawn().with_context(|| format!("start {command:?}"))
}

/// bpftrace looks for its tracepoint in tracefs, which is not mounted everywhere: it gets a mount of its own, in a
/// mount namespace of its own.
fn bpftrace() -> Command {
    let mut command = Command::new("bpftrace");
    command.args(["-e", SCRIPT]);
    // SAFETY: between fork and exec the closure makes system calls with constants only and touches no heap.
    unsafe { command.pre_exec(mount_tracefs) };
    command
}

fn mount_tracefs() -> io::Result<()> {
    let (root, none, kind) = (c"/", c"none", c"tracefs");
    // bpftrace 0.17 looks in the second one, later ones in the first.
    let places = [c"/sys/kernel/tracing", c"/sys/kernel/debug"];
    let kinds = [kind, c"debugfs"];
    // SAFETY: the strings are NUL-terminated constants; a NULL for data is allowed (mount(2)).
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        if libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(none.as_ptr(), root.as_ptr(), std::ptr::null(), private, std::ptr::null()) != 0
        {
            return Err(io::Error::last_os_error());
        }
        for (place, kind) in places.iter().zip(kinds) {
            // Where one can't be mounted the other may do; where neither does bpftrace says so.
            libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null());
        }
    }
    Ok(())
}

/// The lines of a pipe, which is read to its end so that the writer never has to wait.
fn lines(pipe: impl io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // Nobody listens any more once it is attached.
            let _ = sender.send(line);
        }
    });
    receiver
}

fn wait_for(word: &str, lines: &Receiver<String>) -> Result<()> {
    let deadline = Instant::now() + patience();
    let mut said = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) if line.contains(word) => return Ok(()),
            Ok(line) => said = said + &line + "\n",
            Err(_) => bail!("the tracer does not attach: waited for {word:?}, it said: {said}"),
        }
    }
}
