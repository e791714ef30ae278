//! Gathers what the page needs while records come, in bounded memory, and makes the page of it.

use super::changes::{self, Choice};
use super::facts::{Facts, OfCause, OfPlace, OfPolicies, OfRule};
use super::page::{
    Answer, Figure, Legend, Most, Note, Page, Record as Line, Records, Section, Span, Text, Unseen,
};
use super::recorded::Recordings;
use super::sample::{Room, Sample};
use super::tables::{CLASSES, causes, classes, table};
use super::timeline::{View, charts};
use crate::event::model::{Class, Drop, LostPlace, Record, Timestamp};
use crate::hist::Key;
use crate::hist::aggregate::{Aggregator, Axis, micros, timestamp};
use crate::hist::view::{clock, length};
use crate::output::{Now, Summary, summary, summary::Totals, words, zoned};
use crate::recording::{About, replay::Part};
use jiff::tz::TimeZone;
use std::time::Duration;

/// Groups with a row in a table that stands alone.
const TOP: usize = 15;
/// In one that stands beside others.
const BESIDE: usize = 8;
/// How wide buckets are to begin with: what is only counted is known by the second.
const SECOND: i64 = 1_000_000;
/// Counts of an aggregator over time: 18 hours of four classes by the second.
const CELLS: usize = 1 << 18;

/// What the page is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its title; `None`: one that says what it is about.
    pub title: Option<String>,
    /// What is compared.
    pub choice: Choice,
    /// Records that are shown one by one, at most.
    pub rows: usize,
    /// Count routine drops, too.
    pub all: bool,
    /// Of the times.
    pub zone: TimeZone,
    /// What of the recordings is shown.
    pub part: Part,
}

/// Tables by one key: the key, its name on the page, and what drops without a label are called.
type Kind = (Key, &'static str, &'static str);

const WHO: [Kind; 6] = [
    (Key::Pod, "Pod", "no pod known"),
    (Key::Workload, "Workload", "no workload known"),
    (Key::Service, "Service", "no service known"),
    (Key::Namespace, "Namespace", "no namespace known"),
    (Key::Pair, "From and to", "no address known"),
    (Key::Port, "Port that was dialled", "no port known"),
];
const WHERE: [Kind; 4] = [
    (Key::Node, "Node", "no node known"),
    (Key::Interface, "Interface", "only counted: no interface known"),
    (Key::Hook, "Hook", "at no hook"),
    (Key::Protocol, "Protocol", "no protocol known"),
];
const RULE: Kind = (Key::Rule, "Rule", "not by a rule that is known");
const POLICY: Kind = (Key::Policy, "Policies on the pod", "not by a policy that is known");
const PROGRAM: Kind = (Key::Program, "Program", "not by a program that is known");

/// What grows while records come.
#[derive(Debug)]
pub struct Gatherer {
    settings: Settings,
    totals: Totals,
    /// By class, cause, reason and location, over time.
    course: Aggregator,
    /// What changed, by place and by pod; comes with the first record, which windows may count from.
    compared: Option<[Aggregator; 2]>,
    /// By place, over all time: windows may leave some of it out.
    place: Aggregator,
    who: Vec<Aggregator>,
    location: Vec<Aggregator>,
    rule: Aggregator,
    policy: Aggregator,
    program: Aggregator,
    rules: Facts<OfRule>,
    reasons: Facts<OfCause>,
    policies: Facts<OfPolicies>,
    places: Facts<OfPlace>,
    /// Worded only once it is known which are shown.
    sample: Sample<Drop>,
    recordings: Recordings,
    span: Option<(Timestamp, Timestamp)>,
}

