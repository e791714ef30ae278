//! A node, its pods, and what they send.

use crate::bed::backend::Backend;
use crate::bed::droptrace::{self, ATTACHED, Droptrace};
use crate::bed::kernel;
use crate::bed::kube_api::objects;
use crate::bed::namespace::Namespace;
use crate::bed::send;
use crate::bed::topology::{End, Family, Host, Routed, await_ports};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::any::Any;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tempfile::NamedTempFile;

/// The port that the client sends from, of its flows the first.
pub(super) const FROM: u16 = 40_000;
/// The port of redis.
pub(super) const REDIS: u16 = 6379;
/// An answer of whoever is here comes sooner.
const ANSWER: Duration = Duration::from_millis(300);

/// A node with the pods `shop/cart-0` and `shop/redis-0` behind it, of which redis-0 may also stand for another node or the
/// world; the service `shop/redis`, and `shop/empty` without endpoints. `shop/db-0` is on node n2.
pub(super) struct Node {
    /// What has to live as long; the first to go.
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
    pub(super) cart: Host,
    pub(super) redis: Host,
    pub(super) netns: Namespace,
    /// Its own ends toward cart-0 and redis-0.
    pub(super) near: End,
    pub(super) far: End,
    wire: u8,
    inventory: NamedTempFile,
    is_healed: AtomicBool,
}

impl Node {
    /// Each pod behind a device of its own; the node routes.
    pub(super) fn routed(wire: u8) -> Result<Self> {
        let Routed { client, router, near, far, server } = Routed::on(wire)?;
        Self::of([client, server], router, [near, far], wire)
    }

    /// The pods are on a bridge of the node's, `br0`, with ports `v1` and `v2`.
    pub(super) fn bridged(wire: u8) -> Result<Self> {
        let (netns, own) = (Namespace::new()?, End::new("br0", wire, 254));
        netns.feed(
            "ip -batch -",
            &format!("link add br0 type bridge\naddr add {}/24 dev br0\nlink set br0 up\n", own.v4),
        )?;
        let pod = |port: &str, number: u8| -> Result<Host> {
            let (pod, end) = (Namespace::new()?, End::new("eth0", wire, number));
            let link = format!("link add {port} type veth peer name eth0 netns {}\n", pod.name());
            netns.feed("ip -batch -", &format!("{link}link set {port} master br0 up\n"))?;
            let (address, node) = (end.v4, own.v4);
            pod.feed(
                "ip -batch -",
                &format!("link set eth0 up\naddr add {address}/24 dev eth0\nroute add default via {node}\n"),
            )?;
            Ok(Host { netns: pod, end, peer: own })
        };
        let pods = [pod("v1", 1)?, pod("v2", 2)?];
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        await_ports(&netns, "br0", 2)?;
        Self::of(pods, netns, [own, own], wire)
    }

    fn of([cart, redis]: [Host; 2], netns: Namespace, [near, far]: [End; 2], wire: u8) -> Result<Self> {
        let addresses = [&cart, &redis].map(|host| host.end.v4.to_string());
        let inventory = inventory(wire, &far.v4.to_string(), &addresses)?;
        Ok(Self {
            kept: Mutex::default(),
            cart,
            redis,
            netns,
            near,
            far,
            wire,
            inventory,
            is_healed: AtomicBool::new(false),
        })
    }

