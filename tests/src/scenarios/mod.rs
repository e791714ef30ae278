//! The scenarios: each builds a situation in network namespaces, sends packets, and checks what droptrace says.

mod answer;
mod attribution;
mod bed;
mod cli;
mod clock;
mod counters;
mod device;
mod differential;
mod doctor;
mod evaluation;
mod expect;
mod filter;
mod hooks;
mod netfilter;
mod no_drop;
mod outages;
mod queue;
mod routing;
mod rules;
mod socket;
mod startup;
mod storm;
mod tunnel;

use crate::bed::topology::Family;
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
        cli::trials(),
        device::trials(),
        doctor::trials(),
        evaluation::trials(),
        counters::trials(),
        filter::trials(),
        hooks::trials(),
        netfilter::trials(),
        attribution::trials(),
        outages::trials(),
        queue::trials(),
        no_drop::trials(),
        routing::trials(),
        socket::trials(),
        tunnel::trials(),
        startup::trials(),
        clock::trials(),
        storm::trials(),
        differential::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Tests that load or change the whole machine run alone; the others hold this for reading.
static MACHINE: RwLock<()> = RwLock::new(());

/// A test that may run beside others.
fn beside(name: impl Into<String>, scenario: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    trial(name.into(), || {
        let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        scenario()
    })
}

/// A test that needs the machine for itself.
fn alone(name: impl Into<String>, scenario: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    trial(name.into(), || {
        let _whole = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        scenario()
    })
}

/// A scenario over IPv4 and over IPv6.
fn both(name: &str, scenario: fn(Family) -> Result<()>) -> [Trial; 2] {
    [Family::V4, Family::V6].map(|family| one(name, family, scenario))
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
