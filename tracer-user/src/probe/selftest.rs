//! The self-test: drops packets of its own by rules of its own, to learn how this kernel shows what dropped a packet, and
//! to prove it before it is believed.
//!
//! It runs in the [`Lab`], a network namespace that no packet of the node enters, at start and when nf_tables or a legacy
//! table is loaded later.

use super::{
    lab::{self, Hook, Lab, LabError, Verdict, legacy, nft},
    tracer::{Tracer, TracerError},
};
use crate::event::{
    class::SELF_TEST,
    decode::{self, Raw},
};
use crate::netfilter::{
    NetnsId,
    counted::Counted,
    hooks::{HookLayout, Hooked},
    legacy::{LegacyLayout, Table as LegacyTable},
    model::Family,
    nft::{NftLayout, Ruleset},
    roles::{self, Observation, Truth},
    watch::{Plan, Seen, Told, plan},
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tracer_common::{
    Depth, Role, SequenceOffsets, TextRange, attribution_kind, hook_of, index_of, kind_of, state_path,
};

/// How long the events of a few packets may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// UDP port that the packets go to (discard, RFC 863).
const PORT: u16 = 9;
/// Name of the lab's table.
const TABLE: &str = "droptrace";
/// Name of the one whose rules count.
const COUNTED_TABLE: &str = "droptrace-counted";
/// The version of its lists: none of the node's.
const COUNTED_VERSION: u32 = u32::MAX;
/// Hooks of the experiments.
const PREROUTING: Hook = Hook::Prerouting;
const INPUT: Hook = Hook::Input;
const OUTPUT: Hook = Hook::Output;
/// IPv4 (NFPROTO_IPV4, include/uapi/linux/netfilter.h).
const FAMILY: u8 = 2;

/// Why the kernel's stack doesn't tell what dropped a packet.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// No lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The tracer's own trouble.
    #[error(transparent)]
    Tracer(#[from] TracerError),
    /// Drops that didn't show.
    #[error("{missing} of {sent} packets dropped in the self-test were not seen")]
    Unseen {
        /// Not seen.
        missing: usize,
        /// Sent.
        sent: usize,
    },
    /// The lab's rules are not where they are looked for.
    #[error("the rules of the self-test are not found in the kernel's memory")]
    Unreadable,
    /// No word of the stack is right every time.
    #[error("this kernel doesn't leave what dropped a packet where it could be found")]
    NotLearned,
    /// What was learned was wrong.
    #[error("what the self-test learned gave a wrong answer for {to}: not used")]
    Disproved {
        /// The packet's destination.
        to: Ipv4Addr,
    },
}

/// A packet and what must drop it.
#[derive(Clone, Copy)]
struct Experiment {
    to: Ipv4Addr,
    hook: Hook,
    by: Culprit,
}

/// What drops a packet of the lab.
#[derive(Clone, Copy)]
enum Culprit {
    /// A rule of an nft chain, from 1.
    Rule(&'static str, usize),
    /// Likewise, one that counts.
    Counted(&'static str, usize),
    /// The policy of an nft chain.
    Policy(&'static str),
    /// The legacy table on the hook.
    Legacy,
    /// A program on the hook, after so many that let the packet pass.
    Program(u8),
}

const fn to(last: u8) -> Ipv4Addr {
    let [a, b] = SELF_TEST;
    Ipv4Addr::new(a, b, 1, last)
}

const fn legacy_to(hook: Hook) -> Ipv4Addr {
    let [a, b] = SELF_TEST;
    Ipv4Addr::new(a, b, 2, hook as u8)
}

const fn by_nft(last: u8, hook: Hook, by: Culprit) -> Experiment {
    Experiment { to: to(last), hook, by }
}

const fn by_legacy(hook: Hook) -> Experiment {
    Experiment { to: legacy_to(hook), hook, by: Culprit::Legacy }
}

const fn by_program(last: u8, hook: Hook, index: u8) -> Experiment {
    let [a, b] = SELF_TEST;
    Experiment { to: Ipv4Addr::new(a, b, 3, last), hook, by: Culprit::Program(index) }
}

/// Never the same index twice in a row on a hook: what the packet before left behind must be wrong.
const PROGRAMS: [Experiment; 8] = [
    by_program(1, INPUT, 0),
    by_program(2, INPUT, 3),
    by_program(3, OUTPUT, 1),
    by_program(4, INPUT, 1),
    by_program(5, PREROUTING, 2),
    by_program(6, OUTPUT, 3),
    by_program(7, PREROUTING, 0),
    by_program(8, INPUT, 2),
];

/// Programs on each hook that let everything pass.
const PASSING: u8 = 3;

/// The priority of one of them: before all else in the lab, and with room for another before it.
const fn priority(index: u8) -> i32 {
    -1000 + 10 * index as i32
}

const NFT: [Experiment; 10] = [
    // A rule of a base chain, of a chain that was jumped to, and of one that was gone to.
    by_nft(1, INPUT, Culprit::Rule("in", 1)),
    by_nft(2, INPUT, Culprit::Rule("jumped", 3)),
    by_nft(3, INPUT, Culprit::Rule("gone", 2)),
    by_nft(4, INPUT, Culprit::Rule("in", 6)),
    // A policy: after `return` (a rule's register still holds that rule), after a jump that came back (another
    // chain's register still holds that chain), without any rule, and on another hook.
    by_nft(5, INPUT, Culprit::Policy("in")),
    by_nft(6, INPUT, Culprit::Policy("in")),
    by_nft(7, INPUT, Culprit::Policy("in")),
    by_nft(8, OUTPUT, Culprit::Policy("out")),
    // In process context.
    by_nft(9, OUTPUT, Culprit::Rule("out", 9)),
    // On the hook before, on the same stack as INPUT: where that hook's state lay may be where this one's lies.
    by_nft(10, PREROUTING, Culprit::Rule("pre", 1)),
];

/// Policies that count are none of them: one that exists anywhere makes all base chains of the node look for theirs
/// (nft_counters_enabled, net/netfilter/nf_tables_core.c).
const COUNTED: [Experiment; 3] = [
    by_nft(11, INPUT, Culprit::Counted("counted", 2)),
    by_nft(12, INPUT, Culprit::Counted("counted-jumped", 2)),
    by_nft(13, OUTPUT, Culprit::Counted("counted-out", 1)),
];

const LEGACY: [Experiment; 2] = [by_legacy(INPUT), by_legacy(OUTPUT)];

/// The base chain that the experiments on a hook come through.
fn base_chain(hook: Hook) -> &'static str {
    match hook {
        Hook::Input => "in",
        Hook::Output => "out",
        _ => "pre",
    }
}

/// The nft rules that the experiments speak of. What legacy tables are to drop passes them.
fn nft_table() -> nft::Table {
    use lab::Policy;
    use nft::Verdict::{Accept, Drop, Goto, Jump, Return};
    let rule_to =
        |destination, verdict| nft::Rule { destination: Some(destination), is_counted: false, verdict };
    let rule = |last: u8, verdict| rule_to(to(last), verdict);
    let pass = |hook| rule_to(legacy_to(hook), Accept);
    let chain = |name: &str, base, rules| nft::Chain { name: name.to_owned(), base, rules };
    let base = |hook| Some(nft::Base { hook, priority: 0, policy: Policy::Drop });
    // More functions on the hooks before the legacy table, so that it has another index on each.
    let early = |hook, priority| Some(nft::Base { hook, priority, policy: Policy::Accept });
    nft::Table {
        name: TABLE.to_owned(),
        chains: vec![
            chain("jumped", None, vec![rule(99, Drop), rule(98, Return), rule(2, Drop)]),
            chain("gone", None, vec![rule(99, Accept), rule(3, Drop), rule(3, Accept)]),
            chain("empty", None, vec![rule(99, Drop)]),
            chain("pre", early(Hook::Prerouting, -40), vec![rule(10, Drop)]),
            chain("early-in", early(Hook::Input, -40), Vec::new()),
            chain("early-in-2", early(Hook::Input, -30), Vec::new()),
            chain("early-in-3", early(Hook::Input, -20), Vec::new()),
            chain("early-out", early(Hook::Output, -40), Vec::new()),
            chain(
                "in",
                base(Hook::Input),
                vec![
                    rule(1, Drop),
                    rule(2, Jump("jumped".to_owned())),
                    rule(3, Goto("gone".to_owned())),
                    rule(5, Return),
                    rule(6, Jump("empty".to_owned())),
                    rule(4, Drop),
                    pass(INPUT),
                ],
            ),
            // Accepts what is for the other hook.
            chain("out", base(Hook::Output), {
                let mut rules: Vec<_> = (1..=7).chain([10]).map(|last| rule(last, Accept)).collect();
                rules.push(rule(9, Drop));
                rules.extend([pass(INPUT), pass(OUTPUT)]);
                rules.extend(PROGRAMS.map(|program| rule_to(program.to, Accept)));
                rules.extend(COUNTED.map(|counted| rule_to(counted.to, Accept)));
                rules
            }),
        ],
    }
}

/// The rules that count, asked before the others.
fn counted_table() -> nft::Table {
    use nft::Verdict::{Drop, Jump};
    let rule = |last: u8, verdict| nft::Rule { destination: Some(to(last)), is_counted: true, verdict };
    let chain = |name: &str, hook: Option<Hook>, rules| {
        let base = hook.map(|hook| nft::Base { hook, priority: -10, policy: lab::Policy::Accept });
        nft::Chain { name: name.to_owned(), base, rules }
    };
    nft::Table {
        name: COUNTED_TABLE.to_owned(),
        chains: vec![
            chain("counted-jumped", None, vec![rule(99, Drop), rule(12, Drop)]),
            chain(
                "counted",
                Some(INPUT),
                vec![rule(99, Drop), rule(11, Drop), rule(12, Jump("counted-jumped".to_owned()))],
            ),
            chain("counted-out", Some(OUTPUT), vec![rule(13, Drop)]),
        ],
    }
}

fn legacy_table() -> legacy::Table {
    legacy::Table { input: vec![legacy_to(INPUT)], output: vec![legacy_to(OUTPUT)] }
}

/// The layouts of the rule engines that the kernel has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layouts {
    /// nf_tables.
    pub nft: Option<NftLayout>,
    /// iptables-legacy.
    pub legacy: Option<LegacyLayout>,
    /// Hook functions.
    pub hooks: Option<HookLayout>,
    /// Text of nf_hook_slow.
    pub nf_hook_slow: TextRange,
}

/// What the self-test learned, and proved.
#[derive(Clone, Copy, Debug)]
pub struct Learned {
    /// The layout of nft, complete now, if the kernel has it.
    pub nft: Option<NftLayout>,
    /// What the call sites leave on the stack.
    pub roles: [Role; Role::COUNT],
    /// Whether counters tell nft's rules.
    pub counters: NftCounters,
    /// How well it was proved.
    pub proof: Proof,
}

/// Whether counters tell which nft rule dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NftCounters {
    /// No: the stack tells it, or nf_tables is not there.
    NotNeeded,
    /// No; why.
    Off(&'static str),
    /// They do.
    Proven,
}

/// Drops by known rules and functions, after learning; none of them was told wrongly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// All of them.
    pub drops: u64,
    /// Those of which the programs told the rule, the chain or the function.
    pub told: u64,
}

impl SelfTestError {
    /// True if another run may do better: the machine was too busy, or another tracer came or went meanwhile, so that the
    /// stack changed its depth.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unseen { .. } | Self::NotLearned | Self::Disproved { .. })
    }
}

