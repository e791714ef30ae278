//! Processes that don't keep up.

use super::node::{FROM, Node, REDIS};
use super::outage::{Outage, ROUTED, Says};
use super::services::INSISTS;
use crate::bed::outside::Outside;
use crate::bed::packet::{self, tcp_flag};
use crate::bed::send::{self, Sniffer};
use anyhow::{Context as _, Result};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

pub(super) const OUTAGES: &[Outage] = &[
    Outage {
        id: "listen-overflow",
        what: "The accept queue of a listener is full",
        breaks: |node| {
            let to = node.server(REDIS);
            let listener = node.redis.netns.enter(|| TcpListener::bind(to).context("listen"))?;
            send::shorten_accept_queue(&listener, 1)?;
            node.keep(listener);
            // Clients whose kernel does not interfere.
            node.keep(Outside::new(&node.netns, "up0")?);
            let [clients, mac] = [clients(node).to_string(), packet::mac_text([2; 6])];
            node.run(&format!("ip route add {clients} dev up0"))?;
            node.run(&format!("ip neigh replace {clients} lladdr {mac} dev up0 nud permanent"))
        },
        sends: |node| {
            if node.is_healed() { node.dials(node.redis.end.v4) } else { overflows(node).map(|()| false) }
        },
        heals: accepts,
        pod: "shop/redis-0",
        facts: &[
            "shop/redis-0:6379",
            "TCP_LISTEN_OVERFLOW",
            "The accept queue of the listener on port 6379 in shop/redis-0 is full",
            "overflows so far",
            "ss -lnt",
        ],
        more: &["node: net.core.somaxconn", "TcpExtListenOverflows"],
        ..ROUTED
    },
    Outage {
        id: "listen-overflow-syn",
        what: "The accept queue of a listener is full, and the kernel ignores who dials anew without a drop that anybody could see",
        breaks: |node| {
            let to = node.server(REDIS);
            let listener = node.redis.netns.enter(|| TcpListener::bind(to).context("listen"))?;
            send::shorten_accept_queue(&listener, 1)?;
            node.keep(listener);
            // A queue of one takes two.
            for port in [FROM + 1, FROM + 2] {
                anyhow::ensure!(node.dials_from(port, to.ip(), INSISTS)?, "the queue has no room for {port}");
            }
            Ok(())
        },
        sends: |node| node.dials_for(node.redis.end.v4, INSISTS),
        heals: accepts,
        says: Says::Unanswered,
        facts: &[
            "SYN retransmits from shop/cart-0 to shop/redis-0:6379",
            "next: what shop/redis-0 does with them: is its accept queue full (ss -lnt there)",
        ],
        ..ROUTED
    },
    Outage {
        id: "udp-rcvbuf",
        what: "The receive buffer of a UDP socket is full",
        sends: floods,
        heals: |_| Ok(()),
        facts: &[
            "shop/redis-0:53",
            "SOCKET_RCVBUFF",
            "The receive buffer of the process on udp port 53 in shop/redis-0 is full",
            "lost so far",
            "more CPU or replicas",
        ],
        more: &["UdpRcvbufErrors"],
        ..ROUTED
    },
];

/// The process accepts what waits.
fn accepts(node: &Node) -> Result<()> {
    let accept = |listener: &TcpListener| -> Result<()> {
        listener.set_nonblocking(true)?;
        while listener.accept().is_ok() {}
        Ok(())
    };
    node.kept(accept).context("no listener")?
}

/// Sends more than the process's buffer takes before it reads; once it has a larger one, all of it arrives.
fn floods(node: &Node) -> Result<bool> {
    const SENT: usize = 50;
    let to = node.server(53);
    let receiver = node.redis.netns.enter(|| UdpSocket::bind(to).context("bind"))?;
    if !node.is_healed() {
        send::small_receive_buffer(&receiver, 2304)?;
    }
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    node.cart.netns.enter(|| send::udp(node.client(FROM), to, &[0; 1000], SENT))?;
    let arrived = (0..SENT).take_while(|_| receiver.recv(&mut [0; 2000]).is_ok()).count();
    Ok(arrived == SENT)
}

fn clients(node: &Node) -> std::net::Ipv4Addr {
    let [a, b, c, _] = node.cart.end.v4.octets();
    [a, b, c, 77].into()
}

/// Nobody accepts connections. While the queue has room for one more, two begin; the second one's last step finds it full.
fn overflows(node: &Node) -> Result<()> {
    let to = node.server(REDIS);
    let begin = |port: u16| -> Result<(SocketAddr, u32)> {
        let from = SocketAddr::from((clients(node), port));
        let sniffer = node.redis.netns.enter(|| Sniffer::open(node.redis.end.device))?;
        node.cart.inject(&[packet::tcp(from, to, 1000, 0, tcp_flag::SYN, b"")])?;
        Ok((from, sniffer.wait("SYN-ACK", |frame| sequence_of_answer(frame, port))?))
    };
    let end = |(from, sequence): (SocketAddr, u32)| {
        node.cart.inject(&[packet::tcp(from, to, 1001, sequence.wrapping_add(1), tcp_flag::ACK, b"")])
    };
    // A queue of one takes two.
    end(begin(5000)?)?;
    let both = [begin(6000)?, begin(6001)?];
    both.into_iter().try_for_each(end)
}

/// The sequence number of a SYN-ACK to a port, in a frame of IPv4 without options.
fn sequence_of_answer(frame: &[u8], port: u16) -> Option<u32> {
    let tcp = frame.get(14 + 20..)?;
    let is_it = tcp.get(2..4)? == port.to_be_bytes() && tcp.get(13)? & 0x12 == tcp_flag::SYN | tcp_flag::ACK;
    is_it.then_some(u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?))
}
