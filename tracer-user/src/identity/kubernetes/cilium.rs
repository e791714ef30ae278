//! Cilium's own objects of cilium.io/v2: policies and identities.
//!
//! Source: the CRDs of Cilium 1.12 to 1.19 (pkg/policy/api), and how it takes them: pkg/k8s/apis/cilium.io/utils.

use super::policy::{Cut, LabelSelector, Word, block, numbered, selector};
use super::wire::{Meta, nullable};
use super::{Found, Unreadable, convert, limits};
use crate::identity::object::{Identity, Name, Object};
use crate::identity::policy::{
    NAMESPACE, NAMESPACE_LABELS, Part, Peer, Policy, PolicyKind, Port, Requirement, Rule, Selector, Test, Way,
};
use serde::Deserialize;
use std::collections::BTreeMap;

wire! {
    CiliumPolicy { metadata: Meta, spec: Option<Spec>, specs: Vec<Spec>, }
    Spec {
        endpoint_selector: Option<LabelSelector>,
        node_selector: Option<LabelSelector>,
        ingress: Vec<RuleWire>,
        ingress_deny: Vec<RuleWire>,
        egress: Vec<RuleWire>,
        egress_deny: Vec<RuleWire>,
        enable_default_deny: DefaultDeny,
    }
    DefaultDeny { ingress: Option<bool>, egress: Option<bool>, }
    /// Of either direction: a rule has the fields of its own.
    RuleWire {
        #[serde(alias = "toEndpoints")]
        from_endpoints: Option<Vec<LabelSelector>>,
        #[serde(alias = "toEntities")]
        from_entities: Option<Vec<String>>,
        #[serde(rename = "fromCIDR", alias = "toCIDR")]
        from_cidr: Option<Vec<String>>,
        #[serde(rename = "fromCIDRSet", alias = "toCIDRSet")]
        from_cidr_set: Option<Vec<Block>>,
        #[serde(alias = "toGroups")]
        from_groups: Option<Vec<Groups>>,
        #[serde(alias = "toNodes")]
        from_nodes: Option<Vec<LabelSelector>>,
        #[serde(alias = "toRequires")]
        from_requires: Option<Vec<Ignored>>,
        #[serde(rename = "toFQDNs")]
        to_fqdns: Option<Vec<Fqdn>>,
        to_services: Option<Vec<ServiceWire>>,
        to_ports: Option<Vec<PortRule>>,
        icmps: Option<Vec<IcmpRule>>,
        authentication: Option<Authentication>,
    }
    Ignored {}
    Groups { aws: Option<Ignored>, }
    Block { cidr: String, except: Vec<String>, cidr_group_ref: String, cidr_group_selector: Option<LabelSelector>, }
    Fqdn { match_name: String, match_pattern: String, }
    ServiceWire { k8s_service: Option<ServiceName>, }
    ServiceName { service_name: String, namespace: String, }
    PortRule { ports: Vec<PortWire>, }
    PortWire { port: Option<Word>, end_port: Option<i64>, protocol: Option<String>, }
    IcmpRule { fields: Vec<IcmpField>, }
    IcmpField { family: String, r#type: Option<Word>, }
    Authentication { mode: String, }

    CiliumIdentity {
        metadata: Meta,
        #[serde(rename = "security-labels")]
        security_labels: BTreeMap<String, String>,
    }
}

/// An identity: its name is its number.
pub(super) fn identity(wire: CiliumIdentity) -> Result<Found, Unreadable> {
    let CiliumIdentity { metadata, security_labels } = wire;
    let id = number(&convert::name(metadata.name)?)?;
    let labels = convert::labels_within(security_labels, limits::SECURITY_LABEL);
    Ok(Found { version: metadata.resource_version, object: Object::Identity(Identity { id, labels }) })
}

/// What an identity is known by, from its name.
pub(super) fn identity_key(name: &str) -> Result<String, Unreadable> {
    Ok(number(name)?.to_string())
}

fn number(name: &str) -> Result<u32, Unreadable> {
    name.parse().map_err(|_| Unreadable::Json("the name of an identity is no number".to_owned()))
}

/// A CiliumNetworkPolicy, or a CiliumClusterwideNetworkPolicy.
pub(super) fn policy(kind: PolicyKind, wire: CiliumPolicy) -> Result<Found, Unreadable> {
    let CiliumPolicy { metadata, spec, specs } = wire;
    let name = match kind {
        PolicyKind::Clusterwide => Name::new("", convert::name(metadata.name.clone())?),
        _ => convert::full_name(&metadata)?,
    };
    let mut reading =
        Reading { namespace: &name.namespace, is_init: false, is_taken_over: false, cut: Cut::default() };
    let mut parts = Vec::new();
    for spec in spec.into_iter().chain(specs).take(limits::RULES) {
        parts.extend(reading.part(spec)?);
    }
    let is_cut = reading.cut.0;
    let object = Object::Policy(Policy { kind, name, parts, is_cut });
    Ok(Found { version: metadata.resource_version, object })
}

/// What a rule is made of that Cilium has taken over already, and whether it has more than is kept.
pub(super) fn parts_taken_over(spec: Spec) -> Result<(Vec<Part>, bool), Unreadable> {
    let mut reading = Reading { namespace: "", is_init: false, is_taken_over: true, cut: Cut::default() };
    let parts = reading.part(spec)?.into_iter().collect();
    Ok((parts, reading.cut.0))
}

/// A label's key with its source; without one any source will do.
fn key(text: &str) -> String {
    if text.contains(':') { text.to_owned() } else { format!("any:{text}") }
}

struct Reading<'a> {
    /// The policy's; empty if it is of the whole cluster.
    namespace: &'a str,
    /// The part selects pods that have no labels yet.
    is_init: bool,
    /// Cilium has taken it over already: its selectors have all that they mean.
    is_taken_over: bool,
    cut: Cut,
}

