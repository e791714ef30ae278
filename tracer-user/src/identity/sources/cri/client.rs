//! Calls of the Container Runtime Interface over a Unix socket.

use super::messages::{
    ContainerEventResponse, GetEventsRequest, ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox,
    PodSandboxStatusRequest, PodSandboxStatusResponse, VersionRequest, VersionResponse,
};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// How long a runtime may take to answer: one that is busy removing containers takes seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to accept a connection and say what it is.
const GREETING: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes: the kubelet's limit, too.
const LONGEST: usize = 16 << 20;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The socket is for others.
    #[error("permission denied: run as root, or with CAP_DAC_OVERRIDE")]
    Denied,
    /// Nobody listens on the socket.
    #[error("nobody listens there: the runtime is not running")]
    Refused,
    /// There is no socket any more.
    #[error("the socket is gone")]
    Gone,
    /// Somebody listens, but does not answer in time.
    #[error("no answer: the runtime hangs, or it is not a container runtime's socket")]
    Silent,
    /// It does not know the service.
    #[error(
        "it does not serve CRI v1: its CRI plugin is disabled, or it is older than containerd 1.6 or CRI-O 1.20"
    )]
    NotServed,
    /// It does not know what was asked for.
    #[error("not there")]
    NotFound,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A connection to a runtime.
#[derive(Debug, Clone)]
pub(super) struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    /// Connects to the socket and asks who is there.
    pub(super) async fn connect(socket: &Path) -> Result<(Self, VersionResponse), Failure> {
        let greeting = async {
            let channel = channel(socket.to_owned()).await?;
            let client = Self { grpc: Grpc::new(channel).max_decoding_message_size(LONGEST) };
            let version = client.call("Version", VersionRequest { version: "v1".into() }).await?;
            Ok((client, version))
        };
        timeout(GREETING, greeting).await.unwrap_or(Err(Failure::Silent))
    }

    /// All sandboxes.
    pub(super) async fn list(&self) -> Result<Vec<PodSandbox>, Failure> {
        let answer: ListPodSandboxResponse = self.call("ListPodSandbox", ListPodSandboxRequest {}).await?;
        Ok(answer.items)
    }

    /// All of one sandbox.
    pub(super) async fn status(&self, id: &str) -> Result<PodSandboxStatusResponse, Failure> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        self.call("PodSandboxStatus", request).await
    }

    /// What happens from now on. It ends at once where the runtime has events switched off.
    pub(super) async fn events(&self) -> Result<Streaming<ContainerEventResponse>, Failure> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| transport_failure(&error))?;
        let codec = ProstCodec::<GetEventsRequest, ContainerEventResponse>::default();
        let answer = grpc
            .server_streaming(Request::new(GetEventsRequest {}), path("GetContainerEvents")?, codec)
            .await;
        answer.map(tonic::Response::into_inner).map_err(|status| failure(&status))
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Failure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        let answer = async {
            grpc.ready().await.map_err(|error| transport_failure(&error))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(Request::new(request), path(method)?, codec).await.map_err(|status| failure(&status))
        };
        let answer = timeout(PATIENCE, answer).await.unwrap_or(Err(Failure::Silent));
        answer.map(tonic::Response::into_inner)
    }
}

async fn channel(socket: PathBuf) -> Result<Channel, Failure> {
    // A Unix socket has no name and no scheme: these go into the request's headers, where Go wants to see a host.
    let endpoint = Endpoint::from_static("http://localhost");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| transport_failure(&error))
}

fn path(method: &str) -> Result<PathAndQuery, Failure> {
    PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"))
        .map_err(|error| Failure::Other(error.to_string()))
}

fn failure(status: &Status) -> Failure {
    match status.code() {
        Code::NotFound => Failure::NotFound,
        Code::Unimplemented => Failure::NotServed,
        Code::DeadlineExceeded => Failure::Silent,
        _ => io_failure(status).unwrap_or_else(|| Failure::Other(cut(status.message()))),
    }
}

fn transport_failure(error: &tonic::transport::Error) -> Failure {
    io_failure(error).unwrap_or_else(|| Failure::Other(cut(&error.to_string())))
}

/// The failed system call behind an error, if that is what it was.
fn io_failure(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            match error.kind() {
                io::ErrorKind::PermissionDenied => return Some(Failure::Denied),
                io::ErrorKind::ConnectionRefused => return Some(Failure::Refused),
                io::ErrorKind::NotFound => return Some(Failure::Gone),
                _ => {}
            }
        }
        cause = error.source();
    }
    None
}

/// A runtime's own words, on one line of bounded length.
fn cut(message: &str) -> String {
    message.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        assert_eq!(failure(&Status::unimplemented("unknown service")), Failure::NotServed);
        assert_eq!(failure(&Status::not_found("no")), Failure::NotFound);
        let Failure::Other(words) = failure(&Status::internal(format!("a\nb{}", "x".repeat(500)))) else {
            panic!("another failure")
        };
        assert!(words.starts_with("a bxx") && words.len() == 200, "{words}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_told_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("containerd.sock");
        assert_eq!(Client::connect(&socket).await.unwrap_err(), Failure::Gone);
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(Client::connect(&socket).await.unwrap_err(), Failure::Refused);
    }

    #[tokio::test]
    async fn one_that_never_answers_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("containerd.sock");
        let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(Client::connect(&socket).await.unwrap_err(), Failure::Silent);
    }
}
