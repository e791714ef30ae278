//! What a call site leaves on the kernel stack, learned from drops whose cause is known. Pure.
//!
//! The compiler decides which register holds the expression or the base chain when nft_do_chain frees a packet, and
//! where the function that frees it saves that register. Neither is written down anywhere; but with a handful of drops
//! by known rules, the words that hold the right address every time are few.
//!
//! How deep the stack is between that function and our program depends on who else looks at dropped packets: with one
//! program on the tracepoint the kernel calls it directly, with more it goes through a loop that saves registers of its
//! own. That changes while we run, so each *depth* is learned, and told apart at each drop by where the return address
//! lies.

use std::collections::BTreeMap;
use std::ops::Range;
use tracer_common::{Depth, Role, attribution_kind};

/// One drop of which the cause is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Return address of the call that freed the packet.
    pub location: u64,
    /// The kernel stack above the program's context.
    pub window: Vec<u64>,
    /// What dropped it.
    pub truth: Truth,
}

/// What dropped a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Truth {
    /// An nft rule: where its expressions are.
    Rule(Range<u64>),
    /// The policy of the base chain at this address.
    Policy(u64),
    /// The hook function with this index.
    Hook(u64),
}

impl Truth {
    fn kind(&self) -> u8 {
        match self {
            Self::Rule(_) => attribution_kind::NFT_RULE,
            Self::Policy(_) => attribution_kind::NFT_POLICY,
            Self::Hook(_) => attribution_kind::HOOK,
        }
    }

    fn is(&self, word: u64) -> bool {
        match self {
            Self::Rule(expressions) => expressions.contains(&word),
            Self::Policy(value) | Self::Hook(value) => *value == word,
        }
    }
}

/// The roles that observations prove; each list of them was made at one depth. A call site is left out at a depth
/// - if rules and policies drop there: then its address doesn't tell them apart;
/// - if fewer than two different causes were seen there (three indices): a word that never changes would pass for the
///   right one;
/// - if no word was right every time.
#[must_use]
pub fn learn(depths: &[Vec<Observation>]) -> Vec<Role> {
    let mut roles: BTreeMap<u64, Role> = BTreeMap::new();
    for observations in depths {
        let mut sites: BTreeMap<u64, Vec<&Observation>> = BTreeMap::new();
        for observation in observations {
            sites.entry(observation.location).or_default().push(observation);
        }
        for (location, seen) in sites {
            let Some((kind, depth)) = learn_site(location, &seen) else { continue };
            let role =
                roles.entry(location).or_insert(Role { location, kind: kind.into(), ..Role::default() });
            if role.depths.contains(&depth) || role.kind != u32::from(kind) {
                continue;
            }
            if let Some(free) = role.depths.iter_mut().find(|depth| depth.return_word == 0) {
                *free = depth;
            }
        }
    }
    for role in roles.values_mut() {
        let [a, b] = role.depths;
        let (near, far) = if b.return_word != 0 && b.return_word < a.return_word { (b, a) } else { (a, b) };
        // Where the farther depth has the return address in the nearer one's place, too, that tells nothing.
        let is_mistaken = |it: &Observation| {
            let at = |word: u8| it.window.get(usize::from(word)) == Some(&role.location);
            it.location == role.location
                && far.return_word != 0
                && at(far.return_word)
                && at(near.return_word)
        };
        let is_far = |seen: &&Vec<Observation>| {
            seen.iter().any(|it| it.location == role.location)
                && learn_depth(role.location, seen) == Some(far)
        };
        let unclear = depths.iter().filter(is_far).flatten().any(is_mistaken);
        role.depths = if unclear { [far, Depth::default()] } else { [near, far] };
    }
    roles.into_values().take(Role::COUNT).collect()
}

fn learn_depth(location: u64, observations: &[Observation]) -> Option<Depth> {
    let seen: Vec<_> = observations.iter().filter(|it| it.location == location).collect();
    learn_site(location, &seen).map(|(_, depth)| depth)
}

