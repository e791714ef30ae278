//! What happened to one packet: a step for each place where it was seen, and before it those that follow from what is other
//! than at the place before.

use super::end::taken_by;
use super::replies::Key;
use crate::event::model::{Drop, Endpoint, Inner};
use crate::netfilter::model::{Confidence, Family};
use crate::output::{escape, words};
use crate::trace::model::{
    Decision, Ends, Kind, Met, NatStep, NetfilterStep, Passed, Place, Point, Route, RuleMet, Seen, Step,
    TunnelStep,
};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Steps that are kept of a packet.
const MAX_STEPS: usize = 256;
/// Ends that a packet is known by: before and after each translation.
const MAX_KEYS: usize = 8;

/// The names of all hooks.
const HOOKS: [&str; 8] =
    ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "INGRESS", "EGRESS", "BROUTING"];

/// A packet's way so far.
#[derive(Debug)]
pub(super) struct Trail {
    packet: u64,
    steps: Vec<Step>,
    left_out: u64,
    last_kind: Option<Kind>,
    /// Where it was seen last, but for its end.
    last: Option<Arc<Seen>>,
    /// The kernel has freed it, not as dropped.
    freed: Option<Arc<Seen>>,
    /// The last time that it was given to a driver.
    sent: Option<Arc<Seen>>,
    visit: Visit,
    keys: Vec<Key>,
    asks: bool,
}

/// What was seen since the packet came into the network namespace that it is in.
#[derive(Debug, Default)]
pub(super) struct Visit {
    /// The device that received it last there.
    received_on: Option<String>,
    ttl: Option<u8>,
    /// The bridge whose frames IP's hooks are run for (br_netfilter).
    bridge: Option<String>,
    /// The device that it was given to last there, and what kind that is.
    sent_on: Option<(String, Option<String>)>,
    /// A hook of IPv4 or IPv6 was seen.
    has_hooks: bool,
    /// One past PREROUTING, since it was received.
    went_on: bool,
    /// The hook that it is on, or was on last.
    hook: Option<(Family, &'static str)>,
    /// The hooks that it has entered and not left: those of IP are run inside a bridge's (br_netfilter).
    inside: Vec<(Family, &'static str)>,
    /// What was said last of rules that could not be told.
    unsure: Option<String>,
    /// Where it was routed to.
    pub(super) route: Option<Route>,
    /// It was freed as what was read from a socket is.
    at_socket: bool,
    /// The device whose next hop was told.
    neighbour_on: Option<String>,
    /// It is known why no hooks are seen, or it was said that they are not.
    is_explained: bool,
}

/// What one place adds.
struct At<'t> {
    seen: &'t Arc<Seen>,
    /// Where the packet was seen before.
    before: Option<&'t Arc<Seen>>,
    steps: Vec<Step>,
}

impl Trail {
    pub(super) fn new(packet: u64) -> Self {
        Self {
            packet,
            steps: Vec::new(),
            left_out: 0,
            last_kind: None,
            last: None,
            freed: None,
            sent: None,
            visit: Visit::default(),
            keys: Vec::new(),
            asks: false,
        }
    }

    /// Takes what was seen next. At most `room` steps are kept; says how many were.
    pub(super) fn take(&mut self, seen: &Arc<Seen>, room: usize) -> usize {
        let before = self.last.take();
        if let Some(before) = &before
            && netns(seen).is_some_and(|here| netns(before).is_some_and(|there| there != here))
        {
            self.visit = Visit::default();
        }
        let mut at = At { seen, before: before.as_ref(), steps: Vec::new() };
        match &seen.place {
            // What a hook's rules did follows them.
            Place::Hook(passed) if !self.visit.enters(passed) => {
                self.visit.hook(passed, &mut at);
                changes(&mut at);
                self.visit.routed(&mut at);
            }
            _ => {
                changes(&mut at);
                self.visit.routed(&mut at);
                self.visit.crossed(&mut at);
                self.visit.place(&mut at);
            }
        }
        if let (None, Some(inner)) = (&before, tunnelled(&seen.view)) {
            at.note(carried(inner));
        }
        let At { steps, .. } = at;
        let kept = self.keep(steps, room);
        self.remember(seen, before);
        kept
    }

