use super::*;
use crate::event::conntrack::Direction;
use crate::netfilter::model::{Backend, Family};
use rule::Rule;
use std::collections::HashMap;
use std::net::IpAddr;
use truth::Truth::{self, No, Unknown, Yes};

const FILTER: &str = include_str!("../fixtures/kube-proxy-filter.save");
const NAT_LISTING: &str = include_str!("../fixtures/kube-proxy-nat.save");

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// A TCP SYN from 10.244.1.5:4000 to 10.0.0.9:80, forwarded from eth0 to veth1.
fn syn() -> Packet<'static> {
    Packet {
        source: Some(ip("10.244.1.5")),
        destination: Some(ip("10.0.0.9")),
        protocol: Some(6),
        source_port: Some(4000),
        destination_port: Some(80),
        tcp_flags: Some(2),
        mark: Some(0),
        length: Some(60),
        interface_in: Interface::Named("eth0"),
        interface_out: Interface::Named("veth1"),
        connection: Some(tracked(State::New, 0)),
        fragment: Some(false),
        ttl: Some(63),
        ..Packet::unknown(Family::Ipv4)
    }
}

fn tracked(state: State, status: u32) -> Connection {
    Connection::Tracked { state, direction: Some(Direction::Original), status: Some(status) }
}

fn ping(family: Family) -> Packet<'static> {
    let protocol = if family == Family::Ipv6 { 58 } else { 1 };
    Packet {
        family,
        protocol: Some(protocol),
        icmp: Some((8, 0)),
        tcp_flags: None,
        source_port: None,
        destination_port: None,
        ..syn()
    }
}

fn ask(matches: &str, packet: &Packet<'_>) -> Truth {
    let text = format!("-A X {matches} -j DROP");
    let mark = packet.mark.map_or(Mark::default(), |mark| Mark::new(mark, u32::MAX));
    let rule = Rule::parse(&text);
    assert_eq!(rule.action.drops, Some(Verdict::Drop), "{matches}");
    rule.ask(packet, mark).truth
}

#[track_caller]
fn check(packet: &Packet<'_>, cases: &[(&str, Truth)]) {
    for (matches, truth) in cases {
        assert_eq!(ask(matches, packet), *truth, "{matches}");
    }
}

#[test]
fn addresses() {
    check(
        &syn(),
        &[
            ("", Yes),
            ("-s 10.244.0.0/16", Yes),
            ("-s 10.245.0.0/16", No),
            ("! -s 10.244.0.0/16", No),
            ("-d 10.0.0.9/32", Yes),
            ("-d 10.0.0.9", Yes),
            ("-d 10.0.0.8/31", Yes),
            ("-d 10.0.0.8/32", No),
            ("-s 10.244.0.5/255.255.0.255", Yes),
            ("-s 10.244.0.6/255.255.0.255", No),
            ("-s 0.0.0.0/0", Yes),
            // Bits outside of the mask, too many bits, no address, the other family.
            ("-s 10.244.1.5/16", Unknown),
            ("-s 10.244.1.5/33", Unknown),
            ("-s elsewhere", Unknown),
            ("-s fd00::/8", Unknown),
            ("-m iprange --src-range 10.244.1.1-10.244.1.5", Yes),
            ("-m iprange ! --src-range 10.244.1.1-10.244.1.4", Yes),
            ("-m iprange --dst-range 10.0.0.10-10.0.0.20", No),
            ("-m iprange --dst-range fd00::1-fd00::9", Unknown),
        ],
    );
    let six = Packet { source: Some(ip("fd00::1")), ..ping(Family::Ipv6) };
    check(
        &six,
        &[
            ("-s fd00::/8", Yes),
            ("-s fd01::/16", No),
            ("-s fd00::1/ffff::ff", Yes),
            ("-s fd00::1/128", Yes),
            ("-m iprange --src-range fd00::1-fd00::5", Yes),
            ("-m iprange --src-range fd00::2-fd00::5", No),
        ],
    );
    check(&Packet { source: None, ..syn() }, &[("-s 10.0.0.0/8", Unknown), ("! -s 10.0.0.0/8", Unknown)]);
}

#[test]
fn protocols_and_interfaces() {
    check(
        &syn(),
        &[
            ("-p tcp", Yes),
            ("-p 6", Yes),
            ("! -p tcp", No),
            ("-p udp", No),
            ("-p all", Yes),
            ("-p mobility-header", No),
            ("-p no-such-protocol", Unknown),
            ("-i eth0", Yes),
            ("-i eth", No),
            ("-i eth+", Yes),
            ("! -i eth+", No),
            ("-i +", Yes),
            ("-o veth2", No),
            ("! -o veth2", Yes),
        ],
    );
    let out = Packet { interface_in: Interface::None, interface_out: Interface::Unknown, ..syn() };
    check(&out, &[("-i eth0", No), ("! -i eth0", Yes), ("-o eth0", Unknown), ("! -o eth0", Unknown)]);
    check(&ping(Family::Ipv6), &[("-p ipv6-icmp", Yes), ("-p icmp", No)]);
}

