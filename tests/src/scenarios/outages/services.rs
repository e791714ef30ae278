//! Services that lead nowhere.

use super::super::skip;
use super::node::{FROM, Node, REDIS};
use super::outage::{Outage, ROUTED, Says, Where};
use crate::bed::command;
use crate::bed::outside::Outside;
use anyhow::Result;
use std::net::SocketAddr;
use std::time::Duration;

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "no-endpoints",
        what: "A Service without ready endpoints",
        breaks: |node| {
            let (empty, server) = (node.empty(), node.server(REDIS));
            node.listens(&node.redis.netns, server)?;
            node.kube_proxy(
                server,
                &format!(
                    ":KUBE-SERVICES - [0:0]\n-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes \
                     service portals\" -j KUBE-SERVICES\n\
                     -A KUBE-SERVICES -d {empty}/32 -p tcp -m comment --comment \"shop/empty has no endpoints\" -m tcp \
                     --dport {REDIS} -j REJECT --reject-with icmp-port-unreachable\n"
                ),
            )?;
            // Where to, the node must know all the same.
            node.run(&format!("ip route add {empty}/32 via {}", server.ip()))
        },
        sends: |node| node.dials(node.empty()),
        // What kube-proxy does once a pod is ready.
        heals: |node| {
            node.run("iptables-legacy -F KUBE-SERVICES")?;
            let (empty, to) = (node.empty(), node.server(REDIS));
            node.run(&format!(
                "iptables-legacy -t nat -A KUBE-SERVICES -d {empty}/32 -p tcp --dport {REDIS} -j DNAT --to-destination {to}"
            ))
        },
        facts: &[
            "-> svc/shop/empty:6379",
            "filter:KUBE-SERVICES:rule:1",
            "Service shop/empty (port 6379) has no ready endpoint",
            "kubectl -n shop get endpointslices -l kubernetes.io/service-name=empty",
        ],
        more: &["owner kube-proxy", "with icmp-port-unreachable"],
        ..ROUTED
    },
    Outage {
        id: "target-port",
        what: "Nothing listens on the Service's targetPort",
        breaks: |node| node.kube_proxy(node.server(REDIS), ""),
        sends: |node| node.dials(node.service()),
        heals: |node| node.listens(&node.redis.netns, node.server(REDIS)),
        facts: &[
            "shop/redis-0:6379 (svc redis",
            "NO_SOCKET",
            "Nothing in shop/redis-0 listens on tcp port 6379",
            "targetPort",
        ],
        ..ROUTED
    },
    Outage {
        id: "svc-not-programmed",
        what: "A Service with ready endpoints that kube-proxy has not programmed on this node",
        breaks: |node| {
            node.listens(&node.redis.netns, node.server(REDIS))?;
            // kube-proxy knows other Services, and what nobody translates leaves the node.
            let known = node.translation(node.server(REDIS));
            node.rules(&known.replace(&node.service().to_string(), "10.96.0.1"))?;
            node.rules("*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n")?;
            // A connection that began before stays as it is until it is forgotten: sooner than by default.
            node.netns.sysctl("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", "15")?;
            world(node)
        },
        sends: |node| node.dials_from(FROM + u16::from(node.is_healed()), node.service(), INSISTS),
        heals: |node| node.rules(&node.translation(node.server(REDIS))),
        says: Says::Unanswered,
        facts: &[
            "0 drops for --pod shop/cart-0",
            "SYN retransmits from shop/cart-0 to svc/shop/redis:6379",
            "which nothing here translated",
            "next: droptrace doctor: do kube-proxy's rules, IPVS or Cilium translate svc/shop/redis here",
        ],
        then: &["doctor"],
        then_facts: &[
            "svc-not-programmed",
            "shop/redis",
            "not translated, 1 endpoints ready",
            "looked at = iptables-legacy-save",
            "kube-proxy",
        ],
        ..ROUTED
    },
    Outage {
        id: "ipvs-vip",
        what: "IPVS has the Service's address, and no server for it",
        place: Where::NewestVm,
        breaks: |node| {
            for module in ["ip_vs", "ip_vs_rr"] {
                let _ = command::run(&format!("modprobe {module}"));
            }
            if !std::path::Path::new("/proc/net/ip_vs_conn").exists() {
                return Err(skip("this kernel has no IPVS"));
            }
            node.listens(&node.redis.netns, node.server(REDIS))?;
            let service = node.service();
            node.run(&format!("ip addr add {service}/32 dev lo"))?;
            node.run(&format!("ipvsadm -A -t {service}:{REDIS} -s rr"))
        },
        sends: |node| node.dials(node.service()),
        heals: |node| {
            let to: SocketAddr = node.server(REDIS);
            node.run(&format!("ipvsadm -a -t {}:{REDIS} -r {to} -m", node.service()))
        },
        facts: &[
            "svc/shop/redis:6379",
            "IPVS dropped it: the virtual service at ",
            "has no real server",
            "ipvsadm -Ln",
        ],
        ..ROUTED
    },
];

/// Time for two SYNs more (tcp_syn_retries: after 1 and 3 s).
pub(super) const INSISTS: Duration = Duration::from_millis(3500);

/// A way out of the node, by `up0`, to where nobody answers.
pub(super) fn world(node: &Node) -> Result<()> {
    node.keep(Outside::new(&node.netns, "up0")?);
    node.netns
        .feed(
            "ip -batch -",
            "addr add 192.0.2.1/24 dev up0\nroute add default via 192.0.2.2\n\
             neigh replace 192.0.2.2 lladdr 02:00:c0:00:02:02 dev up0 nud permanent\n",
        )
        .map(drop)
}
