//! Whole recordings: what is written comes back, whatever happens to the writer or the file.

use super::place::{SEALED, SPOOL};
use super::seal::seal;
use super::spool::Spool;
use super::*;
use crate::cause::Causes;
use crate::event::model::{Class, Drop, Lost, LostPlace, Record, Timestamp};
use crate::hist::Key;
use crate::output::Sink as _;
use clap::ValueEnum as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SECOND: i128 = 1_000_000_000;
/// Names the folder that the process which is to be killed records in.
const CHILD: &str = "DROPTRACE_TEST_RECORDS_IN";

fn header() -> Header {
    Header {
        version: VERSION,
        node: "n".into(),
        started: Timestamp(1_795_000_000 * SECOND),
        ..Header::default()
    }
}

/// The drop with a number, some time after the one before.
fn numbered(number: u64) -> Record {
    let time = Timestamp(1_795_000_000 * SECOND + i128::from(number) * 1_000_000);
    let (time_last, node, segments) = (time, "n".into(), number);
    Record::Drop(Box::new(Drop { time, time_last, node, count: number, segments, ..example::drop() }))
}

fn folder(root: &Path) -> Folder {
    Folder {
        root: root.to_owned(),
        cluster: "c".into(),
        rotate_bytes: 1 << 20,
        rotate_after: Duration::from_secs(3600),
        keep: None,
    }
}

/// Counts of all drops, in order, and what was not intact.
fn read(path: &Path) -> (Vec<u64>, Vec<String>) {
    let mut merged = Merged::new(find(&[path.to_owned()]).unwrap(), Reads::All);
    let counts = merged.by_ref().filter_map(|record| match record {
        Record::Drop(drop) => Some(drop.count),
        _ => None,
    });
    let counts = counts.collect();
    (counts, merged.said())
}

#[test]
fn a_histogram_reads_no_more_than_its_keys_and_no_less() {
    let with = |change: fn(&mut Drop)| {
        let mut drop = example::drop();
        change(&mut drop);
        drop
    };
    let drops = [
        example::drop(),
        with(|drop| drop.conntrack.iter_mut().for_each(|it| it.direction = Some("reply".into()))),
        with(|drop| (drop.source.k8s, drop.network.interface) = (None, None)),
        with(|drop| drop.drop.netfilter.iter_mut().for_each(|it| (it.rule, it.handle) = (None, Some(4)))),
        with(|drop| drop.drop.netfilter.iter_mut().for_each(|it| (it.table, it.hook) = (None, None))),
        with(|drop| drop.drop.netfilter = None),
        with(|drop| (drop.drop.netfilter, drop.drop.cilium) = (None, None)),
        with(|drop| (drop.drop.netfilter, drop.drop.cilium, drop.drop.bpf) = (None, None, None)),
        Drop { time: example::drop().time, count: 1, ..Drop::default() },
    ];
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f.parquet");
    let mut recorder = Recorder::begin(Place::File(path.clone()), header()).unwrap();
    drops.iter().for_each(|drop| recorder.add(&Record::Drop(Box::new(drop.clone()))));
    assert_eq!(recorder.finish(), Vec::<String>::new());
    for key in Key::value_variants() {
        let reads = Reads::Only(key.reads().iter().copied().collect());
        let source = Source::open(&path, &reads).unwrap();
        let labels: Vec<_> =
            source.map(|it| if let Record::Drop(it) = it { key.label(&it) } else { None }).collect();
        assert_eq!(labels, drops.iter().map(|it| key.label(it)).collect::<Vec<_>>(), "{key:?}");
    }
    // What is not asked for is not read.
    let source = Source::open(&path, &Reads::Only(Key::Port.reads().iter().copied().collect())).unwrap();
    let Some(Record::Drop(drop)) = source.into_iter().next() else { panic!("no drop") };
    assert_eq!((drop.source.port, drop.source.address, drop.stack.len()), (Some(41822), None, 0));
}

