//! Program runs on one CPU interrupt each other: each has working memory of its own, by its level.

use crate::maps::CPUS;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{CpuState, Layout};

/// A run that has begun.
pub struct Run {
    /// The CPU.
    pub cpu: u32,
    /// The level whose memory it uses.
    pub level: u32,
    /// True where there are no more levels: that one's memory is another run's.
    pub is_too_deep: bool,
    /// The CPU's first state, which counts the levels.
    counter: *mut CpuState,
}

impl Run {
    /// Index of its working memory and of its state.
    #[inline(always)]
    pub fn index(&self) -> u32 {
        self.cpu * Layout::LEVELS + self.level
    }

    /// Begins one; [`Run::end`] must follow.
    #[inline(always)]
    pub fn begin() -> Option<Self> {
        // SAFETY: the helper has no preconditions.
        let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
        let counter = CPUS.get_ptr_mut(cpu * Layout::LEVELS)?;
        // SAFETY: a map value. Only programs on this CPU write it; one that interrupts this one puts `level` back before
        // this one goes on, so plain reads and writes do.
        let level = unsafe {
            let level = read_volatile(&raw const (*counter).level);
            write_volatile(&raw mut (*counter).level, level + 1);
            level
        };
        let is_too_deep = level >= Layout::LEVELS;
        let level = if is_too_deep { Layout::LEVELS - 1 } else { level };
        Some(Self { cpu, level, is_too_deep, counter })
    }

    /// Ends it.
    #[inline(always)]
    pub fn end(self) {
        // SAFETY: as above; what interrupted this run has put back what it found.
        unsafe {
            let level = read_volatile(&raw const (*self.counter).level);
            write_volatile(&raw mut (*self.counter).level, level - 1);
        }
    }
}
