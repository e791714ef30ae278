//! The page of records that are made up: what is on it adds up, and nothing that a name can hold becomes more than text.

use super::gather::sum;
use super::page::Page;
use super::{Choice, Gatherer, Settings, render};
use crate::cilium::model::{Cilium, Policy};
use crate::event::model::{Cause, Class, Drop, K8s, Lost, LostPlace, Record, Stalled, Timestamp};
use crate::hist::Window;
use crate::hist::fixtures::{at, drop_of, end_of, random};
use crate::netfilter::model::{Backend, Confidence, Family, Netfilter, RuleRef};
use crate::output::Now;
use crate::recording::{About, Header, replay::Part};
use crate::tc::model::{Bpf, Filter};
use jiff::tz::TimeZone;
use std::time::Duration;

fn settings() -> Settings {
    Settings {
        title: None,
        choice: Choice::Rise,
        rows: 1000,
        all: false,
        zone: TimeZone::UTC,
        part: Part::default(),
    }
}

/// The page of some records.
fn page_of(settings: Settings, records: &[Record]) -> Page {
    let mut gatherer = Gatherer::new(settings);
    gatherer.recording(&About::default());
    for record in records {
        let wall = match record {
            Record::Drop(drop) => drop.time_last,
            Record::Lost(lost) => lost.time,
            Record::Stalled(stalled) => stalled.time,
        };
        gatherer.record(record, Now { elapsed: Duration::ZERO, wall });
    }
    gatherer.page()
}

fn ruled(rule: u32, cause: Option<&str>) -> Drop {
    let mut drop = drop_of("cart-1", "redis-0");
    let cause = cause.map(|id| Cause {
        id: id.into(),
        why: format!("why of {id}"),
        fix: format!("fix of {id}"),
        ..Cause::default()
    });
    drop.node = "n1".into();
    drop.drop.cause = cause;
    drop.drop.class = Class::Policy;
    drop.drop.netfilter = Some(Box::new(Netfilter {
        backend: Some(Backend::Legacy),
        family: Some(Family::Ipv4),
        hook: Some("FORWARD".into()),
        table: Some("filter".into()),
        chain: Some("FORWARD".into()),
        rule: Some(rule),
        text: Some(format!("-A FORWARD -m comment --comment \"number {rule}\" -j DROP")),
        verdict: Some("drop".into()),
        owner: Some("docker".into()),
        confidence: Confidence::Exact,
        ..Netfilter::default()
    }));
    drop
}

fn when(mut drop: Drop, seconds: f64, count: u64) -> Record {
    (drop.time, drop.time_last) = (at(seconds), at(seconds));
    (drop.count, drop.segments) = (count, count);
    Record::Drop(Box::new(drop))
}

fn some_drop(state: &mut u64) -> Record {
    let cause = (random(state, 2) > 0).then(|| format!("cause-{}", random(state, 30)));
    let mut drop = ruled(random(state, 40) as u32, cause.as_deref());
    drop.node = format!("n{}", random(state, 3));
    drop.drop.class =
        [Class::Policy, Class::Error, Class::Resource, Class::Routine][random(state, 4) as usize];
    drop.drop.reason = Some(format!("R{}", random(state, 40)));
    if random(state, 3) == 0 {
        drop.drop.netfilter = None;
    }
    if random(state, 3) == 0 {
        drop.destination = end_of(&format!("10.0.1.{}", random(state, 250)), None);
    }
    if random(state, 4) == 0 {
        let policy = Policy { name: format!("p{}", random(state, 30)), ..Policy::default() };
        drop.drop.cilium = Some(Box::new(Cilium { policies: Some(vec![policy]), ..Cilium::default() }));
    }
    let count = 1 + random(state, 1000);
    when(drop, random(state, 5000) as f64 / 7.0, count)
}

