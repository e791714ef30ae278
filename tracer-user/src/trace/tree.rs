//! A story for people: a packet, below it the network namespaces that it was in, below those its steps.

use super::model::{
    Decision, Ends, Kind, Met, NatStep, NetfilterStep, Outcome, Route, Step, Story, TunnelStep,
};
use crate::event::model::{Class, Endpoint};
use crate::netfilter::model::{Backend, Confidence, Family};
use crate::output::line::{self, styled};
use crate::output::{Palette, escape, words};
use tracer_common::priority;

/// How a tree looks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    pub(super) palette: Palette,
    /// The rules' text, and of a cause what else is known.
    pub(super) verbose: bool,
    /// Inode number of the node's own network namespace.
    pub(super) node: Option<u32>,
}

/// The story. `time` is that of its first step, as it is to be printed.
pub(super) fn tree(story: &Story, time: &str, look: &Look) -> String {
    let mut text = head(story, time, look);
    let start = story.steps.first().map_or(0, |step| step.time.0);
    let mut here = None;
    for step in &story.steps {
        if here != Some((step.netns, &step.pod)) {
            here = Some((step.netns, &step.pod));
            text.push_str(&format!("  {}\n", styled(look.palette.place, &namespace(step, look))));
        }
        let since = format!("+{} ms", milliseconds(step.time.0 - start));
        text.push_str(&format!(
            "    {}  {}\n",
            styled(look.palette.faint, &format!("{since:>11}")),
            line(step)
        ));
        if look.verbose
            && let Some(rule) = step.netfilter.as_ref().and_then(|netfilter| netfilter.text.as_ref())
        {
            text.push_str(&format!("{:21}{}\n", "", styled(look.palette.faint, &escape(rule))));
        }
    }
    text.push_str(&end(story, look));
    text
}

fn head(story: &Story, time: &str, look: &Look) -> String {
    let view = story.steps.first().and_then(|step| step.seen.as_ref()).map(|seen| &seen.view);
    let known = view.map(|view| [words::ends(view), words::protocol(view)]).unwrap_or_default();
    let number = format!("packet {}", story.end.packet);
    let parts = [number, styled(look.palette.faint, time)].into_iter().chain(known);
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ") + "\n"
}

/// Whose it is: `shop/cart-7c9`, `node`, `netns 4026532281`.
fn namespace(step: &Step, look: &Look) -> String {
    match (&step.pod, step.netns) {
        (Some(pod), _) => escape(pod).into_owned(),
        (None, Some(netns)) if look.node == Some(netns) => "node".to_owned(),
        (None, Some(netns)) => format!("netns {netns}"),
        (None, None) => "a network namespace that is not known".to_owned(),
    }
}

/// Nanoseconds as milliseconds with three digits.
fn milliseconds(nanoseconds: i128) -> String {
    let micros = nanoseconds.max(0) / 1000;
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

/// A step, without its time.
pub(super) fn line(step: &Step) -> String {
    let netfilter = step.netfilter.as_ref();
    if let (Kind::Netfilter, Some(met)) = (step.kind, netfilter.and_then(|it| rule(it, step))) {
        let note = step.note.as_ref().map(|note| format!("  -- {}", escape(note)));
        return format!("  {met}{}", note.unwrap_or_default());
    }
    let what = match step.kind {
        Kind::Device if step.interface_in.is_none() && step.interface_out.is_none() => String::new(),
        Kind::Device if step.interface_out.is_some() => format!("sent on {}", interface(&step.interface_out)),
        Kind::Device => format!("received on {}", interface(&step.interface_in)),
        Kind::Tc if step.interface_out.is_some() => format!("egress of {}", interface(&step.interface_out)),
        Kind::Tc => format!("ingress of {}", interface(&step.interface_in)),
        Kind::Netfilter => netfilter.map(|it| hook(it, step)).unwrap_or_default(),
        Kind::Nat => step.nat.as_ref().map(nat).unwrap_or_default(),
        Kind::Route => step.route.as_ref().map(route).unwrap_or_default(),
        Kind::Tunnel => step.tunnel.as_ref().map(tunnel).unwrap_or_default(),
        Kind::Qdisc => interface(&step.interface_out),
        Kind::Bridge | Kind::Neighbour | Kind::Socket | Kind::Drop => String::new(),
    };
    let sure = match step.confidence {
        Confidence::Exact => "",
        Confidence::Inferred => " (inferred)",
        Confidence::Ambiguous => " (ambiguous)",
    };
    // What a device step of another kind has to say is its note.
    let is_note_only = what.is_empty() || step.kind == Kind::Device && step.method == "compared";
    let text = match &step.note {
        Some(note) if is_note_only => escape(note).into_owned(),
        Some(note) => format!("{what}  -- {}", escape(note)),
        None => what,
    };
    format!("{:<9}  {text}{sure}", kind(step.kind)).trim_end().to_owned()
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Device => "device",
        Kind::Tc => "tc",
        Kind::Netfilter => "netfilter",
        Kind::Nat => "nat",
        Kind::Route => "route",
        Kind::Bridge => "bridge",
        Kind::Tunnel => "tunnel",
        Kind::Neighbour => "neighbour",
        Kind::Qdisc => "qdisc",
        Kind::Socket => "socket",
        Kind::Drop => "dropped",
    }
}

