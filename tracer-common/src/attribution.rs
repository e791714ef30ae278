//! What dropped a packet, as far as the kernel half can tell: the words that go into [`FlowKey::attribution`], and
//! what the user half has learned to read them by.
//!
//! [`FlowKey::attribution`]: crate::FlowKey::attribution

use crate::ABSENT;
use core::mem::size_of;

/// What `attribution[0]` is: the top byte of `attribution[1]`.
pub mod attribution_kind {
    /// Nothing is known, but for the hook.
    pub const NONE: u8 = 0;
    /// Address of the expression (struct nft_expr) whose verdict dropped the packet. The low 32 bits of
    /// `attribution[1]` are the ruleset's generation (`base_seq`) in that netns.
    pub const NFT_RULE: u8 = 1;
    /// Address of the base chain (struct nft_chain) whose policy dropped it; the generation likewise.
    pub const NFT_POLICY: u8 = 2;
    /// `16 * chunk + counter` of the rule whose counter moved. The low 32 bits of `attribution[1]` are the
    /// version of the lists ([`Control::watch_version`](crate::Control::watch_version)).
    pub const COUNTED: u8 = 3;
    /// A rule whose counter is watched may have done it, but the counters don't tell: the rest of `attribution[1]` says why
    /// ([`undecided`](super::undecided)).
    pub const UNDECIDED: u8 = 4;
    /// Address of the hook function that dropped it, read at the drop; 0 if only its index is known. The low 32 bits of
    /// `attribution[1]` are a [`fold`](super::fold) of what the function is given, then.
    pub const HOOK: u8 = 5;
    /// Ids of the first two BPF programs on the tc hook where the packet was dropped, the first one in the low 32 bits; 0
    /// where there is none. The low 32 bits of `attribution[1]` are a [`tc_word`](crate::tc_word).
    pub const TC: u8 = 6;
}

/// Why counters don't tell which rule dropped a packet.
pub mod undecided {
    /// No counter moved: no rule did it, or its drop was counted by a program that came in between.
    pub const NONE_MOVED: u32 = 1;
    /// More than one moved, or one by more than one: a drop before this one was not seen, or somebody set a counter.
    pub const MORE_MOVED: u32 = 2;
    /// The first drop on this CPU since the lists changed.
    pub const FIRST: u32 = 3;
    /// A table or rule set was replaced since the lists were made.
    pub const REPLACED: u32 = 4;
}

/// The second word: a kind, the hook where the packet was dropped, and 32 bits that depend on the kind.
#[inline(always)]
#[must_use]
pub const fn attribution_word(kind: u8, hook: Option<(u8, u8)>, rest: u32) -> u64 {
    let hook = match hook {
        Some((family, hook)) => HAS_HOOK | (family as u64) << 40 | (hook as u64) << 32,
        None => 0,
    };
    (kind as u64) << 56 | hook | rest as u64
}

/// A second word with the index of the hook function that dropped the packet, if that fits.
#[inline(always)]
#[must_use]
pub const fn with_index(word: u64, index: u64) -> u64 {
    if index < INDICES { word & !(INDICES << 49) | (index + 1) << 49 } else { word }
}

/// A second word with the index that another one has, if it has one.
#[inline(always)]
#[must_use]
pub const fn with_index_of(word: u64, other: u64) -> u64 {
    word & !(INDICES << 49) | other & (INDICES << 49)
}

/// The index of the hook function in a second word.
#[inline(always)]
#[must_use]
pub const fn index_of(word: u64) -> Option<u8> {
    match (word >> 49 & INDICES) as u8 {
        0 => None,
        index => Some(index - 1),
    }
}

/// The index has seven bits, of which 0 says that it is not known.
const INDICES: u64 = 0x7f;

/// The bit of the second word that says that it has a hook.
const HAS_HOOK: u64 = 1 << 48;

/// The hook in a second word: family (NFPROTO_*) and number.
#[inline(always)]
#[must_use]
pub const fn hook_of(word: u64) -> Option<(u8, u8)> {
    if word & HAS_HOOK == 0 { None } else { Some(((word >> 40) as u8, (word >> 32) as u8)) }
}

