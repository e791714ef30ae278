//! Reading kernel memory.

use super::{KernelLayout, Mapped, Tracer, TracerError, refused};
use crate::netfilter::{
    NetnsId,
    memory::{Block, KernelMemory},
};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use tracer_common::{ABSENT, MEMORY_BYTES, Memory, Offsets};

/// Name of the program that reads kernel memory.
pub(super) const READER: &str = "read_memory";

/// Reads kernel memory by running a program of ours that is attached to nothing (BPF_PROG_TEST_RUN).
pub struct Reader<'a> {
    pub(super) program: &'a RawTracePoint,
    pub(super) memory: &'a Mapped<Memory>,
}

impl KernelMemory for Reader<'_> {
    fn read(&mut self, address: u64, to: &mut [u8]) -> bool {
        let mut from = address;
        to.chunks_mut(MEMORY_BYTES).all(|piece| {
            let mut options = RawTracePointRunOptions::new();
            options.args[..2].copy_from_slice(&[from, piece.len() as u64]);
            // SAFETY: the map's one element, which nobody else uses.
            let is_read = unsafe { &raw mut (*self.memory.at(0)).is_read };
            // SAFETY: likewise. A run that fails leaves it.
            unsafe { is_read.write_volatile(0) };
            let ran = self.program.test_run(options).is_ok();
            // SAFETY: likewise.
            if !ran || unsafe { is_read.read_volatile() } == 0 {
                return false;
            }
            let Some(next) = from.checked_add(piece.len() as u64) else { return false };
            from = next;
            // SAFETY: it has MEMORY_BYTES bytes, and only the run that has ended writes there.
            unsafe {
                let bytes = (&raw const (*self.memory.at(0)).bytes).cast::<u8>();
                bytes.copy_to_nonoverlapping(piece.as_mut_ptr(), piece.len());
            }
            true
        })
    }
}

impl Tracer {
    /// Kernel memory, to be read.
    ///
    /// # Errors
    /// If this build is broken.
    pub fn memory(&self) -> Result<Reader<'_>, TracerError> {
        let program = self.raw_program(READER)?;
        Ok(Reader { program, memory: &self.memory })
    }

    /// One of our programs that are run, not attached.
    pub(super) fn raw_program(&self, name: &'static str) -> Result<&RawTracePoint, TracerError> {
        self.ebpf.program(name).ok_or(TracerError::Missing(name))?.try_into().map_err(refused(name))
    }

    /// All network namespaces.
    ///
    /// # Errors
    /// If this build is broken.
    pub fn network_namespaces(&self, kernel: &KernelLayout) -> Result<Vec<NetnsId>, TracerError> {
        /// More than a node has.
        const MOST: usize = 1 << 16;
        let mut memory = self.memory()?;
        let (Some(list), offsets) = (kernel.net_list, &kernel.offsets) else { return Ok(Vec::new()) };
        let mut offsets = vec![list, offsets.net_ops, offsets.net_inum, offsets.net_cookie];
        offsets.retain(|offset| *offset != ABSENT);
        let mut found = Vec::new();
        let mut net = self.own_net;
        for _ in 0..MOST {
            let mut memory = Block::of_words(&mut memory, net, &offsets);
            // The list's head is in no struct net.
            found.extend(self.netns_at(&mut memory, net, &kernel.offsets));
            match memory.pointer(net + u64::from(list)).map(|next| next.wrapping_sub(u64::from(list))) {
                Some(next) if next != self.own_net => net = next,
                _ => break,
            }
        }
        Ok(found)
    }

    fn netns_at(&self, memory: &mut impl KernelMemory, net: u64, offsets: &Offsets) -> Option<NetnsId> {
        let ops = memory.u64(net + u64::from(offsets.net_ops))?;
        let inode = memory.u32(net + u64::from(offsets.net_inum))?;
        let cookie = match offsets.net_cookie {
            ABSENT => 0,
            cookie => memory.u64(net + u64::from(cookie))?,
        };
        (ops == self.netns_ops).then_some(NetnsId { address: net, inode, cookie })
    }
}
