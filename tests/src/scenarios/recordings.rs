//! Recordings of real drops: they come back whole, add up to what was sent, and survive what happens to disks and processes.

use super::{alone, here_only, skip};
use crate::bed::command;
use crate::bed::droptrace::{ATTACHED, Droptrace, Ended, Output, command as droptrace};
use crate::bed::flood::{Load, flood};
use crate::bed::packet;
use crate::bed::record::Record;
use crate::bed::topology::{Family, Pair};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(super) fn trials() -> Vec<Trial> {
    // Alone: they send more than others' droptraces would have room for.
    here_only([
        alone("recordings::what_was_dropped_comes_back", what_was_dropped_comes_back),
        alone("recordings::hist_live_and_recorded_agree", hist_live_and_recorded_agree),
        alone("recordings::killed_in_a_flood", killed_in_a_flood),
        alone("recordings::a_full_disk", a_full_disk),
        alone("recordings::a_disk_that_is_read_only", a_disk_that_is_read_only),
        alone("recordings::duckdb_reads_them", duckdb_reads_them),
        alone("recordings::json_lines_are_replayed", json_lines_are_replayed),
    ])
}

const PORT: u16 = 9;

/// Starts droptrace for the drops of a server, and waits until it watches.
fn start(pair: &Pair, words: &str) -> Result<Droptrace> {
    let inode = pair.server.netns.inode().to_string();
    let mut all: Vec<&str> = words.split_whitespace().collect();
    all.extend(["--offline", "--protocol", "udp", "--netns", &inode]);
    let running = Droptrace::spawn(droptrace(&all)?)?;
    running.wait("attached", |output| output.stderr.contains(ATTACHED))?;
    Ok(running)
}

fn stop(running: Droptrace) -> Result<Ended> {
    running.signal(libc::SIGINT);
    let ended = running.end()?;
    ended.expect_code(0)?;
    Ok(ended)
}

/// What droptrace says of recordings.
fn run(words: &str) -> Result<Output> {
    let ended = Droptrace::spawn(droptrace(&words.split_whitespace().collect::<Vec<_>>())?)?.end()?;
    ended.expect_code(0)?;
    Ok(ended.output)
}

fn send(pair: &Pair, load: Load, total: u64) -> Result<u64> {
    let sent = flood(&pair.client.netns, pair.server.port(Family::V4, PORT), load, total)?;
    ensure!(sent.refused == 0, "the client's kernel refused {}", sent.refused);
    Ok(sent.accepted)
}

fn file(folder: &TempDir, name: &str) -> Result<(PathBuf, String)> {
    let path = folder.path().join(name);
    let text = path.to_str().context("a path that is text")?.to_owned();
    Ok((path, text))
}

fn sum(output: &Output) -> u64 {
    output.records.iter().filter(|record| record.text("/type") == Some("drop")).map(Record::count).sum()
}

/// Every field of every line is the same live and in the recording's replay.
fn what_was_dropped_comes_back() -> Result<()> {
    let pair = Pair::new()?;
    pair.server.netns.run("iptables-legacy -A INPUT -p udp --dport 4242 -j DROP")?;
    let folder = tempfile::tempdir()?;
    let (path, name) = file(&folder, "f.parquet")?;
    let recorder = start(&pair, &format!("record -w {name} -o json"))?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 4242));
    pair.client.inject(&vec![packet::udp(from, to, b"x"); 3])?;
    let sent = send(&pair, Load::RandomSources, 2000)? + 3;
    recorder.wait("all came", |output| sum(output) >= sent)?;
    let live = stop(recorder)?.output;
    ensure!(path.is_file(), "{name} is not there; {}", live.stderr);
    let replayed = run(&format!("replay {name} --json --all"))?;
    ensure!(sum(&live) == sent && sum(&replayed) == sent, "{} and {} of {sent}", sum(&live), sum(&replayed));
    let is_told = |record: &&Record| record.text("/type") == Some("drop");
    let lines = |output: &Output| -> Vec<String> {
        output.records.iter().filter(is_told).map(|record| record.0.to_string()).collect()
    };
    ensure!(lines(&live) == lines(&replayed), "the replay differs from what was printed live");
    let rule = replayed.records.iter().find(|record| record.number("/destination/port") == Some(4242));
    let rule = rule.context("no drop by the rule")?;
    ensure!(rule.text("/drop/netfilter/table") == Some("filter"), "{}", rule.brief());
    // The same filters, and the same end.
    let some = run(&format!("replay {name} --json --to-port 4242"))?;
    ensure!((sum(&some)) == 3, "--to-port 4242 shows {}", sum(&some));
    let last = run(&format!("replay {name} --json --last 1"))?;
    ensure!(last.records.len() == 1, "--last 1 shows {} lines", last.records.len());
    let counted = run(&format!("hist {name} -o json --last 1"))?;
    ensure!(counted.records[0].count() == sum(&last), "{} of {}", counted.records[0].brief(), sum(&last));
    let judged = Droptrace::spawn(droptrace(&["replay", &name, "--assert-no-drops"])?)?.end()?;
    judged.expect_code(4)
}

