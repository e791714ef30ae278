use super::*;
use crate::event::model::{Cause, Class};
use crate::netfilter::model::{Confidence, Family};
use crate::trace::fixtures::{self, POD, Walker, passed, route, rule};
use crate::trace::model::{Decision, Kind, Outcome, Passed, Point, Step};

/// What was seen in one go, and what is told of it so much later.
fn told(seen: Vec<Seen>, later: Duration) -> Vec<Story> {
    let mut stories = Stories::default();
    seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
    stories.due(later)
}

fn one(seen: Vec<Seen>, later: Duration) -> Story {
    let mut stories = told(seen, later);
    assert_eq!(stories.len(), 1);
    stories.remove(0)
}

/// A step in short: its kind, and what of it matters here.
fn short(step: &Step) -> String {
    let kind = serde_json::to_value(step.kind).unwrap().as_str().unwrap().to_owned();
    let what = match (&step.netfilter, &step.nat, &step.route, &step.tunnel) {
        (Some(it), ..) => match (&it.table, &it.chain, it.rule) {
            (Some(table), Some(chain), Some(rule)) => format!("{table}:{chain}:{rule}"),
            _ => it.hook.to_owned(),
        },
        (_, Some(nat), ..) => format!("{} => {}", ends(&nat.before), ends(&nat.after)),
        (_, _, Some(route), _) => format!("{:?}", route.decision),
        (.., Some(tunnel)) => {
            let way = if tunnel.encapsulated { "into" } else { "out of" };
            format!("{way} {}: {} in {}", tunnel.kind, ends(&tunnel.inner), ends(&tunnel.outer))
        }
        _ => {
            let device = |name: &Option<String>| name.clone().unwrap_or_default();
            format!("{}>{}", device(&step.interface_in), device(&step.interface_out))
        }
    };
    format!("{kind} {what}")
}

fn ends(ends: &crate::trace::model::Ends) -> String {
    words::addresses(&ends.source, &ends.destination)
}

fn shorts(story: &Story) -> Vec<String> {
    story.steps.iter().map(short).collect()
}

