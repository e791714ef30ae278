//! Ends and refusals: `-c`, `--for`, pipes, signals, missing privileges, what stays behind.

use super::{beside, here_only};
use crate::bed::command::{self, Background};
use crate::bed::droptrace::{Droptrace, Output, command as droptrace};
use crate::bed::namespace::Namespace;
use crate::bed::objects::Objects;
use crate::bed::topology::{End, Family, Pair, connect};
use crate::bed::{packet, patience};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

pub(super) fn trials() -> Vec<Trial> {
    let mut own = vec![
        beside("cli::count_ends_the_run", count_ends_the_run),
        beside("cli::time_ends_the_run", time_ends_the_run),
        beside("cli::closed_pipe_ends_the_run", closed_pipe_ends_the_run),
        beside("cli::interrupt_prints_a_summary", || signal_prints_a_summary(libc::SIGINT)),
        beside("cli::termination_prints_a_summary", || signal_prints_a_summary(libc::SIGTERM)),
    ];
    for format in ["compact", "wide", "iptables"] {
        own.push(beside(format!("cli::format_{format}"), move || format_names_the_packet(format)));
    }
    for (name, words, culprit) in [
        ("address", "--ip 10.0.0.300", "10.0.0.300"),
        ("port", "--port 70000", "70000"),
        ("protocol", "--protocol nosuchprotocol", "nosuchprotocol"),
        ("netns", "--netns nosuchnetns", "nosuchnetns"),
        ("flag", "--nosuchflag", "--nosuchflag"),
        ("format", "-o nosuchformat", "nosuchformat"),
    ] {
        own.push(beside(format!("cli::bad_{name}"), move || bad_word(words, culprit)));
    }
    let mut trials = here_only(own);
    trials.extend([
        beside("cli::killed_leaves_nothing", killed_leaves_nothing),
        beside("cli::deleted_netns_is_not_held", deleted_netns_is_not_held),
        beside("cli::no_capabilities", || missing_capability(|_| true, &["CAP_BPF", "CAP_SYS_ADMIN"])),
        // CAP_SYS_ADMIN (21) would stand in for CAP_PERFMON (38).
        beside("cli::no_perfmon", || {
            missing_capability(|number| matches!(number, 21 | 38), &["CAP_PERFMON"])
        }),
    ]);
    trials
}

/// Drops packets in the server's namespace, again and again, until the condition holds.
fn drop_until(pair: &Pair, what: &str, mut enough: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !enough()? {
        ensure!(started.elapsed() < patience(), "waited too long until {what}");
        drop_one(pair)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn drop_one(pair: &Pair) -> Result<()> {
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 9));
    pair.client.inject(&[packet::udp(from, to, b"nobody")])
}

fn any_in(netns: &Namespace) -> impl Fn(&Output) -> bool + use<> {
    let inode = netns.inode();
    move |output| output.drops_in(&[inode]).next().is_some()
}

fn count_ends_the_run() -> Result<()> {
    let pair = Pair::new()?;
    let inode = pair.server.netns.inode().to_string();
    let stream = Droptrace::start(&["-c", "1", "--netns", &inode])?;
    drop_one(&pair)?;
    let ended = stream.end()?;
    ended.expect_code(0)?;
    let lines = ended.output.records.iter().filter(|record| record.is_drop()).count();
    ensure!(lines == 1, "-c 1 printed {lines} drops");
    Ok(())
}

fn time_ends_the_run() -> Result<()> {
    let started = Instant::now();
    let stream = Droptrace::start(&["--for", "1s"])?;
    let ended = stream.end()?;
    ended.expect_code(0)?;
    ensure!(started.elapsed() >= Duration::from_secs(1), "ended after {:?}", started.elapsed());
    Ok(())
}

