//! Which addresses and network namespaces the words of a filter mean now: a pure function of filter and inventory, asked
//! again whenever the inventory changes. The kernel half's maps follow it (`tracer_common::filter`).

use super::host::Host;
use super::inventory::{Inventory, Known};
use super::object::{Name, Service};
use crate::event::model::{Drop, Endpoint};
use crate::filter::{Filter, Flag, Named, Protocol, Side, Value, Word, WorkloadName, side_bit, word_bit};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use tracer_common::{EndKey, filter_bit};

/// Ends that a filter means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Addresses and ports, with the [`filter_bit`]s of the words that they satisfy.
    pub ends: BTreeMap<EndKey, u32>,
    /// Likewise, inode numbers of pods' network namespaces.
    pub netns: BTreeMap<u32, u32>,
    /// Pods that wanted words mean.
    pub pods: BTreeSet<Name>,
    /// Services that they mean.
    pub services: BTreeSet<Name>,
    /// Which of the bits must be there.
    pub required: u32,
    /// True if a host-network pod of this node is among them: its ports must be looked for.
    pub takes_sockets: bool,
}

/// A filter's words about pods and services.
#[derive(Clone, Debug)]
pub struct Selection {
    words: Vec<Word>,
    /// Words that have named a pod exactly: they are no beginnings of names any more, also when that pod has gone.
    exact: HashSet<usize>,
}

/// Words of one end that say the same thing of it: all wanted ones together, each unwanted one alone.
struct Group<'a> {
    side: Side,
    negated: bool,
    words: Vec<(usize, &'a Word)>,
}

impl Selection {
    /// Of a filter; `None` if it names nobody.
    #[must_use]
    pub fn of(filter: &Filter) -> Option<Self> {
        let words: Vec<Word> =
            filter.words.iter().filter(|word| word.flag.end().is_some()).cloned().collect();
        (!words.is_empty()).then(|| Self { words, exact: HashSet::new() })
    }

    /// The words, as they are typed.
    pub fn words(&self) -> impl Iterator<Item = &Word> {
        self.words.iter()
    }

    /// What they mean now.
    pub fn select(&mut self, inventory: &Inventory, host: &Host) -> Selected {
        self.note_exact(inventory);
        let mut selected = Selected { required: self.required(), ..Selected::default() };
        for group in self.groups() {
            let bit = side_bit(group.side) << if group.negated { NEGATIVE } else { 0 };
            let pods: Vec<(u32, &Known)> =
                inventory.pods().filter(|(_, pod)| self.means_pod(&group, inventory, pod)).collect();
            for &(id, pod) in &pods {
                selected.add_pod(inventory, host, &group, bit, id, pod);
            }
            for service in inventory.services().filter(|service| self.means_service(&group, service)) {
                let is_named = group.words.iter().any(|(_, word)| matches!(word.flag, Flag::Service(_)));
                let bit = if is_named { bit << filter_bit::SERVICE } else { bit };
                selected.add_service(inventory, host, &group, bit, service, is_named);
            }
        }
        selected
    }

    fn required(&self) -> u32 {
        let wanted = self.words.iter().filter(|word| !word.negated);
        wanted.fold(0, |bits, word| bits | word_bit(word))
    }

