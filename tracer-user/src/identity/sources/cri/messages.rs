//! The messages of the Container Runtime Interface that are used, and of them the fields that are used: package
//! `runtime.v1` of k8s.io/cri-api/pkg/apis/runtime/v1/api.proto. Written by hand; unknown fields are skipped.

use prost::Message;
use std::collections::BTreeMap;

/// `VersionRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct VersionRequest {
    /// What the client speaks: `v1`.
    #[prost(string, tag = "1")]
    pub(super) version: String,
}

/// `VersionResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct VersionResponse {
    /// `containerd`, `cri-o`, `docker`.
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    /// `1.7.12`, `v2.0.1`.
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
}

/// `ListPodSandboxRequest`, without a filter.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListPodSandboxRequest {}

/// `ListPodSandboxResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListPodSandboxResponse {
    /// All that there are, also stopped ones.
    #[prost(message, repeated, tag = "1")]
    pub(super) items: Vec<PodSandbox>,
}

/// `PodSandbox`
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandbox {
    /// Its id.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Names of the pod.
    #[prost(message, optional, tag = "2")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    /// A [`SandboxState`].
    #[prost(enumeration = "SandboxState", tag = "3")]
    pub(super) state: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "4")]
    pub(super) created_at: i64,
    /// The pod's labels and some of the kubelet's own.
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) labels: BTreeMap<String, String>,
}

/// `PodSandboxMetadata`
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxMetadata {
    /// metadata.name of the pod.
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// metadata.uid
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    /// metadata.namespace
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

/// `PodSandboxState`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum SandboxState {
    /// `SANDBOX_READY`
    Ready = 0,
    /// `SANDBOX_NOTREADY`
    NotReady = 1,
}

/// `PodSandboxStatusRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxStatusRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
    /// Asks for `info`.
    #[prost(bool, tag = "2")]
    pub(super) verbose: bool,
}

/// `PodSandboxStatusResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxStatusResponse {
    /// What every runtime tells.
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<PodSandboxStatus>,
    /// What this runtime tells: JSON texts by their names. Only if `verbose`.
    #[prost(btree_map = "string, string", tag = "2")]
    pub(super) info: BTreeMap<String, String>,
}

/// `PodSandboxStatus`
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxStatus {
    /// Its id.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Its addresses.
    #[prost(message, optional, tag = "5")]
    pub(super) network: Option<PodSandboxNetworkStatus>,
    /// Its namespaces.
    #[prost(message, optional, tag = "6")]
    pub(super) linux: Option<LinuxPodSandboxStatus>,
}

/// `PodSandboxNetworkStatus`
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxNetworkStatus {
    /// The first address.
    #[prost(string, tag = "1")]
    pub(super) ip: String,
    /// The others.
    #[prost(message, repeated, tag = "2")]
    pub(super) additional_ips: Vec<PodIp>,
}

/// `PodIP`
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodIp {
    /// As text.
    #[prost(string, tag = "1")]
    pub(super) ip: String,
}

/// `LinuxPodSandboxStatus`
#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxPodSandboxStatus {
    /// Its namespaces.
    #[prost(message, optional, tag = "1")]
    pub(super) namespaces: Option<Namespace>,
}

/// `Namespace`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Namespace {
    /// Whose they are.
    #[prost(message, optional, tag = "2")]
    pub(super) options: Option<NamespaceOption>,
}

/// `NamespaceOption`
#[derive(Clone, PartialEq, Message)]
pub(super) struct NamespaceOption {
    /// Whose the network namespace is: a [`NamespaceMode`].
    #[prost(enumeration = "NamespaceMode", tag = "1")]
    pub(super) network: i32,
}

/// `NamespaceMode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum NamespaceMode {
    /// The pod's own.
    Pod = 0,
    /// The container's own.
    Container = 1,
    /// The node's.
    Node = 2,
    /// Another container's.
    Target = 3,
}

/// `GetEventsRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct GetEventsRequest {}

/// `ContainerEventResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerEventResponse {
    /// The container, or the sandbox itself.
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
    /// Its sandbox; none once that was removed.
    #[prost(message, optional, tag = "4")]
    pub(super) pod_sandbox_status: Option<PodSandboxStatus>,
}
