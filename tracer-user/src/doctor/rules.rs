//! Tables of rules as plain data, out of what the node's own tools print: which rules can drop, what they counted, where
//! they lead. Text of rules and names of chains are anybody's.

use crate::netfilter::model::{Backend, Family, Netfilter};
use crate::netfilter::owner::{self, Subject, UNKNOWN, owner};
use crate::netfilter::text;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Who keeps it.
    pub backend: Backend,
    /// True if iptables keeps it there, of either backend.
    pub is_iptables: bool,
    /// False if not all is known of its rules: where they lead, or more than those that drop.
    pub is_whole: bool,
    /// Who told of it.
    pub source: &'static str,
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
    /// The base chains.
    pub bases: Vec<Base>,
    /// Maps whose elements have verdicts.
    pub maps: Vec<Map>,
    /// Flowtables: name, devices, and whether the card takes part.
    pub flowtables: Vec<(String, Vec<String>, bool)>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// Its number in the chain, from 1, as iptables counts.
    pub number: Option<u32>,
    /// Its handle, as nft has it.
    pub handle: Option<u64>,
    /// As the tool prints it; empty where it did not.
    pub text: String,
    /// True if what it matches is dropped or rejected.
    pub drops: bool,
    /// True if what it matches is accepted.
    pub accepts: bool,
    /// Packets that it matched; `None` where nothing counts them.
    pub packets: Option<u64>,
    /// Chains that it leads to.
    pub targets: Vec<String>,
    /// Where it translates destinations to.
    pub dnat: Vec<SocketAddr>,
    /// Who wrote it.
    pub owner: &'static str,
}

/// A base chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub chain: String,
    /// Its hook, in upper case.
    pub hook: String,
    /// True if its policy drops.
    pub drops: bool,
    /// Packets that the policy decided; `None` where nothing counts them.
    pub packets: Option<u64>,
    /// Who set it.
    pub owner: &'static str,
}

/// A map with verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its name.
    pub name: String,
    /// The parts of each key, and the chain that its verdict leads to.
    pub elements: Vec<(Vec<String>, Option<String>)>,
}

/// What a table is, of those that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Who keeps it.
    pub backend: Backend,
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
}

impl Table {
    fn new(id: &Id, is_iptables: bool) -> Self {
        Self {
            netns: id.netns,
            backend: id.backend,
            is_iptables,
            is_whole: true,
            source: id.tool(is_iptables),
            family: id.family,
            name: id.name.clone(),
            rules: Vec::new(),
            bases: Vec::new(),
            maps: Vec::new(),
            flowtables: Vec::new(),
        }
    }

    /// Of what `iptables-save -c -t TABLE` printed; `None` if that is not all of the table.
    #[must_use]
    pub fn saved(id: &Id, listing: &str) -> Option<Self> {
        if !text::is_whole(listing) {
            return None;
        }
        let mut table = Self::new(id, true);
        let chains: Vec<&str> = text::saved_chains(listing).map(|(name, _)| name).collect();
        table.bases = text::counted_policies(listing)
            .map(|(chain, policy, packets)| Base {
                chain: chain.to_owned(),
                hook: chain.to_owned(),
                drops: policy == "DROP",
                packets: Some(packets),
                owner: owner::policy_owner(chain, chains.iter().copied()),
            })
            .collect();
        table.rules = text::saved_rules(listing)
            .map(|rule| {
                let targets: Vec<&str> = text::targets(rule.text).collect();
                Rule {
                    chain: rule.chain.to_owned(),
                    number: Some(rule.ordinal),
                    handle: None,
                    text: rule.text.to_owned(),
                    drops: targets.iter().any(|target| ["DROP", "REJECT"].contains(target)),
                    accepts: targets.contains(&"ACCEPT"),
                    packets: rule.packets,
                    dnat: saved_dnat(rule.text),
                    owner: id.owner(rule.chain, rule.text),
                    targets: targets.into_iter().map(str::to_owned).collect(),
                }
            })
            .collect();
        Some(table)
    }

    /// Of what `nft -j list table` printed (libnftables-json(5)), with the texts of `nft -a list table`.
    #[must_use]
    pub fn listed(id: &Id, json: &str, texts: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(json).ok()?;
        let hardware = offloaded(texts);
        let mut texts = text::nft_texts(texts);
        let mut table = Self::new(id, false);
        for item in json.get("nftables")?.as_array()? {
            if let Some(chain) = item.get("chain") {
                table.bases.extend(base(chain, id));
            } else if let Some(rule) = item.get("rule") {
                table.rules.extend(listed_rule(rule, id, &mut texts));
            } else if let Some(map) = item.get("map") {
                table.maps.extend(verdict_map(map));
            } else if let Some(flowtable) = item.get("flowtable") {
                table.flowtables.extend(self::flowtable(flowtable, &hardware));
            }
        }
        Some(table)
    }

