//! The functions on netfilter's hooks, as the kernel itself keeps them.

use super::memory::{Block, KernelMemory};
use super::model::Family;
use crate::probe::btf::Btf;

/// Functions on one hook (MAX_HOOK_COUNT, net/netfilter/core.c).
const MAX_HOOKED: u16 = 1024;
/// Hooks of IPv4 and IPv6 (NF_INET_NUMHOOKS, include/uapi/linux/netfilter.h, without ingress).
const HOOKS: u8 = 5;

/// Where the running kernel keeps them: offsets in bytes, from its BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookLayout {
    /// net.nf.hooks_ipv4 and hooks_ipv6: arrays of pointers to struct nf_hook_entries.
    pub(super) arrays: [u32; 2],
    pub(super) entries_count: u32,
    pub(super) entries_hooks: u32,
}

/// A function on a hook (struct nf_hook_entry, include/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hooked {
    /// Its address.
    pub function: u64,
    /// What it is given: for a legacy table, the struct xt_table.
    pub private: u64,
}

impl HookLayout {
    /// `None` if the kernel doesn't describe them.
    #[must_use]
    pub fn resolve(vmlinux: &Btf) -> Option<Self> {
        Some(Self {
            arrays: [vmlinux.offset_of("net", "nf.hooks_ipv4")?, vmlinux.offset_of("net", "nf.hooks_ipv6")?],
            entries_count: vmlinux.offset_of("nf_hook_entries", "num_hook_entries")?,
            entries_hooks: vmlinux.offset_of("nf_hook_entries", "hooks")?,
        })
    }

    /// The hook arrays of the netns at `net`, read at once.
    pub fn block<'m, M: KernelMemory>(&self, memory: &'m mut M, net: u64) -> Block<'m, M> {
        let ends = self.arrays.map(|array| [array, array + 8 * u32::from(HOOKS - 1)]);
        Block::of_words(memory, net, ends.as_flattened())
    }

    /// The functions on a hook of the netns at `net`, in order. Empty for other families than IPv4 and IPv6.
    pub fn hooked(&self, memory: &mut impl KernelMemory, net: u64, family: Family, hook: u8) -> Vec<Hooked> {
        let array = match family {
            Family::Ipv4 => self.arrays[0],
            Family::Ipv6 => self.arrays[1],
            _ => return Vec::new(),
        };
        if hook >= HOOKS {
            return Vec::new();
        }
        let Some(entries) = memory.pointer(net + u64::from(array) + 8 * u64::from(hook)) else {
            return Vec::new();
        };
        let count = memory.bytes(entries + u64::from(self.entries_count)).map_or(0, u16::from_ne_bytes);
        let mut bytes = vec![0; 16 * usize::from(count.min(MAX_HOOKED))];
        if bytes.is_empty() || !memory.read(entries + u64::from(self.entries_hooks), &mut bytes) {
            return Vec::new();
        }
        let (words, _) = bytes.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        let entry = |[function, private]: &[[u8; 8]; 2]| Hooked {
            function: u64::from_ne_bytes(*function),
            private: u64::from_ne_bytes(*private),
        };
        pairs.iter().map(entry).collect()
    }
}
