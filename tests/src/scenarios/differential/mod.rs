//! Random rules, random packets: does droptrace blame what the rules' own counters say?
//!
//! First one packet at a time, each with its own truth; then many from two CPUs at once, compared by sums.
//! `DROPTRACE_SEED` repeats a run; `DROPTRACE_STORM` scales it.

mod judge;
mod replacement;

use super::answer::{Blame, expects_exact_here};
use super::storm::big;
use super::{Family, alone};
use crate::bed::backend::Backend;
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::flood::pin;
use crate::bed::generate::{Culprit, Generated, PORTS, SOURCES, generate};
use crate::bed::kernel;
use crate::bed::packet;
use crate::bed::random::Random;
use crate::bed::record::Record;
use crate::bed::ruleset::{self, Counts, Hook};
use crate::bed::send;
use crate::bed::topology::Routed;
use anyhow::{Context, Result, anyhow, bail, ensure};
use judge::{Shares, judge_packet, judge_sums};
use libtest_mimic::Trial;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(super) fn trials() -> Vec<Trial> {
    let random =
        |backend: Backend| alone(format!("differential::{}", backend.name()), move || random_rules(backend));
    let mut trials: Vec<Trial> = Backend::ALL.map(random).into();
    trials.extend(replacement::trials());
    trials
}

/// Where rules free packets: see `netfilter::NFT`.
const FREED: &[&str] = &["nft_do_chain", "nf_hook_slow"];
/// Packets of one rule set's bulk stage, at most: all lines of it are kept.
const MOST: u64 = 10_000;

/// Packets of one rule set's bulk stage, and its rounds of a single packet.
fn sizes(backend: Backend) -> (usize, usize) {
    let bulk = (big() / 100).min(MOST);
    // nft takes longer to list its rules.
    let most = if backend == Backend::Nft { 50 } else { 100 };
    (bulk as usize, (bulk / 100).clamp(10, most) as usize)
}

/// `DROPTRACE_SEED`, or another one each time.
fn seed() -> u64 {
    let wanted = std::env::var("DROPTRACE_SEED").ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_micros().into());
    wanted.unwrap_or_else(now)
}

fn random_rules(backend: Backend) -> Result<()> {
    let seed = seed();
    let mut shares = Shares::default();
    let runs = [
        (Family::V4, Hook::Forward),
        (Family::V6, Hook::Input),
        (Family::V4, Hook::Output),
        (Family::V6, Hook::Forward),
    ];
    // Emulation is slow: there a half of them, another one each time.
    let (skipped, taken) = if kernel::in_vm() { (seed as usize % runs.len(), 2) } else { (0, runs.len()) };
    for (number, (family, policy_at)) in (0..).zip(runs.into_iter().cycle().skip(skipped).take(taken)) {
        let seed = seed + number;
        let run = one_ruleset(backend, family, policy_at, seed)
            .with_context(|| format!("{} {}, DROPTRACE_SEED={seed}", backend.name(), family.name()))?;
        shares.join(run);
    }
    eprintln!("  {} (DROPTRACE_SEED={seed}): {shares}", backend.name());
    shares.verdict(expects_exact_here(backend)).with_context(|| format!("DROPTRACE_SEED={seed}"))
}

