//! From the API's fields to [`Object`]s.

use super::{Found, Unreadable, limits, wire};
use crate::event::model::Timestamp;
use crate::identity::object::{
    Backend, Labels, Middle, Name, Namespace, Node, Object, Owner, Pod, Protocol, Service, ServicePort, Slice,
};
use std::net::IpAddr;

/// The label that names the service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) fn pod(wire: wire::Pod) -> Result<Found, Unreadable> {
    let wire::Pod { metadata, spec, status } = wire;
    let mut addresses = with_first(status.pod_ip, status.pod_ips.into_iter().map(|entry| entry.ip));
    if addresses.is_empty() && spec.host_network {
        addresses = with_first(status.host_ip, status.host_ips.into_iter().map(|entry| entry.ip));
    }
    let containers = spec.containers.into_iter().chain(spec.init_containers);
    let ports: Vec<_> = containers.flat_map(|container| container.ports).take(limits::PORTS).collect();
    let host_ports = ports
        .iter()
        .filter(|port| port.host_port != 0)
        .filter_map(|port| Some((protocol(port.protocol.as_deref())?, port.host_port)))
        .collect();
    let named_ports = ports
        .iter()
        .filter(|port| is_name(&port.name) && port.container_port != 0)
        .filter_map(|port| {
            Some((port.name.clone(), protocol(port.protocol.as_deref())?, port.container_port))
        })
        .collect();
    let created = status.start_time.as_deref().and_then(time);
    let object = Object::Pod(Pod {
        name: full_name(&metadata)?,
        node: Some(spec.node_name).filter(|node| is_name(node)),
        addresses,
        host_network: spec.host_network,
        ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        owner: owner(metadata.owner_references),
        created: created.or_else(|| metadata.creation_timestamp.as_deref().and_then(time)),
        host_ports,
        named_ports,
        uid: Some(metadata.uid).filter(|uid| is_name(uid)).unwrap_or_default(),
        labels: labels(metadata.labels),
    });
    Ok(Found { version: metadata.resource_version, object })
}

pub(super) fn service(wire: wire::Service) -> Result<Found, Unreadable> {
    let wire::Service { metadata, spec, status } = wire;
    let balancers = status.load_balancer.ingress.into_iter().map(|entry| entry.ip);
    let ports = spec.ports.into_iter().take(limits::PORTS).filter_map(|port| {
        Some(ServicePort {
            protocol: protocol(port.protocol.as_deref())?,
            port: port.port,
            node_port: Some(port.node_port).filter(|port| *port != 0),
            name: Some(port.name).filter(|name| is_name(name)).unwrap_or_default(),
        })
    });
    let object = Object::Service(Service {
        name: full_name(&metadata)?,
        // A headless service has the word `None` there.
        cluster: with_first(spec.cluster_ip, spec.cluster_ips),
        external: addresses(spec.external_ips.into_iter().chain(balancers).chain([spec.load_balancer_ip])),
        ports: ports.collect(),
        labels: labels(metadata.labels),
        selector: labels(spec.selector),
    });
    Ok(Found { version: metadata.resource_version, object })
}

pub(super) fn slice(wire: wire::Slice) -> Result<Found, Unreadable> {
    let wire::Slice { mut metadata, endpoints, ports } = wire;
    let backends = endpoints.into_iter().take(limits::ENDPOINTS).map(|endpoint| Backend {
        addresses: addresses(endpoint.addresses),
        ready: endpoint.conditions.ready.unwrap_or(true),
        pod: endpoint
            .target_ref
            .filter(|target| target.kind == "Pod" && is_name(&target.name))
            .map(|pod| pod.name),
    });
    let ports = ports.into_iter().take(limits::PORTS);
    let service = metadata.labels.remove(SERVICE_NAME);
    let object = Object::Slice(Slice {
        name: full_name(&metadata)?,
        service: service.filter(|service| is_name(service)).unwrap_or_default(),
        // A port that is null stands for all ports: none that could be looked up.
        ports: ports.filter_map(|port| Some((protocol(port.protocol.as_deref())?, port.port?))).collect(),
        backends: backends.collect(),
    });
    Ok(Found { version: metadata.resource_version, object })
}