impl Learned {
    /// True if drops of a kind (`attribution_kind`) can be told.
    #[must_use]
    pub fn has(&self, kind: u8) -> bool {
        let is_known = |role: &Role| role.depths.iter().any(|depth| depth.value_word != 0);
        self.roles.iter().any(|role| role.location != 0 && role.kind == u32::from(kind) && is_known(role))
    }
}

/// A dropped packet of the lab, and where the answer was.
struct Dropped {
    experiment: Experiment,
    raw: Raw,
    entries: Option<u64>,
    truth: Truth,
}

/// The functions on the hook that a packet was dropped on, while it was.
#[derive(Default)]
struct InForce {
    /// Where they were (struct nf_hook_entries).
    entries: Option<u64>,
    functions: Vec<Hooked>,
}

/// One self-test.
struct SelfTest<'a> {
    tracer: &'a mut Tracer,
    lab: &'a mut Lab,
    layouts: Layouts,
    /// Gets the events that are not the lab's.
    other: &'a mut dyn FnMut(Raw),
    /// Seen so far: with our program alone (or with those of others), and with our second one.
    depths: [Vec<Dropped>; 2],
    ruleset: Option<Ruleset>,
    /// What the programs compare of the rules that count.
    plan: Option<Plan>,
}

/// Learns how this kernel shows what dropped a packet, proves it in so many rounds, and tells the tracer. The tracer must
/// run; what of its ring is not the lab's goes to `other`.
///
/// # Errors
/// Why what was learned is not to be used; then the tracer knows nothing of it.
pub fn run(
    tracer: &mut Tracer,
    lab: &mut Lab,
    layouts: Layouts,
    rounds: u32,
    other: &mut dyn FnMut(Raw),
) -> Result<Learned, SelfTestError> {
    let learned = learn_and_prove(tracer, lab, layouts, rounds, other);
    if learned.is_err() {
        forget(tracer);
    }
    learned
}

