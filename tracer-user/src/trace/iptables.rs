//! A story as the kernel's TRACE target logs it (trace_packet(), net/ipv4/netfilter/ip_tables.c; the packet as
//! net/netfilter/nf_log_syslog.c prints it with all flags of NF_LOG_DEFAULT_MASK), so that what parses that parses this. What was
//! not captured of a packet, and the owner of its socket, is left out.

use super::model::{Kind, Outcome, Seen, Step, Story};
use super::tree::place;
use crate::netfilter::traced;
use crate::output::{escape, iptables};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The lines of a story: one for each rule, end of a chain and policy, and for a drop one as droptrace prints it without
/// tracing. `time` gives the time of a line, or nothing.
pub(super) fn lines(story: &Story, mut time: impl FnMut(&Step) -> String) -> String {
    let mut text = String::new();
    let mut last = None;
    for step in &story.steps {
        let Some(seen) = &step.seen else { continue };
        let mut add = |line: String| {
            let time = time(step);
            let gap = if time.is_empty() { "" } else { "  " };
            text.push_str(&format!("{time}{gap}{line}\n"));
        };
        let rule = step.netfilter.as_ref().and_then(place);
        if let Some(rule) = &rule
            && (step.kind == Kind::Netfilter || last.as_ref() != Some(rule))
        {
            add(format!("TRACE: {rule} {}", packet(step, seen)));
        }
        if step.kind == Kind::Drop && story.end.outcome == Outcome::Dropped {
            add(iptables::line(&seen.view));
        }
        last = rule.or(last);
    }
    text
}

/// Devices, link-layer header and the packet.
fn packet(step: &Step, seen: &Seen) -> String {
    let name = |name: &Option<String>| name.as_deref().map(escape).unwrap_or_default().into_owned();
    let mut text = format!("IN={} OUT={} ", name(&step.interface_in), name(&step.interface_out));
    let version = seen.bytes.first().map(|byte| byte >> 4);
    if step.interface_in.is_some() {
        text.push_str("MAC=");
        if let Some([destination, source]) = seen.mac {
            let ethertype = if version == Some(6) { [0x86, 0xdd] } else { [0x08, 0x00] };
            let header = [&destination[..], &source, &ethertype].concat();
            text.push_str(&header.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"));
        }
        text.push(' ');
    }
    let mut dump = Dump { bytes: &seen.bytes, text, is_quoted: false };
    match version {
        Some(4) => dump.ipv4(),
        Some(6) => dump.ipv6(),
        _ => return dump.text.trim_end().to_owned(),
    };
    // Of a rule it is known with which mark the packet came to it, or that it is not known.
    let rule = step.netfilter.as_ref().filter(|_| matches!(step.method, "evaluated" | traced::METHOD));
    let mark = rule.map_or(seen.view.packet.mark, |rule| rule.mark);
    if let Some(mark) = mark.filter(|&mark| mark != 0) {
        dump.add(format_args!("MARK=0x{mark:x} "));
    }
    dump.text.trim_end().to_owned()
}

/// Prints a packet as far as its bytes go.
struct Dump<'a> {
    /// From the IP header on.
    bytes: &'a [u8],
    text: String,
    /// It is one that an ICMP error quotes.
    is_quoted: bool,
}

/// A part of a packet that is behind what was captured: nothing more is told.
type Told = Option<()>;

