//! What at a tc hook dropped a packet, as it is printed.

use crate::netfilter::model::Confidence;
use serde::{Deserialize, Serialize};

/// What at a tc hook dropped a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bpf {
    /// `INGRESS` or `EGRESS`, or `NETKIT` for the programs of a netkit device.
    pub hook: String,
    /// The device's name; for netkit of the one that the packet was to come in by, whose other end has the programs.
    pub interface: Option<String>,
    /// The filter that did it; all null where it isn't known, or is among `candidates`.
    #[serde(flatten)]
    pub filter: Filter,
    /// How sure that is.
    pub confidence: Confidence,
    /// Where it is not known which: what was on the hook, in order.
    pub candidates: Vec<Filter>,
    /// Filters that are not among the candidates, for there were too many, or they could not be read.
    pub more: bool,
}

impl Bpf {
    /// What the answer for one packet says of others that are counted with it: they may have come by another device.
    #[must_use]
    pub fn of_others(&self) -> Self {
        Self { interface: None, ..self.clone() }
    }
}

/// A program or a classifier on a tc hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Filter {
    /// `tcx`, `clsact` or `netkit`.
    pub attached: Option<String>,
    /// `bpf`, `u32`, `flower` ...: the classifier of a clsact filter.
    pub classifier: Option<String>,
    /// `tc`'s preference (`pref`) of a clsact filter.
    pub priority: Option<u16>,
    /// A clsact filter's handle, as `tc` prints it.
    pub handle: Option<String>,
    /// The BPF program's name, as the kernel keeps it: 15 characters at most.
    pub program: Option<String>,
    /// Its id, as `bpftool prog` shows it.
    pub id: Option<u32>,
    /// Its tag: what it is made of, as `bpftool prog` shows it.
    pub tag: Option<String>,
    /// Where it, or the link that holds it, is pinned.
    pub pinned: Option<String>,
}
