//! A network namespace of droptrace's own, empty but for `lo` and the rules put into it, whose verdicts are therefore
//! known: the self-test drops packets here to learn how this kernel shows its drops. No packet of the node ever enters
//! it, and it vanishes with the process, however that ends.
//!
//! Nothing here loads a kernel module: a backend is used only where the kernel has it already.

mod backends;
pub mod legacy;
mod netlink;
pub mod nft;
mod nft_trace;
pub mod program;

pub use backends::Backends;
pub use program::{Link, Verdict};

use program::Programs;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

/// Where a packet meets a chain (`enum nf_inet_hooks`, include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// To this host.
    Input = 1,
    /// Through this host; nothing in the lab gets here.
    Forward = 2,
    /// From this host.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// What befalls a packet that no rule of a base chain decided about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// It goes on.
    #[default]
    Accept,
    /// It is dropped.
    Drop,
}

/// Why a table cannot be written as the kernel wants it: an error of whoever made it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A name that is empty, too long, or not printable ASCII.
    #[error("the name {name:?} is not 1 to {most} printable ASCII characters: choose another")]
    Name {
        /// The name.
        name: String,
        /// Longest name, in bytes.
        most: usize,
    },
    /// More rules than offsets can tell.
    #[error("the table is too large for its 32-bit offsets: use fewer rules")]
    TooLarge,
}

/// What failed in the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// No thread to make it with.
    #[error(
        "cannot start a thread to make the self-test's network namespace: {0}; raise the limit of threads"
    )]
    Thread(io::Error),
    /// No network namespace.
    #[error(
        "cannot make a network namespace for the self-test: {0}; run droptrace as root or with CAP_SYS_ADMIN, and \
         set user.max_net_namespaces above the number in use"
    )]
    Namespace(io::Error),
    /// A socket or its `lo` failed.
    #[error(
        "cannot {what} in the self-test's network namespace: {source}; run droptrace as root or with CAP_NET_ADMIN"
    )]
    Setup {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel lacks it, and asking for it would load a module.
    #[error("this kernel has not loaded {0}, and droptrace loads no modules: the self-test goes without it")]
    NotLoaded(&'static str),
    /// The table itself is wrong.
    #[error("cannot write a table for the self-test: {0}")]
    Table(#[from] TableError),
    /// The kernel refused a part of a table; then none of it is in force.
    #[error(
        "the kernel refused {what} of the self-test: {source}; if that is a lack of privilege, run droptrace as root \
         or with CAP_NET_ADMIN"
    )]
    Refused {
        /// The part.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel neither refused nor acknowledged a table.
    #[error(
        "the kernel did not acknowledge the self-test's table: what is in force is not known, open a new lab"
    )]
    Unanswered,
    /// A packet did not leave.
    #[error("cannot send the self-test's packet to {to}: {source}")]
    Send {
        /// Its destination.
        to: Ipv4Addr,
        /// What the system said.
        source: io::Error,
    },
}

/// The network namespace. It is held by sockets alone, which act in it whatever thread uses them; so no thread lives
/// in it, and the kernel ends it when they are closed.
#[derive(Debug)]
pub struct Lab {
    inode: u32,
    backends: Backends,
    /// Sends packets, and carries the socket options of x_tables.
    udp: UdpSocket,
    /// Opened only with [`Backends::nft`]: opening it would load a module.
    netfilter: Option<netlink::Socket>,
    /// Where the kernel has such programs.
    programs: Option<Programs>,
    /// It has a rule that asks for nft's tracing.
    asks_for_tracing: bool,
}

impl Lab {
    /// Makes the network namespace, with `lo` up and no rules. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    ///
    /// # Errors
    /// If the system refuses any of it.
    pub fn open(backends: Backends) -> Result<Self, LabError> {
        // A thread of its own, since unshare(2) moves the calling thread for good.
        let thread = std::thread::Builder::new().name("lab".into());
        let made = thread.spawn(move || Self::unshare(backends)).map_err(LabError::Thread)?.join();
        made.unwrap_or_else(|_| Err(LabError::Thread(io::Error::other("it panicked"))))
    }

