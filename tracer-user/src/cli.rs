//! The command line. Parsing is a pure function of the arguments (and of how a `--netns` word resolves); what it
//! refuses, it points at.

use crate::cause::{BadCauses, Base, Causes, Language};
use crate::doctor;
use crate::event::model::Timestamp;
use crate::filter::{Family, Filter, Flag, RawWord, Side, WordError, netns::NetnsError};
use crate::hist;
use crate::identity::sources;
use crate::output::{Format, Settings, TimeFormat, escape};
use crate::recording::replay::Part;
use clap::builder::styling::{AnsiColor, Styles};
use clap::error::ErrorKind;
use clap::{ArgAction, ArgMatches, Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use jiff::tz::TimeZone;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Stream drops.
    Live(Box<Live>),
    /// Follow packets ([`crate::trace`]).
    Trace(Box<Trace>),
    /// Make a histogram ([`crate::hist`]).
    Hist(Box<Hist>),
    /// Show drops on the whole screen ([`crate::top`]).
    Top(Box<Top>),
    /// Record drops ([`crate::recording`]).
    Record(Box<Record>),
    /// Print recordings ([`crate::recording::replay`]).
    Replay(Box<Replay>),
    /// Make a page of recordings ([`crate::report`]).
    Report(Box<Report>),
    /// Say what this kernel and node allow ([`crate::doctor`]).
    Doctor(Box<doctor::Settings>),
    /// Print the JSON Schema ([`crate::output::SCHEMA`]).
    Schema,
    /// Print a shell's completions ([`completions`]).
    Completions(clap_complete::Shell),
    /// Print the manual page ([`man`]).
    Man,
}

/// A live stream.
#[derive(Clone, Debug)]
pub struct Live {
    /// What to show.
    pub watch: Watch,
    /// How to print it.
    pub output: OutputArgs,
}

/// A trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Which packets.
    pub watch: Watch,
    /// How to print them.
    pub output: TraceArgs,
}

/// A histogram.
#[derive(Clone, Debug)]
pub struct Hist {
    /// The recordings to make it of; live if there are none.
    pub files: Vec<PathBuf>,
    /// What of them.
    pub part: Part,
    /// What to count.
    pub watch: Watch,
    /// How, and how to print it.
    pub histogram: HistogramArgs,
}

/// The full-screen view.
#[derive(Clone, Debug)]
pub struct Top {
    /// Which drops.
    pub watch: Watch,
    /// How to show them.
    pub screen: TopArgs,
}

/// A recording.
#[derive(Clone, Debug)]
pub struct Record {
    /// What to record.
    pub watch: Watch,
    /// Where to.
    pub recording: RecordArgs,
    /// How to print, if drops are to be printed as well.
    pub output: Option<OutputArgs>,
}

/// Recordings, printed.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Files, folders, patterns; `-` is stdin.
    pub files: Vec<PathBuf>,
    /// What of them.
    pub part: Part,
    /// What drops are explained with that have no cause.
    pub causes: CauseArgs,
    /// How to print it.
    pub output: OutputArgs,
    /// What the exit code says.
    pub judge: JudgeArgs,
}

/// A page of recordings.
#[derive(Clone, Debug)]
pub struct Report {
    /// Files, folders, patterns; `-` is stdin.
    pub files: Vec<PathBuf>,
    /// What of them.
    pub part: Part,
    /// What drops are explained with.
    pub causes: CauseArgs,
    /// The page.
    pub page: PageArgs,
}

/// What to watch: the same for all that see drops live.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Which drops.
    pub filter: Filter,
    /// Where names come from.
    pub names: NamesArgs,
    /// What drops are explained with.
    pub causes: CauseArgs,
    /// When to stop, and what the exit code says.
    pub run: RunArgs,
}

const AFTER_HELP: &str = "\
Without a filter this shows the drops of the whole node: all network namespaces, and so all Kubernetes namespaces. \
Drops that mean nothing (routine) are hidden and counted; --all shows them.

A filter flag that is repeated means any of its values; different flags must all match. --not before a filter negates \
it: `droptrace --ip 10.0.0.0/8 --not --port 22`. Address and port filters match the packet, both tuples of its \
conntrack entry, and the inner packet of a tunnel.";

const AFTER_LONG_HELP: &str = "\
Exit codes:
  0    ended as asked (-c, --for, SIGINT, SIGTERM, or the reader of a pipe went away)
  1    error
  2    the command line has no meaning
  3    a privilege or a kernel feature is missing
  4    drops were seen and --assert-no-drops was given; doctor found a misconfiguration
  5    events were lost and --strict was given
  130  SIGINT or SIGTERM a second time

NO_COLOR, CLICOLOR_FORCE and TERM=dumb are respected.";

const TRACE_HELP: &str = "\
A filter is required: it says which packets are followed, by the addresses that they have anywhere on their way, also those that \
NAT gives them, and those of the packet inside a tunnel. A followed packet stays followed through translation, encapsulation and \
into other network namespaces. Programs that only look are attached meanwhile, as links that vanish with droptrace: on \
tracepoints, on tc hooks where the kernel has tcx, on netfilter's hooks where it has BPF programs there (from 6.4) or fentry. \
Where the kernel has kprobes nft itself tells which of its rules a packet met: asked by a rule in a network namespace of droptrace's own, \
while the trace runs. What the running kernel can't show is said. At most 500 packets a second and CPU are begun to be followed; if there are more, that is \
said, too. With -c the trace ends after N packets.";

const RECORD_HELP: &str = "\
A FILE that ends in .parquet is one recording. Any other name is a folder, which may be recorded in for good: \
cluster=NAME/date=DATE/node=NAME/part-TIME.parquet, a new part once one is large or old enough, and with --keep the oldest \
go. Until a part is done it is part-TIME.jsonl.zst: Zstandard frames of the lines of `-o json`, one a second; a kill loses \
the last one at most, and the next recording in that folder makes it a Parquet file.";

const TOP_HELP: &str = "\
Drops are counted by all keys at once: left and right turn from one to the next. Enter opens a group's last drops and, once more, all that is \
known of one: its cause, the rules around the one that dropped it, the kernel's stack. / filters, s sorts, p pauses, w saves what is shown \
as a recording, ? tells the keys.";

const HIST_HELP: &str = "\
Every drop is in exactly one group, so the groups, with (other) for those that have no row, add up to the exact total; \
routine drops, which --all counts too, and losses are said beside it. pod, namespace and workload mean the pod that a \
packet was for, else the one that it came from; their from- and to- twins mean one end. With -c the run ends once N drops \
are counted. Of drops that are only counted (more than some a second of one flow) it is known that they happened in an \
interval of time: the bucket of its middle has them; their interface is not known, so it is (none).";

