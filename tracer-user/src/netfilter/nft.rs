//! The nft rule sets, as the kernel itself keeps them: which address belongs to which rule.
//!
//! Packets are matched against *blobs* (struct nft_rule_blob, include/net/netfilter/nf_tables.h): each chain's rules,
//! one after the other. A chain has two, of the current generation and of the one before. Blobs are freed and their
//! memory used again, so an address means something only together with the generation that was current when it was
//! seen. Before 5.17 a chain has arrays of pointers to its rules instead, and both generations share the rules that they
//! have in common.

use super::expressions::{CounterLayout, ExpressionLayout, Operations, queues};
use super::memory::{KernelMemory, is_kernel_address};
use super::model::{Family, hook_name};
use crate::probe::btf::Btf;
use std::collections::HashMap;
use std::ops::Range;
use tracer_common::{SequenceOffsets, watch::Check};

/// Bounds on what is believed: more than any rule set has, and what a damaged one may cost.
const MAX_TABLES: usize = 4096;
const MAX_CHAINS: usize = 1 << 18;
const MAX_RULES: usize = 1 << 23;
const MAX_BLOB: u64 = 1 << 31;
/// NFT_NAME_MAXLEN (include/uapi/linux/netfilter/nf_tables.h).
const MAX_NAME: usize = 256;
/// Per-netns pointers that are tried (struct net_generic): there are some thirty.
const MAX_GENERIC: u32 = 128;

/// How a chain keeps its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RulesLayout {
    /// In a struct nft_rule_blob.
    Blob { size: u32, data: u32 },
    /// Each in a struct nft_rule, whose expressions are at `data`.
    Pointers { data: u32 },
}

impl RulesLayout {
    /// With where a chain has them, of both generations.
    fn resolve(btf: &Btf) -> Option<([u32; 2], Self)> {
        let at = |container, path| btf.offset_of(container, path);
        if let Some(first) = at("nft_chain", "blob_gen_0") {
            let blob = Self::Blob { size: at("nft_rule_blob", "size")?, data: at("nft_rule_blob", "data")? };
            return Some(([first, at("nft_chain", "blob_gen_1")?], blob));
        }
        let data = at("nft_rule", "data")?;
        // The word of bitfields lies before the expressions.
        let is_known = at("nft_rule", "handle").and_then(|at| at.checked_add(HEADER)) == Some(data);
        let both = [at("nft_chain", "rules_gen_0")?, at("nft_chain", "rules_gen_1")?];
        is_known.then_some((both, Self::Pointers { data }))
    }
}

/// Where the running kernel keeps its nft structures: offsets in bytes, from the BTF of `nf_tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NftLayout {
    /// Where the generation is; `pointer` is [`ABSENT`](tracer_common::ABSENT) until [`NftLayout::learn_pointer`].
    pub sequence: SequenceOffsets,
    net_generic: u32,
    generic_pointers: u32,
    gencursor: u32,
    pernet_tables: u32,
    table_list: u32,
    table_chains: u32,
    table_name: u32,
    table_handle: u32,
    table_family: u32,
    /// Of both generations: blobs, or arrays of pointers.
    chain_rules: [u32; 2],
    rules: RulesLayout,
    chain_list: u32,
    chain_name: u32,
    chain_handle: u32,
    chain_flags: u32,
    /// nft_base_chain.chain: subtracted from a chain's address.
    base_chain: u32,
    base_policy: u32,
    base_hook: u32,
    base_priority: u32,
    /// nft_base_chain.stats and nft_stats.pkts: what a base chain's policy has counted on each CPU, if anything does.
    base_stats: Option<(u32, u32)>,
    pub(super) ops_size: u32,
    pub(super) ops_type: u32,
    pub(super) ops_data: u32,
    type_name: u32,
    pub(super) target_name: Option<u32>,
    /// What expressions hold.
    pub(super) expressions: Option<ExpressionLayout>,
    /// What counters hold: described by their own module up to 5.17.
    pub counters: Option<CounterLayout>,
    /// Offset of `ptr[nf_tables_net_id]` in struct net_generic.
    pointer: Option<u32>,
}

