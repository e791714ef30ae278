//! The IPv4 `filter` table of iptables-legacy in the lab (include/uapi/linux/netfilter_ipv4/ip_tables.h,
//! include/uapi/linux/netfilter/x_tables.h). Numbers are in host byte order, addresses in network order.

use super::{Hook, LabError, Policy, TableError, checked_name};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

// 32-bit kernels lay the structures out differently.
const _: () = assert!(size_of::<usize>() == 8);

/// XT_TABLE_MAXNAMELEN, in bytes.
const TABLE_NAME: usize = 32;
/// XT_FUNCTION_MAXNAMELEN, in bytes: of a chain's name with the zero byte at its end.
const CHAIN_NAME: usize = 30;
/// Size of `struct ipt_entry`, in bytes.
const ENTRY: usize = 112;
/// Size of `struct xt_standard_target`, in bytes.
const STANDARD_TARGET: usize = 40;
/// Size of `struct xt_error_target`, in bytes, aligned (XT_ALIGN).
const ERROR_TARGET: usize = 64;
/// Size of `struct ipt_getinfo`, in bytes.
const INFO: usize = 84;
/// Where `num_entries` is in it.
const INFO_ENTRIES: usize = 76;
/// Size of `struct xt_counters`, in bytes.
const COUNTERS: usize = 16;
/// IPT_SO_SET_REPLACE, and IPT_SO_GET_INFO too (IPT_BASE_CTL).
const BASE_CTL: libc::c_int = 64;
/// Most entries that a table in the lab may have had before.
const MAX_OLD_ENTRIES: u32 = 1 << 16;
/// NF_INET_NUMHOOKS
const HOOKS: usize = 5;
/// The hooks of the table `filter`, a bit each.
const VALID_HOOKS: u32 = 1 << Hook::Input as u8 | 1 << Hook::Forward as u8 | 1 << Hook::Output as u8;

/// Verdicts as standard targets have them: `-NF_ACCEPT - 1`, `-NF_DROP - 1`, `XT_RETURN`; a jump is the offset of the
/// entry to go on with.
const ACCEPT: i32 = -2;
const DROP: i32 = -1;
const RETURN: i32 = -5;

/// The table `filter`. The default is what iptables starts with: no rules, and all is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// `INPUT`
    pub input: BuiltIn,
    /// `FORWARD`
    pub forward: BuiltIn,
    /// `OUTPUT`
    pub output: BuiltIn,
    /// The chains that rules may jump to.
    pub chains: Vec<Chain>,
}

/// A chain that a hook calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuiltIn {
    /// Its rules, in order.
    pub rules: Vec<Rule>,
    /// What befalls a packet that gets to its end.
    pub policy: Policy,
}

/// A chain that is reached by jumps only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The destination that it matches; `None`: all packets.
    pub destination: Option<Ipv4Addr>,
    /// What it decides.
    pub verdict: Verdict,
}

/// A rule's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet passes this table.
    Accept,
    /// The packet is dropped.
    Drop,
    /// Back to the chain that jumped here; from a built-in chain, to its policy.
    Return,
    /// To a chain of [`Table::chains`], and back.
    Jump(String),
}

/// A table as the kernel keeps it: rules, policies, and heads of chains, one after another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    count: u32,
    /// Where each hook's chain starts, in bytes.
    hook_entry: [u32; HOOKS],
    /// Where each hook's policy is, in bytes.
    underflow: [u32; HOOKS],
}

impl Table {
    /// Lays the table out.
    ///
    /// # Errors
    /// If a name is not one, or a rule jumps to a chain that is not there.
    pub(super) fn entries(&self) -> Result<Entries, TableError> {
        let starts = self.chain_starts()?;
        let mut entries = Entries::default();
        let built_in =
            [(Hook::Input, &self.input), (Hook::Forward, &self.forward), (Hook::Output, &self.output)];
        for (hook, chain) in built_in {
            entries.hook_entry[hook as usize] = entries.offset()?;
            entries.rules(&chain.rules, &starts)?;
            entries.underflow[hook as usize] = entries.offset()?;
            entries.standard(None, if chain.policy == Policy::Accept { ACCEPT } else { DROP });
        }
        for chain in &self.chains {
            entries.error(checked_name(&chain.name, CHAIN_NAME - 1)?);
            entries.rules(&chain.rules, &starts)?;
            entries.standard(None, RETURN);
        }
        entries.error("ERROR");
        Ok(entries)
    }

