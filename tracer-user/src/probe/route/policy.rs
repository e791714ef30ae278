//! Policy routing: which of the rules and tables of this thread's network namespace leads a packet where it went. The kernel
//! says only that a way ends, not where it was turned there; so its rules and routes are listed and gone through as it does.
//! What is listed is judged by pure functions; a rule that selects by what is not known here ends the judgement.
//!
//! Layouts: struct fib_rule_hdr and FRA_* (include/uapi/linux/fib_rules.h), struct rtmsg and RTA_* (rtnetlink.h). Numbers are
//! in the machine's order, addresses in the network's.

use super::{Packet, RTMSG, kind_of};
use crate::probe::netlink::{self, attribute, attributes, text, word};
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::Duration;

/// Size of struct fib_rule_hdr.
const RULE: usize = 12;
/// RT_TABLE_DEFAULT, MAIN and LOCAL.
const DEFAULT: u32 = 253;
const MAIN: u32 = 254;
const LOCAL: u32 = 255;
/// How long the kernel may take to list either: a table may have every route of the internet.
const PATIENCE: Duration = Duration::from_millis(80);

/// A network: its address and the length of its prefix.
type Network = (IpAddr, u8);

/// What turned a packet away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    /// As for a route: `blackhole`, `unreachable` ...
    pub(super) kind: &'static str,
    /// The rule, as ip-rule(8) writes it.
    pub(crate) rule: String,
    /// The table that the rule leads to; none where the rule itself ends the way.
    pub(crate) table: Option<String>,
    /// The route in it: `blackhole 10.244.0.0/16`.
    pub(crate) entry: Option<String>,
}

/// What going through rules and tables comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// A rule or a route that decides.
    By(Decided),
    /// No table has a route: those that were looked into, but for the two that each namespace has beside main.
    NoRoute(Vec<String>),
    /// It can't be told.
    Unknown,
}

/// Where a rule leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Table(u32),
    End(&'static str),
    /// Nothing, or what is not known.
    Nothing,
    Unknown,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    priority: u32,
    from: Option<Network>,
    to: Option<Network>,
    interface: Option<String>,
    /// The interface that a packet leaves by: known of packets whose socket is bound to it only.
    out: Option<String>,
    mark: Option<(u32, u32)>,
    is_inverted: bool,
    /// It selects by something else, too.
    is_more: bool,
    /// Routes of its table with a prefix no longer than that are left out.
    suppressed: Option<u8>,
    action: Action,
}

/// A route that leads to the packet's destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    table: u32,
    to: Network,
    metric: u32,
    kind: &'static str,
    /// It takes not all packets to that network, or none now.
    is_partial: bool,
}

/// Goes through the rules and tables of this thread's network namespace.
pub(super) fn judged(packet: &Packet) -> Judged {
    let listed = || -> io::Result<Option<(Vec<Rule>, Vec<Entry>)>> {
        let family = u8::try_from(super::family(packet.to)).unwrap_or(0);
        let mut header = [0; RTMSG];
        header[0] = family;
        let (mut rules, mut entries) = (Vec::new(), Vec::new());
        let whole =
            list(netlink::GET_RULE, &header, netlink::NEW_RULE, &mut |body| rules.extend(rule(body)))?
                && list(netlink::GET_ROUTE, &header, netlink::NEW_ROUTE, &mut |body| {
                    entries.extend(entry(body, packet.to));
                })?;
        Ok(whole.then_some((rules, entries)))
    };
    match listed() {
        Ok(Some((rules, entries))) => judge(&rules, &entries, packet),
        // Too much to be listed in that time, or refused.
        Ok(None) | Err(_) => Judged::Unknown,
    }
}

/// Hands on what rtnetlink lists; false if that is not all.
fn list(request: u16, header: &[u8], answer: u16, each: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    let question = netlink::message(request, header);
    let ended = netlink::dump(libc::NETLINK_ROUTE, &question, answer, PATIENCE, &mut |body| {
        each(body);
        ControlFlow::Continue(())
    })?;
    Ok(ended.is_continue())
}

