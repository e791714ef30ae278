//! Which rules a followed packet met, by their counters: what the programs are told to compare in a trace, and what their answers
//! mean. See [`tracer_common::moved`].

use super::NetnsId;
use super::expressions::{Operations, counter_of_matched};
use super::legacy::{LegacyLayout, Table};
use super::memory::KernelMemory;
use super::model::{Backend, Family};
use super::nft::{NftLayout, Ruleset};
use super::rulesets::InForce;
use super::watch::Packing;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tracer_common::moved::{CHECKS, CounterLook, HookTables, LIST_PROBES, LISTS, TABLE_CHUNKS, TABLES};
use tracer_common::watch::{CHUNK_RULES, COUNTER_BYTES, Check, Chunk, hook_word, list_place};

/// Reading takes at most one part in this many of the time.
const IDLE_SHARE: u32 = 10;
/// Plans kept: looks of the one before may still be in the ring.
const PLANS: usize = 3;
/// Hooks of IPv4 and IPv6 (NF_INET_NUMHOOKS, include/uapi/linux/netfilter.h, without ingress).
const HOOKS: u8 = 5;

/// The counters of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedChain {
    /// Of each rule, the address of its packets (per-CPU); `None` if it has none that tells that it matched.
    pub rules: Vec<Option<u64>>,
    /// Likewise of the chain's end: its policy, or the return to where it was jumped to from.
    pub end: Option<u64>,
}

/// A table of iptables and its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedTable {
    /// Who keeps it.
    pub backend: Backend,
    /// IPv4 or IPv6.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Which rules these are.
    pub in_force: InForce,
    /// By name.
    pub chains: HashMap<String, CountedChain>,
    /// What shows that they are still in force.
    check: Check,
}

impl CountedTable {
    #[cfg(test)]
    pub(super) fn of(
        backend: Backend,
        name: &str,
        chains: impl IntoIterator<Item = (String, CountedChain)>,
    ) -> Self {
        let chains = chains.into_iter().collect();
        let (family, in_force) = (Family::Ipv4, InForce::Version(1));
        Self { backend, family, name: name.to_owned(), in_force, chains, check: Check::default() }
    }

    fn counters(&self) -> impl Iterator<Item = u64> + '_ {
        self.chains.values().flat_map(|chain| chain.rules.iter().copied().flatten().chain(chain.end))
    }

    /// Whether every packet that comes to it by a base chain leaves the counter of what ended its way behind: all rules and the base chain's
    /// end have one.
    #[must_use]
    pub fn counts_all(&self, base: &str) -> bool {
        let has_end = self.chains.get(base).is_some_and(|chain| chain.end.is_some());
        has_end && self.chains.values().flat_map(|chain| &chain.rules).all(Option::is_some)
    }

    /// How far each of its counters has moved.
    #[must_use]
    pub fn moved(&self, moved: &HashMap<u64, u64>) -> HashMap<u64, u64> {
        let of = |counter| Some((counter, *moved.get(&counter)?));
        self.counters().filter_map(of).collect()
    }
}

/// The tables of one netns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counted {
    netns: NetnsId,
    tables: Vec<CountedTable>,
    /// Hooks that have tables, as indices.
    hooks: Vec<(Family, u8, Vec<usize>)>,
    signature: Signature,
}

/// Addresses of a struct xt_table and of its rules.
type LegacyPlace = (u64, u64);

/// What is the same as long as the rules of a netns are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Signature {
    /// Of each hook, its legacy tables, those of NAT too, and where their rules are.
    legacy: Vec<(Family, u8, Vec<LegacyPlace>)>,
    /// nft's generation.
    nft: Option<(u32, usize)>,
}

/// Where the running kernel keeps rules.
#[derive(Clone, Copy)]
pub struct Layouts<'a> {
    /// Those of legacy tables.
    pub legacy: Option<&'a LegacyLayout>,
    /// Those of nft.
    pub nft: Option<&'a NftLayout>,
}

/// What the programs are given, and what their answers mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Places of the map of lists.
    pub lists: Vec<HookTables>,
    /// Chunks of counters.
    pub chunks: Vec<Chunk>,
    counted: Vec<Counted>,
}

/// The plans: see the module's documentation.
#[derive(Debug, Default)]
pub struct Plans {
    /// Newest last, each with its version.
    plans: Vec<(u32, Plan)>,
    /// When rules may be read again.
    not_before: Option<Instant>,
}