    /// Wanted words about pods of one end are one group, wanted ones about services another.
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (place, word) in self.words.iter().enumerate() {
            let Some(side) = word.flag.end() else { continue };
            let is_service = |word: &Word| matches!(word.flag, Flag::Service(_));
            let same = groups.iter_mut().find(|group| {
                let joins = |(_, other): &(usize, &Word)| is_service(other) == is_service(word);
                !word.negated && !group.negated && group.side == side && group.words.iter().all(joins)
            });
            match same {
                Some(group) => group.words.push((place, word)),
                None => groups.push(Group { side, negated: word.negated, words: vec![(place, word)] }),
            }
        }
        groups
    }

    /// Namespaces that names without one are in: those of `-n`.
    fn in_namespace(&self, namespace: &str) -> bool {
        let mut wanted =
            self.words.iter().filter(|word| word.flag == Flag::Namespace(Side::Either) && !word.negated);
        let mut any = false;
        let found = wanted.any(|word| {
            any = true;
            matches!(&word.value, Value::Namespace(name) if name == namespace)
        });
        found || !any
    }

    fn note_exact(&mut self, inventory: &Inventory) {
        let exact: Vec<usize> = self
            .words
            .iter()
            .enumerate()
            .filter(|(place, word)| {
                let Value::Pod(named) = &word.value else { return false };
                !self.exact.contains(place)
                    && inventory.pods().any(|(_, pod)| {
                        self.is_in(&named.namespace, word, &pod.name.namespace) && pod.name.name == named.name
                    })
            })
            .map(|(place, _)| place)
            .collect();
        self.exact.extend(exact);
    }

    fn is_in(&self, wanted: &Option<String>, word: &Word, namespace: &str) -> bool {
        match wanted {
            Some(wanted) => wanted == namespace,
            None => word.negated || self.in_namespace(namespace),
        }
    }

    /// True if of each kind of word in the group one holds.
    fn means_pod(&self, group: &Group<'_>, inventory: &Inventory, pod: &Known) -> bool {
        let holds = |(place, word): &(usize, &Word)| match &word.value {
            Value::Pod(named) => self.is_named(*place, word, named, &pod.name),
            Value::Namespace(name) => *name == pod.name.namespace,
            Value::Selector(selector) => selector.matches(&pod.labels),
            Value::Workload(wanted) => {
                self.is_in(&wanted.namespace, word, &pod.name.namespace)
                    && inventory.workload(pod).is_some_and(|workload| is_workload(wanted, &workload))
            }
            _ => false,
        };
        group
            .words
            .iter()
            .all(|(_, word)| group.words.iter().any(|other| other.1.flag == word.flag && holds(other)))
    }

    fn is_named(&self, place: usize, word: &Word, named: &Named, pod: &Name) -> bool {
        self.is_in(&named.namespace, word, &pod.namespace)
            && if self.exact.contains(&place) {
                pod.name == named.name
            } else {
                pod.name.starts_with(&named.name)
            }
    }

    /// Services are meant by name, and by namespace where nothing else is said of pods.
    fn means_service(&self, group: &Group<'_>, service: &Service) -> bool {
        let Name { namespace, name } = &service.name;
        group.words.iter().all(|(_, word)| matches!(word.value, Value::Service(_) | Value::Namespace(_)))
            && group.words.iter().any(|(_, word)| match &word.value {
                Value::Service(named) => self.is_in(&named.namespace, word, namespace) && *name == named.name,
                Value::Namespace(wanted) => wanted == namespace,
                _ => false,
            })
    }
}

/// By how much unwanted bits are above the wanted ones ([`filter_bit`]).
const NEGATIVE: u32 = 3;

impl Selected {
    /// True if the filter means a drop, as it looks now: what the kernel half does with all tuples of a packet.
    #[must_use]
    pub fn means_drop(&self, drop: &Drop) -> bool {
        let protocol = drop.network.transport.as_deref().and_then(Protocol::of_transport);
        let protocol = match protocol {
            Some(Protocol::Transport(number)) => number.into(),
            _ => 0,
        };
        let of = |end: &Endpoint| {
            let Some(address) = end.address.map(bytes) else { return 0 };
            let of = |key: EndKey| self.ends.get(&key).copied().unwrap_or(0);
            let all = of(EndKey { address, port: 0, protocol: 0 });
            end.port.map_or(all, |port| all | of(EndKey { address, port, protocol }))
        };
        let netns = drop.network.netns.and_then(|netns| self.netns.get(&netns)).copied().unwrap_or(0);
        let tuples = crate::filter::tuples(drop);
        let bits = tuples
            .iter()
            .fold(netns, |bits, (source, destination)| bits | joined(of(source), of(destination)));
        self.is_satisfied(bits)
    }

    /// True if the filter means packets between these two. Of the source no port is known. What the kernel half does with a
    /// packet's tuples, for one.
    #[must_use]
    pub fn means(&self, source: [u8; 16], destination: [u8; 16], ports: (u16, u16), netns: u32) -> bool {
        let of = |key: EndKey| self.ends.get(&key).copied().unwrap_or(0);
        let (protocol, port) = ports;
        let source = of(EndKey { address: source, port: 0, protocol: 0 });
        let destination = of(EndKey { address: destination, port: 0, protocol: 0 })
            | of(EndKey { address: destination, port, protocol });
        self.is_satisfied(self.netns.get(&netns).copied().unwrap_or(0) | joined(source, destination))
    }

    fn is_satisfied(&self, bits: u32) -> bool {
        let unwanted = both((filter_bit::EITHER | filter_bit::FROM | filter_bit::TO) << NEGATIVE);
        bits & self.required == self.required && bits & unwanted == 0
    }

