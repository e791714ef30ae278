//! The Cilium of this node, asked about a drop at a tc hook.

use super::block::{self, Place};
use super::cache::Cached;
use super::completeness::{Tally, Unseen};
use super::explain::{Packet, explain, without_block};
use super::known::{Asked, Known};
use super::maps::{Maps as _, Metrics, Unread};
use super::model::Cilium;
use super::pins::{Pins, ROOTS};
use super::programs::is_ciliums;
use crate::event::decode::Raw;
use crate::event::model::Drop;
use crate::identity::inventory::Inventory;
use crate::identity::sources::proc;
use crate::netfilter::model::Confidence;
use crate::tc::model::Bpf;
use std::time::{Duration, Instant};

/// Least time between two looks for Cilium's maps where there were none: it may start later.
const LOOKS: Duration = Duration::from_secs(10);
/// IPPROTO_ICMP and IPPROTO_ICMPV6 (IANA protocol numbers): instead of ports they have a type.
const ICMP: [u8; 2] = [1, 58];

/// What is known of it.
pub struct Node {
    /// Offset of qdisc_skb_cb.data (include/net/sch_generic.h) in the control block; `None` if the kernel doesn't describe
    /// it.
    data: Option<usize>,
    maps: Option<(Instant, Result<Cached<Pins>, Unread>)>,
    /// Inode number of the netns of the host's first process, which Cilium's agent shares.
    netns: Option<u32>,
    /// What was seen of its drops, if that is measured.
    tally: Option<Tally>,
    /// What it had counted when that was last read.
    counted: Option<Metrics>,
}

impl Node {
    /// Nothing is read before it is asked for.
    #[must_use]
    pub fn new(data: Option<u32>) -> Self {
        Self {
            data: data.and_then(|data| usize::try_from(data).ok()),
            maps: None,
            netns: proc::host_netns(),
            tally: None,
            counted: None,
        }
    }

    /// Begins to measure whether all of Cilium's drops are seen, if it counts any here. To be called when drops are seen
    /// already.
    pub fn begin_measuring(&mut self) {
        self.tally = self.metrics().map(Tally::new);
    }

    /// Takes drops at a tc hook for the measure: what Cilium said of them.
    pub fn note(&mut self, said: Option<&Cilium>, count: u64) {
        if let Some(tally) = &mut self.tally {
            tally.add(said, count);
        }
    }

    /// Reads for the last time what Cilium has counted. To be called while drops are still seen.
    pub fn end_measuring(&mut self) {
        if self.tally.is_some() {
            self.counted = self.metrics();
        }
    }

    /// What was not seen between begin and end; `None` if it was not measured.
    #[must_use]
    pub fn unseen(&self) -> Option<Unseen> {
        Some(self.tally.as_ref()?.unseen(self.counted.as_ref()?))
    }

    fn metrics(&mut self) -> Option<Metrics> {
        self.maps().as_ref().ok()?.maps().metrics().ok()
    }

    /// What Cilium says of a drop at a tc hook, and what to name it by once more; `None` if it was not Cilium's. `bpf` is what
    /// was on the hook; the inventory knows pods, identities and policies.
    pub fn explain(
        &mut self,
        raw: &Raw,
        event: &Drop,
        bpf: &Bpf,
        inventory: &Inventory,
    ) -> Option<(Cilium, Option<Asked>)> {
        let mut names =
            bpf.candidates.iter().chain([&bpf.filter]).filter_map(|filter| filter.program.as_deref());
        let program = names.find(|name| is_ciliums(name))?;
        let place = Place { is_of_a_program: true, has_ciliums: true };
        let Some(said) = self.words(raw).and_then(|words| block::recognise(words, place)) else {
            // Others may be on the hook, and on older kernels the same function frees packets for other reasons, too.
            return (bpf.confidence == Confidence::Exact).then(|| (without_block(program), None));
        };
        let packet = self.packet(raw, event);
        let known = Known::of(inventory, event.time, &said, &packet);
        let maps = self.maps();
        let mut answer = explain(&said, &packet, Some(program), maps, &known);
        let asked = Asked { block: said, packet, unread: answer.unread.len() };
        // What it could not read was said.
        let endpoints = maps.endpoints().unwrap_or_default();
        known.add_policies(&mut answer, &endpoints);
        Some((answer, Some(asked)))
    }

    /// Puts names and policies into an answer as they are known by now.
    pub fn name(&mut self, answer: &mut Cilium, asked: &Asked, inventory: &Inventory) {
        let endpoints = self.maps().endpoints().unwrap_or_default();
        asked.name(answer, inventory, &endpoints);
    }

    fn words(&self, raw: &Raw) -> Option<[u32; 5]> {
        let start = self.data?;
        let bytes = raw.control_block.get(start..start + 20)?;
        Some(block::words(bytes.try_into().ok()?))
    }

    fn packet(&self, raw: &Raw, event: &Drop) -> Packet {
        let protocol = raw.key.transport;
        let has_ports = !ICMP.contains(&protocol);
        let is_its = |netns: u32| Some(netns) == self.netns;
        let device = raw.device.filter(|device| is_its(device.netns));
        Packet {
            source: event.source.address,
            destination: event.destination.address,
            protocol: Some(protocol).filter(|_| event.network.transport.is_some()),
            port: event.destination.port.filter(|_| has_ports),
            icmp_type: event.packet.icmp_type,
            interface: device.map(|device| device.ifindex),
            time: event.time,
        }
    }

    fn maps(&mut self) -> &mut Result<Cached<Pins>, Unread> {
        let is_stale = |(looked, maps): &(Instant, Result<_, _>)| maps.is_err() && looked.elapsed() >= LOOKS;
        if self.maps.as_ref().is_some_and(is_stale) {
            self.maps = None;
        }
        &mut self.maps.get_or_insert_with(|| (Instant::now(), Pins::find(&ROOTS).map(Cached::new))).1
    }
}
