//! Names for a running stream: keeps the inventory up, tells what a filter's words mean by now, and names drops.

use super::correlate;
use super::flows::Flows;
use super::host::Host;
use super::inventory::Inventory;
use super::object::{Change, Object, Update};
use super::pace::Pace;
use super::policy::PolicyKind;
use super::select::{Selected, Selection};
use super::sources::{Request, agent};
use crate::cilium::identity::{self, Identity};
use crate::cilium::model::{Cilium, VerdictBy};
use crate::event::model::{Drop, Timestamp};
use crate::filter::{Filter, Flag, Value, near};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a drop waits for a name that may be on its way: a pod is told of within some 60 ms of its start.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a network namespace or address without a name is taken for that of a pod that is being made (the runtime may
/// take a second for it). Later drops don't wait for its name,
const NEW: Duration = Duration::from_secs(3);
/// until so much later: then it may be another one.
const NAMELESS: Duration = Duration::from_secs(60);
/// How long a question is not asked again; one that Cilium's agent had no answer to, twice as long each time, and at most so
/// long: what it doesn't know now, it most likely won't the next time, and drops wait for it.
const ASKED: Duration = Duration::from_secs(5);
const ASKED_IN_VAIN: Duration = Duration::from_secs(60);
/// Least time between two looks for what went long ago.
const FORGETTING: Duration = Duration::from_secs(30);
/// Questions remembered.
const MAX_ASKED: usize = 4096;

/// The names.
#[derive(Debug)]
pub struct Names {
    inventory: Inventory,
    host: Host,
    selection: Option<Selection>,
    selected: Selected,
    has_matched: bool,
    version: u64,
    pace: Pace,
    requests: Option<mpsc::Sender<Request>>,
    asked: HashMap<Request, Instant>,
    /// What IPVS told of flows.
    flows: Flows,
    agent: Option<agent::Handle>,
    /// What Cilium's agent was asked.
    asked_agent: HashMap<agent::Request, Question>,
    /// Network namespaces and addresses that had no name, since when.
    nameless: HashMap<Nameless, Instant>,
    forgot: Instant,
}

/// A question to Cilium's agent.
#[derive(Clone, Copy, Debug)]
struct Question {
    asked: Instant,
    /// Until it may be asked again.
    pause: Duration,
}

impl Question {
    fn is_due(&self, now: Instant) -> bool {
        now >= self.asked + self.pause
    }
}

/// What nobody is known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Nameless {
    Netns(u32),
    Address(IpAddr),
}

/// What has changed for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Pods that the filter means now and did not before, as lines say it.
    pub pods: Vec<String>,
    /// Addresses and namespaces that found no room in the kernel half.
    pub left_out: usize,
}

/// What only Cilium's agent can tell of a drop: the labels of identities that no source has told of, and of those that have
/// another meaning on each node; and policies where neither API server nor file has told of all.
fn missing(said: &Cilium, inventory: &Inventory) -> Vec<agent::Request> {
    let ends = [&said.source_identity, &said.destination_identity].into_iter().flatten();
    let entries = said.entry.iter().chain(&said.nearest).filter_map(|entry| entry.identity.as_ref());
    let is_missing = |it: &&Identity| {
        let is_nodes_own =
            matches!(identity::kind(it.id), identity::Kind::Local | identity::Kind::RemoteNode);
        it.labels.is_none() || is_nodes_own && inventory.identity(it.id).is_some()
    };
    let identities = ends.chain(entries).filter(is_missing).map(|it| agent::Request::Identity(it.id));
    let kinds = [PolicyKind::Network, PolicyKind::Cilium, PolicyKind::Clusterwide];
    let is_policys = said.verdict_by.is_some_and(|by| by != VerdictBy::Other);
    let lacks = is_policys && !kinds.into_iter().all(|kind| inventory.has_policies_of_cluster(kind));
    identities.chain(lacks.then_some(agent::Request::Policies)).collect()
}

/// True if a question has had an answer.
fn is_told(request: agent::Request, inventory: &Inventory) -> bool {
    match request {
        agent::Request::Identity(id) => inventory.identity(id).is_some(),
        agent::Request::Policies => inventory.knows_policies(PolicyKind::Clusterwide),
    }
}

impl Default for Names {
    /// Knows nobody.
    fn default() -> Self {
        Self::new(&Filter::default(), Host::default(), None)
    }
}

