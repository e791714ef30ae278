//! What the sources tell of: pods, services, nodes and what runs them, as plain data. Only what a lookup or a filter needs
//! is kept, so that a cluster of ten thousand pods fits in some megabytes.

use super::policy::{Policy, PolicyKind};
use crate::event::model::Timestamp;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Labels: `app` = `cart`.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name in there.
    pub name: String,
}

impl Name {
    /// The name `namespace/name`.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who made an object: the owner reference with `controller: true`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// `ReplicaSet`, `StatefulSet`, `Job` ..., as the API spells it.
    pub kind: String,
    /// Its name, in the object's namespace.
    pub name: String,
}

/// A transport protocol, by its IP protocol number (6, 17, 132).
pub type Protocol = u8;

/// A pod, as the API server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: Name,
    /// metadata.uid
    pub uid: String,
    /// spec.nodeName; `None` until it is scheduled.
    pub node: Option<String>,
    /// status.podIPs; a host-network pod has its node's.
    pub addresses: Vec<IpAddr>,
    /// spec.hostNetwork
    pub host_network: bool,
    /// True once it has ended (phase Succeeded or Failed): its addresses may be another's by now.
    pub ended: bool,
    /// Its labels.
    pub labels: Labels,
    /// Its controller.
    pub owner: Option<Owner>,
    /// status.startTime, else metadata.creationTimestamp. Whole seconds.
    pub created: Option<Timestamp>,
    /// hostPorts of its containers.
    pub host_ports: Vec<(Protocol, u16)>,
    /// Ports of its containers that have a name, as policies call them.
    pub named_ports: Vec<(String, Protocol, u16)>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Protocol.
    pub protocol: Protocol,
    /// The port that clients dial.
    pub port: u16,
    /// The port on every node, if it has one.
    pub node_port: Option<u16>,
    /// Its name; empty where there is but one.
    pub name: String,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: Name,
    /// Cluster addresses; none for headless services.
    pub cluster: Vec<IpAddr>,
    /// externalIPs, and addresses of load balancers.
    pub external: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its labels.
    pub labels: Labels,
    /// The labels of its pods; none where its endpoints are written by hand.
    pub selector: Labels,
}

/// An endpoint of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// conditions.ready (null counts as ready).
    pub ready: bool,
    /// Name of the pod, in the slice's namespace.
    pub pod: Option<String>,
}

/// An EndpointSlice: some of the backends of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name.
    pub name: Name,
    /// The service's name, in that namespace (label kubernetes.io/service-name).
    pub service: String,
    /// Protocol and port that the backends listen on.
    pub ports: Vec<(Protocol, u16)>,
    /// The backends.
    pub backends: Vec<Backend>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// status.addresses that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// spec.podCIDRs, as they are written.
    pub pod_cidrs: Vec<String>,
    /// Its labels.
    pub labels: Labels,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// An object that owns pods and has an owner itself: a ReplicaSet of a Deployment, a Job of a CronJob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Middle {
    /// Its namespace.
    pub namespace: String,
    /// Itself.
    pub itself: Owner,
    /// Its owner; `None` if it stands alone.
    pub owner: Option<Owner>,
}

/// A security identity of Cilium's (CiliumIdentity).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub id: u32,
    /// What it stands for; the keys have their source: `k8s:app`.
    pub labels: Labels,
}

/// A pod's sandbox, as the node's container runtime has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's id of it.
    pub id: String,
    /// The pod's namespace and name.
    pub pod: Name,
    /// The pod's uid.
    pub uid: String,
    /// The pod's labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Inode number of its network namespace; `None` if it is gone, or the node's.
    pub netns: Option<u32>,
    /// True if it is in the node's network namespace.
    pub host_network: bool,
    /// False once it was stopped: its addresses may be another's.
    pub ready: bool,
    /// When the runtime made it.
    pub created: Option<Timestamp>,
}

/// What a control group's path tells of the processes in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cgroup {
    /// The pod's uid.
    pub pod: Option<String>,
    /// The container's id.
    pub container: Option<String>,
    /// The container's name, where its runtime is not one of Kubernetes: Docker, Podman.
    pub container_name: Option<String>,
    /// `docker`, `podman`, `containerd`, `crio` ..., if the path tells.
    pub runtime: Option<String>,
    /// The systemd unit: `nginx.service`.
    pub unit: Option<String>,
}

/// Whose processes a network namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetnsOwner {
    /// Its inode number.
    pub netns: u32,
    /// The control group of the processes; of several the one that says most.
    pub cgroup: Cgroup,
    /// Addresses of its interfaces, loopback and link-local ones left out.
    pub addresses: Vec<IpAddr>,
}

