//! Which rules set the mark that a rule matched.

use std::collections::HashSet;

use super::model::RuleRef;
use super::text::{self, Syntax};

/// Most answers.
const MOST: usize = 16;

/// A rule of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Its table.
    pub table: &'a str,
    /// Its chain.
    pub chain: &'a str,
    /// As [`super::model::Netfilter::rule`].
    pub rule: Option<u32>,
    /// As [`super::model::Netfilter::handle`].
    pub handle: Option<u64>,
    /// As [`super::model::Netfilter::text`].
    pub text: &'a str,
}

/// The rules that may have set the mark by which `blamed`, a rule's text, matched a packet with the mark `packet_mark`.
/// `rules` are all rules of its network namespace and family. Those that certainly set a bit as it was matched come first,
/// then those that may (by exclusive or, or from another mark), then those that jump to a chain which only does that. At most
/// 16; none if `blamed` matches no mark.
///
/// Where the matched bits of the packet's mark are not all zero, only who sets a one of them counts: zero is what a mark
/// is from the start. A connection's mark is not known; there every rule counts that may have set it as it was matched.
#[must_use]
pub fn set_by(blamed: &str, packet_mark: u32, rules: &[Listed<'_>]) -> Vec<RuleRef> {
    let wanted = Wanted::of(blamed, packet_mark);
    if wanted.iter().all(|wanted| wanted.mask == 0) {
        return Vec::new();
    }
    let sets: Vec<Sets> = rules.iter().map(|rule| Sets::of(rule.text, &wanted)).collect();
    let certain = rules.iter().zip(&sets).filter(|&(_, &sets)| sets == Sets::Certainly);
    let possible = rules.iter().zip(&sets).filter(|&(_, &sets)| sets == Sets::Perhaps);
    let chains = marking_chains(rules, &sets);
    let jumps = rules
        .iter()
        .zip(&sets)
        .filter(|(rule, _)| text::targets(rule.text).any(|target| chains.contains(&(rule.table, target))));
    certain.chain(possible).chain(jumps).take(MOST).map(|(rule, _)| reference(rule)).collect()
}

fn reference(rule: &Listed<'_>) -> RuleRef {
    RuleRef {
        table: rule.table.to_owned(),
        chain: rule.chain.to_owned(),
        rule: rule.rule,
        handle: rule.handle,
        text: Some(rule.text.to_owned()),
    }
}

/// The chains, as (table, chain), whose rules all write marks, and at least one of them a wanted one.
fn marking_chains<'a>(rules: &[Listed<'a>], sets: &[Sets]) -> HashSet<(&'a str, &'a str)> {
    let place = |rule: &Listed<'a>| (rule.table, rule.chain);
    let with = |wanted: fn(Sets) -> bool| {
        rules.iter().zip(sets).filter(move |&(_, &sets)| wanted(sets)).map(move |(rule, _)| place(rule))
    };
    let others: HashSet<_> = with(|sets| sets == Sets::Nothing).collect();
    with(|sets| matches!(sets, Sets::Certainly | Sets::Perhaps))
        .filter(|chain| !others.contains(chain))
        .collect()
}

/// Which mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Packet,
    Connection,
}

/// The bits of a mark that were matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    mark: Mark,
    mask: u32,
    /// Their values, and of which bits they are known.
    value: u32,
    known: u32,
}

impl Wanted {
    /// What a rule matched, of the packet's and of the connection's mark.
    fn of(blamed: &str, packet_mark: u32) -> [Self; 2] {
        let matches = matches(blamed);
        let of = |mark| matches.iter().filter(move |found| found.mark == mark);
        let packet = of(Mark::Packet).fold(0, |mask, found| mask | found.mask);
        let mut connection = Self { mark: Mark::Connection, mask: 0, value: 0, known: 0 };
        for found in of(Mark::Connection) {
            connection.mask |= found.mask;
            if let Some(value) = found.equal {
                connection.known |= found.mask;
                connection.value |= value & found.mask;
            }
        }
        [Self { mark: Mark::Packet, mask: packet, value: packet_mark & packet, known: packet }, connection]
    }

