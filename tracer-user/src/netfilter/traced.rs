//! Which of nft's rules a followed packet met, out of what the kernel told while it met them: handles of tables, chains and rules
//! become their names and numbers. A handle never becomes another's, so whatever rule set has it says what it was.
//!
//! That the kernel told of all of them is checked: each must follow from the one before.

use super::evaluate::matched;
use super::model::{Backend, Confidence, Family, Netfilter};
use super::nft::{Chain, NftLayout, Ruleset, Table};
use crate::trace::model::{Met, RuleMet};
use tracer_common::{NftStep, trace_type};

/// How rules are known that the kernel told of.
pub const METHOD: &str = "probe";

/// Where rules are missing.
const MISSING: &str = "the kernel did not show every rule that it met there";
/// Where nothing has the handles.
const REPLACED: &str = "rules that it met were replaced before they could be read";

/// What nft told of a packet on a hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// In order.
    pub passes: Vec<Pass>,
    /// Why these are not all.
    pub unsure: Option<String>,
}

/// A packet's way through a base chain and the chains behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// Its handle.
    pub table_handle: u64,
    /// The base chain's priority.
    pub priority: i32,
    /// True if `iptables-nft` and its sisters keep the table.
    pub is_iptables: bool,
    /// What it met. The mark that it had as it came to the first is not known here.
    pub rules: Vec<RuleMet>,
    /// skb->mark behind the last.
    pub mark: u32,
    /// It went no further: dropped, queued for a program, or taken away.
    pub is_end: bool,
}

/// NF_* (include/uapi/linux/netfilter.h): a verdict's lowest byte.
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const STOLEN: i32 = 2;
const QUEUE: i32 = 3;
/// NFT_* (include/uapi/linux/netfilter/nf_tables.h).
const CONTINUE: i32 = -1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// What of a chain it met.
enum What {
    /// A rule, by its handle.
    Rule(u64),
    /// The end of its rules.
    End,
    Policy,
}

fn what(step: &NftStep, layout: &NftLayout) -> What {
    match (step.kind, step.verdict, layout.handle_in(step.rule)) {
        (trace_type::POLICY, ..) => What::Policy,
        // Before 6.5 the rule is no end marker then, but any (nf_trace_fill_rule_info(), net/netfilter/nf_tables_trace.c).
        (trace_type::RETURN, CONTINUE, _) | (.., None) => What::End,
        (.., Some(handle)) => What::Rule(handle),
    }
}

/// A chain in a rule set.
#[derive(Clone, Copy)]
struct Place<'r> {
    table: &'r Table,
    chain: &'r Chain,
}

impl Place<'_> {
    /// What it met there; `number` is the rule's, or one more than the last rule has.
    fn met(&self, kind: Met, number: u32, handle: Option<u64>, verdict: String) -> RuleMet {
        RuleMet {
            backend: Backend::Nft,
            family: self.table.family,
            table: self.table.name.clone(),
            chain: self.chain.name.clone(),
            kind,
            rule: self.table.is_iptables.then_some(number),
            handle,
            verdict,
            text: None,
            mark: None,
            confidence: Confidence::Exact,
            method: METHOD,
        }
    }

    /// One more than the last rule has.
    fn after_last(&self) -> u32 {
        let rules = self.chain.rules.first().map_or(0, Vec::len);
        u32::try_from(rules).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// A rule's number, from 1.
    fn number(&self, handle: u64) -> Option<u32> {
        let position =
            self.chain.rules.iter().find_map(|rules| rules.iter().position(|rule| rule.handle == handle));
        u32::try_from(position?).ok()?.checked_add(1)
    }
}

