//! The kernel half, loaded and attached: its memory, its ring, its miss counter. Everything it holds dies with it.

mod filter;
mod hook_programs;
mod memory;
mod moved;
mod nft_trace;
mod path;
mod probes;
mod retransmit;
mod second;
mod watch;

pub use memory::Reader;
pub use path::PathPrograms;
pub use probes::Probes;

use self::{
    filter::Ends,
    memory::READER,
    moved::MovedMaps,
    second::SECOND,
    watch::{PER_CPU, WatchMaps},
};
use super::{
    bpf,
    kernel_log::{self, KernelLog},
    mapped::Mapped,
    object::{self, ObjectError},
};
use crate::filter::Compiled;
use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData, MapError, RingBuf},
    programs::{
        BtfTracePoint, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _,
        tp_btf::BtfTracePointLinkId,
    },
};
use aya_obj::generated::bpf_prog_info;
use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};
use tracer_common::{
    ABSENT, ConntrackOffsets, Control, CpuState, FlowKey, Layout, Memory, NftTraceOffsets, Offsets,
    ProbeOffsets, Role, SequenceOffsets, Site, Slot, TcLayout, TextRange, dimension, slot_state,
    watch::{Baseline, LISTS},
};

/// The eBPF object, put in by `cargo xtask`; empty in a build without the eBPF toolchain.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/droptrace.bpf.o"));

/// Memory for the counting slots of both generations on all CPUs, in bytes.
const SLOT_MEMORY: usize = 6 << 20;

/// Bytes of the ring buffer of full events: a power of two.
pub const RING_BYTES: usize = 4 << 20;

/// Memory for what the counters of legacy rules were on all CPUs, in bytes.
const BASELINE_MEMORY: usize = 4 << 20;

/// Full events a CPU may send in an interval beyond the first of each slot.
const BUDGET: u32 = 2000;

/// Packets on hooks that probes remember at once; the oldest are forgotten first.
const PROBED: u32 = 8192;

/// Why the kernel half doesn't run.
#[derive(Debug, thiserror::Error)]
pub enum TracerError {
    /// Built without the eBPF toolchain.
    #[error("this droptrace was built without its kernel half; build it with `cargo xtask build`")]
    NoObject,
    /// The object is not one.
    #[error("the eBPF object in this droptrace is broken: {0}; build it again with `cargo xtask build`")]
    Object(#[from] ObjectError),
    /// The object or its maps were refused.
    #[error("the kernel refuses droptrace's maps: {0:#}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("the kernel refuses droptrace's program {name}: {}", chain(error))]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said, with the verifier's log.
        error: Box<ProgramError>,
    },
    /// Our own object is not what we think.
    #[error("the eBPF object has no {0}; this build of droptrace is broken")]
    Missing(&'static str),
    /// A map can't be used.
    #[error("can't use map {name}: {error:#}")]
    Map {
        /// Its name.
        name: &'static str,
        /// Why.
        error: MapError,
    },
    /// A map can't be mapped into memory.
    #[error("can't map {name} into memory: {error}")]
    Mmap {
        /// Its name.
        name: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The kernel's types can't be read by aya.
    #[error("can't read the kernel's BTF: {0:#}")]
    Btf(#[from] aya::BtfError),
    /// The network namespace that the program sees is not the one that we are in.
    #[error(
        "the kernel half reads netns {seen} where this process is in {own}: this kernel's layout is not understood"
    )]
    OwnNetns {
        /// What the program read.
        seen: u64,
        /// Inode number of /proc/self/ns/net.
        own: u64,
    },
    /// /proc or another file of the system.
    #[error("can't read {path}: {error}")]
    File {
        /// Which.
        path: &'static str,
        /// Why.
        error: io::Error,
    },
}

/// For a program that the kernel refuses.
fn refused(name: &'static str) -> impl Fn(ProgramError) -> TracerError + Copy {
    move |error| TracerError::Program { name, error: Box::new(error) }
}

/// An error and its causes: aya's own words leave out what the kernel said.
fn chain(error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// What the running kernel looks like, as far as the programs need it.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelLayout {
    /// Load-time constants.
    pub offsets: Offsets,
    /// Connection tracking, if it is there already.
    pub conntrack: ConntrackOffsets,
    /// nft_pktinfo.skb and nft_pktinfo.state, if nf_tables is there already.
    pub pktinfo: Option<(u32, u32)>,
    /// nft's expressions, if nf_tables is there already.
    pub probes: ProbeOffsets,
    /// What is on tc hooks.
    pub tc: TcLayout,
    /// What nft tells its own tracing, if nf_tables is there already and described.
    pub nft_trace: NftTraceOffsets,
    /// Text of nf_hook_slow.
    pub nf_hook_slow: TextRange,
    /// Text of nft_do_chain; zero if nf_tables is not there.
    pub nft_do_chain: TextRange,
    /// Text of nf_queue.
    pub nf_queue: TextRange,
    /// Text of br_handle_frame, which calls the functions of its hook itself.
    pub br_handle_frame: TextRange,
    /// Text of br_nf_pre_routing, a hook function of bridges that frees what it drops itself on newer kernels.
    pub br_nf_pre_routing: TextRange,
    /// net.list (include/net/net_namespace.h): the list of all network namespaces.
    pub net_list: Option<u32>,
    /// qdisc_skb_cb.data (include/net/sch_generic.h): what tc programs see as their control block.
    pub control_block: Option<u32>,
    /// bpf_array.pptrs (include/linux/bpf.h): where a per-CPU map's values are.
    pub array_pptrs: Option<u32>,
}

/// How the kernel half is to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// How often `-v` was given.
    pub verbose: u8,
    /// Whether [`Tracer::attach_probes`] may be asked for.
    pub probes: bool,
    /// Whether [`Tracer::arm_trace`] may be asked for.
    pub trace: bool,
}

