//! What was dropped before droptrace began, and still is.

use super::Report;
use super::services::Cluster;
use crate::bed::topology::{Family, Pair};
use crate::bed::{droptrace, packet};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Ports: of rules that dropped and still drop, that only dropped, that never did.
const FAST: u16 = 4001;
const ONCE: u16 = 4002;
const NEVER: u16 = 4003;

/// Rules of both backends, a policy, counters of the stack, and a filter at a device: all that counted drops is told, with
/// what it is, and whether it goes on.
pub(super) fn already_dropped() -> Result<()> {
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    for port in [FAST, NEVER] {
        netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {port} -j DROP"))?;
    }
    netns.run("iptables-legacy -t mangle -P FORWARD DROP")?;
    let rules = format!(
        "table inet shop {{\n chain in {{\n type filter hook input priority 5;\n udp dport {ONCE} counter drop comment \"a \
         \\\\\"quoted\\\\\" one\"\n udp dport {NEVER} counter drop\n udp dport 4009 drop\n }}\n}}\n"
    );
    netns.feed("nft -f -", &rules.replace("\\\\\"", ""))?;
    netns.run("tc qdisc add dev s0 clsact")?;
    let to = |port| pair.server.port(Family::V4, port);
    let from = pair.client.port(Family::V4, 40_000);
    let packet = |port| packet::udp(from, to(port), b"unwanted");
    pair.client.inject(&vec![packet(ONCE); 7])?;
    // A port of nobody.
    pair.client.inject(&vec![packet(4444); 5])?;
    pair.client.inject(&vec![packet(FAST); 3])?;
    let is_done = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                pair.client.inject(&[packet(FAST)])?;
                thread::sleep(Duration::from_millis(20));
            }
            anyhow::Ok(())
        });
        let report = Report::of(netns, &[]);
        is_done.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        report
    })?;
    report.expect_findings(&[])?;
    let row = |name: &str| {
        let is_it = |row: &&Value| row["name"] == name && row["netns"] == netns.inode();
        report.all("dropped").find(is_it).with_context(|| format!("no {name}: {}", report.text))
    };
    let fast = row("filter:INPUT:rule:1")?;
    let [more, rate] = [&fast["more"], &fast["rate"]].map(|value| value.as_f64().unwrap_or(0.0));
    ensure!(fast["count"].as_f64() > Some(more) && more > 10.0 && rate > 5.0, "{fast}");
    ensure!(fast["text"] == format!("-A INPUT -p udp -m udp --dport {FAST} -j DROP"), "{fast}");
    ensure!((&fast["by"], &fast["owner"]) == (&"rule".into(), &"unknown".into()), "{fast}");
    let is_nft = |row: &&Value| row["netns"] == netns.inode() && row["source"] == "nft list ruleset";
    let nft: Vec<_> = report.all("dropped").filter(is_nft).collect();
    let [once] = nft[..] else { anyhow::bail!("not the rule that counted: {nft:#?}") };
    ensure!((&once["count"], &once["more"]) == (&7.into(), &0.into()), "{once}");
    ensure!(once["name"].as_str().is_some_and(|name| name.starts_with("inet:shop:in:handle:")), "{once}");
    ensure!(once["text"].as_str().is_some_and(|text| text.contains(&format!("udp dport {ONCE}"))), "{once}");
    let nobody = row("UdpNoPorts")?;
    ensure!((&nobody["count"], &nobody["source"]) == (&5.into(), &"/proc/net/snmp".into()), "{nobody}");
    // What still drops comes first; what has counted nothing is left out.
    let own: Vec<_> = report.all("dropped").filter(|row| row["netns"] == netns.inode()).collect();
    ensure!(own.first() == Some(&fast), "{own:#?}");
    ensure!(own.iter().all(|row| row["count"].as_u64() > Some(0)), "{own:#?}");
    let uncounted = report
        .all("unread")
        .any(|it| it["what"].as_str().is_some_and(|what| what.contains("rules and policies of nft")));
    ensure!(uncounted, "nothing is said of the rule without a counter: {}", report.text);
    Ok(())
}

/// Where no tool prints rules, the kernel's own memory tells what they counted; what else they do is not guessed at.
pub(super) fn without_tools() -> Result<()> {
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {FAST} -j ACCEPT"))?;
    netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {FAST} -j DROP"))?;
    netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {ONCE} -j DROP"))?;
    let rules = format!(
        "table inet shop {{\n chain in {{\n type filter hook input priority -5;\n udp dport {NEVER} counter drop\n }}\n}}\n"
    );
    netns.feed("nft -f -", &rules)?;
    let from = pair.client.port(Family::V4, 40_000);
    let packet = |port| packet::udp(from, pair.server.port(Family::V4, port), b"unwanted");
    pair.client.inject(&vec![packet(ONCE); 7])?;
    pair.client.inject(&vec![packet(NEVER); 5])?;
    // A node's, whose services nobody can say anything of.
    netns.run("ip link add cni0 type bridge")?;
    netns.run("ip link set cni0 up")?;
    netns.sysctl("net.ipv4.ip_forward", "1")?;
    let cluster = Cluster::new(&[]).service("cart", "10.96.0.9", (&["10.244.0.7"], &[])).file()?;
    // Nothing is where the tools were, for this process and those that it starts.
    let nothing = tempfile::tempdir()?;
    let script = "mount --bind \"$1\" /usr/sbin && exec \"$2\" doctor -o json --offline --inventory \"$3\"";
    let report = netns.enter(|| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(nothing.path())
            .arg(droptrace::binary()?)
            .arg(cluster.path());
        Report::read(&command.output().context("can't start droptrace")?)
    })?;
    report.expect_findings(&[])?;
    let own = |row: &&Value| row["netns"] == netns.inode() && row["source"] == "the kernel's memory";
    let told: Vec<_> = report.all("dropped").filter(own).collect();
    let [legacy, nft] = told[..] else { anyhow::bail!("not two rules: {told:#?}\n{}", report.text) };
    ensure!((&legacy["name"], &legacy["count"]) == (&"filter:INPUT:rule:3".into(), &7.into()), "{legacy}");
    ensure!(nft["name"].as_str().is_some_and(|name| name.starts_with("inet:shop:in:handle:")), "{nft}");
    ensure!((&nft["count"], &nft["more"], &nft["text"]) == (&5.into(), &0.into(), &Value::Null), "{nft}");
    let says =
        |why: &str| report.all("unread").any(|it| it["why"].as_str().is_some_and(|it| it.contains(why)));
    ensure!(says("iptables-legacy-save is not installed") && says("nft is not installed"), "{}", report.text);
    ensure!(says("not all tables of rules could be read"), "{}", report.text);
    Ok(())
}
