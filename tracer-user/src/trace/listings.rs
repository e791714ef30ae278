//! What the node's tools print of iptables' tables: asked for once, and kept as long as the same rules are in force.

use crate::netfilter::{
    NetnsId,
    budget::Budget,
    model::{Backend, Family},
    rulesets::InForce,
    tools::{self, Limits, ToolError, Wanted},
};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a listing is believed where the kernel's memory doesn't tell whether the rules are still the same.
const FRESH: Duration = Duration::from_secs(1);
/// Listings that are kept, of all network namespaces.
const MAX_LISTINGS: usize = 256;
/// Time that the tools may take at once.
const BURST: Duration = Duration::from_secs(2);
/// Bytes of one listing, and time that a tool may take.
const LIMITS: Limits = Limits { time: Duration::from_secs(2), bytes: 16 << 20 };

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Table {
    pub(super) netns: NetnsId,
    pub(super) backend: Backend,
    pub(super) family: Family,
    pub(super) name: String,
}

/// A listing, or that there is no such table, or why it can't be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    Text(Rc<str>),
    NoTable,
    Unknown(String),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Listings {
    kept: HashMap<Table, Kept>,
    budget: Budget,
    took: Duration,
}

#[derive(Debug)]
struct Kept {
    of: InForce,
    when: Instant,
    listing: Listing,
}

impl Listings {
    /// The table as it is in force now, and which rules these are.
    pub(super) fn get(&mut self, table: Table, in_force: &mut dyn FnMut() -> InForce) -> (Listing, InForce) {
        self.get_from(table, in_force, &mut print)
    }

    fn get_from(
        &mut self,
        table: Table,
        in_force: &mut dyn FnMut() -> InForce,
        print: &mut dyn FnMut(&Table) -> Listing,
    ) -> (Listing, InForce) {
        let now = in_force();
        if now == InForce::NoTable {
            return (Listing::NoTable, now);
        }
        if let Some(kept) = self.kept.get(&table)
            && kept.of == now
            && (now != InForce::Unknown || kept.when.elapsed() < FRESH)
        {
            return (kept.listing.clone(), now);
        }
        if !self.budget.is_left(BURST) {
            return (Listing::Unknown("too many tables to list".to_owned()), now);
        }
        let began = Instant::now();
        let listing = print(&table);
        self.budget.take(began.elapsed());
        self.took += began.elapsed();
        if in_force() != now {
            // What was printed may be of either.
            return (Listing::Unknown("they were changed meanwhile".to_owned()), now);
        }
        self.keep(table, Kept { of: now, when: Instant::now(), listing: listing.clone() });
        (listing, now)
    }

    /// The time that the tools took since this was asked last.
    pub(super) fn took(&mut self) -> Duration {
        std::mem::take(&mut self.took)
    }

    /// Keeps a listing, instead of the oldest one if there are too many.
    fn keep(&mut self, table: Table, kept: Kept) {
        if self.kept.len() >= MAX_LISTINGS && !self.kept.contains_key(&table) {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.when).map(|(table, _)| table.clone());
            oldest.map(|oldest| self.kept.remove(&oldest));
        }
        self.kept.insert(table, kept);
    }
}

fn print(table: &Table) -> Listing {
    let Table { family, name, .. } = table;
    let wanted = match table.backend {
        Backend::Legacy => Wanted::LegacyTable { family: *family, table: name },
        Backend::Nft => Wanted::IptablesNftTable { family: *family, table: name },
    };
    match tools::listing(table.netns.inode, &wanted, LIMITS) {
        // iptables-nft prints nothing of a table that is not there.
        Ok(text) if !text.lines().any(|line| line.strip_prefix('*') == Some(name)) => Listing::NoTable,
        Ok(text) => Listing::Text(text.into()),
        Err(ToolError::NoTable { .. } | ToolError::NotLoaded { .. }) => Listing::NoTable,
        Err(error) => Listing::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(inode: u32) -> Table {
        let netns = NetnsId { address: 1, inode, cookie: 2 };
        Table { netns, backend: Backend::Legacy, family: Family::Ipv4, name: "filter".into() }
    }

    /// What is given for a table whose rules are those of each version in turn, and how often the tool was asked.
    fn given(listings: &mut Listings, inode: u32, versions: &[InForce]) -> (Listing, u32) {
        let mut versions = versions.iter().copied();
        let mut asked = 0;
        let (listing, _) = listings.get_from(table(inode), &mut || versions.next().unwrap(), &mut |_| {
            asked += 1;
            Listing::Text("*filter".into())
        });
        (listing, asked)
    }

    #[test]
    fn a_tool_is_asked_once_while_the_rules_are_the_same() {
        let mut listings = Listings::default();
        let [first, second] = [1, 2].map(InForce::Version);
        let text = || Listing::Text("*filter".into());
        assert_eq!(given(&mut listings, 1, &[first, first]), (text(), 1));
        assert_eq!(given(&mut listings, 1, &[first]), (text(), 0));
        assert_eq!(given(&mut listings, 2, &[first, first]), (text(), 1));
        assert_eq!(given(&mut listings, 1, &[second, second]), (text(), 1));
        assert_eq!(given(&mut listings, 1, &[InForce::NoTable]), (Listing::NoTable, 0));
        // Where it can't be told, for a moment.
        assert_eq!(given(&mut listings, 1, &[InForce::Unknown, InForce::Unknown]), (text(), 1));
        assert_eq!(given(&mut listings, 1, &[InForce::Unknown]), (text(), 0));
    }

    #[test]
    fn rules_that_change_while_they_are_printed_are_not_told() {
        let mut listings = Listings::default();
        let [first, second] = [1, 2].map(InForce::Version);
        let (listing, _) = given(&mut listings, 1, &[first, second]);
        assert!(matches!(listing, Listing::Unknown(_)));
        assert_eq!(given(&mut listings, 1, &[second, second]).1, 1);
    }

    #[test]
    fn the_oldest_make_room() {
        let mut listings = Listings::default();
        let version = InForce::Version(1);
        let most = u32::try_from(MAX_LISTINGS).unwrap();
        for inode in 0..=most {
            given(&mut listings, inode, &[version, version]);
        }
        assert_eq!(listings.kept.len(), MAX_LISTINGS);
        assert!(!listings.kept.contains_key(&table(0)) && listings.kept.contains_key(&table(most)));
    }
}
