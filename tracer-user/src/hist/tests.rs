//! From records to text: the golden forms, and what holds for all of them.

use super::fixtures::{at, drop_of, dropped, random};
use super::*;
use crate::event::model::{Class, Lost, LostPlace, Record, Stalled, Timestamp};
use crate::output::{Now, Sink as _, Stop, Summary};
use clap::ValueEnum as _;
use serde_json::Value;

fn now(seconds: f64) -> Now {
    Now { elapsed: Duration::from_secs_f64(seconds), wall: at(seconds) }
}

fn settings(format: Format) -> Settings {
    Settings {
        by: vec![Key::Reason],
        bucket: Duration::from_secs(1),
        top: None,
        compare: None,
        format,
        all: false,
        count: None,
        zone: TimeZone::UTC,
        charset: Charset::Blocks,
        size: || None,
    }
}

/// What a run of 12 seconds prints on stdout and stderr, and its summary.
fn run(settings: Settings, records: &[Record]) -> (String, String, Summary) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut histogram = Histogram::new(settings, &mut out, &mut err);
    for record in records {
        if histogram.record(record, now(1.0)).is_break() {
            break;
        }
    }
    let (summary, flow) = histogram.finish(now(12.0));
    assert!(flow.is_continue());
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), summary)
}

fn routine(count: u64) -> Record {
    let Record::Drop(mut drop) = dropped("SKB_CONSUMED", 1.0, count) else { unreachable!() };
    drop.drop.class = Class::Routine;
    Record::Drop(drop)
}

fn some() -> Vec<Record> {
    let mut records = vec![
        dropped("NETFILTER_DROP", 0.5, 10),
        dropped("NETFILTER_DROP", 3.0, 400),
        dropped("NETFILTER_DROP", 3.5, 1000),
        dropped("NETFILTER_DROP", 9.0, 200),
        dropped("NO_SOCKET", 2.0, 300),
        dropped("NO_SOCKET", 11.9, 1),
        dropped("IP_INHDR", 6.0, 4),
        routine(7),
        Record::Lost(Lost { time: at(1.0), count: 2, place: LostPlace::Ring }),
    ];
    let Record::Drop(mut drop) = dropped("", 5.0, 3) else { unreachable!() };
    (drop.drop.reason, drop.segments) = (None, 9);
    records.push(Record::Drop(drop));
    records
}

fn at_width<const WIDTH: usize>(top: Option<usize>, charset: Charset) -> String {
    let size = || Some(Size { width: WIDTH, height: 24 });
    let text = run(Settings { top, charset, size, ..settings(Format::Chart) }, &some()).0;
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    text
}

#[test]
fn chart_of_80_columns() {
    assert_eq!(
        at_width::<80>(None, Charset::Blocks),
        "\
2026-11-20 22:14:00 to 22:14:12: 1,918 drops (1,924 segments)
7 routine drops hidden, 2 events lost
most in 1 s: 1,400 at 22:14:03

drops   share                    each 1 s       reason
1,918  100.0%                    ▁ ▁█ ▁▁  ▁ ▁   all
1,610   83.9%  ████████████████  ▁  █     ▁     NETFILTER_DROP
  301   15.6%  ██▉                 █        ▁   NO_SOCKET
    4    0.2%  ▏                       █        IP_INHDR
    3    0.1%  ▏                      █         (none)
"
    );
}

#[test]
fn chart_of_40_columns_has_no_course() {
    assert_eq!(
        at_width::<40>(Some(2), Charset::Blocks),
        "\
2026-11-20 22:14:00 to 22:14:12: 1,918 …
7 routine drops hidden, 2 events lost
most in 1 s: 1,400 at 22:14:03

drops   share            reason
1,918  100.0%            all
1,610   83.9%  ████████  NETFILTER_DROP
  301   15.6%  █▍        NO_SOCKET
    7    0.3%  ▏         (other): 2 gro…
"
    );
}