    /// The address of the service redis.
    pub(super) fn service(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, self.wire, 10)
    }

    /// That of the service empty.
    pub(super) fn empty(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, self.wire, 20)
    }

    /// That of the pod db-0, on another node.
    pub(super) fn db(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.wire, 9)
    }

    /// Somebody outside.
    pub(super) fn outside(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, self.wire, 7)
    }

    pub(super) fn client(&self, port: u16) -> SocketAddr {
        self.cart.port(Family::V4, port)
    }

    pub(super) fn server(&self, port: u16) -> SocketAddr {
        self.redis.port(Family::V4, port)
    }

    /// Keeps something alive: a socket, a program.
    pub(super) fn keep(&self, it: impl Any + Send) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(it));
    }

    /// Does something with what is kept of this type.
    pub(super) fn kept<T: 'static, R>(&self, work: impl FnOnce(&T) -> R) -> Option<R> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find_map(|it| it.downcast_ref()).map(work)
    }

    /// From now on its processes do better.
    pub(super) fn healed(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_healed(&self) -> bool {
        self.is_healed.load(Ordering::Relaxed)
    }

    /// Runs a command line on the node.
    pub(super) fn run(&self, line: &str) -> Result<()> {
        self.netns.run(line).map(drop)
    }

    /// Loads rules of iptables-legacy.
    pub(super) fn rules(&self, rules: &str) -> Result<()> {
        Backend::Legacy.load(&self.netns, Family::V4, rules)
    }

    /// Rules as kube-proxy's for the service redis, and for others.
    pub(super) fn kube_proxy(&self, target: SocketAddr, filter: &str) -> Result<()> {
        self.rules(&format!("{}*filter\n{filter}COMMIT\n", self.translation(target)))
    }

    /// kube-proxy's nat table, with the service redis.
    pub(super) fn translation(&self, target: SocketAddr) -> String {
        let service = self.service();
        format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-REDIS - [0:0]\n:KUBE-SEP-REDIS - [0:0]\n\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A KUBE-SERVICES -d {service}/32 -p tcp -m comment --comment \"shop/redis cluster IP\" -m tcp --dport {REDIS} \
             -j KUBE-SVC-REDIS\n\
             -A KUBE-SVC-REDIS -m comment --comment \"shop/redis -> {target}\" -j KUBE-SEP-REDIS\n\
             -A KUBE-SEP-REDIS -p tcp -m comment --comment \"shop/redis\" -m tcp -j DNAT --to-destination {target}\nCOMMIT\n"
        )
    }

    /// Starts droptrace on the node; does not wait.
    pub(super) fn droptrace(&self, arguments: &[&str]) -> Result<Droptrace> {
        let mut command = self.netns.command(&droptrace::binary()?.to_string_lossy())?;
        command.args(arguments).args(["--offline", "--inventory"]).arg(self.inventory.path());
        Droptrace::spawn({
            command.env("LC_ALL", "C.UTF-8");
            command
        })
    }

    /// Watches drops on the node, as its administrator would; each in its own way.
    pub(super) fn watch(&self, ways: &[&[&str]]) -> Result<Vec<Droptrace>> {
        let started = ways.iter().map(|arguments| self.droptrace(arguments)).collect::<Result<Vec<_>>>()?;
        for one in &started {
            one.wait("attached", |output| output.stderr.contains(ATTACHED))?;
        }
        Ok(started)
    }

    /// Listens for TCP connections from now on.
    pub(super) fn listens(&self, netns: &Namespace, at: impl Into<SocketAddr>) -> Result<()> {
        let at = at.into();
        self.keep(netns.enter(|| TcpListener::bind(at).with_context(|| format!("listen at {at}")))?);
        Ok(())
    }

    /// cart-0 dials redis's port there; true if it is answered.
    pub(super) fn dials(&self, to: impl Into<IpAddr>) -> Result<bool> {
        self.dials_for(to, ANSWER)
    }

    /// Likewise, and insists for a while.
    pub(super) fn dials_for(&self, to: impl Into<IpAddr>, patience: Duration) -> Result<bool> {
        self.dials_from(FROM, to, patience)
    }

    /// Likewise, from this port.
    pub(super) fn dials_from(&self, port: u16, to: impl Into<IpAddr>, patience: Duration) -> Result<bool> {
        let to = SocketAddr::new(to.into(), REDIS);
        self.cart.netns.enter(|| send::connects(self.client(port), to, patience))
    }

    /// cart-0 asks, in so many flows at once; how many are answered. `server` is where it arrives.
    pub(super) fn asks(
        &self,
        flows: u16,
        to: impl Into<SocketAddr>,
        (netns, server): (&Namespace, SocketAddr),
        question: &[u8],
    ) -> Result<usize> {
        let to = to.into();
        let bind = |at: SocketAddr| move || UdpSocket::bind(at).with_context(|| format!("bind {at}"));
        let answers = netns.enter(bind(server))?;
        let asks = (FROM..FROM + flows).map(|port| self.cart.netns.enter(bind(self.client(port))));
        let asks = asks.collect::<Result<Vec<_>>>()?;
        for socket in &asks {
            // A route that says no is no failure of the sender's.
            let _ = socket.send_to(question, to);
        }
        answers.set_read_timeout(Some(answer()))?;
        let mut buffer = [0; 2048];
        for _ in 0..flows {
            let Ok((_, asker)) = answers.recv_from(&mut buffer) else { break };
            let _ = answers.send_to(b"!", asker);
        }
        let mut answered = 0;
        for socket in &asks {
            // Those that are answered are by now: waiting for each that is not would add up.
            let patience = if asks.len() == 1 { answer() } else { Duration::from_millis(20) };
            socket.set_read_timeout(Some(patience))?;
            answered += usize::from(socket.recv(&mut buffer).is_ok());
        }
        Ok(answered)
    }

    /// cart-0 asks redis-0 at a port; true if it is answered.
    pub(super) fn asks_redis(&self, port: u16) -> Result<bool> {
        Ok(self.asks(1, self.server(port), (&self.redis.netns, self.server(port)), b"?")? == 1)
    }

    /// The text with what varies from run to run in other words.
    pub(super) fn in_stable_words(&self, text: &str) -> String {
        let (one, two) = (self.wire, self.wire + 1);
        let mut text = super::printed::stable(text);
        for (from, to) in [
            (format!("10.77.{one}."), "10.77.1."),
            (format!("10.77.{two}."), "10.77.2."),
            (format!("10.96.{one}."), "10.96.0."),
            (format!("10.244.{one}."), "10.244.2."),
            (format!("198.51.{one}."), "198.51.100."),
            (format!(" on {}", here()), " on n1"),
            // Which of two queries loses a race is chance.
            ("10.96.0.11:53".to_owned(), "10.96.0.10:53"),
            (format!("node/{}:", here()), "node/n1:"),
        ] {
            text = text.replace(&from, to);
        }
        text
    }
}