/// Nothing that an earlier self-test told the tracer is in force any more.
pub fn forget(tracer: &mut Tracer) {
    tracer.set_roles(SequenceOffsets::NONE, [Role::default(); Role::COUNT]);
}

fn learn_and_prove(
    tracer: &mut Tracer,
    lab: &mut Lab,
    layouts: Layouts,
    rounds: u32,
    other: &mut dyn FnMut(Raw),
) -> Result<Learned, SelfTestError> {
    let has_nft = lab.backends().nft && layouts.nft.is_some();
    let has_legacy = lab.backends().legacy && layouts.legacy.is_some();
    let has_programs = lab.has_programs() && layouts.hooks.is_some();
    let mut test =
        SelfTest { tracer, lab, layouts, other, depths: [Vec::new(), Vec::new()], ruleset: None, plan: None };
    let mut passing = Vec::new();
    if has_programs {
        let programs: Vec<_> = (0..PASSING).map(|index| (Verdict::Accept, priority(index))).collect();
        for hook in [PREROUTING, INPUT, OUTPUT] {
            passing.push(test.lab.attach(hook, &programs)?);
        }
        test.observe(&PROGRAMS)?;
    }
    if has_legacy {
        test.lab.load_legacy(&legacy_table())?;
        test.observe(&LEGACY)?;
    }
    if has_nft {
        test.lab.load_nft(&nft_table())?;
        test.observe(&NFT)?;
        if has_legacy {
            // Now with other indices.
            test.observe(&LEGACY)?;
        }
    }
    let sequence = test.layouts.nft.map_or(SequenceOffsets::NONE, |layout| layout.sequence);
    let roles = test.learn()?;
    test.tracer.set_roles(sequence, roles);
    let mut experiments = Vec::new();
    experiments.extend(if has_programs { &PROGRAMS[..] } else { &[] });
    experiments.extend(if has_legacy { &LEGACY[..] } else { &[] });
    experiments.extend(if has_nft { &NFT[..] } else { &[] });
    let mut proof = Proof::default();
    let proven = test.prove_all(&experiments, rounds, &mut proof);
    if test.plan.is_some() {
        // The lists were the lab's.
        test.tracer.watch(0, &Plan::default())?;
    }
    Ok(Learned { nft: test.layouts.nft.filter(|_| has_nft), roles, counters: proven?, proof })
}

