//! Drops in the IP layer: routes, forwarding, TTL, MTU, neighbours, fragments, ARP.

use super::expect::{Expect, verify, watch};
use super::{both, here_only, one, rules};
use crate::bed::packet::{self, Ip, protocol};
use crate::bed::send;
use crate::bed::topology::{Family, Routed};
use anyhow::Result;
use libtest_mimic::Trial;
use serde_json::json;
use std::net::SocketAddr;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        both("routing::no_route", no_route),
        both("routing::blackhole", blackhole),
        both("routing::ttl_expired", ttl_expired),
        both("routing::forwarding_off", forwarding_off),
        both("routing::packet_too_big", packet_too_big),
        both("routing::neighbour_failed", neighbour_failed),
        both("routing::reassembly_timeout", reassembly_timeout),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.extend(here_only(both("routing::by_interface", by_interface)));
    // IPv6 has no rp_filter and no ARP.
    trials.push(one("routing::reverse_path", Family::V4, reverse_path));
    trials.push(one("routing::own_source", Family::V4, own_source));
    trials.push(one("routing::martian", Family::V4, martian));
    trials.push(one("routing::arp_dropped", Family::V4, arp_dropped));
    trials
}

/// Functions that free a packet whose route says no.
const NO_ROUTE: &[&str] = &["ip_error", "ip6_pkt_drop", "ip6_pkt_discard"];

/// Sends three datagrams from the client to some address and expects them to be dropped by the router.
fn router_drops(routed: &Routed, to: SocketAddr, expect: impl FnOnce(Expect) -> Expect) -> Result<()> {
    let from = routed.client.port(if to.is_ipv4() { Family::V4 } else { Family::V6 }, 40_000);
    let stream = watch()?;
    routed.client.inject(&vec![packet::udp(from, to, b"lost"); 3])?;
    let expected = Expect::drops(3, &routed.router).flow("udp", from, to).interface("r0");
    verify(stream, &[expect(expected)], &[&routed.server.netns])
}

/// An address that no namespace has a route to.
fn elsewhere(family: Family) -> Result<SocketAddr> {
    Ok(family.pick("203.0.113.9:4242", "[2001:db8:9::9]:4242").parse()?)
}

fn no_route(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    router_drops(&routed, elsewhere(family)?, |e| e.reason(&["IP_INNOROUTES"]).at(NO_ROUTE).cause("no-route"))
}

fn blackhole(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let to = elsewhere(family)?;
    routed.router.run(&format!("ip {} route add blackhole {}", family.pick("-4", "-6"), to.ip()))?;
    // The kernel gives no reason of its own for IPv4, so only the place is sure.
    router_drops(&routed, to, |e| {
        e.at(&["ip_error", "dst_discard_out", "dst_discard", "ip6_pkt_drop", "ip6_pkt_discard"])
            .cause("route-blackhole")
            .field("/drop/cause/confidence", "inferred")
            .field("/drop/cause/evidence/0/value", "blackhole")
    })
}

