//! Causes as a user meets them: lines for people in both languages, filters, causes of one's own, recordings.

use super::expect::{Expect, verify, watch, watch_alone};
use super::{beside, here_only, skip};
use crate::bed::backend::Backend;
use crate::bed::droptrace::{ATTACHED, Droptrace, Output, command as droptrace};
use crate::bed::packet::{self, tcp_flag};
use crate::bed::patience;
use crate::bed::queue;
use crate::bed::record::Record;
use crate::bed::topology::{Bridged, Family, Pair, Routed};
use crate::bed::{send, xdp};
use anyhow::{Context, Result, ensure};
use aya::programs::XdpMode;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    // What they show is the same on every kernel.
    here_only([
        beside("causes::for_people", for_people),
        beside("causes::of_ones_own", of_ones_own),
        beside("causes::filter", filter),
        beside("causes::counted_by", counted_by),
        beside("causes::recorded_without", recorded_without),
        beside("causes::without_meaning", without_meaning),
        beside("causes::no_mark_drop_chain", no_mark_drop_chain),
        beside("causes::dns_race", dns_race),
        beside("causes::mixed_backends", mixed_backends),
        beside("causes::no_vxlan_peer", no_vxlan_peer),
        beside("causes::stale_dnat", stale_dnat),
        beside("causes::nodeport_conflict", nodeport_conflict),
        beside("causes::ipvs_bad_port", ipvs_bad_port),
        beside("causes::queue_verdict", queue_verdict),
        beside("causes::others_say_no", others_say_no),
        beside("causes::not_as_agreed", not_as_agreed),
        beside("causes::no_bridge_port", no_bridge_port),
    ])
}

/// Ports that nobody listens on, and one that a rule drops.
const NOBODY: u16 = 9;
const RULE: u16 = 4242;

fn send(pair: &Pair, port: u16) -> Result<()> {
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, port));
    pair.client.inject(&[packet::udp(from, to, b"x")])
}

/// A droptrace in the server's network namespace.
fn start(pair: &Pair, arguments: &[&str]) -> Result<Droptrace> {
    let inode = pair.server.netns.inode().to_string();
    let mut command = droptrace(arguments)?;
    command.args(["--netns", &inode]).env("LC_ALL", "C.UTF-8");
    let started = Droptrace::spawn(command)?;
    started.wait("attached", |output| output.stderr.contains(ATTACHED))?;
    Ok(started)
}

fn with_rule() -> Result<Pair> {
    let pair = Pair::new()?;
    super::rules::chain(&pair.server.netns, "inet", "input", &format!("udp dport {RULE} drop"))?;
    Ok(pair)
}

/// What is printed for two drops of one cause.
fn lines(arguments: &[&str]) -> Result<Vec<String>> {
    let pair = Pair::new()?;
    let stream = start(&pair, &[arguments, &["-c", "2"]].concat())?;
    send(&pair, NOBODY)?;
    send(&pair, NOBODY + 1)?;
    let ended = stream.end()?;
    ended.expect_code(0)?;
    Ok(ended.output.strays)
}

fn count(lines: &[String], words: &str) -> usize {
    lines.iter().filter(|line| line.contains(words)).count()
}

/// Why and what to do are said once, in the language that was asked for; `-v` tells more.
fn for_people() -> Result<()> {
    let english = lines(&[])?;
    let [why, fix] = ["why: Nothing in the network namespace", "fix: Compare the Service's targetPort"];
    ensure!(count(&english, why) == 1 && count(&english, fix) == 1, "{english:#?}");
    ensure!(count(&english, "cause:") == 0, "{english:#?}");
    let chinese = lines(&["--lang", "zh", "-v"])?;
    for words in [
        "没有进程监听 udp 端口 9。",
        "fix: 核对 Service 的 targetPort",
        "ask: owner of the receiver",
        "cause: no-listener",
    ] {
        ensure!(count(&chinese, words) == 1, "{words:?} is not once in {chinese:#?}");
    }
    Ok(())
}