/// Whose a port of the node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Protocol: TCP or UDP.
    pub protocol: Protocol,
    /// Its local port.
    pub port: u16,
    /// The control group of the process that has it.
    pub cgroup: Cgroup,
}

/// Two ends that a packet was between, as it was seen: what IPVS's connections are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Inode number of the network namespace that the packet was in.
    pub netns: Option<u32>,
    /// Protocol: TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Who sent it.
    pub source: SocketAddr,
    /// Whom it was for.
    pub destination: SocketAddr,
}

/// What IPVS made of a flow's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Virtual {
    /// The virtual address that the client dialled.
    pub address: SocketAddr,
    /// True if the backend is the flow's source: the packet was an answer.
    pub is_reply: bool,
}

/// One thing that a source knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A service.
    Service(Service),
    /// Backends of a service.
    Slice(Slice),
    /// A node.
    Node(Node),
    /// A namespace.
    Namespace(Namespace),
    /// An owner of pods that has an owner.
    Middle(Middle),
    /// A network policy of any kind.
    Policy(Policy),
    /// A security identity of Cilium's.
    Identity(Identity),
    /// A pod's sandbox.
    Sandbox(Sandbox),
    /// A network namespace.
    Netns(NetnsOwner),
    /// A port of the node.
    Socket(Socket),
}

/// What kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Pods.
    Pod,
    /// Services.
    Service,
    /// Their backends.
    Slice,
    /// Nodes.
    Node,
    /// Namespaces.
    Namespace,
    /// ReplicaSets and Jobs: two kinds of the API, each a list of its own.
    ReplicaSet,
    /// Likewise.
    Job,
    /// Network policies: each kind is a list of its own.
    Policy(PolicyKind),
    /// Cilium's security identities.
    Identity,
    /// Sandboxes.
    Sandbox,
    /// Network namespaces.
    Netns,
    /// Ports of the node.
    Socket,
}

/// What names one thing of its kind: `namespace/name` of objects of the API (a node or a namespace has no namespace),
/// the number of an identity, the id of a sandbox, the inode number of a netns, `protocol/port` of a socket.
pub type Key = String;

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::Slice(_) => Kind::Slice,
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
            Self::Middle(middle) if middle.itself.kind == "Job" => Kind::Job,
            Self::Middle(_) => Kind::ReplicaSet,
            Self::Policy(policy) => Kind::Policy(policy.kind),
            Self::Identity(_) => Kind::Identity,
            Self::Sandbox(_) => Kind::Sandbox,
            Self::Netns(_) => Kind::Netns,
            Self::Socket(_) => Kind::Socket,
        }
    }

    /// What names it among those of its kind.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Pod(pod) => pod.name.to_string(),
            Self::Service(service) => service.name.to_string(),
            Self::Slice(slice) => slice.name.to_string(),
            Self::Node(node) => node.name.clone(),
            Self::Namespace(namespace) => namespace.name.clone(),
            Self::Middle(middle) => format!("{}/{}", middle.namespace, middle.itself.name),
            Self::Policy(policy) if policy.name.namespace.is_empty() => policy.name.name.clone(),
            Self::Policy(policy) => policy.name.to_string(),
            Self::Identity(identity) => identity.id.to_string(),
            Self::Sandbox(sandbox) => sandbox.id.clone(),
            Self::Netns(owner) => owner.netns.to_string(),
            Self::Socket(socket) => format!("{}/{}", socket.protocol, socket.port),
        }
    }
}

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The Kubernetes API server.
    Api,
    /// A file of `--inventory`.
    File,
    /// The node's container runtime.
    Cri,
    /// /proc.
    Proc,
    /// Cilium's agent on this node.
    Agent,
}

/// One change. A list comes as `Begin`, a `Set` for each thing, `End`: what was not set in between is gone, and until
/// `End` what was known stays.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are of the large kind, and few exist at a time")]
pub enum Change {
    /// A list of that kind begins.
    Begin(Kind),
    /// That is, or is so now.
    Set(Object),
    /// That is gone.
    Delete(Kind, Key),
    /// The list of that kind has ended.
    End(Kind),
}

/// What is known of IPVS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipvs {
    /// True if the kernel has it.
    pub is_there: bool,
    /// What it has of flows; `None` if it has no such connection.
    pub answers: Vec<(Flow, Option<Virtual>)>,
}

/// What comes from a source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are of the large kind, and few exist at a time")]
pub enum Update {
    /// Something changed, and when that became known.
    Change(Source, Timestamp, Change),
    /// What IPVS has of flows that it was asked about.
    Ipvs(Ipvs),
    /// One line for people: what does not work, why, and what to do.
    Note(String),
}
