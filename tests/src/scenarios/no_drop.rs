//! Healthy traffic: nothing is printed. With `--all` only routine frees are.

use super::expect::{seen, watch};
use super::{beside, both_here, skip};
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::record::Record;
use crate::bed::send;
use crate::bed::topology::{End, Family, Host, Pair, await_ports, connect};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        both_here("no_drop::tcp_transfer", |family| on_pair(|pair| tcp_transfer(pair, family))),
        both_here("no_drop::tcp_server_closes_first", |family| {
            on_pair(|pair| tcp_server_closes_first(pair, family))
        }),
        both_here("no_drop::udp_echo", |family| on_pair(|pair| udp_echo(pair, family, 100))),
        both_here("no_drop::fragments", |family| on_pair(|pair| udp_echo(pair, family, 8000))),
        both_here("no_drop::ping", |family| on_pair(|pair| ping(pair, family))),
        both_here("no_drop::tcpdump", |family| on_pair(|pair| tcpdump(pair, family))),
        both_here("no_drop::unread_data", |family| on_pair(|pair| unread_data(pair, family))),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.extend([
        beside("no_drop::multicast", || on_pair(multicast)),
        beside("no_drop::unix_and_netlink_sockets", || on_pair(unix_and_netlink_sockets)),
        beside("no_drop::bridge_flooding", bridge_flooding),
    ]);
    trials
}

/// Port of the one packet that is dropped, to know that the streams have come so far.
const SENTINEL: u16 = 9;

fn on_pair(activity: impl FnOnce(&Pair) -> Result<()>) -> Result<()> {
    let pair = Pair::new()?;
    silent(&pair.client, &pair.server, &[], || activity(&pair))
}

/// Watches an activity with and without `--all`.
fn silent(
    client: &Host,
    server: &Host,
    others: &[&Namespace],
    activity: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut streams = vec![(watch()?, "with --all")];
    if !kernel::in_vm() {
        // What is hidden is the same on every kernel.
        streams.push((Droptrace::start(&[])?.into(), "without --all"));
    }
    activity()?;
    client.inject(&[packet::udp(
        client.port(Family::V4, SENTINEL),
        server.port(Family::V4, SENTINEL),
        b"end",
    )])?;
    let mut inodes = vec![client.netns.inode(), server.netns.inode()];
    inodes.extend(others.iter().map(|netns| netns.inode()));
    for (stream, name) in streams {
        let come = |output: &Output| output.drops_in(&inodes).any(is_sentinel);
        stream.wait("the last packet came", come)?;
        let output = stream.stop()?;
        let wrong = |record: &Record| {
            !is_sentinel(record)
                && !record.is_background()
                && (name == "without --all" || !record.is_routine())
        };
        for record in output.drops_in(&inodes).filter(|record| record.is_routine()) {
            let cause = record.get("/drop/cause");
            let is_told =
                cause["severity"] == "info" && cause["why"].as_str().is_some_and(|why| !why.is_empty());
            ensure!(
                is_told && cause["fix"] == "",
                "healthy traffic has a cause: {cause} of {}",
                record.brief()
            );
        }
        let drops = output.drops_in(&inodes).filter(|record| wrong(record)).count();
        ensure!(drops == 0, "{drops} lines {name} about healthy traffic:\n{}", seen(&output, &inodes));
        ensure!(output.stderr.contains("hidden") || name == "with --all", "no count of hidden drops");
    }
    Ok(())
}

fn is_sentinel(record: &Record) -> bool {
    record.number("/source/port") == Some(SENTINEL.into())
        && record.number("/destination/port") == Some(SENTINEL.into())
}