fn one_ruleset(backend: Backend, family: Family, policy_at: Hook, seed: u64) -> Result<Shares> {
    let routed = Routed::new()?;
    let sources = add_sources(&routed, family)?;
    let made = generate(seed, backend, family, &sources, policy_at);
    let text = ruleset::write_down(&made.chains, backend, family, made.nft_family);
    backend.load(&routed.router, family, &text)?;
    let mut bed = Bed { backend, family, routed, sources, made, random: Random::new(seed ^ 0xbed) };
    let blames = bed.blames()?;
    let (bulk, singles) = sizes(backend);
    let stream = Droptrace::start(&["--all", "--netns", &bed.routed.router.inode().to_string()])?;
    let mut shares = Shares::default();
    let mut dropped = 0;

    let fates = bed.singles(singles)?;
    dropped += fates.len() as u64;
    let output = bed.told(&stream, dropped);
    for (source_port, culprit, hook) in &fates {
        let blame = blames.get(culprit).context("a culprit that is not in the rules")?.clone().at(*hook);
        let of_packet = |record: &&Record| {
            bed.by_rules(record) && record.number("/source/port") == Some(u64::from(*source_port))
        };
        let own: Vec<&Record> = output.records.iter().filter(of_packet).collect();
        judge_packet(&own, &blame, &mut shares);
    }

    let drops = bed.bulk(bulk)?;
    dropped += drops.values().sum::<u64>();
    bed.told(&stream, dropped);
    let last = stream.stop()?;
    ensure!(last.tally.lines == last.records.len() as u64, "more lines than are kept: make MOST smaller");
    let rest: Vec<&Record> =
        last.records[output.records.len()..].iter().filter(|r| bed.by_rules(r)).collect();
    let truth: Vec<(Blame, u64)> = blames
        .into_iter()
        .map(|(culprit, blame)| (blame, drops.get(&culprit).copied().unwrap_or(0)))
        .collect();
    judge_sums(backend, &rest, &truth, &mut shares);
    let told = last.tally.freed_by(bed.routed.router.inode(), FREED);
    if told > dropped || told + last.tally.missed() < dropped {
        shares.fault(format!("{dropped} dropped, {told} told, lost {:?}", last.tally.lost));
    }
    eprintln!(
        "  {} {} seed {seed}: {} rules, {} can drop, {} did; {shares}",
        backend.name(),
        family.name(),
        bed.made.rules(),
        bed.made.droppers.len(),
        drops.len()
    );
    Ok(shares)
}

/// Source addresses behind the client's wire, known to the router, so that answers to them find their way.
fn add_sources(routed: &Routed, family: Family) -> Result<Vec<IpAddr>> {
    let mac = packet::mac_text(routed.client.end.mac());
    let sources: Vec<IpAddr> = (16..16 + SOURCES as u8)
        .map(|host| match routed.client.address(family) {
            IpAddr::V4(own) => IpAddr::from([own.octets()[0], own.octets()[1], own.octets()[2], host]),
            IpAddr::V6(own) => {
                let mut octets = own.octets();
                octets[15] = host;
                octets.into()
            }
        })
        .collect();
    let mut batch = String::new();
    for source in &sources {
        writeln!(batch, "neigh replace {source} lladdr {mac} dev r0 nud permanent")?;
    }
    // What gets through goes to nobody: the server answers nothing.
    let server = routed.server.address(family);
    writeln!(batch, "neigh replace {server} lladdr 02:00:00:00:00:99 dev r1 nud permanent")?;
    routed.router.feed("ip -batch -", &batch)?;
    Ok(sources)
}

struct Bed {
    backend: Backend,
    family: Family,
    routed: Routed,
    sources: Vec<IpAddr>,
    made: Generated,
    random: Random,
}

/// Which way a packet takes at the router.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    In,
    Through,
    /// In process context.
    Out,
}

