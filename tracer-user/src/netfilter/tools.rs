//! Asks the node's own tools (iptables-save, nft) for the text of rules, in the network namespace where the rules are.
//!
//! Asking changes nothing: a tool runs with a few capabilities only, is not run where it or the kernel would have to load
//! a module or create a table to answer, and is killed if it takes too long or prints too much.

use std::env;
use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::model::Family;
use super::netns;
use crate::output::escape;

/// Which rules' text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// A table of iptables-legacy, as `iptables-legacy-save -t TABLE` prints it.
    LegacyTable {
        /// IPv4 or IPv6.
        family: Family,
        /// Its name.
        table: &'a str,
    },
    /// A table of iptables-nft, as `iptables-nft-save -t TABLE` prints it.
    IptablesNftTable {
        /// IPv4 or IPv6.
        family: Family,
        /// Its name.
        table: &'a str,
    },
    /// As [`Self::LegacyTable`] with counters: `iptables-legacy-save -c -t TABLE`.
    LegacyCounters {
        /// IPv4 or IPv6.
        family: Family,
        /// Its name.
        table: &'a str,
    },
    /// As [`Self::IptablesNftTable`] with counters: `iptables-nft-save -c -t TABLE`.
    IptablesNftCounters {
        /// IPv4 or IPv6.
        family: Family,
        /// Its name.
        table: &'a str,
    },
    /// A table of nf_tables, as `nft -a list table FAMILY TABLE` prints it, or `nft -j list table ...` (libnftables-json(5)).
    NftTable {
        /// The table's family.
        family: Family,
        /// The table's name.
        table: &'a str,
        /// Whether to print JSON.
        json: bool,
    },
    /// All tables of nf_tables without what is in them, as `nft -j list tables` prints them.
    NftTables,
    /// A chain of nf_tables, as `nft -a list chain FAMILY TABLE CHAIN` prints it.
    NftChain {
        /// The table's family.
        family: Family,
        /// The table's name.
        table: &'a str,
        /// The chain's name.
        chain: &'a str,
    },
}

/// What a tool may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time, then it is killed.
    pub time: Duration,
    /// Bytes that it prints.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(5), bytes: 64 << 20 }
    }
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Nothing leads to the network namespace.
    #[error("no process, name or mount leads to network namespace {inode}")]
    NoNamespace {
        /// Its inode number.
        inode: u32,
    },
    /// The network namespace can't be entered.
    #[error("cannot enter network namespace {inode}: {error}")]
    Namespace {
        /// Its inode number.
        inode: u32,
        /// Why.
        error: io::Error,
    },
    /// The tool can't be asked for something of this name.
    #[error("{tool} cannot be asked for {name:?}: {why}")]
    Refused {
        /// The tool.
        tool: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The table is not there, and asking for it would create it.
    #[error("there is no legacy table {table:?} in that network namespace")]
    NoTable {
        /// Its name.
        table: String,
    },
    /// The kernel would load a module to answer.
    #[error("{tool} was not run: the kernel would load {module} to answer it")]
    NotLoaded {
        /// The tool.
        tool: &'static str,
        /// The module.
        module: &'static str,
    },
    /// None of the programs that could tell is installed.
    #[error("{program} is not installed")]
    NoTool {
        /// The program that was looked for.
        program: String,
    },
    /// The tool could not be run.
    #[error("cannot run {tool}: {error}")]
    NotRun {
        /// The program.
        tool: Tool,
        /// Why.
        error: io::Error,
    },
    /// The tool failed.
    #[error("{tool} failed ({status}): {words}")]
    Failed {
        /// The program.
        tool: Tool,
        /// How it ended.
        status: ExitStatus,
        /// What it said, escaped and shortened.
        words: String,
    },
    /// The tool took too long.
    #[error("{tool} did not end within {time:?}")]
    TooLong {
        /// The program.
        tool: Tool,
        /// The limit.
        time: Duration,
    },
    /// The tool printed too much.
    #[error("{tool} printed more than {bytes} bytes")]
    TooMuch {
        /// The program.
        tool: Tool,
        /// The limit.
        bytes: usize,
    },
}

