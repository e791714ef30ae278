//! A netfilter netlink transaction: its messages as bytes, and its answers (RFC 3549; include/uapi/linux/netlink.h,
//! include/uapi/linux/netfilter/nfnetlink.h). Headers are in host byte order, values of attributes in network order.

use super::LabError;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// `NLM_F_REQUEST`: each message to the kernel has it.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`: answer also if all is well.
const ACK: u16 = 4;
/// `NLM_F_EXCL`: only if it is not there yet.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: after what is there.
pub(super) const APPEND: u16 = 0x800;

/// `NLMSG_ERROR`: an answer, also that all is well.
const ERROR: u16 = 2;
/// `NFNL_MSG_BATCH_BEGIN`
const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`
const NFTABLES: u16 = 10;
/// `NLA_F_NESTED`, in an attribute's type: its value is attributes.
const NESTED: u16 = 0x8000;
/// Size of `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Offset of the flags in it.
const FLAGS: usize = 6;
/// Longest answer looked at, in bytes; what matters is in its first 20.
const MAX_ANSWER: usize = 4096;

/// Attributes of one level.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds an attribute (`struct nlattr`: length with this header, type), padded to 4 bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        // Names are checked before, so all values are short.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds a text, which ends with a zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// Adds a number of 32 bits.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Adds attributes as an attribute.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    #[cfg(test)]
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Messages to nf_tables that take effect together or not at all.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// What each message is, for errors. The first has the sequence number 1; the batch's begin has 0.
    parts: Vec<String>,
    /// Where the last message starts.
    last: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), parts: Vec::new(), last: 0 };
        batch.push(BATCH_BEGIN, REQUEST, 0, NFTABLES, &[]);
        batch
    }

    /// Adds a message of type `NFT_MSG_*` for an `NFPROTO_*` family. `part` tells in errors what it is.
    pub(super) fn message(
        &mut self,
        part: String,
        kind: u8,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Attributes),
    ) {
        let mut attributes = Attributes::default();
        fill(&mut attributes);
        self.parts.push(part);
        self.last = self.bytes.len();
        self.push(NFTABLES << 8 | u16::from(kind), REQUEST | flags, family, 0, &attributes.0);
    }

    /// Adds a message with both headers; the second is `struct nfgenmsg`: family, version 0, resource id.
    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        let length = u32::try_from(HEADER + 4 + attributes.len()).unwrap_or(u32::MAX);
        let sequence = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }

    /// Ends it. Only the last message asks for an answer: errors are answered anyway, and the kernel answers after it
    /// has committed (net/netfilter/nfnetlink.c, `nfnetlink_rcv_batch`).
    pub(super) fn end(mut self) -> Transaction {
        if let Some([low, high]) = self.bytes.get_mut(self.last + FLAGS..self.last + FLAGS + 2) {
            [*low, *high] = (u16::from_ne_bytes([*low, *high]) | ACK).to_ne_bytes();
        }
        self.push(BATCH_END, REQUEST, 0, NFTABLES, &[]);
        Transaction { bytes: self.bytes, parts: self.parts }
    }
}

/// A batch that is complete.
pub(super) struct Transaction {
    pub(super) bytes: Vec<u8>,
    parts: Vec<String>,
}

impl Transaction {
    /// What the answers say about the transaction.
    fn outcome(&self, answers: &[Answer]) -> Result<(), LabError> {
        if let Some(refusal) = answers.iter().find(|answer| answer.error != 0) {
            let index = (refusal.sequence as usize).checked_sub(1);
            let part = index.and_then(|index| self.parts.get(index));
            let what = part.map_or("the table", String::as_str).to_owned();
            let source = io::Error::from_raw_os_error(refusal.error.saturating_neg());
            return Err(LabError::Refused { what, source });
        }
        let acknowledged = answers.iter().any(|answer| answer.sequence as usize == self.parts.len());
        if acknowledged { Ok(()) } else { Err(LabError::Unanswered) }
    }
}

/// `struct nlmsgerr` with its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    /// Of the message that it answers.
    sequence: u32,
    /// 0 or a negative error number.
    error: i32,
}

/// The answers in a datagram. A message that is cut short at its end is read as far as it goes.
fn answers(mut datagram: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    while let Some((header, rest)) = datagram.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let sequence = u32::from_ne_bytes([s0, s1, s2, s3]);
        if let (ERROR, Some(error)) = (u16::from_ne_bytes([t0, t1]), rest.first_chunk()) {
            found.push(Answer { sequence, error: i32::from_ne_bytes(*error) });
        }
        let step = length.max(HEADER).checked_next_multiple_of(4);
        datagram = step.and_then(|step| datagram.get(step..)).unwrap_or_default();
    }
    found
}

