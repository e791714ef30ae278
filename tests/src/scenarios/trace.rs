//! `droptrace trace`: the path of packets, and that following them changes nothing.

use super::alone;
use crate::bed::backend::Backend;
use crate::bed::droptrace::{self, Droptrace, Output};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::record::Record;
use crate::bed::send;
use crate::bed::topology::{Family, Routed};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use std::net::UdpSocket;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for backend in [Backend::Legacy, Backend::IptablesNft] {
        let families: &[Family] = if kernel::in_vm() { &[Family::V4] } else { &[Family::V4, Family::V6] };
        for &family in families {
            let name = format!("trace::through_nat_{}::{}", backend.name(), family.name());
            trials.push(alone(name, move || through_nat(backend, family)));
        }
    }
    trials.push(alone("trace::forwarding_off", forwarding_off));
    trials
}

/// What droptrace says once packets are followed.
const FOLLOWING: &str = "following";

/// Follows packets.
struct Trace(Droptrace);

impl Trace {
    fn start(filter: &[&str]) -> Result<Self> {
        let mut command = droptrace::command(&["trace", "-o", "json", "--offline"])?;
        command.args(filter);
        let started = Droptrace::spawn(command)?;
        started.wait("packets are followed", |output| output.stderr.contains(FOLLOWING))?;
        Ok(Self(started))
    }

    /// Waits until so many stories have ended.
    fn stories(self, count: usize) -> Result<Vec<Story>> {
        let is_end = |record: &&Record| record.text("/type") == Some("end");
        self.0.wait("stories end", |output| output.records.iter().filter(is_end).count() >= count)?;
        stories(&self.0.stop()?)
    }
}

/// A packet's story.
#[derive(Debug)]
struct Story {
    steps: Vec<Record>,
    end: Record,
}

fn stories(output: &Output) -> Result<Vec<Story>> {
    let ends = output.records.iter().filter(|record| record.text("/type") == Some("end"));
    ends.map(|end| {
        let packet = end.text("/packet").context("an end without its packet")?;
        let steps = output
            .records
            .iter()
            .filter(|record| record.text("/type") == Some("step") && record.text("/packet") == Some(packet));
        let steps: Vec<Record> = steps.cloned().collect();
        ensure!(end.number("/steps") == Some(steps.len() as u64), "{} steps: {}", steps.len(), end.brief());
        Ok(Story { steps, end: end.clone() })
    })
    .collect()
}

impl Story {
    fn outcome(&self) -> Option<&str> {
        self.end.text("/outcome")
    }

    /// The steps in short: what is to be seen in order.
    fn in_short(&self) -> Vec<String> {
        self.steps.iter().map(short).collect()
    }

    /// Checks that these are among the steps, in this order.
    fn expect(&self, wanted: &[String]) -> Result<()> {
        let all = self.in_short();
        let mut rest = all.iter();
        for step in wanted {
            ensure!(rest.any(|it| it == step), "no {step} in its place among {all:#?}; {}", self.end.brief());
        }
        Ok(())
    }
}

/// `netns kind what`
fn short(step: &Record) -> String {
    let text = |pointer: &str| step.text(pointer).unwrap_or("-").to_owned();
    let netns = step.number("/netns").unwrap_or(0);
    let ends = |pointer: &str| {
        let end = |end: &str| {
            let address = text(&format!("{pointer}/{end}/address"));
            step.number(&format!("{pointer}/{end}/port"))
                .map_or(address.clone(), |port| format!("{address} {port}"))
        };
        format!("{} > {}", end("source"), end("destination"))
    };
    let what = match step.text("/kind") {
        Some("netfilter") if step.text("/netfilter/table").is_some() => {
            let number = step.number("/netfilter/rule").map_or("-".to_owned(), |rule| rule.to_string());
            format!(
                "{}:{}:{}:{number} {}",
                text("/netfilter/table"),
                text("/netfilter/chain"),
                text("/netfilter/what"),
                text("/netfilter/verdict")
            )
        }
        Some("netfilter") => text("/netfilter/hook"),
        Some("nat") => format!("{} => {}", ends("/nat/before"), ends("/nat/after")),
        Some("route") => format!("{} {}", text("/route/decision"), text("/route/interface")),
        Some("device" | "tc" | "qdisc") => match step.text("/interface_in") {
            Some(name) => format!("in {name}"),
            None => format!("out {}", text("/interface_out")),
        },
        _ => String::new(),
    };
    format!("{netns} {} {what}", text("/kind")).trim_end().to_owned()
}

