//! Sandboxes of a real containerd with real CNI, and whose network namespaces and ports are by /proc.

use super::{beside, skip};
use crate::bed::cgroup;
use crate::bed::containerd::{self, Containerd, IMAGE};
use crate::bed::cri::Pod;
use crate::bed::fake_runtime::FakeRuntime;
use crate::bed::{command, kernel, patience};
use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tracer_user::identity::object::{Change, Kind, Object, Sandbox, Source, Update};
use tracer_user::identity::sources::node::Node;
use tracer_user::identity::sources::{Closed, Sink, cri, proc};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        beside("cri::bed_ends_with_a_panic", bed_ends_with_a_panic),
        beside("cri::sandboxes_come_stop_and_go", sandboxes_come_stop_and_go),
        beside("cri::a_runtime_that_is_not_there_is_waited_for", a_runtime_that_is_not_there_is_waited_for),
        beside("cri::a_runtime_that_restarts", a_runtime_that_restarts),
        beside("cri::a_runtime_without_its_service", a_runtime_without_its_service),
        beside("cri::a_runtime_that_tells_of_events", a_runtime_that_tells_of_events),
        beside("cri::events_are_not_taken_from_the_kubelet", events_are_not_taken_from_the_kubelet),
        beside("cri::owners_of_netns_by_proc", owners_of_netns_by_proc),
        beside("cri::owner_of_a_port_by_proc", owner_of_a_port_by_proc),
    ]
}

/// How soon a new sandbox must be known. It is sooner, which is printed; but the machine may be busy.
const SOON: Duration = Duration::from_secs(2);

/// A containerd, or the reason why there is none.
fn containerd() -> Result<Containerd> {
    if kernel::in_vm() {
        return Err(skip("containerd is not in the virtual machines"));
    }
    containerd::missing().map_or_else(Containerd::start, |reason| Err(skip(reason)))
}

/// A source that runs, and what it told.
struct Watching {
    updates: Receiver<(Instant, Update)>,
    _stop: oneshot::Sender<()>,
}

impl Watching {
    fn start<F>(source: impl FnOnce(Sink) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), Closed>>,
    {
        let (told, updates) = channel();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            let (sink, mut reader) = Sink::new(64);
            runtime.block_on(async {
                let read = async {
                    while let Some(update) = reader.recv().await {
                        let _ = told.send((Instant::now(), update));
                    }
                };
                tokio::select! {
                    _ = source(sink) => {}
                    () = read => {}
                    _ = stopped => {}
                }
            });
        });
        Self { updates, _stop: stop }
    }

    /// Of the runtime that listens there.
    fn cri(socket: PathBuf) -> Self {
        let options = cri::Options { socket: Some(socket), node: Node::new(["/"]) };
        Self::start(|sink| cri::watch(options, sink))
    }

    /// Waits for the first update that is it.
    fn wait<T>(&self, what: &str, is_it: impl Fn(Update) -> Option<T>) -> Result<(Instant, T)> {
        let deadline = Instant::now() + patience();
        let mut others = Vec::new();
        while let Ok((at, update)) =
            self.updates.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            others.push(format!("{update:?}"));
            if let Some(found) = is_it(update) {
                return Ok((at, found));
            }
        }
        Err(anyhow!("{what} was not told, but:\n{}", others.join("\n")))
    }

    /// Waits for a sandbox to be told as ready or not.
    fn sandbox(&self, id: &str, ready: bool) -> Result<(Instant, Sandbox)> {
        self.wait(&format!("sandbox {id}, ready: {ready}"), |update| match change(update)? {
            Change::Set(Object::Sandbox(sandbox)) if sandbox.id == id && sandbox.ready == ready => {
                Some(sandbox)
            }
            _ => None,
        })
    }

    /// Waits for a whole list and returns it.
    fn list(&self) -> Result<BTreeMap<String, Sandbox>> {
        self.wait("the begin of a list", |update| {
            (change(update)? == Change::Begin(Kind::Sandbox)).then_some(())
        })?;
        let list = std::cell::RefCell::new(BTreeMap::new());
        self.wait("the end of the list", |update| match change(update)? {
            Change::Set(Object::Sandbox(sandbox)) => {
                list.borrow_mut().insert(sandbox.id.clone(), sandbox);
                None
            }
            change => (change == Change::End(Kind::Sandbox)).then_some(()),
        })?;
        Ok(list.into_inner())
    }

    /// Everything that is told in a while.
    fn during(&self, time: Duration) -> Vec<Update> {
        thread::sleep(time);
        self.updates.try_iter().map(|(_, update)| update).collect()
    }
}

