//! The rule sets of the network namespaces that drops are seen in, read when a drop needs them and kept while they may
//! be needed: a rule that was replaced a second ago is not blamed for what its successor did, nor the other way round.

use super::NetnsId;
use super::attribute::{self, Expression, Hook};
use super::bridge;
use super::budget::Budget;
use super::conntrack::{self, TableLayout};
use super::counted::Counted;
use super::counters::{Counters, NftRules};
use super::evaluate::{self, Culprit, Packet, TableText};
use super::hooks::{HookLayout, Hooked};
use super::listings::Printed;
use super::memory::KernelMemory;
use super::mixed::{self, Held};
use super::model::{Backend, Confidence, Family, Method, Netfilter, TableSummary, hook_name};
use super::moved;
use super::nft::{Chain, Found, NftLayout, Ruleset};
use super::owner::{self, Subject};
use super::program::{self, Program, ProgramLayout};
use super::queue;
use super::traced::{self, Told};
use super::watch::Plan;
use super::words::Words;
use crate::event::decode::Raw;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tracer_common::{
    EXPRESSION_WORDS, FlowKey, NftStep, attribution_kind, flow_flag, fold, hook_of, index_of, kind_of,
    undecided,
};

/// Generations kept of a netns.
const GENERATIONS: usize = 4;
/// Network namespaces kept.
const MAX_NETNS: usize = 1024;
/// Reading takes at most one part in this many of the time.
const IDLE_SHARE: u32 = 4;
/// Time that evaluating packets may take at once: a packet takes some microseconds a rule.
const EVALUATION_BURST: Duration = Duration::from_millis(200);

/// Hook functions of the tables of arptables-legacy and ebtables-legacy, whose counters are not compared
/// (net/ipv4/netfilter/arptable_filter.c, net/bridge/netfilter/ebtable_*.c).
const OTHER_TABLES: [&str; 9] = [
    "arpt_do_table",
    "arptable_filter_hook",
    "ebt_do_table",
    "ebt_in_hook",
    "ebt_out_hook",
    "ebt_filter_hook",
    "ebt_nat_hook",
    "ebt_nat_in",
    "ebt_nat_out",
];

/// What stands in the place of a hook function while it is being removed (net/netfilter/core.c).
const REMOVED: &str = "accept_all";

/// Hook functions of nft's base chains: what they are given is the struct nft_chain (net/netfilter/nft_chain_filter.c,
/// net/netfilter/nft_chain_route.c; the latter drop, too, what they can't route again).
const NFT_FUNCTIONS: [&str; 10] = [
    "nft_do_chain_ipv4",
    "nft_do_chain_ipv6",
    "nft_do_chain_inet",
    "nft_do_chain_inet_ingress",
    "nft_do_chain_arp",
    "nft_do_chain_bridge",
    "nft_do_chain_netdev",
    "nf_route_table_hook4",
    "nf_route_table_hook6",
    "nf_route_table_inet",
];

/// Which function of netfilter freed a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreedBy {
    /// nf_hook_slow
    HookLoop,
    /// nft_do_chain
    Nft,
    /// nf_queue
    Queue,
    /// br_handle_frame, maybe for its PREROUTING hook.
    Bridge,
}

/// Which rule engines the kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Engines {
    /// nf_tables
    pub nft: bool,
    /// ip_tables or ip6_tables
    pub legacy: bool,
}

/// What a drop's event tells for attribution.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// `FlowKey::attribution`.
    pub attribution: [u64; 2],
    /// The netns; without address and cookie where only a count is known.
    pub netns: NetnsId,
    /// The hook.
    pub hook: Option<Hook>,
    /// The hook function that dropped it, as it stood then.
    pub hooked: Option<Hooked>,
    /// The start of the nft expression.
    pub expression: Option<[u64; EXPRESSION_WORDS]>,
    /// Which function freed the packet.
    pub freed_by: FreedBy,
    /// The packet's ethertype, 0 if it is not known.
    pub ethertype: u16,
    /// When the packet was dropped, CLOCK_MONOTONIC ns.
    pub time: u64,
    /// The time now, likewise.
    pub now: u64,
    /// skb->mark; 0 where only a count is known.
    pub mark: u32,
    /// The packet's connection; `None` also where only a count is known.
    pub entry: Option<conntrack::Entry>,
}

impl Evidence {
    /// Of a full event.
    #[must_use]
    pub fn of_event(raw: &Raw) -> Self {
        let of_key = Self::of_key(&raw.key);
        Self {
            netns: NetnsId { address: raw.net, inode: raw.key.netns, cookie: raw.netns_cookie.unwrap_or(0) },
            hook: raw.hook.map(|hook| Hook { family: hook.family, number: hook.hook }).or(of_key.hook),
            hooked: raw.hooked.map(|[function, private]| Hooked { function, private }),
            expression: raw.expression,
            time: raw.time,
            mark: raw.mark,
            entry: raw.conntrack.map(|entry| conntrack::Entry { status: entry.status, info: entry.info }),
            ..of_key
        }
    }

    /// The hook function that dropped the packet, if its index is known; the hook is one of `netns`. Exact is only what
    /// was read at the drop: what has its place now may be another.
    pub fn hooked(
        &self,
        memory: &mut impl KernelMemory,
        layout: &HookLayout,
        netns: NetnsId,
    ) -> Option<(Hooked, Confidence)> {
        if let Some(hooked) = self.hooked {
            return Some((hooked, Confidence::Exact));
        }
        let [function, word] = self.attribution;
        let functions = self.hook.map_or_else(Vec::new, |hook| in_force(memory, layout, netns, hook));
        let now = match (index_of(word), functions.as_slice()) {
            (Some(index), functions) => functions.get(usize::from(index)).copied(),
            // There is no other that could have done it.
            (None, [only]) => Some(*only),
            (None, _) => None,
        };
        if kind_of(word) != attribution_kind::HOOK || function == 0 {
            return now.map(|it| (it, Confidence::Inferred));
        }
        // Only a count is known: the key has the function, and of what it is given enough to tell it from others.
        let private = now.filter(|it| it.function == function && fold(it.private) == word as u32);
        let private = private.map_or(0, |it| it.private);
        Some((Hooked { function, private }, Confidence::Exact))
    }

