//! Where the kernel function is told what it tells nft's own tracing: its arguments, by their names, and the structures behind.

use super::btf::Btf;
use tracer_common::{ABSENT, NftTraceOffsets};

/// The function (net/netfilter/nf_tables_core.c).
pub const FUNCTION: &str = "__nft_trace_packet";
/// Arguments that the probe reads: those in registers on every machine.
const MOST_ARGUMENTS: usize = 5;

/// From the BTF that describes nf_tables. `None` where it does not describe the function (kernels without BTF of modules), or the
/// function isn't told what is needed.
#[must_use]
pub fn resolve(nf_tables: &Btf) -> Option<NftTraceOffsets> {
    let arguments = nf_tables.func_arguments(FUNCTION)?;
    if arguments.len() > MOST_ARGUMENTS {
        return None;
    }
    let argument = |name: &str, type_name: &str, pointers: u32| {
        let is_it = |it: &super::btf::Argument<'_>| {
            (it.name, it.type_name, it.pointers) == (name, type_name, pointers)
        };
        arguments.iter().position(is_it).and_then(|index| u32::try_from(index).ok()).unwrap_or(ABSENT)
    };
    let field = |container, path, width| {
        let field = nf_tables.field(container, path);
        field.filter(|field| field.size == width && field.bits.is_none()).map(|field| field.offset)
    };
    let pointer = |path| field("nft_traceinfo", path, 8).unwrap_or(ABSENT);
    let rule = argument("rule", "nft_rule_dp", 1);
    // Before 5.17 a chain has pointers to struct nft_rule, whose word of bitfields lies before the expressions.
    let rule_word = match nf_tables.offset_of("nft_rule_dp", "data") {
        Some(data) => data.checked_sub(8)?,
        None => nf_tables.offset_of("nft_rule", "data")?.checked_sub(8)?,
    };
    let offsets = NftTraceOffsets {
        argument_info: argument("info", "nft_traceinfo", 1),
        argument_type: argument("type", "nft_trace_types", 0),
        argument_packet: argument("pkt", "nft_pktinfo", 1),
        argument_verdict: argument("verdict", "nft_verdict", 1),
        argument_rule: rule,
        argument_chain: argument("chain", "nft_chain", 1),
        info_trace: field("nft_traceinfo", "trace", 1)?,
        info_base_chain: field("nft_traceinfo", "basechain", 8)?,
        info_packet: pointer("pkt"),
        info_verdict: pointer("verdict"),
        info_rule: pointer("rule"),
        verdict_code: field("nft_verdict", "code", 4)?,
        verdict_chain: field("nft_verdict", "chain", 8)?,
        base_chain: nf_tables.offset_of("nft_base_chain", "chain")?,
        base_policy: field("nft_base_chain", "policy", 1)?,
        chain_table: field("nft_chain", "table", 8)?,
        chain_handle: field("nft_chain", "handle", 8)?,
        table_handle: field("nft_table", "handle", 8)?,
        rule_word,
        last_chain: field("nft_rule_dp_last", "chain", 8).unwrap_or(ABSENT),
    };
    let has = |one: u32, other: u32| one != ABSENT || other != ABSENT;
    let is_enough = offsets.argument_info != ABSENT
        && offsets.argument_type != ABSENT
        && has(offsets.argument_packet, offsets.info_packet)
        && has(offsets.argument_verdict, offsets.info_verdict)
        && has(offsets.argument_rule, offsets.info_rule)
        && has(offsets.argument_chain, offsets.last_chain);
    is_enough.then_some(offsets)
}

#[cfg(test)]
mod tests {
    use super::super::btf::BtfDir;
    use super::super::btf::synthetic::Builder;
    use super::*;

