//! The sources of names, the only part of `identity` that asks the OS and the network. They run on a thread of their own
//! and hand on what they learn; whatever becomes of them, the drop stream goes on.

pub mod agent;
pub mod api;
pub mod cri;
pub mod file;
pub mod node;
pub mod proc;

use super::object::{Change, Ipvs, Source, Update};
use crate::event::model::Timestamp;
use std::{io, path::PathBuf, thread};
use tokio::sync::mpsc;

pub use proc::Request;

/// Updates that wait between the sources and the stream: about what one page of the API server has.
const ROOM: usize = 1024;
/// Questions that wait for /proc.
const QUESTIONS: usize = 64;

/// Which sources to ask, and where they are.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The API server; `None` leaves it out.
    pub api: Option<api::Options>,
    /// Files of `--inventory`.
    pub files: Vec<PathBuf>,
}

/// What the stream has of the running sources. When it is dropped they end.
#[derive(Debug)]
pub struct Feed {
    /// What they tell.
    pub updates: mpsc::Receiver<Update>,
    /// Questions to /proc.
    pub requests: mpsc::Sender<Request>,
    /// Questions to Cilium's agent.
    pub agent: agent::Handle,
}

/// Starts the sources on a thread of their own.
///
/// # Errors
/// If the system gives no thread.
pub fn start(options: Options) -> io::Result<Feed> {
    let (sink, updates) = Sink::new(ROOM);
    let (requests, questions) = mpsc::channel(QUESTIONS);
    let (agent, of_agent) = agent::channel(agent::Options::from_environment());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("names".to_owned()).spawn(move || {
        // Each ends when nobody reads any more, which is no news.
        let _ = runtime.block_on(all(options, questions, of_agent, sink));
        // Look-ups of host names may hang on threads of their own.
        runtime.shutdown_background();
    })?;
    Ok(Feed { updates, requests, agent })
}

async fn all(
    options: Options,
    questions: mpsc::Receiver<Request>,
    of_agent: agent::Questions,
    sink: Sink,
) -> Result<(), Closed> {
    let Options { api, files } = options;
    let api = async {
        match api {
            Some(options) => api::watch(options, sink.clone()).await.map(|_| ()),
            None => Ok(()),
        }
    };
    tokio::try_join!(
        file::tell(files, sink.clone()),
        cri::watch(cri::Options::from_environment(), sink.clone()),
        proc::watch(proc::Options::default(), questions, sink.clone()),
        agent::watch(of_agent, sink.clone()),
        api,
    )
    .map(|_| ())
}

/// Where a source puts what it learns. Waits while the reader is behind, so memory stays bounded.
#[derive(Clone, Debug)]
pub struct Sink {
    updates: mpsc::Sender<Update>,
}

/// The stream that the updates were for has ended: the source ends, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads any more")]
pub struct Closed;

impl Sink {
    /// A sink and its reader. `room` updates wait between them.
    #[must_use]
    pub fn new(room: usize) -> (Self, mpsc::Receiver<Update>) {
        let (updates, reader) = mpsc::channel(room);
        (Self { updates }, reader)
    }

    /// Hands on one change, as of now.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub async fn change(&self, source: Source, change: Change) -> Result<(), Closed> {
        self.send(Update::Change(source, now(), change)).await
    }

    /// Hands on what is known of IPVS.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub async fn ipvs(&self, known: Ipvs) -> Result<(), Closed> {
        self.send(Update::Ipvs(known)).await
    }

    /// Hands on a line for people.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub async fn note(&self, line: impl Into<String>) -> Result<(), Closed> {
        self.send(Update::Note(line.into())).await
    }

    /// Waits until nobody reads any more.
    pub async fn closed(&self) {
        self.updates.closed().await;
    }

    async fn send(&self, update: Update) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_| Closed)
    }
}

fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_nanosecond())
}
