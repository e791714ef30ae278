mod policies;

use super::*;
use crate::identity::object::{Middle, Owner, Pod, Service, Slice};
use std::net::IpAddr;

const PODS: &str = include_str!("../fixtures/pods.list.json");
const SERVICES: &str = include_str!("../fixtures/services.list.json");
const SLICES: &str = include_str!("../fixtures/endpointslices.list.json");
const NODES: &str = include_str!("../fixtures/nodes.list.json");
const NAMESPACES: &str = include_str!("../fixtures/namespaces.list.json");
const POD_WATCH: &str = include_str!("../fixtures/pods.watch-changes.jsonl");
const POD_STREAM: &str = include_str!("../fixtures/pods.watchlist.jsonl");
const SLICE_WATCH: &str = include_str!("../fixtures/endpointslices.watch-changes.jsonl");

const LISTS: [(Kind, &str, usize); 5] = [
    (Kind::Pod, PODS, 21),
    (Kind::Service, SERVICES, 26),
    (Kind::Slice, SLICES, 26),
    (Kind::Node, NODES, 2),
    (Kind::Namespace, NAMESPACES, 8),
];

fn objects(kind: Kind, json: &str) -> Vec<Object> {
    list(json.as_bytes()).unwrap().objects(kind).map(|found| found.unwrap().object).collect()
}

fn named(kind: Kind, json: &str, key: &str) -> Object {
    objects(kind, json).into_iter().find(|object| object.key() == key).unwrap()
}

fn pod(key: &str) -> Pod {
    let Object::Pod(pod) = named(Kind::Pod, PODS, key) else { panic!("no pod") };
    pod
}

fn service(key: &str) -> Service {
    let Object::Service(service) = named(Kind::Service, SERVICES, key) else { panic!("no service") };
    service
}

