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
use tracer_common::{Depth, NEAR_WORDS, Role, attribution_kind, lead, state_path};

/// One drop of which the cause is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Return address of the call that freed the packet.
    pub location: u64,
    /// The return address of the function that freed it, if that is known.
    pub caller: Option<u64>,
    /// The kernel stack above the program's context.
    pub window: Vec<u64>,
    /// The stack below it, the lowest word first.
    pub below: Vec<u64>,
    /// Where its first words lead ([`lead`]).
    pub leads: Vec<u8>,
    /// The hook that it was dropped on (NF_INET_*).
    pub hook: u8,
    /// Where the functions were that it was on its way through (struct nf_hook_entries), if that is known.
    pub entries: Option<u64>,
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
/// - if fewer than two different causes were seen there: a word that never changes would pass for the right one. An index
///   takes three; with fewer the hook state alone may be learned, from two hooks;
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
    if seen.iter().any(|other| other.truth.kind() != kind) {
        return None;
    }
    let is_enough = different.count() >= enough;
    let has_hooks = seen.iter().any(|it| it.hook != first.hook);
    if !is_enough && (kind != attribution_kind::HOOK || !has_hooks) {
        return None;
    }
    let every = |word: usize, is_right: &dyn Fn(&Observation, u64) -> bool| {
        seen.iter().all(|it| it.window.get(word).is_some_and(|value| is_right(it, *value)))
    };
    // The return address itself is the copy farthest up: those below are arguments of the tracepoint, those far above are
    // leftovers.
    let words = 0..first.window.len().min(NEAR_WORDS);
    let return_word = words.clone().rev().find(|word| every(*word, &|_, value| value == location))?;
    // Word 0 stands for none.
    let right = words.filter(|word| *word != 0 && every(*word, &|it, value| it.truth.is(value)));
    let caller = || learn_caller(seen, return_word).map(|word| (word, state_path::CALLER));
    let (value_word, state) = if !is_enough {
        (0, Some(learn_state(seen).or_else(caller)?))
    } else if kind == attribution_kind::HOOK {
        let (word, state) = learn_hook(seen, right, return_word)?;
        (word, state.or_else(caller))
    } else {
        // Near it are the registers that the freeing function saved; farther away may be leftovers.
        let word = right.into_iter().min_by_key(|word| word.abs_diff(return_word))?;
        (word, caller())
    };
    let (state_word, state_path) = state.unwrap_or((0, state_path::NONE));
    let entries_word =
        if kind == attribution_kind::HOOK { learn_entries(seen, value_word).unwrap_or(0) } else { 0 };
    let depth = Depth {
        return_word: u8::try_from(return_word).ok().filter(|word| *word != 0)?,
        value_word: u8::try_from(value_word).ok()?,
        state_word: u8::try_from(state_word).ok()?,
        state_path,
        entries_word,
        ..Depth::NONE
    };
    Some((kind, depth))
}

/// A word of the stack, and how it leads to the hook state.
type State = (usize, u8);

/// The word with the index of the hook function, and the one that points to the hook state.
///
/// The hook function that was called just before has saved the same registers in about the same place, so leftovers of
/// either are common (seen on 7.2). But nf_hook_slow keeps both in registers, which are saved side by side: of all words
/// that were right every time, the two nearest to each other. Leftover states give themselves away by their hook, so there
/// must have been several.
fn learn_hook(
    seen: &[&Observation],
    indices: impl Iterator<Item = usize>,
    return_word: usize,
) -> Option<(usize, Option<State>)> {
    let indices: Vec<usize> = indices.collect();
    let pairs = states(seen).flat_map(|state| indices.iter().map(move |index| (*index, state)));
    let pair = pairs.min_by_key(|(index, state)| (index.abs_diff(*state), index.abs_diff(return_word)));
    match pair {
        Some((index, state)) => Some((index, Some((state, state_path::STATE)))),
        None => Some((indices.into_iter().min_by_key(|word| word.abs_diff(return_word))?, None)),
    }
}

/// The words that point to the hook state every time; none if all were on one hook.
fn states(seen: &[&Observation]) -> impl Iterator<Item = usize> {
    let hooks = seen.first().filter(|first| seen.iter().any(|it| it.hook != first.hook));
    let words = hooks.map_or(0, |first| first.leads.len());
    let leads = |it: &Observation, word: usize| it.leads.get(word) == Some(&lead(state_path::STATE, it.hook));
    (0..words).filter(move |word| seen.iter().all(|it| leads(it, *word)))
}

