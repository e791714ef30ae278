//! Draws what is shown. Pure: the same model and view give the same screen.

use super::detail::{self, Look as TextLook, Text};
use super::model::{GROUP_SECONDS, Model, Recent, SECONDS};
use super::neighbours::Neighbours;
use super::view::{GroupRow, Page, Sort, Typing, View, Which, name};
use crate::event::model::{Class, Timestamp};
use crate::hist::Charset;

use crate::output::{Clock, TimeFormat, words};

use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

/// Lines of the graph.
const GRAPH: u16 = 4;
/// Lines of a screen that leaves no room for the graph.
const LOW: u16 = 16;

/// How it looks.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// Letters.
    pub(crate) charset: Charset,
    /// Colours, too.
    pub(crate) color: bool,
    /// Of times.
    pub(crate) zone: TimeZone,
}

/// What stands around the page.
#[derive(Clone, Debug, Default)]
pub(super) struct Around {
    /// The node, and what is watched.
    pub(super) watched: String,
    /// What was said last, by droptrace or about what a key did.
    pub(super) message: Option<String>,
    /// The rules around the drop that is looked at.
    pub(super) neighbours: Option<Result<Neighbours, String>>,
}

/// Draws; tells the view how many lines the page has.
pub(super) fn draw(frame: &mut Frame<'_>, live: &Model, view: &mut View, around: &Around, look: &Look) {
    let area = frame.area();
    let graph = if area.height < LOW { 0 } else { GRAPH };
    let parts = [
        Constraint::Length(1),
        Constraint::Length(graph),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(u16::from(around.message.is_some())),
        Constraint::Length(1),
    ];
    let [top, middle, head, page, said, bottom] = Layout::vertical(parts).areas(area);
    view.height = page.height.into();
    let drawing = Drawing { model: view.shown(live), view, around, look };
    drawing.status(frame, top);
    drawing.graph(frame, middle);
    let last = drawing.page(frame, head, page);
    drawing.said(frame, said);
    drawing.bottom(frame, bottom);
    if view.has_help {
        help(frame, area, look);
    }
    view.scroll = view.scroll.min(last);
}

struct Drawing<'a> {
    model: &'a Model,
    view: &'a View,
    around: &'a Around,
    look: &'a Look,
}

