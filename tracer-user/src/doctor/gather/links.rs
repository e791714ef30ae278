//! Interfaces, routes, rules of policy routing and queueing disciplines of this thread's network namespace, as rtnetlink(7)
//! lists them. Layouts: include/uapi/linux/{if_link,rtnetlink,fib_rules,gen_stats}.h; numbers in the machine's order.

use super::super::facts::{Link, Offload, OffloadKind, Route, Tunnel};
use super::super::model::Counter;
use super::counters::Count;
use crate::probe::netlink::{self, attribute, text, word};
use std::io;
use std::net::IpAddr;

/// Sizes of struct ifinfomsg, rtmsg, fib_rule_hdr and tcmsg.
const IFINFOMSG: usize = 16;
const RTMSG: usize = 12;
const RULE: usize = 12;
const TCMSG: usize = 20;
/// TC_H_CLSACT, which is TC_H_INGRESS: where both have their place.
const CLSACT: u32 = 0xffff_fff1;
/// IFF_UP and IFF_PROMISC (include/uapi/linux/if.h).
const UP: u32 = 0x1;
const PROMISCUOUS: u32 = 0x100;

/// All interfaces, and what was counted on them.
///
/// # Errors
/// When the kernel does not list them.
pub fn links() -> io::Result<(Vec<Link>, Vec<Count>)> {
    let listed = netlink::list(netlink::GET_LINK, &[0; IFINFOMSG], netlink::NEW_LINK)?;
    let links: Vec<Link> = listed.iter().filter_map(|body| link(body)).collect();
    let counts = listed.iter().flat_map(|body| link_counts(body)).collect();
    Ok((links, counts))
}

fn link(body: &[u8]) -> Option<Link> {
    // IFLA_IFNAME, MTU, LINK, MASTER, LINKINFO, PROMISCUITY, LINK_NETNSID.
    const NAME: u16 = 3;
    const MTU: u16 = 4;
    const LOWER: u16 = 5;
    const MASTER: u16 = 10;
    const INFO: u16 = 18;
    const PROMISCUITY: u16 = 30;
    const NETNSID: u16 = 37;
    // IFLA_INFO_KIND, DATA, SLAVE_KIND, SLAVE_DATA.
    const KIND: u16 = 1;
    const DATA: u16 = 2;
    const PORT_KIND: u16 = 4;
    const PORT_DATA: u16 = 5;
    /// IFLA_BRPORT_MODE: hairpin mode.
    const MODE: u16 = 4;
    let (index, flags) = (word(body, 4)?, word(body, 8)?);
    let attributes = body.get(IFINFOMSG..)?;
    let number = |kind| attribute(attributes, kind).and_then(|value| word(value, 0));
    let info = attribute(attributes, INFO).unwrap_or_default();
    let kind = attribute(info, KIND).map(text).unwrap_or_default();
    let is_port = attribute(info, PORT_KIND).map(text).as_deref() == Some("bridge");
    let port = attribute(info, PORT_DATA).filter(|_| is_port);
    Some(Link {
        index,
        name: text(attribute(attributes, NAME)?),
        mtu: number(MTU)?,
        is_up: flags & UP != 0,
        is_promiscuous: flags & PROMISCUOUS != 0 || number(PROMISCUITY).is_some_and(|count| count > 0),
        master: number(MASTER),
        lower: number(LOWER).filter(|lower| *lower != index),
        is_lower_elsewhere: attribute(attributes, NETNSID).is_some(),
        hairpin: port.and_then(|port| attribute(port, MODE)?.first().map(|mode| *mode != 0)),
        tunnel: tunnel(&kind, attribute(info, DATA).unwrap_or_default(), number(LOWER).filter(|it| *it != 0)),
        kind,
    })
}

/// What a tunnel's own attributes say of its outer packets.
fn tunnel(kind: &str, data: &[u8], lower: Option<u32>) -> Option<Tunnel> {
    let is_there = |wanted| attribute(data, wanted).is_some();
    let is_set = |wanted| attribute(data, wanted).is_some_and(|value| value.first() != Some(&0));
    let number =
        |wanted| attribute(data, wanted).and_then(|value| word(value, 0)).filter(|index| *index != 0);
    Some(match kind {
        // IFLA_VXLAN_LINK, GROUP6, LOCAL6, COLLECT_METADATA (a u8 here).
        "vxlan" => {
            Tunnel { underlay: number(3), is_v6: is_there(16) || is_there(17), is_external: is_set(25) }
        }
        // IFLA_GENEVE_COLLECT_METADATA (a flag), REMOTE6.
        "geneve" => Tunnel { underlay: None, is_v6: is_there(7), is_external: is_there(6) },
        // IFLA_IPTUN_LINK, COLLECT_METADATA (a flag).
        "ipip" | "sit" => Tunnel { underlay: number(1), is_v6: false, is_external: is_there(19) },
        "ip6tnl" => Tunnel { underlay: number(1), is_v6: true, is_external: is_there(19) },
        // IFLA_GRE_LINK, COLLECT_METADATA (a flag).
        "gre" | "gretap" => Tunnel { underlay: number(1), is_v6: false, is_external: is_there(18) },
        "ip6gre" | "ip6gretap" => Tunnel { underlay: number(1), is_v6: true, is_external: is_there(18) },
        "wireguard" => Tunnel { underlay: lower, ..Tunnel::default() },
        _ => return None,
    })
}

