//! The programs of a trace. All vanish with this process; none is there without a trace.

use super::{Tracer, TracerError, hook_programs, hook_programs::HookProgramsError, map, program, refused};
use crate::netfilter::netns;
use crate::probe::bpf;
use aya::{
    Btf,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, FEntry, FExit, SchedClassifier},
};
use aya_obj::generated::{BPF_F_BEFORE, bpf_attach_type, bpf_cmd};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tracer_common::{Traced, priority};

/// Bytes of the ring of steps: a power of two.
pub(super) const RING_BYTES: u32 = 8 << 20;
/// Packets that are followed at once; the oldest are forgotten first.
pub(super) const FOLLOWED: u32 = 16384;
/// How long a visit of a network namespace may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tracepoints that every kernel has, and the programs for them.
const TRACEPOINTS: [(&str, &str); 6] = [
    ("path_received", "netif_receive_skb"),
    ("path_queued", "net_dev_queue"),
    ("path_sent", "net_dev_start_xmit"),
    ("path_read", "skb_copy_datagram_iovec"),
    ("path_taken", "tcp_probe"),
    ("path_consumed", "consume_skb"),
];

/// Priorities of the programs on each hook of IPv4 and IPv6, by its number (NF_INET_*, include/uapi/linux/netfilter.h): behind
/// each function that tables and connection tracking may have there.
const ON_HOOKS: [&[i32]; 5] = [
    &[priority::FIRST, priority::RAW, priority::CONNTRACK, priority::MANGLE, priority::DSTNAT],
    &[priority::FIRST, priority::MANGLE, priority::FILTER, priority::SECURITY, priority::SRCNAT],
    &[priority::FIRST, priority::MANGLE, priority::FILTER, priority::SECURITY],
    &[
        priority::FIRST,
        priority::RAW,
        priority::CONNTRACK,
        priority::MANGLE,
        priority::DSTNAT,
        priority::FILTER,
        priority::SECURITY,
    ],
    &[priority::FIRST, priority::MANGLE, priority::SRCNAT],
];

/// NFPROTO_IPV4 and NFPROTO_IPV6.
const FAMILIES: [u8; 2] = [2, 10];

/// What sees packets on their way.
#[derive(Default)]
pub struct PathPrograms {
    /// Programs for hooks by priority, where the kernel has such.
    hooks: Vec<(i32, OwnedFd)>,
    /// Links of each network namespace.
    links: BTreeMap<u32, Links>,
    /// Why there are none.
    refused: String,
    /// What is to be said of what this kernel can't show.
    notes: Vec<String>,
    is_on_all_hooks: bool,
    has_tcx: bool,
    is_busy: Arc<AtomicBool>,
}

#[derive(Default)]
struct Links {
    hooks: Vec<OwnedFd>,
    /// Of devices, by index.
    devices: BTreeMap<u32, [OwnedFd; 2]>,
}

impl PathPrograms {
    /// Takes the programs for hooks, or why there are none.
    pub(super) fn take_hook_programs(&mut self, loaded: Result<Vec<(i32, OwnedFd)>, HookProgramsError>) {
        match loaded {
            Ok(programs) => self.hooks = programs,
            Err(error) => self.refused = error.to_string(),
        }
    }

    /// What is to be said of what this kernel can't show.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// True if every hook of every network namespace is seen.
    #[must_use]
    pub fn is_on_all_hooks(&self) -> bool {
        self.is_on_all_hooks
    }

    /// True if a network namespace's hooks can be seen by programs put there.
    #[must_use]
    pub fn has_hook_programs(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// True if tc hooks can be seen.
    #[must_use]
    pub fn has_tcx(&self) -> bool {
        self.has_tcx
    }

    /// Network namespaces in which programs are.
    pub fn visited(&self) -> impl Iterator<Item = u32> + '_ {
        self.links.keys().copied()
    }
}

