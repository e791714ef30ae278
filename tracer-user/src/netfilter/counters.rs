//! Which rule dropped a packet, by its counter: what the programs are told to compare, kept up to date, and what their
//! answers are worth.

use super::NetnsId;
use super::attribute::{self, Hook};
use super::counted::{Counted, Dropper};
use super::hooks::HookLayout;
use super::legacy::{LegacyLayout, Rule, Table, Verdict};
use super::memory::KernelMemory;
use super::model::{Backend, Confidence, Family, Method, Netfilter, RuleRef, TableSummary, hook_name};
use super::nft::NftLayout;
use super::queue;
use super::rulesets::{Evidence, InForce};
use super::watch::{LeftOut, Plan, Seen, Told, plan};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tracer_common::{attribution_kind, attribution_word, hook_of, kind_of, with_index_of};

/// Reading a whole table to see that it is unchanged takes at most one part in this many of the time.
const IDLE_SHARE: u32 = 10;
/// Plans kept: events of the one before may still be in the ring.
const PLANS: usize = 3;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Counters {
    layout: Option<LegacyLayout>,
    /// True where counters tell nft's rules, too.
    has_nft: bool,
    /// Newest last, each with its version.
    plans: Vec<(u32, Plan)>,
    /// Tables that were found unchanged, by address.
    confirmed: HashMap<u64, Confirmed>,
    /// The plan must be made again, whatever the tables look like.
    is_stale: bool,
    /// Something is not as the plan says: the tables are to be looked at.
    is_suspect: bool,
    /// When they may be looked at again.
    not_before: Option<Instant>,
}

/// When a table was last found unchanged since its plan was made.
#[derive(Debug)]
struct Confirmed {
    version: u32,
    /// Events before this time are covered, CLOCK_MONOTONIC ns.
    until: u64,
    /// When it may be read in full again.
    fully_after: Instant,
}

impl Counters {
    /// With the layout of the running kernel's tables.
    pub fn set_layout(&mut self, layout: LegacyLayout) {
        self.layout = Some(layout);
        self.is_stale = true;
    }

    /// Says that the programs have forgotten what they were told.
    pub fn renew(&mut self) {
        self.is_stale = true;
    }

    /// Whether counters are to tell nft's rules: where the self-test has proved it.
    pub fn set_nft(&mut self, has_nft: bool) {
        self.has_nft = has_nft;
        self.is_stale = true;
    }

    /// Whether they do.
    #[must_use]
    pub fn has_nft(&self) -> bool {
        self.has_nft
    }

    /// The layout of legacy tables.
    #[must_use]
    pub fn layout(&self) -> Option<&LegacyLayout> {
        self.layout.as_ref()
    }

    /// True if the tables should be looked at: `regularly` (about once a second), or because a drop didn't fit the plan.
    #[must_use]
    pub fn is_due(&self, regularly: bool) -> bool {
        (self.layout.is_some() || self.has_nft)
            && (regularly || self.is_stale || self.is_suspect)
            && self.not_before.is_none_or(|when| Instant::now() >= when)
    }

    /// Looks for changed rules in the given network namespaces. `nft` tells those of nft that count. Returns the new plan
    /// and its version if the programs must be told.
    pub fn refresh<M: KernelMemory>(
        &mut self,
        memory: &mut M,
        netns: &[NetnsId],
        most: u32,
        nft: Option<NftRules<'_, M>>,
    ) -> Option<(u32, &Plan)> {
        let layout = self.layout;
        let mut nft = nft.filter(|_| self.has_nft);
        let start = Instant::now();
        self.is_suspect = false;
        let is_current = !self.is_stale
            && self.is_current(memory, layout.as_ref(), nft.as_ref().map(|it| it.layout), netns);
        self.not_before = Some(start + start.elapsed() * IDLE_SHARE);
        if is_current {
            return None;
        }
        let mut read = |netns: &NetnsId| {
            let legacy = layout.map(|layout| read(memory, &layout, *netns));
            let nft = nft.as_mut().and_then(|nft| (nft.read)(memory, *netns));
            Seen { netns: *netns, nft, ..legacy.unwrap_or_default() }
        };
        let has_any = |seen: &Seen| !seen.tables.is_empty() || seen.nft.is_some();
        let seen: Vec<Seen> = netns.iter().map(&mut read).filter(has_any).collect();
        self.is_stale = false;
        self.not_before = Some(start + start.elapsed() * IDLE_SHARE);
        let version = self.plans.last().map_or(1, |(version, _)| version.wrapping_add(1).max(1));
        if self.plans.len() >= PLANS {
            self.plans.remove(0);
        }
        self.confirmed.clear();
        self.plans.push((version, plan(seen, most)));
        self.plans.last().map(|(version, plan)| (*version, plan))
    }

