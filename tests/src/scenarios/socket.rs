//! Drops at sockets: nobody listens, or the receiver is full.

use super::expect::{Expect, verify, watch};
use super::{both_here, here_only, one, skip};
use crate::bed::kernel;
use crate::bed::packet::{self, tcp_flag};
use crate::bed::send::{self, Sniffer};
use crate::bed::topology::{Family, Host, Pair};
use crate::bed::{packet::Mac, patience};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

pub(super) fn trials() -> Vec<Trial> {
    [
        both_here("socket::udp_none", udp_none),
        both_here("socket::tcp_none", tcp_none),
        both_here("socket::stray_answer", stray_answer),
        both_here("socket::stray_segment", stray_segment),
        both_here("socket::bad_checksum", bad_checksum),
        both_here("socket::bad_overlay_checksum", bad_overlay_checksum),
        both_here("socket::accept_queue_full", accept_queue_full),
        both_here("socket::udp_receive_buffer_full", udp_receive_buffer_full),
        both_here("socket::tcp_out_of_order_prune", tcp_out_of_order_prune),
    ]
    .into_iter()
    .flatten()
    .chain(here_only([one("socket::tcp_out_of_window", Family::V4, tcp_out_of_window)]))
    .collect()
}

const UDP_RECEIVE: &[&str] = &["__udp4_lib_rcv", "udp_rcv", "__udp6_lib_rcv", "udpv6_rcv"];
const TCP_RECEIVE: &[&str] = &["tcp_v4_rcv", "tcp_v6_rcv"];

fn udp_none(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 9));
    let stream = watch()?;
    let sent = pair.client.netns.enter(|| send::udp(from, to, b"nobody", 3))?;
    // An answer to one datagram fails the next send: those never left.
    let expect = Expect::drops(sent, &pair.server.netns)
        .flow("udp", from, to)
        .reason(&["NO_SOCKET"])
        .at(UDP_RECEIVE)
        .field("/drop/class", "error")
        .cause("no-listener")
        .interface("s0");
    verify(stream, &[expect], &[&pair.client.netns])
}

fn tcp_none(family: Family) -> Result<()> {
    let pair = Pair::new()?;
    let to = pair.server.port(family, 9);
    let stream = watch()?;
    let refused = pair.client.netns.enter(|| Ok(send::connect(to)))?;
    ensure!(refused.is_err(), "something listens on {to}");
    let expect = Expect::drops(1, &pair.server.netns)
        .destination("tcp", to)
        .reason(&["NO_SOCKET"])
        .at(TCP_RECEIVE)
        .field("/packet/tcp_flags", "SYN")
        .cause("no-listener")
        .interface("s0");
    verify(stream, &[expect], &[])
}

/// What is no beginning of a connection: nobody waits for it.
fn stray(family: Family, flags: u8, cause: &'static str) -> Result<()> {
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(family, 6379), pair.server.port(family, 40_000));
    let stream = watch()?;
    pair.client.inject(&[packet::tcp(from, to, 1000, 2000, flags, b"")])?;
    let expect = Expect::drops(1, &pair.server.netns)
        .flow("tcp", from, to)
        .reason(&["NO_SOCKET"])
        .at(TCP_RECEIVE)
        .cause(cause)
        .interface("s0");
    verify(stream, &[expect], &[])
}

/// An answer of somebody who was not dialled.
fn stray_answer(family: Family) -> Result<()> {
    stray(family, tcp_flag::SYN | tcp_flag::ACK, "untranslated-answer")
}

/// Data of a connection that is over.
fn stray_segment(family: Family) -> Result<()> {
    stray(family, tcp_flag::PSH | tcp_flag::ACK, "connection-gone")
}

/// A datagram to a port, damaged on the way.
fn damaged(family: Family, port: u16, cause: &'static str) -> Result<()> {
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, port));
    let mut datagram = packet::udp(from, to, b"something to damage");
    if let Some(last) = datagram.last_mut() {
        *last ^= 0xff;
    }
    let stream = watch()?;
    pair.client.inject(&[datagram])?;
    let expect = Expect::drops(1, &pair.server.netns)
        .flow("udp", from, to)
        .reason(&["UDP_CSUM"])
        .at(UDP_RECEIVE)
        .cause(cause);
    verify(stream, &[expect], &[])
}

fn bad_checksum(family: Family) -> Result<()> {
    damaged(family, 4242, "damaged-packet")
}

fn bad_overlay_checksum(family: Family) -> Result<()> {
    damaged(family, 8472, "vxlan-checksum")
}

