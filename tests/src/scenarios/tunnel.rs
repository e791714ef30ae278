//! Tunnel packets that are dropped: the packet inside is told too. They are made by hand, so no tunnel module is
//! needed.

use super::answer::expects_exact_here;
use super::both_here;
use super::expect::{Expect, verify, watch};
use super::rules;
use crate::bed::backend::Backend;
use crate::bed::packet::{self, Ip, protocol};
use crate::bed::topology::{Family, Pair};
use anyhow::Result;
use libtest_mimic::Trial;
use std::net::SocketAddr;

pub(super) fn trials() -> Vec<Trial> {
    [
        both_here("tunnel::vxlan", vxlan),
        both_here("tunnel::geneve", geneve),
        both_here("tunnel::ipv4_in_ip", |outer| in_ip(outer, Family::V4)),
        both_here("tunnel::ipv6_in_ip", |outer| in_ip(outer, Family::V6)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The ends of the flow inside: two pods.
fn pods(family: Family) -> Result<(SocketAddr, SocketAddr)> {
    let (a, b) =
        family.pick(("10.244.1.5:45000", "10.244.2.6:6379"), ("[fd44:1::5]:45000", "[fd44:2::6]:6379"));
    Ok((a.parse()?, b.parse()?))
}

/// Adds what must be said of the inner flow.
fn carrying(expect: Expect, kinds: &[&str], (source, destination): (SocketAddr, SocketAddr)) -> Expect {
    expect
        .field_among("/inner/type", kinds)
        .field("/inner/transport", "udp")
        .field("/inner/source/address", source.ip().to_string())
        .field("/inner/source/port", source.port())
        .field("/inner/destination/address", destination.ip().to_string())
        .field("/inner/destination/port", destination.port())
}

fn vxlan(family: Family) -> Result<()> {
    over_udp(family, "vxlan", 4789, packet::vxlan, "overlay-blocked")
}

fn geneve(family: Family) -> Result<()> {
    over_udp(family, "geneve", 6081, packet::geneve, "overlay-blocked")
}

/// A firewall on the node drops the overlay's port.
fn over_udp(
    family: Family,
    kind: &str,
    port: u16,
    wrap: fn(u32, &[u8]) -> Vec<u8>,
    cause: &'static str,
) -> Result<()> {
    const VNI: u32 = 4242;
    let pair = Pair::new()?;
    let pods = pods(family)?;
    let (from, to) = (pair.client.port(family, 50_000), pair.server.port(family, port));
    rules::chain(&pair.server.netns, "inet", "input", &format!("udp dport {port} drop"))?;
    let inner = packet::frame([2; 6], [4; 6], &packet::udp(pods.0, pods.1, b"GET"));
    let stream = watch()?;
    pair.client.inject(&[packet::udp(from, to, &wrap(VNI, &inner))])?;
    let expect = Expect::drops(1, &pair.server.netns)
        .flow("udp", from, to)
        .reason(&["NETFILTER_DROP"])
        .field("/inner/vni", VNI)
        .interface("s0");
    verify(stream, &[caused(carrying(expect, &[kind], pods), cause)], &[])
}

/// The cause, where the rule is known.
fn caused(expect: Expect, cause: &'static str) -> Expect {
    if expects_exact_here(Backend::Nft) { expect.cause(cause) } else { expect }
}

fn in_ip(outer: Family, inner: Family) -> Result<()> {
    let pair = Pair::new()?;
    let pods = pods(inner)?;
    let (from, to) = (pair.client.address(outer), pair.server.address(outer));
    let number = inner.pick(protocol::IPIP, protocol::IPV6);
    let kinds = match (outer, inner) {
        (Family::V4, Family::V4) => ["ipip"],
        (Family::V4, Family::V6) => ["sit"],
        (Family::V6, _) => ["ip6tnl"],
    };
    rules::chain(&pair.server.netns, "inet", "input", &format!("meta l4proto {number} drop"))?;
    let packet = Ip::new(from, to).wrap(number, &packet::udp(pods.0, pods.1, b"GET"));
    let stream = watch()?;
    pair.client.inject(&[packet])?;
    let expect = Expect::drops(1, &pair.server.netns)
        .identify("/network/family", outer.name())
        .identify("/source/address", from.to_string())
        .identify("/destination/address", to.to_string())
        .reason(&["NETFILTER_DROP"])
        .interface("s0");
    verify(stream, &[caused(carrying(expect, &kinds, pods), "overlay-blocked")], &[])
}
