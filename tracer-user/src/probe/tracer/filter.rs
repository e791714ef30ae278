//! The filter's maps. Words that mean a value are filled in once, before the program runs; pods and services come and go
//! while it does.

use super::{Tracer, TracerError, map};
use crate::filter::Compiled;
use crate::identity::select::Selected;
use aya::{
    Ebpf, Pod,
    maps::{HashMap, LpmTrie, MapError, lpm_trie},
};
use std::collections::BTreeMap;
use tracer_common::EndKey;

/// Ends of pods and services that find room: both families of 10,000 pods, and ports of as many services.
pub(super) const ENDS: u32 = 1 << 16;
/// Network namespaces likewise: a node has no more pods.
pub(super) const NETNS: u32 = 1 << 12;

/// What the kernel half has of pods and services.
#[derive(Debug, Default)]
pub(super) struct Ends {
    ends: BTreeMap<EndKey, u32>,
    netns: BTreeMap<u32, u32>,
}

pub(super) fn fill(ebpf: &mut Ebpf, filter: &Compiled) -> Result<(), TracerError> {
    let name = "FILTER_ADDRESS";
    let mut addresses: LpmTrie<_, [u8; 16], u32> = map(ebpf, name)?;
    for (prefix, bits) in &filter.addresses {
        addresses
            .insert(&lpm_trie::Key::new(prefix.length, prefix.address), bits, 0)
            .map_err(|error| TracerError::Map { name, error })?;
    }
    put(ebpf, "FILTER_PORT", filter.ports.iter().map(|(port, bits)| (u32::from(*port), *bits)))?;
    put(ebpf, "FILTER_PROTOCOL", filter.protocols.iter().copied())?;
    put(ebpf, "FILTER_INTERFACE", filter.interfaces.iter().copied())?;
    put(ebpf, "FILTER_NETNS", filter.netns.iter().copied())?;
    put(ebpf, "FILTER_REASON", filter.reasons.iter().copied())
}

fn put<K: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    words: impl Iterator<Item = (K, u32)>,
) -> Result<(), TracerError> {
    let mut to: HashMap<_, K, u32> = map(ebpf, name)?;
    for (value, bits) in words {
        to.insert(value, bits, 0).map_err(|error| TracerError::Map { name, error })?;
    }
    Ok(())
}

impl Tracer {
    /// Lets the kernel half follow other pods and services from now on. The number of those that found no room.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn select(&mut self, selected: &Selected) -> Result<usize, TracerError> {
        let ends = change(&mut self.ebpf, "FILTER_END", &mut self.ends.ends, &selected.ends, ENDS)?;
        let netns = change(&mut self.ebpf, "FILTER_END_NETNS", &mut self.ends.netns, &selected.netns, NETNS)?;
        Ok(ends + netns)
    }
}

/// Turns what a map has into what it is to have: what goes goes first, for the room.
fn change<K: Pod + Ord>(
    ebpf: &mut Ebpf,
    name: &'static str,
    has: &mut BTreeMap<K, u32>,
    wanted: &BTreeMap<K, u32>,
    room: u32,
) -> Result<usize, TracerError> {
    let mut to: HashMap<_, K, u32> = map(ebpf, name)?;
    let fail = |error| TracerError::Map { name, error };
    let old: Vec<K> = has.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
    for key in old {
        match to.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(fail(error)),
        }
        has.remove(&key);
    }
    let mut without = 0;
    for (key, bits) in wanted {
        if has.get(key) == Some(bits) {
            continue;
        }
        if has.len() >= usize::try_from(room).unwrap_or(usize::MAX) && !has.contains_key(key) {
            without += 1;
            continue;
        }
        to.insert(key, bits, 0).map_err(fail)?;
        has.insert(*key, *bits);
    }
    Ok(without)
}
