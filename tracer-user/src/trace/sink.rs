//! Where stories go: told in the chosen format, and counted.

use super::model::{Outcome, Step, Story};
use super::pcapng::Pcapng;
use super::tree::{Look, tree};
use super::{iptables, json};
use crate::event::model::Class;
use crate::output::{Clock, Palette, Stop, TimeFormat, words};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;

/// Places of drops that are counted one by one.
const MAX_PLACES: usize = 256;
/// Of those, the ones that the summary names.
const NAMED: usize = 3;

/// The form of what is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A tree for each packet, for people
    #[default]
    Compact,
    /// Compact, with the text of rules and all that is known of a cause
    Wide,
    /// One JSON object a step and one an end: see `droptrace schema`
    #[value(alias = "jsonl")]
    Json,
    /// Like the lines of iptables' TRACE target
    Iptables,
    /// A capture file: each step is a packet with a comment
    Pcapng,
}

/// How to tell.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The form.
    pub format: Format,
    /// Colours; only in trees.
    pub color: bool,
    /// `None`: the format's own.
    pub time: Option<TimeFormat>,
    /// For [`TimeFormat::Clock`] and [`TimeFormat::Rfc3339`].
    pub zone: TimeZone,
    /// Inode number of the node's own network namespace.
    pub node: Option<u32>,
    /// Stop after so many stories.
    pub count: Option<u64>,
}

/// Tells stories. Each is written and flushed at once, so that a reader of a pipe sees whole ones.
pub struct TraceOutput<O: Write> {
    out: O,
    format: Format,
    look: Look,
    clock: Clock,
    count: Option<u64>,
    pcapng: Option<Pcapng>,
    packets: u64,
    dropped: u64,
    outcomes: [u64; 5],
    /// How many packets were dropped where.
    places: BTreeMap<String, u64>,
}

/// In the order of the summary.
const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Delivered, "delivered"),
    (Outcome::Left, "left"),
    (Outcome::Dropped, "dropped"),
    (Outcome::NoReply, "without a reply"),
    (Outcome::Vanished, "vanished"),
];

impl<O: Write> TraceOutput<O> {
    /// One that has told nothing.
    pub fn new(settings: Settings, out: O) -> Self {
        let Settings { format, color, time, zone, node, count } = settings;
        // TRACE's lines have no time of their own.
        let own = if format == Format::Iptables { TimeFormat::None } else { TimeFormat::Clock };
        Self {
            out,
            format,
            look: Look { palette: Palette::new(color), verbose: format == Format::Wide, node },
            clock: Clock::new(time.unwrap_or(own), zone),
            count,
            pcapng: None,
            packets: 0,
            dropped: 0,
            outcomes: [0; 5],
            places: BTreeMap::new(),
        }
    }

