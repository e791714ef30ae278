//! The running kernel, as droptrace knows it: layouts, drop reasons, symbols. Modules that load later bring more.

use super::{
    btf::{Btf, BtfDir, BtfError},
    nft_trace,
    offsets::{self, MissingField},
    reasons::Reasons,
    symbols::{Symboliser, SymbolsError},
    tracer::KernelLayout,
};
use crate::event::explain::Names;
use crate::netfilter::{
    bridge,
    conntrack::TableLayout,
    expressions::CounterLayout,
    hooks::HookLayout,
    legacy::{self, LegacyLayout},
    nft::NftLayout,
    program::ProgramLayout,
};
use crate::tc::layout;
use std::{
    cell::RefCell, collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc, thread,
    time::Duration,
};
use tracer_common::{ABSENT, ConntrackOffsets, ProbeOffsets, TcLayout, TextRange};

/// Least time between two readings of /proc/kallsyms.
const SYMBOLS_INTERVAL: Duration = Duration::from_secs(5);
/// Where the kernel's symbols are.
const KALLSYMS: &str = "/proc/kallsyms";
/// Where the BTF of the kernel and of its modules is.
const BTF: &str = "/sys/kernel/btf";
/// Modules whose types, drop reasons or functions are of use.
const MODULES: [&str; 23] = [
    "cls_bpf",
    "netkit",
    "bridge",
    "br_netfilter",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_counter",
    "x_tables",
    "ip_tables",
    "ip6_tables",
    "iptable_mangle",
    "ip6table_mangle",
    "iptable_nat",
    "ip6table_nat",
    "iptable_filter",
    "ip6table_filter",
    "iptable_raw",
    "ip6table_raw",
    "iptable_security",
    "ip6table_security",
    "mac80211",
    "openvswitch",
];

/// The inode of a module's BTF, which the kernel makes anew whenever the module is loaded (kernel/bpf/btf.c,
/// btf_module_notify).
fn inode(module: &str) -> Option<u64> {
    fs::metadata(Path::new(BTF).join(module)).ok().map(|metadata| metadata.ino())
}

/// See the module's documentation.
pub struct Kernel {
    layout: KernelLayout,
    missing: Vec<MissingField>,
    reasons: Reasons,
    symbols: Option<RefCell<Symboliser>>,
    /// Layout of nft's structures, if they are there already and described.
    nft: Option<NftLayout>,
    /// Layout of nft's counters, likewise, where they are a module of their own (up to 5.17).
    nft_counter: Option<CounterLayout>,
    /// Where hook functions are listed.
    hooks: Option<HookLayout>,
    /// Where count and limit of tracked connections are.
    connections: Option<TableLayout>,
    /// Where a BPF program's id and name are.
    programs: Option<ProgramLayout>,
    /// Layout of legacy tables, likewise.
    legacy: Option<LegacyLayout>,
    /// Modules of [`MODULES`] whose BTF was read, and the inode that it had: a module that left and came back has another
    /// one, and its functions may be elsewhere.
    read: BTreeMap<&'static str, u64>,
}

impl Kernel {
    /// Reads what there is to know. Symbols may be missing (second part of the result: why); types may not.
    ///
    /// # Errors
    /// If the kernel's types can't be read.
    pub fn load() -> Result<(Self, Arc<Btf>, Option<SymbolsError>), BtfError> {
        // Reading kallsyms takes the kernel a while: meanwhile the types.
        let symbols = thread::spawn(|| Symboliser::new(KALLSYMS, SYMBOLS_INTERVAL));
        let vmlinux = Arc::new(BtfDir::new(BTF).load_vmlinux()?);
        let resolved = offsets::resolve(&vmlinux, None);
        let mut kernel = Self {
            layout: KernelLayout {
                offsets: resolved.offsets,
                conntrack: resolved.conntrack,
                pktinfo: pktinfo(&vmlinux),
                probes: probe_offsets(&vmlinux, None),
                nft_trace: nft_trace::resolve(&vmlinux).unwrap_or_default(),
                net_list: vmlinux.offset_of("net", "list"),
                control_block: vmlinux.offset_of("qdisc_skb_cb", "data"),
                array_pptrs: vmlinux.offset_of("bpf_array", "pptrs"),
                ..KernelLayout::default()
            },
            missing: resolved.missing,
            reasons: Reasons::from_vmlinux(&vmlinux),
            symbols: None,
            nft: NftLayout::resolve(&vmlinux, None),
            nft_counter: None,
            hooks: HookLayout::resolve(&vmlinux),
            connections: TableLayout::resolve(&vmlinux, None),
            programs: ProgramLayout::resolve(&vmlinux),
            legacy: LegacyLayout::resolve(&vmlinux, None, None),
            read: BTreeMap::new(),
        };
        kernel.layout.tc = kernel.tc(&vmlinux, [None, None]);
        kernel.read_modules(&vmlinux);
        let trouble = match symbols.join() {
            Ok(Ok(symbols)) => {
                kernel.symbols = Some(RefCell::new(symbols));
                None
            }
            Ok(Err(error)) => Some(error),
            // The thread only reads and parses; if it died, there are no symbols.
            Err(_) => None,
        };
        kernel.find_functions();
        Ok((kernel, vmlinux, trouble))
    }