    fn keep(&mut self, steps: Vec<Step>, room: usize) -> usize {
        self.last_kind = steps.last().map(|step| step.kind).or(self.last_kind);
        let room = room.min(MAX_STEPS.saturating_sub(self.steps.len()));
        let kept = steps.len().min(room);
        self.left_out += u64::try_from(steps.len() - kept).unwrap_or(u64::MAX);
        for mut step in steps.into_iter().take(kept) {
            step.packet = self.packet.to_string();
            step.step = u32::try_from(self.steps.len()).unwrap_or(u32::MAX).saturating_add(1);
            self.steps.push(step);
        }
        kept
    }

    fn remember(&mut self, seen: &Arc<Seen>, before: Option<Arc<Seen>>) {
        if tunnelled(&seen.view).is_none() {
            self.asks |= is_request(&seen.view);
            if let Some(key) = Key::of(&seen.view)
                && self.keys.len() < MAX_KEYS
                && !self.keys.contains(&key)
            {
                self.keys.push(key);
            }
        }
        if matches!(seen.place, Place::Consumed { .. }) {
            self.freed = Some(Arc::clone(seen));
            self.last = before;
            return;
        }
        // What was freed before was a copy.
        self.freed = None;
        if matches!(seen.place, Place::Sent) {
            self.sent = Some(Arc::clone(seen));
        }
        self.last = Some(Arc::clone(seen));
    }

    /// How long nothing may be seen of it until it is held to have gone. Where it may wait for the link-layer address of its next
    /// hop, longer: until the kernel gives up and drops it, after three requests a second apart (mcast_solicit and retrans_time,
    /// net/ipv4/arp.c).
    pub(super) fn patience(&self) -> Duration {
        let waits = match self.last.as_ref().map(|last| &last.place) {
            Some(Place::TcEgress | Place::Queued | Place::Sent) => false,
            Some(Place::Hook(passed)) if passed.hook == "POSTROUTING" => true,
            _ => self
                .visit
                .route
                .as_ref()
                .is_some_and(|route| matches!(route.decision, Decision::Forward | Decision::Output)),
        };
        if waits { super::NEIGHBOUR } else { super::QUIET }
    }

    /// Whether its way has ended, so that what comes after is about what is left of it. That a program reads what its
    /// connection took is worth telling.
    pub(super) fn is_over(&self, next: &Seen) -> bool {
        match self.last.as_ref().map(|last| &last.place) {
            Some(Place::Taken) => !matches!(next.place, Place::Read { .. }),
            Some(Place::Dropped | Place::Read { .. }) => true,
            _ => false,
        }
    }

    /// Whether an answer is expected.
    pub(super) fn asks(&self) -> bool {
        self.asks
    }

    /// What it is known by, in all its forms.
    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// How long after it was sent something was seen; `None` if it wasn't, or if that was before, or much later.
    pub(super) fn since_sent(&self, answer: &Seen) -> Option<Duration> {
        let nanoseconds = answer.view.time.0 - self.sent.as_ref()?.view.time.0;
        let after = Duration::from_nanos(u64::try_from(nanoseconds).ok()?);
        (after <= super::QUIET).then_some(after)
    }

    pub(super) fn last(&self) -> Option<&Seen> {
        self.last.as_deref()
    }

    pub(super) fn freed(&self) -> Option<&Seen> {
        self.freed.as_deref()
    }

    pub(super) fn visit(&self) -> &Visit {
        &self.visit
    }

    pub(super) fn packet(&self) -> u64 {
        self.packet
    }

    pub(super) fn last_kind(&self) -> Option<Kind> {
        self.last_kind
    }

    /// How many steps were kept.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.steps.len()).unwrap_or(u64::MAX).saturating_add(self.left_out)
    }

    /// The steps, and how many others there were.
    pub(super) fn into_steps(self) -> (Vec<Step>, u64) {
        (self.steps, self.left_out)
    }
}