/// A netlink socket to netfilter in the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Opens it. Without the module nfnetlink, on which nf_tables depends, this would load it.
    pub(super) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just opened and is nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Carries a transaction out.
    ///
    /// # Errors
    /// If the kernel refuses it, then with the part it refused first, or gives no answer.
    pub(super) fn commit(&self, transaction: &Transaction) -> Result<(), LabError> {
        let failed = |source| LabError::Refused { what: "the transaction".into(), source };
        let bytes = &transaction.bytes;
        // SAFETY: `bytes` is valid for its length. Without an address the socket sends to the kernel.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if usize::try_from(sent) != Ok(bytes.len()) {
            return Err(failed(io::Error::last_os_error()));
        }
        // The kernel works within send(2), so all answers are there by now. All are taken, or the next transaction would
        // find them.
        let mut found = Vec::new();
        loop {
            match self.receive() {
                Ok(datagram) => found.extend(answers(&datagram)),
                // Answers didn't fit into the socket's buffer: those to later messages, after many refusals.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed(error)),
            }
        }
        transaction.outcome(&found)
    }

    /// The next datagram; [`io::ErrorKind::WouldBlock`] if there is none.
    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; MAX_ANSWER];
        // SAFETY: `buffer` is valid for writing its length.
        let received = unsafe {
            libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        buffer.truncate(usize::try_from(received).map_err(|_| io::Error::last_os_error())?);
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction() -> Transaction {
        let mut batch = Batch::new();
        batch.message("the table".into(), 0, CREATE, 2, |_| {});
        batch.message("the chain".into(), 3, CREATE, 2, |_| {});
        batch.end()
    }

    /// A message as the kernel sends it: `length` is what its header says.
    fn message(length: u32, kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let mut attributes = Attributes::default();
        attributes.text(1, "lab");
        attributes.text(2, "table");
        attributes.nest(3, |inner| inner.number(4, 0x0102_0304));
        let mut expected = Vec::new();
        for (length, kind, value) in
            [(8_u16, 1_u16, &b"lab\0"[..]), (10, 2, b"table\0\0\0"), (12, 0x8003, b""), (8, 4, &[1, 2, 3, 4])]
        {
            expected.extend(length.to_ne_bytes());
            expected.extend(kind.to_ne_bytes());
            expected.extend(value);
        }
        assert_eq!(attributes.0, expected);
    }

    #[test]
    fn only_the_last_message_asks_for_an_answer() {
        let bytes = transaction().bytes;
        let flags: Vec<_> =
            bytes.chunks(20).map(|message| u16::from_ne_bytes([message[6], message[7]])).collect();
        assert_eq!(flags, [REQUEST, REQUEST | CREATE, REQUEST | CREATE | ACK, REQUEST]);
        let sequence: Vec<_> =
            bytes.chunks(20).map(|message| u32::from_ne_bytes(message[8..12].try_into().unwrap())).collect();
        assert_eq!(sequence, [0, 1, 2, 2], "the end's is not looked at");
    }

    #[test]
    fn outcomes() {
        let transaction = transaction();
        let answer = |sequence, error| Answer { sequence, error };
        assert!(transaction.outcome(&[answer(2, 0)]).is_ok());
        assert!(matches!(transaction.outcome(&[]), Err(LabError::Unanswered)));
        assert!(matches!(transaction.outcome(&[answer(1, 0)]), Err(LabError::Unanswered)));
        for (answers, part, number) in [
            (vec![answer(1, -libc::EEXIST), answer(2, 0)], "the table", libc::EEXIST),
            (vec![answer(1, 0), answer(2, -libc::ENOENT)], "the chain", libc::ENOENT),
            (vec![answer(0, -libc::EPERM)], "the table", libc::EPERM),
            (vec![answer(9, -libc::EPERM)], "the table", libc::EPERM),
        ] {
            let Err(LabError::Refused { what, source }) = transaction.outcome(&answers) else {
                panic!("{answers:?}")
            };
            assert_eq!((what.as_str(), source.raw_os_error()), (part, Some(number)));
        }
        assert!(transaction.outcome(&[answer(2, i32::MIN)]).is_err());
    }

    #[test]
    fn answers_in_datagrams() {
        let refusal = message(36, ERROR, 7, &(-2_i32).to_ne_bytes());
        let whole = [&refusal[..], &[0; 16]].concat();
        let expected = Answer { sequence: 7, error: -2 };
        assert_eq!(answers(&whole), [expected]);
        assert_eq!(answers(&refusal), [expected], "cut short behind the error");
        assert_eq!(answers(&[&whole[..], &whole].concat()), [expected, expected]);
        assert_eq!(answers(&[message(16, 3, 1, &[]), whole.clone()].concat()), [expected], "another type");
        assert_eq!(answers(&refusal[..19]), []);
        assert_eq!(answers(&[]), []);
        assert_eq!(answers(&message(u32::MAX, ERROR, 1, &[0; 4])).len(), 1);
        assert_eq!(answers(&message(0, ERROR, 1, &[0; 64])).len(), 1, "a length of 0 does not loop");
    }
}
