//! `droptrace trace`: the whole path of chosen packets through this node.
//!
//! The kernel half sends records of the packets that pass the filter (`decode`); each becomes what was seen at one place
//! (`observe`, with the packet's event explained like a drop's).

pub mod decode;
pub mod model;
pub mod observe;
pub mod run;
