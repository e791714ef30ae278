//! BPF arrays as memory: what the programs write is read without a system call, which in turn would make some
//! kinds of programs miss events.

use aya::{Pod, maps::MapData};
use std::{io, marker::PhantomData, os::fd::AsFd as _, os::fd::AsRawFd as _, ptr::NonNull};

/// A memory-mapped BPF array of `T`. The kernel writes it while we read: every access is a volatile copy of one
/// field or word, never a reference.
pub struct Mapped<T: Pod> {
    memory: NonNull<T>,
    length: u32,
    bytes: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// Maps the `length` elements of an array that was made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// Whatever mmap says.
    pub fn new(map: &MapData, length: u32) -> io::Result<Self> {
        // Elements are rounded up to 8 bytes (kernel/bpf/arraymap.c); ours are multiples of 8.
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let page = page_size();
        let bytes = (size_of::<T>() * length as usize).next_multiple_of(page);
        // SAFETY: a fresh mapping of a map's memory; the kernel checks its size against the map's.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self { memory, length, bytes, element: PhantomData })
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.length
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Address of an element, for volatile access to its fields.
    ///
    /// # Panics
    /// If there is no such element: an error of ours.
    #[must_use]
    pub fn at(&self, index: u32) -> *mut T {
        assert!(index < self.length, "element {index} of {}", self.length);
        // SAFETY: within the mapping.
        unsafe { self.memory.as_ptr().add(index as usize) }
    }

    /// A copy of an element.
    #[must_use]
    pub fn read(&self, index: u32) -> T {
        // SAFETY: within the mapping; any bytes are a valid `T` (Pod).
        unsafe { self.at(index).read_volatile() }
    }

    /// Clears elements.
    pub fn clear(&self, indices: std::ops::Range<u32>) {
        if indices.is_empty() {
            return;
        }
        let first = self.at(indices.start);
        assert!(indices.end <= self.length, "elements {indices:?} of {}", self.length);
        // SAFETY: within the mapping, and zero is a valid `T` (Pod).
        unsafe { first.write_bytes(0, indices.len()) };
    }
}

impl<T: Pod> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing points into it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

fn page_size() -> usize {
    // SAFETY: no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
