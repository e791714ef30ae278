//! What was dropped before droptrace began: counters as they were and as they are some moments later → rows, without those
//! that are 0.

use super::gather::counters::Count;
use super::model::{Counter, Dropped};
use super::rules::Table;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

/// Counters of protocols that mean dropped packets, with what they mean: include/uapi/linux/snmp.h and the places that
/// count. What packets are that only look odd (duplicate data, resets) is left out.
const MEANINGS: [(&str, &str); 69] = [
    ("IpInHdrErrors", "damaged or expired IP headers (TTL, checksum, length)"),
    ("IpInAddrErrors", "not for this host, and it does not forward"),
    ("IpInUnknownProtos", "for a protocol that nobody here speaks"),
    ("IpInDiscards", "no memory for what came in, or refused before routing"),
    ("IpOutDiscards", "no memory for what went out, or the device refused it"),
    ("IpOutNoRoutes", "no route to the destination"),
    ("IpReasmFails", "fragments that never became whole"),
    ("IpFragFails", "too large for the way out, and may not be fragmented (MTU)"),
    ("IpExtInNoRoutes", "no route back to, or on for, what came in"),
    ("IpExtInTruncatedPkts", "shorter than they say"),
    ("IpExtInCsumErrors", "wrong IP checksums"),
    ("Ip6InHdrErrors", "damaged or expired IPv6 headers"),
    ("Ip6InTooBigErrors", "too large for the way out (MTU)"),
    ("Ip6InNoRoutes", "no route for what came in"),
    ("Ip6InAddrErrors", "for an address that this host does not serve"),
    ("Ip6InUnknownProtos", "for a protocol that nobody here speaks"),
    ("Ip6InTruncatedPkts", "shorter than they say"),
    ("Ip6InDiscards", "refused before routing, or no memory"),
    ("Ip6OutDiscards", "no memory for what went out, or the device refused it"),
    ("Ip6OutNoRoutes", "no route to the destination"),
    ("Ip6ReasmFails", "fragments that never became whole"),
    ("Ip6FragFails", "too large for the way out (MTU)"),
    ("IcmpInErrors", "ICMP messages that make no sense here"),
    ("IcmpInCsumErrors", "wrong ICMP checksums"),
    ("Icmp6InErrors", "ICMPv6 messages that make no sense here"),
    ("Icmp6InCsumErrors", "wrong ICMPv6 checksums"),
    ("TcpInErrs", "damaged TCP segments"),
    ("TcpInCsumErrors", "wrong TCP checksums"),
    ("UdpNoPorts", "UDP for a port that nobody listens on"),
    ("UdpInErrors", "UDP that its receiver did not get, for any reason"),
    ("UdpRcvbufErrors", "receive buffer full: its reader is too slow"),
    ("UdpSndbufErrors", "send buffer full"),
    ("UdpInCsumErrors", "wrong UDP checksums"),
    ("UdpMemErrors", "all of UDP's memory is taken (net.ipv4.udp_mem)"),
    ("Udp6NoPorts", "UDP for a port that nobody listens on"),
    ("Udp6InErrors", "UDP that its receiver did not get, for any reason"),
    ("Udp6RcvbufErrors", "receive buffer full: its reader is too slow"),
    ("Udp6SndbufErrors", "send buffer full"),
    ("Udp6InCsumErrors", "wrong UDP checksums"),
    ("Udp6MemErrors", "all of UDP's memory is taken (net.ipv4.udp_mem)"),
    ("TcpExtListenOverflows", "accept queue full: the listener does not accept fast enough"),
    ("TcpExtListenDrops", "connections that a listener refused, for any reason"),
    ("TcpExtTCPBacklogDrop", "socket backlog full: its process is stalled"),
    ("TcpExtPFMemallocDrop", "no memory but the emergency reserve"),
    ("TcpExtTCPMinTTLDrop", "TTL below the socket's minimum (IP_MINTTL)"),
    ("TcpExtTCPDeferAcceptDrop", "handshakes that carried no data (TCP_DEFER_ACCEPT); routine"),
    ("TcpExtIPReversePathFilter", "reverse path filter (rp_filter): the reply would leave elsewhere"),
    ("TcpExtTCPReqQFullDrop", "queue of half-open connections full, without SYN cookies"),
    ("TcpExtTCPOFODrop", "no room for segments out of order"),
    ("TcpExtTCPRcvQDrop", "receive queue full"),
    ("TcpExtTCPZeroWindowDrop", "data although the window was closed: the reader is stalled"),
    ("TcpExtPAWSActive", "timestamp too old for a connection that is being opened"),
    ("TcpExtPAWSEstab", "timestamp too old for its connection"),
    ("TcpExtTCPMD5NotFound", "no TCP MD5 signature where one is needed"),
    ("TcpExtTCPMD5Unexpected", "a TCP MD5 signature where none is known"),
    ("TcpExtTCPMD5Failure", "wrong TCP MD5 signatures"),
    ("TcpExtTCPTimeWaitOverflow", "too many closed connections to remember (tcp_max_tw_buckets)"),
    ("TcpExtRcvPruned", "receive buffer full even after it was squeezed"),
    ("TcpExtOfoPruned", "segments out of order given up for want of room"),
    ("TcpExtTCPAbortOnMemory", "connections closed for want of memory (net.ipv4.tcp_mem)"),
    ("nf_conntrack drop", "not tracked, so dropped: no room, or no memory"),
    ("nf_conntrack early_drop", "connections given up early, to make room for others"),
    (
        "nf_conntrack insert_failed",
        "another connection with the same addresses and ports came first (races of NAT, DNS)",
    ),
    ("nf_conntrack icmp_error", "ICMP errors that belong to no connection, or are damaged"),
    ("nf_conntrack chaintoolong", "too many connections under one hash value"),
    ("arp_cache unresolved_discards", "waited for a neighbour that did not answer"),
    ("arp_cache table_fulls", "no room for another neighbour (gc_thresh3)"),
    ("ndisc_cache unresolved_discards", "waited for a neighbour that did not answer"),
    ("ndisc_cache table_fulls", "no room for another neighbour (gc_thresh3)"),
];

