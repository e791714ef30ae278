//! Running other programs: loudly, quietly, as root, or with their output watched as it streams by.

use std::{
    env,
    ffi::OsStr,
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Prints a line to standard output. A closed pipe is not an error of ours.
pub(crate) fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a line about what is being done to standard error.
pub(crate) fn note(line: &str) {
    let _closed = writeln!(io::stderr(), "xtask: {line}");
}

/// A command as one would type it, without its environment.
pub(crate) fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command with our own input and output.
///
/// # Errors
/// When it cannot be started or ends with anything but success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", describe(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", describe(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output; what it said to standard error is in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("`{}` failed: {}\n{}", describe(command), output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command, passes its standard output on as it comes, and hands every whole line to `watch`.
///
/// A child that ends while something it started still holds the other end of its output is not waited for.
///
/// # Errors
/// When the command cannot be started or waited for.
pub(crate) fn tee(command: &mut Command, mut watch: impl FnMut(&str)) -> Result<ExitStatus> {
    const POLL: Duration = Duration::from_millis(100);
    const LINGER: Duration = Duration::from_secs(3);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    let mut pipe = child.stdout.take().context("the child has no standard output")?;
    let (sender, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut lines = Lines::default();
    let mut ended_at: Option<Instant> = None;
    loop {
        match chunks.recv_timeout(POLL) {
            Ok(chunk) => {
                let mut out = io::stdout().lock();
                let _closed = out.write_all(&chunk).and_then(|()| out.flush());
                lines.feed(&chunk, &mut watch);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if ended_at.is_none() && child.try_wait()?.is_some() {
                    ended_at = Some(Instant::now());
                }
                if ended_at.is_some_and(|at| at.elapsed() > LINGER) {
                    note(&format!(
                        "`{}` left something behind that holds its output open",
                        describe(command)
                    ));
                    break;
                }
            }
        }
    }
    lines.finish(&mut watch);
    child.wait().with_context(|| format!("cannot wait for `{}`", describe(command)))
}

/// Cuts a stream of bytes into lines. A line is kept to a bounded length: what follows is left out.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    const LONGEST: usize = 64 * 1024;

    fn feed(&mut self, chunk: &[u8], watch: &mut impl FnMut(&str)) {
        for &byte in chunk {
            if byte == b'\n' {
                self.finish(watch);
            } else if self.0.len() < Self::LONGEST {
                self.0.push(byte);
            }
        }
    }

    fn finish(&mut self, watch: &mut impl FnMut(&str)) {
        if !self.0.is_empty() {
            watch(&String::from_utf8_lossy(&self.0));
            self.0.clear();
        }
    }
}

/// Where a program is: in `PATH`, or in the system folders that a user's `PATH` often leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    programs(name).next()
}

/// Every program of that name that there is, the one that would be started first.
pub(crate) fn programs(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders
        .into_iter()
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(move |folder| folder.join(name))
        .filter(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command for a program that has to be root, through sudo where we are not. `environment` gets past sudo.
///
/// # Errors
/// When we are not root and there is no sudo; says what to type.
pub(crate) fn as_root(program: &Path, environment: &[(&str, &OsStr)]) -> Result<Command> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(environment.iter().copied());
        return Ok(command);
    }
    let Some(sudo) = find_program("sudo") else {
        bail!(
            "{} has to be root, and there is no sudo here; become root (`su -`) and type the same again",
            program.display()
        );
    };
    let mut command = Command::new(sudo);
    command.arg("--").arg("env");
    for (name, value) in environment {
        let mut pair = OsStr::new(name).to_os_string();
        pair.push("=");
        pair.push(value);
        command.arg(pair);
    }
    command.arg(program);
    Ok(command)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets the first Ctrl-C go to the children only, which share our terminal and clean up after themselves; the
/// second one ends us, too.
pub(crate) fn outlive_first_interrupt() {
    extern "C" fn on_interrupt(_signal: libc::c_int) {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // SAFETY: _exit is async-signal-safe.
            unsafe { libc::_exit(130) }
        }
    }
    let handler: extern "C" fn(libc::c_int) = on_interrupt;
    // SAFETY: the handler is async-signal-safe: it swaps one atomic and may call _exit. A handler, unlike an
    // ignored signal, is not inherited through exec, so children keep the default.
    unsafe { libc::signal(libc::SIGINT, handler as *const () as libc::sighandler_t) };
}

/// Whether Ctrl-C was pressed since [`outlive_first_interrupt`].
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_across_chunks_and_bounded() {
        let mut seen = Vec::new();
        let mut watch = |line: &str| seen.push(line.to_owned());
        let mut lines = Lines::default();
        lines.feed(b"on", &mut watch);
        lines.feed(b"e\ntwo\nthr", &mut watch);
        lines.feed(&[b'x'; 2 * Lines::LONGEST], &mut watch);
        lines.finish(&mut watch);
        assert_eq!(seen[..2], ["one", "two"]);
        assert_eq!(seen[2].len(), Lines::LONGEST);
    }

    #[test]
    fn tee_returns_the_exit_code_and_every_line() {
        let mut seen = Vec::new();
        let mut child = Command::new("sh");
        child.args(["-c", "echo a; printf b; exit 7"]);
        let status = tee(&mut child, |line| seen.push(line.to_owned())).unwrap();
        assert_eq!((status.code(), seen), (Some(7), vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn tee_does_not_wait_for_what_the_child_left_behind() {
        let started = Instant::now();
        let mut child = Command::new("sh");
        child.args(["-c", "sleep 30 & echo done; exit 0"]);
        let status = tee(&mut child, |_| ()).unwrap();
        assert!(status.success() && started.elapsed() < Duration::from_secs(20));
    }
}