#[test]
fn every_table_adds_up_to_the_total() {
    let mut state = 0x2545_f491_4f6c_dd1d;
    for round in 0..20 {
        let records: Vec<Record> = (0..random(&mut state, 3000)).map(|_| some_drop(&mut state)).collect();
        let all = round % 2 == 0;
        let choice = match round % 3 {
            0 => Choice::Rise,
            1 => Choice::At(at(100.0)),
            _ => Choice::Windows(["0s..1m", "2m..3m"].map(|text| Window::parse(text).unwrap())),
        };
        let sent: u64 = records
            .iter()
            .filter_map(|record| match record {
                Record::Drop(drop) => (all || drop.drop.class != Class::Routine).then_some(drop.count),
                _ => None,
            })
            .sum();
        let page = page_of(Settings { all, choice, rows: 50, ..settings() }, &records);
        assert_eq!((page.drops, page.answer.most.is_some()), (sent, sent > 0));
        for section in &page.sections {
            for table in &section.tables {
                assert_eq!((sum(table), table.total.drops), (sent, sent), "{} {}", section.id, table.name);
            }
        }
        for chart in &page.charts {
            let told = chart.bars.iter().map(|bar| {
                let count = bar.title.split(": ").nth(1).and_then(|text| text.split(' ').next());
                count.unwrap().replace(',', "").parse::<u64>().unwrap()
            });
            assert_eq!(told.sum::<u64>(), sent);
        }
        if let Some(compared) = &page.comparison {
            let windows = compared.windows.clone().map(|side| side.drops);
            assert_eq!(windows.iter().sum::<u64>() + compared.outside, sent);
            for table in &compared.tables {
                for window in [0, 1] {
                    let rows = table.rows.iter().chain(&table.other);
                    assert_eq!(
                        rows.map(|row| row.drops[window]).sum::<u64>(),
                        windows[window],
                        "{}",
                        table.name
                    );
                }
            }
        }
        let kept: u64 = page.records.rows.iter().map(|row| row.drops).sum();
        assert_eq!((page.records.drops, kept + page.records.others), (kept, sent));
        assert!(page.records.rows.len() <= 50);
        assert_eq!(page.records.chosen.is_some(), page.records.count > 50);
    }
}

#[test]
fn the_answer_is_on_top() {
    let mut records = vec![when(ruled(7, Some("default-deny")), 60.0, 900), when(ruled(8, None), 90.0, 100)];
    let mut routine = drop_of("a", "b");
    routine.drop.class = Class::Routine;
    records.push(when(routine, 91.0, 5));
    records.push(Record::Lost(Lost { time: at(95.0), count: 3, place: LostPlace::Recursion }));
    let mut gatherer = Gatherer::new(settings());
    let header = Header {
        version: 1,
        node: "n1".into(),
        kernel: "6.1.0".into(),
        droptrace: "0.1.0".into(),
        started: at(0.0),
        arguments: ["record", "-w", "drops"].map(str::to_owned).to_vec(),
    };
    gatherer.recording(&About { path: "drops/part.parquet".into(), header, totals: None });
    gatherer.unread("drops/other.parquet: its last 7 bytes are not whole");
    for record in &records {
        gatherer.record(record, Now::default());
    }
    let page = gatherer.page();
    assert_eq!(page.title.as_str(), "Packet drops on node n1, 2026-11-20");
    assert_eq!(page.answer.what.as_str(), "1,000 drops in 1 min 35 s on node n1");
    let most = page.answer.most.as_ref().unwrap();
    assert_eq!(
        (most.share.as_str(), most.place.as_str()),
        ("90.0%", "filter:FORWARD:rule:7 (FORWARD, legacy)")
    );
    assert!(most.rule.as_ref().unwrap().as_str().contains("number 7"));
    assert_eq!(most.owner.as_ref().unwrap().as_str(), "docker");
    assert_eq!(most.cause.as_ref().unwrap().fix.as_str(), "fix of default-deny");
    assert_eq!(page.warnings.len(), 2);
    assert_eq!(page.unseen.hidden[0].1, "5");
    assert_eq!(page.unseen.damage[0].as_str(), "drops/other.parquet: its last 7 bytes are not whole");
    let html = render(&page).unwrap();
    for part in [
        "1,000 drops in 1 min 35 s on node n1",
        "fix of default-deny",
        "number 7&quot; -j DROP",
        "no cause is known",
        "droptrace record -w drops",
        "all times in UTC",
        "Divided at 22:15:00, where the rate of drops rose most",
    ] {
        assert!(html.contains(part), "{part}");
    }
    // The same records make the same page.
    assert_eq!(html, render(&gatherer.page()).unwrap());
}

