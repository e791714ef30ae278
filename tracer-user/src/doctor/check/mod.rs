//! What is known to go wrong, looked for in the facts: each check is a pure function. What a healthy node has is no finding;
//! where a fact is missing nothing is found.

mod bridge;
mod cluster;
mod forwarding;
mod full;
mod overlay;
mod rp_filter;
mod services;
mod signs;
mod tables;

pub use services::unjudged;

use super::facts::Facts;
use super::model::Finding;

/// Things that one finding lists; the rest is counted.
const LISTED: usize = 20;

/// All findings, the most severe first.
#[must_use]
pub fn all(facts: &Facts) -> Vec<Finding> {
    let checks: [fn(&Facts) -> Vec<Finding>; 8] = [
        forwarding::check,
        tables::check,
        full::check,
        rp_filter::check,
        overlay::check,
        bridge::check,
        services::check,
        cluster::check,
    ];
    let mut findings: Vec<Finding> = checks.iter().flat_map(|check| check(facts)).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// What of the findings is found in facts of two moments: what changes just then, such as a rule set that is being written,
/// is none.
#[must_use]
pub fn lasting(before: &Facts, after: &Facts) -> Vec<Finding> {
    let earlier = all(before);
    let is_same = |a: &Finding, b: &Finding| (a.id, &a.interface, &a.text) == (b.id, &b.interface, &b.text);
    all(after).into_iter().filter(|finding| earlier.iter().any(|other| is_same(finding, other))).collect()
}

#[cfg(test)]
mod fixtures {
    use super::super::facts::{Facts, Link, Route};
    use super::super::rules::{Id, Table};
    use super::Finding;
    use crate::cause::Language;
    use crate::netfilter::model::{Backend, Family};

    /// A node whose pods are on the bridge `cni0` (3), with an uplink `eth0` (2).
    pub(super) fn node() -> Facts {
        let link = |index, name: &str, kind: &str| Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            mtu: 1500,
            is_up: true,
            ..Link::default()
        };
        let port = Link {
            master: Some(3),
            hairpin: Some(true),
            is_lower_elsewhere: true,
            ..link(4, "veth1", "veth")
        };
        let default = Route { is_v6: false, to: None, interfaces: vec![2], metric: 0 };
        let mut facts = Facts {
            netns: 7,
            links: vec![link(1, "lo", ""), link(2, "eth0", ""), link(3, "cni0", "bridge"), port],
            routes: vec![default],
            ..Facts::default()
        };
        for (name, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.eth0.forwarding", "1"),
            ("net.ipv4.conf.cni0.forwarding", "1"),
            ("net.ipv4.conf.veth1.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.eth0.rp_filter", "0"),
            ("net.bridge.bridge-nf-call-iptables", "1"),
            ("net.netfilter.nf_conntrack_count", "10"),
            ("net.netfilter.nf_conntrack_max", "100"),
        ] {
            facts.settings.insert(name.to_owned(), value.to_owned());
        }
        facts
    }

    pub(super) fn set(facts: &mut Facts, name: &str, value: &str) {
        facts.settings.insert(name.to_owned(), value.to_owned());
    }

    /// A table of iptables.
    pub(super) fn saved(backend: Backend, family: Family, name: &str, lines: &str) -> Table {
        let id = Id { netns: 7, backend, family, name: name.to_owned() };
        Table::saved(&id, &format!("*{name}\n{lines}\nCOMMIT\n")).unwrap()
    }

    /// Which they are; all that they say is there in both languages.
    pub(super) fn ids(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().for_each(|finding| finding.text.check());
        findings.iter().map(|finding| finding.id).collect()
    }

    pub(super) fn title(finding: &Finding) -> String {
        finding.text.title(Language::English)
    }

    pub(super) fn fix(finding: &Finding) -> String {
        finding.text.fix(Language::English)
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{ids, node, set};
    use super::*;
    use crate::cause::Base;

    #[test]
    fn a_healthy_node_has_no_findings() {
        assert_eq!(all(&node()), []);
        assert_eq!(all(&Facts::default()), []);
    }

    #[test]
    fn findings_are_called_as_the_causes_of_the_drops_that_they_lead_to() {
        let causes = [
            "ip-forward-off",
            "ipv6-forward-off",
            "forward-policy-drop",
            "conntrack-full",
            "neighbour-table-full",
            "rp-filter",
            "mtu",
            "svc-no-endpoints",
        ];
        let base = Base::own();
        for id in causes {
            assert!(base.entries().iter().any(|entry| entry.id() == id), "{id}");
        }
    }

    #[test]
    fn only_what_lasts_is_found() {
        let mut broken = node();
        set(&mut broken, "net.ipv4.conf.eth0.forwarding", "0");
        assert_eq!(ids(&lasting(&broken, &broken)), ["ip-forward-off"]);
        assert_eq!(lasting(&node(), &broken), []);
        assert_eq!(lasting(&broken, &node()), []);
    }
}
