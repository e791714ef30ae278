//! What is known of a drop, by name: the words of the knowledge base. A fact is worked out when it is asked for.

use super::node::Question;
use crate::event::model::{Class, Drop, Endpoint, Evidence, K8s};
use crate::netfilter::owner::UNKNOWN;
use crate::netfilter::text;
use crate::output::words;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;

/// Who tells a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel, at the drop: the packet, its connection, where and why it was freed; and the names of both ends.
    Packet,
    /// The attribution to netfilter, as sure as that is.
    Netfilter,
    /// The attribution to a program at a tc hook, likewise.
    Bpf,
    /// What Cilium left in the packet.
    Cilium,
    /// The node, asked after the drop.
    Node,
}

macro_rules! facts {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $origin:ident $number:literal;)*) => {
        /// A fact.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Fact {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl Fact {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in the knowledge base.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Who tells it.
            #[must_use]
            pub fn origin(self) -> Origin {
                match self { $(Self::$variant => Origin::$origin,)* }
            }

            /// True if it is a number.
            #[must_use]
            pub fn is_number(self) -> bool {
                match self { $(Self::$variant => $number,)* }
            }
        }
    };
}

facts! {
    /// Name of the drop reason.
    Reason "reason" Packet false;
    /// The function that freed the packet, without offset, module and the compiler's suffixes.
    Function "function" Packet false;
    /// `policy`, `error`, `resource`, `routine`.
    Class "class" Packet false;
    /// Of a free that is no drop: its kind (`event::class`).
    Routine "routine" Packet false;
    /// `ipv4`, `ipv6`, `arp` ...
    Family "family" Packet false;
    /// `tcp`, `udp` ...
    Transport "transport" Packet false;
    /// The interface that the packet was on.
    Interface "interface" Packet false;
    /// The interface that it came in by.
    InterfaceIn "interface_in" Packet false;
    /// The interface that it was to leave by.
    InterfaceOut "interface_out" Packet false;
    /// The interface that it was routed from: where it is sure that it came in by that.
    CameBy "came_by" Packet false;
    /// Bytes.
    Length "length" Packet true;
    /// skb->mark
    Mark "mark" Packet true;
    /// TTL or hop limit.
    Ttl "ttl" Packet true;
    /// As in the event: `SYN`, `SYN,ACK` ...
    TcpFlags "tcp_flags" Packet false;
    /// ICMP or ICMPv6 type.
    IcmpType "icmp_type" Packet true;
    /// Source address.
    Source "source" Packet false;
    /// Destination address.
    Destination "destination" Packet false;
    /// Source port.
    SourcePort "source_port" Packet true;
    /// Destination port.
    DestinationPort "destination_port" Packet true;
    /// The destination's kind: `loopback`, `multicast`, `unicast`.
    DestinationKind "destination_kind" Packet false;
    /// `yes` where it is from and to the same address: translated, it goes back to its sender.
    ToItself "to_itself" Packet false;
    /// Who sent it, by name and address, or by address.
    From "from" Packet false;
    /// Who was to get it, likewise.
    To "to" Packet false;
    /// State of the conntrack entry.
    CtState "ct_state" Packet false;
    /// `original` or `reply`.
    CtDirection "ct_direction" Packet false;
    /// Names of the `IPS_*` bits.
    CtStatus "ct_status" Packet false;
    /// Address and port that were dialled, where NAT changed them.
    Dialled "dialled" Packet false;
    /// The tunnel's type.
    InnerType "inner_type" Packet false;
    /// The VXLAN or Geneve network.
    InnerVni "inner_vni" Packet true;
    /// Who sent the packet in the tunnel.
    InnerFrom "inner_from" Packet false;
    /// Who was to get it.
    InnerTo "inner_to" Packet false;
    /// The pod that sent it, `namespace/name`.
    SourcePod "source_pod" Packet false;
    /// The pod that was to get it.
    DestinationPod "destination_pod" Packet false;
    /// The receiving pod, else the sending one.
    Pod "pod" Packet false;
    /// Its namespace.
    PodNamespace "pod_namespace" Packet false;
    /// Its name without namespace.
    PodName "pod_name" Packet false;
    /// The service that was dialled, `namespace/name`.
    Service "service" Packet false;
    /// Its namespace.
    ServiceNamespace "service_namespace" Packet false;
    /// Its name.
    ServiceName "service_name" Packet false;
    /// As in the event: `drop`, `reject`, `policy` ...
    Verdict "verdict" Netfilter false;
    /// `legacy` or `nft`.
    Backend "backend" Netfilter false;
    /// The table's family.
    NfFamily "nf_family" Netfilter false;
    /// The hook, in upper case.
    Hook "hook" Netfilter false;
    /// The table.
    Table "table" Netfilter false;
    /// The chain.
    Chain "chain" Netfilter false;
    /// The rule's text.
    Rule "rule" Netfilter false;
    /// The rule's comments.
    Comment "comment" Netfilter false;
    /// Who wrote the rule, if that is anybody known.
    RuleOwner "rule_owner" Netfilter false;
    /// The hook function.
    NfFunction "nf_function" Netfilter false;
    /// What a reject sends back.
    RejectWith "reject_with" Netfilter false;
    /// The rules that set the mark which the rule matches, `table:chain` each.
    MarkSetBy "mark_set_by" Netfilter false;
    /// The BPF program on a netfilter hook.
    NfProgram "nf_program" Netfilter false;
    /// Where the rule is: `filter:FORWARD:rule:7`.
    Place "place" Netfilter false;
    /// Chains of Kubernetes' components in the other backend of iptables, where both have rules.
    OtherBackend "other_backend" Netfilter false;
    /// Calico's tier.
    Tier "tier" Netfilter false;
    /// `INGRESS`, `EGRESS` or `NETKIT`.
    BpfHook "bpf_hook" Bpf false;
    /// The device whose program it is.
    BpfInterface "bpf_interface" Bpf false;
    /// The program's name.
    BpfProgram "bpf_program" Bpf false;
    /// Its id.
    BpfId "bpf_id" Bpf true;
    /// The classifier of a clsact filter.
    BpfClassifier "bpf_classifier" Bpf false;
    /// Where it is pinned.
    BpfPinned "bpf_pinned" Bpf false;
    /// Cilium's drop code.
    CiliumCode "cilium_code" Cilium true;
    /// What Cilium's tools say for it.
    CiliumMessage "cilium_message" Cilium false;
    /// The program of Cilium's on the hook.
    CiliumProgram "cilium_program" Cilium false;
    /// Which way, seen from the endpoint.
    CiliumDirection "cilium_direction" Cilium false;
    /// The endpoint's id.
    CiliumEndpoint "cilium_endpoint" Cilium true;
    /// Labels of the sender's identity, else its number.
    CiliumSource "cilium_source" Cilium false;
    /// Labels of the receiver's identity, else its number.
    CiliumDestination "cilium_destination" Cilium false;
    /// The policies that select the endpoint.
    CiliumPolicies "cilium_policies" Cilium false;
    /// The first of what follows from all that.
    CiliumNote "cilium_note" Cilium false;
    /// Forwarding on the interface that it came in by, of its family: 0 or 1 (ip-sysctl).
    Forwarding "forwarding" Node true;
    /// The reverse path filter in force there: the greater of `all` and the interface's own.
    RpFilter "rp_filter" Node true;
    /// Connections tracked.
    ConntrackCount "conntrack_count" Node true;
    /// As many as there may be.
    ConntrackMax "conntrack_max" Node true;
    /// Neighbour entries that there may be, in all network namespaces together.
    NeighbourMax "neighbour_max" Node true;
    /// What the routes make of the destination: `unicast`, `local`, `blackhole`, `unreachable`, `prohibit`, `none`.
    Route "route" Node false;
    /// The interface that they lead to.
    RouteInterface "route_interface" Node false;
    /// Of a route that leads nowhere: the rule of policy routing that leads there, as ip-rule(8) writes it.
    RouteRule "route_rule" Node false;
    /// Its table; where there is no route, those in which it was looked for.
    RouteTable "route_table" Node false;
    /// The route itself: `blackhole 10.244.0.0/16`.
    RouteEntry "route_entry" Node false;
    /// MTU of that interface.
    Mtu "mtu" Node true;
    /// Whom its hardware address was asked for: a gateway, or where it was to go.
    NextHop "next_hop" Node false;
    /// Of a pod's gateway that is no host (169.254.1.1): proxy_arp of the host's end of the veth.
    ProxyArp "proxy_arp" Node true;
    /// Whether bridged IPv4 packets go through iptables; not known where br_netfilter is not loaded.
    BridgeNfCall "bridge_nf_call" Node true;
    /// The longest accept queue that a listener may ask for.
    Somaxconn "somaxconn" Node true;
    /// Connections that did not fit into an accept queue (TcpExt ListenOverflows).
    ListenOverflows "listen_overflows" Node true;
    /// Datagrams that did not fit into a receive buffer (Udp RcvbufErrors).
    RcvbufErrors "rcvbuf_errors" Node true;
    /// Packets that did not fit into a CPU's backlog (/proc/net/softnet_stat).
    SoftnetDropped "softnet_dropped" Node true;
    /// The ports that the namespace's own connections begin from, where they don't choose: `32768 60999`.
    LocalPorts "local_ports" Node false;
    /// Packets that may wait in a CPU's backlog.
    MaxBacklog "max_backlog" Node true;
    /// Bytes that incomplete datagrams may take.
    FragmentBytes "fragment_bytes" Node true;
}

