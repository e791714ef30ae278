//! `droptrace top`, driven through a terminal of its own.

use super::{alone, here_only};
use crate::bed::backend::Backend;
use crate::bed::droptrace;
use crate::bed::flood::{Load, flood};
use crate::bed::pty::{Ended, Screen};
use crate::bed::settled;
use crate::bed::topology::{Family, Pair};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;

pub(super) fn trials() -> Vec<Trial> {
    here_only([
        alone("top::keys", keys),
        alone("top::flooded_and_resized", flooded_and_resized),
        alone("top::restores_the_terminal", restores_the_terminal),
        alone("top::without_a_terminal", without_a_terminal),
    ])
}

const PORT: u16 = 9;
const ENTER: &str = "\r";
const ESCAPE: &str = "\x1b";
const RIGHT: &str = "\x1b[C";
const DOWN: &str = "\x1b[B";

fn top(netns: &str, words: &[&str], size: (u16, u16)) -> Result<Screen> {
    let mut command = droptrace::command(&["top", "--offline", "--netns", netns, "--utc"])?;
    command.args(words);
    let screen = Screen::start(command, size)?;
    screen.wait("the screen", |lines| has(lines, "q quit"))?;
    Ok(screen)
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

/// A server with two rules that drop, behind others.
fn server() -> Result<Pair> {
    let pair = Pair::new()?;
    let others: String = (1..10).map(|number| format!("-A INPUT -s 192.0.2.{number} -j ACCEPT\n")).collect();
    let rules = format!(
        "*filter\n{others}-A INPUT -p udp -m udp --dport {PORT} -m comment --comment \"closed for repairs\" -j DROP\n\
         -A INPUT -p udp -m udp --dport 10 -j DROP\nCOMMIT\n"
    );
    Backend::Legacy.load(&pair.server.netns, Family::V4, &rules)?;
    Ok(pair)
}

fn send(pair: &Pair, port: u16, total: u64) -> Result<u64> {
    Ok(flood(&pair.client.netns, pair.server.port(Family::V4, port), Load::Datagrams, total)?.accepted)
}

/// From groups to drops to all that is known of one, and back; a filter, a pause, a recording.
fn keys() -> Result<()> {
    let pair = server()?;
    let netns = pair.server.netns.inode().to_string();
    let mut screen = top(&netns, &["--by", "place"], (120, 30))?;
    let sent = send(&pair, PORT, 30)? + send(&pair, 10, 20)?;
    screen.wait("both rules", |lines| {
        has(lines, "filter:INPUT:rule:10") && has(lines, "filter:INPUT:rule:11")
    })?;
    screen.wait("all drops", |lines| lines[0].contains(&format!("{sent} drops")))?;
    screen.press("/rule:11")?;
    screen.wait("only one", |lines| !has(lines, "filter:INPUT:rule:10"))?;
    screen.press(ESCAPE)?;
    screen.wait("both again", |lines| has(lines, "filter:INPUT:rule:10"))?;
    screen.press(ENTER)?;
    screen.wait("its drops", |lines| has(lines, "place filter:INPUT:rule:10 (INPUT, legacy): the last"))?;
    screen.press(ENTER)?;
    screen.wait("the drop", |lines| {
        let known = ["dropped by  filter:INPUT:rule:10", "kernel      NETFILTER_DROP", "closed for repairs"];
        known.iter().all(|part| has(lines, part))
    })?;
    // The rules around it are asked for beside.
    screen.press("\x1b[F")?;
    screen.wait("its neighbours", |lines| {
        has(lines, ">    10  -A INPUT -p udp")
            && has(lines, "11  -A INPUT -p udp")
            && has(lines, "-A INPUT -s 192.0.2.9/32")
    })?;
    screen.press(ESCAPE)?;
    screen.wait("its drops", |lines| has(lines, "the last"))?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("closed.parquet");
    let path = file.to_str().context("the path of a file")?;
    screen.press("w")?;
    screen.press(path)?;
    screen.press(ENTER)?;
    screen.wait("it is saved", |lines| has(lines, "drops are in") || has(lines, "not saved"))?;
    screen.press(ESCAPE)?;
    screen.wait("groups", |lines| has(lines, "last 30 s"))?;
    screen.press("p")?;
    screen.wait("it is paused", |lines| has(lines, "PAUSED"))?;
    send(&pair, PORT, 5)?;
    screen.press("?")?;
    screen.wait("help", |lines| has(lines, "pause what is shown"))?;
    screen.press(DOWN)?;
    screen.wait("no help", |lines| !has(lines, "pause what is shown"))?;
    ensure!(screen.lines()[0].contains(&format!("{sent} drops")), "{:#?}", screen.lines());
    screen.press("p")?;
    screen.wait("it goes on", |lines| lines[0].contains(&format!("{} drops", sent + 5)))?;
    screen.press(RIGHT)?;
    screen.wait("another key", |lines| lines[5].ends_with(" cause"))?;
    screen.press("q")?;
    ensure!(screen.ended()? == Ended::Code(0), "{:#?}", screen.lines());
    ensure!(has(&screen.lines(), &format!("{} drops", sent + 5)), "no summary: {:#?}", screen.lines());
    let replayed = droptrace::command(&["replay", "-o", "json", path])?.output()?;
    let replayed = String::from_utf8(replayed.stdout)?;
    let is_it = |line: &str| line.contains("\"rule\":10") && line.contains("closed for repairs");
    ensure!(!replayed.is_empty() && replayed.lines().all(is_it), "{replayed}");
    Ok(())
}

/// Keys work while there is more than can be read, in any size, and nothing is lost from the count.
fn flooded_and_resized() -> Result<()> {
    let pair = server()?;
    let netns = pair.server.netns.inode().to_string();
    let mut screen = top(&netns, &["--by", "place"], (120, 30))?;
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let flooding = scope.spawn(|| {
            flood(&pair.client.netns, pair.server.port(Family::V4, PORT), Load::RandomSources, 200_000)
        });
        screen.wait("drops", |lines| has(lines, "filter:INPUT:rule:10"))?;
        for (columns, rows) in [(60, 12), (200, 50), (1, 1), (100, 24)] {
            screen.resize(columns, rows)?;
            screen.press(DOWN)?;
            screen.press("s")?;
        }
        screen.wait("the new size", |lines| lines.len() == 24 && has(lines, "q quit"))?;
        Ok(flooding.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??.accepted)
    })?;
    let missed = droptrace::missed_here();
    let counted = |lines: &[String]| -> Option<u64> {
        let (count, _) = lines.first()?.split_once(" drops, ")?;
        count.rsplit(' ').next()?.replace(',', "").parse().ok()
    };
    let count = settled(&[sent], || Ok(counted(&screen.lines()).unwrap_or(0)))?;
    ensure!(count + missed >= sent && count <= sent, "{count} of {sent}, {missed} missed");
    screen.press("\x03")?;
    ensure!(screen.ended()? == Ended::Code(0), "{:#?}", screen.lines());
    ensure!(screen.is_restored(), "{:#?}", screen.lines());
    Ok(())
}

