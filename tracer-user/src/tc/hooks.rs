//! Asks rtnetlink which BPF filters are on a device's clsact hook. The device may be in another network namespace: that is
//! entered by a thread of its own, which ends with the question, and closed again before that is asked.

use super::filters::{Listed, listed};
use crate::netfilter::budget::Budget;
use crate::netfilter::netns;
use crate::probe::netlink;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A hook: inode number of the netns, index of the device, whether it is egress.
type Hook = (u32, u32, bool);

/// How long an answer is waited for: the kernel may be busy with its links.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(2);
/// Time that questions may take at once; then they wait until it is a small part of all again.
const BURST: Duration = Duration::from_millis(500);
/// Hooks that are remembered.
const MOST: usize = 1024;

/// What was asked before.
#[derive(Debug, Default)]
pub struct Hooks {
    known: HashMap<Hook, (Instant, Arc<[Listed]>)>,
    budget: Budget,
    /// A question has no answer yet: until it has, nothing else is asked, so that no threads pile up.
    is_busy: Arc<AtomicBool>,
}

impl Hooks {
    /// The BPF filters on a hook; none if they can't be asked for now.
    pub fn filters(&mut self, hook: Hook) -> Arc<[Listed]> {
        let now = Instant::now();
        if let Some((_, listed)) = self.known.get(&hook).filter(|(asked, _)| now < *asked + KEPT) {
            return Arc::clone(listed);
        }
        if self.is_busy.load(Ordering::Relaxed) || !self.budget.is_left(BURST) {
            return Arc::default();
        }
        // What can't be asked leaves filters without names.
        let listed: Arc<[Listed]> =
            netns::visit(hook.0, "tc", &self.is_busy, PATIENCE, move || ask(hook)).unwrap_or_default().into();
        self.budget.take(now.elapsed());
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(hook, (Instant::now(), Arc::clone(&listed)));
        listed
    }
}

fn ask((_, ifindex, is_egress): Hook) -> io::Result<Vec<Listed>> {
    /// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS) (include/uapi/linux/pkt_sched.h).
    const PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
    // struct tcmsg: family and padding, ifindex, handle, parent, info.
    let [ingress, egress] = PARENTS;
    let body = [0, ifindex, 0, if is_egress { egress } else { ingress }, 0].map(u32::to_ne_bytes).concat();
    let messages = netlink::list(netlink::GET_FILTER, &body, netlink::NEW_FILTER)?;
    Ok(messages.iter().filter_map(|message| listed(message)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_hook_without_filters_and_a_netns_that_is_not_there() {
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        let mut hooks = Hooks::default();
        // The loopback device.
        assert_eq!(hooks.filters((u32::try_from(own).unwrap(), 1, false)).len(), 0);
        assert_eq!(hooks.filters((1, 1, true)).len(), 0);
        assert_eq!(hooks.known.len(), 2);
    }
}
