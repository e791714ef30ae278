//! Connections that nobody has answered, as what is said where a filter finds no drop. A pure function of what connection
//! tracking has.

use super::model::{Conntrack, Drop, Endpoint, Network, Stalled, Unreplied};
use super::packet::transport_name;
use crate::filter::{Filter, matches};
use crate::identity::names::Names;
use crate::probe::connections::{Table, Unanswered};
use std::collections::HashMap;
use std::net::IpAddr;

/// Peers that are told.
const TOLD: usize = 5;

/// What the filter means of them, added to what is known of the while.
pub fn unanswered(table: &Table, filter: &Filter, names: &mut Names, mut told: Stalled) -> Stalled {
    let others =
        Filter { words: filter.words.iter().filter(|word| word.flag.end().is_none()).cloned().collect() };
    let mut peers: HashMap<Peer, (u64, Drop)> = HashMap::new();
    let mut count = 0;
    for connection in &table.connections {
        let drop = as_drop(connection, table.netns, &told);
        let is_to_somebody = is_to_somebody(connection.original.destination);
        if !is_to_somebody || !names.means(&drop) || !matches(&others, &drop) {
            continue;
        }
        count += 1;
        let Unanswered { original, reply } = connection;
        let peer = (original.protocol, original.source, reply.source, reply.source_port);
        peers.entry(peer).or_insert_with(|| (0, drop)).0 += 1;
    }
    let mut peers: Vec<(Peer, (u64, Drop))> = peers.into_iter().collect();
    peers.sort_by_key(|(peer, (connections, _))| (std::cmp::Reverse(*connections), *peer));
    told.unreplied = Some(count);
    told.unreplied_peers = peers
        .into_iter()
        .take(TOLD)
        .map(|(_, (connections, mut drop))| {
            names.name(&mut drop);
            let Drop { source, destination, network, .. } = drop;
            let source = Endpoint { port: None, ..source };
            Unreplied { source, destination, transport: network.transport, connections }
        })
        .collect();
    told
}

/// Protocol, who asks, who does not answer and at which port.
type Peer = (Option<u8>, IpAddr, IpAddr, Option<u16>);

/// Nobody need answer what is for everybody.
fn is_to_somebody(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_multicast(),
    }
}

/// The connection as a packet that goes its way, after the destination was translated: filters and names know drops.
fn as_drop(connection: &Unanswered, netns: Option<u32>, told: &Stalled) -> Drop {
    let (original, reply) = (connection.original.ends(), connection.reply.ends());
    let family = if connection.original.source.is_ipv4() { "ipv4" } else { "ipv6" };
    Drop {
        time: told.time,
        source: original.source.clone(),
        destination: reply.source.clone(),
        network: Network {
            family: Some(family.to_owned()),
            transport: connection.original.protocol.map(|number| transport_name(number).into_owned()),
            netns,
            ..Network::default()
        },
        conntrack: Some(Conntrack {
            state: "new".to_owned(),
            direction: Some("original".to_owned()),
            original,
            reply,
            ..Conntrack::default()
        }),
        ..Drop::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::conntrack::Tuple;
    use crate::filter::{Flag, RawWord, Side};

    fn tuple(protocol: u8, source: &str, destination: &str) -> Tuple {
        let ends = [source, destination].map(|end| end.parse::<std::net::SocketAddr>().unwrap());
        let port = |end: std::net::SocketAddr| (protocol != 1).then_some(end.port());
        Tuple {
            source: ends[0].ip(),
            destination: ends[1].ip(),
            protocol: Some(protocol),
            source_port: port(ends[0]),
            destination_port: port(ends[1]),
            icmp: (protocol == 1).then_some((1, 8, 0)),
        }
    }

    fn plain(protocol: u8, source: &str, destination: &str) -> Unanswered {
        let (original, reply) = (tuple(protocol, source, destination), tuple(protocol, destination, source));
        Unanswered { original, reply }
    }

    fn told(flag: Flag, text: &str, connections: &[Unanswered]) -> (Option<u64>, Vec<String>) {
        let word = RawWord { flag, text: text.to_owned(), negated: false };
        let filter = Filter::parse(&[word], &|_| unreachable!()).unwrap();
        let table = Table { netns: Some(7), connections: connections.to_vec() };
        let told = unanswered(&table, &filter, &mut Names::default(), Stalled::default());
        let shown = |peer: &Unreplied| {
            let end = &peer.destination;
            let port = end.port.map(|port| format!(":{port}")).unwrap_or_default();
            let transport = peer.transport.as_deref().unwrap_or_default();
            format!("{} {transport} {}{port}", peer.connections, end.address.unwrap())
        };
        (told.unreplied, told.unreplied_peers.iter().map(shown).collect())
    }

    #[test]
    fn connections_are_counted_by_peer() {
        let mut all = vec![
            plain(17, "10.0.0.1:4000", "10.0.0.9:53"),
            plain(1, "10.0.0.1:0", "10.0.0.8:0"),
            plain(17, "10.0.0.1:4001", "10.0.0.9:53"),
            // Of another one.
            plain(17, "10.0.0.2:4000", "10.0.0.9:53"),
            // For everybody.
            plain(17, "10.0.0.1:4000", "224.0.0.251:5353"),
            plain(17, "10.0.0.1:4000", "255.255.255.255:67"),
        ];
        let own = (Some(3), vec!["2 udp 10.0.0.9:53".to_owned(), "1 icmp 10.0.0.8".to_owned()]);
        assert_eq!(told(Flag::Ip(Side::From), "10.0.0.1", &all), own);
        assert_eq!(told(Flag::Protocol, "icmp", &all), (Some(1), vec!["1 icmp 10.0.0.8".to_owned()]));
        assert_eq!(told(Flag::Ip(Side::From), "10.9.0.0/16", &all), (Some(0), vec![]));
        all.extend((1..100).map(|host| plain(6, "10.0.0.1:5000", &format!("10.1.0.{host}:80"))));
        let (count, peers) = told(Flag::Ip(Side::From), "10.0.0.1", &all);
        assert_eq!((count, peers.len(), peers[0].as_str()), (Some(102), TOLD, "2 udp 10.0.0.9:53"));
    }

    #[test]
    fn a_filter_means_what_was_dialled_and_what_it_became() {
        let translated = [Unanswered {
            original: tuple(17, "10.0.0.1:4000", "10.96.0.10:53"),
            reply: tuple(17, "10.0.0.9:5353", "192.0.2.1:61000"),
        }];
        let is_told = |address| {
            let (count, peers) = told(Flag::Ip(Side::Either), address, &translated);
            (count == Some(1)).then(|| peers[0].clone())
        };
        for address in ["10.0.0.1", "10.96.0.10", "10.0.0.9", "192.0.2.1"] {
            assert_eq!(is_told(address).as_deref(), Some("1 udp 10.0.0.9:5353"), "{address}");
        }
        assert_eq!(is_told("10.0.0.2"), None);
    }
}
