//! One connection to a runtime: everything once, then what changes, until the connection breaks.

use super::client::{Client, Failure};
use super::messages::{PodSandbox, VersionResponse};
use super::pace::{Changes, Pace};
use super::sandbox::{self, Detail};
use super::trigger::{Events, Signs, Told};
use crate::identity::object::{Change, Kind, Object, Sandbox, Source};
use crate::identity::sources::node::Node;
use crate::identity::sources::{Closed, Sink};
use futures_util::StreamExt;
use futures_util::stream;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often everything is asked for where nothing is said to happen: with events of the runtime, and without.
const IDLE_WITH_EVENTS: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(5);
/// Sandboxes that are asked about at once.
const AT_ONCE: usize = 4;
/// More sandboxes are not told of. A node has some hundreds at most.
const MOST: usize = 10_000;
/// How often a sandbox is asked about again that told no address or no network namespace.
const TRIES: u8 = 3;
/// How long a runtime without sandboxes is listened to before another one that is there gets its turn.
const EMPTY: Duration = Duration::from_secs(30);

/// Events that end sooner are switched off.
const SWITCHED_OFF: Duration = Duration::from_secs(1);

/// What was told of a sandbox.
#[derive(Debug, Clone)]
struct Known {
    sandbox: Sandbox,
    /// Where its network namespace is mounted.
    netns: Option<PathBuf>,
    /// How often it may be asked about again.
    tries: u8,
}

impl Known {
    /// True if there is nothing more to learn of it.
    fn is_complete(&self) -> bool {
        let Sandbox { ready, host_network, netns, addresses, .. } = &self.sandbox;
        !ready || *host_network || (netns.is_some() && !addresses.is_empty())
    }
}

/// What a new list means.
#[derive(Debug, Default)]
struct Difference {
    /// To ask about: new ones, ready now, or not told in full.
    ask: Vec<Sandbox>,
    /// Stopped.
    stopped: Vec<Sandbox>,
    /// Removed: their ids.
    gone: Vec<String>,
}

/// Compares a list with what was told.
fn compare(known: &BTreeMap<String, Known>, list: Vec<Sandbox>) -> Difference {
    let ids: BTreeSet<&str> = list.iter().map(|sandbox| sandbox.id.as_str()).collect();
    let gone = known.keys().filter(|id| !ids.contains(id.as_str())).cloned().collect();
    let mut difference = Difference { gone, ..Difference::default() };
    for sandbox in list {
        match known.get(&sandbox.id) {
            Some(known) if known.sandbox.ready && !sandbox.ready => {
                difference.stopped.push(Sandbox { ready: false, ..known.sandbox.clone() });
            }
            Some(known)
                if known.sandbox.ready == sandbox.ready && (known.is_complete() || known.tries == 0) => {}
            None if !sandbox.ready => difference.stopped.push(sandbox),
            _ => difference.ask.push(sandbox),
        }
    }
    difference
}

/// The connection.
pub(super) struct Session<'a> {
    client: Client,
    version: VersionResponse,
    node: &'a Node,
    sink: &'a Sink,
    known: BTreeMap<String, Known>,
}

impl<'a> Session<'a> {
    /// Over a connection to a runtime that said what it is.
    pub(super) fn new(client: Client, version: VersionResponse, node: &'a Node, sink: &'a Sink) -> Self {
        Self { client, version, node, sink, known: BTreeMap::new() }
    }

