//! The words for a rule that was found: its text as the node's own tool prints it, who wrote it, who set the mark that it
//! matched. Asked for once per rule and rule set, and kept.

use super::NetnsId;
use super::marks::{self, Listed};
use super::model::{Backend, Family, Netfilter, RuleRef};
use super::owner::{Subject, owner};
use super::text;
use super::tools::{Limits, Wanted, listing};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Time that the tools may take at once,
const BURST: Duration = Duration::from_secs(2);
/// and then one part in this many of all time.
const IDLE_SHARE: u32 = 4;
/// Rules whose words are kept.
const MAX_KNOWN: usize = 4096;
/// Listings kept, and bytes of one that is.
const MAX_LISTINGS: usize = 8;
const MAX_KEPT: usize = 4 << 20;
/// Tables of iptables that a mark may be set in.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Words {
    known: HashMap<Key, Known>,
    listings: VecDeque<((NetnsId, u64, Listing), Rc<str>)>,
    budget: Budget,
}

/// How much time the tools may take: a burst, then a share.
#[derive(Debug, Default)]
struct Budget {
    /// Time that was taken and not yet made up for.
    debt: Duration,
    since: Option<Instant>,
}

impl Budget {
    /// True if there is some left.
    fn is_left(&mut self) -> bool {
        let now = Instant::now();
        let passed = self.since.replace(now).map_or(Duration::ZERO, |since| now - since);
        self.debt = self.debt.saturating_sub(passed / IDLE_SHARE);
        self.debt < BURST
    }

    fn take(&mut self, time: Duration) {
        self.debt += time;
    }
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

/// A listing that a tool gives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listing {
    Legacy(Family, String),
    IptablesNft(Family, String),
    Nft(Family, String, String),
}

impl Listing {
    /// The one that has the rule.
    fn of(answer: &Netfilter) -> Option<Self> {
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

impl Words {
    /// Adds words to the answer for a packet with a mark. `generation` tells this rule set from others of the netns;
    /// `is_current` asks whether it is still the one in force: only then do the tools speak of it.
    pub fn add(
        &mut self,
        netns: NetnsId,
        generation: u64,
        mark: u32,
        answer: &mut Netfilter,
        is_current: &mut dyn FnMut() -> bool,
    ) {
        if answer.rule.is_some() || answer.handle.is_some() {
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

    /// The listings of legacy tables, as of a rule set: see [`Words::add`]. `None` if not all can be had, or they are too
    /// long to be gone through at a drop.
    pub fn tables(
        &mut self,
        netns: NetnsId,
        generation: u64,
        (family, names): (Family, &[String]),
        is_current: &mut dyn FnMut() -> bool,
    ) -> Option<Vec<Rc<str>>> {
        const LONGEST: usize = 1 << 20;
        if !is_current() {
            return None;
        }
        let listing = |name: &String| self.listing(netns, generation, Listing::Legacy(family, name.clone()));
        let listings: Vec<Rc<str>> = names.iter().map(listing).collect::<Option<_>>()?;
        if !is_current() {
            self.listings.clear();
            return None;
        }
        let length: usize = listings.iter().map(|listing| listing.len()).sum();
        (length <= LONGEST).then_some(listings)
    }

    /// Asks the tools; `None` if that can't be done now.
    fn ask(&mut self, key: Key, is_current: &mut dyn FnMut() -> bool) -> Option<Known> {
        let wanted = Listing::of(&key.answer)?;
        if !is_current() {
            return None;
        }
        let known = self.words(&key, &wanted)?;
        if !is_current() {
            // Changed meanwhile: what was read may be of either rule set.
            self.listings.clear();
            return None;
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(key, known.clone());
        Some(known)
    }

    fn words(&mut self, key: &Key, wanted: &Listing) -> Option<Known> {
        // A tool that isn't there, or fails, is no text: the fields say the rest.
        let listing = self.listing(key.netns, key.generation, wanted.clone())?;
        let text = match (wanted, key.answer.rule, key.answer.handle) {
            (Listing::Nft(..), _, Some(handle)) => text::nft_texts(&listing).remove(&handle),
            (Listing::Legacy(..) | Listing::IptablesNft(..), Some(rule), _) => {
                let chain = key.answer.chain.as_deref().unwrap_or_default();
                text::saved_rule(&listing, chain, rule).map(str::to_owned)
            }
            _ => None,
        };
        let mark_set_by = match (&text, key.mark) {
            (Some(text), mark @ 1..) => self.who_set(key, wanted, text, mark),
            _ => Vec::new(),
        };
        Some(Known { text, mark_set_by })
    }

    /// The rules that set the packet's mark, if the rule matched it.
    fn who_set(&mut self, key: &Key, wanted: &Listing, text: &str, mark: u32) -> Vec<RuleRef> {
        if !text.contains("mark") {
            return Vec::new();
        }
        let tables: Vec<(String, Rc<str>)> = TABLES
            .into_iter()
            .filter_map(|table| {
                let listing = match wanted {
                    Listing::Legacy(family, _) => Listing::Legacy(*family, table.to_owned()),
                    Listing::IptablesNft(family, _) => Listing::IptablesNft(*family, table.to_owned()),
                    Listing::Nft(..) => return None,
                };
                Some((table.to_owned(), self.listing(key.netns, key.generation, listing)?))
            })
            .collect();
        let rules: Vec<Listed<'_>> = tables
            .iter()
            .flat_map(|(table, listing)| {
                text::saved_rules(listing).map(move |rule| Listed {
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

    fn listing(&mut self, netns: NetnsId, generation: u64, wanted: Listing) -> Option<Rc<str>> {
        let id = (netns, generation, wanted);
        if let Some((_, known)) = self.listings.iter().find(|(known, _)| *known == id) {
            return Some(Rc::clone(known));
        }
        if !self.budget.is_left() {
            return None;
        }
        let start = Instant::now();
        let limits = Limits { time: Duration::from_secs(2), ..Limits::default() };
        let text = listing(netns.inode, &id.2.wanted(), limits);
        self.budget.take(start.elapsed());
        // A tool that failed is not asked again for this rule set.
        let text: Rc<str> = text.unwrap_or_default().into();
        if text.len() <= MAX_KEPT {
            if self.listings.len() >= MAX_LISTINGS {
                self.listings.pop_front();
            }
            self.listings.push_back((id, Rc::clone(&text)));
        }
        Some(text)
    }
}