#[test]
fn chart_of_200_columns_in_ascii() {
    assert_eq!(
        at_width::<200>(Some(1), Charset::Ascii),
        "\
2026-11-20 22:14:00 to 22:14:12: 1,918 drops (1,924 segments)
7 routine drops hidden, 2 events lost
most in 1 s: 1,400 at 22:14:03

drops   share                                            each 1 s       reason
1,918  100.0%                                            _ _# __  _ _   all
1,610   83.9%  ########################################  _  #     _     NETFILTER_DROP
  308   16.0%  #######                                     #  __    _   (other): 3 groups
"
    );
}

#[test]
fn a_long_course_has_several_buckets_in_a_column() {
    let records: Vec<_> = (0..300).map(|at| dropped("X", f64::from(at), 1)).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut histogram = Histogram::new(settings(Format::Chart), &mut out, &mut err);
    for record in &records {
        assert!(histogram.record(record, now(0.0)).is_continue());
    }
    assert!(histogram.finish(now(299.0)).1.is_continue());
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("each 15 s") && text.contains(&"█".repeat(20)), "{text}");
}

#[test]
fn no_drops_are_said_in_every_form() {
    let (chart, err, summary) = run(settings(Format::Chart), &[routine(3)]);
    assert_eq!(
        chart,
        "\
2026-11-20 22:14:00 to 22:14:12: 0 drops
3 routine drops hidden, 0 events lost

drops   share                    each 1 s       reason
    0    0.0%                                   all
"
    );
    assert_eq!(
        err,
        "-- 12.0 s: 0 drops, 3 routine drops hidden, 0 events lost --\nhidden (--all shows them): 3 SKB_CONSUMED\n"
    );
    assert_eq!((summary.drops, summary.hidden_total()), (0, 3));
    let (table, ..) = run(settings(Format::Table), &[]);
    assert_eq!(
        table,
        "\
DROPS  SEGMENTS  SHARE  DROPS/S  FIRST  LAST  REASON
    0         0   0.0%      0.0      -     -  (all)
"
    );
    assert_eq!(run(settings(Format::Csv), &[]).0, "type,time,reason,count,segments\n");
    let json: Value = serde_json::from_str(&run(settings(Format::Json), &[]).0).unwrap();
    assert_eq!((json["count"].as_u64(), json["buckets"].as_array().map(Vec::len)), (Some(0), Some(0)));
}

#[test]
fn table_is_a_line_a_group() {
    assert_eq!(
        run(Settings { top: Some(2), ..settings(Format::Table) }, &some()).0,
        "\
DROPS  SEGMENTS   SHARE  DROPS/S     FIRST      LAST  REASON
 1610      1610   83.9%    134.2  22:14:00  22:14:09  NETFILTER_DROP
  301       301   15.6%     25.1  22:14:02  22:14:11  NO_SOCKET
    7        13    0.3%      0.6  22:14:05  22:14:06  (other): 2 groups
 1918      1924  100.0%    159.8  22:14:00  22:14:11  (all)
"
    );
}

#[test]
fn json_is_the_whole_and_then_each_group() {
    let by = vec![Key::Reason, Key::ToPod];
    let bucket = Duration::from_secs(10);
    let (text, ..) = run(Settings { top: Some(2), by, bucket, ..settings(Format::Json) }, &some());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        concat!(
            r#"{"type":"histogram","time":"2026-11-20T22:14:00.000000Z","time_last":"2026-11-20T22:14:12.000000Z","#,
            r#""by":["reason","to-pod"],"hidden":{"SKB_CONSUMED":7},"lost":{"ring":2},"bucket_seconds":10.0,"#,
            r#""count":1918,"segments":1924,"buckets":[{"time":"2026-11-20T22:14:00.000000Z","count":1917,"segments":1923},"#,
            r#"{"time":"2026-11-20T22:14:10.000000Z","count":1,"segments":1}]}"#
        )
    );
    assert_eq!(
        lines[2],
        concat!(
            r#"{"type":"group","key":{"reason":"NO_SOCKET","to-pod":"shop/redis-0"},"count":301,"segments":301,"#,
            r#""buckets":[{"time":"2026-11-20T22:14:00.000000Z","count":300,"segments":300},"#,
            r#"{"time":"2026-11-20T22:14:10.000000Z","count":1,"segments":1}]}"#
        )
    );
    assert_eq!(
        lines[3],
        concat!(
            r#"{"type":"other","groups":2,"beyond_limit":0,"count":7,"segments":13,"#,
            r#""buckets":[{"time":"2026-11-20T22:14:00.000000Z","count":7,"segments":13}]}"#
        )
    );
    assert_eq!(lines.len(), 4);
}

