//! Drops by Cilium, without Cilium: a program of ours leaves in the packet what Cilium's leaves there, and pinned maps have
//! the layouts of its versions.

use super::expect::{Expect, verify, watch_alone};
use super::tc::{Bed, drops_on, netkit_wire};
use super::{beside, both, here_only, one};
use crate::bed::agent::Agent;
use crate::bed::cilium::{Maps, Metrics, Rule, Version, authenticated, old_words, words};
use crate::bed::droptrace::Droptrace;
use crate::bed::kernel;
use crate::bed::kube_api::{KubeApi, objects};
use crate::bed::mount::with_bpffs;
use crate::bed::netkit::Wire;
use crate::bed::packet;
use crate::bed::tc::{Hook, Program};
use crate::bed::topology::Family;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> = [
        both("cilium::unmanaged_node", |family| unmanaged_node(family, false)),
        both("cilium::unmanaged_node_tcx", |family| unmanaged_node(family, true)),
        both("cilium::egress", egress),
    ]
    .into_iter()
    .flatten()
    .collect();
    for (name, scenario) in [
        ("cilium::authentication", authentication as fn(Family) -> Result<()>),
        ("cilium::allowed_since", allowed_since),
        ("cilium::old_encoding", old_encoding),
    ] {
        trials.push(one(name, Family::V4, scenario));
        trials.extend(here_only([one(name, Family::V6, scenario)]));
    }
    for version in Version::ALL {
        let name = format!("cilium::deny_entry_{version:?}").to_lowercase();
        trials.push(beside(name, move || deny_entry(version, Family::V4)));
    }
    trials.extend(here_only(both("cilium::policies_of_the_api", policies_of_the_api)));
    trials.extend(here_only([
        one("cilium::policies_of_a_file", Family::V4, policies_of_a_file),
        one("cilium::policy_that_denies", Family::V4, policy_that_denies),
        one("cilium::policies_unknown", Family::V4, policies_unknown),
        one("cilium::pod_told_late", Family::V4, pod_told_late),
    ]));
    trials.extend(here_only(both("cilium::agent", agent)));
    trials.push(one("cilium::unseen", Family::V4, unseen));
    trials.push(one("cilium::codes", Family::V4, codes));
    trials.push(one("cilium::no_maps", Family::V4, no_maps));
    trials.push(one("cilium::nothing_left", Family::V4, nothing_left));
    trials.extend(both("cilium::netkit", netkit));
    trials.push(one("cilium::foreign_program", Family::V4, foreign_program));
    trials
}

/// The pod's endpoint and identity, and a peer's.
const ENDPOINT: u16 = 2636;
const POD: u32 = 12_345;
const PEER: u32 = 4711;
const WORLD: u32 = 2;
/// Drop codes: policy denied, denied by denylist, authentication required.
const DENIED: u8 = 133;
const DENIED_BY_ENTRY: u8 = 181;
const UNAUTHENTICATED: u8 = 189;
/// The packets' port, and another one.
const PORT: u16 = 4242;
const OTHER: u16 = 8080;

/// Allows UDP to a port.
fn allow(identity: u32, port: u16) -> Rule {
    Rule { identity, egress: false, port, deny: false, auth: 0 }
}

/// A program by the name of Cilium's, that leaves these words.
fn program(words: [u32; 5]) -> Result<Program> {
    Program::leaving("cil_from_netdev", &words)
}

/// The pod's side of a test bed with such a program on it; the maps are the caller's.
fn attach(bed: &Bed, words: [u32; 5]) -> Result<()> {
    bed.add_filter(&mut program(words)?, 1)
}

/// What is said of any such drop.
fn said(bed: &Bed, code: u8, message: &str, verdict_by: &str) -> Expect {
    bed.drops()
        .field("/drop/class", "policy")
        .field("/drop/bpf", Value::Null)
        .field("/drop/cilium/code", code)
        .field("/drop/cilium/message", message)
        .field("/drop/cilium/verdict_by", verdict_by)
        .field("/drop/cilium/endpoint", ENDPOINT)
        .field("/drop/cilium/program", "cil_from_netdev")
        .field("/drop/cilium/policies", Value::Null)
        .field("/drop/cilium/unread", json!([]))
}

fn identity(id: u32) -> Value {
    match id {
        WORLD => json!({"id": 2, "labels": ["reserved:world"]}),
        id => json!({"id": id, "labels": null}),
    }
}

