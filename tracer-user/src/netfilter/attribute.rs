//! From what is known of a drop and of the rule sets to the answer. Pure: no system is asked here.

use super::model::{Backend, Confidence, Family, Method, Netfilter, hook_name};
use super::nft::{Base, Chain, Found, Ruleset, Table};

/// Where netfilter dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// nf_hook_state.pf (NFPROTO_*).
    pub family: u8,
    /// nf_hook_state.hook
    pub number: u8,
}

/// The expression that gave an nft verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expression {
    /// `immediate`, `lookup`, `reject` ...
    pub name: String,
    /// For `target`: which iptables target.
    pub target: Option<String>,
    /// The first bytes of its data (nft_expr.data).
    pub data: [u8; 24],
}

/// What is known of any drop by netfilter: its hook.
#[must_use]
pub fn at_hook(hook: Option<Hook>) -> Netfilter {
    let family = hook.and_then(|hook| Family::from_number(hook.family));
    let name = family.zip(hook).and_then(|(family, hook)| hook_name(family, hook.number));
    Netfilter { family, hook: name.map(str::to_owned), ..Netfilter::default() }
}

/// An nft rule did it.
#[must_use]
pub fn by_nft_rule(
    ruleset: &Ruleset,
    found: Found,
    expression: Option<&Expression>,
    hook: Option<Hook>,
    confidence: Confidence,
) -> Option<Netfilter> {
    let chain = ruleset.chains.get(found.chain)?;
    let answer = of_chain(ruleset, chain, hook, confidence)?;
    let is_iptables = ruleset.table_of(chain)?.is_iptables;
    let (verdict, reject_with) = expression.map_or((None, None), |expression| {
        let family = hook.and_then(|hook| Family::from_number(hook.family));
        let (verdict, reject) = verdict(expression, family);
        (Some(verdict), reject)
    });
    Some(Netfilter {
        rule: is_iptables.then_some(found.ordinal),
        handle: Some(found.handle),
        verdict,
        reject_with,
        ..answer
    })
}

/// A base chain's policy did it.
#[must_use]
pub fn by_nft_policy(
    ruleset: &Ruleset,
    chain: &Chain,
    hook: Option<Hook>,
    confidence: Confidence,
) -> Option<Netfilter> {
    let answer = of_chain(ruleset, chain, hook, confidence)?;
    Some(Netfilter { verdict: Some("policy".to_owned()), ..answer })
}

fn of_chain(
    ruleset: &Ruleset,
    chain: &Chain,
    hook: Option<Hook>,
    confidence: Confidence,
) -> Option<Netfilter> {
    let table = ruleset.table_of(chain)?;
    Some(Netfilter {
        backend: Some(Backend::Nft),
        family: Some(table.family),
        table: Some(table.name.clone()),
        chain: Some(chain.name.clone()),
        method: Some(Method::Stack),
        confidence,
        ..at_hook(believable(ruleset, chain, table, hook))
    })
}

/// NF_INET_INGRESS (include/uapi/linux/netfilter.h).
const INET_INGRESS: u8 = 5;

/// The hook that a packet met a chain on. A base chain has one; of another chain's packets the kernel's stack tells it, but
/// may hold what an earlier packet left there: a hook that no base chain of the table has is none of this one's.
fn believable(ruleset: &Ruleset, chain: &Chain, table: &Table, hook: Option<Hook>) -> Option<Hook> {
    // An inet chain at ingress: the device's hook calls it.
    let is_ingress = |base: Base, hook: Hook| {
        table.family == Family::Inet && base.hook == INET_INGRESS && hook.family == Family::Netdev.number()
    };
    if let Some(base) = chain.base {
        if hook.is_some_and(|hook| is_ingress(base, hook)) {
            return hook;
        }
        let family = hook.map_or(table.family.number(), |hook| hook.family);
        return Some(Hook { family, number: base.hook });
    }
    let mut bases = ruleset.chains.iter().filter(|it| it.table == chain.table).filter_map(|it| it.base);
    hook.filter(|hook| bases.any(|base| base.hook == hook.number || is_ingress(base, *hook)))
}

