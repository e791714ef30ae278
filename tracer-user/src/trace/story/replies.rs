//! Which packet answers which.

use crate::event::model::{Drop, Endpoint, Inner};
use crate::trace::model::Seen;
use std::collections::HashMap;
use std::net::IpAddr;

/// What an answer is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    transport: String,
    source: (IpAddr, Option<u16>),
    destination: (IpAddr, Option<u16>),
    /// Identifier and sequence number of an echo message.
    echo: Option<(u16, u16)>,
    /// It is carried, or quoted, by another packet: the identifier is not known then.
    inner: bool,
}

/// The packets that an answer is waited for.
#[derive(Debug, Default)]
pub(super) struct Replies {
    waiting: HashMap<Key, Vec<u64>>,
}

impl Key {
    /// Of a packet as it is on the wire. `None` if its ends are not known.
    pub(super) fn of(view: &Drop) -> Option<Self> {
        let echo = view.packet.icmp_id.zip(view.packet.icmp_sequence);
        Self::between(&view.source, &view.destination, view.network.transport.as_deref(), echo)
    }

    /// Of a packet in a packet.
    fn of_inner(inner: &Inner) -> Option<Self> {
        let key = Self::between(&inner.source, &inner.destination, inner.transport.as_deref(), None)?;
        Some(Self { inner: true, ..key })
    }

    /// The same, as it is known by where another packet carries it.
    fn as_inner(&self) -> Self {
        Self { echo: None, inner: true, ..self.clone() }
    }

    fn between(
        source: &Endpoint,
        destination: &Endpoint,
        transport: Option<&str>,
        echo: Option<(u16, u16)>,
    ) -> Option<Self> {
        Some(Self {
            transport: transport?.to_owned(),
            source: (source.address?, source.port),
            destination: (destination.address?, destination.port),
            echo,
            inner: false,
        })
    }

    fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }
}

impl Replies {
    /// An answer to a packet with these ends is waited for.
    pub(super) fn wait(&mut self, key: &Key, packet: u64) {
        for key in [key.clone(), key.as_inner()] {
            let packets = self.waiting.entry(key).or_default();
            if !packets.contains(&packet) {
                packets.push(packet);
            }
        }
    }

    /// It is not any more.
    pub(super) fn forget(&mut self, key: &Key, packet: u64) {
        for key in [key.clone(), key.as_inner()] {
            if let Some(packets) = self.waiting.get_mut(&key) {
                packets.retain(|&other| other != packet);
                if packets.is_empty() {
                    self.waiting.remove(&key);
                }
            }
        }
    }

    /// The packets that this one answers: it, or what it carries, goes the other way; or it is an ICMP error about them.
    pub(super) fn answered_by(&self, seen: &Seen) -> Vec<u64> {
        let inner = seen.view.inner.as_ref();
        let inner_key = inner.and_then(Key::of_inner).map(|key| {
            if inner.is_some_and(|inner| inner.kind == "icmp-error") { key } else { key.reversed() }
        });
        let keys = [Key::of(&seen.view).map(Key::reversed), inner_key];
        let packets = keys.iter().flatten().filter_map(|key| self.waiting.get(key)).flatten();
        packets.copied().filter(|&packet| packet != seen.packet).collect()
    }
}
