//! Where time is divided in two, if nobody says where: where the rate of drops rose most.

use std::collections::BTreeMap;

/// From less than this times as many drops a second it is not a rise.
const RISE: f64 = 1.2;

/// The slot from which on there are more drops a second: the division that explains most of how much slots differ (the
/// variance between both parts; Otsu's method), among those after which the rate is higher. `None` where it is nowhere
/// much higher. Slots are from `first` to before `end`; those without drops may be left out.
#[must_use]
pub(super) fn rise(drops: &BTreeMap<i64, u64>, first: i64, end: i64) -> Option<i64> {
    let total: f64 = drops.range(first..end).map(|(_, &count)| count as f64).sum();
    let (mut before, mut best) = (0.0, None);
    for (&slot, &count) in drops.range(first..end) {
        // The best division is beside a slot with drops: between two of them the score has no maximum.
        for (from, drops_before) in [(slot, before), (slot.saturating_add(1), before + count as f64)] {
            let [left, right] = [from.saturating_sub(first) as f64, end.saturating_sub(from) as f64];
            if left < 1.0 || right < 1.0 {
                continue;
            }
            let rates = [drops_before / left, (total - drops_before) / right];
            let score = left * right * (rates[1] - rates[0]).powi(2);
            if rates[1] > rates[0] * RISE && best.is_none_or(|(most, _)| score > most) {
                best = Some((score, from));
            }
        }
        before += count as f64;
    }
    best.map(|(_, from)| from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: &[u64]) -> Option<i64> {
        let slots = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let slots = slots.map(|(slot, &count)| (slot as i64, count)).collect();
        rise(&slots, 0, counts.len() as i64)
    }

    #[test]
    fn the_rise_is_found() {
        assert_eq!(of(&[1, 1, 1, 1, 9, 9, 9, 9]), Some(4));
        assert_eq!(of(&[0, 0, 0, 5, 5, 0]), Some(3));
        // One outburst at the end is one, a little noise is not.
        assert_eq!(of(&[1, 1, 1, 1, 1, 100]), Some(5));
        assert_eq!(of(&[10, 11, 10, 11, 10, 11]), None);
    }

    #[test]
    fn what_only_falls_or_is_too_short_has_no_rise() {
        assert_eq!(of(&[9, 9, 1, 1]), None);
        assert_eq!(of(&[9]), None);
        assert_eq!(of(&[]), None);
        let far = [(i64::MIN, 1), (i64::MAX - 1, u64::MAX)].into();
        assert!(rise(&far, i64::MIN, i64::MAX).is_some());
    }
}