const DOCTOR_HELP: &str = "\
It looks at the network namespace that it runs in (on a node, the node's own), at the rules of all others, and at all \
Services, waits two seconds, and looks again. Exit code 4: something is wrong with the node; 3: a privilege or kernel \
feature that droptrace needs is missing.";

const REPORT_HELP: &str = "\
The page needs nothing but itself: no network, no other file. Every count on it adds up to the exact total; what was lost is \
said. Without --at and --compare, time is divided where the rate of drops rose most.";

/// Explain packet drops on this node, live.
///
/// Prints every packet that the Linux kernel drops, with its reason, its addresses, and where in the kernel it died.
#[derive(Debug, Parser)]
#[command(
    name = "droptrace",
    bin_name = "droptrace",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = AFTER_HELP,
    after_long_help = format!("{AFTER_HELP}\n\n{AFTER_LONG_HELP}"),
    styles = Styles::styled().header(AnsiColor::Yellow.on_default().bold()).literal(AnsiColor::Cyan.on_default())
)]
struct Cli {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What to watch: the same for all that see packets live.
#[derive(Debug, Args)]
struct WatchArgs {
    #[command(flatten)]
    filters: Box<FilterArgs>,
    #[command(flatten)]
    names: NamesArgs,
    #[command(flatten)]
    causes: CauseArgs,
}

impl WatchArgs {
    /// With the filters, which are read from the matches, and until when.
    fn with(self, filter: Filter, run: RunArgs) -> Watch {
        let Self { names, causes, filters: _ } = self;
        Watch { filter, names, causes, run }
    }
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Follow chosen packets through this node, as a TRACE rule of iptables would, without one, until Ctrl-C, --for or -c
    #[command(after_help = TRACE_HELP)]
    Trace {
        #[command(flatten)]
        output: TraceArgs,
        #[command(flatten)]
        watch: WatchArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Count drops over time and by reason, rule, pod or any other key: live, until Ctrl-C, --for or -c
    #[command(after_help = HIST_HELP)]
    Hist {
        /// Recordings, instead of this node's drops
        #[arg(value_name = "FILE|DIR")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        histogram: HistogramArgs,
        #[command(flatten)]
        part: PartArgs,
        #[command(flatten)]
        watch: WatchArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Show drops on the whole screen, by key, with what is known of each: live, until q, Ctrl-C, --for or -c
    #[command(after_help = TOP_HELP)]
    Top {
        #[command(flatten)]
        screen: TopArgs,
        #[command(flatten)]
        watch: WatchArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Write drops to a Parquet file, or to a folder of them, until Ctrl-C, --for or -c
    #[command(after_help = RECORD_HELP)]
    Record {
        #[command(flatten)]
        recording: RecordArgs,
        #[command(flatten)]
        watch: WatchArgs,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Print recordings as the live stream would
    Replay {
        /// Recordings: files, folders, patterns; - for JSON lines from stdin
        #[arg(value_name = "FILE|DIR|-", required_unless_present = "read")]
        files: Vec<PathBuf>,
        /// Same as FILE
        #[arg(short, long, value_name = "FILE")]
        read: Vec<PathBuf>,
        #[command(flatten)]
        part: PartArgs,
        #[command(flatten)]
        filters: Box<FilterArgs>,
        #[command(flatten)]
        causes: CauseArgs,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        judge: JudgeArgs,
    },
    /// Make one HTML page of recordings, for the review of an incident
    #[command(after_help = REPORT_HELP)]
    Report {
        /// Recordings: files, folders, patterns; - for JSON lines from stdin
        #[arg(value_name = "FILE|DIR|-", required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        page: PageArgs,
        #[command(flatten)]
        part: PartArgs,
        #[command(flatten)]
        filters: Box<FilterArgs>,
        #[command(flatten)]
        causes: CauseArgs,
    },
    /// Say what is wrong with this node, what was dropped before, and what droptrace can tell here
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// Repeat the self-test a hundred times
        #[arg(long)]
        self_test: bool,
        /// Whether to run on packets that are not dropped, too
        #[arg(long, value_name = "WHEN", default_value = "auto")]
        probes: ProbesWhen,
        /// Form of the report
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: doctor::Format,
        /// Same as -o json
        #[arg(long, conflicts_with = "output")]
        json: bool,
        /// Language of what is found: auto is the locale's for people, and English for programs
        #[arg(long, value_name = "LANGUAGE", default_value = "auto")]
        lang: Lang,
        #[command(flatten)]
        names: NamesArgs,
    },
    /// Print the JSON Schema of the lines of `-o json`
    Schema,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff)
    Man,
}

/// Their values and their order are read from the matches: see [`raw_words`].
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters")]
struct FilterArgs {
    /// Pods by name, or the beginning of it, with or without namespace: packets from or to them
    #[arg(long, value_name = "[NS/]NAME")]
    pod: Vec<String>,
    /// Packets from such pods
    #[arg(long, value_name = "[NS/]NAME")]
    from_pod: Vec<String>,
    /// Packets to such pods
    #[arg(long, value_name = "[NS/]NAME")]
    to_pod: Vec<String>,
    /// Pods and services of this namespace; also that of names given without
    #[arg(short, long, value_name = "NAME")]
    namespace: Vec<String>,
    /// Packets from pods and services of this namespace
    #[arg(long, value_name = "NAME")]
    from_namespace: Vec<String>,
    /// Packets to pods and services of this namespace
    #[arg(long, value_name = "NAME")]
    to_namespace: Vec<String>,
    /// All namespaces, as without -n
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Pods with these labels, for example app=cart
    #[arg(short = 'l', long, value_name = "SELECTOR", alias = "label")]
    selector: Vec<String>,
    /// Packets from pods with these labels
    #[arg(long, value_name = "SELECTOR", alias = "from-label")]
    from_selector: Vec<String>,
    /// Packets to pods with these labels
    #[arg(long, value_name = "SELECTOR", alias = "to-label")]
    to_selector: Vec<String>,
    /// Pods of a workload, for example deployment/cart
    #[arg(long, value_name = "[NS/][KIND/]NAME")]
    workload: Vec<String>,
    /// Packets from pods of a workload
    #[arg(long, value_name = "[NS/][KIND/]NAME")]
    from_workload: Vec<String>,
    /// Packets to pods of a workload
    #[arg(long, value_name = "[NS/][KIND/]NAME")]
    to_workload: Vec<String>,
    /// A service: packets to and from its addresses, and its backends on its ports
    #[arg(long, value_name = "[NS/]NAME")]
    service: Vec<String>,
    /// Packets from a service
    #[arg(long, value_name = "[NS/]NAME")]
    from_service: Vec<String>,
    /// Packets to a service
    #[arg(long, value_name = "[NS/]NAME")]
    to_service: Vec<String>,
    /// Packets from or to this address or network
    #[arg(long, value_name = "CIDR")]
    ip: Vec<String>,
    /// Packets from this address or network
    #[arg(long, value_name = "CIDR")]
    from_ip: Vec<String>,
    /// Packets to this address or network
    #[arg(long, value_name = "CIDR")]
    to_ip: Vec<String>,
    /// Packets from or to this port
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// Packets from this port
    #[arg(long, value_name = "PORT")]
    from_port: Vec<String>,
    /// Packets to this port
    #[arg(long, value_name = "PORT")]
    to_port: Vec<String>,
    /// tcp, udp, sctp, icmp, icmpv6, arp ..., a protocol number, or an ethertype (0x88cc)
    #[arg(long, value_name = "NAME")]
    protocol: Vec<String>,
    /// IPv4 only
    #[arg(short = '4', long = "ipv4", action = ArgAction::Append, num_args = 0, default_missing_value = "true")]
    ipv4: Vec<bool>,
    /// IPv6 only
    #[arg(short = '6', long = "ipv6", action = ArgAction::Append, num_args = 0, default_missing_value = "true")]
    ipv6: Vec<bool>,
    /// Packets on, in by or out by this interface
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Packets in this network namespace: its inode number, name (`ip netns`), path, or the id of a process in it
    #[arg(long, value_name = "NETNS")]
    netns: Vec<String>,
    /// Drop reasons by name or pattern; '!NAME' leaves one out
    #[arg(long, value_name = "NAME|GLOB")]
    reason: Vec<String>,
    /// Causes by name or pattern, for example conntrack-full or 'svc-*'
    #[arg(long, value_name = "NAME|GLOB")]
    cause: Vec<String>,
    /// Negate the filter that follows
    #[arg(long, action = ArgAction::Append, num_args = 0, default_missing_value = "true")]
    not: Vec<bool>,
}

/// Where names of pods and services come from: all that answer, together.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Names")]
pub struct NamesArgs {
    /// Names from a file, as `kubectl get pods,services,endpointslices,nodes -A -o json` prints it
    #[arg(long, value_name = "FILE")]
    pub inventory: Vec<PathBuf>,
    /// Leave the Kubernetes API server out: names come from the container runtime and /proc
    #[arg(long)]
    pub offline: bool,
    /// How to reach the API server, as for kubectl
    #[arg(long, value_name = "FILE", conflicts_with = "offline")]
    pub kubeconfig: Option<PathBuf>,
    /// Which context of it
    #[arg(long, value_name = "NAME", conflicts_with = "offline")]
    pub context: Option<String>,
}

impl NamesArgs {
    /// The same for the sources.
    #[must_use]
    pub fn sources(&self) -> sources::Options {
        let Self { inventory, offline, kubeconfig, context } = self.clone();
        let api = sources::api::Options { kubeconfig, context, ..Default::default() };
        sources::Options { api: (!offline).then_some(api), files: inventory }
    }
}

/// What drops are explained with.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Causes")]
pub struct CauseArgs {
    /// Causes of your own (TOML), which come before those that are compiled in
    #[arg(long, value_name = "FILE")]
    pub causes: Vec<PathBuf>,
    /// Language of causes: auto is the locale's for people, and English for programs and recordings
    #[arg(long, value_name = "LANGUAGE", default_value = "auto")]
    pub lang: Lang,
    /// True if a person is to read them as they come.
    #[arg(skip)]
    is_for_people: bool,
}

/// A language of causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Lang {
    /// The locale's, where people read
    #[default]
    Auto,
    /// English
    En,
    /// Chinese
    Zh,
}

impl Lang {
    /// The language: auto asks the environment for the locale where people read.
    fn language(self, is_for_people: bool) -> Language {
        match self {
            Self::En => Language::English,
            Self::Zh => Language::Chinese,
            Self::Auto if is_for_people => Language::of(|name| std::env::var(name).ok()),
            Self::Auto => Language::English,
        }
    }
}

impl CauseArgs {
    fn printed_as(self, output: &OutputArgs) -> Self {
        Self { is_for_people: !output.json && output.output != Format::Json, ..self }
    }

