//! The kernel's own tracing of packets through rules: events of nf_tables as `nft monitor trace` prints them, and the lines of
//! iptables-legacy's TRACE in the kernel's log. Both follow packets whose `nf_trace` bit is set: a table of our own does that, so
//! that no rule of the tables under test gets another number.

use super::listing::Listed;
use super::namespace::Namespace;
use super::packet;
use super::patience;
use super::topology::{Family, Routed};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The table that sets the bit.
const TABLE: &str = "traced";
/// A packet to this port is dropped there: when its event has come, those of all packets before it have.
const MARKER: u16 = 19;

/// Makes the kernel trace all packets of a network namespace.
///
/// # Errors
/// When nft refuses the table.
pub fn trace_all(netns: &Namespace) -> Result<()> {
    let rules = format!(
        "table inet {TABLE} {{\n\
         chain in {{\ntype filter hook prerouting priority -350\nmeta nftrace set 1\nudp dport {MARKER} drop\n}}\n\
         chain out {{\ntype filter hook output priority -350\nmeta nftrace set 1\n}}\n}}\n"
    );
    netns.feed("nft -f -", &rules).map(drop)
}

/// A packet's ends, as it came: ports are 0 where it has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Where it comes from.
    pub source: (IpAddr, u16),
    /// Where it goes.
    pub destination: (IpAddr, u16),
}

/// What of a chain a packet met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A rule.
    Rule,
    /// The end of a chain that was jumped to.
    Return,
    /// A base chain's policy.
    Policy,
}

/// One thing that a packet met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Which.
    pub what: What,
    /// The rule's number; of a chain's end one more than the last rule has.
    pub number: u64,
}

/// A packet, and what it met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Its ends.
    pub ends: Ends,
    /// In order.
    pub met: Vec<Met>,
    /// Another one looked the same: which of them met what is not sure.
    pub is_twin: bool,
}

