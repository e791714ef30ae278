//! Two namespaces connected by netkit devices (drivers/net/netkit.c, from 6.7), which have programs of their own.

use super::namespace::Namespace;
use super::tc::{ask, attribute, request};
use super::topology::Family;
use anyhow::{Context, Result};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

/// The namespaces, and the devices in them.
#[derive(Debug)]
pub struct Wire {
    /// Has the first device, `c0`, which may be given programs.
    pub client: Namespace,
    /// Has its peer, `s0`.
    pub server: Namespace,
}

impl Wire {
    /// Makes them; `None` where the kernel has no netkit.
    ///
    /// # Errors
    /// When anything else fails.
    pub fn new() -> Result<Option<Self>> {
        let wire = Self { client: Namespace::new()?, server: Namespace::new()? };
        let server = File::open(format!("/run/netns/{}", wire.server.name())).context("open a netns")?;
        let link = new_link(server.as_raw_fd());
        match wire.client.enter(|| ask(&link)) {
            Ok(()) => {}
            Err(error) => {
                let unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EOPNOTSUPP);
                return if error.downcast_ref().is_some_and(unknown) { Ok(None) } else { Err(error) };
            }
        }
        for (netns, device, host) in [(&wire.client, "c0", 1), (&wire.server, "s0", 2)] {
            netns.run(&format!("ip address add 10.77.9.{host}/24 dev {device}"))?;
            netns.run(&format!("ip address add fd77:9::{host}/64 dev {device} nodad"))?;
            netns.run(&format!("ip link set {device} up"))?;
        }
        Ok(Some(wire))
    }

    /// From the client to the server.
    ///
    /// # Errors
    /// Never: the addresses are well formed.
    pub fn ends(family: Family) -> Result<(SocketAddr, SocketAddr)> {
        let [from, to] = family.pick(["10.77.9.1", "10.77.9.2"], ["fd77:9::1", "fd77:9::2"]);
        Ok((SocketAddr::new(from.parse()?, 40_000), SocketAddr::new(to.parse()?, 4242)))
    }
}

/// RTM_NEWLINK for `c0` here and `s0` in another netns (struct ifinfomsg, attributes; include/uapi/linux/if_link.h).
fn new_link(server: i32) -> Vec<u8> {
    const RTM_NEWLINK: u16 = 16;
    /// NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE
    const FLAGS: u16 = 0x605;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_NET_NS_FD: u16 = 28;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    /// Its value is an ifinfomsg and attributes, too.
    const IFLA_NETKIT_PEER_INFO: u16 = 1;
    let peer =
        [vec![0; 16], attribute(IFLA_IFNAME, b"s0\0"), attribute(IFLA_NET_NS_FD, &server.to_ne_bytes())];
    let data = attribute(IFLA_NETKIT_PEER_INFO, &peer.concat());
    let info = [attribute(IFLA_INFO_KIND, b"netkit\0"), attribute(IFLA_INFO_DATA, &data)].concat();
    let body = [vec![0; 16], attribute(IFLA_IFNAME, b"c0\0"), attribute(IFLA_LINKINFO, &info)].concat();
    request(RTM_NEWLINK, FLAGS, &body)
}
