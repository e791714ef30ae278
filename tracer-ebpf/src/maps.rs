//! Maps and load-time constants: all that the two halves share.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf},
};
use tracer_common::{
    Control, CpuState, Depth, EndKey, FilterSpec, FlowKey, Layout, Memory, Offsets, OwnEvent, Retransmit,
    Site, Slot, StepHead, Traced,
    moved::{self, HookTables},
    watch::{self, Baseline, Chunk, List},
};

/// Where the running kernel keeps its fields. Read with [`offset!`].
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::NONE;

/// 1 if packets are followed (`droptrace trace`).
#[unsafe(no_mangle)]
pub static TRACE: u32 = 0;

/// Chunks of counters that followed packets may move, of one CPU.
#[unsafe(no_mangle)]
pub static MOVED_CHUNKS_ON_CPU: u32 = 1;

/// How the slots are laid out. Read with [`layout!`].
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout { cpus: 1, flow_slots: 1, coarse_slots: 1, nested_slots: 1, chunks: 1 };

/// What the user asked to see. Read with [`filter!`].
#[unsafe(no_mangle)]
pub static FILTER: FilterSpec = FilterSpec { active: 0, required: [0; 7] };

/// A load-time constant, as the user half wrote it before the program was loaded. The verifier knows its value too,
/// and drops the branches that this kernel doesn't need.
#[inline(always)]
pub fn constant<T: Copy>(value: &'static T) -> T {
    // SAFETY: a valid reference; volatile because what the compiler sees here is not what will be there.
    unsafe { core::ptr::read_volatile(value) }
}

/// A field of type `T` in the sk_buff's copy, `at` bytes from its start.
///
/// # Safety
/// `scratch` must be a map value. The verifier knows `at` and checks it against the copy's size.
#[inline(always)]
pub unsafe fn field_at<T: Copy>(scratch: *const Scratch, at: u32) -> T {
    // SAFETY: the caller's.
    unsafe { *(&raw const (*scratch).skb).cast::<u8>().add(at as usize).cast::<T>() }
}

/// A field of [`OFFSETS`].
macro_rules! offset {
    ($field:ident) => {
        $crate::maps::constant(&$crate::maps::OFFSETS.$field)
    };
}

/// True if this kernel has the fields.
macro_rules! has {
    ($($field:ident),+) => {
        $($crate::maps::offset!($field) != tracer_common::ABSENT)&&+
    };
}

/// A field of [`LAYOUT`].
macro_rules! layout {
    ($field:ident) => {
        $crate::maps::constant(&$crate::maps::LAYOUT.$field)
    };
}

/// A field of the sk_buff's copy in the scratch memory, by the name of its offset.
macro_rules! skb_field {
    ($scratch:expr, $field:ident, $type:ty) => {
        $crate::maps::field_at::<$type>($scratch, $crate::maps::offset!($field))
    };
}

/// A field of the hook state's copy in the scratch memory, by the name of its offset.
macro_rules! state_field {
    ($scratch:expr, $field:ident, $type:ty) => {
        *(&raw const (*$scratch).hook_state)
            .cast::<u8>()
            .add($crate::maps::offset!($field) as usize)
            .cast::<$type>()
    };
}

/// Working memory of one program run: what its steps hand to each other.
///
/// Each step is a function that the verifier checks once and for all, whatever came before it. For that its only
/// argument is the index of this memory, and all else goes through here.
#[repr(C)]
pub struct Scratch {
    /// The tracepoint's `skb`.
    pub packet: u64,
    /// Address of the program's context, which lies on the kernel's stack.
    pub context: u64,
    /// The tracepoint's `rx_sk`, or 0.
    pub receiving_socket: u64,
    /// Address of the network header; 0 if the packet has none.
    pub network: u64,
    /// Bytes from there to the end of the linear part.
    pub available: u32,
    /// Offset of the transport header from the network header; 0 if it is not known.
    pub transport: u32,
    /// Address of netfilter's hook state, proven; 0 without.
    pub state: u64,
    /// Inode number of its `net`.
    pub state_inode: u32,
    /// Where `key.netns` comes from (`NetnsSource`).
    pub netns_source: u32,
    /// Address of the struct net; 0 if it is not known.
    pub netns: u64,
    /// Address of its `struct skb_shared_info`; 0 if it is not known.
    pub shared_info: u64,
    /// Segments of the packet, at least 1.
    pub segments: u64,
    /// The word of the stack window that the search found last.
    pub found: u32,
    /// What is known of the call site that freed the packet (`roles::site`).
    pub site: u32,
    /// The kind of its role.
    pub role: u32,
    /// The words that the role speaks of, at the depth that the stack has now.
    pub depth: Depth,
    /// The hook function that dropped the packet, and what it is given; zeros if they are not known.
    pub hooked: [u64; 2],
    /// Rule counters: how far they have moved, in all.
    pub moved: u64,
    /// Likewise, each times its number: the number of the one that moved.
    pub hit: u64,
    /// Likewise: not 0 if one has moved by more than one.
    pub leaps: u64,
    /// Likewise: 1 if some were not known before.
    pub unsure: u64,
    /// Likewise: a chunk of them.
    pub counters: crate::watch::Counters,
    /// Address of the nft expression that probes saw dropping the packet; 0 without.
    pub expression: u64,
    /// A tc hook's filters: how many were found.
    pub filters: u32,
    /// Likewise: `tc_word` bits of what is wrong with them.
    pub faults: u32,
    /// Likewise: address of the classifier that is looked at (struct tcf_proto); 0: none is left.
    pub filter: u64,
    /// Likewise: address of its next program's list_head.
    pub node: u64,
    /// What this drop is counted under.
    pub key: FlowKey,
    /// Copy of the hook state.
    pub hook_state: [u64; Offsets::STATE_MAX / 8],
    /// Copy of the struct sk_buff.
    pub skb: [u64; Offsets::SKB_MAX / 8],
    /// The packet's first bytes from its network header on.
    pub header: [u64; HEADER_WORDS],
    /// The kernel stack above the program's context.
    pub window: [u64; SCAN_WORDS],
    /// A filter's pair of addresses.
    pub tuple: [[u8; 16]; 2],
    /// Where a followed packet is seen; the event follows it, as in a `Step`.
    pub head: StepHead,
    /// The full event, until it is sent.
    pub own: OwnEvent,
}

