//! Comparing answers with what the rules' counters say. Pure: lines in, shares and faults out.

use crate::bed::backend::Backend;
use crate::bed::record::Record;
use crate::scenarios::answer::{Blame, Place, is_exact};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::fmt;

/// Faults kept for the message.
const KEPT: usize = 12;
/// The least share of exact answers, in thousandths, where exactness is expected.
const ENOUGH: u64 = 995;

/// What answers are worth, summed over drops.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    /// Drops by rules that droptrace told of.
    pub(super) told: u64,
    pub(super) exact: u64,
    /// Exact about the place, without hook or verdict.
    incomplete: u64,
    inferred: u64,
    ambiguous: u64,
    /// Without an answer, by the reason that can be seen.
    none: BTreeMap<String, u64>,
    /// Wrong exact answers, and sums that cannot be.
    faults: Vec<String>,
    fault_count: usize,
    /// Single packets of which no line was found.
    untold: u64,
}

impl Shares {
    /// Sorts a line by its confidence.
    pub(super) fn add(&mut self, record: &Record) {
        let count = record.count();
        self.told += count;
        let confidence = record.text("/drop/netfilter/confidence");
        match confidence {
            Some("exact") => self.exact += count,
            Some("inferred") => self.inferred += count,
            // What is ambiguous without a table is no answer.
            Some("ambiguous") if record.text("/drop/netfilter/table").is_some() => self.ambiguous += count,
            _ => {
                let kind = if record.get("/detail") == true { "an event" } else { "a line of counts" };
                let key = format!("{kind} at {}", record.function());
                *self.none.entry(key).or_default() += count;
            }
        }
    }

    /// Compares an exact answer with what is to blame.
    fn compare(&mut self, record: &Record, blame: &Blame) {
        let netfilter = record.get("/drop/netfilter");
        if let Err(fault) = blame.verdict_on(netfilter, false) {
            self.fault(format!("{fault}: {}", record.brief()));
        } else if is_exact(netfilter) && !blame.gaps(netfilter).is_empty() {
            self.exact -= record.count();
            self.incomplete += record.count();
        }
    }

    /// Notes a wrong answer.
    pub(super) fn fault(&mut self, fault: impl Into<String>) {
        self.fault_count += 1;
        if self.faults.len() < KEPT {
            self.faults.push(fault.into());
        }
    }

    /// Adds those of another run.
    pub(super) fn join(&mut self, other: Self) {
        self.told += other.told;
        self.exact += other.exact;
        self.incomplete += other.incomplete;
        self.inferred += other.inferred;
        self.ambiguous += other.ambiguous;
        for (key, count) in other.none {
            *self.none.entry(key).or_default() += count;
        }
        self.untold += other.untold;
        self.fault_count += other.fault_count;
        self.faults.extend(other.faults);
        self.faults.truncate(KEPT);
    }

    /// Fails on any wrong exact answer; and on too few exact answers, where they are demanded.
    pub(super) fn verdict(&self, demand_exact: bool) -> Result<()> {
        ensure!(self.fault_count == 0, "{} wrong:\n{}", self.fault_count, self.faults.join("\n"));
        ensure!(self.told > 0, "nothing was dropped");
        ensure!(!demand_exact || self.untold == 0, "{} single packets without a line: {self}", self.untold);
        ensure!(
            !demand_exact || self.exact * 1000 >= self.told * ENOUGH,
            "too few exact answers, {} of {} are needed: {self}",
            (self.told * ENOUGH).div_ceil(1000),
            self.told
        );
        Ok(())
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |count: u64| count as f64 * 100.0 / self.told.max(1) as f64;
        write!(
            f,
            "{} drops: exact {:.2} %, exact without hook or verdict {:.2} %, inferred {:.2} %, ambiguous {:.2} %",
            self.told,
            share(self.exact),
            share(self.incomplete),
            share(self.inferred),
            share(self.ambiguous)
        )?;
        if self.untold > 0 {
            write!(f, ", {} single packets without a line of their own", self.untold)?;
        }
        for (reason, count) in &self.none {
            write!(f, ", none for {reason} {:.2} %", share(*count))?;
        }
        Ok(())
    }
}

/// One packet's lines against what dropped it.
pub(super) fn judge_packet(records: &[&Record], blame: &Blame, shares: &mut Shares) {
    let told: u64 = records.iter().map(|record| record.count()).sum();
    if told == 0 {
        // Its drop is in the sums. Where no exact answer is asked for, its ports may not be known either.
        shares.untold += 1;
        return;
    }
    if told != 1 {
        return shares.fault(format!("one packet, told {told} times: {blame:?}"));
    }
    for record in records {
        shares.add(record);
        shares.compare(record, blame);
    }
}

