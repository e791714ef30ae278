//! The tables of iptables-legacy, as the kernel itself keeps them: which counter belongs to which rule.
//!
//! A table (struct xt_table, include/linux/netfilter/x_tables.h) is replaced as a whole by every change: a new
//! xt_table_info with all rules, one after the other, each with a counter on each CPU.

use super::hooks::{HookLayout, Hooked};
use super::memory::KernelMemory;
use super::model::{Family, hook_name};
use crate::probe::btf::Btf;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// More than any table has: what a damaged one may cost.
const MAX_SIZE: u32 = 1 << 30;
/// XT_TABLE_MAXNAMELEN and XT_FUNCTION_MAXNAMELEN (include/uapi/linux/netfilter/x_tables.h).
const MAX_NAME: usize = 32;
/// Hooks of IPv4 and IPv6 (NF_INET_NUMHOOKS, include/uapi/linux/netfilter.h, without ingress).
const HOOKS: usize = 5;

/// Hook functions of tables: what they are given is the struct xt_table. Those of `mangle` come before the common ones
/// to route a packet again that they changed (net/ipv4/netfilter/iptable_mangle.c); up to 5.15 each table has its own.
pub const TABLE_FUNCTIONS: [&str; 12] = [
    "ipt_do_table",
    "iptable_mangle_hook",
    "iptable_filter_hook",
    "iptable_raw_hook",
    "iptable_security_hook",
    "ip6t_do_table",
    "ip6table_mangle_hook",
    "ip6table_filter_hook",
    "ip6table_raw_hook",
    "ip6table_security_hook",
    "iptable_nat_do_chain",
    "ip6table_nat_do_chain",
];

/// Where the running kernel keeps its tables: offsets in bytes, from the BTF of vmlinux and of `x_tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyLayout {
    /// Where hook functions are listed.
    pub hooks: HookLayout,
    table_private: u32,
    table_name: u32,
    info_size: u32,
    info_number: u32,
    info_hook_entry: u32,
    info_underflow: u32,
    info_entries: u32,
    target_name: u32,
    /// Of struct nf_nat_lookup_hook_priv (net/netfilter/nf_nat_core.c), whose list of functions NAT's function on a hook calls;
    /// `None` if it is not described.
    nat_entries: Option<u32>,
    /// Whether NAT is loaded: where it isn't, it asks no table.
    pub has_nat: bool,
    /// Addresses of [`TABLE_FUNCTIONS`]; 0 for one that is not there.
    pub functions: [u64; TABLE_FUNCTIONS.len()],
    /// What the CPU adds to per-CPU addresses, if this machine can have one only: counters lie in the rules then
    /// (xt_percpu_counter_alloc(), net/netfilter/x_tables.c).
    pub only_cpu: Option<u64>,
}

impl LegacyLayout {
    /// From the BTF of vmlinux, of x_tables and of nf_nat (`None` where they are built in). `None` if something is not described.
    #[must_use]
    pub fn resolve(vmlinux: &Btf, x_tables: Option<&Btf>, nf_nat: Option<&Btf>) -> Option<Self> {
        let tables = x_tables.unwrap_or(vmlinux);
        let at = |container, path| tables.offset_of(container, path);
        Some(Self {
            hooks: HookLayout::resolve(vmlinux)?,
            table_private: at("xt_table", "private")?,
            table_name: at("xt_table", "name")?,
            info_size: at("xt_table_info", "size")?,
            info_number: at("xt_table_info", "number")?,
            info_hook_entry: at("xt_table_info", "hook_entry")?,
            info_underflow: at("xt_table_info", "underflow")?,
            info_entries: at("xt_table_info", "entries")?,
            target_name: at("xt_target", "name")?,
            nat_entries: nf_nat.unwrap_or(vmlinux).offset_of("nf_nat_lookup_hook_priv", "entries"),
            functions: [0; TABLE_FUNCTIONS.len()],
            has_nat: true,
            only_cpu: None,
        })
    }
}

