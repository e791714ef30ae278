//! Rules that are replaced all the time, as kube-proxy does, while packets are dropped.
//!
//! Each destination port has one rule that drops it, for ever, and the port is the rule's number in its comment. So
//! an exact answer must name a rule of the packet's own port, at a place where that rule was at the time.

use super::judge::Shares;
use super::{FREED, seed};
use crate::bed::backend::Backend;
use crate::bed::clock;
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::flood::pin;
use crate::bed::kernel;
use crate::bed::packet;
use crate::bed::random::Random;
use crate::bed::record::Record;
use crate::bed::ruleset::{self, Base, Chain, Hook, Id, Rule, Target};
use crate::bed::send;
use crate::bed::topology::{Family, Routed};
use crate::scenarios::alone;
use crate::scenarios::answer::{Place, Slot, family, has_word, is_exact};
use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    let trial = |(backend, family): (Backend, Family)| {
        alone(format!("differential::replacement_{}::{}", backend.name(), family.name()), move || {
            replaced_rules(backend, family)
        })
    };
    [
        (Backend::Legacy, Family::V4),
        (Backend::Legacy, Family::V6),
        (Backend::IptablesNft, Family::V4),
        (Backend::Nft, Family::V4),
        (Backend::Nft, Family::V6),
    ]
    .map(trial)
    .into()
}

/// The ports, each with its rule.
const FIRST: u16 = 21_000;
const COUNT: u16 = 40;
/// The chain that is replaced.
const CHAIN: &str = "KUBE-REPLACED";
/// Packets of one batch of a sender, and its pause: all lines are kept.
const BATCH: usize = 8;
const PAUSE: Duration = Duration::from_millis(6);
/// How exactly droptrace dates drops.
const SLACK: Duration = Duration::from_millis(2);

/// What the rules were between two moments.
#[derive(Clone, Debug)]
struct Version {
    /// Before it was loaded, since 1970.
    from: Duration,
    /// After the next one was loaded.
    until: Duration,
    /// Which port's rule stood where.
    ports: BTreeMap<Slot, u16>,
}

fn replaced_rules(backend: Backend, family: Family) -> Result<()> {
    let seed = seed();
    let versions = if kernel::in_vm() { 12 } else { 60 };
    let routed = Routed::new()?;
    let mut rules = Rules { backend, family, random: Random::new(seed), now: Vec::new(), next: 0 };
    backend.load(&routed.router, family, &rules.first())?;
    let mut history = vec![rules.version(&routed, clock::now())?];
    let stream = Droptrace::start(&["--all", "--netns", &routed.router.inode().to_string()])?;
    let finished = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let senders: Vec<_> = [0, 1]
            .map(|cpu| {
                scope.spawn({
                    let (routed, finished) = (&routed, &finished);
                    move || sender(cpu, routed, family, seed, finished)
                })
            })
            .into();
        let mut replace = || -> Result<()> {
            for _ in 0..versions {
                std::thread::sleep(Duration::from_millis(40));
                let began = clock::now();
                backend.replace(&routed.router, family, &rules.change())?;
                let version = rules.version(&routed, began)?;
                if let Some(last) = history.last_mut() {
                    last.until = clock::now();
                }
                history.push(version);
            }
            Ok(())
        };
        let replaced = replace();
        finished.store(true, Ordering::Release);
        let mut sent: BTreeMap<u16, u64> = BTreeMap::new();
        for sender in senders {
            for (port, count) in sender.join().map_err(|_| anyhow!("a sender panicked"))?? {
                *sent.entry(port).or_default() += count;
            }
        }
        replaced.map(|()| sent)
    })?;
    let (inode, total) = (routed.router.inode(), sent.values().sum::<u64>());
    let all = |output: &Output| output.tally.freed_by(inode, FREED) + output.tally.missed() >= total;
    let _ = stream.wait("all drops are told", all);
    let output = stream.stop()?;
    ensure!(output.tally.lines == output.records.len() as u64, "more lines than are kept: make PAUSE longer");
    let ours = |r: &&Record| r.is_drop() && r.netns() == Some(inode) && FREED.contains(&r.function());
    let records: Vec<&Record> = output.records.iter().filter(ours).collect();
    let mut shares = judge(&records, backend, family, &history, &sent);
    let told = output.tally.freed_by(inode, FREED);
    if told > total || told + output.tally.missed() < total {
        shares.fault(format!("{total} dropped, {told} told, lost {:?}", output.tally.lost));
    }
    eprintln!(
        "  replacement {} {} seed {seed}: {} versions; {shares}",
        backend.name(),
        family.name(),
        history.len()
    );
    // While rules come and go, not every answer can be exact; but none may be wrong.
    shares.verdict(false).with_context(|| format!("DROPTRACE_SEED={seed}"))
}