impl NftLayout {
    /// From the BTF that describes nf_tables (its own, or vmlinux's where it is built in), and that of x_tables for
    /// iptables-nft's targets. `None` where they are not described (5.10).
    #[must_use]
    pub fn resolve(nf_tables: &Btf, x_tables: Option<&Btf>) -> Option<Self> {
        use tracer_common::ABSENT;
        let at = |container, path| nf_tables.offset_of(container, path);
        let net_generic = at("net", "gen")?;
        let direct = at("net", "nft.base_seq");
        let base_seq = at("nftables_pernet", "base_seq");
        if direct.is_none() && base_seq.is_none() {
            return None;
        }
        let (chain_rules, rules) = RulesLayout::resolve(nf_tables)?;
        Some(Self {
            sequence: SequenceOffsets {
                direct: direct.unwrap_or(ABSENT),
                generic: net_generic,
                pointer: ABSENT,
                base_seq: base_seq.unwrap_or(ABSENT),
            },
            net_generic,
            generic_pointers: at("net_generic", "ptr")?,
            gencursor: at("net", "nft.gencursor")?,
            pernet_tables: at("nftables_pernet", "tables")?,
            table_list: at("nft_table", "list")?,
            table_chains: at("nft_table", "chains")?,
            table_name: at("nft_table", "name")?,
            table_handle: at("nft_table", "handle")?,
            table_family: at("nft_table", "family")?,
            chain_rules,
            rules,
            chain_list: at("nft_chain", "list")?,
            chain_name: at("nft_chain", "name")?,
            chain_handle: at("nft_chain", "handle")?,
            chain_flags: at("nft_chain", "flags")?,
            base_chain: at("nft_base_chain", "chain")?,
            base_policy: at("nft_base_chain", "policy")?,
            base_hook: at("nft_base_chain", "ops.hooknum")?,
            base_priority: at("nft_base_chain", "ops.priority")?,
            base_stats: at("nft_base_chain", "stats").zip(at("nft_stats", "pkts")),
            ops_size: at("nft_expr_ops", "size")?,
            ops_type: at("nft_expr_ops", "type")?,
            ops_data: at("nft_expr_ops", "data")?,
            type_name: at("nft_expr_type", "name")?,
            target_name: x_tables.unwrap_or(nf_tables).offset_of("xt_target", "name"),
            expressions: ExpressionLayout::resolve(nf_tables),
            counters: CounterLayout::resolve(nf_tables),
            pointer: None,
        })
    }

    /// Whether the netns at `net` has a base chain.
    pub(super) fn has_base_chain(&self, memory: &mut impl KernelMemory, net: u64) -> bool {
        let Some(pernet) = self.pernet(memory, net) else { return false };
        let tables = memory.list(pernet + u64::from(self.pernet_tables), MAX_TABLES);
        tables.into_iter().any(|table| {
            let chains = table - u64::from(self.table_list) + u64::from(self.table_chains);
            let chains = memory.list(chains, MAX_CHAINS);
            chains.into_iter().any(|chain| self.is_base(memory, chain - u64::from(self.chain_list)))
        })
    }

    /// Whether the chain at `chain` is a base chain.
    fn is_base(&self, memory: &mut impl KernelMemory, chain: u64) -> bool {
        /// NFT_CHAIN_BASE (include/uapi/linux/netfilter/nf_tables.h).
        const BASE: u8 = 1;
        memory.bytes::<1>(chain + u64::from(self.chain_flags)).is_some_and(|[flags]| flags & BASE != 0)
    }

    /// The handle in the word of bitfields that rules have; `None` where that is no rule's but the end of a chain's.
    #[must_use]
    pub fn handle_in(&self, word: u64) -> Option<u64> {
        match self.rules {
            RulesLayout::Blob { .. } => (word & IS_LAST == 0).then_some(word >> 13 & HANDLE),
            RulesLayout::Pointers { .. } => Some(word & HANDLE),
        }
    }

    /// Finds which of a netns' per-module pointers is nf_tables': the one that leads to a table named `table`, which
    /// must be there. The number (`nf_tables_net_id`) is given at load time and differs from boot to boot; its symbol
    /// is not in every kernel's kallsyms.
    pub fn learn_pointer(&mut self, memory: &mut impl KernelMemory, net: u64, table: &str) -> bool {
        let Some(generic) = memory.pointer(net + u64::from(self.net_generic)) else { return false };
        for index in 0..MAX_GENERIC {
            let offset = self.generic_pointers + 8 * index;
            let Some(pernet) = memory.pointer(generic + u64::from(offset)) else { continue };
            let head = pernet + u64::from(self.pernet_tables);
            let found = memory.list(head, 4).into_iter().any(|entry| {
                let name = memory.pointer(entry - u64::from(self.table_list) + u64::from(self.table_name));
                name.and_then(|name| memory.string(name, MAX_NAME)).is_some_and(|name| name == table)
            });
            if found {
                self.pointer = Some(offset);
                self.sequence.pointer = offset;
                return true;
            }
        }
        false
    }

    /// Which of a chain's two blobs packets are matched against: net->nft.gencursor, turned after the generation was
    /// raised (nf_tables_commit(), net/netfilter/nf_tables_api.c).
    pub(super) fn cursor(&self, memory: &mut impl KernelMemory, net: u64) -> Option<usize> {
        let [cursor] = memory.bytes::<1>(net + u64::from(self.gencursor))?;
        Some(usize::from(cursor & 1))
    }

    fn pernet(&self, memory: &mut impl KernelMemory, net: u64) -> Option<u64> {
        let generic = memory.pointer(net + u64::from(self.net_generic))?;
        memory.pointer(generic + u64::from(self.pointer?))
    }

    /// The generation of the rule set in the netns at `net`, as the kernel half reads it.
    pub fn sequence(&self, memory: &mut impl KernelMemory, net: u64) -> Option<u32> {
        let at = self.sequence_place(memory, net)?;
        memory.u32(at)
    }

