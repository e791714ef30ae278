//! Rule sets that get in each other's way, or in the pods'.

use super::super::facts::{Facts, OffloadKind};
use super::super::model::{Finding, Severity, evidence};
use super::super::rules::{Base, Rule, Table, owners};
use super::super::texts::Text;
use super::signs;
use crate::event::model::Evidence;
use crate::netfilter::model::{Backend, Family};
use std::collections::HashSet;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        [Family::Ipv4, Family::Ipv6].into_iter().filter_map(|family| mixed(facts, family)).collect();
    found.extend(forward_policies(facts));
    found.extend(offloads(facts));
    found
}

/// Rules of iptables in both backends.
fn mixed(facts: &Facts, family: Family) -> Option<Finding> {
    let with_rules = |backend| {
        let is_it = move |table: &&Table| {
            table.is_iptables && (table.backend, table.family) == (backend, family) && !table.rules.is_empty()
        };
        facts.own_tables().filter(is_it).collect::<Vec<_>>()
    };
    let (legacy, nft) = (with_rules(Backend::Legacy), with_rules(Backend::Nft));
    if legacy.is_empty() || nft.is_empty() {
        return None;
    }
    let seen = |table: &&Table| {
        let whose = owners(table).into_iter().take(3).map(|(owner, count)| format!("{count} of {owner}"));
        let value = format!("{} rules: {}", table.rules.len(), whose.collect::<Vec<_>>().join(", "));
        let backend = if table.backend == Backend::Legacy { "legacy" } else { "nft" };
        evidence(format!("{backend} table {}", table.name), value, table.source)
    };
    let tool = if family == Family::Ipv6 { "ip6tables" } else { "iptables" };
    Some(Finding {
        id: "mixed-iptables",
        severity: if signs::of_kubernetes(facts).is_empty() { Severity::Warning } else { Severity::Error },
        text: Text::new("mixed-iptables", [("tool", tool.to_owned())]),
        evidence: legacy.iter().chain(&nft).map(seen).collect(),
        netns: Some(facts.netns),
        interface: None,
    })
}

/// Policies of FORWARD that drop where nothing accepts what pods send.
fn forward_policies(facts: &Facts) -> Vec<Finding> {
    let signs = signs::of_kubernetes(facts);
    if signs.is_empty() {
        return Vec::new();
    }
    let drops = |base: &&Base| base.hook == "FORWARD" && base.drops;
    let is_used = |table: &&Table| match table.family {
        Family::Ipv4 | Family::Inet => true,
        Family::Ipv6 => signs::has_ipv6(facts),
        Family::Arp | Family::Bridge | Family::Netdev => false,
    };
    let of_table = |table: &Table| {
        let found = table.bases.iter().filter(drops).filter(|base| !accepts(table, &base.chain));
        found.map(|base| forward_policy(facts, table, base, &signs)).collect::<Vec<_>>()
    };
    facts.own_tables().filter(is_used).flat_map(of_table).collect()
}

fn forward_policy(facts: &Facts, table: &Table, base: &Base, signs: &[Evidence]) -> Finding {
    let counted = base.packets.map(|packets| {
        evidence(
            format!("packets that {}:{} dropped by policy", table.name, base.chain),
            packets,
            table.source,
        )
    });
    let known = !base.owner.is_empty() && base.owner != crate::netfilter::owner::UNKNOWN;
    let setter = known.then(|| evidence("policy set by", base.owner, table.source));
    Finding {
        id: "forward-policy-drop",
        severity: Severity::Error,
        text: Text::new(
            "forward-policy-drop",
            [
                ("table", table.name.clone()),
                ("chain", base.chain.clone()),
                ("family", table.family.name().to_owned()),
            ],
        ),
        evidence: std::iter::once(evidence(
            format!("policy of {}:{}", table.name, base.chain),
            "DROP",
            table.source,
        ))
        .chain(counted)
        .chain(setter)
        .chain(signs.to_vec())
        .collect(),
        netns: Some(facts.netns),
        interface: None,
    }
}

/// True if a rule that the chain leads to accepts more than answers, the packets that kube-proxy marked, and those of
/// Docker's own bridges.
fn accepts(table: &Table, chain: &str) -> bool {
    let chains = table.by_chain();
    let (mut seen, mut next) = (HashSet::from([chain]), vec![chain]);
    while let Some(chain) = next.pop() {
        for rule in chains.get(chain).into_iter().flatten() {
            if rule.accepts && is_for_pods(rule) {
                return true;
            }
            next.extend(rule.targets.iter().map(String::as_str).filter(|target| seen.insert(target)));
        }
    }
    false
}