impl ToolError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoNamespace { .. } => {
                "it may be gone; else run droptrace in the host's pid and mount namespaces"
            }
            Self::Namespace { .. } => "run droptrace as root, with CAP_SYS_ADMIN",
            Self::NoTool { .. } => {
                "install iptables or nftables where droptrace runs; rules are still named by chain and number"
            }
            Self::NotLoaded { .. } | Self::NoTable { .. } => "the rules may just have been removed",
            Self::TooLong { .. } | Self::TooMuch { .. } => {
                "the rule set is too large to print; rules are still named by chain and number"
            }
            Self::Refused { .. } | Self::NotRun { .. } | Self::Failed { .. } => return None,
        })
    }
}

/// A program, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool(PathBuf);

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0.to_string_lossy()))
    }
}

/// What a tool prints about some rules, run inside the network namespace with this inode number. Bytes that are no UTF-8
/// are replaced. Blocks until the tool has ended, at most twice `limits.time`.
///
/// # Errors
/// See [`ToolError`].
pub fn listing(netns: u32, what: &Wanted<'_>, limits: Limits) -> Result<String, ToolError> {
    let plan = Plan::of(what)?;
    // Opening a NETLINK_NETFILTER socket, or asking a subsystem of it, loads the module that is missing.
    for &(module, symbol) in plan.modules {
        if !is_present(module, symbol) {
            return Err(ToolError::NotLoaded { tool: plan.tool, module });
        }
    }
    let program = plan.program(&directories(), limits)?;
    let namespace = netns::open(netns)
        .map_err(|error| ToolError::Namespace { inode: netns, error })?
        .ok_or(ToolError::NoNamespace { inode: netns })?;
    let mut command = Command::new(&program);
    command.args(&plan.arguments);
    let place = Place { namespace, table: plan.legacy_table };
    let output = place.run(command, Tool(program), limits).map_err(|error| match error {
        Stopped::Entry(error) => ToolError::Namespace { inode: netns, error },
        Stopped::NoTable(table) => ToolError::NoTable { table: escape(&table).into_owned() },
        Stopped::Tool(error) => error,
    })?;
    Ok(String::from_utf8(output)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// The programs that print rules, and whether each is installed.
#[must_use]
pub fn installed() -> Vec<(&'static str, bool)> {
    let directories = directories();
    let wanted = [
        Wanted::LegacyTable { family: Family::Ipv4, table: "filter" },
        Wanted::IptablesNftTable { family: Family::Ipv4, table: "filter" },
        Wanted::NftTables,
    ];
    let plans = wanted.iter().filter_map(|wanted| Plan::of(wanted).ok());
    plans.map(|plan| (plan.tool, plan.program(&directories, Limits::default()).is_ok())).collect()
}

/// How to ask.
struct Plan<'a> {
    tool: &'static str,
    /// Programs, in the order of preference, each with the words that its version has to have.
    programs: &'static [(&'static str, Option<&'static str>)],
    arguments: Vec<&'a str>,
    /// What has to be in the kernel already: a module, and one of its functions, for a kernel that has it built in.
    modules: &'static [(&'static str, &'static str)],
    /// The legacy table that has to be there, and the file that lists those there are.
    legacy_table: Option<(&'a str, &'static CStr)>,
}

const NF_TABLES: (&str, &str) = ("nf_tables", "nft_do_chain");
/// iptables-nft asks it whether the kernel has the matches that it prints, also those that the rule does not use since it
/// is written in nft's own expressions. The kernel then loads a match that is missing. iptables asked the same when it
/// wrote the rule, so only one that was unloaded since, or a rule that nft wrote in a table of iptables, loads anything.
const NFT_COMPAT: (&str, &str) = ("nft_compat", "nft_target_eval_xt");

impl<'a> Plan<'a> {
    fn of(what: &Wanted<'a>) -> Result<Self, ToolError> {
        match *what {
            Wanted::LegacyCounters { family, table } => {
                Ok(Self::of(&Wanted::LegacyTable { family, table })?.with_counters())
            }
            Wanted::IptablesNftCounters { family, table } => {
                Ok(Self::of(&Wanted::IptablesNftTable { family, table })?.with_counters())
            }
            Wanted::NftTable { family, table, json } => {
                check_identifier(table)?;
                let form = if json { "-j" } else { "-a" };
                Ok(Self {
                    tool: "nft",
                    programs: &[("nft", None)],
                    arguments: vec![form, "list", "table", family.nft_name(), table],
                    modules: &[NF_TABLES],
                    legacy_table: None,
                })
            }
            Wanted::NftTables => Ok(Self {
                tool: "nft",
                programs: &[("nft", None)],
                arguments: vec!["-j", "list", "tables"],
                modules: &[NF_TABLES],
                legacy_table: None,
            }),
            Wanted::LegacyTable { family, table } => {
                check_table("iptables-legacy-save", table)?;
                let six = is_ipv6("iptables-legacy-save", family)?;
                Ok(Self {
                    tool: "iptables-legacy-save",
                    programs: if six {
                        &[("ip6tables-legacy-save", None), ("ip6tables-save", Some("(legacy)"))]
                    } else {
                        &[("iptables-legacy-save", None), ("iptables-save", Some("(legacy)"))]
                    },
                    arguments: vec!["-t", table],
                    modules: &[],
                    legacy_table: Some((
                        table,
                        if six {
                            c"/proc/self/net/ip6_tables_names"
                        } else {
                            c"/proc/self/net/ip_tables_names"
                        },
                    )),
                })
            }
            Wanted::IptablesNftTable { family, table } => {
                check_table("iptables-nft-save", table)?;
                let six = is_ipv6("iptables-nft-save", family)?;
                Ok(Self {
                    tool: "iptables-nft-save",
                    programs: if six {
                        &[("ip6tables-nft-save", None), ("ip6tables-save", Some("(nf_tables)"))]
                    } else {
                        &[("iptables-nft-save", None), ("iptables-save", Some("(nf_tables)"))]
                    },
                    arguments: vec!["-t", table],
                    modules: &[NF_TABLES, NFT_COMPAT],
                    legacy_table: None,
                })
            }
            Wanted::NftChain { family, table, chain } => {
                check_identifier(table)?;
                check_identifier(chain)?;
                Ok(Self {
                    tool: "nft",
                    programs: &[("nft", None)],
                    arguments: vec!["-a", "list", "chain", family.nft_name(), table, chain],
                    modules: &[NF_TABLES],
                    legacy_table: None,
                })
            }
        }
    }

    fn with_counters(mut self) -> Self {
        self.arguments.push("-c");
        self
    }

    /// The first of the programs that is installed and of the right kind.
    fn program(&self, directories: &[PathBuf], limits: Limits) -> Result<PathBuf, ToolError> {
        for &(name, version) in self.programs {
            let Some(path) = find(name, directories) else { continue };
            match version {
                None => return Ok(path),
                Some(words) if says_version(&path, words, limits) => return Ok(path),
                Some(_) => {}
            }
        }
        let program = self.programs.first().map_or(self.tool, |&(name, _)| name).to_owned();
        Err(ToolError::NoTool { program })
    }
}

fn is_ipv6(tool: &'static str, family: Family) -> Result<bool, ToolError> {
    match family {
        Family::Ipv4 => Ok(false),
        Family::Ipv6 => Ok(true),
        other => {
            let name = other.name().to_owned();
            Err(ToolError::Refused { tool, name, why: "its tables are of IPv4 or IPv6" })
        }
    }
}

/// A table name that iptables takes as the argument of `-t`. XT_TABLE_MAXNAMELEN, with a final 0, is 32
/// (include/uapi/linux/netfilter/x_tables.h).
fn check_table(tool: &'static str, name: &str) -> Result<(), ToolError> {
    let why = if name.is_empty() || name.len() >= 32 {
        "a table's name has 1 to 31 bytes"
    } else if !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-.".contains(&c)) || name.starts_with('-')
    {
        "it is not the name of a table of iptables"
    } else {
        return Ok(());
    };
    Err(ToolError::Refused { tool, name: escape(name).into_owned(), why })
}

/// A name that is one word of nft's language, since nft parses its arguments: its scanner's `string`
/// (src/scanner.l of nftables). NFT_NAME_MAXLEN, with a final 0, is 256 (include/uapi/linux/netfilter/nf_tables.h).
fn check_identifier(name: &str) -> Result<(), ToolError> {
    let why = if name.is_empty() || name.len() >= 256 {
        "a name has 1 to 255 bytes"
    } else if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '.')
        || !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"/-_.".contains(&c))
    {
        "it is not a word of nft's language"
    } else {
        return Ok(());
    };
    let shown = name.chars().take(256).collect::<String>();
    Err(ToolError::Refused { tool: "nft", name: escape(&shown).into_owned(), why })
}

