//! The node's state, for what the packet itself can't tell: settings, routes and counters of the drop's network namespace.
//! Read only, and only what entries that may hold ask for; nothing that would make the kernel load a module. The namespace
//! is entered by a thread of its own, which ends with the question.

use super::facts::{Fact, NodeState, Origin, Reading, came_by};
use crate::event::model::{Drop, Evidence};
use crate::netfilter::budget::Budget;
use crate::netfilter::netns;
use crate::probe::next_hop::{self, Ends};
use crate::probe::route::{self, Came, Packet, Route};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(1);
/// Time that questions may take at once; then they wait until it is a small part of all again.
const BURST: Duration = Duration::from_millis(500);
/// Questions that are remembered.
const MOST: usize = 1024;

/// What is asked about a drop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// True for IPv6.
    pub is_v6: bool,
    /// The interface that the packet came in by, else was on.
    pub interface: Option<String>,
    /// The interface that it was to leave by.
    pub leaves_by: Option<String>,
    /// The packet whose route is asked for; none where no route matters, so that one answer does for all packets.
    packet: Option<Packet>,
    /// What is to be told.
    pub wanted: Vec<Fact>,
}

impl Question {
    /// What these facts depend on; `None` if the drop's network namespace is not known, or nothing is wanted.
    #[must_use]
    pub fn about(drop: &Drop, wanted: &[Fact]) -> Option<Self> {
        let mut wanted: Vec<Fact> =
            wanted.iter().copied().filter(|fact| fact.origin() == Origin::Node).collect();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            return None;
        }
        let network = &drop.network;
        let has_route = wanted.iter().any(|fact| is_of_route(*fact));
        let came = || {
            let (by, from) = (came_by(drop)?.to_owned(), drop.source.address?);
            Some(Came { from, by, mark: drop.packet.mark.unwrap_or(0) })
        };
        let to = drop.destination.address.filter(|_| has_route);
        Some(Self {
            netns: network.netns?,
            is_v6: network.family.as_deref() == Some("ipv6"),
            interface: network.interface_in.clone().or_else(|| network.interface.clone()),
            leaves_by: network.interface_out.clone(),
            packet: to.map(|to| Packet { to, came: came() }),
            wanted,
        })
    }
}

/// This node.
#[derive(Debug, Default)]
pub struct Node(RefCell<Memory>);

#[derive(Debug, Default)]
struct Memory {
    known: HashMap<Question, (Instant, Vec<Reading>)>,
    budget: Budget,
    is_busy: Arc<AtomicBool>,
    /// Counters as they were when they were last told, by network namespace.
    counted: HashMap<(u32, Fact), u64>,
}

impl NodeState for Node {
    fn read(&self, question: Question) -> Vec<Reading> {
        self.0.borrow_mut().read(question)
    }
}

impl Memory {
    fn read(&mut self, question: Question) -> Vec<Reading> {
        let now = Instant::now();
        if let Some((_, readings)) = self.known.get(&question).filter(|(asked, _)| now < *asked + KEPT) {
            return readings.clone();
        }
        if self.is_busy.load(Ordering::Relaxed) || !self.budget.is_left(BURST) {
            return Vec::new();
        }
        let asked = question.clone();
        let work = move || Ok((look(&asked, Path::new("/proc")), veth(&asked)));
        // What can't be asked is not known.
        let (mut readings, veth) =
            netns::visit(question.netns, "node-state", &self.is_busy, PATIENCE, work).unwrap_or_default();
        readings.extend(bridge(&question, Path::new("/proc")));
        readings.extend(veth.and_then(|ends| proxy_arp(ends, Path::new("/proc"))));
        self.budget.take(now.elapsed());
        readings.iter_mut().for_each(|reading| self.add_change(question.netns, reading));
        for memory in [self.known.len(), self.counted.len()] {
            if memory >= MOST {
                self.known.clear();
                self.counted.clear();
            }
        }
        self.known.insert(question, (Instant::now(), readings.clone()));
        readings
    }

