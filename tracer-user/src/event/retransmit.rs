//! Segments that TCP repeated, as what is said where a filter finds no drop. A pure function of the kernel half's counts.

use super::model::{Drop, Endpoint, Network, Peer, Stalled};
use crate::filter::{Filter, matches};
use crate::identity::names::Names;
use std::net::{IpAddr, Ipv6Addr};
use tracer_common::Retransmit;

/// Peers that are told.
const TOLD: usize = 5;
/// IPPROTO_TCP (IANA protocol numbers).
const TCP: u16 = 6;

/// What was seen of connections that the filter means, added to what is known of the while.
pub fn stalled<'a>(
    new: impl Iterator<Item = (&'a Retransmit, u64)>,
    filter: &Filter,
    names: &mut Names,
    mut told: Stalled,
) -> Stalled {
    let others =
        Filter { words: filter.words.iter().filter(|word| word.flag.end().is_none()).cloned().collect() };
    told.filter = filter.to_string();
    for (key, count) in new {
        let Retransmit { source, destination, netns, port, .. } = *key;
        if names.is_filtered() && !names.selected().means(source, destination, (TCP, port), netns) {
            continue;
        }
        let end = |address: [u8; 16], port| Endpoint { address: Some(ip(address)), port, k8s: None };
        let mut drop = Drop {
            time: told.time,
            source: end(source, None),
            destination: end(destination, Some(port)),
            network: Network {
                family: Some(if ip(destination).is_ipv4() { "ipv4" } else { "ipv6" }.to_owned()),
                transport: Some("tcp".to_owned()),
                netns: Some(netns).filter(|netns| *netns != 0),
                ..Network::default()
            },
            ..Drop::default()
        };
        if !matches(&others, &drop) {
            continue;
        }
        names.name(&mut drop);
        told.retransmits += count;
        let Drop { source, destination, .. } = drop;
        told.peers.push(Peer { source, destination, retransmits: count, answered: key.is_syn == 0 });
    }
    told.peers.sort_by_key(|peer| (std::cmp::Reverse(peer.retransmits), peer.destination.address));
    told.peers.truncate(TOLD);
    told
}

fn ip(address: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Flag, RawWord, Side};

    fn key(destination: &str, port: u16, is_syn: u8) -> Retransmit {
        let destination: std::net::Ipv4Addr = destination.parse().unwrap();
        Retransmit {
            destination: destination.to_ipv6_mapped().octets(),
            port,
            is_syn,
            ..Retransmit::default()
        }
    }

    #[test]
    fn what_the_filter_does_not_mean_is_left_out() {
        let word = RawWord { flag: Flag::Ip(Side::To), text: "10.0.0.0/24".to_owned(), negated: false };
        let filter = Filter::parse(&[word], &|_| unreachable!()).unwrap();
        let seen = [(key("10.0.0.1", 80, 1), 3), (key("10.0.0.2", 80, 0), 5), (key("10.1.0.1", 80, 1), 7)];
        let new = seen.iter().map(|(key, count)| (key, *count));
        let told =
            stalled(new, &filter, &mut Names::default(), Stalled { seconds: 10, ..Stalled::default() });
        assert_eq!((told.retransmits, told.seconds), (8, 10));
        assert_eq!(told.filter, "--to-ip 10.0.0.0/24");
        let peers: Vec<_> = told
            .peers
            .iter()
            .map(|peer| (peer.destination.address.unwrap().to_string(), peer.answered))
            .collect();
        assert_eq!(peers, [("10.0.0.2".to_owned(), true), ("10.0.0.1".to_owned(), false)]);
    }
}
