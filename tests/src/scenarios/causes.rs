//! Causes as a user meets them: lines for people in both languages, filters, causes of one's own, recordings.

use super::expect::{Expect, verify, watch, watch_alone};
use super::{beside, here_only, skip};
use crate::bed::backend::Backend;
use crate::bed::droptrace::{ATTACHED, Droptrace, Output, command as droptrace};
use crate::bed::packet;
use crate::bed::patience;
use crate::bed::record::Record;
use crate::bed::topology::{Family, Pair, Routed};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    // What they show is the same on every kernel.
    here_only([
        beside("causes::for_people", for_people),
        beside("causes::of_ones_own", of_ones_own),
        beside("causes::filter", filter),
        beside("causes::counted_by", counted_by),
        beside("causes::recorded_without", recorded_without),
        beside("causes::without_meaning", without_meaning),
        beside("causes::dns_race", dns_race),
        beside("causes::mixed_backends", mixed_backends),
    ])
}

/// Ports that nobody listens on, and one that a rule drops.
const NOBODY: u16 = 9;
const RULE: u16 = 4242;

fn send(pair: &Pair, port: u16) -> Result<()> {
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, port));
    pair.client.inject(&[packet::udp(from, to, b"x")])
}

/// A droptrace in the server's network namespace.
fn start(pair: &Pair, arguments: &[&str]) -> Result<Droptrace> {
    let inode = pair.server.netns.inode().to_string();
    let mut command = droptrace(arguments)?;
    command.args(["--netns", &inode]).env("LC_ALL", "C.UTF-8");
    let started = Droptrace::spawn(command)?;
    started.wait("attached", |output| output.stderr.contains(ATTACHED))?;
    Ok(started)
}

fn with_rule() -> Result<Pair> {
    let pair = Pair::new()?;
    super::rules::chain(&pair.server.netns, "inet", "input", &format!("udp dport {RULE} drop"))?;
    Ok(pair)
}

/// What is printed for two drops of one cause.
fn lines(arguments: &[&str]) -> Result<Vec<String>> {
    let pair = Pair::new()?;
    let stream = start(&pair, &[arguments, &["-c", "2"]].concat())?;
    send(&pair, NOBODY)?;
    send(&pair, NOBODY + 1)?;
    let ended = stream.end()?;
    ended.expect_code(0)?;
    Ok(ended.output.strays)
}

fn count(lines: &[String], words: &str) -> usize {
    lines.iter().filter(|line| line.contains(words)).count()
}

/// Why and what to do are said once, in the language that was asked for; `-v` tells more.
fn for_people() -> Result<()> {
    let english = lines(&[])?;
    let [why, fix] = ["why: Nothing in the network namespace", "fix: Compare the Service's targetPort"];
    ensure!(count(&english, why) == 1 && count(&english, fix) == 1, "{english:#?}");
    ensure!(count(&english, "cause:") == 0, "{english:#?}");
    let chinese = lines(&["--lang", "zh", "-v"])?;
    for words in [
        "没有进程监听 udp 端口 9。",
        "fix: 核对 Service 的 targetPort",
        "ask: owner of the receiver",
        "cause: no-listener",
    ] {
        ensure!(count(&chinese, words) == 1, "{words:?} is not once in {chinese:#?}");
    }
    Ok(())
}

/// A cause from a file comes before the others.
fn of_ones_own() -> Result<()> {
    let pair = with_rule()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("own.toml");
    fs::write(
        &file,
        "[[cause]]\nid = \"known-port\"\nseverity = \"warning\"\nwhen = { destination_port = 4242 }\n\
         why = \"Port {destination_port} is closed on purpose.\"\nfix = { en = \"Nothing.\", zh = \"无需处理。\" }\n",
    )?;
    let file = file.to_str().context("a path that is text")?;
    let stream = start(&pair, &["-o", "json", "--causes", file])?;
    send(&pair, RULE)?;
    stream.wait("the drop", |output| !output.records.is_empty())?;
    let output = stream.stop()?;
    let cause = output.records.first().context("a drop")?.get("/drop/cause");
    ensure!(cause["id"] == "known-port" && cause["why"] == "Port 4242 is closed on purpose.", "{cause}");
    ensure!(cause["confidence"] == "inferred" && cause["fix"] == "Nothing.", "{cause}");
    Ok(())
}