#[test]
fn csv_is_a_line_for_each_group_and_bucket() {
    let (text, err, _) =
        run(Settings { top: Some(1), bucket: Duration::from_secs(5), ..settings(Format::Csv) }, &some());
    assert_eq!(
        text,
        "\
type,time,reason,count,segments
group,2026-11-20T22:14:00.000000Z,NETFILTER_DROP,1410,1410
group,2026-11-20T22:14:05.000000Z,NETFILTER_DROP,200,200
other,2026-11-20T22:14:00.000000Z,,300,300
other,2026-11-20T22:14:05.000000Z,,7,13
other,2026-11-20T22:14:10.000000Z,,1,1
"
    );
    assert!(err.contains("1,918 drops (1,924 segments), 7 routine drops hidden, 2 events lost"), "{err}");
}

fn windows(first: &str, second: &str) -> Option<[Window; 2]> {
    Some([first, second].map(|text| Window::parse(text).unwrap()))
}

#[test]
fn two_windows_are_compared_in_every_form() {
    let compare = windows("0s..3s", "3s..9s");
    let text = |format| run(Settings { compare, top: Some(2), ..settings(format) }, &some()).0;
    let table = "\
before 3.0 s, after 6.0 s; 201 drops in neither, 7 routine drops hidden, 2 events lost
CHANGE  BEFORE  AFTER  BEFORE/S  AFTER/S  REASON
  grew      10   1400      3.33   233.33  NETFILTER_DROP
  gone     300      0    100.00     0.00  NO_SOCKET
   new       0      7      0.00     1.17  (other): 2 groups
  grew     310   1407    103.33   234.50  (all)
";
    assert_eq!(text(Format::Chart), table);
    assert_eq!(text(Format::Table), table);
    assert_eq!(
        text(Format::Csv),
        "\
type,change,reason,before,after,before_segments,after_segments,before_per_second,after_per_second
group,grew,NETFILTER_DROP,10,1400,10,1400,3.3333333333333335,233.33333333333334
group,gone,NO_SOCKET,300,0,300,0,100,0
other,new,,0,7,0,13,0,1.1666666666666667
"
    );
    let json = text(Format::Json);
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0]["outside"].as_u64(), lines[0]["before_seconds"].as_f64()), (Some(201), Some(3.0)));
    assert_eq!(
        (lines[2]["change"].as_str(), lines[2]["before"]["count"].as_u64()),
        (Some("gone"), Some(300))
    );
}