/// Where programs are: the absolute directories of PATH, and those that a service's PATH may lack.
fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .collect()
}

fn find(name: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    let can_run = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    directories.iter().map(|directory| directory.join(name)).find(can_run)
}

/// Whether a program's `--version` has some words. Any nft variant opens a netfilter socket first, which may load a
/// module, so one that is a link to it is not asked whether it is the legacy one.
fn says_version(path: &Path, words: &str, limits: Limits) -> bool {
    let real = fs::canonicalize(path).unwrap_or_default();
    let is_nft = real.file_name().is_some_and(|name| name.to_string_lossy().contains("nft"));
    if words == "(legacy)" && is_nft {
        return false;
    }
    let mut command = Command::new(path);
    command.arg("--version");
    // SAFETY: confine only makes system calls.
    unsafe { command.pre_exec(confine) };
    run(command, Tool(path.to_owned()), limits)
        .is_ok_and(|output| String::from_utf8_lossy(&output).contains(words))
}

/// Whether a part of the kernel is there already: loaded, built in (then its functions are among the kernel's symbols),
/// or impossible to load since this kernel has no modules.
fn is_present(module: &str, symbol: &str) -> bool {
    let loaded = match fs::read_to_string("/proc/modules") {
        Ok(modules) => is_loaded(&modules, module),
        // Without the file the kernel has no modules, unless it is all of /proc that is missing.
        Err(error) => error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self").exists(),
    };
    loaded || File::open("/proc/kallsyms").is_ok_and(|symbols| has_symbol(BufReader::new(symbols), symbol))
}