/// Rules for what comes in by an interface, beside routes that would lead to the server: one leads to a table with a blackhole,
/// one says itself that there is no way, one leads to a table that has no route, and neither has main.
fn by_interface(family: Family) -> Result<()> {
    struct Way {
        rules: &'static str,
        to: SocketAddr,
        cause: &'static str,
        why: String,
        evidence: serde_json::Value,
    }
    let version = family.pick("-4", "-6");
    let from = Routed::new()?.client.port(family, 40_000);
    let way = |to: SocketAddr| format!("to {} from {} iif r0", to.ip(), from.ip());
    let server = family.pick("10.77.2.1:4242", "[fd77:2::1]:4242").parse()?;
    let gone = elsewhere(family)?;
    let ways = [
        Way {
            rules: "rule add iif r0 lookup 100 prio 100\nroute add blackhole default table 100\n",
            to: server,
            cause: "route-blackhole",
            why: format!(
                "The route blackhole default of table 100 swallows packets to {}: there leads the rule 100: from all iif r0 \
                 lookup 100.",
                server.ip()
            ),
            evidence: json!({"name": format!("table {}", way(server)), "value": "100"}),
        },
        Way {
            rules: "rule add iif r0 unreachable prio 100\n",
            to: server,
            cause: "no-route",
            why: format!(
                "This network namespace has no route to {}: so says the rule 100: from all iif r0 unreachable.",
                server.ip()
            ),
            evidence: json!({"name": format!("rule {}", way(server)), "value": "100: from all iif r0 unreachable"}),
        },
        Way {
            rules: "rule add iif r0 lookup 100 prio 100\n",
            to: gone,
            cause: "no-route",
            why: format!(
                "This network namespace has no route to {}; looked for in table 100, main.",
                gone.ip()
            ),
            evidence: json!({"name": format!("table {}", way(gone)), "value": "100, main"}),
        },
    ];
    let stream = watch()?;
    let (mut expected, mut nodes) = (Vec::new(), Vec::new());
    for Way { rules, to, cause, why, evidence } in ways {
        let routed = Routed::new()?;
        routed.router.feed(&format!("ip {version} -batch -"), rules)?;
        routed.client.inject(&[packet::udp(from, to, b"lost")])?;
        expected.push(
            Expect::drops(1, &routed.router)
                .flow("udp", from, to)
                .at(&["ip_error", "dst_discard", "dst_discard_out", "ip6_pkt_drop", "ip6_pkt_discard"])
                .interface("r0")
                .cause(cause)
                .field("/drop/cause/why", why)
                .evidence(evidence),
        );
        nodes.push(routed);
    }
    verify(stream, &expected, &[])
}

fn ttl_expired(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    let ip = Ip { ttl: 1, ..Ip::new(from.ip(), to.ip()) };
    let stream = watch()?;
    routed.client.inject(&vec![ip.wrap(protocol::UDP, &packet::udp_segment(from, to, b"old")); 3])?;
    let expect = Expect::drops(3, &routed.router)
        .flow("udp", from, to)
        .reason(&["IP_INHDR"])
        .at(&["ip_forward", "ip6_forward"])
        .field("/packet/ttl", 1)
        .cause("ttl-expired")
        .interface("r0");
    verify(stream, &[expect], &[&routed.server.netns])
}

fn forwarding_off(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    routed.router.sysctl(family.pick("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"), "0")?;
    router_drops(&routed, routed.server.port(family, 4242), |e| match family {
        Family::V4 => e.reason(&["IP_INADDRERRORS"]).at(&["ip_error"]).cause("ip-forward-off"),
        Family::V6 => e
            .at(&["ip6_forward"])
            .cause("ipv6-forward-off")
            .field("/drop/cause/evidence/0/name", "net.ipv6.conf.all.forwarding")
            .field("/drop/cause/evidence/0/value", "0"),
    })
}

fn packet_too_big(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    routed.router.run("ip link set r1 mtu 1300")?;
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    let stream = watch()?;
    routed.client.inject(&[packet::udp(from, to, &[0; 1400])])?;
    let length = 1400 + 8 + family.pick(20, 40);
    let expect = Expect::drops(1, &routed.router)
        .flow("udp", from, to)
        .reason(&["PKT_TOO_BIG"])
        .at(&["ip_forward", "ip6_forward"])
        .field("/packet/length", length)
        .cause("mtu")
        .evidence(json!({"name": "r1 mtu", "value": "1300"}))
        // IPv6 turns to the outgoing device before it looks at the MTU.
        .interface(family.pick("r0", "r1"));
    verify(stream, &[expect], &[&routed.server.netns])
}

fn neighbour_failed(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to): (_, SocketAddr) =
        (routed.client.port(family, 40_000), family.pick("10.77.2.99:4242", "[fd77:2::99]:4242").parse()?);
    // Three solicitations a second apart is the default: be quicker.
    routed.router.sysctl(&format!("net.{}.neigh.r1.mcast_solicit", family.name()), "1")?;
    routed.router.sysctl(&format!("net.{}.neigh.r1.retrans_time_ms", family.name()), "100")?;
    let stream = watch()?;
    routed.client.inject(&[packet::udp(from, to, b"lost")])?;
    let expect = Expect::drops(1, &routed.router)
        .flow("udp", from, to)
        // Linux 6.18 gives the reason for ARP only.
        .reason(family.pick(&["NEIGH_FAILED"], &["NEIGH_FAILED", "NOT_SPECIFIED"]))
        .at(&["arp_error_report", "ndisc_error_report", "neigh_invalidate"])
        .cause("neighbour-failed")
        .interface("r1");
    verify(stream, &[expect], &[])
}