/// A table at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// IPv4 or IPv6.
    pub family: Family,
    /// `filter`, `nat`, `mangle`, `raw`, `security`.
    pub name: String,
    /// Address of the struct xt_table.
    pub address: u64,
    /// Address of xt_table.private, and what it held.
    pub private: (u64, u64),
    /// Bytes of its rules.
    pub size: u32,
    /// Rules, heads and ends of chains in all.
    pub number: u32,
    /// Hash of its rules, the addresses of their counters included.
    pub hash: u64,
    /// Its chains, built-in ones too.
    pub chains: Vec<Chain>,
    /// The rules that can drop a packet, in the table's order.
    pub rules: Vec<Rule>,
    /// The rules that give packets to user space (`-j NFQUEUE`): index of the chain, and number in it.
    pub queues: Vec<(usize, u32)>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// The hook that calls it, if it is built in.
    pub hook: Option<u8>,
    /// Chains that it jumps or goes to, as indices.
    jumps: Vec<usize>,
}

/// A rule that can drop a packet, or a policy that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Index of its chain.
    pub chain: usize,
    /// Its number in the chain, from 1; 0 for the policy.
    pub ordinal: u32,
    /// Where it starts, from the table's first rule.
    pub offset: u32,
    /// Address of its counter: per-CPU.
    pub counter: u64,
    /// How it drops.
    pub verdict: Verdict,
    /// Hash of the rule.
    pub hash: u64,
}

/// How a rule drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `-j DROP`
    Drop,
    /// `-j REJECT`, with the kind of answer (`enum ipt_reject_with`, `ip6t_reject_with`).
    Reject(u32),
    /// The chain's policy.
    Policy,
}

/// Offsets in a rule (struct ipt_entry, ip6t_entry: include/uapi/linux/netfilter_ipv4/ip_tables.h,
/// include/uapi/linux/netfilter_ipv6/ip6_tables.h). Fixed: they are what iptables itself is given.
struct EntryLayout {
    target_offset: usize,
    next_offset: usize,
    counter: usize,
    /// Bytes before the matches.
    length: usize,
}

const IPV4: EntryLayout = EntryLayout { target_offset: 88, next_offset: 90, counter: 96, length: 112 };
const IPV6: EntryLayout = EntryLayout { target_offset: 140, next_offset: 142, counter: 152, length: 168 };

/// Bytes of struct xt_entry_target before its data: in the kernel `target_size` and, at 8, the struct xt_target.
const TARGET_HEADER: usize = 32;

/// What a rule's target is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// A verdict, or a chain that is jumped to (`XT_STANDARD_TARGET`).
    Standard,
    /// The head of a user's chain, and the table's last rule (`XT_ERROR_TARGET`).
    Error,
    /// `-j REJECT`
    Reject,
    /// `-j NFQUEUE`
    Queue,
    /// Any other, which drops nothing.
    Other,
}

impl Target {
    /// By the name in its struct xt_target.
    fn named(name: &str) -> Self {
        match name {
            "" => Self::Standard,
            "ERROR" => Self::Error,
            "REJECT" => Self::Reject,
            "NFQUEUE" => Self::Queue,
            _ => Self::Other,
        }
    }
}

impl Table {
    /// Reads the table at `address` (struct xt_table). `None` if it can't be read, or is no table.
    pub fn read(
        memory: &mut impl KernelMemory,
        layout: &LegacyLayout,
        family: Family,
        address: u64,
    ) -> Option<Self> {
        Self::read_entries(memory, layout, family, address, &mut |_, _| {})
    }

    /// The same, with the counters (per-CPU) of each of its [`Table::chains`], in order: those of its rules and, last, that of its
    /// end: the policy of a built-in chain, or the return of another.
    pub fn read_counted(
        memory: &mut impl KernelMemory,
        layout: &LegacyLayout,
        family: Family,
        address: u64,
    ) -> Option<(Self, Vec<Vec<u64>>)> {
        let mut counters: Vec<Vec<u64>> = Vec::new();
        let table = Self::read_entries(memory, layout, family, address, &mut |chain, counter| {
            if counters.len() <= chain {
                counters.resize_with(chain + 1, Vec::new);
            }
            if let Some(of_chain) = counters.get_mut(chain) {
                of_chain.push(counter);
            }
        })?;
        counters.resize_with(table.chains.len(), Vec::new);
        Some((table, counters))
    }

