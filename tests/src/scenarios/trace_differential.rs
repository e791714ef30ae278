//! Random tables, random packets: does `droptrace trace` tell the rules that the kernel's own TRACE tells?
//!
//! First droptrace follows the packets; then, in fresh network namespaces with the same rules, the same packets are sent again
//! and the kernel traces them. What droptrace told must be what the kernel tells, as far as it said that it is sure.
//! `DROPTRACE_SEED` and `DROPTRACE_SETS` choose other rule sets, and more.

use super::{alone, skip};
use crate::bed::backend::Backend;
use crate::bed::droptrace::{self, Droptrace};
use crate::bed::flood::pin;
use crate::bed::kernel;
use crate::bed::kernel_trace::{self, Ends, Log, Met, Monitor, Traced, What};
use crate::bed::listing::Listed;
use crate::bed::packet;
use crate::bed::patience;
use crate::bed::record::Record;
use crate::bed::send;
use crate::bed::tables::{self, Sent, Way, World};
use crate::bed::topology::{Family, Routed};
use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::Trial;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

pub(super) fn trials() -> Vec<Trial> {
    let backends = [Backend::IptablesNft, Backend::Legacy];
    let trial = |backend: Backend| {
        alone(format!("trace_differential::{}", backend.name()), move || differential(backend))
    };
    backends.map(trial).into()
}

/// The sets of a run that doesn't ask for others: always the same, and few, for they take a second each.
const SEED: u64 = 1;
const SETS: u64 = 12;
/// The same in an emulated machine.
const SETS_IN_VM: u64 = 3;
/// Packets of one rule set.
const PACKETS: u16 = 20;
/// Rule sets that are followed at once, each in a router of its own: the end of a packet's story takes a moment.
const BEDS: usize = 6;
/// How long that takes at least: droptrace begins to follow at most 500 packets a second on a CPU, and answers are packets, too.
const ROUND: Duration = Duration::from_millis(700);
/// The first kernel whose nft traces a rule that returns as a rule; those before tell it as the end of its chain.
const RETURNS_TRACED: (u32, u32) = (6, 5);
/// How long it takes at most until droptrace has read new rules.
const SETTLING: Duration = Duration::from_millis(300);
/// Of the steps that are told, so many must be told by the kernel, by counters or a probe, in hundredths.
const LEAST_EXACT: u64 = 90;
/// The first source port.
const FIRST_PORT: u16 = 1024;
/// Of all that the kernel tells, so much may be left out by droptrace as not known, in hundredths.
const MOST_UNSURE: u64 = 20;
/// Of all packets, so many must be compared at least, in hundredths: all that were sent, and of the answers those that can be told
/// from others.
const LEAST_PAIRED: u64 = 70;
/// Faults kept for the message.
const KEPT: usize = 8;

/// A number in the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn differential(backend: Backend) -> Result<()> {
    let seed = number("DROPTRACE_SEED").unwrap_or(SEED);
    let sets = number("DROPTRACE_SETS").unwrap_or(if kernel::in_vm() { SETS_IN_VM } else { SETS });
    let mut outcome = Outcome::default();
    for family in [Family::V4, Family::V6] {
        let began = Instant::now();
        let of_family = one_family(backend, family, seed, sets)
            .with_context(|| format!("{} {}, DROPTRACE_SEED={seed}", backend.name(), family.name()))?;
        eprintln!(
            "  {} {} DROPTRACE_SEED={seed}: {sets} rule sets, {of_family}; {:.1} s",
            backend.name(),
            family.name(),
            began.elapsed().as_secs_f32()
        );
        outcome.join(of_family);
    }
    outcome.verdict().with_context(|| format!("DROPTRACE_SEED={seed}"))
}

/// A rule set and its packets.
struct Set {
    seed: u64,
    text: String,
    packets: Vec<Sent>,
    /// Sent before them, and not compared: by it droptrace sees that there are other rules.
    first: Sent,
}

fn one_family(backend: Backend, family: Family, seed: u64, sets: u64) -> Result<Outcome> {
    let scratch = Routed::new()?;
    let (modules, missing) = tables::modules(&scratch.router, backend, family);
    if !missing.is_empty() {
        eprintln!(
            "  {} {}: left out, this kernel has no {}",
            backend.name(),
            family.name(),
            missing.join(", ")
        );
    }
    let world = World::new(&scratch, family, modules);
    check_kernel(backend, family, &scratch)?;
    drop(scratch);
    let set = |index: u64| {
        let seed = seed.wrapping_add(index);
        let first = FIRST_PORT + (index % 2000) as u16 * PACKETS;
        Set {
            seed,
            text: tables::tables(seed, &world),
            packets: tables::packets(seed, &world, first, PACKETS),
            first: tables::udp_packet(&world, FIRST_PORT - 1),
        }
    };
    let sets: Vec<Set> = (0..sets).map(set).collect();
    let told = follow(backend, family, &world, &sets)?;
    let traced = trace(backend, family, &world, &sets)?;
    let mut outcome = Outcome::default();
    for ((set, told), traced) in sets.iter().zip(&told).zip(&traced) {
        outcome.compare(backend, set, told, traced);
    }
    Ok(outcome)
}

