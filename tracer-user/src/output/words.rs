//! The pieces of a line for people: pure functions from an event's fields to words, without colour. Everything
//! that comes from outside is escaped here.

use super::escape::escape;
use crate::cilium::{
    identity::Identity,
    maps::Direction,
    model::{Cilium, Entry, Policy},
};
use crate::event::model::{Drop, Endpoint, K8s, Original, Packet, Stalled};
use crate::netfilter::model::{Backend, Confidence, Family, Netfilter};
use crate::tc::model::{Bpf, Filter};
use std::net::IpAddr;

/// A number with commas between thousands.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `s` unless there is one.
pub(crate) fn plural(number: u64) -> &'static str {
    if number == 1 { "" } else { "s" }
}

/// An end by its name, else by its address: `shop/cart:80`, `node/n1:22`, `10.0.0.1:80`, `[fd00::1]:80`, `fd00::1`.
pub(crate) fn end(end: &Endpoint) -> String {
    match (end.k8s.as_ref().and_then(who), end.port) {
        (Some(pod), Some(port)) => format!("{pod}:{port}"),
        (Some(pod), None) => pod,
        (None, _) => address(end),
    }
}

/// An end by its address.
pub(crate) fn address(end: &Endpoint) -> String {
    match (end.address, end.port) {
        (Some(IpAddr::V6(address)), Some(port)) => format!("[{address}]:{port}"),
        (Some(address), Some(port)) => format!("{address}:{port}"),
        (Some(address), None) => address.to_string(),
        (None, Some(port)) => format!("?:{port}"),
        (None, None) => "?".to_owned(),
    }
}

/// `namespace/pod`; what is no pod has its kind before its name: `container/web`, `unit/nginx.service`,
/// `svc/namespace/name`, `node/n1`.
pub(crate) fn who(k8s: &K8s) -> Option<String> {
    let spaced = |name: &str| match &k8s.namespace {
        Some(namespace) => format!("{}/{}", escape(namespace), escape(name)),
        None => escape(name).into_owned(),
    };
    let others = || {
        let kinds = [("container", &k8s.container), ("unit", &k8s.unit)];
        let named = kinds.into_iter().find_map(|(kind, name)| Some((kind, name.as_ref()?)));
        named.map(|(kind, name)| format!("{kind}/{}", escape(name)))
    };
    let service = || k8s.service.as_deref().map(|name| format!("svc/{}", spaced(name)));
    let node = || k8s.node.as_ref().map(|name| format!("node/{}", escape(name)));
    k8s.pod.as_deref().map(spaced).or_else(others).or_else(service).or_else(node)
}

/// The service that an end belongs to, where its name is not the end's own: `redis`, `redis or cache`.
pub(super) fn service(k8s: &K8s) -> Option<String> {
    let has_other = k8s.pod.is_some() || k8s.container.is_some() || k8s.unit.is_some();
    let one = k8s.service.as_ref().filter(|_| has_other).map(|name| escape(name).into_owned());
    let several = || k8s.services.iter().map(|name| escape(name)).collect::<Vec<_>>().join(" or ");
    one.or_else(|| Some(several()).filter(|names| !names.is_empty()))
}

/// `source -> destination`, by address.
pub(crate) fn addresses(source: &Endpoint, destination: &Endpoint) -> String {
    format!("{} -> {}", address(source), address(destination))
}

/// `source -> destination (svc name address)`; empty if neither end is known.
pub(crate) fn ends(drop: &Drop) -> String {
    let unknown = |e: &Endpoint| e.address.is_none() && e.port.is_none() && e.k8s.is_none();
    if unknown(&drop.source) && unknown(&drop.destination) {
        return String::new();
    }
    let mut text = format!("{} -> {}", end(&drop.source), end(&drop.destination));
    let service = drop.destination.k8s.as_ref().and_then(service);
    match (service, dialled(drop)) {
        (Some(service), Some(original)) => {
            // The port is only worth its room where it was translated too.
            let mut to = original.destination.clone();
            if to.port == drop.destination.port {
                to.port = None;
            }
            text.push_str(&format!(" (svc {service} {})", address(&to)));
        }
        (Some(service), None) => text.push_str(&format!(" (svc {service})")),
        (None, Some(original)) => text.push_str(&format!(" (dialled {})", address(&original.destination))),
        (None, None) => {}
    }
    text
}