    /// The bits that somebody has to have set.
    fn bits(&self) -> u32 {
        let ones = self.value | (self.mask & !self.known);
        if ones == 0 { self.mask } else { ones }
    }
}

/// What a rule does with the wanted bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sets {
    Certainly,
    Perhaps,
    /// It writes a mark, but other bits, or as they were not matched.
    Others,
    Nothing,
}

impl Sets {
    fn of(rule: &str, wanted: &[Wanted]) -> Self {
        let written = writes(rule);
        let mut sets = if written.is_empty() { Self::Nothing } else { Self::Others };
        for (mark, write) in written {
            for wanted in wanted.iter().filter(|wanted| wanted.mark == mark && wanted.mask != 0) {
                let contradicts = (write.value ^ wanted.value) & write.known & wanted.known != 0;
                if contradicts {
                    continue;
                }
                if write.known & wanted.known & wanted.bits() != 0 {
                    return Self::Certainly;
                }
                if (write.known | write.maybe) & wanted.bits() != 0 {
                    sets = Self::Perhaps;
                }
            }
        }
        sets
    }
}

/// A match on a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Match {
    mark: Mark,
    mask: u32,
    /// What the bits of the mask have to be; None where they only must not be something, or be in a set or range.
    equal: Option<u32>,
}

/// What becomes of a mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Write {
    /// Bits that get a certain value.
    known: u32,
    /// Their values.
    value: u32,
    /// Bits that may change.
    maybe: u32,
}

impl Write {
    const ANYTHING: Self = Self { known: 0, value: 0, maybe: u32::MAX };

    /// `(mark & !mask) ^ value`: xt_mark's and xt_connmark's `--set-xmark` (net/netfilter/xt_mark.c).
    fn xmark(value: u32, mask: u32) -> Self {
        Self::default().and(!mask).xor(value)
    }

    fn and(self, operand: u32) -> Self {
        Self { known: self.known | !operand, value: self.value & operand, maybe: self.maybe & operand }
    }

    fn or(self, operand: u32) -> Self {
        Self { known: self.known | operand, value: self.value | operand, maybe: self.maybe & !operand }
    }

    fn xor(self, operand: u32) -> Self {
        Self {
            known: self.known,
            value: self.value ^ (operand & self.known),
            maybe: self.maybe | (operand & !self.known),
        }
    }
}

fn matches(rule: &str) -> Vec<Match> {
    let words: Vec<&str> = text::words(rule).collect();
    match Syntax::of(rule) {
        Syntax::Iptables => iptables_matches(&words),
        Syntax::Nft => nft_matches(&words),
    }
}

fn writes(rule: &str) -> Vec<(Mark, Write)> {
    let words: Vec<&str> = text::words(rule).collect();
    match Syntax::of(rule) {
        Syntax::Iptables => iptables_writes(&words),
        Syntax::Nft => nft_writes(&words),
    }
}

/// `-m mark [!] --mark VALUE[/MASK]`, and the same of connmark.
fn iptables_matches(words: &[&str]) -> Vec<Match> {
    let mut module = "";
    let mut found = Vec::new();
    for (i, &word) in words.iter().enumerate() {
        let next = words.get(i + 1).copied().unwrap_or_default();
        let mark = match module {
            "mark" => Some(Mark::Packet),
            "connmark" => Some(Mark::Connection),
            _ => None,
        };
        if word == "-m" {
            module = next;
        } else if word == "--mark"
            && let Some(mark) = mark
            && let Some((value, mask)) = value_and_mask(next)
        {
            let inverted = i.checked_sub(1).and_then(|before| words.get(before)) == Some(&"!");
            found.push(Match { mark, mask, equal: (!inverted).then_some(value) });
        }
    }
    found
}