/// As fib_rules_lookup() (net/core/fib_rules.c): the first rule that takes the packet and whose table has a route for it decides.
fn judge(rules: &[Rule], entries: &[Entry], packet: &Packet) -> Judged {
    let mut rules: Vec<&Rule> = rules.iter().collect();
    rules.sort_by_key(|rule| rule.priority);
    let mut asked = Vec::new();
    for rule in rules {
        match rule.takes(packet) {
            Some(true) => {}
            Some(false) => continue,
            None => return Judged::Unknown,
        }
        let decided = |kind, table, entry| Judged::By(Decided { kind, rule: rule.to_string(), table, entry });
        match rule.action {
            Action::Nothing => {}
            Action::Unknown => return Judged::Unknown,
            // Of a rule `unreachable` is what no route is (fib4_rule_action, net/ipv4/fib_rules.c).
            Action::End("unreachable") => return decided("none", None, None),
            Action::End(kind) => return decided(kind, None, None),
            Action::Table(table) => {
                if ![LOCAL, DEFAULT].contains(&table) {
                    asked.push(name(table));
                }
                let Some(best) = best(entries, table) else { continue };
                if best.is_partial {
                    return Judged::Unknown;
                }
                let is_suppressed = rule.suppressed.is_some_and(|longest| best.to.1 <= longest);
                // `throw` gives the packet back to the rules (fib_props, net/ipv4/fib_semantics.c).
                if !is_suppressed && best.kind != "throw" {
                    return decided(best.kind, Some(name(table)), Some(best.to_string()));
                }
            }
        }
    }
    Judged::NoRoute(asked)
}

/// The route of a table that is taken: of the longest prefix, then of the least metric.
fn best(entries: &[Entry], table: u32) -> Option<&Entry> {
    let of_table = entries.iter().filter(|entry| entry.table == table);
    of_table.min_by_key(|entry| (u8::MAX - entry.to.1, entry.metric))
}

impl Rule {
    /// Whether it takes a packet, as fib_rule_match() (net/core/fib_rules.c) and its kin; `None` if it selects by what is not known.
    fn takes(&self, packet: &Packet) -> Option<bool> {
        let is_in = |network: Option<Network>, address: Option<IpAddr>| {
            network.is_none_or(|network| address.is_some_and(|address| contains(network, address)))
        };
        let by = packet.came.as_ref().map_or("lo", |came| &*came.by);
        let mark = packet.came.as_ref().map_or(0, |came| came.mark);
        let fits = is_in(self.to, Some(packet.to))
            && is_in(self.from, packet.came.as_ref().map(|came| came.from))
            && self.interface.as_deref().is_none_or(|name| name == by)
            && self.out.is_none()
            && self.mark.is_none_or(|(wanted, mask)| mark & mask == wanted & mask);
        match (fits, self.is_more) {
            (true, true) => None,
            (fits, _) => Some(fits != self.is_inverted),
        }
    }
}

/// As ip-rule(8) lists it.
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = format!("{}:", self.priority);
        let network = |network: Option<Network>| network.map_or_else(|| "all".to_owned(), prefix);
        let not = if self.is_inverted { " not" } else { "" };
        // Writing to a String can't fail.
        let _ = write!(text, "{not} from {}", network(self.from));
        if self.to.is_some() {
            let _ = write!(text, " to {}", network(self.to));
        }
        if let Some((mark, mask)) = self.mark {
            let _ = write!(text, " fwmark {mark:#x}");
            if mask != u32::MAX {
                let _ = write!(text, "/{mask:#x}");
            }
        }
        for (word, interface) in [("iif", &self.interface), ("oif", &self.out)] {
            if let Some(interface) = interface {
                let _ = write!(text, " {word} {interface}");
            }
        }
        let _ = match self.action {
            Action::Table(table) => write!(text, " lookup {}", name(table)),
            Action::End(kind) => write!(text, " {kind}"),
            Action::Nothing => write!(text, " nop"),
            Action::Unknown => write!(text, " ..."),
        };
        if let Some(longest) = self.suppressed {
            let _ = write!(text, " suppress_prefixlength {longest}");
        }
        f.write_str(&text)
    }
}

/// As ip-route(8) lists it, without where it leads.
impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, prefix(self.to))
    }
}

fn prefix((address, length): Network) -> String {
    let whole = if address.is_ipv4() { 32 } else { 128 };
    match length {
        0 => "default".to_owned(),
        length if length == whole => address.to_string(),
        length => format!("{address}/{length}"),
    }
}

