//! The report for people: what is wrong first, then what was lost before, then what droptrace can tell here. All that
//! comes from outside is escaped.

use super::model::{Counter, Dropped, Finding, Mechanism, Report, State, Table};
use crate::cause::Language;
use crate::netfilter::model::Backend;
use crate::output::escape;
use crate::output::words::thousands;
use crate::probe::{selftest::Proof, tracer::Losses};
use crate::xdp;
use std::fmt::Write as _;

/// Counters that are told; the rest is counted.
const TOLD: usize = 30;
/// Letters of a rule that are shown.
const LONGEST: usize = 400;

/// The text; what is found is told in that language.
#[must_use]
pub fn text(report: &Report, language: Language) -> String {
    let mut text = String::new();
    findings(&mut text, &report.findings, language);
    dropped(&mut text, report);
    if !report.unread.is_empty() {
        text.push_str("Not looked at\n");
        for unread in &report.unread {
            let _ = writeln!(text, "  {}: {}", escape(&unread.what), escape(&unread.why));
        }
    }
    mechanisms(&mut text, "This system", &report.system);
    mechanisms(&mut text, "Which rule drops a packet", &report.rules);
    tables(&mut text, &report.tables);
    let programs = report.xdp.as_ref().map(Vec::as_slice).map_err(String::as_str);
    text.push_str(&xdp::report::report(programs));
    if let Some(proof) = report.proof {
        text.push_str(&proof_words(proof));
    }
    if let Some(losses) = &report.probes {
        text.push_str(&probe_words(losses));
    }
    text
}

fn findings(text: &mut String, findings: &[Finding], language: Language) {
    text.push_str("Findings\n");
    if findings.is_empty() {
        text.push_str("  none: nothing that is known to go wrong was found\n");
    }
    for finding in findings {
        let Finding { id, severity, text: said, evidence, netns, interface } = finding;
        let _ = writeln!(text, "  {}  {id}: {}", severity.name(), escape(&said.title(language)));
        let known: Vec<_> = evidence
            .iter()
            .map(|it| format!("{} = {} ({})", escape(&it.name), escape(&it.value), escape(&it.source)))
            .collect();
        let mut places = Vec::new();
        places.extend(netns.map(|netns| format!("netns {netns}")));
        places.extend(interface.as_deref().map(|name| escape(name).into_owned()));
        if !places.is_empty() {
            let _ = writeln!(text, "    where: {}", places.join(", "));
        }
        for line in known {
            let _ = writeln!(text, "    seen: {line}");
        }
        let _ = writeln!(text, "    fix: {}", escape(&said.fix(language)));
    }
}

fn dropped(text: &mut String, report: &Report) {
    text.push_str("Already dropped\n");
    if report.dropped.is_empty() {
        text.push_str("  nothing that anybody counted\n");
    }
    for dropped in report.dropped.iter().take(TOLD) {
        text.push_str(&counted(dropped));
    }
    let left_out = report.dropped.len().saturating_sub(TOLD);
    if left_out > 0 {
        let _ = writeln!(text, "  and {left_out} counters more: -o json has all");
    }
}

/// `  9,157  +12 now, 6.0/s  filter:INPUT:rule:1 (netns 4026531840, owner unknown, iptables-legacy-save -c): -A INPUT ...`
fn counted(dropped: &Dropped) -> String {
    let rate = match (dropped.more, dropped.rate) {
        (Some(0), _) => "+0 now".to_owned(),
        (Some(more), Some(rate)) => format!("+{} now, {rate:.1}/s", thousands(more)),
        _ => "not read again".to_owned(),
    };
    let mut about = Vec::new();
    about.extend(dropped.pod.as_deref().map(|pod| format!("pod {}", escape(pod))));
    about.extend(dropped.netns.map(|netns| format!("netns {netns}")));
    about.extend(dropped.owner.as_deref().map(|owner| format!("owner {}", escape(owner))));
    about.push(escape(&dropped.source).into_owned());
    let name = escape(&dropped.name);
    let mut line = format!("  {:>12}  {rate:<18}  {name} ({})", thousands(dropped.count), about.join(", "));
    if let Some(text) = &dropped.text {
        let is_rule = matches!(dropped.by, Counter::Rule | Counter::Policy);
        let shown: String = text.chars().take(LONGEST).collect();
        let cut = if shown.len() < text.len() && is_rule { " ..." } else { "" };
        let _ = write!(line, ": {}{cut}", escape(&shown));
    }
    line.push('\n');
    line
}

fn mechanisms(text: &mut String, title: &str, lines: &[Mechanism]) {
    let _ = writeln!(text, "{title}");
    for line in lines {
        let mark = match line.state {
            State::Works => "",
            State::Limited if line.fix.is_some() => "limited: ",
            State::Off if line.fix.is_some() => "missing: ",
            _ => "",
        };
        let _ = write!(text, "  {:<16} {mark}{}", line.name, line.says);
        if let Some(fix) = &line.fix {
            let _ = write!(text, "; {fix}");
        }
        text.push('\n');
    }
}

