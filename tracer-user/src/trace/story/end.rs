//! What became of a packet, and in one sentence why that is held to be so.

use super::steps::{Trail, mac, tunnelled};
use crate::event::model::{Class, Drop, Endpoint};
use crate::netfilter::model::Family;
use crate::output::{escape, words};
use crate::trace::model::{Decision, End, Outcome, Passed, Place, Point, Seen};
use std::time::Duration;
use tracer_common::priority;

/// What is known of the answer to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It needs none.
    NotExpected,
    /// It may still come.
    Awaited,
    /// It came: which, and when.
    Came(String),
    /// It did not come in time.
    Missing,
    /// The trace ended before.
    Unknown,
}

/// How the story ends, if it does. `quiet`: nothing was seen of the packet for so long that nothing more will be.
pub(super) fn end(trail: &Trail, quiet: bool, reply: &Reply) -> Option<End> {
    let last = trail.last()?;
    let (outcome, note) = outcome(trail, last, quiet, reply)?;
    let dropped = matches!(last.place, Place::Dropped).then(|| Box::new(last.view.clone()));
    Some(End {
        packet: trail.packet().to_string(),
        time: trail.freed().map_or(last.view.time, |freed| freed.view.time),
        steps: u32::try_from(trail.len()).unwrap_or(u32::MAX),
        outcome,
        last: trail.last_kind(),
        note,
        cause: dropped.as_ref().and_then(|drop| drop.drop.cause.clone()),
        drop: dropped,
    })
}

fn outcome(trail: &Trail, last: &Seen, quiet: bool, reply: &Reply) -> Option<(Outcome, String)> {
    let pod = last.pod.as_ref().map(|pod| format!(" in {}", escape(pod))).unwrap_or_default();
    let is_freed = trail.freed().is_some();
    match &last.place {
        // What it came for was done.
        Place::Dropped if is_done_with(trail, &last.view) => {
            let note =
                format!("delivered{pod}: done with, as a matter of routine: {}", words::place(&last.view));
            Some((Outcome::Delivered, note))
        }
        Place::Dropped => Some((Outcome::Dropped, format!("dropped{pod}: {}", words::place(&last.view)))),
        Place::Read { process, pid } => {
            Some((Outcome::Delivered, format!("delivered: read by {} (pid {pid}){pod}", escape(process))))
        }
        Place::Taken => Some((Outcome::Delivered, format!("delivered: {}{pod}", taken_by(&last.view)))),
        Place::Sent if hands_on(last).is_some() && !is_freed => {
            quiet.then(|| (Outcome::Vanished, vanished(trail, last, &normally(trail, last))))
        }
        Place::Sent if quiet || is_freed || matches!(reply, Reply::Came(_)) => left(trail, last, reply),
        _ if is_freed && trail.visit().is_here() => {
            Some((Outcome::Delivered, format!("delivered: {}{pod}", taken_by_kernel(&last.view))))
        }
        _ if !quiet => None,
        Place::Hook(passed) if is_through_input(passed) && transport(&last.view).is_some() => {
            let protocol = transport(&last.view).unwrap_or_default();
            let note = format!(
                "delivered: given to {protocol}{pod}: it left INPUT and was not dropped; that a program reads it was not seen"
            );
            Some((Outcome::Delivered, note))
        }
        _ if is_freed => {
            let note = format!("{}; the kernel freed it there, and not as dropped", last_seen(trail, last));
            Some((Outcome::Vanished, note))
        }
        _ => Some((Outcome::Vanished, vanished(trail, last, &normally(trail, last)))),
    }
}

/// Whether that is no drop but how the kernel ends with a packet that came where it was to come, or became part of another.
fn is_done_with(trail: &Trail, view: &Drop) -> bool {
    let is_part = view.drop.cause.as_ref().is_some_and(|cause| cause.id == "consumed-fragments");
    view.drop.class == Class::Routine && (is_part || trail.visit().is_here())
}

