//! Rules that drop.

use super::node::Node;
use super::outage::{Outage, ROUTED};
use crate::bed::backend::Backend;
use crate::bed::topology::Family;
use anyhow::Result;

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "mark-drop",
        what: "kube-proxy's nat rules mark a packet, its filter rules drop what is marked",
        breaks: mark_drop,
        sends: |node| {
            Ok(node.asks(
                1,
                node.near.port(Family::V4, WEB),
                (&node.netns, node.near.port(Family::V4, WEB)),
                b"?",
            )? == 1)
        },
        // What kube-proxy does when the Service's loadBalancerSourceRanges are gone.
        heals: |node| node.run("iptables-legacy -t nat -F KUBE-FW-WEB"),
        facts: &[
            "filter:KUBE-FIREWALL:rule:1",
            "why: ",
            "(0x8000)",
            "nat:KUBE-FW-WEB",
            "change that Service",
        ],
        more: &["mark 0x8000", "owner kubelet", "mark-set-by nat:KUBE-MARK-DROP", "nat:KUBE-FW-WEB:rule:2"],
        ..ROUTED
    },
    Outage {
        id: "no-mark-drop-chain",
        what: "Rules in both backends of iptables: kube-proxy's in legacy, Docker's in nft",
        breaks: |node| {
            node.listens(&node.redis.netns, node.server(super::node::REDIS))?;
            node.kube_proxy(node.server(super::node::REDIS), KUBE_FORWARD)?;
            Backend::IptablesNft.load(&node.netns, Family::V4, DOCKER)
        },
        sends: |node| node.dials(node.service()),
        heals: |node| {
            node.run("nft flush ruleset")?;
            node.kube_proxy(node.server(super::node::REDIS), &format!(":FORWARD DROP [0:0]\n{KUBE_FORWARD}"))
        },
        facts: &[
            "filter:FORWARD:policy (FORWARD, nft)",
            "(svc redis ",
            "also: rules of iptables are in both of its backends, and must be in one: iptables-legacy has ",
        ],
        more: &[
            "or: chain-policy-drop, mixed-iptables",
            "other-backend iptables-legacy has filter:KUBE-FORWARD",
        ],
        ..ROUTED
    },
    Outage {
        id: "host-prohibited",
        what: "The host's firewall rejects before the pod network's rules accept",
        breaks: |node| node.rules(HOST),
        sends: |node| node.asks_redis(8080),
        heals: |node| node.run("iptables-legacy -I FORWARD -s 10.77.0.0/16 -j ACCEPT"),
        facts: &[
            "filter:FORWARD:rule:1 (FORWARD, legacy)",
            "The firewall of the host, not Kubernetes",
            "trust the networks of pods",
        ],
        more: &[
            "rule -A FORWARD -j REJECT --reject-with icmp-host-prohibited",
            "with icmp-host-prohibited",
            "ask: host firewall",
        ],
        ..ROUTED
    },
    Outage {
        id: "forward-policy",
        what: "Docker set the policy of FORWARD to DROP",
        breaks: |node| node.rules(&format!("*filter\n{}", DOCKER.trim_start_matches("*filter\n"))),
        sends: |node| node.asks_redis(8080),
        heals: |node| node.run("iptables-legacy -P FORWARD ACCEPT"),
        facts: &[
            "filter:FORWARD:policy",
            "No rule accepted the forwarded packet",
            "set by docker",
            "iptables -P FORWARD ACCEPT",
        ],
        more: &["verdict policy", "owner docker", "undone by: Docker sets the policy to DROP"],
        ..ROUTED
    },
    Outage {
        id: "foreign-rule",
        what: "A rule that nobody of Kubernetes wrote drops a pod's traffic",
        breaks: |node| {
            node.listens(&node.redis.netns, node.server(super::node::REDIS))?;
            node.kube_proxy(node.server(super::node::REDIS), KUBE_FORWARD)?;
            node.run("iptables-legacy -I FORWARD -p tcp --dport 6379 -m comment --comment temporary -j DROP")
        },
        sends: |node| node.dials(node.service()),
        heals: |node| node.run("iptables-legacy -D FORWARD 1"),
        facts: &[
            "shop/cart-0:40000 -> shop/redis-0:6379 (svc redis 10.96.",
            "filter:FORWARD:rule:1",
            "no known component of Kubernetes",
            "-A FORWARD -p tcp -m tcp --dport 6379 -m comment --comment temporary -j DROP",
        ],
        ..ROUTED
    },
    Outage {
        id: "calico-default-deny",
        what: "Calico's policies select the pod, and none of them passed the packet",
        breaks: |node| node.rules(CALICO),
        sends: |node| node.asks_redis(8080),
        heals: |node| {
            // What Calico makes of a policy that allows it.
            node.run("iptables-legacy -A cali-pi-shop-allow -p udp -m udp --dport 8080 -j MARK --set-xmark 0x10000/0x10000")
        },
        facts: &[
            "filter:cali-tw-cali9f3a1:rule:5",
            "Default deny: policies of tier default select shop/redis-0",
            "kubectl -n shop get networkpolicies",
        ],
        more: &["owner calico", "End of tier default. Drop if no policies passed packet"],
        ..ROUTED
    },
];