impl Reading<'_> {
    /// A part; `None` if it is about nobody. A policy on nodes has no namespace.
    fn part(&mut self, spec: Spec) -> Result<Option<Part>, Unreadable> {
        let (subject, is_of_nodes) = match (spec.endpoint_selector, spec.node_selector) {
            (Some(pods), _) => (pods, false),
            (None, Some(nodes)) if self.namespace.is_empty() => (nodes, true),
            (None, _) => return Ok(None),
        };
        let mut subject = selector(subject, key, &mut self.cut)?;
        self.is_init = subject.requirements.iter().any(|it| it.key == "reserved:init");
        if !self.namespace.is_empty() {
            // A namespace that the selector asks for makes no difference: it applies in its own.
            subject.requirements.retain(|it| !is_namespace(&it.key));
            subject.requirements.push(self.here());
        }
        let DefaultDeny { ingress, egress } = spec.enable_default_deny;
        Ok(Some(Part {
            subject,
            is_of_nodes,
            ingress: self.way(spec.ingress, spec.ingress_deny, ingress)?,
            egress: self.way(spec.egress, spec.egress_deny, egress)?,
        }))
    }

    fn here(&self) -> Requirement {
        Requirement { key: NAMESPACE.to_owned(), test: Test::In(vec![self.namespace.to_owned()]) }
    }

    /// A direction. If nothing else is said, having rules for it is what makes it deny by default.
    fn way(
        &mut self,
        allow: Vec<RuleWire>,
        deny: Vec<RuleWire>,
        denies: Option<bool>,
    ) -> Result<Way, Unreadable> {
        let has_rules = !allow.is_empty() || !deny.is_empty();
        let denies_by_default = denies.unwrap_or(has_rules);
        Ok(Way {
            applies: has_rules || denies_by_default,
            denies_by_default,
            allow: self.rules(allow)?,
            deny: self.rules(deny)?,
        })
    }

    fn rules(&mut self, rules: Vec<RuleWire>) -> Result<Vec<Rule>, Unreadable> {
        let rules: Vec<_> = self.cut.take(rules, limits::RULES).collect();
        rules.into_iter().map(|rule| self.rule(rule)).collect()
    }

    fn rule(&mut self, wire: RuleWire) -> Result<Rule, Unreadable> {
        let authenticates =
            wire.authentication.as_ref().is_some_and(|it| !matches!(it.mode.as_str(), "" | "disabled"));
        let ports = self.ports(wire.to_ports, wire.icmps);
        let mut peers: Option<Vec<Peer>> = None;
        // An empty list of peers is nobody.
        let mut add = |more: Option<Vec<Peer>>| {
            if let Some(more) = more {
                peers.get_or_insert_default().extend(more);
            }
        };
        let endpoints = wire.from_endpoints.map(|list| {
            let list: Vec<_> = self.cut.take(list, limits::PEERS).collect();
            list.into_iter().map(|one| self.endpoints(one)).collect::<Result<Vec<_>, _>>()
        });
        add(endpoints.transpose()?);
        let cut = &mut self.cut;
        add(wire.from_entities.map(|list| cut.take(list, limits::PEERS).map(Peer::Entity).collect()));
        add(wire.from_cidr.map(|list| {
            let list: Vec<_> = cut.take(list, limits::PEERS).collect();
            list.iter().map(|cidr| block(cidr, Vec::new(), cut)).collect()
        }));
        add(wire.from_cidr_set.map(|list| {
            let list: Vec<_> = cut.take(list, limits::PEERS).collect();
            list.into_iter().map(|one| group_or_block(one, cut)).collect()
        }));
        add(wire.to_fqdns.map(|list| cut.take(list, limits::PEERS).map(dns_name).collect()));
        add(wire.to_services.map(|list| cut.take(list, limits::PEERS).map(service).collect()));
        let nodes = wire.from_nodes.map(|list| {
            let list: Vec<_> = cut.take(list, limits::PEERS).collect();
            list.into_iter().map(|one| selector(one, key, cut).map(Peer::Nodes)).collect::<Result<_, _>>()
        });
        add(nodes.transpose()?);
        add(wire.from_groups.map(|list| cut.take(list, limits::PEERS).map(|one| group(&one)).collect()));
        if wire.from_requires.is_some_and(|list| !list.is_empty()) {
            // It narrows what the others say.
            peers = Some(vec![Peer::Unread("requires")]);
        }
        // A rule without anything allows nothing: the way to deny all.
        if ports.is_none() && peers.is_none() {
            peers = Some(Vec::new());
        }
        Ok(Rule { peers, ports, authenticates })
    }

    /// Endpoints of the policy's namespace, unless the selector names namespaces; of any that has one, if the policy is of
    /// the whole cluster.
    fn endpoints(&mut self, wire: LabelSelector) -> Result<Peer, Unreadable> {
        let mut selector: Selector = selector(wire, key, &mut self.cut)?;
        if self.is_taken_over {
            return Ok(Peer::Endpoints(selector));
        }
        let mut keys = selector.requirements.iter().map(|it| it.key.as_str());
        let any = NAMESPACE_LABELS.replacen("k8s:", "any:", 1);
        let is_reserved = keys.clone().any(|key| key.starts_with("reserved:"));
        let has_labels = keys.clone().any(|key| key.starts_with(NAMESPACE_LABELS) || key.starts_with(&any));
        let has_namespace = keys.any(is_namespace);
        if !is_reserved && !has_namespace {
            if !self.namespace.is_empty() {
                if !has_labels {
                    selector.requirements.push(self.here());
                }
            } else if !self.is_init {
                selector.requirements.push(Requirement { key: NAMESPACE.to_owned(), test: Test::Exists });
            }
        }
        Ok(Peer::Endpoints(selector))
    }

    fn ports(&mut self, ports: Option<Vec<PortRule>>, icmps: Option<Vec<IcmpRule>>) -> Option<Vec<Port>> {
        let ports = ports.filter(|list| !list.is_empty());
        let icmps = icmps.filter(|list| !list.is_empty());
        if ports.is_none() && icmps.is_none() {
            return None;
        }
        let ports = ports.into_iter().flatten().flat_map(|rule| rule.ports).map(port);
        let icmps = icmps.into_iter().flatten().flat_map(|rule| rule.fields).map(icmp);
        Some(self.cut.take(ports.chain(icmps).collect(), limits::PORTS).collect())
    }
}

