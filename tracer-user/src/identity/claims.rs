//! Who had something at a time: an address, a network namespace. Both are given to others as soon as they are free, so
//! each claim has a beginning and, later, an end.

use crate::event::model::Timestamp;
use std::collections::HashMap;
use std::hash::Hash;

/// How long after its end a claim to an address still answers, in nanoseconds, where nobody else has claimed it: packets to
/// and from a pod are dropped after it is gone.
pub const ADDRESS_KEPT: i128 = 5 * 60 * 1_000_000_000;
/// Likewise, one to a network namespace: in one that is gone nothing is dropped, and its inode number is given to the next
/// one at once, which may be nobody's that we know.
pub const NETNS_KEPT: i128 = 1_000_000_000;

/// Claims to one thing, oldest first.
type List = Vec<Claim>;

/// One claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    /// Whose: a place in the inventory.
    by: u32,
    /// From when on.
    from: Timestamp,
    /// Until when; `None` while it lasts.
    until: Option<Timestamp>,
}

/// Claims to things of one kind.
#[derive(Clone, Debug)]
pub struct Claims<K> {
    lists: HashMap<K, List>,
    /// How long a claim answers after its end, in nanoseconds.
    kept: i128,
}

impl<K: Copy + Eq + Hash> Claims<K> {
    /// None yet. They answer for `kept` nanoseconds after their end.
    #[must_use]
    pub fn new(kept: i128) -> Self {
        Self { lists: HashMap::new(), kept }
    }

    /// `by` has it. `from` is when that began at the earliest, `told` when at the latest: that counts where somebody else
    /// had it until now. Where `by` has it already nothing changes.
    pub fn open(&mut self, key: K, by: u32, from: Timestamp, told: Timestamp) {
        let list = self.lists.entry(key).or_default();
        if list.iter().any(|claim| claim.by == by && claim.until.is_none()) {
            return;
        }
        let from = if list.iter().any(|claim| claim.until.is_none()) { told } else { from };
        // Beginnings are told late and in whole seconds, ends when they happen: where they cross, the end is right.
        let ended = list.iter().filter_map(|claim| claim.until).max();
        let from = ended.map_or(from, |ended| ended.max(from));
        end_open(list, from);
        list.push(Claim { by, from, until: None });
    }

    /// `by` has it no longer.
    pub fn close(&mut self, key: K, by: u32, until: Timestamp) {
        for claim in self.lists.get_mut(&key).into_iter().flatten() {
            if claim.by == by && claim.until.is_none() {
                claim.until = Some(until.max(claim.from));
            }
        }
    }

    /// Nobody has it any longer.
    pub fn close_all(&mut self, key: K, until: Timestamp) {
        if let Some(list) = self.lists.get_mut(&key) {
            end_open(list, until);
        }
    }

    /// Who had it at that time, or had it last, not long before.
    #[must_use]
    pub fn at(&self, key: K, time: Timestamp) -> Option<u32> {
        let list = self.lists.get(&key)?;
        let claim = list.iter().rev().find(|claim| claim.from <= time)?;
        let is_its = claim.until.is_none_or(|until| time.0 <= until.0 + self.kept);
        is_its.then_some(claim.by)
    }

    /// True if somebody had it at that time and was not gone by then.
    #[must_use]
    pub fn is_held(&self, key: K, time: Timestamp) -> bool {
        let claim = self.lists.get(&key).and_then(|list| list.iter().rev().find(|claim| claim.from <= time));
        claim.is_some_and(|claim| claim.until.is_none_or(|until| time <= until))
    }

    /// True if `by` has it or has had it not long ago, and nobody else has it.
    #[must_use]
    pub fn is_last(&self, key: K, by: u32) -> bool {
        self.lists.get(&key).and_then(|list| list.last()).is_some_and(|claim| claim.by == by)
    }

    /// True if somebody has it now.
    #[must_use]
    pub fn is_open(&self, key: K) -> bool {
        self.lists.get(&key).is_some_and(|list| list.iter().any(|claim| claim.until.is_none()))
    }

    /// Forgets claims that no longer answer.
    pub fn forget(&mut self, now: Timestamp) {
        let kept = self.kept;
        self.lists.retain(|_, list| {
            list.retain(|claim| claim.until.is_none_or(|until| now.0 <= until.0 + kept));
            !list.is_empty()
        });
    }
}

/// Ends the claims that last; none ends before it began.
fn end_open(list: &mut List, until: Timestamp) {
    for claim in list.iter_mut().filter(|claim| claim.until.is_none()) {
        claim.until = Some(until.max(claim.from));
    }
}

/// Claims of pods, and those of processes outside of pods. What is a pod's is not theirs: a tool that somebody runs in a
/// pod's network namespace is seen with the pod's addresses, and so is a container elsewhere on the node that has an address
/// of its own which is also a pod's.
#[derive(Clone, Debug)]
pub struct Owners<K> {
    /// Of pods.
    pub pods: Claims<K>,
    /// Of other processes.
    pub groups: Claims<K>,
}

impl<K: Copy + Eq + Hash> Owners<K> {
    /// None yet; `kept` is [`Claims::new`]'s.
    #[must_use]
    pub fn new(kept: i128) -> Self {
        Self { pods: Claims::new(kept), groups: Claims::new(kept) }
    }

    /// The pod `by` has it ([`Claims::open`]). Processes that were seen with it before were its own, or are gone.
    pub fn open_for_pod(&mut self, key: K, by: u32, from: Timestamp, told: Timestamp) {
        self.pods.open(key, by, from, told);
        self.groups.close_all(key, from);
    }

