//! What tells that a network namespace is one that forwards for pods or other containers: a node's, not a pod's.

use super::super::facts::{Facts, Link};
use super::super::model::evidence;
use super::super::rules::owners;
use crate::event::model::Evidence;
use crate::netfilter::owner::is_of_kubernetes;

/// Names of interfaces that pod networks and container engines make in the node's network namespace; a `*` stands for the
/// rest.
const INTERFACES: [&str; 15] = [
    "cni0",
    "cbr0",
    "kube-bridge",
    "kube-ipvs0",
    "flannel*",
    "cali*",
    "vxlan.calico",
    "cilium_host",
    "cilium_vxlan",
    "weave",
    "antrea-gw0",
    "ovn-k8s-mp0",
    "nodelocaldns",
    "docker0",
    "podman0",
];
/// True if the interface's name is one that a pod network gives.
pub(super) fn is_of_pods(link: &Link) -> bool {
    INTERFACES.iter().any(|name| match name.strip_suffix('*') {
        Some(start) => link.name.starts_with(start),
        None => link.name == *name,
    })
}

/// Container engines beside Kubernetes, whose containers look after themselves. Like Kubernetes' components they write rules in the
/// node's network namespace only.
const ENGINES: [&str; 2] = ["docker", "podman"];

/// The signs that it forwards for anybody; none in a namespace that forwards for nobody.
pub(super) fn of(facts: &Facts) -> Vec<Evidence> {
    signs(facts, &|_| true)
}

/// The signs that it forwards for pods of Kubernetes.
pub(super) fn of_kubernetes(facts: &Facts) -> Vec<Evidence> {
    signs(facts, &|name| !ENGINES.iter().any(|engine| name.starts_with(engine)))
}

fn signs(facts: &Facts, counts: &dyn Fn(&str) -> bool) -> Vec<Evidence> {
    let mut signs = Vec::new();
    let is_sign = |link: &&Link| link.is_up && is_of_pods(link) && counts(&link.name);
    if let Some(link) = facts.links.iter().find(is_sign) {
        signs.push(evidence("interface", &link.name, "rtnetlink"));
    }
    let is_whose = |owner: &str| (is_of_kubernetes(owner) || ENGINES.contains(&owner)) && counts(owner);
    let of_table = |table| owners(table).into_iter().find(|(owner, _)| is_whose(owner)).zip(Some(table));
    if let Some(((owner, count), table)) = facts.own_tables().find_map(of_table) {
        let name = format!("rules of {owner} in {} table {}", table.family.name(), table.name);
        signs.push(evidence(name, count, table.source));
    }
    signs
}

/// True if services or pods have IPv6 here.
pub(super) fn has_ipv6(facts: &Facts) -> bool {
    let is_v6 = |socket: &std::net::SocketAddr| socket.is_ipv6();
    let is_translated =
        facts.own_tables().flat_map(|table| &table.rules).any(|rule| rule.dnat.iter().any(is_v6));
    let leads_to_pods = |index: &u32| facts.link(*index).is_some_and(is_of_pods);
    let is_global = |to: Option<(std::net::IpAddr, u8)>| matches!(to, Some((std::net::IpAddr::V6(v6), _)) if !v6.is_multicast() && !v6.is_unicast_link_local());
    let is_routed = |route: &super::super::facts::Route| {
        route.is_v6 && is_global(route.to) && route.interfaces.iter().any(leads_to_pods)
    };
    is_translated || facts.routes.iter().any(is_routed)
}

/// The interface of the default route of a family; of several, that of the least metric.
pub(super) fn uplink(facts: &Facts, is_v6: bool) -> Option<&Link> {
    let defaults = facts.routes.iter().filter(|route| route.is_v6 == is_v6 && route.to.is_none());
    let best = defaults.min_by_key(|route| route.metric)?;
    facts.link(*best.interfaces.first()?)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{node, saved};
    use super::*;
    use crate::netfilter::model::{Backend, Family};

    #[test]
    fn a_node_is_known_by_its_interfaces_or_rules() {
        let mut facts = node();
        assert_eq!(of(&facts)[0].value, "cni0");
        assert_eq!(uplink(&facts, false).unwrap().name, "eth0");
        facts.links.retain(|link| link.name != "cni0");
        assert_eq!(of(&facts), []);
        facts.tables = vec![saved(
            Backend::Nft,
            Family::Ipv4,
            "nat",
            ":KUBE-SERVICES - [0:0]\n[0:0] -A PREROUTING -j KUBE-SERVICES",
        )];
        assert_eq!(of(&facts)[0].name, "rules of kube-proxy in ipv4 table nat");
        assert!(!has_ipv6(&facts) && of_kubernetes(&facts) == of(&facts));
        // Any component that attribution knows is a sign.
        let lines = ":KUBE-FIREWALL - [0:0]\n[0:0] -A INPUT -j KUBE-FIREWALL";
        facts.tables = vec![saved(Backend::Nft, Family::Ipv4, "filter", lines)];
        assert_eq!(of(&facts)[0].name, "rules of kubelet in ipv4 table filter");
        // Docker's containers are no pods.
        facts.tables.clear();
        facts.links[1].name = "docker0".into();
        assert_eq!((of(&facts).len(), of_kubernetes(&facts).len()), (1, 0));
    }
}