/// In the text of /proc/modules (proc_modules(5)): `nf_tables 385024 1234 nft_compat, Live 0x0`.
fn is_loaded(modules: &str, module: &str) -> bool {
    modules.lines().any(|line| line.split(' ').next() == Some(module) && line.contains(" Live "))
}

/// In the text of /proc/kallsyms: `ffffffff81f653d0 T nft_do_chain`.
fn has_symbol(symbols: impl BufRead, symbol: &str) -> bool {
    symbols.lines().map_while(Result::ok).any(|line| line.split_ascii_whitespace().nth(2) == Some(symbol))
}

/// Where a tool runs.
struct Place<'a> {
    namespace: File,
    table: Option<(&'a str, &'static CStr)>,
}

/// Why a tool did not print.
enum Stopped {
    Entry(io::Error),
    NoTable(String),
    Tool(ToolError),
}

/// What the child says when the legacy table is not there: an error that neither setns nor execve has.
const NO_TABLE: i32 = libc::ENODATA;
/// The same when it could not enter the network namespace; setns has other errors, and this keeps them from being taken
/// for those of execve.
const ENTRY: i32 = 1 << 16;

impl Place<'_> {
    /// Runs a command inside the network namespace; this process does not enter it.
    fn run(self, mut command: Command, tool: Tool, limits: Limits) -> Result<Vec<u8>, Stopped> {
        let namespace = self.namespace.as_raw_fd();
        let table = self.table.map(|(name, file)| (name.to_owned(), file));
        let missing = table.as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
        let prepare = move || {
            enter(namespace)?;
            if let Some((name, file)) = &table
                && !is_listed(file, name.as_bytes())?
            {
                return Err(io::Error::from_raw_os_error(NO_TABLE));
            }
            confine()
        };
        // SAFETY: between fork and exec, prepare only makes system calls and compares bytes on the stack.
        unsafe { command.pre_exec(prepare) };
        let started = start(command);
        // The child has its own by now.
        drop(self.namespace);
        let child = started.map_err(|error| match error.raw_os_error() {
            Some(NO_TABLE) => Stopped::NoTable(missing),
            Some(code) if code >= ENTRY => Stopped::Entry(io::Error::from_raw_os_error(code - ENTRY)),
            _ => Stopped::Tool(ToolError::NotRun { tool: tool.clone(), error }),
        })?;
        collect(child, tool, limits).map_err(Stopped::Tool)
    }
}

