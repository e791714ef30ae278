//! Offsets into kernel structures, in bytes, as the user half finds them in the running kernel's BTF.

use core::mem::size_of;

/// An offset of a field that this kernel does not have: what needs it is left out.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: u32,)*
        }

        impl $name {
            /// No field known.
            pub const NONE: Self = Self { $($field: ABSENT,)* };
        }

        impl Default for $name {
            fn default() -> Self {
                Self::NONE
            }
        }
    };
}

offsets! {
    /// Load-time constants of the programs: fields of vmlinux's structures, and where the tracepoint's
    /// arguments are. Named `STRUCT_FIELD`.
    Offsets {
        /// Index of the tracepoint's argument `reason`.
        arg_reason,
        /// Index of the tracepoint's argument `rx_sk`.
        arg_rx_sk,
        /// Index of the argument `location` of the tracepoint consume_skb.
        arg_consume_location,
        /// Bytes of struct sk_buff (at most [`Offsets::SKB_MAX`] are read).
        skb_size,
        /// sk_buff.dev
        skb_dev,
        /// sk_buff.sk
        skb_sk,
        /// sk_buff._skb_refdst
        skb_refdst,
        /// sk_buff._nfct
        skb_nfct,
        /// sk_buff.len
        skb_len,
        /// sk_buff.data_len
        skb_data_len,
        /// sk_buff.skb_iif
        skb_iif,
        /// sk_buff.mark
        skb_mark,
        /// sk_buff.protocol
        skb_protocol,
        /// sk_buff.transport_header
        skb_transport_header,
        /// sk_buff.network_header
        skb_network_header,
        /// sk_buff.mac_header
        skb_mac_header,
        /// sk_buff.tail (an offset from head where CONFIG_64BIT)
        skb_tail,
        /// sk_buff.end (likewise)
        skb_end,
        /// sk_buff.head
        skb_head,
        /// sk_buff.data
        skb_data,
        /// sk_buff.cb
        skb_cb,
        /// The byte that holds sk_buff.pkt_type
        skb_pkt_type,
        /// skb_shared_info.gso_segs
        shinfo_gso_segs,
        /// skb_shared_info.gso_size
        shinfo_gso_size,
        /// sock.__sk_common.skc_net.net
        sock_net,
        /// sock.__sk_common.skc_family
        sock_family,
        /// sock.__sk_common.skc_state
        sock_state,
        /// sock.sk_protocol
        sock_protocol,
        /// sock.__sk_common.skc_rcv_saddr
        sock_source,
        /// sock.__sk_common.skc_daddr
        sock_destination,
        /// sock.__sk_common.skc_dport (big endian)
        sock_destination_port,
        /// sock.__sk_common.skc_v6_rcv_saddr
        sock_source_v6,
        /// sock.__sk_common.skc_v6_daddr
        sock_destination_v6,
        /// net_device.nd_net.net
        dev_net,
        /// net_device.ifindex
        dev_ifindex,
        /// net_device.name
        dev_name,
        /// net_device.rtnl_link_ops
        dev_link_ops,
        /// rtnl_link_ops.kind
        link_ops_kind,
        /// dst_entry.dev
        dst_dev,
        /// dst_entry.input
        dst_input,
        /// dst_entry.output
        dst_output,
        /// rtable.rt_gw_family
        rt_gateway_family,
        /// rtable.rt_gw4 (and rt_gw6, a union)
        rt_gateway,
        /// rt6_info.rt6i_gateway
        rt6_gateway,
        /// net.ns.inum
        net_inum,
        /// net.ns.ops
        net_ops,
        /// net.net_cookie
        net_cookie,
        /// task_struct.nsproxy
        task_nsproxy,
        /// nsproxy.net_ns
        nsproxy_net,
        /// nf_hook_state.hook
        state_hook,
        /// nf_hook_state.pf
        state_pf,
        /// nf_hook_state.in
        state_in,
        /// nf_hook_state.out
        state_out,
        /// nf_hook_state.net
        state_net,
        /// nf_hook_entries.hooks: pairs of a hook function and what it is given (struct nf_hook_entry)
        entries_hooks,
    }
}

impl Offsets {
    /// Room for a struct sk_buff, in bytes.
    pub const SKB_MAX: usize = 256;
    /// Room for what is read of a struct nf_hook_state, in bytes.
    pub const STATE_MAX: usize = 48;
}

offsets! {
    /// Layout of connection tracking (`nf_conntrack` may be a module: these come through the control page).
    ConntrackOffsets {
        /// nf_conn.tuplehash[IP_CT_DIR_ORIGINAL].tuple
        original,
        /// nf_conn.tuplehash[IP_CT_DIR_REPLY].tuple
        reply,
        /// nf_conn.status
        status,
        /// nf_conn.zone.id
        zone,
        /// nf_conn.mark
        mark,
        /// nf_conn.proto.tcp.state
        tcp_state,
        /// nf_conntrack_tuple.src.u3
        tuple_source,
        /// nf_conntrack_tuple.src.u
        tuple_source_port,
        /// nf_conntrack_tuple.src.l3num
        tuple_family,
        /// nf_conntrack_tuple.dst.u3
        tuple_destination,
        /// nf_conntrack_tuple.dst.u
        tuple_destination_port,
        /// nf_conntrack_tuple.dst.protonum
        tuple_protocol,
    }
}

offsets! {
    /// Where the probe on __nft_trace_packet (net/netfilter/nf_tables_core.c) looks. What it is called with differs from kernel to
    /// kernel: what is no argument of its own is in struct nft_traceinfo (include/net/netfilter/nf_tables.h), or nowhere.
    NftTraceOffsets {
        /// Index of the argument `info`.
        argument_info,
        /// Index of the argument `type`.
        argument_type,
        /// Index of the argument `pkt`.
        argument_packet,
        /// Index of the argument `verdict`.
        argument_verdict,
        /// Index of the argument `rule`.
        argument_rule,
        /// Index of the argument `chain`.
        argument_chain,
        /// nft_traceinfo.trace
        info_trace,
        /// nft_traceinfo.basechain
        info_base_chain,
        /// nft_traceinfo.pkt
        info_packet,
        /// nft_traceinfo.verdict
        info_verdict,
        /// nft_traceinfo.rule
        info_rule,
        /// nft_verdict.code
        verdict_code,
        /// nft_verdict.chain
        verdict_chain,
        /// nft_base_chain.chain
        base_chain,
        /// nft_base_chain.policy
        base_policy,
        /// nft_chain.table
        chain_table,
        /// nft_chain.handle
        chain_handle,
        /// nft_table.handle
        table_handle,
        /// The word of bitfields that a rule has before its expressions.
        rule_word,
        /// nft_rule_dp_last.chain: where a chain's rules end, whose they are.
        last_chain,
    }
}

const _: () = assert!(size_of::<Offsets>() == 4 * 55);
const _: () = assert!(size_of::<NftTraceOffsets>() == 4 * 20);
const _: () = assert!(size_of::<ConntrackOffsets>() == 4 * 12);