/// A connection between the two hosts: the client's end, the server's end.
fn connection(pair: &Pair, family: Family) -> Result<(TcpStream, TcpStream)> {
    let to = pair.server.port(family, 8080);
    let listener = pair.server.netns.enter(|| TcpListener::bind(to).context("listen"))?;
    let client = pair.client.netns.enter(|| send::connect(to).context("connect"))?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

fn tcp_transfer(pair: &Pair, family: Family) -> Result<()> {
    let (mut client, mut server) = connection(pair, family)?;
    let data = vec![7; 4 << 20];
    let sender = std::thread::spawn(move || {
        client.write_all(&data).and_then(|()| client.shutdown(Shutdown::Write)).map(|()| client)
    });
    let mut received = Vec::new();
    server.read_to_end(&mut received)?;
    ensure!(received.len() == 4 << 20, "{} bytes arrived", received.len());
    let mut client = sender.join().map_err(|_| anyhow::anyhow!("sender panicked"))??;
    drop(server);
    ensure!(client.read(&mut [0; 10])? == 0, "the server closed, so there is nothing to read");
    Ok(())
}

fn tcp_server_closes_first(pair: &Pair, family: Family) -> Result<()> {
    let (mut client, mut server) = connection(pair, family)?;
    server.write_all(b"bye")?;
    drop(server);
    let mut received = Vec::new();
    client.read_to_end(&mut received)?;
    ensure!(received == b"bye", "{received:?} arrived");
    Ok(())
}

fn udp_echo(pair: &Pair, family: Family, size: usize) -> Result<()> {
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 4242));
    let client = pair.client.netns.enter(|| UdpSocket::bind(from).context("bind"))?;
    let server = pair.server.netns.enter(|| UdpSocket::bind(to).context("bind"))?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let mut buffer = vec![0; 10_000];
    for _ in 0..10 {
        client.send_to(&vec![1; size], to)?;
        let (length, peer) = server.recv_from(&mut buffer).context("no request arrived")?;
        server.send_to(&buffer[..length], peer)?;
        ensure!(client.recv(&mut buffer).context("no answer arrived")? == size, "another length came back");
    }
    Ok(())
}

fn ping(pair: &Pair, family: Family) -> Result<()> {
    let option = family.pick("-4", "-6");
    pair.client
        .netns
        .run(&format!("ping {option} -n -c 3 -i 0.2 -W 5 {}", pair.server.address(family)))
        .map(drop)
}

fn tcpdump(pair: &Pair, family: Family) -> Result<()> {
    if crate::bed::command::run("tcpdump --version").is_err() {
        return Err(skip("no tcpdump here"));
    }
    let _captures = (
        pair.client.netns.spawn("tcpdump -n -i c0 -U -w /dev/null")?,
        pair.server.netns.spawn("tcpdump -n -i any")?,
    );
    // A capture says nothing when it starts: its socket in the list of packet sockets does.
    for host in [&pair.client, &pair.server] {
        wait_for_packet_socket(&host.netns)?;
    }
    udp_echo(pair, family, 100)?;
    tcp_transfer(pair, family)
}