impl Drawing<'_> {
    fn style(&self, style: Style) -> Style {
        // Without colours what is bold or reversed still is.
        if self.look.color { style } else { Style { fg: None, bg: None, ..style } }
    }

    fn faint(&self) -> Style {
        self.style(Style::new().fg(Color::DarkGray))
    }

    fn status(&self, frame: &mut Frame<'_>, area: Rect) {
        let (hidden, lost) = self.model.background();
        let mut parts = vec![
            Span::styled("droptrace", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!("  {}  ", self.around.watched)),
            Span::raw(format!("{} drops", words::thousands(self.model.counted()))),
        ];
        let now = self.model.second.saturating_sub(1);
        let recent = self.model.history.until(now, 1).into_iter().sum::<u64>();
        parts.push(Span::raw(format!(", {}/s", words::thousands(recent))));
        if hidden > 0 {
            parts.push(Span::styled(format!("  {} routine hidden", words::thousands(hidden)), self.faint()));
        }
        if lost > 0 {
            let style = self.style(Style::new().fg(Color::Red));
            parts.push(Span::styled(format!("  {} lost", words::thousands(lost)), style));
        }
        if self.view.paused.is_some() {
            let style = self.style(Style::new().fg(Color::Yellow)).add_modifier(Modifier::REVERSED);
            parts.push(Span::raw("  "));
            parts.push(Span::styled(" PAUSED ", style));
        }
        frame.render_widget(Line::from(parts), area);
    }

    /// Drops a second, the newest at the right.
    fn graph(&self, frame: &mut Frame<'_>, area: Rect) {
        if area.height == 0 {
            return;
        }
        let width = usize::from(area.width.saturating_sub(8)).min(SECONDS);
        let counts = self.model.history.until(self.model.second, width);
        let most = counts.iter().copied().max().unwrap_or(0);
        let rows = self.look.charset.columns(&counts, area.height.into());
        let lines: Vec<Line<'_>> = rows
            .into_iter()
            .enumerate()
            .map(|(row, text)| {
                let label = if row == 0 { words::short(most) } else { String::new() };
                Line::from(vec![
                    Span::styled(format!("{label:>6} "), self.faint()),
                    Span::styled(text, self.style(Style::new().fg(Color::Red))),
                ])
            })
            .collect();
        frame.render_widget(Paragraph::new(lines), area);
    }

    /// The page under its head; the last line that it can be scrolled to.
    fn page(&self, frame: &mut Frame<'_>, head: Rect, area: Rect) -> usize {
        match &self.view.page {
            Page::Groups => self.groups(frame, head, area),
            Page::Drops(label) => {
                let drops = self.view.drops(self.model, label);
                let key = self.model.groups(self.view.key).0;
                let what = format!(
                    "{} {}: the last {} drops with detail",
                    key.name(),
                    name(label),
                    words::thousands(drops.len() as u64)
                );
                self.head(frame, head, &what);
                self.drops(frame, area, &drops);
            }
            Page::Detail(_, recent) => return self.detail(frame, head, area, recent),
        }
        0
    }

    fn head(&self, frame: &mut Frame<'_>, area: Rect, text: &str) {
        let style = self.style(Style::new().fg(Color::Cyan)).add_modifier(Modifier::BOLD);
        let text = format!("{text:<width$}", width = usize::from(area.width));
        frame.render_widget(Line::styled(text, style), area);
    }

    fn groups(&self, frame: &mut Frame<'_>, head: Rect, area: Rect) {
        let (key, rows) = self.view.groups(self.model);
        let mark = |name: &str, sort: Sort| {
            let mark = if self.view.sort == sort { "*" } else { "" };
            format!("{name}{mark}")
        };
        let [drops, rate, last] = [("drops", Sort::Count), ("/s", Sort::Rate), ("last", Sort::Last)]
            .map(|(name, sort)| mark(name, sort));
        let name_of_key = mark(&key.name(), Sort::Name);
        let columns =
            format!("{drops:>10} {rate:>9} {:<GROUP_SECONDS$} {last:<9} {name_of_key}", "last 30 s");
        self.head(frame, head, &columns);
        if rows.is_empty() {
            let why = if self.view.filter.is_empty() {
                "nothing was dropped yet"
            } else {
                "nothing has these letters"
            };
            frame.render_widget(Line::styled(why, self.faint()), area);
            return;
        }
        let at = self.view.place_of_group(&rows);
        let lines = window(&rows, at, area.height).map(|(index, row)| {
            let line = self.group(row);
            if index == at { line.style(Style::new().add_modifier(Modifier::REVERSED)) } else { line }
        });
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    }

    fn group(&self, row: &GroupRow) -> Line<'static> {
        let label = match &row.which {
            Which::One(label) => name(label).to_owned(),
            Which::Others => "all others, for which there was no room".to_owned(),
        };
        let rate = if row.rate >= 100.0 {
            words::thousands(row.rate.round() as u64)
        } else {
            format!("{:.1}", row.rate)
        };
        Line::from(vec![
            Span::raw(format!("{:>10} {rate:>9} ", words::thousands(row.drops))),
            Span::styled(self.look.charset.sparkline(&row.trend), self.style(Style::new().fg(Color::Red))),
            Span::styled(format!(" {:<9} ", self.seconds(row.last)), self.faint()),
            Span::raw(label),
        ])
    }

    fn drops(&self, frame: &mut Frame<'_>, area: Rect, drops: &[&Recent]) {
        if drops.is_empty() {
            let why = "none is kept: only counts came of these, or the last ones pushed them out";
            frame.render_widget(Line::styled(why, self.faint()), area);
            return;
        }
        let at = self.view.place_of_drop(drops);
        let lines = window(drops, at, area.height).map(|(index, recent)| {
            let drop = &recent.drop;
            let line = Line::from(vec![
                Span::styled(format!("{}  ", self.time(drop.time)), self.faint()),
                Span::styled(words::line(drop), self.class(drop.drop.class)),
            ]);
            if index == at { line.style(Style::new().add_modifier(Modifier::REVERSED)) } else { line }
        });
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    }

    fn class(&self, class: Class) -> Style {
        match class {
            Class::Routine => self.faint(),
            Class::Policy | Class::Error | Class::Resource => Style::new(),
        }
    }

    fn detail(&self, frame: &mut Frame<'_>, head: Rect, area: Rect, recent: &Recent) -> usize {
        self.head(frame, head, &format!("drop {}", recent.number));
        let neighbours = self.around.neighbours.as_ref();
        let lines = detail::lines(&recent.drop, &self.time(recent.drop.time), neighbours);
        let styled = |text: &Text| {
            let style = match text.look {
                TextLook::Plain => Style::new(),
                TextLook::Heading => self.style(Style::new().fg(Color::Cyan)).add_modifier(Modifier::BOLD),
                TextLook::Strong => self.style(Style::new().fg(Color::Green)).add_modifier(Modifier::BOLD),
            };
            Line::styled(text.text.clone(), style)
        };
        // Long ones go on in the next line.
        let width = usize::from(area.width).max(1);
        let height: usize = lines.iter().map(|text| text.text.chars().count().div_ceil(width).max(1)).sum();
        let last = height.saturating_sub(area.height.into());
        let scroll = self.view.scroll.min(last);
        let page = Paragraph::new(lines.iter().map(styled).collect::<Vec<_>>())
            .wrap(Wrap { trim: false })
            .scroll((u16::try_from(scroll).unwrap_or(u16::MAX), 0));
        frame.render_widget(page, area);
        last
    }

    fn said(&self, frame: &mut Frame<'_>, area: Rect) {
        if let Some(message) = &self.around.message {
            let style = self.style(Style::new().fg(Color::Yellow));
            frame.render_widget(Line::styled(message.as_str(), style), area);
        }
    }

    fn bottom(&self, frame: &mut Frame<'_>, area: Rect) {
        let line = match &self.view.typing {
            Some(Typing::Filter(text)) => Line::raw(format!("/{text}_   (enter keeps, esc clears)")),
            Some(Typing::Save(text)) => {
                Line::raw(format!("save these drops as (a file that ends in .parquet): {text}_"))
            }
            None => {
                let find = match self.view.filter.as_str() {
                    "" => "/ filter".to_owned(),
                    filter => format!("/ filter [{filter}]"),
                };
                let keys = match self.view.page {
                    Page::Groups => {
                        format!(
                            "<-/-> key   enter open   s sort   {find}   p pause   w save   ? help   q quit"
                        )
                    }
                    Page::Drops(_) => {
                        format!("enter open   esc back   {find}   p pause   w save   ? help   q quit")
                    }
                    Page::Detail(..) => "up/down scroll   esc back   w save   ? help   q quit".to_owned(),
                };
                Line::styled(keys, self.faint())
            }
        };
        frame.render_widget(line, area);
    }

    fn time(&self, time: Timestamp) -> String {
        Clock::new(TimeFormat::Clock, self.look.zone.clone()).line(time)
    }

    /// To the second.
    fn seconds(&self, time: Timestamp) -> String {
        let time = self.time(time);
        time.split('.').next().unwrap_or_default().to_owned()
    }
}

