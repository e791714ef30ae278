//! Network policies as plain data, in one form for all kinds: that which Cilium turns them into before it applies them
//! (pkg/k8s/network_policy.go and pkg/k8s/apis/cilium.io/utils). Only what tells whether a packet is let through is kept.

use super::object::{Labels, Name, Protocol};
use std::net::IpAddr;

/// The key of the label that names a pod's namespace, as Cilium's labels are spelled: `source:key`.
pub const NAMESPACE: &str = "k8s:io.kubernetes.pod.namespace";
/// What the keys of a pod's namespace's own labels begin with.
pub const NAMESPACE_LABELS: &str = "k8s:io.cilium.k8s.namespace.labels.";

/// Which kind of object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// NetworkPolicy of networking.k8s.io/v1.
    #[default]
    Network,
    /// CiliumNetworkPolicy of cilium.io/v2.
    Cilium,
    /// CiliumClusterwideNetworkPolicy of cilium.io/v2.
    Clusterwide,
}

impl PolicyKind {
    /// As the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "NetworkPolicy",
            Self::Cilium => "CiliumNetworkPolicy",
            Self::Clusterwide => "CiliumClusterwideNetworkPolicy",
        }
    }
}

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Its kind.
    pub kind: PolicyKind,
    /// Namespace and name. One of the whole cluster has an empty namespace.
    pub name: Name,
    /// What it is made of: one part, but for the field `specs` of Cilium's.
    pub parts: Vec<Part>,
    /// It has more than is kept, so what is kept does not tell all.
    pub is_cut: bool,
}

/// What applies to some pods, or to some nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Which pods; their namespace, too. Or which nodes.
    pub subject: Selector,
    /// It is about nodes themselves (nodeSelector), never about pods; otherwise never about nodes.
    pub is_of_nodes: bool,
    /// What may come in.
    pub ingress: Way,
    /// What may go out.
    pub egress: Way,
}

/// One direction of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The policy is about this direction at all.
    pub applies: bool,
    /// What no policy allows is denied, for this one selects the pod.
    pub denies_by_default: bool,
    /// What it allows.
    pub allow: Vec<Rule>,
    /// What it denies, whatever any policy allows.
    pub deny: Vec<Rule>,
}

/// Packets of some peers to some ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// One of them; `None` is anybody, an empty list nobody.
    pub peers: Option<Vec<Peer>>,
    /// One of them; `None` is all, also of protocols without ports.
    pub ports: Option<Vec<Port>>,
    /// Only once the peers have authenticated (`authentication.mode`).
    pub authenticates: bool,
}

/// Who a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods, or other endpoints that Cilium knows, by their labels.
    Endpoints(Selector),
    /// Addresses outside of the cluster, but for some.
    Block(Prefix, Vec<Prefix>),
    /// One of Cilium's entities: `world`, `cluster`, `host` ...
    Entity(String),
    /// Addresses that Cilium has seen a DNS name resolved to (toFQDNs): the name or pattern.
    DnsName(String),
    /// Endpoints of a service (toServices): its namespace and name, or how it is selected.
    Service(String),
    /// Nodes by their labels (fromNodes, toNodes).
    Nodes(Selector),
    /// Addresses outside of the cluster that are listed elsewhere (toGroups, CiliumCIDRGroup): where, for people.
    Listed(String),
    /// What is not looked into, for people.
    Unread(&'static str),
}

/// A port or what a packet has instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Ports from the first to the last of a protocol; `None` is TCP, UDP and SCTP. From 0 stands for all of them.
    Range {
        /// The protocol.
        protocol: Option<Protocol>,
        /// The first one.
        first: u16,
        /// The last one, at least the first.
        last: u16,
    },
    /// A port of the destination's pod, by its name.
    Named {
        /// Its protocol; `None` is any.
        protocol: Option<Protocol>,
        /// Its name.
        name: String,
    },
    /// All packets of a protocol without ports.
    Protocol(String),
    /// ICMP messages of a type.
    Icmp {
        /// ICMPv6.
        is_v6: bool,
        /// The type, or its name as Cilium has it.
        kind: Result<u8, String>,
    },
}

/// A prefix of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its address.
    pub address: IpAddr,
    /// Bits of it that count.
    pub bits: u8,
}

