//! Puts names to a drop: a pure function of the drop and the inventory.
//!
//! A packet in a pod's network namespace is that pod's, whatever its addresses say: nobody outside can get there by a
//! false address. Elsewhere an address is whose it was at the time of the drop. Where NAT changed an end, that end is also
//! looked for in the tuples of the packet's conntrack entry: a masqueraded packet has its node's address on the wire, and is
//! its pod's all the same.

use super::host::Host;
use super::inventory::{Inventory, Known};
use super::object::{Cgroup, Flow, Name, Protocol, Service, Virtual};
use crate::event::model::{Drop, Endpoint, K8s, ServiceBy, Timestamp};
use crate::filter::Protocol as Wire;
use std::net::{IpAddr, SocketAddr};

/// Protocols that IPVS has services of, by their IP protocol numbers.
const TCP: Protocol = 6;
const UDP: Protocol = 17;
const SCTP: Protocol = 132;

/// Names all ends of a drop. `ipvs` says what IPVS has of a flow.
pub fn name(drop: &mut Drop, inventory: &Inventory, host: &Host, ipvs: &dyn Fn(&Flow) -> Option<Virtual>) {
    let asked = Asked { inventory, host, time: drop.time, protocol: protocol(drop) };
    let netns = drop.network.netns.filter(|netns| Some(*netns) != host.netns);
    let local = local_end(drop);
    let [sources, destinations] = ends(drop);
    let is_reply = replies(drop);
    let source = asked.who(&sources, netns, local == Some(Local::Source));
    let destination = asked.who(&destinations, netns, local == Some(Local::Destination));
    let dialled = if is_reply { &sources } else { &destinations };
    let service = asked
        .service(drop, dialled)
        .map(|service| (service, is_reply))
        .or_else(|| flows(drop).find_map(|flow| asked.by_ipvs(ipvs(&flow)?)))
        .or_else(|| Some((asked.by_backend(dialled.first()?)?, is_reply)));
    let (mut source, mut destination) = (source, destination);
    if let Some((service, is_source)) = service {
        let target = if is_source { &mut source } else { &mut destination };
        service.put(target.get_or_insert_default());
    }
    (drop.source.k8s, drop.destination.k8s) = (source, destination);
    let others = drop.original.iter_mut().flat_map(|tuple| [&mut tuple.source, &mut tuple.destination]);
    let inner = drop.inner.iter_mut().flat_map(|inner| [&mut inner.source, &mut inner.destination]);
    for end in others.chain(inner) {
        end.k8s = asked.alone(end);
    }
}

/// The flows that IPVS may know a drop by: the packet's, and those of its conntrack entry.
pub fn flows(drop: &Drop) -> impl Iterator<Item = Flow> + use<> {
    let protocol = protocol(drop).filter(|protocol| [TCP, UDP, SCTP].contains(protocol));
    let netns = drop.network.netns;
    let [sources, destinations] = ends(drop);
    let mut flows: Vec<Flow> = Vec::new();
    for (source, destination) in sources.iter().zip(&destinations) {
        let whole = |end: &Endpoint| Some(SocketAddr::new(end.address?, end.port?));
        let flow = (|| {
            Some(Flow {
                netns,
                protocol: protocol?,
                source: whole(source)?,
                destination: whole(destination)?,
            })
        })();
        flows.extend(flow.filter(|flow| !flows.contains(flow)));
    }
    flows.into_iter()
}

/// True if nothing surer than IPVS told the service of a drop that was named.
#[must_use]
pub fn is_open_to_ipvs(drop: &Drop) -> bool {
    let by = [&drop.source, &drop.destination].into_iter().filter_map(|end| end.k8s.as_ref()?.service_by);
    by.into_iter().all(|by| matches!(by, ServiceBy::Ipvs | ServiceBy::Endpoint))
}

/// Which end of a packet is in its network namespace for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    Source,
    Destination,
}

/// What netfilter's OUTPUT hook sees is sent here, what INPUT sees or a socket gets is received here.
fn local_end(drop: &Drop) -> Option<Local> {
    let hook = drop.drop.netfilter.as_ref().and_then(|netfilter| netfilter.hook.as_deref());
    match hook {
        Some("OUTPUT") => Some(Local::Source),
        Some("INPUT") => Some(Local::Destination),
        None if drop.network.netns_by.as_deref() == Some("receiving-socket") => Some(Local::Destination),
        _ => None,
    }
}

