//! What becomes known of a Kubernetes API server, whatever it does: lists, pages, watches, outages, refusals and lies.

mod told;

use super::{beside, skip};
use crate::bed::droptrace::{self, Droptrace};
use crate::bed::kernel;
use crate::bed::kube_api::{Behaviour, Gone, KubeApi, Lie, Request, Streaming, objects};
use crate::bed::namespace::Namespace;
use crate::bed::tunnel_proxy::TunnelProxy;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};
use told::{TIMING, Told};
use tracer_user::identity::object::{Kind, Object};
use tracer_user::identity::sources::Sink;
use tracer_user::identity::sources::api::{self, NotConfigured, Options};

pub(super) fn trials() -> Vec<Trial> {
    if kernel::in_vm() {
        // Nothing of this is the kernel's: once, on the machine itself, is enough.
        return Vec::new();
    }
    vec![
        beside("kube_api::a_cluster_becomes_known", a_cluster_becomes_known),
        beside("kube_api::an_older_server_is_asked_for_pages", an_older_server_is_asked_for_pages),
        beside("kube_api::a_list_without_end_is_given_up", a_list_without_end_is_given_up),
        beside("kube_api::changes_come", changes_come),
        beside("kube_api::a_watch_goes_on_from_the_bookmark", a_watch_goes_on_from_the_bookmark),
        beside("kube_api::what_is_too_old_is_listed_again", what_is_too_old_is_listed_again),
        beside("kube_api::a_watch_ends_and_goes_on", a_watch_ends_and_goes_on),
        beside("kube_api::a_silent_server_is_noticed", a_silent_server_is_noticed),
        beside("kube_api::a_server_restarts", a_server_restarts),
        beside("kube_api::one_kind_is_forbidden", one_kind_is_forbidden),
        beside("kube_api::a_cluster_without_cilium", a_cluster_without_cilium),
        beside("kube_api::credentials_expire", credentials_expire),
        beside("kube_api::credentials_come_from_a_program", credentials_come_from_a_program),
        beside("kube_api::a_service_account_is_used", a_service_account_is_used),
        beside("kube_api::an_impostor_is_not_trusted", an_impostor_is_not_trusted),
        beside("kube_api::one_broken_pod_spoils_no_other", one_broken_pod_spoils_no_other),
        beside("kube_api::lies_are_survived", lies_are_survived),
        beside("kube_api::a_flood_is_cut_off", a_flood_is_cut_off),
        beside("kube_api::a_hasty_server_is_not_asked_hastily", a_hasty_server_is_not_asked_hastily),
        beside("kube_api::a_kubeconfig_comes_later", a_kubeconfig_comes_later),
        beside("kube_api::a_proxy_is_used", a_proxy_is_used),
        beside("kube_api::no_server_is_no_trouble", no_server_is_no_trouble),
        beside("kube_api::a_server_stays_in_its_namespace", a_server_stays_in_its_namespace),
        beside("kube_api::it_ends_when_nobody_reads", it_ends_when_nobody_reads),
    ]
}

/// Kinds that are watched, and those of them that are Cilium's.
const KINDS: usize = 11;
const CILIUMS: [&str; 3] = ["ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumidentities"];

/// A server that has a pod `shop/a`, and a node.
fn server() -> Result<KubeApi> {
    let api = KubeApi::start("127.0.0.1:0".parse()?)?;
    api.set(objects::node("node1", &["192.0.2.1"]));
    api.set(objects::pod("shop", "a", "node1", &["10.0.0.1"]));
    Ok(api)
}

