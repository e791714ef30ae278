//! What asks the system: the only part of doctor that does. Everything is read, nothing written; see the invariants in
//! ARCHITECTURE.md.

pub mod calico;
pub mod counters;
pub mod ipvs;
pub mod links;
pub mod look;
pub mod names;
pub mod rules;

use super::facts::{Facts, Link, VirtualServer};
use super::model::{Counter, Unread};
use super::rules::Id;
use super::system::Surroundings;
use crate::cilium::pins::{Pins, ROOTS};
use crate::cilium::{codes, maps::Unread as CiliumUnread, services::Translated};
use crate::netfilter::tools;
use crate::xdp;
use counters::Count;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Interfaces whose drivers are asked for their counters.
const DRIVERS: usize = 512;

/// Where /proc is. Sysctls and counters are those of the thread's own network namespace, whatever process mounted it.
fn proc() -> &'static Path {
    Path::new("/proc")
}

/// Inode number of this thread's network namespace; 0 if /proc doesn't tell.
#[must_use]
pub fn own_netns() -> u32 {
    let own = fs::metadata("/proc/thread-self/ns/net").ok();
    own.and_then(|file| u32::try_from(file.ino()).ok()).unwrap_or(0)
}

/// Moves this thread to the node's network namespace, if droptrace is in a container that has another and the node's root at
/// /host. It stays there: the node's does not end.
///
/// # Errors
/// If it may not go there.
pub fn enter_node() -> Result<(), Unread> {
    enter(Path::new("/host/proc/1/ns/net")).map_err(|error| Unread {
        what: "the node's network namespace".to_owned(),
        why: format!(
            "{error}, so settings and counters are those of droptrace's own; give its pod hostNetwork: true, or the \
             capabilities SYS_ADMIN and SYS_PTRACE"
        ),
    })
}

fn enter(path: &Path) -> io::Result<()> {
    let Ok(there) = fs::metadata(path) else { return Ok(()) };
    if there.ino() == u64::from(own_netns()) {
        return Ok(());
    }
    let namespace = File::open(path)?;
    // SAFETY: an open descriptor; only this thread moves.
    let moved = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if moved == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The facts of this thread's network namespace, without rules and cluster.
#[must_use]
pub fn facts(unread: &mut Vec<Unread>) -> Facts {
    let netns = own_netns();
    let mut missing = |what: &str, error: &dyn std::fmt::Display| {
        unread.push(Unread { what: what.to_owned(), why: error.to_string() });
    };
    let links = links::links().map(|(links, _)| links).unwrap_or_else(|error| {
        missing("interfaces", &error);
        Vec::new()
    });
    let routes = links::routes().unwrap_or_else(|error| {
        missing("routes", &error);
        Vec::new()
    });
    // What is not known counts as there: then routes decide nothing alone.
    let has_policy_routing = links::has_policy_routing().unwrap_or(true);
    let counts = counters::read(proc());
    let entries = |table: &str| {
        let name = format!("{table} entries");
        counts.iter().find(|count| count.name == name).map(|count| count.count)
    };
    let offloads = links::hardware_filters(&links).unwrap_or_else(|error| {
        missing("tc filters", &error);
        Vec::new()
    });
    Facts {
        netns,
        offloads,
        settings: settings(&links),
        routes,
        has_policy_routing,
        neighbours: [entries("arp_cache"), entries("ndisc_cache")],
        ipvs: ipvs::read(proc()),
        cilium: cilium_services(),
        has_calico_bpf: calico::translates_services(),
        links,
        ..Facts::default()
    }
}

/// The sysctls that checks look at.
fn settings(links: &[Link]) -> BTreeMap<String, String> {
    const NAMES: [&str; 11] = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/all/disable_ipv6",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
        "net/ipv4/neigh/default/gc_thresh3",
        "net/ipv6/neigh/default/gc_thresh3",
        "net/ipv4/conf/all/src_valid_mark",
    ];
    let of_links = links.iter().filter(|link| !link.name.contains('/')).flat_map(|link| {
        ["forwarding", "rp_filter"].map(|setting| format!("net/ipv4/conf/{}/{setting}", link.name))
    });
    let read = |path: String| {
        let value = fs::read_to_string(proc().join("sys").join(&path)).ok()?;
        Some((name_of(&path), value.trim().to_owned()))
    };
    NAMES.into_iter().map(str::to_owned).chain(of_links).filter_map(read).collect()
}

/// The name that sysctl(8) gives a file below /proc/sys: a `.` in an interface's name is a `/` to it.
fn name_of(path: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    path.chars().map(swap).collect()
}

/// What was counted as dropped by now, but for rules.
#[must_use]
pub fn counts() -> Vec<Count> {
    let mut counts = counters::read(proc());
    if let Ok((links, of_links)) = links::links() {
        counts.extend(of_links);
        counts.extend(links::qdiscs(&links).unwrap_or_default());
        for link in links.iter().filter(|link| has_driver(link)).take(DRIVERS) {
            counts.extend(driver(&link.name));
        }
    }
    counts.extend(cilium());
    counts
}

/// Whether an interface's driver may count drops of its own: hardware, and veth. Others are not asked: were the device gone by
/// then, the kernel would load the module that makes one of its name, `gre0` for example (dev_load, net/core/dev_ioctl.c).
fn has_driver(link: &Link) -> bool {
    ["", "veth"].contains(&&*link.kind)
}

/// What a driver's own statistics say that it dropped, queues together.
fn driver(interface: &str) -> Vec<Count> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (name, count) in xdp::counters::drops_of(interface).unwrap_or_default() {
        let sum = sums.entry(without_numbers(&name)).or_default();
        *sum = sum.saturating_add(count);
    }
    let count = |(name, count)| {
        Count::new(Counter::Device, format!("{interface} {name}"), "driver (ethtool -S)", count)
    };
    sums.into_iter().map(count).collect()
}