/// The running kernel half.
pub struct Tracer {
    ebpf: Ebpf,
    link: Option<BtfTracePointLinkId>,
    is_second_kept: bool,
    probes: Probes,
    /// Pods and services that the filter means.
    ends: Ends,
    layout: Layout,
    control: Mapped<Control>,
    cpus: Mapped<CpuState>,
    slots: Mapped<Slot>,
    sites: Mapped<Site>,
    memory: Mapped<Memory>,
    watched: WatchMaps,
    moved: MovedMaps,
    /// Address of the struct net that this process is in.
    own_net: u64,
    /// `ops` of every struct net.
    netns_ops: u64,
    ring: RingBuf<MapData>,
    /// Steps of followed packets, in a trace.
    steps: Option<RingBuf<MapData>>,
    path: PathPrograms,
}

/// What the programs could not do, in all since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Full events without room in the ring.
    pub ring: u64,
    /// Drops without a slot for their flow.
    pub flow: u64,
    /// Drops in the overflow slot.
    pub overflow: u64,
    /// Drops that the kernel did not show to the program.
    pub recursion: u64,
    /// Drops that the filter did not let through.
    pub filtered: u64,
    /// Drops shown to the program.
    pub seen: u64,
    /// Answers of the probes that the stack gave, too,
    pub probe_agreed: u64,
    /// and those that it gave otherwise.
    pub probe_disagreed: u64,
    /// Drops that only the probes saw, at least.
    pub probe_unseen: u64,
}

/// A slot's counter at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The slot.
    pub slot: u32,
    /// What it counts.
    pub key: FlowKey,
    /// Dropped skbs so far.
    pub count: u64,
    /// Dropped segments so far.
    pub segments: u64,
}

