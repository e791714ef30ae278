//! What could mislead whoever compares rule counters: tables that come back, counters that something else moves, drops
//! that no rule counts. An exact answer must be right all the same.

use super::answer::{Blame, expects_exact_here};
use super::expect::{Expect, verify, watch_alone};
use super::{beside, both_here, here_only, one, skip};
use crate::bed::backend::Backend;
use crate::bed::droptrace::Droptrace;
use crate::bed::packet;
use crate::bed::record::Record;
use crate::bed::ruleset::Hook;
use crate::bed::topology::{Family, Routed};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use std::thread;
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    let scenarios = [
        ("a_table_comes_back", a_table_comes_back as fn(Backend, Family) -> Result<()>),
        ("set_to_zero", set_to_zero),
        ("restored", restored),
    ];
    let mut trials = Vec::new();
    for (name, scenario) in scenarios {
        for backend in [Backend::Legacy, Backend::IptablesNft] {
            let [v4, v6] = [Family::V4, Family::V6].map(|family| {
                let name = format!("counters::{}_{name}::{}", backend.name(), family.name());
                beside(name, move || scenario(backend, family))
            });
            trials.push(v4);
            trials.extend(here_only([v6]));
        }
    }
    trials.extend(both_here("counters::legacy_dropped_by_a_match", dropped_by_a_match));
    trials.push(one("counters::nft_drop_in_a_reject", Family::V4, drop_in_a_reject));
    trials
}

const PORT: u16 = 4301;

/// Two tables of one size: the rule that drops is the first in one, the second in the other. `counts` are the counters of
/// both rules.
fn table(drops_first: bool, counts: [u64; 2]) -> String {
    let mut rules = [(4399, "-m comment --comment other"), (PORT, "-m comment --comment drops")];
    if drops_first {
        rules.reverse();
    }
    let rule = |((port, comment), count): ((u16, &str), u64)| {
        format!("[{count}:{count}] -A FORWARD -p udp -m udp --dport {port} {comment} -j DROP\n")
    };
    format!("*filter\n{}COMMIT\n", rules.into_iter().zip(counts).map(rule).collect::<String>())
}

/// One of a router's FORWARD rules, which drops packets.
struct Scene {
    backend: Backend,
    routed: Routed,
    family: Family,
    stream: Droptrace,
    expected: Vec<Expect>,
}

impl Scene {
    fn new(backend: Backend, family: Family) -> Result<Self> {
        if !expects_exact_here(backend) {
            return Err(skip("without types of modules no table is known"));
        }
        let routed = Routed::new()?;
        backend.load(&routed.router, family, &table(true, [0, 0]))?;
        Ok(Self { backend, stream: watch_alone()?, routed, family, expected: Vec::new() })
    }

    fn feed(&self, options: &str, rules: &str) -> Result<()> {
        let line = format!("{}-restore {options}", self.backend.iptables(self.family));
        self.routed.router.feed(&line, rules).map(drop)
    }

    /// Sends some packets to the rule that drops, each from a port of its own.
    fn send(&mut self) -> Result<()> {
        let listed = self.backend.list(&self.routed.router, self.family)?;
        let rule = listed.iter().find(|rule| rule.comment.as_deref() == Some("drops")).context("no rule")?;
        let blame = Blame::rule(self.backend, rule, "drop").at(Hook::Forward);
        let to = self.routed.server.port(self.family, PORT);
        let mut packets = Vec::new();
        for _ in 0..3 {
            let from = self.routed.client.port(self.family, 40_000 + self.expected.len() as u16);
            packets.push(packet::udp(from, to, b"unwanted"));
            let expect = Expect::drops(1, &self.routed.router).flow("udp", from, to);
            self.expected.push(expect.blame(blame.clone(), false));
        }
        self.routed.client.inject(&packets)?;
        // The rule that is blamed must have dropped it before the next change.
        let expected = self.expected.len();
        let inode = [self.routed.router.inode()];
        self.stream.wait("the drops came", |output| {
            let is_ours = |record: &&Record| record.number("/destination/port") == Some(PORT.into());
            output.drops_in(&inode).filter(is_ours).count() >= expected
        })
    }

    fn verify(self) -> Result<()> {
        verify(self.stream, &self.expected, &[&self.routed.server.netns])
    }
}

