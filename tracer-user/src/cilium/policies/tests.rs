use super::super::fit::Pod;
use super::*;
use crate::identity::object::{Kind, Object};
use crate::identity::policy::PolicyKind;
use crate::identity::{kubernetes, policy::NAMESPACE};
use serde_json::{Value, json};

fn policy(kind: PolicyKind, name: &str, spec: &Value) -> Arc<Policy> {
    let json = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
    match kubernetes::object(Kind::Policy(kind), &json.to_string()).unwrap().object {
        Object::Policy(policy) => Arc::new(policy),
        other => panic!("{other:?}"),
    }
}

fn labels(all: &[(&str, &str)]) -> Labels {
    all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn redis() -> Labels {
    labels(&[("k8s:app", "redis"), (NAMESPACE, "shop")])
}

fn world() -> Who {
    Who { identity: 2, address: "10.244.3.7".parse().ok(), ..Who::default() }
}

fn batch() -> Who {
    let labels = labels(&[("k8s:app", "batch"), (NAMESPACE, "shop")]);
    Who { identity: 4711, labels: Some(labels), address: "10.244.1.7".parse().ok(), pod: None }
}

fn to(direction: Direction, port: u16) -> What {
    What { direction, protocol: Some(6), port: Some(port), icmp_type: None, destination: None }
}

/// Why a policy did not let a packet in on port 6379; `None` if it is not about the pod.
fn why(kind: PolicyKind, spec: &Value, who: &Who) -> Option<String> {
    let policies = [policy(kind, "p", spec)];
    let (all, _) = explain(policies.iter(), &Subject::Pod(redis()), who, &to(Direction::Ingress, 6379));
    all.into_iter().next().and_then(|policy| policy.why_not)
}

use PolicyKind::{Cilium, Clusterwide, Network};

const MATCHES: &str = "it is a deny rule that matches";
const ALLOWS: &str = "it would allow this packet";

#[test]
fn network_policies() {
    let from = |peers: Value| json!({"podSelector": {}, "ingress": [{"from": peers}]});
    let frontend = json!([{"podSelector": {"matchLabels": {"app": "frontend"}}}]);
    for (spec, who, expected) in [
        // Which pods and directions.
        (json!({"podSelector": {}}), world(), Some("no ingress rule at all")),
        (
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}),
            world(),
            Some("no ingress rule at all"),
        ),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), world(), None),
        (json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}), world(), None),
        (json!({"podSelector": {"matchLabels": {"app": "web"}}}), world(), None),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}),
            world(),
            Some("no ingress"),
        ),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["redis"]}]}}),
            world(),
            None,
        ),
        // Peers.
        (json!({"podSelector": {}, "ingress": [{}]}), world(), Some(ALLOWS)),
        (from(json!([])), world(), Some(ALLOWS)),
        (from(json!([{"podSelector": {}}])), batch(), Some(ALLOWS)),
        (
            from(json!([{"podSelector": {}}])),
            world(),
            Some("needs to be in namespace shop, the peer is identity 2"),
        ),
        (from(frontend.clone()), batch(), Some("needs app=frontend, the peer has app=batch")),
        (from(json!([{"namespaceSelector": {}}])), batch(), Some(ALLOWS)),
        (
            from(json!([{"namespaceSelector": {}}])),
            world(),
            Some("needs to be in a namespace, the peer is identity 2"),
        ),
        (
            from(json!([{"namespaceSelector": {"matchLabels": {"team": "a"}}}])),
            batch(),
            Some("needs namespace label team=a, the peer has no namespace label team"),
        ),
        (from(json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}])), world(), Some(ALLOWS)),
        (
            from(json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/16"]}}])),
            world(),
            Some("10.244.3.7 is in 10.244.0.0/16, which 10.0.0.0/8 leaves out"),
        ),
        (from(json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}])), batch(), Some("outside of the cluster")),
        // Ports.
        (
            json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}, {"port": 443, "protocol": "TCP"}]}]}),
            world(),
            Some("port: it is about TCP 80, TCP 443, the packet is TCP 6379"),
        ),
        (
            json!({"podSelector": {}, "ingress": [{"ports": [{"port": 6000, "endPort": 7000}]}]}),
            world(),
            Some(ALLOWS),
        ),
        (json!({"podSelector": {}, "ingress": [{"ports": [{"protocol": "TCP"}]}]}), world(), Some(ALLOWS)),
        (
            json!({"podSelector": {}, "ingress": [{"ports": [{"protocol": "UDP"}]}]}),
            world(),
            Some("port: it is about UDP"),
        ),
        (
            json!({"podSelector": {}, "ingress": [{"ports": [{"port": "redis"}]}]}),
            world(),
            Some("TCP port named redis"),
        ),
        // Several rules: the nearest.
        (
            json!({"podSelector": {}, "ingress": [{"from": frontend, "ports": [{"port": 80}]},
                {"from": [{"podSelector": {"matchLabels": {"app": "batch"}}}], "ports": [{"port": 80}]}]}),
            batch(),
            Some("the nearest of its 2 rules: port: it is about TCP 80"),
        ),
    ] {
        let found = why(Network, &spec, &who);
        match (&found, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) if found.contains(expected) => {}
            _ => panic!("{spec}: {found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn ciliums_policies() {
    let all = json!({});
    let with = |field: &str, rules: Value| json!({"endpointSelector": {}, field: rules});
    for (kind, spec, who, expected) in [
        // Which pods and directions.
        (Cilium, json!({"endpointSelector": all}), world(), None),
        (Cilium, with("ingress", json!([])), world(), None),
        (Cilium, with("egress", json!([{}])), world(), None),
        (Cilium, with("ingress", json!([{}])), world(), Some("peer: it is about nobody")),
        (Cilium, with("ingress", json!([{"fromEndpoints": []}])), batch(), Some("peer: it is about nobody")),
        (
            Cilium,
            json!({"endpointSelector": {"matchLabels": {"k8s:app": "web"}}, "ingress": [{}]}),
            world(),
            None,
        ),
        (
            Cilium,
            json!({"endpointSelector": {"matchLabels": {"any:app": "redis"}}, "ingress": [{}]}),
            world(),
            Some("nobody"),
        ),
        (Cilium, json!({"nodeSelector": all, "ingress": [{}]}), world(), None),
        (Clusterwide, with("ingress", json!([{}])), world(), Some("nobody")),
        (
            Clusterwide,
            json!({"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "pay"}}, "ingress": [{}]}),
            world(),
            None,
        ),
        // A policy applies in its own namespace, whatever its selector says.
        (
            Cilium,
            json!({"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "pay"}}, "ingress": [{}]}),
            world(),
            Some("nobody"),
        ),
        (
            Cilium,
            json!({"endpointSelector": {}, "ingress": [{}], "enableDefaultDeny": {"ingress": false}}),
            world(),
            Some("it denies nothing by default (enableDefaultDeny); peer: it is about nobody"),
        ),
        (
            Cilium,
            json!({"endpointSelector": {}, "enableDefaultDeny": {"ingress": true}}),
            world(),
            Some("no ingress rule at all"),
        ),
        // Peers.
        (Cilium, with("ingress", json!([{"fromEndpoints": [{}]}])), batch(), Some(ALLOWS)),
        (
            Cilium,
            with("ingress", json!([{"fromEndpoints": [{}]}])),
            world(),
            Some("needs to be in namespace shop"),
        ),
        (
            Clusterwide,
            with("ingress", json!([{"fromEndpoints": [{}]}])),
            world(),
            Some("needs to be in a namespace"),
        ),
        (
            Cilium,
            with(
                "ingress",
                json!([{"fromEndpoints": [{"matchLabels": {"io.kubernetes.pod.namespace": "pay"}}]}]),
            ),
            batch(),
            Some("needs to be in namespace pay, the peer has namespace shop"),
        ),
        (Cilium, with("ingress", json!([{"fromEntities": ["world"]}])), world(), Some(ALLOWS)),
        (
            Cilium,
            with("ingress", json!([{"fromEntities": ["cluster"]}])),
            world(),
            Some("it is about the entity cluster"),
        ),
        (Cilium, with("ingress", json!([{"fromCIDR": ["10.0.0.0/8"]}])), world(), Some(ALLOWS)),
        (
            Cilium,
            with("ingress", json!([{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.244.3.7/32"]}]}])),
            world(),
            Some("leaves out"),
        ),
        (
            Cilium,
            with("ingress", json!([{"fromCIDRSet": [{"cidrGroupRef": "vpn"}]}])),
            world(),
            Some("a CiliumCIDRGroup (vpn), which droptrace doesn't look into"),
        ),
        // Ports alone are about everybody.
        (
            Cilium,
            with("ingress", json!([{"toPorts": [{"ports": [{"port": "6379", "protocol": "TCP"}]}]}])),
            world(),
            Some(ALLOWS),
        ),
        (
            Cilium,
            with("ingress", json!([{"toPorts": [{"ports": [{"port": "6000", "endPort": 7000}]}]}])),
            world(),
            Some(ALLOWS),
        ),
        (
            Cilium,
            with("ingress", json!([{"toPorts": [{"ports": [{"port": "0", "protocol": "ANY"}]}]}])),
            world(),
            Some(ALLOWS),
        ),
        (
            Cilium,
            with(
                "ingress",
                json!([{"toPorts": [{"ports": [{"port": "80"}, {"port": "53", "protocol": "udp"}]}]}]),
            ),
            world(),
            Some("port: it is about any protocol's 80, UDP 53, the packet is TCP 6379"),
        ),
        (
            Cilium,
            with(
                "ingress",
                json!([{"icmps": [{"fields": [{"type": "EchoRequest"}, {"family": "IPv6", "type": 1}]}]}]),
            ),
            world(),
            Some("port: it is about ICMP type 8, ICMPv6 type 1"),
        ),
        // Authentication.
        (
            Cilium,
            with("ingress", json!([{"fromEntities": ["all"], "authentication": {"mode": "required"}}])),
            world(),
            Some("only once the peers have authenticated"),
        ),
        // Deny rules.
        (Cilium, with("ingressDeny", json!([{"fromEntities": ["world"]}])), world(), Some(MATCHES)),
        (
            Cilium,
            with("ingressDeny", json!([{"fromEntities": ["host"]}])),
            world(),
            Some("has only deny rules, and none"),
        ),
        (
            Cilium,
            with("ingressDeny", json!([{"fromGroups": [{"aws": {}}]}])),
            world(),
            Some("it may deny the packet: peer address: it is about the addresses of"),
        ),
        (
            Cilium,
            json!({"endpointSelector": {}, "ingress": [{"fromEntities": ["all"]}],
                "ingressDeny": [{"toPorts": [{"ports": [{"port": "6379"}]}]}]}),
            world(),
            Some(MATCHES),
        ),
    ] {
        let found = why(kind, &spec, &who);
        match (&found, expected) {
            (None, None) => {}
            (Some(found), Some(expected)) if found.contains(expected) => {}
            _ => panic!("{spec}: {found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn egress_is_about_the_destination() {
    let spec = json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}],
        "ports": [{"port": "sql"}]}]});
    let cilium = json!({"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "api.example.com"}]},
        {"toServices": [{"k8sService": {"serviceName": "db", "namespace": "shop"}}]}]});
    let policies = [policy(Network, "a", &spec), policy(Cilium, "b", &cilium)];
    let ports = Some(vec![("sql".to_owned(), 6, 5432)]);
    let what = What { destination: Some(Pod { ports, ..Pod::default() }), ..to(Direction::Egress, 5432) };
    let (all, _) = explain(policies.iter(), &Subject::Pod(redis()), &batch(), &what);
    let why: Vec<_> = all.iter().map(|policy| policy.why_not.as_deref().unwrap()).collect();
    assert_eq!(why[0], "peer labels: needs app=db, the peer has app=batch");
    assert!(
        why[1].starts_with("the nearest of its 2 rules: peer: it is about the DNS name api.example.com"),
        "{why:?}"
    );
    // NetworkPolicies without types are about ingress, too.
    let (all, _) = explain(policies.iter(), &Subject::Pod(redis()), &batch(), &to(Direction::Ingress, 5432));
    assert_eq!((all.len(), &*all[0].name), (1, "a"));
    assert!(all[0].why_not.as_ref().unwrap().starts_with("no ingress rule at all"));
}

#[test]
fn those_that_deny_come_first_and_the_rest_is_counted() {
    let deny = json!({"endpointSelector": {}, "ingressDeny": [{"fromEntities": ["all"]}]});
    let nothing = json!({"podSelector": {}});
    let mut policies: Vec<_> = (0..80).map(|n| policy(Network, &format!("n{n:02}"), &nothing)).collect();
    policies.push(policy(Clusterwide, "z", &deny));
    policies.push(policy(Network, "maybe", &json!({"podSelector": {}, "ingress": [{}]})));
    let (all, left_out) =
        explain(policies.iter(), &Subject::Pod(redis()), &world(), &to(Direction::Ingress, 1));
    assert_eq!((all.len(), left_out), (TOLD, 82 - TOLD));
    let named: Vec<_> = all.iter().map(|it| (it.namespace.as_deref(), &*it.name, &*it.kind)).collect();
    assert_eq!(named[0], (None, "z", "CiliumClusterwideNetworkPolicy"));
    assert_eq!(named[1], (Some("shop"), "maybe", "NetworkPolicy"));
    assert_eq!(named[2], (Some("shop"), "n00", "NetworkPolicy"));
}

#[test]
fn one_that_is_not_kept_whole_says_so() {
    let peers: Vec<_> =
        (0..3000).map(|n| json!({"ipBlock": {"cidr": format!("192.0.{}.0/24", n % 250)}})).collect();
    let found = why(Network, &json!({"podSelector": {}, "ingress": [{"from": peers}]}), &world()).unwrap();
    assert!(
        found.ends_with("so that may not be all") && found.contains("(the nearest of 2000 peers)"),
        "{found}"
    );
}
