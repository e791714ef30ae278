//! Which rules a followed packet met between two looks at it on a hook: its tables, as the node's own tools print them, are
//! evaluated for the packet as it was at the first look, and compared with how far their counters have moved between the two. Of nft's
//! tables the kernel itself tells, where it has kprobes: see [`super::nft`].

use super::listings::{Listing, Listings, Table};
use super::model::RuleMet;
use super::nft::{self, Records};
use crate::event::{decode::Raw, packet::is_icmp};
use crate::netfilter::{
    NetnsId,
    budget::Budget,
    evaluate::{
        self, Connection, Packet, State, TableText,
        path::{self, Ends, path},
    },
    model::{Backend, Confidence, Family, Netfilter, hook_name},
    moved::{Plan, Plans},
    rulesets::{BaseChain, InForce},
    traced::{Pass, Told},
};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};
use tracer_common::{ConntrackOffsets, NftStep, moved::CounterLook};

/// Packets on hooks that are remembered.
const MAX_PACKETS: usize = 4096;
/// Time that evaluating may take at once.
const BURST: Duration = Duration::from_millis(500);

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
    counters: CounterLook,
}

/// What was met.
#[derive(Debug, Default)]
pub struct Met {
    /// In order.
    pub rules: Vec<RuleMet>,
    /// Why these are not all.
    pub unsure: Option<String>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Rules {
    /// By packet; `None` once it was told what came of the look.
    looks: HashMap<u64, Option<Look>>,
    /// In the order in which they were first looked at.
    order: VecDeque<u64>,
    listings: Listings,
    evaluation: Budget,
    /// What nft told.
    nft: Records,
    /// Since when it tells, CLOCK_MONOTONIC ns; `None` where it doesn't.
    nft_since: Option<u64>,
}

/// What of the hook's tables kernel memory tells.
pub struct OfHook<'a> {
    /// The network namespace.
    pub netns: NetnsId,
    /// It may have legacy tables.
    pub has_legacy: bool,
    /// nft's base chains on the hook; `None` if they can't be read now.
    pub chains: Option<Vec<BaseChain>>,
    /// What nft told of the packet there; `None` where it does not tell.
    pub nft_told: Option<Told>,
    /// Which rules of a table are in force.
    pub in_force: &'a mut dyn FnMut(Backend, &str) -> InForce,
    /// What the counters of the hook's rules mean.
    pub plans: &'a Plans,
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
    pub fn look(&mut self, packet: u64, (raw, counters): (Raw, CounterLook), priority: i32) {
        if priority == i32::MIN {
            // What there is of that hook is of another time that it was on it.
            drop(self.nft.take(packet, &raw));
        }
        if self.looks.insert(packet, Some(Look { raw, priority, counters })).is_none() {
            self.order.push_back(packet);
        }
        while self.order.len() > MAX_PACKETS
            && let Some(oldest) = self.order.pop_front()
        {
            self.looks.remove(&oldest);
        }
    }

    /// nft tells what packets meet from then on, CLOCK_MONOTONIC ns; `None`: it doesn't.
    pub fn nft_tells_since(&mut self, then: Option<u64>) {
        self.nft_since = then;
    }

    /// Notes what nft told.
    pub fn take_nft(&mut self, step: NftStep) {
        self.nft.add(step);
    }

    /// Takes what nft has told of a packet on the hook that it is on. `None` where it did not tell yet at the last look.
    pub fn nft_steps(&mut self, packet: u64, now: &Raw) -> Option<Vec<NftStep>> {
        let steps = self.nft.take(packet, now);
        let look = self.looks.get(&packet)?.as_ref()?;
        self.nft_since.filter(|since| look.raw.time >= *since).map(|_| steps)
    }

    /// What the packet met since the last look at it, if that was on the hook that it is on now.
    pub fn met(
        &mut self,
        packet: u64,
        (now, counters): (&Raw, &CounterLook),
        until: &Until<'_>,
        of_hook: OfHook<'_>,
        offsets: &ConntrackOffsets,
    ) -> Met {
        let look = self.looks.get_mut(&packet).and_then(Option::take);
        let Some(Look { raw, priority, counters: before }) = look else { return Met::default() };
        let place = |raw: &Raw| raw.hook.as_ref().map(|state| (state.family, state.hook, raw.key.netns));
        let (Some(hook), Some(seen)) = (place(&raw), Packet::of(&raw, offsets)) else {
            return Met::default();
        };
        if place(now) != Some(hook) {
            return Met::default();
        }
        if !self.evaluation.is_left(BURST) {
            let OfHook { has_legacy, nft_told, .. } = of_hook;
            let is_all = nft_told.is_some() && !has_legacy;
            let Told { passes, unsure } = nft_told.unwrap_or_default();
            let too_many = || "too many packets to evaluate rules for each".to_owned();
            return Met {
                rules: passes.into_iter().flat_map(|pass| pass.rules).collect(),
                unsure: unsure.or_else(|| (!is_all).then(too_many)),
            };
        }
        let began = Instant::now();
        let (family, hook, _) = hook;
        let plan = of_hook.plans.plan(counters.version);
        let told = plan.and_then(|plan| Some((plan, plan.moved(&before, counters)?)));
        let after = Packet::of(now, offsets);
        let unsure = of_hook.nft_told.as_ref().and_then(|told| told.unsure.clone());
        let mut met =
            self.evaluate((&seen, after.as_ref()), (family, hook), priority, until, of_hook, told.as_ref());
        met.unsure = met.unsure.or(unsure);
        self.evaluation.take(began.elapsed().saturating_sub(self.listings.took()));
        met
    }

