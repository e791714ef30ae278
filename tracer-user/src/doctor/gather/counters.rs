//! Counters that the kernel keeps of what it dropped, in files under /proc: SNMP's, netstat's, of connection tracking, of
//! neighbours, of the CPUs' backlog, of IPsec. The formats are parsed by their headers: columns differ between kernels.

use super::super::model::Counter;
use std::fs;
use std::path::Path;

/// What something counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// What counts.
    pub by: Counter,
    /// The counter's name.
    pub name: String,
    /// Where it is from.
    pub source: String,
    /// How many.
    pub count: u64,
}

impl Count {
    /// One.
    #[must_use]
    pub fn new(by: Counter, name: impl Into<String>, source: impl Into<String>, count: u64) -> Self {
        Self { by, name: name.into(), source: source.into(), count }
    }
}

/// All that this thread's network namespace counts there, drops or not. A file that this kernel does not have has none.
#[must_use]
pub fn read(proc: &Path) -> Vec<Count> {
    type Parser = fn(&str) -> Vec<(String, u64)>;
    const FILES: [(&str, Counter, Parser); 8] = [
        ("snmp", Counter::Protocol, paired),
        ("netstat", Counter::Protocol, paired),
        ("snmp6", Counter::Protocol, named),
        ("xfrm_stat", Counter::Ipsec, named),
        ("stat/nf_conntrack", Counter::Conntrack, per_cpu),
        ("stat/arp_cache", Counter::Neighbour, per_cpu),
        ("stat/ndisc_cache", Counter::Neighbour, per_cpu),
        ("softnet_stat", Counter::Softnet, softnet),
    ];
    let mut counts = Vec::new();
    for (file, by, parse) in FILES {
        // The thread's own, for it alone may have moved to another namespace.
        let Ok(text) = fs::read_to_string(proc.join("thread-self/net").join(file)) else { continue };
        let source = format!("/proc/net/{file}");
        let of_table = file.strip_prefix("stat/").unwrap_or_default();
        counts.extend(parse(&text).into_iter().map(|(name, count)| {
            let name = if of_table.is_empty() { name } else { format!("{of_table} {name}") };
            Count::new(by, name, &*source, count)
        }));
    }
    counts
}

/// `Tcp: A B` and `Tcp: 1 2`: a line of names, then one of values, with the group's name (net/ipv4/proc.c).
fn paired(text: &str) -> Vec<(String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let (pairs, _) = lines.as_chunks::<2>();
    let of_pair = |[names, values]: &[&str; 2]| {
        let (group, names) = names.split_once(':')?;
        let (same, values) = values.split_once(':')?;
        let value = |(name, value): (&str, &str)| Some((format!("{group}{name}"), value.parse().ok()?));
        let both = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
        (group == same).then(|| both.filter_map(value).collect::<Vec<_>>())
    };
    pairs.iter().filter_map(of_pair).flatten().collect()
}

/// A name and a value a line (net/ipv6/proc.c, net/xfrm/xfrm_proc.c).
fn named(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// A line of names, then one of hexadecimal numbers for each CPU (net/netfilter/nf_conntrack_standalone.c,
/// net/core/neighbour.c). `entries` is the same in all of them.
fn per_cpu(text: &str) -> Vec<(String, u64)> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let mut sums = vec![0_u64; names.len()];
    for line in lines {
        for ((sum, name), word) in sums.iter_mut().zip(&names).zip(line.split_ascii_whitespace()) {
            let value = u64::from_str_radix(word, 16).unwrap_or(0);
            *sum = if *name == "entries" { value } else { sum.saturating_add(value) };
        }
    }
    names.into_iter().map(str::to_owned).zip(sums).collect()
}

/// A line of hexadecimal numbers for each CPU, of which the second are drops (softnet_seq_show, net/core/net-procfs.c).
fn softnet(text: &str) -> Vec<(String, u64)> {
    let of_cpu = |line: &str| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok();
    let dropped = text.lines().filter_map(of_cpu).fold(0, u64::saturating_add);
    vec![("softnet dropped".to_owned(), dropped)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(all: &[(String, u64)]) -> Vec<(&str, u64)> {
        all.iter().map(|(name, count)| (&**name, *count)).collect()
    }

    #[test]
    fn each_format() {
        let snmp =
            paired("Ip: Forwarding InDiscards\nIp: 1 20\nTcpExt: A\nUdp: 3\nTcp: MaxConn X\nTcp: -1 5\n");
        assert_eq!(pairs(&snmp), [("IpForwarding", 1), ("IpInDiscards", 20), ("TcpX", 5)]);
        assert_eq!(pairs(&named("Ip6InDiscards     \t7\nXfrmInError x\n")), [("Ip6InDiscards", 7)]);
        let cpus =
            per_cpu("entries  drop insert_failed\n0000000a 00000010 00000001\n0000000a 00000002 00000000\n");
        assert_eq!(pairs(&cpus), [("entries", 10), ("drop", 18), ("insert_failed", 1)]);
        let dropped = softnet("0000000a 00000010 0\n0000000b 00000002 0\n\n");
        assert_eq!(pairs(&dropped), [("softnet dropped", 18)]);
        assert!(paired("").is_empty() && per_cpu("").is_empty() && named("x").is_empty());
    }

    #[test]
    fn this_kernel_has_some() {
        let counts = read(Path::new("/proc"));
        for name in ["IpInDiscards", "TcpExtListenDrops", "softnet dropped"] {
            assert!(counts.iter().any(|count| count.name == name), "{name}");
        }
    }
}