#[test]
fn a_recording_is_one_parquet_file_with_all_that_was_given() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f.parquet");
    let mut recorder = Recorder::begin(Place::File(path.clone()), header()).unwrap();
    let records = example::records();
    for record in &records {
        recorder.add(record);
    }
    assert!(matches!(
        Recorder::begin(Place::File(path.clone()), header()),
        Err(RecordError::Unfinished { .. })
    ));
    assert_eq!(recorder.finish(), Vec::<String>::new());
    let progress = recorder.progress();
    assert_eq!((progress.written.records, progress.sealed, progress.left_out), (4, 1, 0));
    assert_eq!(progress.written.lost, [(LostPlace::Flow, 3)].into());
    let source = Source::open(&path, &Reads::All).unwrap();
    assert_eq!((source.header(), source.totals()), (&header(), Some(&progress.written)));
    assert_eq!(source.collect::<Vec<_>>(), records);
    let names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["f.parquet"]);
    assert!(matches!(Recorder::begin(Place::File(path), header()), Err(RecordError::Exists { .. })));
}

#[test]
fn a_run_that_never_began_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f.parquet");
    drop(Recorder::begin(Place::File(path.clone()), header()).unwrap());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    // One that began and was told of an error keeps what came in.
    let mut recorder = Recorder::begin(Place::File(path.clone()), header()).unwrap();
    recorder.add(&numbered(1));
    recorder.flush();
    drop(recorder);
    assert_eq!(read(&path), (vec![1], vec![]));
}

#[test]
fn a_long_run_is_many_files_and_the_oldest_go() {
    let root = tempfile::tempdir().unwrap();
    let mut place = Folder { rotate_bytes: 2000, ..folder(root.path()) };
    let run = |place: &Folder, numbers: std::ops::Range<u64>| {
        let mut recorder = Recorder::begin(Place::Folder(place.clone()), header()).unwrap();
        for number in numbers {
            recorder.add(&numbered(number));
            // Each is a batch: files are rotated between batches.
            while recorder.progress().written.records < number % 1000 {
                recorder.flush();
            }
        }
        recorder.finish();
        recorder.progress().clone()
    };
    let progress = run(&place, 1..40);
    assert!(progress.sealed > 3, "{progress:?}");
    let (counts, said) = read(root.path());
    assert_eq!((counts, said), ((1..40).collect(), vec![]));
    let files = place.files("n", SEALED).unwrap();
    assert_eq!(files.len() as u64, progress.sealed);
    let all: u64 = files.iter().map(|(_, length)| length).sum();
    place.keep = Some(all / 2 + 3 * place.rotate_bytes);
    place.make_room("n").unwrap();
    let (counts, _) = read(root.path());
    assert!(counts.len() < 39 && counts.last() == Some(&39), "{counts:?}");
}

#[test]
fn a_disk_that_takes_no_more_loses_nothing_of_what_it_took() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f.jsonl.zst");
    let mut spool = Spool::create(&path, &header()).unwrap();
    let lines = |numbers: std::ops::Range<u64>| {
        let mut lines = Vec::new();
        for number in numbers {
            serde_json::to_writer(&mut lines, &numbered(number)).unwrap();
            lines.push(b'\n');
        }
        lines
    };
    spool.append(&lines(1..10)).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    assert_eq!(spool.length(), length);
    // What a full disk leaves: a part of a frame.
    let bytes = fs::read(&path).unwrap();
    let torn = root.path().join("torn.jsonl.zst");
    fs::write(&torn, [&bytes[..], &bytes[bytes.len() - 100..]].concat()).unwrap();
    let (counts, said) = read(&torn);
    assert_eq!(counts, (1..10).collect::<Vec<_>>());
    assert!(said[0].contains("its last 100 bytes are not whole"), "{said:?}");
    // Sealing keeps what there is, and says that it is not all.
    let totals = seal(&torn, &root.path().join("torn.parquet"), true).unwrap();
    assert_eq!((totals.records, totals.recovered, totals.damaged), (9, true, 100));
    assert_eq!(read(&root.path().join("torn.parquet")).0, (1..10).collect::<Vec<_>>());
}

