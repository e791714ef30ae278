//! `droptrace trace`: the whole path of chosen packets through this node. `story` makes stories of what was seen, and `sink`
//! tells them: `tree` to people, `json`, `iptables` and `pcapng` to programs.

#[cfg(test)]
mod fixtures;
mod iptables;
mod json;
pub mod model;
mod pcapng;
mod sink;
pub mod story;
mod tree;

pub use sink::{Format, Settings, TraceOutput};
