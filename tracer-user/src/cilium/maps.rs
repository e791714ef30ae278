//! The bytes of Cilium's maps. Their layouts change in almost every minor release, so each is told by the map's type and
//! sizes; another one is not guessed at. Numbers are in the machine's byte order but where it says "be" (bpf/lib/*.h).

use crate::event::model::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// Which way a packet went, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Into it.
    Ingress,
    /// Out of it.
    Egress,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What is asked of Cilium's maps, as they are now: a drop was before.
pub trait Maps {
    /// The endpoints of this node and its own addresses (cilium_lxc).
    ///
    /// # Errors
    /// When the map can't be read.
    fn endpoints(&mut self) -> Result<Arc<[LocalEndpoint]>, Unread>;

    /// An endpoint's policy.
    ///
    /// # Errors
    /// When the map can't be read.
    fn policy(&mut self, endpoint: u32) -> Result<Arc<PolicyMap>, Unread>;

    /// What an address is resolved to (cilium_ipcache); `None` if nothing covers it.
    ///
    /// # Errors
    /// When the map can't be read.
    fn resolve(&mut self, address: IpAddr) -> Result<Option<Resolved>, Unread>;

    /// Which peers have authenticated (cilium_auth_map).
    ///
    /// # Errors
    /// When the map can't be read.
    fn authentications(&mut self) -> Result<Arc<Authentications>, Unread>;
}

/// Maps that may not have been found.
impl<M: Maps> Maps for Result<M, Unread> {
    fn endpoints(&mut self) -> Result<Arc<[LocalEndpoint]>, Unread> {
        self.as_mut().map_err(|error| error.clone())?.endpoints()
    }

    fn policy(&mut self, endpoint: u32) -> Result<Arc<PolicyMap>, Unread> {
        self.as_mut().map_err(|error| error.clone())?.policy(endpoint)
    }

    fn resolve(&mut self, address: IpAddr) -> Result<Option<Resolved>, Unread> {
        self.as_mut().map_err(|error| error.clone())?.resolve(address)
    }

    fn authentications(&mut self) -> Result<Arc<Authentications>, Unread> {
        self.as_mut().map_err(|error| error.clone())?.authentications()
    }
}

/// Why a map was not read.
#[derive(Clone, Debug, Error)]
pub enum Unread {
    /// No map of Cilium's anywhere.
    #[error(
        "no maps of Cilium's are pinned under {}: the BPF file system is not mounted here, or Cilium never ran; in a \
         container mount the host's /sys/fs/bpf, read-only is enough",
        looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
    )]
    Absent {
        /// Where they were looked for.
        looked: Vec<PathBuf>,
    },
    /// Others, but not this one.
    #[error("Cilium has no map {} in {}: {why}", names.join(" or "), directory.display())]
    Missing {
        /// Where it should be.
        directory: PathBuf,
        /// What it may be called.
        names: Vec<String>,
        /// What that may mean.
        why: &'static str,
    },
    /// The kernel refuses it.
    #[error("cannot read Cilium's map {}: {source}{}", path.display(), remedy(source))]
    Refused {
        /// Where it is pinned.
        path: PathBuf,
        /// The kernel's words.
        source: Arc<io::Error>,
    },
    /// It can be read, but not understood.
    #[error(transparent)]
    Layout(#[from] UnknownLayout),
}

/// What helps against an error of the kernel's.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run droptrace as root or with CAP_BPF",
        _ => "; look at it with `bpftool map show pinned`",
    }
}

/// A map that is of none of the layouts known here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "Cilium's map {pin} has an unknown layout ({shape}), so what is in it is not told; a newer droptrace may know it"
)]
pub struct UnknownLayout {
    /// The name of its pin.
    pub pin: String,
    /// What it is.
    pub shape: Shape,
}

/// A map's type and sizes (struct bpf_map_info).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// BPF_MAP_TYPE_*
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value; for a per-CPU map of one CPU's.
    pub value: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.kind {
            HASH => "hash",
            PERCPU_HASH => "percpu_hash",
            LPM_TRIE => "lpm_trie",
            other => return write!(f, "type {other}, key {} bytes, value {} bytes", self.key, self.value),
        };
        write!(f, "type {name}, key {} bytes, value {} bytes", self.key, self.value)
    }
}