    /// The knowledge base: asks the environment for the locale, and reads the files.
    ///
    /// # Errors
    /// If a file can't be read, or makes no sense.
    pub fn load(&self) -> Result<Causes, BadCauses> {
        let language = self.lang.language(self.is_for_people);
        Ok(Causes::new(Base::with_files(&self.causes)?, language))
    }
}

/// How to print.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Form of the lines
    #[arg(short, long = "output", value_name = "FORMAT", default_value = "compact")]
    pub output: Format,
    /// Same as -o json
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Show routine drops, too
    #[arg(long)]
    pub all: bool,
    /// Show kernel stacks
    #[arg(long)]
    pub stack: bool,
    /// Colours
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// Form of the times (JSON always has RFC 3339 in UTC)
    #[arg(long, value_name = "FORMAT")]
    pub time_format: Option<TimeFormat>,
    /// Times in UTC
    #[arg(long)]
    pub utc: bool,
    /// Print at most N lines a second; the rest is counted in one line per kind of drop
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_limit: Option<u32>,
}

/// How to print paths.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct TraceArgs {
    /// Form of the output
    #[arg(short, long = "output", value_name = "FORMAT", default_value = "compact")]
    pub output: crate::trace::sink::Format,
    /// Same as -o json
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Colours
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// Form of the times (JSON always has RFC 3339 in UTC)
    #[arg(long, value_name = "FORMAT")]
    pub time_format: Option<TimeFormat>,
    /// Times in UTC
    #[arg(long)]
    pub utc: bool,
}

/// How to count, and how to print the counts.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Histogram")]
pub struct HistogramArgs {
    /// What to group drops by: one key or several
    #[arg(long, value_name = "KEY[,KEY]", value_delimiter = ',', default_value = "place")]
    pub by: Vec<hist::Key>,
    /// How wide the buckets of time are
    #[arg(long, value_name = "DURATION", value_parser = bucket, default_value = "1s")]
    pub bucket: Duration,
    /// Print the N groups with most drops and the rest in one; 10 in a chart, else all
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// Compare two windows of time, such as `0s..30s 30s..60s`: what is new, gone, grew or shrank
    #[arg(long, num_args = 2, value_names = ["A..B", "C..D"], value_parser = hist::Window::parse,
        conflicts_with = "bucket")]
    pub compare: Vec<hist::Window>,
    /// Form of the histogram
    #[arg(short, long = "output", value_name = "FORMAT", default_value = "chart")]
    pub output: hist::Format,
    /// Same as -o json
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// Count routine drops, too
    #[arg(long)]
    pub all: bool,
    /// Times in UTC
    #[arg(long)]
    pub utc: bool,
}