/// As `droptrace | head -1`.
fn closed_pipe_ends_the_run() -> Result<()> {
    let pair = Pair::new()?;
    let inode = pair.server.netns.inode().to_string();
    let mut command = droptrace(&["-o", "json", "--netns", &inode])?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Background(command.spawn()?);
    let stdout = child.0.stdout.take().context("no pipe")?;
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        // Ends after one line; dropping the reader closes the pipe.
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    drop_until(&pair, "a line came", || Ok(reader.is_finished()))?;
    let line = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(line.starts_with('{'), "the first line is {line:?}");
    drop_until(&pair, "droptrace noticed the closed pipe", || Ok(child.0.try_wait()?.is_some()))?;
    let status = child.0.wait()?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn signal_prints_a_summary(signal: i32) -> Result<()> {
    let pair = Pair::new()?;
    let inode = pair.server.netns.inode().to_string();
    let stream = Droptrace::start(&["--netns", &inode])?;
    drop_one(&pair)?;
    stream.wait("the drop came", any_in(&pair.server.netns))?;
    let before = stream.output().stderr.len();
    stream.signal(signal);
    let ended = stream.end()?;
    ended.expect_code(0)?;
    let summary = ended.output.stderr.get(before..).unwrap_or_default();
    for word in ["1", "lost", "hidden"] {
        ensure!(summary.contains(word), "no {word:?} in the summary: {summary:?}");
    }
    Ok(())
}

fn format_names_the_packet(format: &str) -> Result<()> {
    let pair = Pair::new()?;
    let inode = pair.server.netns.inode().to_string();
    let stream = Droptrace::spawn(droptrace(&["-o", format, "--netns", &inode])?)?;
    stream.wait("attached", |output| output.stderr.contains("watching"))?;
    drop_one(&pair)?;
    let shown = |output: &Output| output.strays.iter().any(|line| line.contains("10.77.0.2"));
    stream.wait("the line came", shown)?;
    stream.signal(libc::SIGINT);
    let ended = stream.end()?;
    ended.expect_code(0)?;
    let text = ended.output.strays.join("\n");
    let words: &[&str] = if format == "iptables" {
        &["SRC=10.77.0.1", "DST=10.77.0.2", "PROTO=UDP", "SPT=40000", "DPT=9", "IN=s0"]
    } else {
        &["10.77.0.1:40000", "10.77.0.2:9", "UDP"]
    };
    for word in words {
        ensure!(text.contains(word), "no {word} in:\n{text}");
    }
    ensure!(!text.contains('\u{1b}'), "colours in a pipe");
    Ok(())
}

fn bad_word(words: &str, culprit: &str) -> Result<()> {
    let ended = Droptrace::spawn(droptrace(&words.split_whitespace().collect::<Vec<_>>())?)?.end()?;
    ended.expect_code(2)?;
    ensure!(ended.output.stderr.contains(culprit), "{culprit} is not named:\n{}", ended.output.stderr);
    Ok(())
}

/// Runs as root without some capabilities (numbers of include/uapi/linux/capability.h).
fn missing_capability(missing: fn(u64) -> bool, named: &[&str]) -> Result<()> {
    let mut command = droptrace(&["-o", "json"])?;
    // SAFETY: between fork and exec the closure makes system calls only and touches no heap.
    unsafe {
        command.pre_exec(move || {
            // Root's capabilities after exec are those of the bounding set. Beyond the last one the call fails.
            for capability in (0..64).filter(|number| missing(*number)) {
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            Ok(())
        });
    }
    let ended = Droptrace::spawn(command)?.end()?;
    ended.expect_code(3)?;
    let said = &ended.output.stderr;
    ensure!(named.iter().any(|name| said.contains(name)), "none of {named:?} is named:\n{said}");
    Ok(())
}

fn killed_leaves_nothing() -> Result<()> {
    let stream = Droptrace::start(&["--ip", "192.0.2.1", "--port", "1"])?;
    let held = Objects::held_by(stream.pid())?;
    ensure!(!held.is_empty(), "droptrace holds no eBPF objects: this test cannot see them");
    let pins = pinned()?;
    stream.signal(libc::SIGKILL);
    let ended = stream.end()?;
    ensure!(ended.status.code().is_none(), "killed, but ended with {}", ended.status);
    let started = Instant::now();
    // The kernel frees them after a grace period.
    while !held.alive()?.is_empty() {
        ensure!(started.elapsed() < Duration::from_secs(2), "still there: {:?} of {held:?}", held.alive()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(pinned()? == pins, "new pins in /sys/fs/bpf");
    Ok(())
}

fn pinned() -> Result<String> {
    command::run("find /sys/fs/bpf -type f").or_else(|_| Ok(String::new()))
}

/// A namespace in which drops were seen is deleted: its veth goes at once, and so does the peer outside it.
fn deleted_netns_is_not_held() -> Result<()> {
    let outside = Namespace::new()?;
    let pair = Pair::new()?;
    connect(&outside, &End::new("host0", 3, 1), &pair.server.netns, &End::new("eth0", 3, 2))?;
    let stream = Droptrace::start(&["--all"])?;
    drop_one(&pair)?;
    stream.wait("the drop came", any_in(&pair.server.netns))?;
    drop(pair);
    let started = Instant::now();
    while outside.run("ip -o link show")?.contains("host0") {
        ensure!(started.elapsed() < Duration::from_secs(2), "the veth of a deleted netns is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    stream.stop().map(drop)
}