    /// Tells a story. Breaks when there is nothing more to do.
    pub fn story(&mut self, story: Story) -> ControlFlow<Stop> {
        self.add_up(&story);
        let bytes = match self.format {
            Format::Compact | Format::Wide => {
                let time = story.steps.first().map_or(story.end.time, |step| step.time);
                tree(&story, &self.clock.line(time), &self.look).into_bytes()
            }
            Format::Json => json::lines(story).into_bytes(),
            Format::Iptables => {
                iptables::lines(&story, |step: &Step| self.clock.line(step.time)).into_bytes()
            }
            Format::Pcapng => {
                let mut bytes = self.header();
                bytes.extend(self.pcapng.get_or_insert_default().story(&story));
                bytes
            }
        };
        self.write(&bytes)?;
        match self.count {
            Some(count) if self.packets >= count => ControlFlow::Break(Stop::Count),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Ends the output, so that a capture file without packets is one, too.
    pub fn finish(&mut self) -> ControlFlow<Stop> {
        let header = if self.format == Format::Pcapng { self.header() } else { Vec::new() };
        self.write(&header)
    }

    /// `3 packets: 2 delivered, 1 dropped (filter:FORWARD:rule:3)`
    #[must_use]
    pub fn summary(&self) -> String {
        let total = words::thousands(self.packets);
        let s = words::plural(self.packets);
        let counted = OUTCOMES.iter().zip(self.outcomes).filter(|(_, count)| *count > 0);
        let parts: Vec<String> = counted
            .map(|((outcome, name), count)| {
                let places = if *outcome == Outcome::Dropped { self.where_dropped() } else { String::new() };
                format!("{} {name}{places}", words::thousands(count))
            })
            .collect();
        let colon = if parts.is_empty() { "" } else { ": " };
        format!("{total} packet{s}{colon}{}", parts.join(", "))
    }

    /// Packets that were dropped, but for those where nothing is wrong ([`Class::Routine`]).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// ` (filter:FORWARD:rule:3 x2, IP_INNOROUTES)`
    fn where_dropped(&self) -> String {
        let mut places: Vec<_> = self.places.iter().collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let name = |(place, count): &(&String, &u64)| match count {
            1 => place.to_string(),
            _ => format!("{place} x{}", words::thousands(**count)),
        };
        let mut names: Vec<String> = places.iter().take(NAMED).map(name).collect();
        if places.len() > NAMED {
            names.push(format!("{} others", places.len() - NAMED));
        }
        format!(" ({})", names.join(", "))
    }

    fn add_up(&mut self, story: &Story) {
        self.packets += 1;
        let position = OUTCOMES.iter().position(|(outcome, _)| *outcome == story.end.outcome);
        if let Some(count) = position.and_then(|position| self.outcomes.get_mut(position)) {
            *count += 1;
        }
        if story.end.outcome == Outcome::Dropped
            && let Some(drop) = &story.end.drop
        {
            self.dropped += u64::from(drop.drop.class != Class::Routine);
            let rule = drop.drop.netfilter.as_deref().and_then(words::rule);
            let mut place = rule.unwrap_or_else(|| words::place(drop));
            if self.places.len() >= MAX_PLACES && !self.places.contains_key(&place) {
                place = "elsewhere".to_owned();
            }
            *self.places.entry(place).or_default() += 1;
        }
    }

    /// The beginning of a capture file, the first time.
    fn header(&mut self) -> Vec<u8> {
        if self.pcapng.is_some() {
            return Vec::new();
        }
        self.pcapng = Some(Pcapng::default());
        Pcapng::header()
    }

    fn write(&mut self, bytes: &[u8]) -> ControlFlow<Stop> {
        match self.out.write_all(bytes).and_then(|()| self.out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::fixtures::{self, NODE};
    use crate::trace::story::Stories;
    use std::io;
    use std::time::Duration;

    fn settings(format: Format) -> Settings {
        Settings { format, color: false, time: None, zone: TimeZone::UTC, node: Some(NODE), count: None }
    }

    fn stories() -> Vec<Story> {
        let mut stories = Stories::default();
        let all = [
            fixtures::ip_forward_off(),
            fixtures::dnat_to_pod(),
            fixtures::vxlan(),
            fixtures::udp_read(),
            fixtures::echo_to_node(),
            fixtures::vanished(),
            fixtures::dropped_by_rule(),
        ];
        all.into_iter().flatten().for_each(|seen| stories.take(seen, Duration::ZERO));
        stories.due(Duration::from_secs(9))
    }

    fn told(settings: Settings) -> (Vec<u8>, String) {
        let mut bytes = Vec::new();
        let mut output = TraceOutput::new(settings, &mut bytes);
        for story in stories() {
            assert!(output.story(story).is_continue());
        }
        assert!(output.finish().is_continue());
        let summary = output.summary();
        (bytes, summary)
    }

    #[test]
    fn every_format_tells_all_packets() {
        let summary = "7 packets: 3 delivered, 2 dropped (IP_INNOROUTES ip_error+0x1b2, filter:FORWARD:rule:3), \
            1 without a reply, 1 vanished";
        for format in [Format::Compact, Format::Wide, Format::Json, Format::Iptables, Format::Pcapng] {
            let (bytes, said) = told(settings(format));
            assert_eq!(said, summary);
            let text = String::from_utf8_lossy(&bytes);
            match format {
                Format::Compact | Format::Wide => assert_eq!(text.matches("\npacket ").count(), 6),
                Format::Json => assert_eq!(text.matches("{\"type\":\"end\"").count(), 7),
                Format::Iptables => assert_eq!(text.matches("\nDROP: ").count(), 2),
                Format::Pcapng => assert_eq!(bytes.windows(9).filter(|it| it == b"droptrace").count(), 1),
            }
        }
    }

    #[test]
    fn times_are_as_asked_for() {
        let lines = |time, format| {
            let text = told(Settings { time, ..settings(format) }).0;
            String::from_utf8(text).unwrap()
        };
        assert!(lines(None, Format::Compact).starts_with("packet 1  22:14:03.112  "));
        assert!(lines(None, Format::Iptables).starts_with("TRACE: "));
        let clock = Some(TimeFormat::Clock);
        assert!(lines(clock, Format::Iptables).starts_with("22:14:03.112  TRACE: "));
        assert!(lines(Some(TimeFormat::None), Format::Compact).starts_with("packet 1  192.0.2.9:53 -> "));
    }

    #[test]
    fn a_run_without_packets() {
        let mut bytes = Vec::new();
        let mut output = TraceOutput::new(settings(Format::Pcapng), &mut bytes);
        assert_eq!(output.summary(), "0 packets");
        assert!(output.finish().is_continue());
        assert_eq!(bytes, Pcapng::header());
    }

    #[test]
    fn as_many_as_asked_for() {
        let mut output = TraceOutput::new(Settings { count: Some(2), ..settings(Format::Json) }, Vec::new());
        let mut stories = stories().into_iter();
        assert!(output.story(stories.next().unwrap()).is_continue());
        assert!(matches!(output.story(stories.next().unwrap()), ControlFlow::Break(Stop::Count)));
    }

    #[test]
    fn routine_drops_are_no_drops() {
        let mut output = TraceOutput::new(settings(Format::Iptables), Vec::new());
        for mut story in stories() {
            if story.end.packet == "1"
                && let Some(drop) = &mut story.end.drop
            {
                drop.drop.class = Class::Routine;
            }
            let _ = output.story(story);
        }
        assert_eq!(output.dropped(), 1);
    }

    #[test]
    fn nobody_reads() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut output = TraceOutput::new(settings(Format::Compact), Closed);
        let stop = output.story(stories().remove(0));
        assert!(matches!(stop, ControlFlow::Break(Stop::BrokenPipe)));
    }

    #[test]
    fn places_of_drops_are_bounded() {
        let mut output = TraceOutput::new(settings(Format::Json), Vec::new());
        let story = stories().remove(0);
        for number in 0..MAX_PLACES + 50 {
            let mut story = story.clone();
            if let Some(drop) = &mut story.end.drop {
                drop.drop.reason = Some(format!("R{number}"));
            }
            let _ = output.story(story);
        }
        assert_eq!(output.places.len(), MAX_PLACES + 1);
        assert!(
            output.summary().contains("306 dropped (elsewhere x50, R0 ip_error+0x1b2, "),
            "{}",
            output.summary()
        );
    }
}