/// `10 s: 0 drops for --pod cart on n1; 14 SYN retransmits from shop/cart to 10.96.3.4:6379 unanswered: lost off this node,
/// or not answered; next: on n2: droptrace --ip 10.96.3.4`
pub(crate) fn stalled(stalled: &Stalled) -> String {
    let Stalled { seconds, node, filter, peers, unreplied_peers, .. } = stalled;
    let mut text = format!("{seconds} s: 0 drops for {} on {}", escape(filter), escape(node));
    for peer in peers {
        let count = thousands(peer.retransmits);
        let s = plural(peer.retransmits);
        let what = if peer.answered { "" } else { "SYN " };
        let how = if peer.answered { "" } else { " unanswered" };
        let (from, to) = (end(&peer.source), with_address(&peer.destination));
        text.push_str(&format!("; {count} {what}retransmit{s} from {from} to {to}{how}"));
    }
    if peers.is_empty() {
        text.push_str("; no TCP retransmits");
    }
    for peer in unreplied_peers {
        let (count, s) = (thousands(peer.connections), plural(peer.connections));
        let transport = peer.transport.as_deref().map(|name| escape(name).to_uppercase());
        let transport = transport.map(|name| format!("{name} ")).unwrap_or_default();
        let (from, to) = (end(&peer.source), with_address(&peer.destination));
        // Where something translates, connection tracking has the backend.
        let as_it_is = if is_service(&peer.destination) { ", which nothing here translated," } else { "" };
        text.push_str(&format!(
            "; {count} {transport}connection{s} from {from} to {to}{as_it_is} without a reply"
        ));
    }
    if let Some(silent) = silent(stalled) {
        text.push_str(&format!(": lost off this node, or not answered; next: {}", next(silent, node)));
        let ignores_syns =
            peers.first().is_some_and(|peer| !peer.answered && std::ptr::eq(&peer.destination, silent));
        if ignores_syns && is_pod_here(silent, node) {
            // The kernel throws such a SYN away as if it had been used (tcp_conn_request, net/ipv4/tcp_input.c).
            text.push_str(": is its accept queue full (ss -lnt there)");
        }
        // A trace can't choose by what only drops have.
        if !["--reason", "--cause"].iter().any(|word| filter.contains(word)) {
            text.push_str(&format!("; their way through this node: droptrace trace {}", escape(filter)));
        }
    }
    text
}

/// A drop in one line, without its time.
pub(crate) fn line(drop: &Drop) -> String {
    let parts = [ends(drop), protocol(drop), format!("DROP  {}", place(drop)), interfaces(drop)];
    let mut parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if drop.count != 1 {
        parts.push(format!("x{}", drop.count));
    }
    parts.join("  ")
}

/// A number in five letters at most: `999`, `12k`, `1234M`.
pub(crate) fn short(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{}k", number / 1000),
        10_000_000..10_000_000_000 => format!("{}M", number / 1_000_000),
        _ => format!("{}G", number / 1_000_000_000),
    }
}

/// Who does not answer. Of a Service that was dialled it is the backend, if connection tracking has that.
fn silent(stalled: &Stalled) -> Option<&Endpoint> {
    let dialled = stalled.peers.first().map(|peer| &peer.destination);
    let mut unreplied = stalled.unreplied_peers.iter().map(|peer| &peer.destination);
    let first = unreplied.clone().next();
    match dialled {
        Some(service) if is_service(service) && !unreplied.any(is_service) => first.or(dialled),
        _ => dialled.or(first),
    }
}

/// Whether it is a pod of this node.
fn is_pod_here(end: &Endpoint, here: &str) -> bool {
    end.k8s
        .as_ref()
        .is_some_and(|k8s| k8s.pod.is_some() && k8s.node.as_deref().is_none_or(|node| node == here))
}

/// Whether it is a Service's own address.
fn is_service(end: &Endpoint) -> bool {
    end.k8s.as_ref().is_some_and(|k8s| k8s.service.is_some() && k8s.pod.is_none())
}

/// Its name, and its address where that is not its name.
fn with_address(end_of: &Endpoint) -> String {
    match end_of.k8s.as_ref().and_then(who) {
        Some(_) => format!("{} ({})", end(end_of), address(end_of)),
        None => address(end_of),
    }
}

