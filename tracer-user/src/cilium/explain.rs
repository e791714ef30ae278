//! From what Cilium left in a packet, and what its maps say now, to the answer.

use super::block::Block;
use super::codes;
use super::identity::{Identities, Identity, is_world};
use super::maps::{
    Authentication, Direction, LocalEndpoint, Maps, PolicyEntry, PolicyMap, Ports, Resolved, Unread, network,
};
use super::model::{Cilium, Entry, VerdictBy};
use super::policy::{self, Question, Verdict};
use crate::event::model::Timestamp;
use crate::event::packet::transport_name;
use std::net::IpAddr;
use std::sync::Arc;

/// How many of the nearest entries are told.
const NEAREST: usize = 5;

/// What is known of a dropped packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Where it came from, as it was at the drop.
    pub source: Option<IpAddr>,
    /// Where it was to go, likewise: behind a service's address.
    pub destination: Option<IpAddr>,
    /// Its IP protocol; behind IPv6's extension headers.
    pub protocol: Option<u8>,
    /// Its destination port.
    pub port: Option<u16>,
    /// Its ICMP type.
    pub icmp_type: Option<u8>,
    /// Index of the interface, if that is in the network namespace of Cilium's agent.
    pub interface: Option<u32>,
    /// When it was dropped.
    pub time: Timestamp,
}

/// The answer for a drop that Cilium said something of. `program` is the one on the hook.
pub fn explain(
    block: &Block,
    packet: &Packet,
    program: Option<&str>,
    maps: &mut impl Maps,
    identities: &impl Identities,
) -> Cilium {
    let code = codes::find(block.code);
    let named = |id| Some(id).filter(|id| *id != 0).map(|id| Identity::named(id, identities));
    let mut answer = Cilium {
        code: Some(block.code),
        name: code.map(|code| code.name.to_owned()),
        message: code.map_or_else(|| format!("drop code {}", block.code), |code| code.text.to_owned()),
        extended_error: Some(block.extended).filter(|error| *error != 0),
        extended_message: codes::extended(block.code, block.extended),
        verdict_by: Some(VerdictBy::of(block.code)),
        source_identity: named(block.source_identity),
        destination_identity: named(block.destination_identity),
        program: program.map(str::to_owned),
        file: block.source.map(|source| codes::file(source.file)),
        line: block.source.map(|source| source.line),
        ..Cilium::default()
    };
    let endpoints = maps.endpoints().unwrap_or_else(|error| {
        not_read(&mut answer, &error);
        Arc::default()
    });
    let side = side(block, packet, &endpoints);
    answer.endpoint = side.map(|(endpoint, _)| endpoint);
    answer.direction = side.map(|(_, direction)| direction);
    if let Some((endpoint, direction)) = side.filter(|_| VerdictBy::of(block.code) != VerdictBy::Other) {
        let mut peer = Peer::of(block, packet, direction);
        let found = resolve(&mut answer, &peer, direction, maps, identities);
        peer.now = found.map(|found| found.identity);
        if peer.identity == 0 {
            // Cilium did not say.
            peer.identity = peer.now.unwrap_or(0);
        }
        // If it is another one's address by now, so may be the node.
        let is_same = |found: &Resolved| found.identity == peer.identity;
        peer.is_here = found.filter(is_same).map(|found| found.tunnel.is_none());
        match maps.policy(endpoint) {
            Ok(map) => judge(&mut answer, &map, &peer, packet, (endpoint, direction), identities),
            Err(error) => not_read(&mut answer, &error),
        }
        if answer.verdict_by == Some(VerdictBy::Auth) {
            add_authentication(&mut answer, block, &peer, direction, packet.time, maps);
        }
    }
    answer
}

/// The answer for a drop on a hook with a Cilium program that left nothing in the packet.
#[must_use]
pub fn without_block(program: &str) -> Cilium {
    Cilium {
        message: format!("dropped by Cilium's program {program}, which left no metadata"),
        program: Some(program.to_owned()),
        notes: vec![
            "either Cilium's drop notifications are off (the agent's option --bpf-events-drop-enabled), or its \
             bandwidth manager dropped it, which leaves none (EDT horizon); `cilium-dbg bpf metrics list` counts drops \
             by reason"
                .to_owned(),
        ],
        ..Cilium::default()
    }
}

