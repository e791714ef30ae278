//! Which rules a followed packet met between two looks at it on a hook: its tables, as the node's own tools print them, are
//! evaluated for the packet as it was at the first look.

use super::model::RuleMet;
use crate::event::{decode::Raw, packet::is_icmp};
use crate::netfilter::{
    budget::Budget,
    evaluate::{
        self, Connection, Packet, State, TableText,
        path::{Ends, path},
    },
    model::{Backend, Family, Netfilter, hook_name},
    rulesets::BaseChain,
    tools::{self, Limits, ToolError, Wanted},
};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tracer_common::ConntrackOffsets;

/// How long a listing is believed: rules that were changed since are those of before.
const FRESH: Duration = Duration::from_secs(5);
/// Listings that are kept, of all network namespaces.
const MAX_LISTINGS: usize = 256;
/// Packets on hooks that are remembered.
const MAX_PACKETS: usize = 4096;
/// Time that evaluating may take at once.
const BURST: Duration = Duration::from_millis(500);
/// Bytes of one listing, and time that a tool may take.
const LIMITS: Limits = Limits { time: Duration::from_secs(2), bytes: 16 << 20 };

/// Priority of connection tracking (NF_IP_PRI_CONNTRACK, include/uapi/linux/netfilter_ipv4.h).
const CONNTRACK: i32 = -200;

/// Where tables of iptables are: name, hooks (NF_INET_*), priority there (net/ipv4/netfilter/iptable_*.c; the nat table changes
/// destinations at -100 and sources at 100).
const IPTABLES: [(&str, &[u8], i32); 6] = [
    ("raw", &[0, 3], -300),
    ("mangle", &[0, 1, 2, 3, 4], -150),
    ("nat", &[0, 3], -100),
    ("filter", &[1, 2, 3], 0),
    ("security", &[1, 2, 3], 50),
    ("nat", &[1, 4], 100),
];

/// The last look at a packet on a hook.
struct Look {
    raw: Raw,
    priority: i32,
}

/// What was met.
#[derive(Debug, Default)]
pub struct Met {
    /// In order.
    pub rules: Vec<RuleMet>,
    /// Why these are not all.
    pub unsure: Option<String>,
}

/// A listing, or that there is no such table, or why it can't be had.
#[derive(Clone)]
enum Listing {
    Text(Rc<str>),
    NoTable,
    Unknown(String),
}

/// See the module's documentation.
#[derive(Default)]
pub struct Rules {
    looks: HashMap<u64, Look>,
    /// In the order in which they were first looked at.
    order: VecDeque<u64>,
    listings: HashMap<(u32, Backend, Family, String), (Instant, Listing)>,
    evaluation: Budget,
}

/// How far a packet has come since.
pub enum Until<'a> {
    /// Past all functions with a smaller priority; it goes on.
    Past(i32),
    /// Out of the hook.
    Left,
    /// It was dropped there.
    Dropped(Option<&'a Netfilter>),
}

impl Rules {
    /// Notes a look at a packet: what is met next is met by the packet as it is now.
    pub fn look(&mut self, packet: u64, raw: Raw, priority: i32) {
        if self.looks.insert(packet, Look { raw, priority }).is_none() {
            self.order.push_back(packet);
        }
        while self.order.len() > MAX_PACKETS
            && let Some(oldest) = self.order.pop_front()
        {
            self.looks.remove(&oldest);
        }
    }

