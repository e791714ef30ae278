//! Real outages, rebuilt. In `table`: each as whoever has it would look at it, with `droptrace --pod x`, and healed by what
//! that advises. Here: what droptrace says of the rules behind them, field by field, in each backend of rules.

mod bridge;
mod cilium;
mod conntrack;
mod firewall;
mod node;
mod outage;
mod overlay;
mod printed;
mod receivers;
mod routing;
mod services;
mod silence;
mod table;

use super::answer::{Blame, expects_exact_here};
use super::expect::{Expect, verify, watch, watch_rules_of};
use super::{alone, beside, here_only, skip};
use crate::bed::backend::Backend;
use crate::bed::droptrace::Output;
use crate::bed::kernel;
use crate::bed::listing::Listed;
use crate::bed::namespace::Namespace;
use crate::bed::packet::{self, tcp_flag};
use crate::bed::ruleset::Hook;
use crate::bed::topology::{Family, Routed};
use anyhow::{Context, Result};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;

/// Rules of kube-proxy 1.36 for 25 services, saved on a node.
const KUBE_PROXY_V4: &str = include_str!("../../fixtures/kube-proxy/iptables-save.txt");
const KUBE_PROXY_V6: &str = include_str!("../../fixtures/kube-proxy/ip6tables-save.txt");
const KUBE_PROXY_NFT: &str = include_str!("../../fixtures/kube-proxy/ruleset.nft");

type Scenario = fn(Backend, Family) -> Result<()>;

/// What virtual machines try: NAT, connection tracking, marks, policies, rejects and drops. The others are other texts of such
/// rules, which are the same on every kernel.
const IN_VM: [&str; 6] = [
    "mark_drop",
    "forward_policy",
    "no_endpoints",
    "calico_default_deny",
    "snat_exhausted",
    "masquerade_moved",
];

pub(super) fn trials() -> Vec<Trial> {
    use Backend::{IptablesNft, Legacy, Nft};
    use Family::{V4, V6};
    const IPTABLES: &[Backend] = &[Legacy, IptablesNft];
    const ALL: &[Backend] = &[Legacy, IptablesNft, Nft];
    let rows: [(&str, Scenario, &[Backend], &[Family]); 19] = [
        ("mark_drop", mark_drop, IPTABLES, &[V4, V6]),
        ("host_prohibited", host_prohibited, IPTABLES, &[V4, V6]),
        ("forward_policy", forward_policy, IPTABLES, &[V4, V6]),
        ("foreign_rule", foreign_rule, ALL, &[V4, V6]),
        ("no_endpoints", no_endpoints, ALL, &[V4]),
        ("no_local_endpoints", no_local_endpoints, ALL, &[V4]),
        ("unallocated_cluster_ip", unallocated_cluster_ip, &[Nft], &[V4, V6]),
        ("calico_default_deny", calico_default_deny, IPTABLES, &[V4, V6]),
        ("calico_nft_default_deny", calico_nft_default_deny, &[Nft], &[V4]),
        ("source_ranges", source_ranges, ALL, &[V4]),
        ("bad_port_of_cluster_ip", bad_port_of_cluster_ip, &[Nft], &[V4]),
        ("localnet", localnet, &[Legacy], &[V4]),
        ("invalid_state", invalid_state, &[IptablesNft], &[V4]),
        ("calico_no_profile", calico_no_profile, &[Legacy], &[V4]),
        ("calico_rpf", calico_rpf, &[IptablesNft], &[V4]),
        ("kube_router_reject", kube_router_reject, &[Legacy], &[V4]),
        ("docker_isolation", docker_isolation, &[IptablesNft], &[V4]),
        ("snat_exhausted", snat_exhausted, ALL, &[V4, V6]),
        ("masquerade_moved", masquerade_moved, ALL, &[V4, V6]),
    ];
    let mut trials = Vec::new();
    for (name, scenario, backends, families) in rows {
        if kernel::in_vm() && !IN_VM.contains(&name) {
            continue;
        }
        for &backend in backends {
            // What the kernels do otherwise with IPv6 is tried by `attribution`.
            for &family in families.iter().filter(|family| !kernel::in_vm() || **family == V4) {
                let name = format!("outages::{name}_{}::{}", backend.name(), family.name());
                trials.push(beside(name, move || scenario(backend, family)));
            }
        }
    }
    // The limit is the machine's.
    trials.push(alone("outages::conntrack_full::ipv4", || conntrack_full(V4)));
    trials.extend(here_only([alone("outages::conntrack_full::ipv6", || conntrack_full(V6))]));
    trials.extend(table::trials());
    trials
}