impl SelfTest<'_> {
    /// Drops the packets at both depths, and notes where the answers were.
    fn observe(&mut self, experiments: &[Experiment]) -> Result<(), SelfTestError> {
        let hooks = self.layouts.hooks;
        let near = drop_all(self.tracer, self.lab, hooks, experiments, self.other)?;
        let (lab, other) = (&*self.lab, &mut *self.other);
        let far = self.tracer.with_second(|tracer| drop_all(tracer, lab, hooks, experiments, other))?;
        for (depth, drops) in [near, far].into_iter().enumerate() {
            for (experiment, raw, InForce { entries, .. }) in drops {
                let truth = self.truth(&experiment, &raw).ok_or(SelfTestError::Unreadable)?;
                if let Some(seen) = self.depths.get_mut(depth) {
                    seen.push(Dropped { experiment, raw, entries, truth });
                }
            }
        }
        Ok(())
    }

    /// Where in the kernel's memory the answer to an experiment is that the stack can tell: where nf_hook_slow freed the
    /// packet, it knows the hook function only.
    fn truth(&mut self, experiment: &Experiment, raw: &Raw) -> Option<Truth> {
        match self.rule(experiment, raw.net)? {
            Some(rule) if !self.layouts.nf_hook_slow.has_return(raw.key.location) => Some(rule),
            _ => self.index(experiment, raw.net).map(Truth::Hook),
        }
    }

    /// The nft rule or policy that the experiment is about; `Some(None)` if it is about something else.
    #[allow(clippy::option_option, reason = "not known, and none")]
    fn rule(&mut self, experiment: &Experiment, net: u64) -> Option<Option<Truth>> {
        let (name, rule) = match experiment.by {
            Culprit::Legacy | Culprit::Program(_) => return Some(None),
            Culprit::Rule(chain, ordinal) | Culprit::Counted(chain, ordinal) => (chain, Some(ordinal)),
            Culprit::Policy(chain) => (chain, None),
        };
        let mut memory = self.tracer.memory().ok()?;
        if self.ruleset.is_none() {
            let layout = self.layouts.nft.as_mut()?;
            if !layout.learn_pointer(&mut memory, net, TABLE) {
                return None;
            }
            self.ruleset = Ruleset::read(&mut memory, layout, net);
        }
        let ruleset = self.ruleset.as_ref()?;
        let index = ruleset.chains.iter().position(|chain| chain.name == name)?;
        Some(Some(match rule {
            Some(ordinal) => Truth::Rule(ruleset.expressions_of(index, ordinal)?),
            None => Truth::Policy(ruleset.chains.get(index)?.address),
        }))
    }

    /// The index of the hook function that an experiment is dropped by.
    fn index(&self, experiment: &Experiment, net: u64) -> Option<u64> {
        let mut memory = self.tracer.memory().ok()?;
        let hooked = self.layouts.hooks?.hooked(&mut memory, net, Family::Ipv4, experiment.hook as u8);
        let index = match experiment.by {
            Culprit::Legacy => {
                let [table] = LegacyTable::addresses(&self.layouts.legacy?, &hooked)[..] else { return None };
                hooked.iter().position(|it| it.private == table)?
            }
            Culprit::Program(index) => {
                // The one that drops has left again; those before it are one function.
                let is_run = |run: &[Hooked]| run.iter().all(|it| it.function == run[0].function);
                hooked.windows(usize::from(PASSING)).position(is_run)? + usize::from(index)
            }
            Culprit::Rule(..) | Culprit::Counted(..) | Culprit::Policy(_) => {
                let name = match (experiment.by, experiment.hook) {
                    (Culprit::Counted(..), Hook::Input) => "counted",
                    (Culprit::Counted(..), _) => "counted-out",
                    (_, hook) => base_chain(hook),
                };
                let base = self.ruleset.as_ref()?.chains.iter().find(|chain| chain.name == name)?;
                hooked.iter().position(|it| it.private == base.address)?
            }
        };
        u64::try_from(index).ok()
    }

    fn learn(&mut self) -> Result<[Role; Role::COUNT], SelfTestError> {
        let observation = |it: &Dropped| {
            let (location, lesson) = (it.raw.key.location, it.raw.lesson.clone().unwrap_or_default());
            let at = it.raw.stack.iter().position(|frame| *frame == location);
            Observation {
                location,
                caller: at.and_then(|at| it.raw.stack.get(at + 1).copied()),
                window: lesson.window,
                below: lesson.below,
                leads: lesson.leads,
                hook: it.experiment.hook as u8,
                entries: it.entries,
                truth: it.truth.clone(),
            }
        };
        let observations: Vec<Vec<_>> =
            self.depths.iter().map(|seen| seen.iter().map(observation).collect()).collect();
        let learned = roles::learn(&observations);
        if learned.is_empty()
            && self.depths.iter().flatten().any(|it| !matches!(it.experiment.by, Culprit::Legacy))
        {
            return Err(SelfTestError::NotLearned);
        }
        // Where others look at dropped packets already, the stack was as deep without our second program. When they go it
        // must stay so: the other depth can't be learned now. And on some kernels (6.1) only the loop that calls several
        // programs saves the register that leads to the hook's state.
        let needs_second = learned.iter().any(|role| {
            let [near, far] = role.depths;
            let has_state = |depth: Depth| depth.state_path != state_path::NONE;
            far.return_word == 0 || !has_state(near) && has_state(far)
        });
        if needs_second {
            self.tracer.keep_second()?;
        }
        let mut all = [Role::default(); Role::COUNT];
        for (to, role) in all.iter_mut().zip(learned) {
            *to = role;
        }
        Ok(all)
    }

    /// Proves everything in so many rounds; says what counters are worth.
    fn prove_all(
        &mut self,
        experiments: &[Experiment],
        rounds: u32,
        proof: &mut Proof,
    ) -> Result<NftCounters, SelfTestError> {
        let mut counters = self.watch()?;
        for _ in 0..rounds {
            self.prove(experiments, proof)?;
            if counters == NftCounters::Proven && !self.prove_counted(proof)? {
                counters = NftCounters::Off("the self-test's rules were not told by their counters");
            }
        }
        Ok(counters)
    }

    /// Has the programs compare the counters of the lab's rules, where the stack doesn't tell them: where nf_hook_slow freed
    /// what they dropped.
    fn watch(&mut self) -> Result<NftCounters, SelfTestError> {
        let is_needed = |it: &&Dropped| {
            matches!(it.experiment.by, Culprit::Rule(..))
                && self.layouts.nf_hook_slow.has_return(it.raw.key.location)
        };
        let Some(seen) = self.depths.iter().flatten().find(is_needed) else {
            return Ok(NftCounters::NotNeeded);
        };
        let netns = NetnsId {
            address: seen.raw.net,
            inode: self.lab.inode(),
            cookie: seen.raw.netns_cookie.unwrap_or(0),
        };
        if !self.lab.backends().nft_counter {
            return Ok(NftCounters::Off("no rule has a counter"));
        }
        let undescribed = NftCounters::Off("this kernel doesn't describe its counters");
        let (Some(layout), Some(hooks)) = (self.layouts.nft, self.layouts.hooks) else {
            return Ok(undescribed);
        };
        if layout.counters.is_none() {
            return Ok(undescribed);
        }
        if self.lab.load_nft(&counted_table()).is_err() {
            return Ok(NftCounters::Off("the kernel refused the self-test's rules that count"));
        }
        let mut memory = self.tracer.memory()?;
        self.ruleset = Ruleset::read(&mut memory, &layout, netns.address);
        let counted = self
            .ruleset
            .as_ref()
            .and_then(|ruleset| Counted::read(&mut memory, &layout, &hooks, netns.address, ruleset));
        if counted.is_none() {
            return Ok(undescribed);
        }
        let plan = plan(vec![Seen { netns, nft: counted, ..Seen::default() }], self.tracer.chunks());
        self.tracer.watch(COUNTED_VERSION, &plan)?;
        self.plan = Some(plan);
        Ok(NftCounters::Proven)
    }

    /// Drops what rules that count are to drop, at both depths. False if a counter told another rule, or none told any.
    fn prove_counted(&mut self, proof: &mut Proof) -> Result<bool, SelfTestError> {
        let hooks = self.layouts.hooks;
        let mut drops = drop_all(self.tracer, self.lab, hooks, &COUNTED, self.other)?;
        let (lab, other) = (&*self.lab, &mut *self.other);
        drops.extend(self.tracer.with_second(|tracer| drop_all(tracer, lab, hooks, &COUNTED, other))?);
        let mut told = 0;
        for (experiment, raw, _) in &drops {
            let [number, word] = raw.key.attribution;
            let truth = self.rule(experiment, raw.net).flatten();
            let index = index_of(word).map(u64::from);
            let is_index = index.is_none() || index == self.index(experiment, raw.net);
            if kind_of(word) != attribution_kind::COUNTED {
                continue;
            }
            let is_rule = word as u32 == COUNTED_VERSION
                && match (self.plan.as_ref().and_then(|plan| plan.rule(number)), truth) {
                    (Some(Told::Nft(.., (_, dropper))), Some(Truth::Rule(expressions))) => {
                        expressions.contains(&dropper.address)
                    }
                    _ => false,
                };
            if !is_rule || !is_index {
                return Ok(false);
            }
            told += 1;
        }
        proof.drops += drops.len() as u64;
        proof.told += told;
        Ok(told > 0)
    }

    /// Drops everything again, at both depths: what the programs say now must be true, or nothing.
    fn prove(&mut self, experiments: &[Experiment], proof: &mut Proof) -> Result<(), SelfTestError> {
        let hooks = self.layouts.hooks;
        let mut drops = drop_all(self.tracer, self.lab, hooks, experiments, self.other)?;
        let (lab, other) = (&*self.lab, &mut *self.other);
        drops.extend(self.tracer.with_second(|tracer| drop_all(tracer, lab, hooks, experiments, other))?);
        let sequence = self.ruleset.as_ref().map(|ruleset| ruleset.sequence);
        for (experiment, raw, in_force) in drops {
            let [address, word] = raw.key.attribution;
            let (kind, index) = (kind_of(word), index_of(word));
            let is_current = Some(word as u32) == sequence;
            // What is told must be true: the index, the function there, and the rule or policy.
            let is_index = match index {
                Some(index) => self.index(&experiment, raw.net) == Some(index.into()),
                None => true,
            };
            let is_function = match (raw.hooked, index) {
                (Some([function, private]), Some(index)) => {
                    in_force.functions.get(usize::from(index)) == Some(&Hooked { function, private })
                }
                (Some(_), None) => false,
                (None, _) => true,
            };
            let is_rule = match (kind, self.rule(&experiment, raw.net).flatten()) {
                (attribution_kind::NFT_RULE, Some(Truth::Rule(expressions))) => {
                    expressions.contains(&address) && is_current
                }
                (attribution_kind::NFT_POLICY, Some(Truth::Policy(chain))) => address == chain && is_current,
                (attribution_kind::NFT_RULE | attribution_kind::NFT_POLICY, _) => false,
                _ => true,
            };
            let has_rule = matches!(kind, attribution_kind::NFT_RULE | attribution_kind::NFT_POLICY);
            let (is_told, is_right) = (has_rule || index.is_some(), is_index && is_function && is_rule);
            let is_right_hook = hook_of(word).is_none_or(|hook| hook == (FAMILY, experiment.hook as u8));
            if !is_right || !is_right_hook {
                return Err(SelfTestError::Disproved { to: experiment.to });
            }
            proof.drops += 1;
            proof.told += u64::from(is_told);
        }
        Ok(())
    }
}