/// Where to look for what became of packets to somebody who does not answer.
fn next(silent: &Endpoint, here: &str) -> String {
    let address = silent.address.map(|address| address.to_string()).unwrap_or_default();
    let k8s = silent.k8s.as_ref();
    let there = k8s.and_then(|k8s| k8s.node.as_deref()).filter(|node| *node != here).map(escape);
    let pod = k8s.and_then(|k8s| k8s.pod.as_ref().and_then(|_| who(k8s)));
    match (pod, there) {
        _ if is_service(silent) => {
            let service = k8s.and_then(who).unwrap_or_default();
            format!("droptrace doctor: do kube-proxy's rules, IPVS or Cilium translate {service} here")
        }
        (Some(pod), Some(node)) => format!("on {node}: droptrace --pod {pod}"),
        (Some(pod), None) => format!("what {pod} does with them"),
        (None, Some(node)) => format!("on {node}: droptrace --ip {address}"),
        (None, None) => {
            format!("is {address} up, and what is on the way there (its node, a security group, a firewall)")
        }
    }
}

/// The original direction, if the packet goes that way, to a translated destination.
fn dialled(drop: &Drop) -> Option<&Original> {
    let original = drop.original.as_ref()?;
    let translated = (original.destination.address, original.destination.port)
        != (drop.destination.address, drop.destination.port);
    let replies = drop.conntrack.as_ref().is_some_and(|entry| entry.direction.as_deref() == Some("reply"));
    (translated && !replies && original.destination.address.is_some()).then_some(original)
}

/// `TCP SYN`, `ICMP echo-request(8/0)`, `ARP`; empty if nothing is known.
pub(crate) fn protocol(drop: &Drop) -> String {
    let (network, packet) = (&drop.network, &drop.packet);
    let mut text = match (network.transport.as_deref(), network.family.as_deref()) {
        (Some("icmpv6"), _) => "ICMPv6".to_owned(),
        (Some(name), _) if name.bytes().all(|c| c.is_ascii_digit()) => format!("protocol {name}"),
        (Some(name), _) => escape(name).to_uppercase(),
        (None, Some("ipv4")) => "IPv4".to_owned(),
        (None, Some("ipv6")) => "IPv6".to_owned(),
        (None, Some(other)) if other.starts_with("0x") => format!("ethertype {}", escape(other)),
        (None, Some(other)) => escape(other).to_uppercase(),
        (None, None) => return String::new(),
    };
    if let Some(flags) = &packet.tcp_flags {
        text.push(' ');
        text.push_str(&escape(flags));
    }
    if let Some(kind) = packet.icmp_type {
        let code = packet.icmp_code.map_or_else(|| "?".to_owned(), |code| code.to_string());
        let name = if network.transport.as_deref() == Some("icmpv6") {
            icmpv6(kind, packet.icmp_code)
        } else {
            icmp(kind, packet.icmp_code)
        };
        text.push_str(&format!(" {name}({kind}/{code})"));
    }
    if packet.fragment == Some(true) {
        text.push_str(" fragment");
    }
    text
}

/// Name of an ICMP message (RFC 792 and IANA's ICMP parameters), in iptables' spelling where it has one.
fn icmp(kind: u8, code: Option<u8>) -> &'static str {
    match (kind, code) {
        (0, _) => "echo-reply",
        (3, Some(0)) => "network-unreachable",
        (3, Some(1)) => "host-unreachable",
        (3, Some(2)) => "protocol-unreachable",
        (3, Some(3)) => "port-unreachable",
        (3, Some(4)) => "fragmentation-needed",
        (3, Some(9)) => "network-prohibited",
        (3, Some(10)) => "host-prohibited",
        (3, Some(13)) => "communication-prohibited",
        (3, _) => "destination-unreachable",
        (4, _) => "source-quench",
        (5, _) => "redirect",
        (8, _) => "echo-request",
        (9, _) => "router-advertisement",
        (10, _) => "router-solicitation",
        (11, Some(0)) => "ttl-zero-during-transit",
        (11, Some(1)) => "ttl-zero-during-reassembly",
        (11, _) => "time-exceeded",
        (12, _) => "parameter-problem",
        (13, _) => "timestamp-request",
        (14, _) => "timestamp-reply",
        _ => "type",
    }
}