    fn add_pod(
        &mut self,
        inventory: &Inventory,
        host: &Host,
        group: &Group<'_>,
        bit: u32,
        id: u32,
        pod: &Known,
    ) {
        if !group.negated && !pod.is_gone() {
            self.pods.insert((*pod.name).clone());
        }
        if pod.host_network {
            self.add_host_pod(inventory, host, bit, pod);
            return;
        }
        for address in pod.addresses().iter().filter(|address| inventory.has_last(id, **address)) {
            self.add(*address, None, bit);
        }
        // Which end is in there the netns does not tell.
        if group.side == Side::Either && !pod.is_gone() {
            for netns in pod.netns().iter().filter(|netns| inventory.has_last_netns(id, **netns)) {
                *self.netns.entry(*netns).or_default() |= bit;
            }
        }
    }

    /// It shares its node's addresses, so only its ports tell.
    fn add_host_pod(&mut self, inventory: &Inventory, host: &Host, bit: u32, pod: &Known) {
        let is_here = pod.node.as_ref().is_none_or(|node| *node == host.name);
        self.takes_sockets |= is_here && !pod.is_gone();
        let node = inventory.nodes().find(|node| Some(&node.name) == pod.node.as_ref());
        let mut addresses: BTreeSet<IpAddr> =
            node.into_iter().flat_map(|node| node.addresses.clone()).collect();
        if is_here {
            addresses.extend(&host.addresses);
        }
        let of_processes = inventory.sockets().filter(|(_, _, cgroup)| {
            let owner = cgroup.pod.as_ref().and_then(|uid| inventory.pod_of(uid));
            is_here && owner.is_some_and(|owner| owner.uid == pod.uid)
        });
        let ports: BTreeSet<(u8, u16)> = of_processes
            .map(|(protocol, port, _)| (protocol, port))
            .chain(pod.host_ports().iter().copied())
            .collect();
        for address in addresses {
            for port in &ports {
                self.add(address, Some(*port), bit);
            }
        }
    }

    fn add_service(
        &mut self,
        inventory: &Inventory,
        host: &Host,
        group: &Group<'_>,
        bit: u32,
        service: &Service,
        with_backends: bool,
    ) {
        if !group.negated {
            self.services.insert(service.name.clone());
        }
        for address in &service.cluster {
            // Nobody else's, also with a port that it doesn't have.
            self.add(*address, None, bit);
        }
        for port in &service.ports {
            for address in &service.external {
                self.add(*address, Some((port.protocol, port.port)), bit);
            }
            if let Some(node_port) = port.node_port {
                let nodes = inventory.nodes().flat_map(|node| &node.addresses);
                for address in nodes.chain(&host.addresses) {
                    self.add(*address, Some((port.protocol, node_port)), bit);
                }
            }
        }
        if with_backends {
            for (address, protocol, port) in inventory.backends_of(&service.name) {
                self.add(address, Some((protocol, port)), bit);
            }
        }
    }

    fn add(&mut self, address: IpAddr, port: Option<(u8, u16)>, bit: u32) {
        let (protocol, port) = port.unwrap_or_default();
        let key = EndKey { address: bytes(address), port, protocol: protocol.into() };
        *self.ends.entry(key).or_default() |= bit;
    }
}

/// As the kernel half has addresses.
fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Bits about pods, and the same about services.
fn both(bits: u32) -> u32 {
    bits | bits << filter_bit::SERVICE
}

/// The kinds of words that the two ends of a tuple satisfy.
fn joined(source: u32, destination: u32) -> u32 {
    (source | destination) & both(filter_bit::EITHER | filter_bit::NOT_EITHER)
        | source & both(filter_bit::FROM | filter_bit::NOT_FROM)
        | destination & both(filter_bit::TO | filter_bit::NOT_TO)
}

fn is_workload(wanted: &WorkloadName, workload: &str) -> bool {
    workload.split_once('/').is_some_and(|(kind, name)| {
        name == wanted.name && wanted.kind.as_ref().is_none_or(|wanted| wanted == kind)
    })
}

#[cfg(test)]
mod tests {
    use super::super::object::{Backend, Change, Object, Pod, Sandbox, ServicePort, Slice, Source};
    use super::*;
    use crate::event::model::Timestamp;
    use crate::filter::RawWord;

    const FROM: u32 = filter_bit::FROM;
    const EITHER: u32 = filter_bit::EITHER;

