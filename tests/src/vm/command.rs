//! Running helper programs.

use std::process::{Command, Output};

use super::Error;

/// How much of a failed program's stderr an error quotes, in lines.
const QUOTED_LINES: usize = 8;

/// Runs `command` and returns its stdout; a non-zero exit is an error that quotes the end of its stderr.
pub(super) fn stdout_of(command: &mut Command) -> Result<String, Error> {
    let output = output_of(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let outcome = format!("failed ({})\n{}", output.status, last_lines(&stderr, QUOTED_LINES));
    Err(Error::Command { command: command_line(command), outcome })
}

/// Runs `command` and returns everything, whatever its exit code.
pub(super) fn output_of(command: &mut Command) -> Result<Output, Error> {
    command.output().map_err(|error| Error::Command {
        command: command_line(command),
        outcome: format!("could not be started: {error}"),
    })
}

/// The last `count` lines of `text`.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The program and its first arguments: enough to recognise it.
fn command_line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().take(4).map(|word| word.to_string_lossy().into_owned()));
    if command.get_args().len() > 4 {
        words.push("...".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_quotes_stderr() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo why >&2; exit 3"]);
        let text = stdout_of(&mut command).unwrap_err().to_string();
        assert!(text.contains("exit status: 3") && text.contains("why"), "{text}");
    }

    #[test]
    fn last_lines_keeps_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