fn a_cluster_becomes_known() -> Result<()> {
    let api = KubeApi::start("127.0.0.1:0".parse()?)?;
    for object in objects::recorded() {
        api.set(object);
    }
    api.set(objects::replica_set("shop", "web-6d4cf56db6", "web"));
    let mut told = Told::of(&api)?;
    told.until("all lists", |told| told.lists.len() == KINDS)?;
    let counts: Vec<usize> =
        [Kind::Pod, Kind::Service, Kind::Slice, Kind::Node, Kind::Namespace, Kind::ReplicaSet, Kind::Job]
            .map(|kind| told.known(kind).len())
            .to_vec();
    ensure!(counts == [21, 26, 26, 2, 8, 1, 0], "{counts:?}");
    let Some(Object::Pod(pod)) = told.known(Kind::Pod).get("edge/gw-0") else { anyhow::bail!("no gw-0") };
    ensure!(
        pod.addresses == ["10.244.1.11".parse::<std::net::IpAddr>()?, "fd00:10:244:1::b".parse()?],
        "{pod:?}"
    );
    let Some(Object::Middle(set)) = told.known(Kind::ReplicaSet).get("shop/web-6d4cf56db6") else {
        anyhow::bail!("no ReplicaSet")
    };
    ensure!(set.owner.as_ref().is_some_and(|owner| owner.name == "web"), "{set:?}");
    ensure!(told.notes.is_empty(), "{:?}", told.notes);
    let requests = api.requests();
    ensure!(
        requests.len() == KINDS && requests.iter().all(|asked| asked.query.contains_key("sendInitialEvents")),
        "{requests:?}"
    );
    let thin: Vec<_> =
        requests.iter().filter(|asked| asked.metadata).map(|asked| asked.resource.as_str()).collect();
    ensure!(thin.len() == 3 && !thin.contains(&"pods"), "{thin:?}");
    Ok(())
}

fn an_older_server_is_asked_for_pages() -> Result<()> {
    let api = KubeApi::start("127.0.0.1:0".parse()?)?;
    api.behave(|behaviour| behaviour.streaming = Streaming::Refused);
    for number in 0..1203 {
        api.set(objects::pod("shop", &format!("cart-{number}"), "node1", &["10.0.0.1"]));
    }
    let mut told = Told::of(&api)?;
    told.until("all pods", |told| told.known(Kind::Pod).len() == 1203 && told.lists_of(Kind::Pod) == 1)?;
    let requests = api.requests();
    let pages: Vec<_> =
        requests.iter().filter(|asked| asked.resource == "pods" && !asked.is_watch()).collect();
    ensure!(pages.len() == 3 && pages.iter().all(|page| page.query["limit"] == "500"), "{pages:?}");
    ensure!(pages[1].query.contains_key("continue") && told.notes.is_empty(), "{:?}", told.notes);
    api.set(objects::pod("shop", "late", "node1", &["10.0.0.9"]));
    told.until("a pod that came after the list", |told| told.knows("shop/late"))?;
    // The version of a list in pages is too old before it is complete.
    api.compact();
    ensure!(told.lists_of(Kind::Pod) == 1, "the list came twice");
    Ok(())
}

fn a_list_without_end_is_given_up() -> Result<()> {
    let api = server()?;
    api.behave(|behaviour| behaviour.streaming = Streaming::Misunderstood);
    let mut told = Told::of(&api)?;
    told.until("a list in pages", |told| told.lists_of(Kind::Pod) == 1 && told.knows("shop/a"))?;
    Ok(())
}

fn changes_come() -> Result<()> {
    let api = server()?;
    let mut told = Told::of(&api)?;
    told.until("the list", |told| told.lists.len() == KINDS)?;
    api.set(objects::pod("shop", "b", "node1", &["10.0.0.2"]));
    told.until("a new pod", |told| told.knows("shop/b"))?;
    api.set(objects::pod("shop", "b", "node1", &["10.0.0.3"]));
    told.until("its new address", |told| told.address("shop/b") == "10.0.0.3")?;
    api.delete("pods", "shop", "b");
    told.until("its end", |told| !told.knows("shop/b"))?;
    api.delete("nodes", "", "node1");
    told.until("the node's end", |told| told.known(Kind::Node).is_empty())?;
    ensure!(
        told.knows("shop/a") && told.lists_of(Kind::Pod) == 1 && told.notes.is_empty(),
        "{:?}",
        told.notes
    );
    Ok(())
}

/// The last watch of pods that was asked for, and from which version.
fn watched_from(api: &KubeApi) -> String {
    let of_pods = api.requests().into_iter().rfind(|asked| asked.resource == "pods" && asked.is_watch());
    of_pods.and_then(|asked| asked.query.get("resourceVersion").cloned()).unwrap_or_default()
}

