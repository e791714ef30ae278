//! One look at a node: its facts, its rules and all counters. Doctor takes two, some time apart.

use super::super::dropped::Reading;
use super::super::facts::{Facts, Offload, OffloadKind};
use super::super::model::{self, Unread};
use super::super::rules::{Id, Table};
use super::counters::Count;
use super::rules::Rules;
use crate::netfilter::model::Netfilter;
use crate::stream::Stream;
use crate::xdp::{self, report::Known};
use std::time::Instant;

/// What there was at one moment.
pub struct Look {
    /// When it was over.
    pub at: Instant,
    /// The facts, without the cluster.
    pub facts: Facts,
    /// What was counted, but for rules.
    pub counts: Vec<Count>,
    /// The XDP programs, or why they are not known.
    pub programs: Result<Vec<Known>, String>,
    /// What could not be looked at.
    pub unread: Vec<Unread>,
}

impl Look {
    /// Looks. `known` are the tables that the kernel half knows of; it is asked for counters of what no tool prints.
    #[must_use]
    pub fn take(known: &[model::Table], stream: Option<&Stream>) -> Self {
        let mut unread = Vec::new();
        let mut facts = super::facts(&mut unread);
        let counts = super::counts();
        let programs = xdp::read().map_err(|error| error.to_string());
        let (ids, unlisted) = super::ids(known);
        // The kernel half may know them all the same.
        let unlisted = unlisted.filter(|_| !stream.is_some_and(Stream::lists_nft));
        let Rules { mut tables, unread: of_rules } = super::rules::read(&ids);
        if tables.len() < ids.len() {
            let counted = stream.map(Stream::counted_rules).unwrap_or_default();
            tables.extend(unprinted(&ids, &tables, &counted));
        }
        unread.extend(of_rules);
        facts.offloads.extend(flowtables(&tables, facts.netns));
        let whole = tables.iter().filter(|table| table.netns == facts.netns && table.is_whole).count();
        let own = ids.iter().filter(|id| id.netns == facts.netns).count();
        facts.has_unread_tables = whole < own || unlisted.is_some();
        unread.extend(unlisted);
        facts.tables = tables;
        Self { at: Instant::now(), facts, counts, programs, unread }
    }

    /// What was counted.
    #[must_use]
    pub fn reading(&self) -> Reading<'_> {
        Reading { counts: &self.counts, tables: &self.facts.tables }
    }
}

/// The tables that no tool printed, as far as the kernel itself tells of them.
fn unprinted(ids: &[Id], printed: &[Table], counted: &[(u32, Netfilter, u64)]) -> Vec<Table> {
    let is_printed = |id: &Id| {
        let is_it = |table: &Table| {
            (table.netns, table.backend, table.family, &table.name)
                == (id.netns, id.backend, id.family, &id.name)
        };
        printed.iter().any(is_it)
    };
    let of_one = |id: &Id| {
        let is_its = |netns: u32, place: &Netfilter| {
            let (backend, family) = (Some(id.backend), Some(id.family));
            netns == id.netns
                && (place.backend, place.family, place.table.as_deref()) == (backend, family, Some(&id.name))
        };
        let own = counted.iter().filter(|(netns, place, _)| is_its(*netns, place));
        Table::counted(id, &own.map(|(_, place, packets)| (place, *packets)).collect::<Vec<_>>())
    };
    ids.iter().filter(|id| !is_printed(id)).map(of_one).collect()
}

/// The flowtables of a network namespace.
fn flowtables(tables: &[Table], netns: u32) -> Vec<Offload> {
    let own = tables.iter().filter(|table| table.netns == netns);
    let offload = |(name, interfaces, is_hardware): &(String, Vec<String>, bool)| Offload {
        kind: if *is_hardware { OffloadKind::HardwareFlowtable } else { OffloadKind::Flowtable },
        name: format!("flowtable {name}"),
        interfaces: interfaces.clone(),
    };
    own.flat_map(|table| &table.flowtables).map(offload).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::model::{Backend, Family};

    #[test]
    fn what_no_tool_printed_the_kernel_tells() {
        let id =
            |name: &str| Id { netns: 7, backend: Backend::Nft, family: Family::Inet, name: name.to_owned() };
        let place = |table: &str| Netfilter {
            backend: Some(Backend::Nft),
            family: Some(Family::Inet),
            table: Some(table.to_owned()),
            handle: Some(4),
            ..Netfilter::default()
        };
        let printed = [Table::counted(&id("printed"), &[])];
        let counted = [(7, place("shop"), 5), (8, place("shop"), 6), (7, place("printed"), 7)];
        let told = unprinted(&[id("printed"), id("shop")], &printed, &counted);
        let [table] = &told[..] else { panic!("{told:?}") };
        assert_eq!((&*table.name, table.rules.len(), table.rules[0].packets), ("shop", 1, Some(5)));
    }

    #[test]
    fn flowtables_of_the_own_namespace() {
        let id = Id { netns: 7, backend: Backend::Nft, family: Family::Inet, name: "t".to_owned() };
        let mut table = Table::counted(&id, &[]);
        table.flowtables = vec![("f".into(), vec!["eth0".into()], true), ("g".into(), vec![], false)];
        let told = flowtables(&[table.clone()], 7);
        assert_eq!(
            told.iter().map(|it| it.kind).collect::<Vec<_>>(),
            [OffloadKind::HardwareFlowtable, OffloadKind::Flowtable]
        );
        assert_eq!(flowtables(&[table], 8), []);
    }
}
