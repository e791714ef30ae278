//! Drops by Cilium, without Cilium: a program of ours leaves in the packet what Cilium's leaves there, and pinned maps have
//! the layouts of its versions.

use super::expect::{Expect, verify, watch};
use super::tc::{Bed, need_names};
use super::{beside, both, one};
use crate::bed::cilium::{Maps, Rule, Version, old_words, words};
use crate::bed::kernel;
use crate::bed::mount::with_bpffs;
use crate::bed::tc::{Does, Hook, Program};
use crate::bed::topology::Family;
use anyhow::Result;
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(super) fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> = [
        both("cilium::unmanaged_node", |family| unmanaged_node(family, false)),
        both("cilium::unmanaged_node_tcx", |family| unmanaged_node(family, true)),
        both("cilium::egress", egress),
        both("cilium::authentication", authentication),
        both("cilium::allowed_since", allowed_since),
        both("cilium::old_encoding", old_encoding),
    ]
    .into_iter()
    .flatten()
    .collect();
    for version in Version::ALL {
        let name = format!("cilium::deny_entry_{version:?}").to_lowercase();
        trials.push(beside(name, move || deny_entry(version, Family::V4)));
    }
    trials.push(one("cilium::no_maps", Family::V4, no_maps));
    trials.push(one("cilium::nothing_left", Family::V4, nothing_left));
    trials.push(one("cilium::foreign_program", Family::V4, foreign_program));
    trials
}

/// The pod's endpoint and identity, and a peer's.
const ENDPOINT: u16 = 2636;
const POD: u32 = 12_345;
const PEER: u32 = 4711;
const WORLD: u32 = 2;
/// Drop codes: policy denied, denied by denylist, authentication required.
const DENIED: u8 = 133;
const DENIED_BY_ENTRY: u8 = 181;
const UNAUTHENTICATED: u8 = 189;
/// The packets' port, and another one.
const PORT: u16 = 4242;
const OTHER: u16 = 8080;

/// Allows UDP to a port.
fn allow(identity: u32, port: u16) -> Rule {
    Rule { identity, egress: false, port, deny: false, auth: 0 }
}

/// A program by the name of Cilium's, that leaves these words.
fn program(words: [u32; 5]) -> Result<Program> {
    Program::load("cil_from_netdev", Does::MarkAndDrop(words))
}

/// The pod's side of a test bed with such a program on it; the maps are the caller's.
fn attach(bed: &Bed, words: [u32; 5]) -> Result<()> {
    need_names()?;
    bed.add_filter(&program(words)?, 1)
}

/// What is said of any such drop.
fn said(bed: &Bed, code: u8, message: &str, verdict_by: &str) -> Expect {
    bed.drops()
        .field("/drop/class", "policy")
        .field("/drop/bpf", Value::Null)
        .field("/drop/cilium/code", code)
        .field("/drop/cilium/message", message)
        .field("/drop/cilium/verdict_by", verdict_by)
        .field("/drop/cilium/endpoint", ENDPOINT)
        .field("/drop/cilium/program", "cil_from_netdev")
        .field("/drop/cilium/policies", Value::Null)
        .field("/drop/cilium/unread", json!([]))
}

fn identity(id: u32) -> Value {
    match id {
        WORLD => json!({"id": 2, "labels": ["reserved:world"]}),
        id => json!({"id": id, "labels": null}),
    }
}

