//! A trace lets nft itself tell which of its rules packets meet, where the kernel shows that, and while there is anything to tell.

use super::Stream;
use crate::netfilter::model::Mechanism;
use crate::probe::clock::monotonic_now;
use std::fmt;
use std::path::Path;
use tracer_common::ABSENT;

/// There is where the kernel has kprobes (perf_event_open(2), "dynamic PMU").
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

/// How a trace knows which rules of nft a packet met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NftTelling {
    /// nft has no base chain in any network namespace.
    #[default]
    Nothing,
    /// nft tells.
    Told,
    /// It can't: why.
    Evaluated(String),
}

impl fmt::Display for NftTelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nft has no rules so far"),
            Self::Told => f.write_str(
                "rules of nft are exact: nft tells of them, asked by a rule in a network namespace of droptrace's own that no \
                 packet meets",
            ),
            Self::Evaluated(why) => {
                write!(f, "rules of iptables-nft are evaluated, nft's own are not told: {why}")
            }
        }
    }
}

impl Stream {
    /// How a trace knows which rules of nft a packet met.
    #[must_use]
    pub fn nft_telling(&self) -> &NftTelling {
        &self.nft_telling
    }

    /// Asks nft to tell of the rules that packets meet, as soon as it has any.
    pub fn ask_nft(&mut self) {
        if self.nft_telling == NftTelling::Nothing && self.has_nft_rules() {
            self.nft_telling = match self.begin_nft() {
                Ok(()) => NftTelling::Told,
                Err(why) => NftTelling::Evaluated(why),
            };
        }
    }

    /// Asks again: the lab may be another one by now.
    pub(super) fn ask_nft_again(&mut self) {
        if self.nft_telling == NftTelling::Told
            && let Err(why) = self.begin_nft()
        {
            self.nft_telling = NftTelling::Evaluated(why);
        }
    }

    /// How a trace would tell nft's rules here.
    pub(super) fn nft_trace_mechanism(&self) -> Mechanism {
        let describes = self.kernel.layout().nft_trace.argument_info != ABSENT;
        match (describes, Path::new(KPROBES).exists()) {
            (false, _) => Mechanism::Off(
                "nf_tables is not loaded, or this kernel doesn't describe what it tells its own tracing: a trace evaluates rules of \
                 iptables-nft, and does not tell nft's own"
                    .to_owned(),
            ),
            (true, false) => Mechanism::Off(
                "this kernel has no kprobes: a trace evaluates rules of iptables-nft, and does not tell nft's own"
                    .to_owned(),
            ),
            (true, true) => Mechanism::Exact(
                "in a trace nft tells of them, asked by a rule in a network namespace of droptrace's own that no packet meets",
            ),
        }
    }

    /// Whether nft has a base chain in any network namespace but the lab's.
    fn has_nft_rules(&mut self) -> bool {
        if !self.rulesets.engines.nft || !self.rulesets.knows_nft() {
            // What can't be known there may be.
            return self.rulesets.engines.nft;
        }
        let own = self.lab.as_ref().map(crate::probe::lab::Lab::inode);
        let Ok(all) = self.tracer.network_namespaces(self.kernel.layout()) else { return false };
        let Ok(mut memory) = self.tracer.memory() else { return false };
        let mut others = all.into_iter().filter(|netns| Some(netns.inode) != own);
        others.any(|netns| self.rulesets.has_base_chain(&mut memory, netns))
    }

    fn begin_nft(&mut self) -> Result<(), String> {
        if !self.rulesets.knows_nft() || !self.tracer.knows_nft_tracing() {
            return Err("this kernel doesn't describe what nft tells its own tracing".to_owned());
        }
        self.tracer.attach_nft_trace().map_err(|error| error.to_string())?;
        let lab = self.lab.as_mut().ok_or("there is no network namespace of droptrace's own to ask in")?;
        lab.ask_for_tracing().map_err(|error| error.to_string())?;
        let now = monotonic_now().map_err(|error| error.to_string())?;
        self.rules.nft_tells_since(Some(now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_banner_says() {
        assert_eq!(NftTelling::default().to_string(), "nft has no rules so far");
        assert!(NftTelling::Told.to_string().starts_with("rules of nft are exact: "));
        let why = NftTelling::Evaluated("no kprobes".to_owned()).to_string();
        assert_eq!(why, "rules of iptables-nft are evaluated, nft's own are not told: no kprobes");
    }
}
