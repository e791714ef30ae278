//! What the node's tools print of the rules, as of one rule set: asked for once, and kept while there is room.

use super::NetnsId;
use super::budget::Budget;
use super::model::{Backend, Family, Netfilter};
use super::text::SavedIndex;
use super::tools::{Limits, Wanted, listing};
use std::cell::OnceCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Time that the tools may take at once.
const BURST: Duration = Duration::from_secs(2);
/// Time that one of them may take.
const LONGEST: Duration = Duration::from_secs(2);
/// Listings kept, and bytes of all together: also of one that is printed, so that none is printed and not kept.
const MAX_LISTINGS: usize = 8;
const MAX_BYTES: usize = 64 << 20;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// Oldest first.
    kept: VecDeque<(Id, Rc<Printed>)>,
    budget: Budget,
}

/// A listing of a rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) netns: NetnsId,
    /// A number that no other rule set of this netns has.
    pub(super) generation: u64,
    pub(super) listing: Listing,
}

/// A listing that a tool gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    Legacy(Family, String),
    IptablesNft(Family, String),
    Nft(Family, String, String),
}

/// What a tool printed.
#[derive(Debug, Default)]
pub(super) struct Printed {
    /// All of it; nothing if the tool failed.
    pub(super) text: String,
    index: OnceCell<SavedIndex>,
}

impl Listing {
    /// The one that has the rule.
    pub(super) fn of(answer: &Netfilter) -> Option<Self> {
        let (family, table, chain) = (answer.family?, answer.table.clone()?, answer.chain.clone()?);
        Some(match (answer.backend?, answer.rule) {
            (Backend::Legacy, Some(_)) => Self::Legacy(family, table),
            (Backend::Nft, Some(_)) if matches!(family, Family::Ipv4 | Family::Ipv6) => {
                Self::IptablesNft(family, table)
            }
            (Backend::Nft, _) => Self::Nft(family, table, chain),
            (Backend::Legacy, None) => return None,
        })
    }

    fn wanted(&self) -> Wanted<'_> {
        match self {
            Self::Legacy(family, table) => Wanted::LegacyTable { family: *family, table },
            Self::IptablesNft(family, table) => Wanted::IptablesNftTable { family: *family, table },
            Self::Nft(family, table, chain) => Wanted::NftChain { family: *family, table, chain },
        }
    }
}

impl Printed {
    /// A rule of iptables by its number in its chain, from 1.
    pub(super) fn saved_rule(&self, chain: &str, ordinal: u32) -> Option<&str> {
        self.index.get_or_init(|| SavedIndex::of(&self.text)).rule(&self.text, chain, ordinal)
    }
}

impl Listings {
    /// A listing as of its rule set. `is_current` asks whether that is in force: only then do the tools speak of it. `None`
    /// if they can't be asked now, or the rules were changed meanwhile.
    pub(super) fn get(&mut self, id: Id, is_current: &mut dyn FnMut() -> bool) -> Option<Rc<Printed>> {
        self.get_from(id, is_current, &mut |id| {
            let limits = Limits { time: LONGEST, bytes: MAX_BYTES };
            // A tool that isn't there, or fails, is no text: what else is known says the rest.
            listing(id.netns.inode, &id.listing.wanted(), limits).unwrap_or_default()
        })
    }

    fn get_from(
        &mut self,
        id: Id,
        is_current: &mut dyn FnMut() -> bool,
        print: &mut dyn FnMut(&Id) -> String,
    ) -> Option<Rc<Printed>> {
        if let Some((_, known)) = self.kept.iter().find(|(known, _)| *known == id) {
            return Some(Rc::clone(known));
        }
        if !self.budget.is_left(BURST) || !is_current() {
            return None;
        }
        let start = Instant::now();
        let text = print(&id);
        self.budget.take(start.elapsed());
        // Changed meanwhile: what was read may be of either rule set.
        if !is_current() {
            return None;
        }
        // Also one of a tool that failed: it is not asked again for this rule set.
        let printed = Rc::new(Printed { text, index: OnceCell::new() });
        self.keep(id, Rc::clone(&printed));
        Some(printed)
    }

