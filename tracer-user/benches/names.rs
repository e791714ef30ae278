//! What names cost: a cluster of 10,000 pods and 5,000 services in the inventory; a drop named; a filter's words looked up.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark: criterion makes functions, and it prints"
)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use tracer_user::event::model::{Conntrack, Drop, Endpoint, Network, Original, Timestamp};
use tracer_user::filter::{Filter, Flag, RawWord, Side};
use tracer_user::identity::correlate;
use tracer_user::identity::host::Host;
use tracer_user::identity::inventory::Inventory;
use tracer_user::identity::names::Names;
use tracer_user::identity::object::{
    Backend, Change, Kind, Name, Object, Owner, Pod, Service, ServicePort, Slice, Source, Update,
};
use tracer_user::identity::select::Selection;

const PODS: u32 = 10_000;
const SERVICES: u32 = 5_000;

fn pod_address(pod: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0af4_0000 + pod).into()
}

fn service_address(service: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a60_0000 + service).into()
}

fn objects() -> Vec<Object> {
    let pods = (0..PODS).map(|pod| {
        let app = format!("app-{}", pod / 4);
        Object::Pod(Pod {
            name: Name::new(format!("team-{}", pod % 50), format!("{app}-6d4cf56db6-{pod:05}")),
            uid: format!("a5a685c6-a308-403c-93e9-{pod:012}"),
            node: Some(format!("node-{}", pod % 100)),
            addresses: vec![pod_address(pod), format!("fd00:10:244::{pod:x}").parse().unwrap()],
            labels: [("app", app.as_str()), ("pod-template-hash", "6d4cf56db6"), ("tier", "backend")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            owner: Some(Owner { kind: "ReplicaSet".to_owned(), name: format!("{app}-6d4cf56db6") }),
            created: Some(Timestamp(0)),
            ..Pod::default()
        })
    });
    let services = (0..SERVICES).flat_map(|service| {
        let namespace = format!("team-{}", service % 50);
        let name = format!("service-{service}");
        let ports = vec![ServicePort { protocol: 6, port: 80, ..ServicePort::default() }];
        let backend = |pod| Backend { addresses: vec![pod_address(pod)], ready: true, pod: None };
        [
            Object::Service(Service {
                name: Name::new(&*namespace, &*name),
                cluster: vec![service_address(service)],
                ports,
                ..Service::default()
            }),
            Object::Slice(Slice {
                name: Name::new(namespace, format!("{name}-x")),
                service: name,
                ports: vec![(6, 8080)],
                backends: vec![backend(service * 2), backend(service * 2 + 1)],
            }),
        ]
    });
    pods.chain(services).collect()
}

fn filled(objects: Vec<Object>) -> Inventory {
    let mut inventory = Inventory::default();
    for kind in [Kind::Pod, Kind::Service, Kind::Slice] {
        inventory.apply(Source::Api, Timestamp(0), Change::Begin(kind));
    }
    for object in objects {
        inventory.apply(Source::Api, Timestamp(0), Change::Set(object));
    }
    for kind in [Kind::Pod, Kind::Service, Kind::Slice] {
        inventory.apply(Source::Api, Timestamp(0), Change::End(kind));
    }
    inventory
}

/// Resident memory of this process, in bytes (proc(5), statm).
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// A packet to a service, after its address was translated.
fn translated() -> Drop {
    let end = |address, port| Endpoint { address: Some(address), port: Some(port), k8s: None };
    let client = end(pod_address(7), 41_000);
    let tuple = |destination| Original { source: client.clone(), destination };
    let (dialled, backend) = (end(service_address(4711), 80), end(pod_address(9422), 8080));
    Drop {
        time: Timestamp(1),
        source: client.clone(),
        destination: backend.clone(),
        original: Some(tuple(dialled.clone())),
        network: Network { netns: Some(7), transport: Some("tcp".to_owned()), ..Network::default() },
        conntrack: Some(Conntrack {
            direction: Some("original".to_owned()),
            original: tuple(dialled),
            reply: Original { source: backend, destination: client.clone() },
            ..Conntrack::default()
        }),
        ..Drop::default()
    }
}

fn names(criterion: &mut Criterion) {
    let before = resident();
    let mut inventory = filled(objects());
    println!("{PODS} pods and {SERVICES} services: {} MiB", (resident() - before) >> 20);
    let host = Host { netns: Some(1), name: "node-1".to_owned(), addresses: vec![] };
    criterion.bench_function("a drop named", |bencher| {
        bencher.iter_batched_ref(
            translated,
            |drop| correlate::name(black_box(drop), &inventory, &host, &|_| None),
            BatchSize::SmallInput,
        );
    });
    for (words, flag) in [("app-7", Flag::Pod(Side::Either)), ("team-7", Flag::Namespace(Side::Either))] {
        let raw = RawWord { flag, text: words.to_owned(), negated: false };
        let filter = Filter::parse(&[raw], &|_| unreachable!()).unwrap();
        let mut selection = Selection::of(&filter).unwrap();
        criterion.bench_function(&format!("{} {words} looked up", flag.spelling()), |bencher| {
            bencher.iter(|| selection.select(black_box(&inventory), &host));
        });
    }
    println!("{}", churn(&host));
    let one = objects().swap_remove(0);
    criterion.bench_function("a pod told again", |bencher| {
        bencher.iter_batched(
            || Change::Set(one.clone()),
            |change| inventory.apply(Source::Api, Timestamp(1), change),
            BatchSize::SmallInput,
        );
    });
}

/// 500 changes a second, as where a large cluster is rolled out: how often a filter by pod is looked up anew, and what part of
/// the time that takes.
fn churn(host: &Host) -> String {
    const CHANGES: u32 = 1500;
    const PAUSE: Duration = Duration::from_millis(2);
    let raw = RawWord { flag: Flag::Pod(Side::Either), text: "app-7".to_owned(), negated: false };
    let filter = Filter::parse(&[raw], &|_| unreachable!()).unwrap();
    let mut names = Names::new(&filter, host.clone(), None);
    let objects = objects();
    let change = |object: &Object| Update::Change(Source::Api, Timestamp(1), Change::Set(object.clone()));
    objects.iter().for_each(|object| drop(names.learn(change(object))));
    let (began, mut took, mut times) = (Instant::now(), Duration::ZERO, 0);
    let pods = objects.iter().filter_map(|object| match object {
        Object::Pod(pod) => Some(pod),
        _ => None,
    });
    for (number, pod) in (0..CHANGES).zip(pods) {
        let pod = Pod { addresses: vec![pod_address(PODS + number)], ..pod.clone() };
        names.learn(change(&Object::Pod(pod)));
        let from = Instant::now();
        names.select();
        took += from.elapsed();
        times += u32::from(names.due().is_none());
        std::thread::sleep(PAUSE.saturating_sub(from.elapsed()));
    }
    let share = 100.0 * took.as_secs_f64() / began.elapsed().as_secs_f64();
    let rate = f64::from(CHANGES) / began.elapsed().as_secs_f64();
    format!("{rate:.0} changes a second: looked up for {times} of {CHANGES}, {share:.1} % of the time")
}

criterion_group!(benches, names);
criterion_main!(benches);