/// Rule sets of a network namespace, the newest first.
#[derive(Clone, Copy)]
struct Known<'r>(&'r [&'r Ruleset]);

impl<'r> Known<'r> {
    /// The chains of a table, in every rule set that has it.
    fn chains(self, table: u64) -> impl Iterator<Item = Place<'r>> {
        self.0.iter().flat_map(move |ruleset| {
            let of = |chain: &'r Chain| Some(Place { table: ruleset.table_of(chain)?, chain });
            ruleset.chains.iter().filter_map(of).filter(move |place| place.table.handle == table)
        })
    }

    fn chain(self, table: u64, chain: u64) -> Option<Place<'r>> {
        self.chains(table).find(|place| place.chain.handle == chain)
    }

    /// A rule and its number; it is looked for in `chain` first.
    fn rule(self, table: u64, chain: u64, handle: u64) -> Option<(Place<'r>, u32)> {
        let of = |place: Place<'r>| Some((place, place.number(handle)?));
        let likely = self.chains(table).filter(|place| place.chain.handle == chain).find_map(of);
        likely.or_else(|| self.chains(table).find_map(of))
    }
}

/// What the records of a packet on a hook say, in the order in which they came. `rulesets` are those of the hook's network
/// namespace, the newest first.
#[must_use]
pub fn told(steps: &[NftStep], layout: &NftLayout, rulesets: &[&Ruleset]) -> Told {
    let mut way = Way { known: Known(rulesets), told: Told::default(), open: None };
    for step in steps {
        way.take(step, &what(step, layout));
    }
    if way.open.is_some() {
        way.lacks(MISSING);
    }
    way.told
}

/// Of a pass that is not over: where it is. Chains are told by their handles.
struct Open {
    table: u64,
    base_chain: u64,
    /// The chain that it is in, and the number of the last rule that it met there. `None`: behind the base chain's end.
    at: Option<(u64, u32)>,
    /// Who jumped there.
    callers: Vec<(u64, u32)>,
}

impl Open {
    fn goes_back(&mut self) {
        self.at = self.callers.pop();
    }
}

struct Way<'r> {
    known: Known<'r>,
    told: Told,
    /// The last pass, if it is not over.
    open: Option<Open>,
}

impl Way<'_> {
    fn lacks(&mut self, why: &str) {
        self.told.unsure.get_or_insert_with(|| why.to_owned());
    }

    fn take(&mut self, step: &NftStep, what: &What) {
        let Some(base) = self.known.chain(step.table, step.base_chain) else {
            self.open = None;
            return self.lacks(REPLACED);
        };
        let is_same = |open: &Open| (open.table, open.base_chain) == (step.table, step.base_chain);
        let mut open = match self.open.take() {
            Some(open) if is_same(&open) => open,
            other => {
                if other.is_some() {
                    self.lacks(MISSING);
                }
                self.told.passes.push(Pass {
                    family: base.table.family,
                    table: base.table.name.clone(),
                    table_handle: step.table,
                    priority: base.chain.base.map_or(0, |base| base.priority),
                    is_iptables: base.table.is_iptables,
                    rules: Vec::new(),
                    mark: step.mark,
                    is_end: false,
                });
                let (table, base_chain) = (step.table, step.base_chain);
                Open { table, base_chain, at: Some((base_chain, 0)), callers: Vec::new() }
            }
        };
        let is_over = match what {
            What::Rule(handle) => self.rule(step, *handle, &mut open),
            What::End => {
                self.end(step, &mut open);
                false
            }
            What::Policy => {
                if open.at.is_some() {
                    self.lacks(MISSING);
                }
                let verdict = verdict(step.verdict, None);
                self.push(base.met(Met::Policy, base.after_last(), None, verdict));
                true
            }
        };
        if let Some(pass) = self.told.passes.last_mut() {
            pass.mark = step.mark;
            pass.is_end = is_over && step.verdict & 0xff != ACCEPT;
        }
        self.open = (!is_over).then_some(open);
    }

    /// A rule; true if its verdict ends the pass.
    fn rule(&mut self, step: &NftStep, handle: u64, open: &mut Open) -> bool {
        let likely = if step.chain != 0 { step.chain } else { open.at.map_or(0, |(chain, _)| chain) };
        match self.known.rule(step.table, likely, handle) {
            Some((place, number)) => {
                let chain = place.chain.handle;
                if !open.at.is_some_and(|(at, last)| at == chain && last < number) {
                    self.lacks(MISSING);
                }
                open.at = Some((chain, number));
                let target = match step.target {
                    0 => None,
                    target => self.known.chain(step.table, target).map(|place| place.chain.name.as_str()),
                };
                let verdict = verdict(step.verdict, target);
                self.push(place.met(Met::Rule, number, Some(handle), verdict));
            }
            None => self.lacks(REPLACED),
        }
        match step.verdict {
            JUMP => {
                open.callers.extend(open.at);
                open.at = Some((step.target, 0));
            }
            GOTO => open.at = Some((step.target, 0)),
            RETURN => open.goes_back(),
            _ => {}
        }
        step.verdict >= 0
    }

    /// The end of a chain. That the base chain has come to its end its policy says.
    fn end(&mut self, step: &NftStep, open: &mut Open) {
        if open.at.is_none_or(|(at, _)| at != step.chain) {
            self.lacks(MISSING);
        }
        open.goes_back();
        if step.chain == step.base_chain {
            return;
        }
        match self.known.chain(step.table, step.chain) {
            Some(place) => {
                self.push(place.met(Met::Return, place.after_last(), None, "return".to_owned()));
            }
            None => self.lacks(REPLACED),
        }
    }

    fn push(&mut self, met: RuleMet) {
        if let Some(pass) = self.told.passes.last_mut() {
            // It came with the mark that it had behind what it met before.
            let mark = (!pass.rules.is_empty()).then_some(pass.mark);
            pass.rules.push(RuleMet { mark, ..met });
        }
    }
}

