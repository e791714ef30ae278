//! The screen as text, for drops made by hand.

use super::draw::{Around, Look, draw};
use super::input::Key as Press;
use super::model::Model;
use super::neighbours::{Neighbours, Rule};
use super::view::{Action, Page, View};
use crate::event::model::{Class, Drop};
use crate::hist::{Charset, fixtures};
use crate::netfilter::model::{Backend, Family, Netfilter};
use jiff::tz::TimeZone;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

/// A drop by a rule of iptables: `table:chain:rule:number`.
fn by_rule(place: &str) -> Drop {
    let words: Vec<&str> = place.split(':').collect();
    let mut drop = fixtures::drop_of("cart-1", "redis-0");
    drop.detail = true;
    drop.drop.reason = Some("NETFILTER_DROP".into());
    drop.drop.location = Some("nf_hook_slow+0x7d".into());
    drop.drop.netfilter = Some(Box::new(Netfilter {
        backend: Some(Backend::Legacy),
        family: Some(Family::Ipv4),
        hook: Some(words[1].into()),
        table: Some(words[0].into()),
        chain: Some(words[1].into()),
        rule: words[3].parse().ok(),
        verdict: Some("drop".into()),
        ..Netfilter::default()
    }));
    drop
}

fn routine() -> Drop {
    let mut drop = fixtures::drop_of("cart-1", "redis-0");
    drop.drop.class = Class::Routine;
    drop
}

/// A model after these drops, each with how often and in which second.
fn model(drops: &[(Drop, u64, u64)]) -> Model {
    let mut model = Model::new(None, false);
    for (drop, count, second) in drops {
        model.second = *second;
        model.add(&Drop { count: *count, ..drop.clone() });
    }
    model
}

fn look(charset: Charset) -> Look {
    Look { charset, color: false, zone: TimeZone::UTC }
}

/// The screen's lines.
fn screen_of(model: &Model, view: &mut View, around: &Around, (width, height): (u16, u16)) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model, view, around, &look(Charset::Ascii))).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |row| (0..width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    (0..height).map(|row| line(row).trim_end().to_owned()).collect()
}

fn screen(model: &Model, view: &mut View) -> Vec<String> {
    screen_of(model, view, &Around { watched: "n1: all drops".into(), ..Around::default() }, (110, 24))
}

fn two_rules() -> Model {
    let [first, second] = ["filter:INPUT:rule:1", "filter:FORWARD:rule:7"].map(by_rule);
    model(&[(first, 3, 1), (second, 40, 2), (routine(), 9, 2)])
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

#[test]
fn groups_with_the_most_drops_are_first() {
    let (model, mut view) = (two_rules(), View::default());
    view.press(Press::Right, &model);
    let lines = screen(&model, &mut view);
    assert!(
        lines[0].starts_with("droptrace  n1: all drops  43 drops, 3/s  9 routine hidden"),
        "{}",
        lines[0]
    );
    let place = |what: &str| lines.iter().position(|line| line.contains(what)).unwrap();
    assert!(place("filter:FORWARD:rule:7") < place("filter:INPUT:rule:1"), "{lines:#?}");
    let row = &lines[place("filter:FORWARD:rule:7")];
    assert!(row.trim_start().starts_with("40 "), "{row}");
    for _ in 0..3 {
        view.press(Press::Char('s'), &model);
    }
    let lines = screen(&model, &mut view);
    let place = |what: &str| lines.iter().position(|line| line.contains(what)).unwrap();
    assert!(place("place*") < place("filter:FORWARD"), "{lines:#?}");
    assert!(place("filter:FORWARD") < place("filter:INPUT"), "by name: {lines:#?}");
}

#[test]
fn keys_turn_from_key_to_key_and_round() {
    let (model, mut view) = (two_rules(), View::default());
    let mut seen = Vec::new();
    for _ in 0..12 {
        let lines = screen(&model, &mut view);
        seen.push(lines[5].split_whitespace().last().unwrap().to_owned());
        view.press(Press::Right, &model);
    }
    assert_eq!(seen[..3], ["cause", "place", "pod"]);
    assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), 12);
    assert_eq!(view.key, 0);
    view.press(Press::Left, &model);
    assert_eq!(view.key, 11);
}

#[test]
fn a_group_opens_to_its_drops_and_one_to_all_that_is_known() {
    let (model, mut view) = (two_rules(), View::default());
    view.press(Press::Right, &model);
    view.press(Press::Down, &model);
    view.press(Press::Enter, &model);
    let lines = screen(&model, &mut view);
    assert!(has(&lines, "place filter:INPUT:rule:1") && has(&lines, "the last 1 drops"), "{lines:#?}");
    let Action::Opened(recent) = view.press(Press::Enter, &model) else { panic!("nothing was opened") };
    assert_eq!(recent.number, 0);
    let rule = |number, is_it| Rule { number, text: format!("-A INPUT -s 10.0.0.{number} -j DROP"), is_it };
    let neighbours = Neighbours { place: "filter:INPUT".into(), rules: vec![rule(1, true), rule(2, false)] };
    let around = Around { neighbours: Some(Ok(neighbours)), ..Around::default() };
    let lines = screen_of(&model, &mut view, &around, (110, 40));
    for part in [
        "dropped by  filter:INPUT:rule:1",
        "kernel      NETFILTER_DROP",
        "Rules around it, as they are now, in filter:INPUT",
        ">     1  -A INPUT -s 10.0.0.1 -j DROP",
    ] {
        assert!(has(&lines, part), "no {part} in {lines:#?}");
    }
    view.press(Press::Escape, &model);
    assert!(matches!(view.page, Page::Drops(_)));
    view.press(Press::Escape, &model);
    assert!(matches!(view.page, Page::Groups));
    // The group is still the selected one.
    let (_, rows) = view.groups(&model);
    assert_eq!(view.place_of_group(&rows), 1);
}