fn a_watch_goes_on_from_the_bookmark() -> Result<()> {
    let api = server()?;
    let mut told = Told::of(&api)?;
    told.until("the list", |told| told.lists.len() == KINDS)?;
    // A change of another kind: only a bookmark tells the pods' watch of the version.
    api.set(objects::namespace("other"));
    api.bookmark();
    told.until("the namespace", |told| told.known(Kind::Namespace).contains_key("other"))?;
    thread::sleep(Duration::from_millis(100));
    // What is before the bookmark is forgotten: who asked for it would have to list again.
    api.compact();
    api.cut();
    told.until("a watch from the bookmark", |_| watched_from(&api) == "3")?;
    api.set(objects::pod("shop", "b", "node1", &["10.0.0.2"]));
    told.until("a new pod", |told| told.knows("shop/b"))?;
    ensure!(told.lists_of(Kind::Pod) == 1 && told.notes.is_empty(), "{:?} {:?}", told.lists, told.notes);
    Ok(())
}

fn what_is_too_old_is_listed_again() -> Result<()> {
    for (streaming, gone) in [
        (Streaming::Answered, Gone::Event),
        (Streaming::Refused, Gone::Event),
        (Streaming::Answered, Gone::Code),
    ] {
        let mut api = server()?;
        api.behave(|behaviour| (behaviour.streaming, behaviour.gone) = (streaming, gone));
        api.set(objects::pod("shop", "vanishes", "node1", &["10.0.0.7"]));
        let mut told = Told::of(&api)?;
        told.until("the lists", |told| told.lists.len() == KINDS)?;
        api.stop()?;
        api.delete("pods", "shop", "vanishes");
        api.set(objects::pod("shop", "b", "node1", &["10.0.0.2"]));
        api.compact();
        let before = api.requests().len();
        api.resume()?;
        told.until("another list", |told| told.lists_of(Kind::Pod) == 2)?;
        let stale = |asked: &&Request| {
            asked.resource == "pods" && asked.query.get("resourceVersion").is_some_and(|v| v == "3")
        };
        let requests = api.requests();
        let asked = requests.iter().skip(before).filter(stale).count();
        ensure!(asked == 1, "the version that is too old was asked for {asked} times");
        let pods: Vec<_> = told.known(Kind::Pod).keys().cloned().collect();
        ensure!(pods == ["shop/a", "shop/b"], "{streaming:?} {gone:?}: {pods:?}");
        api.set(objects::pod("shop", "c", "node1", &["10.0.0.3"]));
        told.until("what comes after", |told| told.knows("shop/c"))?;
    }
    Ok(())
}

fn a_watch_ends_and_goes_on() -> Result<()> {
    let api = server()?;
    let mut told = Told::of(&api)?;
    told.until("the list", |told| told.lists.len() == KINDS)?;
    let watches = |api: &KubeApi| api.requests().iter().filter(|asked| asked.resource == "pods").count();
    told.until("a third watch", |_| watches(&api) >= 3)?;
    api.set(objects::pod("shop", "b", "node1", &["10.0.0.2"]));
    told.until("a new pod", |told| told.knows("shop/b"))?;
    // Broken off: the same, without a word.
    for number in 0..5 {
        api.cut();
        let name = format!("cut-{number}");
        api.set(objects::pod("shop", &name, "node1", &["10.0.0.5"]));
        told.until("a pod after a cut", |told| told.knows(&format!("shop/{name}")))?;
    }
    ensure!(told.lists_of(Kind::Pod) == 1 && told.notes.is_empty(), "{:?} {:?}", told.lists, told.notes);
    Ok(())
}

