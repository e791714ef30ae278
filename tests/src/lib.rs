//! End-to-end tests.

pub mod bed;
pub mod scenarios;
