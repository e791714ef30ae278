use super::*;
use crate::cilium::{
    identity::Identity,
    maps::Direction,
    model::{Cilium, Policy},
};
use crate::event::model::{
    Conntrack, Endpoint, Inner, K8s, LostPlace, Network, Original, Packet, Reason, Timestamp,
};
use crate::netfilter::model::{Backend, Family, Netfilter, RuleRef};
use crate::netfilter::program::Program;
use crate::tc::model::{Bpf, Filter};
use serde_json::json;
use std::io;
use std::net::SocketAddr;

fn at(milliseconds: u64) -> Now {
    let start: jiff::Timestamp = "2026-11-20T22:14:03.112Z".parse().unwrap();
    let wall = start.as_nanosecond() + i128::from(milliseconds) * 1_000_000;
    Now { elapsed: Duration::from_millis(milliseconds), wall: Timestamp(wall) }
}

fn end(text: &str) -> Endpoint {
    let address: SocketAddr = text.parse().unwrap();
    Endpoint { address: Some(address.ip()), port: Some(address.port()), k8s: None }
}

fn host(text: &str) -> Endpoint {
    Endpoint { address: text.parse().ok(), port: None, k8s: None }
}

/// A SYN that nobody listens for, `milliseconds` after the start.
fn no_socket(milliseconds: u64, count: u64) -> Drop {
    let time = at(milliseconds).wall;
    Drop {
        time,
        time_last: time,
        count,
        segments: count,
        detail: true,
        source: end("10.0.0.1:41822"),
        destination: end("10.0.0.2:6379"),
        network: Network {
            family: Some("ipv4".into()),
            transport: Some("tcp".into()),
            interface: Some("veth1".into()),
            netns: Some(4_026_532_281),
            netns_by: Some("device".into()),
            ..Network::default()
        },
        packet: Packet {
            length: Some(60),
            mark: Some(0),
            ttl: Some(63),
            ip_id: Some(777),
            tcp_flags: Some("SYN".into()),
            segments: Some(1),
            ..Packet::default()
        },
        drop: Reason {
            reason: Some("NO_SOCKET".into()),
            subsystem: Some("core".into()),
            location: Some("tcp_v4_rcv+0x1f".into()),
            ..Reason::default()
        },
        ..Drop::default()
    }
}

/// The contract's example.
fn shop(milliseconds: u64) -> Drop {
    let k8s = |pod: &str, service: Option<&str>| {
        Some(K8s {
            namespace: Some("shop".into()),
            pod: Some(pod.into()),
            workload: None,
            service: service.map(str::to_owned),
            ..K8s::default()
        })
    };
    let mut drop = no_socket(milliseconds, 3);
    drop.source = Endpoint { k8s: k8s("cart-7c9", None), ..end("10.244.3.7:41822") };
    drop.destination = Endpoint { k8s: k8s("redis-0", Some("redis")), ..end("10.244.1.9:6379") };
    drop.original = Some(Original { source: end("10.244.3.7:41822"), destination: end("10.96.3.4:6379") });
    drop.network.interface_in = Some("veth1".into());
    drop.network.interface_out = Some("eth0".into());
    drop.drop = Reason {
        reason: Some("NETFILTER_DROP".into()),
        location: Some("nf_hook_slow+0x7d".into()),
        class: Class::Policy,
        netfilter: Some(Box::new(Netfilter {
            backend: Some(Backend::Legacy),
            family: Some(Family::Ipv4),
            hook: Some("FORWARD".into()),
            rule: Some(7),
            verdict: Some("drop".into()),
            ..chain("filter", "cali-tw-cali9f3")
        })),
        cause: Some(Cause {
            id: "calico-default-deny".into(),
            why: "default deny: no NetworkPolicy that selects shop/redis-0 allows this ingress".into(),
            fix: "add an ingress rule for app=cart port 6379; policies on the pod: shop/redis-deny".into(),
            ..Cause::default()
        }),
        ..Reason::default()
    };
    drop
}

