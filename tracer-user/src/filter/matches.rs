//! Filters over explained events: what a recording is filtered by, and what the compiled form is tested against.

use super::{Filter, Flag, Protocol, Side, Value, Word};
use crate::event::model::{Drop, Endpoint, K8s};
use std::mem::discriminant;

/// True if the filter lets the drop through. A line of counts only has no packet fields, so wanted words about the
/// packet do not match it.
#[must_use]
pub fn matches(filter: &Filter, drop: &Drop) -> bool {
    let (tupled, single): (Vec<&Word>, Vec<&Word>) =
        filter.words.iter().partition(|word| matches!(word.flag, Flag::Ip(_) | Flag::Port(_)));
    let tuples = tuples(drop);
    let wanted = tuples.iter().any(|tuple| all_flags(&tupled, |word| on_tuple(word, tuple)));
    let unwanted = tuples.iter().any(|tuple| tupled.iter().any(|word| word.negated && on_tuple(word, tuple)));
    wanted
        && !unwanted
        && all_flags(&single, |word| on_packet(word, drop))
        && !single.iter().any(|word| word.negated && on_packet(word, drop))
}

/// True if of each flag at least one of its wanted words holds. `-4` and `-6` are one flag with two values.
fn all_flags(words: &[&Word], holds: impl Fn(&Word) -> bool) -> bool {
    let same = |a: &Flag, b: &Flag| match (a, b) {
        (Flag::Ip(a), Flag::Ip(b)) | (Flag::Port(a), Flag::Port(b)) => a == b,
        (a, b) if a.end().is_some() => a == b,
        _ => discriminant(a) == discriminant(b),
    };
    words
        .iter()
        .filter(|word| !word.negated)
        .all(|word| words.iter().any(|other| !other.negated && same(&word.flag, &other.flag) && holds(other)))
}

/// Source and destination.
pub(super) type Tuple<'a> = (&'a Endpoint, &'a Endpoint);

/// The packet's tuples, in the packet's direction.
#[must_use]
pub fn tuples(drop: &Drop) -> Vec<Tuple<'_>> {
    let mut tuples = vec![(&drop.source, &drop.destination)];
    match (&drop.conntrack, &drop.original) {
        (Some(entry), _) => {
            let (original, reply) = (&entry.original, &entry.reply);
            tuples.extend(if entry.direction.as_deref() == Some("reply") {
                [(&original.destination, &original.source), (&reply.source, &reply.destination)]
            } else {
                [(&original.source, &original.destination), (&reply.destination, &reply.source)]
            });
        }
        (None, Some(original)) => tuples.push((&original.source, &original.destination)),
        (None, None) => {}
    }
    tuples.extend(drop.inner.as_ref().map(|inner| (&inner.source, &inner.destination)));
    tuples
}

fn on_tuple(word: &Word, (source, destination): &Tuple<'_>) -> bool {
    use Side::{Either, From, To};
    let at = |end: &Endpoint| match &word.value {
        Value::Address(prefix) => end.address.is_some_and(|address| prefix.contains(address)),
        Value::Port(port) => end.port == Some(*port),
        _ => false,
    };
    match word.flag {
        Flag::Ip(Either) | Flag::Port(Either) => at(source) || at(destination),
        Flag::Ip(From) | Flag::Port(From) => at(source),
        Flag::Ip(To) | Flag::Port(To) => at(destination),
        _ => false,
    }
}

fn on_packet(word: &Word, drop: &Drop) -> bool {
    let network = &drop.network;
    match &word.value {
        Value::Protocol(protocol @ Protocol::Transport(_)) => {
            network.transport.as_deref().and_then(Protocol::of_transport) == Some(*protocol)
        }
        Value::Protocol(protocol @ Protocol::Network(_)) => {
            network.family.as_deref().and_then(Protocol::of_network) == Some(*protocol)
        }
        Value::Interface(name) => [&network.interface, &network.interface_in, &network.interface_out]
            .into_iter()
            .any(|interface| interface.as_ref() == Some(name)),
        Value::Netns(inode) => network.netns == Some(*inode),
        Value::Reason(glob) => drop.drop.reason.as_ref().is_some_and(|name| glob.matches(name)),
        Value::Cause(glob) => drop.drop.cause.as_ref().is_some_and(|cause| glob.matches(&cause.id)),
        Value::Address(_) | Value::Port(_) => false,
        Value::Pod(_) | Value::Namespace(_) | Value::Selector(_) | Value::Workload(_) | Value::Service(_) => {
            word.flag.end().is_some_and(|side| on_ends(&word.value, side, drop))
        }
    }
}

