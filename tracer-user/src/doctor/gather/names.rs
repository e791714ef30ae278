//! What is known of the cluster: asks the same sources as the live stream, and waits for them for a bounded time.

use super::super::facts::{Cluster, Service};
use super::super::model::Unread;
use crate::event::model::Timestamp;
use crate::identity::inventory::{Inventory, Known};
use crate::identity::object::{Kind, Source, Update};
use crate::identity::sources::{self, Feed};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;

/// Kinds of which the whole list must be known.
const KINDS: [Kind; 4] = [Kind::Pod, Kind::Service, Kind::Slice, Kind::Node];
/// Between two looks at what has come.
const PAUSE: Duration = Duration::from_millis(20);
/// How much longer who has begun to tell is waited for.
const LONGER: Duration = Duration::from_secs(5);
/// Labels by which an agent of Cilium's is known (its Helm chart).
const CILIUM: [(&str, &str); 2] = [("k8s-app", "cilium"), ("app.kubernetes.io/name", "cilium-agent")];

/// The sources, asked.
pub struct Names {
    feed: Option<Feed>,
    inventory: Inventory,
    unread: Vec<Unread>,
    /// The API server or a file was asked.
    is_asked: bool,
    /// One of them has begun to tell.
    has_begun: bool,
}

impl Names {
    /// Asks them: also the node's container runtime, which tells whose a network namespace is.
    #[must_use]
    pub fn ask(options: sources::Options) -> Self {
        let is_asked = options.api.is_some() || !options.files.is_empty();
        let mut names = Self {
            feed: None,
            inventory: Inventory::default(),
            unread: Vec::new(),
            is_asked,
            has_begun: false,
        };
        match sources::start(options) {
            Ok(feed) => names.feed = Some(feed),
            Err(error) => names.note(error.to_string()),
        }
        names
    }

    fn note(&mut self, why: String) {
        self.unread.push(Unread { what: "names of pods and services".to_owned(), why });
    }

    /// Waits until they have told all or the time is over: `soon` if neither the API server nor a file has begun by then, else
    /// [`LONGER`] after it.
    pub fn wait(&mut self, soon: Instant) {
        while let Some(feed) = &mut self.feed {
            match feed.updates.try_recv() {
                Ok(Update::Change(source, at, change)) => {
                    self.has_begun |= matches!(source, Source::Api | Source::File);
                    self.inventory.apply(source, at, change);
                }
                Ok(Update::Note(line)) => self.note(line),
                Ok(Update::Ipvs(_)) => {}
                Err(TryRecvError::Disconnected) => self.feed = None,
                Err(TryRecvError::Empty) if self.source().is_some() || self.is_over(soon) => break,
                Err(TryRecvError::Empty) => thread::sleep(PAUSE),
            }
        }
    }

    /// The cluster, if somebody has told all that is needed of it.
    #[must_use]
    pub fn cluster(&self, node: &str) -> Option<Cluster> {
        self.source().map(|source| cluster(&self.inventory, source, node))
    }

    /// Why names may be missing.
    #[must_use]
    pub fn unread(&self) -> Vec<Unread> {
        let mut unread = self.unread.clone();
        if self.source().is_none() {
            let why = if self.is_asked {
                "neither the API server nor a file has told of all pods, services, endpointslices and nodes in time, so \
                 services are not compared with what the node translates; name one with --kubeconfig or --inventory"
            } else {
                "without the API server services are not compared with what the node translates; give a file with pods, \
                 services, endpointslices and nodes: --inventory"
            };
            unread.push(Unread { what: "the cluster".to_owned(), why: why.to_owned() });
        }
        unread
    }

    /// Whose a network namespace is: `namespace/name` of a pod.
    #[must_use]
    pub fn pod_in(&self, netns: u32) -> Option<String> {
        let now = Timestamp(jiff::Timestamp::now().as_nanosecond());
        Some(self.inventory.pod_in(netns, now)?.name.to_string())
    }

    fn is_over(&self, soon: Instant) -> bool {
        Instant::now() >= if self.has_begun { soon + LONGER } else { soon }
    }

    /// Who has told all that is needed.
    fn source(&self) -> Option<&'static str> {
        let told_all = |source| KINDS.iter().all(|kind| self.inventory.is_complete(source, *kind));
        [(Source::Api, "API server"), (Source::File, "--inventory")]
            .into_iter()
            .find_map(|(source, name)| told_all(source).then_some(name))
    }
}

