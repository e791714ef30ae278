//! `droptrace trace`: the path of packets, and that following them changes nothing.

mod nft;

use super::{alone, here_only, skip};
use crate::bed::backend::Backend;
use crate::bed::command;
use crate::bed::droptrace::{self, Droptrace, Output};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::objects::Objects;
use crate::bed::outside::Outside;
use crate::bed::packet::{self, tcp_flag};
use crate::bed::record::Record;
use crate::bed::send;
use crate::bed::settled;
use crate::bed::tc::{Hook, Program};
use crate::bed::topology::{Family, Routed, await_ports};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    // Starting a trace takes some seconds in a virtual machine: there what kernels do otherwise.
    let newest = if kernel::version() < (6, 6) { How::Clsact } else { How::Tcx };
    let mut trials = vec![
        alone("trace::through_nat_legacy::ipv4", || through_nat(Backend::Legacy, Family::V4)),
        alone("trace::through_nat_iptables_nft::ipv4", || through_nat(Backend::IptablesNft, Family::V4)),
        alone("trace::forwarding_off", forwarding_off),
        alone("trace::counters_decide_legacy", || counters_decide(Backend::Legacy)),
        alone("trace::counters_decide_iptables_nft", || counters_decide(Backend::IptablesNft)),
        alone("trace::killed_leaves_nothing", killed_leaves_nothing),
        alone(format!("trace::programs_behind_decide_{}", newest.name()), move || {
            programs_behind_decide(newest)
        }),
    ];
    if kernel::in_vm() {
        // The machine's own kernel may have no IPVS.
        trials.push(alone("trace::ipvs_vip", ipvs_vip));
    }
    trials.extend(nft::trials());
    trials.extend(here_only([
        alone("trace::through_nat_legacy::ipv6", || through_nat(Backend::Legacy, Family::V6)),
        alone("trace::through_nat_iptables_nft::ipv6", || through_nat(Backend::IptablesNft, Family::V6)),
        alone("trace::overlay_unanswered", overlay_unanswered),
        alone("trace::overlay_blocked", overlay_blocked),
        alone("trace::two_defaults", two_defaults),
        alone("trace::not_programmed", not_programmed),
        alone("trace::bridge_unfiltered", bridge_unfiltered),
        alone("trace::hairpin_off", hairpin_off),
        alone("trace::programs_behind_decide_clsact", || programs_behind_decide(How::Clsact)),
    ]));
    trials
}

/// What droptrace says once packets are followed.
const FOLLOWING: &str = "following";

/// Follows packets.
struct Trace(Droptrace);

impl Trace {
    fn start(filter: &[&str]) -> Result<Self> {
        let mut command = droptrace::command(&["trace", "-o", "json", "--offline"])?;
        command.args(filter);
        let started = Droptrace::spawn(command)?;
        started.wait("packets are followed", |output| output.stderr.contains(FOLLOWING))?;
        Ok(Self(started))
    }

    /// Waits until so many stories have ended.
    fn stories(self, count: usize) -> Result<Vec<Story>> {
        let is_end = |record: &&Record| record.text("/type") == Some("end");
        self.0.wait("stories end", |output| output.records.iter().filter(is_end).count() >= count)?;
        stories(&self.0.stop()?)
    }
}

/// A packet's story.
#[derive(Debug)]
struct Story {
    steps: Vec<Record>,
    end: Record,
}

fn stories(output: &Output) -> Result<Vec<Story>> {
    let ends = output.records.iter().filter(|record| record.text("/type") == Some("end"));
    ends.map(|end| {
        let packet = end.text("/packet").context("an end without its packet")?;
        let steps = output
            .records
            .iter()
            .filter(|record| record.text("/type") == Some("step") && record.text("/packet") == Some(packet));
        let steps: Vec<Record> = steps.cloned().collect();
        ensure!(end.number("/steps") == Some(steps.len() as u64), "{} steps: {}", steps.len(), end.brief());
        Ok(Story { steps, end: end.clone() })
    })
    .collect()
}

impl Story {
    fn outcome(&self) -> Option<&str> {
        self.end.text("/outcome")
    }

    /// The steps in short: what is to be seen in order.
    fn in_short(&self) -> Vec<String> {
        self.steps.iter().map(short).collect()
    }

