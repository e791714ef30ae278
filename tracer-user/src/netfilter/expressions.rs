//! What the expressions of nft rules can do to a packet, as far as it takes to find the rules that queue, and those whose
//! counter tells that they dropped a packet.

use super::memory::{Block, KernelMemory, is_kernel_address};
use super::nft::NftLayout;
use crate::probe::btf::Btf;
use std::collections::{HashMap, hash_map::Entry};
use tracer_common::EXPRESSION_WORDS;

/// Expressions whose `ops` is looked at for one answer.
const MAX_OPERATIONS: usize = 1 << 16;
/// NFT_SET_MAP (include/uapi/linux/netfilter/nf_tables.h).
const SET_MAP: u16 = 8;
/// NFT_REG_VERDICT, likewise.
const VERDICT: u8 = 0;

/// Expressions that drop no packet (their `eval` in net/netfilter/nft_*.c), but for `ct` without memory for a zone. What is
/// not known may.
const HARMLESS: [&str; 22] = [
    "meta",
    "payload",
    "cmp",
    "bitwise",
    "byteorder",
    "range",
    "ct",
    "limit",
    "quota",
    "log",
    "rt",
    "socket",
    "fib",
    "hash",
    "numgen",
    "osf",
    "connlimit",
    "dynset",
    "xfrm",
    "tunnel",
    "last",
    "notrack",
];
/// Likewise iptables' targets (their `target` in net/netfilter/xt_*.c).
const HARMLESS_TARGETS: [&str; 12] = [
    "LOG", "NFLOG", "MARK", "CONNMARK", "CT", "CLASSIFY", "TRACE", "AUDIT", "HMARK", "SET", "CHECKSUM", "TEE",
];

/// Where the running kernel keeps what expressions hold: offsets in bytes, from the BTF of `nf_tables` and, up to 5.17,
/// `nft_counter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpressionLayout {
    /// nft_expr.data
    data: u32,
    /// nft_immediate_expr.dreg, .data.verdict.code and .data.verdict.chain
    immediate_register: u32,
    immediate_code: u32,
    immediate_chain: u32,
    /// nft_lookup.set and .dreg
    lookup_set: u32,
    lookup_register: u32,
    /// nft_set.flags
    set_flags: u32,
}

/// Where counters keep what they count, likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterLayout {
    /// nft_counter_percpu_priv.counter: address of a struct nft_counter of each CPU.
    counter: u32,
    /// nft_counter.packets
    packets: u32,
}

impl ExpressionLayout {
    /// From the BTF that describes nf_tables.
    #[must_use]
    pub fn resolve(nf_tables: &Btf) -> Option<Self> {
        let at = |container, path| nf_tables.offset_of(container, path);
        Some(Self {
            data: at("nft_expr", "data")?,
            immediate_register: at("nft_immediate_expr", "dreg")?,
            immediate_code: at("nft_immediate_expr", "data.verdict.code")?,
            immediate_chain: at("nft_immediate_expr", "data.verdict.chain")?,
            lookup_set: at("nft_lookup", "set")?,
            lookup_register: at("nft_lookup", "dreg")?,
            set_flags: at("nft_set", "flags")?,
        })
    }
}

impl CounterLayout {
    /// From the BTF that describes counters: their own module's, or that of nf_tables.
    #[must_use]
    pub fn resolve(btf: &Btf) -> Option<Self> {
        Some(Self {
            counter: btf.offset_of("nft_counter_percpu_priv", "counter")?,
            packets: btf.offset_of("nft_counter", "packets")?,
        })
    }
}

/// What kind of expression has these `ops`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Drops nothing, and leads nowhere. A `match` of iptables is one, though it may drop what it can't read (`hotdrop`),
    /// as those of iptables-legacy do.
    Harmless,
    /// A verdict, or data.
    Immediate,
    /// Looks up an element of a set or map, which may be a verdict.
    Lookup,
    /// Counts.
    Counter,
    /// Drops every packet.
    Reject,
    /// Gives packets to user space.
    Queue,
    /// May drop, for what is known.
    Other,
}

