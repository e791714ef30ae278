//! Whether a rule of a policy is about a packet, and if not, why: peers and ports, each by itself. Pure.

use super::identity::{self, Identity, Kind};
use super::maps::Direction;
use crate::event::packet::transport_name;
use crate::identity::object::{Labels, Protocol};
use crate::identity::policy::{
    self, NAMESPACE, NAMESPACE_LABELS, Peer, Port, Requirement, Rule, Selector, Test,
};
use std::borrow::Cow;
use std::net::IpAddr;

/// Values of a selector, ports of a rule and the like that are told.
const TOLD: usize = 5;
/// Characters of one that are told.
const LONG: usize = 80;
/// Protocols with ports: TCP, UDP, SCTP.
const WITH_PORTS: [u8; 3] = [6, 17, 132];
/// ICMP and ICMPv6.
const ICMP: [u8; 2] = [1, 58];

/// The other side, and what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Who it is to Cilium; 0 if that is not known.
    pub identity: u32,
    /// The labels of that identity with their sources; `None` if they are not known.
    pub labels: Option<Labels>,
    /// Its address.
    pub address: Option<IpAddr>,
    /// The pod that has that address, whatever Cilium knows of it.
    pub pod: Option<Pod>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    /// Its node.
    pub node: Option<String>,
    /// Its labels as Cilium has them.
    pub labels: Labels,
    /// The ports of its containers by name; `None` if they are not known.
    pub ports: Option<Vec<(String, Protocol, u16)>>,
}

/// What the packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct What {
    /// Seen from the endpoint that policies are asked about.
    pub direction: Direction,
    /// Its IP protocol.
    pub protocol: Option<u8>,
    /// Its destination port.
    pub port: Option<u16>,
    /// Its ICMP type.
    pub icmp_type: Option<u8>,
    /// The pod that the destination port is on, if it is known.
    pub destination: Option<Pod>,
}

/// Why a rule is not about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// It may be about it: not enough is known.
    pub is_unsure: bool,
    /// How far it is from fitting; the least is told.
    pub distance: usize,
    /// A part of a sentence.
    pub why: String,
}

impl Miss {
    fn new(distance: usize, why: String) -> Self {
        Self { is_unsure: false, distance, why }
    }

    fn unsure(why: String) -> Self {
        Self { is_unsure: true, distance: 0, why }
    }
}

/// Whether a rule is about such a packet.
///
/// # Errors
/// Why not: the peer first, then the port.
pub fn fits(rule: &Rule, who: &Who, what: &What) -> Result<(), Miss> {
    match (peers(rule.peers.as_deref(), who), ports(rule.ports.as_deref(), what)) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(miss), Ok(())) | (Ok(()), Err(miss)) => Err(miss),
        // What is certain of the one is certain of the rule.
        (Err(peer), Err(port)) => Err(Miss {
            is_unsure: peer.is_unsure && port.is_unsure,
            distance: peer.distance + port.distance + 100,
            why: format!("{}; {}", peer.why, port.why),
        }),
    }
}

fn peers(peers: Option<&[Peer]>, who: &Who) -> Result<(), Miss> {
    let Some(peers) = peers else { return Ok(()) };
    let mut nearest: Option<Miss> = None;
    for one in peers {
        let miss = match peer(one, who) {
            Ok(()) => return Ok(()),
            Err(miss) => miss,
        };
        // One that may fit makes it unsure; of the others the nearest is told.
        let key = |miss: &Miss| (!miss.is_unsure, miss.distance);
        if nearest.as_ref().is_none_or(|nearest| key(&miss) < key(nearest)) {
            nearest = Some(miss);
        }
    }
    let mut miss = nearest.unwrap_or_else(|| Miss::new(50, "peer: it is about nobody".to_owned()));
    if peers.len() > 1 {
        miss.why += &format!(" (the nearest of {} peers)", peers.len());
    }
    Err(miss)
}

