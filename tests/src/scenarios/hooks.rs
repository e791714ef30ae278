//! Hooks of other families than IP's: of ARP, of bridges, and of devices. Which of them dropped, by a rule and by a policy.

use super::answer::{Blame, expects_exact_here};
use super::expect::{Expect, verify, watch};
use super::{alone, skip};
use crate::bed::arptables;
use crate::bed::backend::Backend;
use crate::bed::command;
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::ebtables;
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::program;
use crate::bed::record::Record;
use crate::bed::send;
use crate::bed::topology::{Bridged, End, Family, Pair, Routed};
use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for culprit in [Culprit::Rule, Culprit::Policy] {
        let name = culprit.name();
        for hook in ["input", "output"] {
            trials.push(super::beside(format!("hooks::nft_arp_{hook}_{name}"), move || arp(hook, culprit)));
        }
        for family in [Family::V4, Family::V6] {
            for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
                let name = format!("hooks::nft_bridge_{hook}_{name}::{}", family.name());
                trials.push(super::beside(name, move || bridge(family, hook, culprit)));
            }
            for (table, hook) in [("netdev", "ingress"), ("netdev", "egress"), ("inet", "ingress")] {
                let name = format!("hooks::nft_{table}_{hook}_{name}::{}", family.name());
                trials.push(super::beside(name, move || device(family, table, hook, culprit)));
            }
        }
    }
    trials.push(super::beside("hooks::arp_legacy_input", arp_legacy));
    trials.push(super::beside("hooks::bridge_legacy_prerouting", bridge_legacy_prerouting));
    trials.push(super::beside("hooks::bridge_netfilter", bridge_netfilter));
    trials.push(super::beside("hooks::bridge_invalid_source", bridge_invalid_source));
    for family in [Family::V4, Family::V6] {
        let name = |what| format!("hooks::changing_{what}::{}", family.name());
        trials.push(alone(name("beside_bpf"), move || changing_beside_bpf(family)));
        trials.push(alone(name("beside_nat"), move || changing_beside_nat(family)));
    }
    trials
}

/// What of a chain drops.
#[derive(Clone, Copy)]
enum Culprit {
    Rule,
    Policy,
}

impl Culprit {
    fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Policy => "policy",
        }
    }

    /// Makes a table `t` with a chain `c` on a hook that drops what `matches`, or everything by its policy; a skip where the
    /// kernel has no such hook. Returns what is to blame.
    fn load(self, netns: &Namespace, family: &str, hook: &str, matches: &str) -> Result<Blame> {
        let (policy, rules) = match self {
            Self::Rule => {
                ("accept", format!("counter comment \"u1\"\n{matches} counter drop comment \"u2\""))
            }
            Self::Policy => ("drop", "counter comment \"u1\"".to_owned()),
        };
        let text = format!(
            "table {family} t {{\nchain c {{\ntype filter hook {hook} priority 0; policy {policy};\n{rules}\n}}\n}}\n"
        );
        netns
            .feed("nft -f -", &text)
            .map_err(|error| skip(format!("no {hook} hook in {family} tables: {error:#}")))?;
        let blame = match self {
            Self::Policy => Blame::policy(Backend::Nft, family, "t", "c"),
            Self::Rule => {
                let listed = Backend::Nft.list(netns, Family::V4)?;
                let rule = listed.iter().find(|rule| rule.comment.as_deref() == Some("u2"));
                let rule = rule.context("the rule is not listed")?;
                Blame::rule(Backend::Nft, rule, "drop").text(&rule.text)
            }
        };
        let name = hook.split(' ').next().unwrap_or(hook);
        Ok(blame.at_named(&name.to_uppercase()))
    }
}

/// A request that comes in, or its answer on the way out.
fn arp(hook: &'static str, culprit: Culprit) -> Result<()> {
    let Pair { client, server } = Pair::new()?;
    let operation = if hook == "input" { "request" } else { "reply" };
    let blame = culprit.load(&server.netns, "arp", hook, &format!("arp operation {operation}"))?;
    let request = packet::arp_request(client.end.mac(), client.end.v4.octets(), server.end.v4.octets());
    let stream = watch()?;
    client.netns.enter(|| send::frames(client.end.device, &[request]))?;
    let expect = Expect::drops(1, &server.netns)
        .identify("/network/family", "arp")
        .reason(&["NETFILTER_DROP"])
        .at(&["nft_do_chain", "nf_hook_slow"])
        .blame(blame, expects_exact_here(Backend::Nft));
    verify(stream, &[expect], &[])
}