impl At<'_> {
    fn push(&mut self, kind: Kind, method: &'static str) -> &mut Step {
        let network = &self.seen.view.network;
        // Where it is freed that is not always known. It has not moved.
        let home = self.before.filter(|_| network.netns.is_none()).unwrap_or(self.seen);
        let step = Step {
            packet: String::new(),
            step: 0,
            time: self.seen.view.time,
            netns: home.view.network.netns,
            pod: home.pod.clone(),
            kind,
            interface_in: network.interface_in.clone(),
            interface_out: network.interface_out.clone(),
            source: self.seen.view.source.clone(),
            destination: self.seen.view.destination.clone(),
            method,
            confidence: Confidence::Exact,
            netfilter: None,
            nat: None,
            route: None,
            tunnel: None,
            note: None,
            seen: Some(Arc::clone(self.seen)),
        };
        self.steps.push(step);
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    /// Says something of the last step.
    fn note(&mut self, text: String) {
        if let Some(step) = self.steps.last_mut() {
            step.note = Some(match step.note.take() {
                Some(note) => format!("{note}; {text}"),
                None => text,
            });
        }
    }

    fn device(&self) -> Option<&String> {
        self.seen.view.network.interface.as_ref()
    }

    fn incoming(&mut self, kind: Kind, method: &'static str) -> &mut Step {
        let device = self.device().cloned();
        let step = self.push(kind, method);
        step.interface_in = device.or(step.interface_in.take());
        step.interface_out = None;
        step
    }

    fn outgoing(&mut self, kind: Kind, method: &'static str) -> &mut Step {
        let device = self.device().cloned();
        let step = self.push(kind, method);
        step.interface_out = device.or(step.interface_out.take());
        step
    }
}

impl Visit {
    /// Whether that is the first of a hook.
    fn enters(&self, passed: &Passed) -> bool {
        passed.point == Point::Entered || !self.inside.contains(&(passed.family, passed.hook))
    }

    /// A hook, or how far the packet came there, and the rules that it met.
    fn hook(&mut self, passed: &Passed, at: &mut At<'_>) {
        let enters = self.enters(passed);
        let this = (passed.family, passed.hook);
        self.hook = Some(this);
        self.inside.retain(|&other| other != this);
        if passed.point != Point::Left {
            self.inside.push(this);
        }
        if is_of_ip(passed.family) {
            self.has_hooks = true;
            self.sent_on = None;
            self.went_on |= passed.hook != "PREROUTING" && passed.hook != "INGRESS";
        }
        let hook = |priority| NetfilterStep::hook(passed.family, passed.hook, priority);
        let priority = match passed.point {
            Point::Past(priority) => Some(priority),
            Point::Entered | Point::Left => None,
        };
        if enters {
            at.push(Kind::Netfilter, "hook").netfilter = Some(hook(None));
        }
        // It came to the rules as it was at the point before.
        let before = at.before.filter(|_| !enters);
        for rule in &passed.rules {
            let step = at.push(Kind::Netfilter, rule.method);
            step.confidence = rule.confidence;
            step.netfilter = Some(NetfilterStep::rule(passed, rule));
            if let Some(before) = before {
                step.source = before.view.source.clone();
                step.destination = before.view.destination.clone();
                step.seen = Some(Arc::clone(before));
            }
        }
        // Where the same holds for all that follows it is said once.
        if let Some(unsure) = &passed.unsure
            && self.unsure.as_ref() != Some(unsure)
        {
            self.unsure = Some(unsure.clone());
            if !enters || !passed.rules.is_empty() {
                at.push(Kind::Netfilter, "hook").netfilter = Some(hook(priority));
            }
            at.note(unsure.clone());
        }
    }

    /// A route that was found since.
    fn routed(&mut self, at: &mut At<'_>) {
        let Some(route) = &at.seen.route else { return };
        if self.route.as_ref() == Some(route) {
            return;
        }
        self.route = Some(route.clone());
        let method = match at.seen.place {
            Place::Hook(_) => "hook",
            Place::TcIngress | Place::TcEgress => "tc",
            _ => "tracepoint",
        };
        let route = route.clone();
        at.push(Kind::Route, method).route = Some(route);
    }

