//! Reads /proc. Processes come and go meanwhile: one that is gone was not there.

use super::addresses;
use super::names::Names;
use super::ports::{self, Ports};
use crate::identity::cgroup;
use crate::identity::object::{Cgroup, NetnsOwner, Socket};
use crate::identity::sources::node::Node;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// The longest file of /proc that is read at once, in bytes.
const LONGEST: u64 = 1 << 20;
/// Of so many processes of a netns one is asked for its addresses: the first may be gone.
const WITNESSES: usize = 4;

/// What was found.
#[derive(Debug)]
pub(super) struct Found<T> {
    /// What there is.
    pub(super) things: Vec<T>,
    /// How many processes there were.
    pub(super) processes: usize,
    /// How many of them may not be looked at.
    pub(super) denied: usize,
}

/// Owners of all network namespaces that have processes, but the node's own, in no order.
pub(super) fn owners(node: &Node) -> Found<NetnsOwner> {
    struct Seen {
        cgroup: Cgroup,
        witnesses: Vec<u32>,
    }
    let proc = node.proc();
    let mut seen: HashMap<u32, Seen> = HashMap::new();
    let (processes, denied) = walk(&proc, |pid, netns, host| {
        if netns == host {
            return;
        }
        let Some(cgroup) = cgroup_of(&proc, pid) else { return };
        let entry =
            seen.entry(netns).or_insert_with(|| Seen { cgroup: Cgroup::default(), witnesses: Vec::new() });
        if cgroup::worth(&cgroup) > cgroup::worth(&entry.cgroup) {
            entry.cgroup = cgroup;
        }
        if entry.witnesses.len() < WITNESSES {
            entry.witnesses.push(pid);
        }
    });
    let mut names = Names::new(node);
    let things = seen.into_iter().map(|(netns, Seen { cgroup, witnesses })| NetnsOwner {
        netns,
        cgroup: with_name(cgroup, &mut names),
        addresses: witnesses
            .iter()
            .map(|pid| addresses_of(&proc, *pid))
            .find(|addresses| !addresses.is_empty())
            .unwrap_or_default(),
    });
    Found { things: things.collect(), processes, denied }
}

/// Owners of the ports of the node's own network namespace. Every descriptor of its processes is looked at, until all
/// sockets are found.
pub(super) fn sockets(node: &Node) -> Found<Socket> {
    let proc = node.proc();
    let mut ports = Ports::default();
    for (file, protocol) in ports::FILES {
        let Ok(file) = File::open(proc.join("1/net").join(file)) else { continue };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        lines.filter_map(|line| ports::line(&line)).for_each(|line| ports.add(protocol, line));
    }
    let mut wanted = ports.by_inode();
    let mut names = Names::new(node);
    let mut things = Vec::new();
    let (processes, denied) = walk(&proc, |pid, netns, host| {
        if netns != host || wanted.is_empty() {
            return;
        }
        let mut owner = None;
        for inode in sockets_of(&proc, pid) {
            let Some((protocol, port)) = wanted.remove(&inode) else { continue };
            let cgroup =
                owner.get_or_insert_with(|| with_name(cgroup_of(&proc, pid).unwrap_or_default(), &mut names));
            things.push(Socket { protocol, port, cgroup: cgroup.clone() });
        }
    });
    Found { things, processes, denied }
}

/// A process in each of these network namespaces, where there is one.
pub(super) fn processes_in(proc: &Path, mut wanted: HashSet<u32>) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    if !wanted.is_empty() {
        walk(proc, |pid, netns, _| {
            if wanted.remove(&netns) {
                found.push((netns, pid));
            }
        });
    }
    found
}

/// Calls `look` with each process, its network namespace and the node's. Returns how many there were, and how many could
/// not be looked at for lack of permission.
fn walk(proc: &Path, mut look: impl FnMut(u32, u32, u32)) -> (usize, usize) {
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let Some(host) = host_netns(proc) else { return (pids.len(), pids.len()) };
    let mut denied = 0;
    for &pid in &pids {
        match netns_of(proc, pid) {
            Ok(netns) => look(pid, netns, host),
            Err(error) => denied += usize::from(error.kind() == io::ErrorKind::PermissionDenied),
        }
    }
    (pids.len(), denied)
}

/// The node's own network namespace: that of the first process. Where that one is protected, the kernel's threads have
/// the same, of which kthreadd is number 2.
pub(super) fn host_netns(proc: &Path) -> Option<u32> {
    [1, 2].into_iter().find_map(|pid| netns_of(proc, pid).ok())
}

