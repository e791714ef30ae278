//! The answer: what Cilium said of a drop, as it stands in the JSON contract.

use super::codes;
use super::identity::Identity;
use super::maps::Direction;
use crate::event::model::Class;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What of Cilium dropped a packet. What Cilium left in the packet is certain: codes, identities, endpoint, file and line.
/// The rest was looked up later, in maps that may have changed since. What is not known is null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cilium {
    /// Its drop code, for example 133; null if its program left none.
    pub code: Option<u8>,
    /// The code's name in the datapath without `DROP_`: `POLICY`.
    pub name: Option<String>,
    /// What Cilium's own tools say for it: `Policy denied`.
    pub message: String,
    /// The extended error; null if there is none.
    pub extended_error: Option<i8>,
    /// What that means, for example `authentication type 1: SPIRE`.
    pub extended_message: Option<String>,
    /// What kind of verdict it is; null without a code.
    pub verdict_by: Option<VerdictBy>,
    /// The endpoint's id on this node.
    pub endpoint: Option<u32>,
    /// Which way the packet went, seen from the endpoint.
    pub direction: Option<Direction>,
    /// Who sent it, to Cilium.
    pub source_identity: Option<Identity>,
    /// Who was to get it, to Cilium.
    pub destination_identity: Option<Identity>,
    /// The entry of Cilium's ipcache that gives the source address its identity now, for example `0.0.0.0/0`: then it has
    /// none of its own. Null if it was not asked.
    pub source_prefix: Option<String>,
    /// Likewise for the destination.
    pub destination_prefix: Option<String>,
    /// The policies that select the endpoint in this direction; null if they are not known.
    pub policies: Option<Vec<Policy>>,
    /// The policy map's entry that denies the packet now, or allows it only with authentication.
    pub entry: Option<Entry>,
    /// The policy map's entries that come nearest to allowing the packet, the nearest first.
    pub nearest: Vec<Entry>,
    /// Whether the policy map allows the packet now. If so the policy was changed since, or was being made at the drop.
    pub allowed_now: Option<bool>,
    /// The Cilium program on the device's hook.
    pub program: Option<String>,
    /// The source file in Cilium's datapath that dropped it: `bpf_lxc.c`, or `header #103`.
    pub file: Option<String>,
    /// The line in it, which means something only with the exact version.
    pub line: Option<u16>,
    /// What follows from all that: a sentence each, the gravest first.
    pub notes: Vec<String>,
    /// What could not be read: a sentence each.
    pub unread: Vec<String>,
}

impl Cilium {
    /// The class of such a drop of a packet to `destination`, where the code tells it. A pod that asks for IPv6 routers
    /// where the cluster has no IPv6 does so all the time, and nothing is wrong.
    #[must_use]
    pub fn class(&self, destination: Option<IpAddr>) -> Option<Class> {
        let code = self.code.and_then(codes::find)?;
        let is_v6_multicast = matches!(destination, Some(IpAddr::V6(address)) if address.is_multicast());
        Some(if code.number == codes::UNKNOWN_L3 && is_v6_multicast { Class::Routine } else { code.class })
    }
}

/// What kind of verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictBy {
    /// A policy selects the endpoint, and none allows the packet.
    DefaultDeny,
    /// An entry denies it.
    DenyEntry,
    /// An entry allows it to those who have authenticated.
    Auth,
    /// No policy: an error, a limit.
    Other,
}

impl VerdictBy {
    /// The kind of a drop code.
    #[must_use]
    pub fn of(code: u8) -> Self {
        match code {
            codes::POLICY => Self::DefaultDeny,
            codes::POLICY_DENY => Self::DenyEntry,
            codes::POLICY_AUTH_REQUIRED => Self::Auth,
            _ => Self::Other,
        }
    }
}

/// A policy that selects the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// Its namespace; null if it has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// `NetworkPolicy`, `CiliumNetworkPolicy` or `CiliumClusterwideNetworkPolicy`.
    pub kind: String,
    /// Why it didn't allow the packet, one sentence.
    pub why_not: Option<String>,
}

/// An entry of a policy map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// The peer; null is any.
    pub identity: Option<Identity>,
    /// `tcp`, `udp` ..., or the protocol's number; null is any.
    pub protocol: Option<String>,
    /// The destination port, or the first of a range; of ICMP the type; null is any.
    pub port: Option<u16>,
    /// The last port of a range; null if it is none.
    pub port_last: Option<u16>,
    /// It denies.
    pub deny: bool,
    /// How the peers must authenticate; null if they need not.
    pub auth: Option<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_spelling() {
        let answer = Cilium {
            code: Some(133),
            verdict_by: Some(VerdictBy::of(133)),
            direction: Some(Direction::Ingress),
            source_identity: Some(Identity { id: 2, labels: Some(vec!["reserved:world".to_owned()]) }),
            ..Cilium::default()
        };
        let json = serde_json::to_value(&answer).unwrap();
        assert_eq!(json["verdict_by"], "default-deny");
        assert_eq!(json["direction"], "ingress");
        assert_eq!(json["source_identity"], serde_json::json!({"id": 2, "labels": ["reserved:world"]}));
        assert!(json["policies"].is_null() && json["nearest"].is_array());
        assert_eq!(serde_json::from_value::<Cilium>(json).unwrap(), answer);
        let kinds = [181, 189, 155].map(|code| serde_json::to_value(VerdictBy::of(code)).unwrap());
        assert_eq!(kinds, ["deny-entry", "auth", "other"]);
    }

    #[test]
    fn classes() {
        let class = |code, to: &str| Cilium { code, ..Cilium::default() }.class(to.parse().ok());
        assert_eq!(class(Some(133), "10.0.0.1"), Some(Class::Policy));
        assert_eq!(class(Some(139), "ff02::2"), Some(Class::Routine));
        assert_eq!([class(Some(139), "fd00::2"), class(Some(139), "")], [Some(Class::Error); 2]);
        assert_eq!([class(None, "ff02::2"), class(Some(209), "ff02::2")], [None; 2]);
    }
}
