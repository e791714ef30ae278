//! A filter that has no meaning, and the names that its author may have meant.

use super::Flag;

/// A filter word without meaning. The caller knows where it stands on the command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {}: {problem}", .flag.spelling(), crate::output::escape(.text))]
pub struct WordError {
    /// The flag.
    pub flag: Flag,
    /// Its value, as it was typed.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to type instead, where that is known.
    pub hint: Option<String>,
}

/// Names shown as near.
const NEAR: usize = 5;

/// At most five of `names` that are like `word`, the likest first: those that contain it, else those within
/// edits of a third of its length.
#[must_use]
pub fn near<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let word = word.to_ascii_uppercase();
    let mut found: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let upper = name.to_ascii_uppercase();
            let contained = !word.is_empty() && upper.contains(&word);
            let distance = if contained { 0 } else { distance(&word, &upper) };
            (distance <= word.len() / 3).then_some((distance, name))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().take(NEAR).map(|(_, name)| name).collect()
}

/// Levenshtein's distance in bytes: edits of one byte that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(distance("KITTEN", "SITTING"), 3);
        assert_eq!(distance("", "AB"), 2);
        assert_eq!(distance("SAME", "SAME"), 0);
    }

    #[test]
    fn near_names_come_likest_first() {
        let names = ["NO_SOCKET", "NETFILTER_DROP", "TCP_CSUM", "UDP_CSUM", "SOCKET_FILTER"];
        assert_eq!(near("no_sokcet", names), ["NO_SOCKET"]);
        assert_eq!(near("CSUM", names), ["TCP_CSUM", "UDP_CSUM"]);
        assert!(near("ZZZZ", names).is_empty());
    }
}
