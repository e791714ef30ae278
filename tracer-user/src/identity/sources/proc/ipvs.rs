//! IPVS's connections, as /proc/PID/net/ip_vs_conn has them: which virtual address a client dialled. The file is there only
//! where the module is, so reading it loads nothing.

use super::scan;
use crate::identity::object::{Flow, Ipvs, Protocol, Virtual};
use crate::identity::sources::node::Node;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// As much of a file is read at once, in bytes: some 50,000 connections. What is behind that is not found.
const LONGEST: u64 = 4 << 20;

/// Protocol, source and destination.
type Ends = (Protocol, SocketAddr, SocketAddr);

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    protocol: Protocol,
    client: SocketAddr,
    address: SocketAddr,
    backend: SocketAddr,
}

/// Whether the kernel has IPVS, and what it has of these flows: in the network namespace of each, else in the node's.
pub(super) fn look(node: &Node, flows: &[Flow]) -> Ipvs {
    let proc = node.proc();
    let own = file_of(&proc, 1);
    let mut answers: HashMap<Flow, Option<Virtual>> = flows.iter().map(|flow| (*flow, None)).collect();
    let is_there = own.exists();
    if is_there {
        let host = scan::host_netns(&proc);
        let others: HashSet<u32> =
            flows.iter().filter_map(|flow| flow.netns).filter(|netns| Some(*netns) != host).collect();
        for (netns, pid) in scan::processes_in(&proc, others) {
            fill(&mut answers, |flow| flow.netns == Some(netns), || lines_of(&file_of(&proc, pid)));
        }
        fill(&mut answers, |_| true, || lines_of(&own));
    }
    Ipvs { is_there, answers: answers.into_iter().collect() }
}

fn file_of(proc: &Path, pid: u32) -> PathBuf {
    proc.join(format!("{pid}/net/ip_vs_conn"))
}

/// The lines of a file; none if it is gone.
fn lines_of(file: &Path) -> impl Iterator<Item = String> + use<> {
    let file = File::open(file).ok().map(|file| BufReader::new(file.take(LONGEST)));
    file.into_iter().flat_map(|file| file.lines().map_while(Result::ok))
}

/// Answers what is open of the flows that may be in a file, which is read only if there are any.
fn fill<L: Iterator<Item = String>>(
    answers: &mut HashMap<Flow, Option<Virtual>>,
    may_be_in: impl Fn(&Flow) -> bool,
    lines: impl FnOnce() -> L,
) {
    let open = answers.iter_mut().filter(|(flow, answer)| answer.is_none() && may_be_in(flow));
    let mut wanted: HashMap<Ends, Vec<&mut Option<Virtual>>> = HashMap::new();
    for (flow, answer) in open {
        wanted.entry((flow.protocol, flow.source, flow.destination)).or_default().push(answer);
    }
    if wanted.is_empty() {
        return;
    }
    for Connection { protocol, client, address, backend } in lines().filter_map(|text| line(&text)) {
        for (ends, is_reply) in [((protocol, client, backend), false), ((protocol, backend, client), true)] {
            for answer in wanted.get_mut(&ends).into_iter().flatten().filter(|answer| answer.is_none()) {
                **answer = Some(Virtual { address, is_reply });
            }
        }
    }
}

/// Reads a line (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_seq_show): protocol, then address and port of client, virtual
/// service and backend, state, seconds left. IPv4 addresses are 8 hexadecimal digits, the first byte first; IPv6 addresses
/// have colons, brackets or not; ports are 4 hexadecimal digits. `None` for the header and for other protocols.
fn line(text: &str) -> Option<Connection> {
    let mut words = text.split_ascii_whitespace();
    let protocol = match words.next()? {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => return None,
    };
    let mut end = || {
        let address = address(words.next()?)?;
        let port = words.next().filter(|port| port.len() == 4)?;
        Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
    };
    Some(Connection { protocol, client: end()?, address: end()?, backend: end()? })
}

fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        return bare.parse().ok();
    }
    let digits = (text.len() == 8).then_some(text)?;
    u32::from_str_radix(digits, 16).ok().map(|bits| Ipv4Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const TEXT: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A4D0101 9C42 0A600001 18EB 0A4D0201 18EB SYN_RECV         59
UDP 0A4D0101 9C43 0A600002 0035 0A4D0201 14E9 UDP             299
TCP fd77:0001:0000:0000:0000:0000:0000:0001 9C44 fd77:0096:0000:0000:0000:0000:0000:0001 18EB fd77:0002:0000:0000:0000:0000:0000:0001 18EB SYN_RECV         58
IP  0A4D0101 0000 0A600001 0000 0A4D0201 0000 NONE            300
";

    fn flow(netns: u32, protocol: Protocol, source: &str, destination: &str) -> Flow {
        Flow {
            netns: Some(netns),
            protocol,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn found(text: &str, flow: Flow) -> Option<Virtual> {
        let mut answers = HashMap::from([(flow, None)]);
        fill(&mut answers, |_| true, || text.lines().map(str::to_owned));
        answers[&flow]
    }

    fn told(address: &str, is_reply: bool) -> Option<Virtual> {
        Some(Virtual { address: address.parse().unwrap(), is_reply })
    }

    #[test]
    fn client_and_backend_tell_what_was_dialled() {
        let (client, backend) = ("10.77.1.1:40002", "10.77.2.1:6379");
        assert_eq!(found(TEXT, flow(1, 6, client, backend)), told("10.96.0.1:6379", false));
        assert_eq!(found(TEXT, flow(1, 6, backend, client)), told("10.96.0.1:6379", true));
        assert_eq!(
            found(TEXT, flow(1, 17, "10.77.1.1:40003", "10.77.2.1:5353")),
            told("10.96.0.2:53", false)
        );
        let v6 = flow(1, 6, "[fd77:1::1]:40004", "[fd77:2::1]:6379");
        assert_eq!(found(TEXT, v6), told("[fd77:96::1]:6379", false));
        for other in [
            flow(1, 17, client, backend),
            flow(1, 6, "10.77.1.1:40003", backend),
            flow(1, 6, client, "10.77.2.1:6380"),
            // What was dialled is no backend.
            flow(1, 6, client, "10.96.0.1:6379"),
        ] {
            assert_eq!(found(TEXT, other), None, "{other:?}");
        }
    }

    #[test]
    fn of_addresses_any_form_is_read_and_nothing_else() {
        let bracket = TEXT.replace("fd77:0002:0000:0000:0000:0000:0000:0001", "[fd77:2::1]");
        let v6 = flow(1, 6, "[fd77:1::1]:40004", "[fd77:2::1]:6379");
        assert_eq!(found(&bracket, v6), told("[fd77:96::1]:6379", false));
        let good = TEXT.lines().nth(1).unwrap();
        for odd in [
            good.replace("TCP", "IP"),
            good.replace("0A4D0101", "A4D0101"),
            good.replace("0A4D0101", "0A4D01011"),
            good.replace("0A4D0101", "[fd77::1"),
            good.replace("9C42", "19C42"),
            good.replace("9C42", "9C4 "),
        ] {
            assert_eq!(line(&odd), None, "{odd}");
        }
        for length in 0..good.find("SYN").unwrap() - 1 {
            assert_eq!(line(&good[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_flow_is_looked_for_in_its_own_netns_and_then_in_the_node_s() {
        let root = tempfile::tempdir().unwrap();
        let node = Node::new([root.path()]);
        let (client, backend) = ("10.77.1.1:40002", "10.77.2.1:6379");
        for (pid, netns) in [(1, 100), (7, 200), (8, 300)] {
            let folder = root.path().join(format!("proc/{pid}"));
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::create_dir_all(folder.join("net")).unwrap();
            fs::write(folder.join("cgroup"), "0::/\n").unwrap();
            symlink(format!("net:[{netns}]"), folder.join("ns/net")).unwrap();
        }
        let write = |pid: u32, text: &str| {
            fs::write(root.path().join(format!("proc/{pid}/net/ip_vs_conn")), text).unwrap();
        };
        let flows = [100, 200, 300, 400].map(|netns| flow(netns, 6, client, backend));
        let look = || {
            let Ipvs { is_there, mut answers } = look(&node, &flows);
            answers.sort_by_key(|(flow, _)| flow.netns);
            (is_there, answers.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>())
        };
        write(7, &TEXT.replace("0A600001", "0A600009"));
        assert_eq!(look(), (false, vec![None; 4]));
        write(1, TEXT);
        let node = told("10.96.0.1:6379", false);
        assert_eq!(look(), (true, vec![node, told("10.96.0.9:6379", false), node, node]));
    }
}
