//! A Kubernetes API server, as far as droptrace asks one: HTTPS with a CA of its own, lists with pages, watches, streaming
//! lists, bookmarks, refusals; and everything that goes wrong with servers, on demand.
//!
//! It answers as a real server did (Kubernetes 1.36): `contract` compares it with recorded answers.
//!
//! ```no_run
//! # use droptrace_tests::bed::kube_api::{KubeApi, objects};
//! # fn example() -> anyhow::Result<()> {
//! let api = KubeApi::start("127.0.0.1:0".parse()?)?;
//! api.set(objects::pod("shop", "cart-0", "node1", &["10.0.0.1"]));
//! let arguments = ["--kubeconfig".into(), api.kubeconfig().to_owned()];
//! # Ok(()) }
//! ```
//!
//! It listens in the network namespace of the thread that starts it: `netns.enter(|| KubeApi::start(address))`.

mod certificate;
#[cfg(test)]
mod contract;
pub mod objects;
mod serve;
mod store;

pub use serve::Request;
pub use store::Gone;

use anyhow::{Context, Result, anyhow};
use certificate::Authority;
use serde_json::Value;
use serve::Shared;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;

/// The token that the kubeconfig has.
const TOKEN: &str = "droptrace-test";

/// How a server takes the question for a streaming list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// Answers it: 1.32 and later.
    #[default]
    Answered,
    /// Refuses it, with 422: before.
    Refused,
    /// Takes it for a common watch, whose list never ends.
    Misunderstood,
}

/// An answer in place of the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lie {
    /// That, with status 200.
    Text(String),
    /// So many bytes without a line's end.
    Huge(usize),
    /// The right answer, in pieces of a few bytes with that pause between them.
    Slow(Duration),
    /// The right answer, broken off in its middle.
    Half,
    /// A status code, and a `Status` that goes with it.
    Status(u16),
}

/// What the server does otherwise than a good one. Changed while it runs.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// The token that it accepts; another gives 401.
    pub token: String,
    /// Resources (`pods`) about which it answers 403.
    pub forbidden: BTreeSet<String>,
    /// Resources about which it answers 404.
    pub missing: BTreeSet<String>,
    /// What it does with streaming lists.
    pub streaming: Streaming,
    /// How it says that a version is too old.
    pub gone: Gone,
    /// Accepts connections and questions, and answers nothing any more, nor ends what it began.
    pub silent: bool,
    /// Lies about these resources.
    pub lies: std::collections::BTreeMap<String, Lie>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            token: TOKEN.to_owned(),
            forbidden: BTreeSet::new(),
            missing: BTreeSet::new(),
            streaming: Streaming::default(),
            gone: Gone::default(),
            silent: false,
            lies: std::collections::BTreeMap::new(),
        }
    }
}

/// A running server. Stopped when this is dropped.
#[derive(Debug)]
pub struct KubeApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    folder: TempDir,
    /// Told to listen (true), not to (false), or to end (closed).
    listen: Option<watch::Sender<bool>>,
    listening: watch::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

impl KubeApi {
    /// Starts a server without objects.
    ///
    /// # Errors
    /// When it can't listen there.
    pub fn start(address: SocketAddr) -> Result<Self> {
        Self::start_as(address, &Authority::new()?)
    }

    /// Starts a server whose certificate is of that authority, while its kubeconfig names another: not to be trusted.
    ///
    /// # Errors
    /// As [`KubeApi::start`].
    pub fn start_impostor(address: SocketAddr) -> Result<Self> {
        let started = Self::start_as(address, &Authority::new()?)?;
        std::fs::write(started.folder.path().join("ca.crt"), Authority::new()?.certificate())?;
        Ok(started)
    }

    fn start_as(address: SocketAddr, authority: &Authority) -> Result<Self> {
        let tls = authority.server(address.ip())?;
        let shared = Arc::new(Shared::default());
        let (listen, asked) = watch::channel(true);
        let (told, listening) = watch::channel(false);
        let (bound, address_bound) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = serve::Serving { shared: Arc::clone(&shared), tls, asked, told };
        // A thread of its own: it stays in the network namespace of this one.
        let thread = thread::Builder::new().name("kube-api".to_owned()).spawn(move || {
            runtime.block_on(serving.run(address, |address| drop(bound.send(address))));
            runtime.shutdown_background();
        })?;
        let address = address_bound.recv().context("the server has died")?.context("listen")?;
        let folder = TempDir::new()?;
        let started = Self { shared, address, folder, listen: Some(listen), listening, thread: Some(thread) };
        started.write_kubeconfig(authority)?;
        Ok(started)
    }

    fn write_kubeconfig(&self, authority: &Authority) -> Result<()> {
        std::fs::write(self.folder.path().join("ca.crt"), authority.certificate())?;
        // JSON is YAML.
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url(), "certificate-authority": "ca.crt"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
        });
        std::fs::write(self.kubeconfig(), config.to_string()).context("write the kubeconfig")
    }

    /// The kubeconfig for it.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Its folder: the kubeconfig and the CA.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Adds an object or changes it. It must have a kind.
    pub fn set(&self, object: Value) {
        self.shared.change(|store| store.set(object));
    }

    /// Removes an object of a resource (`pods`). The namespace of a node is empty.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.change(|store| store.delete(resource, namespace, name));
    }

    /// Forgets how it came to what is now: older versions are too old (410).
    pub fn compact(&self) {
        self.shared.change(store::Store::compact);
    }

    /// Sends a bookmark on each watch.
    pub fn bookmark(&self) {
        self.shared.change(store::Store::bookmark);
    }

    /// Changes what it does.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Breaks all connections off, and takes new ones.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Stops listening and breaks all connections off: connections are refused.
    ///
    /// # Errors
    /// When the server has died.
    pub fn stop(&mut self) -> Result<()> {
        self.listen(false)
    }

    /// Listens again, at the same address.
    ///
    /// # Errors
    /// As [`KubeApi::stop`].
    pub fn resume(&mut self) -> Result<()> {
        self.listen(true)
    }

    fn listen(&mut self, listening: bool) -> Result<()> {
        self.listen.as_ref().context("it has ended")?.send(listening)?;
        while *self.listening.borrow() != listening {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(anyhow!("the server has died"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The questions so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requested().clone()
    }

    fn requested(&self) -> MutexGuard<'_, Vec<Request>> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        drop(self.listen.take());
        if let Some(thread) = self.thread.take() {
            // It ends at once; what it panicked with it has printed.
            let _ = thread.join();
        }
    }
}