    /// Moves the calling thread to a new network namespace and opens the sockets there.
    fn unshare(backends: Backends) -> Result<Self, LabError> {
        // SAFETY: no memory is involved. Only this thread moves: CLONE_NEWNET alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(LabError::Namespace(io::Error::last_os_error()));
        }
        let failed = |what| move |source| LabError::Setup { what, source };
        let inode = netns_inode().map_err(failed("read /proc/thread-self/ns/net"))?;
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed("open a UDP socket"))?;
        loopback_up(&udp).map_err(failed("set lo up"))?;
        let open = || netlink::Socket::open().map_err(failed("open a netfilter netlink socket"));
        let netfilter = if backends.nft { Some(open()?) } else { None };
        Ok(Self { inode, backends, udp, netfilter, programs: Programs::load().ok(), asks_for_tracing: false })
    }

    /// True if there are programs to attach.
    #[must_use]
    pub fn has_programs(&self) -> bool {
        self.programs.is_some()
    }

    /// Puts programs on a hook, each at its priority; those with a lower one are asked first. They leave with the links.
    ///
    /// # Errors
    /// If the kernel has no such programs or refuses one.
    pub fn attach(&self, hook: Hook, programs: &[(Verdict, i32)]) -> Result<Vec<Link>, LabError> {
        let loaded = self.programs.as_ref().ok_or(LabError::NotLoaded("BPF netfilter programs"))?;
        let attach = || -> io::Result<Vec<Link>> {
            enter(&self.udp)?;
            programs.iter().map(|(verdict, priority)| loaded.attach(*verdict, hook, *priority)).collect()
        };
        // A thread of its own, since setns(2) moves the calling thread.
        let attached = std::thread::scope(|scope| scope.spawn(attach).join());
        attached
            .unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
            .map_err(|source| LabError::Refused { what: "a BPF netfilter program".into(), source })
    }

    /// The inode of the network namespace, as in `net:[4026532000]`.
    #[must_use]
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// Which backends its rules can use.
    #[must_use]
    pub fn backends(&self) -> Backends {
        self.backends
    }

    /// Adds an nf_tables table, in one transaction: all of it or nothing. Its name must be new in the lab, and the
    /// transaction must fit into a socket's buffer (net.core.wmem_default; 500 rules do).
    ///
    /// # Errors
    /// If the kernel lacks what it needs or refuses it, or the table is wrong.
    pub fn load_nft(&mut self, table: &nft::Table) -> Result<(), LabError> {
        let socket = self.netfilter.as_ref().ok_or(LabError::NotLoaded("nf_tables"))?;
        if table.counts() && !self.backends.nft_counter {
            return Err(LabError::NotLoaded("nft_counter"));
        }
        socket.commit(&table.transaction()?)
    }

    /// Makes nft tell its own tracing of every packet in the system that comes to its rules, as long as the lab lives: by a rule that no
    /// packet meets, also none of the lab's.
    ///
    /// # Errors
    /// If nf_tables is not loaded or refuses it.
    pub fn ask_for_tracing(&mut self) -> Result<(), LabError> {
        if !self.asks_for_tracing {
            let socket = self.netfilter.as_ref().ok_or(LabError::NotLoaded("nf_tables"))?;
            socket.commit(&nft_trace::transaction())?;
            self.asks_for_tracing = true;
        }
        Ok(())
    }

    /// Replaces the IPv4 `filter` table of iptables-legacy.
    ///
    /// # Errors
    /// If the kernel lacks the table or refuses this one, or the table is wrong.
    pub fn load_legacy(&mut self, table: &legacy::Table) -> Result<(), LabError> {
        if !self.backends.legacy {
            return Err(LabError::NotLoaded("iptable_filter"));
        }
        legacy::replace(&self.udp, &table.entries()?)
    }

    /// Sends an empty UDP datagram over `lo`; any 127.x.y.z is local. When this returns, the packet has usually passed
    /// all its hooks: a drop happens within the call, in OUTPUT on the calling thread. What is accepted but meets no
    /// socket is answered with an ICMP error, which passes the hooks too.
    ///
    /// # Errors
    /// What the system says, but for the EPERM of a chain that dropped it in OUTPUT.
    pub fn send(&self, to: Ipv4Addr, port: u16) -> Result<(), LabError> {
        match self.udp.send_to(&[], (to, port)) {
            Err(source) if source.raw_os_error() != Some(libc::EPERM) => Err(LabError::Send { to, source }),
            _ => Ok(()),
        }
    }
}

/// Moves the calling thread into a socket's network namespace.
fn enter(socket: &UdpSocket) -> io::Result<()> {
    /// include/uapi/linux/sockios.h
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: this ioctl has no argument.
    let netns = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if netns < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else knows.
    let netns = unsafe { OwnedFd::from_raw_fd(netns) };
    // SAFETY: no memory is involved.
    if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The inode of the calling thread's network namespace.
fn netns_inode() -> io::Result<u32> {
    let inode = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    u32::try_from(inode).map_err(|_| io::Error::other("its inode has more than 32 bits"))
}

/// Sets `lo` up, by which it gets 127.0.0.1/8 (netdevice(7); net/ipv4/devinet.c, `inetdev_event`).
fn loopback_up(socket: &UdpSocket) -> io::Result<()> {
    // SAFETY: a plain C structure of integers: zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: `request` is an ifreq with a terminated name, which SIOCSIFFLAGS only reads.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A name as the kernel's tables take it, at most `most` bytes long.
fn checked_name(name: &str, most: usize) -> Result<&str, TableError> {
    let fits = (1..=most).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(name) } else { Err(TableError::Name { name: name.into(), most }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(checked_name("web-in", 6), Ok("web-in"));
        for bad in ["", "web-in2", "a b", "a\0", "\x1b[2J", "ä"] {
            assert_eq!(checked_name(bad, 6), Err(TableError::Name { name: bad.into(), most: 6 }), "{bad:?}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let refused =
            LabError::Refused { what: "rule 1 of chain in".into(), source: io::Error::from_raw_os_error(1) };
        assert!(refused.to_string().contains("rule 1 of chain in"));
        assert!(refused.to_string().contains("CAP_NET_ADMIN"));
        assert!(LabError::NotLoaded("nf_tables").to_string().contains("nf_tables"));
    }
}
