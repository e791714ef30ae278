//! What drops are grouped by. A key gives each drop one label, or none: so whatever the keys, every drop is in exactly
//! one group. Labels are safe to print, and the same in all forms of output.

use crate::event::model::{Drop, Endpoint, K8s};
use crate::netfilter::model::{Backend, Family, Netfilter};
use crate::output::{escape, words};

/// A key. Pod, namespace and workload without a side are those of one end, the same for all of them
/// ([`subject`]); the twins say which end is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Key {
    /// The rule, program or policy that dropped it, as in the stream, else reason and location
    Place,
    /// The kernel's drop reason
    Reason,
    /// Where in the kernel it was freed
    Location,
    /// The cause's name
    Cause,
    /// policy, error, resource or routine
    Class,
    /// The netfilter rule, or the chain whose policy dropped it
    Rule,
    /// The rule's chain, with its table
    Chain,
    /// The rule's table
    Table,
    /// The netfilter or tc hook
    Hook,
    /// Who wrote the rule
    Owner,
    /// Network policies that select the pod, as Cilium tells them
    Policy,
    /// The BPF program or tc filter
    Program,
    /// The pod it was for, else the one it came from
    Pod,
    /// The pod it came from
    FromPod,
    /// The pod it was for
    ToPod,
    /// That pod's namespace, else the service's
    Namespace,
    /// The source's namespace
    FromNamespace,
    /// The destination's namespace
    ToNamespace,
    /// That pod's workload
    Workload,
    /// The source's workload
    FromWorkload,
    /// The destination's workload
    ToWorkload,
    /// The service it was for, else the one it came from
    Service,
    /// The source's service
    FromService,
    /// The destination's service
    ToService,
    /// Who sent it: name, else address
    Source,
    /// Whom it was for: name, else address
    Destination,
    /// Source and destination
    Pair,
    /// The port that was dialled: the destination's, but of a reply the source's
    Port,
    /// The source's port
    FromPort,
    /// The destination's port
    ToPort,
    /// tcp, udp, icmp ..., else arp and such
    Protocol,
    /// ipv4, ipv6, arp ...
    Family,
    /// The interface that it was on, else came in by, else was to leave by
    Interface,
    /// The network namespace's inode number
    Netns,
    /// The node that dropped it
    Node,
}