/// Nobody accepts connections: of those that the queue has room for (and one more) each is taken, the next is not.
fn accept_queue_full(family: Family) -> Result<()> {
    const ROOM: u16 = 2;
    if !kernel::has_reason("TCP_LISTEN_OVERFLOW") {
        return Err(skip("this kernel does not say that an accept queue is full"));
    }
    let pair = Pair::new()?;
    let to = pair.server.port(family, 80);
    let listener = pair.server.netns.enter(|| TcpListener::bind(to).context("listen"))?;
    send::shorten_accept_queue(&listener, ROOM.into())?;
    let stream = watch()?;
    let mut open = Vec::new();
    for port in 0..ROOM {
        let (peer, numbers) = half_open(&pair, 5000 + port, family)?;
        acknowledge(&pair, peer, to, numbers)?;
    }
    // The queue takes one more than it should; both of these begin while it has that place.
    for port in [6000, 6001] {
        open.push(half_open(&pair, port, family)?);
    }
    for (peer, numbers) in &open {
        acknowledge(&pair, *peer, to, *numbers)?;
    }
    let (last, _) = open.pop().context("two connections")?;
    let expect = Expect::at_least(1, &pair.server.netns)
        .flow("tcp", last, to)
        .reason(&["TCP_LISTEN_OVERFLOW"])
        .at(TCP_RECEIVE)
        .cause("accept-queue-full")
        .field("/drop/class", "resource")
        .evidence(serde_json::json!({"name": "net.core.somaxconn", "source": "sysctl"}));
    verify(stream, &[expect], &[])
}

/// A segment that lies far beyond what the receiver may be sent.
fn tcp_out_of_window(family: Family) -> Result<()> {
    const FAR: u32 = 1 << 30;
    let pair = Pair::new()?;
    let to = pair.server.port(family, 80);
    let _listener = pair.server.netns.enter(|| TcpListener::bind(to).context("listen"))?;
    let stream = watch()?;
    let (peer, numbers) = half_open(&pair, 5000, family)?;
    acknowledge(&pair, peer, to, numbers)?;
    let beyond = packet::tcp(peer, to, numbers.0 + FAR, numbers.1, tcp_flag::ACK, b"late");
    pair.client.inject(&[beyond])?;
    let expect = Expect::drops(1, &pair.server.netns)
        .flow("tcp", peer, to)
        .reason(&["TCP_INVALID_SEQUENCE", "TCP_INVALID_END_SEQUENCE"])
        .cause("tcp-out-of-window");
    verify(stream, &[expect], &[])
}

fn udp_receive_buffer_full(family: Family) -> Result<()> {
    const SENT: u64 = 100;
    let pair = Pair::new()?;
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 53));
    let receiver = pair.server.netns.enter(|| UdpSocket::bind(to).context("bind"))?;
    send::small_receive_buffer(&receiver, 2304)?;
    receiver.set_nonblocking(true)?;
    let stream = watch()?;
    let sent = pair.client.netns.enter(|| send::udp(from, to, &[0; 1000], SENT as usize))?;
    ensure!(sent == SENT, "only {sent} of {SENT} were sent");
    let counter = family.pick("UdpRcvbufErrors", "Udp6RcvbufErrors");
    let started = Instant::now();
    let mut arrived = 0;
    // What fits stays in the buffer, the rest is dropped: both together are what was sent.
    while arrived + pair.server.netns.counter(counter)? < SENT && started.elapsed() < patience() {
        std::thread::sleep(Duration::from_millis(5));
        arrived += std::iter::from_fn(|| receiver.recv(&mut [0; 2000]).ok()).count() as u64;
    }
    let dropped = pair.server.netns.counter(counter)?;
    ensure!(arrived + dropped == SENT, "{SENT} sent, {arrived} arrived, {counter} {dropped}");
    ensure!(dropped > 0, "the buffer was never full");
    let expect = Expect::drops(dropped, &pair.server.netns)
        .flow("udp", from, to)
        .reason(&["SOCKET_RCVBUFF"])
        .cause("receive-buffer-full")
        .at(&[
            "udp_queue_rcv_one_skb",
            "__udp_queue_rcv_skb",
            "udpv6_queue_rcv_one_skb",
            "udp_queue_rcv_skb",
            "udpv6_queue_rcv_skb",
        ])
        .interface_if_known("s0");
    verify(stream, &[expect], &[&pair.client.netns])
}

