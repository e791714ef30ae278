//! Rules that give packets to a queue of user space that nobody listens to.

use super::answer::expects_exact_here;
use super::expect::{Expect, Stream, verify, watch, watch_alone};
use super::{beside, skip};
use crate::bed::backend::Backend;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::topology::{Family, Routed};
use anyhow::Result;
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for backend in Backend::ALL {
        for family in [Family::V4, Family::V6] {
            let name = |what| format!("queue::{what}_{}::{}", backend.name(), family.name());
            trials.push(beside(name("one_rule"), move || one_rule(backend, family)));
            trials.push(beside(name("two_rules"), move || two_rules(backend, family)));
            trials.push(beside(name("late_rule"), move || late_rule(backend, family)));
        }
    }
    trials
}

/// Loads rules that queue in FORWARD: those with these ports.
fn load(backend: Backend, family: Family, netns: &Namespace, ports: &[u16]) -> Result<()> {
    let lines = |rule: &dyn Fn(u16) -> String| ports.iter().map(|port| rule(*port)).collect::<String>();
    let rules = match backend {
        Backend::Nft => format!(
            "table inet t {{\nchain c {{\ntype filter hook forward priority 0; policy accept;\n\
             udp dport 7 counter accept\n{}}}\n}}\n",
            lines(&|port| format!("udp dport {port} counter queue num 5\n"))
        ),
        _ => format!(
            "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p udp -m udp --dport 7 -j ACCEPT\n{}COMMIT\n",
            lines(&|port| format!("-A FORWARD -p udp -m udp --dport {port} -j NFQUEUE --queue-num 5\n"))
        ),
    };
    backend
        .load(netns, family, &rules)
        .map_err(|error| skip(format!("rules that queue cannot be made here: {error:#}")))
}

/// What is known of any such drop.
fn queued(routed: &Routed, family: Family) -> (Expect, Vec<u8>) {
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    let expect = Expect::drops(1, &routed.router)
        .flow("udp", from, to)
        .at(&["nf_queue"])
        .field("/drop/class", "error")
        .field("/drop/netfilter/verdict", "queue");
    (expect, packet::udp(from, to, b"to whom it may concern"))
}

/// The only rule that can have done it.
fn one_rule(backend: Backend, family: Family) -> Result<()> {
    let routed = Routed::new()?;
    load(backend, family, &routed.router, &[4242])?;
    verify_one(backend, family, &routed, watch()?, "nfqueue")
}

/// A rule that came when droptrace was watching, a moment before its first packet.
fn late_rule(backend: Backend, family: Family) -> Result<()> {
    let routed = Routed::new()?;
    // The modules are there before droptrace is: it learns those that come later in its own time.
    load(backend, family, &routed.server.netns, &[4242])?;
    let stream = watch_alone()?;
    load(backend, family, &routed.router, &[4242])?;
    verify_one(backend, family, &routed, stream, "nfqueue")
}

fn verify_one(
    backend: Backend,
    family: Family,
    routed: &Routed,
    stream: impl Into<Stream>,
    cause: &'static str,
) -> Result<()> {
    let listed = backend.list_with_handles(&routed.router, family)?;
    let rule = listed.iter().find(|rule| rule.text.contains("4242")).cloned();
    let rule = rule.ok_or_else(|| anyhow::anyhow!("no rule for the port in {listed:?}"))?;
    let (expect, packet) = queued(routed, family);
    routed.client.inject(&[packet])?;
    let number = backend.is_iptables().then_some(rule.number);
    let expect = if expects_exact_here(backend) {
        expect
            .cause(cause)
            .field("/drop/netfilter/confidence", "inferred")
            .field("/drop/netfilter/backend", backend.engine())
            .field("/drop/netfilter/hook", "FORWARD")
            .field("/drop/netfilter/table", rule.table)
            .field("/drop/netfilter/chain", rule.chain)
            .field("/drop/netfilter/rule", json!(number))
            .field("/drop/netfilter/handle", json!(rule.handle))
            .field("/drop/netfilter/candidates", json!([]))
    } else {
        expect
    };
    verify(stream, &[expect], &[&routed.server.netns])
}

/// Two rules, and it is not known which.
fn two_rules(backend: Backend, family: Family) -> Result<()> {
    let routed = Routed::new()?;
    load(backend, family, &routed.router, &[4242, 4343])?;
    let stream = watch()?;
    let (expect, packet) = queued(&routed, family);
    routed.client.inject(&[packet])?;
    let expect =
        expect.field("/drop/netfilter/confidence", "ambiguous").field("/drop/netfilter/table", Value::Null);
    let expect = if expects_exact_here(backend) {
        [2, 3].into_iter().fold(expect, |expect, number| {
            let place = match backend {
                Backend::Nft => json!({"table": "t", "chain": "c"}),
                _ => json!({"table": "filter", "chain": "FORWARD", "rule": number}),
            };
            expect.lists("/drop/netfilter/candidates", place)
        })
    } else {
        expect
    };
    verify(stream, &[expect], &[&routed.server.netns])
}
