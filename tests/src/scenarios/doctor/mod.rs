//! `droptrace doctor`, and that looking changes nothing.

mod container;
mod dropped;
mod node;
mod services;

use super::expect::{Expect, verify, watch};
use super::{alone, beside, here_only, skip};
use crate::bed::droptrace::{Droptrace, command as droptrace};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::topology::{Family, Pair};
use crate::bed::xdp;
use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use libtest_mimic::Trial;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        beside("doctor::tables_and_mechanisms", tables_and_mechanisms),
        beside("doctor::xdp", xdp),
        beside("doctor::xdp_generic", xdp_generic),
        alone("doctor::self_test", self_test),
        alone("doctor::probes_agree_with_the_stack", probes_agree_with_the_stack),
        alone("doctor::looking_changes_nothing", looking_changes_nothing),
        // Needs a kernel with IPVS.
        beside("doctor::services_of_ipvs", services::of_ipvs),
    ];
    trials.extend(here_only([
        beside("doctor::already_dropped", dropped::already_dropped),
        beside("doctor::already_dropped_without_tools", dropped::without_tools),
        beside("doctor::misconfigurations", node::misconfigurations),
        beside("doctor::without_privileges", node::without_privileges),
        alone("doctor::conntrack_nearly_full", node::conntrack_nearly_full),
        beside("doctor::services", services::of_iptables),
        beside("doctor::services_of_nft", services::of_nft),
        beside("doctor::services_of_cilium", services::of_cilium),
        beside("doctor::scaled_to_zero", services::scaled_to_zero),
        // The map that tells is the whole machine's.
        alone("doctor::services_of_calico", services::of_calico),
        beside("doctor::in_chinese", node::in_chinese),
        beside("doctor::in_a_container", container::in_a_container),
    ]));
    trials
}

/// On the machine itself, with which something may be wrong.
fn doctor(arguments: &[&str]) -> Result<String> {
    let arguments = [&["doctor", "--offline"], arguments].concat();
    told(&droptrace(&arguments)?.output().context("can't start droptrace")?, &[0, 4])
}

/// As it sees it from a network namespace, with which nothing is wrong.
fn doctor_in(netns: &Namespace) -> Result<String> {
    let start = || droptrace(&["doctor", "--offline"])?.output().context("can't start droptrace");
    told(&netns.enter(start)?, &[0])
}

/// What it says in JSON in a network namespace.
struct Report {
    code: Option<i32>,
    lines: Vec<Value>,
    text: String,
    stderr: String,
}

impl Report {
    fn of(netns: &Namespace, arguments: &[&str]) -> Result<Self> {
        let all = [&["doctor", "-o", "json", "--offline"], arguments].concat();
        Self::read(&netns.enter(|| droptrace(&all)?.output().context("can't start droptrace"))?)
    }

    fn read(output: &Output) -> Result<Self> {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Self { code: output.status.code(), lines: lines.context("a line is no JSON")?, text, stderr })
    }

    /// Checks the exit code.
    fn expect_code(&self, code: i32) -> Result<()> {
        ensure!(self.code == Some(code), "ended with {:?}: {}\n{}", self.code, self.stderr, self.text);
        Ok(())
    }

    fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.lines.iter().filter(move |line| line["type"] == kind)
    }

    /// Checks that these are the findings, and no others; each has evidence and says what to do.
    fn expect_findings(&self, ids: &[&str]) -> Result<()> {
        let mut found: Vec<_> = self.all("finding").filter_map(|finding| finding["id"].as_str()).collect();
        found.sort_unstable();
        let mut expected = ids.to_vec();
        expected.sort_unstable();
        ensure!(found == expected, "found {found:?} instead of {expected:?}:\n{}", self.text);
        for finding in self.all("finding") {
            let evidence = finding["evidence"].as_array().context("no evidence")?;
            ensure!(
                !evidence.is_empty() && finding["fix"].as_str().is_some_and(|fix| fix.len() > 20),
                "{finding}"
            );
        }
        self.expect_code(if ids.is_empty() { 0 } else { 4 })
    }

    fn finding(&self, id: &str) -> Result<&Value> {
        self.all("finding").find(|finding| finding["id"] == id).with_context(|| format!("no {id}"))
    }

    /// Checks that a finding shows this evidence.
    fn expect_evidence(&self, id: &str, name: &str, value: &str) -> Result<()> {
        let finding = self.finding(id)?;
        let is_it = |it: &Value| it["name"] == name && it["value"] == value;
        let is_there = finding["evidence"].as_array().into_iter().flatten().any(is_it);
        ensure!(is_there, "{id} does not show {name} = {value}: {finding:#}");
        Ok(())
    }
}

