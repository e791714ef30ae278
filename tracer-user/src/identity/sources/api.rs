//! The Kubernetes API: lists and watches what names addresses, each kind by itself, for as long as anybody reads.
//!
//! kube finds the configuration, authenticates (it reads a service account's token and CA again as they rotate) and
//! encrypts. Lists and watches are our own: they hold no more than one page of a list or one line of a watch, notice in
//! bounded time that a server is silent, and know when it is back, to say so.

mod connect;
mod follow;
mod health;
mod lines;
mod pace;
mod trouble;

use super::{Closed, Sink};
use crate::identity::object::Kind;
use crate::identity::policy::PolicyKind;
use futures_util::future::try_join_all;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// Which API server, and how patiently.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--kubeconfig`; without it the paths of `KUBECONFIG`, then `~/.kube/config`, then the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`: which context of it; else its current one.
    pub context: Option<String>,
    /// How long to wait.
    pub timing: Timing,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Until a connection is there.
    pub connect: Duration,
    /// Until an answer begins, and for each further piece of a list.
    pub answer: Duration,
    /// For all of a page of a list, or of a streaming list.
    pub list: Duration,
    /// After which, or a half of which, the server is asked to end a watch, in whole seconds. Before, a quiet server and a
    /// dead one look alike.
    pub watch: Duration,
    /// How much later the watch is given up, if the server has not ended it.
    pub margin: Duration,
    /// Before the first retry. It doubles with each failure.
    pub retry: Duration,
    /// The longest between retries.
    pub retry_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            list: Duration::from_secs(120),
            watch: Duration::from_secs(300),
            margin: Duration::from_secs(15),
            retry: Duration::from_millis(800),
            retry_most: Duration::from_secs(30),
        }
    }
}

/// No API server is configured here: no kubeconfig, and no service account of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotConfigured;

/// What is asked of the API.
#[derive(Debug)]
struct Resource {
    kind: Kind,
    /// Where it is.
    path: &'static str,
    /// As `kubectl` and RBAC call it.
    name: &'static str,
    /// Whether its metadata is enough.
    metadata: bool,
    /// Whether clusters may be without it: then nothing is said where it is not there or not allowed, and it is asked for
    /// less often. (The API server forbids also what does not exist.)
    optional: bool,
}

const fn whole(kind: Kind, path: &'static str, name: &'static str) -> Resource {
    Resource { kind, path, name, metadata: false, optional: false }
}

const fn metadata(kind: Kind, path: &'static str, name: &'static str) -> Resource {
    Resource { metadata: true, ..whole(kind, path, name) }
}

const fn optional(kind: Kind, path: &'static str, name: &'static str) -> Resource {
    Resource { optional: true, ..whole(kind, path, name) }
}

/// Everything that is watched.
const RESOURCES: [Resource; 11] = [
    whole(Kind::Pod, "/api/v1/pods", "pods"),
    whole(Kind::Service, "/api/v1/services", "services"),
    whole(Kind::Slice, "/apis/discovery.k8s.io/v1/endpointslices", "endpointslices.discovery.k8s.io"),
    whole(Kind::Node, "/api/v1/nodes", "nodes"),
    metadata(Kind::Namespace, "/api/v1/namespaces", "namespaces"),
    metadata(Kind::ReplicaSet, "/apis/apps/v1/replicasets", "replicasets.apps"),
    metadata(Kind::Job, "/apis/batch/v1/jobs", "jobs.batch"),
    whole(
        Kind::Policy(PolicyKind::Network),
        "/apis/networking.k8s.io/v1/networkpolicies",
        "networkpolicies.networking.k8s.io",
    ),
    optional(
        Kind::Policy(PolicyKind::Cilium),
        "/apis/cilium.io/v2/ciliumnetworkpolicies",
        "ciliumnetworkpolicies.cilium.io",
    ),
    optional(
        Kind::Policy(PolicyKind::Clusterwide),
        "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
        "ciliumclusterwidenetworkpolicies.cilium.io",
    ),
    optional(Kind::Identity, "/apis/cilium.io/v2/ciliumidentities", "ciliumidentities.cilium.io"),
];

/// Watches the API until nobody reads any more. Failures are told as notes, once each, and retried. A list may begin
/// again before it has ended: then it starts over.
///
/// Returns at once if no API server is configured.
///
/// # Errors
/// If nobody reads any more.
pub async fn watch(options: Options, sink: Sink) -> Result<NotConfigured, Closed> {
    // Two providers might be compiled in by other crates, then rustls would refuse to choose. Fails only if one is set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if !connect::configured(&options).await {
        return Ok(NotConfigured);
    }
    let server = connect::Server::new(options);
    let health = Mutex::default();
    let followers =
        RESOURCES.iter().map(|resource| follow::Follower::new(&server, &health, resource, &sink).run());
    tokio::select! {
        () = sink.closed() => Err(Closed),
        ended = try_join_all(followers) => ended.and(Err(Closed)),
    }
}