/// Words of the stack that are searched for the hook state.
pub const SCAN_WORDS: usize = 192;

/// The working memory of a step; the step ends where there is none.
macro_rules! scratch {
    ($index:expr) => {
        match $crate::maps::SCRATCH.get_ptr_mut($index) {
            Some(scratch) => scratch,
            None => return 0,
        }
    };
}

/// The control page; the step ends where there is none.
macro_rules! control {
    () => {
        match $crate::maps::CONTROL.get_ptr(0) {
            Some(control) => control,
            None => return 0,
        }
    };
}

/// Words of the packet looked at in place: 60 bytes of IPv4 header and 8 behind it, rounded up.
pub const HEADER_WORDS: usize = 10;

pub(crate) use {control, has, layout, offset, scratch, skb_field, state_field};

/// Written by the user half, read by the programs.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// State of each level of each CPU; the user half sets the number.
#[map]
pub static CPUS: Array<CpuState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The counting slots; the user half sets the number.
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Likewise.
#[map]
pub static SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// Call sites whose stack layout is known; the user half clears it when a module brings new layouts.
#[map]
pub static SITES: Array<Site> = Array::with_max_entries(Site::COUNT, BPF_F_MMAPABLE);

/// Whose counters to look at, for each hook of each netns.
#[map]
pub static LISTS: Array<List> = Array::with_max_entries(watch::LISTS, BPF_F_MMAPABLE);

/// Their counters; the user half sets the number.
#[map]
pub static CHUNKS: Array<Chunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What those were at the last drop, `cpu * chunks + chunk`; the user half sets the number.
#[map]
pub static BASELINES: Array<Baseline> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Tells each CPU's offset: see `own_per_cpu`.
#[map]
pub static PER_CPU: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What probes noted of packets on hooks, by the packet's address; the user half sets the number.
#[map]
pub static PROBED: LruHashMap<u64, crate::probes::Probed> = LruHashMap::with_max_entries(1, 0);

/// Packets that are followed, by the address of their sk_buff; the user half sets the number.
#[map]
pub static FOLLOWED: LruHashMap<u64, crate::path::Followed> = LruHashMap::with_max_entries(1, 0);

/// Flows in which answers to followed packets may come; the user half sets the number.
#[map]
pub static EXPECTED: LruHashMap<crate::path::Flow, u32> = LruHashMap::with_max_entries(1, 0);

/// What each CPU began to follow, and could not tell; the user half reads it.
#[map]
pub static TRACED: PerCpuArray<Traced> = PerCpuArray::with_max_entries(1, 0);

/// Whose counters to look at in a trace, for each hook of each netns; the user half sets the number.
#[map]
pub static MOVED_LISTS: Array<HookTables> = Array::with_max_entries(moved::LISTS, BPF_F_MMAPABLE);

/// Their counters; the user half sets the number.
#[map]
pub static MOVED_CHUNKS: Array<Chunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What those were at the last look, `cpu * chunks + chunk`; the user half sets the number.
#[map]
pub static MOVED_BASELINES: Array<Baseline> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Steps of followed packets; the user half sets the size.
#[map]
pub static STEPS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Full events.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Result of `own_netns`: address of the struct net, its `ops`, its inode number; the process's id.
#[map]
pub static OWN_NETNS: Array<[u64; 4]> = Array::with_max_entries(1, 0);

/// What `read_memory` copied.
#[map]
pub static MEMORY: Array<Memory> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Filter: addresses.
#[map]
pub static FILTER_ADDRESS: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(4096, 0);

/// Filter: ports, as `u32`.
#[map]
pub static FILTER_PORT: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// Filter: protocols.
#[map]
pub static FILTER_PROTOCOL: HashMap<u32, u32> = HashMap::with_max_entries(512, 0);

/// Filter: interface names.
#[map]
pub static FILTER_INTERFACE: HashMap<[u8; 16], u32> = HashMap::with_max_entries(1024, 0);

/// Filter: netns inode numbers.
#[map]
pub static FILTER_NETNS: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// Filter: drop reasons.
#[map]
pub static FILTER_REASON: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// Filter: addresses of pods and services. The user half keeps it up while the program runs, and sets the number.
#[map]
pub static FILTER_END: HashMap<EndKey, u32> = HashMap::with_max_entries(1, 0);

/// Filter: network namespaces of pods, likewise.
#[map]
pub static FILTER_END_NETNS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// To whom TCP has repeated segments, and how many; the user half sets the number.
#[map]
pub static RETRANSMITS: LruPerCpuHashMap<Retransmit, u64> = LruPerCpuHashMap::with_max_entries(1, 0);