/// Not a test of its own: what [`killed_at_any_moment`] kills.
#[test]
fn child() {
    let Some(root) = std::env::var_os(CHILD) else { return };
    let mut recorder = Recorder::begin(Place::Folder(folder(Path::new(&root))), header()).unwrap();
    let mut told = 0;
    for number in 1.. {
        recorder.add(&numbered(number));
        if number % 50 == 0 {
            recorder.flush();
            let written = recorder.progress().written.records;
            if written != told {
                told = written;
                let _ = writeln!(std::io::stdout(), "written {told}");
            }
        }
    }
}

#[test]
fn killed_at_any_moment() {
    const TIMES: u64 = 100;
    // Most of the time it is the disk that is waited for.
    const AT_ONCE: u64 = 5;
    let acknowledged = std::thread::scope(|scope| {
        let some = (0..AT_ONCE).map(|first| {
            scope.spawn(move || (first..TIMES).step_by(AT_ONCE as usize).map(killed_once).max())
        });
        let some: Vec<_> = some.collect();
        some.into_iter().flat_map(|it| it.join().unwrap()).max().unwrap()
    });
    assert!(acknowledged > 200, "each was killed before it had written much: {acknowledged}");
}

/// Kills one that records, at a moment that the number says; returns how many records it had acknowledged.
fn killed_once(time: u64) -> u64 {
    let root = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "recording::tests::child", "--nocapture"])
        .env(CHILD, root.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let is_written = |line: &String| line.starts_with("written ");
    // So many times it was acknowledged, and a moment more: a busy machine takes longer for the same.
    let first = lines.by_ref().filter(is_written).nth(usize::try_from(time % 7).unwrap());
    std::thread::sleep(Duration::from_micros(time * 431 % 10_000));
    child.kill().unwrap();
    child.wait().unwrap();
    let last = lines.filter(is_written).last().or(first).expect("it has written something");
    let acknowledged: u64 = last.trim_start_matches("written ").parse().unwrap();
    let (counts, said) = read(root.path());
    // Whole records in order, none missing, at least those that the disk had.
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>());
    assert!(counts.len() as u64 >= acknowledged, "{} of {acknowledged}", counts.len());
    assert!(said.len() <= 1 && said.iter().all(|line| line.contains("are not whole")), "{said:?}");
    // The next one seals what it left.
    let mut next = Recorder::begin(
        Place::Folder(folder(root.path())),
        Header { started: Timestamp(1_795_000_500 * SECOND), ..header() },
    )
    .unwrap();
    let lines = next.finish();
    assert!(lines.iter().any(|line| line.contains("was killed")), "{lines:?}");
    assert_eq!(read(root.path()), (counts.clone(), vec![]));
    assert!(!folder(root.path()).files("n", SPOOL).unwrap().iter().any(|_| true));
    acknowledged
}

/// A generator of numbers for tests: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % most as u64) as usize
    }
}

#[test]
fn damaged_files_give_what_is_intact_and_never_panic() {
    let root = tempfile::tempdir().unwrap();
    let spool = root.path().join("f.jsonl.zst");
    let mut writer = Spool::create(&spool, &header()).unwrap();
    for number in 1..200 {
        let mut line = serde_json::to_vec(&numbered(number)).unwrap();
        line.push(b'\n');
        writer.append(&line).unwrap();
    }
    drop(writer);
    let spooled = fs::read(&spool).unwrap();
    let sealed = root.path().join("f.parquet");
    seal(&spool, &sealed, false).unwrap();
    let sealed = fs::read(&sealed).unwrap();
    let mut random = Random(7);
    for round in 0..150 {
        for (name, whole) in [("d.jsonl.zst", &spooled), ("d.parquet", &sealed)] {
            let path = root.path().join(name);
            let mut bytes = whole.clone();
            if round % 2 == 0 {
                bytes.truncate(random.below(whole.len()));
            } else {
                let at = random.below(whole.len());
                bytes[at] ^= 1 << random.below(8);
            }
            fs::write(&path, &bytes).unwrap();
            let (counts, said) = read(&path);
            // No record comes twice, none is made up.
            assert!(counts.iter().all(|count| (1..200).contains(count)) || name == "d.parquet", "{counts:?}");
            assert!(counts.len() < 200);
            if name == "d.jsonl.zst" && round % 2 == 1 {
                // One bit is one frame, at most.
                assert!(counts.len() >= 198, "{} {said:?}", counts.len());
            }
            assert!(
                counts.len() == 199 || !said.is_empty() || bytes.is_empty(),
                "{name} {round}: {}",
                counts.len()
            );
        }
    }
}

