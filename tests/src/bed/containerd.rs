//! A containerd of a test's own: its folders, its network namespace, its pods.
//!
//! No registry is asked for anything: the image is made of the machine's static busybox and imported, and the network
//! namespace has no way out. All that is left when this is dropped, also by a panic, is taken away; what a killed run
//! left is taken away by the next one.

use super::cgroup;
use super::command::{self, Background};
use super::cri::{Client, Pod};
use super::namespace::Namespace;
use super::patience;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The image of sandboxes and containers.
pub const IMAGE: &str = "localhost/droptrace-pod:1";
/// What it runs besides `sleep`.
const APPLETS: [&str; 4] = ["sleep", "nc", "httpd", "sh"];
/// Every folder of the bed is `dt-containerd-PID-NUMBER`.
const PREFIX: &str = "dt-containerd-";
/// Where packages put the CNI plug-ins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Where network namespaces have names, and where CNI keeps what it did.
const NAMES: &str = "/run/netns";
const RESULTS: &str = "/var/lib/cni/results";

/// Why there can be no containerd here, if there can't.
#[must_use]
pub fn missing() -> Option<String> {
    for program in ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox", "tar", "sha256sum"] {
        if find(program).is_none() {
            return Some(format!("no {program} here"));
        }
    }
    if plugins().is_none() {
        return Some("no CNI plug-ins here".into());
    }
    let busybox = find("busybox").and_then(|path| fs::read(path).ok()).unwrap_or_default();
    has_interpreter(&busybox).then(|| "busybox here is not static".into())
}

/// True if an ELF file of 64 bits has a program header of type PT_INTERP (3): elf(5).
fn has_interpreter(file: &[u8]) -> bool {
    let number = |at: usize, size: usize| {
        let bytes = file.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let (first, size, count) = headers().unwrap_or_default();
    (0..count).any(|nth| number(first + nth * size, 4) == Some(3))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn plugins() -> Option<&'static Path> {
    PLUGINS
        .iter()
        .map(Path::new)
        .find(|folder| folder.join("bridge").exists() && folder.join("host-local").exists())
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    // In this order: the process goes before what it uses.
    process: Option<Background>,
    left: Left,
    netns: Namespace,
    is_on_node: bool,
}

/// What has to be taken away.
#[derive(Debug)]
struct Left {
    folder: PathBuf,
    uids: BTreeSet<String>,
}

impl Containerd {
    /// Starts one in a network namespace of its own and gives it [`IMAGE`].
    ///
    /// # Errors
    /// When it does not start, or does not take the image.
    pub fn start() -> Result<Self> {
        Self::start_in(false)
    }

    /// Starts one in the network namespace that this is in itself, for pods that are in there, too: others would make a bridge
    /// there.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_on_node() -> Result<Self> {
        Self::start_in(true)
    }

    fn start_in(is_on_node: bool) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir_all(folder.join("cni")).with_context(|| format!("make {}", folder.display()))?;
        let left = Left { folder, uids: BTreeSet::new() };
        let mut made = Self { process: None, left, netns: Namespace::new()?, is_on_node };
        fs::write(made.left.folder.join("config.toml"), made.config()?)?;
        fs::write(made.left.folder.join("cni/10-droptrace.conflist"), made.network())?;
        made.resume()?;
        made.import()?;
        Ok(made)
    }

    fn config(&self) -> Result<String> {
        let folder = self.left.folder.display();
        let plugins = plugins().context("no CNI plug-ins")?.display();
        // In the virtual machines the root is the initramfs, which can't be pivoted from.
        let no_pivot = super::kernel::in_vm();
        Ok(format!(
            r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        NoPivotRoot = {no_pivot}
"#
        ))
    }

    fn network(&self) -> String {
        let folder = self.left.folder.display();
        format!(
            r#"{{"cniVersion": "0.4.0", "name": "droptrace", "plugins": [{{"type": "bridge", "bridge": "cni0", "isGateway": true,
"ipam": {{"type": "host-local", "dataDir": "{folder}/addresses",
"ranges": [[{{"subnet": "10.88.0.0/24"}}], [{{"subnet": "fd88::/64"}}]],
"routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}}]}}"#
        )
    }

    /// Its CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.left.folder.join("containerd.sock")
    }

    /// The namespace that it and the pods' bridge are in: the host's, for its pods.
    #[must_use]
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.left.folder
    }

    /// A client of it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    /// Runs a pod's sandbox; returns its id.
    ///
    /// # Errors
    /// When containerd refuses, or the pod would change the node's network namespace.
    pub fn run(&mut self, pod: &Pod) -> Result<String> {
        ensure!(pod.host_network || !self.is_on_node, "only host-network pods on the node");
        self.left.uids.insert(pod.uid.clone());
        self.client().run(pod).with_context(|| self.last_words())
    }

    /// Kills it; the pods stay.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again, whatever ran before, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn resume(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait("answer", || self.client().has_image(IMAGE).is_ok())
    }

    /// Starts it again, whatever ran before, and does not wait.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&mut self) -> Result<()> {
        self.process = None;
        let log = File::create(self.left.folder.join("log"))?;
        let line = format!("containerd --config {}/config.toml", self.left.folder.display());
        let mut command = if self.is_on_node { command::words(&line) } else { self.netns.command(&line)? };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(Background(command.spawn().context("start containerd")?));
        Ok(())
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + patience();
        while !is_so() {
            if Instant::now() > deadline {
                bail!("containerd does not {what}; {}", self.last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The end of its log, for failures.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.left.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        format!("containerd said last: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" | "))
    }

    /// Makes the image, as `docker save` writes it, and imports it.
    fn import(&self) -> Result<()> {
        let (image, root) = (self.left.folder.join("image"), self.left.folder.join("image/root"));
        fs::create_dir_all(root.join("bin"))?;
        let busybox = find("busybox").context("no busybox")?;
        fs::copy(&busybox, root.join("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        let folder = image.display();
        command::run(&format!("tar -C {folder}/root --owner=0 --group=0 -cf {folder}/layer.tar ."))?;
        let sum = command::run(&format!("sha256sum {folder}/layer.tar"))?;
        let sum = sum.split_whitespace().next().context("no sum")?;
        fs::write(
            image.join("config.json"),
            format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/sleep","1000000"],"Env":["PATH=/bin"]}},
"rootfs":{{"type":"layers","diff_ids":["sha256:{sum}"]}}}}"#
            ),
        )?;
        fs::write(
            image.join("manifest.json"),
            format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]"#),
        )?;
        command::run(&format!("tar -C {folder} -cf {folder}/image.tar manifest.json config.json layer.tar"))?;
        let socket = self.socket();
        command::run(&format!(
            "ctr -a {} -n k8s.io images import --snapshotter native {folder}/image.tar",
            socket.display()
        ))
        .with_context(|| self.last_words())?;
        self.wait("know the image", || self.client().has_image(IMAGE).unwrap_or(false))
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Left {
    /// Kills the shims and what runs in the pods, unmounts, and removes control groups, namespaces and the folder.
    fn remove(&self) {
        kill(&processes_of(&self.folder));
        self.uids.iter().for_each(|uid| cgroup::remove(uid));
        for point in mounts(&self.folder).iter().rev() {
            let _ = command::run(&format!("umount -l {point}"));
        }
        for (files, names) in self.uids.iter().map(|uid| networks(uid)) {
            for name in names {
                let _ = command::run(&format!("ip netns del {name}"));
            }
            for file in files {
                let _ = fs::remove_file(file);
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays behind: {error}", self.folder.display());
        }
    }
}

/// Takes away what earlier runs left that were killed.
pub fn remove_stale() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
        let Some(pid) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            // All of its pods have uids that begin alike, which is all that is needed to find their traces.
            let mut uids = cgroup::uids(&Pod::uids_of(pid));
            uids.insert(Pod::uids_of(pid));
            drop(Left { folder: entry.path(), uids });
        }
    }
}

