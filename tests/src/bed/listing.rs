//! Reading what the rule tools print: the truth that answers are compared with.

/// A rule as its own tool lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The table's family as nft calls it: `ip`, `ip6`, `inet`, `bridge`, `netdev`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's place in its chain, from 1: what `iptables -L --line-numbers` shows.
    pub number: u64,
    /// nft's handle; `None` where iptables lists.
    pub handle: Option<u64>,
    /// Its comment.
    pub comment: Option<String>,
    /// Its packet counter.
    pub packets: Option<u64>,
    /// The rule without counters and handle: `-A CHAIN ...`, or nft's words with a bare `counter`.
    pub text: String,
}

/// Reads `iptables-save -c`; `family` is `ip` or `ip6`.
#[must_use]
pub fn iptables(text: &str, family: &str) -> Vec<Listed> {
    let mut listed: Vec<Listed> = Vec::new();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let Some((packets, rule)) = line.strip_prefix('[').and_then(|rest| rest.split_once(':')) else {
            continue;
        };
        let Some((_, rule)) = rule.split_once("] ") else { continue };
        let Some(chain) = rule.strip_prefix("-A ").and_then(|rest| rest.split(' ').next()) else { continue };
        push(
            &mut listed,
            Listed {
                family: family.to_owned(),
                table: table.to_owned(),
                chain: chain.to_owned(),
                number: 0,
                handle: None,
                comment: word_after(rule, "--comment "),
                packets: packets.parse().ok(),
                text: rule.to_owned(),
            },
        );
    }
    listed
}

/// Reads `nft -a list ruleset`. Rules are the lines that end with a handle and open no block.
#[must_use]
pub fn nft(text: &str) -> Vec<Listed> {
    let mut listed = Vec::new();
    let (mut family, mut table, mut chain) = ("", "", "");
    for line in text.lines() {
        let Some((rule, handle)) = line.trim().rsplit_once(" # handle ") else { continue };
        let mut words = rule.split_whitespace();
        match (words.next(), rule.ends_with(" {")) {
            (Some("table"), true) => {
                (family, table) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            }
            (Some("chain"), true) => chain = words.next().unwrap_or(""),
            // Sets, maps and other objects.
            (_, true) => {}
            (_, false) => push(
                &mut listed,
                Listed {
                    family: family.to_owned(),
                    table: table.to_owned(),
                    chain: chain.to_owned(),
                    number: 0,
                    handle: handle.parse().ok(),
                    comment: word_after(rule, " comment "),
                    packets: rule
                        .split_once("counter packets ")
                        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()),
                    text: without_counts(rule),
                },
            ),
        }
    }
    listed
}

/// Numbers a rule by those of its chain that came before it.
fn push(listed: &mut Vec<Listed>, mut rule: Listed) {
    let same = |other: &&Listed| {
        (&other.family, &other.table, &other.chain) == (&rule.family, &rule.table, &rule.chain)
    };
    rule.number = listed.iter().rev().find(same).map_or(1, |last| last.number + 1);
    listed.push(rule);
}

/// nft's text of a rule with `counter packets 3 bytes 90` as `counter`.
#[must_use]
pub fn without_counts(rule: &str) -> String {
    let mut words: Vec<&str> = rule.split_whitespace().collect();
    while let Some(at) = words.windows(4).position(|w| (w[0], w[1], w[3]) == ("counter", "packets", "bytes"))
    {
        words.drain(at + 1..(at + 5).min(words.len()));
    }
    words.join(" ")
}

/// The word or quoted text after a key.
fn word_after(rule: &str, key: &str) -> Option<String> {
    let rest = rule.split_once(key)?.1;
    let word = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => rest.split(' ').next()?,
    };
    Some(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iptables_rules_are_numbered_in_their_chains() {
        let text = "*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n:INPUT DROP [7:70]\n:U - [0:0]\n\
                    [1:30] -A INPUT -m comment --comment u1 -g U\n\
                    [0:0] -A U -m comment --comment \"two words\" -j RETURN\n\
                    [12:360] -A INPUT -p udp -m udp --dport 5 -j DROP\nCOMMIT\n";
        let listed = iptables(text, "ip");
        let brief: Vec<_> =
            listed.iter().map(|r| (r.chain.as_str(), r.number, r.packets, r.comment.as_deref())).collect();
        assert_eq!(
            brief,
            [
                ("INPUT", 1, Some(1), Some("u1")),
                ("U", 1, Some(0), Some("two words")),
                ("INPUT", 2, Some(12), None)
            ]
        );
        assert_eq!(listed[2].text, "-A INPUT -p udp -m udp --dport 5 -j DROP");
        assert_eq!(listed[2].table, "filter");
    }

    #[test]
    fn nft_rules_are_told_from_blocks_and_settings() {
        let text = "table inet t { # handle 2\n\tmap m { # handle 3\n\t\ttype inet_service : verdict\n\
                    \t\telements = { 8 : jump y, 9 : drop }\n\t}\n\n\tchain x { # handle 1\n\
                    \t\ttype filter hook input priority filter + 5; policy drop;\n\
                    \t\tudp dport { 1, 2 } counter packets 4 bytes 120 comment \"u13\" # handle 8\n\
                    \t\tudp dport vmap @m # handle 9\n\t}\n}\n";
        let listed = nft(text);
        assert_eq!(listed.len(), 2);
        let first = &listed[0];
        assert_eq!((first.family.as_str(), first.table.as_str(), first.chain.as_str()), ("inet", "t", "x"));
        assert_eq!((first.handle, first.packets, first.comment.as_deref()), (Some(8), Some(4), Some("u13")));
        assert_eq!(first.text, "udp dport { 1, 2 } counter comment \"u13\"");
        assert_eq!((listed[1].handle, listed[1].number, listed[1].packets), (Some(9), 2, None));
    }

    #[test]
    fn half_a_counter_is_left_as_it_is() {
        assert_eq!(without_counts("counter packets 3"), "counter packets 3");
        assert_eq!(without_counts("counter packets 3 bytes 4 drop"), "counter drop");
        assert_eq!(without_counts("counter packets 3 bytes 4"), "counter");
    }
}