fn answer() -> Duration {
    if kernel::in_vm() { ANSWER * 5 } else { ANSWER }
}

/// The name of this node.
fn here() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// What `kubectl get pods,services,endpointslices,nodes,namespaces,networkpolicies -A -o json` prints, in short.
fn inventory(wire: u8, own: &str, [cart, redis]: &[String; 2]) -> Result<NamedTempFile> {
    let here = here();
    let service =
        |name: &str, host: u8| objects::service("shop", name, &format!("10.96.{wire}.{host}"), REDIS, REDIS);
    let policy = json!({"podSelector": {"matchLabels": {"app": "redis-0"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "cart-0"}}}]}]});
    let items = json!([
        objects::pod("shop", "cart-0", &here, &[cart]),
        objects::pod("shop", "redis-0", &here, &[redis]),
        objects::pod("shop", "db-0", "n2", &[&format!("10.244.{wire}.9")]),
        service("redis", 10),
        objects::slice("shop", "redis", REDIS, &[("redis-0", redis)]),
        service("empty", 20),
        objects::slice("shop", "empty", REDIS, &[]),
        objects::namespace("shop"),
        objects::node(&here, &[own]),
        objects::node("n2", &["192.0.2.2"]),
        objects::network_policy("shop", "from-cart", &policy),
    ]);
    let mut file = NamedTempFile::new()?;
    file.write_all(json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string().as_bytes())?;
    Ok(file)
}
