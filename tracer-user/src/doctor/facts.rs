//! What was gathered of a node: plain data, which the checks judge.

use super::rules::Table;
use crate::identity::object::{Name, Protocol};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// All of it, of one network namespace: the node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its inode number.
    pub netns: u32,
    /// Sysctls, by the name that sysctl(8) gives them. What is not there was not readable.
    pub settings: BTreeMap<String, String>,
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Rules of policy routing that look at more than the usual: which route a packet takes depends on them.
    pub has_policy_routing: bool,
    /// Entries of the neighbour tables, of all network namespaces together: IPv4 and IPv6.
    pub neighbours: [Option<u64>; 2],
    /// Addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// The tables of rules, also those of other network namespaces.
    pub tables: Vec<Table>,
    /// True if there are tables of the own network namespace that are not known as a whole.
    pub has_unread_tables: bool,
    /// What IPVS translates; `None` where the kernel has no IPVS.
    pub ipvs: Option<Vec<VirtualServer>>,
    /// Where packets may pass netfilter's rules by.
    pub offloads: Vec<Offload>,
    /// True if Calico's programs translate services (its eBPF dataplane).
    pub has_calico_bpf: bool,
    /// What Cilium translates.
    pub cilium: Option<Result<Vec<VirtualServer>, String>>,
    /// What is known of the cluster; `None` where nobody told all of it.
    pub cluster: Option<Cluster>,
}

impl Facts {
    /// A sysctl that is a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.settings.get(name)?.parse().ok()
    }

    /// The tables of the node's own network namespace that are known as a whole.
    pub fn own_tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| table.netns == self.netns && table.is_whole)
    }

    /// An interface by its index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name; not trusted.
    pub name: String,
    /// `veth`, `bridge`, `vxlan` ...; empty for one of hardware.
    pub kind: String,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// True if it is up.
    pub is_up: bool,
    /// True if it takes packets for others, too.
    pub is_promiscuous: bool,
    /// Index of the bridge, bond ... that it is a port of.
    pub master: Option<u32>,
    /// Index of the interface that it is on; it may be in another network namespace.
    pub lower: Option<u32>,
    /// True if that is in another network namespace.
    pub is_lower_elsewhere: bool,
    /// Of a bridge's port: whether it sends a packet back to where it came from.
    pub hairpin: Option<bool>,
    /// Of a tunnel: what its packets are sent over.
    pub tunnel: Option<Tunnel>,
}

/// A tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Index of the interface that it is bound to; none if the route decides.
    pub underlay: Option<u32>,
    /// True if its outer packets are IPv6.
    pub is_v6: bool,
    /// True if each packet's route or program says where it goes, and how large it may be.
    pub is_external: bool,
}

/// A route of the main table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// True for IPv6.
    pub is_v6: bool,
    /// Where to; none for a default route.
    pub to: Option<(IpAddr, u8)>,
    /// Indices of the interfaces that it may leave by, as one route.
    pub interfaces: Vec<u32>,
    /// Its metric: the least is taken.
    pub metric: u32,
}

/// An address and port that is translated, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// What clients dial.
    pub address: SocketAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The backends; `None` where they can't be told.
    pub backends: Option<Vec<SocketAddr>>,
}

/// Something by which packets pass the kernel's usual way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offload {
    /// What it is.
    pub kind: OffloadKind,
    /// What it is called.
    pub name: String,
    /// The interfaces that it is on.
    pub interfaces: Vec<String>,
}

/// Which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffloadKind {
    /// A flowtable of nf_tables: known connections pass FORWARD by.
    Flowtable,
    /// One that hands them to the card.
    HardwareFlowtable,
    /// A tc filter that the card runs.
    HardwareFilter,
}

/// The cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Who told: `API server`, `--inventory`.
    pub source: &'static str,
    /// This node's name.
    pub node: String,
    /// Its services that have cluster addresses.
    pub services: Vec<Service>,
    /// The names of all nodes.
    pub nodes: Vec<String>,
    /// The names of the nodes that run an agent of Cilium's.
    pub cilium_nodes: Vec<String>,
    /// True if pods with addresses of their own run on this node.
    pub has_pods: bool,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: Name,
    /// Its ports on its cluster addresses.
    pub fronts: Vec<(SocketAddr, Protocol)>,
    /// Where its ready backends listen.
    pub backends: Vec<(SocketAddr, Protocol)>,
    /// Where all of them listen, also those that are not ready, or about to end.
    pub all_backends: Vec<(SocketAddr, Protocol)>,
    /// True if there is an EndpointSlice of it at all.
    pub has_slices: bool,
    /// Pods that it selects, whatever their state; `None` where it selects by nothing.
    pub pods: Option<usize>,
}