/// What CNI remembers of a pod's network, also of one that was never taken down: the files, and the names of the network
/// namespaces in them.
fn networks(uid: &str) -> (Vec<PathBuf>, BTreeSet<String>) {
    let (mut files, mut names) = (Vec::new(), BTreeSet::new());
    for entry in fs::read_dir(RESULTS).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains(uid) {
            let words = text.split('"').filter_map(|word| word.rsplit_once("/run/netns/"));
            names.extend(words.map(|(_, name)| name.to_owned()));
            files.push(entry.path());
        }
    }
    names.retain(|name| Path::new(NAMES).join(name).exists());
    (files, names)
}

/// Processes that were started with the folder's name: containerd and its shims.
fn processes_of(folder: &Path) -> Vec<i32> {
    let name = format!("{}/", folder.display());
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|&byte| byte == 0).map(String::from_utf8_lossy);
            let is_ours = words.next().is_some_and(|program| program.contains("containerd"));
            is_ours && words.any(|word| word.starts_with(&name))
        })
        .collect()
}

fn kill(pids: &[i32]) {
    for &pid in pids {
        // SAFETY: a plain system call; the process was started by this bed.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Mount points below a folder, in the order in which they were made.
fn mounts(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let prefix = format!("{}/", folder.display());
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| point.starts_with(&prefix)).map(str::to_owned).collect()
}

/// Names of the network namespaces of a pod.
#[must_use]
pub fn namespaces(uid: &str) -> BTreeSet<String> {
    networks(uid).1
}

/// Checks that nothing of a containerd and a pod of it is left, whose network namespaces had these names.
///
/// # Errors
/// When something is; the message says what.
pub fn ensure_gone(folder: &Path, uid: &str, names: &BTreeSet<String>) -> Result<()> {
    ensure!(!folder.exists(), "{} is left", folder.display());
    ensure!(processes_of(folder).is_empty(), "processes are left: {:?}", processes_of(folder));
    ensure!(mounts(folder).is_empty(), "mounts are left: {:?}", mounts(folder));
    let groups = cgroup::folders(uid);
    ensure!(groups.is_empty(), "control groups are left: {groups:?}");
    ensure!(networks(uid).0.is_empty(), "networks are left: {:?}", networks(uid));
    let name = names.iter().find(|name| Path::new(NAMES).join(name).exists());
    ensure!(name.is_none(), "a network namespace is left: {name:?}");
    Ok(())
}