/// The rows that there is room for, with that at `at` among them.
fn window<T>(rows: &[T], at: usize, height: u16) -> impl Iterator<Item = (usize, &T)> {
    let height = usize::from(height).max(1);
    // A selected row stays where it is until it would leave.
    let first = at.saturating_sub(height - 1);
    rows.iter().enumerate().skip(first).take(height)
}

fn help(frame: &mut Frame<'_>, area: Rect, look: &Look) {
    const LINES: [&str; 15] = [
        "left, right     group by another key",
        "up, down, j, k  select; page up and down, home, end",
        "enter           open: drops of a group, all of a drop",
        "esc             back; clears the filter",
        "s               sort by drops, rate, last, name",
        "/               show only lines with these letters",
        "p, space        pause what is shown; drops are counted on",
        "w               save the drops that are shown as a recording",
        "?               this",
        "q, ctrl-c       end",
        "",
        "drops     how many, since the start",
        "/s        a second, over the last ten",
        "last      when the last one was dropped",
        "          (any key closes this)",
    ];
    let width = 64.min(area.width);
    let height = (LINES.len() as u16 + 2).min(area.height);
    let window =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let block = if look.charset == Charset::Blocks {
        Block::bordered().title(" keys ")
    } else {
        Block::bordered().border_set(ASCII_BORDER).title(" keys ")
    };
    frame.render_widget(Clear, window);
    frame.render_widget(Paragraph::new(LINES.map(Line::raw).to_vec()).block(block), window);
}

const ASCII_BORDER: ratatui::symbols::border::Set<'static> = ratatui::symbols::border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};