#[test]
fn what_a_slow_disk_left_out_is_told_in_the_recording() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f.parquet");
    let mut recorder = Recorder::begin(Place::File(path.clone()), header()).unwrap();
    // Nothing is handed over meanwhile, as when the disk takes nothing.
    recorder.room = 20_000;
    let sent: u64 = (1..=100).sum();
    (1..=100).for_each(|number| recorder.add(&numbered(number)));
    let left_out = recorder.progress().left_out;
    assert!((1..sent).contains(&left_out), "{left_out} of {sent}");
    recorder.flush();
    recorder.add(&numbered(101));
    assert_eq!((recorder.finish(), recorder.progress().left_out), (vec![], left_out));
    let mut lost = Vec::new();
    let mut drops = 0;
    for record in Source::open(&path, &Reads::All).unwrap() {
        match record {
            Record::Drop(drop) => drops += drop.count,
            Record::Lost(it) => lost.push((it.count, it.place)),
            Record::Stalled(_) => {}
        }
    }
    assert_eq!((drops, lost), (sent - left_out + 101, vec![(left_out, LostPlace::Recording)]));
}

#[test]
fn what_is_no_recording_is_said() {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("a.parquet", &b"\x7fELF and so on"[..]),
        ("b.parquet", b"PAR1 not really PAR1"),
        ("c.parquet", b"PAR1\0\0\0\0\xff\xff\xff\x7fPAR1"),
    ] {
        fs::write(root.path().join(name), bytes).unwrap();
    }
    let (counts, said) = read(root.path());
    assert!(counts.is_empty());
    assert_eq!(said.len(), 3);
    assert!(said.iter().all(|line| line.contains("no recording of droptrace")), "{said:?}");
    assert!(find(&[root.path().join("none*")]).is_err());
    assert!(find(&[root.path().join("[*"), root.path().into()]).is_err());
    assert_eq!(find(&[root.path().join("*.parquet"), root.path().into()]).unwrap().len(), 3);
}

#[test]
fn recordings_of_several_nodes_are_one_stream() {
    let root = tempfile::tempdir().unwrap();
    for (node, numbers) in [("a", [1, 4, 5]), ("b", [2, 3, 6])] {
        let header = Header { node: node.into(), ..header() };
        let mut recorder = Recorder::begin(Place::Folder(folder(root.path())), header).unwrap();
        for number in numbers {
            recorder.add(&numbered(number));
        }
        let time = Timestamp(1_795_000_000 * SECOND + 9_000_000);
        recorder.add(&Record::Lost(Lost { time, count: 1, place: LostPlace::Ring }));
        recorder.finish();
    }
    assert_eq!(read(root.path()), ((1..=6).collect(), vec![]));
}

/// A sink that keeps what it is given, and when.
#[derive(Default)]
struct Kept(Vec<(u64, Duration)>, u64);

impl crate::output::Sink for &mut Kept {
    fn record(
        &mut self,
        record: &Record,
        now: crate::output::Now,
    ) -> std::ops::ControlFlow<crate::output::Stop> {
        if let Record::Drop(drop) = record {
            self.0.push((drop.count, now.elapsed));
        }
        std::ops::ControlFlow::Continue(())
    }

    fn tick(&mut self, _: crate::output::Now) -> std::ops::ControlFlow<crate::output::Stop> {
        self.1 += 1;
        std::ops::ControlFlow::Continue(())
    }

    fn is_waiting(&self) -> bool {
        true
    }

    fn shown(&self) -> u64 {
        0
    }

    fn finish(
        self,
        _: crate::output::Now,
    ) -> (crate::output::Summary, std::ops::ControlFlow<crate::output::Stop>) {
        (crate::output::Summary::default(), std::ops::ControlFlow::Continue(()))
    }
}

