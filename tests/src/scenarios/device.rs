//! Drops at a device: tc programs and queueing disciplines.

use super::expect::{Expect, verify, watch};
use super::{both_here, skip};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::send;
use crate::bed::topology::{Family, Pair};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

pub(super) fn trials() -> Vec<Trial> {
    [
        both_here("device::tc_ingress", tc_ingress),
        both_here("device::tc_egress", tc_egress),
        both_here("device::queue_full", queue_full),
        both_here("device::netem_loss", netem_loss),
        both_here("device::netem_limit", netem_limit),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Makes a device drop everything in one direction. Returns the classifier's kind, and how sure droptrace can be of it.
fn tc_drop(netns: &Namespace, device: &str, direction: &str) -> Result<(&'static str, &'static str)> {
    netns.run(&format!("tc qdisc add dev {device} clsact"))?;
    let filter = format!("filter add dev {device} {direction}");
    if netns.run(&format!("tc {filter} matchall action drop")).is_ok() {
        // Its actions may lead to filters of other chains.
        return Ok(("matchall", "inferred"));
    }
    // A classic BPF program of one instruction, "return TC_ACT_SHOT", for kernels without matchall or gact. It needs
    // quotes, which the batch reader of tc understands.
    netns.feed("tc -batch -", &format!("{filter} bpf da bytecode \"1,6 0 0 2\"\n"))?;
    let is_sure = kernel::has_reason("TC_INGRESS") && kernel::describes_modules();
    Ok(("bpf", if is_sure { "exact" } else { "inferred" }))
}

/// What is said of such a filter.
fn classic(expect: Expect, (kind, confidence): (&str, &str)) -> Expect {
    expect
        .field("/drop/bpf/attached", "clsact")
        .field("/drop/bpf/classifier", kind)
        .field("/drop/bpf/confidence", confidence)
        .field("/drop/bpf/program", Value::Null)
}

fn tc_ingress(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 4242));
    let filter = tc_drop(&pair.server.netns, "s0", "ingress")?;
    let stream = watch()?;
    pair.client.inject(&vec![packet::udp(from, to, b"unwanted"); 3])?;
    let expect = Expect::drops(3, &pair.server.netns)
        .flow("udp", from, to)
        .reason(&["TC_INGRESS"])
        .at(&["__netif_receive_skb_core", "sch_handle_ingress", "tcf_classify", "__tcf_kfree_skb_list"])
        .cause("tc-program")
        .interface("s0");
    verify(stream, &[classic(expect, filter)], &[&pair.client.netns])
}

fn tc_egress(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 4242));
    let filter = tc_drop(&pair.client.netns, "c0", "egress")?;
    let stream = watch()?;
    pair.client.netns.enter(|| send::udp(from, to, b"unwanted", 3))?;
    let expect = Expect::drops(3, &pair.client.netns)
        .flow("udp", from, to)
        .reason(&["TC_EGRESS"])
        .at(&["__dev_queue_xmit", "sch_handle_egress", "__tcf_kfree_skb_list"])
        .cause("tc-program")
        .interface("c0");
    verify(stream, &[classic(expect, filter)], &[&pair.server.netns])
}

/// Where a qdisc's victims are freed.
const QUEUE: &[&str] = &[
    "kfree_skb_list_reason",
    "kfree_skb_list",
    "__dev_queue_xmit",
    "__tcf_kfree_skb_list",
    "__dev_xmit_skb",
];
const QUEUE_REASON: &[&str] = &["QDISC_DROP", "QDISC_OVERLIMIT", "OVERLIMIT", "GENERIC", "QDISC_GENERIC"];

/// Sends `sent` packets into the client's qdisc and expects as many drops as the qdisc itself says.
fn qdisc_drops(pair: &Pair, family: Family, sent: u64, cause: &'static str) -> Result<()> {
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 4242));
    let stream = watch()?;
    pair.client.netns.enter(|| send::udp(from, to, &[0; 400], sent as usize))?;
    let shown = pair.client.netns.run("tc -s qdisc show dev c0")?;
    let dropped = dropped(&shown).unwrap_or(0);
    ensure!(dropped > 0, "the qdisc dropped nothing:\n{shown}");
    let expect = Expect::drops(dropped, &pair.client.netns)
        .flow("udp", from, to)
        .reason(QUEUE_REASON)
        .at(QUEUE)
        .cause(cause)
        .interface_if_known("c0");
    verify(stream, &[expect], &[])
}

/// The number in `(dropped 7, overlimits 0 requeues 0)` of `tc -s qdisc`.
fn dropped(shown: &str) -> Option<u64> {
    shown.split_once("(dropped ")?.1.split_once(',')?.0.parse().ok()
}

/// A token bucket that lets a few packets through and holds one more.
fn queue_full(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    let bucket = "tc qdisc add dev c0 root tbf rate 8kbit burst 1000 limit 1000";
    pair.client.netns.run(bucket).map_err(|error| skip(format!("no sch_tbf: {error:#}")))?;
    qdisc_drops(&pair, family, 20, "queue-full")
}

fn netem(pair: &Pair, options: &str) -> Result<()> {
    let line = format!("tc qdisc add dev c0 root netem {options}");
    pair.client.netns.run(&line).map(drop).map_err(|error| skip(format!("no sch_netem: {error:#}")))
}

fn netem_loss(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    netem(&pair, "loss 100%")?;
    qdisc_drops(&pair, family, 5, "queue-full")
}

/// Packets wait in netem's tree, which overwrites `skb->dev`, until it is full.
fn netem_limit(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    netem(&pair, "delay 30s limit 3")?;
    qdisc_drops(&pair, family, 8, "queue-full")
}
