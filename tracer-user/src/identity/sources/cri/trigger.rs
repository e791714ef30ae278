//! What tells that sandboxes come or go: the runtime itself where it can, else the network namespaces and links that the
//! kernel says are made and deleted.

use super::client::Client;
use super::messages::{ContainerEventResponse, VersionResponse};
use super::pace::Changes;
use crate::identity::sources::node::Node;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::Streaming;

/// Where runtimes mount network namespaces: containerd and CRI-O, `ip netns`; Docker.
const FOLDERS: [&str; 3] = ["/run/netns", "/var/run/netns", "/run/docker/netns"];

/// Something, but not what.
const MISSED: Changes = Changes { made: 1, gone: 1 };

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Something is done: the runtime's answer has it by now.
    Done,
    /// Something begins or ends: the runtime's answer will have it in a moment.
    Begun(Changes),
    /// The runtime tells nothing more by itself.
    Ended,
}

/// The events of a runtime.
#[derive(Debug)]
pub(super) struct Events {
    /// Reads them, whatever this side waits for: CRI-O sends each event to one client after the other, and waits.
    reader: JoinSet<()>,
    news: Arc<Notify>,
}

impl Events {
    /// Subscribes, if the runtime is one that sends every event to everybody. containerd 1.7 sends each to only one of
    /// those who listen (containerd#7318): it would be taken from the kubelet.
    pub(super) async fn open(client: &Client, version: &VersionResponse) -> Option<Self> {
        if !tells_everybody(version) {
            return None;
        }
        let stream = client.events().await.ok()?;
        let (mut reader, news) = (JoinSet::new(), Arc::new(Notify::new()));
        reader.spawn(read(stream, Arc::clone(&news)));
        Some(Self { reader, news })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            () = self.news.notified() => Told::Done,
            _ = self.reader.join_next() => Told::Ended,
        }
    }
}

async fn read(mut stream: Streaming<ContainerEventResponse>, news: Arc<Notify>) {
    while let Ok(Some(event)) = stream.message().await {
        if is_of_sandbox(&event) {
            news.notify_one();
        }
    }
}

/// False for events of the containers in a sandbox.
fn is_of_sandbox(event: &ContainerEventResponse) -> bool {
    event.pod_sandbox_status.as_ref().is_none_or(|sandbox| sandbox.id == event.container_id)
}

/// CRI-O has always sent its events to all clients, containerd since 2.0 (containerd#9661).
fn tells_everybody(version: &VersionResponse) -> bool {
    let number = version.runtime_version.trim_start_matches('v');
    let major = number.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match version.runtime_name.as_str() {
        "cri-o" => true,
        "containerd" => major.is_some_and(|major| major >= 2),
        _ => false,
    }
}

/// What the kernel tells of network namespaces and links.
#[derive(Debug)]
pub(super) struct Signs {
    node: Node,
    folders: Option<AsyncFd<OwnedFd>>,
    links: Option<AsyncFd<OwnedFd>>,
}

impl Signs {
    /// Watches the folders that there are, and the links of the own network namespace where there are none. What can't
    /// be watched tells nothing.
    pub(super) fn open(node: Node) -> Self {
        // SAFETY: no memory is passed.
        let folders = owned(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) });
        let folders = folders.and_then(polled).ok();
        let mut signs = Self { node, folders, links: None };
        signs.look_again();
        signs
    }

    /// Watches folders that were made since. One that is watched already stays watched once.
    pub(super) fn look_again(&mut self) {
        let mut watched = false;
        if let Some(inotify) = &self.folders {
            for place in FOLDERS.iter().flat_map(|folder| self.node.places(Path::new(folder))) {
                watched |= watch(inotify, &place);
            }
        }
        if watched {
            self.links = None;
        } else if self.links.is_none() {
            self.links = links().and_then(polled).ok();
        }
    }

    /// Waits for the next sign.
    pub(super) async fn next(&mut self) -> Told {
        loop {
            let seen = tokio::select! {
                seen = read_from(self.folders.as_ref(), count_files) => seen,
                seen = read_from(self.links.as_ref(), count_links) => seen,
            };
            match seen {
                Ok(Changes::NONE) => {}
                Ok(seen) => return Told::Begun(seen),
                // More was told than fits into the kernel's memory.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Told::Begun(MISSED),
                Err(_) => {
                    (self.folders, self.links) = (None, None);
                }
            }
        }
    }
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn polled(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same open descriptor as long as it lives, which is as long as the AsyncFd.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

fn watch(inotify: &AsyncFd<OwnedFd>, folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else { return false };
    let changes = libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_DELETE | libc::IN_ONLYDIR;
    // SAFETY: the path is NUL-terminated and lives through the call.
    unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), changes) >= 0 }
}