impl Kind {
    /// By the name of its type and, for `target`, that of its iptables target.
    fn named(name: &str, target: Option<&str>) -> Self {
        match (name, target) {
            ("immediate", _) => Self::Immediate,
            ("lookup", _) => Self::Lookup,
            ("counter", _) => Self::Counter,
            ("reject", _) | ("target", Some("REJECT")) => Self::Reject,
            ("queue", _) | ("target", Some("NFQUEUE")) => Self::Queue,
            ("match", _) => Self::Harmless,
            ("target", Some(target)) if HARMLESS_TARGETS.contains(&target) => Self::Harmless,
            (name, _) if HARMLESS.contains(&name) => Self::Harmless,
            _ => Self::Other,
        }
    }
}

/// What expressions are, by their `ops`.
#[derive(Default)]
pub(super) struct Operations {
    /// Bytes of an expression, and its kind.
    known: HashMap<u64, (u32, Kind)>,
    /// By type: its name.
    types: HashMap<u64, String>,
    /// By struct xt_target: its name.
    targets: HashMap<u64, String>,
}

impl Operations {
    /// Of the expression with these `ops`. Targets and matches of iptables-nft have an `ops` each, so most are asked for
    /// once: in one read.
    pub(super) fn of(
        &mut self,
        memory: &mut impl KernelMemory,
        layout: &NftLayout,
        ops: u64,
    ) -> Option<(u32, Kind)> {
        if let Some(known) = self.known.get(&ops) {
            return Some(*known);
        }
        if self.known.len() >= MAX_OPERATIONS {
            return None;
        }
        let fields = [layout.ops_size, layout.ops_type, layout.ops_data];
        let mut block = Block::of_words(memory, ops, &fields);
        let at = |offset: u32| ops + u64::from(offset);
        let (size, kind) = (block.u32(at(layout.ops_size))?, block.pointer(at(layout.ops_type))?);
        let data = block.u64(at(layout.ops_data))?;
        if let Entry::Vacant(new) = self.types.entry(kind) {
            new.insert(layout.type_name_of(memory, kind)?);
        }
        let name = self.types.get(&kind)?;
        if name == "target"
            && let Entry::Vacant(new) = self.targets.entry(data)
        {
            new.insert(memory.string(data + u64::from(layout.target_name?), 29)?);
        }
        let known = (size, Kind::named(name, self.targets.get(&data).map(String::as_str)));
        self.known.insert(ops, known);
        Some(known)
    }
}

/// The expressions in a rule's bytes: each begins with its `ops`, which `of` tells size and kind of. Ends with `None` at
/// one that is not known, for so is what follows.
fn expressions<'b>(
    bytes: &'b [u8],
    of: &mut dyn FnMut(u64) -> Option<(u32, Kind)>,
) -> impl Iterator<Item = Option<(usize, Kind, &'b [u8])>> {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let start = at?;
        let rest = bytes.get(start..).filter(|rest| !rest.is_empty())?;
        let ops = rest.first_chunk::<8>().map(|ops| u64::from_ne_bytes(*ops));
        let found = ops.and_then(&mut *of).and_then(|(size, kind)| {
            let size = size.max(8) as usize;
            Some((size, kind, rest.get(..size)?))
        });
        at = found.map(|(size, ..)| start + size);
        Some(found.map(|(_, kind, expression)| (start, kind, expression)))
    })
}

/// True if one of a rule's expressions queues. `None` if that can't be told.
pub(super) fn queues(bytes: &[u8], of: &mut dyn FnMut(u64) -> Option<(u32, Kind)>) -> Option<bool> {
    for expression in expressions(bytes, of) {
        if expression?.1 == Kind::Queue {
            return Some(true);
        }
    }
    Some(false)
}

/// What a rule can do to a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// A counter right before an expression that drops every packet that comes to it: so many it has dropped.
    pub(super) counted: Option<Counted>,
    /// It may drop packets that its counter doesn't tell.
    pub(super) drops_uncounted: bool,
    /// Addresses of chains (struct nft_chain) that it jumps or goes to.
    pub(super) jumps: Vec<u64>,
    /// It may jump to any chain of its table.
    pub(super) jumps_anywhere: bool,
}

/// A drop that a counter tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// Address of the counter's packets: per-CPU.
    pub(super) counter: u64,
    /// Where the expression that drops begins in the rule.
    pub(super) offset: usize,
    /// Its first bytes.
    pub(super) expression: [u64; EXPRESSION_WORDS],
}