/// A router with rules, between a client and a server.
struct Node {
    routed: Routed,
    backend: Backend,
    family: Family,
}

impl Node {
    fn new(backend: Backend, family: Family, rules: &str) -> Result<Self> {
        let routed = Routed::new()?;
        backend.load(&routed.router, family, rules)?;
        Ok(Self { routed, backend, family })
    }

    /// With kube-proxy's rules, and its services' addresses behind the router.
    fn with_kube_proxy(backend: Backend, family: Family) -> Result<Self> {
        let rules = match backend {
            Backend::Nft => KUBE_PROXY_NFT.to_owned(),
            _ => without_accounting(family.pick(KUBE_PROXY_V4, KUBE_PROXY_V6)),
        };
        let node = Self::new(backend, family, &rules)?;
        let services = family.pick("10.96.0.0/16", "fd00:10:96::/112");
        let server = node.routed.server.address(family);
        node.routed.router.run(&format!("ip route add {services} via {server}"))?;
        Ok(node)
    }

    fn client(&self) -> SocketAddr {
        self.routed.client.port(self.family, 40_000)
    }

    /// The one rule of a chain whose text has these words.
    fn rule(&self, chain: &str, words: &str) -> Result<Listed> {
        let listed = self.backend.list_with_handles(&self.routed.router, self.family)?;
        let own = self.family.pick(["ip", "inet"], ["ip6", "inet"]);
        let fits = |rule: &&Listed| {
            own.contains(&rule.family.as_str()) && rule.chain == chain && rule.text.contains(words)
        };
        let found: Vec<&Listed> = listed.iter().filter(fits).collect();
        match found[..] {
            [one] => Ok(one.clone()),
            _ => anyhow::bail!("{} rules of {chain} have {words:?}: {found:?}", found.len()),
        }
    }

    fn blame(&self, rule: &Listed, verdict: &'static str, hook: Hook) -> Blame {
        Blame::rule(self.backend, rule, verdict).at(hook).text(&rule.text)
    }

    /// Sends one packet from the client, UDP or TCP's SYN, and compares; `facts` are what droptrace must say too.
    fn sends(
        &self,
        transport: &'static str,
        to: SocketAddr,
        blame: Blame,
        facts: impl FnOnce(Expect) -> Expect,
    ) -> Result<()> {
        let from = self.client();
        let packet = match transport {
            "tcp" => packet::tcp(from, to, 1, 0, tcp_flag::SYN, b""),
            _ => packet::udp(from, to, b"hello"),
        };
        self.injects((transport, from, to), packet, blame, facts)
    }