/// What tells words from one another, in 32 bits.
#[inline(always)]
#[must_use]
pub const fn fold(word: u64) -> u32 {
    word as u32 ^ (word >> 32) as u32
}

/// The kind in a second word.
#[inline(always)]
#[must_use]
pub const fn kind_of(word: u64) -> u8 {
    (word >> 56) as u8
}

/// How a word of the kernel stack leads to the packet's hook state (struct nf_hook_state).
pub mod state_path {
    /// Not at all.
    pub const NONE: u8 = 0;
    /// It points to the state.
    pub const STATE: u8 = 1;
    /// It points to an nft_pktinfo that points to the state.
    pub const PKTINFO: u8 = 2;
    /// It is the first word of such an nft_pktinfo.
    pub const IN_PKTINFO: u8 = 3;
    /// It is the return address into nft_do_chain's caller, whose frame begins with such an nft_pktinfo, or into
    /// nf_hook_slow's, whose frame holds the state.
    pub const CALLER: u8 = 4;
    /// No word near the context leads there.
    pub const ON_STACK: u8 = 5;
}

/// Where a word of the stack leads in the self-test: by which path ([`state_path`]) to a state with which hook.
#[inline(always)]
#[must_use]
pub const fn lead(path: u8, hook: u8) -> u8 {
    path << 4 | hook & 0xf
}

/// What the self-test learned about a call site that frees packets: which words of the kernel stack above the
/// program's context hold what dropped the packet, and lead to its hook state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Return address of the call (the tracepoint's `location`); 0: not used.
    pub location: u64,
    /// [`attribution_kind`].
    pub kind: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// The stack is deeper where more than one program looks at dropped packets. The nearer return address first.
    pub depths: [Depth; 2],
}

/// Words of the stack, from 0, at one depth.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Where the return address lies; 0: not used.
    pub return_word: u8,
    /// Where the answer lies; 0: not known.
    pub value_word: u8,
    /// Which word leads to the hook state.
    pub state_word: u8,
    /// How it does ([`state_path`]).
    pub state_path: u8,
    /// Which word points to the hook functions that the packet was on its way through (struct nf_hook_entries); 0: not
    /// known. A negative one is below the context, where our program itself has saved its caller's registers.
    pub entries_word: i8,
    /// Explicit padding.
    pub reserved: [u8; 3],
}

impl Depth {
    /// Not used.
    pub const NONE: Self = Self {
        return_word: 0,
        value_word: 0,
        state_word: 0,
        state_path: state_path::NONE,
        entries_word: 0,
        reserved: [0; 3],
    };
}

impl Role {
    /// Call sites at most.
    pub const COUNT: usize = 8;
}

/// Where a netns keeps the generation of its nft ruleset (`base_seq`, changed by every transaction).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceOffsets {
    /// net.nft.base_seq (from 6.17); else [`ABSENT`], and the others count.
    pub direct: u32,
    /// net.gen
    pub generic: u32,
    /// Offset of nf_tables' pointer (`ptr[nf_tables_net_id]`) in struct net_generic.
    pub pointer: u32,
    /// nftables_pernet.base_seq
    pub base_seq: u32,
}

impl SequenceOffsets {
    /// Nothing known: nf_tables is not there.
    pub const NONE: Self = Self { direct: ABSENT, generic: ABSENT, pointer: ABSENT, base_seq: ABSENT };
}

impl Default for SequenceOffsets {
    fn default() -> Self {
        Self::NONE
    }
}

/// Bytes of kernel memory that the program `read_memory` copies at most.
pub const MEMORY_BYTES: usize = 1 << 16;

/// What `read_memory` copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memory {
    /// 1 if the bytes could be read.
    pub is_read: u64,
    /// The bytes.
    pub bytes: [u8; MEMORY_BYTES],
}

const _: () = assert!(size_of::<Role>() == 32);
const _: () = assert!(size_of::<SequenceOffsets>() == 16);
const _: () = assert!(size_of::<Memory>() == MEMORY_BYTES + 8);
