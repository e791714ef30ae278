//! How soon droptrace tells of a drop, and how much memory it holds while nothing is dropped.

use super::{contender::Contender, load, storm::Storm};
use crate::bed::{command::Background, droptrace, patience};
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
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let trickle = scope.spawn(|| {
            storm.sender().enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").context("make a socket")?;
                let deadline = Instant::now() + patience();
                while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                    socket.send_to(b"drop", storm.target()).context("send")?;
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            })
        });
        let took = first_line();
        done.store(true, Ordering::Relaxed);
        if let Ok(sent) = trickle.join() {
            sent?;
        }
        took
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