fn name(table: u32) -> String {
    match table {
        DEFAULT => "default".to_owned(),
        MAIN => "main".to_owned(),
        LOCAL => "local".to_owned(),
        number => number.to_string(),
    }
}

fn contains((network, length): Network, address: IpAddr) -> bool {
    let shift = |bits: u32| bits.checked_sub(length.into());
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => shift(32).is_some_and(|shift| {
            (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }),
        (IpAddr::V6(network), IpAddr::V6(address)) => shift(128).is_some_and(|shift| {
            (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }),
        _ => false,
    }
}

/// Reads a rule.
fn rule(body: &[u8]) -> Option<Rule> {
    // FRA_DST, SRC, IIFNAME, PRIORITY, FWMARK, SUPPRESS_PREFIXLEN, TABLE, FWMASK, OIFNAME.
    const TO: u16 = 1;
    const FROM: u16 = 2;
    const IN: u16 = 3;
    const PRIORITY: u16 = 6;
    const MARK: u16 = 10;
    const SUPPRESS_GROUP: u16 = 13;
    const SUPPRESS_PREFIX: u16 = 14;
    const TABLE: u16 = 15;
    const MASK: u16 = 16;
    const OUT: u16 = 17;
    /// What else selects nothing: FRA_FLOW (realms), PAD, PROTOCOL (who made the rule).
    const HARMLESS: [u16; 3] = [11, 18, 21];
    /// FIB_RULE_INVERT
    const INVERT: u32 = 2;
    let [_, to_length, from_length, tos, table, _, _, action] = *body.first_chunk()?;
    let flags = word(body, 8)?;
    let own = body.get(RULE..)?;
    let number = |kind| attribute(own, kind).and_then(|value| word(value, 0));
    let network = |kind, length| attribute(own, kind).and_then(super::address).map(|it| (it, length));
    let interface = |kind| attribute(own, kind).map(text);
    // Where nothing is suppressed the kernel says -1.
    let is_set = |number: &u32| *number != u32::MAX;
    let known = [TO, FROM, IN, PRIORITY, MARK, SUPPRESS_GROUP, SUPPRESS_PREFIX, TABLE, MASK, OUT];
    let is_more = tos != 0
        || number(SUPPRESS_GROUP).is_some_and(|group| is_set(&group))
        || attributes(own).any(|(kind, _)| !known.contains(&kind) && !HARMLESS.contains(&kind));
    Some(Rule {
        priority: number(PRIORITY).unwrap_or(0),
        from: network(FROM, from_length),
        to: network(TO, to_length),
        interface: interface(IN),
        out: interface(OUT),
        mark: number(MARK).map(|mark| (mark, number(MASK).unwrap_or(u32::MAX))).filter(|it| *it != (0, 0)),
        is_inverted: flags & INVERT != 0,
        is_more,
        suppressed: number(SUPPRESS_PREFIX).filter(is_set).and_then(|length| u8::try_from(length).ok()),
        // FR_ACT_TO_TBL, NOP, BLACKHOLE, UNREACHABLE, PROHIBIT.
        action: match action {
            1 => Action::Table(number(TABLE).unwrap_or_else(|| table.into())),
            3 => Action::Nothing,
            6 => Action::End("blackhole"),
            7 => Action::End("unreachable"),
            8 => Action::End("prohibit"),
            _ => Action::Unknown,
        },
    })
}

/// Reads a route, if it leads to that address.
fn entry(body: &[u8], to: IpAddr) -> Option<Entry> {
    /// RTA_DST, PRIORITY, TABLE.
    const DESTINATION: u16 = 1;
    const METRIC: u16 = 6;
    const TABLE: u16 = 15;
    /// RTNH_F_DEAD and RTNH_F_LINKDOWN: it may not be taken now. RTM_F_CLONED: a cached one.
    const DOWN: u32 = 0x11;
    const CLONED: u32 = 0x200;
    let [_, length, from_length, tos, table, _, _, kind] = *body.first_chunk()?;
    let flags = word(body, 8)?;
    let own = body.get(RTMSG..)?;
    let number = |kind| attribute(own, kind).and_then(|value| word(value, 0));
    let network = match attribute(own, DESTINATION) {
        Some(bytes) => super::address(bytes)?,
        None if to.is_ipv4() => IpAddr::from([0; 4]),
        None => IpAddr::from([0; 16]),
    };
    (flags & CLONED == 0 && contains((network, length), to)).then_some(())?;
    Some(Entry {
        table: number(TABLE).unwrap_or_else(|| table.into()),
        to: (network, length),
        metric: number(METRIC).unwrap_or(0),
        kind: kind_of(kind)?,
        is_partial: from_length != 0 || tos != 0 || flags & DOWN != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Came;
    use super::*;
    use crate::probe::netlink::encoded;

    fn packet(by: &str) -> Packet {
        let came = Came { from: "10.77.1.1".parse().unwrap(), by: by.to_owned(), mark: 0x14 };
        Packet { to: "203.0.113.9".parse().unwrap(), came: Some(came) }
    }

    /// A rule as the kernel lists it: lengths, action, flags, and what else it has.
    fn listed(lengths: [u8; 2], action: u8, flags: u32, own: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, lengths[0], lengths[1], 0, 0, 0, 0, action];
        body.extend(flags.to_ne_bytes());
        body.extend(own.iter().flat_map(|(kind, value)| encoded(*kind, value)));
        body
    }

    fn to_table(priority: u32, table: u32, own: &[(u16, &[u8])]) -> Rule {
        let (priority, table) = (priority.to_ne_bytes(), table.to_ne_bytes());
        let usual: [(u16, &[u8]); 3] = [(6, &priority), (14, &[0xff; 4]), (15, &table)];
        rule(&listed([0, 0], 1, 0, &[&usual, own].concat())).unwrap()
    }

    fn the_kernels() -> Vec<Rule> {
        vec![to_table(0, LOCAL, &[]), to_table(32766, MAIN, &[]), to_table(32767, DEFAULT, &[])]
    }

    fn route_in(table: u32, network: &str, length: u8, kind: u8, flags: u32) -> Option<Entry> {
        let to: IpAddr = network.parse().unwrap();
        let IpAddr::V4(bytes) = to else { panic!("{network}") };
        let mut body = vec![2, length, 0, 0, 0, 0, 0, kind];
        body.extend(flags.to_ne_bytes());
        body.extend(encoded(1, &bytes.octets()));
        body.extend(encoded(15, &table.to_ne_bytes()));
        entry(&body, packet("r0").to)
    }

    fn decided(kind: &'static str, rule: &str, table: Option<&str>, entry: Option<&str>) -> Judged {
        let owned = |text: &str| text.to_owned();
        Judged::By(Decided { kind, rule: owned(rule), table: table.map(owned), entry: entry.map(owned) })
    }

    #[test]
    fn the_rule_of_the_interface_leads_to_its_table() {
        let mut rules = the_kernels();
        rules.push(to_table(100, 100, &[(3, b"r0\0")]));
        let entries: Vec<Entry> = [
            route_in(MAIN, "0.0.0.0", 0, 1, 0),
            route_in(100, "203.0.113.0", 24, 6, 0),
            route_in(100, "203.0.0.0", 16, 1, 0),
            route_in(100, "198.51.100.0", 24, 7, 0),
        ]
        .into_iter()
        .flatten()
        .collect();
        assert_eq!(entries.len(), 3);
        let rule = "100: from all iif r0 lookup 100";
        let of = |by| judge(&rules, &entries, &packet(by));
        assert_eq!(of("r0"), decided("blackhole", rule, Some("100"), Some("blackhole 203.0.113.0/24")));
        let main = "32766: from all lookup main";
        assert_eq!(of("r1"), decided("unicast", main, Some("main"), Some("unicast default")));
        // One of the namespace's own comes in by nothing.
        let own = Packet { came: None, ..packet("r0") };
        assert_eq!(judge(&rules, &entries, &own), of("r1"));
        assert_eq!(judge(&rules, &[], &packet("r0")), Judged::NoRoute(vec!["100".into(), "main".into()]));
    }

    #[test]
    fn rules_select_by_ends_and_mark() {
        let mark = |mark: u32, mask: u32| (mark.to_ne_bytes(), mask.to_ne_bytes());
        let (four, mask) = mark(4, 0xf);
        let of_mark = to_table(1, 5, &[(10, &four), (16, &mask)]);
        assert_eq!(of_mark.takes(&packet("r0")), Some(true));
        assert_eq!(of_mark.to_string(), "1: from all fwmark 0x4/0xf lookup 5");
        let from = rule(&listed([0, 24], 8, 0, &[(2, &[10, 77, 1, 0])])).unwrap();
        assert_eq!(from.takes(&packet("r0")), Some(true));
        assert_eq!(from.to_string(), "0: from 10.77.1.0/24 prohibit");
        assert_eq!(
            judge(&[from], &[], &packet("r0")),
            decided("prohibit", "0: from 10.77.1.0/24 prohibit", None, None)
        );
        let not_to = rule(&listed([32, 0], 7, 2, &[(1, &[203, 0, 113, 9])])).unwrap();
        assert_eq!(
            (not_to.takes(&packet("r0")), &*not_to.to_string()),
            (Some(false), "0: not from all to 203.0.113.9 unreachable")
        );
        let rule = rule(&listed([0, 0], 7, 0, &[])).unwrap();
        assert_eq!(
            judge(&[rule], &[], &packet("r0")),
            decided("none", "0: from all unreachable", None, None)
        );
        // A packet that came in does not leave by an interface yet.
        assert_eq!(to_table(1, 5, &[(17, b"r1\0")]).takes(&packet("r0")), Some(false));
    }

    #[test]
    fn what_is_not_known_here_is_not_judged() {
        // Ports, a VRF's rule, a goto; none of them matters where the rest does not fit.
        let by_port = to_table(1, 100, &[(24, &[80, 0, 80, 0])]);
        assert_eq!(judge(&[by_port], &[], &packet("r0")), Judged::Unknown);
        let elsewhere = to_table(1, 100, &[(24, &[80, 0, 80, 0]), (3, b"r9\0")]);
        assert_eq!(judge(&[elsewhere], &[], &packet("r0")), Judged::NoRoute(vec![]));
        let goes_to = rule(&listed([0, 0], 2, 0, &[(4, &[1, 0, 0, 0])])).unwrap();
        assert_eq!(judge(&[goes_to], &[], &packet("r0")), Judged::Unknown);
        // A route whose link is down.
        let down: Vec<Entry> = route_in(MAIN, "203.0.113.0", 24, 1, 0x10).into_iter().collect();
        assert_eq!(judge(&the_kernels(), &down, &packet("r0")), Judged::Unknown);
        assert_eq!((rule(&[0; 5]), entry(&[0; 5], packet("r0").to)), (None, None));
    }

    #[test]
    fn throw_and_suppressed_routes_lead_on() {
        let mut rules = the_kernels();
        let zero = 0_u32.to_ne_bytes();
        rules.push(
            rule(&listed(
                [0, 0],
                1,
                0,
                &[(6, &9_u32.to_ne_bytes()), (14, &zero), (15, &7_u32.to_ne_bytes())],
            ))
            .unwrap(),
        );
        rules.push(to_table(10, 8, &[]));
        let entries: Vec<Entry> = [
            route_in(7, "0.0.0.0", 0, 6, 0),
            route_in(8, "203.0.113.0", 24, 9, 0),
            route_in(MAIN, "203.0.113.9", 32, 7, 0),
        ]
        .into_iter()
        .flatten()
        .collect();
        let main = "32766: from all lookup main";
        let found = judge(&rules, &entries, &packet("r0"));
        assert_eq!(found, decided("unreachable", main, Some("main"), Some("unreachable 203.0.113.9")));
        assert_eq!(rules[3].to_string(), "9: from all lookup 7 suppress_prefixlength 0");
    }

    #[test]
    fn networks_of_both_families() {
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(
            contains((v6("fd00::"), 16), v6("fd00:1::2")) && !contains((v6("fd00::"), 32), v6("fd00:1::2"))
        );
        assert!(contains((v6("::"), 0), v6("fd00::1")) && !contains((v6("::"), 0), v6("10.0.0.1")));
        assert!(!contains((v6("10.0.0.0"), 33), v6("10.0.0.0")));
    }

    #[test]
    fn the_own_namespace_is_judged() {
        let to = Packet { to: "127.0.0.1".parse().unwrap(), came: None };
        let Judged::By(decided) = judged(&to) else { panic!("{:?}", judged(&to)) };
        assert_eq!((decided.kind, decided.table.as_deref()), ("local", Some("local")));
    }
}
