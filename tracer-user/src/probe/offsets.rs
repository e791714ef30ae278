//! Where the fields are that the programs read, on this kernel.
//!
//! A field is only believed if it is as wide as what the programs read there; otherwise it counts as missing, and
//! what needs it is left out.

use super::btf::Btf;
use tracer_common::{ABSENT, ConntrackOffsets, Offsets, TUPLE_BYTES};

/// What the kernel's BTF says.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// Fields of vmlinux's structures.
    pub offsets: Offsets,
    /// Fields of connection tracking's structures.
    pub conntrack: ConntrackOffsets,
    /// What this kernel doesn't have, in no particular order.
    pub missing: Vec<MissingField>,
}

/// Something that the programs would read but this kernel doesn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingField {
    /// The field, in the kernel's words: `net.net_cookie`.
    pub what: &'static str,
    /// What that means for the user.
    pub consequence: &'static str,
    /// True if without it there are no events worth printing: a reason to refuse.
    pub essential: bool,
}

impl std::fmt::Display for MissingField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this kernel lacks {}: {}", self.what, self.consequence)
    }
}

/// A field to look for.
struct Wanted<T> {
    /// Where its offset goes.
    slot: fn(&mut T) -> &mut u32,
    /// The struct.
    container: &'static str,
    /// Its path, as of some kernel or other: the first that exists counts.
    paths: &'static [&'static str],
    /// Bytes that the programs read there.
    width: u32,
    what: &'static str,
    consequence: &'static str,
}

const ESSENTIAL: &str = "droptrace cannot read packets on it";
const NO_TRANSPORT: &str = "ports are guessed from the IP header's length";
const NO_MAC: &str = "packets that never reached the IP layer have no addresses";
const NO_PEERS: &str = "peers that do not answer are not told of";
const NO_LINK: &str = "a trace doesn't know what kind of device a packet leaves by";
const NO_ROUTE: &str = "a trace lacks routing decisions";
const NO_GATEWAY: &str = "a trace lacks next hops";
const NO_NETNS: &str = "the network namespace of some packets stays unknown";
const NO_DEVICE: &str = "interfaces stay unknown";
const NO_HOOK: &str = "drops by netfilter lack their hook and its interfaces";
const NO_CONNTRACK: &str = "events lack their connection tracking entry";

/// One [`Wanted`] per line: `slot = "struct" ["path"...] width, consequence`.
macro_rules! wanted {
    ($($slot:ident = $container:literal [$first:literal $(, $path:literal)*] $width:literal, $consequence:expr;)*) => {
        &[$(Wanted {
            slot: |offsets| &mut offsets.$slot,
            container: $container,
            paths: &[$first $(, $path)*],
            width: $width,
            what: concat!($container, ".", $first),
            consequence: $consequence,
        },)*]
    };
}

