//! `droptrace doctor`: what this kernel and node allow.

use crate::{
    cli::ProbesWhen,
    filter::Filter,
    netfilter::model::{Backend, Mechanism, Mechanisms, TableSummary},
    probe::{
        selftest::Proof,
        tracer::{Losses, Settings},
    },
    start::start,
    xdp,
};
use anyhow::Context as _;
use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write as _},
};

/// Rounds of the self-test in full: each drops a packet by every known rule and function, at both depths of the stack.
const ROUNDS: u32 = 100;

/// Prints what it finds; returns the exit code. With `self_test` the self-test is repeated [`ROUNDS`] times.
///
/// # Errors
/// What went wrong, for people: a wrong answer of the self-test, too.
pub fn run(self_test: bool, probes: ProbesWhen, arguments: &[OsString]) -> anyhow::Result<u8> {
    let settings = Settings { probes: probes == ProbesWhen::Always, ..Settings::default() };
    let mut stream = match start(&Filter::default(), settings, arguments)? {
        Ok(stream) => stream,
        Err(code) => return Ok(code),
    };
    let mut text = report(&stream.mechanisms(), &stream.tables());
    let xdp = xdp::read().map_err(|error| error.to_string());
    text.push_str(&xdp::report::report(xdp.as_deref().map_err(String::as_str)));
    let proof = if self_test { Some(stream.repeat_self_test(ROUNDS)) } else { None };
    if let Some(Ok(proof)) = &proof {
        text.push_str(&proof_words(*proof));
    }
    if settings.probes {
        text.push_str(&probe_words(&stream.tracer().losses()));
    }
    io::stdout().write_all(text.as_bytes())?;
    proof.transpose().context("the self-test in full")?;
    Ok(0)
}

fn proof_words(proof: Option<Proof>) -> String {
    let Some(Proof { drops, told }) = proof else {
        return "Self-test\n  no rule engine is loaded: there is nothing to learn from\n".to_owned();
    };
    let untold = drops - told;
    format!(
        "Self-test\n  {drops} drops by known rules and functions: {told} told, {untold} not told, 0 wrong\n"
    )
}

fn probe_words(losses: &Losses) -> String {
    let Losses { probe_agreed, probe_disagreed, probe_unseen, .. } = losses;
    format!(
        "Probes\n  {probe_agreed} answers of the stack and of the probes agreed, {probe_disagreed} did not; {probe_unseen} \
         drops were seen by the probes only\n"
    )
}

/// The report for people.
#[must_use]
pub fn report(mechanisms: &Mechanisms, tables: &[TableSummary]) -> String {
    let mut text = String::from("Which rule drops a packet\n");
    let parts = [
        ("nft rules", &mechanisms.nft_rules),
        ("nft policies", &mechanisms.nft_policies),
        ("iptables-legacy", &mechanisms.legacy),
        ("hook functions", &mechanisms.functions),
    ];
    for (what, mechanism) in parts {
        let told = match mechanism {
            Mechanism::Exact(how) => format!("exact: {how}"),
            Mechanism::Off(why) => format!("not told: {why}"),
        };
        let _ = writeln!(text, "  {what:<16} {told}");
    }
    if mechanisms.is_second_kept {
        text.push_str("  A second program that does nothing stays on the tracepoint, to keep the stack's depth as it is.\n");
    }
    text.push_str("Tables\n");
    if tables.is_empty() {
        text.push_str("  none in any network namespace\n");
    }
    for table in tables {
        let (backend, what, mechanism) = match table.backend {
            Backend::Legacy => ("legacy", "that can drop", &mechanisms.legacy),
            Backend::Nft => ("nft", "in all", &mechanisms.nft_rules),
        };
        let confidence = match mechanism {
            Mechanism::Exact(_) => "exact",
            Mechanism::Off(_) => "not told",
        };
        let name = crate::output::escape(&table.name);
        let _ = write!(
            text,
            "  netns {}  {backend:<6}  {:<6}  {name}: {confidence}; {} rules {what}",
            table.netns,
            table.family.name(),
            table.rules
        );
        if !table.left_out.is_empty() {
            let hooks = table.left_out.join(", ");
            let _ = write!(text, "; {hooks}: too many for their counters, evaluated and so inferred at best");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::model::Family;

    #[test]
    fn the_report_names_what_is_off_and_why() {
        let mechanisms = Mechanisms {
            nft_rules: Mechanism::Exact("registers"),
            nft_policies: Mechanism::Exact("registers"),
            legacy: Mechanism::Off("no such table here".into()),
            functions: Mechanism::Off("needs a legacy table to learn from".into()),
            is_second_kept: false,
        };
        let table = TableSummary {
            netns: 7,
            backend: Backend::Legacy,
            family: Family::Ipv4,
            name: "fil\x1bter".into(),
            rules: 9,
            left_out: vec!["FORWARD"],
        };
        let text = report(&mechanisms, &[table]);
        for part in [
            "  nft rules        exact: registers\n",
            "  iptables-legacy  not told: no such table here\n",
            "netns 7  legacy  ipv4    fil",
            ": not told; 9 rules that can drop; FORWARD: too many for their counters, ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let proof = proof_words(Some(Proof { drops: 40, told: 38 }));
        assert_eq!(
            proof,
            "Self-test\n  40 drops by known rules and functions: 38 told, 2 not told, 0 wrong\n"
        );
        assert!(!text.contains('\x1b'));
        assert!(report(&mechanisms, &[]).contains("none in any network namespace"));
    }
}
