//! A packet's mark of which some bits are known.

use super::truth::Truth;

/// skb->mark, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Zero where it is not known.
    value: u32,
    /// The bits that are known.
    known: u32,
}

/// What a target does to the mark: `(mark & keep) ^ flip`, and then the bits `lose` are anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) keep: u32,
    pub(super) flip: u32,
    pub(super) lose: u32,
}

impl Write {
    pub(super) const NOTHING: Self = Self { keep: u32::MAX, flip: 0, lose: 0 };
    pub(super) const ANYTHING: Self = Self::lose(u32::MAX);

    /// As xt_mark sets it (net/netfilter/xt_mark.c).
    pub(super) const fn xmark(value: u32, mask: u32) -> Self {
        Self { keep: !mask, flip: value, lose: 0 }
    }

    pub(super) const fn lose(bits: u32) -> Self {
        Self { keep: u32::MAX, flip: 0, lose: bits }
    }

    /// The bits that may become others.
    pub(super) fn changes(self) -> u32 {
        !self.keep | self.flip | self.lose
    }
}

impl Mark {
    /// The bits `known` of a mark.
    pub(super) fn new(mark: u32, known: u32) -> Self {
        Self { value: mark & known, known }
    }

    /// The mark, if all of it is known.
    pub(super) fn whole(self) -> Option<u32> {
        (self.known == u32::MAX).then_some(self.value)
    }

    /// After a write.
    pub(super) fn written(self, write: Write) -> Self {
        let known = (self.known | !write.keep) & !write.lose;
        Self::new((self.value & write.keep) ^ write.flip, known)
    }

    /// What is known where it is one or the other.
    pub(super) fn or(self, other: Self) -> Self {
        let known = self.known & other.known & !(self.value ^ other.value);
        Self::new(self.value, known)
    }

    /// Whether `mark & mask == value`.
    pub(super) fn is(self, value: u32, mask: u32) -> Truth {
        // A bit outside of the mask is zero after the `&`.
        let known = self.known | !mask;
        if ((self.value & mask) ^ value) & known != 0 {
            Truth::No
        } else if known == u32::MAX {
            Truth::Yes
        } else {
            Truth::Unknown
        }
    }

    /// The same mark, where `mark & mask == value` is known to be true or false.
    pub(super) fn given(self, value: u32, mask: u32, is: bool) -> Self {
        let unknown = mask & !self.known;
        if is {
            return Self::new(self.value | (value & unknown), self.known | mask);
        }
        // Of the bits that are not known, a single one must be the other way; of more it isn't known which.
        if unknown.is_power_of_two() && (self.value ^ value) & mask & self.known == 0 {
            return Self::new(self.value | (!value & unknown), self.known | unknown);
        }
        self
    }

    /// Whether both may be the same mark.
    pub(super) fn may_be(self, other: Self) -> bool {
        (self.value ^ other.value) & self.known & other.known == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_known_by_themselves() {
        let mark = Mark::new(0xff05, 0x0f);
        assert_eq!(mark, Mark { value: 5, known: 0x0f });
        assert_eq!(mark.is(5, 0x0f), Truth::Yes);
        assert_eq!(mark.is(4, 0x0f), Truth::No);
        assert_eq!(mark.is(5, 0xff), Truth::Unknown);
        assert_eq!(mark.is(0x14, 0xff), Truth::No);
        // A value with a bit outside of its mask is never matched.
        assert_eq!(mark.is(0x15, 0x0f), Truth::No);
        assert_eq!(mark.is(0, 0), Truth::Yes);
    }

    #[test]
    fn a_write_makes_bits_known_or_unknown() {
        let mark = Mark::new(5, 0x0f);
        assert_eq!(mark.written(Write::xmark(0x30, 0xf0)), Mark::new(0x35, 0xff));
        // An exclusive or of a bit that is not known leaves it unknown; of one that is, known.
        assert_eq!(mark.written(Write::xmark(0x14, 0)), Mark::new(1, 0x0f));
        assert_eq!(mark.written(Write::lose(1)), Mark::new(4, 0x0e));
        assert_eq!(mark.written(Write::ANYTHING), Mark::default());
        assert_eq!(mark.written(Write::NOTHING), mark);
        assert_eq!(Write::xmark(0x100, 0xf0).changes(), 0x1f0);
    }

    #[test]
    fn what_a_test_said_makes_bits_known() {
        let mark = Mark::new(1, 1);
        assert_eq!(mark.given(5, 0x0f, true), Mark::new(5, 0x0f));
        assert_eq!(mark.given(3, 3, false), Mark::new(1, 3));
        assert_eq!(mark.given(1, 3, false), Mark::new(3, 3));
        // It was another bit, or may have been.
        assert_eq!(mark.given(2, 3, false), mark);
        assert_eq!(mark.given(7, 7, false), mark);
    }

    #[test]
    fn two_ways_leave_what_they_have_in_common() {
        let both = Mark::new(5, 0xff).or(Mark::new(4, 0x0f));
        assert_eq!(both, Mark::new(4, 0x0e));
        assert!(both.may_be(Mark::new(0xf5, 0xff)) && !both.may_be(Mark::new(2, 2)));
    }
}