    /// Where that generation is.
    fn sequence_place(&self, memory: &mut impl KernelMemory, net: u64) -> Option<u64> {
        if self.sequence.direct != tracer_common::ABSENT {
            return Some(net + u64::from(self.sequence.direct));
        }
        Some(self.pernet(memory, net)? + u64::from(self.sequence.base_seq))
    }

    /// What shows that the rule set in the netns at `net` is that of a generation: the lower half of a word (x86_64 and
    /// arm64).
    pub(super) fn check(&self, memory: &mut impl KernelMemory, net: u64, sequence: u32) -> Option<Check> {
        let at = self.sequence_place(memory, net)?;
        Some(Check { at, value: sequence.into(), mask: u32::MAX.into() })
    }

    /// The policy of the base chain at `chain`.
    pub(super) fn policy(&self, memory: &mut impl KernelMemory, chain: u64) -> Option<Policy> {
        let drops = read_base(memory, self, chain)?.drops;
        let counter = match self.base_stats {
            Some((stats, packets)) => {
                let at = chain.checked_sub(u64::from(self.base_chain))? + u64::from(stats);
                let value = memory.u64(at)?;
                let check = Check { at, value, mask: u64::MAX };
                (value != 0).then_some((value.checked_add(packets.into())?, check))
            }
            None => None,
        };
        Some(Policy { drops, counter })
    }

    /// The name of an expression, by its `ops` (the first word of struct nft_expr): `immediate`, `lookup` ...; for
    /// an iptables target (`target`), the target's name too.
    pub fn expression_name(
        &self,
        memory: &mut impl KernelMemory,
        ops: u64,
    ) -> Option<(String, Option<String>)> {
        let kind = memory.pointer(ops + u64::from(self.ops_type))?;
        let name = self.type_name_of(memory, kind)?;
        let target = match (name.as_str(), self.target_name) {
            ("target", Some(offset)) => memory
                .pointer(ops + u64::from(self.ops_data))
                .and_then(|target| memory.string(target + u64::from(offset), 29)),
            _ => None,
        };
        Some((name, target))
    }

    /// The name of a type of expressions (struct nft_expr_type).
    pub(super) fn type_name_of(&self, memory: &mut impl KernelMemory, kind: u64) -> Option<String> {
        let name = memory.pointer(kind + u64::from(self.type_name))?;
        memory.string(name, 32)
    }
}

/// The nft rule set of one netns at one generation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// `base_seq` before and after it was read: the same.
    pub sequence: u32,
    /// `gencursor`, likewise.
    pub(super) cursor: usize,
    /// Tables in the kernel's order.
    pub tables: Vec<Table>,
    /// Chains of all tables.
    pub chains: Vec<Chain>,
    /// By address: for [`Ruleset::rule_at`].
    pub(super) spans: Vec<Span>,
}

/// Memory in which rules of a chain lie side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Addresses; offsets of rules count from the first.
    pub(super) range: Range<u64>,
    /// Index of the chain in [`Ruleset::chains`].
    pub(super) chain: usize,
    /// 1 for rules of the generation before.
    pub(super) former: u8,
    /// Which of the chain's rules, as indices.
    pub(super) rules: Range<u32>,
}

/// A table.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its handle: never given again in this netns.
    pub handle: u64,
    /// True if `iptables-nft` and its sisters keep it: their table and chain names.
    pub is_iptables: bool,
}

/// A chain.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// Index of its table in [`Ruleset::tables`].
    pub table: usize,
    /// Its name.
    pub name: String,
    /// Its handle.
    pub handle: u64,
    /// Address of the struct nft_chain.
    pub address: u64,
    /// If it is a base chain.
    pub base: Option<Base>,
    /// Rules of the current generation (first) and of the one before, where that differs.
    pub rules: [Vec<Rule>; 2],
    /// True if the one before differs: this generation changed the chain.
    pub is_changed: bool,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Number of its hook.
    pub hook: u8,
    /// Its priority.
    pub priority: i32,
    /// True if its policy is drop.
    pub drops: bool,
}

/// The policy of a base chain. It may be changed a moment after its generation began (nf_tables_commit(),
/// net/netfilter/nf_tables_api.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// True if it drops.
    pub(super) drops: bool,
    /// Address of its counter's packets (per-CPU), and what shows that it is still that counter. Chains have one only if
    /// whoever made them asked for it.
    pub(super) counter: Option<(u64, Check)>,
}

/// A rule: where it is. 16 bytes, for there may be 100,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its handle.
    pub handle: u64,
    /// Start of its header (struct nft_rule_dp) from the start of the blob's data; 0 where each has memory of its own.
    pub offset: u32,
    /// Bytes of its expressions.
    pub length: u32,
}

impl Rule {
    /// Where its expressions begin, from the start of its span.
    pub(super) fn start(&self) -> u64 {
        u64::from(self.offset + HEADER)
    }

    /// Its expressions in the memory of its span.
    pub(super) fn expressions<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let start = (self.offset + HEADER) as usize;
        bytes.get(start..start + self.length as usize)
    }
}

