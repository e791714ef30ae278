//! Whom this thread's network namespace asks for a hardware address, and what is at the other end of a veth: questions to
//! rtnetlink(7) that change nothing.

use super::netlink::{self, attribute, word};
use std::ffi::CString;
use std::net::IpAddr;

/// RTA_DST and RTA_GATEWAY, and the size of struct rtmsg (include/uapi/linux/rtnetlink.h).
const DESTINATION: u16 = 1;
const GATEWAY: u16 = 5;
const ROUTE_HEADER: usize = 12;
/// IFLA_IFNAME and IFLA_LINK; the size of struct ifinfomsg and the place of its ifi_index (include/uapi/linux/if_link.h, rtnetlink.h).
const NAME: u16 = 3;
const LINK: u16 = 5;
const LINK_HEADER: usize = 16;
const INDEX: usize = 4;

/// The next hop of packets to an address: a gateway, or the address itself; `None` where there is no route.
pub(crate) fn toward(address: IpAddr) -> Option<IpAddr> {
    let (family, bytes) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut body = vec![0; ROUTE_HEADER];
    body[0] = u8::try_from(family).ok()?;
    body[1] = u8::try_from(bytes.len() * 8).ok()?;
    body.extend(netlink::encoded(DESTINATION, &bytes));
    let route = netlink::one(netlink::GET_ROUTE, &body).ok()?;
    Some(gateway(&route).unwrap_or(address))
}

fn gateway(route: &[u8]) -> Option<IpAddr> {
    let bytes = attribute(route.get(ROUTE_HEADER..)?, GATEWAY)?;
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The two ends of a veth, by the numbers of their interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    own: u32,
    other: u32,
}

/// Those of an interface of this thread's network namespace.
pub(crate) fn ends(interface: &str) -> Option<Ends> {
    let name = CString::new(interface).ok()?.into_bytes_with_nul();
    if name.len() > libc::IF_NAMESIZE || interface.is_empty() {
        return None;
    }
    let mut body = vec![0; LINK_HEADER];
    body.extend(netlink::encoded(NAME, &name));
    linked(&netlink::one(netlink::GET_LINK, &body).ok()?).map(|(ends, _)| ends)
}

/// The name of the other end, if it is in this thread's network namespace.
pub(crate) fn other_end(ends: Ends) -> Option<String> {
    let mut body = vec![0; LINK_HEADER];
    body.get_mut(INDEX..INDEX + 4)?.copy_from_slice(&ends.other.to_ne_bytes());
    let (found, name) = linked(&netlink::one(netlink::GET_LINK, &body).ok()?)?;
    // Another namespace's interface may have that number here.
    (found == Ends { own: ends.other, other: ends.own }).then_some(name)
}

fn linked(link: &[u8]) -> Option<(Ends, String)> {
    let attributes = link.get(LINK_HEADER..)?;
    let ends = Ends { own: word(link, INDEX)?, other: word(attribute(attributes, LINK)?, 0)? };
    Some((ends, netlink::text(attribute(attributes, NAME)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_is_its_own_next_hop() {
        let own = "127.0.0.1".parse().unwrap();
        assert_eq!(toward(own), Some(own));
        // It has no other end.
        assert_eq!([ends("lo"), ends(""), ends("nothing-there")], [None; 3]);
    }

    #[test]
    fn gateways_of_both_families_are_read() {
        let mut route = vec![0; ROUTE_HEADER];
        assert_eq!(gateway(&route), None);
        route.extend(netlink::encoded(GATEWAY, &[169, 254, 1, 1]));
        assert_eq!(gateway(&route), "169.254.1.1".parse().ok());
        let mut route = vec![0; ROUTE_HEADER];
        let v6: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        route.extend(netlink::encoded(GATEWAY, &v6.octets()));
        assert_eq!(gateway(&route), Some(v6.into()));
        assert_eq!(gateway(&route[..3]), None);
    }

    #[test]
    fn a_link_tells_its_ends() {
        let mut link = vec![0; LINK_HEADER];
        link[INDEX..INDEX + 4].copy_from_slice(&7_u32.to_ne_bytes());
        link.extend(netlink::encoded(NAME, b"eth0\0"));
        assert_eq!(linked(&link), None);
        link.extend(netlink::encoded(LINK, &9_u32.to_ne_bytes()));
        assert_eq!(linked(&link), Some((Ends { own: 7, other: 9 }, "eth0".to_owned())));
    }
}