/// Whether this kernel traces at all.
fn check_kernel(backend: Backend, family: Family, routed: &Routed) -> Result<()> {
    if let Err(error) = kernel_trace::trace_all(&routed.router) {
        return Err(skip(format!("nothing sets nf_trace here: {error:#}")));
    }
    if backend == Backend::Legacy {
        // The target's module brings the logger.
        let loaded = backend.load(&routed.router, family, "*raw\n-A OUTPUT -j TRACE\nCOMMIT\n");
        if let Err(error) = loaded {
            return Err(skip(format!("no TRACE target here: {error:#}")));
        }
        if let Err(error) = Log::open() {
            return Err(skip(format!("what netfilter logs in a network namespace can't be read: {error:#}")));
        }
    }
    Ok(())
}

/// A router that forwards and answers all there is to answer, at once.
fn bed(family: Family, world: &World) -> Result<Routed> {
    let routed = Routed::new()?;
    let mac = packet::mac_text(routed.client.end.mac());
    let mut batch = String::new();
    for source in &world.sources {
        writeln!(batch, "neigh replace {source} lladdr {mac} dev r0 nud permanent")?;
    }
    routed.router.feed("ip -batch -", &batch)?;
    for netns in [&routed.router, &routed.server.netns] {
        // Which errors are sent must not depend on the time.
        match family {
            Family::V4 => netns.sysctl("net.ipv4.icmp_ratemask", "0")?,
            Family::V6 => netns.sysctl("net.ipv6.icmp.ratelimit", "0")?,
        }
    }
    Ok(routed)
}

/// Runs on one CPU, so that packets are taken in the order in which they are sent.
fn on_cpu<T: Send>(cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || {
        pin(cpu);
        work()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join()).map_err(|_| anyhow!("a sender panicked"))?
}

fn send_one(routed: &Routed, sent: &Sent) -> Result<()> {
    match sent.way {
        Way::In => routed.client.inject(std::slice::from_ref(&sent.bytes)),
        Way::Out => routed.router.enter(|| send::packets(&[(sent.to, sent.bytes.clone())])),
    }
}

fn ends_of(sent: &Sent) -> Ends {
    let port = |address: std::net::SocketAddr, other: std::net::SocketAddr| {
        if address.port() == 0 || other.port() == 0 { 0 } else { address.port() }
    };
    Ends {
        source: (sent.from.ip(), port(sent.from, sent.to)),
        destination: (sent.to.ip(), port(sent.to, sent.from)),
    }
}

/// What droptrace told of a packet in the router.
#[derive(Debug, Default)]
struct Told {
    ends: Option<Ends>,
    /// With the hook.
    met: Vec<(String, Met)>,
    /// How many of them are exact.
    exact: u64,
    /// Hooks on which it said that it doesn't know all, and why.
    unsure: BTreeMap<String, String>,
    has_ended: bool,
}

impl Told {
    fn add(&mut self, step: &Record) -> Result<()> {
        if self.ends.is_none() {
            self.ends = ends_told(step);
        }
        let text = |name: &str| step.text(&format!("/netfilter/{name}"));
        let (Some("netfilter"), Some(hook)) = (step.text("/kind"), text("hook")) else { return Ok(()) };
        let (Some(table), Some(chain)) = (text("table"), text("chain")) else {
            if let Some(note) = step.text("/note") {
                self.unsure.insert(hook.to_owned(), note.to_owned());
            }
            return Ok(());
        };
        let what = match text("what") {
            Some("rule") => What::Rule,
            Some("return") => What::Return,
            Some("policy") => What::Policy,
            other => return Err(anyhow!("{other:?} is not known")),
        };
        let is_return = what == What::Rule && text("verdict") == Some("return");
        if is_return && text("backend") == Some("nft") && kernel::version() < RETURNS_TRACED {
            return Ok(());
        }
        let number = step.number("/netfilter/rule").context("no number")?;
        let met = Met { table: table.to_owned(), chain: chain.to_owned(), what, number };
        self.met.push((hook.to_owned(), met));
        self.exact += u64::from(step.text("/confidence") == Some("exact"));
        Ok(())
    }
}

