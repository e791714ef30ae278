//! Records for tests: one of each kind, and a drop that has something everywhere.

use crate::event::model::{Drop, Lost, LostPlace, Peer, Record, Stalled, Timestamp};
use serde_json::json;

/// Microseconds only, as a recording keeps.
const TIME: Timestamp = Timestamp(1_795_000_000_123_456_000);

pub(super) fn records() -> Vec<Record> {
    vec![
        Record::Drop(Box::new(drop())),
        Record::Drop(Box::new(Drop {
            time: TIME,
            time_last: TIME,
            node: "n".into(),
            count: 7,
            segments: 9,
            ..Drop::default()
        })),
        Record::Lost(Lost { time: TIME, count: 3, place: LostPlace::Flow }),
        Record::Stalled(Stalled {
            time: TIME,
            seconds: 10,
            node: "n".into(),
            filter: "--pod x".into(),
            retransmits: 2,
            peers: vec![Peer { retransmits: 2, ..Peer::default() }],
            ..Stalled::default()
        }),
    ]
}

/// As the contract prints one.
pub(super) fn drop() -> Drop {
    let end = |address: &str, port: u16, pod: &str| {
        json!({"address": address, "port": port, "k8s": {"namespace": "shop", "pod": pod, "workload": "deployment/cart",
            "service": "redis", "service_by": "original", "services": ["a", "b"], "node": "n1", "container": "c", "unit": "u"}})
    };
    let bare = |address: &str| json!({"address": address, "port": 1, "k8s": null});
    let pair = json!({"source": bare("10.0.0.1"), "destination": bare("10.0.0.2")});
    let rule =
        json!({"table": "mangle", "chain": "PREROUTING", "rule": 4, "handle": null, "text": "-j MARK"});
    let netfilter = json!({"backend": "legacy", "family": "ipv4", "hook": "FORWARD", "table": "filter", "chain": "cali-tw",
                "rule": 7, "handle": 12, "text": "-A cali-tw -m comment --comment \"\u{1b}[31m\" -j DROP",
                "verdict": "drop", "reject_with": "icmp-host-prohibited", "owner": "calico", "function": "nf_conntrack_in",
                "program": null, "other_backend": "iptables-nft has filter:KUBE-FORWARD", "mark_set_by": [rule], "candidates": [rule, rule], "method": "counter",
                "confidence": "exact"});
    let cilium = json!({"code": 133, "name": "POLICY", "message": "Policy denied", "extended_error": -1,
                "extended_message": "x", "verdict_by": "default-deny", "endpoint": 7, "direction": "ingress",
                "source_identity": {"id": 2, "labels": ["reserved:world"]}, "destination_identity": null,
                "source_prefix": "0.0.0.0/0", "destination_prefix": null, "policies": [], "entry": null, "nearest": [],
                "allowed_now": false, "program": "cil_from_container", "file": "bpf_lxc.c", "line": 1234,
                "notes": ["one"], "unread": []});
    serde_json::from_value(json!({
        "time": "2026-11-20T22:14:03.112345Z", "time_last": "2026-11-20T22:14:04.000001Z", "node": "n1",
        "count": 5_000_000_000_u64, "segments": 6_000_000_000_u64, "detail": true,
        "source": end("10.244.3.7", 41822, "cart-7c9"), "destination": end("fd00::9", 6379, "redis-0"), "original": pair,
        "network": {"family": "ipv4", "transport": "tcp", "interface": "veth1", "interface_in": "veth1",
            "interface_out": "eth0", "netns": 4_026_532_281_u32, "netns_by": "hook-state"},
        "packet": {"length": 60, "mark": 4_294_967_295_u32, "ttl": 255, "ip_id": 65_535, "tcp_flags": "SYN", "icmp_type": 8,
            "icmp_code": 1, "icmp_id": 65_535, "icmp_sequence": 9, "segments": 1, "fragment": false},
        "conntrack": {"state": "new", "direction": "original", "status": "src_nat", "zone": 65_535, "mark": 7,
            "tcp_state": "SYN_SENT", "original": pair, "reply": pair},
        "inner": {"type": "vxlan", "vni": 1, "source": bare("10.1.0.1"), "destination": bare("10.1.0.2"), "transport": "udp"},
        "drop": {"reason": "NETFILTER_DROP", "subsystem": "core", "location": "nf_hook_slow+0x7d", "class": "policy",
            "netfilter": netfilter, "cilium": cilium,
            "bpf": {"hook": "INGRESS", "interface": "eth0", "attached": "tcx", "classifier": null, "priority": null,
                "handle": null, "program": "p", "id": 3, "tag": null, "pinned": null, "confidence": "exact",
                "candidates": [], "more": false},
            "cause": {"id": "calico-default-deny", "severity": "error", "why": "w", "fix": "f", "confidence": "exact",
                "owner": "o", "resets": "r", "others": ["foreign-rule"],
                "evidence": [{"name": "net.x", "value": "1", "source": "sysctl", "change": 2}]}},
        "stack": ["kfree_skb_reason+0x1", "nf_hook_slow+0x7d"],
    }))
    .unwrap_or_else(|error| panic!("{error}"))
}
