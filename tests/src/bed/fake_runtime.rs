//! A container runtime of the newer kind, which tells of events: as much of one as droptrace asks. Debian's containerd is
//! older. HTTP/2 and gRPC's framing (a byte of flags, the length in four, the message; the status in the trailers) are
//! made here by hand.

use anyhow::Result;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Item>,
}

/// A sandbox of the list: `metadata` is its name (1), uid (2) and namespace (3).
#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "uint32, string", tag = "99")]
    unknown: BTreeMap<u32, String>,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(btree_map = "string, string", tag = "2")]
    info: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(message, optional, tag = "4")]
    pod_sandbox_status: Option<Status>,
}

/// What it has and was asked.
#[derive(Debug, Default)]
struct State {
    sandboxes: Vec<String>,
    asked: BTreeMap<String, usize>,
}

/// The runtime; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeRuntime {
    folder: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    events: watch::Sender<String>,
    _stop: oneshot::Sender<()>,
}

impl FakeRuntime {
    /// Starts one that says it is this version of containerd.
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn start(version: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let state = Arc::new(Mutex::new(State::default()));
        let events = watch::Sender::new(String::new());
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(folder.path().join("runtime.sock"))?
        };
        let (kept, sender, version) = (Arc::clone(&state), events.clone(), version.to_owned());
        let serve = async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (state, events, version) = (Arc::clone(&kept), sender.clone(), version.clone());
                let service = hyper::service::service_fn(move |request| {
                    let answer = answer(&request, &state, &events, &version);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(connection), service);
                tokio::spawn(serving);
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { folder, state, events, _stop: stop })
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("runtime.sock")
    }

    /// Makes a sandbox, and tells of it: an event of the sandbox itself.
    pub fn make(&self, id: &str) {
        self.lock().sandboxes.push(id.to_owned());
        self.events.send_replace(id.to_owned());
    }

    /// Tells that a container started in a sandbox.
    pub fn tell_of_container(&self, sandbox: &str) {
        self.events.send_replace(format!("container-of/{sandbox}"));
    }

    /// How often a method was called.
    #[must_use]
    pub fn asked(&self, method: &str) -> usize {
        self.lock().asked.get(method).copied().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn answer(
    request: &Request<Incoming>,
    state: &Mutex<State>,
    events: &watch::Sender<String>,
    version: &str,
) -> Response<Body> {
    let method =
        Path::new(request.uri().path()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    *state.asked.entry(method.clone()).or_default() += 1;
    let body = match method.as_str() {
        "Version" => unary(&Version { runtime_name: "containerd".into(), runtime_version: version.into() }),
        "ListPodSandbox" => unary(&List { items: state.sandboxes.iter().map(|id| item(id)).collect() }),
        "PodSandboxStatus" => unary(&StatusAnswer {
            status: Some(Status { id: String::new(), network: Some(Network { ip: "10.0.0.7".into() }) }),
            info: BTreeMap::from([(
                "info".into(),
                r#"{"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/proc/self/ns/net"}]}}}"#
                    .into(),
            )]),
        }),
        _ => stream(events.subscribe()),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    response
}

fn item(id: &str) -> Item {
    let metadata = Metadata { name: format!("pod-{id}"), uid: format!("uid-{id}"), namespace: "shop".into() };
    Item { id: id.into(), unknown: BTreeMap::from([(1, "a later field".into())]), metadata: Some(metadata) }
}

fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, &bytes].concat().into()
}

fn unary(message: &impl Message) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
    Full::new(framed(message)).with_trailers(async { Some(Ok(trailers)) }).boxed_unsync()
}

/// Events until the client goes.
fn stream(events: watch::Receiver<String>) -> Body {
    let frames = futures_util::stream::unfold(events, |mut events| async {
        events.changed().await.ok()?;
        let told = events.borrow_and_update().clone();
        let (container, sandbox) = match told.split_once('/') {
            Some((_, sandbox)) => (told.clone(), sandbox.to_owned()),
            None => (told.clone(), told),
        };
        let status = Some(Status { id: sandbox, network: None });
        let frame = Frame::data(framed(&Event { container_id: container, pod_sandbox_status: status }));
        Some((Ok(frame), events))
    });
    StreamBody::new(frames).boxed_unsync()
}