/// How the screen looks.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Screen")]
pub struct TopArgs {
    /// What to group drops by at first
    #[arg(long, value_name = "KEY")]
    pub by: Option<hist::Key>,
    /// Count routine drops, too
    #[arg(long)]
    pub all: bool,
    /// Colour
    #[arg(long, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    pub color: ColorChoice,
    /// Times in UTC
    #[arg(long)]
    pub utc: bool,
}

/// Where a recording goes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Recording")]
pub struct RecordArgs {
    /// Where to: FILE.parquet, or a folder
    #[arg(short, long, value_name = "FILE|DIR")]
    pub write: PathBuf,
    /// The cluster's name, in a folder
    #[arg(long, value_name = "NAME", env = "DROPTRACE_CLUSTER", default_value = "local")]
    pub cluster: String,
    /// Bytes that all of this node's files in the folder may have, such as 2GiB; the oldest go first
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub keep: Option<u64>,
    /// Begin another file in the folder once one has so many bytes; finished it has far fewer
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64MiB")]
    pub rotate_size: u64,
    /// Begin another one after that time, and at midnight UTC
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    pub rotate_after: Duration,
}

/// A page.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Page")]
pub struct PageArgs {
    /// Where to: FILE.html, or - for stdout
    #[arg(short, long, value_name = "FILE|-")]
    pub write: PathBuf,
    /// The page's title
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
    /// Set what came before a time against what came from then on
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "compare")]
    pub at: Option<Timestamp>,
    /// Compare two windows of time, such as `0s..30s 30s..60s`
    #[arg(long, num_args = 2, value_names = ["A..B", "C..D"], value_parser = hist::Window::parse)]
    pub compare: Vec<hist::Window>,
    /// Show at most N records one by one: the first, the last, and those with most drops
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub rows: u32,
    /// Count routine drops, too
    #[arg(long)]
    pub all: bool,
    /// Times in UTC
    #[arg(long)]
    pub utc: bool,
}

/// What of recordings.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Part")]
pub struct PartArgs {
    /// Drops from then on: a time, or how long ago, such as 5m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Timestamp>,
    /// Drops before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Timestamp>,
    /// The first N records about drops
    #[arg(long, value_name = "N", conflicts_with = "last")]
    pub first: Option<u64>,
    /// The last N records about drops
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub last: Option<u64>,
}

impl PartArgs {
    fn of(self, filter: Filter) -> Part {
        let Self { since, until, first, last } = self;
        Part { filter, since, until, first, last }
    }
}

/// When to stop, and what the exit code says, where nothing is awaited.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct JudgeArgs {
    /// Stop after N lines about drops
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Exit with 4 if there is any drop that is not hidden as routine
    #[arg(long)]
    pub assert_no_drops: bool,
    /// Exit with 5 if events were lost
    #[arg(long)]
    pub strict: bool,
    /// Tell causes in full
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// When to stop, and what the exit code says.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Stop after N lines about drops; of a histogram, N drops
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after a time, for example 30s, 5m, 1h30m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Exit with 4 if any drop was seen that is not hidden as routine
    #[arg(long)]
    pub assert_no_drops: bool,
    /// Exit with 5 if events were lost
    #[arg(long)]
    pub strict: bool,
    /// Whether to run on packets that are not dropped, too, which some kernels take to name an nft rule: always costs
    /// every packet that comes to a netfilter hook
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub probes: ProbesWhen,
    /// More of droptrace's own messages, and causes in full
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// When probes are armed that run on packets that are not dropped, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProbesWhen {
    /// Where the command is of no use without.
    #[default]
    Auto,
    /// Never.
    Never,
    /// From the start.
    Always,
}

impl Live {
    /// How to print on this process's stdout ([`OutputArgs::settings`]).
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings { verbose: self.watch.run.verbose > 0, ..self.output.settings(self.watch.run.count) }
    }
}

impl Record {
    /// How to print, likewise, if that is asked for.
    #[must_use]
    pub fn printing(&self) -> Option<Settings> {
        let verbose = self.watch.run.verbose > 0;
        self.output.as_ref().map(|output| Settings { verbose, ..output.settings(self.watch.run.count) })
    }
}

impl Replay {
    /// How to print, likewise.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings { verbose: self.judge.verbose > 0, ..self.output.settings(self.judge.count) }
    }
}

impl OutputArgs {
    /// How to print on this process's stdout: asks whether it is a terminal, the environment for colour
    /// (`NO_COLOR`, `CLICOLOR_FORCE`, `TERM`), and the system for its time zone. `count`: stop after so many lines.
    #[must_use]
    pub fn settings(&self, count: Option<u64>) -> Settings {
        let stdout = io::stdout();
        let color = is_colored(self.color);
        let zone = if self.utc { TimeZone::UTC } else { TimeZone::system() };
        self.settings_for(stdout.is_terminal(), color, zone, count)
    }

    fn settings_for(&self, terminal: bool, color: bool, zone: TimeZone, count: Option<u64>) -> Settings {
        let Self { output, json, all, stack, time_format, rate_limit, .. } = *self;
        Settings {
            format: if json { Format::Json } else { output },
            all,
            stack,
            color,
            terminal,
            time: time_format,
            zone,
            rate_limit,
            count,
            verbose: false,
        }
    }
}

/// Whether to colour what goes to this process's stdout: asks whether it is a terminal, and the environment (`NO_COLOR`,
/// `CLICOLOR_FORCE`, `TERM`).
fn is_colored(choice: ColorChoice) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never,
    }
}

impl Trace {
    /// How to tell on this process's stdout: asks for its terminal and the system for its time zone. `node` is the inode number of
    /// the node's own network namespace.
    #[must_use]
    pub fn settings(&self, node: Option<u32>) -> crate::trace::sink::Settings {
        let TraceArgs { output, json, color, time_format, utc } = self.output.clone();
        crate::trace::sink::Settings {
            format: if json { crate::trace::sink::Format::Json } else { output },
            color: is_colored(color),
            time: time_format,
            zone: if utc { TimeZone::UTC } else { TimeZone::system() },
            node,
            count: self.watch.run.count,
        }
    }
}

impl Top {
    /// How the screen looks: asks the environment for colour and the locale, and the system for its time zone.
    #[must_use]
    pub(crate) fn look(&self) -> crate::top::Look {
        crate::top::Look {
            charset: hist::Charset::of(|name| std::env::var(name).ok()),
            color: is_colored(self.screen.color),
            zone: if self.screen.utc { TimeZone::UTC } else { TimeZone::system() },
        }
    }
}