    fn selection(words: &[(Flag, &str, bool)]) -> Selection {
        let raw: Vec<RawWord> = words
            .iter()
            .map(|&(flag, text, negated)| RawWord { flag, text: text.to_owned(), negated })
            .collect();
        Selection::of(&Filter::parse(&raw, &|_| unreachable!()).unwrap()).unwrap()
    }

    fn sandbox(namespace: &str, name: &str, address: &str, netns: u32, labels: &[(&str, &str)]) -> Object {
        Object::Sandbox(Sandbox {
            id: format!("{namespace}-{name}"),
            pod: Name::new(namespace, name),
            uid: format!("{namespace}-{name}"),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            addresses: vec![address.parse().unwrap()],
            netns: Some(netns),
            ready: true,
            ..Sandbox::default()
        })
    }

    fn inventory() -> Inventory {
        let mut inventory = Inventory::default();
        let service = Service {
            name: Name::new("shop", "redis"),
            cluster: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![ServicePort {
                protocol: 6,
                port: 6379,
                node_port: Some(30379),
                ..Default::default()
            }],
            ..Service::default()
        };
        let slice = Slice {
            name: Name::new("shop", "redis-x"),
            service: "redis".to_owned(),
            ports: vec![(6, 6379)],
            backends: vec![Backend { addresses: vec!["10.0.0.3".parse().unwrap()], ready: true, pod: None }],
        };
        for object in [
            sandbox("shop", "cart-0", "10.0.0.1", 1, &[("app", "cart"), ("pod-template-hash", "x")]),
            sandbox("shop", "cart-x-1", "10.0.0.2", 2, &[("app", "cart"), ("pod-template-hash", "x")]),
            sandbox("shop", "redis-0", "10.0.0.3", 3, &[("app", "redis")]),
            sandbox("pay", "cart-0", "10.0.0.4", 4, &[("app", "cart")]),
            Object::Service(service),
            Object::Slice(slice),
        ] {
            inventory.apply(Source::Cri, Timestamp(0), Change::Set(object));
        }
        inventory
    }

    fn host() -> Host {
        Host { netns: Some(99), name: "n1".to_owned(), addresses: vec!["192.0.2.1".parse().unwrap()] }
    }

    fn ends(selected: &Selected) -> Vec<String> {
        let show = |(key, bits): (&EndKey, &u32)| {
            let address = std::net::Ipv6Addr::from(key.address).to_canonical();
            format!("{address}:{}:{bits}", key.port)
        };
        selected.ends.iter().map(show).collect()
    }

