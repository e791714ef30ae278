//! Drops by rules: nft, iptables on both backends, and what conntrack knew of the packet.

use super::expect::{Expect, verify, watch};
use super::{both, one, rules};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::send;
use crate::bed::topology::{Family, Routed};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use std::net::SocketAddr;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = [
        both("netfilter::nft_input", |family| drop_at(Backend::Nft, Hook::Input, family)),
        both("netfilter::nft_forward", |family| drop_at(Backend::Nft, Hook::Forward, family)),
        both("netfilter::nft_output", |family| drop_at(Backend::Nft, Hook::Output, family)),
        both("netfilter::iptables_nft_input", |family| drop_at(Backend::IptablesNft, Hook::Input, family)),
        both("netfilter::iptables_nft_forward", |family| {
            drop_at(Backend::IptablesNft, Hook::Forward, family)
        }),
        both("netfilter::iptables_legacy_input", |family| drop_at(Backend::Legacy, Hook::Input, family)),
        both("netfilter::iptables_legacy_forward", |family| drop_at(Backend::Legacy, Hook::Forward, family)),
        both("netfilter::iptables_legacy_output", |family| drop_at(Backend::Legacy, Hook::Output, family)),
        both("netfilter::nft_policy", nft_policy),
        both("netfilter::conntrack_after_dnat", conntrack_after_dnat),
        both("netfilter::echo_request", echo_request),
    ]
    .into_iter()
    .flatten()
    .collect();
    trials.push(one("netfilter::nft_ingress", Family::V4, nft_ingress));
    trials
}

/// Where nft frees: in its own evaluator since late 2023, in the hook loop before.
const NFT: &[&str] = &["nft_do_chain", "nf_hook_slow"];
const LEGACY: &[&str] = &["nf_hook_slow"];

#[derive(Clone, Copy)]
enum Backend {
    Nft,
    IptablesNft,
    Legacy,
}

#[derive(Clone, Copy)]
enum Hook {
    Input,
    Forward,
    Output,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
        }
    }

    /// The namespace whose hook it is, and the device that the packet is on there.
    fn place(self, routed: &Routed) -> (&Namespace, &'static str) {
        match self {
            Self::Input => (&routed.server.netns, "s0"),
            Self::Forward => (&routed.router, "r1"),
            Self::Output => (&routed.client.netns, "c0"),
        }
    }
}

impl Backend {
    /// Adds a rule that drops UDP to a port.
    fn drop_port(self, netns: &Namespace, hook: Hook, family: Family, port: u16) -> Result<()> {
        let chain = hook.name();
        match self {
            Self::Nft => rules::chain(netns, "inet", chain, &format!("udp dport {port} counter drop")),
            Self::IptablesNft | Self::Legacy => {
                let (tool, chain) = (self.tool(family), chain.to_uppercase());
                netns.run(&format!("{tool} -A {chain} -p udp --dport {port} -j DROP")).map(drop)
            }
        }
    }

    fn tool(self, family: Family) -> &'static str {
        match self {
            Self::Legacy => family.pick("iptables-legacy", "ip6tables-legacy"),
            _ => family.pick("iptables-nft", "ip6tables-nft"),
        }
    }

    fn functions(self) -> &'static [&'static str] {
        match self {
            Self::Legacy => LEGACY,
            _ => NFT,
        }
    }
}

fn drop_at(backend: Backend, hook: Hook, family: Family) -> Result<()> {
    const PACKETS: usize = 3;
    let routed = Routed::new()?;
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    let (netns, device) = hook.place(&routed);
    backend.drop_port(netns, hook, family, to.port())?;
    let stream = watch()?;
    // Through the client's own IP layer: its OUTPUT hook must see them too. There a drop fails the send.
    routed.client.netns.enter(|| send::udp(from, to, b"unwanted", PACKETS))?;
    let expect = Expect::drops(PACKETS as u64, netns)
        .flow("udp", from, to)
        .reason(&["NETFILTER_DROP"])
        .field("/drop/class", "policy")
        .at(backend.functions());
    // On the way out the packet may or may not carry its device already; the hook's own device counts.
    let expect = match hook {
        Hook::Input => expect.interface(device),
        Hook::Forward => expect.field("/network/interface_in", "r0").field("/network/interface_out", device),
        Hook::Output => expect.field("/network/interface_out", device),
    };
    // Where nft frees the packet itself, its nft_pktinfo is found on the kernel's stack, and that tells the netns.
    let expect = match backend {
        Backend::Nft | Backend::IptablesNft if kernel::has_reasons() => {
            expect.field("/network/netns_by", "hook-state")
        }
        _ => expect,
    };
    verify(stream, &[expect], &[&routed.client.netns, &routed.router, &routed.server.netns])
}

