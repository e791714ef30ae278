//! Reading kernel memory: what the rule sets are read through.

/// Kernel memory, as it is at the moment of each read. What can't be read is `None`, never an error: objects come and
/// go while they are looked at.
pub trait KernelMemory {
    /// Fills `to` with the bytes at `address`; false if they can't be read.
    fn read(&mut self, address: u64, to: &mut [u8]) -> bool;

    /// The bytes at `address`.
    fn bytes<const N: usize>(&mut self, address: u64) -> Option<[u8; N]>
    where
        Self: Sized,
    {
        let mut bytes = [0; N];
        self.read(address, &mut bytes).then_some(bytes)
    }

    /// A word of 64 bits.
    fn u64(&mut self, address: u64) -> Option<u64>
    where
        Self: Sized,
    {
        self.bytes(address).map(u64::from_ne_bytes)
    }

    /// A word of 32 bits.
    fn u32(&mut self, address: u64) -> Option<u32>
    where
        Self: Sized,
    {
        self.bytes(address).map(u32::from_ne_bytes)
    }

    /// A pointer into the kernel; `None` for anything that can't be one.
    fn pointer(&mut self, address: u64) -> Option<u64>
    where
        Self: Sized,
    {
        self.u64(address).filter(|word| is_kernel_address(*word))
    }

    /// A NUL-terminated string of at most `most` bytes, escaped where it is no UTF-8.
    fn string(&mut self, address: u64, most: usize) -> Option<String>
    where
        Self: Sized,
    {
        // In pieces that don't cross a page: what lies behind the string may not be there.
        const PIECE: u64 = 64;
        let mut text = Vec::new();
        let mut at = address;
        while text.len() < most {
            let piece = usize::try_from(PIECE - at % PIECE).ok()?;
            let mut bytes = [0; PIECE as usize];
            let bytes = bytes.get_mut(..piece)?;
            if !self.read(at, bytes) {
                return None;
            }
            if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
                text.extend_from_slice(bytes.get(..end)?);
                break;
            }
            text.extend_from_slice(bytes);
            at = at.checked_add(piece as u64)?;
        }
        text.truncate(most);
        Some(text.utf8_chunks().fold(String::new(), |mut shown, chunk| {
            shown.push_str(chunk.valid());
            shown.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
            shown
        }))
    }

    /// The entries of a `struct list_head` list (include/linux/types.h): addresses of the list_heads in them, the
    /// list's own left out. At most `most`; a list that changes while it is walked may end early.
    fn list(&mut self, head: u64, most: usize) -> Vec<u64>
    where
        Self: Sized,
    {
        let mut entries = Vec::new();
        let mut at = head;
        while entries.len() < most {
            match self.pointer(at) {
                Some(next) if next != head => {
                    entries.push(next);
                    at = next;
                }
                _ => break,
            }
        }
        entries
    }
}

/// True if a word may be a pointer into the kernel (x86_64 and arm64: the upper half of the address space).
#[must_use]
pub fn is_kernel_address(word: u64) -> bool {
    (0xffff_0000_0000_0000..u64::MAX - 4096).contains(&word)
}

/// Kernel memory of which one range was read at once: each read is a system call, and costs more than its bytes.
pub struct Block<'m, M> {
    memory: &'m mut M,
    start: u64,
    /// Empty if the range can't be read.
    bytes: Vec<u8>,
}

impl<'m, M: KernelMemory> Block<'m, M> {
    /// Reads the range that has all of some words in it, each of at most 8 bytes: their offsets from `base`.
    pub fn of_words(memory: &'m mut M, base: u64, offsets: &[u32]) -> Self {
        let first = offsets.iter().copied().min().unwrap_or(0);
        let last = offsets.iter().copied().max().unwrap_or(0);
        let start = base + u64::from(first);
        let mut bytes = vec![0; (last - first) as usize + 8];
        if !memory.read(start, &mut bytes) {
            bytes.clear();
        }
        Self { memory, start, bytes }
    }
}

impl<M: KernelMemory> KernelMemory for Block<'_, M> {
    fn read(&mut self, address: u64, to: &mut [u8]) -> bool {
        let from = address.checked_sub(self.start).and_then(|from| usize::try_from(from).ok());
        let known = from.and_then(|from| self.bytes.get(from..from.checked_add(to.len())?));
        match known {
            Some(known) => {
                to.copy_from_slice(known);
                true
            }
            None => self.memory.read(address, to),
        }
    }
}

/// Memory made up for tests.
#[cfg(test)]
pub(crate) mod fake {
    use super::KernelMemory;
    use std::collections::BTreeMap;

    /// Bytes at addresses.
    #[derive(Default)]
    pub(crate) struct Fake(pub(crate) BTreeMap<u64, u8>);

    impl Fake {
        pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
            self.0.extend((address..).zip(bytes.iter().copied()));
        }

        pub(crate) fn put_u64(&mut self, address: u64, word: u64) {
            self.put(address, &word.to_ne_bytes());
        }
    }

    impl KernelMemory for Fake {
        fn read(&mut self, address: u64, to: &mut [u8]) -> bool {
            (address..).zip(to).all(|(at, byte)| self.0.get(&at).map(|found| *byte = *found).is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, KernelMemory as _, fake::Fake};

    const BASE: u64 = 0xffff_8880_0000_0000;

    #[test]
    fn strings_end_and_are_bounded() {
        let mut memory = Fake::default();
        memory.put(BASE + 60, b"cali-tw\xff-x\0");
        memory.put(BASE + 71, &[b'a'; 200]);
        assert_eq!(memory.string(BASE + 60, 256).as_deref(), Some("cali-tw\\xff-x"));
        assert_eq!(memory.string(BASE + 71, 10).as_deref(), Some("aaaaaaaaaa"));
        assert_eq!(memory.string(BASE + 71, 256), None);
    }

    #[test]
    fn a_block_is_as_it_was_and_the_rest_is_as_it_is() {
        let mut memory = Fake::default();
        memory.put(BASE, &[7; 64]);
        let mut block = Block::of_words(&mut memory, BASE, &[32, 16]);
        block.memory.put(BASE, &[9; 64]);
        let read = |block: &mut Block<'_, Fake>, at| block.bytes(BASE + at);
        assert_eq!(
            [16, 32, 15, 33, 56].map(|at| read(&mut block, at)),
            [7, 7, 9, 9, 9].map(|it| Some([it; 8]))
        );
        assert_eq!(read(&mut block, 60), None);
        let mut nothing = Block::of_words(&mut memory, BASE + 4096, &[0]);
        assert_eq!(nothing.u64(BASE + 4096), None);
    }

    #[test]
    fn a_list_is_walked_to_its_head() {
        let mut memory = Fake::default();
        for (from, to) in [(0, 16), (16, 48), (48, 0), (100, 0)] {
            memory.put_u64(BASE + from, BASE + to);
        }
        assert_eq!(memory.list(BASE, 9), [BASE + 16, BASE + 48]);
        assert_eq!(memory.list(BASE, 1), [BASE + 16]);
        // Not a list that comes back to its head.
        assert_eq!(memory.list(BASE + 100, 3).len(), 3);
        assert!(memory.list(BASE + 7, 3).is_empty());
    }
}