impl Names {
    /// Nothing is known yet. `requests` asks /proc.
    #[must_use]
    pub fn new(filter: &Filter, host: Host, requests: Option<mpsc::Sender<Request>>) -> Self {
        Self {
            inventory: Inventory::default(),
            host,
            selection: Selection::of(filter),
            selected: Selected::default(),
            has_matched: false,
            version: 0,
            pace: Pace::default(),
            requests,
            asked: HashMap::new(),
            flows: Flows::default(),
            agent: None,
            asked_agent: HashMap::new(),
            nameless: HashMap::new(),
            forgot: Instant::now(),
        }
    }

    /// Asks Cilium's agent, too.
    #[must_use]
    pub fn with_agent(self, agent: agent::Handle) -> Self {
        Self { agent: Some(agent), ..self }
    }

    /// Asks Cilium's agent for what it alone can tell of a drop by Cilium. True if its answer may be on its way; `waited` is how
    /// long this drop has waited already.
    pub fn awaits_agent(&mut self, said: &Cilium, waited: Duration) -> bool {
        self.awaits_agent_at(said, waited, Instant::now())
    }

    fn awaits_agent_at(&mut self, said: &Cilium, waited: Duration, now: Instant) -> bool {
        let Some(agent) = &self.agent else { return false };
        if self.asked_agent.len() >= MAX_ASKED {
            self.asked_agent.retain(|_, question| !question.is_due(now));
        }
        let mut awaits = false;
        for request in missing(said, &self.inventory) {
            let is_told = is_told(request, &self.inventory);
            let before = self.asked_agent.get(&request).copied();
            let pause = match before {
                // Where it isn't there, nobody waits for it, and it may come.
                Some(before) if !is_told && agent.is_there() => (before.pause * 2).min(ASKED_IN_VAIN),
                _ => ASKED,
            };
            // Where it is behind, it will be asked again.
            if before.is_none_or(|before| before.is_due(now))
                && self.asked_agent.len() < MAX_ASKED
                && agent.ask(request)
            {
                self.asked_agent.insert(request, Question { asked: now, pause });
            }
            let question = self.asked_agent.get(&request);
            awaits |= question.is_some_and(|question| now < question.asked + PATIENCE) && !is_told;
        }
        awaits && agent.is_there() && waited < PATIENCE
    }

    /// What is known.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Takes what a source tells; a line for people comes back.
    pub fn learn(&mut self, update: Update) -> Option<String> {
        match update {
            Update::Change(source, at, change) => {
                let is_node = matches!(&change, Change::Set(Object::Node(_)));
                self.inventory.apply(source, at, change);
                if is_node {
                    self.find_own_name();
                }
                None
            }
            Update::Ipvs(told) => {
                self.flows.learn(told, Instant::now());
                None
            }
            Update::Note(line) => Some(line),
        }
    }

    /// The node may have another name in Kubernetes than the host has: its addresses tell.
    fn find_own_name(&mut self) {
        let host = &self.host;
        let has_own = |address: &IpAddr| host.addresses.contains(address);
        let own = self.inventory.nodes().find(|node| node.addresses.iter().any(has_own));
        if let Some(name) = own.map(|node| node.name.clone()) {
            self.host.name = name;
        }
    }