/// The word that points to the hook functions. The function that frees the packet saves that register beside the one with
/// the index, six at most. Or none on the way to our program needs it (seen on 6.18): then our program has saved it, and it
/// lies below the context; of several words there one is a leftover. `None` if the functions were always the same ones.
fn learn_entries(seen: &[&Observation], index_word: usize) -> Option<i8> {
    const SAVED: usize = 6;
    let first = seen.first()?;
    if index_word == 0 || seen.iter().all(|it| it.entries == first.entries) {
        return None;
    }
    let is_right = |word: usize| {
        seen.iter().all(|it| it.entries.is_some() && it.window.get(word).copied() == it.entries)
    };
    let near = index_word.saturating_sub(SAVED - 1).max(1)..index_word + SAVED;
    let above = near.filter(|word| is_right(*word)).min_by_key(|word| word.abs_diff(index_word));
    if let Some(above) = above {
        return i8::try_from(above).ok();
    }
    let is_right =
        |word: usize| seen.iter().all(|it| it.entries.is_some() && it.below.get(word).copied() == it.entries);
    let mut below = (0..first.below.len()).filter(|word| is_right(*word));
    match (below.next(), below.next()) {
        (Some(word), None) => {
            i8::try_from(word).ok()?.checked_sub_unsigned(u8::try_from(first.below.len()).ok()?)
        }
        _ => None,
    }
}

/// The word that points to the hook state, without an index beside it to tell it from leftovers: only if there is no other.
fn learn_state(seen: &[&Observation]) -> Option<State> {
    let mut words = states(seen);
    match (words.next(), words.next()) {
        (Some(word), None) => Some((word, state_path::STATE)),
        _ => None,
    }
}