    /// Ways from device to device, past the hooks of IP; and the next hop's address.
    fn crossed(&mut self, at: &mut At<'_>) {
        let device = at.device().cloned();
        match &at.seen.place {
            Place::Hook(passed)
                if passed.family == Family::Bridge && !self.is_explained && self.received_on.is_some() =>
            {
                self.is_explained = true;
                at.push(Kind::Bridge, "hook").note = Some("on a bridge".to_owned());
            }
            Place::Hook(passed) if is_of_ip(passed.family) && self.enters(passed) => self.lifted(at),
            Place::Received => self.taken_up(device.as_deref(), at),
            Place::TcEgress | Place::Queued | Place::Sent => {
                self.passed_on(device.as_deref(), at);
                self.handed_down(device.as_deref(), at);
                self.resolved(device.as_deref(), at);
            }
            _ => {}
        }
    }

    /// From a bridge's port to the bridge.
    fn taken_up(&mut self, device: Option<&str>, at: &mut At<'_>) {
        let (Some(port), Some(upper)) = (self.received_on.as_deref(), device) else { return };
        let link = at.seen.link.as_deref();
        let untunnelled = at.steps.iter().any(|step| step.kind == Kind::Tunnel);
        if port == upper || self.sent_on.is_some() || untunnelled || link.is_some_and(|link| link != "bridge")
        {
            return;
        }
        let note = format!("from port {} up to {}", escape(port), escape(upper));
        bridge(at, note, link.is_some());
    }

    /// From the device that received it to the one above it whose hooks these are: a bridge, a VLAN, a bond.
    fn lifted(&mut self, at: &mut At<'_>) {
        let upper = at.seen.view.network.interface_in.as_deref();
        let (Some(port), Some(upper)) = (self.received_on.as_deref(), upper) else { return };
        if port == upper || self.went_on || self.sent_on.is_some() {
            return;
        }
        if at.seen.link.as_deref() == Some("bridge") {
            let note = format!("from port {} up to {}", escape(port), escape(upper));
            bridge(at, note, true);
            self.bridge = Some(upper.to_owned());
        }
        self.received_on = Some(upper.to_owned());
    }

    /// From the device that received it to another, without FORWARD.
    fn passed_on(&mut self, device: Option<&str>, at: &mut At<'_>) {
        let (Some(from), Some(to)) = (self.received_on.as_deref(), device) else { return };
        if self.bridge.as_deref().is_some_and(|bridge| bridge != to) && self.route.is_none() {
            let note = format!("on to port {} of {}", escape(to), escape(from));
            (self.bridge, self.is_explained) = (None, true);
            bridge(at, note, true);
            return;
        }
        if from == to || self.went_on || self.sent_on.is_some() || self.is_explained {
            return;
        }
        let view = &at.seen.view;
        let ways = format!("from {} to {}", escape(from), escape(to));
        let is_offloaded = view
            .conntrack
            .as_ref()
            .is_some_and(|entry| entry.status.split(',').any(|bit| matches!(bit, "offload" | "hw_offload")));
        if is_offloaded {
            self.is_explained = true;
            let step = at.push(Kind::Route, "compared");
            step.confidence = Confidence::Inferred;
            step.route = Some(Route {
                decision: Decision::Forward,
                interface: Some(to.to_owned()),
                ..Route::default()
            });
            let fast = "by a flowtable, the fast path of known connections: FORWARD and POSTROUTING are skipped on purpose";
            step.note = Some(format!("{ways} {fast}"));
        } else if self.route.is_some() {
            // Routed, and no hooks are seen.
        } else if self.ttl.is_some() && self.ttl == view.packet.ttl {
            self.is_explained = true;
            let port = format!("{ways}: to another port of a bridge, or by a tc program");
            bridge(at, port, false);
        } else {
            self.is_explained = true;
            let step = at.push(Kind::Device, "compared");
            step.confidence = Confidence::Inferred;
            let past = "past routing and netfilter: by a tc program, or by a flowtable";
            step.note = Some(format!("{ways} {past}"));
        }
    }