impl Hist {
    /// How to count and print on this process's stdout: asks for its terminal, the environment for the locale, and the
    /// system for its time zone.
    #[must_use]
    pub fn settings(&self) -> hist::Settings {
        let HistogramArgs { mut by, bucket, top, compare, output, json, all, utc } = self.histogram.clone();
        let mut seen = std::collections::HashSet::new();
        by.retain(|key| seen.insert(*key));
        hist::Settings {
            by,
            bucket,
            top,
            // clap sees to it that there are two or none.
            compare: <[hist::Window; 2]>::try_from(compare).ok(),
            format: if json { hist::Format::Json } else { output },
            all,
            count: self.watch.run.count,
            zone: if utc { TimeZone::UTC } else { TimeZone::system() },
            charset: hist::Charset::of(|name| std::env::var(name).ok()),
            size: hist::size,
        }
    }
}

/// Parses the arguments, the program's name first. `resolve_netns` is [`crate::filter::netns::resolve`].
///
/// # Errors
/// What to print instead: an error, or the help that was asked for.
pub fn parse(
    arguments: &[OsString],
    resolve_netns: &dyn Fn(&str) -> Result<u32, NetnsError>,
) -> Result<Command, Refusal> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    match cli.other {
        Some(Other::Trace { output, watch, run }) => {
            let matches = matches.subcommand_matches("trace").unwrap_or(&matches);
            let watch = watch.with(filter(matches, arguments, resolve_netns)?, run);
            check_trace(&watch.filter)?;
            return Ok(Command::Trace(Box::new(Trace { watch, output })));
        }
        Some(Other::Hist { files, histogram, part, watch, run }) => {
            let matches = matches.subcommand_matches("hist").unwrap_or(&matches);
            let watch = watch.with(filter(matches, arguments, resolve_netns)?, run);
            let part = part.of(watch.filter.clone());
            if files.is_empty() && !part.is_all() {
                let problem = "--since, --until, --first and --last are about recordings: name a FILE or DIR";
                return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, problem).into());
            }
            return Ok(Command::Hist(Box::new(Hist { files, part, watch, histogram })));
        }
        Some(Other::Top { screen, watch, run }) => {
            let matches = matches.subcommand_matches("top").unwrap_or(&matches);
            let watch = watch.with(filter(matches, arguments, resolve_netns)?, run);
            return Ok(Command::Top(Box::new(Top { watch, screen })));
        }
        Some(Other::Record { recording, watch, output, run }) => {
            let matches = matches.subcommand_matches("record").unwrap_or(&matches);
            let watch = watch.with(filter(matches, arguments, resolve_netns)?, run);
            let is_asked = |id| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
            let output = (is_asked("output") || is_asked("json")).then_some(output);
            return Ok(Command::Record(Box::new(Record { watch, recording, output })));
        }
        Some(Other::Replay { files, read, part, causes, output, judge, filters: _ }) => {
            let matches = matches.subcommand_matches("replay").unwrap_or(&matches);
            let part = part.of(filter(matches, arguments, resolve_netns)?);
            let files = files.into_iter().chain(read).collect();
            let causes = causes.printed_as(&output);
            return Ok(Command::Replay(Box::new(Replay { files, part, causes, output, judge })));
        }
        Some(Other::Report { files, page, part, causes, filters: _ }) => {
            let matches = matches.subcommand_matches("report").unwrap_or(&matches);
            let part = part.of(filter(matches, arguments, resolve_netns)?);
            return Ok(Command::Report(Box::new(Report { files, part, causes, page })));
        }
        Some(Other::Doctor { self_test, probes, output, json, lang, names }) => {
            let format = if json { doctor::Format::Json } else { output };
            return Ok(Command::Doctor(Box::new(doctor::Settings {
                self_test,
                probes: probes == ProbesWhen::Always,
                format,
                language: lang.language(format == doctor::Format::Text),
                names: names.sources(),
            })));
        }
        Some(Other::Schema) => return Ok(Command::Schema),
        Some(Other::Completions { shell }) => return Ok(Command::Completions(shell)),
        Some(Other::Man) => return Ok(Command::Man),
        None => {}
    }
    let mut watch = cli.watch.with(filter(&matches, arguments, resolve_netns)?, cli.run);
    watch.causes = watch.causes.printed_as(&cli.output);
    Ok(Command::Live(Box::new(Live { watch, output: cli.output })))
}

/// A trace follows chosen packets, whether they are dropped or not.
fn check_trace(filter: &Filter) -> Result<(), Refusal> {
    if filter.is_empty() {
        let problem = "a trace needs a filter, for example --pod shop/cart-7c9, --ip 8.8.8.8 or --port 53";
        return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, problem).into());
    }
    let of_drops = filter.words.iter().find(|word| matches!(word.flag, Flag::Reason | Flag::Cause));
    if let Some(word) = of_drops {
        let problem = format!(
            "{} is about drops, and a trace follows packets that pass, too: leave it out",
            word.flag.spelling()
        );
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, problem).into());
    }
    Ok(())
}

fn filter(
    matches: &ArgMatches,
    arguments: &[OsString],
    resolve_netns: &dyn Fn(&str) -> Result<u32, NetnsError>,
) -> Result<Filter, Refusal> {
    let words = raw_words(matches).map_err(|stray| Refusal::stray_not(arguments, stray))?;
    Filter::parse(&words, resolve_netns).map_err(|error| Refusal::word(arguments, &error))
}

/// The filters in the order of the command line, each with the `--not` that stands directly before it.
///
/// # Errors
/// The position, among all `--not`, of one that stands before something else.
fn raw_words(matches: &ArgMatches) -> Result<Vec<RawWord>, usize> {
    // clap counts every flag and every value, and tells the indices of the values. Switches have one as well (their
    // default_missing_value), so an argument takes two indices and a word's predecessor is two before it.
    let mut found: Vec<(usize, RawWord)> = Vec::new();
    for flag in Flag::ALL {
        let id = argument_id(flag);
        let Some(indices) = matches.indices_of(id) else {
            continue;
        };
        let texts: Vec<String> = match flag {
            Flag::Family(_) => Vec::new(),
            _ => matches.get_many::<String>(id).into_iter().flatten().cloned().collect(),
        };
        for (position, index) in indices.enumerate() {
            let text = texts.get(position).cloned().unwrap_or_default();
            found.push((index, RawWord { flag, text, negated: false }));
        }
    }
    found.sort_by_key(|&(index, _)| index);
    for (position, not) in matches.indices_of("not").into_iter().flatten().enumerate() {
        match found.iter_mut().find(|(index, _)| *index == not + 2) {
            Some((_, word)) => word.negated = true,
            None => return Err(position),
        }
    }
    Ok(found.into_iter().map(|(_, word)| word).collect())
}

