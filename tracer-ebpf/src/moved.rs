//! Which rules a followed packet met on a hook: those whose counters have moved since the last look on this CPU
//! (see `tracer_common::moved`).

use crate::{
    maps::{
        CPUS, MOVED_BASELINES, MOVED_CHUNKS, MOVED_CHUNKS_ON_CPU, MOVED_LISTS, TRACED, constant, control,
        has, scratch, state_field,
    },
    memory::{copy, read},
};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{
    Layout,
    moved::{CHECKS, CounterLook, HookTables, LIST_PROBES, LISTS, MOVED, Moved, TABLE_CHUNKS, TABLES},
    watch::{self, CHUNK_RULES, COUNTER_BYTES},
};

/// Step: notes in the head what the counters of the hook's tables tell.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_at_counters(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    if !has!(state_hook, state_pf) {
        return 0;
    }
    // SAFETY: map values. The lists change only while the version is 0; a run that the change overtakes sees another
    // version at its end.
    unsafe {
        let head = &raw mut (*scratch).head;
        let version = read_volatile(&raw const (*control).moved_version);
        if version == 0 || (*scratch).state == 0 {
            return 0;
        }
        let hook =
            watch::hook_word(state_field!(scratch, state_pf, u8), state_field!(scratch, state_hook, u8));
        let Some(list) = find((*scratch).netns, (*scratch).key.netns, hook) else { return 0 };
        let Some(traced) = TRACED.get_ptr_mut(0) else { return 0 };
        let number = read_volatile(&raw const (*traced).looks) + 1;
        write_volatile(&raw mut (*traced).looks, number);
        let mut at = 0;
        while at < CHECKS {
            if at < (*list).checked as usize {
                let check = (&raw const (*list).checks).cast::<watch::Check>().add(at);
                let word = read::<u64>((*check).at);
                if word.is_none_or(|word| word & (*check).mask != (*check).value) {
                    return 0;
                }
            }
            at += 1;
        }
        write_volatile(&raw mut (*scratch).unsure, 0);
        let mut at = 0;
        while at < TABLES {
            if at >= (*list).length as usize {
                break;
            }
            let table = (&raw const (*list).tables).cast::<u32>().add(at * 2);
            compare_table(index, read_volatile(table), read_volatile(table.add(1)));
            at += 1;
        }
        if (*scratch).unsure != 0 {
            // What the next look is compared with is known all the same.
            write_volatile(&raw mut (*head).counters.length, CounterLook::UNTOLD);
        }
        // A look that has interrupted this one has taken some of what is this one's.
        if read_volatile(&raw const (*traced).looks) == number
            && read_volatile(&raw const (*control).moved_version) == version
        {
            write_volatile(&raw mut (*head).counters.cpu, index / Layout::LEVELS);
            write_volatile(&raw mut (*head).counters.number, number);
            write_volatile(&raw mut (*head).counters.version, version);
        }
    }
    1
}

#[inline(always)]
unsafe fn find(net: u64, netns: u32, hook: u32) -> Option<*const HookTables> {
    let first = watch::list_place(net, hook);
    let mut probe = 0;
    while probe < LIST_PROBES {
        let list = MOVED_LISTS.get_ptr(first.wrapping_add(probe) & (LISTS - 1))?;
        // SAFETY: a map value.
        if unsafe { (*list).net == net && (*list).netns == netns && (*list).hook == hook } {
            return Some(list);
        }
        probe += 1;
    }
    None
}

/// Step: compares the counters of a table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn compare_table(index: u32, first: u32, count: u32) -> u32 {
    let mut at = 0;
    while at < TABLE_CHUNKS {
        if at >= count {
            break;
        }
        compare_chunk(index, first + at);
        at += 1;
    }
    at
}

/// Step: notes which of a chunk's counters have moved on this CPU, and remembers what they are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn compare_chunk(index: u32, id: u32) -> u32 {
    const LONGEST: u32 = (CHUNK_RULES * COUNTER_BYTES) as u32;
    let scratch = scratch!(index);
    let cpu_id = index / Layout::LEVELS;
    let Some(cpu) = CPUS.get_ptr(cpu_id * Layout::LEVELS) else { return 0 };
    let Some(chunk) = MOVED_CHUNKS.get_ptr(id) else { return 0 };
    let chunks = constant(&MOVED_CHUNKS_ON_CPU);
    let Some(baseline) = MOVED_BASELINES.get_ptr_mut(cpu_id * chunks + id) else { return 0 };
    let control = control!();
    // SAFETY: map values; the baselines of this CPU are written by the programs here only, and by the user half while
    // the version is 0.
    unsafe {
        let counters = &raw mut (*scratch).counters;
        let size = (*chunk).bytes;
        let offset = (*cpu).per_cpu_offset;
        if size > LONGEST || (*cpu).has_offset == 0 || !copy(counters.cast(), size, (*chunk).address + offset)
        {
            (*scratch).unsure = 1;
            return 0;
        }
        let version = read_volatile(&raw const (*control).moved_version);
        if (*baseline).version != version {
            (*baseline).version = version;
            (*scratch).unsure = 1;
        }
        let (now, last) = (counters.cast::<u64>(), (&raw mut (*baseline).packets).cast::<u64>());
        let mask = (*chunk).mask as u64;
        // Without a branch for each: the verifier would follow every combination of them.
        let (mut by, mut leaps) = (0u64, 0u64);
        let mut at = 0;
        while at < CHUNK_RULES {
            let packets = read_volatile(now.add(at * 2));
            let delta = (packets - read_volatile(last.add(at))) & 0u64.wrapping_sub(mask >> at & 1);
            write_volatile(last.add(at), packets);
            by |= (delta & 15) << (at * 4);
            leaps |= delta >> 4;
            at += 1;
        }
        // More than one packet makes them move, or they were set back.
        if leaps != 0 {
            (*scratch).unsure = 1;
        }
        if by == 0 {
            return 0;
        }
        let told = &raw mut (*scratch).head.counters;
        let length = read_volatile(&raw const (*told).length) as usize;
        if length < MOVED {
            let to = (&raw mut (*told).moved).cast::<Moved>().add(length);
            write_volatile(&raw mut (*to).by, by);
            write_volatile(&raw mut (*to).chunk, id);
            write_volatile(&raw mut (*to).reserved, 0);
        }
        write_volatile(&raw mut (*told).length, length as u32 + 1);
    }
    1
}