    /// Of a counting slot.
    #[must_use]
    pub fn of_key(key: &FlowKey) -> Self {
        let (attribution, netns) = (key.attribution, NetnsId { inode: key.netns, ..NetnsId::default() });
        Self {
            attribution,
            netns,
            hook: hook_of(key.attribution[1]).map(|(family, number)| Hook { family, number }),
            hooked: None,
            expression: None,
            freed_by: FreedBy::HookLoop,
            ethertype: if key.flags & flow_flag::COARSE == 0 { key.ethertype } else { 0 },
            time: u64::MAX,
            now: 0,
            mark: 0,
            entry: None,
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Rulesets {
    layout: Option<NftLayout>,
    /// Of rules that count.
    pub counters: Counters,
    /// Of rules that packets match in a trace.
    pub moved: moved::Plans,
    /// Where hook functions are listed.
    pub hooks: Option<HookLayout>,
    /// Where count and limit of tracked connections are.
    pub connections: Option<TableLayout>,
    /// Where a BPF program's id and name are.
    pub programs: Option<ProgramLayout>,
    /// What may have rules.
    pub engines: Engines,
    /// True if probes see each nft rule that drops ([`crate::probe::tracer::Probes`]).
    pub has_probes: bool,
    /// True if nft_do_chain frees what it drops: then its hook functions drop nothing else.
    pub has_nft_freeing: bool,
    words: Words,
    evaluation: Budget,
    netns: HashMap<u32, Netns>,
    names: HashMap<u64, (String, Option<String>)>,
}

/// A base chain of nft on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its priority on the hook.
    pub priority: i32,
    /// True if `iptables-nft` and its sisters keep it.
    pub is_iptables: bool,
}

/// Which rules of a table are in force, as kernel memory tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    /// Those of this version: the table has the same rules as long as it is the same.
    Version(u64),
    /// There is no such table.
    NoTable,
    /// It can't be told.
    Unknown,
}

/// What the other backend has, as of a version of the legacy tables, of legacy's nat table, and a generation of nft's.
#[derive(Debug)]
struct Other {
    of: (u32, Option<(u64, u64)>, u32),
    told: Option<String>,
}

/// What is known of one netns.
#[derive(Debug, Default)]
struct Netns {
    id: NetnsId,
    /// Newest last.
    generations: VecDeque<Ruleset>,
    /// When reading may be tried again.
    not_before: Option<Instant>,
    /// The rules that queue, of a generation that was looked through; `None` if that can't be done.
    queues: Option<(u32, Option<Vec<Found>>)>,
    /// What the other backend has, by the one that dropped and the family.
    others: HashMap<(Backend, Family), Other>,
}

impl Rulesets {
    /// With what the self-test learned of nft.
    pub fn set_layout(&mut self, layout: Option<NftLayout>) {
        self.layout = layout;
        self.netns.clear();
    }

    /// True if it is known where this kernel keeps the rules of nf_tables.
    #[must_use]
    pub fn knows_nft(&self) -> bool {
        self.layout.is_some()
    }

    /// The answer for a drop by netfilter. `name` tells the function at an address.
    pub fn attribute(
        &mut self,
        memory: &mut impl KernelMemory,
        name: &dyn Fn(u64) -> Option<String>,
        evidence: &Evidence,
        packet: Option<&Packet<'_>>,
    ) -> Netfilter {
        let answer = self.answer(memory, name, evidence, packet);
        let other_backend = self.other_backend(memory, evidence, &answer);
        Netfilter { other_backend, ..answer }
    }

    /// What the other backend of iptables has of Kubernetes, where both have rules: see [`mixed`].
    fn other_backend(
        &mut self,
        memory: &mut impl KernelMemory,
        evidence: &Evidence,
        answer: &Netfilter,
    ) -> Option<String> {
        let (dropped, family, table) = (answer.backend?, answer.family?, answer.table.as_deref()?);
        let (id, layout) = (self.netns_of(evidence)?, self.layout?);
        let (version, tables) = self.counters.tables_of(id).unwrap_or_default();
        let netns = kept(&mut self.netns, id);
        netns.refresh(memory, &layout);
        let newest = netns.generations.back()?;
        let is_dropping = |it: &super::nft::Table| it.is_iptables && it.family == family && it.name == table;
        if dropped == Backend::Nft && !newest.tables.iter().any(is_dropping) {
            return None;
        }
        let nat = self.counters.nat_of(memory, id, family);
        let (asked, of) = ((dropped, family), (version, nat, newest.sequence));
        if let Some(other) = netns.others.get(&asked).filter(|other| other.of == of) {
            return other.told.clone();
        }
        let nat = nat.and_then(|(address, _)| self.counters.read_table(memory, family, address));
        let legacy = Held::of_legacy(tables.iter().chain(&nat), family);
        let nft = Held::of_nft(newest, family);
        let told = mixed::other(dropped, &legacy, &nft);
        netns.others.insert(asked, Other { of, told: told.clone() });
        told
    }

    /// [`Rulesets::attribute`], of the backend that dropped alone.
    fn answer(
        &mut self,
        memory: &mut impl KernelMemory,
        name: &dyn Fn(u64) -> Option<String>,
        evidence: &Evidence,
        packet: Option<&Packet<'_>>,
    ) -> Netfilter {
        if evidence.freed_by == FreedBy::Queue {
            return self.queued(memory, evidence);
        }
        let mut answer = self.place(memory, name, evidence);
        if answer.backend == Some(Backend::Legacy)
            && answer.table.is_none()
            && let Some(packet) = packet
        {
            // A table did it, and the counters don't tell which rule. If this doesn't either, it stays so.
            let _ = self.evaluate(memory, evidence, packet, &mut answer);
            return answer;
        }
        if answer.backend == Some(Backend::Nft) && answer.method == Some(Method::Hook) {
            // One of its base chains did it. If that is iptables', the packet can be evaluated.
            if let (Some(packet), Some(base)) = (packet, self.base_chain(memory, evidence)) {
                let _ = self.evaluate_nft(memory, evidence, packet, base, &mut answer);
            }
            return answer;
        }
        let Some(netns) = self.netns_of(evidence) else { return answer };
        match (answer.backend, answer.table.is_some()) {
            (Some(Backend::Nft), true) => {
                let Some(layout) = self.layout else { return answer };
                // The rule set that was read last: the tools speak of no other.
                let newest = self.netns.get(&netns.inode).and_then(|netns| netns.generations.back());
                let Some(newest) = newest else { return answer };
                let counted = self.counters.nft_address(evidence.attribution);
                let (address, sequence) =
                    counted.unwrap_or((evidence.attribution[0], evidence.attribution[1] as u32));
                let is_listed = newest.lists(address, sequence);
                let mut is_current = || newest.is_current(memory, &layout, netns.address);
                let generation = is_listed.then_some(newest.sequence.into());
                self.words.add(netns, generation, evidence.mark, &mut answer, &mut is_current);
                own_policy(&mut answer, newest.chains_beside(address));
            }
            (Some(Backend::Legacy), true) => {
                let (counters, rule) = (&self.counters, evidence.attribution);
                let version = rule[1] as u32;
                let mut is_current = || counters.is_still(memory, netns, version);
                let generation = Some(1 << 32 | u64::from(version));
                self.words.add(netns, generation, evidence.mark, &mut answer, &mut is_current);
                own_policy(&mut answer, self.counters.chains_beside((rule[0], version)));
            }
            _ => {}
        }
        answer
    }

