//! `droptrace trace`: the whole path of chosen packets through this node.

pub mod model;
