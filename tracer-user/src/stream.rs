//! From the running kernel half to records: events and counts merged, named and dated, with what was lost.

mod nft_trace;

pub use nft_trace::NftTelling;

use crate::cause::Causes;
use crate::cilium::{self, known::Asked, model::Cilium};
use crate::event::{
    decode,
    decode::Raw,
    explain::{Names as _, explain, explain_counts},
    merge::Merge,
    model::{Cause, Class, Drop, Lost, LostPlace, Reason, Record, Stalled, Timestamp},
    retransmit,
    unanswered::unanswered,
};
use crate::filter::{Filter, matches};
use crate::identity::{
    names::{Names, News},
    object::Update,
};
use crate::netfilter::{
    bridge,
    evaluate::Packet,
    model::{Family, Mechanism, Mechanisms, Netfilter, TableSummary},
    rulesets::{Engines, Evidence, FreedBy, Rulesets},
};
use crate::probe::{
    clock::{Clock, monotonic_now, sample_now},
    connections::{Connections, Table},
    kernel::Kernel,
    lab::{Backends, Lab},
    offsets::MissingField,
    selftest::{self, Layouts, Learned, NftCounters, Proof, SelfTestError},
    tracer::{Losses, RING_BYTES, Reading, Tracer, TracerError},
};
use crate::tc::{self, hooks::Hooks, model::Bpf, programs::Programs};
use crate::trace::{
    self,
    model::{Place, Point, Seen},
    rules::{Met, OfHook, Rules, Until},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    io, thread,
    time::{Duration, Instant},
};
use tracer_common::{
    Device, Event, FlowKey, Layout, Retransmit, StepHead, TC_FILTERS, TcFilter, attribution_kind, flow_flag,
    place,
};

/// Records taken from the ring before it is somebody else's turn: as many as can be in it at one moment.
const BATCH: usize = RING_BYTES / size_of::<Event>() + 1;
/// Drops that wait for a name at most.
const HELD: usize = 1024;
/// Self-tests before one that fails is believed.
const SELF_TESTS: u32 = 3;
/// Proofs of one that is repeated: it may have failed because it was wrong, and luck must not pass for right.
const REPEATED_PROOFS: u32 = 20;
/// How long the last program runs may take after the program was detached.
const LAST_RUNS: Duration = Duration::from_secs(2);

/// A running trace.
pub struct Stream {
    tracer: Tracer,
    kernel: Kernel,
    clock: Clock,
    node: String,
    merge: Merge,
    /// What a slot's last full event told: for its lines of counts, which lack what decides it.
    told: HashMap<u32, Told>,
    /// Events that came while the self-test waited for its own.
    early: VecDeque<Raw>,
    /// The self-test's network namespace, whose drops are nobody's business.
    lab: Option<Lab>,
    rulesets: Rulesets,
    /// What is known of programs at tc hooks.
    programs: Programs,
    /// What is known of tc hooks that the kernel half can't read.
    hooks: Hooks,
    /// The node's Cilium, if it has one.
    cilium: cilium::node::Node,
    /// Who is at an address.
    names: Names,
    /// Why drops happen.
    causes: Causes,
    /// Which causes are wanted.
    wanted: Filter,
    /// Drops that wait for a name.
    held: VecDeque<Held>,
    /// Slots of which that showed that the filter does not mean them: they passed by what is no pod's any more.
    unmeant: HashSet<u32>,
    /// Segments that TCP had repeated when it was last asked.
    repeated: HashMap<Retransmit, u64>,
    /// Network namespaces where packets are followed, in a trace.
    followed: HashSet<u32>,
    /// What was seen of followed packets and not yet taken, in a trace.
    seen: VecDeque<Seen>,
    /// Which rules they met.
    rules: Rules,
    /// How it is known which of them are nft's.
    nft_telling: NftTelling,
    /// What the self-test said; `None` if it had nothing to learn from.
    learned: Option<Result<Learned, String>>,
    lost: Losses,
    /// End of the last interval, CLOCK_MONOTONIC ns.
    last_tick: u64,
    /// Flow slots in use on the fullest CPU.
    fill: u32,
    retired: Option<Retired>,
}

/// A drop that waits for a name.
struct Held {
    slot: u32,
    since: Instant,
    event: Drop,
    /// By what Cilium's answer is named once more.
    asked: Option<Asked>,
}

/// What of a slot's last full event holds for all its drops.
struct Told {
    class: Class,
    cause: Option<Cause>,
    netfilter: Option<Box<Netfilter>>,
    bpf: Option<Box<Bpf>>,
    cilium: Option<Box<Cilium>>,
}

/// The generation of slots that was in use before.
struct Retired {
    generation: u32,
    /// CPUs that have run no program since.
    quiet: Vec<bool>,
    /// Intervals since.
    age: u32,
}

