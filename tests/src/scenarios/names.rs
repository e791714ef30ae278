//! Names of pods and services: on the lines, and as filters. The names come from a file here, so that these tests run on
//! every kernel; `cri` and `kube_api` have the other sources.

use super::expect::watch;
use super::{alone, beside, here_only, rules, skip};
use crate::bed::command;
use crate::bed::droptrace::{self, Droptrace, Output};
use crate::bed::kernel;
use crate::bed::kube_api::{Behaviour, KubeApi, Lie, objects};
use crate::bed::packet::{self, tcp_flag};
use crate::bed::patience;
use crate::bed::record::Record;
use crate::bed::topology::{Family, Routed};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Three drops behind a router, told apart by their destination ports: from pod to pod, from the router to a pod, and from pod
/// to service, after its address was translated.
const POD: u64 = 1001;
const NODE: u64 = 1002;
const SERVICE: u64 = 6379;
const EVERY: &[u64] = &[POD, NODE, SERVICE];

/// Words of the command line, and the drops that they show. The client is pod `shop/cart-0`, the server `shop/redis-0`.
const CASES: &[(&str, &str, &[u64])] = &[
    ("pod", "--pod cart-0", &[POD, SERVICE]),
    ("pod_of_namespace", "--pod shop/cart-0", &[POD, SERVICE]),
    ("pod_of_other_namespace", "--pod pay/cart-0", &[]),
    ("beginning_of_a_name", "--pod red", EVERY),
    ("from_pod", "--from-pod cart-0", &[POD, SERVICE]),
    ("to_pod", "--to-pod cart-0", &[]),
    ("namespace", "-n shop", EVERY),
    ("other_namespace", "-n pay", &[]),
    ("selector", "-l app=cart", &[POD, SERVICE]),
    ("selector_and_namespace", "-l app=cart -n pay", &[]),
    ("workload", "--workload statefulset/cart", &[POD, SERVICE]),
    ("service", "--service redis", &[SERVICE]),
    ("to_service", "--to-service shop/redis", &[SERVICE]),
    ("from_service", "--from-service redis", &[]),
    ("both_ends", "--from-pod cart --to-pod redis", &[POD, SERVICE]),
    ("with_a_port", "--pod cart-0 --to-port 6379", &[SERVICE]),
    ("not", "--not --pod cart-0", &[NODE]),
    ("pod_but_not_service", "--pod cart-0 --not --service redis", &[POD]),
];

/// Those that each kernel's programs are tried with.
const IN_VM: &[&str] = &["pod", "from_pod", "to_service", "both_ends", "with_a_port", "not"];

type Scenario = fn() -> Result<()>;

/// What a server does otherwise than a good one.
type Change = fn(&mut Behaviour);

pub(super) fn trials() -> Vec<Trial> {
    // The words are the same on every kernel; the virtual machines, which are slow, try what their programs and maps do.
    let cases = CASES.iter().filter(|(name, ..)| !kernel::in_vm() || IN_VM.contains(name));
    let filters = cases
        .map(|&(name, words, shown)| beside(format!("names::filter_{name}"), move || filter(words, shown)));
    let rows: [(&str, Scenario); 4] =
        [("on_the_line", on_the_line), ("ipvs", ipvs), ("masqueraded", masqueraded), ("nobody", nobody)];
    // Nobody else may drop what their filters mean, and all tests have the same addresses. On the machine itself
    // `pods::silent_peer` and `outages::silent_peer` are about the first.
    let of_tcp = kernel::in_vm().then(|| alone("names::silent_peer", silent_peer));
    let silences = of_tcp.into_iter().chain([alone("names::no_reply", no_reply)]);
    let servers: [(&str, Change); 6] = [
        ("good", |_| {}),
        ("silent", |behaviour| behaviour.silent = true),
        ("refusing", |behaviour| behaviour.token = "another".to_owned()),
        ("mad", |behaviour| lie(behaviour, &Lie::Text("{\"items\": 7}".to_owned()))),
        ("huge", |behaviour| lie(behaviour, &Lie::Huge(100 << 20))),
        ("slow", |behaviour| lie(behaviour, &Lie::Slow(Duration::from_millis(100)))),
    ];
    let servers = servers.map(|(name, behaviour)| {
        beside(format!("names::drops_go_on_with_a_{name}_server"), move || drops_go_on(behaviour))
    });
    filters
        .chain(here_only(servers))
        .chain(rows.map(|(name, scenario)| beside(format!("names::{name}"), scenario)))
        .chain(silences)
        .collect()
}