/// A rule that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index of its chain in [`Ruleset::chains`].
    pub chain: usize,
    /// Its place in the chain, from 1.
    pub ordinal: u32,
    /// Its handle.
    pub handle: u64,
    /// True if it is a rule of the generation before.
    pub is_former: bool,
}

impl Ruleset {
    /// Reads the rule set of the netns at `net`. `None` if it changed meanwhile, or can't be read.
    pub fn read(memory: &mut impl KernelMemory, layout: &NftLayout, net: u64) -> Option<Self> {
        let sequence = layout.sequence(memory, net)?;
        let cursor = layout.cursor(memory, net)?;
        let pernet = layout.pernet(memory, net)?;
        let mut ruleset = Self { sequence, cursor, ..Self::default() };
        for entry in memory.list(pernet + u64::from(layout.pernet_tables), MAX_TABLES) {
            ruleset.read_table(memory, layout, entry - u64::from(layout.table_list), cursor);
        }
        // Of rules that both generations share, those of the current one.
        ruleset.spans.sort_by_key(|span| (span.range.start, span.former));
        ruleset.spans.dedup_by_key(|span| span.range.start);
        ruleset.is_current(memory, layout, net).then_some(ruleset)
    }

    /// True if it is the one in force in the netns at `net`.
    pub fn is_current(&self, memory: &mut impl KernelMemory, layout: &NftLayout, net: u64) -> bool {
        layout.sequence(memory, net) == Some(self.sequence) && layout.cursor(memory, net) == Some(self.cursor)
    }

    /// True if a listing of this rule set has, at its place, what a drop at generation `sequence` names: a packet that
    /// was on its way when the rule set was replaced may be dropped by a rule of the one before.
    #[must_use]
    pub fn lists(&self, address: u64, sequence: u32) -> bool {
        self.sequence == sequence && !self.rule_at(address).is_some_and(|found| found.is_former)
    }

    fn read_table(&mut self, memory: &mut impl KernelMemory, layout: &NftLayout, table: u64, cursor: usize) {
        let at = |offset: u32| table + u64::from(offset);
        let family = memory.bytes::<1>(at(layout.table_family)).map(|[byte]| byte & 0x3f);
        let Some(family) = family.and_then(Family::from_number) else { return };
        let Some(name) = memory.pointer(at(layout.table_name)).and_then(|name| memory.string(name, MAX_NAME))
        else {
            return;
        };
        let handle = memory.u64(at(layout.table_handle)).unwrap_or(0);
        let (index, first) = (self.tables.len(), self.chains.len());
        for entry in memory.list(at(layout.table_chains), MAX_CHAINS) {
            self.read_chain(memory, layout, entry - u64::from(layout.chain_list), index, cursor);
        }
        let is_iptables = is_iptables(family, &name, self.chains.get(first..).unwrap_or_default());
        self.tables.push(Table { family, name, handle, is_iptables });
    }

    fn read_chain(
        &mut self,
        memory: &mut impl KernelMemory,
        layout: &NftLayout,
        chain: u64,
        table: usize,
        cursor: usize,
    ) {
        let at = |offset: u32| chain + u64::from(offset);
        let Some(name) = memory.pointer(at(layout.chain_name)).and_then(|name| memory.string(name, MAX_NAME))
        else {
            return;
        };
        let Some(handle) = memory.u64(at(layout.chain_handle)) else { return };
        let base = if layout.is_base(memory, chain) { read_base(memory, layout, chain) } else { None };
        let index = self.chains.len();
        let mut rules = [Vec::new(), Vec::new()];
        let (mut seen, mut is_changed) = (None, false);
        for (former, which) in [cursor, cursor ^ 1].into_iter().enumerate() {
            let start = layout.chain_rules.get(which).and_then(|offset| memory.pointer(at(*offset)));
            let Some(start) = start.filter(|start| seen != Some(*start)) else { continue };
            seen = Some(start);
            is_changed = former != 0;
            let found = match layout.rules {
                RulesLayout::Blob { size, data } => read_blob(memory, start, size, data),
                RulesLayout::Pointers { data } => read_pointers(memory, start, data),
            };
            if let Some((found, ranges)) = found
                && let Some(rules) = rules.get_mut(former)
            {
                *rules = found;
                let span = |(range, rules)| Span { range, chain: index, former: former as u8, rules };
                self.spans.extend(ranges.into_iter().map(span));
            }
        }
        self.chains.push(Chain { table, name, handle, address: chain, base, rules, is_changed });
    }

    /// The rule that has the byte at `address`.
    #[must_use]
    pub fn rule_at(&self, address: u64) -> Option<Found> {
        let after = self.spans.partition_point(|span| span.range.start <= address);
        let span = self.spans.get(after.checked_sub(1)?).filter(|span| span.range.contains(&address))?;
        let rules = self.chains.get(span.chain)?.rules.get(usize::from(span.former))?;
        let rules = rules.get(span.rules.start as usize..span.rules.end as usize)?;
        let offset = u32::try_from(address - span.range.start).ok()?;
        let index = rules.partition_point(|rule| rule.offset <= offset).checked_sub(1)?;
        let rule = rules.get(index)?;
        // An expression, not the header.
        let inside = offset.checked_sub(rule.offset)?;
        (HEADER..HEADER + rule.length).contains(&inside).then_some(Found {
            chain: span.chain,
            ordinal: span.rules.start + u32::try_from(index + 1).ok()?,
            handle: rule.handle,
            is_former: span.former != 0,
        })
    }

