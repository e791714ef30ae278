//! The node's container runtime, asked through the Container Runtime Interface: which sandbox is whose, before the API
//! server says so, and where there is none.

mod client;
mod messages;
mod pace;
mod sandbox;
mod session;
mod trigger;

use super::node::Node;
use super::{Closed, Sink};
use client::{Client, Failure};
use messages::VersionResponse;
use session::Session;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where runtimes listen: containerd, CRI-O, k3s and RKE2, MicroK8s, k0s, cri-dockerd.
const SOCKETS: [&str; 8] = [
    "/run/containerd/containerd.sock",
    "/var/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/cri-dockerd.sock",
];
/// How often a socket is looked for where there is none.
const LOOK: Duration = Duration::from_secs(10);
/// A runtime that is gone for less than this was restarted: not worth a word.
const RESTART: Duration = Duration::from_secs(10);
/// Between two tries to reach a runtime that is there: at first, and at most.
const RETRY: Duration = Duration::from_millis(200);

/// Where to look for the runtime.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The runtime's socket; `None` looks for one.
    pub socket: Option<PathBuf>,
    /// Where the node's files are.
    pub node: Node,
}

impl Options {
    /// The usual places, or what the environment variable `CONTAINER_RUNTIME_ENDPOINT` says (as crictl reads it:
    /// `unix:///run/containerd/containerd.sock`).
    #[must_use]
    pub fn from_environment() -> Self {
        let endpoint = std::env::var("CONTAINER_RUNTIME_ENDPOINT").unwrap_or_default();
        Self { socket: socket_of(&endpoint), node: Node::default() }
    }

    /// The sockets that there are now, each once. Empty: no container runtime is here.
    #[must_use]
    pub fn sockets(&self) -> Vec<PathBuf> {
        let named = self.socket.as_deref().into_iter();
        let usual = SOCKETS.iter().map(Path::new).filter(|_| self.socket.is_none());
        let mut found: Vec<PathBuf> = Vec::new();
        for place in named.chain(usual).flat_map(|path| self.node.places(path)) {
            let Ok(socket) = fs::canonicalize(place) else { continue };
            let is_socket = fs::metadata(&socket).is_ok_and(|file| file.file_type().is_socket());
            if is_socket && !found.contains(&socket) {
                found.push(socket);
            }
        }
        found
    }
}

fn socket_of(endpoint: &str) -> Option<PathBuf> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Tells of the node's sandboxes until nobody reads any more: all at first, then each that comes, stops or goes. A
/// runtime that is not there yet is waited for in silence, one that can't be asked is told of in one line, and one that
/// restarts is asked for all again.
///
/// # Errors
/// When nobody reads any more, which is the only end.
pub async fn watch(options: Options, sink: Sink) -> Result<(), Closed> {
    let closed = sink.clone();
    tokio::select! {
        () = closed.closed() => Err(Closed),
        ended = Watch { options, sink, trouble: Trouble::default() }.run() => ended,
    }
}

#[derive(Debug)]
struct Watch {
    options: Options,
    sink: Sink,
    trouble: Trouble,
}

impl Watch {
    async fn run(mut self) -> Result<(), Closed> {
        let mut pause = RETRY;
        loop {
            let sockets = self.options.sockets();
            match reach(&sockets).await {
                Ok((socket, client, version)) => {
                    if let Some(line) = self.trouble.over(&socket) {
                        self.sink.note(line).await?;
                    }
                    let session = Session::new(client, version, &self.options.node, &self.sink);
                    let failure = session.run(sockets.len() > 1).await?;
                    log::debug!("the container runtime at {}: {failure}", socket.display());
                    self.trouble.broke(Instant::now());
                    pause = RETRY;
                }
                Err(failures) => {
                    if let Some(line) = self.trouble.word(&failures, Instant::now()) {
                        self.sink.note(line).await?;
                    }
                }
            }
            let restarts = self.trouble.is_fresh(Instant::now());
            let wait = if sockets.is_empty() && !restarts { LOOK } else { pause };
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LOOK);
        }
    }
}

/// The runtime that answers; of several the first one that has sandboxes, for Docker brings a containerd that has none.
async fn reach(sockets: &[PathBuf]) -> Result<(PathBuf, Client, VersionResponse), Vec<(PathBuf, Failure)>> {
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for socket in sockets {
        match Client::connect(socket).await {
            Ok((client, version)) => {
                let used = sockets.len() == 1 || client.list().await.is_ok_and(|list| !list.is_empty());
                if used {
                    return Ok((socket.clone(), client, version));
                }
                answers.push((socket.clone(), client, version));
            }
            Err(failure) => failures.push((socket.clone(), failure)),
        }
    }
    answers.into_iter().next().ok_or(failures)
}