    /// True if every netns has the rules that the plan knows.
    fn is_current(
        &self,
        memory: &mut impl KernelMemory,
        legacy: Option<&LegacyLayout>,
        nft: Option<&NftLayout>,
        netns: &[NetnsId],
    ) -> bool {
        let Some((_, plan)) = self.plans.last() else { return false };
        let known: HashMap<_, _> = plan.seen.iter().map(|seen| (seen.netns, seen)).collect();
        known.keys().all(|key| netns.contains(key))
            && netns.iter().all(|key| {
                let shape = legacy.map_or_else(Vec::new, |layout| hooks(memory, layout, key.address));
                let Some(seen) = known.get(key) else { return shape.is_empty() && nft.is_none() };
                let is_unchanged = |table: &Table| memory.pointer(table.private.0) == Some(table.private.1);
                shape == shape_of(seen)
                    && seen.tables.iter().all(is_unchanged)
                    && nft.is_none_or(|layout| {
                        let is_in_force = |nft: &Counted| nft.is_in_force(memory, layout, key.address);
                        seen.nft.as_ref().is_some_and(is_in_force)
                    })
            })
    }

    /// The answer for the legacy rule `number` of a version of the lists.
    pub fn rule(
        &mut self,
        memory: &mut impl KernelMemory,
        (number, version): (u64, u32),
        evidence: &Evidence,
    ) -> Option<Netfilter> {
        let layout = self.layout?;
        let Told::Legacy(seen, table, rule) = told(&self.plans, (number, version))? else { return None };
        if evidence.netns.address != 0 && evidence.netns != seen.netns {
            // The list was that of a netns that is gone.
            self.is_suspect = true;
            return None;
        }
        // Where it is known which function of the hook dropped it: is it the table that the rule is in?
        if evidence.hooked.is_some_and(|it| it.private != table.address) {
            return None;
        }
        let (time, now) = (evidence.time, evidence.now);
        let confidence = if confirm(&mut self.confirmed, memory, &layout, (table, rule, version), time, now) {
            Confidence::Exact
        } else {
            // Replaced since the lists were made: before this drop or after it.
            self.is_stale = true;
            Confidence::Ambiguous
        };
        Some(answer(table, rule, evidence.hook, confidence))
    }

    /// What a drop's evidence says if the counter that moved is that of an nft rule or policy: as if the stack had told it,
    /// and how sure that is at best. `None` for legacy rules, and where the hook function that dropped the packet is not
    /// known to be a base chain that leads to the rule.
    pub fn nft(
        &mut self,
        memory: &mut impl KernelMemory,
        hooks: &HookLayout,
        evidence: &Evidence,
    ) -> Option<(Evidence, Confidence)> {
        let [number, word] = evidence.attribution;
        let Told::Nft(seen, nft, (index, dropper)) = told(&self.plans, (number, word as u32))? else {
            return None;
        };
        if evidence.netns.address != 0 && evidence.netns != seen.netns {
            // The list was that of a netns that is gone.
            self.is_suspect = true;
            return None;
        }
        let hook = evidence.hook?;
        let place = (Family::from_number(hook.family)?, hook.number);
        let (base, by_function) = evidence.hooked(memory, hooks, seen.netns)?;
        let is_complete = nft.base_of(index, place, base.private)?.is_complete;
        // What drops without a counter may have done it, while this one told of a drop that was not seen.
        let confidence = if is_complete { by_function } else { Confidence::Inferred };
        let attribution = as_stack(nft, dropper, word);
        Some((Evidence { attribution, expression: dropper.expression, ..*evidence }, confidence))
    }

