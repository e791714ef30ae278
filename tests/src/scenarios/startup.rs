//! How soon droptrace shows something, and what it takes while nothing is dropped: memory, and no run of a program.

use super::alone;
use crate::bed::backend::Backend;
use crate::bed::droptrace::{Droptrace, Output, command};
use crate::bed::topology::{Family, Pair};
use crate::bed::{flood, kernel, packet, patience};
use crate::bench::{
    delivery::Delivery,
    program::{Runs, Stopwatch},
    rules::Shape,
    storm::Storm,
};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::time::{Duration, Instant};

pub(super) fn trials() -> Vec<Trial> {
    let mut trials =
        vec![alone("startup::first_event", first_event), alone("startup::idle_memory", idle_memory)];
    for backend in Backend::ALL {
        let name = format!("startup::nothing_runs_where_nothing_drops_{}", backend.name());
        trials.push(alone(name, move || nothing_runs(backend)));
    }
    trials
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

/// Packets that pass many rules, half of which could drop: no program of droptrace's runs for them, whatever it costs.
fn nothing_runs(backend: Backend) -> Result<()> {
    const PACKETS: u64 = 5000;
    let storm = Storm::with_rules(backend, &Shape { backend, rules: 200, drop_capable: 100 }.text())?;
    let delivery = Delivery::new(&storm)?;
    let stream = Droptrace::start(&[])?;
    let stopwatch = Stopwatch::start()?;
    let before = Runs::of(stream.pid())?;
    delivery.run(0, PACKETS)?;
    let healthy = Runs::of(stream.pid())?.count - before.count;
    // Where packets do drop, that it runs is seen in this very way.
    flood::timed(storm.sender(), 0, storm.target(), PACKETS)?;
    let runs = || -> Result<u64> { Ok(Runs::of(stream.pid())?.count - before.count - healthy) };
    let started = Instant::now();
    while runs()? < PACKETS / 2 && started.elapsed() < patience() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let dropped = runs()?;
    drop(stopwatch);
    eprintln!("{healthy} runs for {PACKETS} packets delivered, {dropped} for as many dropped");
    // Some of the machine's own packets may drop meanwhile.
    ensure!(healthy < PACKETS / 50, "{healthy} runs for {PACKETS} packets, none of which is dropped");
    ensure!(dropped >= PACKETS / 2, "only {dropped} runs for {PACKETS} drops: runs are not seen here");
    stream.stop().map(drop)
}

/// The value of `VmRSS:     1234 kB`.
fn kilobytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