/// Name of an ICMPv6 message (RFC 4443, RFC 4861, RFC 3810), in ip6tables' spelling where it has one.
fn icmpv6(kind: u8, code: Option<u8>) -> &'static str {
    match (kind, code) {
        (1, Some(0)) => "no-route",
        (1, Some(1)) => "communication-prohibited",
        (1, Some(2)) => "beyond-scope",
        (1, Some(3)) => "address-unreachable",
        (1, Some(4)) => "port-unreachable",
        (1, Some(5)) => "failed-policy",
        (1, Some(6)) => "reject-route",
        (1, _) => "destination-unreachable",
        (2, _) => "packet-too-big",
        (3, Some(0)) => "ttl-zero-during-transit",
        (3, Some(1)) => "ttl-zero-during-reassembly",
        (3, _) => "time-exceeded",
        (4, _) => "parameter-problem",
        (128, _) => "echo-request",
        (129, _) => "echo-reply",
        (130, _) => "multicast-listener-query",
        (131, _) => "multicast-listener-report",
        (132, _) => "multicast-listener-done",
        (133, _) => "router-solicitation",
        (134, _) => "router-advertisement",
        (135, _) => "neighbour-solicitation",
        (136, _) => "neighbour-advertisement",
        (137, _) => "redirect",
        (143, _) => "multicast-listener-report-v2",
        _ => "type",
    }
}

/// Where it was dropped: the rule, `filter:FORWARD:rule:7 (FORWARD, legacy)`, else the program or filter at a tc hook,
/// `tc:INGRESS:bouncer:id:7 (eth0, tcx)` or `cilium:133:POLICY Policy denied (endpoint 2636 ingress, identity 2 -> 12345)`, else why, netfilter's function and hook,
/// `conntrack-table-full ipv4_conntrack_in (PREROUTING)`, else reason and location, else what of them is known.
pub(crate) fn place(drop: &Drop) -> String {
    let why = &drop.drop;
    if let Some(netfilter) = &why.netfilter
        && let Some(rule) = rule(netfilter)
    {
        let backend = netfilter.backend.map(|backend| match backend {
            Backend::Legacy => "legacy",
            Backend::Nft => "nft",
        });
        let about: Vec<_> = [netfilter.hook.as_deref(), backend].into_iter().flatten().map(escape).collect();
        return if about.is_empty() { rule } else { format!("{rule} ({})", about.join(", ")) };
    }
    if let Some(netfilter) = &why.netfilter
        && let (Some(function), Some(hook)) = (&netfilter.function, &netfilter.hook)
    {
        let what = verdict(netfilter).or(why.reason.as_deref()).unwrap_or("dropped");
        let program = netfilter.program.as_ref().map(|it| format!(" {} id {}", escape(&it.name), it.id));
        let program = program.unwrap_or_default();
        return format!("{} {}{program} ({})", escape(what), escape(function), escape(hook));
    }
    if let Some(cilium) = &why.cilium {
        return said_by_cilium(cilium);
    }
    if let Some(bpf) = &why.bpf
        && let Some(filter) = filter(bpf)
    {
        let about: Vec<_> =
            [&bpf.interface, &bpf.filter.attached].into_iter().flatten().map(|it| escape(it)).collect();
        return if about.is_empty() { filter } else { format!("{filter} ({})", about.join(", ")) };
    }
    let known: Vec<_> = [&why.reason, &why.location].into_iter().flatten().map(|text| escape(text)).collect();
    if known.is_empty() { "unknown reason".to_owned() } else { known.join(" ") }
}

/// `filter:FORWARD:rule:7`, `inet:TABLE:CHAIN:handle:12` or `filter:FORWARD:policy`; `None` without table and chain.
pub(crate) fn rule(netfilter: &Netfilter) -> Option<String> {
    let (table, chain) = (escape(netfilter.table.as_deref()?), escape(netfilter.chain.as_deref()?));
    Some(match (netfilter.rule, netfilter.handle) {
        (Some(rule), _) => format!("{table}:{chain}:rule:{rule}"),
        (None, Some(handle)) => {
            format!("{}:{table}:{chain}:handle:{handle}", netfilter.family.map_or("", Family::name))
        }
        (None, None) if netfilter.verdict.as_deref() == Some("policy") => format!("{table}:{chain}:policy"),
        (None, None) => format!("{table}:{chain}"),
    })
}

