//! The exit code.

/// The exit code of a command line, or of a file that it names, without meaning.
pub const MEANINGLESS: u8 = 2;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As asked: by `-c`, `--for`, one SIGINT or SIGTERM, or because nobody reads stdout any more.
    Done,
    /// As asked, but nobody that the filter names was ever there.
    Unmatched,
    /// A second SIGINT or SIGTERM.
    Killed,
    /// An error while running.
    Failed,
    /// The command line has no meaning.
    Usage,
    /// A privilege or a kernel feature is missing.
    Unsupported,
}

/// What the exit code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How the run ended.
    pub end: End,
    /// Drops that the filter let through and that were not hidden as routine.
    pub drops: u64,
    /// Events and drops that were lost, anywhere.
    pub lost: u64,
    /// `--assert-no-drops`
    pub assert_no_drops: bool,
    /// `--strict`
    pub strict: bool,
}

/// 0 ok; 1 error; 2 usage; 3 missing privilege or kernel feature; 4 drops and `--assert-no-drops`; 5 losses and
/// `--strict`; 130 killed.
#[must_use]
pub fn exit_code(outcome: &Outcome) -> u8 {
    match outcome.end {
        End::Killed => 130,
        End::Failed | End::Unmatched => 1,
        End::Usage => MEANINGLESS,
        End::Unsupported => 3,
        End::Done if outcome.assert_no_drops && outcome.drops > 0 => 4,
        End::Done if outcome.strict && outcome.lost > 0 => 5,
        End::Done => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code() {
        let done = Outcome { end: End::Done, drops: 3, lost: 2, assert_no_drops: false, strict: false };
        assert_eq!(exit_code(&done), 0);
        assert_eq!(exit_code(&Outcome { assert_no_drops: true, strict: true, ..done }), 4);
        assert_eq!(exit_code(&Outcome { strict: true, ..done }), 5);
        let clean = Outcome { drops: 0, lost: 0, assert_no_drops: true, strict: true, ..done };
        assert_eq!(exit_code(&clean), 0);
        let ends = [
            (End::Failed, 1),
            (End::Unmatched, 1),
            (End::Usage, 2),
            (End::Unsupported, 3),
            (End::Killed, 130),
        ];
        for (end, code) in ends {
            assert_eq!(exit_code(&Outcome { end, assert_no_drops: true, ..done }), code);
        }
    }
}