fn nft_policy(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    rules::chain(&routed.router, "inet", "forward", "")?;
    routed.router.run("nft add chain inet t c { policy drop; }")?;
    let stream = watch()?;
    routed.client.inject(&vec![packet::udp(from, to, b"unwanted"); 3])?;
    let expect = Expect::drops(3, &routed.router).flow("udp", from, to).reason(&["NETFILTER_DROP"]).at(NFT);
    verify(stream, &[expect], &[&routed.server.netns])
}

fn nft_ingress(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to) = (routed.client.port(family, 40_000), routed.server.port(family, 4242));
    rules::chain(&routed.router, "netdev", "ingress device r0", "udp dport 4242 drop")?;
    let stream = watch()?;
    routed.client.inject(&vec![packet::udp(from, to, b"unwanted"); 3])?;
    let expect = Expect::drops(3, &routed.router)
        .flow("udp", from, to)
        .reason(&["NETFILTER_DROP"])
        .at(&["nft_do_chain", "nf_hook_slow", "__netif_receive_skb_core"])
        .interface("r0");
    verify(stream, &[expect], &[&routed.server.netns])
}

/// A service's address is translated and the translated packet dropped: the address that was dialled is known.
fn conntrack_after_dnat(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let vip: SocketAddr = family.pick("10.96.0.10:80", "[fd96::10]:80").parse()?;
    let (from, backend) = (routed.client.port(family, 40_000), routed.server.port(family, 8080));
    let table = family.pick("ip", "ip6");
    rules::chain(&routed.router, table, "forward", "udp dport 8080 drop")?;
    routed.router.run(&format!("nft add chain {table} t n {{ type nat hook prerouting priority -100; }}"))?;
    let translate = format!("{table} daddr {} udp dport 80 dnat to {backend}", vip.ip());
    routed.router.run(&format!("nft add rule {table} t n {translate}"))?;
    let stream = watch()?;
    routed.client.inject(&[packet::udp(from, vip, b"hello")])?;
    let expect = Expect::drops(1, &routed.router)
        .flow("udp", from, backend)
        .reason(&["NETFILTER_DROP"])
        .at(NFT)
        .field("/original/source/address", from.ip().to_string())
        .field("/original/source/port", from.port())
        .field("/original/destination/address", vip.ip().to_string())
        .field("/original/destination/port", vip.port())
        .field("/conntrack/state", "new")
        .field("/conntrack/direction", "original")
        .field("/conntrack/original/destination/address", vip.ip().to_string())
        .field("/conntrack/reply/source/address", backend.ip().to_string())
        .field("/conntrack/reply/source/port", backend.port());
    verify(stream, &[expect], &[&routed.server.netns])
}

fn echo_request(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let (from, to) = (routed.client.address(family), routed.server.address(family));
    let rule = family.pick("icmp type echo-request", "icmpv6 type echo-request");
    rules::chain(&routed.router, "inet", "forward", &format!("{rule} counter drop"))?;
    let stream = watch()?;
    routed.client.inject(&[packet::echo_request(from, to, 0x1234, 7)])?;
    let expect = Expect::drops(1, &routed.router)
        .ends(family.icmp(), from, to)
        .reason(&["NETFILTER_DROP"])
        .at(NFT)
        .field("/packet/icmp_type", family.pick(8, 128))
        .field("/packet/icmp_code", 0)
        .field("/packet/icmp_id", 0x1234)
        .field("/packet/icmp_sequence", 7);
    verify(stream, &[expect], &[&routed.server.netns])?;
    let rules = routed.router.run("nft list ruleset")?;
    ensure!(rules.contains("counter packets 1 "), "the rule did not count one packet:\n{rules}");
    Ok(())
}
