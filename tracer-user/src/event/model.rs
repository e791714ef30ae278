//! The explained event: what every sink (line, JSON, recording, histogram) gets. Its serialised form is the
//! published JSON schema, so field names here are a contract.

use crate::cilium::model::Cilium;
use crate::netfilter::model::{Confidence, Netfilter};
use crate::tc::model::Bpf;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Nanoseconds since 1970-01-01T00:00:00Z (CLOCK_REALTIME).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i128);

/// What the tracer says, in order. Each variant is one line of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Record {
    /// Packets were dropped.
    Drop(Box<Drop>),
    /// Something was lost on the way: see [`Lost`].
    Lost(Lost),
    /// A filter lets nothing through: see [`Stalled`].
    Stalled(Stalled),
}

/// For a while no drop has passed the filter: what was seen instead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stalled {
    /// When the while ended.
    pub time: Timestamp,
    /// How long it was, in seconds.
    pub seconds: u64,
    /// The node's name.
    pub node: String,
    /// The filter, as it could be typed.
    pub filter: String,
    /// Segments that TCP repeated meanwhile, in connections that the filter means.
    pub retransmits: u64,
    /// To whom, those with most first.
    pub peers: Vec<Peer>,
    /// Connections in connection tracking that the filter means and nobody has answered, in droptrace's own network
    /// namespace, at least; `None` where that can't be asked.
    #[serde(default)]
    pub unreplied: Option<u64>,
    /// Who does not answer, those with most first.
    #[serde(default)]
    pub unreplied_peers: Vec<Unreplied>,
}

/// A peer that has not answered connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreplied {
    /// Who waits; without a port.
    pub source: Endpoint,
    /// Who does not answer.
    pub destination: Endpoint,
    /// As in [`Network`].
    pub transport: Option<String>,
    /// How many connections.
    pub connections: u64,
}

/// A peer that segments were repeated to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Who repeats them; without a port.
    pub source: Endpoint,
    /// Who does not answer.
    pub destination: Endpoint,
    /// How many segments.
    pub retransmits: u64,
    /// False where the connection was never answered: its SYNs are what is repeated.
    pub answered: bool,
}

/// Something that the tracer could not see or keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// When it was noticed.
    pub time: Timestamp,
    /// How many since the last such record of the same `where`.
    pub count: u64,
    /// Where.
    #[serde(rename = "where")]
    pub place: LostPlace,
}

/// Where something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostPlace {
    /// Full events that found no room in the ring buffer: detail is lost, their drops are counted.
    Ring,
    /// Drops that found no room for their flow: counted by reason, location and netns only.
    Flow,
    /// Drops that found no room at all: counted, but nothing else is known of them.
    Overflow,
    /// Drops that the kernel did not show to our program, because it was already running on that CPU
    /// (`recursion_misses` of struct bpf_prog_info). Not counted anywhere else.
    Recursion,
    /// Drops that a recording had to leave out, because its disk was too slow. Only recordings have such lines.
    Recording,
}

impl LostPlace {
    /// True if drops themselves are missing from the counts, not only their detail.
    #[must_use]
    pub fn loses_counts(self) -> bool {
        matches!(self, Self::Recursion | Self::Recording)
    }
}

/// One or more dropped packets with the same key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// When the first of them was dropped (or, without detail, a time before that, by at most an interval).
    pub time: Timestamp,
    /// When the last of them was dropped (or a time after that, by at most an interval).
    pub time_last: Timestamp,
    /// The node's name.
    pub node: String,
    /// Dropped skbs since the last line about them: every drop is in exactly one line.
    pub count: u64,
    /// Dropped segments (GSO), at least `count`.
    pub segments: u64,
    /// False where only counts are known: packet fields are null then.
    pub detail: bool,
    /// Where the packet came from, as on the wire at the drop.
    pub source: Endpoint,
    /// Where it was to go.
    pub destination: Endpoint,
    /// The connection's original direction, where NAT made it different from the packet's.
    pub original: Option<Original>,
    /// Interfaces and protocols.
    pub network: Network,
    /// The packet.
    pub packet: Packet,
    /// The packet's conntrack entry.
    pub conntrack: Option<Conntrack>,
    /// The packet that a tunnel carried.
    pub inner: Option<Inner>,
    /// The drop itself.
    pub drop: Reason,
    /// The kernel's stack at the drop, innermost first, `symbol+0xoffset [module]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<String>,
}

