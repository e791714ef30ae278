//! What a cause costs: drops as they come in a storm, found and worded, without the node being asked.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark: criterion makes functions")]

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tracer_user::cause::Causes;
use tracer_user::event::model::{Class, Drop, Endpoint, K8s, Network, Packet, Reason};
use tracer_user::netfilter::model::{Backend, Confidence, Family, Netfilter};

fn drop_of(reason: &str, location: &str, class: Class) -> Drop {
    let end = |address: &str, pod: &str| Endpoint {
        address: address.parse().ok(),
        port: Some(6379),
        k8s: Some(K8s { namespace: Some("shop".into()), pod: Some(pod.into()), ..K8s::default() }),
    };
    Drop {
        source: end("10.244.3.7", "cart-7c9"),
        destination: end("10.244.1.9", "redis-0"),
        network: Network {
            family: Some("ipv4".into()),
            transport: Some("tcp".into()),
            interface: Some("eth0".into()),
            netns: Some(1),
            ..Network::default()
        },
        packet: Packet { tcp_flags: Some("SYN".into()), ttl: Some(63), ..Packet::default() },
        drop: Reason {
            reason: Some(reason.into()),
            location: Some(location.into()),
            class,
            ..Reason::default()
        },
        ..Drop::default()
    }
}

fn by_rule() -> Drop {
    let mut drop = drop_of("NETFILTER_DROP", "nf_hook_slow+0x7d", Class::Policy);
    drop.drop.netfilter = Some(Box::new(Netfilter {
        backend: Some(Backend::Legacy),
        family: Some(Family::Ipv4),
        hook: Some("FORWARD".into()),
        table: Some("filter".into()),
        chain: Some("FORWARD".into()),
        rule: Some(7),
        text: Some("-A FORWARD -p tcp -m comment --comment \"for now\" -m tcp --dport 6379 -j DROP".into()),
        verdict: Some("drop".into()),
        owner: Some("unknown".into()),
        confidence: Confidence::Exact,
        ..Netfilter::default()
    }));
    drop
}

fn causes(criterion: &mut Criterion) {
    let causes = Causes::default();
    for (name, drop) in [
        ("no listener", drop_of("NO_SOCKET", "tcp_v4_rcv+0x1f", Class::Error)),
        ("a rule", by_rule()),
        ("nothing known", drop_of("NOT_SPECIFIED", "somewhere+0x1f", Class::Error)),
    ] {
        let mut drop = drop;
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                causes.explain(&mut drop);
                black_box(&drop.drop.cause);
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).without_plots();
    targets = causes
}
criterion_main!(benches);
