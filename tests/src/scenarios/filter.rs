//! Filters: each shows what matches and hides the rest.

use super::expect::watch;
use super::{beside, rules, skip};
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::kernel;
use crate::bed::packet::{self, tcp_flag};
use crate::bed::topology::{Family, Pair};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::collections::BTreeSet;

/// Four drops in the server's namespace, told apart by their destination ports.
const UDP: u64 = 1001;
const TCP: u64 = 1002;
const UDP6: u64 = 1003;
const RULE: u64 = 1004;
const EVERY: &[u64] = &[UDP, TCP, UDP6, RULE];

/// Words of the command line, and the drops that they show. `NETNS` and `INODE` stand for the server's namespace.
const CASES: &[(&str, &str, &[u64])] = &[
    ("ip", "--ip 10.77.0.2", &[UDP, TCP, RULE]),
    ("ip_prefix", "--ip fd77::/64", &[UDP6]),
    ("from_ip", "--from-ip 10.77.0.1", &[UDP, TCP, RULE]),
    ("to_ip", "--to-ip 10.77.0.1", &[]),
    ("port", "--port 1001", &[UDP]),
    ("port_either_end", "--port 40002", &[TCP]),
    ("from_port", "--from-port 40003", &[UDP6]),
    ("from_port_is_not_to", "--from-port 1003", &[]),
    ("to_port", "--to-port 1004", &[RULE]),
    ("protocol_tcp", "--protocol tcp", &[TCP]),
    ("protocol_udp", "--protocol udp", &[UDP, UDP6, RULE]),
    ("interface", "--interface s0", EVERY),
    ("interface_other", "--interface nosuch0", &[]),
    ("netns_inode", "--netns INODE", EVERY),
    ("netns_name", "--netns NETNS", EVERY),
    ("netns_path", "--netns /run/netns/NETNS", EVERY),
    ("same_flag_is_or", "--port 1001 --port 1002", &[UDP, TCP]),
    ("other_flag_is_and", "--port 1001 --protocol tcp", &[]),
    ("both_must_match", "--ip 10.77.0.0/24 --protocol udp", &[UDP, RULE]),
    ("not", "--not --port 1001", &[TCP, UDP6, RULE]),
];

/// The same for kernels with reasons.
const REASON_CASES: &[(&str, &str, &[u64])] = &[
    ("reason", "--reason NETFILTER_DROP", &[RULE]),
    ("reason_glob", "--reason NO_SOCK*", &[UDP, TCP, UDP6]),
    ("reason_excluded", "--reason !NETFILTER_DROP", &[UDP, TCP, UDP6]),
];

/// Those that each kernel's programs are tried with, one for each thing that they look at. What words mean is the same everywhere.
const IN_VM: &[&str] = &[
    "ip",
    "ip_prefix",
    "from_port_is_not_to",
    "protocol_udp",
    "interface",
    "netns_inode",
    "other_flag_is_and",
    "not",
    "reason",
];

pub(super) fn trials() -> Vec<Trial> {
    let plain = CASES.iter().map(|case| (case, false));
    let reasons = REASON_CASES.iter().map(|case| (case, true));
    plain
        .chain(reasons)
        .filter(|((name, ..), _)| !kernel::in_vm() || IN_VM.contains(name))
        .map(|(&(name, words, shown), needs_reasons)| {
            beside(format!("filter::{name}"), move || {
                if needs_reasons && !kernel::has_reasons() {
                    return Err(skip("this kernel has no drop reasons"));
                }
                filter(words, shown)
            })
        })
        .collect()
}

fn filter(words: &str, shown: &[u64]) -> Result<()> {
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    rules::chain(netns, "inet", "input", &format!("udp dport {RULE} drop"))?;
    let words = words.replace("INODE", &netns.inode().to_string()).replace("NETNS", netns.name());
    let filtered = Droptrace::start(&words.split_whitespace().collect::<Vec<_>>())?;
    let unfiltered = watch()?;
    pair.client.inject(&traffic(&pair))?;
    let wanted: BTreeSet<u64> = shown.iter().copied().collect();
    let ports = |output: &Output| -> BTreeSet<u64> {
        output.drops_in(&[netns.inode()]).filter_map(|record| record.number("/destination/port")).collect()
    };
    // The unfiltered stream proves that all four were dropped, so that what the filter hides was there to hide.
    let every = BTreeSet::from_iter(EVERY.iter().copied());
    unfiltered.wait("all drops came", |output| ports(output).is_superset(&every))?;
    filtered.wait("what matches came", |output| ports(output).is_superset(&wanted)).context(words.clone())?;
    let output = filtered.stop()?;
    ensure!(ports(&output) == wanted, "{words} showed {:?} instead of {wanted:?}", ports(&output));
    Ok(())
}

fn traffic(pair: &Pair) -> Vec<Vec<u8>> {
    let ends = |family, port: u64| {
        let port = port as u16;
        (pair.client.port(family, 39_000 + port), pair.server.port(family, port))
    };
    let (a, b) = ends(Family::V4, UDP);
    let (c, d) = ends(Family::V4, TCP);
    let (e, f) = ends(Family::V6, UDP6);
    let (g, h) = ends(Family::V4, RULE);
    vec![
        packet::udp(a, b, b"x"),
        packet::tcp(c, d, 1, 0, tcp_flag::SYN, b""),
        packet::udp(e, f, b"x"),
        packet::udp(g, h, b"x"),
    ]
}
