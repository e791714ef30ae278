//! How soon droptrace tells of a drop, and how much memory it holds while nothing is dropped.

use super::{contender::Contender, load, storm::Storm, watcher::is_named};
use crate::bed::{
    command::Background,
    droptrace::{self, Droptrace},
    patience,
};
use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Time from starting droptrace to its first whole line, with a drop every millisecond.
///
/// # Errors
/// When it does not start, or prints nothing.
pub fn first_event(storm: &Storm) -> Result<Duration> {
    while_dropping(storm, first_line)
}

/// What it took to know a rule set.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// From start to the first printed drop here.
    pub event: Duration,
    /// From start to the first that names its rule; `None` if none came in time.
    pub named: Option<Duration>,
    /// Resident memory then, in bytes.
    pub resident: u64,
    /// The anonymous part of it.
    pub anonymous: u64,
}

/// Starts droptrace where a drop comes every millisecond, and waits until it names the rule.
///
/// # Errors
/// When it does not start, or prints no drop.
pub fn read_rules(storm: &Storm) -> Result<Reading> {
    let inode = storm.receiver().netns.inode();
    while_dropping(storm, || {
        let began = Instant::now();
        let running = Droptrace::spawn(droptrace::command(&["-o", "json"])?)?;
        running.wait("a drop came", |output| output.drops_in(&[inode]).next().is_some())?;
        let event = began.elapsed();
        let named = running.wait("a drop named its rule", |output| output.drops_in(&[inode]).any(is_named));
        let named = named.is_ok().then(|| began.elapsed());
        let (resident, anonymous) = load::resident(running.pid())?;
        running.stop()?;
        Ok(Reading { event, named, resident, anonymous })
    })
}

/// Does something while a packet is dropped every millisecond.
fn while_dropping<T>(storm: &Storm, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let trickle = scope.spawn(|| {
            storm.sender().enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").context("make a socket")?;
                let deadline = Instant::now() + 3 * patience();
                while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                    socket.send_to(b"drop", storm.target()).context("send")?;
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            })
        });
        let result = act();
        done.store(true, Ordering::Relaxed);
        if let Ok(sent) = trickle.join() {
            sent?;
        }
        result
    })
}

fn first_line() -> Result<Duration> {
    let mut command = droptrace::command(&["-o", "json", "-c", "1"])?;
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Background(child.context("start droptrace")?);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().context("droptrace has no output")?).read_line(&mut line)?;
    ensure!(line.ends_with('\n'), "droptrace printed no event");
    Ok(began.elapsed())
}

/// Resident memory of an idle droptrace, and the anonymous part of it, in bytes.
///
/// # Errors
/// When it does not start.
pub fn idle_memory() -> Result<(u64, u64)> {
    let running = Contender::Droptrace("json").start()?.context("droptrace")?;
    thread::sleep(Duration::from_secs(3));
    load::resident(running.0.id())
}