/// The options of the targets MARK, CONNMARK and TPROXY.
fn iptables_writes(words: &[&str]) -> Vec<(Mark, Write)> {
    // The last, since a comment may be `-j`.
    let Some(target) = words.iter().rposition(|&word| word == "-j") else { return Vec::new() };
    let Some((&name, options)) = words.get(target + 1..).and_then(<[_]>::split_first) else {
        return Vec::new();
    };
    let mark = match name {
        "MARK" | "TPROXY" => Mark::Packet,
        "CONNMARK" => Mark::Connection,
        _ => return Vec::new(),
    };
    let operand = |name: &str| {
        let at = options.iter().position(|&word| word == name)?;
        value_and_mask(options.get(at + 1)?)
    };
    let has = |name: &str| options.contains(&name);
    if has("--save-mark") || has("--restore-mark") {
        // From one mark to the other, (to & !own mask) ^ (from & other mask), net/netfilter/xt_connmark.c.
        let mark = if has("--save-mark") { Mark::Connection } else { Mark::Packet };
        let mask = |name| operand(name).or_else(|| operand("--mask")).map_or(u32::MAX, |(mask, _)| mask);
        return vec![(mark, Write { known: 0, value: 0, maybe: mask("--ctmask") | mask("--nfmask") })];
    }
    let set = operand("--set-xmark")
        .or_else(|| operand("--tproxy-mark"))
        .map(|(value, mask)| Write::xmark(value, mask))
        .or_else(|| operand("--set-mark").map(|(value, mask)| Write::default().and(!mask).or(value)))
        .or_else(|| operand("--or-mark").map(|(value, _)| Write::default().or(value)))
        .or_else(|| operand("--and-mark").map(|(value, _)| Write::default().and(value)))
        .or_else(|| operand("--xor-mark").map(|(value, _)| Write::default().xor(value)));
    set.map(|write| (mark, write)).into_iter().collect()
}

/// `0x8000/0x8000`, `0x8000` (then all bits count), or decimal.
pub(super) fn value_and_mask(word: &str) -> Option<(u32, u32)> {
    match word.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(word)?, u32::MAX)),
    }
}

fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

/// The mark that words begin with, and how many they are: `meta mark`, `ct mark`, or `mark`, as older versions and the
/// translation of an iptables rule have it. Other marks are passed over: `None` and their words.
fn nft_mark(words: &[&str]) -> Option<(Option<Mark>, usize)> {
    match words {
        ["meta", "mark", ..] => Some((Some(Mark::Packet), 2)),
        ["ct", "mark", ..] => Some((Some(Mark::Connection), 2)),
        // Of a socket, or a part of a fib lookup's key.
        ["socket" | ".", "mark", ..] | ["mark", ".", ..] => Some((None, 2)),
        ["mark", ..] => Some((Some(Mark::Packet), 1)),
        _ => None,
    }
}

/// The marks in a rule: which, and the words that follow it.
fn nft_marks<'a>(words: &'a [&'a str]) -> impl Iterator<Item = (Mark, &'a [&'a str])> {
    let mut rest = words;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (mark, length) = nft_mark(rest).unwrap_or((None, 1));
            rest = rest.get(length..).unwrap_or_default();
            let Some(mark) = mark else { continue };
            let follows = rest;
            if let ["set", value @ ..] = rest {
                // A mark in the value is not matched.
                rest = value.get(nft_value(value).1..).unwrap_or_default();
            }
            return Some((mark, follows));
        }
        None
    })
}

/// `[meta|ct] mark [& MASK] [==|!=] VALUE`.
fn nft_matches(words: &[&str]) -> Vec<Match> {
    nft_marks(words)
        .filter(|(_, rest)| rest.first() != Some(&"set"))
        .map(|(mark, rest)| nft_match(mark, rest))
        .collect()
}

fn nft_match(mark: Mark, rest: &[&str]) -> Match {
    let (mask, rest) = match rest {
        ["&" | "and", mask, rest @ ..] => (number(mask), rest),
        _ => (Some(u32::MAX), rest),
    };
    // A mask that can't be read may be any.
    let mask = mask.unwrap_or(u32::MAX);
    let equal = match rest {
        ["==", value, ..] | [value, ..] => number(value),
        [] => None,
    };
    Match { mark, mask, equal }
}

/// `[meta|ct] mark set VALUE`.
fn nft_writes(words: &[&str]) -> Vec<(Mark, Write)> {
    nft_marks(words)
        .filter_map(|(mark, rest)| match rest {
            ["set", value @ ..] => Some((mark, nft_value(value).0.write(mark))),
            _ => None,
        })
        .collect()
}

