//! Who is at an address: pods, services, workloads, nodes, containers. The sources feed one inventory.

pub mod claims;
pub mod inventory;
pub mod object;
pub mod sources;
pub mod workload;
