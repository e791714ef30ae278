//! What kind of drop: policy, error, resource — or routine, a free that is no drop.
//!
//! The knowledge is in tables, by *name*: numbers and layouts differ between kernels, names hardly do. `RULES`
//! know places where the reason alone would mislead and are asked first, in order; `REASONS` know what a reason
//! means wherever it comes from. What neither knows is an error: a real drop may hide in any free without a
//! reason, so one is called routine only where the kernel's source shows that nothing is lost there.
//!
//! Sources: include/net/dropreason-core.h, include/net/dropreason-qdisc.h, net/openvswitch/drop.h,
//! net/mac80211/drop.h, and the function that a rule names.

use super::model::Class;
use super::packet::{ethertype, protocol, tcp_flag};
use std::net::{IpAddr, Ipv6Addr};

/// Address families of sockets that carry no packets (include/linux/socket.h).
const AF_UNIX: u16 = 1;
const AF_NETLINK: u16 = 16;
const AF_VSOCK: u16 = 40;

/// `skb->pkt_type` (include/uapi/linux/if_packet.h).
const PACKET_HOST: u8 = 0;
const PACKET_BROADCAST: u8 = 1;
const PACKET_MULTICAST: u8 = 2;
const PACKET_OTHERHOST: u8 = 3;

/// What is known of a drop. Everything may be missing; less knowledge never makes a drop routine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// Name of the drop reason, with or without its prefix; `None` before 5.17.
    pub reason: Option<&'a str>,
    /// `core`, `qdisc`, `openvswitch`, `mac80211_unusable`, `mac80211_monitor`; `None` stands for core.
    pub subsystem: Option<&'a str>,
    /// Where it was freed: `symbol+0xoffset [module]`.
    pub symbol: Option<&'a str>,
    /// The stack from there on, innermost first, likewise; the first frame is `symbol` itself.
    pub stack: &'a [&'a str],
    /// AF_* of the packet's or the receiving socket, 0 without.
    pub socket_family: u16,
    /// skb->protocol, host byte order; 0 if not known.
    pub ethertype: u16,
    /// skb->pkt_type.
    pub packet_type: Option<u8>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// IP protocol number.
    pub transport: Option<u8>,
    /// TCP flags byte.
    pub tcp_flags: Option<u8>,
    /// ICMP or ICMPv6 type.
    pub icmp_type: Option<u8>,
}

/// The network, 127.86.0.0/16, that the packets of a self-test go to, which no other packet is likely to.
pub const SELF_TEST: [u8; 2] = [127, 86];

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classified {
    /// The class.
    pub class: Class,
    /// Why it is no drop: a stable name, only for [`Class::Routine`].
    pub routine_id: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Verdict {
    Drop(Class),
    Routine(&'static str),
}

/// Which reasons a rule is about.
enum Reasons {
    /// Whatever the kernel says.
    Any,
    /// The kernel says nothing: NOT_SPECIFIED, or a kernel without reasons.
    Unsaid,
    /// It says nothing, or one of these.
    UnsaidOr(&'static [&'static str]),
    /// It says one of these.
    Only(&'static [&'static str]),
}

struct Rule {
    verdict: Verdict,
    /// Functions that free; `name*` is a prefix, empty is anywhere.
    at: &'static [&'static str],
    reasons: Reasons,
    /// What else must be true.
    when: fn(&Facts<'_>) -> bool,
}

const POLICY: Verdict = Verdict::Drop(Class::Policy);
const ERROR: Verdict = Verdict::Drop(Class::Error);
const RESOURCE: Verdict = Verdict::Drop(Class::Resource);