    /// Address and generation of what a counter told, if that is nft's: as in `FlowKey::attribution`.
    #[must_use]
    pub fn nft_address(&self, [number, word]: [u64; 2]) -> Option<(u64, u32)> {
        match told(&self.plans, (number, word as u32))
            .filter(|_| kind_of(word) == attribution_kind::COUNTED)?
        {
            Told::Nft(_, nft, (_, dropper)) => Some((dropper.address, nft.sequence)),
            Told::Legacy(..) => None,
        }
    }

    /// True if a netns has the tables that are known of it, and they lie where they did: not more than a hint.
    pub fn is_known(&self, memory: &mut impl KernelMemory, netns: NetnsId) -> bool {
        let Some(((_, plan), layout)) = self.plans.last().zip(self.layout.as_ref()) else { return false };
        let shape = hooks(memory, layout, netns.address);
        let Some(seen) = plan.seen.iter().find(|seen| seen.netns == netns) else { return shape.is_empty() };
        let is_unchanged = |table: &Table| memory.pointer(table.private.0) == Some(table.private.1);
        shape == shape_of(seen) && seen.tables.iter().all(is_unchanged)
    }

    /// True if the tables of a netns are those that a version of the lists was made of.
    pub fn is_still(&self, memory: &mut impl KernelMemory, netns: NetnsId, version: u32) -> bool {
        let plan = self.plans.iter().find(|(known, _)| *known == version);
        let seen = plan.and_then(|(_, plan)| plan.seen.iter().find(|seen| seen.netns == netns));
        self.layout
            .as_ref()
            .zip(seen)
            .is_some_and(|(layout, seen)| seen.tables.iter().all(|table| table.is_same(memory, layout)))
    }

    /// Which rules a table has now, that is asked on a hook.
    pub fn in_force(
        &self,
        memory: &mut impl KernelMemory,
        netns: NetnsId,
        (family, hook): (Family, u8),
        table: &str,
    ) -> InForce {
        let Some(layout) = self.layout.as_ref().filter(|_| netns.address != 0) else {
            return InForce::Unknown;
        };
        let hooked = layout.hooks.hooked(memory, netns.address, family, hook);
        let addresses = if table == "nat" {
            let Some(of_nat) = Table::of_nat(memory, layout, &hooked) else { return InForce::Unknown };
            of_nat
        } else {
            Table::addresses(layout, &hooked)
        };
        let Some(address) = addresses.into_iter().find(|it| Table::is_named(memory, layout, *it, table))
        else {
            return InForce::NoTable;
        };
        Table::version(memory, layout, address).map_or(InForce::Unknown, InForce::Version)
    }

    /// The legacy tables of a netns as they are known, with the version of the lists.
    #[must_use]
    pub fn tables_of(&self, netns: NetnsId) -> Option<(u32, &[Table])> {
        let (version, plan) = self.plans.last()?;
        let seen = plan.seen.iter().find(|seen| seen.netns == netns)?;
        Some((*version, &seen.tables))
    }

    /// The legacy nat table of a netns: it is on no hook itself, NAT asks it. Its address, and a number that it has as long as it is
    /// not replaced (xt_table.private).
    pub fn nat_of(
        &self,
        memory: &mut impl KernelMemory,
        netns: NetnsId,
        family: Family,
    ) -> Option<(u64, u64)> {
        /// NF_INET_PRE_ROUTING: NAT is on all hooks but FORWARD, or on none.
        const HOOK: u8 = 0;
        let layout = self.layout.as_ref().filter(|_| netns.address != 0)?;
        let hooked = layout.hooks.hooked(memory, netns.address, family, HOOK);
        let asked = Table::of_nat(memory, layout, &hooked)?;
        let address = asked.into_iter().find(|it| Table::is_named(memory, layout, *it, "nat"))?;
        Some((address, Table::private_of(memory, layout, address)?))
    }