    /// Where the expressions of a chain's rule (from 1, of the current generation) are in memory.
    #[must_use]
    pub fn expressions_of(&self, chain: usize, ordinal: usize) -> Option<Range<u64>> {
        let index = ordinal.checked_sub(1)?;
        let rule = self.chains.get(chain)?.rules.first()?.get(index)?;
        let index = u32::try_from(index).ok()?;
        let has_it = |span: &&Span| span.chain == chain && span.former == 0 && span.rules.contains(&index);
        let start = self.spans.iter().find(has_it)?.range.start + u64::from(rule.offset + HEADER);
        Some(start..start + u64::from(rule.length))
    }

    /// The rules of the current generation that give packets to user space: `queue`, `-j NFQUEUE`. `None` if not all can
    /// be looked at.
    pub fn queues(&self, memory: &mut impl KernelMemory, layout: &NftLayout) -> Option<Vec<Found>> {
        let (mut operations, mut found) = (Operations::default(), Vec::new());
        for span in self.spans.iter().filter(|span| span.former == 0) {
            let (bytes, rules) = self.read_span(memory, span)?;
            for (ordinal, rule) in (span.rules.start + 1..).zip(rules) {
                let mut of = |ops| operations.of(memory, layout, ops);
                if queues(rule.expressions(&bytes)?, &mut of)? {
                    let (chain, handle) = (span.chain, rule.handle);
                    found.push(Found { chain, ordinal, handle, is_former: false });
                }
            }
        }
        Some(found)
    }

    /// Where the rules of the current generation lie, by chain.
    pub(super) fn spans_of_chains(&self) -> HashMap<usize, Vec<&Span>> {
        let mut spans: HashMap<usize, Vec<&Span>> = HashMap::new();
        for span in self.spans.iter().filter(|span| span.former == 0) {
            spans.entry(span.chain).or_default().push(span);
        }
        spans
    }

    /// The memory of a span of the current generation, and the rules that lie there.
    pub(super) fn read_span(
        &self,
        memory: &mut impl KernelMemory,
        span: &Span,
    ) -> Option<(Vec<u8>, &[Rule])> {
        let rules = self.chains.get(span.chain)?.rules.first()?;
        let rules = rules.get(span.rules.start as usize..span.rules.end as usize)?;
        let mut bytes = vec![0; usize::try_from(span.range.end - span.range.start).ok()?];
        (rules.is_empty() || memory.read(span.range.start, &mut bytes)).then_some((bytes, rules))
    }

    /// The base chain at `address` (struct nft_chain).
    #[must_use]
    pub fn base_chain_at(&self, address: u64) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.address == address && chain.base.is_some())
    }

    /// The chains in the table of the chain at `address`.
    pub fn chains_beside(&self, address: u64) -> impl Iterator<Item = &str> {
        let table = self.chains.iter().find(|chain| chain.address == address).map(|chain| chain.table);
        self.chains.iter().filter(move |chain| Some(chain.table) == table).map(|chain| chain.name.as_str())
    }

    /// A chain's table.
    #[must_use]
    pub fn table_of(&self, chain: &Chain) -> Option<&Table> {
        self.tables.get(chain.table)
    }
}

/// Bytes of struct nft_rule_dp before the expressions: one word of bitfields.
const HEADER: u32 = 8;
/// nft_rule_dp.is_last, in that word.
const IS_LAST: u64 = 1;
/// A handle, once it is shifted to the right.
const HANDLE: u64 = (1 << 42) - 1;

fn read_base(memory: &mut impl KernelMemory, layout: &NftLayout, chain: u64) -> Option<Base> {
    let base = chain.checked_sub(u64::from(layout.base_chain))?;
    let hook = memory.u32(base + u64::from(layout.base_hook))?;
    let priority = memory.u32(base + u64::from(layout.base_priority))?.cast_signed();
    let [policy] = memory.bytes(base + u64::from(layout.base_policy))?;
    // NF_DROP is 0 (include/uapi/linux/netfilter.h).
    Some(Base { hook: u8::try_from(hook).ok()?, priority, drops: policy == 0 })
}

/// Rules, and where in memory which of them lie.
type Rules = (Vec<Rule>, Vec<(Range<u64>, Range<u32>)>);

