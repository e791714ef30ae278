//! The three ways to have rules: iptables-legacy, iptables-nft and nft.

use super::listing::{self, Listed};
use super::namespace::Namespace;
use super::topology::Family;
use anyhow::Result;

/// A tool and the kernel's rule engine behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// iptables-legacy: x_tables.
    Legacy,
    /// iptables-nft: nf_tables.
    IptablesNft,
    /// nft: nf_tables.
    Nft,
}

impl Backend {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Legacy, Self::IptablesNft, Self::Nft];

    /// Its name in test names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::IptablesNft => "iptables_nft",
            Self::Nft => "nft",
        }
    }

    /// What droptrace calls the rule engine.
    #[must_use]
    pub fn engine(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::IptablesNft | Self::Nft => "nft",
        }
    }

    /// True where rules are written in iptables' words.
    #[must_use]
    pub fn is_iptables(self) -> bool {
        self != Self::Nft
    }

    /// The iptables command; for nft itself, the one that shares its engine.
    #[must_use]
    pub fn iptables(self, family: Family) -> &'static str {
        match self {
            Self::Legacy => family.pick("iptables-legacy", "ip6tables-legacy"),
            _ => family.pick("iptables-nft", "ip6tables-nft"),
        }
    }

    /// Loads rules: `iptables-restore` or `nft -f`. iptables keeps other tables; nft keeps all there is.
    ///
    /// # Errors
    /// When the tool refuses them.
    pub fn load(self, netns: &Namespace, family: Family, rules: &str) -> Result<()> {
        self.feed(netns, family, "", rules)
    }

    /// Loads rules into tables that keep their other chains: `iptables-restore --noflush` or `nft -f`.
    ///
    /// # Errors
    /// When the tool refuses them.
    pub fn replace(self, netns: &Namespace, family: Family, rules: &str) -> Result<()> {
        self.feed(netns, family, " --noflush", rules)
    }

    fn feed(self, netns: &Namespace, family: Family, option: &str, rules: &str) -> Result<()> {
        let line = match self {
            Self::Nft => "nft -f -".to_owned(),
            _ => format!("{}-restore{option}", self.iptables(family)),
        };
        netns.feed(&line, rules).map(drop)
    }

    /// The rules as this tool lists them, with counters.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn list(self, netns: &Namespace, family: Family) -> Result<Vec<Listed>> {
        Ok(match self {
            Self::Nft => listing::nft(&netns.run("nft -a list ruleset")?),
            _ => {
                let saved = netns.run(&format!("{}-save -c", self.iptables(family)))?;
                listing::iptables(&saved, family.pick("ip", "ip6"))
            }
        })
    }

    /// As [`list`](Self::list), where iptables-nft's rules have nft's handles too.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn list_with_handles(self, netns: &Namespace, family: Family) -> Result<Vec<Listed>> {
        let mut listed = self.list(netns, family)?;
        if self == Self::IptablesNft {
            let same = Self::Nft.list(netns, family)?;
            for rule in &mut listed {
                let key = |r: &Listed| (r.family.clone(), r.table.clone(), r.chain.clone(), r.number);
                rule.handle =
                    same.iter().find(|other| key(other) == key(rule)).and_then(|other| other.handle);
            }
        }
        Ok(listed)
    }
}
