//! Lines like those of iptables' LOG target (dump_ipv4_packet and dump_ipv6_packet, net/netfilter/nf_log_syslog.c),
//! so that what parses those parses these. Fields that are not known are left out; `COUNT=` is ours.

use super::escape::escape;
use super::words;
use crate::event::model::Drop;
use std::fmt::Write as _;
use std::net::IpAddr;

/// `DROP: filter:FORWARD:rule:7 IN=eth0 OUT= SRC=... `; without a rule, with what a hook function did or with the reason.
pub(crate) fn line(drop: &Drop) -> String {
    let why = &drop.drop;
    let rule = why.netfilter.as_deref().and_then(words::rule);
    let verdict = why.netfilter.as_deref().and_then(words::verdict).map(|text| escape(text).into_owned());
    let reason = why.reason.as_ref().or(why.location.as_ref()).map(|text| escape(text).replace(' ', ""));
    let filter = why.bpf.as_deref().and_then(words::filter);
    let cilium = why.cilium.as_deref().and_then(words::cilium_code);
    let place = rule.or(verdict).or(cilium).or(filter).or(reason).unwrap_or_else(|| "UNKNOWN".to_owned());
    let (network, packet) = (&drop.network, &drop.packet);
    let (input, output) = match (&network.interface_in, &network.interface_out) {
        (None, None) => (&network.interface, &None),
        known => known,
    };
    let name = |interface: &Option<String>| interface.as_deref().map(escape).unwrap_or_default().into_owned();
    let mut text = format!("DROP: {place} IN={} OUT={}", name(input), name(output));
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, " {key}={value}");
        }
    };
    let number = |value: Option<u32>| value.map(|value| value.to_string());
    add("SRC", drop.source.address.map(address));
    add("DST", drop.destination.address.map(address));
    add("LEN", number(packet.length));
    let v6 = network.family.as_deref() == Some("ipv6");
    add(if v6 { "HOPLIMIT" } else { "TTL" }, number(packet.ttl.map(u32::from)));
    if !v6 {
        add("ID", number(packet.ip_id));
    }
    add("PROTO", network.transport.as_deref().map(protocol));
    add("SPT", number(drop.source.port.map(u32::from)));
    add("DPT", number(drop.destination.port.map(u32::from)));
    add("TYPE", number(packet.icmp_type.map(u32::from)));
    add("CODE", number(packet.icmp_code.map(u32::from)));
    add("ID", number(packet.icmp_id.map(u32::from)));
    add("SEQ", number(packet.icmp_sequence.map(u32::from)));
    for flag in packet.tcp_flags.iter().flat_map(|flags| flags.split(',')).filter(|flag| !flag.is_empty()) {
        let _ = write!(text, " {}", escape(flag));
    }
    if let Some(mark) = packet.mark.filter(|&mark| mark != 0) {
        let _ = write!(text, " MARK={mark:#x}");
    }
    if drop.count != 1 {
        let _ = write!(text, " COUNT={}", drop.count);
    }
    text
}

/// IPv6 in full, as the kernel's %pI6 prints it.
pub(crate) fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|word| format!("{word:04x}")).join(":"),
    }
}

fn protocol(name: &str) -> String {
    match name {
        "icmpv6" => "ICMPv6".to_owned(),
        other => escape(other).to_uppercase(),
    }
}
