//! Connections, questions and answers.

use super::store::{Form, Gone, Refusal, Resource, Store, at, status};
use super::{Behaviour, Lie, Streaming};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

/// A question that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `pods`; the path, if it is no resource's.
    pub resource: String,
    /// Its parameters.
    pub query: BTreeMap<String, String>,
    /// True if metadata was enough.
    pub metadata: bool,
    /// The port that it came from: the same connection has the same.
    pub from: u16,
}

impl Request {
    /// True if it is a watch.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| watch == "true" || watch == "1")
    }

    /// True if it is a watch that begins with a list.
    #[must_use]
    pub fn is_streaming_list(&self) -> bool {
        self.is_watch() && self.query.get("sendInitialEvents").is_some_and(|send| send == "true")
    }
}

/// What the server's thread and its owner share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    store: Mutex<Store>,
    pub(super) behaviour: Mutex<Behaviour>,
    pub(super) requests: Mutex<Vec<Request>>,
    /// Counts changes of the above.
    pub(super) changed: watch::Sender<u64>,
    /// Counts how often all connections were broken off.
    pub(super) cut: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn change(&self, change: impl FnOnce(&mut Store)) {
        self.with(change);
        self.changed.send_modify(|count| *count += 1);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        work(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn behaviour(&self) -> Behaviour {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits while the server is silent.
    async fn speaking(&self) {
        let mut changed = self.changed.subscribe();
        while self.behaviour().silent {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The server's thread.
pub(super) struct Serving {
    pub(super) shared: Arc<Shared>,
    pub(super) tls: TlsAcceptor,
    /// Whether to listen.
    pub(super) asked: watch::Receiver<bool>,
    /// Whether it listens.
    pub(super) told: watch::Sender<bool>,
}

impl Serving {
    /// Serves until nobody asks it to any more.
    pub(super) async fn run(mut self, mut address: SocketAddr, bound: impl FnOnce(io::Result<SocketAddr>)) {
        let mut bound = Some(bound);
        loop {
            let listener = match TcpListener::bind(address).await {
                Ok(listener) => listener,
                Err(error) => match bound.take() {
                    Some(bound) => return bound(Err(error)),
                    // The address may be in use for a moment still.
                    None => {
                        sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            address = listener.local_addr().unwrap_or(address);
            if let Some(bound) = bound.take() {
                bound(Ok(address));
            }
            self.told.send_replace(true);
            let mut asked = self.asked.clone();
            let stopped = tokio::select! {
                () = self.accept(&listener) => return,
                stopped = asked.wait_for(|listen| !listen) => stopped.is_ok(),
            };
            drop(listener);
            self.shared.cut.send_modify(|count| *count += 1);
            self.told.send_replace(false);
            if !stopped || self.asked.wait_for(|listen| *listen).await.is_err() {
                return;
            }
        }
    }

    async fn accept(&self, listener: &TcpListener) {
        while let Ok((stream, peer)) = listener.accept().await {
            let (shared, tls) = (Arc::clone(&self.shared), self.tls.clone());
            let mut cut = shared.cut.subscribe();
            tokio::spawn(async move {
                tokio::select! {
                    () = connection(shared, &tls, stream, peer) => {}
                    _ = cut.changed() => {}
                }
            });
        }
    }
}

async fn connection(shared: Arc<Shared>, tls: &TlsAcceptor, stream: TcpStream, peer: SocketAddr) {
    // Clients that don't trust the certificate end it here.
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(shared, &request, peer).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

async fn answer(shared: Arc<Shared>, request: &hyper::Request<Incoming>, peer: SocketAddr) -> Answer {
    let path = request.uri().path();
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = if header(ACCEPT).contains("as=PartialObjectMetadata") { Form::Metadata } else { Form::Whole };
    let query = parameters(request.uri().query().unwrap_or_default());
    let resource = at(path);
    let asked = Request {
        resource: resource.map_or(path, |resource| resource.plural).to_owned(),
        query,
        metadata: form == Form::Metadata,
        from: peer.port(),
    };
    shared.requests.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    shared.speaking().await;
    let behaviour = shared.behaviour();
    if header(AUTHORIZATION) != format!("Bearer {}", behaviour.token) {
        return refuse(unauthorized());
    }
    let Some(resource) = resource.filter(|resource| !behaviour.missing.contains(resource.plural)) else {
        return refuse(not_found());
    };
    if behaviour.forbidden.contains(resource.plural) {
        return refuse(forbidden(resource, asked.is_watch()));
    }
    if asked.is_streaming_list() && behaviour.streaming == Streaming::Refused {
        return refuse(no_streaming());
    }
    match behaviour.lies.get(resource.plural) {
        Some(Lie::Text(text)) => return good(text.clone()),
        Some(Lie::Huge(bytes)) => return huge(*bytes),
        Some(Lie::Status(code)) => {
            return refuse(status(*code, "InternalError", "the server lies", json!({})));
        }
        Some(Lie::Slow(_) | Lie::Half) | None => {}
    }
    let lie = behaviour.lies.get(resource.plural).cloned();
    if asked.is_watch() {
        return watching(shared, resource, form, &asked, &behaviour, lie);
    }
    let limit = asked.query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let following = asked.query.get("continue").map(String::as_str);
    match (shared.with(|store| store.list(resource, form, limit, following)), lie) {
        (Ok(list), None) => good(list.to_string()),
        (Ok(list), Some(lie)) => {
            let (feed, body) = feed();
            tokio::spawn(async move { lying(&feed, list.to_string(), &lie).await });
            response(StatusCode::OK, body)
        }
        (Err(refusal), _) => refuse(refusal),
    }
}

/// A watch: what is wanted of the past, then what comes, until its time is over.
fn watching(
    shared: Arc<Shared>,
    resource: &'static Resource,
    form: Form,
    asked: &Request,
    behaviour: &Behaviour,
    lie: Option<Lie>,
) -> Answer {
    let version = asked.query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let ends = asked.is_streaming_list() && behaviour.streaming == Streaming::Answered;
    let begun = shared.with(|store| {
        let mut events = if version == 0 {
            store.initial(resource, form)
        } else {
            store.since(resource, form, version)?
        };
        if ends {
            events.push(store.bookmark_of(resource, form, true));
        }
        Ok::<_, Refusal>((events, store.version(), store.bookmarks()))
    });
    let (events, version, bookmarks) = match (begun, behaviour.gone) {
        (Ok(begun), _) => begun,
        (Err(refusal), Gone::Code) => return refuse(refusal),
        (Err((_, status)), Gone::Event) => {
            return good(format!("{}\n", json!({"type": "ERROR", "object": status})));
        }
    };
    let seconds = asked.query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(1800);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (feed, body) = feed();
    let watching = Watching { shared, resource, form, version, bookmarks, until, feed, lie };
    tokio::spawn(watching.run(events));
    response(StatusCode::OK, body)
}

struct Watching {
    shared: Arc<Shared>,
    resource: &'static Resource,
    form: Form,
    version: u64,
    bookmarks: u64,
    until: Instant,
    feed: mpsc::Sender<io::Result<Bytes>>,
    lie: Option<Lie>,
}

impl Watching {
    async fn run(mut self, mut events: Vec<Value>) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            self.shared.speaking().await;
            for event in events {
                let line = format!("{event}\n");
                let sent = match &self.lie {
                    Some(lie) => lying(&self.feed, line, lie).await,
                    None => self.feed.send(Ok(Bytes::from(line))).await.is_ok(),
                };
                if !sent {
                    return;
                }
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = sleep_until(self.until) => {
                    self.shared.speaking().await;
                    return;
                }
                () = self.feed.closed() => return,
            }
            events = self.news();
        }
    }

    /// What has happened since.
    fn news(&mut self) -> Vec<Value> {
        self.shared.with(|store| {
            let mut news = store.after(self.resource, self.form, self.version);
            self.version = store.version();
            if self.bookmarks != store.bookmarks() {
                self.bookmarks = store.bookmarks();
                news.push(store.bookmark_of(self.resource, self.form, false));
            }
            news
        })
    }
}

/// Sends a text as the lie has it. False if nobody listens, or nothing may follow.
async fn lying(feed: &mpsc::Sender<io::Result<Bytes>>, text: String, lie: &Lie) -> bool {
    let bytes = Bytes::from(text);
    match lie {
        Lie::Slow(pause) => {
            for piece in bytes.chunks(16) {
                if feed.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
                    return false;
                }
                sleep(*pause).await;
            }
            true
        }
        _ => {
            let _ = feed.send(Ok(bytes.slice(..bytes.len() / 2))).await;
            // Ends the connection, not the answer.
            let _ = feed.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
            false
        }
    }
}

/// A body that is fed piece by piece.
struct Fed(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

fn feed() -> (mpsc::Sender<io::Result<Bytes>>, BoxBody<Bytes, io::Error>) {
    let (feed, fed) = mpsc::channel(16);
    (feed, Fed(fed).boxed())
}

fn huge(bytes: usize) -> Answer {
    let (feed, body) = feed();
    tokio::spawn(async move {
        let piece = Bytes::from(vec![b'['; 1 << 16]);
        for _ in 0..bytes.div_ceil(piece.len()) {
            if feed.send(Ok(piece.clone())).await.is_err() {
                return;
            }
        }
    });
    response(StatusCode::OK, body)
}

fn good(text: String) -> Answer {
    response(
        StatusCode::OK,
        http_body_util::Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed(),
    )
}

fn refuse((code, status): Refusal) -> Answer {
    let mut answer = good(status.to_string());
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}

fn response(code: StatusCode, body: BoxBody<Bytes, io::Error>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    answer
}

/// The answer to who is unknown.
pub(super) fn unauthorized() -> Refusal {
    status(401, "Unauthorized", "Unauthorized", json!({}))
}

/// The answer about what there is not.
pub(super) fn not_found() -> Refusal {
    status(404, "NotFound", "the server could not find the requested resource", json!({"kind": "unknown"}))
}

/// The answer to who may not.
pub(super) fn forbidden(resource: &Resource, watch: bool) -> Refusal {
    let verb = if watch { "watch" } else { "list" };
    let group = resource.version.split_once('/').map_or("", |(group, _)| group);
    let message = format!(
        "{0} is forbidden: User \"droptrace\" cannot {verb} resource \"{0}\" in API group \"{group}\" at the cluster scope",
        resource.plural
    );
    status(403, "Forbidden", &message, json!({"kind": resource.plural}))
}

/// As servers before 1.32 refuse a streaming list.
fn no_streaming() -> Refusal {
    let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden \
        for watch unless the WatchList feature gate is enabled";
    status(422, "Invalid", message, json!({"kind": "ListOptions", "group": "meta.k8s.io"}))
}

/// The parameters of a query.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, code.and_then(|code| u8::from_str_radix(code, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