/// A cause from a file comes before the others.
fn of_ones_own() -> Result<()> {
    let pair = with_rule()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("own.toml");
    fs::write(
        &file,
        "[[cause]]\nid = \"known-port\"\nseverity = \"warning\"\nwhen = { destination_port = 4242 }\n\
         why = \"Port {destination_port} is closed on purpose.\"\nfix = { en = \"Nothing.\", zh = \"无需处理。\" }\n",
    )?;
    let file = file.to_str().context("a path that is text")?;
    let stream = start(&pair, &["-o", "json", "--causes", file])?;
    send(&pair, RULE)?;
    stream.wait("the drop", |output| !output.records.is_empty())?;
    let output = stream.stop()?;
    let cause = output.records.first().context("a drop")?.get("/drop/cause");
    ensure!(cause["id"] == "known-port" && cause["why"] == "Port 4242 is closed on purpose.", "{cause}");
    ensure!(cause["confidence"] == "inferred" && cause["fix"] == "Nothing.", "{cause}");
    Ok(())
}

/// Only drops of a cause, or all but those; counts that no event told included.
fn filter() -> Result<()> {
    const SENT: u64 = 500;
    let pair = with_rule()?;
    let only = start(&pair, &["-o", "json", "--cause", "foreign-*"])?;
    let but = start(&pair, &["-o", "json", "--not", "--cause", "foreign-rule"])?;
    let all = watch()?;
    for _ in 0..SENT {
        send(&pair, RULE)?;
    }
    send(&pair, NOBODY)?;
    let sum =
        |output: &Output| output.records.iter().filter(|it| it.is_drop()).map(Record::count).sum::<u64>();
    let netns = [pair.server.netns.inode()];
    all.wait("all drops", |output| output.drops_in(&netns).map(Record::count).sum::<u64>() > SENT)?;
    all.stop()?;
    only.wait("those of the rule", |output| sum(output) >= SENT)?;
    but.wait("the other one", |output| sum(output) >= 1)?;
    let (only, but) = (only.stop()?, but.stop()?);
    ensure!(sum(&only) == SENT && sum(&but) == 1, "{} and {} of {SENT} and 1", sum(&only), sum(&but));
    let port = |record: &Record| record.number("/destination/port");
    ensure!(
        but.records.iter().filter(|it| it.is_drop()).all(|it| port(it) == Some(NOBODY.into())),
        "{but:?}"
    );
    Ok(())
}

/// A histogram by cause.
fn counted_by() -> Result<()> {
    let pair = with_rule()?;
    let hist = start(&pair, &["hist", "-o", "json", "--by", "cause", "-c", "3"])?;
    for _ in 0..3 {
        send(&pair, RULE)?;
    }
    let ended = hist.end()?;
    ended.expect_code(0)?;
    let groups: Vec<_> = ended.output.records.iter().filter(|it| !it.get("/key").is_null()).collect();
    let found = groups.iter().find(|it| it.get("/key/cause") == "foreign-rule");
    ensure!(found.is_some_and(|it| it.count() == 3), "{groups:?}");
    Ok(())
}

/// A recording keeps its causes. One that has none is explained from what it has: then it is inferred.
fn recorded_without() -> Result<()> {
    let pair = with_rule()?;
    let stream = start(&pair, &["-o", "json"])?;
    send(&pair, RULE)?;
    stream.wait("the drop", |output| !output.records.is_empty())?;
    let output = stream.stop()?;
    let live = output.records.first().context("a drop")?.clone();
    let folder = tempfile::tempdir()?;
    let replay = |record: &Record| -> Result<Record> {
        let file = folder.path().join("part.jsonl");
        fs::write(&file, format!("{}\n", record.0))?;
        let mut command = std::process::Command::new("sh");
        let words = format!(
            "exec \"$DROPTRACE\" replay - -o json --lang zh --cause 'foreign-*' < {}",
            file.display()
        );
        command.args(["-c", &words]);
        let ended = Droptrace::spawn(command)?.end()?;
        ended.expect_code(0)?;
        Ok(ended.output.records.first().context("nothing was replayed")?.clone())
    };
    ensure!(replay(&live)?.0 == live.0, "the recording's own cause did not stay");
    let mut bare = live.clone();
    *bare.0.pointer_mut("/drop/cause").context("a cause")? = Value::Null;
    let told = replay(&bare)?;
    let cause = told.get("/drop/cause");
    ensure!(cause["id"] == "foreign-rule" && cause["confidence"] == "inferred", "{cause}");
    ensure!(cause["why"].as_str().is_some_and(|why| why.starts_with("丢包规则")), "{cause}");
    Ok(())
}