fn change(update: Update) -> Option<Change> {
    match update {
        Update::Change(_, _, change) => Some(change),
        Update::Ipvs(_) | Update::Note(_) => None,
    }
}

/// What is true of a pod by the kernel: its netns' inode, its addresses.
fn truth(pod: &Pod) -> Result<(u32, BTreeSet<IpAddr>)> {
    let processes = cgroup::processes(&pod.uid);
    let (pid, _) = processes.first().with_context(|| format!("no process of {}", pod.name))?;
    let inode = fs::metadata(format!("/proc/{pid}/ns/net"))?.ino();
    let shown =
        command::run(&format!("nsenter --net=/proc/{pid}/ns/net ip -json address show scope global"))?;
    let links: serde_json::Value = serde_json::from_str(&shown)?;
    let infos =
        links.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
    let addresses = infos.filter_map(|info| info["local"].as_str()?.parse().ok()).collect();
    Ok((u32::try_from(inode)?, addresses))
}

/// Checks a sandbox against the pod and the kernel.
fn ensure_true(sandbox: &Sandbox, pod: &Pod) -> Result<()> {
    let (inode, addresses) = truth(pod)?;
    ensure!((&sandbox.pod.namespace, &sandbox.pod.name) == (&pod.namespace, &pod.name), "{sandbox:?}");
    ensure!(sandbox.uid == pod.uid && sandbox.labels == pod.labels, "{sandbox:?}, but the pod is {pod:?}");
    ensure!(addresses.len() == 2, "the pod has {addresses:?}");
    let told: BTreeSet<IpAddr> = sandbox.addresses.iter().copied().collect();
    ensure!(told == addresses, "told {told:?}, true are {addresses:?}");
    ensure!(sandbox.netns == Some(inode), "told {:?}, true is {inode}", sandbox.netns);
    ensure!(sandbox.ready && !sandbox.host_network, "{sandbox:?}");
    let age = jiff::Timestamp::now().as_nanosecond() - sandbox.created.context("no time")?.0;
    ensure!((0..3_600_000_000_000).contains(&age), "made {age} ns ago");
    Ok(())
}

fn bed_ends_with_a_panic() -> Result<()> {
    let mut bed = containerd()?;
    let (folder, pod) = (bed.folder().to_owned(), Pod::new("shop", "panic"));
    let uid = pod.uid.clone();
    let mut names = BTreeSet::new();
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let _ran = bed.run(&pod);
        names = containerd::namespaces(&uid);
        let _held = bed;
        // Not a panic, which would print: the same unwinding, silently.
        std::panic::resume_unwind(Box::new(()));
    }));
    ensure!(outcome.is_err() && !names.is_empty(), "no pod's network namespace was made");
    containerd::ensure_gone(&folder, &uid, &names)
}

