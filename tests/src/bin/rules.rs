//! What rules cost: packets that pass them and packets that they drop, with droptrace off and on, in turns.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use droptrace_tests::{
    bed::{
        self,
        backend::Backend,
        droptrace::{Droptrace, command as droptrace},
        flood,
    },
    bench::{
        delivery::Delivery,
        figures::median,
        machine,
        rounds::{self, Budget, DROP_HEAD, HEALTHY_HEAD, Rounds},
        rules::Shape,
        startup,
        storm::Storm,
        watcher::{Drops, Watcher},
    },
};

/// Measures what packets cost in namespaces with many rules, with droptrace off and on: those that pass, and those that
/// are dropped. And how long droptrace takes to read the largest rule sets.
///
/// `DROPTRACE` is the path of the binary. The results are Markdown tables.
#[derive(Parser)]
#[command(name = "rules")]
struct Cli {
    /// Measure only this (may be repeated)
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Rounds of a measurement; each has droptrace off and on
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Packets of a round that pass the rules
    #[arg(long, default_value_t = 50_000)]
    packets: u64,
    /// Packets of a round that are dropped
    #[arg(long, default_value_t = 200_000)]
    drops: u64,
    /// Rules that packets pass, and legacy rules that can't drop
    #[arg(long, default_value_t = 1_000)]
    rules: usize,
    /// Rules of the largest rule sets
    #[arg(long, default_value_t = 100_000)]
    most: usize,
    /// Times that the largest rule sets are read
    #[arg(long, default_value_t = 3)]
    readings: usize,
    /// The CPU that sends, passes rules, drops and receives
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The CPU of everything else, droptrace too
    #[arg(long, default_value_t = 1)]
    other_cpu: usize,
    /// Start no new round after this many seconds; the last part, reading, takes some more
    #[arg(long, default_value_t = 140)]
    seconds: u64,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Packets that pass
    Healthy,
    /// Packets that are dropped
    Drops,
    /// Packets that pass while a trace is armed for others
    Trace,
    /// The time that reading the largest rule sets takes
    Reading,
}

/// Legacy rules that can drop.
const DROP_CAPABLE: [usize; 4] = [1, 16, 128, 1024];
/// The mode that runs on packets that are not dropped.
const PROBES: [&str; 2] = ["--probes", "always"];
/// What the smaller nft rule sets have.
const NFT_RULES: [usize; 2] = [10, 1_000];
/// Of the largest legacy rule set: more than droptrace compares would leave the drop without its rule.
const FEW: usize = 128;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rules: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    bed::check_environment()?;
    bed::namespace::remove_stale();
    ensure!(
        cli.rounds > 0
            && cli.packets > 0
            && cli.drops > 0
            && cli.rules > 0
            && cli.most > 0
            && cli.readings > 0,
        "a measurement needs rounds, packets and rules"
    );
    let machine = machine::machine();
    // Programs and threads that are started inherit it; senders choose their own.
    flood::pin(cli.other_cpu);
    let has = |part| cli.only.is_empty() || cli.only.contains(&part);
    let healthy_rows = if has(Part::Healthy) { 2 * Backend::ALL.len() } else { 0 };
    let drop_rows = if has(Part::Drops) { DROP_CAPABLE.len() + NFT_RULES.len() + 1 } else { 0 };
    let rows = healthy_rows + drop_rows + usize::from(has(Part::Trace));
    let mut budget = Budget::new(Duration::from_secs(cli.seconds), u32::try_from(rows)?);
    print(&format!(
        "{machine}; `{}`.\nAll packets on CPU {}, droptrace on CPU {}, veth.\n",
        machine::command_line(),
        cli.cpu,
        cli.other_cpu
    ))?;
    if has(Part::Healthy) {
        healthy(cli, &mut budget)?;
    }
    if has(Part::Drops) {
        drops(cli, &mut budget)?;
    }
    if has(Part::Trace) {
        trace(cli, &mut budget)?;
    }
    if has(Part::Reading) {
        reading(cli)?;
    }
    Ok(())
}

fn print(text: &str) -> Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("write the results")
}

/// Packets that pass all rules, half of which could drop.
fn healthy(cli: &Cli, budget: &mut Budget) -> Result<()> {
    print(&format!(
        "\nDelivered through {} rules, nothing dropped; at most {} rounds of {} packets.\n\n{HEALTHY_HEAD}",
        cli.rules, cli.rounds, cli.packets
    ))?;
    let has_probes = droptrace(&["doctor", PROBES[0], PROBES[1]])?.output()?.status.code() != Some(3);
    let plain = Backend::ALL.map(|backend| (backend, &[][..]));
    let probed = Backend::ALL.map(|backend| (backend, &PROBES[..]));
    for (backend, arguments) in plain.into_iter().chain(probed.into_iter().filter(|_| has_probes)) {
        let shape = Shape { backend, rules: cli.rules, drop_capable: cli.rules.div_ceil(2) };
        let storm = load(shape)?;
        let delivery = Delivery::new(&storm)?;
        let rounds = Rounds::run(cli.rounds, budget.next_end(), |on| {
            let watcher = on.then(|| Watcher::start(&storm, arguments)).transpose()?;
            delivery.run(cli.cpu, warm_up(cli.packets))?;
            let took = delivery.run(cli.cpu, cli.packets)?;
            if let Some(watcher) = watcher {
                watcher.stop()?;
            }
            Ok(took)
        })?;
        let name = [&[backend.name()], arguments].concat().join(" ");
        print(&rounds::healthy_row(&name, &rounds))?;
    }
    if !has_probes {
        print("\n`--probes always` is not measured: this kernel allows no probes.\n")?;
    }
    Ok(())
}