    /// The answer for a packet that br_handle_frame freed; `None` if netfilter did not drop it.
    pub fn attribute_bridge(
        &mut self,
        memory: &mut impl KernelMemory,
        name: &dyn Fn(u64) -> Option<String>,
        evidence: &Evidence,
        blame: bridge::Blame,
    ) -> Option<Netfilter> {
        let (layout, netns) = (self.hooks.as_ref()?, self.netns_of(evidence)?);
        let functions = in_force(memory, layout, netns, bridge::HOOK);
        let is_suspect = |it: &Hooked| {
            name(it.function).is_none_or(|name| {
                let is_freed = self.has_nft_freeing && NFT_FUNCTIONS.contains(&name.as_str());
                !is_freed && name != REMOVED && name != bridge::NEVER_DROPS
            })
        };
        let suspects: Vec<Hooked> = functions.into_iter().filter(is_suspect).collect();
        let unknown = || Netfilter { method: Some(Method::Hook), ..attribute::at_hook(Some(bridge::HOOK)) };
        match (blame, suspects.as_slice()) {
            (bridge::Blame::Other, _) | (_, []) => None,
            (bridge::Blame::Hook, [only]) => {
                let evidence = Evidence { hook: Some(bridge::HOOK), hooked: Some(*only), ..*evidence };
                let answer = self.by_function(memory, name, &evidence).unwrap_or_else(unknown);
                // What was on the hook was read after the drop.
                Some(Netfilter { confidence: least(answer.confidence, Confidence::Inferred), ..answer })
            }
            _ => Some(unknown()),
        }
    }

    /// True if the legacy tables of a drop's netns are known, or there are none.
    #[must_use]
    pub fn knows_legacy(&self, memory: &mut impl KernelMemory, evidence: &Evidence) -> bool {
        let is_known = |netns| self.counters.is_known(memory, netns);
        !self.engines.legacy || self.netns_of(evidence).is_some_and(is_known)
    }

    /// The answer for a packet that nf_queue freed.
    fn queued(&mut self, memory: &mut impl KernelMemory, evidence: &Evidence) -> Netfilter {
        let Some(netns) = self.netns_of(evidence) else { return queue::answer(&[], 0, false) };
        let nft = if self.engines.nft { self.nft_queues(memory, netns) } else { Some(Vec::new()) };
        let (version, mut legacy) = self.counters.queues(netns);
        let mut is_legacy_known = self.knows_legacy(memory, evidence);
        if !is_legacy_known && self.evaluation.is_left(EVALUATION_BURST) {
            // The lists were made a moment ago, and are not made again so soon: this netns alone is read.
            let start = Instant::now();
            if let Some(now) = self.counters.queues_now(memory, netns) {
                (legacy, is_legacy_known) = (now, true);
            }
            self.evaluation.take(start.elapsed());
        }
        let is_complete = nft.is_some() && is_legacy_known;
        let rules = [nft.unwrap_or_default(), legacy].concat();
        let mut answer = queue::answer(&rules, evidence.ethertype, is_complete);
        match answer.backend {
            Some(Backend::Nft) => {
                let newest = self.netns.get(&netns.inode).and_then(|netns| netns.generations.back());
                let Some((layout, newest)) = self.layout.zip(newest) else { return answer };
                let mut is_current = || newest.is_current(memory, &layout, netns.address);
                let generation = Some(newest.sequence.into());
                self.words.add(netns, generation, evidence.mark, &mut answer, &mut is_current);
            }
            Some(Backend::Legacy) => {
                let counters = &self.counters;
                let mut is_current = || counters.is_still(memory, netns, version);
                let generation = Some(1 << 32 | u64::from(version));
                self.words.add(netns, generation, evidence.mark, &mut answer, &mut is_current);
            }
            None => {}
        }
        answer
    }

    /// The nft rules of a netns that queue, in the rule set in force. `None` if that can't be found out.
    fn nft_queues(&mut self, memory: &mut impl KernelMemory, id: NetnsId) -> Option<Vec<queue::Rule>> {
        let layout = self.layout?;
        let netns = self.netns_mut(id);
        netns.refresh(memory, &layout);
        let ruleset =
            netns.generations.back().filter(|newest| newest.is_current(memory, &layout, id.address))?;
        let found = match netns.queues.take() {
            Some((sequence, found)) if sequence == ruleset.sequence => found,
            _ => ruleset.queues(memory, &layout).filter(|_| ruleset.is_current(memory, &layout, id.address)),
        };
        let rules = found
            .as_ref()
            .map(|found| found.iter().filter_map(|found| queue::Rule::of_nft(ruleset, *found)).collect());
        netns.queues = Some((ruleset.sequence, found));
        rules
    }

    /// What is kept of a netns.
    fn netns_mut(&mut self, id: NetnsId) -> &mut Netns {
        kept(&mut self.netns, id)
    }

