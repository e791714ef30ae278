//! What is known of the cluster and this node, from all sources together: changes go in, lookups come out. Nothing here
//! asks anybody.

mod policies;

use super::claims::{ADDRESS_KEPT, NETNS_KEPT, Owners};
use super::object::{
    Backend, Cgroup, Change, Key, Kind, Labels, Name, NetnsOwner, Node, Object, Owner, Pod, Protocol,
    Sandbox, Service, Slice, Socket, Source,
};
use super::policy::{Policy, PolicyKind};
use super::workload;
use crate::event::model::Timestamp;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Before everything.
const ALWAYS: Timestamp = Timestamp(i128::MIN);
/// Pods that are kept; more are left out, and that is said.
pub const MAX_PODS: usize = 500_000;

/// A pod in one of its lives: one that is deleted and made again under its name is another.
#[derive(Clone, Debug)]
pub struct Known {
    /// Namespace and name.
    pub name: Arc<Name>,
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: Option<String>,
    /// True if it is in its node's network namespace.
    pub host_network: bool,
    /// Its labels.
    pub labels: Labels,
    owner: Option<Owner>,
    created: Option<Timestamp>,
    /// The API server's or a file's view of it.
    told: Option<Told>,
    /// The runtime's; a pod has several where one was replaced.
    sandboxes: Vec<Sandbox>,
    /// Network namespaces that its processes were seen in.
    seen: Vec<NetnsOwner>,
    /// True once the runtime has told of it: it knows better then.
    is_local: bool,
    /// Addresses and netns that are claimed for it now.
    held: Vec<IpAddr>,
    held_netns: Vec<u32>,
    /// When it went.
    gone: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Told {
    by: Source,
    addresses: Vec<IpAddr>,
    ended: bool,
    host_ports: Vec<(Protocol, u16)>,
    named_ports: Vec<(String, Protocol, u16)>,
}

impl Known {
    /// Its addresses as they are now, or were last.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.held
    }

    /// Its network namespaces, likewise; none for one in its node's.
    #[must_use]
    pub fn netns(&self) -> &[u32] {
        &self.held_netns
    }

    /// True if it is there no more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    /// hostPorts of its containers.
    #[must_use]
    pub fn host_ports(&self) -> &[(Protocol, u16)] {
        self.told.as_ref().map_or(&[], |told| &told.host_ports)
    }

    /// Ports of its containers that have a name; `None` where only the runtime tells of it, which does not know.
    #[must_use]
    pub fn named_ports(&self) -> Option<&[(String, Protocol, u16)]> {
        self.told.as_ref().map(|told| &*told.named_ports)
    }
}

/// Whose something is.
#[derive(Clone, Debug)]
enum Holder {
    Pod(Box<Known>),
    /// Processes outside of pods.
    Group(Box<NetnsOwner>),
}

/// All that is known.
#[derive(Debug)]
pub struct Inventory {
    holders: HashMap<u32, Holder>,
    next: u32,
    by_name: HashMap<Arc<Name>, Vec<u32>>,
    by_uid: HashMap<String, u32>,
    addresses: Owners<IpAddr>,
    netns: Owners<u32>,
    services: HashMap<Key, Arc<Service>>,
    service_ports: HashMap<(IpAddr, Protocol, u16), Arc<Service>>,
    service_addresses: HashMap<IpAddr, Arc<Service>>,
    node_ports: HashMap<(Protocol, u16), Arc<Service>>,
    slices: HashMap<Key, Slice>,
    backends: HashMap<(IpAddr, Protocol, u16), Vec<Arc<Name>>>,
    nodes: HashMap<Key, Node>,
    node_addresses: HashMap<IpAddr, String>,
    /// Owners of owners, by namespace, kind and name.
    middles: HashMap<(String, Owner), Option<Owner>>,
    groups: HashMap<Key, u32>,
    sockets: HashMap<(Protocol, u16), Cgroup>,
    policies: policies::Policies,
    /// What each source has told of each kind, and, while a list comes, what of it has come.
    lists: HashMap<(Source, Kind), List>,
    version: u64,
    left_out: u64,
}