impl Plans {
    /// Whether it is time to look for changed rules.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.not_before.is_none_or(|when| Instant::now() >= when)
    }

    /// Looks for changed rules in the given network namespaces. Returns the new plan, of at most `most` chunks, and its version if
    /// the programs must be told.
    pub fn refresh(
        &mut self,
        memory: &mut impl KernelMemory,
        layouts: Layouts<'_>,
        netns: &[NetnsId],
        most: u32,
    ) -> Option<(u32, &Plan)> {
        let start = Instant::now();
        let signatures: Vec<_> = netns.iter().map(|it| signature(memory, layouts, it.address)).collect();
        self.not_before = Some(start + start.elapsed() * IDLE_SHARE + Duration::from_millis(10));
        let known = self.plans.last().map(|(_, plan)| plan.counted.as_slice()).unwrap_or_default();
        let is_known = |(netns, signature): (&NetnsId, &Signature)| {
            known.iter().any(|it| it.netns == *netns && it.signature == *signature)
        };
        if known.len() == netns.len() && netns.iter().zip(&signatures).all(is_known) {
            return None;
        }
        let counted = netns.iter().zip(signatures).map(|(netns, signature)| {
            let same = known.iter().find(|it| it.netns == *netns && it.signature == signature);
            same.cloned().unwrap_or_else(|| read(memory, layouts, *netns, signature))
        });
        let plan = plan(counted.collect(), most);
        let version = self.plans.last().map_or(1, |(version, _)| version.wrapping_add(1).max(1));
        if self.plans.len() >= PLANS {
            self.plans.remove(0);
        }
        self.plans.push((version, plan));
        self.not_before = Some(start + start.elapsed() * IDLE_SHARE + Duration::from_millis(10));
        self.plans.last().map(|(version, plan)| (*version, plan))
    }

    /// The plan of a version.
    #[must_use]
    pub fn plan(&self, version: u32) -> Option<&Plan> {
        self.plans.iter().find(|(known, _)| *known == version).map(|(_, plan)| plan)
    }
}

impl Plan {
    /// The counters that moved between two looks at a packet, and how far each did. `None` if that can't be known: another look, or
    /// another packet's on another CPU, came in between, or too much moved.
    #[must_use]
    pub fn moved(&self, before: &CounterLook, after: &CounterLook) -> Option<HashMap<u64, u64>> {
        let is_next = before.version == after.version
            && before.cpu == after.cpu
            && before.number.wrapping_add(1) == after.number;
        let told = after.moved.get(..after.length as usize).filter(|_| is_next)?;
        let mut all = HashMap::new();
        for moved in told {
            let start = self.chunks.get(moved.chunk as usize)?.address;
            for place in 0..CHUNK_RULES {
                let by = moved.by >> (place * 4) & 0xf;
                if by != 0 {
                    all.insert(start.wrapping_add((place * COUNTER_BYTES) as u64), by);
                }
            }
        }
        Some(all)
    }

    /// A table whose counters are compared on a hook.
    #[must_use]
    pub fn table(
        &self,
        netns: NetnsId,
        (backend, name): (Backend, &str),
        (family, hook): (Family, u8),
    ) -> Option<&CountedTable> {
        let word = hook_word(family.number(), hook);
        if !self
            .lists
            .iter()
            .any(|list| (list.net, list.netns, list.hook) == (netns.address, netns.inode, word))
        {
            return None;
        }
        let counted = self.counted.iter().find(|it| it.netns == netns)?;
        let (.., tables) = counted.hooks.iter().find(|(of, number, _)| (*of, *number) == (family, hook))?;
        let mut tables = tables.iter().filter_map(|index| counted.tables.get(*index));
        tables.find(|table| table.backend == backend && table.name == name)
    }
}

/// Makes the lists.
fn plan(counted: Vec<Counted>, most: u32) -> Plan {
    let mut plan = Plan { lists: vec![HookTables::NONE; LISTS as usize], ..Plan::default() };
    for netns in &counted {
        let ranges: Vec<_> = netns.tables.iter().map(|table| plan.add_chunks(table, most)).collect();
        for (family, hook, tables) in &netns.hooks {
            let all = tables.iter().map(|index| Some((netns.tables.get(*index)?, (*ranges.get(*index)?)?)));
            // Of a hook one of whose tables has no room none is compared: looks would tell too little to go by.
            if let Some(all) = all.collect::<Option<Vec<_>>>() {
                plan.add_list(netns.netns, (*family, *hook), &all);
            }
        }
    }
    plan.counted = counted;
    plan
}