#[test]
fn ports_and_flags() {
    check(
        &syn(),
        &[
            ("-p tcp -m tcp --dport 80", Yes),
            ("-p tcp -m tcp --dport 81", No),
            ("-p tcp -m tcp --dport 80:90", Yes),
            ("-p tcp -m tcp ! --dport 80:90", No),
            ("-p tcp -m tcp --sport 4000:65535 --dport 80", Yes),
            ("-p tcp -m tcp --sport 1 --dport 80", No),
            ("-p tcp -m tcp --dport http", Unknown),
            ("-p udp -m udp --dport 80", No),
            ("-p tcp -m multiport --dports 443,70:80", Yes),
            ("-p tcp -m multiport ! --dports 443,70:80", No),
            ("-p tcp -m multiport --sports 80", No),
            ("-p tcp -m multiport --ports 80,9000", Yes),
            ("-p tcp -m multiport --ports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", Unknown),
            ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", Yes),
            ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", No),
            ("-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK", No),
            ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE", No),
            ("-p tcp -m tcp --syn", Yes),
            ("-p tcp -m tcp --tcp-option 5", Unknown),
        ],
    );
    // A fragment has no ports, whatever is asked of them.
    let fragment =
        Packet { fragment: Some(true), source_port: None, destination_port: None, tcp_flags: None, ..syn() };
    check(
        &fragment,
        &[
            ("-f", Yes),
            ("! -f", No),
            ("-p tcp", Yes),
            ("-p tcp -m tcp ! --dport 80", No),
            ("-p tcp -m multiport --ports 1", No),
        ],
    );
    check(&syn(), &[("-f", No), ("! -f", Yes)]);
    let cut_off = Packet { source_port: None, destination_port: None, tcp_flags: None, ..syn() };
    check(&cut_off, &[("-p tcp -m tcp --dport 80", Unknown), ("-p udp -m udp --dport 80", No)]);
}

#[test]
fn icmp() {
    check(
        &ping(Family::Ipv4),
        &[
            ("-p icmp -m icmp --icmp-type 8", Yes),
            ("-p icmp -m icmp ! --icmp-type 8", No),
            ("-p icmp -m icmp --icmp-type 8/0", Yes),
            ("-p icmp -m icmp --icmp-type 8/1", No),
            ("-p icmp -m icmp --icmp-type echo-request", Yes),
            ("-p icmp -m icmp --icmp-type port-unreachable", No),
            ("-p icmp -m icmp --icmp-type any", Yes),
            ("-p icmp -m icmp ! --icmp-type any", No),
            ("-p icmp -m icmp --icmp-type ping?", Unknown),
        ],
    );
    let echo = Packet { icmp: Some((128, 0)), ..ping(Family::Ipv6) };
    check(
        &echo,
        &[
            ("-p ipv6-icmp -m icmp6 --icmpv6-type 128", Yes),
            ("-p ipv6-icmp -m icmp6 --icmpv6-type echo-request", Yes),
            ("-p ipv6-icmp -m icmp6 --icmpv6-type 1/4", No),
        ],
    );
}

#[test]
fn marks_lengths_and_ttl() {
    let marked = Packet { mark: Some(0x4005), ..syn() };
    check(
        &marked,
        &[
            ("-m mark --mark 0x4000/0x4000", Yes),
            ("-m mark ! --mark 0x4000/0x4000", No),
            ("-m mark --mark 0x4000", No),
            ("-m mark --mark 16389", Yes),
            ("-m mark --mark 0xgg", Unknown),
            ("-m length --length 60", Yes),
            ("-m length --length 40:59", No),
            ("-m length ! --length 40:59", Yes),
            ("-m ttl --ttl-eq 63", Yes),
            ("-m ttl ! --ttl-eq 63", No),
            ("-m ttl --ttl-lt 64", Yes),
            ("-m ttl --ttl-lt 63", No),
            ("-m ttl --ttl-lt 0", Unknown),
            ("-m ttl --ttl-gt 62", Yes),
            ("-m ttl --ttl-gt 63", No),
            ("-m hl --hl-lt 64", Yes),
        ],
    );
    let unknown = Packet { mark: None, ttl: None, length: None, ..syn() };
    check(
        &unknown,
        &[("-m mark --mark 1", Unknown), ("-m length --length 60", Unknown), ("-m ttl --ttl-eq 1", Unknown)],
    );
}