/// A file that makes no sense ends the run, with its line.
fn without_meaning() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("own.toml");
    fs::write(
        &file,
        "# mine\n[[cause]]\nid = \"x\"\nseverity = \"error\"\nwhen = { reasn = \"X\" }\nwhy = \"y\"\n",
    )?;
    let file = file.to_str().context("a path that is text")?;
    for words in [vec!["--causes", file], vec!["replay", "-", "--causes", file]] {
        let ended = Droptrace::spawn(droptrace(&words)?)?.end()?;
        ended.expect_code(2)?;
        let said = format!("{file}:2: cause \"x\": when: there is no fact `reasn`: did you mean `reason`?");
        ensure!(ended.output.stderr.contains(&said), "{}", ended.output.stderr);
    }
    let ended = Droptrace::spawn(droptrace(&["--cause", "conntrak-full"])?)?.end()?;
    ended.expect_code(2)?;
    let said = "--cause conntrak-full: there is no such cause; did you mean conntrack-full";
    ensure!(ended.output.stderr.contains(said), "{}", ended.output.stderr);
    Ok(())
}

/// kube-proxy's rules in the one backend, in filter or in nat alone, and what drops in the other. Healthy: all in one backend, and
/// nothing but empty base chains in the other.
fn mixed_backends() -> Result<()> {
    const KUBE: &str = "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
                        -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\nCOMMIT\n";
    const DROPS: &str = "*filter\n-A FORWARD -p udp -m udp --dport 4242 -j DROP\nCOMMIT\n";
    const NAT: &str = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                       -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j RETURN\nCOMMIT\n";
    const EMPTY: &str = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let [legacy, nft] = [Backend::Legacy, Backend::IptablesNft];
    let (mut expected, mut nodes) = (Vec::new(), Vec::new());
    for (drops, rules, told) in [
        (nft, [(legacy, KUBE), (nft, DROPS)], Some("iptables-legacy has filter:KUBE-FORWARD")),
        (legacy, [(nft, KUBE), (legacy, DROPS)], Some("iptables-nft has filter:KUBE-FORWARD")),
        (nft, [(legacy, NAT), (nft, DROPS)], Some("iptables-legacy has nat:KUBE-SERVICES")),
        (nft, [(nft, KUBE), (nft, DROPS)], None),
        (nft, [(legacy, EMPTY), (nft, DROPS)], None),
    ] {
        let routed = Routed::new()?;
        for (backend, rules) in rules {
            backend.replace(&routed.router, Family::V4, rules)?;
        }
        let ports = (routed.client.port(Family::V4, 40_000), routed.server.port(Family::V4, RULE));
        let others = if told.is_some() { json!(["mixed-iptables"]) } else { json!([]) };
        expected.push(
            Expect::drops(1, &routed.router)
                .flow("udp", ports.0, ports.1)
                .cause("foreign-rule")
                .field("/drop/netfilter/backend", drops.engine())
                .field("/drop/netfilter/other_backend", json!(told))
                .field("/drop/cause/others", others),
        );
        nodes.push((routed, packet::udp(ports.0, ports.1, b"x")));
    }
    let stream = watch_alone()?;
    for (routed, packet) in nodes.iter() {
        routed.client.inject(std::slice::from_ref(packet))?;
    }
    verify(stream, &expected, &[])
}