pub(super) fn node(wire: wire::Node) -> Result<Found, Unreadable> {
    let wire::Node { metadata, spec, status } = wire;
    let mut pod_cidrs = spec.pod_cidrs;
    if pod_cidrs.is_empty() && !spec.pod_cidr.is_empty() {
        pod_cidrs.push(spec.pod_cidr);
    }
    pod_cidrs.retain(|cidr| cidr.len() <= limits::LABEL_VALUE);
    pod_cidrs.truncate(limits::ADDRESSES);
    let object = Object::Node(Node {
        name: name(metadata.name)?,
        addresses: addresses(status.addresses.into_iter().map(|entry| entry.address)),
        pod_cidrs,
        labels: labels(metadata.labels),
    });
    Ok(Found { version: metadata.resource_version, object })
}

pub(super) fn namespace(wire: wire::Bare) -> Result<Found, Unreadable> {
    let wire::Bare { metadata } = wire;
    let object = Object::Namespace(Namespace { name: name(metadata.name)?, labels: labels(metadata.labels) });
    Ok(Found { version: metadata.resource_version, object })
}

pub(super) fn middle(kind: &str, wire: wire::Bare) -> Result<Found, Unreadable> {
    let wire::Bare { metadata } = wire;
    let Name { namespace, name } = full_name(&metadata)?;
    let itself = Owner { kind: kind.to_owned(), name };
    let object = Object::Middle(Middle { namespace, itself, owner: owner(metadata.owner_references) });
    Ok(Found { version: metadata.resource_version, object })
}

/// True if it can be a name: so short, and of characters that no name of Kubernetes goes without. (Some kinds allow more
/// than DNS does; `/` parts namespace and name.)
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= limits::NAME
        && text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | '%'))
}

pub(super) fn name(text: String) -> Result<String, Unreadable> {
    match text {
        text if is_name(&text) => Ok(text),
        text if text.is_empty() => Err(Unreadable::Nameless),
        _ => Err(Unreadable::Name),
    }
}

pub(super) fn full_name(metadata: &wire::Meta) -> Result<Name, Unreadable> {
    Ok(Name::new(name(metadata.namespace.clone())?, name(metadata.name.clone())?))
}

fn labels(all: Labels) -> Labels {
    labels_within(all, limits::LABEL_NAME)
}

/// Labels whose names are not longer than that.
pub(super) fn labels_within(all: Labels, name: usize) -> Labels {
    let short = |(key, value): &(String, String)| key.len() <= name && value.len() <= limits::LABEL_VALUE;
    all.into_iter().filter(short).take(limits::LABELS).collect()
}

/// The controller among the owners.
fn owner(owners: Vec<wire::OwnerReference>) -> Option<Owner> {
    let controller = owners.into_iter().find(|owner| owner.controller)?;
    (is_name(&controller.kind) && is_name(&controller.name))
        .then_some(Owner { kind: controller.kind, name: controller.name })
}

/// The addresses among the texts: each once, in their order.
fn addresses(texts: impl IntoIterator<Item = String>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for address in texts.into_iter().filter_map(|text| text.parse().ok()) {
        if all.len() < limits::ADDRESSES && !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// The addresses of a pair of fields like podIP and podIPs, the second of which also has the first, if it is there at all.
fn with_first(first: String, all: impl IntoIterator<Item = String>) -> Vec<IpAddr> {
    addresses([first].into_iter().chain(all))
}

/// The number of a protocol; TCP if none is given. `None` if it is none that is known.
pub(super) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP" | "") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some(_) => None,
    }
}

/// A time of RFC 3339.
fn time(text: &str) -> Option<Timestamp> {
    text.parse::<jiff::Timestamp>().ok().map(|time| Timestamp(time.as_nanosecond()))
}