/// The verdict that an expression gives when it drops, and what a reject sends back. NF_DROP comes from other
/// expressions, too, than those that say `drop`: then the rule is right and "drop" would be wrong.
fn verdict(expression: &Expression, family: Option<Family>) -> (String, Option<String>) {
    let word = |text: &str| text.to_owned();
    match (expression.name.as_str(), expression.target.as_deref()) {
        ("immediate" | "lookup", _) => (word("drop"), None),
        ("reject", _) => (word("reject"), reject_with(&expression.data, family).map(word)),
        ("target", Some("REJECT")) => {
            // The target's own data follows: `enum ipt_reject_with` or `ip6t_reject_with`.
            let [a, b, c, d, ..] = expression.data;
            let with = u32::from_ne_bytes([a, b, c, d]);
            (word("reject"), family.and_then(|family| iptables_reject(family, with)).map(word))
        }
        ("target", Some("MASQUERADE" | "SNAT" | "DNAT" | "REDIRECT" | "NETMAP"))
        | ("nat" | "masq" | "redir", _) => (word("nat-failed"), None),
        ("queue", _) => (word("queue"), None),
        // A match's only way to drop (`hotdrop`).
        ("match", _) => (word("hotdrop"), None),
        ("target", Some(target)) => (format!("expression:{target}"), None),
        (name, _) => (format!("expression:{name}"), None),
    }
}

/// `enum ipt_reject_with` (include/uapi/linux/netfilter_ipv4/ipt_REJECT.h) and `enum ip6t_reject_with`
/// (include/uapi/linux/netfilter_ipv6/ip6t_REJECT.h), as iptables prints them.
pub(super) fn iptables_reject(family: Family, with: u32) -> Option<&'static str> {
    const IPV4: [&str; 9] = [
        "icmp-net-unreachable",
        "icmp-host-unreachable",
        "icmp-proto-unreachable",
        "icmp-port-unreachable",
        "echo-reply",
        "icmp-net-prohibited",
        "icmp-host-prohibited",
        "tcp-reset",
        "icmp-admin-prohibited",
    ];
    const IPV6: [&str; 8] = [
        "icmp6-no-route",
        "icmp6-adm-prohibited",
        "icmp6-not-neighbour",
        "icmp6-addr-unreachable",
        "icmp6-port-unreachable",
        "icmp6-echo-reply",
        "tcp-reset",
        "icmp6-policy-fail",
    ];
    let names: &[&str] = if family == Family::Ipv6 { &IPV6 } else { &IPV4 };
    names.get(usize::try_from(with).ok()?).copied()
}