/// The value that a mark is set to.
struct Value {
    /// The mark that it is made from.
    from: Option<Mark>,
    write: Write,
}

impl Value {
    /// What becomes of a mark that is set to it.
    fn write(&self, mark: Mark) -> Write {
        match self.from {
            // Bits that the value leaves as they are, are another mark's.
            Some(from) if from != mark => Write { maybe: !self.write.known, ..self.write },
            _ => self.write,
        }
    }
}

/// A value and how many words it has: a number or a mark, then any number of `& N`, `| N`, `^ N`, which nft prints from left
/// to right. Of anything else (a map, a random number, parentheses) the outcome is not known.
fn nft_value(words: &[&str]) -> (Value, usize) {
    let anything = |length| (Value { from: None, write: Write::ANYTHING }, length);
    let (mut value, mut i) = match (nft_mark(words), words.first().and_then(|word| number(word))) {
        (Some((Some(mark), length)), _) => (Value { from: Some(mark), write: Write::default() }, length),
        (_, Some(all)) => (Value { from: None, write: Write { known: u32::MAX, value: all, maybe: 0 } }, 1),
        _ => return anything(0),
    };
    while let Some(&[operator, operand]) = words.get(i..i + 2) {
        let apply = match operator {
            "&" | "and" => Write::and,
            "|" | "or" => Write::or,
            "^" | "xor" => Write::xor,
            "<<" | ">>" | "map" => return anything(i),
            _ => break,
        };
        let Some(operand) = number(operand) else { return anything(i) };
        value.write = apply(value.write, operand);
        i += 2;
    }
    (value, i)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT: &str = include_str!("fixtures/kube-proxy-nat.save");
    const CHAINS: &str = include_str!("fixtures/kube-proxy-chains.nft");

    fn nat(extra: &'static str) -> Vec<Listed<'static>> {
        let saved = text::saved_rules(NAT).chain(text::saved_rules(extra));
        saved
            .map(|rule| Listed {
                table: "nat",
                chain: rule.chain,
                rule: Some(rule.ordinal),
                handle: None,
                text: rule.text,
            })
            .collect()
    }

    /// The answers, as chain and rule.
    fn places(found: &[RuleRef]) -> Vec<(&str, u32)> {
        found.iter().map(|rule| (&*rule.chain, rule.rule.unwrap_or_default())).collect()
    }

    fn alone(text: &str) -> [Listed<'_>; 1] {
        [Listed { table: "t", chain: "c", rule: None, handle: Some(1), text }]
    }

    const DROP: &str = "-A KUBE-FIREWALL -m comment --comment \"kubernetes firewall for dropping marked packets\" -m \
                        mark --mark 0x8000/0x8000 -j DROP";

    #[test]
    fn kubelets_drop_mark_leads_to_the_rules_that_jump_there() {
        let rules = nat("-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\n\
             -A KUBE-SERVICES -m comment --comment \"-j KUBE-MARK-DROP\" -j RETURN\n\
             -A KUBE-XLB-A -m comment --comment \"shop/web has no local endpoints\" -j KUBE-MARK-DROP\n\
             -A KUBE-FW-B -m comment --comment \"shop/api loadbalancer IP\" -g KUBE-MARK-DROP\n");
        let found = set_by(DROP, 0x8000, &rules);
        assert_eq!(places(&found), [("KUBE-MARK-DROP", 1), ("KUBE-XLB-A", 1), ("KUBE-FW-B", 1)]);
        assert_eq!(found[0].text.as_deref(), Some("-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000"));
        assert_eq!(found[0].table, "nat");
        // Without that rule nobody sets the bit.
        assert_eq!(set_by(DROP, 0x8000, &nat("")), []);
        // A rule that matches no mark has none to be set, whatever the packet's is.
        for blamed in
            ["-A INPUT -j DROP", "-A INPUT -m comment --comment \"-m mark --mark 0x1\" -j DROP", "drop", ""]
        {
            assert_eq!(set_by(blamed, 0x8000, &rules), [], "{blamed}");
        }
    }

    #[test]
    fn a_chain_with_other_purposes_is_not_followed() {
        let rules = nat("-A MIXED -j MARK --set-xmark 0x8000/0x8000\n\
             -A MIXED -j LOG\n-A ENTRY -j MIXED\n\
             -A BOTH -j MARK --set-xmark 0x8000/0x8000\n\
             -A BOTH -j CONNMARK --save-mark\n-A ENTRY -j BOTH\n");
        assert_eq!(places(&set_by(DROP, 0x8000, &rules)), [("MIXED", 1), ("BOTH", 1), ("ENTRY", 2)]);
        // Nor one of the same name in another table.
        let mut rules = nat("-A X -j MARK --set-xmark 0x8000/0x8000\n-A ENTRY -j X\n");
        assert_eq!(set_by(DROP, 0x8000, &rules).len(), 2);
        rules.last_mut().unwrap().table = "filter";
        assert_eq!(set_by(DROP, 0x8000, &rules).len(), 1);
    }

    #[test]
    fn certain_answers_come_first_and_there_are_few() {
        let masquerade = "-A X -m mark --mark 0x4000/0x4000 -j DROP";
        let found = set_by(masquerade, 0x4000, &nat(""));
        assert_eq!(
            places(&found)[..3],
            [("KUBE-MARK-MASQ", 1), ("KUBE-POSTROUTING", 2), ("KUBE-EXT-4NH7PX67RUQ7WYZ6", 1)]
        );
        assert_eq!(found.len(), 9);
        let many: Vec<_> = std::iter::repeat_n(alone("-A c -j MARK --or-mark 0x4000")[0], 100).collect();
        assert_eq!(set_by(masquerade, 0x4000, &many).len(), MOST);
    }

    #[test]
    fn kube_proxy_in_nftables_mode() {
        let texts = text::nft_texts(CHAINS);
        let rules: Vec<_> = texts
            .iter()
            .map(|(&handle, text)| Listed {
                table: "kube-proxy",
                chain: "c",
                rule: None,
                handle: Some(handle),
                text,
            })
            .collect();
        let found = set_by("meta mark & 0x00004000 == 0x00004000 drop", 0x4000, &rules);
        let mut handles: Vec<_> = found.iter().filter_map(|rule| rule.handle).collect();
        // The exclusive or of the masquerading chain is the last.
        assert_eq!(handles.pop(), Some(79));
        handles.sort_unstable();
        assert_eq!(handles, [76, 154]);
    }

    /// Whether a rule may have set what another matched.
    fn sets(blamed: &str, packet_mark: u32, rule: &str) -> bool {
        !set_by(blamed, packet_mark, &alone(rule)).is_empty()
    }

    #[test]
    fn a_rule_counts_only_with_the_bits_as_matched() {
        let low = "-A c -m mark --mark 0x1/0x3 -j DROP";
        for rule in [
            "-A c -j MARK --set-xmark 0x1/0xffffffff",
            "-A c -j MARK --set-xmark 0x101/0x101",
            "-A c -j MARK --set-mark 0x5",
            "-A c -j MARK --or-mark 0x1",
            "-A c -j MARK --xor-mark 0x1",
            "-A c -p tcp -j TPROXY --on-port 80 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1",
            "-A c -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
            "-A c -m comment --comment -j -j MARK --set-xmark 0x1/0x1",
            "meta mark set 0x00000001",
            "meta mark set meta mark | 0x00000001",
            "meta mark set meta mark & 0xfffffffc | 0x00000001",
            "meta mark set mark or 0x1",
            "meta mark set mark and 0xfffffffc xor 0x1",
            "meta mark set ct mark and 0xff",
            "meta mark set ip saddr map { 1.1.1.1 : 0x00000001 }",
            "meta mark set meta mark map { 0x00000002 : 0x00000001 }",
            "tcp dport 80 counter packets 0 bytes 0 meta mark set 0x00000001 accept",
        ] {
            assert!(sets(low, 0x1, rule), "{rule}");
        }
        for rule in [
            // Other bits, or a bit otherwise.
            "-A c -j MARK --set-xmark 0x4/0x4",
            "-A c -j MARK --set-xmark 0x3/0x3",
            "-A c -j MARK --set-mark 0x2",
            "-A c -j MARK --and-mark 0xfffffffc",
            "-A c -j MARK --set-xmark 0x0/0x1",
            // A zero is nothing that somebody has set.
            "-A c -j MARK --set-xmark 0x0/0x2",
            "-A c -j CONNMARK --set-xmark 0x1/0x1",
            "-A c -j CONNMARK --save-mark",
            "-A c -m mark --mark 0x1/0x1 -j ACCEPT",
            "-A c -m comment --comment \"-j MARK --set-mark 0x1\" -j ACCEPT",
            "-A c -j MARK --set-mark",
            "-A c -j MARK --set-mark 0x1ffffffff",
            "-A c -j",
            "meta mark set 0x00000002",
            "meta mark set meta mark & 0xfffffffc",
            "meta mark set ct mark and 0xfc",
            "ct mark set 0x00000001",
            "ct mark set meta mark",
            "meta mark 0x00000001 accept",
            "accept comment \"meta mark set 0x1\"",
            "meta mark set meta mark",
            "socket mark set 0x1",
        ] {
            assert!(!sets(low, 0x1, rule), "{rule}");
        }
    }

    #[test]
    fn all_spellings_of_a_match() {
        let (packet, connection) = ("meta mark set 0x00004000", "ct mark set 0x00004000");
        for blamed in [
            "-A c -m mark --mark 0x4000/0x4000 -j DROP",
            "-A c -m mark ! --mark 0x8000/0xc000 -j DROP",
            "-A c -p tcp -m tcp --dport 80 -m mark --mark 16384 -j DROP",
            "meta mark & 0x00004000 == 0x00004000 drop",
            "meta mark & 0x00004000 != 0x00000000 drop",
            "meta mark 0x00004000 drop",
            "meta mark == 0x00004000 drop",
            "meta mark != 0x00000007 drop",
            "meta mark { 0x00000001, 0x00004000 } drop",
            "meta mark 0x00000001-0x00008000 drop",
            "mark and 0x4000 == 0x4000 drop",
            "ip saddr 1.1.1.1 meta mark 0x00004000 counter packets 1 bytes 2 drop",
        ] {
            assert!(sets(blamed, 0x4000, packet), "{blamed}");
            assert!(!sets(blamed, 0x4000, connection), "{blamed}");
            assert!(!sets(blamed, 0x4000, "meta mark set meta mark | 0x00010000"), "{blamed}");
        }
        for blamed in [
            "-A c -m connmark --mark 0x4000/0x4000 -j DROP",
            "-A c -m connmark ! --mark 0x8000/0xc000 -j DROP",
            "ct mark & 0x00004000 == 0x00004000 drop",
            "ct mark and 0x4000 != 0x0 drop",
            "ct mark 0x00004000 drop",
        ] {
            // The packet's mark tells nothing of the connection's.
            assert!(sets(blamed, 0, connection), "{blamed}");
            assert!(sets(blamed, 0, "-A c -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"));
            assert!(!sets(blamed, 0, packet), "{blamed}");
        }
        for blamed in [
            "socket mark 0x00004000 drop",
            "fib saddr . mark oif 0 drop",
            "meta mark set 0x00004000 drop",
            "meta mark set meta mark & 0x4000 drop",
            "-A c -m connmark --mark x -j DROP",
            "-A c -m mark --mark",
        ] {
            assert!(!sets(blamed, 0x4000, packet), "{blamed}");
        }
    }

    #[test]
    fn zero_bits_that_were_matched_are_cleared_by_somebody() {
        let blamed = "-A c -m mark --mark 0x0/0x20000 -j DROP";
        assert!(sets(blamed, 0x10000, "-A c -j MARK --set-xmark 0x0/0x20000"));
        assert!(!sets(blamed, 0x10000, "-A c -j MARK --set-xmark 0x20000/0x20000"));
        assert!(!sets(blamed, 0x10000, "-A c -j MARK --set-xmark 0x10000/0x10000"));
    }
}