    /// [`Table::read`]; `each` is given the chain's index and the counter of each rule.
    fn read_entries<M: KernelMemory>(
        memory: &mut M,
        layout: &LegacyLayout,
        family: Family,
        address: u64,
        each: &mut dyn FnMut(usize, u64),
    ) -> Option<Self> {
        let at = address + u64::from(layout.table_private);
        let private = memory.pointer(at)?;
        let name = memory.string(address + u64::from(layout.table_name), MAX_NAME)?;
        let info = Info::read(memory, layout, private)?;
        let mut table = Self {
            family,
            name,
            address,
            private: (at, private),
            size: info.size,
            number: info.number,
            hash: 0,
            chains: Vec::new(),
            rules: Vec::new(),
            queues: Vec::new(),
        };
        let entry = if family == Family::Ipv6 { &IPV6 } else { &IPV4 };
        // As if it were per-CPU.
        let inline = layout.only_cpu.map(|offset| info.start.wrapping_sub(offset));
        let mut targets = HashMap::new();
        let mut target_at = |memory: &mut M, target| {
            if let Some(known) = targets.get(&target) {
                return Some(*known);
            }
            let name = memory.string(target + u64::from(layout.target_name), MAX_NAME)?;
            targets.insert(target, Target::named(&name));
            targets.get(&target).copied()
        };
        table.hash = table.walk(memory, &info, (entry, inline), &mut target_at, each)?;
        // Replaced while it was read?
        (memory.pointer(at) == Some(private)).then_some(table)
    }

    /// How many rules it has. A built-in chain ends with its policy, a user's chain has a head and an end, and the table's last
    /// entry is such a head.
    #[must_use]
    pub fn rules_in_all(&self) -> usize {
        let built_in = self.chains.iter().filter(|chain| chain.hook.is_some()).count();
        let heads = self.chains.len() - built_in;
        (self.number as usize + 1).saturating_sub(built_in + 2 * heads)
    }

    /// The tables that the functions on a hook are of, by their address.
    #[must_use]
    pub fn addresses(layout: &LegacyLayout, hooked: &[Hooked]) -> Vec<u64> {
        let is_table = |it: &&Hooked| it.function != 0 && layout.functions.contains(&it.function);
        hooked.iter().filter(is_table).map(|it| it.private).collect()
    }

    /// The tables that NAT asks on a hook with these functions. `None` if that can't be told.
    pub fn of_nat(
        memory: &mut impl KernelMemory,
        layout: &LegacyLayout,
        hooked: &[Hooked],
    ) -> Option<Vec<u64>> {
        if !layout.has_nat {
            return Some(Vec::new());
        }
        let entries_at = u64::from(layout.nat_entries?);
        let mut tables = Vec::new();
        // Which of them is NAT's need not be known: in no other's place there is a list of functions of tables.
        for it in hooked.iter().filter(|it| it.private != 0 && !layout.functions.contains(&it.function)) {
            let Some(entries) = memory.pointer(it.private.wrapping_add(entries_at)) else { continue };
            let asked = layout.hooks.listed(memory, entries);
            tables.extend(Self::addresses(layout, &asked));
        }
        Some(tables)
    }