/// By a key, a signal, a second one, or SIGKILL.
fn restores_the_terminal() -> Result<()> {
    let pair = Pair::new()?;
    let netns = pair.server.netns.inode().to_string();
    type Way = (&'static str, fn(&mut Screen) -> Result<()>, Ended);
    let ways: [Way; 5] = [
        ("q", |screen| screen.press("q"), Ended::Code(0)),
        ("SIGINT", |screen| signalled(screen, libc::SIGINT), Ended::Code(0)),
        ("SIGTERM", |screen| signalled(screen, libc::SIGTERM), Ended::Code(0)),
        ("SIGKILL", |screen| signalled(screen, libc::SIGKILL), Ended::Signal(libc::SIGKILL)),
        ("SIGABRT", |screen| signalled(screen, libc::SIGABRT), Ended::Signal(libc::SIGABRT)),
    ];
    for (name, end, expected) in ways {
        let command = droptrace::command(&["top", "--offline", "--netns", &netns])?;
        let mut screen = Screen::start(command, (80, 24))?;
        let before = screen.settings()?;
        screen.wait("the screen", |lines| has(lines, "q quit"))?;
        ensure!(!screen.is_restored() && screen.settings()? != before, "it did not take the screen");
        end(&mut screen)?;
        let ended = screen.ended()?;
        ensure!(ended == expected, "{name}: {ended:?}\n{:#?}", screen.lines());
        let left =
            settled(&[0], || Ok(u64::from(!screen.is_restored()) + u64::from(screen.settings()? != before)))?;
        ensure!(left == 0, "{name}: the terminal is not as it was: {:#?}", screen.lines());
    }
    Ok(())
}

fn signalled(screen: &Screen, signal: i32) -> Result<()> {
    screen.signal(signal);
    Ok(())
}

/// It says what to do instead.
fn without_a_terminal() -> Result<()> {
    let output = droptrace::command(&["top"])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.contains("droptrace hist"),
        "{:?}: {said}",
        output.status
    );
    ensure!(output.stdout.is_empty(), "something on stdout");
    Ok(())
}
