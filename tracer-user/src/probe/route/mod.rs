//! What this thread's network namespace does with packets to an address: its route, as rtnetlink(7) looks it up, and the MTU
//! of an interface. Both are questions that change nothing.

mod policy;

pub(crate) use policy::Decided;

use super::netlink;
use policy::Judged;
use std::ffi::{CStr, CString};
use std::io;
use std::net::IpAddr;

/// RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_MARK.
const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const CAME_BY: u16 = 3;
const INTERFACE: u16 = 4;
const MARK: u16 = 16;
/// IFLA_IFNAME and IFLA_MTU, and the size of struct ifinfomsg (include/uapi/linux/if_link.h, rtnetlink.h).
const NAME: u16 = 3;
const MTU: u16 = 4;
const LINK_HEADER: usize = 16;
/// Size of struct rtmsg, and the place of its rtm_type.
const RTMSG: usize = 12;
const TYPE: usize = 7;

/// A packet whose route is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packet {
    /// Where it goes.
    pub(crate) to: IpAddr,
    /// Where it came from; none if it is the namespace's own.
    pub(crate) came: Option<Came>,
}

/// Where a packet came from: rules of policy routing may send it elsewhere than one of the namespace's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Came {
    /// Its source address.
    pub(crate) from: IpAddr,
    /// The interface that it came in by.
    pub(crate) by: String,
    /// Its mark (skb->mark).
    pub(crate) mark: u32,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// `unicast`, `local`, `blackhole`, `unreachable`, `prohibit` ..., or `none`.
    pub(crate) kind: &'static str,
    /// The interface that it leads to.
    pub(crate) interface: Option<String>,
    /// Of one that leads nowhere: the rule, the table and the route that say so, if that can be told.
    pub(crate) by: Option<Decided>,
    /// Where there is none: the tables that it was looked for in, if that can be told; but for `local` and `default`.
    pub(crate) tables: Vec<String>,
}

impl Route {
    fn new(kind: &'static str, interface: Option<String>) -> Self {
        Self { kind, interface, by: None, tables: Vec::new() }
    }

    fn leads_nowhere(&self) -> bool {
        matches!(self.kind, "blackhole" | "unreachable" | "prohibit" | "none")
    }

    /// With who decided that, if it leads nowhere. `None` if it does by no rule and no route: what comes in by an interface is also
    /// refused for what its source is, and where forwarding is off (ip_route_input_slow, net/ipv4/route.c), by the same errors.
    fn decided(mut self, judged: Judged) -> Option<Self> {
        match judged {
            Judged::By(decided) if decided.kind == self.kind => self.by = Some(decided),
            Judged::NoRoute(tables) if self.kind == "none" => self.tables = tables,
            Judged::Unknown => {}
            Judged::By(_) | Judged::NoRoute(_) => return None,
        }
        Some(self)
    }
}

/// The route that a packet would take, by the rules for where it came from.
///
/// # Errors
/// If the kernel can't be asked, or does not route such a packet for other reasons than its routes.
pub(crate) fn of(packet: &Packet) -> io::Result<Route> {
    let answer = question(packet).and_then(|question| netlink::one(netlink::GET_ROUTE, &question));
    let route = match answer {
        Ok(body) => told(&body).ok_or(io::ErrorKind::InvalidData)?,
        Err(error) => Route::new(refused(&error).ok_or(error)?, None),
    };
    if !route.leads_nowhere() {
        return Ok(route);
    }
    let kind = route.kind;
    let other = || io::Error::other(format!("the kernel says {kind}, but no rule or route does"));
    route.decided(policy::judged(packet)).ok_or_else(other)
}

fn question(packet: &Packet) -> io::Result<Vec<u8>> {
    let Packet { to, came } = packet;
    let length = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let mut body = vec![0; RTMSG];
    body[0] = u8::try_from(family(*to)).unwrap_or(0);
    body[1] = length(to);
    body.extend(netlink::encoded(DESTINATION, &octets(*to)));
    if let Some(Came { from, by, mark }) = came {
        let name = CString::new(by.as_str())?;
        // SAFETY: a text that ends with a NUL byte.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        body[2] = length(from);
        body.extend(netlink::encoded(SOURCE, &octets(*from)));
        body.extend(netlink::encoded(CAME_BY, &index.to_ne_bytes()));
        body.extend(netlink::encoded(MARK, &mark.to_ne_bytes()));
    }
    Ok(body)
}