fn learn_site(location: u64, seen: &[&Observation]) -> Option<(u8, Depth)> {
    let first = seen.first()?;
    let kind = first.truth.kind();
    let different = seen
        .iter()
        .enumerate()
        .filter(|(at, it)| seen.iter().take(*at).all(|before| before.truth != it.truth));
    // An address is right by chance once in a blue moon; a small number often is.
    let enough = if kind == attribution_kind::HOOK { 3 } else { 2 };
    if seen.iter().any(|other| other.truth.kind() != kind) || different.count() < enough {
        return None;
    }
    let every = |word: usize, is_right: &dyn Fn(&Observation, u64) -> bool| {
        seen.iter().all(|it| it.window.get(word).is_some_and(|value| is_right(it, *value)))
    };
    // The return address itself is the copy farthest up: those below are arguments of the tracepoint.
    let words = 0..first.window.len();
    let return_word = words.clone().rev().find(|word| every(*word, &|_, value| value == location))?;
    let right = words.filter(|word| every(*word, &|it, value| it.truth.is(value)));
    // Near it are the registers that the freeing function saved; farther away may be leftovers.
    let value_word = right.min_by_key(|word| word.abs_diff(return_word))?;
    let depth = Depth {
        return_word: u8::try_from(return_word).ok().filter(|word| *word != 0)?,
        value_word: u8::try_from(value_word).ok()?,
    };
    Some((kind, depth))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(location: u64, window: &[u64], expressions: Range<u64>) -> Observation {
        Observation { location, window: window.to_vec(), truth: Truth::Rule(expressions) }
    }

    fn policy(location: u64, window: &[u64], chain: u64) -> Observation {
        Observation { location, window: window.to_vec(), truth: Truth::Policy(chain) }
    }

    fn hook(location: u64, window: &[u64], index: u64) -> Observation {
        Observation { location, window: window.to_vec(), truth: Truth::Hook(index) }
    }

    #[test]
    fn an_index_takes_three() {
        let seen = [0, 2, 1].map(|index| hook(7, &[1, index, 0, 7], index));
        assert_eq!(learn(&[seen.to_vec()]), [role(7, attribution_kind::HOOK, &[(3, 1)])]);
    }

    fn role(location: u64, kind: u8, depths: &[(u8, u8)]) -> Role {
        let mut role = Role { location, kind: kind.into(), ..Role::default() };
        for (to, (return_word, value_word)) in role.depths.iter_mut().zip(depths) {
            *to = Depth { return_word: *return_word, value_word: *value_word };
        }
        role
    }

    #[test]
    fn the_word_that_is_right_every_time_nearest_to_the_return_address() {
        let seen = vec![
            // Word 1 is an argument, word 2 a pointer to a rule that was right once, word 0 a leftover.
            rule(7, &[105, 7, 105, 115, 7], 100..120),
            rule(7, &[205, 7, 105, 215, 7], 200..220),
            policy(9, &[0, 9, 500], 500),
            policy(9, &[0, 9, 600], 600),
        ];
        let expected = [
            role(7, attribution_kind::NFT_RULE, &[(4, 3)]),
            role(9, attribution_kind::NFT_POLICY, &[(1, 2)]),
        ];
        assert_eq!(learn(&[seen]), expected);
    }

    #[test]
    fn each_depth_has_its_words() {
        let near = || vec![rule(7, &[0, 105, 7], 100..120), rule(7, &[0, 215, 7], 200..220)];
        let far = vec![rule(7, &[0, 7, 0, 105, 7], 100..120), rule(7, &[0, 7, 0, 215, 7], 200..220)];
        assert_eq!(learn(&[near(), far]), [role(7, attribution_kind::NFT_RULE, &[(2, 1), (4, 3)])]);
        // The same depth twice.
        assert_eq!(learn(&[near(), near()]), [role(7, attribution_kind::NFT_RULE, &[(2, 1)])]);
    }

    #[test]
    fn a_depth_that_would_be_mistaken_is_left_out() {
        let near = vec![rule(7, &[0, 105, 7], 100..120), rule(7, &[0, 215, 7], 200..220)];
        let far = vec![rule(7, &[0, 7, 7, 105, 7], 100..120), rule(7, &[0, 7, 7, 215, 7], 200..220)];
        let expected = [role(7, attribution_kind::NFT_RULE, &[(4, 3)])];
        assert_eq!(learn(&[near.clone(), far.clone()]), expected);
        assert_eq!(learn(&[far, near]), expected);
    }

    #[test]
    fn what_is_not_proven_is_not_learned() {
        let none = |seen: &[Observation]| assert_eq!(learn(&[seen.to_vec()]), []);
        // Always the same cause: any constant would do.
        none(&[rule(7, &[105, 7], 100..120), rule(7, &[105, 7], 100..120)]);
        // No word is right every time.
        none(&[rule(7, &[105, 0, 7], 100..120), rule(7, &[105, 0, 7], 200..220)]);
        // One call site for rules and policies.
        none(&[rule(7, &[105, 7], 100..120), policy(7, &[200, 7], 200)]);
        // Two indices only.
        none(&[hook(7, &[0, 1, 7], 0), hook(7, &[0, 1, 7], 1), hook(7, &[1, 1, 7], 1)]);
        // A window that was cut off, and one without the return address.
        none(&[rule(7, &[0, 105, 7], 100..120), rule(7, &[0], 200..220)]);
        none(&[rule(7, &[0, 105, 7], 100..120), rule(7, &[0, 205, 0], 200..220)]);
        none(&[]);
    }
}