/// What `kubectl get pods,services,endpointslices,nodes -A -o json` prints, in short.
pub(super) fn inventory() -> Result<NamedTempFile> {
    let pod = |name: &str, app: &str, addresses: [&str; 2]| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": app},
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": app, "controller": true}]},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIPs": addresses.map(|address| json!({"ip": address}))}})
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("cart-0", "cart", ["10.77.1.1", "fd77:1::1"]),
        pod("redis-0", "redis", ["10.77.2.1", "fd77:2::1"]),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "redis"},
            "spec": {"clusterIPs": ["10.96.0.1", "fd77:96::1"], "ports": [{"protocol": "TCP", "port": 6379, "targetPort": 6379}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "redis-x", "labels": {"kubernetes.io/service-name": "redis"}},
            "addressType": "IPv4", "ports": [{"protocol": "TCP", "port": 6379}],
            "endpoints": [{"addresses": ["10.77.2.1"], "conditions": {"ready": true}}]},
    ]});
    let mut file = NamedTempFile::new()?;
    file.write_all(list.to_string().as_bytes())?;
    Ok(file)
}

/// The two pods, and a router that translates the service's address and drops what is sent to two ports.
fn cluster() -> Result<Routed> {
    let routed = Routed::new()?;
    let server = routed.server.end.v4;
    routed.router.feed(
        "nft -f -",
        &format!(
            "table ip nat {{\nchain p {{\ntype nat hook prerouting priority -100;\nip daddr 10.96.0.1 tcp dport 6379 dnat to \
             {server}\n}}\n}}\n"
        ),
    )?;
    rules::chain(
        &routed.router,
        "inet",
        "forward",
        &format!("udp dport {POD} drop\ntcp dport {SERVICE} drop"),
    )?;
    Ok(routed)
}

fn send(routed: &Routed) -> Result<()> {
    let from = |port| routed.client.port(Family::V4, port);
    let service = "10.96.0.1:6379".parse()?;
    routed.client.inject(&[
        packet::udp(from(40_001), routed.server.port(Family::V4, POD as u16), b"x"),
        packet::tcp(from(40_002), service, 1, 0, tcp_flag::SYN, b""),
    ])?;
    let to = routed.server.port(Family::V4, NODE as u16);
    routed.router.enter(|| crate::bed::send::udp((routed.far.v4, 0).into(), to, b"x", 1)).map(drop)
}

fn with_names(words: &str) -> Result<(Droptrace, NamedTempFile)> {
    let file = inventory()?;
    let path = file.path().to_str().context("a path that is text")?.to_owned();
    let mut arguments = vec!["--offline", "--inventory", &path];
    arguments.extend(words.split_whitespace());
    Ok((Droptrace::start(&arguments)?, file))
}

fn filter(words: &str, shown: &[u64]) -> Result<()> {
    let routed = cluster()?;
    let netns = [routed.router.inode(), routed.server.netns.inode()];
    let (filtered, _file) = with_names(words)?;
    let unfiltered = watch()?;
    send(&routed)?;
    let wanted: BTreeSet<u64> = shown.iter().copied().collect();
    let ports = |output: &Output| -> BTreeSet<u64> {
        output.drops_in(&netns).filter_map(|record| record.number("/destination/port")).collect()
    };
    // The unfiltered stream proves that all were dropped, so that what the filter hides was there to hide.
    let every = BTreeSet::from_iter(EVERY.iter().copied());
    unfiltered.wait("all drops came", |output| ports(output).is_superset(&every))?;
    filtered
        .wait("what matches came", |output| ports(output).is_superset(&wanted))
        .context(words.to_owned())?;
    let output = filtered.stop()?;
    ensure!(ports(&output) == wanted, "{words} showed {:?} instead of {wanted:?}", ports(&output));
    Ok(())
}