/// `None` while its answer may still come.
fn left(trail: &Trail, last: &Seen, reply: &Reply) -> Option<(Outcome, String)> {
    let by = last.view.network.interface.as_deref().map_or_else(|| "a device".into(), escape);
    let inner = tunnelled(&last.view).map(|inner| {
        let [source, destination] = [&last.view.source, &last.view.destination]
            .map(|end| words::address(&Endpoint { port: None, ..end.clone() }));
        let vni = inner.vni.map(|vni| format!(" (vni {vni})")).unwrap_or_default();
        format!(" as {} {source} -> {destination}{vni}", escape(&inner.kind).to_uppercase())
    });
    let to = last.mac.map(|[to, _]| to).filter(|to| *to != [0; 6]).map(|to| format!(" to {}", mac(to)));
    let gateway = trail.visit().route.as_ref().and_then(|route| route.gateway);
    let gateway = gateway.map(|gateway| format!(" (next hop {gateway})"));
    let sent: String = [inner, to, gateway].into_iter().flatten().collect();
    let (outcome, reply) = match reply {
        Reply::Awaited => return None,
        Reply::NotExpected => (Outcome::Left, String::new()),
        Reply::Came(answer) => (Outcome::Left, format!(", {answer}")),
        Reply::Missing => (Outcome::NoReply, format!(", no reply in {} s", super::QUIET.as_secs())),
        Reply::Unknown => (Outcome::Left, ", no reply so far".to_owned()),
    };
    Some((outcome, format!("left on {by}{sent}{reply}")))
}

/// `answered after 1.2 ms by TCP SYN,ACK`
pub(super) fn answered(after: Duration, seen: &Seen) -> String {
    let micros = after.as_micros();
    format!("answered after {}.{} ms by {}", micros / 1000, micros % 1000 / 100, words::protocol(&seen.view))
}

/// Where packets of a device come out next, if that is on this node.
fn hands_on(seen: &Seen) -> Option<&'static str> {
    match seen.link.as_deref()? {
        "veth" | "netkit" => Some(
            "the device at its other end: it may be down, or in a network namespace that is not looked at",
        ),
        "bridge" => Some("one of its ports"),
        "vlan" | "bond" | "team" | "macvlan" | "ipvlan" => Some("the device under it"),
        "vxlan" | "geneve" | "gre" | "gretap" | "ipip" | "sit" | "ip6tnl" => {
            Some("a route for the tunnel's packet, and the device under it")
        }
        _ => None,
    }
}

/// It went through INPUT, as far as is known.
fn is_through_input(passed: &Passed) -> bool {
    passed.family != Family::Bridge && passed.hook == "INPUT" && is_through(passed)
}

/// It went through the hook: behind the last look there connection tracking confirms at most.
fn is_through(passed: &Passed) -> bool {
    let last = match passed.hook {
        "PREROUTING" => priority::DSTNAT,
        "FORWARD" | "OUTPUT" => priority::SECURITY,
        _ => priority::SRCNAT,
    };
    match passed.point {
        Point::Left => true,
        Point::Past(at) => passed.family != Family::Bridge && at >= last,
        Point::Entered => false,
    }
}

/// Whose socket took it.
pub(super) fn taken_by(view: &Drop) -> &'static str {
    match transport(view) {
        Some("UDP") => "taken by its UDP socket",
        _ => "taken by its TCP connection",
    }
}

/// TCP and UDP keep a packet until a program reads it.
fn transport(view: &Drop) -> Option<&'static str> {
    match view.network.transport.as_deref() {
        Some("tcp") => Some("TCP"),
        Some("udp") => Some("UDP"),
        _ => None,
    }
}

fn taken_by_kernel(view: &Drop) -> &'static str {
    let has = |flag: &str| {
        view.packet.tcp_flags.as_deref().is_some_and(|flags| flags.split(',').any(|it| it == flag))
    };
    match (view.network.transport.as_deref(), view.packet.icmp_type) {
        (Some("icmp"), Some(8)) | (Some("icmpv6"), Some(128)) => {
            "taken by the kernel itself, which answers echo requests"
        }
        (Some("tcp"), _) if has("SYN") && !has("ACK") => "taken by TCP itself, which answers for a listener",
        (Some("tcp"), _) => "taken by TCP itself",
        // Not before its program has read it, or a tunnel's device has it.
        (Some("udp"), _) => "taken out of its UDP socket",
        _ => "taken by the kernel itself",
    }
}