fn routine(count: u64) -> Drop {
    let mut drop = no_socket(0, count);
    drop.drop.class = Class::Routine;
    drop.drop.cause = Some(Cause { id: "unix-socket".into(), ..Cause::default() });
    drop
}

fn record(drop: Drop) -> Record {
    Record::Drop(Box::new(drop))
}

/// What is printed for records at given times, with a tick at each time, and the summary.
fn run(settings: &Settings, records: &[(u64, Record)], end: u64) -> (String, String, Summary) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut printer = Printer::new(settings.clone(), &mut out, &mut err);
    for (milliseconds, record) in records {
        let now = at(*milliseconds);
        if printer.tick(now).is_break() || printer.record(record, now).is_break() {
            break;
        }
    }
    let _ = printer.tick(at(end));
    let (summary, _) = printer.finish(at(end));
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), summary)
}

fn one(format: Format, drop: Drop) -> String {
    run(&Settings { format, ..Settings::default() }, &[(0, record(drop))], 0).0
}

#[test]
fn compact_is_the_contract() {
    assert_eq!(
        one(Format::Compact, shop(0)),
        "22:14:03.112  shop/cart-7c9:41822 -> shop/redis-0:6379 (svc redis 10.96.3.4)  TCP SYN  DROP  \
         filter:cali-tw-cali9f3:rule:7 (FORWARD, legacy)  veth1->eth0  x3\n              \
         why: default deny: no NetworkPolicy that selects shop/redis-0 allows this ingress\n              \
         fix: add an ingress rule for app=cart port 6379; policies on the pod: shop/redis-deny\n"
    );
    assert_eq!(
        one(Format::Compact, no_socket(0, 3)),
        "22:14:03.112  10.0.0.1:41822 -> 10.0.0.2:6379  TCP SYN  DROP  NO_SOCKET tcp_v4_rcv+0x1f  veth1  x3\n"
    );
}

#[test]
fn compact_without_much_to_say() {
    let line = |change: fn(&mut Drop)| {
        let mut drop = no_socket(0, 1);
        change(&mut drop);
        one(Format::Compact, drop).split_off("22:14:03.112  ".len())
    };
    assert_eq!(
        line(|drop| {
            (drop.source, drop.destination) = (end("[fd00::1]:1"), host("fd00::2"));
            drop.network.transport = Some("icmpv6".into());
            drop.packet = Packet { icmp_type: Some(128), icmp_code: Some(0), ..Packet::default() };
        }),
        "[fd00::1]:1 -> fd00::2  ICMPv6 echo-request(128/0)  DROP  NO_SOCKET tcp_v4_rcv+0x1f  veth1\n"
    );
    assert_eq!(
        line(|drop| {
            (drop.source, drop.destination) = (host("10.0.0.1"), host("10.0.0.2"));
            drop.network.transport = Some("icmp".into());
            drop.packet = Packet { icmp_type: Some(3), icmp_code: Some(1), ..Packet::default() };
            drop.drop.reason = None;
        }),
        "10.0.0.1 -> 10.0.0.2  ICMP host-unreachable(3/1)  DROP  tcp_v4_rcv+0x1f  veth1\n"
    );
    assert_eq!(
        line(|drop| {
            (drop.source, drop.destination) = Default::default();
            drop.network.family = Some("arp".into());
            drop.network.transport = None;
            drop.packet = Packet::default();
            drop.network.interface_out = Some("eth0".into());
        }),
        "ARP  DROP  NO_SOCKET tcp_v4_rcv+0x1f  ->eth0\n"
    );
    assert_eq!(
        line(|drop| {
            *drop = Drop { time: drop.time, count: 1204, ..Drop::default() };
            drop.network.netns = Some(7);
        }),
        "no detail  DROP  unknown reason  netns 7  x1204\n"
    );
    assert_eq!(
        line(|drop| {
            drop.network.transport = Some("47".into());
            drop.packet = Packet { fragment: Some(true), ..Packet::default() };
            drop.original = Some(Original { source: end("10.0.0.1:1"), destination: end("10.96.0.1:443") });
        }),
        "10.0.0.1:41822 -> 10.0.0.2:6379 (dialled 10.96.0.1:443)  protocol 47 fragment  DROP  NO_SOCKET \
         tcp_v4_rcv+0x1f  veth1\n"
    );
}

