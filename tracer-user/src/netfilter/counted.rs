//! Which nft rules tell by their counter that they dropped a packet: those whose counter stands right before the
//! expression that drops, as in every rule of iptables-nft. Nothing else moves such a counter, so it moves by one for each
//! packet that the rule drops.
//!
//! A rule that drops without one says nothing, and a counter that moved before may then pass for it: a packet that the
//! programs did not see dropped, or not yet (a softirq has come in between). So a base chain is *complete* where
//! everything that can drop in it is counted; only there is the one counter that moved an exact answer. Policies are
//! counted where whoever made the chain asked for that, as iptables-nft-restore does.

use super::expressions::{Operations, effects};
use super::hooks::HookLayout;
use super::memory::KernelMemory;
use super::model::Family;
use super::nft::{NftLayout, Policy, Ruleset, Span};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, hash_map::Entry};
use std::rc::Rc;
use tracer_common::{EXPRESSION_WORDS, watch::Check};

/// Hooks of a family, at most: those of bridges, with `broute`.
const HOOKS: u8 = 6;

/// The rules and policies of a netns that drop, as far as counters tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Generation of the rule set that they are of.
    pub sequence: u32,
    /// What shows that it is in force.
    pub check: Check,
    /// Those that are counted.
    pub droppers: Vec<Dropper>,
    /// The base chains.
    pub bases: Vec<Base>,
    /// `gencursor` of that generation.
    pub(super) cursor: usize,
    /// The policies of base chains, by their address.
    pub(super) policies: Vec<(u64, Policy)>,
}

/// A rule or policy whose counter tells that it dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropper {
    /// Address of its counter's packets: per-CPU.
    pub counter: u64,
    /// Address of the expression that drops; of the chain, if it is a policy.
    pub address: u64,
    /// The first bytes of that expression; `None` for a policy.
    pub expression: Option<[u64; EXPRESSION_WORDS]>,
}

/// A base chain on a hook; one of family `inet` is on two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The hook's family.
    pub family: Family,
    /// The hook.
    pub hook: u8,
    /// Address of the struct nft_chain.
    pub address: u64,
    /// What can drop in it or in a chain that it leads to, as indices of [`Counted::droppers`], in order.
    pub droppers: Vec<usize>,
    /// True if nothing else can.
    pub is_complete: bool,
    /// What shows that its policy's counter is still the same, if that is watched.
    pub check: Option<Check>,
}

impl Counted {
    /// Looks through the rule set in force in the netns at `net`. `None` if it is not in force any more, or this kernel
    /// doesn't describe it.
    pub fn read(
        memory: &mut impl KernelMemory,
        layout: &NftLayout,
        hooks: &HookLayout,
        net: u64,
        ruleset: &Ruleset,
    ) -> Option<Self> {
        let check = layout.check(memory, net, ruleset.sequence)?;
        let mut walk = Walk::new(ruleset);
        let mut counted =
            Self { sequence: ruleset.sequence, cursor: ruleset.cursor, check, ..Self::default() };
        for family in [Family::Ipv4, Family::Ipv6, Family::Arp, Family::Bridge] {
            for hook in 0..HOOKS {
                for hooked in hooks.hooked(memory, net, family, hook) {
                    if let Some(chain) = walk.base_at(hooked.private) {
                        let address = hooked.private;
                        let base = match counted.bases.iter().find(|base| base.address == address) {
                            Some(known) => Base { family, hook, ..known.clone() },
                            None => counted.base(memory, layout, &mut walk, chain, (family, hook))?,
                        };
                        counted.bases.push(base);
                    }
                }
            }
        }
        counted.is_in_force(memory, layout, net).then_some(counted)
    }

    /// True if the rule set in force in the netns at `net` is still this one, and so are the policies.
    pub fn is_in_force(&self, memory: &mut impl KernelMemory, layout: &NftLayout, net: u64) -> bool {
        layout.sequence(memory, net) == Some(self.sequence)
            && layout.cursor(memory, net) == Some(self.cursor)
            && self.policies.iter().all(|(chain, policy)| layout.policy(memory, *chain) == Some(*policy))
    }