/// A port of the node's own.
const WEB: u16 = 80;

const KUBE_FORWARD: &str = ":KUBE-FORWARD - [0:0]\n-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
    -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate \
    RELATED,ESTABLISHED -j ACCEPT\n-A KUBE-FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n";

const DOCKER: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n\
    :DOCKER-ISOLATION-STAGE-1 - [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
    -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n-A FORWARD -o docker0 -j DOCKER\n-A FORWARD -i docker0 -j ACCEPT\n\
    -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n-A DOCKER-USER -j RETURN\nCOMMIT\n";

const HOST: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n\
    -A INPUT -j REJECT --reject-with icmp-host-prohibited\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n\
    -A FORWARD -s 10.77.0.0/16 -j ACCEPT\nCOMMIT\n";

const CALICO: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    :cali-FORWARD - [0:0]\n:cali-to-wl-dispatch - [0:0]\n:cali-tw-cali9f3a1 - [0:0]\n:cali-pi-shop-allow - [0:0]\n\
    -A FORWARD -m comment --comment \"cali:aForwardHash0001\" -j cali-FORWARD\n\
    -A cali-FORWARD -m comment --comment \"cali:aForwardHash0002\" -j MARK --set-xmark 0x0/0x30000\n\
    -A cali-FORWARD -o r1 -m comment --comment \"cali:aForwardHash0003\" -j cali-to-wl-dispatch\n\
    -A cali-to-wl-dispatch -o r1 -m comment --comment \"cali:aDispatchHash001\" -g cali-tw-cali9f3a1\n\
    -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash001\" -m conntrack --ctstate \
    RELATED,ESTABLISHED -j ACCEPT\n\
    -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash002\" -m comment --comment \"Start of tier \
    default\" -j MARK --set-xmark 0x0/0x20000\n\
    -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash003\" -m mark --mark 0x0/0x20000 -j cali-pi-shop-allow\n\
    -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash004\" -m comment --comment \"Return if policy \
    accepted\" -m mark --mark 0x10000/0x10000 -j RETURN\n\
    -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash005\" -m comment --comment \"End of tier default. \
    Drop if no policies passed packet\" -m mark --mark 0x0/0x20000 -j DROP\n\
    -A cali-pi-shop-allow -p tcp -m comment --comment \"cali:aPolicyHash00001\" -m comment --comment \"Policy \
    shop/allow ingress\" -m tcp --dport 6379 -j MARK --set-xmark 0x10000/0x10000\nCOMMIT\n";

/// The Service at the node's own address takes clients of one network only.
fn mark_drop(node: &Node) -> Result<()> {
    let own = node.near.v4;
    node.rules(&format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-DROP - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-FW-WEB - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-SERVICES -d {own}/32 -p udp -m comment --comment \"shop/web:http loadbalancer IP\" -m udp --dport {WEB} \
         -j KUBE-FW-WEB\n\
         -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\n\
         -A KUBE-FW-WEB -s 192.0.2.0/24 -j KUBE-MARK-MASQ\n\
         -A KUBE-FW-WEB -m comment --comment \"shop/web:http loadbalancer IP\" -j KUBE-MARK-DROP\nCOMMIT\n\
         *filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n\
         -A KUBE-FIREWALL -m comment --comment \"kubernetes firewall for dropping marked packets\" -m mark \
         --mark 0x8000/0x8000 -j DROP\nCOMMIT\n"
    ))
}