/// Checks fields of the one drop in a network namespace that went to a port.
fn check(output: &Output, netns: u32, port: u64, fields: &[(&str, Value)]) -> Result<()> {
    let netns = [netns];
    let record = output.drops_in(&netns).find(|record| record.number("/destination/port") == Some(port));
    let record = record.with_context(|| format!("no drop to port {port}"))?;
    for (pointer, expected) in fields {
        let got = record.get(pointer);
        ensure!(got == expected, "{pointer} is {got} instead of {expected} in {}", record.brief());
    }
    Ok(())
}

/// Pod, workload, service and how it is known, of both ends, on the wire and as dialled.
fn on_the_line() -> Result<()> {
    let routed = cluster()?;
    let router = routed.router.inode();
    // Somebody's tool, no pod's, where the pod's address is.
    let _tool = routed.server.netns.spawn("sleep 120")?;
    let (stream, _file) = with_names("")?;
    send(&routed)?;
    stream.wait("the drops came", |output| output.drops_in(&[router]).count() >= 2)?;
    let output = stream.stop()?;
    let pod = [
        ("/source/k8s/namespace", json!("shop")),
        ("/source/k8s/pod", json!("cart-0")),
        ("/source/k8s/workload", json!("statefulset/cart")),
        ("/source/k8s/service", Value::Null),
        ("/destination/k8s/pod", json!("redis-0")),
        ("/destination/k8s/workload", json!("statefulset/redis")),
    ];
    check(&output, router, POD, &pod)?;
    check(&output, router, POD, &[("/destination/k8s/service", Value::Null)])?;
    check(&output, router, SERVICE, &pod)?;
    let dialled = [
        ("/destination/k8s/service", json!("redis")),
        ("/destination/k8s/service_by", json!("original")),
        ("/original/destination/address", json!("10.96.0.1")),
        ("/original/source/k8s/pod", json!("cart-0")),
    ];
    check(&output, router, SERVICE, &dialled)
}

