//! The sink that is a view: records in, the screen out, some times a second.

use super::draw::{self, Around, Look};
use super::input::Input;
use super::model::Model;
use super::neighbours::{self, Answer};
use super::save;
use super::terminal::Terminal;
use super::view::{Action, View};
use crate::cli;
use crate::event::model::Record;
use crate::output::{Now, Sink, Stop, Summary, words};
use crate::recording::{self, Header};
use crate::start;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

/// How often the screen is drawn where no key was pressed.
const REDRAW: Duration = Duration::from_millis(450);
/// How long a message stands at the bottom.
const MESSAGE: Duration = Duration::from_secs(8);

/// See the module's documentation.
#[derive(Debug)]
pub struct Top {
    model: Model,
    view: View,
    around: Around,
    look: Look,
    terminal: Terminal,
    /// Comes once the screen was taken.
    pressed: Option<Receiver<Input>>,
    /// What is said meanwhile.
    said: Receiver<String>,
    say: Sender<String>,
    asked: Option<Answer>,
    header: Header,
    next_drawing: Duration,
    message_until: Duration,
    count: Option<u64>,
}

impl Top {
    /// Without a drop.
    pub(super) fn new(settings: &cli::Top, terminal: Terminal, arguments: &[OsString]) -> Self {
        let header = recording::header(arguments);
        let (say, said) = channel();
        let filter = if settings.watch.filter.is_empty() { "all drops" } else { "drops that match" };
        Self {
            model: Model::new(settings.screen.by, settings.screen.all),
            view: View::default(),
            around: Around { watched: format!("{}: {filter}", header.node), ..Around::default() },
            look: settings.look(),
            terminal,
            pressed: None,
            said,
            say,
            asked: None,
            header,
            next_drawing: Duration::ZERO,
            message_until: Duration::ZERO,
            count: settings.watch.run.count,
        }
    }

    /// Takes the screen, once what is said at the start was said.
    fn enter(&mut self) -> io::Result<()> {
        if self.pressed.is_none() {
            start::say_to(Some(self.say.clone()));
            self.pressed = Some(self.terminal.enter()?);
        }
        Ok(())
    }

    /// Does what was asked for by keys; true if there is anything new to draw.
    fn heed(&mut self) -> Result<bool, Stop> {
        let mut is_new = false;
        while let Some(pressed) = &self.pressed {
            match pressed.try_recv() {
                Ok(Input::Resized) => self.terminal.fit()?,
                Ok(Input::Key(key)) => match self.view.press(key, &self.model) {
                    Action::Nothing => {}
                    Action::Quit => return Err(Stop::Quit),
                    Action::Opened(recent) => {
                        self.around.neighbours = None;
                        self.asked = neighbours::ask(&recent.drop);
                    }
                    Action::Save(path, drops) => {
                        save::save(path, drops, self.header.clone(), self.say.clone());
                    }
                },
                Err(TryRecvError::Empty) => break,
                // Nobody is there any more to press one.
                Err(TryRecvError::Disconnected) => return Err(Stop::Quit),
            }
            is_new = true;
        }
        if let Some(Ok(answer)) = self.asked.as_ref().map(Receiver::try_recv) {
            (self.around.neighbours, self.asked, is_new) = (Some(answer), None, true);
        }
        Ok(is_new)
    }

    /// What was said is shown for a while.
    fn hear(&mut self, now: Now) {
        if let Some(line) = self.said.try_iter().last() {
            self.tell(line, now);
        } else if now.elapsed >= self.message_until {
            self.around.message = None;
        }
    }

    fn tell(&mut self, line: String, now: Now) {
        self.around.message = Some(line);
        self.message_until = now.elapsed + MESSAGE;
        self.next_drawing = now.elapsed;
    }

    fn show(&mut self, now: Now) -> Result<(), Stop> {
        self.enter()?;
        let is_new = self.heed()?;
        self.hear(now);
        if is_new || now.elapsed >= self.next_drawing {
            self.next_drawing = now.elapsed + REDRAW;
            let Self { terminal, model, view, around, look, .. } = self;
            terminal.draw(|frame| draw::draw(frame, model, view, around, look))?;
        }
        Ok(())
    }
}

impl Sink for Top {
    fn record(&mut self, record: &Record, now: Now) -> ControlFlow<Stop> {
        self.model.second = now.elapsed.as_secs();
        match record {
            Record::Drop(drop) => self.model.add(drop),
            Record::Lost(lost) => self.model.lost(lost),
            Record::Stalled(stalled) => self.tell(words::stalled(stalled), now),
        }
        if self.count.is_some_and(|count| self.model.counted() >= count) {
            return ControlFlow::Break(Stop::Count);
        }
        ControlFlow::Continue(())
    }

    fn tick(&mut self, now: Now) -> ControlFlow<Stop> {
        self.model.second = now.elapsed.as_secs();
        match self.show(now) {
            Ok(()) => ControlFlow::Continue(()),
            Err(stop) => ControlFlow::Break(stop),
        }
    }

    fn is_waiting(&self) -> bool {
        // For keys.
        true
    }

    fn shown(&self) -> u64 {
        self.model.counted()
    }

    fn finish(mut self, now: Now) -> (Summary, ControlFlow<Stop>) {
        self.terminal.leave();
        start::say_to(None);
        let summary = self.model.summary(now.elapsed);
        // stderr may be closed.
        let _ = write!(io::stderr(), "{summary}");
        (summary, ControlFlow::Continue(()))
    }
}
