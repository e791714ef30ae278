//! Programs at tc hooks: the one that dropped is named, and of several none is guessed.

use super::expect::{Expect, verify, watch, watch_alone};
use super::{both, skip};
use crate::bed::kernel;
use crate::bed::mount::with_bpffs;
use crate::bed::namespace::Namespace;
use crate::bed::netkit::Wire;
use crate::bed::packet;
use crate::bed::send;
use crate::bed::tc::{Hook, Program};
use crate::bed::topology::{Family, Pair};
use anyhow::{Result, ensure};
use aya::programs::tc::SchedClassifierLink;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;

pub(super) fn trials() -> Vec<Trial> {
    [
        both("tc::tcx_ingress", |family| tcx(family, Hook::Ingress)),
        both("tc::tcx_egress", |family| tcx(family, Hook::Egress)),
        both("tc::clsact_ingress", |family| clsact(family, Hook::Ingress)),
        both("tc::clsact_egress", |family| clsact(family, Hook::Egress)),
        both("tc::two_filters", two_filters),
        both("tc::tcx_before_clsact", tcx_before_clsact),
        both("tc::pinned", pinned),
        both("tc::netkit", netkit),
        both("tc::two_on_netkit", two_on_netkit),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Two namespaces; the server's device has the hook, with what comes in or what leaves.
pub(super) struct Bed {
    pub(super) pair: Pair,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    hook: Hook,
}

impl Bed {
    pub(super) fn new(family: Family, hook: Hook) -> Result<Self> {
        let pair = Pair::new()?;
        let (from, to) = match hook {
            Hook::Ingress => (pair.client.port(family, 40_000), pair.server.port(family, 4242)),
            Hook::Egress => (pair.server.port(family, 40_000), pair.client.port(family, 4242)),
        };
        Ok(Self { pair, from, to, hook })
    }

    fn netns(&self) -> &Namespace {
        &self.pair.server.netns
    }

    pub(super) fn attach(&self, program: &mut Program) -> Result<SchedClassifierLink> {
        if kernel::version() < (6, 6) {
            return Err(skip("this kernel has no tcx (from 6.6)"));
        }
        program.attach(self.netns(), "s0", self.hook)
    }

    pub(super) fn add_filter(&self, program: &mut Program, priority: u16) -> Result<()> {
        if priority == 1 {
            self.netns().run("tc qdisc add dev s0 clsact")?;
        }
        program.add_filter(self.netns(), "s0", self.hook, priority)
    }

    pub(super) fn send(&self) -> Result<()> {
        match self.hook {
            Hook::Ingress => self.pair.client.inject(&vec![packet::udp(self.from, self.to, b"unwanted"); 3]),
            // A packet socket's sender would see the drop as an error.
            Hook::Egress => self.netns().enter(|| send::udp(self.from, self.to, b"unwanted", 3)).map(drop),
        }
    }

    /// The three packets.
    pub(super) fn drops(&self) -> Expect {
        let (reason, functions): (&[&str], &[&str]) = match self.hook {
            Hook::Ingress => (
                &["TC_INGRESS"],
                &["__netif_receive_skb_core", "sch_handle_ingress", "tcf_classify", "__tcf_kfree_skb_list"],
            ),
            Hook::Egress => {
                (&["TC_EGRESS"], &["__dev_queue_xmit", "sch_handle_egress", "__tcf_kfree_skb_list"])
            }
        };
        Expect::drops(3, self.netns())
            .flow("udp", self.from, self.to)
            .reason(reason)
            .at(functions)
            .interface("s0")
            .field("/drop/netfilter", Value::Null)
    }

    /// And the hook.
    fn expect(&self, confidence: &str) -> Expect {
        // Without a reason, and without an answer, it may as well have been an error.
        let class =
            if kernel::has_reason("TC_INGRESS") || confidence != "ambiguous" { "policy" } else { "error" };
        self.drops()
            .field("/drop/class", class)
            .field("/drop/cilium", Value::Null)
            .field("/drop/bpf/hook", self.hook.name().to_uppercase())
            .field("/drop/bpf/interface", "s0")
            .field("/drop/bpf/more", false)
            .field("/drop/bpf/confidence", confidence)
    }
}

/// Where no reason says that it was dropped at tc, it only most likely was.
fn sure() -> &'static str {
    if kernel::has_reason("TC_INGRESS") { "exact" } else { "inferred" }
}

fn tcx(family: Family, hook: Hook) -> Result<()> {
    let bed = Bed::new(family, hook)?;
    let mut program = Program::load("bouncer")?;
    let _link = bed.attach(&mut program)?;
    let stream = watch()?;
    bed.send()?;
    let expect = bed
        .expect("exact")
        .field("/drop/bpf/attached", "tcx")
        .field("/drop/bpf/program", "bouncer")
        .field("/drop/bpf/id", program.id)
        .field("/drop/bpf/tag", &*program.tag)
        .field("/drop/bpf/pinned", Value::Null)
        .field("/drop/bpf/priority", Value::Null)
        .field("/drop/bpf/candidates", json!([]));
    verify(stream, &[expect], &[&bed.pair.client.netns])
}

fn clsact(family: Family, hook: Hook) -> Result<()> {
    let bed = Bed::new(family, hook)?;
    let mut program = Program::load("bouncer")?;
    bed.add_filter(&mut program, 1)?;
    let stream = watch()?;
    bed.send()?;
    let expect = bed
        .expect(sure())
        .field("/drop/bpf/attached", "clsact")
        .field("/drop/bpf/classifier", "bpf")
        .field("/drop/bpf/priority", 1)
        .field("/drop/bpf/handle", "0x1")
        .field("/drop/bpf/program", "bouncer")
        .field("/drop/bpf/id", program.id)
        .field("/drop/bpf/candidates", json!([]));
    verify(stream, &[expect], &[&bed.pair.client.netns])
}

/// The first lets everything pass to the second: but the drop doesn't tell.
fn two_filters(family: Family) -> Result<()> {
    let bed = Bed::new(family, Hook::Ingress)?;
    let (mut idle, mut bouncer) = (Program::load("idle")?, Program::load("bouncer")?);
    bed.add_filter(&mut idle, 1)?;
    bed.add_filter(&mut bouncer, 2)?;
    let stream = watch()?;
    bed.send()?;
    let one = |program: &Program, name: &str, priority: u16| json!({"attached": "clsact", "classifier": "bpf", "program": name, "id": program.id, "priority": priority});
    let expect = bed
        .expect("ambiguous")
        .field("/drop/bpf/id", Value::Null)
        .lists("/drop/bpf/candidates", one(&idle, "idle", 1))
        .lists("/drop/bpf/candidates", one(&bouncer, "bouncer", 2));
    verify(stream, &[expect], &[&bed.pair.client.netns])
}

/// tcx programs come first; those that leave the packet to the next one leave it to clsact.
fn tcx_before_clsact(family: Family) -> Result<()> {
    let bed = Bed::new(family, Hook::Egress)?;
    let (mut idle, mut bouncer) = (Program::load("idle")?, Program::load("bouncer")?);
    let _link = bed.attach(&mut idle)?;
    bed.add_filter(&mut bouncer, 1)?;
    let stream = watch()?;
    bed.send()?;
    let expect = bed
        .expect("ambiguous")
        .field("/drop/bpf/program", Value::Null)
        .lists("/drop/bpf/candidates", json!({"attached": "tcx", "program": "idle", "id": idle.id}))
        .lists("/drop/bpf/candidates", json!({"attached": "clsact", "program": "bouncer", "id": bouncer.id}));
    verify(stream, &[expect], &[&bed.pair.client.netns])
}

/// Where the program is pinned is said, too.
fn pinned(family: Family) -> Result<()> {
    const PIN: &str = "/sys/fs/bpf/tests/bouncer";
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let mut program = Program::load("bouncer")?;
        bed.add_filter(&mut program, 1)?;
        let path = Path::new(PIN);
        std::fs::create_dir(path.parent().unwrap_or(path))?;
        program.pin(path)?;
        let stream = watch_alone()?;
        bed.send()?;
        let expect = bed.expect(sure()).field("/drop/bpf/id", program.id).field("/drop/bpf/pinned", PIN);
        verify(stream, &[expect], &[&bed.pair.client.netns])?;
        ensure!(path.exists(), "the pin is gone");
        Ok(())
    })
}

