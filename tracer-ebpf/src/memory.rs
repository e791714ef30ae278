//! Reading kernel memory. A bad address is not an error of ours: the helper says no, and the reader goes on.

use crate::maps::{MEMORY, PER_CPU};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use core::{
    mem::{MaybeUninit, size_of},
    ptr::write_volatile,
};
use tracer_common::MEMORY_BYTES;

/// The lowest address that can be a kernel pointer (x86_64 and arm64: the upper half of the address space).
const KERNEL_START: u64 = 0xffff_0000_0000_0000;

/// True if a word may be a pointer into the kernel.
#[inline(always)]
pub fn is_kernel_address(word: u64) -> bool {
    word >= KERNEL_START && word < u64::MAX - 4096
}

/// Copies `size` bytes from kernel address `from`; false if they can't be read.
///
/// # Safety
/// `to` must have room for `size` bytes.
#[inline(always)]
pub unsafe fn copy(to: *mut u8, size: u32, from: u64) -> bool {
    // SAFETY: the helper checks `from` itself; the caller vouches for `to`, and so does the verifier.
    unsafe { bpf_probe_read_kernel(to.cast(), size, from as *const _) == 0 }
}

/// Copies kernel memory into the map `MEMORY`.
#[inline(always)]
pub fn copy_out(from: u64, size: u64) {
    let Some(to) = MEMORY.get_ptr_mut(0) else { return };
    if size == 0 || size > MEMORY_BYTES as u64 {
        return;
    }
    // SAFETY: the map's value has that much room.
    unsafe {
        let is_read = copy((&raw mut (*to).bytes).cast(), size as u32, from);
        (*to).is_read = is_read as u64;
    }
}

/// Writes down where `PER_CPU` has this CPU's value, and where the map itself is (struct bpf_array).
#[inline(always)]
pub fn own_per_cpu() {
    let (Some(value), Some(to)) = (PER_CPU.get_ptr_mut(0), MEMORY.get_ptr_mut(0)) else { return };
    // SAFETY: the map's value has that much room. Volatile, because these are pointers to the verifier, and no longer
    // when they are read back.
    unsafe {
        let words = (&raw mut (*to).bytes).cast::<u64>();
        write_volatile(words, value as u64);
        write_volatile(words.add(1), (&raw const PER_CPU) as u64);
        (*to).is_read = 1;
    }
}

/// Reads a `T` (plain data) from kernel address `from`.
#[inline(always)]
pub fn read<T: Copy>(from: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` has room for a `T`, and is complete where the copy succeeded.
    unsafe {
        if copy(value.as_mut_ptr().cast(), size_of::<T>() as u32, from) {
            Some(value.assume_init())
        } else {
            None
        }
    }
}