fn replies(drop: &Drop) -> bool {
    drop.conntrack.as_ref().is_some_and(|entry| entry.direction.as_deref() == Some("reply"))
}

fn protocol(drop: &Drop) -> Option<Protocol> {
    match drop.network.transport.as_deref().and_then(Wire::of_transport)? {
        Wire::Transport(number) => Some(number),
        Wire::Network(_) => None,
    }
}

/// All that each end is called, on the wire first, in the packet's direction: source, destination.
fn ends(drop: &Drop) -> [Vec<Endpoint>; 2] {
    let mut sources = vec![drop.source.clone()];
    let mut destinations = vec![drop.destination.clone()];
    if let Some(entry) = &drop.conntrack {
        let (original, reply) = (&entry.original, &entry.reply);
        if replies(drop) {
            sources.extend([original.destination.clone(), reply.source.clone()]);
            destinations.extend([original.source.clone(), reply.destination.clone()]);
        } else {
            sources.extend([original.source.clone(), reply.destination.clone()]);
            destinations.extend([original.destination.clone(), reply.source.clone()]);
        }
    }
    [sources, destinations]
}

struct Asked<'a> {
    inventory: &'a Inventory,
    host: &'a Host,
    time: Timestamp,
    protocol: Option<Protocol>,
}

/// A service, and how it is known.
struct Found {
    names: Vec<Name>,
    by: ServiceBy,
}

impl Found {
    fn of(service: &Service, by: ServiceBy) -> Self {
        Self { names: vec![service.name.clone()], by }
    }

    fn put(self, k8s: &mut K8s) {
        let short = |name: &Name, k8s: &K8s| match &k8s.namespace {
            Some(namespace) if *namespace != name.namespace => name.to_string(),
            _ => name.name.clone(),
        };
        match self.names.as_slice() {
            [one] => {
                k8s.service = Some(short(one, k8s));
                k8s.namespace.get_or_insert_with(|| one.namespace.clone());
            }
            several => k8s.services = several.iter().map(|name| short(name, k8s)).collect(),
        }
        k8s.service_by = Some(self.by);
    }
}