fn cluster(inventory: &Inventory, source: &'static str, node: &str) -> Cluster {
    let is_here = |of: &Option<String>| of.as_deref() == Some(node);
    let pods: Vec<_> = inventory.pods().map(|(_, pod)| pod).filter(|pod| !pod.is_gone()).collect();
    let has = |pod: &Known, (name, value): &(&str, &str)| pod.labels.get(*name).is_some_and(|it| it == value);
    let agents = pods.iter().filter(|pod| CILIUM.iter().any(|label| has(pod, label)));
    let mut cilium_nodes: Vec<String> = agents.filter_map(|pod| pod.node.clone()).collect();
    cilium_nodes.sort_unstable();
    cilium_nodes.dedup();
    let mut nodes: Vec<String> = inventory.nodes().map(|node| node.name.clone()).collect();
    nodes.sort_unstable();
    let mut services: Vec<Service> =
        inventory.services().filter(|it| !it.cluster.is_empty()).map(|it| service(inventory, it)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let has_pods =
        pods.iter().any(|pod| is_here(&pod.node) && !pod.host_network && !pod.addresses().is_empty());
    Cluster { source, node: node.to_owned(), services, nodes, cilium_nodes, has_pods }
}

fn service(inventory: &Inventory, service: &crate::identity::object::Service) -> Service {
    let fronts = service.cluster.iter().flat_map(|address| {
        service.ports.iter().map(|port| (SocketAddr::new(*address, port.port), port.protocol))
    });
    let listening = |only_ready: bool| {
        let mut all = Vec::new();
        for slice in inventory.slices_of(&service.name) {
            let wanted = slice.backends.iter().filter(|it| it.ready || !only_ready);
            for address in wanted.flat_map(|it| &it.addresses) {
                let ports = slice.ports.iter();
                all.extend(ports.map(|(protocol, port)| (SocketAddr::new(*address, *port), *protocol)));
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    };
    Service {
        name: service.name.clone(),
        fronts: fronts.collect(),
        backends: listening(true),
        all_backends: listening(false),
        has_slices: inventory.slices_of(&service.name).next().is_some(),
        pods: (!service.selector.is_empty()).then(|| selected(inventory, service)),
    }
}

/// How many pods a service selects.
fn selected(inventory: &Inventory, service: &crate::identity::object::Service) -> usize {
    let is_its = |pod: &&Known| {
        let has = |(name, value): (&String, &String)| pod.labels.get(name) == Some(value);
        !pod.is_gone() && pod.name.namespace == service.name.namespace && service.selector.iter().all(has)
    };
    inventory.pods().map(|(_, pod)| pod).filter(is_its).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn of_file(text: &str) -> (Option<Cluster>, Vec<Unread>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let options = sources::Options { api: None, files: vec![file.path().to_owned()] };
        let mut names = Names::ask(options);
        names.wait(Instant::now() + Duration::from_secs(2));
        (names.cluster("n1"), names.unread())
    }

    #[test]
    fn a_cluster_out_of_a_file() {
        let list = |items: &str| format!(r#"{{"kind":"List","apiVersion":"v1","items":[{items}]}}"#);
        let items = [
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}"#,
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n2"}}"#,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"cilium-1","namespace":"kube-system","uid":"1","labels":{"k8s-app":"cilium"}},"spec":{"nodeName":"n2","hostNetwork":true},"status":{"phase":"Running"}}"#,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"cart","namespace":"shop","uid":"2","labels":{"app":"cart","v":"2"}},"spec":{"nodeName":"n1"},"status":{"phase":"Running","podIPs":[{"ip":"10.244.0.9"}]}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"cart","namespace":"shop"},"spec":{"clusterIP":"10.96.0.9","clusterIPs":["10.96.0.9"],"ports":[{"port":80,"protocol":"TCP"}],"selector":{"app":"cart"}}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"headless","namespace":"shop"},"spec":{"clusterIP":"None","clusterIPs":["None"],"ports":[{"port":80}]}}"#,
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"cart-1","namespace":"shop","labels":{"kubernetes.io/service-name":"cart"}},"addressType":"IPv4","ports":[{"port":8080,"protocol":"TCP"}],"endpoints":[{"addresses":["10.244.0.9"],"conditions":{"ready":true}},{"addresses":["10.244.0.8"],"conditions":{"ready":false}}]}"#,
        ];
        let (cluster, unread) = of_file(&list(&items.join(",")));
        let cluster = cluster.unwrap_or_else(|| panic!("{unread:?}"));
        assert_eq!(
            (cluster.nodes.len(), &cluster.cilium_nodes[..], cluster.has_pods),
            (2, &["n2".to_owned()][..], true)
        );
        let [service] = &cluster.services[..] else { panic!("{:?}", cluster.services) };
        assert_eq!(service.fronts, [("10.96.0.9:80".parse().unwrap(), 6)]);
        assert_eq!(service.backends, [("10.244.0.9:8080".parse().unwrap(), 6)]);
        assert_eq!((service.all_backends.len(), service.has_slices, service.pods), (2, true, Some(1)));
    }

    #[test]
    fn what_is_not_all_is_no_cluster() {
        let (cluster, unread) = of_file("{");
        assert!(cluster.is_none() && unread.len() >= 2, "{unread:?}");
        let names = Names::ask(sources::Options::default());
        assert!(
            names.cluster("n1").is_none() && names.unread().iter().any(|it| it.why.contains("--inventory"))
        );
    }
}