    /// A legacy table, read now.
    pub fn read_table(&self, memory: &mut impl KernelMemory, family: Family, address: u64) -> Option<Table> {
        Table::read(memory, self.layout.as_ref()?, family, address)
    }

    /// The tables on a hook as they are known: the version of the lists, and address and name of each in order.
    #[must_use]
    pub fn tables_on(&self, netns: NetnsId, family: Family, hook: u8) -> Option<(u32, Vec<(u64, String)>)> {
        let (version, plan) = self.plans.last()?;
        let seen = plan.seen.iter().find(|seen| seen.netns == netns)?;
        let (.., tables) = seen.hooks.iter().find(|(of, number, _)| (*of, *number) == (family, hook))?;
        let table = |index: &usize| seen.tables.get(*index).map(|table| (table.address, table.name.clone()));
        Some((*version, tables.iter().map(table).collect::<Option<_>>()?))
    }

    /// The chains in the table of a rule.
    pub fn chains_beside(&self, number: (u64, u32)) -> impl Iterator<Item = &str> {
        let table = match told(&self.plans, number) {
            Some(Told::Legacy(_, table, _)) => Some(table),
            _ => None,
        };
        table.into_iter().flat_map(|table| &table.chains).map(|chain| chain.name.as_str())
    }

    /// The rules of a netns that give packets to user space, with the version of what is known.
    #[must_use]
    pub fn queues(&self, netns: NetnsId) -> (u32, Vec<queue::Rule>) {
        let Some((version, plan)) = self.plans.last() else { return (0, Vec::new()) };
        let seen = plan.seen.iter().filter(|seen| seen.netns == netns);
        (*version, seen.flat_map(queues_of).collect())
    }

    /// The same, read now: for a netns whose tables are not known yet. `None` if they change meanwhile.
    pub fn queues_now(&self, memory: &mut impl KernelMemory, netns: NetnsId) -> Option<Vec<queue::Rule>> {
        let layout = self.layout.as_ref()?;
        let seen = read(memory, layout, netns);
        let is_whole = shape_of(&seen) == hooks(memory, layout, netns.address);
        is_whole.then(|| queues_of(&seen).collect())
    }

    /// The netns with an inode number, if it has tables.
    #[must_use]
    pub fn netns(&self, inode: u32) -> Option<NetnsId> {
        let (_, plan) = self.plans.last()?;
        plan.seen.iter().map(|seen| seen.netns).find(|netns| netns.inode == inode)
    }

    /// Says that a drop found a table replaced, or no list where a table may be: look again soon.
    pub fn suspect(&mut self) {
        self.is_suspect = true;
    }

    /// The hooks of a netns and a table's family that are left out, because too many rules can drop there.
    pub fn left_out(&self, netns: u32, family: Family) -> impl Iterator<Item = &'static str> {
        let left_out = self.plans.last().map(|(_, plan)| &plan.left_out).into_iter().flatten();
        let is_here = move |it: &&LeftOut| {
            let is_inet = family == Family::Inet && matches!(it.family, Family::Ipv4 | Family::Ipv6);
            it.netns == netns && (it.family == family || is_inet)
        };
        left_out.filter(is_here).filter_map(|it| hook_name(it.family, it.hook))
    }

    /// The rules and policies of a netns that can drop, in the legacy tables as they are now, each with the address of its
    /// packets, which is per-CPU.
    pub fn droppers(&self, memory: &mut impl KernelMemory, netns: NetnsId) -> Vec<(Netfilter, u64)> {
        let Some(layout) = self.layout else { return Vec::new() };
        let seen = read(memory, &layout, netns);
        let of_table = |table: &Table| {
            let of_rule = |rule: &Rule| (answer(table, rule, None, Confidence::Exact), rule.counter);
            table.rules.iter().map(of_rule).collect::<Vec<_>>()
        };
        seen.tables.iter().flat_map(of_table).collect()
    }

    /// The tables that are known.
    #[must_use]
    pub fn tables(&self) -> Vec<TableSummary> {
        let Some((_, plan)) = self.plans.last() else { return Vec::new() };
        let summary = |seen: &Seen, table: &Table| {
            let inode = seen.netns.inode;
            let hooks = self
                .left_out(inode, table.family)
                .filter(|hook| table.chains.iter().any(|chain| chain.name == *hook));
            TableSummary {
                netns: inode,
                backend: Backend::Legacy,
                family: table.family,
                name: table.name.clone(),
                rules: table.rules.len(),
                left_out: hooks.collect(),
            }
        };
        let of_netns = |seen| move |table| summary(seen, table);
        plan.seen.iter().flat_map(|seen| seen.tables.iter().map(of_netns(seen))).collect()
    }
}