/// The rules of the replaced chain, as they are now.
struct Rules {
    backend: Backend,
    family: Family,
    random: Random,
    now: Vec<Rule>,
    /// Numbers of rules that only count.
    next: Id,
}

impl Rules {
    fn counting(&mut self) -> Rule {
        self.next += 1;
        Rule::all(self.next, Target::Count)
    }

    /// All of them in a new order, with a few that only count between them.
    fn mix(&mut self) {
        let mut rules: Vec<Rule> =
            (FIRST..FIRST + COUNT).map(|port| Rule::port(port.into(), port, Target::Drop)).collect();
        for _ in 0..self.random.below(12) {
            let rule = self.counting();
            rules.push(rule);
        }
        self.random.shuffle(&mut rules);
        self.now = rules;
    }

    /// Everything: two base chains that jump to the chain.
    fn first(&mut self) -> String {
        self.mix();
        let base = |hook: Hook, id| Chain {
            table: "filter",
            name: hook.upper(),
            base: Some(Base { hook, priority: 0, drops: false }),
            rules: vec![Rule::all(id, Target::Jump(CHAIN.to_owned()))],
        };
        let chain = Chain { table: "filter", name: CHAIN.to_owned(), base: None, rules: self.now.clone() };
        let chains = [base(Hook::Input, 90_001), base(Hook::Output, 90_002), chain];
        ruleset::write_down(&chains, self.backend, self.family, "inet")
    }

    /// The next transaction: the chain rewritten as a whole, or a few rules before all others, or fewer of them.
    fn change(&mut self) -> String {
        match self.random.below(3) {
            0 => self.insert(),
            _ => self.rewrite(),
        }
    }

    fn rewrite(&mut self) -> String {
        self.mix();
        let mut text = String::new();
        let rules = self.now.iter();
        // Writing to a string cannot fail.
        let _ = match self.backend {
            Backend::Nft => {
                let added = rules
                    .map(|r| format!("add rule inet filter {CHAIN} {}\n", ruleset::nft_rule(r, self.family)));
                write!(text, "flush chain inet filter {CHAIN}\n{}", added.collect::<String>())
            }
            // A chain that is named is emptied first, also with --noflush.
            _ => {
                let added = rules.map(|r| ruleset::iptables_rule(CHAIN, r, self.family) + "\n");
                write!(text, "*filter\n:{CHAIN} - [0:0]\n{}COMMIT\n", added.collect::<String>())
            }
        };
        text
    }

    fn insert(&mut self) -> String {
        let rule = self.counting();
        self.now.insert(0, rule.clone());
        match self.backend {
            Backend::Nft => {
                format!("insert rule inet filter {CHAIN} {}\n", ruleset::nft_rule(&rule, self.family))
            }
            _ => {
                let rule = ruleset::iptables_rule(CHAIN, &rule, self.family);
                format!("*filter\n{}\nCOMMIT\n", rule.replacen("-A ", "-I ", 1))
            }
        }
    }

