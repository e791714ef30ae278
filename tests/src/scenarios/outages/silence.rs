//! Nothing is dropped on this node.

use super::node::REDIS;
use super::outage::{Outage, ROUTED, Says};
use super::services::{INSISTS, world};

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "silent-peer",
        what: "Somebody outside ignores what a pod sends; this node drops nothing",
        breaks: |node| {
            node.redis.netns.run(&format!("ip addr add {}/32 dev lo", node.outside()))?;
            node.listens(&node.redis.netns, (node.outside(), REDIS))?;
            world(node)
        },
        sends: |node| node.dials_for(node.outside(), INSISTS),
        // It answers again.
        heals: |node| node.run(&format!("ip route add {}/32 via {}", node.outside(), node.redis.end.v4)),
        says: Says::Unanswered,
        facts: &[
            "0 drops for --pod shop/cart-0",
            "SYN retransmit",
            "unanswered: lost off this node, or not answered",
            "; next: is 198.51.",
        ],
        ..ROUTED
    },
    Outage {
        id: "no-drop",
        what: "Nothing is wrong",
        sends: |node| {
            let to = node.server(8080);
            // Fragments, too.
            Ok(node.asks_redis(8080)? && node.asks(1, to, (&node.redis.netns, to), &[0; 1900])? == 1)
        },
        says: Says::Nothing,
        facts: &["0 drops for --pod shop/cart-0", "no TCP retransmits"],
        ..ROUTED
    },
];
