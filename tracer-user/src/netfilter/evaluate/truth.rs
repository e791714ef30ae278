//! Three-valued logic: what is not known is neither true nor false.

/// Whether something holds. Of two that must both hold the answer is the smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    No,
    Unknown,
    Yes,
}

impl Truth {
    /// Of a fact; `None` if it is not known.
    pub(super) fn of(fact: Option<bool>) -> Self {
        match fact {
            Some(true) => Self::Yes,
            Some(false) => Self::No,
            None => Self::Unknown,
        }
    }

    /// The opposite, if `inverted`.
    pub(super) fn inverted_if(self, inverted: bool) -> Self {
        match (inverted, self) {
            (true, Self::Yes) => Self::No,
            (true, Self::No) => Self::Yes,
            _ => self,
        }
    }
}