    /// Looks for changed rules that count, in these network namespaces. Returns the new plan and its version if the
    /// programs must be told.
    pub fn refresh_counters<M: KernelMemory>(
        &mut self,
        memory: &mut M,
        netns: &[NetnsId],
        most: u32,
    ) -> Option<(u32, &Plan)> {
        let Self { counters, netns: known, layout, hooks, .. } = self;
        let Some((layout, hooks)) = layout.as_ref().zip(hooks.as_ref()) else {
            return counters.refresh(memory, netns, most, None);
        };
        let mut read = |memory: &mut M, id: NetnsId| {
            let netns = kept(known, id);
            netns.refresh(memory, layout);
            Counted::read(memory, layout, hooks, id.address, netns.generations.back()?)
        };
        counters.refresh(memory, netns, most, Some(NftRules { layout, read: &mut read }))
    }

    /// Looks for changed rules of iptables in network namespaces whose packets are followed. Returns the new plan and its version
    /// if the programs must be told.
    pub fn refresh_moved(
        &mut self,
        memory: &mut impl KernelMemory,
        netns: &[NetnsId],
        most: u32,
    ) -> Option<(u32, &moved::Plan)> {
        let layouts = moved::Layouts { legacy: self.counters.layout(), nft: self.layout.as_ref() };
        self.moved.refresh(memory, layouts, netns, most)
    }

    /// The rules and policies of a netns that can drop and are counted, of both backends, as they are now: what each is, and
    /// the address of its packets, which is per-CPU.
    pub fn droppers(&self, memory: &mut impl KernelMemory, netns: NetnsId) -> Vec<(Netfilter, u64)> {
        let mut all = self.counters.droppers(memory, netns);
        let Some((layout, hooks)) = self.layout.zip(self.hooks) else { return all };
        let Some(ruleset) = Ruleset::read(memory, &layout, netns.address) else { return all };
        let Some(counted) = Counted::read(memory, &layout, &hooks, netns.address, &ruleset) else {
            return all;
        };
        all.extend(counted.droppers.iter().filter_map(|dropper| {
            let exact = Confidence::Exact;
            let place = match dropper.expression {
                Some(_) => {
                    attribute::by_nft_rule(&ruleset, ruleset.rule_at(dropper.address)?, None, None, exact)?
                }
                None => {
                    let chain = ruleset.base_chain_at(dropper.address)?;
                    attribute::by_nft_policy(&ruleset, chain, None, exact)?
                }
            };
            Some((place, dropper.counter))
        }));
        all
    }

    /// The tables of network namespaces.
    pub fn tables(&self, memory: &mut impl KernelMemory, netns: &[NetnsId]) -> Vec<TableSummary> {
        let mut tables = self.counters.tables();
        for netns in netns {
            let ruleset = self.layout.and_then(|layout| Ruleset::read(memory, &layout, netns.address));
            let Some(ruleset) = ruleset else { continue };
            tables.extend(ruleset.tables.iter().enumerate().map(|(index, table)| {
                let chains = ruleset.chains.iter().filter(|chain| chain.table == index);
                TableSummary {
                    netns: netns.inode,
                    backend: Backend::Nft,
                    family: table.family,
                    name: table.name.clone(),
                    rules: chains.map(|chain| chain.rules.first().map_or(0, Vec::len)).sum(),
                    left_out: self.counters.left_out(netns.inode, table.family).collect(),
                }
            }));
        }
        tables
    }

    /// nft's base chains on a hook of IPv4 or IPv6, those of `inet` tables too, in order of their priority. `None` where this
    /// kernel doesn't describe its rule sets, or that of the netns can't be read now.
    pub fn base_chains(
        &mut self,
        memory: &mut impl KernelMemory,
        netns: NetnsId,
        family: Family,
        hook: u8,
    ) -> Option<Vec<BaseChain>> {
        if !self.engines.nft {
            return Some(Vec::new());
        }
        let layout = self.layout?;
        let address = netns.address;
        let netns = self.netns_mut(netns);
        netns.refresh(memory, &layout);
        let newest = netns.generations.back().filter(|it| it.is_current(memory, &layout, address))?;
        let mut found: Vec<BaseChain> = newest
            .chains
            .iter()
            .filter_map(|chain| {
                let (base, table) = (chain.base?, newest.table_of(chain)?);
                let is_here = base.hook == hook && (table.family == family || table.family == Family::Inet);
                is_here.then(|| BaseChain {
                    family: table.family,
                    table: table.name.clone(),
                    chain: chain.name.clone(),
                    priority: base.priority,
                    is_iptables: table.is_iptables,
                })
            })
            .collect();
        found.sort_by_key(|chain| chain.priority);
        Some(found)
    }

    /// Whether nft has a base chain in a netns, so that packets may meet its rules.
    #[must_use]
    pub fn has_base_chain(&self, memory: &mut impl KernelMemory, netns: NetnsId) -> bool {
        self.layout.is_some_and(|layout| layout.has_base_chain(memory, netns.address))
    }

    /// Which of nft's rules a followed packet met in a netns, out of what the kernel told of them.
    pub fn traced(&mut self, memory: &mut impl KernelMemory, netns: NetnsId, steps: &[NftStep]) -> Told {
        let Some(layout) = self.layout.filter(|_| !steps.is_empty()) else { return Told::default() };
        let known = kept(&mut self.netns, netns);
        known.refresh(memory, &layout);
        let rulesets: Vec<&Ruleset> = known.generations.iter().rev().collect();
        let mut told = traced::told(steps, &layout, &rulesets);
        let Some(newest) = known.generations.back() else { return told };
        let generation = Some(newest.sequence.into());
        let mut is_current = || newest.is_current(memory, &layout, netns.address);
        for pass in &mut told.passes {
            pass.add_texts(newest, &mut |rule| {
                let mut answer = traced::as_answer(rule);
                self.words.add(netns, generation, 0, &mut answer, &mut is_current);
                answer.text
            });
        }
        told
    }

    /// Which rules a table has now, that a packet may meet on a hook.
    pub fn in_force(
        &self,
        memory: &mut impl KernelMemory,
        netns: NetnsId,
        (family, hook): (Family, u8),
        (backend, table): (Backend, &str),
    ) -> InForce {
        match backend {
            Backend::Legacy => self.counters.in_force(memory, netns, (family, hook), table),
            Backend::Nft => {
                let sequence = self.layout.and_then(|layout| layout.sequence(memory, netns.address));
                sequence.map_or(InForce::Unknown, |sequence| InForce::Version(sequence.into()))
            }
        }
    }

