//! Filters as the kernel half evaluates them: for each dimension a map from a value to the kinds of words
//! ([`filter_bit`]) that it satisfies.
//!
//! How the kernel half reads them:
//!
//! - A tuple's ends are looked up, `source` and `destination`, in the address map (longest prefix) and, where the
//!   transport has ports, in the port map. Of the bits found, a tuple has `EITHER` if either end has it, `FROM` if
//!   the source has it, `TO` if the destination has it; the same for the unwanted `NOT_EITHER`, `NOT_FROM` and
//!   `NOT_TO`. What is absent (no IP header, no ports, no such key) has no bits.
//! - The tuples are the packet's; the original and the reply one of its conntrack entry, each swapped where it
//!   describes the other direction than the packet's; and the inner packet's. Any unwanted bit on any tuple
//!   rejects. Wanted: there must be one tuple that has all of `required[ADDRESS]` and all of `required[PORT]`.
//! - Of the other dimensions all bits that are found are joined: of the transport protocol's number and the
//!   ethertype; of the names of `skb->dev`, and the hook's `in` and `out` device; of the netns; of the reason. Any
//!   unwanted bit rejects; all of `required` must be there.
//! - In the protocol dimension `-4` and `-6` use `FROM`, `--protocol` uses `EITHER`: they are different flags, so
//!   both must be satisfied.
//! - A dimension with unwanted words only has `required` 0, and is active.

use super::{Filter, Flag, Glob, Prefix, Side, Value, Word, WordError, near};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tracer_common::{FilterSpec, PrefixKey, dimension, filter_bit};

/// The contents of the kernel half's filter maps, sorted by key, and its load-time constant. The second of each
/// pair is [`filter_bit`] bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// What is asked for.
    pub spec: FilterSpec,
    /// Longest-prefix-match trie: each prefix has the bits of all prefixes that cover it, too.
    pub addresses: Vec<(PrefixKey, u32)>,
    /// Ports, host byte order.
    pub ports: Vec<(u16, u32)>,
    /// Protocol numbers, and ethertypes with [`dimension::ETHERTYPE`] set.
    pub protocols: Vec<(u32, u32)>,
    /// Interface names, NUL-padded.
    pub interfaces: Vec<([u8; 16], u32)>,
    /// Inode numbers of network namespaces.
    pub netns: Vec<(u32, u32)>,
    /// Drop reasons: subsystem in the upper 16 bits, number below.
    pub reasons: Vec<(u32, u32)>,
}

/// Compiles a filter. `reason_names` are the running kernel's drop reasons, without prefix; empty on kernels that
/// have none (before 5.17).
///
/// # Errors
/// A `--reason` that matches none of `reason_names`.
pub fn compile(filter: &Filter, reason_names: &[(u32, String)]) -> Result<Compiled, WordError> {
    let mut spec = FilterSpec::default();
    let mut prefixes: Vec<(Prefix, u32)> = Vec::new();
    let mut ports = Bits::default();
    let mut protocols = Bits::default();
    let mut interfaces = Bits::default();
    let mut netns = Bits::default();
    let mut reasons = Bits::default();
    // Causes are not known in the kernel.
    for word in filter.words.iter().filter(|word| word.flag != Flag::Cause) {
        let bit = word_bit(word);
        let dimension = word_dimension(word.flag);
        spec.active |= dimension;
        if !word.negated {
            spec.required[dimension.trailing_zeros() as usize] |= bit;
        }
        match &word.value {
            Value::Address(prefix) => prefixes.push((*prefix, bit)),
            Value::Port(port) => ports.add(*port, bit),
            Value::Protocol(protocol) => protocols.add(protocol.key(), bit),
            Value::Interface(name) => interfaces.add(interface_key(name), bit),
            Value::Netns(inode) => netns.add(*inode, bit),
            Value::Reason(glob) => {
                for id in expand(word, glob, reason_names)? {
                    reasons.add(id, bit);
                }
            }
            // Which addresses those are changes while the program runs (`identity::select`).
            Value::Pod(_)
            | Value::Namespace(_)
            | Value::Selector(_)
            | Value::Workload(_)
            | Value::Service(_)
            | Value::Cause(_) => {}
        }
    }
    Ok(Compiled {
        spec,
        addresses: trie(&prefixes),
        ports: ports.into_vec(),
        protocols: protocols.into_vec(),
        interfaces: interfaces.into_vec(),
        netns: netns.into_vec(),
        reasons: reasons.into_vec(),
    })
}

