//! What the parts of a test run came to: counts read from their output, verdicts, the table at the end.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

/// The kernels that must have run the tests for a run with virtual machines to be complete.
const KERNELS_WANTED: usize = 3;

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What a failed part said of its failures is shown again below the table, as much of it as this.
const SAID_LINES: usize = 60;
const SAID_LINE: usize = 300;

/// What one part's output came to: its `test result:` lines, added up, and what must not be overlooked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    counts: Counts,
    lines: u64,
    /// What a guest's kernel died of.
    oops: Option<String>,
    /// Runs of tests that were repeated.
    repeated: u64,
    /// What was printed between `failures:` and the result, first lines only.
    said: Vec<String>,
    in_failures: bool,
}

impl Tally {
    /// Takes one line of output.
    pub(crate) fn watch(&mut self, line: &str) {
        if let Some(counts) = parse_result(line) {
            self.counts.add(counts);
            self.lines += 1;
            self.in_failures = false;
        } else if line.trim_end() == "failures:" {
            self.in_failures = true;
        } else if self.in_failures {
            let line = line.trim_end();
            if !line.is_empty() && self.said.len() < SAID_LINES {
                self.said.push(line.chars().take(SAID_LINE).collect());
            }
        } else if line.starts_with("AGAIN ") {
            self.repeated += 1;
        } else if let Some(oops) = line.trim_end().strip_prefix("guest's kernel: ") {
            self.oops = Some(oops.to_owned());
        }
    }
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, as libtest and libtest-mimic print it.
fn parse_result(line: &str) -> Option<Counts> {
    let (_verdict, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        numbers.split(';').find_map(|part| part.trim().strip_suffix(what)?.trim_end().parse::<u64>().ok())
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

/// Where a part's tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine.
    Here,
    /// On another kernel, in a virtual machine.
    Vm,
}

/// One part of the run: a row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    name: String,
    place: Place,
    counts: Counts,
    /// Whether its kernel booted and the tests there ran to their end.
    finished: bool,
    remark: String,
    /// What it said of its failures.
    said: Vec<String>,
    took: Duration,
}

impl Part {
    /// A part whose program ended, with its exit code; `None` when a signal ended it.
    ///
    /// The exit code and the counted lines must agree: a program that fails without a failed test, or succeeds
    /// without having said so, counts as one failure more.
    pub(crate) fn ended(name: &str, place: Place, code: Option<i32>, tally: &Tally, took: Duration) -> Self {
        let mut counts = tally.counts;
        let broken = match (place, code) {
            (Place::Vm, Some(77)) => {
                counts.skipped += 1;
                let remark = "SKIPPED: its kernel could not be fetched".to_owned();
                let said = Vec::new();
                return Self { name: name.to_owned(), place, counts, finished: false, remark, said, took };
            }
            (_, Some(0)) if tally.lines == 0 => Some("no test result was printed".to_owned()),
            (_, Some(0)) => None,
            (_, Some(1 | 101)) if counts.failed > 0 => None,
            (Place::Vm, Some(124)) => Some("timed out".to_owned()),
            (Place::Vm, Some(125)) => Some(match &tally.oops {
                Some(oops) => format!("the guest died: {oops}"),
                None => "the guest died".to_owned(),
            }),
            (_, Some(code)) => Some(format!("ended with exit code {code}")),
            (_, None) => Some("killed by a signal".to_owned()),
        };
        counts.failed += u64::from(broken.is_some());
        let mut remark = match &broken {
            Some(why) => format!("FAILED: {why}"),
            None if counts.failed > 0 => "FAILED".to_owned(),
            None => "ok".to_owned(),
        };
        if tally.repeated > 0 {
            write!(remark, "; {} REPEATED, see AGAIN above", tally.repeated).ok();
        }
        let said = tally.said.clone();
        Self { name: name.to_owned(), place, counts, finished: broken.is_none(), remark, said, took }
    }