#[test]
fn connections() {
    let with = |connection| Packet { connection: Some(connection), ..syn() };
    check(
        &with(tracked(State::New, 0x188)),
        &[
            ("-m conntrack --ctstate NEW", Yes),
            ("-m state --state NEW,ESTABLISHED", Yes),
            ("-m conntrack --ctstate RELATED,ESTABLISHED", No),
            ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", Yes),
            ("-m conntrack --ctstate INVALID", No),
            ("-m conntrack --ctdir ORIGINAL", Yes),
            ("-m conntrack ! --ctdir ORIGINAL", No),
            ("-m conntrack --ctstate NEW --ctdir REPLY", No),
            ("-m conntrack --ctstate NEW --ctorigdst 10.0.0.1", Unknown),
            ("-m conntrack --ctstate ODD", Unknown),
        ],
    );
    check(
        &with(tracked(State::Established, 0x20)),
        &[
            ("-m conntrack --ctstate DNAT", Yes),
            ("-m conntrack --ctstate SNAT", No),
            ("-m conntrack ! --ctstate DNAT", No),
            ("-m conntrack --ctstate RELATED,ESTABLISHED", Yes),
        ],
    );
    let no_status = Connection::Tracked { state: State::Related, direction: None, status: None };
    check(
        &with(no_status),
        &[
            ("-m conntrack --ctstate DNAT", Unknown),
            ("-m conntrack --ctstate RELATED,DNAT", Yes),
            ("-m conntrack --ctdir REPLY", Unknown),
        ],
    );
    check(
        &with(Connection::Invalid),
        &[
            ("-m conntrack --ctstate INVALID", Yes),
            ("-m conntrack --ctstate UNTRACKED", No),
            ("-m conntrack --ctdir REPLY", No),
            ("-m conntrack --ctstate INVALID --ctdir REPLY", Yes),
        ],
    );
    check(
        &with(Connection::None),
        &[
            ("-m conntrack --ctstate INVALID", Unknown),
            ("-m conntrack --ctstate INVALID,UNTRACKED", Yes),
            ("-m conntrack --ctstate NEW", No),
        ],
    );
    check(&with(Connection::Untracked), &[("-m state --state UNTRACKED", Yes)]);
    check(&Packet { connection: None, ..syn() }, &[("-m conntrack --ctstate NEW", Unknown)]);
}

#[test]
fn address_types() {
    let to = |address| Packet { destination: Some(ip(address)), ..syn() };
    let local = ("-m addrtype --dst-type LOCAL", Unknown);
    check(
        &syn(),
        &[local, ("-m addrtype --dst-type MULTICAST", No), ("-m addrtype ! --dst-type MULTICAST", Yes)],
    );
    check(
        &to("224.0.0.1"),
        &[
            ("-m addrtype --dst-type LOCAL", No),
            ("-m addrtype --dst-type MULTICAST", Yes),
            ("-m addrtype --src-type UNICAST ! --dst-type LOCAL,MULTICAST --limit-iface-in", No),
        ],
    );
    check(
        &to("255.255.255.255"),
        &[("-m addrtype --dst-type BROADCAST", Yes), ("-m addrtype --dst-type LOCAL", No)],
    );
    let six = Packet { destination: Some(ip("ff02::1")), ..ping(Family::Ipv6) };
    check(&six, &[("-m addrtype --dst-type MULTICAST", Yes), local]);
}

#[test]
fn what_cannot_be_told_is_unknown() {
    for matches in [
        "-m set --match-set x src",
        "-m set ! --match-set x src,dst",
        "-m limit --limit 5/min --limit-burst 7",
        "-m statistic --mode random --probability 0.5",
        "-m recent --rcheck --name foo --mask 255.255.255.255 --rsource",
        "-m owner --uid-owner 1000",
        "-m string --string \"-j ACCEPT\" --algo bm --to 65535",
        "-m u32 --u32 \"0x0=0x1\"",
        "-m bpf --object-pinned /sys/fs/bpf/x",
        "-m physdev --physdev-in eth0",
        "-m pkttype --pkt-type multicast",
        "-m time --timestart 10:00:00",
        "-m made_up --with things",
    ] {
        assert_eq!(ask(matches, &syn()), Unknown, "{matches}");
        // What is known not to hold decides all the same.
        assert_eq!(ask(&format!("-p udp {matches}"), &syn()), No, "{matches}");
    }
    check(
        &syn(),
        &[("-m comment --comment -j", Yes), ("-m comment --comment \"x -j ACCEPT\" -p udp", Unknown)][..1],
    );
}

/// The culprits as `table/chain/rule verdict`, and a `?` if there may be others.
fn blamed(packet: &Packet<'_>, tables: &[TableText<'_>], only: Option<&str>) -> String {
    let found = evaluate(packet, tables, only);
    let (sure, one) = confidence(&found);
    assert_eq!(sure == Confidence::Inferred, found.culprits.len() == 1 && found.is_complete);
    assert_eq!(one.is_some(), sure == Confidence::Inferred);
    let name = |it: &Culprit<'_>| {
        let rule = it.rule.map_or("-".to_owned(), |rule| rule.to_string());
        let verdict = it.verdict.name().unwrap_or("?".into());
        format!("{}/{}/{rule} {verdict}", it.table, it.chain)
    };
    let names: Vec<String> = found.culprits.iter().map(name).collect();
    names.join(", ") + if found.is_complete { "" } else { "?" }
}

/// A table with a base chain FORWARD and chains A, B and C.
fn table(policy: &str, rules: &[&str]) -> String {
    let rules: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
    format!("*filter\n:FORWARD {policy} [0:0]\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n{rules}COMMIT\n")
}

fn forward(packet: &Packet<'_>, policy: &str, rules: &[&str]) -> String {
    let listing = table(policy, rules);
    blamed(packet, &[TableText { table: "filter", chain: "FORWARD", listing: &listing }], None)
}

