//! Who is at an address: pods, services, workloads, nodes, containers. The sources feed one inventory.

pub mod cgroup;
pub mod claims;
pub mod correlate;
pub mod flows;
pub mod host;
pub mod inventory;
pub mod kubernetes;
pub mod names;
pub mod object;
mod pace;
pub mod policy;
pub mod select;
pub mod sources;
pub mod workload;