fn family(address: IpAddr) -> libc::c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An IP address of 4 or 16 bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// The name of a RTN_* (include/uapi/linux/rtnetlink.h).
fn kind_of(number: u8) -> Option<&'static str> {
    const KINDS: [&str; 10] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
    ];
    KINDS.get(usize::from(number)).copied()
}

fn told(body: &[u8]) -> Option<Route> {
    let kind = kind_of(*body.get(TYPE)?)?;
    let index = netlink::attribute(body.get(RTMSG..)?, INTERFACE).and_then(|value| netlink::word(value, 0));
    Some(Route::new(kind, index.and_then(name)))
}

/// IPv4's lookup answers with an error for routes that lead nowhere: fib_props (net/ipv4/fib_semantics.c).
fn refused(error: &io::Error) -> Option<&'static str> {
    Some(match error.raw_os_error()? {
        libc::EINVAL => "blackhole",
        libc::EHOSTUNREACH => "unreachable",
        libc::EACCES => "prohibit",
        libc::ENETUNREACH => "none",
        _ => return None,
    })
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
        let local = of(&Packet { to: "127.0.0.1".parse().unwrap(), came: None }).unwrap();
        assert_eq!((local.kind, local.interface.as_deref()), ("local", Some("lo")));
        assert_eq!(mtu("lo"), Some(65536));
        assert_eq!(
            [mtu("nothing-there"), mtu(""), mtu("a-name-that-is-longer-than-any"), mtu("l\0o")],
            [None; 4]
        );
    }

    #[test]
    fn routes_that_lead_nowhere_are_errors_or_types() {
        let of = |code| refused(&io::Error::from_raw_os_error(code));
        assert_eq!(
            [of(libc::EINVAL), of(libc::ENETUNREACH), of(libc::EACCES), of(libc::EPERM)],
            [Some("blackhole"), Some("none"), Some("prohibit"), None]
        );
        let mut body = vec![0; RTMSG];
        body[TYPE] = 6;
        assert_eq!(told(&body), Some(Route::new("blackhole", None)));
        body[TYPE] = 99;
        assert_eq!(told(&body), None);
        assert_eq!(told(&body[..3]), None);
    }

    #[test]
    fn the_kernels_no_is_a_routes_only_where_a_rule_or_a_route_says_so() {
        let dead = |kind| Route::new(kind, None);
        let by = |kind| {
            Judged::By(Decided {
                kind,
                rule: "9: from all lookup 7".into(),
                table: Some("7".into()),
                entry: None,
            })
        };
        assert_eq!(
            dead("blackhole").decided(by("blackhole")).unwrap().by.unwrap().table.as_deref(),
            Some("7")
        );
        // A source that may not come in so, or forwarding that is off.
        assert_eq!(dead("blackhole").decided(by("unicast")), None);
        assert_eq!(dead("unreachable").decided(Judged::NoRoute(vec![])), None);
        let none = dead("none").decided(Judged::NoRoute(vec!["main".into()])).unwrap();
        assert_eq!(none.tables, ["main"]);
        assert_eq!(dead("prohibit").decided(Judged::Unknown), Some(dead("prohibit")));
    }

    #[test]
    fn a_question_has_where_the_packet_came_from() {
        let came = Came { from: "127.0.0.2".parse().unwrap(), by: "lo".into(), mark: 7 };
        let body = question(&Packet { to: "127.0.0.1".parse().unwrap(), came: Some(came.clone()) }).unwrap();
        assert_eq!(body[..3], [2, 32, 32]);
        let value = |kind| netlink::attribute(&body[RTMSG..], kind);
        assert_eq!(
            (value(SOURCE), value(CAME_BY)),
            (Some(&[127, 0, 0, 2][..]), Some(&1_u32.to_ne_bytes()[..]))
        );
        assert_eq!(value(MARK), Some(&7_u32.to_ne_bytes()[..]));
        let gone = Came { by: "nothing-there".into(), ..came };
        assert!(question(&Packet { to: "127.0.0.1".parse().unwrap(), came: Some(gone) }).is_err());
    }
}