/// Bits joined by key.
struct Bits<K>(BTreeMap<K, u32>);

impl<K> Default for Bits<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Bits<K> {
    fn add(&mut self, key: K, bit: u32) {
        *self.0.entry(key).or_default() |= bit;
    }

    fn into_vec(self) -> Vec<(K, u32)> {
        self.0.into_iter().collect()
    }
}

fn word_dimension(flag: Flag) -> u32 {
    match flag {
        Flag::Ip(_) => dimension::ADDRESS,
        Flag::Port(_) => dimension::PORT,
        Flag::Protocol | Flag::Family(_) => dimension::PROTOCOL,
        Flag::Interface => dimension::INTERFACE,
        Flag::Netns => dimension::NETNS,
        Flag::Reason => dimension::REASON,
        Flag::Cause => 0,
        Flag::Pod(_) | Flag::Namespace(_) | Flag::Selector(_) | Flag::Workload(_) | Flag::Service(_) => {
            dimension::END
        }
    }
}

/// The bit of one end.
pub(crate) fn side_bit(side: Side) -> u32 {
    match side {
        Side::Either => filter_bit::EITHER,
        Side::From => filter_bit::FROM,
        Side::To => filter_bit::TO,
    }
}

/// The bit that a word sets, in its dimension.
pub(crate) fn word_bit(word: &Word) -> u32 {
    let wanted = match word.flag {
        Flag::Pod(side) | Flag::Namespace(side) | Flag::Selector(side) | Flag::Workload(side) => {
            side_bit(side)
        }
        Flag::Service(side) => side_bit(side) << filter_bit::SERVICE,
        Flag::Ip(side) | Flag::Port(side) => side_bit(side),
        Flag::Protocol | Flag::Interface | Flag::Netns | Flag::Reason | Flag::Cause => filter_bit::EITHER,
        Flag::Family(_) => filter_bit::FROM,
    };
    // NOT_EITHER, NOT_FROM and NOT_TO are the wanted bits moved up by three.
    if word.negated { wanted << 3 } else { wanted }
}

const _: () = assert!(
    filter_bit::NOT_EITHER == filter_bit::EITHER << 3
        && filter_bit::NOT_FROM == filter_bit::FROM << 3
        && filter_bit::NOT_TO == filter_bit::TO << 3
);

fn interface_key(name: &str) -> [u8; 16] {
    let mut key = [0; 16];
    for (to, from) in key.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    key
}

/// The trie: a lookup finds the longest prefix only, so each must know of those around it.
fn trie(words: &[(Prefix, u32)]) -> Vec<(PrefixKey, u32)> {
    let mut keys: Vec<Prefix> = words.iter().map(|&(prefix, _)| prefix).collect();
    // IPv4 lives inside ::/0 as ::ffff:0:0/96, but an IPv6 network does not mean IPv4 addresses: where one covers
    // that place, all of IPv4 gets an entry of its own.
    let mapped: IpAddr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0).into();
    let around_mapped =
        |prefix: &Prefix| prefix.address().is_ipv6() && Prefix::new(mapped, prefix.length()) == Some(*prefix);
    if keys.iter().any(around_mapped) {
        keys.extend(Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0));
    }
    keys.sort_unstable();
    keys.dedup();
    keys.iter()
        .map(|key| {
            let bits = words.iter().filter(|(word, _)| word.covers(key)).fold(0, |bits, (_, bit)| bits | bit);
            (prefix_key(key), bits)
        })
        .collect()
}

fn prefix_key(prefix: &Prefix) -> PrefixKey {
    match prefix.address() {
        IpAddr::V4(v4) => {
            PrefixKey { length: u32::from(prefix.length()) + 96, address: v4.to_ipv6_mapped().octets() }
        }
        IpAddr::V6(v6) => PrefixKey { length: prefix.length().into(), address: v6.octets() },
    }
}