fn peer(peer: &Peer, who: &Who) -> Result<(), Miss> {
    let other = |why: String| Err(Miss::new(20, why));
    match peer {
        Peer::Endpoints(selector) => endpoints(selector, who),
        Peer::Block(prefix, except) => {
            let Some(address) = who.address else {
                return Err(Miss::unsure(format!(
                    "peer address: it is about {prefix}, the peer's is not known"
                )));
            };
            if !prefix.contains(address) {
                return other(format!("peer address: it is about {prefix}, the peer is {address}"));
            }
            if let Some(except) = except.iter().find(|except| except.contains(address)) {
                return other(format!("peer address: {address} is in {except}, which {prefix} leaves out"));
            }
            if is_outside(who.identity) {
                return Ok(());
            }
            other(format!(
                "peer address: {address} is in {prefix}, but blocks of addresses are about peers outside of the \
                 cluster, and this one is {}",
                named(who)
            ))
        }
        Peer::Entity(entity) => match is_of_entity(entity, who) {
            true => Ok(()),
            false => {
                other(format!("peer: it is about the entity {}, the peer is {}", short(entity), named(who)))
            }
        },
        Peer::DnsName(name) => other(format!(
            "peer: it is about the DNS name {}, and Cilium has not taken the peer's address for one of its",
            short(name)
        )),
        Peer::Service(name) => {
            other(format!("peer: it is about the service {}, the peer is {}", short(name), named(who)))
        }
        Peer::Nodes(selector) => nodes(selector, who),
        Peer::Listed(place) if is_outside(who.identity) || who.identity == 0 => Err(Miss::unsure(format!(
            "peer address: it is about the addresses of {}, which droptrace doesn't look into",
            short(place)
        ))),
        Peer::Listed(place) => other(format!(
            "peer address: it is about the addresses of {}, which are outside of the cluster, and the peer is {}",
            short(place),
            named(who)
        )),
        Peer::Unread(what) => {
            Err(Miss::unsure(format!("peer: it goes by {what}, which droptrace doesn't look into")))
        }
    }
}

/// Nodes. Which labels one has, Cilium only knows where it is told to tell nodes apart.
fn nodes(selector: &Selector, who: &Who) -> Result<(), Miss> {
    /// reserved:host, remote-node and kube-apiserver.
    const NODES: [u32; 3] = [1, 6, 7];
    let all: Vec<&Requirement> = selector.requirements.iter().collect();
    let is = format!("peer: its peers are nodes chosen by labels ({})", needs(&all));
    let labels = who.labels.as_ref().filter(|_| identity::kind(who.identity) == Kind::RemoteNode);
    match labels {
        Some(labels) if selector.selects(labels) => Ok(()),
        Some(labels) => {
            let unmet = selector.unmet(labels);
            Err(Miss::new(unmet.len(), format!("{is}, the peer is a node that has {}", has(&unmet, labels))))
        }
        None if who.identity == 0 || NODES.contains(&who.identity) => Err(Miss::unsure(format!(
            "{is}; which labels the peer has to Cilium is not known ({})",
            named(who)
        ))),
        None if identity::kind(who.identity) == Kind::RemoteNode => {
            Err(Miss::unsure(format!("{is}; the labels of {} are not known", named(who))))
        }
        None => Err(Miss::new(20, format!("{is}, the peer is no node to Cilium: {}", named(who)))),
    }
}

/// Pods, or what else has labels for Cilium.
fn endpoints(selector: &Selector, who: &Who) -> Result<(), Miss> {
    let reserved = identity::reserved(who.identity)
        .filter(|_| who.identity != 0)
        .map(|name| Labels::from([(format!("reserved:{name}"), String::new())]));
    let labels = who.labels.as_ref().or(reserved.as_ref());
    if let Some(labels) = labels
        && selector.selects(labels)
    {
        return Ok(());
    }
    let all: Vec<&Requirement> = selector.requirements.iter().collect();
    if identity::kind(who.identity) != Kind::Reserved && !is_outside(who.identity) {
        let Some(labels) = labels else {
            return Err(Miss::unsure(format!(
                "peer labels: needs {}, those of {} are not known",
                needs(&all),
                named(who)
            )));
        };
        let unmet = selector.unmet(labels);
        let why = format!("peer labels: needs {}, the peer has {}", needs(&unmet), has(&unmet, labels));
        return Err(Miss::new(unmet.len(), why));
    }
    if who.identity == 0 {
        return Err(Miss::unsure(format!(
            "peer labels: needs {}, who the peer is to Cilium is not known",
            needs(&all)
        )));
    }
    // No pod of Cilium's: its labels do not count, whatever they are.
    let address =
        who.address.map_or_else(|| "its address".to_owned(), |address| format!("its address {address}"));
    let is = format!("the peer is {}", named(who));
    let Some(pod) = who.pod.as_ref().filter(|_| is_outside(who.identity)) else {
        let why = if identity::is_world(who.identity) {
            format!("{is}: {address} belongs to no pod that Cilium knows")
        } else {
            is
        };
        return Err(Miss::new(all.len(), format!("peer labels: needs {}, {why}", needs(&all))));
    };
    let node = pod.node.as_ref().map(|node| format!(" of node {node}")).unwrap_or_default();
    let unmanaged = format!(
        "{is}: {address} belongs to no pod that Cilium knows (its node runs no Cilium, or that does not manage the pod)"
    );
    let unmet = selector.unmet(&pod.labels);
    let why = if unmet.is_empty() {
        format!("needs {}, which pod {}{node} at that address has, but {unmanaged}", needs(&all), pod.name)
    } else {
        let has = has(&unmet, &pod.labels);
        format!("needs {}, pod {}{node} has {has}; besides, {unmanaged}", needs(&unmet), pod.name)
    };
    Err(Miss::new(unmet.len(), format!("peer labels: {why}")))
}