#[test]
fn rules_have_the_spelling_of_their_backend() {
    let place = |netfilter| {
        let mut drop = no_socket(0, 1);
        drop.drop.netfilter = Some(Box::new(netfilter));
        words::place(&drop)
    };
    let nft = Netfilter { backend: Some(Backend::Nft), family: Some(Family::Inet), ..chain("t", "c") };
    assert_eq!(place(Netfilter { handle: Some(12), ..nft.clone() }), "inet:t:c:handle:12 (nft)");
    let both = Netfilter { rule: Some(2), handle: Some(12), hook: Some("INPUT".into()), ..nft };
    assert_eq!(place(both), "t:c:rule:2 (INPUT, nft)");
    let policy = Netfilter {
        backend: Some(Backend::Legacy),
        hook: Some("FORWARD".into()),
        verdict: Some("policy".into()),
        ..chain("filter", "FORWARD")
    };
    assert_eq!(place(policy), "filter:FORWARD:policy (FORWARD, legacy)");
    let function = Netfilter {
        hook: Some("PREROUTING".into()),
        function: Some("nf_conntrack_in".into()),
        ..Netfilter::default()
    };
    assert_eq!(place(function.clone()), "NO_SOCKET nf_conntrack_in (PREROUTING)");
    let program = Netfilter {
        verdict: Some("drop".into()),
        function: Some("nf_hook_run_bpf".into()),
        program: Some(Program { id: 42, name: "guard\x1b".into() }),
        ..function.clone()
    };
    assert_eq!(place(program), "NO_SOCKET nf_hook_run_bpf guard\\x1b id 42 (PREROUTING)");
    let full = Netfilter { verdict: Some("conntrack-table-full".into()), ..function };
    assert_eq!(place(full.clone()), "conntrack-table-full nf_conntrack_in (PREROUTING)");
    let mut drop = no_socket(0, 1);
    drop.drop.netfilter = Some(Box::new(full));
    assert!(one(Format::Iptables, drop).starts_with("DROP: conntrack-table-full IN="));
    let unknown = Netfilter { hook: Some("FORWARD".into()), ..Netfilter::default() };
    assert_eq!(place(unknown), "NO_SOCKET tcp_v4_rcv+0x1f");
}

#[test]
fn the_place_of_a_program() {
    let place = |filter: Filter| {
        let mut drop = no_socket(0, 1);
        let (hook, interface) = ("INGRESS".into(), Some("eth0".into()));
        drop.drop.bpf = Some(Box::new(Bpf { hook, interface, filter, ..Bpf::default() }));
        words::place(&drop)
    };
    let program = Filter {
        attached: Some("tcx".into()),
        program: Some("a\x1b".into()),
        id: Some(7),
        ..Filter::default()
    };
    assert_eq!(place(program), "tc:INGRESS:a\\x1b:id:7 (eth0, tcx)");
    let gone = Filter { id: Some(7), ..Filter::default() };
    assert_eq!(place(gone), "tc:INGRESS:?:id:7 (eth0)");
    let classic = Filter {
        attached: Some("clsact".into()),
        classifier: Some("u32".into()),
        priority: Some(49152),
        ..Filter::default()
    };
    assert_eq!(place(classic), "tc:INGRESS:u32:pref:49152 (eth0, clsact)");
    let netkit =
        Bpf { hook: "NETKIT".into(), filter: Filter { id: Some(7), ..Filter::default() }, ..Bpf::default() };
    assert_eq!(words::filter(&netkit).as_deref(), Some("netkit:?:id:7"));
    assert_eq!(place(Filter::default()), "NO_SOCKET tcp_v4_rcv+0x1f");
}

