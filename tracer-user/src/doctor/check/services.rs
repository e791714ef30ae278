//! Every Service against what the node really translates: kube-proxy's rules of either backend or of nftables, IPVS, Cilium.

use super::super::facts::{Cluster, Facts, Service};
use super::super::model::{Finding, Severity, Unread, evidence};
use super::super::rules::{Rule, Table};
use super::super::texts::Text;
use super::{LISTED, signs};
use crate::event::model::Evidence;
use crate::identity::object::Protocol;
use crate::netfilter::text;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// What clients dial.
type Front = (SocketAddr, Protocol);

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(cluster) = &facts.cluster else { return Vec::new() };
    let mut found = without_endpoints(cluster);
    let translated = Translated::by(facts);
    if unjudged(facts).is_none() {
        found.extend(not_programmed(facts, cluster, &translated));
        found.extend(stale(facts, cluster, &translated));
    }
    found
}

/// Why services can't be compared with what the node translates.
#[must_use]
pub fn unjudged(facts: &Facts) -> Option<Unread> {
    let said = |why: &str| Some(Unread { what: "what the node translates".to_owned(), why: why.to_owned() });
    if let Some(Err(why)) = &facts.cilium {
        return said(&format!("Cilium's map of services: {why}"));
    }
    // They answer for addresses of services themselves, and do not show how.
    const OTHERS: [(&str, &str); 2] = [
        ("ovn-k8s-mp0", "OVN-Kubernetes translates services in Open vSwitch"),
        ("antrea-gw0", "Antrea may translate services in Open vSwitch"),
    ];
    let other = OTHERS.iter().find(|(name, _)| facts.links.iter().any(|link| link.name == *name));
    if let Some((_, why)) = other {
        return said(&format!("{why}, which is not read"));
    }
    if facts.has_calico_bpf {
        return said("Calico translates services in maps of its own (eBPF dataplane), which are not read");
    }
    if facts.has_unread_tables {
        return said("not all tables of rules could be read as a whole; see what else was not looked at");
    }
    let translated = Translated::by(facts);
    if translated.backends.is_empty() && signs::of_kubernetes(facts).is_empty() {
        return said(
            "nothing here shows that services are translated in this network namespace; run droptrace in the node's \
             (hostNetwork: true)",
        );
    }
    None
}

/// What the node translates.
#[derive(Debug, Default)]
struct Translated {
    /// Who does: for people.
    backends: Vec<&'static str>,
    /// What leads where; `None` where that can't be told.
    fronts: HashMap<Front, Option<BTreeSet<SocketAddr>>>,
    /// What is dropped on purpose: no endpoint on this node, and the traffic policy is Local.
    local_only: HashSet<Front>,
}

impl Translated {
    fn by(facts: &Facts) -> Self {
        let mut all = Self::default();
        for table in facts.own_tables() {
            match (table.is_iptables, &*table.name) {
                (true, "nat") => all.add_iptables(table),
                (true, "filter") => all.local_only.extend(dropped_for_local(table)),
                (false, "kube-proxy") => all.add_nft(table),
                _ => {}
            }
        }
        if let Some(servers) = facts.ipvs.as_ref().filter(|servers| !servers.is_empty()) {
            all.add("IPVS (/proc/net/ip_vs)");
            for server in servers {
                let backends = server.backends.as_ref().map(|all| all.iter().copied().collect());
                all.fronts.insert((server.address, server.protocol), backends);
            }
        }
        if let Some(Ok(servers)) = &facts.cilium {
            all.add("Cilium's maps of services");
            for server in servers {
                let backends = server.backends.as_ref().map(|all| all.iter().copied().collect());
                // One that has none in the map is refused.
                if backends.as_ref().is_none_or(|all: &BTreeSet<_>| !all.is_empty()) {
                    all.fronts.insert((server.address, server.protocol), backends);
                }
            }
        }
        all
    }

    fn add(&mut self, backend: &'static str) {
        if !self.backends.contains(&backend) {
            self.backends.push(backend);
        }
    }

    fn add_iptables(&mut self, table: &Table) {
        let chains = table.by_chain();
        let Some(services) = chains.get("KUBE-SERVICES") else { return };
        self.add(table.source);
        for rule in services {
            // Others only mark what will have to be masqueraded.
            let Some(target) = rule.targets.iter().find(|target| is_of_service(target)) else { continue };
            if let Some(front) = front(&rule.text) {
                let to = destinations(&chains, target);
                self.fronts.entry(front).or_default().get_or_insert_default().extend(to);
            }
        }
    }

