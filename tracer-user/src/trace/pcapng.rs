//! Stories as a capture file that Wireshark opens: each step is a packet, and says what it is in its comment
//! (draft-ietf-opsawg-pcapng). Packets begin at their IP header.

use super::model::{Kind, Seen, Step, Story};
use super::tree;
use std::collections::HashMap;

/// Packets that begin at their IPv4 header. Not LINKTYPE_RAW, which has both families: tcpdump refuses a file with a second
/// interface of that type (seen with libpcap 1.10.3).
const LINKTYPE_IPV4: u16 = 228;
/// Likewise IPv6.
const LINKTYPE_IPV6: u16 = 229;
/// `if_tsresol`: times are in units of 10^-9 s.
const NANOSECONDS: u8 = 9;
/// Interfaces that are described; what is beyond is put together in one.
const MAX_INTERFACES: usize = 4096;
/// Bytes of a comment.
const MAX_COMMENT: usize = 4096;

/// Numbers of options.
mod option {
    pub(super) const END: u16 = 0;
    pub(super) const COMMENT: u16 = 1;
    pub(super) const USER_APPLICATION: u16 = 4;
    pub(super) const INTERFACE_NAME: u16 = 2;
    pub(super) const INTERFACE_DESCRIPTION: u16 = 3;
    pub(super) const TIME_RESOLUTION: u16 = 9;
    /// epb_flags
    pub(super) const FLAGS: u16 = 2;
    /// epb_packetid: the same for a packet at all interfaces.
    pub(super) const PACKET_ID: u16 = 5;
}

/// What a block describes: the netns, the device's name, and the link type of its packets.
type Interface = (Option<u32>, Option<String>, u16);

/// Makes the file, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Pcapng {
    /// Numbers of interfaces, in the order of their blocks.
    interfaces: HashMap<Interface, u32>,
}

impl Pcapng {
    /// The beginning of the file: Section Header Block.
    pub(super) fn header() -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(0x1a2b_3c4d_u32.to_le_bytes());
        body.extend(1_u16.to_le_bytes());
        body.extend(0_u16.to_le_bytes());
        // How long the section is is not known.
        body.extend((-1_i64).to_le_bytes());
        push_option(&mut body, option::USER_APPLICATION, b"droptrace");
        push_option(&mut body, option::END, &[]);
        block(0x0a0d_0d0a, &body)
    }

    /// The blocks of a story.
    pub(super) fn story(&mut self, story: &Story) -> Vec<u8> {
        let mut bytes = Vec::new();
        let last = story.steps.len().saturating_sub(1);
        for (index, step) in story.steps.iter().enumerate() {
            let Some(seen) = &step.seen else { continue };
            let end = (index == last).then_some(story.end.note.as_str());
            let interface = self.interface(step, seen, &mut bytes);
            bytes.extend(packet(step, seen, interface, end));
        }
        bytes
    }

    /// The number of a step's interface, which is described where it is new.
    fn interface(&mut self, step: &Step, seen: &Seen, bytes: &mut Vec<u8>) -> u32 {
        let name = step.interface_out.as_ref().or(step.interface_in.as_ref());
        let name = name.or(seen.view.network.interface.as_ref()).cloned();
        let link = link_type(&seen.bytes);
        let mut key = (step.netns, name, link);
        if self.interfaces.len() >= MAX_INTERFACES && !self.interfaces.contains_key(&key) {
            key = (None, None, link);
        }
        if let Some(&number) = self.interfaces.get(&key) {
            return number;
        }
        bytes.extend(description(key.1.as_deref(), link, step));
        let number = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        self.interfaces.insert(key, number);
        number
    }
}

/// Of what is neither IPv4 nor IPv6 no bytes are written.
fn link_type(bytes: &[u8]) -> u16 {
    if bytes.first().map(|byte| byte >> 4) == Some(6) { LINKTYPE_IPV6 } else { LINKTYPE_IPV4 }
}

/// Interface Description Block.
fn description(name: Option<&str>, link: u16, step: &Step) -> Vec<u8> {
    let netns = step.netns.map(|netns| format!("netns {netns}"));
    let about: Vec<String> = [step.pod.clone(), netns].into_iter().flatten().collect();
    let mut body = Vec::new();
    body.extend(link.to_le_bytes());
    body.extend([0; 2]);
    // No limit of the bytes of a packet.
    body.extend(0_u32.to_le_bytes());
    push_option(&mut body, option::INTERFACE_NAME, text(name.unwrap_or("?")));
    push_option(&mut body, option::INTERFACE_DESCRIPTION, text(&about.join(", ")));
    push_option(&mut body, option::TIME_RESOLUTION, &[NANOSECONDS]);
    push_option(&mut body, option::END, &[]);
    block(1, &body)
}