/// What a counter means; `None` for one that counts no drops.
fn meaning(count: &Count) -> Option<&'static str> {
    match count.by {
        Counter::Softnet => Some("backlog of a CPU full: one CPU gets more packets than it can take"),
        Counter::Ipsec => Some("dropped by IPsec (Documentation/networking/xfrm_proc.rst says which why)"),
        Counter::Cilium => Some("dropped by Cilium's datapath"),
        Counter::Qdisc if count.name.ends_with(" qdisc clsact") => Some("dropped by tc filters or programs"),
        Counter::Qdisc => Some("queue to the device full, or limited"),
        Counter::Device => Some("dropped or damaged at the device"),
        _ => MEANINGS.iter().find(|(name, _)| *name == count.name).map(|(_, meaning)| *meaning),
    }
}

/// What is counted, at one time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading<'a> {
    /// By the kernel, drivers, Cilium.
    pub counts: &'a [Count],
    /// By rules.
    pub tables: &'a [Table],
}

/// A counter's name, wherever it is.
type Key = (Counter, Option<u32>, String, String);

/// The rows: what drops still first, the fastest first, then by count. `netns` is that of the counters but for rules.
#[must_use]
pub fn rows(netns: u32, before: Reading<'_>, after: Reading<'_>, between: Duration) -> Vec<Dropped> {
    let earlier: HashMap<Key, u64> =
        counted(netns, before).into_iter().map(|row| (key(&row), row.count)).collect();
    let mut rows: Vec<Dropped> = counted(netns, after)
        .into_iter()
        .map(|row| {
            // A rule set that was replaced meanwhile counts from 0.
            let more = earlier.get(&key(&row)).and_then(|before| row.count.checked_sub(*before));
            let seconds = between.as_secs_f64().max(0.001);
            let rate = more.map(|more| (more as f64 / seconds * 10.0).round() / 10.0);
            Dropped { more, rate, ..row }
        })
        .filter(|row| row.count > 0)
        .collect();
    // Rules of what could not be read again.
    let seen: std::collections::HashSet<Key> = rows.iter().map(key).collect();
    let lost = counted(netns, before).into_iter().filter(|row| row.count > 0 && !seen.contains(&key(row)));
    let lost: Vec<_> = lost.filter(|row| earlier.contains_key(&key(row)) && is_rule(row)).collect();
    rows.extend(lost);
    rows.sort_by(|a, b| {
        let order = |row: &Dropped| (Reverse(row.more.unwrap_or(0)), Reverse(row.count), row.by);
        order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
    });
    rows
}

fn is_rule(row: &Dropped) -> bool {
    matches!(row.by, Counter::Rule | Counter::Policy)
}

fn key(row: &Dropped) -> Key {
    (row.by, row.netns, row.name.clone(), row.source.clone())
}

/// Rows without rates.
fn counted(netns: u32, reading: Reading<'_>) -> Vec<Dropped> {
    let of_kernel = reading.counts.iter().filter_map(|count| {
        // Tables of neighbours, CPUs and Cilium are the whole machine's.
        let is_machines = matches!(count.by, Counter::Softnet | Counter::Neighbour | Counter::Cilium);
        Some(Dropped {
            by: count.by,
            netns: (!is_machines).then_some(netns),
            pod: None,
            name: count.name.clone(),
            text: Some(meaning(count)?.to_owned()),
            owner: None,
            source: count.source.clone(),
            count: count.count,
            more: None,
            rate: None,
        })
    });
    of_kernel.chain(reading.tables.iter().flat_map(of_table)).collect()
}

