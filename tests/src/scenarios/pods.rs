//! `droptrace --pod` with real pods: a containerd of the test's own, real CNI, kube-proxy's kind of rules, and an API server
//! that behaves as a recorded one.

use super::{alone, beside, skip};
use crate::bed::backend::Backend;
use crate::bed::containerd::{self, Containerd, IMAGE};
use crate::bed::cri::Pod;
use crate::bed::droptrace::{self, ATTACHED, Droptrace, Output};
use crate::bed::kube_api::{KubeApi, objects};
use crate::bed::namespace::Namespace;
use crate::bed::packet::{self, tcp_flag};
use crate::bed::record::Record;
use crate::bed::topology::Family;
use crate::bed::{command, kernel, namespace, patience, send};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};
use tracer_user::identity::sources::proc::host_netns;

pub(super) fn trials() -> Vec<Trial> {
    vec![
        beside("pods::only_its_own_drops", only_its_own_drops),
        beside("pods::one_that_comes_later", one_that_comes_later),
        beside("pods::an_address_that_another_takes", an_address_that_another_takes),
        // Each runtime gives the same addresses, so the drops of another test's pods would pass its filter and break the silence.
        alone("pods::silent_peer", silent_peer),
        beside("pods::host_network", host_network),
    ]
}

/// A containerd, or the reason why there is none.
fn containerd() -> Result<Containerd> {
    if kernel::in_vm() {
        return Err(skip("containerd is not in the virtual machines"));
    }
    containerd::missing().map_or_else(Containerd::start, |reason| Err(skip(reason)))
}

/// A pod that runs.
struct Running {
    pod: Pod,
    sandbox: String,
    /// Name of its network namespace in /run/netns.
    netns: String,
    inode: u32,
    address: Ipv4Addr,
}

impl Running {
    fn start(containerd: &mut Containerd, pod: Pod) -> Result<Self> {
        let sandbox = containerd.run(&pod)?;
        let netns = containerd::namespaces(&pod.uid).into_iter().next().context("the pod has no netns")?;
        let inode = u32::try_from(fs::metadata(format!("/run/netns/{netns}"))?.ino())?;
        let address = namespace::enter(&netns, own_address)?;
        Ok(Self { pod, sandbox, netns, inode, address })
    }

    /// Sends a UDP packet, in the pod.
    fn sends_udp(&self, to: SocketAddr) -> Result<()> {
        namespace::enter(&self.netns, || send::udp((Ipv4Addr::UNSPECIFIED, 0).into(), to, b"x", 1)).map(drop)
    }

    /// Dials, in the pod, without waiting for an answer.
    fn dials(&self, to: SocketAddr) -> Result<()> {
        namespace::enter(&self.netns, || {
            let _unanswered = TcpStream::connect_timeout(&to, Duration::from_millis(200));
            Ok(())
        })
    }
}

/// The address that this network namespace would send from.
fn own_address() -> Result<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    match socket.local_addr()? {
        SocketAddr::V4(own) => Ok(*own.ip()),
        SocketAddr::V6(other) => anyhow::bail!("{other} is no IPv4 address"),
    }
}

/// droptrace, which asks this runtime.
fn watch(containerd: &Containerd, arguments: &[&str]) -> Result<Droptrace> {
    watch_as(containerd, &[&["-o", "json"], arguments].concat())
}

/// Likewise, with any output.
fn watch_as(containerd: &Containerd, arguments: &[&str]) -> Result<Droptrace> {
    let mut command = droptrace::command(arguments)?;
    command.env("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", containerd.socket().display()));
    let started = Droptrace::spawn(command)?;
    started.wait("attached", |output| output.stderr.contains(ATTACHED))?;
    Ok(started)
}

/// Drops by destination port: (netns of the drop, port).
fn seen(output: &Output, netns: &[u32]) -> BTreeSet<u64> {
    output.drops_in(netns).filter_map(|record| record.number("/destination/port")).collect()
}

fn find<'a>(output: &'a Output, netns: &'a [u32], port: u64) -> Result<&'a Record> {
    let mut drops = output.drops_in(netns);
    drops
        .find(|record| record.number("/destination/port") == Some(port))
        .with_context(|| format!("no drop to {port}"))
}