/// `tc:INGRESS:bouncer:id:7`, `netkit:bouncer:id:7`, or `tc:EGRESS:u32:pref:49152` for a filter without a program; `None` if it
/// is not known which.
pub(crate) fn filter(bpf: &Bpf) -> Option<String> {
    let Filter { program, id, classifier, priority, .. } = &bpf.filter;
    let what = match (id, classifier, priority) {
        (Some(id), ..) => format!("{}:id:{id}", escape(program.as_deref().unwrap_or("?"))),
        (None, Some(classifier), Some(priority)) => format!("{}:pref:{priority}", escape(classifier)),
        _ => return None,
    };
    Some(match bpf.hook.as_str() {
        "NETKIT" => format!("netkit:{what}"),
        hook => format!("tc:{}:{what}", escape(hook)),
    })
}

/// `cilium:133:POLICY Policy denied (endpoint 2636 ingress, identity 2 -> 12345; policies on the pod: shop/deny)`, with the
/// identities' reserved names.
fn said_by_cilium(cilium: &Cilium) -> String {
    let identity = |identity: &Identity| {
        let reserved = identity.labels.iter().flatten().find(|label| label.starts_with("reserved:"));
        reserved.map_or_else(|| identity.id.to_string(), |label| format!("{} {}", identity.id, escape(label)))
    };
    let endpoint = cilium.endpoint.map(|id| match cilium.direction {
        Some(Direction::Ingress) => format!("endpoint {id} ingress"),
        Some(Direction::Egress) => format!("endpoint {id} egress"),
        None => format!("endpoint {id}"),
    });
    let known = |it: &Option<Identity>| it.as_ref().map_or_else(|| "?".to_owned(), identity);
    let ends = [&cilium.source_identity, &cilium.destination_identity];
    let identities = ends
        .iter()
        .any(|it| it.is_some())
        .then(|| format!("identity {} -> {}", known(ends[0]), known(ends[1])));
    let about: Vec<_> = [endpoint, identities].into_iter().flatten().collect();
    let about: Vec<_> =
        [(!about.is_empty()).then(|| about.join(", ")), policies(cilium)].into_iter().flatten().collect();
    let about = if about.is_empty() { String::new() } else { format!(" ({})", about.join("; ")) };
    let message = escape(&cilium.message);
    match (cilium_code(cilium), message.is_empty()) {
        (Some(code), true) => format!("{code}{about}"),
        (Some(code), false) => format!("{code} {message}{about}"),
        (None, _) => format!("cilium {message}{about}"),
    }
}

/// `policies on the pod: shop/redis-deny, shop/allow`; `None` if they are not known.
fn policies(cilium: &Cilium) -> Option<String> {
    /// More are counted.
    const TOLD: usize = 3;
    let policies = cilium.policies.as_ref()?;
    let mut names: Vec<_> = policies.iter().take(TOLD).map(policy).collect();
    if policies.len() > TOLD {
        names.push(format!("{} more", policies.len() - TOLD));
    }
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Some(format!("policies on the pod: {names}"))
}

/// An entry of a policy map: `allow identity 4711 (k8s:app=web) tcp 80-90`.
fn policy_entry(entry: &Entry) -> String {
    let peer = entry.identity.as_ref().map_or_else(
        || "any identity".to_owned(),
        |peer| match &peer.labels {
            Some(labels) => format!("identity {} ({})", peer.id, escape(&labels.join(","))),
            None => format!("identity {}", peer.id),
        },
    );
    let mut text = format!("{} {peer}", if entry.deny { "deny" } else { "allow" });
    text.extend(entry.protocol.iter().map(|protocol| format!(" {}", escape(protocol))));
    text.extend(entry.port.map(|port| format!(" {port}")));
    text.extend(entry.port_last.map(|last| format!("-{last}")));
    text
}