/// BPF_MAP_TYPE_* (include/uapi/linux/bpf.h).
pub const HASH: u32 = 1;
/// Likewise: a value for each CPU.
pub const PERCPU_HASH: u32 = 5;
/// Likewise: the longest prefix that matches.
pub const LPM_TRIE: u32 = 11;

/// The layouts of an endpoint's policy map, named by the version that brought them (bpf/lib/policy.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyLayout {
    /// 1.12 and 1.13: a hash, `cilium_policy_` and the endpoint in five digits.
    V12,
    /// 1.14 to 1.16: a trie, the same pin.
    V14,
    /// 1.17: values as long, but other bits; `cilium_policy_v2_`, as all later ones.
    V17,
    /// 1.18: without counters.
    V18,
    /// 1.19: with precedence.
    V19,
}

/// The pins of a policy map, newest first. After an upgrade an older one may be left behind, no longer used. Of the
/// first it is only known that there is one.
pub const POLICY_PINS: [&str; 3] = ["cilium_policy_v3_", "cilium_policy_v2_", "cilium_policy_"];

impl PolicyLayout {
    /// The layout of a policy map with that pin.
    ///
    /// # Errors
    /// When it is not known.
    pub fn of(pin: &str, shape: Shape) -> Result<Self, UnknownLayout> {
        let version =
            |prefix: &str| pin.strip_prefix(prefix)?.bytes().all(|c| c.is_ascii_digit()).then_some(());
        let [_, second, first] = POLICY_PINS.map(|prefix| version(prefix).is_some());
        Ok(match (shape.kind, shape.key, shape.value) {
            (HASH, 8, 24) if first => Self::V12,
            (LPM_TRIE, 12, 24) if first => Self::V14,
            (LPM_TRIE, 12, 24) if second => Self::V17,
            (LPM_TRIE, 12, 8) if second => Self::V18,
            (LPM_TRIE, 12, 12) if second => Self::V19,
            _ => return Err(UnknownLayout { pin: pin.to_owned(), shape }),
        })
    }

    /// An entry; `None` if it makes no sense.
    #[must_use]
    pub fn entry(self, key: &[u8], value: &[u8]) -> Option<PolicyEntry> {
        let (identity, egress, protocol, ports) = match self {
            // identity u32, dport be16, protocol u8, bit 0 egress u8. No port is 0, no protocol likewise.
            Self::V12 => {
                let (port, protocol) = (u16::from_be_bytes(bytes(key, 4)?), byte(key, 6)?);
                let ports = (port != 0).then_some(Ports { first: port, bits: 16 });
                (u32_at(key, 0)?, byte(key, 7)?, (protocol != 0).then_some(protocol), ports)
            }
            // prefix u32, identity u32, bit 0 egress u8, protocol u8, dport be16. Of identity and direction all bits
            // count always; then those of the protocol; then as many of the port as the prefix has left.
            _ => {
                let port = u16::from_be_bytes(bytes(key, 10)?);
                let (protocol, bits) = match u32_at(key, 0)? {
                    40 => (None, 0),
                    prefix @ 48..=64 => (Some(byte(key, 9)?), u8::try_from(prefix - 48).ok()?),
                    _ => return None,
                };
                (u32_at(key, 4)?, byte(key, 8)?, protocol, Ports::of(port, bits))
            }
        };
        // proxy port be16, flags u8 with bit 0 deny, then by layout; packets and bytes follow until 1.17.
        let flags = byte(value, 2)?;
        let auth = match self {
            Self::V12 => 0,
            _ => byte(value, 3)?,
        };
        let (auth, is_auth_its_own) = match self {
            Self::V12 | Self::V14 => (auth, true),
            _ => (auth & 0x7f, auth & 0x80 != 0),
        };
        let precedence = match self {
            Self::V12 | Self::V14 => 0,
            Self::V17 | Self::V18 => u32::from(byte(value, 4)?),
            Self::V19 => u32_at(value, 4)?,
        };
        Some(PolicyEntry {
            identity,
            direction: if egress & 1 == 1 { Direction::Egress } else { Direction::Ingress },
            protocol,
            ports,
            is_deny: flags & 1 == 1,
            auth,
            is_auth_its_own,
            proxy_port: u16::from_be_bytes(bytes(value, 0)?),
            precedence,
        })
    }
}

