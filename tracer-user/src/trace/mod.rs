//! `droptrace trace`: the whole path of chosen packets through this node.

#[cfg(test)]
mod fixtures;
mod json;
pub mod model;
pub mod story;
mod tree;