impl Tracer {
    /// Loads the programs and attaches them: from here on every drop is counted.
    ///
    /// # Errors
    /// Whatever the kernel refuses.
    pub fn start(
        kernel: &KernelLayout,
        compiled: &Compiled,
        settings: Settings,
    ) -> Result<Self, TracerError> {
        let Settings { verbose, .. } = settings;
        if OBJECT.is_empty() {
            return Err(TracerError::NoObject);
        }
        if verbose > 0 {
            let object::Contents { programs, licence, .. } = object::contents(OBJECT)?;
            let _ = writeln!(
                io::stderr(),
                "droptrace: eBPF object of {} bytes, licence {licence}: {}",
                OBJECT.len(),
                programs.join(", ")
            );
        }
        let cpus = possible_cpus()?;
        let layout = layout_for(cpus);
        let moved_chunks = if settings.trace { moved::most_chunks(cpus) } else { 1 };
        let has_names = compiled.spec.active & dimension::END != 0;
        let mut ebpf = EbpfLoader::new()
            .override_global("OFFSETS", &kernel.offsets, true)
            .override_global("LAYOUT", &layout, true)
            .override_global("FILTER", &compiled.spec, true)
            .override_global(aya_log::LEVEL, &kernel_log::level(verbose), true)
            .map_max_entries("EVENTS", u32::try_from(RING_BYTES).unwrap_or(u32::MAX))
            .map_max_entries("CPUS", cpus * Layout::LEVELS)
            .map_max_entries("SCRATCH", cpus * Layout::LEVELS)
            .map_max_entries("SLOTS", layout.total())
            .map_max_entries("CHUNKS", layout.chunks)
            .map_max_entries("BASELINES", layout.chunks * cpus)
            .map_max_entries("FILTER_END", if has_names { filter::ENDS } else { 1 })
            .map_max_entries("FILTER_END_NETNS", if has_names { filter::NETNS } else { 1 })
            .map_max_entries("RETRANSMITS", if compiled.spec.active != 0 { retransmit::PEERS } else { 1 })
            .map_max_entries("PROBED", if settings.probes { PROBED } else { 1 })
            .override_global("TRACE", &u32::from(settings.trace), true)
            .map_max_entries("FOLLOWED", if settings.trace { path::FOLLOWED } else { 1 })
            .map_max_entries("EXPECTED", if settings.trace { path::FOLLOWED } else { 1 })
            .override_global("MOVED_CHUNKS_ON_CPU", &moved_chunks, true)
            .map_max_entries("MOVED_LISTS", if settings.trace { tracer_common::moved::LISTS } else { 1 })
            .map_max_entries("MOVED_CHUNKS", moved_chunks)
            .map_max_entries("MOVED_BASELINES", moved_chunks * if settings.trace { cpus } else { 1 })
            .map_max_entries("STEPS", if settings.trace { path::RING_BYTES } else { 4096 })
            .load(OBJECT)?;
        let mut path = PathPrograms::default();
        if settings.trace {
            // Before maps are taken out.
            path.take_hook_programs(hook_programs::load(&ebpf));
        }

        let control = mapped::<Control>(&mut ebpf, "CONTROL", 1)?;
        let cpu_states = mapped::<CpuState>(&mut ebpf, "CPUS", cpus * Layout::LEVELS)?;
        let slots = mapped::<Slot>(&mut ebpf, "SLOTS", layout.total())?;
        let sites = mapped::<Site>(&mut ebpf, "SITES", Site::COUNT)?;
        let memory = mapped::<Memory>(&mut ebpf, "MEMORY", 1)?;
        let ring = RingBuf::try_from(take(&mut ebpf, "EVENTS")?)
            .map_err(|error| TracerError::Map { name: "EVENTS", error })?;
        let steps = if settings.trace {
            let steps = RingBuf::try_from(take(&mut ebpf, "STEPS")?);
            Some(steps.map_err(|error| TracerError::Map { name: "STEPS", error })?)
        } else {
            None
        };

        let watched = WatchMaps {
            lists: mapped(&mut ebpf, "LISTS", LISTS)?,
            chunks: mapped(&mut ebpf, "CHUNKS", layout.chunks)?,
            baselines: mapped(&mut ebpf, "BASELINES", layout.chunks * cpus)?,
        };
        let moved = MovedMaps {
            lists: mapped(
                &mut ebpf,
                "MOVED_LISTS",
                if settings.trace { tracer_common::moved::LISTS } else { 1 },
            )?,
            chunks: mapped(&mut ebpf, "MOVED_CHUNKS", moved_chunks)?,
            most: moved_chunks,
        };
        let (own_net, netns_ops, own_process) = own_netns(&mut ebpf)?;
        let (pktinfo_skb, pktinfo_state) = kernel.pktinfo.unwrap_or((ABSENT, ABSENT));
        let page = Control {
            netns_ops,
            nf_hook_slow: kernel.nf_hook_slow,
            nft_do_chain: kernel.nft_do_chain,
            interval: 1,
            generation: 0,
            budget: BUDGET,
            pktinfo_skb,
            pktinfo_state,
            has_probes: 0,
            sequence: SequenceOffsets::NONE,
            roles: [Role::default(); Role::COUNT],
            own_netns: 0,
            watch_version: 0,
            moved_version: 0,
            reserved: 0,
            own_process,
            conntrack: kernel.conntrack,
            probes: kernel.probes,
            tc: kernel.tc,
            nft_trace: kernel.nft_trace,
        };
        // SAFETY: the page is ours, and no program runs yet.
        unsafe { control.at(0).write_volatile(page) };
        filter::fill(&mut ebpf, compiled)?;

        let per_cpu: &mut RawTracePoint = program(&mut ebpf, PER_CPU)?;
        per_cpu.load().map_err(refused(PER_CPU))?;
        let reader: &mut RawTracePoint = program(&mut ebpf, READER)?;
        reader.load().map_err(refused(READER))?;
        let btf = Btf::from_sys_fs()?;
        let program: &mut BtfTracePoint = program(&mut ebpf, "kfree_skb")?;
        let refuse = refused("kfree_skb");
        program.load("kfree_skb", &btf).map_err(refuse)?;
        let link = Some(program.attach().map_err(refuse)?);
        let second: &mut BtfTracePoint = self::program(&mut ebpf, SECOND)?;
        second.load("kfree_skb", &btf).map_err(refused(SECOND))?;
        let tracer = Self {
            ebpf,
            link,
            is_second_kept: false,
            probes: Probes::default(),
            ends: Ends::default(),
            layout,
            control,
            cpus: cpu_states,
            slots,
            sites,
            memory,
            watched,
            moved,
            own_net,
            netns_ops,
            ring,
            steps,
            path,
        };
        Ok(tracer)
    }