    /// The base chain at `address` on a hook, if `dropper` can drop in it.
    #[must_use]
    pub fn base_of(&self, dropper: usize, (family, hook): (Family, u8), address: u64) -> Option<&Base> {
        let is_it = |base: &&Base| (base.family, base.hook, base.address) == (family, hook, address);
        self.bases.iter().find(is_it).filter(|base| base.droppers.binary_search(&dropper).is_ok())
    }

    fn base(
        &mut self,
        memory: &mut impl KernelMemory,
        layout: &NftLayout,
        walk: &mut Walk<'_>,
        chain: usize,
        (family, hook): (Family, u8),
    ) -> Option<Base> {
        let address = walk.ruleset.chains.get(chain)?.address;
        let (mut droppers, mut is_complete) = (Vec::new(), true);
        let (mut seen, mut next) = (HashSet::from([chain]), vec![chain]);
        while let Some(chain) = next.pop() {
            let it = walk.chain(memory, layout, chain, &mut self.droppers);
            droppers.extend(&it.droppers);
            is_complete &= !it.drops_uncounted;
            let beside = if it.jumps_anywhere { walk.beside(chain) } else { Vec::new() };
            next.extend(it.jumps.iter().copied().chain(beside).filter(|chain| seen.insert(*chain)));
        }
        let policy = layout.policy(memory, address)?;
        self.policies.push((address, policy));
        let counter = policy.counter.filter(|_| policy.drops);
        if let Some((counter, _)) = counter {
            droppers.push(self.droppers.len());
            self.droppers.push(Dropper { counter, address, expression: None });
        }
        droppers.sort_unstable();
        is_complete &= !policy.drops || counter.is_some();
        Some(Base { family, hook, address, droppers, is_complete, check: counter.map(|(_, check)| check) })
    }
}

/// What the rules of a chain can do.
#[derive(Debug, Default)]
struct ChainEffects {
    /// Those that are counted, as indices of [`Counted::droppers`].
    droppers: Vec<usize>,
    /// A rule may drop what its counter doesn't tell.
    drops_uncounted: bool,
    /// Chains that they jump or go to, as indices.
    jumps: Vec<usize>,
    /// They may jump to any chain of the table.
    jumps_anywhere: bool,
}

/// A rule set that is looked through. Each chain is, once, where a base chain leads to it.
struct Walk<'r> {
    ruleset: &'r Ruleset,
    spans: HashMap<usize, Vec<&'r Span>>,
    /// Chains by their address.
    places: HashMap<u64, usize>,
    operations: Operations,
    known: HashMap<usize, Rc<ChainEffects>>,
}

impl<'r> Walk<'r> {
    fn new(ruleset: &'r Ruleset) -> Self {
        Self {
            ruleset,
            spans: ruleset.spans_of_chains(),
            places: ruleset.chains.iter().enumerate().map(|(index, chain)| (chain.address, index)).collect(),
            operations: Operations::default(),
            known: HashMap::new(),
        }
    }

    /// The base chain at an address.
    fn base_at(&self, address: u64) -> Option<usize> {
        let index = *self.places.get(&address)?;
        self.ruleset.chains.get(index)?.base.map(|_| index)
    }

    /// The chains of a chain's table.
    fn beside(&self, chain: usize) -> Vec<usize> {
        let Some(table) = self.ruleset.chains.get(chain).map(|chain| chain.table) else { return Vec::new() };
        let chains = self.ruleset.chains.iter().enumerate();
        chains.filter(|(_, chain)| chain.table == table).map(|(index, _)| index).collect()
    }

