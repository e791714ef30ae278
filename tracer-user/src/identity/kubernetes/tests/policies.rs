use super::super::*;
use super::Random;
use crate::identity::object::{Identity, Name};
use crate::identity::policy::{NAMESPACE, Peer, Policy, Port, Prefix, Test, Way};
use serde_json::{Value, json};

fn policy(kind: PolicyKind, spec: &Value) -> Result<Policy, Unreadable> {
    let json = json!({"metadata": {"namespace": "shop", "name": "p", "resourceVersion": "7"}, "spec": spec});
    object(Kind::Policy(kind), &json.to_string()).map(|found| match found.object {
        Object::Policy(policy) => policy,
        other => panic!("{other:?}"),
    })
}

fn ways(spec: &Value) -> [Way; 2] {
    let mut parts = policy(PolicyKind::Network, spec).unwrap().parts;
    let part = parts.remove(0);
    [part.ingress, part.egress]
}

#[test]
fn recorded_network_policies() {
    let json = include_str!("../../fixtures/networkpolicies.list.json");
    let kind = Kind::Policy(PolicyKind::Network);
    assert_eq!(list(json.as_bytes()).unwrap().objects(kind).count(), 0);
}

#[test]
fn types_have_a_default() {
    for (types, egress, expected) in [
        (json!(null), json!(null), [true, false]),
        (json!([]), json!([]), [true, false]),
        (json!(null), json!([{}]), [true, true]),
        (json!(["Ingress"]), json!([{}]), [true, false]),
        (json!(["Egress"]), json!(null), [false, true]),
        (json!(["Ingress", "Egress"]), json!(null), [true, true]),
    ] {
        let ways = ways(&json!({"podSelector": {}, "policyTypes": types, "egress": egress}));
        assert_eq!(ways.each_ref().map(|way| way.applies), expected, "{types} {egress}");
        assert_eq!(ways.map(|way| way.denies_by_default), expected);
    }
}

#[test]
fn absent_and_empty_are_told_apart() {
    // Kubernetes: an empty list of peers is everybody. Cilium: nobody.
    let [ingress, _] = ways(&json!({"podSelector": {}, "ingress": [{"from": [], "ports": []}, {}]}));
    assert!(ingress.allow.iter().all(|rule| rule.peers.is_none() && rule.ports.is_none()));
    let rules = json!([{"fromEndpoints": []}, {}, {"toPorts": [{"ports": [{"port": "80"}]}]}]);
    let spec = json!({"endpointSelector": {}, "ingress": rules});
    let parts = policy(PolicyKind::Cilium, &spec).unwrap().parts;
    let peers: Vec<_> = parts[0].ingress.allow.iter().map(|rule| rule.peers.clone()).collect();
    assert_eq!(peers, [Some(vec![]), Some(vec![]), None]);
    // No selector is not an empty one.
    for spec in [json!({"ingress": [{}]}), json!({"endpointSelector": null}), json!({"nodeSelector": null})] {
        assert_eq!(policy(PolicyKind::Clusterwide, &spec).unwrap().parts, []);
    }
    // Nodes have no namespace.
    let nodes = |kind| policy(kind, &json!({"nodeSelector": {}})).unwrap().parts;
    assert_eq!(nodes(PolicyKind::Cilium), []);
    assert!(nodes(PolicyKind::Clusterwide)[0].is_of_nodes);
}

#[test]
fn names_kinds_and_several_parts() {
    let json = json!({"metadata": {"name": "all"}, "spec": {"endpointSelector": {}},
        "specs": [{"endpointSelector": {}}, {"nodeSelector": {}}]});
    let found = object(Kind::Policy(PolicyKind::Clusterwide), &json.to_string()).unwrap().object;
    assert_eq!((&*found.key(), found.kind()), ("all", Kind::Policy(PolicyKind::Clusterwide)));
    let Object::Policy(all) = found else { panic!("no policy") };
    assert_eq!((all.name, all.parts.len()), (Name::new("", "all"), 3));
    let network = policy(PolicyKind::Network, &json!({"podSelector": {}})).unwrap();
    assert_eq!(network.name, Name::new("shop", "p"));
    // Of a namespace, they have one.
    for kind in [PolicyKind::Network, PolicyKind::Cilium] {
        assert_eq!(object(Kind::Policy(kind), &json.to_string()), Err(Unreadable::Nameless));
    }
    for (name, kind) in [
        ("NetworkPolicy", PolicyKind::Network),
        ("CiliumNetworkPolicy", PolicyKind::Cilium),
        ("CiliumClusterwideNetworkPolicy", PolicyKind::Clusterwide),
    ] {
        assert_eq!((kind_named(name), kind.as_str()), (Some(Kind::Policy(kind)), name));
    }
}

