//! droptrace's user half. Data flows one way: kernel (`probe`) → `event` → attribution → identity → cause →
//! `output`. The parts that decide are pure functions over plain data; only the edges touch the OS.

pub mod cause;
pub mod cilium;
pub mod cli;
pub mod doctor;
pub mod event;
pub mod filter;
pub mod hist;
pub mod identity;
pub mod live;
pub mod netfilter;
pub mod output;
pub mod probe;
pub mod recording;
pub mod report;
pub mod start;
pub mod stream;
pub mod tc;
pub mod top;
pub mod trace;
pub mod xdp;