    /// The netns of a drop, also of one that only its inode number is known of.
    fn netns_of(&self, evidence: &Evidence) -> Option<NetnsId> {
        if evidence.netns.address != 0 {
            return Some(evidence.netns);
        }
        let known = self.netns.get(&evidence.netns.inode).map(|netns| netns.id);
        known.or_else(|| self.counters.netns(evidence.netns.inode))
    }

    /// What dropped it, without words.
    fn place(
        &mut self,
        memory: &mut impl KernelMemory,
        name: &dyn Fn(u64) -> Option<String>,
        evidence: &Evidence,
    ) -> Netfilter {
        let unknown = || Netfilter {
            backend: (evidence.freed_by == FreedBy::Nft).then_some(Backend::Nft),
            ..attribute::at_hook(evidence.hook)
        };
        match kind_of(evidence.attribution[1]) {
            attribution_kind::NFT_RULE => self.nft_rule(memory, evidence).unwrap_or_else(unknown),
            attribution_kind::NFT_POLICY => self.nft_policy(memory, evidence).unwrap_or_else(unknown),
            attribution_kind::COUNTED => {
                let told = self.counted(memory, evidence);
                told.or_else(|| self.by_function(memory, name, evidence)).unwrap_or_else(unknown)
            }
            attribution_kind::UNDECIDED => {
                if evidence.attribution[1] as u32 == undecided::REPLACED {
                    self.counters.suspect();
                }
                self.by_function(memory, name, evidence).unwrap_or_else(unknown)
            }
            _ if evidence.freed_by == FreedBy::Nft => unknown(),
            _ => {
                let answer = self.by_function(memory, name, evidence);
                if answer.as_ref().is_none_or(|answer| answer.backend == Some(Backend::Legacy)) {
                    // A table may have come.
                    self.counters.suspect();
                }
                answer.unwrap_or_else(unknown)
            }
        }
    }

    /// The rule or policy whose counter moved.
    fn counted(&mut self, memory: &mut impl KernelMemory, evidence: &Evidence) -> Option<Netfilter> {
        let nft = self.hooks.as_ref().and_then(|hooks| self.counters.nft(memory, hooks, evidence));
        let Some((told, confidence)) = nft else {
            let rule = (evidence.attribution[0], evidence.attribution[1] as u32);
            return self.counters.rule(memory, rule, evidence);
        };
        let answer = match told.expression {
            Some(_) => self.nft_rule(memory, &told),
            None => self.nft_policy(memory, &told),
        }?;
        // As sure as the less sure of both.
        let confidence = confidence.max(answer.confidence);
        Some(Netfilter { method: Some(Method::Counter), confidence, ..answer })
    }

    /// The hook function that dropped it, by its index. A table's function is no answer: which rule did it is not known.
    fn by_function(
        &mut self,
        memory: &mut impl KernelMemory,
        name: &dyn Fn(u64) -> Option<String>,
        evidence: &Evidence,
    ) -> Option<Netfilter> {
        let (layout, netns) = (self.hooks.as_ref()?, self.netns_of(evidence)?);
        let (hooked, sure) = evidence.hooked(memory, layout, netns)?;
        let Hooked { function, private } = hooked;
        let is_table = self.counters.layout().is_some_and(|layout| layout.functions.contains(&function));
        // What was just being removed has left no trace.
        let function = name(function).filter(|name| name != REMOVED)?;
        let is_table = is_table || OTHER_TABLES.contains(&function.as_str());
        if NFT_FUNCTIONS.contains(&function.as_str()) {
            let of_chain = self.by_base_chain(memory, evidence, private);
            return Some(Netfilter { function: Some(function), ..of_chain });
        }
        let connections = &mut self.connections;
        let verdict = conntrack::verdict(&function, evidence.hook, evidence.entry, || {
            connections.as_mut()?.fill(memory, netns.address)
        });
        let program = (function == program::HOOK_FUNCTION && private != 0)
            .then(|| Program::read(memory, self.programs.as_ref()?, private))
            .flatten();
        // It is the one that dropped if it was there before the drop, and still is: monotonic time is never ahead of that
        // since boot. Accept or drop is all that a program can say.
        let dropped = program.as_ref().map(|(_, loaded)| {
            let is_same = evidence.hooked.is_some()
                && *loaded < evidence.time
                && evidence.hook.is_some_and(|hook| in_force(memory, layout, netns, hook).contains(&hooked));
            ("drop", if is_same { Confidence::Exact } else { Confidence::Inferred })
        });
        let program = program.map(|(program, _)| program);
        let verdict = verdict.or(dropped);
        let unsaid = if is_table { Confidence::Ambiguous } else { Confidence::Exact };
        Some(Netfilter {
            backend: is_table.then_some(Backend::Legacy),
            function: Some(function),
            program,
            verdict: verdict.map(|(name, _)| name.to_owned()),
            method: Some(Method::Hook),
            confidence: least(sure, verdict.map_or(unsaid, |(_, confidence)| confidence)),
            ..attribute::at_hook(evidence.hook)
        })
    }

    /// The base chain (struct nft_chain) whose hook function dropped the packet.
    fn base_chain(&self, memory: &mut impl KernelMemory, evidence: &Evidence) -> Option<u64> {
        Some(evidence.hooked(memory, self.hooks.as_ref()?, self.netns_of(evidence)?)?.0.private)
    }

    /// Of a packet that an nft base chain dropped, or a chain that it jumps to, where the kernel tells no more. Where
    /// probes see every rule that drops and saw none, or there is none, it was most likely the policy.
    fn by_base_chain(&mut self, memory: &mut impl KernelMemory, evidence: &Evidence, base: u64) -> Netfilter {
        let unknown = Netfilter {
            backend: Some(Backend::Nft),
            method: Some(Method::Hook),
            ..attribute::at_hook(evidence.hook)
        };
        let Some((netns, layout)) = self.netns_of(evidence).zip(self.layout) else { return unknown };
        let has_probes = self.has_probes;
        let netns = self.netns_mut(netns);
        netns.refresh(memory, &layout);
        let Some(ruleset) = netns.generations.back() else { return unknown };
        let Some(chain) = ruleset.base_chain_at(base) else { return unknown };
        let is_empty = chain.rules.iter().all(Vec::is_empty);
        if (has_probes || is_empty) && chain.base.is_some_and(|base| base.drops) {
            let policy = attribute::by_nft_policy(ruleset, chain, evidence.hook, Confidence::Inferred);
            let method = if is_empty { Method::Hook } else { Method::Probe };
            return policy.map_or(unknown, |it| Netfilter { method: Some(method), ..it });
        }
        let table = ruleset.table_of(chain);
        Netfilter {
            family: table.map(|table| table.family).or(unknown.family),
            table: table.map(|table| table.name.clone()),
            chain: Some(chain.name.clone()),
            ..unknown
        }
    }

