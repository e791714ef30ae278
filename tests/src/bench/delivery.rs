//! The healthy path: datagrams over a veth pair that pass all rules and reach a socket.

use super::storm::Storm;
use crate::bed::{flood, topology::Family};
use anyhow::{Context, Result, ensure};
use std::net::{SocketAddr, UdpSocket};

/// Where the datagrams go. No rule takes it.
pub const PORT: u16 = 7;

/// A socket behind the rules of a storm.
#[derive(Debug)]
pub struct Delivery<'a> {
    storm: &'a Storm,
    receiver: UdpSocket,
    to: SocketAddr,
}

impl<'a> Delivery<'a> {
    /// Opens it.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn new(storm: &'a Storm) -> Result<Self> {
        let server = storm.receiver();
        let to = server.port(Family::V4, PORT);
        let receiver =
            server.netns.enter(|| UdpSocket::bind(to).with_context(|| format!("bind a socket to {to}")))?;
        Ok(Self { storm, receiver, to })
    }

    /// Sends `packets` from one CPU and receives them on it; returns the nanoseconds that each took: the send, the wire,
    /// the rules, the receive.
    ///
    /// # Errors
    /// When a send fails, or a packet is missing.
    pub fn run(&self, cpu: usize, packets: u64) -> Result<f64> {
        let (received, took) = flood::delivered(self.storm.sender(), cpu, self.to, packets, &self.receiver)?;
        ensure!(
            received == packets,
            "{packets} packets sent, {received} delivered: this path is not healthy"
        );
        Ok(took.as_nanos() as f64 / packets as f64)
    }
}
