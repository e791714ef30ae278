//! What Cilium leaves on a node, without Cilium: pinned maps in the layouts of its versions, and the words that its program
//! leaves in a packet. The layouts are those measured on Cilium 1.12 to 1.20.

use super::program::{self, MAP_CREATE, MAP_UPDATE, OBJ_PIN};
use anyhow::{Context, Result};
use std::ffi::CString;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where Cilium pins its maps.
const GLOBALS: &str = "/sys/fs/bpf/tc/globals";
/// BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_HASH and BPF_MAP_TYPE_LPM_TRIE (include/uapi/linux/bpf.h).
const HASH: u32 = 1;
const PERCPU_HASH: u32 = 5;
const TRIE: u32 = 11;
/// BPF_F_NO_PREALLOC
const NO_PREALLOC: u32 = 1;
/// IPPROTO_UDP
const UDP: u8 = 17;

/// The layout of Cilium's policy maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.12 and 1.13.
    V12,
    /// 1.14 to 1.16.
    V14,
    /// 1.17.
    V17,
    /// 1.18.
    V18,
    /// 1.19.
    V19,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::V12, Self::V14, Self::V17, Self::V18, Self::V19];

    fn policy_pin(self, endpoint: u16) -> String {
        match self {
            Self::V12 | Self::V14 => format!("cilium_policy_{endpoint:05}"),
            _ => format!("cilium_policy_v2_{endpoint:05}"),
        }
    }

    /// Bytes of a policy map's value.
    fn value(self) -> usize {
        match self {
            Self::V12 | Self::V14 | Self::V17 => 24,
            Self::V18 => 8,
            Self::V19 => 12,
        }
    }
}

/// An entry of a policy map, for UDP and one port.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The peer's identity; 0 is any.
    pub identity: u32,
    /// Of packets that leave the endpoint.
    pub egress: bool,
    /// The destination port.
    pub port: u16,
    /// It denies.
    pub deny: bool,
    /// How the peer must authenticate; 0: it need not.
    pub auth: u8,
}

impl Rule {
    fn entry(self, version: Version) -> (Vec<u8>, Vec<u8>) {
        let mut key = Vec::new();
        if version == Version::V12 {
            key.extend(self.identity.to_ne_bytes());
            key.extend(self.port.to_be_bytes());
            key.extend([UDP, u8::from(self.egress)]);
        } else {
            // All of identity, direction, protocol and port count.
            key.extend(64_u32.to_ne_bytes());
            key.extend(self.identity.to_ne_bytes());
            key.extend([u8::from(self.egress), UDP]);
            key.extend(self.port.to_be_bytes());
        }
        let mut value = vec![0; version.value()];
        value[2] = u8::from(self.deny);
        if version != Version::V12 {
            // From 1.17 on the top bit says that the rule itself asks for it.
            let own = if version == Version::V14 || self.auth == 0 { 0 } else { 0x80 };
            value[3] = own | self.auth;
        }
        if version == Version::V19 && self.deny {
            value[4..8].fill(0xff);
        }
        (key, value)
    }
}

/// Cilium's maps of one endpoint.
#[derive(Debug)]
pub struct Maps {
    /// Kept open, so that the tests can change them.
    policy: OwnedFd,
    version: Version,
}

impl Maps {
    /// Makes and pins them: the endpoint with its addresses and identity, an ipcache that knows the endpoint and `peers`, and
    /// everything else as the world; and the endpoint's policy. Needs a bpffs of the test's own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(
        version: Version,
        endpoint: u16,
        identity: u32,
        addresses: &[IpAddr],
        peers: &[(IpAddr, u32)],
        rules: &[Rule],
    ) -> Result<Self> {
        std::fs::create_dir_all(GLOBALS)?;
        let endpoints: Vec<_> = addresses.iter().map(|it| local_endpoint(*it, endpoint, identity)).collect();
        pinned("cilium_lxc", HASH, (20, 48), &endpoints)?;
        let is_new = matches!(version, Version::V18 | Version::V19);
        let own = addresses.iter().map(|address| (*address, identity, 32 + bits(*address)));
        let others = peers.iter().map(|(address, identity)| (*address, *identity, 32 + bits(*address)));
        // world; where there are both families: world-ipv4 and world-ipv6. 2 stands for all in the tests.
        let any = ["0.0.0.0", "::"].map(|any| (any.parse::<IpAddr>(), 2, 32));
        let mut cache: Vec<_> =
            own.chain(others).map(|(at, id, prefix)| cached(at, id, prefix, is_new)).collect();
        for (address, identity, prefix) in any {
            cache.push(cached(address?, identity, prefix, is_new));
        }
        let (name, value) = if is_new { ("cilium_ipcache_v2", 24) } else { ("cilium_ipcache", 12) };
        pinned(name, TRIE, (24, value), &cache)?;
        let entries: Vec<_> = rules.iter().map(|rule| rule.entry(version)).collect();
        let (kind, key) = if version == Version::V12 { (HASH, 8) } else { (TRIE, 12) };
        let policy = pinned(&version.policy_pin(endpoint), kind, (key, version.value()), &entries)?;
        Ok(Self { policy, version })
    }

    /// Adds a rule to the policy.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, rule: Rule) -> Result<()> {
        let (key, value) = rule.entry(self.version);
        update(&self.policy, &key, &value)
    }
}

