//! NetworkPolicy of networking.k8s.io/v1, and what Cilium's policies have in common with it: label selectors.
//!
//! Source: the API reference of Kubernetes 1.36; how Cilium takes it: pkg/k8s/network_policy.go.

use super::wire::{Meta, nullable};
use super::{Found, Unreadable, convert, limits};
use crate::identity::object::{Object, Protocol};
use crate::identity::policy::{
    NAMESPACE, NAMESPACE_LABELS, Part, Peer, Policy, PolicyKind, Port, Prefix, Requirement, Rule, Selector,
    Test, Way,
};
use serde::Deserialize;
use std::collections::BTreeMap;

wire! {
    NetworkPolicy { metadata: Meta, spec: Spec, }
    Spec {
        pod_selector: LabelSelector,
        policy_types: Vec<String>,
        ingress: Vec<Ingress>,
        egress: Vec<Egress>,
    }
    Ingress { from: Vec<From>, ports: Vec<NetworkPort>, }
    Egress { to: Vec<From>, ports: Vec<NetworkPort>, }
    From { pod_selector: Option<LabelSelector>, namespace_selector: Option<LabelSelector>, ip_block: Option<Block>, }
    Block { cidr: String, except: Vec<String>, }
    NetworkPort { protocol: Option<String>, port: Option<Word>, end_port: Option<u16>, }

    LabelSelector { match_labels: BTreeMap<String, String>, match_expressions: Vec<Expression>, }
    Expression { key: String, operator: String, values: Vec<String>, }
}

/// A number or a name (IntOrString).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Word {
    Number(i64),
    Text(String),
}

/// Keeps count of what was too much.
#[derive(Debug, Default)]
pub(super) struct Cut(pub(super) bool);

impl Cut {
    /// As many as are kept.
    pub(super) fn take<T>(&mut self, list: Vec<T>, most: usize) -> impl Iterator<Item = T> + use<T> {
        self.0 |= list.len() > most;
        list.into_iter().take(most)
    }
}

pub(super) fn network(wire: NetworkPolicy) -> Result<Found, Unreadable> {
    let NetworkPolicy { metadata, spec } = wire;
    let name = convert::full_name(&metadata)?;
    let mut cut = Cut::default();
    let here = || Requirement { key: NAMESPACE.to_owned(), test: Test::In(vec![name.namespace.clone()]) };
    let mut subject = selector(spec.pod_selector, |key| format!("k8s:{key}"), &mut cut)?;
    subject.requirements.push(here());
    let has = |kind: &str| spec.policy_types.iter().any(|it| it == kind);
    // Without types it is about ingress, and about egress if it has such rules (the API's defaulting).
    let is_ingress = spec.policy_types.is_empty() || has("Ingress");
    let is_egress = has("Egress") || spec.policy_types.is_empty() && !spec.egress.is_empty();
    let mut way = |applies: bool, rules: Vec<(Vec<From>, Vec<NetworkPort>)>| {
        let allow = cut.take(rules, limits::RULES).collect::<Vec<_>>();
        let allow = allow.into_iter().map(|(peers, ports)| rule(peers, ports, &here, &mut cut));
        Ok::<_, Unreadable>(Way {
            applies,
            denies_by_default: applies,
            allow: allow.collect::<Result<_, _>>()?,
            deny: Vec::new(),
        })
    };
    let ingress = way(is_ingress, spec.ingress.into_iter().map(|rule| (rule.from, rule.ports)).collect())?;
    let egress = way(is_egress, spec.egress.into_iter().map(|rule| (rule.to, rule.ports)).collect())?;
    let parts = vec![Part { subject, is_of_nodes: false, ingress, egress }];
    let policy = Policy { kind: PolicyKind::Network, name, parts, is_cut: cut.0 };
    Ok(Found { version: metadata.resource_version, object: Object::Policy(policy) })
}