    /// Keeps a listing instead of that of an older rule set, and instead of the oldest ones.
    fn keep(&mut self, id: Id, printed: Rc<Printed>) {
        self.kept.retain(|(known, _)| (known.netns, &known.listing) != (id.netns, &id.listing));
        self.kept.push_back((id, printed));
        let bytes = |kept: &VecDeque<(Id, Rc<Printed>)>| -> usize {
            kept.iter().map(|(_, printed)| printed.text.len()).sum()
        };
        while self.kept.len() > MAX_LISTINGS || (self.kept.len() > 1 && bytes(&self.kept) > MAX_BYTES) {
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(generation: u64, table: &str) -> Id {
        let netns = NetnsId { address: 1, inode: 2, cookie: 3 };
        Id { netns, generation, listing: Listing::Legacy(Family::Ipv4, table.to_owned()) }
    }

    /// What is given for listings that are asked for one after the other, and how often the tool was.
    fn lengths(listings: &mut Listings, ids: &[Id], bytes: usize) -> (Vec<Option<usize>>, usize) {
        let mut asked = 0;
        let told = ids.iter().map(|id| {
            let mut print = |_: &Id| {
                asked += 1;
                "x".repeat(bytes)
            };
            listings.get_from(id.clone(), &mut || true, &mut print).map(|printed| printed.text.len())
        });
        (told.collect(), asked)
    }

    #[test]
    fn a_tool_is_asked_once_however_much_it_prints() {
        for bytes in [0, 1, MAX_BYTES] {
            let mut listings = Listings::default();
            let ids = [id(1, "filter"), id(1, "filter"), id(1, "filter")];
            assert_eq!(lengths(&mut listings, &ids, bytes), (vec![Some(bytes); 3], 1));
        }
    }

    #[test]
    fn only_what_is_printed_in_one_rule_set_is_its_listing() {
        for (answers, asked) in [([false, true], 0), ([true, false], 1)] {
            let mut listings = Listings::default();
            let mut left = answers.iter();
            let mut prints = 0;
            let told = listings.get_from(id(1, "filter"), &mut || *left.next().unwrap(), &mut |_| {
                prints += 1;
                "x".to_owned()
            });
            assert!(told.is_none() && listings.kept.is_empty() && prints == asked, "{answers:?}");
        }
        // What is kept needs no proof: it was printed in the rule set that it is asked for.
        let mut listings = Listings::default();
        lengths(&mut listings, &[id(1, "filter")], 7);
        let told = listings.get_from(id(1, "filter"), &mut || false, &mut |_| unreachable!());
        assert_eq!(told.unwrap().text.len(), 7);
    }

    #[test]
    fn a_newer_rule_set_and_many_bytes_take_the_place_of_others() {
        let mut listings = Listings::default();
        let ids = [id(1, "filter"), id(2, "filter"), id(2, "nat"), id(2, "filter")];
        assert_eq!(lengths(&mut listings, &ids, 5).1, 3);
        let tables = |listings: &Listings| listings.kept.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        assert_eq!(tables(&listings), [id(2, "filter"), id(2, "nat")]);
        lengths(&mut listings, &[id(2, "raw")], MAX_BYTES - 5);
        assert_eq!(tables(&listings), [id(2, "nat"), id(2, "raw")]);
        lengths(&mut listings, &[id(2, "mangle")], 6);
        assert_eq!(tables(&listings), [id(2, "mangle")]);
        let names: Vec<String> = (0..=MAX_LISTINGS).map(|number| number.to_string()).collect();
        let many: Vec<Id> = names.iter().map(|name| id(2, name)).collect();
        lengths(&mut listings, &many, 0);
        assert_eq!(tables(&listings), many[1..]);
    }
}