fn told(output: &Output, codes: &[i32]) -> Result<String> {
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code().is_some_and(|code| codes.contains(&code)),
        "ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(told)
}

fn tables_and_mechanisms() -> Result<()> {
    let netns = Namespace::new()?;
    netns.run("iptables-legacy -A INPUT -p udp --dport 9 -j DROP")?;
    netns.run("iptables-legacy -A INPUT -p udp --dport 10 -j ACCEPT")?;
    netns.run("nft add table inet dt-doctor")?;
    let told = doctor(&[])?;
    // Before 5.17 rules are not kept in blobs, and modules have no types.
    if kernel::version() < (5, 17) {
        ensure!(told.contains("nft rules        not told: "), "{told}");
        return Ok(());
    }
    for what in [
        "nft rules        exact: ",
        "nft policies     exact: ",
        "iptables-legacy  exact: ",
        "hook functions   exact: ",
    ] {
        ensure!(told.contains(what), "no {what:?} in\n{told}");
    }
    let inode = netns.inode();
    for line in [
        format!("netns {inode}  legacy  ipv4    filter: exact; 1 rules that can drop\n"),
        format!("netns {inode}  nft     inet    dt-doctor: exact; 0 rules in all\n"),
    ] {
        ensure!(told.contains(&line), "no {line:?} in\n{told}");
    }
    Ok(())
}

/// A program in the driver: named, with what the driver counts of its drops.
fn xdp() -> Result<()> {
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    let bouncer = xdp::attach(netns, "s0", XdpMode::Driver)?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 9));
    pair.client.inject(&vec![packet::udp(from, to, b"unwanted"); 3])?;
    let told = doctor_in(netns)?;
    let line = told.lines().find(|line| line.starts_with(&format!("  s0  driver  {} ", xdp::NAME)));
    let line = line.with_context(|| format!("no program in\n{told}"))?;
    for what in [
        &format!(" (id {}, tag ", bouncer.id),
        "): drops here never become an skb and can't be seen",
        "; counted: ",
    ] {
        ensure!(line.contains(what), "no {what:?} in {line}");
    }
    // The kernel may say once more which multicast groups it is in (RFC 3810 6.1).
    let is_count = |count: &str| count.parse::<u64>().is_ok_and(|count| (3..6).contains(&count));
    let (_, rest) = line.split_once("; counted: ").unwrap_or_default();
    let counted = rest.split_once(" dropped (rx_queue_0_xdp_drops");
    ensure!(counted.is_some_and(|(count, _)| is_count(count)), "another count in {line}");
    let counted = told.lines().find(|line| line.contains("  s0 rx_queue_*_xdp_drops ("));
    let count = counted.and_then(|line| line.split_whitespace().next());
    ensure!(count.is_some_and(is_count), "no such counter in\n{told}");
    // Another network namespace's programs are not this one's.
    ensure!(doctor_in(&pair.client.netns)?.contains("XDP programs in this network namespace\n  none\n"));
    Ok(())
}

