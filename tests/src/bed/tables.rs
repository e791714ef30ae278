//! Random tables of iptables with matches and targets of many kinds, and packets that they tell apart.
//!
//! Nothing here says which rules a packet meets: that is for the kernel.

use super::backend::Backend;
use super::namespace::Namespace;
use super::packet::{self, Ip, protocol, tcp_flag};
use super::random::Random;
use super::topology::{Family, Routed};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

/// Source addresses that rules tell apart: the last bytes of addresses behind the client's wire.
pub const SOURCES: std::ops::Range<u8> = 16..24;
/// Destination ports that rules tell apart.
const PORTS: (u16, u16) = (20_000, 12);
/// Rules of one chain, at most.
const RULES: usize = 7;

/// A table with its base chains. All tables are always written, so that those of before are gone.
const TABLES: [(&str, &[&str]); 4] = [
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
];
/// Chains of users in each table but nat.
const USER: [&str; 3] = ["a", "b", "c"];
/// In nat they are kept apart: some targets are for one side only.
const USER_NAT: [(&str, &[&str]); 2] =
    [("to", &["PREROUTING", "OUTPUT"]), ("from", &["INPUT", "POSTROUTING"])];

/// Whether a packet enters or leaves by a device on a chain; chains of users may be anywhere.
fn devices(chain: &str) -> (bool, bool) {
    (!matches!(chain, "OUTPUT" | "POSTROUTING"), !matches!(chain, "PREROUTING" | "INPUT"))
}

/// Modules that a kernel may lack: a name, a table, and a rule that needs it.
const MODULES: [(&str, &str, [&str; 2]); 25] = [
    ("multiport", "filter", ["-p udp -m multiport --dports 1,2"; 2]),
    ("conntrack", "filter", ["-m conntrack --ctstate NEW"; 2]),
    ("state", "filter", ["-m state --state NEW"; 2]),
    ("mark", "filter", ["-m mark --mark 1"; 2]),
    ("connmark", "filter", ["-m connmark --mark 1"; 2]),
    ("comment", "filter", ["-m comment --comment x"; 2]),
    ("length", "filter", ["-m length --length 1:2"; 2]),
    ("ttl", "filter", ["-m ttl --ttl-eq 1", "-m hl --hl-eq 1"]),
    ("iprange", "filter", ["-m iprange --src-range 1.0.0.1-1.0.0.2", "-m iprange --src-range ::1-::2"]),
    ("addrtype", "filter", ["-m addrtype --dst-type MULTICAST"; 2]),
    ("limit", "filter", ["-m limit --limit 1/s"; 2]),
    ("statistic", "filter", ["-m statistic --mode nth --every 2 --packet 0"; 2]),
    ("LOG", "filter", ["-j LOG --log-prefix x"; 2]),
    ("NFLOG", "filter", ["-j NFLOG --nflog-group 7"; 2]),
    ("REJECT", "filter", ["-p tcp -j REJECT --reject-with tcp-reset"; 2]),
    ("MARK", "mangle", ["-j MARK --set-xmark 1/1"; 2]),
    ("CONNMARK", "mangle", ["-j CONNMARK --save-mark"; 2]),
    ("TTL", "mangle", ["-j TTL --ttl-set 9", "-j HL --hl-set 9"]),
    ("DSCP", "mangle", ["-j DSCP --set-dscp 1"; 2]),
    ("CLASSIFY", "mangle", ["-j CLASSIFY --set-class 1:1"; 2]),
    ("CT", "raw", ["-j CT --notrack"; 2]),
    ("DNAT", "nat", ["-j DNAT --to-destination 1.0.0.1", "-j DNAT --to-destination ::1"]),
    ("REDIRECT", "nat", ["-p udp -j REDIRECT --to-ports 1"; 2]),
    ("SNAT", "nat", ["-j SNAT --to-source 1.0.0.1", "-j SNAT --to-source ::1"]),
    ("MASQUERADE", "nat", ["-j MASQUERADE"; 2]),
];