/// Makes the experiments: a packet and an event of each, and what was on its hook then.
fn drop_all(
    tracer: &mut Tracer,
    lab: &Lab,
    hooks: Option<HookLayout>,
    experiments: &[Experiment],
    other: &mut dyn FnMut(Raw),
) -> Result<Vec<(Experiment, Raw, InForce)>, SelfTestError> {
    // What earlier packets left behind is not this round's.
    while let Some(item) = tracer.ring().next() {
        if let Ok(raw) = decode::decode(&item)
            && raw.key.netns != lab.inode()
        {
            other(raw);
        }
    }
    let (mut seen, mut by_rules) = (Vec::new(), Vec::new());
    for experiment in experiments {
        if let Culprit::Program(index) = experiment.by {
            let _link = lab.attach(experiment.hook, &[(Verdict::Drop, priority(index) - 1)])?;
            let drops = send_all(tracer, lab, &[*experiment], other)?;
            seen.extend(with_functions(tracer, hooks, drops));
        } else {
            by_rules.push(*experiment);
        }
    }
    let drops = send_all(tracer, lab, &by_rules, other)?;
    seen.extend(with_functions(tracer, hooks, drops));
    Ok(seen)
}

/// Adds what is on their hooks now.
fn with_functions(
    tracer: &Tracer,
    hooks: Option<HookLayout>,
    drops: Vec<(Experiment, Raw)>,
) -> Vec<(Experiment, Raw, InForce)> {
    let in_force = |experiment: &Experiment, net| {
        let (hooks, mut memory) = (hooks?, tracer.memory().ok()?);
        let hook = experiment.hook as u8;
        let entries = hooks.entries(&mut memory, net, Family::Ipv4, hook);
        Some(InForce { entries, functions: hooks.hooked(&mut memory, net, Family::Ipv4, hook) })
    };
    let add = |(experiment, raw): (Experiment, Raw)| {
        let in_force = in_force(&experiment, raw.net).unwrap_or_default();
        (experiment, raw, in_force)
    };
    drops.into_iter().map(add).collect()
}

