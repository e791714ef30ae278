//! Who wrote a rule. `owners.txt` says by which names and comments that is known.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::model::Backend;
use super::text;

/// The owner of a rule that nobody is known to write.
pub const UNKNOWN: &str = "unknown";

/// A rule, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Who keeps it. A legacy table's name tells no owner.
    pub backend: Option<Backend>,
    /// Its table.
    pub table: Option<&'a str>,
    /// Its chain.
    pub chain: Option<&'a str>,
    /// Its text, as [`super::model::Netfilter::text`].
    pub text: Option<&'a str>,
}

/// Components of Kubernetes: those that write rules on a node.
const OF_KUBERNETES: [&str; 17] = [
    "kube-proxy",
    "kubelet",
    "calico",
    "cilium",
    "flannel",
    "kube-router",
    "weave",
    "antrea",
    "ovn-kubernetes",
    "openshift-sdn",
    "kindnet",
    "cni-plugins",
    "aws-vpc-cni",
    "azure-npm",
    "ip-masq-agent",
    "nodelocaldns",
    "submariner",
];

/// True if an owner is a component of Kubernetes, not the host's firewall or a container engine beside it.
#[must_use]
pub fn is_of_kubernetes(owner: &str) -> bool {
    OF_KUBERNETES.contains(&owner)
}

/// Who wrote a rule, for example `kube-proxy`, or [`UNKNOWN`]. By its table, else its chain, else its comment, else where
/// it jumps to.
#[must_use]
pub fn owner(rule: &Subject<'_>) -> &'static str {
    let text = rule.text.unwrap_or_default();
    let table = rule.table.filter(|_| rule.backend != Some(Backend::Legacy));
    table
        .and_then(|name| best(Known::Table, name))
        .or_else(|| rule.chain.and_then(|name| best(Known::Chain, name)))
        .or_else(|| text::comments(text).find_map(|comment| best(Known::Comment, &comment)))
        .or_else(|| text::targets(text).find_map(|name| best(Known::Chain, name)))
        .unwrap_or(UNKNOWN)
}

/// Who set a chain's policy, known by the other chains of its table; [`UNKNOWN`] also where two may have.
#[must_use]
pub fn policy_owner<'a>(chain: &str, others: impl Iterator<Item = &'a str>) -> &'static str {
    let mut owners = HashSet::new();
    for other in others {
        let fits = |entry: &&Owned| {
            let whose = entry.pattern.before.split_once(':');
            entry.known == Known::Policy && whose == Some((chain, other))
        };
        owners.extend(ENTRIES.iter().filter(fits).map(|entry| entry.owner));
    }
    match owners.into_iter().collect::<Vec<_>>()[..] {
        [owner] => owner,
        _ => UNKNOWN,
    }
}

fn best(known: Known, name: &str) -> Option<&'static str> {
    best_of(&ENTRIES, known, name)
}

/// The owner whose pattern of this sort fits a name with the most letters; of equals, the first.
fn best_of(entries: &[Owned], known: Known, name: &str) -> Option<&'static str> {
    let fitting = entries.iter().filter(|entry| entry.known == known && entry.pattern.fits(name));
    fitting.rev().max_by_key(|entry| entry.pattern.letters()).map(|entry| entry.owner)
}

/// What an owner is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Table,
    Chain,
    Comment,
    Policy,
}

/// A name, or one with any letters in a place.
#[derive(Clone, Copy, Debug)]
struct Pattern {
    before: &'static str,
    /// None without a `*`.
    after: Option<&'static str>,
}

impl Pattern {
    fn of(word: &'static str) -> Self {
        match word.split_once('*') {
            Some((before, after)) => Self { before, after: Some(after) },
            None => Self { before: word, after: None },
        }
    }

    fn fits(&self, name: &str) -> bool {
        match self.after {
            None => name == self.before,
            Some(after) => name.strip_prefix(self.before).is_some_and(|rest| rest.ends_with(after)),
        }
    }

