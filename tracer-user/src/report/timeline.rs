//! Drops over time as bars: which stretch of time is a bar, how high it is, what stands on the axes. In the units of an
//! SVG's view box, one for wide screens and paper, one for phones, so that text is as large as it should be on both.

use super::page::{Bar, Chart, Part, Tick};
use crate::event::model::Timestamp;
use crate::hist::aggregate::{Group, timestamp};
use crate::hist::view::{clock, length};
use crate::output::{words, zoned};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Lengths that people have names for, in seconds.
const LENGTHS: [i64; 22] = [
    1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400,
    172_800, 604_800,
];

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    /// Drops of each class, the lowest part of a bar first.
    pub classes: &'a [(&'static str, Group)],
    /// The width of their slots in microseconds.
    pub width: i64,
    /// From when, in microseconds since 1970.
    pub from: i64,
    /// Until when.
    pub to: i64,
    /// Where before ends and after begins.
    pub split: Option<i64>,
    /// Of the times.
    pub zone: &'a TimeZone,
}

/// How large to draw it.
#[derive(Clone, Copy, Debug)]
struct Size {
    name: &'static str,
    width: f64,
    height: f64,
    left: f64,
    /// Bars at most.
    bars: i64,
    /// Times at most.
    times: i64,
}

const WIDE: Size = Size { name: "wide", width: 1000.0, height: 240.0, left: 56.0, bars: 120, times: 9 };
const NARROW: Size = Size { name: "narrow", width: 360.0, height: 190.0, left: 44.0, bars: 48, times: 4 };
/// Room above the plot, for what stands at the split.
const TOP: f64 = 18.0;
/// Room below it, for the times.
const BELOW: f64 = 24.0;
/// Room at its right, for the last time's half.
const RIGHT: f64 = 24.0;

/// The same, wide and narrow.
#[must_use]
pub(super) fn charts(view: &View<'_>) -> Vec<Chart> {
    [WIDE, NARROW].into_iter().map(|size| chart(view, size)).collect()
}

fn chart(view: &View<'_>, size: Size) -> Chart {
    let each = each(view, size.bars);
    let first = view.from.div_euclid(each);
    let count = (i128::from(view.to.div_euclid(each)) - i128::from(first) + 1).max(1) as f64;
    let (left, right) = (size.left, size.width - RIGHT);
    let (top, bottom) = (TOP, size.height - BELOW);
    let at = |micros: i64| {
        let part = (micros as f64 - first as f64 * each as f64) / (count * each as f64);
        left + part.clamp(0.0, 1.0) * (right - left)
    };

    let mut sums = BTreeMap::<i64, Vec<u64>>::new();
    for (class, (_, group)) in view.classes.iter().enumerate() {
        for (&slot, counts) in &group.slots {
            let bar = slot.saturating_mul(view.width).div_euclid(each);
            let sums = sums.entry(bar).or_insert_with(|| vec![0; view.classes.len()]);
            if let Some(sum) = sums.get_mut(class) {
                *sum = sum.saturating_add(counts.drops);
            }
        }
    }
    let highest = sums.values().map(|sums| total(sums)).max().unwrap_or(0);
    let step = step(highest);
    let most = highest.div_ceil(step).max(1).saturating_mul(step);
    let high = |drops: u64| drops as f64 / most as f64 * (bottom - top);
    let full = (right - left) / count;
    let bars = sums.iter().map(|(&bar, sums)| {
        let mut above = 0_u64;
        let mut parts = Vec::new();
        for ((class, _), &drops) in view.classes.iter().zip(sums).filter(|(_, drops)| **drops > 0) {
            above = above.saturating_add(drops);
            // What is not nothing can be seen.
            let height = high(drops).max(1.0);
            parts.push(Part { class, y: round(bottom - high(above).max(1.0)), height: round(height) });
        }
        let x = left + ((bar as f64 - first as f64) * full).clamp(0.0, right - left);
        let gap = if full > 4.0 { 1.0 } else { 0.0 };
        Bar { x: round(x), width: round((full - gap).max(0.5)), title: title(view, bar, each, sums), parts }
    });
    let bars: Vec<Bar> = bars.collect();
    let lines = u64::try_from(i64::from(most > 0)).unwrap_or(0) * most / step;
    let numbers = (0..=lines).map(|line| {
        let drops = line.saturating_mul(step);
        Tick { at: round(bottom - high(drops)), text: short(drops) }
    });
    Chart {
        name: size.name,
        width: size.width,
        height: size.height,
        left,
        right,
        top,
        bottom,
        each: length(each),
        bars,
        times: times(view, size.times)
            .into_iter()
            .map(|(time, text)| Tick { at: round(at(time)), text })
            .collect(),
        numbers: numbers.collect(),
        split: view.split.map(|split| round(at(split))),
    }
}

