//! What the inventory knows of a packet that Cilium dropped: the labels of both ends, and the policies on the pod. Pure.

use super::block::Block;
use super::explain::Packet;
use super::fit::{Pod, What, Who};
use super::identity::{Identities, Identity, Kind, kind, reserved};
use super::maps::{Direction, LocalEndpoint};
use super::model::{Cilium, VerdictBy};
use super::policies::{self, Subject};
use crate::event::model::Timestamp;
use crate::identity::inventory::{self, Inventory};
use crate::identity::object::Labels;
use crate::identity::policy::{NAMESPACE, PolicyKind};
use std::net::IpAddr;

/// reserved:host: nodes are under policies of their own.
const HOST: u32 = 1;

/// A drop that was explained, kept to name it once more when more is known.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// What Cilium said.
    pub block: Block,
    /// What it said it of.
    pub packet: Packet,
    /// How many things could not be read before policies were asked for.
    pub unread: usize,
}

impl Asked {
    /// Puts names and policies into its answer as they are known by now. `endpoints` are those of this node.
    pub fn name(&self, answer: &mut Cilium, inventory: &Inventory, endpoints: &[LocalEndpoint]) {
        let known = Known::of(inventory, self.packet.time, &self.block, &self.packet);
        let ends = answer.source_identity.iter_mut().chain(&mut answer.destination_identity);
        let entries = answer.entry.iter_mut().chain(&mut answer.nearest);
        for identity in ends.chain(entries.filter_map(|entry| entry.identity.as_mut())) {
            *identity = Identity::named(identity.id, &known);
        }
        answer.policies = None;
        answer.unread.truncate(self.unread);
        known.add_policies(answer, endpoints);
    }
}

/// What is known at the time of a drop.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    inventory: &'a Inventory,
    time: Timestamp,
    packet: &'a Packet,
    source: (u32, Option<IpAddr>),
    destination: (u32, Option<IpAddr>),
}

impl<'a> Known<'a> {
    /// Of a packet that was dropped then.
    #[must_use]
    pub fn of(inventory: &'a Inventory, time: Timestamp, block: &Block, packet: &'a Packet) -> Self {
        Self {
            inventory,
            time,
            packet,
            source: (block.source_identity, packet.source),
            destination: (block.destination_identity, packet.destination),
        }
    }