impl Asked<'_> {
    /// Whose an end is. `netns` is the drop's, unless that is the node's; `is_local` if the end is in there for certain.
    fn who(&self, ends: &[Endpoint], netns: Option<u32>, is_local: bool) -> Option<K8s> {
        let wire = ends.first();
        let stays = wire.and_then(|end| end.address).is_some_and(stays_in_its_netns);
        if let Some(netns) = netns
            && (is_local || stays)
            && let Some(found) = self.inside(netns)
        {
            return Some(found);
        }
        // Link-local addresses are everybody's.
        let known = || ends.iter().filter(|end| !end.address.is_none_or(stays_in_its_netns));
        let pod = known().find_map(|end| self.inventory.pod_at(end.address?, self.time));
        if let Some(pod) = pod {
            return Some(self.of_pod(pod));
        }
        let first = known().find_map(|end| self.alone(end));
        first.or_else(|| self.of_socket(wire?, is_local && netns.is_none()))
    }

    /// Whose a netns is.
    fn inside(&self, netns: u32) -> Option<K8s> {
        if let Some(pod) = self.inventory.pod_in(netns, self.time) {
            return Some(self.of_pod(pod));
        }
        self.of_cgroup(&self.inventory.group_in(netns, self.time)?.cgroup)
    }

    /// Whose an address is, taken for itself.
    fn alone(&self, end: &Endpoint) -> Option<K8s> {
        let address = end.address?;
        if let Some(pod) = self.inventory.pod_at(address, self.time) {
            return Some(self.of_pod(pod));
        }
        if let Some(group) = self.inventory.group_at(address, self.time) {
            return self.of_cgroup(&group.cgroup);
        }
        if let Some(service) = self.dialled(end) {
            let Name { namespace, name } = &service.name;
            return Some(K8s {
                namespace: Some(namespace.clone()),
                service: Some(name.clone()),
                service_by: Some(ServiceBy::Address),
                ..K8s::default()
            });
        }
        let node = self.inventory.node_at(address);
        let is_own =
            self.host.addresses.contains(&address) || node.is_some_and(|node| node == self.host.name);
        let process = if is_own { self.of_socket(end, true) } else { None };
        process.or_else(|| Some(K8s { node: Some(node?.to_owned()), ..K8s::default() }))
    }

    /// The process on this node that has a port.
    fn of_socket(&self, end: &Endpoint, is_here: bool) -> Option<K8s> {
        let cgroup = self.inventory.socket(self.protocol?, end.port?).filter(|_| is_here)?;
        let mut found = self.of_cgroup(cgroup)?;
        found.node.get_or_insert_with(|| self.host.name.clone());
        Some(found)
    }

    fn of_cgroup(&self, cgroup: &Cgroup) -> Option<K8s> {
        if let Some(pod) = cgroup.pod.as_ref().and_then(|uid| self.inventory.pod_of(uid)) {
            return Some(self.of_pod(pod));
        }
        let container = cgroup.container_name.as_ref().or(cgroup.container.as_ref()).cloned();
        let unit = cgroup.unit.clone().filter(|_| container.is_none());
        (container.is_some() || unit.is_some()).then(|| K8s { container, unit, ..K8s::default() })
    }

    fn of_pod(&self, pod: &Known) -> K8s {
        K8s {
            namespace: Some(pod.name.namespace.clone()),
            pod: Some(pod.name.name.clone()),
            workload: self.inventory.workload(pod),
            node: pod.node.clone(),
            ..K8s::default()
        }
    }

    /// The service whose address or node port that is.
    fn dialled(&self, end: &Endpoint) -> Option<&Service> {
        let address = end.address?;
        let protocol = self.protocol.unwrap_or(0);
        let by_address = self.inventory.service_at(address, protocol, end.port);
        by_address.or_else(|| {
            let is_node = self.inventory.node_at(address).is_some() || self.host.addresses.contains(&address);
            self.inventory.service_at_node(protocol, end.port.filter(|_| is_node)?)
        })
    }

    /// The service that a packet goes to, or comes from, where an address or a rule tells. `ends` is all that this end is
    /// called.
    fn service(&self, drop: &Drop, ends: &[Endpoint]) -> Option<Found> {
        let [wire, original, ..] = ends else {
            let wire = ends.first()?;
            let by_address = self.dialled(wire).map(|service| Found::of(service, ServiceBy::Address));
            return by_address.or_else(|| self.by_rule(drop));
        };
        let is_same = (wire.address, wire.port) == (original.address, original.port);
        let by = if is_same { ServiceBy::Address } else { ServiceBy::Original };
        let dialled = self.dialled(original).map(|service| Found::of(service, by));
        let by_address = || self.dialled(wire).map(|service| Found::of(service, ServiceBy::Address));
        dialled.or_else(by_address).or_else(|| self.by_rule(drop))
    }

    /// The service of the virtual address that the client dialled, and whether it is the packet's source.
    fn by_ipvs(&self, found: Virtual) -> Option<(Found, bool)> {
        let Virtual { address, is_reply } = found;
        let dialled = Endpoint { address: Some(address.ip()), port: Some(address.port()), k8s: None };
        self.dialled(&dialled).map(|service| (Found::of(service, ServiceBy::Ipvs), is_reply))
    }

    /// kube-proxy's rules say in a comment whose they are: `namespace/name:port has no endpoints`.
    fn by_rule(&self, drop: &Drop) -> Option<Found> {
        let text = drop.drop.netfilter.as_ref()?.text.as_deref()?;
        let name = in_comment(text)?;
        let is_known = self.inventory.services().any(|service| service.name == name);
        // A comment says what it likes.
        is_known.then(|| Found { names: vec![name], by: ServiceBy::Rule })
    }

    fn by_backend(&self, wire: &Endpoint) -> Option<Found> {
        let names = self.inventory.services_of(wire.address?, self.protocol?, wire.port?);
        let names: Vec<Name> = names.into_iter().cloned().collect();
        (!names.is_empty()).then_some(Found { names, by: ServiceBy::Endpoint })
    }
}

/// The service that the comment of a rule of kube-proxy names.
fn in_comment(text: &str) -> Option<Name> {
    let (_, comment) = text.split_once("--comment ").or_else(|| text.split_once("comment "))?;
    let comment = match comment.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => comment.split(' ').next()?,
    };
    let word = comment.split(' ').next()?;
    let (namespace, rest) = word.split_once('/')?;
    let name = rest.split(':').next()?;
    (!namespace.is_empty() && !name.is_empty()).then(|| Name::new(namespace, name))
}

/// True for addresses that mean something in one network namespace, or on one link, only.
fn stays_in_its_netns(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_unspecified() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