fn check(record: &Record, fields: &[(&str, Value)]) -> Result<()> {
    for (pointer, expected) in fields {
        let got = record.get(pointer);
        ensure!(got == expected, "{pointer} is {got} instead of {expected} in {}", record.brief());
    }
    Ok(())
}

/// The service's address, as kube-proxy writes its rules, and a rule that drops what goes to the pods behind it.
fn service_rules(vip: &str, backend: Ipv4Addr) -> String {
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-REDIS - [0:0]\n:KUBE-SEP-REDIS0 - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-SERVICES -d {vip}/32 -p tcp -m comment --comment \"shop/redis cluster IP\" -m tcp --dport 6379 -j KUBE-SVC-REDIS\n\
         -A KUBE-SVC-REDIS -m comment --comment \"shop/redis -> {backend}:6379\" -j KUBE-SEP-REDIS0\n\
         -A KUBE-SEP-REDIS0 -p tcp -m comment --comment \"shop/redis\" -m tcp -j DNAT --to-destination {backend}:6379\nCOMMIT\n\
         *filter\n-A FORWARD -p tcp -m tcp --dport 6379 -j DROP\n-A FORWARD -p udp -m udp --sport 7001 -j DROP\nCOMMIT\n"
    )
}

/// The drops of one pod and no other's: through a service, inside the pod, in both directions.
fn only_its_own_drops() -> Result<()> {
    const VIP: &str = "10.96.0.10";
    let mut containerd = containerd()?;
    let cart = Running::start(&mut containerd, Pod::new("shop", "cart-6d4cf-x"))?;
    let redis = Running::start(&mut containerd, Pod::new("shop", "redis-0"))?;
    let other = Running::start(&mut containerd, Pod::new("pay", "batch"))?;
    containerd.netns().sysctl("net.ipv4.ip_forward", "1")?;
    Backend::IptablesNft.load(containerd.netns(), Family::V4, &service_rules(VIP, redis.address))?;

    let api = KubeApi::start("127.0.0.1:0".parse()?)?;
    for (running, owner) in [
        (&cart, ("ReplicaSet", "cart-6d4cf")),
        (&redis, ("StatefulSet", "redis")),
        (&other, ("Job", "batch")),
    ] {
        let Pod { namespace, name, uid, .. } = &running.pod;
        let mut pod = objects::pod(namespace, name, "n1", &[&running.address.to_string()]);
        pod["metadata"]["uid"] = json!(uid);
        api.set(objects::owned(pod, owner.0, owner.1));
    }
    api.set(objects::replica_set("shop", "cart-6d4cf", "cart"));
    api.set(objects::service("shop", "redis", VIP, 6379, 6379));
    api.set(objects::slice("shop", "redis", 6379, &[("redis-0", &redis.address.to_string())]));
    let kubeconfig = api.kubeconfig();
    let kubeconfig = kubeconfig.to_str().context("a path that is text")?;

    let names = ["--kubeconfig", kubeconfig];
    let by_pod = watch(&containerd, &[&names[..], &["--pod", "shop/cart-6d4cf-x"]].concat())?;
    let by_workload = watch(&containerd, &[&names[..], &["--workload", "deployment/cart"]].concat())?;
    let by_service = watch(&containerd, &[&names[..], &["--service", "redis"]].concat())?;
    let all = watch(&containerd, &names)?;

    let service: SocketAddr = format!("{VIP}:6379").parse()?;
    cart.dials(service)?;
    other.dials(service)?;
    // Nobody listens in the pods.
    cart.sends_udp("127.0.0.1:7101".parse()?)?;
    other.sends_udp("127.0.0.1:7102".parse()?)?;
    redis.sends_udp((cart.address, 7103).into())?;
    cart.sends_udp((redis.address, 7104).into())?;
    other.sends_udp((redis.address, 7105).into())?;

    let node = containerd.netns().inode();
    let netns = [node, cart.inode, redis.inode, other.inode];
    let every = BTreeSet::from([6379, 7101, 7102, 7103, 7104, 7105]);
    all.wait("all drops came", |output| {
        seen(output, &netns).is_superset(&every)
            && output
                .drops_in(&[node])
                .filter(|record| record.number("/destination/port") == Some(6379))
                .count()
                > 1
    })?;
    let own = BTreeSet::from([6379, 7101, 7103, 7104]);
    for (words, stream) in [("--pod", by_pod), ("--workload", by_workload)] {
        stream.wait("its drops came", |output| seen(output, &netns).is_superset(&own)).context(words)?;
        let output = stream.stop()?;
        ensure!(seen(&output, &netns) == own, "{words} showed {:?}", seen(&output, &netns));
        let others = output.drops_in(&netns).find(|record| {
            let pods = [record.text("/source/k8s/pod"), record.text("/destination/k8s/pod")];
            !pods.contains(&Some("cart-6d4cf-x"))
        });
        ensure!(
            others.is_none(),
            "{words} showed a drop of another pod: {}",
            others.map(Record::brief).unwrap_or_default()
        );
        let expected = [
            ("/source/k8s/namespace", json!("shop")),
            ("/source/k8s/pod", json!("cart-6d4cf-x")),
            ("/source/k8s/workload", json!("deployment/cart")),
            ("/destination/k8s/namespace", json!("shop")),
            ("/destination/k8s/pod", json!("redis-0")),
            ("/destination/k8s/workload", json!("statefulset/redis")),
            ("/destination/k8s/service", json!("redis")),
            ("/destination/k8s/service_by", json!("original")),
            ("/original/destination/address", json!(VIP)),
            ("/drop/netfilter/chain", json!("FORWARD")),
        ];
        check(find(&output, &netns, 6379)?, &expected)?;
        // Loopback addresses are whose the network namespace is.
        let inside =
            [("/source/k8s/pod", json!("cart-6d4cf-x")), ("/destination/k8s/pod", json!("cart-6d4cf-x"))];
        check(find(&output, &netns, 7101)?, &inside)?;
        let to = [("/source/k8s/pod", json!("redis-0")), ("/destination/k8s/pod", json!("cart-6d4cf-x"))];
        check(find(&output, &netns, 7103)?, &to)?;
    }
    let output = by_service.stop()?;
    ensure!(seen(&output, &netns) == BTreeSet::from([6379]), "--service showed {:?}", seen(&output, &netns));
    let pods: BTreeSet<_> =
        output.drops_in(&netns).filter_map(|record| record.text("/source/k8s/pod")).collect();
    ensure!(pods == BTreeSet::from(["batch", "cart-6d4cf-x"]), "--service showed what {pods:?} sent");
    Ok(())
}