/// Fields of vmlinux. Sources: struct sk_buff, skb_shared_info (include/linux/skbuff.h), sock (include/net/sock.h),
/// net_device (include/linux/netdevice.h), dst_entry (include/net/dst.h), net (include/net/net_namespace.h),
/// nsproxy (include/linux/nsproxy.h), nf_hook_state (include/linux/netfilter.h).
const VMLINUX: &[Wanted<Offsets>] = wanted! {
    skb_head = "sk_buff" ["head"] 8, ESSENTIAL;
    skb_data = "sk_buff" ["data"] 8, ESSENTIAL;
    skb_len = "sk_buff" ["len"] 4, ESSENTIAL;
    skb_protocol = "sk_buff" ["protocol"] 2, ESSENTIAL;
    skb_network_header = "sk_buff" ["network_header"] 2, ESSENTIAL;
    skb_data_len = "sk_buff" ["data_len"] 4, "packets that are not in one piece cannot be told from others";
    skb_tail = "sk_buff" ["tail"] 4, "how much of a packet can be read is guessed from its length";
    skb_end = "sk_buff" ["end"] 4, "segments of a GSO packet count as one";
    skb_transport_header = "sk_buff" ["transport_header"] 2, NO_TRANSPORT;
    skb_mac_header = "sk_buff" ["mac_header"] 2, NO_MAC;
    skb_dev = "sk_buff" ["dev"] 8, NO_DEVICE;
    skb_sk = "sk_buff" ["sk"] 8, NO_NETNS;
    skb_refdst = "sk_buff" ["_skb_refdst"] 8, NO_NETNS;
    skb_nfct = "sk_buff" ["_nfct"] 8, NO_CONNTRACK;
    skb_iif = "sk_buff" ["skb_iif"] 4, "the interface that a packet came in by stays unknown";
    skb_mark = "sk_buff" ["mark"] 4, "events lack the packet's mark";
    skb_cb = "sk_buff" ["cb"] 48, "drops by queueing and tc lack what they left in the packet";
    skb_pkt_type = "sk_buff" ["pkt_type"] 1, "copies for other hosts cannot be told from packets for this one";
    shinfo_gso_segs = "skb_shared_info" ["gso_segs"] 2, "segments of a GSO packet count as one";
    shinfo_gso_size = "skb_shared_info" ["gso_size"] 2, "the segments' size of a GSO packet stays unknown";
    sock_net = "sock" ["__sk_common.skc_net.net"] 8, NO_NETNS;
    sock_family = "sock" ["__sk_common.skc_family"] 2, "drops in unix and netlink sockets look like packets";
    sock_state = "sock" ["__sk_common.skc_state"] 1, "half-open sockets cannot be told from others";
    sock_protocol = "sock" ["sk_protocol"] 2, "packet sockets' copies look like packets";
    sock_source = "sock" ["__sk_common.skc_rcv_saddr"] 4, NO_PEERS;
    sock_destination = "sock" ["__sk_common.skc_daddr"] 4, NO_PEERS;
    sock_destination_port = "sock" ["__sk_common.skc_dport"] 2, NO_PEERS;
    sock_source_v6 = "sock" ["__sk_common.skc_v6_rcv_saddr"] 16, NO_PEERS;
    sock_destination_v6 = "sock" ["__sk_common.skc_v6_daddr"] 16, NO_PEERS;
    dev_net = "net_device" ["nd_net.net"] 8, NO_NETNS;
    dev_ifindex = "net_device" ["ifindex"] 4, NO_DEVICE;
    dev_name = "net_device" ["name"] 16, NO_DEVICE;
    dev_link_ops = "net_device" ["rtnl_link_ops"] 8, NO_LINK;
    link_ops_kind = "rtnl_link_ops" ["kind"] 8, NO_LINK;
    dst_dev = "dst_entry" ["dev", "dev_rcu"] 8, NO_NETNS;
    dst_input = "dst_entry" ["input"] 8, NO_ROUTE;
    dst_output = "dst_entry" ["output"] 8, NO_ROUTE;
    rt_gateway_family = "rtable" ["rt_gw_family"] 1, NO_GATEWAY;
    rt_gateway = "rtable" ["rt_gw4"] 4, NO_GATEWAY;
    rt6_gateway = "rt6_info" ["rt6i_gateway"] 16, NO_GATEWAY;
    net_inum = "net" ["ns.inum"] 4, "the network namespace of packets stays unknown";
    net_ops = "net" ["ns.ops"] 8, "the network namespace of packets cannot be checked and stays unknown";
    net_cookie = "net" ["net_cookie", "ns.ns_id"] 8,
        "no netns cookie: a network namespace whose inode number is used again looks like the old one";
    task_nsproxy = "task_struct" ["nsproxy"] 8, NO_NETNS;
    nsproxy_net = "nsproxy" ["net_ns"] 8, NO_NETNS;
    state_hook = "nf_hook_state" ["hook"] 1, NO_HOOK;
    state_pf = "nf_hook_state" ["pf"] 1, NO_HOOK;
    state_in = "nf_hook_state" ["in"] 8, NO_HOOK;
    state_out = "nf_hook_state" ["out"] 8, NO_HOOK;
    state_net = "nf_hook_state" ["net"] 8, NO_NETNS;
};

/// Fields of connection tracking. Sources: struct nf_conn (include/net/netfilter/nf_conntrack.h),
/// nf_conntrack_tuple (include/net/netfilter/nf_conntrack_tuple.h).
const CONNTRACK: &[Wanted<ConntrackOffsets>] = wanted! {
    original = "nf_conn" ["tuplehash[0].tuple"] 40, NO_CONNTRACK;
    reply = "nf_conn" ["tuplehash[1].tuple"] 40, "events lack their connection's reply direction";
    status = "nf_conn" ["status"] 4, "events lack their connection's status";
    zone = "nf_conn" ["zone.id"] 2, "events lack their connection's zone (CONFIG_NF_CONNTRACK_ZONES is off)";
    mark = "nf_conn" ["mark"] 4, "events lack their connection's mark (CONFIG_NF_CONNTRACK_MARK is off)";
    tcp_state = "nf_conn" ["proto.tcp.state"] 1, "events lack their connection's TCP state";
    tuple_source = "nf_conntrack_tuple" ["src.u3"] 16, NO_CONNTRACK;
    tuple_source_port = "nf_conntrack_tuple" ["src.u"] 2, NO_CONNTRACK;
    tuple_family = "nf_conntrack_tuple" ["src.l3num"] 2, NO_CONNTRACK;
    tuple_destination = "nf_conntrack_tuple" ["dst.u3"] 16, NO_CONNTRACK;
    tuple_destination_port = "nf_conntrack_tuple" ["dst.u"] 2, NO_CONNTRACK;
    tuple_protocol = "nf_conntrack_tuple" ["dst.protonum"] 1, NO_CONNTRACK;
};