struct Packet {
    path: Path,
    source_port: u16,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Bed {
    /// What stands where, for all that can drop.
    fn blames(&self) -> Result<BTreeMap<Culprit, Blame>> {
        let listed = self.backend.list_with_handles(&self.routed.router, self.family)?;
        let mut blames = BTreeMap::new();
        for (id, dropper) in &self.made.droppers {
            let comment = ruleset::comment(*id);
            let rule = listed.iter().find(|rule| rule.comment.as_ref() == Some(&comment));
            let rule = rule.with_context(|| format!("rule {comment} is not listed"))?;
            let verdict = if dropper.rejects { "reject" } else { "drop" };
            blames.insert(Culprit::Rule(*id), Blame::rule(self.backend, rule, verdict).word(comment));
        }
        if let Some(chain) = self.made.policy_chain() {
            let own = self.family.pick("ip", "ip6");
            let family = if self.backend.is_iptables() { own } else { self.made.nft_family };
            let blame = Blame::policy(self.backend, family, chain.table, &chain.name);
            blames.insert(Culprit::Policy, blame);
        }
        Ok(blames)
    }

    fn counts(&self) -> Result<Counts> {
        Ok(ruleset::counts(&self.backend.list(&self.routed.router, self.family)?))
    }

    fn packet(&mut self) -> Packet {
        let path = [Path::In, Path::Through, Path::Out][self.random.below(3)];
        let source_port = self.random.port(1024, u16::MAX - 1024);
        let port = self.random.port(PORTS.0, PORTS.1);
        let to = match path {
            Path::In => self.routed.near.port(self.family, port),
            Path::Through | Path::Out => self.routed.server.port(self.family, port),
        };
        let from = SocketAddr::new(self.sources[self.random.below(self.sources.len())], source_port);
        Packet { path, source_port, to, bytes: packet::udp(from, to, b"chance") }
    }

    fn send(&self, packets: &[Packet], way: impl Fn(Path) -> bool) -> Result<()> {
        let (out, arriving): (Vec<&Packet>, Vec<&Packet>) =
            packets.iter().filter(|packet| way(packet.path)).partition(|packet| packet.path == Path::Out);
        if !arriving.is_empty() {
            let (client, router) = (self.routed.client.end.mac(), self.routed.near.mac());
            let frames: Vec<_> =
                arriving.iter().map(|packet| packet::frame(client, router, &packet.bytes)).collect();
            self.routed.client.netns.enter(|| send::frames(self.routed.client.end.device, &frames))?;
        }
        if !out.is_empty() {
            let packets: Vec<_> = out.iter().map(|packet| (packet.to, packet.bytes.clone())).collect();
            self.routed.router.enter(|| send::packets(&packets))?;
        }
        Ok(())
    }

    /// Sends packets one by one, each with a source port of its own; returns those that were dropped.
    fn singles(&mut self, rounds: usize) -> Result<Vec<(u16, Culprit, Hook)>> {
        let mut fates = Vec::new();
        let mut used = BTreeSet::new();
        let mut before = self.counts()?;
        for _ in 0..rounds {
            let packet = self.packet();
            if !used.insert(packet.source_port) {
                continue;
            }
            let source_port = packet.source_port;
            self.send(&[packet], |_| true)?;
            let after = self.decided(&before)?;
            let moved = ruleset::difference(&before, &after);
            let drops = self.made.drops(&moved)?;
            let hook = self.made.last_hook(&moved).context("the packet came to no base chain")?;
            match drops.iter().collect::<Vec<_>>()[..] {
                [] => {}
                [(culprit, 1)] => fates.push((source_port, *culprit, hook)),
                _ => bail!("one packet, and more than one drop: {drops:?}"),
            }
            before = after;
        }
        Ok(fates)
    }

    /// The counters once a rule has dropped the packet; or, if none does, once they stand still.
    fn decided(&self, before: &Counts) -> Result<Counts> {
        let now = self.counts()?;
        let drops = self.made.drops(&ruleset::difference(before, &now)).unwrap_or_default();
        match drops.keys().any(|culprit| matches!(culprit, Culprit::Rule(_))) {
            true => Ok(now),
            false => self.settled(before),
        }
    }

    /// The counters once they have moved and stand still.
    fn settled(&self, before: &Counts) -> Result<Counts> {
        let deadline = Instant::now() + crate::bed::patience();
        let mut last = self.counts()?;
        while Instant::now() < deadline {
            let again = self.counts()?;
            if again != *before && again == last {
                return Ok(again);
            }
            last = again;
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("the counters do not settle")
    }

    /// Sends packets from two CPUs at once, in process context and in softirqs; returns who dropped how many.
    fn bulk(&mut self, total: usize) -> Result<BTreeMap<Culprit, u64>> {
        let before = self.counts()?;
        let halves: [Vec<Packet>; 2] = [0, 1].map(|_| (0..total / 2).map(|_| self.packet()).collect());
        let bed = &*self;
        std::thread::scope(|scope| {
            let senders: Vec<_> = halves
                .iter()
                .enumerate()
                .map(|(cpu, packets)| {
                    scope.spawn(move || {
                        // Threads that this one starts stay on its CPU.
                        pin(cpu);
                        let first = |path: Path| (path == Path::Out) == (cpu == 0);
                        bed.send(packets, first)?;
                        bed.send(packets, |path| !first(path))
                    })
                })
                .collect();
            for sender in senders {
                sender.join().map_err(|_| anyhow!("a sender panicked"))??;
            }
            anyhow::Ok(())
        })?;
        let after = self.settled(&before)?;
        self.made.drops(&ruleset::difference(&before, &after))
    }

    /// True for drops by rules of the router; it also drops what nobody listens to.
    fn by_rules(&self, record: &Record) -> bool {
        record.is_drop()
            && record.netns() == Some(self.routed.router.inode())
            && FREED.contains(&record.function())
    }

    /// What the stream has said once all of so many drops are told. Too few is for the comparison to report.
    fn told(&self, stream: &Droptrace, dropped: u64) -> Output {
        let inode = self.routed.router.inode();
        let all = |output: &Output| output.tally.freed_by(inode, FREED) + output.tally.missed() >= dropped;
        let _ = stream.wait("all drops are told", all);
        stream.output()
    }
}