#[test]
fn hostile_labels_do_nothing_to_terminals_or_fields() {
    let evil = "a\u{1b}[2J\n\"b\",\u{202e}c";
    for format in Format::value_variants() {
        let (text, ..) = run(settings(*format), &[dropped(evil, 1.0, 5)]);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{format:?} {text:?}");
        let lines = text.lines().count();
        assert_eq!(lines, [7, 3, 2, 2][Format::value_variants().iter().position(|it| it == format).unwrap()]);
    }
    let (csv, ..) = run(settings(Format::Csv), &[dropped(evil, 1.0, 5)]);
    assert!(csv.contains(r#","a\x1b[2J\x0a""b"",\u{202e}c",5,5"#), "{csv}");
}

#[test]
fn machine_forms_add_up_to_what_was_counted() {
    let mut state = 0x2545_f491_4f6c_dd1d;
    for case in 0..60_u64 {
        let by = vec![Key::value_variants()[case as usize % Key::value_variants().len()], Key::Pair];
        let top = (random(&mut state, 2) == 0).then(|| random(&mut state, 6) as usize);
        let (mut sent, mut records) = (0, Vec::new());
        for _ in 0..100 {
            let mut drop = drop_of(&format!("cart-{}", random(&mut state, 6)), "redis-0");
            drop.time = at(random(&mut state, 300) as f64 / 10.0);
            drop.time_last = Timestamp(drop.time.0 + i128::from(random(&mut state, 1_000_000_000)));
            drop.count = random(&mut state, 1000);
            sent += drop.count;
            records.push(Record::Drop(Box::new(drop)));
        }
        let form = |format| run(Settings { by: by.clone(), top, ..settings(format) }, &records);
        let (csv, _, summary) = form(Format::Csv);
        assert_eq!(summary.drops, sent);
        let fields = csv.lines().skip(1).map(|line| line.rsplit(',').nth(1).unwrap().parse::<u64>().unwrap());
        assert_eq!(fields.sum::<u64>(), sent, "{csv}");
        let json = form(Format::Json).0;
        let mut sums = [0_u64; 2];
        for line in json.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let buckets = line["buckets"].as_array().unwrap().iter().map(|it| it["count"].as_u64().unwrap());
            assert_eq!(Some(buckets.sum()), line["count"].as_u64());
            sums[usize::from(line["type"] != "histogram")] += line["count"].as_u64().unwrap();
        }
        assert_eq!(sums, [sent, sent]);
    }
}

#[test]
fn count_ends_the_run_with_what_came_until_then() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut histogram =
        Histogram::new(Settings { count: Some(10), ..settings(Format::Csv) }, &mut out, &mut err);
    assert!(histogram.record(&dropped("A", 0.0, 9), now(0.0)).is_continue());
    assert!(histogram.record(&routine(9), now(0.0)).is_continue());
    let stop = histogram.record(&dropped("A", 0.0, 5), now(0.0)).break_value();
    assert!(matches!(stop, Some(Stop::Count)));
    assert_eq!(histogram.finish(now(1.0)).0.drops, 14);
    assert!(String::from_utf8(out).unwrap().contains(",A,14,14"));
}

#[test]
fn a_terminal_is_drawn_once_a_second_and_nothing_else_is() {
    let drawings = |format, size| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut histogram = Histogram::new(Settings { size, ..settings(format) }, &mut out, &mut err);
        for tenth in 0..25_u32 {
            assert!(histogram.record(&dropped("A", 0.0, 1), now(0.0)).is_continue());
            assert!(histogram.tick(now(f64::from(tenth) / 10.0)).is_continue());
        }
        let quiet = Stalled { filter: "--pod cart".into(), ..Stalled::default() };
        assert!(histogram.record(&Record::Stalled(quiet), now(2.5)).is_continue());
        assert!(histogram.finish(now(2.6)).1.is_continue());
        let (out, err) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
        assert!(err.starts_with("-- 0 s: 0 drops for --pod cart"), "{err}");
        // Whatever was drawn is gone before the last is printed, and the terminal as it was.
        let last = out.rsplit("\x1b[J").next().unwrap();
        assert!(!last.contains('\x1b') && last.contains('A'), "{out:?}");
        assert_eq!(out.matches("\x1b[?7l").count(), out.matches("\x1b[?7h").count());
        out.matches("\x1b[?7l").count()
    };
    let terminal = || Some(Size { width: 80, height: 24 });
    assert_eq!([Format::Chart, Format::Table].map(|format| drawings(format, terminal)), [3, 3]);
    assert_eq!(drawings(Format::Json, terminal), 0);
    assert_eq!(drawings(Format::Chart, || None), 0);
}

#[test]
fn what_is_drawn_over_fits_the_terminal() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let size = || Some(Size { width: 80, height: 12 });
    let mut histogram =
        Histogram::new(Settings { top: Some(50), size, ..settings(Format::Chart) }, &mut out, &mut err);
    for at in 0..60 {
        assert!(histogram.record(&dropped(&format!("R{at}"), 0.0, 1), now(0.0)).is_continue());
    }
    assert!(histogram.tick(now(0.0)).is_continue());
    drop(histogram);
    let out = String::from_utf8(out).unwrap();
    assert!(out.lines().count() <= 12 && out.contains("(other): 56 groups"), "{out:?}");
}