fn interface(name: &Option<String>) -> String {
    name.as_deref().map_or_else(|| "?".into(), escape).into_owned()
}

/// `PREROUTING  eth0`
fn hook(netfilter: &NetfilterStep, step: &Step) -> String {
    let family = match netfilter.family {
        Family::Ipv4 | Family::Ipv6 | Family::Inet => String::new(),
        other => format!("{} ", other.name()),
    };
    let devices = match (&step.interface_in, &step.interface_out) {
        (Some(from), Some(to)) => format!("  {}->{}", escape(from), escape(to)),
        (Some(from), None) => format!("  {}", escape(from)),
        (None, Some(to)) => format!("  ->{}", escape(to)),
        (None, None) => String::new(),
    };
    let past = netfilter.priority.map(|priority| format!(" past {}", function(priority))).unwrap_or_default();
    format!("{family}{}{past}{devices}", netfilter.hook)
}

/// What is behind a packet that is past all functions with a smaller priority, where that is one of those where it is looked at.
fn function(priority: i32) -> String {
    let name = match priority {
        priority::RAW => "raw",
        priority::CONNTRACK => "connection tracking",
        priority::MANGLE => "mangle",
        priority::DSTNAT => "destination NAT",
        priority::FILTER => "filter",
        priority::SECURITY => "security",
        priority::SRCNAT => "source NAT",
        i32::MAX => "all",
        other => return format!("priority {other}"),
    };
    name.to_owned()
}

/// `nat:KUBE-SEP-A:rule:2  target dnat  (legacy, evaluated)`; `None` for the hook itself.
fn rule(netfilter: &NetfilterStep, step: &Step) -> Option<String> {
    let place = place(netfilter)?;
    let verdict = netfilter.verdict.as_deref().map(escape).unwrap_or_default();
    let backend = netfilter.backend.map(|backend| match backend {
        Backend::Legacy => "legacy, ",
        Backend::Nft => "nft, ",
    });
    let unsure = if step.confidence == Confidence::Ambiguous { ", ambiguous" } else { "" };
    Some(format!("{place}  {verdict}  ({}{}{unsure})", backend.unwrap_or_default(), step.method))
}

/// As the kernel's TRACE names it, `raw:cali-PREROUTING:return:5`; rules of native nft by their handle,
/// `inet:TABLE:CHAIN:handle:12`. `None` for the hook itself.
pub(super) fn place(netfilter: &NetfilterStep) -> Option<String> {
    let (table, chain) = (escape(netfilter.table.as_deref()?), escape(netfilter.chain.as_deref()?));
    let what = match netfilter.what {
        Some(Met::Return) => "return",
        Some(Met::Policy) => "policy",
        Some(Met::Rule) | None => "rule",
    };
    Some(match (netfilter.rule, netfilter.handle) {
        (Some(number), _) => format!("{table}:{chain}:{what}:{number}"),
        (None, Some(handle)) => format!("{}:{table}:{chain}:handle:{handle}", netfilter.family.name()),
        (None, None) => format!("{table}:{chain}:{what}"),
    })
}