/// `shop/redis-deny`; one of the whole cluster has its name only.
pub(crate) fn policy(policy: &Policy) -> String {
    let name = escape(&policy.name);
    policy
        .namespace
        .as_ref()
        .map_or_else(|| name.to_string(), |namespace| format!("{}/{name}", escape(namespace)))
}

/// `cilium:133:POLICY`; `None` without a code.
pub(super) fn cilium_code(cilium: &Cilium) -> Option<String> {
    let code = cilium.code?;
    let name = cilium.name.as_ref().map(|name| format!(":{}", escape(name))).unwrap_or_default();
    Some(format!("cilium:{code}{name}"))
}

/// Why a hook function dropped it, which says more than the kernel's reason.
pub(super) fn verdict(netfilter: &Netfilter) -> Option<&str> {
    let verdict = netfilter.function.as_ref().and(netfilter.verdict.as_deref());
    verdict.filter(|verdict| *verdict != "drop")
}

/// `veth1->eth0`, `veth1`, `->eth0`; where no interface is known, the network namespace.
pub(crate) fn interfaces(drop: &Drop) -> String {
    let network = &drop.network;
    match (&network.interface_in, &network.interface_out, &network.interface) {
        (Some(from), Some(to), _) => format!("{}->{}", escape(from), escape(to)),
        (Some(only), None, _) | (None, None, Some(only)) => escape(only).into_owned(),
        (None, Some(to), _) => format!("->{}", escape(to)),
        (None, None, None) => network.netns.map(|inode| format!("netns {inode}")).unwrap_or_default(),
    }
}

/// The stable name of a routine drop: its cause's, else its reason, else its location.
pub(super) fn routine_id(drop: &Drop) -> &str {
    let why = &drop.drop;
    let cause = why.cause.as_ref().map(|cause| cause.id.as_str());
    cause.or(why.reason.as_deref()).or(why.location.as_deref()).unwrap_or("unknown")
}

