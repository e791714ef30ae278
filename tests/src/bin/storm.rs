//! What a drop costs in a storm: bare, with bpftrace, and with droptrace, in turns.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use droptrace_tests::{
    bed,
    bench::{
        contender::Contender,
        figures::{self, Column, GOAL, median},
        load,
        machine::machine,
        program::{Runs, Stopwatch},
        startup,
        storm::Storm,
    },
};

/// Measures what a drop costs in a storm, with nobody watching, with bpftrace and with droptrace.
///
/// `DROPTRACE` is the path of the binary. The results are a Markdown table.
#[derive(Parser)]
#[command(name = "storm")]
struct Cli {
    /// Rounds; each has one storm for each contender
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Packets of one storm
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// The CPU that sends and drops
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Start no new round after this many seconds
    #[arg(long, default_value_t = 150)]
    seconds: u64,
    /// Only let the kernel take the time of the BPF programs: quick, and less disturbed by what else runs
    #[arg(long)]
    only_programs: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    bed::check_environment()?;
    bed::namespace::remove_stale();
    ensure!(cli.rounds > 0 && cli.packets > 0, "a storm needs rounds and packets");
    let mut contenders = vec![Contender::Bare];
    if has_bpftrace() {
        contenders.push(Contender::Bpftrace);
    } else {
        eprintln!(
            "storm: THERE IS NO BPFTRACE HERE: ITS COLUMN AND ALL RATIOS ARE MISSING (apt-get install bpftrace)"
        );
    }
    contenders.extend([Contender::Droptrace("json"), Contender::Droptrace("compact")]);

    let storm = Storm::new()?;
    let mut columns: Vec<Measured> = contenders.iter().map(|who| Measured::new(*who)).collect();
    let deadline = Instant::now() + Duration::from_secs(cli.seconds);
    storm.blow(cli.cpu, cli.packets / 10 + 1)?;
    if cli.only_programs {
        return print(&programs(cli, &columns, &storm)?);
    }
    let mut rounds = 0;
    while rounds == 0 || (rounds < cli.rounds && Instant::now() < deadline) {
        for step in 0..columns.len() {
            // Each contender comes first, second, ... equally often.
            let turn = (rounds + step) % columns.len();
            columns[turn].measure(&storm, cli)?;
        }
        rounds += 1;
        eprintln!("storm: round {rounds} of {}", cli.rounds);
    }
    print(&report(cli, rounds, &columns, &storm)?)
}

fn print(text: &str) -> Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("write the results")
}

fn has_bpftrace() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("bpftrace").is_file())
}

/// One contender and its rounds.
struct Measured {
    who: Contender,
    column: Column,
    /// CPU time of its process, in nanoseconds a packet.
    user: Vec<f64>,
}

impl Measured {
    fn new(who: Contender) -> Self {
        Self { who, column: Column { name: who.to_string(), rounds: Vec::new() }, user: Vec::new() }
    }

    fn measure(&mut self, storm: &Storm, cli: &Cli) -> Result<()> {
        let running = self.who.start().with_context(|| self.who.to_string())?;
        let pid = running.as_ref().map(|running| running.0.id());
        let before = pid.map(load::cpu_seconds).transpose()?;
        self.column.rounds.push(storm.blow(cli.cpu, cli.packets)?);
        let after = pid.map(load::cpu_seconds).transpose()?;
        if let (Some(before), Some(after)) = (before, after) {
            self.user.push((after - before) * 1e9 / cli.packets as f64);
        }
        Ok(())
    }

    /// What the kernel says that one run of its BPF program takes.
    fn program(&self, storm: &Storm, cli: &Cli) -> Result<Option<f64>> {
        let Some(running) = self.who.start()? else { return Ok(None) };
        let _measuring = Stopwatch::start()?;
        let before = Runs::of(running.0.id())?;
        storm.blow(cli.cpu, cli.packets)?;
        Ok(Runs::of(running.0.id())?.mean_since(&before))
    }
}

fn report(cli: &Cli, rounds: usize, measured: &[Measured], storm: &Storm) -> Result<String> {
    let columns: Vec<Column> = measured.iter().map(|one| one.column.clone()).collect();
    let yardstick = measured.iter().position(|one| one.who == Contender::Bpftrace);
    let mut text = format!(
        "{}\n\n{rounds} rounds of {} packets each, one sender on CPU {}, veth, `iptables-legacy -A INPUT -j DROP`.\n\n{}\n",
        machine(),
        cli.packets,
        cli.cpu,
        figures::table(&columns, yardstick)
    );
    for one in measured {
        if matches!(one.who, Contender::Droptrace(_)) {
            let user = median(&one.user);
            text += &format!("- `{}`: its process used {user:.0} ns of another CPU for a packet.\n", one.who);
        }
    }
    let mut first = (0..5).map(|_| startup::first_event(storm)).collect::<Result<Vec<_>>>()?;
    first.sort();
    let first = first[first.len() / 2];
    let (resident, anonymous) = startup::idle_memory()?;
    text += &format!(
        "- From start to the first printed event: {} ms (median of 5).\n\
         - Idle: {:.1} MB resident, {:.1} MB of it anonymous.\n",
        first.as_millis(),
        resident as f64 / 1e6,
        anonymous as f64 / 1e6
    );
    let json = measured.iter().position(|one| one.who == Contender::Droptrace("json"));
    if let (Some(yardstick), Some(json)) = (yardstick, json) {
        let ratio = figures::ratio(&columns[json], &columns[yardstick], &columns[0]);
        let verdict = if ratio <= GOAL { "met" } else { "MISSED" };
        text += &format!("- Goal, at most {GOAL} times what bpftrace adds: {verdict} ({ratio:.2}).\n");
    }
    text += "\nOf that the BPF program itself, as the kernel measures it (which adds to it):\n\n";
    text += &programs(cli, measured, storm)?;
    Ok(text)
}

fn programs(cli: &Cli, measured: &[Measured], storm: &Storm) -> Result<String> {
    let mut text = String::from("| | ns a run |\n|---|---:|\n");
    for one in measured {
        if let Some(mean) = one.program(storm, cli)? {
            text += &format!("| {} | {mean:.0} |\n", one.who);
        }
    }
    Ok(text)
}