/// A pod of a node without Cilium sends to a pod with a policy, to another port than the policy's.
fn unmanaged_node(family: Family, by_link: bool) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let rules = [allow(PEER, PORT), allow(PEER, OTHER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &[], &rules)?;
        let words = words(WORLD, POD, DENIED, ENDPOINT.into());
        let _link = if by_link {
            Some(bed.attach(&program(words)?)?)
        } else {
            attach(&bed, words)?;
            None
        };
        let stream = watch()?;
        bed.send()?;
        let expect = said(&bed, DENIED, "Policy denied", "default-deny")
            .field("/drop/cilium/direction", "ingress")
            .field("/drop/cilium/source_identity", identity(WORLD))
            .field("/drop/cilium/destination_identity", identity(POD))
            .field("/drop/cilium/source_prefix", family.pick("0.0.0.0/0", "::/0"))
            .field("/drop/cilium/allowed_now", false)
            .field("/drop/cilium/file", "bpf_lxc.c")
            .field("/drop/cilium/line", 2121)
            .lists(
                "/drop/cilium/nearest",
                json!({"identity": identity(PEER), "protocol": "udp", "port": PORT}),
            )
            .lists(
                "/drop/cilium/nearest",
                json!({"identity": identity(PEER), "protocol": "udp", "port": OTHER}),
            );
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// The pod sends what its own policy doesn't allow: Cilium names no endpoint then.
fn egress(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Egress)?;
        let rule = Rule { egress: true, ..allow(PEER, OTHER) };
        let peers = [(bed.to.ip(), PEER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.from.ip()], &peers, &[rule])?;
        attach(&bed, words(POD, PEER, DENIED, 0))?;
        let stream = watch()?;
        bed.send()?;
        let expect = said(&bed, DENIED, "Policy denied", "default-deny")
            .field("/drop/cilium/direction", "egress")
            .field("/drop/cilium/source_identity", identity(POD))
            .field("/drop/cilium/destination_identity", identity(PEER))
            .field("/drop/cilium/allowed_now", false)
            .lists("/drop/cilium/nearest", json!({"identity": identity(PEER), "port": OTHER}));
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// An entry denies the packet, in the maps of every version.
fn deny_entry(version: Version, family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let rules = [Rule { deny: true, ..allow(PEER, PORT) }, allow(0, PORT)];
        let peers = [(bed.from.ip(), PEER)];
        let _maps = Maps::new(version, ENDPOINT, POD, &[bed.to.ip()], &peers, &rules)?;
        attach(&bed, words(PEER, POD, DENIED_BY_ENTRY, ENDPOINT.into()))?;
        let stream = watch()?;
        bed.send()?;
        let expect = said(&bed, DENIED_BY_ENTRY, "Policy denied by denylist", "deny-entry")
            .field("/drop/cilium/direction", "ingress")
            .field("/drop/cilium/entry/identity", identity(PEER))
            .field("/drop/cilium/entry/port", PORT)
            .field("/drop/cilium/entry/deny", true)
            .field("/drop/cilium/allowed_now", false);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

fn authentication(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let rule = Rule { auth: 1, ..allow(PEER, PORT) };
        let peers = [(bed.from.ip(), PEER)];
        let _maps = Maps::new(Version::V18, ENDPOINT, POD, &[bed.to.ip()], &peers, &[rule])?;
        // The extended error is the kind of authentication.
        let mut words = words(PEER, POD, UNAUTHENTICATED, ENDPOINT.into());
        words[2] |= 1 << 8;
        attach(&bed, words)?;
        let stream = watch()?;
        bed.send()?;
        let expect = said(&bed, UNAUTHENTICATED, "Authentication required", "auth")
            .field("/drop/cilium/extended_error", 1)
            .field("/drop/cilium/entry/auth", 1)
            .field("/drop/cilium/entry/deny", false);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// The packet was denied, but the map allows it by now.
fn allowed_since(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let peers = [(bed.from.ip(), PEER)];
        let maps = Maps::new(Version::V19, ENDPOINT, POD, &[bed.to.ip()], &peers, &[allow(PEER, OTHER)])?;
        attach(&bed, words(PEER, POD, DENIED, ENDPOINT.into()))?;
        let stream = watch()?;
        maps.add(allow(PEER, PORT))?;
        bed.send()?;
        let expect =
            said(&bed, DENIED, "Policy denied", "default-deny").field("/drop/cilium/allowed_now", true);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// What 1.12 leaves.
fn old_encoding(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        let _maps = Maps::new(Version::V12, ENDPOINT, POD, &[bed.to.ip()], &[], &[allow(PEER, PORT)])?;
        attach(&bed, old_words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        let stream = watch()?;
        bed.send()?;
        let expect = said(&bed, DENIED, "Policy denied", "default-deny")
            .field("/drop/cilium/source_identity", identity(WORLD))
            .field("/drop/cilium/allowed_now", false)
            .field("/drop/cilium/file", Value::Null);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// Without maps there is still what the packet tells.
fn no_maps(family: Family) -> Result<()> {
    with_bpffs(|| {
        let bed = Bed::new(family, Hook::Ingress)?;
        attach(&bed, words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        let stream = watch()?;
        bed.send()?;
        let expect = bed
            .drops()
            .field("/drop/cilium/code", DENIED)
            .field("/drop/cilium/endpoint", ENDPOINT)
            .field("/drop/cilium/source_identity", identity(WORLD))
            .field("/drop/cilium/allowed_now", Value::Null)
            .field("/drop/cilium/nearest", json!([]))
            .field("/drop/cilium/unread/1", Value::Null);
        verify(stream, &[expect], &[&bed.pair.client.netns])
    })
}

/// Cilium's drop notifications are off, or what is there is no code of Cilium's. Where no reason says that a program dropped
/// it, nothing is said of Cilium.
fn nothing_left(family: Family) -> Result<()> {
    for words in [[0, 1, 0, 0, 0], words(WORLD, POD, 7, ENDPOINT.into())] {
        let bed = Bed::new(family, Hook::Ingress)?;
        attach(&bed, words)?;
        let stream = watch()?;
        bed.send()?;
        let expect = if kernel::has_reason("TC_INGRESS") {
            bed.drops()
                .field("/drop/cilium/code", Value::Null)
                .field("/drop/cilium/program", "cil_from_netdev")
                .field("/drop/cilium/endpoint", Value::Null)
        } else {
            bed.drops().field("/drop/cilium", Value::Null).field("/drop/bpf/program", "cil_from_netdev")
        };
        verify(stream, &[expect], &[&bed.pair.client.netns])?;
    }
    Ok(())
}

/// The very same words, by somebody else's program.
fn foreign_program(family: Family) -> Result<()> {
    need_names()?;
    let bed = Bed::new(family, Hook::Ingress)?;
    let words = words(WORLD, POD, DENIED, ENDPOINT.into());
    bed.add_filter(&Program::load("bouncer", Does::MarkAndDrop(words))?, 1)?;
    let stream = watch()?;
    bed.send()?;
    let expect = bed.drops().field("/drop/cilium", Value::Null).field("/drop/bpf/program", "bouncer");
    verify(stream, &[expect], &[&bed.pair.client.netns])
}