/// An endpoint's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyMap {
    /// How the datapath chooses between entries depends on it.
    pub layout: PolicyLayout,
    /// Its entries. None denies everything.
    pub entries: Vec<PolicyEntry>,
    /// False if it was too large to be read whole, or has entries that make no sense.
    pub is_complete: bool,
}

/// An entry of a policy map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyEntry {
    /// The peer; 0 is any.
    pub identity: u32,
    /// For which direction.
    pub direction: Direction,
    /// For which IP protocol; `None` is any.
    pub protocol: Option<u8>,
    /// For which destination ports (of ICMP, types); `None` is any.
    pub ports: Option<Ports>,
    /// It denies, else it allows.
    pub is_deny: bool,
    /// How the peers must authenticate; 0 if they need not.
    pub auth: u8,
    /// That comes from this entry's rule, not from another's.
    pub is_auth_its_own: bool,
    /// The proxy that takes what is allowed; 0 is none.
    pub proxy_port: u16,
    /// The proxy's priority (1.17, 1.18) or the entry's precedence (from 1.19).
    pub precedence: u32,
}

/// Ports that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The first of them.
    pub first: u16,
    /// How many bits are the same: 1 to 16.
    pub bits: u8,
}

impl Ports {
    /// Those that begin with so many bits of a port; `None` is any.
    #[must_use]
    pub fn of(port: u16, bits: u8) -> Option<Self> {
        let free = 16_u32.checked_sub(u32::from(bits)).filter(|free| *free < 16)?;
        Some(Self { first: port & (u16::MAX << free), bits })
    }

    /// The last of them.
    #[must_use]
    pub fn last(self) -> u16 {
        self.first | u16::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0)
    }

    /// True if a port is one of them.
    #[must_use]
    pub fn contain(self, port: u16) -> bool {
        (self.first..=self.last()).contains(&port)
    }
}

/// Bits of an ipcache key before the address: cluster id, padding, family. They count always.
const IPCACHE_FIXED: u32 = 32;

/// The layouts of the ipcache (bpf/lib/eps.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpcacheLayout {
    /// Until 1.17: `cilium_ipcache`.
    V1,
    /// From 1.18: `cilium_ipcache_v2`.
    V2,
}

impl IpcacheLayout {
    /// The layout of an ipcache map with that pin.
    ///
    /// # Errors
    /// When it is not known.
    pub fn of(pin: &str, shape: Shape) -> Result<Self, UnknownLayout> {
        match (shape.kind, shape.key, shape.value) {
            (LPM_TRIE, 24, 12) => Ok(Self::V1),
            (LPM_TRIE, 24, 24) => Ok(Self::V2),
            _ => Err(UnknownLayout { pin: pin.to_owned(), shape }),
        }
    }

    /// The key of an address's first bits, in the node's own cluster: prefix u32, cluster u16, padding u8, family u8,
    /// address be.
    #[must_use]
    pub fn key(address: IpAddr, bits: u8) -> [u8; 24] {
        let mut key = [0; 24];
        let (prefix, rest) = key.split_at_mut(4);
        prefix.copy_from_slice(&(IPCACHE_FIXED + u32::from(bits)).to_ne_bytes());
        let (fixed, to) = rest.split_at_mut(4);
        fixed.copy_from_slice(&[0, 0, 0, family(address)]);
        to.copy_from_slice(&sixteen(address));
        key
    }

    /// What a value says. Until 1.17: identity u32, tunnel be32, padding u16, key u8, flags u8; then the tunnel has 16
    /// bytes, and the flags say in bit 2 that it is IPv6.
    #[must_use]
    pub fn value(self, value: &[u8]) -> Option<(u32, Option<IpAddr>)> {
        let identity = u32_at(value, 0)?;
        let v4 = IpAddr::from(bytes::<4>(value, 4)?);
        let tunnel = match self {
            Self::V2 if byte(value, 23)? & 4 != 0 => IpAddr::from(bytes::<16>(value, 4)?),
            _ => v4,
        };
        Some((identity, Some(tunnel).filter(|address| !address.is_unspecified())))
    }
}