impl Default for Inventory {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            holders: HashMap::new(),
            next: 0,
            by_name: HashMap::new(),
            by_uid: HashMap::new(),
            addresses: Owners::new(ADDRESS_KEPT),
            netns: Owners::new(NETNS_KEPT),
            services: HashMap::new(),
            service_ports: HashMap::new(),
            service_addresses: HashMap::new(),
            node_ports: HashMap::new(),
            slices: HashMap::new(),
            backends: HashMap::new(),
            nodes: HashMap::new(),
            node_addresses: HashMap::new(),
            middles: HashMap::new(),
            groups: HashMap::new(),
            sockets: HashMap::new(),
            policies: policies::Policies::default(),
            lists: HashMap::new(),
            version: 0,
            left_out: 0,
        }
    }
}

/// Sources that tell of the whole cluster.
const CLUSTER: [Source; 2] = [Source::Api, Source::File];

#[derive(Debug, Default)]
struct List {
    known: HashSet<Key>,
    coming: Option<HashSet<Key>>,
    complete: bool,
}

impl Inventory {
    /// Counts up when something changes that a filter could go by.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// True once a source has told a whole list of that kind.
    #[must_use]
    pub fn is_complete(&self, source: Source, kind: Kind) -> bool {
        self.lists.get(&(source, kind)).is_some_and(|list| list.complete)
    }

    /// Pods, policies and identities that found no room.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Takes a change that became known at `at`.
    pub fn apply(&mut self, source: Source, at: Timestamp, change: Change) {
        match change {
            Change::Begin(kind) => {
                self.lists.entry((source, kind)).or_default().coming = Some(HashSet::new());
            }
            Change::Set(object) => {
                let list = self.lists.entry((source, object.kind())).or_default();
                let key = object.key();
                if let Some(coming) = &mut list.coming {
                    coming.insert(key.clone());
                }
                list.known.insert(key);
                let is_first = !list.complete;
                self.set(source, at, is_first, object);
                self.version += 1;
            }
            Change::Delete(kind, key) => {
                let list = self.lists.entry((source, kind)).or_default();
                list.known.remove(&key);
                if let Some(coming) = &mut list.coming {
                    coming.remove(&key);
                }
                self.delete(source, at, kind, &key);
                self.version += 1;
            }
            Change::End(kind) => {
                let list = self.lists.entry((source, kind)).or_default();
                list.complete = true;
                if let Some(coming) = list.coming.take() {
                    let gone: Vec<Key> = list.known.difference(&coming).cloned().collect();
                    list.known = coming;
                    for key in gone {
                        self.delete(source, at, kind, &key);
                    }
                }
                if CLUSTER.contains(&source) {
                    self.forget_agents(at, kind);
                }
                self.version += 1;
            }
        }
    }

    /// True if the API server or a file has told that, or all policies of that kind: then the agent's word is not needed.
    fn is_told_by_cluster(&self, kind: Kind, key: &Key) -> bool {
        CLUSTER
            .into_iter()
            .filter_map(|source| self.lists.get(&(source, kind)))
            .any(|list| list.known.contains(key) || list.complete && matches!(kind, Kind::Policy(_)))
    }

    /// Forgets policies that only the agent told of, now that another source has told all of that kind. Identities stay: some
    /// only the agent knows.
    fn forget_agents(&mut self, at: Timestamp, kind: Kind) {
        let Kind::Policy(_) = kind else { return };
        let Some(list) = self.lists.remove(&(Source::Agent, kind)) else { return };
        for key in list.known {
            let is_others = CLUSTER
                .into_iter()
                .any(|source| self.lists.get(&(source, kind)).is_some_and(|list| list.known.contains(&key)));
            if !is_others {
                self.delete(Source::Api, at, kind, &key);
            }
        }
    }

    fn set(&mut self, source: Source, at: Timestamp, is_first: bool, object: Object) {
        match object {
            Object::Pod(pod) => self.set_pod(source, at, is_first, pod),
            Object::Sandbox(sandbox) => self.set_sandbox(at, sandbox),
            Object::Service(service) => self.set_service(service),
            Object::Slice(slice) => self.set_slice(slice),
            Object::Node(node) => {
                self.delete_node(&node.name);
                for address in &node.addresses {
                    self.node_addresses.insert(*address, node.name.clone());
                }
                self.nodes.insert(node.name.clone(), node);
            }
            // The agent is asked where nobody else tells.
            Object::Policy(_) | Object::Identity(_)
                if source == Source::Agent && self.is_told_by_cluster(object.kind(), &object.key()) => {}
            // A file is older than what the API server says.
            Object::Namespace(_) | Object::Policy(_) | Object::Identity(_)
                if source == Source::File && self.is_complete(Source::Api, object.kind()) => {}
            Object::Namespace(namespace) => self.policies.set_namespace(namespace),
            Object::Policy(policy) => self.left_out += u64::from(!self.policies.set(policy)),
            Object::Identity(identity) => self.left_out += u64::from(!self.policies.set_identity(identity)),
            Object::Middle(middle) => {
                self.middles.insert((middle.namespace, middle.itself), middle.owner);
            }
            Object::Netns(owner) => self.set_netns(at, owner),
            Object::Socket(Socket { protocol, port, cgroup }) => {
                self.sockets.insert((protocol, port), cgroup);
            }
        }
    }

