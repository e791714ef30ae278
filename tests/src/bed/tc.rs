//! BPF programs on tc hooks: as tcx links (from 6.6) and as clsact filters; and on netkit devices.

use super::fixture;
use super::namespace::Namespace;
use super::program::{self, LINK_CREATE};
use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::TcAttachType;
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcHandle};
use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// A direction of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What comes in.
    Ingress,
    /// What leaves.
    Egress,
}

impl Hook {
    /// `ingress` or `egress`, as `tc` writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// A loaded program of the fixture.
#[derive(Debug)]
pub struct Program {
    /// Its id.
    pub id: u32,
    /// Its tag, as `bpftool prog` shows it.
    pub tag: String,
    name: &'static str,
    fixture: Ebpf,
}

impl Program {
    /// Loads a program: `idle`, or another, which drops.
    ///
    /// # Errors
    /// When there is no such program, or the kernel refuses.
    pub fn load(name: &'static str) -> Result<Self> {
        Self::of(name, fixture::open(None)?)
    }

    /// One that drops, and leaves words in the packet's control block (`__sk_buff.cb`).
    ///
    /// # Errors
    /// When there is no such program, or the kernel refuses.
    pub fn leaving(name: &'static str, words: &[u32; 5]) -> Result<Self> {
        Self::of(name, fixture::open(Some(words))?)
    }

    fn of(name: &'static str, fixture: Ebpf) -> Result<Self> {
        let mut program = Self { id: 0, tag: String::new(), name, fixture };
        let classifier = program.classifier()?;
        classifier.load().with_context(|| format!("load {name}"))?;
        let info = classifier.info()?;
        (program.id, program.tag) = (info.id(), format!("{:016x}", info.tag()));
        Ok(program)
    }

    fn classifier(&mut self) -> Result<&mut SchedClassifier> {
        let program = self.fixture.program_mut(self.name);
        Ok(program.with_context(|| format!("the fixture has no {}", self.name))?.try_into()?)
    }

    /// Puts it on a device's hook, behind those that are there already; it leaves when the link is dropped.
    ///
    /// # Errors
    /// When the kernel refuses: before 6.6 it knows no tcx.
    pub fn attach(&mut self, netns: &Namespace, device: &str, hook: Hook) -> Result<SchedClassifierLink> {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        self.attach_with(netns, device, hook, options).context("attach a tcx program")
    }

    /// Adds it as a clsact filter, which drops and accepts by itself (`direct-action`), with handle 1.
    ///
    /// # Errors
    /// When there is no clsact qdisc, or no cls_bpf.
    pub fn add_filter(&mut self, netns: &Namespace, device: &str, hook: Hook, priority: u16) -> Result<()> {
        let options = NlOptions { priority, handle: TcHandle::new(0, 1), classid: None };
        let filter = self.attach_with(netns, device, hook, TcAttachOptions::Netlink(options));
        // It ends with its device. Dropped, it would be removed from the device of that index in the network namespace
        // that the thread is in by then.
        mem::forget(filter.context("add a clsact filter")?);
        Ok(())
    }

    fn attach_with(
        &mut self,
        netns: &Namespace,
        device: &str,
        hook: Hook,
        options: TcAttachOptions,
    ) -> Result<SchedClassifierLink> {
        let classifier = self.classifier()?;
        netns.enter(|| {
            let link = classifier.attach_with_options(device, hook.attach_type(), options)?;
            Ok(classifier.take_link(link)?)
        })
    }

    /// Makes it run on what a netkit device sends; it leaves when the link is dropped. Aya knows no such links.
    ///
    /// # Errors
    /// When the kernel refuses: before 6.7 it knows no netkit.
    pub fn attach_to_netkit(&mut self, netns: &Namespace, device: &str) -> Result<OwnedFd> {
        /// BPF_NETKIT_PRIMARY (include/uapi/linux/bpf.h): of the two devices the one that was asked for, not its peer.
        const PRIMARY: u32 = 54;
        /// The head of `union bpf_attr` for BPF_LINK_CREATE, as netkit reads it.
        #[repr(C)]
        struct Create {
            program: u32,
            ifindex: u32,
            attach_type: u32,
            flags: u32,
            relative: u32,
            padding: u32,
            revision: u64,
        }
        const _: () = assert!(size_of::<Create>() == 32);
        let program = u32::try_from(self.classifier()?.fd()?.as_fd().as_raw_fd())?;
        let link = netns.enter(|| {
            let create = Create {
                program,
                ifindex: index(device)?,
                attach_type: PRIMARY,
                flags: 0,
                relative: 0,
                padding: 0,
                revision: 0,
            };
            // SAFETY: the command reads such a structure; it returns a new descriptor.
            Ok(unsafe { OwnedFd::from_raw_fd(program::bpf(LINK_CREATE, &create)?) })
        });
        link.context("attach a netkit program")
    }

    /// Pins it.
    ///
    /// # Errors
    /// When `path` is not in a bpffs.
    pub fn pin(&mut self, path: &Path) -> Result<()> {
        self.classifier()?.pin(path).with_context(|| format!("pin {}", path.display()))
    }
}

/// A device's index in this thread's netns.
fn index(device: &str) -> Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: a NUL-terminated name.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no device {device}");
    Ok(index)
}

/// An attribute of rtnetlink (struct rtattr), padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A request to rtnetlink (struct nlmsghdr, body).
pub(super) fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut request = (body.len() as u32 + 16).to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    request
}

/// Sends a request to rtnetlink in this thread's netns, and waits for the acknowledgement.
pub(super) fn ask(request: &[u8]) -> Result<()> {
    // SAFETY: plain system calls on a descriptor of our own, with buffers of the lengths that they are given.
    let (sent, received, answer) = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        ensure!(fd >= 0, "a netlink socket: {}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let sent = libc::send(fd.as_raw_fd(), request.as_ptr().cast(), request.len(), 0);
        let mut answer = [0_u8; 4096];
        let received = libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0);
        (sent, received, answer)
    };
    // The error number follows the header (struct nlmsgerr).
    ensure!(sent == request.len() as isize && received >= 20, "no answer: {}", io::Error::last_os_error());
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error).into()),
    }
}