fn rule(
    peers: Vec<From>,
    ports: Vec<NetworkPort>,
    here: &impl Fn() -> Requirement,
    cut: &mut Cut,
) -> Result<Rule, Unreadable> {
    // An empty list is the same as none: not restricted.
    let peers = if peers.is_empty() {
        None
    } else {
        let mut all = Vec::new();
        for peer in cut.take(peers, limits::PEERS).collect::<Vec<_>>() {
            all.extend(self::peer(peer, here, cut)?);
        }
        Some(all)
    };
    let ports = (!ports.is_empty()).then(|| cut.take(ports, limits::PORTS).map(port).collect());
    Ok(Rule { peers, ports, authenticates: false })
}

/// One peer; a block beside selectors, which the API refuses, would be another.
fn peer(wire: From, here: &impl Fn() -> Requirement, cut: &mut Cut) -> Result<Vec<Peer>, Unreadable> {
    let From { pod_selector, namespace_selector, ip_block } = wire;
    let mut peers = Vec::new();
    if pod_selector.is_some() || namespace_selector.is_some() {
        let mut endpoints = selector(pod_selector.unwrap_or_default(), |key| format!("k8s:{key}"), cut)?;
        match namespace_selector {
            None => endpoints.requirements.push(here()),
            Some(namespaces) => {
                let of = selector(namespaces, |key| format!("{NAMESPACE_LABELS}{key}"), cut)?;
                if of.requirements.is_empty() {
                    endpoints
                        .requirements
                        .push(Requirement { key: NAMESPACE.to_owned(), test: Test::Exists });
                }
                endpoints.requirements.extend(of.requirements);
            }
        }
        peers.push(Peer::Endpoints(endpoints));
    }
    peers.extend(ip_block.map(|block| self::block(&block.cidr, block.except, cut)));
    Ok(peers)
}

/// A block of addresses. One that can't be read allows nothing that could be told.
pub(super) fn block(cidr: &str, except: Vec<String>, cut: &mut Cut) -> Peer {
    let except = cut.take(except, limits::PEERS).map(|text| Prefix::parse(&text)).collect::<Option<_>>();
    match (Prefix::parse(cidr), except) {
        (Some(prefix), Some(except)) => Peer::Block(prefix, except),
        _ => Peer::Unread("a CIDR that can't be read"),
    }
}

fn port(wire: NetworkPort) -> Port {
    let NetworkPort { protocol, port, end_port } = wire;
    let number = convert::protocol(protocol.as_deref());
    match (number, port) {
        (None, _) => Port::Protocol(protocol.unwrap_or_default()),
        (protocol, None) => Port::Range { protocol, first: 0, last: u16::MAX },
        (protocol, Some(port)) => numbered(protocol, port, end_port),
    }
}

/// A port by its number, or name; up to an end if that is given.
pub(super) fn numbered(protocol: Option<Protocol>, port: Word, end: Option<u16>) -> Port {
    let number = match &port {
        Word::Number(number) => u16::try_from(*number).ok(),
        Word::Text(text) => text.parse().ok(),
    };
    match (number, port) {
        (Some(0), _) => Port::Range { protocol, first: 0, last: u16::MAX },
        (Some(first), _) => Port::Range { protocol, first, last: end.unwrap_or(first).max(first) },
        (None, Word::Text(name)) => Port::Named { protocol, name },
        (None, Word::Number(number)) => Port::Named { protocol, name: number.to_string() },
    }
}

/// A label selector. `key` gives a label's key its source.
pub(super) fn selector(
    wire: LabelSelector,
    key: impl Fn(&str) -> String,
    cut: &mut Cut,
) -> Result<Selector, Unreadable> {
    let LabelSelector { match_labels, match_expressions } = wire;
    let labels = match_labels
        .into_iter()
        .map(|(name, value)| Requirement { key: key(&name), test: Test::In(vec![value]) })
        .collect();
    let mut requirements: Vec<_> = cut.take(labels, limits::LABELS).collect();
    for Expression { key: name, operator, values } in
        cut.take(match_expressions, limits::LABELS).collect::<Vec<_>>()
    {
        let values = cut.take(values, limits::VALUES).collect();
        let test = match operator.as_str() {
            "In" => Test::In(values),
            "NotIn" => Test::NotIn(values),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            other => return Err(Unreadable::Json(format!("a selector has the operator {other:?}"))),
        };
        requirements.push(Requirement { key: key(&name), test });
    }
    Ok(Selector { requirements })
}
