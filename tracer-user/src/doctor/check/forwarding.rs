//! Forwarding that is off where pods need it.

use super::super::facts::{Facts, Link};
use super::super::model::{Finding, Severity, evidence};
use super::super::texts::Text;
use super::signs;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let signs = signs::of(facts);
    if signs.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let forwarding =
        |link: &Link| facts.number(&format!("net.ipv4.conf.{}.forwarding", link.name.replace('.', "/")));
    let is_off_for_all = facts.number("net.ipv4.ip_forward") == Some(0);
    let uplink = signs::uplink(facts, false).map(|link| link.index);
    // It is the interface that a packet came in by that decides (IN_DEV_FORWARD, net/ipv4/route.c); `ip_forward` is what
    // new ones begin with.
    let is_needed = |link: &&Link| is_off_for_all || Some(link.index) == uplink || signs::is_of_pods(link);
    let is_real = |link: &&Link| link.is_up && link.name != "lo" && link.master.is_none();
    let off: Vec<&Link> = facts
        .links
        .iter()
        .filter(|link| is_real(link) && is_needed(link) && forwarding(link) == Some(0))
        .collect();
    if let Some(first) = off.first() {
        let settings = off.iter().take(super::LISTED).map(|link| {
            evidence(format!("net.ipv4.conf.{}.forwarding", link.name.replace('.', "/")), 0, "sysctl")
        });
        let all =
            facts.number("net.ipv4.ip_forward").map(|value| evidence("net.ipv4.ip_forward", value, "sysctl"));
        let names: Vec<&str> = off.iter().take(super::LISTED).map(|link| &*link.name).collect();
        found.push(Finding {
            id: "ip-forward-off",
            severity: Severity::Error,
            text: Text::new(
                "ip-forward-off",
                [("interfaces", names.join(", ")), ("settings", settings_to_make(is_off_for_all, &names))],
            ),
            evidence: all.into_iter().chain(settings).chain(signs.clone()).collect(),
            netns: Some(facts.netns),
            interface: (off.len() == 1).then(|| first.name.clone()),
        });
    }
    if signs::has_ipv6(facts) && facts.number("net.ipv6.conf.all.forwarding") == Some(0) {
        found.push(Finding {
            id: "ipv6-forward-off",
            severity: Severity::Error,
            text: Text::new("ipv6-forward-off", []),
            evidence: std::iter::once(evidence("net.ipv6.conf.all.forwarding", 0, "sysctl"))
                .chain(signs)
                .collect(),
            netns: Some(facts.netns),
            interface: None,
        });
    }
    found
}

/// `ip_forward` sets all interfaces, but only if it changes (devinet_sysctl_forward, net/ipv4/devinet.c).
fn settings_to_make(is_off_for_all: bool, interfaces: &[&str]) -> String {
    if is_off_for_all {
        return "net.ipv4.ip_forward=1".to_owned();
    }
    // With slashes, for a name may have a dot.
    let own = interfaces.iter().map(|name| format!("net/ipv4/conf/{name}/forwarding=1"));
    own.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{ids, node, set};
    use super::*;

    #[test]
    fn forwarding_that_pods_need() {
        let mut facts = node();
        set(&mut facts, "net.ipv4.conf.eth0.forwarding", "0");
        let found = check(&facts);
        assert_eq!(ids(&found), ["ip-forward-off"]);
        assert_eq!(found[0].interface.as_deref(), Some("eth0"));
        assert!(found[0].evidence.iter().any(|it| it.value == "cni0"));
        // Off for all, but on where packets come in: that works.
        let mut facts = node();
        set(&mut facts, "net.ipv4.ip_forward", "0");
        assert_eq!(check(&facts), []);
        set(&mut facts, "net.ipv4.conf.cni0.forwarding", "0");
        assert_eq!(ids(&check(&facts)), ["ip-forward-off"]);
    }

    #[test]
    fn nobody_needs_it_without_pods() {
        let mut facts = node();
        set(&mut facts, "net.ipv4.ip_forward", "0");
        set(&mut facts, "net.ipv4.conf.eth0.forwarding", "0");
        facts.links.retain(|link| link.name != "cni0");
        assert_eq!(check(&facts), []);
        // Of another interface than the pods' and the uplink.
        let mut facts = node();
        facts.links.push(Link { index: 9, name: "mgmt".into(), is_up: true, ..Link::default() });
        set(&mut facts, "net.ipv4.conf.mgmt.forwarding", "0");
        assert_eq!(check(&facts), []);
    }

    #[test]
    fn ipv6_only_where_it_is_used() {
        let mut facts = node();
        set(&mut facts, "net.ipv6.conf.all.forwarding", "0");
        assert_eq!(check(&facts), []);
        let to = Some(("fd00:10:244::".parse().unwrap(), 64));
        facts.routes.push(super::super::super::facts::Route {
            is_v6: true,
            to,
            interfaces: vec![3],
            metric: 0,
        });
        assert_eq!(ids(&check(&facts)), ["ipv6-forward-off"]);
    }
}