/// True for what Cilium knows by its address only.
fn is_outside(id: u32) -> bool {
    identity::is_world(id) || identity::kind(id) == Kind::Local
}

/// Cilium's entities (pkg/policy/api/entity.go). In doubt a node is none.
fn is_of_entity(entity: &str, who: &Who) -> bool {
    let kind = identity::kind(who.identity);
    let is_v4 = who.address.map(|address| address.is_ipv4());
    let has = |label: &str| who.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
    match entity {
        "all" => true,
        "world" => is_outside(who.identity),
        "world-ipv4" => who.identity == identity::WORLD_IPV4 || kind == Kind::Local && is_v4 == Some(true),
        "world-ipv6" => who.identity == identity::WORLD_IPV6 || kind == Kind::Local && is_v4 == Some(false),
        "cluster" => match kind {
            Kind::Cluster(_) | Kind::WellKnown | Kind::RemoteNode => true,
            Kind::Reserved => who.identity != 0 && !identity::is_world(who.identity),
            _ => false,
        },
        // kube-apiserver is a node, too, with an identity of its own.
        "remote-node" => matches!(who.identity, 6 | 7) || kind == Kind::RemoteNode,
        other => {
            identity::reserved(who.identity).is_some_and(|name| who.identity != 0 && name == other)
                || has(&format!("reserved:{other}"))
        }
    }
}

fn named(who: &Who) -> String {
    match &who.pod {
        Some(pod) if !is_outside(who.identity) => format!("pod {}, identity {}", pod.name, who.identity),
        _ => Identity::named(who.identity, &identity::Nobody).to_string(),
    }
}

/// `app=frontend in namespace shop`.
fn needs(requirements: &[&Requirement]) -> String {
    if requirements.is_empty() {
        return "any labels".to_owned();
    }
    let (places, labels): (Vec<_>, Vec<_>) =
        requirements.iter().copied().partition(|requirement| is_namespace(&requirement.key));
    let place = places.into_iter().map(|requirement| match &requirement.test {
        Test::In(names) => format!("to be in namespace {}", some(names)),
        Test::NotIn(names) => format!("not to be in namespace {}", some(names)),
        Test::Exists => "to be in a namespace".to_owned(),
        Test::DoesNotExist => "to be in no namespace".to_owned(),
    });
    some(&labels.into_iter().map(need).chain(place).collect::<Vec<_>>())
}

fn need(requirement: &Requirement) -> String {
    let key = bare(&requirement.key);
    match &requirement.test {
        Test::In(values) => match values.as_slice() {
            [one] if one.is_empty() => key.into_owned(),
            [one] => format!("{key}={}", short(one)),
            several => format!("{key} in ({})", some(several)),
        },
        Test::NotIn(values) => format!("{key} not in ({})", some(values)),
        Test::Exists => key.into_owned(),
        Test::DoesNotExist => format!("no {key}"),
    }
}

/// What labels have instead of what is required: `app=batch`, `no tier`.
fn has(unmet: &[&Requirement], labels: &Labels) -> String {
    let mut all: Vec<String> = Vec::new();
    for requirement in unmet {
        let mut values = policy::values(labels, &requirement.key).map(short).collect::<Vec<_>>();
        values.dedup();
        let key = bare(&requirement.key);
        let text = match (is_namespace(&requirement.key), values.as_slice()) {
            (true, []) => "no namespace".to_owned(),
            (true, [one, ..]) => format!("namespace {one}"),
            (false, []) => format!("no {key}"),
            (false, [one, ..]) if one.is_empty() => key.into_owned(),
            (false, [one, ..]) => format!("{key}={one}"),
        };
        if !all.contains(&text) {
            all.push(text);
        }
    }
    some(&all)
}

fn is_namespace(key: &str) -> bool {
    bare(key) == bare(NAMESPACE)
}