    /// Layout for the programs.
    #[must_use]
    pub fn layout(&self) -> &KernelLayout {
        &self.layout
    }

    /// Fields that this kernel doesn't have.
    #[must_use]
    pub fn missing(&self) -> &[MissingField] {
        &self.missing
    }

    /// Numbers and names of the drop reasons, for filters.
    #[must_use]
    pub fn reason_names(&self) -> Vec<(u32, String)> {
        self.reasons.iter().map(|(number, name)| (number, name.name.into_owned())).collect()
    }

    /// Layout of nft's structures.
    #[must_use]
    pub fn nft(&self) -> Option<NftLayout> {
        let mut layout = self.nft?;
        layout.counters = layout.counters.or(self.nft_counter);
        Some(layout)
    }

    /// Where hook functions are listed.
    #[must_use]
    pub fn hooks(&self) -> Option<HookLayout> {
        self.hooks
    }

    /// Where count and limit of tracked connections are.
    #[must_use]
    pub fn connections(&self) -> Option<TableLayout> {
        self.connections
    }

    /// Where a BPF program's id and name are.
    #[must_use]
    pub fn programs(&self) -> Option<ProgramLayout> {
        self.programs
    }

    /// Layout of legacy tables; `None` also where no legacy table can be: without ip_tables and ip6_tables.
    #[must_use]
    pub fn legacy(&self) -> Option<LegacyLayout> {
        self.legacy.filter(|layout| layout.functions.iter().any(|address| *address != 0))
    }

