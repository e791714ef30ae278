//! The sources of names, the only part of `identity` that asks the OS and the network. They run on a thread of their own
//! and hand on what they learn; whatever becomes of them, the drop stream goes on.

pub mod cri;
pub mod node;
pub mod proc;

use super::object::{Change, Source, Update};
use crate::event::model::Timestamp;
use tokio::sync::mpsc;

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
