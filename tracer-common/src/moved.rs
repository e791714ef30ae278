//! `droptrace trace`: which rules a followed packet met between two looks at it on a hook, by their counters.
//!
//! Each rule of iptables has a counter on each CPU (see [`crate::watch`]), and so have most of the places where a packet's way
//! through a table may end. At each look at a followed packet the programs compare those of the hook's tables with what they were at
//! the last look on this CPU, and tell which have moved. The user half lists them, in chunks; those of a table follow each other.

use crate::watch::Check;
use core::mem::size_of;

/// Lists of hooks; a power of two.
pub const LISTS: u32 = 256;
/// Places of a list that are looked at.
pub const LIST_PROBES: u32 = 4;
/// Tables of one list: legacy has five at most on a hook, and nft's iptables likewise.
pub const TABLES: usize = 10;
/// Checks of one list: one for each legacy table, one for nft.
pub const CHECKS: usize = 6;
/// Chunks of one table.
pub const TABLE_CHUNKS: u32 = 512;
/// Chunks with counters that have moved, of one look.
pub const MOVED: usize = 16;

/// Whose counters to look at on one hook of one netns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookTables {
    /// Address of the struct net; 0: no list.
    pub net: u64,
    /// [`crate::watch::hook_word`].
    pub hook: u32,
    /// Inode number of the netns: addresses are used again.
    pub netns: u32,
    /// How many of `checks`.
    pub checked: u32,
    /// How many of `tables`.
    pub length: u32,
    /// What shows that the rules are still the same.
    pub checks: [Check; CHECKS],
    /// Of each table, the index of its first chunk and how many it has.
    pub tables: [[u32; 2]; TABLES],
}

/// Counters of a chunk that have moved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Four bits for each counter of the chunk, the first one's lowest: by how much.
    pub by: u64,
    /// Index of the chunk.
    pub chunk: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// What the counters of a hook's tables told at one look at a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterLook {
    /// Version of the lists; 0 if nothing is known.
    pub version: u32,
    /// The CPU.
    pub cpu: u32,
    /// Number of the look on this CPU: what moved did so since the look whose number is one less.
    pub number: u32,
    /// How many chunks have counters that moved; where they are more than [`MOVED`], not all are told, and
    /// [`CounterLook::UNTOLD`] where it isn't known which have, as at the first look on a CPU.
    pub length: u32,
    /// The chunks.
    pub moved: [Moved; MOVED],
}

impl CounterLook {
    /// As `length`: what moved before this look is not told; only what does behind it is.
    pub const UNTOLD: u32 = u32::MAX;
}

impl HookTables {
    /// No list.
    pub const NONE: Self = Self {
        net: 0,
        hook: 0,
        netns: 0,
        checked: 0,
        length: 0,
        checks: [Check { at: 0, value: 0, mask: 0 }; CHECKS],
        tables: [[0; 2]; TABLES],
    };
}

const _: () = assert!(size_of::<HookTables>() == 24 + 24 * CHECKS + 8 * TABLES);
const _: () = assert!(size_of::<CounterLook>() == 16 + 16 * MOVED);