    /// From a bridge to its port, or from another device that lies on one.
    fn handed_down(&mut self, device: Option<&str>, at: &mut At<'_>) {
        let (Some((upper, link)), Some(lower)) = (self.sent_on.as_ref(), device) else { return };
        let was_tunnelled = at.steps.iter().any(|step| step.kind == Kind::Tunnel);
        if upper == lower || was_tunnelled || link.as_deref().is_some_and(|link| link != "bridge") {
            return;
        }
        let is_sure = link.is_some();
        let what = if is_sure { "its port" } else { "its port, or the device under it" };
        let note = format!("from {} down to {}: {what}", escape(upper), escape(lower));
        self.sent_on = None;
        bridge(at, note, is_sure);
    }

    /// The link-layer address of the next hop.
    fn resolved(&mut self, device: Option<&str>, at: &mut At<'_>) {
        let (Some(route), Some(device), Some([destination, _])) = (&self.route, device, at.seen.mac) else {
            return;
        };
        let is_its = route.interface.as_deref() == Some(device);
        if !is_its || destination == [0; 6] || self.neighbour_on.as_deref() == Some(device) {
            return;
        }
        let next = route.gateway.map_or_else(|| "its destination".to_owned(), |it| format!("next hop {it}"));
        self.neighbour_on = Some(device.to_owned());
        at.outgoing(Kind::Neighbour, "headers").note = Some(format!("{next} is at {}", mac(destination)));
    }

    /// The place itself.
    fn place(&mut self, at: &mut At<'_>) {
        let seen = Arc::clone(at.seen);
        let device = at.device().cloned();
        match &seen.place {
            Place::Hook(passed) => return self.hook(passed, at),
            Place::Received => {
                at.incoming(Kind::Device, "tracepoint");
                self.received_on = device;
                self.ttl = seen.view.packet.ttl;
                (self.sent_on, self.went_on, self.hook, self.route) = (None, false, None, None);
                self.inside.clear();
                self.bridge = None;
            }
            Place::TcIngress => {
                at.incoming(Kind::Tc, "tc");
                if self.received_on.is_none() {
                    self.received_on = device;
                    self.ttl = seen.view.packet.ttl;
                }
            }
            Place::TcEgress => drop(at.outgoing(Kind::Tc, "tc")),
            Place::Queued => drop(at.outgoing(Kind::Qdisc, "tracepoint")),
            Place::Sent => {
                at.outgoing(Kind::Device, "tracepoint");
                self.sent_on = device.map(|device| (device, seen.link.clone()));
            }
            Place::Read { process, pid } => {
                at.incoming(Kind::Socket, "tracepoint").note = Some(format!("read by {process} (pid {pid})"));
            }
            Place::Taken => {
                let method = if seen.view.network.transport.as_deref() == Some("udp") {
                    "probe"
                } else {
                    "tracepoint"
                };
                at.incoming(Kind::Socket, method).note = Some(taken_by(&seen.view).to_owned());
            }
            Place::Consumed { location } => {
                self.at_socket |= location.as_deref().is_some_and(frees_what_was_read);
                let by = location.as_ref().map(|location| format!(" ({location})")).unwrap_or_default();
                if self.is_here() {
                    let taken = match seen.view.network.transport.as_deref() {
                        Some("udp") => "used, and freed",
                        _ => "taken by the kernel itself",
                    };
                    at.incoming(Kind::Socket, "tracepoint").note = Some(format!("{taken}{by}"));
                } else if self.sent_on.is_none() {
                    at.incoming(Kind::Device, "tracepoint").note =
                        Some(format!("freed by the kernel, not as dropped{by}"));
                }
                return;
            }
            Place::Dropped => {
                let netfilter = seen.view.drop.netfilter.as_deref();
                let step = at.push(Kind::Drop, "tracepoint");
                step.confidence = netfilter.map_or(Confidence::Exact, |netfilter| netfilter.confidence);
                step.netfilter = NetfilterStep::of_drop(&seen.view);
                step.note = Some(words::place(&seen.view));
                return;
            }
        }
        let is_late = !matches!(seen.place, Place::Received | Place::TcIngress);
        if is_late && self.received_on.is_some() && !self.has_hooks && !self.is_explained {
            self.is_explained = true;
            let none = "no hook of netfilter was seen in this network namespace: none has rules, or they can't be shown";
            at.note(none.to_owned());
        }
    }

