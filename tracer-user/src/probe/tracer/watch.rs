//! Rules' counters: what the programs are to compare at a drop.

use super::{Mapped, Reader, Tracer, TracerError};
use crate::{
    netfilter::{memory::KernelMemory, watch::Plan},
    probe::tracer::KernelLayout,
};
use aya::programs::{RawTracePointRunOptions, TestRun as _};
use tracer_common::{
    Layout,
    watch::{Baseline, CHUNK_RULES, COUNTER_BYTES, Chunk, LISTS, List},
};

/// Name of the program that tells what a CPU adds to per-CPU addresses.
pub(super) const PER_CPU: &str = "own_per_cpu";

/// What the programs compare.
pub(super) struct WatchMaps {
    pub(super) lists: Mapped<List>,
    pub(super) chunks: Mapped<Chunk>,
    pub(super) baselines: Mapped<Baseline>,
}

impl Tracer {
    /// Learns what each CPU adds to per-CPU addresses; one that can't be asked (offline) keeps what is known of it.
    /// Returns false if that is not known for any.
    ///
    /// # Errors
    /// If this build is broken.
    pub fn learn_per_cpu(&self, kernel: &KernelLayout) -> Result<bool, TracerError> {
        let program = self.raw_program(PER_CPU)?;
        let Some(pptrs) = kernel.array_pptrs else { return Ok(false) };
        let mut memory = self.memory()?;
        let mut learned = false;
        for cpu in 0..self.layout.cpus {
            let mut options = RawTracePointRunOptions::new();
            options.cpu = Some(cpu);
            if program.test_run(options).is_err() {
                continue;
            }
            // SAFETY: the map's one element, which nobody else uses. Its bytes are aligned to 8.
            let [value, map]: [u64; 2] =
                unsafe { (&raw const (*self.memory.at(0)).bytes).cast::<[u64; 2]>().read_volatile() };
            let Some(base) = memory.u64(map + u64::from(pptrs)) else { continue };
            let offset = value.wrapping_sub(base);
            let state = self.cpus.at(cpu * Layout::LEVELS);
            // SAFETY: fields of a mapped element that only we write.
            unsafe {
                (&raw mut (*state).per_cpu_offset).write_volatile(offset);
                (&raw mut (*state).has_offset).write_volatile(1);
            }
            learned = true;
        }
        Ok(learned)
    }

    /// What the CPU adds to per-CPU addresses, if there can be one only and that is known.
    #[must_use]
    pub fn only_cpu(&self) -> Option<u64> {
        let state = (self.layout.cpus == 1).then(|| self.cpus.read(0))?;
        (state.has_offset != 0).then_some(state.per_cpu_offset)
    }

    /// Gives the programs a new plan; with version 0, which has no list, none.
    ///
    /// What the counters are now is read and handed over, so that already the next drop tells its rule. A counter that
    /// moves before the programs look at it is read again and found out; its chunk begins with its next drop.
    ///
    /// # Errors
    /// If this build is broken.
    pub fn watch(&mut self, version: u32, plan: &Plan) -> Result<(), TracerError> {
        let at = self.control.at(0);
        // SAFETY: a field of the mapped page; only we write it.
        let publish = |version: u32| unsafe { (&raw mut (*at).watch_version).write_volatile(version) };
        publish(0);
        for (index, list) in (0..LISTS).zip(&plan.lists) {
            // SAFETY: within the map. Programs that still run with the old lists see at their end that they changed.
            unsafe { self.watched.lists.at(index).write_volatile(*list) };
        }
        for (index, chunk) in (0..self.layout.chunks).zip(&plan.chunks) {
            // SAFETY: likewise.
            unsafe { self.watched.chunks.at(index).write_volatile(*chunk) };
        }
        let mut memory = self.memory()?;
        let places = || {
            (0..self.layout.cpus).flat_map(|cpu| {
                (0..self.layout.chunks).zip(&plan.chunks).map(move |(id, chunk)| (cpu, id, chunk))
            })
        };
        let mut handed = Vec::new();
        for (cpu, id, chunk) in places() {
            let packets = self.read_counters(&mut memory, cpu, chunk);
            let version = if packets.is_some() { version } else { 0 };
            let packets = packets.unwrap_or_default();
            handed.push(packets);
            let baseline = Baseline { packets, version, reserved: 0 };
            // SAFETY: within the map; no program uses it while the version is 0.
            unsafe { self.baseline(cpu, id).write_volatile(baseline) };
        }
        publish(version);
        for ((cpu, id, chunk), handed) in places().zip(handed) {
            if self.read_counters(&mut memory, cpu, chunk) == Some(handed) {
                continue;
            }
            let baseline = self.baseline(cpu, id);
            // SAFETY: fields of a mapped element. If a program has looked meanwhile, it has put in what it found.
            unsafe {
                if watched(chunk, (&raw const (*baseline).packets).read_volatile()) == handed {
                    (&raw mut (*baseline).version).write_volatile(0);
                }
            }
        }
        Ok(())
    }

    fn baseline(&self, cpu: u32, id: u32) -> *mut Baseline {
        self.watched.baselines.at(cpu * self.layout.chunks + id)
    }

    /// What a chunk's counters are on a CPU.
    fn read_counters(&self, memory: &mut Reader<'_>, cpu: u32, chunk: &Chunk) -> Option<[u64; CHUNK_RULES]> {
        let state = self.cpus.read(cpu * Layout::LEVELS);
        let mut counters = [0; CHUNK_RULES * COUNTER_BYTES];
        let to = counters.get_mut(..chunk.bytes as usize).filter(|_| state.has_offset != 0)?;
        if !memory.read(chunk.address.wrapping_add(state.per_cpu_offset), to) {
            return None;
        }
        let mut packets = [0; CHUNK_RULES];
        for (to, from) in packets.iter_mut().zip(counters.as_chunks::<COUNTER_BYTES>().0) {
            *to = from.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        }
        Some(watched(chunk, packets))
    }

    /// What a per-CPU number is on all CPUs together; `None` if it can't be read on any, or the place is not learned
    /// ([`Self::learn_per_cpu`]).
    pub fn sum(&self, memory: &mut Reader<'_>, address: u64) -> Option<u64> {
        let of_cpu = |cpu| {
            let state = self.cpus.read(cpu * Layout::LEVELS);
            // A CPU that never was online has counted nothing.
            (state.has_offset != 0).then(|| memory.u64(address.wrapping_add(state.per_cpu_offset)))
        };
        let read: Vec<u64> = (0..self.layout.cpus).filter_map(of_cpu).collect::<Option<_>>()?;
        (!read.is_empty()).then(|| read.into_iter().fold(0, u64::wrapping_add))
    }

    /// How many chunks of counters there is room for.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.layout.chunks
    }
}

/// A chunk's counters, without those of rules that don't drop: they may move at any time.
fn watched(chunk: &Chunk, mut packets: [u64; CHUNK_RULES]) -> [u64; CHUNK_RULES] {
    for (bit, packets) in packets.iter_mut().enumerate() {
        if chunk.mask >> bit & 1 == 0 {
            *packets = 0;
        }
    }
    packets
}
