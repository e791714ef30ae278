//! Where the kernel doesn't tell the rule: the packet is evaluated against the tables' text, and called inferred.

use super::{beside, skip};
use crate::bed::backend::Backend;
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::kernel;
use crate::bed::packet;
use crate::bed::record::Record;
use crate::bed::topology::{Family, Pair};
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use std::fmt::Write as _;

pub(super) fn trials() -> Vec<Trial> {
    vec![beside("evaluation::more_rules_than_are_compared", more_rules_than_are_compared)]
}

/// More than the counters of a hook that are compared (64 chunks of 16).
const RULES: u16 = 1500;
const FIRST: u16 = 5000;
const DOUBTFUL: u16 = 77;

fn more_rules_than_are_compared() -> Result<()> {
    if kernel::version() < (5, 17) {
        return Err(skip("without types of modules no table is known"));
    }
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    let mut rules = String::from(
        "*filter\n:INPUT ACCEPT [0:0]\n:MANY - [0:0]\n-A INPUT -p udp --dport 5000:9000 -j MANY\n",
    );
    for port in FIRST..FIRST + RULES {
        writeln!(rules, "-A MANY -p udp --dport {port} -j DROP")?;
    }
    for rule in ["-m limit --limit 1/s -p udp --dport 77", "-p udp --dport 77"] {
        writeln!(rules, "-A INPUT {rule} -j DROP")?;
    }
    rules.push_str("COMMIT\n");
    Backend::Legacy.load(netns, Family::V4, &rules)?;
    let inode = netns.inode();
    let stream = Droptrace::start(&["--netns", &inode.to_string()])?;
    let ports = [FIRST, FIRST + 700, FIRST + RULES - 1, DOUBTFUL];
    for port in ports {
        let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, port));
        pair.client.inject(&[packet::udp(from, to, b"which?")])?;
    }
    stream.wait("all drops came", |output| output.drops_in(&[inode]).count() >= ports.len())?;
    let output = stream.stop()?;
    for port in ports {
        let record = to_port(&output, inode, port)?;
        let field = |name: &str| record.text(&format!("/drop/netfilter/{name}"));
        ensure!(
            field("method") == Some("evaluated") && field("table") == Some("filter"),
            "{}",
            record.brief()
        );
        if port == DOUBTFUL {
            // Whether the limit was reached can't be known afterwards.
            let candidates = record.get("/drop/netfilter/candidates").as_array().map(Vec::len);
            ensure!(field("confidence") == Some("ambiguous") && candidates == Some(2), "{}", record.brief());
        } else {
            let number = u64::from(port - FIRST) + 1;
            ensure!(
                field("confidence") == Some("inferred")
                    && field("chain") == Some("MANY")
                    && record.number("/drop/netfilter/rule") == Some(number),
                "port {port}: {}",
                record.get("/drop/netfilter")
            );
        }
    }
    Ok(())
}

fn to_port(output: &Output, inode: u32, port: u16) -> Result<Record> {
    let is_it = |record: &&Record| record.number("/destination/port") == Some(port.into());
    let netns = [inode];
    let found = output.drops_in(&netns).find(is_it).cloned();
    found.with_context(|| format!("no drop to port {port}"))
}
