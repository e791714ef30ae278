//! Whether all that Cilium counted as dropped was seen. Not all is: it drops some packets before the kernel makes an skb
//! of them (XDP), answers others instead of freeing them, and leaves nothing in yet others.

use super::codes;
use super::maps::Metrics;
use super::model::Cilium;
use std::collections::BTreeMap;

/// What was seen of Cilium's drops since its metrics were first read. Read them first when droptrace sees drops already, and
/// last while it still does: so no drop is taken for unseen that was counted just before or after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    before: Metrics,
    attributed: BTreeMap<u8, u64>,
    unsaid: u64,
}

impl Tally {
    /// From what Cilium had counted at the start.
    #[must_use]
    pub fn new(before: Metrics) -> Self {
        Self { before, ..Self::default() }
    }

    /// Takes drops at a tc hook, of which Cilium said that; nothing if it is not known what of it they were.
    pub fn add(&mut self, said: Option<&Cilium>, count: u64) {
        let place = match said.and_then(|said| said.code) {
            Some(code) => self.attributed.entry(code).or_default(),
            None => &mut self.unsaid,
        };
        *place = place.saturating_add(count);
    }

    /// What was not seen of what Cilium has counted by now.
    #[must_use]
    pub fn unseen(&self, now: &Metrics) -> Unseen {
        Unseen { unsaid: self.unsaid, ..Unseen::between(&self.before, now, &self.attributed) }
    }
}

/// Drops that Cilium counted and droptrace did not attribute to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// By drop code, none of them 0.
    pub by_code: BTreeMap<u8, u64>,
    /// Drops at tc hooks that were seen and may be some of these: no code was left in them.
    pub unsaid: u64,
}

impl Unseen {
    /// What Cilium counted between two readings of its metrics, without what was attributed to it meanwhile (each by drop
    /// code).
    #[must_use]
    pub fn between(before: &Metrics, now: &Metrics, attributed: &BTreeMap<u8, u64>) -> Self {
        let of = |counts: &BTreeMap<u8, u64>, code: u8| counts.get(&code).copied().unwrap_or(0);
        let unseen = |(&code, &packets): (&u8, &u64)| {
            // Fewer than before: the map was made anew, and counts from 0.
            let counted = packets.checked_sub(of(before, code)).unwrap_or(packets);
            let left = counted.saturating_sub(of(attributed, code));
            (left > 0).then_some((code, left))
        };
        Self { by_code: now.range(codes::FIRST..).filter_map(unseen).collect(), unsaid: 0 }
    }

    /// All of them.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.by_code.values().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

impl std::fmt::Display for Unseen {
    /// One sentence, the most frequent code first; empty if there is nothing to say.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.count();
        if count <= self.unsaid {
            return Ok(());
        }
        let mut codes: Vec<_> = self.by_code.iter().collect();
        codes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let word = |(code, count): (&u8, &u64)| match codes::find(*code) {
            Some(known) => format!("{} {count}", known.text),
            None => format!("code {code} {count}"),
        };
        let codes: Vec<_> = codes.into_iter().map(word).collect();
        write!(
            f,
            "Cilium counted {count} dropped packet{} that droptrace did not see as its drops (XDP, bandwidth limits, \
             ICMP replies to denied packets, drop notifications that are off): {}",
            if count == 1 { "" } else { "s" },
            codes.join(", ")
        )?;
        match self.unsaid {
            0 => Ok(()),
            unsaid => write!(f, "; {unsaid} drops at tc hooks that said no code may be among them"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_and_not_attributed() {
        let before = Metrics::from([(0, 5), (133, 10), (181, 7)]);
        let now = Metrics::from([(0, 999), (129, 1), (133, 40), (181, 9), (162, 3), (207, 1)]);
        let attributed = BTreeMap::from([(133, 28), (181, 2), (132, 4)]);
        let unseen = Unseen::between(&before, &now, &attributed);
        assert_eq!(unseen.by_code, BTreeMap::from([(133, 2), (162, 3), (207, 1)]));
        assert_eq!(unseen.count(), 6);
        assert_eq!(
            unseen.to_string(),
            "Cilium counted 6 dropped packets that droptrace did not see as its drops (XDP, bandwidth limits, ICMP \
             replies to denied packets, drop notifications that are off): Reached EDT rate-limiting drop horizon 3, \
             Policy denied 2, code 207 1"
        );
        let all = BTreeMap::from([(133, 31), (181, 2), (162, 3), (207, 1)]);
        let nothing = Unseen::between(&before, &now, &all);
        assert_eq!((nothing.count(), nothing.to_string()), (0, String::new()));
    }

    #[test]
    fn drops_without_a_code_may_be_those() {
        let mut tally = Tally::new(Metrics::from([(133, 10)]));
        let denied = Cilium { code: Some(133), ..Cilium::default() };
        tally.add(Some(&denied), 3);
        tally.add(Some(&denied), 1);
        let now = Metrics::from([(133, 14), (162, 5)]);
        let all = tally.unseen(&now);
        assert_eq!((all.by_code.clone(), all.unsaid), (BTreeMap::from([(162, 5)]), 0));
        tally.add(Some(&Cilium::default()), 1);
        tally.add(None, 2);
        let some = tally.unseen(&now).to_string();
        assert!(
            some.ends_with("horizon 5; 3 drops at tc hooks that said no code may be among them"),
            "{some}"
        );
        tally.add(None, 2);
        assert_eq!(tally.unseen(&now).to_string(), "");
    }

    #[test]
    fn a_map_that_was_made_anew_counts_from_0() {
        let unseen = Unseen::between(
            &Metrics::from([(133, 1000)]),
            &Metrics::from([(133, 3)]),
            &BTreeMap::from([(133, 1)]),
        );
        assert_eq!(unseen.by_code, BTreeMap::from([(133, 2)]));
    }
}
