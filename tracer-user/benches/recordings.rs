//! What recordings cost: ten million drops (or as many as the first argument says) of 200 pods, 50 services and 300 rules are
//! recorded, and what reads them runs on the file. Prints a table with rates, bytes an event, times and memory.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and ends where it can't go on"
)]

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tracer_user::event::model::{Drop, Record, Timestamp};
use tracer_user::recording::{Header, Place, Recorder};

const EVENTS: u64 = 10_000_000;
const PODS: u64 = 200;
const SERVICES: u64 = 50;
const RULES: u64 = 300;
/// Between two drops.
const APART: Duration = Duration::from_micros(250);
/// 2026-11-20T22:14:03Z.
const BEGIN: i128 = 1_795_212_843_000_000_000;
/// Drops that are handed over at once: a second's, at that rate.
const BATCH: u64 = 4000;

/// What a command reads of the recording.
const READERS: [(&str, &[&str]); 6] = [
    ("hist", &["hist"]),
    ("hist --by pod,rule -o json", &["hist", "--by", "pod,rule", "-o", "json"]),
    ("hist --port 6379", &["hist", "--port", "6379"]),
    ("hist --by cause", &["hist", "--by", "cause"]),
    ("replay --last 10", &["replay", "--last", "10"]),
    ("report -w /dev/null", &["report", "-w", "/dev/null"]),
];

/// Numbers that look random and are the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// One of the drops that differ in more than time and numbers.
fn kind(random: &mut Random) -> Drop {
    let (from, to, rule) = (random.below(PODS), random.below(PODS), random.below(RULES));
    let end = |pod: u64, port: u64, service: Option<u64>| {
        json!({"address": format!("10.244.{}.{}", pod / 50, pod % 50 + 2), "port": port, "k8s": {
            "namespace": format!("team-{}", pod % 12), "pod": format!("app-{}-6d4cf56db6-{pod:05}", pod / 4),
            "workload": format!("deployment/app-{}", pod / 4), "service": service.map(|it| format!("svc-{it}")),
            "service_by": service.map(|_| "original")}})
    };
    let service = to % SERVICES;
    let destination = end(to, 6379 + service % 3, Some(service));
    let original = json!({"source": {"address": format!("10.244.{}.{}", from / 50, from % 50 + 2), "port": 41_822},
        "destination": {"address": format!("10.96.3.{service}"), "port": 6379}});
    let text = format!(
        "-A cali-tw-cali{rule:011x} -m comment --comment \"cali:{rule:016x}\" -m comment --comment \
         \"End of tier default. Drop if no policies passed packet\" -m mark --mark 0x0/0x20000 -j DROP"
    );
    serde_json::from_value(json!({
        "time": "2026-11-20T22:14:03Z", "time_last": "2026-11-20T22:14:03Z", "node": "worker-17.example.internal",
        "count": 1, "segments": 1, "detail": true,
        "source": end(from, 41_822, None), "destination": destination, "original": original,
        "network": {"family": "ipv4", "transport": "tcp", "interface": format!("cali{from:011x}"),
            "interface_in": format!("cali{from:011x}"), "interface_out": format!("cali{to:011x}"),
            "netns": 4_026_531_840_u32, "netns_by": "hook-state"},
        "packet": {"length": 60, "mark": 0, "ttl": 63, "ip_id": 1, "tcp_flags": "SYN", "segments": 1, "fragment": false},
        "conntrack": {"state": "new", "direction": "original", "status": "dst_nat_done,src_nat_done", "zone": 0, "mark": 0,
            "tcp_state": "SYN_SENT", "original": original, "reply": original},
        "drop": {"reason": "NETFILTER_DROP", "subsystem": "core", "location": "nf_hook_slow+0x7d", "class": "policy",
            "netfilter": {"backend": "legacy", "family": "ipv4", "hook": "FORWARD", "table": "filter",
                "chain": format!("cali-tw-cali{rule:011x}"), "rule": 1 + rule % 9, "text": text, "verdict": "drop",
                "owner": "calico", "method": "counter", "confidence": "exact"},
            "cause": {"id": "calico-default-deny", "severity": "error",
                "why": "default deny: no policy of tier default lets this flow in", "fix": "add a rule to a policy of that pod",
                "confidence": "exact"}},
    }))
    .unwrap()
}