impl Key {
    /// Its name on the command line and in what is printed.
    #[must_use]
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The fields of a drop that its label is made of, as paths; what every drop must have is not among them.
    #[must_use]
    pub fn reads(self) -> &'static [&'static str] {
        match self {
            Self::Place => &["drop.reason", "drop.location", "drop.netfilter", "drop.cilium", "drop.bpf"],
            Self::Reason => &["drop.reason"],
            Self::Location => &["drop.location"],
            Self::Cause | Self::Class | Self::Node => &[],
            Self::Rule => &[
                "drop.netfilter.backend",
                "drop.netfilter.family",
                "drop.netfilter.table",
                "drop.netfilter.chain",
                "drop.netfilter.rule",
                "drop.netfilter.handle",
                "drop.netfilter.verdict",
                "drop.netfilter.confidence",
            ],
            Self::Chain => &["drop.netfilter.table", "drop.netfilter.chain", "drop.netfilter.confidence"],
            Self::Table => &["drop.netfilter.table", "drop.netfilter.confidence"],
            Self::Hook => &["drop.netfilter.hook", "drop.netfilter.confidence", "drop.bpf"],
            Self::Owner => &["drop.netfilter.owner", "drop.netfilter.confidence"],
            Self::Policy => &["drop.cilium"],
            Self::Program => {
                &["drop.netfilter.program", "drop.netfilter.confidence", "drop.cilium", "drop.bpf"]
            }
            Self::Pod | Self::Namespace | Self::Workload | Self::Service => {
                &["source.k8s", "destination.k8s"]
            }
            Self::FromPod | Self::FromNamespace | Self::FromWorkload | Self::FromService => &["source.k8s"],
            Self::ToPod | Self::ToNamespace | Self::ToWorkload | Self::ToService => &["destination.k8s"],
            Self::Source => &["source"],
            Self::Destination => &["destination"],
            Self::Pair => &["source", "destination"],
            Self::Port => &["source.port", "destination.port", "conntrack.direction"],
            Self::FromPort => &["source.port"],
            Self::ToPort => &["destination.port"],
            Self::Protocol => &["network.transport", "network.family"],
            Self::Family => &["network.family"],
            Self::Interface => &["network.interface", "network.interface_in", "network.interface_out"],
            Self::Netns => &["network.netns"],
        }
    }

    /// The drop's label; `None` where it has none.
    #[must_use]
    pub fn label(self, drop: &Drop) -> Option<String> {
        let why = &drop.drop;
        let (netfilter, from, to) = (why.netfilter.as_deref(), &drop.source, &drop.destination);
        let label = match self {
            Self::Place => Some(words::place(drop)),
            Self::Reason => text(&why.reason),
            Self::Location => text(&why.location),
            Self::Cause => why.cause.as_ref().map(|cause| escape(&cause.id).into_owned()),
            Self::Class => Some(words::class(drop).to_owned()),
            Self::Rule => netfilter.and_then(rule),
            Self::Chain => netfilter.and_then(chain),
            Self::Table => netfilter.and_then(|it| text(&it.table)),
            Self::Hook => hook(drop),
            Self::Owner => netfilter.and_then(|it| text(&it.owner)),
            Self::Policy => policies(drop),
            Self::Program => program(drop),
            Self::Pod => subject(drop).and_then(pod),
            Self::FromPod => from.k8s.as_ref().and_then(pod),
            Self::ToPod => to.k8s.as_ref().and_then(pod),
            Self::Namespace => subject(drop).and_then(|it| text(&it.namespace)),
            Self::FromNamespace => from.k8s.as_ref().and_then(|it| text(&it.namespace)),
            Self::ToNamespace => to.k8s.as_ref().and_then(|it| text(&it.namespace)),
            Self::Workload => subject(drop).and_then(workload),
            Self::FromWorkload => from.k8s.as_ref().and_then(workload),
            Self::ToWorkload => to.k8s.as_ref().and_then(workload),
            Self::Service => [to, from].into_iter().find_map(|end| end.k8s.as_ref().and_then(service)),
            Self::FromService => from.k8s.as_ref().and_then(service),
            Self::ToService => to.k8s.as_ref().and_then(service),
            Self::Source => end(from),
            Self::Destination => end(to),
            Self::Pair => pair(from, to),
            Self::Port => (if is_reply(drop) { from } else { to }).port.map(|port| port.to_string()),
            Self::FromPort => from.port.map(|port| port.to_string()),
            Self::ToPort => to.port.map(|port| port.to_string()),
            Self::Protocol => text(&drop.network.transport).or_else(|| text(&drop.network.family)),
            Self::Family => text(&drop.network.family),
            Self::Interface => {
                let network = &drop.network;
                let names = [&network.interface, &network.interface_in, &network.interface_out];
                names.into_iter().find_map(text)
            }
            Self::Netns => drop.network.netns.map(|inode| inode.to_string()),
            Self::Node => Some(escape(&drop.node).into_owned()),
        };
        label.filter(|label| !label.is_empty())
    }
}

fn text(text: &Option<String>) -> Option<String> {
    text.as_ref().map(|text| escape(text).into_owned())
}

/// The end that a drop is about: the pod that the packet was for, else the pod that it came from, else whichever end
/// Kubernetes knows. A drop between two pods so counts for one of them, once.
fn subject(drop: &Drop) -> Option<&K8s> {
    let ends = || [&drop.destination, &drop.source].into_iter().filter_map(|end| end.k8s.as_ref());
    ends().find(|k8s| k8s.pod.is_some()).or_else(|| ends().find(|k8s| k8s.namespace.is_some()))
}

/// A name that is unique in the cluster only with its namespace.
fn spaced(k8s: &K8s, name: &Option<String>) -> Option<String> {
    let name = text(name)?;
    Some(match &k8s.namespace {
        Some(namespace) => format!("{}/{name}", escape(namespace)),
        None => name,
    })
}