    /// Evaluates the packet against the legacy tables of its hook.
    fn evaluate(
        &mut self,
        memory: &mut impl KernelMemory,
        evidence: &Evidence,
        packet: &Packet<'_>,
        answer: &mut Netfilter,
    ) -> Option<()> {
        let (netns, hook) = (self.netns_of(evidence)?, evidence.hook?);
        let family = Family::from_number(hook.family)?;
        let (version, tables) = self.counters.tables_on(netns, family, hook.number)?;
        let address = evidence.hooked(memory, self.hooks.as_ref()?, netns)?.0.private;
        let (_, only) = tables.iter().find(|(table, _)| *table == address)?;
        // A drop by a table that came since.
        if !self.counters.is_known(memory, netns) || !self.evaluation.is_left(EVALUATION_BURST) {
            return None;
        }
        let names: Vec<String> = tables.iter().map(|(_, name)| name.clone()).collect();
        let counters = &self.counters;
        let mut is_current = || counters.is_still(memory, netns, version);
        let generation = 1 << 32 | u64::from(version);
        let wanted = (Backend::Legacy, family, names.as_slice());
        let listings = self.words.tables(netns, generation, wanted, &mut is_current)?;
        let start = Instant::now();
        conclude(packet, hook_name(family, hook.number)?, &names, &listings, only, answer);
        self.evaluation.take(start.elapsed());
        Some(())
    }

    /// Evaluates the packet against the tables of iptables-nft on its hook; the base chain at `base` dropped it.
    fn evaluate_nft(
        &mut self,
        memory: &mut impl KernelMemory,
        evidence: &Evidence,
        packet: &Packet<'_>,
        base: u64,
        answer: &mut Netfilter,
    ) -> Option<()> {
        let (netns, hook, layout) = (self.netns_of(evidence)?, evidence.hook?, self.layout?);
        let newest = self.netns.get(&netns.inode)?.generations.back()?;
        let chain = newest.base_chain_at(base)?;
        let table = newest.table_of(chain).filter(|table| table.is_iptables)?;
        if !self.evaluation.is_left(EVALUATION_BURST) {
            return None;
        }
        let is_beside = |it: &&Chain| {
            let beside = newest.table_of(it);
            it.base.is_some_and(|base| base.hook == hook.number)
                && beside.is_some_and(|it| it.is_iptables && it.family == table.family)
        };
        let mut beside: Vec<&Chain> = newest.chains.iter().filter(is_beside).collect();
        beside.sort_by_key(|chain| chain.base.map(|base| base.priority));
        let names: Vec<String> =
            beside.iter().filter_map(|chain| Some(newest.table_of(chain)?.name.clone())).collect();
        let mut is_current = || newest.is_current(memory, &layout, netns.address);
        let wanted = (Backend::Nft, table.family, names.as_slice());
        let listings = self.words.tables(netns, newest.sequence.into(), wanted, &mut is_current)?;
        let start = Instant::now();
        conclude(packet, &chain.name, &names, &listings, &table.name, answer);
        self.evaluation.take(start.elapsed());
        Some(())
    }

    fn nft_rule(&mut self, memory: &mut impl KernelMemory, evidence: &Evidence) -> Option<Netfilter> {
        let (address, sequence) = (evidence.attribution[0], evidence.attribution[1] as u32);
        let expression = match evidence.expression {
            Some(words) => Some(words),
            // Only a count is known: still there, if the rule set is.
            None => self.netns_of(evidence).and_then(|netns| {
                let layout = self.layout?;
                let words = memory.bytes(address)?;
                let is_current = layout.sequence(memory, netns.address) == Some(sequence);
                is_current.then(|| expression_words(&words))
            }),
        };
        let expression = expression.and_then(|words| self.expression(memory, words));
        let find = |ruleset: &Ruleset| {
            let found = ruleset.rule_at(address)?;
            // What was there a generation ago, too.
            let lasted = found.is_former || !ruleset.chains.get(found.chain)?.is_changed;
            Some((found, lasted))
        };
        let same = |a: (&Ruleset, Found), b: (&Ruleset, Found)| identity(a) == identity(b);
        let (ruleset, found, confidence) = self.find(memory, evidence, sequence, find, same)?;
        let answer = attribute::by_nft_rule(ruleset, found, expression.as_ref(), evidence.hook, confidence)?;
        // What nf_hook_slow freed only a probe can tell.
        let method = if evidence.freed_by == FreedBy::Nft { answer.method } else { Some(Method::Probe) };
        Some(Netfilter { method, ..answer })
    }

    fn nft_policy(&mut self, memory: &mut impl KernelMemory, evidence: &Evidence) -> Option<Netfilter> {
        let (address, sequence) = (evidence.attribution[0], evidence.attribution[1] as u32);
        let is_it = |chain: &Chain| chain.address == address && chain.base.is_some();
        let find = |ruleset: &Ruleset| Some((ruleset.chains.iter().position(is_it)?, false));
        let same = |a: (&Ruleset, usize), b: (&Ruleset, usize)| {
            let chain = |(ruleset, index): (&Ruleset, usize)| {
                let chain = ruleset.chains.get(index)?;
                Some((ruleset.table_of(chain)?.handle, chain.handle))
            };
            chain(a) == chain(b)
        };
        let (ruleset, index, confidence) = self.find(memory, evidence, sequence, find, same)?;
        attribute::by_nft_policy(ruleset, ruleset.chains.get(index)?, evidence.hook, confidence)
    }

    /// Looks something up in the rule set of the drop's generation. It is exact
    /// - in the rule set read in that very generation: its blobs, and those of the generation before, can't have been
    ///   freed while the packet was in one of them;
    /// - in the next generation's, among the blobs of the generation before;
    /// - where an older and a newer rule set have the same thing there: handles are never given again.
    fn find<T: Copy>(
        &mut self,
        memory: &mut impl KernelMemory,
        evidence: &Evidence,
        sequence: u32,
        find: impl Fn(&Ruleset) -> Option<(T, bool)>,
        same: impl Fn((&Ruleset, T), (&Ruleset, T)) -> bool,
    ) -> Option<(&Ruleset, T, Confidence)> {
        let layout = self.layout?;
        let netns = self.netns_mut(evidence.netns);
        if !netns.generations.iter().any(|ruleset| ruleset.sequence == sequence) {
            netns.read(memory, &layout);
        }
        judge(&netns.generations, sequence, find, same)
    }

