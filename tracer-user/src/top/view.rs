//! What of the model is shown, and what keys do to that.

use super::input::Key as Press;
use super::model::{GROUP_SECONDS, Label, Model, Recent};
use crate::event::model::Timestamp;
use crate::hist::Key;
use crate::output::words;
use std::cmp::Reverse;
use std::path::PathBuf;

/// Seconds that a rate is of.
const RATE_SECONDS: u64 = 10;
/// Letters of what is typed.
const MOST_TYPED: usize = 256;

/// What is before what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// The most drops.
    #[default]
    Count,
    /// The most in the last seconds.
    Rate,
    /// The last one dropped.
    Last,
    /// By name.
    Name,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Count => Self::Rate,
            Self::Rate => Self::Last,
            Self::Last => Self::Name,
            Self::Name => Self::Count,
        }
    }
}

/// What is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Typing {
    /// Letters that lines must have.
    Filter(String),
    /// The file that the selection is saved to.
    Save(String),
}

/// What is on the screen.
#[derive(Clone, Debug, Default)]
pub(super) enum Page {
    /// Groups.
    #[default]
    Groups,
    /// Drops of a group.
    Drops(Label),
    /// A drop of a group.
    Detail(Label, Recent),
}

/// What is to be done besides.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    Quit,
    /// A drop was opened.
    Opened(Recent),
    /// The selection is to be saved.
    Save(PathBuf, Vec<Recent>),
}

impl PartialEq for Recent {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

/// Which group a row is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    /// The one with this label.
    One(Label),
    /// All for which there was no room.
    Others,
}

/// A group, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct GroupRow {
    pub(super) which: Which,
    /// How many, of all.
    pub(super) drops: u64,
    /// How many a second.
    pub(super) rate: f64,
    /// In each of the last seconds.
    pub(super) trend: Vec<u64>,
    /// When the last one was dropped.
    pub(super) last: Timestamp,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Which key drops are grouped by, of the model's.
    pub(super) key: usize,
    pub(super) sort: Sort,
    /// Letters that lines must have, in any case.
    pub(super) filter: String,
    pub(super) typing: Option<Typing>,
    pub(super) page: Page,
    /// The group that is selected, whatever its place.
    pub(super) selected: Option<Which>,
    /// The drop that is.
    pub(super) drop: Option<u64>,
    /// The first line of a drop that is shown.
    pub(super) scroll: usize,
    pub(super) has_help: bool,
    /// The model as it was when it was paused.
    pub(super) paused: Option<Box<Model>>,
    /// Lines of the page, as far as there was room for.
    pub(super) height: usize,
}

impl View {
    /// The model that is shown.
    pub(super) fn shown<'a>(&'a self, live: &'a Model) -> &'a Model {
        self.paused.as_deref().unwrap_or(live)
    }