/// A pod that is created while droptrace runs is traced from the first packet that its container sends.
fn one_that_comes_later() -> Result<()> {
    let mut containerd = containerd()?;
    let stream = watch(&containerd, &["--offline", "--pod", "shop/late"])?;
    stream.wait("nobody is there", |output| output.stderr.contains("--pod shop/late: no pod yet"))?;
    let pod = Pod::new("shop", "late-0");
    let sandbox = containerd.run(&pod)?;
    let script = "nc -w 1 127.0.0.1 7201; nc -w 1 127.0.0.1 7202; sleep 60";
    containerd.client().start(&pod, &sandbox, IMAGE, &["sh", "-c", script])?;
    let last = |output: &Output| {
        output.records.iter().any(|record| record.number("/destination/port") == Some(7202))
    };
    stream.wait("its drops came", last)?;
    let output = stream.stop()?;
    let first = output.records.iter().find(|record| record.number("/destination/port") == Some(7201));
    let first = first.context("the first packet's drop is missing")?;
    check(first, &[("/source/k8s/pod", json!("late-0")), ("/source/k8s/namespace", json!("shop"))])?;
    ensure!(output.stderr.contains("pod shop/late-0 ("), "nobody said that it came:\n{}", output.stderr);
    Ok(())
}

/// A pod that is gone names its last drops; one that takes its address does not inherit them, and is not meant by its filter.
fn an_address_that_another_takes() -> Result<()> {
    let mut containerd = containerd()?;
    let client = Running::start(&mut containerd, Pod::new("shop", "client"))?;
    let old = Running::start(&mut containerd, Pod::new("shop", "old"))?;
    let by_old = watch(&containerd, &["--offline", "--pod", "shop/old"])?;
    let all = watch(&containerd, &["--offline"])?;
    client.sends_udp((old.address, 7301).into())?;
    let netns = [client.inode, old.inode];
    by_old.wait("its drop came", |output| seen(output, &netns).contains(&7301))?;

    containerd.client().stop(&old.sandbox)?;
    containerd.client().remove(&old.sandbox)?;
    // Else its frame would go to everybody on the bridge.
    namespace::enter(&client.netns, || command::output(command::words("ip neigh flush all"), ""))?;
    // Its neighbours look for it in vain: three seconds, then what they had for it is dropped.
    client.sends_udp((old.address, 7302).into())?;
    by_old.wait("its last drop came", |output| seen(output, &netns).contains(&7302))?;

    // host-local gives addresses in turn; without its memory it begins with the first that is free.
    for family in [0, 1] {
        let _not_there = fs::remove_file(
            containerd.folder().join(format!("addresses/droptrace/last_reserved_ip.{family}")),
        );
    }
    let new = Running::start(&mut containerd, Pod::new("pay", "new"))?;
    ensure!(
        new.address == old.address,
        "{} was to be taken by another, which has {}",
        old.address,
        new.address
    );
    client.sends_udp((new.address, 7303).into())?;
    let netns = [client.inode, old.inode, new.inode];
    all.wait("the new one's drop came", |output| seen(output, &netns).contains(&7303))?;
    let (by_old, all) = (by_old.stop()?, all.stop()?);
    let own = |port: &u64| (7301..=7303).contains(port);
    check(find(&all, &netns, 7301)?, &[("/destination/k8s/pod", json!("old"))])?;
    check(find(&all, &netns, 7302)?, &[("/destination/k8s/pod", json!("old"))])?;
    let expected = [("/destination/k8s/pod", json!("new")), ("/destination/k8s/namespace", json!("pay"))];
    check(find(&all, &netns, 7303)?, &expected)?;
    // The number of the old netns may be another test's by now.
    let shown: BTreeSet<u64> = seen(&by_old, &netns).into_iter().filter(own).collect();
    ensure!(shown == BTreeSet::from([7301, 7302]), "--pod old showed {shown:?}");
    Ok(())
}

