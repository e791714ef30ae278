//! Rules of iptables in both of its backends: each packet passes both, and whoever writes one does not see the other. Pure.

use super::legacy;
use super::model::{Backend, Family};
use super::nft::Ruleset;
use super::owner::{self, Subject};

/// Chains that are named.
const NAMED: usize = 3;

/// What one backend has for one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Rules of iptables in it.
    rules: usize,
    /// Chains that components of Kubernetes wrote, in tables that have rules: `nat:KUBE-SERVICES`.
    chains: Vec<String>,
}

impl Held {
    fn add<'a>(
        &mut self,
        backend: Backend,
        table: &str,
        rules: usize,
        chains: impl Iterator<Item = &'a str>,
    ) {
        self.rules += rules;
        if rules > 0 {
            let is_of_kubernetes = |chain: &&str| {
                let subject = Subject { backend: Some(backend), chain: Some(chain), ..Subject::default() };
                owner::is_of_kubernetes(owner::owner(&subject))
            };
            self.chains.extend(chains.filter(is_of_kubernetes).map(|chain| format!("{table}:{chain}")));
        }
    }

    /// Of legacy tables.
    #[must_use]
    pub fn of_legacy<'a>(tables: impl Iterator<Item = &'a legacy::Table>, family: Family) -> Self {
        let mut held = Self::default();
        for table in tables.filter(|table| table.family == family) {
            let names = table.chains.iter().map(|chain| chain.name.as_str());
            held.add(Backend::Legacy, &table.name, table.rules_in_all(), names);
        }
        held
    }

    /// Of iptables-nft's tables. The canaries that kube-proxy and kubelet leave there are chains without rules.
    #[must_use]
    pub fn of_nft(ruleset: &Ruleset, family: Family) -> Self {
        let mut held = Self::default();
        for (index, table) in ruleset.tables.iter().enumerate() {
            if table.is_iptables && table.family == family {
                let count = |chain: &super::nft::Chain| chain.rules.first().map_or(0, Vec::len);
                let chains =
                    || ruleset.chains.iter().filter(|chain| chain.table == index && count(chain) > 0);
                let names = chains().map(|chain| chain.name.as_str());
                held.add(Backend::Nft, &table.name, chains().map(count).sum(), names);
            }
        }
        held
    }
}

/// What the other backend than the one that dropped has of Kubernetes' components; `None` where the two don't mix.
#[must_use]
pub fn other(dropped: Backend, legacy: &Held, nft: &Held) -> Option<String> {
    let (own, other, name) = match dropped {
        Backend::Legacy => (legacy, nft, "iptables-nft"),
        Backend::Nft => (nft, legacy, "iptables-legacy"),
    };
    if own.rules == 0 || other.chains.is_empty() {
        return None;
    }
    let named = other.chains.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match other.chains.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{name} has {named}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(backend: Backend, tables: &[(&str, usize, &[&str])]) -> Held {
        let mut held = Held::default();
        for (table, rules, chains) in tables {
            held.add(backend, table, *rules, chains.iter().copied());
        }
        held
    }

    #[test]
    fn both_must_have_rules_and_the_other_one_kubernetes() {
        let kube = |backend| held(backend, &[("nat", 9, &["PREROUTING", "KUBE-SERVICES"])]);
        let firewall = |backend| held(backend, &[("filter", 1, &["INPUT", "FORWARD"])]);
        let empty = held(
            Backend::Nft,
            &[("filter", 0, &["INPUT", "FORWARD"]), ("mangle", 0, &["KUBE-KUBELET-CANARY"])],
        );
        let legacy = kube(Backend::Legacy);
        let told = |dropped, nft: &Held| other(dropped, &legacy, nft);
        assert_eq!(
            told(Backend::Nft, &firewall(Backend::Nft)).as_deref(),
            Some("iptables-legacy has nat:KUBE-SERVICES")
        );
        assert_eq!(
            told(Backend::Legacy, &kube(Backend::Nft)).as_deref(),
            Some("iptables-nft has nat:KUBE-SERVICES")
        );
        // Nothing of Kubernetes; base chains only, whoever drops.
        assert_eq!(told(Backend::Legacy, &firewall(Backend::Nft)), None);
        assert_eq!(told(Backend::Legacy, &empty), None);
        assert_eq!(told(Backend::Nft, &empty), None);
    }

    #[test]
    fn few_chains_are_named() {
        let many = held(
            Backend::Legacy,
            &[("nat", 9, &["KUBE-A-1", "KUBE-SEP-A", "KUBE-SEP-B", "KUBE-SEP-C", "KUBE-SEP-D"])],
        );
        let nft = held(Backend::Nft, &[("filter", 1, &["FORWARD"])]);
        assert_eq!(
            other(Backend::Nft, &many, &nft).as_deref(),
            Some("iptables-legacy has nat:KUBE-SEP-A, nat:KUBE-SEP-B, nat:KUBE-SEP-C and 1 more")
        );
    }
}