/// The rule as an answer for a drop names it: so its text is found.
pub(super) fn as_answer(rule: &RuleMet) -> Netfilter {
    Netfilter {
        backend: Some(rule.backend),
        family: Some(rule.family),
        table: Some(rule.table.clone()),
        chain: Some(rule.chain.clone()),
        rule: rule.rule,
        handle: rule.handle,
        ..Netfilter::default()
    }
}

impl Pass {
    /// Adds the texts of its rules, as far as listings of a rule set have them. That of iptables says more of what a rule does than
    /// its verdict.
    pub(super) fn add_texts(&mut self, ruleset: &Ruleset, text: &mut dyn FnMut(&RuleMet) -> Option<String>) {
        for rule in &mut self.rules {
            if !is_listed(rule, self.table_handle, ruleset) {
                continue;
            }
            rule.text = text(rule);
            if let Some(text) = rule.text.as_deref().filter(|_| self.is_iptables) {
                rule.verdict = matched::verdict(text);
            }
        }
    }
}

/// Whether a listing of a rule set has a rule at its place.
fn is_listed(rule: &RuleMet, table: u64, ruleset: &Ruleset) -> bool {
    Known(&[ruleset]).chains(table).filter(|place| place.chain.name == rule.chain).any(|place| {
        let rules = place.chain.rules.first().map(Vec::as_slice).unwrap_or_default();
        let position = rules.iter().position(|listed| Some(listed.handle) == rule.handle);
        let number = position.and_then(|position| u32::try_from(position + 1).ok());
        number.is_some() && (rule.rule.is_none() || rule.rule == number)
    })
}