impl Plan {
    /// Puts a table's counters into chunks: the first, and how many. `None` if they are too many.
    fn add_chunks(&mut self, table: &CountedTable, most: u32) -> Option<[u32; 2]> {
        let mut counters: Vec<u64> = table.counters().collect();
        counters.sort_unstable();
        let first = self.chunks.len();
        let mut packing = Packing::default();
        for counter in counters {
            let place = packing.place(counter);
            if place.is_none() {
                self.chunks.push(Chunk { address: counter, bytes: 0, mask: 0 });
            }
            if let Some(chunk) = self.chunks.last_mut() {
                *chunk = Packing::with(*chunk, place.unwrap_or_default());
            }
        }
        let count = self.chunks.len() - first;
        if count > TABLE_CHUNKS as usize || self.chunks.len() > most as usize {
            self.chunks.truncate(first);
            return None;
        }
        Some([u32::try_from(first).ok()?, u32::try_from(count).ok()?])
    }

    fn add_list(
        &mut self,
        netns: NetnsId,
        (family, hook): (Family, u8),
        tables: &[(&CountedTable, [u32; 2])],
    ) {
        let mut checks: Vec<Check> = tables.iter().map(|(table, _)| table.check).collect();
        checks.sort_unstable_by_key(|check| check.at);
        checks.dedup();
        if checks.len() > CHECKS || tables.len() > TABLES {
            return;
        }
        let mut list = HookTables {
            net: netns.address,
            netns: netns.inode,
            hook: hook_word(family.number(), hook),
            checked: checks.len() as u32,
            length: tables.len() as u32,
            ..HookTables::NONE
        };
        list.checks.iter_mut().zip(&checks).for_each(|(to, check)| *to = *check);
        list.tables.iter_mut().zip(tables).for_each(|(to, (_, range))| *to = *range);
        let first = list_place(list.net, list.hook);
        let mut places = (0..LIST_PROBES).map(|probe| (first.wrapping_add(probe) & (LISTS - 1)) as usize);
        let free = places.find(|place| self.lists.get(*place).is_some_and(|list| list.net == 0));
        if let Some(to) = free.and_then(|place| self.lists.get_mut(place)) {
            *to = list;
        }
    }
}

/// That of a netns now.
fn signature(memory: &mut impl KernelMemory, layouts: Layouts<'_>, net: u64) -> Signature {
    let mut legacy = Vec::new();
    if let Some(layout) = layouts.legacy {
        for family in [Family::Ipv4, Family::Ipv6] {
            for hook in 0..HOOKS {
                let hooked = layout.hooks.hooked(memory, net, family, hook);
                let mut tables = Table::addresses(layout, &hooked);
                tables.extend(Table::of_nat(memory, layout, &hooked).unwrap_or_default());
                let rules = |table| Some((table, Table::private_of(memory, layout, table)?));
                let tables: Vec<_> = tables.into_iter().filter_map(rules).collect();
                if !tables.is_empty() {
                    legacy.push((family, hook, tables));
                }
            }
        }
    }
    let nft =
        layouts.nft.and_then(|layout| Some((layout.sequence(memory, net)?, layout.cursor(memory, net)?)));
    Signature { legacy, nft }
}

/// The tables of a netns. Those that change meanwhile are left out, or have another signature by then.
fn read(
    memory: &mut impl KernelMemory,
    layouts: Layouts<'_>,
    netns: NetnsId,
    signature: Signature,
) -> Counted {
    let mut counted = Counted { netns, ..Counted::default() };
    let mut known: HashMap<u64, Option<usize>> = HashMap::new();
    for (family, hook, tables) in &signature.legacy {
        let mut indices = Vec::new();
        for (address, _) in tables {
            let index = *known.entry(*address).or_insert_with(|| {
                counted.tables.push(legacy_table(memory, layouts.legacy?, *family, *address)?);
                Some(counted.tables.len() - 1)
            });
            indices.extend(index);
        }
        counted.hooks.push((*family, *hook, indices));
    }
    if let Some(layout) = layouts.nft.filter(|_| signature.nft.is_some())
        && let Some(ruleset) = Ruleset::read(memory, layout, netns.address)
    {
        counted.add_nft(memory, layout, &ruleset);
    }
    counted.signature = signature;
    counted
}

