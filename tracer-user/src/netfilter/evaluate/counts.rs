//! What the counters of a table's rules told of one packet's way through it, weighed against what evaluating says.
//!
//! Each rule that the packet matched has moved its counter by one each time. Other packets may have moved some, too, while it was on
//! its way: then the way that the counters tell does not use up what they moved by, and nothing is taken from them.

use super::truth::Truth;
use crate::netfilter::moved::{CountedChain, CountedTable};
use std::collections::HashMap;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Counts<'t> {
    chains: &'t HashMap<String, CountedChain>,
    /// By counter.
    moved: HashMap<u64, Moved>,
    /// Another packet that was there in between would show: only then counters may say what evaluating does not.
    is_whole: bool,
}

#[derive(Debug, Default)]
struct Moved {
    /// By how much.
    by: u64,
    /// How often the packet did it.
    used: u64,
    /// Once nothing but the counter said so.
    is_alone: bool,
}

/// The counters tell of no way that this packet can have taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contradiction;

impl<'t> Counts<'t> {
    /// `moved`: how far the counters of the table did, which the packet came to by the chain `base`.
    pub(super) fn new(table: &'t CountedTable, base: &str, moved: HashMap<u64, u64>) -> Self {
        let moved = moved.into_iter().map(|(counter, by)| (counter, Moved { by, ..Moved::default() }));
        Self { chains: &table.chains, moved: moved.collect(), is_whole: table.counts_all(base) }
    }

    /// Whether a rule that the packet comes to matched, of which evaluating says `evaluated`.
    pub(super) fn rule(
        &mut self,
        chain: &str,
        ordinal: u32,
        evaluated: Truth,
    ) -> Result<bool, Contradiction> {
        let rule =
            self.chains.get(chain).and_then(|chain| chain.rules.get((ordinal as usize).checked_sub(1)?));
        self.ask(rule.copied().flatten().ok_or(Contradiction)?, evaluated)
    }

    /// The packet comes to a chain's end: its policy, or the return to where it was jumped to from.
    pub(super) fn end(&mut self, chain: &str) -> Result<(), Contradiction> {
        match self.chains.get(chain).ok_or(Contradiction)?.end {
            Some(counter) => self.ask(counter, Truth::Yes).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Whether the way that was told accounts for all that moved.
    pub(super) fn are_used_up(&self) -> bool {
        self.moved.values().all(|it| it.used == it.by)
    }

    fn ask(&mut self, counter: u64, evaluated: Truth) -> Result<bool, Contradiction> {
        if evaluated == Truth::Unknown && !self.is_whole {
            return Err(Contradiction);
        }
        let Some(moved) = self.moved.get_mut(&counter) else {
            return if evaluated == Truth::Yes { Err(Contradiction) } else { Ok(false) };
        };
        let is_left = moved.used < moved.by;
        match evaluated {
            Truth::No => Ok(false),
            Truth::Yes if !is_left => Err(Contradiction),
            // It moved at one of two times that the packet came here: at which can't be told.
            Truth::Unknown if !is_left && moved.is_alone => Err(Contradiction),
            Truth::Unknown if !is_left => Ok(false),
            Truth::Yes | Truth::Unknown => {
                moved.used += 1;
                moved.is_alone |= evaluated == Truth::Unknown;
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One chain whose rules have counters 1, 2 ..., and whose end has 9.
    fn counts<'c>(chains: &'c HashMap<String, CountedChain>, moved: &[(u64, u64)]) -> Counts<'c> {
        let moved = moved.iter().map(|(counter, by)| (*counter, Moved { by: *by, ..Moved::default() }));
        Counts { chains, moved: moved.collect(), is_whole: true }
    }

    fn chains() -> HashMap<String, CountedChain> {
        let chain = CountedChain { rules: vec![Some(1), Some(2), None], end: Some(9) };
        HashMap::from([("X".to_owned(), chain)])
    }

    #[test]
    fn a_counter_decides_what_evaluating_cannot() {
        let chains = chains();
        let mut it = counts(&chains, &[(1, 1), (9, 1)]);
        assert_eq!(it.rule("X", 1, Truth::Unknown), Ok(true));
        assert_eq!(it.rule("X", 2, Truth::Unknown), Ok(false));
        assert!(!it.are_used_up());
        assert_eq!(it.end("X"), Ok(()));
        assert!(it.are_used_up());
    }

    #[test]
    fn where_other_packets_would_leave_no_end_only_evaluating_decides() {
        let chains = chains();
        let mut it = Counts { is_whole: false, ..counts(&chains, &[(1, 1)]) };
        assert_eq!(it.rule("X", 1, Truth::Yes), Ok(true));
        assert_eq!(it.rule("X", 2, Truth::No), Ok(false));
        assert_eq!(it.rule("X", 2, Truth::Unknown), Err(Contradiction));
    }

    #[test]
    fn what_cannot_be_is_a_contradiction() {
        let chains = chains();
        let mut it = counts(&chains, &[(2, 1)]);
        // It matched, but its counter has not moved.
        assert_eq!(it.rule("X", 1, Truth::Yes), Err(Contradiction));
        // Its counter has moved, but it did not match: another packet's.
        assert_eq!(it.rule("X", 2, Truth::No), Ok(false));
        assert!(!it.are_used_up());
        // Without a counter, of another chain, not there.
        assert_eq!(it.rule("X", 3, Truth::Yes), Err(Contradiction));
        assert_eq!(it.rule("X", 4, Truth::No), Err(Contradiction));
        assert_eq!(it.rule("Y", 1, Truth::No), Err(Contradiction));
        assert_eq!(it.end("X"), Err(Contradiction));
    }

    #[test]
    fn of_two_times_it_must_be_clear_which_it_was() {
        let chains = chains();
        let mut it = counts(&chains, &[(1, 1)]);
        assert_eq!(it.rule("X", 1, Truth::Unknown), Ok(true));
        assert_eq!(it.rule("X", 1, Truth::Unknown), Err(Contradiction));
        let mut it = counts(&chains, &[(1, 1)]);
        assert_eq!(it.rule("X", 1, Truth::No), Ok(false));
        assert_eq!(it.rule("X", 1, Truth::Unknown), Ok(true));
        assert!(it.are_used_up());
        let mut it = counts(&chains, &[(1, 2)]);
        assert_eq!(it.rule("X", 1, Truth::Unknown), Ok(true));
        assert_eq!(it.rule("X", 1, Truth::Unknown), Ok(true));
        assert!(it.are_used_up());
    }
}
