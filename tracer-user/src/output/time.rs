//! Times as people read them. Machine formats always have RFC 3339 in UTC: [`Timestamp`]'s own form.

use crate::event::model::Timestamp;
use jiff::tz::TimeZone;

/// How the time of a line is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeFormat {
    /// HH:MM:SS.mmm
    #[default]
    Clock,
    /// RFC 3339 with microseconds
    Rfc3339,
    /// Seconds since the first line
    Relative,
    /// Seconds since the line before
    Delta,
    /// Seconds since 1970-01-01T00:00:00Z
    Unix,
    /// No time
    None,
}

/// Prints times; remembers those of the first and the last line.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    format: TimeFormat,
    zone: TimeZone,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

impl Clock {
    pub(crate) fn new(format: TimeFormat, zone: TimeZone) -> Self {
        Self { format, zone, first: None, last: None }
    }

    /// The time of a line of stdout; empty with [`TimeFormat::None`].
    pub(crate) fn line(&mut self, time: Timestamp) -> String {
        let text = self.show(time);
        self.first.get_or_insert(time);
        self.last = Some(time);
        text
    }

    /// The time of a line of stderr.
    pub(super) fn show(&self, time: Timestamp) -> String {
        match self.format {
            TimeFormat::Clock => zoned(time, &self.zone).strftime("%H:%M:%S%.3f").to_string(),
            TimeFormat::Rfc3339 if self.zone == TimeZone::UTC => time.to_string(),
            TimeFormat::Rfc3339 => zoned(time, &self.zone).strftime("%Y-%m-%dT%H:%M:%S%.6f%:z").to_string(),
            TimeFormat::Relative => seconds(time.0 - self.first.unwrap_or(time).0),
            TimeFormat::Delta => seconds(time.0 - self.last.unwrap_or(time).0),
            TimeFormat::Unix => seconds(time.0),
            TimeFormat::None => String::new(),
        }
    }
}

/// A time as it is in a zone; the nearest that a calendar has.
pub(crate) fn zoned(time: Timestamp, zone: &TimeZone) -> jiff::Zoned {
    let clamped = time.0.clamp(jiff::Timestamp::MIN.as_nanosecond(), jiff::Timestamp::MAX.as_nanosecond());
    jiff::Timestamp::from_nanosecond(clamped).unwrap_or_default().to_zoned(zone.clone())
}

/// Nanoseconds as seconds with six digits.
fn seconds(nanoseconds: i128) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let microseconds = nanoseconds.unsigned_abs() / 1000;
    format!("{sign}{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_nanosecond())
    }

    #[test]
    fn every_format() {
        let (first, second) = (stamp("2026-11-20T22:14:03.112345Z"), stamp("2026-11-20T22:14:05.000001Z"));
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let print = |format, zone: &TimeZone| {
            let mut clock = Clock::new(format, zone.clone());
            [clock.line(first), clock.line(second), clock.line(first)]
        };
        let utc = TimeZone::UTC;
        assert_eq!(print(TimeFormat::Clock, &utc), ["22:14:03.112", "22:14:05.000", "22:14:03.112"]);
        assert_eq!(print(TimeFormat::Clock, &zone)[0], "23:14:03.112");
        assert_eq!(print(TimeFormat::Rfc3339, &utc)[1], "2026-11-20T22:14:05.000001Z");
        assert_eq!(print(TimeFormat::Rfc3339, &zone)[0], "2026-11-20T23:14:03.112345+01:00");
        assert_eq!(print(TimeFormat::Relative, &utc), ["0.000000", "1.887656", "0.000000"]);
        assert_eq!(print(TimeFormat::Delta, &utc), ["0.000000", "1.887656", "-1.887656"]);
        assert_eq!(print(TimeFormat::Unix, &utc)[0], "1795212843.112345");
        assert_eq!(print(TimeFormat::None, &utc)[0], "");
    }

    #[test]
    fn no_time_is_too_far() {
        let clock = Clock::new(TimeFormat::Clock, TimeZone::UTC);
        assert_eq!(clock.show(Timestamp(i128::MAX)).len(), 12);
    }
}