/// The fields that `wide` adds.
pub(crate) fn wide(drop: &Drop) -> Vec<String> {
    let Drop { network, packet, .. } = drop;
    let Packet { length, mark, ttl, ip_id, icmp_id, icmp_sequence, segments, .. } = packet;
    let mut fields = vec![format!("class {}", class(drop))];
    let mut add = |name: &str, value: Option<String>| {
        fields.extend(value.map(|value| format!("{name} {value}")));
    };
    add(
        "netns",
        network.netns.map(|inode| match &network.netns_by {
            Some(by) => format!("{inode} (by {})", escape(by)),
            None => inode.to_string(),
        }),
    );
    add("dev", network.interface.as_ref().map(|name| escape(name).into_owned()));
    add("length", length.map(|value| value.to_string()));
    add("segments", segments.filter(|&value| value > 1).map(|value| value.to_string()));
    add("ttl", ttl.map(|value| value.to_string()));
    add("ip-id", ip_id.map(|value| value.to_string()));
    add("mark", mark.map(|value| format!("{value:#x}")));
    add("icmp-id", icmp_id.map(|value| value.to_string()));
    add("icmp-seq", icmp_sequence.map(|value| value.to_string()));
    add("subsystem", drop.drop.subsystem.as_ref().map(|name| escape(name).into_owned()));
    if let Some(entry) = &drop.conntrack {
        let mut words = vec![escape(&entry.state).into_owned()];
        words.extend(entry.direction.as_ref().map(|text| escape(text).into_owned()));
        words.extend((!entry.status.is_empty()).then(|| escape(&entry.status).into_owned()));
        words.extend(entry.tcp_state.as_ref().map(|text| escape(text).into_owned()));
        words.extend(entry.zone.map(|zone| format!("zone {zone}")));
        words.extend(entry.mark.map(|mark| format!("mark {mark:#x}")));
        add("ct", Some(words.join(" ")));
        let tuple = |tuple: &Original| Some(addresses(&tuple.source, &tuple.destination));
        add("ct-original", tuple(&entry.original));
        add("ct-reply", tuple(&entry.reply));
    } else if let Some(original) = &drop.original {
        add("original", Some(addresses(&original.source, &original.destination)));
    }
    if let Some(inner) = &drop.inner {
        let vni = inner.vni.map(|vni| format!(" vni {vni}")).unwrap_or_default();
        let transport = inner.transport.as_ref().map(|name| format!(" {}", escape(name))).unwrap_or_default();
        let ends = addresses(&inner.source, &inner.destination);
        add("inner", Some(format!("{}{vni} {ends}{transport}", escape(&inner.kind))));
    }
    if let Some(netfilter) = &drop.drop.netfilter {
        let text = |value: &Option<String>| value.as_ref().map(|text| escape(text).into_owned());
        add("verdict", text(&netfilter.verdict));
        add("with", text(&netfilter.reject_with));
        add("owner", text(&netfilter.owner));
        add("rule", text(&netfilter.text));
        let set_by: Vec<_> = netfilter
            .mark_set_by
            .iter()
            .map(|rule| {
                let place = [&rule.table, &rule.chain].map(|name| escape(name)).join(":");
                rule.rule.map_or_else(|| place.clone(), |number| format!("{place}:rule:{number}"))
            })
            .collect();
        add("other-backend", text(&netfilter.other_backend));
        add("mark-set-by", (!set_by.is_empty()).then(|| set_by.join(", ")));
        add("confidence", unsure(netfilter.confidence));
    }
    if let Some(cilium) = &drop.drop.cilium {
        let text = |value: &str| Some(escape(value).into_owned());
        add("program", cilium.program.as_deref().and_then(text));
        let line = cilium.line.map(|line| format!(":{line}")).unwrap_or_default();
        add("source", cilium.file.as_ref().map(|file| format!("{}{line}", escape(file))));
        for one in cilium.policies.iter().flatten() {
            let why = one.why_not.as_ref().map(|why| format!(": {}", escape(why))).unwrap_or_default();
            add("policy", Some(format!("{} {}{why}", escape(&one.kind), policy(one))));
        }
        for entry in &cilium.nearest {
            add("nearest", Some(policy_entry(entry)));
        }
        for note in cilium.notes.iter().chain(&cilium.unread) {
            add("note", text(note));
        }
    }
    if let Some(bpf) = &drop.drop.bpf {
        let text = |value: &Option<String>| value.as_ref().map(|text| escape(text).into_owned());
        add("handle", text(&bpf.filter.handle));
        add("tag", text(&bpf.filter.tag));
        add("pinned", text(&bpf.filter.pinned));
        let one = |it: &Filter| filter(&Bpf { hook: bpf.hook.clone(), filter: it.clone(), ..Bpf::default() });
        let candidates: Vec<_> = bpf.candidates.iter().filter_map(one).collect();
        add("candidates", (!candidates.is_empty()).then(|| candidates.join(", ")));
        add("confidence", unsure(bpf.confidence));
    }
    add("node", (!drop.node.is_empty()).then(|| escape(&drop.node).into_owned()));
    fields
}

/// How sure an answer is, where it isn't.
fn unsure(confidence: Confidence) -> Option<String> {
    match confidence {
        Confidence::Exact => None,
        Confidence::Inferred => Some("inferred".to_owned()),
        Confidence::Ambiguous => Some("ambiguous".to_owned()),
    }
}

