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
    /// Drops nothing, leads nowhere, and lets every packet go on to what stands behind it.
    Acts,
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
            ("log" | "notrack", _) => Self::Acts,
            ("target", Some(target)) if HARMLESS_TARGETS.contains(&target) => Self::Acts,
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

/// Address of the packets (per-CPU) of the counter that counts what a rule of iptables matches: before it stand all its matches,
/// behind it nothing but what is done with the packet. `None` if it has no such counter.
pub(super) fn counter_of_matched(
    bytes: &[u8],
    (layout, counters): (&ExpressionLayout, &CounterLayout),
    of: &mut dyn FnMut(u64) -> Option<(u32, Kind)>,
) -> Option<u64> {
    let mut found = None;
    for expression in expressions(bytes, of) {
        let (_, kind, expression) = expression?;
        match (found, kind) {
            (None, Kind::Counter) => {
                let start = word(expression, layout.data + counters.counter)?;
                found = Some(start.checked_add(counters.packets.into())?);
            }
            (None, _) => {}
            (Some(_), Kind::Acts | Kind::Immediate | Kind::Reject | Kind::Queue | Kind::Other) => {}
            (Some(_), Kind::Harmless | Kind::Lookup | Kind::Counter) => return None,
        }
    }
    found
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
            Kind::Harmless | Kind::Acts | Kind::Queue => false,
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const LAYOUT: ExpressionLayout = ExpressionLayout {
        data: 8,
        immediate_register: 16,
        immediate_code: 0,
        immediate_chain: 8,
        lookup_set: 0,
        lookup_register: 9,
        set_flags: 24,
    };
    pub(crate) const COUNTERS: CounterLayout = CounterLayout { counter: 0, packets: 8 };

    /// An expression with these `ops` and data.
    pub(crate) fn expression(ops: u64, data: &[u8]) -> Vec<u8> {
        [ops.to_ne_bytes().to_vec(), data.to_vec()].concat()
    }

    /// The data of an immediate with a verdict.
    pub(crate) fn verdict(code: i32, chain: u64) -> Vec<u8> {
        [code.to_ne_bytes().to_vec(), vec![0; 4], chain.to_ne_bytes().to_vec(), vec![0; 8]].concat()
    }

    #[test]
    fn a_rule_queues_if_one_of_its_expressions_does() {
        let expression = |ops: u64, size: usize| expression(ops, &vec![9; size - 8]);
        let mut of = |ops| match ops {
            1 => Some((24, Kind::Harmless)),
            2 => Some((8, Kind::Counter)),
            3 => Some((16, Kind::Queue)),
            _ => None,
        };
        let mut told = |parts: &[Vec<u8>]| queues(&parts.concat(), &mut of);
        let (meta, counter, queue) = (expression(1, 24), expression(2, 8), expression(3, 16));
        assert_eq!(told(&[meta.clone(), counter.clone(), queue.clone()]), Some(true));
        assert_eq!(told(&[meta.clone(), counter.clone(), meta.clone()]), Some(false));
        assert_eq!(told(&[]), Some(false));
        // An expression that is not known may be anything, and so may what follows one that is cut off.
        assert_eq!(told(&[meta.clone(), expression(4, 8), queue]), None);
        assert_eq!(told(&[meta[..16].to_vec()]), None);
    }

    #[test]
    fn a_counter_right_before_a_drop_tells_it() {
        const CHAIN: u64 = 0xffff_8880_0000_1000;
        const MAP: u64 = 0xffff_8880_0000_2000;
        let mut of = |ops| match ops {
            1 => Some((16, Kind::Harmless)),
            2 => Some((16, Kind::Counter)),
            3 => Some((32, Kind::Immediate)),
            4 => Some((16, Kind::Reject)),
            5 => Some((24, Kind::Lookup)),
            6 => Some((16, Kind::Other)),
            _ => None,
        };
        // Of two sets, one is a map.
        let mut flags = |at| Some(if at == MAP + 24 { SET_MAP } else { 0 });
        let mut told = |parts: &[&[u8]]| effects(&parts.concat(), (&LAYOUT, &COUNTERS), &mut of, &mut flags);
        let (meta, counter) = (expression(1, &[0; 8]), expression(2, &0x5000_u64.to_ne_bytes()));
        let immediate = |code, chain| expression(3, &verdict(code, chain));
        let (drop, reject, other) = (immediate(0, 0), expression(4, &[7; 8]), expression(6, &[0; 8]));
        let lookup = |set: u64, register: u8| {
            expression(5, &[&set.to_ne_bytes()[..], &[1, register, 0, 0, 0, 0, 0, 0]].concat())
        };
        let nothing = Effects::default();
        let uncounted = Effects { drops_uncounted: true, ..Effects::default() };

        let counted = told(&[&meta, &counter, &drop]).counted.unwrap();
        assert_eq!((counted.counter, counted.offset, counted.expression[0]), (0x5008, 32, 3));
        let counted = told(&[&counter, &reject]).counted.unwrap();
        assert_eq!((counted.offset, counted.expression[..2].to_vec()), (16, vec![4, 0x0707_0707_0707_0707]));
        // What is behind a drop is never met, and not all that counts drops.
        assert!(!told(&[&counter, &drop, &drop]).drops_uncounted);
        assert_eq!(told(&[&counter, &immediate(1, 0)]), nothing);
        assert_eq!(told(&[&meta, &counter]), nothing);
        // No counter, or not right before; or something between that may end the rule.
        for rule in [&[&meta[..], &drop][..], &[&counter, &meta, &drop], &[&reject], &[&other]] {
            assert_eq!(told(rule), uncounted);
        }
        // Another that may drop before it.
        assert!(told(&[&other, &counter, &drop]).drops_uncounted);
        // Jumps, also through maps; a set is none, nor is a map of data.
        for code in [-3, -4] {
            assert_eq!(
                told(&[&counter, &immediate(code, CHAIN)]),
                Effects { jumps: vec![CHAIN], ..Effects::default() }
            );
        }
        let anything = Effects { jumps_anywhere: true, ..uncounted.clone() };
        assert_eq!(told(&[&lookup(MAP, 0)]), anything);
        assert_eq!(told(&[&lookup(MAP, 4)]), nothing);
        assert_eq!(told(&[&lookup(CHAIN, 0)]), nothing);
        // What is not known, is cut off or makes no sense may be anything.
        assert_eq!(told(&[&expression(9, &[])]), anything);
        assert_eq!(told(&[&drop[..20]]), anything);
        assert_eq!(told(&[&immediate(-3, 5)]), anything);
    }

    #[test]
    fn what_counts_matched_packets_stands_behind_all_matches() {
        let mut of = |ops| match ops {
            1 => Some((16, Kind::Harmless)),
            2 => Some((16, Kind::Counter)),
            3 => Some((16, Kind::Acts)),
            4 => Some((16, Kind::Immediate)),
            5 => Some((16, Kind::Other)),
            _ => None,
        };
        let mut told = |parts: &[u64]| {
            let bytes: Vec<u8> =
                parts.iter().flat_map(|ops| expression(*ops, &0x5000_u64.to_ne_bytes())).collect();
            counter_of_matched(&bytes, (&LAYOUT, &COUNTERS), &mut of)
        };
        for rule in [&[2][..], &[1, 1, 2], &[1, 2, 4], &[2, 3], &[1, 2, 5]] {
            assert_eq!(told(rule), Some(0x5008), "{rule:?}");
        }
        // None, one before a match, two, one behind what is not known.
        for rule in [&[1, 4][..], &[2, 1, 4], &[2, 2], &[9, 2], &[2, 9], &[]] {
            assert_eq!(told(rule), None, "{rule:?}");
        }
    }

    #[test]
    fn kinds_by_name() {
        assert_eq!(Kind::named("target", Some("REJECT")), Kind::Reject);
        assert_eq!(Kind::named("target", Some("LOG")), Kind::Acts);
        assert_eq!(Kind::named("match", None), Kind::Harmless);
        assert_eq!(Kind::named("target", Some("SYNPROXY")), Kind::Other);
        assert_eq!(Kind::named("target", None), Kind::Other);
        assert_eq!(Kind::named("synproxy", None), Kind::Other);
        assert_eq!(Kind::named("meta", None), Kind::Harmless);
    }
}
