//! End-to-end tests: network namespaces, virtual machines, scenarios; and what a drop costs.

pub mod bed;
pub mod bench;
pub mod scenarios;
pub mod vm;