    /// Says of a counter how much it has grown since it was last told.
    fn add_change(&mut self, netns: u32, reading: &mut Reading) {
        if !is_counter(reading.fact) {
            return;
        }
        let Ok(value) = reading.evidence.value.parse::<u64>() else { return };
        if let Some(grown) =
            self.counted.insert((netns, reading.fact), value).map(|before| value.wrapping_sub(before))
        {
            reading.evidence.change = Some(grown);
        }
    }
}

fn is_of_route(fact: Fact) -> bool {
    use Fact::{Mtu, NextHop, Route, RouteEntry, RouteInterface, RouteRule, RouteTable};
    matches!(fact, Route | RouteInterface | RouteRule | RouteTable | RouteEntry | Mtu | NextHop)
}

fn is_counter(fact: Fact) -> bool {
    matches!(fact, Fact::ListenOverflows | Fact::RcvbufErrors | Fact::SoftnetDropped)
}

/// Reads what is wanted, in this thread's network namespace.
fn look(question: &Question, proc: &Path) -> Vec<Reading> {
    let mut here = Here { question, proc, route: None };
    question
        .wanted
        .iter()
        .filter_map(|fact| Some(Reading { fact: *fact, evidence: here.tell(*fact)? }))
        .collect()
}

/// What a bridge shows to iptables. The bridge that pods share is in the node's network namespace, which is this thread's,
/// whatever namespace dropped the packet: a pod's own has the setting, too, and no bridge.
fn bridge(question: &Question, proc: &Path) -> Option<Reading> {
    let fact = Fact::BridgeNfCall;
    let name = if question.is_v6 { "bridge-nf-call-ip6tables" } else { "bridge-nf-call-iptables" };
    let is_wanted = question.wanted.contains(&fact);
    let evidence = is_wanted.then(|| setting(proc, &format!("net/bridge/{name}")))??;
    Some(Reading { fact, evidence })
}

/// The veth of a pod in this thread's network namespace whose gateway is no host, and so proxy_arp has to answer for it.
fn veth(question: &Question) -> Option<Ends> {
    let (interface, to) = (question.interface.as_deref()?, question.packet.as_ref()?.to);
    let is_no_host = |next: IpAddr| matches!(next, IpAddr::V4(v4) if v4.is_link_local());
    let is_wanted = question.wanted.contains(&Fact::ProxyArp) && is_no_host(next_hop::toward(to)?);
    is_wanted.then(|| next_hop::ends(interface))?
}

/// Whether the node's end of a veth, which is in this thread's network namespace, answers for others.
fn proxy_arp(ends: Ends, proc: &Path) -> Option<Reading> {
    let name = next_hop::other_end(ends).filter(|name| is_file_name(name))?;
    let evidence = setting(proc, &format!("net/ipv4/conf/{name}/proxy_arp"))?;
    Some(Reading { fact: Fact::ProxyArp, evidence })
}

/// One look at a network namespace.
struct Here<'a> {
    question: &'a Question,
    proc: &'a Path,
    /// The route, once it was asked for.
    route: Option<Option<Route>>,
}