/// The legacy table of ARP: its function is known, and that it is a table; which of its rules dropped is not.
fn arp_legacy() -> Result<()> {
    let Pair { client, server } = Pair::new()?;
    arptables::drop_incoming(&server.netns)
        .map_err(|error| skip(format!("no legacy table of ARP: {error:#}")))?;
    // What the self-test learns from, before 6.4 too.
    server.netns.run("nft list tables")?;
    server.netns.run("iptables-legacy -nL")?;
    let request = packet::arp_request(client.end.mac(), client.end.v4.octets(), server.end.v4.octets());
    let stream = watch()?;
    client.netns.enter(|| send::frames(client.end.device, &[request]))?;
    let expect = Expect::drops(1, &server.netns)
        .identify("/network/family", "arp")
        .reason(&["NETFILTER_DROP"])
        .at(&["nf_hook_slow"]);
    let expect = if expects_exact_here(Backend::Legacy) {
        expect
            .field("/drop/netfilter/family", "arp")
            .field("/drop/netfilter/hook", "INPUT")
            .field_among("/drop/netfilter/function", &["arpt_do_table", "arptable_filter_hook"])
            .field("/drop/netfilter/backend", "legacy")
            .field("/drop/netfilter/table", Value::Null)
            .field("/drop/netfilter/rule", Value::Null)
            .field("/drop/netfilter/confidence", "ambiguous")
    } else {
        expect
    };
    verify(stream, &[expect], &[])
}

/// A frame from one port to another, to the bridge itself, or from there.
fn bridge(family: Family, hook: &'static str, culprit: Culprit) -> Result<()> {
    let Bridged { client, middle, server } = Bridged::new()?;
    let own = End::new("br0", 3, 9);
    middle.run(&format!("ip link set br0 address {}", packet::mac_text(own.mac())))?;
    middle.run(&format!("ip addr add {}/24 dev br0", own.v4))?;
    middle.run(&format!("ip addr add {}/64 dev br0 nodad", own.v6))?;
    let server_mac = packet::mac_text(server.end.mac());
    for address in [IpAddr::from(server.end.v4), IpAddr::from(server.end.v6)] {
        middle.run(&format!("ip neigh replace {address} lladdr {server_mac} dev br0 nud permanent"))?;
    }
    let blame = culprit.load(&middle, "bridge", hook, "udp dport 4242")?;
    let stream = watch()?;
    let to_own = hook == "input";
    let (from, to) = match hook {
        "output" => (own.port(family, 40_000), server.port(family, 4242)),
        "input" => (client.port(family, 40_000), own.port(family, 4242)),
        _ => (client.port(family, 40_000), server.port(family, 4242)),
    };
    if hook == "output" {
        middle.enter(|| send::udp(from, to, b"unwanted", 1))?;
    } else {
        let mac = if to_own { own.mac() } else { server.end.mac() };
        let frame = packet::frame(client.end.mac(), mac, &packet::udp(from, to, b"unwanted"));
        client.netns.enter(|| send::frames(client.end.device, &[frame]))?;
    }
    let expect = Expect::drops(1, &middle)
        .flow("udp", from, to)
        .at(&["nft_do_chain", "nf_hook_slow", "br_handle_frame"])
        .blame(blame, expects_exact_here(Backend::Nft));
    verify(stream, &[expect], &[&server.netns])
}

/// Bridges call the functions of their PREROUTING hook themselves. From 6.14 their own drops have reasons, and then what has
/// none is the hook's.
fn bridge_legacy_prerouting() -> Result<()> {
    let Bridged { client, middle, server } = Bridged::new()?;
    ebtables::drop_incoming(&middle)
        .map_err(|error| skip(format!("no legacy nat table of bridges: {error:#}")))?;
    let (from, to) = (client.port(Family::V4, 40_000), server.port(Family::V4, 4242));
    let stream = watch()?;
    client.inject(&[packet::udp(from, to, b"unwanted")])?;
    let expect = at_prerouting(Expect::drops(1, &middle).flow("udp", from, to).at(&["br_handle_frame"]));
    let expect = if kernel::has_reason(OWN_REASON) {
        expect.field_among("/drop/netfilter/function", &["ebt_do_table", "ebt_nat_in", "ebt_nat_hook"])
    } else {
        expect.field("/drop/netfilter/function", Value::Null)
    };
    // Which rule of the table, nobody knows.
    verify(stream, &[expect.field("/drop/netfilter/confidence", "ambiguous")], &[&server.netns])
}

