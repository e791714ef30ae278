//! What nft told of followed packets, where the kernel shows it: kept until the next look at the packet on the hook, which says that
//! it was this packet. Then no rule of nft is evaluated.

use super::model::{Met, RuleMet};
use crate::event::decode::Raw;
use crate::netfilter::evaluate::{Connection, Packet, matched};
use crate::netfilter::traced::Pass;
use std::collections::{HashMap, VecDeque};
use tracer_common::{NftStep, priority};

/// Packets whose records are kept, and records of one of them: more than there are rules that match.
const MAX_PACKETS: usize = 4096;
const MAX_RECORDS: usize = 4096;
/// Records of all of them together.
const MAX_KEPT: usize = 1 << 16;

/// A hook: family and number, and the address of the network namespace.
type Hook = (u8, u8, u64);

/// Records, by packet.
#[derive(Debug, Default)]
pub(super) struct Records {
    packets: HashMap<u64, Vec<NftStep>>,
    /// In the order in which they came first.
    order: VecDeque<u64>,
    kept: usize,
}

impl Records {
    pub(super) fn add(&mut self, step: NftStep) {
        let records = self.packets.entry(step.packet).or_default();
        if records.is_empty() {
            self.order.push_back(step.packet);
        }
        if records.len() < MAX_RECORDS {
            records.push(step);
            self.kept += 1;
        }
        while (self.order.len() > MAX_PACKETS || self.kept > MAX_KEPT)
            && let Some(oldest) = self.order.pop_front()
        {
            self.kept -= self.packets.remove(&oldest).map_or(0, |records| records.len());
        }
    }

    /// Takes those of a hook, in the order in which they came.
    pub(super) fn take(&mut self, packet: u64, raw: &Raw) -> Vec<NftStep> {
        let Some(hook) = hook(raw) else { return Vec::new() };
        let Some(records) = self.packets.get_mut(&packet) else { return Vec::new() };
        let is_its = |step: &mut NftStep| (step.family, step.hook, step.net) == hook;
        let taken: Vec<NftStep> = records.extract_if(.., is_its).collect();
        if records.is_empty() {
            self.packets.remove(&packet);
            self.order.retain(|known| *known != packet);
        }
        self.kept -= taken.len();
        taken
    }
}

fn hook(raw: &Raw) -> Option<Hook> {
    let state = raw.hook.as_ref()?;
    Some((state.family, state.hook, raw.net))
}

/// The rules of a pass, for a packet as it came to them.
pub(super) fn met(pass: &Pass, packet: &Packet<'_>) -> impl Iterator<Item = RuleMet> {
    let first = packet.mark;
    let rules = pass.rules.iter().cloned().enumerate();
    rules.map(move |(index, rule)| RuleMet { mark: if index == 0 { first } else { rule.mark }, ..rule })
}

