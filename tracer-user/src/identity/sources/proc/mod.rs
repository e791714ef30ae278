//! /proc: whose a network namespace or a port of the node is where no Kubernetes tells: Docker, Podman, systemd units,
//! and pods before anybody else knows them. It is read when something was dropped that nobody can name, never otherwise.

mod addresses;
mod ipvs;
mod names;
mod plan;
mod ports;
mod scan;

use super::node::Node;
use super::{Closed, Sink};
use crate::identity::object::{Flow, Kind, Object, Source};
use plan::{Known, Plan, Work};
use scan::Found;
use std::time::Instant;
use tokio::sync::mpsc;

/// It is noted if more than one part of so many of the processes may not be looked at: some are protected from root, too.
const NOTED: usize = 10;

/// Where to read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the node's files are.
    pub node: Node,
}

/// Inode number of the node's own network namespace; `None` if /proc doesn't tell.
#[must_use]
pub fn host_netns() -> Option<u32> {
    scan::host_netns(&Node::default().proc())
}

/// What somebody wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Whose the network namespace with this inode number is.
    Netns(u32),
    /// Whose the ports of the node are.
    Sockets,
    /// What IPVS has of a flow.
    Flow(Flow),
}

/// Tells whose the network namespaces are and whether there is IPVS, once now, and what changed since whenever it is asked; whose the ports are
/// and what IPVS has only when it is asked. Without anybody who could ask it waits for the end.
///
/// # Errors
/// When nobody reads any more, which is the only end.
pub async fn watch(
    options: Options,
    mut requests: mpsc::Receiver<Request>,
    sink: Sink,
) -> Result<(), Closed> {
    let closed = sink.clone();
    let mut watch = Watch {
        options,
        sink,
        netns: Known::new(Kind::Netns),
        sockets: Known::new(Kind::Socket),
        noted: false,
    };
    tokio::select! {
        () = closed.closed() => Err(Closed),
        ended = watch.run(&mut requests) => ended,
    }
}

struct Watch {
    options: Options,
    sink: Sink,
    netns: Known,
    sockets: Known,
    noted: bool,
}

impl Watch {
    async fn run(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Closed> {
        let mut plan = Plan::default();
        plan.begin();
        loop {
            while let Some(work) = plan.take(Instant::now()) {
                let began = Instant::now();
                let changes = match work {
                    Work::Flows => {
                        self.look_at_ipvs(plan.flows()).await?;
                        Vec::new()
                    }
                    Work::Netns => {
                        let owners = self.read(scan::owners, Object::Netns).await?;
                        self.netns.update(owners)
                    }
                    Work::Sockets => {
                        let sockets = self.read(scan::sockets, Object::Socket).await?;
                        self.sockets.update(sockets)
                    }
                };
                for change in changes {
                    self.sink.change(Source::Proc, change).await?;
                }
                plan.done(work, began, Instant::now());
            }
            let request = match plan.next() {
                None => requests.recv().await,
                Some(at) => match tokio::time::timeout_at(at.into(), requests.recv()).await {
                    Ok(request) => request,
                    Err(_elapsed) => continue,
                },
            };
            match request {
                Some(request) => plan.ask(request, Instant::now()),
                // What was asked for last is not owed any more: who asked is gone.
                None => std::future::pending().await,
            }
        }
    }

    /// Tells what IPVS has of flows.
    async fn look_at_ipvs(&self, flows: Vec<Flow>) -> Result<(), Closed> {
        let node = self.options.node.clone();
        match tokio::task::spawn_blocking(move || ipvs::look(&node, &flows)).await {
            Ok(found) => self.sink.ipvs(found).await,
            Err(_) => Ok(()),
        }
    }

    /// Reads /proc on a thread that may wait for it.
    async fn read<T: Send + 'static>(
        &mut self,
        scan: fn(&Node) -> Found<T>,
        object: fn(T) -> Object,
    ) -> Result<Vec<Object>, Closed> {
        let node = self.options.node.clone();
        let Ok(found) = tokio::task::spawn_blocking(move || scan(&node)).await else { return Ok(Vec::new()) };
        if found.denied * NOTED > found.processes && !self.noted {
            self.noted = true;
            let Found { processes, denied, .. } = found;
            let line = format!(
                "{denied} of {processes} processes may not be looked at, so their network namespaces and ports have no \
                 names: run as root, or with CAP_SYS_PTRACE"
            );
            self.sink.note(line).await?;
        }
        Ok(found.things.into_iter().map(object).collect())
    }
}
