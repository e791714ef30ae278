//! What a driver counts of the packets that it or its XDP program dropped: those of its own statistics (`ethtool -S`) that say
//! so by their name. Drivers call them as they like: `rx_queue_0_xdp_drops` (veth), `rx0_xdp_drops` (virtio_net), `rx_xdp_drop`
//! (mlx5).
//!
//! Requests and structures: include/uapi/linux/ethtool.h. All numbers are in the machine's order.

use crate::probe::netlink::{text, word};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// SIOCETHTOOL (include/uapi/linux/sockios.h).
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// ETHTOOL_GSTRINGS, ETHTOOL_GSTATS, ETHTOOL_GSSET_INFO.
const GET_STRINGS: u32 = 0x1b;
const GET_STATS: u32 = 0x1d;
const GET_SET_INFO: u32 = 0x37;
/// ETH_SS_STATS: the string set of statistics.
const STATS: u32 = 1;
/// ETH_GSTRING_LEN
const NAME: usize = 32;
/// Statistics of a device that are looked at. There is room for twice as many: the kernel does not ask how much there is
/// room for, and a device may get more queues between two requests.
const MOST: usize = 8192;

/// The statistics that count a device's XDP drops, with their names; the device is one of this thread's network namespace.
///
/// # Errors
/// When the driver has none, or more than are looked at.
pub fn read(interface: &str) -> io::Result<Vec<(String, u64)>> {
    statistics(interface, is_xdp_drop)
}

/// The statistics that count what a device dropped, whoever dropped it.
///
/// # Errors
/// Likewise.
pub fn drops_of(interface: &str) -> io::Result<Vec<(String, u64)>> {
    statistics(interface, is_drop)
}

fn statistics(interface: &str, is_wanted: fn(&str) -> bool) -> io::Result<Vec<(String, u64)>> {
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // struct ethtool_sset_info: command, reserved, mask u64, then a count for each set of the mask that the device has.
    let mut about = [0; 20];
    put(&mut about, &[GET_SET_INFO, 0, 1 << STATS]);
    ask(&socket, interface, &mut about)?;
    let count = word(&about, 16).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    if count == 0 || count > MOST {
        return Err(io::Error::other(format!("{count} statistics")));
    }
    // struct ethtool_gstrings: command, set, count, the names. struct ethtool_stats: command, count, u64s.
    let mut names = vec![0; 12 + 2 * MOST * NAME];
    put(&mut names, &[GET_STRINGS, STATS, count as u32]);
    ask(&socket, interface, &mut names)?;
    let mut values = vec![0; 8 + 2 * MOST * 8];
    put(&mut values, &[GET_STATS, count as u32]);
    ask(&socket, interface, &mut values)?;
    Ok(wanted(&names, &values, is_wanted))
}

/// The statistics whose names are wanted. Both are the kernel's answers, with its own counts in them.
fn wanted(names: &[u8], values: &[u8], is_wanted: fn(&str) -> bool) -> Vec<(String, u64)> {
    let count =
        |answer: &[u8], at| word(answer, at).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let count_of_both = count(names, 8).min(count(values, 4));
    let names = names.get(12..).unwrap_or_default().as_chunks::<NAME>().0;
    let values = values.get(8..).unwrap_or_default().as_chunks::<8>().0;
    let named = names.iter().map(|name| text(name)).zip(values.iter().copied().map(u64::from_ne_bytes));
    named.take(count_of_both).filter(|(name, _)| is_wanted(name)).collect()
}

fn is_drop(name: &str) -> bool {
    const WORDS: [&str; 8] =
        ["drop", "discard", "missed", "no_buf", "nobuf", "out_of_buffer", "overrun", "no_desc"];
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

fn is_xdp_drop(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // What is sent by XDP_TX and lost there was not dropped by the program.
    name.contains("xdp") && name.contains("drop") && !name.contains("tx")
}

/// Writes numbers to the start of a request.
fn put(request: &mut [u8], numbers: &[u32]) {
    for (to, number) in request.as_chunks_mut().0.iter_mut().zip(numbers) {
        *to = number.to_ne_bytes();
    }
}

/// One request, which the kernel overwrites with its answer.
fn ask(socket: &OwnedFd, interface: &str, request: &mut [u8]) -> io::Result<()> {
    /// struct ifreq (include/uapi/linux/if.h): the name with its NUL byte, and here a pointer.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        data: *mut u8,
        rest: [u8; 16],
    }
    const _: () = assert!(size_of::<Request>() == 40);
    let mut name = [0; libc::IFNAMSIZ];
    let to = name.get_mut(..interface.len()).filter(|to| to.len() < libc::IFNAMSIZ);
    to.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(interface.as_bytes());
    let mut about = Request { name, data: request.as_mut_ptr(), rest: [0; 16] };
    // SAFETY: the request lives through the call. The kernel writes as much as it has of what is asked for, which it does
    // not bound: a number for the set's count, and room for twice the statistics that the device was just said to have.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut about) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_several_drivers() {
        for name in
            ["rx_queue_0_xdp_drops", "rx0_xdp_drops", "rx_xdp_drop", "queue_3_rx_xdp_drop", "XDP_DROP"]
        {
            assert!(is_xdp_drop(name), "{name}");
        }
        for name in ["rx_queue_0_drops", "rx_queue_0_xdp_packets", "tx0_xdp_tx_drops", "xdp_pass", ""] {
            assert!(!is_xdp_drop(name), "{name}");
        }
        for name in ["rx_queue_0_drops", "rx_discards_phy", "rx_missed_errors", "rx_out_of_buffer"] {
            assert!(is_drop(name), "{name}");
        }
        assert!(!is_drop("rx_packets") && !is_drop("rx_cache_full"));
    }

    fn answers(names: &[&str], counts: (u32, u32)) -> (Vec<u8>, Vec<u8>) {
        let mut strings: Vec<u8> = [GET_STRINGS, STATS, counts.0].map(u32::to_ne_bytes).concat();
        let mut values: Vec<u8> = [GET_STATS, counts.1].map(u32::to_ne_bytes).concat();
        for (at, name) in names.iter().enumerate() {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(NAME, 0);
            strings.extend(bytes);
            values.extend((at as u64 + 1).to_ne_bytes());
        }
        (strings, values)
    }

    #[test]
    fn only_as_many_as_both_answers_have() {
        let names = ["peer_ifindex", "rx_queue_0_xdp_drops", "rx_queue_1_xdp_drops"];
        let of = |counts| {
            let (names, values) = answers(&names, counts);
            wanted(&names, &values, is_xdp_drop).into_iter().map(|(_, count)| count).collect::<Vec<_>>()
        };
        assert_eq!(of((3, 3)), [2, 3]);
        assert_eq!(of((3, 2)), [2]);
        assert_eq!(of((u32::MAX, u32::MAX)), [2, 3]);
        assert_eq!(wanted(&[], &[], is_xdp_drop), []);
    }

    #[test]
    fn a_device_that_is_not_there_or_has_none() {
        assert!(read("dt-nowhere").is_err());
        assert!(read("a name that is longer than any").is_err());
        assert!(read("lo").is_err());
    }
}
