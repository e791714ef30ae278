//! Packets on their ways, made by hand, for the tests of what is told of them.

use super::model::{Decision, Met, Passed, Place, Point, Route, RuleMet, Seen};
use crate::event::model::{Cause, Class, Conntrack, Endpoint, Inner, K8s, Timestamp};
use crate::netfilter::model::{Backend, Confidence, Family, Netfilter};
use std::net::IpAddr;

/// 2026-11-20T22:14:03.112345Z
const START: i128 = 1_795_212_843_112_345_000;
pub(super) const NODE: u32 = 4_026_531_840;
pub(super) const POD: u32 = 4_026_532_281;

/// A packet on its way: what [`Walker::at`] gives is seen 10 µs after what it gave before.
pub(super) struct Walker(pub(super) Seen);

pub(super) fn end(text: &str) -> Endpoint {
    let (address, port) = match text.parse::<std::net::SocketAddr>() {
        Ok(both) => (both.ip(), Some(both.port())),
        Err(_) => (text.parse::<IpAddr>().unwrap(), None),
    };
    Endpoint { address: Some(address), port, k8s: None }
}

fn pod(name: &str) -> Option<K8s> {
    Some(K8s { namespace: Some("shop".into()), pod: Some(name.into()), ..K8s::default() })
}

pub(super) fn route(decision: Decision, interface: &str) -> Option<Route> {
    Some(Route { decision, interface: Some(interface.into()), ..Route::default() })
}

pub(super) fn passed(hook: &'static str, point: Point) -> Passed {
    Passed { family: Family::Ipv4, hook, point, rules: Vec::new(), unsure: None }
}

/// `table:CHAIN:rule:2`, `:return:` or `:policy:`, and what came of it.
pub(super) fn rule(place: &str, verdict: &str) -> RuleMet {
    let words: Vec<&str> = place.split(':').collect();
    let kind = match words[2] {
        "rule" => Met::Rule,
        "return" => Met::Return,
        _ => Met::Policy,
    };
    RuleMet {
        backend: Backend::Legacy,
        family: Family::Ipv4,
        table: words[0].into(),
        chain: words[1].into(),
        kind,
        rule: words[3].parse().ok(),
        handle: None,
        verdict: verdict.into(),
        text: None,
        mark: Some(0),
        confidence: Confidence::Inferred,
        method: "evaluated",
    }
}

impl Walker {
    /// In the node's netns, with the bytes of its headers.
    pub(super) fn new(packet: u64, transport: &str, source: &str, destination: &str) -> Self {
        let mut view = crate::event::model::Drop {
            time: Timestamp(START),
            count: 1,
            segments: 1,
            detail: true,
            ..Default::default()
        };
        view.network.family = Some("ipv4".into());
        view.network.transport = Some(transport.into());
        view.network.netns = Some(NODE);
        view.packet.ttl = Some(64);
        view.packet.length = Some(60);
        match transport {
            "tcp" => view.packet.tcp_flags = Some("SYN".into()),
            "icmp" => {
                (view.packet.icmp_type, view.packet.icmp_code) = (Some(8), Some(0));
                (view.packet.icmp_id, view.packet.icmp_sequence) = (Some(4064), Some(24));
            }
            _ => {}
        }
        let place = Place::Received;
        let mut walker = Self(Seen {
            packet,
            place,
            view,
            pod: None,
            route: None,
            mac: None,
            bytes: Vec::new(),
            link: None,
        });
        walker.ends(source, destination);
        walker
    }

    /// From here on it has these ends.
    pub(super) fn ends(&mut self, source: &str, destination: &str) -> &mut Self {
        let view = &mut self.0.view;
        (view.source, view.destination) = (end(source), end(destination));
        for end in [&mut view.source, &mut view.destination] {
            match end.address.map(|address| address.to_string()).as_deref() {
                Some("10.244.3.7") => end.k8s = pod("cart-7c9"),
                Some("10.244.1.9") => end.k8s = pod("redis-0"),
                _ => {}
            }
        }
        self.0.bytes = self.bytes();
        self
    }

