//! Questions to netlink(7): what the kernel lists of links, tc filters and connections in this thread's network namespace.
//! Only what changes nothing; whether one would load a module is for who asks to know.
//!
//! Headers and attributes are in the machine's byte order (include/uapi/linux/netlink.h, struct nlmsghdr and nlattr).

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// RTM_GETLINK and RTM_GETTFILTER (include/uapi/linux/rtnetlink.h); the answers' types are RTM_NEWLINK and RTM_NEWTFILTER.
pub(crate) const GET_LINK: u16 = 18;
pub(crate) const NEW_LINK: u16 = 16;
pub(crate) const GET_FILTER: u16 = 46;
pub(crate) const NEW_FILTER: u16 = 44;
/// Likewise RTM_GETROUTE, RTM_GETRULE and RTM_GETQDISC.
pub(crate) const GET_ROUTE: u16 = 26;
pub(crate) const NEW_ROUTE: u16 = 24;
pub(crate) const GET_RULE: u16 = 34;
pub(crate) const NEW_RULE: u16 = 32;
pub(crate) const GET_QDISC: u16 = 38;
pub(crate) const NEW_QDISC: u16 = 36;

/// NLM_F_REQUEST
const REQUEST: u16 = 1;
/// NLM_F_REQUEST | NLM_F_DUMP
const DUMP: u16 = 0x301;
/// NLMSG_ERROR and NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Size of struct nlmsghdr: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER, flags in an attribute's type.
const TYPE_FLAGS: u16 = 0xc000;
/// Bytes that are asked for at once: the kernel puts no more into a datagram of a dump.
const DATAGRAM: usize = 32 << 10;
/// Bytes of what rtnetlink lists, and how long that may take.
const LONGEST: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(2);