impl Stream {
    /// Starts with what a running tracer counts from now on.
    ///
    /// # Errors
    /// If the system cannot read its clocks.
    pub fn new(tracer: Tracer, kernel: Kernel, clock: Clock, node: String) -> io::Result<Self> {
        let merge = Merge::new(tracer.layout().total());
        let last_tick = monotonic_now()?;
        let control_block = kernel.layout().control_block;
        Ok(Self {
            tracer,
            kernel,
            clock,
            node,
            merge,
            told: HashMap::new(),
            early: VecDeque::new(),
            lab: None,
            rulesets: Rulesets::default(),
            programs: Programs::default(),
            hooks: Hooks::default(),
            cilium: cilium::node::Node::new(control_block),
            names: Names::default(),
            causes: Causes::default(),
            wanted: Filter::default(),
            held: VecDeque::new(),
            unmeant: HashSet::new(),
            repeated: HashMap::new(),
            followed: HashSet::new(),
            seen: VecDeque::new(),
            rules: Rules::default(),
            nft_telling: NftTelling::default(),
            learned: None,
            lost: Losses::default(),
            last_tick,
            fill: 0,
            retired: None,
        })
    }

    /// Names drops from now on, and lets the filter follow what its words mean.
    pub fn use_names(&mut self, names: Names) {
        self.names = names;
    }

    /// Explains drops with these from now on, and leaves out those whose cause the filter's words don't mean.
    pub fn use_causes(&mut self, causes: Causes, wanted: Filter) {
        self.causes = causes;
        self.wanted = wanted;
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Measures from now on whether all that the node's Cilium drops is seen: [`Stream::unseen_of_cilium`]. Of no use with a
    /// filter, which leaves drops out.
    pub fn measure_cilium(&mut self) {
        self.cilium.begin_measuring();
    }

    /// What Cilium counted and was not seen, when the run has ended: one line, if there is any.
    #[must_use]
    pub fn unseen_of_cilium(&self) -> Option<String> {
        self.cilium.unseen().map(|unseen| unseen.to_string()).filter(|line| !line.is_empty())
    }

    /// Counts what TCP repeats from now on, for [`Stream::stalled`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn count_retransmits(&mut self) -> Result<(), TracerError> {
        self.tracer.count_retransmits()
    }

    /// What was seen, since it was last asked, of connections that the filter means.
    pub fn stalled(&mut self, filter: &Filter, seconds: u64) -> Stalled {
        let now = self.tracer.retransmits().unwrap_or_default();
        let before = std::mem::replace(&mut self.repeated, now);
        let names = &mut self.names;
        let new = self.repeated.iter().filter_map(|(peer, count)| {
            let more = count.saturating_sub(before.get(peer).copied().unwrap_or(0));
            (more > 0).then_some((peer, more))
        });
        let time = self.clock.to_realtime(monotonic_now().unwrap_or(0));
        retransmit::stalled(
            new,
            filter,
            names,
            Stalled { time, seconds, node: self.node.clone(), ..Stalled::default() },
        )
    }

    /// How to ask for connections that nobody has answered, for [`Stream::unanswered`]: that may take a while.
    #[must_use]
    pub fn connections(&self) -> Connections {
        Connections::here(|name| self.kernel.has_function(name))
    }

    /// What the filter means of connections that nobody has answered, added to what is known of the while.
    #[must_use]
    pub fn unanswered(&mut self, table: &Table, filter: &Filter, told: Stalled) -> Stalled {
        unanswered(table, filter, &mut self.names, told)
    }

    /// Takes what a source of names tells; a line for people comes back.
    pub fn take_name(&mut self, update: Update) -> Option<String> {
        self.names.learn(update)
    }

