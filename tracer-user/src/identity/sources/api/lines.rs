//! Cuts what arrives in pieces into lines, of bounded length.

/// A line that is longer than the ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// The pieces that arrived and are no whole line yet.
#[derive(Debug)]
pub(super) struct Lines {
    waiting: Vec<u8>,
    /// Where the first line that was not given out yet begins.
    begin: usize,
    /// No line ends before that.
    searched: usize,
    most: usize,
}

impl Lines {
    /// Lines of at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { waiting: Vec::new(), begin: 0, searched: 0, most }
    }

    /// Adds a piece. All whole lines before it were taken.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        self.waiting.drain(..self.begin.min(self.waiting.len()));
        self.searched -= self.begin;
        self.begin = 0;
        if self.waiting.len() > self.most {
            return Err(TooLong);
        }
        self.waiting.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let rest = self.waiting.get(self.searched..)?;
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.waiting.len();
            return None;
        };
        let line = self.begin..self.searched + end;
        self.begin = line.end + 1;
        self.searched = self.begin;
        self.waiting.get(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that come of pieces.
    fn cut(most: usize, pieces: &[&str]) -> Result<Vec<String>, TooLong> {
        let (mut lines, mut all) = (Lines::new(most), Vec::new());
        for piece in pieces {
            lines.push(piece.as_bytes())?;
            while let Some(line) = lines.next() {
                all.push(String::from_utf8_lossy(line).into_owned());
            }
        }
        Ok(all)
    }

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        let whole = "one\ntwo\n\nthree\nrest";
        let expected = ["one", "two", "", "three"];
        assert_eq!(cut(100, &[whole]).unwrap(), expected);
        for at in 0..whole.len() {
            let (a, b) = whole.split_at(at);
            assert_eq!(cut(100, &[a, b]).unwrap(), expected);
        }
        let bytes: Vec<String> = whole.chars().map(String::from).collect();
        assert_eq!(cut(100, &bytes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap(), expected);
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        assert_eq!(cut(4, &["12345", "6"]), Err(TooLong));
        assert_eq!(cut(4, &["1234", "5\n", "6"]).unwrap(), ["12345"]);
    }
}
