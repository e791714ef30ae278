//! A client of a container runtime that makes pods. Its messages are written from api.proto once more, apart from
//! droptrace's own: a wrong number there shows.

use super::cgroup;
use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use prost::Message;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

/// `NamespaceMode` NODE.
const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "4")]
    dns_config: Option<DnsConfig>,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct DnsConfig {
    #[prost(string, repeated, tag = "3")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

/// Requests and answers that are an id only: of RunPodSandbox, StopPodSandbox, RemovePodSandbox, CreateContainer and
/// StartContainer.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Id>,
}

/// A pod to run, and what it is called.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: a UUID that no other pod has.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// True if it is in the network namespace of the runtime.
    pub host_network: bool,
}

impl Pod {
    /// A pod with a new uid and the label `app`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Self {
            namespace: namespace.into(),
            name: name.into(),
            uid: format!("{}{number:012x}", Self::uids_of(pid)),
            labels: BTreeMap::from([("app".into(), name.into())]),
            host_network: false,
        }
    }

    /// How the uids of all pods begin that this process makes.
    #[must_use]
    pub fn uids_of(process: u32) -> String {
        format!("{process:08x}-d70b-4ace-8000-")
    }

    fn config(&self) -> PodSandboxConfig {
        let network = if self.host_network { NODE } else { 0 };
        let mut labels = self.labels.clone();
        // The kubelet adds these.
        for (key, value) in [("name", &self.name), ("namespace", &self.namespace), ("uid", &self.uid)] {
            labels.insert(format!("io.kubernetes.pod.{key}"), value.clone());
        }
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            // It is the node's where the network namespace is.
            hostname: if self.host_network { String::new() } else { self.name.clone() },
            log_directory: String::new(),
            // Without any, the machine's own would be copied, with its servers.
            dns_config: Some(DnsConfig { options: vec!["ndots:1".into()] }),
            labels,
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup::of_pod(&self.uid),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption { network }),
                }),
            }),
        }
    }
}

/// A connection's address; each call connects anew.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of the runtime that listens there.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into() }
    }

    /// RunPodSandbox; returns the sandbox's id.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn run(&self, pod: &Pod) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(pod.config()) };
        self.call::<_, Id>("RuntimeService/RunPodSandbox", request).map(|answer| answer.id)
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn stop(&self, sandbox: &str) -> Result<()> {
        let request = Id { id: sandbox.into() };
        self.call::<_, Empty>("RuntimeService/StopPodSandbox", request).map(|_| ())
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn remove(&self, sandbox: &str) -> Result<()> {
        let request = Id { id: sandbox.into() };
        self.call::<_, Empty>("RuntimeService/RemovePodSandbox", request).map(|_| ())
    }

    /// Makes and starts a container in a pod's sandbox; returns its id.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn start(&self, pod: &Pod, sandbox: &str, image: &str, command: &[&str]) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into() }),
            image: Some(ImageSpec { image: image.into() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(pod.config()),
        };
        let made: Id = self.call("RuntimeService/CreateContainer", request)?;
        self.call::<_, Empty>("RuntimeService/StartContainer", made.clone())?;
        Ok(made.id)
    }

    /// True if the runtime has an image of that name.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn has_image(&self, name: &str) -> Result<bool> {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: name.into() }) };
        let answer: ImageStatusResponse = self.call("ImageService/ImageStatus", request)?;
        Ok(answer.image.is_some())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let socket = self.socket.clone();
        let answer = runtime.block_on(async {
            let connect = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await?;
            let mut grpc = Grpc::new(channel);
            grpc.ready().await?;
            let path = PathAndQuery::try_from(format!("/runtime.v1.{method}"))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
            answer.map_err(|status| anyhow!("{:?}: {}", status.code(), status.message()))
        });
        Ok(answer.with_context(|| method.to_owned())?.into_inner())
    }
}
