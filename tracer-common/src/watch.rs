//! Rules that have a counter on each CPU: whose are compared at a drop.
//!
//! Each rule of iptables-legacy has one, and so has each of iptables-nft and many of nft. At a drop in nf_hook_slow the
//! programs read those of the rules that can drop, and compare them with what they were at the last drop on this CPU:
//! exactly one has moved, by one. The user half lists the rules, in *chunks* of counters that lie side by side, and for
//! each hook of each netns the chunks to look at.

use core::mem::size_of;

/// Counters of one chunk.
pub const CHUNK_RULES: usize = 16;
/// Bytes of one counter: two words, of which one counts packets and the other bytes (struct xt_counters,
/// include/uapi/linux/netfilter/x_tables.h; struct nft_counter, net/netfilter/nft_counter.c; struct nft_stats,
/// include/net/netfilter/nf_tables.h).
pub const COUNTER_BYTES: usize = 16;
/// Lists of hooks; a power of two.
pub const LISTS: u32 = 256;
/// Places of a list that are looked at.
pub const LIST_PROBES: u32 = 4;
/// Checks of one list: legacy has four tables at most on a hook, nft one generation, and the base chains whose policies
/// are watched.
pub const LIST_CHECKS: usize = 8;
/// Chunks of one list.
pub const LIST_CHUNKS: usize = 64;

/// A word that must still be what it was when the rules were read: xt_table.private, the generation of nft's rule set, a
/// base chain's counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Its address.
    pub at: u64,
    /// What it must hold.
    pub value: u64,
    /// The bits that count.
    pub mask: u64,
}

/// What to look at where one hook of one netns drops.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// Address of the struct net; 0: no list.
    pub net: u64,
    /// [`hook_word`].
    pub hook: u32,
    /// How many of `checks`.
    pub checked: u32,
    /// How many of `chunks`.
    pub length: u32,
    /// Inode number of the netns: addresses are used again.
    pub netns: u32,
    /// What shows that the rules are still the same.
    pub checks: [Check; LIST_CHECKS],
    /// Indices of chunks.
    pub chunks: [u32; LIST_CHUNKS],
}

/// Counters that lie side by side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Address of the packets of the first counter: per-CPU, to which each CPU adds its offset.
    pub address: u64,
    /// Bytes up to the end of the last one's packets.
    pub bytes: u32,
    /// Bit n: counter n is that of a rule that can drop.
    pub mask: u32,
}

/// What a chunk's counters were on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Baseline {
    /// Packets.
    pub packets: [u64; CHUNK_RULES],
    /// The version of the lists that this speaks of; any other: not known yet.
    pub version: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// A hook of a family as one word.
#[inline(always)]
#[must_use]
pub const fn hook_word(family: u8, hook: u8) -> u32 {
    (family as u32) << 8 | hook as u32
}

/// The first place that a list may be in.
#[inline(always)]
#[must_use]
pub const fn list_place(net: u64, hook: u32) -> u32 {
    ((net >> 6) as u32 ^ (net >> 18) as u32).wrapping_add(hook.wrapping_mul(0x9e37_79b1) >> 16)
}

impl Default for List {
    fn default() -> Self {
        Self {
            net: 0,
            hook: 0,
            checked: 0,
            length: 0,
            netns: 0,
            checks: [Check::default(); LIST_CHECKS],
            chunks: [0; LIST_CHUNKS],
        }
    }
}

const _: () = assert!(size_of::<List>() == 24 + 24 * LIST_CHECKS + 4 * LIST_CHUNKS);
const _: () = assert!(size_of::<Chunk>() == 16);
const _: () = assert!(size_of::<Baseline>() == 8 * CHUNK_RULES + 8);
