//! Cilium's maps, read where its agent pinned them. Each is opened with BPF_F_RDONLY, so that the kernel itself keeps
//! droptrace from writing to it. The agent need not run.

use super::maps::{
    Authentication, Authentications, IpcacheLayout, LocalEndpoint, Maps, Metrics, PERCPU_HASH, POLICY_PINS,
    PolicyLayout, PolicyMap, Resolved, Shape, UnknownLayout, Unread, check_metrics, is_xdp_drop, metric,
};
use super::services::{self, Translated};
use crate::probe::bpf;
use aya_obj::generated::{bpf_cmd, bpf_map_info};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the BPF file system with Cilium's maps may be mounted.
pub const ROOTS: [&str; 2] = ["/sys/fs/bpf", "/run/cilium/bpffs"];
/// Where in it they are (pkg/bpf/bpffs_linux.go).
const GLOBALS: &str = "tc/globals";
/// Entries of a map that are read at most: as many as a policy map may have. Time, likewise.
const ENTRIES: usize = 65536;
const TIME: Duration = Duration::from_millis(500);
/// Bytes of a key or value that are believed.
const SIZE: u32 = 4096;

/// The pinned maps of the Cilium on this node.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Finds them under one of such [`ROOTS`]; the first that has any.
    ///
    /// # Errors
    /// When none has, or it can't be looked into.
    pub fn find(roots: &[impl AsRef<Path>]) -> Result<Self, Unread> {
        let directories = roots.iter().map(|root| root.as_ref().join(GLOBALS));
        let mut looked = Vec::new();
        for directory in directories {
            match has_maps(&directory) {
                Ok(true) => return Ok(Self { directory }),
                Ok(false) => looked.push(directory),
                Err(source) if is_absent(&source) => looked.push(directory),
                Err(source) => return Err(Unread::Refused { path: directory, source: Arc::new(source) }),
            }
        }
        Err(Unread::Absent { looked })
    }

    /// What Cilium counted (cilium_metrics).
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn metrics(&self) -> Result<Metrics, Unread> {
        let mut metrics = Metrics::new();
        for (key, value) in self.counted()? {
            if let Some((reason, packets)) = metric(&key, &value) {
                *metrics.entry(reason).or_default() += packets;
            }
        }
        Ok(metrics)
    }

    /// What Cilium counted of the drops of its XDP program; `None` if it does not say where drops were (before 1.16).
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn xdp_drops(&self) -> Result<Option<u64>, Unread> {
        let of_one = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            let (_, packets) = metric(key, value)?;
            Some(if is_xdp_drop(key)? { packets } else { 0 })
        };
        let told = self.counted()?.iter().filter_map(of_one).reduce(u64::wrapping_add);
        Ok(told)
    }

    /// What services it translates, of both families.
    ///
    /// # Errors
    /// When the maps can't be read, or there are none.
    pub fn services(&self) -> Result<Vec<Translated>, Unread> {
        let mut all = Vec::new();
        let mut missing = None;
        for (of_services, of_backends) in &services::PINS {
            match self.read_whole(of_services, services::check_services) {
                Ok(entries) => {
                    let backends = self.read_whole(of_backends, services::check_backends);
                    let backends = backends.map_err(|error| match error {
                        // Services without it are no family that is off.
                        Unread::Missing { .. } => {
                            self.refused(of_backends[0], io::ErrorKind::NotFound.into())
                        }
                        other => other,
                    })?;
                    all.push(services::translated(&entries, &backends));
                }
                Err(error @ Unread::Missing { .. }) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        match missing {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all.concat()),
        }
    }

    /// All entries of the first of some maps that is there.
    fn read_whole(
        &self,
        names: &[&str],
        check: fn(&str, Shape) -> Result<(), UnknownLayout>,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Unread> {
        let (pin, map) = self.open(names, "this Cilium does not keep one")?;
        check(&pin, map.shape)?;
        let entries = map.entries().map_err(|source| self.refused(&pin, source))?;
        if !entries.is_whole {
            return Err(self.refused(&pin, io::Error::other("it is too large")));
        }
        Ok(entries.read)
    }

    /// The entries of cilium_metrics.
    fn counted(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Unread> {
        self.read_whole(&["cilium_metrics"], check_metrics)
    }

    /// The first of some pins that is there, and its name.
    fn open(&self, names: &[&str], why: &'static str) -> Result<(String, Map), Unread> {
        for name in names {
            match Map::open(&self.directory.join(name)) {
                Ok(map) => return Ok(((*name).to_owned(), map)),
                Err(source) if is_absent(&source) => {}
                Err(source) => return Err(self.refused(name, source)),
            }
        }
        let names = names.iter().copied().map(str::to_owned).collect();
        Err(Unread::Missing { directory: self.directory.clone(), names, why })
    }

    fn refused(&self, pin: &str, source: io::Error) -> Unread {
        Unread::Refused { path: self.directory.join(pin), source: Arc::new(source) }
    }
}

impl Maps for Pins {
    fn endpoints(&mut self) -> Result<Arc<[LocalEndpoint]>, Unread> {
        let (pin, map) = self.open(&["cilium_lxc"], "its agent has not made one yet")?;
        LocalEndpoint::check(&pin, map.shape)?;
        let entries = map.entries().map_err(|source| self.refused(&pin, source))?.read;
        Ok(entries.iter().filter_map(|(key, value)| LocalEndpoint::entry(key, value)).collect())
    }

    fn policy(&mut self, endpoint: u32) -> Result<Arc<PolicyMap>, Unread> {
        let names = POLICY_PINS.map(|prefix| format!("{prefix}{endpoint:05}"));
        let names = names.each_ref().map(String::as_str);
        let (pin, map) = self.open(&names, "the pod is gone since, or its policy is being made")?;
        let layout = PolicyLayout::of(&pin, map.shape)?;
        let entries = map.entries().map_err(|source| self.refused(&pin, source))?;
        let understood: Vec<_> =
            entries.read.iter().filter_map(|(key, value)| layout.entry(key, value)).collect();
        let is_complete = entries.is_whole && understood.len() == entries.read.len();
        Ok(Arc::new(PolicyMap { layout, entries: understood, is_complete }))
    }

    fn resolve(&mut self, address: IpAddr) -> Result<Option<Resolved>, Unread> {
        let names = ["cilium_ipcache_v2", "cilium_ipcache"];
        let (pin, map) = self.open(&names, "its agent has not made one yet")?;
        let layout = IpcacheLayout::of(&pin, map.shape)?;
        let look_up = |bits| {
            let found = map.look_up(&IpcacheLayout::key(address, bits));
            found.map_err(|source| self.refused(&pin, source))
        };
        let all = if address.is_ipv4() { 32 } else { 128 };
        let Some(value) = look_up(all)? else { return Ok(None) };
        // A lookup doesn't tell which prefix matched. With fewer bits asked for, longer prefixes don't match any more:
        // so the answer stays the same down to the prefix that gave it.
        let mut bits = all;
        while bits > 0 && look_up(bits - 1)?.as_ref() == Some(&value) {
            bits -= 1;
        }
        let decoded = layout.value(&value);
        Ok(decoded.map(|(identity, tunnel)| Resolved { identity, tunnel, bits }))
    }

    fn authentications(&mut self) -> Result<Arc<Authentications>, Unread> {
        let (pin, map) = self.open(&["cilium_auth_map"], "mutual authentication is off")?;
        Authentication::check(&pin, map.shape)?;
        let found = map.entries().map_err(|source| self.refused(&pin, source))?;
        let entries: Vec<_> =
            found.read.iter().filter_map(|(key, value)| Authentication::entry(key, value)).collect();
        let is_complete = found.is_whole && entries.len() == found.read.len();
        Ok(Arc::new(Authentications { entries, is_complete }))
    }
}

/// True if a directory has maps of Cilium's.
fn has_maps(directory: &Path) -> io::Result<bool> {
    for entry in directory.read_dir()? {
        if entry?.file_name().as_bytes().starts_with(b"cilium_") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A map that can only be read.
struct Map {
    descriptor: OwnedFd,
    shape: Shape,
    /// Bytes of the value that the kernel gives: of a per-CPU map all CPUs'.
    value_bytes: usize,
}

/// Entries of a map.
struct Entries {
    /// Keys and values.
    read: BTreeMap<Vec<u8>, Vec<u8>>,
    /// False if there are more.
    is_whole: bool,
}

impl Map {
    /// Opens a pin.
    fn open(path: &Path) -> io::Result<Self> {
        let descriptor = bpf::open_pin(path)?;
        let info: bpf_map_info = bpf::info(descriptor.as_fd())?;
        let shape = Shape { kind: info.type_, key: info.key_size, value: info.value_size };
        if shape.key > SIZE || shape.value > SIZE {
            return Err(io::Error::other(format!("no map of Cilium's is like this: {shape}")));
        }
        let value_bytes = match shape.kind {
            PERCPU_HASH => shape.value.next_multiple_of(8) as usize * possible_cpus()?,
            _ => shape.value as usize,
        };
        Ok(Self { descriptor, shape, value_bytes })
    }

    /// Its entries, within bounds. What is changed meanwhile may be missing.
    fn entries(&self) -> io::Result<Entries> {
        let end = Instant::now() + TIME;
        let mut read = BTreeMap::new();
        let mut last = None;
        // After a key that was deleted meanwhile the kernel starts anew: then keys come twice.
        for _ in 0..2 * ENTRIES {
            let Some(key) = self.next(last.as_deref())? else {
                return Ok(Entries { read, is_whole: true });
            };
            if read.len() >= ENTRIES || Instant::now() > end {
                break;
            }
            if !read.contains_key(&key)
                && let Some(value) = self.look_up(&key)?
            {
                read.insert(key.clone(), value);
            }
            last = Some(key);
        }
        Ok(Entries { read, is_whole: false })
    }

    /// The value of a key (BPF_MAP_LOOKUP_ELEM).
    fn look_up(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        self.element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, Some(key), &mut value).map(|found| found.then_some(value))
    }

    /// The key after another one, or the first (BPF_MAP_GET_NEXT_KEY).
    fn next(&self, after: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut key = vec![0; self.shape.key as usize];
        self.element(bpf_cmd::BPF_MAP_GET_NEXT_KEY, after, &mut key).map(|found| found.then_some(key))
    }

    /// Fills `to` with what a command finds for a key; false if there is none.
    fn element(&self, command: bpf_cmd, key: Option<&[u8]>, to: &mut [u8]) -> io::Result<bool> {
        if key.is_some_and(|key| key.len() != self.shape.key as usize) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = bpf::zeroed();
        attributes.__bindgen_anon_2.map_fd = bpf::descriptor_of(self.descriptor.as_fd());
        attributes.__bindgen_anon_2.key = key.map_or(0, |key| key.as_ptr() as u64);
        attributes.__bindgen_anon_2.__bindgen_anon_1.value = to.as_mut_ptr() as u64;
        match bpf::call(command, &mut attributes) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error)
}

#[cfg(test)]
mod tests {
    use super::super::maps::{Direction, HASH, LPM_TRIE, Ports};
    use super::*;
    use std::ffi::CString;
    use std::io::Write as _;

    /// Runs in a mount namespace with a BPF file system of its own; not at all where that is not allowed.
    fn with_bpffs(test: impl FnOnce(&Path) + Send + 'static) {
        let run = move || -> io::Result<()> {
            let root = tempfile::tempdir()?;
            let path = CString::new(root.path().as_os_str().as_bytes())?;
            let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
            // SAFETY: only this thread's mounts become its own.
            check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let nothing = std::ptr::null();
            // SAFETY: strings that end and are alive.
            check(unsafe { libc::mount(nothing, c"/".as_ptr(), nothing, flags, nothing.cast()) })?;
            // SAFETY: likewise.
            check(unsafe {
                libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), 0, nothing.cast())
            })?;
            create(HASH, 4, 4)?;
            std::fs::create_dir_all(root.path().join(GLOBALS))?;
            test(root.path());
            // SAFETY: a string that ends and is alive.
            check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })
        };
        match std::thread::spawn(run).join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                // Not by eprintln!, which is kept silent for tests that end well.
                let line =
                    format!("SKIPPED: {error}: this test of Cilium's maps makes maps, which takes root\n");
                let _ = io::stderr().write_all(line.as_bytes());
            }
            Ok(Err(error)) => panic!("{error}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn create(kind: u32, key: u32, value: u32) -> io::Result<OwnedFd> {
        let mut attributes = bpf::zeroed();
        attributes.__bindgen_anon_1.map_type = kind;
        attributes.__bindgen_anon_1.key_size = key;
        attributes.__bindgen_anon_1.value_size = value;
        attributes.__bindgen_anon_1.max_entries = 70_000;
        // BPF_F_NO_PREALLOC, which tries demand.
        attributes.__bindgen_anon_1.map_flags = 1;
        bpf::opened(bpf_cmd::BPF_MAP_CREATE, &mut attributes)
    }

    fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut attributes = bpf::zeroed();
        attributes.__bindgen_anon_2.map_fd = bpf::descriptor_of(map.as_fd());
        attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
        attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
        bpf::call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes).map(|_| ())
    }

    /// Makes a map, fills and pins it.
    fn pin(root: &Path, name: &str, kind: u32, entries: &[(Vec<u8>, Vec<u8>)]) -> OwnedFd {
        let (key, value) = &entries[0];
        let per_cpu = if kind == PERCPU_HASH { possible_cpus().unwrap() } else { 1 };
        let map = create(kind, key.len() as u32, (value.len() / per_cpu) as u32).unwrap();
        for (key, value) in entries {
            update(&map, key, value).unwrap();
        }
        let path = root.join(GLOBALS).join(name);
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let mut attributes = bpf::zeroed();
        attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        attributes.__bindgen_anon_4.bpf_fd = bpf::descriptor_of(map.as_fd());
        bpf::call(bpf_cmd::BPF_OBJ_PIN, &mut attributes).unwrap();
        map
    }

    fn policy_key(prefix: u32, identity: u32, protocol: u8, port: u16) -> Vec<u8> {
        let [prefix, identity] = [prefix, identity].map(u32::to_ne_bytes);
        [&prefix[..], &identity, &[0, protocol], &port.to_be_bytes()].concat()
    }

    #[test]
    fn nothing_is_there() {
        let root = tempfile::tempdir().unwrap();
        let error = Pins::find(&[root.path(), Path::new("/nowhere")]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/tc/globals: the BPF file system is not mounted here"), "{error}");
        assert!(error.contains(&root.path().display().to_string()), "{error}");
        // A directory without maps of Cilium's, then one with.
        std::fs::create_dir_all(root.path().join(GLOBALS)).unwrap();
        assert!(matches!(Pins::find(&[root.path()]), Err(Unread::Absent { .. })));
        std::fs::write(root.path().join(GLOBALS).join("cilium_lxc"), "no map").unwrap();
        let mut pins = Pins::find(&[Path::new("/nowhere"), root.path()]).unwrap();
        // A file that is no pin.
        assert!(matches!(pins.endpoints(), Err(Unread::Refused { .. })));
    }

    #[test]
    fn policy_maps_of_every_layout() {
        with_bpffs(|root| {
            let old_key = [&4711_u32.to_ne_bytes()[..], &8080_u16.to_be_bytes(), &[6, 0]].concat();
            let new_key = policy_key(64, 4711, 6, 8080);
            pin(root, "cilium_policy_00012", HASH, &[(old_key, vec![0; 24])]);
            pin(root, "cilium_policy_00014", LPM_TRIE, &[(new_key.clone(), vec![0; 24])]);
            pin(root, "cilium_policy_v2_00017", LPM_TRIE, &[(new_key.clone(), vec![0; 24])]);
            pin(root, "cilium_policy_v2_00018", LPM_TRIE, &[(new_key.clone(), vec![0; 8])]);
            pin(root, "cilium_policy_v2_00019", LPM_TRIE, &[(new_key.clone(), vec![0; 12])]);
            pin(root, "cilium_policy_v2_00020", LPM_TRIE, &[(new_key.clone(), vec![0; 16])]);
            // Left behind by an older version: the newer one counts, also if it is not known.
            pin(root, "cilium_policy_00017", LPM_TRIE, &[(policy_key(40, 0, 0, 0), vec![0; 24])]);
            pin(root, "cilium_policy_v2_00021", LPM_TRIE, &[(new_key.clone(), vec![0; 12])]);
            pin(root, "cilium_policy_v3_00021", LPM_TRIE, &[(new_key.clone(), vec![0; 12])]);
            pin(
                root,
                "cilium_policy_v2_00022",
                LPM_TRIE,
                &[(new_key, vec![0; 8]), (policy_key(7, 9, 0, 0), vec![0; 8])],
            );
            let mut pins = Pins::find(&[root]).unwrap();
            let layouts = [
                (12, PolicyLayout::V12),
                (14, PolicyLayout::V14),
                (17, PolicyLayout::V17),
                (18, PolicyLayout::V18),
                (19, PolicyLayout::V19),
            ];
            for (endpoint, layout) in layouts {
                let map = pins.policy(endpoint).unwrap();
                assert_eq!((map.layout, map.is_complete, map.entries.len()), (layout, true, 1));
                let entry = map.entries[0];
                assert_eq!((entry.identity, entry.direction), (4711, Direction::Ingress));
                assert_eq!((entry.protocol, entry.ports), (Some(6), Ports::of(8080, 16)));
            }
            for endpoint in [20, 21] {
                assert!(matches!(pins.policy(endpoint), Err(Unread::Layout(_))), "{endpoint}");
            }
            assert!(!pins.policy(22).unwrap().is_complete);
            let error = pins.policy(23).unwrap_err().to_string();
            let names = "cilium_policy_v3_00023 or cilium_policy_v2_00023 or cilium_policy_00023";
            let directory = root.join(GLOBALS);
            assert_eq!(
                error,
                format!(
                    "Cilium has no map {names} in {}: the pod is gone since, or its policy is being made",
                    directory.display()
                )
            );
        });
    }

    #[test]
    fn what_is_opened_cannot_be_written() {
        with_bpffs(|root| {
            let writable = pin(root, "cilium_lxc", HASH, &[(vec![1; 20], vec![1; 48])]);
            let map = Map::open(&root.join(GLOBALS).join("cilium_lxc")).unwrap();
            let error = update(&map.descriptor, &[1; 20], &[2; 48]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            assert_eq!(map.look_up(&[1; 20]).unwrap(), Some(vec![1; 48]));
            update(&writable, &[1; 20], &[2; 48]).unwrap();
            assert_eq!(map.look_up(&[1; 20]).unwrap(), Some(vec![2; 48]));
            assert_eq!(map.look_up(&[9; 20]).unwrap(), None);
            assert!(map.look_up(&[9; 19]).is_err());
        });
    }

    #[test]
    fn addresses_endpoints_and_metrics() {
        with_bpffs(|root| {
            let of = |text: &str| text.parse::<IpAddr>().unwrap();
            let value = |identity: u32, size: usize| {
                let mut value = vec![0; size];
                value[..4].copy_from_slice(&identity.to_ne_bytes());
                value
            };
            let prefix = |address, bits| IpcacheLayout::key(of(address), bits).to_vec();
            let entries = |size| {
                [
                    (prefix("0.0.0.0", 0), value(2, size)),
                    (prefix("10.11.0.0", 16), value(1 << 24 | 1, size)),
                    (prefix("10.11.2.9", 32), value(4711, size)),
                    (prefix("fd00::9", 128), value(4711, size)),
                ]
            };
            let pins = |name| {
                assert!(root.join(GLOBALS).join(name).exists());
                Pins::find(&[root]).unwrap()
            };
            let check = |pins: &mut Pins| {
                let mut is = |address| pins.resolve(of(address)).unwrap().map(|it| (it.identity, it.bits));
                assert_eq!(is("10.244.3.7"), Some((2, 0)));
                assert_eq!(is("10.11.9.9"), Some((1 << 24 | 1, 16)));
                assert_eq!(is("10.11.2.9"), Some((4711, 32)));
                assert_eq!(is("fd00::9"), Some((4711, 128)));
                assert_eq!(is("fd00::8"), None);
            };
            pin(root, "cilium_ipcache", LPM_TRIE, &entries(12));
            check(&mut pins("cilium_ipcache"));
            std::fs::remove_file(root.join(GLOBALS).join("cilium_ipcache")).unwrap();
            pin(root, "cilium_ipcache_v2", LPM_TRIE, &entries(24));
            let mut pins = pins("cilium_ipcache_v2");
            check(&mut pins);

            let mut key = vec![0; 20];
            key[..4].copy_from_slice(&[10, 11, 1, 5]);
            key[16] = 1;
            let mut endpoint = vec![0; 48];
            endpoint[6..8].copy_from_slice(&2636_u16.to_ne_bytes());
            pin(root, "cilium_lxc", HASH, &[(key, endpoint)]);
            let found = pins.endpoints().unwrap();
            assert_eq!((found.len(), found[0].address, found[0].id), (1, of("10.11.1.5"), 2636));

            let cpu = [5_u64, 0].map(u64::to_ne_bytes).concat();
            let cpus = cpu.repeat(possible_cpus().unwrap());
            let of = |reason, direction| vec![reason, direction, 0, 0, 0, 0, 0, 0];
            let counted = [(of(133, 1), cpus.clone()), (of(133, 2), cpus.clone()), (of(0, 1), cpus.clone())];
            let map = pin(root, "cilium_metrics", PERCPU_HASH, &counted);
            let each = 5 * possible_cpus().unwrap() as u64;
            assert_eq!(pins.metrics().unwrap(), Metrics::from([(0, each), (133, 2 * each)]));
            assert_eq!(pins.xdp_drops().unwrap(), None);
            // In bpf_xdp.c, and in another file.
            update(&map, &[144, 1, 9, 0, 4, 0, 0, 0], &cpus).unwrap();
            update(&map, &[133, 1, 9, 0, 2, 0, 0, 0], &cpus).unwrap();
            assert_eq!(pins.xdp_drops().unwrap(), Some(each));
        });
    }

    #[test]
    fn services_of_the_families_that_there_are() {
        with_bpffs(|root| {
            pin(root, "cilium_lxc", HASH, &[(vec![1; 20], vec![1; 48])]);
            let pins = Pins::find(&[root]).unwrap();
            assert!(matches!(pins.services(), Err(Unread::Missing { .. })));
            let service = |slot: u8| [&[10, 96, 0, 9, 0, 80, slot, 0][..], &[6, 0, 0, 0]].concat();
            let entries = [(service(0), vec![0; 12]), (service(1), [&[7, 0, 0, 0][..], &[0; 8]].concat())];
            pin(root, "cilium_lb4_services_v2", HASH, &entries);
            // Without the other map it is not known where they lead.
            assert!(matches!(pins.services(), Err(Unread::Refused { .. })));
            let backend = [&[10, 244, 0, 7, 31, 144][..], &[0; 6]].concat();
            pin(root, "cilium_lb4_backends_v3", HASH, &[(vec![7, 0, 0, 0], backend)]);
            let [told] = &pins.services().unwrap()[..] else { panic!() };
            assert_eq!((told.address.to_string(), told.protocol), ("10.96.0.9:80".to_owned(), 6));
            assert_eq!(told.backends, Some(vec!["10.244.0.7:8080".parse().unwrap()]));
            pin(root, "cilium_lb6_services_v2", HASH, &[(vec![0; 24], vec![0; 16])]);
            assert!(matches!(pins.services(), Err(Unread::Layout(_))));
        });
    }

    #[test]
    fn large_maps_are_read_in_part() {
        with_bpffs(|root| {
            let entry = |n: u32| (policy_key(64, n, 6, 80), vec![0; 8]);
            let entries: Vec<_> = (1..=ENTRIES as u32 + 1).map(entry).collect();
            pin(root, "cilium_policy_v2_00018", LPM_TRIE, &entries);
            let map = Pins::find(&[root]).unwrap().policy(18).unwrap();
            assert!(!map.is_complete && !map.entries.is_empty() && map.entries.len() <= ENTRIES);
        });
    }
}