impl Fact {
    /// A fact with which this one is always known.
    pub(super) fn comes_with(self) -> Option<Self> {
        match self {
            Self::Place => Some(Self::Chain),
            Self::CiliumMessage => Some(Self::CiliumCode),
            _ => None,
        }
    }

    /// The fact of a name.
    ///
    /// # Errors
    /// For people: which name may have been meant.
    pub fn named(name: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|fact| fact.name() == name).ok_or_else(|| {
            let near = crate::filter::near(name, Self::ALL.iter().map(|fact| fact.name()));
            match near.first() {
                Some(near) => format!("there is no fact `{name}`: did you mean `{near}`?"),
                None => format!(
                    "there is no fact `{name}`; the facts are: {}",
                    Self::ALL.iter().map(|fact| fact.name()).collect::<Vec<_>>().join(", ")
                ),
            }
        })
    }
}

/// A fact's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// One text.
    Text(Cow<'a, str>),
    /// Several, none of them more than the others.
    Texts(Vec<Cow<'a, str>>),
    /// A number.
    Number(u64),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Texts(texts) => f.write_str(&texts.join(", ")),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A fact that the node told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which.
    pub fact: Fact,
    /// By which name the machine has it, its value, and where that is from.
    pub evidence: Evidence,
}

/// Who can be asked for the node's state.
pub trait NodeState {
    /// What can be told of these facts now.
    fn read(&self, question: Question) -> Vec<Reading>;
}

/// The facts of one drop.
pub struct Facts<'a> {
    drop: &'a Drop,
    node: Option<&'a dyn NodeState>,
    /// The facts that the node is asked for, all at once, when the first of them is.
    wanted: &'a [Fact],
    readings: OnceCell<Vec<Reading>>,
    /// The comments of the rule, which many entries ask for; none if its text is not known.
    comments: OnceCell<Vec<Cow<'a, str>>>,
}