fn sandboxes_come_stop_and_go() -> Result<()> {
    let mut bed = containerd()?;
    let before = Pod::new("shop", "before");
    let before_id = bed.run(&before)?;
    let watching = Watching::cri(bed.socket());
    let list = watching.list()?;
    ensure!(list.len() == 1, "not only the pod that was there: {list:?}");
    ensure_true(list.get(&before_id).context("another one")?, &before)?;

    // One that comes, some times, to see how soon it is known.
    let mut delays = Vec::new();
    for number in 0..4 {
        let mut pod = Pod::new("shop", &format!("cart-{number}"));
        pod.labels.insert("tier".into(), "front".into());
        let id = bed.run(&pod)?;
        let returned = Instant::now();
        let (at, sandbox) = watching.sandbox(&id, true)?;
        ensure_true(&sandbox, &pod)?;
        delays.push(at.saturating_duration_since(returned));
        bed.client().stop(&id)?;
        let stopped = Instant::now();
        let (at, sandbox) = watching.sandbox(&id, false)?;
        ensure!(sandbox.uid == pod.uid, "{sandbox:?}");
        if sandbox.netns.is_some() {
            // It stopped before its network namespace went, which is told then.
            let (_, sandbox) = watching.sandbox(&id, false)?;
            ensure!(sandbox.netns.is_none(), "{sandbox:?}");
        }
        let late = at.saturating_duration_since(stopped);
        ensure!(late < SOON, "that it stopped was known only after {late:?}");
        delays.push(late);
        bed.client().remove(&id)?;
        if number > 0 {
            continue;
        }
        // Nothing tells of this: it is found when everything is asked for.
        watching.wait("that it is gone", |update| {
            (change(update)? == Change::Delete(Kind::Sandbox, id.clone())).then_some(())
        })?;
    }
    eprintln!("cri: after RunPodSandbox and StopPodSandbox returned it was known in {delays:?}");
    ensure!(delays.iter().all(|delay| *delay < SOON), "{delays:?}");

    // In the network namespace of the runtime.
    let host = Pod { host_network: true, ..Pod::new("kube-system", "proxy") };
    let id = bed.run(&host)?;
    let (_, sandbox) = watching.sandbox(&id, true)?;
    ensure!(sandbox.host_network && sandbox.netns.is_none(), "{sandbox:?}");

    // One that stops by itself.
    for (pid, _) in cgroup::processes(&before.uid) {
        command::run(&format!("kill -9 {pid}"))?;
    }
    let (_, sandbox) = watching.sandbox(&before_id, false)?;
    ensure!(sandbox.netns.is_some(), "its network namespace is still there: {sandbox:?}");
    bed.client().stop(&before_id)?;
    let (_, sandbox) = watching.sandbox(&before_id, false)?;
    ensure!(sandbox.netns.is_none(), "now it is not: {sandbox:?}");
    Ok(())
}

fn a_runtime_that_is_not_there_is_waited_for() -> Result<()> {
    let mut bed = containerd()?;
    let pod = Pod::new("shop", "waits");
    let id = bed.run(&pod)?;
    bed.kill();
    fs::remove_file(bed.socket())?;
    let watching = Watching::cri(bed.socket());
    let told = watching.during(Duration::from_millis(500));
    ensure!(told.is_empty(), "without a runtime something was told: {told:?}");
    bed.resume()?;
    let list = watching.list()?;
    ensure_true(list.get(&id).context("the pod is not told")?, &pod)
}

fn a_runtime_that_restarts() -> Result<()> {
    let mut bed = containerd()?;
    let (stays, goes) = (Pod::new("shop", "stays"), Pod::new("shop", "goes"));
    let (stays_id, goes_id) = (bed.run(&stays)?, bed.run(&goes)?);
    let watching = Watching::cri(bed.socket());
    let list = watching.list()?;
    ensure!(list.keys().eq(BTreeSet::from([&stays_id, &goes_id])), "{list:?}");
    bed.kill();
    let told = watching.during(Duration::from_millis(500));
    ensure!(told.is_empty(), "a restart is not worth a word: {told:?}");
    // Meanwhile one pod goes.
    for (pid, _) in cgroup::processes(&goes.uid) {
        command::run(&format!("kill -9 {pid}"))?;
    }
    bed.resume()?;
    let (_, sandbox) = watching.sandbox(&goes_id, false)?;
    ensure!(sandbox.uid == goes.uid, "{sandbox:?}");
    // Gone for long enough that it is noticed: everything is told again.
    bed.kill();
    let told = watching.during(Duration::from_secs(6));
    ensure!(told.is_empty(), "a restart is not worth a word: {told:?}");
    bed.resume()?;
    let list = watching.list()?;
    ensure_true(list.get(&stays_id).context("the pod that stayed is gone")?, &stays)?;
    ensure!(list.get(&goes_id).is_none_or(|sandbox| !sandbox.ready), "{list:?}");
    let new = Pod::new("shop", "new");
    let id = bed.run(&new)?;
    let (_, sandbox) = watching.sandbox(&id, true)?;
    ensure_true(&sandbox, &new)
}

