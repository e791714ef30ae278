//! Virtual machines that run stock Debian kernels.
//!
//! One boot is: fetch the kernel ([`Kernel`]), build or reuse its base initramfs ([`Initramfs`]), append what
//! this run needs ([`Job`]), and let QEMU run it ([`boot`]). The guest has three serial ports: the kernel's
//! console (kept in a file), the job's output (streamed) and the status channel, on which the guest's init
//! writes the job's exit code. A guest that never writes one has died.

mod apt;
mod cache;
mod command;
mod cpio;
mod error;
mod host;
mod initramfs;
mod job;
mod kernel;
mod mirrors;
mod modules;
mod oops;
mod qemu;
mod suite;
mod verdict;

pub use cache::Cache;
pub use error::Error;
pub use initramfs::Initramfs;
pub use job::Job;
pub use kernel::Kernel;
pub use mirrors::Mirrors;
pub use qemu::{Machine, Outcome, boot};
pub use suite::Suite;
pub use verdict::Verdict;
