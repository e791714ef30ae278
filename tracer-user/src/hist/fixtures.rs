//! Drops for the tests here and of what is built on this.

use crate::event::model::{Drop, Endpoint, K8s, Reason, Record, Timestamp};

/// `seconds` after 2026-11-20T22:14:00Z.
pub(crate) fn at(seconds: f64) -> Timestamp {
    Timestamp(1_795_212_840_000_000_000 + (seconds * 1e9) as i128)
}

pub(crate) fn end_of(address: &str, k8s: Option<K8s>) -> Endpoint {
    Endpoint { address: address.parse().ok(), port: None, k8s }
}

fn pod(name: &str, kind: &str) -> Option<K8s> {
    Some(K8s {
        namespace: Some("shop".into()),
        pod: Some(name.into()),
        workload: Some(format!("{kind}/{name}")),
        ..K8s::default()
    })
}

/// A drop between two pods.
pub(crate) fn drop_of(from: &str, to: &str) -> Drop {
    Drop {
        time: at(0.0),
        time_last: at(0.0),
        count: 1,
        segments: 1,
        source: end_of("10.0.0.1", pod(from, "deployment")),
        destination: end_of("10.0.0.2", pod(to, "statefulset")),
        drop: Reason { reason: Some("NO_SOCKET".into()), ..Reason::default() },
        ..Drop::default()
    }
}

/// Drops for a reason, at a time.
pub(crate) fn dropped(reason: &str, seconds: f64, count: u64) -> Record {
    let mut drop = drop_of("cart-1", "redis-0");
    (drop.time, drop.time_last) = (at(seconds), at(seconds));
    (drop.count, drop.segments) = (count, count);
    drop.drop.reason = Some(reason.into());
    Record::Drop(Box::new(drop))
}

/// xorshift64 (Marsaglia).
pub(crate) fn random(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % bound
}