/// Only drops of a cause, or all but those; counts that no event told included.
fn filter() -> Result<()> {
    const SENT: u64 = 500;
    let pair = with_rule()?;
    let only = start(&pair, &["-o", "json", "--cause", "foreign-*"])?;
    let but = start(&pair, &["-o", "json", "--not", "--cause", "foreign-rule"])?;
    let all = watch()?;
    for _ in 0..SENT {
        send(&pair, RULE)?;
    }
    send(&pair, NOBODY)?;
    let sum =
        |output: &Output| output.records.iter().filter(|it| it.is_drop()).map(Record::count).sum::<u64>();
    let netns = [pair.server.netns.inode()];
    all.wait("all drops", |output| output.drops_in(&netns).map(Record::count).sum::<u64>() > SENT)?;
    all.stop()?;
    only.wait("those of the rule", |output| sum(output) >= SENT)?;
    but.wait("the other one", |output| sum(output) >= 1)?;
    let (only, but) = (only.stop()?, but.stop()?);
    ensure!(sum(&only) == SENT && sum(&but) == 1, "{} and {} of {SENT} and 1", sum(&only), sum(&but));
    let port = |record: &Record| record.number("/destination/port");
    ensure!(
        but.records.iter().filter(|it| it.is_drop()).all(|it| port(it) == Some(NOBODY.into())),
        "{but:?}"
    );
    Ok(())
}

/// A histogram by cause.
fn counted_by() -> Result<()> {
    let pair = with_rule()?;
    let hist = start(&pair, &["hist", "-o", "json", "--by", "cause", "-c", "3"])?;
    for _ in 0..3 {
        send(&pair, RULE)?;
    }
    let ended = hist.end()?;
    ended.expect_code(0)?;
    let groups: Vec<_> = ended.output.records.iter().filter(|it| !it.get("/key").is_null()).collect();
    let found = groups.iter().find(|it| it.get("/key/cause") == "foreign-rule");
    ensure!(found.is_some_and(|it| it.count() == 3), "{groups:?}");
    Ok(())
}

/// A recording keeps its causes. One that has none is explained from what it has: then it is inferred.
fn recorded_without() -> Result<()> {
    let pair = with_rule()?;
    let stream = start(&pair, &["-o", "json"])?;
    send(&pair, RULE)?;
    stream.wait("the drop", |output| !output.records.is_empty())?;
    let output = stream.stop()?;
    let live = output.records.first().context("a drop")?.clone();
    let folder = tempfile::tempdir()?;
    let replay = |record: &Record| -> Result<Record> {
        let file = folder.path().join("part.jsonl");
        fs::write(&file, format!("{}\n", record.0))?;
        let mut command = std::process::Command::new("sh");
        let words = format!(
            "exec \"$DROPTRACE\" replay - -o json --lang zh --cause 'foreign-*' < {}",
            file.display()
        );
        command.args(["-c", &words]);
        let ended = Droptrace::spawn(command)?.end()?;
        ended.expect_code(0)?;
        Ok(ended.output.records.first().context("nothing was replayed")?.clone())
    };
    ensure!(replay(&live)?.0 == live.0, "the recording's own cause did not stay");
    let mut bare = live.clone();
    *bare.0.pointer_mut("/drop/cause").context("a cause")? = serde_json::Value::Null;
    let told = replay(&bare)?;
    let cause = told.get("/drop/cause");
    ensure!(cause["id"] == "foreign-rule" && cause["confidence"] == "inferred", "{cause}");
    ensure!(cause["why"].as_str().is_some_and(|why| why.starts_with("丢包规则")), "{cause}");
    Ok(())
}

/// A file that makes no sense ends the run, with its line.
fn without_meaning() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("own.toml");
    fs::write(
        &file,
        "# mine\n[[cause]]\nid = \"x\"\nseverity = \"error\"\nwhen = { reasn = \"X\" }\nwhy = \"y\"\n",
    )?;
    let file = file.to_str().context("a path that is text")?;
    for words in [vec!["--causes", file], vec!["replay", "-", "--causes", file]] {
        let ended = Droptrace::spawn(droptrace(&words)?)?.end()?;
        ended.expect_code(2)?;
        let said = format!("{file}:2: cause \"x\": when: there is no fact `reasn`: did you mean `reason`?");
        ensure!(ended.output.stderr.contains(&said), "{}", ended.output.stderr);
    }
    let ended = Droptrace::spawn(droptrace(&["--cause", "conntrak-full"])?)?.end()?;
    ended.expect_code(2)?;
    let said = "--cause conntrak-full: there is no such cause; did you mean conntrack-full";
    ensure!(ended.output.stderr.contains(said), "{}", ended.output.stderr);
    Ok(())
}

