//! Which counters the programs are to compare at a drop, and which rule each is. Pure.

use super::NetnsId;
use super::counted::{Counted, Dropper};
use super::legacy::{Rule, Table};
use super::model::Family;
use tracer_common::watch::{
    CHUNK_RULES, COUNTER_BYTES, Check, Chunk, LIST_CHECKS, LIST_CHUNKS, LIST_PROBES, LISTS, List, hook_word,
    list_place,
};

/// Rules of one list.
const MOST_RULES: usize = LIST_CHUNKS * CHUNK_RULES;
/// Bytes of a counter up to the end of its packets.
const PACKETS_BYTES: usize = 8;

/// Puts counters, given in ascending order, into chunks: those that lie side by side into one.
#[derive(Default)]
pub(super) struct Packing {
    /// The first counter of the chunk that is not full yet.
    open: Option<u64>,
}

impl Packing {
    /// The next counter's place in the chunk of the one before; `None`: it begins a chunk.
    pub(super) fn place(&mut self, counter: u64) -> Option<usize> {
        let place = self.open.and_then(|start| {
            let bytes = usize::try_from(counter - start).ok()?;
            let fits = bytes.is_multiple_of(COUNTER_BYTES) && bytes / COUNTER_BYTES < CHUNK_RULES;
            fits.then_some(bytes / COUNTER_BYTES)
        });
        if place.is_none() {
            self.open = Some(counter);
        }
        place
    }

    /// A chunk with another counter in it.
    pub(super) fn with(chunk: Chunk, place: usize) -> Chunk {
        let bytes = (place * COUNTER_BYTES + PACKETS_BYTES) as u32;
        Chunk { mask: chunk.mask | 1 << place, bytes, ..chunk }
    }
}

/// The rules of one netns whose counters are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub netns: NetnsId,
    /// Its legacy tables.
    pub tables: Vec<Table>,
    /// Hooks that have tables: family, hook, indices of tables in the order in which they are asked.
    pub hooks: Vec<(Family, u8, Vec<usize>)>,
    /// Its nft rules, where those are told by counters.
    pub nft: Option<Counted>,
}

/// What can drop on one hook.
struct Met {
    family: Family,
    hook: u8,
    /// What shows that the rules are still the same.
    checks: Vec<Check>,
    /// Which table (nft is behind the last), and which of its rules.
    rules: Vec<(usize, usize)>,
}

impl Seen {
    /// The counters of each table's rules that can drop; those of nft are the last.
    fn counters(&self) -> Vec<Vec<u64>> {
        let of_table = |table: &Table| table.rules.iter().map(|rule| rule.counter).collect();
        let of_nft = |nft: &Counted| nft.droppers.iter().map(|dropper| dropper.counter).collect();
        self.tables.iter().map(of_table).chain(self.nft.iter().map(of_nft)).collect()
    }

    /// What can drop on each hook. A hook without counters is none.
    fn met(&self) -> Vec<Met> {
        let mut all: Vec<Met> = Vec::new();
        for (family, hook, indices) in &self.hooks {
            let mut met = Met { family: *family, hook: *hook, checks: Vec::new(), rules: Vec::new() };
            for index in indices {
                let Some(table) = self.tables.get(*index) else { continue };
                let (at, value) = table.private;
                met.checks.push(Check { at, value, mask: u64::MAX });
                met.rules.extend(table.reachable(*hook).into_iter().map(|rule| (*index, rule)));
            }
            all.push(met);
        }
        let Some(nft) = &self.nft else { return all };
        for base in nft.bases.iter().filter(|base| !base.droppers.is_empty()) {
            let (family, hook) = (base.family, base.hook);
            let known = all.iter().position(|met| (met.family, met.hook) == (family, hook));
            let index = known.unwrap_or_else(|| {
                all.push(Met { family, hook, checks: Vec::new(), rules: Vec::new() });
                all.len() - 1
            });
            let Some(met) = all.get_mut(index) else { continue };
            if !met.checks.contains(&nft.check) {
                met.checks.push(nft.check);
            }
            met.checks.extend(base.check);
            met.rules.extend(base.droppers.iter().map(|dropper| (self.tables.len(), *dropper)));
        }
        for met in &mut all {
            // Chains that two base chains lead to.
            met.rules.sort_unstable();
            met.rules.dedup();
        }
        all
    }
}

