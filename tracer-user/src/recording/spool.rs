//! What is being written: frames of Zstandard (RFC 8878), each with a checksum and whole lines of JSON inside, the first line
//! of all saying what follows. A kill loses the frame that was being written and no other; what is left is read here, and by
//! `zstd -dc FILE` as well.

use super::header::{Header, Line};
use crate::event::model::Record;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use zstd::stream::read::Decoder;

/// Zstandard's fastest level but for the negative ones: a drop storm is written while it lasts.
const LEVEL: i32 = 1;
/// Bytes of lines in one frame at most.
const FRAME: usize = 4 << 20;
/// Bytes of lines that a frame is believed to have: a few bytes can claim to unpack to any length.
const FRAME_READ: u64 = 64 << 20;
/// Zstandard's magic number (RFC 8878, 3.1.1), as it stands in a file.
pub(super) const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// A spool that is being written.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    length: u64,
}

impl Spool {
    /// Makes one; there must be none of that name. Others see by a lock that it is being written.
    pub(super) fn create(path: &Path, header: &Header) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).read(true).create_new(true).open(path)?;
        let begun = file.try_lock().map_err(io::Error::from).and_then(|()| {
            let mut spool = Self { file, length: 0 };
            let mut line = serde_json::to_vec(&Line::Recording(header.clone()))?;
            line.push(b'\n');
            spool.append(&line)?;
            Ok(spool)
        });
        begun.inspect_err(|_| {
            // Whatever there is of it.
            let _ = std::fs::remove_file(path);
        })
    }

    /// Adds whole lines and waits until the disk has them.
    ///
    /// # Errors
    /// If the disk takes them not; the spool is as it was before.
    pub(super) fn append(&mut self, mut lines: &[u8]) -> io::Result<()> {
        let mut frames = Vec::new();
        while !lines.is_empty() {
            // A line that is longer than a frame is a frame of its own.
            let within = lines.get(..FRAME).and_then(|head| head.iter().rposition(|byte| *byte == b'\n'));
            let next = within.or_else(|| lines.iter().position(|byte| *byte == b'\n'));
            let (frame, rest) = lines.split_at(next.map_or(lines.len(), |end| end + 1));
            let mut encoder = zstd::stream::write::Encoder::new(&mut frames, LEVEL)?;
            encoder.include_checksum(true)?;
            encoder.write_all(frame)?;
            encoder.finish()?;
            lines = rest;
        }
        let written = self.file.write_all(&frames).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.length += frames.len() as u64;
                Ok(())
            }
            Err(error) => {
                // What there is of them is no frame: away with it, so that more can follow.
                let _ = self.file.set_len(self.length);
                let _ = self.file.seek(SeekFrom::Start(self.length));
                Err(error)
            }
        }
    }

    /// Bytes on the disk.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

/// What is read of a spool.
#[derive(Debug)]
pub(super) enum Piece {
    /// What the recording says of itself.
    Header(Header),
    /// A record.
    Record(Record),
    /// Something that is not intact: `bytes` of the file, or lines that mean nothing.
    Damage(Damage),
}

/// What is not intact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Bytes of the file that were passed over.
    pub(super) bytes: u64,
    /// Lines that mean nothing.
    pub(super) lines: u64,
    /// True where they are the end of the file: a kill leaves a frame that was not written to its end.
    pub(super) is_end: bool,
}

/// Reads a spool, also one that is being written.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    length: u64,
    at: u64,
    lines: VecDeque<Piece>,
}

impl Reader {
    /// Opens it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file: BufReader::new(file), length, at: 0, lines: VecDeque::new() })
    }

    /// True if somebody is writing it.
    pub(super) fn is_being_written(&self) -> bool {
        matches!(self.file.get_ref().try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
    }

    fn read_frame(&mut self) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        let mut decoder = Decoder::with_buffer(&mut self.file)?.single_frame();
        (&mut decoder).take(FRAME_READ).read_to_end(&mut lines)?;
        if lines.len() as u64 >= FRAME_READ {
            return Err(io::Error::other("a frame is too long"));
        }
        self.at = self.file.stream_position()?;
        Ok(lines)
    }

    /// Goes to the next place that looks like a frame's beginning; returns how many bytes are passed over.
    fn pass_over(&mut self) -> io::Result<Damage> {
        let from = self.at;
        self.file.seek(SeekFrom::Start(from + 1))?;
        let mut last = [0; 4];
        let mut at = from + 1;
        loop {
            let buffer = self.file.fill_buf()?;
            let Some(byte) = buffer.first().copied() else { break };
            self.file.consume(1);
            at += 1;
            last.rotate_left(1);
            last[3] = byte;
            if last == MAGIC && at >= from + 5 {
                self.at = at - 4;
                self.file.seek(SeekFrom::Start(self.at))?;
                return Ok(Damage { bytes: self.at - from, ..Damage::default() });
            }
        }
        self.at = self.length.max(at);
        Ok(Damage { bytes: self.at - from, is_end: true, ..Damage::default() })
    }

    fn take_lines(&mut self, frame: &[u8]) {
        for line in frame.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.lines.push_back(piece(line));
        }
    }
}

/// What a line means.
pub(super) fn piece(line: &[u8]) -> Piece {
    // Nearly all are drops, and written so; the general way keeps all that it reads until it has found the type.
    if line.starts_with(br#"{"type":"drop","#)
        && let Ok(drop) = serde_json::from_slice(line)
    {
        return Piece::Record(Record::Drop(Box::new(drop)));
    }
    if let Ok(record) = serde_json::from_slice(line) {
        return Piece::Record(record);
    }
    match serde_json::from_slice(line) {
        Ok(Line::Recording(header)) => Piece::Header(header),
        Err(_) => Piece::Damage(Damage { lines: 1, ..Damage::default() }),
    }
}

impl Iterator for Reader {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.lines.pop_front() {
                return Some(Ok(piece));
            }
            if self.at >= self.length {
                return None;
            }
            let is_frame = self.file.fill_buf().is_ok_and(|buffer| !buffer.is_empty());
            match self.read_frame() {
                Ok(frame) if is_frame => self.take_lines(&frame),
                _ => return Some(self.pass_over().map(Piece::Damage)),
            }
        }
    }
}