/// A container's kube-proxy wrote to legacy, while the node's kubelet and firewall write to nft: KUBE-MARK-DROP is in the latter's
/// nat, kube-proxy's rules can't jump there, and nothing translates the API server's address. What a pod sends to it is dropped
/// by the node's own rule as it is. Both sets are told, and that they must be one.
fn no_mark_drop_chain() -> Result<()> {
    const KUBE_PROXY: &str = "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
                              -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\nCOMMIT\n\
                              *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                              -A POSTROUTING -j KUBE-POSTROUTING\n-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\n\
                              COMMIT\n";
    const KUBELET: &str = "*nat\n:KUBE-MARK-DROP - [0:0]\n-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\nCOMMIT\n\
                           *filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A KUBE-FIREWALL -m mark --mark \
                           0x8000/0x8000 -j DROP\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n";
    let routed = Routed::new()?;
    let router = &routed.router;
    Backend::Legacy.load(router, Family::V4, KUBE_PROXY)?;
    Backend::IptablesNft.load(router, Family::V4, KUBELET)?;
    router.run(&format!("ip route add default via {}", routed.server.address(Family::V4)))?;
    let (from, to): (_, SocketAddr) = (routed.client.port(Family::V4, 40_000), "10.96.0.1:443".parse()?);
    let stream = watch_alone()?;
    routed.client.inject(&[packet::tcp(from, to, 7, 0, tcp_flag::SYN, b"")])?;
    let expect = Expect::drops(1, router)
        .flow("tcp", from, to)
        .cause("host-firewall")
        .field("/original", Value::Null)
        .field("/drop/netfilter/backend", "nft")
        .field("/drop/netfilter/table", "filter")
        .field("/drop/netfilter/chain", "FORWARD")
        .field(
            "/drop/netfilter/other_backend",
            "iptables-legacy has filter:KUBE-FORWARD, nat:KUBE-POSTROUTING, nat:KUBE-SERVICES",
        )
        .field("/drop/cause/others", json!(["foreign-rule", "mixed-iptables"]));
    verify(stream, &[expect], &[])?;
    // Which tables each has, and who writes them.
    let told = router.enter(|| Ok(droptrace(&["doctor", "-o", "json", "--offline"])?.output()?.stdout))?;
    let lines: Vec<Value> =
        String::from_utf8_lossy(&told).lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mixed = lines.iter().find(|line| line["id"] == "mixed-iptables").context("doctor does not see it")?;
    let held = mixed["evidence"].as_array().into_iter().flatten();
    let held: BTreeSet<_> =
        held.filter_map(|it| Some((it["name"].as_str()?, it["value"].as_str()?))).collect();
    let expected = BTreeSet::from([
        ("legacy table filter", "2 rules: 2 of kube-proxy"),
        ("legacy table nat", "3 rules: 3 of kube-proxy"),
        ("nft table filter", "3 rules: 2 of kubelet, 1 of unknown"),
        ("nft table nat", "1 rules: 1 of kubelet"),
    ]);
    ensure!(held == expected, "{held:?}");
    ensure!(mixed["fix"].as_str().is_some_and(|fix| fix.contains("use the same backend")), "{mixed}");
    Ok(())
}

/// Two queries of one socket at once, to two nameservers' addresses that lead to the same pod (as musl's resolver asks): on two
/// CPUs both pass NAT before either is entered in the table, with the same tuple for answers. The second one can't be entered
/// (nf_ct_resolve_clash, net/netfilter/nf_conntrack_core.c).
fn dns_race() -> Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err(skip("one CPU has one packet at a time between NAT and the table"));
    }
    let routed = Routed::new()?;
    let (client, router, server) = (&routed.client, &routed.router, &routed.server);
    let pod = server.port(Family::V4, 53);
    router.feed("nft -f -", &slow_translation(pod))?;
    let receiver = server.netns.enter(|| Ok(UdpSocket::bind(pod)?))?;
    let arrives = |patience| {
        receiver.set_read_timeout(Some(patience))?;
        receiver.recv(&mut [0; 64])
    };
    let send = |port, nameserver: [u8; 4]| {
        let to = SocketAddr::from((nameserver, 53));
        client.inject(&[packet::udp(client.port(Family::V4, port), to, b"who is it?")])
    };
    let stream = watch()?;
    // One after the other: NAT sees the first one's tuple, and gives the second another port.
    for nameserver in NAMESERVERS {
        send(40_000, nameserver)?;
        arrives(patience()).context("a query by itself did not come through")?;
    }
    let lost = (40_001..40_041).find_map(|port| {
        let race = || -> Result<bool> {
            std::thread::scope(|scope| {
                let both = NAMESERVERS.map(|nameserver| scope.spawn(move || send(port, nameserver)));
                both.into_iter()
                    .try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?)
            })?;
            arrives(patience()).context("neither query came through")?;
            Ok(arrives(Duration::from_millis(500)).is_err())
        };
        race().map(|is_lost| is_lost.then_some(port)).transpose()
    });
    let from = client.port(Family::V4, lost.context("no two queries raced")??);
    let expect = Expect::drops(1, router)
        .flow("udp", from, pod)
        .reason(&["NETFILTER_DROP"])
        .at(&["nf_hook_slow"])
        .cause("dns-race")
        .field_among("/original/destination/address", &["10.96.0.10", "10.96.0.11"])
        .field("/drop/class", "error")
        .field("/drop/netfilter/hook", "POSTROUTING")
        .field("/drop/netfilter/verdict", "conntrack-clash")
        .field("/drop/netfilter/confidence", "inferred")
        .field("/drop/cause/confidence", "inferred")
        .field("/drop/cause/others", json!(["conntrack-clash"]))
        .field(
            "/drop/cause/why",
            format!(
                "Two DNS queries of {} at once raced to be tracked as connections, and one was dropped: the resolver \
                 waits for its timeout, 5 s by default.",
                from.ip()
            ),
        )
        .field(
            "/drop/cause/fix",
            "Use NodeLocal DNSCache, or the resolver option single-request-reopen in the pod's dnsConfig.",
        );
    verify(stream, &[expect], &[&server.netns])
}