/// Netkit's device, with programs on what the client sends. Skips where the kernel has none.
pub(super) fn netkit_wire() -> Result<Wire> {
    Wire::new()?.ok_or_else(|| skip("this kernel has no netkit"))
}

/// Three packets that the client's device gives to its programs: by then they belong to the server's.
pub(super) fn drops_on(wire: &Wire, family: Family) -> Result<Expect> {
    let (from, to) = Wire::ends(family)?;
    wire.client.enter(|| send::udp(from, to, b"unwanted", 3).map(drop))?;
    Ok(Expect::drops(3, &wire.server)
        .flow("udp", from, to)
        .reason(&["NOT_SPECIFIED"])
        .at(&["netkit_xmit"])
        .interface("s0")
        .field("/drop/netfilter", Value::Null))
}

fn netkit(family: Family) -> Result<()> {
    let wire = netkit_wire()?;
    let mut program = Program::load("bouncer")?;
    let _link = program.attach_to_netkit(&wire.client, "c0")?;
    let stream = watch()?;
    let expect = drops_on(&wire, family)?
        .field("/drop/class", "policy")
        .field("/drop/cilium", Value::Null)
        .field("/drop/bpf/hook", "NETKIT")
        .field("/drop/bpf/interface", "s0")
        .field("/drop/bpf/attached", "netkit")
        .field("/drop/bpf/program", "bouncer")
        .field("/drop/bpf/id", program.id)
        .field("/drop/bpf/tag", &*program.tag)
        .field("/drop/bpf/confidence", "inferred")
        .field("/drop/bpf/candidates", json!([]));
    verify(stream, &[expect], &[&wire.client])
}

fn two_on_netkit(family: Family) -> Result<()> {
    let wire = netkit_wire()?;
    let (mut idle, mut bouncer) = (Program::load("idle")?, Program::load("bouncer")?);
    let _links = [idle.attach_to_netkit(&wire.client, "c0")?, bouncer.attach_to_netkit(&wire.client, "c0")?];
    let stream = watch()?;
    let one =
        |program: &Program, name: &str| json!({"attached": "netkit", "program": name, "id": program.id});
    let expect = drops_on(&wire, family)?
        .field("/drop/bpf/confidence", "ambiguous")
        .field("/drop/bpf/program", Value::Null)
        .lists("/drop/bpf/candidates", one(&idle, "idle"))
        .lists("/drop/bpf/candidates", one(&bouncer, "bouncer"));
    verify(stream, &[expect], &[&wire.client])
}