/// IPVS has a service's address, and connection tracking leaves its packets alone (net.ipv4.vs.conntrack=0, the default): only
/// IPVS knows which service was dialled. A packet to the backend and one of its answers, in both families.
fn ipvs() -> Result<()> {
    for module in ["ip_vs", "ip_vs_rr"] {
        let _ = command::run(&format!("modprobe {module}"));
    }
    if !std::path::Path::new("/proc/net/ip_vs_conn").exists() {
        return Err(skip("this kernel has no IPVS"));
    }
    let routed = Routed::new()?;
    let router = &routed.router;
    // Else nobody can read /proc/PID/net of this netns.
    let _process = router.spawn("sleep 120")?;
    let families = [(Family::V4, "10.96.0.1", "32"), (Family::V6, "fd77:96::1", "128")];
    for (family, service, bits) in families {
        let write = |address: String| family.pick(address.clone(), format!("[{address}]"));
        let (service, backend) = (service.to_owned(), routed.server.end.address(family).to_string());
        router.run(&format!("ip addr add {service}/{bits} dev lo"))?;
        let (service, backend) = (write(service), write(backend));
        router.run(&format!("ipvsadm -A -t {service}:6379 -s rr"))?;
        router.run(&format!("ipvsadm -a -t {service}:6379 -r {backend}:6379 -m"))?;
    }
    router.feed(
        "nft -f -",
        "table inet t {\nchain o {\ntype filter hook postrouting priority 0;\ntcp sport 40002 drop\n}\n\
         chain f {\ntype filter hook forward priority 0;\ntcp dport 40003 drop\n}\n}\n",
    )?;
    let (stream, _file) = with_names("")?;
    let netns = [router.inode()];
    // Family, the client's port, which end the backend is, which the client.
    let flows: Vec<(Family, u64, &str, &str)> = [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| {
            [(family, 40_002, "destination", "source"), (family, 40_003, "source", "destination")]
        })
        .collect();
    let of = |record: &Record, &(family, port, _, client): &(Family, u64, &str, &str)| {
        record.number(&format!("/{client}/port")) == Some(port)
            && record.text("/network/family") == Some(family.name())
    };
    let by_ipvs = |record: &Record, &(_, _, backend, _): &(Family, u64, &str, &str)| {
        record.text(&format!("/{backend}/k8s/service_by")) == Some("ipvs")
    };
    // A drop waits for IPVS's answer, but not for long: on a busy machine it is a later one that has it.
    let deadline = Instant::now() + patience();
    let mut rounds = 0;
    loop {
        rounds += 1;
        for (family, service, _) in families {
            let service = std::net::SocketAddr::new(service.parse()?, 6379);
            // Nobody listens on the server, which answers the second one with a reset.
            let syn = |port| packet::tcp(routed.client.port(family, port), service, 1, 0, tcp_flag::SYN, b"");
            routed.client.inject(&[syn(40_002), syn(40_003)])?;
        }
        std::thread::sleep(Duration::from_secs(1));
        let output = stream.output();
        let is_named = |flow| output.drops_in(&netns).any(|record| of(record, flow) && by_ipvs(record, flow));
        if flows.iter().all(is_named) {
            break;
        }
        if Instant::now() > deadline {
            let table = router.run("cat /proc/net/ip_vs_conn").unwrap_or_default();
            let drops: Vec<String> = output.drops_in(&netns).map(Record::brief).collect();
            anyhow::bail!("not all were named by IPVS: {drops:?}\n{table}");
        }
    }
    eprintln!("names::ipvs: all were named after {rounds} rounds");
    let output = stream.stop()?;
    for flow in &flows {
        let &(family, port, backend, client) = flow;
        let named = |record: &&Record| of(record, flow) && by_ipvs(record, flow);
        let record = output.drops_in(&netns).find(named).with_context(|| format!("no drop of {port}"))?;
        for (field, expected) in [
            (format!("/{backend}/address"), json!(routed.server.end.address(family))),
            (format!("/{backend}/k8s/pod"), json!("redis-0")),
            (format!("/{backend}/k8s/service"), json!("redis")),
            (format!("/{client}/k8s/pod"), json!("cart-0")),
            (format!("/{client}/k8s/service"), Value::Null),
        ] {
            let got = record.get(&field);
            ensure!(*got == expected, "{field} is {got}, not {expected} in {}", record.brief());
        }
    }
    Ok(())
}

/// A packet that has its node's address on the wire is its pod's all the same, and so is the answer to it.
fn masqueraded() -> Result<()> {
    const OUTSIDE: u16 = 9999;
    let routed = Routed::new()?;
    routed.router.feed(
        "nft -f -",
        "table ip nat {\nchain p {\ntype nat hook postrouting priority 100;\noifname \"r1\" masquerade\n}\n}\n",
    )?;
    routed.server.netns.feed(
        "nft -f -",
        "table inet t {\nchain c {\ntype filter hook input priority 0;\nudp dport 9999 reject\n}\n}\n",
    )?;
    routed.router.feed(
        "nft -f -",
        "table inet u {\nchain c {\ntype filter hook forward priority 0;\nip protocol icmp drop\n}\n}\n",
    )?;
    let router = routed.router.inode();
    let (stream, _file) = with_names("--pod cart-0 --protocol icmp")?;
    let (from, to) = (routed.client.port(Family::V4, 40_009), routed.server.port(Family::V4, OUTSIDE));
    routed.client.inject(&[packet::udp(from, to, b"x")])?;
    // The server's refusal goes to the router's address, and is the pod's by its connection.
    stream.wait("the answer was dropped", |output| output.drops_in(&[router]).next().is_some())?;
    let output = stream.stop()?;
    let netns = [router];
    let record = output.drops_in(&netns).next().context("no drop")?;
    let pods = [record.get("/source/k8s/pod"), record.get("/destination/k8s/pod")];
    ensure!(pods[1] == "cart-0", "the answer is for {} in {}", pods[1], record.brief());
    Ok(())
}

