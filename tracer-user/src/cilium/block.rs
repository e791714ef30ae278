//! What Cilium's program leaves in a packet that it drops: five words in the control block (`__sk_buff->cb`, the 20 bytes
//! of qdisc_skb_cb.data), written by bpf/lib/drop.h for its own next program, and still there when the kernel frees it.

/// What Cilium said of a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Security identity of the sender.
    pub source_identity: u32,
    /// That of the receiver; 0 if it was not known.
    pub destination_identity: u32,
    /// The drop code ([`super::codes`]).
    pub code: u8,
    /// The extended error; 0 if there is none, and before 1.13.
    pub extended: i8,
    /// The endpoint that the packet was to enter; 0 if it was to enter none, or its id was not known. Until 1.13 one
    /// path put there the endpoint that the packet was about to leave.
    pub endpoint: u32,
    /// Which source file dropped it, and in which line; `None` before 1.13.
    pub source: Option<Source>,
}

/// A place in Cilium's datapath. The line means nothing without the exact version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Its id ([`super::codes::file`]).
    pub file: u8,
    /// From 1.
    pub line: u16,
}

/// What is known of where a packet was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The kernel freed it for a tc or netkit program: it says so, or may have where it does not tell. Anywhere else the
    /// control block belongs to somebody else.
    pub is_of_a_program: bool,
    /// A program of Cilium's ([`super::programs::is_ciliums`]) is attached to that device and hook.
    pub has_ciliums: bool,
}

/// TC_ACT_SHOT (include/uapi/linux/pkt_cls.h): what the program returned.
const SHOT: u32 = 2;
/// Drop codes that are believed: those known, and room for those to come.
const CODES: std::ops::RangeInclusive<u8> = 130..=210;
const FILES: [std::ops::RangeInclusive<u8>; 2] = [1..=7, 101..=130];

/// The words of the 20 bytes, which the program wrote in the machine's byte order.
#[must_use]
pub fn words(bytes: [u8; 20]) -> [u32; 5] {
    let mut words = [0; 5];
    for (word, four) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_ne_bytes(*four);
    }
    words
}