/// The rules of a blob.
fn read_blob(memory: &mut impl KernelMemory, blob: u64, size_at: u32, data_at: u32) -> Option<Rules> {
    let size = memory.u64(blob + u64::from(size_at))?;
    if size > MAX_BLOB {
        return None;
    }
    let start = blob + u64::from(data_at);
    let mut data = vec![0; usize::try_from(size).ok()?];
    if !data.is_empty() && !memory.read(start, &mut data) {
        return None;
    }
    let rules = rules_in(&data);
    let all = 0..u32::try_from(rules.len()).ok()?;
    Some((rules, vec![(start..start + size, all)]))
}

/// The rules that an array of pointers leads to, up to one that is null. Of each its word of bitfields is read:
/// `handle:42, genmask:2, dlen:12, udata:1` (struct nft_rule, include/net/netfilter/nf_tables.h, up to 5.16; from the
/// lowest bit on x86_64 and arm64).
fn read_pointers(memory: &mut impl KernelMemory, array: u64, data_at: u32) -> Option<Rules> {
    let (mut rules, mut ranges) = (Vec::new(), Vec::new());
    for pointer in pointers(memory, array)? {
        let header = pointer + u64::from(data_at - HEADER);
        let bits = memory.u64(header)?;
        let length = (bits >> 44 & 0xfff) as u32;
        let index = u32::try_from(rules.len()).ok()?;
        rules.push(Rule { handle: bits & HANDLE, offset: 0, length });
        ranges.push((header..header + u64::from(HEADER + length), index..index + 1));
    }
    Some((rules, ranges))
}

/// An array of pointers up to the first that is null.
fn pointers(memory: &mut impl KernelMemory, array: u64) -> Option<Vec<u64>> {
    // In pieces that don't cross a page: what lies behind the array may not be there.
    const PIECE: u64 = 512;
    let mut pointers = Vec::new();
    let mut at = array;
    while pointers.len() < MAX_RULES {
        let mut bytes = vec![0; usize::try_from(PIECE - at % PIECE).ok()?];
        if !at.is_multiple_of(8) || !memory.read(at, &mut bytes) {
            return None;
        }
        for word in bytes.as_chunks::<8>().0 {
            match u64::from_ne_bytes(*word) {
                0 => return Some(pointers),
                pointer if is_kernel_address(pointer) => pointers.push(pointer),
                _ => return None,
            }
        }
        at = at.checked_add(bytes.len() as u64)?;
    }
    None
}

/// Walks rules: each is a word `is_last:1, dlen:12, handle:42` (struct nft_rule_dp, from the lowest bit on x86_64 and
/// arm64), then `dlen` bytes of expressions.
fn rules_in(data: &[u8]) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut at = 0_usize;
    while rules.len() < MAX_RULES {
        let header = data.get(at..).and_then(|rest| rest.first_chunk::<8>());
        let Some(header) = header.map(|bytes| u64::from_le_bytes(*bytes)) else { break };
        if header & IS_LAST != 0 {
            break;
        }
        let length = (header >> 1 & 0xfff) as u32;
        let handle = header >> 13 & HANDLE;
        let Ok(offset) = u32::try_from(at) else { break };
        rules.push(Rule { handle, offset, length });
        at += HEADER as usize + length as usize;
    }
    rules
}

