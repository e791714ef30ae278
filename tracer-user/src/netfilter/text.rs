//! The text of rules, out of what the node's own tools print.
//!
//! Chain names and comments are whatever somebody wrote: a comment may hold quotes, line breaks and whole false rules.
//! What can't be told apart from a forgery is left out rather than guessed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A rule that `iptables-save` printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRule<'a> {
    /// Its chain.
    pub chain: &'a str,
    /// Its number in the chain, from 1.
    pub ordinal: u32,
    /// The whole rule from `-A` on. A quoted comment may contain line breaks.
    pub text: &'a str,
    /// Packets that it counted, where the tool was asked for counters.
    pub packets: Option<u64>,
}

/// The rules of the first table of an `iptables-save` listing, in its order. Ends early at a chain whose name can't be
/// told apart from what follows it (with white space in it), and at a quoted word that does not end.
pub fn saved_rules(listing: &str) -> impl Iterator<Item = SavedRule<'_>> {
    let mut ordinals: HashMap<&str, u32> = HashMap::new();
    saved_lines(listing).map_while(Line::known).filter_map(move |(line, _)| {
        let Line::Rule { text, packets } = line else { return None };
        let chain = chain_of(text)?;
        let ordinal = ordinals.entry(chain).or_default();
        *ordinal = ordinal.checked_add(1)?;
        Some(SavedRule { chain, ordinal: *ordinal, text, packets })
    })
}

/// The chain of a rule, which begins with `-A`.
fn chain_of(rule: &str) -> Option<&str> {
    rule.strip_prefix("-A ")?.split(' ').next()
}

/// Where the rules of an `iptables-save` listing begin, so that one of a hundred thousand is found at once.
#[derive(Debug, Default)]
pub struct SavedIndex {
    /// Offsets in the listing, by chain.
    chains: HashMap<Box<str>, Vec<u32>>,
}

impl SavedIndex {
    /// Of the first table of a listing. What is past its first 4 GB is left out.
    #[must_use]
    pub fn of(listing: &str) -> Self {
        let mut index = Self::default();
        for (line, at) in saved_lines(listing).map_while(Line::known) {
            let Line::Rule { text, .. } = line else { continue };
            let (Some(chain), Ok(start)) = (chain_of(text), u32::try_from(at)) else { continue };
            match index.chains.get_mut(chain) {
                Some(starts) => starts.push(start),
                None => drop(index.chains.insert(chain.into(), vec![start])),
            }
        }
        index
    }

    /// The rule with a number, from 1, of a chain. The listing is the one that this is of.
    #[must_use]
    pub fn rule<'a>(&self, listing: &'a str, chain: &str, ordinal: u32) -> Option<&'a str> {
        let nth = usize::try_from(ordinal.checked_sub(1)?).ok()?;
        let start = usize::try_from(*self.chains.get(chain)?.get(nth)?).ok()?;
        match Line::first(listing.get(start..)?) {
            (Line::Rule { text, .. }, _) => Some(text),
            _ => None,
        }
    }
}

/// The base chains of the first table of an `iptables-save` listing, with their policies, such as
/// `("FORWARD", "DROP")`.
pub fn saved_policies(listing: &str) -> impl Iterator<Item = (&str, &str)> {
    saved_chains(listing).filter(|&(_, policy)| policy != "-")
}

/// All chains of the first table of an `iptables-save` listing, with their policies: `-` for one that is no base chain.
pub(crate) fn saved_chains(listing: &str) -> impl Iterator<Item = (&str, &str)> {
    saved_lines(listing).map_while(Line::known).filter_map(|(line, _)| match line {
        Line::Chain { name, policy, .. } => Some((name, policy)),
        _ => None,
    })
}

/// As [`saved_policies`], with the packets that each policy decided.
pub fn counted_policies(listing: &str) -> impl Iterator<Item = (&str, &str, u64)> {
    saved_lines(listing).map_while(Line::known).filter_map(|(line, _)| match line {
        Line::Chain { name, policy, packets } if policy != "-" => Some((name, policy, packets)),
        _ => None,
    })
}

/// Whether the first table of an `iptables-save` listing can be read to its end, so that no rule of it is missing.
pub(crate) fn is_whole(listing: &str) -> bool {
    let last = saved_lines(listing).find(|(line, _)| matches!(line, Line::Unknown | Line::End));
    matches!(last, Some((Line::End, _)))
}