/// The class's name.
pub(crate) fn class(drop: &Drop) -> &'static str {
    use crate::event::model::Class;
    match drop.drop.class {
        Class::Policy => "policy",
        Class::Error => "error",
        Class::Resource => "resource",
        Class::Routine => "routine",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::{Peer, Unreplied};

    fn end_at(address: &str, port: Option<u16>, k8s: Option<K8s>) -> Endpoint {
        Endpoint { address: address.parse().ok(), port, k8s }
    }

    fn pod(name: &str, node: &str) -> Option<K8s> {
        let (namespace, pod) = (Some("shop".to_owned()), Some(name.to_owned()));
        Some(K8s { namespace, pod, node: Some(node.to_owned()), ..K8s::default() })
    }

    fn quiet() -> Stalled {
        Stalled { seconds: 10, node: "n1".into(), filter: "--pod cart-0".into(), ..Stalled::default() }
    }

    #[test]
    fn silence_says_what_was_seen_instead_and_where_to_look_next() {
        assert_eq!(stalled(&quiet()), "10 s: 0 drops for --pod cart-0 on n1; no TCP retransmits");
        // Connection tracking need not be at work in this network namespace.
        let none = Stalled { unreplied: Some(0), ..quiet() };
        assert_eq!(stalled(&none), stalled(&quiet()));
        let source = || end_at("10.0.0.1", None, pod("cart-0", "n1"));
        let outside = end_at("192.0.2.9", Some(443), None);
        let peer = Peer { source: source(), destination: outside, retransmits: 14, answered: false };
        let said = stalled(&Stalled { retransmits: 14, peers: vec![peer], ..quiet() });
        assert_eq!(
            said,
            "10 s: 0 drops for --pod cart-0 on n1; 14 SYN retransmits from shop/cart-0 to 192.0.2.9:443 unanswered: lost off \
             this node, or not answered; next: is 192.0.2.9 up, and what is on the way there (its node, a security group, a \
             firewall); their way through this node: droptrace trace --pod cart-0"
        );
        let destination = end_at("10.0.1.9", Some(53), pod("dns-0", "n2"));
        let transport = Some("udp".to_owned());
        let peer = Unreplied { source: source(), destination, transport, connections: 2 };
        let said = stalled(&Stalled { unreplied: Some(2), unreplied_peers: vec![peer], ..quiet() });
        assert_eq!(
            said,
            "10 s: 0 drops for --pod cart-0 on n1; no TCP retransmits; 2 UDP connections from shop/cart-0 to shop/dns-0:53 \
             (10.0.1.9:53) without a reply: lost off this node, or not answered; next: on n2: droptrace --pod shop/dns-0; their way through this \
             node: droptrace trace --pod cart-0"
        );
        let redis = K8s { namespace: Some("shop".into()), service: Some("redis".into()), ..K8s::default() };
        let destination = end_at("10.96.0.9", Some(6379), Some(redis));
        let peer = Unreplied { source: source(), destination, transport: Some("tcp".into()), connections: 1 };
        let filter = "--pod cart-0 --reason NO_SOCKET".to_owned();
        let said = stalled(&Stalled { unreplied: Some(1), unreplied_peers: vec![peer], filter, ..quiet() });
        let end = "which nothing here translated, without a reply: lost off this node, or not answered; next: droptrace \
                   doctor: do kube-proxy's rules, IPVS or Cilium translate svc/shop/redis here";
        assert!(said.ends_with(end), "{said}");
    }

    #[test]
    fn who_ignores_a_service_is_its_backend() {
        let service = K8s { namespace: Some("shop".into()), service: Some("redis".into()), ..K8s::default() };
        let dialled = end_at("10.96.0.9", Some(6379), Some(service));
        let peer =
            |destination| Peer { source: Endpoint::default(), destination, retransmits: 3, answered: false };
        let unreplied = |destination: Endpoint| {
            let transport = Some("tcp".to_owned());
            vec![Unreplied { source: Endpoint::default(), destination, transport, connections: 1 }]
        };
        let told = |unreplied_peers| {
            let said = stalled(&Stalled { peers: vec![peer(dialled.clone())], unreplied_peers, ..quiet() });
            said.split_once("; next: ").unwrap().1.split_once("; their way").unwrap().0.to_owned()
        };
        assert_eq!(
            told(unreplied(end_at("10.0.1.9", Some(6379), pod("redis-0", "n2")))),
            "on n2: droptrace --pod shop/redis-0"
        );
        let translate =
            "droptrace doctor: do kube-proxy's rules, IPVS or Cilium translate svc/shop/redis here";
        assert_eq!([told(vec![]), told(unreplied(dialled.clone()))], [translate, translate]);
        let here = end_at("10.0.0.3", Some(80), pod("redis-0", "n1"));
        let said = stalled(&Stalled { peers: vec![peer(here)], ..quiet() });
        assert!(
            said.contains(
                "; next: what shop/redis-0 does with them: is its accept queue full (ss -lnt there); their"
            ),
            "{said}"
        );
    }

    #[test]
    fn where_to_look_next_depends_on_who_is_silent() {
        let node = K8s { node: Some("n2".to_owned()), ..K8s::default() };
        assert_eq!(next(&end_at("192.0.2.2", None, Some(node)), "n1"), "on n2: droptrace --ip 192.0.2.2");
        let here = end_at("10.0.0.3", Some(80), pod("redis-0", "n1"));
        assert_eq!(next(&here, "n1"), "what shop/redis-0 does with them");
    }
}