    /// Likewise, of any packet.
    fn injects(
        &self,
        (transport, from, to): (&'static str, SocketAddr, SocketAddr),
        packet: Vec<u8>,
        blame: Blame,
        facts: impl FnOnce(Expect) -> Expect,
    ) -> Result<()> {
        let stream = watch_rules_of(self.backend)?;
        self.routed.client.inject(&[packet])?;
        let exact = expects_exact_here(self.backend);
        let expect =
            Expect::drops(1, &self.routed.router).flow(transport, from, to).reason(&["NETFILTER_DROP"]);
        let expect = if exact { facts(expect) } else { expect };
        verify(stream, &[expect.blame(blame, exact)], &[])
    }
}

/// kube-proxy leaves its accounting objects out where it cannot make them; iptables-restore cannot make them at all.
fn without_accounting(rules: &str) -> String {
    let mut text = String::with_capacity(rules.len());
    for line in rules.lines() {
        match line.split_once("-m nfacct --nfacct-name ") {
            Some((before, rest)) => {
                let after = rest.trim_start().split_once(' ').map_or("", |(_, after)| after);
                text += before;
                text += after;
            }
            None => text += line,
        }
        text.push('\n');
    }
    text
}

const OWNER: &str = "/drop/netfilter/owner";
/// Nobody of Kubernetes.
const FOREIGN: &[&str] = &["unknown", "host"];

/// kube-proxy's old way: a nat rule marks the packet, a filter rule drops what is marked.
fn mark_drop(backend: Backend, family: Family) -> Result<()> {
    let (own, bits) = family.pick(("10.77.1.254", 32), ("fd77:1::fe", 128));
    let localnet = match family {
        Family::V4 => {
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet \
             connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
        }
        Family::V6 => "",
    };
    let rules = format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-DROP - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-FW-SHOP - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-SERVICES -d {own}/{bits} -p udp -m comment --comment \"shop/web:http loadbalancer IP\" -m udp \
         --dport 80 -j KUBE-FW-SHOP\n\
         -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\n\
         -A KUBE-FW-SHOP -s 192.0.2.0/24 -j KUBE-MARK-MASQ\n\
         -A KUBE-FW-SHOP -m comment --comment \"shop/web:http loadbalancer IP\" -j KUBE-MARK-DROP\nCOMMIT\n\
         *filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n{localnet}\
         -A KUBE-FIREWALL -m comment --comment \"kubernetes firewall for dropping marked packets\" -m mark \
         --mark 0x8000/0x8000 -j DROP\nCOMMIT\n"
    );
    let rules = if family == Family::V6 { rules.replace("192.0.2.0/24", "2001:db8::/32") } else { rules };
    let node = Node::new(backend, family, &rules)?;
    let to = node.routed.near.port(family, 80);
    let dropping = node.rule("KUBE-FIREWALL", "dropping marked packets")?;
    let marking = reference(&node.rule("KUBE-MARK-DROP", "--set-xmark")?);
    let leading = reference(&node.rule("KUBE-FW-SHOP", "-j KUBE-MARK-DROP")?);
    node.sends("udp", to, node.blame(&dropping, "drop", Hook::Input), |expect| {
        expect
            .field_among(OWNER, &["kube-proxy", "kubelet"])
            .field("/packet/mark", 0x8000)
            .cause("kube-mark-drop")
            .lists("/drop/netfilter/mark_set_by", marking)
            .lists("/drop/netfilter/mark_set_by", leading)
    })
}

/// Another rule, as the answer refers to it.
fn reference(rule: &Listed) -> Value {
    json!({"table": rule.table, "chain": rule.chain, "rule": rule.number, "text": rule.text})
}

/// The firewall of the host rejects before the rules of the pod network accept.
fn host_prohibited(backend: Backend, family: Family) -> Result<()> {
    let (icmp, answer) = family.pick(("icmp", "icmp-host-prohibited"), ("ipv6-icmp", "icmp6-adm-prohibited"));
    let pods = family.pick("10.244.0.0/16", "fd00:10:244::/48");
    let rules = format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p {icmp} -j ACCEPT\n\
         -A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT\n\
         -A INPUT -j REJECT --reject-with {answer}\n-A FORWARD -j REJECT --reject-with {answer}\n\
         -A FORWARD -s {pods} -j ACCEPT\nCOMMIT\n"
    );
    for (hook, chain) in [(Hook::Input, "INPUT"), (Hook::Forward, "FORWARD")] {
        let node = Node::new(backend, family, &rules)?;
        let to = match hook {
            Hook::Input => node.routed.near.port(family, 8080),
            _ => node.routed.server.port(family, 8080),
        };
        let rule = node.rule(chain, "-j REJECT")?;
        let blame = node.blame(&rule, "reject", hook).reject_with(answer);
        node.sends("udp", to, blame, |expect| expect.field_among(OWNER, FOREIGN).cause("host-firewall"))?;
    }
    Ok(())
}

/// Docker set the policy of FORWARD.
fn forward_policy(backend: Backend, family: Family) -> Result<()> {
    let rules = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n\
        :DOCKER-ISOLATION-STAGE-1 - [0:0]\n:DOCKER-ISOLATION-STAGE-2 - [0:0]\n:DOCKER-USER - [0:0]\n\
        -A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
        -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A FORWARD -o docker0 -j DOCKER\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
        -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2\n\
        -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP\n\
        -A DOCKER-ISOLATION-STAGE-2 -j RETURN\n-A DOCKER-USER -j RETURN\nCOMMIT\n";
    let node = Node::new(backend, family, rules)?;
    let to = node.routed.server.port(family, 8080);
    let blame = Blame::policy(backend, family.pick("ip", "ip6"), "filter", "FORWARD").at(Hook::Forward);
    node.sends("udp", to, blame, |expect| expect.field(OWNER, "docker").cause("forward-policy-drop"))
}