fn pod(k8s: &K8s) -> Option<String> {
    spaced(k8s, &k8s.pod)
}

fn workload(k8s: &K8s) -> Option<String> {
    spaced(k8s, &k8s.workload)
}

/// Where several may be meant, all of them: one group of its own.
fn service(k8s: &K8s) -> Option<String> {
    let several = || k8s.services.iter().map(|name| escape(name)).collect::<Vec<_>>().join(" or ");
    spaced(k8s, &k8s.service).or_else(|| Some(several()))
}

/// An end without its port.
fn end(end: &Endpoint) -> Option<String> {
    let name = end.k8s.as_ref().and_then(words::who);
    name.or_else(|| end.address.map(|address| address.to_string()))
}

fn pair(from: &Endpoint, to: &Endpoint) -> Option<String> {
    let (from, to) = (end(from), end(to));
    if from.is_none() && to.is_none() {
        return None;
    }
    let or_unknown = |end: Option<String>| end.unwrap_or_else(|| "?".to_owned());
    Some(format!("{} -> {}", or_unknown(from), or_unknown(to)))
}

fn is_reply(drop: &Drop) -> bool {
    drop.conntrack.as_ref().is_some_and(|entry| entry.direction.as_deref() == Some("reply"))
}

/// A native nft rule has its family in its name; of others, tables of two families and two backends have the same.
fn rule(netfilter: &Netfilter) -> Option<String> {
    let rule = words::rule(netfilter)?;
    if netfilter.rule.is_none() && netfilter.handle.is_some() {
        return Some(rule);
    }
    let family = netfilter.family.map(Family::name);
    let backend = netfilter.backend.map(|backend| match backend {
        Backend::Legacy => "legacy",
        Backend::Nft => "nft",
    });
    let about: Vec<&str> = [family, backend].into_iter().flatten().collect();
    Some(if about.is_empty() { rule } else { format!("{rule} ({})", about.join(", ")) })
}

fn chain(netfilter: &Netfilter) -> Option<String> {
    Some(format!("{}:{}", text(&netfilter.table)?, text(&netfilter.chain)?))
}

fn hook(drop: &Drop) -> Option<String> {
    let of_netfilter = drop.drop.netfilter.as_ref().and_then(|it| text(&it.hook));
    of_netfilter.or_else(|| drop.drop.bpf.as_ref().map(|bpf| format!("tc:{}", escape(&bpf.hook))))
}

fn policies(drop: &Drop) -> Option<String> {
    let policies = drop.drop.cilium.as_ref()?.policies.as_ref()?;
    Some(policies.iter().map(words::policy).collect::<Vec<_>>().join(", "))
}