    /// What the kernel itself counted of the rules of a table that can drop, for one that no tool printed.
    #[must_use]
    pub fn counted(id: &Id, droppers: &[(&Netfilter, u64)]) -> Self {
        let mut table = Self { is_whole: false, source: "the kernel's memory", ..Self::new(id, false) };
        for (place, packets) in droppers {
            let chain = place.chain.clone().unwrap_or_default();
            let (owner, packets) = (id.owner(&chain, ""), Some(*packets));
            if place.verdict.as_deref() == Some("policy") {
                let hook = place.hook.clone().unwrap_or_default();
                table.bases.push(Base { chain, hook, drops: true, packets, owner: "" });
            } else {
                let (number, handle) = (place.rule, place.handle);
                table.rules.push(Rule {
                    chain,
                    number,
                    handle,
                    drops: true,
                    packets,
                    owner,
                    ..Rule::default()
                });
            }
        }
        table
    }

    /// The rules of each chain.
    #[must_use]
    pub fn by_chain(&self) -> HashMap<&str, Vec<&Rule>> {
        let mut chains: HashMap<&str, Vec<&Rule>> = HashMap::new();
        for rule in &self.rules {
            chains.entry(&rule.chain).or_default().push(rule);
        }
        chains
    }
}

impl Id {
    /// What prints it.
    fn tool(&self, is_iptables: bool) -> &'static str {
        match (self.backend, is_iptables, self.family) {
            (Backend::Legacy, _, Family::Ipv6) => "ip6tables-legacy-save -c",
            (Backend::Legacy, ..) => "iptables-legacy-save -c",
            (Backend::Nft, true, Family::Ipv6) => "ip6tables-nft-save -c",
            (Backend::Nft, true, _) => "iptables-nft-save -c",
            (Backend::Nft, false, _) => "nft list ruleset",
        }
    }

    fn owner(&self, chain: &str, text: &str) -> &'static str {
        let (table, chain) = (Some(&*self.name), Some(chain));
        owner(&Subject { backend: Some(self.backend), table, chain, text: Some(text) })
    }
}

/// `--to-destination 10.244.1.7:8080`, also of IPv6: `[fd00::7]:8080`.
fn saved_dnat(rule: &str) -> Vec<SocketAddr> {
    text::after(rule, |word| word == "--to-destination").filter_map(|word| word.parse().ok()).collect()
}

fn string(value: &Value, name: &str) -> Option<String> {
    value.get(name)?.as_str().map(str::to_owned)
}

fn base(chain: &Value, id: &Id) -> Option<Base> {
    let hook = string(chain, "hook")?.to_ascii_uppercase();
    let drops = chain.get("policy").and_then(Value::as_str) == Some("drop");
    let chain = string(chain, "name")?;
    let owner = id.owner(&chain, "");
    Some(Base { chain, hook, drops, packets: None, owner })
}

fn listed_rule(rule: &Value, id: &Id, texts: &mut HashMap<u64, String>) -> Option<Rule> {
    let (chain, handle) = (string(rule, "chain")?, rule.get("handle")?.as_u64()?);
    let text = texts.remove(&handle).unwrap_or_default();
    let (mut drops, mut accepts) = (false, false);
    // What a counter counted that nothing behind it but the verdict looks at.
    let (mut counted, mut packets) = (None, None);
    let (mut targets, mut dnat) = (Vec::new(), Vec::new());
    for statement in rule.get("expr").and_then(Value::as_array).into_iter().flatten() {
        let Some((kind, value)) = statement.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "counter" => counted = value.get("packets").and_then(Value::as_u64),
            "drop" | "reject" => (drops, packets) = (true, counted),
            "accept" => accepts = true,
            // What iptables-nft has no expression of nft's for.
            "xt" if value.get("name").and_then(Value::as_str) == Some("REJECT") => {
                (drops, packets) = (true, counted);
            }
            "jump" | "goto" => targets.extend(string(value, "target")),
            "vmap" => targets.extend(verdicts(value)),
            "dnat" => dnat.extend(sockets(value)),
            "log" | "comment" => {}
            _ => counted = None,
        }
    }
    let owner = id.owner(&chain, &text);
    Some(Rule {
        chain,
        number: None,
        handle: Some(handle),
        text,
        drops,
        accepts,
        packets,
        targets,
        dnat,
        owner,
    })
}