/// How nft's rules are read that count.
pub struct NftRules<'a, M> {
    /// Where nft keeps them.
    pub layout: &'a NftLayout,
    /// Those of a netns.
    pub read: &'a mut dyn FnMut(&mut M, NetnsId) -> Option<Counted>,
}

/// What the stack tells elsewhere: the address of an expression or a base chain, and the rule set's generation.
fn as_stack(nft: &Counted, dropper: &Dropper, word: u64) -> [u64; 2] {
    let kind = match dropper.expression {
        Some(_) => attribution_kind::NFT_RULE,
        None => attribution_kind::NFT_POLICY,
    };
    let told = attribution_word(kind, hook_of(word), nft.sequence);
    [dropper.address, with_index_of(told, word)]
}

/// What a number means in a version of the lists.
fn told(plans: &[(u32, Plan)], (number, version): (u64, u32)) -> Option<Told<'_>> {
    plans.iter().find(|(known, _)| *known == version)?.1.rule(number)
}

/// True if the table is still what it was when its plan was made, so that it was at the drop, too.
fn confirm(
    confirmed: &mut HashMap<u64, Confirmed>,
    memory: &mut impl KernelMemory,
    layout: &LegacyLayout,
    (table, rule, version): (&Table, &Rule, u32),
    time: u64,
    now: u64,
) -> bool {
    let known = confirmed.get(&table.address).filter(|it| it.version == version);
    if known.is_some_and(|it| time < it.until) {
        return true;
    }
    let start = Instant::now();
    let fully = known.is_none_or(|it| start >= it.fully_after);
    let is_same = if fully { table.is_same(memory, layout) } else { table.has_same(memory, layout, rule) };
    if !is_same {
        confirmed.remove(&table.address);
        return false;
    }
    if fully {
        let fully_after = start + start.elapsed() * IDLE_SHARE + Duration::from_micros(100);
        confirmed.insert(table.address, Confirmed { version, until: now, fully_after });
    }
    true
}

fn answer(table: &Table, rule: &Rule, hook: Option<Hook>, confidence: Confidence) -> Netfilter {
    let chain = table.chains.get(rule.chain);
    let (verdict, reject_with) = match rule.verdict {
        Verdict::Drop => ("drop", None),
        Verdict::Policy => ("policy", None),
        Verdict::Reject(with) => ("reject", attribute::iptables_reject(table.family, with)),
    };
    Netfilter {
        backend: Some(Backend::Legacy),
        family: Some(table.family),
        table: Some(table.name.clone()),
        chain: chain.map(|chain| chain.name.clone()),
        rule: (rule.ordinal != 0).then_some(rule.ordinal),
        verdict: Some(verdict.to_owned()),
        reject_with: reject_with.map(str::to_owned),
        method: Some(Method::Counter),
        confidence,
        ..attribute::at_hook(hook)
    }
}