/// Drops among the counters of struct rtnl_link_stats64, which begins with packets and bytes in both directions.
fn link_counts(body: &[u8]) -> Vec<Count> {
    /// IFLA_IFNAME and IFLA_STATS64.
    const NAME: u16 = 3;
    const STATS: u16 = 23;
    /// Places in it.
    const COUNTERS: [(usize, &str); 6] = [
        (4, "rx_errors"),
        (5, "tx_errors"),
        (6, "rx_dropped"),
        (7, "tx_dropped"),
        (15, "rx_missed_errors"),
        (23, "rx_nohandler"),
    ];
    let attributes = body.get(IFINFOMSG..).unwrap_or_default();
    let (Some(name), Some(stats)) = (attribute(attributes, NAME), attribute(attributes, STATS)) else {
        return Vec::new();
    };
    let name = text(name);
    let of = |(place, counter): (usize, &str)| {
        let count = u64::from_ne_bytes(*stats.get(place * 8..)?.first_chunk()?);
        Some(Count::new(Counter::Device, format!("{name} {counter}"), "rtnetlink", count))
    };
    COUNTERS.into_iter().filter_map(of).collect()
}

/// The routes of the main table that packets are sent by.
///
/// # Errors
/// When the kernel does not list them.
pub fn routes() -> io::Result<Vec<Route>> {
    let listed = netlink::list(netlink::GET_ROUTE, &[0; RTMSG], netlink::NEW_ROUTE)?;
    Ok(listed.iter().filter_map(|body| route(body)).collect())
}

fn route(body: &[u8]) -> Option<Route> {
    /// RT_TABLE_MAIN and RTN_UNICAST.
    const MAIN: u8 = 254;
    const UNICAST: u8 = 1;
    /// RTA_DST, OIF, PRIORITY, MULTIPATH.
    const DESTINATION: u16 = 1;
    const INTERFACE: u16 = 4;
    const PRIORITY: u16 = 6;
    const MULTIPATH: u16 = 9;
    let [family, length, _, _, table, _, _, kind] = *body.first_chunk()?;
    if (table, kind) != (MAIN, UNICAST) {
        return None;
    }
    let attributes = body.get(RTMSG..)?;
    let number = |kind| attribute(attributes, kind).and_then(|value| word(value, 0));
    let to = match attribute(attributes, DESTINATION) {
        Some(bytes) => Some((address(bytes)?, length)),
        None => None,
    };
    // struct rtnexthop: length u16, flags, hops, interface u32, then attributes.
    let mut interfaces: Vec<u32> = number(INTERFACE).into_iter().collect();
    let mut hops = attribute(attributes, MULTIPATH).unwrap_or_default();
    while let (Some(length), Some(index)) = (netlink::half(hops, 0), word(hops, 4)) {
        interfaces.push(index);
        let length = usize::from(length).max(8).next_multiple_of(4);
        hops = hops.get(length..).unwrap_or_default();
    }
    Some(Route {
        is_v6: i32::from(family) == libc::AF_INET6,
        to,
        interfaces,
        metric: number(PRIORITY).unwrap_or(0),
    })
}

/// An IP address of 4 or 16 bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Whether there are rules of policy routing that look at more than the destination.
///
/// # Errors
/// When the kernel does not list them.
pub fn has_policy_routing() -> io::Result<bool> {
    let listed = netlink::list(netlink::GET_RULE, &[0; RULE], netlink::NEW_RULE)?;
    Ok(listed.iter().any(|body| is_selective(body)))
}

/// A rule that not all packets are meant by: all but the kernel's own three.
fn is_selective(body: &[u8]) -> bool {
    /// FRA_IIFNAME, FWMARK, OIFNAME, L3MDEV, UID_RANGE.
    const SELECTORS: [u16; 5] = [3, 10, 17, 19, 20];
    let lengths = body.get(1..3).unwrap_or_default();
    let attributes = body.get(RULE..).unwrap_or_default();
    lengths.iter().any(|length| *length > 0)
        || SELECTORS.iter().any(|kind| attribute(attributes, *kind).is_some())
}