/// What nft's `reject` sends: struct nft_reject (include/net/netfilter/nft_reject.h) is a byte of type and one of code
/// (NFT_REJECT_*, NFT_REJECT_ICMPX_*, include/uapi/linux/netfilter/nf_tables.h). Names as nft and iptables print them.
fn reject_with(data: &[u8; 24], family: Option<Family>) -> Option<&'static str> {
    const ICMP: &[(u8, &str)] = &[
        (0, "icmp-net-unreachable"),
        (1, "icmp-host-unreachable"),
        (2, "icmp-proto-unreachable"),
        (3, "icmp-port-unreachable"),
        (9, "icmp-net-prohibited"),
        (10, "icmp-host-prohibited"),
        (13, "icmp-admin-prohibited"),
    ];
    const ICMPV6: &[(u8, &str)] = &[
        (0, "icmp6-no-route"),
        (1, "icmp6-adm-prohibited"),
        (3, "icmp6-addr-unreachable"),
        (4, "icmp6-port-unreachable"),
        (5, "icmp6-policy-fail"),
        (6, "icmp6-reject-route"),
    ];
    const ICMPX: &[(u8, &str)] = &[
        (0, "icmpx-no-route"),
        (1, "icmpx-port-unreachable"),
        (2, "icmpx-host-unreachable"),
        (3, "icmpx-admin-prohibited"),
    ];
    let [kind, code, ..] = *data;
    let names = match kind {
        0 if family == Some(Family::Ipv6) => ICMPV6,
        0 => ICMP,
        1 => return Some("tcp-reset"),
        2 => ICMPX,
        _ => return None,
    };
    names.iter().find(|(number, _)| *number == code).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(name: &str, target: Option<&str>, data: &[u8]) -> Expression {
        let mut bytes = [0; 24];
        bytes[..data.len()].copy_from_slice(data);
        Expression { name: name.into(), target: target.map(str::to_owned), data: bytes }
    }

    #[test]
    fn the_expression_tells_the_verdict() {
        let told = |name, target, data: &[u8], family| {
            let (verdict, reject) = verdict(&expression(name, target, data), family);
            format!("{verdict} {}", reject.unwrap_or_default())
        };
        let v4 = Some(Family::Ipv4);
        assert_eq!(told("immediate", None, &[], v4), "drop ");
        assert_eq!(told("lookup", None, &[], v4), "drop ");
        assert_eq!(told("reject", None, &[0, 10], v4), "reject icmp-host-prohibited");
        assert_eq!(told("reject", None, &[0, 4], Some(Family::Ipv6)), "reject icmp6-port-unreachable");
        assert_eq!(told("reject", None, &[1, 0], v4), "reject tcp-reset");
        assert_eq!(told("reject", None, &[2, 3], v4), "reject icmpx-admin-prohibited");
        assert_eq!(told("reject", None, &[7, 7], v4), "reject ");
        assert_eq!(told("target", Some("REJECT"), &[6, 0, 0, 0], v4), "reject icmp-host-prohibited");
        assert_eq!(told("target", Some("REJECT"), &[1], Some(Family::Ipv6)), "reject icmp6-adm-prohibited");
        assert_eq!(told("target", Some("REJECT"), &[99], v4), "reject ");
        assert_eq!(told("masq", None, &[], v4), "nat-failed ");
        assert_eq!(told("target", Some("SYNPROXY"), &[], v4), "expression:SYNPROXY ");
        assert_eq!(told("synproxy", None, &[], v4), "expression:synproxy ");
        assert_eq!(told("match", None, &[], v4), "hotdrop ");
    }

    #[test]
    fn a_hook_that_the_table_has_not_is_not_believed() {
        let table =
            |name: &str| Table { family: Family::Ipv4, name: name.into(), handle: 1, is_iptables: true };
        let chain = |name: &str, table, hook: Option<u8>| Chain {
            table,
            name: name.into(),
            handle: 1,
            address: 0,
            base: hook.map(|hook| Base { hook, priority: 0, drops: false }),
            rules: [Vec::new(), Vec::new()],
            is_changed: false,
        };
        let ruleset = Ruleset {
            tables: vec![table("mangle"), table("filter")],
            chains: vec![
                chain("FORWARD", 0, Some(2)),
                chain("POSTROUTING", 0, Some(4)),
                chain("user", 0, None),
                chain("OUTPUT", 1, Some(3)),
            ],
            ..Ruleset::default()
        };
        let told = |index: usize, number: Option<u8>| {
            let hook = number.map(|number| Hook { family: 2, number });
            of_chain(&ruleset, &ruleset.chains[index], hook, Confidence::Exact).unwrap().hook
        };
        assert_eq!(told(1, Some(3)).as_deref(), Some("POSTROUTING"));
        assert_eq!(told(1, None).as_deref(), Some("POSTROUTING"));
        assert_eq!(told(2, Some(4)).as_deref(), Some("POSTROUTING"));
        assert_eq!(told(2, Some(3)), None);
        assert_eq!(told(2, None), None);
    }

    #[test]
    fn a_hook_is_named_by_its_family() {
        let answer = at_hook(Some(Hook { family: 10, number: 2 }));
        assert_eq!((answer.family, answer.hook.as_deref()), (Some(Family::Ipv6), Some("FORWARD")));
        assert_eq!(answer.confidence, Confidence::Ambiguous);
        assert_eq!(at_hook(None), Netfilter::default());
        assert_eq!(at_hook(Some(Hook { family: 200, number: 2 })).hook, None);
    }
}