/// A line of `iptables-save`.
enum Line<'a> {
    Chain {
        name: &'a str,
        policy: &'a str,
        packets: u64,
    },
    Rule {
        text: &'a str,
        packets: Option<u64>,
    },
    /// `# comment`, `*table`, or nothing.
    Other,
    /// `COMMIT`
    End,
    /// Not what the tool prints by itself.
    Unknown,
}

impl<'a> Line<'a> {
    /// The line that `rest` begins with, and its length.
    fn first(rest: &'a str) -> (Self, usize) {
        let end = rest.find('\n').unwrap_or(rest.len());
        let (line, _) = rest.split_at(end);
        let (packets, before) = counters(line).unwrap_or_default();
        if let Some(rule) = rest.get(before..).filter(|rule| rule.starts_with("-A ")) {
            return match rule_end(rule) {
                Some(end) => {
                    (Self::Rule { text: rule.get(..end).unwrap_or_default(), packets }, before + end)
                }
                None => (Self::Unknown, end),
            };
        }
        let line = match line.as_bytes().first() {
            None | Some(b'#' | b'*') => Self::Other,
            _ if line == "COMMIT" => Self::End,
            Some(b':') => Self::chain(line).unwrap_or(Self::Unknown),
            _ => Self::Unknown,
        };
        (line, end)
    }

    /// `:CHAIN POLICY [PACKETS:BYTES]`
    fn chain(line: &'a str) -> Option<Self> {
        let (rest, counters) = line.strip_prefix(':')?.rsplit_once(' ')?;
        let counters = counters.strip_prefix('[')?.strip_suffix(']')?;
        let (name, policy) = rest.rsplit_once(' ')?;
        let numbers = counters.bytes().all(|c| c.is_ascii_digit() || c == b':');
        let packets = counters.split(':').next()?.parse().unwrap_or(0);
        (numbers && !name.contains(char::is_whitespace)).then_some(Self::Chain { name, policy, packets })
    }

    /// A line, with its place, that others may follow.
    fn known((line, at): (Self, usize)) -> Option<(Self, usize)> {
        (!matches!(line, Self::Unknown | Self::End)).then_some((line, at))
    }
}

/// The packets of `[PACKETS:BYTES] `, which a rule begins with where the tool was asked for counters, and its length.
fn counters(line: &str) -> Option<(Option<u64>, usize)> {
    let (numbers, _) = line.strip_prefix('[')?.split_once("] ")?;
    let (packets, bytes) = numbers.split_once(':')?;
    bytes.parse::<u64>().ok()?;
    Some((Some(packets.parse().ok()?), numbers.len() + "[] ".len()))
}

/// The lines of a listing, and where they begin.
fn saved_lines(listing: &str) -> impl Iterator<Item = (Line<'_>, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = listing.get(at..).filter(|rest| !rest.is_empty())?;
        let (line, end) = Line::first(rest);
        let start = at;
        // Behind the line break.
        at += end + 1;
        Some((line, start))
    })
}

/// Where the rule ends that `rest` begins with: at the first line break outside of quotes. None if a quote stays open.
fn rule_end(rest: &str) -> Option<usize> {
    // Most rules have no quotes; these are found faster than byte by byte.
    let (line, _) = rest.split_once('\n').unwrap_or((rest, ""));
    if !line.contains('"') {
        return Some(line.len());
    }
    let mut quotes = Quotes::new(Syntax::Iptables);
    match rest.bytes().position(|c| !quotes.step(c) && c == b'\n') {
        Some(end) => Some(end),
        None => (!quotes.open).then_some(rest.len()),
    }
}

