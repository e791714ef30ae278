//! The terminal: a screen of its own while the view is there, and what was before it afterwards, however it ends.

use super::guardian::Guardian;
use super::input::{self, Input};
use crate::hist;
use crossterm::{cursor, event, execute, terminal};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use ratatui::{Frame, TerminalOptions, Viewport};
use std::io::{self, Stdout};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Terminal {
    screen: Option<ratatui::Terminal<CrosstermBackend<Stdout>>>,
    _guardian: Guardian,
}

impl Terminal {
    /// Nothing is drawn yet. There must be no other thread yet.
    pub(super) fn guarded() -> io::Result<Self> {
        Ok(Self { screen: None, _guardian: Guardian::start()? })
    }

    /// Takes the screen; what is pressed comes back.
    pub(super) fn enter(&mut self) -> io::Result<Receiver<Input>> {
        // A panic's message is to stand on the screen that stays.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
        terminal::enable_raw_mode()?;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        self.fit()?;
        let (to, pressed) = channel();
        thread::Builder::new().name("keys".to_owned()).spawn(move || {
            while let Ok(event) = event::read() {
                if let Some(input) = input::of(&event)
                    && to.send(input).is_err()
                {
                    break;
                }
            }
        })?;
        Ok(pressed)
    }

    /// Draws anew, for the size that the terminal has now. What ratatui does by itself for that asks the terminal where its cursor is,
    /// and waits for the answer: not all answer, and it would come among what is pressed.
    pub(super) fn fit(&mut self) -> io::Result<()> {
        let size = hist::size().unwrap_or(hist::Size { width: 80, height: 24 });
        let [width, height] = [size.width, size.height].map(|cells| u16::try_from(cells).unwrap_or(u16::MAX));
        execute!(io::stdout(), terminal::Clear(terminal::ClearType::All))?;
        let viewport = Viewport::Fixed(Rect::new(0, 0, width, height));
        let backend = CrosstermBackend::new(io::stdout());
        self.screen = Some(ratatui::Terminal::with_options(backend, TerminalOptions { viewport })?);
        Ok(())
    }

    /// Draws, if the screen was taken.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        if let Some(screen) = &mut self.screen {
            screen.draw(draw)?;
        }
        Ok(())
    }

    /// Gives the screen back.
    pub(super) fn leave(&mut self) {
        if self.screen.take().is_some() {
            restore();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave();
    }
}

/// As far as it goes: a terminal that is gone needs nothing.
fn restore() {
    let _ = terminal::disable_raw_mode();
    let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
}