/// What queueing disciplines dropped: the outermost of each interface, which counts what those in it drop, too, and clsact,
/// whose programs and filters do.
///
/// # Errors
/// When the kernel does not list them.
pub fn qdiscs(links: &[Link]) -> io::Result<Vec<Count>> {
    let listed = netlink::list(netlink::GET_QDISC, &[0; TCMSG], netlink::NEW_QDISC)?;
    Ok(listed.iter().filter_map(|body| qdisc(body, links)).collect())
}

fn qdisc(body: &[u8], links: &[Link]) -> Option<Count> {
    /// TC_H_ROOT
    const ROOT: u32 = 0xffff_ffff;
    /// TCA_KIND, TCA_STATS2, and in it TCA_STATS_QUEUE.
    const KIND: u16 = 1;
    const STATS: u16 = 7;
    const QUEUE: u16 = 3;
    let (index, parent) = (word(body, 4)?, word(body, 12)?);
    if ![ROOT, CLSACT].contains(&parent) {
        return None;
    }
    let attributes = body.get(TCMSG..)?;
    // struct gnet_stats_queue: qlen, backlog, drops.
    let drops = word(attribute(attribute(attributes, STATS)?, QUEUE)?, 8)?;
    let link = links.iter().find(|link| link.index == index)?;
    let name = format!("{} qdisc {}", link.name, text(attribute(attributes, KIND)?));
    Some(Count::new(Counter::Qdisc, name, "rtnetlink", drops.into()))
}

/// The tc filters that the card runs, by device: RTM_GETTFILTER, for each device with a hook for them.
///
/// # Errors
/// When the kernel does not list them.
pub fn hardware_filters(links: &[Link]) -> io::Result<Vec<Offload>> {
    /// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS) (include/uapi/linux/pkt_sched.h); the ingress qdisc's
    /// only hook is the first of them, too.
    const PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
    let qdiscs = netlink::list(netlink::GET_QDISC, &[0; TCMSG], netlink::NEW_QDISC)?;
    let with_hooks =
        qdiscs.iter().filter(|body| word(body, 12) == Some(CLSACT)).filter_map(|body| word(body, 4));
    let mut found = Vec::new();
    for link in with_hooks.filter_map(|index| links.iter().find(|link| link.index == index)) {
        let mut count = 0;
        for parent in PARENTS {
            let question = [0, link.index, 0, parent, 0].map(u32::to_ne_bytes).concat();
            let filters = netlink::list(netlink::GET_FILTER, &question, netlink::NEW_FILTER)?;
            count += filters.iter().filter(|body| is_in_hardware(body)).count();
        }
        if count > 0 {
            let name = format!("tc filters on the card: {count}");
            found.push(Offload {
                kind: OffloadKind::HardwareFilter,
                name,
                interfaces: vec![link.name.clone()],
            });
        }
    }
    Ok(found)
}

