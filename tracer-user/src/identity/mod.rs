//! Who is at an address: pods, services, workloads, nodes, containers. The sources feed one inventory.

pub mod cgroup;
pub mod object;
pub mod sources;