/// Tables come and go, faster than they are looked at and slower.
fn a_table_comes_back(backend: Backend, family: Family) -> Result<()> {
    let mut scene = Scene::new(backend, family)?;
    scene.send()?;
    for pause in [0, 0, 0, 1500, 300, 0] {
        for drops_first in [false, true] {
            backend.load(&scene.routed.router, family, &table(drops_first, [0, 0]))?;
            thread::sleep(Duration::from_millis(pause));
            scene.send()?;
        }
    }
    scene.verify()
}

/// `iptables -Z`
fn set_to_zero(backend: Backend, family: Family) -> Result<()> {
    let mut scene = Scene::new(backend, family)?;
    scene.send()?;
    for _ in 0..4 {
        scene.routed.router.run(&format!("{} -Z", backend.iptables(family)))?;
        scene.send()?;
    }
    scene.verify()
}

/// `iptables-restore --counters` adds to the counters of whichever rules it likes, also by one.
fn restored(backend: Backend, family: Family) -> Result<()> {
    let mut scene = Scene::new(backend, family)?;
    scene.send()?;
    for counts in [[0, 1], [1, 0], [1, 1], [1000, 0], [0, 1000]] {
        for drops_first in [false, true] {
            scene.feed("--counters", &table(drops_first, counts))?;
            scene.send()?;
        }
    }
    scene.verify()
}

/// A match may drop what it can't read (`hotdrop`), which no rule counts: here a UDP header that is cut off.
fn dropped_by_a_match(family: Family) -> Result<()> {
    let scene = Scene::new(Backend::Legacy, family)?;
    let (from, to) = (scene.routed.client.address(family), scene.routed.server.address(family));
    let ports_only = [40_000_u16.to_be_bytes(), PORT.to_be_bytes()].concat();
    scene.routed.client.inject(&[packet::Ip::new(from, to).wrap(packet::protocol::UDP, &ports_only)])?;
    let inode = [scene.routed.router.inode()];
    scene.stream.wait("the drop came", |output| output.drops_in(&inode).any(|drop| !drop.is_background()))?;
    let output = scene.stream.stop()?;
    for record in output.drops_in(&inode).filter(|record| !record.is_background()) {
        let netfilter = record.get("/drop/netfilter");
        ensure!(netfilter["confidence"] != "exact" && netfilter["rule"].is_null(), "{netfilter}");
        ensure!(netfilter["hook"] == "FORWARD" && netfilter["backend"] == "legacy", "{netfilter}");
    }
    Ok(())
}

/// A rule rejects, and its answer is dropped in turn, within the reject: by a policy that counts nothing, on a hook that leads
/// to the same rule. The rule's counter has moved by one then, but for the packet that is rejected.
fn drop_in_a_reject(family: Family) -> Result<()> {
    const BACKEND: Backend = Backend::Nft;
    let routed = Routed::new()?;
    let rules = format!(
        "table {} t {{
            chain shared {{ counter reject; }}
            chain in {{ type filter hook input priority 0; udp dport {PORT} jump shared; }}
            chain out {{ type filter hook output priority 0; policy drop; udp dport {PORT} jump shared; }}
        }}",
        family.pick("ip", "ip6")
    );
    BACKEND.load(&routed.router, family, &rules)?;
    let listed = BACKEND.list(&routed.router, family)?;
    let rule = listed.iter().find(|rule| rule.chain == "shared").context("no rule")?;
    let rejects = Blame::rule(BACKEND, rule, "reject").at(Hook::Input);
    let policy = Blame::policy(BACKEND, family.pick("ip", "ip6"), "t", "out").at(Hook::Output);
    let stream = watch_alone()?;
    let (client, near) = (&routed.client, &routed.near);
    let mut expected = Vec::new();
    for from in (40_000..40_005).map(|port| client.port(family, port)) {
        let to = near.port(family, PORT);
        client.inject(&[packet::udp(from, to, b"unwanted")])?;
        let rejected = Expect::drops(1, &routed.router).flow("udp", from, to);
        expected.push(rejected.blame(rejects.clone(), false));
    }
    let answers = Expect::drops(5, &routed.router).ends("icmp", near.address(family), client.address(family));
    expected.push(answers.blame(policy, false));
    verify(stream, &expected, &[&routed.server.netns])
}