/// Whether a table is one of iptables-nft, ip6tables-nft, arptables-nft or ebtables-nft to these tools: one of their
/// names, and base chains of their names only, on the hooks that the names say.
fn is_iptables(family: Family, name: &str, chains: &[Chain]) -> bool {
    let tables: &[&str] = match family {
        Family::Ipv4 | Family::Ipv6 => &["filter", "nat", "mangle", "raw", "security"],
        Family::Arp => &["filter"],
        Family::Bridge => &["filter", "nat", "broute"],
        Family::Inet | Family::Netdev => &[],
    };
    let mut bases = chains.iter().filter_map(|chain| Some((&chain.name, chain.base?.hook))).peekable();
    tables.contains(&name)
        && bases.peek().is_some()
        && bases.all(|(name, hook)| hook_name(family, hook) == Some(name.as_str()) || name == "BROUTING")
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::memory::fake::Fake;
    use super::*;

    pub(crate) fn header(last: bool, length: u64, handle: u64) -> [u8; 8] {
        (u64::from(last) | length << 1 | handle << 13).to_le_bytes()
    }

    fn blob(rules: &[(u64, u64)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (handle, length) in rules {
            data.extend(header(false, *length, *handle));
            data.extend(vec![0xee; usize::try_from(*length).unwrap()]);
        }
        data.extend(header(true, 0, 0));
        data.extend([0xdd; 24]);
        data
    }

    #[test]
    fn rules_are_walked_to_the_last() {
        let rules = rules_in(&blob(&[(4, 64), ((1 << 42) - 1, 0), (9, 4088)]));
        let told: Vec<_> = rules.iter().map(|rule| (rule.handle, rule.offset, rule.length)).collect();
        assert_eq!(told, [(4, 0, 64), ((1 << 42) - 1, 72, 0), (9, 80, 4088)]);
        // Cut off anywhere, it ends.
        let whole = blob(&[(4, 64), (5, 8)]);
        for length in 0..whole.len() {
            assert!(rules_in(&whole[..length]).len() <= 2);
        }
    }

    #[test]
    fn handles_in_words_of_bitfields() {
        let word = |last, handle| u64::from_le_bytes(header(last, 4088, handle));
        let handle = (1 << 42) - 5;
        assert_eq!(with_blobs().handle_in(word(false, handle)), Some(handle));
        assert_eq!(with_blobs().handle_in(word(true, 0)), None);
        // handle:42, genmask:2, dlen:12, udata:1
        assert_eq!(layout().handle_in(1 << 56 | 4088 << 44 | 3 << 42 | handle), Some(handle));
    }

    #[test]
    fn rules_that_queue_are_found_in_memory() {
        const BASE: u64 = 0xffff_8880_0000_0000;
        let (nft_queue, target, counter) = (BASE + 0x1000, BASE + 0x2000, BASE + 0x3000);
        let mut memory = Fake::default();
        for (ops, name, data) in
            [(nft_queue, "queue", 0), (target, "target", BASE + 0x5000), (counter, "counter", 0)]
        {
            memory.put(ops, &8_u32.to_ne_bytes());
            memory.put_u64(ops + 8, ops + 64);
            memory.put_u64(ops + 16, data);
            memory.put_u64(ops + 64, ops + 128);
            memory.put(ops + 128, &[name.as_bytes(), &[0; 64]].concat());
        }
        memory.put(BASE + 0x5000, &[b"NFQUEUE".as_slice(), &[0; 64]].concat());
        let mut data = Vec::new();
        for (handle, ops) in [(4, counter), (5, nft_queue), (6, counter), (7, target)] {
            data.extend(header(false, 8, handle));
            data.extend(ops.to_ne_bytes());
        }
        data.extend(header(true, 0, 0));
        memory.put(BASE, &data);
        let rules = rules_in(&data);
        let ruleset = Ruleset {
            spans: vec![Span { range: BASE..BASE + data.len() as u64, chain: 0, former: 0, rules: 0..4 }],
            chains: vec![Chain { rules: [rules, Vec::new()], ..chain("c", true) }],
            ..Ruleset::default()
        };
        let layout = NftLayout { ops_size: 0, ops_type: 8, ops_data: 16, type_name: 0, ..layout() };
        let told = |memory: &mut Fake, layout| {
            let found = ruleset.queues(memory, layout)?;
            Some(found.iter().map(|found| (found.ordinal, found.handle)).collect::<Vec<_>>())
        };
        assert_eq!(told(&mut memory, &layout), Some(vec![(2, 5), (4, 7)]));
        // A target whose name can't be read may be that one.
        let nameless = NftLayout { target_name: None, ..layout };
        assert_eq!(told(&mut memory, &nameless), None);
    }

    /// Enough of it to look through rules: `ops` hold size, type and data, types and targets begin with their name, the
    /// netns has its generation at 64, a base chain its policy at -8, its counters at -16 and its priority at -24.
    pub(crate) fn described() -> NftLayout {
        use super::super::expressions::tests::{COUNTERS, LAYOUT};
        NftLayout {
            sequence: SequenceOffsets { direct: 64, ..SequenceOffsets::NONE },
            gencursor: 72,
            base_chain: 32,
            base_policy: 24,
            base_stats: Some((16, 8)),
            base_priority: 8,
            base_hook: 8,
            ops_type: 8,
            ops_data: 16,
            expressions: Some(LAYOUT),
            counters: Some(COUNTERS),
            ..layout()
        }
    }

    /// Where rules lie in blobs.
    pub(crate) fn with_blobs() -> NftLayout {
        NftLayout { rules: RulesLayout::Blob { size: 0, data: 8 }, ..layout() }
    }

    fn layout() -> NftLayout {
        NftLayout {
            sequence: SequenceOffsets::NONE,
            net_generic: 0,
            generic_pointers: 0,
            gencursor: 0,
            pernet_tables: 0,
            table_list: 0,
            table_chains: 0,
            table_name: 0,
            table_handle: 0,
            table_family: 0,
            chain_rules: [0; 2],
            rules: RulesLayout::Pointers { data: 0 },
            chain_list: 0,
            chain_name: 0,
            chain_handle: 0,
            chain_flags: 0,
            base_chain: 0,
            base_policy: 0,
            base_hook: 0,
            base_priority: 0,
            base_stats: None,
            ops_size: 0,
            ops_type: 0,
            ops_data: 0,
            type_name: 0,
            target_name: Some(0),
            expressions: None,
            counters: None,
            pointer: None,
        }
    }

    pub(crate) fn chain(name: &str, base: bool) -> Chain {
        let base = base.then_some(Base { hook: 1, priority: 0, drops: true });
        let rules = [Vec::new(), Vec::new()];
        Chain { table: 0, name: name.into(), handle: 1, address: 77, base, rules, is_changed: false }
    }

    fn span(range: Range<u64>, former: u8) -> Span {
        Span { range, chain: 0, former, rules: 0..1 }
    }

    #[test]
    fn an_address_belongs_to_the_rule_whose_expressions_have_it() {
        let rules = rules_in(&blob(&[(4, 64), (5, 8)]));
        let ruleset = Ruleset {
            chains: vec![Chain { rules: [rules, Vec::new()], ..chain("c", false) }],
            spans: vec![Span { rules: 0..2, ..span(1000..1200, 0) }],
            ..Ruleset::default()
        };
        let told = |address| ruleset.rule_at(address).map(|found| (found.ordinal, found.handle));
        assert_eq!(told(1008), Some((1, 4)));
        assert_eq!(told(1071), Some((1, 4)));
        assert_eq!(told(1080), Some((2, 5)));
        for address in [0, 999, 1000, 1007, 1072, 1079, 1088, 1199, 1200, u64::MAX] {
            assert_eq!(told(address), None, "{address}");
        }
    }

    #[test]
    fn a_listing_has_no_rules_of_the_generation_before() {
        let rules = || rules_in(&blob(&[(4, 64)]));
        let ruleset = Ruleset {
            sequence: 7,
            chains: vec![Chain { rules: [rules(), rules()], ..chain("c", true) }],
            spans: vec![span(1000..1200, 0), span(2000..2200, 1)],
            ..Ruleset::default()
        };
        assert!(ruleset.lists(1008, 7));
        assert!(!ruleset.lists(2008, 7));
        assert!(!ruleset.lists(1008, 6));
        // A policy: the chain is the same.
        assert!(ruleset.lists(77, 7));
    }

    #[test]
    fn tables_of_iptables_are_known_by_their_names() {
        let built_in = [chain("INPUT", true), chain("KUBE-FIREWALL", false)];
        assert!(is_iptables(Family::Ipv4, "filter", &built_in));
        assert!(!is_iptables(Family::Inet, "filter", &built_in));
        assert!(!is_iptables(Family::Ipv4, "mine", &built_in));
        assert!(!is_iptables(Family::Ipv4, "filter", &[chain("input", true)]));
        assert!(!is_iptables(Family::Ipv4, "filter", &[chain("FORWARD", true)]));
        assert!(!is_iptables(Family::Ipv4, "filter", &[chain("KUBE-FIREWALL", false)]));
    }

    /// Bytes at one address; nothing else can be read.
    struct At(u64, Vec<u8>);

    impl KernelMemory for At {
        fn read(&mut self, address: u64, to: &mut [u8]) -> bool {
            let start = address.checked_sub(self.0).and_then(|start| usize::try_from(start).ok());
            let bytes = start.and_then(|start| self.1.get(start..start.checked_add(to.len())?));
            bytes.map(|bytes| to.copy_from_slice(bytes)).is_some()
        }
    }

    #[test]
    fn rules_behind_pointers() {
        const START: u64 = 0xffff_8880_0000_0000;
        let mut memory = At(START, vec![0; 2048]);
        let mut put = |at: usize, word: u64| memory.1[at..at + 8].copy_from_slice(&word.to_le_bytes());
        // The array crosses the end of a piece; behind its end lies something else.
        put(496, START + 1024);
        put(504, START + 1200);
        put(512, 0);
        put(520, 7);
        put(1040, 9 | 3 << 42 | 64 << 44 | 1 << 56);
        put(1216, ((1 << 42) - 1) | 8 << 44);
        let (rules, ranges) = read_pointers(&mut memory, START + 496, 24).unwrap();
        let told: Vec<_> = rules.iter().map(|rule| (rule.handle, rule.offset, rule.length)).collect();
        assert_eq!(told, [(9, 0, 64), ((1 << 42) - 1, 0, 8)]);
        let start = START + 1040;
        assert_eq!(ranges, [(start..start + 72, 0..1), (START + 1216..START + 1232, 1..2)]);
        let mut ruleset = Ruleset {
            chains: vec![Chain { rules: [rules, Vec::new()], ..chain("c", false) }],
            ..Ruleset::default()
        };
        ruleset.spans = ranges.into_iter().map(|(range, rules)| Span { rules, ..span(range, 0) }).collect();
        let told = |address| ruleset.rule_at(address).map(|found| (found.ordinal, found.handle));
        assert_eq!(
            (told(start + 8), told(start + 72), told(START + 1224)),
            (Some((1, 9)), None, Some((2, (1 << 42) - 1)))
        );
        assert_eq!(ruleset.expressions_of(0, 2), Some(START + 1224..START + 1232));
        // A pointer that is none.
        memory.1[504..512].copy_from_slice(&5u64.to_le_bytes());
        assert_eq!(read_pointers(&mut memory, START + 496, 24), None);
    }

    #[test]
    fn policies_are_of_base_chains() {
        let ruleset = Ruleset { chains: vec![chain("INPUT", true)], ..Ruleset::default() };
        assert_eq!(ruleset.base_chain_at(77).map(|chain| chain.name.as_str()), Some("INPUT"));
        assert_eq!(ruleset.base_chain_at(78), None);
        let ruleset = Ruleset { chains: vec![chain("user", false)], ..Ruleset::default() };
        assert_eq!(ruleset.base_chain_at(77), None);
    }
}