/// `nft monitor trace`, in the background.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    /// Starts it in the router, whose packets are [traced](trace_all), and waits until it tells of them.
    ///
    /// # Errors
    /// When it can't be started, or says nothing.
    pub fn start(routed: &Routed, family: Family) -> Result<Self> {
        let mut command = routed.router.command("nft -a monitor trace")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start nft monitor trace")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|it| Box::new(it) as Box<dyn Read + Send>),
            child.stderr.take().map(|it| Box::new(it) as Box<dyn Read + Send>),
        ];
        for output in outputs.into_iter().flatten() {
            let lines = Arc::clone(&lines);
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
        }
        let monitor = Self { child, lines };
        let deadline = Instant::now() + patience();
        while monitor.wait_for_marker(routed, family, Duration::from_millis(100)).is_none() {
            ensure!(Instant::now() < deadline, "nft monitor trace says nothing");
        }
        // Markers that were sent meanwhile.
        let _ = monitor.lines(routed, family)?;
        Ok(monitor)
    }

    fn wait_for_marker(&self, routed: &Routed, family: Family, time: Duration) -> Option<Vec<String>> {
        let (from, to) = (routed.client.port(family, MARKER), routed.near.port(family, MARKER));
        routed.client.inject(&[packet::udp(from, to, b"marker")]).ok()?;
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines
                .iter()
                .any(|line| line.contains(&format!(" {TABLE} in ")) && line.contains("verdict drop"))
            {
                return Some(std::mem::take(&mut *lines));
            }
            drop(lines);
            thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// What it has printed of the packets until now.
    ///
    /// # Errors
    /// When it lost events, or says nothing more.
    pub fn lines(&self, routed: &Routed, family: Family) -> Result<Vec<String>> {
        let lines =
            self.wait_for_marker(routed, family, patience()).context("nft monitor trace is silent")?;
        let other = lines.iter().find(|line| !line.starts_with("trace id "));
        ensure!(other.is_none(), "nft monitor trace: {other:?}");
        Ok(lines)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The packets in what `nft monitor trace` printed, by the rules' handles in a listing. That a packet came to the end of a chain
/// is not told by all kernels, and left out.
///
/// # Errors
/// When a line isn't understood, or names a rule that is not listed.
pub fn nft(lines: &[String], listed: &[Listed]) -> Result<Vec<Traced>> {
    let mut traced: Vec<Traced> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for line in lines {
        let words: Vec<&str> = line.splitn(8, ' ').collect();
        let &["trace", "id", id, family, table, chain, kind, rest] = words.as_slice() else {
            bail!("not understood: {line}")
        };
        if table == TABLE {
            if kind == "packet:" {
                traced.push(Traced { ends: ends_of_event(line)?, met: Vec::new(), is_twin: false });
                open.insert(id, traced.len() - 1);
            }
            continue;
        }
        let of_chain = |rule: &&Listed| (&*rule.family, &*rule.table, &*rule.chain) == (family, table, chain);
        let (what, number) = match kind {
            "rule" | "unknown" => {
                let handle = rest.rsplit_once("# handle ").or_else(|| rest.split_once("rule handle "));
                let handle: Option<u64> = handle.and_then(|(_, it)| it.split(' ').next()?.parse().ok());
                let rule = listed.iter().filter(of_chain).find(|rule| rule.handle == handle);
                (What::Rule, rule.with_context(|| format!("of no rule that is listed: {line}"))?.number)
            }
            "policy" => (What::Policy, listed.iter().filter(of_chain).count() as u64 + 1),
            "packet:" | "verdict" => continue,
            _ => bail!("not understood: {line}"),
        };
        let packet = open.get(id).and_then(|&at| traced.get_mut(at));
        let met = Met { table: table.to_owned(), chain: chain.to_owned(), what, number };
        packet
            .with_context(|| format!("of a packet that was not traced from the start: {line}"))?
            .met
            .push(met);
    }
    traced.retain(|packet| packet.ends.destination.1 != MARKER);
    Ok(traced)
}

fn ends_of_event(line: &str) -> Result<Ends> {
    let after = |key: &str| line.split_once(key).and_then(|(_, rest)| rest.split(' ').next());
    let address = |end: &str| after(&format!(" ip {end} ")).or_else(|| after(&format!(" ip6 {end} ")));
    let port = |end: &str| {
        let port = after(&format!(" udp {end} ")).or_else(|| after(&format!(" tcp {end} ")));
        port.map_or(Ok(0), |port| port.parse().with_context(|| format!("port {port}")))
    };
    let end = |of: &str, at: &str| -> Result<(IpAddr, u16)> {
        let address = address(of).with_context(|| format!("no {of} in {line}"))?;
        Ok((address.parse()?, port(at)?))
    };
    Ok(Ends { source: end("saddr", "sport")?, destination: end("daddr", "dport")? })
}

/// The kernel's log, with what the kernel logs in network namespaces other than the first: while this lives.
#[derive(Debug)]
pub struct Log {
    file: File,
    before: Vec<(&'static str, String)>,
}

/// Sysctls of the whole machine: log also what happens in network namespaces, and keep it off the console, which may be slow.
const LOGGING: [(&str, &str); 2] = [("net/netfilter/nf_log_all_netns", "1"), ("kernel/printk", "1")];

impl Log {
    /// Opens it at its end.
    ///
    /// # Errors
    /// When there is no log, or netfilter doesn't log in network namespaces.
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let mut file = file.context("open /dev/kmsg")?;
        file.seek(SeekFrom::End(0)).context("seek in /dev/kmsg")?;
        let mut log = Self { file, before: Vec::new() };
        for (key, value) in LOGGING {
            let path = format!("/proc/sys/{key}");
            let before = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            fs::write(&path, value).with_context(|| format!("write {path}"))?;
            log.before.push((key, before));
        }
        Ok(log)
    }

    /// The lines of TRACE since the last time.
    ///
    /// # Errors
    /// When some were overwritten.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let text = text.split_once(';').map_or("", |(_, text)| text);
                    lines.extend(
                        text.lines().next().filter(|it| it.starts_with("TRACE: ")).map(str::to_owned),
                    );
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                Err(error) => return Err(error).context("read /dev/kmsg"),
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        for (key, before) in &self.before {
            let _ = fs::write(format!("/proc/sys/{key}"), before.trim());
        }
    }
}

/// The packets in lines of TRACE. Each must come to the raw table first. `rules` says how many rules a chain has: a rule without
/// matches is logged as if it were the chain's end.
///
/// # Errors
/// When a line isn't understood.
pub fn log(lines: &[String], rules: &dyn Fn(&str, &str) -> u64) -> Result<Vec<Traced>> {
    let mut traced: Vec<Traced> = Vec::new();
    let mut open: HashMap<String, usize> = HashMap::new();
    for line in lines {
        let met = met_in_log(line, rules).with_context(|| format!("not understood: {line}"))?;
        let identity = identity(line);
        let known = open.get(&identity).copied();
        // Twins: the second comes to the raw table once more.
        let is_new = known.and_then(|at| traced.get(at)?.met.last()).is_none_or(|last| {
            let is_back = last.chain == met.chain && met.number <= last.number
                || ["PREROUTING", "OUTPUT"].contains(&&*met.chain)
                    && traced.get(known.unwrap_or_default()).is_some_and(|it| it.met[0].chain != met.chain);
            met.table == "raw" && (last.table != "raw" || last.what == What::Policy || is_back)
        });
        let at = match known {
            Some(at) if !is_new => at,
            _ => {
                if let Some(other) = known.and_then(|at| traced.get_mut(at)) {
                    other.is_twin = true;
                }
                let is_twin = known.is_some();
                traced.push(Traced { ends: ends_in_log(line)?, met: Vec::new(), is_twin });
                open.insert(identity, traced.len() - 1);
                traced.len() - 1
            }
        };
        traced[at].met.push(met);
    }
    Ok(traced)
}

fn met_in_log(line: &str, rules: &dyn Fn(&str, &str) -> u64) -> Option<Met> {
    let place = line.strip_prefix("TRACE: ")?.split(' ').next()?;
    let mut parts = place.split(':');
    let (table, chain, kind, number) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let number = number.parse().ok()?;
    let what = match kind {
        "rule" => What::Rule,
        _ if number <= rules(table, chain) => What::Rule,
        "return" => What::Return,
        "policy" => What::Policy,
        _ => return None,
    };
    Some(Met { table: table.to_owned(), chain: chain.to_owned(), what, number })
}

/// The words of a line, without the packet that an ICMP error quotes.
fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let own = line.split('[').next().unwrap_or_default();
    own.split(' ').filter_map(|word| word.split_once('='))
}

