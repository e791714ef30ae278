//! Which of the kernel's rule engines are there already, so that using them loads nothing.

use std::path::Path;

/// What is in the kernel, as a loaded module or built in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// nf_tables.
    pub nft: bool,
    /// Its counters.
    pub nft_counter: bool,
    /// The IPv4 `filter` table of iptables-legacy.
    pub legacy: bool,
    /// Connection tracking: its hook functions drop packets, too.
    pub conntrack: bool,
    /// BPF programs as hook functions (from 6.4): each may drop packets, and there is all that is needed to learn from.
    pub programs: bool,
}

impl Backends {
    /// What this kernel has. `has_symbol` tells whether /proc/kallsyms lists a function, in the kernel or a module.
    #[must_use]
    pub fn detect(has_symbol: &dyn Fn(&str) -> bool) -> Self {
        Self::judge(&|module| Path::new("/sys/module").join(module).exists(), has_symbol)
    }

    /// A module that is built in may lack a folder in /sys/module; it has its functions.
    fn judge(has_module: &dyn Fn(&str) -> bool, has_symbol: &dyn Fn(&str) -> bool) -> Self {
        let has = |module, function| has_module(module) || has_symbol(function);
        Self {
            nft: has("nf_tables", "nft_do_chain"),
            nft_counter: has("nft_counter", "nft_counter_eval"),
            // Not ip_tables: that can be there without this table, and then asking for the table loads it.
            legacy: has("iptable_filter", "iptable_filter_table_init"),
            conntrack: has("nf_conntrack", "nf_conntrack_in"),
            programs: has_symbol("nf_hook_run_bpf"),
        }
    }

    /// True if there is nothing to learn from, or for.
    #[must_use]
    pub fn is_empty(self) -> bool {
        !self.nft && !self.legacy && !self.conntrack && !self.programs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_module_or_by_function() {
        let none = |_: &str| false;
        assert_eq!(Backends::judge(&none, &none), Backends::default());
        let nft = Backends { nft: true, ..Backends::default() };
        assert_eq!(Backends::judge(&|module| module == "nf_tables", &none), nft);
        assert_eq!(Backends::judge(&none, &|function| function == "nft_do_chain"), nft);
        let legacy = Backends { legacy: true, ..Backends::default() };
        assert_eq!(Backends::judge(&|module| module == "iptable_filter", &none), legacy);
        assert_eq!(Backends::judge(&none, &|function| function == "iptable_filter_table_init"), legacy);
        let conntrack = Backends::judge(&|module| module == "nf_conntrack", &none);
        assert!(conntrack.conntrack && !conntrack.is_empty() && Backends::default().is_empty());
        let programs = Backends::judge(&none, &|function| function == "nf_hook_run_bpf");
        assert!(programs.programs && !programs.is_empty());
        let engine_alone = Backends::judge(&|module| module == "ip_tables", &|name| name == "ipt_do_table");
        assert!(!engine_alone.legacy, "asking for the table would load it");
    }
}