/// Addresses of DNS services.
pub(super) const NAMESERVERS: [[u8; 4]; 2] = [[10, 96, 0, 10], [10, 96, 0, 11]];

/// Rules that translate queries to a pod's address, and keep a CPU busy for some milliseconds between NAT of the source and
/// the entry in the table.
pub(super) fn slow_translation(pod: SocketAddr) -> String {
    let slow = "udp length 9999 accept\n".repeat(500);
    let (often, more) = ("jump slow\n".repeat(40), "jump often\n".repeat(40));
    format!(
        "table ip t {{\nchain slow {{\n{slow}}}\nchain often {{\n{often}}}\n\
         chain services {{\ntype nat hook prerouting priority dstnat;\n\
         ip daddr {{ 10.96.0.10, 10.96.0.11 }} udp dport 53 dnat to {pod}\n}}\n\
         chain late {{\ntype filter hook postrouting priority srcnat + 100;\nudp dport != 53 accept\n{more}}}\n}}\n"
    )
}

/// The overlay of two nodes of which one does not know the other: what is routed to the other's pods has no node to go to. What
/// comes for an overlay that the node is not in finds no device. Healthy: a packet for a node that is known leaves.
fn no_vxlan_peer() -> Result<()> {
    const PEER: [u8; 6] = [2, 0, 10, 244, 2, 0];
    let pair = Pair::new()?;
    let (node, other) = (&pair.server, &pair.client);
    let device = format!(
        "ip link add flannel.1 type vxlan id 1 dstport 8472 local {} dev s0 nolearning",
        node.address(Family::V4)
    );
    node.netns.run(&device).map_err(|error| skip(format!("no VXLAN here: {error:#}")))?;
    let peers = format!(
        "addr add 10.244.1.0/32 dev flannel.1\nlink set flannel.1 up\n\
         neigh add 10.244.2.0 lladdr {mac} dev flannel.1 nud permanent\n\
         neigh add 10.244.3.0 lladdr 02:00:0a:f4:03:00 dev flannel.1 nud permanent\n\
         route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink\n\
         route add 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink\n",
        mac = packet::mac_text(PEER)
    );
    node.netns.feed("ip -batch -", &peers)?;
    let known = format!("bridge fdb add 02:00:0a:f4:03:00 dev flannel.1 dst {}", other.address(Family::V4));
    node.netns.run(&known)?;
    let pod: SocketAddr = "10.244.2.9:6379".parse()?;
    let stream = watch()?;
    let sent = node.netns.enter(|| {
        let socket = UdpSocket::bind("10.244.1.0:40000")?;
        socket.send_to(b"lost", pod)?;
        // The other node has no such overlay.
        socket.send_to(b"to a node that is known", "10.244.3.9:6379")?;
        Ok(())
    });
    sent.context("send to pods of other nodes")?;
    let stray = packet::vxlan(7, &packet::frame([2; 6], [4; 6], &packet::udp(pod, pod, b"x")));
    let (from, to) = (other.port(Family::V4, 50_000), node.port(Family::V4, 8472));
    other.inject(&[packet::udp(from, to, &stray)])?;
    let own: SocketAddr = "10.244.1.0:40000".parse()?;
    let expected = [
        Expect::drops(1, &node.netns)
            .flow("udp", own, pod)
            .reason(&["NO_TX_TARGET", "VXLAN_NO_REMOTE"])
            .at(&["vxlan_xmit"])
            .interface("flannel.1")
            .cause("vxlan-no-peer")
            .field("/drop/cause/confidence", "exact")
            .field(
                "/drop/cause/why",
                "The VXLAN device flannel.1 knows no node to send this packet to, or not the overlay that it is of (NO_TX_TARGET).",
            ),
        Expect::drops(1, &node.netns)
            .flow("udp", from, to)
            .reason(&["VXLAN_VNI_NOT_FOUND"])
            .at(&["vxlan_rcv"])
            .cause("vxlan-no-peer"),
    ];
    verify(stream, &expected, &[])
}