/// What the kernel says of a bridge's own drops, from 6.14.
const OWN_REASON: &str = "BRIDGE_INGRESS_STP_STATE";

fn at_prerouting(expect: Expect) -> Expect {
    expect
        .field("/drop/netfilter/family", "bridge")
        .field("/drop/netfilter/hook", "PREROUTING")
        .field("/drop/netfilter/table", Value::Null)
}

/// br_netfilter drops what has a wrong header; newer kernels free it there.
fn bridge_netfilter() -> Result<()> {
    let Bridged { client, middle, server } = Bridged::new()?;
    let _ = command::run("modprobe br_netfilter");
    middle
        .run("sysctl -qw net.bridge.bridge-nf-call-iptables=1")
        .map_err(|error| skip(format!("no br_netfilter: {error:#}")))?;
    // It comes to the hook with the first bridge that is made after it was loaded.
    middle.run("ip link add br1 type bridge")?;
    let (from, to) = (client.port(Family::V4, 40_000), server.port(Family::V4, 4242));
    let stream = watch()?;
    // The header's checksum is wrong (RFC 791, 3.1).
    let mut packet = packet::udp(from, to, b"unwanted");
    packet[10] ^= 0x55;
    client.inject(&[packet])?;
    let expect = Expect::drops(1, &middle)
        .identify("/network/interface", "b0")
        .at(&["br_handle_frame", "br_nf_pre_routing"])
        .field_among_or_null("/drop/netfilter/function", &["br_nf_pre_routing"]);
    verify(stream, &[at_prerouting(expect)], &[&server.netns])
}

/// What a bridge drops of its own account is no drop of a hook, where the kernel tells them apart; else nothing is sure.
fn bridge_invalid_source() -> Result<()> {
    let Bridged { client, middle, server } = Bridged::new()?;
    let (from, to) = (client.port(Family::V4, 40_000), server.port(Family::V4, 4242));
    let stream = watch()?;
    // A group's address sends nothing (IEEE 802.3, 3.2.3).
    let frame = packet::frame([1, 0, 0x5e, 0, 0, 9], server.end.mac(), &packet::udp(from, to, b"unwanted"));
    client.netns.enter(|| send::frames(client.end.device, &[frame]))?;
    let expect = Expect::drops(1, &middle).flow("udp", from, to).at(&["br_handle_frame"]);
    let expect = if kernel::has_reason(OWN_REASON) {
        expect.field("/drop/netfilter", Value::Null).cause("mac-invalid-source")
    } else {
        expect.field_among_or_null("/drop/netfilter/confidence", &["ambiguous"])
    };
    verify(stream, &[expect], &[&server.netns])
}

/// At a device of the router, before or behind all other hooks.
fn device(family: Family, table: &'static str, hook: &'static str, culprit: Culprit) -> Result<()> {
    let routed = Routed::new()?;
    let (device, field) = match hook {
        "ingress" => ("r0", "/network/interface_in"),
        _ => ("r1", "/network/interface_out"),
    };
    // Egress hooks came with 5.16, ingress in inet tables with 5.10.
    let blame = culprit.load(&routed.router, table, &format!("{hook} device {device}"), "udp dport 4242")?;
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    let stream = watch()?;
    routed.client.inject(&[packet::udp(from, to, b"unwanted")])?;
    let expect = Expect::drops(1, &routed.router)
        .flow("udp", from, to)
        .reason(&["NETFILTER_DROP"])
        .at(&["nft_do_chain", "nf_hook_slow"])
        .interface(device)
        .field(field, device)
        .blame(blame, expects_exact_here(Backend::Nft));
    verify(stream, &[expect], &[&routed.server.netns])
}

/// Whatever an exact answer says of a drop in a storm of changes must be right; so many must be exact.
fn judge(
    stream: Droptrace,
    netns: &Namespace,
    drops: u64,
    least: u64,
    is_right: impl Fn(&Record) -> bool,
) -> Result<()> {
    let ours =
        |record: &&Record| record.netns() == Some(netns.inode()) && record.function() == "nf_hook_slow";
    let count = |output: &Output| output.records.iter().filter(ours).map(Record::count).sum::<u64>();
    let waited = stream.wait("all drops came", |output| count(output) >= drops);
    let output = stream.stop()?;
    waited?;
    let exact = |record: &&Record| record.text("/drop/netfilter/confidence") == Some("exact");
    let (mut sure, mut events) = (0, 0);
    for record in output.records.iter().filter(ours) {
        events += 1;
        if !exact(&record) {
            continue;
        }
        sure += 1;
        ensure!(
            is_right(record),
            "WRONG EXACT: {} is said of {}",
            record.get("/drop/netfilter"),
            record.brief()
        );
    }
    eprintln!("{sure} of {events} answers were exact");
    ensure!(sure >= least, "only {sure} of {events} answers were exact");
    Ok(())
}