/// The reasons that a pattern means on this kernel.
fn expand(word: &Word, glob: &Glob, names: &[(u32, String)]) -> Result<Vec<u32>, WordError> {
    let found: Vec<u32> = names.iter().filter(|(_, name)| glob.matches(name)).map(|&(id, _)| id).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let (problem, hint) = if names.is_empty() {
        (
            "this kernel gives no drop reasons (they came with Linux 5.17)".to_owned(),
            Some("filter by address, port, protocol, interface or netns".to_owned()),
        )
    } else {
        let near = near(glob.pattern(), names.iter().map(|(_, name)| name.as_str()));
        let hint = (!near.is_empty()).then(|| near.join(", "));
        (format!("none of this kernel's {} drop reasons", names.len()), hint)
    };
    Err(WordError { flag: word.flag, text: word.text.clone(), problem, hint })
}

#[cfg(test)]
mod tests {
    use super::super::{Family, Protocol, matches, tests::parse};
    use super::*;
    use crate::event::model::{Conntrack, Drop, Endpoint, Inner, Network, Original, Reason};

    fn reasons() -> Vec<(u32, String)> {
        [
            (2, "NOT_SPECIFIED"),
            (3, "NO_SOCKET"),
            (5, "TCP_CSUM"),
            (9, "TCP_RESET"),
            (0x2_0001, "NETFILTER_DROP"),
        ]
        .map(|(id, name)| (id, name.to_owned()))
        .to_vec()
    }

    fn compiled(words: &[(Flag, &str, bool)]) -> Compiled {
        compile(&parse(words).unwrap(), &reasons()).unwrap()
    }

    #[test]
    fn a_nested_prefix_carries_the_bits_around_it() {
        let filter = compiled(&[
            (Flag::Ip(Side::Either), "10.0.0.0/8", false),
            (Flag::Ip(Side::From), "10.1.0.0/16", false),
            (Flag::Ip(Side::To), "10.1.2.3", true),
        ]);
        let bits: Vec<(u32, u32)> = filter.addresses.iter().map(|&(key, bits)| (key.length, bits)).collect();
        use filter_bit::{EITHER, FROM, NOT_TO};
        assert_eq!(bits, [(104, EITHER), (112, EITHER | FROM), (128, EITHER | FROM | NOT_TO)]);
        assert_eq!(filter.spec.required[0], EITHER | FROM);
        assert_eq!(filter.spec.active, dimension::ADDRESS);
    }

    #[test]
    fn all_of_ipv6_leaves_ipv4_out() {
        let filter = compiled(&[(Flag::Ip(Side::Either), "::/0", false)]);
        assert_eq!(simulated_lookup(&filter, "10.0.0.1".parse().unwrap()), 0);
        assert_eq!(simulated_lookup(&filter, "fd00::1".parse().unwrap()), filter_bit::EITHER);
    }

    #[test]
    fn family_and_protocol_are_different_flags_in_one_dimension() {
        let filter = compiled(&[(Flag::Protocol, "tcp", false), (Flag::Family(Family::V4), "", false)]);
        assert_eq!(filter.spec.required[2], filter_bit::EITHER | filter_bit::FROM);
        assert_eq!(filter.protocols, [(6, filter_bit::EITHER), (0x1_0800, filter_bit::FROM)]);
    }

    #[test]
    fn unwanted_words_only_require_nothing() {
        let filter = compiled(&[(Flag::Port(Side::To), "22", true), (Flag::Interface, "lo", true)]);
        assert_eq!(filter.spec.active, dimension::PORT | dimension::INTERFACE);
        assert_eq!(filter.spec.required, [0; dimension::COUNT]);
        assert_eq!(filter.ports, [(22, filter_bit::NOT_TO)]);
        assert_eq!(filter.interfaces[0].0[..3], *b"lo\0");
    }