    /// It was given to a driver.
    pub(super) fn is_sent(&self) -> bool {
        self.sent_on.is_some()
    }

    /// It came as far as to be for this network namespace.
    pub(super) fn is_here(&self) -> bool {
        let by_hook = self.hook.is_some_and(|(family, hook)| family != Family::Bridge && hook == "INPUT");
        let by_route = self.route.as_ref().is_some_and(|route| route.decision == Decision::Local);
        self.sent_on.is_none() && (by_hook || by_route || self.at_socket)
    }
}

fn is_of_ip(family: Family) -> bool {
    matches!(family, Family::Ipv4 | Family::Ipv6 | Family::Inet)
}

/// Where TCP and UDP free what a program has read (tcp_eat_recv_skb(), net/ipv4/tcp.c; skb_consume_udp(), net/ipv4/udp.c; they
/// leave it to skb_attempt_defer_free(), net/core/skbuff.c, which has it freed where it was allocated).
fn frees_what_was_read(location: &str) -> bool {
    let function = location.split('+').next();
    matches!(
        function,
        Some("skb_defer_free_flush" | "skb_attempt_defer_free" | "skb_consume_udp" | "tcp_eat_recv_skb")
    )
}

fn bridge(at: &mut At<'_>, note: String, is_sure: bool) {
    let step = at.push(Kind::Bridge, "compared");
    step.confidence = if is_sure { Confidence::Exact } else { Confidence::Inferred };
    step.note = Some(note);
}

/// Tunnels and translations since the place before.
fn changes(at: &mut At<'_>) {
    let Some(before) = at.before else { return };
    let (old, new) = (Ends::of(&before.view), Ends::of(&at.seen.view));
    let changed = !old.are(&new);
    match (tunnelled(&before.view), tunnelled(&at.seen.view)) {
        (was, Some(inner)) if changed && was.is_none_or(|_| Ends::of_inner(inner).are(&old)) => {
            translated(before, &old, &Ends::of_inner(inner), at);
            let tunnel = TunnelStep::new(true, inner, new);
            at.push(Kind::Tunnel, "compared").tunnel = Some(tunnel);
        }
        (Some(inner), is) if changed && is.is_none_or(|_| Ends::of_inner(inner).are(&new)) => {
            let tunnel = TunnelStep::new(false, inner, old);
            let carried = tunnel.inner.clone();
            at.push(Kind::Tunnel, "compared").tunnel = Some(tunnel);
            translated(before, &carried, &new, at);
        }
        _ => translated(before, &old, &new, at),
    }
}

fn translated(before: &Seen, old: &Ends, new: &Ends, at: &mut At<'_>) {
    if old.are(new) {
        return;
    }
    let by_program = match (&before.place, &at.seen.place) {
        (_, Place::Hook(passed)) if passed.point != Point::Entered => None,
        (Place::TcIngress, _) => Some("since tc ingress, as a program there does"),
        (Place::TcEgress, _) => Some("since tc egress, as a program there does"),
        _ => None,
    };
    let step = at.push(Kind::Nat, "compared");
    step.nat = Some(NatStep { before: old.clone(), after: new.clone() });
    step.note = by_program.map(str::to_owned);
}

/// The packet that a tunnel's packet carries.
pub(super) fn tunnelled(view: &Drop) -> Option<&Inner> {
    view.inner.as_ref().filter(|inner| inner.kind != "icmp-error")
}

