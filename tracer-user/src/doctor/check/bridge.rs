//! Bridges of pods whose packets pass the service proxy by.

use super::super::facts::{Facts, Link};
use super::super::model::{Finding, Severity, evidence};
use super::super::texts::Text;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    if !has_service_proxy(facts) {
        return Vec::new();
    }
    facts.links.iter().filter_map(|bridge| of_bridge(facts, bridge)).collect()
}

/// True if services are translated by netfilter or IPVS here.
fn has_service_proxy(facts: &Facts) -> bool {
    let is_translated = facts
        .own_tables()
        .flat_map(|table| &table.rules)
        .any(|rule| rule.owner == "kube-proxy" && rule.dnat.iter().any(std::net::SocketAddr::is_ipv4));
    is_translated || facts.ipvs.as_ref().is_some_and(|servers| !servers.is_empty())
}

/// Bridges of container engines and virtual machines, whose ports are no pods.
fn is_of_others(name: &str) -> bool {
    ["docker", "br-", "virbr", "lxcbr", "lxdbr", "podman"].iter().any(|start| name.starts_with(start))
}

fn of_bridge(facts: &Facts, bridge: &Link) -> Option<Finding> {
    if bridge.kind != "bridge" || !bridge.is_up || is_of_others(&bridge.name) {
        return None;
    }
    let is_pod =
        |link: &&Link| link.master == Some(bridge.index) && link.kind == "veth" && link.is_lower_elsewhere;
    let ports: Vec<&Link> = facts.links.iter().filter(is_pod).collect();
    ports.first()?;
    let name = "net.bridge.bridge-nf-call-iptables";
    let seen_ports = evidence(format!("pods on {}", bridge.name), ports.len(), "rtnetlink");
    if facts.number(name).unwrap_or(0) == 0 {
        let value = facts.settings.get(name).map_or("not there: br_netfilter is not loaded", String::as_str);
        return Some(Finding {
            id: "brnf-off",
            severity: Severity::Error,
            text: Text::new("brnf-off", [("bridge", bridge.name.clone()), ("setting", name.to_owned())]),
            evidence: vec![evidence(name, value, "sysctl"), seen_ports],
            netns: Some(facts.netns),
            interface: Some(bridge.name.clone()),
        });
    }
    // A promiscuous bridge takes such packets for itself, and routes them back.
    let closed: Vec<&&Link> = ports.iter().filter(|port| port.hairpin == Some(false)).collect();
    if closed.is_empty() || bridge.is_promiscuous {
        return None;
    }
    let seen = closed
        .iter()
        .take(super::LISTED)
        .map(|port| evidence(format!("{} hairpin", port.name), "off", "rtnetlink"));
    Some(Finding {
        id: "hairpin-off",
        severity: Severity::Warning,
        text: Text::new(
            "hairpin-off",
            [("bridge", bridge.name.clone()), ("ports", closed.len().to_string())],
        ),
        evidence: seen.chain([seen_ports]).collect(),
        netns: Some(facts.netns),
        interface: closed.first().map(|port| port.name.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{ids, node, saved, set};
    use super::*;
    use crate::netfilter::model::{Backend, Family};

    fn proxied() -> Facts {
        let lines = ":KUBE-SEP-X - [0:0]\n[0:0] -A KUBE-SEP-X -p tcp -j DNAT --to-destination 10.244.0.7:80";
        let mut facts = node();
        facts.tables = vec![saved(Backend::Nft, Family::Ipv4, "nat", lines)];
        facts
    }

    #[test]
    fn a_bridge_past_the_service_proxy() {
        assert_eq!(check(&proxied()), []);
        let mut off = proxied();
        set(&mut off, "net.bridge.bridge-nf-call-iptables", "0");
        assert_eq!(ids(&check(&off)), ["brnf-off"]);
        off.settings.remove("net.bridge.bridge-nf-call-iptables");
        assert!(check(&off)[0].evidence[0].value.contains("not loaded"));
        // Without a proxy, without pods, and a bridge of Docker's.
        assert_eq!(check(&Facts { tables: Vec::new(), ..off.clone() }), []);
        let mut dockers = off.clone();
        dockers.links[2].name = "docker0".into();
        assert_eq!(check(&dockers), []);
        off.links.retain(|link| link.master.is_none());
        assert_eq!(check(&off), []);
    }

    #[test]
    fn a_port_that_sends_nothing_back() {
        let mut facts = proxied();
        facts.links[3].hairpin = Some(false);
        let found = check(&facts);
        assert_eq!((ids(&found), found[0].interface.as_deref()), (vec!["hairpin-off"], Some("veth1")));
        facts.links[2].is_promiscuous = true;
        assert_eq!(check(&facts), []);
    }
}
