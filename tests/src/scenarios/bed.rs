//! The bed itself: if it is broken, the other tests prove nothing.

use super::{beside, both, here_only};
use crate::bed::command;
use crate::bed::flood::{Load, flood};
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::send;
use crate::bed::topology::{Family, Pair, Routed};
use crate::bed::{patience, settled};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::net::UdpSocket;
use std::panic::AssertUnwindSafe;
use std::path::Path;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        beside("bed::namespaces_end_with_a_panic", namespaces_end_with_a_panic),
        beside("bed::counters_of_a_namespace", counters_of_a_namespace),
        beside("bed::floods_are_counted", floods_are_counted),
    ];
    trials.extend(both("bed::packets_cross_the_router", packets_cross_the_router));
    trials.extend(both("bed::crafted_packets_are_accepted", crafted_packets_are_accepted));
    here_only(trials)
}

fn namespaces_end_with_a_panic() -> Result<()> {
    let mut name = String::new();
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let Ok(netns) = Namespace::new() else { return };
        netns.name().clone_into(&mut name);
        // Not a panic, which would print: the same unwinding, silently.
        std::panic::resume_unwind(Box::new(()));
    }));
    ensure!(outcome.is_err() && !name.is_empty(), "the namespace could not be made");
    ensure!(!Path::new("/run/netns").join(&name).exists(), "{name} is still there");
    ensure!(!command::run("ip netns list")?.contains(&name), "{name} is still listed");
    Ok(())
}

fn counters_of_a_namespace() -> Result<()> {
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 9));
    ensure!(pair.server.netns.counter("UdpNoPorts")? == 0, "a new namespace has counted something");
    pair.client.inject(&vec![packet::udp(from, to, b"x"); 4])?;
    let counted = settled(&[4], || pair.server.netns.counter("UdpNoPorts"))?;
    ensure!(counted == 4, "UdpNoPorts is {counted}, 4 packets were sent");
    Ok(())
}

fn floods_are_counted() -> Result<()> {
    let pair = Pair::new()?;
    let to = pair.server.port(Family::V4, 9);
    let rules = "iptables-legacy -A INPUT -p udp --dport 9 -j DROP";
    pair.server.netns.run(rules)?;
    for (load, sends) in
        [(Load::Datagrams, 1000), (Load::RandomSources, 1000), (Load::Segments { per_send: 10 }, 100)]
    {
        let sent = flood(&pair.client.netns, to, load, sends)?;
        ensure!((sent.accepted, sent.refused) == (sends, 0), "{load:?}: {sent:?}");
    }
    // UDP_SEGMENT packets are counted as one skb, or as ten where they are cut before the wire.
    let right = [2100, 3000];
    let counted = settled(&right, || {
        let shown = pair.server.netns.run("iptables-legacy -nvxL INPUT")?;
        let rule = shown.lines().find(|line| line.contains("DROP ")).context("no DROP rule")?;
        rule.split_whitespace().next().and_then(|count| count.parse().ok()).context("no count")
    })?;
    ensure!(right.contains(&counted), "the rule counted {counted} packets");
    Ok(())
}

fn receive(socket: &UdpSocket) -> Result<usize> {
    socket.set_read_timeout(Some(patience()))?;
    socket.recv(&mut [0; 2000]).context("nothing arrived")
}

fn packets_cross_the_router(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    let receiver = routed.server.netns.enter(|| UdpSocket::bind(to).context("bind"))?;
    routed.client.netns.enter(|| send::udp(from, to, b"hello", 1))?;
    ensure!(receive(&receiver)? == 5, "another length arrived");
    Ok(())
}

fn crafted_packets_are_accepted(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 4242));
    let receiver = pair.server.netns.enter(|| UdpSocket::bind(to).context("bind"))?;
    pair.client.inject(&[packet::udp(from, to, b"odd")])?;
    ensure!(receive(&receiver)? == 3, "another length arrived");
    Ok(())
}