/// A rule that nobody of Kubernetes wrote, among those of kube-proxy.
fn foreign_rule(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    let to = node.routed.server.port(family, 8080);
    let rule = match backend {
        Backend::Nft => {
            super::rules::chain(
                &node.routed.router,
                "inet",
                "forward",
                "udp dport 8080 drop comment \"for now\"",
            )?;
            node.rule("c", "for now")?
        }
        _ => {
            let tool = backend.iptables(family);
            let rule = "-p udp -m udp --dport 8080 -m comment --comment temporary -j DROP";
            node.routed.router.run(&format!("{tool} -I FORWARD 3 {rule}"))?;
            node.rule("FORWARD", "temporary")?
        }
    };
    let blame = node.blame(&rule, "drop", Hook::Forward);
    node.sends("udp", to, blame, |expect| expect.field_among(OWNER, FOREIGN).cause("foreign-rule"))
}

/// A service without endpoints: kube-proxy rejects.
fn no_endpoints(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    let to: SocketAddr = "10.96.183.4:80".parse()?;
    let blame = match backend {
        Backend::Nft => node.blame(&node.rule("reject-chain", "reject")?, "reject", Hook::Forward),
        _ => {
            let rule = node.rule("KUBE-SERVICES", "shop/empty:http has no endpoints")?;
            node.blame(&rule, "reject", Hook::Forward).reject_with("icmp-port-unreachable")
        }
    };
    node.sends("tcp", to, blame, |expect| expect.field(OWNER, "kube-proxy").cause("svc-no-endpoints"))
}

/// A service that only takes local endpoints and has none here: kube-proxy drops; in nftables mode by a verdict map.
fn no_local_endpoints(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    let to: SocketAddr = "10.96.80.167:80".parse()?;
    let rule = match backend {
        Backend::Nft => node.rule("service-endpoints-check", "@no-endpoint-services")?,
        _ => node.rule("KUBE-SERVICES", "pay/api-internal-local:http has no local endpoints")?,
    };
    let blame = node.blame(&rule, "drop", Hook::Forward);
    node.sends("tcp", to, blame, |expect| expect.field(OWNER, "kube-proxy").cause("svc-no-local-endpoints"))
}

/// An address of the services' range that no service has.
fn unallocated_cluster_ip(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    let to: SocketAddr = family.pick("10.96.200.200:80", "[fd00:10:96::77]:80").parse()?;
    let rule = node.rule("cluster-ips-check", "unallocated ClusterIPs")?;
    let blame = node.blame(&rule, "drop", Hook::Forward);
    node.sends("tcp", to, blame, |expect| expect.field(OWNER, "kube-proxy").cause("cluster-ip-unallocated"))
}