impl Here<'_> {
    fn tell(&mut self, fact: Fact) -> Option<Evidence> {
        let Question { is_v6, interface, leaves_by, .. } = self.question;
        let interface = interface.as_deref().filter(|name| is_file_name(name));
        let version = if *is_v6 { "ipv6" } else { "ipv4" };
        match fact {
            // IPv6 forwards by `all` alone; the interfaces' own say only how to take router advertisements (before 6.17).
            Fact::Forwarding if *is_v6 => self.setting("net/ipv6/conf/all/forwarding"),
            Fact::Forwarding => self.setting(&format!("net/ipv4/conf/{}/forwarding", interface?)),
            Fact::RpFilter => {
                let own = self.setting(&format!("net/ipv4/conf/{}/rp_filter", interface?))?;
                let all = self.setting("net/ipv4/conf/all/rp_filter")?;
                // IN_DEV_RPFILTER (include/linux/inetdevice.h): the greater one counts.
                Some(if all.value > own.value { all } else { own })
            }
            Fact::ConntrackCount => self.setting("net/netfilter/nf_conntrack_count"),
            Fact::ConntrackMax => self.setting("net/netfilter/nf_conntrack_max"),
            Fact::NeighbourMax => self.setting(&format!("net/{version}/neigh/default/gc_thresh3")),
            Fact::NextHop => {
                let to = self.question.packet.as_ref()?.to;
                let next = next_hop::toward(to)?.to_string();
                Some(evidence(&format!("next hop to {to}"), next, "rtnetlink"))
            }
            // IPv6 has the same ones.
            Fact::LocalPorts => self.setting("net/ipv4/ip_local_port_range"),
            Fact::Somaxconn => self.setting("net/core/somaxconn"),
            Fact::MaxBacklog => self.setting("net/core/netdev_max_backlog"),
            Fact::FragmentBytes if *is_v6 => self.setting("net/ipv6/ip6frag_high_thresh"),
            Fact::FragmentBytes => self.setting("net/ipv4/ipfrag_high_thresh"),
            Fact::ListenOverflows => self.counter("netstat", "TcpExt", "ListenOverflows"),
            Fact::RcvbufErrors if *is_v6 => self.counter6("Udp6RcvbufErrors"),
            Fact::RcvbufErrors => self.counter("snmp", "Udp", "RcvbufErrors"),
            Fact::SoftnetDropped => {
                let dropped = softnet_dropped(&self.file("net/softnet_stat")?)?;
                Some(evidence("softnet_stat.dropped", dropped.to_string(), "/proc/net/softnet_stat"))
            }
            Fact::Route => self.of_route("route", |route| Some(route.kind.to_owned())),
            Fact::RouteInterface => self.of_route("interface", |route| route.interface.clone()),
            Fact::RouteRule => self.of_route("rule", |route| Some(route.by.as_ref()?.rule.clone())),
            Fact::RouteTable => self.of_route("table", |route| match &route.by {
                Some(decided) => decided.table.clone(),
                None => (!route.tables.is_empty()).then(|| route.tables.join(", ")),
            }),
            Fact::RouteEntry => self.of_route("entry", |route| route.by.as_ref()?.entry.clone()),
            Fact::Mtu => {
                let name = leaves_by.clone().or_else(|| self.route()?.interface.clone())?;
                Some(evidence(&format!("{name} mtu"), route::mtu(&name)?.to_string(), "rtnetlink"))
            }
            _ => None,
        }
    }

    /// Something that the route tells, by the name of the way: `route to 10.244.2.9 from 10.0.0.5 iif eth0`.
    fn of_route(&mut self, what: &str, told: impl FnOnce(&Route) -> Option<String>) -> Option<Evidence> {
        let Packet { to, came } = self.question.packet.as_ref()?;
        let from =
            came.as_ref().map_or_else(String::new, |came| format!(" from {} iif {}", came.from, came.by));
        Some(evidence(&format!("{what} to {to}{from}"), told(self.route()?)?, "rtnetlink"))
    }

    fn route(&mut self) -> Option<&Route> {
        let packet = self.question.packet.as_ref();
        self.route.get_or_insert_with(|| route::of(packet?).ok()).as_ref()
    }

    fn file(&self, path: &str) -> Option<String> {
        // The thread's own, for it alone has moved.
        fs::read_to_string(self.proc.join("thread-self").join(path)).ok()
    }

    fn setting(&self, path: &str) -> Option<Evidence> {
        setting(self.proc, path)
    }

    /// A counter of /proc/net/snmp or netstat: a line of names, then one of values, both with the group's name.
    fn counter(&self, file: &str, group: &str, name: &str) -> Option<Evidence> {
        let text = self.file(&format!("net/{file}"))?;
        let prefix = format!("{group}:");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&*prefix));
        let at = lines.next()?.split_ascii_whitespace().position(|word| word == name)?;
        let value = lines.next()?.split_ascii_whitespace().nth(at)?;
        Some(evidence(&format!("{group}{name}"), value, &format!("/proc/net/{file}")))
    }

    /// A counter of /proc/net/snmp6: a name and a value a line.
    fn counter6(&self, name: &str) -> Option<Evidence> {
        let text = self.file("net/snmp6")?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next())?
            .to_owned();
        Some(evidence(name, value, "/proc/net/snmp6"))
    }
}