    /// A part that could not be started.
    pub(crate) fn broken(name: &str, place: Place, why: &str, took: Duration) -> Self {
        let counts = Counts { failed: 1, ..Counts::default() };
        let remark = format!("FAILED: {why}");
        Self { name: name.to_owned(), place, counts, finished: false, remark, said: Vec::new(), took }
    }

    /// A part that was left out.
    pub(crate) fn skipped(name: &str, place: Place, why: &str) -> Self {
        let counts = Counts { skipped: 1, ..Counts::default() };
        let (remark, said) = (format!("SKIPPED: {why}"), Vec::new());
        Self { name: name.to_owned(), place, counts, finished: false, remark, said, took: Duration::ZERO }
    }
}

/// The whole run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) parts: Vec<Part>,
    /// `--no-vm` was given: few kernels are no fault.
    pub(crate) without_vms: bool,
}

impl Report {
    pub(crate) fn totals(&self) -> Counts {
        let mut totals = Counts::default();
        self.parts.iter().for_each(|part| totals.add(part.counts));
        totals
    }

    /// Why the run does not count, even if nothing failed.
    pub(crate) fn incomplete(&self) -> Option<String> {
        let totals = self.totals();
        if totals.passed + totals.failed == 0 {
            return Some("no test ran".to_owned());
        }
        let vms = self.parts.iter().filter(|part| part.place == Place::Vm);
        let finished = vms.filter(|part| part.finished).count();
        (!self.without_vms && finished < KERNELS_WANTED).then(|| {
            format!("{finished} kernels booted and ran the tests to their end, {KERNELS_WANTED} are wanted")
        })
    }

    /// Whether all is well.
    pub(crate) fn is_good(&self) -> bool {
        self.totals().failed == 0 && self.incomplete().is_none()
    }
}