fn a_silent_server_is_noticed() -> Result<()> {
    let api = server()?;
    let mut told = Told::of(&api)?;
    told.until("the list", |told| told.lists.len() == KINDS)?;
    let begun = Instant::now();
    api.behave(|behaviour| behaviour.silent = true);
    told.until("that it is silent", |told| !told.notes.is_empty())?;
    let most = TIMING.watch + TIMING.margin + TIMING.answer + TIMING.retry_most + Duration::from_secs(2);
    ensure!(begun.elapsed() < most, "noticed after {:?}", begun.elapsed());
    ensure!(told.notes[0].contains("is silent: no answer about"), "{:?}", told.notes);
    told.rest(Duration::from_secs(3))?;
    ensure!(told.notes.len() == 1, "said more than once: {:?}", told.notes);
    api.set(objects::pod("shop", "b", "node1", &["10.0.0.2"]));
    api.behave(|behaviour| behaviour.silent = false);
    told.until("what was missed", |told| told.knows("shop/b"))?;
    told.until("that it is back", |told| told.notes.len() == 2)?;
    ensure!(told.notes[1].ends_with("answers again") && told.knows("shop/a"), "{:?}", told.notes);
    Ok(())
}

fn a_server_restarts() -> Result<()> {
    let mut api = server()?;
    let mut told = Told::of(&api)?;
    told.until("the list", |told| told.lists.len() == KINDS)?;
    for round in 1..=2 {
        told.notes.clear();
        api.stop()?;
        told.until("that it is gone", |told| !told.notes.is_empty())?;
        told.rest(Duration::from_secs(1))?;
        ensure!(told.notes.len() == 1, "said more than once: {:?}", told.notes);
        let expected = format!("does not answer at {}/: Connection refused", api.url());
        ensure!(told.notes[0].contains(&expected), "{:?} without {expected}", told.notes);
        let name = format!("b{round}");
        api.set(objects::pod("shop", &name, "node1", &["10.0.0.2"]));
        api.resume()?;
        told.until("what was missed", |told| told.knows(&format!("shop/{name}")))?;
        told.until("that it is back", |told| told.notes.len() == 2)?;
        ensure!(told.notes[1].ends_with("answers again"), "{:?}", told.notes);
    }
    ensure!(told.lists_of(Kind::Pod) == 1, "listed again, though nothing was lost");
    Ok(())
}

fn one_kind_is_forbidden() -> Result<()> {
    let api = server()?;
    api.behave(|behaviour| {
        behaviour.forbidden.insert("jobs".to_owned());
        behaviour.missing.insert("endpointslices".to_owned());
    });
    let mut told = Told::of(&api)?;
    told.until("the other lists, and why there are no more", |told| {
        told.lists.len() == KINDS - 2 && told.notes.len() == 2
    })?;
    ensure!(told.knows("shop/a"), "no pods");
    told.notes.sort();
    let [missing, forbidden] = &told.notes[..] else { anyhow::bail!("{:?}", told.notes) };
    for words in [
        "list and watch jobs.batch (403: jobs is forbidden: User",
        "kubectl auth can-i list jobs.batch",
        "ClusterRole",
    ] {
        ensure!(forbidden.contains(words), "{forbidden} without {words}");
    }
    ensure!(missing.contains("has no endpointslices.discovery.k8s.io (404"), "{missing}");
    told.rest(Duration::from_secs(1))?;
    ensure!(told.notes.len() == 2, "said more than once: {:?}", told.notes);
    api.behave(|behaviour| *behaviour = Behaviour::default());
    told.until("the jobs", |told| told.lists_of(Kind::Job) == 1 && told.notes.len() == 4)?;
    ensure!(told.notes.iter().any(|note| note.ends_with("tells of jobs.batch now")), "{:?}", told.notes);
    Ok(())
}

