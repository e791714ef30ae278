//! Draws over what it drew before, on a terminal. The cursor is never hidden and stays below, so that there is nothing to
//! restore, however the process ends.

use std::io::IsTerminal as _;

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// The size of stdout; `None` where it is no terminal, or does not tell.
#[must_use]
pub fn size() -> Option<Size> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills a winsize (ioctl_tty(2)).
    let answer = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_col > 0)
        .then(|| Size { width: usize::from(size.ws_col), height: usize::from(size.ws_row) })
}

/// How many lines stand above the cursor.
#[derive(Debug, Default)]
pub(super) struct Screen {
    lines: usize,
}

impl Screen {
    /// What to write to have these lines instead of those before: all at once, without an empty moment in between. Lines
    /// that are wider than the terminal do not break while it is drawn.
    pub(super) fn draw(&mut self, text: &str) -> String {
        let mut out = self.home();
        out.push_str("\x1b[?7l");
        for line in text.lines() {
            out.extend([line, "\x1b[K\r\n"]);
        }
        out.push_str("\x1b[J\x1b[?7h");
        self.lines = text.lines().count();
        out
    }

    /// What to write to have nothing instead.
    pub(super) fn erase(&mut self) -> String {
        if self.lines == 0 {
            return String::new();
        }
        let home = self.home();
        self.lines = 0;
        format!("{home}\x1b[J")
    }

    /// To the beginning of the first line.
    fn home(&self) -> String {
        match self.lines {
            0 => String::new(),
            lines => format!("\r\x1b[{lines}A"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_drawing_takes_the_place_of_the_one_before() {
        let mut screen = Screen::default();
        assert_eq!(screen.erase(), "");
        assert_eq!(screen.draw("a\nb\n"), "\x1b[?7la\x1b[K\r\nb\x1b[K\r\n\x1b[J\x1b[?7h");
        assert_eq!(screen.draw("c\n"), "\r\x1b[2A\x1b[?7lc\x1b[K\r\n\x1b[J\x1b[?7h");
        assert_eq!(screen.erase(), "\r\x1b[1A\x1b[J");
        assert_eq!(screen.erase(), "");
    }
}