/// `{"addr": "10.244.1.7", "port": 8080}`, or a map of numbers to `{"concat": ["10.244.1.7", 8080]}`.
fn sockets(dnat: &Value) -> Vec<SocketAddr> {
    let socket = |address: &Value, port: &Value| {
        let address: IpAddr = address.as_str()?.parse().ok()?;
        Some(SocketAddr::new(address, port.as_u64()?.try_into().ok()?))
    };
    let one = dnat.get("addr").zip(dnat.get("port")).and_then(|(address, port)| socket(address, port));
    let choices = dnat.pointer("/addr/map/data/set").and_then(Value::as_array);
    let of_choice = |choice: &Value| {
        let pair = choice.get(1)?.get("concat")?;
        socket(pair.get(0)?, pair.get(1)?)
    };
    one.into_iter().chain(choices.into_iter().flatten().filter_map(of_choice)).collect()
}

/// The chains that a verdict map of a rule's own leads to.
fn verdicts(vmap: &Value) -> Vec<String> {
    let set = vmap.get("data").and_then(|data| data.get("set")).and_then(Value::as_array);
    set.into_iter().flatten().filter_map(|element| target(element.get(1)?)).collect()
}

/// The chain of `{"goto": {"target": "c"}}`.
fn target(verdict: &Value) -> Option<String> {
    let (kind, value) = verdict.as_object()?.iter().next()?;
    ["goto", "jump"].contains(&kind.as_str()).then(|| string(value, "target"))?
}