#[test]
fn the_place_of_ciliums_verdict() {
    let identity =
        |id, label: Option<&str>| Some(Identity { id, labels: label.map(|label| vec![label.to_owned()]) });
    let denied = Cilium {
        code: Some(133),
        name: Some("POLICY".into()),
        message: "Policy denied".into(),
        endpoint: Some(2636),
        direction: Some(Direction::Ingress),
        source_identity: identity(2, Some("reserved:world")),
        destination_identity: identity(12345, None),
        ..Cilium::default()
    };
    let mut drop = no_socket(0, 1);
    drop.drop.cilium = Some(Box::new(denied));
    let wanted =
        "cilium:133:POLICY Policy denied (endpoint 2636 ingress, identity 2 reserved:world -> 12345)";
    assert_eq!(words::place(&drop), wanted);
    assert!(one(Format::Iptables, drop.clone()).starts_with("DROP: cilium:133:POLICY IN="));
    let policy = |namespace: Option<&str>, name: &str| Policy {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        kind: "NetworkPolicy".into(),
        why_not: Some("needs app=\x1b[2J".into()),
    };
    let mut answer = Cilium { code: Some(133), message: "Policy denied".into(), ..Cilium::default() };
    for (policies, wanted) in [
        (vec![], "none"),
        (vec![policy(Some("shop"), "redis\x1b"), policy(None, "all")], "shop/redis\\x1b, all"),
        (vec![policy(None, "a"); 5], "a, a, a, 2 more"),
    ] {
        answer.policies = Some(policies);
        drop.drop.cilium = Some(Box::new(answer.clone()));
        assert_eq!(words::place(&drop), format!("cilium:133 Policy denied (policies on the pod: {wanted})"));
    }
    answer.policies = Some(vec![policy(Some("shop"), "deny")]);
    drop.drop.cilium = Some(Box::new(answer));
    let wide = words::wide(&drop);
    assert!(wide.contains(&"policy NetworkPolicy shop/deny: needs app=\\x1b[2J".to_owned()), "{wide:?}");
    drop.drop.cilium = Some(Box::new(Cilium { message: "no\x1b metadata".into(), ..Cilium::default() }));
    assert_eq!(words::place(&drop), "cilium no\\x1b metadata");
}

#[test]
fn wide_tells_the_rule() {
    let mut drop = no_socket(0, 1);
    drop.drop.netfilter = Some(Box::new(Netfilter {
        rule: Some(2),
        verdict: Some("reject".into()),
        reject_with: Some("icmp-host-prohibited".into()),
        owner: Some("kubelet".into()),
        text: Some("-A X -m comment --comment \"\x1b[2J\" -j REJECT".into()),
        mark_set_by: vec![RuleRef { rule: Some(1), ..rule_ref("nat", "KUBE-MARK-DROP") }],
        ..chain("filter", "X")
    }));
    let fields = words::wide(&drop).join("  ");
    for part in [
        "verdict reject  with icmp-host-prohibited  owner kubelet  rule -A X -m comment",
        "mark-set-by nat:KUBE-MARK-DROP:rule:1",
        "confidence ambiguous",
    ] {
        assert!(fields.contains(part), "{part}: {fields}");
    }
    assert!(!fields.contains('\x1b'));
}

fn rule_ref(table: &str, chain: &str) -> RuleRef {
    RuleRef { table: table.into(), chain: chain.into(), ..RuleRef::default() }
}

fn chain(table: &str, chain: &str) -> Netfilter {
    Netfilter { table: Some(table.into()), chain: Some(chain.into()), ..Netfilter::default() }
}