    /// Finds chains and rules; returns the hash of all. `None` if the rules can't be read or don't add up.
    fn walk<M: KernelMemory>(
        &mut self,
        memory: &mut M,
        info: &Info,
        (layout, inline): (&EntryLayout, Option<u64>),
        target_at: &mut dyn FnMut(&mut M, u64) -> Option<Target>,
        each: &mut dyn FnMut(usize, u64),
    ) -> Option<u64> {
        let mut starts = HashMap::new();
        let mut jumps = Vec::new();
        let (mut at, mut chain, mut ordinal) = (0, None, 0);
        let mut entries = info.entries();
        while !entries.is_done() {
            let entry = entries.next(memory, layout)?;
            let target = entry.get(usize::from(half(entry, layout.target_offset)?)..)?;
            let (head, data) = target.split_first_chunk::<TARGET_HEADER>()?;
            let target = target_at(memory, word(head, 8))?;
            let offset = u32::try_from(at).ok()?;
            at += entry.len();
            let hook = info.hook_entry.iter().position(|start| *start == offset);
            if let Some(hook) = hook.and_then(|hook| u8::try_from(hook).ok()) {
                let name = hook_name(self.family, hook).unwrap_or_default().to_owned();
                starts.insert(offset, self.chains.len());
                chain = Some(self.chains.len());
                ordinal = 0;
                self.chains.push(Chain { name, hook: Some(hook), jumps: Vec::new() });
            }
            if target == Target::Error {
                // The head of a user's chain; the rules of the chain follow. The table's last is one, too.
                let name = data.split(|byte| *byte == 0).next()?;
                // A jump leads behind the head.
                starts.insert(u32::try_from(at).ok()?, self.chains.len());
                chain = Some(self.chains.len());
                ordinal = 0;
                let name = String::from_utf8_lossy(name).into_owned();
                self.chains.push(Chain { name, hook: None, jumps: Vec::new() });
                continue;
            }
            ordinal += 1;
            let chain = chain?;
            let hook = self.chains.get(chain)?.hook;
            let is_policy = hook.and_then(|hook| info.underflow.get(usize::from(hook))) == Some(&offset);
            let number = data.first_chunk().copied();
            let drops = match (target, number.map(i32::from_ne_bytes)) {
                // -NF_DROP - 1
                (Target::Standard, Some(-1)) if is_policy => Some(Verdict::Policy),
                (Target::Standard, Some(-1)) => Some(Verdict::Drop),
                // -NF_QUEUE - 1
                (Target::Standard, Some(-4)) | (Target::Queue, _) => {
                    self.queues.push((chain, ordinal));
                    None
                }
                (Target::Standard, Some(to)) => {
                    // Other verdicts are negative, too.
                    jumps.extend(u32::try_from(to).ok().map(|to| (chain, to)));
                    None
                }
                (Target::Reject, _) => Some(Verdict::Reject(number.map_or(u32::MAX, u32::from_ne_bytes))),
                _ => None,
            };
            let counter = match inline {
                Some(start) => start.wrapping_add(u64::from(offset) + layout.counter as u64),
                None => word(entry.get(layout.counter..)?.first_chunk::<8>()?, 0),
            };
            each(chain, counter);
            if let Some(verdict) = drops {
                self.rules.push(Rule {
                    chain,
                    ordinal: if is_policy { 0 } else { ordinal },
                    offset,
                    counter,
                    verdict,
                    hash: hash(entry),
                });
            }
        }
        for (from, to) in jumps {
            // An offset that is no chain's start is that of the next rule: a rule without a target.
            if let (Some(to), Some(chain)) = (starts.get(&to), self.chains.get_mut(from)) {
                chain.jumps.push(*to);
            }
        }
        Some(entries.hash())
    }

    /// The rules that a packet can meet on a hook, as indices of [`Table::rules`].
    #[must_use]
    pub fn reachable(&self, hook: u8) -> Vec<usize> {
        let mut seen = vec![false; self.chains.len()];
        let mut next: Vec<usize> = (0..self.chains.len())
            .filter(|index| self.chains.get(*index).is_some_and(|it| it.hook == Some(hook)))
            .collect();
        while let Some(index) = next.pop() {
            if let (Some(seen), Some(chain)) = (seen.get_mut(index), self.chains.get(index))
                && !*seen
            {
                *seen = true;
                next.extend(&chain.jumps);
            }
        }
        let is_seen = |rule: &Rule| seen.get(rule.chain).copied().unwrap_or_default();
        self.rules.iter().enumerate().filter(|(_, rule)| is_seen(rule)).map(|(index, _)| index).collect()
    }

    /// True if the table is still the one that was read. A table that was replaced may lie at the old one's address, so
    /// all rules are compared.
    pub fn is_same(&self, memory: &mut impl KernelMemory, layout: &LegacyLayout) -> bool {
        self.has_same_place(memory, layout)
            && Info::read(memory, layout, self.private.1)
                .and_then(|info| info.entries().rest(memory))
                .is_some_and(|hash| hash == self.hash)
            // Replaced while it was read?
            && memory.pointer(self.private.0) == Some(self.private.1)
    }

    /// Whether the table at an address has this name.
    pub fn is_named(memory: &mut impl KernelMemory, layout: &LegacyLayout, address: u64, name: &str) -> bool {
        memory.string(address + u64::from(layout.table_name), MAX_NAME).as_deref() == Some(name)
    }

