//! The columns of a recording: the fields of the JSON contract, `_` for `.`, and what is no scalar as JSON text. Adding a
//! field to the event asks for a column here; a column that is here stays, so that all recordings of a folder can be read
//! together.

use arrow_schema::{DataType, Field, Schema, TimeUnit};
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// 32 bits, signed: few engines have unsigned integers.
    Short,
    /// 64 bits, signed.
    Long,
    Bool,
    /// Microseconds since 1970 in UTC: several engines can't group by nanoseconds.
    Time,
    /// A list or an object, as JSON text.
    Json,
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// Its place in the event, names joined by `.`.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
}

use Kind::{Bool, Json, Long, Short, Text, Time};

/// An end's names in Kubernetes.
macro_rules! end {
    ($at:literal) => {
        [
            (concat!($at, ".address"), Text),
            (concat!($at, ".port"), Short),
            (concat!($at, ".k8s.namespace"), Text),
            (concat!($at, ".k8s.pod"), Text),
            (concat!($at, ".k8s.workload"), Text),
            (concat!($at, ".k8s.service"), Text),
            (concat!($at, ".k8s.service_by"), Text),
            (concat!($at, ".k8s.services"), Json),
            (concat!($at, ".k8s.node"), Text),
            (concat!($at, ".k8s.container"), Text),
            (concat!($at, ".k8s.unit"), Text),
        ]
    };
}

const HEAD: [(&str, Kind); 8] = [
    ("type", Text),
    ("time", Time),
    ("time_last", Time),
    ("node", Text),
    ("count", Long),
    ("segments", Long),
    ("detail", Bool),
    // Of `lost` records.
    ("where", Text),
];

const REST: [(&str, Kind); 92] = [
    ("network.family", Text),
    ("network.transport", Text),
    ("network.interface", Text),
    ("network.interface_in", Text),
    ("network.interface_out", Text),
    ("network.netns", Long),
    ("network.netns_by", Text),
    ("packet.length", Long),
    ("packet.mark", Long),
    ("packet.ttl", Short),
    ("packet.ip_id", Long),
    ("packet.tcp_flags", Text),
    ("packet.icmp_type", Short),
    ("packet.icmp_code", Short),
    ("packet.icmp_id", Short),
    ("packet.icmp_sequence", Short),
    ("packet.segments", Short),
    ("packet.fragment", Bool),
    ("conntrack.state", Text),
    ("conntrack.direction", Text),
    ("conntrack.status", Text),
    ("conntrack.zone", Short),
    ("conntrack.mark", Long),
    ("conntrack.tcp_state", Text),
    ("conntrack.original", Json),
    ("conntrack.reply", Json),
    ("inner.type", Text),
    ("inner.vni", Long),
    ("inner.source", Json),
    ("inner.destination", Json),
    ("inner.transport", Text),
    ("drop.reason", Text),
    ("drop.subsystem", Text),
    ("drop.location", Text),
    ("drop.class", Text),
    ("drop.netfilter.backend", Text),
    ("drop.netfilter.family", Text),
    ("drop.netfilter.hook", Text),
    ("drop.netfilter.table", Text),
    ("drop.netfilter.chain", Text),
    ("drop.netfilter.rule", Long),
    ("drop.netfilter.handle", Long),
    ("drop.netfilter.text", Text),
    ("drop.netfilter.verdict", Text),
    ("drop.netfilter.reject_with", Text),
    ("drop.netfilter.owner", Text),
    ("drop.netfilter.function", Text),
    ("drop.netfilter.program", Json),
    ("drop.netfilter.other_backend", Text),
    ("drop.netfilter.mark_set_by", Json),
    ("drop.netfilter.candidates", Json),
    ("drop.netfilter.method", Text),
    ("drop.netfilter.confidence", Text),
    ("drop.cilium.code", Short),
    ("drop.cilium.name", Text),
    ("drop.cilium.message", Text),
    ("drop.cilium.extended_error", Short),
    ("drop.cilium.extended_message", Text),
    ("drop.cilium.verdict_by", Text),
    ("drop.cilium.endpoint", Long),
    ("drop.cilium.direction", Text),
    ("drop.cilium.source_identity", Json),
    ("drop.cilium.destination_identity", Json),
    ("drop.cilium.source_prefix", Text),
    ("drop.cilium.destination_prefix", Text),
    ("drop.cilium.policies", Json),
    ("drop.cilium.entry", Json),
    ("drop.cilium.nearest", Json),
    ("drop.cilium.allowed_now", Bool),
    ("drop.cilium.program", Text),
    ("drop.cilium.file", Text),
    ("drop.cilium.line", Short),
    ("drop.cilium.notes", Json),
    ("drop.cilium.unread", Json),
    ("drop.bpf", Json),
    ("drop.cause.id", Text),
    ("drop.cause.severity", Text),
    ("drop.cause.why", Text),
    ("drop.cause.fix", Text),
    ("drop.cause.confidence", Text),
    ("stack", Json),
    // Of `stalled` records: what a filter that let nothing through said. Whole, for there are few.
    ("stalled", Json),
    ("original.source.address", Text),
    ("original.source.port", Short),
    ("original.source.k8s", Json),
    ("original.destination.address", Text),
    ("original.destination.port", Short),
    ("original.destination.k8s", Json),
    ("drop.cause.owner", Text),
    ("drop.cause.resets", Text),
    ("drop.cause.evidence", Json),
    ("drop.cause.others", Json),
];