/// Enhanced Packet Block.
fn packet(step: &Step, seen: &Seen, interface: u32, end: Option<&str>) -> Vec<u8> {
    // Nothing else can be in a packet of this link type.
    let is_ip = matches!(seen.bytes.first().map(|byte| byte >> 4), Some(4 | 6));
    let data = if is_ip { seen.bytes.as_slice() } else { &[] };
    let captured = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let time = u64::try_from(step.time.0).unwrap_or_default();
    let mut body = Vec::new();
    body.extend(interface.to_le_bytes());
    let [high, low] = [time >> 32, time & 0xffff_ffff].map(|half| u32::try_from(half).unwrap_or_default());
    for word in [high, low, captured, length(seen).max(captured)] {
        body.extend(word.to_le_bytes());
    }
    body.extend(data);
    pad(&mut body);
    let number = format!("step {}: ", step.step);
    push_option(&mut body, option::COMMENT, text(&(number + tree::line(step).trim())));
    if let Some(end) = end {
        push_option(&mut body, option::COMMENT, text(end));
    }
    if let Some(direction) = direction(step) {
        push_option(&mut body, option::FLAGS, &direction.to_le_bytes());
    }
    push_option(&mut body, option::PACKET_ID, &seen.packet.to_le_bytes());
    push_option(&mut body, option::END, &[]);
    block(6, &body)
}

/// Bits 0 and 1 of epb_flags: inbound or outbound, where a device is what the step is about.
fn direction(step: &Step) -> Option<u32> {
    let is_devices = matches!(step.kind, Kind::Device | Kind::Tc | Kind::Qdisc);
    is_devices.then_some(if step.interface_out.is_some() { 2 } else { 1 })
}

/// The packet's length by its IP header: skb->len has the link-layer header in it at some places.
fn length(seen: &Seen) -> u32 {
    let word = |at: usize| {
        let bytes: Option<[u8; 2]> = seen.bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from(u16::from_be_bytes(bytes))).filter(|&length| length > 0)
    };
    let by_header = match seen.bytes.first().map(|byte| byte >> 4) {
        Some(4) => word(2),
        Some(6) => word(4).map(|length| length + 40),
        _ => None,
    };
    by_header.or(seen.view.packet.length).unwrap_or_default()
}

/// A block with its type and, at both ends, its length.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
    [&kind.to_le_bytes()[..], &length, body, &length].concat()
}

fn push_option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or_default();
    body.extend(code.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(value.iter().take(usize::from(length)));
    pad(body);
}

/// To a multiple of 32 bits.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