    /// The pod that had it at that time, or had it last and nobody else since.
    #[must_use]
    pub fn pod(&self, key: K, time: Timestamp) -> Option<u32> {
        let is_others = !self.pods.is_held(key, time) && self.groups.is_held(key, time);
        self.pods.at(key, time).filter(|_| !is_others)
    }

    /// The processes outside of pods that had it at that time, where no pod had it.
    #[must_use]
    pub fn group(&self, key: K, time: Timestamp) -> Option<u32> {
        self.groups.at(key, time).filter(|_| self.pod(key, time).is_none())
    }

    /// True if somebody had it at that time and was not gone by then.
    #[must_use]
    pub fn is_held(&self, key: K, time: Timestamp) -> bool {
        self.pods.is_held(key, time) || self.groups.is_held(key, time)
    }

    /// True if the pod `by` has it, or had it last and nobody has it now.
    #[must_use]
    pub fn is_last(&self, key: K, by: u32) -> bool {
        self.pods.is_last(key, by) && (self.pods.is_open(key) || !self.groups.is_open(key))
    }

    /// Forgets claims that no longer answer.
    pub fn forget(&mut self, now: Timestamp) {
        self.pods.forget(now);
        self.groups.forget(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i128 = 1_000_000_000;

    fn at(seconds: i128) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    #[test]
    fn whoever_had_it_then_is_told() {
        let mut claims = Claims::new(300 * SECOND);
        claims.open('a', 1, at(100), at(100));
        assert_eq!(claims.at('a', at(99)), None);
        assert_eq!(claims.at('a', at(100)), Some(1));
        claims.close('a', 1, at(200));
        // Its last packets, then nobody's.
        assert_eq!(claims.at('a', at(201)), Some(1));
        assert_eq!(claims.at('a', at(501)), None);
        assert!(
            claims.is_held('a', at(150)) && !claims.is_held('a', at(201)) && !claims.is_held('a', at(99))
        );
        claims.open('a', 2, at(210), at(210));
        assert_eq!(claims.at('a', at(209)), Some(1));
        assert_eq!(claims.at('a', at(210)), Some(2));
        assert_eq!(claims.at('a', at(10_000)), Some(2));
    }

    #[test]
    fn a_new_claim_does_not_begin_before_the_old_one_ended() {
        let mut claims = Claims::new(300 * SECOND);
        claims.open('a', 1, at(100), at(100));
        claims.close('a', 1, at(200));
        // The pod was created long before it was given the address.
        claims.open('a', 2, at(150), at(150));
        assert_eq!(claims.at('a', at(180)), Some(1));
        assert_eq!(claims.at('a', at(199)), Some(1));
        assert_eq!(claims.at('a', at(200)), Some(2));
    }

    #[test]
    fn a_claim_whose_end_was_not_told_ends_where_the_next_begins() {
        let mut claims = Claims::new(300 * SECOND);
        claims.open('a', 1, at(100), at(100));
        claims.open('a', 2, at(300), at(300));
        assert_eq!(claims.at('a', at(299)), Some(1));
        assert_eq!(claims.at('a', at(300)), Some(2));
        // Told at last; it changes nothing any more.
        claims.close('a', 1, at(310));
        assert_eq!(claims.at('a', at(305)), Some(2));
        assert!(claims.is_last('a', 2) && !claims.is_last('a', 1));
    }

    #[test]
    fn a_claim_told_twice_is_one() {
        let mut claims = Claims::new(300 * SECOND);
        claims.open('a', 1, at(100), at(100));
        claims.open('a', 1, at(200), at(200));
        assert_eq!(claims.at('a', at(150)), Some(1));
    }

    #[test]
    fn old_claims_are_forgotten() {
        let mut claims = Claims::new(300 * SECOND);
        claims.open('a', 1, at(100), at(100));
        claims.close('a', 1, at(200));
        claims.forget(at(500));
        assert_eq!(claims.at('a', at(200)), Some(1));
        claims.forget(at(501));
        assert!(claims.lists.is_empty());
    }

    #[test]
    fn what_is_a_pods_is_nobody_elses() {
        let mut owners = Owners::new(300 * SECOND);
        owners.open_for_pod('a', 1, at(100), at(100));
        owners.groups.open('a', 2, at(150), at(150));
        assert_eq!((owners.pod('a', at(160)), owners.group('a', at(160))), (Some(1), None));
        assert!(owners.is_last('a', 1));
        owners.pods.close('a', 1, at(200));
        // The pod is gone, the processes are there.
        assert_eq!((owners.pod('a', at(199)), owners.group('a', at(199))), (Some(1), None));
        assert_eq!((owners.pod('a', at(201)), owners.group('a', at(201))), (None, Some(2)));
        assert!(owners.is_held('a', at(201)) && !owners.is_last('a', 1));
        owners.groups.close('a', 2, at(210));
        // Nobody has it: the pod's last packets.
        assert_eq!((owners.pod('a', at(211)), owners.group('a', at(211))), (Some(1), None));
        assert!(!owners.is_held('a', at(211)) && owners.is_last('a', 1));
    }

    #[test]
    fn processes_that_were_seen_before_their_pod_was_known_are_its_own() {
        let mut owners = Owners::new(300 * SECOND);
        owners.groups.open('a', 2, at(100), at(100));
        owners.open_for_pod('a', 1, at(99), at(101));
        owners.pods.close('a', 1, at(200));
        // Nobody has looked at the processes since.
        assert_eq!((owners.pod('a', at(201)), owners.group('a', at(201))), (Some(1), None));
    }
}
