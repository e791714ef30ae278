//! What Cilium says of the packets that it drops, read from outside Cilium: nothing is attached to its programs, and
//! nothing is written to its maps.

pub mod block;
pub mod cache;
pub mod codes;
pub mod completeness;
pub mod explain;
pub mod fit;
#[cfg(test)]
mod fixtures;
pub mod identity;
pub mod known;
pub mod maps;
pub mod model;
pub mod node;
pub mod pins;
pub mod policies;
pub mod policy;
pub mod programs;
#[cfg(test)]
mod random;
pub mod services;