impl Prefix {
    /// Reads `10.0.0.0/8`, or an address alone. `None` if it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
        (bits <= most).then_some(Self { address, bits })
    }

    /// True if it has an address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - u32::from(self.bits.min(32))).unwrap_or(0)
                    != 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits())
                    .checked_shr(128 - u32::from(self.bits.min(128)))
                    .unwrap_or(0)
                    != 0
            }
            _ => true,
        };
        !differing
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// What labels must be like. Without a requirement everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// All of them hold.
    pub requirements: Vec<Requirement>,
}

/// What one label must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Its key with its source, `k8s:app`, as Cilium's labels have it; the source `any` stands for all.
    pub key: String,
    /// What holds.
    pub test: Test,
}

/// What holds of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// It has one of these values.
    In(Vec<String>),
    /// It has none of these values, or is not there.
    NotIn(Vec<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// What labels, with their sources, lack for this selector; empty if it selects what has them.
    #[must_use]
    pub fn unmet(&self, labels: &Labels) -> Vec<&Requirement> {
        self.requirements.iter().filter(|requirement| !requirement.holds(labels)).collect()
    }

    /// True if it selects what has these labels.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    /// True if labels, with their sources, are so.
    #[must_use]
    pub fn holds(&self, labels: &Labels) -> bool {
        let mut values = values(labels, &self.key);
        match &self.test {
            Test::In(wanted) => values.any(|value| wanted.iter().any(|one| one == value)),
            Test::NotIn(unwanted) => !values.any(|value| unwanted.iter().any(|one| one == value)),
            Test::Exists => values.next().is_some(),
            Test::DoesNotExist => values.next().is_none(),
        }
    }
}

/// The values of a label, one for each source that has it.
pub fn values<'a>(labels: &'a Labels, key: &'a str) -> impl Iterator<Item = &'a str> {
    let any = key.strip_prefix("any:");
    let own = if any.is_none() { labels.get(key) } else { None };
    let is_it =
        move |full: &str| any.is_some_and(|key| full.split_once(':').is_some_and(|(_, it)| it == key));
    let others = labels.iter().filter(move |(full, _)| is_it(full)).map(|(_, value)| value);
    own.into_iter().chain(others).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn tests_of_labels() {
        let has = labels(&[("k8s:app", "web"), ("reserved:host", "")]);
        let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        for (key, test, expected) in [
            ("k8s:app", Test::In(list(&["api", "web"])), true),
            ("k8s:app", Test::In(list(&["api"])), false),
            ("k8s:app", Test::In(list(&[])), false),
            ("any:app", Test::In(list(&["web"])), true),
            ("reserved:app", Test::In(list(&["web"])), false),
            ("k8s:tier", Test::In(list(&["web"])), false),
            ("k8s:app", Test::NotIn(list(&["web"])), false),
            ("k8s:app", Test::NotIn(list(&["api"])), true),
            // What is not there has none of the values.
            ("k8s:tier", Test::NotIn(list(&["web"])), true),
            ("any:host", Test::Exists, true),
            ("k8s:host", Test::Exists, false),
            ("k8s:tier", Test::DoesNotExist, true),
            ("any:app", Test::DoesNotExist, false),
        ] {
            let requirement = Requirement { key: key.to_owned(), test };
            assert_eq!(requirement.holds(&has), expected, "{requirement:?}");
            let selector = Selector { requirements: vec![requirement] };
            assert_eq!((selector.selects(&has), selector.unmet(&has).is_empty()), (expected, expected));
        }
        assert!(Selector::default().selects(&has) && Selector::default().selects(&labels(&[])));
    }

    #[test]
    fn prefixes() {
        let is_in = |prefix: &str, address: &str| {
            Prefix::parse(prefix).map(|prefix| prefix.contains(address.parse().unwrap()))
        };
        for (prefix, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", Some(true)),
            ("10.0.0.0/8", "11.0.0.1", Some(false)),
            ("0.0.0.0/0", "203.0.113.1", Some(true)),
            ("0.0.0.0/0", "::1", Some(false)),
            ("::/0", "fd00::1", Some(true)),
            ("10.0.0.1", "10.0.0.1", Some(true)),
            ("10.0.0.1/32", "10.0.0.2", Some(false)),
            ("fd00::/127", "fd00::1", Some(true)),
            ("fd00::/127", "fd00::2", Some(false)),
            ("10.0.0.0/33", "10.0.0.0", None),
            ("10.0.0.0/-1", "10.0.0.0", None),
            ("10.0.0.0/", "10.0.0.0", None),
            ("nonsense", "10.0.0.0", None),
        ] {
            assert_eq!(is_in(prefix, address), expected, "{prefix} {address}");
        }
        assert_eq!(Prefix::parse("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
    }
}