    /// Where the rules of the table at an address lie.
    pub fn private_of(memory: &mut impl KernelMemory, layout: &LegacyLayout, address: u64) -> Option<u64> {
        memory.pointer(address + u64::from(layout.table_private))
    }

    /// A number that the table at an address has as long as it has the same rules: their hash, with the place where they lie.
    /// `None` if they can't be read, or are replaced just now.
    pub fn version(memory: &mut impl KernelMemory, layout: &LegacyLayout, address: u64) -> Option<u64> {
        let at = address + u64::from(layout.table_private);
        let private = memory.pointer(at)?;
        let rules = Info::read(memory, layout, private)?.entries().rest(memory)?;
        let mut hasher = DefaultHasher::new();
        (private, rules).hash(&mut hasher);
        (memory.pointer(at) == Some(private)).then(|| hasher.finish())
    }

    /// True if a table of the same size is still there, with the same rule in the rule's place.
    pub fn has_same(&self, memory: &mut impl KernelMemory, layout: &LegacyLayout, rule: &Rule) -> bool {
        if !self.has_same_place(memory, layout) {
            return false;
        }
        let entry = if self.family == Family::Ipv6 { &IPV6 } else { &IPV4 };
        let start = self.private.1 + u64::from(layout.info_entries) + u64::from(rule.offset);
        let Some(length) = memory.bytes(start + entry.next_offset as u64).map(u16::from_ne_bytes) else {
            return false;
        };
        let mut bytes = vec![0; usize::from(length)];
        memory.read(start, &mut bytes) && hash(&bytes) == rule.hash
    }

    fn has_same_place(&self, memory: &mut impl KernelMemory, layout: &LegacyLayout) -> bool {
        let (at, private) = self.private;
        memory.pointer(at) == Some(private)
            && memory.u32(private + u64::from(layout.info_number)) == Some(self.number)
            && memory.u32(private + u64::from(layout.info_size)) == Some(self.size)
    }
}

/// A struct xt_table_info, without its rules.
struct Info {
    size: u32,
    number: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
    /// Address of the first rule.
    start: u64,
}

impl Info {
    fn read(memory: &mut impl KernelMemory, layout: &LegacyLayout, address: u64) -> Option<Self> {
        let mut hooks = |offset: u32| {
            let bytes: [u8; 4 * HOOKS] = memory.bytes(address + u64::from(offset))?;
            let (words, _) = bytes.as_chunks::<4>();
            let mut hooks = [u32::MAX; HOOKS];
            for (to, from) in hooks.iter_mut().zip(words) {
                *to = u32::from_ne_bytes(*from);
            }
            Some(hooks)
        };
        let (hook_entry, underflow) = (hooks(layout.info_hook_entry)?, hooks(layout.info_underflow)?);
        let size = memory.u32(address + u64::from(layout.info_size))?;
        let number = memory.u32(address + u64::from(layout.info_number))?;
        let start = address + u64::from(layout.info_entries);
        (size <= MAX_SIZE).then_some(Self { size, number, hook_entry, underflow, start })
    }

    fn entries(&self) -> Entries {
        let mut hasher = DefaultHasher::new();
        (self.hook_entry, self.underflow).hash(&mut hasher);
        Entries { next: self.start, left: u64::from(self.size), bytes: Vec::new(), taken: 0, hasher }
    }
}

/// The rules of a table, read in pieces: a hundred thousand are twenty megabytes.
struct Entries {
    /// Address of what is not read yet, and how many bytes there are.
    next: u64,
    left: u64,
    /// What is read; the first `taken` were given out.
    bytes: Vec<u8>,
    taken: usize,
    hasher: DefaultHasher,
}

impl Entries {
    /// Bytes that are read at once. No rule has as many: its length is a u16.
    const PIECE: u64 = 1 << 16;

    /// True when all were given out.
    fn is_done(&self) -> bool {
        self.left == 0 && self.taken == self.bytes.len()
    }

    /// The next rule. `None` if it can't be read, or its length can't be.
    fn next(&mut self, memory: &mut impl KernelMemory, layout: &EntryLayout) -> Option<&[u8]> {
        let known = self.bytes.len().checked_sub(self.taken)?;
        if self.left > 0 && (known as u64) < Self::PIECE {
            self.read(memory)?;
        }
        let rest = self.bytes.get(self.taken..)?;
        let length = usize::from(half(rest, layout.next_offset)?);
        let entry = rest.get(..length).filter(|_| length >= layout.length)?;
        self.taken += length;
        Some(entry)
    }