/// Nothing is said where there is no Cilium, or nobody is allowed to know; what it has then is asked for now and then.
fn a_cluster_without_cilium() -> Result<()> {
    for is_forbidden in [false, true] {
        let api = server()?;
        let cilium: std::collections::BTreeSet<String> = CILIUMS.map(str::to_owned).into();
        api.behave(|behaviour| match is_forbidden {
            true => behaviour.forbidden = cilium.clone(),
            false => behaviour.missing = cilium.clone(),
        });
        let mut told = Told::of(&api)?;
        // What the server has no kind of there is none of; what it keeps to itself there may be.
        let lists = if is_forbidden { KINDS - CILIUMS.len() } else { KINDS };
        told.until("the lists", |told| told.lists.len() == lists)?;
        told.rest(Duration::from_secs(1))?;
        ensure!(told.notes.is_empty() && told.lists.len() == lists, "{:?} {:?}", told.notes, told.lists);
        let asked = api.requests().iter().filter(|asked| cilium.contains(&asked.resource)).count();
        ensure!(asked == CILIUMS.len(), "asked {asked} times");
        // It is installed.
        api.set(objects::cilium_identity(4711, &serde_json::json!({"k8s:app": "web"})));
        api.behave(|behaviour| *behaviour = Behaviour::default());
        told.until("an identity", |told| told.known(Kind::Identity).contains_key("4711"))?;
        ensure!(told.notes.is_empty(), "{:?}", told.notes);
    }
    Ok(())
}

fn credentials_expire() -> Result<()> {
    let api = server()?;
    let mut told = Told::of(&api)?;
    told.until("the list", |told| told.lists.len() == KINDS)?;
    api.behave(|behaviour| "another".clone_into(&mut behaviour.token));
    api.cut();
    told.until("that they are not accepted", |told| !told.notes.is_empty())?;
    told.rest(Duration::from_secs(1))?;
    ensure!(
        told.notes.len() == 1
            && told.notes[0].contains("does not accept the credentials (401: Unauthorized)"),
        "{:?}",
        told.notes
    );
    // Who has the node renews the kubeconfig: it is read again.
    let kubeconfig = fs::read_to_string(api.kubeconfig())?;
    fs::write(api.kubeconfig(), kubeconfig.replace("droptrace-test", "another"))?;
    api.set(objects::pod("shop", "b", "node1", &["10.0.0.2"]));
    told.until("what was missed", |told| told.knows("shop/b"))?;
    told.until("that it is back", |told| told.notes.len() == 2)?;
    Ok(())
}

/// `exec` in a kubeconfig, as the clouds have it: the program is run again where it failed, and where what it made is not
/// accepted any more.
fn credentials_come_from_a_program() -> Result<()> {
    let api = server()?;
    let made = api.folder().join("made");
    let make = |token: &str| {
        let (kind, version) = ("ExecCredential", "client.authentication.k8s.io/v1");
        let credential = json!({"kind": kind, "apiVersion": version, "status": {"token": token}});
        fs::write(&made, credential.to_string())
    };
    let mut kubeconfig: serde_json::Value = serde_json::from_slice(&fs::read(api.kubeconfig())?)?;
    kubeconfig["users"][0]["user"] = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1",
        "command": "cat", "args": [made.to_str().context("a path that is text")?], "interactiveMode": "Never"}});
    fs::write(api.kubeconfig(), kubeconfig.to_string())?;
    let mut told = Told::of(&api)?;
    told.until("that there are none", |told| !told.notes.is_empty())?;
    ensure!(told.notes[0].contains("credentials") && !told.knows("shop/a"), "{:?}", told.notes);
    make("droptrace-test")?;
    told.until("the pods", |told| told.knows("shop/a") && told.lists.len() == KINDS)?;
    // They expire.
    api.behave(|behaviour| "another".clone_into(&mut behaviour.token));
    api.cut();
    told.until("that they are not accepted", |told| told.notes.iter().any(|note| note.contains("401")))?;
    make("another")?;
    api.set(objects::pod("shop", "b", "node1", &["10.0.0.2"]));
    told.until("what was missed", |told| told.knows("shop/b"))
}

/// In a pod: the account's files are where the kubelet puts them, the server is where the environment says.
fn a_service_account_is_used() -> Result<()> {
    let api = server()?;
    let folder = api.folder();
    let address: SocketAddr = api.url().trim_start_matches("https://").parse()?;
    fs::write(folder.join("token"), "droptrace-test")?;
    fs::write(folder.join("namespace"), "monitoring")?;
    // /run of its own, in a mount namespace that ends with it: /var/run leads there.
    let script = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && \
                  cp -r \"$1\" /run/secrets/kubernetes.io/serviceaccount && \
                  ls /var/run/secrets/kubernetes.io/serviceaccount/token >/dev/null && exec \"$2\" --pod shop/a";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(folder).arg(droptrace::binary()?);
    command.env_remove("KUBECONFIG").env("HOME", folder);
    command.env("KUBERNETES_SERVICE_HOST", address.ip().to_string());
    command.env("KUBERNETES_SERVICE_PORT", address.port().to_string());
    let stream = Droptrace::spawn(command)?;
    stream.wait("the pod is known", |output| output.stderr.contains("pod shop/a (10.0.0.1"))
}