/// The inode number in `net:[4026531840]`.
fn netns_of(proc: &Path, pid: u32) -> io::Result<u32> {
    let link = fs::read_link(proc.join(format!("{pid}/ns/net")))?;
    numbered(&link, "net:[").ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Inode numbers of a process' sockets: its descriptors are links to `socket:[12345]`.
fn sockets_of(proc: &Path, pid: u32) -> impl Iterator<Item = ports::Inode> {
    let descriptors = fs::read_dir(proc.join(format!("{pid}/fd"))).into_iter().flatten();
    descriptors.filter_map(|entry| numbered(&fs::read_link(entry.ok()?.path()).ok()?, "socket:["))
}

fn numbered<N: std::str::FromStr>(link: &Path, prefix: &str) -> Option<N> {
    link.to_str()?.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok()
}

fn cgroup_of(proc: &Path, pid: u32) -> Option<Cgroup> {
    read(&proc.join(format!("{pid}/cgroup"))).map(|text| cgroup::parse(&text))
}

fn addresses_of(proc: &Path, pid: u32) -> Vec<std::net::IpAddr> {
    let text = |name: &str| read(&proc.join(format!("{pid}/net/{name}"))).unwrap_or_default();
    addresses::read(&text("fib_trie"), &text("if_inet6"))
}

/// A container that is not Kubernetes' gets the name that its runtime gave it.
fn with_name(mut cgroup: Cgroup, names: &mut Names<'_>) -> Cgroup {
    if let (None, Some(id)) = (&cgroup.pod, &cgroup.container) {
        cgroup.container_name = names.of(cgroup.runtime.as_deref(), id);
    }
    cgroup
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::fs::symlink;
    use std::time::Instant;
    use tempfile::TempDir;

    const ID: &str = "022c4ffba65e5031285fd427553e56c3fd6cc85a3a49f3fa2825d0a258d8a5d6";
    const POD: &str = "1858680e-b044-4fd5-9dd4-f137e30e2180";

    fn process(root: &TempDir, pid: u32, netns: u32, cgroup: &str) {
        let folder = root.path().join(format!("proc/{pid}"));
        fs::create_dir_all(folder.join("ns")).unwrap();
        fs::create_dir_all(folder.join("net")).unwrap();
        fs::create_dir_all(folder.join("fd")).unwrap();
        fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        symlink(format!("net:[{netns}]"), folder.join("ns/net")).unwrap();
    }

    #[test]
    fn each_netns_is_the_best_known_process_s() {
        let root = tempfile::tempdir().unwrap();
        process(&root, 1, 100, "/init.scope");
        process(&root, 2, 100, "/system.slice/sshd.service");
        process(&root, 10, 200, "/");
        process(&root, 11, 200, &format!("/kubepods/pod{POD}/{ID}"));
        process(&root, 12, 200, &format!("/kubepods/pod{POD}"));
        process(&root, 20, 300, "/system.slice/vpn.service");
        fs::write(root.path().join("proc/11/net/fib_trie"), "|-- 10.0.0.7\n /32 host LOCAL\n").unwrap();
        // What else is in /proc, and a process that is gone meanwhile.
        fs::create_dir_all(root.path().join("proc/sys")).unwrap();
        fs::create_dir_all(root.path().join("proc/30")).unwrap();
        let mut found = owners(&Node::new([root.path()]));
        found.things.sort_by_key(|owner| owner.netns);
        let [pod, unit] = &found.things[..] else { panic!("{found:?}") };
        assert_eq!(
            (pod.netns, pod.cgroup.pod.as_deref(), pod.cgroup.container.as_deref()),
            (200, Some(POD), Some(ID))
        );
        assert_eq!(pod.addresses, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!((unit.netns, unit.cgroup.unit.as_deref()), (300, Some("vpn.service")));
        assert_eq!((found.processes, found.denied), (7, 0));
    }

    #[test]
    fn a_port_is_its_process_s() {
        let root = tempfile::tempdir().unwrap();
        process(&root, 1, 100, "/init.scope");
        process(&root, 2, 100, "/system.slice/sshd.service");
        process(&root, 3, 200, &format!("/docker/{ID}"));
        let line = |port: &str, inode: u32| {
            format!(" 0: 00000000:{port} 00000000:0000 0A 0:0 00:0 0 0 0 {inode} 1\n")
        };
        let table = format!("sl local_address\n{}{}{}", line("0016", 77), line("0017", 78), line("0018", 79));
        fs::write(root.path().join("proc/1/net/tcp"), table).unwrap();
        symlink("socket:[77]", root.path().join("proc/2/fd/3")).unwrap();
        symlink("/dev/null", root.path().join("proc/2/fd/4")).unwrap();
        // A descriptor of a process in another netns may be of this one; it is not looked for there.
        symlink("socket:[78]", root.path().join("proc/3/fd/3")).unwrap();
        let found = sockets(&Node::new([root.path()])).things;
        let [socket] = &found[..] else { panic!("{found:?}") };
        assert_eq!(
            (socket.protocol, socket.port, socket.cgroup.unit.as_deref()),
            (6, 22, Some("sshd.service"))
        );
    }

    #[test]
    fn without_permission_nothing_is_found_and_that_is_known() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/1")).unwrap();
        let found = owners(&Node::new([root.path()]));
        assert!(found.things.is_empty());
        assert_eq!((found.processes, found.denied), (1, 1));
    }

    #[test]
    fn the_own_port_is_found() {
        let proc = Path::new("/proc");
        if host_netns(proc).is_none() || host_netns(proc) != netns_of(proc, std::process::id()).ok() {
            eprintln!("SKIP: not in the node's network namespace, or not allowed to know");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = sockets(&Node::new(["/"])).things;
        assert!(found.iter().any(|socket| (socket.protocol, socket.port) == (6, port)), "{found:?}");
    }

    /// `cargo test --release -p tracer-user --lib all_processes -- --ignored --nocapture`
    #[test]
    #[ignore = "only says how long this machine's processes take"]
    fn all_processes_of_this_machine() {
        for _ in 0..3 {
            let began = Instant::now();
            let found = owners(&Node::new(["/"]));
            eprintln!("{} processes: {:?}, {} owners", found.processes, began.elapsed(), found.things.len());
        }
        let began = Instant::now();
        let found = sockets(&Node::new(["/"]));
        eprintln!("{} processes: {:?}, {} ports", found.processes, began.elapsed(), found.things.len());
    }
}