fn is_namespace(key: &str) -> bool {
    key == NAMESPACE
        || key.strip_prefix("any:").is_some_and(|key| NAMESPACE.strip_prefix("k8s:") == Some(key))
}

fn group_or_block(wire: Block, cut: &mut Cut) -> Peer {
    if wire.cidr.is_empty() && (!wire.cidr_group_ref.is_empty() || wire.cidr_group_selector.is_some()) {
        let name = if wire.cidr_group_ref.is_empty() { "chosen by labels" } else { &wire.cidr_group_ref };
        return Peer::Listed(format!("a CiliumCIDRGroup ({name})"));
    }
    block(&wire.cidr, wire.except, cut)
}

/// A group of a cloud provider (pkg/policy/api/groups.go): the operator asks the provider for its addresses, and makes another
/// policy of them.
fn group(wire: &Groups) -> Peer {
    let of = if wire.aws.is_some() { "an AWS security group" } else { "a group of a cloud provider" };
    Peer::Listed(format!("{of} (toGroups; Cilium puts its addresses into a policy of their own)"))
}

fn dns_name(wire: Fqdn) -> Peer {
    Peer::DnsName(if wire.match_name.is_empty() { wire.match_pattern } else { wire.match_name })
}

fn service(wire: ServiceWire) -> Peer {
    Peer::Service(match wire.k8s_service {
        Some(ServiceName { service_name, namespace }) => format!("{namespace}/{service_name}"),
        None => "by labels".to_owned(),
    })
}