/// The texts of the rules of a chain by their handles, from `nft -a list chain`: without the handle, without leading
/// white space, and with one space for each line break outside of quotes.
///
/// nft prints a comment as it is, also one with quotes and line breaks in it. Where that makes two rules look like one,
/// or gives a handle to two rules, there is no text for these handles.
#[must_use]
pub fn nft_texts(listing: &str) -> HashMap<u64, String> {
    // None: more than one rule claims the handle.
    let mut texts: HashMap<u64, Option<String>> = HashMap::new();
    let mut claim = |handle, text: Option<String>| match texts.entry(handle) {
        Entry::Vacant(entry) => drop(entry.insert(text)),
        Entry::Occupied(mut entry) => drop(entry.insert(None)),
    };
    let mut rule = String::new();
    let mut quotes = Quotes::new(Syntax::Nft);
    // Handles at line ends within quotes: a comment's words, or the real end of a rule whose comment has a quote.
    let mut doubtful = Vec::new();
    for line in listing.lines() {
        if !quotes.open && matches!(line, "\t}" | "}") {
            rule.clear();
            continue;
        }
        if rule.is_empty() && !quotes.open {
            if !line.starts_with("\t\t") || is_header(line.trim_start()) {
                continue;
            }
            rule.push_str(line.trim_start());
        } else if quotes.open {
            rule.push('\n');
            rule.push_str(line);
        } else {
            // A line that goes on, such as that of a long set.
            rule.push(' ');
            rule.push_str(line.trim_start());
        }
        for c in line.bytes() {
            quotes.step(c);
        }
        let handle = handle_at_end(line);
        if quotes.open {
            doubtful.extend(handle);
        } else if let Some(handle) = handle {
            let text = rule.rfind(" # handle ").and_then(|end| rule.get(..end)).map(str::to_owned);
            claim(handle, text.filter(|_| doubtful.is_empty()));
            for handle in doubtful.drain(..) {
                claim(handle, None);
            }
            rule.clear();
        }
    }
    for handle in doubtful {
        claim(handle, None);
    }
    texts.into_iter().filter_map(|(handle, text)| Some((handle, text?))).collect()
}

/// A chain's own line: `type filter hook input priority filter; policy accept;` or its comment.
fn is_header(line: &str) -> bool {
    handle_at_end(line).is_none()
        && (line.starts_with("type ") || line.starts_with("comment ") || line.ends_with(';'))
}

/// N of a line that ends in ` # handle N`.
fn handle_at_end(line: &str) -> Option<u64> {
    let (_, handle) = line.rsplit_once(" # handle ")?;
    handle.bytes().all(|c| c.is_ascii_digit()).then(|| handle.parse().ok())?
}

/// How a rule is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `-A CHAIN ...`. Words with unusual letters are in double quotes, and `\`, `"` and `'` in them have a `\` before
    /// them (xtables_save_string, libxtables/xtables.c of iptables). Names of chains and devices never are.
    Iptables,
    /// As `nft` prints it: strings are in double quotes, nothing in them is escaped.
    Nft,
}

impl Syntax {
    pub(super) fn of(rule: &str) -> Self {
        if rule.starts_with("-A ") { Self::Iptables } else { Self::Nft }
    }
}

/// Follows the quotes of a rule, byte by byte.
struct Quotes {
    syntax: Syntax,
    open: bool,
    escaped: bool,
    last: u8,
}

impl Quotes {
    fn new(syntax: Syntax) -> Self {
        Self { syntax, open: false, escaped: false, last: b' ' }
    }

    /// Whether this byte is in quotes; the quotes themselves are.
    fn step(&mut self, c: u8) -> bool {
        let was_open = self.open;
        if self.escaped {
            self.escaped = false;
        } else if self.open {
            self.escaped = c == b'\\' && self.syntax == Syntax::Iptables;
            self.open = c != b'"';
        } else {
            // Only after a space: the name of a chain or a device may have a quote in it.
            self.open = c == b'"' && (self.syntax == Syntax::Nft || self.last == b' ');
        }
        self.last = c;
        was_open || self.open
    }
}