/// True if an end of a tuple of the packet is that pod or service.
fn on_ends(value: &Value, side: Side, drop: &Drop) -> bool {
    let is_it = |end: &Endpoint| end.k8s.as_ref().is_some_and(|k8s| is_named(value, k8s));
    tuples(drop).iter().any(|(source, destination)| match side {
        Side::Either => is_it(source) || is_it(destination),
        Side::From => is_it(source),
        Side::To => is_it(destination),
    })
}

/// Names are compared as they are in the event; it has no labels, so no selector selects it.
fn is_named(value: &Value, k8s: &K8s) -> bool {
    let is = |wanted: &Option<String>, is: &Option<String>| wanted.is_none() || wanted == is;
    match value {
        Value::Pod(named) => {
            is(&named.namespace, &k8s.namespace)
                && k8s.pod.as_ref().is_some_and(|pod| pod.starts_with(&named.name))
        }
        Value::Namespace(name) => k8s.namespace.as_ref() == Some(name),
        Value::Workload(wanted) => {
            let (kind, name) = match k8s.workload.as_deref().and_then(|workload| workload.split_once('/')) {
                Some((kind, name)) => (Some(kind.to_owned()), name),
                None => return false,
            };
            is(&wanted.namespace, &k8s.namespace) && is(&wanted.kind, &kind) && name == wanted.name
        }
        Value::Service(named) => {
            is(&named.namespace, &k8s.namespace)
                && (k8s.service.as_ref() == Some(&named.name) || k8s.services.contains(&named.name))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Family, Side, tests::parse};
    use super::*;
    use crate::event::model::{Conntrack, Network, Original, Reason};

    fn end(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().unwrap();
        Endpoint { address: Some(address.ip()), port: Some(address.port()), k8s: None }
    }

    /// A SYN to a service, after its destination was translated.
    fn translated() -> Drop {
        Drop {
            source: end("10.244.3.7:41822"),
            destination: end("10.244.1.9:6379"),
            network: Network {
                family: Some("ipv4".into()),
                transport: Some("tcp".into()),
                interface: Some("veth1".into()),
                interface_out: Some("eth0".into()),
                netns: Some(7),
                ..Network::default()
            },
            conntrack: Some(Conntrack {
                direction: Some("original".into()),
                original: Original { source: end("10.244.3.7:41822"), destination: end("10.96.3.4:80") },
                reply: Original { source: end("10.244.1.9:6379"), destination: end("10.244.3.7:41822") },
                ..Conntrack::default()
            }),
            drop: Reason { reason: Some("NETFILTER_DROP".into()), ..Reason::default() },
            ..Drop::default()
        }
    }

    fn check(words: &[(Flag, &str, bool)]) -> bool {
        matches(&parse(words).unwrap(), &translated())
    }

    #[test]
    fn a_service_address_finds_the_translated_packet() {
        assert!(check(&[(Flag::Ip(Side::To), "10.96.3.4", false), (Flag::Port(Side::To), "80", false)]));
        assert!(check(&[(Flag::Ip(Side::To), "10.244.1.9", false), (Flag::Port(Side::To), "6379", false)]));
        // Not one tuple that has both.
        assert!(!check(&[(Flag::Ip(Side::To), "10.96.3.4", false), (Flag::Port(Side::To), "6379", false)]));
        assert!(!check(&[(Flag::Ip(Side::From), "10.96.3.4", false)]));
    }

    #[test]
    fn repeats_join_by_or_flags_by_and() {
        assert!(check(&[(Flag::Port(Side::Either), "1", false), (Flag::Port(Side::Either), "6379", false)]));
        assert!(!check(&[(Flag::Port(Side::Either), "6379", false), (Flag::Protocol, "udp", false)]));
        assert!(check(&[(Flag::Family(Family::V4), "", false), (Flag::Family(Family::V6), "", false)]));
        assert!(!check(&[(Flag::Family(Family::V6), "", false), (Flag::Protocol, "tcp", false)]));
        assert!(check(&[(Flag::Interface, "eth0", false), (Flag::Netns, "7", false)]));
    }

    #[test]
    fn one_unwanted_tuple_rejects() {
        assert!(!check(&[(Flag::Ip(Side::Either), "10.96.0.0/16", true)]));
        assert!(check(&[(Flag::Ip(Side::From), "10.96.0.0/16", true)]));
        assert!(!check(&[(Flag::Reason, "!NETFILTER_*", false)]));
        assert!(check(&[(Flag::Reason, "!TCP_*", false), (Flag::Reason, "*_DROP", false)]));
        assert!(!check(&[(Flag::Interface, "veth1", true)]));
    }

    #[test]
    fn counts_only_match_no_wanted_word_about_the_packet() {
        let filter = parse(&[(Flag::Port(Side::Either), "80", false)]).unwrap();
        assert!(!matches(&filter, &Drop::default()));
        assert!(matches(&Filter::default(), &Drop::default()));
    }
}