#[test]
fn wide_adds_the_rest() {
    let mut drop = no_socket(0, 2);
    drop.packet.mark = Some(0x4000);
    drop.packet.segments = Some(3);
    drop.node = "n1".into();
    drop.conntrack = Some(Conntrack {
        state: "new".into(),
        direction: Some("original".into()),
        status: "confirmed,dst-nat".into(),
        zone: Some(0),
        mark: Some(1),
        tcp_state: Some("SYN_SENT".into()),
        original: Original { source: end("10.0.0.1:41822"), destination: end("10.96.3.4:80") },
        reply: Original { source: end("10.0.0.2:6379"), destination: end("10.0.0.1:41822") },
    });
    drop.inner = Some(Inner {
        kind: "vxlan".into(),
        vni: Some(1),
        source: host("10.1.0.1"),
        destination: host("10.1.0.2"),
        transport: Some("udp".into()),
    });
    assert_eq!(
        one(Format::Wide, drop),
        "22:14:03.112  10.0.0.1:41822 -> 10.0.0.2:6379  TCP SYN  DROP  NO_SOCKET tcp_v4_rcv+0x1f  veth1  \
         class error  netns 4026532281 (by device)  dev veth1  length 60  segments 3  ttl 63  ip-id 777  \
         mark 0x4000  subsystem core  ct new original confirmed,dst-nat SYN_SENT zone 0 mark 0x1  \
         ct-original 10.0.0.1:41822 -> 10.96.3.4:80  ct-reply 10.0.0.2:6379 -> 10.0.0.1:41822  \
         inner vxlan vni 1 10.1.0.1 -> 10.1.0.2 udp  node n1  x2\n"
    );
}

#[test]
fn iptables_lines_parse_as_log_lines() {
    assert_eq!(
        one(Format::Iptables, shop(0)),
        "DROP: filter:cali-tw-cali9f3:rule:7 IN=veth1 OUT=eth0 SRC=10.244.3.7 DST=10.244.1.9 LEN=60 TTL=63 ID=777 \
         PROTO=TCP SPT=41822 DPT=6379 SYN COUNT=3\n"
    );
    let mut drop = no_socket(0, 1);
    (drop.source, drop.destination) = (host("fd00::1"), host("fd00::2"));
    drop.network.family = Some("ipv6".into());
    drop.network.transport = Some("icmpv6".into());
    drop.packet.tcp_flags = None;
    drop.packet.mark = Some(1);
    (drop.packet.icmp_type, drop.packet.icmp_code) = (Some(128), Some(0));
    (drop.packet.icmp_id, drop.packet.icmp_sequence) = (Some(5), Some(6));
    assert_eq!(
        one(Format::Iptables, drop),
        "DROP: NO_SOCKET IN=veth1 OUT= SRC=fd00:0000:0000:0000:0000:0000:0000:0001 \
         DST=fd00:0000:0000:0000:0000:0000:0000:0002 LEN=60 HOPLIMIT=63 PROTO=ICMPv6 TYPE=128 CODE=0 ID=5 SEQ=6 \
         MARK=0x1\n"
    );
}

#[test]
fn json_is_the_record_and_nothing_else() {
    let mut drop = no_socket(0, 3);
    drop.stack = vec!["a+0x1".into()];
    let settings = Settings { format: Format::Json, stack: true, ..Settings::default() };
    let lost = Record::Lost(Lost { time: at(5).wall, count: 2, place: LostPlace::Ring });
    let records = [(0, record(drop.clone())), (5, lost.clone()), (6, record(drop.clone()))];
    let (out, _, _) = run(&settings, &records, 6);
    let lines: Vec<Record> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, [record(drop.clone()), lost, record(drop.clone())]);
    assert_eq!(out.lines().next().unwrap(), serde_json::to_string(&record(drop.clone())).unwrap());
    assert!(out.starts_with(r#"{"type":"drop","time":"2026-11-20T22:14:03.112000Z","#), "{out}");
    // Without --stack there is none.
    assert!(!one(Format::Json, drop).contains("stack"));
}

#[test]
fn repeats_within_a_second_collapse() {
    let records: Vec<_> = [0, 100, 300, 999, 1500, 4000].map(|t| (t, record(no_socket(t, 1)))).to_vec();
    let (out, _, _) = run(&Settings::default(), &records, 6000);
    let rest = "  10.0.0.1:41822 -> 10.0.0.2:6379  TCP SYN  DROP  NO_SOCKET tcp_v4_rcv+0x1f  veth1";
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines,
        [
            format!("22:14:03.112{rest}"),
            format!("22:14:04.111{rest}  x3"),
            format!("22:14:04.612{rest}"),
            format!("22:14:07.112{rest}"),
        ]
    );
}