/// The next drop, of one of the kinds.
fn next(kinds: &[Drop], number: u64, random: &mut Random) -> Record {
    let mut drop = kinds[random.below(kinds.len() as u64) as usize].clone();
    let jitter = i128::from(random.below(200_000));
    drop.time = Timestamp(BEGIN + APART.as_nanos() as i128 * i128::from(number) + jitter);
    drop.time_last = drop.time;
    let port = 32_768 + random.below(28_000) as u16;
    drop.source.port = Some(port);
    drop.packet.ip_id = Some(random.below(65_536) as u32);
    Record::Drop(Box::new(drop))
}

/// Records so many; prints how fast.
fn record(file: &Path, events: u64) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let kinds: Vec<Drop> = (0..2000).map(|_| kind(&mut random)).collect();
    let header = Header { node: "worker-17".into(), started: Timestamp(BEGIN), ..Header::default() };
    let mut recorder = Recorder::begin(Place::File(file.to_owned()), header).unwrap();
    let mut making = Duration::ZERO;
    let begun = Instant::now();
    let mut number = 0;
    while number < events {
        let before = Instant::now();
        let batch: Vec<Record> =
            (number..events.min(number + BATCH)).map(|it| next(&kinds, it, &mut random)).collect();
        making += before.elapsed();
        batch.iter().for_each(|it| recorder.add(it));
        number += batch.len() as u64;
        // As fast as the disk takes them: what waits must not be left out.
        while recorder.progress().written.records + 4 * BATCH < number {
            recorder.flush().iter().for_each(|line| println!("{line}"));
            std::thread::sleep(Duration::from_micros(200));
        }
        recorder.flush().iter().for_each(|line| println!("{line}"));
    }
    let spooled = begun.elapsed() - making;
    let spool = recorder.progress().bytes;
    recorder.finish().iter().for_each(|line| println!("{line}"));
    let all = begun.elapsed() - making;
    assert_eq!((recorder.progress().written.records, recorder.progress().left_out), (events, 0));
    let sealed = fs::metadata(file).unwrap().len();
    let rate = |time: Duration| events as f64 / time.as_secs_f64();
    println!("recorded {events} events");
    println!(
        "  spooled    {:>12.0} events a second  {:>7.1} bytes an event",
        rate(spooled),
        spool as f64 / events as f64
    );
    println!(
        "  sealed     {:>12.0} events a second  {:>7.1} bytes an event",
        rate(all - spooled),
        sealed as f64 / events as f64
    );
}

/// Runs droptrace; returns seconds and the most kB that were resident. That is asked while it runs: what wait4(2) tells counts what
/// this process had when it started it, too.
fn run(words: &[&str], file: &Path) -> (f64, u64) {
    let begun = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_droptrace"))
        .args(&words[..1])
        .arg(file)
        .args(&words[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut most = 0;
    let status = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        // VmHWM (proc_pid_status(5)): the peak, in kB.
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        most = most.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{words:?}");
    (begun.elapsed().as_secs_f64(), most)
}

fn main() {
    // `cargo bench` adds --bench.
    let events = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(EVENTS);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("drops.parquet");
    record(&file, events);
    println!("{:<28} {:>9} {:>14} {:>9}", "", "seconds", "events/s", "MB");
    for (name, words) in READERS {
        let (seconds, kilobytes) = run(words, &file);
        println!(
            "{name:<28} {seconds:>9.2} {:>14.0} {:>9.1}",
            events as f64 / seconds,
            kilobytes as f64 / 1000.0
        );
    }
}