impl<'a> Facts<'a> {
    /// Of this drop.
    #[must_use]
    pub fn new(drop: &'a Drop, node: Option<&'a dyn NodeState>, wanted: &'a [Fact]) -> Self {
        Self { drop, node, wanted, readings: OnceCell::new(), comments: OnceCell::new() }
    }

    /// A fact that the node told, as evidence.
    #[must_use]
    pub fn evidence(&self, fact: Fact) -> Option<&Evidence> {
        let readings = self.readings.get_or_init(|| {
            let question = self.node.zip(Question::about(self.drop, self.wanted));
            question.map(|(node, question)| node.read(question)).unwrap_or_default()
        });
        readings.iter().find(|reading| reading.fact == fact).map(|reading| &reading.evidence)
    }

    /// The fact's value; `None` if it is not known.
    #[must_use]
    pub fn get(&self, fact: Fact) -> Option<Value<'a>> {
        let Drop { source, destination, network, packet, conntrack, inner, drop, original, .. } = self.drop;
        let (netfilter, bpf, cilium) =
            (drop.netfilter.as_deref(), drop.bpf.as_deref(), drop.cilium.as_deref());
        match fact {
            Fact::Reason => text_of(&drop.reason),
            Fact::Function => function(drop.location.as_deref()?).map(borrowed),
            Fact::Class => Some(borrowed(class(drop.class))),
            Fact::Routine => {
                drop.cause.as_ref().filter(|_| drop.class == Class::Routine).map(|cause| borrowed(&cause.id))
            }
            Fact::Family => text_of(&network.family),
            Fact::Transport => text_of(&network.transport),
            Fact::Interface => text_of(&network.interface),
            Fact::InterfaceIn => text_of(&network.interface_in),
            Fact::InterfaceOut => text_of(&network.interface_out),
            Fact::CameBy => came_by(self.drop).map(borrowed),
            Fact::Length => packet.length.map(number),
            Fact::Mark => packet.mark.map(number),
            Fact::Ttl => packet.ttl.map(number),
            Fact::TcpFlags => text_of(&packet.tcp_flags),
            Fact::IcmpType => packet.icmp_type.map(number),
            Fact::Source => source.address.as_ref().map(shown),
            Fact::Destination => destination.address.as_ref().map(shown),
            Fact::SourcePort => source.port.map(number),
            Fact::DestinationPort => destination.port.map(number),
            Fact::ToItself => {
                let is_itself = source.address.is_some() && source.address == destination.address;
                is_itself.then(|| borrowed("yes"))
            }
            Fact::DestinationKind => destination.address.map(|address| {
                borrowed(if address.is_loopback() {
                    "loopback"
                } else if address.is_multicast() {
                    "multicast"
                } else {
                    "unicast"
                })
            }),
            Fact::From => named(source).map(owned),
            Fact::To => named(destination).map(owned),
            Fact::CtState => conntrack.as_ref().map(|it| borrowed(&it.state)),
            Fact::CtDirection => text_of(&conntrack.as_ref()?.direction),
            Fact::CtStatus => {
                Some(Value::Texts(conntrack.as_ref()?.status.split(',').map(Cow::Borrowed).collect()))
            }
            Fact::Dialled => with_port(&original.as_ref()?.destination).map(owned),
            Fact::InnerType => inner.as_ref().map(|it| borrowed(&it.kind)),
            Fact::InnerVni => inner.as_ref()?.vni.map(number),
            Fact::InnerFrom => inner.as_ref().and_then(|it| named(&it.source)).map(owned),
            Fact::InnerTo => inner.as_ref().and_then(|it| named(&it.destination)).map(owned),
            Fact::SourcePod => pod(source).and_then(spaced).map(owned),
            Fact::DestinationPod => pod(destination).and_then(spaced).map(owned),
            Fact::Pod => self.pod().and_then(spaced).map(owned),
            Fact::PodNamespace => text_of(&self.pod()?.namespace),
            Fact::PodName => text_of(&self.pod()?.pod),
            Fact::Service => self.service().map(|(namespace, name)| owned(format!("{namespace}/{name}"))),
            Fact::ServiceNamespace => self.service().map(|(namespace, _)| Value::Text(namespace)),
            Fact::ServiceName => self.service().map(|(_, name)| Value::Text(name)),
            Fact::Verdict => text_of(&netfilter?.verdict),
            Fact::Backend => netfilter?.backend.map(|it| {
                borrowed(match it {
                    crate::netfilter::model::Backend::Legacy => "legacy",
                    crate::netfilter::model::Backend::Nft => "nft",
                })
            }),
            Fact::NfFamily => netfilter?.family.map(|it| borrowed(it.name())),
            Fact::Hook => text_of(&netfilter?.hook),
            Fact::Table => text_of(&netfilter?.table),
            Fact::Chain => text_of(&netfilter?.chain),
            Fact::Rule => text_of(&netfilter?.text),
            Fact::Comment => {
                Some(self.comments()).filter(|it| !it.is_empty()).map(|it| Value::Texts(it.to_vec()))
            }
            Fact::RuleOwner => netfilter?.owner.as_deref().filter(|owner| *owner != UNKNOWN).map(borrowed),
            Fact::NfFunction => text_of(&netfilter?.function),
            Fact::RejectWith => text_of(&netfilter?.reject_with),
            Fact::MarkSetBy => {
                let mut rules: Vec<Cow<'_, str>> = netfilter?
                    .mark_set_by
                    .iter()
                    .map(|rule| Cow::Owned(format!("{}:{}", rule.table, rule.chain)))
                    .collect();
                rules.dedup();
                (!rules.is_empty()).then_some(Value::Texts(rules))
            }
            Fact::NfProgram => netfilter?.program.as_ref().map(|it| borrowed(&it.name)),
            Fact::Place => {
                netfilter?.chain.as_ref()?;
                let place = words::place(self.drop);
                Some(owned(place.split(" (").next().unwrap_or(&place).to_owned()))
            }
            Fact::OtherBackend => text_of(&netfilter?.other_backend),
            Fact::Tier => self.comments().iter().find_map(|comment| {
                let rest = comment.strip_prefix("End of tier ")?;
                Some(owned(rest.split_once(". ")?.0.to_owned()))
            }),
            Fact::BpfHook => bpf.map(|it| borrowed(&it.hook)),
            Fact::BpfInterface => text_of(&bpf?.interface),
            Fact::BpfProgram => text_of(&bpf?.filter.program),
            Fact::BpfId => bpf?.filter.id.map(number),
            Fact::BpfClassifier => text_of(&bpf?.filter.classifier),
            Fact::BpfPinned => text_of(&bpf?.filter.pinned),
            Fact::CiliumCode => cilium?.code.map(number),
            Fact::CiliumMessage => cilium.map(|it| borrowed(&it.message)),
            Fact::CiliumProgram => text_of(&cilium?.program),
            Fact::CiliumDirection => cilium?.direction.map(|it| {
                borrowed(match it {
                    crate::cilium::maps::Direction::Ingress => "ingress",
                    crate::cilium::maps::Direction::Egress => "egress",
                })
            }),
            Fact::CiliumEndpoint => cilium?.endpoint.map(number),
            Fact::CiliumSource => cilium?.source_identity.as_ref().map(shown),
            Fact::CiliumDestination => cilium?.destination_identity.as_ref().map(shown),
            Fact::CiliumPolicies => {
                let names = cilium?.policies.as_ref()?.iter().map(|policy| match &policy.namespace {
                    Some(namespace) => Cow::Owned(format!("{namespace}/{}", policy.name)),
                    None => Cow::Borrowed(policy.name.as_str()),
                });
                Some(Value::Texts(names.collect())).filter(|value| *value != Value::Texts(Vec::new()))
            }
            Fact::CiliumNote => cilium?.notes.first().map(|it| borrowed(it)),
            node => {
                let value = self.evidence(node)?.value.clone();
                if node.is_number() { value.parse().ok().map(Value::Number) } else { Some(owned(value)) }
            }
        }
    }

    fn comments(&self) -> &[Cow<'a, str>] {
        self.comments.get_or_init(|| {
            let rule = self.drop.drop.netfilter.as_deref().and_then(|netfilter| netfilter.text.as_deref());
            rule.map(|rule| text::comments(rule).collect()).unwrap_or_default()
        })
    }

    fn pod(&self) -> Option<&'a K8s> {
        pod(&self.drop.destination).or_else(|| pod(&self.drop.source))
    }

    /// The service, by the names of the ends, or by the comment of kube-proxy's rule: `shop/empty:http has no endpoints`.
    fn service(&self) -> Option<(Cow<'a, str>, Cow<'a, str>)> {
        let named = [&self.drop.destination, &self.drop.source].into_iter().find_map(|end| {
            let k8s = end.k8s.as_ref()?;
            Some((Cow::Borrowed(k8s.namespace.as_deref()?), Cow::Borrowed(k8s.service.as_deref()?)))
        });
        named.or_else(|| {
            let owner = self.drop.drop.netfilter.as_deref().and_then(|netfilter| netfilter.owner.as_deref());
            let comments = if owner == Some("kube-proxy") { self.comments() } else { &[] };
            comments.iter().find_map(|comment| {
                let (namespace, rest) = comment.split(' ').next()?.split_once('/')?;
                let name = rest.split(':').next()?;
                let is_label = |it: &str| {
                    !it.is_empty()
                        && it.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
                };
                (is_label(namespace) && is_label(name))
                    .then(|| (Cow::Owned(namespace.to_owned()), Cow::Owned(name.to_owned())))
            })
        })
    }
}