/// What Cilium said of this drop; `None` if it said nothing, or not so that it can be told from chance.
#[must_use]
pub fn recognise(words: [u32; 5], place: Place) -> Option<Block> {
    if !place.is_of_a_program || !place.has_ciliums {
        return None;
    }
    let [source_identity, destination_identity, reason, endpoint, exit] = words;
    let block = |code, extended, source| {
        let code = u8::try_from(code).ok().filter(|code| CODES.contains(code))?;
        Some(Block { source_identity, destination_identity, code, extended, endpoint, source })
    };
    // Until 1.12 the code is a negative number, and the exit code alone in its word.
    if reason.cast_signed() < 0 {
        return if exit == SHOT { block(reason.wrapping_neg(), 0, None) } else { None };
    }
    let [code, extended, 0, 0] = reason.to_le_bytes() else { return None };
    let [exit_code, file, line @ ..] = exit.to_le_bytes();
    let source = Source { file, line: u16::from_le_bytes(line) };
    let is_source = FILES.iter().any(|files| files.contains(&file)) && source.line != 0;
    if u32::from(exit_code) != SHOT || !is_source {
        return None;
    }
    block(u32::from(code), extended.cast_signed(), Some(source))
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    const HERE: Place = Place { is_of_a_program: true, has_ciliums: true };

    /// As seen on 6.18 with Cilium's 1.18-dev (tcx).
    const INGRESS: [u32; 5] = [2, 0x3039, 0x85, 0xa4c, 0x0849_0202];
    const EGRESS: [u32; 5] = [0x3039, 2, 0x85, 0, 0x054c_0202];

    #[test]
    fn what_was_seen_is_read() {
        assert_eq!(
            recognise(INGRESS, HERE),
            Some(Block {
                source_identity: 2,
                destination_identity: 12345,
                code: 133,
                extended: 0,
                endpoint: 2636,
                source: Some(Source { file: 2, line: 2121 }),
            })
        );
        let egress = recognise(EGRESS, HERE).unwrap();
        assert_eq!((egress.source_identity, egress.destination_identity), (12345, 2));
        assert_eq!((egress.endpoint, egress.source), (0, Some(Source { file: 2, line: 1356 })));
        let auth = recognise([2, 0x3039, 0x1bd, 0xa4c, 0x0849_0202], HERE).unwrap();
        assert_eq!((auth.code, auth.extended), (189, 1));
        // 1.12
        let old = recognise([2, 0x3039, 0xffff_ff7b, 0xa4c, 2], HERE).unwrap();
        assert_eq!((old.code, old.extended, old.endpoint, old.source), (133, 0, 2636, None));
    }

    #[test]
    fn what_is_not_ciliums_is_not_taken_for_it() {
        let other = |words| assert_eq!(recognise(words, HERE), None, "{words:x?}");
        // Seen: notifications compiled out; another's program.
        other([0, 1, 0, 0, 0]);
        other([0; 5]);
        // One thing of each wrong: exit code, file, line, code, rest of the word.
        for (at, word) in [
            (4, 0x0849_0200),
            (4, 0x0849_0802),
            (4, 0x0849_6402),
            (4, 0x0849_8302),
            (4, 0x0000_0202),
            (2, 0x81),
            (2, 0xd3),
            (2, 0x1_0085),
        ] {
            let mut words = INGRESS;
            words[at] = word;
            other(words);
        }
        for (code, exit) in [(0xffff_ff7b, 0x0102), (0xffff_ff7b, 0), (0xffff_ff7f, 2), (0xffff_ff2d, 2)] {
            other([2, 0x3039, code, 0, exit]);
        }
        for place in
            [Place { is_of_a_program: false, ..HERE }, Place { has_ciliums: false, ..HERE }, Place::default()]
        {
            assert_eq!(recognise(INGRESS, place), None);
        }
    }

    /// The rule once more, as it was written down: in numbers, without the code above.
    fn rule(w: [u32; 5], place: Place) -> bool {
        let file = w[4] / 256 % 256;
        let new = w[4] % 256 == 2
            && ((1..8).contains(&file) || (101..131).contains(&file))
            && w[4] / 65536 != 0
            && (130..211).contains(&(w[2] % 256))
            && w[2] / 65536 == 0;
        let negative = i64::from(w[2]) - (1 << 32);
        let old = (-210..-129).contains(&negative) && w[4] == 2;
        place.is_of_a_program && place.has_ciliums && (new || old)
    }

    #[test]
    fn the_rule_decides_whatever_the_bytes_are() {
        let mut random = Random(7);
        let (mut taken, mut left) = (0, 0);
        for _ in 0..200_000 {
            let mut words: [u32; 5] = std::array::from_fn(|_| random.word());
            // Bytes at random are next to never right: often take some that are.
            let near = [INGRESS, [2, 3, 0xffff_ff7b, 4, 2], [0; 5], [u32::MAX; 5]];
            let near = near[random.word() as usize % near.len()];
            for (word, near) in words.iter_mut().zip(near) {
                let mask = [0, 0, 0xff, 0xff00, 0xff_0000, 0xffff_0000, u32::MAX][random.word() as usize % 7];
                *word = *word & mask | near & !mask;
            }
            let is = |bit| !random.clone().word().rotate_left(bit).is_multiple_of(8);
            let place = Place { is_of_a_program: is(3), has_ciliums: is(11) };
            let found = recognise(words, place);
            assert_eq!(found.is_some(), rule(words, place), "{words:x?} {place:?}");
            match found {
                Some(block) => {
                    taken += 1;
                    assert!((130..=210).contains(&block.code));
                    assert_eq!(block.source.is_none(), words[2] >> 31 == 1);
                    assert_eq!(block.endpoint, words[3]);
                }
                None => left += 1,
            }
        }
        // Neither side is empty.
        assert!(taken > 10_000 && left > 10_000, "{taken} {left}");
    }

    #[test]
    fn bytes_are_words_in_the_machines_order() {
        let mut bytes = [0; 20];
        bytes[8..12].copy_from_slice(&0x85_u32.to_ne_bytes());
        bytes[16..].copy_from_slice(&0x0849_0202_u32.to_ne_bytes());
        assert_eq!(words(bytes), [0, 0, 0x85, 0, 0x0849_0202]);
    }
}