/// What an immediate does to a packet.
enum Verdict {
    Drop,
    Chain(u64),
    Other,
}

/// What a rule can do. `flags` reads a set's flags (nft_set.flags).
pub(super) fn effects(
    bytes: &[u8],
    (layout, counters): (&ExpressionLayout, &CounterLayout),
    of: &mut dyn FnMut(u64) -> Option<(u32, Kind)>,
    flags: &mut dyn FnMut(u64) -> Option<u16>,
) -> Effects {
    let mut effects = Effects::default();
    // Of the expression right before, if it counts.
    let mut counter = None;
    for expression in expressions(bytes, of) {
        let before = counter.take();
        let Some((offset, kind, expression)) = expression else {
            effects.drops_uncounted = true;
            effects.jumps_anywhere = true;
            break;
        };
        let drops = match kind {
            Kind::Harmless | Kind::Queue => false,
            Kind::Counter => {
                let start = word(expression, layout.data + counters.counter);
                counter = start.and_then(|start| start.checked_add(counters.packets.into()));
                false
            }
            Kind::Reject => true,
            Kind::Immediate => match immediate(expression, layout) {
                Some(Verdict::Drop) => true,
                Some(Verdict::Chain(chain)) => {
                    effects.jumps.push(chain);
                    false
                }
                Some(Verdict::Other) => false,
                None => {
                    effects.drops_uncounted = true;
                    effects.jumps_anywhere = true;
                    false
                }
            },
            Kind::Lookup => {
                if is_verdict_map(expression, layout, flags) {
                    effects.drops_uncounted = true;
                    effects.jumps_anywhere = true;
                }
                false
            }
            Kind::Other => {
                effects.drops_uncounted = true;
                false
            }
        };
        if !drops {
            continue;
        }
        match before {
            Some(counter) if effects.counted.is_none() => {
                effects.counted = Some(Counted { counter, offset, expression: first_words(expression) });
            }
            _ => effects.drops_uncounted = true,
        }
        // Nothing behind it is ever met.
        break;
    }
    effects
}

/// The verdict of an immediate (struct nft_immediate_expr, include/net/netfilter/nf_tables_core.h).
fn immediate(expression: &[u8], layout: &ExpressionLayout) -> Option<Verdict> {
    let at = |offset: u32| (layout.data + offset) as usize;
    if *expression.get(at(layout.immediate_register))? != VERDICT {
        return Some(Verdict::Other);
    }
    let code = expression.get(at(layout.immediate_code)..)?.first_chunk()?;
    Some(match i32::from_ne_bytes(*code) {
        // NFT_JUMP and NFT_GOTO
        -3 | -4 => {
            let chain = word(expression, layout.data + layout.immediate_chain)?;
            Verdict::Chain(is_kernel_address(chain).then_some(chain)?)
        }
        // NF_DROP, with an error in the upper half or without.
        code if code >= 0 && code & 0xff == 0 => Verdict::Drop,
        code if code & 0xff == 0 => return None,
        _ => Verdict::Other,
    })
}

/// True if a lookup's verdict may be anything (struct nft_lookup, net/netfilter/nft_lookup.c): its register is 0 where it
/// has none, too.
fn is_verdict_map(
    expression: &[u8],
    layout: &ExpressionLayout,
    flags: &mut dyn FnMut(u64) -> Option<u16>,
) -> bool {
    let register = expression.get((layout.data + layout.lookup_register) as usize);
    let set = || word(expression, layout.data + layout.lookup_set).filter(|set| is_kernel_address(*set));
    match register {
        Some(&VERDICT) => set()
            .and_then(|set| flags(set + u64::from(layout.set_flags)))
            .is_none_or(|flags| flags & SET_MAP != 0),
        Some(_) => false,
        None => true,
    }
}

fn word(bytes: &[u8], at: u32) -> Option<u64> {
    bytes.get(at as usize..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

/// The first words of an expression; 0 past its end.
fn first_words(expression: &[u8]) -> [u64; EXPRESSION_WORDS] {
    let mut words = [0; EXPRESSION_WORDS];
    for (to, from) in words.iter_mut().zip(expression.as_chunks::<8>().0) {
        *to = u64::from_ne_bytes(*from);
    }
    words
}