fn text_of(text: &Option<String>) -> Option<Value<'_>> {
    text.as_deref().map(borrowed)
}

fn borrowed(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn owned<'a>(text: String) -> Value<'a> {
    Value::Text(Cow::Owned(text))
}

fn shown<'a>(value: &impl fmt::Display) -> Value<'a> {
    owned(value.to_string())
}

fn number<'a>(number: impl Into<u64>) -> Value<'a> {
    Value::Number(number.into())
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Policy => "policy",
        Class::Error => "error",
        Class::Resource => "resource",
        Class::Routine => "routine",
    }
}

/// The interface that the packet came in by, where that is sure: netfilter says so, or the function frees packets before they
/// turn to another device. What a namespace sends itself has none.
pub(super) fn came_by(drop: &Drop) -> Option<&str> {
    const ON_THE_WAY_IN: [&str; 9] = [
        "ip_rcv_finish",
        "ip_rcv_finish_core",
        "ip_error",
        "ip_forward",
        "dst_discard",
        "dst_discard_out",
        "ip6_pkt_drop",
        "ip6_pkt_discard",
        "ip6_pkt_prohibit",
    ];
    let is_on_its_way_in =
        || drop.drop.location.as_deref().and_then(function).is_some_and(|name| ON_THE_WAY_IN.contains(&name));
    let network = &drop.network;
    let device = || network.interface.as_deref().filter(|_| is_on_its_way_in());
    // What is sent where no route leads is on the loopback device.
    network.interface_in.as_deref().or_else(device).filter(|name| *name != "lo")
}