/// The packet behind a pass, as far as it is known; `after` is as it was seen next.
pub(super) fn behind<'p>(pass: &Pass, packet: &Packet<'p>, after: Option<&Packet<'p>>) -> Packet<'p> {
    let mark = Some(pass.mark);
    let mut rules = pass.rules.iter().filter(|rule| rule.kind == Met::Rule).peekable();
    if rules.peek().is_none() {
        return Packet { mark, ..*packet };
    }
    // What comes after NAT sees what NAT made of it. Which tables of nft's own translate is not known; they do it then.
    let is_translated = if pass.is_iptables { pass.table == "nat" } else { pass.priority > priority::MANGLE };
    let packet = after.filter(|_| is_translated).unwrap_or(packet);
    if pass.is_iptables && pass.table == "nat" {
        return Packet { mark, ..*packet };
    }
    let texts: Option<Vec<&str>> = rules.map(|rule| rule.text.as_deref()).collect();
    match texts.filter(|_| pass.is_iptables) {
        Some(texts) => Packet { mark, ..matched::behind(packet, texts.iter()) },
        None => {
            // Once it is tracked no rule changes that (nft_notrack_eval(), net/netfilter/nft_ct.c).
            let connection = packet.connection.filter(|it| matches!(it, Connection::Tracked { .. }));
            Packet { mark, ttl: None, length: None, connection, ..*packet }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::decode::{HookState, decode};
    use crate::netfilter::evaluate::{Interface, State};
    use crate::netfilter::model::{Backend, Family};
    use crate::trace::fixtures;

    /// A packet on a hook of IPv4.
    fn on(hook: u8) -> Raw {
        let hook = Some(HookState { family: 2, hook, input: None, output: None });
        Raw { net: 5, hook, ..nowhere() }
    }

    fn nowhere() -> Raw {
        decode(&vec![0; size_of::<tracer_common::Event>()]).unwrap()
    }

    fn step(packet: u64, hook: u8, rule: u64) -> NftStep {
        NftStep { packet, net: 5, family: 2, hook, rule, ..NftStep::default() }
    }

    fn rules(steps: &[NftStep]) -> Vec<u64> {
        steps.iter().map(|step| step.rule).collect()
    }

    #[test]
    fn records_are_a_packets_and_a_hooks() {
        let mut records = Records::default();
        for one in [step(1, 2, 10), step(2, 2, 11), step(1, 4, 12), step(1, 2, 13)] {
            records.add(one);
        }
        records.add(NftStep { net: 6, ..step(1, 2, 14) });
        assert_eq!(rules(&records.take(1, &on(2))), [10, 13]);
        assert_eq!(rules(&records.take(1, &on(2))), [0_u64; 0]);
        assert_eq!(rules(&records.take(1, &on(4))), [12]);
        assert_eq!(rules(&records.take(2, &on(2))), [11]);
        assert_eq!(records.take(2, &nowhere()), []);
        assert_eq!((records.kept, records.order.len()), (1, 1));
    }

    #[test]
    fn the_oldest_make_room() {
        let mut records = Records::default();
        let most = MAX_PACKETS as u64;
        (0..=most).for_each(|packet| records.add(step(packet, 2, 1)));
        assert_eq!((records.packets.len(), records.kept), (MAX_PACKETS, MAX_PACKETS));
        assert!(records.take(0, &on(2)).is_empty() && !records.take(most, &on(2)).is_empty());
        let mut records = Records::default();
        for packet in 0..20 {
            (0..2 * MAX_RECORDS).for_each(|_| records.add(step(packet, 2, 1)));
        }
        assert_eq!((records.packets.len(), records.kept), (MAX_KEPT / MAX_RECORDS, MAX_KEPT));
    }

    fn pass(table: &str, priority: i32, is_iptables: bool, texts: &[Option<&str>]) -> Pass {
        let rules = texts.iter().map(|text| RuleMet {
            backend: Backend::Nft,
            text: text.map(str::to_owned),
            mark: Some(7),
            ..fixtures::rule(&format!("{table}:C:rule:1"), "continue")
        });
        let rules = rules.chain([fixtures::rule(&format!("{table}:C:policy:2"), "accept")]).collect();
        Pass {
            family: Family::Ipv4,
            table: table.to_owned(),
            table_handle: 1,
            priority,
            is_iptables,
            rules,
            mark: 9,
            is_end: false,
        }
    }

    #[test]
    fn the_first_rule_has_the_packets_mark() {
        let packet = Packet { mark: Some(3), ..packet() };
        let met: Vec<_> = met(&pass("t", 0, false, &[None, None]), &packet).map(|rule| rule.mark).collect();
        assert_eq!(met, [Some(3), Some(7), Some(0)]);
    }

    fn packet() -> Packet<'static> {
        Packet {
            family: Family::Ipv4,
            source: Some("10.0.0.1".parse().unwrap()),
            destination: None,
            protocol: Some(17),
            source_port: None,
            destination_port: None,
            icmp: None,
            tcp_flags: None,
            mark: Some(0),
            length: Some(28),
            interface_in: Interface::default(),
            interface_out: Interface::default(),
            connection: Some(Connection::Tracked { state: State::New, direction: None, status: Some(0) }),
            fragment: None,
            ttl: Some(64),
        }
    }

    #[test]
    fn what_is_known_behind_a_pass() {
        let packet = packet();
        let translated = Packet { source: Some("10.0.0.2".parse().unwrap()), mark: Some(1), ..packet };
        let behind = |pass: &Pass| {
            let it = behind(pass, &packet, Some(&translated));
            assert_eq!(it.mark, Some(9));
            (it.source.is_some_and(|it| it == translated.source.unwrap()), it.ttl, it.connection.is_some())
        };
        // A policy changes nothing; what other rules did their texts say, or nobody.
        assert_eq!(behind(&pass("filter", 0, true, &[])), (false, Some(64), true));
        assert_eq!(behind(&pass("filter", 0, true, &[Some("-A C -j ACCEPT")])), (false, Some(64), true));
        assert_eq!(
            behind(&pass("mangle", -150, true, &[Some("-A C -j TTL --ttl-set 9")])),
            (false, None, true)
        );
        assert_eq!(behind(&pass("mangle", -150, true, &[None])), (false, None, true));
        assert_eq!(behind(&pass("shop", -150, false, &[Some("accept")])), (false, None, true));
        // Where NAT is done.
        assert_eq!(behind(&pass("shop", -100, false, &[None])), (true, None, true));
        assert_eq!(behind(&pass("nat", -100, true, &[Some("-A C -j DNAT")])), (true, Some(64), true));
        // A rule may have said that it is not to be tracked.
        let untracked = Packet { connection: Some(Connection::None), ..packet };
        assert_eq!(super::behind(&pass("shop", -300, false, &[None]), &untracked, None).connection, None);
    }
}
