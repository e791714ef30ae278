//! This node: the part of its identity that only the system knows.

use super::sources::proc;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::ptr;

/// This node.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Inode number of its own network namespace.
    pub netns: Option<u32>,
    /// Its name in Kubernetes.
    pub name: String,
    /// Addresses of its interfaces, without loopback and link-local ones.
    pub addresses: Vec<IpAddr>,
}

impl Host {
    /// Asks the system. The node's network namespace is that of its first process; its addresses are known if droptrace is
    /// in there, too.
    #[must_use]
    pub fn here(name: &str) -> Self {
        let own = std::fs::metadata("/proc/self/ns/net").ok().and_then(|file| u32::try_from(file.ino()).ok());
        let mut host = Self { netns: proc::host_netns(), name: name.to_owned(), addresses: Vec::new() };
        if host.netns == own {
            host.addresses = addresses();
        }
        host
    }
}

/// Addresses of this network namespace's interfaces (getifaddrs(3)); none if the system doesn't tell.
fn addresses() -> Vec<IpAddr> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: a place for the list's address.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: an entry of the list, which lives until freeifaddrs().
        let entry = unsafe { &*next };
        // SAFETY: its address, null or a socket address of its family.
        found.extend(unsafe { address(entry.ifa_addr) }.filter(is_worth_knowing));
        next = entry.ifa_next;
    }
    // SAFETY: the list that getifaddrs() made, once.
    unsafe { libc::freeifaddrs(first) };
    found.sort_unstable();
    found.dedup();
    found
}

/// # Safety
/// `address` is null or that of a socket address as long as its family says.
unsafe fn address(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: the caller's. The family decides what the rest is.
    unsafe {
        match i32::from((*address).sa_family) {
            libc::AF_INET => {
                let v4 = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(IpAddr::V4(u32::from_be(v4.sin_addr.s_addr).into()))
            }
            libc::AF_INET6 => {
                let v6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(IpAddr::V6(v6.sin6_addr.s6_addr.into()))
            }
            _ => None,
        }
    }
}

fn is_worth_knowing(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_interfaces_are_those_of_the_node() {
        let host = Host::here("n1");
        assert_eq!(host.name, "n1");
        assert!(host.addresses.iter().all(is_worth_knowing));
    }
}
