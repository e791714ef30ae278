//! The test bed: network namespaces and what connects them, senders, and the runner of the binary under test.

pub mod agent;
pub mod arptables;
pub mod backend;
pub mod calico;
pub mod cgroup;
pub mod cilium;
pub mod clock;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod droptrace;
pub mod ebtables;
pub mod fake_runtime;
mod fixture;
pub mod flood;
pub mod generate;
mod kept;
pub mod kernel;
pub mod kernel_trace;
pub mod kube_api;
mod link;
pub mod listing;
pub mod mount;
pub mod namespace;
pub mod netkit;
pub mod objects;
pub mod outside;
pub mod packet;
pub mod program;
pub mod pty;
pub mod queue;
pub mod random;
pub mod record;
pub mod ruleset;
pub mod send;
pub mod shared;
mod socket;
pub mod tables;
pub mod tc;
pub mod topology;
pub mod tunnel_proxy;
pub mod xdp;

use anyhow::{Result, ensure};
use std::thread;
use std::time::{Duration, Instant};

/// How long the bed waits for something that must come, before it calls it missing. Emulated CPUs are slow.
#[must_use]
pub fn patience() -> Duration {
    Duration::from_secs(if kernel::in_vm() { 60 } else { 20 })
}

/// Reads a number that grows until it is what it should be, or [`patience`] ends: packets arrive in a softirq, which a
/// busy machine runs a moment later. Returns what it was last.
///
/// # Errors
/// When it can't be read.
pub fn settled(right: &[u64], read: impl Fn() -> Result<u64>) -> Result<u64> {
    let deadline = Instant::now() + patience();
    loop {
        let value = read()?;
        if right.contains(&value) || Instant::now() > deadline {
            return Ok(value);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Checks what every test needs.
///
/// # Errors
/// When not root, or when `DROPTRACE` names no binary.
pub fn check_environment() -> Result<()> {
    // SAFETY: geteuid has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "the tests make network namespaces: run them as root");
    let path = droptrace::binary()?;
    ensure!(path.is_file(), "DROPTRACE={} is no file: build droptrace first", path.display());
    Ok(())
}
