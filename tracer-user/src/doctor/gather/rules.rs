//! Asks the node's own tools for tables of rules with their counters, within a time.

use super::super::model::Unread;
use super::super::rules::{Id, Table};
use crate::netfilter::model::{Backend, Family};
use crate::netfilter::tools::{Limits, ToolError, Wanted, listing};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time that all tools may take at once, and one of them.
const ALL: Duration = Duration::from_secs(8);
const ONE: Duration = Duration::from_secs(4);
/// Bytes that one may print.
const BYTES: usize = 64 << 20;
/// Names that iptables gives its tables, in nf_tables, too.
const IPTABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// What was read, and what was not.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The tables.
    pub tables: Vec<Table>,
    /// Why others are missing.
    pub unread: Vec<Unread>,
}

/// Reads tables, in order, until the time is over.
#[must_use]
pub fn read<'a>(ids: impl IntoIterator<Item = &'a Id>) -> Rules {
    let until = Instant::now() + ALL;
    let mut rules = Rules::default();
    // Why, and of how many tables, of which one.
    let mut missing: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for id in ids {
        let left = until.saturating_duration_since(Instant::now());
        let read = if left.is_zero() {
            Err("reading the tables before it took too long".to_owned())
        } else {
            table(id, Limits { time: ONE.min(left), bytes: BYTES })
        };
        match read {
            Ok(table) => rules.tables.push(table),
            Err(why) => {
                let place = || (0, format!("{} table {} of netns {}", id.family.name(), id.name, id.netns));
                missing.entry(why).or_insert_with(place).0 += 1;
            }
        }
    }
    let unread = |(why, (count, first)): (String, (usize, String))| Unread {
        what: if count > 1 { format!("{first} and {} more", count - 1) } else { first },
        why,
    };
    rules.unread = missing.into_iter().map(unread).collect();
    rules
}

/// One table; an error says what to do, too.
fn table(id: &Id, limits: Limits) -> Result<Table, String> {
    let (family, name) = (id.family, &*id.name);
    let print = |wanted| listing(id.netns, &wanted, limits);
    let garbled = || "the tool printed what makes no table of rules".to_owned();
    if id.backend == Backend::Legacy {
        let printed = print(Wanted::LegacyCounters { family, table: name }).map_err(|error| why(&error))?;
        return Table::saved(id, &printed).ok_or_else(garbled);
    }
    let mut is_whole = true;
    if matches!(family, Family::Ipv4 | Family::Ipv6) && IPTABLES.contains(&name) {
        match print(Wanted::IptablesNftCounters { family, table: name }) {
            // One that nft made with the same name is incompatible to it, and asked for as nft has it.
            Ok(printed) => {
                if let Some(table) = Table::saved(id, &printed) {
                    return Ok(table);
                }
            }
            // nft does not tell all of what iptables means: its matches and targets are closed to it.
            Err(_) => is_whole = false,
        }
    }
    let json = print(Wanted::NftTable { family, table: name, json: true }).map_err(|error| why(&error))?;
    let texts = print(Wanted::NftTable { family, table: name, json: false }).unwrap_or_default();
    let table = Table::listed(id, &json, &texts).ok_or_else(garbled)?;
    Ok(Table { is_whole, ..table })
}

fn why(error: &ToolError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// The tables of the own network namespace, known without the kernel's memory: from what lists them there; and why those of
/// nf_tables are not, if nobody lists them.
#[must_use]
pub fn own_tables(netns: u32, proc: &Path) -> (Vec<Id>, Option<Unread>) {
    let mut ids = Vec::new();
    for (file, family) in [("ip_tables_names", Family::Ipv4), ("ip6_tables_names", Family::Ipv6)] {
        let names = fs::read_to_string(proc.join("thread-self/net").join(file)).unwrap_or_default();
        let id = |name: &str| Id { netns, backend: Backend::Legacy, family, name: name.to_owned() };
        ids.extend(names.lines().map(id));
    }
    let limits = Limits { time: ONE, bytes: BYTES };
    let unlisted = match listing(netns, &Wanted::NftTables, limits) {
        Ok(listed) => {
            ids.extend(nft_tables(netns, &listed));
            None
        }
        // Then there are none.
        Err(ToolError::NotLoaded { .. }) => None,
        Err(error) => {
            Some(Unread { what: format!("tables of nf_tables in netns {netns}"), why: why(&error) })
        }
    };
    (ids, unlisted)
}

fn nft_tables(netns: u32, json: &str) -> Vec<Id> {
    let json: Value = serde_json::from_str(json).unwrap_or_default();
    let tables = json.get("nftables").and_then(Value::as_array);
    let id = |item: &Value| {
        let table = item.get("table")?;
        let family = match table.get("family")?.as_str()? {
            "ip" => Family::Ipv4,
            "ip6" => Family::Ipv6,
            "inet" => Family::Inet,
            "arp" => Family::Arp,
            "bridge" => Family::Bridge,
            "netdev" => Family::Netdev,
            _ => return None,
        };
        Some(Id { netns, backend: Backend::Nft, family, name: table.get("name")?.as_str()?.to_owned() })
    };
    tables.into_iter().flatten().filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_by_their_list() {
        let json = r#"{"nftables": [{"metainfo": {}}, {"table": {"family": "inet", "name": "firewalld", "handle": 1}},
            {"table": {"family": "new", "name": "x"}}, {"table": {"family": "ip", "name": "kube-proxy"}}]}"#;
        let ids = nft_tables(7, json);
        let told: Vec<_> = ids.iter().map(|id| (id.family, &*id.name)).collect();
        assert_eq!(told, [(Family::Inet, "firewalld"), (Family::Ipv4, "kube-proxy")]);
        assert_eq!(nft_tables(7, ""), []);
    }

    #[test]
    fn what_is_not_there_is_said_once() {
        let id = |name: &str| Id {
            netns: 1,
            backend: Backend::Legacy,
            family: Family::Ipv4,
            name: name.to_owned(),
        };
        let rules = read(&[id("filter"), id("nat")]);
        assert_eq!((rules.tables.len(), rules.unread.len()), (0, 1));
        assert_eq!(rules.unread[0].what, "ipv4 table filter of netns 1 and 1 more");
    }
}