/// A label's key as people know it: without its source, and a label of the namespace as that.
fn bare(key: &str) -> Cow<'_, str> {
    if let Some(label) = key.strip_prefix(NAMESPACE_LABELS) {
        return Cow::Owned(format!("namespace label {}", short(label)));
    }
    short(key.split_once(':').map_or(key, |(source, name)| if source == "reserved" { key } else { name }))
}

fn ports(ports: Option<&[Port]>, what: &What) -> Result<(), Miss> {
    let Some(ports) = ports else { return Ok(()) };
    let Some(protocol) = what.protocol else {
        return Err(Miss::unsure("port: the packet's protocol is not known".to_owned()));
    };
    let mut unsure = None;
    for one in ports {
        match has_port(one, protocol, what) {
            Some(true) => return Ok(()),
            Some(false) => {}
            None => unsure = Some(one),
        }
    }
    if let Some(port) = unsure {
        return Err(Miss::unsure(format!(
            "port: it is about {}, whether that is the packet's is not known",
            spelled(port)
        )));
    }
    let all: Vec<_> = ports.iter().map(spelled).collect();
    let all = if all.is_empty() { "no port".to_owned() } else { some(&all) };
    Err(Miss::new(1, format!("port: it is about {all}, the packet is {}", packet(protocol, what))))
}

/// Whether a packet is for a port; `None` if that can't be told.
fn has_port(port: &Port, protocol: u8, what: &What) -> Option<bool> {
    let is_of = |wanted: Option<u8>| match wanted {
        Some(wanted) => wanted == protocol,
        None => WITH_PORTS.contains(&protocol),
    };
    match port {
        Port::Range { protocol, .. } | Port::Named { protocol, .. } if !is_of(*protocol) => Some(false),
        Port::Range { first: 0, last: u16::MAX, .. } => Some(true),
        Port::Range { first, last, .. } => what.port.map(|port| (*first..=*last).contains(&port)),
        Port::Named { name, .. } => {
            let ports = what.destination.as_ref()?.ports.as_ref()?;
            let port = what.port?;
            // Cilium compares names without regard to case.
            let is_it = |(named, of, number): &(String, u8, u16)| {
                named.eq_ignore_ascii_case(name) && *of == protocol && *number == port
            };
            Some(ports.iter().any(is_it))
        }
        Port::Protocol(name) => Some(name.is_empty() || *name == transport_name(protocol).to_uppercase()),
        Port::Icmp { is_v6, kind } => match kind {
            _ if protocol != ICMP[usize::from(*is_v6)] => Some(false),
            Ok(kind) => what.icmp_type.map(|of| of == *kind),
            Err(_) => None,
        },
    }
}

fn spelled(port: &Port) -> String {
    let of = |protocol: &Option<u8>| {
        protocol.map_or_else(|| "any protocol's".to_owned(), |number| transport_name(number).to_uppercase())
    };
    match port {
        Port::Range { protocol, first: 0, last: u16::MAX } => of(protocol),
        Port::Range { protocol, first, last } if first == last => format!("{} {first}", of(protocol)),
        Port::Range { protocol, first, last } => format!("{} {first}-{last}", of(protocol)),
        Port::Named { protocol, name } => format!("{} port named {}", of(protocol), short(name)),
        Port::Protocol(name) if name.is_empty() => "any protocol".to_owned(),
        Port::Protocol(name) => format!("protocol {}", short(name)),
        Port::Icmp { is_v6, kind } => {
            let kind = kind.as_ref().map_or_else(|name| short(name).into_owned(), ToString::to_string);
            format!("{} type {kind}", if *is_v6 { "ICMPv6" } else { "ICMP" })
        }
    }
}

fn packet(protocol: u8, what: &What) -> String {
    let name = transport_name(protocol).to_uppercase();
    match (what.port.filter(|_| !ICMP.contains(&protocol)), what.icmp_type) {
        (Some(port), _) => format!("{name} {port}"),
        (None, Some(kind)) if ICMP.contains(&protocol) => format!("{name} type {kind}"),
        _ => name,
    }
}

/// The first few of a list.
fn some(list: &[impl AsRef<str>]) -> String {
    let mut text = list.iter().take(TOLD).map(|one| short(one.as_ref())).collect::<Vec<_>>().join(", ");
    if list.len() > TOLD {
        text += &format!(" and {} more", list.len() - TOLD);
    }
    text
}

/// No longer than one wants to read.
fn short(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONG) {
        Some((end, _)) => Cow::Owned(format!("{} ...", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests;
