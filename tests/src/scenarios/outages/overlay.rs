//! The network between nodes.

use super::node::{Node, REDIS};
use super::outage::{Outage, ROUTED, Says};
use super::services::{INSISTS, world};
use crate::bed::topology::End;
use anyhow::Result;
use std::net::Ipv4Addr;

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "overlay-port-blocked",
        what: "A firewall drops the overlay's packets (VXLAN, UDP 8472)",
        breaks: |node| {
            overlay(node, node.far.v4, node.redis.end.v4)?;
            node.rules("*filter\n-A OUTPUT -p udp -m udp --dport 8472 -j DROP\nCOMMIT\n")
        },
        sends: |node| node.dials(node.db()),
        heals: |node| node.run("iptables-legacy -D OUTPUT 1"),
        facts: &[
            "filter:OUTPUT:rule:1",
            "The pod network's own traffic is filtered",
            "a vxlan packet that carried",
            "10.244.",
            "to port 8472",
            "Allow port 8472 between the addresses of all nodes",
        ],
        more: &["inner vxlan vni 7 ", "rule -A OUTPUT -p udp -m udp --dport 8472 -j DROP"],
        ..ROUTED
    },
    Outage {
        id: "overlay-wrong-iface",
        what: "The overlay leaves by the interface of the default route, where no node answers",
        breaks: |node| {
            node.rules("*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")?;
            world(node)?;
            overlay(node, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2))
        },
        sends: |node| node.dials_for(node.db(), INSISTS),
        heals: |node| {
            node.run("ip link del vx0")?;
            overlay_of(node, node.far.v4, node.redis.end.v4)
        },
        says: Says::Unanswered,
        facts: &[
            "0 drops for --pod shop/cart-0",
            "SYN retransmits from shop/cart-0 to shop/db-0:6379",
            "on n2: droptrace --pod shop/db-0",
            "their way through this node: droptrace trace --pod shop/cart-0",
        ],
        then: &["trace", "--pod", "shop/cart-0"],
        then_facts: &["left on up0 as VXLAN 192.0.2.1 -> 192.0.2.2 (vni 7)", "no reply in 2 s"],
        ..ROUTED
    },
];

/// The node's end of the overlay on this wire, and that of db-0's node (redis-0's network namespace), which has the pod.
fn overlay(node: &Node, local: Ipv4Addr, remote: Ipv4Addr) -> Result<()> {
    let (there, here, db) = (node.redis.end.v4, node.far.v4, node.db());
    let other = End::new("vx0", 1, 2).mac();
    node.redis.netns.feed(
        "ip -batch -",
        &format!(
            "link add vx0 address {} type vxlan id 7 local {there} remote {here} dstport 8472 nolearning\n\
             link set vx0 up\naddr add {db}/32 dev vx0\nroute add {}/32 dev vx0\n\
             neigh replace {} lladdr {} dev vx0 nud permanent\n",
            crate::bed::packet::mac_text(other),
            node.cart.end.v4,
            node.cart.end.v4,
            crate::bed::packet::mac_text(End::new("vx0", 1, 1).mac()),
        ),
    )?;
    node.listens(&node.redis.netns, (db, REDIS))?;
    overlay_of(node, local, remote)
}

/// The node's end alone.
fn overlay_of(node: &Node, local: Ipv4Addr, remote: Ipv4Addr) -> Result<()> {
    let [own, other] = [1, 2].map(|host| crate::bed::packet::mac_text(End::new("vx0", 1, host).mac()));
    let db = node.db();
    let batch = format!(
        "link add vx0 address {own} type vxlan id 7 local {local} remote {remote} dstport 8472 nolearning\n\
         link set vx0 up\nroute add {db}/32 dev vx0\nneigh replace {db} lladdr {other} dev vx0 nud permanent\n"
    );
    node.netns.feed("ip -batch -", &batch).map(drop)
}