/// One end of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Null where the packet has no IP header, or it was out of reach.
    pub address: Option<IpAddr>,
    /// TCP, UDP, SCTP ...; null for other protocols.
    pub port: Option<u16>,
    /// Who that is, in Kubernetes.
    #[serde(default)]
    pub k8s: Option<K8s>,
}

/// What an address is: in Kubernetes, or on a host without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct K8s {
    /// Namespace of pod and service.
    pub namespace: Option<String>,
    /// Pod.
    pub pod: Option<String>,
    /// `kind/name` of the owner, for example `deployment/cart`.
    pub workload: Option<String>,
    /// Service: the one that was dialled.
    pub service: Option<String>,
    /// How the service is known.
    #[serde(default)]
    pub service_by: Option<ServiceBy>,
    /// Where several services have this endpoint and nothing tells which was dialled: all of them, as `namespace/name`
    /// where that is not the pod's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// The node that has this address, or that the pod runs on.
    #[serde(default)]
    pub node: Option<String>,
    /// A container that is not of Kubernetes: its name, else its id.
    #[serde(default)]
    pub container: Option<String>,
    /// A systemd unit of this node.
    #[serde(default)]
    pub unit: Option<String>,
}

/// How a service is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceBy {
    /// By the original destination of the packet's conntrack entry.
    Original,
    /// By the address itself.
    Address,
    /// By the comment of the rule that dropped the packet.
    Rule,
    /// By IPVS's connection.
    Ipvs,
    /// By the EndpointSlices that hold address and port: which service was dialled is not known by that.
    Endpoint,
}

/// A pair of ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// Who started the connection.
    pub source: Endpoint,
    /// Whom it dialled.
    pub destination: Endpoint,
}