    /// When to ask what the filter means once more; `None` if nothing has changed since it was last asked.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let is_open = self.selection.is_some() && self.version != self.inventory.version();
        is_open.then(|| self.pace.next().unwrap_or_else(Instant::now))
    }

    /// What the filter means now, if it names anybody, that may have changed since it was last asked, and it is
    /// [due](Names::due).
    pub fn select(&mut self) -> Option<(&Selected, News)> {
        let selection = self.selection.as_mut()?;
        let began = Instant::now();
        if self.version == self.inventory.version() || !self.pace.is_due(began) {
            return None;
        }
        self.version = self.inventory.version();
        let now = selection.select(&self.inventory, &self.host);
        self.pace.done(began, Instant::now());
        self.has_matched |= !now.pods.is_empty() || !now.services.is_empty();
        if now == self.selected {
            return None;
        }
        let before = std::mem::replace(&mut self.selected, now);
        let new: Vec<String> = self.selected.pods.difference(&before.pods).map(ToString::to_string).collect();
        let pods = new.iter().map(|name| self.describe(name)).collect();
        if self.selected.takes_sockets {
            self.ask(Request::Sockets);
        }
        Some((&self.selected, News { pods, left_out: 0 }))
    }

    /// `shop/cart-7c9 (10.244.3.7, netns 4026532281)`; where it isn't on this node, which and what to do.
    fn describe(&self, name: &str) -> String {
        let pod = self.inventory.pods().find(|(_, pod)| !pod.is_gone() && pod.name.to_string() == name);
        let Some((_, pod)) = pod else { return crate::output::escape(name).into_owned() };
        let mut about: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
        about.extend(pod.netns().iter().map(|netns| format!("netns {netns}")));
        if pod.host_network {
            about.push("in the node's network namespace: told by its ports".to_owned());
        }
        let name = crate::output::escape(name);
        let text =
            if about.is_empty() { name.into_owned() } else { format!("{name} ({})", about.join(", ")) };
        match &pod.node {
            Some(node) if *node != self.host.name && pod.netns().is_empty() => {
                let node = crate::output::escape(node);
                format!(
                    "{text}, on node {node}: only what passes this node is seen here; on {node}: droptrace --pod {name}",
                    name = crate::output::escape(&pod.name.to_string())
                )
            }
            _ => text,
        }
    }

    /// Words that name nobody, each with names that are near.
    #[must_use]
    pub fn nobody(&self) -> Vec<String> {
        let Some(selection) = &self.selection else { return Vec::new() };
        let pods = || self.inventory.pods().map(|(_, pod)| pod);
        let mut lines = Vec::new();
        for word in selection.words().filter(|word| !word.negated) {
            let known: Vec<&str> = match &word.value {
                Value::Pod(named) if pods().all(|pod| !pod.name.name.starts_with(&named.name)) => {
                    pods().map(|pod| pod.name.name.as_str()).collect()
                }
                Value::Service(named)
                    if self.inventory.services().all(|service| service.name.name != named.name) =>
                {
                    self.inventory.services().map(|service| service.name.name.as_str()).collect()
                }
                Value::Namespace(name) if pods().all(|pod| pod.name.namespace != *name) => {
                    pods().map(|pod| pod.name.namespace.as_str()).collect()
                }
                _ => continue,
            };
            let wanted = match &word.value {
                Value::Pod(named) | Value::Service(named) => &named.name,
                _ => &word.text,
            };
            let mut near = near(wanted, known);
            near.dedup();
            let near: Vec<_> = near.into_iter().map(crate::output::escape).collect();
            let hint = if near.is_empty() { String::new() } else { format!("; near: {}", near.join(", ")) };
            let what = match word.flag {
                Flag::Service(_) => "no service",
                Flag::Namespace(_) => "no pod in that namespace",
                _ => "no pod",
            };
            lines.push(format!(
                "{} {}: {what} yet{hint}",
                word.flag.spelling(),
                crate::output::escape(&word.text)
            ));
        }
        if lines.is_empty() && self.selected.pods.is_empty() && self.selected.services.is_empty() {
            lines.push("no pod or service is meant by the filter yet".to_owned());
        }
        lines
    }

    /// True if the filter names anybody.
    #[must_use]
    pub fn is_filtered(&self) -> bool {
        self.selection.is_some()
    }

    /// True if the filter has ever meant anybody.
    #[must_use]
    pub fn has_matched(&self) -> bool {
        self.has_matched
    }

    /// True if the filter means a drop that passed the kernel half, by what has become known since.
    #[must_use]
    pub fn means(&self, drop: &Drop) -> bool {
        !self.is_filtered() || self.selected.means_drop(drop)
    }

    /// What the filter means, as it was last asked.
    #[must_use]
    pub fn selected(&self) -> &Selected {
        &self.selected
    }

    /// Names a drop, and asks about what it doesn't know.
    pub fn name(&mut self, drop: &mut Drop) {
        if self.inventory.version() == 0 {
            return;
        }
        let now = Instant::now();
        correlate::name(drop, &self.inventory, &self.host, &|flow| self.flows.get(flow, now));
        self.ask_ipvs(drop, now);
        let Some(netns) = drop.network.netns else { return };
        if Some(netns) != self.host.netns {
            if !self.inventory.has_owner(netns, drop.time) {
                self.ask(Request::Netns(netns));
            }
        } else if [&drop.source, &drop.destination].into_iter().any(|end| {
            let is_process = |k8s: &crate::event::model::K8s| {
                k8s.pod.is_some() || k8s.container.is_some() || k8s.unit.is_some()
            };
            end.port.is_some()
                && end.address.is_some_and(|address| self.host.addresses.contains(&address))
                && !end.k8s.as_ref().is_some_and(is_process)
        }) {
            self.ask(Request::Sockets);
        }
    }

    /// Asks IPVS for the service that a drop's client dialled, where nothing surer told.
    fn ask_ipvs(&mut self, drop: &Drop, now: Instant) {
        let Some(requests) = &self.requests else { return };
        if self.inventory.services().next().is_some() && correlate::is_open_to_ipvs(drop) {
            for flow in correlate::flows(drop) {
                self.flows.ask(flow, now, |flow| requests.try_send(Request::Flow(flow)).is_ok());
            }
        }
    }

    /// True if a name of this drop may be on its way: it was in a network namespace that is nobody's yet, is from or to an
    /// address whose pod has gone, or IPVS was asked about it. A pod that has just begun is told of a moment after its first packet. What stays without
    /// a name is waited for once, not each time. `waited` is how long this drop has waited already.
    pub fn awaits_name(&mut self, drop: &Drop, waited: Duration) -> bool {
        if self.inventory.version() == 0 || self.requests.is_none() || waited >= PATIENCE {
            return false;
        }
        let now = Instant::now();
        let is_asked = correlate::flows(drop).any(|flow| self.flows.is_open(&flow, now));
        let inventory = &self.inventory;
        let netns = drop.network.netns.filter(|netns| Some(*netns) != self.host.netns);
        let netns = netns.filter(|netns| !inventory.has_owner(*netns, drop.time)).map(Nameless::Netns);
        let ends = [&drop.source, &drop.destination].into_iter().filter_map(|end| end.address);
        let free = ends.filter(|address| inventory.is_free(*address, drop.time)).map(Nameless::Address);
        let open: Vec<Nameless> = netns.into_iter().chain(free).collect();
        if self.nameless.len() >= MAX_ASKED {
            self.nameless.retain(|_, since| now < *since + NAMELESS);
        }
        open.into_iter().fold(is_asked, |awaits, what| {
            if self.nameless.len() >= MAX_ASKED {
                return awaits;
            }
            let since = self.nameless.entry(what).or_insert(now);
            if now >= *since + NAMELESS {
                *since = now;
            }
            awaits | (now < *since + NEW)
        })
    }

    fn ask(&mut self, request: Request) {
        let Some(requests) = &self.requests else { return };
        let now = Instant::now();
        if self.asked.get(&request).is_some_and(|asked| now < *asked + ASKED) {
            return;
        }
        if self.asked.len() >= MAX_ASKED {
            self.asked.clear();
        }
        // Where the other side is behind, it will be asked again.
        if requests.try_send(request).is_ok() {
            self.asked.insert(request, now);
        }
    }

    /// Does what is to be done now and then. `now` is the wall clock.
    pub fn tick(&mut self, now: Timestamp) {
        if self.forgot.elapsed() >= FORGETTING {
            self.forgot = Instant::now();
            self.inventory.forget(now);
        }
        if self.selected.takes_sockets {
            self.ask(Request::Sockets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::object::{Identity as Told, Kind, Name, Pod, Source};
    use super::*;
    use crate::cilium::model::Entry;
    use crate::filter::{RawWord, Side};

    fn pod(number: u32) -> Update {
        let pod = Pod {
            name: Name::new("shop", format!("cart-{number}")),
            uid: number.to_string(),
            addresses: vec![std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()],
            ..Pod::default()
        };
        Update::Change(Source::Api, Timestamp(0), Change::Set(Object::Pod(pod)))
    }

    /// What comes while it is too early is not forgotten: it is due later.
    #[test]
    fn a_filter_follows_each_change_in_the_end() {
        let raw = RawWord { flag: Flag::Pod(Side::Either), text: "cart".to_owned(), negated: false };
        let filter = Filter::parse(&[raw], &|_| unreachable!()).unwrap();
        let mut names = Names::new(&filter, Host::default(), None);
        assert_eq!(names.due(), None);
        (0..1000).for_each(|number| drop(names.learn(pod(number))));
        assert!(names.due().is_some());
        assert_eq!(names.select().map(|(selected, _)| selected.pods.len()), Some(1000), "at once");
        assert_eq!(names.due(), None);
        names.learn(pod(1000));
        let due = names.due().unwrap();
        while Instant::now() < due {
            std::thread::yield_now();
        }
        assert_eq!(names.select().map(|(selected, _)| selected.pods.len()), Some(1001));
        assert_eq!(names.due(), None);
    }

    fn said(source: u32) -> Cilium {
        Cilium {
            verdict_by: Some(VerdictBy::DefaultDeny),
            source_identity: Some(Identity::named(source, &identity::Nobody)),
            destination_identity: Some(Identity::named(2, &identity::Nobody)),
            nearest: vec![Entry { identity: Some(Identity { id: 5000, labels: None }), ..Entry::default() }],
            ..Cilium::default()
        }
    }

    fn learn(names: &mut Names, source: Source, change: Change) {
        names.learn(Update::Change(source, Timestamp(1), change));
    }

    fn identity_of(id: u32) -> Change {
        Change::Set(Object::Identity(Told { id, labels: Default::default() }))
    }

    const KINDS: [PolicyKind; 3] = [PolicyKind::Network, PolicyKind::Cilium, PolicyKind::Clusterwide];

    #[test]
    fn the_agent_is_asked_once_for_what_nobody_else_tells() {
        // A path that is there is as good as a socket until it is asked.
        let options = agent::Options { sockets: vec!["/".into()] };
        let (handle, mut questions) = agent::channel(options);
        let mut names = Names::default().with_agent(handle);
        assert!(names.awaits_agent(&said(4711), Duration::ZERO));
        let [first, second] = [4711, 5000].map(agent::Request::Identity);
        assert_eq!(questions.asked(), [first, second, agent::Request::Policies]);
        // Still on its way, but not asked again, nor waited for longer than for other names.
        assert!(names.awaits_agent(&said(4711), Duration::from_millis(10)));
        assert!(!names.awaits_agent(&said(4711), PATIENCE));
        assert_eq!(questions.asked(), []);
        for id in [4711, 5000] {
            learn(&mut names, Source::Agent, identity_of(id));
        }
        assert!(names.awaits_agent(&said(4711), Duration::ZERO));
        for kind in KINDS {
            learn(&mut names, Source::Agent, Change::End(Kind::Policy(kind)));
        }
        assert!(!names.awaits_agent(&said(4711), Duration::ZERO));
        // No policy's verdict has policies.
        let other = Cilium { verdict_by: Some(VerdictBy::Other), ..said(4712) };
        assert!(names.awaits_agent(&other, Duration::ZERO));
        assert_eq!(questions.asked(), [agent::Request::Identity(4712)]);
    }

    #[test]
    fn what_the_agent_does_not_know_is_asked_and_waited_for_less_and_less() {
        let (handle, mut questions) = agent::channel(agent::Options { sockets: vec!["/".into()] });
        let mut names = Names::default().with_agent(handle);
        for kind in KINDS {
            learn(&mut names, Source::Api, Change::End(Kind::Policy(kind)));
        }
        learn(&mut names, Source::Agent, identity_of(5000));
        // 4711 it never knows; a local one it does.
        let local = 1 << 24 | 7;
        learn(&mut names, Source::Agent, identity_of(local));
        let said =
            Cilium { destination_identity: Some(Identity::named(local, &identity::Nobody)), ..said(4711) };
        let start = Instant::now();
        let (mut asked, mut waiting) = (Vec::new(), 0);
        // A drop every 100 ms for ten minutes.
        for n in 0..6000 {
            let now = start + n * Duration::from_millis(100);
            waiting += u32::from(names.awaits_agent_at(&said, Duration::ZERO, now));
            asked.extend(questions.asked().into_iter().map(|request| (request, n / 10)));
        }
        let of =
            |id| asked.iter().filter(move |(it, _)| *it == agent::Request::Identity(id)).map(|(_, at)| *at);
        let unknown: Vec<_> = of(4711).collect();
        assert_eq!(unknown[..6], [0, 5, 15, 35, 75, 135], "{unknown:?}");
        assert_eq!((unknown.len(), waiting), (13, 3 * 13));
        assert_eq!(of(local).count(), 120, "its meaning may change");
        // Told in the end.
        learn(&mut names, Source::Agent, identity_of(4711));
        assert!(!names.awaits_agent_at(&said, Duration::ZERO, start + Duration::from_secs(700)));
    }

    #[test]
    fn where_the_cluster_has_told_the_agent_is_not_asked() {
        let (handle, mut questions) = agent::channel(agent::Options { sockets: vec!["/nowhere".into()] });
        let mut names = Names::default().with_agent(handle);
        for kind in KINDS {
            learn(&mut names, Source::Api, Change::End(Kind::Policy(kind)));
        }
        let known = Cilium { source_identity: None, nearest: vec![], ..said(0) };
        assert!(!names.awaits_agent(&known, Duration::ZERO));
        assert_eq!(questions.asked(), []);
        // What has another meaning on each node is asked for; without a socket nobody waits.
        assert!(!names.awaits_agent(&said(1 << 24 | 7), Duration::ZERO));
        assert_eq!(questions.asked(), [1 << 24 | 7, 5000].map(agent::Request::Identity));
    }
}