    /// Lets the kernel half follow what the filter's words mean by now; what is new is told.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn follow_names(&mut self) -> Result<Option<News>, TracerError> {
        let Some((selected, mut news)) = self.names.select() else { return Ok(None) };
        news.left_out = self.tracer.select(selected)?;
        Ok(Some(news))
    }

    /// Attaches the programs that run on packets that are not dropped, too, wherever they can be of use now.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach_probes(&mut self) -> Result<(), TracerError> {
        self.tracer.attach_probes(&|name| self.kernel.has_function(name))?;
        self.rulesets.has_probes = self.tracer.probes().has_rules();
        Ok(())
    }

    /// Gets ready to compare the counters of rules, where this kernel has legacy tables or needs them for nft.
    ///
    /// # Errors
    /// If this build is broken.
    pub fn watch_counters(&mut self) -> Result<(), TracerError> {
        let legacy = self.kernel.legacy();
        let has_nft = self.nft_counters() == Some(NftCounters::Proven);
        let is_of_use = legacy.is_some() || has_nft;
        if is_of_use && self.tracer.learn_per_cpu(self.kernel.layout())? {
            if let Some(mut layout) = legacy {
                layout.only_cpu = self.tracer.only_cpu();
                self.rulesets.counters.set_layout(layout);
            }
            self.rulesets.counters.set_nft(has_nft);
            self.refresh_counters(true)?;
        }
        Ok(())
    }

    /// What the self-test said of nft's counters.
    fn nft_counters(&self) -> Option<NftCounters> {
        self.learned.as_ref()?.as_ref().ok().map(|learned| learned.counters)
    }

    /// Looks for changed rules, if it is time.
    fn refresh_counters(&mut self, regularly: bool) -> Result<(), TracerError> {
        if !self.rulesets.counters.is_due(regularly) {
            return Ok(());
        }
        let own = self.lab.as_ref().map(Lab::inode);
        let mut netns = self.tracer.network_namespaces(self.kernel.layout())?;
        netns.retain(|netns| Some(netns.inode) != own);
        let most = self.tracer.chunks();
        let changed = self.rulesets.refresh_counters(&mut self.tracer.memory()?, &netns, most);
        if let Some((version, plan)) = changed {
            self.tracer.watch(version, plan)?;
        }
        Ok(())
    }

    /// Learns how this kernel shows which rule dropped a packet, in a network namespace of our own. Does nothing where
    /// no rule engine is loaded, or none that it has not learned from before.
    ///
    /// # Errors
    /// Why such drops stay without their rule.
    pub fn self_test(&mut self) -> Result<(), SelfTestError> {
        let backends = Backends::detect(&|name| self.kernel.has_function(name));
        self.rulesets.hooks = self.kernel.hooks();
        self.rulesets.connections = self.kernel.connections();
        self.rulesets.programs = self.kernel.programs();
        self.rulesets.engines = Engines {
            nft: self.kernel.has_function("nft_do_chain"),
            legacy: ["ipt_do_table", "ip6t_do_table"].iter().any(|name| self.kernel.has_function(name)),
        };
        // An engine that it learned from stays where it is: the rules in the lab keep it from being unloaded.
        if self.lab.as_ref().is_some_and(|lab| lab.backends() == backends) {
            return Ok(());
        }
        self.rulesets.set_layout(None);
        if backends.is_empty() {
            selftest::forget(&mut self.tracer);
            self.learned = None;
            return Ok(());
        }
        let mut learned = self.learn(backends, 1)?;
        for _ in 1..SELF_TESTS {
            if !learned.as_ref().is_err_and(SelfTestError::is_passing) {
                break;
            }
            learned = self.learn(backends, REPEATED_PROOFS)?;
        }
        self.learned = Some(learned.as_ref().copied().map_err(ToString::to_string));
        let learned = learned?;
        self.rulesets.has_nft_freeing = learned.has(attribution_kind::NFT_RULE);
        self.rulesets.set_layout(learned.nft);
        Ok(())
    }

    /// The self-test once more, with as many proofs as `rounds`. `None` where there is nothing to learn from.
    ///
    /// # Errors
    /// What went wrong, a wrong answer included; what was learned at start is in force no more then.
    pub fn repeat_self_test(&mut self, rounds: u32) -> Result<Option<Proof>, SelfTestError> {
        let Some(backends) = self.lab.as_ref().map(Lab::backends) else { return Ok(None) };
        self.learn(backends, rounds)?.map(|learned| Some(learned.proof))
    }

    /// One self-test.
    fn learn(
        &mut self,
        backends: Backends,
        rounds: u32,
    ) -> Result<Result<Learned, SelfTestError>, SelfTestError> {
        let layouts = Layouts {
            nft: self.kernel.nft(),
            legacy: self.kernel.legacy(),
            hooks: self.kernel.hooks(),
            nf_hook_slow: self.kernel.layout().nf_hook_slow,
        };
        if layouts.nft.is_some_and(|nft| nft.counters.is_some()) {
            self.tracer.learn_per_cpu(self.kernel.layout())?;
        }
        self.rulesets.counters.renew();
        let mut lab = Lab::open(backends)?;
        self.tracer.set_own_netns(lab.inode());
        let early = &mut self.early;
        let learned =
            selftest::run(&mut self.tracer, &mut lab, layouts, rounds, &mut |raw| early.push_back(raw));
        // Kept, also where it failed: its inode number must not become another's while its drops are left out.
        self.lab = Some(lab);
        Ok(learned)
    }

    /// Begins to follow packets: see [`Tracer::arm_trace`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn arm_trace(&mut self) -> Result<(), TracerError> {
        self.tracer.arm_trace()?;
        self.ask_nft();
        Ok(())
    }

    /// The network namespaces of this system, but for the self-test's.
    pub fn network_namespaces(&mut self) -> Vec<u32> {
        let own = self.lab.as_ref().map(Lab::inode);
        let all = self.tracer.network_namespaces(self.kernel.layout()).unwrap_or_default();
        all.into_iter().map(|netns| netns.inode).filter(|inode| Some(*inode) != own).collect()
    }

    /// What was seen next of a followed packet, if there is more by now.
    pub fn next_seen(&mut self) -> Option<Seen> {
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return Some(seen);
            }
            let (head, raw) = {
                let item = self.tracer.steps()?.next()?;
                if let Some(step) = trace::decode::nft_step(&item) {
                    self.rules.take_nft(step);
                    continue;
                }
                // A record of another length is none of ours.
                let Ok(step) = trace::decode::decode(&item) else { continue };
                step
            };
            if self.clock.is_behind(raw.time)
                && let Ok(sample) = sample_now()
            {
                self.clock.record_from(sample, raw.time);
            }
            self.see(&head, raw);
        }
    }

    /// Compares the counters of rules in these network namespaces from now on, where packets are followed. What changes there is
    /// found when they are asked for again.
    pub fn compare_counters(&mut self, netns: impl IntoIterator<Item = u32>) {
        self.followed = netns.into_iter().collect();
        self.refresh_moved();
    }

    /// Looks for changed rules where packets are followed, if it is time. Where that fails, rules are evaluated.
    fn refresh_moved(&mut self) {
        if !self.rulesets.moved.is_due() {
            return;
        }
        let Ok(mut netns) = self.tracer.network_namespaces(self.kernel.layout()) else { return };
        netns.retain(|netns| self.followed.contains(&netns.inode));
        let most = self.tracer.compared_chunks();
        let Ok(mut memory) = self.tracer.memory() else { return };
        if let Some((version, plan)) = self.rulesets.refresh_moved(&mut memory, &netns, most) {
            self.tracer.compare(version, plan);
        }
    }

    /// A record of a followed packet.
    fn see(&mut self, head: &StepHead, raw: Raw) {
        let is_dropped = head.place == place::DROPPED;
        let view = if is_dropped {
            let (mut event, _) = self.explained(&raw);
            self.causes.explain(&mut event);
            event
        } else {
            let clock = &self.clock;
            let mut view = explain(&raw, &self.kernel, &|time| clock.to_realtime(time), &self.node);
            self.names.name(&mut view);
            view
        };
        let Some(mut seen) = trace::observe::seen(head, &raw, view, &self.kernel) else { return };
        seen.pod = seen.view.network.netns.and_then(|netns| {
            self.names.inventory().pod_in(netns, seen.view.time).map(|pod| pod.name.to_string())
        });
        match &mut seen.place {
            Place::Hook(passed) => {
                if head.counters.version == 0 {
                    // Rules have come, or were changed.
                    self.refresh_moved();
                }
                let until = match passed.point {
                    Point::Entered => None,
                    Point::Past(priority) => Some(Until::Past(priority)),
                    Point::Left => Some(Until::Left),
                };
                if let Some(until) = until {
                    let met = self.met(head, &raw, &until);
                    (passed.rules, passed.unsure) = (met.rules, met.unsure);
                }
                match passed.point {
                    Point::Entered => self.rules.look(head.packet, (raw, head.counters), i32::MIN),
                    Point::Past(priority) => self.rules.look(head.packet, (raw, head.counters), priority),
                    Point::Left => {}
                }
            }
            Place::Dropped => {
                let answer = seen.view.drop.netfilter.clone();
                let met = self.met(head, &raw, &Until::Dropped(answer.as_deref()));
                let on_hook = trace::observe::on_hook(&raw, met);
                if let Some(place) = on_hook {
                    // What it met on the hook before it was dropped there.
                    self.seen.push_back(Seen { place, ..seen.clone() });
                }
            }
            _ => {}
        }
        self.seen.push_back(seen);
    }

    /// The rules that a followed packet met since the last look at it.
    fn met(&mut self, head: &StepHead, raw: &Raw, until: &Until<'_>) -> Met {
        let family = raw.hook.as_ref().and_then(|state| Family::from_number(state.family));
        let (Some(state), Some(family)) = (&raw.hook, family) else { return Met::default() };
        let netns = Evidence::of_event(raw).netns;
        let Ok(mut memory) = self.tracer.memory() else {
            return Met { unsure: Some("kernel memory can't be read".to_owned()), ..Met::default() };
        };
        let chains = self.rulesets.base_chains(&mut memory, netns, family, state.hook);
        let has_chains = chains.as_ref().is_some_and(|chains| !chains.is_empty());
        let steps = self.rules.nft_steps(head.packet, raw);
        let nft_told = steps.map(|steps| self.rulesets.traced(&mut memory, netns, &steps));
        let rulesets = &self.rulesets;
        let mut in_force = |backend, table: &str| {
            rulesets.in_force(&mut memory, netns, (family, state.hook), (backend, table))
        };
        let has_legacy = rulesets.engines.legacy;
        let plans = &rulesets.moved;
        let of_hook = OfHook { netns, has_legacy, chains, nft_told, in_force: &mut in_force, plans };
        let now = (raw, &head.counters);
        let met = self.rules.met(head.packet, now, until, of_hook, &self.kernel.conntrack_offsets());
        if has_chains {
            // They came since it was last looked for some.
            self.ask_nft();
        }
        met
    }

    /// The tracer, for its ring's descriptor.
    pub fn tracer(&mut self) -> &mut Tracer {
        &mut self.tracer
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How drops are attributed here.
    #[must_use]
    pub fn mechanisms(&self) -> Mechanisms {
        let learned = |kind, how, missing: &str| {
            match &self.learned {
            Some(Ok(learned)) if learned.has(kind) => Mechanism::Exact(how),
            Some(Ok(_)) => Mechanism::Off(missing.to_owned()),
            Some(Err(error)) => Mechanism::Off(error.clone()),
            None => Mechanism::Off(
                "neither nf_tables nor a legacy filter table nor connection tracking is loaded, and this kernel has no BPF \
                 programs on hooks (from 6.4)"
                    .to_owned(),
            ),
        }
        };
        let stack = "registers saved on the kernel's stack, learned and proven in the self-test";
        let counters = match self.nft_counters() {
            Some(NftCounters::Off(why)) => why,
            _ => "nf_tables is not loaded",
        };
        let nft = format!(
            "this kernel doesn't free its packets in nft_do_chain, and counters don't tell them: {counters}; rules of \
             iptables-nft are inferred, and `--probes always` makes rules exact, but for verdict maps"
        );
        let is_counted = self.nft_counters() == Some(NftCounters::Proven);
        let nft_rules = match learned(attribution_kind::NFT_RULE, stack, &nft) {
            Mechanism::Off(_) if self.tracer.probes().has_rules() => {
                Mechanism::Exact("probes on the expressions that drop")
            }
            Mechanism::Off(_) if is_counted => Mechanism::Exact(
                "the rules' own counters, compared at the drop, where all that drops in a base chain has one; else inferred, \
                 and `--probes always` makes rules exact, but for verdict maps",
            ),
            other => other,
        };
        let nft_policies = match learned(attribution_kind::NFT_POLICY, stack, &nft) {
            Mechanism::Off(_) if is_counted => Mechanism::Exact(
                "the base chains' own counters, likewise, where they have one: iptables-nft-restore makes them, `iptables -P` \
                 and nft don't, and there a policy is inferred at best",
            ),
            other => other,
        };
        Mechanisms {
            nft_rules,
            nft_policies,
            legacy: match self.rulesets.counters.layout() {
                Some(_) => Mechanism::Exact("the rules' own counters, compared at the drop"),
                None => Mechanism::Off(
                    "ip_tables is not loaded, or this kernel doesn't describe its tables".to_owned(),
                ),
            },
            functions: learned(
                attribution_kind::HOOK,
                stack,
                "the self-test had too few hook functions to learn from: that takes a kernel from 6.4, or nf_tables and a \
                 legacy filter table",
            ),
            nft_trace: self.nft_trace_mechanism(),
            is_second_kept: self.tracer.is_second_kept(),
        }
    }

    /// Fields that this kernel's types don't have, and what that means.
    #[must_use]
    pub fn missing_fields(&self) -> &[MissingField] {
        self.kernel.missing()
    }

    /// What the rules and policies that can drop have counted, of all network namespaces, as the kernel itself keeps it: inode
    /// number, what it is (without its text), and packets. Rules that nothing counts are not among them.
    #[must_use]
    pub fn counted_rules(&self) -> Vec<(u32, Netfilter, u64)> {
        if !self.tracer.learn_per_cpu(self.kernel.layout()).unwrap_or(false) {
            return Vec::new();
        }
        let own = self.lab.as_ref().map(Lab::inode);
        let Ok(netns) = self.tracer.network_namespaces(self.kernel.layout()) else { return Vec::new() };
        let Ok(mut memory) = self.tracer.memory() else { return Vec::new() };
        let mut all = Vec::new();
        for netns in netns.into_iter().filter(|netns| Some(netns.inode) != own) {
            for (place, counter) in self.rulesets.droppers(&mut memory, netns) {
                all.extend(
                    self.tracer.sum(&mut memory, counter).map(|packets| (netns.inode, place, packets)),
                );
            }
        }
        all
    }

    /// True if tables of nf_tables are among [`Stream::tables`].
    #[must_use]
    pub fn lists_nft(&self) -> bool {
        self.rulesets.knows_nft()
    }

    /// The tables of all network namespaces.
    #[must_use]
    pub fn tables(&self) -> Vec<TableSummary> {
        let own = self.lab.as_ref().map(Lab::inode);
        let Ok(mut netns) = self.tracer.network_namespaces(self.kernel.layout()) else { return Vec::new() };
        netns.retain(|netns| Some(netns.inode) != own);
        let Ok(mut memory) = self.tracer.memory() else { return Vec::new() };
        self.rulesets.tables(&mut memory, &netns)
    }

    /// The clock, to note that it was set.
    pub fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// Notes how the clock stands, after the drops that came until now: if it was set, that was most likely before them
    /// ([`Clock::record_from`]).
    pub fn sample_clock(&mut self, each: &mut dyn FnMut(Record)) {
        let sample = sample_now();
        self.drain(each);
        // If the clock can't be read now, the next time will do.
        if let Ok(sample) = sample {
            self.clock.record(sample);
        }
    }

    /// True if drops wait for their names: [`Stream::release`] soon.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Lets go of drops whose names have come, or have not come in time.
    pub fn release(&mut self, each: &mut dyn FnMut(Record)) {
        for _ in 0..self.held.len() {
            let Some(held) = self.held.pop_front() else { break };
            if self.awaits(&held.event, held.since.elapsed()) {
                self.held.push_back(held);
            } else {
                self.let_go(held, each);
            }
        }
    }

    /// True if what names a drop, or what Cilium said of it, may be on its way.
    fn awaits(&mut self, event: &Drop, waited: Duration) -> bool {
        let awaits_agent =
            event.drop.cilium.as_ref().is_some_and(|said| self.names.awaits_agent(said, waited));
        self.names.awaits_name(event, waited) || awaits_agent
    }

    fn let_go(&mut self, held: Held, each: &mut dyn FnMut(Record)) {
        let Held { slot, mut event, asked, .. } = held;
        if !self.names.means(&event) {
            self.unmeant.insert(slot);
            return;
        }
        self.names.name(&mut event);
        if let (Some(answer), Some(asked)) = (&mut event.drop.cilium, &asked) {
            self.cilium.name(answer, asked, self.names.inventory());
            if let Some(told) = self.told.get_mut(&slot) {
                told.cilium.clone_from(&event.drop.cilium);
            }
        }
        // Told by name now.
        self.causes.explain(&mut event);
        if let Some(told) = self.told.get_mut(&slot) {
            told.cause.clone_from(&event.drop.cause);
        }
        self.pass(event, each);
    }

    /// Hands a drop on, unless its cause is not wanted.
    fn pass(&self, event: Drop, each: &mut dyn FnMut(Record)) {
        if self.wanted.is_empty() || matches(&self.wanted, &event) {
            each(Record::Drop(Box::new(event)));
        }
    }

    /// Takes what is in the ring. True if there may be more.
    pub fn drain(&mut self, each: &mut dyn FnMut(Record)) -> bool {
        let more = self.drain_ring(each);
        // If it fails, drops by tables that changed are not attributed.
        let _ = self.refresh_counters(false);
        more
    }

    fn drain_ring(&mut self, each: &mut dyn FnMut(Record)) -> bool {
        for _ in 0..BATCH {
            let raw = match self.early.pop_front() {
                Some(raw) => raw,
                None => {
                    let Some(item) = self.tracer.ring().next() else { return false };
                    // A record of another length is no event of ours; its drop is counted all the same.
                    let Ok(raw) = decode::decode(&item) else { continue };
                    raw
                }
            };
            if self.clock.is_behind(raw.time)
                && let Ok(sample) = sample_now()
            {
                self.clock.record_from(sample, raw.time);
            }
            let Some(share) = self.merge.settle(raw.slot, raw.count, raw.segments) else { continue };
            if self.is_own(raw.key.netns) {
                continue;
            }
            let (mut event, asked) = self.explained(&raw);
            let at = event.time;
            if share.count > 1 {
                // Drops of this slot that sent no event came before this one.
                let (count, segments) = (share.count - 1, share.segments.saturating_sub(event.segments));
                let from = self.clock.to_realtime(self.last_tick.min(raw.time));
                let reading = Reading { slot: raw.slot, key: raw.key, count, segments };
                let counted = self.counted(&reading, from, at);
                self.pass(counted, each);
            }
            self.causes.explain(&mut event);
            let Reason { class, cause, netfilter, bpf, cilium, .. } = &event.drop;
            let netfilter = netfilter.as_ref().map(|answer| Box::new(answer.of_others()));
            let bpf = bpf.as_ref().map(|answer| Box::new(answer.of_others()));
            let told = Told { class: *class, cause: cause.clone(), netfilter, bpf, cilium: cilium.clone() };
            self.told.insert(raw.slot, told);
            if self.held.len() < HELD && self.awaits(&event, Duration::ZERO) {
                self.held.push_back(Held { slot: raw.slot, since: Instant::now(), event, asked });
            } else {
                self.pass(event, each);
            }
        }
        true
    }

    /// What a full event tells: what dropped the packet, and who its ends are; all but the cause.
    fn explained(&mut self, raw: &Raw) -> (Drop, Option<Asked>) {
        let netfilter = self.netfilter(&Evidence::of_event(raw), raw.key.location, Some(raw));
        let clock = &self.clock;
        let mut event = explain(raw, &self.kernel, &|time| clock.to_realtime(time), &self.node);
        event.count = 1;
        event.segments = u64::from(raw.gso_segments.max(1));
        event.drop.take_netfilter(netfilter);
        let mut bpf = self.at_tc(&raw.key, Some(&raw.filters), event.network.interface.as_deref());
        if let Some(bpf) = &mut bpf {
            self.name_filters(bpf, raw.device);
        }
        let said = bpf.as_ref().and_then(|bpf| self.cilium.explain(raw, &event, bpf, self.names.inventory()));
        let (said, asked) = said.map_or((None, None), |(said, asked)| (Some(Box::new(said)), asked));
        event.drop.cilium = said;
        if let Some(said) = &event.drop.cilium {
            self.cilium.note(Some(said), 1);
        }
        event.drop.take_program(bpf, event.destination.address);
        self.names.name(&mut event);
        (event, asked)
    }

    /// Ends an interval: what no event told comes out as counts, and what was lost is said.
    ///
    /// # Errors
    /// If the system cannot read its clocks.
    pub fn tick(&mut self, each: &mut dyn FnMut(Record)) -> io::Result<()> {
        self.tracer.next_interval();
        self.tracer.forget_sites();
        // First the counters, then the events that were in the ring by then, then the difference (`event::merge`).
        let seen = self.tracer.losses();
        let mut pending = Vec::new();
        if seen.seen != self.lost.seen || self.retired.is_some() {
            for generation in 0..Layout::GENERATIONS {
                if self.in_use(generation) {
                    let merge = &self.merge;
                    let fill = self.tracer.read_slots(generation, |reading| {
                        if merge.is_ahead(reading.slot, reading.count) {
                            pending.push(reading);
                        }
                    });
                    if generation == self.tracer.generation() {
                        self.fill = fill;
                    }
                }
            }
        }
        // If it fails, drops by tables that changed are not attributed.
        let _ = self.refresh_counters(true);
        self.drain(each);
        let now = monotonic_now()?;
        self.names.tick(self.clock.to_realtime(now));
        let (from, to) = (self.clock.to_realtime(self.last_tick), self.clock.to_realtime(now));
        self.tell_rest(pending, from, to, each);
        self.last_tick = now;
        self.say_losses(&seen, to, each);
        self.renew_slots(each);
        if self.kernel.refresh() {
            let layout = *self.kernel.layout();
            self.tracer.update_layout(&layout);
            // What fails leaves drops without their rule, as they were.
            if self.tracer.probes().is_on_hooks() {
                let _ = self.attach_probes();
            }
            // Without a lab nobody asks nft to tell.
            self.rules.nft_tells_since(None);
            let _ = self.self_test();
            self.ask_nft_again();
            let _ = self.watch_counters();
        }
        Ok(())
    }

    /// Detaches the program and takes what is left. Everything that was counted has come out then.
    ///
    /// # Errors
    /// If the kernel refuses to detach, or the system cannot read its clocks.
    pub fn finish(&mut self, each: &mut dyn FnMut(Record)) -> Result<(), StopError> {
        self.cilium.end_measuring();
        self.tracer.stop()?;
        let mut quiet = vec![false; self.tracer.layout().cpus as usize];
        let mut waited = Duration::ZERO;
        const STEP: Duration = Duration::from_millis(5);
        while waited < LAST_RUNS {
            // Wait first: a program run may have begun that has not said so yet.
            thread::sleep(STEP);
            waited += STEP;
            self.tracer.note_quiet(&mut quiet);
            if quiet.iter().all(|quiet| *quiet) {
                break;
            }
        }
        while self.drain(each) {}
        self.tick(each)?;
        while let Some(held) = self.held.pop_front() {
            self.let_go(held, each);
        }
        Ok(())
    }

    fn in_use(&self, generation: u32) -> bool {
        generation == self.tracer.generation()
            || self.retired.as_ref().is_some_and(|retired| retired.generation == generation)
    }

    fn counted(&mut self, reading: &Reading, from: Timestamp, to: Timestamp) -> Drop {
        let Reading { slot, key, count, segments } = reading;
        let mut event = explain_counts(key, *count, *segments, &self.kernel, from, to, &self.node);
        // What Cilium said, and a cause's words, are of one flow, so they are not said where several are counted together.
        let mut is_explained = false;
        let is_of_all = |told: &&Told| told.cilium.is_none() || key.flags & flow_flag::COARSE == 0;
        if let Some(told) = self.told.get(slot).filter(is_of_all) {
            event.drop.class = told.class;
            is_explained = key.flags & flow_flag::COARSE == 0 && told.cause.is_some();
            if is_explained || told.class == Class::Routine {
                event.drop.cause.clone_from(&told.cause);
            }
            event.drop.netfilter.clone_from(&told.netfilter);
            event.drop.bpf.clone_from(&told.bpf);
            event.drop.cilium.clone_from(&told.cilium);
            if let Some(said) = &event.drop.cilium {
                self.cilium.note(Some(said), *count);
            }
        } else {
            let bpf = self.at_tc(key, None, None);
            if bpf.is_some() {
                self.cilium.note(None, *count);
            }
            event.drop.take_program(bpf, None);
            event.drop.take_netfilter(self.netfilter(&Evidence::of_key(key), key.location, None));
        }
        self.names.name(&mut event);
        if !is_explained {
            self.causes.explain(&mut event);
        }
        event
    }

    /// What at a tc hook dropped a packet; `None` if it was not dropped at one.
    fn at_tc(
        &mut self,
        key: &FlowKey,
        filters: Option<&[TcFilter; TC_FILTERS]>,
        interface: Option<&str>,
    ) -> Option<Box<Bpf>> {
        let answer = tc::attribute::answer(key.attribution, filters, interface, |id| self.programs.get(id));
        answer.map(Box::new)
    }

    /// Names filters of which the kernel half saw no more than that they are there.
    fn name_filters(&mut self, bpf: &mut Bpf, device: Option<Device>) {
        let Some(device) = device.filter(|_| tc::filters::has_unread(bpf)) else { return };
        let listed = self.hooks.filters((device.netns, device.ifindex, bpf.hook == "EGRESS"));
        tc::filters::name(bpf, &listed, |id| self.programs.get(id));
    }

    /// What of netfilter dropped a packet; `None` if netfilter did not.
    fn netfilter(&mut self, evidence: &Evidence, location: u64, raw: Option<&Raw>) -> Option<Netfilter> {
        let layout = self.kernel.layout();
        let freed_by = if layout.nft_do_chain.has_return(location) {
            FreedBy::Nft
        } else if layout.nf_hook_slow.has_return(location) {
            FreedBy::HookLoop
        } else if layout.nf_queue.has_return(location) {
            FreedBy::Queue
        } else if layout.br_handle_frame.has_return(location) {
            FreedBy::Bridge
        } else if layout.br_nf_pre_routing.has_return(location) {
            return Some(bridge::by_itself());
        } else {
            return None;
        };
        let evidence = Evidence { freed_by, now: monotonic_now().unwrap_or(0), ..*evidence };
        if freed_by == FreedBy::Queue
            && !self.rulesets.knows_legacy(&mut self.tracer.memory().ok()?, &evidence)
        {
            // No counter is compared there, so that it is not too late to read the tables.
            self.rulesets.counters.suspect();
            let _ = self.refresh_counters(false);
        }
        let mut memory = self.tracer.memory().ok()?;
        let packet = raw.and_then(|raw| Packet::of(raw, &self.kernel.conntrack_offsets()));
        let name = |address| {
            let symbol = self.kernel.symbol(address)?;
            let (name, place) = symbol.split_once('+')?;
            // What is no function's start is no hook function.
            (place.split(' ').next() == Some("0x0")).then(|| name.to_owned())
        };
        if freed_by == FreedBy::Bridge {
            let reason = self.kernel.reason(raw?.key.reason).map(|(_, name)| name);
            let names = self.kernel.reason_names();
            let blame = bridge::blame(reason.as_deref(), names.iter().map(|(_, name)| name.as_str()));
            return self.rulesets.attribute_bridge(&mut memory, &name, &evidence, blame);
        }
        Some(self.rulesets.attribute(&mut memory, &name, &evidence, packet.as_ref()))
    }

    /// True for a drop of the self-test.
    fn is_own(&self, netns: u32) -> bool {
        self.lab.as_ref().is_some_and(|lab| lab.inode() == netns)
    }

    fn say_losses(&mut self, now: &Losses, time: Timestamp, each: &mut dyn FnMut(Record)) {
        let before = self.lost;
        let places = [
            (LostPlace::Ring, now.ring - before.ring),
            (LostPlace::Flow, now.flow - before.flow),
            (LostPlace::Overflow, now.overflow - before.overflow),
            (LostPlace::Recursion, now.recursion - before.recursion),
        ];
        for (place, count) in places {
            if count > 0 {
                each(Record::Lost(Lost { time, count, place }));
            }
        }
        self.lost = *now;
    }

    /// Turns to fresh slots when those for flows fill up, and clears the old ones when no program uses them any more.
    fn renew_slots(&mut self, each: &mut dyn FnMut(Record)) {
        let layout = self.tracer.layout();
        if let Some(retired) = &mut self.retired {
            // A program that had just read the old generation's number is running by now, and seen as such.
            retired.age += 1;
            self.tracer.note_quiet(&mut retired.quiet);
            if retired.age > 1 && retired.quiet.iter().all(|quiet| *quiet) {
                let generation = retired.generation;
                self.retired = None;
                self.settle_all(generation, each);
                self.tracer.clear_generation(generation);
                let slots = layout.generation(generation);
                self.merge.forget(slots.clone());
                self.told.retain(|slot, _| !slots.contains(slot));
                self.unmeant.retain(|slot| !slots.contains(slot));
            }
            return;
        }
        if self.fill > layout.flow_slots / 2 {
            self.fill = 0;
            let generation = self.tracer.generation();
            self.tracer.turn_generation();
            self.retired = Some(Retired { generation, quiet: vec![false; layout.cpus as usize], age: 0 });
        }
    }

    /// Settles what a generation that no program uses any more has counted since it was last read.
    fn settle_all(&mut self, generation: u32, each: &mut dyn FnMut(Record)) {
        while self.drain(each) {}
        let mut readings = Vec::new();
        self.tracer.read_slots(generation, |reading| readings.push(reading));
        let at = self.clock.to_realtime(self.last_tick);
        self.tell_rest(readings, at, at, each);
    }

    /// Tells, as lines of counts, what counters are ahead of what was told.
    fn tell_rest(
        &mut self,
        readings: Vec<Reading>,
        from: Timestamp,
        to: Timestamp,
        each: &mut dyn FnMut(Record),
    ) {
        for reading in readings {
            if let Some(share) = self.merge.settle(reading.slot, reading.count, reading.segments)
                && !self.is_own(reading.key.netns)
                && !self.unmeant.contains(&reading.slot)
            {
                let reading = Reading { count: share.count, segments: share.segments, ..reading };
                let counted = self.counted(&reading, from, to);
                self.pass(counted, each);
            }
        }
    }
}

/// Why a trace could not be ended in order.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The kernel refuses.
    #[error(transparent)]
    Tracer(#[from] TracerError),
    /// The system cannot read its clocks.
    #[error("can't read the clock: {0}")]
    Clock(#[from] io::Error),
}