    /// What differs from kernel to kernel.
    struct Kernel<'a> {
        /// Arguments, by the names of their types without `nft_`.
        arguments: &'a [(&'a str, &'a str)],
        /// Pointers in struct nft_traceinfo, behind `trace`.
        info: &'a [&'a str],
        has_blobs: bool,
        has_last_chain: bool,
    }

    fn btf(kernel: &Kernel<'_>) -> Btf {
        let mut builder = Builder::new();
        let (byte, int, long) = (builder.int("u8", 1), builder.int("u32", 4), builder.int("u64", 8));
        let mut info = vec![("trace", byte, 0)];
        info.extend((1..).zip(kernel.info).map(|(index, name)| (*name, long, 64 * index)));
        let info = builder.structure("nft_traceinfo", 64, &info);
        let packet = builder.structure("nft_pktinfo", 8, &[("skb", long, 0)]);
        let verdict = builder.structure("nft_verdict", 16, &[("code", int, 0), ("chain", long, 64)]);
        builder.structure("nft_rule", 24, &[("handle", long, 128), ("data", byte, 192)]);
        let rule =
            if kernel.has_blobs { builder.structure("nft_rule_dp", 8, &[("data", byte, 64)]) } else { 0 };
        if kernel.has_last_chain {
            builder.structure("nft_rule_dp_last", 40, &[("end", rule, 0), ("chain", long, 256)]);
        }
        let chain = builder.structure("nft_chain", 64, &[("table", long, 0), ("handle", long, 64)]);
        builder.structure("nft_base_chain", 96, &[("policy", byte, 8), ("chain", chain, 128)]);
        builder.structure("nft_table", 64, &[("handle", long, 192)]);
        let kind = builder.enumeration("nft_trace_types", &[("NFT_TRACETYPE_RULE", 3)]);
        let arguments: Vec<(&str, u32)> = kernel
            .arguments
            .iter()
            .map(|(name, type_name)| {
                let to = match *type_name {
                    "traceinfo" => info,
                    "pktinfo" => packet,
                    "verdict" => verdict,
                    "rule_dp" => rule,
                    "chain" => chain,
                    _ => return (*name, kind),
                };
                (*name, builder.pointer(to))
            })
            .collect();
        let proto = builder.proto(&arguments);
        builder.func(FUNCTION, proto);
        builder.build()
    }

    /// As on 6.1.
    const OLD: Kernel<'_> = Kernel {
        arguments: &[("info", "traceinfo"), ("chain", "chain"), ("type", "trace_types")],
        info: &["pkt", "basechain", "chain", "rule", "verdict"],
        has_blobs: true,
        has_last_chain: false,
    };

    #[test]
    fn arguments_are_found_by_name() {
        let told = resolve(&btf(&OLD)).unwrap();
        let expected = NftTraceOffsets {
            argument_info: 0,
            argument_type: 2,
            argument_packet: ABSENT,
            argument_verdict: ABSENT,
            argument_rule: ABSENT,
            argument_chain: 1,
            info_trace: 0,
            info_base_chain: 16,
            info_packet: 8,
            info_verdict: 40,
            info_rule: 32,
            verdict_code: 0,
            verdict_chain: 8,
            base_chain: 16,
            base_policy: 1,
            chain_table: 0,
            chain_handle: 8,
            table_handle: 24,
            rule_word: 0,
            last_chain: ABSENT,
        };
        assert_eq!(told, expected);
        // Before 5.17 rules lie one by one.
        assert_eq!(resolve(&btf(&Kernel { has_blobs: false, ..OLD })).unwrap().rule_word, 16);
        let new = Kernel {
            arguments: &[
                ("pkt", "pktinfo"),
                ("verdict", "verdict"),
                ("rule", "rule_dp"),
                ("info", "traceinfo"),
                ("type", "trace_types"),
            ],
            info: &["basechain"],
            has_blobs: true,
            has_last_chain: true,
        };
        let told = resolve(&btf(&new)).unwrap();
        let arguments = [told.argument_packet, told.argument_verdict, told.argument_rule, told.argument_info];
        assert_eq!((arguments, told.argument_type, told.last_chain), ([0, 1, 2, 3], 4, 32));
        assert_eq!([told.argument_chain, told.info_packet, told.info_rule], [ABSENT; 3]);
    }

    #[test]
    fn what_is_not_told_switches_it_off() {
        // Neither the chain nor whose end it is.
        let arguments = [("info", "traceinfo"), ("type", "trace_types")];
        assert_eq!(resolve(&btf(&Kernel { arguments: &arguments, ..OLD })), None);
        assert_eq!(resolve(&btf(&Kernel { info: &["pkt", "rule", "verdict"], ..OLD })), None);
        let other = [("info", "pktinfo"), ("chain", "chain"), ("type", "trace_types")];
        assert_eq!(resolve(&btf(&Kernel { arguments: &other, ..OLD })), None);
        let mut builder = Builder::new();
        builder.int("u8", 1);
        assert_eq!(resolve(&builder.build()), None);
    }

    #[test]
    fn this_machines_kernel_tells_enough_if_it_describes_the_function() {
        let Ok(vmlinux) = BtfDir::default().load_vmlinux() else { return };
        if vmlinux.has_func(FUNCTION) {
            assert!(resolve(&vmlinux).is_some(), "{:?}", vmlinux.func_arguments(FUNCTION));
        }
    }
}
