//! Which rule dropped a packet that nf_hook_slow freed: the one whose counter has moved (see `tracer_common::watch`).

use crate::{
    maps::{BASELINES, CHUNKS, CPUS, LISTS, Scratch, control, has, layout, scratch, state_field},
    memory::{copy, read},
    stack,
};
use core::ptr::{read_volatile, write_volatile};
use tracer_common::{
    Layout, attribution_kind, attribution_word, undecided,
    watch::{self, Baseline, CHUNK_RULES, COUNTER_BYTES, LIST_CHECKS, LIST_CHUNKS, LIST_PROBES, List},
};

/// Step: puts what is known into the key.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attribute_counted(index: u32) -> u32 {
    let scratch = scratch!(index);
    let control = control!();
    if !has!(state_hook, state_pf) {
        return 0;
    }
    // SAFETY: map values. The lists change only while the version is 0; a run that the change overtakes sees another
    // version at its end.
    unsafe {
        let version = read_volatile(&raw const (*control).watch_version);
        if version == 0 || (*scratch).state == 0 {
            return 0;
        }
        let hook =
            watch::hook_word(state_field!(scratch, state_pf, u8), state_field!(scratch, state_hook, u8));
        let list = find((*scratch).netns, (*scratch).key.netns, hook);
        let Some(list) = list else { return 0 };
        let mut at = 0;
        while at < LIST_CHECKS {
            if at < (*list).checked as usize {
                let check = (&raw const (*list).checks).cast::<watch::Check>().add(at);
                let word = read::<u64>((*check).at);
                if word.is_none_or(|word| word & (*check).mask != (*check).value) {
                    undecided(scratch, undecided::REPLACED);
                    return 0;
                }
            }
            at += 1;
        }
        write_volatile(&raw mut (*scratch).moved, 0);
        write_volatile(&raw mut (*scratch).hit, 0);
        write_volatile(&raw mut (*scratch).leaps, 0);
        write_volatile(&raw mut (*scratch).unsure, 0);
        let chunks = (&raw const (*list).chunks).cast::<u32>();
        let mut at = 0;
        while at < LIST_CHUNKS {
            if at >= (*list).length as usize {
                break;
            }
            scan_chunk(index, read_volatile(chunks.add(at)));
            at += 1;
        }
        if read_volatile(&raw const (*control).watch_version) != version {
            undecided(scratch, undecided::REPLACED);
        } else if (*scratch).unsure != 0 {
            undecided(scratch, undecided::FIRST);
        } else if (*scratch).leaps != 0 {
            undecided(scratch, undecided::MORE_MOVED);
        } else if (*scratch).moved == 1 {
            (*scratch).key.attribution[0] = (*scratch).hit;
            (*scratch).key.attribution[1] =
                attribution_word(attribution_kind::COUNTED, stack::hook(scratch), version);
        } else if (*scratch).moved == 0 {
            undecided(scratch, undecided::NONE_MOVED);
        } else {
            undecided(scratch, undecided::MORE_MOVED);
        }
    }
    1
}

#[inline(always)]
unsafe fn undecided(scratch: *mut Scratch, why: u32) {
    // SAFETY: a map value.
    unsafe {
        (*scratch).key.attribution[1] =
            attribution_word(attribution_kind::UNDECIDED, stack::hook(scratch), why);
    }
}

#[inline(always)]
unsafe fn find(net: u64, netns: u32, hook: u32) -> Option<*const List> {
    let first = watch::list_place(net, hook);
    let mut probe = 0;
    while probe < LIST_PROBES {
        let list = LISTS.get_ptr(first.wrapping_add(probe) & (watch::LISTS - 1))?;
        // SAFETY: a map value.
        if unsafe { (*list).net == net && (*list).netns == netns && (*list).hook == hook } {
            return Some(list);
        }
        probe += 1;
    }
    None
}

/// Step: adds up how a chunk's counters have moved on this CPU, and remembers them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_chunk(index: u32, id: u32) -> u32 {
    const MOST: u32 = (CHUNK_RULES * COUNTER_BYTES) as u32;
    let scratch = scratch!(index);
    let control = control!();
    let cpu_id = index / Layout::LEVELS;
    let Some(cpu) = CPUS.get_ptr(cpu_id * Layout::LEVELS) else { return 0 };
    let Some(chunk) = CHUNKS.get_ptr(id) else { return 0 };
    let Some(baseline) = BASELINES.get_ptr_mut(cpu_id * layout!(chunks) + id) else { return 0 };
    // SAFETY: map values; the baselines of this CPU are written by the programs here only, and by the user half while
    // the version is 0. A program that interrupts this one scans, too: both then find what is left to find.
    unsafe {
        let counters = &raw mut (*scratch).counters;
        let size = (*chunk).bytes;
        let offset = (*cpu).per_cpu_offset;
        if size > MOST || (*cpu).has_offset == 0 || !copy(counters.cast(), size, (*chunk).address + offset) {
            (*scratch).unsure = 1;
            return 0;
        }
        let version = read_volatile(&raw const (*control).watch_version);
        if (*baseline).version != version {
            (*baseline).version = version;
            (*scratch).unsure = 1;
        }
        let (now, last) = (counters.cast::<u64>(), (&raw mut (*baseline).packets).cast::<u64>());
        let mask = (*chunk).mask as u64;
        // A counter that was set back must not make up for one that has moved on.
        let (mut moved, mut hit, mut leaps) = (0u64, 0u64, 0u64);
        let mut at = 0;
        while at < CHUNK_RULES {
            let packets = read_volatile(now.add(at * 2));
            let delta = (packets - read_volatile(last.add(at))) & 0u64.wrapping_sub(mask >> at & 1);
            write_volatile(last.add(at), packets);
            moved += delta;
            hit += delta * at as u64;
            leaps |= delta >> 1;
            at += 1;
        }
        (*scratch).moved += moved;
        (*scratch).leaps |= leaps;
        (*scratch).hit += hit + moved * (id as u64 * CHUNK_RULES as u64);
    }
    0
}

/// Bytes of the working memory for a chunk's counters.
pub type Counters = [u64; CHUNK_RULES * COUNTER_BYTES / 8];

const _: () = assert!(size_of::<Baseline>() == 136);