/// Calico's way to a pod: dispatch by interface, a policy that allows something else, and the drop at the tier's end.
fn calico_default_deny(backend: Backend, family: Family) -> Result<()> {
    let rules = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
        :cali-FORWARD - [0:0]\n:cali-to-wl-dispatch - [0:0]\n:cali-tw-cali9f3a1 - [0:0]\n\
        :cali-pi-shop-allow - [0:0]\n\
        -A FORWARD -m comment --comment \"cali:aForwardHash0001\" -j cali-FORWARD\n\
        -A cali-FORWARD -m comment --comment \"cali:aForwardHash0002\" -j MARK --set-xmark 0x0/0x30000\n\
        -A cali-FORWARD -o r1 -m comment --comment \"cali:aForwardHash0003\" -j cali-to-wl-dispatch\n\
        -A cali-to-wl-dispatch -o r1 -m comment --comment \"cali:aDispatchHash001\" -g cali-tw-cali9f3a1\n\
        -A cali-to-wl-dispatch -m comment --comment \"cali:aDispatchHash002\" -m comment --comment \"Unknown \
        interface\" -j DROP\n\
        -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash001\" -m conntrack --ctstate \
        RELATED,ESTABLISHED -j ACCEPT\n\
        -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash002\" -m comment --comment \"Start of tier \
        default\" -j MARK --set-xmark 0x0/0x20000\n\
        -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash003\" -m mark --mark 0x0/0x20000 -j \
        cali-pi-shop-allow\n\
        -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash004\" -m comment --comment \"Return if \
        policy accepted\" -m mark --mark 0x10000/0x10000 -j RETURN\n\
        -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash005\" -m comment --comment \"End of tier \
        default. Drop if no policies passed packet\" -m mark --mark 0x0/0x20000 -j DROP\n\
        -A cali-pi-shop-allow -p tcp -m comment --comment \"cali:aPolicyHash00001\" -m comment --comment \
        \"Policy shop/allow ingress\" -m tcp --dport 6379 -j MARK --set-xmark 0x10000/0x10000\nCOMMIT\n";
    let node = Node::new(backend, family, rules)?;
    let to = node.routed.server.port(family, 8080);
    let rule = node.rule("cali-tw-cali9f3a1", "no policies passed")?;
    let blame = node.blame(&rule, "drop", Hook::Forward);
    node.sends("udp", to, blame, |expect| expect.field(OWNER, "calico").cause("calico-default-deny"))
}

/// The same in Calico's own nft table.
fn calico_nft_default_deny(backend: Backend, family: Family) -> Result<()> {
    let rules = "table ip calico {\nmap filter-cali-tw-dispatch {\ntype ifname : verdict\n\
        elements = { \"r1\" : goto filter-cali-tw-cali9f3a1 }\n}\n\
        chain filter-cali-tw-cali9f3a1 {\n\
        ct state established,related counter accept comment \"cali:aWorkloadHash001;\"\n\
        counter meta mark set meta mark & 0xfffdffff comment \"cali:aWorkloadHash002; Start of tier default\"\n\
        meta mark & 0x00020000 == 0 counter drop comment \"cali:aWorkloadHash003; End of tier default. Drop if \
        no policies passed packet\"\n}\n\
        chain filter-FORWARD {\ntype filter hook forward priority filter; policy accept;\n\
        counter comment \"cali:aForwardHash0001;\"\noifname vmap @filter-cali-tw-dispatch\n}\n}\n";
    let node = Node::new(backend, family, rules)?;
    let to = node.routed.server.port(family, 8080);
    let rule = node.rule("filter-cali-tw-cali9f3a1", "no policies passed")?;
    let blame = node.blame(&rule, "drop", Hook::Forward);
    node.sends("udp", to, blame, |expect| expect.field(OWNER, "calico").cause("calico-default-deny"))
}

/// A client that the Service does not take packets from.
fn source_ranges(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    node.routed
        .router
        .run(&format!("ip route add 203.0.113.0/24 via {}", node.routed.server.address(family)))?;
    let to: SocketAddr = "203.0.113.10:80".parse()?;
    let (rule, hook) = match backend {
        Backend::Nft => (node.rule("firewall-P2XIRC6Q-edge/gw-lb/tcp/http", "drop")?, Hook::Prerouting),
        _ => (node.rule("KUBE-PROXY-FIREWALL", "edge/gw-lb:http traffic")?, Hook::Forward),
    };
    let blame = node.blame(&rule, "drop", hook);
    node.sends("tcp", to, blame, |expect| expect.field(OWNER, "kube-proxy").cause("lb-source-ranges"))
}

/// A port that the Service does not have.
fn bad_port_of_cluster_ip(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    let to: SocketAddr = "10.96.183.4:81".parse()?;
    let rule = node.rule("cluster-ips-check", "invalid ports of ClusterIPs")?;
    let blame = node.blame(&rule, "reject", Hook::Forward);
    node.sends("tcp", to, blame, |expect| expect.field(OWNER, "kube-proxy").cause("cluster-ip-bad-port"))
}