/// The modules that this kernel and its tools have for a backend and family, by name; and those that they lack.
#[must_use]
pub fn modules(
    netns: &Namespace,
    backend: Backend,
    family: Family,
) -> (BTreeSet<&'static str>, Vec<&'static str>) {
    let works = |(_, table, rule): &(&str, &str, [&str; 2])| {
        let chain =
            if matches!(*table, "nat") && rule[0].contains("-j SNAT") || rule[0].contains("MASQUERADE") {
                "POSTROUTING"
            } else {
                "OUTPUT"
            };
        let text = format!("*{table}\n-A {chain} {}\nCOMMIT\n", family.pick(rule[0], rule[1]));
        backend.load(netns, family, &text).is_ok()
    };
    let mut missing = Vec::new();
    let mut there = BTreeSet::new();
    for module in &MODULES {
        if works(module) {
            there.insert(module.0);
        } else {
            missing.push(module.0);
        }
    }
    (there, missing)
}

/// What rules may speak of.
#[derive(Clone, Debug)]
pub struct World {
    /// Over which protocol.
    pub family: Family,
    /// Where packets come from.
    pub sources: Vec<IpAddr>,
    /// The router's address toward the client.
    pub near: IpAddr,
    /// Beyond the router.
    pub server: IpAddr,
    /// See [`modules`].
    pub modules: BTreeSet<&'static str>,
}

impl World {
    /// That of a router between a client and a server.
    #[must_use]
    pub fn new(routed: &Routed, family: Family, modules: BTreeSet<&'static str>) -> Self {
        let source = |host: u8| match routed.client.address(family) {
            IpAddr::V4(own) => {
                let [a, b, c, _] = own.octets();
                IpAddr::from([a, b, c, host])
            }
            IpAddr::V6(own) => {
                let mut octets = own.octets();
                octets[15] = host;
                octets.into()
            }
        };
        Self {
            family,
            sources: SOURCES.map(source).collect(),
            near: routed.near.address(family),
            server: routed.server.address(family),
            modules,
        }
    }

    fn has(&self, module: &str) -> bool {
        self.modules.contains(module)
    }
}

/// The tables of a seed, as `iptables-restore` reads them.
#[must_use]
pub fn tables(seed: u64, world: &World) -> String {
    let mut maker = Maker { random: Random::new(seed), world };
    TABLES.iter().map(|(name, bases)| maker.table(name, bases)).collect()
}

struct Maker<'a> {
    random: Random,
    world: &'a World,
}

/// Where a rule stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    table: &'a str,
    chain: &'a str,
    /// Where packets may come by a device, and leave by one.
    devices: (bool, bool),
    /// Chains that it may jump to: never in a circle.
    next: &'a [String],
    /// Of nat: it may change destinations; otherwise sources.
    is_destination: bool,
}