    /// The ring buffer of full events.
    pub fn ring(&mut self) -> &mut RingBuf<MapData> {
        &mut self.ring
    }

    /// How the slots are laid out.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Starts the next interval: every slot may send a first event again.
    pub fn next_interval(&mut self) {
        let page = self.control.at(0);
        // SAFETY: a field of the mapped page; only we write it.
        unsafe {
            let interval = &raw mut (*page).interval;
            interval.write_volatile(interval.read_volatile().wrapping_add(1).max(1));
        }
    }

    /// The generation of slots in use.
    #[must_use]
    pub fn generation(&self) -> u32 {
        // SAFETY: a field of the mapped page.
        unsafe { (&raw const (*self.control.at(0)).generation).read_volatile() & 1 }
    }

    /// Turns to the other generation. Programs that are running may go on with the old one: see
    /// [`Tracer::is_quiet`].
    pub fn turn_generation(&mut self) {
        let next = self.generation() ^ 1;
        // SAFETY: a field of the mapped page; only we write it.
        unsafe { (&raw mut (*self.control.at(0)).generation).write_volatile(next) };
    }

    /// Clears a generation that no program uses: not the one in use, and [`Tracer::is_quiet`] since the turn.
    pub fn clear_generation(&mut self, generation: u32) {
        self.slots.clear(self.layout.generation(generation));
    }

    /// Marks in `quiet` the CPUs that were seen without a running program.
    pub fn note_quiet(&self, quiet: &mut [bool]) {
        /// Looks at a CPU's level: in a storm a program runs most of the time.
        const LOOKS: u32 = 2000;
        for (cpu, quiet) in (0..self.layout.cpus).zip(quiet.iter_mut()) {
            let level = self.cpus.at(cpu * Layout::LEVELS);
            for _ in 0..LOOKS {
                // SAFETY: a field of a mapped element.
                *quiet = *quiet || unsafe { (&raw const (*level).level).read_volatile() } == 0;
                if *quiet {
                    break;
                }
                std::hint::spin_loop();
            }
        }
    }

