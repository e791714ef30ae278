//! All of them, and the README's table.

use super::super::{alone, beside, here_only};
use super::outage::{Outage, Where};
use super::{bridge, cilium, conntrack, firewall, overlay, receivers, routing, services, silence};
use crate::bed::kernel;
use libtest_mimic::Trial;

/// All outages, in the README's order.
fn all() -> impl Iterator<Item = &'static Outage> {
    [
        firewall::OUTAGES,
        services::OUTAGES,
        bridge::OUTAGES,
        overlay::OUTAGES,
        routing::OUTAGES,
        conntrack::OUTAGES,
        receivers::OUTAGES,
        cilium::OUTAGES,
        silence::OUTAGES,
    ]
    .into_iter()
    .flatten()
}

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    // Their own addresses, so that they don't see each other's drops.
    for (outage, wire) in all().zip((20..).step_by(2)) {
        let name = format!("outages::{}", outage.id.replace('-', "_"));
        let run = move || outage.run(wire);
        match outage.place {
            // What is printed is the same on every kernel that has the reasons.
            Where::Here => trials.extend(here_only([beside(name, run)])),
            Where::HereAlone => trials.extend(here_only([alone(name, run)])),
            Where::NewestVm if kernel::suite().as_deref() == Some("sid") => trials.push(beside(name, run)),
            Where::NewestVm => {}
        }
    }
    trials
}

#[cfg(test)]
mod tests {
    use super::super::printed;
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;

    const README: &str = include_str!("../../../../README.md");

    #[test]
    fn the_readme_has_the_table() {
        let mut table = String::from("| outage | where | what is said | what to do |\n|---|---|---|---|\n");
        for outage in all() {
            // What virtual machines print is on their console.
            match fs::read_to_string(printed::file(outage.id)) {
                Ok(text) => table += &printed::row(outage.what, &text),
                Err(error) => assert!(outage.place == Where::NewestVm, "{}: {error}", outage.id),
            }
        }
        assert!(README.contains(&table), "README.md needs this table:\n{table}");
    }

    #[test]
    fn every_text_is_of_an_outage_that_has_facts() {
        let ids: BTreeSet<String> = all().map(|outage| outage.id.to_owned()).collect();
        let folder = printed::file("").with_file_name("");
        for file in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().trim_end_matches(".txt").to_owned();
            assert!(ids.contains(&name), "{name}");
        }
        assert!(all().all(|outage| !outage.facts.is_empty() && !outage.what.is_empty()));
        assert_eq!(ids.len(), all().count(), "two have the same name");
    }
}