impl Maker<'_> {
    fn table(&mut self, table: &str, bases: &[&str]) -> String {
        let mut text = format!("*{table}\n");
        let mut rules = String::new();
        for base in bases {
            let drops = table != "nat" && self.random.percent(8);
            let _ = writeln!(text, ":{base} {} [0:0]", if drops { "DROP" } else { "ACCEPT" });
        }
        let sides: &[(&str, &[&str])] = if table == "nat" { &USER_NAT } else { &[("user", bases)] };
        for (side, bases) in sides {
            let users: Vec<String> = USER.iter().map(|name| format!("{side}-{name}")).collect();
            for user in &users {
                let _ = writeln!(text, ":{user} - [0:0]");
            }
            for base in *bases {
                let place = Place {
                    table,
                    chain: base,
                    devices: devices(base),
                    next: &users,
                    is_destination: *side == "to",
                };
                self.chain(&mut rules, place);
            }
            for (index, user) in users.iter().enumerate() {
                let next = &users[index + 1..];
                let place =
                    Place { table, chain: user, devices: (true, true), next, is_destination: *side == "to" };
                self.chain(&mut rules, place);
            }
        }
        text + &rules + "COMMIT\n"
    }

    fn chain(&mut self, rules: &mut String, place: Place<'_>) {
        for _ in 0..self.random.below(RULES + 1) {
            let (takes, protocol) = self.takes(place);
            let target = self.target(place, protocol);
            let _ = writeln!(rules, "-A {}{takes}{target}", place.chain);
        }
    }

    fn one<'t>(&mut self, all: &[&'t str]) -> &'t str {
        all.get(self.random.below(all.len())).copied().unwrap_or_default()
    }

    fn not(&mut self) -> &'static str {
        if self.random.percent(25) { "! " } else { "" }
    }

    fn address(&mut self) -> IpAddr {
        let World { sources, near, server, .. } = self.world;
        match self.random.below(8) {
            0 => *near,
            1 | 2 => *server,
            _ => sources[self.random.below(sources.len())],
        }
    }

    /// One port or a range.
    fn ports(&mut self) -> String {
        let first = self.random.port(PORTS.0, PORTS.1);
        let last = first + self.random.below(6) as u16;
        if first == last || self.random.percent(30) { first.to_string() } else { format!("{first}:{last}") }
    }

    /// What a rule asks for, and the protocol that it surely is about.
    fn takes(&mut self, place: Place<'_>) -> (String, Option<&'static str>) {
        let mut text = String::new();
        let bits = self.world.family.pick(32, 128);
        if self.random.percent(25) {
            let (not, end) = (self.not(), self.one(&["-s", "-d"]));
            let (address, bits) = (self.address(), bits - self.random.below(4));
            let _ = write!(text, " {not}{end} {address}/{bits}");
        }
        let (has_in, has_out) = place.devices;
        if has_in && self.random.percent(15) {
            let _ = write!(text, " {}-i {}", self.not(), self.one(&["r0", "r1", "r+", "lo"]));
        }
        if has_out && self.random.percent(15) {
            let _ = write!(text, " {}-o {}", self.not(), self.one(&["r0", "r1", "r+", "lo"]));
        }
        let icmp = self.world.family.pick("icmp", "ipv6-icmp");
        let mut protocol = None;
        if self.random.percent(45) {
            let asked = self.one(&["udp", "udp", "tcp", icmp]);
            let not = if self.random.percent(15) { "! " } else { "" };
            let _ = write!(text, " {not}-p {asked}");
            if not.is_empty() {
                protocol = Some(asked);
                text += &self.header(asked);
            }
        }
        for _ in 0..self.random.below(3) {
            text += &self.module();
        }
        (text, protocol)
    }

    /// A match on the header of a protocol.
    fn header(&mut self, protocol: &str) -> String {
        let not = self.not();
        match protocol {
            "udp" | "tcp" => match self.random.below(6) {
                0 => String::new(),
                1 if self.world.has("multiport") => {
                    let option = self.one(&["--dports", "--sports", "--ports"]);
                    format!(" -m multiport {not}{option} {},{}", self.ports(), self.ports())
                }
                2 | 3 if protocol == "tcp" => match self.random.below(3) {
                    0 => format!(" -m tcp {not}--syn"),
                    1 => format!(" -m tcp {not}--tcp-flags SYN,ACK ACK"),
                    _ => format!(" -m tcp {not}--tcp-flags FIN,SYN,RST,PSH,ACK,URG RST"),
                },
                3 => format!(" -m {protocol} {not}--sport 1024:{}", 1024 + self.random.below(4000)),
                _ => format!(" -m {protocol} {not}--dport {}", self.ports()),
            },
            "icmp" => {
                let kind = self.one(&["8", "0", "3/3", "3", "any", "11/0"]);
                format!(" -m icmp {not}--icmp-type {kind}")
            }
            _ => {
                let kind = self.one(&["128", "129", "1/4", "1", "3/0"]);
                format!(" -m icmp6 {not}--icmpv6-type {kind}")
            }
        }
    }

    /// A match that needs no protocol; nothing where this kernel lacks it.
    fn module(&mut self) -> String {
        let not = self.not();
        let v6 = self.world.family == Family::V6;
        let (module, text) = match self.random.below(34) {
            0..8 => {
                let states = self.one(&[
                    "NEW",
                    "ESTABLISHED",
                    "RELATED,ESTABLISHED",
                    "INVALID",
                    "UNTRACKED",
                    "NEW,INVALID",
                    "SNAT",
                    "DNAT",
                    "NEW,DNAT",
                ]);
                ("conntrack", format!(" -m conntrack {not}--ctstate {states}"))
            }
            8 | 9 => ("state", format!(" -m state {not}--state {}", self.one(&["NEW", "ESTABLISHED"]))),
            10 | 11 => {
                let direction = self.one(&["ORIGINAL", "REPLY"]);
                let state = if self.random.percent(50) { " --ctstate NEW,ESTABLISHED" } else { "" };
                ("conntrack", format!(" -m conntrack{state} --ctdir {direction}"))
            }
            12..18 => {
                let (value, mask) = (self.random.below(4), 1 + self.random.below(3));
                ("mark", format!(" -m mark {not}--mark {:#x}/{mask:#x}", value & mask))
            }
            18..20 => ("comment", " -m comment --comment \"two words, -j DROP\"".to_owned()),
            20..23 => {
                let first = 20 + self.random.below(60);
                ("length", format!(" -m length {not}--length {first}:{}", first + self.random.below(40)))
            }
            23..26 => {
                let hops = self.one(&["1", "2", "63", "64"]);
                if v6 {
                    // Its negation is another operator.
                    ("ttl", format!(" -m hl {} {hops}", self.one(&["--hl-eq", "--hl-lt", "--hl-gt"])))
                } else {
                    ("ttl", format!(" -m ttl {} {hops}", self.one(&["--ttl-eq", "--ttl-lt", "--ttl-gt"])))
                }
            }
            26..29 => {
                let end = self.one(&["--src-range", "--dst-range"]);
                let sources = &self.world.sources;
                let first = self.random.below(sources.len());
                let last = first + self.random.below(sources.len() - first);
                ("iprange", format!(" -m iprange {not}{end} {}-{}", sources[first], sources[last]))
            }
            29 | 30 => ("addrtype", " -m addrtype --dst-type MULTICAST".to_owned()),
            // What can't be known afterwards is rare in tables, too.
            31 if self.random.percent(30) => ("limit", " -m limit --limit 5/min".to_owned()),
            32 if self.random.percent(30) => {
                ("statistic", " -m statistic --mode nth --every 2 --packet 0".to_owned())
            }
            33 if self.random.percent(30) => ("connmark", format!(" -m connmark {not}--mark 0x1")),
            _ => return String::new(),
        };
        if self.world.has(module) { text } else { String::new() }
    }

    fn target(&mut self, place: Place<'_>, protocol: Option<&str>) -> String {
        let wanted = self.random.below(100);
        let next = place.next.get(self.random.below(place.next.len()));
        let text = match (wanted, next) {
            (0..22, Some(chain)) => format!("j {chain}"),
            (22..29, Some(chain)) => format!("g {chain}"),
            (29..40, _) => "j RETURN".to_owned(),
            (40..45, _) => "j ACCEPT".to_owned(),
            (45..51, _) if place.table != "nat" => "j DROP".to_owned(),
            (51..70, _) => self.mark(),
            (70..92, _) => self.own(place, protocol),
            _ => String::new(),
        };
        let module = text.strip_prefix("j ").and_then(|it| it.split(' ').next()).unwrap_or_default();
        let is_there = MODULES.iter().all(|(name, ..)| *name != module) || self.world.has(module);
        let names = module == "HL" && !self.world.has("TTL");
        if text.is_empty() || !is_there || names { String::new() } else { format!(" -{text}") }
    }

    /// A target that goes on, allowed in every table.
    fn mark(&mut self) -> String {
        let value = self.random.below(4);
        match self.random.below(9) {
            0..3 => format!("j MARK --set-xmark {value:#x}/{:#x}", self.random.below(4)),
            3 => format!("j MARK --or-mark {value:#x}"),
            4 => format!("j MARK --and-mark {value:#x}"),
            5 => format!("j MARK --xor-mark {value:#x}"),
            6 => format!("j LOG --log-prefix \"a prefix {value} \""),
            7 => format!("j NFLOG --nflog-group 9 --nflog-prefix p{value}"),
            _ => String::new(),
        }
    }

    /// A target that a table is there for.
    fn own(&mut self, place: Place<'_>, protocol: Option<&str>) -> String {
        let v6 = self.world.family == Family::V6;
        match (place.table, place.is_destination) {
            ("raw", _) => self.one(&["", "j CT --notrack"]).to_owned(),
            ("mangle", _) => match self.random.below(6) {
                0 => format!("j {} {}", if v6 { "HL --hl-set" } else { "TTL --ttl-set" }, 50),
                1 => "j DSCP --set-dscp 0x0a".to_owned(),
                2 if matches!(place.chain, "FORWARD" | "OUTPUT" | "POSTROUTING") => {
                    "j CLASSIFY --set-class 0001:0002".to_owned()
                }
                3 => "j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff".to_owned(),
                4 if self.random.percent(25) => {
                    "j CONNMARK --restore-mark --nfmask 0x8 --ctmask 0x8".to_owned()
                }
                _ => String::new(),
            },
            ("nat", true) => {
                let port = self.random.port(PORTS.0, PORTS.1);
                match (self.random.below(3), protocol) {
                    (0, Some("udp" | "tcp")) => format!("j REDIRECT --to-ports {port}"),
                    (1, Some("udp" | "tcp")) if v6 => {
                        format!("j DNAT --to-destination [{}]:{port}", self.world.server)
                    }
                    (1, Some("udp" | "tcp")) => {
                        format!("j DNAT --to-destination {}:{port}", self.world.server)
                    }
                    (2, _) => format!("j DNAT --to-destination {}", self.world.server),
                    _ => "j REDIRECT".to_owned(),
                }
            }
            ("nat", false) => match place.chain {
                // Kept to what both of its hooks allow, and what always finds a port.
                "POSTROUTING" if self.random.percent(50) => "j MASQUERADE".to_owned(),
                _ => format!("j SNAT --to-source {}", self.world.near),
            },
            _ => {
                let tcp = if protocol == Some("tcp") { "tcp-reset" } else { "" };
                let with = match (tcp, v6) {
                    ("tcp-reset", _) if self.random.percent(60) => "tcp-reset",
                    (_, false) => self.one(&["icmp-port-unreachable", "icmp-admin-prohibited"]),
                    (_, true) => self.one(&["icmp6-port-unreachable", "icmp6-adm-prohibited"]),
                };
                format!("j REJECT --reject-with {with}")
            }
        }
    }
}

