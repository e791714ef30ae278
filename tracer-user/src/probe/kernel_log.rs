//! The kernel half's own diagnostics (aya-log), for `-v`: a few lines about itself, none about packets.

use crate::output::escape;
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
};

/// Level of `-v` and of `-vv` (aya_log::Level); 0 leaves the messages out of the program.
#[must_use]
pub fn level(verbose: u8) -> u8 {
    match verbose {
        0 => 0,
        1 => aya_log::Level::Info as u8,
        _ => aya_log::Level::Trace as u8,
    }
}

/// Reads the messages and prints them on stderr.
pub struct KernelLog(EbpfLogger<Stderr>);

impl KernelLog {
    /// Takes the object's log; `None` if it has none.
    pub fn new(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init_with_logger(ebpf, Stderr).ok().map(Self)
    }

    /// A descriptor that is readable when there are messages.
    ///
    /// # Errors
    /// If it can't be duplicated.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Prints what has come.
    pub fn print(&mut self) {
        self.0.flush();
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // If stderr is gone there is nobody to tell.
        let _ = writeln!(io::stderr(), "droptrace: kernel half: {}", escape(&record.args().to_string()));
    }

    fn flush(&self) {}
}