    /// Where the rules are, now that they are loaded.
    fn version(&self, routed: &Routed, from: Duration) -> Result<Version> {
        let listed = self.backend.list(&routed.router, self.family)?;
        let listed: Vec<_> = listed.iter().filter(|rule| rule.chain == CHAIN).collect();
        let ids: Vec<Option<Id>> =
            listed.iter().map(|rule| ruleset::id_of(rule.comment.as_deref()?)).collect();
        let wanted: Vec<Option<Id>> = self.now.iter().map(|rule| Some(rule.id)).collect();
        ensure!(ids == wanted, "the kernel's rules are not what was loaded: {ids:?}, not {wanted:?}");
        let slot = |number: u64, handle: Option<u64>| match (self.backend, handle) {
            (Backend::Nft, Some(handle)) => Slot::Handle(handle),
            _ => Slot::Number(number),
        };
        let ports = listed.iter().zip(&self.now).filter_map(|(listed, rule)| {
            let port = u16::try_from(rule.id).ok().filter(|port| *port >= FIRST)?;
            Some((slot(listed.number, listed.handle), port))
        });
        Ok(Version { from, until: Duration::MAX, ports: ports.collect() })
    }
}

/// Sends to random ports until told to end: arriving packets (CPU 0) or the router's own (CPU 1). Returns how many
/// for each port.
fn sender(
    cpu: usize,
    routed: &Routed,
    family: Family,
    seed: u64,
    finished: &AtomicBool,
) -> Result<BTreeMap<u16, u64>> {
    let mut random = Random::new(seed ^ (cpu as u64 + 1));
    let mut sent: BTreeMap<u16, u64> = BTreeMap::new();
    let netns = if cpu == 0 { &routed.client.netns } else { &routed.router };
    pin(cpu);
    netns.enter(|| {
        while !finished.load(Ordering::Acquire) {
            let mut packets: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
            for _ in 0..BATCH {
                let port = random.port(FIRST, COUNT);
                // Some flows come again, others are new.
                let source = if random.percent(50) { 4000 } else { random.port(1024, 60_000) };
                let to = match cpu {
                    0 => routed.near.port(family, port),
                    _ => routed.server.port(family, port),
                };
                let packet = packet::udp(routed.client.port(family, source), to, b"unwanted");
                packets.push((to, packet));
                *sent.entry(port).or_default() += 1;
            }
            if cpu == 0 {
                let (own, router) = (routed.client.end.mac(), routed.near.mac());
                let frames: Vec<_> =
                    packets.iter().map(|(_, packet)| packet::frame(own, router, packet)).collect();
                send::frames(routed.client.end.device, &frames)?;
            } else {
                send::packets(&packets)?;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })?;
    Ok(sent)
}

/// Compares all lines with what was sent, and with what the rules were.
fn judge(
    records: &[&Record],
    backend: Backend,
    packets: Family,
    history: &[Version],
    sent: &BTreeMap<u16, u64>,
) -> Shares {
    let mut shares = Shares::default();
    let mut blamed: BTreeMap<u16, u64> = BTreeMap::new();
    for record in records {
        shares.add(record);
        if !is_exact(record.get("/drop/netfilter")) {
            continue;
        }
        match port_of(record, backend, packets, history) {
            Ok(Some(port)) => *blamed.entry(port).or_default() += record.count(),
            Ok(None) => {}
            Err(error) => {
                let answer = record.get("/drop/netfilter");
                shares.fault(format!("WRONG EXACT: {error:#}: {}: {answer}", record.brief()));
            }
        }
    }
    for (port, told) in blamed {
        let sent = sent.get(&port).copied().unwrap_or(0);
        if told > sent {
            shares.fault(format!("WRONG EXACT: port {port}'s rule is blamed for {told} drops of {sent}"));
        }
    }
    shares
}

/// The port whose rule an exact answer names, if that can be: the rule was there at the time, and drops what the
/// packet is. `None` where rules of several ports were there meanwhile, and nothing tells which it was.
fn port_of(record: &Record, backend: Backend, packets: Family, history: &[Version]) -> Result<Option<u16>> {
    let netfilter = record.get("/drop/netfilter");
    let place = Place::answered(backend, netfilter).context("no table or chain")?;
    let nft_family = if backend.is_iptables() { packets.pick("ip", "ip6") } else { "inet" };
    ensure!(netfilter["backend"] == backend.engine(), "the backend is {}", netfilter["backend"]);
    ensure!(matches!(netfilter["verdict"].as_str(), None | Some("drop")), "not by its verdict");
    ensure!(
        (place.family.as_str(), place.table.as_str(), place.chain.as_str())
            == (family(nft_family), "filter", CHAIN),
        "not in {CHAIN}"
    );
    let first = clock::parse(record.text("/time").context("no time")?)?;
    let last = record.text("/time_last").map(clock::parse).transpose()?.unwrap_or(first);
    let valid =
        |version: &&Version| version.from <= last + SLACK && first <= version.until.saturating_add(SLACK);
    let mut ports: Vec<u16> =
        history.iter().filter(valid).filter_map(|version| version.ports.get(&place.slot).copied()).collect();
    ports.sort_unstable();
    ports.dedup();
    ensure!(!ports.is_empty(), "no rule that drops was at {:?} then", place.slot);
    if let Value::String(text) = &netfilter["text"] {
        ports.retain(|port| has_word(text, &ruleset::comment((*port).into())));
        ensure!(!ports.is_empty(), "another rule was at {:?} then", place.slot);
    }
    if let Some(port) = record.number("/destination/port") {
        ports.retain(|own| u64::from(*own) == port);
        ensure!(!ports.is_empty(), "it drops other ports");
    }
    Ok(ports.first().copied().filter(|_| ports.len() == 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn history() -> Vec<Version> {
        let version = |from, until, ports: [(u64, u16); 2]| Version {
            from: Duration::from_secs(from),
            until: Duration::from_secs(until),
            ports: ports.map(|(number, port)| (Slot::Number(number), port)).into(),
        };
        vec![version(0, 10, [(1, 21_000), (2, 21_001)]), version(10, 20, [(1, 21_001), (3, 21_000)])]
    }

    fn line(time: u64, port: u16, rule: u64, text: Option<&str>) -> Record {
        Record(json!({"type":"drop","count":1,"detail":true,"time":format!("1970-01-01T00:00:{time:02}Z"),
            "destination":{"port":port},"drop":{"location":"nf_hook_slow+0x1","netfilter":{
            "backend":"legacy","family":"ipv4","table":"filter","chain":CHAIN,"rule":rule,"handle":null,
            "verdict":"drop","text":text,"confidence":"exact"}}}))
    }

    fn passes(record: &Record) -> bool {
        let sent = BTreeMap::from([(21_000, 1), (21_001, 1)]);
        judge(&[record], Backend::Legacy, Family::V4, &history(), &sent).verdict(false).is_ok()
    }

    #[test]
    fn a_rule_that_was_there_then_passes() {
        assert!(passes(&line(5, 21_000, 1, None)));
        assert!(passes(&line(5, 21_001, 2, Some("-A KUBE-REPLACED -m comment --comment u21001 -j DROP"))));
        assert!(passes(&line(15, 21_000, 3, None)));
    }

    #[test]
    fn stale_and_false_answers_are_caught() {
        // A number of the version before.
        assert!(!passes(&line(15, 21_000, 1, None)));
        assert!(!passes(&line(15, 21_001, 2, None)));
        // A number of the version behind.
        assert!(!passes(&line(5, 21_000, 3, None)));
        // Another rule, and another rule's text.
        assert!(!passes(&line(5, 21_000, 2, None)));
        assert!(!passes(&line(5, 21_000, 1, Some("-A KUBE-REPLACED --comment u21001 -j DROP"))));
    }

    #[test]
    fn one_rule_blamed_for_more_than_was_sent_is_caught() {
        let lines = [line(5, 21_000, 1, None), line(6, 21_000, 1, None)];
        let sent = BTreeMap::from([(21_000, 1), (21_001, 1)]);
        let both: Vec<&Record> = lines.iter().collect();
        let shares = judge(&both, Backend::Legacy, Family::V4, &history(), &sent);
        assert!(shares.verdict(false).is_err());
    }
}
