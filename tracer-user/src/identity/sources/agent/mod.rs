//! Cilium's agent on this node, over its Unix socket: labels of identities that nobody else tells of, and policies where the
//! API server tells of none. It is asked about drops that were seen, never else, and only reads are asked for (GET).

mod client;

use super::node::Node;
use super::{Closed, Sink};
use crate::identity::kubernetes::agent;
use crate::identity::object::{Change, Kind, Object, Source};
use crate::identity::policy::PolicyKind;
use client::Failure;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// Where the agent listens (pkg/defaults/defaults.go).
const SOCKET: &str = "/var/run/cilium/cilium.sock";
/// The variable that says so where it listens elsewhere, as for Cilium's own tools.
const VARIABLE: &str = "CILIUM_SOCK";
/// Questions that wait for it.
const QUESTIONS: usize = 64;
/// The longest answers that are read, in bytes.
const IDENTITY: usize = 256 << 10;
const POLICIES: usize = 16 << 20;

/// What somebody wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// What an identity stands for.
    Identity(u32),
    /// All policies.
    Policies,
}

/// Where to ask.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sockets to try, in this order.
    pub sockets: Vec<PathBuf>,
}

impl Options {
    /// Where the environment says, or where the agent listens, also as a container sees it.
    #[must_use]
    pub fn from_environment() -> Self {
        let sockets = match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            // Its tools spell it `unix:///var/run/...`, too.
            Some(path) => vec![match path.to_str().and_then(|path| path.strip_prefix("unix://")) {
                Some(path) => path.into(),
                None => path.into(),
            }],
            None => Node::default().places(Path::new(SOCKET)).collect(),
        };
        Self { sockets }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    is_there: Arc<AtomicBool>,
}

impl Handle {
    /// Asks; false where the agent is behind.
    #[must_use]
    pub fn ask(&self, request: Request) -> bool {
        self.requests.try_send(request).is_ok()
    }

    /// True if an answer may come: there is a socket, and the last question had an answer.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }
}

/// What [`watch`] answers.
#[derive(Debug)]
pub struct Questions {
    options: Options,
    requests: mpsc::Receiver<Request>,
    is_there: Arc<AtomicBool>,
}

/// Who asks and who answers.
#[must_use]
pub fn channel(options: Options) -> (Handle, Questions) {
    let (ask, requests) = mpsc::channel(QUESTIONS);
    let is_there = Arc::new(AtomicBool::new(options.sockets.iter().any(|socket| socket.exists())));
    let handle = Handle { requests: ask, is_there: Arc::clone(&is_there) };
    (handle, Questions { options, requests, is_there })
}

#[cfg(test)]
impl Questions {
    /// What was asked and not answered yet.
    pub(crate) fn asked(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }
}

/// Answers questions, one at a time.
///
/// # Errors
/// When nobody reads any more, which is the only end.
pub async fn watch(questions: Questions, sink: Sink) -> Result<(), Closed> {
    let closed = sink.clone();
    let mut watch = Watch { questions, sink, noted: None };
    tokio::select! {
        () = closed.closed() => Err(Closed),
        ended = watch.run() => ended,
    }
}

struct Watch {
    questions: Questions,
    sink: Sink,
    /// The last trouble that was told.
    noted: Option<String>,
}

impl Watch {
    async fn run(&mut self) -> Result<(), Closed> {
        while let Some(request) = self.questions.requests.recv().await {
            let (path, longest) = match request {
                Request::Identity(id) => (format!("/v1/identity/{id}"), IDENTITY),
                Request::Policies => ("/v1/policy".to_owned(), POLICIES),
            };
            let answer = client::get(&self.questions.options.sockets, &path, longest).await;
            let is_there =
                !matches!(answer, Err(Failure::NoSocket | Failure::Silent(_) | Failure::Refused(_)));
            self.questions.is_there.store(is_there, Ordering::Relaxed);
            match answer {
                Ok(json) => self.tell(request, &json).await?,
                // No Cilium here, or nothing of that name any more.
                Err(Failure::NoSocket | Failure::NotFound) => {}
                Err(failure) => self.note(failure.to_string()).await?,
            }
        }
        // What was asked for last is not owed any more: who asked is gone.
        std::future::pending().await
    }

    async fn tell(&mut self, request: Request, json: &str) -> Result<(), Closed> {
        let source = Source::Agent;
        match request {
            Request::Identity(id) => match agent::identity(id, json) {
                Ok(identity) => self.sink.change(source, Change::Set(Object::Identity(identity))).await,
                Err(error) => {
                    self.note(format!("what it says of identity {id} can't be read: {error}")).await
                }
            },
            Request::Policies => match agent::policies(json) {
                Ok((policies, left_out)) => {
                    let kinds =
                        [PolicyKind::Network, PolicyKind::Cilium, PolicyKind::Clusterwide].map(Kind::Policy);
                    for kind in kinds {
                        self.sink.change(source, Change::Begin(kind)).await?;
                    }
                    for policy in policies {
                        self.sink.change(source, Change::Set(Object::Policy(policy))).await?;
                    }
                    for kind in kinds {
                        self.sink.change(source, Change::End(kind)).await?;
                    }
                    if left_out > 0 {
                        let line = format!(
                            "{left_out} of its rules are of no Kubernetes object, or can't be read: they are left out"
                        );
                        self.note(line).await?;
                    }
                    Ok(())
                }
                Err(error) => self.note(format!("its policies can't be read: {error}")).await,
            },
        }
    }

    /// Says once what is wrong.
    async fn note(&mut self, trouble: String) -> Result<(), Closed> {
        if self.noted.as_ref() == Some(&trouble) {
            return Ok(());
        }
        let line = format!("note: Cilium's agent was asked for names: {}", crate::output::escape(&trouble));
        self.noted = Some(trouble);
        self.sink.note(line).await
    }
}

#[cfg(test)]
mod tests;