const MAYBE: &str = "-m set --match-set x src";

#[test]
fn walks_that_are_certain() {
    let syn = syn();
    for (policy, rules, culprit) in [
        ("DROP", &[][..], "filter/FORWARD/- policy"),
        ("ACCEPT", &[], ""),
        ("ACCEPT", &["FORWARD -p udp -j DROP", "FORWARD -p tcp -j DROP"], "filter/FORWARD/2 drop"),
        ("DROP", &["FORWARD -j ACCEPT"], ""),
        ("DROP", &["FORWARD -j A", "A -j B", "B -j RETURN", "B -j DROP", "A -j REJECT"], "filter/A/2 reject"),
        ("DROP", &["FORWARD -j RETURN", "FORWARD -j REJECT"], "filter/FORWARD/- policy"),
        // The end of a chain that was gone to is the end of the one that went.
        (
            "ACCEPT",
            &["FORWARD -j A", "FORWARD -p tcp -j REJECT", "A -g B", "A -j DROP", "B -j LOG --log-prefix x"],
            "filter/FORWARD/2 reject",
        ),
        ("DROP", &["FORWARD -g A", "FORWARD -j REJECT", "A -p udp -j DROP"], "filter/FORWARD/- policy"),
        (
            "ACCEPT",
            &["FORWARD -m comment --comment \"-j ACCEPT\"", "FORWARD -j NFQUEUE --queue-num 1"],
            "filter/FORWARD/2 queue",
        ),
        (
            "ACCEPT",
            &["FORWARD -j TPROXY --on-port 5 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0"],
            "filter/FORWARD/1 expression:TPROXY",
        ),
        ("ACCEPT", &["FORWARD -j TARPIT --tarpit"], "filter/FORWARD/1 expression:TARPIT"),
    ] {
        assert_eq!(forward(&syn, policy, rules), culprit, "{rules:?}");
    }
}

#[test]
fn what_matches_perhaps_goes_both_ways() {
    let syn = syn();
    let maybe = |target: &str| format!("FORWARD {MAYBE} {target}");
    let both = "filter/FORWARD/1 drop, filter/FORWARD/- policy";
    assert_eq!(forward(&syn, "DROP", &[&maybe("-j DROP")]), both);
    assert_eq!(forward(&syn, "ACCEPT", &[&maybe("-j DROP")]), "filter/FORWARD/1 drop");
    assert_eq!(forward(&syn, "ACCEPT", &[&maybe("-j ACCEPT"), "FORWARD -j DROP"]), "filter/FORWARD/2 drop");
    let jump = [&maybe("-j A"), "A -p tcp -j DROP", "FORWARD -j REJECT"];
    assert_eq!(forward(&syn, "ACCEPT", &jump), "filter/A/1 drop, filter/FORWARD/2 reject");
    let goto = [&maybe("-g A"), "FORWARD -j REJECT"];
    assert_eq!(forward(&syn, "DROP", &goto), "filter/FORWARD/2 reject, filter/FORWARD/- policy");
    // A target that isn't known may do anything.
    let strange = ["FORWARD -j STRANGE", "FORWARD -j REJECT"];
    assert_eq!(
        forward(&syn, "DROP", &strange),
        "filter/FORWARD/1 expression:STRANGE, filter/FORWARD/2 reject, filter/FORWARD/- policy"
    );
    // A full table of hashlimit drops by itself.
    let limit = "FORWARD -m hashlimit --hashlimit-upto 5/sec --hashlimit-name x -j ACCEPT";
    assert_eq!(forward(&syn, "ACCEPT", &[limit]), "filter/FORWARD/1 hotdrop");
    // So does a match on a header that isn't there.
    let cut_off = Packet { source_port: None, destination_port: None, tcp_flags: None, ..syn };
    assert_eq!(
        forward(&cut_off, "ACCEPT", &["FORWARD -p tcp -m tcp --dport 1 -j ACCEPT"]),
        "filter/FORWARD/1 hotdrop"
    );
    assert_eq!(forward(&cut_off, "ACCEPT", &["FORWARD -p udp -m udp --dport 1 -j ACCEPT"]), "");
}