/// Places where the reason alone would mislead. The first that fits decides.
const RULES: &[Rule] = &[
    // skb_release_data() frees the members of a frag_list with their head, and __pskb_pull_tail() and
    // ___pskb_trim() those whose bytes they have copied or cut off (net/core/skbuff.c). Up to 5.18 all with
    // kfree_skb(), later with the reason of the head.
    Rule {
        verdict: Verdict::Routine("consumed-fragments"),
        at: &["skb_release_data", "__pskb_pull_tail", "___pskb_trim"],
        reasons: Reasons::Any,
        when: always,
    },
    Rule {
        verdict: Verdict::Routine("consumed-fragments"),
        at: &["kfree_skb_list", "kfree_skb_list_reason"],
        reasons: Reasons::Any,
        when: |facts| facts.called_by(&["skb_release_data", "__pskb_pull_tail", "___pskb_trim"]),
    },
    Rule {
        verdict: Verdict::Routine("self-test"),
        at: &["nf_hook_slow", "nft_do_chain"],
        reasons: Reasons::Any,
        when: |facts| {
            let is_lab = |to| matches!(to, IpAddr::V4(to) if to.octets().starts_with(&SELF_TEST));
            facts.transport == Some(protocol::UDP) && facts.destination.is_some_and(is_lab)
        },
    },
    Rule {
        verdict: Verdict::Routine("unix-socket"),
        at: &[],
        reasons: Reasons::Any,
        when: |facts| facts.socket_family == AF_UNIX,
    },
    Rule {
        verdict: Verdict::Routine("unix-socket"),
        at: &["unix_*", "__unix_*"],
        reasons: Reasons::Any,
        when: always,
    },
    Rule {
        verdict: Verdict::Routine("netlink-socket"),
        at: &[],
        reasons: Reasons::Any,
        when: |facts| facts.socket_family == AF_NETLINK,
    },
    // Messages to user space are skbs too; senders free them where nobody listens.
    Rule {
        verdict: Verdict::Routine("netlink-socket"),
        at: &[
            "netlink_*",
            "__netlink_*",
            "nlmsg_*",
            "genl_*",
            "genlmsg_*",
            "rtmsg_*",
            "rtnetlink_*",
            "rtnl_notify",
            "rtnl_unicast",
            "nfnetlink_*",
            "ctnetlink_*",
            "nfulnl_*",
            "kobject_uevent_*",
            "uevent_net_*",
            "kauditd_*",
            "audit_*",
            "do_one_broadcast",
            // Who asks for a route that there is not: the question is a packet, which is freed.
            "inet_rtm_getroute",
            "inet6_rtm_getroute",
        ],
        reasons: Reasons::Any,
        when: always,
    },
    Rule {
        verdict: Verdict::Routine("vsock-socket"),
        at: &[],
        reasons: Reasons::Any,
        when: |facts| facts.socket_family == AF_VSOCK,
    },
    Rule {
        verdict: Verdict::Routine("vsock-socket"),
        at: &["virtio_transport_*", "vsock_*", "vhost_vsock_*", "vhost_transport_*"],
        reasons: Reasons::Any,
        when: always,
    },
    // net/packet/af_packet.c: these get a copy, and free it with a drop reason when the capture falls behind.
    Rule {
        verdict: Verdict::Routine("capture-copy"),
        at: &[
            "packet_rcv",
            "tpacket_rcv",
            "packet_rcv_fanout",
            "packet_rcv_spkt",
            "packet_sock_destruct",
            "prb_*",
        ],
        reasons: Reasons::Any,
        when: always,
    },
    // net/bridge/br_forward.c frees the original only if no port takes it. A unicast frame is lost then (an
    // unknown destination, hairpin off); group traffic on a bridge without other members is not.
    Rule {
        verdict: Verdict::Routine("flood-clone"),
        at: &["br_flood", "br_multicast_flood"],
        reasons: Reasons::UnsaidOr(&["NO_TX_TARGET"]),
        when: to_group,
    },
    // Purged queues are no sockets' where packets wait for something on their way.
    Rule {
        verdict: ERROR,
        at: &[
            "skb_queue_purge",
            "skb_queue_purge_reason",
            "neigh_*",
            "__neigh_*",
            "pneigh_*",
            "wg_*",
            "xfrm_*",
            "ieee80211_*",
        ],
        reasons: Reasons::UnsaidOr(&["QUEUE_PURGE"]),
        when: |facts| facts.passes(&["neigh_*", "__neigh_*", "pneigh_*", "wg_*", "xfrm_*", "ieee80211_*"]),
    },
    Rule {
        verdict: Verdict::Routine("socket-purge"),
        at: &[
            "skb_queue_purge",
            "skb_queue_purge_reason",
            "skb_errqueue_purge",
            "skb_rbtree_purge",
            "sk_stream_kill_queues",
            "inet_sock_destruct",
            "inet6_sock_destruct",
            "sk_destruct",
            "__sk_destruct",
            "tcp_close",
            "__tcp_close",
            "tcp_disconnect",
            "tcp_write_queue_purge",
            "tcp_v4_destroy_sock",
            "tcp_v6_destroy_sock",
            "inet_csk_destroy_sock",
            "inet_csk_listen_stop",
            "udp_destroy_sock",
            "udpv6_destroy_sock",
            "udp_destruct_common",
            "udp_destruct_sock",
            "udpv6_destruct_sock",
        ],
        reasons: Reasons::UnsaidOr(&["QUEUE_PURGE", "SOCKET_CLOSE"]),
        when: always,
    },
    // These clone a packet for a socket's error queue and free the clone if it is full (net/core/skbuff.c,
    // net/ipv4/ip_sockglue.c, net/ipv6/datagram.c).
    Rule {
        verdict: Verdict::Routine("error-queue-copy"),
        at: &[
            "__skb_tstamp_tx",
            "__skb_complete_tx_timestamp",
            "skb_complete_tx_timestamp",
            "ip_icmp_error",
            "ip_local_error",
            "ipv6_icmp_error",
            "ipv6_local_error",
            "ipv6_local_rxpmtu",
        ],
        reasons: Reasons::Unsaid,
        when: always,
    },
    // Raw sockets get clones (raw_v4_input(), ipv6_raw_deliver()); ping's filter wants its own replies only.
    Rule {
        verdict: Verdict::Routine("raw-copy"),
        at: &[
            "raw_rcv",
            "raw_rcv_skb",
            "raw_v4_input",
            "raw_local_deliver",
            "rawv6_rcv",
            "rawv6_rcv_skb",
            "raw6_*",
        ],
        reasons: Reasons::Only(&["SOCKET_FILTER"]),
        when: always,
    },
    // ping_rcv() finds no ping socket for a ping that uses a raw one (net/ipv4/ping.c); before 6.0 its callers
    // free.
    Rule {
        verdict: Verdict::Routine("ping-copy"),
        at: &["ping_rcv", "icmp_rcv", "icmpv6_rcv"],
        reasons: Reasons::UnsaidOr(&["NO_SOCKET"]),
        when: |facts| match facts.transport {
            Some(protocol::ICMP) => facts.icmp_type == Some(0),
            Some(protocol::ICMPV6) => facts.icmp_type == Some(129),
            _ => false,
        },
    },
    // icmpv6_rcv() ends every message that it has handled with kfree_skb() until its handlers learn to tell
    // (5.18 to 6.4); what it rejects has a reason from 5.18 on.
    Rule {
        verdict: Verdict::Routine("icmpv6-handled"),
        at: &["icmpv6_rcv"],
        reasons: Reasons::Unsaid,
        when: |facts| facts.transport == Some(protocol::ICMPV6),
    },
    // igmp_rcv() counts reports and leaves as dropped (net/ipv4/igmp.c).
    Rule {
        verdict: Verdict::Routine("igmp-handled"),
        at: &["igmp_rcv"],
        reasons: Reasons::Unsaid,
        when: always,
    },
    // ip6_mc_input() frees what it neither delivers nor forwards.
    Rule {
        verdict: Verdict::Routine("multicast-not-joined"),
        at: &["ip6_mc_input"],
        reasons: Reasons::Unsaid,
        when: always,
    },
    // The same for IPv4, where the route lookup refuses. On a kernel without reasons that may be rp_filter, too;
    // link-local groups are never routed, so for them it is not.
    Rule {
        verdict: Verdict::Routine("multicast-not-joined"),
        at: &["ip_rcv_finish_core", "ip_rcv_finish", "ip_rcv", "ip_list_rcv", "ip_sublist_rcv"],
        reasons: Reasons::Unsaid,
        when: |facts| match facts.destination {
            Some(IpAddr::V4(group)) => {
                group.is_multicast() && (facts.reason.is_some() || group.octets()[..3] == [224, 0, 0])
            }
            _ => false,
        },
    },
    // __udp4_lib_mcast_deliver() and its twin, which the compiler may inline.
    Rule {
        verdict: Verdict::Routine("multicast-unheard"),
        at: &[
            "__udp4_lib_mcast_deliver",
            "__udp6_lib_mcast_deliver",
            "__udp4_lib_rcv",
            "__udp6_lib_rcv",
            "udp_rcv",
            "udpv6_rcv",
        ],
        reasons: Reasons::Unsaid,
        when: to_group,
    },
    // tcp_v4_rcv() frees what a TIME_WAIT socket has taken (TCP_TW_SUCCESS, TCP_TW_ACK) without a reason. A FIN
    // or RST that is truly lost has one (from 5.18), and before that hurts nobody.
    Rule {
        verdict: Verdict::Routine("tcp-benign"),
        at: &["tcp_v4_rcv", "tcp_v6_rcv"],
        reasons: Reasons::Unsaid,
        when: |facts| {
            facts.tcp_flags.is_some_and(|flags| {
                flags & (tcp_flag::FIN | tcp_flag::RST) != 0 && flags & tcp_flag::SYN == 0
            })
        },
    },
    // Kernels before 5.18 do not say OTHERHOST and UNHANDLED_PROTO.
    Rule {
        verdict: Verdict::Routine("other-host"),
        at: &["ip_rcv_core", "ip_rcv", "ip_list_rcv", "ip6_rcv_core", "ipv6_rcv", "ipv6_list_rcv"],
        reasons: Reasons::Unsaid,
        when: |facts| facts.packet_type == Some(PACKET_OTHERHOST),
    },
    Rule {
        verdict: Verdict::Routine("unhandled-protocol"),
        at: &[
            "__netif_receive_skb_core",
            "__netif_receive_skb_one_core",
            "__netif_receive_skb_list_core",
            "llc_rcv",
            "snap_rcv",
        ],
        reasons: Reasons::Unsaid,
        when: |facts| facts.ethertype != 0 && !facts.is_internet(),
    },
    // The inactive member of a bond drops with this reason, too: group traffic that the active one delivers. A
    // packet that is for this host and of a kind that it speaks is lost.
    Rule {
        verdict: ERROR,
        at: &[],
        reasons: Reasons::Only(&["UNHANDLED_PROTO", "PTYPE_ABSENT"]),
        when: |facts| facts.is_internet() && facts.packet_type.is_none_or(|kind| kind == PACKET_HOST),
    },
    // Kernels without reasons.
    Rule {
        verdict: POLICY,
        at: &["nf_hook_slow", "nf_hook_slow_list", "nft_do_chain", "br_nf_*"],
        reasons: Reasons::Unsaid,
        when: always,
    },
    Rule {
        verdict: RESOURCE,
        at: &["enqueue_to_backlog", "netem_enqueue"],
        reasons: Reasons::Unsaid,
        when: always,
    },
];

