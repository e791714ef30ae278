//! Which program or filter at a tc hook dropped a packet.
//!
//! ```text
//! layout     where the running kernel keeps what is on tc hooks
//! attribute  what the kernel half noted → the answer
//! filters    what rtnetlink lists of a hook → names for filters that the kernel half could not read
//! hooks      asks rtnetlink for that
//! programs   a program's id → its name, tag and pins (asks the kernel)
//! model      the answer
//! ```

pub mod attribute;
pub mod filters;
pub mod hooks;
pub mod layout;
pub mod model;
pub mod programs;