/// As much of a text as is written.
fn text(text: &str) -> &[u8] {
    let end = text.floor_char_boundary(MAX_COMMENT);
    text.as_bytes().get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::fixtures;
    use crate::trace::story::Stories;
    use std::time::Duration;

    /// A block: its type, its fixed part with the packet, and its options. Read by the draft's words, not by the code above.
    struct Block {
        kind: u32,
        fixed: Vec<u8>,
        options: Vec<(u16, Vec<u8>)>,
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn parse(mut bytes: &[u8]) -> Vec<Block> {
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let (kind, length) = (u32_at(bytes, 0), usize::try_from(u32_at(bytes, 4)).unwrap());
            assert_eq!(length % 4, 0);
            assert_eq!(u32_at(bytes, length - 4), u32_at(bytes, 4));
            let body = &bytes[8..length - 4];
            let fixed = match kind {
                0x0a0d_0d0a => 16,
                1 => 8,
                6 => 20 + usize::try_from(u32_at(body, 12)).unwrap().next_multiple_of(4),
                other => panic!("block {other}"),
            };
            let (fixed, mut rest) = body.split_at(fixed);
            let mut options = Vec::new();
            loop {
                let code = u16::from_le_bytes([rest[0], rest[1]]);
                let length = usize::from(u16::from_le_bytes([rest[2], rest[3]]));
                if code == 0 {
                    assert_eq!((length, rest.len()), (0, 4));
                    break;
                }
                options.push((code, rest[4..4 + length].to_vec()));
                rest = &rest[4 + length.next_multiple_of(4)..];
            }
            blocks.push(Block { kind, fixed: fixed.to_vec(), options });
            bytes = &bytes[length..];
        }
        blocks
    }

    fn option(block: &Block, code: u16) -> String {
        let found: Vec<_> = block.options.iter().filter(|option| option.0 == code).collect();
        found.iter().map(|(_, value)| String::from_utf8(value.clone()).unwrap()).collect::<Vec<_>>().join("|")
    }

    fn told(seen: Vec<Seen>) -> Vec<Block> {
        let mut stories = Stories::default();
        seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
        let mut file = Pcapng::header();
        let mut writer = Pcapng::default();
        for story in stories.due(Duration::from_secs(9)) {
            file.extend(writer.story(&story));
        }
        parse(&file)
    }

    #[test]
    fn a_packet_for_each_step() {
        let seen = fixtures::ip_forward_off();
        let (first, last) = (seen[0].clone(), seen[4].clone());
        let blocks = told(seen);
        assert_eq!(blocks[0].fixed[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
        assert_eq!(option(&blocks[0], 4), "droptrace");
        assert_eq!(blocks[1].kind, 1);
        assert_eq!(blocks[1].fixed, [228, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            (option(&blocks[1], 2), option(&blocks[1], 3)),
            ("eth0".into(), "netns 4026531840".into())
        );
        assert_eq!(blocks[1].options[2], (9, vec![9]));
        let packets = &blocks[2..];
        assert_eq!(packets.len(), 9);
        assert!(packets.iter().all(|block| block.kind == 6 && u32_at(&block.fixed, 0) == 0));
        let time = |block: &Block| {
            i128::from(u64::from(u32_at(&block.fixed, 4)) << 32 | u64::from(u32_at(&block.fixed, 8)))
        };
        assert_eq!((time(&packets[0]), time(&packets[8])), (first.view.time.0, last.view.time.0));
        assert_eq!((u32_at(&packets[0].fixed, 12), u32_at(&packets[0].fixed, 16)), (28, 60));
        assert_eq!(packets[0].fixed[20..], first.bytes[..]);
        assert_eq!(packets[8].fixed[20..], last.bytes[..]);
        assert_eq!(option(&packets[0], 1), "step 1: device     received on eth0");
        assert!(option(&packets[3], 1).starts_with("step 4: raw:cali-PREROUTING:return:5  return"));
        assert!(option(&packets[8], 1).ends_with("|dropped: IP_INNOROUTES ip_error+0x1b2"));
        assert!(packets[0].options.contains(&(2, vec![1, 0, 0, 0])));
        assert!(packets.iter().all(|block| block.options.contains(&(5, vec![1, 0, 0, 0, 0, 0, 0, 0]))));
    }

    #[test]
    fn an_interface_for_each_name_in_each_netns() {
        let blocks = told(fixtures::dnat_to_pod());
        let interfaces: Vec<_> = blocks.iter().filter(|block| block.kind == 1).collect();
        let names: Vec<_> = interfaces.iter().map(|block| option(block, 2)).collect();
        assert_eq!(names, ["eth0", "veth1", "veth2", "eth0"]);
        assert_eq!(option(interfaces[3], 3), "shop/redis-0, netns 7");
        let numbers = |block: &Block| u32_at(&block.fixed, 0);
        let used: Vec<_> = blocks.iter().filter(|block| block.kind == 6).map(numbers).collect();
        assert_eq!((used[0], used[4], used[20]), (0, 1, 3));
        let outbound = |block: &&Block| block.options.contains(&(2, vec![2, 0, 0, 0]));
        assert_eq!(blocks.iter().filter(outbound).count(), 5);
    }

    #[test]
    fn what_is_no_ip_packet_is_empty_and_long_texts_are_cut() {
        let mut seen = fixtures::udp_read();
        for seen in &mut seen {
            seen.bytes = vec![0, 1, 8, 0, 6];
            if let crate::trace::model::Place::Read { process, .. } = &mut seen.place {
                *process = "\u{e9}".repeat(50_000);
            }
        }
        let blocks = told(seen);
        let packets: Vec<_> = blocks.iter().filter(|block| block.kind == 6).collect();
        assert!(packets.iter().all(|block| u32_at(&block.fixed, 12) == 0));
        assert!(option(packets[packets.len() - 1], 1).len() > MAX_COMMENT);
    }

    #[test]
    fn interfaces_are_bounded() {
        let mut packet = fixtures::Walker::new(1, "tcp", "10.0.0.1:1", "10.0.0.2:80");
        let mut writer = Pcapng::default();
        for number in 0..MAX_INTERFACES + 9 {
            let seen = packet.device(&format!("veth{number}")).at(crate::trace::model::Place::Received);
            let mut stories = Stories::default();
            stories.take(seen, Duration::ZERO);
            writer.story(&stories.finish().remove(0));
        }
        assert_eq!(writer.interfaces.len(), MAX_INTERFACES + 1);
    }
}