    fn evaluate(
        &mut self,
        (before, after): (&Packet<'_>, Option<&Packet<'_>>),
        (family, hook): (u8, u8),
        from: i32,
        until: &Until<'_>,
        OfHook { netns, has_legacy, chains, nft_told, in_force, .. }: OfHook<'_>,
        told: Option<&(&Plan, HashMap<u64, u64>)>,
    ) -> Met {
        let mut met = Met::default();
        // What was told needs no evaluation.
        let chains = if nft_told.is_some() { Some(Vec::new()) } else { chains };
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
        let passes = nft_told.as_ref().map(|told| told.passes.as_slice()).unwrap_or_default();
        let tables = with_passes(tables(hook, base, from, end, has_legacy, chains.as_deref()), passes);
        for (index, table) in tables.iter().enumerate() {
            let name = format!("{}:{}", table.name, table.chain);
            let rest = tables.get(index..).unwrap_or_default();
            if met.unsure.is_some() && !surely_reaches(until, rest) {
                break;
            }
            if matches!(hook, 0 | 3) && from < CONNTRACK && table.priority > CONNTRACK && !is_tracked_since {
                // Connection tracking came in between: what it said is what it says now.
                is_tracked_since = true;
                packet.connection = after.and_then(|after| after.connection);
            }
            if let Some(pass) = table.pass {
                met.rules.extend(nft::met(pass, &packet));
                if pass.is_end {
                    return met;
                }
                packet = nft::behind(pass, &packet, after);
                continue;
            }
            let counted = told.and_then(|(plan, moved)| {
                let counted = plan.table(netns, (table.backend, table.name), (family, hook))?;
                Some((counted, counted.moved(moved)))
            });
            if table.name == "nat" && table.is_iptables {
                let by_counters = counted.as_ref().and_then(|(counted, moved)| match moved.is_empty() {
                    false => Some(true),
                    true => counted.counts_all(table.chain).then_some(false),
                });
                match by_counters.or_else(|| is_asked(&packet, hook, is_tracked_since)) {
                    Some(true) => {}
                    Some(false) => continue,
                    None if in_force(table.backend, table.name) == InForce::NoTable => continue,
                    None => {
                        met.unsure = Some(format!("whether {name} was asked can't be known"));
                        continue;
                    }
                }
            }
            if !table.is_iptables {
                met.unsure = Some(format!("rules of {} are nft's own, which are not evaluated", table.full));
                packet = forgotten(packet);
                continue;
            }
            let wanted = Table { netns, backend: table.backend, family, name: table.name.to_owned() };
            let mut in_force = || in_force(table.backend, table.name);
            let (listing, version) = self.listings.get(wanted, &mut in_force);
            let listing = match listing {
                Listing::Text(text) => text,
                Listing::NoTable => continue,
                Listing::Unknown(why) => {
                    met.unsure = Some(format!("rules of {name} can't be read: {why}"));
                    packet = forgotten(packet);
                    continue;
                }
            };
            let text = TableText { table: table.name, chain: table.chain, listing: &listing };
            // Of rules that were changed since, numbers may mean others.
            let counted = counted.filter(|(counted, _)| counted.in_force == version);
            let by_counters = counted
                .as_ref()
                .and_then(|(counted, moved)| path::counted_path(&packet, &text, counted, moved.clone()));
            let mut way = by_counters.unwrap_or_else(|| path(&packet, &text, table.backend));
            if let Some((counted, moved)) = &counted
                && let Some(wrong) = path::unmoved(&way.met, counted, moved)
            {
                met.rules.extend(way.met.drain(..wrong));
                met.unsure = Some(format!(
                    "evaluated, a rule of {name} matched whose counter has not moved: its rules can't be told"
                ));
                packet = forgotten(packet);
                continue;
            }
            let is_end = matches!(until, Until::Dropped(answer) if table.is_named(*answer));
            match way.ends {
                Ends::Dropped if !matches!(until, Until::Dropped(_)) => {
                    met.unsure = Some(format!(
                        "evaluated, a rule of {name} would have dropped it: its rules can't be told"
                    ));
                    packet = forgotten(packet);
                    continue;
                }
                Ends::Accepted if is_end => {
                    met.unsure =
                        Some(format!("evaluated, {name} would have let it pass: its rules can't be told"));
                    return met;
                }
                _ => {}
            }
            packet = way.after(&packet);
            let ends = way.ends;
            met.rules.extend(way.met);
            met.unsure = way.unsure.or(met.unsure);
            if is_end || ends == Ends::Dropped {
                return met;
            }
            // What comes after NAT sees what NAT made of it.
            if table.name == "nat"
                && let Some(after) = after
            {
                packet = Packet { mark: packet.mark, ..*after };
            }
        }
        if matches!(until, Until::Dropped(_)) {
            // No table dropped it, for all that is known; so something between them did, and it came to no table behind that. What
            // the kernel told it met, and so what lies before.
            let is_sure = |rule: &RuleMet| rule.confidence == Confidence::Exact;
            met.rules.truncate(met.rules.iter().rposition(is_sure).map_or(0, |last| last + 1));
            met.unsure.get_or_insert_with(|| {
                "behind which of the hook's tables it was dropped is not known".to_owned()
            });
        }
        met
    }
}