/// A packet for the loopback address, from outside.
fn localnet(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    node.routed.router.sysctl("net.ipv4.conf.r0.route_localnet", "1")?;
    let to: SocketAddr = "127.0.0.1:10250".parse()?;
    let rule = node.rule("KUBE-FIREWALL", "block incoming localnet connections")?;
    let blame = node.blame(&rule, "drop", Hook::Input);
    node.sends("tcp", to, blame, |expect| expect.cause("localnet-martian"))
}

/// A reset of a connection that nobody has.
fn invalid_state(backend: Backend, family: Family) -> Result<()> {
    let node = Node::with_kube_proxy(backend, family)?;
    let (from, to) = (node.client(), node.routed.server.port(family, 8080));
    let rule = node.rule("KUBE-FORWARD", "--ctstate INVALID")?;
    let blame = node.blame(&rule, "drop", Hook::Forward);
    let reset = packet::tcp(from, to, 1, 0, tcp_flag::RST, b"");
    node.injects(("tcp", from, to), reset, blame, |expect| expect.cause("kube-forward-invalid"))
}

/// Calico's chain of a pod that no profile is known of.
fn calico_no_profile(backend: Backend, family: Family) -> Result<()> {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n:cali-FORWARD - [0:0]\n:cali-tw-cali9f3a1 - [0:0]\n\
        -A FORWARD -m comment --comment \"cali:aForwardHash0001\" -j cali-FORWARD\n\
        -A cali-FORWARD -o r1 -m comment --comment \"cali:aForwardHash0002\" -j cali-tw-cali9f3a1\n\
        -A cali-tw-cali9f3a1 -m comment --comment \"cali:aWorkloadHash001\" -m comment --comment \"Drop if no \
        profiles matched\" -j DROP\nCOMMIT\n";
    let node = Node::new(backend, family, rules)?;
    let rule = node.rule("cali-tw-cali9f3a1", "no profiles matched")?;
    let blame = node.blame(&rule, "drop", Hook::Forward);
    let to = node.routed.server.port(family, 8080);
    node.sends("udp", to, blame, |expect| expect.cause("calico-no-profile"))
}

/// A pod that sends from an address which is not its own.
fn calico_rpf(backend: Backend, family: Family) -> Result<()> {
    let rules = "*raw\n:PREROUTING ACCEPT [0:0]\n:cali-PREROUTING - [0:0]\n\
        -A PREROUTING -m comment --comment \"cali:aRawHash00000001\" -j cali-PREROUTING\n\
        -A cali-PREROUTING -m comment --comment \"cali:aRawHash00000002\" -m rpfilter --validmark --invert -j DROP\n\
        COMMIT\n";
    let node =
        Node::new(backend, family, rules).map_err(|error| skip(format!("no rpfilter match: {error:#}")))?;
    let (from, to): (SocketAddr, _) = ("10.77.2.50:40000".parse()?, node.routed.server.port(family, 8080));
    let rule = node.rule("cali-PREROUTING", "rpfilter")?;
    let blame = node.blame(&rule, "drop", Hook::Prerouting);
    node.injects(("udp", from, to), packet::udp(from, to, b"spoofed"), blame, |expect| {
        expect.cause("calico-rpf")
    })
}

/// kube-router's chain of a pod with a policy.
fn kube_router_reject(backend: Backend, family: Family) -> Result<()> {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n:KUBE-ROUTER-FORWARD - [0:0]\n:KUBE-POD-FW-4NVC7ADKCRT2BK6Q - [0:0]\n\
        -A FORWARD -j KUBE-ROUTER-FORWARD\n-A KUBE-ROUTER-FORWARD -o r1 -j KUBE-POD-FW-4NVC7ADKCRT2BK6Q\n\
        -A KUBE-POD-FW-4NVC7ADKCRT2BK6Q -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with \
        icmp-port-unreachable\nCOMMIT\n";
    let node = Node::new(backend, family, rules)?;
    let rule = node.rule("KUBE-POD-FW-4NVC7ADKCRT2BK6Q", "-j REJECT")?;
    let blame = node.blame(&rule, "reject", Hook::Forward).reject_with("icmp-port-unreachable");
    let to = node.routed.server.port(family, 8080);
    node.sends("udp", to, blame, |expect| expect.field(OWNER, "kube-router").cause("kube-router-reject"))
}

