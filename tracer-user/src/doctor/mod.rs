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
//! texts    what findings say, in English and Chinese (texts.toml)
//! ```

pub mod check;
pub mod dropped;
pub mod facts;
pub mod gather;
pub mod json;
pub mod model;
pub mod rules;
pub mod system;
pub mod texts;
pub mod words;

use crate::{
    cause::Language,
    filter::Filter,
    identity::sources,
    netfilter::model::{Backend, Mechanism, Mechanisms, TableSummary},
    probe::{environment, tracer::Settings as Probes},
    start::start,
    stream::Stream,
    xdp,
};
use anyhow::Context as _;
use gather::{look::Look, names::Names};
use model::{Report, Table, Unread};
use std::{
    ffi::OsString,
    io::{self, Write as _},
    thread,
    time::Duration,
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
    /// The language of what is found.
    pub language: Language,
    /// Where names come from.
    pub names: sources::Options,
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
    let (mut stream, mut ended) = attach(settings, arguments);
    let mut report = Report::default();
    if let Some(stream) = &stream {
        let mechanisms = stream.mechanisms();
        report.tables = tables(&mechanisms, stream.tables());
        report.rules = system::rules(&mechanisms);
    }
    let before = Look::take(&report.tables, stream.as_ref());
    if let Some(stream) = &mut stream
        && let Err(error) = self_test(settings, stream, &mut report)
    {
        ended = Err(error);
    }
    names.wait(before.at + APART);
    thread::sleep(APART.saturating_sub(before.at.elapsed()));
    let after = Look::take(&report.tables, stream.as_ref());
    report.system = system::lines(&system, &gather::surroundings(&after.facts));
    report.system.push(system::tracepoint(stream.as_ref().map(Stream::missing_fields)));
    report.unread.extend(elsewhere);
    judge(&mut report, before, after, &names);
    let printed = match settings.format {
        Format::Text => words::text(&report, settings.language),
        Format::Json => json::lines(&report, settings.language),
    };
    io::stdout().write_all(printed.as_bytes())?;
    Ok(match ended? {
        0 if report.has_misconfiguration() => MISCONFIGURED,
        code => code,
    })
}

/// Starts the kernel half; what can be said of the node without is said, too, so a failure does not end it yet.
fn attach(settings: &Settings, arguments: &[OsString]) -> (Option<Stream>, anyhow::Result<u8>) {
    let probes = Probes { probes: settings.probes, ..Probes::default() };
    match start(&Filter::default(), probes, arguments) {
        Ok(Ok(stream)) => (Some(stream), Ok(0)),
        Ok(Err(code)) => (None, Ok(code)),
        Err(error) => (None, Err(error)),
    }
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

/// Says what two looks tell, together with the names.
fn judge(report: &mut Report, mut before: Look, mut after: Look, names: &Names) {
    let cluster = names.cluster(&environment::node_name());
    before.facts.cluster.clone_from(&cluster);
    after.facts.cluster = cluster;
    report.findings = check::lasting(&before.facts, &after.facts);
    let between = after.at - before.at;
    report.dropped = dropped::rows(after.facts.netns, before.reading(), after.reading(), between);
    for row in &mut report.dropped {
        row.pod = row.netns.and_then(|netns| names.pod_in(netns));
    }
    report.unread.extend(names.unread());
    report.unread.append(&mut after.unread);
    report.unread.extend(gather::unread_cilium());
    report.unread.extend(after.facts.cluster.as_ref().and_then(|_| check::unjudged(&after.facts)));
    report.unread.extend(uncounted(&after.facts.tables));
    report.xdp = after.programs.map(|now| xdp::report::since(&before.programs.unwrap_or_default(), now));
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