/// kube-proxy's rules in the one backend, and what drops in the other. Healthy: all in one backend, and nothing but empty base
/// chains in the other.
fn mixed_backends() -> Result<()> {
    const KUBE: &str = "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
                        -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\nCOMMIT\n";
    const DROPS: &str = "*filter\n-A FORWARD -p udp -m udp --dport 4242 -j DROP\nCOMMIT\n";
    const EMPTY: &str = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let [legacy, nft] = [Backend::Legacy, Backend::IptablesNft];
    let (mut expected, mut nodes) = (Vec::new(), Vec::new());
    for (drops, rules, told) in [
        (nft, [(legacy, KUBE), (nft, DROPS)], Some("iptables-legacy has filter:KUBE-FORWARD")),
        (legacy, [(nft, KUBE), (legacy, DROPS)], Some("iptables-nft has filter:KUBE-FORWARD")),
        (nft, [(nft, KUBE), (nft, DROPS)], None),
        (nft, [(legacy, EMPTY), (nft, DROPS)], None),
    ] {
        let routed = Routed::new()?;
        for (backend, rules) in rules {
            backend.replace(&routed.router, Family::V4, rules)?;
        }
        let ports = (routed.client.port(Family::V4, 40_000), routed.server.port(Family::V4, RULE));
        let others = if told.is_some() { json!(["mixed-iptables"]) } else { json!([]) };
        expected.push(
            Expect::drops(1, &routed.router)
                .flow("udp", ports.0, ports.1)
                .cause("foreign-rule")
                .field("/drop/netfilter/backend", drops.engine())
                .field("/drop/netfilter/other_backend", json!(told))
                .field("/drop/cause/others", others),
        );
        nodes.push((routed, packet::udp(ports.0, ports.1, b"x")));
    }
    let stream = watch_alone()?;
    for (routed, packet) in nodes.iter() {
        routed.client.inject(std::slice::from_ref(packet))?;
    }
    verify(stream, &expected, &[])
}

/// Two queries of one socket at once, to two nameservers' addresses that lead to the same pod (as musl's resolver asks): on two
/// CPUs both pass NAT before either is entered in the table, with the same tuple for answers. The second one can't be entered
/// (nf_ct_resolve_clash, net/netfilter/nf_conntrack_core.c).
fn dns_race() -> Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err(skip("one CPU has one packet at a time between NAT and the table"));
    }
    let routed = Routed::new()?;
    let (client, router, server) = (&routed.client, &routed.router, &routed.server);
    let pod = server.port(Family::V4, 53);
    router.feed("nft -f -", &slow_translation(pod))?;
    let receiver = server.netns.enter(|| Ok(UdpSocket::bind(pod)?))?;
    let arrives = |patience| {
        receiver.set_read_timeout(Some(patience))?;
        receiver.recv(&mut [0; 64])
    };
    let send = |port, nameserver: [u8; 4]| {
        let to = SocketAddr::from((nameserver, 53));
        client.inject(&[packet::udp(client.port(Family::V4, port), to, b"who is it?")])
    };
    let stream = watch()?;
    // One after the other: NAT sees the first one's tuple, and gives the second another port.
    for nameserver in NAMESERVERS {
        send(40_000, nameserver)?;
        arrives(patience()).context("a query by itself did not come through")?;
    }
    let lost = (40_001..40_041).find_map(|port| {
        let race = || -> Result<bool> {
            std::thread::scope(|scope| {
                let both = NAMESERVERS.map(|nameserver| scope.spawn(move || send(port, nameserver)));
                both.into_iter()
                    .try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?)
            })?;
            arrives(patience()).context("neither query came through")?;
            Ok(arrives(Duration::from_millis(500)).is_err())
        };
        race().map(|is_lost| is_lost.then_some(port)).transpose()
    });
    let from = client.port(Family::V4, lost.context("no two queries raced")??);
    let expect = Expect::drops(1, router)
        .flow("udp", from, pod)
        .reason(&["NETFILTER_DROP"])
        .at(&["nf_hook_slow"])
        .cause("dns-race")
        .field_among("/original/destination/address", &["10.96.0.10", "10.96.0.11"])
        .field("/drop/class", "error")
        .field("/drop/netfilter/hook", "POSTROUTING")
        .field("/drop/netfilter/verdict", "conntrack-clash")
        .field("/drop/netfilter/confidence", "inferred")
        .field("/drop/cause/confidence", "inferred")
        .field("/drop/cause/others", json!(["conntrack-clash"]))
        .field(
            "/drop/cause/why",
            format!(
                "Two DNS queries of {} at once raced to be tracked as connections, and one was dropped: the resolver \
                 waits for its timeout, 5 s by default.",
                from.ip()
            ),
        )
        .field(
            "/drop/cause/fix",
            "Use NodeLocal DNSCache, or the resolver option single-request-reopen in the pod's dnsConfig.",
        );
    verify(stream, &[expect], &[&server.netns])
}

/// Addresses of DNS services.
pub(super) const NAMESERVERS: [[u8; 4]; 2] = [[10, 96, 0, 10], [10, 96, 0, 11]];

/// Rules that translate queries to a pod's address, and keep a CPU busy for some milliseconds between NAT of the source and
/// the entry in the table.
pub(super) fn slow_translation(pod: SocketAddr) -> String {
    let slow = "udp length 9999 accept\n".repeat(500);
    let (often, more) = ("jump slow\n".repeat(40), "jump often\n".repeat(40));
    format!(
        "table ip t {{\nchain slow {{\n{slow}}}\nchain often {{\n{often}}}\n\
         chain services {{\ntype nat hook prerouting priority dstnat;\n\
         ip daddr {{ 10.96.0.10, 10.96.0.11 }} udp dport 53 dnat to {pod}\n}}\n\
         chain late {{\ntype filter hook postrouting priority srcnat + 100;\nudp dport != 53 accept\n{more}}}\n}}\n"
    )
}