/// Says what could not be read: once, if it is all for the same reason.
fn not_read(answer: &mut Cilium, error: &Unread) {
    let error = error.to_string();
    if !answer.unread.contains(&error) {
        answer.unread.push(error);
    }
}

/// Which endpoint it was, and which way the packet went. The kernel's reason doesn't tell: a pod's ingress policy runs
/// on whatever hook the packet came by.
fn side(block: &Block, packet: &Packet, endpoints: &[LocalEndpoint]) -> Option<(u32, Direction)> {
    if block.endpoint != 0 {
        let is_of = |address: Option<IpAddr>| {
            endpoints.iter().any(|it| u32::from(it.id) == block.endpoint && Some(it.address) == address)
        };
        // The one path that names the endpoint that the packet was about to leave.
        let leaves = is_of(packet.source) && !is_of(packet.destination);
        return Some((block.endpoint, if leaves { Direction::Egress } else { Direction::Ingress }));
    }
    // A pod's own interface; the identity proves that it is not another's of the same number.
    let is_pods = |it: &&LocalEndpoint| {
        let is_same = it.identity.is_none_or(|identity| identity == block.source_identity);
        !it.is_host && Some(it.interface) == packet.interface && it.interface != 0 && it.id != 0 && is_same
    };
    // A policy that names no endpoint is that of the pod that sent the packet, whose address and identity it has.
    let is_policys = VerdictBy::of(block.code) != VerdictBy::Other;
    let is_senders = |it: &&LocalEndpoint| {
        let is_same = it.identity == Some(block.source_identity) && Some(it.address) == packet.source;
        is_policys && !it.is_host && it.id != 0 && is_same
    };
    let found = endpoints.iter().find(is_pods).or_else(|| endpoints.iter().find(is_senders));
    found.map(|it| (u32::from(it.id), Direction::Egress))
}

/// The other side.
struct Peer {
    /// Who it was for the packet; 0 if that is not known.
    identity: u32,
    address: Option<IpAddr>,
    /// Who it is in the ipcache now.
    now: Option<u32>,
    /// True if the ipcache has it on this node, as the datapath takes that for authentication: without a tunnel endpoint.
    is_here: Option<bool>,
}

impl Peer {
    fn of(block: &Block, packet: &Packet, direction: Direction) -> Self {
        let (identity, address) = match direction {
            Direction::Ingress => (block.source_identity, packet.source),
            Direction::Egress => (block.destination_identity, packet.destination),
        };
        Self { identity, address, now: None, is_here: None }
    }
}

/// Says by what the peer's address is resolved, and what is wrong with that. Gives what the ipcache has of it now.
fn resolve(
    answer: &mut Cilium,
    peer: &Peer,
    direction: Direction,
    maps: &mut impl Maps,
    identities: &impl Identities,
) -> Option<Resolved> {
    let address = peer.address?;
    let found = match maps.resolve(address) {
        Ok(found) => found,
        Err(error) => {
            not_read(answer, &error);
            return None;
        }
    };
    let was = Identity::named(peer.identity, identities);
    let prefix = found.map(|found| network(address, found.bits));
    // Without any entry the datapath takes it for the world (bpf/lib/eps.h and its callers).
    let has_own = found.is_some_and(|found| found.bits != 0);
    if is_world(peer.identity) && !has_own {
        let by = match &prefix {
            Some(prefix) => format!("is resolved by {prefix} alone"),
            None => "is resolved by nothing".to_owned(),
        };
        answer.notes.push(format!(
            "{address} has no entry of its own in Cilium's ipcache: it {by}, so it counts as {was}; if it is a pod's \
             address, no Cilium manages that pod, for example because its node runs none, and then no pod or namespace \
             selector matches it, whatever its labels are: only ipBlock, CIDR and world rules do"
        ));
    } else if let Some(now) = found.filter(|now| peer.identity != 0 && now.identity != peer.identity) {
        let now = Identity::named(now.identity, identities);
        answer.notes.push(format!(
            "{address} was {was} for this packet, but is {now} in this node's ipcache now: Cilium learned it since, or \
             the packet brought its identity along, by a tunnel"
        ));
    }
    match direction {
        Direction::Ingress => answer.source_prefix = prefix,
        Direction::Egress => answer.destination_prefix = prefix,
    }
    found
}