/// Docker's containerd listens on the same socket, but does not serve pods.
fn a_runtime_without_its_service() -> Result<()> {
    let mut bed = containerd()?;
    bed.kill();
    let config = bed.folder().join("config.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(
        &config,
        text.replace("disabled_plugins = [", "disabled_plugins = [\"io.containerd.grpc.v1.cri\", "),
    )?;
    bed.spawn()?;
    let watching = Watching::cri(bed.socket());
    let (_, note) = watching.wait("a note", |update| match update {
        Update::Note(line) if line.contains("nobody listens") => None,
        Update::Note(line) => Some(line),
        Update::Change(..) | Update::Ipvs(_) => None,
    })?;
    ensure!(note.contains("does not serve CRI v1"), "{note}");
    let told = watching.during(Duration::from_secs(1));
    ensure!(told.is_empty(), "told again: {told:?}");
    fs::write(&config, text)?;
    bed.resume()?;
    let (_, note) = watching.wait("a note", |update| match update {
        Update::Note(line) if line.contains("answers now") => Some(line),
        _ => None,
    })?;
    ensure!(note.contains("containerd.sock"), "{note}");
    ensure!(watching.list()?.is_empty(), "there is no pod");
    Ok(())
}

fn a_runtime_that_tells_of_events() -> Result<()> {
    let runtime = FakeRuntime::start("v2.0.1")?;
    let watching = Watching::cri(runtime.socket());
    ensure!(watching.list()?.is_empty(), "there is none yet");
    for number in 0..5 {
        let id = format!("s{number}");
        let made = Instant::now();
        runtime.make(&id);
        let (at, sandbox) = watching.sandbox(&id, true)?;
        let delay = at.saturating_duration_since(made);
        ensure!(sandbox.pod.name == format!("pod-{id}") && sandbox.netns.is_some(), "{sandbox:?}");
        // Well before it would be asked without an event.
        ensure!(delay < SOON, "known after {delay:?}");
    }
    // What happens in a sandbox is no reason to ask.
    let asked = runtime.asked("ListPodSandbox");
    (0..10).for_each(|_| runtime.tell_of_container("s0"));
    let told = watching.during(Duration::from_millis(500));
    ensure!(told.is_empty() && runtime.asked("ListPodSandbox") == asked, "asked for nothing, told {told:?}");
    ensure!(runtime.asked("PodSandboxStatus") == 5, "each sandbox is asked about once");
    Ok(())
}

/// containerd 1.7 gives each event to one listener only.
fn events_are_not_taken_from_the_kubelet() -> Result<()> {
    let runtime = FakeRuntime::start("v1.7.27")?;
    let watching = Watching::cri(runtime.socket());
    watching.list()?;
    runtime.make("s0");
    watching.sandbox("s0", true)?;
    ensure!(runtime.asked("GetContainerEvents") == 0, "events were asked for");
    Ok(())
}

/// What /proc tells of netns, by inode.
fn owner(watching: &Watching, netns: u32) -> Result<tracer_user::identity::object::NetnsOwner> {
    let found = watching.wait(&format!("the owner of netns {netns}"), |update| match update {
        Update::Change(Source::Proc, _, Change::Set(Object::Netns(owner))) if owner.netns == netns => {
            Some(owner)
        }
        _ => None,
    });
    found.map(|(_, owner)| owner)
}

