//! The answer: what of netfilter dropped a packet, as it stands in the JSON contract.

use super::program::Program;
use super::{conntrack, queue};
use crate::event::model::Class;
use serde::{Deserialize, Serialize};

/// What of netfilter dropped a packet. What is not known is null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Netfilter {
    /// Who keeps the rule.
    pub backend: Option<Backend>,
    /// The table's family; without a table, the hook's.
    pub family: Option<Family>,
    /// The hook in upper case: `PREROUTING`, `INPUT`, `FORWARD`, `OUTPUT`, `POSTROUTING`, `INGRESS`, `EGRESS`.
    pub hook: Option<String>,
    /// The table's name.
    pub table: Option<String>,
    /// The chain's name: of the rule, or the base chain whose policy dropped; where neither is known, the base chain that
    /// the packet was in, or in a chain behind it.
    pub chain: Option<String>,
    /// The rule's number in its chain as `iptables -L --line-numbers` shows it, from 1; null for native nft rules.
    pub rule: Option<u32>,
    /// The rule's handle as `nft -a list ruleset` shows it; null for legacy rules.
    pub handle: Option<u64>,
    /// The rule as the node's own tool prints it.
    pub text: Option<String>,
    /// `drop`, `reject`, `policy`, `queue`, `nat-failed`, `hotdrop`, or `expression:NAME`; of a hook function also
    /// `conntrack-table-full`, `conntrack-clash`, `nat-port-clash` ([`super::conntrack`]).
    pub verdict: Option<String>,
    /// What a reject sends back, for example `icmp-host-prohibited`.
    pub reject_with: Option<String>,
    /// Who wrote the rule: `kube-proxy`, `calico` ..., or `unknown`.
    pub owner: Option<String>,
    /// The hook function that dropped, for example `nf_conntrack_in`.
    pub function: Option<String>,
    /// For `nf_hook_run_bpf`: the BPF program that it runs.
    #[serde(default)]
    pub program: Option<Program>,
    /// Where rules of iptables are in both of its backends: chains of Kubernetes' components in the other one.
    #[serde(default)]
    pub other_backend: Option<String>,
    /// For a rule that matches a mark: the rules that set it.
    #[serde(default)]
    pub mark_set_by: Vec<RuleRef>,
    /// Where it is ambiguous: the rules that may have done it.
    #[serde(default)]
    pub candidates: Vec<RuleRef>,
    /// How it is known.
    pub method: Option<Method>,
    /// How sure it is: as sure as the least sure of what it says.
    pub confidence: Confidence,
}

impl Netfilter {
    /// The class of such a drop, where the answer knows better than the drop reason: not all that netfilter drops was
    /// decided by somebody.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        match self.verdict.as_deref()? {
            conntrack::TABLE_FULL => Some(Class::Resource),
            conntrack::CLASH | conntrack::NAT_CLASH | conntrack::NAT_FAILED | queue::QUEUE => {
                Some(Class::Error)
            }
            _ => None,
        }
    }

    /// What the answer for one packet says of others that the same function dropped. What its verdict rests on was that
    /// packet's.
    #[must_use]
    pub fn of_others(&self) -> Self {
        let is_its_own =
            self.method == Some(Method::Hook) && self.verdict.is_some() && self.program.is_none();
        let confidence = match self.confidence {
            Confidence::Exact if is_its_own => Confidence::Inferred,
            confidence => confidence,
        };
        Self { confidence, ..self.clone() }
    }
}

/// Another rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub chain: String,
    /// As [`Netfilter::rule`].
    pub rule: Option<u32>,
    /// As [`Netfilter::handle`].
    pub handle: Option<u64>,
    /// As [`Netfilter::text`].
    pub text: Option<String>,
}

/// Which of the kernel's two rule engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// x_tables: iptables-legacy.
    Legacy,
    /// nf_tables: nft and iptables-nft.
    Nft,
}

/// A table's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ipv4,
    /// ARP.
    Arp,
    /// One device's ingress or egress.
    Netdev,
    /// Frames that a bridge forwards.
    Bridge,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// From an `NFPROTO_*` number (include/uapi/linux/netfilter.h).
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Inet,
            2 => Self::Ipv4,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ipv6,
            _ => return None,
        })
    }

    /// Its `NFPROTO_*` number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ipv4 => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ipv6 => 10,
        }
    }

    /// What `nft` calls it.
    #[must_use]
    pub fn nft_name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ipv4 => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ipv6 => "ip6",
        }
    }

    /// What the JSON contract calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            other => other.nft_name(),
        }
    }
}

/// How the answer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The rules' own counters, compared at the drop.
    Counter,
    /// Registers of the function that dropped.
    Registers,
    /// Saved registers on the kernel's stack.
    Stack,
    /// A probe on the function that decided.
    Probe,
    /// The hook function alone.
    Hook,
    /// The packet evaluated against a snapshot of the rules.
    Evaluated,
}