/// Moves the calling process, which has one thread, to a network namespace.
fn enter(namespace: RawFd) -> io::Result<()> {
    // SAFETY: a system call with plain numbers; the descriptor is open.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } == 0 {
        return Ok(());
    }
    let code = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    Err(io::Error::from_raw_os_error(ENTRY + code))
}

/// Whether a file lists a table, a name a line (xt_table_seq_ops, net/netfilter/x_tables.c). Allocates nothing.
fn is_listed(file: &CStr, table: &[u8]) -> io::Result<bool> {
    // Names are shorter than 32 bytes, and there are five tables.
    let mut names = [0; 4096];
    // SAFETY: the path ends in a 0.
    let fd = unsafe { libc::open(file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        // No such file: no legacy tables at all.
        return if error.raw_os_error() == Some(libc::ENOENT) { Ok(false) } else { Err(error) };
    }
    let mut end = 0;
    while let Some(room) = names.get_mut(end..).filter(|room| !room.is_empty()) {
        // SAFETY: room is writable for its length.
        let count = unsafe { libc::read(fd, room.as_mut_ptr().cast(), room.len()) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => end += count,
            _ => break,
        }
    }
    // SAFETY: the descriptor is ours, and not used again.
    unsafe { libc::close(fd) };
    Ok(names.get(..end).is_some_and(|names| names.split(|&c| c == b'\n').any(|name| name == table)))
}

/// Leaves the calling process only what it takes to read rules, and lets it die with its parent. Above all it loses
/// CAP_SYS_MODULE: iptables runs modprobe.
#[expect(clippy::unnecessary_wraps, reason = "as pre_exec wants it")]
fn confine() -> io::Result<()> {
    /// include/uapi/linux/capability.h: CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_NET_RAW.
    const KEPT: [libc::c_ulong; 3] = [2, 12, 13];
    for capability in (0..64).filter(|capability| !KEPT.contains(capability)) {
        // One that does not exist is refused; without CAP_SETPCAP all are, and then there is little to lose.
        // SAFETY: a system call with plain numbers.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: as above.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) };
    Ok(())
}

fn run(command: Command, tool: Tool, limits: Limits) -> Result<Vec<u8>, ToolError> {
    let child = start(command).map_err(|error| ToolError::NotRun { tool: tool.clone(), error })?;
    collect(child, tool, limits)
}

fn start(mut command: Command) -> io::Result<Running> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that what it starts can be killed with it.
    command.env("LC_ALL", "C").current_dir("/").process_group(0).spawn().map(Running)
}

/// A child that is killed, with its group, and reaped when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait()
            && let Ok(group) = libc::pid_t::try_from(self.0.id())
        {
            // SAFETY: a system call with plain numbers; the child is not reaped, so the number is still its own.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        // It has been killed or has ended; a child that was reaped is not waited for again.
        drop(self.0.wait());
    }
}