#[test]
fn counts_only_take_the_detail_of_their_flow() {
    let mut counts = no_socket(200, 40);
    (counts.detail, counts.packet) = (false, Packet::default());
    counts.network.interface = None;
    let records = [(0, record(no_socket(0, 1))), (200, record(counts))];
    let (out, _, _) = run(&Settings::default(), &records, 2000);
    assert!(out.ends_with("TCP SYN  DROP  NO_SOCKET tcp_v4_rcv+0x1f  veth1  x40\n"), "{out}");
}

#[test]
fn a_terminal_gets_thirty_lines_a_second() {
    let flow = |port: u16| {
        let mut drop = no_socket(10, 1);
        drop.source.port = Some(port);
        (10, record(drop))
    };
    let records: Vec<_> = (0..100).map(flow).collect();
    let (out, _, _) = run(&Settings { terminal: true, ..Settings::default() }, &records, 1500);
    assert_eq!(out.lines().count(), 31, "{out}");
    assert_eq!(
        out.lines().last().unwrap(),
        "22:14:03.122  … 70 similar drops suppressed  NO_SOCKET tcp_v4_rcv+0x1f  netns 4026532281"
    );
    let (out, _, _) = run(&Settings::default(), &records, 1500);
    assert_eq!(out.lines().count(), 100, "a pipe gets all");
    let json = Settings { format: Format::Json, rate_limit: Some(2), ..Settings::default() };
    let (out, _, _) = run(&json, &records, 1500);
    let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((out.lines().count(), &last["count"], &last["detail"]), (3, &json!(98), &json!(false)));
    assert_eq!(last["drop"]["reason"], "NO_SOCKET");
    assert_eq!(last["source"]["address"], json!(null));
}

#[test]
fn a_cause_is_explained_once_per_pod() {
    let mut other = shop(2);
    other.destination.k8s.as_mut().unwrap().pod = Some("redis-1".into());
    let records = [(0, record(shop(0))), (1, record(shop(1500))), (2, record(other))];
    let (out, _, _) = run(&Settings::default(), &records, 3000);
    assert_eq!(out.matches("why: ").count(), 2, "{out}");
}

#[test]
fn routine_is_hidden_counted_and_shown_on_demand() {
    let records = [(0, record(routine(1200))), (1, record(routine(4)))];
    let (out, err, summary) = run(&Settings::default(), &records, 10_000);
    assert_eq!(out, "");
    assert_eq!(
        err,
        "22:14:13.112  -- 1,204 routine drops hidden, 0 events lost --\n\
         -- 10.0 s: 0 drops, 1,204 routine drops hidden, 0 events lost --\n\
         hidden (--all shows them): 1,204 unix-socket\n"
    );
    assert_eq!((summary.drops, summary.hidden_total()), (0, 1204));
    let (out, _, _) = run(&Settings { all: true, ..Settings::default() }, &records[..1], 0);
    assert!(out.contains("  DROP  NO_SOCKET tcp_v4_rcv+0x1f  routine:unix-socket  veth1  x1200\n"), "{out}");
}

#[test]
fn notices_come_only_with_news() {
    let mut err = Vec::new();
    let mut printer = Printer::new(Settings::default(), io::sink(), &mut err);
    let _ = printer.tick(at(10_000));
    let _ = printer.record(&record(routine(1)), at(10_500));
    for milliseconds in (11_000..60_000).step_by(100) {
        let _ = printer.tick(at(milliseconds));
    }
    drop(printer);
    assert_eq!(String::from_utf8(err).unwrap(), "22:14:23.112  -- 1 routine drop hidden, 0 events lost --\n");
}