/// A socket that is told of links that come and go: rtnetlink(7), group RTMGRP_LINK.
fn links() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
    // SAFETY: sockaddr_nl is integers only: all zero is a value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = libc::RTMGRP_LINK as u32;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address lives through the call and has the length that is told.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Reads once and counts what it tells. Waits for ever if there is nothing to read from.
async fn read_from(fd: Option<&AsyncFd<OwnedFd>>, count: fn(&[u8]) -> Changes) -> io::Result<Changes> {
    let Some(fd) = fd else { return std::future::pending().await };
    let mut buffer = [0_u8; 16 << 10];
    loop {
        let mut ready = fd.readable().await?;
        let read = ready.try_io(|fd| {
            // SAFETY: the buffer lives through the call and has the length that is told.
            let read = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
            usize::try_from(read).map_err(|_| io::Error::last_os_error())
        });
        if let Ok(read) = read {
            return Ok(count(buffer.get(..read?).unwrap_or_default()));
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// How many of these events tell of a file that was made or deleted: struct inotify_event of inotify(7), which is
/// wd, mask, cookie, len and a name of that length.
fn count_files(mut events: &[u8]) -> Changes {
    let mut count = Changes::NONE;
    while let (Some(mask), Some(length)) = (word(events, 4), word(events, 12)) {
        let has = |kinds: u32| usize::from(mask & kinds != 0);
        let made = has(libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_Q_OVERFLOW);
        count = count.and(Changes { made, gone: has(libc::IN_DELETE | libc::IN_Q_OVERFLOW) });
        events = events.get(16 + length as usize..).unwrap_or_default();
    }
    count
}

/// How many of these messages tell of a link that came or went: struct nlmsghdr (length, type) and struct ifinfomsg
/// (family at 0, change mask at 12), which is all ones for a new link and the changed flags for an old one.
fn count_links(mut messages: &[u8]) -> Changes {
    const HEADER: usize = 16;
    let mut count = Changes::NONE;
    while let (Some(length), Some(kind)) = (word(messages, 0), word(messages, 4)) {
        let kind = kind.to_ne_bytes();
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        let of_link = messages.get(HEADER) == Some(&(libc::AF_UNSPEC as u8));
        let is_new = kind == libc::RTM_NEWLINK && word(messages, HEADER + 12) == Some(u32::MAX);
        let [made, gone] = [is_new, kind == libc::RTM_DELLINK].map(|is_so| usize::from(of_link && is_so));
        count = count.and(Changes { made, gone });
        let next = (length as usize).max(HEADER).next_multiple_of(4);
        messages = messages.get(next..).unwrap_or_default();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::messages::PodSandboxStatus;
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[test]
    fn only_a_runtime_that_tells_everybody_is_listened_to() {
        let tells = |name: &str, version: &str| {
            tells_everybody(&VersionResponse { runtime_name: name.into(), runtime_version: version.into() })
        };
        assert!(
            tells("containerd", "v2.0.1") && tells("containerd", "2.1.0-k3s1") && tells("cri-o", "1.26.0")
        );
        assert!(
            !tells("containerd", "v1.7.12")
                && !tells("containerd", "1.6.20~ds1")
                && !tells("docker", "27.0.1")
        );
        assert!(!tells("containerd", "") && !tells("", "2"));
    }

    #[test]
    fn events_of_containers_are_left_out() {
        let event = |id: &str, sandbox: Option<&str>| {
            is_of_sandbox(&ContainerEventResponse {
                container_id: id.into(),
                pod_sandbox_status: sandbox
                    .map(|id| PodSandboxStatus { id: id.into(), ..PodSandboxStatus::default() }),
            })
        };
        assert!(event("s", Some("s")) && event("s", None));
        assert!(!event("c", Some("s")));
    }

    #[test]
    fn any_bytes_are_counted_to_their_end() {
        for length in 0..64 {
            for byte in [0, 1, 0x10, 0xff] {
                let bytes = vec![byte; length];
                for count in [count_files(&bytes), count_links(&bytes)] {
                    assert!(count.made <= 4 && count.gone <= 4, "{byte} {length}: {count:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_netns_that_comes_and_goes_is_told() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run/netns");
        let mut signs = Signs::open(Node::new([root.path()]));
        assert!(signs.links.is_some(), "no folder, but links are not watched");
        std::fs::create_dir_all(&folder).unwrap();
        signs.look_again();
        assert!(signs.links.is_none(), "links are watched beside a folder");
        std::fs::write(folder.join("cni-1"), "").unwrap();
        std::fs::write(folder.join("cni-2"), "").unwrap();
        std::fs::remove_file(folder.join("cni-1")).unwrap();
        let patience = Duration::from_secs(5);
        assert_eq!(timeout(patience, signs.next()).await, Ok(Told::Begun(Changes { made: 2, gone: 1 })));
        assert!(timeout(Duration::from_millis(50), signs.next()).await.is_err());
    }
}
