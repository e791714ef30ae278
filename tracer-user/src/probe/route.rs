//! What this thread's network namespace does with packets to an address: its route, as rtnetlink(7) looks it up, and the MTU
//! of an interface. Both are questions that change nothing.

use super::netlink;
use std::ffi::{CStr, CString};
use std::io;
use std::net::IpAddr;

/// RTA_DST, RTA_OIF.
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
/// IFLA_IFNAME and IFLA_MTU, and the size of struct ifinfomsg (include/uapi/linux/if_link.h, rtnetlink.h).
const NAME: u16 = 3;
const MTU: u16 = 4;
const LINK_HEADER: usize = 16;
/// Size of struct rtmsg, and the place of its rtm_type.
const HEADER: usize = 12;
const TYPE: usize = 7;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// `unicast`, `local`, `blackhole`, `unreachable`, `prohibit` ..., or `none`.
    pub(crate) kind: &'static str,
    /// The interface that it leads to.
    pub(crate) interface: Option<String>,
}

/// The route that a packet of this namespace's own to that address would take: what comes from elsewhere may be routed by
/// other rules.
///
/// # Errors
/// If the kernel can't be asked.
pub(crate) fn to(address: IpAddr) -> io::Result<Route> {
    let answer = netlink::one(netlink::GET_ROUTE, &question(address));
    match answer {
        Ok(body) => told(&body).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Err(error) => refused(&error).ok_or(error),
    }
}

fn question(address: IpAddr) -> Vec<u8> {
    let (family, bytes) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut body = vec![0; HEADER];
    body[0] = u8::try_from(family).unwrap_or(0);
    body[1] = u8::try_from(bytes.len() * 8).unwrap_or(0);
    body.extend(netlink::encoded(DESTINATION, &bytes));
    body
}

fn told(body: &[u8]) -> Option<Route> {
    // RTN_* (include/uapi/linux/rtnetlink.h).
    const KINDS: [&str; 9] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
    ];
    let kind = KINDS.get(usize::from(*body.get(TYPE)?)).copied()?;
    let index = netlink::attribute(body.get(HEADER..)?, INTERFACE).and_then(|value| netlink::word(value, 0));
    Some(Route { kind, interface: index.and_then(name) })
}

/// IPv4's lookup answers with an error for routes that lead nowhere: fib_props (net/ipv4/fib_semantics.c).
fn refused(error: &io::Error) -> Option<Route> {
    let kind = match error.raw_os_error()? {
        libc::EINVAL => "blackhole",
        libc::EHOSTUNREACH => "unreachable",
        libc::EACCES => "prohibit",
        libc::ENETUNREACH => "none",
        _ => return None,
    };
    Some(Route { kind, interface: None })
}

fn name(index: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the call asks for.
    let found = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: the kernel's names end with a NUL byte within that length.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_str().ok().map(str::to_owned)
}

/// The MTU of an interface of this thread's network namespace; `None` if there is no such interface. rtnetlink is asked, for the
/// ioctl would have a module loaded for a name that is no interface's (dev_load, net/core/dev_ioctl.c).
pub(crate) fn mtu(interface: &str) -> Option<u32> {
    let name = CString::new(interface).ok()?.into_bytes_with_nul();
    if name.len() > libc::IF_NAMESIZE || interface.is_empty() {
        return None;
    }
    let mut body = vec![0; LINK_HEADER];
    body.extend(netlink::encoded(NAME, &name));
    let link = netlink::one(netlink::GET_LINK, &body).ok()?;
    netlink::word(netlink::attribute(link.get(LINK_HEADER..)?, MTU)?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_is_local() {
        let local = to("127.0.0.1".parse().unwrap()).unwrap();
        assert_eq!((local.kind, local.interface.as_deref()), ("local", Some("lo")));
        assert_eq!(mtu("lo"), Some(65536));
        assert_eq!(
            [mtu("nothing-there"), mtu(""), mtu("a-name-that-is-longer-than-any"), mtu("l\0o")],
            [None; 4]
        );
    }

    #[test]
    fn routes_that_lead_nowhere_are_errors_or_types() {
        let of = |code| refused(&io::Error::from_raw_os_error(code)).map(|route| route.kind);
        assert_eq!(
            [of(libc::EINVAL), of(libc::ENETUNREACH), of(libc::EACCES), of(libc::EPERM)],
            [Some("blackhole"), Some("none"), Some("prohibit"), None]
        );
        let mut body = vec![0; HEADER];
        body[TYPE] = 6;
        assert_eq!(told(&body), Some(Route { kind: "blackhole", interface: None }));
        body[TYPE] = 99;
        assert_eq!(told(&body), None);
        assert_eq!(told(&body[..3]), None);
    }
}