/// Packets that the first rule drops, before others that they don't reach.
fn drops(cli: &Cli, budget: &mut Budget) -> Result<()> {
    print(&format!(
        "\nDropped by the first rule; at most {} rounds of {} packets.\n\n{DROP_HEAD}",
        cli.rounds, cli.drops
    ))?;
    let legacy = DROP_CAPABLE.map(|drop_capable| Shape {
        backend: Backend::Legacy,
        rules: drop_capable + cli.rules,
        drop_capable,
    });
    let nft = NFT_RULES.into_iter().chain([cli.most]).map(nft);
    for shape in legacy.into_iter().chain(nft) {
        let storm = load(shape)?;
        let mut seen = Drops::default();
        let rounds = Rounds::run(cli.rounds, budget.next_end(), |on| {
            let watcher = on.then(|| Watcher::start(&storm, &[])).transpose()?;
            storm.blow(cli.cpu, warm_up(cli.drops))?;
            let took = storm.blow(cli.cpu, cli.drops)?;
            if let Some(watcher) = watcher {
                let drops = watcher.stop()?;
                seen = Drops { all: seen.all + drops.all, named: seen.named + drops.named };
            }
            Ok(took)
        })?;
        let named = seen.named as f64 / seen.all as f64;
        print(&rounds::drop_row(shape.backend.name(), (shape.rules, shape.drop_capable), &rounds, named))?;
    }
    Ok(())
}

/// Packets that don't match the filter of a trace, on their way through few rules, so that the trace is much of what they cost.
fn trace(cli: &Cli, budget: &mut Budget) -> Result<()> {
    const RULES: usize = 10;
    let storm = load(Shape { backend: Backend::Legacy, rules: RULES, drop_capable: RULES })?;
    let delivery = Delivery::new(&storm)?;
    let mut mechanism = String::new();
    let rounds = Rounds::run(cli.rounds, budget.next_end(), |on| {
        let armed = on.then(|| {
            let armed =
                Droptrace::spawn(droptrace(&["trace", "--offline", "-o", "json", "--ip", "192.0.2.77"])?)?;
            armed.wait("packets are followed", |output| output.stderr.contains(FOLLOWING))?;
            anyhow::Ok(armed)
        });
        let armed = armed.transpose()?;
        delivery.run(cli.cpu, warm_up(cli.packets))?;
        let took = delivery.run(cli.cpu, cli.packets)?;
        if let Some(armed) = armed {
            let said = armed.stop()?.stderr;
            let line = said.lines().find(|line| line.contains(FOLLOWING)).unwrap_or_default();
            mechanism = line.split_once(": ").map_or_else(String::new, |(_, by)| by.to_owned());
        }
        Ok(took)
    })?;
    print(&format!(
        "\nDelivered through {RULES} rules while a trace of other packets is armed ({mechanism}); at most {} rounds of {} packets.\n\n\
         {HEALTHY_HEAD}{}",
        cli.rounds,
        cli.packets,
        rounds::healthy_row("legacy", &rounds)
    ))
}

/// What droptrace says once a trace is armed.
const FOLLOWING: &str = "following packets";

/// How long droptrace takes from its start to a drop in a large rule set, and what memory.
fn reading(cli: &Cli) -> Result<()> {
    print(&format!(
        "\nFrom droptrace's start to a printed drop, and its memory then; median of {}.\n\n\
         | | rules | can drop | first drop, ms | first with its rule, ms | resident, MB | anonymous, MB |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
        cli.readings
    ))?;
    let legacy = Shape { backend: Backend::Legacy, rules: cli.most, drop_capable: FEW.min(cli.most) };
    for shape in [nft(cli.most), legacy] {
        let storm = load(shape)?;
        let read: Vec<_> =
            (0..cli.readings).map(|_| startup::read_rules(&storm)).collect::<Result<Vec<_>>>()?;
        let of = |value: fn(&startup::Reading) -> f64| median(&read.iter().map(value).collect::<Vec<_>>());
        let named: Option<Vec<f64>> =
            read.iter().map(|one| one.named.map(|time| time.as_secs_f64() * 1e3)).collect();
        print(&format!(
            "| {} | {} | {} | {:.0} | {} | {:.1} | {:.1} |\n",
            shape.backend.name(),
            shape.rules,
            shape.drop_capable,
            of(|one| one.event.as_secs_f64() * 1e3),
            named.map_or_else(|| "not in time".to_owned(), |times| format!("{:.0}", median(&times))),
            of(|one| one.resident as f64 / 1e6),
            of(|one| one.anonymous as f64 / 1e6),
        ))?;
    }
    Ok(())
}

/// Packets that are sent before the measured ones: starting and stopping droptrace leaves cold caches, and not to both
/// sides alike.
fn warm_up(packets: u64) -> u64 {
    (packets / 10).max(2_000)
}

/// So many nft rules, half of which can drop.
fn nft(rules: usize) -> Shape {
    Shape { backend: Backend::Nft, rules, drop_capable: rules.div_ceil(2) }
}

/// Makes the namespaces with these rules.
fn load(shape: Shape) -> Result<Storm> {
    let began = Instant::now();
    let storm = Storm::with_rules(shape.backend, &shape.text())
        .with_context(|| format!("load {} rules ({})", shape.rules, shape.backend.name()))?;
    let took = began.elapsed().as_millis();
    eprintln!("rules: {}: {} rules loaded in {took} ms", shape.backend.name(), shape.rules);
    Ok(storm)
}
