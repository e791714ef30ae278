//! Counting: each drop in exactly one slot (see `tracer_common::slot`).

use crate::maps::{CONTROL, CPUS, SLOTS, layout, scratch};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{CpuState, FlowKey, Layout, flow_flag, slot_state};

/// Words of a key.
const KEY_WORDS: usize = size_of::<FlowKey>() / 8;

/// Step: counts one dropped skb; returns the index of its slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_drop(index: u32) -> u32 {
    let scratch = scratch!(index);
    let (cpu_id, level) = (index / Layout::LEVELS, index % Layout::LEVELS);
    let Some(state) = CPUS.get_ptr_mut(index) else { return 0 };
    // SAFETY: map values; slots of this CPU and level are written by this program run only.
    unsafe {
        let key = &raw mut (*scratch).key;
        let start = base(cpu_id);
        if level == 0 {
            let slot = find::<{ Layout::FLOW_PROBES }>(start, layout!(flow_slots), key);
            if slot != NONE {
                return add(slot, (*scratch).segments);
            }
            (*state).flow_full += 1;
        }
        if level < 2 {
            let flow = Flow::take(key);
            let coarse = start + layout!(flow_slots);
            let slot = if level == 0 {
                find::<{ Layout::COARSE_PROBES }>(coarse, layout!(coarse_slots), key)
            } else {
                find::<{ Layout::COARSE_PROBES }>(coarse + layout!(coarse_slots), layout!(nested_slots), key)
            };
            flow.put_back(key);
            if slot != NONE {
                return add(slot, (*scratch).segments);
            }
        }
        overflow(state, cpu_id, level, (*scratch).segments)
    }
}

/// No slot.
const NONE: u32 = u32::MAX;

/// Counts a drop in the slot that is always there; returns its index.
///
/// # Safety
/// `state` must be the map value of this CPU and level.
#[inline(always)]
pub unsafe fn overflow(state: *mut CpuState, cpu_id: u32, level: u32, segments: u64) -> u32 {
    let index = base(cpu_id) + layout!(flow_slots) + layout!(coarse_slots) + layout!(nested_slots) + level;
    // SAFETY: map values; this level's own.
    unsafe {
        (*state).overflow += 1;
        if let Some(slot) = SLOTS.get_ptr_mut(index) {
            write_volatile(&raw mut (*slot).state, slot_state::READY);
        }
        add(index, segments)
    }
}

/// The first slot of this CPU's part of the generation in use ([`Layout::base`]).
#[inline(always)]
fn base(cpu_id: u32) -> u32 {
    let stride = layout!(flow_slots) + layout!(coarse_slots) + layout!(nested_slots) + Layout::LEVELS;
    let generation = match CONTROL.get_ptr(0) {
        // SAFETY: a map value; volatile because the user half may turn to the other generation at any time.
        Some(control) => unsafe { read_volatile(&raw const (*control).generation) & 1 },
        None => 0,
    };
    (generation * layout!(cpus) + cpu_id) * stride
}

/// The flow's part of a key, put aside while the coarse key is looked up.
struct Flow {
    words: [u64; 4],
    ports: u64,
}

impl Flow {
    #[inline(always)]
    unsafe fn take(key: *mut FlowKey) -> Self {
        // SAFETY: `key` is a map value; source and destination lie side by side (FlowKey is repr(C)), and so do
        // the eight bytes from source_port to flags.
        unsafe {
            let words = (&raw mut (*key).source).cast::<u64>();
            let ports = (&raw mut (*key).source_port).cast::<u64>();
            let flow = Self { words: [*words, *words.add(1), *words.add(2), *words.add(3)], ports: *ports };
            // Volatile, or the compiler makes a call of memset of it, whose loop the verifier can't bound.
            write_volatile(words, 0);
            write_volatile(words.add(1), 0);
            write_volatile(words.add(2), 0);
            write_volatile(words.add(3), 0);
            write_volatile(ports, 0);
            (*key).flags = flow_flag::COARSE;
            flow
        }
    }

    #[inline(always)]
    unsafe fn put_back(self, key: *mut FlowKey) {
        // SAFETY: as above.
        unsafe {
            let words = (&raw mut (*key).source).cast::<u64>();
            *words = self.words[0];
            *words.add(1) = self.words[1];
            *words.add(2) = self.words[2];
            *words.add(3) = self.words[3];
            *(&raw mut (*key).source_port).cast::<u64>() = self.ports;
        }
    }
}

#[inline(always)]
unsafe fn add(index: u32, segments: u64) -> u32 {
    if let Some(slot) = SLOTS.get_ptr_mut(index) {
        // SAFETY: a slot that only this program run writes. The count comes last: who sees it sees the rest.
        unsafe {
            write_volatile(&raw mut (*slot).segments, (*slot).segments + segments);
            write_volatile(&raw mut (*slot).count, (*slot).count + 1);
        }
    }
    index
}

/// Multiply-and-xor over the key's words; the products don't wait for one another.
#[inline(always)]
unsafe fn hash(key: *const FlowKey) -> u32 {
    const ODD: [u64; KEY_WORDS] = [
        0x9e37_79b9_7f4a_7c15,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
        0xd6e8_feb8_6659_fd93,
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
        0x8ebc_6af0_9c88_c6e3,
        0x5899_65cc_7537_4cc3,
        0x1d8e_4e27_c47d_124f,
    ];
    let words = key.cast::<u64>();
    let mut sum = 0u64;
    let mut i = 0;
    while i < KEY_WORDS {
        // SAFETY: `key` has KEY_WORDS words.
        let word = unsafe { *words.add(i) };
        sum ^= (word ^ (word >> 29)).wrapping_mul(ODD[i]);
        i += 1;
    }
    sum ^= sum >> 32;
    sum = sum.wrapping_mul(ODD[0]);
    (sum >> 32) as u32
}

/// The slot of `key` in the part that starts at `start`, claimed if it is new; [`NONE`] if the part is full.
#[inline(always)]
unsafe fn find<const PROBES: u32>(start: u32, slots: u32, key: *const FlowKey) -> u32 {
    // SAFETY: the key is a map value.
    let hash = unsafe { hash(key) };
    let mut probe = 0;
    while probe < PROBES {
        let index = start + ((hash + probe) & (slots - 1));
        let Some(slot) = SLOTS.get_ptr_mut(index) else { return NONE };
        // SAFETY: map values.
        unsafe {
            if read_volatile(&raw const (*slot).state) == slot_state::EMPTY {
                let (to, from) = (slot.cast::<u64>(), key.cast::<u64>());
                let mut i = 0;
                while i < KEY_WORDS {
                    write_volatile(to.add(i), *from.add(i));
                    i += 1;
                }
                // Seen by the user half, so after the key (x86 keeps stores in order).
                write_volatile(&raw mut (*slot).state, slot_state::READY);
                return index;
            }
            if same(slot.cast(), key.cast()) {
                return index;
            }
        }
        probe += 1;
    }
    NONE
}

#[inline(always)]
unsafe fn same(a: *const u64, b: *const u64) -> bool {
    let mut different = 0;
    let mut i = 0;
    while i < KEY_WORDS {
        // SAFETY: both have KEY_WORDS words.
        different |= unsafe { *a.add(i) ^ *b.add(i) };
        i += 1;
    }
    different == 0
}