    /// Checks that these are among the steps, in this order.
    fn expect(&self, wanted: &[String]) -> Result<()> {
        let all = self.in_short();
        let mut rest = all.iter();
        for step in wanted {
            let is_it = |it: &String| it == step || it.starts_with(&format!("{step} ("));
            ensure!(rest.any(is_it), "no {step} in its place among {all:#?}; {}", self.end.brief());
        }
        Ok(())
    }
}

/// `netns kind what`
fn short(step: &Record) -> String {
    let text = |pointer: &str| step.text(pointer).unwrap_or("-").to_owned();
    let netns = step.number("/netns").unwrap_or(0);
    let ends = |pointer: &str| {
        let end = |end: &str| {
            let address = text(&format!("{pointer}/{end}/address"));
            step.number(&format!("{pointer}/{end}/port"))
                .map_or(address.clone(), |port| format!("{address} {port}"))
        };
        format!("{} > {}", end("source"), end("destination"))
    };
    let what = match step.text("/kind") {
        Some("netfilter") if step.text("/netfilter/table").is_some() => {
            let number = step.number("/netfilter/rule").map_or("-".to_owned(), |rule| rule.to_string());
            format!(
                "{}:{}:{}:{number} {}",
                text("/netfilter/table"),
                text("/netfilter/chain"),
                text("/netfilter/what"),
                text("/netfilter/verdict")
            )
        }
        Some("netfilter") => match step.text("/note") {
            Some(note) => format!("{} ({note})", text("/netfilter/hook")),
            None => text("/netfilter/hook"),
        },
        Some("nat") => format!("{} => {}", ends("/nat/before"), ends("/nat/after")),
        Some("route") => format!("{} {}", text("/route/decision"), text("/route/interface")),
        Some("device" | "tc" | "qdisc") => match step.text("/interface_in") {
            Some(name) => format!("in {name}"),
            None => format!("out {}", text("/interface_out")),
        },
        _ => String::new(),
    };
    format!("{netns} {} {what}", text("/kind")).trim_end().to_owned()
}

/// A packet to a service's address is translated, marked, forwarded through a chain, and delivered.
fn through_nat(backend: Backend, family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let vip = family.pick("10.96.0.10", "fd96::10");
    let (server, port) = (routed.server.address(family), 5353);
    let to = family.pick(format!("{server}:{port}"), format!("[{server}]:{port}"));
    let rules = format!(
        "*mangle\n-A PREROUTING -p udp -j MARK --set-xmark 0x10/0xffffffff\nCOMMIT\n\
         *nat\n:SVC - [0:0]\n-A PREROUTING -p tcp -j SVC\n-A PREROUTING -d {vip} -p udp -m udp --dport 53 -j SVC\n\
         -A SVC -p udp -m udp -j DNAT --to-destination {to}\nCOMMIT\n\
         *filter\n:PODS - [0:0]\n-A FORWARD -m mark --mark 0x10 -j PODS\n-A PODS -p tcp -j DROP\n-A PODS -m udp -p udp --dport 9 -j DROP\nCOMMIT\n"
    );
    backend.load(&routed.router, family, &rules)?;
    let listener = routed.server.netns.enter(|| Ok(UdpSocket::bind(routed.server.port(family, port))?))?;
    let from = routed.client.port(family, 40_000);
    let trace = Trace::start(&["--port", "40000", "--protocol", "udp"])?;
    let nft_tells = backend == Backend::IptablesNft && nft::tells(&trace)?;
    let dialled = family.pick(format!("{vip}:53"), format!("[{vip}]:53")).parse()?;
    routed.client.netns.enter(|| send::udp(from, dialled, b"query", 1))?;
    let stories = trace.stories(1)?;
    drop(listener);
    let story = stories.first().context("no story")?;
    ensure!(story.outcome() == Some("delivered"), "{}", story.end.brief());
    let [client, router, server_netns] =
        [&routed.client.netns, &routed.router, &routed.server.netns].map(Namespace::inode);
    let address = routed.client.address(family);
    let wanted = [
        format!("{client} route output c0"),
        format!("{client} netfilter OUTPUT"),
        format!("{client} netfilter POSTROUTING"),
        format!("{client} qdisc out c0"),
        format!("{router} device in r0"),
        format!("{router} netfilter PREROUTING"),
        format!("{router} netfilter mangle:PREROUTING:rule:1 target mark"),
        format!("{router} netfilter nat:PREROUTING:rule:2 jump SVC"),
        format!("{router} netfilter nat:SVC:rule:1 target dnat"),
        format!("{router} nat {address} 40000 > {vip} 53 => {address} 40000 > {server} {port}"),
        format!("{router} route forward r1"),
        format!("{router} netfilter FORWARD"),
        format!("{router} netfilter filter:FORWARD:rule:1 jump PODS"),
        format!("{router} netfilter filter:PODS:return:3 return"),
        format!("{router} netfilter filter:FORWARD:policy:2 accept"),
        format!("{router} netfilter POSTROUTING"),
        format!("{router} qdisc out r1"),
        format!("{server_netns} device in s0"),
        format!("{server_netns} netfilter PREROUTING"),
        format!("{server_netns} route local lo"),
        format!("{server_netns} netfilter INPUT"),
    ];
    if nft_tells {
        nft::all_exact(story, &routed.router)?;
    }
    story.expect(&shown(&wanted, router))
}