/// Where the return address of the function that freed the packet lies: its caller's frame, which holds the nft_pktinfo or
/// the hook state, begins above. Leftovers of it are elsewhere each time; if one is not, nothing is proven.
fn learn_caller(seen: &[&Observation], return_word: usize) -> Option<usize> {
    let is_right =
        |word: usize| seen.iter().all(|it| it.caller.is_some() && it.window.get(word).copied() == it.caller);
    let mut words = (return_word + 1..seen.first()?.window.len()).filter(|word| is_right(*word));
    match (words.next(), words.next()) {
        (Some(word), None) => Some(word),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(location: u64, window: &[u64], truth: Truth) -> Observation {
        let (window, below) = (window.to_vec(), Vec::new());
        Observation {
            location,
            caller: None,
            window,
            below,
            leads: Vec::new(),
            hook: 0,
            entries: None,
            truth,
        }
    }

    fn rule(location: u64, window: &[u64], expressions: Range<u64>) -> Observation {
        observation(location, window, Truth::Rule(expressions))
    }

    fn policy(location: u64, window: &[u64], chain: u64) -> Observation {
        observation(location, window, Truth::Policy(chain))
    }

    fn hook(location: u64, window: &[u64], index: u64) -> Observation {
        observation(location, window, Truth::Hook(index))
    }

    /// A drop on a hook, freed at 7, with index and return address in words 1 and 3.
    fn on(hook: u8, leads: &[(u8, u8)]) -> Observation {
        let index = u64::from(hook);
        Observation {
            leads: leads.iter().map(|(path, hook)| lead(*path, *hook)).collect(),
            hook,
            ..observation(7, &[0, index, 0, 7], Truth::Hook(index))
        }
    }

    fn state(seen: &[Observation]) -> (u8, u8) {
        let [role] = learn(&[seen.to_vec()])[..] else { panic!("not learned") };
        (role.depths[0].state_word, role.depths[0].state_path)
    }

    #[test]
    fn the_hook_state_where_its_word_is_right_on_every_hook() {
        use state_path::{NONE, PKTINFO, STATE};
        let none = (NONE, 0);
        // Word 0 is a leftover of hook 1, word 1 leads there by way of a leftover.
        let leads = |hook| [(STATE, 1), (PKTINFO, hook), none, none, (STATE, hook)];
        let seen = [1, 2, 3].map(|hook| on(hook, &leads(hook)));
        assert_eq!(state(&seen), (4, STATE));
        // The one beside the index; of several indices the one beside the state, far from the return address.
        let seen = [1, 2, 3].map(|hook| on(hook, &[(STATE, hook), none, none, none, (STATE, hook)]));
        assert_eq!(state(&seen), (0, STATE));
        let leftovers = |hook: u8| {
            let index = u64::from(hook);
            let window = vec![0, index, 0, 0, index, 7];
            Observation { window, ..on(hook, &[none, none, (STATE, hook)]) }
        };
        let [role] = learn(&[[1, 2, 3].map(leftovers).to_vec()])[..] else { panic!("not learned") };
        assert_eq!((role.depths[0].value_word, role.depths[0].state_word), (1, 2));
        // On one hook only, or without leads, nothing is proven.
        let seen = [1, 2, 3].map(|index| Observation { hook: 1, ..on(index, &[(STATE, 1)]) });
        assert_eq!(state(&seen), (0, NONE));
        assert_eq!(state(&[1, 2, 3].map(|hook| on(hook, &[]))), (0, NONE));
        // Where no register has it, it is in the caller's frame.
        let called = |hook: u8| {
            let window = vec![0, u64::from(hook), 0, 7, 5, 9];
            Observation { caller: Some(9), window, ..on(hook, &[]) }
        };
        assert_eq!(state(&[1, 2, 3].map(called)), (5, state_path::CALLER));
    }

    #[test]
    fn the_one_place_of_the_callers_return_address() {
        use state_path::{CALLER, NONE};
        let seen = |windows: [&[u64]; 2]| {
            let rule = |base, window| rule(7, window, base..base + 20);
            let seen = [rule(100, windows[0]), rule(200, windows[1])];
            seen.map(|it| Observation { caller: Some(9), ..it })
        };
        // Word 0 is below the function's own return address, word 3 a leftover.
        assert_eq!(state(&seen([&[9, 105, 7, 9, 9], &[9, 205, 7, 0, 9]])), (4, CALLER));
        assert_eq!(state(&seen([&[9, 105, 7, 9, 9], &[9, 205, 7, 9, 9]])), (0, NONE));
        let unknown =
            seen([&[9, 105, 7, 0, 9], &[9, 205, 7, 0, 9]]).map(|it| Observation { caller: None, ..it });
        assert_eq!(state(&unknown), (0, NONE));
    }

    #[test]
    fn the_functions_beside_the_index() {
        let seen = |windows: [&[u64]; 3]| {
            let with = |(entries, window): (u64, &[u64])| Observation {
                entries: Some(entries),
                ..hook(7, window, entries - 100)
            };
            let seen: Vec<_> = [100, 101, 102].into_iter().zip(windows).map(with).collect();
            learn(&[seen])[0].depths[0].entries_word
        };
        assert_eq!(seen([&[0, 0, 7, 9, 100], &[0, 1, 7, 9, 101], &[0, 2, 7, 9, 102]]), 4);
        // Wrong once, or too far away to have been saved with the index.
        assert_eq!(seen([&[0, 0, 7, 9, 100], &[0, 1, 7, 9, 101], &[0, 2, 7, 9, 101]]), 0);
        let far = |index: u64| [0, index, 7, 9, 9, 9, 9, 100 + index];
        assert_eq!(seen([&far(0), &far(1), &far(2)]), 0);
        // Below the context, if in one place only.
        let below = |words: &dyn Fn(u64) -> Vec<u64>| {
            let seen = [0, 1, 2].map(|index| Observation {
                entries: Some(100 + index),
                below: words(index),
                ..hook(7, &[0, index, 7, 9], index)
            });
            learn(&[seen.to_vec()])[0].depths[0].entries_word
        };
        assert_eq!(below(&|index| vec![9, 100 + index, 9]), -2);
        assert_eq!(below(&|index| vec![100 + index, 100 + index, 9]), 0);
        // The same ones every time, or not known.
        let same =
            [0, 1, 2].map(|index| Observation { entries: Some(50), ..hook(7, &[0, index, 7, 50], index) });
        assert_eq!(learn(&[same.to_vec()])[0].depths[0].entries_word, 0);
        let unknown = [0, 1, 2].map(|index| hook(7, &[0, index, 7, 50], index));
        assert_eq!(learn(&[unknown.to_vec()])[0].depths[0].entries_word, 0);
    }

    #[test]
    fn an_index_takes_three() {
        let seen = [0, 2, 1].map(|index| hook(7, &[1, index, 0, 7], index));
        assert_eq!(learn(&[seen.to_vec()]), [role(7, attribution_kind::HOOK, &[(3, 1)])]);
    }

    #[test]
    fn the_hook_state_without_an_index() {
        use state_path::{CALLER, NONE, STATE};
        let none = (NONE, 0);
        // The same index on two hooks.
        let on = |hook: u8, leads: &[(u8, u8)]| Observation { truth: Truth::Hook(0), ..on(hook, leads) };
        let learned = |seen: &[Observation]| learn(&[seen.to_vec()]).first().map(|role| role.depths[0]);
        let depth = |state_word, state_path| Depth { return_word: 3, state_word, state_path, ..Depth::NONE };
        let one = [1, 3].map(|hook| on(hook, &[none, none, (STATE, hook)]));
        assert_eq!(learned(&one), Some(depth(2, STATE)));
        // Two words lead there: one is a leftover.
        let two = [1, 3].map(|hook| on(hook, &[(STATE, hook), none, (STATE, hook)]));
        assert_eq!(learned(&two), None);
        let called = [1, 3].map(|hook| {
            let window = vec![0, 0, 0, 7, u64::from(hook), 90 + u64::from(hook)];
            Observation { caller: Some(90 + u64::from(hook)), window, ..on(hook, &[]) }
        });
        assert_eq!(learned(&called), Some(depth(5, CALLER)));
        assert_eq!(learned(&[called[0].clone(), called[0].clone()]), None);
    }

    fn role(location: u64, kind: u8, depths: &[(u8, u8)]) -> Role {
        let mut role = Role { location, kind: kind.into(), ..Role::default() };
        for (to, (return_word, value_word)) in role.depths.iter_mut().zip(depths) {
            *to = Depth { return_word: *return_word, value_word: *value_word, ..Depth::default() };
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
    fn what_lies_far_above_is_a_leftover() {
        let far = |value| {
            let mut window = vec![0, value, 7];
            window.resize(NEAR_WORDS, 0);
            [window, vec![7, value]].concat()
        };
        let seen = [rule(7, &far(105), 100..120), rule(7, &far(215), 200..220)];
        assert_eq!(learn(&[seen.to_vec()]), [role(7, attribution_kind::NFT_RULE, &[(2, 1)])]);
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