/// Core reasons of all kernels from 5.17 on, old spellings included.
const REASONS: &[(Verdict, &[&str])] = &[
    (
        POLICY,
        &[
            "NETFILTER_DROP",
            "SOCKET_FILTER",
            "BPF_CGROUP_EGRESS",
            "TC_INGRESS",
            "TC_EGRESS",
            "XDP",
            "TAP_FILTER",
            "TAP_TXFILTER",
            "XFRM_POLICY",
            "SECURITY_HOOK",
        ],
    ),
    (
        RESOURCE,
        &[
            "SOCKET_RCVBUFF",
            "SOCKET_BACKLOG",
            "PROTO_MEM",
            "NOMEM",
            "PFMEMALLOC",
            "CPU_BACKLOG",
            "FULL_RING",
            "NEIGH_CREATEFAIL",
            "NEIGH_QUEUEFULL",
            "TCP_LISTEN_OVERFLOW",
            "TCP_ZEROWINDOW",
            "TCP_OFO_QUEUE_PRUNE",
            "QDISC_DROP",
            "QDISC_OVERLIMIT",
            "QDISC_CONGESTED",
            "CAKE_FLOOD",
            "FQ_BAND_LIMIT",
            "FQ_HORIZON_LIMIT",
            "FQ_FLOW_LIMIT",
            "DUALPI2_STEP_DROP",
        ],
    ),
    (Verdict::Routine("consumed"), &["CONSUMED", "NOT_DROPPED_YET"]),
    (
        Verdict::Routine("tcp-benign"),
        &[
            "TCP_OLD_DATA",
            "TCP_OLD_ACK",
            "TCP_OLD_SEQUENCE",
            "TCP_OFOMERGE",
            // The data are in the receive queue already.
            "TCP_OFO_DROP",
            // A pure ACK that was overtaken by a later one.
            "TCP_RFC7323_PAWS_ACK",
            "TCP_CLOSE",
        ],
    ),
    (Verdict::Routine("socket-purge"), &["QUEUE_PURGE", "SOCKET_CLOSE"]),
    (Verdict::Routine("unix-socket"), &["UNIX_DISCONNECT", "UNIX_SKIP_OOB"]),
    (Verdict::Routine("capture-copy"), &["PACKET_SOCK_ERROR"]),
    (Verdict::Routine("ipv6-off"), &["IPV6DISABLED"]),
    (Verdict::Routine("other-host"), &["OTHERHOST"]),
    (Verdict::Routine("unhandled-protocol"), &["UNHANDLED_PROTO", "PTYPE_ABSENT"]),
    (Verdict::Routine("link-control"), &["MAC_IEEE_MAC_CONTROL"]),
    (
        Verdict::Routine("neighbour-discovery"),
        &[
            "IPV6_NDISC_FRAG",
            "IPV6_NDISC_HOP_LIMIT",
            "IPV6_NDISC_BAD_CODE",
            "IPV6_NDISC_BAD_OPTIONS",
            "IPV6_NDISC_NS_OTHERHOST",
        ],
    ),
    (
        ERROR,
        &[
            "NOT_SPECIFIED",
            "NO_SOCKET",
            "PKT_TOO_SMALL",
            "PKT_TOO_BIG",
            "TCP_CSUM",
            "UDP_CSUM",
            "IP_CSUM",
            "ICMP_CSUM",
            "SKB_CSUM",
            "SKB_GSO_SEG",
            "SKB_UCOPY_FAULT",
            "DEV_HDR",
            "DEV_READY",
            "HDR_TRUNC",
            "INVALID_PROTO",
            "IP_INHDR",
            "IP_RPFILTER",
            "IP_NOPROTO",
            "IP_OUTNOROUTES",
            "IP_INADDRERRORS",
            "IP_INNOROUTES",
            "IP_LOCAL_SOURCE",
            "IP_INVALID_SOURCE",
            "IP_LOCALNET",
            "IP_INVALID_DEST",
            "IP_TUNNEL_ECN",
            "UNICAST_IN_L2_MULTICAST",
            "TCP_AUTH_HDR",
            "TCP_MD5NOTFOUND",
            "TCP_MD5UNEXPECTED",
            "TCP_MD5FAILURE",
            "TCP_AONOTFOUND",
            "TCP_AOUNEXPECTED",
            "TCP_AOKEYNOTFOUND",
            "TCP_AOFAILURE",
            "TCP_FLAGS",
            "TCP_ABORT_ON_DATA",
            "TCP_OVERWINDOW",
            "TCP_RFC7323_PAWS",
            "TCP_RFC7323_TW_PAWS",
            "TCP_RFC7323_TSECR",
            "TCP_INVALID_SEQUENCE",
            "TCP_INVALID_END_SEQUENCE",
            "TCP_INVALID_ACK_SEQUENCE",
            "TCP_RESET",
            "TCP_INVALID_SYN",
            "TCP_FASTOPEN",
            "TCP_TOO_OLD_ACK",
            "TCP_ACK_UNSENT_DATA",
            "TCP_MINTTL",
            "NEIGH_FAILED",
            "NEIGH_DEAD",
            "NEIGH_HH_FILLFAIL",
            "DUP_FRAG",
            "FRAG_REASM_TIMEOUT",
            "FRAG_TOO_FAR",
            "IPV6_BAD_EXTHDR",
            "TC_ERROR",
            "TC_COOKIE_ERROR",
            "TC_CHAIN_NOTFOUND",
            "TC_RECLASSIFY_LOOP",
            "VXLAN_INVALID_HDR",
            "VXLAN_VNI_NOT_FOUND",
            "VXLAN_ENTRY_EXISTS",
            "VXLAN_NO_REMOTE",
            "NO_TX_TARGET",
            "TUNNEL_TXINFO",
            "MAC_INVALID_SOURCE",
            "LOCAL_MAC",
            "ARP_PVLAN_DISABLE",
            "BRIDGE_INGRESS_STP_STATE",
            "CAN_RX_INVALID_FRAME",
            "CANFD_RX_INVALID_FRAME",
            "CANXL_RX_INVALID_FRAME",
            "PSP_INPUT",
            "PSP_OUTPUT",
            "RECURSION_LIMIT",
        ],
    ),
];

