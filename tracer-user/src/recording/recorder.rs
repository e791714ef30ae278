//! Writes a recording while drops go on: a thread of its own waits for the disk, and nobody for it.

use super::files::time;
use super::header::{Header, Totals};
use super::place::{Folder, Names, Place, SPOOL, sealed_of};
use super::seal::seal;
use super::spool::{Reader, Spool};
use crate::event::model::{Lost, LostPlace, Record, Timestamp};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Batches of lines that wait for the disk at most, each about a second's.
const WAITING: usize = 4;
/// Bytes of lines that wait for a place among them; what comes then is left out, and counted.
const PENDING: usize = 64 << 20;

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is one.
    #[error("{path} is there already: choose another name, or take it away")]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A killed one left it.
    #[error(
        "{path} is what a recording left that was killed: `droptrace replay {path}` reads it; take it away, or choose another name"
    )]
    Unfinished {
        /// Which.
        path: PathBuf,
    },
    /// The system says no.
    #[error("can't write {path}: {error}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The system says no to a thread.
    #[error("can't start a thread: {0}")]
    Thread(std::io::Error),
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is on the disk.
    pub written: Totals,
    /// Dropped packets that are not in the recording, for the disk was too slow or took no more.
    pub left_out: u64,
    /// Files that are done.
    pub sealed: u64,
    /// Bytes of the one that is being written.
    pub bytes: u64,
}

/// What the thread tells.
enum Told {
    Written(Totals, u64),
    Sealed,
    /// A line for people.
    Line(String),
    /// Nothing is written any more.
    Failed(String),
}

/// What the thread is given.
struct Batch {
    lines: Vec<u8>,
    totals: Totals,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Recorder {
    batches: Option<SyncSender<Batch>>,
    told: Receiver<Told>,
    thread: Option<JoinHandle<()>>,
    lines: Vec<u8>,
    totals: Totals,
    progress: Progress,
    /// Bytes of lines that may wait: [`PENDING`].
    pub(super) room: usize,
    /// Drops left out that the recording does not tell of yet.
    untold: u64,
    /// When the last record came.
    last: Timestamp,
    failed: Option<String>,
    /// Set when the run ends in order.
    is_over: Arc<AtomicBool>,
}

impl Recorder {
    /// Begins one.
    ///
    /// # Errors
    /// If it can't be written there.
    pub fn begin(place: Place, header: Header) -> Result<Self, RecordError> {
        let (to, told) = channel();
        if let Place::Folder(folder) = &place {
            recover(folder, &header.node, &to);
        }
        let open = Open::new(&place, &header)?;
        let (batches, from) = sync_channel(WAITING);
        let is_over = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            place,
            header,
            open: Some(open),
            sealing: None,
            to,
            has_written: false,
            is_over: Arc::clone(&is_over),
        };
        let thread = thread::Builder::new()
            .name("record".to_owned())
            .spawn(move || writer.run(&from))
            .map_err(RecordError::Thread)?;
        Ok(Self {
            batches: Some(batches),
            told,
            thread: Some(thread),
            lines: Vec::new(),
            totals: Totals::default(),
            progress: Progress::default(),
            room: PENDING,
            untold: 0,
            last: Timestamp::default(),
            failed: None,
            is_over,
        })
    }

    /// Takes a record; it is on the disk some time after the next [`Recorder::flush`].
    pub fn add(&mut self, record: &Record) {
        self.last = time(record);
        if self.failed.is_some() || self.lines.len() > self.room || !self.put(record) {
            let count = if let Record::Drop(drop) = record { drop.count } else { 0 };
            self.progress.left_out += count;
            self.untold += count;
        }
    }

    /// Adds a line; false if the record can't be written as one.
    fn put(&mut self, record: &Record) -> bool {
        let before = self.lines.len();
        if serde_json::to_writer(&mut self.lines, record).is_err() {
            self.lines.truncate(before);
            return false;
        }
        self.lines.push(b'\n');
        self.totals.add(record);
        true
    }