fn program(drop: &Drop) -> Option<String> {
    let of_tc = drop.drop.bpf.as_ref().and_then(|bpf| words::filter(bpf));
    let of_netfilter = || drop.drop.netfilter.as_ref()?.program.as_ref();
    let of_cilium = || drop.drop.cilium.as_ref().and_then(|cilium| text(&cilium.program));
    of_tc.or_else(|| of_netfilter().map(|it| format!("{}:id:{}", escape(&it.name), it.id))).or_else(of_cilium)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::{Class, Conntrack, Network, Reason};
    use crate::hist::fixtures::{drop_of, end_of};
    use clap::ValueEnum as _;

    #[test]
    fn a_drop_between_pods_is_about_the_one_it_was_for() {
        let mut drop = drop_of("cart-1", "redis-0");
        let label = |key: Key, drop: &Drop| key.label(drop).unwrap_or_default();
        assert_eq!(label(Key::Pod, &drop), "shop/redis-0");
        assert_eq!([Key::FromPod, Key::ToPod].map(|key| label(key, &drop)), ["shop/cart-1", "shop/redis-0"]);
        assert_eq!(label(Key::Workload, &drop), "shop/statefulset/redis-0");
        assert_eq!(label(Key::Pair, &drop), "shop/cart-1 -> shop/redis-0");
        // A service that went nowhere: the pod that wanted it, and all of it from that end.
        drop.destination.k8s =
            Some(K8s { namespace: Some("data".into()), service: Some("redis".into()), ..K8s::default() });
        assert_eq!([Key::Pod, Key::Namespace].map(|key| label(key, &drop)), ["shop/cart-1", "shop"]);
        assert_eq!([Key::ToNamespace, Key::Service].map(|key| label(key, &drop)), ["data", "data/redis"]);
        drop.source.k8s = None;
        assert_eq!([Key::Pod, Key::Namespace].map(|key| label(key, &drop)), ["", "data"]);
        assert_eq!(label(Key::Pair, &drop), "10.0.0.1 -> svc/data/redis");
    }

    #[test]
    fn the_port_is_the_one_that_was_dialled() {
        let mut drop = drop_of("cart-1", "redis-0");
        (drop.source.port, drop.destination.port) = (Some(41_000), Some(6379));
        assert_eq!(Key::Port.label(&drop).as_deref(), Some("6379"));
        (drop.source.port, drop.destination.port) = (Some(6379), Some(41_000));
        drop.conntrack = Some(Conntrack { direction: Some("reply".into()), ..Conntrack::default() });
        let labels = [Key::Port, Key::FromPort, Key::ToPort].map(|key| key.label(&drop).unwrap());
        assert_eq!(labels, ["6379", "6379", "41000"]);
    }

    #[test]
    fn rules_of_two_families_are_two() {
        let rule = |family, backend, rule, handle| {
            let (table, chain) = (Some("filter".into()), Some("INPUT".into()));
            super::rule(&Netfilter { family, backend, table, chain, rule, handle, ..Netfilter::default() })
        };
        let legacy = |family| rule(Some(family), Some(Backend::Legacy), Some(3), None).unwrap();
        assert_eq!(legacy(Family::Ipv4), "filter:INPUT:rule:3 (ipv4, legacy)");
        assert_eq!(legacy(Family::Ipv6), "filter:INPUT:rule:3 (ipv6, legacy)");
        let native = rule(Some(Family::Inet), Some(Backend::Nft), None, Some(12)).unwrap();
        assert_eq!(native, "inet:filter:INPUT:handle:12");
    }

    #[test]
    fn nothing_known_is_no_label_and_never_garbage() {
        let nothing = Drop::default();
        let with: Vec<Key> =
            Key::value_variants().iter().copied().filter(|key| key.label(&nothing).is_some()).collect();
        // What stands for itself.
        assert_eq!(with, [Key::Place, Key::Class]);
        let empty = Drop { source: end_of("", Some(K8s::default())), ..Drop::default() };
        assert_eq!(Key::Service.label(&empty), None);
    }

    #[test]
    fn hostile_text_is_escaped_in_every_label() {
        let evil = || Some("a\u{1b}[31m\u{202e}\n".to_owned());
        let k8s = K8s {
            namespace: evil(),
            pod: evil(),
            workload: evil(),
            service: evil(),
            node: evil(),
            ..K8s::default()
        };
        let drop = Drop {
            node: evil().unwrap(),
            source: end_of("10.0.0.1", Some(k8s.clone())),
            destination: end_of("10.0.0.2", Some(k8s)),
            network: Network { family: evil(), transport: evil(), interface: evil(), ..Network::default() },
            drop: Reason {
                reason: evil(),
                location: evil(),
                class: Class::Policy,
                netfilter: Some(Box::new(Netfilter {
                    table: evil(),
                    chain: evil(),
                    hook: evil(),
                    owner: evil(),
                    ..Netfilter::default()
                })),
                ..Reason::default()
            },
            ..Drop::default()
        };
        for key in Key::value_variants() {
            let label = key.label(&drop).unwrap_or_default();
            assert!(!label.contains(['\u{1b}', '\u{202e}', '\n']), "{key:?}: {label:?}");
        }
        assert_eq!(Key::Pod.label(&drop).unwrap().matches("\\x1b").count(), 2);
    }
}