/// Reasons of the subsystem `qdisc`.
const QDISC: &[(Verdict, &[&str])] = &[(
    RESOURCE,
    &[
        "GENERIC",
        "OVERLIMIT",
        "CONGESTED",
        "MAXFLOWS",
        "CAKE_FLOOD",
        "FQ_BAND_LIMIT",
        "FQ_HORIZON_LIMIT",
        "FLOW_LIMIT",
    ],
)];

/// Reasons of the subsystem `openvswitch`.
const OPENVSWITCH: &[(Verdict, &[&str])] = &[
    // A flow without an output, or with an explicit drop.
    (POLICY, &["LAST_ACTION", "EXPLICIT", "EXPLICIT_WITH_ERROR", "METER"]),
    (RESOURCE, &["DEFERRED_LIMIT"]),
    (
        ERROR,
        &["ACTION_ERROR", "RECURSION_LIMIT", "FRAG_L2_TOO_LONG", "FRAG_INVALID_PROTO", "CONNTRACK", "IP_TTL"],
    ),
];

/// Reasons of the subsystems `mac80211_unusable` and `mac80211_monitor`: the others are damaged or wrong frames.
const MAC80211: &[(Verdict, &[&str])] = &[(RESOURCE, &["OOM"])];

/// Classifies one drop.
#[must_use]
pub fn classify(facts: &Facts<'_>) -> Classified {
    let rule = RULES.iter().find(|rule| rule.fits(facts)).map(|rule| rule.verdict);
    match rule.or_else(|| reason_verdict(facts)).unwrap_or(ERROR) {
        Verdict::Drop(class) => Classified { class, routine_id: None },
        Verdict::Routine(id) => Classified { class: Class::Routine, routine_id: Some(id) },
    }
}