/// The words of a rule, at most [`MAX_WORDS`]. A quoted word is one word, with its quotes.
pub(super) fn words(rule: &str) -> impl Iterator<Item = &str> {
    let mut quotes = Quotes::new(Syntax::of(rule));
    rule.split(move |c: char| {
        // Only ASCII decides; any byte stands for the others.
        let quoted = quotes.step(u8::try_from(c).unwrap_or(b'?'));
        !quoted && c.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
    .take(MAX_WORDS)
}

/// Most words of a rule that are looked at; a set in a rule may have any number.
pub(super) const MAX_WORDS: usize = 4096;

/// A rule's comments, without quotes and escapes.
pub(crate) fn comments(rule: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let syntax = Syntax::of(rule);
    let option = match syntax {
        Syntax::Iptables => "--comment",
        Syntax::Nft => "comment",
    };
    after(rule, move |word| word == option).map(move |word| unquoted(word, syntax))
}

/// The chains that a rule jumps or goes to. For iptables also other targets, such as `DROP`.
pub(crate) fn targets(rule: &str) -> impl Iterator<Item = &str> {
    let options = match Syntax::of(rule) {
        Syntax::Iptables => ["-j", "-g"],
        Syntax::Nft => ["jump", "goto"],
    };
    // In a verdict map a comma follows.
    after(rule, move |word| options.contains(&word)).map(|word| word.trim_end_matches(','))
}

/// The words that follow a word.
pub(crate) fn after(rule: &str, mut wanted: impl FnMut(&str) -> bool) -> impl Iterator<Item = &str> {
    let mut follows = false;
    words(rule).filter(move |word| std::mem::replace(&mut follows, wanted(word)))
}

fn unquoted(word: &str, syntax: Syntax) -> Cow<'_, str> {
    let Some(inner) = word.strip_prefix('"') else { return Cow::Borrowed(word) };
    let inner = inner.strip_suffix('"').unwrap_or(inner);
    if syntax == Syntax::Nft || !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut escaped = false;
    Cow::Owned(
        inner
            .chars()
            .filter(|&c| {
                escaped = c == '\\' && !escaped;
                !escaped
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTER: &str = include_str!("fixtures/kube-proxy-filter.save");
    const NAT: &str = include_str!("fixtures/kube-proxy-nat.save");
    const CHAINS: &str = include_str!("fixtures/kube-proxy-chains.nft");

    /// As iptables-nft-save 1.8.9 printed it, with comments that hold a false rule, chain and end.
    const HOSTILE: &str = r#"*filter
:INPUT DROP [0:0]
:a"b - [0:0]
-A INPUT -m comment --comment "x\" foo
-A INPUT -j ACCEPT
:FORWARD ACCEPT [0:0]
COMMIT
\\" -j DROP
-A INPUT -m comment --comment "\"" -j RETURN
-A a"b -i e"th -m comment --comment plain
-A INPUT -j QUEUE
COMMIT
*nat
:OUTPUT ACCEPT [0:0]
-A INPUT -j MARK
COMMIT
"#;

    fn saved_rule<'a>(listing: &'a str, chain: &str, ordinal: u32) -> Option<&'a str> {
        SavedIndex::of(listing).rule(listing, chain, ordinal)
    }

    #[test]
    fn a_saved_rule_is_found_by_chain_and_number() {
        assert_eq!(
            saved_rule(FILTER, "KUBE-FIREWALL", 1),
            Some(
                "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet \
                 connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
            )
        );
        let rule = saved_rule(FILTER, "KUBE-EXTERNAL-SERVICES", 4).unwrap();
        assert!(
            rule.contains("pay/lb-remote-local:http has no local endpoints") && rule.ends_with("-j DROP")
        );
        assert_eq!(saved_rule(FILTER, "INPUT", 1), Some("-A INPUT -j KUBE-FIREWALL"));
        for (chain, ordinal) in [("INPUT", 0), ("INPUT", 5), ("KUBE-PROXY-CANARY", 1), ("NONE", 1), ("", 1)] {
            assert_eq!(saved_rule(FILTER, chain, ordinal), None);
        }
        // A chain is not found by the beginning of its name.
        assert_eq!(saved_rule(FILTER, "KUBE", 1), None);
        assert_eq!(
            saved_rules(FILTER).count(),
            FILTER.lines().filter(|line| line.starts_with("-A ")).count()
        );
        for listing in [FILTER, NAT, HOSTILE] {
            for rule in saved_rules(listing) {
                assert_eq!(saved_rule(listing, rule.chain, rule.ordinal), Some(rule.text));
            }
        }
        let last = saved_rules(NAT).last().unwrap();
        assert_eq!((last.chain, last.ordinal), ("KUBE-SVC-HMFGOEA42SZG2MM4", 5));
    }

    #[test]
    fn counters_come_before_rules_and_behind_policies() {
        let listing = "*filter\n:FORWARD DROP [7:420]\n:X - [0:0]\n[3:180] -A FORWARD -m comment --comment \"[9:9] -A\nX\" \
                       -j DROP\n[12:0] -A FORWARD -j X\nCOMMIT\n";
        let rules: Vec<_> = saved_rules(listing).map(|rule| (rule.ordinal, rule.packets)).collect();
        assert_eq!(rules, [(1, Some(3)), (2, Some(12))]);
        assert_eq!(saved_rule(listing, "FORWARD", 2), Some("-A FORWARD -j X"));
        assert_eq!(counted_policies(listing).collect::<Vec<_>>(), [("FORWARD", "DROP", 7)]);
        assert!(is_whole(listing) && !is_whole("*filter\n[3:x] -A FORWARD -j X\nCOMMIT\n"));
        assert_eq!(saved_rules(FILTER).next().and_then(|rule| rule.packets), None);
    }

    #[test]
    fn policies_are_those_of_base_chains() {
        let policies: Vec<_> = saved_policies(FILTER).collect();
        assert_eq!(policies, [("INPUT", "ACCEPT"), ("FORWARD", "ACCEPT"), ("OUTPUT", "ACCEPT")]);
        assert_eq!(saved_policies(HOSTILE).collect::<Vec<_>>(), [("INPUT", "DROP")]);
        assert_eq!(saved_chains(HOSTILE).collect::<Vec<_>>(), [("INPUT", "DROP"), ("a\"b", "-")]);
        assert_eq!(saved_chains(FILTER).count(), 10);
    }

    #[test]
    fn a_comment_is_no_rule() {
        let rules: Vec<_> = saved_rules(HOSTILE).map(|rule| (rule.chain, rule.ordinal)).collect();
        assert_eq!(rules, [("INPUT", 1), ("INPUT", 2), ("a\"b", 1), ("INPUT", 3)]);
        let first = saved_rule(HOSTILE, "INPUT", 1).unwrap();
        assert!(first.starts_with("-A INPUT -m comment") && first.ends_with("\\\\\" -j DROP"), "{first}");
        assert_eq!(saved_rule(HOSTILE, "INPUT", 3), Some("-A INPUT -j QUEUE"));
    }

    #[test]
    fn what_cannot_be_told_apart_ends_a_listing() {
        // A chain with a line break or a space in its name.
        for name in ["x\n-A INPUT -j ACCEPT\n:y", "x y"] {
            let listing = format!("*filter\n:INPUT ACCEPT [0:0]\n:{name} - [0:0]\n-A INPUT -j DROP\n");
            assert_eq!(saved_rules(&listing).count(), 0);
        }
        let listing = "-A INPUT -j DROP\n-A INPUT -m comment --comment \"never ends\n-A INPUT -j ACCEPT\n";
        assert_eq!(saved_rules(listing).count(), 1);
        for nothing in ["", "\n", "-A", "-A ", ":", ": [", "\"", "COMMIT", "iptables: no such table\n"] {
            assert!(saved_rules(nothing).all(|rule| rule.chain.is_empty()), "{nothing:?}");
            assert_eq!(saved_policies(nothing).count(), 0);
            assert_eq!(is_whole(nothing), nothing == "COMMIT", "{nothing:?}");
        }
        assert!(is_whole(HOSTILE) && is_whole(FILTER));
        // Cut off, but for a comment.
        for listing in
            ["*filter\n:INPUT DROP [0:0]\n", "-A INPUT -m comment --comment \"\nCOMMIT\n\" -j DROP\n"]
        {
            assert!(!is_whole(listing));
        }
    }

    #[test]
    fn an_nft_rule_is_found_by_its_handle() {
        let texts = nft_texts(CHAINS);
        assert_eq!(
            texts[&76],
            "ip daddr @cluster-ips ip saddr != 10.244.0.0/16 meta mark set meta mark | 0x00004000 comment \
             \"masquerade clusterIP traffic from outside cluster\""
        );
        assert_eq!(texts[&156], "goto local-DPUVSPFG-pay/local-nodeport/tcp/http");
        assert_eq!(texts[&70], "jump services");
        // The handles of chains (12, 6 ...) are not those of rules.
        let mut handles: Vec<_> = texts.into_keys().collect();
        handles.sort_unstable();
        assert_eq!(handles, [70, 76, 77, 78, 79, 80, 129, 130, 132, 153, 154, 155, 156]);
    }

    fn chain(rules: &str) -> HashMap<u64, String> {
        nft_texts(&format!(
            "table inet w {{\n\tchain c {{ # handle 1\n\t\tcomment \"a # chain\"\n\t\ttype filter hook input priority \
             filter; policy accept;\n{rules}\n\t}}\n}}\n"
        ))
    }

    #[test]
    fn nft_rules_of_all_shapes() {
        let texts = chain(
            "\t\ttcp dport { 1, 2 } drop comment \"x # handle 9\" # handle 3\n\
             \t\taccept comment \"a\nb\" # handle 6\n\
             \t\t counter packets 0 bytes 0 drop # handle 7\n\
             \t\ttcp dport vmap { 80 : jump d,\n\t\t\t\t 81 : drop } # handle 8\n\
             \t\ttype accept # handle 10",
        );
        let expected = [
            (3, "tcp dport { 1, 2 } drop comment \"x # handle 9\""),
            (6, "accept comment \"a\nb\""),
            (7, "counter packets 0 bytes 0 drop"),
            (8, "tcp dport vmap { 80 : jump d, 81 : drop }"),
            (10, "type accept"),
        ];
        assert_eq!(texts, expected.map(|(handle, text)| (handle, text.to_owned())).into());
    }

    #[test]
    fn a_comment_gives_no_other_rule_its_text() {
        // Rule 5's comment is `x" # handle 5\n\t\taccept # handle 9\n\t\tdrop comment "`: nft escapes nothing.
        let forged =
            "\t\tdrop comment \"x\" # handle 5\n\t\taccept # handle 9\n\t\tdrop comment \"\" # handle 5";
        let real = "\t\tdrop # handle 9\n\t\tcounter # handle 11";
        let texts = chain(&format!("{forged}\n{real}"));
        assert_eq!(texts, HashMap::from([(11, "counter".to_owned())]));
        // One whose quote does not end swallows the next rules; they have no text then.
        let texts = chain(
            "\t\tdrop # handle 3\n\t\tdrop comment \"x\" y\" # handle 5\n\t\tdrop comment \"z\" # handle 9\n\
             \t\tdrop # handle 10",
        );
        assert_eq!(texts, HashMap::from([(3, "drop".to_owned())]));
        // A line break within quotes, with a false end.
        let texts = chain("\t\tdrop comment \"a # handle 7\nb\" # handle 5\n\t\taccept # handle 7");
        assert_eq!(texts, HashMap::new());
        for nothing in
            ["", "\t\t", "\t\t # handle 5", "\t\tx # handle 99999999999999999999999", "\t\tx # handle -1"]
        {
            assert_eq!(nft_texts(nothing), HashMap::new(), "{nothing:?}");
        }
    }

    #[test]
    fn words_of_a_rule() {
        let rule = r#"-A a"b -m comment --comment "two \" words\\" -m comment --comment one -j x"y"#;
        assert_eq!(words(rule).nth(1), Some("a\"b"));
        assert_eq!(comments(rule).collect::<Vec<_>>(), ["two \" words\\", "one"]);
        assert_eq!(targets(rule).collect::<Vec<_>>(), ["x\"y"]);
        let rule = "ip saddr vmap { 1.1.1.1 : jump a, 1.1.1.2 : goto b/c } comment \"jump d\\\"";
        assert_eq!(comments(rule).collect::<Vec<_>>(), ["jump d\\"]);
        assert_eq!(targets(rule).collect::<Vec<_>>(), ["a", "b/c"]);
        assert_eq!(words("-A \u{e9}\u{22}\u{1f980} -j").count(), 3);
        assert_eq!(words(&"x ".repeat(1_000_000)).count(), MAX_WORDS);
    }

    #[test]
    fn any_cut_of_a_listing_is_read() {
        for listing in [HOSTILE, CHAINS] {
            let whole = nft_texts(listing);
            for end in 0..=listing.len() {
                let (cut, rest) = listing.split_at(end);
                let rules = saved_rules(cut).count();
                assert!(rules <= saved_rules(listing).count() + 1);
                // What is found in a part is what the whole has, but for a handle whose last digits were cut off.
                let found =
                    nft_texts(cut).into_iter().filter(|(handle, text)| whole.get(handle) != Some(text));
                assert!(found.count() <= 1, "{end}");
                assert!(words(rest).count() <= MAX_WORDS);
                assert!(comments(rest).count() + targets(rest).count() <= MAX_WORDS);
            }
        }
    }
}
