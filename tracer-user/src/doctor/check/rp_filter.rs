//! A strict reverse path filter where there are several ways: it takes what comes in by another than the best one for
//! spoofed (RFC 3704).

use super::super::facts::{Facts, Route};
use super::super::model::{Finding, Severity, evidence};
use super::super::texts::Text;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The value of rp_filter that is strict; 2 is loose, 0 off.
const STRICT: u64 = 1;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    // Rules by source address send the answer the right way, and the filter asks them, too.
    if facts.has_policy_routing {
        return Vec::new();
    }
    let mut by_destination: BTreeMap<Option<(IpAddr, u8)>, Vec<&Route>> = BTreeMap::new();
    // There is no such filter for IPv6.
    for route in facts.routes.iter().filter(|route| !route.is_v6) {
        by_destination.entry(route.to).or_default().push(route);
    }
    by_destination.into_iter().flat_map(|(to, routes)| of_destination(facts, to, routes)).collect()
}

/// Interfaces with a strict filter by which there is a route, but not the best one.
fn of_destination(facts: &Facts, to: Option<(IpAddr, u8)>, mut routes: Vec<&Route>) -> Vec<Finding> {
    routes.sort_by_key(|route| route.metric);
    let Some((best, others)) = routes.split_first() else { return Vec::new() };
    let mut found = Vec::new();
    let others =
        others.iter().flat_map(|route| &route.interfaces).filter(|index| !best.interfaces.contains(index));
    let names = |route: &Route| {
        let names: Vec<&str> =
            route.interfaces.iter().filter_map(|index| Some(&*facts.link(*index)?.name)).collect();
        names.join(", ")
    };
    let what = match to {
        None => "default route".to_owned(),
        Some((address, length)) => format!("route to {address}/{length}"),
    };
    for link in others.filter_map(|index| facts.link(*index)).filter(|link| link.is_up) {
        let setting = |of: &str| {
            let name = format!("net.ipv4.conf.{of}.rp_filter");
            facts.number(&name).map(|value| (name, value))
        };
        // IN_DEV_RPFILTER (include/linux/inetdevice.h): the greater one counts.
        let values = setting("all").into_iter().chain(setting(&link.name.replace('.', "/")));
        let Some((name, value)) = values.max_by_key(|(_, value)| *value) else { continue };
        if value != STRICT {
            continue;
        }
        let seen = routes
            .iter()
            .map(|route| evidence(format!("{what} (metric {})", route.metric), names(route), "rtnetlink"));
        let mut words = vec![
            ("interface", link.name.clone()),
            ("best", names(best)),
            ("setting", link.name.replace('.', "/")),
        ];
        let key = match to {
            None => "rp-filter-default",
            Some((address, length)) => {
                words.push(("network", format!("{address}/{length}")));
                "rp-filter"
            }
        };
        let text = Text::new(key, words);
        found.push(Finding {
            id: "rp-filter",
            severity: Severity::Warning,
            text,
            evidence: std::iter::once(evidence(name, value, "sysctl")).chain(seen).collect(),
            netns: Some(facts.netns),
            interface: Some(link.name.clone()),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::Link;
    use super::super::fixtures::{fix, ids, node, set, title};
    use super::*;

    fn two_defaults(rp_filter: &str) -> Facts {
        let mut facts = node();
        facts.links.push(Link { index: 9, name: "eth1.5".into(), is_up: true, mtu: 1500, ..Link::default() });
        facts.routes.push(Route { is_v6: false, to: None, interfaces: vec![9], metric: 100 });
        set(&mut facts, "net.ipv4.conf.eth1/5.rp_filter", rp_filter);
        facts
    }

    #[test]
    fn a_strict_filter_on_the_lesser_way() {
        let found = check(&two_defaults("1"));
        assert_eq!((ids(&found), found[0].interface.as_deref()), (vec!["rp-filter"], Some("eth1.5")));
        assert!(fix(&found[0]).contains("net.ipv4.conf.eth1/5.rp_filter=2"));
        assert_eq!(check(&two_defaults("2")), []);
        assert_eq!(check(&two_defaults("0")), []);
        let mut all = two_defaults("0");
        set(&mut all, "net.ipv4.conf.all.rp_filter", "1");
        assert_eq!(check(&all)[0].evidence[0].name, "net.ipv4.conf.all.rp_filter");
        set(&mut all, "net.ipv4.conf.eth1/5.rp_filter", "2");
        assert_eq!(check(&all), []);
    }

    #[test]
    fn other_ways_are_no_trap() {
        // The best one may be strict; one route may have several ways; rules may choose.
        let mut facts = two_defaults("0");
        set(&mut facts, "net.ipv4.conf.eth0.rp_filter", "1");
        assert_eq!(check(&facts), []);
        let mut multipath = two_defaults("1");
        multipath.routes = vec![Route { is_v6: false, to: None, interfaces: vec![2, 9], metric: 0 }];
        assert_eq!(check(&multipath), []);
        let policy = Facts { has_policy_routing: true, ..two_defaults("1") };
        assert_eq!(check(&policy), []);
    }

    #[test]
    fn two_interfaces_in_one_subnet() {
        let mut facts = two_defaults("1");
        facts.routes = [2, 9]
            .map(|index| Route {
                to: Some(("10.0.0.0".parse().unwrap(), 24)),
                interfaces: vec![index],
                ..Route::default()
            })
            .into();
        assert!(title(&check(&facts)[0]).contains("route to 10.0.0.0/24"));
    }
}