    /// What the packet met since the last look at it, if that was on the hook that it is on now. `chains` are nft's base chains on
    /// the hook; where they are not known, iptables-nft's tables are looked for by their names.
    pub fn met(
        &mut self,
        packet: u64,
        now: &Raw,
        until: &Until<'_>,
        has_legacy: bool,
        chains: Option<&[BaseChain]>,
        offsets: &ConntrackOffsets,
    ) -> Met {
        let Some(Look { raw, priority }) = self.looks.remove(&packet) else { return Met::default() };
        self.order.retain(|it| *it != packet);
        let place = |raw: &Raw| raw.hook.as_ref().map(|state| (state.family, state.hook, raw.key.netns));
        let (Some(hook), Some(seen)) = (place(&raw), Packet::of(&raw, offsets)) else {
            return Met::default();
        };
        if place(now) != Some(hook) {
            return Met::default();
        }
        if !self.evaluation.is_left(BURST) {
            return Met {
                unsure: Some("too many packets to evaluate rules for each".to_owned()),
                ..Met::default()
            };
        }
        self.evaluate(&seen, Packet::of(now, offsets).as_ref(), hook, priority, until, has_legacy, chains)
    }

    #[allow(clippy::too_many_arguments, reason = "facts of one look")]
    fn evaluate(
        &mut self,
        before: &Packet<'_>,
        after: Option<&Packet<'_>>,
        (family, hook, netns): (u8, u8, u32),
        from: i32,
        until: &Until<'_>,
        has_legacy: bool,
        chains: Option<&[BaseChain]>,
    ) -> Met {
        let mut met = Met::default();
        if chains.is_none() {
            met.unsure = Some(
                "which base chains nft has here is not known; of its rules only those of iptables are told"
                    .to_owned(),
            );
        }
        let Some(family) = Family::from_number(family) else { return met };
        let Some(base) = hook_name(family, hook) else { return met };
        let end = if let Until::Past(priority) = until { *priority } else { i32::MAX };
        let mut packet = *before;
        let mut is_tracked_since = false;
        for table in tables(hook, base, from, end, has_legacy, chains) {
            let name = format!("{}:{}", table.name, table.chain);
            if matches!(hook, 0 | 3) && from < CONNTRACK && table.priority > CONNTRACK && !is_tracked_since {
                // Connection tracking came in between: what it said is what it says now.
                is_tracked_since = true;
                packet.connection = after.and_then(|after| after.connection);
            }
            if table.name == "nat" && table.is_iptables {
                match is_asked(&packet, hook, is_tracked_since) {
                    Some(true) => {}
                    Some(false) => continue,
                    None => {
                        met.unsure = Some(format!("whether {name} was asked can't be known"));
                        continue;
                    }
                }
            }
            if !table.is_iptables {
                met.unsure = Some(format!("rules of {} are nft's own, which are not evaluated", table.full));
                continue;
            }
            let listing = match self.listing(netns, table.backend, family, table.name) {
                Listing::Text(text) => text,
                Listing::NoTable => continue,
                Listing::Unknown(why) => {
                    met.unsure = Some(format!("rules of {name} can't be read: {why}"));
                    continue;
                }
            };
            let text = TableText { table: table.name, chain: table.chain, listing: &listing };
            let began = Instant::now();
            let way = path(&packet, &text, table.backend);
            self.evaluation.take(began.elapsed());
            let is_end = matches!(until, Until::Dropped(answer) if table.is_named(*answer));
            match way.ends {
                Ends::Dropped if !matches!(until, Until::Dropped(_)) => {
                    met.unsure = Some(format!(
                        "evaluated, a rule of {name} would have dropped it: its rules can't be told"
                    ));
                    continue;
                }
                Ends::Accepted if is_end => {
                    met.unsure =
                        Some(format!("evaluated, {name} would have let it pass: its rules can't be told"));
                    break;
                }
                _ => {}
            }
            met.rules.extend(way.met);
            if let Some(unsure) = way.unsure {
                met.unsure = Some(unsure);
                packet.mark = None;
            }
            if is_end || way.ends == Ends::Dropped {
                break;
            }
            // Whether this table or a later one wrote a mark that it has now is not known.
            packet.mark = packet.mark.filter(|mark| after.is_some_and(|after| after.mark == Some(*mark)));
            // What comes after NAT sees what NAT made of it.
            if table.name == "nat"
                && let Some(after) = after
            {
                packet = *after;
            }
        }
        met
    }