    /// Says in the recording itself what it lacks, once there is room.
    fn tell(&mut self) {
        if self.untold > 0 && self.lines.len() <= self.room {
            let (time, count, place) = (self.last, self.untold, LostPlace::Recording);
            if self.put(&Record::Lost(Lost { time, count, place })) {
                self.untold = 0;
            }
        }
    }

    /// Hands over what came, about once a second. Lines for people come back.
    pub fn flush(&mut self) -> Vec<String> {
        self.tell();
        if !self.lines.is_empty()
            && let Some(batches) = &self.batches
        {
            let batch =
                Batch { lines: std::mem::take(&mut self.lines), totals: std::mem::take(&mut self.totals) };
            match batches.try_send(batch) {
                Ok(()) => {}
                // The disk is slow: with the next one.
                Err(TrySendError::Full(batch)) => (self.lines, self.totals) = (batch.lines, batch.totals),
                Err(TrySendError::Disconnected(batch)) => self.progress.left_out += batch.totals.drops,
            }
        }
        self.listen()
    }

    fn listen(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Ok(told) = self.told.try_recv() {
            match told {
                Told::Written(totals, bytes) => {
                    merge(&mut self.progress.written, &totals);
                    self.progress.bytes = bytes;
                }
                Told::Sealed => self.progress.sealed += 1,
                Told::Line(line) => lines.push(line),
                Told::Failed(why) => {
                    lines.push(format!("error: {why}; nothing more is recorded"));
                    self.failed.get_or_insert(why);
                    self.batches = None;
                }
            }
        }
        lines
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Why nothing is written any more, if so.
    #[must_use]
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Writes what is left, and seals it. Lines for people come back.
    pub fn finish(&mut self) -> Vec<String> {
        self.is_over.store(true, Ordering::Release);
        self.tell();
        if let Some(batches) = self.batches.take()
            && !self.lines.is_empty()
        {
            let batch =
                Batch { lines: std::mem::take(&mut self.lines), totals: std::mem::take(&mut self.totals) };
            let drops = batch.totals.drops;
            if batches.send(batch).is_err() {
                self.progress.left_out += drops;
            }
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.failed.get_or_insert("the thread that writes has died".to_owned());
        }
        self.listen()
    }
}

impl Drop for Recorder {
    /// Where the run never began there is nothing to keep; what has come in is kept all the same.
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // Whoever drops it does not ask.
            let _ = thread.join();
        }
    }
}

/// Adds what was written.
fn merge(all: &mut Totals, more: &Totals) {
    all.records += more.records;
    all.drops += more.drops;
    all.segments += more.segments;
    for (place, count) in &more.lost {
        *all.lost.entry(*place).or_default() += count;
    }
    all.first = all.first.into_iter().chain(more.first).min();
    all.last = all.last.into_iter().chain(more.last).max();
}

/// Seals what recordings left that were killed.
fn recover(folder: &Folder, node: &str, to: &Sender<Told>) {
    let spools = folder.files(node, SPOOL).unwrap_or_default();
    for (spool, _) in spools {
        if Reader::open(&spool).is_ok_and(|reader| reader.is_being_written()) {
            continue;
        }
        let line = match seal(&spool, &sealed_of(&spool), true) {
            Ok(totals) => format!(
                "note: {} was left by a recording that was killed: {} drops of it are kept, {} bytes were not whole",
                sealed_of(&spool).display(),
                totals.drops,
                totals.damaged
            ),
            Err(error) => format!("note: {} can't be recovered: {error}", spool.display()),
        };
        let _ = to.send(Told::Line(line));
    }
    make_room(folder, node, to);
}

fn make_room(folder: &Folder, node: &str, to: &Sender<Told>) {
    if let Err(error) = folder.make_room(node) {
        let _ = to.send(Told::Line(format!("note: old recordings can't be taken away: {error}")));
    }
}