impl Tracer {
    /// Arms the trace: the tracepoints of every network namespace, and what sees hooks. Programs in single network namespaces
    /// follow by [`Tracer::look_in`].
    ///
    /// # Errors
    /// If the kernel refuses a tracepoint's program.
    pub fn arm_trace(&mut self) -> Result<(), TracerError> {
        let btf = Btf::from_sys_fs()?;
        for (name, tracepoint) in TRACEPOINTS {
            let program: &mut BtfTracePoint = program(&mut self.ebpf, name)?;
            program.load(tracepoint, &btf).map_err(refused(name))?;
            program.attach().map_err(refused(name))?;
        }
        if self.path.hooks.is_empty()
            && let Err(error) = self.attach_to_hook_loop(&btf)
        {
            self.path.notes.push(format!(
                "netfilter's hooks can't be seen: this kernel has no BPF programs on hooks, from 6.4 ({}), and no fentry ({error}); \
                 what a packet met there is told where it is dropped",
                self.path.refused
            ));
        }
        match self.load_tcx() {
            Ok(()) => self.path.has_tcx = true,
            Err(error) => self.path.notes.push(format!(
                "tc hooks can't be seen: {error}; packets are seen when a device gives them to the stack, and at its qdisc"
            )),
        }
        Ok(())
    }

    /// The ring of steps.
    pub fn steps(&mut self) -> Option<&mut RingBuf<MapData>> {
        self.steps.as_mut()
    }

    /// What sees packets on their way.
    #[must_use]
    pub fn path(&self) -> &PathPrograms {
        &self.path
    }

    /// What the programs have done, all CPUs together.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn traced(&mut self) -> Result<Traced, TracerError> {
        let all: PerCpuArray<_, Traced> = map(&mut self.ebpf, "TRACED")?;
        let all = all.get(&0, 0).map_err(|error| TracerError::Map { name: "TRACED", error })?;
        Ok(all.iter().fold(Traced::default(), |sum, one| Traced {
            begun: sum.begun + one.begun,
            refused: sum.refused + one.refused,
            lost: sum.lost + one.lost,
            ..sum
        }))
    }

    /// Puts programs that only look on the hooks and devices of a network namespace; those there already stay, devices that came
    /// since get theirs.
    ///
    /// # Errors
    /// If it can't be entered, or the kernel refuses.
    pub fn look_in(&mut self, inode: u32) -> io::Result<()> {
        let known = self.path.links.get(&inode);
        let devices: Vec<u32> = known.into_iter().flat_map(|links| links.devices.keys().copied()).collect();
        let copies = |list: &[(i32, OwnedFd)]| -> io::Result<Vec<(i32, OwnedFd)>> {
            list.iter().map(|(priority, program)| Ok((*priority, program.try_clone()?))).collect()
        };
        let hooks = if known.is_some() { Vec::new() } else { copies(&self.path.hooks)? };
        let tcx = if self.path.has_tcx { Some(self.tcx()?) } else { None };
        let work = move || {
            Ok(Links {
                hooks: link_hooks(&hooks)?,
                devices: tcx.map(|tcx| link_devices(&tcx, &devices)).transpose()?.unwrap_or_default(),
            })
        };
        let found = netns::visit(inode, "droptrace-trace", &self.path.is_busy, PATIENCE, work)?;
        let links = self.path.links.entry(inode).or_default();
        links.hooks.extend(found.hooks);
        links.devices.extend(found.devices);
        Ok(())
    }

    /// Takes programs out of network namespaces that nothing else leads to any more: a link on a hook holds its netns
    /// (net/netfilter/nf_bpf_link.c), and with it what a dead pod has left.
    pub fn leave_dead(&mut self) {
        // If it can't be found out now, the next time will do.
        if let Ok(reachable) = netns::reachable() {
            self.path.links.retain(|inode, _| reachable.contains(inode));
        }
    }

    fn attach_to_hook_loop(&mut self, btf: &Btf) -> Result<(), TracerError> {
        let (entered, left) = ("path_hook_entered", "path_hook_left");
        let entry: &mut FEntry = program(&mut self.ebpf, entered)?;
        entry.load("nf_hook_slow", btf).map_err(refused(entered))?;
        entry.attach().map_err(refused(entered))?;
        let exit: &mut FExit = program(&mut self.ebpf, left)?;
        exit.load("nf_hook_slow", btf).map_err(refused(left))?;
        exit.attach().map_err(refused(left))?;
        self.path.is_on_all_hooks = true;
        Ok(())
    }

    /// Loads the programs for tc hooks. Where the kernel has no tcx (before 6.6) that would be of no use: droptrace makes no
    /// clsact qdisc.
    fn load_tcx(&mut self) -> Result<(), TracerError> {
        for name in TCX {
            let program: &mut SchedClassifier = program(&mut self.ebpf, name)?;
            program.load().map_err(refused(name))?;
        }
        Ok(())
    }

    fn tcx(&mut self) -> io::Result<[OwnedFd; 2]> {
        let mut descriptors = Vec::with_capacity(TCX.len());
        for name in TCX {
            let program: &mut SchedClassifier = program(&mut self.ebpf, name).map_err(io::Error::other)?;
            descriptors.push(program.fd().map_err(io::Error::other)?.as_fd().try_clone_to_owned()?);
        }
        descriptors.try_into().map_err(|_| io::Error::other("two programs"))
    }
}