#[test]
fn no_drop_is_a_page_too() {
    let page = page_of(settings(), &[]);
    assert_eq!((page.answer.what.as_str(), page.drops), ("No drops", 0));
    let html = render(&page).unwrap();
    assert!(html.contains("No drops") && html.contains("Nothing was lost") && !html.contains("id=\"raw\""));
    let quiet = Stalled { time: at(10.0), seconds: 10, filter: "--pod x".into(), ..Stalled::default() };
    let page = page_of(settings(), &[Record::Stalled(quiet)]);
    assert!(render(&page).unwrap().contains("0 drops for --pod x"));
    structure(&html);
}

#[test]
fn a_part_begins_where_it_was_asked_to() {
    let header = Header { version: 1, started: at(0.0), ..Header::default() };
    let span = |part: Part| {
        let mut gatherer = Gatherer::new(Settings { part, ..settings() });
        gatherer.recording(&About { header: header.clone(), ..About::default() });
        gatherer.record(&when(ruled(1, None), 50.0, 1), Now::default());
        gatherer.page().span.unwrap().from
    };
    assert_eq!(span(Part::default()), "2026-11-20 22:14:00");
    assert_eq!(span(Part { since: Some(at(30.0)), ..Part::default() }), "2026-11-20 22:14:30");
    assert_eq!(span(Part { last: Some(1), ..Part::default() }), "2026-11-20 22:14:50");
}

/// Tags with their attributes' names, in order; fails where the page is not what an HTML parser reads without repairing it: a
/// stray `<`, an attribute without quotes, an element that is not ended in its place.
fn structure(html: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["meta", "input"];
    let (mut found, mut open, mut rest) = (Vec::new(), Vec::new(), html);
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix("!DOCTYPE html>") {
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix('/') {
            let (name, after) = after.split_once('>').unwrap();
            assert_eq!(open.pop(), Some(name.to_owned()), "</{name}> ends something else");
            rest = after;
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap();
        let name = rest[..end].to_owned();
        assert!(!name.is_empty(), "a stray < before {:?}", rest.chars().take(60).collect::<String>());
        rest = &rest[end..];
        let mut tag = name.clone();
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('>') {
                rest = after;
                break;
            }
            let end = rest.find(['=', '>', ' ']).unwrap();
            tag.push_str(&format!(" {}", &rest[..end]));
            rest = &rest[end..];
            if let Some(value) = rest.strip_prefix("=\"") {
                rest = value.split_once('"').unwrap().1;
            } else {
                assert!(!rest.starts_with('='), "an attribute without quotes in {tag}");
            }
        }
        if name == "script" || name == "style" {
            rest = &rest[rest.find(&format!("</{name}>")).unwrap()..];
        }
        if !VOID.contains(&name.as_str()) {
            open.push(name);
        }
        found.push(tag);
    }
    assert_eq!(open, [""; 0]);
    found
}

/// A drop, and all that a page tells beside it, with a text wherever one can be.
fn said_everywhere(text: &str) -> (Settings, About, Vec<Record>) {
    let some = || Some(text.to_owned());
    let k8s = || {
        Some(K8s {
            namespace: some(),
            pod: some(),
            workload: some(),
            service: some(),
            services: vec![text.to_owned()],
            node: some(),
            container: some(),
            unit: some(),
            ..K8s::default()
        })
    };
    let mut drop = ruled(3, None);
    drop.node = text.to_owned();
    (drop.source, drop.destination) = (end_of("10.0.0.1", k8s()), end_of("10.0.0.2", k8s()));
    drop.network.interface = some();
    drop.network.interface_in = some();
    drop.network.interface_out = some();
    drop.network.family = some();
    drop.network.transport = some();
    drop.packet.tcp_flags = some();
    drop.drop.reason = some();
    drop.drop.subsystem = some();
    drop.drop.location = some();
    drop.drop.cause = Some(Cause {
        id: text.into(),
        severity: text.into(),
        why: text.into(),
        fix: text.into(),
        confidence: text.into(),
        ..Cause::default()
    });
    let mark = RuleRef { table: text.into(), chain: text.into(), text: some(), ..RuleRef::default() };
    drop.drop.netfilter = Some(Box::new(Netfilter {
        hook: some(),
        table: some(),
        chain: some(),
        rule: Some(3),
        text: some(),
        verdict: some(),
        reject_with: some(),
        owner: some(),
        function: some(),
        mark_set_by: vec![mark],
        ..Netfilter::default()
    }));
    let policy = Policy { namespace: some(), name: text.into(), kind: text.into(), why_not: some() };
    let mut by_cilium = drop.clone();
    by_cilium.drop.netfilter = None;
    by_cilium.drop.cilium = Some(Box::new(Cilium {
        code: Some(133),
        name: some(),
        message: text.into(),
        policies: Some(vec![policy]),
        program: some(),
        ..Cilium::default()
    }));
    let mut by_program = by_cilium.clone();
    by_program.drop.cilium = None;
    let filter = Filter { program: some(), id: Some(7), ..Filter::default() };
    by_program.drop.bpf =
        Some(Box::new(Bpf { hook: text.into(), interface: some(), filter, ..Bpf::default() }));
    let mut routine = by_cilium.clone();
    routine.drop.class = Class::Routine;
    let mut records: Vec<Record> = [drop, by_cilium, by_program, routine]
        .into_iter()
        .zip([9, 8, 7, 6])
        .map(|(drop, count)| when(drop, count as f64, count))
        .collect();
    records.push(Record::Stalled(Stalled {
        time: at(16.0),
        node: text.into(),
        filter: text.into(),
        ..Stalled::default()
    }));
    let header = Header {
        version: 1,
        droptrace: text.into(),
        node: text.into(),
        kernel: text.into(),
        started: at(0.0),
        arguments: vec![text.into()],
    };
    let about = About { path: text.into(), header, totals: None };
    (Settings { title: some(), ..settings() }, about, records)
}

