//! What was said of the server's health, so that each change is said once. Pure.

use super::trouble::{Class, Trouble};
use crate::identity::object::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// Which kinds are in trouble, and what was said of it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Kinds about which the server does not answer.
    unanswered: BTreeSet<Kind>,
    /// What was said of the server since it was well.
    said: BTreeSet<Class>,
    /// What was said of kinds that the server, which is well, does not tell of.
    said_of: BTreeMap<Kind, Class>,
}

impl Health {
    /// Notes trouble with a kind. True if that is news.
    pub(super) fn trouble(&mut self, kind: Kind, trouble: &Trouble) -> bool {
        let class = trouble.class();
        if trouble.is_of_one_kind() {
            return self.said_of.insert(kind, class) != Some(class);
        }
        self.unanswered.insert(kind);
        self.said.insert(class)
    }

    /// Notes that the server answers about a kind, as it should or that it won't.
    pub(super) fn answered(&mut self, kind: Kind, as_it_should: bool) -> News {
        let allowed = as_it_should && self.said_of.remove(&kind).is_some();
        let back = self.unanswered.remove(&kind) && self.unanswered.is_empty() && !self.said.is_empty();
        if back {
            self.said.clear();
        }
        News { back, allowed }
    }
}

/// What is worth saying after an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The server answers again, about every kind.
    pub(super) back: bool,
    /// It tells of that kind now, and did not before.
    pub(super) allowed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::kubernetes::Status;

    #[test]
    fn each_change_is_said_once() {
        let refused = Trouble::Unreachable("refused".to_owned());
        let mut health = Health::default();
        assert!(health.trouble(Kind::Pod, &refused));
        assert!(!health.trouble(Kind::Service, &refused));
        assert!(!health.trouble(Kind::Pod, &refused));
        assert!(health.trouble(Kind::Pod, &Trouble::Unauthorized(Status::default())));
        assert!(!health.answered(Kind::Pod, true).back);
        assert!(health.answered(Kind::Service, true).back);
        assert_eq!(health.answered(Kind::Service, true), News::default());
        assert!(health.trouble(Kind::Pod, &refused));
    }

    #[test]
    fn a_forbidden_kind_is_said_by_itself() {
        let forbidden = Trouble::Forbidden(Status::default());
        let mut health = Health::default();
        assert!(health.trouble(Kind::Job, &forbidden));
        assert!(!health.trouble(Kind::Job, &forbidden));
        assert!(health.trouble(Kind::Node, &forbidden));
        assert_eq!(health.answered(Kind::Pod, true), News::default());
        assert_eq!(health.answered(Kind::Job, true), News { back: false, allowed: true });
        assert!(health.trouble(Kind::Job, &forbidden));
    }
}
