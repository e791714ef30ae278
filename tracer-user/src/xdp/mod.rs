//! XDP programs, which drop packets before the kernel makes an skb of them: so no tracepoint sees those drops, and all that
//! can be told is that the programs are there, and what others count of their drops.
//!
//! ```text
//! links     what rtnetlink says of interfaces → the programs on them
//! counters  what a driver counts of its XDP program's drops (asks the kernel)
//! report    words for `droptrace doctor`
//! ```

pub mod counters;
pub mod links;
pub mod report;

use crate::cilium::pins::{Pins, ROOTS};
use crate::cilium::programs::is_ciliums;
use crate::tc::programs::Programs;
use std::io;

/// All XDP programs in this thread's network namespace, with what is known of them. Asks the kernel.
///
/// # Errors
/// When the kernel does not list its links.
pub fn read() -> io::Result<Vec<report::Known>> {
    let mut programs = Programs::default();
    let known = |attached: links::Attached| {
        let program = programs.get(attached.program);
        // A driver without such counters, or with none at all: there are none to tell. They count what it runs itself.
        let mut counters = match attached.mode {
            links::Mode::Generic => Vec::new(),
            _ => counters::read(&attached.interface).unwrap_or_default(),
        };
        if program.name.as_deref().is_some_and(is_ciliums) {
            let drops = Pins::find(&ROOTS).and_then(|pins| pins.xdp_drops()).ok().flatten();
            counters.extend(drops.map(|drops| ("cilium_metrics, on all interfaces".to_owned(), drops)));
        }
        report::Known { attached, program, counters, more: None }
    };
    Ok(links::read()?.into_iter().map(known).collect())
}
