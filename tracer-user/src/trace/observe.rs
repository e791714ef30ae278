//! From what the kernel half sends of a followed packet to what was [`Seen`].

use super::model::{Decision, Passed, Place, Point, Route, Seen};
use super::rules::Met;
use crate::event::decode::Raw;
use crate::event::explain::{Names, interface_name};
use crate::event::model::Drop;
use crate::netfilter::model::{Family, hook_name};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tracer_common::{StepHead, place};

/// AF_INET and AF_INET6 (include/linux/socket.h).
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// What was seen, from the record and the `view` of its event; rules are left for who knows them. `None` for places that this
/// program doesn't know.
#[must_use]
pub fn seen(head: &StepHead, raw: &Raw, view: Drop, names: &dyn Names) -> Option<Seen> {
    let place = place_of(head, raw, names)?;
    Some(Seen {
        packet: head.packet,
        place,
        pod: None,
        route: route(head, raw, names),
        mac: (head.has_ethernet != 0).then(|| {
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = head.ethernet;
            [[d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]]
        }),
        bytes: raw.headers.clone(),
        link: Some(text(&head.link)).filter(|kind| !kind.is_empty()),
        view,
    })
}

fn place_of(head: &StepHead, raw: &Raw, names: &dyn Names) -> Option<Place> {
    Some(match head.place {
        place::RECEIVED => Place::Received,
        place::TC_INGRESS => Place::TcIngress,
        place::TC_EGRESS => Place::TcEgress,
        place::QUEUED => Place::Queued,
        place::SENT => Place::Sent,
        place::HOOK => passed(raw, point(head.priority))?,
        place::HOOK_ENTERED => passed(raw, Point::Entered)?,
        place::HOOK_LEFT => passed(raw, Point::Left)?,
        place::READ => Place::Read { process: text(&head.process), pid: head.pid },
        place::TAKEN => Place::Taken,
        place::CONSUMED => Place::Consumed {
            location: Some(head.location).filter(|at| *at != 0).and_then(|at| names.symbol(at)),
        },
        place::DROPPED => Place::Dropped,
        _ => return None,
    })
}

fn point(priority: i32) -> Point {
    if priority == tracer_common::priority::FIRST { Point::Entered } else { Point::Past(priority) }
}

fn passed(raw: &Raw, point: Point) -> Option<Place> {
    let state = raw.hook.as_ref()?;
    let family = Family::from_number(state.family)?;
    let hook = hook_name(family, state.hook)?;
    Some(Place::Hook(Box::new(Passed { family, hook, point, rules: Vec::new(), unsure: None })))
}

/// What a packet that was dropped on a hook met there before; `None` if nothing is known of that.
#[must_use]
pub fn on_hook(raw: &Raw, met: Met) -> Option<Place> {
    if met.rules.is_empty() && met.unsure.is_none() {
        return None;
    }
    let Some(Place::Hook(mut passed)) = passed(raw, Point::Past(i32::MAX)) else { return None };
    (passed.rules, passed.unsure) = (met.rules, met.unsure);
    Some(Place::Hook(passed))
}

/// A name in the kernel: any bytes up to a NUL.
fn text(name: &[u8; 16]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
}

fn route(head: &StepHead, raw: &Raw, names: &dyn Names) -> Option<Route> {
    if head.route_input == 0 && head.route_output == 0 {
        return None;
    }
    let function = |address: u64| {
        let symbol = names.symbol(address)?;
        let (name, place) = symbol.split_once('+')?;
        (place.split(' ').next() == Some("0x0")).then(|| name.to_owned())
    };
    // A packet that came in goes where `input` says, one that was made here where `output` does.
    let is_made_here =
        raw.ingress_ifindex == 0 && raw.hook.as_ref().is_none_or(|state| state.input.is_none());
    let [input, output] = [head.route_input, head.route_output].map(function);
    let leaves = is_made_here || is_only_for_output(input.as_deref(), output.as_deref());
    let function = if leaves { output } else { input };
    Some(Route {
        decision: decision(function.as_deref(), leaves),
        interface: interface_name(&head.route_device.name),
        gateway: gateway(head),
        function,
    })
}

/// A route for what is made here keeps the `input` that dst_init() (net/core/dst.c) gave it. So has a tunnel's packet, whose
/// device is an incoming one for POSTROUTING.
fn is_only_for_output(input: Option<&str>, output: Option<&str>) -> bool {
    input == Some("dst_discard") && output.is_some_and(|output| output != "dst_discard_out")
}

/// What is done with the packet by a route's function (net/ipv4/route.c, net/ipv6/route.c, net/core/dst.c).
fn decision(function: Option<&str>, leaves: bool) -> Decision {
    match function {
        Some("ip_local_deliver" | "ip6_input") => Decision::Local,
        Some("ip_forward" | "ip6_forward" | "ip_mr_forward") => Decision::Forward,
        Some(
            "ip_error"
            | "dst_discard"
            | "dst_discard_out"
            | "ip6_pkt_discard"
            | "ip6_pkt_discard_out"
            | "ip6_pkt_prohibit"
            | "ip6_pkt_prohibit_out"
            | "ip_rt_bug",
        ) => Decision::Refused,
        Some("ip_output" | "ip_mc_output" | "ip6_output") if leaves => Decision::Output,
        _ => Decision::Other,
    }
}

fn gateway(head: &StepHead) -> Option<IpAddr> {
    let [a, b, c, d, ..] = head.gateway;
    let gateway = match head.gateway_family {
        AF_INET => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(head.gateway)),
        _ => return None,
    };
    (!gateway.is_unspecified()).then_some(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_for_output_refuses_nothing() {
        assert!(is_only_for_output(Some("dst_discard"), Some("ip_output")));
        assert!(!is_only_for_output(Some("dst_discard"), Some("dst_discard_out")));
        assert!(!is_only_for_output(Some("ip_forward"), Some("ip_output")));
        assert_eq!(decision(Some("ip_output"), true), Decision::Output);
        assert_eq!(decision(Some("dst_discard"), false), Decision::Refused);
    }
}