    /// Tells everything and what changes. The failure that ended it is returned; `others` are there that may be the
    /// right ones if this runtime has no sandboxes.
    pub(super) async fn run(mut self, others: bool) -> Result<Failure, Closed> {
        // Before the first list, so that nothing that happens after it is missed.
        let mut signs = Signs::open(self.node.clone());
        let mut events = Events::open(&self.client, &self.version).await;
        let idle = |events: &Option<Events>| if events.is_some() { IDLE_WITH_EVENTS } else { IDLE };
        let list = match self.client.list().await {
            Ok(list) => list,
            Err(failure) => return Ok(failure),
        };
        self.tell(Change::Begin(Kind::Sandbox)).await?;
        self.update(list).await?;
        self.tell(Change::End(Kind::Sandbox)).await?;

        let begun = Instant::now();
        let mut pace = Pace::new(begun, idle(&events));
        loop {
            let told = tokio::select! {
                () = tokio::time::sleep_until(pace.next().into()) => None,
                told = next(&mut events, &mut signs) => Some(told),
            };
            match told {
                Some(Told::Done) => pace.changed(),
                Some(Told::Begun(changes)) => pace.due(Instant::now(), changes),
                // Of a runtime that was restarted, or at once where they are switched off.
                Some(Told::Ended) if begun.elapsed() > SWITCHED_OFF => {
                    return Ok(Failure::Other("its events ended".into()));
                }
                Some(Told::Ended) => {
                    events = None;
                    pace.set_idle(idle(&events));
                    pace.changed();
                }
                None => {
                    let asked = Instant::now();
                    let list = match self.client.list().await {
                        Ok(list) => list,
                        Err(failure) => return Ok(failure),
                    };
                    let took = asked.elapsed();
                    let changes = self.update(list).await?;
                    pace.asked(Instant::now(), took, changes);
                    signs.look_again();
                    if others && self.known.is_empty() && begun.elapsed() > EMPTY {
                        return Ok(Failure::Other("it has no sandboxes".into()));
                    }
                }
            }
        }
    }

    /// Tells what is different, and returns what of it network namespaces tell of, too.
    async fn update(&mut self, list: Vec<PodSandbox>) -> Result<Changes, Closed> {
        let list = list.iter().filter_map(sandbox::listed).take(MOST).collect();
        let Difference { ask, stopped, gone } = compare(&self.known, list);
        let mut changes = Changes { made: 0, gone: self.lose_netns().await? };
        for id in gone {
            let had_netns = self.known.remove(&id).is_some_and(|known| known.sandbox.netns.is_some());
            changes.gone += usize::from(had_netns);
            self.tell(Change::Delete(Kind::Sandbox, id)).await?;
        }
        for mut sandbox in stopped {
            let netns = self.known.get(&sandbox.id).and_then(|known| known.netns.clone());
            sandbox.netns = netns.as_ref().and_then(|path| self.node.netns_at(path));
            changes.gone += usize::from(netns.is_some() && sandbox.netns.is_none());
            self.learnt(Known { sandbox, netns, tries: 0 }).await?;
        }
        let client = self.client.clone();
        let answers = ask.into_iter().map(|sandbox| {
            let client = client.clone();
            async move {
                let answer = client.status(&sandbox.id).await;
                (sandbox, answer.map(|answer| sandbox::detail(&answer)))
            }
        });
        let mut answers = std::pin::pin!(stream::iter(answers).buffer_unordered(AT_ONCE));
        while let Some((sandbox, answer)) = answers.next().await {
            let detail = match answer {
                Ok(detail) => detail,
                // Removed since: the next list says so of one that was told.
                Err(Failure::NotFound) => continue,
                Err(failure) => {
                    log::debug!("sandbox {}: {failure}", sandbox.id);
                    Detail::default()
                }
            };
            let known = self.known.get(&sandbox.id);
            let is_new = known.is_none_or(|known| !known.sandbox.ready);
            changes.made += usize::from(is_new && !detail.host_network);
            let tries = known.map_or(TRIES, |known| known.tries.saturating_sub(1));
            let again = known.is_some_and(|known| known.sandbox.ready);
            let learnt = self.complete(sandbox, detail, tries);
            if again
                && self.known.get(&learnt.sandbox.id).is_some_and(|known| known.sandbox == learnt.sandbox)
            {
                self.known.insert(learnt.sandbox.id.clone(), learnt);
            } else {
                self.learnt(learnt).await?;
            }
        }
        Ok(changes)
    }