/// Looks the packet up in the endpoint's policy.
fn judge(
    answer: &mut Cilium,
    map: &PolicyMap,
    peer: &Peer,
    packet: &Packet,
    (endpoint, direction): (u32, Direction),
    identities: &impl Identities,
) {
    if !map.is_complete {
        answer.unread.push(format!(
            "the policy map of endpoint {endpoint} could not be read whole, so whether it allows the packet now is not \
             known"
        ));
    }
    let port = packet.protocol.and_then(|protocol| {
        policy::port(protocol, packet.port, packet.icmp_type).map(|port| (protocol, port))
    });
    let Some((protocol, port)) = port else {
        answer.notes.push(format!(
            "the packet's {} is not known, so it was not looked up in the policy map of endpoint {endpoint}",
            if packet.protocol.is_some() { "port" } else { "protocol" }
        ));
        return;
    };
    let question = Question { peer: peer.identity, direction, protocol, port };
    let entry = |entry: &PolicyEntry| described(entry, identities);
    answer.nearest = policy::nearest(map, &question, NEAREST).into_iter().map(entry).collect();
    if !map.is_complete {
        return;
    }
    if peer.identity == 0 {
        answer
            .notes
            .push("who the other side is to Cilium is not known, so no policy entry is blamed".to_owned());
        return;
    }
    let what = spelled(protocol, port);
    let note = match policy::look_up(map, &question) {
        Verdict::Allowed(_) => {
            answer.allowed_now = Some(true);
            Some(
                "an entry of the policy map allows the packet now: the policy changed since, or was being made at \
                 the drop"
                    .to_owned(),
            )
        }
        Verdict::Authenticate(wants, auth) => {
            answer.entry = Some(entry(wants));
            let says = answer.verdict_by == Some(VerdictBy::Auth);
            (!says).then(|| format!("an entry allows the packet now with authentication (type {auth})"))
        }
        Verdict::Denied(denies) => {
            answer.entry = Some(entry(denies));
            answer.allowed_now = Some(false);
            let says = answer.verdict_by == Some(VerdictBy::DenyEntry);
            (!says).then(|| {
                "an entry of the policy map denies the packet now: the policy changed since".to_owned()
            })
        }
        Verdict::Nothing => {
            answer.allowed_now = Some(false);
            let is_of_direction = |entry: &PolicyEntry| !entry.is_deny && entry.direction == direction;
            Some(if answer.verdict_by != Some(VerdictBy::DefaultDeny) {
                format!(
                    "the policy map of endpoint {endpoint} has no such entry any more, and none that allows the \
                     packet: the policy changed since"
                )
            } else if map.entries.is_empty() {
                format!(
                    "the policy map of endpoint {endpoint} is empty, which denies everything: it may be being made"
                )
            } else if !map.entries.iter().any(is_of_direction) {
                format!("no entry of endpoint {endpoint} allows any {direction}: it is denied by default")
            } else {
                let peer = Identity::named(peer.identity, identities);
                let whence = match direction {
                    Direction::Ingress => "from",
                    Direction::Egress => "to",
                };
                format!(
                    "no {direction} entry of endpoint {endpoint} allows {what} {whence} {peer}: it is denied by default"
                )
            })
        }
    };
    answer.notes.extend(note);
    let anew = peer.now.filter(|now| *now != peer.identity);
    if let Some(now) = anew
        && let Verdict::Allowed(_) = policy::look_up(map, &Question { peer: now, ..question })
    {
        let now = Identity::named(now, identities);
        answer.notes.push(format!("as {now}, which it is now, the policy map allows it"));
    }
}

