//! A reader of a netfilter queue that drops what it is given (include/uapi/linux/netfilter/nfnetlink_queue.h). Messages and attributes
//! are in the machine's byte order, what is in the attributes in the network's.

use super::socket;
use anyhow::{Context, Result, ensure};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// `NFNL_SUBSYS_QUEUE << 8`, with NFQNL_MSG_PACKET, VERDICT and CONFIG.
const PACKET: u16 = 0x300;
const VERDICT: u16 = 0x301;
const CONFIG: u16 = 0x302;
/// sizeof(struct nlmsghdr) and of struct nfgenmsg.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// A queue of the network namespace that it was made in; it is closed when this is dropped.
#[derive(Debug)]
pub struct Reader {
    socket: OwnedFd,
    number: u16,
}

impl Reader {
    /// Reads a queue.
    ///
    /// # Errors
    /// When there is a reader, or the kernel has no such queues.
    pub fn new(number: u16) -> Result<Self> {
        let reader =
            Self { socket: socket::open(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)?, number };
        let patience = libc::timeval { tv_sec: i64::try_from(super::patience().as_secs())?, tv_usec: 0 };
        let size = size_of_val(&patience) as libc::socklen_t;
        let (fd, at) = (reader.socket.as_raw_fd(), (&raw const patience).cast());
        // SAFETY: the value lives through the call and has the length that is told.
        let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, at, size) };
        ensure!(set == 0, "set a time to wait: {}", io::Error::last_os_error());
        // NFQA_CFG_CMD: NFQNL_CFG_CMD_BIND. NFQA_CFG_PARAMS: NFQNL_COPY_META, of no packet any byte.
        reader.say(CONFIG, 1, &[1, 0, 0, 0])?;
        reader.say(CONFIG, 2, &[0, 0, 0, 0, 1])?;
        Ok(reader)
    }

    /// Waits for a packet, and says that it is to be dropped.
    ///
    /// # Errors
    /// When none comes.
    pub fn drop_one(&self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            // SAFETY: the buffer is valid for its length.
            let length =
                unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let length = usize::try_from(length).map_err(|_| io::Error::last_os_error());
            let length = length.context("wait for a packet in the queue")?;
            let message = buffer.get(..length).context("a long message")?;
            let kind = message.get(4..6).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
            if kind == Some(PACKET) {
                // NFQA_PACKET_HDR comes first: struct nfqnl_msg_packet_hdr begins with the packet's number.
                let at = HEADER + FAMILY + 4;
                let id = message.get(at..at + 4).context("a packet without a number")?;
                // NFQA_VERDICT_HDR: NF_DROP.
                return self.say(VERDICT, 2, &[&[0; 4], id].concat());
            }
        }
    }

    /// Sends a message with one attribute.
    fn say(&self, kind: u16, attribute: u16, value: &[u8]) -> Result<()> {
        let mut body = vec![0, 0];
        body.extend(self.number.to_be_bytes());
        body.extend(u16::try_from(4 + value.len())?.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut message = u32::try_from(HEADER + body.len())?.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        // NLM_F_REQUEST; no sequence, no port.
        message.extend(1_u16.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        // SAFETY: the message is valid for its length. Without an address the socket sends to the kernel.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        ensure!(sent >= 0, "tell the queue: {}", io::Error::last_os_error());
        Ok(())
    }
}
