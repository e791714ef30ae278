//! The storm: small datagrams over a veth pair into a legacy `DROP` rule.

use crate::bed::{flood, namespace::Namespace, topology::Family, topology::Pair};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;

/// Where the datagrams go. The rule drops them before any socket is looked for.
const PORT: u16 = 9;

/// Two namespaces, and the rule in the one that receives.
#[derive(Debug)]
pub struct Storm {
    pair: Pair,
}

impl Storm {
    /// Makes them.
    ///
    /// # Errors
    /// When a command fails.
    pub fn new() -> Result<Self> {
        let pair = Pair::new()?;
        pair.server.netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {PORT} -j DROP"))?;
        Ok(Self { pair })
    }

    /// Sends `packets` from one CPU; returns the nanoseconds that each took, all of it: the send, the wire, the rule,
    /// and who watches the drop. The receive side runs in the softirq of the sender's own CPU.
    ///
    /// # Errors
    /// When a send fails, or the rule did not drop exactly the packets that were sent.
    pub fn blow(&self, cpu: usize, packets: u64) -> Result<f64> {
        let before = self.dropped()?;
        let (sent, took) = flood::timed(&self.pair.client.netns, cpu, self.target(), packets)?;
        let dropped = self.dropped()? - before;
        ensure!(
            sent.accepted == packets && dropped == packets,
            "{packets} packets to send, {} sent, {dropped} dropped by the rule",
            sent.accepted
        );
        Ok(took.as_nanos() as f64 / packets as f64)
    }

    /// Where the packets go.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.pair.server.port(Family::V4, PORT)
    }

    /// The namespace that sends.
    #[must_use]
    pub fn sender(&self) -> &Namespace {
        &self.pair.client.netns
    }

    /// The rule's own counter.
    fn dropped(&self) -> Result<u64> {
        let listing = self.pair.server.netns.run("iptables-legacy -L INPUT -n -v -x")?;
        let rule = listing.lines().find(|line| line.contains("DROP")).context("the rule is gone")?;
        let packets = rule.split_whitespace().next().context("the rule has no counter")?;
        packets.parse().with_context(|| format!("counter of the rule: {packets}"))
    }
}