/// Says whether the peers had authenticated in the way that was asked for. There is an entry for each node that has such
/// pods, and the datapath takes the one of the peer's. That is number 0 where it is this one; what number another has is
/// not known.
fn add_authentication(
    answer: &mut Cilium,
    block: &Block,
    peer: &Peer,
    direction: Direction,
    time: Timestamp,
    maps: &mut impl Maps,
) {
    let told = match maps.authentications() {
        Ok(told) => told,
        Err(error) => return not_read(answer, &error),
    };
    let local = match direction {
        Direction::Ingress => block.destination_identity,
        Direction::Egress => block.source_identity,
    };
    // Until 1.14 was out the packet did not say how; then any way counts.
    let kind = u8::try_from(block.extended).ok().filter(|kind| *kind != 0);
    let is_theirs = |it: &&Authentication| {
        it.local == local
            && it.remote == peer.identity
            && kind.is_none_or(|kind| it.kind == kind)
            && peer.is_here.is_none_or(|is_here| is_here == (it.node == 0))
    };
    let all: Vec<_> = told.entries.iter().filter(is_theirs).collect();
    let place = match peer.is_here {
        Some(true) => " on this node",
        Some(false) => " on other nodes",
        None => "",
    };
    let pair = format!("identity {local} with identity {}{place}", peer.identity);
    let Some(last) = all.iter().max_by_key(|it| it.expires) else {
        if told.is_complete {
            answer.notes.push(format!(
                "cilium_auth_map has no entry of {pair}: they have not authenticated to each other yet"
            ));
        } else {
            answer.unread.push(
                "cilium_auth_map could not be read whole, so whether the peers had authenticated is not known"
                    .to_owned(),
            );
        }
        return;
    };
    let which = match all.len() {
        1 => format!("the authentication of {pair}"),
        several => format!("the latest of {several} authentications of {pair}"),
    };
    let node = match (peer.is_here, last.node) {
        (Some(true), _) => String::new(),
        (_, 0) => " (this node)".to_owned(),
        (_, node) => format!(" (node id {node})"),
    };
    let seconds = (last.expires.0 - time.0) / 1_000_000_000;
    let is_sure = peer.is_here == Some(true);
    let note = if last.expires <= time {
        let ago = seconds.unsigned_abs();
        let unless =
            if is_sure { "" } else { "; whether that is the node of the packet's peer is not known" };
        format!("{which}{node} had expired {ago} s before the drop (cilium_auth_map){unless}")
    } else {
        let unless = if is_sure { "" } else { ", or the packet's peer is on another node" };
        format!(
            "{which}{node} is valid for {seconds} s after the drop (cilium_auth_map): they have authenticated since{unless}"
        )
    };
    answer.notes.push(note);
}

/// An entry in the contract's words.
fn described(entry: &PolicyEntry, identities: &impl Identities) -> Entry {
    let identity = Some(entry.identity).filter(|id| *id != 0);
    let last = entry.ports.filter(|ports| ports.bits != 16).map(Ports::last);
    Entry {
        identity: identity.map(|id| Identity::named(id, identities)),
        protocol: entry.protocol.map(|protocol| transport_name(protocol).into_owned()),
        port: entry.ports.map(|ports| ports.first),
        port_last: last,
        deny: entry.is_deny,
        auth: Some(entry.auth).filter(|auth| *auth != 0),
    }
}