impl fmt::Display for Report {
    /// What failed, the table, what makes the run incomplete, and as the last line the counts.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.parts.iter().filter(|part| !part.said.is_empty()) {
            writeln!(out, "failed in {}:", part.name)?;
            part.said.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        }
        let width = self.parts.iter().map(|part| part.name.chars().count()).max().unwrap_or(0).max(4);
        writeln!(out, "{:width$}  passed  failed  skipped    time  verdict", "part")?;
        for part in &self.parts {
            let Counts { passed, failed, skipped } = part.counts;
            let took = format!("{:.1}s", part.took.as_secs_f64());
            writeln!(
                out,
                "{:width$}  {passed:>6}  {failed:>6}  {skipped:>7}  {took:>6}  {}",
                part.name, part.remark
            )?;
        }
        if let Some(why) = self.incomplete() {
            writeln!(out, "INCOMPLETE: {why}")?;
        }
        write!(out, "{}", self.totals())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_dead_guest_says_what_of() {
        let told =
            |lines: &[&str]| Part::ended("vm", Place::Vm, Some(125), &tally(lines), Duration::ZERO).remark;
        assert_eq!(told(&["guest's kernel: BUG: x; at y\n"]), "FAILED: the guest died: BUG: x; at y");
        assert_eq!(told(&["the kernel: BUG"]), "FAILED: the guest died");
    }

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.watch(line));
        tally
    }

    #[test]
    fn what_failed_and_what_was_repeated_is_said_again() {
        let tally = tally(&[
            "AGAIN a::b: missed",
            "failures:",
            "",
            "---- a::c ----",
            &"x".repeat(400),
            "failures:",
            "    a::c",
            BAD,
            "after",
        ]);
        let report = Report {
            parts: vec![Part::ended("vm", Place::Vm, Some(101), &tally, SECOND)],
            without_vms: true,
        };
        let text = report.to_string();
        let wanted = format!("failed in vm:\n  ---- a::c ----\n  {}\n      a::c\npart", "x".repeat(300));
        assert!(text.starts_with(&wanted), "{text}");
        assert!(text.contains("  FAILED; 1 REPEATED, see AGAIN above\n"), "{text}");
    }

    fn vm(code: i32, lines: &[&str]) -> Part {
        Part::ended("vm", Place::Vm, Some(code), &tally(lines), SECOND)
    }

    fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts { passed, failed, skipped }
    }

    const GOOD: &str =
        "test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 1 filtered out; finished in 0.02s";
    const BAD: &str =
        "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2s\r";

    #[test]
    fn result_lines_are_added_up_and_others_are_not() {
        let noise = [
            "running 5 tests",
            "test a ... ok",
            "test result: nonsense",
            "it said test result: ok. 9 passed;",
        ];
        assert_eq!(tally(&noise), Tally::default());
        let both = tally(&[GOOD, noise[0], BAD]);
        assert_eq!((both.counts, both.lines), (counts(9, 1, 2), 2));
    }

    #[test]
    fn exit_codes_and_counts_must_agree() {
        assert_eq!(vm(0, &[GOOD]).counts, counts(5, 0, 2));
        assert_eq!(vm(1, &[BAD]).counts, counts(4, 1, 0));
        assert_eq!(vm(1, &[GOOD]).counts, counts(5, 1, 2), "failed without a failed test");
        assert_eq!(vm(0, &[]).counts, counts(0, 1, 0), "succeeded without a result");
        assert_eq!(vm(124, &[GOOD]).counts, counts(5, 1, 2));
        assert_eq!(vm(125, &[]).counts, counts(0, 1, 0));
        assert_eq!(vm(77, &[]).counts, counts(0, 0, 1));
        let here = Part::ended("unit", Place::Here, Some(77), &tally(&[]), SECOND);
        assert_eq!(here.counts.failed, 1, "77 means something for virtual machines only");
        assert_eq!(Part::ended("unit", Place::Here, None, &tally(&[GOOD]), SECOND).counts, counts(5, 1, 2));
        let unit = Part::ended("unit", Place::Here, Some(101), &tally(&[GOOD, BAD]), SECOND);
        assert_eq!(unit.counts, counts(9, 1, 2), "cargo test's own exit code");
    }

    #[test]
    fn fewer_than_three_kernels_are_incomplete() {
        let report = |codes: &[i32], without_vms| Report {
            parts: codes.iter().map(|code| vm(*code, if *code == 1 { &[BAD] } else { &[GOOD] })).collect(),
            without_vms,
        };
        assert!(report(&[0, 0, 0, 77], false).is_good());
        assert!(!report(&[0, 0, 77, 77], false).is_good());
        assert!(
            report(&[0, 0, 125, 77], false).incomplete().is_some(),
            "a dead guest is no kernel that ran them"
        );
        assert!(report(&[0, 0, 1], false).incomplete().is_none(), "a failed test is no missing kernel");
        assert!(!report(&[0, 0, 1], false).is_good());
        assert!(report(&[0], true).is_good());
        let here = Part::ended("unit", Place::Here, Some(0), &tally(&[GOOD]), SECOND);
        assert!(!Report { parts: vec![here; 4], without_vms: false }.is_good(), "only VMs are kernels");
    }

    #[test]
    fn nothing_run_is_not_success() {
        let parts = vec![Part::skipped("VM", Place::Vm, "--no-vm")];
        assert!(!Report { parts, without_vms: true }.is_good());
    }

    #[test]
    fn the_last_line_is_the_whole() {
        let mut report = Report { parts: vec![vm(0, &[GOOD]), vm(1, &[BAD])], without_vms: true };
        report.parts.push(Part::skipped("VM sid", Place::Vm, "--no-vm"));
        assert_eq!(report.to_string().lines().last(), Some("9 passed, 1 failed, 3 skipped"));
        report.without_vms = false;
        let text = report.to_string();
        let last: Vec<&str> = text.lines().rev().take(2).collect();
        assert!(last[1].starts_with("INCOMPLETE: 2 kernels"), "{text}");
    }
}