#[test]
fn marks_are_followed_from_the_drop_backwards() {
    let with = |mark| Packet { mark: Some(mark), ..syn() };
    // Set and matched in the same table: the packet had no mark before.
    let set = [
        "FORWARD -m mark --mark 0x0/0x1 -j A",
        "FORWARD -j ACCEPT",
        "A -j MARK --set-xmark 0x1/0x1",
        "A -j DROP",
    ];
    assert_eq!(forward(&with(1), "ACCEPT", &set), "filter/A/2 drop");
    assert_eq!(forward(&with(0), "ACCEPT", &set), "");
    // The mark at the drop tells which of two rules it was.
    let two = [
        &format!("FORWARD {MAYBE} -j MARK --set-xmark 0x1/0x1"),
        "FORWARD -m mark --mark 0x1/0x1 -j DROP",
        "FORWARD -j REJECT",
    ];
    assert_eq!(forward(&with(1), "ACCEPT", &two), "filter/FORWARD/2 drop");
    assert_eq!(forward(&with(2), "ACCEPT", &two), "filter/FORWARD/3 reject");
    // As Calico writes it: a policy that may have accepted says so in the mark.
    let calico = [
        "FORWARD -j A",
        "A -j MARK --set-xmark 0x0/0x10000",
        "A -j MARK --set-xmark 0x0/0x20000",
        "A -m mark --mark 0x0/0x20000 -j B",
        "A -m mark --mark 0x10000/0x10000 -j RETURN",
        "A -m mark --mark 0x0/0x20000 -j DROP",
        &format!("B {MAYBE} -j MARK --set-xmark 0x10000/0x10000"),
        "B -m mark --mark 0x10000/0x10000 -j RETURN",
    ];
    assert_eq!(forward(&with(0), "DROP", &calico), "filter/A/5 drop");
    assert_eq!(forward(&with(0x10000), "DROP", &calico), "filter/FORWARD/- policy");
    // What a connection's mark puts there isn't known.
    let restore = [
        "FORWARD -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf",
        "FORWARD -m mark --mark 0x10/0xff -j DROP",
        "FORWARD -m mark --mark 0x21/0xff -j DROP",
    ];
    assert_eq!(forward(&with(0x10), "ACCEPT", &restore), "filter/FORWARD/2 drop");
    assert_eq!(forward(&with(0x21), "ACCEPT", &restore), "filter/FORWARD/3 drop");
    // A changed TTL says nothing about the one before.
    let ttl = ["FORWARD -m ttl --ttl-eq 1 -j DROP", "FORWARD -j TTL --ttl-set 63", "FORWARD -j REJECT"];
    assert_eq!(forward(&syn(), "ACCEPT", &ttl), "filter/FORWARD/1 drop, filter/FORWARD/3 reject");
}

#[test]
fn tables_are_asked_in_their_order() {
    let mangle = table("ACCEPT", &["FORWARD -p tcp -j DROP"]).replace("*filter", "*mangle");
    let filter = table("DROP", &[]);
    let tables = [
        TableText { table: "mangle", chain: "FORWARD", listing: &mangle },
        TableText { table: "filter", chain: "FORWARD", listing: &filter },
    ];
    assert_eq!(blamed(&syn(), &tables, None), "mangle/FORWARD/1 drop");
    // The kernel knows better.
    assert_eq!(blamed(&syn(), &tables, Some("filter")), "filter/FORWARD/- policy");
    assert_eq!(blamed(&syn(), &tables, Some("security")), "?");
    let udp = Packet { protocol: Some(17), tcp_flags: None, ..syn() };
    assert_eq!(blamed(&udp, &tables, None), "filter/FORWARD/- policy");
    assert_eq!(
        blamed(&Packet { protocol: None, ..syn() }, &tables, None),
        "mangle/FORWARD/1 drop, filter/FORWARD/- policy"
    );
}

#[test]
fn nat_is_asked_of_new_connections_and_changes_the_packet() {
    let nat =
        "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -d 10.96.0.1/32 -j DNAT --to-destination 10.0.0.9\nCOMMIT\n";
    let raw = "*raw\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -d 10.0.0.9/32 -j DROP\nCOMMIT\n";
    let filter = "*filter\n:OUTPUT DROP [0:0]\nCOMMIT\n";
    let table = |table, listing| TableText { table, chain: "OUTPUT", listing };
    let tables = [table("raw", raw), table("nat", nat), table("filter", filter)];
    let with = |connection, destination: &str| Packet {
        connection: Some(connection),
        destination: Some(ip(destination)),
        ..syn()
    };
    // NAT is done: at the raw table the packet was another.
    let done = with(tracked(State::New, 0x120), "10.0.0.9");
    assert_eq!(blamed(&done, &tables, None), "raw/OUTPUT/1 drop, filter/OUTPUT/- policy");
    // Nothing was changed: it can't have come past the raw table.
    assert_eq!(blamed(&with(tracked(State::Established, 0), "10.0.0.9"), &tables, None), "raw/OUTPUT/1 drop");
    // Not yet done.
    let before = with(tracked(State::New, 0), "10.96.0.1");
    assert_eq!(blamed(&before, &tables, None), "nat/OUTPUT/1 nat-failed, filter/OUTPUT/- policy");
    assert_eq!(blamed(&before, &tables, Some("nat")), "nat/OUTPUT/1 nat-failed");
    assert_eq!(
        blamed(&with(tracked(State::Established, 0), "10.96.0.1"), &tables, None),
        "filter/OUTPUT/- policy"
    );
}