/// As in [`RuleMet::verdict`].
fn verdict(code: i32, target: Option<&str>) -> String {
    let target = target.unwrap_or("?");
    match code {
        CONTINUE => "continue".to_owned(),
        JUMP => format!("jump {target}"),
        GOTO => format!("goto {target}"),
        RETURN => "return".to_owned(),
        // An error number or the number of a queue may be above.
        0.. if code & 0xff == DROP => "drop".to_owned(),
        0.. if code & 0xff == ACCEPT => "accept".to_owned(),
        0.. if code & 0xff == STOLEN => "stolen".to_owned(),
        0.. if code & 0xff == QUEUE => "queue".to_owned(),
        other => format!("verdict {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::nft::tests::{chain, header, with_blobs};
    use super::super::nft::{Base, Rule};
    use super::*;

    const TABLE: u64 = 50;
    /// Chains by their handles.
    const BASE: u64 = 1;
    const PODS: u64 = 2;
    const LAST: u64 = 3;

    fn ruleset(is_iptables: bool) -> Ruleset {
        let with = |name: &str, handle: u64, rules: &[u64]| {
            let rules = rules.iter().map(|handle| Rule { handle: *handle, offset: 0, length: 0 }).collect();
            let base = (handle == BASE).then_some(Base { hook: 2, priority: -7, drops: true });
            Chain { base, handle, rules: [rules, Vec::new()], ..chain(name, false) }
        };
        let table = Table { family: Family::Ipv4, name: "filter".into(), handle: TABLE, is_iptables };
        let chains = vec![
            with("FORWARD", BASE, &[10, 11, 12]),
            with("PODS", PODS, &[20, 21]),
            with("LAST", LAST, &[30]),
        ];
        Ruleset { tables: vec![table], chains, ..Ruleset::default() }
    }

    /// What a newer kernel tells: the chain only where its rules end.
    fn step(kind: u32, verdict: i32, rule: Option<u64>, chain: u64) -> NftStep {
        let rule = rule.map_or(header(true, 0, 0), |handle| header(false, 8, handle));
        let mark = verdict.unsigned_abs();
        NftStep {
            table: TABLE,
            base_chain: BASE,
            kind,
            verdict,
            chain,
            rule: u64::from_le_bytes(rule),
            mark,
            ..NftStep::default()
        }
    }

    fn rule(handle: u64, verdict: i32) -> NftStep {
        step(trace_type::RULE, verdict, Some(handle), 0)
    }

    fn to(handle: u64, verdict: i32, target: u64) -> NftStep {
        NftStep { target, ..rule(handle, verdict) }
    }

    fn end(chain: u64) -> NftStep {
        step(trace_type::RULE, CONTINUE, None, chain)
    }

    fn policy(verdict: i32) -> NftStep {
        step(trace_type::POLICY, verdict, None, BASE)
    }

    /// The rules in short, and why they are not all.
    fn short(steps: &[NftStep], rulesets: &[&Ruleset]) -> (Vec<String>, Option<String>) {
        let Told { passes, unsure } = told(steps, &with_blobs(), rulesets);
        let rules = passes.iter().flat_map(|pass| &pass.rules).map(|it| {
            let what = match it.kind {
                Met::Rule => it.handle.unwrap().to_string(),
                Met::Return => "end".to_owned(),
                Met::Policy => "policy".to_owned(),
            };
            let number = it.rule.map(|number| format!(":{number}")).unwrap_or_default();
            format!("{}:{what}{number} {}", it.chain, it.verdict)
        });
        (rules.collect(), unsure)
    }

    #[test]
    fn chains_follow_from_jumps_and_ends() {
        let steps = [
            rule(10, CONTINUE),
            to(11, JUMP, PODS),
            rule(20, CONTINUE),
            to(21, GOTO, LAST),
            end(LAST),
            rule(12, RETURN),
            policy(DROP),
        ];
        let wanted = [
            "FORWARD:10:1 continue",
            "FORWARD:11:2 jump PODS",
            "PODS:20:1 continue",
            "PODS:21:2 goto LAST",
            "LAST:end:2 return",
            "FORWARD:12:3 return",
            "FORWARD:policy:4 drop",
        ];
        assert_eq!(short(&steps, &[&ruleset(true)]), (wanted.map(str::to_owned).to_vec(), None));
        // Rules of nft's own have no numbers.
        let (native, unsure) = short(&steps, &[&ruleset(false)]);
        assert_eq!((native[0].as_str(), native[6].as_str()), ("FORWARD:10 continue", "FORWARD:policy drop"));
        assert_eq!(unsure, None);
    }

    #[test]
    fn as_older_kernels_tell_it() {
        let old = |mut step: NftStep, chain| {
            step.chain = chain;
            if matches!(step.verdict, CONTINUE | RETURN) && step.kind == trace_type::RULE {
                step.kind = trace_type::RETURN;
            }
            step
        };
        // At a chain's end the rule is any.
        let end = |chain| old(rule(99, CONTINUE), chain);
        let steps = [to(10, JUMP, PODS), old(rule(20, RETURN), PODS), end(BASE), policy(ACCEPT)];
        let (rules, unsure) = short(&steps, &[&ruleset(false)]);
        let wanted = ["FORWARD:10 jump PODS", "PODS:20 return", "FORWARD:policy accept"];
        assert_eq!((rules, unsure), (wanted.map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn each_pass_by_itself() {
        let steps = [rule(10, ACCEPT), end(BASE), policy(ACCEPT), rule(12, 7 << 16 | QUEUE)];
        let Told { passes, unsure } = told(&steps, &with_blobs(), &[&ruleset(false)]);
        assert_eq!(unsure, None);
        let told: Vec<_> = passes.iter().map(|pass| (pass.rules.len(), pass.mark, pass.is_end)).collect();
        assert_eq!(told, [(1, 1, false), (1, 1, false), (1, 7 << 16 | 3, true)]);
        assert!(passes.iter().all(|pass| (pass.priority, pass.table.as_str()) == (-7, "filter")));
    }

    #[test]
    fn a_rule_has_the_mark_that_was_there_behind_the_one_before() {
        let steps = [rule(10, CONTINUE), to(11, JUMP, PODS), end(PODS), end(BASE), policy(DROP)];
        let told = told(&steps, &with_blobs(), &[&ruleset(false)]);
        let marks: Vec<_> = told.passes[0].rules.iter().map(|rule| rule.mark).collect();
        assert_eq!(marks, [None, Some(1), Some(3), Some(1)]);
    }

    #[test]
    fn what_is_missing_is_said() {
        let all = [rule(10, CONTINUE), to(11, JUMP, PODS), rule(20, CONTINUE), end(PODS), end(BASE)];
        let all = [all.as_slice(), &[policy(ACCEPT)]].concat();
        let ruleset = ruleset(false);
        assert_eq!(short(&all, &[&ruleset]).1, None);
        // But for what leaves no trace: a rule that only lets it go on.
        for index in [1, 3, 4, 5] {
            let mut some = all.clone();
            some.remove(index);
            let (rules, unsure) = short(&some, &[&ruleset]);
            assert_eq!(unsure.as_deref(), Some(MISSING), "without {index}: {rules:?}");
            assert!(!rules.iter().any(|rule| rule.starts_with("FORWARD:20")), "{rules:?}");
        }
        // Back in a chain.
        assert_eq!(short(&[rule(11, CONTINUE), rule(10, ACCEPT)], &[&ruleset]).1.as_deref(), Some(MISSING));
        assert_eq!(short(&[], &[&ruleset]), (Vec::new(), None));
    }

    #[test]
    fn rule_sets_that_have_no_such_handles() {
        let new =
            Ruleset { tables: vec![Table { handle: 51, ..table_of(&ruleset(false)) }], ..ruleset(false) };
        let steps = [rule(10, CONTINUE), rule(12, ACCEPT)];
        let (rules, unsure) = short(&steps, &[&new]);
        assert_eq!((rules.len(), unsure.as_deref()), (0, Some(REPLACED)));
        // An older one has them still.
        assert_eq!(short(&steps, &[&new, &ruleset(false)]).1, None);
        let (rules, unsure) = short(&[rule(77, CONTINUE), rule(12, ACCEPT)], &[&ruleset(false)]);
        assert_eq!((rules.len(), unsure.as_deref()), (1, Some(REPLACED)));
    }

    fn table_of(ruleset: &Ruleset) -> Table {
        let Table { family, name, handle, is_iptables } = &ruleset.tables[0];
        Table { family: *family, name: name.clone(), handle: *handle, is_iptables: *is_iptables }
    }

    #[test]
    fn texts_are_those_of_listed_rules() {
        let (mut old, new) = (ruleset(true), ruleset(true));
        old.chains[0].rules[0].insert(0, Rule { handle: 9, offset: 0, length: 0 });
        let steps = [rule(9, CONTINUE), rule(12, ACCEPT)];
        let mut told = told(&steps, &with_blobs(), &[&new, &old]);
        let text = |rule: &RuleMet| Some(format!("-A FORWARD -m comment --comment {} -j MARK", rule.rule?));
        told.passes[0].add_texts(&new, &mut { text });
        let rules = &told.passes[0].rules;
        // Number 1 is another rule in the listing.
        assert_eq!((&rules[0].text, rules[0].verdict.as_str()), (&None, "continue"));
        assert_eq!(rules[1].text.as_deref(), Some("-A FORWARD -m comment --comment 3 -j MARK"));
        assert_eq!(rules[1].verdict, "target mark");
    }
}