fn tables(text: &mut String, tables: &[Table]) {
    text.push_str("Tables\n");
    if tables.is_empty() {
        text.push_str("  none in any network namespace\n");
    }
    for table in tables {
        let (backend, what) = match table.backend {
            Backend::Legacy => ("legacy", "that can drop"),
            Backend::Nft => ("nft", "in all"),
        };
        let confidence = if table.exact { "exact" } else { "not told" };
        let (family, name) = (table.family.name(), escape(&table.name));
        let _ = write!(
            text,
            "  netns {}  {backend:<6}  {family:<6}  {name}: {confidence}; {} rules {what}",
            table.netns, table.rules
        );
        if !table.left_out.is_empty() {
            let hooks = table.left_out.join(", ");
            let _ = write!(text, "; {hooks}: too many for their counters, evaluated and so inferred at best");
        }
        text.push('\n');
    }
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

#[cfg(test)]
mod tests {
    use super::super::model::{Severity, evidence};
    use super::super::texts::Text;
    use super::*;
    use crate::netfilter::model::Family;

    fn dropped_by(name: &str, count: u64, more: Option<u64>) -> Dropped {
        Dropped {
            by: Counter::Rule,
            netns: Some(7),
            pod: Some("shop/cart".to_owned()),
            name: name.to_owned(),
            text: Some("-A INPUT\x1b -j DROP".to_owned()),
            owner: Some("docker".to_owned()),
            source: "iptables-legacy-save".to_owned(),
            count,
            more,
            rate: more.map(|more| more as f64 / 2.0),
        }
    }

    #[test]
    fn the_report_names_what_is_off_and_why() {
        let line = |name, says: &str| Mechanism { name, state: State::Off, says: says.to_owned(), fix: None };
        let report = Report {
            system: vec![Mechanism { fix: Some("reboot".to_owned()), ..line("kernel", "too old") }],
            rules: vec![line("iptables-legacy", "not told: no such table here")],
            tables: vec![Table {
                netns: 7,
                backend: Backend::Legacy,
                family: Family::Ipv4,
                name: "fil\x1bter".into(),
                rules: 9,
                exact: false,
                left_out: vec!["FORWARD"],
            }],
            proof: Some(Some(Proof { drops: 40, told: 38 })),
            ..Report::default()
        };
        let text = text(&report, Language::English);
        for part in [
            "Findings\n  none",
            "Already dropped\n  nothing",
            "This system\n  kernel           missing: too old; reboot\n",
            "Which rule drops a packet\n  iptables-legacy  not told: no such table here\n",
            "netns 7  legacy  ipv4    fil",
            ": not told; 9 rules that can drop; FORWARD: too many for their counters, ",
            "Self-test\n  40 drops by known rules and functions: 38 told, 2 not told, 0 wrong\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\x1b'));
        assert!(super::text(&Report::default(), Language::English).contains("none in any network namespace"));
    }

    #[test]
    fn findings_have_evidence_and_fix_and_drops_their_rate() {
        let finding = Finding {
            id: "ip-forward-off",
            severity: Severity::Error,
            text: Text::new(
                "ip-forward-off",
                [("interfaces", "eth\n0".to_owned()), ("settings", "net.ipv4.ip_forward=1".to_owned())],
            ),
            evidence: vec![evidence("net.ipv4.ip_forward", 0, "sysctl")],
            netns: Some(7),
            interface: Some("eth\n0".to_owned()),
        };
        let mut dropped = vec![dropped_by("filter:INPUT:rule:3", 1234, Some(5)), dropped_by("x", 2, None)];
        dropped.resize(TOLD + 3, dropped_by("y", 1, Some(0)));
        let report = Report { findings: vec![finding], dropped, ..Report::default() };
        let text = text(&report, Language::English);
        for part in [
            "  error  ip-forward-off: IPv4 forwarding is off on eth\\x0a0: ",
            "\n    where: netns 7, eth\\x0a0\n    seen: net.ipv4.ip_forward = 0 (sysctl)\n    fix: `sysctl -w \
             net.ipv4.ip_forward=1`, ",
            "         1,234  +5 now, 2.5/s       filter:INPUT:rule:3 (pod shop/cart, netns 7, owner docker, iptables-legacy-save): -A INPUT\\x1b \
             -j DROP\n",
            "  not read again      x (",
            "  and 3 counters more: -o json has all\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let chinese = super::text(&report, Language::Chinese);
        assert!(chinese.contains("    fix: 执行 `sysctl -w net.ipv4.ip_forward=1`"), "{chinese}");
    }
}
