//! A small process that gives the terminal back where this one can't any more: killed by SIGKILL, or by a second signal.
//!
//! It waits on a pipe that only this process writes to. A byte says that the terminal is restored; the end of the pipe without one, that
//! this process has died.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// What restores a screen: no bracketed paste, the cursor, no attributes, lines that break, the screen that was before
/// (xterm's control sequences).
pub(super) const RESTORE: &[u8] = b"\x1b[?2004l\x1b[?25h\x1b[0m\x1b[?7h\x1b[?1049l";

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Guardian {
    pipe: OwnedFd,
    child: libc::pid_t,
}

impl Guardian {
    /// Starts it; the terminal is to be as it is now. There must be no other thread yet.
    pub(super) fn start() -> io::Result<Self> {
        // SAFETY: plain data, filled by tcgetattr.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: a valid pointer; stdin is a terminal, or this fails.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut settings) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were just opened and are nobody else's.
        let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        // SAFETY: there is one thread; the child calls nothing that is not async-signal-safe, and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: as above.
                unsafe { guard(read.as_raw_fd(), write.as_raw_fd(), &settings) }
            }
            child => Ok(Self { pipe: write, child }),
        }
    }
}

impl Drop for Guardian {
    /// The terminal is restored: it has nothing more to do.
    fn drop(&mut self) {
        // SAFETY: one byte; and a child of this process, which ends at once.
        unsafe {
            libc::write(self.pipe.as_raw_fd(), b"x".as_ptr().cast(), 1);
            libc::waitpid(self.child, std::ptr::null_mut(), 0);
        }
    }
}

/// The child.
///
/// # Safety
/// To be called in a new process only.
unsafe fn guard(read: i32, write: i32, settings: &libc::termios) -> ! {
    // SAFETY: system calls with valid arguments, all of them async-signal-safe.
    unsafe {
        libc::close(write);
        // What ends the process that it guards must not end it, nor stop it: it is in the background then.
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP, libc::SIGTTOU, libc::SIGTSTP]
        {
            libc::signal(signal, libc::SIG_IGN);
        }
        let mut byte = 0_u8;
        let read = loop {
            let read = libc::read(read, (&raw mut byte).cast(), 1);
            if read >= 0 || *libc::__errno_location() != libc::EINTR {
                break read;
            }
        };
        if read == 0 {
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings);
            libc::write(libc::STDOUT_FILENO, RESTORE.as_ptr().cast(), RESTORE.len());
        }
        libc::_exit(0)
    }
}
