//! Addresses of a network namespace's interfaces, as /proc/PID/net tells them to whoever may read it: nothing enters the
//! namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// More are not kept.
const MOST: usize = 64;

/// Addresses in the texts of /proc/PID/net/fib_trie and /proc/PID/net/if_inet6, loopback and link-local ones left out.
pub(super) fn read(fib_trie: &str, if_inet6: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for address in v4(fib_trie).map(IpAddr::V4).chain(v6(if_inet6).map(IpAddr::V6)) {
        if found.len() < MOST && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// The kernel's routes (net/ipv4/fib_trie.c, fib_trie_seq_show): a leaf is `|-- ADDRESS`, followed by a line for each
/// route; that of an address of the own is `/32 host LOCAL`.
fn v4(text: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut leaf = None;
    text.lines().filter_map(move |line| {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        }
        let is_own = line.starts_with("/32 host LOCAL");
        leaf.filter(|address: &Ipv4Addr| is_own && !address.is_loopback() && !address.is_link_local())
    })
}

/// A line for each address (net/ipv6/addrconf.c, if6_seq_show): 32 hexadecimal digits, interface, length of the
/// prefix, scope (0 is global, 0x40 site-local), flags, name.
fn v6(text: &str) -> impl Iterator<Item = Ipv6Addr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (address, scope) = (words.next()?, words.nth(2)?);
        let address = Ipv6Addr::from_bits(u128::from_str_radix(address, 16).ok()?);
        matches!(scope, "00" | "40").then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB_TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.88.0.0/24 2 0 2
        |-- 10.88.0.0
           /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.88.0.0/24 2 0 2
        |-- 10.88.0.7
           /32 host LOCAL
        |-- 10.88.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
     |-- 169.254.1.1
        /32 host LOCAL
Local:
     |-- 10.88.0.7
        /32 host LOCAL
";
    const IF_INET6: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fd880000000000000000000000000007 02 40 00 80     eth0
fe80000000000000588fbefffe1b6fc1 02 40 20 80     eth0
";

    #[test]
    fn addresses_of_a_pod() {
        let expected: [IpAddr; 2] = ["10.88.0.7".parse().unwrap(), "fd88::7".parse().unwrap()];
        assert_eq!(read(FIB_TRIE, IF_INET6), expected);
    }

    #[test]
    fn what_is_no_address_is_left_out() {
        for odd in
            ["", "|-- ", "/32 host LOCAL", "|-- 10.0.0.1\n/24 host LOCAL", "|-- 10.0.0\n/32 host LOCAL"]
        {
            assert!(read(odd, "").is_empty(), "{odd}");
        }
        for odd in ["zz 02 40 00", "fd88", &format!("{} 02 40 00 80 eth0", "f".repeat(33))] {
            assert!(read("", odd).is_empty(), "{odd}");
        }
        let many: String = (0..200).map(|n| format!("|-- 10.0.0.{n}\n   /32 host LOCAL\n")).collect();
        assert_eq!(read(&many, "").len(), MOST);
    }

    #[test]
    fn the_own_addresses_are_readable() {
        let read_own =
            |name: &str| std::fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
        // Whatever this machine has: loopback is not among it.
        let found = read(&read_own("fib_trie"), &read_own("if_inet6"));
        assert!(found.iter().all(|address| !address.is_loopback()), "{found:?}");
    }
}