    pub(super) fn device(&mut self, device: &str) -> &mut Self {
        self.0.view.network.interface = Some(device.into());
        self
    }

    /// Of the hook that it is on.
    pub(super) fn hook_devices(&mut self, input: Option<&str>, output: Option<&str>) -> &mut Self {
        self.0.view.network.interface_in = input.map(str::to_owned);
        self.0.view.network.interface_out = output.map(str::to_owned);
        self
    }

    pub(super) fn netns(&mut self, inode: u32, pod: Option<&str>) -> &mut Self {
        self.0.view.network.netns = Some(inode);
        self.0.pod = pod.map(|pod| format!("shop/{pod}"));
        (self.0.route, self.0.mac) = (None, None);
        self.hook_devices(None, None)
    }

    pub(super) fn at(&mut self, place: Place) -> Seen {
        self.0.view.time.0 += 10_000;
        Seen { place, ..self.0.clone() }
    }

    pub(super) fn enters(&mut self, hook: &'static str) -> Seen {
        self.at(Place::Hook(Box::new(passed(hook, Point::Entered))))
    }

    pub(super) fn leaves(&mut self, hook: &'static str, rules: Vec<RuleMet>) -> Seen {
        self.at(Place::Hook(Box::new(Passed { rules, ..passed(hook, Point::Left) })))
    }

    /// On a hook, past all functions with a smaller priority.
    pub(super) fn past(&mut self, hook: &'static str, priority: i32, rules: Vec<RuleMet>) -> Seen {
        self.at(Place::Hook(Box::new(Passed { rules, ..passed(hook, Point::Past(priority)) })))
    }

    /// An IPv4 header and that of the transport.
    fn bytes(&self) -> Vec<u8> {
        let view = &self.0.view;
        let transport = match view.network.transport.as_deref() {
            Some("tcp") => tcp(view.source.port, view.destination.port),
            Some("udp") => {
                let mut bytes = ports(view.source.port, view.destination.port);
                bytes.extend([0, 40, 0, 0]);
                bytes
            }
            _ => vec![8, 0, 0, 0, 0x0f, 0xe0, 0, 24],
        };
        let number = match view.network.transport.as_deref() {
            Some("tcp") => 6,
            Some("udp") => 17,
            _ => 1,
        };
        let mut bytes = vec![0x45, 0, 0, 60, 0x30, 0x39, 0x40, 0, 64, number, 0, 0];
        for end in [&view.source, &view.destination] {
            match end.address {
                Some(IpAddr::V4(address)) => bytes.extend(address.octets()),
                _ => bytes.extend([0; 4]),
            }
        }
        bytes.extend(transport);
        bytes
    }
}

fn ports(source: Option<u16>, destination: Option<u16>) -> Vec<u8> {
    [source, destination].into_iter().flat_map(|port| port.unwrap_or_default().to_be_bytes()).collect()
}

/// A SYN with the option MSS 1460.
fn tcp(source: Option<u16>, destination: Option<u16>) -> Vec<u8> {
    let mut bytes = ports(source, destination);
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0x02, 0xfa, 0xf0, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
    bytes
}

