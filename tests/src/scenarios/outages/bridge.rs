//! Pods that share a bridge.

use super::super::skip;
use super::node::{Node, REDIS};
use super::outage::{Outage, ROUTED};
use anyhow::Result;
use std::time::Duration;

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "brnf-off",
        what: "Answers of a Service's pod on the same bridge bypass the translation (bridge-nf-call-iptables=0)",
        node: Node::bridged,
        breaks: |node| {
            call_iptables(node, "0")?;
            node.listens(&node.redis.netns, node.server(REDIS))?;
            node.kube_proxy(node.server(REDIS), "")
        },
        sends: |node| node.dials(node.service()),
        heals: |node| call_iptables(node, "1"),
        facts: &[
            "shop/redis-0:6379 -> shop/cart-0:40000",
            "TCP SYN,ACK",
            "NO_SOCKET",
            "whom it had not dialled",
            "net.bridge.bridge-nf-call-iptables=1` (it is 0 now)",
        ],
        ..ROUTED
    },
    Outage {
        id: "hairpin-off",
        what: "A pod reaches itself by its Service, on a bridge port without hairpin mode",
        node: Node::bridged,
        breaks: |node| {
            call_iptables(node, "1")?;
            node.listens(&node.cart.netns, node.client(REDIS))?;
            node.kube_proxy(node.client(REDIS), "")?;
            // So that it does not see itself as the sender.
            let own = node.cart.end.v4;
            node.run(&format!("iptables-legacy -t nat -A POSTROUTING -s {own}/32 -d {own}/32 -j MASQUERADE"))
        },
        sends: |node| node.dials(node.service()),
        heals: |node| node.run("bridge link set dev v1 hairpin on"),
        facts: &[
            "shop/cart-0 reached itself, by a Service's address",
            "v1",
            "hairpin mode is off there",
            "bridge -d link show dev v1",
        ],
        ..ROUTED
    },
];

/// Whether the bridge shows its packets to iptables; the reason where it can't.
fn call_iptables(node: &Node, value: &str) -> Result<()> {
    // A port that came a moment ago learns where the other is.
    std::thread::sleep(Duration::from_millis(50));
    node.netns
        .sysctl("net.bridge.bridge-nf-call-iptables", value)
        .map_err(|error| skip(format!("without br_netfilter: {error:#}")))
}
