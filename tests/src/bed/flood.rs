//! Floods: many packets from a sender on each CPU, counted one by one by what the kernel answered.

use super::namespace::Namespace;
use super::packet::{Ip, protocol, udp_segment};
use super::socket::{self, RawAddress};
use anyhow::{Context, Result, anyhow};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// Messages handed over in one system call.
const BATCH: usize = 64;
/// UDP_SEGMENT (include/uapi/linux/udp.h).
const UDP_SEGMENT: i32 = 103;

/// What the senders send.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Small datagrams from one port for each sender.
    Datagrams,
    /// Datagrams of `per_send` segments each (UDP_SEGMENT).
    Segments {
        /// Segments of one send, at most 64 (UDP_MAX_SEGMENTS).
        per_send: usize,
    },
    /// Datagrams from random addresses of 10.128.0.0/9 and random ports. IPv4 only.
    RandomSources,
}

/// What became of the packets that a flood handed to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Sends that returned success.
    pub accepted: u64,
    /// Sends that a local rule refused (EPERM): dropped before they left.
    pub refused: u64,
}

/// Sends `total` messages to `to` from a namespace, by one thread on each of two CPUs.
///
/// # Errors
/// When a socket cannot be made, or a send fails with anything but EPERM.
pub fn flood(netns: &Namespace, to: SocketAddr, load: Load, total: u64) -> Result<Sent> {
    let share = total / 2;
    std::thread::scope(|scope| {
        let senders = [(0, share), (1, total - share)]
            .map(|(cpu, count)| scope.spawn(move || netns.enter(|| sender(cpu, to, load, count, || Ok(())))));
        let mut sent = Sent::default();
        for sender in senders {
            let part = sender.join().map_err(|_| anyhow!("a sender panicked"))??;
            sent.accepted += part.accepted;
            sent.refused += part.refused;
        }
        Ok(sent)
    })
}

/// Sends `total` small datagrams to `to` from one CPU; says how long the sends alone took. Ordinary programs have to
/// wait meanwhile: their time is not the storm's.
///
/// # Errors
/// As [`flood`].
pub fn timed(netns: &Namespace, cpu: usize, to: SocketAddr, total: u64) -> Result<(Sent, Duration)> {
    netns.enter(|| {
        go_first();
        let began = Instant::now();
        let sent = sender(cpu, to, Load::Datagrams, total, || Ok(()))?;
        Ok((sent, began.elapsed()))
    })
}

/// Sends as [`timed`] does, and the same thread reads what arrived after every batch, so that no receive buffer
/// overflows and no other CPU takes part. Says how many datagrams `receiver` got, and how long all that took.
///
/// # Errors
/// As [`flood`], or when the receiver fails.
pub fn delivered(
    netns: &Namespace,
    cpu: usize,
    to: SocketAddr,
    total: u64,
    receiver: &UdpSocket,
) -> Result<(u64, Duration)> {
    /// How long the last ones may take: a softirq thread may have them.
    const LAST: Duration = Duration::from_secs(2);
    receiver.set_nonblocking(true).context("make a receiver that does not wait")?;
    netns.enter(|| {
        go_first();
        let (mut received, mut buffer) = (0, [0; 64]);
        let mut read = || loop {
            match receiver.recv(&mut buffer) {
                Ok(_) => received += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(received),
                Err(error) => return Err(error).context("receive"),
            }
        };
        let began = Instant::now();
        sender(cpu, to, Load::Datagrams, total, || read().map(drop))?;
        let all_sent = Instant::now();
        while read()? < total && all_sent.elapsed() < LAST {
            std::thread::sleep(Duration::from_micros(100));
        }
        let took = began.elapsed();
        Ok((read()?, took))
    })
}

/// `after_batch` is called after each system call that sent something.
fn sender(
    cpu: usize,
    to: SocketAddr,
    load: Load,
    total: u64,
    mut after_batch: impl FnMut() -> Result<()>,
) -> Result<Sent> {
    pin(cpu);
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (cpu as u64 + 1));
    let socket = open(to, load)?;
    let mut payloads = vec![payload(to, load, &mut random); BATCH];
    let address = RawAddress::internet(match load {
        // A raw socket takes no port.
        Load::RandomSources => SocketAddr::new(to.ip(), 0),
        _ => to,
    });
    let mut sent = Sent::default();
    while sent.accepted + sent.refused < total {
        let left = total - sent.accepted - sent.refused;
        let batch = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
        if matches!(load, Load::RandomSources) {
            payloads.iter_mut().take(batch).for_each(|bytes| *bytes = payload(to, load, &mut random));
        }
        match send_batch(&socket, &address, &payloads[..batch]) {
            Ok(count) => sent.accepted += count,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => sent.refused += 1,
            Err(error) => return Err(error).context(format!("send to {to}")),
        }
        after_batch()?;
    }
    Ok(sent)
}

fn open(to: SocketAddr, load: Load) -> Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    match load {
        Load::RandomSources => socket::open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
        Load::Datagrams => socket::open(family, libc::SOCK_DGRAM, 0),
        Load::Segments { .. } => {
            let socket = socket::open(family, libc::SOCK_DGRAM, 0)?;
            socket::set(&socket, libc::SOL_UDP, UDP_SEGMENT, SEGMENT_BYTES as i32)?;
            Ok(socket)
        }
    }
}

/// Bytes of one segment of [`Load::Segments`].
const SEGMENT_BYTES: usize = 500;

fn payload(to: SocketAddr, load: Load, random: &mut Random) -> Vec<u8> {
    match (load, to) {
        (Load::Segments { per_send }, _) => vec![0x5a; SEGMENT_BYTES * per_send],
        (Load::RandomSources, SocketAddr::V4(to)) => random_packet(to, random),
        _ => vec![0x5a; 18],
    }
}

fn random_packet(to: SocketAddrV4, random: &mut Random) -> Vec<u8> {
    let bits = random.next();
    let source = Ipv4Addr::new(10, 128 | (bits >> 8) as u8, (bits >> 16) as u8, (bits >> 24) as u8);
    let port = 1024 + (bits >> 32) as u16 % 60_000;
    let source = SocketAddr::new(source.into(), port);
    let ip = Ip::new(source.ip(), IpAddr::from(*to.ip()));
    ip.wrap(protocol::UDP, &udp_segment(source, to.into(), b"storm"))
}

/// Sends messages to one address; returns how many the kernel took before the first that it refused.
fn send_batch(socket: &OwnedFd, to: &RawAddress, payloads: &[Vec<u8>]) -> io::Result<u64> {
    let mut vectors: Vec<libc::iovec> = payloads
        .iter()
        .map(|bytes| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: mmsghdr is integers and pointers: all zero is a value.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = to.pointer().cast_mut().cast();
            message.msg_hdr.msg_namelen = to.length;
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = null_mut();
            message
        })
        .collect();
    let count = libc::c_uint::try_from(messages.len()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: every message points to an address and a buffer that live through the call; sendmmsg reads them and
    // writes msg_len of the messages only.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    u64::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Keeps the calling thread on one CPU. On a machine without it the thread stays where it is.
pub fn pin(cpu: usize) {
    // SAFETY: cpu_set_t is an array of bits: all zero is the empty set, and CPU_SET stays inside it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu % libc::CPU_SETSIZE as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// Gives the calling thread real-time priority, where that is allowed.
fn go_first() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter lives through the call; 0 is the calling thread (sched_setscheduler(2)).
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
}

/// xorshift64*: fast, and the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