/// Which way a packet takes at the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It comes from the client's wire.
    In,
    /// The router sends it.
    Out,
}

/// A packet to send.
#[derive(Clone, Debug)]
pub struct Sent {
    /// How.
    pub way: Way,
    /// Where it comes from, with the port; 0 for ICMP.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// The IP packet.
    pub bytes: Vec<u8>,
}

/// So many packets, for the tables of the same seed. Each has a source port, or an ICMP identifier, of its own, from `first` on,
/// but for some that come twice; the lengths, or TCP's sequence numbers, tell those of one call apart.
#[must_use]
pub fn packets(seed: u64, world: &World, first: u16, count: u16) -> Vec<Sent> {
    let mut random = Random::new(seed ^ 0x7ac3);
    let mut made: Vec<Sent> = Vec::new();
    for index in 0..count {
        let mut way = if random.percent(25) { Way::Out } else { Way::In };
        let host = world.sources[random.below(world.sources.len())];
        let is_for_router = way == Way::In && random.percent(35);
        let destination = if is_for_router { world.near } else { world.server };
        let number = first.wrapping_add(index);
        let (mut from, mut to) =
            (SocketAddr::new(host, number), SocketAddr::new(destination, random.port(PORTS.0, PORTS.1)));
        // The same flow once more.
        if random.percent(15)
            && let Some(last) = made.last().filter(|last| last.from.port() != 0)
        {
            (way, from, to) = (last.way, last.from, last.to);
        }
        let bytes = match random.below(10) {
            0..5 => udp(from, to, [64, 64, 64, 2, 1][random.below(5)], usize::from(index)),
            5..8 => {
                let flags = [tcp_flag::SYN, tcp_flag::SYN, tcp_flag::ACK, tcp_flag::RST, tcp_flag::SYN | 1];
                let flags = flags[random.below(flags.len())];
                packet::tcp(from, to, u32::from(number) << 8 | u32::from(index), 0, flags, b"")
            }
            _ => {
                (from, to) = (SocketAddr::new(from.ip(), 0), SocketAddr::new(to.ip(), 0));
                packet::echo_request(from.ip(), to.ip(), number, index)
            }
        };
        made.push(Sent { way, from, to, bytes });
    }
    made
}

