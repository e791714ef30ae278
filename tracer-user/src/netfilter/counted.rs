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
    cursor: usize,
    /// The policies of base chains, by their address.
    policies: Vec<(u64, Policy)>,
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
