//! What IPVS translates, from /proc/net/ip_vs (ip_vs_info_seq_show, net/netfilter/ipvs/ip_vs_ctl.c). The file is there only
//! where IPVS is.

use super::super::facts::VirtualServer;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The virtual servers of this thread's network namespace; `None` where there is no IPVS.
#[must_use]
pub fn read(proc: &Path) -> Option<Vec<VirtualServer>> {
    Some(parse(&fs::read_to_string(proc.join("thread-self/net/ip_vs")).ok()?))
}

/// Lines such as `TCP  0A600001:01BB rr`, each followed by its backends: `  -> 0A80000A:192B      Masq    1 0 0`.
fn parse(text: &str) -> Vec<VirtualServer> {
    let mut servers: Vec<VirtualServer> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("->"), Some(at)) => {
                // A backend of weight 0 gets no new connections.
                let is_used = words.nth(1) != Some("0");
                if let (Some(server), Some(at), true) = (servers.last_mut(), socket(at), is_used) {
                    server.backends.get_or_insert_default().push(at);
                }
            }
            (Some(protocol), Some(at)) => {
                let protocol = match protocol {
                    "TCP" => 6,
                    "UDP" => 17,
                    "SCTP" => 132,
                    // Heads, and services by firewall mark.
                    _ => continue,
                };
                if let Some(address) = socket(at) {
                    servers.push(VirtualServer { address, protocol, backends: Some(Vec::new()) });
                }
            }
            _ => {}
        }
    }
    servers
}

/// `0A600001:01BB`, or `[fd00:0000:...:0001]:01BB`.
fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match address.strip_prefix('[') {
        Some(v6) => IpAddr::V6(v6.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::from(u32::from_str_radix(address, 16).ok()?.to_be_bytes()),
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_their_backends() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port \
                    Forward Weight ActiveConn InActConn\nTCP  0A600001:01BB rr  \n  -> 0A80000A:192B      Masq    1      0 \
                    0         \n  -> 0A80000B:192B      Masq    0      0          0         \nFWM  00000001 rr\nUDP  \
                    [fd00:0000:0000:0000:0000:0000:0000:0001]:0035 rr\n";
        let servers = parse(text);
        let told: Vec<_> = servers
            .iter()
            .map(|it| (it.address.to_string(), it.protocol, it.backends.clone().unwrap().len()))
            .collect();
        assert_eq!(told, [("10.96.0.1:443".into(), 6, 1), ("[fd00::1]:53".into(), 17, 0)]);
        assert_eq!(servers[0].backends.as_ref().unwrap()[0], "10.128.0.10:6443".parse().unwrap());
        assert!(parse("x\n\n-> 1\n").is_empty());
    }
}