/// A client that keeps its socket, and a pod that is gone: connection tracking still sends to it what is for the Service. On one
/// node the pod's route went with it, on one nobody answers for it any more, on one its block's blackhole is left.
fn stale_dnat() -> Result<()> {
    const SERVICE: &str = "10.96.0.10:53";
    let pod: SocketAddr = "10.244.2.9:53".parse()?;
    let stream = watch()?;
    let mut expected = Vec::new();
    let mut nodes = Vec::new();
    for (gone, functions) in [
        ("route del 10.244.2.9\n", &["ip_error"] as &'static [&'static str]),
        ("route replace 10.244.2.9 dev r1\n", &["arp_error_report", "neigh_invalidate"]),
        ("route replace blackhole 10.244.2.9\n", &["ip_error", "dst_discard", "dst_discard_out"]),
    ] {
        let routed = Routed::new()?;
        let (client, router, server) = (&routed.client, &routed.router, &routed.server);
        router.sysctl("net.ipv4.neigh.r1.mcast_solicit", "1")?;
        router.sysctl("net.ipv4.neigh.r1.retrans_time_ms", "100")?;
        router.feed(
            "nft -f -",
            &format!(
                "table ip t {{\nchain services {{\ntype nat hook prerouting priority dstnat;\n\
                 ip daddr 10.96.0.10 udp dport 53 dnat to {pod}\n}}\n}}\n"
            ),
        )?;
        router.run(&format!("ip route add 10.244.2.9 via {}", server.address(Family::V4)))?;
        server.netns.run("ip addr add 10.244.2.9/32 dev lo")?;
        let replies = server.netns.enter(|| Ok(UdpSocket::bind(pod)?))?;
        let from = client.port(Family::V4, 40_000);
        let socket = client.netns.enter(|| Ok(UdpSocket::bind(from)?))?;
        for end in [&replies, &socket] {
            end.set_read_timeout(Some(patience()))?;
        }
        socket.send_to(b"who is it?", SERVICE)?;
        let (_, asker) = replies.recv_from(&mut [0; 64]).context("the pod was not asked")?;
        replies.send_to(b"nobody", asker)?;
        socket.recv_from(&mut [0; 64]).context("the pod did not answer")?;
        server.netns.run("ip addr del 10.244.2.9/32 dev lo")?;
        router.feed("ip -batch -", gone)?;
        socket.send_to(b"and now?", SERVICE)?;
        expected.push(
            Expect::drops(1, router)
                .flow("udp", from, pod)
                .at(functions)
                .cause("stale-dnat")
                .field("/original/destination/address", "10.96.0.10")
                .field(
                    "/drop/cause/why",
                    "An old connection still sends what is dialled at 10.96.0.10:53 to 10.244.2.9, which can't be reached any \
                     more: most likely a pod that is gone.",
                ),
        );
        nodes.push((routed, socket));
    }
    verify(stream, &expected, &[])
}