/// All that rtnetlink(7) lists. `body` follows the header of the request: struct ifinfomsg or tcmsg. What comes back are the
/// bodies of the messages of type `answer`.
///
/// # Errors
/// When the kernel refuses, is silent, or lists too much.
pub(crate) fn list(request: u16, body: &[u8], answer: u16) -> io::Result<Vec<Vec<u8>>> {
    let (mut found, mut read) = (Vec::new(), 0);
    let whole = dump(libc::NETLINK_ROUTE, &message(request, body), answer, PATIENCE, &mut |body| {
        read += body.len();
        found.push(body.to_vec());
        if read > LONGEST { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if whole.is_break() {
        return Err(io::Error::other("the kernel lists more than is read"));
    }
    Ok(found)
}

/// Asks one of netlink's protocols a question that is answered by a dump, and hands on the bodies of the messages of type
/// `answer`. It breaks off when it is told to, or when the time is over; then there may be more.
///
/// # Errors
/// When the kernel refuses, or is silent for that time.
pub(crate) fn dump(
    protocol: libc::c_int,
    question: &[u8],
    answer: u16,
    patience: Duration,
    each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let fd = socket.as_raw_fd();
    let wait = libc::timeval {
        tv_sec: libc::time_t::try_from(patience.as_secs()).unwrap_or(1),
        tv_usec: patience.subsec_micros().into(),
    };
    let size = size_of_val(&wait) as libc::socklen_t;
    let at = (&raw const wait).cast();
    // SAFETY: the option's value lives through the call and has the length that is told.
    if unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, at, size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `question` is valid for its length. Without an address the socket sends to the kernel.
    let sent = unsafe { libc::send(fd, question.as_ptr().cast(), question.len(), 0) };
    if usize::try_from(sent) != Ok(question.len()) {
        return Err(io::Error::last_os_error());
    }
    let end = Instant::now() + patience;
    let mut buffer = vec![0; DATAGRAM];
    while Instant::now() < end {
        // SAFETY: `buffer` is valid for writing its length.
        let received = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        // With MSG_TRUNC the length is the datagram's own.
        let datagram =
            buffer.get(..received).ok_or_else(|| io::Error::other("a message is longer than expected"))?;
        match take(datagram, answer, each)? {
            Took::All => {}
            Took::End => return Ok(ControlFlow::Continue(())),
            Took::Enough => break,
        }
    }
    Ok(ControlFlow::Break(()))
}

/// Asks rtnetlink(7) for one thing, which one message answers: that one's body.
///
/// # Errors
/// What the kernel says, or when it is silent.
pub(crate) fn one(request: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut found = None;
    // The answers' types are the requests' less two.
    let answer = request - 2;
    // It breaks off with the first message: there is one.
    let _ = dump(libc::NETLINK_ROUTE, &flagged(request, REQUEST, body), answer, PATIENCE, &mut |body| {
        found = Some(body.to_vec());
        ControlFlow::Break(())
    })?;
    found.ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// A question that is answered by a dump, as bytes: its type, and what follows the header.
pub(crate) fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    flagged(kind, DUMP, body)
}

fn flagged(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // The sequence number; the port is given by the kernel.
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// How a datagram ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    /// There are more.
    All,
    /// The dump ends with it.
    End,
    /// Who takes them wants no more.
    Enough,
}

/// Takes the messages of a datagram.
///
/// # Errors
/// What the kernel says.
pub(crate) fn take(
    mut datagram: &[u8],
    answer: u16,
    each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<Took> {
    while let (Some(length), Some(kind)) = (word(datagram, 0), half(datagram, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = datagram.get(HEADER..length) else { break };
        match kind {
            DONE => return Ok(Took::End),
            // struct nlmsgerr: the negative error number comes first.
            ERROR => {
                let number = word(body, 0).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(number.saturating_neg()));
            }
            kind if kind == answer && each(body).is_break() => return Ok(Took::Enough),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Took::All)
}

/// The attributes of a message or of an attribute, in order: type without flags, and value. What is cut off is left out.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & !TYPE_FLAGS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// 32 bits in the machine's order.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// 16 bits, likewise.
pub(crate) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A text up to its NUL byte; what is no UTF-8 is replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// An attribute as bytes, padded.
pub(crate) fn encoded(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(datagram: &[u8]) -> (io::Result<Took>, Vec<Vec<u8>>) {
        let mut found = Vec::new();
        let took = take(datagram, NEW_LINK, &mut |body| {
            found.push(body.to_vec());
            ControlFlow::Continue(())
        });
        (took, found)
    }

    #[test]
    fn the_messages_of_a_dump() {
        let datagram = [message(NEW_LINK, b"one!"), message(99, b""), message(NEW_LINK, b"two")].concat();
        // The last one is not padded.
        let (took, found) = taken(&datagram);
        assert_eq!((took.unwrap(), found), (Took::All, vec![b"one!".to_vec(), b"two".to_vec()]));
        assert_eq!(taken(&message(DONE, &[0; 4])).0.unwrap(), Took::End);
        let refused = taken(&message(ERROR, &(-1_i32).to_ne_bytes())).0.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let first = take(&datagram, NEW_LINK, &mut |_| ControlFlow::Break(()));
        assert_eq!(first.unwrap(), Took::Enough);
    }

    #[test]
    fn lengths_that_lie_are_not_believed() {
        for length in [0_u32, 15, 17, 4000, u32::MAX] {
            let mut bytes = message(NEW_LINK, b"");
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let (took, found) = taken(&bytes);
            assert_eq!((took.unwrap(), found.len()), (Took::All, 0));
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = encoded(7, &[1; 4]);
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
        assert_eq!(attributes(&[1, 2]).count(), 0);
    }

    #[test]
    fn attributes_in_order_without_flags() {
        let bytes =
            [encoded(3, b"eth0\0"), encoded(0x8000 | 43, &encoded(2, &[1])), encoded(3, b"x")].concat();
        let all: Vec<_> = attributes(&bytes).map(|(kind, value)| (kind, value.len())).collect();
        assert_eq!(all, [(3, 5), (43, 8), (3, 1)]);
        assert_eq!(attribute(&bytes, 3).map(text), Some("eth0".to_owned()));
        assert_eq!(attribute(&bytes, 43).and_then(|nested| attribute(nested, 2)), Some([1].as_slice()));
        assert_eq!(attribute(&bytes, 4), None);
    }

    #[test]
    fn the_loopback_device_is_listed() {
        let links = list(GET_LINK, &[0; 16], NEW_LINK).unwrap();
        assert!(links.iter().any(|link| attribute(&link[16..], 3).map(text).as_deref() == Some("lo")));
    }
}