/// Row silent-peer: nothing is dropped on this node, and a peer outside ignores what the pod sends. Within 15 s that is said,
/// with the peer and where to look next, to people and programs.
fn silent_peer() -> Result<()> {
    const SOON: Duration = Duration::from_secs(15);
    let mut containerd = containerd()?;
    let cart = Running::start(&mut containerd, Pod::new("shop", "cart"))?;
    let other = Running::start(&mut containerd, Pod::new("pay", "batch"))?;
    let node = containerd.netns();
    node.sysctl("net.ipv4.ip_forward", "1")?;
    // A frame for another host is not dropped for a reason that anybody cares for (and hidden as routine).
    let outside = Namespace::new()?;
    node.run(&format!("ip link add out0 type veth peer name out1 netns {}", outside.name()))?;
    outside.run("ip link set out1 up")?;
    node.run("ip addr add 203.0.113.1/24 dev out0")?;
    node.run("ip link set out0 up")?;
    node.run("ip neigh replace 203.0.113.9 lladdr 02:00:00:00:00:09 dev out0 nud permanent")?;
    let people = watch_as(&containerd, &["--offline", "--pod", "shop/cart"])?;
    let programs = watch(&containerd, &["--offline", "--pod", "shop/cart"])?;
    let began = Instant::now();
    let dial = |pod: &Running, port: u16| {
        namespace::enter(&pod.netns, || {
            let _unanswered = TcpStream::connect_timeout(&([203, 0, 113, 9], port).into(), SOON);
            Ok(())
        })
    };
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| dial(&cart, 443));
        scope.spawn(|| dial(&other, 444));
        let is_said =
            |line: &str| line.contains("0 drops for --pod shop/cart") && line.contains("203.0.113.9");
        people.wait("people are told", |output| output.stderr.lines().any(is_said))?;
        ensure!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
        let stderr = people.output().stderr.clone();
        let line = stderr.lines().find(|line| is_said(line)).context("nothing is said")?;
        for part in [
            "SYN retransmit",
            " from shop/cart to 203.0.113.9:443 unanswered",
            "lost off this node, or not answered",
            "; next: is 203.0.113.9 up",
        ] {
            ensure!(line.contains(part), "{part} is not in: {line}");
        }
        ensure!(!line.contains(":444"), "another pod's peer is told: {line}");
        let is_said = |record: &&Record| {
            record.text("/type") == Some("stalled") && record.number("/retransmits") > Some(0)
        };
        programs.wait("programs are told", |output| output.records.iter().any(|record| is_said(&record)))?;
        ensure!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
        let output = programs.output().clone();
        let said = output.records.iter().find(is_said).context("nothing is said")?;
        check(
            said,
            &[
                ("/peers/0/source/k8s/pod", json!("cart")),
                ("/peers/0/destination/address", json!("203.0.113.9")),
                ("/peers/0/destination/port", json!(443)),
                ("/peers/0/answered", json!(false)),
                ("/peers/1", Value::Null),
            ],
        )
    })?;
    let drops = programs.stop()?.records.iter().filter(|record| record.is_drop()).count();
    ensure!(drops == 0, "{drops} drops are told");
    Ok(())
}