/// Whether a packet surely came to the first of these tables, where what was before may have dropped it, for all that is known: if
/// it was not dropped there, or if one of these did it.
fn surely_reaches(until: &Until<'_>, tables: &[OnHook<'_>]) -> bool {
    match until {
        Until::Dropped(answer) => tables.iter().any(|table| table.pass.is_some() || table.is_named(*answer)),
        Until::Past(_) | Until::Left => true,
    }
}

/// What is known of a packet behind a table of which nothing is known.
fn forgotten(packet: Packet<'_>) -> Packet<'_> {
    Packet { mark: None, ttl: None, length: None, connection: None, ..packet }
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
    /// What nft told of the packet there.
    pass: Option<&'a Pass>,
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
            OnHook {
                backend,
                name,
                chain: base,
                priority: *priority,
                is_iptables: true,
                full: String::new(),
                pass: None,
            }
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
        pass: None,
    });
    let mut all: Vec<OnHook<'_>> =
        legacy.chain(likely).chain(nft).filter(|table| (from..end).contains(&table.priority)).collect();
    all.sort_by_key(|table| table.priority);
    all
}

/// With what nft told, in the order in which it came.
fn with_passes<'a>(tables: Vec<OnHook<'a>>, passes: &'a [Pass]) -> Vec<OnHook<'a>> {
    let mut passes = passes.iter().peekable();
    let of = |pass: &'a Pass| OnHook {
        backend: Backend::Nft,
        name: &pass.table,
        chain: "",
        priority: pass.priority,
        is_iptables: pass.is_iptables,
        full: String::new(),
        pass: Some(pass),
    };
    let mut all = Vec::with_capacity(tables.len());
    for table in tables {
        while let Some(pass) = passes.next_if(|pass| pass.priority < table.priority) {
            all.push(of(pass));
        }
        all.push(table);
    }
    all.extend(passes.map(of));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(table: &str, priority: i32) -> Pass {
        Pass {
            family: Family::Ipv4,
            table: table.to_owned(),
            table_handle: 1,
            priority,
            is_iptables: false,
            rules: Vec::new(),
            mark: 0,
            is_end: false,
        }
    }

    /// Legacy tables on OUTPUT, in order.
    fn on_output(from: i32, end: i32) -> Vec<OnHook<'static>> {
        tables(3, "OUTPUT", from, end, true, Some(&[]))
    }

    #[test]
    fn what_nft_told_is_among_legacy_tables_in_its_own_order() {
        // Chains of type nat are asked where NAT is, whatever their priority says.
        let passes = [pass("a", -300), pass("b", -160), pass("c", 7), pass("d", -50)];
        let all = with_passes(on_output(i32::MIN, i32::MAX), &passes);
        let names: Vec<&str> = all.iter().map(|table| table.name).collect();
        assert_eq!(names, ["raw", "a", "b", "mangle", "nat", "filter", "c", "d", "security"]);
        let alone = with_passes(on_output(60, 70), &passes);
        assert_eq!(alone.iter().map(|table| table.name).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_dropped_packet_surely_reached_what_nft_told() {
        let passes = [pass("a", -160)];
        let all = with_passes(on_output(i32::MIN, i32::MAX), &passes);
        let dropped = Until::Dropped(None);
        let reaches: Vec<bool> = (0..all.len()).map(|from| surely_reaches(&dropped, &all[from..])).collect();
        assert_eq!(reaches, [true, true, false, false, false, false]);
        assert!(surely_reaches(&Until::Left, &all[3..]));
    }
}