fn owners_of_netns_by_proc() -> Result<()> {
    let mut bed = containerd()?;
    let first = Pod::new("shop", "first");
    let sandbox = bed.run(&first)?;
    let container = bed.client().start(&first, &sandbox, IMAGE, &["/bin/sleep", "1000"])?;
    let (requests, receiver) = mpsc::channel(16);
    let watching =
        Watching::start(|sink| proc::watch(proc::Options { node: Node::new(["/"]) }, receiver, sink));
    let (inode, addresses) = truth(&first)?;
    let told = owner(&watching, inode)?;
    ensure!(told.cgroup.pod.as_ref() == Some(&first.uid), "{told:?}");
    let is_one = |id: &String| *id == sandbox || *id == container;
    ensure!(told.cgroup.container.as_ref().is_some_and(is_one), "{told:?}, not {sandbox} or {container}");
    ensure!(
        told.addresses.iter().copied().collect::<BTreeSet<_>>() == addresses,
        "{told:?}, not {addresses:?}"
    );
    watching.wait("the end", |update| (change(update)? == Change::End(Kind::Netns)).then_some(()))?;

    // A new one is told when somebody asks, and not before.
    let second = Pod::new("shop", "second");
    let id = bed.run(&second)?;
    let told = watching.during(Duration::from_millis(500));
    ensure!(told.is_empty(), "nobody asked: {told:?}");
    let (inode, _) = truth(&second)?;
    let asked = Instant::now();
    requests.blocking_send(proc::Request::Netns(inode))?;
    let told = owner(&watching, inode)?;
    eprintln!("proc: an unknown netns was known {:?} after it was asked for", asked.elapsed());
    ensure!(told.cgroup.pod.as_ref() == Some(&second.uid), "{told:?}");
    ensure!(told.cgroup.container.as_ref() == Some(&id), "{told:?}, not {id}");

    // And so is that one is gone.
    let (gone, _) = truth(&first)?;
    bed.client().stop(&sandbox)?;
    requests.blocking_send(proc::Request::Netns(1))?;
    watching.wait("that it is gone", |update| {
        (change(update)? == Change::Delete(Kind::Netns, gone.to_string())).then_some(())
    })?;
    Ok(())
}

fn owner_of_a_port_by_proc() -> Result<()> {
    const ID: &str = "d70bace0d70bace0d70bace0d70bace0d70bace0d70bace0d70bace0d70bace0";
    let pod = Pod::new("kube-system", "host-port");
    let made = cgroup::Made::new(&pod.uid, ID).map_err(|error| skip(format!("{error:#}")))?;
    // In the network namespace that this is in itself: the node's.
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listener = command::words(&format!("ncat -k -l 127.0.0.1 {free}")).spawn();
    let listener = command::Background(listener.map_err(|error| skip(format!("no ncat: {error}")))?);
    made.take(listener.0.id())?;
    let deadline = Instant::now() + patience();
    while std::net::TcpStream::connect(("127.0.0.1", free)).is_err() {
        ensure!(Instant::now() < deadline, "ncat does not listen");
        thread::sleep(Duration::from_millis(10));
    }
    let (requests, receiver) = mpsc::channel(16);
    let watching =
        Watching::start(|sink| proc::watch(proc::Options { node: Node::new(["/"]) }, receiver, sink));
    let told = watching.during(Duration::from_secs(1));
    let is_socket = |update: &Update| matches!(update, Update::Change(_, _, Change::Set(Object::Socket(_))));
    ensure!(!told.iter().any(is_socket), "nobody asked for ports");
    requests.blocking_send(proc::Request::Sockets)?;
    let (_, socket) = watching.wait("the port", |update| match change(update)? {
        Change::Set(Object::Socket(socket)) if (socket.protocol, socket.port) == (6, free) => Some(socket),
        _ => None,
    })?;
    ensure!(socket.cgroup.pod.as_ref() == Some(&pod.uid), "{socket:?}");
    ensure!(socket.cgroup.container.as_deref() == Some(ID), "{socket:?}");
    Ok(())
}
