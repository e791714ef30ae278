//! The report for programs: one object a line, described by `droptrace schema`.

use super::model::{Dropped, Finding, Mechanism, Report, Severity, Table, Unread, Xdp};
use crate::cause::Language;
use crate::event::model::Evidence;
use crate::output::escape_json;
use serde::Serialize;

/// A line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line<'a> {
    /// A finding.
    Finding(Found<'a>),
    /// What was dropped before.
    Dropped(&'a Dropped),
    /// What could not be looked at.
    Unread(&'a Unread),
    /// What droptrace can do here.
    Mechanism(&'a Mechanism),
    /// A table of rules.
    Table(&'a Table),
    /// An XDP program.
    Xdp(Xdp),
}

/// A finding, in one language.
#[derive(Clone, Debug, Serialize)]
pub struct Found<'a> {
    id: &'static str,
    severity: Severity,
    title: String,
    evidence: &'a [Evidence],
    fix: String,
    netns: Option<u32>,
    interface: Option<&'a str>,
}

impl<'a> Found<'a> {
    fn new(finding: &'a Finding, language: Language) -> Self {
        Self {
            id: finding.id,
            severity: finding.severity,
            title: finding.text.title(language),
            evidence: &finding.evidence,
            fix: finding.text.fix(language),
            netns: finding.netns,
            interface: finding.interface.as_deref(),
        }
    }
}

/// All lines; what is found is told in that language.
#[must_use]
pub fn lines(report: &Report, language: Language) -> String {
    let findings = report.findings.iter().map(|finding| Line::Finding(Found::new(finding, language)));
    let all = findings
        .chain(report.dropped.iter().map(Line::Dropped))
        .chain(report.unread.iter().map(Line::Unread))
        .chain(report.system.iter().chain(&report.rules).map(Line::Mechanism))
        .chain(report.tables.iter().map(Line::Table))
        .chain(report.xdp.iter().flatten().map(|known| Line::Xdp(Xdp::of(known))));
    let mut text = String::new();
    for line in all {
        // Plain data with string keys always is JSON.
        let json = serde_json::to_string(&line).unwrap_or_default();
        text.push_str(&escape_json(&json));
        text.push('\n');
    }
    text
}

/// A report with a line of each kind.
#[cfg(test)]
pub(crate) fn example() -> Report {
    use super::model::{Counter, State, evidence};
    use super::texts::Text;
    use crate::netfilter::model::{Backend, Family};
    use crate::tc::attribute::Program;
    use crate::xdp::links::{Attached, Mode};
    use crate::xdp::report::Known;

    let text = || "x\u{202e}".to_owned();
    Report {
        findings: vec![Finding {
            id: "mtu",
            severity: Severity::Error,
            text: Text::new("mtu", [("tunnel", text()), ("underlay", text())]),
            evidence: vec![evidence("eth0 mtu", 1400, "rtnetlink")],
            netns: Some(7),
            interface: Some(text()),
        }],
        dropped: vec![Dropped {
            by: Counter::Rule,
            netns: None,
            pod: None,
            name: text(),
            text: Some(text()),
            owner: None,
            source: text(),
            count: 5,
            more: Some(1),
            rate: Some(0.5),
        }],
        unread: vec![Unread { what: text(), why: text() }],
        system: vec![Mechanism { name: "kernel", state: State::Limited, says: text(), fix: Some(text()) }],
        tables: vec![Table {
            netns: 7,
            backend: Backend::Nft,
            family: Family::Inet,
            name: text(),
            rules: 3,
            exact: true,
            left_out: vec!["INPUT"],
        }],
        xdp: Ok(vec![Known {
            attached: Attached { interface: text(), mode: Mode::Driver, program: 9 },
            program: Program { name: Some(text()), tag: None, pinned: None },
            counters: vec![(text(), 2), (text(), 3)],
            more: Some(1),
        }]),
        ..Report::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_turns_text_around() {
        let text = lines(&example(), Language::English);
        assert!(!text.contains('\u{202e}') && text.contains("x\\u202e"), "{text}");
        assert!(
            text.contains(
                "\"program\":\"x\\u202e\",\"id\":9,\"tag\":null,\"pinned\":null,\"dropped\":5,\"more\":1}"
            ),
            "{text}"
        );
    }
}
