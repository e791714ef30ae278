//! The storm: small datagrams over a veth pair into a rule that drops them.

use crate::bed::{
    backend::Backend,
    flood,
    namespace::Namespace,
    topology::{Family, Host, Pair},
};
use anyhow::{Result, ensure};
use std::net::SocketAddr;

/// Where the datagrams go. The rule drops them before any socket is looked for.
pub const PORT: u16 = 9;

/// Two namespaces, and the rules in the one that receives.
#[derive(Debug)]
pub struct Storm {
    pair: Pair,
}

impl Storm {
    /// Makes them, with a single legacy rule.
    ///
    /// # Errors
    /// When a command fails.
    pub fn new() -> Result<Self> {
        let pair = Pair::new()?;
        pair.server.netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {PORT} -j DROP"))?;
        Ok(Self { pair })
    }

    /// Makes them, with rules that drop what is sent to [`PORT`].
    ///
    /// # Errors
    /// When a command fails or the rules are refused.
    pub fn with_rules(backend: Backend, rules: &str) -> Result<Self> {
        let pair = Pair::new()?;
        backend.load(&pair.server.netns, Family::V4, rules)?;
        Ok(Self { pair })
    }

    /// Sends `packets` from one CPU; returns the nanoseconds that each took, all of it: the send, the wire, the rule,
    /// and who watches the drop. The receive side runs in the softirq of the sender's own CPU.
    ///
    /// # Errors
    /// When a send fails, or not exactly the packets that were sent were dropped between arrival and delivery.
    pub fn blow(&self, cpu: usize, packets: u64) -> Result<f64> {
        let before = self.dropped()?;
        let (sent, took) = flood::timed(&self.pair.client.netns, cpu, self.target(), packets)?;
        let dropped = self.dropped()? - before;
        ensure!(
            sent.accepted == packets && dropped == packets,
            "{packets} packets to send, {} sent, {dropped} dropped",
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

    /// The namespace that receives.
    #[must_use]
    pub fn receiver(&self) -> &Host {
        &self.pair.server
    }

    /// What arrived at the IP layer and was not delivered: the INPUT hook is between the two counters (ip_rcv_core and
    /// ip_local_deliver_finish, net/ipv4/ip_input.c). A listing of rules would take long where they are many.
    fn dropped(&self) -> Result<u64> {
        let netns = &self.pair.server.netns;
        let delivered = netns.counter("IpInDelivers")?;
        Ok(netns.counter("IpInReceives")?.saturating_sub(delivered))
    }
}