/// A packet to a service's address is translated, marked, forwarded through a chain, and delivered.
fn through_nat(backend: Backend, family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let vip = family.pick("10.96.0.10", "fd96::10");
    let (server, port) = (routed.server.address(family), 5353);
    let to = family.pick(format!("{server}:{port}"), format!("[{server}]:{port}"));
    let rules = format!(
        "*mangle\n-A PREROUTING -p udp -j MARK --set-xmark 0x10/0xffffffff\nCOMMIT\n\
         *nat\n:SVC - [0:0]\n-A PREROUTING -p tcp -j SVC\n-A PREROUTING -d {vip} -p udp -m udp --dport 53 -j SVC\n\
         -A SVC -p udp -m udp -j DNAT --to-destination {to}\nCOMMIT\n\
         *filter\n:PODS - [0:0]\n-A FORWARD -m mark --mark 0x10 -j PODS\n-A PODS -p tcp -j DROP\n-A PODS -m udp -p udp --dport 9 -j DROP\nCOMMIT\n"
    );
    backend.load(&routed.router, family, &rules)?;
    let listener = routed.server.netns.enter(|| Ok(UdpSocket::bind(routed.server.port(family, port))?))?;
    let from = routed.client.port(family, 40_000);
    let trace = Trace::start(&["--port", "40000", "--protocol", "udp"])?;
    let dialled = family.pick(format!("{vip}:53"), format!("[{vip}]:53")).parse()?;
    routed.client.netns.enter(|| send::udp(from, dialled, b"query", 1))?;
    let stories = trace.stories(1)?;
    drop(listener);
    let story = stories.first().context("no story")?;
    ensure!(story.outcome() == Some("delivered"), "{}", story.end.brief());
    let [client, router, server_netns] =
        [&routed.client.netns, &routed.router, &routed.server.netns].map(Namespace::inode);
    let address = routed.client.address(family);
    let wanted = [
        format!("{client} route output c0"),
        format!("{client} netfilter OUTPUT"),
        format!("{client} netfilter POSTROUTING"),
        format!("{client} qdisc out c0"),
        format!("{router} device in r0"),
        format!("{router} netfilter PREROUTING"),
        format!("{router} netfilter mangle:PREROUTING:rule:1 target mark"),
        format!("{router} netfilter nat:PREROUTING:rule:2 jump SVC"),
        format!("{router} netfilter nat:SVC:rule:1 target dnat"),
        format!("{router} nat {address} 40000 > {vip} 53 => {address} 40000 > {server} {port}"),
        format!("{router} route forward r1"),
        format!("{router} netfilter FORWARD"),
        format!("{router} netfilter filter:FORWARD:rule:1 jump PODS"),
        format!("{router} netfilter filter:PODS:return:3 return"),
        format!("{router} netfilter filter:FORWARD:policy:2 accept"),
        format!("{router} netfilter POSTROUTING"),
        format!("{router} qdisc out r1"),
        format!("{server_netns} device in s0"),
        format!("{server_netns} netfilter PREROUTING"),
        format!("{server_netns} route local lo"),
        format!("{server_netns} netfilter INPUT"),
    ];
    story.expect(&wanted)
}

/// The router masquerades what its client sends, and no longer forwards what comes back on that side: the reply is seen, its
/// translation is undone, and FORWARD never sees it.
fn forwarding_off() -> Result<()> {
    let family = Family::V4;
    let routed = Routed::new()?;
    routed.server.netns.run("ip route del default")?;
    Backend::Legacy.load(&routed.router, family, "*nat\n-A POSTROUTING -o r1 -j MASQUERADE\nCOMMIT\n")?;
    routed.router.sysctl("net.ipv4.conf.r1.forwarding", "0")?;
    let trace = Trace::start(&["--ip", &routed.client.address(family).to_string(), "--protocol", "icmp"])?;
    let echo = packet::echo_request(routed.client.address(family), routed.server.address(family), 7, 1);
    routed.client.netns.enter(|| send::packets(&[(routed.server.port(family, 0), echo)]))?;
    let stories = trace.stories(2)?;
    let reply = stories.iter().find(|story| story.outcome() == Some("dropped"));
    let reply = reply.with_context(|| format!("no drop: {stories:#?}"))?;
    let [client, router] = [&routed.client.netns, &routed.router].map(Namespace::inode);
    let (from, far, to) =
        (routed.server.address(family), routed.far.address(family), routed.client.address(family));
    reply.expect(&[
        format!("{router} device in r1"),
        format!("{router} netfilter PREROUTING"),
        format!("{router} nat {from} > {far} => {from} > {to}"),
    ])?;
    ensure!(!reply.in_short().contains(&format!("{router} netfilter FORWARD")), "{reply:#?}");
    ensure!(reply.end.text("/cause/id") == Some("ip-forward-off"), "{}", reply.end.brief());
    let request = stories.iter().find(|story| story.outcome() != Some("dropped"));
    let request = request.with_context(|| format!("no request: {stories:#?}"))?;
    request.expect(&[format!("{client} netfilter OUTPUT"), format!("{router} netfilter FORWARD")])?;
    Ok(())
}