fn hist_live_and_recorded_agree() -> Result<()> {
    let pair = Pair::new()?;
    let folder = tempfile::tempdir()?;
    let (_, name) = file(&folder, "recordings")?;
    let recorder = start(&pair, &format!("record -w {name} --rotate-size 64KiB"))?;
    // Fewer groups than are told apart at most.
    let words = "-o json --by source,reason --bucket 100ms --top 100000";
    let live = start(&pair, &format!("hist {words}"))?;
    let sent = send(&pair, Load::Datagrams, 30_000)? + send(&pair, Load::RandomSources, 5_000)?;
    let live = stop(live)?.output;
    let said = stop(recorder)?.output.stderr;
    let recorded = run(&format!("hist {name} {words}"))?;
    let total = |output: &Output| output.records.first().map_or(0, Record::count);
    ensure!(total(&live) == sent, "live {} of {sent}; {}", total(&live), live.stderr);
    ensure!(total(&recorded) == sent, "recorded {} of {sent}; {said}", total(&recorded));
    let groups = |output: &Output| {
        let of = |record: &Record| (record.get("/key").to_string(), record.count());
        let mut groups: Vec<_> = output.records.iter().skip(1).map(of).collect();
        groups.sort();
        groups
    };
    // Which drops of a flow are told one by one, and which counted, is each run's own affair; what they add up to is not.
    ensure!(groups(&live) == groups(&recorded), "the groups differ");
    ensure!(groups(&live).len() > 1000, "only {} groups", groups(&live).len());
    Ok(())
}

fn killed_in_a_flood() -> Result<()> {
    let pair = Pair::new()?;
    let folder = tempfile::tempdir()?;
    let (path, name) = file(&folder, "recordings")?;
    let recorder = start(&pair, &format!("record -w {name}"))?;
    let first = send(&pair, Load::Datagrams, 1000)?;
    // Two seconds later they are on the disk.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let more = send(&pair, Load::Datagrams, 1000)?;
    recorder.signal(libc::SIGKILL);
    let _ = recorder.end()?;
    let left = sum(&run(&format!("replay {name} --json"))?);
    ensure!((first..=first + more).contains(&left), "{left} of {first} and {more}");
    // The next one makes it a whole file, and adds its own.
    let recorder = start(&pair, &format!("record -w {name}"))?;
    let sent = send(&pair, Load::Datagrams, 500)?;
    let said = stop(recorder)?.output.stderr;
    ensure!(said.contains("was left by a recording that was killed"), "{said}");
    let all = sum(&run(&format!("replay {name} --json"))?);
    ensure!(all == left + sent, "{all} of {left} and {sent}");
    let files = command::run(&format!("find {} -type f", path.display()))?;
    ensure!(files.lines().count() == 2 && files.lines().all(|file| file.ends_with(".parquet")), "{files}");
    Ok(())
}

/// A small file system of its own.
struct Disk(TempDir);

impl Disk {
    fn new(options: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        command::run(&format!("mount -t tmpfs -o {options} tmpfs {}", folder.path().display()))?;
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = command::run(&format!("umount -l {}", self.path().display()));
    }
}