    /// Where the first rule of each chain is, in bytes: what a jump to it names.
    fn chain_starts(&self) -> Result<HashMap<&str, i32>, TableError> {
        let standard = |rules: &[Rule]| (rules.len() + 1) * (ENTRY + STANDARD_TARGET);
        let mut offset: usize =
            [&self.input, &self.forward, &self.output].iter().map(|chain| standard(&chain.rules)).sum();
        let mut starts = HashMap::new();
        for chain in &self.chains {
            let start = offset + ENTRY + ERROR_TARGET;
            let jump = i32::try_from(start).map_err(|_| TableError::TooLarge)?;
            if starts.insert(chain.name.as_str(), jump).is_some() {
                return Err(TableError::SameChain(chain.name.clone()));
            }
            offset = start + standard(&chain.rules);
        }
        Ok(starts)
    }
}

impl Entries {
    /// Where the next entry comes, in bytes.
    fn offset(&self) -> Result<u32, TableError> {
        u32::try_from(self.bytes.len()).map_err(|_| TableError::TooLarge)
    }

    fn rules(&mut self, rules: &[Rule], starts: &HashMap<&str, i32>) -> Result<(), TableError> {
        for rule in rules {
            let verdict = match &rule.verdict {
                Verdict::Accept => ACCEPT,
                Verdict::Drop => DROP,
                Verdict::Return => RETURN,
                Verdict::Jump(chain) => {
                    *starts.get(chain.as_str()).ok_or_else(|| TableError::NoChain(chain.clone()))?
                }
            };
            self.standard(rule.destination, verdict);
        }
        Ok(())
    }

    /// Adds an entry that decides; its target's name is empty (XT_STANDARD_TARGET).
    fn standard(&mut self, destination: Option<Ipv4Addr>, verdict: i32) {
        self.entry(destination, "", STANDARD_TARGET, &verdict.to_ne_bytes());
    }

    /// Adds an entry that no packet may get to: the head of a chain, or the table's end (XT_ERROR_TARGET).
    fn error(&mut self, name: &str) {
        self.entry(None, "ERROR", ERROR_TARGET, name.as_bytes());
    }

    /// Adds a `struct ipt_entry` with its target (`struct xt_entry_target` and `data`) of `size` bytes.
    fn entry(&mut self, destination: Option<Ipv4Addr>, target: &str, size: usize, data: &[u8]) {
        const { assert!(ENTRY + ERROR_TARGET <= 0xffff) };
        let (destination, mask) =
            destination.map_or(([0; 4], [0; 4]), |address| (address.octets(), [255; 4]));
        let start = self.bytes.len();
        // struct ipt_ip: source, destination, and their masks; no interfaces, no protocol, no flags.
        self.bytes.extend([[0; 4], destination, [0; 4], mask].as_flattened());
        self.bytes.resize(start + 88, 0);
        self.bytes.extend((ENTRY as u16).to_ne_bytes()); // target_offset
        self.bytes.extend(((ENTRY + size) as u16).to_ne_bytes()); // next_offset
        // comefrom and the counters
        self.bytes.resize(start + ENTRY, 0);
        self.bytes.extend((size as u16).to_ne_bytes());
        self.bytes.extend(target.as_bytes());
        // The name's 29 bytes and the revision, 0.
        self.bytes.resize(start + ENTRY + 32, 0);
        self.bytes.extend(data);
        self.bytes.resize(start + ENTRY + size, 0);
        self.count += 1;
    }

