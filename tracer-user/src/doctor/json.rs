//! The report for programs: one object a line, described by `droptrace schema`.

use super::model::{Dropped, Finding, Mechanism, Report, Table, Unread, Xdp};
use crate::output::escape_json;
use serde::Serialize;

/// A line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line<'a> {
    /// A finding.
    Finding(&'a Finding),
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

/// All lines.
#[must_use]
pub fn lines(report: &Report) -> String {
    let findings = report.findings.iter().map(Line::Finding);
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
