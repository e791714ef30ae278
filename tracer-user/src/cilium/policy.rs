//! A packet looked up in a policy map as the datapath does it (bpf/lib/policy.h), and what would have allowed it.

use super::maps::{Direction, PolicyEntry, PolicyLayout, PolicyMap};
use std::cmp::Reverse;

/// What the datapath looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The other side's identity.
    pub peer: u32,
    /// Which way the packet goes.
    pub direction: Direction,
    /// Its IP protocol.
    pub protocol: u8,
    /// Its destination port: [`port`].
    pub port: u16,
}

/// The answer of a policy map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'m> {
    /// This entry allows it.
    Allowed(&'m PolicyEntry),
    /// This entry allows it, once the peers have authenticated in that way.
    Authenticate(&'m PolicyEntry, u8),
    /// This entry denies it.
    Denied(&'m PolicyEntry),
    /// No entry is about it: it is denied.
    Nothing,
}

/// What the datapath takes for a packet's destination port: the ICMP type for ICMP (its ICMP rules are on unless turned
/// off), 0 for protocols without ports; `None` if that is not known.
#[must_use]
pub fn port(protocol: u8, port: Option<u16>, icmp_type: Option<u8>) -> Option<u16> {
    const ICMP: [u8; 2] = [1, 58];
    // TCP, UDP, SCTP.
    const WITH_PORTS: [u8; 3] = [6, 17, 132];
    match protocol {
        _ if ICMP.contains(&protocol) => icmp_type.map(u16::from),
        _ if WITH_PORTS.contains(&protocol) => port,
        _ => Some(0),
    }
}

/// What a policy map does with a packet.
#[must_use]
pub fn look_up<'m>(map: &'m PolicyMap, question: &Question) -> Verdict<'m> {
    // Two lookups, of which each finds its longest match: for this peer, and for any.
    let best = |identity| {
        let is_about = |entry: &&PolicyEntry| entry.identity == identity && covers(entry, question);
        map.entries.iter().filter(is_about).max_by_key(|entry| length(entry))
    };
    let (peers, anyones) = (best(question.peer), best(0));
    let (chosen, other) = match (peers, anyones) {
        (None, None) => return Verdict::Nothing,
        (Some(chosen), None) | (None, Some(chosen)) => (chosen, None),
        (Some(peers), Some(anyones)) if is_stronger(map.layout, anyones, peers) => (anyones, Some(peers)),
        (Some(peers), Some(anyones)) => (peers, Some(anyones)),
    };
    if chosen.is_deny {
        return Verdict::Denied(chosen);
    }
    // An entry that only inherited how to authenticate takes the other's, if that wants more.
    let inherited = other.filter(|_| !chosen.is_auth_its_own).map_or(0, |other| other.auth);
    match chosen.auth.max(inherited) {
        0 => Verdict::Allowed(chosen),
        auth => Verdict::Authenticate(chosen, auth),
    }
}

/// True if an entry for any peer is chosen before one for this peer.
fn is_stronger(layout: PolicyLayout, anyones: &PolicyEntry, peers: &PolicyEntry) -> bool {
    let key = |entry: &PolicyEntry| match layout {
        // The first that matches, from ports to no ports.
        PolicyLayout::V12 => (false, 0, length(entry)),
        PolicyLayout::V14 | PolicyLayout::V17 | PolicyLayout::V18 => {
            (entry.is_deny, entry.precedence, length(entry))
        }
        PolicyLayout::V19 => (false, entry.precedence, length(entry)),
    };
    key(anyones) > key(peers)
}

/// Bits of protocol and port that an entry decides on.
fn length(entry: &PolicyEntry) -> u8 {
    match (entry.protocol, entry.ports) {
        (None, _) => 0,
        (Some(_), None) => 8,
        (Some(_), Some(ports)) => 8 + ports.bits,
    }
}