fn legacy_table(
    memory: &mut impl KernelMemory,
    layout: &LegacyLayout,
    family: Family,
    address: u64,
) -> Option<CountedTable> {
    let version = Table::version(memory, layout, address)?;
    let (table, counters) = Table::read_counted(memory, layout, family, address)?;
    if Table::version(memory, layout, address) != Some(version) {
        return None;
    }
    let (at, value) = table.private;
    let chains = table.chains.into_iter().zip(counters).map(|(chain, mut counters)| {
        let end = counters.pop();
        (chain.name, CountedChain { rules: counters.into_iter().map(Some).collect(), end })
    });
    Some(CountedTable {
        backend: Backend::Legacy,
        family,
        name: table.name,
        in_force: InForce::Version(version),
        chains: chains.collect(),
        check: Check { at, value, mask: u64::MAX },
    })
}

impl Counted {
    /// Adds the tables that iptables-nft keeps.
    fn add_nft(&mut self, memory: &mut impl KernelMemory, layout: &NftLayout, ruleset: &Ruleset) {
        let net = self.netns.address;
        let Some(check) = layout.check(memory, net, ruleset.sequence) else { return };
        let Some(layouts) = layout.expressions.as_ref().zip(layout.counters.as_ref()) else { return };
        let (mut operations, spans) = (Operations::default(), ruleset.spans_of_chains());
        for (number, table) in ruleset.tables.iter().enumerate().filter(|(_, table)| table.is_iptables) {
            let index = self.tables.len();
            let mut chains = HashMap::new();
            for (at, chain) in ruleset.chains.iter().enumerate().filter(|(_, chain)| chain.table == number) {
                let count = chain.rules.first().map_or(0, Vec::len);
                let mut rules = vec![None; count];
                for span in spans.get(&at).into_iter().flatten() {
                    let Some((bytes, of_span)) = ruleset.read_span(memory, span) else { continue };
                    for (rule, to) in of_span.iter().zip(rules.iter_mut().skip(span.rules.start as usize)) {
                        let mut of = |ops| operations.of(memory, layout, ops);
                        let expressions = rule.expressions(&bytes).unwrap_or_default();
                        *to = counter_of_matched(expressions, layouts, &mut of);
                    }
                }
                let policy = chain.base.and_then(|_| layout.policy(memory, chain.address)?.counter);
                chains.insert(chain.name.clone(), CountedChain { rules, end: policy.map(|(at, _)| at) });
                if let Some(base) = chain.base {
                    self.add_hook(table.family, base.hook, index);
                }
            }
            self.tables.push(CountedTable {
                backend: Backend::Nft,
                family: table.family,
                name: table.name.clone(),
                in_force: InForce::Version(ruleset.sequence.into()),
                chains,
                check,
            });
        }
        if !ruleset.is_current(memory, layout, net) {
            // What was read may be of either.
            self.tables.retain(|table| table.backend == Backend::Legacy);
            let left = self.tables.len();
            self.hooks.iter_mut().for_each(|(.., tables)| tables.retain(|index| *index < left));
        }
    }