#[test]
fn a_replay_is_in_the_recordings_time_and_of_the_part_that_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::begin(Place::Folder(folder(root.path())), header()).unwrap();
    // At 1 ms, 2 ms, 1 s and an hour.
    for number in [1, 2, 1000, 3_600_000] {
        recorder.add(&numbered(number));
    }
    recorder.finish();
    let play = |part: replay::Part| {
        let mut kept = Kept::default();
        let code =
            replay::run(&[root.path().to_owned()], &part, &Causes::default(), (false, false), &mut kept)
                .unwrap();
        assert_eq!(code, 0);
        kept
    };
    let all = play(replay::Part::default());
    let elapsed: Vec<u128> = all.0.iter().map(|(_, elapsed)| elapsed.as_millis()).collect();
    assert_eq!(elapsed, [0, 1, 999, 3_599_999]);
    // Nine tenths of a second, and three seconds of the hour.
    assert_eq!(all.1, 9 + 30);
    let counts = |part| play(part).0.iter().map(|(count, _)| *count).collect::<Vec<_>>();
    let at = |ms: i128| Some(Timestamp(1_795_000_000 * SECOND + ms * 1_000_000));
    let default = replay::Part::default;
    assert_eq!(counts(replay::Part { since: at(2), until: at(3_600_000), ..default() }), [2, 1000]);
    assert_eq!(counts(replay::Part { first: Some(3), ..default() }), [1, 2, 1000]);
    assert_eq!(counts(replay::Part { last: Some(1), ..default() }), [3_600_000]);
    let none = replay::run(
        &[root.path().join("none")],
        &default(),
        &Causes::default(),
        (false, false),
        &mut Kept::default(),
    );
    assert!(none.unwrap_err().to_string().contains("can't read"));
}

/// What version 1 wrote, in its three forms, is read as long as there is droptrace.
#[test]
fn recordings_of_version_1_are_read() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for name in ["v1.parquet", "v1.jsonl.zst", "v1.jsonl"] {
        let mut source = Source::open(&seeds.join(name), &Reads::All).unwrap();
        let records: Vec<Record> = source.by_ref().collect();
        assert_eq!(source.damage(), Vec::<String>::new(), "{name}");
        assert_eq!(records.len(), 4, "{name}");
        let Record::Drop(drop) = &records[0] else { panic!("{name}: no drop") };
        assert_eq!((drop.count, drop.segments), (5_000_000_000, 6_000_000_000), "{name}");
        assert_eq!(Key::Pair.label(drop).as_deref(), Some("shop/cart-7c9 -> shop/redis-0"), "{name}");
        let netfilter = drop.drop.netfilter.as_ref().unwrap();
        assert_eq!((netfilter.rule, netfilter.candidates.is_empty()), (Some(7), false), "{name}");
        assert_eq!(drop.drop.cause.as_ref().unwrap().id, "calico-default-deny", "{name}");
        assert!(matches!(&records[1], Record::Drop(drop) if drop.count == 7 && !drop.detail), "{name}");
        assert!(matches!(&records[2], Record::Lost(lost) if lost.count == 3), "{name}");
        assert!(matches!(&records[3], Record::Stalled(stalled) if stalled.peers.len() == 1), "{name}");
    }
}

#[test]
fn routine_drops_are_recorded_and_not_said_to_be_drops() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f.parquet");
    let recorder = Recorder::begin(Place::File(path.clone()), header()).unwrap();
    let mut sink = Recording::<Vec<u8>, Vec<u8>, _>::new(recorder, None, Vec::new(), false, Some(8));
    let now = crate::output::Now::default();
    let mut routine = Drop { count: 9, ..example::drop() };
    routine.drop.class = Class::Routine;
    assert!(sink.record(&Record::Drop(Box::new(routine)), now).is_continue());
    assert!(sink.record(&numbered(7), now).is_continue());
    // -c means drops that are no routine.
    assert!(sink.record(&numbered(1), now).is_break());
    let (summary, _) = sink.finish(now);
    assert_eq!((summary.drops, summary.hidden_total()), (8, 9));
    assert_eq!(read(&path).0, [9, 7, 1]);
}