fn port(wire: PortWire) -> Port {
    let PortWire { port, end_port, protocol } = wire;
    let end = end_port.and_then(|end| u16::try_from(end).ok());
    let word = port.unwrap_or(Word::Number(0));
    match protocol.as_deref().map(str::to_uppercase).as_deref() {
        None | Some("" | "ANY") => match numbered(None, word, end) {
            // Then it is of protocols without ports, too.
            Port::Range { first: 0, .. } => Port::Protocol(String::new()),
            port => port,
        },
        Some(name) => match convert::protocol(Some(name)) {
            None => Port::Protocol(name.to_owned()),
            protocol => numbered(protocol, word, end),
        },
    }
}

fn icmp(wire: IcmpField) -> Port {
    let is_v6 = wire.family == "IPv6";
    let kind = match wire.r#type {
        Some(Word::Number(number)) => u8::try_from(number).map_err(|_| number.to_string()),
        Some(Word::Text(text)) => text.parse().ok().or_else(|| icmp_type(&text, is_v6)).ok_or(text),
        None => Err(String::new()),
    };
    Port::Icmp { is_v6, kind }
}

/// The number of a type that goes by Cilium's name (pkg/policy/api/icmp.go); only those that are of use.
fn icmp_type(name: &str, is_v6: bool) -> Option<u8> {
    let (v4, v6) = match name {
        "EchoReply" => (0, 129),
        "DestinationUnreachable" => (3, 1),
        "Echo" if !is_v6 => (8, 0),
        "EchoRequest" => (8, 128),
        "TimeExceeded" => (11, 3),
        "ParameterProblem" => (12, 4),
        "PacketTooBig" if is_v6 => (0, 2),
        _ => return None,
    };
    Some(if is_v6 { v6 } else { v4 })
}