    /// What an event's copy of an expression says.
    fn expression(
        &mut self,
        memory: &mut impl KernelMemory,
        words: [u64; EXPRESSION_WORDS],
    ) -> Option<Expression> {
        /// Names kept: kernels have some fifty expressions; iptables targets have an `ops` each.
        const MAX_NAMES: usize = 4096;
        let [ops, rest @ ..] = words;
        let (name, target) = match self.names.get(&ops) {
            Some(known) => known.clone(),
            None => {
                let name = self.layout.as_ref()?.expression_name(memory, ops)?;
                // An iptables target's `ops` is freed with its rule: not kept.
                if name.1.is_none() && self.names.len() < MAX_NAMES {
                    self.names.insert(ops, name.clone());
                }
                name
            }
        };
        let mut data = [0; 24];
        for (to, word) in data.chunks_exact_mut(8).zip(rest) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Some(Expression { name, target, data })
    }
}

/// What is kept of a netns.
fn kept(known: &mut HashMap<u32, Netns>, id: NetnsId) -> &mut Netns {
    if !known.contains_key(&id.inode) && known.len() >= MAX_NETNS {
        known.clear();
    }
    let netns = known.entry(id.inode).or_default();
    if id.address != 0 && netns.id != id {
        // An inode number that is used again, or the first time here.
        *netns = Netns { id, ..Netns::default() };
    }
    netns
}

/// Looks something up in the rule sets that were read, for a drop at generation `sequence`; how sure that is, see
/// [`Rulesets::find`]. What is found comes with whether it was there a generation before its rule set's, too.
fn judge<T: Copy>(
    generations: &VecDeque<Ruleset>,
    sequence: u32,
    find: impl Fn(&Ruleset) -> Option<(T, bool)>,
    same: impl Fn((&Ruleset, T), (&Ruleset, T)) -> bool,
) -> Option<(&Ruleset, T, Confidence)> {
    if let Some(ruleset) = generations.iter().find(|ruleset| ruleset.sequence == sequence) {
        return find(ruleset).map(|(found, _)| (ruleset, found, Confidence::Exact));
    }
    let is_newer = |ruleset: &&Ruleset| ruleset.sequence.wrapping_sub(sequence) < u32::MAX / 2;
    let newer = generations.iter().find(is_newer).and_then(|it| Some((it, find(it)?)));
    let older = generations.iter().rev().find(|it| !is_newer(it)).and_then(|it| Some((it, find(it)?.0)));
    match (older, newer) {
        (_, Some((ruleset, (found, true)))) if ruleset.sequence == next(sequence) => {
            Some((ruleset, found, Confidence::Exact))
        }
        (Some(old), Some((new, (found, _)))) if same(old, (new, found)) => {
            Some((new, found, Confidence::Exact))
        }
        (_, Some((ruleset, (found, _)))) | (Some((ruleset, found)), None) => {
            Some((ruleset, found, Confidence::Inferred))
        }
        (None, None) => None,
    }
}

/// The functions on a hook now.
fn in_force(memory: &mut impl KernelMemory, layout: &HookLayout, netns: NetnsId, hook: Hook) -> Vec<Hooked> {
    let family = Family::from_number(hook.family);
    family.map_or_else(Vec::new, |family| layout.hooked(memory, netns.address, family, hook.number))
}

/// The less sure of two.
fn least(a: Confidence, b: Confidence) -> Confidence {
    a.max(b)
}

/// Evaluates a packet against the listings of its hook's tables; `only` is the one that dropped it, `chain` its base chain.
fn conclude(
    packet: &Packet<'_>,
    chain: &str,
    names: &[String],
    listings: &[Rc<Printed>],
    only: &str,
    answer: &mut Netfilter,
) {
    let texts: Vec<_> =
        names.iter().zip(listings).map(|(table, it)| TableText { table, chain, listing: &it.text }).collect();
    let evaluation = evaluate::evaluate(packet, &texts, Some(only));
    let (confidence, culprit) = evaluate::confidence(&evaluation);
    answer.method = Some(Method::Evaluated);
    answer.confidence = confidence;
    answer.table = Some(only.to_owned());
    match culprit {
        Some(culprit) => {
            answer.chain = Some(culprit.chain.to_owned());
            answer.rule = culprit.rule;
            answer.text = culprit.text.map(str::to_owned);
            answer.verdict = culprit.verdict.name().map(Cow::into_owned);
            answer.reject_with = culprit.reject_with().map(str::to_owned);
            let owner = owner::owner(&Subject {
                backend: answer.backend,
                table: Some(only),
                chain: Some(culprit.chain),
                text: culprit.text,
            });
            answer.owner = Some(owner.to_owned());
        }
        None => answer.candidates = evaluation.culprits.iter().map(Culprit::reference).collect(),
    }
}

/// Says who set the policy that dropped a packet, where its table doesn't tell.
fn own_policy<'a>(answer: &mut Netfilter, others: impl Iterator<Item = &'a str>) {
    if answer.verdict.as_deref() == Some("policy")
        && answer.owner.as_deref() == Some(owner::UNKNOWN)
        && let Some(chain) = &answer.chain
    {
        answer.owner = Some(owner::policy_owner(chain, others).to_owned());
    }
}

/// The words of an expression's first bytes.
fn expression_words(bytes: &[u8; 8 * EXPRESSION_WORDS]) -> [u64; EXPRESSION_WORDS] {
    let mut words = [0; EXPRESSION_WORDS];
    for (to, from) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *to = u64::from_ne_bytes(*from);
    }
    words
}

/// The generation after one: 0 is left out (nf_tables_commit(), net/netfilter/nf_tables_api.c).
fn next(sequence: u32) -> u32 {
    sequence.wrapping_add(1).max(1)
}

/// What no other rule ever has: handles of table, chain and rule.
fn identity((ruleset, found): (&Ruleset, Found)) -> Option<(u64, u64, u64)> {
    let chain = ruleset.chains.get(found.chain)?;
    Some((ruleset.table_of(chain)?.handle, chain.handle, found.handle))
}