/// What the reason alone says; `None` if it is not known.
fn reason_verdict(facts: &Facts<'_>) -> Option<Verdict> {
    let table = match facts.subsystem {
        Some("qdisc") => QDISC,
        Some("openvswitch") => OPENVSWITCH,
        Some("mac80211_unusable" | "mac80211_monitor") => MAC80211,
        Some("core") | None => REASONS,
        Some(_) => &[],
    };
    let reason = bare_reason(facts.reason?);
    table.iter().find(|(_, names)| names.contains(&reason)).map(|(verdict, _)| *verdict)
}

/// The reason without the prefix of its enumeration.
fn bare_reason(name: &str) -> &str {
    const PREFIXES: [&str; 5] = ["SKB_DROP_REASON_", "OVS_DROP_", "RX_DROP_U_", "RX_DROP_M_", "RX_DROP_"];
    match name {
        "SKB_CONSUMED" => "CONSUMED",
        "SKB_NOT_DROPPED_YET" => "NOT_DROPPED_YET",
        _ => PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name),
    }
}

/// The function of `function.isra.0+0x1d [module]`.
fn function(symbol: &str) -> &str {
    let name = symbol.split(['+', ' ']).next().unwrap_or_default();
    // Compilers append .isra.0, .constprop.0, .part.0, .cold and .llvm.123 to copies of a function.
    name.split('.').next().unwrap_or_default()
}

/// True if the function is one of these; `name*` is a prefix.
fn is_one_of(symbol: &str, patterns: &[&str]) -> bool {
    let function = function(symbol);
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => function.starts_with(prefix),
        None => function == *pattern,
    })
}

fn to_group(facts: &Facts<'_>) -> bool {
    facts.is_group()
}

fn always(_: &Facts<'_>) -> bool {
    true
}

impl Rule {
    fn fits(&self, facts: &Facts<'_>) -> bool {
        let place = self.at.is_empty() || facts.symbol.is_some_and(|symbol| is_one_of(symbol, self.at));
        place && self.reasons.contain(facts) && (self.when)(facts)
    }
}

impl Reasons {
    fn contain(&self, facts: &Facts<'_>) -> bool {
        let core = matches!(facts.subsystem, None | Some("core"));
        let reason = facts.reason.map(bare_reason);
        let unsaid = reason.is_none_or(|reason| core && reason == "NOT_SPECIFIED");
        let says = |names: &[&str]| core && reason.is_some_and(|reason| names.contains(&reason));
        match self {
            Self::Any => true,
            Self::Unsaid => unsaid,
            Self::UnsaidOr(names) => unsaid || says(names),
            Self::Only(names) => says(names),
        }
    }
}