/// A protocol and its port: `9999/TCP`, `ICMP type 8`, `GRE`.
fn spelled(protocol: u8, port: u16) -> String {
    let name = transport_name(protocol).to_uppercase();
    match protocol {
        1 | 58 => format!("{name} type {port}"),
        6 | 17 | 132 => format!("{port}/{name}"),
        _ if name.parse::<u8>().is_ok() => format!("protocol {name}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{BLOCK, allow};
    use super::super::identity::Nobody;
    use super::super::maps::{Authentications, PolicyLayout};
    use super::*;
    use std::path::PathBuf;

    /// What the maps say; `None` if they can't be read.
    #[derive(Clone, Default)]
    struct Fake {
        endpoints: Option<Vec<LocalEndpoint>>,
        entries: Option<Vec<PolicyEntry>>,
        is_partial: bool,
        resolved: Option<Option<Resolved>>,
        authentications: Option<Authentications>,
    }

    fn unread(name: &str) -> Unread {
        Unread::Absent { looked: vec![PathBuf::from(name)] }
    }

    impl Maps for Fake {
        fn endpoints(&mut self) -> Result<Arc<[LocalEndpoint]>, Unread> {
            self.endpoints.clone().map(Arc::from).ok_or_else(|| unread("endpoints"))
        }

        fn policy(&mut self, endpoint: u32) -> Result<Arc<PolicyMap>, Unread> {
            assert_eq!(endpoint, 2636);
            let entries = self.entries.clone().ok_or_else(|| unread("policy"))?;
            Ok(Arc::new(PolicyMap { layout: PolicyLayout::V18, entries, is_complete: !self.is_partial }))
        }

        fn resolve(&mut self, _: IpAddr) -> Result<Option<Resolved>, Unread> {
            self.resolved.ok_or_else(|| unread("ipcache"))
        }

        fn authentications(&mut self) -> Result<Arc<Authentications>, Unread> {
            self.authentications.clone().map(Arc::new).ok_or_else(|| unread("auth"))
        }
    }

    const SECOND: i128 = 1_000_000_000;

    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    fn entry(identity: u32, port: Option<u16>) -> PolicyEntry {
        allow(identity, port.map(|_| 6), port)
    }

    const POD: LocalEndpoint = LocalEndpoint {
        address: IpAddr::V4(std::net::Ipv4Addr::new(10, 11, 1, 5)),
        id: 2636,
        interface: 12,
        is_host: false,
        identity: Some(12345),
    };

    fn maps(entries: &[PolicyEntry]) -> Fake {
        Fake {
            endpoints: Some(vec![POD]),
            entries: Some(entries.to_vec()),
            is_partial: false,
            resolved: Some(Some(Resolved { identity: 2, tunnel: None, bits: 0 })),
            authentications: Some(Authentications { entries: vec![], is_complete: true }),
        }
    }

    fn to_pod() -> Packet {
        Packet {
            source: address("10.244.3.7"),
            destination: address("10.11.1.5"),
            protocol: Some(6),
            port: Some(9999),
            icmp_type: None,
            interface: Some(2),
            time: Timestamp(1_000 * SECOND),
        }
    }

    struct Labels;

    impl Identities for Labels {
        fn labels(&self, id: u32) -> Option<Vec<String>> {
            (id == 4711).then(|| vec!["k8s:app=frontend".to_owned()])
        }
    }

    fn of(block: &Block, packet: &Packet, maps: &Fake) -> Cilium {
        explain(block, packet, None, &mut maps.clone(), &Nobody)
    }

    #[test]
    fn a_pod_of_a_node_without_cilium() {
        let mut maps = maps(&[entry(4711, Some(8080)), entry(1, None)]);
        let answer = explain(&BLOCK, &to_pod(), Some("cil_from_netdev"), &mut maps, &Labels);
        let world = Identity { id: 2, labels: Some(vec!["reserved:world".to_owned()]) };
        assert_eq!(
            (answer.code, answer.name.as_deref(), &*answer.message),
            (Some(133), Some("POLICY"), "Policy denied")
        );
        assert_eq!((answer.endpoint, answer.direction), (Some(2636), Some(Direction::Ingress)));
        assert_eq!(answer.source_identity, Some(world));
        assert_eq!(answer.destination_identity, Some(Identity { id: 12345, labels: None }));
        assert_eq!(answer.source_prefix.as_deref(), Some("0.0.0.0/0"));
        assert_eq!((answer.verdict_by, answer.allowed_now), (Some(VerdictBy::DefaultDeny), Some(false)));
        assert_eq!((answer.file.as_deref(), answer.line), (Some("bpf_lxc.c"), Some(2121)));
        assert_eq!(answer.program.as_deref(), Some("cil_from_netdev"));
        assert_eq!((answer.policies, answer.entry), (None, None));
        let nearest = |at: usize| &answer.nearest[at];
        let frontend = Identity { id: 4711, labels: Some(vec!["k8s:app=frontend".to_owned()]) };
        assert_eq!(nearest(1).identity, Some(frontend));
        assert_eq!((nearest(1).protocol.as_deref(), nearest(1).port), (Some("tcp"), Some(8080)));
        assert_eq!(nearest(0).identity.as_ref().map(|it| it.id), Some(1));
        // Identity first, then the port.
        assert_eq!(answer.notes.len(), 2);
        assert!(answer.notes[0].starts_with(
            "10.244.3.7 has no entry of its own in Cilium's ipcache: it is resolved by 0.0.0.0/0 alone, so it counts \
             as identity 2 (reserved:world); if it is a pod's address, no Cilium manages that pod"
        ));
        assert_eq!(
            answer.notes[1],
            "no ingress entry of endpoint 2636 allows 9999/TCP from identity 2 (reserved:world): it is denied by default"
        );
        assert!(answer.unread.is_empty());
    }

    #[test]
    fn the_address_is_resolved_by_more_or_otherwise_or_not_at_all() {
        let with = |source_identity, resolved| {
            let answer = of(
                &Block { source_identity, ..BLOCK },
                &to_pod(),
                &Fake { resolved: Some(resolved), ..maps(&[entry(4711, None)]) },
            );
            (answer.source_prefix, answer.notes[0].clone())
        };
        let (prefix, note) = with(9, None);
        assert!(
            prefix.is_none() && note.contains("is resolved by nothing, so it counts as identity 9"),
            "{note}"
        );
        let own = |identity| Some(Resolved { identity, tunnel: None, bits: 32 });
        let (prefix, note) = with(4712, own(4712));
        assert_eq!(prefix.as_deref(), Some("10.244.3.7/32"));
        assert!(note.starts_with("no ingress entry"), "{note}");
        // With its new identity it would pass.
        let learned = Fake { resolved: Some(own(4711)), ..maps(&[entry(4711, None)]) };
        let notes = of(&BLOCK, &to_pod(), &learned).notes;
        assert_eq!(
            (notes.len(), &*notes[2]),
            (3, "as identity 4711, which it is now, the policy map allows it")
        );
        let (_, note) = with(2, own(4712));
        let expected = "10.244.3.7 was identity 2 (reserved:world) for this packet, but is identity 4712 in this node's ipcache now";
        assert!(note.starts_with(expected), "{note}");
    }

    /// What the pod sends, and is denied.
    fn from_pod() -> (Block, Packet) {
        let packet = Packet {
            source: address("10.11.1.5"),
            destination: address("10.244.3.7"),
            interface: Some(12),
            ..to_pod()
        };
        (Block { source_identity: 12345, destination_identity: 2, endpoint: 0, ..BLOCK }, packet)
    }

    #[test]
    fn which_way_it_went() {
        let (leaving, out) = from_pod();
        let is = |block: &Block, packet: &Packet| {
            let answer = of(block, packet, &maps(&[]));
            (answer.endpoint, answer.direction)
        };
        let egress = (Some(2636), Some(Direction::Egress));
        assert_eq!(is(&leaving, &out), egress);
        // Another interface, or none: a policy's verdict is the sender's.
        assert_eq!(is(&leaving, &Packet { interface: Some(13), ..out }), egress);
        assert_eq!(is(&leaving, &Packet { interface: None, ..out }), egress);
        let elsewhere = Packet { interface: None, source: address("10.11.1.6"), ..out };
        assert_eq!(is(&leaving, &elsewhere), (None, None));
        let error = Block { code: 169, ..leaving };
        assert_eq!(is(&error, &Packet { interface: None, ..out }), (None, None));
        // Another pod's identity.
        assert_eq!(is(&Block { source_identity: 7, ..leaving }, &out), (None, None));
        // The endpoint that it leaves.
        assert_eq!(is(&Block { endpoint: 2636, ..leaving }, &out), egress);
        assert_eq!(is(&BLOCK, &to_pod()), (Some(2636), Some(Direction::Ingress)));
    }

    #[test]
    fn egress_is_about_the_destination() {
        let (leaving, out) = from_pod();
        let allows = PolicyEntry { direction: Direction::Egress, ..entry(4711, Some(53)) };
        let answer = of(&leaving, &out, &maps(&[allows]));
        assert_eq!((answer.source_prefix, answer.destination_prefix.as_deref()), (None, Some("0.0.0.0/0")));
        assert_eq!(
            answer.notes[1],
            "no egress entry of endpoint 2636 allows 9999/TCP to identity 2 (reserved:world): it is denied by default"
        );
        // Cilium did not say who the peer is: the ipcache does.
        let unsaid = of(&Block { destination_identity: 0, ..leaving }, &out, &maps(&[allows]));
        assert_eq!((unsaid.destination_identity, unsaid.notes.len()), (None, 1));
        let nobody = Fake { resolved: Some(None), ..maps(&[allows]) };
        let unknown = of(&Block { destination_identity: 0, ..leaving }, &out, &nobody);
        assert_eq!((unknown.allowed_now, unknown.nearest.len()), (None, 1));
        assert_eq!(
            unknown.notes,
            ["who the other side is to Cilium is not known, so no policy entry is blamed"]
        );
        assert!(unsaid.notes[0].ends_with("to identity 2 (reserved:world): it is denied by default"));
    }

    #[test]
    fn what_the_map_says_now() {
        let last = |code, entries: &[PolicyEntry]| {
            let answer = of(&Block { code, ..BLOCK }, &to_pod(), &maps(entries));
            let entry = answer.entry.map(|it| (it.deny, it.auth));
            (answer.allowed_now, entry, answer.notes.get(1).cloned().unwrap_or_default())
        };
        let (allowed, _, note) = last(133, &[entry(0, None)]);
        assert!(
            allowed == Some(true) && note.starts_with("an entry of the policy map allows the packet now")
        );
        let deny = PolicyEntry { is_deny: true, ..entry(2, Some(9999)) };
        assert_eq!(last(181, &[deny]), (Some(false), Some((true, None)), String::new()));
        assert!(last(133, &[deny]).2.contains("denies the packet now"));
        let auth = PolicyEntry { auth: 1, ..entry(2, Some(9999)) };
        let yet = "cilium_auth_map has no entry of identity 12345 with identity 2 on this node: they have not authenticated to each other yet";
        assert_eq!(last(189, &[auth]), (None, Some((false, Some(1))), yet.to_owned()));
        assert!(last(133, &[auth]).2.contains("with authentication (type 1)"));
        assert!(last(181, &[entry(4711, None)]).2.contains("no such entry any more"));
        assert!(last(133, &[]).2.contains("is empty, which denies everything"));
        assert!(last(133, &[deny_all_else()]).2.contains("allows any ingress"));
    }

    #[test]
    fn who_has_authenticated() {
        let auth = PolicyEntry { auth: 1, ..entry(2, Some(9999)) };
        let at = |node, seconds| Authentication {
            local: 12345,
            remote: 2,
            node,
            kind: 1,
            expires: Timestamp(seconds * SECOND),
        };
        let block = Block { code: 189, extended: 1, ..BLOCK };
        // Where the ipcache has the peer: as whom, and behind which node.
        let note_of = |entries: &[Authentication], identity, tunnel| {
            let told = Authentications { entries: entries.to_vec(), is_complete: true };
            let resolved = Some(Some(Resolved { identity, tunnel, bits: 32 }));
            let maps = Fake { authentications: Some(told), resolved, ..maps(&[auth]) };
            of(&block, &to_pod(), &maps).notes.pop().unwrap()
        };
        let here = |entries: &[Authentication]| note_of(entries, 2, None);
        let elsewhere = |entries: &[Authentication]| note_of(entries, 2, address("192.0.2.7"));
        // It is another one's address by now.
        let unknown = |entries: &[Authentication]| note_of(entries, 4711, None);
        let yet = "they have not authenticated to each other yet";
        for note in [here(&[]), elsewhere(&[]), unknown(&[])] {
            assert!(note.ends_with(yet), "{note}");
        }
        // Another way, the other way round, other identities.
        let others = [
            Authentication { kind: 2, ..at(0, 2000) },
            Authentication { local: 2, remote: 12345, ..at(0, 2000) },
        ];
        assert!(here(&others).ends_with(yet), "{}", here(&others));
        // Of another node.
        assert!(here(&[at(5, 2000)]).ends_with(yet));
        assert!(elsewhere(&[at(0, 2000)]).ends_with(yet));
        assert_eq!(
            here(&[at(0, 965), at(5, 2000)]),
            "the authentication of identity 12345 with identity 2 on this node had expired 35 s before the drop \
             (cilium_auth_map)"
        );
        assert_eq!(
            here(&[at(0, 1010)]),
            "the authentication of identity 12345 with identity 2 on this node is valid for 10 s after the drop \
             (cilium_auth_map): they have authenticated since"
        );
        assert_eq!(
            elsewhere(&[at(5, 965), at(0, 2000)]),
            "the authentication of identity 12345 with identity 2 on other nodes (node id 5) had expired 35 s before the \
             drop (cilium_auth_map); whether that is the node of the packet's peer is not known"
        );
        assert_eq!(
            elsewhere(&[at(5, 1010), at(6, 900)]),
            "the latest of 2 authentications of identity 12345 with identity 2 on other nodes (node id 5) is valid for 10 s \
             after the drop (cilium_auth_map): they have authenticated since, or the packet's peer is on another node"
        );
        assert_eq!(
            unknown(&[at(0, 1010), at(6, 900)]),
            "the latest of 2 authentications of identity 12345 with identity 2 (this node) is valid for 10 s after the drop \
             (cilium_auth_map): they have authenticated since, or the packet's peer is on another node"
        );
        let cut = Fake {
            authentications: Some(Authentications { entries: vec![], is_complete: false }),
            ..maps(&[auth])
        };
        let answer = of(&block, &to_pod(), &cut);
        assert!(answer.unread[0].starts_with("cilium_auth_map could not be read whole"));
        // Where it isn't asked for, it isn't read.
        let none = Fake { authentications: None, ..maps(&[auth]) };
        assert_eq!(of(&block, &to_pod(), &none).unread.len(), 1);
        assert_eq!(of(&BLOCK, &to_pod(), &none).unread.len(), 0);
    }

    /// An entry of the other direction.
    fn deny_all_else() -> PolicyEntry {
        PolicyEntry { direction: Direction::Egress, ..entry(0, None) }
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let nothing = of(&BLOCK, &to_pod(), &Fake::default());
        assert_eq!((nothing.endpoint, nothing.direction), (Some(2636), Some(Direction::Ingress)));
        assert_eq!((nothing.allowed_now, nothing.source_prefix, nothing.nearest.len()), (None, None, 0));
        assert_eq!((nothing.unread.len(), nothing.notes.len()), (3, 0));

        // No map was found at all: said once.
        let mut none: Result<Fake, _> = Err(unread("/sys/fs/bpf/tc/globals"));
        let answer = explain(&BLOCK, &to_pod(), None, &mut none, &Nobody);
        let said =
            "no maps of Cilium's are pinned under /sys/fs/bpf/tc/globals: the BPF file system is not mounted";
        assert!(answer.unread.len() == 1 && answer.unread[0].starts_with(said), "{:?}", answer.unread);
        let mut found: Result<_, Unread> = Ok(maps(&[]));
        assert!(explain(&BLOCK, &to_pod(), None, &mut found, &Nobody).unread.is_empty());

        let partial = of(&BLOCK, &to_pod(), &Fake { is_partial: true, ..maps(&[entry(0, None)]) });
        assert_eq!((partial.allowed_now, partial.nearest.len(), partial.unread.len()), (None, 1, 1));

        let fragment = Packet { port: None, ..to_pod() };
        let answer = of(&BLOCK, &fragment, &maps(&[entry(0, None)]));
        assert_eq!((answer.allowed_now, answer.nearest.len()), (None, 0));
        assert!(answer.notes[1].starts_with("the packet's port is not known"));

        // No policy's verdict: the policy and the ipcache are not asked.
        let other = of(
            &Block { code: 155, ..BLOCK },
            &to_pod(),
            &Fake { endpoints: Some(vec![]), ..Fake::default() },
        );
        assert_eq!((other.verdict_by, &*other.message), (Some(VerdictBy::Other), "CT: Map insertion failed"));
        assert!(other.unread.is_empty());
        let unknown = of(&Block { code: 209, source: None, ..BLOCK }, &to_pod(), &maps(&[]));
        assert_eq!((unknown.name, &*unknown.message, unknown.file), (None, "drop code 209", None));
    }

    #[test]
    fn protocols_are_spelled() {
        assert_eq!([spelled(1, 8), spelled(47, 0), spelled(200, 0)], ["ICMP type 8", "GRE", "protocol 200"]);
        assert_eq!(spelled(17, 53), "53/UDP");
    }

    #[test]
    fn a_program_that_said_nothing() {
        let answer = without_block("cil_to_netdev");
        assert_eq!((answer.code, answer.verdict_by), (None, None));
        assert_eq!(answer.message, "dropped by Cilium's program cil_to_netdev, which left no metadata");
    }
}