/// Where in the network the packet was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// `ipv4`, `ipv6`, `arp`, or `0x` and the ethertype.
    pub family: Option<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` ..., or the protocol's number.
    pub transport: Option<String>,
    /// skb->dev.
    pub interface: Option<String>,
    /// The interface that the packet came in by.
    pub interface_in: Option<String>,
    /// The interface that it was to leave by.
    pub interface_out: Option<String>,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    /// What told the netns: `receiving-socket`, `hook-state`, `socket`, `route`, `device`.
    pub netns_by: Option<String>,
}

/// The packet itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// skb->len, bytes.
    pub length: Option<u32>,
    /// skb->mark.
    pub mark: Option<u32>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// IPv4 identification, or that of the IPv6 fragment header.
    pub ip_id: Option<u32>,
    /// Set flags in the order `SYN,ACK,...`: FIN SYN RST PSH ACK URG ECE CWR, joined by `,`, SYN first.
    pub tcp_flags: Option<String>,
    /// ICMP or ICMPv6 type.
    pub icmp_type: Option<u8>,
    /// Its code.
    pub icmp_code: Option<u8>,
    /// Identifier of an echo message.
    pub icmp_id: Option<u16>,
    /// Sequence number of an echo message.
    pub icmp_sequence: Option<u16>,
    /// gso_segs, at least 1.
    pub segments: Option<u16>,
    /// True for a fragment other than the first.
    pub fragment: Option<bool>,
}

/// Connection tracking, as it stood at the drop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conntrack {
    /// `new`, `established`, `related`, `invalid`, `untracked`.
    pub state: String,
    /// `original` or `reply`.
    pub direction: Option<String>,
    /// Names of the `IPS_*` bits that are set, lower case, joined by `,`.
    pub status: String,
    /// Zone id.
    pub zone: Option<u16>,
    /// nf_conn.mark
    pub mark: Option<u32>,
    /// TCP state of the connection, for example `SYN_SENT`.
    pub tcp_state: Option<String>,
    /// The tuple of the original direction.
    pub original: Original,
    /// The tuple of the reply direction.
    pub reply: Original,
}

/// The packet inside a tunnel's packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inner {
    /// `vxlan`, `geneve`, `ipip`, `sit`, `ip6tnl`, `gre`, or `icmp-error` for the packet that an ICMP error quotes.
    #[serde(rename = "type")]
    pub kind: String,
    /// VXLAN or Geneve network identifier.
    pub vni: Option<u32>,
    /// Its ends.
    pub source: Endpoint,
    /// Likewise.
    pub destination: Endpoint,
    /// Its transport protocol.
    pub transport: Option<String>,
}

/// Why and where the kernel freed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Name of the drop reason without its prefix, `NETFILTER_DROP`; null on kernels without reasons (before 5.17).
    pub reason: Option<String>,
    /// `core`, `mac80211_unusable`, `openvswitch`, `qdisc` ...
    pub subsystem: Option<String>,
    /// `symbol+0xoffset` (and ` [module]`).
    pub location: Option<String>,
    /// Its class.
    pub class: Class,
    /// Which rule.
    pub netfilter: Option<Box<Netfilter>>,
    /// What of Cilium.
    pub cilium: Option<Box<Cilium>>,
    /// Which program.
    pub bpf: Option<Box<Bpf>>,
    /// Why, and what to do.
    pub cause: Option<Cause>,
}

impl Reason {
    /// Takes what was on the tc hook that dropped the packet, and the class that follows from that and from what Cilium said.
    /// Where Cilium's answer names the program already, it is not named twice.
    pub fn take_program(&mut self, bpf: Option<Box<Bpf>>, destination: Option<IpAddr>) {
        if bpf.as_ref().is_some_and(|bpf| bpf.confidence != Confidence::Ambiguous) {
            // Without a drop reason it is known only now that somebody decided it.
            self.class = Class::Policy;
        }
        match &self.cilium {
            Some(cilium) => self.class = cilium.class(destination).unwrap_or(self.class),
            None => self.bpf = bpf,
        }
    }

    /// Takes what of netfilter dropped the packet, and the class that follows from it.
    pub fn take_netfilter(&mut self, answer: Option<Netfilter>) {
        self.class = answer.as_ref().and_then(Netfilter::class).unwrap_or(self.class);
        self.netfilter = answer.map(Box::new);
    }
}

/// What kind of drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Somebody decided it: a rule, a policy, a program.
    Policy,
    /// Something is wrong: with the packet, the routes, a listener.
    #[default]
    Error,
    /// Something is full.
    Resource,
    /// Nothing is wrong: hidden unless `--all`.
    Routine,
}

/// Why a packet was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// A stable name.
    pub id: String,
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// One sentence.
    pub why: String,
    /// One sentence; empty where nothing needs to be done.
    pub fix: String,
    /// `exact`, `inferred` or `ambiguous`.
    pub confidence: String,
    /// Who can change it: a component, or a team.
    pub owner: Option<String>,
    /// What undoes the fix, one sentence.
    pub resets: Option<String>,
    /// What the node was asked, after the drop, and said.
    pub evidence: Vec<Evidence>,
    /// Other causes that it may have as well, less specific ones.
    pub others: Vec<String>,
}

/// A setting, route or counter of the node beside a drop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// By the name that its own tool has for it: `net.ipv4.conf.eth0.forwarding`.
    pub name: String,
    /// What it was, a moment after the drop.
    pub value: String,
    /// Where that is from: `sysctl`, `rtnetlink`, a file under /proc.
    pub source: String,
    /// Of a counter, by how much it has grown since it was last told.
    #[serde(default)]
    pub change: Option<u64>,
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    /// From what [`Display`](std::fmt::Display) writes, or any other RFC 3339; a number is microseconds since 1970.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a time as in RFC 3339, or microseconds since 1970")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                let time: jiff::Timestamp = text.parse().map_err(E::custom)?;
                Ok(Timestamp(time.as_nanosecond()))
            }

            fn visit_i64<E: serde::de::Error>(self, micros: i64) -> Result<Timestamp, E> {
                Ok(Timestamp(i128::from(micros) * 1000))
            }

            fn visit_u64<E: serde::de::Error>(self, micros: u64) -> Result<Timestamp, E> {
                Ok(Timestamp(i128::from(micros) * 1000))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

impl std::fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds, for example `2026-11-20T22:14:03.112345Z`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clamped =
            self.0.clamp(jiff::Timestamp::MIN.as_nanosecond(), jiff::Timestamp::MAX.as_nanosecond());
        match jiff::Timestamp::from_nanosecond(clamped) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) => f.write_str("0000-00-00T00:00:00.000000Z"),
        }
    }
}
