//! Why a packet was dropped and what to do about it: the knowledge base (`causes.toml`, which is data) and what it is asked
//! with. `entry` reads it, `condition` and `template` are its two small languages, `facts` is what both speak of, `matcher`
//! finds what holds for a drop. All that is pure; `node` alone asks the machine, for what the packet itself can't tell.

mod condition;
mod entry;
pub mod facts;
mod language;
mod matcher;
pub mod node;
mod template;

pub use entry::{BadCauses, Base, Entry, Proven, Severity};
pub use facts::Fact;
pub use language::Language;

use crate::event::model::{Cause, Drop};
use crate::filter::{Filter, Value, near};
use facts::NodeState;
use std::fmt;
use std::sync::Arc;

/// Explains drops: the knowledge base, in a language, beside the node's state if it is this node's drops that are explained.
pub struct Causes {
    base: Arc<Base>,
    language: Language,
    node: Option<Box<dyn NodeState>>,
}

impl Default for Causes {
    fn default() -> Self {
        Self::new(Base::own(), Language::English)
    }
}

impl fmt::Debug for Causes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Causes").field("language", &self.language).finish_non_exhaustive()
    }
}

impl Causes {
    /// Without the node's state.
    #[must_use]
    pub fn new(base: Arc<Base>, language: Language) -> Self {
        Self { base, language, node: None }
    }

    /// With the node's state, for drops that have just happened here.
    #[must_use]
    pub fn with_node(self, node: impl NodeState + 'static) -> Self {
        Self { node: Some(Box::new(node)), ..self }
    }

    /// Why a filter's words about causes mean none that there is, for people; `None` if each means one at least.
    #[must_use]
    pub fn unknown(&self, filter: &Filter) -> Option<String> {
        let ids = || self.base.entries().iter().map(Entry::id);
        filter.words.iter().find_map(|word| {
            let Value::Cause(glob) = &word.value else { return None };
            if ids().any(|id| glob.matches(id)) {
                return None;
            }
            let near = near(&word.text, ids()).join(", ");
            let hint = if near.is_empty() { String::new() } else { format!("; did you mean {near}?") };
            Some(format!("--cause {}: there is no such cause{hint}", word.text))
        })
    }

    /// Gives a drop its cause, or none. What is known of the drop must have been told by now.
    pub fn explain(&self, drop: &mut Drop) {
        drop.drop.cause = self.base.explain(drop, self.language, self.node.as_deref());
    }

    /// Gives a recorded drop its cause, unless that was recorded: what the node's state would say is not known any more.
    pub fn explain_recorded(&self, drop: &mut Drop) {
        if drop.drop.cause.is_none() {
            let cause = self.base.explain(drop, self.language, None);
            drop.drop.cause =
                cause.map(|cause| Cause { confidence: matcher::weaker(&cause.confidence), ..cause });
        }
    }
}
