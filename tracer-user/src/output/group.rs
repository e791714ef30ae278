//! Kinds of drops: what lines above the limit are joined by, and what the summary counts.

use super::words;
use crate::event::model::{Drop, Endpoint};
use std::fmt;

/// A kind of drop. The default is "any".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Group {
    /// The rule, or reason and location; empty for any.
    place: String,
    /// The cause's name.
    cause: Option<String>,
    netns: Option<u32>,
    source: Option<String>,
    destination: Option<String>,
    service: Option<String>,
}

impl Group {
    pub(super) fn of(drop: &Drop) -> Self {
        let pod = |end: &Endpoint| end.k8s.as_ref().and_then(words::who);
        let service = drop.destination.k8s.as_ref().and_then(words::service);
        Self {
            place: words::place(drop),
            cause: drop.drop.cause.as_ref().map(|cause| super::escape(&cause.id).into_owned()),
            netns: drop.network.netns,
            source: pod(&drop.source),
            destination: pod(&drop.destination),
            service,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.place.is_empty() { "of any other kind" } else { &self.place })?;
        if let Some(cause) = &self.cause {
            write!(f, "  {cause}")?;
        }
        match (&self.source, &self.destination) {
            (Some(source), Some(destination)) => write!(f, "  {source} -> {destination}")?,
            (Some(source), None) => write!(f, "  {source} ->")?,
            (None, Some(destination)) => write!(f, "  -> {destination}")?,
            (None, None) => {
                if let Some(netns) = self.netns {
                    write!(f, "  netns {netns}")?;
                }
            }
        }
        match &self.service {
            Some(service) => write!(f, " (svc {service})"),
            None => Ok(()),
        }
    }
}
