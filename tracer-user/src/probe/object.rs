//! A look at the eBPF object before the kernel gets it: what it holds, and a mistake that the verifier would only
//! find after minutes.

use object::{
    Architecture, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind,
};

/// Functions whose loops the verifier can't bound: the compiler calls them for large copies.
const UNBOUNDED: [&str; 4] = ["memcpy", "memmove", "memset", "memcmp"];

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Sections with programs, as libbpf names them: `tp_btf/kfree_skb`.
    pub programs: Vec<String>,
    /// What it tells the kernel its licence is.
    pub licence: String,
    /// Calls of functions that the verifier can't follow. None are allowed.
    pub unbounded_calls: Vec<String>,
}

/// Why an object is none of ours.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Not an ELF file.
    #[error("not an ELF file: {0}")]
    Elf(#[from] object::Error),
    /// An ELF file for another machine.
    #[error("made for {0:?}, not for BPF")]
    Machine(Architecture),
}

/// Reads an object.
///
/// # Errors
/// If it is not an ELF object for BPF.
pub fn contents(bytes: &[u8]) -> Result<Contents, ObjectError> {
    let file = object::File::parse(bytes)?;
    if file.architecture() != Architecture::Bpf {
        return Err(ObjectError::Machine(file.architecture()));
    }
    let mut contents = Contents { programs: Vec::new(), licence: String::new(), unbounded_calls: Vec::new() };
    for section in file.sections() {
        let name = section.name()?;
        if name == "license" {
            let text = String::from_utf8_lossy(section.data()?);
            text.trim_end_matches('\0').clone_into(&mut contents.licence);
        }
        if section.kind() != SectionKind::Text || section.size() == 0 {
            continue;
        }
        // Steps are in .text; what the kernel runs has a section of its own.
        if name != ".text" {
            contents.programs.push(name.to_owned());
        }
        for (_, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let called = file.symbol_by_index(index)?.name()?.to_owned();
            if UNBOUNDED.contains(&called.as_str()) && !contents.unbounded_calls.contains(&called) {
                contents.unbounded_calls.push(called);
            }
        }
    }
    contents.programs.sort();
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only in builds that have the object: `cargo xtask test` makes them.
    #[test]
    fn the_object_has_what_the_loader_wants_and_nothing_that_the_verifier_refuses() {
        let object = crate::probe::tracer::OBJECT;
        if object.is_empty() {
            eprintln!("SKIP: built without the eBPF object; cargo xtask test has it");
            return;
        }
        let contents = contents(object).unwrap();
        let probes = ["fentry/nf_hook_slow", "fexit/nf_hook_slow"];
        let on_expressions = ["kprobe", "kprobe/nft_immediate_eval", "kprobe/nft_target_eval_xt"];
        let always = ["raw_tp", "tp_btf/kfree_skb", "tp_btf/tcp_retransmit_skb"];
        let hooks = ["conntrack", "dstnat", "filter", "first", "mangle", "raw", "security", "srcnat"];
        let hooks = hooks.map(|hook| format!("raw_tp/path_hook_{hook}"));
        let trace = [
            "classifier",
            "kprobe/__nft_trace_packet",
            "fexit/__udp_enqueue_schedule_skb",
            "tp_btf/consume_skb",
            "tp_btf/net_dev_queue",
            "tp_btf/net_dev_start_xmit",
            "tp_btf/netif_receive_skb",
            "tp_btf/skb_copy_datagram_iovec",
            "tp_btf/tcp_probe",
        ];
        let mut wanted: Vec<String> = probes
            .iter()
            .chain(&on_expressions)
            .chain(&always)
            .chain(&trace)
            .map(ToString::to_string)
            .collect();
        wanted.extend(hooks);
        wanted.sort();
        assert_eq!(contents.programs, wanted);
        assert_eq!(contents.licence, "Dual MIT/GPL");
        assert_eq!(contents.unbounded_calls, Vec::<String>::new());
    }

    #[test]
    fn refuses_what_is_no_object() {
        assert!(matches!(contents(b"\x7fELF"), Err(ObjectError::Elf(_))));
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(matches!(contents(&own), Err(ObjectError::Machine(_))));
    }
}