fn verdict_map(map: &Value) -> Option<Map> {
    let elements = map.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let part = |part: &Value| match part {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let element = |element: &Value| {
        let key = element.get(0)?;
        // An element with a comment or a timeout has its value inside.
        let key = key.get("elem").and_then(|inner| inner.get("val")).unwrap_or(key);
        let parts = match key.get("concat").and_then(Value::as_array) {
            Some(parts) => parts.iter().map(part).collect(),
            None => vec![part(key)],
        };
        Some((parts, element.get(1).and_then(target)))
    };
    Some(Map { name: string(map, "name")?, elements: elements.iter().filter_map(element).collect() })
}

fn flowtable(value: &Value, hardware: &[&str]) -> Option<(String, Vec<String>, bool)> {
    let devices = match value.get("dev") {
        Some(Value::String(name)) => vec![name.clone()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let name = string(value, "name")?;
    let is_hardware = hardware.contains(&&*name);
    Some((name, devices, is_hardware))
}

/// The flowtables that `nft list table` prints with `flags offload`, which its JSON leaves out.
fn offloaded(listing: &str) -> Vec<&str> {
    let mut current = None;
    let mut found = Vec::new();
    for line in listing.lines() {
        if let Some(rest) = line.strip_prefix("\tflowtable ") {
            current = rest.split(' ').next();
        } else if line == "\t}" {
            current = None;
        } else if line.trim() == "flags offload" || line.trim() == "flags offload;" {
            found.extend(current);
        }
    }
    found
}

/// How many rules of a table each owner has, most first; those of nobody are `unknown`.
#[must_use]
pub fn owners(table: &Table) -> Vec<(&'static str, usize)> {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for rule in &table.rules {
        *counts.entry(if rule.owner.is_empty() { UNKNOWN } else { rule.owner }).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(backend: Backend, family: Family, name: &str) -> Id {
        Id { netns: 7, backend, family, name: name.to_owned() }
    }

    #[test]
    fn an_iptables_table_has_counters_owners_and_destinations() {
        let listing = "*filter\n:INPUT ACCEPT [1:2]\n:FORWARD DROP [7:420]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:KUBE-SEP-X - [0:0]\n\
                       [3:180] -A FORWARD -m comment --comment \"-j ACCEPT\" -j DROP\n[0:0] -A KUBE-SEP-X -p tcp -j DNAT \
                       --to-destination 10.244.1.7:8080\n[1:1] -A FORWARD -j ACCEPT\n[1:1] -A FORWARD -j DOCKER-USER\nCOMMIT\n";
        let table = Table::saved(&id(Backend::Legacy, Family::Ipv4, "filter"), listing).unwrap();
        let policy = table.bases.iter().find(|base| base.drops).unwrap();
        assert_eq!((&*policy.chain, policy.packets, policy.owner), ("FORWARD", Some(7), "docker"));
        let [drop, endpoint, accept, jump] = &table.rules[..] else { panic!("{:?}", table.rules) };
        assert_eq!((drop.drops, drop.accepts, drop.packets, drop.owner), (true, false, Some(3), UNKNOWN));
        assert_eq!(
            (&endpoint.dnat[..], endpoint.owner),
            (&["10.244.1.7:8080".parse().unwrap()][..], "kube-proxy")
        );
        assert!(accept.accepts && !accept.drops);
        assert_eq!((&jump.targets[..], jump.owner), (&["DOCKER-USER".to_owned()][..], "docker"));
        assert_eq!(
            Table::saved(&id(Backend::Legacy, Family::Ipv4, "filter"), &listing.replace("COMMIT", "")),
            None
        );
    }

    #[test]
    fn without_tools_the_kernel_tells_of_what_drops() {
        let place = |rule, verdict: &str| Netfilter {
            chain: Some("DOCKER-USER".into()),
            rule,
            verdict: Some(verdict.into()),
            ..Netfilter::default()
        };
        let (rule, policy) = (place(Some(3), "drop"), place(None, "policy"));
        let table = Table::counted(&id(Backend::Legacy, Family::Ipv4, "filter"), &[(&rule, 5), (&policy, 6)]);
        let [rule] = &table.rules[..] else { panic!("{:?}", table.rules) };
        assert_eq!((rule.number, rule.drops, rule.packets, rule.owner), (Some(3), true, Some(5), "docker"));
        assert_eq!(
            (table.bases[0].packets, table.is_whole, table.source),
            (Some(6), false, "the kernel's memory")
        );
    }

    #[test]
    fn an_nft_table_counts_only_what_is_dropped() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "t", "handle": 1}},
          {"chain": {"family": "inet", "table": "t", "name": "in", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
          {"map": {"name": "service-ips", "type": ["ipv4_addr"], "map": "verdict", "elem": [
            [{"concat": ["10.96.0.1", "tcp", 443]}, {"goto": {"target": "service-x"}}],
            [{"elem": {"val": "10.96.0.2", "comment": "x"}}, {"drop": null}]]}},
          {"flowtable": {"name": "f", "hook": "ingress", "prio": 0, "dev": ["eth0", "eth1"]}},
          {"rule": {"chain": "in", "handle": 2, "expr": [{"match": {}}, {"counter": {"packets": 5, "bytes": 9}}, {"log": null}, {"drop": null}]}},
          {"rule": {"chain": "in", "handle": 3, "expr": [{"counter": {"packets": 8, "bytes": 9}}, {"match": {}}, {"reject": {}}]}},
          {"rule": {"chain": "in", "handle": 4, "expr": [{"vmap": {"key": 1, "data": {"set": [[0, {"goto": {"target": "a"}}], [1, {"accept": null}]]}}}]}},
          {"rule": {"chain": "e", "handle": 5, "expr": [{"dnat": {"addr": "fd00::7", "port": 80}}, {"accept": null}]}},
          {"rule": {"chain": "s", "handle": 6, "expr": [{"dnat": {"family": "ip", "addr": {"map": {"key": 1, "data": {"set": [
            [0, {"concat": ["10.244.2.7", 8080]}], [1, {"concat": ["10.244.2.8", 8080]}]]}}}}}]}}]}"#;
        let texts = "table inet t {\n\tflowtable f {\n\t\thook ingress priority filter\n\t\tflags offload\n\t}\n\tchain in {\n\t\ttype filter hook input priority filter; policy drop;\n\t\tudp dport 9 counter \
                     packets 5 bytes 9 drop # handle 2\n\t}\n}\n";
        let table = Table::listed(&id(Backend::Nft, Family::Inet, "t"), json, texts).unwrap();
        assert_eq!(
            (table.bases[0].drops, table.bases[0].packets, &*table.bases[0].hook),
            (true, None, "INPUT")
        );
        let told: Vec<_> = table.rules.iter().map(|rule| (rule.handle, rule.drops, rule.packets)).collect();
        assert_eq!(
            told,
            [(2, true, Some(5)), (3, true, None), (4, false, None), (5, false, None), (6, false, None)]
                .map(|(handle, drops, packets)| (Some(handle), drops, packets))
        );
        assert_eq!(table.rules[4].dnat, ["10.244.2.7:8080", "10.244.2.8:8080"].map(|at| at.parse().unwrap()));
        assert_eq!(table.rules[0].text, "udp dport 9 counter packets 5 bytes 9 drop");
        assert_eq!(table.rules[2].targets, ["a"]);
        assert_eq!(table.rules[3].dnat, ["[fd00::7]:80".parse().unwrap()]);
        assert_eq!(
            table.maps[0].elements[0],
            (vec!["10.96.0.1".into(), "tcp".into(), "443".into()], Some("service-x".into()))
        );
        assert_eq!(table.maps[0].elements[1], (vec!["10.96.0.2".into()], None));
        assert_eq!(table.flowtables, [("f".into(), vec!["eth0".into(), "eth1".into()], true)]);
        assert_eq!(Table::listed(&id(Backend::Nft, Family::Inet, "t"), "Error: JSON", texts), None);
    }
}