/// Finds everything. `nf_conntrack` is that module's BTF; where it is built in (or the kernel has no BTF of
/// modules), vmlinux may know its structures.
#[must_use]
pub fn resolve(vmlinux: &Btf, nf_conntrack: Option<&Btf>) -> Resolved {
    let mut resolved = Resolved::default();
    fill(vmlinux, VMLINUX, &mut resolved.offsets, &mut resolved.missing);
    resolve_packet(vmlinux, &mut resolved);
    resolve_arguments(vmlinux, &mut resolved);
    resolve_entries(vmlinux, &mut resolved);
    let (conntrack, missing) = resolve_conntrack(nf_conntrack.unwrap_or(vmlinux));
    resolved.conntrack = conntrack;
    resolved.missing.extend(missing);
    resolved
}

/// Finds connection tracking's fields alone: when its module loads later. Give its BTF, or vmlinux's.
#[must_use]
pub fn resolve_conntrack(btf: &Btf) -> (ConntrackOffsets, Vec<MissingField>) {
    let mut offsets = ConntrackOffsets::NONE;
    let mut missing = Vec::new();
    if btf.size_of("nf_conn").is_none() {
        let what = "struct nf_conn";
        let consequence = "events lack their connection tracking entry (nf_conntrack is not loaded, or is a \
                           module of a kernel without BTF for modules)";
        return (offsets, vec![MissingField { what, consequence, essential: false }]);
    }
    fill(btf, CONNTRACK, &mut offsets, &mut missing);
    if btf.size_of("nf_conntrack_tuple").is_none_or(|size| size as usize > TUPLE_BYTES) {
        let what = "struct nf_conntrack_tuple";
        missing.push(MissingField { what, consequence: NO_CONNTRACK, essential: false });
        offsets = ConntrackOffsets::NONE;
    }
    (offsets, missing)
}

fn fill<T>(btf: &Btf, wanted: &[Wanted<T>], offsets: &mut T, missing: &mut Vec<MissingField>) {
    for Wanted { slot, container, paths, width, what, consequence } in wanted {
        let field = paths.iter().find_map(|path| btf.field(container, path));
        match field.filter(|field| field.size >= *width) {
            Some(field) => *slot(offsets) = field.offset,
            None => {
                let essential = *consequence == ESSENTIAL;
                missing.push(MissingField { what, consequence, essential });
            }
        }
    }
}

/// What is read of a struct that is read whole: what lies beyond is out of reach.
fn reach(container: &str) -> Option<usize> {
    match container {
        "sk_buff" => Some(Offsets::SKB_MAX),
        "nf_hook_state" => Some(Offsets::STATE_MAX),
        _ => None,
    }
}

/// Leaves out what is out of [`reach`].
fn resolve_packet(vmlinux: &Btf, resolved: &mut Resolved) {
    let Some(size) = vmlinux.size_of("sk_buff") else {
        return; // Its fields are missing already.
    };
    resolved.offsets.skb_size = size;
    for Wanted { slot, container, width, what, consequence, .. } in VMLINUX {
        let offset = slot(&mut resolved.offsets);
        let Some(reach) = reach(container) else { continue };
        let out_of_reach = || offset.checked_add(*width).is_none_or(|end| end as usize > reach);
        if *offset != ABSENT && out_of_reach() {
            *offset = ABSENT;
            let essential = *consequence == ESSENTIAL;
            resolved.missing.push(MissingField { what, consequence, essential });
        }
    }
}