/// The reply of an UDP service comes back to a node that does not forward: un-SNATed, then dropped by the route.
pub(super) fn ip_forward_off() -> Vec<Seen> {
    let mut packet = Walker::new(1, "udp", "192.0.2.9:53", "192.0.2.1:40000");
    packet.0.view.conntrack = Some(Conntrack {
        state: "established".into(),
        direction: Some("reply".into()),
        ..Conntrack::default()
    });
    packet.device("eth0").hook_devices(Some("eth0"), None);
    packet.0.mac = Some([[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]]);
    let raw = vec![rule("raw:PREROUTING:rule:1", "jump cali-PREROUTING"), {
        rule("raw:cali-PREROUTING:return:5", "return")
    }];
    let mut seen = vec![
        packet.at(Place::Received),
        packet.enters("PREROUTING"),
        packet.past("PREROUTING", -150, [raw, vec![rule("raw:PREROUTING:policy:2", "accept")]].concat()),
    ];
    packet.ends("192.0.2.9:53", "10.244.3.7:40000");
    seen.push(packet.leaves("PREROUTING", vec![rule("mangle:PREROUTING:policy:1", "accept")]));
    packet.0.route =
        Some(Route { function: Some("ip_error".into()), ..route(Decision::Refused, "eth0").unwrap() });
    let mut dropped = packet.at(Place::Dropped);
    dropped.view.drop.reason = Some("IP_INNOROUTES".into());
    dropped.view.drop.location = Some("ip_error+0x1b2".into());
    dropped.view.drop.cause = Some(Cause {
        id: "ip-forward-off".into(),
        severity: "error".into(),
        why: "eth0 does not forward".into(),
        fix: "sysctl -w net.ipv4.ip_forward=1".into(),
        confidence: "exact".into(),
        ..Cause::default()
    });
    seen.push(dropped);
    seen
}

/// A SYN from a pod to a service's address: across the pod's veth, translated, and over another veth into the other pod, where a
/// listener takes it.
pub(super) fn dnat_to_pod() -> Vec<Seen> {
    let mut packet = Walker::new(2, "tcp", "10.244.3.7:41822", "10.96.3.4:6379");
    packet.netns(POD, Some("cart-7c9")).device("eth0").hook_devices(None, Some("eth0"));
    packet.0.route = route(Decision::Output, "eth0");
    let mut seen = vec![packet.enters("OUTPUT"), packet.leaves("OUTPUT", vec![]), packet.at(Place::Queued)];
    packet.0.link = Some("veth".into());
    seen.push(packet.at(Place::Sent));
    packet.netns(NODE, None).device("veth1").hook_devices(Some("veth1"), None);
    seen.extend([packet.at(Place::Received), packet.enters("PREROUTING")]);
    packet.ends("10.244.3.7:41822", "10.244.1.9:6379");
    let nat = [("nat:PREROUTING:rule:1", "jump KUBE-SERVICES"), ("nat:KUBE-SEP-A:rule:2", "target dnat")];
    seen.push(packet.leaves("PREROUTING", nat.map(|(place, verdict)| rule(place, verdict)).to_vec()));
    packet.0.route = route(Decision::Forward, "veth2");
    packet.hook_devices(Some("veth1"), Some("veth2")).0.view.packet.ttl = Some(63);
    seen.extend([
        packet.enters("FORWARD"),
        packet.leaves("FORWARD", vec![rule("filter:FORWARD:policy:3", "accept")]),
    ]);
    packet.device("veth2").hook_devices(None, Some("veth2"));
    seen.extend([packet.enters("POSTROUTING"), packet.leaves("POSTROUTING", vec![])]);
    packet.0.mac = Some([[2, 0, 0, 0, 1, 9], [2, 0, 0, 0, 0, 1]]);
    seen.extend([packet.at(Place::TcEgress), packet.at(Place::Queued), packet.at(Place::Sent)]);
    packet.netns(7, Some("redis-0")).device("eth0");
    seen.push(packet.at(Place::Received));
    packet.0.route = route(Decision::Local, "lo");
    seen.extend([packet.enters("INPUT"), packet.leaves("INPUT", vec![])]);
    seen.push(packet.at(Place::Consumed { location: Some("tcp_v4_rcv+0x10".into()) }));
    seen
}