/// How sure the answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// The kernel told.
    Exact,
    /// It follows from a snapshot, or is what most likely happened.
    Inferred,
    /// More than one rule may have done it, or none is known.
    #[default]
    Ambiguous,
}

/// How a kind of drop is attributed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The kernel tells; how.
    Exact(&'static str),
    /// It is not known which rule; why.
    Off(String),
}

/// Which mechanism is in force for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mechanisms {
    /// Rules of nft and iptables-nft.
    pub nft_rules: Mechanism,
    /// Policies of their base chains.
    pub nft_policies: Mechanism,
    /// Rules and policies of iptables-legacy.
    pub legacy: Mechanism,
    /// Other hook functions: conntrack, NAT ...
    pub functions: Mechanism,
    /// Which of nft's rules a followed packet met.
    pub nft_trace: Mechanism,
    /// True if a second program stays on the tracepoint.
    pub is_second_kept: bool,
}

/// The rules of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSummary {
    /// Inode number of the netns.
    pub netns: u32,
    /// Who keeps it.
    pub backend: Backend,
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// All rules (nft), or the rules and policies that can drop a packet (legacy).
    pub rules: usize,
    /// Hooks whose drops counters don't tell, because too many rules can drop there.
    pub left_out: Vec<&'static str>,
}

/// The name of a hook of a family (include/uapi/linux/netfilter.h, netfilter_bridge.h, netfilter_arp.h): numbers
/// mean different hooks in different families.
#[must_use]
pub fn hook_name(family: Family, hook: u8) -> Option<&'static str> {
    const INET: [&str; 6] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "INGRESS"];
    const ARP: [&str; 3] = ["INPUT", "OUTPUT", "FORWARD"];
    const NETDEV: [&str; 2] = ["INGRESS", "EGRESS"];
    let names: &[&str] = match family {
        Family::Inet | Family::Ipv4 | Family::Ipv6 => &INET,
        // NF_BR_BROUTING is 5.
        Family::Bridge => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "BROUTING"],
        Family::Arp => &ARP,
        Family::Netdev => &NETDEV,
    };
    names.get(usize::from(hook)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hooks_number_means_its_familys_hook() {
        assert_eq!(hook_name(Family::Ipv6, 2), Some("FORWARD"));
        assert_eq!(hook_name(Family::Arp, 1), Some("OUTPUT"));
        assert_eq!(hook_name(Family::Netdev, 1), Some("EGRESS"));
        assert_eq!(hook_name(Family::Netdev, 2), None);
    }

    #[test]
    fn what_nobody_decided_is_no_policy() {
        let class = |verdict: Option<&str>| {
            Netfilter { verdict: verdict.map(str::to_owned), ..Netfilter::default() }.class()
        };
        assert_eq!(class(Some("conntrack-table-full")), Some(Class::Resource));
        assert_eq!(class(Some("nat-port-clash")), Some(Class::Error));
        assert_eq!([class(Some("drop")), class(Some("policy")), class(None)], [None; 3]);
    }

    #[test]
    fn a_packets_own_verdict_is_not_known_of_others() {
        let answer = |method, verdict: Option<&str>, confidence| Netfilter {
            method: Some(method),
            verdict: verdict.map(str::to_owned),
            confidence,
            ..Netfilter::default()
        };
        let others = |method, verdict, confidence| answer(method, verdict, confidence).of_others().confidence;
        use Confidence::{Ambiguous, Exact, Inferred};
        assert_eq!(others(Method::Hook, Some("nat-failed"), Exact), Inferred);
        assert_eq!(others(Method::Hook, Some("conntrack-clash"), Inferred), Inferred);
        assert_eq!(others(Method::Hook, None, Exact), Exact);
        assert_eq!(others(Method::Hook, None, Ambiguous), Ambiguous);
        assert_eq!(others(Method::Stack, Some("drop"), Exact), Exact);
    }

    #[test]
    fn the_contracts_spelling() {
        let answer = Netfilter {
            backend: Some(Backend::Nft),
            family: Some(Family::Ipv6),
            method: Some(Method::Stack),
            confidence: Confidence::Exact,
            ..Netfilter::default()
        };
        let json = serde_json::to_value(answer).unwrap();
        for (name, value) in
            [("backend", "nft"), ("family", "ipv6"), ("method", "stack"), ("confidence", "exact")]
        {
            assert_eq!(json[name], value);
        }
        assert!(json["rule"].is_null());
        for number in 0..16 {
            if let Some(family) = Family::from_number(number) {
                assert_eq!(family.number(), number);
                assert_eq!(serde_json::to_value(family).unwrap(), family.name());
            }
        }
    }
}