/// What a child prints until it ends.
fn collect(mut running: Running, tool: Tool, limits: Limits) -> Result<Vec<u8>, ToolError> {
    /// Bytes of what it says on standard error that an error shows.
    const WORDS: usize = 512;
    let deadline = Instant::now() + limits.time;
    let not_run = |error| ToolError::NotRun { tool: tool.clone(), error };
    let too_long = || ToolError::TooLong { tool: tool.clone(), time: limits.time };
    let mut stdout = running.0.stdout.take();
    let mut stderr = running.0.stderr.take();
    let (mut output, mut words) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    while stdout.is_some() || stderr.is_some() {
        // A negative descriptor is passed over.
        let fds =
            [stdout.as_ref().map_or(-1, AsRawFd::as_raw_fd), stderr.as_ref().map_or(-1, AsRawFd::as_raw_fd)];
        let [out_ready, err_ready] = ready(fds, deadline).map_err(not_run)?.ok_or_else(too_long)?;
        if out_ready && read_some(&mut stdout, &mut buffer, &mut output, usize::MAX).map_err(not_run)? {
            stdout = None;
        }
        if err_ready && read_some(&mut stderr, &mut buffer, &mut words, WORDS).map_err(not_run)? {
            stderr = None;
        }
        if output.len() > limits.bytes {
            return Err(ToolError::TooMuch { tool, bytes: limits.bytes });
        }
    }
    let status = loop {
        if let Some(status) = running.0.try_wait().map_err(not_run)? {
            break status;
        }
        if Instant::now() >= deadline {
            return Err(too_long());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if status.success() {
        // It may be kept for long.
        output.shrink_to_fit();
        return Ok(output);
    }
    let words = escape(String::from_utf8_lossy(&words).trim()).into_owned();
    Err(ToolError::Failed { tool, status, words })
}

/// Which of two descriptors can be read or have ended. None after the deadline.
fn ready(fds: [RawFd; 2], deadline: Instant) -> io::Result<Option<[bool; 2]>> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let millis = libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX).saturating_add(1);
        // SAFETY: polled is an array of two entries.
        let count = unsafe { libc::poll(polled.as_mut_ptr(), 2, millis) };
        if count > 0 {
            return Ok(Some(polled.map(|polled| polled.revents != 0)));
        }
        let error = io::Error::last_os_error();
        if count < 0 && error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Reads once, keeps what fits within `most`. Whether it was the end.
fn read_some(
    from: &mut Option<impl Read>,
    buffer: &mut [u8],
    kept: &mut Vec<u8>,
    most: usize,
) -> io::Result<bool> {
    let Some(from) = from else { return Ok(true) };
    let count = match from.read(buffer) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
        other => other?,
    };
    let room = most.saturating_sub(kept.len());
    kept.extend_from_slice(buffer.get(..count.min(room)).unwrap_or_default());
    Ok(count == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limits: Limits) -> Result<Vec<u8>, ToolError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, Tool("/bin/sh".into()), limits)
    }

    #[test]
    fn output_is_collected_and_failure_told_with_its_words() {
        let limits = Limits::default();
        assert_eq!(shell("echo a; echo b", limits).unwrap(), b"a\nb\n");
        let error = shell("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 3", limits).unwrap_err();
        let ToolError::Failed { status, words, .. } = error else { panic!("{error}") };
        assert_eq!((status.code(), words), (Some(3), "x".repeat(512)));
        let error = shell("printf 'no\\033[2J such' >&2; exit 1", limits).unwrap_err().to_string();
        assert!(error.contains("such") && !error.contains('\x1b'), "{error}");
        // Nothing is read from our standard input.
        assert_eq!(shell("cat; echo end", limits).unwrap(), b"end\n");
    }

    #[test]
    fn time_and_bytes_are_bounded_also_by_what_it_starts() {
        let limits = Limits { time: Duration::from_millis(300), bytes: 1000 };
        let began = Instant::now();
        assert!(matches!(shell("sleep 20 & sleep 20", limits), Err(ToolError::TooLong { .. })));
        assert!(matches!(shell("exec >&- 2>&-; sleep 20", limits), Err(ToolError::TooLong { .. })));
        assert!(matches!(shell("while :; do echo xxxxxxxx; done", limits), Err(ToolError::TooMuch { .. })));
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(shell("head -c 1000 /dev/zero", limits).unwrap().len(), 1000);
        assert!(matches!(shell("head -c 1001 /dev/zero", limits), Err(ToolError::TooMuch { .. })));
    }

    #[test]
    fn names_that_a_tool_would_not_take_as_names_are_refused() {
        let chain = |chain| {
            Plan::of(&Wanted::NftChain { family: Family::Inet, table: "t", chain }).map(|plan| plan.arguments)
        };
        assert_eq!(
            chain("service-WUZF62MY-shop/web.dual/tcp/http").unwrap(),
            ["-a", "list", "chain", "inet", "t", "service-WUZF62MY-shop/web.dual/tcp/http"]
        );
        let long = "x".repeat(256);
        for name in ["", "-f", "a b", "a;", "a\n", "\"a\"", "4", "$x", "@x", "{", "a#", "é", "*", &long] {
            assert!(matches!(chain(name), Err(ToolError::Refused { .. })), "{name}");
        }
        assert!(chain(&long[1..]).is_ok());
        let table = |family, table| Plan::of(&Wanted::LegacyTable { family, table });
        for name in ["", "-t", "--help", "a b", "a/b", &long[..32]] {
            assert!(matches!(table(Family::Ipv4, name), Err(ToolError::Refused { .. })), "{name}");
        }
        assert!(table(Family::Ipv6, "filter").is_ok());
        assert!(matches!(table(Family::Inet, "filter"), Err(ToolError::Refused { .. })));
    }

    #[test]
    fn the_program_of_the_right_kind_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().to_owned();
        let install = |name: &str, version: &str| {
            let path = directory.join(name);
            fs::write(&path, format!("#!/bin/sh\necho '{name} v1.8.9 {version}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let directories = [directory.join("missing"), directory.clone()];
        let program = |what: Wanted<'_>| Plan::of(&what).unwrap().program(&directories, Limits::default());
        let legacy = Wanted::LegacyTable { family: Family::Ipv4, table: "filter" };
        let nft = Wanted::IptablesNftTable { family: Family::Ipv4, table: "filter" };
        assert!(
            matches!(program(legacy), Err(ToolError::NoTool { program }) if program == "iptables-legacy-save")
        );
        install("iptables-save", "(nf_tables)");
        assert!(matches!(program(legacy), Err(ToolError::NoTool { .. })));
        assert_eq!(program(nft).unwrap(), directory.join("iptables-save"));
        install("iptables-save", "(legacy)");
        assert_eq!(program(legacy).unwrap(), directory.join("iptables-save"));
        assert!(matches!(program(nft), Err(ToolError::NoTool { .. })));
        install("iptables-nft-save", "");
        assert_eq!(program(nft).unwrap(), directory.join("iptables-nft-save"));
        // A file that can't be run is no program.
        fs::set_permissions(directory.join("iptables-nft-save"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(program(nft), Err(ToolError::NoTool { .. })));
    }

    #[test]
    fn a_part_of_the_kernel_is_there_if_loaded_or_built_in() {
        let modules = "nf_tables 385024 84 nft_compat,nft_ct, Live 0x0\nnft_compat 20480 2 - Unloading 0x0\n";
        assert!(is_loaded(modules, "nf_tables"));
        assert!(!is_loaded(modules, "nft_compat"));
        assert!(!is_loaded(modules, "nf"));
        let symbols = "ffffffff81f653d0 T nft_do_chain\nffffffffc0000000 t nft_x\t[nft_compat]\n";
        assert!(has_symbol(symbols.as_bytes(), "nft_do_chain"));
        assert!(has_symbol(symbols.as_bytes(), "nft_x"));
        assert!(!has_symbol(symbols.as_bytes(), "nft_do"));
    }

    #[test]
    fn a_legacy_table_is_looked_for_by_its_whole_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "nat\nfilter\n").unwrap();
        let path = std::ffi::CString::new(file.path().to_str().unwrap()).unwrap();
        assert!(is_listed(&path, b"filter").unwrap());
        assert!(is_listed(&path, b"nat").unwrap());
        assert!(!is_listed(&path, b"na").unwrap());
        assert!(!is_listed(&path, b"raw").unwrap());
        assert!(!is_listed(c"/proc/self/net/no_such_names", b"filter").unwrap());
    }

    #[test]
    fn a_namespace_that_nothing_leads_to() {
        // nf_tables may be absent where this runs, so through a tool that needs no module.
        let wanted = Wanted::LegacyTable { family: Family::Ipv4, table: "filter" };
        let error = listing(1, &wanted, Limits::default()).unwrap_err();
        assert!(matches!(error, ToolError::NoNamespace { inode: 1 } | ToolError::NoTool { .. }), "{error}");
    }
}
