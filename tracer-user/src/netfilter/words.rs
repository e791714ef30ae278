//! The words for a rule that was found: its text as the node's own tool prints it, who wrote it, who set the mark that it
//! matched. Asked for once per rule and rule set, and kept.

use super::NetnsId;
use super::listings::{Id, Listing, Listings, Printed};
use super::marks::{self, Listed};
use super::model::{Backend, Family, Netfilter, RuleRef};
use super::owner::{Subject, owner};
use super::text;
use std::collections::HashMap;
use std::rc::Rc;

/// Rules whose words are kept.
const MAX_KNOWN: usize = 4096;
/// Tables of iptables that a mark may be set in.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Words {
    known: HashMap<Key, Known>,
    listings: Listings,
}

/// A rule of a rule set: `generation` is a number that no other rule set of this netns has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    netns: NetnsId,
    generation: u64,
    answer: Netfilter,
    mark: u32,
}

/// What is known of it.
#[derive(Clone, Debug, Default)]
struct Known {
    text: Option<String>,
    mark_set_by: Vec<RuleRef>,
}

impl Words {
    /// Adds words to the answer for a packet with a mark. `generation` tells the rule set that has the rule from others of
    /// the netns, `None` if its rules can't be listed; `is_current` asks whether it is still the one in force: only then do
    /// the tools speak of it.
    pub fn add(
        &mut self,
        netns: NetnsId,
        generation: Option<u64>,
        mark: u32,
        answer: &mut Netfilter,
        is_current: &mut dyn FnMut() -> bool,
    ) {
        if let Some(generation) = generation
            && (answer.rule.is_some() || answer.handle.is_some())
        {
            let key = Key { netns, generation, answer: answer.clone(), mark };
            let known = match self.known.get(&key) {
                Some(known) => known.clone(),
                None => self.ask(key, is_current).unwrap_or_default(),
            };
            answer.text = known.text;
            answer.mark_set_by = known.mark_set_by;
        }
        let subject = Subject {
            backend: answer.backend,
            table: answer.table.as_deref(),
            chain: answer.chain.as_deref(),
            text: answer.text.as_deref(),
        };
        answer.owner = answer.table.is_some().then(|| owner(&subject).to_owned());
    }

    /// The listings of iptables' tables, as of a rule set: see [`Words::add`]. `None` if not all can be had.
    pub(super) fn tables(
        &mut self,
        netns: NetnsId,
        generation: u64,
        (backend, family, names): (Backend, Family, &[String]),
        is_current: &mut dyn FnMut() -> bool,
    ) -> Option<Vec<Rc<Printed>>> {
        let mut printed = |name: &String| {
            let listing = match backend {
                Backend::Legacy => Listing::Legacy(family, name.clone()),
                Backend::Nft => Listing::IptablesNft(family, name.clone()),
            };
            self.listings.get(Id { netns, generation, listing }, is_current)
        };
        names.iter().map(&mut printed).collect()
    }

    /// Asks the tools; `None` if that can't be done now.
    fn ask(&mut self, key: Key, is_current: &mut dyn FnMut() -> bool) -> Option<Known> {
        let wanted = Listing::of(&key.answer)?;
        let known = self.words(&key, &wanted, is_current)?;
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(key, known.clone());
        Some(known)
    }

    fn words(&mut self, key: &Key, wanted: &Listing, is_current: &mut dyn FnMut() -> bool) -> Option<Known> {
        let id = Id { netns: key.netns, generation: key.generation, listing: wanted.clone() };
        let printed = self.listings.get(id, is_current)?;
        let text = match (wanted, key.answer.rule, key.answer.handle) {
            (Listing::Nft(..), _, Some(handle)) => text::nft_texts(&printed.text).remove(&handle),
            (Listing::Legacy(..) | Listing::IptablesNft(..), Some(rule), _) => {
                let chain = key.answer.chain.as_deref().unwrap_or_default();
                printed.saved_rule(chain, rule).map(str::to_owned)
            }
            _ => None,
        };
        let mark_set_by = match (&text, key.mark) {
            (Some(text), mark @ 1..) => self.who_set(key, wanted, (text, mark), is_current),
            _ => Vec::new(),
        };
        Some(Known { text, mark_set_by })
    }

    /// The rules that set the packet's mark, if the rule matched it.
    fn who_set(
        &mut self,
        key: &Key,
        wanted: &Listing,
        (text, mark): (&str, u32),
        is_current: &mut dyn FnMut() -> bool,
    ) -> Vec<RuleRef> {
        if !text.contains("mark") {
            return Vec::new();
        }
        let tables: Option<Vec<(&str, Rc<Printed>)>> = TABLES
            .into_iter()
            .map(|table| {
                let listing = match wanted {
                    Listing::Legacy(family, _) => Listing::Legacy(*family, table.to_owned()),
                    Listing::IptablesNft(family, _) => Listing::IptablesNft(*family, table.to_owned()),
                    Listing::Nft(..) => return None,
                };
                let id = Id { netns: key.netns, generation: key.generation, listing };
                Some((table, self.listings.get(id, is_current)?))
            })
            .collect();
        // Of some tables only it would look as if nobody else had.
        let Some(tables) = tables else { return Vec::new() };
        let rules: Vec<Listed<'_>> = tables
            .iter()
            .flat_map(|(table, printed)| {
                text::saved_rules(&printed.text).map(move |rule| Listed {
                    table,
                    chain: rule.chain,
                    rule: Some(rule.ordinal),
                    handle: None,
                    text: rule.text,
                })
            })
            .collect();
        marks::set_by(text, mark, &rules)
    }
}
