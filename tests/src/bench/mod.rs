//! What a drop costs: the same storm with and without something watching, in turns, in one run.

pub mod contender;
pub mod figures;
pub mod load;
pub mod program;
pub mod startup;
pub mod storm;
