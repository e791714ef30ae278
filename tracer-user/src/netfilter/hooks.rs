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
    /// net.nf.hooks_arp and hooks_bridge, likewise, each with its number of hooks; not every kernel has them.
    pub(super) others: [Option<(u32, u8)>; 2],
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
        let other = |path| {
            let field = vmlinux.field("net", path)?;
            Some((field.offset, u8::try_from(field.size / 8).ok()?))
        };
        Some(Self {
            arrays: [vmlinux.offset_of("net", "nf.hooks_ipv4")?, vmlinux.offset_of("net", "nf.hooks_ipv6")?],
            others: [other("nf.hooks_arp"), other("nf.hooks_bridge")],
            entries_count: vmlinux.offset_of("nf_hook_entries", "num_hook_entries")?,
            entries_hooks: vmlinux.offset_of("nf_hook_entries", "hooks")?,
        })
    }

    /// The hook arrays of IPv4 and IPv6 of the netns at `net`, read at once.
    pub fn block<'m, M: KernelMemory>(&self, memory: &'m mut M, net: u64) -> Block<'m, M> {
        let ends = self.arrays.map(|array| [array, array + 8 * u32::from(HOOKS - 1)]);
        Block::of_words(memory, net, ends.as_flattened())
    }

    /// Address of the functions on a hook of the netns at `net` (struct nf_hook_entries). `None` without any, and for
    /// families whose hooks are not the netns', but a device's.
    pub fn entries(&self, memory: &mut impl KernelMemory, net: u64, family: Family, hook: u8) -> Option<u64> {
        let array = match family {
            Family::Ipv4 => Some((self.arrays[0], HOOKS)),
            Family::Ipv6 => Some((self.arrays[1], HOOKS)),
            Family::Arp => self.others[0],
            Family::Bridge => self.others[1],
            Family::Inet | Family::Netdev => None,
        };
        let (array, _) = array.filter(|(_, hooks)| hook < *hooks)?;
        memory.pointer(net + u64::from(array) + 8 * u64::from(hook))
    }

    /// Those functions, in order.
    pub fn hooked(&self, memory: &mut impl KernelMemory, net: u64, family: Family, hook: u8) -> Vec<Hooked> {
        self.entries(memory, net, family, hook).map_or_else(Vec::new, |entries| self.listed(memory, entries))
    }

    /// The functions of a struct nf_hook_entries.
    pub fn listed(&self, memory: &mut impl KernelMemory, entries: u64) -> Vec<Hooked> {
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

#[cfg(test)]
mod tests {
    use super::super::memory::fake::Fake;
    use super::*;
    use crate::probe::btf::synthetic::Builder;

    const BASE: u64 = 0xffff_8880_0000_0000;

    /// One function on a hook whose pointer is at `place`.
    fn hook(memory: &mut Fake, place: u64, function: u64) {
        let entries = BASE + 0x1000 + 64 * place;
        memory.put_u64(BASE + place, entries);
        memory.put(entries, &1_u16.to_ne_bytes());
        memory.put_u64(entries + 8, function);
        memory.put_u64(entries + 16, place);
    }

    fn layout(others: [Option<(u32, u8)>; 2]) -> HookLayout {
        HookLayout { arrays: [0, 40], others, entries_count: 0, entries_hooks: 8 }
    }

    #[test]
    fn each_family_has_its_own_hooks() {
        let mut memory = Fake::default();
        for (place, function) in [(16, 4), (40, 5), (56, 6), (88, 3), (104, 8), (120, 7)] {
            hook(&mut memory, place, function);
        }
        let layout = layout([Some((80, 3)), Some((104, 5))]);
        let mut on = |family, number| {
            layout.hooked(&mut memory, BASE, family, number).first().map(|hooked| hooked.function)
        };
        assert_eq!(on(Family::Ipv4, 2), Some(4));
        assert_eq!(on(Family::Ipv6, 2), Some(6));
        assert_eq!(on(Family::Arp, 1), Some(3));
        assert_eq!(on(Family::Bridge, 2), Some(7));
        // Beyond its last hook the next array begins.
        assert_eq!(on(Family::Bridge, 0), Some(8));
        assert_eq!(on(Family::Arp, 3), None);
        assert_eq!(on(Family::Ipv4, 5), None);
        assert_eq!([on(Family::Inet, 2), on(Family::Netdev, 0)], [None; 2]);
    }

    #[test]
    fn the_kernel_says_which_families_have_hooks() {
        let told = |has_bridge: bool| {
            let mut types = Builder::new();
            let list = types.int("nf_hook_entries *", 8);
            let (five, three) = (types.array(list, 5), types.array(list, 3));
            let mut members =
                vec![("hooks_ipv4", five, 0), ("hooks_ipv6", five, 320), ("hooks_arp", three, 640)];
            if has_bridge {
                members.push(("hooks_bridge", five, 832));
            }
            let netns = types.structure("netns_nf", 144, &members);
            types.structure("net", 208, &[("nf", netns, 512)]);
            let count = types.int("u16", 2);
            types.structure("nf_hook_entries", 8, &[("num_hook_entries", count, 0), ("hooks", list, 64)]);
            HookLayout::resolve(&types.build()).map(|layout| layout.others)
        };
        assert_eq!(told(true), Some([Some((144, 3)), Some((168, 5))]));
        assert_eq!(told(false), Some([Some((144, 3)), None]));
    }

    #[test]
    fn a_family_that_the_kernel_has_not_has_no_hooks() {
        let mut memory = Fake::default();
        hook(&mut memory, 0, 4);
        assert_eq!(layout([None; 2]).hooked(&mut memory, BASE, Family::Bridge, 0), []);
        assert_eq!(layout([None; 2]).hooked(&mut memory, BASE, Family::Ipv4, 0).len(), 1);
    }
}