    /// A `struct ipt_replace`. `counters` is the address where the kernel writes those of the `old_entries` that it
    /// replaces.
    fn replacement(&self, old_entries: u32, counters: u64) -> Result<Vec<u8>, TableError> {
        let mut bytes = b"filter".to_vec();
        bytes.resize(TABLE_NAME, 0);
        for number in [VALID_HOOKS, self.count, self.offset()?]
            .into_iter()
            .chain(self.hook_entry)
            .chain(self.underflow)
            .chain([old_entries])
        {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(counters.to_ne_bytes());
        bytes.extend(&self.bytes);
        Ok(bytes)
    }
}

/// Replaces the table in the network namespace that `socket` was opened in. Without the module iptable_filter this would
/// load it.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn replace(socket: &UdpSocket, entries: &Entries) -> Result<(), LabError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| LabError::Refused { what, source }
    };
    let old_entries = old_entries(socket).map_err(failed("the question about the table filter"))?;
    let mut counters = vec![0_u8; old_entries as usize * COUNTERS];
    let replacement = entries.replacement(old_entries, counters.as_mut_ptr() as u64)?;
    let length = libc::socklen_t::try_from(replacement.len()).map_err(|_| TableError::TooLarge)?;
    // SAFETY: `replacement` is valid for `length`. It names `counters`, where the kernel writes as many counters as it
    // says, which fit; it refuses if it has another number of them.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, BASE_CTL, replacement.as_ptr().cast(), length)
    };
    drop(counters);
    if result == 0 { Ok(()) } else { Err(failed("the table filter")(io::Error::last_os_error())) }
}