/// The rules that give packets to user space.
fn queues_of(seen: &Seen) -> impl Iterator<Item = queue::Rule> {
    let rule = |table: &Table, (chain, ordinal): (usize, u32)| {
        let chain = table.chains.get(chain)?;
        Some(queue::Rule {
            backend: Backend::Legacy,
            family: table.family,
            place: RuleRef {
                table: table.name.clone(),
                chain: chain.name.clone(),
                rule: Some(ordinal),
                ..RuleRef::default()
            },
            hook: chain.hook,
        })
    };
    let places = seen.tables.iter().flat_map(|table| table.queues.iter().map(move |place| (table, *place)));
    places.filter_map(move |(table, place)| rule(table, place))
}

/// Hooks with tables, and the tables' addresses in the order in which they are asked.
type Shape = Vec<(Family, u8, Vec<u64>)>;

/// That of a netns when its tables were read.
fn shape_of(seen: &Seen) -> Shape {
    let address = |index: &usize| seen.tables.get(*index).map(|table| table.address);
    let addresses = |tables: &[usize]| tables.iter().filter_map(address).collect();
    seen.hooks.iter().map(|(family, hook, tables)| (*family, *hook, addresses(tables))).collect()
}

/// That of a netns now.
fn hooks(memory: &mut impl KernelMemory, layout: &LegacyLayout, net: u64) -> Shape {
    let mut found = Vec::new();
    let mut memory = layout.hooks.block(memory, net);
    for family in [Family::Ipv4, Family::Ipv6] {
        for hook in 0..5 {
            let hooked = layout.hooks.hooked(&mut memory, net, family, hook);
            let tables = Table::addresses(layout, &hooked);
            if !tables.is_empty() {
                found.push((family, hook, tables));
            }
        }
    }
    found
}

/// The tables of a netns.
fn read(memory: &mut impl KernelMemory, layout: &LegacyLayout, netns: NetnsId) -> Seen {
    /// A table that is replaced while it is read is read again, so often.
    const TRIES: u32 = 3;
    let mut seen = Seen { netns, ..Seen::default() };
    for (family, hook, addresses) in hooks(memory, layout, netns.address) {
        let mut indices = Vec::new();
        for address in addresses {
            let known = seen.tables.iter().position(|table| table.address == address);
            let index = known.or_else(|| {
                let table = (0..TRIES).find_map(|_| Table::read(memory, layout, family, address))?;
                seen.tables.push(table);
                Some(seen.tables.len() - 1)
            });
            indices.extend(index);
        }
        seen.hooks.push((family, hook, indices));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::super::legacy::tests::{INFO, LAYOUT, TABLE, memory};
    use super::*;

    #[test]
    fn tables_are_still_those_of_a_version_while_none_has_changed() {
        let mut memory = memory();
        let netns = NetnsId { address: 1, inode: 2, cookie: 3 };
        let table = Table::read(&mut memory, &LAYOUT, Family::Ipv4, TABLE).unwrap();
        // Another, whose rules are elsewhere.
        let other = Table { hash: table.hash ^ 1, ..table.clone() };
        let plan_of = |tables| plan(vec![Seen { netns, tables, ..Seen::default() }], 10);
        let plans = vec![(7, plan_of(vec![table.clone()])), (8, plan_of(vec![table, other]))];
        let counters = Counters { layout: Some(LAYOUT), plans, ..Counters::default() };
        assert!(counters.is_still(&mut memory, netns, 7));
        // One of its tables is not what it was; no such version; a netns that is not known.
        assert!(!counters.is_still(&mut memory, netns, 8));
        assert!(!counters.is_still(&mut memory, netns, 9));
        assert!(!counters.is_still(&mut memory, NetnsId { cookie: 4, ..netns }, 7));
        // Other rules in the same place: only `is_still` sees it.
        memory.put(INFO + 64 + 3, &[9]);
        assert!(counters.is_known(&mut memory, netns) && !counters.is_still(&mut memory, netns, 7));
        memory.put_u64(TABLE, INFO + 8);
        assert!(!counters.is_known(&mut memory, netns));
    }
}