/// An echo request leaves by VXLAN.
pub(super) fn vxlan() -> Vec<Seen> {
    let mut packet = Walker::new(3, "icmp", "10.244.0.1", "10.244.1.1");
    packet.device("vxlan0").hook_devices(None, Some("vxlan0"));
    packet.0.route = route(Decision::Output, "vxlan0");
    let mut seen = vec![packet.enters("OUTPUT"), packet.at(Place::Queued)];
    packet.0.link = Some("vxlan".into());
    seen.push(packet.at(Place::Sent));
    packet.0.view.inner = Some(Inner {
        kind: "vxlan".into(),
        vni: Some(1),
        source: end("10.244.0.1"),
        destination: end("10.244.1.1"),
        transport: Some("icmp".into()),
    });
    packet.0.link = None;
    packet.0.view.network.transport = Some("udp".into());
    (packet.0.view.packet.icmp_type, packet.0.view.packet.icmp_id) = (None, None);
    packet.ends("10.0.0.1:55000", "10.0.0.2:8472").device("eth1").hook_devices(None, Some("eth1"));
    packet.0.route =
        Some(Route { gateway: "10.0.0.254".parse().ok(), ..route(Decision::Output, "eth1").unwrap() });
    seen.push(packet.enters("OUTPUT"));
    packet.0.mac = Some([[2, 0, 0, 0, 0, 254], [2, 0, 0, 0, 0, 1]]);
    seen.extend([packet.at(Place::Queued), packet.at(Place::Sent)]);
    seen.push(packet.at(Place::Consumed { location: None }));
    seen
}

/// A datagram that a program reads.
pub(super) fn udp_read() -> Vec<Seen> {
    let mut packet = Walker::new(4, "udp", "10.244.3.7:40000", "10.244.1.9:53");
    packet.netns(7, Some("redis-0")).device("eth0").hook_devices(Some("eth0"), None);
    let mut seen = vec![packet.at(Place::Received)];
    packet.0.route = route(Decision::Local, "lo");
    seen.extend([packet.enters("INPUT"), packet.leaves("INPUT", vec![])]);
    seen.push(packet.at(Place::Read { process: "dnsmasq".into(), pid: 7 }));
    seen.push(packet.at(Place::Consumed { location: None }));
    seen
}

/// An echo request to the node itself.
pub(super) fn echo_to_node() -> Vec<Seen> {
    let mut packet = Walker::new(5, "icmp", "192.0.2.9", "192.0.2.1");
    packet.device("eth0").hook_devices(Some("eth0"), None);
    let mut seen =
        vec![packet.at(Place::Received), packet.enters("PREROUTING"), packet.leaves("PREROUTING", vec![])];
    packet.0.route = route(Decision::Local, "lo");
    seen.extend([packet.enters("INPUT"), packet.leaves("INPUT", vec![])]);
    seen.push(packet.at(Place::Consumed { location: Some("icmp_rcv+0x1".into()) }));
    seen
}

/// Seen no more after PREROUTING.
pub(super) fn vanished() -> Vec<Seen> {
    echo_to_node().into_iter().take(3).map(|seen| Seen { packet: 6, ..seen }).collect()
}

/// A rule dropped it.
pub(super) fn dropped_by_rule() -> Vec<Seen> {
    let mut packet = Walker::new(7, "tcp", "10.244.3.7:41822", "10.244.1.9:6379");
    packet.device("veth1").hook_devices(Some("veth1"), Some("veth2"));
    packet.0.route = route(Decision::Forward, "veth2");
    let entered = packet.enters("FORWARD");
    let mut dropped = packet.at(Place::Dropped);
    dropped.view.drop.class = Class::Policy;
    dropped.view.drop.reason = Some("NETFILTER_DROP".into());
    dropped.view.drop.netfilter = Some(Box::new(Netfilter {
        backend: Some(Backend::Legacy),
        family: Some(Family::Ipv4),
        hook: Some("FORWARD".into()),
        table: Some("filter".into()),
        chain: Some("FORWARD".into()),
        rule: Some(3),
        verdict: Some("drop".into()),
        confidence: Confidence::Exact,
        ..Netfilter::default()
    }));
    vec![entered, dropped]
}