    #[test]
    fn reasons_expand_to_numbers() {
        let filter = compiled(&[(Flag::Reason, "TCP_*", false), (Flag::Reason, "!TCP_RESET", false)]);
        assert_eq!(
            filter.reasons,
            [(5, filter_bit::EITHER), (9, filter_bit::EITHER | filter_bit::NOT_EITHER)]
        );
        let error = compile(&parse(&[(Flag::Reason, "NO_SOKET", false)]).unwrap(), &reasons()).unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("NO_SOCKET"));
        assert_eq!(error.to_string(), "--reason NO_SOKET: none of this kernel's 5 drop reasons");
        let error = compile(&parse(&[(Flag::Reason, "X", false)]).unwrap(), &[]).unwrap_err();
        assert!(error.problem.contains("no drop reasons"));
    }

    /// The kernel half's matcher, over the compiled maps: the definition at the top, written down once more in the
    /// terms of the maps.
    fn simulated(filter: &Compiled, drop: &Drop) -> bool {
        const NOT: u32 = filter_bit::NOT_EITHER | filter_bit::NOT_FROM | filter_bit::NOT_TO;
        let either = filter_bit::EITHER | filter_bit::NOT_EITHER;
        let from = filter_bit::FROM | filter_bit::NOT_FROM;
        let to = filter_bit::TO | filter_bit::NOT_TO;
        let joined = |source: u32, destination: u32| {
            ((source | destination) & either) | (source & from) | (destination & to)
        };
        let mut tuples = vec![(drop.source.clone(), drop.destination.clone())];
        if let Some(ct) = &drop.conntrack {
            let is_reply = ct.direction.as_deref() == Some("reply");
            for (tuple, swap) in [(&ct.original, is_reply), (&ct.reply, !is_reply)] {
                let (source, destination) = (tuple.source.clone(), tuple.destination.clone());
                tuples.push(if swap { (destination, source) } else { (source, destination) });
            }
        }
        if let Some(inner) = &drop.inner {
            tuples.push((inner.source.clone(), inner.destination.clone()));
        }
        let address = |end: &Endpoint| end.address.map_or(0, |address| simulated_lookup(filter, address));
        let port = |end: &Endpoint| end.port.map_or(0, |port| lookup(&filter.ports, &port));
        let required = |dimension: u32| filter.spec.required[dimension.trailing_zeros() as usize];
        let mut wanted = false;
        for (source, destination) in &tuples {
            let addresses = joined(address(source), address(destination));
            let ports = joined(port(source), port(destination));
            if (addresses | ports) & NOT != 0 {
                return false;
            }
            wanted |= addresses & required(dimension::ADDRESS) == required(dimension::ADDRESS)
                && ports & required(dimension::PORT) == required(dimension::PORT);
        }
        let protocol =
            |protocol: Option<Protocol>| protocol.map_or(0, |p| lookup(&filter.protocols, &p.key()));
        let protocols = protocol(drop.network.transport.as_deref().and_then(Protocol::of_transport))
            | protocol(drop.network.family.as_deref().and_then(Protocol::of_network));
        let interfaces = [&drop.network.interface, &drop.network.interface_in, &drop.network.interface_out]
            .into_iter()
            .flatten()
            .fold(0, |bits, name| bits | lookup(&filter.interfaces, &interface_key(name)));
        let netns = drop.network.netns.map_or(0, |inode| lookup(&filter.netns, &inode));
        let reason = drop.drop.reason.as_ref().map_or(0, |name| {
            let id = reasons().iter().find(|(_, known)| known == name).map(|&(id, _)| id).unwrap();
            lookup(&filter.reasons, &id)
        });
        let singles = [
            (dimension::PROTOCOL, protocols),
            (dimension::INTERFACE, interfaces),
            (dimension::NETNS, netns),
            (dimension::REASON, reason),
        ];
        wanted
            && singles.iter().all(|&(dimension, bits)| {
                bits & NOT == 0 && bits & required(dimension) == required(dimension)
            })
    }

    fn lookup<K: PartialEq>(map: &[(K, u32)], key: &K) -> u32 {
        map.iter().find(|(known, _)| known == key).map_or(0, |&(_, bits)| bits)
    }

    /// A BPF_MAP_TYPE_LPM_TRIE lookup.
    fn simulated_lookup(filter: &Compiled, address: IpAddr) -> u32 {
        let bits = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let fits = |key: &PrefixKey| (bits ^ u128::from_be_bytes(key.address)).leading_zeros() >= key.length;
        let longest = filter.addresses.iter().filter(|(key, _)| fits(key)).max_by_key(|(key, _)| key.length);
        longest.map_or(0, |&(_, bits)| bits)
    }

    struct Random(u64);

    impl Random {
        /// xorshift64 (Marsaglia).
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }

        fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
            let index = self.below(choices.len() as u64);
            choices[usize::try_from(index).unwrap()]
        }

        fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
            (self.below(4) > 0).then(|| make(self))
        }

        fn address(&mut self) -> String {
            let low = self.below(4);
            match self.below(5) {
                0..=2 => format!("10.{}.0.{low}", self.below(2)),
                3 => format!("fd00::{low}"),
                _ => format!("::ffff:10.0.0.{low}"),
            }
        }

        fn network(&mut self) -> String {
            let address = self.address();
            let lengths: &[&str] = match (address.starts_with("::ffff"), address.contains(':')) {
                (true, _) => &["/104", "/127", "/128", "/96", "/64"],
                (_, true) => &["/0", "/8", "/126", "/127", ""],
                _ => &["/0", "/8", "/15", "/16", "/30", "/31", ""],
            };
            format!("{address}{}", self.pick(lengths))
        }

        fn word(&mut self) -> RawTestWord {
            // Words about pods take an inventory: see `identity::select`. The kernel half knows no causes.
            let is_compiled = |flag: &Flag| flag.end().is_none() && *flag != Flag::Cause;
            let flags: Vec<Flag> = Flag::ALL.into_iter().filter(is_compiled).collect();
            let flag = flags[usize::try_from(self.below(u64::try_from(flags.len()).unwrap())).unwrap()];
            let text = match flag {
                Flag::Ip(_) => self.network(),
                Flag::Port(_) => self.below(3).to_string(),
                Flag::Protocol => self.pick(&["tcp", "udp", "icmpv6", "arp", "ipv6"]).to_owned(),
                Flag::Family(_) => String::new(),
                Flag::Interface => self.pick(&["eth0", "veth1"]).to_owned(),
                Flag::Netns => self.below(2).to_string(),
                Flag::Reason => self.pick(&["TCP_*", "NO_SOCKET", "!TCP_RESET", "!*SOCKET", "*"]).to_owned(),
                _ => unreachable!(),
            };
            (flag, text, self.below(4) == 0)
        }

        fn end(&mut self) -> Endpoint {
            Endpoint {
                address: self.maybe(|r| r.address().parse().unwrap()),
                port: self.maybe(|r| u16::try_from(r.below(3)).unwrap()),
                k8s: None,
            }
        }

        fn tuple(&mut self) -> Original {
            Original { source: self.end(), destination: self.end() }
        }

        fn drop(&mut self) -> Drop {
            let name = |r: &mut Self| r.pick(&["eth0", "veth1", "lo"]).to_owned();
            Drop {
                source: self.end(),
                destination: self.end(),
                network: Network {
                    family: self.maybe(|r| r.pick(&["ipv4", "ipv6", "arp", "0x88cc"]).to_owned()),
                    transport: self.maybe(|r| r.pick(&["tcp", "udp", "icmpv6", "47"]).to_owned()),
                    interface: self.maybe(name),
                    interface_in: self.maybe(name),
                    interface_out: self.maybe(name),
                    netns: self.maybe(|r| u32::try_from(r.below(3)).unwrap()),
                    netns_by: None,
                },
                conntrack: (self.below(2) == 0).then(|| Conntrack {
                    direction: self.maybe(|r| r.pick(&["original", "reply"]).to_owned()),
                    original: self.tuple(),
                    reply: self.tuple(),
                    ..Conntrack::default()
                }),
                inner: (self.below(3) == 0).then(|| Inner {
                    source: self.end(),
                    destination: self.end(),
                    ..Inner::default()
                }),
                drop: Reason {
                    reason: self.maybe(|r| r.pick(&["NO_SOCKET", "TCP_CSUM", "TCP_RESET"]).to_owned()),
                    ..Reason::default()
                },
                ..Drop::default()
            }
        }
    }

    type RawTestWord = (Flag, String, bool);

    #[test]
    fn the_maps_mean_what_the_words_mean() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut accepted, mut rejected) = (0, 0);
        for _ in 0..3000 {
            let words: Vec<RawTestWord> = (0..random.below(5)).map(|_| random.word()).collect();
            let words: Vec<(Flag, &str, bool)> =
                words.iter().map(|(flag, text, negated)| (*flag, text.as_str(), *negated)).collect();
            let filter = parse(&words).unwrap();
            let maps = compile(&filter, &reasons()).unwrap();
            for _ in 0..20 {
                let drop = random.drop();
                let expected = matches(&filter, &drop);
                assert_eq!(simulated(&maps, &drop), expected, "{filter}\n{drop:#?}\n{maps:#?}");
                *(if expected { &mut accepted } else { &mut rejected }) += 1;
            }
        }
        assert!(accepted > 10_000 && rejected > 10_000, "{accepted} accepted, {rejected} rejected");
    }
}
