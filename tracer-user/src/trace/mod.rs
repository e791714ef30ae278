//! `droptrace trace`: the whole path of chosen packets through this node.

#[cfg(test)]
mod fixtures;
pub mod model;
pub mod story;