fn wait_for_packet_socket(netns: &Namespace) -> Result<()> {
    let started = std::time::Instant::now();
    let listed =
        || netns.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/packet")?.lines().count()));
    while listed()? < 2 {
        ensure!(started.elapsed() < crate::bed::patience(), "tcpdump does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Sockets that are closed while data waits in them: the kernel throws it away on the program's behalf.
fn unread_data(pair: &Pair, family: Family) -> Result<()> {
    let to = pair.server.port(family, 4242);
    let receiver = pair.server.netns.enter(|| UdpSocket::bind(to).context("bind"))?;
    pair.client.netns.enter(|| send::udp(pair.client.port(family, 40_000), to, b"unread", 5))?;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    receiver.peek(&mut [0; 10]).context("nothing arrived")?;
    drop(receiver);
    let (mut client, server) = connection(pair, family)?;
    client.write_all(b"unread")?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    server.peek(&mut [0; 10]).context("nothing arrived")?;
    drop(server);
    // The reset that answers the client.
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let answer = client.read(&mut [0; 10]);
    ensure!(answer.is_err(), "no reset came: {answer:?}");
    Ok(())
}

fn multicast(pair: &Pair) -> Result<()> {
    let group = Ipv4Addr::new(239, 77, 0, 1);
    let receivers = pair.server.netns.enter(|| {
        let first = UdpSocket::bind((group, 4242))?;
        first.join_multicast_v4(&group, &pair.server.end.v4)?;
        first.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(first)
    })?;
    let sender = pair.client.netns.enter(|| {
        let socket = UdpSocket::bind((pair.client.end.v4, 40_000))?;
        // The group is on the wire of c0, not behind a route.
        pair.client.netns.run("ip route add 239.77.0.0/16 dev c0")?;
        Ok(socket)
    })?;
    for _ in 0..3 {
        sender.send_to(b"all", SocketAddr::from((group, 4242)))?;
        receivers.recv(&mut [0; 10]).context("no multicast arrived")?;
    }
    Ok(())
}

fn unix_and_netlink_sockets(pair: &Pair) -> Result<()> {
    pair.client.netns.enter(|| {
        let (mut a, mut b) = UnixStream::pair()?;
        a.write_all(b"read")?;
        b.read_exact(&mut [0; 4])?;
        a.write_all(b"unread")?;
        drop(b);
        // Refused: nobody listens.
        ensure!(UnixStream::connect("/nonexistent/socket").is_err(), "somebody listens");
        Ok(())
    })?;
    for line in ["ip -s link", "ip addr", "ip -6 route show table all", "ss -an", "ip rule"] {
        pair.client.netns.run(line)?;
    }
    // Route changes are broadcast to netlink listeners.
    let _monitor = pair.client.netns.spawn("ip monitor all")?;
    pair.client.netns.run("ip route add 198.51.100.0/24 dev c0")?;
    pair.client.netns.run("ip route del 198.51.100.0/24 dev c0").map(drop)
}

/// Three hosts on a bridge that does not know where they are yet: frames are flooded to all ports.
fn bridge_flooding() -> Result<()> {
    let bridge = Namespace::new()?;
    bridge.run("ip link add br0 type bridge mcast_snooping 0")?;
    bridge.run("ip link set br0 up")?;
    let ports = [End::new("p1", 9, 1), End::new("p2", 9, 2), End::new("p3", 9, 3)];
    let mut hosts = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let end = End::new("e0", 5, 1 + index as u8);
        let netns = Namespace::new()?;
        connect(&netns, &end, &bridge, port)?;
        bridge.feed("ip -batch -", &format!("addr flush dev {0}\nlink set {0} master br0\n", port.device))?;
        hosts.push((netns, end));
    }
    await_ports(&bridge, "br0", 3)?;
    for (netns, own) in &hosts {
        for (_, peer) in hosts.iter().filter(|(_, peer)| peer.v4 != own.v4) {
            let mac = packet::mac_text(peer.mac());
            for address in [peer.address(Family::V4), peer.address(Family::V6)] {
                netns.run(&format!("ip neigh replace {address} lladdr {mac} dev e0 nud permanent"))?;
            }
        }
    }
    let mut hosts = hosts.into_iter();
    let mut next = || hosts.next().context("a host");
    let ((a, end_a), (b, end_b), (bystander, _)) = (next()?, next()?, next()?);
    let client = Host { netns: a, end: end_a, peer: end_b };
    let server = Host { netns: b, end: end_b, peer: end_a };
    let pair = Pair { client, server };
    silent(&pair.client, &pair.server, &[&bystander, &bridge], || {
        // Fresh entries for each family: the first frames of each direction are flooded.
        bridge
            .run("bridge fdb flush dev br0")
            .or_else(|_| bridge.run("ip link set br0 type bridge fdb_flush"))?;
        // And a question to everybody.
        pair.client.netns.run(&format!("ip neigh del {} dev e0", pair.server.end.v4))?;
        ping(&pair, Family::V4)?;
        udp_echo(&pair, Family::V6, 100)
    })
}