fn notes(story: &Story) -> String {
    story.steps.iter().filter_map(|step| step.note.clone()).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_node_that_does_not_forward() {
    let story = one(fixtures::ip_forward_off(), Duration::ZERO);
    let expected = [
        "device eth0>",
        "netfilter PREROUTING",
        "netfilter raw:PREROUTING:1",
        "netfilter raw:cali-PREROUTING:5",
        "netfilter raw:PREROUTING:2",
        "netfilter mangle:PREROUTING:1",
        "nat 192.0.2.9:53 -> 192.0.2.1:40000 => 192.0.2.9:53 -> 10.244.3.7:40000",
        "route Refused",
        "drop eth0>",
    ];
    assert_eq!(shorts(&story), expected);
    let end = &story.end;
    assert_eq!((end.outcome, end.last, end.steps), (Outcome::Dropped, Some(Kind::Drop), 9));
    assert_eq!(end.cause.as_ref().map(|cause| cause.id.as_str()), Some("ip-forward-off"));
    assert_eq!(end.note, "dropped: IP_INNOROUTES ip_error+0x1b2");
    assert!(end.drop.is_some());
    let numbers: Vec<_> = story.steps.iter().map(|step| step.step).collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
    assert_eq!(story.steps[3].confidence, Confidence::Inferred);
    assert_eq!(story.steps[6].method, "compared");
}

#[test]
fn a_service_across_two_veths() {
    let story = one(fixtures::dnat_to_pod(), Duration::ZERO);
    let expected = [
        "route Output",
        "netfilter OUTPUT",
        "qdisc >eth0",
        "device >eth0",
        "device veth1>",
        "netfilter PREROUTING",
        "netfilter nat:PREROUTING:1",
        "netfilter nat:KUBE-SEP-A:2",
        "nat 10.244.3.7:41822 -> 10.96.3.4:6379 => 10.244.3.7:41822 -> 10.244.1.9:6379",
        "route Forward",
        "netfilter FORWARD",
        "netfilter filter:FORWARD:3",
        "netfilter POSTROUTING",
        "neighbour >veth2",
        "tc >veth2",
        "qdisc >veth2",
        "device >veth2",
        "device eth0>",
        "route Local",
        "netfilter INPUT",
        "socket eth0>",
    ];
    assert_eq!(shorts(&story), expected);
    assert_eq!(story.end.outcome, Outcome::Delivered);
    assert_eq!(
        story.end.note,
        "delivered: taken by TCP itself, which answers for a listener in shop/redis-0"
    );
    let pods: Vec<_> = story.steps.iter().map(|step| step.pod.as_deref()).collect();
    assert_eq!((pods[3], pods[4], pods[17]), (Some("shop/cart-7c9"), None, Some("shop/redis-0")));
    assert_eq!(story.steps[3].netns, Some(POD));
    assert!(notes(&story).contains("its destination is at 02:00:00:00:01:09"), "{}", notes(&story));
}

#[test]
fn a_tunnel_without_a_reply() {
    let mut stories = Stories::default();
    fixtures::vxlan().into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
    assert!(stories.due(QUIET - Duration::from_millis(1)).is_empty() && stories.is_waiting());
    let story = &stories.due(QUIET)[0];
    let tunnel = "tunnel into vxlan: 10.244.0.1 -> 10.244.1.1 in 10.0.0.1:55000 -> 10.0.0.2:8472";
    let expected = [
        "route Output",
        "netfilter OUTPUT",
        "qdisc >vxlan0",
        "device >vxlan0",
        tunnel,
        "route Output",
        "netfilter OUTPUT",
        "neighbour >eth1",
        "qdisc >eth1",
        "device >eth1",
    ];
    assert_eq!(shorts(story), expected);
    assert_eq!(story.end.outcome, Outcome::NoReply);
    let note = "left on eth1 as VXLAN 10.0.0.1 -> 10.0.0.2 (vni 1) to 02:00:00:00:00:fe (next hop 10.0.0.254), no reply in 2 s";
    assert_eq!(story.end.note, note);
    assert!(!stories.is_waiting());
}

#[test]
fn a_reply_out_of_the_tunnel() {
    let mut stories = Stories::default();
    fixtures::vxlan().into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
    let mut reply = Walker::new(30, "icmp", "10.244.1.1", "10.244.0.1");
    reply.device("vxlan0").0.view.packet.icmp_type = Some(0);
    reply.0.view.time.0 += 1_250_000;
    // Another's first.
    reply.0.view.packet.icmp_sequence = Some(23);
    stories.take(Seen { packet: 29, ..reply.at(Place::Received) }, Duration::ZERO);
    assert!(stories.due(Duration::ZERO).is_empty());
    reply.0.view.packet.icmp_sequence = Some(24);
    stories.take(reply.at(Place::Received), Duration::ZERO);
    let story = &stories.due(Duration::ZERO)[0];
    assert_eq!(story.end.outcome, Outcome::Left);
    assert!(
        story.end.note.ends_with(", answered after 1.2 ms by ICMP echo-reply(0/0)"),
        "{}",
        story.end.note
    );
}

#[test]
fn an_error_is_a_reply_to_what_it_quotes() {
    let mut packet = Walker::new(1, "udp", "192.0.2.1:4000", "198.51.100.7:53");
    packet.device("eth0");
    let mut stories = Stories::default();
    stories.take(packet.at(Place::Sent), Duration::ZERO);
    let mut error = Walker::new(2, "icmp", "192.0.2.254", "192.0.2.1");
    error.0.view.time.0 += 1_000_000;
    (error.0.view.packet.icmp_type, error.0.view.packet.icmp_code) = (Some(3), Some(1));
    error.0.view.inner = Some(crate::event::model::Inner {
        kind: "icmp-error".into(),
        vni: None,
        source: fixtures::end("192.0.2.1:4000"),
        destination: fixtures::end("198.51.100.7:53"),
        transport: Some("udp".into()),
    });
    stories.take(error.at(Place::Received), Duration::ZERO);
    let note = &stories.due(Duration::ZERO)[0].end.note;
    assert_eq!(note, "left on eth0, answered after 1.0 ms by ICMP host-unreachable(3/1)");
}

#[test]
fn what_is_freed_after_it_was_read_is_no_new_story() {
    let together = one(fixtures::udp_read(), QUIET);
    assert_eq!((together.steps.len(), together.end.last), (4, Some(Kind::Socket)));
    let mut again = Stories::default();
    let mut seen = fixtures::udp_read();
    let freed = seen.pop().unwrap();
    seen.into_iter().for_each(|seen| again.take(seen, Duration::ZERO));
    let story = &again.due(Duration::ZERO)[0];
    assert_eq!(story.end.note, "delivered: read by dnsmasq (pid 7) in shop/redis-0");
    assert_eq!(story.end.outcome, Outcome::Delivered);
    again.take(freed, Duration::ZERO);
    assert!(!again.is_waiting());
}

#[test]
fn a_routine_drop_at_its_end_is_none() {
    let mut seen: Vec<Seen> = fixtures::echo_to_node();
    let mut dropped = seen.pop().unwrap();
    dropped.place = Place::Dropped;
    dropped.view.network.netns = None;
    dropped.view.drop.class = Class::Routine;
    dropped.view.drop.location = Some("ping_rcv+0xab".into());
    seen.push(dropped);
    let story = one(seen.clone(), Duration::ZERO);
    assert_eq!(story.end.outcome, Outcome::Delivered);
    assert_eq!(story.end.note, "delivered: done with, as a matter of routine: ping_rcv+0xab");
    assert_eq!(story.end.drop.map(|drop| drop.drop.class), Some(Class::Routine));
    // It was freed where it was before.
    assert_eq!(story.steps.last().unwrap().netns, Some(fixtures::NODE));
    let mut part = seen.last().cloned().unwrap();
    part.route = None;
    part.view.drop.cause = Some(Cause { id: "consumed-fragments".into(), ..Cause::default() });
    assert_eq!(one(vec![part], Duration::ZERO).end.outcome, Outcome::Delivered);
    let early = seen.into_iter().filter(|seen| matches!(seen.place, Place::Received | Place::Dropped));
    let early = early.map(|seen| Seen { route: None, ..seen }).collect();
    assert_eq!(one(early, Duration::ZERO).end.outcome, Outcome::Dropped);
}

#[test]
fn the_last_look_on_a_hook_is_its_end() {
    let end = |hook, priority| {
        let mut packet = Walker::new(1, "icmp", "10.0.0.1", "10.0.0.2");
        one(vec![packet.enters(hook), packet.past(hook, priority, vec![])], NEIGHBOUR).end.note
    };
    assert!(end("POSTROUTING", 101).contains("leaving hook POSTROUTING; next normally: tc egress"));
    assert!(end("POSTROUTING", -149).contains("inside hook POSTROUTING; next normally: the other functions"));
    assert!(end("PREROUTING", -99).contains("leaving hook PREROUTING; next normally: a route"));
    assert!(end("FORWARD", 1).contains("inside hook FORWARD"));
}

#[test]
fn what_is_freed_as_read_was_read() {
    let mut packet = Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
    let end = |location: &str, packet: &mut Walker| {
        let freed = Place::Consumed { location: Some(location.to_owned()) };
        one(vec![packet.device("eth0").at(Place::Received), packet.at(freed)], QUIET).end
    };
    let read = end("skb_defer_free_flush+0x70", &mut packet);
    assert_eq!(
        (read.outcome, read.note.as_str()),
        (Outcome::Delivered, "delivered: taken out of its UDP socket")
    );
    assert_eq!(end("somewhere+0x1", &mut packet).outcome, Outcome::Vanished);
}

#[test]
fn a_datagram_that_nobody_reads() {
    let seen = fixtures::udp_read().into_iter().take(3).collect();
    let story = one(seen, QUIET);
    assert_eq!(story.end.outcome, Outcome::Delivered);
    assert!(story.end.note.starts_with("delivered: given to UDP in shop/redis-0"), "{}", story.end.note);
}

#[test]
fn what_the_kernel_takes_itself() {
    let story = one(fixtures::echo_to_node(), Duration::ZERO);
    assert_eq!(story.end.outcome, Outcome::Delivered);
    assert_eq!(story.end.note, "delivered: taken by the kernel itself, which answers echo requests");
    assert_eq!(story.end.last, Some(Kind::Socket));
}

#[test]
fn vanished_after_prerouting() {
    assert!(told(fixtures::vanished(), QUIET / 2).is_empty());
    let story = one(fixtures::vanished(), QUIET);
    assert_eq!(story.end.outcome, Outcome::Vanished);
    let note = "vanished: last seen at step 2, leaving hook PREROUTING; next normally: a route, then the hook INPUT or FORWARD";
    assert_eq!(story.end.note, note);
}

#[test]
fn a_veths_other_end_is_not_far() {
    let crossing: Vec<Seen> = fixtures::dnat_to_pod().into_iter().take(4).collect();
    let story = one(crossing, QUIET);
    assert_eq!(story.end.outcome, Outcome::Vanished);
    assert!(story.end.note.contains("next normally: the device at its other end"), "{}", story.end.note);
}

#[test]
fn a_bridge_is_told_from_a_fast_path() {
    let across = |ttl: u8, offloaded: bool| {
        let mut packet = Walker::new(1, "tcp", "10.0.0.1:1", "10.0.0.2:80");
        let mut seen = vec![packet.device("veth1").at(Place::Received)];
        packet.device("veth2").0.view.packet.ttl = Some(ttl);
        packet.0.view.conntrack = offloaded.then(|| crate::event::model::Conntrack {
            status: "assured,offload".into(),
            ..Default::default()
        });
        seen.extend([packet.at(Place::Queued), packet.at(Place::Sent)]);
        let mut stories = Stories::default();
        seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
        stories.finish().remove(0)
    };
    let bridged = across(64, false);
    assert_eq!(shorts(&bridged)[1], "bridge >");
    assert_eq!(bridged.steps[1].confidence, Confidence::Inferred);
    assert_eq!(shorts(&across(63, true))[1], "route Forward");
    assert!(notes(&across(63, true)).contains("FORWARD and POSTROUTING are skipped on purpose"));
    assert!(notes(&across(63, false)).contains("past routing and netfilter"));
    for story in [bridged, across(63, true)] {
        assert_eq!(story.steps.len(), 4);
        assert!(!notes(&story).contains("no hook"), "{}", notes(&story));
    }
}

#[test]
fn a_port_and_its_bridge() {
    let mut packet = Walker::new(1, "tcp", "10.0.0.1:1", "10.0.0.2:80");
    let mut seen = vec![packet.device("veth1").at(Place::Received)];
    packet.0.link = Some("bridge".into());
    seen.push(packet.device("br0").at(Place::Received));
    packet.0.route = route(Decision::Forward, "br1");
    seen.push(packet.enters("FORWARD"));
    packet.device("br1");
    seen.extend([packet.at(Place::Queued), packet.at(Place::Sent)]);
    packet.0.link = None;
    seen.push(packet.device("veth2").at(Place::Queued));
    let story = one(seen, QUIET);
    let expected = [
        "device veth1>",
        "bridge >",
        "device br0>",
        "route Forward",
        "netfilter FORWARD",
        "qdisc >br1",
        "device >br1",
        "bridge >",
        "qdisc >veth2",
    ];
    assert_eq!(shorts(&story), expected);
    assert_eq!(notes(&story), "from port veth1 up to br0\nfrom br1 down to veth2: its port");
}

#[test]
fn ip_hooks_of_a_bridge() {
    let mut packet = Walker::new(1, "tcp", "10.0.0.1:1", "10.0.0.2:80");
    let mut seen = vec![packet.device("veth1").at(Place::Received)];
    packet.0.link = Some("bridge".into());
    seen.push(packet.device("br0").hook_devices(Some("br0"), None).enters("PREROUTING"));
    seen.push(packet.hook_devices(Some("br0"), Some("br0")).enters("FORWARD"));
    packet.0.link = Some("veth".into());
    packet.device("veth2").hook_devices(None, None);
    seen.extend([packet.at(Place::TcEgress), packet.at(Place::Queued)]);
    let story = one(seen.clone(), QUIET);
    let expected = [
        "device veth1>",
        "bridge br0>",
        "netfilter PREROUTING",
        "netfilter FORWARD",
        "bridge >",
        "tc >veth2",
        "qdisc >veth2",
    ];
    assert_eq!(shorts(&story), expected);
    assert_eq!(notes(&story), "from port veth1 up to br0\non to port veth2 of br0");
    // A VLAN's device is no bridge; and what is routed on is not bridged on.
    let other = seen.iter().cloned().map(|seen| Seen { link: Some("vlan".into()), ..seen }).collect();
    assert_eq!(notes(&one(other, QUIET)), "");
    let routed = seen.into_iter().map(|seen| match seen.place {
        Place::Received => seen,
        _ => Seen { route: route(Decision::Forward, "veth2"), ..seen },
    });
    assert_eq!(notes(&one(routed.collect(), QUIET)), "from port veth1 up to br0");
}

#[test]
fn where_no_hook_is_seen_that_is_said_once() {
    let mut packet = Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
    packet.device("eth0");
    let seen = vec![
        packet.at(Place::Received),
        packet.at(Place::TcIngress),
        packet.at(Place::Read { process: "named".into(), pid: 3 }),
    ];
    let story = one(seen, Duration::ZERO);
    assert_eq!(notes(&story).matches("no hook of netfilter was seen").count(), 1);
    assert!(notes(&story).starts_with("read by named (pid 3); no hook"));
    assert!(!notes(&one(fixtures::udp_read(), Duration::ZERO)).contains("no hook"));
}

#[test]
fn what_is_unsure_is_a_note() {
    let mut packet = Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
    let seen =
        |point, rules| Passed { rules, unsure: Some("can't be known".into()), ..passed("INPUT", point) };
    let all = vec![
        packet.enters("INPUT"),
        packet.at(Place::Hook(Box::new(seen(Point::Past(0), vec![rule("filter:INPUT:rule:1", "continue")])))),
    ];
    let story = one(all, QUIET);
    assert_eq!(shorts(&story), ["netfilter INPUT", "netfilter filter:INPUT:1", "netfilter INPUT"]);
    let last = &story.steps[2];
    assert_eq!(last.netfilter.as_ref().unwrap().priority, Some(0));
    assert_eq!(last.note.as_deref(), Some("can't be known"));
    // A hook that was not seen from its beginning.
    let late = one(vec![packet.past("INPUT", 0, vec![])], QUIET);
    assert_eq!(shorts(&late), ["netfilter INPUT"]);
}

#[test]
fn frames_of_a_bridge() {
    let mut packet = Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
    let mut seen = vec![packet.device("veth1").at(Place::Received)];
    let hook = Passed { family: Family::Bridge, ..passed("PREROUTING", Point::Entered) };
    seen.push(packet.at(Place::Hook(Box::new(hook))));
    let story = one(seen, QUIET);
    assert_eq!(shorts(&story), ["device veth1>", "bridge >", "netfilter PREROUTING"]);
    assert!(story.end.note.contains("what the bridge does with it"), "{}", story.end.note);
}

#[test]
fn a_next_hop_may_take_longer() {
    let mut packet = Walker::new(1, "udp", "192.0.2.1:1", "192.0.2.9:53");
    packet.0.route = route(Decision::Output, "eth0");
    let mut stories = Stories::default();
    stories.take(packet.enters("POSTROUTING"), Duration::ZERO);
    stories.take(packet.leaves("POSTROUTING", vec![]), Duration::ZERO);
    assert!(stories.due(Duration::from_secs(3)).is_empty());
    let gone = stories.due(NEIGHBOUR).remove(0);
    assert_eq!(gone.end.outcome, Outcome::Vanished);
    assert!(gone.end.note.contains("as soon as the link-layer address of the next hop is known"));
    // It is dropped after all: that is not lost, but nothing else opens the story again.
    stories.take(packet.at(Place::Consumed { location: None }), NEIGHBOUR);
    stories.take(packet.enters("POSTROUTING"), NEIGHBOUR);
    assert!(!stories.is_waiting());
    let mut dropped = packet.at(Place::Dropped);
    dropped.view.drop.reason = Some("NEIGH_FAILED".into());
    stories.take(dropped.clone(), NEIGHBOUR);
    let late = stories.due(NEIGHBOUR).remove(0);
    assert_eq!(late.end.outcome, Outcome::Dropped);
    assert_eq!(late.end.note, "dropped: NEIGH_FAILED; its way to there was told before");
    stories.take(dropped, NEIGHBOUR);
    assert!(!stories.is_waiting());
}

#[test]
fn hooks_of_ip_inside_a_bridges() {
    let mut packet = Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
    let bridge = |point| Passed { family: Family::Bridge, ..passed("FORWARD", point) };
    let seen = vec![
        packet.at(Place::Hook(Box::new(bridge(Point::Entered)))),
        packet.enters("FORWARD"),
        packet.leaves("FORWARD", vec![rule("filter:FORWARD:policy:1", "accept")]),
        packet.at(Place::Hook(Box::new(bridge(Point::Left)))),
    ];
    let expected = ["netfilter FORWARD", "netfilter FORWARD", "netfilter filter:FORWARD:1"];
    assert_eq!(shorts(&one(seen, QUIET)), expected);
}

#[test]
fn a_copy_that_is_freed_is_not_the_end() {
    let mut packet = Walker::new(1, "icmp", "10.0.0.1", "10.0.0.2");
    let mut seen = vec![packet.device("eth0").at(Place::Sent), packet.at(Place::Consumed { location: None })];
    packet.netns(POD, Some("cart")).device("eth0");
    seen.push(packet.at(Place::Received));
    assert!(told(seen, Duration::ZERO).is_empty());
}

#[test]
fn memory_is_bounded() {
    let mut stories = Stories::default();
    let mut packet = Walker::new(0, "udp", "10.0.0.1:1", "10.0.0.2:53");
    for _ in 0..300 {
        stories.take(packet.enters("INPUT"), Duration::ZERO);
    }
    for number in 1..5000 {
        stories.take(Seen { packet: number, ..packet.enters("INPUT") }, Duration::ZERO);
        // Once more: it is still one packet.
        stories.take(Seen { packet: number, ..packet.enters("INPUT") }, Duration::ZERO);
    }
    assert_eq!(stories.open.len(), MAX_PACKETS);
    let told = stories.finish();
    assert_eq!(told.len(), MAX_PACKETS);
    assert_eq!((told[0].steps.len(), told[0].end.steps), (256, 256));
    let note = &told[0].end.note;
    assert!(note.contains("; 44 more steps not kept; meanwhile 904 other packets not followed"), "{note}");
    assert!(!told[1].end.note.contains("not followed"));
    assert_eq!(stories.kept, 0);
    for number in 0..100_000 {
        stories.past.add(number, Past::Settled);
    }
    assert!(stories.past.all.len() <= MAX_PAST && stories.past.order.len() <= MAX_PAST);
}