/// What an address is resolved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its security identity.
    pub identity: u32,
    /// The node that it is behind.
    pub tunnel: Option<IpAddr>,
    /// How many bits of the address decided: 0 if only the default did.
    pub bits: u8,
}

/// An endpoint of this node, or one of the node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// One of its addresses.
    pub address: IpAddr,
    /// Its id.
    pub id: u16,
    /// The interface that leads to it, in the agent's network namespace; 0 for the node's own addresses.
    pub interface: u32,
    /// It is the node itself.
    pub is_host: bool,
    /// Its security identity; `None` before 1.14.
    pub identity: Option<u32>,
}

impl LocalEndpoint {
    /// An entry of cilium_lxc (struct endpoint_key and endpoint_info, bpf/lib/eps.h); `None` if it makes no sense.
    #[must_use]
    pub fn entry(key: &[u8], value: &[u8]) -> Option<Self> {
        const HOST: u32 = 1;
        let address = match byte(key, 16)? {
            1 => IpAddr::from(bytes::<4>(key, 0)?),
            2 => IpAddr::from(bytes::<16>(key, 0)?),
            _ => return None,
        };
        Some(Self {
            address,
            id: u16::from_ne_bytes(bytes(value, 6)?),
            interface: u32_at(value, 0)?,
            is_host: u32_at(value, 8)? & HOST != 0,
            identity: Some(u32_at(value, 32)?).filter(|identity| *identity != 0),
        })
    }

    /// Checks that a map has such entries.
    ///
    /// # Errors
    /// When it has not.
    pub fn check(pin: &str, shape: Shape) -> Result<(), UnknownLayout> {
        let known = Shape { kind: HASH, key: 20, value: 48 };
        if shape == known { Ok(()) } else { Err(UnknownLayout { pin: pin.to_owned(), shape }) }
    }
}

/// Peers that have authenticated: cilium_auth_map, from 1.14.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authentications {
    /// Its entries.
    pub entries: Vec<Authentication>,
    /// False if it was too large to be read whole, or has entries that make no sense.
    pub is_complete: bool,
}

/// That the pods of two identities have authenticated to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// The identity of this node's pod.
    pub local: u32,
    /// The other one's.
    pub remote: u32,
    /// The other one's node, as the agent numbers them; 0 is this one.
    pub node: u16,
    /// How they did ([`super::codes::extended`]).
    pub kind: u8,
    /// Until when that counts.
    pub expires: Timestamp,
}

impl Authentication {
    /// An entry (struct auth_key and auth_info, bpf/lib/common.h): local and remote identity u32, node id u16, type u8,
    /// padding; the end in units of 512 ns of Unix time, u64.
    #[must_use]
    pub fn entry(key: &[u8], value: &[u8]) -> Option<Self> {
        const UNIT: i128 = 512;
        Some(Self {
            local: u32_at(key, 0)?,
            remote: u32_at(key, 4)?,
            node: u16::from_ne_bytes(bytes(key, 8)?),
            kind: byte(key, 10)?,
            expires: Timestamp(i128::from(u64::from_ne_bytes(bytes(value, 0)?)) * UNIT),
        })
    }

    /// Checks that a map has such entries.
    ///
    /// # Errors
    /// When it has not.
    pub fn check(pin: &str, shape: Shape) -> Result<(), UnknownLayout> {
        let known = Shape { kind: HASH, key: 12, value: 8 };
        if shape == known { Ok(()) } else { Err(UnknownLayout { pin: pin.to_owned(), shape }) }
    }
}

/// Packets that Cilium counted, by reason: below [`super::codes::FIRST`] those that it let pass.
pub type Metrics = BTreeMap<u8, u64>;

/// An entry of cilium_metrics (struct metrics_key and metrics_value, bpf/lib/metrics.h), as the reason and the packets
/// of all CPUs: reason u8, then direction, line and file, which are not told apart here; on each CPU packets u64, bytes
/// u64.
#[must_use]
pub fn metric(key: &[u8], per_cpu: &[u8]) -> Option<(u8, u64)> {
    let packets =
        per_cpu.as_chunks::<16>().0.iter().filter_map(|cpu| Some(u64::from_ne_bytes(bytes(cpu, 0)?)));
    Some((byte(key, 0)?, packets.fold(0, u64::wrapping_add)))
}

