//! Cilium's verdicts.

use super::outage::{Outage, ROUTED};
use crate::bed::cilium::{Maps, Rule, Version, words};
use crate::bed::tc::{Hook, Program};

pub(super) const OUTAGES: &[Outage] = &[Outage {
    id: "cilium-unmanaged-node",
    what: "A pod of a node without Cilium talks to a pod that a NetworkPolicy selects, on a node with Cilium",
    breaks: |node| {
        let peer = Rule { identity: PEER, egress: false, port: 8080, deny: false, auth: 0 };
        node.keep(Maps::new(Version::V18, ENDPOINT, POD, &[node.redis.end.v4.into()], &[], &[peer])?);
        let mut program = Program::leaving("cil_from_netdev", &words(WORLD, POD, DENIED, ENDPOINT.into()))?;
        node.run("tc qdisc add dev r0 clsact")?;
        program.add_filter(&node.netns, "r0", Hook::Ingress, 1)
    },
    sends: |node| node.asks_redis(8080),
    // Cilium knows the sender's pod by then: it lets the packet pass.
    heals: |node| node.run("tc qdisc del dev r0 clsact"),
    facts: &[
        "cilium:133:POLICY Policy denied (endpoint 2636 ingress, identity 2 reserved:world -> 12345",
        "policies on the pod: shop/from-cart",
        "one side's address is unknown to Cilium",
        "run Cilium on its node",
    ],
    more: &[
        "policy NetworkPolicy shop/from-cart: peer labels: needs app=cart-0",
        "(its node runs no Cilium, or that does not manage the pod)",
        "nearest allow identity 4711 udp 8080",
    ],
    bpffs: true,
    ..ROUTED
}];

/// The pod's endpoint and identity, and one that its policy allows.
const ENDPOINT: u16 = 2636;
const POD: u32 = 12_345;
const PEER: u32 = 4711;
const WORLD: u32 = 2;
/// Policy denied.
const DENIED: u8 = 133;