/// What of these a kernel shows: before 6.4 hooks are seen only where a function is on them.
fn shown(steps: &[String], router: u32) -> Vec<String> {
    let is_of_hooks = |step: &str| step.contains(" netfilter ") || step.contains(" route local ");
    // Without types of connection tracking it is not known which packets NAT's rules were asked for.
    let is_of_nat = |step: &str| step.contains(" netfilter nat:") && !kernel::describes_modules();
    let is_shown = |step: &&String| {
        !is_of_nat(step)
            && (kernel::version() >= (6, 4) || !is_of_hooks(step) || step.starts_with(&router.to_string()))
    };
    steps.iter().filter(is_shown).cloned().collect()
}

/// The router masquerades what its client sends, and no longer forwards what comes back on that side: the reply is seen, its
/// translation is undone, and FORWARD never sees it.
fn forwarding_off() -> Result<()> {
    let family = Family::V4;
    let routed = Routed::new()?;
    routed.server.netns.run("ip route del default")?;
    let rules =
        "*nat\n-A POSTROUTING -o r1 -j MASQUERADE\nCOMMIT\n*filter\n-A FORWARD -p tcp -j ACCEPT\nCOMMIT\n";
    Backend::Legacy.load(&routed.router, family, rules)?;
    routed.router.sysctl("net.ipv4.conf.r1.forwarding", "0")?;
    let trace = Trace::start(&["--ip", &routed.client.address(family).to_string(), "--protocol", "icmp"])?;
    let echo = packet::echo_request(routed.client.address(family), routed.server.address(family), 7, 1);
    routed.client.netns.enter(|| send::packets(&[(routed.server.port(family, 0), echo)]))?;
    let stories = trace.stories(2)?;
    let reply = stories.iter().find(|story| story.outcome() == Some("dropped"));
    let reply = reply.with_context(|| format!("no drop: {stories:#?}"))?;
    let [client, router] = [&routed.client.netns, &routed.router].map(Namespace::inode);
    let (from, far, to) =
        (routed.server.address(family), routed.far.address(family), routed.client.address(family));
    reply.expect(&[
        format!("{router} device in r1"),
        format!("{router} netfilter PREROUTING"),
        format!("{router} nat {from} > {far} => {from} > {to}"),
    ])?;
    ensure!(!reply.in_short().contains(&format!("{router} netfilter FORWARD")), "{reply:#?}");
    ensure!(reply.end.text("/cause/id") == Some("ip-forward-off"), "{}", reply.end.brief());
    let request = stories.iter().find(|story| story.outcome() != Some("dropped"));
    let request = request.with_context(|| format!("no request: {stories:#?}"))?;
    let wanted = [format!("{client} netfilter OUTPUT"), format!("{router} netfilter FORWARD")];
    request.expect(&shown(&wanted, router))?;
    Ok(())
}