fn is_for_pods(rule: &Rule) -> bool {
    let text = rule.text.to_ascii_lowercase();
    let is_answer = text.contains("established");
    let is_marked = rule.owner == "kube-proxy" && text.contains("mark");
    // What has no text can't be judged: it may be.
    !is_answer && !is_marked && rule.owner != "docker"
}

/// Where packets pass the rules by.
fn offloads(facts: &Facts) -> Vec<Finding> {
    let finding = |offload: &super::super::facts::Offload| {
        let (id, key) = match offload.kind {
            OffloadKind::Flowtable => ("flowtable", "flowtable"),
            OffloadKind::HardwareFlowtable => ("hardware-offload", "hardware-flowtable"),
            OffloadKind::HardwareFilter => ("hardware-offload", "hardware-filter"),
        };
        Finding {
            id,
            severity: Severity::Info,
            text: Text::new(key, []),
            evidence: vec![evidence(&*offload.name, offload.interfaces.join(", "), "nft, rtnetlink")],
            netns: Some(facts.netns),
            interface: offload.interfaces.first().cloned(),
        }
    };
    facts.offloads.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{ids, node, saved};
    use super::*;

    const KUBE: &str = ":KUBE-SERVICES - [0:0]\n[0:0] -A PREROUTING -j KUBE-SERVICES";

    #[test]
    fn rules_in_both_backends_not_tables() {
        let table = |backend, lines| saved(backend, Family::Ipv4, "nat", lines);
        let mut facts = node();
        facts.tables = vec![table(Backend::Legacy, ":PREROUTING ACCEPT [0:0]"), table(Backend::Nft, KUBE)];
        assert_eq!(check(&facts), []);
        facts.tables[0] = table(Backend::Legacy, KUBE);
        let found = check(&facts);
        assert_eq!((ids(&found), found[0].severity), (vec!["mixed-iptables"], Severity::Error));
        assert_eq!(found[0].evidence[0].value, "1 rules: 1 of kube-proxy");
        // Another family, another namespace, and nft's own tables don't mix.
        facts.tables[0].family = Family::Ipv6;
        assert_eq!(check(&facts), []);
        facts.tables[0].family = Family::Ipv4;
        facts.tables[0].netns = 8;
        assert_eq!(check(&facts), []);
    }

    #[test]
    fn a_policy_drops_unless_something_accepts_for_pods() {
        let forward = |rules: &str| {
            let mut facts = node();
            let lines = format!(
                ":FORWARD DROP [7:1]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:KUBE-FORWARD - [0:0]\n:FLANNEL-FWD - [0:0]\n{rules}"
            );
            facts.tables = vec![saved(Backend::Legacy, Family::Ipv4, "filter", lines.trim_end())];
            check(&facts)
        };
        let found = forward("");
        assert_eq!(ids(&found), ["forward-policy-drop"]);
        let seen: Vec<_> = found[0].evidence.iter().map(|it| &*it.value).collect();
        assert_eq!(seen, ["DROP", "7", "docker", "cni0"]);
        for insufficient in [
            "[0:0] -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "[0:0] -A FORWARD -j KUBE-FORWARD\n[0:0] -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "[0:0] -A FORWARD -j DOCKER-FORWARD\n[0:0] -A DOCKER-FORWARD -i docker0 -j ACCEPT",
        ] {
            assert_eq!(ids(&forward(insufficient)), ["forward-policy-drop"], "{insufficient}");
        }
        // Docker alone is content with its own rules.
        let mut docker = node();
        docker.links[2].name = "docker0".into();
        docker.tables =
            vec![saved(Backend::Legacy, Family::Ipv4, "filter", ":FORWARD DROP [7:1]\n:DOCKER - [0:0]")];
        assert_eq!(check(&docker), []);
        for enough in [
            "[0:0] -A FORWARD -i cni0 -j ACCEPT",
            "[0:0] -A FORWARD -j FLANNEL-FWD\n[0:0] -A FLANNEL-FWD -s 10.244.0.0/16 -j ACCEPT",
            "[0:0] -A FORWARD -j KUBE-FORWARD\n[0:0] -A KUBE-FORWARD -s 10.244.0.0/16 -j ACCEPT",
        ] {
            assert_eq!(forward(enough), [], "{enough}");
        }
    }

    #[test]
    fn an_offload_is_no_misconfiguration() {
        let mut facts = node();
        facts.offloads = vec![super::super::super::facts::Offload {
            kind: OffloadKind::HardwareFlowtable,
            name: "flowtable f".into(),
            interfaces: vec!["eth0".into()],
        }];
        let found = check(&facts);
        assert_eq!((ids(&found), found[0].severity), (vec!["hardware-offload"], Severity::Info));
    }
}
