//! `droptrace trace`: the whole path of chosen packets through this node.
//!
//! The kernel half sends records of the packets that pass the filter (`decode`); each becomes what was seen at one place
//! (`observe`, with the packet's event explained like a drop's, and the `rules` that it met since the place before); `story` makes
//! steps and an end of it, which `sink` tells: as a `tree`, as `json`, as the lines of `iptables`' TRACE target, as a `pcapng` file.
//! `run` is the loop.

pub mod decode;
#[cfg(test)]
mod fixtures;
mod iptables;
mod json;
mod listings;
pub mod model;
mod nft;
pub mod observe;
mod pcapng;
pub mod rules;
pub mod run;
pub mod sink;
pub mod story;
mod tree;