/// Who has authenticated (cilium_auth_map): entries of local identity, remote identity, the peer's node, type, and the end
/// from now in seconds. Needs a bpffs of the test's own.
///
/// # Errors
/// When the kernel refuses.
pub fn authenticated(entries: &[(u32, u32, u16, u8, i64)]) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let mut encoded = Vec::new();
    for (local, remote, node, kind, seconds) in entries {
        let [local, remote] = [local, remote].map(|id| id.to_ne_bytes());
        let key = [&local[..], &remote, &node.to_ne_bytes(), &[*kind, 0]].concat();
        // Units of 512 ns of Unix time.
        let end = (i128::try_from(now)? + i128::from(*seconds) * 1_000_000_000) / 512;
        encoded.push((key, u64::try_from(end)?.to_ne_bytes().to_vec()));
    }
    std::fs::create_dir_all(GLOBALS)?;
    pinned("cilium_auth_map", HASH, (12, 8), &encoded).map(drop)
}

/// What Cilium translates: TCP services of IPv4, each with where it leads (cilium_lb4_services_v2, cilium_lb4_backends_v3).
/// Needs a bpffs of the test's own.
///
/// # Errors
/// When the kernel refuses.
pub fn services(of: &[(SocketAddrV4, &[SocketAddrV4])]) -> Result<()> {
    const TCP: u8 = 6;
    let socket = |at: &SocketAddrV4| [&at.ip().octets()[..], &at.port().to_be_bytes()].concat();
    let (mut services, mut backends) = (Vec::new(), Vec::new());
    for (address, to) in of {
        // Slot 0 is the service; the others have the number of a backend each.
        let key = |slot: u16| [&socket(address)[..], &slot.to_ne_bytes(), &[TCP, 0, 0, 0]].concat();
        let value =
            |backend: u32, count: u16| [&backend.to_ne_bytes()[..], &count.to_ne_bytes(), &[0; 6]].concat();
        services.push((key(0), value(0, u16::try_from(to.len())?)));
        for (slot, backend) in (1_u16..).zip(*to) {
            let id = u32::try_from(backends.len())? + 1;
            services.push((key(slot), value(id, 0)));
            backends
                .push((id.to_ne_bytes().to_vec(), [&socket(backend)[..], &[TCP, 0, 0, 0, 0, 0]].concat()));
        }
    }
    std::fs::create_dir_all(GLOBALS)?;
    pinned("cilium_lb4_services_v2", HASH, (12, 12), &services)?;
    pinned("cilium_lb4_backends_v3", HASH, (4, 12), &backends).map(drop)
}

/// What Cilium counts (cilium_metrics), by drop code.
#[derive(Debug)]
pub struct Metrics(OwnedFd);

impl Metrics {
    /// Makes and pins the map. Needs a bpffs of the test's own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        std::fs::create_dir_all(GLOBALS)?;
        Ok(Self(pinned("cilium_metrics", PERCPU_HASH, (8, 16), &[])?))
    }

    /// Says how many packets were dropped by a code in all.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, code: u8, packets: u64) -> Result<()> {
        // Code, direction (1 is in), line, file, padding.
        let key = [code, 1, 0, 0, 0, 0, 0, 0];
        // Packets and bytes of each CPU that may come.
        let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
        let last = possible.trim().rsplit(['-', ',']).next().context("no CPU")?;
        let mut value = vec![0; 16 * (last.parse::<usize>()? + 1)];
        value[..8].copy_from_slice(&packets.to_ne_bytes());
        update(&self.0, &key, &value)
    }
}