fn slice(key: &str) -> Slice {
    let Object::Slice(slice) = named(Kind::Slice, SLICES, key) else { panic!("no slice") };
    slice
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn events(kind: Kind, lines: &str) -> Vec<Event> {
    lines.lines().map(|line| event(kind, line.as_bytes()).unwrap()).collect()
}

fn set(event: &Event) -> &Object {
    let Event::Set(Found { object, .. }) = event else { panic!("{event:?}") };
    object
}

#[test]
fn every_recorded_object_is_read() {
    for (kind, json, count) in LISTS {
        let list = list(json.as_bytes()).unwrap();
        assert_eq!((list.version.as_str(), &list.next), ("523", &None));
        let all = objects(kind, json);
        assert_eq!(all.len(), count, "{kind:?}");
        assert!(all.iter().all(|object| object.kind() == kind));
    }
}

#[test]
fn recorded_pods() {
    let gw = pod("edge/gw-0");
    assert_eq!(gw.addresses, ips(&["10.244.1.11", "fd00:10:244:1::b"]));
    assert_eq!(gw.uid, "8eeb026d-b5aa-45b5-89db-8fb9bbf98655");
    assert_eq!(gw.node.as_deref(), Some("dt-node1"));
    assert_eq!(gw.labels.get("app").map(String::as_str), Some("gw"));
    assert!(!gw.host_network && !gw.ended && gw.host_ports.is_empty() && gw.owner.is_none());
    assert_eq!(gw.created.unwrap().0 % 1_000_000_000, 0);
    let agent = pod("infra/agent-1");
    assert!(agent.host_network);
    assert_eq!((agent.addresses, agent.host_ports), (ips(&["192.0.2.10"]), vec![(6, 8080)]));
    assert_eq!(pod("shop/web-6d4cf56db6-ax9k2").addresses, ips(&["10.244.1.7", "fd00:10:244:1::7"]));
}

#[test]
fn recorded_services() {
    let gw = service("edge/gw-lb");
    assert_eq!((gw.cluster, gw.external), (ips(&["10.96.62.17"]), ips(&["203.0.113.10"])));
    let ports: Vec<_> = gw.ports.iter().map(|port| (port.protocol, port.port, port.node_port)).collect();
    assert_eq!(ports, [(6, 80, Some(30100)), (6, 443, Some(30101))]);
    assert_eq!(service("edge/gw-extip").external, ips(&["203.0.113.80"]));
    assert_eq!(service("edge/sctp").ports[0].protocol, 132);
    assert_eq!(service("infra/dns").ports[0].protocol, 17);
    assert!(service("shop/cart-headless").cluster.is_empty());
    assert!(service("shop/ext").cluster.is_empty());
    assert_eq!(service("shop/web-dual").cluster, ips(&["10.96.166.121", "fd00:10:96::5cd4"]));
}

#[test]
fn recorded_slices() {
    let cart = slice("shop/cart-p4stv");
    assert_eq!((cart.service.as_str(), &cart.ports[..]), ("cart", &[(6, 8080)][..]));
    let backends: Vec<_> = cart.backends.iter().map(|end| (end.pod.as_deref().unwrap(), end.ready)).collect();
    assert_eq!(backends, [("cart-2", false), ("cart-1", true), ("cart-0", true)]);
    assert_eq!(cart.backends[1].addresses, ips(&["10.244.1.6"]));
    let manual = slice("infra/manual-1");
    assert_eq!((manual.backends[0].pod.as_ref(), manual.backends[0].ready), (None, true));
    // The server writes null for no endpoints and no ports.
    let empty = slice("shop/empty-7chvt");
    assert!(empty.service == "empty" && empty.backends.is_empty() && empty.ports.is_empty());
}

#[test]
fn recorded_nodes_and_namespaces() {
    let Object::Node(node) = named(Kind::Node, NODES, "dt-node2") else { panic!("no node") };
    assert_eq!(node.addresses, ips(&["192.0.2.11", "2001:db8::11"]));
    assert_eq!(node.pod_cidrs, ["10.244.2.0/24", "fd00:10:244:2::/64"]);
    let Object::Namespace(shop) = named(Kind::Namespace, NAMESPACES, "shop") else { panic!("no namespace") };
    assert_eq!(shop.labels["kubernetes.io/metadata.name"], "shop");
}

#[test]
fn a_recorded_watch() {
    let pods = events(Kind::Pod, POD_WATCH);
    let states: Vec<_> = pods[..3]
        .iter()
        .map(|event| match set(event) {
            Object::Pod(pod) => (pod.addresses.len(), pod.ended),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(states, [(0, false), (2, false), (2, true)]);
    assert_eq!(pods[3], Event::Delete { key: "shop/late-0".to_owned(), version: "606".to_owned() });
    assert_eq!(pods[5], Event::Bookmark { version: "614".to_owned(), listed: false });
    let Object::Slice(slice) = set(&events(Kind::Slice, SLICE_WATCH)[1]).clone() else { panic!("no slice") };
    assert_eq!(slice.backends[0].pod.as_deref(), Some("late-0"));
}

#[test]
fn a_recorded_streaming_list_says_where_it_ends() {
    let events = events(Kind::Pod, POD_STREAM);
    assert_eq!(set(&events[2]).key(), "shop/web-6d4cf56db6-ax9k2");
    assert_eq!(events[3], Event::Bookmark { version: "523".to_owned(), listed: true });
}

#[test]
fn owners_and_what_only_metadata_is_asked_of() {
    let json = r#"{"kind":"PartialObjectMetadata","metadata":{"name":"web-6d4cf56db6","namespace":"shop","ownerReferences":[
        {"kind":"Else","name":"x"},{"kind":"Deployment","name":"web","controller":true}]}}"#;
    let owner = Some(Owner { kind: "Deployment".to_owned(), name: "web".to_owned() });
    let itself = Owner { kind: "ReplicaSet".to_owned(), name: "web-6d4cf56db6".to_owned() };
    let middle = Object::Middle(Middle { namespace: "shop".to_owned(), itself, owner });
    let found = object(Kind::ReplicaSet, json).unwrap().object;
    assert_eq!((found.key().as_str(), &found), ("shop/web-6d4cf56db6", &middle));
    assert_eq!(object(Kind::Job, json).unwrap().object.kind(), Kind::Job);
}