fn ends_told(step: &Record) -> Option<Ends> {
    let end = |end: &str| {
        let address = step.text(&format!("/{end}/address"))?.parse().ok()?;
        let port = step.number(&format!("/{end}/port")).unwrap_or(0);
        Some((address, u16::try_from(port).ok()?))
    };
    Some(Ends { source: end("source")?, destination: end("destination")? })
}

/// What droptrace tells of the packets of each set, in order.
fn follow(backend: Backend, family: Family, world: &World, sets: &[Set]) -> Result<Vec<Vec<Told>>> {
    let beds = (0..BEDS).map(|_| bed(family, world)).collect::<Result<Vec<Routed>>>()?;
    // Not what the tools themselves ask the kernel.
    let packets = family.pick("10.0.0.0/8", "fd77::/16");
    let mut command = droptrace::command(&["trace", "-o", "json", "--offline", "--ip", packets])?;
    for bed in &beds {
        command.args(["--netns", &bed.router.inode().to_string()]);
    }
    let droptrace = Droptrace::spawn(command)?;
    droptrace.wait("packets are followed", |output| output.stderr.contains("following"))?;
    let mut all = Vec::new();
    for round in sets.chunks(BEDS) {
        let began = Instant::now();
        for (bed, set) in beds.iter().zip(round) {
            backend
                .load(&bed.router, family, &set.text)
                .with_context(|| format!("DROPTRACE_SEED={}:\n{}", set.seed, set.text))?;
        }
        for (bed, set) in beds.iter().zip(round) {
            send_one(bed, &set.first)?;
        }
        std::thread::sleep(SETTLING);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        for (index, (bed, set)) in beds.iter().zip(round).enumerate() {
            on_cpu(index % cpus, || set.packets.iter().try_for_each(|sent| send_one(bed, sent)))?;
        }
        all.extend(told(&droptrace, &beds[..round.len()], round)?);
        std::thread::sleep(ROUND.saturating_sub(began.elapsed()));
    }
    let output = droptrace.stop()?;
    let left_out =
        output.stderr.lines().find(|line| line.contains("not followed") || line.contains("were lost"));
    ensure!(left_out.is_none(), "{left_out:?}");
    Ok(all)
}