    /// Whether a line has the letters that are looked for.
    fn has(&self, line: &str) -> bool {
        self.filter.is_empty() || line.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// The groups in their order.
    pub(super) fn groups(&self, model: &Model) -> (Key, Vec<GroupRow>) {
        let (key, groups) = model.groups(self.key);
        let second = model.second;
        let seconds = RATE_SECONDS.min(second.max(1));
        let row = |which: Which, group: &super::model::Group| {
            let trend = group.history.until(second, GROUP_SECONDS);
            // The second that is now is not over.
            let recent: u64 = group.history.until(second.saturating_sub(1), seconds as usize).iter().sum();
            GroupRow {
                which,
                drops: group.drops,
                rate: recent as f64 / seconds as f64,
                trend,
                last: group.last,
            }
        };
        let mut rows: Vec<GroupRow> = groups
            .groups
            .iter()
            .filter(|(label, _)| self.has(name(label)))
            .map(|(label, group)| row(Which::One(label.clone()), group))
            .collect();
        let by_name = |row: &GroupRow| row.which.clone();
        match self.sort {
            Sort::Count => rows.sort_by_cached_key(|row| (Reverse(row.drops), by_name(row))),
            Sort::Rate => rows.sort_by(|a, b| {
                b.rate
                    .total_cmp(&a.rate)
                    .then_with(|| b.drops.cmp(&a.drops))
                    .then_with(|| a.which.cmp(&b.which))
            }),
            Sort::Last => rows.sort_by_cached_key(|row| (Reverse(row.last), by_name(row))),
            Sort::Name => rows.sort_by_cached_key(by_name),
        }
        if groups.beyond.drops > 0 && self.filter.is_empty() {
            rows.push(row(Which::Others, &groups.beyond));
        }
        (key, rows)
    }

    /// The drops of a group, the newest first.
    pub(super) fn drops<'a>(&'a self, model: &'a Model, label: &'a Label) -> Vec<&'a Recent> {
        let key = model.groups(self.key).0;
        model
            .drops_of(key, label)
            .filter(|it| self.filter.is_empty() || self.has(&words::line(&it.drop)))
            .collect()
    }

    /// What a key does.
    pub(super) fn press(&mut self, press: Press, live: &Model) -> Action {
        if press == Press::Interrupt {
            return Action::Quit;
        }
        if self.has_help {
            self.has_help = false;
            return Action::Nothing;
        }
        if let Some(typing) = self.typing.take() {
            return self.typed(typing, press, live);
        }
        match press {
            Press::Char('q') => return Action::Quit,
            Press::Char('?' | 'h') => self.has_help = true,
            Press::Char('p' | ' ') => {
                self.paused = if self.paused.is_some() { None } else { Some(Box::new(live.clone())) };
            }
            Press::Char('s') => self.sort = self.sort.next(),
            Press::Char('/') => self.typing = Some(Typing::Filter(self.filter.clone())),
            Press::Char('w') => self.typing = Some(Typing::Save(String::new())),
            Press::Escape | Press::Backspace => self.back(),
            Press::Enter => return self.open(live),
            Press::Left if matches!(self.page, Page::Groups) => self.turn(live, -1),
            Press::Right if matches!(self.page, Page::Groups) => self.turn(live, 1),
            Press::Left => self.back(),
            Press::Right => return self.open(live),
            Press::Up | Press::Char('k') => self.go(live, -1),
            Press::Down | Press::Char('j') => self.go(live, 1),
            Press::PageUp => self.go(live, -(self.page_of_lines())),
            Press::PageDown => self.go(live, self.page_of_lines()),
            Press::Home | Press::Char('g') => self.go(live, isize::MIN / 2),
            Press::End | Press::Char('G') => self.go(live, isize::MAX / 2),
            Press::Char(_) | Press::Interrupt => {}
        }
        Action::Nothing
    }

    fn page_of_lines(&self) -> isize {
        isize::try_from(self.height.saturating_sub(1).max(1)).unwrap_or(1)
    }

    fn typed(&mut self, typing: Typing, press: Press, live: &Model) -> Action {
        let (Typing::Filter(text) | Typing::Save(text)) = &typing;
        let mut text = text.clone();
        match press {
            Press::Escape => {
                if matches!(typing, Typing::Filter(_)) {
                    self.filter.clear();
                }
                return Action::Nothing;
            }
            Press::Enter => {
                return match typing {
                    Typing::Save(path) if !path.is_empty() => Action::Save(path.into(), self.selection(live)),
                    _ => Action::Nothing,
                };
            }
            Press::Backspace => {
                text.pop();
            }
            Press::Char(letter) if text.len() < MOST_TYPED => text.push(letter),
            _ => {}
        }
        self.typing = Some(match typing {
            Typing::Filter(_) => {
                // What is typed is looked for at once.
                self.filter.clone_from(&text);
                Typing::Filter(text)
            }
            Typing::Save(_) => Typing::Save(text),
        });
        Action::Nothing
    }

    fn back(&mut self) {
        self.scroll = 0;
        self.page = match std::mem::take(&mut self.page) {
            Page::Detail(label, _) => Page::Drops(label),
            Page::Drops(_) => {
                self.drop = None;
                Page::Groups
            }
            Page::Groups => {
                self.filter.clear();
                Page::Groups
            }
        };
    }

    fn open(&mut self, live: &Model) -> Action {
        let shown = self.shown(live);
        match &self.page {
            Page::Groups => {
                let rows = self.groups(shown).1;
                let at = self.place_of_group(&rows);
                if let Some(GroupRow { which: Which::One(label), .. }) = rows.into_iter().nth(at) {
                    (self.page, self.drop) = (Page::Drops(label), None);
                    // Letters that were looked for in groups are none of their drops.
                    self.filter.clear();
                }
                Action::Nothing
            }
            Page::Drops(label) => {
                let drops = self.drops(shown, label);
                let at = self.place_of_drop(&drops);
                let Some(opened) = drops.get(at).map(|it| (*it).clone()) else { return Action::Nothing };
                (self.drop, self.scroll) = (Some(opened.number), 0);
                self.page = Page::Detail(label.clone(), opened.clone());
                Action::Opened(opened)
            }
            Page::Detail(..) => Action::Nothing,
        }
    }

    fn turn(&mut self, live: &Model, by: isize) {
        let count = live.keys().count();
        self.key = moved(self.key.min(count.saturating_sub(1)) + count, by) % count.max(1);
        (self.selected, self.page) = (None, Page::Groups);
    }

    /// The selected group's place among the rows.
    pub(super) fn place_of_group(&self, rows: &[GroupRow]) -> usize {
        let selected = self.selected.as_ref();
        rows.iter().position(|row| Some(&row.which) == selected).unwrap_or(0)
    }

    /// The selected drop's place among a group's.
    pub(super) fn place_of_drop(&self, drops: &[&Recent]) -> usize {
        drops.iter().position(|it| Some(it.number) == self.drop).unwrap_or(0)
    }

    fn go(&mut self, live: &Model, by: isize) {
        let shown = self.shown(live);
        match &self.page {
            Page::Groups => {
                let rows = self.groups(shown).1;
                let to = moved(self.place_of_group(&rows), by).min(rows.len().saturating_sub(1));
                self.selected = rows.into_iter().nth(to).map(|row| row.which);
            }
            Page::Drops(label) => {
                let drops = self.drops(shown, label);
                let to = moved(self.place_of_drop(&drops), by).min(drops.len().saturating_sub(1));
                self.drop = drops.get(to).map(|it| it.number);
            }
            // How many lines there are is known when they are drawn.
            Page::Detail(..) => self.scroll = moved(self.scroll, by),
        }
    }

    /// The drops that are meant by what is selected.
    fn selection(&self, live: &Model) -> Vec<Recent> {
        let shown = self.shown(live);
        match &self.page {
            Page::Groups => {
                let (key, rows) = self.groups(shown);
                let is_meant = |it: &&Recent| {
                    let which = Which::One(key.label(&it.drop));
                    rows.iter().any(|row| row.which == which)
                };
                // In the order of time.
                let mut drops: Vec<Recent> = shown.drops().filter(is_meant).cloned().collect();
                drops.reverse();
                drops
            }
            Page::Drops(label) => self.drops(shown, label).into_iter().rev().cloned().collect(),
            Page::Detail(_, drop) => vec![drop.clone()],
        }
    }
}

/// A group's name as it is shown.
pub(super) fn name(label: &Label) -> &str {
    label.as_deref().unwrap_or("-")
}

fn moved(from: usize, by: isize) -> usize {
    from.saturating_add_signed(by)
}
