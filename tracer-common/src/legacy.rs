//! iptables-legacy: whose counters are compared at a drop.
//!
//! Each rule has a counter on each CPU. At a drop by a table the programs read those of the rules that can drop, and
//! compare them with what they were at the last drop on this CPU: exactly one has moved, by one. The user half lists
//! the rules, in *chunks* of counters that lie side by side, and for each hook of each netns the chunks to look at.

use core::mem::size_of;

/// Counters of one chunk.
pub const CHUNK_RULES: usize = 16;
/// Bytes of one counter (struct xt_counters, include/uapi/linux/netfilter/x_tables.h: packets, then bytes).
pub const COUNTER_BYTES: usize = 16;
/// Lists of hooks; a power of two.
pub const LISTS: u32 = 256;
/// Places of a list that are looked at.
pub const LIST_PROBES: u32 = 4;
/// Tables on one hook.
pub const LIST_TABLES: usize = 4;
/// Chunks of one list.
pub const LIST_CHUNKS: usize = 64;

/// A table that must still be the one that was read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCheck {
    /// Address of xt_table.private.
    pub at: u64,
    /// What it must hold.
    pub private: u64,
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
    pub tables: u32,
    /// How many of `chunks`.
    pub length: u32,
    /// Inode number of the netns: addresses are used again.
    pub netns: u32,
    /// The tables on this hook.
    pub checks: [TableCheck; LIST_TABLES],
    /// Indices of chunks.
    pub chunks: [u32; LIST_CHUNKS],
}

/// Counters that lie side by side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Address of the first counter: per-CPU, to which each CPU adds its offset.
    pub address: u64,
    /// Bytes up to the end of the last one.
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
            tables: 0,
            length: 0,
            netns: 0,
            checks: [TableCheck::default(); LIST_TABLES],
            chunks: [0; LIST_CHUNKS],
        }
    }
}

const _: () = assert!(size_of::<List>() == 24 + 16 * LIST_TABLES + 4 * LIST_CHUNKS);
const _: () = assert!(size_of::<Chunk>() == 16);
const _: () = assert!(size_of::<Baseline>() == 8 * CHUNK_RULES + 8);
