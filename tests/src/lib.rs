//! End-to-end tests: network namespaces, virtual machines, scenarios.

pub mod bed;
pub mod scenarios;
pub mod vm;