    fn delete(&mut self, source: Source, at: Timestamp, kind: Kind, key: &Key) {
        if source == Source::Agent && self.is_told_by_cluster(kind, key) {
            // What the agent has no more, or not yet, was not its own.
            return;
        }
        match kind {
            Kind::Pod => {
                let name = key.split_once('/').map(|(namespace, name)| Name::new(namespace, name));
                for id in name.and_then(|name| self.by_name.get(&name)).cloned().unwrap_or_default() {
                    if let Some(pod) = self.pod_mut(id)
                        && pod.told.as_ref().is_some_and(|told| told.by == source)
                    {
                        pod.told = None;
                        self.settle(id, at, at, at);
                    }
                }
            }
            Kind::Sandbox => {
                let id = self.pods().find(|(_, pod)| pod.sandboxes.iter().any(|sandbox| sandbox.id == *key));
                if let Some(id) = id.map(|(id, _)| id) {
                    if let Some(pod) = self.pod_mut(id) {
                        pod.sandboxes.retain(|sandbox| sandbox.id != *key);
                    }
                    self.settle(id, at, at, at);
                }
            }
            Kind::Service => self.delete_service(key),
            Kind::Slice => self.delete_slice(key),
            Kind::Node => self.delete_node(key),
            Kind::Namespace => self.policies.delete_namespace(key),
            Kind::Policy(kind) => self.policies.delete(kind, key),
            Kind::Identity => self.policies.delete_identity(key),
            Kind::ReplicaSet | Kind::Job => {
                let kind = if kind == Kind::Job { "Job" } else { "ReplicaSet" };
                if let Some((namespace, name)) = key.split_once('/') {
                    let owner = Owner { kind: kind.to_owned(), name: name.to_owned() };
                    self.middles.remove(&(namespace.to_owned(), owner));
                }
            }
            Kind::Netns => {
                let has = |seen: &NetnsOwner| seen.netns.to_string() == *key;
                let pod = self.pods().find(|(_, pod)| pod.seen.iter().any(has)).map(|(id, _)| id);
                if let Some(id) = pod {
                    if let Some(pod) = self.pod_mut(id) {
                        pod.seen.retain(|seen| !has(seen));
                    }
                    self.settle(id, at, at, at);
                }
                if let Some(id) = self.groups.remove(key)
                    && let Some(Holder::Group(group)) = self.holders.get(&id)
                {
                    let (netns, addresses) = (group.netns, group.addresses.clone());
                    self.netns.groups.close(netns, id, at);
                    for address in addresses {
                        self.addresses.groups.close(address, id, at);
                    }
                }
            }
            Kind::Socket => {
                let parts = key.split_once('/').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                if let Some(parts) = parts {
                    self.sockets.remove(&parts);
                }
            }
        }
    }

    fn set_pod(&mut self, source: Source, at: Timestamp, is_first: bool, pod: Pod) {
        let Pod { name, uid, node, addresses, host_network, ended, labels, owner, created, .. } = pod;
        let (host_ports, named_ports) = (pod.host_ports, pod.named_ports);
        let Some(id) = self.record(&name, &uid, host_network, &addresses, false) else { return };
        // Another life of the same name that this source told of has ended with it.
        for other in self.by_name.get(&name).cloned().unwrap_or_default() {
            if other != id
                && let Some(pod) = self.pod_mut(other)
                && pod.told.as_ref().is_some_and(|told| told.by == source)
            {
                pod.told = None;
                self.settle(other, at, at, at);
            }
        }
        if let Some(pod) = self.pod_mut(id) {
            pod.node = node;
            pod.host_network = host_network;
            pod.labels = labels;
            pod.owner = owner;
            pod.created = created.or(pod.created);
            // A file is older than what the API server says.
            if source == Source::Api || pod.told.as_ref().is_none_or(|told| told.by == source) {
                pod.told = Some(Told { by: source, addresses, ended, host_ports, named_ports });
            }
            let from = created.unwrap_or(if is_first { ALWAYS } else { at });
            self.settle(id, from, if is_first { from } else { at }, at);
        }
    }

