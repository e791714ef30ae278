//! tmp
mod escape;
pub use escape::escape;
