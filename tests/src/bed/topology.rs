//! Namespaces connected by veth pairs: two hosts on one wire, or a client, a router and a server.
//!
//! Neighbour entries are permanent and there are no link-local addresses, so that nothing but the test's packets
//! is on the wires.

use super::link;
use super::namespace::Namespace;
use super::packet::{self, Mac};
use super::{patience, send, settled};
use anyhow::{Result, ensure};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Which internet protocol a scenario runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Picks by family.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// `ipv4` or `ipv6`, as droptrace writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.pick("ipv4", "ipv6")
    }

    /// `icmp` or `icmpv6`, as droptrace writes it.
    #[must_use]
    pub fn icmp(self) -> &'static str {
        self.pick("icmp", "icmpv6")
    }
}

/// One end of a wire: a device with its addresses.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The device's name.
    pub device: &'static str,
    /// Its IPv4 address, in a /24.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, in a /64.
    pub v6: Ipv6Addr,
}

impl End {
    /// The end numbered `host` on the wire numbered `wire`: 10.77.WIRE.HOST and fd77:WIRE::HOST.
    #[must_use]
    pub const fn new(device: &'static str, wire: u8, host: u8) -> Self {
        Self {
            device,
            v4: Ipv4Addr::new(10, 77, wire, host),
            v6: Ipv6Addr::new(0xfd77, wire as u16, 0, 0, 0, 0, 0, host as u16),
        }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        family.pick(self.v4.into(), self.v6.into())
    }

    /// Its address with a port.
    #[must_use]
    pub fn port(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Its hardware address: locally administered, made of the IPv4 address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        let [a, b, c, d] = self.v4.octets();
        [2, 0, a, b, c, d]
    }
}

/// A namespace with one wire to the rest.
#[derive(Debug)]
pub struct Host {
    /// The namespace.
    pub netns: Namespace,
    /// Its end of the wire.
    pub end: End,
    /// The other end.
    pub peer: End,
}

impl Host {
    /// Its address.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        self.end.address(family)
    }

    /// Its address with a port.
    #[must_use]
    pub fn port(&self, family: Family, port: u16) -> SocketAddr {
        self.end.port(family, port)
    }

    /// Puts IP packets on the wire, past this host's own IP layer.
    ///
    /// # Errors
    /// When the packet socket refuses one.
    pub fn inject(&self, packets: &[Vec<u8>]) -> Result<()> {
        let frames: Vec<_> =
            packets.iter().map(|packet| packet::frame(self.end.mac(), self.peer.mac(), packet)).collect();
        self.netns.enter(|| send::frames(self.end.device, &frames))
    }
}

/// Two hosts on one wire: `client` (device `c0`) and `server` (device `s0`).
#[derive(Debug)]
pub struct Pair {
    /// Sends.
    pub client: Host,
    /// Receives.
    pub server: Host,
}

impl Pair {
    /// Makes it.
    ///
    /// # Errors
    /// When a command fails.
    pub fn new() -> Result<Self> {
        let (a, b) = (End::new("c0", 0, 1), End::new("s0", 0, 2));
        let client = Host { netns: Namespace::new()?, end: a, peer: b };
        let server = Host { netns: Namespace::new()?, end: b, peer: a };
        connect(&client.netns, &a, &server.netns, &b)?;
        Ok(Self { client, server })
    }
}

/// `client` (`c0`) - (`r0`) `router` (`r1`) - (`s0`) `server`. Client and server have a default route to the router;
/// the router forwards and has no default route.
#[derive(Debug)]
pub struct Routed {
    /// Sends.
    pub client: Host,
    /// Forwards.
    pub router: Namespace,
    /// The router's end toward the client.
    pub near: End,
    /// The router's end toward the server.
    pub far: End,
    /// Receives.
    pub server: Host,
}

impl Routed {
    /// Makes it.
    ///
    /// # Errors
    /// When a command fails.
    pub fn new() -> Result<Self> {
        Self::on(1)
    }

