//! Which socket has a local port: the lines of /proc/net/tcp, tcp6, udp and udp6.

use crate::identity::object::Protocol;
use std::collections::HashMap;

/// Inode number of a socket.
pub(super) type Inode = u64;

/// The files of /proc/PID/net, and the protocol of their sockets.
pub(super) const FILES: [(&str, Protocol); 4] = [("tcp", 6), ("tcp6", 6), ("udp", 17), ("udp6", 17)];

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    port: u16,
    inode: Inode,
    /// True if it takes what comes from anybody: a TCP listener, a UDP socket without a peer.
    open: bool,
}

/// Reads a line (net/ipv4/tcp_ipv4.c, get_tcp4_sock; udp4_format_sock alike): number, local address and port, remote
/// ones, state, queues, timer, retransmits, uid, timeout, inode. `None` for the header, and for what belongs to no
/// process any more, like a connection in TIME_WAIT.
pub(super) fn line(text: &str) -> Option<Line> {
    /// TCP_LISTEN; and TCP_CLOSE, which a UDP socket without a peer is in.
    const OPEN: [&str; 2] = ["0A", "07"];
    let mut words = text.split_ascii_whitespace();
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    let inode = words.nth(5)?.parse().ok().filter(|&inode| inode != 0)?;
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok().filter(|&port| port != 0)?;
    Some(Line { port, inode, open: OPEN.contains(&state) })
}

/// The socket of each port. Of several it is one that takes what comes from anybody, the first of them.
#[derive(Debug, Default)]
pub(super) struct Ports(HashMap<(Protocol, u16), Line>);

impl Ports {
    /// Adds a socket.
    pub(super) fn add(&mut self, protocol: Protocol, line: Line) {
        let kept = self.0.entry((protocol, line.port)).or_insert(line);
        if line.open && !kept.open {
            *kept = line;
        }
    }

    /// The ports of each socket: the same number may be one of TCP and of UDP, but never of one socket.
    pub(super) fn by_inode(self) -> HashMap<Inode, (Protocol, u16)> {
        self.0.into_iter().map(|(port, line)| (line.inode, port)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 0100007F:9C40 01 00000000:00000000 02:000A 00000000     0        0 30 2 0000000000000000 20 4 30 10 -1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20 1 0000000000000000 100 0 0 10 0
   2: 0100007F:0017 0100007F:9C41 06 00000000:00000000 03:00000A9C 00000000     0        0 0 3 0000000000000000
";
    const UDP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 1035: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 40 2 0000000000000000 0
";

    fn ports(texts: &[(&str, Protocol)]) -> Vec<(Inode, (Protocol, u16))> {
        let mut ports = Ports::default();
        for (text, protocol) in texts {
            text.lines().filter_map(line).for_each(|line| ports.add(*protocol, line));
        }
        let mut found: Vec<_> = ports.by_inode().into_iter().collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_listener_goes_before_its_connections() {
        assert_eq!(ports(&[(TCP, 6), (UDP6, 17)]), [(20, (6, 22)), (40, (17, 53))]);
        // Without one, a connection has the port.
        let connection = TCP.lines().nth(1).unwrap();
        assert_eq!(ports(&[(connection, 6)]), [(30, (6, 22))]);
    }

    #[test]
    fn what_is_no_socket_is_left_out() {
        let good = TCP.lines().nth(2).unwrap();
        assert!(line(good).is_some());
        for odd in [
            "",
            "a b c d e f g h i j k",
            &good[..20],
            &good.replace(" 20 ", " -20 "),
            &good.replace(":0016", ":10016"),
        ] {
            assert_eq!(line(odd), None, "{odd}");
        }
        for length in 0..good.len() {
            let _ = line(&good[..length]);
        }
    }
}
