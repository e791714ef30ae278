//! TCP's repeated segments: a program of its own, only there with a filter.

use super::{Tracer, TracerError, map, program, refused};
use aya::{Btf, maps::PerCpuHashMap, programs::BtfTracePoint};
use std::collections::HashMap;
use tracer_common::Retransmit;

/// Its name.
const PROGRAM: &str = "tcp_retransmit";
/// The tracepoint (include/trace/events/tcp.h).
const TRACEPOINT: &str = "tcp_retransmit_skb";
/// Peers that are remembered; the oldest make room for others.
pub(super) const PEERS: u32 = 1024;
/// The map.
const MAP: &str = "RETRANSMITS";

impl Tracer {
    /// Counts repeated segments from now on. They go with the tracer.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn count_retransmits(&mut self) -> Result<(), TracerError> {
        let btf = Btf::from_sys_fs()?;
        let program: &mut BtfTracePoint = program(&mut self.ebpf, PROGRAM)?;
        program.load(TRACEPOINT, &btf).map_err(refused(PROGRAM))?;
        program.attach().map_err(refused(PROGRAM))?;
        Ok(())
    }

    /// How many there have been, by peer, since the start. Peers that made room for others are left out.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn retransmits(&mut self) -> Result<HashMap<Retransmit, u64>, TracerError> {
        let counts: PerCpuHashMap<_, Retransmit, u64> = map(&mut self.ebpf, MAP)?;
        let all = counts.iter().filter_map(Result::ok);
        Ok(all.map(|(peer, counts)| (peer, counts.iter().sum())).collect())
    }
}
