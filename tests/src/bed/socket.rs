//! Sockets that the standard library does not offer. They belong to the netns of the thread that makes them.

use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A socket address as the kernel takes it, with its length.
#[derive(Clone, Copy)]
pub(super) struct RawAddress {
    pub(super) storage: libc::sockaddr_storage,
    pub(super) length: libc::socklen_t,
}

impl RawAddress {
    fn of<T: Copy>(address: T) -> Self {
        // SAFETY: sockaddr_storage is integers only: all zero is a value.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        // SAFETY: T is a sockaddr_*, for all of which sockaddr_storage has room and alignment.
        unsafe { (&raw mut storage).cast::<T>().write(address) };
        Self { storage, length: size_of::<T>() as libc::socklen_t }
    }

    /// The address of an internet socket.
    pub(super) fn internet(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::of(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::of(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: 0,
            }),
        }
    }

    /// A packet socket's device, for all frames of an ethertype (0: none, only sending).
    pub(super) fn link(device: &str, ethertype: u16) -> Result<Self> {
        let name = CString::new(device)?;
        // SAFETY: the name is a NUL-terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            bail!("no interface {device}: {}", io::Error::last_os_error());
        }
        Ok(Self::of(libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ethertype.to_be(),
            sll_ifindex: i32::try_from(index)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        }))
    }

    pub(super) fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }
}

/// Makes a socket.
pub(super) fn open(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor, if there is one, is ours alone.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context(format!("socket({family}, {kind}, {protocol})"));
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an integer option.
pub(super) fn set(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value lives through the call and has the length that is told.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if done != 0 {
        return Err(io::Error::last_os_error()).context(format!("setsockopt({level}, {option}, {value})"));
    }
    Ok(())
}

/// Binds.
pub(super) fn bind(socket: &impl AsRawFd, address: &RawAddress) -> Result<()> {
    // SAFETY: the address lives through the call and has the length that is told.
    if unsafe { libc::bind(socket.as_raw_fd(), address.pointer(), address.length) } != 0 {
        return Err(io::Error::last_os_error()).context("bind");
    }
    Ok(())
}

/// Connects; `EINPROGRESS` where that goes on.
pub(super) fn connect(socket: &impl AsRawFd, to: &RawAddress) -> io::Result<()> {
    // SAFETY: the address lives through the call and has the length that is told.
    let done = unsafe { libc::connect(socket.as_raw_fd(), to.pointer(), to.length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends one datagram to an address, or to the bound device.
pub(super) fn send(socket: RawFd, bytes: &[u8], to: &RawAddress) -> io::Result<()> {
    // SAFETY: buffer and address live through the call and have the lengths that are told.
    let sent =
        unsafe { libc::sendto(socket, bytes.as_ptr().cast(), bytes.len(), 0, to.pointer(), to.length) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