/// `ip_rcv_finish_core` of `ip_rcv_finish_core.constprop.0+0x12 [module]`.
pub(super) fn function(location: &str) -> Option<&str> {
    location.split(['+', '.', ' ']).next().filter(|name| !name.is_empty())
}

/// `shop/redis-0 (10.244.1.9)`, or the address.
fn named(end: &Endpoint) -> Option<String> {
    let who = end.k8s.as_ref().and_then(words::who);
    match (who, end.address) {
        (Some(who), Some(address)) => Some(format!("{who} ({address})")),
        (Some(who), None) => Some(who),
        (None, address) => address.map(|address| address.to_string()),
    }
}

fn with_port(end: &Endpoint) -> Option<String> {
    let address = end.address?;
    Some(match end.port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    })
}

fn pod(end: &Endpoint) -> Option<&K8s> {
    end.k8s.as_ref().filter(|k8s| k8s.pod.is_some())
}

fn spaced(k8s: &K8s) -> Option<String> {
    let pod = k8s.pod.as_deref()?;
    Some(k8s.namespace.as_deref().map_or_else(|| pod.to_owned(), |namespace| format!("{namespace}/{pod}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::model::Reason;
    use crate::netfilter::model::Netfilter;

    fn facts_of(drop: &Drop, fact: Fact) -> Option<String> {
        Facts::new(drop, None, &[]).get(fact).map(|value| value.to_string())
    }

    #[test]
    fn names_are_one_each_and_found() {
        for fact in Fact::ALL {
            assert_eq!(Fact::named(fact.name()), Ok(*fact));
        }
        assert!(Fact::named("forwardin").unwrap_err().contains("`forwarding`"));
        assert!(Fact::named("zzzzzzzzz").unwrap_err().contains("reason, function"));
    }

    #[test]
    fn nothing_is_known_of_nothing() {
        let nothing = Drop::default();
        for fact in Fact::ALL.iter().filter(|fact| **fact != Fact::Class) {
            assert_eq!(facts_of(&nothing, *fact), None, "{}", fact.name());
        }
    }

    #[test]
    fn the_service_of_a_rule_is_in_its_comment() {
        let with = |owner: &str, comment: &str| {
            let netfilter = Netfilter {
                owner: Some(owner.to_owned()),
                text: Some(format!("-A KUBE-SERVICES -m comment --comment \"{comment}\" -j DROP")),
                ..Netfilter::default()
            };
            let drop = Drop {
                drop: Reason { netfilter: Some(Box::new(netfilter)), ..Reason::default() },
                ..Drop::default()
            };
            (facts_of(&drop, Fact::Service), facts_of(&drop, Fact::ServiceName))
        };
        assert_eq!(
            with("kube-proxy", "shop/empty:http has no endpoints"),
            (Some("shop/empty".into()), Some("empty".into()))
        );
        assert_eq!(with("kube-proxy", "shop/empty has no endpoints").1.as_deref(), Some("empty"));
        // What anybody may write is no name.
        for comment in ["$(x)/y:z has", "kubernetes forwarding rules", "a/`b` c", "/b"] {
            assert_eq!(with("kube-proxy", comment), (None, None), "{comment}");
        }
        assert_eq!(with("unknown", "shop/empty:http has no endpoints"), (None, None));
    }

    #[test]
    fn functions_lose_what_compilers_add() {
        for location in ["tcp_v4_rcv+0x1f", "tcp_v4_rcv.constprop.0+0x1 [m]", "tcp_v4_rcv"] {
            assert_eq!(function(location), Some("tcp_v4_rcv"));
        }
        assert_eq!(function("+0x1"), None);
    }
}