fn reassembly_timeout(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let server = &routed.server;
    server.netns.sysctl(family.pick("net.ipv4.ipfrag_time", "net.ipv6.ip6frag_time"), "1")?;
    let (from, to) = (routed.client.port(family, 40_000), server.port(family, 4242));
    let ip = Ip { first_fragment: true, ..Ip::new(from.ip(), to.ip()) };
    let mut datagram = packet::udp_segment(from, to, &[0; 1000]);
    datagram.truncate(800);
    let stream = watch()?;
    routed.client.inject(&[ip.wrap(protocol::UDP, &datagram)])?;
    let expect = Expect::drops(1, &server.netns)
        .flow("udp", from, to)
        .reason(&["FRAG_REASM_TIMEOUT"])
        .cause("fragments-incomplete")
        .at(&[
            "ip_expire",
            "ip6frag_expire_frag_queue",
            "ip6_frag_expire",
            "inet_frag_rbtree_purge",
            "inet_frag_destroy",
            "inet_frag_queue_flush",
            "kfree_skb_list_reason",
        ])
        .interface_if_known("s0");
    verify(stream, &[expect], &[&routed.router])
}

/// The router has no route back through r0 to the server's net: strict mode drops.
fn reverse_path(_: Family) -> Result<()> {
    let routed = Routed::new()?;
    routed.router.sysctl("net.ipv4.conf.r0.rp_filter", "1")?;
    let (from, to): (SocketAddr, _) = ("10.77.2.50:40000".parse()?, routed.server.port(Family::V4, 4242));
    let stream = watch()?;
    routed.client.inject(&vec![packet::udp(from, to, b"spoofed"); 3])?;
    let expect = Expect::drops(3, &routed.router)
        .flow("udp", from, to)
        .reason(&["IP_RPFILTER"])
        .cause("rp-filter")
        .evidence(json!({"name": "net.ipv4.conf.r0.rp_filter", "value": "1"}))
        .at(&["ip_rcv_finish_core", "ip_rcv_finish"])
        .interface("r0");
    verify(stream, &[expect], &[&routed.server.netns])
}

/// A packet that says to come from the router itself.
fn own_source(_: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to) = (routed.far.port(Family::V4, 40_000), routed.server.port(Family::V4, 4242));
    let stream = watch()?;
    routed.client.inject(&[packet::udp(from, to, b"spoofed")])?;
    let expect = Expect::drops(1, &routed.router)
        .flow("udp", from, to)
        .reason(&["IP_LOCAL_SOURCE"])
        .at(&["ip_rcv_finish_core", "ip_rcv_finish"])
        .cause("source-is-local")
        .interface("r0");
    verify(stream, &[expect], &[&routed.server.netns])
}

/// A packet that says to come from the loopback address.
fn martian(_: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to): (SocketAddr, _) = ("127.0.0.9:40000".parse()?, routed.server.port(Family::V4, 4242));
    let stream = watch()?;
    routed.client.inject(&[packet::udp(from, to, b"spoofed")])?;
    let expect = Expect::drops(1, &routed.router)
        .flow("udp", from, to)
        .reason(&["IP_LOCALNET", "IP_INVALID_SOURCE"])
        .at(&["ip_rcv_finish_core", "ip_rcv_finish"])
        .cause("martian")
        .interface("r0");
    verify(stream, &[expect], &[&routed.server.netns])
}

fn arp_dropped(_: Family) -> Result<()> {
    let routed = Routed::new()?;
    rules::chain(&routed.router, "arp", "input", "arp operation request drop")?;
    let (client, near) = (routed.client.end, routed.near);
    let request = packet::arp_request(client.mac(), client.v4.octets(), near.v4.octets());
    let stream = watch()?;
    routed.client.netns.enter(|| send::frames(client.device, &[request]))?;
    let expect = Expect::drops(1, &routed.router)
        .identify("/network/family", "arp")
        .reason(&["NETFILTER_DROP"])
        .at(&["nft_do_chain", "nf_hook_slow"])
        .interface("r0");
    verify(stream, &[expect], &[])
}
