//! What `api::watch` tells, put together as its readers do.

use crate::bed::kube_api::KubeApi;
use crate::bed::patience;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;
use tracer_user::identity::object::{Change, Key, Kind, Object, Source, Update};
use tracer_user::identity::sources::api::{self, NotConfigured, Options, Timing};
use tracer_user::identity::sources::{Closed, Sink};

/// Impatient, so that the tests are quick.
pub(super) const TIMING: Timing = Timing {
    connect: Duration::from_secs(2),
    answer: Duration::from_secs(2),
    list: Duration::from_secs(6),
    watch: Duration::from_secs(1),
    margin: Duration::from_secs(1),
    retry: Duration::from_millis(20),
    retry_most: Duration::from_millis(200),
};

/// Everything that was told so far.
pub(super) struct Told {
    reader: Option<Receiver<Update>>,
    thread: Option<JoinHandle<Result<NotConfigured, Closed>>>,
    known: BTreeMap<Kind, BTreeMap<Key, Object>>,
    /// What the lists have that are under way.
    coming: BTreeMap<Kind, BTreeSet<Key>>,
    /// Lists that are complete, in their order.
    pub(super) lists: Vec<Kind>,
    /// Lines for people.
    pub(super) notes: Vec<String>,
}

impl Told {
    /// Watches a server.
    pub(super) fn of(api: &KubeApi) -> Result<Self> {
        let options = Options { kubeconfig: Some(api.kubeconfig()), timing: TIMING, ..Options::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Little room: it must wait for its reader.
        let (sink, reader) = Sink::new(8);
        let thread = thread::spawn(move || {
            let ended = runtime.block_on(api::watch(options, sink));
            runtime.shutdown_background();
            ended
        });
        Ok(Self {
            reader: Some(reader),
            thread: Some(thread),
            known: BTreeMap::new(),
            coming: BTreeMap::new(),
            lists: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// What is known of a kind.
    pub(super) fn known(&self, kind: Kind) -> &BTreeMap<Key, Object> {
        static NOTHING: BTreeMap<Key, Object> = BTreeMap::new();
        self.known.get(&kind).unwrap_or(&NOTHING)
    }

    /// Whether a pod is known.
    pub(super) fn knows(&self, pod: &str) -> bool {
        self.known.get(&Kind::Pod).is_some_and(|pods| pods.contains_key(pod))
    }

    /// The first address of a pod; empty if it has none.
    pub(super) fn address(&self, pod: &str) -> String {
        match self.known.get(&Kind::Pod).and_then(|pods| pods.get(pod)) {
            Some(Object::Pod(pod)) => pod.addresses.first().map(ToString::to_string).unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// How many lists of a kind are complete.
    pub(super) fn lists_of(&self, kind: Kind) -> usize {
        self.lists.iter().filter(|list| **list == kind).count()
    }

    /// Takes what comes until something is true.
    pub(super) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience();
        while !done(self) {
            if !self.take()? {
                ensure!(
                    Instant::now() < deadline,
                    "waited in vain for {what}; lists {:?}, notes {:?}",
                    self.lists,
                    self.notes
                );
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Takes what comes for a while.
    pub(super) fn rest(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            if !self.take()? {
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Takes one update, if there is one.
    fn take(&mut self) -> Result<bool> {
        match self.reader.as_mut().context("it was closed")?.try_recv() {
            Ok(Update::Note(line)) => {
                ensure!(!line.contains(char::is_control), "a note that a terminal would obey: {line:?}");
                self.notes.push(line);
            }
            Ok(Update::Change(Source::Api, _, change)) => self.apply(change)?,
            Ok(update) => bail!("not of the API: {update:?}"),
            Err(TryRecvError::Empty) => return Ok(false),
            Err(TryRecvError::Disconnected) => bail!("it has ended"),
        }
        Ok(true)
    }

    fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Begin(kind) => drop(self.coming.insert(kind, BTreeSet::new())),
            Change::Set(object) => {
                let (kind, key) = (object.kind(), object.key());
                if let Some(coming) = self.coming.get_mut(&kind) {
                    coming.insert(key.clone());
                }
                self.known.entry(kind).or_default().insert(key, object);
            }
            Change::Delete(kind, key) => drop(self.known.entry(kind).or_default().remove(&key)),
            Change::End(kind) => {
                let listed = self
                    .coming
                    .remove(&kind)
                    .with_context(|| format!("{kind:?} ended, but did not begin"))?;
                self.known.entry(kind).or_default().retain(|key, _| listed.contains(key));
                self.lists.push(kind);
            }
        }
        Ok(())
    }

    /// Reads no more, and waits for the end.
    pub(super) fn end(&mut self) -> Result<()> {
        self.reader = None;
        let ended = self.thread.take().context("it has ended")?.join().map_err(|_| anyhow!("it panicked"))?;
        ensure!(ended == Err(Closed), "it ended with {ended:?}");
        Ok(())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.reader = None;
        if let Some(thread) = self.thread.take() {
            // A failure was told already.
            let _ = thread.join();
        }
    }
}