    /// True if the kernel has a function of that name, in itself or in a module that is loaded.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.symbols.as_ref().is_some_and(|symbols| symbols.borrow().symbols().range(name).is_some())
    }

    /// Looks for modules that came or went since the last call; true if the programs' layout changed.
    pub fn refresh(&mut self) -> bool {
        if MODULES.iter().all(|module| self.read.get(module) == inode(module).as_ref()) {
            return false;
        }
        let Ok(vmlinux) = BtfDir::new(BTF).load_vmlinux() else { return false };
        let (before, legacy, counter) = (self.layout, self.legacy, self.nft_counter);
        self.read_modules(&Arc::new(vmlinux));
        if let Some(symbols) = &self.symbols {
            // If it fails, the old symbols are as good as it gets.
            let _ = symbols.borrow_mut().reload();
        }
        self.find_functions();
        before.conntrack != self.layout.conntrack
            || before.pktinfo != self.layout.pktinfo
            || before.nft_do_chain != self.layout.nft_do_chain
            || before.tc != self.layout.tc
            || legacy != self.legacy
            || counter != self.nft_counter
    }

    fn read_modules(&mut self, vmlinux: &Arc<Btf>) {
        let directory = BtfDir::new(BTF);
        for module in MODULES {
            let now = inode(module);
            if self.read.get(module) == now.as_ref() {
                continue;
            }
            self.read.remove(module);
            // A module without BTF (5.10), or with one that can't be read, is as none.
            let Some((now, btf)) = now.zip(directory.load_module(module, vmlinux).ok().flatten()) else {
                continue;
            };
            self.read.insert(module, now);
            match module {
                "nf_conntrack" => {
                    let (conntrack, _) = offsets::resolve_conntrack(&btf);
                    self.layout.conntrack = conntrack;
                    self.connections = TableLayout::resolve(vmlinux, Some(&btf));
                    self.missing.retain(|field| !field.what.starts_with("nf_conn"));
                }
                "nf_tables" => {
                    self.layout.pktinfo = pktinfo(&btf);
                    let x_tables = directory.load_module("x_tables", vmlinux).ok().flatten();
                    self.nft = NftLayout::resolve(&btf, x_tables.as_ref());
                    self.layout.probes = probe_offsets(&btf, x_tables.as_ref());
                    self.layout.nft_trace = nft_trace::resolve(&btf).unwrap_or_default();
                }
                "cls_bpf" | "netkit" => {
                    let both = ["cls_bpf", "netkit"];
                    let both = both.map(|module| directory.load_module(module, vmlinux).ok().flatten());
                    self.layout.tc = self.tc(vmlinux, both.each_ref().map(Option::as_ref));
                }
                "nft_counter" => self.nft_counter = CounterLayout::resolve(&btf),
                "x_tables" | "nf_nat" => {
                    let both = ["x_tables", "nf_nat"];
                    let [tables, nat] =
                        both.map(|module| directory.load_module(module, vmlinux).ok().flatten());
                    self.legacy = LegacyLayout::resolve(vmlinux, tables.as_ref(), nat.as_ref());
                }
                // Their functions tell tables from other hooks.
                name if name.starts_with("ip") => {}
                // Of these it is their text that counts.
                "bridge" | "br_netfilter" => {}
                _ => self.reasons.add_module(&btf),
            }
        }
    }

    /// Where what is on tc hooks is, with the types of cls_bpf and netkit where they are modules. Functions are only known
    /// once the symbols are.
    fn tc(&self, vmlinux: &Btf, [cls_bpf, netkit]: [Option<&Btf>; 2]) -> TcLayout {
        let number = |wanted: &str| {
            let mut named =
                self.reasons.iter().filter(|(_, name)| name.subsystem == "core" && name.name == wanted);
            named.next().map(|(number, _)| number)
        };
        layout::resolve(vmlinux, cls_bpf, netkit, number)
    }

    fn find_functions(&mut self) {
        let Some(symbols) = &self.symbols else { return };
        let symbols = symbols.borrow();
        let range = |name: &str| match symbols.symbols().range(name) {
            Some((start, end)) => TextRange { start, end },
            None => TextRange::default(),
        };
        self.layout.nf_hook_slow = range("nf_hook_slow");
        self.layout.nft_do_chain = range("nft_do_chain");
        self.layout.nf_queue = range("nf_queue");
        if self.layout.tc.reason_ingress == ABSENT {
            // The compiler may have made another version of a function, for the arguments that it really gets.
            let part = |name: &str| ["", ".constprop.0", ".isra.0"].map(|end| range(&format!("{name}{end}")));
            let first =
                |ranges: [TextRange; 3]| ranges.into_iter().find(|range| range.end != 0).unwrap_or_default();
            self.layout.tc.receive = first(part("__netif_receive_skb_core"));
            self.layout.tc.transmit = first(part("__dev_queue_xmit"));
        }
        self.layout.tc.netkit = range("netkit_xmit");
        self.layout.br_handle_frame = range("br_handle_frame");
        self.layout.br_nf_pre_routing = range(bridge::FREES_ITSELF);
        if let Some(legacy) = &mut self.legacy {
            legacy.functions = legacy::TABLE_FUNCTIONS.map(|name| range(name).start);
            legacy.has_nat = range("nf_nat_inet_fn").end != 0;
        }
    }
}

/// nft_pktinfo.skb and .state (include/net/netfilter/nf_tables.h; before 5.15 without the state).
fn pktinfo(btf: &Btf) -> Option<(u32, u32)> {
    btf.offset_of("nft_pktinfo", "skb").zip(btf.offset_of("nft_pktinfo", "state"))
}

/// Where probes on nft's expressions look.
fn probe_offsets(nf_tables: &Btf, x_tables: Option<&Btf>) -> ProbeOffsets {
    let at = |container, path| nf_tables.offset_of(container, path).unwrap_or(ABSENT);
    ProbeOffsets {
        expression_data: at("nft_expr", "data"),
        immediate_register: at("nft_immediate_expr", "dreg"),
        immediate_code: at("nft_immediate_expr", "data.verdict.code"),
        ops_data: at("nft_expr_ops", "data"),
        target_name: x_tables.unwrap_or(nf_tables).offset_of("xt_target", "name").unwrap_or(ABSENT),
        reserved: 0,
    }
}

impl Names for Kernel {
    fn reason(&self, reason: u32) -> Option<(String, String)> {
        if self.reasons.is_empty() {
            return None;
        }
        let found = self.reasons.name(reason);
        Some((found.subsystem.into_owned(), found.name.into_owned()))
    }

    fn symbol(&self, address: u64) -> Option<String> {
        let mut symbols = self.symbols.as_ref()?.borrow_mut();
        symbols.resolve(address).map(|symbol| symbol.to_string())
    }

    fn has_reasons(&self) -> bool {
        !self.reasons.is_empty()
    }

    fn conntrack_offsets(&self) -> ConntrackOffsets {
        self.layout.conntrack
    }
}
