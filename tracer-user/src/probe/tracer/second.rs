//! The second program on the tracepoint, which does nothing but make the stack deeper.

use super::{Tracer, TracerError, program, refused};
use aya::programs::{BtfTracePoint, ProgramError, tp_btf::BtfTracePointLinkId};
use std::time::Duration;

/// Name of the program that only makes the stack deeper.
pub(super) const SECOND: &str = "kfree_skb_too";

impl Tracer {
    /// Runs something with a second program on the tracepoint, so that the stack is as deep as where others look at
    /// dropped packets too.
    ///
    /// # Errors
    /// If the kernel refuses to attach or detach it, or what `run` says.
    pub fn with_second<T, E: From<TracerError>>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.is_second_kept {
            return run(self);
        }
        let link = self.attach_second()?;
        self.forget_sites();
        let result = run(self);
        self.forget_sites();
        let second = program::<BtfTracePoint>(&mut self.ebpf, SECOND)?;
        second.detach(link).map_err(refused(SECOND))?;
        result
    }

    fn attach_second(&mut self) -> Result<BtfTracePointLinkId, TracerError> {
        /// A link that was closed ends a moment later on older kernels (bpf_link_put(), kernel/bpf/syscall.c, before
        /// 6.9), and a program can't be attached twice.
        const TRIES: u32 = 100;
        const PAUSE: Duration = Duration::from_millis(1);
        let second = program::<BtfTracePoint>(&mut self.ebpf, SECOND)?;
        let is_there = |error: &ProgramError| match error {
            ProgramError::SyscallError(call) => call.io_error.raw_os_error() == Some(libc::EEXIST),
            _ => false,
        };
        let mut attached = second.attach();
        for _ in 0..TRIES {
            if !attached.as_ref().is_err_and(is_there) {
                break;
            }
            std::thread::sleep(PAUSE);
            attached = second.attach();
        }
        attached.map_err(refused(SECOND))
    }

    /// True if the second program stays attached.
    #[must_use]
    pub fn is_second_kept(&self) -> bool {
        self.is_second_kept
    }

    /// Attaches the second program for good.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn keep_second(&mut self) -> Result<(), TracerError> {
        if !self.is_second_kept {
            // It stays until the program goes.
            self.attach_second()?;
            self.forget_sites();
            self.is_second_kept = true;
        }
        Ok(())
    }
}
