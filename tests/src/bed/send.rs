//! Senders of a few packets. They act in the netns of the calling thread: see [`Namespace::enter`].
//!
//! [`Namespace::enter`]: super::namespace::Namespace::enter

use super::socket::{self, RawAddress};
use anyhow::{Context, Result, bail};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// Sends `count` datagrams and returns how many the kernel accepted. A refusal by a local rule (EPERM) or an
/// answer that came back (ECONNREFUSED, EHOSTUNREACH ...) is no failure of the sender.
///
/// # Errors
/// When the socket cannot be made.
pub fn udp(from: SocketAddr, to: SocketAddr, data: &[u8], count: usize) -> Result<u64> {
    let socket = bind(from).with_context(|| format!("bind {from}"))?;
    Ok((0..count).filter(|_| socket.send_to(data, to).is_ok()).count() as u64)
}

/// A socket on a port that another one may have had a moment ago. A command that another test starts just then inherits
/// that one between fork and exec, and so keeps its port.
fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let deadline = Instant::now() + super::patience();
    loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Sends whole IP packets through this host's own IP layer, each to its destination; a refusal by a local rule
/// (EPERM) is no failure.
///
/// # Errors
/// When a socket cannot be made, or another refusal.
pub fn packets(packets: &[(SocketAddr, Vec<u8>)]) -> Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let own = |to: &SocketAddr| to.is_ipv4() == (family == libc::AF_INET);
        if !packets.iter().any(|(to, _)| own(to)) {
            continue;
        }
        // IPPROTO_RAW: the sender writes the IP header (raw(7)).
        let socket = socket::open(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        for (to, packet) in packets.iter().filter(|(to, _)| own(to)) {
            // A raw socket takes no port.
            let address = RawAddress::internet(SocketAddr::new(to.ip(), 0));
            match socket::send(socket.as_raw_fd(), packet, &address) {
                Err(error) if error.raw_os_error() != Some(libc::EPERM) => {
                    return Err(error).with_context(|| format!("send a packet to {to}"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Tries a TCP connection, with a deadline.
///
/// # Errors
/// As `connect(2)`, or when it takes too long.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, super::patience())
}

/// Tries a TCP connection from an address and port of this host's, for a while; true if it came about.
///
/// # Errors
/// When the socket can't be made or has no such address. That nobody answers, or refuses, is none.
pub fn connects(from: SocketAddr, to: SocketAddr, patience: Duration) -> Result<bool> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket::open(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    socket::set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    socket::bind(&socket, &RawAddress::internet(from))?;
    let deadline = Instant::now() + patience;
    loop {
        // Once more, it tells what became of the first (connect(2)).
        match socket::connect(&socket, &RawAddress::internet(to)).map_err(|error| error.raw_os_error()) {
            Ok(()) | Err(Some(libc::EISCONN)) => return Ok(true),
            Err(Some(libc::EINPROGRESS | libc::EALREADY)) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(_) => return Ok(false),
        }
    }
}

/// Puts Ethernet frames on a device, past the IP layer.
///
/// # Errors
/// When a frame is refused.
pub fn frames(device: &str, frames: &[Vec<u8>]) -> Result<()> {
    // Protocol 0: this socket receives nothing, so that nothing is cloned for it.
    let sender = socket::open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    let link = RawAddress::link(device, 0)?;
    for frame in frames {
        socket::send(sender.as_raw_fd(), frame, &link)
            .with_context(|| format!("send a frame on {device}"))?;
    }
    Ok(())
}

/// A packet socket that sees what arrives on a device (and what leaves).
#[derive(Debug)]
pub struct Sniffer(OwnedFd);

impl Sniffer {
    /// Opens it for all ethertypes.
    ///
    /// # Errors
    /// When the device is missing.
    pub fn open(device: &str) -> Result<Self> {
        let all = libc::ETH_P_ALL as u16;
        let listener = socket::open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        socket::bind(&listener, &RawAddress::link(device, all)?)?;
        Ok(Self(listener))
    }

    /// Waits for a frame that the closure takes.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn wait<T>(&self, what: &str, mut take: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + super::patience();
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            // SAFETY: the buffer has the length that is told.
            let read = unsafe {
                libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
            };
            match usize::try_from(read) {
                Ok(length) => {
                    if let Some(value) = take(&buffer[..length.min(buffer.len())]) {
                        return Ok(value);
                    }
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_millis(2));
                    }
                    error => return Err(error).context("packet socket"),
                },
            }
        }
        bail!("no {what} came")
    }
}

/// Lets a socket refuse all that comes for it, by a filter (SO_ATTACH_FILTER, socket(7)) that keeps no byte.
///
/// # Errors
/// When the kernel refuses.
pub fn refuse_all(socket: &impl AsRawFd) -> Result<()> {
    // BPF_RET | BPF_K, of 0 bytes.
    let mut nothing = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    let (at, size) = ((&raw const program).cast(), size_of_val(&program) as libc::socklen_t);
    // SAFETY: the program and its instruction live through the call, which copies them.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, at, size) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context("attach a filter") }
}

/// Lets a listener take from an address only segments that are signed (TCP_MD5SIG, RFC 2385).
///
/// # Errors
/// When the kernel refuses.
pub fn demand_signature(listener: &impl AsRawFd, peer: IpAddr) -> Result<()> {
    /// struct tcp_md5sig (include/uapi/linux/tcp.h).
    #[repr(C)]
    struct Signature {
        address: libc::sockaddr_storage,
        flags: u8,
        prefix: u8,
        key_length: u16,
        interface: i32,
        key: [u8; 80],
    }
    const TCP_MD5SIG: libc::c_int = 14;
    let mut key = [0; 80];
    key[..6].copy_from_slice(b"secret");
    let address = RawAddress::internet(SocketAddr::new(peer, 0)).storage;
    let signature = Signature { address, flags: 0, prefix: 0, key_length: 6, interface: 0, key };
    let (at, size) = ((&raw const signature).cast(), size_of_val(&signature) as libc::socklen_t);
    // SAFETY: the option's value lives through the call and has the length that is told.
    let set = unsafe { libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, TCP_MD5SIG, at, size) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context("demand TCP signatures") }
}

/// Lets a listener's accept queue hold `connections`.
///
/// # Errors
/// When the kernel refuses.
pub fn shorten_accept_queue(listener: &impl AsRawFd, connections: i32) -> Result<()> {
    // SAFETY: a descriptor that is open as long as the listener lives; no memory is involved.
    let result = unsafe { libc::listen(listener.as_raw_fd(), connections) };
    anyhow::ensure!(result == 0, "listen: {}", io::Error::last_os_error());
    Ok(())
}

/// Makes a socket's receive buffer as small as the kernel allows, at least `bytes`.
///
/// # Errors
/// When the option is refused.
pub fn small_receive_buffer(socket: &impl AsRawFd, bytes: i32) -> Result<()> {
    socket::set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)
}