/// Does something again and again while something else is done once.
fn meanwhile<T>(again: impl Fn() -> Result<()> + Sync, once: impl FnOnce() -> Result<T>) -> Result<T> {
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !finished.load(Ordering::Acquire) {
                again()?;
            }
            anyhow::Ok(())
        });
        let done = once();
        finished.store(true, Ordering::Release);
        other.join().map_err(|_| anyhow!("the other thread panicked"))??;
        done
    })
}

/// One BPF program on a hook drops, while others that let pass come and go before it: so its place changes all the time.
fn changing_beside_bpf(family: Family) -> Result<()> {
    /// NF_INET_LOCAL_IN
    const INPUT: u32 = 1;
    const PACKETS: u16 = 800;
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    let guard = match program::attach(netns, "guard", true, family, INPUT, 50) {
        Err(error) if kernel::version() < (6, 4) => {
            return Err(skip(format!("no BPF programs on hooks before 6.4: {error:#}")));
        }
        attached => attached?,
    };
    let stream = Droptrace::start(&["--all", "--netns", &netns.inode().to_string()])?;
    let change = || {
        let before = (1..4).map(|priority| program::attach(netns, "before", false, family, INPUT, priority));
        before.collect::<Result<Vec<_>>>().map(drop)
    };
    meanwhile(change, || {
        for number in 0..PACKETS {
            let (from, to) = (pair.client.port(family, 20_000 + number), pair.server.port(family, 4242));
            pair.client.inject(&[packet::udp(from, to, b"unwanted")])?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?;
    judge(stream, netns, PACKETS.into(), u64::from(PACKETS) / 2, |record| {
        record.text("/drop/netfilter/function") == Some("nf_hook_run_bpf")
            && record.number("/drop/netfilter/program/id") == Some(guard.id.into())
    })
}

/// NAT drops packets whose connections were masqueraded for another interface, while nft chains come and go before it.
fn changing_beside_nat(family: Family) -> Result<()> {
    const FLOWS: u16 = 150;
    let routed = Routed::new()?;
    let (router, table) = (&routed.router, family.pick("ip", "ip6"));
    let rules = format!(
        "table {table} nat {{\nchain post {{\ntype nat hook postrouting priority srcnat; policy accept;\n\
         oifname \"r1\" masquerade\n}}\n}}\n"
    );
    router.feed("nft -f -", &rules).map_err(|error| skip(format!("no NAT: {error:#}")))?;
    // Longer than droptrace takes to start on a slow machine.
    router.sysctl("net.netfilter.nf_conntrack_udp_timeout", "600")?;
    if kernel::version() < (6, 4) {
        // What the self-test learns from.
        router.run("iptables-legacy -nL")?;
    }
    let to = routed.server.port(family, 53);
    let send = || -> Result<()> {
        for number in 0..FLOWS {
            routed.client.inject(&[packet::udp(routed.client.port(family, 20_000 + number), to, b"?")])?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    send()?;
    router.run("ip link add moved type veth peer name aside")?;
    router.run("ip link set moved up")?;
    router.run(&format!("ip route add {}/{} dev moved", to.ip(), family.pick(32, 128)))?;
    let stream = Droptrace::start(&["--all", "--netns", &router.inode().to_string()])?;
    let change = || {
        let hook = "type filter hook postrouting priority";
        router.feed("nft -f -", &format!("add table {table} t; add chain {table} t a {{ {hook} 5; }}; add chain {table} t b {{ {hook} 6; }}"))?;
        router.run(&format!("nft delete table {table} t")).map(drop)
    };
    meanwhile(change, send)?;
    let least = if kernel::version() >= (6, 1) { u64::from(FLOWS) / 2 } else { 0 };
    let function = family.pick("nf_nat_ipv4_out", "nf_nat_ipv6_out");
    judge(stream, router, FLOWS.into(), least, |record| {
        record.text("/drop/netfilter/function") == Some(function)
    })
}
