//! The fields of the API's objects that are read, spelt as the API spells them. `null` is the same as a missing field
//! everywhere: Go's encoder writes empty lists so.
//!
//! Source: the API reference of Kubernetes 1.36, <https://kubernetes.io/docs/reference/kubernetes-api/>.

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// `null` as the default.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// A struct of the API: each field may be missing or null.
macro_rules! wire {
    ($($(#[$about:meta])* $name:ident { $($(#[$more:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct $name {
            $($(#[$more])* #[serde(default, deserialize_with = "nullable")] pub(super) $field: $type,)*
        }
    )*};
}

wire! {
    /// Any object, as far as all are the same.
    Bare { metadata: Meta, }

    Meta {
        name: String,
        namespace: String,
        uid: String,
        resource_version: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        owner_references: Vec<OwnerReference>,
        creation_timestamp: Option<String>,
    }
    OwnerReference { kind: String, name: String, controller: bool, }

    Pod { metadata: Meta, spec: PodSpec, status: PodStatus, }
    PodSpec {
        node_name: String,
        host_network: bool,
        containers: Vec<Container>,
        /// Those that keep running beside the others have ports, too.
        init_containers: Vec<Container>,
    }
    Container { ports: Vec<ContainerPort>, }
    ContainerPort { name: String, container_port: u16, host_port: u16, protocol: Option<String>, }
    PodStatus {
        phase: String,
        #[serde(rename = "podIP")]
        pod_ip: String,
        #[serde(rename = "podIPs")]
        pod_ips: Vec<Ip>,
        #[serde(rename = "hostIP")]
        host_ip: String,
        #[serde(rename = "hostIPs")]
        host_ips: Vec<Ip>,
        start_time: Option<String>,
    }
    Ip { ip: String, }

    Service { metadata: Meta, spec: ServiceSpec, status: ServiceStatus, }
    ServiceSpec {
        #[serde(rename = "clusterIP")]
        cluster_ip: String,
        #[serde(rename = "clusterIPs")]
        cluster_ips: Vec<String>,
        #[serde(rename = "externalIPs")]
        external_ips: Vec<String>,
        #[serde(rename = "loadBalancerIP")]
        load_balancer_ip: String,
        ports: Vec<ServicePort>,
        selector: BTreeMap<String, String>,
    }
    ServicePort { name: String, protocol: Option<String>, port: u16, node_port: u16, }
    ServiceStatus { load_balancer: LoadBalancer, }
    LoadBalancer { ingress: Vec<Ip>, }

    Slice { metadata: Meta, endpoints: Vec<Endpoint>, ports: Vec<EndpointPort>, }
    Endpoint { addresses: Vec<String>, conditions: Conditions, target_ref: Option<Reference>, }
    Conditions { ready: Option<bool>, }
    Reference { kind: String, name: String, }
    EndpointPort { protocol: Option<String>, port: Option<u16>, }

    Node { metadata: Meta, spec: NodeSpec, status: NodeStatus, }
    NodeSpec {
        #[serde(rename = "podCIDR")]
        pod_cidr: String,
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<String>,
    }
    NodeStatus { addresses: Vec<NodeAddress>, }
    NodeAddress { address: String, }

    ListMeta {
        resource_version: String,
        #[serde(rename = "continue")]
        next: String,
    }

    /// What the API answers instead of what was asked for.
    Status { message: String, reason: String, code: u16, }
}
