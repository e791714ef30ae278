//! What a drop costs, and what rules cost: the same packets with and without something watching, in turns, in one run.

pub mod contender;
pub mod delivery;
pub mod figures;
pub mod load;
pub mod machine;
pub mod program;
pub mod rounds;
pub mod rules;
pub mod startup;
pub mod storm;
pub mod watcher;