/// Whether the card runs a filter, by its flags (include/uapi/linux/pkt_cls.h).
fn is_in_hardware(body: &[u8]) -> bool {
    /// TCA_FLOWER_FLAGS, TCA_MATCHALL_FLAGS, TCA_U32_FLAGS, TCA_BPF_FLAGS_GEN.
    const FLAGS: [(&str, u16); 4] = [("flower", 22), ("matchall", 3), ("u32", 11), ("bpf", 9)];
    /// TCA_CLS_FLAGS_IN_HW
    const IN_HARDWARE: u32 = 1 << 2;
    /// TCA_KIND and TCA_OPTIONS.
    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    let attributes = body.get(TCMSG..).unwrap_or_default();
    let kind = attribute(attributes, KIND).map(text).unwrap_or_default();
    let flags = FLAGS.iter().find(|(name, _)| *name == kind).and_then(|(_, flags)| {
        attribute(attribute(attributes, OPTIONS)?, *flags).and_then(|value| word(value, 0))
    });
    flags.is_some_and(|flags| flags & IN_HARDWARE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::netlink::encoded;

    fn nested(kind: u16, inner: &[(u16, &[u8])]) -> Vec<u8> {
        encoded(kind, &inner.iter().flat_map(|(kind, value)| encoded(*kind, value)).collect::<Vec<u8>>())
    }

    fn message(header: &[u32], attributes: &[Vec<u8>]) -> Vec<u8> {
        let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        [header, attributes.concat()].concat()
    }

    #[test]
    fn a_tunnel_with_its_underlay_and_a_port_with_its_hairpin() {
        let [two, mtu] = [2_u32, 1450].map(u32::to_ne_bytes);
        let data = nested(2, &[(3, &two), (25, &[0])]);
        let info = encoded(18, &[encoded(1, b"vxlan\0"), data].concat());
        let vxlan = message(&[0, 7, 1, 0], &[encoded(3, b"flannel.1\0"), encoded(4, &mtu), info]);
        let link = link(&vxlan).unwrap();
        assert_eq!((&*link.name, &*link.kind, link.mtu, link.is_up), ("flannel.1", "vxlan", 1450, true));
        let tunnel = link.tunnel.unwrap();
        assert_eq!((tunnel.underlay, tunnel.is_external, tunnel.is_v6), (Some(2), false, false));
        let port = nested(5, &[(4, &[1])]);
        let info = encoded(18, &[encoded(1, b"veth\0"), encoded(4, b"bridge\0"), port].concat());
        let veth = message(
            &[0, 9, 0x100, 0],
            &[encoded(3, b"v\0"), encoded(4, &mtu), encoded(10, &two), encoded(37, &two), info],
        );
        let veth = super::link(&veth).unwrap();
        assert_eq!((veth.hairpin, veth.master, veth.is_lower_elsewhere), (Some(true), Some(2), true));
        assert!(veth.is_promiscuous && !veth.is_up && veth.tunnel.is_none());
        assert_eq!(super::link(&[0; 16]), None);
    }

    #[test]
    fn drops_of_a_device_and_of_its_queues() {
        let stats: Vec<u8> = (0..25_u64).flat_map(u64::to_ne_bytes).collect();
        let body = message(&[0, 2, 1, 0], &[encoded(3, b"eth0\0"), encoded(23, &stats)]);
        let counts = link_counts(&body);
        let told: Vec<_> = counts.iter().map(|count| (&*count.name, count.count)).collect();
        assert_eq!(told[2..4], [("eth0 rx_dropped", 6), ("eth0 tx_dropped", 7)]);
        assert_eq!(link_counts(&body[..20]), []);
        let links = [Link { index: 2, name: "eth0".into(), ..Link::default() }];
        let queue: Vec<u8> = [1_u32, 2, 30, 4, 5].into_iter().flat_map(u32::to_ne_bytes).collect();
        let of = |parent| {
            let stats = nested(7, &[(3, &queue)]);
            qdisc(&message(&[0, 2, 0, parent, 0], &[encoded(1, b"fq_codel\0"), stats]), &links)
        };
        assert_eq!(of(u32::MAX).map(|it| (it.name, it.count)), Some(("eth0 qdisc fq_codel".into(), 30)));
        assert_eq!(of(0x8001_0001), None);
    }

    #[test]
    fn routes_of_the_main_table() {
        let of = |table: u8, attributes: &[Vec<u8>]| {
            let mut body = message(&[0; 3], attributes);
            (body[0], body[1], body[4], body[7]) = (2, 24, table, 1);
            route(&body)
        };
        let (one, two) = (encoded(4, &1_u32.to_ne_bytes()), encoded(6, &100_u32.to_ne_bytes()));
        let to = encoded(1, &[10, 0, 0, 0]);
        let found = of(254, &[to.clone(), one.clone(), two]).unwrap();
        assert_eq!(
            (found.to, &found.interfaces[..], found.metric),
            (Some(("10.0.0.0".parse().unwrap(), 24)), &[1][..], 100)
        );
        assert_eq!(of(255, &[to, one]), None);
        let hop = |index: u32| [&8_u16.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes()].concat();
        let both = of(254, &[encoded(9, &[hop(3), hop(4)].concat())]).unwrap();
        assert_eq!((both.to, both.interfaces), (None, vec![3, 4]));
    }

    #[test]
    fn only_what_selects_is_policy_routing() {
        assert!(!is_selective(&message(&[0; 3], &[encoded(6, &32766_u32.to_ne_bytes())])));
        assert!(is_selective(&message(&[0; 3], &[encoded(10, &[1, 0, 0, 0])])));
        let mut of_source = message(&[0; 3], &[]);
        of_source[2] = 32;
        assert!(is_selective(&of_source));
    }

    #[test]
    fn a_filter_is_on_the_card_by_its_flags() {
        let of = |kind: &[u8], flag: u16, flags: u32| {
            let options = nested(2, &[(flag, &flags.to_ne_bytes())]);
            is_in_hardware(&message(&[0; 5], &[encoded(1, kind), options]))
        };
        assert!(of(b"flower\0", 22, 4) && of(b"matchall\0", 3, 5) && of(b"bpf\0", 9, 4));
        // Not in hardware; another attribute; a kind that is not known.
        assert!(!of(b"flower\0", 22, 8) && !of(b"flower\0", 3, 4) && !of(b"basic\0", 3, 4));
        assert!(!is_in_hardware(&[]));
    }

    #[test]
    fn the_own_namespace_lists_them() {
        let (links, counts) = links().unwrap();
        assert!(links.iter().any(|link| link.name == "lo") && !counts.is_empty());
        routes().unwrap();
        has_policy_routing().unwrap();
        qdiscs(&links).unwrap();
        hardware_filters(&links).unwrap();
    }
}