    fn pods(words: &[(Flag, &str, bool)]) -> Vec<String> {
        selection(words).select(&inventory(), &host()).pods.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_exact_name_wins_else_every_pod_with_that_beginning() {
        const POD: Flag = Flag::Pod(Side::Either);
        assert_eq!(pods(&[(POD, "cart-0", false)]), ["pay/cart-0", "shop/cart-0"]);
        assert_eq!(pods(&[(POD, "cart", false)]), ["pay/cart-0", "shop/cart-0", "shop/cart-x-1"]);
        assert_eq!(pods(&[(POD, "shop/cart", false)]), ["shop/cart-0", "shop/cart-x-1"]);
        assert_eq!(
            pods(&[(POD, "cart", false), (Flag::Namespace(Side::Either), "pay", false)]),
            ["pay/cart-0"]
        );
        assert!(pods(&[(POD, "nobody", false)]).is_empty());
    }

    #[test]
    fn a_name_that_was_exact_stays_so() {
        let mut inventory = inventory();
        let mut selection = selection(&[(Flag::Pod(Side::Either), "shop/cart-0", false)]);
        assert_eq!(selection.select(&inventory, &host()).pods.len(), 1);
        inventory.apply(
            Source::Cri,
            Timestamp(1),
            Change::Set(sandbox("shop", "cart-00", "10.0.0.9", 9, &[])),
        );
        inventory.apply(
            Source::Cri,
            Timestamp(1),
            Change::Delete(super::super::object::Kind::Sandbox, "shop-cart-0".to_owned()),
        );
        let after = selection.select(&inventory, &host());
        assert!(after.pods.is_empty(), "{after:?}");
        // Its last drops are still wanted.
        assert_eq!(ends(&after), ["10.0.0.1:0:1"]);
        inventory.forget(Timestamp(400_000_000_000));
        let nobody = Selected { required: EITHER, ..Selected::default() };
        assert_eq!(selection.select(&inventory, &host()), nobody);
    }

    #[test]
    fn words_about_one_end_mean_one_pod() {
        let app = Flag::Selector(Side::Either);
        let namespace = Flag::Namespace(Side::Either);
        assert_eq!(pods(&[(app, "app=cart", false)]).len(), 3);
        assert_eq!(pods(&[(app, "app=cart", false), (namespace, "pay", false)]), ["pay/cart-0"]);
        let words = [(app, "app=cart", false), (app, "app=redis", false), (namespace, "shop", false)];
        assert_eq!(pods(&words), ["shop/cart-0", "shop/cart-x-1", "shop/redis-0"]);
        assert_eq!(pods(&[(Flag::Workload(Side::Either), "deploy/cart", false)]), ["shop/cart-x-1"]);
    }

    #[test]
    fn a_pod_is_its_addresses_and_where_both_ends_will_do_its_netns() {
        let either = selection(&[(Flag::Pod(Side::Either), "redis-0", false)]).select(&inventory(), &host());
        assert_eq!(ends(&either), [format!("10.0.0.3:0:{EITHER}")]);
        assert_eq!(either.netns, BTreeMap::from([(3, EITHER)]));
        let from = selection(&[(Flag::Pod(Side::From), "redis-0", false)]).select(&inventory(), &host());
        assert_eq!(ends(&from), [format!("10.0.0.3:0:{FROM}")]);
        assert!(from.netns.is_empty());
        let not = selection(&[(Flag::Pod(Side::Either), "redis-0", true)]).select(&inventory(), &host());
        assert_eq!(not.netns, BTreeMap::from([(3, filter_bit::NOT_EITHER)]));
        assert!(not.pods.is_empty());
    }

    #[test]
    fn a_service_is_its_addresses_ports_of_nodes_and_backends() {
        let words = [(Flag::Service(Side::To), "redis", false)];
        let selected = selection(&words).select(&inventory(), &host());
        let bit = filter_bit::TO << filter_bit::SERVICE;
        let expected =
            [format!("10.0.0.3:6379:{bit}"), format!("10.96.0.1:0:{bit}"), format!("192.0.2.1:30379:{bit}")];
        assert_eq!(ends(&selected), expected);
        assert_eq!(selected.services, BTreeSet::from([Name::new("shop", "redis")]));
        // A namespace's services are meant with it, unless something is said of pods.
        let words = [(Flag::Namespace(Side::Either), "shop", false)];
        let selected = selection(&words).select(&inventory(), &host());
        assert!(ends(&selected).contains(&format!("10.96.0.1:0:{EITHER}")));
        let words =
            [(Flag::Namespace(Side::Either), "shop", false), (Flag::Pod(Side::Either), "cart-0", false)];
        let selected = selection(&words).select(&inventory(), &host());
        assert_eq!(ends(&selected), [format!("10.0.0.1:0:{EITHER}")]);
    }

    #[test]
    fn an_address_that_is_anothers_now_is_not_meant() {
        let mut inventory = inventory();
        let mut selection = selection(&[(Flag::Pod(Side::Either), "shop/cart-0", false)]);
        selection.select(&inventory, &host());
        let delete = Change::Delete(super::super::object::Kind::Sandbox, "shop-cart-0".to_owned());
        inventory.apply(Source::Cri, Timestamp(1), delete);
        inventory.apply(Source::Cri, Timestamp(2), Change::Set(sandbox("pay", "web", "10.0.0.1", 1, &[])));
        let nobody = Selected { required: EITHER, ..Selected::default() };
        assert_eq!(selection.select(&inventory, &host()), nobody);
    }

    #[test]
    fn a_pod_in_the_nodes_netns_is_its_ports() {
        let mut inventory = Inventory::default();
        let pod = Pod {
            name: Name::new("kube-system", "dns"),
            uid: "u1".to_owned(),
            node: Some("n1".to_owned()),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            host_network: true,
            host_ports: vec![(17, 53)],
            ..Pod::default()
        };
        inventory.apply(Source::Api, Timestamp(0), Change::Set(Object::Pod(pod)));
        let cgroup = super::super::object::Cgroup {
            pod: Some("u1".to_owned()),
            ..super::super::object::Cgroup::default()
        };
        let socket = super::super::object::Socket { protocol: 6, port: 9153, cgroup };
        inventory.apply(Source::Proc, Timestamp(0), Change::Set(Object::Socket(socket)));
        let selected = selection(&[(Flag::Pod(Side::Either), "dns", false)]).select(&inventory, &host());
        assert_eq!(ends(&selected), ["192.0.2.1:53:1", "192.0.2.1:9153:1"]);
        assert!(selected.takes_sockets && selected.netns.is_empty());
    }
}
