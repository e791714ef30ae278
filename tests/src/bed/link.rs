//! Flags of a device of this thread's network namespace (netdevice(7)).

use super::{patience, settled, socket};
use anyhow::{Result, ensure};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};

/// `ip link set DEVICE up`.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn up(device: &str) -> Result<()> {
    let socket = open()?;
    let flags = flags(&socket, device)?;
    set_flags(&socket, device, flags | libc::IFF_UP)
}

/// Waits until a device sends what it is given. The end of a veth pair that is up first gets its carrier with the other one,
/// but its queue from a work item some time later (net/core/link_watch.c); until then what is sent is dropped, and the sender
/// is not told (`noop_enqueue`, net/sched/sch_generic.c).
///
/// # Errors
/// When it doesn't in time.
pub(super) fn await_queue(device: &str) -> Result<()> {
    let socket = open()?;
    let is_running = |flags: i32| flags & libc::IFF_RUNNING != 0;
    let carrier = settled(&[1], || Ok(u64::from(is_running(flags(&socket, device)?))))?;
    ensure!(carrier == 1, "{device} has no carrier after {:?}", patience());
    // The flag is set a moment before the queue, under the lock that this call takes: it returns when both are done.
    set_flags(&socket, device, flags(&socket, device)?)
}

fn open() -> Result<OwnedFd> {
    socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0)
}

fn flags(socket: &OwnedFd, device: &str) -> Result<i32> {
    let mut request = request(device);
    // SAFETY: the request lives through the call, which fills in the flags.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    ensure!(done == 0, "flags of {device}: {}", io::Error::last_os_error());
    // SAFETY: the call has set this member of the union.
    Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
}

fn set_flags(socket: &OwnedFd, device: &str, flags: i32) -> Result<()> {
    let mut request = request(device);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    ensure!(done == 0, "set flags of {device}: {}", io::Error::last_os_error());
    Ok(())
}

fn request(device: &str) -> libc::ifreq {
    // SAFETY: ifreq is integers and unions of them: all zero is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request
}
