//! Reading droptrace's JSON lines by name, without droptrace's own types: a test must notice a renamed field.

use serde_json::Value;
use std::collections::BTreeMap;

/// One line of `-o json`.
#[derive(Clone, Debug)]
pub struct Record(pub Value);

impl Record {
    /// A field by JSON pointer (`/source/address`, RFC 6901); null where there is none.
    #[must_use]
    pub fn get(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// A text field.
    #[must_use]
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.get(pointer).as_str()
    }

    /// A number field.
    #[must_use]
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.get(pointer).as_u64()
    }

    /// True for `"type":"drop"`.
    #[must_use]
    pub fn is_drop(&self) -> bool {
        self.text("/type") == Some("drop")
    }

    /// Inode number of the netns.
    #[must_use]
    pub fn netns(&self) -> Option<u32> {
        self.number("/network/netns").and_then(|inode| u32::try_from(inode).ok())
    }

    /// `count`
    #[must_use]
    pub fn count(&self) -> u64 {
        self.number("/count").unwrap_or(0)
    }

    /// True for frees that are no drops.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        self.text("/drop/class") == Some("routine")
    }

    /// The function of the location: `ip_rcv_finish_core` of `ip_rcv_finish_core.constprop.0+0x12 [module]`.
    #[must_use]
    pub fn function(&self) -> &str {
        function(self.text("/drop/location").unwrap_or(""))
    }

    /// True for what hosts send by themselves: neighbour discovery, multicast listener reports, ARP, IGMP.
    #[must_use]
    pub fn is_background(&self) -> bool {
        let icmpv6 = self.text("/network/transport") == Some("icmpv6");
        let kind = self.number("/packet/icmp_type");
        // RFC 2710, RFC 3810 and RFC 4861.
        icmpv6 && matches!(kind, Some(130..=137 | 143))
            || matches!(self.text("/network/transport"), Some("igmp" | "2"))
            || self.text("/network/family") == Some("arp")
    }

    /// One line for a failed test's message.
    #[must_use]
    pub fn brief(&self) -> String {
        if !self.is_drop() {
            return self.0.to_string();
        }
        let show = |pointer| match self.get(pointer) {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        format!(
            "{}x {} at {} ({}) {} {} {}:{} -> {}:{} dev {} netns {} by {}",
            self.count(),
            show("/drop/reason"),
            show("/drop/location"),
            show("/drop/class"),
            show("/network/family"),
            show("/network/transport"),
            show("/source/address"),
            show("/source/port"),
            show("/destination/address"),
            show("/destination/port"),
            show("/network/interface"),
            show("/network/netns"),
            show("/network/netns_by"),
        )
    }
}

fn function(location: &str) -> &str {
    let end = location.find(['+', '.', ' ']).unwrap_or(location.len());
    &location[..end]
}

/// Sums over all lines, kept also where the lines are too many to keep.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Lines.
    pub lines: u64,
    /// By netns inode, `None` where the line has none.
    pub drops: BTreeMap<Option<u32>, Sum>,
    /// `count` by netns inode and the function that freed.
    pub functions: BTreeMap<(Option<u32>, String), u64>,
    /// `lost` lines by `where`.
    pub lost: BTreeMap<String, u64>,
}

/// Sums of drop lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Of `count`.
    pub count: u64,
    /// Of `segments`.
    pub segments: u64,
}

impl Tally {
    /// Adds a line.
    pub fn add(&mut self, record: &Record) {
        self.lines += 1;
        if record.is_drop() {
            let sum = self.drops.entry(record.netns()).or_default();
            sum.count += record.count();
            sum.segments += record.number("/segments").unwrap_or(0);
            *self.functions.entry((record.netns(), record.function().to_owned())).or_default() +=
                record.count();
        } else if record.text("/type") == Some("lost") {
            *self.lost.entry(record.text("/where").unwrap_or("").to_owned()).or_default() += record.count();
        } else if let Value::Object(lost) = record.get("/lost") {
            // A histogram's first line has all of them.
            for (place, count) in lost {
                *self.lost.entry(place.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
    }

    /// Drops of one netns, with those of which not even the netns is known.
    #[must_use]
    pub fn of(&self, netns: u32) -> Sum {
        let mut sum = Sum::default();
        for key in [Some(netns), None] {
            let part = self.drops.get(&key).copied().unwrap_or_default();
            sum.count += part.count;
            sum.segments += part.segments;
        }
        sum
    }

    /// Drops of one netns in some functions.
    #[must_use]
    pub fn freed_by(&self, netns: u32, functions: &[&str]) -> u64 {
        let ours = |(inode, function): &(Option<u32>, String)| {
            *inode == Some(netns) && functions.contains(&function.as_str())
        };
        self.functions.iter().filter(|(key, _)| ours(key)).map(|(_, count)| count).sum()
    }

    /// Drops that are in no count: the kernel did not call the program.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.lost.get("recursion").copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn functions_lose_offset_suffix_and_module() {
        assert_eq!(function("ip_rcv_finish_core.constprop.0+0x1a"), "ip_rcv_finish_core");
        assert_eq!(function("nft_do_chain+0x4c3 [nf_tables]"), "nft_do_chain");
        assert_eq!(function("ip_error"), "ip_error");
    }

    #[test]
    fn tallies_keep_unknown_netns_and_losses_apart() {
        let mut tally = Tally::default();
        for line in [
            json!({"type":"drop","count":3,"segments":7,"network":{"netns":5}}),
            json!({"type":"drop","count":2,"segments":2,"network":{"netns":null},"drop":{"location":"a+0x1"}}),
            json!({"type":"drop","count":4,"segments":4,"network":{"netns":8},"drop":{"location":"a+0x2"}}),
            json!({"type":"drop","count":9,"segments":9,"network":{"netns":6}}),
            json!({"type":"lost","count":4,"where":"recursion"}),
        ] {
            tally.add(&Record(line));
        }
        assert_eq!(tally.of(5), Sum { count: 5, segments: 9 });
        assert_eq!(tally.missed(), 4);
        assert_eq!((tally.freed_by(8, &["a", "b"]), tally.freed_by(8, &["b"])), (4, 0));
    }

    #[test]
    fn neighbour_discovery_is_background_and_echo_is_not() {
        let icmp = |kind| Record(json!({"network":{"transport":"icmpv6"},"packet":{"icmp_type":kind}}));
        assert!(icmp(135).is_background() && icmp(143).is_background());
        assert!(!icmp(128).is_background() && !icmp(1).is_background());
    }
}