fn argument_id(flag: Flag) -> &'static str {
    match flag {
        Flag::Ip(Side::Either) => "ip",
        Flag::Ip(Side::From) => "from_ip",
        Flag::Ip(Side::To) => "to_ip",
        Flag::Port(Side::Either) => "port",
        Flag::Port(Side::From) => "from_port",
        Flag::Port(Side::To) => "to_port",
        Flag::Protocol => "protocol",
        Flag::Family(Family::V4) => "ipv4",
        Flag::Family(Family::V6) => "ipv6",
        Flag::Interface => "interface",
        Flag::Netns => "netns",
        Flag::Reason => "reason",
        Flag::Cause => "cause",
        Flag::Pod(Side::Either) => "pod",
        Flag::Pod(Side::From) => "from_pod",
        Flag::Pod(Side::To) => "to_pod",
        Flag::Namespace(Side::Either) => "namespace",
        Flag::Namespace(Side::From) => "from_namespace",
        Flag::Namespace(Side::To) => "to_namespace",
        Flag::Selector(Side::Either) => "selector",
        Flag::Selector(Side::From) => "from_selector",
        Flag::Selector(Side::To) => "to_selector",
        Flag::Workload(Side::Either) => "workload",
        Flag::Workload(Side::From) => "from_workload",
        Flag::Workload(Side::To) => "to_workload",
        Flag::Service(Side::Either) => "service",
        Flag::Service(Side::From) => "from_service",
        Flag::Service(Side::To) => "to_service",
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let example = "a time with its unit, such as 30s, 5m or 1h30m";
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| example.to_owned())?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("{example}, and more than nothing")),
    }
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<Timestamp, String> {
    let example =
        "a time such as 2026-11-20T22:14:03Z or 2026-11-20 22:14, or how long ago it was, such as 5m";
    let ago = |ago: jiff::SignedDuration| jiff::Timestamp::now().checked_sub(ago.abs()).ok();
    let zoned = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(TimeZone::system()).ok();
    let time = text.parse::<jiff::Timestamp>().ok();
    let time = time.or_else(|| text.parse().ok().and_then(ago)).or_else(|| Some(zoned()?.timestamp()));
    time.map(|time| Timestamp(time.as_nanosecond())).ok_or_else(|| example.to_owned())
}

/// A number of bytes: `2GiB`, `500MB`, `4096`.
fn size(text: &str) -> Result<u64, String> {
    let example = "a size such as 2GiB, 500MB or 4096";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(example.to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| example.to_owned())?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(|| example.to_owned())
}

/// As fine as times are worth telling apart, and whole microseconds, which is what recordings have.
fn bucket(text: &str) -> Result<Duration, String> {
    let bucket = duration(text)?;
    if bucket >= Duration::from_millis(1) && bucket.subsec_nanos().is_multiple_of(1000) {
        Ok(bucket)
    } else {
        Err("a millisecond or more, of whole microseconds".to_owned())
    }
}

/// The completions of a shell.
#[must_use]
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "droptrace", &mut script);
    script
}

/// The manual page, in roff.
///
/// # Errors
/// None in practice: it writes to memory.
pub fn man() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}

/// Why a command line is not run: an error in it, or help or version that was asked for.
#[derive(Debug)]
pub struct Refusal(Box<Inner>);

#[derive(Debug)]
enum Inner {
    Clap(clap::Error),
    Pointed(String),
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        Self(Box::new(Inner::Clap(error)))
    }
}

impl Refusal {
    /// Points at a filter word on the command line that has no meaning: also one that only the running kernel
    /// shows to have none ([`crate::filter::compile`]).
    #[must_use]
    pub fn word(arguments: &[OsString], error: &WordError) -> Self {
        let words = strings(arguments);
        let flag = error.flag.spelling();
        let joined = format!("{flag}={}", error.text);
        let place = words.iter().enumerate().find_map(|(position, word)| {
            let before = position.checked_sub(1).and_then(|before| words.get(before));
            if *word == error.text && before.is_some_and(|before| before == flag) {
                Some(Place { word: position, skip: 0 })
            } else {
                (*word == joined).then(|| Place { word: position, skip: flag.len() + 1 })
            }
        });
        Self::pointed(&words, place, &error.to_string(), error.hint.as_deref())
    }

    fn stray_not(arguments: &[OsString], stray: usize) -> Self {
        let words = strings(arguments);
        let mut nots = words.iter().enumerate().filter(|(_, word)| *word == "--not");
        let place = nots.nth(stray).map(|(word, _)| Place { word, skip: 0 });
        let hint = "--not --port 22";
        Self::pointed(&words, place, "--not stands directly before the filter that it negates", Some(hint))
    }

    fn pointed(words: &[String], place: Option<Place>, problem: &str, hint: Option<&str>) -> Self {
        let mut text = format!("error: {problem}\n");
        if let Some(place) = place {
            text.push_str(&point(words, &place));
        }
        if let Some(hint) = hint {
            text.push_str(&format!("\n  try: {}\n", escape(hint)));
        }
        text.push_str("\nFor more information, try '--help'.\n");
        Self(Box::new(Inner::Pointed(text)))
    }

    /// 2 for an error, 0 for help and version.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match &*self.0 {
            Inner::Clap(error) if !error.use_stderr() => 0,
            Inner::Clap(_) | Inner::Pointed(_) => 2,
        }
    }

    /// Prints it where it belongs: help and version to stdout, errors to stderr.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn print(&self) -> io::Result<()> {
        match &*self.0 {
            Inner::Clap(error) => error.print(),
            Inner::Pointed(text) => io::stderr().write_all(text.as_bytes()),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Inner::Clap(error) => error.fmt(f),
            Inner::Pointed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Refusal {}

/// Where to point: at an argument, from its `skip`th byte on.
struct Place {
    word: usize,
    skip: usize,
}

/// The command line as it could be typed, and below it carets under the place.
fn point(words: &[String], place: &Place) -> String {
    let mut line = "  droptrace".to_owned();
    let mut carets = String::new();
    for (position, word) in words.iter().enumerate().skip(1) {
        line.push(' ');
        if position == place.word {
            let (skipped, pointed) = word.split_at_checked(place.skip).unwrap_or(("", word));
            line.push_str(skipped);
            let pointed = quoted(pointed);
            carets =
                format!("{}{}", " ".repeat(line.chars().count()), "^".repeat(pointed.chars().count().max(1)));
            line.push_str(&pointed);
        } else {
            line.push_str(&quoted(word));
        }
    }
    format!("\n{line}\n{carets}\n")
}

/// A word as a shell wants it, safe to print.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", escape(word).replace('\'', "'\\''"))
    }
}