#[test]
fn a_long_drop_scrolls_to_its_end_and_no_further() {
    let (model, mut view) = (two_rules(), View::default());
    view.press(Press::Enter, &model);
    view.press(Press::Enter, &model);
    let around = Around::default();
    let before = screen_of(&model, &mut view, &around, (40, 8));
    view.press(Press::End, &model);
    let after = screen_of(&model, &mut view, &around, (40, 8));
    assert_ne!(before, after);
    let scroll = view.scroll;
    view.press(Press::Down, &model);
    assert_eq!(screen_of(&model, &mut view, &around, (40, 8)), after);
    assert_eq!(view.scroll, scroll);
    view.press(Press::Home, &model);
    assert_eq!(screen_of(&model, &mut view, &around, (40, 8)), before);
}

#[test]
fn a_filter_is_typed() {
    let (model, mut view) = (two_rules(), View::default());
    view.press(Press::Right, &model);
    for letter in "/FORW".chars() {
        view.press(Press::Char(letter), &model);
    }
    let lines = screen(&model, &mut view);
    assert!(has(&lines, "filter:FORWARD:rule:7") && !has(&lines, "filter:INPUT"), "{lines:#?}");
    assert!(lines.last().unwrap().starts_with("/FORW_"), "{lines:#?}");
    view.press(Press::Enter, &model);
    // Keys are keys again, and the filter stays.
    view.press(Press::Char('s'), &model);
    assert_eq!(view.filter, "FORW");
    view.press(Press::Escape, &model);
    assert!(has(&screen(&model, &mut view), "filter:INPUT"));
    // Letters without a match, in any case.
    for letter in "/xyz".chars() {
        view.press(Press::Char(letter), &model);
    }
    assert!(has(&screen(&model, &mut view), "nothing has these letters"));
}

#[test]
fn a_paused_view_stays_while_drops_are_counted() {
    let (mut model, mut view) = (two_rules(), View::default());
    view.press(Press::Char('p'), &model);
    let before = screen(&model, &mut view);
    assert!(has(&before, "PAUSED"));
    model.add(&by_rule("filter:OUTPUT:rule:1"));
    assert_eq!(screen(&model, &mut view), before);
    view.press(Press::Char('p'), &model);
    let after = screen(&model, &mut view);
    assert!(after[0].contains("44 drops") && !has(&after, "PAUSED"), "{after:#?}");
}

#[test]
fn what_is_shown_is_what_is_saved() {
    let (model, mut view) = (two_rules(), View::default());
    let saved = |view: &mut View| {
        for letter in "wx.parquet".chars() {
            view.press(Press::Char(letter), &model);
        }
        match view.press(Press::Enter, &model) {
            Action::Save(path, drops) => {
                assert_eq!(path.to_str(), Some("x.parquet"));
                drops.iter().map(|it| it.number).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(saved(&mut view), [0, 1]);
    view.press(Press::Right, &model);
    view.press(Press::Enter, &model);
    assert_eq!(saved(&mut view), [1]);
    view.press(Press::Enter, &model);
    assert_eq!(saved(&mut view), [1]);
    // Without a name nothing is.
    view.press(Press::Char('w'), &model);
    assert_eq!(view.press(Press::Enter, &model), Action::Nothing);
}

#[test]
fn any_size_is_drawn() {
    let (model, around) = (two_rules(), Around { message: Some("x".repeat(300)), ..Around::default() });
    for (width, height) in [(1, 1), (3, 2), (7, 40), (300, 5), (80, 24)] {
        for keys in ["", "\n", "\n\n", "?", "/abc"] {
            let mut view = View::default();
            for letter in keys.chars() {
                let press = if letter == '\n' { Press::Enter } else { Press::Char(letter) };
                view.press(press, &model);
            }
            assert_eq!(screen_of(&model, &mut view, &around, (width, height)).len(), usize::from(height));
        }
    }
}

#[test]
fn hostile_names_are_harmless() {
    let mut drop = by_rule("filter:INPUT:rule:1");
    if let Some(netfilter) = &mut drop.drop.netfilter {
        netfilter.chain = Some("\x1b[2J\u{202e}evil\n".into());
    }
    let (model, mut view) = (model(&[(drop, 1, 1)]), View::default());
    view.press(Press::Right, &model);
    for _ in 0..3 {
        let lines = screen(&model, &mut view).concat();
        assert!(!lines.contains(['\x1b', '\u{202e}']), "{lines}");
        view.press(Press::Enter, &model);
    }
}

#[test]
fn there_is_room_for_so_many_groups() {
    let mut model = Model::new(None, false);
    for number in 0..2100 {
        model.add(&by_rule(&format!("filter:INPUT:rule:{number}")));
    }
    let mut view = View::default();
    view.press(Press::Right, &model);
    let (_, rows) = view.groups(&model);
    assert_eq!((rows.len(), rows.last().unwrap().drops), (2001, 100));
    assert_eq!(rows.iter().map(|row| row.drops).sum::<u64>(), 2100);
    view.press(Press::End, &model);
    assert!(has(&screen(&model, &mut view), "for which there was no room"));
    // Which has no drops of its own to open.
    view.press(Press::Enter, &model);
    assert!(matches!(view.page, Page::Groups));
}

#[test]
fn routine_drops_are_counted_if_they_are_asked_for() {
    let mut model = Model::new(None, true);
    model.add(&routine());
    assert_eq!((model.counted(), model.background()), (1, (0, 0)));
}