impl Gatherer {
    /// Without a record.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        // One bucket for all time: these are not shown over time.
        let by = |kind: &Kind| Aggregator::new(vec![kind.0], Axis::Buckets(i64::MAX));
        let course = vec![Key::Class, Key::Cause, Key::Reason, Key::Location];
        Self {
            totals: Totals::default(),
            course: Aggregator::new(course, Axis::Buckets(SECOND)).with_cells(CELLS),
            compared: None,
            place: Aggregator::new(vec![Key::Place], Axis::Buckets(i64::MAX)),
            who: WHO.iter().map(by).collect(),
            location: WHERE.iter().map(by).collect(),
            rule: by(&RULE),
            policy: by(&POLICY),
            program: by(&PROGRAM),
            rules: Facts::new(),
            reasons: Facts::new(),
            policies: Facts::new(),
            places: Facts::new(),
            sample: Sample::new(Room::of(settings.rows)),
            recordings: Recordings::default(),
            span: None,
            settings,
        }
    }

    /// Takes what a recording says of itself.
    pub fn recording(&mut self, about: &About) {
        self.recordings.add(about);
    }

    /// Takes a line about what could not be read.
    pub fn unread(&mut self, line: &str) {
        self.recordings.unread(line);
    }

    /// True if there was nothing to read.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        self.recordings.count() == 0
    }

    /// Takes a record.
    pub fn record(&mut self, record: &Record, now: Now) {
        match record {
            Record::Drop(drop) => {
                self.extend(drop.time, drop.time_last);
                if drop.drop.class == Class::Routine && !self.settings.all {
                    self.totals.hidden(drop);
                } else {
                    self.count(drop, now);
                }
            }
            Record::Lost(lost) => {
                self.extend(lost.time, lost.time);
                self.totals.lost(lost);
            }
            Record::Stalled(stalled) => {
                self.extend(stalled.time, stalled.time);
                let time = clock(stalled.time, &self.settings.zone, true);
                self.recordings.silent(&format!("{time}  {}", words::stalled(stalled)));
            }
        }
    }

    fn extend(&mut self, first: Timestamp, last: Timestamp) {
        let (from, to) = self.span.unwrap_or((first, last));
        self.span = Some((from.min(first), to.max(last)));
    }

    fn count(&mut self, drop: &Drop, now: Now) {
        self.totals.counted(drop);
        self.course.add(drop);
        let choice = self.settings.choice;
        let compared = self.compared.get_or_insert_with(|| {
            let elapsed = i128::try_from(now.elapsed.as_nanos()).unwrap_or(0);
            let axis = choice.axis(Timestamp(now.wall.0.saturating_sub(elapsed)), SECOND);
            [Key::Place, Key::Pod].map(|key| Aggregator::new(vec![key], axis).with_cells(CELLS))
        });
        let singles = [&mut self.place, &mut self.rule, &mut self.policy, &mut self.program];
        let all = compared.iter_mut().chain(singles).chain(&mut self.who).chain(&mut self.location);
        all.for_each(|aggregator| aggregator.add(drop));
        self.learn(drop);
        self.sample.add(drop.count, drop.clone());
    }

    /// What is known of the groups that the drop is in.
    fn learn(&mut self, drop: &Drop) {
        let rule = Key::Rule.label(drop);
        if let (Some(name), Some(netfilter)) = (&rule, &drop.drop.netfilter)
            && let Some(known) = self.rules.about(name.clone())
        {
            known.add(netfilter, drop.count);
        }
        let cause = Key::Cause.label(drop);
        if let (Some(name), Some(cause)) = (&cause, &drop.drop.cause)
            && let Some(known) = self.reasons.about(name.clone())
        {
            known.add(cause);
        }
        if let Some(known) = Key::Policy.label(drop).and_then(|name| self.policies.about(name)) {
            known.add(drop);
        }
        if (rule.is_some() || cause.is_some())
            && let Some(known) = Key::Place.label(drop).and_then(|name| self.places.about(name))
        {
            known.rule = known.rule.take().or(rule);
            known.cause = known.cause.take().or(cause);
        }
    }

    /// Totals, as they are said at the end.
    #[must_use]
    pub fn summary(&self, duration: Duration) -> Summary {
        self.totals.summary(duration)
    }

    /// The page.
    #[must_use]
    pub fn page(&self) -> Page {
        let Settings { zone, choice, .. } = &self.settings;
        let summary = self.totals.summary(Duration::ZERO);
        let (from, to) = self.ends().unwrap_or_default();
        let is_same_day = zoned(timestamp(from), zone).date() == zoned(timestamp(to), zone).date();
        let classes = classes(&self.course);
        let width = match self.course.axis() {
            Axis::Buckets(width) => width,
            Axis::Windows(_) => SECOND,
        };
        let compared = self.compared.as_ref();
        let others: Vec<&Aggregator> = compared.into_iter().flatten().collect();
        let division = matches!(choice, Choice::Rise)
            .then(|| changes::divide(&self.course, &others, (from, to)))
            .flatten();
        let split = match choice {
            Choice::Rise => division.map(|division| division.at),
            Choice::At(time) => Some(micros(*time)).filter(|at| (from..=to).contains(at)),
            Choice::Windows(_) => None,
        };
        let view = View { classes: &classes, width, from, to, split, zone };
        let chosen = changes::chosen(*choice, division, zone, !is_same_day);
        let compared = compared.and_then(|[place, pod]| {
            let split = |aggregator: &Aggregator| division.and_then(|division| aggregator.split(division.at));
            let split = [split(place), split(pod)];
            let [place, pod] = [split[0].as_ref().unwrap_or(place), split[1].as_ref().unwrap_or(pod)];
            let tables = [("Dropped by", "unknown", place), ("Pod", "no pod known", pod)];
            changes::comparison(&tables, &chosen, &view, !is_same_day)
        });
        let has_drops = summary.drops > 0;
        Page {
            title: Text::of(&self.title(from, has_drops)),
            version: env!("CARGO_PKG_VERSION"),
            answer: self.answer(&summary),
            figures: self.figures(&summary, width, !is_same_day),
            warnings: self.warnings(&summary),
            drops: summary.drops,
            span: self.ends().map(|_| Span {
                from: clock(timestamp(from), zone, true),
                to: clock(timestamp(to), zone, !is_same_day),
                zone: zone_name(zone, timestamp(from)),
                from_utc: timestamp(from).to_string(),
                to_utc: timestamp(to).to_string(),
            }),
            charts: if has_drops { charts(&view) } else { Vec::new() },
            legend: legend(&classes),
            comparison: compared,
            sections: if has_drops { self.sections((from, to)) } else { Vec::new() },
            records: self.records(&summary),
            recorded: self.recorded(),
            unseen: self.unseen(&summary),
        }
    }

    /// From when until when was recorded, in microseconds: from the recording's own beginning, if it is shown from there.
    fn ends(&self) -> Option<(i64, i64)> {
        let (first, last) = self.span?;
        let started = self.recordings.started().filter(|_| self.settings.part.last.is_none());
        let since = self.settings.part.since.unwrap_or(Timestamp(i128::MIN));
        let begin = started.map_or(first, |started| started.max(since).min(first));
        Some((micros(begin), micros(last)))
    }

    fn nodes(&self) -> String {
        let ranked = self.location.first().map(|nodes| nodes.ranked(None));
        let named: Vec<&str> = ranked
            .iter()
            .flat_map(|ranked| &ranked.rows)
            .filter_map(|(labels, _)| labels.first().and_then(Option::as_deref))
            .collect();
        match named.as_slice() {
            [] => String::new(),
            [node] => format!(" on node {node}"),
            several => format!(" on {} nodes", words::thousands(several.len() as u64)),
        }
    }

    fn title(&self, from: i64, has_drops: bool) -> String {
        let date = clock(timestamp(from), &self.settings.zone, true);
        let date = if has_drops { format!(", {}", date.get(..10).unwrap_or(&date)) } else { String::new() };
        self.settings.title.clone().unwrap_or_else(|| format!("Packet drops{}{date}", self.nodes()))
    }

    fn answer(&self, summary: &Summary) -> Answer {
        let during = self.ends().map(|(from, to)| format!(" in {}", duration(to.saturating_sub(from))));
        let during = during.unwrap_or_default();
        let drops = summary.drops;
        let what = match drops {
            0 => format!("No drops{during}"),
            _ => format!("{} drop{}{during}{}", words::thousands(drops), words::plural(drops), self.nodes()),
        };
        let most = self.most(drops);
        Answer { what: Text::of(&what), most }
    }

    /// What dropped most.
    fn most(&self, drops: u64) -> Option<Most> {
        let ranked = self.place.ranked(Some(1));
        let (labels, group) = ranked.rows.first()?;
        let place = labels.first()?.as_deref()?;
        let known = self.places.get(place);
        let rule = known.and_then(|known| self.rules.get(known.rule.as_ref()?));
        let (rule, owner) = rule.map(OfRule::first).unwrap_or_default();
        let cause = known.and_then(|known| self.reasons.get(known.cause.as_ref()?)?.first());
        let share = summary::share(group.counts.drops, drops);
        Some(Most { share, place: Text::of(place), rule, owner, cause })
    }

    fn figures(&self, summary: &Summary, width: i64, date: bool) -> Vec<Figure> {
        let segments = (summary.segments != summary.drops)
            .then(|| format!("{} segments", words::thousands(summary.segments)));
        let figure = |name, value: String, note: String, bad| Figure { name, value, note, bad };
        let mut figures =
            vec![figure("drops", words::thousands(summary.drops), segments.unwrap_or_default(), false)];
        if let Some((from, to)) = self.ends().filter(|(from, to)| from < to && summary.drops > 0) {
            let per_second = summary.drops as f64 * 1e6 / to.saturating_sub(from) as f64;
            let value = format!("{}/s", changes::rate(Some(per_second)));
            figures.push(figure("on average", value, String::new(), false));
        }
        let peak = self.course.total().slots.iter();
        if let Some((&slot, counts)) =
            peak.max_by_key(|(slot, counts)| (counts.drops, std::cmp::Reverse(**slot)))
        {
            let at = clock(timestamp(slot.saturating_mul(width)), &self.settings.zone, date);
            let value = words::thousands(counts.drops);
            figures.push(figure("at most", value, format!("in {}, at {at}", length(width)), false));
        }
        let hidden = summary.hidden_total();
        let note = if hidden > 0 { "--all counts them" } else { "" };
        figures.push(figure("routine, hidden", words::thousands(hidden), note.to_owned(), false));
        let lost = summary.lost_total();
        let note = if lost > 0 { "see what was lost" } else { "nothing was lost" };
        figures.push(figure("lost", words::thousands(lost), note.to_owned(), lost > 0));
        let recordings = self.recordings.count() as u64;
        let name = if recordings == 1 { "recording" } else { "recordings" };
        let damaged = self.recordings.damaged();
        let note = if damaged > 0 { "not all could be read" } else { "" };
        figures.push(figure(name, words::thousands(recordings), note.to_owned(), damaged > 0));
        figures
    }

    fn warnings(&self, summary: &Summary) -> Vec<Text> {
        let uncounted: u64 =
            summary.lost.iter().filter(|(place, _)| place.loses_counts()).map(|(_, count)| *count).sum();
        let damaged = self.recordings.damaged();
        let lines = [
            (uncounted > 0).then(|| {
                let count = words::thousands(uncounted);
                format!("{count} more drops happened that are in no count here: see what was lost.")
            }),
            (damaged > 0).then(|| {
                "Not all of the recordings could be read, so there may have been more drops: see what was lost."
                    .to_owned()
            }),
        ];
        lines.into_iter().flatten().map(|line| Text::of(&line)).collect()
    }

    fn sections(&self, span: (i64, i64)) -> Vec<Section> {
        let none = |_: &str| Vec::new();
        let about_cause = |id: &str| self.reasons.get(id).map(OfCause::notes).unwrap_or_default();
        let about_rule = |name: &str| self.rules.get(name).map(OfRule::notes).unwrap_or_default();
        let about_policy = |name: &str| self.policies.get(name).map(OfPolicies::notes).unwrap_or_default();
        let of = |kind: &Kind, aggregator: &Aggregator, top, notes: &dyn Fn(&str) -> Vec<Note>| {
            table(aggregator, kind.1, kind.2, top, notes)
        };
        let beside = |kinds: &[Kind], aggregators: &[Aggregator]| {
            let both = kinds.iter().zip(aggregators);
            both.filter_map(|(kind, aggregator)| of(kind, aggregator, BESIDE, &none)).collect()
        };
        let section = |id, title, lead, tables| Section { id, title, lead, tables, beside: false };
        let sections = vec![
            section(
                "causes",
                "Causes",
                "Why packets were dropped and what to do; where no cause is known, the kernel's reason and the place.",
                vec![causes(&self.course, span, TOP, about_cause)],
            ),
            section(
                "rules",
                "Rules",
                "The netfilter rule, or the chain whose policy dropped. “Exact” means that the kernel itself told.",
                of(&RULE, &self.rule, TOP, &about_rule).into_iter().collect(),
            ),
            section(
                "policies",
                "Policies",
                "Network policies that select the pod, as Cilium tells them, and why they did not let packets through.",
                of(&POLICY, &self.policy, TOP, &about_policy).into_iter().collect(),
            ),
            section(
                "programs",
                "Programs",
                "BPF programs and tc filters that dropped.",
                of(&PROGRAM, &self.program, TOP, &none).into_iter().collect(),
            ),
            Section {
                beside: true,
                ..section(
                    "who",
                    "Who was hit",
                    "A drop counts for the pod, workload and namespace that it was for, else for those that it came from.",
                    beside(&WHO, &self.who),
                )
            },
            Section { beside: true, ..section("where", "Where", "", beside(&WHERE, &self.location)) },
        ];
        sections.into_iter().filter(|section| !section.tables.is_empty()).collect()
    }

    fn records(&self, summary: &Summary) -> Records {
        let rows: Vec<Line> =
            self.sample.kept().into_iter().map(|drop| line(drop, &self.settings.zone)).collect();
        let count = self.sample.seen();
        let drops = rows.iter().fold(0_u64, |sum, row| sum.saturating_add(row.drops));
        let others = summary.drops.saturating_sub(drops);
        let Room { first, last, most } = Room::of(self.settings.rows);
        let is_chosen = (rows.len() as u64) < count;
        let chosen = is_chosen.then(|| {
            let [first, last, most] = [first, last, most].map(|count| words::thousands(count as u64));
            let more = words::thousands(count - rows.len() as u64);
            format!(
                "the first {first}, the last {last}, and the {most} of the others with most drops; {more} more are in \
                 the recordings (droptrace replay)"
            )
        });
        let (text, others_text) = (words::thousands(count), words::thousands(others));
        let shown = words::thousands(rows.len() as u64);
        Records { rows, count, text, shown, chosen, drops, others, others_text }
    }

    fn recorded(&self) -> super::page::Recorded {
        let Settings { part, zone, all, .. } = &self.settings;
        let time = |time: &Timestamp| clock(*time, zone, true);
        let notes = [
            ("filter", (!part.filter.is_empty()).then(|| part.filter.to_string()), true),
            ("since", part.since.as_ref().map(time), false),
            ("until", part.until.as_ref().map(time), false),
            ("first", part.first.map(|count| format!("{} records", words::thousands(count))), false),
            ("last", part.last.map(|count| format!("{} records", words::thousands(count))), false),
            ("routine drops", all.then(|| "counted".to_owned()), false),
        ];
        let part = notes
            .into_iter()
            .filter_map(|(name, text, code)| Some(Note { name, text: Text::of(&text?), code }));
        super::page::Recorded { part: part.collect(), ..self.recordings.page(zone) }
    }

    fn unseen(&self, summary: &Summary) -> Unseen {
        let lost = summary.lost.iter().map(|(place, count)| Figure {
            name: summary::place_name(*place),
            value: words::thousands(*count),
            note: meaning(*place).to_owned(),
            bad: place.loses_counts(),
        });
        let mut hidden: Vec<_> = summary.hidden.iter().collect();
        hidden.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let named = hidden.iter().take(TOP).map(|(id, count)| (Text::of(id), words::thousands(**count)));
        let rest: u64 = hidden.iter().skip(TOP).map(|(_, count)| **count).sum();
        let rest = (rest > 0).then(|| (Text::of("others"), words::thousands(rest)));
        let (damage, more_damage) = self.recordings.damage();
        Unseen {
            lost: lost.collect(),
            hidden: named.chain(rest).collect(),
            hidden_total: words::thousands(summary.hidden_total()),
            damage: damage.to_vec(),
            more_damage,
        }
    }
}

