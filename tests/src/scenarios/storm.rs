//! Storms: millions of drops, and the counts still add up, one by one.

use super::{alone, beside, skip};
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::flood::{Load, Sent, flood};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::record::{Sum, Tally};
use crate::bed::send;
use crate::bed::topology::{Family, Pair};
use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        beside("storm::sums", sums),
        alone("storm::legacy_rule", || legacy_rule(Family::V4, big())),
        alone("storm::legacy_rule_ipv6", || legacy_rule(Family::V6, small())),
        alone("storm::nft_rule", nft_rule),
        alone("storm::no_socket", no_socket),
        alone("storm::slow_receiver", slow_receiver),
        alone("storm::segments", segments),
        alone("storm::random_sources", random_sources),
        alone("storm::process_context", process_context),
    ]
}

/// Packets of the big storm.
pub(super) fn big() -> u64 {
    let wanted = std::env::var("DROPTRACE_STORM").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(if kernel::in_vm() { 200_000 } else { 5_000_000 })
}

/// Packets of the others.
fn small() -> u64 {
    big() / 10
}

const PORT: u16 = 9;

fn drop_rule(netns: &Namespace, tool: &str, chain: &str) -> Result<()> {
    netns.run(&format!("{tool} -A {chain} -p udp --dport {PORT} -j DROP")).map(drop)
}

/// What the senders know: how many drops there were, each of them in one netns.
struct Truth {
    netns: u32,
    drops: u64,
}

/// Starts droptrace. Where emulation makes a storm last for seconds, neighbour discovery has time to drop packets of its
/// own: there only the storm's are looked at.
fn start() -> Result<Droptrace> {
    let words: &[&str] = if kernel::in_vm() { &["--all", "--protocol", "udp"] } else { &["--all"] };
    Droptrace::start(words)
}

/// Waits until the stream has told of all drops, and compares exactly.
fn add_up(stream: Droptrace, truth: &Truth) -> Result<Tally> {
    let told = |tally: &Tally| tally.of(truth.netns).count + tally.missed();
    // Too few is what the comparison below reports, with its numbers.
    let _ = stream.wait("all drops are told", |output: &Output| told(&output.tally) >= truth.drops);
    let tally = stream.stop()?.tally;
    let Sum { count, segments } = tally.of(truth.netns);
    eprintln!(
        "  {} dropped: {count} counted ({segments} segments) in {} lines, lost {:?}",
        truth.drops, tally.lines, tally.lost
    );
    compare(truth.drops, count, tally.missed())?;
    Ok(tally)
}

/// Every drop is counted, or reported as missed: nothing else.
fn compare(drops: u64, counted: u64, missed: u64) -> Result<()> {
    ensure!(
        counted + missed == drops,
        "{drops} packets were dropped, but {counted} counted and {missed} reported as missed: {} {}",
        drops.abs_diff(counted + missed),
        if counted + missed < drops { "went missing" } else { "too many" }
    );
    Ok(())
}

fn sums() -> Result<()> {
    compare(10, 10, 0)?;
    compare(10, 7, 3)?;
    ensure!(compare(10, 7, 2).is_err() && compare(10, 8, 3).is_err(), "wrong sums pass");
    Ok(())
}

/// Floods the server from the client; all of it is dropped there.
fn flood_server(pair: &Pair, family: Family, load: Load, total: u64) -> Result<Sent> {
    let sent = flood(&pair.client.netns, pair.server.port(family, PORT), load, total)?;
    ensure!(sent.refused == 0, "the client's kernel refused {}", sent.refused);
    Ok(sent)
}

/// A storm of datagrams that never arrive, whatever drops them.
fn nothing_arrives(pair: &Pair, family: Family, total: u64) -> Result<()> {
    let stream = start()?;
    let started = Instant::now();
    let sent = flood_server(pair, family, Load::Datagrams, total)?;
    eprintln!("  {} sent in {:?}", sent.accepted, started.elapsed());
    add_up(stream, &Truth { netns: pair.server.netns.inode(), drops: sent.accepted }).map(drop)
}

fn legacy_rule(family: Family, total: u64) -> Result<()> {
    let pair = Pair::new()?;
    drop_rule(&pair.server.netns, family.pick("iptables-legacy", "ip6tables-legacy"), "INPUT")?;
    nothing_arrives(&pair, family, total)
}

fn nft_rule() -> Result<()> {
    let pair = Pair::new()?;
    super::rules::chain(&pair.server.netns, "inet", "input", &format!("udp dport {PORT} drop"))?;
    nothing_arrives(&pair, Family::V4, small())
}

fn no_socket() -> Result<()> {
    let pair = Pair::new()?;
    nothing_arrives(&pair, Family::V4, small())
}

