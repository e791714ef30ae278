//! The scenarios: each builds a situation in network namespaces, sends packets, and checks what droptrace says.

mod answer;
mod attribution;
mod bed;
mod causes;
mod cilium;
mod cli;
mod clock;
mod counters;
mod cri;
mod device;
mod differential;
mod doctor;
mod evaluation;
mod expect;
mod filter;
mod hist;
mod hooks;
mod kube_api;
mod names;
mod netfilter;
mod no_drop;
mod outages;
mod pods;
mod queue;
mod recordings;
mod report;
mod routing;
mod rules;
mod socket;
mod startup;
mod storm;
mod tc;
pub mod times;
mod top;
mod trace;
mod trace_differential;
mod tunnel;

use crate::bed::topology::Family;
use crate::bed::{droptrace, kernel, shared};
use anyhow::Result;
use libtest_mimic::{Completion, Failed, Trial};
use std::sync::{PoisonError, RwLock};

/// A reason why a scenario cannot be built here. Not a failure, but said loudly.
#[derive(Debug)]
struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a scenario as skipped.
fn skip(reason: impl Into<String>) -> anyhow::Error {
    Skip(reason.into()).into()
}

/// Every test.
#[must_use]
pub fn all() -> Vec<Trial> {
    [
        bed::trials(),
        causes::trials(),
        cilium::trials(),
        cli::trials(),
        cri::trials(),
        device::trials(),
        doctor::trials(),
        evaluation::trials(),
        counters::trials(),
        filter::trials(),
        hist::trials(),
        hooks::trials(),
        kube_api::trials(),
        names::trials(),
        netfilter::trials(),
        attribution::trials(),
        outages::trials(),
        pods::trials(),
        queue::trials(),
        recordings::trials(),
        report::trials(),
        no_drop::trials(),
        routing::trials(),
        socket::trials(),
        tc::trials(),
        top::trials(),
        trace::trials(),
        tunnel::trials(),
        startup::trials(),
        clock::trials(),
        storm::trials(),
        differential::trials(),
        trace_differential::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Tests that load or change the whole machine run alone; the others hold this for reading.
static MACHINE: RwLock<()> = RwLock::new(());

/// A test that may run beside others.
fn beside(name: impl Into<String>, scenario: impl Fn() -> Result<()> + Send + 'static) -> Trial {
    let name = name.into();
    trial(name.clone(), move || {
        let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        times::taken(&name, || while_missed(&name, droptrace::missed_here, &scenario))
    })
}

/// The runs of a test in which droptrace said that it missed drops.
const RUNS: u32 = 3;

/// Newer kernels don't call a program inside itself (tests run beside each other, and an interrupt's packet may drop
/// just then), so a single packet may be one that droptrace missed. Where it said so, a test that failed is run
/// again, loudly; a miss that it didn't own up to fails.
fn while_missed(name: &str, missed: impl Fn() -> u64, scenario: impl Fn() -> Result<()>) -> Result<()> {
    for _ in 1..RUNS {
        let before = missed();
        let ended = scenario();
        let missed = missed() - before;
        match ended {
            Err(error) if missed > 0 && !error.is::<Skip>() => {
                eprintln!("AGAIN {name}: droptrace said that it missed {missed} drops; {error:#}");
            }
            ended => return ended,
        }
    }
    scenario()
}

/// A test that needs the machine for itself.
fn alone(name: impl Into<String>, scenario: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let name = name.into();
    trial(name.clone(), move || {
        let _whole = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        shared::end();
        times::taken(&name, scenario)
    })
}

/// Leaves tests out of virtual machines, which are slow: what they try is the same on every kernel, and once, on the machine
/// itself, is enough.
fn here_only(trials: impl IntoIterator<Item = Trial>) -> Vec<Trial> {
    if kernel::in_vm() { Vec::new() } else { trials.into_iter().collect() }
}

/// A scenario over IPv4 and over IPv6.
fn both(name: &str, scenario: fn(Family) -> Result<()>) -> [Trial; 2] {
    [Family::V4, Family::V6].map(|family| one(name, family, scenario))
}

/// A scenario over IPv4, and on the machine itself over IPv6, too: for what the kernels do alike in both.
fn both_here(name: &str, scenario: fn(Family) -> Result<()>) -> Vec<Trial> {
    let [v4, v6] = both(name, scenario);
    std::iter::once(v4).chain(here_only([v6])).collect()
}

/// A scenario over one of them.
fn one(name: &str, family: Family, scenario: fn(Family) -> Result<()>) -> Trial {
    beside(format!("{name}::{}", family.name()), move || scenario(family))
}

fn trial(name: String, scenario: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let shown = name.clone();
    Trial::ignorable_test(name, move || match scenario() {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(skip) => {
                eprintln!("SKIP {shown}: {skip}");
                Ok(Completion::ignored_with(skip))
            }
            None => Err(Failed::from(format!("{error:#}"))),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// How often a scenario is run that misses as many drops as said, each time, and then ends so.
    fn runs(missed: &[u64], end: impl Fn() -> Result<()>) -> (usize, bool) {
        let (run, sum) = (Cell::new(0), Cell::new(0));
        let scenario = || {
            sum.set(sum.get() + missed[run.get()]);
            run.set(run.get() + 1);
            end()
        };
        let ended = while_missed("test", || sum.get(), scenario);
        (run.get(), ended.is_ok())
    }

    #[test]
    fn only_what_droptrace_said_it_missed_is_run_again() {
        let wrong = || Err(anyhow::anyhow!("wrong"));
        assert_eq!(runs(&[0], wrong), (1, false));
        assert_eq!(runs(&[2, 0], wrong), (2, false));
        assert_eq!(runs(&[2, 1, 1], wrong), (3, false));
        assert_eq!(runs(&[2], || Ok(())), (1, true));
        assert_eq!(runs(&[2], || Err(skip("no module"))), (1, false));
    }
}