fn an_impostor_is_not_trusted() -> Result<()> {
    let api = KubeApi::start_impostor("127.0.0.1:0".parse()?)?;
    let mut told = Told::of(&api)?;
    told.until("why not", |told| !told.notes.is_empty())?;
    told.rest(Duration::from_secs(1))?;
    ensure!(
        told.notes.len() == 1
            && told.notes[0].contains("is not secure, so it is not used: invalid peer certificate"),
        "{:?}",
        told.notes
    );
    ensure!(
        api.requests().is_empty() && told.lists.is_empty(),
        "the token was sent to it: {:?}",
        api.requests()
    );
    Ok(())
}

fn one_broken_pod_spoils_no_other() -> Result<()> {
    for streaming in [Streaming::Answered, Streaming::Refused] {
        let api = server()?;
        api.behave(|behaviour| behaviour.streaming = streaming);
        let mut broken = objects::pod("shop", "broken", "node1", &["10.0.0.2"]);
        broken["spec"]["hostNetwork"] = "\u{1b}[2J".into();
        api.set(broken.clone());
        api.set(objects::pod("shop", "z", "node1", &["10.0.0.3"]));
        let mut told = Told::of(&api)?;
        told.until("the other pods", |told| told.lists_of(Kind::Pod) == 1 && told.knows("shop/z"))?;
        told.until("that one is left out", |told| !told.notes.is_empty())?;
        let words = "1 of the pods that the Kubernetes API server sent can't be read and are left out (the first: invalid type: \
                     string \"\\u{1b}[2J\"";
        ensure!(told.notes[0].contains(words), "{:?}", told.notes);
        api.set(broken);
        api.set(objects::pod("shop", "late", "node1", &["10.0.0.4"]));
        told.until("what comes after", |told| told.knows("shop/late"))?;
        ensure!(told.notes.len() == 1 && !told.knows("shop/broken"), "{:?}", told.notes);
    }
    Ok(())
}

fn lies_are_survived() -> Result<()> {
    let lies = [
        (
            Streaming::Answered,
            Lie::Text("<html>portal</html>\n".to_owned()),
            "does not answer about pods like a Kubernetes",
        ),
        (
            Streaming::Refused,
            Lie::Text("<html>portal</html>\n".to_owned()),
            "does not answer about pods like a Kubernetes",
        ),
        (Streaming::Refused, Lie::Text("{}".to_owned()), "a list without a version"),
        (Streaming::Answered, Lie::Half, "broke off its answer about pods"),
        (Streaming::Refused, Lie::Half, "broke off its answer about pods"),
        (Streaming::Answered, Lie::Status(500), "refuses to list pods (500: the server lies)"),
        (Streaming::Refused, Lie::Slow(Duration::from_millis(500)), "is silent"),
    ];
    for (streaming, lie, words) in lies {
        let api = server()?;
        api.behave(|behaviour| {
            behaviour.streaming = streaming;
            behaviour.lies.insert("pods".to_owned(), lie.clone());
        });
        let mut told = Told::of(&api)?;
        told.until(words, |told| told.notes.iter().any(|note| note.contains(words)))
            .with_context(|| format!("{lie:?}"))?;
        told.until("what it tells the truth of", |told| told.lists.len() == KINDS - 1)?;
        api.behave(|behaviour| behaviour.lies.clear());
        told.until("the truth", |told| told.lists_of(Kind::Pod) == 1 && told.knows("shop/a"))?;
    }
    Ok(())
}