    fn listing(&mut self, netns: u32, backend: Backend, family: Family, table: &str) -> Listing {
        let key = (netns, backend, family, table.to_owned());
        if let Some((when, listing)) = self.listings.get(&key)
            && when.elapsed() < FRESH
        {
            return listing.clone();
        }
        let wanted = match backend {
            Backend::Legacy => Wanted::LegacyTable { family, table },
            Backend::Nft => Wanted::IptablesNftTable { family, table },
        };
        let listing = match tools::listing(netns, &wanted, LIMITS) {
            // iptables-nft prints nothing of a table that is not there.
            Ok(text) if !text.lines().any(|line| line.strip_prefix('*') == Some(table)) => Listing::NoTable,
            Ok(text) => Listing::Text(text.into()),
            Err(ToolError::NoTable { .. } | ToolError::NotLoaded { .. }) => Listing::NoTable,
            Err(error) => Listing::Unknown(error.to_string()),
        };
        if self.listings.len() >= MAX_LISTINGS {
            self.listings.retain(|_, (when, _)| when.elapsed() < FRESH);
        }
        if self.listings.len() < MAX_LISTINGS {
            self.listings.insert(key, (Instant::now(), listing.clone()));
        }
        listing
    }
}

/// A table's base chain on a hook.
struct OnHook<'a> {
    backend: Backend,
    name: &'a str,
    chain: &'a str,
    priority: i32,
    is_iptables: bool,
    /// With the family, for people.
    full: String,
}

impl OnHook<'_> {
    /// Whether an answer is about it.
    fn is_named(&self, answer: Option<&Netfilter>) -> bool {
        answer.is_some_and(|it| it.backend == Some(self.backend) && it.table.as_deref() == Some(self.name))
    }
}

/// Those that a packet meets from one priority to another, in order.
fn tables<'a>(
    hook: u8,
    base: &'a str,
    from: i32,
    end: i32,
    has_legacy: bool,
    chains: Option<&'a [BaseChain]>,
) -> Vec<OnHook<'a>> {
    let of_iptables = |backend| {
        IPTABLES.iter().filter(move |(_, hooks, _)| hooks.contains(&hook)).map(move |(name, _, priority)| {
            OnHook { backend, name, chain: base, priority: *priority, is_iptables: true, full: String::new() }
        })
    };
    let legacy = of_iptables(Backend::Legacy).filter(|_| has_legacy);
    let likely = of_iptables(Backend::Nft).filter(|_| chains.is_none());
    let nft = chains.unwrap_or_default().iter().map(|chain| OnHook {
        backend: Backend::Nft,
        name: &chain.table,
        chain: &chain.chain,
        priority: chain.priority,
        is_iptables: chain.is_iptables,
        full: format!("{}:{}:{}", chain.family.nft_name(), chain.table, chain.chain),
    });
    let mut all: Vec<OnHook<'_>> =
        legacy.chain(likely).chain(nft).filter(|table| (from..end).contains(&table.priority)).collect();
    all.sort_by_key(|table| table.priority);
    all
}

/// Whether the nat table is asked on a hook: for packets of new connections, until it has given its answer (nf_nat_inet_fn(),
/// net/netfilter/nf_nat_core.c). ICMP errors about a connection are not its packets: they are translated as their connection is,
/// without rules (nf_nat_ipv4_fn() and nf_nat_ipv6_fn(), net/netfilter/nf_nat_proto.c). `None` if that can't be known.
///
/// With `is_tracked_since` the connection is as it was after the table: then it is new to NAT if it is not confirmed yet.
fn is_asked(packet: &Packet<'_>, hook: u8, is_tracked_since: bool) -> Option<bool> {
    let is_destination = matches!(hook, 0 | 3);
    match packet.connection? {
        Connection::Tracked { state: State::Related, .. } if is_icmp(packet.protocol?) => Some(false),
        Connection::Tracked { state: State::New | State::Related, status, .. } => Some(if is_tracked_since {
            !evaluate::is_confirmed(status?)
        } else {
            !evaluate::is_translated(status?, is_destination)
        }),
        _ => Some(false),
    }
}