    /// What a chain's rules can do; those that are counted are added to `droppers`.
    fn chain(
        &mut self,
        memory: &mut impl KernelMemory,
        layout: &NftLayout,
        chain: usize,
        droppers: &mut Vec<Dropper>,
    ) -> Rc<ChainEffects> {
        let known = match self.known.entry(chain) {
            Entry::Occupied(known) => return Rc::clone(known.get()),
            Entry::Vacant(new) => new,
        };
        let mut all = ChainEffects::default();
        let layouts = layout.expressions.as_ref().zip(layout.counters.as_ref());
        for span in self.spans.get(&chain).into_iter().flatten() {
            let Some((layouts, (bytes, rules))) = layouts.zip(self.ruleset.read_span(memory, span)) else {
                all.drops_uncounted = true;
                all.jumps_anywhere = true;
                continue;
            };
            for rule in rules {
                // What can't be read may be anything.
                let expressions = rule.expressions(&bytes).unwrap_or(&[0]);
                let operations = &mut self.operations;
                let memory = RefCell::new(&mut *memory);
                let mut of = |ops| operations.of(*memory.borrow_mut(), layout, ops);
                let mut flags = |at| memory.borrow_mut().bytes(at).map(u16::from_ne_bytes);
                let it = effects(expressions, layouts, &mut of, &mut flags);
                all.drops_uncounted |= it.drops_uncounted;
                all.jumps_anywhere |= it.jumps_anywhere;
                all.jumps.extend(it.jumps.iter().filter_map(|chain| self.places.get(chain)));
                all.jumps_anywhere |= it.jumps.iter().any(|chain| !self.places.contains_key(chain));
                if let Some(drop) = it.counted {
                    all.droppers.push(droppers.len());
                    droppers.push(Dropper {
                        counter: drop.counter,
                        address: span.range.start + rule.start() + drop.offset as u64,
                        expression: Some(drop.expression),
                    });
                }
            }
        }
        Rc::clone(known.insert(Rc::new(all)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::expressions::tests::{expression, verdict};
    use super::super::memory::fake::Fake;
    use super::super::nft::tests::{chain, described, header};
    use super::super::nft::{Chain, Rule};
    use super::*;

    const NET: u64 = 0xffff_8880_0000_0000;
    const HOOKS: HookLayout =
        HookLayout { arrays: [0, 40], others: [None; 2], entries_count: 0, entries_hooks: 8 };
    const COUNTER: u64 = NET + 0x1000;
    const IMMEDIATE: u64 = NET + 0x2000;
    const LOG: u64 = NET + 0x3000;
    const BASE: u64 = NET + 0x10_0000;
    const USER: u64 = NET + 0x20_0000;
    const STATS: u64 = 0x7000;

    /// `counter` and a verdict, or only the verdict.
    fn rule(counter: Option<u64>, code: i32) -> Vec<u8> {
        let counted = counter.map(|counter| expression(COUNTER, &counter.to_ne_bytes()));
        [counted.unwrap_or_default(), expression(IMMEDIATE, &verdict(code, USER))].concat()
    }

    /// A base chain on INPUT of IPv4, and one that it may jump to, with these rules.
    fn scene(base: &[Vec<u8>], user: &[Vec<u8>], stats: u64) -> (Fake, Ruleset) {
        let mut memory = Fake::default();
        for (ops, name, size) in
            [(COUNTER, "counter", 16_u32), (IMMEDIATE, "immediate", 32), (LOG, "synproxy", 16)]
        {
            memory.put(ops, &size.to_ne_bytes());
            memory.put_u64(ops + 8, ops + 64);
            memory.put_u64(ops + 16, 0);
            memory.put_u64(ops + 64, ops + 128);
            memory.put(ops + 128, &[name.as_bytes(), &[0; 64]].concat());
        }
        memory.put_u64(NET + 64, 7);
        memory.put_u64(NET + 72, 0);
        memory.put_u64(NET + 8, NET + 0x100);
        memory.put(NET + 0x100, &1_u16.to_ne_bytes());
        memory.put_u64(NET + 0x108, 0x1111);
        memory.put_u64(NET + 0x110, BASE);
        memory.put(BASE - 32, &[0; 32]);
        memory.put_u64(BASE - 16, stats);
        let mut ruleset = Ruleset { sequence: 7, ..Ruleset::default() };
        for (index, (address, rules)) in [(BASE, base), (USER, user)].into_iter().enumerate() {
            let (start, mut data, mut places) = (address + 0x1000, Vec::new(), Vec::new());
            for (rule, handle) in rules.iter().zip(1..) {
                let length = rule.len() as u32;
                places.push(Rule { handle, offset: data.len() as u32, length });
                data.extend(header(false, length.into(), handle));
                data.extend(rule);
            }
            memory.put(start, &data);
            let all = 0..places.len() as u32;
            ruleset.spans.push(Span {
                range: start..start + data.len() as u64,
                chain: index,
                former: 0,
                rules: all,
            });
            let it = chain("c", index == 0);
            ruleset.chains.push(Chain { address, rules: [places, Vec::new()], ..it });
        }
        (memory, ruleset)
    }

    fn read(memory: &mut Fake, ruleset: &Ruleset) -> Option<Counted> {
        Counted::read(memory, &described(), &HOOKS, NET, ruleset)
    }

    #[test]
    fn what_drops_is_found_through_jumps() {
        let base = [rule(Some(0x100), 0), rule(Some(0x200), -3), rule(None, 1)];
        let (mut memory, ruleset) = scene(&base, &[rule(Some(0x300), 0)], STATS);
        let counted = read(&mut memory, &ruleset).unwrap();
        let told: Vec<_> = counted.droppers.iter().map(|it| (it.counter, it.address)).collect();
        // Each drop stands behind its rule's header and counter; the policy is the chain.
        let drops = [(0x108, BASE + 0x1000 + 24), (0x308, USER + 0x1000 + 24), (STATS + 8, BASE)];
        assert_eq!(told, drops);
        let [base] = &counted.bases[..] else { panic!("{:?}", counted.bases) };
        assert_eq!(
            (base.family, base.hook, &base.droppers[..], base.is_complete),
            (Family::Ipv4, 1, &[0, 1, 2][..], true)
        );
        assert_eq!(base.check, Some(Check { at: BASE - 16, value: STATS, mask: u64::MAX }));
        assert_eq!(counted.check, Check { at: NET + 64, value: 7, mask: u32::MAX.into() });
        assert!(counted.base_of(1, (Family::Ipv4, 1), BASE).is_some());
        for (dropper, place, address) in [
            (3, (Family::Ipv4, 1), BASE),
            (1, (Family::Ipv4, 2), BASE),
            (1, (Family::Ipv6, 1), BASE),
            (1, (Family::Ipv4, 1), USER),
        ] {
            assert_eq!(counted.base_of(dropper, place, address), None);
        }
    }

    #[test]
    fn a_chain_is_complete_if_all_that_drops_is_counted() {
        let is_complete = |base: &[Vec<u8>], user: &[Vec<u8>], stats| {
            let (mut memory, ruleset) = scene(base, user, stats);
            read(&mut memory, &ruleset).unwrap().bases[0].is_complete
        };
        let list = |rule: &Vec<u8>| [rule.clone()];
        let (counted, jump, uncounted) = (rule(Some(0x100), 0), rule(None, -3), rule(None, 0));
        assert!(is_complete(&[counted.clone(), jump.clone()], &list(&counted), STATS));
        // A policy without a counter, and rules; also behind a jump, but not where nothing leads to.
        assert!(!is_complete(&list(&counted), &[], 0));
        assert!(!is_complete(&[counted.clone(), uncounted.clone()], &[], STATS));
        assert!(!is_complete(&list(&jump), &list(&uncounted), STATS));
        assert!(is_complete(&list(&counted), &list(&uncounted), STATS));
        // What may drop, what is not known, and what can't be read.
        assert!(!is_complete(&[expression(LOG, &[0; 8])], &[], STATS));
        assert!(!is_complete(&[expression(LOG + 8, &[0; 8])], &[], STATS));
        let (mut memory, ruleset) = scene(&[jump], &[counted], STATS);
        memory.0.remove(&(USER + 0x1000));
        assert!(!read(&mut memory, &ruleset).unwrap().bases[0].is_complete);
    }

    #[test]
    fn it_is_in_force_until_the_generation_or_a_policy_changes() {
        let (mut memory, ruleset) = scene(&[rule(Some(0x100), 0)], &[], STATS);
        let counted = read(&mut memory, &ruleset).unwrap();
        let is_in_force = |memory: &mut Fake| counted.is_in_force(memory, &described(), NET);
        assert!(is_in_force(&mut memory));
        for (at, word) in [(NET + 64, 8), (NET + 72, 1), (BASE - 8, 1), (BASE - 16, STATS + 16)] {
            let before = memory.u64(at).unwrap();
            memory.put_u64(at, word);
            assert!(!is_in_force(&mut memory), "{at:x}");
            memory.put_u64(at, before);
        }
        assert!(is_in_force(&mut memory));
        memory.put_u64(NET + 64, 8);
        assert_eq!(read(&mut memory, &ruleset), None);
    }
}
