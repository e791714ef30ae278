//! The world outside a node: a tap device (Documentation/networking/tuntap.rst) whose frames a thread takes and keeps. What
//! leaves by it has left the kernel, as on a real wire.

use super::namespace::Namespace;
use super::{command, kernel};
use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// `TUNSETIFF` (include/uapi/linux/if_tun.h).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// `IFF_TAP | IFF_NO_PI`
const TAP: libc::c_short = 0x0002 | 0x1000;

/// Takes all that leaves by a device, and never answers.
#[derive(Debug)]
pub struct Outside {
    taken: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Outside {
    /// Makes the device in a network namespace, up; its addresses are the caller's business.
    ///
    /// # Errors
    /// When the kernel refuses (without the module `tun`).
    pub fn new(netns: &Namespace, device: &str) -> Result<Self> {
        prepare()?;
        let tap = netns.enter(|| open(device))?;
        netns.run(&format!("ip link set {device} up"))?;
        let (taken, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (taken, ended) = (Arc::clone(&taken), Arc::clone(&ended));
            move || take(tap, &taken, &ended)
        });
        Ok(Self { taken, ended, thread: Some(thread) })
    }

    /// Frames that have left.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only counts: nothing is lost if it panicked.
            let _ = thread.join();
        }
    }
}

/// The module, and the file that the virtual machines' /dev has none of.
fn prepare() -> Result<()> {
    let path = c"/dev/net/tun";
    if Path::new("/dev/net/tun").exists() {
        return Ok(());
    }
    // Built in it can't be loaded, and is there.
    let _ = command::run("modprobe tun");
    if kernel::in_vm() && !Path::new("/dev/net/tun").exists() {
        fs::create_dir_all("/dev/net")?;
        // SAFETY: a path that ends with NUL. The number is that of Documentation/admin-guide/devices.txt.
        let result = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(10, 200)) };
        ensure!(result == 0, "make /dev/net/tun: {}", io::Error::last_os_error());
    }
    Ok(())
}

fn open(device: &str) -> Result<File> {
    ensure!(device.len() < 16, "{device} is too long");
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let file = file.context("open /dev/net/tun")?;
    let mut request = [0_u8; 40];
    request[..device.len()].copy_from_slice(device.as_bytes());
    request[16..18].copy_from_slice(&TAP.to_ne_bytes());
    // SAFETY: struct ifreq has 40 bytes: the name, and the flags behind it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    if result == 0 { Ok(file) } else { Err(io::Error::last_os_error()).context("make a tap device") }
}

fn take(mut tap: File, taken: &AtomicU64, ended: &AtomicBool) {
    let mut frame = vec![0_u8; 1 << 16];
    while !ended.load(Ordering::Relaxed) {
        match tap.read(&mut frame) {
            // One frame, whatever its length.
            Ok(1..) => {
                taken.fetch_add(1, Ordering::Relaxed);
            }
            // None is waiting, or the device is down.
            Ok(0) | Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
