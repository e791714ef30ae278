use super::super::object::{
    Backend, Change, NetnsOwner, Node, Object, Pod, Sandbox, ServicePort, Slice, Socket, Source,
};
use super::*;
use crate::event::model::{Conntrack, Inner, Network, Original, Reason};
use crate::netfilter::model::Netfilter;

const NODE_NETNS: u32 = 99;

fn end(text: &str) -> Endpoint {
    let address: SocketAddr = text.parse().unwrap();
    Endpoint { address: Some(address.ip()), port: Some(address.port()), k8s: None }
}

fn tuple(source: &str, destination: &str) -> Original {
    Original { source: end(source), destination: end(destination) }
}

fn host() -> Host {
    Host { netns: Some(NODE_NETNS), name: "n1".to_owned(), addresses: vec!["192.0.2.1".parse().unwrap()] }
}

/// Pods cart (10.0.0.1, netns 1) and redis-0 (10.0.0.3, netns 3), service redis (10.96.0.1:6379, node port 30379), nodes n1
/// and n2, an agent in the node's netns on port 9100, and a container `web` in netns 5.
fn inventory() -> Inventory {
    let mut inventory = Inventory::default();
    let sandbox = |pod: &str, address: &str, netns| {
        Object::Sandbox(Sandbox {
            id: pod.to_owned(),
            pod: Name::new("shop", pod),
            uid: pod.to_owned(),
            addresses: vec![address.parse().unwrap()],
            netns: Some(netns),
            ready: true,
            created: Some(Timestamp(0)),
            ..Sandbox::default()
        })
    };
    let node = |name: &str, address: &str| {
        Object::Node(Node {
            name: name.to_owned(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![],
            labels: Default::default(),
        })
    };
    let agent = Pod {
        name: Name::new("infra", "agent"),
        uid: "agent".to_owned(),
        node: Some("n1".to_owned()),
        host_network: true,
        ..Pod::default()
    };
    let slice = Slice {
        name: Name::new("shop", "redis-x"),
        service: "redis".to_owned(),
        ports: vec![(6, 6379)],
        backends: vec![Backend { addresses: vec!["10.0.0.3".parse().unwrap()], ready: true, pod: None }],
    };
    for object in [
        sandbox("cart", "10.0.0.1", 1),
        sandbox("redis-0", "10.0.0.3", 3),
        Object::Service(Service {
            name: Name::new("shop", "redis"),
            cluster: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![ServicePort {
                protocol: 6,
                port: 6379,
                node_port: Some(30379),
                ..Default::default()
            }],
            ..Service::default()
        }),
        Object::Slice(slice),
        node("n1", "192.0.2.1"),
        node("n2", "192.0.2.2"),
        Object::Pod(agent),
        Object::Socket(Socket {
            protocol: 6,
            port: 9100,
            cgroup: Cgroup { pod: Some("agent".to_owned()), ..Cgroup::default() },
        }),
        Object::Netns(NetnsOwner {
            netns: 5,
            cgroup: Cgroup { container_name: Some("web".to_owned()), ..Cgroup::default() },
            addresses: vec!["172.17.0.2".parse().unwrap()],
        }),
    ] {
        inventory.apply(Source::Api, Timestamp(0), Change::Set(object));
    }
    inventory
}

fn drop(netns: u32, source: &str, destination: &str) -> Drop {
    Drop {
        time: Timestamp(1),
        source: end(source),
        destination: end(destination),
        network: Network {
            netns: Some(netns),
            transport: Some("tcp".to_owned()),
            family: Some("ipv4".to_owned()),
            ..Network::default()
        },
        ..Drop::default()
    }
}

fn named(mut drop: Drop) -> Drop {
    name(&mut drop, &inventory(), &host(), &|_| None);
    drop
}

/// `pod service by`, `-` for none.
fn shown(end: &Endpoint) -> String {
    let Some(k8s) = &end.k8s else { return "-".to_owned() };
    let who = k8s.pod.as_ref().or(k8s.container.as_ref()).or(k8s.unit.as_ref()).or(k8s.node.as_ref());
    let by = k8s.service_by.map(|by| format!(" {} {by:?}", k8s.service.clone().unwrap_or_default()));
    format!("{}{}", who.map_or("", String::as_str), by.unwrap_or_default())
}

fn both(drop: &Drop) -> [String; 2] {
    [shown(&drop.source), shown(&drop.destination)]
}

#[test]
fn addresses_have_names() {
    let drop = named(drop(NODE_NETNS, "10.0.0.1:41000", "10.0.0.3:6379"));
    assert_eq!(both(&drop), ["cart", "redis-0 redis Endpoint"]);
    let k8s = drop.destination.k8s.unwrap();
    assert_eq!(k8s.namespace.as_deref(), Some("shop"));
}

#[test]
fn a_dialled_service_is_told_whatever_became_of_the_address() {
    let mut translated = drop(NODE_NETNS, "10.0.0.1:41000", "10.0.0.3:6379");
    translated.conntrack = Some(Conntrack {
        direction: Some("original".to_owned()),
        original: tuple("10.0.0.1:41000", "10.96.0.1:6379"),
        reply: tuple("10.0.0.3:6379", "10.0.0.1:41000"),
        ..Conntrack::default()
    });
    translated.original = translated.conntrack.as_ref().map(|entry| entry.original.clone());
    let translated = named(translated);
    assert_eq!(both(&translated), ["cart", "redis-0 redis Original"]);
    let original = translated.original.unwrap();
    assert_eq!([shown(&original.source), shown(&original.destination)], ["cart", " redis Address"]);
    // Not translated yet: there is no pod at that end.
    assert_eq!(both(&named(drop(1, "10.0.0.1:41000", "10.96.0.1:6379"))), ["cart", " redis Address"]);
    // A port of the node.
    assert_eq!(both(&named(drop(NODE_NETNS, "203.0.113.9:5", "192.0.2.2:30379"))), ["-", " redis Address"]);
}

#[test]
fn a_masqueraded_packet_is_its_pods_in_both_directions() {
    let entry = |direction: &str| Conntrack {
        direction: Some(direction.to_owned()),
        original: tuple("10.0.0.1:41000", "203.0.113.9:443"),
        reply: tuple("203.0.113.9:443", "192.0.2.1:41000"),
        ..Conntrack::default()
    };
    let mut sent = drop(NODE_NETNS, "192.0.2.1:41000", "203.0.113.9:443");
    sent.conntrack = Some(entry("original"));
    assert_eq!(both(&named(sent)), ["cart", "-"]);
    let mut answer = drop(NODE_NETNS, "203.0.113.9:443", "192.0.2.1:41000");
    answer.conntrack = Some(entry("reply"));
    assert_eq!(both(&named(answer)), ["-", "cart"]);
}

#[test]
fn a_reply_comes_from_the_service() {
    let mut reply = drop(NODE_NETNS, "10.0.0.3:6379", "10.0.0.1:41000");
    reply.conntrack = Some(Conntrack {
        direction: Some("reply".to_owned()),
        original: tuple("10.0.0.1:41000", "10.96.0.1:6379"),
        reply: tuple("10.0.0.3:6379", "10.0.0.1:41000"),
        ..Conntrack::default()
    });
    assert_eq!(both(&named(reply)), ["redis-0 redis Original", "cart"]);
}

#[test]
fn what_a_pod_sends_is_its_own_under_any_address() {
    let output = |netns| {
        // It pretends to be redis.
        let mut drop = drop(netns, "10.0.0.3:1", "203.0.113.9:53");
        drop.drop = Reason {
            netfilter: Some(Box::new(Netfilter { hook: Some("OUTPUT".to_owned()), ..Netfilter::default() })),
            ..Reason::default()
        };
        named(drop)
    };
    assert_eq!(both(&output(1)), ["cart", "-"]);
    assert_eq!(both(&output(3)), ["redis-0", "-"]);
    // Loopback addresses are everybody's.
    assert_eq!(both(&named(drop(1, "127.0.0.1:1", "127.0.0.1:2"))), ["cart", "cart"]);
    assert_eq!(both(&named(drop(NODE_NETNS, "127.0.0.1:1", "127.0.0.1:2"))), ["-", "-"]);
}

#[test]
fn ports_of_the_node_are_their_processes() {
    assert_eq!(both(&named(drop(NODE_NETNS, "10.0.0.1:1", "192.0.2.1:9100"))), ["cart", "agent"]);
    assert_eq!(both(&named(drop(NODE_NETNS, "10.0.0.1:1", "192.0.2.1:22"))), ["cart", "n1"]);
    // The other node's processes are not known here.
    assert_eq!(both(&named(drop(NODE_NETNS, "10.0.0.1:1", "192.0.2.2:9100"))), ["cart", "n2"]);
}

#[test]
fn containers_have_their_names() {
    assert_eq!(both(&named(drop(5, "172.17.0.2:80", "203.0.113.9:53"))), ["web", "-"]);
    assert_eq!(both(&named(drop(NODE_NETNS, "203.0.113.9:53", "172.17.0.2:80"))), ["-", "web"]);
}

#[test]
fn a_rule_of_kube_proxy_names_the_service() {
    let mut refused = drop(NODE_NETNS, "10.0.0.1:1", "10.200.0.1:80");
    let text = "-A KUBE-SERVICES -d 10.200.0.1/32 -p tcp -m comment --comment \"shop/redis:tcp has no endpoints\" -j REJECT";
    let netfilter = Netfilter { text: Some(text.to_owned()), ..Netfilter::default() };
    refused.drop.netfilter = Some(Box::new(netfilter));
    assert_eq!(both(&named(refused.clone())), ["cart", " redis Rule"]);
    // A comment that names what isn't there proves nothing.
    let false_text = text.replace("shop/redis", "shop/nobody");
    refused.drop.netfilter = Some(Box::new(Netfilter { text: Some(false_text), ..Netfilter::default() }));
    assert_eq!(both(&named(refused)), ["cart", "-"]);
}

#[test]
fn what_ipvs_has_of_the_connection_goes_before_endpoints() {
    let [client, backend] = ["10.0.0.1:41000", "10.0.0.3:6379"].map(|end| end.parse().unwrap());
    let named = |mut drop: Drop, virtual_address: &str| {
        let address = virtual_address.parse().unwrap();
        name(&mut drop, &inventory(), &host(), &|flow| {
            let is_reply = flow.source == backend && flow.destination == client;
            let is_it = is_reply || flow.source == client && flow.destination == backend;
            (is_it && flow.protocol == 6 && flow.netns == Some(NODE_NETNS))
                .then_some(Virtual { address, is_reply })
        });
        drop
    };
    let sent = drop(NODE_NETNS, "10.0.0.1:41000", "10.0.0.3:6379");
    let ipvs = named(sent.clone(), "10.96.0.1:6379");
    assert_eq!(both(&ipvs), ["cart", "redis-0 redis Ipvs"]);
    assert!(is_open_to_ipvs(&ipvs));
    // A virtual address that is no service's proves nothing.
    assert_eq!(both(&named(sent.clone(), "10.96.0.2:6379")), ["cart", "redis-0 redis Endpoint"]);
    let answer = drop(NODE_NETNS, "10.0.0.3:6379", "10.0.0.1:41000");
    assert_eq!(both(&named(answer, "10.96.0.1:6379")), ["redis-0 redis Ipvs", "cart"]);
    // On the wire it has its node's address; its entry shows the pod.
    let mut masqueraded = drop(NODE_NETNS, "192.0.2.1:41000", "10.0.0.3:6379");
    masqueraded.conntrack = Some(Conntrack {
        direction: Some("original".to_owned()),
        original: tuple("10.0.0.1:41000", "10.0.0.3:6379"),
        reply: tuple("10.0.0.3:6379", "192.0.2.1:41000"),
        ..Conntrack::default()
    });
    assert_eq!(both(&named(masqueraded.clone(), "10.96.0.1:6379")), ["cart", "redis-0 redis Ipvs"]);
    // What conntrack tells is surer.
    masqueraded.conntrack.as_mut().unwrap().original = tuple("10.0.0.1:41000", "10.96.0.1:6379");
    let told = named(masqueraded, "10.96.0.1:6379");
    assert_eq!(both(&told), ["cart", "redis-0 redis Original"]);
    assert!(!is_open_to_ipvs(&told));
}

#[test]
fn ipvs_is_asked_about_whole_flows_of_its_protocols() {
    let sent = drop(NODE_NETNS, "10.0.0.1:41000", "10.0.0.3:6379");
    assert_eq!(flows(&sent).count(), 1);
    let mut entry = sent.clone();
    entry.conntrack = Some(Conntrack {
        direction: Some("original".to_owned()),
        original: tuple("10.0.0.1:41000", "10.0.0.3:6379"),
        reply: tuple("10.0.0.3:6379", "192.0.2.1:41000"),
        ..Conntrack::default()
    });
    assert_eq!(flows(&entry).count(), 2);
    let mut portless = sent.clone();
    portless.destination.port = None;
    let mut icmp = sent;
    icmp.network.transport = Some("icmp".to_owned());
    assert_eq!((flows(&portless).count(), flows(&icmp).count()), (0, 0));
}

#[test]
fn what_a_tunnel_carries_has_names() {
    let mut outer = drop(NODE_NETNS, "192.0.2.2:5000", "192.0.2.1:8472");
    outer.inner = Some(Inner {
        kind: "vxlan".to_owned(),
        source: end("10.0.0.9:1"),
        destination: end("10.0.0.3:6379"),
        ..Inner::default()
    });
    let inner = named(outer).inner.unwrap();
    assert_eq!([shown(&inner.source), shown(&inner.destination)], ["-", "redis-0"]);
}

#[test]
fn several_services_of_one_backend_are_listed_not_picked() {
    let mut inventory = inventory();
    let other = Slice {
        name: Name::new("shop", "cache-x"),
        service: "cache".to_owned(),
        ports: vec![(6, 6379)],
        backends: vec![Backend { addresses: vec!["10.0.0.3".parse().unwrap()], ready: true, pod: None }],
    };
    inventory.apply(Source::Api, Timestamp(0), Change::Set(Object::Slice(other)));
    let mut drop = drop(NODE_NETNS, "10.0.0.1:1", "10.0.0.3:6379");
    name(&mut drop, &inventory, &host(), &|_| None);
    let k8s = drop.destination.k8s.unwrap();
    assert_eq!((k8s.service, k8s.services), (None, vec!["cache".to_owned(), "redis".to_owned()]));
}
