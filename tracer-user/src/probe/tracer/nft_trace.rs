//! The probe on what nft tells its own tracing. It shows nothing while no rule in the system could switch that tracing on: see
//! [`Lab::ask_for_tracing`](crate::probe::lab::Lab::ask_for_tracing).

use super::{Tracer, TracerError, program, refused};
use crate::probe::nft_trace::FUNCTION;
use aya::programs::KProbe;
use tracer_common::ABSENT;

/// Its program.
const PROGRAM: &str = "path_nft_rule";

impl Tracer {
    /// True if this kernel describes what the probe reads.
    #[must_use]
    pub fn knows_nft_tracing(&self) -> bool {
        // SAFETY: fields of the mapped page.
        unsafe {
            let page = self.control.at(0);
            let info = (&raw const (*page).nft_trace.argument_info).read_volatile();
            let state = (&raw const (*page).pktinfo_state).read_volatile();
            info != ABSENT && state != ABSENT
        }
    }

    /// Attaches the probe; it vanishes with this process.
    ///
    /// # Errors
    /// If the kernel refuses: many virtual machines and locked-down kernels have no kprobes.
    pub fn attach_nft_trace(&mut self) -> Result<(), TracerError> {
        let probe: &mut KProbe = program(&mut self.ebpf, PROGRAM)?;
        if probe.fd().is_err() {
            probe.load().map_err(refused(PROGRAM))?;
            probe.attach(FUNCTION, 0).map_err(refused(PROGRAM))?;
        }
        Ok(())
    }
}
