//! Routes, forwarding, neighbours, sizes.

use super::node::Node;
use super::outage::{Outage, ROUTED, Says};
use super::services::world;
use anyhow::Result;

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "two-defaults",
        what: "Two default routes: some flows leave by an interface where nobody answers",
        breaks: |node| {
            node.rules("*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")?;
            world(node)?;
            let (outside, via) = (node.outside(), node.redis.end.v4);
            node.redis.netns.run(&format!("ip addr add {outside}/32 dev lo"))?;
            node.netns.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
            node.run(&format!(
                "ip route replace default nexthop via 192.0.2.2 dev up0 nexthop via {via} dev r1"
            ))
        },
        sends: |node| {
            let there = (node.outside(), 53).into();
            Ok(node.asks(16, there, (&node.redis.netns, there), b"?")? == 16)
        },
        heals: |node| node.run(&format!("ip route replace default via {} dev r1", node.redis.end.v4)),
        says: Says::Unanswered,
        facts: &[
            "0 drops for --pod shop/cart-0",
            "UDP connection",
            " from shop/cart-0 to 198.51.",
            ":53 without a reply",
            "their way through this node: droptrace trace --pod shop/cart-0",
        ],
        then: &["trace", "--pod", "shop/cart-0"],
        then_facts: &["left on up0", "no reply in 2 s", "r1"],
        ..ROUTED
    },
    Outage {
        id: "ip-forward-off",
        what: "Forwarding was switched off: a pod's packets are not routed on",
        breaks: |node| node.netns.sysctl("net.ipv4.ip_forward", "0"),
        sends: |node| node.asks_redis(8080),
        heals: |node| node.netns.sysctl("net.ipv4.ip_forward", "1"),
        facts: &[
            "shop/cart-0:40000 -> shop/redis-0:8080",
            "IPv4 forwarding is off on r0",
            "sysctl -w net.ipv4.ip_forward=1",
        ],
        more: &["undone by: A restart of the network service"],
        ..ROUTED
    },
    Outage {
        id: "ip-forward-off-uplink",
        what: "Forwarding is off on the uplink alone: masqueraded requests leave, their answers vanish before FORWARD",
        breaks: |node| {
            node.redis.netns.run("ip route del default")?;
            node.rules(
                "*nat\n-A POSTROUTING -o r1 -j MASQUERADE\nCOMMIT\n*filter\n-A FORWARD -p tcp -j ACCEPT\nCOMMIT\n",
            )?;
            node.netns.sysctl("net.ipv4.conf.r1.forwarding", "0")
        },
        sends: |node| node.asks_redis(8080),
        heals: |node| {
            node.netns.sysctl("net.ipv4.ip_forward", "1")?;
            node.netns.sysctl("net.ipv4.conf.r1.forwarding", "1")
        },
        facts: &[
            "shop/redis-0:8080 -> shop/cart-0:40000",
            "IPv4 forwarding is off on r1",
            "net/ipv4/conf/r1/forwarding=1`",
        ],
        more: &["undone by: A restart of the network service", "ct established reply"],
        ..ROUTED
    },
    Outage {
        id: "pod-route-lost",
        what: "The route to a pod is missing",
        breaks: |node| node.redis.netns.run(&format!("ip addr add {}/32 dev lo", node.db())).map(drop),
        sends: |node| asks_db(node),
        heals: |node| node.run(&format!("ip route add {}/32 via {}", node.db(), node.redis.end.v4)),
        facts: &["shop/cart-0:40000 -> shop/db-0:8080", "has no route to shop/db-0", "ip route get 10.244."],
        ..ROUTED
    },
    Outage {
        id: "pod-route-blackhole",
        what: "A blackhole route matches a pod's address",
        breaks: |node| {
            node.redis.netns.run(&format!("ip addr add {}/32 dev lo", node.db()))?;
            node.run("ip route add blackhole 10.244.0.0/16")
        },
        sends: |node| asks_db(node),
        heals: |node| node.run(&format!("ip route add {}/32 via {}", node.db(), node.redis.end.v4)),
        facts: &[
            "shop/cart-0:40000 -> shop/db-0:8080",
            "of table main swallows packets to 10.244.",
            "ip route show table all type blackhole",
        ],
        more: &["node: ", "blackhole"],
        ..ROUTED
    },
    Outage {
        id: "rpf",
        what: "A strict reverse path filter drops packets whose answers would leave by another interface",
        breaks: |node| {
            node.netns.sysctl("net.ipv4.conf.r0.rp_filter", "1")?;
            let (own, via) = (node.cart.end.v4, node.redis.end.v4);
            node.run(&format!("ip route add {own}/32 via {via} dev r1"))
        },
        sends: |node| node.asks_redis(8080),
        heals: |node| node.run(&format!("ip route del {}/32", node.cart.end.v4)),
        facts: &[
            "IP_RPFILTER",
            "would not leave by r0 (mode 1 is in force there)",
            "the greater of both counts",
        ],
        more: &["node: net.ipv4.conf.r0.rp_filter = 1"],
        ..ROUTED
    },
    Outage {
        id: "mtu",
        what: "A packet that must not be fragmented is larger than the MTU of where it is to leave",
        breaks: |node| node.run("ip link set r1 mtu 1300"),
        sends: |node| {
            let to = node.server(8080);
            Ok(node.asks(1, to, (&node.redis.netns, to), &[0; 1400])? == 1)
        },
        heals: |node| node.cart.netns.run("ip link set c0 mtu 1300").map(drop),
        facts: &["PKT_TOO_BIG", "1428 bytes", "the MTU of r1 (1300)", "VXLAN 50"],
        ..ROUTED
    },
    Outage {
        id: "neigh-lost",
        what: "The pod's gateway 169.254.1.1 does not answer: proxy_arp is off on the host's side",
        breaks: |node| {
            let own = node.cart.end.v4;
            node.cart.netns.feed(
                "ip -batch -",
                &format!(
                    "addr flush dev c0\naddr add {own}/32 dev c0\nroute add 169.254.1.1 dev c0 scope link\n\
                     route add default via 169.254.1.1 dev c0\n"
                ),
            )?;
            // One solicitation instead of three: a second less each.
            node.cart.netns.sysctl("net.ipv4.neigh.c0.mcast_solicit", "1")?;
            node.run(&format!("ip route add default via {}", node.redis.end.v4))
        },
        sends: |node| node.asks_redis(8080),
        heals: |node| {
            node.netns.sysctl("net.ipv4.neigh.r0.proxy_delay", "0")?;
            node.netns.sysctl("net.ipv4.conf.r0.proxy_arp", "1")
        },
        facts: &[
            "shop/cart-0:40000 -> shop/redis-0:8080",
            "NEIGH_FAILED",
            "the next hop 169.254.1.1 of shop/redis-0",
            "on c0",
            "proxy_arp of the host's side is 0",
            "proxy_arp=1",
        ],
        more: &["node: net.ipv4.conf.r0.proxy_arp = 0 (sysctl)"],
        ..ROUTED
    },
];

/// cart-0 asks db-0.
fn asks_db(node: &Node) -> Result<bool> {
    let to = (node.db(), 8080).into();
    Ok(node.asks(1, to, (&node.redis.netns, to), b"?")? == 1)
}
