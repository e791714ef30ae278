//! The wire types that droptrace's two halves share: what the kernel half writes into its maps and its ring
//! buffer, and what the user half hands it at load time and while it runs.
//!
//! Everything here is `#[repr(C)]`, has no padding bytes that are not named, and has its size asserted. No
//! kernel layout is described here: offsets into kernel structures are *values* ([`Offsets`],
//! [`ConntrackOffsets`]) that the user half reads from the running kernel's BTF.
#![no_std]

mod attribution;
mod control;
mod event;
mod filter;
pub mod moved;
mod nft_step;
mod offsets;
mod retransmit;
mod slot;
mod step;
mod tc;
pub mod watch;

pub use attribution::{
    Depth, MEMORY_BYTES, Memory, Role, SequenceOffsets, attribution_kind, attribution_word, fold, hook_of,
    index_of, kind_of, lead, state_path, undecided, with_index, with_index_of,
};
pub use control::{Control, CpuState, ProbeOffsets, Site, TextRange};
pub use event::{
    BELOW_WORDS, Conntrack, Device, EXPRESSION_WORDS, Event, HEADER_BYTES, NEAR_WORDS, NetnsSource, OwnEvent,
    STACK_FRAMES, TUPLE_BYTES, WINDOW_WORDS, event_flag,
};
pub use filter::{EndKey, FilterSpec, PrefixKey, dimension, filter_bit};
pub use nft_step::{NftStep, trace_type};
pub use offsets::{ABSENT, ConntrackOffsets, NftTraceOffsets, Offsets};
pub use retransmit::Retransmit;
pub use slot::{FlowKey, Layout, Slot, flow_flag, slot_state};
pub use step::{Step, StepHead, Traced, place, priority};
pub use tc::{TC_FILTERS, TcFilter, TcLayout, tc_word};

/// Marks a type as plain data for aya's maps and globals.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($t:ty),* $(,)?) => {
        // SAFETY: each type is `repr(C)`, made of integers and arrays of integers only, with no implicit
        // padding (its size is asserted beside its definition), so every bit pattern is valid.
        $(#[allow(clippy::undocumented_unsafe_blocks)] unsafe impl aya::Pod for $t {})*
    };
}

#[cfg(feature = "user")]
pod!(
    moved::HookTables,
    watch::List,
    watch::Chunk,
    watch::Baseline,
    Control,
    CpuState,
    Memory,
    Role,
    Site,
    Event,
    EndKey,
    FilterSpec,
    PrefixKey,
    Offsets,
    ConntrackOffsets,
    NftTraceOffsets,
    FlowKey,
    Layout,
    Retransmit,
    Slot,
    Step,
    NftStep,
    Traced
);