/// The file that is being written.
struct Open {
    spool: Spool,
    names: Names,
    began: Instant,
    date: String,
}

impl Open {
    fn new(place: &Place, header: &Header) -> Result<Self, RecordError> {
        let names = place.names(&header.node, header.started);
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| RecordError::Io { path, error }
        };
        if let Some(folder) = names.spool.parent().filter(|_| matches!(place, Place::Folder(_))) {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        if names.sealed.exists() {
            return Err(RecordError::Exists { path: names.sealed });
        }
        if names.spool.exists() {
            return Err(RecordError::Unfinished { path: names.spool });
        }
        let spool = Spool::create(&names.spool, header).map_err(at(&names.spool))?;
        Ok(Self { spool, names, began: Instant::now(), date: date(header.started) })
    }
}

fn date(time: Timestamp) -> String {
    time.to_string().split('T').next().unwrap_or_default().to_owned()
}

/// The thread's.
struct Writer {
    place: Place,
    header: Header,
    open: Option<Open>,
    sealing: Option<JoinHandle<()>>,
    to: Sender<Told>,
    has_written: bool,
    is_over: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, from: &Receiver<Batch>) {
        while let Ok(batch) = from.recv() {
            if let Err(why) = self.write(&batch) {
                let _ = self.to.send(Told::Failed(why));
                break;
            }
        }
        match self.open.take() {
            Some(open) if !self.has_written && !self.is_over.load(Ordering::Acquire) => {
                // If it can't be removed it is an empty recording.
                let _ = fs::remove_file(&open.names.spool);
            }
            open => self.open = open,
        }
        self.seal();
        self.wait();
    }

    fn write(&mut self, batch: &Batch) -> Result<(), String> {
        let now = batch.totals.last.unwrap_or(self.header.started);
        if self.is_full(now) {
            self.seal();
            let header = Header { started: batch.totals.first.unwrap_or(now), ..self.header.clone() };
            self.open = Some(Open::new(&self.place, &header).map_err(|error| error.to_string())?);
        }
        let Some(open) = &mut self.open else { return Err("no file is open".to_owned()) };
        open.spool
            .append(&batch.lines)
            .map_err(|error| format!("can't write {}: {error}", open.names.spool.display()))?;
        self.has_written = true;
        let _ = self.to.send(Told::Written(batch.totals.clone(), open.spool.length()));
        Ok(())
    }

    /// True if the open file is done: it is long or old enough, or of another day.
    fn is_full(&self, now: Timestamp) -> bool {
        let (Place::Folder(folder), Some(open)) = (&self.place, &self.open) else { return false };
        open.spool.length() >= folder.rotate_bytes
            || open.began.elapsed() >= folder.rotate_after
            || open.date < date(now)
    }

    /// Seals the open file in a thread of its own: that takes longer than the disk may be waited for.
    fn seal(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.wait();
        let (to, place, node) = (self.to.clone(), self.place.clone(), self.header.node.clone());
        let work = move || {
            let Names { spool, sealed } = &open.names;
            let told = match seal(spool, sealed, false) {
                Ok(_) => Told::Sealed,
                Err(error) => Told::Line(format!(
                    "note: {} can't be made of {}, which has it all: {error}",
                    sealed.display(),
                    spool.display()
                )),
            };
            let _ = to.send(told);
            if let Place::Folder(folder) = place {
                make_room(&folder, &node, &to);
            }
        };
        match thread::Builder::new().name("seal".to_owned()).spawn(work) {
            Ok(thread) => self.sealing = Some(thread),
            Err(error) => {
                let _ = self.to.send(Told::Line(format!("note: can't start a thread: {error}")));
            }
        }
    }

    fn wait(&mut self) {
        if let Some(sealing) = self.sealing.take()
            && sealing.join().is_err()
        {
            let _ = self
                .to
                .send(Told::Line("note: a thread that seals has died; its spool has it all".to_owned()));
        }
    }
}
