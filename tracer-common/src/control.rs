//! Memory that both halves see while the programs run: the control page (written by the user half) and the
//! per-CPU state (written by the programs).

use crate::{ABSENT, ConntrackOffsets, NftTraceOffsets, Role, SequenceOffsets, TcLayout};
use core::mem::size_of;

/// Kernel text of one function: `start <= address < end`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextRange {
    /// First address.
    pub start: u64,
    /// First address after it; zero for a function that this kernel does not have.
    pub end: u64,
}

impl TextRange {
    /// True if a call in this function returns to `address`.
    #[inline(always)]
    #[must_use]
    pub const fn has_return(&self, address: u64) -> bool {
        address > self.start && address <= self.end
    }
}

/// The control page: one element of a memory-mapped array, read by every program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Address of `netns_operations`, the `ops` of every network namespace: what proves that a pointer is a
    /// `struct net`. Zero: unknown, and no netns is believed.
    pub netns_ops: u64,
    /// Text of nf_hook_slow (net/netfilter/core.c).
    pub nf_hook_slow: TextRange,
    /// Text of nft_do_chain (net/netfilter/nf_tables_core.c).
    pub nft_do_chain: TextRange,
    /// Number of the current interval, starting at 1: a slot sends at least one full event in each.
    pub interval: u32,
    /// The generation of slots in use: 0 or 1.
    pub generation: u32,
    /// Full events a CPU may send in an interval beyond the first of each slot.
    pub budget: u32,
    /// nft_pktinfo.skb (include/net/netfilter/nf_tables.h), from the module's BTF; [`ABSENT`](crate::ABSENT)
    /// until nf_tables is there.
    pub pktinfo_skb: u32,
    /// nft_pktinfo.state, likewise.
    pub pktinfo_state: u32,
    /// 1 if the programs run that note packets on hooks (`--probes always`).
    pub has_probes: u32,
    /// Where a netns keeps the generation of its nft ruleset.
    pub sequence: SequenceOffsets,
    /// What the self-test learned.
    pub roles: [Role; Role::COUNT],
    /// Inode number of the self-test's own netns, whose packets pass every filter; 0 without.
    pub own_netns: u32,
    /// Version of the lists of rules whose counters are compared; 0 while they change, or without any.
    pub watch_version: u32,
    /// Version of the lists of rules whose counters followed packets move, likewise.
    pub moved_version: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Id of droptrace's own process, whose netlink messages are its self-test's.
    pub own_process: u64,
    /// Layout of connection tracking's structures; they may come with a module that loads later.
    pub conntrack: ConntrackOffsets,
    /// Layout of nft's expressions, likewise.
    pub probes: ProbeOffsets,
    /// What is on tc hooks.
    pub tc: TcLayout,
    /// What nft tells its own tracing, likewise.
    pub nft_trace: NftTraceOffsets,
}

/// Where the probes on nft's expressions look, in bytes; [`ABSENT`](crate::ABSENT) until nf_tables is there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeOffsets {
    /// nft_expr.data (include/net/netfilter/nf_tables.h)
    pub expression_data: u32,
    /// nft_immediate_expr.dreg (include/net/netfilter/nf_tables_core.h)
    pub immediate_register: u32,
    /// nft_immediate_expr.data.verdict.code
    pub immediate_code: u32,
    /// nft_expr_ops.data
    pub ops_data: u32,
    /// xt_target.name (include/linux/netfilter/x_tables.h)
    pub target_name: u32,
    /// Explicit padding.
    pub reserved: u32,
}

impl ProbeOffsets {
    /// Nothing known: nf_tables is not there.
    pub const NONE: Self = Self {
        expression_data: ABSENT,
        immediate_register: ABSENT,
        immediate_code: ABSENT,
        ops_data: ABSENT,
        target_name: ABSENT,
        reserved: 0,
    };
}

impl Default for ProbeOffsets {
    fn default() -> Self {
        Self::NONE
    }
}

/// A call site in netfilter that frees packets, and where on the kernel stack its hook state was found: learned
/// by the programs, checked again for every packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Return address of the call (the tracepoint's `location`), or of the call of nft_do_chain.
    pub location: u64,
    /// Word above the context, or above the return address into nft_do_chain's caller, that leads to the hook state, plus
    /// one; 0: not known.
    pub word: u32,
    /// How it leads there ([`state_path`](crate::state_path)).
    pub path: u32,
}

impl Site {
    /// Elements of the map; a power of two.
    pub const COUNT: u32 = 64;
}

/// State of one level of one CPU: element `cpu * Layout::LEVELS + level` of a memory-mapped array. Each has one
/// writer, the program that runs there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// Programs running now on this CPU (more than one where a softirq interrupted process context). In the
    /// element of level 0.
    pub level: u32,
    /// The interval that `used` speaks of.
    pub interval: u32,
    /// Full events sent in that interval.
    pub used: u32,
    /// 1 if `per_cpu_offset` is known. In the element of level 0.
    pub has_offset: u32,
    /// Drops seen: counted plus filtered out.
    pub seen: u64,
    /// Drops that the filter did not let through; not counted elsewhere.
    pub filtered: u64,
    /// Full events that found no room in the ring buffer. Their drops are counted.
    pub ring_full: u64,
    /// Drops counted in a coarse slot because the flow part was full.
    pub flow_full: u64,
    /// Drops counted in the overflow slot: neither their flow nor their reason is known.
    pub overflow: u64,
    /// Drops whose sk_buff could not be read; counted in the overflow slot.
    pub unreadable: u64,
    /// Drops that found a program on every level of this CPU; counted in the last level's overflow slot.
    pub too_deep: u64,
    /// What this CPU adds to per-CPU addresses, in the element of level 0.
    pub per_cpu_offset: u64,
    /// Hook states and nft rules that probes and the stack told alike, and
    pub probe_agreed: u64,
    /// those that they didn't.
    pub probe_disagreed: u64,
    /// Drops by netfilter that only the probes saw, at least. In the element of level 0.
    pub probe_unseen: u64,
    /// Keeps each state in cache lines of its own.
    pub padding: [u64; 3],
}

const _: () = assert!(size_of::<TextRange>() == 16);
const _: () = assert!(size_of::<Site>() == 16);
const _: () = assert!(
    size_of::<Control>()
        == 8 + 32
            + 24
            + 16
            + 32 * Role::COUNT
            + 24
            + size_of::<ConntrackOffsets>()
            + 24
            + size_of::<TcLayout>()
            + size_of::<NftTraceOffsets>()
);
const _: () = assert!(size_of::<CpuState>() == 128);