/// Programs for the tc hooks: ingress, egress.
const TCX: [&str; 2] = ["path_ingress", "path_egress"];

fn link_hooks(programs: &[(i32, OwnedFd)]) -> io::Result<Vec<OwnedFd>> {
    let mut links = Vec::new();
    for family in FAMILIES {
        for (hook, priorities) in (0_u8..).zip(ON_HOOKS) {
            for (priority, program) in programs.iter().filter(|(priority, _)| priorities.contains(priority)) {
                links.push(hook_programs::link(program.as_fd(), family, hook, *priority)?);
            }
        }
    }
    Ok(links)
}

/// Puts them on all devices of the calling thread's network namespace but those in `known`.
fn link_devices(programs: &[OwnedFd; 2], known: &[u32]) -> io::Result<BTreeMap<u32, [OwnedFd; 2]>> {
    let mut links = BTreeMap::new();
    for index in devices()?.into_iter().filter(|index| !known.contains(index)) {
        let [ingress, egress] = programs;
        let link = |program: &OwnedFd, kind| link_first(program.as_fd(), index, kind);
        // A device that has just gone is no error.
        let both = link(ingress, bpf_attach_type::BPF_TCX_INGRESS)
            .and_then(|ingress| Ok([ingress, link(egress, bpf_attach_type::BPF_TCX_EGRESS)?]));
        match both {
            Ok(both) => {
                links.insert(index, both);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(links)
}

/// A tcx link before all others on a device.
fn link_first(program: BorrowedFd<'_>, device: u32, kind: bpf_attach_type) -> io::Result<OwnedFd> {
    let mut attributes = bpf::zeroed();
    // Members of a union of plain integers; no relative and no revision: before all.
    attributes.link_create.__bindgen_anon_1.prog_fd = bpf::descriptor_of(program);
    attributes.link_create.__bindgen_anon_2.target_ifindex = device;
    attributes.link_create.attach_type = kind as u32;
    attributes.link_create.flags = BPF_F_BEFORE;
    bpf::opened(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

/// Indices of the devices of the calling thread's network namespace (if_nameindex(3)).
fn devices() -> io::Result<Vec<u32>> {
    // SAFETY: no preconditions.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut indices = Vec::new();
    let mut at = list;
    // SAFETY: the list ends with an element of zeros.
    unsafe {
        while (*at).if_index != 0 && !(*at).if_name.is_null() {
            indices.push((*at).if_index);
            at = at.add(1);
        }
        libc::if_freenameindex(list);
    }
    Ok(indices)
}
