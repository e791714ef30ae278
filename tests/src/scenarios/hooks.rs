//! Hooks of other families than IP's: of ARP, of bridges, and of devices. Which of them dropped, by a rule and by a policy.

use super::answer::{Blame, expects_exact_here};
use super::expect::{Expect, verify, watch};
use super::skip;
use crate::bed::backend::Backend;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::send;
use crate::bed::topology::{Bridged, End, Family, Pair, Routed};
use anyhow::{Context, Result};
use libtest_mimic::Trial;
use std::net::IpAddr;

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
            Self::Rule => ("accept", format!("counter comment \"u1\"\n{matches} counter drop comment \"u2\"")),
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