/// Which of several packets a rule matches that takes every other one can't be told from the packet: the rules' counters tell.
fn counters_decide(backend: Backend) -> Result<()> {
    /// Where rules are described.
    const FIRST: (u32, u32) = (5, 15);
    if kernel::version() < FIRST {
        return Err(skip("this kernel doesn't describe its tables (no module BTF)"));
    }
    let family = Family::V4;
    let routed = Routed::new()?;
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n:half - [0:0]\n\
        -A FORWARD -p udp -m statistic --mode nth --every 2 --packet 0 -j half\n\
        -A half -p udp -m comment --comment \"each that comes here\"\nCOMMIT\n";
    backend.load(&routed.router, family, rules)?;
    let trace = Trace::start(&["--ip", &routed.server.address(family).to_string(), "--protocol", "udp"])?;
    let (from, to) = (routed.client.port(family, 40_001), routed.server.port(family, 53));
    for number in 0..6 {
        let bytes = packet::udp(from, to, &[number; 4]);
        routed.client.netns.enter(|| send::packets(&[(to, bytes.clone())]))?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let stories = trace.stories(6)?;
    let router = routed.router.inode();
    let way = |story: &Story| {
        let steps = story.steps.iter().filter(|step| {
            step.number("/netns") == Some(router.into()) && step.text("/netfilter/table") == Some("filter")
        });
        let known = steps.map(|step| {
            ensure!(step.text("/confidence") == Some("exact"), "{}", step.brief());
            Ok(format!(
                "{} {}",
                step.text("/netfilter/chain").unwrap_or_default(),
                step.text("/netfilter/verdict").unwrap_or_default()
            ))
        });
        known.collect::<Result<Vec<_>>>()
    };
    // The first may come before the rules were read.
    let ways = stories.iter().skip(2).map(way).collect::<Result<Vec<_>>>()?;
    let short = vec!["FORWARD accept".to_owned()];
    let long: Vec<String> =
        ["FORWARD jump half", "half continue", "half return", "FORWARD accept"].map(str::to_owned).into();
    let count = |wanted: &Vec<String>| ways.iter().filter(|way| *way == wanted).count();
    ensure!((count(&short), count(&long)) == (2, 2), "{ways:#?}");
    Ok(())
}

/// A node with a pod (`c0`, behind `r0`) and an overlay that leaves by `up0`, beyond which nobody answers.
struct Node {
    routed: Routed,
    outside: Outside,
}

/// Its own address on the wire, that of the other node, and of a pod there.
const UPLINK: &str = "192.0.2.1";
const OTHER_NODE: &str = "192.0.2.2";
const OTHER_POD: &str = "10.244.2.9";

impl Node {
    fn new() -> Result<Self> {
        let routed = Routed::new()?;
        let outside = Outside::new(&routed.router, "up0")?;
        routed.router.feed(
            "ip -batch -",
            &format!(
                "addr add {UPLINK}/24 dev up0\n\
                 neigh replace {OTHER_NODE} lladdr 02:00:c0:00:02:02 dev up0 nud permanent\n\
                 link add vx0 type vxlan id 7 local {UPLINK} remote {OTHER_NODE} dstport 8472 nolearning\n\
                 link set vx0 up\naddr add 10.244.1.1/32 dev vx0\n\
                 route add 10.244.2.0/24 via 10.244.2.1 dev vx0 onlink\n\
                 neigh replace 10.244.2.1 lladdr 02:00:0a:f4:02:01 dev vx0 nud permanent\n"
            ),
        )?;
        Ok(Self { routed, outside })
    }

    /// The pod dials a pod of the other node.
    fn dial(&self) -> Result<()> {
        let (from, to) = (self.routed.client.port(Family::V4, 40_001), format!("{OTHER_POD}:6379").parse()?);
        let syn = packet::tcp(from, to, 1, 0, tcp_flag::SYN, b"");
        self.routed.client.netns.enter(|| send::packets(&[(to, syn)]))
    }
}

/// The overlay's packet leaves this node and nothing comes back: not a word of a drop, but where it went.
fn overlay_unanswered() -> Result<()> {
    let node = Node::new()?;
    let router = node.routed.router.inode();
    let trace = Trace::start(&["--ip", OTHER_POD])?;
    node.dial()?;
    let stories = trace.stories(1)?;
    let story = stories.first().context("no story")?;
    ensure!(story.outcome() == Some("no-reply"), "{}", story.end.brief());
    let wanted = [
        format!("{router} device in r0"),
        format!("{router} route forward vx0"),
        format!("{router} tunnel"),
        format!("{router} device out up0"),
    ];
    story.expect(&wanted)?;
    let note = story.end.text("/note").unwrap_or_default();
    for part in ["left on up0", "vxlan", UPLINK, OTHER_NODE, "02:00:c0:00:02:02", "no reply in 2 s"] {
        ensure!(note.to_lowercase().contains(part), "no {part} in {note}");
    }
    ensure!(node.outside.taken() > 0, "nothing left the node");
    Ok(())
}

/// A firewall on the node drops the overlay's packet: the pod's packet is followed into the tunnel, to its drop.
fn overlay_blocked() -> Result<()> {
    let node = Node::new()?;
    let rules = "*filter\n-A OUTPUT -p udp -m udp --dport 8472 -j DROP\nCOMMIT\n";
    Backend::Legacy.load(&node.routed.router, Family::V4, rules)?;
    let router = node.routed.router.inode();
    let trace = Trace::start(&["--ip", OTHER_POD])?;
    node.dial()?;
    let stories = trace.stories(1)?;
    let story = stories.first().context("no story")?;
    ensure!(story.outcome() == Some("dropped"), "{}", story.end.brief());
    story.expect(&[
        format!("{router} route forward vx0"),
        format!("{router} tunnel"),
        format!("{router} netfilter OUTPUT"),
        format!("{router} netfilter filter:OUTPUT:rule:1 drop"),
        format!("{router} drop"),
    ])?;
    // Older kernels don't describe their rules: there the cause is not known.
    let cause = story.end.text("/cause/id");
    ensure!(cause == Some("overlay-blocked") || !kernel::describes_modules(), "{}", story.end.brief());
    Ok(())
}

/// Two routes to one place: each flow takes one of them, stably. The path of each tells by which device it left.
fn two_defaults() -> Result<()> {
    let routed = Routed::new()?;
    let ups = [Outside::new(&routed.router, "up0")?, Outside::new(&routed.router, "up1")?];
    for (device, wire) in [("up0", 8), ("up1", 9)] {
        routed.router.feed(
            "ip -batch -",
            &format!(
                "addr add 192.0.{wire}.1/24 dev {device}\n\
                 neigh replace 192.0.{wire}.254 lladdr 02:00:c0:00:02:0{wire} dev {device} nud permanent\n"
            ),
        )?;
    }
    routed
        .router
        .run("ip route add default nexthop via 192.0.8.254 dev up0 nexthop via 192.0.9.254 dev up1")?;
    routed.router.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
    let trace = Trace::start(&["--ip", "198.51.100.7", "--protocol", "udp"])?;
    for port in 41_000..41_016 {
        let to = "198.51.100.7:53".parse()?;
        routed.client.netns.enter(|| send::udp(routed.client.port(Family::V4, port), to, b"?", 1))?;
    }
    let stories = trace.stories(16)?;
    let mut left = [0; 2];
    for story in &stories {
        ensure!(story.outcome() == Some("no-reply"), "{}", story.end.brief());
        let note = story.end.text("/note").unwrap_or_default();
        for (count, (device, wire)) in left.iter_mut().zip([("up0", 8), ("up1", 9)]) {
            if note.contains(device) {
                ensure!(note.contains(&format!("192.0.{wire}.254")), "no next hop in {note}");
                *count += 1;
            }
        }
    }
    ensure!(left.iter().all(|count| *count > 0) && left.iter().sum::<i32>() == 16, "{left:?}");
    drop(ups);
    Ok(())
}

/// A service's address that nothing translates leaves the node as it is.
fn not_programmed() -> Result<()> {
    let routed = Routed::new()?;
    let outside = Outside::new(&routed.router, "up0")?;
    routed.router.feed(
        "ip -batch -",
        &format!(
            "addr add {UPLINK}/24 dev up0\nroute add default via {OTHER_NODE}\n\
             neigh replace {OTHER_NODE} lladdr 02:00:c0:00:02:02 dev up0 nud permanent\n"
        ),
    )?;
    // Rules for another service.
    let rules = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                 -A KUBE-SERVICES -d 10.96.0.99/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.2.9:80\nCOMMIT\n";
    Backend::Legacy.load(&routed.router, Family::V4, rules)?;
    let router = routed.router.inode();
    let trace = Trace::start(&["--ip", "10.96.0.10"])?;
    let (from, to) = (routed.client.port(Family::V4, 40_002), "10.96.0.10:80".parse()?);
    let syn = packet::tcp(from, to, 1, 0, tcp_flag::SYN, b"");
    routed.client.netns.enter(|| send::packets(&[(to, syn)]))?;
    let stories = trace.stories(1)?;
    let story = stories.first().context("no story")?;
    ensure!(story.outcome() == Some("no-reply"), "{}", story.end.brief());
    let wanted = [
        format!("{router} netfilter nat:PREROUTING:rule:1 jump KUBE-SERVICES"),
        format!("{router} netfilter nat:KUBE-SERVICES:return:2 return"),
        format!("{router} netfilter nat:PREROUTING:policy:2 accept"),
        format!("{router} route forward up0"),
        format!("{router} device out up0"),
    ];
    story.expect(&shown(&wanted, router))?;
    ensure!(!story.in_short().iter().any(|step| step.contains(" nat ")), "{:#?}", story.in_short());
    drop(outside);
    Ok(())
}

/// A node whose pods share a bridge, `br0` with 10.88.0.1: `p1` is 10.88.0.2 behind port `v1`, `p2` is 10.88.0.3 behind `v2`.
struct Shared {
    node: Namespace,
    pods: [Namespace; 2],
}

impl Shared {
    fn new() -> Result<Self> {
        let shared = Self { node: Namespace::new()?, pods: [Namespace::new()?, Namespace::new()?] };
        shared.node.feed(
            "ip -batch -",
            "link add br0 type bridge\naddr add 10.88.0.1/24 dev br0\nlink set br0 up\n",
        )?;
        for (pod, number) in shared.pods.iter().zip(1..) {
            let (name, host) = (pod.name(), number + 1);
            let link = format!(
                "link add v{number} type veth peer name eth0 netns {name}\nlink set v{number} master br0 up\n"
            );
            shared.node.feed("ip -batch -", &link)?;
            let own = format!(
                "link set eth0 up\naddr add 10.88.0.{host}/24 dev eth0\nroute add default via 10.88.0.1\n"
            );
            pod.feed("ip -batch -", &own)?;
        }
        shared.node.sysctl("net.ipv4.ip_forward", "1")?;
        await_ports(&shared.node, "br0", 2)?;
        Ok(shared)
    }

    /// Whether the bridge shows its packets to iptables; the reason where it can't.
    fn call_iptables(&self, value: &str) -> Result<()> {
        self.node
            .sysctl("net.bridge.bridge-nf-call-iptables", value)
            .map_err(|error| skip(format!("without br_netfilter: {error:#}")))
    }

    /// A service at 10.96.0.10:80, and its one backend.
    fn serve(&self, backend: &str) -> Result<()> {
        let rules = format!(
            "*nat\n-A PREROUTING -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination {backend}:80\nCOMMIT\n"
        );
        Backend::Legacy.load(&self.node, Family::V4, &rules)
    }

    /// The first pod dials the service.
    fn dial(&self) -> Result<()> {
        self.pods[0].enter(|| {
            let to = "10.96.0.10:80".parse()?;
            let _unanswered = TcpStream::connect_timeout(&to, Duration::from_millis(300));
            Ok(())
        })
    }
}

/// Answers of a service's backend on the same bridge go past the undoing of DNAT: the client gets them from somebody that it never
/// called.
fn bridge_unfiltered() -> Result<()> {
    let shared = Shared::new()?;
    shared.serve("10.88.0.3")?;
    // Where the module is not loaded it is as if this were 0.
    let _ = shared.call_iptables("0");
    let listener = shared.pods[1].enter(|| Ok(TcpListener::bind("10.88.0.3:80")?))?;
    let trace = Trace::start(&["--ip", "10.88.0.2", "--port", "80"])?;
    shared.dial()?;
    let stories = trace.stories(3)?;
    drop(listener);
    let is_answer = |story: &&Story| {
        let is_dropped =
            story.outcome() == Some("dropped") && story.end.text("/drop/packet/tcp_flags") == Some("SYN,ACK");
        is_dropped && (story.end.text("/cause/id") == Some("untranslated-answer") || !kernel::has_reasons())
    };
    let answer = stories.iter().find(is_answer).with_context(|| format!("no such drop: {stories:#?}"))?;
    // The host would tell the client to send to the backend itself, and the kernel prevents that.
    if kernel::version() >= (5, 17) {
        let redirect = stories.iter().find(|story| story.end.text("/cause/id") == Some("nat-redirect"));
        ensure!(redirect.is_some(), "no redirect: {stories:#?}");
    }
    let [node, client, backend] = [&shared.node, &shared.pods[0], &shared.pods[1]].map(Namespace::inode);
    answer.expect(&[
        format!("{backend} route output eth0"),
        format!("{node} device in v2"),
        format!("{node} bridge"),
        format!("{node} device out v1"),
        format!("{client} device in eth0"),
        format!("{client} drop"),
    ])?;
    ensure!(!answer.in_short().iter().any(|step| step.contains(" nat ")), "{:#?}", answer.in_short());
    let request = stories.iter().find(|story| story.outcome() == Some("delivered"));
    let request = request.with_context(|| format!("no request: {stories:#?}"))?;
    let wanted = [
        format!("{node} device in v1"),
        format!("{node} netfilter nat:PREROUTING:rule:1 target dnat"),
        format!("{node} route forward br0"),
        format!("{backend} device in eth0"),
    ];
    request.expect(&shown(&wanted, node))
}

/// A pod that reaches itself by its service, on a bridge port without hairpin mode.
fn hairpin_off() -> Result<()> {
    if kernel::in_vm() {
        command::run("modprobe br_netfilter")?;
    }
    let shared = Shared::new()?;
    shared.call_iptables("1")?;
    shared.serve("10.88.0.2")?;
    let listener = shared.pods[0].enter(|| Ok(TcpListener::bind("10.88.0.2:80")?))?;
    let trace = Trace::start(&["--ip", "10.88.0.2", "--port", "80"])?;
    shared.dial()?;
    let stories = trace.stories(1)?;
    drop(listener);
    let story = stories.first().context("no story")?;
    ensure!(story.outcome() == Some("dropped"), "{}; {:#?}", story.end.brief(), story.in_short());
    let node = shared.node.inode();
    let wanted = [
        format!("{node} device in v1"),
        format!("{node} netfilter PREROUTING"),
        format!("{node} netfilter nat:PREROUTING:rule:1 target dnat"),
        format!("{node} drop"),
    ];
    story.expect(&shown(&wanted, node))?;
    ensure!(story.end.text("/cause/id") == Some("hairpin-off"), "{}", story.end.brief());
    Ok(())
}

/// A service's address that IPVS has: without a server the packet dies in IPVS, with one it is translated there and goes on.
fn ipvs_vip() -> Result<()> {
    for module in ["ip_vs", "ip_vs_rr"] {
        let _ = command::run(&format!("modprobe {module}"));
    }
    if !std::path::Path::new("/proc/net/ip_vs_conn").exists() {
        return Err(skip("this kernel has no IPVS"));
    }
    let routed = Routed::new()?;
    let router = routed.router.inode();
    routed.router.run("ip addr add 10.96.0.1/32 dev lo")?;
    routed.router.run("ipvsadm -A -t 10.96.0.1:6379 -s rr")?;
    let names = super::names::inventory()?;
    let path = names.path().to_str().context("the path of a file")?;
    let trace = Trace::start(&["--inventory", path, "--ip", "10.96.0.1"])?;
    let to = "10.96.0.1:6379".parse()?;
    let syn = |port| packet::tcp(routed.client.port(Family::V4, port), to, 1, 0, tcp_flag::SYN, b"");
    routed.client.inject(&[syn(40_010)])?;
    trace.0.wait("the drop", |output| {
        output.records.iter().any(|record| record.text("/outcome") == Some("dropped"))
    })?;
    let server = routed.server.address(Family::V4);
    routed.router.run(&format!("ipvsadm -a -t 10.96.0.1:6379 -r {server}:6379 -m"))?;
    routed.client.inject(&[syn(40_011)])?;
    let is_of = |story: &&Story, port| {
        story.steps.first().is_some_and(|step| step.number("/source/port") == Some(port))
    };
    let stories = trace.stories(2)?;
    let lost = stories.iter().find(|story| is_of(story, 40_010)).context("no story of the first")?;
    let dialled = lost.steps.first().context("no step")?;
    ensure!(dialled.text("/destination/k8s/service") == Some("redis"), "{}", dialled.brief());
    ensure!(lost.outcome() == Some("dropped"), "{}", lost.end.brief());
    lost.expect(&[
        format!("{router} device in r0"),
        format!("{router} netfilter INPUT"),
        format!("{router} drop"),
    ])?;
    // Which function dropped is not known everywhere.
    let cause = lost.end.text("/cause/id");
    ensure!(cause == Some("ipvs-drop") || !kernel::describes_modules(), "{}", lost.end.brief());
    let sent = stories.iter().find(|story| is_of(story, 40_011)).context("no story of the second")?;
    let client = routed.client.address(Family::V4);
    sent.expect(&[
        format!("{router} netfilter INPUT"),
        format!("{router} nat {client} 40011 > 10.96.0.1 6379 => {client} 40011 > {server} 6379"),
        format!("{router} device out r1"),
    ])
}

/// What tools say of hooks and qdiscs.
fn hooks_of(netns: &Namespace) -> Result<String> {
    let mut text = netns.run("tc qdisc show")?;
    for device in ["r0", "r1"] {
        for side in ["ingress", "egress"] {
            text.push_str(&netns.run(&format!("tc filter show dev {device} {side}")).unwrap_or_default());
        }
    }
    Ok(text)
}

/// A trace that is killed leaves no program and no qdisc behind, and while it runs it adds no qdisc and no filter.
fn killed_leaves_nothing() -> Result<()> {
    let routed = Routed::new()?;
    let before = hooks_of(&routed.router)?;
    let trace = Trace::start(&["--ip", "192.0.2.77"])?;
    ensure!(hooks_of(&routed.router)? == before, "qdiscs or filters while it runs");
    let held = Objects::held_by(trace.0.pid())?;
    ensure!(!held.is_empty(), "droptrace holds no eBPF objects: this test cannot see them");
    trace.0.signal(libc::SIGKILL);
    trace.0.end()?;
    let gone = settled(&[0], || Ok(u64::from(!held.alive()?.is_empty())))?;
    ensure!(gone == 0, "still there: {:?}", held.alive()?);
    ensure!(hooks_of(&routed.router)? == before, "qdiscs or filters after it was killed");
    Ok(())
}

/// How a program is on a tc hook.
#[derive(Clone, Copy)]
enum How {
    Tcx,
    Clsact,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// A program that drops decides as it would without a trace.
fn programs_behind_decide(how: How) -> Result<()> {
    let routed = Routed::new()?;
    let from = routed.client.port(Family::V4, 40_003);
    let to = routed.server.port(Family::V4, 7);
    let dropped = |filter: &[&str]| -> Result<(u64, Option<String>)> {
        let trace = if filter.is_empty() { None } else { Some(Trace::start(filter)?) };
        let before = routed.server.netns.counter("UdpNoPorts")?;
        routed.client.netns.enter(|| send::udp(from, to, b"x", 5))?;
        let outcome = match trace {
            Some(trace) => trace.stories(5)?.first().and_then(|story| story.outcome().map(str::to_owned)),
            None => None,
        };
        Ok((routed.server.netns.counter("UdpNoPorts")? - before, outcome))
    };
    let mut program = Program::load("bouncer")?;
    let link = match how {
        How::Tcx => Some(program.attach(&routed.router, "r0", Hook::Ingress)?),
        How::Clsact => {
            routed.router.run("tc qdisc add dev r0 clsact")?;
            program.add_filter(&routed.router, "r0", Hook::Ingress, 1)?;
            None
        }
    };
    let filter = ["--port", "40003"];
    ensure!(dropped(&[])? == (0, None), "the program does not drop");
    ensure!(
        dropped(&filter)? == (0, Some("dropped".to_owned())),
        "with a trace armed the program does not drop"
    );
    match link {
        Some(link) => drop(link),
        None => routed.router.run("tc qdisc del dev r0 clsact").map(drop)?,
    }
    let (arrived, outcome) = dropped(&filter)?;
    ensure!(arrived == 5, "with a trace armed {arrived} of 5 packets arrive; {outcome:?}");
    Ok(())
}