/// Time for three SYNs more (tcp_syn_retries: after 1, 3 and 7 s).
const SYNS: Duration = Duration::from_secs(8);

/// Nothing is dropped here, and nobody answers: that is said.
fn silent_peer() -> Result<()> {
    let routed = Routed::new()?;
    // A frame for another host is not dropped for a reason that anybody cares for (and hidden as routine).
    let client = &routed.client.netns;
    client.run("ip neigh replace 10.77.1.9 lladdr 02:00:00:00:00:09 dev c0 nud permanent")?;
    let (stream, _file) = with_names("--pod cart-0 --to-ip 10.77.1.9")?;
    let is_said = |record: &&Record| record.text("/type") == Some("stalled");
    client.enter(|| {
        let _unanswered = TcpStream::connect_timeout(&"10.77.1.9:443".parse()?, SYNS);
        Ok(())
    })?;
    stream.wait("it is said", |output| output.records.iter().any(|record| is_said(&record)))?;
    let output = stream.stop()?;
    let said = output.records.iter().find(is_said).context("nothing is said")?;
    ensure!(said.number("/retransmits") >= Some(2), "{said:?}");
    ensure!(said.text("/peers/0/destination/address") == Some("10.77.1.9"), "{said:?}");
    ensure!(said.number("/peers/0/destination/port") == Some(443), "{said:?}");
    ensure!(said.text("/peers/0/source/k8s/pod") == Some("cart-0"), "{said:?}");
    ensure!(*said.get("/peers/0/answered") == json!(false), "{said:?}");
    Ok(())
}

/// Who does not answer UDP or ICMP is in no counter of TCP's, but connection tracking knows. The router is the node here.
fn no_reply() -> Result<()> {
    // As kube-proxy and conntrack(8) do: droptrace loads nothing.
    let _ = command::run("modprobe nf_conntrack_netlink");
    let routed = Routed::new()?;
    let router = &routed.router;
    rules::chain(router, "inet", "forward", "ct state invalid drop")?;
    for silent in ["10.77.2.9", "fd77:2::9"] {
        router.run(&format!("ip neigh replace {silent} lladdr 02:00:00:00:00:09 dev r1 nud permanent"))?;
    }
    let file = inventory()?;
    let path = file.path().to_str().context("a path that is text")?;
    let line =
        format!("{} -o json --offline --inventory {path} --pod cart-0", droptrace::binary()?.display());
    let stream = Droptrace::spawn(router.command(&line)?)?;
    stream.wait("attached", |output| output.stderr.contains(droptrace::ATTACHED))?;

    let (v4, v6) = (|port| routed.client.port(Family::V4, port), routed.client.port(Family::V6, 40_003));
    routed.client.inject(&[
        packet::udp(v4(40_001), "10.77.2.9:53".parse()?, b"x"),
        packet::udp(v4(40_002), "10.77.2.9:53".parse()?, b"x"),
        packet::udp(v6, "[fd77:2::9]:53".parse()?, b"x"),
        packet::echo_request(routed.client.address(Family::V4), "10.77.2.9".parse()?, 7, 1),
    ])?;
    // One that is answered, and one that is not this pod's.
    let to = routed.server.port(Family::V4, 5353);
    let asks = routed.client.netns.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let answers = routed.server.netns.enter(|| Ok(UdpSocket::bind(to)?))?;
    asks.send_to(b"x", to)?;
    let (_, asker) = answers.recv_from(&mut [0; 8])?;
    answers.send_to(b"y", asker)?;
    asks.recv_from(&mut [0; 8])?;
    router.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "10.77.2.9:54")?))?;

    let is_said = |record: &&Record| record.text("/type") == Some("stalled");
    stream.wait("it is said", |output| output.records.iter().any(|record| is_said(&record)))?;
    let output = stream.stop()?;
    let said = output.records.iter().find(is_said).context("nothing is said")?;
    ensure!(said.number("/unreplied") == Some(4), "{said:?}");
    let peers = said.get("/unreplied_peers").as_array().context("a list")?;
    let mut shown: Vec<String> = peers
        .iter()
        .map(|peer| {
            let word = |pointer: &str| peer.pointer(pointer).map(Value::to_string).unwrap_or_default();
            let [count, transport, address, port] =
                ["/connections", "/transport", "/destination/address", "/destination/port"].map(word);
            format!("{count} {transport} {address} {port} {}", word("/source/k8s/pod"))
        })
        .collect();
    shown.sort();
    let expected = [
        r#"1 "icmp" "10.77.2.9" null "cart-0""#,
        r#"1 "udp" "fd77:2::9" 53 "cart-0""#,
        r#"2 "udp" "10.77.2.9" 53 "cart-0""#,
    ];
    ensure!(shown == expected, "{shown:?}");
    Ok(())
}