/// What the program leaves in a packet (`__sk_buff->cb`): 1.13 and later.
#[must_use]
pub fn words(source: u32, destination: u32, code: u8, endpoint: u32) -> [u32; 5] {
    /// bpf_lxc.c, line 2121, and TC_ACT_SHOT.
    const FROM: u32 = 2121 << 16 | 2 << 8 | 2;
    [source, destination, u32::from(code), endpoint, FROM]
}

/// Likewise, 1.12 and earlier.
#[must_use]
pub fn old_words(source: u32, destination: u32, code: u8, endpoint: u32) -> [u32; 5] {
    [source, destination, (-i32::from(code)).cast_unsigned(), endpoint, 2]
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Its bytes, and its family as Cilium writes it.
fn sixteen(address: IpAddr) -> ([u8; 16], u8) {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            (bytes, 1)
        }
        IpAddr::V6(address) => (address.octets(), 2),
    }
}

/// An entry of cilium_lxc: address, family, padding; interface, padding, id, flags, MAC addresses, identity.
fn local_endpoint(address: IpAddr, id: u16, identity: u32) -> (Vec<u8>, Vec<u8>) {
    let (bytes, family) = sixteen(address);
    let mut key = bytes.to_vec();
    key.extend([family, 0, 0, 0]);
    let mut value = vec![0; 48];
    value[..4].copy_from_slice(&77_u32.to_ne_bytes());
    value[6..8].copy_from_slice(&id.to_ne_bytes());
    value[32..36].copy_from_slice(&identity.to_ne_bytes());
    (key, value)
}

/// An entry of the ipcache: prefix length with 32 fixed bits, cluster, padding, family, address; identity and tunnel.
fn cached(address: IpAddr, identity: u32, prefix: u32, is_new: bool) -> (Vec<u8>, Vec<u8>) {
    let (bytes, family) = sixteen(address);
    let mut key = prefix.to_ne_bytes().to_vec();
    key.extend([0, 0, 0, family]);
    key.extend(bytes);
    let mut value = identity.to_ne_bytes().to_vec();
    value.resize(if is_new { 24 } else { 12 }, 0);
    (key, value)
}

fn pinned(name: &str, kind: u32, sizes: (u32, usize), entries: &[(Vec<u8>, Vec<u8>)]) -> Result<OwnedFd> {
    /// The head of `union bpf_attr` for BPF_MAP_CREATE.
    #[repr(C)]
    struct Create {
        kind: u32,
        key: u32,
        value: u32,
        most: u32,
        flags: u32,
    }
    /// Likewise for BPF_OBJ_PIN.
    #[repr(C)]
    struct Pin {
        path_at: u64,
        fd: u32,
        flags: u32,
    }
    program::lift_limit();
    let create = Create { kind, key: sizes.0, value: sizes.1 as u32, most: 1024, flags: NO_PREALLOC };
    // SAFETY: the command reads such a structure; it returns a new descriptor.
    let map = unsafe { OwnedFd::from_raw_fd(program::bpf(MAP_CREATE, &create).context("create a map")?) };
    for (key, value) in entries {
        update(&map, key, value)?;
    }
    let path = CString::new(Path::new(GLOBALS).join(name).as_os_str().as_encoded_bytes())?;
    let pin = Pin { path_at: path.as_ptr() as u64, fd: u32::try_from(map.as_raw_fd())?, flags: 0 };
    // SAFETY: the command reads such a structure and the path.
    unsafe { program::bpf(OBJ_PIN, &pin) }.with_context(|| format!("pin {name}"))?;
    Ok(map)
}

fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<()> {
    /// The head of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
    #[repr(C)]
    struct Update {
        map: u32,
        padding: u32,
        key_at: u64,
        value_at: u64,
        flags: u64,
    }
    let update = Update {
        map: u32::try_from(map.as_raw_fd())?,
        padding: 0,
        key_at: key.as_ptr() as u64,
        value_at: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the command reads such a structure, and a key and a value of the map's sizes.
    unsafe { program::bpf(MAP_UPDATE, &update) }.context("update a map")?;
    Ok(())
}