fn meaning(place: LostPlace) -> &'static str {
    match place {
        LostPlace::Ring => {
            "events that found no room in the ring buffer: their detail is lost, their drops are counted"
        }
        LostPlace::Flow => {
            "drops that found no room for their flow: counted by reason, location and netns only"
        }
        LostPlace::Overflow => "drops that found no room at all: counted, but nothing else is known of them",
        LostPlace::Recursion => "drops that the kernel did not show to droptrace: in no count here",
        LostPlace::Recording => "drops that were not recorded, for the disk was too slow: in no count here",
    }
}

fn legend(classes: &[(&'static str, crate::hist::aggregate::Group)]) -> Vec<Legend> {
    let meaning = |class: &str| CLASSES.iter().find(|(name, _)| *name == class).map(|(_, meaning)| *meaning);
    let legend = classes.iter().map(|(class, group)| Legend {
        class,
        meaning: meaning(class).unwrap_or("of more kinds than are told apart"),
        drops: words::thousands(group.counts.drops),
    });
    legend.collect()
}

/// A record as it is shown.
fn line(drop: &Drop, zone: &TimeZone) -> Line {
    let why = &drop.drop;
    let known: Vec<&str> = [&why.reason, &why.location].into_iter().flatten().map(String::as_str).collect();
    let reason = Text::of(&known.join(" "));
    let place = Text::of(&words::place(drop));
    let reason = if place == reason { Text::default() } else { reason };
    let is_one_moment = drop.time_last.0.saturating_sub(drop.time.0) < 1_000_000;
    let format = |time: Timestamp| zoned(time, zone).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    let until = if is_one_moment { String::new() } else { format!(" until {}", drop.time_last) };
    Line {
        micros: micros(drop.time),
        time: format(drop.time),
        utc: format!("{}{until}", drop.time),
        drops: drop.count,
        text: words::thousands(drop.count),
        ends: Text::of(&words::ends(drop)),
        protocol: Text::of(&words::protocol(drop)),
        class: words::class(drop),
        place,
        reason,
        cause: Text::of(why.cause.as_ref().map(|cause| cause.id.as_str()).unwrap_or_default()),
        interfaces: Text::of(&words::interfaces(drop)),
        node: Text::of(&drop.node),
    }
}

/// `UTC`, or `UTC+01:00 (Europe/Berlin)`.
fn zone_name(zone: &TimeZone, at: Timestamp) -> String {
    if *zone == TimeZone::UTC {
        return "UTC".to_owned();
    }
    let offset = zoned(at, zone).strftime("%:z").to_string();
    zone.iana_name().map_or_else(|| format!("UTC{offset}"), |name| format!("UTC{offset} ({name})"))
}

/// `14 min 3 s`: the two largest units.
fn duration(micros: i64) -> String {
    if micros < 10_000_000 {
        let tenths = micros.max(0) / 100_000;
        return format!("{}.{} s", tenths / 10, tenths % 10);
    }
    let seconds = micros / 1_000_000;
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(3);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, name) in units.iter().skip(first).take(2) {
        if rest / unit > 0 {
            parts.push(format!("{} {name}", rest / unit));
        }
        rest %= unit;
    }
    parts.join(" ")
}

/// The whole of a table, for tests.
#[cfg(test)]
pub(super) fn sum(table: &super::page::Table) -> u64 {
    table.rows.iter().chain(&table.ends).map(|row| row.amount.drops).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0.0, "0.0 s"),
            (9.96, "9.9 s"),
            (12.0, "12 s"),
            (843.0, "14 min 3 s"),
            (3600.0, "1 h"),
            (93_784.0, "1 d 2 h"),
        ] {
            assert_eq!(duration((seconds * 1e6) as i64), text);
        }
    }

    #[test]
    fn a_zone_says_how_far_it_is_from_utc() {
        assert_eq!(zone_name(&TimeZone::UTC, Timestamp(0)), "UTC");
        assert_eq!(zone_name(&TimeZone::fixed(jiff::tz::offset(5)), Timestamp(0)), "UTC+05:00");
    }
}