/// Many packets' lines against what each rule counted; a rule that can drop and did not counts 0.
pub(super) fn judge_sums(backend: Backend, records: &[&Record], truth: &[(Blame, u64)], shares: &mut Shares) {
    let mut sums: BTreeMap<Place, u64> = BTreeMap::new();
    for record in records {
        shares.add(record);
        let netfilter = record.get("/drop/netfilter");
        if !is_exact(netfilter) {
            continue;
        }
        let place = Place::answered(backend, netfilter);
        match truth.iter().find(|(blame, _)| Some(&blame.place) == place.as_ref()) {
            None => shares.fault(format!("WRONG EXACT: nothing that drops is there: {netfilter}")),
            Some((blame, _)) => {
                shares.compare(record, blame);
                *sums.entry(blame.place.clone()).or_default() += record.count();
            }
        }
    }
    for (blame, counted) in truth {
        let told = sums.get(&blame.place).copied().unwrap_or(0);
        if told > *counted {
            shares.fault(format!(
                "WRONG EXACT: {told} drops told of {:?}, which counted {counted}",
                blame.place
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed::listing::Listed;
    use serde_json::{Value, json};

    fn blame(number: u64) -> Blame {
        let rule = Listed {
            family: "ip".into(),
            table: "filter".into(),
            chain: "INPUT".into(),
            number,
            handle: None,
            comment: None,
            packets: Some(1),
            text: String::new(),
        };
        Blame::rule(Backend::Legacy, &rule, "drop")
    }

    fn answer(number: u64, confidence: &str) -> Value {
        json!({"backend":"legacy","family":"ipv4","hook":"INPUT","table":"filter","chain":"INPUT",
               "rule":number,"handle":null,"text":null,"verdict":"drop","confidence":confidence})
    }

    fn line(count: u64, netfilter: impl Into<Value>) -> Record {
        let drop = json!({"location":"nf_hook_slow+0x1","netfilter":netfilter.into()});
        Record(json!({"type":"drop","count":count,"detail":true,"drop":drop}))
    }

    fn sums(lines: &[Record], truth: &[(Blame, u64)]) -> Shares {
        let mut shares = Shares::default();
        judge_sums(Backend::Legacy, &lines.iter().collect::<Vec<_>>(), truth, &mut shares);
        shares
    }

    #[test]
    fn right_sums_pass() {
        let lines = [line(3, answer(1, "exact")), line(2, answer(2, "exact")), line(4, answer(1, "exact"))];
        let shares = sums(&lines, &[(blame(1), 7), (blame(2), 2)]);
        assert!(shares.verdict(true).is_ok(), "{shares:?}");
    }

    #[test]
    fn a_drop_blamed_on_another_rule_is_caught() {
        let truth = [(blame(1), 7), (blame(2), 2)];
        // One drop of the first rule under the second's name, and one under a rule that drops nothing.
        for lines in [
            [line(6, answer(1, "exact")), line(3, answer(2, "exact"))],
            [line(7, answer(1, "exact")), line(2, answer(3, "exact"))],
        ] {
            let shares = sums(&lines, &truth);
            assert!(shares.verdict(false).is_err(), "{shares:?}");
        }
    }

    #[test]
    fn vague_answers_are_not_wrong_but_too_few_exact_ones_fail() {
        let lines = [line(990, answer(1, "exact")), line(10, answer(9, "ambiguous"))];
        let shares = sums(&lines, &[(blame(1), 1000)]);
        assert!(shares.verdict(false).is_ok() && shares.verdict(true).is_err());
        let shares = sums(&[line(996, answer(1, "exact")), line(4, Value::Null)], &[(blame(1), 1000)]);
        assert!(shares.verdict(true).is_ok());
        assert!(shares.to_string().contains("none for an event at nf_hook_slow 0.40 %"), "{shares}");
    }

    #[test]
    fn a_packets_falsified_answer_is_caught() {
        let judge = |record: Record| {
            let mut shares = Shares::default();
            judge_packet(&[&record], &blame(1), &mut shares);
            shares.verdict(false).is_ok()
        };
        assert!(judge(line(1, answer(1, "exact"))));
        assert!(judge(line(1, answer(2, "inferred"))));
        assert!(!judge(line(1, answer(2, "exact"))));
        assert!(!judge(line(2, answer(1, "exact"))));
        let mut policy = answer(1, "exact");
        policy["rule"] = Value::Null;
        policy["verdict"] = json!("policy");
        assert!(!judge(line(1, policy)));
    }

    #[test]
    fn an_answer_without_its_verdict_is_not_counted_as_exact() {
        let mut short = answer(1, "exact");
        short["verdict"] = Value::Null;
        let shares = sums(&[line(1, short)], &[(blame(1), 1)]);
        assert!(shares.verdict(false).is_ok() && shares.verdict(true).is_err());
    }

    #[test]
    fn joined_runs_keep_their_faults() {
        let mut all = sums(&[line(1, answer(1, "exact"))], &[(blame(1), 1)]);
        all.join(sums(&[line(1, answer(2, "exact"))], &[(blame(1), 1)]));
        assert!(all.verdict(false).is_err());
        assert_eq!((all.told, all.exact), (2, 2));
    }
}
