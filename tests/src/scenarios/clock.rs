//! The clock is set while droptrace runs. Only inside a virtual machine: the clock belongs to the whole machine.

use super::{alone, skip};
use crate::bed::clock::{now, parse, step};
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::record::Record;
use crate::bed::topology::{Family, Pair};
use crate::bed::{kernel, packet};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::time::Duration;

pub(super) fn trials() -> Vec<Trial> {
    vec![alone("clock::stepped", stepped)]
}

const HOUR: i64 = 3600;
/// How far a printed time may be from the clock as it is set then.
const TOLERANCE: Duration = Duration::from_secs(2);

fn stepped() -> Result<()> {
    if !kernel::in_vm() {
        return Err(skip("sets the machine's clock: only in a virtual machine"));
    }
    let pair = Pair::new()?;
    let stream = Droptrace::start(&[])?;
    drop_at(&pair, &stream, 1)?;
    step(HOUR)?;
    let ahead = drop_at(&pair, &stream, 2);
    step(-2 * HOUR)?;
    let behind = drop_at(&pair, &stream, 3);
    step(HOUR)?;
    ahead.context("an hour ahead")?;
    behind.context("an hour back")?;
    drop_at(&pair, &stream, 4).context("back again")?;
    let output = stream.stop()?;
    let order: Vec<u64> = output
        .drops_in(&[pair.server.netns.inode()])
        .filter_map(|record| record.number("/destination/port"))
        .collect();
    ensure!(order.is_sorted(), "the drops came in the order {order:?}");
    Ok(())
}

/// Drops a packet to a port and compares its time with the clock.
fn drop_at(pair: &Pair, stream: &Droptrace, port: u16) -> Result<()> {
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, port));
    let before = now();
    pair.client.inject(&[packet::udp(from, to, b"when?")])?;
    let find = |output: &Output| -> Option<Record> {
        let inode = pair.server.netns.inode();
        output.drops_in(&[inode]).find(|r| r.number("/destination/port") == Some(port.into())).cloned()
    };
    stream.wait("the drop came", |output| find(output).is_some())?;
    let after = now();
    let record = find(&stream.output()).context("the drop is gone")?;
    for field in ["/time", "/time_last"] {
        let time = parse(record.text(field).context("no time")?)?;
        ensure!(
            time + TOLERANCE >= before && time <= after + TOLERANCE,
            "{field} is {time:?}, the clock was between {before:?} and {after:?}"
        );
    }
    Ok(())
}
