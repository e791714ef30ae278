//! Tables of the kernel that are full, or nearly.

use super::super::facts::Facts;
use super::super::model::{Finding, Severity, evidence};
use super::super::texts::Text;

/// Percent from which a table is nearly full.
const NEARLY: u64 = 90;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    conntrack(facts).into_iter().chain(neighbours(facts)).collect()
}

fn conntrack(facts: &Facts) -> Option<Finding> {
    let [count_name, max_name] = ["net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"];
    let (count, max) = (facts.number(count_name)?, facts.number(max_name)?);
    // 0 is no limit.
    let percent = fill(count, max)?;
    Some(Finding {
        id: "conntrack-full",
        severity: if percent >= 100 { Severity::Error } else { Severity::Warning },
        text: Text::new("conntrack-full", [("percent", percent.to_string())]),
        evidence: vec![evidence(count_name, count, "sysctl"), evidence(max_name, max, "sysctl")],
        netns: Some(facts.netns),
        interface: None,
    })
}

/// The limit counts the neighbours of all network namespaces together.
fn neighbours(facts: &Facts) -> Vec<Finding> {
    let of = |(entries, version): (Option<u64>, &str)| {
        let name = format!("net.{version}.neigh.default.gc_thresh3");
        let (count, max) = (entries?, facts.number(&name)?);
        let percent = fill(count, max)?;
        Some(Finding {
            id: "neighbour-table-full",
            severity: if percent >= 100 { Severity::Error } else { Severity::Warning },
            text: Text::new(
                "neighbour-table-full",
                [
                    ("version", version.to_owned()),
                    ("percent", percent.to_string()),
                    ("setting", name.clone()),
                    ("larger", max.saturating_mul(4).to_string()),
                ],
            ),
            evidence: vec![evidence("entries", count, "/proc/net/stat"), evidence(&*name, max, "sysctl")],
            netns: None,
            interface: None,
        })
    };
    facts.neighbours.into_iter().zip(["ipv4", "ipv6"]).filter_map(of).collect()
}

/// Percent, if that is nearly all.
fn fill(count: u64, max: u64) -> Option<u64> {
    let percent = count.saturating_mul(100).checked_div(max)?;
    (percent >= NEARLY).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{fix, ids, node, set};
    use super::*;

    #[test]
    fn nearly_full_is_a_warning_and_full_an_error() {
        let with = |count: &str| {
            let mut facts = node();
            set(&mut facts, "net.netfilter.nf_conntrack_count", count);
            check(&facts)
        };
        assert_eq!(with("89"), []);
        assert_eq!((ids(&with("90")), with("90")[0].severity), (vec!["conntrack-full"], Severity::Warning));
        assert_eq!(with("100")[0].severity, Severity::Error);
        let mut unlimited = node();
        set(&mut unlimited, "net.netfilter.nf_conntrack_max", "0");
        assert_eq!(check(&unlimited), []);
    }

    #[test]
    fn neighbours_of_both_families() {
        let mut facts = node();
        facts.neighbours = [Some(1000), Some(1000)];
        assert_eq!(check(&facts), []);
        set(&mut facts, "net.ipv6.neigh.default.gc_thresh3", "1024");
        let found = check(&facts);
        assert_eq!(ids(&found), ["neighbour-table-full"]);
        assert!(fix(&found[0]).contains("net.ipv6.neigh.default.gc_thresh3=4096"));
    }
}