#[test]
fn kube_proxys_rules() {
    let on = |chain, packet: &Packet<'_>| {
        blamed(packet, &[TableText { table: "filter", chain, listing: FILTER }], None)
    };
    let to = |address, port| Packet { destination: Some(ip(address)), destination_port: Some(port), ..syn() };
    assert_eq!(on("FORWARD", &to("10.96.183.4", 80)), "filter/KUBE-SERVICES/4 reject");
    assert_eq!(on("FORWARD", &to("10.96.183.4", 81)), "");
    assert_eq!(on("FORWARD", &to("10.96.80.167", 80)), "filter/KUBE-SERVICES/5 drop");
    assert_eq!(on("FORWARD", &to("203.0.113.10", 443)), "filter/KUBE-PROXY-FIREWALL/2 drop");
    assert_eq!(on("FORWARD", &to("203.0.113.13", 80)), "filter/KUBE-EXTERNAL-SERVICES/4 drop");
    // Whether the address is the node's isn't known, but nothing else could have dropped it.
    assert_eq!(on("INPUT", &to("192.0.2.7", 30083)), "filter/KUBE-EXTERNAL-SERVICES/3 reject");
    let established = Packet { connection: Some(tracked(State::Established, 0)), ..to("10.96.183.4", 80) };
    assert_eq!(on("FORWARD", &established), "");
    let invalid = Packet { connection: Some(Connection::Invalid), ..syn() };
    assert_eq!(on("FORWARD", &invalid), "filter/KUBE-FORWARD/1 drop");
    let martian = Packet { connection: Some(tracked(State::New, 0)), ..to("127.0.0.1", 10250) };
    assert_eq!(on("INPUT", &martian), "filter/KUBE-FIREWALL/1 drop");
    let answer = Packet { connection: Some(tracked(State::New, 0x20)), ..to("127.0.0.1", 10250) };
    assert_eq!(on("INPUT", &answer), "");

    let found = evaluate(
        &to("10.96.183.4", 80),
        &[TableText { table: "filter", chain: "OUTPUT", listing: FILTER }],
        None,
    );
    let (sure, culprit) = confidence(&found);
    let culprit = culprit.unwrap();
    assert_eq!((sure, culprit.reject_with()), (Confidence::Inferred, Some("icmp-port-unreachable")));
    assert!(culprit.text.unwrap().contains("shop/empty:http has no endpoints"));
    assert_eq!(culprit.reference().rule, Some(4));

    // At POSTROUTING only MASQUERADE can fail, and only for a marked packet; the mark is gone then.
    let nat = [TableText { table: "nat", chain: "POSTROUTING", listing: NAT_LISTING }];
    assert_eq!(blamed(&syn(), &nat, None), "nat/KUBE-POSTROUTING/3 nat-failed");
    assert_eq!(blamed(&Packet { mark: Some(0x4000), ..syn() }, &nat, None), "");
}

#[test]
fn hostile_text_is_bounded_and_never_sure() {
    let long = |rules: String| format!("*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n{rules}COMMIT\n");
    let on =
        |listing: &str| blamed(&syn(), &[TableText { table: "filter", chain: "FORWARD", listing }], None);
    // A loop, which the kernel would refuse.
    assert!(on(&long("-A FORWARD -j A\n-A A -j A\n-A A -j FORWARD\n".into())).ends_with('?'));
    // 2^40 ways through 40 chains.
    let mut chains = String::from("*filter\n:FORWARD DROP [0:0]\n");
    let mut rules = String::from("-A FORWARD -j c0\n");
    for i in 0..40 {
        chains += &format!(":c{i} - [0:0]\n");
        rules += &format!("-A c{i} -j c{}\n-A c{i} -j c{}\n", i + 1, i + 1);
    }
    assert!(on(&format!("{chains}:c40 - [0:0]\n{rules}-A c40 -p udp -j DROP\nCOMMIT\n")).ends_with('?'));
    // More culprits than are told.
    let many = on(&long(format!("-A FORWARD {MAYBE} -j DROP\n").repeat(20)));
    assert!(many.ends_with('?') && many.matches("drop").count() == 16, "{many}");
    // Cut off, another rule set's, or with a chain that looks like a target.
    for listing in [
        "",
        "COMMIT\n",
        "*filter\n:FORWARD DROP [0:0]\n",
        "*filter\n:INPUT DROP [0:0]\nCOMMIT\n",
        "*filter\n:FORWARD DROP [0:0]\n:LOG - [0:0]\nCOMMIT\n",
        "*filter\n:FORWARD ODD [0:0]\nCOMMIT\n",
        "*filter\n:FORWARD - [0:0]\nCOMMIT\n",
    ] {
        assert!(on(listing).ends_with('?'), "{listing}");
    }
    // A rule that isn't understood may have done it.
    for rule in [
        "FORWARD -j",
        "FORWARD -j DROP -j ACCEPT",
        "FORWARD -g",
        "FORWARD -g A A",
        "FORWARD -m -j DROP",
        "FORWARD ! ! -s 10.0.0.0/8 -j DROP",
        "FORWARD ! -j DROP",
        "FORWARD word",
        "FORWARD --sport 5 -j DROP",
        "FORWARD !",
        "FORWARD -m nfacct --nfacct-name  -m -j DROP",
        &format!("FORWARD {} -j DROP", "-m set --match-set x src ".repeat(100)),
        &format!("FORWARD -m comment --comment {} -j DROP", "x ".repeat(5000)),
    ] {
        let found = forward(&syn(), "ACCEPT", &[rule]);
        assert!(found.starts_with("filter/FORWARD/1 "), "{rule}: {found}");
    }
    // Any cut and any broken byte of a real listing.
    for end in (0..FILTER.find("COMMIT").unwrap()).step_by(37) {
        let (cut, rest) = FILTER.split_at(end);
        assert!(on(cut).ends_with('?'));
        let rest = format!("*filter\n:FORWARD DROP [0:0]\n{rest}");
        on(&rest);
        on(&format!("{cut}\"-j\u{e9}\n-A{rest}"));
    }
}