    fn letters(&self) -> usize {
        self.before.len() + self.after.map_or(0, str::len)
    }
}

/// A line of the file.
struct Owned {
    owner: &'static str,
    known: Known,
    pattern: Pattern,
}

static ENTRIES: LazyLock<Vec<Owned>> =
    LazyLock::new(|| include_str!("owners.txt").lines().filter_map(entry).collect());

/// An entry of the file: None for a comment or an empty line (and for a faulty one, of which there is none: tested).
fn entry(line: &'static str) -> Option<Owned> {
    let (owner, rest) = line.split_once(' ')?;
    let (known, pattern) = rest.trim_start().split_once(' ')?;
    let known = match known {
        "table" => Known::Table,
        "chain" => Known::Chain,
        "comment" => Known::Comment,
        "policy" => Known::Policy,
        _ => return None,
    };
    (!owner.starts_with('#')).then(|| Owned { owner, known, pattern: Pattern::of(pattern.trim()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_chain(chain: &str) -> &'static str {
        owner(&Subject { chain: Some(chain), table: Some("filter"), ..Subject::default() })
    }

    #[test]
    fn policies_are_known_by_their_neighbours() {
        assert_eq!(policy_owner("FORWARD", ["INPUT", "DOCKER-USER", "DOCKER"].into_iter()), "docker");
        assert_eq!(policy_owner("INPUT", ["DOCKER"].into_iter()), UNKNOWN);
        assert_eq!(policy_owner("INPUT", ["ufw-user-input"].into_iter()), "ufw");
        assert_eq!(policy_owner("FORWARD", ["ufw-user-forward", "DOCKER"].into_iter()), UNKNOWN);
        assert_eq!(policy_owner("FORWARD", std::iter::empty()), UNKNOWN);
    }

    fn in_table(table: &str) -> &'static str {
        owner(&Subject {
            backend: Some(Backend::Nft),
            table: Some(table),
            chain: Some("c"),
            ..Subject::default()
        })
    }

    fn in_input(text: &str) -> &'static str {
        owner(&Subject {
            chain: Some("INPUT"),
            table: Some("filter"),
            text: Some(text),
            ..Subject::default()
        })
    }

    #[test]
    fn every_line_of_the_file_is_an_entry_that_decides() {
        let lines: Vec<_> = include_str!("owners.txt")
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        assert_eq!(lines.len(), ENTRIES.len());
        for (line, entry) in lines.iter().zip(&*ENTRIES) {
            assert_eq!(line.split_whitespace().next(), Some(entry.owner));
            assert!(!entry.pattern.before.is_empty(), "{line}");
            let after = entry.pattern.after;
            assert!(after.is_none_or(|after| !after.contains('*')), "{line}");
            let name = format!(
                "{}{}",
                entry.pattern.before,
                after.map_or(String::new(), |after| format!("7x{after}"))
            );
            let found = match entry.known {
                Known::Table => in_table(&name),
                Known::Chain => {
                    assert_eq!(in_input(&format!("-A INPUT -m x --y -j {name}")), entry.owner, "{line}");
                    assert_eq!(in_input(&format!("ip saddr 1.1.1.1 goto {name}")), entry.owner, "{line}");
                    in_chain(&name)
                }
                Known::Comment => {
                    assert_eq!(in_input(&format!("drop comment \"{name}\"")), entry.owner, "{line}");
                    in_input(&format!("-A INPUT -m comment --comment \"{name}\" -j DROP"))
                }
                Known::Policy => {
                    let (chain, other) = name.split_once(':').unwrap();
                    policy_owner(chain, [other].into_iter())
                }
            };
            assert_eq!(found, entry.owner, "{line}");
        }
    }

    #[test]
    fn the_most_specific_pattern_decides_then_the_first() {
        let lines = ["a chain X-*", "b chain X-Y-*", "c chain X-Y-*", "d chain X-*-Z", "e table X-Y-1"];
        let entries: Vec<_> = lines.into_iter().filter_map(entry).collect();
        for (name, owner) in [("X-1", "a"), ("X-Y-1", "b"), ("X-1-Z", "d"), ("X-", "a"), ("X-Z", "a")] {
            assert_eq!(best_of(&entries, Known::Chain, name), Some(owner), "{name}");
        }
        assert_eq!(best_of(&entries, Known::Chain, "X"), None);
    }

    #[test]
    fn names_as_seen_on_nodes() {
        let chains = [
            ("KUBE-SVC-CR2NMOA5EEZ65MSD", "kube-proxy"),
            ("KUBE-EXT-CR2NMOA5EEZ65MSD", "kube-proxy"),
            ("KUBE-FW-HMFGOEA42SZG2MM4", "kube-proxy"),
            ("KUBE-PROXY-FIREWALL", "kube-proxy"),
            ("KUBE-IPVS-OUT-FILTER", "kube-proxy"),
            ("KUBE-FIREWALL", "kubelet"),
            ("KUBE-MARK-DROP", "kubelet"),
            ("KUBE-POD-FW-2XZ3VAQPOWKBD6VM", "kube-router"),
            ("KUBE-NWPLCY-DEFAULT", "kube-router"),
            ("cali-tw-cali1f79ddf5f24", "calico"),
            ("OLD_CILIUM_FORWARD", "cilium"),
            ("WEAVE-NPC-EGRESS-DEFAULT", "weave"),
            ("CNI-HOSTPORT-DNAT", "cni-plugins"),
            ("DOCKER-ISOLATION-STAGE-1", "docker"),
            ("NETAVARK_FORWARD", "podman"),
            ("IN_public_deny", "firewalld"),
            ("IN_pods_deny", "firewalld"),
            ("ufw-user-forward", "ufw"),
            ("f2b-sshd", "fail2ban"),
            ("ISTIO_INBOUND", "istio"),
            ("OVN-KUBE-EGRESS-IP-MULTI-NIC", "ovn-kubernetes"),
            ("ts-forward", "tailscale"),
        ];
        for (chain, owner) in chains {
            assert_eq!(in_chain(chain), owner, "{chain}");
        }
        assert_eq!(in_table("kindnet-network-policies"), "kindnet");
        let rule = "-A KUBE-PROXY-FIREWALL -m comment --comment \"cali:x\" -j cali-INPUT";
        let subject = Subject { chain: Some("KUBE-PROXY-FIREWALL"), text: Some(rule), ..Subject::default() };
        assert_eq!(owner(&subject), "kube-proxy");
    }

    #[test]
    fn what_nobody_is_known_for_is_unknown() {
        for chain in
            ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING", "input", "KUBE", "KUBE-", "ufw", ""]
        {
            assert_eq!(in_chain(chain), UNKNOWN, "{chain}");
        }
        for table in ["filter", "nat", "mangle", "raw", "security", "firewall", "kube-proxy2", ""] {
            assert_eq!(in_table(table), UNKNOWN, "{table}");
        }
        for text in [
            "-A INPUT -j REJECT --reject-with icmp-host-prohibited",
            "-A INPUT -s 1.1.1.1/32 -j DROP",
            "-A INPUT -m comment --comment \"not cali:x -j KUBE-FIREWALL\" -j DROP",
            "drop comment \"x jump KUBE-FIREWALL\"",
            "-A INPUT -j",
            "\"",
            "",
        ] {
            assert_eq!(in_input(text), UNKNOWN, "{text}");
        }
        assert_eq!(owner(&Subject::default()), UNKNOWN);
        // A legacy table is nobody's.
        let backend = Some(Backend::Legacy);
        assert_eq!(owner(&Subject { backend, table: Some("firewalld"), ..Subject::default() }), UNKNOWN);
    }
}