    fn add_nft(&mut self, table: &Table) {
        self.add("nft table kube-proxy");
        let chains = table.by_chain();
        for map in &table.maps {
            for (key, target) in &map.elements {
                let Some(front) = front_of(key) else { continue };
                match (&*map.name, target) {
                    ("service-ips", Some(target)) => {
                        self.fronts.insert(front, Some(destinations(&chains, target)));
                    }
                    ("no-endpoint-services", None) => {
                        self.local_only.insert(front);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn is_of_service(chain: &str) -> bool {
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"]
        .iter()
        .any(|start| chain.starts_with(start))
}

/// Where a chain, and those that it leads to, translate to.
fn destinations(chains: &HashMap<&str, Vec<&Rule>>, chain: &str) -> BTreeSet<SocketAddr> {
    let (mut seen, mut next, mut found) = (HashSet::new(), vec![chain.to_owned()], BTreeSet::new());
    while let Some(chain) = next.pop() {
        for rule in chains.get(&*chain).into_iter().flatten() {
            found.extend(&rule.dnat);
            next.extend(rule.targets.iter().filter(|target| seen.insert((*target).clone())).cloned());
        }
    }
    found
}

fn protocol(name: &str) -> Option<Protocol> {
    Some(match name {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        _ => return None,
    })
}

/// `-d 10.96.0.1/32 -p tcp ... --dport 443` of a rule of iptables.
fn front(rule: &str) -> Option<Front> {
    let word = |option: &str| text::after(rule, |word| word == option).next();
    let address: IpAddr = word("-d")?.split('/').next()?.parse().ok()?;
    Some((SocketAddr::new(address, word("--dport")?.parse().ok()?), protocol(word("-p")?)?))
}

/// `10.96.0.1 . tcp . 443` of nft.
fn front_of(key: &[String]) -> Option<Front> {
    let [address, transport, port] = key else { return None };
    Some((SocketAddr::new(address.parse().ok()?, port.parse().ok()?), protocol(transport)?))
}

/// Rules of kube-proxy that drop what only endpoints of this node may get.
fn dropped_for_local(table: &Table) -> impl Iterator<Item = Front> + '_ {
    let is_it = |rule: &&Rule| {
        rule.drops && text::comments(&rule.text).any(|comment| comment.ends_with("has no local endpoints"))
    };
    table.rules.iter().filter(is_it).filter_map(|rule| front(&rule.text))
}

fn shown((address, transport): Front) -> String {
    let transport = match transport {
        6 => "TCP",
        17 => "UDP",
        132 => "SCTP",
        _ => "?",
    };
    format!("{address}/{transport}")
}

/// As many as are listed, and how many more.
fn listed(mut all: Vec<Evidence>, source: &str) -> Vec<Evidence> {
    let more = all.len().saturating_sub(LISTED);
    all.truncate(LISTED);
    if more > 0 {
        all.push(evidence("and more", more, source));
    }
    all
}

/// Services without an endpoint that is ready. Where no pod is selected there may be meant to be none: a workload that is scaled to
/// zero is no misconfiguration.
fn without_endpoints(cluster: &Cluster) -> Vec<Finding> {
    // One without a slice has no selector, or its endpoints are not known yet.
    let is_empty =
        |service: &&Service| service.has_slices && service.backends.is_empty() && !service.fronts.is_empty();
    let (without_pods, with_pods): (Vec<&Service>, Vec<&Service>) =
        cluster.services.iter().filter(is_empty).partition(|service| service.pods == Some(0));
    [(with_pods, Severity::Warning, "svc-no-endpoints"), (without_pods, Severity::Info, "svc-no-pods")]
        .into_iter()
        .filter_map(|(empty, severity, key)| of_empty(cluster, &empty, severity, key))
        .collect()
}

fn of_empty(cluster: &Cluster, empty: &[&Service], severity: Severity, key: &'static str) -> Option<Finding> {
    let first = &empty.first()?.name;
    let seen = empty.iter().map(|service| {
        let value = format!("0 of {} ready", service.all_backends.len());
        evidence(format!("endpoints of {}", service.name), value, cluster.source)
    });
    Some(Finding {
        id: "svc-no-endpoints",
        severity,
        text: Text::new(
            key,
            [
                ("count", empty.len().to_string()),
                ("namespace", first.namespace.clone()),
                ("name", first.name.clone()),
            ],
        ),
        evidence: listed(seen.collect(), cluster.source),
        netns: None,
        interface: None,
    })
}

/// Services with endpoints that nothing translates here.
fn not_programmed(facts: &Facts, cluster: &Cluster, translated: &Translated) -> Option<Finding> {
    let is_known = |front: &Front| {
        translated.local_only.contains(front)
            || translated.fronts.get(front).is_some_and(|to| to.as_ref().is_none_or(|to| !to.is_empty()))
    };
    let mut services = 0;
    let mut missing = Vec::new();
    for service in cluster.services.iter().filter(|service| !service.backends.is_empty()) {
        let has_backend = |front: &Front| {
            service
                .backends
                .iter()
                .any(|(to, transport)| to.is_ipv4() == front.0.is_ipv4() && *transport == front.1)
        };
        let fronts: Vec<&Front> =
            service.fronts.iter().filter(|front| has_backend(front) && !is_known(front)).collect();
        services += usize::from(!fronts.is_empty());
        missing.extend(fronts.into_iter().map(|front| {
            let value = format!("not translated, {} endpoints ready", service.backends.len());
            evidence(format!("{} {}", service.name, shown(*front)), value, cluster.source)
        }));
    }
    if missing.is_empty() {
        return None;
    }
    let read = match translated.backends.join(", ") {
        none if none.is_empty() => {
            evidence("looked at", "no rules of kube-proxy, no IPVS, no Cilium are here", "netfilter")
        }
        read => evidence("looked at", read, "netfilter"),
    };
    let mut evidence = listed(missing, cluster.source);
    evidence.push(read);
    Some(Finding {
        id: "svc-not-programmed",
        severity: Severity::Error,
        text: Text::new("svc-not-programmed", [("count", services.to_string())]),
        evidence,
        netns: Some(facts.netns),
        interface: None,
    })
}

/// Services that lead to what is no endpoint of theirs any more.
fn stale(facts: &Facts, cluster: &Cluster, translated: &Translated) -> Option<Finding> {
    let mut services = 0;
    let mut wrong = Vec::new();
    // One without slices has its endpoints from elsewhere.
    for service in cluster.services.iter().filter(|service| service.has_slices) {
        let known: HashSet<SocketAddr> = service.all_backends.iter().map(|(to, _)| *to).collect();
        let before = wrong.len();
        for front in &service.fronts {
            let to = translated.fronts.get(front).and_then(Option::as_ref);
            let gone = to.into_iter().flatten().filter(|to| !known.contains(to));
            wrong.extend(gone.map(|to| {
                evidence(
                    format!("{} {}", service.name, shown(*front)),
                    format!("leads to {to}, no endpoint"),
                    "netfilter",
                )
            }));
        }
        services += usize::from(wrong.len() > before);
    }
    (!wrong.is_empty()).then(|| Finding {
        id: "svc-stale-endpoint",
        severity: Severity::Error,
        text: Text::new("svc-stale-endpoint", [("count", services.to_string())]),
        evidence: listed(wrong, "netfilter"),
        netns: Some(facts.netns),
        interface: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::VirtualServer;
    use super::super::super::rules::Id;
    use super::super::fixtures::{fix, ids, node};
    use super::*;
    use crate::identity::object::Name;
    use crate::netfilter::model::{Backend, Family};

    const NAT: &str = include_str!("../../netfilter/fixtures/kube-proxy-nat.save");
    const FILTER: &str = include_str!("../../netfilter/fixtures/kube-proxy-filter.save");

    fn service(name: &str, front: &str, backends: &[&str]) -> Service {
        let ends: Vec<_> = backends.iter().map(|end| (end.parse().unwrap(), 6)).collect();
        Service {
            name: Name::new("shop", name),
            fronts: vec![(front.parse().unwrap(), 6)],
            backends: ends.clone(),
            all_backends: ends,
            has_slices: true,
            pods: Some(backends.len()),
        }
    }

    fn with(tables: Vec<Table>, services: Vec<Service>) -> Facts {
        let cluster = Cluster { source: "--inventory", services, ..Cluster::default() };
        Facts { tables, cluster: Some(cluster), ..node() }
    }

    fn nat(lines: &str) -> Table {
        let id = Id { netns: 7, backend: Backend::Legacy, family: Family::Ipv4, name: "nat".to_owned() };
        Table::saved(&id, &format!("*nat\n{lines}\nCOMMIT\n")).unwrap()
    }

    const CART: &str = "[0:0] -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment \"shop/cart cluster IP\" -m tcp --dport \
                        80 -j KUBE-SVC-X\n[0:0] -A KUBE-SVC-X -j KUBE-SEP-Y\n[0:0] -A KUBE-SVC-X ! -s 10.244.0.0/16 -j \
                        KUBE-MARK-MASQ\n[0:0] -A KUBE-SEP-Y -p tcp -j DNAT --to-destination 10.244.0.7:8080";

    #[test]
    fn what_kube_proxy_wrote_is_read() {
        let read = |name: &str, listing: &str| {
            let id = Id { netns: 7, backend: Backend::Nft, family: Family::Ipv4, name: name.to_owned() };
            Table::saved(&id, listing).unwrap()
        };
        let facts = with(vec![read("nat", NAT), read("filter", FILTER)], Vec::new());
        let translated = Translated::by(&facts);
        assert_eq!(translated.backends, ["iptables-nft-save -c"]);
        assert!(!translated.fronts.is_empty() && !translated.local_only.is_empty(), "{translated:?}");
        assert!(translated.fronts.keys().all(|(address, _)| address.is_ipv4()));
    }

    #[test]
    fn a_service_that_is_translated_to_its_endpoints_is_fine() {
        let facts = with(vec![nat(CART)], vec![service("cart", "10.96.0.9:80", &["10.244.0.7:8080"])]);
        assert_eq!((check(&facts), unjudged(&facts)), (vec![], None));
        let missing = with(vec![nat(CART)], vec![service("redis", "10.96.0.10:80", &["10.244.0.8:80"])]);
        let found = check(&missing);
        assert_eq!(ids(&found), ["svc-not-programmed"]);
        assert_eq!(found[0].evidence[0].name, "shop/redis 10.96.0.10:80/TCP");
        let gone = with(vec![nat(CART)], vec![service("cart", "10.96.0.9:80", &["10.244.0.8:8080"])]);
        let found = check(&gone);
        assert_eq!(ids(&found), ["svc-stale-endpoint"]);
        assert_eq!(found[0].evidence[0].value, "leads to 10.244.0.7:8080, no endpoint");
        // Another protocol is another service.
        let udp = Service {
            fronts: vec![("10.96.0.9:80".parse().unwrap(), 17)],
            ..service("cart", "10.96.0.9:80", &["10.244.0.7:8080"])
        };
        assert_eq!(check(&with(vec![nat(CART)], vec![udp])), []);
    }

    #[test]
    fn endpoints_of_this_node_only() {
        let mut filter = nat(
            "[0:0] -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment \"shop/redis has no local \
                              endpoints\" -m tcp --dport 80 -j DROP",
        );
        filter.name = "filter".into();
        let redis = || vec![service("redis", "10.96.0.10:80", &["10.244.0.8:80"])];
        assert_eq!(check(&with(vec![nat(CART), filter.clone()], redis())), []);
        // That there are none at all is not true.
        filter.rules[0].text = filter.rules[0].text.replace("no local", "no");
        assert_eq!(ids(&check(&with(vec![nat(CART), filter], redis()))), ["svc-not-programmed"]);
    }

    #[test]
    fn no_endpoints_are_told_however_services_are_translated() {
        let mut empty = Service { pods: Some(2), ..service("empty", "10.96.0.11:80", &[]) };
        let found = check(&with(Vec::new(), vec![empty.clone()]));
        assert_eq!((ids(&found), found[0].severity), (vec!["svc-no-endpoints"], Severity::Warning));
        let slices = "kubectl -n shop get endpointslices -l kubernetes.io/service-name=empty";
        assert!(fix(&found[0]).contains(slices));
        empty.has_slices = false;
        assert_eq!(check(&with(Vec::new(), vec![empty])), []);
    }

    #[test]
    fn a_workload_that_is_scaled_to_zero_is_no_misconfiguration() {
        let idle = service("idle", "10.96.0.11:80", &[]);
        assert_eq!(idle.pods, Some(0));
        let broken = Service { pods: Some(1), ..service("broken", "10.96.0.12:80", &[]) };
        let by_hand = Service { pods: None, ..service("by-hand", "10.96.0.13:80", &[]) };
        let found = check(&with(Vec::new(), vec![idle, broken, by_hand]));
        let told: Vec<_> = found.iter().map(|it| (it.id, it.severity, it.evidence.len())).collect();
        assert_eq!(
            told,
            [("svc-no-endpoints", Severity::Warning, 2), ("svc-no-endpoints", Severity::Info, 1)]
        );
        assert!(fix(&found[1]).contains("get service idle -o wide"));
    }

    #[test]
    fn nft_ipvs_and_cilium_translate_too() {
        let json = r#"{"nftables": [
            {"map": {"name": "service-ips", "elem": [[{"concat": ["10.96.0.9", "tcp", 80]}, {"goto": {"target": "service-x"}}]]}},
            {"map": {"name": "no-endpoint-services", "elem": [[{"elem": {"val": {"concat": ["10.96.0.10", "tcp", 80]}, "comment": "x"}}, {"drop": null}],
                [{"concat": ["10.96.0.11", "tcp", 80]}, {"goto": {"target": "reject-chain"}}]]}},
            {"rule": {"chain": "service-x", "handle": 1, "expr": [{"vmap": {"data": {"set": [[0, {"goto": {"target": "endpoint-y"}}]]}}}]}},
            {"rule": {"chain": "endpoint-y", "handle": 2, "expr": [{"dnat": {"addr": "10.244.0.7", "port": 8080}}]}}]}"#;
        let id = Id { netns: 7, backend: Backend::Nft, family: Family::Ipv4, name: "kube-proxy".to_owned() };
        let table = Table::listed(&id, json, "").unwrap();
        let services = || {
            vec![
                service("cart", "10.96.0.9:80", &["10.244.0.7:8080"]),
                service("local", "10.96.0.10:80", &["10.244.0.8:80"]),
            ]
        };
        assert_eq!(check(&with(vec![table.clone()], services())), []);
        let refused = vec![service("refused", "10.96.0.11:80", &["10.244.0.9:80"])];
        assert_eq!(ids(&check(&with(vec![table], refused))), ["svc-not-programmed"]);
        let server = VirtualServer {
            address: "10.96.0.9:80".parse().unwrap(),
            protocol: 6,
            backends: Some(vec!["10.244.0.7:8080".parse().unwrap()]),
        };
        let mut ipvs = with(Vec::new(), services());
        ipvs.ipvs = Some(vec![server.clone()]);
        assert_eq!(check(&ipvs)[0].evidence[0].name, "shop/local 10.96.0.10:80/TCP");
        let mut cilium = with(Vec::new(), services());
        cilium.cilium = Some(Ok(vec![server]));
        assert_eq!(check(&cilium)[0].evidence.len(), 2);
        cilium.cilium = Some(Err("refused".into()));
        assert_eq!(check(&cilium), []);
        assert!(unjudged(&cilium).unwrap().why.contains("refused"));
    }

    #[test]
    fn what_others_translate_is_not_judged() {
        let redis = || vec![service("redis", "10.96.0.10:80", &["10.244.0.8:80"])];
        assert_eq!(ids(&check(&with(vec![nat(CART)], redis()))), ["svc-not-programmed"]);
        let calico = Facts { has_calico_bpf: true, ..with(vec![nat(CART)], redis()) };
        assert_eq!(check(&calico), []);
        assert!(unjudged(&calico).unwrap().why.contains("eBPF dataplane"));
        let mut antrea = with(vec![nat(CART)], redis());
        antrea.links[2].name = "antrea-gw0".into();
        assert_eq!(check(&antrea), []);
    }

    #[test]
    fn nothing_is_said_where_rules_could_not_be_read() {
        let redis = vec![service("redis", "10.96.0.10:80", &["10.244.0.8:80"])];
        let facts = Facts { has_unread_tables: true, ..with(vec![nat(CART)], redis) };
        assert_eq!(check(&facts), []);
        assert!(unjudged(&facts).is_some());
    }

    #[test]
    fn nothing_is_said_of_a_pods_namespace() {
        let mut facts = with(Vec::new(), vec![service("cart", "10.96.0.9:80", &["10.244.0.7:8080"])]);
        // On a node it is one.
        assert_eq!(ids(&check(&facts)), ["svc-not-programmed"]);
        facts.links.retain(|link| link.name != "cni0");
        assert_eq!(check(&facts), []);
        assert!(unjudged(&facts).unwrap().why.contains("hostNetwork"));
    }
}