/// Docker keeps its bridges apart.
fn docker_isolation(backend: Backend, family: Family) -> Result<()> {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-ISOLATION-STAGE-1 - [0:0]\n:DOCKER-ISOLATION-STAGE-2 - [0:0]\n\
        -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
        -A DOCKER-ISOLATION-STAGE-1 -i r0 ! -o r0 -j DOCKER-ISOLATION-STAGE-2\n\
        -A DOCKER-ISOLATION-STAGE-2 -o r1 -j DROP\nCOMMIT\n";
    let node = Node::new(backend, family, rules)?;
    let rule = node.rule("DOCKER-ISOLATION-STAGE-2", "-j DROP")?;
    let blame = node.blame(&rule, "drop", Hook::Forward);
    let to = node.routed.server.port(family, 8080);
    node.sends("udp", to, blame, |expect| expect.field(OWNER, "docker").cause("docker-isolation"))
}

/// Two flows to one destination, and one port to masquerade them with.
fn snat_exhausted(backend: Backend, family: Family) -> Result<()> {
    let rules = match backend {
        Backend::Nft => format!(
            "table {} nat {{\nchain post {{\ntype nat hook postrouting priority srcnat; policy accept;\n\
             oifname \"r1\" udp dport 53 masquerade to :5000\n}}\n}}\n",
            family.pick("ip", "ip6")
        ),
        _ => "*nat\n-A POSTROUTING -o r1 -p udp -m udp --dport 53 -j MASQUERADE --to-ports 5000\nCOMMIT\n"
            .to_owned(),
    };
    let node = Node::new(backend, family, &rules)?;
    load_rule_engines(&node.routed.router)?;
    let to = node.routed.server.port(family, 53);
    let stream = watch()?;
    let flows = [40_000, 40_001].map(|port| packet::udp(node.routed.client.port(family, port), to, b"?"));
    node.routed.client.inject(&flows)?;
    let expect = Expect::drops(1, &node.routed.router)
        .destination("udp", to)
        .reason(&["NETFILTER_DROP"])
        .at(&["nf_hook_slow"]);
    let functions = ["nf_confirm", "ipv4_confirm", "ipv6_confirm"];
    let said = ("nat-port-clash", "error", "inferred", "snat-port-clash");
    verify(stream, &[hook_function(expect, Hook::Postrouting, family, &functions, said)], &[])
}

/// A connection that was masqueraded for one interface is routed out of another.
fn masquerade_moved(backend: Backend, family: Family) -> Result<()> {
    let rules = match backend {
        Backend::Nft => format!(
            "table {} nat {{\nchain post {{\ntype nat hook postrouting priority srcnat; policy accept;\n\
             oifname \"r1\" masquerade\n}}\n}}\n",
            family.pick("ip", "ip6")
        ),
        _ => "*nat\n-A POSTROUTING -o r1 -j MASQUERADE\nCOMMIT\n".to_owned(),
    };
    let node = Node::new(backend, family, &rules)?;
    let router = &node.routed.router;
    load_rule_engines(router)?;
    let (from, to) = (node.client(), node.routed.server.port(family, 53));
    let send = || node.routed.client.inject(&[packet::udp(from, to, b"?")]);
    let stream = watch()?;
    send()?;
    // No one listens there, and the answer says so: then the packet was through.
    let answered = |output: &Output| output.drops_in(&[node.routed.server.netns.inode()]).next().is_some();
    stream.wait("the first packet came through", answered)?;
    router.run("ip link add moved type veth peer name aside")?;
    router.run("ip link set moved up")?;
    let prefix = family.pick(32, 128);
    router.run(&format!("ip route add {}/{prefix} dev moved", to.ip()))?;
    send()?;
    let expect =
        Expect::drops(1, router).flow("udp", from, to).reason(&["NETFILTER_DROP"]).at(&["nf_hook_slow"]);
    let functions = family.pick("nf_nat_ipv4_out", "nf_nat_ipv6_out");
    verify(
        stream,
        &[hook_function(
            expect,
            Hook::Postrouting,
            family,
            &[functions],
            ("nat-failed", "error", "exact", "nat-moved"),
        )],
        &[],
    )
}