fn of_table(table: &Table) -> impl Iterator<Item = Dropped> + '_ {
    let row = |by, name, text, owner: &str, count| Dropped {
        by,
        netns: Some(table.netns),
        pod: None,
        name,
        text,
        owner: (!owner.is_empty()).then(|| owner.to_owned()),
        source: table.source.to_owned(),
        count,
        more: None,
        rate: None,
    };
    let rules = table.rules.iter().filter(|rule| rule.drops).filter_map(move |rule| {
        let name = match (rule.number, rule.handle) {
            (Some(number), _) => format!("{}:{}:rule:{number}", table.name, rule.chain),
            (None, handle) => {
                let handle = handle.unwrap_or(0);
                format!("{}:{}:{}:handle:{handle}", table.family.name(), table.name, rule.chain)
            }
        };
        let text = (!rule.text.is_empty()).then(|| rule.text.clone());
        Some(row(Counter::Rule, name, text, rule.owner, rule.packets?))
    });
    let policies = table.bases.iter().filter(|base| base.drops).filter_map(move |base| {
        let name = format!("{}:{}:policy", table.name, base.chain);
        let text = Some("no rule of the chain accepted them, and its policy drops".to_owned());
        Some(row(Counter::Policy, name, text, base.owner, base.packets?))
    });
    rules.chain(policies)
}

/// How many rules and policies can drop without that anything counts it, in each table that has such.
#[must_use]
pub fn uncounted(tables: &[Table]) -> usize {
    let rules =
        tables.iter().flat_map(|table| &table.rules).filter(|rule| rule.drops && rule.packets.is_none());
    let bases =
        tables.iter().flat_map(|table| &table.bases).filter(|base| base.drops && base.packets.is_none());
    rules.count() + bases.count()
}

#[cfg(test)]
mod tests {
    use super::super::rules::{Base, Id, Rule};
    use super::*;
    use crate::netfilter::model::{Backend, Family};

    fn table(rules: &[(u32, bool, Option<u64>)], policy: Option<u64>) -> Table {
        let id = Id { netns: 7, backend: Backend::Legacy, family: Family::Ipv4, name: "filter".to_owned() };
        let listing = "*filter\nCOMMIT\n";
        let mut table = Table::saved(&id, listing).unwrap();
        table.rules = rules
            .iter()
            .map(|(number, drops, packets)| Rule {
                chain: "INPUT".to_owned(),
                number: Some(*number),
                drops: *drops,
                packets: *packets,
                owner: "docker",
                ..Rule::default()
            })
            .collect();
        table.bases =
            vec![Base { chain: "FORWARD".to_owned(), drops: true, packets: policy, ..Base::default() }];
        table
    }

    #[test]
    fn what_still_drops_comes_first_and_zeroes_are_left_out() {
        let count = |by, name: &str, count| Count::new(by, name, "/proc", count);
        let before = [
            count(Counter::Protocol, "UdpNoPorts", 900),
            count(Counter::Softnet, "softnet dropped", 5),
            count(Counter::Protocol, "IpForwDatagrams", 10_000),
            count(Counter::Protocol, "UdpInErrors", 0),
        ];
        let after = before.clone();
        let tables = [table(&[(1, true, Some(3)), (2, false, Some(50)), (3, true, Some(0))], Some(40))];
        let later = [table(&[(1, true, Some(13)), (2, false, Some(60)), (3, true, Some(1))], Some(40))];
        let rows = rows(
            7,
            Reading { counts: &before, tables: &tables },
            Reading { counts: &after, tables: &later },
            Duration::from_secs(2),
        );
        let told: Vec<_> = rows.iter().map(|row| (&*row.name, row.count, row.rate, row.netns)).collect();
        assert_eq!(
            told,
            [
                ("filter:INPUT:rule:1", 13, Some(5.0), Some(7)),
                ("filter:INPUT:rule:3", 1, Some(0.5), Some(7)),
                ("UdpNoPorts", 900, Some(0.0), Some(7)),
                ("filter:FORWARD:policy", 40, Some(0.0), Some(7)),
                ("softnet dropped", 5, Some(0.0), None),
            ]
        );
        assert_eq!(rows[0].owner.as_deref(), Some("docker"));
    }

    #[test]
    fn a_rule_set_that_was_replaced_or_is_gone_has_no_rate() {
        let tables = [table(&[(1, true, Some(30))], None)];
        let later = [table(&[(1, true, Some(2))], None)];
        let with = |tables| Reading { counts: &[], tables };
        let replaced = rows(7, with(&tables), with(&later), Duration::from_secs(2));
        assert_eq!((replaced[0].count, replaced[0].more, replaced[0].rate), (2, None, None));
        let gone = rows(7, with(&tables), with(&[]), Duration::from_secs(2));
        assert_eq!((gone.len(), gone[0].count, gone[0].more), (1, 30, None));
        assert_eq!(uncounted(&tables), 1);
    }

    #[test]
    fn every_counter_that_is_known_has_a_meaning_of_its_own() {
        let mut names: Vec<_> = MEANINGS.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MEANINGS.len());
    }
}
