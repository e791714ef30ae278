//! Rules' counters in a trace: which the programs are to compare at each look at a packet on a hook.

use super::{Mapped, Tracer};
use crate::netfilter::moved::Plan;
use tracer_common::{
    moved::{HookTables, LISTS},
    watch::{Baseline, Chunk},
};

/// Memory for what counters were on all CPUs, in bytes.
const MEMORY: usize = 32 << 20;

/// What the programs compare.
pub(super) struct MovedMaps {
    pub(super) lists: Mapped<HookTables>,
    pub(super) chunks: Mapped<Chunk>,
    /// Chunks that there is room for.
    pub(super) most: u32,
}

/// Chunks for so many CPUs, in bounded memory.
pub(super) fn most_chunks(cpus: u32) -> u32 {
    let chunks = MEMORY / (size_of::<Baseline>() * cpus as usize);
    u32::try_from(chunks).unwrap_or(u32::MAX).clamp(64, 4096)
}

impl Tracer {
    /// Gives the programs a new plan. What the counters are they learn at their first look on each CPU.
    pub fn compare(&mut self, version: u32, plan: &Plan) {
        let at = self.control.at(0);
        // SAFETY: a field of the mapped page; only we write it.
        let publish = |version: u32| unsafe { (&raw mut (*at).moved_version).write_volatile(version) };
        publish(0);
        for (index, list) in (0..LISTS).zip(&plan.lists) {
            // SAFETY: within the map. Programs that still run with the old lists see at their end that they changed.
            unsafe { self.moved.lists.at(index).write_volatile(*list) };
        }
        for (index, chunk) in (0..self.moved.most).zip(&plan.chunks) {
            // SAFETY: likewise.
            unsafe { self.moved.chunks.at(index).write_volatile(*chunk) };
        }
        publish(version);
    }

    /// How many chunks of counters there is room for.
    #[must_use]
    pub fn compared_chunks(&self) -> u32 {
        self.moved.most
    }
}