/// What a number from the programs means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told<'p> {
    /// A legacy rule.
    Legacy(&'p Seen, &'p Table, &'p Rule),
    /// One of nft's, with its index.
    Nft(&'p Seen, &'p Counted, (usize, &'p Dropper)),
}

/// What the programs are given, and what their answers mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The network namespaces that have rules.
    pub seen: Vec<Seen>,
    /// Places of the map of lists.
    pub lists: Vec<List>,
    /// Chunks of counters.
    pub chunks: Vec<Chunk>,
    /// Hooks without a list, because their rules are too many.
    pub left_out: Vec<LeftOut>,
    /// Of each chunk, which rule each counter is: indices of `seen`, its table ([`Met::rules`]), its rule.
    rules: Vec<[Option<(usize, usize, usize)>; CHUNK_RULES]>,
}

/// A hook whose drops can't be attributed by counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Inode number of the netns.
    pub netns: u32,
    /// The hook's family.
    pub family: Family,
    /// The hook.
    pub hook: u8,
    /// Rules that can drop there.
    pub rules: usize,
}

/// Makes the lists, with at most `most` chunks in all.
#[must_use]
pub fn plan(seen: Vec<Seen>, most: u32) -> Plan {
    let mut plan = Plan { lists: vec![List::default(); LISTS as usize], ..Plan::default() };
    for (index, netns) in seen.iter().enumerate() {
        let (counters, met) = (netns.counters(), netns.met());
        let countable = countable(&counters, &met);
        // A counter is in one chunk only, whatever hooks its rule can be met on: each has one memory of what it was.
        let chunk_of: Vec<Vec<u32>> = counters
            .iter()
            .zip(&countable)
            .enumerate()
            .map(|(table, it)| plan.add_chunks((index, table), it, most))
            .collect();
        for met in &met {
            plan.add_list(netns.netns, met, &chunk_of);
        }
    }
    plan.seen = seen;
    plan
}

/// Of each rule of each table, whether it can be met on a hook whose rules are not too many. Those of a hook that is left
/// out would only take the room of others.
fn countable(counters: &[Vec<u64>], met: &[Met]) -> Vec<Vec<bool>> {
    let mut countable: Vec<_> = counters.iter().map(|counters| vec![false; counters.len()]).collect();
    for (table, rule) in met.iter().filter(|met| met.rules.len() <= MOST_RULES).flat_map(|met| &met.rules) {
        if let Some(it) = countable.get_mut(*table).and_then(|rules| rules.get_mut(*rule)) {
            *it = true;
        }
    }
    countable
}