#[test]
fn null_and_missing_are_the_same() {
    let bare = r#"{"metadata":{"name":"a","namespace":"b"}}"#;
    let nulls = r#"{"metadata":{"name":"a","namespace":"b","labels":null,"ownerReferences":null},"spec":null,
        "status":null,"endpoints":null,"ports":null}"#;
    for kind in [Kind::Pod, Kind::Service, Kind::Slice, Kind::Node, Kind::Namespace, Kind::Job] {
        assert_eq!(object(kind, bare).unwrap(), object(kind, nulls).unwrap());
    }
    assert_eq!(list(br#"{"items":null}"#).unwrap().objects(Kind::Pod).count(), 0);
    let slice = object(
        Kind::Slice,
        r#"{"metadata":{"name":"a","namespace":"b"},"endpoints":[{"addresses":["10.0.0.1"],
        "conditions":{"ready":null}}],"ports":[{"port":null},{"port":9}]}"#,
    );
    let Object::Slice(slice) = slice.unwrap().object else { panic!("no slice") };
    assert_eq!((slice.backends[0].ready, slice.ports), (true, vec![(6, 9)]));
}

#[test]
fn a_host_network_pod_has_its_nodes_addresses() {
    let json = r#"{"metadata":{"name":"a","namespace":"b"},"spec":{"hostNetwork":true},
        "status":{"hostIP":"192.0.2.1","hostIPs":[{"ip":"192.0.2.1"},{"ip":"2001:db8::1"}]}}"#;
    let Object::Pod(pod) = object(Kind::Pod, json).unwrap().object else { panic!("no pod") };
    assert_eq!(pod.addresses, ips(&["192.0.2.1", "2001:db8::1"]));
}

#[test]
fn one_broken_object_spoils_no_other() {
    let json = br#"{"metadata":{"resourceVersion":"7"},"items":[
        {"metadata":{"name":"a","namespace":"n"}},
        {"metadata":{"name":"b","namespace":"n"},"spec":{"hostNetwork":"maybe"}},
        42, null, {}, {"metadata":{"name":"c/d","namespace":"n"}},
        {"metadata":{"name":"e","namespace":"n"},"status":{"podIPs":[{"ip":"no address"},{"ip":"10.0.0.1"}]}}]}"#;
    let read: Vec<_> =
        list(json).unwrap().objects(Kind::Pod).map(|found| found.map(|f| f.object.key())).collect();
    assert_eq!((read[0].as_deref(), read[6].as_deref()), (Ok("n/a"), Ok("n/e")));
    assert!(matches!(&read[1], Err(Unreadable::Json(why)) if why.contains("expected a boolean")));
    assert!(read[2..6].iter().all(Result::is_err));
    assert_eq!(read[5], Err(Unreadable::Name));
    let line = br#"{"type":"MODIFIED","object":{"metadata":{"name":"b","namespace":"n","resourceVersion":"9"},"spec":7}}"#;
    assert!(matches!(event(Kind::Pod, line).unwrap(), Event::Unreadable(_, Some(version)) if version == "9"));
}