/// Whether an entry of cilium_metrics is about a drop in Cilium's XDP program: the source file's id is at 4. `None` before
/// 1.16, whose entries have no file.
#[must_use]
pub fn is_xdp_drop(key: &[u8]) -> Option<bool> {
    /// bpf_xdp.c (bpf/source_names_to_ids.h).
    const XDP: u8 = 4;
    let file = byte(key, 4).filter(|file| *file != 0)?;
    Some(file == XDP && byte(key, 0)? >= super::codes::FIRST)
}

/// Checks that a map is such a one.
///
/// # Errors
/// When it is not.
pub fn check_metrics(pin: &str, shape: Shape) -> Result<(), UnknownLayout> {
    let known = Shape { kind: PERCPU_HASH, key: 8, value: 16 };
    if shape == known { Ok(()) } else { Err(UnknownLayout { pin: pin.to_owned(), shape }) }
}

/// ENDPOINT_KEY_IPV4 and _IPV6 (bpf/lib/common.h).
fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 1 } else { 2 }
}

/// An address in 16 bytes, IPv4 in the first four.
fn sixteen(address: IpAddr) -> [u8; 16] {
    let v4 = |address: Ipv4Addr| u128::from(address.to_bits()) << 96;
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => address.to_bits(),
    }
    .to_be_bytes()
}

/// The network that an address's first bits name, for example `10.0.0.0/8`.
#[must_use]
pub fn network(address: IpAddr, bits: u8) -> String {
    let kept = u32::from(bits);
    let address = match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(kept)).unwrap_or(0);
            IpAddr::from(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(kept)).unwrap_or(0);
            IpAddr::from(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    };
    format!("{address}/{bits}")
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

fn byte(from: &[u8], at: usize) -> Option<u8> {
    from.get(at).copied()
}