impl Netns {
    /// Reads the rule set in force, unless it is the newest that is known.
    fn refresh(&mut self, memory: &mut impl KernelMemory, layout: &NftLayout) {
        let in_force = layout.sequence(memory, self.id.address);
        if self.generations.back().is_none_or(|newest| Some(newest.sequence) != in_force) {
            self.read(memory, layout);
        }
    }

    fn read(&mut self, memory: &mut impl KernelMemory, layout: &NftLayout) {
        /// A rule set that changes while it is read is read again, so often.
        const TRIES: u32 = 3;
        let start = Instant::now();
        if self.id.address == 0 || self.not_before.is_some_and(|when| start < when) {
            return;
        }
        let read = (0..TRIES).find_map(|_| Ruleset::read(memory, layout, self.id.address));
        self.not_before = Some(start + start.elapsed() * (IDLE_SHARE + 1) + Duration::from_micros(100));
        if let Some(ruleset) = read {
            if self.generations.len() >= GENERATIONS {
                self.generations.pop_front();
            }
            self.generations.push_back(ruleset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generations(sequences: &[u32]) -> VecDeque<Ruleset> {
        sequences.iter().map(|sequence| Ruleset { sequence: *sequence, ..Ruleset::default() }).collect()
    }

    /// What is there in each generation: `x` or `y`, capital if it was there a generation before, too.
    fn told(there: &[(u32, char)], sequence: u32) -> Option<(u32, char, Confidence)> {
        let sequences: Vec<u32> = there.iter().map(|(sequence, _)| *sequence).collect();
        let generations = generations(&sequences);
        let find = |ruleset: &Ruleset| {
            let (_, what) = *there.iter().find(|(sequence, _)| *sequence == ruleset.sequence)?;
            (what != '-').then_some((what.to_ascii_lowercase(), what.is_ascii_uppercase()))
        };
        let same = |(_, a): (&Ruleset, char), (_, b): (&Ruleset, char)| a == b;
        judge(&generations, sequence, find, same).map(|(ruleset, what, how)| (ruleset.sequence, what, how))
    }

    #[test]
    fn the_drops_own_generation_is_exact() {
        assert_eq!(told(&[(4, 'y'), (5, 'x'), (6, 'y')], 5), Some((5, 'x', Confidence::Exact)));
        // Not there: whatever other generations have at that address is something else.
        assert_eq!(told(&[(4, 'x'), (5, '-'), (6, 'x')], 5), None);
    }

    #[test]
    fn the_next_generation_knows_the_one_before() {
        assert_eq!(told(&[(6, 'X')], 5), Some((6, 'x', Confidence::Exact)));
        // New there: its address may be that of what was freed before.
        assert_eq!(told(&[(6, 'x')], 5), Some((6, 'x', Confidence::Inferred)));
        assert_eq!(told(&[(7, 'X')], 5), Some((7, 'x', Confidence::Inferred)));
        // 0 is left out.
        assert_eq!(told(&[(1, 'X')], u32::MAX), Some((1, 'x', Confidence::Exact)));
    }

    #[test]
    fn what_was_there_before_and_after_was_there() {
        assert_eq!(told(&[(3, 'x'), (8, 'x')], 5), Some((8, 'x', Confidence::Exact)));
        assert_eq!(told(&[(3, 'y'), (8, 'x')], 5), Some((8, 'x', Confidence::Inferred)));
        assert_eq!(told(&[(3, 'x')], 5), Some((3, 'x', Confidence::Inferred)));
        assert_eq!(told(&[(3, '-'), (8, '-')], 5), None);
        assert_eq!(told(&[], 5), None);
    }

    #[test]
    fn what_is_on_the_hook_after_the_drop_is_no_proof() {
        use super::super::memory::fake::Fake;
        use tracer_common::{attribution_word, with_index};
        const NET: u64 = 0xffff_8880_0000_0000;
        let layout = HookLayout { arrays: [0, 40], others: [None; 2], entries_count: 0, entries_hooks: 8 };
        let netns = NetnsId { address: NET, ..NetnsId::default() };
        // Two functions on IPv4's INPUT, one on its OUTPUT.
        let mut memory = Fake::default();
        for (hook, functions) in [(1, &[10_u64, 11, 20, 21][..]), (3, &[30, 31])] {
            let entries = NET + 0x1000 * hook;
            memory.put_u64(NET + 8 * hook, entries);
            memory.put(entries, &(functions.len() as u16 / 2).to_ne_bytes());
            for (at, word) in (1..).zip(functions) {
                memory.put_u64(entries + 8 * at, *word);
            }
        }
        let mut told = |hook: u8, kind, index: Option<u64>, function, rest, hooked| {
            let word = attribution_word(kind, Some((2, hook)), rest);
            let word = index.map_or(word, |index| with_index(word, index));
            let key = FlowKey { attribution: [function, word], ..FlowKey::default() };
            let evidence = Evidence { hooked, ..Evidence::of_key(&key) };
            let told = evidence.hooked(&mut memory, &layout, netns);
            told.map(|(it, sure)| (it.function, it.private, sure))
        };
        use attribution_kind::{HOOK, NONE};
        let at_drop = Some(Hooked { function: 40, private: 41 });
        assert_eq!(told(1, HOOK, Some(1), 40, 41, at_drop), Some((40, 41, Confidence::Exact)));
        assert_eq!(told(1, HOOK, Some(1), 0, 0, None), Some((20, 21, Confidence::Inferred)));
        assert_eq!(told(1, HOOK, Some(7), 0, 0, None), None);
        // Without an index: only what is alone.
        assert_eq!(told(3, NONE, None, 0, 0, None), Some((30, 31, Confidence::Inferred)));
        assert_eq!(told(1, NONE, None, 0, 0, None), None);
        // A count's key has the function; its argument is known while both are there.
        assert_eq!(told(1, HOOK, Some(1), 20, 21, None), Some((20, 21, Confidence::Exact)));
        assert_eq!(told(1, HOOK, Some(1), 20, 22, None), Some((20, 0, Confidence::Exact)));
        assert_eq!(told(1, HOOK, Some(1), 40, 41, None), Some((40, 0, Confidence::Exact)));
    }
}
