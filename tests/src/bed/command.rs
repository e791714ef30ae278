//! Running programs and saying well what went wrong with them.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// Splits a command line at white space: the bed's own command lines need no quotes.
#[must_use]
pub fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot start or ends with another code than 0; the message has its standard error.
pub fn output(mut command: Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes it early: its exit code tells whether that was wrong.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child.wait_with_output().with_context(|| format!("wait for {command:?}"))?;
    if !done.status.success() {
        bail!("{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a command line to its end.
///
/// # Errors
/// As [`output`].
pub fn run(line: &str) -> Result<String> {
    output(words(line), "")
}

/// A program in the background, killed when this is dropped.
#[derive(Debug)]
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