/// A sysctl of this thread's network namespace, under the name that sysctl(8) gives it.
fn setting(proc: &Path, path: &str) -> Option<Evidence> {
    let value = fs::read_to_string(proc.join("sys").join(path)).ok()?;
    // A `.` in an interface's name is a `/` to sysctl(8).
    let name: String = path
        .chars()
        .map(|c| {
            if c == '/' {
                '.'
            } else if c == '.' {
                '/'
            } else {
                c
            }
        })
        .collect();
    // Several numbers have tabs between them.
    Some(evidence(&name, value.split_ascii_whitespace().collect::<Vec<_>>().join(" "), "sysctl"))
}

fn evidence(name: &str, value: impl Into<String>, source: &str) -> Evidence {
    Evidence { name: name.to_owned(), value: value.into(), source: source.to_owned(), change: None }
}

/// An interface's name that can only be the name of a folder, whatever somebody called the interface.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

/// The sum over all CPUs of the second column, hexadecimal (softnet_seq_show, net/core/net-procfs.c).
fn softnet_dropped(text: &str) -> Option<u64> {
    text.lines().map(|line| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::{Endpoint, Network};
    use std::os::unix::fs::MetadataExt as _;

    fn question(wanted: &[Fact]) -> Question {
        Question {
            netns: 7,
            is_v6: false,
            interface: Some("eth0.5".into()),
            leaves_by: None,
            packet: None,
            wanted: wanted.to_vec(),
        }
    }

    fn proc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn told(root: &tempfile::TempDir, question: &Question) -> Vec<(String, String)> {
        look(question, root.path()).into_iter().map(|it| (it.evidence.name, it.evidence.value)).collect()
    }

    #[test]
    fn settings_of_the_interface_and_of_all() {
        let root = proc(&[
            ("sys/net/ipv4/conf/eth0.5/forwarding", "0\n"),
            ("sys/net/ipv4/conf/eth0.5/rp_filter", "1\n"),
            ("sys/net/ipv4/conf/all/rp_filter", "2\n"),
            ("sys/net/ipv6/conf/all/forwarding", "1\n"),
        ]);
        let asked = question(&[Fact::Forwarding, Fact::RpFilter, Fact::Somaxconn]);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            told(&root, &asked),
            [pair("net.ipv4.conf.eth0/5.forwarding", "0"), pair("net.ipv4.conf.all.rp_filter", "2")]
        );
        let v6 = Question { is_v6: true, ..question(&[Fact::Forwarding]) };
        assert_eq!(told(&root, &v6), [pair("net.ipv6.conf.all.forwarding", "1")]);
        for name in ["..", "a/../all", ""] {
            let odd = Question { interface: Some(name.into()), ..question(&[Fact::Forwarding]) };
            assert_eq!(told(&root, &odd), [], "{name}");
        }
    }

    #[test]
    fn the_bridge_is_the_nodes() {
        let root = proc(&[
            ("sys/net/bridge/bridge-nf-call-iptables", "0\n"),
            ("sys/net/bridge/bridge-nf-call-ip6tables", "1\n"),
        ]);
        let asked = question(&[Fact::BridgeNfCall]);
        // Not looked for where the packet was dropped.
        assert_eq!(told(&root, &asked), []);
        let value = |question: &Question| bridge(question, root.path()).map(|it| it.evidence.value);
        assert_eq!(value(&asked).as_deref(), Some("0"));
        assert_eq!(value(&Question { is_v6: true, ..asked }).as_deref(), Some("1"));
        assert_eq!(value(&question(&[Fact::Somaxconn])), None);
    }

    #[test]
    fn counters_by_their_names() {
        let root = proc(&[
            (
                "thread-self/net/netstat",
                "TcpExt: A ListenOverflows B\nTcpExt: 1 22 3\nIpExt: ListenOverflows\nIpExt: 9\n",
            ),
            (
                "thread-self/net/snmp",
                "Udp: InErrors RcvbufErrors\nUdp: 5 6\nUdpLite: RcvbufErrors\nUdpLite: 8\n",
            ),
            ("thread-self/net/snmp6", "Udp6InErrors 1\nUdp6RcvbufErrors      \t4\n"),
            ("thread-self/net/softnet_stat", "0000000a 00000010 0\n0000000b 00000002 0\n"),
        ]);
        let values =
            |question: &Question| told(&root, question).into_iter().map(|it| it.1).collect::<Vec<_>>();
        assert_eq!(
            values(&question(&[Fact::ListenOverflows, Fact::RcvbufErrors, Fact::SoftnetDropped])),
            ["22", "6", "18"]
        );
        assert_eq!(values(&Question { is_v6: true, ..question(&[Fact::RcvbufErrors]) }), ["4"]);
    }

    #[test]
    fn a_counter_tells_how_much_it_has_grown() {
        let mut memory = Memory::default();
        let mut change = |netns, fact, value: u64| {
            let mut reading = Reading { fact, evidence: evidence("n", value.to_string(), "s") };
            memory.add_change(netns, &mut reading);
            reading.evidence.change
        };
        assert_eq!(change(1, Fact::ListenOverflows, 5), None);
        assert_eq!(change(1, Fact::ListenOverflows, 9), Some(4));
        assert_eq!(change(2, Fact::ListenOverflows, 9), None);
        assert_eq!(change(1, Fact::Somaxconn, 1), None);
        assert_eq!(change(1, Fact::Somaxconn, 2), None);
    }

    #[test]
    fn nothing_is_asked_that_nobody_wants() {
        let drop = Drop {
            network: Network { netns: Some(7), ..Network::default() },
            destination: Endpoint { address: "10.0.0.1".parse().ok(), ..Endpoint::default() },
            ..Drop::default()
        };
        assert_eq!(Question::about(&drop, &[Fact::Reason]), None);
        assert_eq!(Question::about(&Drop::default(), &[Fact::Mtu]), None);
        assert_eq!(Question::about(&drop, &[Fact::Somaxconn]).unwrap().packet, None);
        assert!(
            Question::about(&drop, &[Fact::Mtu, Fact::Mtu])
                .is_some_and(|it| it.packet.is_some() && it.wanted.len() == 1)
        );
    }

    #[test]
    fn the_own_network_namespace_answers() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let drop = Drop {
            network: Network {
                netns: u32::try_from(own).ok(),
                family: Some("ipv4".into()),
                interface: Some("lo".into()),
                ..Network::default()
            },
            destination: Endpoint { address: "127.0.0.1".parse().ok(), ..Endpoint::default() },
            ..Drop::default()
        };
        let wanted = [Fact::Route, Fact::Mtu, Fact::Somaxconn, Fact::RpFilter];
        let readings = Node::default().read(Question::about(&drop, &wanted).unwrap());
        let value = |fact| readings.iter().find(|it| it.fact == fact).map(|it| it.evidence.value.clone());
        assert_eq!(value(Fact::Route).as_deref(), Some("local"));
        assert_eq!(value(Fact::Mtu).as_deref(), Some("65536"));
        assert!(value(Fact::Somaxconn).is_some() && value(Fact::RpFilter).is_some());
        // A namespace that is not there.
        assert_eq!(
            Node::default().read(Question { netns: 1, ..Question::about(&drop, &wanted).unwrap() }),
            []
        );
    }
}
