//! What the user asked to see, as the programs evaluate it.
//!
//! The user half sorts the words of the command line into *dimensions* (address, port, ...). For each dimension a
//! map tells, for a value, which of the user's words it satisfies, as [`filter_bit`] bits. Words of one kind are
//! joined by OR, words of different kinds by AND; `--not` makes a word that must not be satisfied.

use core::mem::size_of;

/// Which dimensions the filter has, and which kinds of words must be satisfied in each: a load-time constant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterSpec {
    /// [`dimension`] bits that have any word at all.
    pub active: u32,
    /// For each dimension, in the order of its bits: the `filter_bit` bits that must all be satisfied.
    pub required: [u32; dimension::COUNT],
}

/// Bits of [`FilterSpec::active`], and (as bit numbers) indices of [`FilterSpec::required`].
pub mod dimension {
    /// Addresses: of the packet, of both conntrack tuples, of a tunnel's inner packet.
    pub const ADDRESS: u32 = 1;
    /// Ports, likewise.
    pub const PORT: u32 = 2;
    /// IP protocol number, or ethertype with bit 16 set.
    pub const PROTOCOL: u32 = 4;
    /// Name of `skb->dev` or of the hook's devices.
    pub const INTERFACE: u32 = 8;
    /// Network namespace.
    pub const NETNS: u32 = 16;
    /// Drop reason.
    pub const REASON: u32 = 32;
    /// Pods and services: [`EndKey`](super::EndKey)s of the same tuples, and network namespaces of pods.
    pub const END: u32 = 64;
    /// How many.
    pub const COUNT: usize = 7;
    /// Added to an ethertype that stands in the protocol dimension.
    pub const ETHERTYPE: u32 = 1 << 16;
}

/// What a value satisfies. The first three are wanted, the others unwanted.
pub mod filter_bit {
    /// A word about either end.
    pub const EITHER: u32 = 1;
    /// A `from-` word.
    pub const FROM: u32 = 2;
    /// A `to-` word.
    pub const TO: u32 = 4;
    /// A `--not` word about either end.
    pub const NOT_EITHER: u32 = 8;
    /// A `--not --from-` word.
    pub const NOT_FROM: u32 = 16;
    /// A `--not --to-` word.
    pub const NOT_TO: u32 = 32;
    /// In the dimension of ends the bits above are about pods, and those above moved up by this about services.
    pub const SERVICE: u32 = 6;
}

/// Key of the address map (struct bpf_lpm_trie_key: prefix length, then the data, most significant byte first).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixKey {
    /// Bits that count; an IPv4 prefix has 96 more.
    pub length: u32,
    /// The address, IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
}

/// Key of the map of ends: an address, alone or with a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndKey {
    /// The address, IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// Port, host byte order; 0 stands for all of the address.
    pub port: u16,
    /// IP protocol number of the port; 0 without a port.
    pub protocol: u16,
}

const _: () = assert!(size_of::<EndKey>() == 20);
const _: () = assert!(size_of::<FilterSpec>() == 4 + 4 * dimension::COUNT);
const _: () = assert!(size_of::<PrefixKey>() == 20);
