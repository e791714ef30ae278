//! Connection tracking and NAT.

use super::super::causes::{NAMESERVERS, slow_translation};
use super::ConntrackLimit;
use super::node::{FROM, Node};
use super::outage::{Outage, ROUTED, Where};
use crate::bed::packet;
use crate::bed::patience;
use anyhow::{Context as _, Result, anyhow};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "dns-race",
        what: "Two DNS queries race in connection tracking, and one is dropped",
        breaks: |node| {
            let pod = node.server(DNS);
            for nameserver in NAMESERVERS {
                let address = std::net::Ipv4Addr::from(nameserver);
                node.redis.netns.run(&format!("ip addr add {address}/32 dev lo"))?;
                node.run(&format!("ip route add {address}/32 via {}", node.redis.end.v4))?;
            }
            node.keep(node.redis.netns.enter(|| Ok(UdpSocket::bind(("0.0.0.0", DNS))?))?);
            node.netns.feed("nft -f -", &slow_translation(pod)).map(drop)
        },
        sends: race,
        // As NodeLocal DNSCache does: queries are not translated.
        heals: |node| node.run("nft flush ruleset"),
        facts: &[
            "conntrack-clash",
            "Two DNS queries of 10.77.",
            "NodeLocal DNSCache",
            "single-request-reopen",
        ],
        ..ROUTED
    },
    Outage {
        id: "conntrack-full",
        what: "The table of tracked connections is full",
        place: Where::HereAlone,
        breaks: |node| {
            node.rules("*filter\n-A FORWARD -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n")?;
            node.keep(ConntrackLimit::set(4)?);
            Ok(())
        },
        sends: |node| {
            let to = node.server(DNS);
            Ok(node.asks(12, to, (&node.redis.netns, to), b"?")? == 12)
        },
        heals: |_| ConntrackLimit::raise(1000),
        facts: &[
            "conntrack-table-full",
            "shop/cart-0:400",
            "The table of tracked connections is full (4 of 4)",
            "net.netfilter.nf_conntrack_max",
            "droptrace hist --cause conntrack-full --by from-pod",
        ],
        ..ROUTED
    },
    Outage {
        id: "snat-exhausted",
        what: "Masquerading finds no free port for one destination",
        breaks: |node| {
            node.rules(
                "*nat\n-A POSTROUTING -o r1 -p udp -m udp --dport 53 -j MASQUERADE --to-ports 5000\nCOMMIT\n",
            )
        },
        sends: |node| {
            let to = node.server(DNS);
            Ok(node.asks(2, to, (&node.redis.netns, to), b"?")? == 2)
        },
        heals: |node| {
            node.run("iptables-legacy -t nat -F POSTROUTING")?;
            node.run("iptables-legacy -t nat -A POSTROUTING -o r1 -p udp --dport 53 -j MASQUERADE --to-ports 5000-6000")
        },
        facts: &[
            "nat-port-clash",
            "No source port was free to translate 10.77.",
            ":53",
            "--random-fully",
            "10.77.",
        ],
        ..ROUTED
    },
];

const DNS: u16 = 53;

/// Queries two nameservers at once, by one port and then the next; false as soon as one of the two is lost.
fn race(node: &Node) -> Result<bool> {
    for port in FROM..FROM + 40 {
        let send = |nameserver: [u8; 4]| {
            let to = SocketAddr::from((nameserver, DNS));
            node.cart.inject(&[packet::udp(node.client(port), to, b"who is it?")])
        };
        std::thread::scope(|scope| -> Result<()> {
            let both = NAMESERVERS.map(|nameserver| scope.spawn(move || send(nameserver)));
            both.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a sender panicked"))?)
        })?;
        let arrives = |patience| {
            let arrived = node.kept(|receiver: &UdpSocket| {
                receiver.set_read_timeout(Some(patience))?;
                receiver.recv(&mut [0; 64])
            });
            arrived.context("no receiver")
        };
        arrives(patience())?.context("neither query came through")?;
        if arrives(Duration::from_millis(500))?.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}