fn strings(arguments: &[OsString]) -> Vec<String> {
    arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Value;

    fn arguments(line: &[&str]) -> Vec<OsString> {
        std::iter::once("droptrace").chain(line.iter().copied()).map(OsString::from).collect()
    }

    fn parse_line(line: &[&str]) -> Result<Command, Refusal> {
        parse(&arguments(line), &|word| {
            word.parse().map_err(|_| NetnsError::NotFound { word: word.to_owned() })
        })
    }

    fn live(line: &[&str]) -> Live {
        match parse_line(line).unwrap() {
            Command::Live(live) => *live,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(line: &[&str]) -> String {
        let refusal = parse_line(line).unwrap_err();
        assert_eq!(refusal.exit_code(), 2, "{refusal}");
        refusal.to_string()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn filters_keep_their_order_and_their_not() {
        let line = "--ip 10.0.0.0/8 --not --ip=10.1.0.0/16 -4 --not -6 --all --to-port 80 --not --reason !TCP_* \
                    --netns 7 --protocol tcp --not --interface lo";
        let filter = live(&line.split_whitespace().collect::<Vec<_>>()).watch.filter;
        assert_eq!(
            filter.to_string(),
            "--ip 10.0.0.0/8 --not --ip 10.1.0.0/16 -4 --not -6 --to-port 80 --not --reason !TCP_* --netns 7 \
             --protocol tcp --not --interface lo"
        );
        assert_eq!(filter.words[6].value, Value::Netns(7));
        assert!(live(&[]).watch.filter.is_empty());
    }

    #[test]
    fn every_filter_flag_is_on_the_command_line() {
        for flag in Flag::ALL {
            let text = match flag {
                Flag::Ip(_) => "::1",
                Flag::Port(_) | Flag::Netns => "7",
                Flag::Protocol => "udp",
                Flag::Interface => "eth0",
                Flag::Reason => "X",
                Flag::Cause => "svc-*",
                Flag::Pod(_) | Flag::Namespace(_) | Flag::Workload(_) | Flag::Service(_) => "cart",
                Flag::Selector(_) => "app=cart",
                Flag::Family(_) => "",
            };
            let line: Vec<&str> =
                [flag.spelling(), text].into_iter().filter(|word| !word.is_empty()).collect();
            assert_eq!(live(&line).watch.filter.words[0].flag, flag);
        }
    }

    #[test]
    fn a_filter_without_meaning_is_pointed_at() {
        assert_eq!(
            refusal(&["--port", "80", "--ip", "10.0.0.0/33", "--all"]),
            "error: --ip 10.0.0.0/33: this address has 32 bits, and a network no more of them\n\
             \n\
             \x20 droptrace --port 80 --ip 10.0.0.0/33 --all\n\
             \x20                          ^^^^^^^^^^^\n\
             \n\
             \x20 try: an address, `10.1.2.3` or `fd00::1`, or a network, `10.0.0.0/8`\n\
             \n\
             For more information, try '--help'.\n"
        );
        let joined = refusal(&["--protocol=tcpp"]);
        assert!(joined.contains("\n  droptrace --protocol=tcpp\n                       ^^^^\n"), "{joined}");
        let quoted = refusal(&["--netns", "a b\u{1b}"]);
        assert!(
            quoted.contains("\n  droptrace --netns 'a b\\x1b'\n                    ^^^^^^^^^\n"),
            "{quoted}"
        );
        assert!(!quoted.contains('\u{1b}'));
    }

    #[test]
    fn a_not_before_anything_else_is_pointed_at() {
        for line in
            [&["--not", "--all", "--port", "1"][..], &["--port", "1", "--not"], &["--not", "--not", "-4"]]
        {
            let text = refusal(line);
            assert!(
                text.contains("--not stands directly before")
                    && text.contains("\n ")
                    && text.contains("^^^^^\n")
            );
        }
        let second = refusal(&["--not", "-4", "--not", "--all"]);
        assert!(
            second.contains("\n  droptrace --not -4 --not --all\n                     ^^^^^\n"),
            "{second}"
        );
    }

    #[test]
    fn what_clap_refuses_is_usage_too() {
        for line in [
            &["--nope"][..],
            &["-c", "0"],
            &["-c", "x"],
            &["--for", "30"],
            &["--for", "-1s"],
            &["--for", "0s"],
            &["-o", "xml"],
            &["--json", "-o", "wide"],
            &["--rate-limit", "0"],
            &["--ip"],
            &["nonsense"],
            &["--all", "schema"],
        ] {
            refusal(line);
        }
        assert_eq!(parse_line(&["--help"]).unwrap_err().exit_code(), 0);
        assert_eq!(parse_line(&["-V"]).unwrap_err().exit_code(), 0);
    }

    #[test]
    fn help_says_what_is_shown_by_default() {
        for flag in ["-h", "--help"] {
            let help = parse_line(&[flag]).unwrap_err().to_string();
            let words: Vec<&str> = help.split_whitespace().collect();
            assert!(words.join(" ").contains("the whole node: all network namespaces"), "{help}");
        }
    }

    #[test]
    fn output_and_run_have_their_settings() {
        let line =
            "--json --all --stack --utc --time-format unix --rate-limit 5 -c 3 --for 1m30s --strict -vv";
        let live = live(&line.split_whitespace().collect::<Vec<_>>());
        let settings = live.output.settings_for(true, false, TimeZone::UTC, live.watch.run.count);
        assert_eq!((settings.format, settings.time), (Format::Json, Some(TimeFormat::Unix)));
        assert!(settings.all && settings.stack && settings.terminal && !settings.color);
        assert_eq!((settings.rate_limit, settings.count), (Some(5), Some(3)));
        assert_eq!(live.watch.run.duration, Some(Duration::from_secs(90)));
        assert!(live.watch.run.strict && !live.watch.run.assert_no_drops);
        assert_eq!(live.watch.run.verbose, 2);
    }

    #[test]
    fn sizes_and_moments() {
        for (text, bytes) in
            [("4096", 4096), ("2GiB", 2 << 30), ("2Gi", 2 << 30), ("500MB", 500_000_000), ("1k", 1024)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "GiB", "2 GiB", "-1", "2.5G", "1Zi", "99999999999TiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(Timestamp(1_000_000_000)));
        let now = jiff::Timestamp::now().as_nanosecond();
        let ago = now - moment("5m").unwrap().0;
        assert!((295_000_000_000..=300_000_000_000).contains(&ago), "{ago}");
        assert!(moment("2026-11-20 22:14").is_ok() && moment("2026-11-20").is_ok());
        assert!(moment("yesterday").is_err() && moment("").is_err());
    }

    #[test]
    fn a_recording_is_printed_too_where_a_form_is_asked_for() {
        let record = |line: &[&str]| match parse_line(&[&["record"], line].concat()).unwrap() {
            Command::Record(record) => *record,
            other => panic!("{other:?}"),
        };
        let plain = record(&["-w", "f.parquet", "--port", "22"]);
        assert!(plain.output.is_none() && plain.watch.filter.to_string() == "--port 22");
        assert_eq!((plain.recording.rotate_size, plain.recording.keep), (64 << 20, None));
        let printed = record(&["-w", "folder", "-o", "json", "--keep", "2GiB", "--not", "--port", "22"]);
        assert_eq!(printed.printing().map(|settings| settings.format), Some(Format::Json));
        assert_eq!(
            (printed.recording.keep, printed.watch.filter.to_string()),
            (Some(2 << 30), "--not --port 22".into())
        );
        assert!(record(&["-w", "f", "--json"]).output.is_some());
        refusal(&["record"]);
        refusal(&["replay"]);
        refusal(&["replay", "f", "--first", "1", "--last", "1"]);
        match parse_line(&["replay", "-r", "a", "b", "--since", "1970-01-01T00:00:01Z", "-c", "3"]).unwrap() {
            Command::Replay(replay) => {
                assert_eq!(replay.files, [PathBuf::from("b"), PathBuf::from("a")]);
                assert_eq!(replay.part.since, Some(Timestamp(1_000_000_000)));
                assert_eq!(replay.settings().count, Some(3));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_report_has_a_page_and_a_part() {
        let report = |line: &[&str]| match parse_line(&[&["report"], line].concat()).unwrap() {
            Command::Report(report) => *report,
            other => panic!("{other:?}"),
        };
        let line =
            "a b -w out.html --since 1970-01-01T00:00:01Z --not --port 22 --at 1970-01-01T00:00:09Z --utc";
        let given = report(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(given.files, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!((given.page.write, given.page.rows), (PathBuf::from("out.html"), 1000));
        assert_eq!(
            (given.part.filter.to_string(), given.part.since),
            ("--not --port 22".into(), Some(Timestamp(1_000_000_000)))
        );
        assert_eq!(given.page.at, Some(Timestamp(9_000_000_000)));
        assert_eq!(report(&["a", "-w", "-", "--compare", "0s..1s", "1s.."]).page.compare.len(), 2);
        for line in [
            &["-w", "out.html"][..],
            &["a"],
            &["a", "-w", "o", "--compare", "0s..1s"],
            &["a", "-w", "o", "--at", "2026-01-01", "--compare", "0s..1s", "1s.."],
            &["a", "-w", "o", "--at", "soon"],
            &["a", "-w", "o", "--rows", "1000000"],
        ] {
            refusal(&[&["report"], line].concat());
        }
    }

    fn hist(line: &[&str]) -> Hist {
        match parse_line(&[&["hist"], line].concat()).unwrap() {
            Command::Hist(hist) => *hist,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_histogram_has_filters_keys_and_an_end() {
        let line =
            "--by reason,to-pod,reason --bucket 10s --top 3 -o csv --not --port 22 --for 30s -c 5 --all a b";
        let hist = hist(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(hist.watch.filter.to_string(), "--not --port 22");
        assert!(hist.part.is_all() && hist.part.filter == hist.watch.filter);
        assert_eq!((hist.watch.run.duration, hist.watch.run.count), (Some(Duration::from_secs(30)), Some(5)));
        assert_eq!(hist.files, [PathBuf::from("a"), PathBuf::from("b")]);
        let settings = hist.settings();
        assert_eq!(settings.by, [hist::Key::Reason, hist::Key::ToPod]);
        assert_eq!((settings.bucket, settings.top), (Duration::from_secs(10), Some(3)));
        assert!(settings.format == hist::Format::Csv && settings.all && settings.compare.is_none());
    }

    #[test]
    fn a_histogram_compares_two_windows_and_counts_by_place_without_being_told() {
        let hist = hist(&["--compare", "0s..30s", "30s..60s", "file"]);
        assert!(hist.settings().compare.is_some() && hist.settings().by == [hist::Key::Place]);
        assert_eq!(hist.files, [PathBuf::from("file")]);
        let last = self::hist(&["file", "--last", "3", "--port", "22"]);
        assert_eq!((last.part.last, last.part.filter.to_string()), (Some(3), "--port 22".into()));
        let text = refusal(&["hist", "--last", "3"]);
        assert!(text.contains("are about recordings"), "{text}");
        for line in [
            &["--compare", "0s..30s"][..],
            &["--compare", "30s", "60s"],
            &["--compare", "0s..1s", "1s..2s", "--bucket", "1s"],
            &["--by", "colour"],
            &["--by", ""],
            &["--bucket", "0s"],
            &["--bucket", "1us"],
            &["-o", "wide"],
            &["--json", "-o", "csv"],
        ] {
            refusal(&[&["hist"], line].concat());
        }
        let pointed = refusal(&["hist", "--port", "70000"]);
        assert!(pointed.contains("\n  droptrace hist --port 70000\n"), "{pointed}");
    }

    #[test]
    fn formats_have_their_names() {
        let format = |name| live(&["-o", name]).output.settings_for(false, false, TimeZone::UTC, None).format;
        let names = ["compact", "wide", "json", "jsonl", "iptables"].map(format);
        let expected = [Format::Compact, Format::Wide, Format::Json, Format::Json, Format::Iptables];
        assert_eq!(names, expected);
    }

    #[test]
    fn completions_and_manual_know_the_flags() {
        let script = String::from_utf8(completions(clap_complete::Shell::Bash)).unwrap();
        assert!(script.contains("--from-ip"));
        let page = String::from_utf8(man().unwrap()).unwrap();
        assert!(page.contains("assert\\-no\\-drops") && page.contains("Exit codes"));
        assert!(matches!(parse_line(&["completions", "zsh"]), Ok(Command::Completions(_))));
        let doctor = |line: &[&str]| match parse_line(line) {
            Ok(Command::Doctor(settings)) => *settings,
            other => panic!("{other:?}"),
        };
        let plain = doctor(&["doctor"]);
        assert_eq!((plain.self_test, plain.probes, plain.format), (false, false, doctor::Format::Text));
        assert!(plain.names.api.is_some());
        assert_eq!(doctor(&["doctor", "--lang", "zh", "--json"]).language, Language::Chinese);
        assert_eq!(doctor(&["doctor", "--json"]).language, Language::English);
        let all = doctor(&[
            "doctor",
            "--self-test",
            "--json",
            "--offline",
            "--inventory",
            "f",
            "--probes",
            "always",
        ]);
        assert_eq!((all.self_test, all.probes, all.format), (true, true, doctor::Format::Json));
        assert!(all.names.api.is_none() && all.names.files.len() == 1);
        assert!(matches!(parse_line(&["schema"]), Ok(Command::Schema)));
        assert!(matches!(parse_line(&["man"]), Ok(Command::Man)));
    }
}