fn a_full_disk() -> Result<()> {
    let pair = Pair::new()?;
    let disk = Disk::new("size=128k")?;
    let name = disk.path().join("r").display().to_string();
    let recorder = start(&pair, &format!("record -w {name} -o json"))?;
    let mut sent = send(&pair, Load::Datagrams, 100)?;
    std::thread::sleep(std::time::Duration::from_millis(2500));
    for _ in 0..30 {
        sent += send(&pair, Load::RandomSources, 2000)?;
        let is_full = |output: &Output| output.stderr.contains("No space left on device");
        if is_full(&recorder.output()) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    recorder
        .wait("it says that the disk is full", |output| output.stderr.contains("No space left on device"))?;
    // The stream goes on.
    sent += send(&pair, Load::RandomSources, 100)?;
    recorder.wait("all came", |output| sum(output) >= sent)?;
    recorder.signal(libc::SIGINT);
    let ended = recorder.end()?;
    ended.expect_code(1)?;
    ensure!(sum(&ended.output) == sent, "{} of {sent} printed", sum(&ended.output));
    // What was written before is whole.
    let left = run(&format!("replay {name} --json"))?;
    ensure!(sum(&left) > 0 && sum(&left) < sent, "{} of {sent} are left", sum(&left));
    ensure!(!left.stderr.contains("not whole"), "{}", left.stderr);
    Ok(())
}

fn a_disk_that_is_read_only() -> Result<()> {
    let disk = Disk::new("ro,size=64k")?;
    for name in ["f.parquet", "folder"] {
        let path = disk.path().join(name).display().to_string();
        let ended = Droptrace::spawn(droptrace(&["record", "--offline", "-w", &path])?)?.end()?;
        ended.expect_code(1)?;
        let said = &ended.output.stderr;
        ensure!(said.contains("can't write") && said.contains("Read-only file system"), "{said}");
    }
    Ok(())
}

/// What an engine that knows nothing of droptrace makes of a folder of recordings: sums, and the rules with most drops.
const QUERY: &str = r#"
import duckdb, json, sys
drops = "read_parquet('" + sys.argv[1] + "/*/*/*/*.parquet', hive_partitioning=true)"
ask = lambda query: duckdb.sql("SELECT " + query.replace("DROPS", drops)).fetchall()
print(json.dumps({
    "total": ask("sum(count)::BIGINT, sum(segments)::BIGINT, count(DISTINCT cluster), count(DISTINCT filename) FROM "
                 + drops.replace("true)", "true, filename=true)") + " WHERE type = 'drop'")[0],
    "ports": sorted(ask("coalesce(destination_port, -1), sum(count)::BIGINT FROM DROPS WHERE type = 'drop' GROUP BY 1")),
    "seconds": sorted(ask("epoch_us(time_bucket(INTERVAL 1 SECOND, time)), sum(count)::BIGINT FROM DROPS GROUP BY 1")),
    "rule": ask("drop_netfilter_text, sum(count)::BIGINT FROM DROPS WHERE drop_netfilter_rule = 1 GROUP BY 1"),
    "node": ask("DISTINCT node FROM DROPS"),
}))
"#;

/// DuckDB reads the files, and its sums are droptrace's.
fn duckdb_reads_them() -> Result<()> {
    let Some(python) = std::env::var_os("DROPTRACE_DUCKDB") else {
        return Err(skip("no DuckDB: DROPTRACE_DUCKDB names no Python that has it"));
    };
    let pair = Pair::new()?;
    pair.server.netns.run("iptables-legacy -A INPUT -p udp --dport 4242 -j DROP")?;
    let folder = tempfile::tempdir()?;
    let (_, name) = file(&folder, "recordings")?;
    let recorder = start(&pair, &format!("record -w {name} --rotate-size 64KiB"))?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 4242));
    let mut sent = 0;
    for _ in 0..3 {
        pair.client.inject(&vec![packet::udp(from, to, b"x"); 100])?;
        sent += 100 + send(&pair, Load::RandomSources, 3000)?;
        std::thread::sleep(std::time::Duration::from_millis(1500));
    }
    stop(recorder)?;
    let mut query = std::process::Command::new(python);
    query.args(["-c", QUERY, &name]);
    let answer: Record = Record(serde_json::from_str(&command::output(query, "")?)?);
    let number = |path: &str| answer.number(path).context(format!("no {path} in {}", answer.0));
    ensure!(number("/total/0")? == sent, "{} of {sent}", answer.get("/total"));
    ensure!(
        number("/total/2")? == 1 && number("/total/3")? > 1,
        "{} clusters and files",
        answer.get("/total")
    );
    ensure!(number("/rule/0/1")? == 300, "{}", answer.get("/rule"));
    let text = answer.text("/rule/0/0").unwrap_or_default();
    ensure!(text.contains("--dport 4242 -j DROP"), "{text}");
    // The same groups as droptrace's own.
    let hist = run(&format!("hist {name} -o json --by to-port"))?;
    ensure!(hist.records.first().map_or(0, Record::count) == sent, "hist: {:?}", hist.records.first());
    ensure!(
        hist.records.first().and_then(|it| it.number("/segments")) == answer.number("/total/1"),
        "segments"
    );
    let mut ports: Vec<(i64, u64)> = Vec::new();
    for group in hist.records.iter().skip(1) {
        let port = group.text("/key/to-port").map_or(Ok(-1), str::parse)?;
        ports.push((port, group.count()));
    }
    ports.sort_unstable();
    ensure!(serde_json::json!(ports) == *answer.get("/ports"), "{ports:?} and {}", answer.get("/ports"));
    let seconds = answer.get("/seconds").as_array().map_or(0, Vec::len);
    ensure!((3..60).contains(&seconds), "{seconds} seconds");
    Ok(())
}

/// What `-o json` prints is a recording, too.
fn json_lines_are_replayed() -> Result<()> {
    let pair = Pair::new()?;
    let folder = tempfile::tempdir()?;
    let live = start(&pair, "-o json")?;
    let sent = send(&pair, Load::Datagrams, 100)?;
    live.wait("all came", |output| sum(output) >= sent)?;
    let live = stop(live)?.output;
    let (path, name) = file(&folder, "lines.json")?;
    let lines: String = live.records.iter().map(|record| format!("{}\n", record.0)).collect();
    std::fs::write(&path, format!("{lines}not a line\n"))?;
    let replayed = run(&format!("replay {name} --json"))?;
    ensure!(sum(&replayed) == sent, "{} of {sent}", sum(&replayed));
    ensure!(replayed.stderr.contains("a line that means nothing"), "{}", replayed.stderr);
    Ok(())
}