fn rendered(text: &str) -> String {
    let (settings, about, records) = said_everywhere(text);
    let mut gatherer = Gatherer::new(settings);
    gatherer.recording(&about);
    gatherer.unread(text);
    for record in &records {
        gatherer.record(record, Now::default());
    }
    render(&gatherer.page()).unwrap()
}

#[test]
fn hostile_text_stays_text() {
    let harmless = structure(&rendered("harmless"));
    assert!(harmless.len() > 200, "{} tags", harmless.len());
    for hostile in [
        "</script><script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "\" onmouseover=\"alert(1)",
        "</title></style><!--",
        "]]><svg onload=alert(1)>",
        "&lt;b&gt;&#x3c;b>&amp",
        "{{ page }}{% include 'x' %}{# x #}",
        "a\u{0}b\u{1b}[31m\u{7f}\u{9b}\n\u{202e}\u{2066}\u{200b}\u{feff}",
        "javascript:alert(1)",
    ] {
        let html = rendered(hostile);
        let tags = structure(&html);
        let other = tags.iter().zip(&harmless).find(|(tag, expected)| tag != expected);
        assert_eq!((other, tags.len()), (None, harmless.len()), "{hostile:?}");
        assert!(!html.contains(|c: char| c.is_control() && c != '\n'), "{hostile:?}");
        assert!(!html.contains(['\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}']), "{hostile:?}");
        assert!(hostile.contains("javascript") || !html.contains(hostile), "{hostile:?}");
    }
}

#[test]
fn long_text_is_cut() {
    let html = rendered(&"\u{202e}<\"'&x".repeat(10_000));
    assert!(html.len() < 3_000_000, "{}", html.len());
    structure(&html);
}

#[test]
fn many_groups_make_no_long_page() {
    let mut gatherer = Gatherer::new(Settings { rows: 100, ..settings() });
    for number in 0..20_000_u32 {
        let mut drop = ruled(number, Some(&format!("cause-{number}")));
        drop.destination = end_of(&format!("10.1.{}.{}", number / 250, number % 250), None);
        gatherer.record(&when(drop, f64::from(number), 1), Now::default());
    }
    let page = gatherer.page();
    for table in page.sections.iter().flat_map(|section| &section.tables) {
        assert_eq!(sum(table), 20_000, "{}", table.name);
    }
    let html = render(&page).unwrap();
    assert!(html.len() < 400_000, "{}", html.len());
    structure(&html);
}

#[test]
fn times_without_sense_do_no_harm() {
    let mut drop = ruled(1, None);
    (drop.time, drop.time_last, drop.count) = (Timestamp(i128::MIN), Timestamp(i128::MAX), u64::MAX);
    let mut other = ruled(1, None);
    (other.time, other.time_last, other.count) = (Timestamp(i128::MAX), Timestamp(i128::MIN), u64::MAX);
    let records = [drop, other].map(|drop| Record::Drop(Box::new(drop)));
    structure(&render(&page_of(settings(), &records)).unwrap());
}