/// `VXLAN (vni 1) that carries 10.0.0.1:1 -> 10.0.0.2:80`
fn carried(inner: &Inner) -> String {
    let Inner { kind, source, destination, .. } = inner;
    let vni = inner.vni.map(|vni| format!(" (vni {vni})")).unwrap_or_default();
    format!("{}{vni} that carries {}", kind.to_uppercase(), words::addresses(source, destination))
}

/// `02:00:00:00:00:01`
pub(super) fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn netns(seen: &Seen) -> Option<u32> {
    seen.view.network.netns
}

/// Whether it is one that its destination answers.
fn is_request(view: &Drop) -> bool {
    let to_one = view.destination.address.is_some_and(|address| match address {
        IpAddr::V4(address) => !address.is_multicast() && !address.is_broadcast(),
        IpAddr::V6(address) => !address.is_multicast(),
    });
    let is_reply = view.conntrack.as_ref().is_some_and(|entry| entry.direction.as_deref() == Some("reply"));
    if !to_one || is_reply || view.packet.fragment == Some(true) {
        return false;
    }
    let has_flag =
        |flag| view.packet.tcp_flags.as_deref().is_some_and(|flags| flags.split(',').any(|it| it == flag));
    match view.network.transport.as_deref() {
        Some("tcp") => has_flag("SYN") && !has_flag("ACK"),
        Some("udp") => true,
        Some("icmp") => view.packet.icmp_type == Some(8),
        Some("icmpv6") => view.packet.icmp_type == Some(128),
        _ => false,
    }
}

impl Ends {
    fn of(view: &Drop) -> Self {
        Self { source: view.source.clone(), destination: view.destination.clone() }
    }

    fn of_inner(inner: &Inner) -> Self {
        Self { source: inner.source.clone(), destination: inner.destination.clone() }
    }

    /// Whether they are the same, as far as both are known.
    fn are(&self, other: &Self) -> bool {
        let same = |one: &Endpoint, other: &Endpoint| {
            let addresses = one.address.zip(other.address).is_none_or(|(one, other)| one == other);
            addresses && one.port.zip(other.port).is_none_or(|(one, other)| one == other)
        };
        same(&self.source, &other.source) && same(&self.destination, &other.destination)
    }
}

impl TunnelStep {
    fn new(encapsulated: bool, inner: &Inner, outer: Ends) -> Self {
        Self { encapsulated, kind: inner.kind.clone(), vni: inner.vni, outer, inner: Ends::of_inner(inner) }
    }
}

impl NetfilterStep {
    fn hook(family: Family, hook: &'static str, priority: Option<i32>) -> Self {
        Self {
            backend: None,
            family,
            hook,
            table: None,
            chain: None,
            what: None,
            rule: None,
            handle: None,
            verdict: None,
            text: None,
            mark: None,
            priority,
        }
    }

    fn rule(passed: &Passed, rule: &RuleMet) -> Self {
        Self {
            backend: Some(rule.backend),
            table: Some(rule.table.clone()),
            chain: Some(rule.chain.clone()),
            what: Some(rule.kind),
            rule: rule.rule,
            handle: rule.handle,
            verdict: Some(rule.verdict.clone()),
            text: rule.text.clone(),
            mark: rule.mark,
            ..Self::hook(rule.family, passed.hook, None)
        }
    }

    /// What of netfilter dropped a packet; `None` where that is not known, or was no hook.
    fn of_drop(view: &Drop) -> Option<Self> {
        let netfilter = view.drop.netfilter.as_deref()?;
        let hook = HOOKS.into_iter().find(|hook| netfilter.hook.as_deref() == Some(hook))?;
        let is_policy = netfilter.verdict.as_deref() == Some("policy");
        Some(Self {
            backend: netfilter.backend,
            what: is_policy.then_some(Met::Policy),
            table: netfilter.table.clone(),
            chain: netfilter.chain.clone(),
            rule: netfilter.rule,
            handle: netfilter.handle,
            verdict: netfilter.verdict.clone(),
            text: netfilter.text.clone(),
            ..Self::hook(netfilter.family?, hook, None)
        })
    }
}
