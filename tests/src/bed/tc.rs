//! BPF programs on tc hooks: as tcx links (from 6.6) and as clsact filters. Numbers and structures: include/uapi/linux/bpf.h,
//! include/uapi/linux/rtnetlink.h, include/uapi/linux/pkt_cls.h.

use super::namespace::Namespace;
use super::program::{self, LINK_CREATE, OBJ_PIN};
use anyhow::{Context, Result, ensure};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// BPF_PROG_TYPE_SCHED_CLS
const TYPE_CLASSIFIER: u32 = 3;
/// TC_ACT_SHOT: the packet is dropped.
const SHOT: i32 = 2;
/// TCX_NEXT, TC_ACT_UNSPEC: the next one is asked.
const NEXT: i32 = -1;

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

    /// BPF_TCX_INGRESS or BPF_TCX_EGRESS.
    fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }

    /// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    /// Its id.
    pub id: u32,
    fd: OwnedFd,
}

/// What a program does with every packet.
#[derive(Clone, Copy, Debug)]
pub enum Does {
    /// Drops it.
    Drop,
    /// Leaves it to the next one.
    Nothing,
    /// Writes words into the skb's control block (`__sk_buff.cb`), and drops it.
    MarkAndDrop([u32; 5]),
}

impl Program {
    /// Loads a program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(name: &str, does: Does) -> Result<Self> {
        /// `__sk_buff.cb`
        const CB: u64 = 48;
        // struct bpf_insn: r2 = word, *(u32 *)(r1 + offset) = r2 (BPF_ALU64 | BPF_MOV | BPF_K, BPF_STX | BPF_MEM | BPF_W): older
        // kernels store no constants there.
        let store = |(at, word): (usize, &u32)| {
            [0xb7 | 2 << 8 | u64::from(*word) << 32, 0x63 | 1 << 8 | 2 << 12 | (CB + 4 * at as u64) << 16]
        };
        let (words, verdict) = match does {
            Does::Drop => ([].as_slice(), SHOT),
            Does::Nothing => ([].as_slice(), NEXT),
            Does::MarkAndDrop(ref words) => (words.as_slice(), SHOT),
        };
        let mut instructions: Vec<u64> = words.iter().enumerate().flat_map(store).collect();
        // r0 = verdict, BPF_JMP | BPF_EXIT.
        instructions.extend([0xb7 | u64::from(verdict.cast_unsigned()) << 32, 0x95]);
        let fd = program::load(TYPE_CLASSIFIER, 0, name, &instructions).context("load a tc program")?;
        Ok(Self { id: program::id_of(&fd).context("ask for a BPF program's id")?, fd })
    }

    /// Its tag, as `bpftool prog` shows it.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub fn tag(&self) -> Result<String> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        let tag = text.lines().find_map(|line| line.strip_prefix("prog_tag:"));
        Ok(tag.context("no tag in fdinfo")?.trim().to_owned())
    }

    /// Puts it on a device's hook, behind those that are there already; it leaves when the link is dropped.
    ///
    /// # Errors
    /// When the kernel refuses: before 6.6 it knows no tcx.
    pub fn attach(&self, netns: &Namespace, device: &str, hook: Hook) -> Result<OwnedFd> {
        self.link(netns, device, hook.attach_type()).context("attach a tcx program")
    }

    /// Makes it run on what a netkit device sends; it leaves when the link is dropped.
    ///
    /// # Errors
    /// When the kernel refuses: before 6.7 it knows no netkit.
    pub fn attach_to_netkit(&self, netns: &Namespace, device: &str) -> Result<OwnedFd> {
        /// BPF_NETKIT_PRIMARY: of the two devices the one that was asked for, not its peer.
        const PRIMARY: u32 = 54;
        self.link(netns, device, PRIMARY).context("attach a netkit program")
    }

    fn link(&self, netns: &Namespace, device: &str, attach_type: u32) -> Result<OwnedFd> {
        /// The head of `union bpf_attr` for BPF_LINK_CREATE, as tcx and netkit read it.
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
        let program = u32::try_from(self.fd.as_raw_fd())?;
        netns.enter(|| {
            let create = Create {
                program,
                ifindex: index(device)?,
                attach_type,
                flags: 0,
                relative: 0,
                padding: 0,
                revision: 0,
            };
            // SAFETY: the command reads such a structure; it returns a new descriptor.
            Ok(unsafe { OwnedFd::from_raw_fd(program::bpf(LINK_CREATE, &create)?) })
        })
    }

    /// Adds it as a clsact filter, which drops and accepts by itself (`direct-action`), with handle 1.
    ///
    /// # Errors
    /// When there is no clsact qdisc, or no cls_bpf.
    pub fn add_filter(&self, netns: &Namespace, device: &str, hook: Hook, priority: u16) -> Result<()> {
        let descriptor = u32::try_from(self.fd.as_raw_fd())?;
        netns.enter(|| {
            let request = new_filter(index(device)?, hook, priority, descriptor);
            ask(&request).context("add a clsact filter")
        })
    }

    /// Pins it.
    ///
    /// # Errors
    /// When `path` is not in a bpffs.
    pub fn pin(&self, path: &Path) -> Result<()> {
        /// The head of `union bpf_attr` for BPF_OBJ_PIN.
        #[repr(C)]
        struct Pin {
            path_at: u64,
            fd: u32,
            flags: u32,
        }
        let text = CString::new(path.as_os_str().as_encoded_bytes())?;
        let pin = Pin { path_at: text.as_ptr() as u64, fd: u32::try_from(self.fd.as_raw_fd())?, flags: 0 };
        // SAFETY: the command reads such a structure and the path.
        unsafe { program::bpf(OBJ_PIN, &pin) }.with_context(|| format!("pin {}", path.display()))?;
        Ok(())
    }
}

/// A device's index in this thread's netns.
pub(super) fn index(device: &str) -> Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: a NUL-terminated name.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no device {device}");
    Ok(index)
}

/// RTM_NEWTFILTER for a BPF program (struct nlmsghdr, struct tcmsg, attributes).
fn new_filter(ifindex: u32, hook: Hook, priority: u16, program: u32) -> Vec<u8> {
    const RTM_NEWTFILTER: u16 = 44;
    /// NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE
    const FLAGS: u16 = 0x605;
    const TCA_KIND: u16 = 1;
    const TCA_OPTIONS: u16 = 2;
    const TCA_BPF_FD: u16 = 6;
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_FLAGS: u16 = 8;
    /// TCA_BPF_FLAG_ACT_DIRECT
    const DIRECT: u32 = 1;
    /// ETH_P_ALL
    const ALL: u16 = 3;
    const HANDLE: u32 = 1;
    let options = [
        attribute(TCA_BPF_FD, &program.to_ne_bytes()),
        attribute(TCA_BPF_NAME, b"filter\0"),
        attribute(TCA_BPF_FLAGS, &DIRECT.to_ne_bytes()),
    ]
    .concat();
    let info = u32::from(priority) << 16 | u32::from(ALL.to_be());
    // tcm_family and its padding, tcm_ifindex, tcm_handle, tcm_parent, tcm_info.
    let message: Vec<u8> =
        [0, ifindex, HANDLE, hook.parent(), info].into_iter().flat_map(u32::to_ne_bytes).collect();
    request(
        RTM_NEWTFILTER,
        FLAGS,
        &[message, attribute(TCA_KIND, b"bpf\0"), attribute(TCA_OPTIONS, &options)].concat(),
    )
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
