//! `droptrace top`: the full-screen live view. Drops go into the [`model`]; keys change what of it is shown ([`view`]), and
//! [`draw`] shows it: pure functions, but for the `terminal`, and what goes on beside (`save`, `neighbours`). [`Top`] is the
//! [`Sink`](crate::output::Sink) that holds them together.

mod detail;
mod draw;
mod guardian;
mod history;
mod input;
mod model;
mod neighbours;
mod save;
mod sink;
mod terminal;
#[cfg(test)]
mod tests;
mod view;

pub(crate) use draw::Look;
pub use sink::Top;

use crate::{cli, live, output::MEANINGLESS, start::say};
use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
};

/// Shows drops until it is told to stop; returns the exit code.
///
/// # Errors
/// What went wrong, for people.
pub fn run(settings: &cli::Top, arguments: &[OsString]) -> anyhow::Result<u8> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        say(
            "error: top draws on a terminal and reads its keys; stdin or stdout is none: `droptrace hist` counts without",
        );
        return Ok(MEANINGLESS);
    }
    // Before there are threads: it is a fork.
    let terminal = terminal::Terminal::guarded()?;
    live::run(&settings.watch, arguments, Top::new(settings, terminal, arguments))
}