/// `rx_queue_0_drops` and `rx_queue_1_drops` are both `rx_queue_*_drops`.
fn without_numbers(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        match c {
            '0'..='9' if text.ends_with('*') => {}
            '0'..='9' => text.push('*'),
            other => text.push(other),
        }
    }
    text
}

/// What Cilium's datapath counted, by its reasons; nothing where there is none, or its map can't be read.
fn cilium() -> Vec<Count> {
    let metrics = Pins::find(&ROOTS).and_then(|pins| pins.metrics()).unwrap_or_default();
    let count = |(code, count): (u8, u64)| {
        let name = codes::find(code).map_or_else(|| format!("code {code}"), |known| known.text.to_owned());
        Count::new(Counter::Cilium, name, "cilium_metrics", count)
    };
    metrics.into_iter().filter(|(code, _)| *code >= codes::FIRST).map(count).collect()
}

/// What Cilium translates; `None` where there is no Cilium, or it keeps no services.
fn cilium_services() -> Option<Result<Vec<VirtualServer>, String>> {
    /// TCP, UDP and SCTP.
    const PROTOCOLS: [u8; 3] = [6, 17, 132];
    let translated = match Pins::find(&ROOTS).and_then(|pins| pins.services()) {
        Ok(translated) => translated,
        Err(CiliumUnread::Absent { .. } | CiliumUnread::Missing { .. }) => return None,
        Err(error) => return Some(Err(error.to_string())),
    };
    let of_each = |it: Translated| {
        let protocols = if it.protocol == 0 { PROTOCOLS.to_vec() } else { vec![it.protocol] };
        protocols.into_iter().map(move |protocol| VirtualServer {
            address: it.address,
            protocol,
            backends: it.backends.clone(),
        })
    };
    Some(Ok(translated.into_iter().flat_map(of_each).collect()))
}

/// Why Cilium's maps can't be read, where it is there.
#[must_use]
pub fn unread_cilium() -> Option<Unread> {
    match Pins::find(&ROOTS).and_then(|pins| pins.metrics()) {
        Ok(_) | Err(CiliumUnread::Absent { .. }) => None,
        Err(error) => Some(Unread { what: "Cilium's counters".to_owned(), why: error.to_string() }),
    }
}

/// The tables of the own network namespace, which come first, and all others that are known; and why tables may be missing.
#[must_use]
pub fn ids(known: &[super::model::Table]) -> (Vec<Id>, Option<Unread>) {
    let own = own_netns();
    let (mut ids, unlisted) = rules::own_tables(own, proc());
    let id = |table: &super::model::Table| Id {
        netns: table.netns,
        backend: table.backend,
        family: table.family,
        name: table.name.clone(),
    };
    // In other namespaces one without rules says nothing.
    let others = known.iter().filter(|table| table.netns == own || table.rules > 0).map(id);
    for id in others {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    (ids, unlisted)
}

/// What the rest of the system says.
#[must_use]
pub fn surroundings(facts: &Facts) -> Surroundings {
    let number = |name| facts.number(name);
    Surroundings {
        tracefs: ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"]
            .iter()
            .any(|path| Path::new(path).exists()),
        backends: facts
            .own_tables()
            .filter(|table| table.is_iptables)
            .map(|table| (table.backend, format!("{} {}", table.family.name(), table.name)))
            .collect(),
        tools: tools::installed(),
        is_clock_kept: is_clock_kept(),
        conntrack: number("net.netfilter.nf_conntrack_count").zip(number("net.netfilter.nf_conntrack_max")),
    }
}

/// Whether somebody keeps the kernel's clock (adjtimex(2)); `None` if the kernel doesn't say.
fn is_clock_kept() -> Option<bool> {
    // SAFETY: zeroes are a valid timex, one that changes nothing.
    let mut about: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: a valid timex, whose `modes` is 0: it is only read.
    let state = unsafe { libc::adjtimex(&raw mut about) };
    (state >= 0).then_some(about.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_sysctl_has_them() {
        assert_eq!(name_of("net/ipv4/conf/eth0.5/rp_filter"), "net.ipv4.conf.eth0/5.rp_filter");
        assert_eq!(without_numbers("rx_queue_10_drops2"), "rx_queue_*_drops*");
    }

    #[test]
    fn the_nodes_namespace_is_entered_if_it_is_another() {
        assert!(enter(Path::new("/nowhere")).is_ok() && enter(Path::new("/proc/thread-self/ns/net")).is_ok());
        let (tell, path) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            // SAFETY: only this thread's network namespace becomes its own.
            let made = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
            let own = fs::canonicalize("/proc/thread-self").unwrap();
            tell.send((made, own.join("ns/net"), own_netns())).unwrap();
            let _ = ended.recv();
        });
        let (made, path, netns) = path.recv().unwrap();
        // Without root there is no other to go to.
        if made {
            assert_ne!(netns, own_netns());
            enter(&path).unwrap();
            assert_eq!(netns, own_netns());
        }
        drop(end);
        other.join().unwrap();
    }

    #[test]
    fn the_own_namespace_has_facts() {
        let facts = facts(&mut Vec::new());
        assert!(facts.netns != 0 && facts.number("net.ipv4.ip_forward").is_some());
        assert!(facts.settings.contains_key("net.ipv4.conf.lo.rp_filter"), "{:?}", facts.settings);
        assert!(facts.links.iter().any(|link| link.name == "lo"));
        assert!(!counts().is_empty() && !surroundings(&facts).tools.is_empty());
    }
}
