//! A program on a terminal of its own: what it draws is read as a person sees it, and keys are pressed.

use super::patience;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// See the module's documentation.
pub struct Screen {
    program: Child,
    /// The terminal's other side.
    master: File,
    /// Kept open, so that its settings can be asked for when the program is gone.
    slave: OwnedFd,
    parser: Arc<Mutex<vt100::Parser>>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Screen {
    /// Starts a program on a terminal with so many columns and rows.
    pub fn start(mut command: Command, (columns, rows): (u16, u16)) -> Result<Self> {
        let (mut master, mut slave) = (-1, -1);
        let size = size(columns, rows);
        // SAFETY: room for two descriptors, and a size that is only read.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                &raw const size,
            )
        };
        ensure!(opened == 0, "no terminal: {}", std::io::Error::last_os_error());
        // SAFETY: both were just opened.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
        command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        // SAFETY: between fork and exec only system calls: a session of its own, whose terminal this is.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let program = command.spawn().context("it does not start")?;
        let parser = Arc::new(Mutex::new(vt100::Parser::new(cells(rows), cells(columns), 0)));
        let (mut from, to) = (master.try_clone()?, Arc::clone(&parser));
        thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok(length @ 1..) = from.read(&mut bytes) {
                to.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..length]);
            }
        });
        Ok(Self { program, master, slave, parser })
    }

    /// Presses keys: letters, or what a terminal sends for others.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = size(columns, rows);
        self.parser
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .screen_mut()
            .set_size(cells(rows), cells(columns));
        // SAFETY: a size that is only read.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        ensure!(set == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    /// The lines that are seen.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let parser = self.parser.lock().unwrap_or_else(PoisonError::into_inner);
        let columns = parser.screen().size().1.get();
        parser.screen().rows(0, columns).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Waits until what is seen is as it should be.
    pub fn wait(&self, what: &str, mut is_it: impl FnMut(&[String]) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience();
        while Instant::now() < deadline {
            if is_it(&self.lines()) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("not seen: {what}\n{}", self.lines().join("\n"))
    }

    /// Whether the screen is the one that was there before, with a cursor.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        let parser = self.parser.lock().unwrap_or_else(PoisonError::into_inner);
        !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
    }

    /// What is set for the terminal's input and output.
    pub fn settings(&self) -> Result<[u32; 4]> {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: filled where it returns 0.
        let settings = unsafe {
            let got = libc::tcgetattr(self.slave.as_raw_fd(), settings.as_mut_ptr());
            ensure!(got == 0, "{}", std::io::Error::last_os_error());
            settings.assume_init()
        };
        Ok([settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag])
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: our child, which was not waited for.
        unsafe { libc::kill(self.program.id() as i32, signal) };
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> Result<Ended> {
        let deadline = Instant::now() + patience();
        while Instant::now() < deadline {
            if let Some(status) = self.program.try_wait()? {
                let code = status.code().map(Ended::Code);
                return code.or(status.signal().map(Ended::Signal)).context("neither code nor signal");
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("it does not end:\n{}", self.lines().join("\n"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Ok(None) = self.program.try_wait() {
            let _ = self.program.kill();
            let _ = self.program.wait();
        }
    }
}

fn cells(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap_or(NonZero::<u16>::MIN)
}

fn size(columns: u16, rows: u16) -> libc::winsize {
    libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