/// What neither rules nor NAT change of a packet.
fn identity(line: &str) -> String {
    let kept = ["LEN", "ID", "FLOWLBL", "PROTO", "SEQ", "ACK", "TYPE", "CODE"];
    let own = words(line).filter(|(key, _)| kept.contains(key)).map(|(key, value)| format!("{key}={value}"));
    own.collect::<Vec<_>>().join(" ")
}

fn ends_in_log(line: &str) -> Result<Ends> {
    let word = |wanted: &str| words(line).find(|(key, _)| *key == wanted).map(|(_, value)| value);
    let end = |address: &str, port: &str| -> Result<(IpAddr, u16)> {
        let address = word(address).with_context(|| format!("no {address} in {line}"))?;
        Ok((address.parse()?, word(port).unwrap_or("0").parse()?))
    };
    Ok(Ends { source: end("SRC", "SPT")?, destination: end("DST", "DPT")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.trim_start().to_owned()).collect()
    }

    fn brief(traced: &[Traced]) -> Vec<String> {
        let met = |it: &Met| format!("{}:{}:{:?}:{}", it.table, it.chain, it.what, it.number);
        traced.iter().flat_map(|packet| &packet.met).map(met).collect()
    }

    #[test]
    fn events_of_nft_tell_the_rules() -> Result<()> {
        let rule = |chain: &str, number, handle| Listed {
            family: "ip".into(),
            table: "filter".into(),
            chain: chain.into(),
            number,
            handle: Some(handle),
            comment: None,
            packets: None,
            text: String::new(),
        };
        let listed = [rule("FORWARD", 1, 3), rule("U", 1, 4), rule("U", 2, 6)];
        let text = "trace id 5 inet traced in packet: iif \"r0\" ip saddr 10.9.1.1 ip daddr 10.9.2.1 ip ttl 64 udp sport 7 udp dport 9 udp length 9 \n\
            trace id 5 inet traced in rule meta nftrace set 1 # handle 3 (verdict continue)\n\
            trace id 5 ip filter FORWARD packet: iif \"r0\" oif \"r1\" ip saddr 10.9.1.1 ip daddr 10.9.2.5 ip ttl 63\n\
            trace id 5 ip filter FORWARD rule counter packets 2 bytes 168 jump U # handle 3 (verdict jump U)\n\
            trace id 5 ip filter U unknown rule handle 6 (verdict return)\n\
            trace id 5 ip filter U verdict return meta mark 0x00000010 \n\
            trace id 5 ip filter FORWARD policy accept meta mark 0x00000010 \n\
            trace id 6 inet traced in packet: ip saddr 10.9.1.1 ip daddr 10.9.2.1 udp sport 19 udp dport 19\n";
        let traced = nft(&lines(text), &listed)?;
        assert_eq!(traced.len(), 1);
        let ends = Ends { source: ([10, 9, 1, 1].into(), 7), destination: ([10, 9, 2, 1].into(), 9) };
        assert_eq!(traced[0].ends, ends);
        assert_eq!(brief(&traced), ["filter:FORWARD:Rule:1", "filter:U:Rule:2", "filter:FORWARD:Policy:2"]);
        assert!(nft(&lines("trace id 7 ip filter U rule drop # handle 9 (verdict drop)"), &listed).is_err());
        Ok(())
    }

    #[test]
    fn lines_of_trace_tell_the_rules() -> Result<()> {
        let packet = "LEN=84 TTL=64 ID=4026 DF PROTO=ICMP TYPE=8 CODE=0 ID=21956 SEQ=1 ";
        let text = format!(
            "TRACE: raw:PREROUTING:policy:2 IN=r0 OUT= MAC= SRC=10.9.1.1 DST=10.9.2.1 {packet}\n\
             TRACE: filter:FORWARD:policy:1 IN=r0 OUT=r1 SRC=10.9.1.1 DST=10.9.2.7 {packet}MARK=0x10\n\
             TRACE: raw:OUTPUT:policy:1 IN= OUT=r0 SRC=10.9.1.254 DST=10.9.1.1 LEN=112 ID=1 PROTO=ICMP TYPE=3 [SRC=10.9.1.1 DST=10.9.2.1 {packet}]\n\
             TRACE: raw:PREROUTING:policy:2 IN=r0 OUT= MAC= SRC=10.9.1.2 DST=10.9.2.1 {packet}\n"
        );
        let traced = log(&lines(&text), &|table, chain| u64::from((table, chain) != ("raw", "OUTPUT")))?;
        assert_eq!(traced.len(), 3);
        assert_eq!(
            brief(&traced),
            [
                "raw:PREROUTING:Policy:2",
                "filter:FORWARD:Rule:1",
                "raw:OUTPUT:Policy:1",
                "raw:PREROUTING:Policy:2"
            ]
        );
        assert_eq!(traced[2].ends.source.0, IpAddr::from([10, 9, 1, 2]));
        Ok(())
    }
}