impl Facts<'_> {
    /// True if the function that freed was called by one of these. False without a stack.
    fn called_by(&self, functions: &[&str]) -> bool {
        self.stack.get(1).is_some_and(|caller| is_one_of(caller, functions))
    }

    /// True if one of these freed, or is among the callers next to it.
    fn passes(&self, functions: &[&str]) -> bool {
        const NEAR: usize = 4;
        self.symbol
            .into_iter()
            .chain(self.stack.iter().take(NEAR).copied())
            .any(|at| is_one_of(at, functions))
    }

    /// True for packets to a group: multicast and broadcast, by the frame's destination or by the address.
    fn is_group(&self) -> bool {
        let address = match self.destination {
            Some(IpAddr::V4(address)) => address.is_multicast() || address.is_broadcast(),
            Some(IpAddr::V6(address)) => Ipv6Addr::is_multicast(&address),
            None => false,
        };
        address || matches!(self.packet_type, Some(PACKET_BROADCAST | PACKET_MULTICAST))
    }

    /// True for what every host handles.
    fn is_internet(&self) -> bool {
        matches!(self.ethertype, ethertype::IPV4 | ethertype::IPV6 | ethertype::ARP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every core reason of 5.17 to 7.x, and spellings that did not last.
    const ALL_REASONS: &str = "NOT_DROPPED_YET CONSUMED NOT_SPECIFIED NO_SOCKET SOCKET_CLOSE SOCKET_FILTER \
        SOCKET_RCVBUFF UNIX_DISCONNECT UNIX_SKIP_OOB PKT_TOO_SMALL TCP_CSUM UDP_CSUM NETFILTER_DROP OTHERHOST \
        IP_CSUM IP_INHDR IP_RPFILTER UNICAST_IN_L2_MULTICAST XFRM_POLICY IP_NOPROTO PROTO_MEM TCP_AUTH_HDR \
        TCP_MD5NOTFOUND TCP_MD5UNEXPECTED TCP_MD5FAILURE TCP_AONOTFOUND TCP_AOUNEXPECTED TCP_AOKEYNOTFOUND \
        TCP_AOFAILURE SOCKET_BACKLOG TCP_FLAGS TCP_ABORT_ON_DATA TCP_ZEROWINDOW TCP_OLD_DATA TCP_OVERWINDOW \
        TCP_OFOMERGE TCP_RFC7323_PAWS TCP_RFC7323_PAWS_ACK TCP_RFC7323_TW_PAWS TCP_RFC7323_TSECR \
        TCP_LISTEN_OVERFLOW TCP_OLD_SEQUENCE TCP_INVALID_SEQUENCE TCP_INVALID_END_SEQUENCE \
        TCP_INVALID_ACK_SEQUENCE TCP_RESET TCP_INVALID_SYN TCP_CLOSE TCP_FASTOPEN TCP_OLD_ACK TCP_TOO_OLD_ACK \
        TCP_ACK_UNSENT_DATA TCP_OFO_QUEUE_PRUNE TCP_OFO_DROP IP_OUTNOROUTES BPF_CGROUP_EGRESS IPV6DISABLED \
        NEIGH_CREATEFAIL NEIGH_FAILED NEIGH_QUEUEFULL NEIGH_DEAD NEIGH_HH_FILLFAIL TC_EGRESS SECURITY_HOOK \
        QDISC_DROP QDISC_OVERLIMIT QDISC_CONGESTED CAKE_FLOOD FQ_BAND_LIMIT FQ_HORIZON_LIMIT FQ_FLOW_LIMIT \
        CPU_BACKLOG XDP TC_INGRESS UNHANDLED_PROTO PTYPE_ABSENT SKB_CSUM SKB_GSO_SEG SKB_UCOPY_FAULT DEV_HDR \
        DEV_READY FULL_RING NOMEM HDR_TRUNC TAP_FILTER TAP_TXFILTER ICMP_CSUM INVALID_PROTO IP_INADDRERRORS \
        IP_INNOROUTES IP_LOCAL_SOURCE IP_INVALID_SOURCE IP_LOCALNET IP_INVALID_DEST PKT_TOO_BIG DUP_FRAG \
        FRAG_REASM_TIMEOUT FRAG_TOO_FAR TCP_MINTTL IPV6_BAD_EXTHDR IPV6_NDISC_FRAG IPV6_NDISC_HOP_LIMIT \
        IPV6_NDISC_BAD_CODE IPV6_NDISC_BAD_OPTIONS IPV6_NDISC_NS_OTHERHOST QUEUE_PURGE TC_COOKIE_ERROR TC_ERROR \
        PACKET_SOCK_ERROR TC_CHAIN_NOTFOUND TC_RECLASSIFY_LOOP VXLAN_INVALID_HDR VXLAN_VNI_NOT_FOUND \
        MAC_INVALID_SOURCE VXLAN_ENTRY_EXISTS VXLAN_NO_REMOTE NO_TX_TARGET IP_TUNNEL_ECN TUNNEL_TXINFO LOCAL_MAC \
        ARP_PVLAN_DISABLE MAC_IEEE_MAC_CONTROL BRIDGE_INGRESS_STP_STATE CAN_RX_INVALID_FRAME \
        CANFD_RX_INVALID_FRAME CANXL_RX_INVALID_FRAME PFMEMALLOC DUALPI2_STEP_DROP PSP_INPUT PSP_OUTPUT \
        RECURSION_LIMIT";
    const ALL_QDISC: &str =
        "GENERIC OVERLIMIT CONGESTED MAXFLOWS CAKE_FLOOD FQ_BAND_LIMIT FQ_HORIZON_LIMIT FLOW_LIMIT";
    const ALL_OPENVSWITCH: &str = "LAST_ACTION ACTION_ERROR EXPLICIT EXPLICIT_WITH_ERROR METER RECURSION_LIMIT \
        DEFERRED_LIMIT FRAG_L2_TOO_LONG FRAG_INVALID_PROTO CONNTRACK IP_TTL";

    fn at<'a>(reason: Option<&'a str>, symbol: &'a str) -> Facts<'a> {
        Facts { reason, symbol: Some(symbol), ..Facts::default() }
    }

    fn routine(facts: &Facts<'_>) -> Option<&'static str> {
        let classified = classify(facts);
        assert_eq!(classified.class == Class::Routine, classified.routine_id.is_some());
        classified.routine_id
    }

    fn class(facts: &Facts<'_>) -> Class {
        classify(facts).class
    }

    /// The two ways in which a kernel says nothing.
    const UNSAID: [Option<&str>; 2] = [None, Some("NOT_SPECIFIED")];

    #[test]
    fn every_reason_has_an_explicit_class_and_only_one() {
        let tables = [
            ("core", REASONS, ALL_REASONS),
            ("qdisc", QDISC, ALL_QDISC),
            ("openvswitch", OPENVSWITCH, ALL_OPENVSWITCH),
        ];
        for (subsystem, table, all) in tables {
            for name in all.split_whitespace() {
                let times =
                    table.iter().flat_map(|(_, names)| *names).filter(|known| **known == name).count();
                assert_eq!(times, 1, "{subsystem} {name}");
            }
            for name in table.iter().flat_map(|(_, names)| *names) {
                assert!(
                    all.split_whitespace().any(|known| known == *name),
                    "{subsystem} {name} is no reason"
                );
            }
        }
    }

    #[test]
    fn every_routine_is_a_cause() {
        let rules = RULES.iter().map(|rule| rule.verdict);
        for verdict in rules.chain(REASONS.iter().map(|(verdict, _)| *verdict)) {
            if let Verdict::Routine(id) = verdict {
                let causes = crate::cause::Base::own();
                let known = causes.entries().iter().find(|entry| entry.id() == id);
                assert_eq!(known.map(|entry| entry.severity().name()), Some("info"), "{id}");
            }
        }
    }

    #[test]
    fn reasons_are_classified_by_name() {
        let of = |reason| class(&at(Some(reason), "somewhere+0x1/0x2"));
        for policy in ["NETFILTER_DROP", "TC_INGRESS", "XDP", "SOCKET_FILTER", "XFRM_POLICY"] {
            assert_eq!(of(policy), Class::Policy, "{policy}");
        }
        for resource in ["SOCKET_RCVBUFF", "QDISC_DROP", "NEIGH_QUEUEFULL", "TCP_LISTEN_OVERFLOW"] {
            assert_eq!(of(resource), Class::Resource, "{resource}");
        }
        for error in ["NO_SOCKET", "IP_RPFILTER", "IP_OUTNOROUTES", "FRAG_REASM_TIMEOUT", "NOT_SPECIFIED"] {
            assert_eq!(of(error), Class::Error, "{error}");
        }
        assert_eq!(routine(&at(Some("TCP_OLD_ACK"), "tcp_ack")), Some("tcp-benign"));
        assert_eq!(routine(&at(Some("IPV6DISABLED"), "ip6_rcv_core")), Some("ipv6-off"));
        assert_eq!(routine(&at(Some("OTHERHOST"), "ip_rcv_core")), Some("other-host"));
        assert_eq!(of("SOMETHING_NEW"), Class::Error);
        assert_eq!(class(&Facts::default()), Class::Error);
    }

    #[test]
    fn prefixes_and_subsystems() {
        let of = |subsystem, reason| {
            class(&Facts { subsystem: Some(subsystem), reason: Some(reason), ..Facts::default() })
        };
        assert_eq!(of("core", "SKB_DROP_REASON_NETFILTER_DROP"), Class::Policy);
        assert_eq!(of("core", "SKB_CONSUMED"), Class::Routine);
        assert_eq!(of("qdisc", "OVERLIMIT"), Class::Resource);
        assert_eq!(of("openvswitch", "OVS_DROP_EXPLICIT"), Class::Policy);
        assert_eq!(of("mac80211_unusable", "RX_DROP_U_OOM"), Class::Resource);
        assert_eq!(of("mac80211_unusable", "RX_DROP_U_REPLAY"), Class::Error);
        // The same word may mean another thing elsewhere.
        assert_eq!(of("openvswitch", "XDP"), Class::Error);
        assert_eq!(of("tomorrow", "NETFILTER_DROP"), Class::Error);
    }

    #[test]
    fn a_free_without_a_reason_is_a_drop_unless_its_place_is_known() {
        for reason in UNSAID {
            for place in
                ["tcp_v4_rcv+0x1", "ip_forward+0x2", "__dev_queue_xmit+0x3", "kfree_skb_list+0x9", "0xff"]
            {
                assert_eq!(class(&at(reason, place)), Class::Error, "{place}");
            }
            assert_eq!(class(&at(reason, "nf_hook_slow+0x7d")), Class::Policy);
            assert_eq!(class(&at(reason, "nft_do_chain+0x5cc [nf_tables]")), Class::Policy);
            assert_eq!(class(&at(reason, "enqueue_to_backlog.isra.0+0x1")), Class::Resource);
        }
    }

    #[test]
    fn fragments_of_a_consumed_head() {
        for reason in [None, Some("NOT_SPECIFIED"), Some("NETFILTER_DROP")] {
            assert_eq!(routine(&at(reason, "skb_release_data+0x15e")), Some("consumed-fragments"));
        }
        let list = |caller| {
            let stack = ["kfree_skb_list+0x28", caller, "consume_skb+0x3d"];
            routine(&Facts { symbol: Some(stack[0]), stack: &stack, ..Facts::default() })
        };
        assert_eq!(list("skb_release_data+0xf4"), Some("consumed-fragments"));
        assert_eq!(list("__dev_queue_xmit+0x3e"), None);
    }

    #[test]
    fn self_tests_of_others() {
        let to = |address: &str, transport, symbol| {
            let destination = address.parse().ok();
            routine(&Facts { destination, transport: Some(transport), ..at(Some("NETFILTER_DROP"), symbol) })
        };
        assert_eq!(to("127.86.1.9", protocol::UDP, "nft_do_chain+0x1"), Some("self-test"));
        for (address, transport, symbol) in [
            ("127.87.1.9", protocol::UDP, "nft_do_chain+0x1"),
            ("127.86.1.9", protocol::TCP, "nft_do_chain+0x1"),
            ("127.86.1.9", protocol::UDP, "ip_error+0x1"),
        ] {
            assert_eq!(to(address, transport, symbol), None);
        }
    }

    #[test]
    fn sockets_that_are_no_networks() {
        let family = |socket_family| {
            routine(&Facts { socket_family, reason: Some("SOCKET_RCVBUFF"), ..Facts::default() })
        };
        assert_eq!(family(1), Some("unix-socket"));
        assert_eq!(family(16), Some("netlink-socket"));
        assert_eq!(family(40), Some("vsock-socket"));
        assert_eq!(family(2), None);
        // A packet socket also sends.
        assert_eq!(family(17), None);
        assert_eq!(routine(&at(None, "unix_stream_connect+0x1")), Some("unix-socket"));
        assert_eq!(routine(&at(None, "netlink_broadcast_filtered+0x1")), Some("netlink-socket"));
        assert_eq!(routine(&at(None, "virtio_transport_recv_pkt+0x1 [vmw]")), Some("vsock-socket"));
    }

    #[test]
    fn capture_copies() {
        assert_eq!(routine(&at(Some("PACKET_SOCK_ERROR"), "tpacket_rcv+0x1")), Some("capture-copy"));
        assert_eq!(routine(&at(None, "packet_rcv+0x1")), Some("capture-copy"));
        assert_eq!(routine(&at(None, "packet_sendmsg+0x1")), None);
    }

    #[test]
    fn flooding_to_nobody_is_routine_for_group_traffic_only() {
        for reason in [None, Some("NOT_SPECIFIED"), Some("NO_TX_TARGET")] {
            let flood = |packet_type| {
                routine(&Facts { packet_type: Some(packet_type), ..at(reason, "br_flood+0x1 [bridge]") })
            };
            assert_eq!(flood(PACKET_BROADCAST), Some("flood-clone"));
            assert_eq!(flood(PACKET_MULTICAST), Some("flood-clone"));
            assert_eq!(flood(PACKET_OTHERHOST), None);
            // Hairpin off.
            assert_eq!(routine(&at(reason, "br_forward+0x1 [bridge]")), None);
        }
    }

    #[test]
    fn purges_are_routine_for_sockets_only() {
        for reason in [None, Some("NOT_SPECIFIED"), Some("QUEUE_PURGE")] {
            assert_eq!(routine(&at(reason, "inet_sock_destruct+0x57")), Some("socket-purge"));
            assert_eq!(routine(&at(reason, "skb_queue_purge+0x1")), Some("socket-purge"));
            assert_eq!(routine(&at(reason, "neigh_invalidate+0x1")), None);
            let stack = ["skb_queue_purge+0x1", "neigh_flush_dev+0x2"];
            assert_eq!(routine(&Facts { stack: &stack, ..at(reason, stack[0]) }), None);
        }
        assert_eq!(routine(&at(Some("SOCKET_RCVBUFF"), "skb_queue_purge+0x1")), None);
    }

    #[test]
    fn echo_replies_that_ping_has_seen() {
        let icmp = |place, icmp_type, reason| {
            let transport = Some(if place == "icmpv6_rcv+0x1" { protocol::ICMPV6 } else { protocol::ICMP });
            routine(&Facts { transport, icmp_type: Some(icmp_type), ..at(reason, place) })
        };
        assert_eq!(icmp("ping_rcv+0xab", 0, Some("NO_SOCKET")), Some("ping-copy"));
        assert_eq!(icmp("icmp_rcv+0x1", 0, None), Some("ping-copy"));
        assert_eq!(icmp("icmpv6_rcv+0x1", 129, Some("NO_SOCKET")), Some("ping-copy"));
        assert_eq!(icmp("icmp_rcv+0x1", 8, None), None);
        assert_eq!(icmp("icmp_rcv+0x1", 0, Some("ICMP_CSUM")), None);
        assert_eq!(icmp("icmpv6_rcv+0x1", 135, Some("NOT_SPECIFIED")), Some("icmpv6-handled"));
        assert_eq!(icmp("icmpv6_rcv+0x1", 135, Some("INVALID_PROTO")), None);
        assert_eq!(routine(&at(Some("SOCKET_FILTER"), "raw_rcv+0x1")), Some("raw-copy"));
        assert_eq!(routine(&at(Some("SOCKET_RCVBUFF"), "raw_rcv+0x1")), None);
    }

    #[test]
    fn multicast_that_nobody_wants() {
        let to = |destination: &str, reason, place| {
            routine(&Facts { destination: destination.parse().ok(), ..at(reason, place) })
        };
        assert_eq!(to("ff02::16", Some("NOT_SPECIFIED"), "ip6_mc_input+0x15e"), Some("multicast-not-joined"));
        assert_eq!(to("224.0.0.251", None, "ip_rcv_finish_core.isra.0+0x25b"), Some("multicast-not-joined"));
        let routed = "239.1.2.3";
        assert_eq!(to(routed, Some("NOT_SPECIFIED"), "ip_rcv_finish_core+0x1"), Some("multicast-not-joined"));
        assert_eq!(to(routed, Some("IP_RPFILTER"), "ip_rcv_finish_core+0x1"), None);
        assert_eq!(to(routed, None, "ip_rcv_finish_core+0x1"), None);
        assert_eq!(to("10.0.0.1", Some("NOT_SPECIFIED"), "ip_rcv_finish_core+0x1"), None);
        assert_eq!(to("255.255.255.255", None, "__udp4_lib_rcv+0x1"), Some("multicast-unheard"));
        assert_eq!(to("10.0.0.1", None, "__udp4_lib_rcv+0x1"), None);
    }

    #[test]
    fn the_end_of_a_tcp_connection() {
        for reason in UNSAID {
            let tcp = |flags| routine(&Facts { tcp_flags: Some(flags), ..at(reason, "tcp_v4_rcv+0x1c") });
            assert_eq!(tcp(tcp_flag::FIN | tcp_flag::ACK), Some("tcp-benign"));
            assert_eq!(tcp(tcp_flag::RST), Some("tcp-benign"));
            assert_eq!(tcp(tcp_flag::SYN), None);
            // May be the last packet of a handshake that a full accept queue refuses.
            assert_eq!(tcp(tcp_flag::ACK), None);
        }
        let refused = Facts { tcp_flags: Some(tcp_flag::RST), ..at(Some("NO_SOCKET"), "tcp_v4_rcv+0x1c") };
        assert_eq!(routine(&refused), None);
    }

    #[test]
    fn frames_that_were_never_for_this_host() {
        let other =
            |packet_type| routine(&Facts { packet_type: Some(packet_type), ..at(None, "ip_rcv_core+0x1") });
        assert_eq!(other(PACKET_OTHERHOST), Some("other-host"));
        assert_eq!(other(PACKET_HOST), None);
        for reason in [None, Some("NOT_SPECIFIED"), Some("UNHANDLED_PROTO")] {
            let kind = |ethertype| {
                let facts = at(reason, "__netif_receive_skb_core.constprop.0+0x1");
                routine(&Facts { ethertype, packet_type: Some(PACKET_HOST), ..facts })
            };
            assert_eq!(kind(0x88cc), Some("unhandled-protocol"));
            assert_eq!(kind(ethertype::IPV4), None);
        }
        let bond =
            Facts { ethertype: ethertype::IPV4, packet_type: Some(PACKET_BROADCAST), ..Facts::default() };
        let bond = Facts { reason: Some("UNHANDLED_PROTO"), ..bond };
        assert_eq!(routine(&bond), Some("unhandled-protocol"));
    }

    #[test]
    fn functions_are_found_in_symbols() {
        assert_eq!(function("nf_hook_slow+0x7d"), "nf_hook_slow");
        assert_eq!(function("x.constprop.0.isra.1+0x1 [mod]"), "x");
        assert_eq!(function("x [mod]"), "x");
        assert_eq!(function(""), "");
    }
}
