//! Bars and sparklines of text.

/// What a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// Block elements (U+2581 to U+258F).
    Blocks,
    /// For locales that are not UTF-8, and terminals that have no such letters.
    Ascii,
}

impl Charset {
    /// From the environment: `LC_ALL` goes before `LC_CTYPE` before `LANG` (locale(7)), an empty one is none.
    #[must_use]
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &&str| variable(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(set).unwrap_or_default().to_lowercase();
        let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
        // The Linux console's fonts have only some of the blocks.
        let has_blocks = !matches!(variable("TERM").as_deref(), Some("dumb" | "linux"));
        if is_utf8 && has_blocks { Self::Blocks } else { Self::Ascii }
    }

    /// What stands for text that was cut off.
    #[must_use]
    pub fn cut(self) -> char {
        match self {
            Self::Blocks => '…',
            Self::Ascii => '~',
        }
    }

    /// From nothing to most.
    fn levels(self) -> [char; 9] {
        match self {
            Self::Blocks => [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            Self::Ascii => [' ', '_', '.', ':', '-', '=', '+', '*', '#'],
        }
    }

    /// A bar as long as `part` is of `whole`, of `width` at most; what is not nothing can be seen.
    #[must_use]
    pub fn bar(self, part: u64, whole: u64, width: usize) -> String {
        let steps = match self {
            Self::Blocks => 8,
            Self::Ascii => 1,
        };
        let length = scaled(part, whole, (width * steps) as u64) as usize;
        let (full, eighths) = (length / steps, length % steps);
        let block = match self {
            Self::Blocks => '█',
            Self::Ascii => '#',
        };
        let mut bar = block.to_string().repeat(full);
        // From 1/8, U+258F, to 7/8, U+2589.
        bar.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get(eighths.wrapping_sub(1)));
        bar
    }

    /// A column for each value, the highest as high as a line.
    #[must_use]
    pub fn sparkline(self, values: &[u64]) -> String {
        let most = values.iter().copied().max().unwrap_or(0);
        values.iter().map(|&value| self.levels()[scaled(value, most, 8) as usize]).collect()
    }

    /// The same, `rows` lines high, from the top one to the lowest.
    #[must_use]
    pub fn columns(self, values: &[u64], rows: usize) -> Vec<String> {
        let most = values.iter().copied().max().unwrap_or(0);
        let steps = (rows * 8) as u64;
        let cell = |value: u64, row: usize| {
            // What is below this line.
            let below = (rows - 1 - row) as u64 * 8;
            self.levels()[scaled(value, most, steps).saturating_sub(below).min(8) as usize]
        };
        (0..rows).map(|row| values.iter().map(|&value| cell(value, row)).collect()).collect()
    }
}

/// `part` of `whole` in so many steps: at least one unless it is nothing.
fn scaled(part: u64, whole: u64, steps: u64) -> u64 {
    if part == 0 || whole == 0 || steps == 0 {
        return 0;
    }
    let scaled = u128::from(part.min(whole)) * u128::from(steps) / u128::from(whole);
    u64::try_from(scaled).unwrap_or(steps).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        let blocks = [0, 1, 50, 53, 100].map(|part| Charset::Blocks.bar(part, 100, 4));
        assert_eq!(blocks, ["", "▏", "██", "██", "████"]);
        assert_eq!(Charset::Blocks.bar(57, 100, 4), "██▎");
        assert_eq!([0, 1, 50, 100].map(|part| Charset::Ascii.bar(part, 100, 4)), ["", "#", "##", "####"]);
        assert_eq!(Charset::Blocks.bar(5, 0, 4), "");
        assert_eq!(Charset::Blocks.bar(u64::MAX, u64::MAX, 2), "██");
    }

    #[test]
    fn sparklines_show_what_is_not_nothing() {
        assert_eq!(Charset::Blocks.sparkline(&[0, 1, 500, 1000]), " ▁▄█");
        assert_eq!(Charset::Ascii.sparkline(&[0, 1, 500, 1000]), " _-#");
        assert_eq!(Charset::Blocks.sparkline(&[]), "");
    }

    #[test]
    fn the_locale_decides_what_can_be_shown() {
        let of = |set: &[(&str, &str)]| {
            Charset::of(|name| set.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[("LANG", "en_US.UTF-8")]), Charset::Blocks);
        assert_eq!(of(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("TERM", "xterm")]), Charset::Blocks);
        assert_eq!(of(&[]), Charset::Ascii);
        assert_eq!(of(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]), Charset::Ascii);
        for term in ["dumb", "linux"] {
            assert_eq!(of(&[("LANG", "C.UTF-8"), ("TERM", term)]), Charset::Ascii);
        }
    }
}
