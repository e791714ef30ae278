//! The kernel as it is here: what this process may do, how its structures are laid out, what its symbols, drop
//! reasons and clocks are.

pub(crate) mod bpf;
pub mod btf;
pub mod clock;
pub mod connections;
pub mod environment;
pub mod kernel;
pub mod kernel_log;
pub mod lab;
pub mod mapped;
pub(crate) mod netlink;
pub(crate) mod next_hop;
pub mod nft_trace;
pub mod object;
pub mod offsets;
pub mod reasons;
pub(crate) mod route;
pub mod selftest;
pub mod symbols;
pub mod tracer;