/// Only the ends that became others.
fn nat(nat: &NatStep) -> String {
    let address = |end: &Endpoint| words::address(end);
    let changed = |name: &str, before: &Endpoint, after: &Endpoint| {
        let (old, new) = (address(before), address(after));
        (old != new).then(|| format!("{name} {old} => {new}{}", name_of(after)))
    };
    let Ends { source, destination } = &nat.before;
    let ends = [
        changed("source", source, &nat.after.source),
        changed("destination", destination, &nat.after.destination),
    ];
    ends.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// ` (shop/redis-0)`
fn name_of(end: &Endpoint) -> String {
    let name = end.k8s.as_ref().and_then(words::who);
    name.map(|name| format!(" ({name})")).unwrap_or_default()
}

fn route(route: &Route) -> String {
    let decision = match route.decision {
        Decision::Local => "local",
        Decision::Forward => "forward",
        Decision::Output => "output",
        Decision::Refused => "refused",
        Decision::Other => "other",
    };
    let by = route.interface.as_ref().map(|name| format!(" by {}", escape(name))).unwrap_or_default();
    let next = route.gateway.map(|gateway| format!(", next hop {gateway}")).unwrap_or_default();
    let function = route.function.as_ref().map(|name| format!("  ({})", escape(name))).unwrap_or_default();
    format!("{decision}{by}{next}{function}")
}

fn tunnel(tunnel: &TunnelStep) -> String {
    let vni = tunnel.vni.map(|vni| format!(" (vni {vni})")).unwrap_or_default();
    let (way, ends) = if tunnel.encapsulated { ("into", &tunnel.outer) } else { ("out of", &tunnel.inner) };
    let ends = words::addresses(&ends.source, &ends.destination);
    format!("{way} {}{vni}  {ends}", escape(&tunnel.kind).to_uppercase())
}

fn end(story: &Story, look: &Look) -> String {
    let palette = &look.palette;
    let end = &story.end;
    let style = match end.outcome {
        Outcome::Dropped => palette.class(end.drop.as_ref().map_or(Class::Error, |drop| drop.drop.class)),
        Outcome::Delivered | Outcome::Left => palette.fix,
        Outcome::NoReply | Outcome::Vanished => palette.error,
    };
    let cause = end.cause.as_ref().map(|cause| line::cause(cause, "  ", look.verbose, palette));
    // The note is made of words that are escaped already.
    format!("  {}\n{}", styled(style, &end.note), cause.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::fixtures::{self, NODE};
    use crate::trace::model::{RuleMet, Seen};
    use crate::trace::story::Stories;
    use std::time::Duration;

    fn told(seen: Vec<Seen>, look: &Look) -> String {
        let mut stories = Stories::default();
        seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
        tree(&stories.due(Duration::from_secs(9))[0], "22:14:03.112", look)
    }

    fn plain() -> Look {
        Look { node: Some(NODE), ..Look::default() }
    }

    #[test]
    fn a_service_across_two_veths() {
        let expected = "\
packet 2  22:14:03.112  shop/cart-7c9:41822 -> 10.96.3.4:6379  TCP SYN
  shop/cart-7c9
      +0.000 ms  route      output by eth0
      +0.000 ms  netfilter  OUTPUT  ->eth0
      +0.020 ms  qdisc      eth0
      +0.030 ms  device     sent on eth0
  node
      +0.040 ms  device     received on veth1
      +0.050 ms  netfilter  PREROUTING  veth1
      +0.060 ms    nat:PREROUTING:rule:1  jump KUBE-SERVICES  (legacy, evaluated)
      +0.060 ms    nat:KUBE-SEP-A:rule:2  target dnat  (legacy, evaluated)
      +0.060 ms  nat        destination 10.96.3.4:6379 => 10.244.1.9:6379 (shop/redis-0)
      +0.070 ms  route      forward by veth2
      +0.070 ms  netfilter  FORWARD  veth1->veth2
      +0.080 ms    filter:FORWARD:policy:3  accept  (legacy, evaluated)
      +0.090 ms  netfilter  POSTROUTING  ->veth2
      +0.110 ms  neighbour  its destination is at 02:00:00:00:01:09
      +0.110 ms  tc         egress of veth2
      +0.120 ms  qdisc      veth2
      +0.130 ms  device     sent on veth2
  shop/redis-0
      +0.140 ms  device     received on eth0
      +0.150 ms  route      local by lo
      +0.150 ms  netfilter  INPUT
      +0.170 ms  socket     taken by the kernel itself (tcp_v4_rcv+0x10)
  delivered: taken by TCP itself, which answers for a listener in shop/redis-0
";
        assert_eq!(told(fixtures::dnat_to_pod(), &plain()), expected);
    }

    #[test]
    fn a_drop_has_its_cause() {
        let text = told(fixtures::ip_forward_off(), &plain());
        let expected = "
      +0.030 ms  nat        destination 192.0.2.1:40000 => 10.244.3.7:40000 (shop/cart-7c9)
      +0.040 ms  route      refused by eth0  (ip_error)
      +0.040 ms  dropped    IP_INNOROUTES ip_error+0x1b2
  dropped: IP_INNOROUTES ip_error+0x1b2
    why: eth0 does not forward
    fix: sysctl -w net.ipv4.ip_forward=1
";
        assert!(text.ends_with(expected), "{text}");
        assert!(text.contains("  raw:cali-PREROUTING:return:5  return  (legacy, evaluated)\n"));
        let text = told(fixtures::dropped_by_rule(), &plain());
        assert!(text.contains("dropped    filter:FORWARD:rule:3 (FORWARD, legacy)\n"), "{text}");
    }

    #[test]
    fn a_tunnel_and_a_bridge() {
        let text = told(fixtures::vxlan(), &Look::default());
        assert!(text.contains("  netns 4026531840\n"), "{text}");
        assert!(
            text.contains("  tunnel     into VXLAN (vni 1)  10.0.0.1:55000 -> 10.0.0.2:8472\n"),
            "{text}"
        );
        assert!(text.contains("  route      output by eth1, next hop 10.0.0.254\n"), "{text}");
        assert!(text.contains("\n  left on eth1 as VXLAN"), "{text}");
        let mut packet = fixtures::Walker::new(1, "tcp", "10.0.0.1:1", "10.0.0.2:80");
        let seen = vec![
            packet.device("veth1").at(crate::trace::model::Place::Received),
            packet.device("veth2").at(crate::trace::model::Place::Queued),
        ];
        let text = told(seen, &plain());
        let bridge =
            "bridge     from veth1 to veth2: to another port of a bridge, or by a tc program (inferred)\n";
        assert!(text.contains(bridge), "{text}");
    }

    #[test]
    fn what_is_from_outside_is_escaped() {
        let evil = "\u{1b}[31m";
        let mut seen = fixtures::udp_read();
        for seen in &mut seen {
            seen.pod = Some(evil.into());
            seen.view.network.interface = Some(evil.into());
            seen.view.network.interface_in = Some(evil.into());
            if let Some(route) = &mut seen.route {
                route.interface = Some(evil.into());
            }
            if let crate::trace::model::Place::Read { process, .. } = &mut seen.place {
                *process = evil.into();
            }
            if let crate::trace::model::Place::Hook(passed) = &mut seen.place {
                let mut rule = fixtures::rule("filter:INPUT:rule:1", evil);
                (rule.table, rule.chain, rule.text) = (evil.into(), evil.into(), Some(evil.into()));
                passed.rules.push(rule);
                passed.unsure = Some(evil.into());
            }
        }
        let text = told(seen, &Look { verbose: true, ..plain() });
        assert!(!text.contains('\u{1b}') && text.contains("\\x1b[31m:\\x1b[31m:rule:1"), "{text}");
    }

    #[test]
    fn rules_of_nft_by_their_handles() {
        let mut packet = fixtures::Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
        let native = |handle, place: &str, verdict: &str| RuleMet {
            backend: Backend::Nft,
            family: Family::Inet,
            rule: None,
            handle,
            confidence: Confidence::Exact,
            method: "probe",
            ..fixtures::rule(place, verdict)
        };
        let rules =
            vec![native(Some(12), "shop:pods:rule:", "jump dns"), native(None, "shop:in:policy:", "accept")];
        let seen = vec![packet.enters("INPUT"), packet.leaves("INPUT", rules)];
        let text = told(seen.clone(), &plain());
        assert!(text.contains("    inet:shop:pods:handle:12  jump dns  (nft, probe)\n"), "{text}");
        assert!(text.contains("    shop:in:policy  accept  (nft, probe)\n"), "{text}");
        let mut stories = Stories::default();
        seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
        let lines = crate::trace::iptables::lines(&stories.due(Duration::from_secs(9))[0], |_| String::new());
        assert!(lines.starts_with("TRACE: inet:shop:pods:handle:12 IN= OUT= SRC=10.0.0.1 "), "{lines}");
        assert!(lines.contains("\nTRACE: shop:in:policy IN= OUT= SRC=10.0.0.1 "), "{lines}");
    }

    #[test]
    fn what_is_not_told_is_said_once() {
        let mut packet = fixtures::Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
        packet.hook_devices(Some("eth0"), None);
        let mut point = |point| {
            let unsure = Some("too many packets".to_owned());
            let passed = crate::trace::model::Passed { unsure, ..fixtures::passed("INPUT", point) };
            packet.at(crate::trace::model::Place::Hook(Box::new(passed)))
        };
        use crate::trace::model::Point::{Entered, Past};
        let text = told(vec![point(Entered), point(Past(-149)), point(Past(1))], &plain());
        assert_eq!(text.matches("too many packets").count(), 1, "{text}");
        let text = told(vec![point(Past(-149)), point(Past(7))], &plain());
        assert!(text.contains("netfilter  INPUT  eth0  -- too many packets\n"), "{text}");
        assert_eq!((function(-149), function(7)), ("mangle".to_owned(), "priority 7".to_owned()));
    }

    #[test]
    fn colours_are_only_for_terminals() {
        let look = Look { palette: Palette::new(true), ..plain() };
        let text = told(fixtures::vanished(), &look);
        assert!(text.contains("\u{1b}[1m\u{1b}[31mvanished: last seen at step 2"), "{text:?}");
        assert!(!told(fixtures::vanished(), &plain()).contains('\u{1b}'));
    }
}
