//! Tunnels whose packets are larger than what they are sent over.

use super::super::facts::{Facts, Link};
use super::super::model::{Finding, Severity, evidence};
use super::super::texts::Text;
use super::signs;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    facts.links.iter().filter(|link| link.is_up).filter_map(|link| of_tunnel(facts, link)).collect()
}

fn of_tunnel(facts: &Facts, link: &Link) -> Option<Finding> {
    let tunnel = link.tunnel?;
    // One whose routes or programs say where each packet goes has its MTU from there: its own is no measure.
    if tunnel.is_external || link.is_lower_elsewhere {
        return None;
    }
    let underlay = match tunnel.underlay {
        Some(index) => facts.link(index)?,
        None => signs::uplink(facts, tunnel.is_v6)?,
    };
    let overhead = overhead(&link.kind, tunnel.is_v6)?;
    let needed = link.mtu.checked_add(overhead)?;
    if needed <= underlay.mtu || underlay.index == link.index {
        return None;
    }
    let fits = underlay.mtu.saturating_sub(overhead);
    Some(Finding {
        id: "mtu",
        severity: Severity::Error,
        text: Text::new(
            "mtu",
            [
                ("tunnel", link.name.clone()),
                ("needed", needed.to_string()),
                ("underlay", underlay.name.clone()),
                ("carried", underlay.mtu.to_string()),
                ("fits", fits.to_string()),
            ],
        ),
        evidence: vec![
            evidence(format!("{} mtu", link.name), link.mtu, "rtnetlink"),
            evidence(format!("what {} adds", link.kind), overhead, "RFC 7348, 8926, 2003, 2784"),
            evidence(format!("{} mtu", underlay.name), underlay.mtu, "rtnetlink"),
        ],
        netns: Some(facts.netns),
        interface: Some(link.name.clone()),
    })
}

/// Bytes that a tunnel puts before a packet of its device, without options.
fn overhead(kind: &str, is_v6: bool) -> Option<u32> {
    let outer = if is_v6 { 40 } else { 20 };
    // UDP 8, VXLAN and Geneve 8, an Ethernet header of 14; GRE 4; WireGuard 32 with its UDP.
    let inner = match kind {
        "vxlan" | "geneve" => 8 + 8 + 14,
        "ipip" | "sit" | "ip6tnl" => 0,
        "gre" | "ip6gre" => 4,
        "gretap" | "ip6gretap" => 4 + 14,
        "wireguard" => 8 + 32,
        _ => return None,
    };
    Some(outer + inner)
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::Tunnel;
    use super::super::fixtures::{fix, ids, node};
    use super::*;

    fn with(mtu: u32, tunnel: Tunnel) -> Vec<Finding> {
        let mut facts = node();
        let (name, kind) = ("flannel.1".to_owned(), "vxlan".to_owned());
        facts.links.push(Link {
            index: 9,
            name,
            kind,
            mtu,
            is_up: true,
            tunnel: Some(tunnel),
            ..Link::default()
        });
        check(&facts)
    }

    #[test]
    fn an_overlay_has_to_fit_its_underlay() {
        let bound = Tunnel { underlay: Some(2), ..Tunnel::default() };
        assert_eq!(with(1450, bound), []);
        let found = with(1451, bound);
        assert_eq!((ids(&found), found[0].interface.as_deref()), (vec!["mtu"], Some("flannel.1")));
        assert!(fix(&found[0]).contains("MTU to 1450"), "{}", fix(&found[0]));
        // By the default route, over IPv6, by programs, over what is not here.
        assert_eq!(ids(&with(1500, Tunnel::default())), ["mtu"]);
        assert_eq!(ids(&with(1450, Tunnel { is_v6: true, ..bound })), ["mtu"]);
        assert_eq!(with(1500, Tunnel { is_external: true, ..bound }), []);
        assert_eq!(with(1500, Tunnel { underlay: Some(77), ..bound }), []);
        assert_eq!(with(1500, Tunnel { is_v6: true, underlay: None, is_external: false }), []);
    }
}
