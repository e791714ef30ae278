use super::*;
use crate::cilium::fixtures::BLOCK;
use crate::cilium::identity::Identity;
use crate::identity::kubernetes;
use crate::identity::object::{Change, Kind as Of, Source};
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp(2_000_000_000_000_000_000);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn packet() -> Packet {
    Packet {
        source: Some(address("10.244.3.7")),
        destination: Some(address("10.11.1.5")),
        protocol: Some(6),
        port: Some(9999),
        ..Packet::default()
    }
}

fn endpoint(identity: u32) -> LocalEndpoint {
    LocalEndpoint {
        address: address("10.11.1.5"),
        id: 2636,
        interface: 12,
        is_host: false,
        identity: Some(identity),
    }
}

/// What sources tell: each kind a whole list.
fn inventory(lists: &[(Of, &[Value])]) -> Inventory {
    let mut inventory = Inventory::default();
    for (kind, objects) in lists {
        inventory.apply(Source::Api, NOW, Change::Begin(*kind));
        for json in *objects {
            let object = kubernetes::object(*kind, &json.to_string()).unwrap().object;
            inventory.apply(Source::Api, NOW, Change::Set(object));
        }
        inventory.apply(Source::Api, NOW, Change::End(*kind));
    }
    inventory
}

const NETWORK: Of = Of::Policy(PolicyKind::Network);
const CILIUM: Of = Of::Policy(PolicyKind::Cilium);
const CLUSTERWIDE: Of = Of::Policy(PolicyKind::Clusterwide);

fn pod(name: &str, app: &str, node: &str, address: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"ports": [{"name": "http", "containerPort": 9999}]}]},
        "status": {"podIPs": [{"ip": address}]}})
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

/// The answer as far as policies go.
fn answer(inventory: &Inventory, block: &Block, code: u8, endpoints: &[LocalEndpoint]) -> Cilium {
    let packet = packet();
    let known = Known::of(inventory, NOW, block, &packet);
    let mut answer = Cilium {
        code: Some(code),
        verdict_by: Some(VerdictBy::of(code)),
        endpoint: Some(2636),
        direction: Some(Direction::Ingress),
        ..Cilium::default()
    };
    known.add_policies(&mut answer, endpoints);
    answer
}

fn why(answer: &Cilium, at: usize) -> &str {
    answer.policies.as_ref().and_then(|all| all.get(at)?.why_not.as_deref()).unwrap()
}

