//! The XDP programs of interfaces, from the links that rtnetlink lists (RTM_NEWLINK, include/uapi/linux/if_link.h).

use crate::probe::netlink::{self, attribute, text, word};
use std::io;

/// Bytes of struct ifinfomsg, after which the attributes come: family, type, index at 4, flags, change.
const IFINFOMSG: usize = 16;
/// IFLA_IFNAME and IFLA_XDP.
const NAME: u16 = 3;
const XDP: u16 = 43;

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// In the driver, on its receive buffers.
    Driver,
    /// On the skb that the kernel has made already.
    Generic,
    /// On the card.
    Hardware,
}

impl Mode {
    /// As `ip link` and others call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
        }
    }
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface's name; not trusted.
    pub interface: String,
    /// Where it runs.
    pub mode: Mode,
    /// The program's id, as `bpftool prog` shows it.
    pub program: u32,
}

/// All XDP programs in this thread's network namespace.
///
/// # Errors
/// When the kernel does not list its links.
pub fn read() -> io::Result<Vec<Attached>> {
    let links = netlink::list(netlink::GET_LINK, &[0; IFINFOMSG], netlink::NEW_LINK)?;
    Ok(links.iter().flat_map(|link| programs(link)).collect())
}

/// The programs of one link: one for each mode, at most.
fn programs(link: &[u8]) -> Vec<Attached> {
    // IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID and IFLA_XDP_HW_PROG_ID, u32 each (rtnl_xdp_fill, net/core/rtnetlink.c).
    const MODES: [(u16, Mode); 3] = [(5, Mode::Driver), (6, Mode::Generic), (7, Mode::Hardware)];
    let attributes = link.get(IFINFOMSG..).unwrap_or_default();
    let (Some(name), Some(xdp)) = (attribute(attributes, NAME), attribute(attributes, XDP)) else {
        return Vec::new();
    };
    let of = |(kind, mode)| {
        let program = attribute(xdp, kind).and_then(|value| word(value, 0)).filter(|id| *id != 0)?;
        Some(Attached { interface: text(name), mode, program })
    };
    MODES.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::netlink::encoded;

    fn link(name: &[u8], xdp: &[(u16, &[u8])]) -> Vec<u8> {
        let xdp: Vec<u8> = xdp.iter().flat_map(|(kind, value)| encoded(*kind, value)).collect();
        [vec![0; IFINFOMSG], encoded(NAME, name), encoded(0x8000 | XDP, &xdp)].concat()
    }

    #[test]
    fn a_program_for_each_mode() {
        let [seven, eight] = [7_u32, 8].map(u32::to_ne_bytes);
        // IFLA_XDP_ATTACHED and IFLA_XDP_PROG_ID say the same once more.
        let both = link(b"eth0\0", &[(2, &[4]), (5, &seven), (6, &eight)]);
        let found = |mode, program| Attached { interface: "eth0".to_owned(), mode, program };
        assert_eq!(programs(&both), [found(Mode::Driver, 7), found(Mode::Generic, 8)]);
        let one = link(b"eth0\0", &[(2, &[3]), (4, &seven), (7, &seven)]);
        assert_eq!(programs(&one), [found(Mode::Hardware, 7)]);
    }

    #[test]
    fn links_without_programs_and_garbage() {
        assert_eq!(programs(&link(b"eth0\0", &[(2, &[0])])), []);
        assert_eq!(programs(&link(b"eth0\0", &[(5, &[0; 4]), (6, &[1])])), []);
        assert_eq!(programs(&[]), []);
        assert_eq!(programs(&[0xff; 64]), []);
    }
}
