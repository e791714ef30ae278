//! Events: from the kernel half's bytes to owned, typed, named facts. Nothing here touches the OS.
//!
//! ```text
//! bytes ─ decode ─> Raw ─ explain ─> model::Drop
//!                          ├ packet:    headers → ends, protocols, tunnels
//!                          ├ conntrack: raw tuples → the connection and what NAT did
//!                          └ class:     reason, place → policy, error, resource or routine
//! ```

pub mod class;
pub mod conntrack;
pub mod decode;
pub mod explain;
pub mod merge;
pub mod model;
pub mod packet;
pub mod retransmit;
pub mod unanswered;