/// What was said of a runtime that can't be asked, so that each thing is said once.
#[derive(Debug, Default)]
struct Trouble {
    said: Option<String>,
    broke: Option<Instant>,
}

impl Trouble {
    /// The line for these failures, if it is another than the last one, and the runtime was not there a moment ago.
    fn word(&mut self, failures: &[(PathBuf, Failure)], now: Instant) -> Option<String> {
        if failures.is_empty() || self.is_fresh(now) {
            return None;
        }
        let each: Vec<String> =
            failures.iter().map(|(socket, failure)| format!("{}: {failure}", socket.display())).collect();
        let line = format!("no names of pods from the container runtime: {}", each.join("; "));
        let is_new = self.said.as_ref() != Some(&line);
        is_new.then(|| self.said.insert(line).clone())
    }

    /// The line for a runtime that answers, if something else was said of it.
    fn over(&mut self, socket: &Path) -> Option<String> {
        self.broke = None;
        self.said.take().map(|_| format!("the container runtime answers now: {}", socket.display()))
    }

    fn broke(&mut self, now: Instant) {
        self.broke = Some(now);
    }

    /// True in the moments after it was there.
    fn is_fresh(&self, now: Instant) -> bool {
        self.broke.is_some_and(|broke| now.saturating_duration_since(broke) < RESTART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::object::Update;
    use std::os::unix::net::UnixListener;

    #[test]
    fn endpoints_are_read_as_crictl_does() {
        let path = Some(PathBuf::from("/run/crio/crio.sock"));
        assert_eq!(socket_of("unix:///run/crio/crio.sock"), path);
        assert_eq!(socket_of("/run/crio/crio.sock"), path);
        for odd in ["", "npipe:////./pipe/containerd", "tcp://127.0.0.1:1", "run/crio.sock"] {
            assert_eq!(socket_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn each_socket_is_found_once_below_each_root() {
        let root = tempfile::tempdir().unwrap();
        let options = Options { socket: None, node: Node::new([root.path(), &root.path().join("host")]) };
        assert!(options.sockets().is_empty());
        fs::create_dir_all(root.path().join("run/containerd")).unwrap();
        fs::create_dir_all(root.path().join("host/run/crio")).unwrap();
        fs::create_dir_all(root.path().join("var")).unwrap();
        std::os::unix::fs::symlink("../run", root.path().join("var/run")).unwrap();
        fs::write(root.path().join("run/cri-dockerd.sock"), "a file").unwrap();
        let sockets = ["run/containerd/containerd.sock", "host/run/crio/crio.sock"];
        let sockets = sockets.map(|socket| fs::canonicalize(root.path()).unwrap().join(socket));
        let _listeners = [&sockets[0], &sockets[1]].map(|socket| UnixListener::bind(socket).unwrap());
        assert_eq!(options.sockets(), sockets);
    }

    #[test]
    fn trouble_is_told_once_and_its_end_too() {
        let (socket, now) = (PathBuf::from("/run/s"), Instant::now());
        let mut trouble = Trouble::default();
        let denied = [(socket.clone(), Failure::Denied)];
        assert!(trouble.word(&[], now).is_none());
        let line = trouble.word(&denied, now).unwrap();
        assert!(line.contains("/run/s: permission denied"), "{line}");
        assert_eq!(trouble.word(&denied, now), None);
        assert!(trouble.word(&[(socket.clone(), Failure::Refused)], now).is_some());
        assert!(trouble.over(&socket).is_some() && trouble.over(&socket).is_none());
        // A restart is not told, an end is.
        trouble.broke(now);
        assert_eq!(trouble.word(&denied, now + Duration::from_secs(1)), None);
        assert!(trouble.word(&denied, now + RESTART).is_some());
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_told_of_and_the_end_of_the_reader_ends_it() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("runtime.sock");
        drop(UnixListener::bind(&socket).unwrap());
        let (sink, mut reader) = Sink::new(8);
        let options =
            Options { socket: Some(PathBuf::from("/runtime.sock")), node: Node::new([root.path()]) };
        let watching = tokio::spawn(watch(options, sink));
        let Some(Update::Note(line)) = reader.recv().await else { panic!("no note") };
        assert!(line.contains("nobody listens"), "{line}");
        tokio::time::sleep(3 * RETRY).await;
        assert!(reader.try_recv().is_err(), "told twice");
        drop(reader);
        let ended = tokio::time::timeout(Duration::from_secs(5), watching).await.unwrap().unwrap();
        assert_eq!(ended, Err(Closed));
    }
}