/// True if an entry is about such packets, whoever the peer is.
fn covers(entry: &PolicyEntry, question: &Question) -> bool {
    entry.direction == question.direction
        && entry.protocol.is_none_or(|protocol| protocol == question.protocol)
        && entry.ports.is_none_or(|ports| ports.contain(question.port))
}

/// The entries that come nearest to allowing a packet, the nearest first: of this peer; of any peer; of other peers, for
/// such packets; the rest.
#[must_use]
pub fn nearest<'m>(map: &'m PolicyMap, question: &Question, most: usize) -> Vec<&'m PolicyEntry> {
    let distance = |entry: &PolicyEntry| {
        let group = match entry.identity {
            identity if identity == question.peer => 0,
            0 => 1,
            _ if covers(entry, question) => 2,
            _ => 3,
        };
        let is_other = entry.protocol.is_some_and(|protocol| protocol != question.protocol);
        let away = entry.ports.map_or(0, |ports| {
            let (first, last) = (ports.first, ports.last());
            first.saturating_sub(question.port).max(question.port.saturating_sub(last))
        });
        (group, is_other, away, Reverse(length(entry)), entry.identity, entry.ports.map(|ports| ports.first))
    };
    let allows = |entry: &&PolicyEntry| !entry.is_deny && entry.direction == question.direction;
    let mut entries: Vec<_> = map.entries.iter().filter(allows).collect();
    // A map may have tens of thousands: only those that are told are sorted.
    if entries.len() > most {
        entries.select_nth_unstable_by_key(most, |entry| distance(entry));
        entries.truncate(most);
    }
    entries.sort_by_cached_key(|entry| distance(entry));
    entries
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::allow;
    use super::super::maps::Ports;
    use super::*;

    const ASKED: Question = Question { peer: 2, direction: Direction::Ingress, protocol: 6, port: 9999 };

    fn deny(entry: PolicyEntry) -> PolicyEntry {
        PolicyEntry { is_deny: true, ..entry }
    }

    fn verdict(
        layout: PolicyLayout,
        entries: &[PolicyEntry],
        question: &Question,
    ) -> Result<PolicyEntry, u8> {
        let map = PolicyMap { layout, entries: entries.to_vec(), is_complete: true };
        match look_up(&map, question) {
            Verdict::Allowed(entry) => Ok(*entry),
            Verdict::Authenticate(..) => Err(189),
            Verdict::Denied(_) => Err(181),
            Verdict::Nothing => Err(133),
        }
    }

    const ALL: [PolicyLayout; 5] =
        [PolicyLayout::V12, PolicyLayout::V14, PolicyLayout::V17, PolicyLayout::V18, PolicyLayout::V19];

    #[test]
    fn an_empty_map_denies_and_an_open_one_allows() {
        for layout in ALL {
            assert_eq!(verdict(layout, &[], &ASKED), Err(133));
            let open = allow(0, None, None);
            assert_eq!(verdict(layout, &[open], &ASKED), Ok(open));
            let egress = PolicyEntry { direction: Direction::Egress, ..open };
            assert_eq!(verdict(layout, &[egress], &ASKED), Err(133));
        }
    }

    #[test]
    fn entries_are_for_a_peer_a_protocol_and_ports() {
        let entry = allow(4711, Some(6), Some(8080));
        let host = allow(1, None, None);
        for layout in ALL {
            let is = |peer, protocol, port| {
                verdict(layout, &[entry, host], &Question { peer, protocol, port, ..ASKED })
            };
            assert_eq!(is(4711, 6, 8080), Ok(entry));
            assert_eq!(
                [is(2, 6, 9999), is(2, 6, 8080), is(4711, 17, 8080), is(4711, 6, 8081)],
                [Err(133); 4]
            );
            assert_eq!(is(1, 17, 53), Ok(host));
        }
        let range = PolicyEntry { ports: Ports::of(8080, 12), ..entry };
        let in_range = |port| verdict(PolicyLayout::V17, &[range], &Question { peer: 4711, port, ..ASKED });
        assert_eq!([in_range(8095), in_range(8096)], [Ok(range), Err(133)]);
    }

    #[test]
    fn a_peers_own_entry_wins_only_if_as_long() {
        let (wide, long) = (allow(2, Some(6), None), allow(0, Some(6), Some(9999)));
        let own = allow(2, Some(6), Some(9999));
        for layout in ALL {
            assert_eq!(verdict(layout, &[wide, long], &ASKED), Ok(long));
            assert_eq!(verdict(layout, &[own, long], &ASKED), Ok(own));
            // The longest of one peer's decides.
            assert_eq!(verdict(layout, &[deny(wide), own], &ASKED), Ok(own));
        }
    }

    #[test]
    fn deny_wins_until_precedence_says_more() {
        let (wide, own) = (deny(allow(0, None, None)), allow(2, Some(6), Some(9999)));
        for layout in [PolicyLayout::V14, PolicyLayout::V17, PolicyLayout::V18] {
            assert_eq!(verdict(layout, &[wide, own], &ASKED), Err(181));
            assert_eq!(verdict(layout, &[deny(own), allow(0, None, None)], &ASKED), Err(181));
        }
        let with = |precedence, entry| PolicyEntry { precedence, ..entry };
        let v19 = PolicyLayout::V19;
        assert_eq!(verdict(v19, &[with(u32::MAX, wide), with(9, own)], &ASKED), Err(181));
        assert_eq!(verdict(v19, &[with(8, wide), with(9, own)], &ASKED), Ok(with(9, own)));
        // A proxy's priority is before length.
        let proxied = with(5, allow(0, None, None));
        assert_eq!(verdict(PolicyLayout::V18, &[proxied, own], &ASKED), Ok(proxied));
    }

    #[test]
    fn authentication_is_the_entrys_own_or_inherited() {
        let own = allow(2, Some(6), Some(9999));
        let wanting = PolicyEntry { auth: 1, ..allow(0, None, None) };
        let is = |entries: &[PolicyEntry]| verdict(PolicyLayout::V18, entries, &ASKED);
        assert_eq!(is(&[wanting]), Err(189));
        assert_eq!(is(&[own, wanting]), Err(189));
        let explicit = PolicyEntry { is_auth_its_own: true, ..own };
        assert_eq!(is(&[explicit, wanting]), Ok(explicit));
        assert_eq!(is(&[deny(PolicyEntry { auth: 1, ..own })]), Err(181));
    }

    #[test]
    fn the_nearest_first() {
        let far = allow(2, Some(6), Some(80));
        let near = allow(2, Some(6), Some(9998));
        let udp = allow(2, Some(17), Some(9999));
        let any = allow(0, Some(6), Some(443));
        let same = allow(4711, Some(6), Some(9999));
        let host = allow(1, None, None);
        let rest = allow(4711, Some(6), Some(8080));
        let hidden = [deny(near), PolicyEntry { direction: Direction::Egress, ..near }];
        let entries = [rest, host, same, any, udp, far, near, hidden[0], hidden[1]];
        let map = PolicyMap { layout: PolicyLayout::V18, entries: entries.to_vec(), is_complete: true };
        let found = nearest(&map, &ASKED, 9);
        assert_eq!(found, [&near, &far, &udp, &any, &same, &host, &rest]);
        assert_eq!(nearest(&map, &ASKED, 2), [&near, &far]);
    }

    #[test]
    fn the_port_that_is_looked_up() {
        assert_eq!(port(6, Some(80), None), Some(80));
        assert_eq!(port(132, None, None), None);
        assert_eq!(port(1, None, Some(8)), Some(8));
        assert_eq!(port(58, Some(7), Some(128)), Some(128));
        assert_eq!(port(58, Some(7), None), None);
        assert_eq!(port(47, None, None), Some(0));
    }
}
