//! Network namespaces that clean up after themselves.

use super::command::{self, Background};
use super::kept;
use anyhow::{Context, Result, anyhow};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Every namespace of the bed is `dt-PID-NUMBER`.
const PREFIX: &str = "dt-";

/// A named network namespace, deleted when this is dropped (also by a panic).
#[derive(Debug)]
pub struct Namespace {
    name: String,
    inode: u32,
}

impl Namespace {
    /// Makes an empty one: loopback up, no address of its own making, no IPv6 autoconfiguration traffic.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        kept::make(&name, settle).with_context(|| format!("make netns {name}"))?;
        let mut made = Self { name, inode: 0 };
        let inode = fs::metadata(made.path()).with_context(|| format!("look at netns {}", made.name))?.ino();
        made.inode = u32::try_from(inode).context("inode of a netns")?;
        Ok(made)
    }

    /// Its name in /run/netns.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its inode number, by which the kernel and droptrace know it.
    #[must_use]
    pub fn inode(&self) -> u32 {
        self.inode
    }

    fn path(&self) -> PathBuf {
        kept::path(&self.name)
    }

    /// Runs a closure on a thread inside the namespace. Sockets made there stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the closure fails.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(&self.name, work)
    }

    /// Prepares a command inside the namespace; words are split at white space.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn command(&self, line: &str) -> Result<Command> {
        let file = File::open(self.path()).with_context(|| format!("open netns {}", self.name))?;
        let mut command = command::words(line);
        // SAFETY: between fork and exec the closure makes one system call and touches no heap.
        unsafe { command.pre_exec(move || join(&file)) };
        Ok(command)
    }

    /// Runs a command line inside the namespace and returns its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        self.feed(line, "")
    }

    /// As [`run`](Self::run), with text on standard input.
    ///
    /// # Errors
    /// When it fails.
    pub fn feed(&self, line: &str, input: &str) -> Result<String> {
        command::output(self.command(line)?, input).with_context(|| format!("in netns {}", self.name))
    }

    /// Starts a program in the background.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn spawn(&self, line: &str) -> Result<Background> {
        let mut command = self.command(line)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Background(command.spawn().with_context(|| format!("start {line}"))?))
    }

    /// Sets a sysctl of this namespace: `net.ipv4.ip_forward`.
    ///
    /// # Errors
    /// When there is none of that name, or the value is refused.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| fs::write(&path, value).with_context(|| format!("write {value} to {path}")))
    }

    /// A counter of `/proc/net/netstat`, `/proc/net/snmp` or `/proc/net/snmp6`, by the name that `nstat` shows
    /// (`UdpRcvbufErrors`); 0 if this kernel has none.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.enter(|| {
            let mut found = 0;
            for file in ["netstat", "snmp"] {
                found += paired_counter(&fs::read_to_string(format!("/proc/thread-self/net/{file}"))?, name);
            }
            let snmp6 = fs::read_to_string("/proc/thread-self/net/snmp6")?;
            let value = snmp6.lines().filter_map(|line| line.split_once(char::is_whitespace));
            Ok(found
                + value
                    .filter(|(key, _)| *key == name)
                    .filter_map(|(_, v)| v.trim().parse::<u64>().ok())
                    .sum::<u64>())
        })
    }

    /// Deletes it now, with everything in it.
    pub fn delete(self) {
        drop(self);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = kept::remove(&self.name) {
            eprintln!("netns {} stays behind: {error:#}", self.name);
        }
    }
}

/// Turns off what sends packets by itself, so that tests may say "and nothing else was dropped". In the calling thread's
/// namespace.
fn settle() -> Result<()> {
    for scope in ["all", "default"] {
        for (key, value) in [
            ("accept_ra", "0"),
            ("router_solicitations", "0"),
            ("autoconf", "0"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("addr_gen_mode", "1"),
            // Multicast listener reports, which no peer wants, go out at once instead of during the test.
            ("mldv1_unsolicited_report_interval", "1"),
            ("mldv2_unsolicited_report_interval", "1"),
        ] {
            // Some keys do not exist in `all`.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/{key}"), value);
        }
        fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    Ok(())
}

/// Moves the calling thread into a network namespace.
fn join(file: &File) -> std::io::Result<()> {
    // SAFETY: the descriptor is open; setns changes the calling thread only.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Finds `TcpExtOFOPruned` in the format of /proc/net/netstat: a line of names, then a line of values, both with the
/// same prefix.
fn paired_counter(text: &str, name: &str) -> u64 {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        let Some((prefix, names)) = pair[0].split_once(": ") else { continue };
        let values = pair[1].split_whitespace().skip(1);
        for (key, value) in names.split_whitespace().zip(values) {
            if name.strip_prefix(prefix) == Some(key) {
                return value.parse().unwrap_or(0);
            }
        }
    }
    0
}

/// Runs a closure on a thread inside the namespace that has this name in /run/netns, whoever made it.
///
/// # Errors
/// When the namespace cannot be entered, or the closure fails.
pub fn enter<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(kept::path(name)).with_context(|| format!("open netns {name}"))?;
    let inside = move || {
        join(&file).with_context(|| format!("enter netns {name}"))?;
        drop(file);
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .map_err(|_| anyhow!("a thread panicked in netns {name}"))?
}

/// Removes namespaces of earlier runs that were killed.
pub fn remove_stale() {
    let Ok(entries) = fs::read_dir(kept::path("")) else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = kept::remove(&name);
        }
    }
}

/// The process that made a namespace of this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{owner, paired_counter};

    #[test]
    fn owners_are_read_from_names() {
        assert_eq!(owner("dt-123-4"), Some(123));
        assert_eq!(owner("dt-x-4"), None);
        assert_eq!(owner("other-123-4"), None);
    }

    #[test]
    fn counters_are_found_under_their_prefix() {
        let text = "TcpExt: SyncookiesSent OFOPruned\nTcpExt: 1 2\nIpExt: InNoRoutes\nIpExt: 7\n";
        assert_eq!(paired_counter(text, "TcpExtOFOPruned"), 2);
        assert_eq!(paired_counter(text, "IpExtInNoRoutes"), 7);
        assert_eq!(paired_counter(text, "IpExtOFOPruned"), 0);
    }
}