/// The answer to a node's own connection from a port that is a NodePort's is taken for what is for the Service, which has no
/// endpoint, by rules that don't ask for new connections. Healthy: who dials that NodePort is told of the Service.
fn nodeport_conflict() -> Result<()> {
    const NODE_PORT: u16 = 30_083;
    let routed = Routed::new()?;
    let router = &routed.router;
    let rules = format!(
        "*filter\n:KUBE-EXTERNAL-SERVICES - [0:0]\n-A INPUT -j KUBE-EXTERNAL-SERVICES\n\
         -A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment \"pay/empty:http has no endpoints\" -m addrtype \
         --dst-type LOCAL -m tcp --dport {NODE_PORT} -j DROP\nCOMMIT\n"
    );
    Backend::IptablesNft.replace(router, Family::V4, &rules)?;
    let (to, own) = (routed.server.port(Family::V4, 443), routed.far.port(Family::V4, NODE_PORT));
    let (from, dialled) = (routed.client.port(Family::V4, 40_000), routed.near.port(Family::V4, NODE_PORT));
    let stream = watch()?;
    let answer = packet::tcp(to, own, 7, 8, tcp_flag::SYN | tcp_flag::ACK, b"");
    routed.server.inject(&[answer])?;
    routed.client.inject(&[packet::tcp(from, dialled, 7, 0, tcp_flag::SYN, b"")])?;
    let why = "An answer came to port 30083 and was taken for what is for a NodePort there, by filter:KUBE-EXTERNAL-SERVICES:rule:1: \
               the connection that it belongs to has its source port from the range of NodePorts.";
    let expected = [
        Expect::drops(1, router)
            .flow("tcp", to, own)
            .cause("nodeport-conflict")
            .field("/drop/cause/why", why)
            .field("/drop/cause/others", json!(["svc-no-endpoints", "component-rule"]))
            .evidence(json!({"name": "net.ipv4.ip_local_port_range", "source": "sysctl"})),
        Expect::drops(1, router).flow("tcp", from, dialled).cause("svc-no-endpoints"),
    ];
    verify(stream, &expected, &[])
}

/// What kube-proxy rejects of what is for the Services' addresses on kube-ipvs0 that IPVS does not serve. (The set of these
/// addresses is one here.)
fn ipvs_bad_port() -> Result<()> {
    let routed = Routed::new()?;
    let router = &routed.router;
    let service = routed.near.port(Family::V4, 6380);
    let rules = format!(
        "*filter\n:KUBE-IPVS-FILTER - [0:0]\n-A INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER\n\
         -A KUBE-IPVS-FILTER -d {} -m conntrack --ctstate NEW -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
        service.ip()
    );
    Backend::IptablesNft.replace(router, Family::V4, &rules)?;
    let from = routed.client.port(Family::V4, 40_000);
    let stream = watch()?;
    routed.client.inject(&[packet::tcp(from, service, 7, 0, tcp_flag::SYN, b"")])?;
    let expect = Expect::drops(1, router)
        .flow("tcp", from, service)
        .cause("ipvs-bad-port")
        .field("/drop/cause/owner", "owner of the client")
        .field("/drop/cause/others", json!(["component-rule"]));
    verify(stream, &[expect], &[])
}

/// A program that reads a queue, as one that enforces policies does, says that a packet is to be dropped.
fn queue_verdict() -> Result<()> {
    let pair = Pair::new()?;
    let (netns, to) = (&pair.server.netns, pair.server.port(Family::V4, RULE));
    netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {RULE} -j NFQUEUE --queue-num 7"))?;
    let reader = netns.enter(|| queue::Reader::new(7))?;
    let stream = watch()?;
    let from = pair.client.port(Family::V4, 40_000);
    send(&pair, RULE)?;
    reader.drop_one()?;
    let expect = Expect::drops(1, netns)
        .flow("udp", from, to)
        .at(&["nf_reinject", "nfqnl_reinject", "nfqnl_recv_verdict", "nfqnl_recv_verdict_batch"])
        .cause("nfqueue-verdict")
        .field("/drop/cause/confidence", "exact");
    verify(stream, &[expect], &[])
}