    /// Says which policies are on the pod, or on the node, if a policy's verdict is what dropped the packet and any source tells of policies.
    /// `endpoints` are those of this node.
    pub fn add_policies(&self, answer: &mut Cilium, endpoints: &[LocalEndpoint]) {
        let is_policys = answer.verdict_by.is_some_and(|by| by != VerdictBy::Other);
        let Some(direction) = answer.direction.filter(|_| is_policys) else { return };
        let kinds = [PolicyKind::Network, PolicyKind::Cilium, PolicyKind::Clusterwide];
        let (known, unknown): (Vec<_>, Vec<_>) =
            kinds.into_iter().partition(|kind| self.inventory.knows_policies(*kind));
        if known.is_empty() {
            return;
        }
        let (own, peer) = match direction {
            Direction::Ingress => (self.destination, self.source),
            Direction::Egress => (self.source, self.destination),
        };
        let is_it = |it: &&LocalEndpoint| Some(u32::from(it.id)) == answer.endpoint;
        let endpoint = endpoints.iter().find(is_it);
        let id = if own.0 == 0 { endpoint.and_then(|it| it.identity).unwrap_or(0) } else { own.0 };
        let is_host = id == HOST || endpoint.is_some_and(|it| it.is_host);
        let pod = endpoints.iter().filter(is_it).find_map(|it| self.pod_at(Some(it.address)));
        let pod = pod.or_else(|| self.pod_at(own.1)).filter(|_| !is_host);
        let subject = if is_host {
            let addresses = endpoints.iter().filter(is_it).map(|it| it.address).chain(own.1);
            self.labels_of_node(addresses).map(Subject::Node)
        } else {
            self.labels_of(id, pod).map(Subject::Pod)
        };
        let Some(subject) = subject else {
            answer.unread.push(if is_host {
                "the node's labels are not known, so neither is which policies with a nodeSelector are about it: no source \
                 tells of a Node with its address"
                    .to_owned()
            } else { format!(
                "the labels of identity {id} are not known, so neither is which policies select endpoint {}: no source \
                 tells of a CiliumIdentity of that name or of a pod at the endpoint's address",
                answer.endpoint.unwrap_or(0)
            ) });
            return;
        };
        let peer_pod = self.pod_at(peer.1);
        let who = Who {
            identity: peer.0,
            labels: self.labels_of(peer.0, peer_pod),
            address: peer.1,
            pod: peer_pod.map(|pod| self.view(pod)),
        };
        let destination = match direction {
            Direction::Ingress => pod.map(|pod| self.view(pod)),
            Direction::Egress => who.pod.clone(),
        };
        let what = What {
            direction,
            protocol: self.packet.protocol,
            port: self.packet.port,
            icmp_type: self.packet.icmp_type,
            destination,
        };
        let namespace = match &subject {
            Subject::Pod(labels) => labels.get(NAMESPACE).map(String::as_str),
            Subject::Node(_) => None,
        };
        let (policies, left_out) =
            policies::explain(self.inventory.policies_of(namespace), &subject, &who, &what);
        answer.policies = Some(policies);
        if left_out > 0 {
            answer.unread.push(format!("{left_out} more policies select it and are not told"));
        }
        for kind in unknown {
            let (kind, resource) = (kind.as_str(), resource(kind));
            answer.unread.push(format!(
                "no source has told of any {kind}, so those on the pod are not among its policies; `kubectl auth can-i \
                 list {resource} --all-namespaces` says whether the API server would"
            ));
        }
    }

    /// The labels of an identity, with their sources: its own, else, if it is a pod's, those of the pod.
    fn labels_of(&self, id: u32, pod: Option<&inventory::Known>) -> Option<Labels> {
        let of_pod =
            || matches!(kind(id), Kind::Cluster(_)).then(|| pod.map(|pod| self.inventory.labels_of(pod)));
        self.inventory.identity(id).cloned().or_else(|| of_pod().flatten())
    }

    /// The labels of the host's endpoint: its own, and those of the Node that has one of these addresses.
    fn labels_of_node(&self, addresses: impl Iterator<Item = IpAddr>) -> Option<Labels> {
        let name = addresses.into_iter().find_map(|address| self.inventory.node_at(address))?;
        let node = self.inventory.nodes().find(|node| node.name == name)?;
        let own = (format!("reserved:{}", reserved(HOST)?), String::new());
        let labels = node.labels.iter().map(|(key, value)| (format!("k8s:{key}"), value.clone()));
        Some(labels.chain([own]).collect())
    }

    fn pod_at(&self, address: Option<IpAddr>) -> Option<&'a inventory::Known> {
        self.inventory.pod_at(address?, self.time)
    }

    fn view(&self, pod: &inventory::Known) -> Pod {
        Pod {
            name: pod.name.to_string(),
            node: pod.node.clone(),
            labels: self.inventory.labels_of(pod),
            ports: pod.named_ports().map(<[_]>::to_vec),
        }
    }
}

impl Identities for Known<'_> {
    fn labels(&self, id: u32) -> Option<Vec<String>> {
        let ends = [self.source, self.destination];
        let pod =
            ends.into_iter().filter(|(own, _)| *own == id).find_map(|(_, address)| self.pod_at(address));
        let spell =
            |(key, value): (String, String)| if value.is_empty() { key } else { format!("{key}={value}") };
        Some(self.labels_of(id, pod)?.into_iter().map(spell).collect())
    }
}

/// As `kubectl` calls a kind.
fn resource(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::Network => "networkpolicies.networking.k8s.io",
        PolicyKind::Cilium => "ciliumnetworkpolicies.cilium.io",
        PolicyKind::Clusterwide => "ciliumclusterwidenetworkpolicies.cilium.io",
    }
}

#[cfg(test)]
mod tests;