/// A program on the skb: that its drops are seen is true.
fn xdp_generic() -> Result<()> {
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    let bouncer = xdp::attach(netns, "s0", XdpMode::Skb)?;
    let told = doctor_in(netns)?;
    let line = format!("  s0  generic  {} (id {}, tag ", xdp::NAME, bouncer.id);
    let said = told.lines().find(|said| said.starts_with(&line));
    ensure!(said.is_some_and(|said| said.ends_with(": drops here are seen")), "no {line:?} in\n{told}");
    let stream = watch()?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 9));
    pair.client.inject(&vec![packet::udp(from, to, b"unwanted"); 3])?;
    let expect = Expect::drops(3, netns)
        .flow("udp", from, to)
        .reason(&["NOT_SPECIFIED", "XDP"])
        .at(&["do_xdp_generic", "netif_receive_generic_xdp"])
        .interface("s0");
    verify(stream, &[expect], &[&pair.client.netns])
}

/// Drops by known rules and functions, many times over: each is told, and right.
fn self_test() -> Result<()> {
    let netns = Namespace::new()?;
    netns.run("iptables-legacy -nL")?;
    netns.run("nft list tables")?;
    let told = doctor(&["--self-test"])?;
    let line = told.lines().find(|line| line.contains(" drops by known rules and functions: "));
    let line = line.with_context(|| format!("no self-test in\n{told}"))?.trim();
    if kernel::version() >= (5, 17) {
        let (drops, _) = line.split_once(' ').context("no count")?;
        // 100 rounds, each at two depths, of 10 packets at least.
        ensure!(drops.parse::<u64>()? >= 2000, "{line}");
        ensure!(line.ends_with(&format!("{drops} told, 0 not told, 0 wrong")), "{line}");
    }
    Ok(())
}

/// The self-test with probes armed: hook states and rules that both tell are the same.
fn probes_agree_with_the_stack() -> Result<()> {
    let netns = Namespace::new()?;
    netns.run("iptables-legacy -nL")?;
    netns.run("nft list tables")?;
    let output = droptrace(&["doctor", "--offline", "--self-test", "--probes", "always"])?.output()?;
    let (told, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(3) && why.contains("--probes always: ") {
        return Err(skip("this kernel allows no probes; droptrace says so and ends with 3"));
    }
    ensure!(matches!(output.status.code(), Some(0 | 4)), "ended with {}: {why}", output.status);
    let line = told.lines().find(|line| line.contains(" answers of the stack and of the probes agreed, "));
    let line = line.with_context(|| format!("no probes in\n{told}"))?.trim();
    let (agreed, rest) = line.split_once(' ').context("no count")?;
    ensure!(rest.contains("agreed, 0 did not"), "{line}");
    // On 5.10 the stack tells nothing that probes could agree with.
    ensure!(kernel::version() < (5, 15) || agreed.parse::<u64>()? >= 1000, "{line}");
    Ok(())
}

/// Modules, and the tables of a netns.
#[derive(Debug, PartialEq, Eq)]
struct State {
    modules: BTreeSet<String>,
    tables: Vec<String>,
    nft: String,
}

fn state(netns: &Namespace) -> Result<State> {
    // A kernel without modules has no such file.
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let modules = modules.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    let tables = netns.enter(|| {
        // A file that is not there lists no table.
        let names = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        Ok(["ip_tables_names", "ip6_tables_names"].map(names).to_vec())
    })?;
    Ok(State { modules, tables, nft: netns.run("nft list ruleset")? })
}

/// Rules are read where there are some, and nowhere else: no module is loaded for it, no table comes into being.
fn looking_changes_nothing() -> Result<()> {
    let pair = Pair::new()?;
    // What the tests' own tools load is loaded before.
    let netns = &pair.server.netns;
    netns.run("nft add table ip dt-looked")?;
    netns.run("iptables-legacy -t raw -A PREROUTING -p udp --dport 9 -j DROP")?;
    let before = state(netns)?;
    doctor(&[])?;
    let stream = Droptrace::start(&["--netns", &netns.inode().to_string()])?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 9));
    pair.client.inject(&[packet::udp(from, to, b"looked at")])?;
    stream.wait("the drop came", |output| output.drops_in(&[netns.inode()]).next().is_some())?;
    stream.stop()?;
    let after = state(netns)?;
    ensure!(before == after, "before: {before:?}\nafter: {after:?}");
    Ok(())
}