    /// Reads a piece.
    fn read(&mut self, memory: &mut impl KernelMemory) -> Option<()> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let (known, length) = (self.bytes.len(), self.left.min(Self::PIECE));
        self.bytes.resize(known + usize::try_from(length).ok()?, 0);
        let piece = self.bytes.get_mut(known..)?;
        if !memory.read(self.next, piece) {
            return None;
        }
        self.hasher.write(piece);
        self.next += length;
        self.left -= length;
        Some(())
    }

    /// The hash of what was read.
    fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// Reads to the end; the hash of all.
    fn rest(mut self, memory: &mut impl KernelMemory) -> Option<u64> {
        while self.left > 0 {
            self.taken = self.bytes.len();
            self.read(memory)?;
        }
        Some(self.hash())
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// A word of a chunk that has it; 0 past its end, which no caller asks for.
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::memory::fake::Fake;
    use super::*;

    /// A rule of a chain with its counter.
    pub(crate) fn rule(chain: usize, counter: u64) -> Rule {
        Rule { chain, ordinal: 1, offset: 0, counter, verdict: Verdict::Drop, hash: 0 }
    }

    /// INPUT, FORWARD and a chain that both jump to.
    pub(crate) fn table(rules: Vec<Rule>) -> Table {
        let chain = |name: &str, hook, jumps| Chain { name: name.into(), hook, jumps };
        Table {
            family: Family::Ipv4,
            name: "filter".into(),
            address: 4,
            private: (5, 6),
            size: 0,
            number: 0,
            hash: 0,
            chains: vec![
                chain("INPUT", Some(1), vec![2]),
                chain("FORWARD", Some(2), vec![2]),
                chain("shared", None, vec![2]),
            ],
            rules,
            queues: Vec::new(),
        }
    }

    pub(crate) const LAYOUT: LegacyLayout = LegacyLayout {
        hooks: HookLayout { arrays: [0, 40], others: [None; 2], entries_count: 0, entries_hooks: 8 },
        table_private: 0,
        table_name: 8,
        info_size: 0,
        info_number: 4,
        info_hook_entry: 8,
        info_underflow: 28,
        info_entries: 64,
        target_name: 16,
        nat_entries: Some(8),
        functions: [0x1111, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        has_nat: true,
        only_cpu: None,
    };

    pub(crate) const TABLE: u64 = 0xffff_8880_0000_0000;
    pub(crate) const INFO: u64 = TABLE + 0x1000;
    const STANDARD: u64 = TABLE + 0x10_0000;
    const ERROR: u64 = STANDARD + 0x100;
    const REJECT: u64 = STANDARD + 0x200;

    /// A rule's bytes: `target`, then what it is given.
    fn entry(target: u64, data: &[u8], counter: u64) -> Vec<u8> {
        let mut bytes = vec![0; IPV4.length + TARGET_HEADER];
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let length = u16::try_from(bytes.len()).unwrap();
        bytes[IPV4.target_offset..][..2].copy_from_slice(&(IPV4.length as u16).to_ne_bytes());
        bytes[IPV4.next_offset..][..2].copy_from_slice(&length.to_ne_bytes());
        bytes[IPV4.counter..][..8].copy_from_slice(&counter.to_ne_bytes());
        bytes[IPV4.length + 8..][..8].copy_from_slice(&target.to_ne_bytes());
        bytes
    }

    fn standard(verdict: i32, counter: u64) -> Vec<u8> {
        entry(STANDARD, &verdict.to_ne_bytes(), counter)
    }

    fn head(name: &str) -> Vec<u8> {
        let mut data = [0; 30];
        data[..name.len()].copy_from_slice(name.as_bytes());
        entry(ERROR, &data, 0)
    }

    /// INPUT: jump to `user`, policy DROP. `user`: DROP, REJECT, return.
    pub(crate) fn memory() -> Fake {
        let mut entries = vec![standard(0, 1), standard(-1, 2), head("user")];
        let user = length(&entries);
        entries[0] = standard(i32::try_from(user).unwrap(), 1);
        let policy = entries[0].len();
        entries.extend([
            standard(-1, 3),
            entry(REJECT, &6_u32.to_ne_bytes(), 4),
            standard(-5, 5),
            head("ERROR"),
        ]);
        memory_of(&entries, policy)
    }

    fn length(entries: &[Vec<u8>]) -> usize {
        entries.iter().map(Vec::len).sum()
    }

    /// A table of these rules, which begin with INPUT; its policy is at `policy`.
    fn memory_of(entries: &[Vec<u8>], policy: usize) -> Fake {
        let mut memory = Fake::default();
        memory.put_u64(TABLE, INFO);
        memory.put(TABLE + 8, b"filter\0");
        memory.put(TABLE + 15, &[0; 64]);
        for (at, name) in [(STANDARD, "\0"), (ERROR, "ERROR\0"), (REJECT, "REJECT\0")] {
            memory.put(at + 16, name.as_bytes());
            memory.put(at + 16 + name.len() as u64, &[0; 64]);
        }
        memory.put(INFO, &[0xff; 64]);
        memory.put(INFO, &u32::try_from(length(entries)).unwrap().to_ne_bytes());
        memory.put(INFO + 4, &7_u32.to_ne_bytes());
        memory.put(INFO + 8 + 4, &0_u32.to_ne_bytes());
        memory.put(INFO + 28 + 4, &u32::try_from(policy).unwrap().to_ne_bytes());
        memory.put(INFO + 64, &entries.concat());
        memory
    }

    #[test]
    fn rules_are_numbered_as_iptables_does() {
        let table = Table::read(&mut memory(), &LAYOUT, Family::Ipv4, TABLE).unwrap();
        assert_eq!((table.name.as_str(), table.private), ("filter", (TABLE, INFO)));
        assert_eq!(table.rules_in_all(), 3);
        let told: Vec<_> = table
            .rules
            .iter()
            .map(|rule| (table.chains[rule.chain].name.as_str(), rule.ordinal, rule.counter, rule.verdict))
            .collect();
        assert_eq!(
            told,
            [
                ("INPUT", 0, 2, Verdict::Policy),
                ("user", 1, 3, Verdict::Drop),
                ("user", 2, 4, Verdict::Reject(6))
            ]
        );
        assert_eq!(table.reachable(1), [0, 1, 2]);
        assert_eq!(table.reachable(2), [0_usize; 0]);
    }

    #[test]
    fn every_rule_and_every_end_has_a_counter() {
        let (table, counters) = Table::read_counted(&mut memory(), &LAYOUT, Family::Ipv4, TABLE).unwrap();
        assert_eq!(table, Table::read(&mut memory(), &LAYOUT, Family::Ipv4, TABLE).unwrap());
        let names: Vec<_> = table.chains.iter().map(|chain| chain.name.as_str()).collect();
        assert_eq!(names, ["INPUT", "user", "ERROR"]);
        assert_eq!(counters, [vec![1, 2], vec![3, 4, 5], vec![]]);
    }

    #[test]
    fn rules_that_queue_are_known() {
        let mut memory = memory();
        let read = |memory: &mut Fake| Table::read(memory, &LAYOUT, Family::Ipv4, TABLE).unwrap();
        assert_eq!(read(&mut memory).queues, []);
        // Instead of REJECT, and of the return behind it.
        memory.put(REJECT + 16, b"NFQUEUE\0");
        let back = 2 * standard(0, 0).len() + head("user").len() + 2 * standard(0, 0).len();
        memory.put(INFO + 64 + back as u64, &standard(-4, 5));
        let table = read(&mut memory);
        assert_eq!(table.queues, [(1, 2), (1, 3)]);
        assert_eq!(table.rules.len(), 2);
    }

    #[test]
    fn another_table_at_the_same_place_is_not_the_same() {
        let mut memory = memory();
        let table = Table::read(&mut memory, &LAYOUT, Family::Ipv4, TABLE).unwrap();
        let [policy, drop, _] = &table.rules[..] else { panic!("three rules") };
        assert!(table.has_same(&mut memory, &LAYOUT, drop) && table.is_same(&mut memory, &LAYOUT));
        // One byte of one rule.
        memory.put(INFO + 64 + u64::from(policy.offset) + 3, &[9]);
        assert!(table.has_same(&mut memory, &LAYOUT, drop));
        assert!(!table.has_same(&mut memory, &LAYOUT, policy));
        assert!(!table.is_same(&mut memory, &LAYOUT));
        memory.put_u64(TABLE, INFO + 8);
        assert!(!table.has_same(&mut memory, &LAYOUT, drop));
    }

    #[test]
    fn rules_lie_across_the_pieces_that_are_read() {
        let long = entry(STANDARD + 0x300, &[7; 40_000], 0);
        let mut entries: Vec<_> = (0..500).map(|counter| standard(-1, counter)).collect();
        entries.extend([long.clone(), standard(-1, 500), long, standard(-1, 501), head("ERROR")]);
        let policy = length(&entries[..503]);
        assert!(length(&entries) as u64 > 2 * Entries::PIECE);
        let mut memory = memory_of(&entries, policy);
        memory.put(STANDARD + 0x310, b"LOG\0");
        memory.put(STANDARD + 0x314, &[0; 64]);
        let table = Table::read(&mut memory, &LAYOUT, Family::Ipv4, TABLE).unwrap();
        let told: Vec<_> = table.rules.iter().map(|rule| (rule.counter, rule.ordinal)).collect();
        let drops = (0..500).map(|counter| (counter, counter as u32 + 1));
        assert_eq!(told, drops.chain([(500, 502), (501, 0)]).collect::<Vec<_>>());
        for rule in &table.rules {
            assert!(table.has_same(&mut memory, &LAYOUT, rule), "{rule:?}");
        }
        assert!(table.is_same(&mut memory, &LAYOUT));
        for offset in [3, Entries::PIECE + 3, length(&entries) as u64 - 1] {
            let [byte] = memory.bytes(INFO + 64 + offset).unwrap();
            memory.put(INFO + 64 + offset, &[byte ^ 1]);
            assert!(!table.is_same(&mut memory, &LAYOUT), "{offset}");
            memory.put(INFO + 64 + offset, &[byte]);
        }
        // What ends too early is no table.
        memory.0.remove(&(INFO + 64 + length(&entries) as u64 - 1));
        assert!(!table.is_same(&mut memory, &LAYOUT));
        assert_eq!(Table::read(&mut memory, &LAYOUT, Family::Ipv4, TABLE), None);
    }

    #[test]
    fn a_target_that_cannot_be_told_makes_no_rule_one_that_drops() {
        let mut memory = memory();
        memory.0.remove(&(REJECT + 16));
        assert_eq!(Table::read(&mut memory, &LAYOUT, Family::Ipv4, TABLE), None);
    }

    #[test]
    fn damaged_tables_do_not_panic() {
        let whole = memory();
        let last = *whole.0.range(..INFO + 0x1000).next_back().unwrap().0;
        for at in INFO + 64..=last {
            for byte in [0, 1, 0xff] {
                let mut memory = Fake(whole.0.clone());
                memory.put(at, &[byte]);
                Table::read(&mut memory, &LAYOUT, Family::Ipv4, TABLE);
                Table::read(&mut memory, &LAYOUT, Family::Ipv6, TABLE);
            }
        }
    }

    #[test]
    fn hooks_list_their_functions() {
        let mut memory = Fake::default();
        let (net, entries) = (TABLE, INFO);
        memory.put_u64(net + 8, entries);
        memory.put(entries, &2_u16.to_ne_bytes());
        for (at, word) in [(8, 0x1111), (16, TABLE), (24, 0x2222), (32, 0)] {
            memory.put_u64(entries + at, word);
        }
        let hooked = LAYOUT.hooks.hooked(&mut memory, net, Family::Ipv4, 1);
        assert_eq!(hooked.iter().map(|it| it.function).collect::<Vec<_>>(), [0x1111, 0x2222]);
        assert_eq!(Table::addresses(&LAYOUT, &hooked), [TABLE]);
        for (family, hook) in [(Family::Ipv4, 2), (Family::Ipv4, 5), (Family::Bridge, 1)] {
            assert!(LAYOUT.hooks.hooked(&mut memory, net, family, hook).is_empty());
        }
    }
}