/// How many entries the table has: so many counters the kernel wants to give back.
fn old_entries(socket: &UdpSocket) -> io::Result<u32> {
    let mut info = [0_u8; INFO];
    for (to, from) in info.iter_mut().zip(b"filter") {
        *to = *from;
    }
    let mut length = INFO as libc::socklen_t;
    // SAFETY: `info` is valid for reading and writing `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            BASE_CTL,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let count = info.get(INFO_ENTRIES..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_ne_bytes);
    count
        .filter(|count| *count <= MAX_OLD_ENTRIES)
        .ok_or_else(|| io::Error::other("the kernel says that the table has too many entries"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule or a policy, and a head of a chain, in bytes.
    const STANDARD: usize = ENTRY + STANDARD_TARGET;
    const HEAD: usize = ENTRY + ERROR_TARGET;

    fn rule(destination: Option<Ipv4Addr>, verdict: Verdict) -> Rule {
        Rule { destination, verdict }
    }

    fn chain(name: &str, rules: Vec<Rule>) -> Chain {
        Chain { name: name.into(), rules }
    }

    /// INPUT: a drop, a jump to `second`, policy DROP. `first`: nothing. `second`: back.
    fn table() -> Table {
        let drop = rule(Some(Ipv4Addr::new(127, 1, 2, 3)), Verdict::Drop);
        let rules = vec![drop, rule(None, Verdict::Jump("second".into()))];
        Table {
            input: BuiltIn { rules, policy: Policy::Drop },
            chains: vec![chain("first", vec![]), chain("second", vec![rule(None, Verdict::Return)])],
            ..Table::default()
        }
    }

    /// The verdicts of standard targets, and the names in error targets, each with its offset.
    fn walk(entries: &Entries) -> Vec<(usize, Result<i32, String>)> {
        let (mut found, mut start) = (Vec::new(), 0);
        while let Some(entry) = entries.bytes.get(start..).filter(|rest| !rest.is_empty()) {
            let next = usize::from(u16::from_ne_bytes([entry[90], entry[91]]));
            let data = &entry[ENTRY + 32..next];
            let text = |bytes: &[u8]| {
                bytes.iter().take_while(|byte| **byte != 0).map(|byte| *byte as char).collect()
            };
            let target: String = text(&entry[ENTRY + 2..]);
            let standard = target.is_empty().then(|| i32::from_ne_bytes(*data.first_chunk().unwrap()));
            found.push((start, standard.ok_or_else(|| text(data))));
            start += next;
        }
        found
    }

    #[cfg(target_endian = "little")]
    #[test]
    #[rustfmt::skip]
    fn a_replacement_byte_by_byte() {
        let rules = vec![rule(Some(Ipv4Addr::new(127, 1, 2, 3)), Verdict::Drop)];
        let table = Table { output: BuiltIn { rules, policy: Policy::Accept }, ..Table::default() };
        let policy: &[&[u8]] = &[&[0; 88], &[112, 0, 152, 0], &[0; 20], &[40, 0], &[0; 30], &[0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0]];
        let policy = policy.concat();
        let expected: &[&[u8]] = &[
            b"filter", &[0; 26],
            // Valid hooks 1 to 3; 5 entries; 4 * 152 + 176 bytes.
            &[0x0e, 0, 0, 0, 5, 0, 0, 0, 0x10, 0x03, 0, 0],
            // Where chains start (INPUT, FORWARD, OUTPUT in the middle), and where their policies are.
            &[0; 4], &[0, 0, 0, 0], &[152, 0, 0, 0], &[0x30, 1, 0, 0], &[0; 4],
            &[0; 4], &[0, 0, 0, 0], &[152, 0, 0, 0], &[0xc8, 1, 0, 0], &[0; 4],
            // 4 counters go to this address.
            &[4, 0, 0, 0], &[8, 7, 6, 5, 4, 3, 2, 1],
            &policy, &policy,
            &[0, 0, 0, 0, 127, 1, 2, 3, 0, 0, 0, 0, 255, 255, 255, 255], &[0; 72],
            &[112, 0, 152, 0], &[0; 20],
            &[40, 0], &[0; 30], &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &policy,
            &[0; 88], &[112, 0, 176, 0], &[0; 20],
            &[64, 0], b"ERROR", &[0; 25], b"ERROR", &[0; 27],
        ];
        let replacement = table.entries().unwrap().replacement(4, 0x0102_0304_0506_0708).unwrap();
        assert_eq!(replacement, expected.concat());
    }

    #[test]
    fn chains_follow_each_other_and_jumps_lead_behind_heads() {
        let entries = table().entries().unwrap();
        let first = 5 * STANDARD;
        let second = first + HEAD + STANDARD;
        let jump = i32::try_from(second + HEAD).unwrap();
        let verdicts = [DROP, jump, DROP, ACCEPT, ACCEPT].into_iter().enumerate();
        let mut expected: Vec<_> = verdicts.map(|(index, verdict)| (index * STANDARD, Ok(verdict))).collect();
        expected.extend([
            (first, Err("first".into())),
            (first + HEAD, Ok(RETURN)),
            (second, Err("second".into())),
            (second + HEAD, Ok(RETURN)),
            (second + HEAD + STANDARD, Ok(RETURN)),
            (second + HEAD + 2 * STANDARD, Err("ERROR".into())),
        ]);
        assert_eq!(walk(&entries), expected);
        assert_eq!(entries.count as usize, expected.len());
        let at = |index: usize| u32::try_from(index * STANDARD).unwrap();
        assert_eq!(entries.hook_entry, [0, 0, at(3), at(4), 0]);
        assert_eq!(entries.underflow, [0, at(2), at(3), at(4), 0]);
    }

    #[test]
    fn wrong_tables() {
        let outcome = |table: Table| table.entries().map(drop);
        let lost = vec![rule(None, Verdict::Jump("gone".into()))];
        assert_eq!(
            outcome(Table { forward: BuiltIn { rules: lost, ..BuiltIn::default() }, ..table() }),
            Err(TableError::NoChain("gone".into()))
        );
        let twice = vec![chain("a", vec![]), chain("a", vec![])];
        assert_eq!(
            outcome(Table { chains: twice, ..Table::default() }),
            Err(TableError::SameChain("a".into()))
        );
        for (length, fits) in [(29, true), (30, false)] {
            let chains = vec![chain(&"x".repeat(length), vec![])];
            assert_eq!(outcome(Table { chains, ..Table::default() }).is_ok(), fits, "{length}");
        }
    }
}
