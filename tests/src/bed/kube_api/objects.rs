//! Objects to put into a server: recorded ones, and small ones of our own.

use super::store::RESOURCES;
use serde_json::{Value, json};

const RECORDED: [&str; 5] = [
    include_str!("../../../../tracer-user/src/identity/fixtures/nodes.list.json"),
    include_str!("../../../../tracer-user/src/identity/fixtures/namespaces.list.json"),
    include_str!("../../../../tracer-user/src/identity/fixtures/pods.list.json"),
    include_str!("../../../../tracer-user/src/identity/fixtures/services.list.json"),
    include_str!("../../../../tracer-user/src/identity/fixtures/endpointslices.list.json"),
];

/// The objects of a real cluster: 2 nodes, 8 namespaces, 21 pods, 26 services and their EndpointSlices.
#[must_use]
pub fn recorded() -> Vec<Value> {
    RECORDED
        .iter()
        .filter_map(|text| serde_json::from_str::<Value>(text).ok())
        .flat_map(|list| {
            let kind = RESOURCES.iter().find(|resource| list["kind"] == format!("{}List", resource.kind));
            let kind = kind.map(|resource| resource.kind).unwrap_or_default();
            let items = list["items"].as_array().cloned().unwrap_or_default();
            items.into_iter().map(move |mut item| {
                item["kind"] = kind.into();
                item
            })
        })
        .collect()
}

fn metadata(namespace: &str, name: &str) -> Value {
    json!({"name": name, "namespace": namespace, "uid": format!("uid-of-{namespace}-{name}"),
        "creationTimestamp": "2026-11-20T22:00:00Z", "labels": {"app": name}})
}

fn ips(addresses: &[&str]) -> Vec<Value> {
    addresses.iter().map(|ip| json!({"ip": ip})).collect()
}

/// A running pod.
#[must_use]
pub fn pod(namespace: &str, name: &str, node: &str, addresses: &[&str]) -> Value {
    json!({"kind": "Pod", "metadata": metadata(namespace, name),
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "startTime": "2026-11-20T22:00:01Z", "podIP": addresses.first(), "podIPs": ips(addresses)}})
}

/// A pod as [`pod`] makes it, made by a ReplicaSet or the like.
#[must_use]
pub fn owned(mut object: Value, kind: &str, name: &str) -> Value {
    object["metadata"]["ownerReferences"] = json!([{"kind": kind, "name": name, "controller": true}]);
    object
}

/// A service with a cluster address and a TCP port, which stands for the port `target` of its pods.
#[must_use]
pub fn service(namespace: &str, name: &str, address: &str, port: u16, target: u16) -> Value {
    json!({"kind": "Service", "metadata": metadata(namespace, name), "status": {"loadBalancer": {}},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{"protocol": "TCP", "port": port, "targetPort": target}]}})
}

/// The backends of a service: pods and their addresses.
#[must_use]
pub fn slice(namespace: &str, service: &str, port: u16, pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, address)| {
            json!({"addresses": [address], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod}})
        })
        .collect();
    let mut metadata = metadata(namespace, &format!("{service}-slice"));
    metadata["labels"] = json!({"kubernetes.io/service-name": service});
    json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "", "protocol": "TCP", "port": port}]})
}

/// A node.
#[must_use]
pub fn node(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({"kind": "Node", "metadata": {"name": name, "uid": format!("uid-of-{name}")}, "spec": {},
        "status": {"addresses": addresses}})
}

/// A namespace.
#[must_use]
pub fn namespace(name: &str) -> Value {
    json!({"kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {}, "status": {"phase": "Active"}})
}

/// A ReplicaSet of a Deployment.
#[must_use]
pub fn replica_set(namespace: &str, name: &str, deployment: &str) -> Value {
    let object =
        json!({"kind": "ReplicaSet", "metadata": metadata(namespace, name), "spec": {}, "status": {}});
    owned(object, "Deployment", deployment)
}

/// The same with other labels.
#[must_use]
pub fn labelled(mut object: Value, labels: &Value) -> Value {
    object["metadata"]["labels"] = labels.clone();
    object
}

/// A NetworkPolicy.
#[must_use]
pub fn network_policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"kind": "NetworkPolicy", "metadata": metadata(namespace, name), "spec": spec})
}

/// A CiliumNetworkPolicy.
#[must_use]
pub fn cilium_policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"kind": "CiliumNetworkPolicy", "metadata": metadata(namespace, name), "spec": spec})
}

/// A CiliumClusterwideNetworkPolicy.
#[must_use]
pub fn clusterwide_policy(name: &str, spec: &Value) -> Value {
    json!({"kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

/// A CiliumIdentity with labels, each with its source: `k8s:app`.
#[must_use]
pub fn cilium_identity(id: u32, labels: &Value) -> Value {
    json!({"kind": "CiliumIdentity", "metadata": {"name": id.to_string()}, "security-labels": labels})
}
