//! The programs that run on packets that are not dropped: attached only where the user asks for them.

use super::{Tracer, TracerError, program, refused};
use aya::{
    Btf,
    programs::{FEntry, FExit, KProbe},
};

/// nft's functions and the programs for them. Those of `reject` come with a module each.
const EXPRESSIONS: [(&str, &str); 7] = [
    ("nft_immediate_eval", "nft_immediate"),
    ("nft_target_eval_xt", "nft_target"),
    ("nft_reject_inet_eval", "nft_reject"),
    ("nft_reject_ipv4_eval", "nft_reject"),
    ("nft_reject_ipv6_eval", "nft_reject"),
    ("nft_reject_bridge_eval", "nft_reject"),
    ("nft_reject_netdev_eval", "nft_reject"),
];

/// What of the probes runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// nf_hook_slow's entry and exit.
    is_on_hooks: bool,
    /// nft's functions.
    functions: Vec<&'static str>,
}

impl Probes {
    /// True if drops by nft rules are told.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.functions.contains(&"nft_immediate_eval")
    }

    /// True if hook states are told.
    #[must_use]
    pub fn is_on_hooks(&self) -> bool {
        self.is_on_hooks
    }
}

impl Tracer {
    /// Attaches the probes on nf_hook_slow and on those of nft's functions that `has` says are there; those that are
    /// attached already stay. All vanish with this process.
    ///
    /// # Errors
    /// If the kernel refuses one: many virtual machines and locked-down kernels have neither kprobes nor fentry.
    pub fn attach_probes(&mut self, has: &dyn Fn(&str) -> bool) -> Result<(), TracerError> {
        if !self.probes.is_on_hooks {
            let btf = Btf::from_sys_fs()?;
            let refuse = refused("hook_entered");
            let entry: &mut FEntry = program(&mut self.ebpf, "hook_entered")?;
            entry.load("nf_hook_slow", &btf).map_err(refuse)?;
            entry.attach().map_err(refuse)?;
            let refuse = refused("hook_left");
            let exit: &mut FExit = program(&mut self.ebpf, "hook_left")?;
            exit.load("nf_hook_slow", &btf).map_err(refuse)?;
            exit.attach().map_err(refuse)?;
            self.probes.is_on_hooks = true;
        }
        if self.kernel_probes_are_known() {
            for (function, name) in EXPRESSIONS {
                if self.probes.functions.contains(&function) || !has(function) {
                    continue;
                }
                let refuse = refused(name);
                let probe: &mut KProbe = program(&mut self.ebpf, name)?;
                if probe.fd().is_err() {
                    probe.load().map_err(refuse)?;
                }
                probe.attach(function, 0).map_err(refuse)?;
                self.probes.functions.push(function);
            }
        }
        // SAFETY: a field of the mapped page; only we write it.
        unsafe { (&raw mut (*self.control.at(0)).has_probes).write_volatile(1) };
        Ok(())
    }

    /// What of the probes runs.
    #[must_use]
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    fn kernel_probes_are_known(&self) -> bool {
        // SAFETY: fields of the mapped page.
        let (probes, pktinfo) = unsafe {
            let page = self.control.at(0);
            ((&raw const (*page).probes).read_volatile(), (&raw const (*page).pktinfo_state).read_volatile())
        };
        let tracer_common::ProbeOffsets { expression_data, immediate_register, immediate_code, .. } = probes;
        [expression_data, immediate_register, immediate_code, pktinfo]
            .iter()
            .all(|offset| *offset != tracer_common::ABSENT)
    }
}