/// Who else may say no: an XDP program on the skb, a socket's own filter, and a rule of a component that has no entry of its own.
fn others_say_no() -> Result<()> {
    let [by_xdp, by_socket, by_rule] = [Pair::new()?, Pair::new()?, Pair::new()?];
    let _program = xdp::attach(&by_xdp.server.netns, "s0", XdpMode::Skb)?;
    let to = by_socket.server.port(Family::V4, RULE);
    let receiver = by_socket.server.netns.enter(|| Ok(UdpSocket::bind(to)?))?;
    send::refuse_all(&receiver)?;
    let istio = format!(
        "*filter\n:ISTIO_INBOUND - [0:0]\n-A INPUT -j ISTIO_INBOUND\n-A ISTIO_INBOUND -p udp --dport {RULE} -j DROP\nCOMMIT\n"
    );
    Backend::IptablesNft.replace(&by_rule.server.netns, Family::V4, &istio)?;
    let stream = watch()?;
    let expected = [
        (&by_xdp, &["XDP", "NOT_SPECIFIED"] as &'static [&'static str], "xdp-program"),
        (&by_socket, &["SOCKET_FILTER"], "socket-filter"),
        (&by_rule, &["NETFILTER_DROP"], "component-rule"),
    ]
    .map(|(pair, reasons, cause)| {
        let from = pair.client.port(Family::V4, 40_000);
        Expect::drops(1, &pair.server.netns)
            .flow("udp", from, pair.server.port(Family::V4, RULE))
            .reason(reasons)
            .cause(cause)
    });
    for pair in [&by_xdp, &by_socket, &by_rule] {
        send(pair, RULE)?;
    }
    verify(stream, &expected, &[])
}

/// Ends that have agreed on something that a packet does not have: an IPsec policy, and a password of BGP (RFC 2385).
fn not_as_agreed() -> Result<()> {
    let [by_policy, by_password] = [Pair::new()?, Pair::new()?];
    let (client, server) = (by_policy.client.address(Family::V4), by_policy.server.address(Family::V4));
    let block = format!("ip xfrm policy add src {client} dst {server} dir in action block");
    by_policy.server.netns.run(&block).map_err(|error| skip(format!("no IPsec policies here: {error:#}")))?;
    let _receiver =
        by_policy.server.netns.enter(|| Ok(UdpSocket::bind(by_policy.server.port(Family::V4, RULE))?))?;
    let (from, to) = (by_password.client.port(Family::V4, 40_000), by_password.server.port(Family::V4, 179));
    let listener = by_password.server.netns.enter(|| Ok(TcpListener::bind(to)?))?;
    send::demand_signature(&listener, from.ip()).map_err(|error| skip(format!("{error:#}")))?;
    let stream = watch()?;
    send(&by_policy, RULE)?;
    by_password.client.inject(&[packet::tcp(from, to, 7, 0, tcp_flag::SYN, b"")])?;
    let expected = [
        Expect::drops(1, &by_policy.server.netns)
            .flow("udp", by_policy.client.port(Family::V4, 40_000), by_policy.server.port(Family::V4, RULE))
            .reason(&["XFRM_POLICY"])
            .cause("ipsec-policy"),
        Expect::drops(1, &by_password.server.netns)
            .flow("tcp", from, to)
            .reason(&["TCP_MD5NOTFOUND"])
            .cause("tcp-signature"),
    ];
    verify(stream, &expected, &[])
}

/// A frame for an address that is on the bridge port that it came in by.
fn no_bridge_port() -> Result<()> {
    const BESIDE: packet::Mac = [2, 0, 10, 77, 3, 99];
    let bridged = Bridged::new()?;
    let (client, middle) = (&bridged.client, &bridged.middle);
    middle.run(&format!("bridge fdb add {} dev b0 master static", packet::mac_text(BESIDE)))?;
    let (from, to) = (client.port(Family::V4, 40_000), bridged.server.port(Family::V4, RULE));
    let frame = packet::frame(client.end.mac(), BESIDE, &packet::udp(from, to, b"back"));
    let stream = watch()?;
    client.netns.enter(|| send::frames(client.end.device, &[frame]))?;
    let expect = Expect::drops(1, middle)
        .flow("udp", from, to)
        .reason(&["NO_TX_TARGET", "NOT_SPECIFIED"])
        .cause("bridge-no-port");
    verify(stream, &[expect], &[&bridged.server.netns])
}
