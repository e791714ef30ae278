//! `droptrace doctor`: what is wrong with this node, what was dropped before droptrace began, and what this kernel, the
//! privileges and the container let droptrace tell.
//!
//! ```text
//! gather   asks the system: facts, counters, rules, the cluster
//! facts    what was gathered, plain data; rules: tables of rules as data
//! check    facts → findings, a file for each family of misconfigurations
//! dropped  counters at two moments → rows
//! system   what the system allows → lines
//! words    the report for people
//! json     the report for programs
//! ```

pub mod check;
pub mod dropped;
pub mod facts;
pub mod gather;
pub mod json;
pub mod model;
pub mod rules;
pub mod system;
pub mod words;

use crate::{
    filter::Filter,
    identity::sources,
    netfilter::model::{Backend, Mechanism, Mechanisms, Netfilter, TableSummary},
    probe::{environment, tracer::Settings as Probes},
    start::start,
    stream::Stream,
    xdp,
};
use anyhow::Context as _;
use dropped::Reading;
use facts::{Facts, Offload, OffloadKind};
use gather::{counters::Count, names::Names, rules::Rules};
use model::{Report, Table, Unread};
use rules::Id;
use std::{
    ffi::OsString,
    io::{self, Write as _},
    thread,
    time::{Duration, Instant},
};

/// Rounds of the self-test in full: each drops a packet by every known rule and function, at both depths of the stack.
const ROUNDS: u32 = 100;
/// Between the two looks at counters.
const APART: Duration = Duration::from_secs(2);
/// Exit code where something is wrong with the node.
pub const MISCONFIGURED: u8 = 4;

/// The form of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON object a line: see `droptrace schema`
    #[value(alias = "jsonl")]
    Json,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Repeat the self-test many times.
    pub self_test: bool,
    /// Run on packets that are not dropped, too.
    pub probes: bool,
    /// The form.
    pub format: Format,
    /// Where names come from.
    pub names: sources::Options,
}

/// One look at counters and rules.
struct Look {
    at: Instant,
    facts: Facts,
    counts: Vec<Count>,
    unread: Vec<Unread>,
}

impl Look {
    fn take(known: &[Table], stream: Option<&Stream>) -> Self {
        let mut unread = Vec::new();
        let mut facts = gather::facts(&mut unread);
        let counts = gather::counts();
        let ids = gather::ids(known);
        let Rules { mut tables, unread: of_rules } = gather::rules::read(&ids);
        if tables.len() < ids.len() {
            let counted = stream.map(Stream::counted_rules).unwrap_or_default();
            tables.extend(unprinted(&ids, &tables, &counted));
        }
        unread.extend(of_rules);
        facts.offloads.extend(flowtables(&tables, facts.netns));
        facts.tables = tables;
        Self { at: Instant::now(), facts, counts, unread }
    }

    fn reading(&self) -> Reading<'_> {
        Reading { counts: &self.counts, tables: &self.facts.tables }
    }
}

/// The tables that no tool printed, as far as the kernel itself tells of them.
fn unprinted(ids: &[Id], printed: &[rules::Table], counted: &[(u32, Netfilter, u64)]) -> Vec<rules::Table> {
    let is_printed = |id: &Id| {
        let is_it = |table: &rules::Table| {
            (table.netns, table.backend, table.family, &table.name)
                == (id.netns, id.backend, id.family, &id.name)
        };
        printed.iter().any(is_it)
    };
    let of_one = |id: &Id| {
        let is_its = |netns: u32, place: &Netfilter| {
            let (backend, family) = (Some(id.backend), Some(id.family));
            netns == id.netns
                && (place.backend, place.family, place.table.as_deref()) == (backend, family, Some(&id.name))
        };
        let own = counted.iter().filter(|(netns, place, _)| is_its(*netns, place));
        rules::Table::counted(id, &own.map(|(_, place, packets)| (place, *packets)).collect::<Vec<_>>())
    };
    ids.iter().filter(|id| !is_printed(id)).map(of_one).collect()
}

/// The flowtables of a network namespace.
fn flowtables(tables: &[rules::Table], netns: u32) -> Vec<Offload> {
    let own = tables.iter().filter(|table| table.netns == netns);
    let offload = |(name, interfaces, is_hardware): &(String, Vec<String>, bool)| Offload {
        kind: if *is_hardware { OffloadKind::HardwareFlowtable } else { OffloadKind::Flowtable },
        name: format!("flowtable {name}"),
        interfaces: interfaces.clone(),
    };
    own.flat_map(|table| &table.flowtables).map(offload).collect()
}