/// A name that nobody has: near ones are told, and at the end the exit code.
fn nobody() -> Result<()> {
    let file = inventory()?;
    let path = file.path().to_str().context("a path that is text")?;
    let words = ["--offline", "--inventory", path, "--pod", "cart-1", "--for", "1s"];
    let ended = Droptrace::spawn(droptrace::command(&words)?)?.end()?;
    ended.expect_code(1)?;
    let stderr = &ended.output.stderr;
    ensure!(stderr.contains("--pod cart-1: no pod yet; near: cart-0"), "{stderr}");
    Ok(())
}

fn lie(behaviour: &mut Behaviour, lie: &Lie) {
    let resources = ["pods", "services", "endpointslices", "nodes", "namespaces", "replicasets", "jobs"];
    behaviour.lies.extend(resources.map(|resource| (resource.to_owned(), lie.clone())));
}

/// Pods of the server's cluster besides the two: what is listed takes a while.
const OTHERS: u32 = 3000;
/// How soon a drop must be told: it waits 300 ms for a name, and the machine may be busy.
const SOON: Duration = Duration::from_secs(4);

/// Whatever the API server does, drops come out, and with a good one their names, too.
fn drops_go_on(behaviour: Change) -> Result<()> {
    let routed = cluster()?;
    let router = routed.router.inode();
    let api = KubeApi::start("127.0.0.1:0".parse()?)?;
    api.set(objects::pod("shop", "cart-0", "n1", &["10.77.1.1"]));
    for pod in 0..OTHERS {
        let address = std::net::Ipv4Addr::from_bits(0x0af4_0000 + pod).to_string();
        api.set(objects::pod("crowd", &format!("pod-{pod}"), "n2", &[&address]));
    }
    let mut is_good = true;
    api.behave(|own| {
        behaviour(own);
        is_good = !own.silent && own.lies.is_empty() && own.token == Behaviour::default().token;
    });
    let kubeconfig = api.kubeconfig();
    let stream = Droptrace::start(&["--kubeconfig", kubeconfig.to_str().context("a path that is text")?])?;
    for round in 1..=5 {
        let sent = Instant::now();
        send(&routed)?;
        let count = |output: &Output| output.drops_in(&[router]).map(Record::count).sum::<u64>();
        stream.wait("the drops came", |output| count(output) >= 2 * round)?;
        ensure!(sent.elapsed() < SOON, "the drops of round {round} took {:?}", sent.elapsed());
    }
    if is_good {
        let is_named = |record: &Record| record.text("/source/k8s/pod") == Some("cart-0");
        let since = Instant::now();
        while !stream.output().drops_in(&[router]).any(is_named) && since.elapsed() < SOON {
            send(&routed)?;
            std::thread::sleep(Duration::from_millis(200));
        }
        ensure!(stream.output().drops_in(&[router]).any(is_named), "no name came");
    }
    stream.stop().map(drop)
}