/// A UDP packet that comes in, with this source port.
#[must_use]
pub fn udp_packet(world: &World, port: u16) -> Sent {
    let host = world.sources.first().copied().unwrap_or(world.server);
    let (from, to) = (SocketAddr::new(host, port), SocketAddr::new(world.server, PORTS.0));
    Sent { way: Way::In, from, to, bytes: udp(from, to, 64, 0) }
}

/// UDP whose length is its number's.
fn udp(from: SocketAddr, to: SocketAddr, ttl: u8, number: usize) -> Vec<u8> {
    let segment = packet::udp_segment(from, to, &vec![0x55; 40 + number]);
    Ip { ttl, ..Ip::new(from.ip(), to.ip()) }.wrap(protocol::UDP, &segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(family: Family) -> World {
        let address = |host: u8| match family {
            Family::V4 => IpAddr::from([10, 77, 1, host]),
            Family::V6 => IpAddr::from([0xfd77, 1, 0, 0, 0, 0, 0, u16::from(host)]),
        };
        World {
            family,
            sources: SOURCES.map(address).collect(),
            near: address(254),
            server: address(99),
            modules: MODULES.iter().map(|it| it.0).collect(),
        }
    }

    #[test]
    fn a_seed_makes_the_same_tables_and_packets_again() {
        let world = world(Family::V6);
        assert_eq!(tables(5, &world), tables(5, &world));
        assert!(tables(5, &world) != tables(6, &world));
        let bytes = |seed| packets(seed, &world, 2000, 20).into_iter().map(|it| it.bytes).collect::<Vec<_>>();
        assert_eq!(bytes(5), bytes(5));
        let all = bytes(7);
        assert!(all.iter().enumerate().all(|(at, one)| !all[..at].contains(one)), "two are the same");
    }

    #[test]
    fn all_kinds_come_up() {
        for family in [Family::V4, Family::V6] {
            let world = world(family);
            let text: String = (0..60).map(|seed| tables(seed, &world)).collect();
            for (name, ..) in MODULES {
                let name = if name == "ttl" && family == Family::V6 { "hl" } else { name };
                let name = if name == "TTL" && family == Family::V6 { "HL" } else { name };
                assert!(
                    text.contains(&format!(" {name} ")) || text.contains(&format!(" {name}\n")),
                    "{name}"
                );
            }
            for other in [" -g ", " -j RETURN", "! --ctstate", ":FORWARD DROP", "! -p", "tcp-reset"] {
                assert!(text.contains(other), "{other}");
            }
        }
    }

    #[test]
    fn tables_have_only_what_is_there() {
        let world = World { modules: BTreeSet::new(), ..world(Family::V4) };
        let text: String = (0..40).map(|seed| tables(seed, &world)).collect();
        for (name, ..) in MODULES {
            assert!(
                !text.contains(&format!("-m {name} ")) && !text.contains(&format!("-j {name}")),
                "{name}"
            );
        }
    }
}
