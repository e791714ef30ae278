//! Counting slots: where every drop is counted, exactly once.
//!
//! The slots are one memory-mapped array, so that the user half reads them without a system call. Each CPU
//! writes its own part only. There are two generations; the user half turns to the other one when the flow part
//! fills up, and clears the old one when no program uses it any more.
//!
//! One CPU's part of one generation, in slots:
//!
//! ```text
//! | flow: flow_slots | coarse: coarse_slots | nested: nested_slots | overflow: LEVELS |
//! ```
//!
//! A drop is counted in its flow's slot; if there is no room, in the coarse slot of its (reason, location, netns,
//! attribution); if there is no room either, in the overflow slot, which cannot fail. A program that interrupted
//! another one on the same CPU (softirq over process context, on kernels without a recursion guard) uses the
//! nested part instead of the first two, and every level has its own overflow slot: so each slot has one writer,
//! and plain additions are exact.

use core::mem::size_of;

/// What is counted separately. In a coarse slot the flow's fields are zero and [`flow_flag::COARSE`] is set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Return address of the call that freed the packet (the tracepoint's `location`).
    pub location: u64,
    /// What dropped it: rule, hook function or program. Zero where that is not known in the kernel half.
    pub attribution: [u64; 2],
    /// Source address, network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
    pub source: [u8; 16],
    /// Destination address, as `source`.
    pub destination: [u8; 16],
    /// The kernel's drop reason: subsystem in the upper 16 bits (`enum skb_drop_reason_subsys`), number below.
    pub reason: u32,
    /// Inode number of the network namespace, 0 where it is not known.
    pub netns: u32,
    /// Source port in host byte order; ICMP: the identifier of echo messages.
    pub source_port: u16,
    /// Destination port in host byte order; ICMP: `type << 8 | code`.
    pub destination_port: u16,
    /// `skb->protocol`, host byte order (`ETH_P_*`, include/uapi/linux/if_ether.h); of a packet on a hook that has none yet,
    /// that of the raw socket which sent it.
    pub ethertype: u16,
    /// IP protocol number after any extension headers (IANA protocol numbers).
    pub transport: u8,
    /// [`flow_flag`] bits.
    pub flags: u8,
}

/// Bits of [`FlowKey::flags`].
pub mod flow_flag {
    /// The slot counts a whole (reason, location, netns, attribution), not one flow.
    pub const COARSE: u8 = 1;
    /// The network header was found and is sane: addresses are valid.
    pub const ADDRESSES: u8 = 2;
    /// The transport header was in reach: ports (or ICMP type and code) are valid.
    pub const PORTS: u8 = 4;
    /// The packet is a fragment other than the first: it has no transport header.
    pub const FRAGMENT: u8 = 8;
}

/// A counter and its key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// What is counted; valid once `state` is [`slot_state::READY`].
    pub key: FlowKey,
    /// Dropped skbs. Only grows until the generation is cleared.
    pub count: u64,
    /// Dropped segments: `gso_segs`, at least one for each skb.
    pub segments: u64,
    /// [`Control::interval`](crate::Control::interval) in which this slot last sent a full event.
    pub interval: u32,
    /// [`slot_state`].
    pub state: u32,
}

/// Values of [`Slot::state`].
pub mod slot_state {
    /// Nothing here.
    pub const EMPTY: u32 = 0;
    /// The key is complete.
    pub const READY: u32 = 1;
}

/// How the slots are laid out: a load-time constant of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Possible CPUs.
    pub cpus: u32,
    /// Flow slots of a CPU; a power of two.
    pub flow_slots: u32,
    /// Coarse slots of a CPU; a power of two.
    pub coarse_slots: u32,
    /// Coarse slots for programs that interrupted another one; a power of two.
    pub nested_slots: u32,
    /// Chunks of rules' counters.
    pub chunks: u32,
}

impl Layout {
    /// Generations of the table.
    pub const GENERATIONS: u32 = 2;
    /// Programs that may run on a CPU at the same time: process context, softirq, hardirq, NMI.
    pub const LEVELS: u32 = 4;
    /// Slots looked at before the flow part counts as full.
    pub const FLOW_PROBES: u32 = 8;
    /// Slots looked at before the coarse or the nested part counts as full.
    pub const COARSE_PROBES: u32 = 16;

    /// Slots of one CPU in one generation.
    #[inline(always)]
    #[must_use]
    pub const fn stride(&self) -> u32 {
        self.flow_slots + self.coarse_slots + self.nested_slots + Self::LEVELS
    }

    /// Slots in all.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.stride() * self.cpus * Self::GENERATIONS
    }

    /// All slots of a generation.
    #[must_use]
    pub const fn generation(&self, generation: u32) -> core::ops::Range<u32> {
        self.base(generation, 0)..self.base(generation, 0) + self.stride() * self.cpus
    }

    /// Offset of a level's overflow slot in a CPU's part.
    #[inline(always)]
    #[must_use]
    pub const fn overflow(&self, level: u32) -> u32 {
        self.flow_slots + self.coarse_slots + self.nested_slots + level
    }

    /// The first slot of a CPU's part.
    #[inline(always)]
    #[must_use]
    pub const fn base(&self, generation: u32, cpu: u32) -> u32 {
        (generation * self.cpus + cpu) * self.stride()
    }
}

const _: () = assert!(size_of::<FlowKey>() == 72);
const _: () = assert!(size_of::<Slot>() == 96);
const _: () = assert!(size_of::<Layout>() == 20);
