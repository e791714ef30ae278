//! Events: from the kernel half's bytes to owned, typed, named facts. Nothing here touches the OS.

pub mod model;
