//! What people and programs read: the same stream of records as compact or wide lines, as JSON, or as lines like
//! iptables' LOG target's. [`Printer`] is the [`Sink`] for that; everything it decides with is a pure function beside it.

mod escape;
mod exit;
mod fold;
mod group;
pub(crate) mod iptables;
pub(crate) mod line;
mod printer;
mod schema;
mod sink;
pub(crate) mod summary;
mod time;
pub(crate) mod words;

pub use escape::escape;
pub(crate) use escape::escape_json;
pub use exit::{End, MEANINGLESS, Outcome, exit_code};
pub(crate) use line::Palette;
pub use printer::Printer;
pub(crate) use printer::render_json;
pub use schema::SCHEMA;
pub use sink::{Now, Sink, Stop};
pub use summary::{Summary, Top};
pub use time::TimeFormat;
pub(crate) use time::{Clock, zoned};

use jiff::tz::TimeZone;

/// The form of the lines on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line a drop, for people
    #[default]
    Compact,
    /// Compact, with netns, length, mark, TTL, conntrack entry and inner packet
    Wide,
    /// One JSON object a line: see `droptrace schema`
    #[value(alias = "jsonl")]
    Json,
    /// Like the lines of iptables' LOG target
    Iptables,
}

/// How to print.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The form.
    pub format: Format,
    /// Show routine drops, too.
    pub all: bool,
    /// Tell causes in full: what else matches, what the node said.
    pub verbose: bool,
    /// Show kernel stacks where there are any.
    pub stack: bool,
    /// Colours and such; never in JSON.
    pub color: bool,
    /// stdout is a terminal: a person reads it as it comes.
    pub terminal: bool,
    /// `None`: the format's own.
    pub time: Option<TimeFormat>,
    /// For [`TimeFormat::Clock`] and [`TimeFormat::Rfc3339`].
    pub zone: TimeZone,
    /// At most so many lines a second; the rest is joined into one line of counts per kind.
    pub rate_limit: Option<u32>,
    /// Stop after so many lines about drops.
    pub count: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            format: Format::default(),
            all: false,
            verbose: false,
            stack: false,
            color: false,
            terminal: false,
            time: None,
            zone: TimeZone::UTC,
            rate_limit: None,
            count: None,
        }
    }
}

/// Lines that a person can follow on a terminal, a second.
const TERMINAL_LINES: u32 = 30;

impl Settings {
    /// Programs read every record as it is; people get repeats folded, and on a terminal no more than they can read.
    fn limits(&self) -> fold::Limits {
        let lines = match (self.format, self.terminal) {
            (Format::Json, _) | (_, false) => self.rate_limit,
            (_, true) => Some(self.rate_limit.unwrap_or(TERMINAL_LINES).min(TERMINAL_LINES)),
        };
        fold::Limits { repeats: self.format != Format::Json, lines }
    }
}