/// A pod in the node's own network namespace has no address and no netns of its own: the port that its process listens on
/// tells. Nothing of the node is changed: what is dropped is a segment that belongs to no connection.
fn host_network() -> Result<()> {
    let own = u32::try_from(fs::metadata("/proc/self/ns/net")?.ino())?;
    if host_netns() != Some(own) {
        return Err(skip("this is not in the node's network namespace"));
    }
    let listing = command::run("ip -4 -o addr show scope global")?;
    let words = listing.split_whitespace().filter_map(|word| word.split_once('/'));
    let Some(address) = words.into_iter().find_map(|(address, _)| address.parse::<Ipv4Addr>().ok()) else {
        return Err(skip("the node has no address"));
    };
    if kernel::in_vm() {
        return Err(skip("containerd is not in the virtual machines"));
    }
    let mut containerd =
        containerd::missing().map_or_else(Containerd::start_on_node, |reason| Err(skip(reason)))?;
    let free = || Ok::<_, anyhow::Error>(TcpListener::bind((address, 0))?.local_addr()?.port());
    let port = free()?;
    let pod = Pod { host_network: true, ..Pod::new("infra", "agent") };
    let sandbox = containerd.run(&pod)?;
    let script = format!("nc -l -p {port}; sleep 600");
    containerd.client().start(&pod, &sandbox, IMAGE, &["sh", "-c", &script])?;
    // No pod's: it is the test's own.
    let other = TcpListener::bind((address, 0))?;
    let other_port = other.local_addr()?.port();

    let by_pod = watch(&containerd, &["--offline", "--pod", "infra/agent"])?;
    let all = watch(&containerd, &["--offline"])?;
    let netns = [own];
    let to = |output: &Output, port: u16| {
        let is_it = |record: &&Record| record.number("/destination/port") == Some(port.into());
        output.drops_in(&netns).filter(is_it).cloned().collect::<Vec<Record>>()
    };
    let is_named = |record: &Record| record.text("/destination/k8s/pod") == Some("agent");
    // Which ports the pod has is looked for when droptrace needs to know: a moment after it has begun.
    let deadline = Instant::now() + patience();
    let mut from = 40_000;
    loop {
        from += 1;
        let segment = |port: u16| {
            let ends = (SocketAddr::from((address, from)), SocketAddr::from((address, port)));
            (ends.1, packet::tcp(ends.0, ends.1, 1, 1, tcp_flag::ACK, b""))
        };
        send::packets(&[segment(port), segment(other_port)])?;
        std::thread::sleep(Duration::from_millis(200));
        let named = [&by_pod, &all].map(|stream| to(&stream.output(), port).iter().any(is_named));
        if named == [true; 2] && !to(&all.output(), other_port).is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "told by --pod, told by all: {named:?}");
    }
    let (by_pod, all) = (by_pod.stop()?, all.stop()?);
    ensure!(by_pod.stderr.contains("told by its ports"), "{}", by_pod.stderr);
    for record in to(&by_pod, port) {
        check(
            &record,
            &[("/destination/k8s/namespace", json!("infra")), ("/destination/k8s/pod", json!("agent"))],
        )?;
    }
    ensure!(to(&by_pod, other_port).is_empty(), "--pod showed what is not the pod's");
    for record in to(&all, other_port) {
        check(&record, &[("/destination/k8s/pod", Value::Null)])?;
    }
    Ok(())
}
