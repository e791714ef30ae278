//! From the JSON of the Kubernetes API to [`Object`]s. Pure: what is decoded may come from a server or from a file.
//!
//! What is sent is not trusted. An object that does not read as one is refused by itself, with the reason; names, labels
//! and lists have ceilings (`limits`), beyond which they are cut, but for an object's own name: then it is refused.

#[macro_use]
mod wire;

pub mod agent;
mod answer;
mod cilium;
mod convert;
mod policy;

pub use answer::{Event, List, Status, event, list};

use super::object::{Key, Kind, Object};
use super::policy::PolicyKind;

/// The most that is kept of one object.
pub mod limits {
    /// Bytes of a name (Kubernetes: a DNS subdomain).
    pub const NAME: usize = 253;
    /// Bytes of a label's name: prefix, slash, name.
    pub const LABEL_NAME: usize = 317;
    /// Bytes of a label's value.
    pub const LABEL_VALUE: usize = 63;
    /// Labels of an object.
    pub const LABELS: usize = 128;
    /// Addresses of a pod, a node, a service or an endpoint.
    pub const ADDRESSES: usize = 256;
    /// Ports of an object.
    pub const PORTS: usize = 4096;
    /// Endpoints of a slice (Kubernetes: 1000).
    pub const ENDPOINTS: usize = 1000;
    /// Bytes of the name of a label of Cilium's: a label of a namespace has a long beginning there.
    pub const SECURITY_LABEL: usize = LABEL_NAME + 64;
    /// Rules of a policy in one direction.
    pub const RULES: usize = 1000;
    /// Peers of a rule.
    pub const PEERS: usize = 2000;
    /// Values of a label that a selector asks for.
    pub const VALUES: usize = 1000;
}

/// Why an object can't be read. Its text may quote what was sent: escape it before people see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not JSON, or has a field of another type.
    #[error("{0}")]
    Json(String),
    /// It has no name.
    #[error("it has no name")]
    Nameless,
    /// Its name, or its namespace's, is no name.
    #[error("its name is too long or has characters that no name has")]
    Name,
}

impl From<serde_json::Error> for Unreadable {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// An object and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// metadata.resourceVersion; empty if it has none.
    pub version: String,
    /// The object.
    pub object: Object,
}

/// Reads an object of a kind.
///
/// # Errors
/// If it is no such object.
pub fn object(kind: Kind, json: &str) -> Result<Found, Unreadable> {
    match kind {
        Kind::Pod => convert::pod(serde_json::from_str(json)?),
        Kind::Service => convert::service(serde_json::from_str(json)?),
        Kind::Slice => convert::slice(serde_json::from_str(json)?),
        Kind::Node => convert::node(serde_json::from_str(json)?),
        Kind::Namespace => convert::namespace(serde_json::from_str(json)?),
        Kind::ReplicaSet => convert::middle("ReplicaSet", serde_json::from_str(json)?),
        Kind::Job => convert::middle("Job", serde_json::from_str(json)?),
        Kind::Policy(PolicyKind::Network) => policy::network(serde_json::from_str(json)?),
        Kind::Policy(kind) => cilium::policy(kind, serde_json::from_str(json)?),
        Kind::Identity => cilium::identity(serde_json::from_str(json)?),
        Kind::Sandbox | Kind::Netns | Kind::Socket => {
            Err(Unreadable::Json(format!("{kind:?} is no kind of the API")))
        }
    }
}

/// Reads only what names an object, and its version: enough where it is gone.
///
/// # Errors
/// If it has no name.
pub fn key(kind: Kind, json: &str) -> Result<(Key, String), Unreadable> {
    let wire::Bare { metadata } = serde_json::from_str(json)?;
    let version = metadata.resource_version.clone();
    let key = match kind {
        Kind::Node | Kind::Namespace | Kind::Policy(PolicyKind::Clusterwide) => convert::name(metadata.name)?,
        Kind::Identity => cilium::identity_key(&convert::name(metadata.name)?)?,
        _ => convert::full_name(&metadata)?.to_string(),
    };
    Ok((key, version))
}

/// The kind that the API calls so: `Pod`, `EndpointSlice`.
#[must_use]
pub fn kind_named(name: &str) -> Option<Kind> {
    Some(match name {
        "Pod" => Kind::Pod,
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::Slice,
        "Node" => Kind::Node,
        "Namespace" => Kind::Namespace,
        "ReplicaSet" => Kind::ReplicaSet,
        "Job" => Kind::Job,
        "NetworkPolicy" => Kind::Policy(PolicyKind::Network),
        "CiliumNetworkPolicy" => Kind::Policy(PolicyKind::Cilium),
        "CiliumClusterwideNetworkPolicy" => Kind::Policy(PolicyKind::Clusterwide),
        "CiliumIdentity" => Kind::Identity,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