/// Before 6.4, which brought BPF netfilter programs, the self-test learns from the legacy filter table, beside nft chains,
/// where nf_hook_slow keeps the function's index. Looking at them loads them.
fn load_rule_engines(netns: &Namespace) -> Result<()> {
    if kernel::version() >= (6, 4) {
        return Ok(());
    }
    netns.run("nft list tables")?;
    netns.run("iptables-legacy -nL").map(drop)
}

/// A drop by one of netfilter's own functions, and why, as sure as can be: no table, no rule.
fn hook_function(
    expect: Expect,
    hook: Hook,
    family: Family,
    functions: &[&str],
    (verdict, class, confidence, cause): (&str, &str, &str, &'static str),
) -> Expect {
    // Without module BTF these functions have no names that can be trusted.
    if !expects_exact_here(Backend::Legacy) {
        return expect;
    }
    expect
        .cause(cause)
        .field("/drop/class", class)
        .field("/drop/netfilter/hook", hook.upper())
        .field("/drop/netfilter/family", family.name())
        .field_among("/drop/netfilter/function", functions)
        .field("/drop/netfilter/verdict", verdict)
        .field("/drop/netfilter/confidence", confidence)
        .field("/drop/netfilter/rule", Value::Null)
        .field("/drop/netfilter/handle", Value::Null)
}

/// The machine's limit of tracked connections, set back when this is dropped.
struct ConntrackLimit(String);

impl ConntrackLimit {
    const MAX: &'static str = "/proc/sys/net/netfilter/nf_conntrack_max";
    const COUNT: &'static str = "/proc/sys/net/netfilter/nf_conntrack_count";

    fn set(limit: u32) -> Result<Self> {
        let count = fs::read_to_string(Self::COUNT).unwrap_or_default();
        if !kernel::in_vm() && count.trim() != "0" {
            return Err(skip("this machine tracks connections of its own, which the small limit would drop"));
        }
        let before = fs::read_to_string(Self::MAX).context("read the limit of tracked connections")?;
        let own = Self(before);
        fs::write(Self::MAX, limit.to_string())
            .map_err(|error| skip(format!("the limit of tracked connections cannot be set: {error}")))?;
        Ok(own)
    }

    /// Changes it; what it was before is set back all the same.
    fn raise(limit: u32) -> Result<()> {
        fs::write(Self::MAX, limit.to_string()).context("raise the limit of tracked connections")
    }
}

impl Drop for ConntrackLimit {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::MAX, self.0.trim()) {
            eprintln!("{} stays small, it was {}: {error}", Self::MAX, self.0.trim());
        }
    }
}

/// More flows than can be tracked.
fn conntrack_full(family: Family) -> Result<()> {
    let rules = "*filter\n-A FORWARD -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n";
    let node = Node::new(Backend::IptablesNft, family, rules)?;
    load_rule_engines(&node.routed.router)?;
    let to = node.routed.server.port(family, 4242);
    let stream = watch()?;
    let _limit = ConntrackLimit::set(4)?;
    let flows: Vec<_> = (40_000..40_012)
        .map(|port| packet::udp(node.routed.client.port(family, port), to, b"one more"))
        .collect();
    node.routed.client.inject(&flows)?;
    // An old flow may give way to a new one.
    let expect = Expect::at_least(1, &node.routed.router)
        .destination("udp", to)
        .reason(&["NETFILTER_DROP"])
        .at(&["nf_hook_slow"]);
    let functions = ["nf_conntrack_in", "ipv4_conntrack_in", "ipv6_conntrack_in"];
    let said = ("conntrack-table-full", "resource", "inferred", "conntrack-full");
    verify(stream, &[hook_function(expect, Hook::Prerouting, family, &functions, said)], &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounting_is_left_out_and_nothing_else() {
        let text =
            "-A X -m conntrack --ctstate INVALID -m nfacct --nfacct-name  dropped -j DROP\n-A Y -j X\n";
        assert_eq!(without_accounting(text), "-A X -m conntrack --ctstate INVALID -j DROP\n-A Y -j X\n");
        let rules = without_accounting(KUBE_PROXY_V4);
        assert!(!rules.contains("nfacct"));
        assert_eq!(rules.lines().count(), KUBE_PROXY_V4.lines().count());
    }
}