/// A pod of a node without Cilium sends to a pod with a policy, to another port than the policy's.
fn unmanaged_node(family: Family, by_link: bool) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let rules = [allow(PEER, PORT), allow(PEER, OTHER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &[], &rules)?;
        let words = words(WORLD, POD, DENIED, ENDPOINT.into());
        let _link = if by_link {
            Some(bed.attach(&mut program(words)?)?)
        } else {
            attach(&bed, words)?;
            None
        };
        let stream = watch_alone()?;
        bed.send()?;
        let expect = said(&bed, DENIED, "Policy denied", "default-deny")
            .field("/drop/cilium/direction", "ingress")
            .field("/drop/cilium/source_identity", identity(WORLD))
            .field("/drop/cilium/destination_identity", identity(POD))
            .field("/drop/cilium/source_prefix", family.pick("0.0.0.0/0", "::/0"))
            .cause("cilium-unmanaged-peer")
            .field("/drop/cilium/allowed_now", false)
            .field("/drop/cilium/file", "bpf_lxc.c")
            .field("/drop/cilium/line", 2121)
            .lists(
                "/drop/cilium/nearest",
                json!({"identity": identity(PEER), "protocol": "udp", "port": PORT}),
            )
            .lists(
                "/drop/cilium/nearest",
                json!({"identity": identity(PEER), "protocol": "udp", "port": OTHER}),
            );
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// The pod with the policies `shop/redis-0`, the client `shop/cart-0` of a node without Cilium, and policies: what the API
/// server has of them.
fn cluster(bed: &Bed) -> Vec<Value> {
    let address = |end: std::net::SocketAddr| end.ip().to_string();
    let pod = |name: &str, app: &str, node: &str, address: String| {
        objects::labelled(objects::pod("shop", name, node, &[&address]), &json!({"app": app}))
    };
    let from = |app: &str| json!([{"podSelector": {"matchLabels": {"app": app}}}]);
    let udp = |port: u16| json!([{"protocol": "UDP", "port": port}]);
    let on_redis = json!({"matchLabels": {"app": "redis"}});
    let network = |name: &str, rules: Value| {
        let spec = json!({"podSelector": on_redis, "policyTypes": ["Ingress"], "ingress": rules});
        objects::network_policy("shop", name, &spec)
    };
    vec![
        pod("redis-0", "redis", "n1", address(bed.to)),
        pod("cart-0", "cart", "kubenet-4", address(bed.from)),
        objects::namespace("shop"),
        network("from-cart", json!([{"from": from("cart"), "ports": udp(PORT)}])),
        network("from-web", json!([{"from": from("web"), "ports": udp(OTHER)}])),
        network("deny", json!([])),
        objects::network_policy("shop", "others", &json!({"podSelector": {"matchLabels": {"app": "cart"}}})),
        objects::network_policy("pay", "elsewhere", &json!({"podSelector": {}})),
        objects::cilium_policy(
            "shop",
            "cluster-only",
            &json!({"endpointSelector": on_redis, "ingress": [{"fromEntities": ["cluster"]}]}),
        ),
        objects::clusterwide_policy(
            "no-world",
            &json!({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}),
        ),
        objects::cilium_identity(
            POD,
            &json!({"k8s:app": "redis", "k8s:io.kubernetes.pod.namespace": "shop"}),
        ),
        objects::cilium_identity(
            PEER,
            &json!({"k8s:app": "frontend", "k8s:io.kubernetes.pod.namespace": "shop"}),
        ),
    ]
}

/// A pod of a node without Cilium sends to a pod; each policy on that says why it does not let it in.
fn in_a_cluster(family: Family, start: impl FnOnce(&Bed) -> Result<Droptrace> + Send) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &[], &[allow(PEER, OTHER)])?;
        attach(&bed, words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        let stream = start(&bed)?;
        bed.send()?;
        let world = format!(
            "the peer is identity 2 (reserved:world): its address {} belongs to no pod that Cilium knows",
            bed.from.ip()
        );
        let unmanaged = format!("{world} (its node runs no Cilium, or that does not manage the pod)");
        let port = format!("the packet is UDP {PORT}");
        let policy = |namespace: Option<&str>, kind: &str, name: &str, why: String| json!({"namespace": namespace, "name": name, "kind": kind, "why_not": why});
        let shop = Some("shop");
        let policies = json!([
            policy(
                None,
                "CiliumClusterwideNetworkPolicy",
                "no-world",
                format!(
                    "peer labels: needs to be in a namespace, which pod shop/cart-0 of node kubenet-4 at that address \
                     has, but {unmanaged}"
                )
            ),
            policy(
                shop,
                "CiliumNetworkPolicy",
                "cluster-only",
                "peer: it is about the entity cluster, the peer is identity 2 (reserved:world)".to_owned()
            ),
            policy(shop, "NetworkPolicy", "deny", "no ingress rule at all, so it allows nothing".to_owned()),
            policy(
                shop,
                "NetworkPolicy",
                "from-cart",
                format!(
                    "peer labels: needs app=cart, to be in namespace shop, which pod shop/cart-0 of node kubenet-4 at \
                     that address has, but {unmanaged}"
                )
            ),
            policy(
                shop,
                "NetworkPolicy",
                "from-web",
                format!(
                    "peer labels: needs app=web, pod shop/cart-0 of node kubenet-4 has app=cart; besides, {unmanaged}; \
                     port: it is about UDP {OTHER}, {port}"
                )
            ),
        ]);
        let labels = |id: u32, app: &str| json!({"id": id, "labels": [format!("k8s:app={app}"), "k8s:io.kubernetes.pod.namespace=shop"]});
        let expect = bed
            .drops()
            .field("/drop/cilium/verdict_by", "default-deny")
            .field("/drop/cilium/source_identity", identity(WORLD))
            .field("/drop/cilium/destination_identity", labels(POD, "redis"))
            .field("/drop/cilium/policies", policies)
            .field("/drop/cilium/unread", json!([]))
            .field("/source/k8s/pod", "cart-0")
            .lists("/drop/cilium/nearest", json!({"identity": labels(PEER, "frontend"), "port": OTHER}));
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

fn policies_of_the_api(family: Family) -> Result<()> {
    let api = KubeApi::start("127.0.0.1:0".parse()?)?;
    in_a_cluster(family, |bed| {
        cluster(bed).into_iter().for_each(|object| api.set(object));
        watch_with(&api)
    })
}

/// Starts a stream with the names of an API server, and waits until it has told all.
fn watch_with(api: &KubeApi) -> Result<Droptrace> {
    let kubeconfig = api.kubeconfig();
    let kubeconfig = kubeconfig.to_str().context("a path that is text")?;
    let stream = Droptrace::start(&["--all", "--kubeconfig", kubeconfig])?;
    let deadline = Instant::now() + crate::bed::patience();
    while api.requests().len() < 11 {
        ensure!(Instant::now() < deadline, "it has asked for {:?} only", api.requests());
        thread::sleep(Duration::from_millis(20));
    }
    // The answers are on their way.
    thread::sleep(Duration::from_millis(500));
    Ok(stream)
}

fn policies_of_a_file(family: Family) -> Result<()> {
    let mut file = NamedTempFile::new()?;
    in_a_cluster(family, |bed| {
        file.write_all(json!({"kind": "List", "items": cluster(bed)}).to_string().as_bytes())?;
        let path = file.path().to_str().context("a path that is text")?;
        Droptrace::start(&["--all", "--offline", "--inventory", path])
    })
}

/// The API server tells of the pod a moment after the packet: its policies, which its labels decide, are told all the same.
fn pod_told_late(family: Family) -> Result<()> {
    /// Of those that a drop waits for a name: so that it is explained before, and named after.
    const LATE: Duration = Duration::from_millis(100);
    let once = || {
        with_bpffs(|| {
            let api = KubeApi::start("127.0.0.1:0".parse()?)?;
            let bed = Bed::new(family, Hook::Ingress)?;
            let identity = POD.to_string();
            let is_the_pods = |object: &Value| {
                let name = object["metadata"]["name"].as_str();
                name == Some("redis-0") || name == Some(&identity)
            };
            let (late, first): (Vec<_>, Vec<_>) = cluster(&bed).into_iter().partition(is_the_pods);
            first.into_iter().for_each(|object| api.set(object));
            let rules = [allow(PEER, OTHER)];
            let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &[], &rules)?;
            attach(&bed, words(WORLD, POD, DENIED, ENDPOINT.into()))?;
            let stream = watch_with(&api)?;
            bed.send()?;
            thread::sleep(LATE);
            late.into_iter().for_each(|object| api.set(object));
            let expect = bed
                .drops()
                .field("/drop/cilium/policies/0/name", "no-world")
                .field("/drop/cilium/policies/1/name", "cluster-only")
                .field("/drop/cilium/policies/4/name", "from-web")
                .field("/drop/cilium/policies/5", Value::Null)
                .field("/drop/cilium/unread", json!([]))
                .field("/destination/k8s/pod", "redis-0");
            verify(stream, &[expect], &[&bed.pair.client.netns])
        })
    };
    // A busy machine may be too late with what the API server tells.
    once().or_else(|_| once()).or_else(|_| once())
}