/// All columns in order.
pub(super) static COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
    let ends = [end!("source"), end!("destination")].into_iter().flatten();
    let all = HEAD.into_iter().chain(ends).chain(REST);
    all.map(|(path, kind)| Column { path, kind }).collect()
});

/// Which fields of recorded drops a reader looks at; others may be as if nothing were known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// All.
    #[default]
    All,
    /// Those that a drop must have, and these: paths as in the JSON contract, of fields or of objects with all that is in them.
    Only(BTreeSet<&'static str>),
}

/// What a record must have to be one, and what any reader of drops asks.
const NEEDED: [&str; 11] = [
    "type",
    "time",
    "time_last",
    "node",
    "count",
    "segments",
    "detail",
    "where",
    "stalled",
    "drop.class",
    "drop.cause.id",
];

impl Reads {
    /// True if a column is read.
    pub(super) fn has(&self, column: &Column) -> bool {
        let Self::Only(paths) = self else { return true };
        let is_in = |path: &&str| match column.path.strip_prefix(path) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        };
        NEEDED.iter().any(is_in) || paths.iter().any(is_in)
    }
}

impl Column {
    /// Its name.
    pub(super) fn name(&self) -> String {
        self.path.replace('.', "_")
    }
}

/// The columns as Arrow has them.
pub(super) static SCHEMA: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    let field = |column: &Column| {
        let kind = match column.kind {
            Text | Json => DataType::Utf8,
            Short => DataType::Int32,
            Long => DataType::Int64,
            Bool => DataType::Boolean,
            Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        };
        Field::new(column.name(), kind, true)
    };
    Arc::new(Schema::new(COLUMNS.iter().map(field).collect::<Vec<_>>()))
});

/// A place among the columns: an object with fields, or a column by its number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Object(Vec<(&'static str, Place)>),
    Column(usize),
}

/// All places.
pub(super) static ROOT: LazyLock<Place> = LazyLock::new(|| {
    let mut root = Place::Object(Vec::new());
    for (number, column) in COLUMNS.iter().enumerate() {
        root.put(column.path, number);
    }
    root
});

impl Place {
    /// The place of a field of this object.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.iter().find(|(known, _)| *known == name).map(|(_, place)| place),
            Self::Column(_) => None,
        }
    }

    fn put(&mut self, path: &'static str, number: usize) {
        let Self::Object(fields) = self else { return };
        let Some((first, rest)) = path.split_once('.') else {
            fields.push((path, Self::Column(number)));
            return;
        };
        let known = fields.iter().position(|(name, _)| *name == first);
        let index = known.unwrap_or_else(|| {
            fields.push((first, Self::Object(Vec::new())));
            fields.len() - 1
        });
        if let Some((_, place)) = fields.get_mut(index) {
            place.put(rest, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_one_each() {
        let names: BTreeSet<String> = COLUMNS.iter().map(Column::name).collect();
        assert_eq!(names.len(), COLUMNS.len());
        assert!(names.contains("drop_netfilter_chain") && names.contains("source_k8s_pod"));
    }

    #[test]
    fn a_place_is_found_by_its_path() {
        let of = |path: &str| path.split('.').try_fold(&*ROOT, |place, name| place.field(name));
        for (number, column) in COLUMNS.iter().enumerate() {
            assert_eq!(of(column.path), Some(&Place::Column(number)), "{}", column.path);
        }
        assert_eq!(of("source.pod"), None);
        assert!(matches!(of("source.k8s"), Some(Place::Object(_))));
    }
}
