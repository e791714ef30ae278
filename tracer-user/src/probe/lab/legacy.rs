//! The IPv4 `filter` table of iptables-legacy in the lab (include/uapi/linux/netfilter_ipv4/ip_tables.h,
//! include/uapi/linux/netfilter/x_tables.h). Numbers are in host byte order, addresses in network order.

use super::{Hook, LabError, TableError};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

// 32-bit kernels lay the structures out differently.
const _: () = assert!(size_of::<usize>() == 8);

/// XT_TABLE_MAXNAMELEN, in bytes.
const TABLE_NAME: usize = 32;
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

/// Verdicts as standard targets have them: `-NF_ACCEPT - 1`, `-NF_DROP - 1`.
const ACCEPT: i32 = -2;
const DROP: i32 = -1;

/// The table `filter`: the destinations that it drops; all else is accepted. The default is what iptables starts with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// In `INPUT`.
    pub input: Vec<Ipv4Addr>,
    /// In `OUTPUT`.
    pub output: Vec<Ipv4Addr>,
}

/// A table as the kernel keeps it: rules and policies, one after another.
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
    /// If it is too large.
    pub(super) fn entries(&self) -> Result<Entries, TableError> {
        let mut entries = Entries::default();
        for (hook, dropped) in
            [(Hook::Input, &self.input[..]), (Hook::Forward, &[]), (Hook::Output, &self.output)]
        {
            entries.hook_entry[hook as usize] = entries.offset()?;
            for destination in dropped {
                entries.standard(Some(*destination), DROP);
            }
            entries.underflow[hook as usize] = entries.offset()?;
            entries.standard(None, ACCEPT);
        }
        entries.end();
        Ok(entries)
    }
}

impl Entries {
    /// Where the next entry comes, in bytes.
    fn offset(&self) -> Result<u32, TableError> {
        u32::try_from(self.bytes.len()).map_err(|_| TableError::TooLarge)
    }

    /// Adds an entry that decides; its target's name is empty (XT_STANDARD_TARGET).
    fn standard(&mut self, destination: Option<Ipv4Addr>, verdict: i32) {
        self.entry(destination, "", STANDARD_TARGET, &verdict.to_ne_bytes());
    }

    /// Adds the table's end, which no packet may get to (XT_ERROR_TARGET).
    fn end(&mut self) {
        self.entry(None, "ERROR", ERROR_TARGET, b"ERROR");
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

    #[cfg(target_endian = "little")]
    #[test]
    #[rustfmt::skip]
    fn a_replacement_byte_by_byte() {
        let table = Table { output: vec![Ipv4Addr::new(127, 1, 2, 3)], ..Table::default() };
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
    fn each_hook_has_its_rules_and_its_policy() {
        let table = Table { input: vec![Ipv4Addr::LOCALHOST; 2], output: vec![Ipv4Addr::LOCALHOST] };
        let entries = table.entries().unwrap();
        let at = |index: usize| u32::try_from(index * (ENTRY + STANDARD_TARGET)).unwrap();
        assert_eq!(entries.hook_entry, [0, 0, at(3), at(4), 0]);
        assert_eq!(entries.underflow, [0, at(2), at(3), at(5), 0]);
        assert_eq!(entries.count, 7, "three rules, three policies, the end");
    }
}