#[test]
fn losses_are_said_in_the_stream() {
    let lost = |place, count| (0, Record::Lost(Lost { time: at(0).wall, count, place }));
    let records = [lost(LostPlace::Ring, 12), lost(LostPlace::Recursion, 1)];
    let (out, err, summary) = run(&Settings::default(), &records, 1000);
    assert_eq!(
        out,
        "22:14:03.112  -- 12 events lost (ring): detail lost, counts kept --\n\
         22:14:03.112  -- 1 drop missed (recursion): not counted anywhere else --\n"
    );
    assert_eq!(
        err,
        "-- 1.0 s: 0 drops, 0 routine drops hidden, 13 events lost --\nlost: 12 ring, 1 recursion\n"
    );
    assert_eq!(summary.lost_total(), 13);
}

#[test]
fn the_summary_ranks_kinds() {
    let kind = |location: &str, count| {
        let mut drop = no_socket(0, count);
        drop.drop.location = Some(location.into());
        drop.segments = count * 2;
        (0, record(drop))
    };
    let mut records: Vec<_> = (1..=6).map(|n| kind(&format!("f{n}"), n * 1000)).collect();
    records.push((0, record(shop(0))));
    let (_, err, _) = run(&Settings::default(), &records, 12_340);
    let expected = "-- 12.3 s: 21,003 drops (42,003 segments), 0 routine drops hidden, 0 events lost --
       6,000   28.5%  NO_SOCKET f6  netns 4026532281
       5,000   23.8%  NO_SOCKET f5  netns 4026532281
       4,000   19.0%  NO_SOCKET f4  netns 4026532281
       3,000   14.2%  NO_SOCKET f3  netns 4026532281
       2,000    9.5%  NO_SOCKET f2  netns 4026532281
       1,003    4.7%  others
";
    assert_eq!(err, expected);
    let (_, err, _) = run(&Settings::default(), &records[6..], 0);
    assert!(
        err.contains(
            "3  100.0%  filter:cali-tw-cali9f3:rule:7 (FORWARD, legacy)  calico-default-deny  \
         shop/cart-7c9 -> shop/redis-0 (svc redis)\n                      fix: add an ingress rule"
        ),
        "{err}"
    );
}

#[test]
fn stacks_are_indented_and_printed_on_demand() {
    let mut drop = no_socket(0, 1);
    drop.stack = vec!["tcp_v4_rcv+0x1f".into(), "ip_local_deliver+0x2 [mod\u{1b}]".into()];
    assert_eq!(one(Format::Compact, drop.clone()).lines().count(), 1);
    let (out, _, _) = run(&Settings { stack: true, ..Settings::default() }, &[(0, record(drop))], 0);
    let frames: Vec<&str> = out.lines().skip(1).collect();
    assert_eq!(frames, ["              tcp_v4_rcv+0x1f", "              ip_local_deliver+0x2 [mod\\x1b]"]);
}

#[test]
fn colour_only_when_asked_and_never_from_outside() {
    let mut drop = no_socket(0, 1);
    drop.network.interface = Some("\u{1b}[31m".into());
    for format in [Format::Compact, Format::Wide, Format::Iptables, Format::Json] {
        assert!(!one(format, drop.clone()).contains('\u{1b}'), "{format:?}");
    }
    let (out, _, _) = run(&Settings { color: true, ..Settings::default() }, &[(0, record(drop))], 0);
    assert!(out.contains("\u{1b}[1m\u{1b}[31mDROP\u{1b}[0m"), "{out:?}");
    assert!(out.contains("\\x1b[31m\n"), "{out:?}");
}

#[test]
fn count_ends_the_run_and_nothing_vanishes() {
    let mut records: Vec<_> = (0..4).map(|_| (0, record(no_socket(0, 1)))).collect();
    records.push((0, record(shop(0))));
    records.push((0, record(shop(0))));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut printer = Printer::new(Settings { count: Some(2), ..Settings::default() }, &mut out, &mut err);
    let stop = records.iter().find_map(|(_, record)| printer.record(record, at(0)).break_value());
    assert!(matches!(stop, Some(Stop::Count)));
    let (summary, _) = printer.finish(at(1));
    assert_eq!(String::from_utf8(out).unwrap().matches("DROP").count(), 2);
    // The last record was not handed in any more: 1 + 3 folded + 3.
    assert_eq!((summary.drops, summary.unprinted), (7, 3));
}