impl Plan {
    /// The rule that a number from the programs means.
    #[must_use]
    pub fn rule(&self, number: u64) -> Option<Told<'_>> {
        let number = usize::try_from(number).ok()?;
        let (seen, table, rule) = (*self.rules.get(number / CHUNK_RULES)?.get(number % CHUNK_RULES)?)?;
        let seen = self.seen.get(seen)?;
        Some(match seen.tables.get(table) {
            Some(table) => Told::Legacy(seen, table, table.rules.get(rule)?),
            None => {
                let nft = seen.nft.as_ref()?;
                Told::Nft(seen, nft, (rule, nft.droppers.get(rule)?))
            }
        })
    }

    /// Packs the counters of a table's countable rules into chunks; returns the chunk of each rule, `u32::MAX` for one
    /// that has none. Seen and table are given as indices, too.
    fn add_chunks(
        &mut self,
        (seen, table): (usize, usize),
        (counters, countable): (&Vec<u64>, &Vec<bool>),
        most: u32,
    ) -> Vec<u32> {
        let mut chunk_of = vec![u32::MAX; counters.len()];
        let rules = counters.iter().zip(countable).enumerate();
        let mut order: Vec<(u64, usize)> = rules
            .filter(|(_, (_, countable))| **countable)
            .map(|(index, (counter, _))| (*counter, index))
            .collect();
        order.sort_unstable();
        let mut packing = Packing::default();
        for (counter, index) in order {
            let place = packing.place(counter);
            if place.is_none() {
                if self.chunks.len() >= most as usize {
                    break;
                }
                self.chunks.push(Chunk { address: counter, bytes: 0, mask: 0 });
                self.rules.push([None; CHUNK_RULES]);
            }
            let (Some(chunk), Some(rules)) = (self.chunks.last_mut(), self.rules.last_mut()) else { break };
            let place = place.unwrap_or_default();
            *chunk = Packing::with(*chunk, place);
            if let (Some(rule), Some(of)) = (rules.get_mut(place), chunk_of.get_mut(index)) {
                *rule = Some((seen, table, index));
                *of = self.chunks.len() as u32 - 1;
            }
        }
        chunk_of
    }

    fn add_list(&mut self, netns: NetnsId, met: &Met, chunk_of: &[Vec<u32>]) {
        let (family, hook) = (met.family, met.hook);
        let mut list = List {
            net: netns.address,
            netns: netns.inode,
            hook: hook_word(family.number(), hook),
            checked: met.checks.len() as u32,
            ..List::default()
        };
        for (to, check) in list.checks.iter_mut().zip(&met.checks) {
            *to = *check;
        }
        let (mut chunks, mut fits) = (Vec::new(), met.checks.len() <= LIST_CHECKS);
        for (table, rule) in &met.rules {
            match chunk_of.get(*table).and_then(|chunks| chunks.get(*rule)) {
                Some(chunk) if *chunk != u32::MAX => chunks.push(*chunk),
                _ => fits = false,
            }
        }
        chunks.sort_unstable();
        chunks.dedup();
        fits &= chunks.len() <= LIST_CHUNKS;
        for (to, chunk) in list.chunks.iter_mut().zip(&chunks) {
            *to = *chunk;
        }
        list.length = chunks.len() as u32;
        let first = list_place(list.net, list.hook);
        let mut places = (0..LIST_PROBES).map(|probe| (first.wrapping_add(probe) & (LISTS - 1)) as usize);
        let free = places.find(|place| self.lists.get(*place).is_some_and(|list| list.net == 0));
        match free.and_then(|place| self.lists.get_mut(place)).filter(|_| fits) {
            Some(to) => *to = list,
            None => {
                self.left_out.push(LeftOut { netns: netns.inode, family, hook, rules: met.rules.len() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::counted::Base;
    use crate::netfilter::legacy::tests::{rule, table};

    const NETNS: NetnsId = NetnsId { address: 0xffff_8880_0000_1000, inode: 77, cookie: 5 };

    fn seen(tables: Vec<Table>, hooks: Vec<(Family, u8, Vec<usize>)>) -> Seen {
        Seen { netns: NETNS, tables, hooks, nft: None }
    }

    fn list_of(plan: &Plan, hook: u8) -> Option<&List> {
        plan.lists.iter().find(|list| list.net != 0 && list.hook == hook_word(2, hook))
    }

    #[test]
    fn counters_side_by_side_share_a_chunk() {
        // Counters 0, 2 and 15 of a block, one behind it, one between two counters.
        let rules = [0, 32, 240, 256, 264].map(|at| rule(0, 0x1000 + at));
        let plan = plan(vec![seen(vec![table(rules.to_vec())], vec![(Family::Ipv4, 1, vec![0])])], 100);
        let told: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.address, chunk.bytes, chunk.mask)).collect();
        assert_eq!(told, [(0x1000, 248, 0x8005), (0x1100, 8, 1), (0x1108, 8, 1)]);
        for (number, rule) in [(0, 0), (2, 1), (15, 2), (16, 3), (32, 4)] {
            assert!(
                matches!(plan.rule(number), Some(Told::Legacy(.., it)) if it.counter == rules[rule].counter)
            );
        }
        for number in [1, 17, 48, u64::MAX] {
            assert_eq!(plan.rule(number), None);
        }
        let list = list_of(&plan, 1).unwrap();
        assert_eq!((&list.chunks[..3], list.length, list.checked, list.netns), (&[0, 1, 2][..], 3, 1, 77));
        assert_eq!(list.checks[0], Check { at: 5, value: 6, mask: u64::MAX });
    }

    #[test]
    fn a_rule_of_two_hooks_has_one_memory() {
        let shared = table(vec![rule(0, 0x1000), rule(1, 0x9000), rule(2, 0x5000)]);
        let hooks = vec![(Family::Ipv4, 1, vec![0]), (Family::Ipv4, 2, vec![0])];
        let plan = plan(vec![seen(vec![shared], hooks)], 100);
        // Chain 0 is INPUT, 1 FORWARD, and both jump to 2.
        let chunks = |hook| {
            let list = list_of(&plan, hook).unwrap();
            list.chunks[..list.length as usize]
                .iter()
                .map(|chunk| plan.chunks[*chunk as usize].address)
                .collect::<Vec<_>>()
        };
        assert_eq!((chunks(1), chunks(2)), (vec![0x1000, 0x5000], vec![0x5000, 0x9000]));
        assert_eq!(plan.chunks.len(), 3);
    }

    #[test]
    fn rules_of_nft_are_watched_beside_legacys() {
        let dropper = |counter| Dropper { counter, address: counter, expression: None };
        let check = |at| Check { at, value: 7, mask: u64::MAX };
        let base = |hook, droppers: &[usize], own: Option<u64>| Base {
            family: Family::Ipv4,
            hook,
            address: 9,
            droppers: droppers.to_vec(),
            is_complete: true,
            check: own.map(check),
        };
        let nft = Counted {
            check: check(1),
            droppers: [0x2008, 0x2018, 0x3008].map(dropper).to_vec(),
            // Two base chains on one hook lead to one rule; nothing drops on another hook.
            bases: vec![
                base(1, &[0, 1], Some(2)),
                base(1, &[1], None),
                base(2, &[2], None),
                base(3, &[], None),
            ],
            ..Counted::default()
        };
        let legacy = seen(vec![table(vec![rule(0, 0x1000)])], vec![(Family::Ipv4, 1, vec![0])]);
        let plan = plan(vec![Seen { nft: Some(nft), ..legacy }], 100);
        let told: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.address, chunk.bytes, chunk.mask)).collect();
        assert_eq!(told, [(0x1000, 8, 1), (0x2008, 24, 3), (0x3008, 8, 1)]);
        let list = list_of(&plan, 1).unwrap();
        assert_eq!((&list.chunks[..2], list.length, list.checked), (&[0, 1][..], 2, 3));
        let at: Vec<u64> = list.checks[..3].iter().map(|check| check.at).collect();
        assert_eq!(at, [5, 1, 2]);
        assert_eq!(
            list_of(&plan, 2).map(|list| (list.chunks[0], list.length, list.checked)),
            Some((2, 1, 1))
        );
        assert_eq!(list_of(&plan, 3), None);
        assert!(matches!(plan.rule(17), Some(Told::Nft(.., (1, it))) if it.counter == 0x2018));
        assert!(matches!(plan.rule(0), Some(Told::Legacy(.., it)) if it.counter == 0x1000));
    }

    #[test]
    fn a_hook_with_too_many_rules_takes_no_room() {
        let most = LIST_CHUNKS * CHUNK_RULES;
        let of = |count: usize| {
            let many = (0..count as u64).map(|index| rule(0, 0x1000 + index * COUNTER_BYTES as u64));
            let few = [rule(1, 0x90_0000), rule(2, 0x90_0100)];
            let hooks = vec![(Family::Ipv4, 1, vec![0]), (Family::Ipv4, 2, vec![0])];
            plan(vec![seen(vec![table(many.chain(few).collect())], hooks)], LIST_CHUNKS as u32 + 2)
        };
        // With the rule of the chain that both hooks jump to.
        let full = of(most - CHUNK_RULES);
        assert_eq!((full.chunks.len(), full.left_out.len()), (LIST_CHUNKS + 1, 0));
        let left = of(most);
        assert_eq!((left.chunks.len(), list_of(&left, 1)), (2, None));
        assert_eq!(list_of(&left, 2).map(|list| list.length), Some(2));
        assert_eq!(left.left_out, [LeftOut { netns: 77, family: Family::Ipv4, hook: 1, rules: most + 1 }]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let many: Vec<_> = (0..LIST_CHUNKS as u64 + 1).map(|index| rule(0, 0x1000 * (index + 1))).collect();
        let hooks = vec![(Family::Ipv4, 1, vec![0])];
        let plan_of = |most| plan(vec![seen(vec![table(many.clone())], hooks.clone())], most);
        for most in [1000, 10] {
            let plan = plan_of(most);
            assert_eq!(list_of(&plan, 1), None);
            let left = LeftOut { netns: 77, family: Family::Ipv4, hook: 1, rules: LIST_CHUNKS + 1 };
            assert_eq!(plan.left_out, [left]);
        }
    }
}