impl Dump<'_> {
    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(text);
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    fn short(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    /// Whether `needed` bytes are there of a packet of `length`. If it ends before, that is said.
    fn is_whole(&mut self, length: usize, at: usize, needed: usize) -> bool {
        let left = length.saturating_sub(at);
        if !self.is_quoted && left < needed {
            self.add(format_args!("INCOMPLETE [{left} bytes] "));
        }
        left >= needed && self.bytes.len().saturating_sub(at) >= needed
    }

    fn ipv4(&mut self) -> Told {
        let header = usize::from(self.byte(0)? & 0x0f) * 4;
        let [source, destination] = [self.long(12)?, self.long(16)?].map(Ipv4Addr::from);
        self.add(format_args!("SRC={source} DST={destination} "));
        let (length, tos, id) = (self.short(2)?, self.byte(1)?, self.short(4)?);
        // IPTOS_TOS_MASK and IPTOS_PREC_MASK (include/uapi/linux/ip.h).
        let (tos, precedence, ttl) = (tos & 0x1e, tos & 0xe0, self.byte(8)?);
        self.add(format_args!("LEN={length} TOS=0x{tos:02X} PREC=0x{precedence:02X} TTL={ttl} ID={id} "));
        let fragment = self.short(6)?;
        for (bit, name) in [(0x8000, "CE "), (0x4000, "DF "), (0x2000, "MF ")] {
            if fragment & bit != 0 {
                self.text.push_str(name);
            }
        }
        let offset = fragment & 0x1fff;
        if offset != 0 {
            self.add(format_args!("FRAG:{offset} "));
        }
        if header > 20 {
            self.options(20, header)?;
        }
        let length = usize::from(length);
        match self.byte(9)? {
            1 => self.icmp(length, header, offset != 0),
            protocol => self.transport(protocol, length, header, offset != 0),
        }
    }

    /// Options in hexadecimal.
    fn options(&mut self, from: usize, to: usize) -> Told {
        let bytes = self.bytes.get(from..to)?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        self.add(format_args!("OPT ({text}) "));
        Some(())
    }

    fn transport(&mut self, protocol: u8, length: usize, at: usize, is_fragment: bool) -> Told {
        match protocol {
            6 => self.tcp(length, at, is_fragment),
            17 | 136 => {
                self.text.push_str(if protocol == 17 { "PROTO=UDP " } else { "PROTO=UDPLITE " });
                if is_fragment || !self.is_whole(length, at, 8) {
                    return Some(());
                }
                let [from, to, bytes] = [self.short(at)?, self.short(at + 2)?, self.short(at + 4)?];
                self.add(format_args!("SPT={from} DPT={to} LEN={bytes} "));
                Some(())
            }
            50 | 51 if is_fragment => Some(()),
            50 | 51 => {
                let (name, needed, spi) = if protocol == 50 { ("ESP", 8, 0) } else { ("AH", 12, 4) };
                self.add(format_args!("PROTO={name} "));
                if self.is_whole(length, at, needed) {
                    let spi = self.long(at + spi)?;
                    self.add(format_args!("SPI=0x{spi:x} "));
                }
                Some(())
            }
            other => {
                self.add(format_args!("PROTO={other} "));
                Some(())
            }
        }
    }

    fn tcp(&mut self, length: usize, at: usize, is_fragment: bool) -> Told {
        self.text.push_str("PROTO=TCP ");
        if is_fragment || !self.is_whole(length, at, 20) {
            return Some(());
        }
        let (from, to) = (self.short(at)?, self.short(at + 2)?);
        let (sequence, acknowledged) = (self.long(at + 4)?, self.long(at + 8)?);
        self.add(format_args!("SPT={from} DPT={to} SEQ={sequence} ACK={acknowledged} "));
        let (offset, flags, window) = (self.byte(at + 12)?, self.byte(at + 13)?, self.short(at + 14)?);
        self.add(format_args!("WINDOW={window} RES=0x{:02x} ", (offset & 0x0e) << 2));
        if offset & 1 != 0 {
            self.text.push_str("AE ");
        }
        let names = ["CWR ", "ECE ", "URG ", "ACK ", "PSH ", "RST ", "SYN ", "FIN "];
        for (name, bit) in names.into_iter().zip((0..8).rev()) {
            if flags & (1 << bit) != 0 {
                self.text.push_str(name);
            }
        }
        let urgent = self.short(at + 18)?;
        self.add(format_args!("URGP={urgent} "));
        let header = usize::from(offset >> 4) * 4;
        if header > 20 {
            self.options(at + 20, at.checked_add(header)?)?;
        }
        Some(())
    }

    fn icmp(&mut self, length: usize, at: usize, is_fragment: bool) -> Told {
        self.text.push_str("PROTO=ICMP ");
        if is_fragment || !self.is_whole(length, at, 8) {
            return Some(());
        }
        let (kind, code) = (self.byte(at)?, self.byte(at + 1)?);
        self.add(format_args!("TYPE={kind} CODE={code} "));
        match kind {
            0 | 8 => {
                let (id, sequence) = (self.short(at + 4)?, self.short(at + 6)?);
                self.add(format_args!("ID={id} SEQ={sequence} "));
            }
            12 => {
                let parameter = self.byte(at + 4)?;
                self.add(format_args!("PARAMETER={parameter} "));
            }
            3 | 4 | 5 | 11 => {
                if kind == 5 {
                    let gateway = Ipv4Addr::from(self.long(at + 4)?);
                    self.add(format_args!("GATEWAY={gateway} "));
                }
                self.quoted(at + 8, Self::ipv4);
                if (kind, code) == (3, 4) {
                    let mtu = self.short(at + 6)?;
                    self.add(format_args!("MTU={mtu} "));
                }
            }
            _ => {}
        }
        Some(())
    }

    /// The packet that an error quotes, in brackets; one in that is not told.
    fn quoted(&mut self, at: usize, print: fn(&mut Self) -> Told) {
        if self.is_quoted {
            return;
        }
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let mut quoted = Self { bytes, text: String::new(), is_quoted: true };
        print(&mut quoted);
        let text = quoted.text;
        self.add(format_args!("[{text}] "));
    }

    fn ipv6(&mut self) -> Told {
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = self.bytes.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        };
        let [source, destination] = [address(8)?, address(24)?].map(iptables::address);
        self.add(format_args!("SRC={source} DST={destination} "));
        let (first, length, hops) = (self.long(0)?, usize::from(self.short(4)?) + 40, self.byte(7)?);
        let (class, label) = ((first >> 20) & 0xff, first & 0xf_ffff);
        self.add(format_args!("LEN={length} TC={class} HOPLIMIT={hops} FLOWLBL={label} "));
        let (mut next, mut at, mut is_fragment) = (self.byte(6)?, 40, false);
        // Each extension header is at least 8 bytes long.
        while let 0 | 43 | 44 | 50 | 51 | 60 = next {
            let (following, units) = (self.byte(at)?, usize::from(self.byte(at + 1)?));
            self.text.push_str("OPT ( ");
            let bytes = match next {
                44 => {
                    let (offset, id) = (self.short(at + 2)?, self.long(at + 4)?);
                    let more = if offset & 1 != 0 { "INCOMPLETE " } else { "" };
                    is_fragment = offset & 0xfff8 != 0;
                    self.add(format_args!("FRAG:{} {more}ID:{id:08x} ", offset & 0xfff8));
                    8
                }
                50 => {
                    let spi = self.long(at)?;
                    self.add(format_args!("ESP SPI=0x{spi:x} )"));
                    return Some(());
                }
                51 if is_fragment => {
                    self.text.push_str("AH )");
                    return Some(());
                }
                51 => {
                    let spi = self.long(at + 4)?;
                    self.add(format_args!("AH SPI=0x{spi:x} "));
                    (units + 2) * 4
                }
                _ if is_fragment => {
                    self.text.push(')');
                    return Some(());
                }
                _ => (units + 1) * 8,
            };
            self.text.push_str(") ");
            (next, at) = (following, at.checked_add(bytes)?);
        }
        match next {
            58 => self.icmpv6(length, at, is_fragment),
            // Behind the extension headers, AH and ESP can't come any more.
            protocol => self.transport(protocol, length, at, is_fragment),
        }
    }

    fn icmpv6(&mut self, length: usize, at: usize, is_fragment: bool) -> Told {
        self.text.push_str("PROTO=ICMPv6 ");
        if is_fragment || !self.is_whole(length, at, 8) {
            return Some(());
        }
        let (kind, code) = (self.byte(at)?, self.byte(at + 1)?);
        self.add(format_args!("TYPE={kind} CODE={code} "));
        match kind {
            128 | 129 => {
                let (id, sequence) = (self.short(at + 4)?, self.short(at + 6)?);
                self.add(format_args!("ID={id} SEQ={sequence} "));
            }
            1..=4 => {
                let value = self.long(at + 4)?;
                if kind == 4 {
                    self.add(format_args!("POINTER={value:08x} "));
                }
                self.quoted(at + 8, Self::ipv6);
                if kind == 2 {
                    self.add(format_args!("MTU={value} "));
                }
            }
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::fixtures;
    use crate::trace::story::Stories;
    use std::time::Duration;

    fn told(seen: Vec<Seen>) -> Vec<String> {
        let mut stories = Stories::default();
        seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
        let story = stories.due(Duration::from_secs(9)).remove(0);
        lines(&story, |_| String::new()).lines().map(str::to_owned).collect()
    }

    fn dump(bytes: &[u8]) -> String {
        let mut dump = Dump { bytes, text: String::new(), is_quoted: false };
        match bytes.first().map(|byte| byte >> 4) {
            Some(6) => dump.ipv6(),
            _ => dump.ipv4(),
        };
        dump.text
    }

    #[test]
    fn a_line_for_each_rule() {
        let lines = told(fixtures::ip_forward_off());
        let packet = "IN=eth0 OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:09:08:00 SRC=192.0.2.9 DST=192.0.2.1 LEN=60 \
            TOS=0x00 PREC=0x00 TTL=64 ID=12345 DF PROTO=UDP SPT=53 DPT=40000 LEN=40";
        let rules = ["raw:PREROUTING:rule:1", "raw:cali-PREROUTING:return:5", "raw:PREROUTING:policy:2"];
        for (line, rule) in lines.iter().zip(rules) {
            assert_eq!(line, &format!("TRACE: {rule} {packet}"));
        }
        assert!(lines[3].starts_with("TRACE: mangle:PREROUTING:policy:1 "));
        assert!(lines[4].starts_with("DROP: IP_INNOROUTES IN=eth0 OUT= SRC=192.0.2.9 DST=10.244.3.7 "));
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn a_rule_sees_the_packet_before_it_is_translated() {
        let lines = told(fixtures::dnat_to_pod());
        assert_eq!(lines.len(), 3);
        let tcp = "PROTO=TCP SPT=41822 DPT=6379 SEQ=1 ACK=0 WINDOW=64240 RES=0x00 SYN URGP=0 OPT (020405B4)";
        assert!(
            lines[1]
                .starts_with("TRACE: nat:KUBE-SEP-A:rule:2 IN=veth1 OUT= MAC= SRC=10.244.3.7 DST=10.96.3.4 ")
        );
        assert!(lines[1].ends_with(tcp), "{}", lines[1]);
        assert!(lines[2].starts_with(
            "TRACE: filter:FORWARD:policy:3 IN=veth1 OUT=veth2 MAC= SRC=10.244.3.7 DST=10.244.1.9 "
        ));
    }

    #[test]
    fn a_rule_sees_the_mark_that_rules_before_it_set() {
        let mut packet = fixtures::Walker::new(1, "udp", "10.0.0.1:1", "10.0.0.2:53");
        packet.0.view.packet.mark = Some(1);
        let set = |place, mark| crate::trace::model::RuleMet { mark, ..fixtures::rule(place, "continue") };
        let rules = vec![set("mangle:INPUT:rule:1", Some(0x12)), set("mangle:INPUT:rule:2", None)];
        let counted = crate::trace::model::RuleMet { method: "counter", ..set("filter:INPUT:rule:1", None) };
        let rules = [rules, vec![counted]].concat();
        let lines = told(vec![packet.enters("INPUT"), packet.leaves("INPUT", rules)]);
        let marks: Vec<_> = lines.iter().map(|line| line.split(" MARK=").nth(1)).collect();
        assert_eq!(marks, [Some("0x12"), None, Some("0x1")]);
    }

    #[test]
    fn the_rule_that_dropped_it() {
        let lines = told(fixtures::dropped_by_rule());
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("TRACE: filter:FORWARD:rule:3 IN=veth1 OUT=veth2 "), "{lines:?}");
        assert!(lines[1].starts_with("DROP: filter:FORWARD:rule:3 IN=veth1 OUT=veth2 "), "{lines:?}");
    }

    #[test]
    fn what_was_delivered_is_no_drop() {
        let mut seen = fixtures::udp_read();
        seen.truncate(3);
        let mut freed = Seen { place: crate::trace::model::Place::Dropped, ..seen[2].clone() };
        freed.view.drop.class = crate::event::model::Class::Routine;
        seen.push(freed);
        assert_eq!(told(seen), Vec::<String>::new());
    }

    #[test]
    fn echo_and_errors_of_icmp() {
        let mut echo = vec![0x45, 0x10, 0, 84, 0x30, 0x39, 0x40, 0, 63, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        echo.extend([8, 0, 0, 0, 0x0f, 0xe0, 0, 24]);
        let expected = "SRC=10.0.0.1 DST=10.0.0.2 LEN=84 TOS=0x10 PREC=0x00 TTL=63 ID=12345 DF PROTO=ICMP TYPE=0 CODE=0 ID=4064 SEQ=24 ";
        assert_eq!(dump(&echo), expected.replace("TYPE=0", "TYPE=8"));
        let mut error = vec![0x45, 0xc0, 0, 112, 0, 1, 0, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
        error.extend([3, 4, 0, 0, 0, 0, 0x05, 0x78]);
        error.extend(&echo);
        let quoted = expected.replace("TYPE=0", "TYPE=8");
        let expected = format!(
            "SRC=10.0.0.2 DST=10.0.0.1 LEN=112 TOS=0x00 PREC=0xC0 TTL=64 ID=1 PROTO=ICMP TYPE=3 CODE=4 [{quoted}] MTU=1400 "
        );
        assert_eq!(dump(&error), expected);
    }

    #[test]
    fn ipv6_with_extension_headers() {
        let mut packet = vec![0x60, 0x1a, 0xbc, 0xde, 0, 24, 0, 64];
        let address = |last: u8| [vec![0x20, 0x01, 0x0d, 0xb8], vec![0; 11], vec![last]].concat();
        packet.extend([address(1), address(2)].concat());
        // Hop-by-hop, fragment, then ICMPv6.
        packet.extend([44, 0, 0, 0, 0, 0, 0, 0, 58, 0, 0, 1, 0, 0, 0, 0x2a]);
        packet.extend([128, 0, 0, 0, 0, 7, 0, 9]);
        let expected = "SRC=2001:0db8:0000:0000:0000:0000:0000:0001 DST=2001:0db8:0000:0000:0000:0000:0000:0002 \
            LEN=64 TC=1 HOPLIMIT=64 FLOWLBL=703710 OPT ( ) OPT ( FRAG:0 INCOMPLETE ID:0000002a ) \
            PROTO=ICMPv6 TYPE=128 CODE=0 ID=7 SEQ=9 ";
        assert_eq!(dump(&packet), expected);
    }

    #[test]
    fn what_is_cut_off_is_left_out_and_what_is_short_is_said() {
        let whole = fixtures::dnat_to_pod()[0].bytes.clone();
        for length in 0..whole.len() {
            assert!(dump(&whole)[..].starts_with(dump(&whole[..length]).trim_end()), "{length}");
        }
        let mut short = whole;
        short[3] = 30;
        assert!(dump(&short).ends_with("PROTO=TCP INCOMPLETE [10 bytes] "), "{}", dump(&short));
        short[6..8].copy_from_slice(&[0x20, 0x01]);
        assert!(dump(&short).ends_with("MF FRAG:1 PROTO=TCP "), "{}", dump(&short));
    }
}