/// A deny rule is the culprit: it comes first, and says so. The peer's labels are its pod's.
fn policy_that_denies(family: Family) -> Result<()> {
    with_bpffs(|| {
        let api = KubeApi::start("127.0.0.1:0".parse()?)?;
        let bed = Bed::new(family, Hook::Ingress)?;
        let deny = json!({"endpointSelector": {"matchLabels": {"app": "redis"}}, "ingressDeny": [{"fromEndpoints":
            [{"matchLabels": {"app": "cart"}}]}]});
        cluster(&bed).into_iter().filter(|object| object["kind"] == "Pod").for_each(|object| api.set(object));
        api.set(objects::cilium_policy("shop", "z-deny-cart", &deny));
        api.set(objects::network_policy("shop", "a-open", &json!({"podSelector": {}, "ingress": [{}]})));
        let rules = [Rule { deny: true, ..allow(PEER, PORT) }];
        let peers = [(bed.from.ip(), PEER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &peers, &rules)?;
        attach(&bed, words(PEER, POD, DENIED_BY_ENTRY, ENDPOINT.into()))?;
        let stream = watch_with(&api)?;
        bed.send()?;
        let labels = json!(["k8s:app=cart", "k8s:io.kubernetes.pod.namespace=shop"]);
        let expect = bed
            .drops()
            .field("/drop/cilium/verdict_by", "deny-entry")
            .field("/drop/cilium/source_identity", json!({"id": PEER, "labels": labels}))
            .field("/drop/cilium/policies/0/name", "z-deny-cart")
            .field(
                "/drop/cilium/policies/0/why_not",
                "it is a deny rule that matches: it denies this packet, whatever others allow",
            )
            .field("/drop/cilium/policies/1/name", "a-open")
            .field("/drop/cilium/policies/2", Value::Null);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// An API server that keeps Cilium's kinds to itself: what it tells is told, and what is missing is said.
fn policies_unknown(family: Family) -> Result<()> {
    with_bpffs(|| {
        let api = KubeApi::start("127.0.0.1:0".parse()?)?;
        api.behave(|behaviour| {
            let names = ["ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumidentities"];
            behaviour.forbidden.extend(names.map(str::to_owned));
        });
        let bed = Bed::new(family, Hook::Ingress)?;
        cluster(&bed).into_iter().for_each(|object| api.set(object));
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &[], &[allow(PEER, OTHER)])?;
        attach(&bed, words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        let stream = watch_with(&api)?;
        bed.send()?;
        let expect = bed
            .drops()
            .field("/drop/cilium/policies/0/name", "deny")
            .field("/drop/cilium/policies/2/name", "from-web")
            .field("/drop/cilium/policies/3", Value::Null)
            .field(
                "/drop/cilium/unread/0",
                "no source has told of any CiliumNetworkPolicy, so those on the pod are not among its policies; `kubectl \
                 auth can-i list ciliumnetworkpolicies.cilium.io --all-namespaces` says whether the API server would",
            );
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// Without an API server its agent tells what identities stand for, and which policies there are.
fn agent(family: Family) -> Result<()> {
    with_bpffs(|| {
        let of_shop = "k8s:io.kubernetes.pod.namespace=shop";
        let app =
            |app: &str| json!({"matchLabels": {"k8s:app": app, "k8s:io.kubernetes.pod.namespace": "shop"}});
        let web = json!({"endpointSelector": app("redis"), "ingress": [{"fromEndpoints": [app("web")]}]});
        let other = json!({"endpointSelector": app("cart"), "ingress": [{}]});
        let agent = Agent::start(
            &[(POD, &["k8s:app=redis", of_shop]), (PEER, &["k8s:app=cart", of_shop])],
            &[("NetworkPolicy", "shop", "from-web", web), ("NetworkPolicy", "shop", "other", other)],
        )?;
        let bed = Bed::new(family, Hook::Ingress)?;
        let peers = [(bed.from.ip(), PEER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &peers, &[])?;
        attach(&bed, words(PEER, POD, DENIED, ENDPOINT.into()))?;
        let mut command = crate::bed::droptrace::command(&["-o", "json", "--all", "--offline"])?;
        command.env("CILIUM_SOCK", agent.socket());
        let stream = Droptrace::spawn(command)?;
        stream.wait("attached", |output| output.stderr.contains(crate::bed::droptrace::ATTACHED))?;
        // It is asked about what was dropped, and not before.
        ensure!(agent.asked().is_empty(), "{:?}", agent.asked());
        let mut first = bed.to;
        first.set_port(OTHER);
        bed.pair.client.inject(&[packet::udp(bed.from, first, b"first")])?;
        let deadline = Instant::now() + crate::bed::patience();
        while agent.asked().len() < 3 {
            ensure!(Instant::now() < deadline, "it was asked for {:?} only", agent.asked());
            thread::sleep(Duration::from_millis(20));
        }
        // The answers are on their way.
        thread::sleep(Duration::from_millis(500));
        bed.send()?;
        let labels = |id: u32, app: &str| json!({"id": id, "labels": [format!("k8s:app={app}"), of_shop]});
        let why = "peer labels: needs app=web, the peer has app=cart";
        let policies =
            json!([{"namespace": "shop", "kind": "NetworkPolicy", "name": "from-web", "why_not": why}]);
        let expect = bed
            .drops()
            .field("/drop/cilium/source_identity", labels(PEER, "cart"))
            .field("/drop/cilium/destination_identity", labels(POD, "redis"))
            .field("/drop/cilium/policies", policies)
            .field("/drop/cilium/unread", json!([]));
        let to_first = Expect::drops(1, &bed.pair.server.netns).flow("udp", bed.from, first);
        verify(stream, &[expect, to_first], &[&bed.pair.client.netns])?;
        let asked = agent.asked();
        ensure!(asked.len() < 9 && asked.iter().all(|line| line.starts_with("GET /v1/")), "{asked:?}");
        Ok(())
    })
}

/// Cilium has counted drops that were none to the kernel: that is said at the end.
fn unseen(family: Family) -> Result<()> {
    /// Policy denied, and its bandwidth manager's drops.
    const HORIZON: u8 = 162;
    for (more, said) in [(5, true), (0, false)] {
        with_bpffs(|| {
            let bed = Bed::new(family, Hook::Ingress)?;
            let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &[], &[])?;
            let metrics = Metrics::new()?;
            metrics.set(DENIED, 10)?;
            attach(&bed, words(WORLD, POD, DENIED, ENDPOINT.into()))?;
            let stream = watch_alone()?;
            bed.send()?;
            let netns = [bed.pair.server.netns.inode()];
            let dropped = |output: &crate::bed::droptrace::Output| -> u64 {
                let codes =
                    |record: &&crate::bed::record::Record| record.number("/drop/cilium/code").is_some();
                output.drops_in(&netns).filter(codes).map(crate::bed::record::Record::count).sum()
            };
            stream.wait("the drops came", |output| dropped(output) >= 3)?;
            metrics.set(DENIED, 13)?;
            metrics.set(HORIZON, more)?;
            let output = stream.stop()?;
            let line = "note: Cilium counted 5 dropped packets that droptrace did not see as its drops (XDP, bandwidth \
                        limits, ICMP replies to denied packets, drop notifications that are off): Reached EDT \
                        rate-limiting drop horizon 5";
            let is_said = output.stderr.contains(line);
            ensure!(is_said == said && output.stderr.contains("Cilium counted") == said, "{}", output.stderr);
            Ok(())
        })?;
    }
    Ok(())
}

/// The pod sends what its own policy doesn't allow: Cilium names no endpoint then.
fn egress(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Egress)?;
        let rule = Rule { egress: true, ..allow(PEER, OTHER) };
        let peers = [(bed.to.ip(), PEER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.from.ip()], &peers, &[rule])?;
        attach(&bed, words(POD, PEER, DENIED, 0))?;
        let stream = watch_alone()?;
        bed.send()?;
        let expect = said(&bed, DENIED, "Policy denied", "default-deny")
            .field("/drop/cilium/direction", "egress")
            .field("/drop/cilium/source_identity", identity(POD))
            .field("/drop/cilium/destination_identity", identity(PEER))
            .field("/drop/cilium/allowed_now", false)
            .lists("/drop/cilium/nearest", json!({"identity": identity(PEER), "port": OTHER}));
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// An entry denies the packet, in the maps of every version.
fn deny_entry(version: Version, family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let rules = [Rule { deny: true, ..allow(PEER, PORT) }, allow(0, PORT)];
        let peers = [(bed.from.ip(), PEER)];
        let _maps = Maps::new(version, ENDPOINT, POD, &[bed.to.ip()], &peers, &rules)?;
        attach(&bed, words(PEER, POD, DENIED_BY_ENTRY, ENDPOINT.into()))?;
        let stream = watch_alone()?;
        bed.send()?;
        let expect = said(&bed, DENIED_BY_ENTRY, "Policy denied by denylist", "deny-entry")
            .field("/drop/cilium/direction", "ingress")
            .field("/drop/cilium/entry/identity", identity(PEER))
            .field("/drop/cilium/entry/port", PORT)
            .field("/drop/cilium/entry/deny", true)
            .cause("cilium-denylist")
            .field("/drop/cilium/allowed_now", false);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// The pods had authenticated to each other a while ago, and not since.
fn authentication(family: Family) -> Result<()> {
    with_bpffs(|| {
        // In another way, on another node and of another pod it is valid still.
        authenticated(&[
            (POD, PEER, 0, 1, -100),
            (POD, PEER, 0, 2, 1000),
            (POD, PEER, 7, 1, 1000),
            (POD, 5, 0, 1, 1000),
        ])?;
        let bed = Bed::new(family, Hook::Ingress)?;
        let rule = Rule { auth: 1, ..allow(PEER, PORT) };
        let peers = [(bed.from.ip(), PEER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &peers, &[rule])?;
        // The extended error is the kind of authentication.
        let mut words = words(PEER, POD, UNAUTHENTICATED, ENDPOINT.into());
        words[2] |= 1 << 8;
        attach(&bed, words)?;
        let stream = watch_alone()?;
        bed.send()?;
        let expect = said(&bed, UNAUTHENTICATED, "Authentication required", "auth")
            .field("/drop/cilium/extended_error", 1)
            .cause("cilium-auth-required")
            .field("/drop/cilium/entry/auth", 1)
            .field("/drop/cilium/entry/deny", false)
            .field("/drop/cilium/notes/1", Value::Null);
        let notes: Vec<_> = (99..130).map(|seconds| format!("the authentication of identity {POD} with identity {PEER} on this node had expired {seconds} s before the drop (cilium_auth_map)")).collect();
        let notes: Vec<_> = notes.iter().map(String::as_str).collect();
        let expect = expect.field_among("/drop/cilium/notes/0", &notes);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// The packet was denied, but the map allows it by now.
fn allowed_since(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let peers = [(bed.from.ip(), PEER)];
        let maps = Maps::new(Version::V19, ENDPOINT, POD, &[bed.to.ip()], &peers, &[allow(PEER, OTHER)])?;
        attach(&bed, words(PEER, POD, DENIED, ENDPOINT.into()))?;
        let stream = watch_alone()?;
        maps.add(allow(PEER, PORT))?;
        bed.send()?;
        let expect = said(&bed, DENIED, "Policy denied", "default-deny")
            .cause("cilium-policy-denied")
            .field("/drop/cilium/allowed_now", true);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// What 1.12 leaves.
fn old_encoding(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let _maps = Maps::new(Version::V12, ENDPOINT, POD, &[bed.to.ip()], &[], &[allow(PEER, PORT)])?;
        attach(&bed, old_words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        let stream = watch_alone()?;
        bed.send()?;
        let expect = said(&bed, DENIED, "Policy denied", "default-deny")
            .field("/drop/cilium/source_identity", identity(WORLD))
            .field("/drop/cilium/allowed_now", false)
            .field("/drop/cilium/file", Value::Null);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// Codes that are no policies', and what they are told as.
fn codes(family: Family) -> Result<()> {
    const CODES: [(u8, &str); 9] = [
        (140, "cilium-datapath-update"),
        (151, "cilium-stale-ip"),
        (155, "cilium-ct-full"),
        (158, "cilium-no-backend"),
        (167, "cilium-nat-full"),
        (168, "cilium-snat-protocol"),
        (177, "cilium-source-ranges"),
        (202, "cilium-datapath-update"),
        (203, "cilium-datapath-update"),
    ];
    with_bpffs(|| {
        let beds = CODES.map(|(code, cause)| -> Result<_> {
            let bed = Bed::new(family, Hook::Ingress)?;
            attach(&bed, words(WORLD, POD, code, ENDPOINT.into()))?;
            Ok((bed, code, cause))
        });
        let beds = beds.into_iter().collect::<Result<Vec<_>>>()?;
        let stream = watch_alone()?;
        let mut expected = Vec::new();
        for (bed, code, cause) in &beds {
            bed.send()?;
            expected.push(bed.drops().field("/drop/cilium/code", *code).cause(cause));
        }
        verify(stream, &expected, &[])
    })
}

/// Without maps there is still what the packet tells.
fn no_maps(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        attach(&bed, words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        let stream = watch_alone()?;
        bed.send()?;
        let expect = bed
            .drops()
            .field("/drop/cilium/code", DENIED)
            .field("/drop/cilium/endpoint", ENDPOINT)
            .field("/drop/cilium/source_identity", identity(WORLD))
            .field("/drop/cilium/allowed_now", Value::Null)
            .field("/drop/cilium/nearest", json!([]))
            .field("/drop/cilium/unread/1", Value::Null);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// Cilium's drop notifications are off, or what is there is no code of Cilium's. Where no reason says that a program dropped
/// it, nothing is said of Cilium.
fn nothing_left(family: Family) -> Result<()> {
    for words in [[0, 1, 0, 0, 0], words(WORLD, POD, 7, ENDPOINT.into())] {
        let bed = Bed::new(family, Hook::Ingress)?;
        attach(&bed, words)?;
        let stream = watch_alone()?;
        bed.send()?;
        let expect = if kernel::has_reason("TC_INGRESS") {
            bed.drops()
                .field("/drop/cilium/code", Value::Null)
                .field("/drop/cilium/program", "cil_from_netdev")
                .field("/drop/cilium/endpoint", Value::Null)
        } else {
            bed.drops().field("/drop/cilium", Value::Null).field("/drop/bpf/program", "cil_from_netdev")
        };
        verify(stream, &[expect], &[&bed.pair.client.netns])?;
    }
    Ok(())
}

/// The very same words, by somebody else's program.
fn foreign_program(family: Family) -> Result<()> {
    let bed = Bed::new(family, Hook::Ingress)?;
    let words = words(WORLD, POD, DENIED, ENDPOINT.into());
    bed.add_filter(&mut Program::leaving("bouncer", &words)?, 1)?;
    let stream = watch_alone()?;
    bed.send()?;
    let expect = bed.drops().field("/drop/cilium", Value::Null).field("/drop/bpf/program", "bouncer");
    verify(stream, &[expect], &[&bed.pair.client.netns])
}

/// A pod behind a netkit device: what Cilium left in the packet is still there.
fn netkit(family: Family) -> Result<()> {
    with_bpffs(|| {
        let wire = netkit_wire()?;
        let to = Wire::ends(family)?.1.ip();
        let _maps = Maps::new(Version::V19, ENDPOINT, POD, &[to], &[], &[allow(PEER, OTHER)])?;
        let mut program = program(words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        let _link = program.attach_to_netkit(&wire.client, "c0")?;
        let stream = watch_alone()?;
        let expect = drops_on(&wire, family)?
            .field("/drop/class", "policy")
            .field("/drop/bpf", Value::Null)
            .field("/drop/cilium/code", DENIED)
            .field("/drop/cilium/endpoint", ENDPOINT)
            .field("/drop/cilium/direction", "ingress")
            .field("/drop/cilium/program", "cil_from_netdev")
            .field("/drop/cilium/allowed_now", false)
            .field("/drop/cilium/unread", json!([]));
        verify(stream, &[expect], &[&wire.client])
    })
}