/// A receiver reads what it can; the rest overflows its buffer.
fn slow_receiver() -> Result<()> {
    let pair = Pair::new()?;
    let to = pair.server.port(Family::V4, PORT);
    let receiver = pair.server.netns.enter(|| UdpSocket::bind(to).context("bind"))?;
    send::small_receive_buffer(&receiver, 2304)?;
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    let stream = start()?;
    let finished = AtomicBool::new(false);
    let (sent, arrived) = std::thread::scope(|scope| {
        let counter = scope.spawn(|| count_arrivals(&receiver, &finished));
        let sent = flood_server(&pair, Family::V4, Load::Datagrams, small());
        finished.store(true, Ordering::Release);
        let arrived = counter.join().map_err(|_| anyhow!("the receiver panicked"))??;
        anyhow::Ok((sent?, arrived))
    })?;
    eprintln!("  {} sent, {arrived} arrived", sent.accepted);
    let truth = Truth { netns: pair.server.netns.inode(), drops: sent.accepted - arrived };
    if truth.drops == 0 {
        return Err(skip("the receiver was never too slow"));
    }
    add_up(stream, &truth).map(drop)
}

/// Counts datagrams until the senders have finished and nothing comes any more.
fn count_arrivals(receiver: &UdpSocket, finished: &AtomicBool) -> Result<u64> {
    let mut count = 0;
    loop {
        let last = finished.load(Ordering::Acquire);
        match receiver.recv(&mut [0; 100]) {
            Ok(_) => count += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && last => {
                return Ok(count);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
}

/// Each send is one skb of many segments: the segments add up.
fn segments() -> Result<()> {
    const PER_SEND: u64 = 40;
    let pair = Pair::new()?;
    drop_rule(&pair.server.netns, "iptables-legacy", "INPUT")?;
    let stream = start()?;
    let load = Load::Segments { per_send: PER_SEND as usize };
    let sent = flood_server(&pair, Family::V4, load, small() / 5)?;
    let (netns, wanted) = (pair.server.netns.inode(), sent.accepted * PER_SEND);
    let _ = stream.wait("all segments are told", |output: &Output| output.tally.of(netns).segments >= wanted);
    let tally = stream.stop()?.tally;
    let sum = tally.of(netns);
    eprintln!(
        "  {wanted} segments dropped: {} counted in {} skbs, lost {:?}",
        sum.segments, sum.count, tally.lost
    );
    if tally.missed() == 0 {
        return compare(wanted, sum.segments, 0);
    }
    // A missed skb is known by number only: its segments are its whole send, or one where the kernel cut it up.
    ensure!(
        sum.segments <= wanted && wanted - sum.segments <= tally.missed() * PER_SEND,
        "the segments do not add up"
    );
    Ok(())
}

/// More flows than there is room for: counts stay exact, lost detail is reported.
fn random_sources() -> Result<()> {
    let pair = Pair::new()?;
    drop_rule(&pair.server.netns, "iptables-legacy", "INPUT")?;
    pair.server.netns.run("ip route add 10.128.0.0/9 dev s0")?;
    let stream = start()?;
    let sent = flood_server(&pair, Family::V4, Load::RandomSources, small())?;
    let tally = add_up(stream, &Truth { netns: pair.server.netns.inode(), drops: sent.accepted })?;
    // Nearly every packet is a flow of its own: fewer lines than that mean that detail was lost.
    ensure!(
        tally.lines >= sent.accepted * 9 / 10 || !tally.lost.is_empty(),
        "{} flows in {} lines, and no loss reported",
        sent.accepted,
        tally.lines
    );
    Ok(())
}

/// Drops in process context (OUTPUT, of the client's own sends) that softirq drops (INPUT, of what the server
/// sends) interrupt on the same CPUs.
fn process_context() -> Result<()> {
    let pair = Pair::new()?;
    for chain in ["INPUT", "OUTPUT"] {
        drop_rule(&pair.client.netns, "iptables-legacy", chain)?;
    }
    let stream = start()?;
    let to_client = pair.client.port(Family::V4, PORT);
    let to_server = pair.server.port(Family::V4, PORT);
    let (own, foreign) = std::thread::scope(|scope| {
        let foreign = scope.spawn(|| flood(&pair.server.netns, to_client, Load::Datagrams, small()));
        let own = flood(&pair.client.netns, to_server, Load::Datagrams, small() / 2);
        let foreign = foreign.join().map_err(|_| anyhow!("a sender panicked"))?;
        anyhow::Ok((own?, foreign?))
    })?;
    ensure!(own.accepted == 0, "{} sends passed the OUTPUT rule", own.accepted);
    eprintln!("  {} refused on the way out, {} sent in", own.refused, foreign.accepted);
    let truth = Truth { netns: pair.client.netns.inode(), drops: own.refused + foreign.accepted };
    add_up(stream, &truth).map(drop)
}