fn u32_at(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::super::random::Random;
    use super::*;

    fn shape(kind: u32, key: u32, value: u32) -> Shape {
        Shape { kind, key, value }
    }

    /// Bytes of a trie's key, from the prefix on.
    fn key(prefix: u32, identity: u32, egress: u8, protocol: u8, port: u16) -> Vec<u8> {
        let [prefix, identity] = [prefix, identity].map(u32::to_ne_bytes);
        [&prefix[..], &identity, &[egress, protocol], &port.to_be_bytes()].concat()
    }

    /// Layouts without the bit that says so have authentication of their own.
    const ANY: PolicyEntry = PolicyEntry { is_auth_its_own: true, ..fixtures::ANY };

    #[test]
    fn policy_maps_are_told_by_shape_and_pin() {
        use PolicyLayout as L;
        let of = |pin, kind, key, value| PolicyLayout::of(pin, shape(kind, key, value)).ok();
        let (first, second) = ("cilium_policy_02636", "cilium_policy_v2_02636");
        assert_eq!(of(first, HASH, 8, 24), Some(L::V12));
        assert_eq!(of(first, LPM_TRIE, 12, 24), Some(L::V14));
        assert_eq!(of(second, LPM_TRIE, 12, 24), Some(L::V17));
        assert_eq!(of(second, LPM_TRIE, 12, 8), Some(L::V18));
        assert_eq!(of(second, LPM_TRIE, 12, 12), Some(L::V19));
        for (pin, kind, key, value) in [
            (first, LPM_TRIE, 12, 8),
            (second, HASH, 8, 24),
            (second, LPM_TRIE, 12, 16),
            (second, LPM_TRIE, 16, 12),
            (second, HASH, 12, 12),
            ("cilium_policy_v3_02636", LPM_TRIE, 12, 12),
            ("other", LPM_TRIE, 12, 24),
        ] {
            assert_eq!(of(pin, kind, key, value), None, "{pin}");
        }
        let error = PolicyLayout::of(second, shape(LPM_TRIE, 12, 16)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Cilium's map cilium_policy_v2_02636 has an unknown layout (type lpm_trie, key 12 bytes, value 16 \
             bytes), so what is in it is not told; a newer droptrace may know it"
        );
    }

    #[test]
    fn entries_of_the_hash() {
        let value = [&[0x1f, 0x90, 1][..], &[0; 21]].concat();
        let port = [&4711_u32.to_ne_bytes()[..], &8080_u16.to_be_bytes(), &[6, 1]].concat();
        assert_eq!(
            PolicyLayout::V12.entry(&port, &value),
            Some(PolicyEntry {
                identity: 4711,
                direction: Direction::Egress,
                protocol: Some(6),
                ports: Some(Ports { first: 8080, bits: 16 }),
                is_deny: true,
                proxy_port: 8080,
                ..ANY
            })
        );
        assert_eq!(PolicyLayout::V12.entry(&[0; 8], &[0; 24]), Some(ANY));
    }

    #[test]
    fn entries_of_the_tries() {
        let k = key(64, 4711, 1, 6, 8080);
        let base = PolicyEntry {
            identity: 4711,
            direction: Direction::Egress,
            protocol: Some(6),
            ports: Some(Ports { first: 8080, bits: 16 }),
            ..ANY
        };
        // 1.14: bits 1 and 2 of the flags repeat what the prefix says, byte 3 is the authentication.
        let v14 = [&[0, 0, 7, 0x81][..], &[9; 20]].concat();
        assert_eq!(
            PolicyLayout::V14.entry(&k, &v14),
            Some(PolicyEntry { is_deny: true, auth: 0x81, ..base })
        );
        // 1.17, 1.18: the prefix in bits 3 to 7, an explicit authentication in bit 7, then the proxy's priority.
        let v17 = [&[0, 80, 0xc0, 0x81, 3][..], &[0; 19]].concat();
        let expected = PolicyEntry { auth: 1, proxy_port: 80, precedence: 3, ..base };
        assert_eq!(PolicyLayout::V17.entry(&k, &v17), Some(expected));
        assert_eq!(PolicyLayout::V18.entry(&k, &v17[..8]), Some(expected));
        let inherited = [0, 0, 0, 1, 0, 0, 0, 0];
        let expected = PolicyEntry { auth: 1, is_auth_its_own: false, ..base };
        assert_eq!(PolicyLayout::V18.entry(&k, &inherited), Some(expected));
        // 1.19
        let v19 = [&[0, 0, 1, 0][..], &u32::MAX.to_ne_bytes(), &[5; 4]].concat();
        let expected = PolicyEntry { is_deny: true, is_auth_its_own: false, precedence: u32::MAX, ..base };
        assert_eq!(PolicyLayout::V19.entry(&k, &v19), Some(expected));
    }

    #[test]
    fn a_tries_prefix_says_what_counts() {
        let entry = |prefix| PolicyLayout::V18.entry(&key(prefix, 7, 0, 17, 0xffff), &[0; 8]);
        let counts = |prefix| entry(prefix).map(|it| (it.protocol, it.ports));
        assert_eq!(counts(40), Some((None, None)));
        assert_eq!(counts(48), Some((Some(17), None)));
        assert_eq!(counts(49), Some((Some(17), Some(Ports { first: 0x8000, bits: 1 }))));
        assert_eq!(counts(60), Some((Some(17), Some(Ports { first: 0xfff0, bits: 12 }))));
        assert_eq!(counts(64), Some((Some(17), Some(Ports { first: 0xffff, bits: 16 }))));
        for prefix in [0, 39, 41, 47, 65, u32::MAX] {
            assert_eq!(counts(prefix), None, "{prefix}");
        }
    }

    #[test]
    fn bytes_that_are_too_few_are_no_entry() {
        for layout in
            [PolicyLayout::V12, PolicyLayout::V14, PolicyLayout::V17, PolicyLayout::V18, PolicyLayout::V19]
        {
            let whole = key(64, 1, 0, 6, 80);
            for length in 0..8 {
                assert_eq!(layout.entry(&whole[..length], &[0; 24]), None);
            }
            assert_eq!(layout.entry(&whole, &[0; 2]), None);
        }
        assert_eq!(LocalEndpoint::entry(&[1; 16], &[0; 48]), None);
        assert_eq!(LocalEndpoint::entry(&[1; 20], &[0; 35]), None);
        assert_eq!(IpcacheLayout::V2.value(&[0; 12]), None);
        assert_eq!(metric(&[], &[0; 16]), None);
    }

    #[test]
    fn whatever_the_bytes_are_an_entry_makes_sense() {
        let mut random = Random(3);
        let layouts =
            [PolicyLayout::V12, PolicyLayout::V14, PolicyLayout::V17, PolicyLayout::V18, PolicyLayout::V19];
        let mut understood = 0;
        for _ in 0..20_000 {
            let length = random.word() as usize % 40;
            let mut key = random.bytes(length);
            let value = random.bytes(48);
            if let [first, rest @ ..] = &mut key[..] {
                // Often a prefix that may be one.
                *first %= 80;
                rest.iter_mut().take(3).for_each(|byte| *byte = 0);
            }
            for layout in layouts {
                let Some(entry) = layout.entry(&key, &value) else { continue };
                understood += 1;
                assert!(entry.ports.is_none() || entry.protocol.is_some() || layout == PolicyLayout::V12);
                let is_range = |ports: Ports| {
                    let size = u32::from(ports.last()) - u32::from(ports.first) + 1;
                    size.is_power_of_two() && u32::from(ports.first) % size == 0 && ports.contain(ports.first)
                };
                assert!(entry.ports.is_none_or(is_range), "{entry:?}");
            }
            let _ = LocalEndpoint::entry(&key, &value);
            let _ = metric(&key, &value);
            for layout in [IpcacheLayout::V1, IpcacheLayout::V2] {
                let _ = layout.value(&value[..length]);
            }
        }
        assert!(understood > 20_000);
    }

    #[test]
    fn ports_that_begin_alike() {
        let some = Ports::of(8085, 12).unwrap();
        assert_eq!((some.first, some.last()), (8080, 8095));
        assert!(some.contain(8080) && some.contain(8095) && !some.contain(8079) && !some.contain(8096));
        let one = Ports::of(65535, 16).unwrap();
        assert_eq!((one.first, one.last()), (65535, 65535));
        assert_eq!(Ports::of(1, 1).unwrap().last(), 0x7fff);
        assert_eq!([Ports::of(1, 0), Ports::of(1, 17)], [None, None]);
    }

    #[test]
    fn the_ipcache() {
        let address = IpAddr::from([10, 244, 3, 7]);
        assert_eq!(
            IpcacheLayout::key(address, 32),
            [&64_u32.to_ne_bytes()[..], &[0, 0, 0, 1, 10, 244, 3, 7], &[0; 12]].concat()[..]
        );
        let v6: IpAddr = "fd00::7".parse().unwrap();
        let expected = [&160_u32.to_ne_bytes()[..], &[0, 0, 0, 2, 0xfd], &[0; 14], &[7]].concat();
        assert_eq!(IpcacheLayout::key(v6, 128), expected[..]);

        let of = |kind, key, value| IpcacheLayout::of("cilium_ipcache", shape(kind, key, value)).ok();
        assert_eq!(of(LPM_TRIE, 24, 12), Some(IpcacheLayout::V1));
        assert_eq!(of(LPM_TRIE, 24, 24), Some(IpcacheLayout::V2));
        assert_eq!([of(LPM_TRIE, 24, 16), of(HASH, 24, 12)], [None, None]);

        let id = 4711_u32.to_ne_bytes();
        let old = [&id[..], &[10, 0, 0, 9, 0, 0, 0, 0]].concat();
        assert_eq!(IpcacheLayout::V1.value(&old), Some((4711, Some(IpAddr::from([10, 0, 0, 9])))));
        let mut new = [&id[..], &[10, 0, 0, 9], &[0; 16]].concat();
        assert_eq!(IpcacheLayout::V2.value(&new), Some((4711, Some(IpAddr::from([10, 0, 0, 9])))));
        new[4..20].copy_from_slice(&sixteen(v6));
        new[23] = 4;
        assert_eq!(IpcacheLayout::V2.value(&new), Some((4711, Some(v6))));
        assert_eq!(IpcacheLayout::V1.value(&[0; 12]), Some((0, None)));
    }

    #[test]
    fn networks() {
        assert_eq!(network(IpAddr::from([10, 244, 3, 7]), 0), "0.0.0.0/0");
        assert_eq!(network(IpAddr::from([10, 244, 3, 7]), 24), "10.244.3.0/24");
        assert_eq!(network(IpAddr::from([10, 244, 3, 7]), 32), "10.244.3.7/32");
        assert_eq!(network("fd00::7".parse().unwrap(), 0), "::/0");
        assert_eq!(network("fd00::7".parse().unwrap(), 8), "fd00::/8");
    }

    #[test]
    fn local_endpoints() {
        let mut key = [0; 20];
        key[..4].copy_from_slice(&[10, 11, 1, 5]);
        key[16] = 1;
        let mut value = [0xaa; 48];
        value[..4].copy_from_slice(&12_u32.to_ne_bytes());
        value[6..8].copy_from_slice(&2636_u16.to_ne_bytes());
        value[8..12].copy_from_slice(&0_u32.to_ne_bytes());
        value[32..36].copy_from_slice(&12345_u32.to_ne_bytes());
        let pod = LocalEndpoint {
            address: IpAddr::from([10, 11, 1, 5]),
            id: 2636,
            interface: 12,
            is_host: false,
            identity: Some(12345),
        };
        assert_eq!(LocalEndpoint::entry(&key, &value), Some(pod));
        value[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        value[32..36].copy_from_slice(&[0; 4]);
        assert_eq!(
            LocalEndpoint::entry(&key, &value),
            Some(LocalEndpoint { is_host: true, identity: None, ..pod })
        );
        key[16] = 2;
        assert_eq!(
            LocalEndpoint::entry(&key, &value).unwrap().address,
            "a0b:105::".parse::<IpAddr>().unwrap()
        );
        key[16] = 3;
        assert_eq!(LocalEndpoint::entry(&key, &value), None);
        assert!(LocalEndpoint::check("cilium_lxc", shape(HASH, 20, 48)).is_ok());
        assert!(LocalEndpoint::check("cilium_lxc", shape(HASH, 20, 64)).is_err());
    }

    #[test]
    fn drops_of_ciliums_xdp_program() {
        // Reason, direction, line, file.
        let is = |reason, file| is_xdp_drop(&[reason, 1, 9, 0, file, 0, 0, 0]);
        assert_eq!(
            [is(133, 4), is(133, 2), is(0, 4), is(133, 0)],
            [Some(true), Some(false), Some(false), None]
        );
        assert_eq!(is_xdp_drop(&[133]), None);
    }

    #[test]
    fn who_has_authenticated() {
        let key = [&[1, 0, 0, 0, 2, 0, 0, 0][..], &7_u16.to_ne_bytes(), &[3, 0]].concat();
        let found = Authentication::entry(&key, &1_953_125_u64.to_ne_bytes()).unwrap();
        let Authentication { local, remote, node, kind, expires } = found;
        assert_eq!((local.to_le(), remote.to_le(), node, kind), (1, 2, 7, 3));
        // A second is 1,953,125 units.
        assert_eq!(expires, Timestamp(1_000_000_000));
        assert_eq!(
            [Authentication::entry(&key[..10], &[0; 8]), Authentication::entry(&key, &[0; 4])],
            [None; 2]
        );
        let shape = Shape { kind: HASH, key: 12, value: 8 };
        assert!(Authentication::check("cilium_auth_map", shape).is_ok());
        assert!(Authentication::check("cilium_auth_map", Shape { value: 16, ..shape }).is_err());
    }

    #[test]
    fn metrics_are_added_up_over_the_cpus() {
        let cpu = |packets: u64| [packets.to_ne_bytes(), [0xff; 8]].concat();
        assert_eq!(metric(&[133, 1, 0, 0, 0, 0, 0, 0], &[cpu(3), cpu(0), cpu(39)].concat()), Some((133, 42)));
        assert!(check_metrics("cilium_metrics", shape(PERCPU_HASH, 8, 16)).is_ok());
        assert!(check_metrics("cilium_metrics", shape(HASH, 8, 16)).is_err());
    }
}