    /// Tells of stopped sandboxes whose network namespace is gone now: that comes a moment later. Returns how many.
    async fn lose_netns(&mut self) -> Result<usize, Closed> {
        let has_lost = |known: &&Known| {
            let Known { sandbox, netns, .. } = known;
            !sandbox.ready
                && sandbox.netns.is_some()
                && netns.as_ref().and_then(|path| self.node.netns_at(path)).is_none()
        };
        let lost: Vec<Known> = self.known.values().filter(has_lost).cloned().collect();
        let count = lost.len();
        for mut known in lost {
            known.sandbox.netns = None;
            self.learnt(known).await?;
        }
        Ok(count)
    }

    /// A listed sandbox with its details.
    fn complete(&self, sandbox: Sandbox, detail: Detail, tries: u8) -> Known {
        let Detail { addresses, host_network, netns, pid } = detail;
        let path = netns.filter(|_| !host_network);
        let by_path = path.as_ref().and_then(|path| self.node.netns_at(path));
        let by_process = || {
            let pid = pid.filter(|_| !host_network)?;
            self.node.netns_of(pid, &[&sandbox.id, &sandbox.uid, &sandbox.uid.replace('-', "_")])
        };
        let inode = by_path.or_else(by_process);
        Known { sandbox: Sandbox { addresses, host_network, netns: inode, ..sandbox }, netns: path, tries }
    }

    async fn learnt(&mut self, known: Known) -> Result<(), Closed> {
        let set = Change::Set(Object::Sandbox(known.sandbox.clone()));
        self.known.insert(known.sandbox.id.clone(), known);
        self.tell(set).await
    }

    async fn tell(&self, change: Change) -> Result<(), Closed> {
        self.sink.change(Source::Cri, change).await
    }
}

/// The next thing that the runtime tells, or the kernel where it does not.
async fn next(events: &mut Option<Events>, signs: &mut Signs) -> Told {
    match events {
        Some(events) => events.next().await,
        None => signs.next().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, ready: bool) -> Sandbox {
        Sandbox { id: id.into(), ready, ..Sandbox::default() }
    }

    fn known(sandboxes: &[Sandbox], tries: u8) -> BTreeMap<String, Known> {
        let known = |sandbox: &Sandbox| Known { sandbox: sandbox.clone(), netns: None, tries };
        sandboxes.iter().map(|sandbox| (sandbox.id.clone(), known(sandbox))).collect()
    }

    fn ids(sandboxes: &[Sandbox]) -> Vec<&str> {
        sandboxes.iter().map(|sandbox| sandbox.id.as_str()).collect()
    }

    #[test]
    fn a_list_is_told_from_the_one_before() {
        let full = |id: &str| Sandbox {
            netns: Some(7),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            ..sandbox(id, true)
        };
        let before = known(&[full("same"), full("stops"), full("goes"), sandbox("starts", false)], TRIES);
        let list = [("same", true), ("stops", false), ("starts", true), ("new", true), ("was there", false)];
        let list = list.map(|(id, ready)| sandbox(id, ready)).into();
        let found = compare(&before, list);
        assert_eq!(ids(&found.ask), ["starts", "new"]);
        assert_eq!(ids(&found.stopped), ["stops", "was there"]);
        assert_eq!(found.gone, ["goes"]);
        // What a stopped one had is told along.
        assert_eq!(found.stopped[0], Sandbox { ready: false, ..full("stops") });
    }

    #[test]
    fn one_that_told_too_little_is_asked_again_for_a_while() {
        let list = || vec![sandbox("a", true)];
        assert_eq!(ids(&compare(&known(&list(), 1), list()).ask), ["a"]);
        assert!(compare(&known(&list(), 0), list()).ask.is_empty());
        // In the node's netns there is nothing more to learn.
        let host = [Sandbox { host_network: true, ..sandbox("a", true) }];
        assert!(compare(&known(&host, TRIES), list()).ask.is_empty());
    }
}