    /// Likewise, on this wire and the next one: with addresses that other tests, which run beside it, have not.
    ///
    /// # Errors
    /// When a command fails.
    pub fn on(wire: u8) -> Result<Self> {
        let (near, far) = (End::new("r0", wire, 254), End::new("r1", wire + 1, 254));
        let client = Host { netns: Namespace::new()?, end: End::new("c0", wire, 1), peer: near };
        let server = Host { netns: Namespace::new()?, end: End::new("s0", wire + 1, 1), peer: far };
        let router = Namespace::new()?;
        connect(&client.netns, &client.end, &router, &near)?;
        connect(&router, &far, &server.netns, &server.end)?;
        for (host, gateway) in [(&client, near), (&server, far)] {
            let routes =
                format!("route add default via {}\nroute add default via {}\n", gateway.v4, gateway.v6);
            host.netns.feed("ip -batch -", &routes)?;
        }
        router.sysctl("net.ipv4.ip_forward", "1")?;
        router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        Ok(Self { client, router, near, far, server })
    }
}

/// `client` (`c0`) - (`b0`) bridge `br0` in `middle` (`b1`) - (`s0`) `server`. The bridge knows where the server is.
#[derive(Debug)]
pub struct Bridged {
    /// Sends.
    pub client: Host,
    /// Forwards frames.
    pub middle: Namespace,
    /// Receives.
    pub server: Host,
}

impl Bridged {
    /// Makes it.
    ///
    /// # Errors
    /// When a command fails.
    pub fn new() -> Result<Self> {
        let ends =
            [("c0", 1), ("b0", 3), ("b1", 4), ("s0", 2)].map(|(device, host)| End::new(device, 3, host));
        let middle = Namespace::new()?;
        let client = Host { netns: Namespace::new()?, end: ends[0], peer: ends[3] };
        let server = Host { netns: Namespace::new()?, end: ends[3], peer: ends[0] };
        connect(&client.netns, &ends[0], &middle, &ends[1])?;
        connect(&middle, &ends[2], &server.netns, &ends[3])?;
        middle.run("ip link add br0 type bridge mcast_snooping 0")?;
        for device in ["b0", "b1"] {
            middle.run(&format!("ip addr flush dev {device}"))?;
            middle.run(&format!("ip link set {device} master br0"))?;
        }
        middle.run("ip link set br0 up")?;
        let server_mac = packet::mac_text(server.end.mac());
        middle.run(&format!("bridge fdb replace {server_mac} dev b1 master static"))?;
        await_ports(&middle, "br0", 2)?;
        Ok(Self { client, middle, server })
    }
}

/// Waits until all ports of a bridge forward. A port whose device had its carrier only a moment ago is disabled until the
/// bridge is told of it, from a work item (net/bridge/br_notify.c); until then it drops all that comes.
///
/// # Errors
/// When they don't in time.
pub fn await_ports(netns: &Namespace, bridge: &str, ports: u64) -> Result<()> {
    let show = format!("ip -details link show master {bridge}");
    let forwarding = settled(&[ports], || Ok(netns.run(&show)?.matches("state forwarding").count() as u64))?;
    ensure!(forwarding == ports, "{forwarding} of {ports} ports of {bridge} forward after {:?}", patience());
    Ok(())
}

/// Connects two namespaces by a veth pair, both ends up, with addresses and permanent neighbour entries.
///
/// # Errors
/// When a command fails.
pub fn connect(a: &Namespace, end_a: &End, b: &Namespace, end_b: &End) -> Result<()> {
    let pair = format!(
        "link add {} address {} type veth peer name {} address {} netns {}\n",
        end_a.device,
        packet::mac_text(end_a.mac()),
        end_b.device,
        packet::mac_text(end_b.mac()),
        b.name()
    );
    for (netns, own, peer, mut batch) in [(a, end_a, end_b, pair), (b, end_b, end_a, String::new())] {
        let (device, mac) = (own.device, packet::mac_text(peer.mac()));
        writeln!(batch, "link set {device} up")?;
        writeln!(batch, "addr add {}/24 dev {device}", own.v4)?;
        writeln!(batch, "addr add {}/64 dev {device} nodad", own.v6)?;
        for address in [IpAddr::from(peer.v4), IpAddr::from(peer.v6)] {
            writeln!(batch, "neigh replace {address} lladdr {mac} dev {device} nud permanent")?;
        }
        netns.feed("ip -batch -", &batch)?;
    }
    a.enter(|| link::await_queue(end_a.device))
}