/// Sends the packet of each and waits for their events.
fn send_all(
    tracer: &mut Tracer,
    lab: &Lab,
    experiments: &[Experiment],
    other: &mut dyn FnMut(Raw),
) -> Result<Vec<(Experiment, Raw)>, SelfTestError> {
    for experiment in experiments {
        lab.send(experiment.to, PORT)?;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut seen: Vec<(Experiment, Raw)> = Vec::new();
    while seen.len() < experiments.len() {
        let Some(raw) = tracer.ring().next().and_then(|item| decode::decode(&item).ok()) else {
            if Instant::now() > deadline {
                let (sent, missing) = (experiments.len(), experiments.len() - seen.len());
                return Err(SelfTestError::Unseen { missing, sent });
            }
            std::thread::sleep(Duration::from_micros(200));
            continue;
        };
        if raw.key.netns != lab.inode() {
            other(raw);
            continue;
        }
        let destination = std::net::Ipv6Addr::from(raw.key.destination).to_ipv4_mapped();
        let experiment = experiments.iter().find(|experiment| Some(experiment.to) == destination);
        if let Some(experiment) = experiment
            && !seen.iter().any(|(known, _)| known.to == experiment.to)
        {
            seen.push((*experiment, raw));
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The experiments speak of rules that are there, and that say so.
    #[test]
    fn the_rules_give_the_answers() {
        let table = nft_table();
        let chain = |name: &str| table.chains.iter().find(|it| it.name == name).unwrap();
        let is_on = |name, hook| chain(name).base.is_none_or(|base| base.hook == hook);
        for Experiment { to, hook, by } in NFT {
            match by {
                Culprit::Rule(name, ordinal) => {
                    let rule = &chain(name).rules[ordinal - 1];
                    assert_eq!((rule.destination, &rule.verdict), (Some(to), &nft::Verdict::Drop), "{to}");
                    assert!(is_on(name, hook), "{to}");
                }
                Culprit::Policy(name) => {
                    assert_eq!(chain(name).base.unwrap().policy, lab::Policy::Drop, "{to}");
                    assert!(is_on(name, hook), "{to}");
                }
                _ => panic!("not one of these"),
            }
        }
        let counted = counted_table();
        for Experiment { to, hook, by } in COUNTED {
            let Culprit::Counted(name, ordinal) = by else { panic!("not one of these") };
            let chain = counted.chains.iter().find(|it| it.name == name).unwrap();
            let rule = &chain.rules[ordinal - 1];
            assert_eq!((rule.destination, &rule.verdict), (Some(to), &nft::Verdict::Drop), "{to}");
            assert!(rule.is_counted && chain.base.is_none_or(|base| base.hook == hook), "{to}");
        }
        for Experiment { to, hook, by } in LEGACY {
            assert!(matches!(by, Culprit::Legacy), "one of legacy's");
            let table = legacy_table();
            assert_eq!(if hook == INPUT { table.input } else { table.output }, [to]);
            // All that it passes before lets it through.
            let passes = |name| {
                chain(name)
                    .rules
                    .iter()
                    .any(|it| it.destination == Some(to) && it.verdict == nft::Verdict::Accept)
            };
            assert!(passes("out") && (hook == OUTPUT || passes("in")));
        }
    }
}
