//! Security identities: what Cilium knows a peer by. An identity stands for a set of labels, not for a pod.

use serde::{Deserialize, Serialize};

/// Every address that has no identity of its own, where the cluster has one IP family.
pub const WORLD: u32 = 2;
/// Likewise for IPv4, where it has both (from 1.15).
pub const WORLD_IPV4: u32 = 9;
/// Likewise for IPv6.
pub const WORLD_IPV6: u32 = 10;

/// An identity, as it stands in the JSON contract.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub id: u32,
    /// Its labels, for example `reserved:world`, `k8s:app=web`; null if they are not known.
    pub labels: Option<Vec<String>>,
}

impl Identity {
    /// The identity of a number, with its labels if they are known.
    #[must_use]
    pub fn named(id: u32, known: &impl Identities) -> Self {
        let reserved = || reserved(id).map(|name| vec![format!("reserved:{name}")]);
        Self { id, labels: known.labels(id).or_else(reserved) }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "identity {}", self.id)?;
        let labels = self.labels.as_deref().unwrap_or_default().join(",");
        if labels.is_empty() { Ok(()) } else { write!(f, " ({labels})") }
    }
}

/// Who knows the labels of identities: CiliumIdentity objects, the node's agent.
pub trait Identities {
    /// The labels; `None` if they are not known.
    fn labels(&self, id: u32) -> Option<Vec<String>>;
}

/// Nobody: only reserved identities have labels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Identities for Nobody {
    fn labels(&self, _: u32) -> Option<Vec<String>> {
        None
    }
}

/// The name of a reserved identity, without `reserved:` (pkg/identity/numericidentity.go).
#[must_use]
pub fn reserved(id: u32) -> Option<&'static str> {
    const NAMES: [&str; 12] = [
        "unknown",
        "host",
        "world",
        "unmanaged",
        "health",
        "init",
        "remote-node",
        "kube-apiserver",
        "ingress",
        "world-ipv4",
        "world-ipv6",
        "encrypted-overlay",
    ];
    NAMES.get(usize::try_from(id).ok()?).copied()
}

/// True for what has no identity of its own: outside the cluster, or not known to be inside.
#[must_use]
pub fn is_world(id: u32) -> bool {
    [WORLD, WORLD_IPV4, WORLD_IPV6].contains(&id)
}

/// What sort of identity a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One of Cilium's own: [`reserved`].
    Reserved,
    /// Of a well-known workload, the same in each cluster.
    WellKnown,
    /// Given by the user to fixed labels.
    UserReserved,
    /// Of pods of a cluster: a CiliumIdentity object has its name. The number is the cluster's id, 0 without clustermesh.
    Cluster(u32),
    /// Of addresses outside (CIDR, FQDN): another on each node, so only the node's agent knows it.
    Local,
    /// Of another node, with labels; likewise.
    RemoteNode,
    /// None that is known.
    Other,
}

/// What sort of identity that is.
#[must_use]
pub fn kind(id: u32) -> Kind {
    // The top byte is the scope. Below it a cluster's id stands above its 16 bits of numbers.
    match (id >> 24, id & 0xffff) {
        (1, _) => Kind::Local,
        (2, _) => Kind::RemoteNode,
        (0, 256..) => Kind::Cluster(id >> 16),
        _ => match id {
            _ if reserved(id).is_some() => Kind::Reserved,
            100..=115 => Kind::WellKnown,
            128..=255 => Kind::UserReserved,
            _ => Kind::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (id, expected) in [
            (0, Kind::Reserved),
            (11, Kind::Reserved),
            (12, Kind::Other),
            (104, Kind::WellKnown),
            (128, Kind::UserReserved),
            (255, Kind::UserReserved),
            (256, Kind::Cluster(0)),
            (65535, Kind::Cluster(0)),
            (3 << 16 | 4711, Kind::Cluster(3)),
            (3 << 16 | 7, Kind::Other),
            (1 << 24 | 5, Kind::Local),
            (2 << 24 | 5, Kind::RemoteNode),
            (u32::MAX, Kind::Other),
        ] {
            assert_eq!(kind(id), expected, "{id:#x}");
        }
    }

    #[test]
    fn names() {
        struct One;
        impl Identities for One {
            fn labels(&self, id: u32) -> Option<Vec<String>> {
                (id == 4711).then(|| vec!["k8s:app=web".to_owned(), "k8s:tier=a".to_owned()])
            }
        }
        let shown = |id| Identity::named(id, &One).to_string();
        assert_eq!(shown(9), "identity 9 (reserved:world-ipv4)");
        assert_eq!(shown(4711), "identity 4711 (k8s:app=web,k8s:tier=a)");
        assert_eq!(shown(12345), "identity 12345");
        assert_eq!(Identity::named(12345, &Nobody).labels, None);
        assert!([2, 9, 10].into_iter().all(is_world) && !is_world(3));
    }
}