#[test]
fn a_broken_event_spoils_no_watch() {
    let read = |line: &str| event(Kind::Pod, line.as_bytes());
    assert!(matches!(read(r#"{"type":"DELETED","object":{"metadata":7}}"#), Ok(Event::Unreadable(_, None))));
    let nothing = Event::Bookmark { version: String::new(), listed: false };
    assert_eq!(read(r#"{"type":"BOOKMARK","object":[]}"#), Ok(nothing));
    assert_eq!(read(r#"{"type":"ERROR","object":null}"#), Ok(Event::Error(Status::default())));
    assert_eq!(read(r#"{"type":"LATER","object":1}"#), Ok(Event::Unknown));
    assert!(read("{}").is_err() && read(r#"{"type":"ADDED"}"#).is_err());
}

#[test]
fn what_is_kept_of_an_object_has_ceilings() {
    let many = |count: usize, entry: fn(usize) -> String| (0..count).map(entry).collect::<Vec<_>>().join(",");
    let json = format!(
        r#"{{"metadata":{{"name":"a","namespace":"b","labels":{{{},"long":"{}"}}}},"status":{{"podIPs":[{}]}}}}"#,
        many(1000, |n| format!(r#""l{n:04}":"v""#)),
        "x".repeat(64),
        many(1000, |n| format!(r#"{{"ip":"10.0.{}.{}"}}"#, n / 250, n % 250)),
    );
    let Object::Pod(pod) = object(Kind::Pod, &json).unwrap().object else { panic!("no pod") };
    assert_eq!((pod.labels.len(), pod.addresses.len()), (limits::LABELS, limits::ADDRESSES));
    assert!(!pod.labels.contains_key("long"));
    for name in ["x".repeat(254), "a\u{1b}b".to_owned(), "a b".to_owned()] {
        let json = serde_json::json!({"metadata": {"name": name, "namespace": "b"}}).to_string();
        assert_eq!(object(Kind::Pod, &json), Err(Unreadable::Name));
        assert_eq!(key(Kind::Node, &json), Err(Unreadable::Name));
    }
    assert_eq!(object(Kind::Node, "{}"), Err(Unreadable::Nameless));
}

#[test]
fn deep_nesting_costs_no_stack() {
    let deep = format!(
        r#"{{"metadata":{{"name":"a","namespace":"b"}},"x":{}}}"#,
        "[".repeat(100_000) + &"]".repeat(100_000)
    );
    assert_eq!(object(Kind::Pod, &deep).unwrap().object.key(), "b/a");
    let items = format!(r#"{{"items":[{deep}]}}"#);
    assert_eq!(list(items.as_bytes()).unwrap().objects(Kind::Pod).filter(Result::is_ok).count(), 1);
}

/// Xorshift (Marsaglia, 2003): the same damage in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// Some text with a few bytes of it changed, cut out or doubled.
fn damaged(random: &mut Random, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            1 => bytes[at] = b"{}[]\",:0n"[random.below(9)],
            2 => bytes.truncate(at.max(1)),
            3 => drop(bytes.drain(at..(at + random.below(40)).min(bytes.len().saturating_sub(1)).max(at))),
            _ => {
                let piece = bytes[at..(at + 40).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

#[test]
fn no_damage_makes_it_panic() {
    let mut random = Random(0x5eed);
    let (mut read, mut refused) = (0, 0);
    for (kind, json, _) in LISTS {
        let small: Vec<String> =
            list(json.as_bytes()).unwrap().items.iter().take(2).map(|item| item.get().to_owned()).collect();
        for _ in 0..3000 {
            let one = random.below(small.len());
            let text = damaged(&mut random, &small[one]);
            let page = [br#"{"metadata":{},"items":["#, &text[..], b"]}"].concat();
            let line = [br#"{"type":"ADDED","object":"#, &text[..], b"}"].concat();
            if let Ok(list) = list(&page) {
                read += list.objects(kind).filter(Result::is_ok).count();
            } else {
                refused += 1;
            }
            let _ = event(kind, &line);
            let _ = Status::read(&text);
            if let Ok(text) = std::str::from_utf8(&text) {
                let _ = key(kind, text);
            }
        }
    }
    assert!(read > 500 && refused > 500, "{read} read, {refused} refused: the damage proves little");
}