/// The hook functions in force (struct nf_hook_entries, include/linux/netfilter.h): believed only if they are pairs of the
/// function and what it is given, as the programs read them.
fn resolve_entries(vmlinux: &Btf, resolved: &mut Resolved) {
    let is_pair = vmlinux.offset_of("nf_hook_entry", "hook") == Some(0)
        && vmlinux.offset_of("nf_hook_entry", "priv") == Some(8)
        && vmlinux.size_of("nf_hook_entry") == Some(16);
    match vmlinux.offset_of("nf_hook_entries", "hooks").filter(|_| is_pair) {
        Some(offset) => resolved.offsets.entries_hooks = offset,
        None => resolved.missing.push(MissingField {
            what: "nf_hook_entries.hooks",
            consequence: "hook functions that drop are inferred",
            essential: false,
        }),
    }
}

/// The arguments of the tracepoint kfree_skb (include/trace/events/skb.h): `skb, location` on 5.10, then `reason`
/// from 5.17 and `rx_sk` from 6.11. Indices are those of the program's context, which lacks `__data`.
fn resolve_arguments(vmlinux: &Btf, resolved: &mut Resolved) {
    // The typedef is what the kernel checks a tp_btf program against; it has types only. The function that calls
    // the programs has names too.
    let arguments = vmlinux
        .func_arguments("__bpf_trace_kfree_skb")
        .or_else(|| vmlinux.typedef_arguments("btf_trace_kfree_skb"))
        .unwrap_or_default();
    let arguments = arguments.get(1..).unwrap_or_default();
    let position = |name: &str, type_name: &str, pointers: u32| {
        let index = arguments.iter().position(|argument| {
            argument.type_name == type_name
                && argument.pointers == pointers
                && (argument.name == name || argument.name.is_empty())
        });
        index.and_then(|index| u32::try_from(index).ok())
    };
    let (skb, location) = (position("skb", "sk_buff", 1), position("location", "void", 1));
    if (skb, location) != (Some(0), Some(1)) {
        resolved.missing.push(MissingField {
            what: "tracepoint skb:kfree_skb(skb, location)",
            consequence: "droptrace cannot see drops on it",
            essential: true,
        });
        return;
    }
    let consumed = vmlinux
        .func_arguments("__bpf_trace_consume_skb")
        .or_else(|| vmlinux.typedef_arguments("btf_trace_consume_skb"))
        .unwrap_or_default();
    let has_location =
        consumed.get(2).is_some_and(|argument| argument.type_name == "void" && argument.pointers == 1);
    resolved.offsets.arg_consume_location = if has_location { 1 } else { ABSENT };
    let reason = position("reason", "skb_drop_reason", 0);
    let rx_sk = position("rx_sk", "sock", 1);
    resolved.offsets.arg_reason = reason.unwrap_or(ABSENT);
    resolved.offsets.arg_rx_sk = rx_sk.unwrap_or(ABSENT);
    if reason.is_none() {
        resolved.missing.push(MissingField {
            what: "drop reasons",
            consequence: "the reason of a drop is concluded from where in the kernel it happened (reasons came \
                          with 5.17)",
            essential: false,
        });
    }
    if rx_sk.is_none() {
        resolved.missing.push(MissingField {
            what: "receiving socket in kfree_skb",
            consequence: "the network namespace of a drop in a socket comes from the packet instead (the socket \
                          came with 6.11)",
            essential: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::synthetic::Builder;
    use super::super::btf::{Btf, BtfDir};
    use super::*;
    use std::sync::Arc;

    /// The tracepoint with the arguments that a kernel has.
    fn tracepoint(arguments: usize, named: bool) -> Btf {
        let mut builder = Builder::new();
        let skb = builder.structure("sk_buff", 232, &[]);
        let sock = builder.structure("sock", 760, &[]);
        let reason = builder.enumeration("skb_drop_reason", &[]);
        let pointers = [0, skb, sock].map(|to| builder.pointer(to));
        let all = [
            ("__data", pointers[0]),
            ("skb", pointers[1]),
            ("location", pointers[0]),
            ("reason", reason),
            ("rx_sk", pointers[2]),
        ];
        let nameless: Vec<_> = all.iter().map(|(_, type_id)| ("", *type_id)).collect();
        let proto = builder.proto(&nameless[..arguments]);
        let pointer = builder.pointer(proto);
        builder.typedef("btf_trace_kfree_skb", pointer);
        if named {
            let proto = builder.proto(&all[..arguments]);
            builder.func("__bpf_trace_kfree_skb", proto);
        }
        builder.build()
    }

    #[test]
    fn finds_the_arguments_of_each_kernel() {
        for named in [false, true] {
            let indices = |arguments| {
                let Offsets { arg_reason, arg_rx_sk, .. } =
                    resolve(&tracepoint(arguments, named), None).offsets;
                (arg_reason, arg_rx_sk)
            };
            assert_eq!(indices(3), (ABSENT, ABSENT), "5.10");
            assert_eq!(indices(4), (2, ABSENT), "5.17");
            assert_eq!(indices(5), (2, 3), "6.11");
        }
    }

    #[test]
    fn says_what_is_missing_and_what_that_means() {
        let resolved = resolve(&tracepoint(3, true), None);
        let find = |what| resolved.missing.iter().find(|field| field.what == what);
        assert!(!find("drop reasons").unwrap().essential);
        assert!(find("net.net_cookie").unwrap().consequence.contains("looks like the old one"));
        assert!(find("sk_buff.head").unwrap().essential);
        assert!(find("struct nf_conn").unwrap().consequence.contains("not loaded"));
        assert_eq!(resolved.offsets.skb_size, 232);
        assert_eq!(Offsets { skb_size: ABSENT, ..resolved.offsets }, Offsets::NONE);
        assert!(
            resolve(&Builder::new().build(), None)
                .missing
                .iter()
                .any(|field| field.what.contains("kfree_skb("))
        );
    }

    #[test]
    fn a_field_of_another_width_or_out_of_reach_counts_as_missing() {
        let mut builder = Builder::new();
        let [byte, word] =
            [("unsigned char", 1), ("unsigned int", 4)].map(|(name, size)| builder.int(name, size));
        builder.structure(
            "sk_buff",
            512,
            &[("mark", byte, 64), ("len", word, 96), ("skb_iif", word, 253 * 8)],
        );
        let resolved = resolve(&builder.build(), None);
        assert_eq!(resolved.offsets.skb_mark, ABSENT);
        assert_eq!(resolved.offsets.skb_iif, ABSENT);
        assert_eq!(resolved.offsets.skb_len, 12);
        for what in ["sk_buff.mark", "sk_buff.skb_iif"] {
            assert_eq!(resolved.missing.iter().filter(|field| field.what == what).count(), 1, "{what}");
        }
    }

    #[test]
    fn conntrack_comes_from_its_module() {
        let vmlinux = Arc::new(tracepoint(5, true));
        let mut builder = Builder::on(&vmlinux);
        let [word, byte] = [("u64", 8), ("u8", 1)].map(|(name, size)| builder.int(name, size));
        let address = builder.array(byte, 16);
        let half =
            builder.structure("", 20, &[("u3", address, 0), ("u", word, 128), ("protonum", byte, 144)]);
        let tuple = builder.structure("nf_conntrack_tuple", 40, &[("src", half, 0), ("dst", half, 160)]);
        let hash =
            builder.structure("nf_conntrack_tuple_hash", 56, &[("hnnode", word, 0), ("tuple", tuple, 128)]);
        let hashes = builder.array(hash, 2);
        builder.structure("nf_conn", 248, &[("tuplehash", hashes, 128), ("status", word, 1024)]);
        let module = builder.build_on(&vmlinux);
        let resolved = resolve(&vmlinux, Some(&module));
        let expected = ConntrackOffsets {
            original: 32,
            reply: 88,
            status: 128,
            tuple_source: 0,
            tuple_source_port: 16,
            tuple_destination: 20,
            tuple_destination_port: 36,
            tuple_protocol: 38,
            ..ConntrackOffsets::NONE
        };
        assert_eq!(resolved.conntrack, expected);
        assert!(resolved.missing.iter().any(|field| field.what == "nf_conn.zone.id"));
        assert_eq!(resolve(&vmlinux, None).conntrack, ConntrackOffsets::NONE);
    }

    #[test]
    fn finds_everything_in_this_machines_kernel() {
        let Ok(vmlinux) = BtfDir::default().load_vmlinux() else { return };
        let resolved = resolve(&vmlinux, None);
        let essential: Vec<_> = resolved.missing.iter().filter(|field| field.essential).collect();
        assert!(essential.is_empty(), "{essential:?}");
        let Offsets { skb_len, skb_data_len, skb_head, skb_data, net_inum, net_ops, .. } = resolved.offsets;
        assert_eq!(skb_data_len, skb_len + 4, "neighbours in every kernel since 2.6");
        assert_eq!(skb_data, skb_head + 8);
        assert_eq!(net_inum, net_ops + 8);
    }
}