/// A reader that went away after some writes.
struct Gone(u32, io::ErrorKind);

impl Write for Gone {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(self.1.into());
        }
        self.0 -= 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_goes_away_is_a_clean_end() {
    let stop_with = |kind| {
        let mut printer = Printer::new(Settings::default(), Gone(1, kind), io::sink());
        assert!(printer.record(&record(no_socket(0, 1)), at(0)).is_continue());
        let stop = printer.record(&record(shop(0)), at(0)).break_value();
        assert_eq!(printer.finish(at(0)).0.drops, 4);
        stop
    };
    assert!(matches!(stop_with(io::ErrorKind::BrokenPipe), Some(Stop::BrokenPipe)));
    assert!(matches!(stop_with(io::ErrorKind::StorageFull), Some(Stop::Output(_))));
}

/// xorshift64 (Marsaglia).
fn random(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % bound
}

/// The drops that a line of text stands for.
fn printed(line: &str) -> u64 {
    if let Some((_, rest)) = line.split_once("… ") {
        return rest.split(' ').next().unwrap().replace(',', "").parse().unwrap();
    }
    if let Some((_, count)) = line.rsplit_once(" COUNT=") {
        return count.parse().unwrap();
    }
    match line.rsplit_once("  x") {
        Some((_, count)) if count.bytes().all(|c| c.is_ascii_digit()) => count.parse().unwrap(),
        _ => u64::from(line.contains("DROP")),
    }
}

#[test]
fn printed_and_hidden_add_up() {
    let mut state = 0x2545_f491_4f6c_dd1d;
    for case in 0..80 {
        let format = [Format::Compact, Format::Wide, Format::Iptables, Format::Json][case % 4];
        let settings = Settings {
            format,
            terminal: random(&mut state, 2) == 0,
            all: random(&mut state, 4) == 0,
            rate_limit: (random(&mut state, 2) == 0).then(|| 1 + u32::try_from(case).unwrap() % 7),
            count: (random(&mut state, 5) == 0).then(|| 1 + random(&mut state, 40)),
            ..Settings::default()
        };
        let (mut out, mut now, mut total) = (Vec::new(), 0, 0);
        let mut printer = Printer::new(settings.clone(), &mut out, io::sink());
        for _ in 0..400 {
            now += random(&mut state, 30) * random(&mut state, 4);
            let mut drop = match random(&mut state, 6) {
                0 => routine(1),
                1 => shop(now),
                2 => Drop { time: at(now).wall, time_last: at(now).wall, ..Drop::default() },
                _ => no_socket(now, 1),
            };
            drop.count = 1 + random(&mut state, 3) * random(&mut state, 500);
            drop.drop.location = Some(format!("f{}", random(&mut state, 300)));
            drop.source.port = Some(u16::try_from(random(&mut state, 5)).unwrap());
            drop.detail = random(&mut state, 2) == 0;
            total += drop.count;
            if printer.record(&record(drop), at(now)).is_break() {
                break;
            }
            if random(&mut state, 8) == 0 && printer.tick(at(now)).is_break() {
                break;
            }
        }
        let (summary, _) = printer.finish(at(now));
        let text = String::from_utf8(out).unwrap();
        let sum: u64 = text
            .lines()
            .map(|line| match format {
                Format::Json => {
                    serde_json::from_str::<serde_json::Value>(line).unwrap()["count"].as_u64().unwrap()
                }
                _ => printed(line),
            })
            .sum();
        assert_eq!(sum + summary.unprinted, summary.drops, "{settings:?}\n{text}");
        assert_eq!(summary.drops + summary.hidden_total(), total, "{settings:?}");
        assert!(settings.count.is_some() || summary.unprinted == 0);
    }
}
