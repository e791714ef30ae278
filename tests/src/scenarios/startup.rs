//! How soon droptrace shows something, and how much memory it takes while nothing happens.

use super::alone;
use crate::bed::droptrace::{Droptrace, Output, command};
use crate::bed::topology::{Family, Pair};
use crate::bed::{kernel, packet};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::time::{Duration, Instant};

pub(super) fn trials() -> Vec<Trial> {
    vec![alone("startup::first_event", first_event), alone("startup::idle_memory", idle_memory)]
}

/// From the start of the process to the first printed drop.
fn first_event() -> Result<()> {
    let bound = if kernel::in_vm() { Duration::from_secs(5) } else { Duration::from_secs(1) };
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 9));
    let inode = pair.server.netns.inode();
    let packets = [packet::udp(from, to, b"first?")];
    let started = Instant::now();
    let stream = Droptrace::spawn(command(&["-o", "json"])?)?;
    let came = |output: &Output| output.drops_in(&[inode]).next().is_some();
    while !came(&stream.output()) {
        ensure!(started.elapsed() < bound, "no event after {bound:?}; stderr:\n{}", stream.output().stderr);
        pair.client.inject(&packets)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    eprintln!("first event after {:?}", started.elapsed());
    stream.stop().map(drop)
}

fn idle_memory() -> Result<()> {
    const BOUND: u64 = 40 * 1024;
    let stream = Droptrace::start(&[])?;
    // Two intervals of whatever it does periodically.
    std::thread::sleep(Duration::from_secs(2));
    let path = format!("/proc/{}/status", stream.pid());
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let resident = kilobytes(&status, "VmRSS").context("no VmRSS")?;
    eprintln!("idle: {resident} kB resident");
    ensure!(resident < BOUND, "{resident} kB resident, {BOUND} allowed:\n{status}");
    stream.stop().map(drop)
}

/// The value of `VmRSS:     1234 kB`.
fn kilobytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