/// Waits until the stories of all packets that were sent have ended.
fn told(droptrace: &Droptrace, beds: &[Routed], sets: &[Set]) -> Result<Vec<Vec<Told>>> {
    let mut by_bed: Vec<BTreeMap<(u64, u32), Told>> = beds.iter().map(|_| BTreeMap::new()).collect();
    let deadline = Instant::now() + patience();
    loop {
        for record in droptrace.take_records() {
            let Some(packet) = record.text("/packet").and_then(|number| number.parse().ok()) else {
                continue;
            };
            if record.text("/type") == Some("end") {
                for (_, told) in
                    by_bed.iter_mut().flat_map(|bed| bed.range_mut((packet, 0)..=(packet, u32::MAX)))
                {
                    told.has_ended = true;
                }
                continue;
            }
            let netns = record.number("/netns");
            let bed = beds.iter().position(|bed| netns == Some(bed.router.inode().into()));
            if let Some(bed) = bed {
                let parts = &mut by_bed[bed];
                let last = parts.range((packet, 0)..=(packet, u32::MAX)).next_back();
                let part = last.map_or(0, |((_, part), _)| *part);
                // What the router sends to itself comes back as another packet, for the kernel's trace.
                let is_back =
                    record.text("/kind") == Some("device") && record.text("/interface_in") == Some("lo");
                let told = parts.entry((packet, part + u32::from(is_back))).or_default();
                told.add(&record).with_context(|| record.brief())?;
            }
        }
        let open: Vec<(u64, Vec<Ends>)> =
            by_bed.iter().zip(sets).map(|(told, set)| (set.seed, missing(told, set))).collect();
        if open.iter().all(|(_, ends)| ends.is_empty()) {
            return Ok(by_bed.into_iter().map(|told| told.into_values().collect()).collect());
        }
        if Instant::now() > deadline {
            return Err(anyhow!("stories don't end: {open:?}; {}", droptrace.output().stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The packets of a set whose stories have not ended.
fn missing(told: &BTreeMap<(u64, u32), Told>, set: &Set) -> Vec<Ends> {
    let mut ended: HashMap<&Ends, usize> = HashMap::new();
    for ends in told.values().filter(|told| told.has_ended).filter_map(|told| told.ends.as_ref()) {
        *ended.entry(ends).or_default() += 1;
    }
    let mut take = |ends: &Ends| match ended.get_mut(ends) {
        Some(count @ 1..) => {
            *count -= 1;
            true
        }
        _ => false,
    };
    set.packets.iter().map(ends_of).filter(|ends| !take(ends)).collect()
}

/// What the kernel tells of them.
fn trace(backend: Backend, family: Family, world: &World, sets: &[Set]) -> Result<Vec<Vec<Traced>>> {
    let routed = bed(family, world)?;
    kernel_trace::trace_all(&routed.router)?;
    let mut source = match backend {
        Backend::Legacy => Source::Log(Log::open()?),
        _ => Source::Monitor(Monitor::start(&routed, family)?),
    };
    let one = |set: &Set| {
        backend.load(&routed.router, family, &set.text)?;
        let listed = backend.list_with_handles(&routed.router, family)?;
        let mut lines = Vec::new();
        on_cpu(0, || {
            send_one(&routed, &set.first)?;
            for sent in &set.packets {
                send_one(&routed, sent)?;
                // The kernel's log is short.
                if let Source::Log(log) = &mut source {
                    lines.extend(log.lines()?);
                }
            }
            anyhow::Ok(())
        })?;
        let traced = match &mut source {
            Source::Log(log) => {
                // What a busy machine does a moment later.
                std::thread::sleep(Duration::from_millis(2));
                lines.extend(log.lines()?);
                kernel_trace::log(&lines, &|table, chain| rules(&listed, table, chain))
            }
            Source::Monitor(monitor) => kernel_trace::nft(&monitor.lines(&routed, family)?, &listed),
        };
        traced.with_context(|| format!("DROPTRACE_SEED={}", set.seed))
    };
    sets.iter().map(one).collect()
}

enum Source {
    Log(Log),
    Monitor(Monitor),
}

fn rules(listed: &[Listed], table: &str, chain: &str) -> u64 {
    listed.iter().filter(|rule| (&*rule.table, &*rule.chain) == (table, chain)).count() as u64
}

/// What comparing gave.
#[derive(Debug, Default)]
struct Outcome {
    /// Packets of which both told, and those of which only one did, or more than once.
    packets: u64,
    unpaired: u64,
    /// Steps on which both agree, and those of the kernel that droptrace said it doesn't know.
    steps: u64,
    unsure: u64,
    /// Steps that droptrace told in all, and those that it says are exact.
    told: u64,
    exact: u64,
    /// Why, by frequency.
    doubts: BTreeMap<String, u64>,
    fault_count: u64,
    faults: Vec<String>,
    /// The tables of the first.
    first: String,
}

impl Outcome {
    fn compare(&mut self, backend: Backend, set: &Set, told: &[Told], traced: &[Traced]) {
        let sent: HashSet<Ends> = set.packets.iter().map(ends_of).collect();
        let mut by_ends: BTreeMap<&Ends, (Vec<&Told>, Vec<&Traced>)> = BTreeMap::new();
        for told in told {
            if let Some(ends) = &told.ends {
                by_ends.entry(ends).or_default().0.push(told);
            }
        }
        for traced in traced {
            by_ends.entry(&traced.ends).or_default().1.push(traced);
        }
        by_ends.remove(&ends_of(&set.first));
        for (ends, (told, traced)) in by_ends {
            let is_sent = sent.contains(ends);
            // Answers that look alike may come in another order.
            let is_doubtful = !is_sent && (told.len() != 1 || traced.iter().any(|it| it.is_twin));
            if told.len() != traced.len() || is_doubtful {
                self.unpaired += told.len().max(traced.len()) as u64;
                if is_sent {
                    let told: Vec<String> =
                        told.iter().map(|it| brief(it.met.iter().map(|(_, met)| met))).collect();
                    let traced: Vec<String> = traced.iter().map(|it| brief(&it.met)).collect();
                    self.fault(set, &format!("{ends:?}:\n  told {told:#?}\n  traced {traced:#?}"));
                }
                continue;
            }
            for (told, traced) in told.into_iter().zip(traced) {
                self.packets += 1;
                self.told += told.met.len() as u64;
                self.exact += told.exact;
                match compare(backend, told, traced) {
                    Ok((steps, unsure)) => {
                        self.steps += steps;
                        self.unsure += unsure;
                        if unsure > 0 {
                            for note in told.unsure.values() {
                                *self.doubts.entry(doubt(note)).or_default() += 1;
                            }
                        }
                    }
                    Err(fault) => self.fault(
                        set,
                        &format!(
                            "{fault}: {ends:?}\n  told   {}\n  unsure {:?}\n  traced {}",
                            brief(told.met.iter().map(|(_, met)| met)),
                            told.unsure,
                            brief(&traced.met)
                        ),
                    ),
                }
            }
        }
    }

    fn fault(&mut self, set: &Set, what: &str) {
        self.fault_count += 1;
        if self.faults.len() < KEPT {
            self.faults.push(format!("DROPTRACE_SEED={} DROPTRACE_SETS=1: {what}", set.seed));
        }
        if self.first.is_empty() {
            self.first.clone_from(&set.text);
        }
    }

    fn join(&mut self, other: Self) {
        self.packets += other.packets;
        self.unpaired += other.unpaired;
        self.steps += other.steps;
        self.unsure += other.unsure;
        self.told += other.told;
        self.exact += other.exact;
        self.fault_count += other.fault_count;
        self.faults.extend(other.faults);
        self.faults.truncate(KEPT);
        if self.first.is_empty() {
            self.first = other.first;
        }
    }

    fn verdict(&self) -> Result<()> {
        let faults = self.faults.join("\n");
        ensure!(
            self.fault_count == 0,
            "{} wrong:\n{faults}\nthe tables of the first:\n{}",
            self.fault_count,
            self.first
        );
        ensure!(self.steps > 0, "nothing was compared");
        ensure!(
            self.unsure * 100 <= (self.steps + self.unsure) * MOST_UNSURE,
            "too much is not known: {self}"
        );
        ensure!(self.exact * 100 >= self.told * LEAST_EXACT, "too few steps are exact: {self}");
        ensure!(
            self.packets * 100 >= (self.packets + self.unpaired) * LEAST_PAIRED,
            "too many packets can't be compared: {self}"
        );
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = self.unsure as f64 * 100.0 / (self.steps + self.unsure).max(1) as f64;
        write!(
            f,
            "{} packets compared ({} not), {} steps, {} of {} exact, unsure {} ({share:.1} %), {} wrong",
            self.packets, self.unpaired, self.steps, self.exact, self.told, self.unsure, self.fault_count
        )?;
        let mut doubts: Vec<_> = self.doubts.iter().collect();
        doubts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (doubt, count) in doubts.into_iter().take(8) {
            write!(f, "\n    {count} x {doubt}")?;
        }
        Ok(())
    }
}

/// A note without the rule that it is about.
fn doubt(note: &str) -> String {
    let words =
        note.split(' ').map(|word| if word.contains(':') && !word.ends_with(':') { "RULE" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

fn brief<'a>(met: impl IntoIterator<Item = &'a Met>) -> String {
    let one = |met: &Met| {
        let what = format!("{:?}", met.what).to_lowercase();
        format!("{}:{}:{what}:{}", met.table, met.chain, met.number)
    };
    met.into_iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The hooks' names, which are those of base chains.
const BASES: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The steps on which both agree, and how many more the kernel has where droptrace said that it doesn't know all. `Err` says what
/// is wrong.
fn compare(backend: Backend, told: &Told, traced: &Traced) -> Result<(u64, u64), String> {
    // In the order in which the packet came to them: what it met in each table on each hook.
    let mut parts: Vec<((&str, &str), Vec<&Met>)> = Vec::new();
    for met in &traced.met {
        let key = match parts.last() {
            Some((last, _)) if !BASES.contains(&&*met.chain) => *last,
            _ => (&*met.chain, &*met.table),
        };
        match parts.last_mut() {
            Some((last, all)) if *last == key => all.push(met),
            _ => parts.push((key, vec![met])),
        }
    }
    // nf_tables doesn't trace the ends of chains on all kernels.
    let is_compared = |met: &Met| backend == Backend::Legacy || met.what != What::Return;
    let mut rest: Vec<&(String, Met)> = told.met.iter().filter(|(_, met)| is_compared(met)).collect();
    let (mut steps, mut unsure) = (0, 0);
    for (key, kernels) in parts {
        let (own, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|(hook, met)| (&**hook, &*met.table) == key);
        rest = others;
        let own: Vec<&Met> = own.into_iter().map(|(_, met)| met).collect();
        if !kernels.starts_with(&own) {
            return Err(format!("another way in {} on {}", key.1, key.0));
        }
        let left_out = kernels.len() - own.len();
        if left_out > 0 && !told.unsure.contains_key(key.0) {
            return Err(format!("not all is told of {} on {}, and not that it isn't known", key.1, key.0));
        }
        steps += own.len() as u64;
        unsure += left_out as u64;
    }
    match rest.first() {
        Some((hook, met)) => Err(format!("{} on {hook}, which the kernel doesn't have", brief([met]))),
        None => Ok((steps, unsure)),
    }
}