fn total(sums: &[u64]) -> u64 {
    sums.iter().fold(0, |sum, &drops| sum.saturating_add(drops))
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// How much time a bar is: a length with a name that slots fit into, so that there are so many bars at most.
fn each(view: &View<'_>, most: i64) -> i64 {
    let time = (i128::from(view.to) - i128::from(view.from)).max(0);
    let fits = |each: i64| each % view.width == 0 && time / i128::from(each) < i128::from(most);
    let named = LENGTHS.iter().map(|seconds| seconds * SECOND).find(|&each| fits(each));
    named.unwrap_or_else(|| {
        // Days, if slots are no longer than that.
        let unit = if DAY % view.width == 0 { DAY } else { view.width };
        let units = time / i128::from(unit) / i128::from(most) + 1;
        i64::try_from(units).unwrap_or(i64::MAX).saturating_mul(unit)
    })
}

/// `05:51:30 to 05:51:40: 1,300 drops (policy 1,204, error 96)`
fn title(view: &View<'_>, bar: i64, each: i64, sums: &[u64]) -> String {
    let ends = [bar.saturating_mul(each), bar.saturating_add(1).saturating_mul(each)].map(timestamp);
    let is_long = each >= DAY;
    let [from, to] = ends.map(|end| clock(end, view.zone, is_long));
    let sum = total(sums);
    let parts: Vec<String> = view
        .classes
        .iter()
        .zip(sums)
        .filter(|(_, drops)| **drops > 0)
        .map(|((class, _), &drops)| format!("{class} {}", words::thousands(drops)))
        .collect();
    let (count, s) = (words::thousands(sum), words::plural(sum));
    format!("{from} to {to}: {count} drop{s} ({})", parts.join(", "))
}

/// The distance of the lines: 1, 2 or 5 times a power of ten, of which there are three to five.
fn step(highest: u64) -> u64 {
    let mut ten = 1_u64;
    loop {
        for factor in [1, 2, 5] {
            let step = ten.saturating_mul(factor);
            if highest.div_ceil(step) <= 5 {
                return step;
            }
        }
        ten = ten.saturating_mul(10);
    }
}

/// `500`, `20k`, `1.5M`
fn short(number: u64) -> String {
    for (unit, name) in [(1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")] {
        if number >= unit * 10
            || (number >= unit && unit > 1000)
            || (number >= unit && number.is_multiple_of(unit))
        {
            let tenths = number / (unit / 10);
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 {
                format!("{}{name}", words::thousands(whole))
            } else {
                format!("{whole}.{tenth}{name}")
            };
        }
    }
    number.to_string()
}

/// Times of the day, and dates, at round places.
fn times(view: &View<'_>, most: i64) -> Vec<(i64, String)> {
    let time = (i128::from(view.to) - i128::from(view.from)).max(0);
    let named = LENGTHS
        .iter()
        .map(|seconds| seconds * SECOND)
        .find(|step| time / i128::from(*step) < i128::from(most));
    let step = named.unwrap_or_else(|| {
        i64::try_from((time / i128::from(DAY) / i128::from(most) + 1) * i128::from(DAY)).unwrap_or(i64::MAX)
    });
    // Round by the zone's clock, as it is at the beginning.
    let offset = i64::from(zoned(timestamp(view.from), view.zone).offset().seconds()) * SECOND;
    let mut times = Vec::new();
    let from = i128::from(view.from) + i128::from(offset);
    let mut next = from.div_euclid(i128::from(step)) * i128::from(step) - i128::from(offset);
    if next < i128::from(view.from) {
        next += i128::from(step);
    }
    while next <= i128::from(view.to) && (times.len() as i64) <= most {
        let Ok(micros) = i64::try_from(next) else { break };
        times.push((micros, label(timestamp(micros), step, view.zone)));
        next += i128::from(step);
    }
    times
}

fn label(time: Timestamp, step: i64, zone: &TimeZone) -> String {
    let time = zoned(time, zone);
    let is_midnight = time.hour() == 0 && time.minute() == 0 && time.second() == 0;
    let form = match step {
        _ if is_midnight || step >= DAY => "%b %-d",
        step if step < 60 * SECOND => "%H:%M:%S",
        _ => "%H:%M",
    };
    time.strftime(form).to_string()
}

/// A group's course in so many columns, in parts of 100 of the highest; what is not nothing is at least 1.
#[must_use]
pub(super) fn course(group: &Group, width: i64, from: i64, to: i64, columns: usize) -> Vec<u8> {
    let mut values = vec![0_u64; columns];
    let time = (i128::from(to) - i128::from(from)).max(1);
    for (&slot, counts) in &group.slots {
        // The middle of the slot: its beginning may be before the first record.
        let middle = i128::from(slot) * i128::from(width) + i128::from(width / 2);
        let at = ((middle - i128::from(from)) * columns as i128 / time).clamp(0, columns as i128 - 1);
        if let Some(value) = usize::try_from(at).ok().and_then(|at| values.get_mut(at)) {
            *value = value.saturating_add(counts.drops);
        }
    }
    let most = u128::from(values.iter().copied().max().unwrap_or(0).max(1));
    let part = |value: u64| (u128::from(value) * 100 / most).max(u128::from(value > 0));
    values.into_iter().map(|value| u8::try_from(part(value)).unwrap_or(100)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hist::aggregate::Counts;

    fn group(slots: &[(i64, u64)]) -> Group {
        let mut group = Group::default();
        for &(slot, drops) in slots {
            group.counts.add(Counts { drops, segments: drops });
            group.slots.insert(slot, Counts { drops, segments: drops });
        }
        group
    }

    fn drawn(classes: &[(&'static str, Group)], width: i64, from: i64, to: i64) -> Chart {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        chart(&View { classes, width, from, to, split: Some(from), zone: &zone }, WIDE)
    }

    #[test]
    fn bars_are_as_high_as_their_drops_and_stand_where_they_were() {
        let classes = [("policy", group(&[(0, 300), (5, 100)])), ("error", group(&[(0, 100)]))];
        let chart = drawn(&classes, SECOND, 0, 9 * SECOND);
        assert_eq!((chart.each.as_str(), chart.bars.len()), ("1 s", 2));
        let plot = chart.bottom - chart.top;
        let [first, second] = chart.bars.as_slice() else { panic!("{:?}", chart.bars) };
        assert_eq!(first.title, "01:00:00 to 01:00:01: 400 drops (policy 300, error 100)");
        let [policy, error] = first.parts.as_slice() else { panic!("{first:?}") };
        // 400 is on a line, so the highest bar is as high as the plot.
        assert_eq!((error.y, policy.y + policy.height), (chart.top, chart.bottom));
        assert!((policy.height - plot * 0.75).abs() < 0.1 && (error.height - plot * 0.25).abs() < 0.1);
        assert!((second.x - (chart.left + (chart.right - chart.left) / 2.0)).abs() < 0.1);
        let numbers: Vec<_> = chart.numbers.iter().map(|tick| tick.text.as_str()).collect();
        assert_eq!(numbers, ["0", "100", "200", "300", "400"]);
        let times: Vec<_> = chart.times.iter().map(|tick| tick.text.as_str()).collect();
        assert_eq!(times, ["01:00:00", "01:00:02", "01:00:04", "01:00:06", "01:00:08"]);
        assert_eq!(chart.split, Some(chart.left));
    }

    #[test]
    fn any_stretch_of_time_has_a_bounded_number_of_bars_that_keep_every_drop() {
        for (width, to) in
            [(SECOND, 100 * SECOND), (4 * SECOND, 3 * DAY), (64 * SECOND, 40 * DAY), (1 << 40, i64::MAX)]
        {
            let slots: Vec<_> = (0..500)
                .map(|slot| (i64::try_from(i128::from(slot) * i128::from(to / width) / 500).unwrap(), 3))
                .collect();
            let slots: BTreeMap<i64, u64> = slots.into_iter().collect();
            let all: u64 = slots.values().sum();
            let classes = [("policy", group(&slots.into_iter().collect::<Vec<_>>()))];
            let chart = drawn(&classes, width, 0, to);
            assert!(chart.bars.len() <= 121, "{} bars of {}", chart.bars.len(), chart.each);
            assert!(chart.times.len() <= 10 && !chart.times.is_empty());
            let told = chart.bars.iter().map(|bar| {
                let count = bar.title.split(": ").nth(1).and_then(|text| text.split(' ').next()).unwrap();
                count.replace(',', "").parse::<u64>().unwrap()
            });
            assert_eq!(told.sum::<u64>(), all);
        }
    }

    #[test]
    fn extremes_do_no_harm() {
        let classes = [("policy", group(&[(i64::MIN / SECOND, u64::MAX), (i64::MAX / SECOND, u64::MAX)]))];
        let chart = drawn(&classes, SECOND, i64::MIN, i64::MAX);
        assert!(chart.bars.iter().all(|bar| bar.x >= chart.left && bar.x <= chart.right));
        assert_eq!(drawn(&[], SECOND, 0, 0).bars, []);
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0, "0"),
            (500, "500"),
            (1000, "1k"),
            (1500, "1500"),
            (20_000, "20k"),
            (1_500_000, "1.5M"),
            (3_000_000_000, "3G"),
        ] {
            assert_eq!(short(number), text);
        }
        assert_eq!([step(0), step(5), step(6), step(1521), step(u64::MAX)].map(|step| step > 0), [true; 5]);
        assert_eq!([step(5), step(6), step(1521)], [1, 2, 500]);
    }

    #[test]
    fn a_course_has_its_highest_at_100() {
        let columns = course(&group(&[(0, 5), (1, 50), (9, 1)]), SECOND, 0, 10 * SECOND, 10);
        assert_eq!(columns, [10, 100, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(course(&Group::default(), SECOND, 0, 0, 3), [0; 3]);
    }
}