    /// Reads the counters of a generation. Returns how many flow slots the fullest CPU has in use.
    pub fn read_slots(&self, generation: u32, mut each: impl FnMut(Reading)) -> u32 {
        let mut fullest = 0;
        for cpu in 0..self.layout.cpus {
            let first = self.layout.base(generation, cpu);
            let mut flows = 0;
            for slot in first..first + self.layout.stride() {
                let at = self.slots.at(slot);
                // SAFETY: fields of a mapped element. The programs write the key before the state, and the segments
                // before the count; here they are read in the opposite order.
                unsafe {
                    if (&raw const (*at).state).read_volatile() != slot_state::READY {
                        continue;
                    }
                    let count = (&raw const (*at).count).read_volatile();
                    let segments = (&raw const (*at).segments).read_volatile();
                    each(Reading { slot, key: (&raw const (*at).key).read_volatile(), count, segments });
                }
                flows += u32::from(slot - first < self.layout.flow_slots);
            }
            fullest = fullest.max(flows);
        }
        fullest
    }

    /// What was lost, in all.
    #[must_use]
    pub fn losses(&self) -> Losses {
        let mut losses = Losses { recursion: self.recursion_misses(), ..Losses::default() };
        for index in 0..self.cpus.len() {
            let state = self.cpus.read(index);
            losses.ring += state.ring_full;
            losses.flow += state.flow_full;
            losses.overflow += state.overflow;
            losses.filtered += state.filtered;
            losses.seen += state.seen;
            losses.probe_agreed += state.probe_agreed;
            losses.probe_disagreed += state.probe_disagreed;
            losses.probe_unseen += state.probe_unseen;
        }
        losses
    }

    /// Layouts that came with a module loaded later.
    pub fn update_layout(&mut self, kernel: &KernelLayout) {
        let page = self.control.at(0);
        let (skb, state) = kernel.pktinfo.unwrap_or((ABSENT, ABSENT));
        // SAFETY: fields of the mapped page; only we write them. A program that sees one half of a change reads a
        // wrong field once, which it doesn't believe.
        unsafe {
            (&raw mut (*page).conntrack).write_volatile(kernel.conntrack);
            (&raw mut (*page).probes).write_volatile(kernel.probes);
            (&raw mut (*page).tc).write_volatile(kernel.tc);
            (&raw mut (*page).nft_trace).write_volatile(kernel.nft_trace);
            (&raw mut (*page).pktinfo_skb).write_volatile(skb);
            (&raw mut (*page).pktinfo_state).write_volatile(state);
            (&raw mut (*page).nft_do_chain).write_volatile(kernel.nft_do_chain);
        }
        self.forget_sites();
    }

    /// What the self-test learned: where in a netns the nft generation is, and what the call sites leave on the stack.
    pub fn set_roles(&mut self, sequence: SequenceOffsets, roles: [Role; Role::COUNT]) {
        let page = self.control.at(0);
        // SAFETY: fields of the mapped page; only we write them. A role that is half there has another location, or
        // leads to an address that no rule set has.
        unsafe {
            (&raw mut (*page).sequence).write_volatile(sequence);
            (&raw mut (*page).roles).write_volatile(roles);
        }
    }

    /// The netns of the self-test, whose packets pass every filter; 0 for none.
    pub fn set_own_netns(&mut self, inode: u32) {
        // SAFETY: a field of the mapped page.
        unsafe { (&raw mut (*self.control.at(0)).own_netns).write_volatile(inode) };
    }

    /// Forgets where the programs found hook states on the stack: what they found nothing for they look for again. Layouts
    /// that came meanwhile, or another program on the tracepoint, may have changed that.
    pub fn forget_sites(&self) {
        self.sites.clear(0..Site::COUNT);
    }

    /// Detaches the program. Runs that have begun end within moments.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn stop(&mut self) -> Result<(), TracerError> {
        if let Some(link) = self.link.take() {
            program::<BtfTracePoint>(&mut self.ebpf, "kfree_skb")?
                .detach(link)
                .map_err(refused("kfree_skb"))?;
        }
        Ok(())
    }

    /// The kernel half's own messages; `None` the second time.
    pub fn log(&mut self) -> Option<KernelLog> {
        KernelLog::new(&mut self.ebpf)
    }

    /// `recursion_misses` of the program (struct bpf_prog_info, include/uapi/linux/bpf.h; 0 before 5.12).
    fn recursion_misses(&self) -> u64 {
        let program = self.ebpf.program("kfree_skb").and_then(|program| program.fd().ok());
        let info = program.and_then(|fd| bpf::info::<bpf_prog_info>(fd.as_fd()).ok());
        info.map_or(0, |info| info.recursion_misses)
    }
}