#[test]
fn every_match_that_the_tools_print_is_read() {
    let rule = |text| Rule::parse(text);
    let texts = include_str!("../fixtures/matches.save");
    let mut known = 0;
    for saved in text::saved_rules(texts) {
        let rule = rule(saved.text);
        assert_ne!(rule.action.drops, Some(Verdict::Other(None)), "{}", saved.text);
        let opaque = ["-m pkttype", "-m limit", "-m recent"].iter().any(|name| saved.text.contains(name));
        let doubts = rule.matches.iter().any(|one| matches!(one.test, matches::Test::Unknown { .. }));
        assert_eq!(doubts, opaque, "{}", saved.text);
        known += 1;
    }
    assert_eq!(known, 35);
}

/// The way of a SYN through a table, in words.
fn way(table: &str, chain: &str, rules: &str, packet: &Packet<'_>) -> (Vec<String>, Path) {
    let chains = "mark-it other here";
    let chains: String = chains.split(' ').map(|name| format!(":{name} - [0:0]\n")).collect();
    let listing = format!("*{table}\n:{chain} ACCEPT [0:0]\n{chains}{rules}COMMIT\n");
    let found = path(packet, &TableText { table, chain, listing: &listing }, Backend::Nft);
    let word = |met: &crate::trace::model::RuleMet| {
        let what = serde_json::to_value(met.kind).unwrap();
        let number = met.rule.unwrap();
        format!("{}:{}:{}:{number} {}", met.table, met.chain, what.as_str().unwrap(), met.verdict)
    };
    (found.met.iter().map(word).collect(), found)
}

#[test]
fn the_way_through_a_table() {
    let rules = "-A FORWARD -p tcp -j LOG --log-prefix \"-j DROP\"\n\
        -A FORWARD -p udp -j DROP\n\
        -A FORWARD -s 10.244.0.0/16 -m comment --comment \"-j DROP\" -j mark-it\n\
        -A FORWARD -m mark --mark 0x4/0x4 -g other\n\
        -A FORWARD -j DROP\n\
        -A mark-it -m conntrack --ctstate NEW -j MARK --set-xmark 0x4/0x4\n\
        -A mark-it -p tcp\n\
        -A other -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff\n";
    let (words, found) = way("filter", "FORWARD", rules, &syn());
    let expected = [
        "filter:FORWARD:rule:1 target log",
        "filter:FORWARD:rule:3 jump mark-it",
        "filter:mark-it:rule:1 target mark",
        "filter:mark-it:rule:2 continue",
        "filter:mark-it:return:3 return",
        "filter:FORWARD:rule:4 goto other",
        "filter:other:rule:1 target connmark",
        "filter:other:return:2 return",
        "filter:FORWARD:policy:6 accept",
    ];
    assert_eq!(words, expected);
    assert_eq!((found.ends, found.unsure), (Ends::Accepted, None));
    // With the mark that it has on the way.
    let marks: Vec<_> = found.met.iter().map(|met| met.mark).collect();
    assert_eq!(marks[1..4], [Some(0), Some(0), Some(4)]);
    assert_eq!(found.met[3].text.as_deref(), Some("-A mark-it -p tcp"));
    assert_eq!((found.met[3].backend, found.met[3].method), (Backend::Nft, "evaluated"));
}

/// What the counters of a table tell: that of rule n of `FORWARD` is n, of `here` 10 + n; the ends have 9 and 19.
fn counted_way(rules: &str, moved: &[(u64, u64)]) -> Option<Path> {
    use crate::netfilter::moved::{CountedChain, CountedTable};
    let chain = |base: u64| {
        let rules = (1..5).map(|number| Some(base + number)).collect();
        CountedChain { rules, end: Some(base + 9) }
    };
    let chains = [("FORWARD".to_owned(), chain(0)), ("here".to_owned(), chain(10))];
    let counted = CountedTable::of(Backend::Legacy, "filter", chains);
    let listing = format!("*filter\n:FORWARD ACCEPT [0:0]\n:here - [0:0]\n{rules}COMMIT\n");
    let table = TableText { table: "filter", chain: "FORWARD", listing: &listing };
    let moved: HashMap<u64, u64> = moved.iter().copied().collect();
    if let Some(path) = counted_path(&syn(), &table, &counted, moved.clone()) {
        assert_eq!(unmoved(&path.met, &counted, &moved), None);
        return Some(path);
    }
    None
}