    fn set_sandbox(&mut self, at: Timestamp, sandbox: Sandbox) {
        let Sandbox { pod: name, uid, labels, created, host_network, .. } = &sandbox;
        let Some(id) = self.record(name, uid, *host_network, &sandbox.addresses, true) else { return };
        let from = created.unwrap_or(at);
        if let Some(pod) = self.pod_mut(id) {
            pod.is_local = true;
            if pod.told.is_none() {
                pod.labels = labels.clone();
                pod.host_network = *host_network;
                pod.created = pod.created.or(*created);
            }
            match pod.sandboxes.iter_mut().find(|known| known.id == sandbox.id) {
                Some(known) => *known = sandbox,
                None => pod.sandboxes.push(sandbox),
            }
            self.settle(id, from, from, at);
        }
    }

    /// The record of a pod; `None` if there is no room for another. A static pod has one uid at the API server and another
    /// one at the runtime: name and address make them one.
    fn record(
        &mut self,
        name: &Name,
        uid: &str,
        host_network: bool,
        addresses: &[IpAddr],
        is_sandbox: bool,
    ) -> Option<u32> {
        if let Some(id) = self.by_uid.get(uid)
            && let Some(Holder::Pod(pod)) = self.holders.get(id)
            && *pod.name == *name
        {
            return Some(*id);
        }
        let ids = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        let same = ids.iter().copied().find(|id| {
            let Some(Holder::Pod(pod)) = self.holders.get(id) else { return false };
            let others = if is_sandbox { pod.sandboxes.is_empty() } else { pod.told.is_none() };
            let shares = pod.held.iter().any(|address| addresses.contains(address));
            others && pod.gone.is_none() && (shares || host_network && pod.host_network)
        });
        if let Some(id) = same {
            self.by_uid.insert(uid.to_owned(), id);
            return Some(id);
        }
        if self.by_uid.len() >= MAX_PODS {
            self.left_out += 1;
            return None;
        }
        let name = match self.by_name.get_key_value(name) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(name.clone()),
        };
        let id = self.add(Holder::Pod(Box::new(Known {
            name: Arc::clone(&name),
            uid: uid.to_owned(),
            node: None,
            host_network,
            labels: Labels::new(),
            owner: None,
            created: None,
            told: None,
            sandboxes: Vec::new(),
            seen: Vec::new(),
            is_local: false,
            held: Vec::new(),
            held_netns: Vec::new(),
            gone: None,
        })));
        self.by_name.entry(name).or_default().push(id);
        self.by_uid.insert(uid.to_owned(), id);
        Some(id)
    }

    fn add(&mut self, holder: Holder) -> u32 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.holders.insert(id, holder);
        id
    }

    fn pod_mut(&mut self, id: u32) -> Option<&mut Known> {
        match self.holders.get_mut(&id) {
            Some(Holder::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    /// Claims what a pod has now, and lets go of what it has no more. `from` and `told` are [`Claims::open`]'s.
    fn settle(&mut self, id: u32, from: Timestamp, told: Timestamp, at: Timestamp) {
        let Some(Holder::Pod(pod)) = self.holders.get_mut(&id) else { return };
        let is_told = pod.told.as_ref().is_some_and(|told| !told.ended);
        let is_ready = pod.sandboxes.iter().any(|sandbox| sandbox.ready);
        let (mut addresses, mut netns): (Vec<IpAddr>, Vec<u32>) = Default::default();
        // The runtime knows first when a pod comes and goes.
        if !pod.host_network && if pod.is_local { is_ready } else { is_told } {
            for sandbox in pod.sandboxes.iter().filter(|sandbox| sandbox.ready && !sandbox.host_network) {
                addresses.extend(&sandbox.addresses);
                netns.extend(sandbox.netns);
            }
            // The API server may know addresses that the runtime does not, and the interfaces have the rest.
            addresses.extend(pod.told.iter().filter(|_| is_told).flat_map(|told| &told.addresses));
            addresses.extend(pod.seen.iter().flat_map(|seen| &seen.addresses));
            netns.extend(pod.seen.iter().map(|seen| seen.netns));
            addresses.sort_unstable();
            addresses.dedup();
            netns.sort_unstable();
            netns.dedup();
        }
        let is_there = is_told || is_ready;
        pod.gone = if is_there { None } else { pod.gone.or(Some(at)) };
        for address in pod.held.iter().filter(|address| !addresses.contains(address)) {
            self.addresses.pods.close(*address, id, at);
        }
        for address in addresses.iter().filter(|address| !pod.held.contains(address)) {
            self.addresses.open_for_pod(*address, id, from, told);
        }
        for inode in pod.held_netns.iter().filter(|inode| !netns.contains(inode)) {
            self.netns.pods.close(*inode, id, at);
        }
        for inode in netns.iter().filter(|inode| !pod.held_netns.contains(inode)) {
            self.netns.open_for_pod(*inode, id, from, told);
        }
        if is_there {
            // Of one that has gone the last ones stay known: a filter for it still means them.
            (pod.held, pod.held_netns) = (addresses, netns);
        }
    }

    fn set_netns(&mut self, at: Timestamp, owner: NetnsOwner) {
        let key = owner.netns.to_string();
        let netns = owner.netns;
        // What the runtime says of pods is better than what can be seen of their processes.
        let pod = owner.cgroup.pod.as_ref().and_then(|uid| self.by_uid.get(uid)).copied();
        if let Some(pod) = pod {
            let Some(known) = self.pod_mut(pod) else { return };
            if !known.host_network && !known.seen.contains(&owner) {
                known.seen.retain(|seen| seen.netns != netns);
                known.seen.push(owner);
                let from = known.created.unwrap_or(at);
                self.settle(pod, from, from, at);
            }
            return;
        }
        if let Some(id) = self.groups.get(&key)
            && let Some(Holder::Group(known)) = self.holders.get(id)
            && **known == owner
        {
            return;
        }
        self.delete(Source::Proc, at, Kind::Netns, &key);
        let addresses = owner.addresses.clone();
        let id = self.add(Holder::Group(Box::new(owner)));
        // Whoever is in a pod's netns has nothing of his own: a tool, or the pod's processes in a cgroup without its uid.
        if !self.netns.pods.is_open(netns) {
            self.netns.groups.open(netns, id, at, at);
            for address in addresses {
                self.addresses.groups.open(address, id, at, at);
            }
        }
        self.groups.insert(key, id);
    }

    fn set_service(&mut self, service: Service) {
        let key = service.name.to_string();
        self.delete_service(&key);
        let service = Arc::new(service);
        for address in service.cluster.iter().chain(&service.external) {
            self.service_addresses.insert(*address, Arc::clone(&service));
            for port in &service.ports {
                self.service_ports.insert((*address, port.protocol, port.port), Arc::clone(&service));
            }
        }
        for port in &service.ports {
            if let Some(node_port) = port.node_port {
                self.node_ports.insert((port.protocol, node_port), Arc::clone(&service));
            }
        }
        self.services.insert(key, service);
    }

    fn delete_service(&mut self, key: &Key) {
        if let Some(service) = self.services.remove(key) {
            let other = |held: &Arc<Service>| !Arc::ptr_eq(held, &service);
            for address in service.cluster.iter().chain(&service.external) {
                remove_unless(&mut self.service_addresses, address, other);
                for port in &service.ports {
                    remove_unless(&mut self.service_ports, &(*address, port.protocol, port.port), other);
                }
            }
            for port in &service.ports {
                if let Some(node_port) = port.node_port {
                    remove_unless(&mut self.node_ports, &(port.protocol, node_port), other);
                }
            }
        }
    }

    fn set_slice(&mut self, slice: Slice) {
        let key = slice.name.to_string();
        self.delete_slice(&key);
        let service = Arc::new(Name::new(&*slice.name.namespace, &*slice.service));
        for end in ends(&slice) {
            self.backends.entry(end).or_default().push(Arc::clone(&service));
        }
        self.slices.insert(key, slice);
    }

    fn delete_slice(&mut self, key: &Key) {
        let Some(slice) = self.slices.remove(key) else { return };
        for end in ends(&slice) {
            let Some(services) = self.backends.get_mut(&end) else { continue };
            let is_its =
                |name: &Arc<Name>| name.namespace == slice.name.namespace && name.name == slice.service;
            // One of them: another slice of the service may have it too while it moves from one to the other.
            if let Some(place) = services.iter().position(is_its) {
                services.swap_remove(place);
            }
            if services.is_empty() {
                self.backends.remove(&end);
            }
        }
    }

    fn delete_node(&mut self, key: &Key) {
        for address in self.nodes.remove(key).into_iter().flat_map(|node| node.addresses) {
            remove_unless(&mut self.node_addresses, &address, |name| name != key);
        }
    }

    /// Forgets what went some minutes ago. `now` is the wall clock.
    pub fn forget(&mut self, now: Timestamp) {
        self.addresses.forget(now);
        self.netns.forget(now);
        let is_old = |pod: &Known| pod.gone.is_some_and(|gone| now.0 > gone.0 + ADDRESS_KEPT);
        let old: Vec<u32> = self.pods().filter(|(_, pod)| is_old(pod)).map(|(id, _)| id).collect();
        for id in old {
            let Some(Holder::Pod(pod)) = self.holders.remove(&id) else { continue };
            self.by_uid.retain(|_, known| *known != id);
            if let Some(ids) = self.by_name.get_mut(&pod.name) {
                ids.retain(|known| *known != id);
                if ids.is_empty() {
                    self.by_name.remove(&pod.name);
                }
            }
            self.version += 1;
        }
        let groups: HashSet<u32> = self.groups.values().copied().collect();
        self.holders.retain(|id, holder| matches!(holder, Holder::Pod(_)) || groups.contains(id));
    }

    /// Every pod, also those that went a moment ago.
    pub fn pods(&self) -> impl Iterator<Item = (u32, &Known)> {
        self.holders.iter().filter_map(|(id, holder)| match holder {
            Holder::Pod(pod) => Some((*id, &**pod)),
            Holder::Group(_) => None,
        })
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    /// The EndpointSlices of a service.
    pub fn slices_of<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = &'a Slice> {
        let is_its =
            |slice: &&Slice| slice.name.namespace == service.namespace && slice.service == service.name;
        self.slices.values().filter(is_its)
    }

    /// Where backends of a service listen.
    pub fn backends_of<'a>(
        &'a self,
        service: &'a Name,
    ) -> impl Iterator<Item = (IpAddr, Protocol, u16)> + 'a {
        self.slices_of(service).flat_map(ends)
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Ports of this node that are known, and whose they are.
    pub fn sockets(&self) -> impl Iterator<Item = (Protocol, u16, &Cgroup)> {
        self.sockets.iter().map(|((protocol, port), cgroup)| (*protocol, *port, cgroup))
    }

    /// The pod that had an address then.
    #[must_use]
    pub fn pod_at(&self, address: IpAddr, time: Timestamp) -> Option<&Known> {
        self.as_pod(self.addresses.pod(address, time)?)
    }

    /// The pod whose netns it was then.
    #[must_use]
    pub fn pod_in(&self, netns: u32, time: Timestamp) -> Option<&Known> {
        self.as_pod(self.netns.pod(netns, time)?)
    }

    /// The processes outside of pods that had an address then.
    #[must_use]
    pub fn group_at(&self, address: IpAddr, time: Timestamp) -> Option<&NetnsOwner> {
        self.as_group(self.addresses.group(address, time)?)
    }

    /// The processes outside of pods whose netns it was then.
    #[must_use]
    pub fn group_in(&self, netns: u32, time: Timestamp) -> Option<&NetnsOwner> {
        self.as_group(self.netns.group(netns, time)?)
    }

    /// True if somebody had a netns then: its inode number may be another's by now.
    #[must_use]
    pub fn has_owner(&self, netns: u32, time: Timestamp) -> bool {
        self.netns.is_held(netns, time)
    }

    /// True if a pod that had an address was gone by then: another may have it.
    #[must_use]
    pub fn is_free(&self, address: IpAddr, time: Timestamp) -> bool {
        self.addresses.pod(address, time).is_some() && !self.addresses.is_held(address, time)
    }

    /// The pod of a uid.
    #[must_use]
    pub fn pod_of(&self, uid: &str) -> Option<&Known> {
        self.as_pod(*self.by_uid.get(uid)?)
    }

    /// True if an address is still this pod's, or was last.
    #[must_use]
    pub fn has_last(&self, id: u32, address: IpAddr) -> bool {
        self.addresses.is_last(address, id)
    }

    /// True if a netns is still this pod's, or was last.
    #[must_use]
    pub fn has_last_netns(&self, id: u32, netns: u32) -> bool {
        self.netns.is_last(netns, id)
    }

    /// The service that clients dial there. `port` is `None` for what has no ports.
    #[must_use]
    pub fn service_at(&self, address: IpAddr, protocol: Protocol, port: Option<u16>) -> Option<&Service> {
        let by_port = port.and_then(|port| self.service_ports.get(&(address, protocol, port)));
        // Its address with a port that it doesn't have is its address still.
        by_port.or_else(|| self.service_addresses.get(&address)).map(|service| &**service)
    }

    /// The service of a port that every node has.
    #[must_use]
    pub fn service_at_node(&self, protocol: Protocol, port: u16) -> Option<&Service> {
        self.node_ports.get(&(protocol, port)).map(|service| &**service)
    }

    /// The services that have a backend there.
    #[must_use]
    pub fn services_of(&self, address: IpAddr, protocol: Protocol, port: u16) -> Vec<&Name> {
        let found = self.backends.get(&(address, protocol, port));
        let mut names: Vec<&Name> = found.into_iter().flatten().map(|name| &**name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The node that has an address.
    #[must_use]
    pub fn node_at(&self, address: IpAddr) -> Option<&str> {
        self.node_addresses.get(&address).map(String::as_str)
    }

    /// Whose a port of this node is.
    #[must_use]
    pub fn socket(&self, protocol: Protocol, port: u16) -> Option<&Cgroup> {
        self.sockets.get(&(protocol, port))
    }

    /// `kind/name` of a pod's workload.
    #[must_use]
    pub fn workload(&self, pod: &Known) -> Option<String> {
        workload::of_pod(&pod.name.name, &pod.labels, pod.owner.as_ref(), |owner| {
            self.middles.get(&(pod.name.namespace.clone(), owner.clone())).cloned()
        })
    }

    /// The policies that may select a pod of a namespace, and those of the whole cluster.
    pub fn policies_of(&self, namespace: Option<&str>) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.of(namespace)
    }

    /// True once a source has told all policies of a kind.
    #[must_use]
    pub fn knows_policies(&self, kind: PolicyKind) -> bool {
        self.is_complete(Source::Agent, Kind::Policy(kind)) || self.has_policies_of_cluster(kind)
    }

    /// True once the API server or a file has told all policies of a kind: then the agent need not be asked.
    #[must_use]
    pub fn has_policies_of_cluster(&self, kind: PolicyKind) -> bool {
        CLUSTER.into_iter().any(|source| self.is_complete(source, Kind::Policy(kind)))
    }

    /// The labels of a security identity of Cilium's, with their sources; `None` if they are not known.
    #[must_use]
    pub fn identity(&self, id: u32) -> Option<&Labels> {
        self.policies.identity(id)
    }

    /// The labels of a pod and its namespace as Cilium's identities have them, with their sources. Those that Cilium makes
    /// up itself are not among them.
    #[must_use]
    pub fn labels_of(&self, pod: &Known) -> Labels {
        self.policies.labels_of(pod)
    }

    fn as_pod(&self, id: u32) -> Option<&Known> {
        match self.holders.get(&id)? {
            Holder::Pod(pod) => Some(pod),
            Holder::Group(_) => None,
        }
    }

    fn as_group(&self, id: u32) -> Option<&NetnsOwner> {
        match self.holders.get(&id)? {
            Holder::Group(group) => Some(group),
            Holder::Pod(_) => None,
        }
    }
}

/// Where the backends of a slice listen.
fn ends(slice: &Slice) -> impl Iterator<Item = (IpAddr, Protocol, u16)> + '_ {
    let addresses = slice.backends.iter().flat_map(|Backend { addresses, .. }| addresses);
    addresses.flat_map(|address| slice.ports.iter().map(|(protocol, port)| (*address, *protocol, *port)))
}

fn remove_unless<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: &K, keep: impl Fn(&V) -> bool) {
    if map.get(key).is_some_and(|value| !keep(value)) {
        map.remove(key);
    }
}

#[cfg(test)]
mod tests;