#[test]
fn ports_and_blocks() {
    let ports = json!([{"port": 80}, {"port": "http"}, {"port": 1, "endPort": 9, "protocol": "UDP"}, {"protocol": "SCTP"},
        {"port": 5, "protocol": "DCCP"}]);
    let block =
        json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"ipBlock": {"cidr": "no"}}]);
    let [ingress, _] = ways(&json!({"podSelector": {}, "ingress": [{"from": block, "ports": ports}]}));
    let rule = &ingress.allow[0];
    let range = |protocol, first, last| Port::Range { protocol: Some(protocol), first, last };
    let expected = vec![
        range(6, 80, 80),
        Port::Named { protocol: Some(6), name: "http".to_owned() },
        range(17, 1, 9),
        range(132, 0, u16::MAX),
        Port::Protocol("DCCP".to_owned()),
    ];
    assert_eq!(rule.ports.as_ref(), Some(&expected));
    let prefix = |text| Prefix::parse(text).unwrap();
    let peers = vec![
        Peer::Block(prefix("10.0.0.0/8"), vec![prefix("10.1.0.0/16")]),
        Peer::Unread("a CIDR that can't be read"),
    ];
    assert_eq!(rule.peers.as_ref(), Some(&peers));
}

#[test]
fn selectors_get_the_namespace_that_they_mean() {
    let key = |peer: &Peer| match peer {
        Peer::Endpoints(selector) => selector.requirements.last().map(|it| (it.key.clone(), it.test.clone())),
        other => panic!("{other:?}"),
    };
    let peers = |kind, selectors: Value| {
        let spec = json!({"endpointSelector": {}, "ingress": [{"fromEndpoints": selectors}]});
        let rule = policy(kind, &spec).unwrap().parts.remove(0).ingress.allow.remove(0);
        rule.peers.unwrap().iter().map(key).collect::<Vec<_>>()
    };
    let own = Some((NAMESPACE.to_owned(), Test::In(vec!["shop".to_owned()])));
    let any = Some((NAMESPACE.to_owned(), Test::Exists));
    let named = |key: &str| json!({"matchLabels": {key: "x"}});
    let all = json!([{}, named("app"), named("io.kubernetes.pod.namespace"), named("reserved:init")]);
    let is = |key: &str| Some((key.to_owned(), Test::In(vec!["x".to_owned()])));
    let rest = [is("any:io.kubernetes.pod.namespace"), is("reserved:init")];
    assert_eq!(peers(PolicyKind::Cilium, all.clone()), [&[own.clone(), own][..], &rest].concat());
    assert_eq!(peers(PolicyKind::Clusterwide, all), [&[any.clone(), any][..], &rest].concat());
    let labels = json!([named("k8s:io.cilium.k8s.namespace.labels.team")]);
    assert_eq!(peers(PolicyKind::Cilium, labels), [is("k8s:io.cilium.k8s.namespace.labels.team")]);
}

#[test]
fn an_unknown_operator_is_not_guessed_at() {
    let spec =
        json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}});
    assert!(matches!(policy(PolicyKind::Network, &spec), Err(Unreadable::Json(why)) if why.contains("Gt")));
}