/// Out-of-order data from high to low sequence numbers fills the receive buffer; each lower segment makes the
/// kernel throw away the higher ones (tcp_prune_ofo_queue, net/ipv4/tcp_input.c).
fn tcp_out_of_order_prune(family: Family) -> Result<()> {
    if !kernel::has_reasons() {
        // tcp_drop() called __kfree_skb(), which has no tracepoint, until 5.17.
        return Err(skip("before 5.17 TCP frees what it drops without the tracepoint"));
    }
    let pair = Pair::new()?;
    let to = pair.server.port(family, 80);
    let listener = pair.server.netns.enter(|| TcpListener::bind(to).context("listen"))?;
    send::small_receive_buffer(&listener, 4096)?;
    let stream = watch()?;
    let (peer, _connection, sequence) = handshake(&pair, &listener, family)?;
    let segment = |offset: u32| {
        let seq = sequence.0.wrapping_add(4 * offset);
        packet::tcp(peer, to, seq, sequence.1, tcp_flag::ACK | tcp_flag::PSH, b"x")
    };
    pair.client.inject(&(1..=200).rev().map(segment).collect::<Vec<_>>())?;
    // They arrive in a softirq, a moment later.
    let started = Instant::now();
    let mut pruned = 0;
    while pruned == 0 && started.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
        pruned = pair.server.netns.counter("TcpExtOfoPruned")?;
    }
    if pruned == 0 {
        return Err(skip("this kernel did not prune the out-of-order queue (TcpExtOfoPruned is 0)"));
    }
    let expect = Expect::at_least(pruned, &pair.server.netns)
        .flow("tcp", peer, to)
        .reason(&["TCP_OFO_QUEUE_PRUNE", "PROTO_MEM", "TCP_OFODROP"])
        .cause("tcp-receiver-stalled")
        .at(&[
            "tcp_prune_ofo_queue",
            "tcp_prune_queue",
            "tcp_try_rmem_schedule",
            "tcp_data_queue_ofo",
            "tcp_drop",
            "tcp_data_queue",
        ])
        .field("/packet/tcp_flags", "PSH,ACK")
        .interface_if_known("s0");
    verify(stream, &[expect], &[])
}

/// The numbers to go on with: sequence and acknowledgement.
type Numbers = (u32, u32);

/// Opens a connection. Returns the client's end, the accepted socket, and the next numbers.
fn handshake(
    pair: &Pair,
    listener: &TcpListener,
    family: Family,
) -> Result<(SocketAddr, TcpStream, Numbers)> {
    let (peer, numbers) = half_open(pair, 5000, family)?;
    acknowledge(pair, peer, pair.server.port(family, 80), numbers)?;
    let (connection, _) = listener.accept()?;
    Ok((peer, connection, numbers))
}

/// Begins a connection from an address that the client's own TCP does not know, so that no other TCP interferes: it is
/// answered, and that is not acknowledged.
fn half_open(pair: &Pair, port: u16, family: Family) -> Result<(SocketAddr, Numbers)> {
    let Host { netns, end, .. } = &pair.client;
    let peer = SocketAddr::new(family.pick("10.77.0.77", "fd77:0::77").parse()?, port);
    let (to, mac) = (pair.server.port(family, 80), packet::mac_text(end.mac()));
    pair.server.netns.run(&format!("ip neigh replace {} lladdr {mac} dev s0 nud permanent", peer.ip()))?;
    let sniffer = netns.enter(|| Sniffer::open(end.device))?;
    let first = 1000;
    pair.client.inject(&[packet::tcp(peer, to, first, 0, tcp_flag::SYN, b"")])?;
    let answer = sniffer.wait("SYN-ACK", |frame| sequence_of_answer(frame, end.mac(), port, family))?;
    Ok((peer, (first + 1, answer.wrapping_add(1))))
}

fn acknowledge(pair: &Pair, peer: SocketAddr, to: SocketAddr, numbers: Numbers) -> Result<()> {
    pair.client.inject(&[packet::tcp(peer, to, numbers.0, numbers.1, tcp_flag::ACK, b"")])
}

/// The sequence number of a SYN-ACK to a port, without IP options.
fn sequence_of_answer(frame: &[u8], to: Mac, port: u16, family: Family) -> Option<u32> {
    let tcp = frame.get(14 + family.pick(20, 40)..)?;
    let for_us = frame.starts_with(&to)
        && tcp.get(2..4)? == port.to_be_bytes()
        && tcp.get(13)? & 0x12 == tcp_flag::SYN | tcp_flag::ACK;
    for_us.then_some(u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?))
}