#[test]
fn a_pod_of_a_node_without_cilium() {
    let frontend = json!({"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "frontend"}}}], "ports": [{"port": "http"}]}]});
    let inventory = inventory(&[
        (
            Of::Pod,
            &[
                pod("web-0", "web", "c-1", "10.11.1.5"),
                pod("client-7d9", "frontend", "kubenet-4", "10.244.3.7"),
            ],
        ),
        (
            NETWORK,
            &[
                policy("allow-frontend", &frontend),
                policy("other", &json!({"podSelector": {"matchLabels": {"app": "db"}}})),
            ],
        ),
        (CILIUM, &[]),
        (CLUSTERWIDE, &[]),
    ]);
    let found = answer(&inventory, &BLOCK, 133, &[endpoint(12345)]);
    let names: Vec<_> = found.policies.iter().flatten().map(|policy| &*policy.name).collect();
    assert_eq!((names, found.unread.len()), (vec!["allow-frontend"], 0));
    assert_eq!(
        why(&found, 0),
        "peer labels: needs app=frontend, to be in namespace shop, which pod shop/client-7d9 of node kubenet-4 at that \
         address has, but the peer is identity 2 (reserved:world): its address 10.244.3.7 belongs to no pod that Cilium \
         knows (its node runs no Cilium, or that does not manage the pod)"
    );
    // Without the endpoint's own entry the packet's address says which pod it is.
    assert_eq!(answer(&inventory, &BLOCK, 133, &[]).policies, found.policies);
}

#[test]
fn what_no_source_tells_of_is_null_and_what_there_is_none_of_is_empty() {
    let pods: (Of, &[Value]) = (Of::Pod, &[pod("web-0", "web", "c-1", "10.11.1.5")]);
    let of = |lists: &[(Of, &[Value])]| {
        let answer = answer(&inventory(lists), &BLOCK, 133, &[endpoint(12345)]);
        (answer.policies.map(|all| all.len()), answer.unread)
    };
    assert_eq!(of(&[]), (None, vec![]));
    assert_eq!(of(std::slice::from_ref(&pods)), (None, vec![]));
    let all: &[(Of, &[Value])] = &[(NETWORK, &[]), (CILIUM, &[]), (CLUSTERWIDE, &[])];
    assert_eq!(of(&[&[pods][..], all].concat()), (Some(0), vec![]));
    let (policies, unread) = of(&[pods, (NETWORK, &[]), (CLUSTERWIDE, &[])]);
    assert_eq!((policies, unread.len()), (Some(0), 1));
    assert!(unread[0].starts_with("no source has told of any CiliumNetworkPolicy"), "{unread:?}");
    assert!(unread[0].contains("kubectl auth can-i list ciliumnetworkpolicies.cilium.io"), "{unread:?}");
    // Nobody knows the pod.
    let (policies, unread) = of(all);
    assert!(
        policies.is_none() && unread[0].starts_with("the labels of identity 12345 are not known"),
        "{unread:?}"
    );
}

#[test]
fn an_identitys_own_labels_come_before_the_pods() {
    let identity = |id: &str, app: &str| json!({"metadata": {"name": id}, "security-labels": {"k8s:app": app, "k8s:io.kubernetes.pod.namespace": "shop"}});
    let all = |spec: Value| {
        policy(
            "p",
            &json!({"podSelector": spec, "ingress": [{"from": [{"podSelector": {"matchLabels":
        {"app": "frontend"}}}]}]}),
        )
    };
    let inventory = inventory(&[
        (Of::Pod, &[pod("web-0", "renamed", "c-1", "10.11.1.5"), pod("b", "batch", "c-2", "10.244.3.7")]),
        (Of::Namespace, &[json!({"metadata": {"name": "shop", "labels": {"team": "a"}}})]),
        (Of::Identity, &[identity("12345", "web")]),
        (NETWORK, &[all(json!({"matchLabels": {"app": "web"}}))]),
        (CILIUM, &[]),
        (CLUSTERWIDE, &[]),
    ]);
    let block = Block { source_identity: 4711, ..BLOCK };
    let answer = answer(&inventory, &block, 133, &[endpoint(12345)]);
    assert_eq!(why(&answer, 0), "peer labels: needs app=frontend, the peer has app=batch");
    let packet = packet();
    let known = Known::of(&inventory, NOW, &block, &packet);
    let labels = |id| Identity::named(id, &known).labels.map(|labels| labels.join(" "));
    assert_eq!(labels(12345).as_deref(), Some("k8s:app=web k8s:io.kubernetes.pod.namespace=shop"));
    // No CiliumIdentity: the pod's at that end.
    assert_eq!(
        labels(4711).as_deref(),
        Some("k8s:app=batch k8s:io.cilium.k8s.namespace.labels.team=a k8s:io.kubernetes.pod.namespace=shop")
    );
    assert_eq!(labels(4712), None);
    // Reserved and local ones are not the pod's that has the address, nor is what was there before or comes later.
    for id in [2, 1 << 24 | 7] {
        let block = Block { source_identity: id, ..BLOCK };
        let known = Known::of(&inventory, NOW, &block, &packet);
        assert_eq!(Identity::named(id, &known).labels.is_some(), id == 2);
        assert_ne!(known.labels(id), labels(4711).map(|text| vec![text]));
    }
}

#[test]
fn only_a_policys_verdict_on_a_pod_has_policies() {
    let lists: &[(Of, &[Value])] = &[
        (Of::Pod, &[pod("web-0", "web", "c-1", "10.11.1.5")]),
        (NETWORK, &[policy("p", &json!({"podSelector": {}}))]),
        (CILIUM, &[]),
        (CLUSTERWIDE, &[]),
    ];
    let inventory = inventory(lists);
    let of = |code, endpoint: LocalEndpoint| answer(&inventory, &BLOCK, code, &[endpoint]);
    for code in [133, 181, 189] {
        assert_eq!(of(code, endpoint(12345)).policies.unwrap().len(), 1);
    }
    assert_eq!(of(155, endpoint(12345)).policies, None);
    let host = of(133, LocalEndpoint { is_host: true, ..endpoint(1) });
    assert!(
        host.policies.is_none() && host.unread[0].starts_with("the node's labels are not known"),
        "{host:?}"
    );
}

#[test]
fn policies_on_nodes_are_about_the_host_alone() {
    let on = |name: &str, field: &str, app: &str| json!({"metadata": {"name": name}, "spec": {field: {"matchLabels": {"app": app}}, "ingress": [{"fromEntities": ["cluster"]}]}});
    let node = json!({"metadata": {"name": "c-1", "labels": {"app": "web"}}, "status": {"addresses": [{"address": "10.11.1.5"}]}});
    let inventory = inventory(&[
        (Of::Node, &[node]),
        (Of::Pod, &[pod("web-0", "web", "c-1", "10.11.1.6")]),
        (NETWORK, &[policy("network", &json!({"podSelector": {}}))]),
        (CILIUM, &[policy("of-a-namespace", &json!({"nodeSelector": {}, "ingress": [{}]}))]),
        (
            CLUSTERWIDE,
            &[
                on("nodes", "nodeSelector", "web"),
                on("others", "nodeSelector", "db"),
                on("pods", "endpointSelector", "web"),
            ],
        ),
    ]);
    let names =
        |answer: &Cilium| answer.policies.iter().flatten().map(|it| it.name.clone()).collect::<Vec<_>>();
    let block = Block { destination_identity: 1, ..BLOCK };
    let host = answer(&inventory, &block, 133, &[LocalEndpoint { is_host: true, ..endpoint(1) }]);
    assert_eq!((names(&host), host.unread.len()), (vec!["nodes".to_owned()], 0));
    assert_eq!(
        why(&host, 0),
        "peer: it is about the entity cluster, the peer is identity 2 (reserved:world)"
    );
    let of_pod = answer(
        &inventory,
        &BLOCK,
        133,
        &[LocalEndpoint { address: address("10.11.1.6"), ..endpoint(12345) }],
    );
    assert_eq!(names(&of_pod), ["pods", "network"]);
}

#[test]
fn names_that_come_later_change_names_alone() {
    let entry = |id| crate::cilium::model::Entry {
        identity: Some(Identity { id, labels: None }),
        ..Default::default()
    };
    let packet = Packet { time: NOW, ..packet() };
    let block = Block { source_identity: 4711, ..BLOCK };
    let asked = Asked { block, packet, unread: 1 };
    let mut early = Cilium {
        endpoint: Some(2636),
        direction: Some(Direction::Ingress),
        verdict_by: Some(VerdictBy::DefaultDeny),
        source_identity: entry(4711).identity,
        nearest: vec![entry(12345)],
        allowed_now: Some(false),
        unread: vec!["a map".to_owned()],
        ..Cilium::default()
    };
    let before = early.clone();
    // Nothing is known: nothing changes, however often it is asked.
    asked.name(&mut early, &Inventory::default(), &[]);
    assert_eq!(early, before);
    let only: &[(Of, &[Value])] = &[(NETWORK, &[policy("p", &json!({"podSelector": {}}))])];
    asked.name(&mut early, &inventory(only), &[]);
    assert_eq!((early.policies.clone(), early.unread.len()), (None, 2));
    // The pods' names came.
    let later = inventory(&[
        (Of::Pod, &[pod("web-0", "web", "c-1", "10.11.1.5"), pod("b", "batch", "c-2", "10.244.3.7")]),
        (NETWORK, &[policy("p", &json!({"podSelector": {}}))]),
        (CILIUM, &[]),
        (CLUSTERWIDE, &[]),
    ]);
    asked.name(&mut early, &later, &[endpoint(12345)]);
    assert_eq!(early.unread, ["a map"]);
    assert_eq!(why(&early, 0), "no ingress rule at all, so it allows nothing");
    let labels = |identity: &Option<Identity>| identity.clone().unwrap().labels.unwrap()[0].clone();
    assert_eq!(labels(&early.source_identity), "k8s:app=batch");
    assert_eq!(labels(&early.nearest[0].identity), "k8s:app=web");
    assert_eq!(early.allowed_now, Some(false));
}