    fn add_hook(&mut self, family: Family, hook: u8, table: usize) {
        match self.hooks.iter_mut().find(|(of, number, _)| (*of, *number) == (family, hook)) {
            Some((.., tables)) if tables.contains(&table) => {}
            Some((.., tables)) => tables.push(table),
            None => self.hooks.push((family, hook, vec![table])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::legacy::tests::{LAYOUT, TABLE, memory};
    use tracer_common::moved::Moved;

    const NETNS: NetnsId = NetnsId { address: 0xffff_8880_0000_1000, inode: 77, cookie: 5 };

    fn chain(rules: &[u64], end: u64) -> CountedChain {
        CountedChain { rules: rules.iter().copied().map(Some).collect(), end: Some(end) }
    }

    /// Two tables on FORWARD, one of them on INPUT, too.
    fn counted() -> Counted {
        let filter = [("FORWARD".to_owned(), chain(&[0x1000, 0x1010], 0x1020))];
        let nat = [("INPUT".to_owned(), chain(&[0x9000], 0x1030))];
        let mut tables = vec![
            CountedTable::of(Backend::Legacy, "filter", filter),
            CountedTable::of(Backend::Nft, "nat", nat),
        ];
        tables[1].check.at = 8;
        let hooks = vec![(Family::Ipv4, 2, vec![0, 1]), (Family::Ipv4, 1, vec![1])];
        Counted { netns: NETNS, tables, hooks, signature: Signature::default() }
    }

    fn look(number: u32, moved: &[(u32, u64)]) -> CounterLook {
        let mut look = CounterLook { version: 3, cpu: 1, number, ..CounterLook::default() };
        for (to, (chunk, by)) in look.moved.iter_mut().zip(moved) {
            *to = Moved { by: *by, chunk: *chunk, reserved: 0 };
        }
        look.length = moved.len() as u32;
        look
    }

    #[test]
    fn the_chunks_of_a_table_follow_each_other() {
        let plan = plan(vec![counted()], 100);
        let told: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.address, chunk.bytes, chunk.mask)).collect();
        assert_eq!(told, [(0x1000, 40, 7), (0x1030, 8, 1), (0x9000, 8, 1)]);
        let list_of = |hook| plan.lists.iter().find(|list| list.net != 0 && list.hook == hook_word(2, hook));
        let list = list_of(2).unwrap();
        assert_eq!((list.length, list.checked, &list.tables[..2]), (2, 2, &[[0, 1], [1, 2]][..]));
        assert_eq!(list_of(1).map(|list| (list.length, list.tables[0])), Some((1, [1, 2])));
        let on = |name, hook| plan.table(NETNS, name, (Family::Ipv4, hook)).is_some();
        assert!(on((Backend::Legacy, "filter"), 2) && on((Backend::Nft, "nat"), 1));
        assert!(!on((Backend::Legacy, "filter"), 1) && !on((Backend::Nft, "filter"), 2));
        assert!(!on((Backend::Nft, "nat"), 3));
        assert_eq!(plan.table(NetnsId::default(), (Backend::Nft, "nat"), (Family::Ipv4, 1)), None);
    }

    #[test]
    fn a_hook_without_room_for_all_its_tables_is_not_compared() {
        let plan = plan(vec![counted()], 1);
        assert!(plan.lists.iter().all(|list| list.net == 0));
        assert_eq!(plan.table(NETNS, (Backend::Legacy, "filter"), (Family::Ipv4, 2)), None);
    }

    #[test]
    fn what_moved_did_so_between_looks_that_follow_each_other() {
        let plan = plan(vec![counted()], 100);
        let before = look(7, &[(2, 1)]);
        let moved = plan.moved(&before, &look(8, &[(0, 0x102), (2, 1)])).unwrap();
        assert_eq!(moved, HashMap::from([(0x1000, 2), (0x1020, 1), (0x9000, 1)]));
        assert_eq!(plan.moved(&before, &look(8, &[])), Some(HashMap::new()));
        // Another packet's look in between; on another CPU; by other lists; more than is told; a chunk that is none.
        assert_eq!(plan.moved(&before, &look(9, &[])), None);
        assert_eq!(plan.moved(&before, &CounterLook { cpu: 2, ..look(8, &[]) }), None);
        assert_eq!(plan.moved(&before, &CounterLook { version: 4, ..look(8, &[]) }), None);
        assert_eq!(plan.moved(&before, &CounterLook { length: 17, ..look(8, &[]) }), None);
        // The first look on a CPU tells nothing, but the next one does.
        let first = CounterLook { length: CounterLook::UNTOLD, ..look(8, &[]) };
        assert_eq!(plan.moved(&before, &first), None);
        assert_eq!(plan.moved(&first, &look(9, &[])), Some(HashMap::new()));
        assert_eq!(plan.moved(&before, &look(8, &[(3, 1)])), None);
    }

    #[test]
    fn a_legacy_table_with_the_ends_of_its_chains() {
        let table = legacy_table(&mut memory(), &LAYOUT, Family::Ipv4, TABLE).unwrap();
        assert_eq!(table.name, "filter");
        assert_eq!(table.chains["INPUT"], chain(&[1], 2));
        assert_eq!(table.chains["user"], chain(&[3, 4], 5));
        assert_eq!(table.moved(&HashMap::from([(2, 1), (5, 3), (99, 1)])), HashMap::from([(2, 1), (5, 3)]));
    }
}