/// Prints what it finds; returns the exit code: 3 where droptrace can't work here, else 4 where something is wrong with the
/// node.
///
/// # Errors
/// What went wrong, for people: a wrong answer of the self-test, too.
pub fn run(settings: &Settings, arguments: &[OsString]) -> anyhow::Result<u8> {
    // They begin first: much of what they tell has come when it is needed.
    let mut names = Names::ask(settings.names.clone());
    let system = environment::Facts::gather().context("can't find out what this system allows")?;
    // After the sources have begun: they reach the API server from where droptrace is.
    let elsewhere = gather::enter_node().err();
    let mut report = Report::default();
    let probes = Probes { probes: settings.probes, verbose: 0 };
    // What can be said of the node without is said, too.
    let started = start(&Filter::default(), probes, arguments);
    let (mut stream, mut ended) = match started {
        Ok(Ok(stream)) => (Some(stream), Ok(0)),
        Ok(Err(code)) => (None, Ok(code)),
        Err(error) => (None, Err(error)),
    };
    if let Some(stream) = &stream {
        let mechanisms = stream.mechanisms();
        report.tables = tables(&mechanisms, stream.tables());
        report.rules = system::rules(&mechanisms);
    }
    let before = Look::take(&report.tables, stream.as_ref());
    report.xdp = xdp::read().map_err(|error| error.to_string());
    if let Some(stream) = &mut stream
        && let Err(error) = self_test(settings, stream, &mut report)
    {
        ended = Err(error);
    }
    let node = environment::node_name();
    names.wait(before.at + APART);
    let cluster = names.cluster(&node);
    thread::sleep(APART.saturating_sub(before.at.elapsed()));
    let mut after = Look::take(&report.tables, stream.as_ref());
    after.facts.cluster.clone_from(&cluster);
    let before = Look { facts: Facts { cluster, ..before.facts }, ..before };
    report.system = system::lines(&system, &gather::surroundings(&after.facts));
    report.dropped =
        dropped::rows(after.facts.netns, before.reading(), after.reading(), after.at - before.at);
    for row in &mut report.dropped {
        row.pod = row.netns.and_then(|netns| names.pod_in(netns));
    }
    report.findings = check::lasting(&before.facts, &after.facts);
    let mut unread = names.unread();
    unread.extend(after.unread.iter().cloned());
    unread.extend(elsewhere);
    unread.extend(gather::unread_cilium());
    unread.extend(after.facts.cluster.as_ref().and_then(|_| check::unjudged(&after.facts)));
    unread.extend(uncounted(&after.facts.tables));
    report.unread = unread;
    let printed = match settings.format {
        Format::Text => words::text(&report),
        Format::Json => json::lines(&report),
    };
    io::stdout().write_all(printed.as_bytes())?;
    Ok(match ended? {
        0 if report.has_misconfiguration() => MISCONFIGURED,
        code => code,
    })
}

fn self_test(settings: &Settings, stream: &mut Stream, report: &mut Report) -> anyhow::Result<()> {
    if settings.self_test {
        report.proof = Some(stream.repeat_self_test(ROUNDS).context("the self-test in full")?);
    }
    if settings.probes {
        report.probes = Some(stream.tracer().losses());
    }
    Ok(())
}

/// Rules that nothing counts.
fn uncounted(tables: &[rules::Table]) -> Option<Unread> {
    let count = dropped::uncounted(tables);
    (count > 0).then(|| Unread {
        what: format!("{count} rules and policies of nft that can drop"),
        why: "they have no counter: what they dropped before is not known; from now on `droptrace` shows it"
            .to_owned(),
    })
}

/// The tables, with how their drops are told.
fn tables(mechanisms: &Mechanisms, tables: Vec<TableSummary>) -> Vec<Table> {
    let is_exact = |mechanism: &Mechanism| matches!(mechanism, Mechanism::Exact(_));
    let table = |table: TableSummary| Table {
        exact: is_exact(match table.backend {
            Backend::Legacy => &mechanisms.legacy,
            Backend::Nft => &mechanisms.nft_rules,
        }),
        netns: table.netns,
        backend: table.backend,
        family: table.family,
        name: table.name,
        rules: table.rules,
        left_out: table.left_out,
    };
    tables.into_iter().map(table).collect()
}