fn vanished(trail: &Trail, last: &Seen, next: &str) -> String {
    format!("{}; next normally: {next}", last_seen(trail, last))
}

/// `vanished: last seen at step 2, entering hook PREROUTING`
fn last_seen(trail: &Trail, last: &Seen) -> String {
    let device = last.view.network.interface.as_deref().map_or_else(|| "a device".into(), escape);
    let place = match &last.place {
        Place::Received => format!("where {device} gave it to the stack"),
        Place::TcIngress => format!("at tc ingress of {device}"),
        Place::TcEgress => format!("at tc egress of {device}"),
        Place::Queued => format!("at the qdisc of {device}"),
        Place::Sent => format!("where it was given to the driver of {device}"),
        Place::Hook(passed) => {
            let family = if passed.family == Family::Bridge { "bridge " } else { "" };
            let how = match passed.point {
                _ if is_through(passed) => "leaving",
                Point::Entered => "entering",
                Point::Past(_) | Point::Left => "inside",
            };
            format!("{how} {family}hook {}", passed.hook)
        }
        Place::Read { .. } | Place::Taken => "at its socket".to_owned(),
        Place::Consumed { .. } | Place::Dropped => "where it was freed".to_owned(),
    };
    let pod = last.pod.as_ref().map(|pod| format!(" in {}", escape(pod))).unwrap_or_default();
    format!("vanished: last seen at step {}, {place}{pod}", trail.count())
}

/// What comes next after a place where all goes well.
fn normally(trail: &Trail, last: &Seen) -> String {
    let route = trail.visit().route.as_ref();
    let neighbour = || {
        let next = route.and_then(|route| route.gateway).map(|gateway| format!(" {gateway}"));
        let next = next.unwrap_or_default();
        format!(
            "tc egress and the qdisc, as soon as the link-layer address of the next hop{next} is known: `ip neigh` says whether it is being looked for"
        )
    };
    let routed = || match route.map(|route| route.decision) {
        Some(Decision::Local) => "the hook INPUT, as it was routed to this network namespace".to_owned(),
        Some(Decision::Forward) => format!("the hook FORWARD, as it was routed on{}", by(route)),
        Some(Decision::Refused) => "an error, as the route refuses it".to_owned(),
        _ => "a route, then the hook INPUT or FORWARD".to_owned(),
    };
    let to_socket = match transport(&last.view) {
        Some(protocol) => format!(
            ", or, where no hook is shown, {protocol}: a program that has not read it yet looks like that, too"
        ),
        None => String::new(),
    };
    match &last.place {
        Place::Received => format!("tc ingress, then the hook PREROUTING{to_socket}"),
        Place::TcIngress => {
            format!(
                "the programs there, which may take it or send it on, then the hook PREROUTING{to_socket}"
            )
        }
        Place::Hook(passed) if passed.family == Family::Bridge => {
            "what the bridge does with it: up to the bridge itself, or on to another port".to_owned()
        }
        Place::Hook(passed) if !is_through(passed) => {
            format!(
                "the other functions on {}; one may have taken it, or queued it for a program",
                passed.hook
            )
        }
        Place::Hook(passed) => match passed.hook {
            "PREROUTING" => routed(),
            "INPUT" => "its protocol's handler".to_owned(),
            "FORWARD" => "the hook POSTROUTING".to_owned(),
            "OUTPUT" => "the hook POSTROUTING".to_owned(),
            "POSTROUTING" => neighbour(),
            _ => "the hooks of IP".to_owned(),
        },
        Place::TcEgress => "the programs there, which may take it or send it on, then the qdisc".to_owned(),
        Place::Queued => "the driver, as soon as the qdisc gives it out".to_owned(),
        Place::Sent => hands_on(last).unwrap_or("the wire").to_owned(),
        Place::Read { .. } | Place::Taken | Place::Consumed { .. } | Place::Dropped => "nothing".to_owned(),
    }
}

fn by(route: Option<&crate::trace::model::Route>) -> String {
    let interface = route.and_then(|route| route.interface.as_deref());
    interface.map(|interface| format!(" by {}", escape(interface))).unwrap_or_default()
}