fn a_flood_is_cut_off() -> Result<()> {
    for (streaming, bytes) in [(Streaming::Answered, 32 << 20), (Streaming::Refused, 80 << 20)] {
        let api = server()?;
        api.behave(|behaviour| {
            behaviour.streaming = streaming;
            behaviour.lies.insert("pods".to_owned(), Lie::Huge(bytes));
        });
        let mut told = Told::of(&api)?;
        told.until("that it is too much", |told| !told.notes.is_empty())?;
        ensure!(told.notes[0].contains("sends too much about pods"), "{streaming:?}: {:?}", told.notes);
    }
    Ok(())
}

fn a_hasty_server_is_not_asked_hastily() -> Result<()> {
    let api = server()?;
    api.behave(|behaviour| {
        behaviour.lies.insert("pods".to_owned(), Lie::Text(String::new()));
    });
    let mut told = Told::of(&api)?;
    told.rest(Duration::from_secs(2))?;
    let asked = api.requests().iter().filter(|asked| asked.resource == "pods").count();
    // Two seconds, and half of the longest pause each, after a few shorter ones.
    ensure!((5..40).contains(&asked), "asked {asked} times");
    Ok(())
}

fn a_kubeconfig_comes_later() -> Result<()> {
    let api = server()?;
    let kubeconfig = fs::read(api.kubeconfig())?;
    fs::remove_file(api.kubeconfig())?;
    let mut told = Told::of(&api)?;
    told.until("that it is not there", |told| !told.notes.is_empty())?;
    ensure!(told.notes[0].contains("can't be asked: failed to read kubeconfig from"), "{:?}", told.notes);
    fs::write(api.kubeconfig(), "clusters: {")?;
    told.rest(Duration::from_millis(500))?;
    fs::write(api.kubeconfig(), kubeconfig)?;
    told.until("the pods", |told| told.knows("shop/a"))?;
    ensure!(
        told.notes.iter().filter(|note| note.contains("can't be asked")).count() == 1,
        "{:?}",
        told.notes
    );
    Ok(())
}

fn a_proxy_is_used() -> Result<()> {
    let (api, proxy) = (server()?, TunnelProxy::start()?);
    let mut kubeconfig: serde_json::Value = serde_json::from_slice(&fs::read(api.kubeconfig())?)?;
    kubeconfig["clusters"][0]["cluster"]["proxy-url"] = proxy.url().into();
    fs::write(api.kubeconfig(), kubeconfig.to_string())?;
    let mut told = Told::of(&api)?;
    told.until("the pods", |told| told.knows("shop/a") && told.lists.len() == KINDS)?;
    ensure!(
        proxy.tunnels() as usize >= KINDS && told.notes.is_empty(),
        "{} tunnels, {:?}",
        proxy.tunnels(),
        told.notes
    );
    Ok(())
}

fn no_server_is_no_trouble() -> Result<()> {
    let kubeconfig = env::home_dir().is_some_and(|home| home.join(".kube/config").exists());
    if kubeconfig || ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"].iter().any(|name| env::var_os(name).is_some())
    {
        return Err(skip("there is a kubeconfig here"));
    }
    let (sink, mut reader) = Sink::new(8);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(api::watch(Options::default(), sink));
    ensure!(ended == Ok(NotConfigured) && reader.try_recv().is_err(), "it ended with {ended:?}");
    Ok(())
}

fn a_server_stays_in_its_namespace() -> Result<()> {
    let netns = Namespace::new()?;
    let mut api = netns.enter(server)?;
    let address: SocketAddr = api.url().trim_start_matches("https://").parse()?;
    for _ in 0..2 {
        netns.enter(|| TcpStream::connect(address).context("from inside"))?;
        ensure!(TcpStream::connect(address).is_err(), "it answers outside of its namespace");
        api.stop()?;
        ensure!(
            netns.enter(|| Ok(TcpStream::connect(address).is_err()))?,
            "it listens, though it was stopped"
        );
        api.resume()?;
    }
    Ok(())
}

fn it_ends_when_nobody_reads() -> Result<()> {
    let api = server()?;
    let mut told = Told::of(&api)?;
    told.until("the list", |told| told.lists.len() == KINDS)?;
    let begun = Instant::now();
    told.end()?;
    ensure!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    Ok(())
}