#[test]
fn counters_tell_the_way() {
    let rules = "-A FORWARD -m limit --limit 1/sec -j here\n-A FORWARD -m set --match-set x src\n\
        -A here -m quota --quota 5\n-A here -j RETURN\n";
    let words = |moved: &[(u64, u64)]| {
        let path = counted_way(rules, moved)?;
        assert!(path.met.iter().all(|it| (it.confidence, it.method) == (Confidence::Exact, "counter")));
        let word = |it: &crate::trace::model::RuleMet| format!("{}:{}", it.chain, it.rule.unwrap());
        Some(path.met.iter().map(word).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(words(&[(9, 1)]).as_deref(), Some("FORWARD:3"));
    assert_eq!(
        words(&[(1, 1), (2, 1), (9, 1), (12, 1)]).as_deref(),
        Some("FORWARD:1 here:2 FORWARD:2 FORWARD:3")
    );
    // Another packet in between; one that was at no end; one whose way can't be.
    assert_eq!(words(&[(1, 1), (9, 2), (12, 1)]), None);
    assert_eq!(words(&[(2, 1)]), None);
    assert_eq!(words(&[(9, 1), (12, 1)]), None);
    assert_eq!(words(&[(1, 1), (9, 1)]), None);
}

#[test]
fn what_was_evaluated_must_have_counted() {
    use crate::netfilter::moved::{CountedChain, CountedTable};
    let chain = CountedChain { rules: vec![Some(1), None], end: Some(9) };
    let counted = CountedTable::of(Backend::Legacy, "filter", [("FORWARD".to_owned(), chain)]);
    let (_, found) = way("filter", "FORWARD", "-A FORWARD -p tcp\n-A FORWARD -p tcp\n", &syn());
    let wrong = |moved: &[u64]| {
        let moved = moved.iter().map(|counter| (*counter, 1)).collect();
        unmoved(&found.met, &counted, &moved)
    };
    assert_eq!(wrong(&[1, 9]), None);
    assert_eq!(wrong(&[9]), Some(0));
    assert_eq!(wrong(&[1]), Some(2));
}

#[test]
fn nat_ends_the_way() {
    for target in
        ["DNAT --to-destination 10.0.0.1:80", "SNAT --to-source 10.0.0.1", "MASQUERADE --random-fully"]
    {
        let name = target.split(' ').next().unwrap().to_lowercase();
        let rules = format!("-A PREROUTING -p tcp -j here\n-A here -j {target}\n-A here -j DROP\n");
        let (words, found) = way("nat", "PREROUTING", &rules, &syn());
        assert_eq!(words, ["nat:PREROUTING:rule:1 jump here", &format!("nat:here:rule:1 target {name}")]);
        assert_eq!((found.ends, found.unsure), (Ends::Accepted, None));
    }
}

#[test]
fn the_way_ends_where_it_is_not_sure() {
    let unsure = |rule: &str, packet: &Packet<'_>| {
        let rules = format!("-A FORWARD -p tcp\n-A FORWARD {rule}\n-A FORWARD -j DROP\n");
        let (words, found) = way("filter", "FORWARD", &rules, packet);
        assert_eq!(words[0], "filter:FORWARD:rule:1 continue");
        assert_eq!(found.ends, Ends::Unknown);
        (words.len(), found.unsure.unwrap())
    };
    let whether = |what: &str| (1, format!("whether filter:FORWARD:rule:2 matched can't be known: {what}"));
    let did = |what: &str| (2, format!("what filter:FORWARD:rule:2 did can't be known: {what}"));
    let unmarked = Packet { mark: None, ..syn() };
    assert_eq!(unsure("-m set --match-set x src -j ACCEPT", &syn()), whether("-m set can't be judged"));
    assert_eq!(unsure("-m mark --mark 0x1 -j ACCEPT", &unmarked), whether("--mark can't be judged"));
    assert_eq!(unsure("-m mark --mark 0x1 what", &syn()), whether("it is not understood"));
    assert_eq!(unsure("-j NFQUEUE --queue-num 0", &syn()), did("-j NFQUEUE"));
    assert_eq!(unsure("-j gone", &syn()), did("-j gone"));
    // A set, but not for this packet.
    let rule = "-A FORWARD -p udp -m set --match-set x src -j ACCEPT\n";
    assert_eq!(way("filter", "FORWARD", rule, &syn()).0, ["filter:FORWARD:policy:2 accept"]);
    // What a rule changed is not known any more.
    let rules = "-A FORWARD -j TTL --ttl-set 5\n-A FORWARD -m ttl --ttl-eq 63 -j DROP\n";
    let found = way("mangle", "FORWARD", rules, &syn()).1;
    assert!(found.unsure.unwrap().ends_with("--ttl-eq can't be judged"));
    let broken = TableText { table: "filter", chain: "FORWARD", listing: "*filter\n:FORWARD ACCEPT [0:0]\n" };
    let none = TableText { chain: "INPUT", listing: "*filter\nCOMMIT\n", ..broken };
    let why = |table| path(&syn(), table, Backend::Legacy).unsure.unwrap();
    assert_eq!(why(&broken), "table filter can't be read to its end");
    assert_eq!(why(&none), "table filter has no base chain INPUT here");
    // Chains that jump in a ring.
    let rules = "-A FORWARD -j here\n-A here -j other\n-A other -j here\n";
    assert_eq!(way("filter", "FORWARD", rules, &syn()).1.ends, Ends::Unknown);
}