/// Slots for so many CPUs, in bounded memory.
fn layout_for(cpus: u32) -> Layout {
    let most = SLOT_MEMORY / (size_of::<Slot>() * Layout::GENERATIONS as usize * cpus as usize);
    let flow_slots = u32::try_from(most).unwrap_or(u32::MAX).clamp(256, 16384);
    let flow_slots =
        if flow_slots.is_power_of_two() { flow_slots } else { flow_slots.next_power_of_two() / 2 };
    let coarse_slots = if cpus > 32 { 256 } else { 512 };
    let chunks = BASELINE_MEMORY / (size_of::<Baseline>() * cpus as usize);
    let chunks = u32::try_from(chunks).unwrap_or(u32::MAX).clamp(64, 1024);
    Layout { cpus, flow_slots, coarse_slots, nested_slots: 64, chunks }
}

fn possible_cpus() -> Result<u32, TracerError> {
    aya::util::nr_cpus()
        .map_err(|(_, error)| TracerError::File { path: "/sys/devices/system/cpu/possible", error })
        .map(|cpus| u32::try_from(cpus).unwrap_or(1))
}

/// Learns where our own network namespace is, and from it what the `ops` of each is; and that the offsets are right.
fn own_netns(ebpf: &mut Ebpf) -> Result<(u64, u64, u64), TracerError> {
    use std::os::unix::fs::MetadataExt as _;
    let refuse = refused("own_netns");
    let program: &mut RawTracePoint = program(ebpf, "own_netns")?;
    program.load().map_err(refuse)?;
    program.test_run(RawTracePointRunOptions::new()).map_err(refuse)?;
    program.unload().map_err(refuse)?;
    let found: Array<_, [u64; 4]> = map(ebpf, "OWN_NETNS")?;
    let [net, ops, seen, process] =
        found.get(&0, 0).map_err(|error| TracerError::Map { name: "OWN_NETNS", error })?;
    let path = "/proc/self/ns/net";
    let own = std::fs::metadata(path).map_err(|error| TracerError::File { path, error })?.ino();
    if seen == own && ops != 0 { Ok((net, ops, process)) } else { Err(TracerError::OwnNetns { seen, own }) }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, TracerError> {
    ebpf.take_map(name).ok_or(TracerError::Missing(name))
}

fn map<'a, M>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<M, TracerError>
where
    M: TryFrom<&'a mut aya::maps::Map, Error = MapError>,
{
    M::try_from(ebpf.map_mut(name).ok_or(TracerError::Missing(name))?)
        .map_err(|error| TracerError::Map { name, error })
}

fn mapped<T: Pod>(ebpf: &mut Ebpf, name: &'static str, length: u32) -> Result<Mapped<T>, TracerError> {
    let aya::maps::Map::Array(data) = ebpf.map_mut(name).ok_or(TracerError::Missing(name))? else {
        return Err(TracerError::Missing(name));
    };
    Mapped::new(data, length).map_err(|error| TracerError::Mmap { name, error })
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, TracerError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    <&mut P>::try_from(ebpf.program_mut(name).ok_or(TracerError::Missing(name))?).map_err(refused(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fit_their_memory_on_any_machine() {
        for cpus in [1, 2, 8, 64, 128, 512] {
            let layout = layout_for(cpus);
            assert!(layout.flow_slots.is_power_of_two(), "{layout:?}");
            assert!(layout.flow_slots >= 256, "{layout:?}");
            let bytes = layout.total() as usize * size_of::<Slot>();
            assert!(
                bytes <= SLOT_MEMORY + (64 << 10) * cpus as usize + (96 * 1024) * cpus as usize,
                "{layout:?}"
            );
        }
        assert_eq!(layout_for(2).flow_slots, 16384);
    }
}