#[test]
fn identities() {
    let json = json!({"metadata": {"name": "4711", "resourceVersion": "5"},
        "security-labels": {"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "shop"}});
    let labels = [("k8s:app", "web"), (NAMESPACE, "shop")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    let found = object(Kind::Identity, &json.to_string()).unwrap().object;
    assert_eq!(found, Object::Identity(Identity { id: 4711, labels }));
    assert_eq!(key(Kind::Identity, &json.to_string()), Ok(("4711".to_owned(), "5".to_owned())));
    for name in ["web", "", "-1", "4294967296"] {
        let json = json!({"metadata": {"name": name}}).to_string();
        assert!(object(Kind::Identity, &json).is_err() && key(Kind::Identity, &json).is_err());
    }
    let gone = json!({"metadata": {"name": "all"}}).to_string();
    assert_eq!(key(Kind::Policy(PolicyKind::Clusterwide), &gone).unwrap().0, "all");
}

/// Values at random, most of them of fields that there are.
fn nonsense(random: &mut Random, depth: usize) -> Value {
    const FIELDS: [&str; 32] = [
        "spec",
        "specs",
        "podSelector",
        "endpointSelector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "policyTypes",
        "ingress",
        "egress",
        "ingressDeny",
        "egressDeny",
        "from",
        "to",
        "ports",
        "port",
        "endPort",
        "protocol",
        "fromEndpoints",
        "toCIDRSet",
        "cidr",
        "except",
        "toPorts",
        "icmps",
        "fields",
        "type",
        "toFQDNs",
        "ipBlock",
        "namespaceSelector",
        "enableDefaultDeny",
    ];
    const WORDS: [&str; 12] = [
        "",
        "In",
        "Exists",
        "TCP",
        "ANY",
        "Ingress",
        "10.0.0.0/8",
        "::/0",
        "10.0.0.0/99",
        "80",
        "65536",
        "\u{1b}\u{202e}",
    ];
    let below = if depth == 0 { 4 } else { 8 };
    match random.below(below) {
        0 => Value::Null,
        1 => json!(random.below(70_000)),
        2 => json!(WORDS[random.below(WORDS.len())]),
        3 => json!(random.below(2) == 0),
        4 | 5 => (0..random.below(4)).map(|_| nonsense(random, depth - 1)).collect(),
        _ => {
            let mut fields = serde_json::Map::new();
            for _ in 0..random.below(5) {
                fields.insert(FIELDS[random.below(FIELDS.len())].to_owned(), nonsense(random, depth - 1));
            }
            Value::Object(fields)
        }
    }
}

/// Some value in another's place, somewhere.
fn spoil(random: &mut Random, value: &mut Value) {
    let inner: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    let count = inner.len();
    if count == 0 || random.below(4) == 0 {
        *value = nonsense(random, 3);
    } else if let Some(one) = inner.into_iter().nth(random.below(count)) {
        spoil(random, one);
    }
}

#[test]
fn whatever_is_sent_is_read_or_refused_and_judged() {
    use crate::cilium::{
        fit::{What, Who},
        maps::Direction,
        policies::{Subject, explain},
    };
    let network = json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}, "namespaceSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8",
        "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80, "endPort": 90}]}], "egress": [{"to": [], "ports": []}]});
    let cilium = json!({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}], "toPorts": [{"ports":
        [{"port": "80", "protocol": "ANY"}]}]}], "ingressDeny": [{"fromEntities": ["world"], "icmps": [{"fields":
        [{"type": 8}]}]}], "egress": [{"toFQDNs": [{"matchName": "a"}]}], "enableDefaultDeny": {"ingress": true}});
    let mut random = Random(0xcafe);
    let (mut read, mut refused, mut told) = (0, 0, 0);
    for round in 0..20_000 {
        let kinds = [PolicyKind::Network, PolicyKind::Cilium, PolicyKind::Clusterwide];
        let kind = kinds[round % 3];
        let mut spec = if kind == PolicyKind::Network { network.clone() } else { cilium.clone() };
        spoil(&mut random, &mut spec);
        let policy = match policy(kind, &spec) {
            Ok(policy) => std::sync::Arc::new(policy),
            Err(_) => {
                refused += 1;
                continue;
            }
        };
        read += 1;
        let labels = [("k8s:app", "a"), (NAMESPACE, "shop")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let subject = [Subject::Pod, Subject::Node][random.below(2)](labels.into());
        let who = Who {
            identity: [0, 2, 4711, 1 << 24][random.below(4)],
            address: "10.1.2.3".parse().ok(),
            ..Who::default()
        };
        for direction in [Direction::Ingress, Direction::Egress] {
            let what =
                What { direction, protocol: Some(6), port: Some(80), icmp_type: None, destination: None };
            for policy in explain([&policy].into_iter(), &subject, &who, &what).0 {
                told += 1;
                assert!(policy.why_not.is_some_and(|why| !why.is_empty() && why.len() < 4000));
            }
        }
    }
    assert!(read > 2000 && refused > 2000 && told > 2000, "{read} {refused} {told}");
}
