//! Which of nft's rules a packet met: exactly, where the kernel lets nft tell.

use super::{Story, Trace};
use crate::bed::backend::Backend;
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::record::Record;
use crate::bed::send;
use crate::bed::topology::{Family, Routed};
use crate::scenarios::alone;
use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use std::net::UdpSocket;

pub(super) fn trials() -> Vec<Trial> {
    vec![alone("trace::nft_native", native), alone("trace::nft_beside_legacy", beside_legacy)]
}

/// Whether nft tells. It must on Debian's kernels that describe their modules: they have kprobes.
pub(super) fn tells(trace: &Trace) -> Result<bool> {
    let said = trace.0.output().stderr;
    let told = said.contains("rules of nft are exact");
    ensure!(told || said.contains("nft's own are not told: "), "it says nothing of nft: {said}");
    ensure!(told || !kernel::in_vm() || !kernel::describes_modules(), "nft does not tell: {said}");
    Ok(told)
}

/// Checks that each rule of nft in a netns was told by the kernel itself.
pub(super) fn all_exact(story: &Story, netns: &Namespace) -> Result<()> {
    let is_of_nft = |step: &&Record| {
        step.number("/netns") == Some(netns.inode().into())
            && step.text("/kind") == Some("netfilter")
            && step.text("/netfilter/backend") == Some("nft")
    };
    let mut count = 0;
    for step in story.steps.iter().filter(is_of_nft) {
        let how = (step.text("/method"), step.text("/confidence"));
        ensure!(how == (Some("probe"), Some("exact")), "{how:?}: {}", step.brief());
        count += 1;
    }
    ensure!(count > 0, "no rule of nft: {:#?}", story.in_short());
    Ok(())
}

/// Chains on two hooks, jumps and gotos there and back, statements without a verdict.
const RULES: &str = "table inet shop {
    map ports { type inet_service : verdict; elements = { 5353 : jump dns, 9 : jump discard }; }
    chain early {
        type filter hook prerouting priority mangle;
        meta mark set 0x10
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        tcp dport 1 accept
        meta mark 0x10 counter jump pods
        accept
    }
    chain pods {
        meta nfproto ipv6 drop
        udp dport vmap @ports
        counter
    }
    chain dns {
        goto rest
    }
    chain rest {
        udp dport 5353 counter
        udp dport 5353 return
        drop
    }
    chain discard {
        udp dport 7 accept
        udp dport 9 drop
    }
}
";

/// Rules of nft's own: where a packet passes, and where it is dropped.
fn native() -> Result<()> {
    let family = Family::V4;
    let routed = Routed::new()?;
    Backend::Nft.load(&routed.router, family, RULES)?;
    let listener = routed.server.netns.enter(|| Ok(UdpSocket::bind(routed.server.port(family, 5353))?))?;
    let trace = Trace::start(&["--port", "40020", "--protocol", "udp"])?;
    let told = tells(&trace)?;
    for port in [5353, 9] {
        let (from, to) = (routed.client.port(family, 40_020), routed.server.port(family, port));
        routed.client.netns.enter(|| send::udp(from, to, b"?", 1))?;
    }
    let stories = trace.stories(2)?;
    drop(listener);
    let of = |outcome: &str| {
        let found = stories.iter().find(|story| story.outcome() == Some(outcome));
        found.with_context(|| format!("none was {outcome}: {stories:#?}"))
    };
    let (passed, dropped) = (of("delivered")?, of("dropped")?);
    let router = routed.router.inode();
    if !told {
        let wanted = format!(
            "{router} netfilter FORWARD (rules of inet:shop:forward are nft's own, which are not evaluated)"
        );
        // Without types of modules it is not even known that there is such a chain.
        let is_said = passed.in_short().contains(&wanted) || !kernel::describes_modules();
        ensure!(is_said, "{:#?}", passed.in_short());
        return Ok(());
    }
    let step = |place: &str| format!("{router} netfilter {place}");
    let early = ["shop:early:rule:- continue", "shop:early:policy:- accept"];
    let behind = ["shop:forward:rule:- jump pods"];
    let wanted = |rest: &[&str]| -> Vec<String> {
        [early.as_slice(), &["FORWARD"], &behind, rest].concat().into_iter().map(step).collect()
    };
    passed.expect(&wanted(&[
        "shop:pods:rule:- jump dns",
        "shop:dns:rule:- goto rest",
        "shop:rest:rule:- continue",
        "shop:rest:rule:- return",
        "shop:pods:rule:- continue",
        "shop:pods:return:- return",
        "shop:forward:rule:- accept",
    ]))?;
    dropped.expect(&wanted(&["shop:pods:rule:- jump discard", "shop:discard:rule:- drop"]))?;
    // All of them, and nothing else.
    for (story, count) in [(passed, 10), (dropped, 5)] {
        all_exact(story, &routed.router)?;
        let rules = story.in_short().into_iter().filter(|it| it.starts_with(&step("shop:")));
        ensure!(rules.clone().count() == count, "{:#?}", rules.collect::<Vec<_>>());
        let is_noted = |step: &&Record| {
            step.number("/netns") == Some(router.into())
                && step.text("/kind") == Some("netfilter")
                && step.text("/note").is_some()
        };
        ensure!(!story.steps.iter().any(|step| is_noted(&step)), "{:#?}", story.in_short());
    }
    let listed = Backend::Nft.list(&routed.router, family)?;
    let last = |story: &Story| {
        let of_rule = |step: &&Record| step.text("/netfilter/what") == Some("rule");
        story.steps.iter().rfind(of_rule).cloned().context("no rule")
    };
    for (story, chain, text) in [(passed, "forward", "accept"), (dropped, "discard", "udp dport 9 drop")] {
        let step = last(story)?;
        let handle = step.number("/netfilter/handle");
        let rule = listed.iter().find(|rule| rule.handle == handle).context("its handle is not listed")?;
        ensure!(rule.chain == chain, "{} is not in {chain}", step.brief());
        ensure!(step.text("/netfilter/text") == Some(text), "{:?}", step.text("/netfilter/text"));
        ensure!(step.text("/netfilter/family") == Some("inet"), "{}", step.brief());
    }
    // With the mark that it had when it came there.
    let marks = passed.steps.iter().filter(|step| step.text("/netfilter/chain") == Some("early"));
    let marks: Vec<_> = marks.map(|step| step.number("/netfilter/mark")).collect();
    ensure!(marks == [Some(0), Some(0x10)], "{marks:?}");
    Ok(())
}

/// A mark that nft sets is matched by a rule of iptables-legacy behind it on the hook.
fn beside_legacy() -> Result<()> {
    let family = Family::V4;
    let routed = Routed::new()?;
    let rules = "table ip early {\nchain forward {\ntype filter hook forward priority -10;\nmeta mark set 0x21\n}\n}\n";
    Backend::Nft.load(&routed.router, family, rules)?;
    let rules = "*filter\n-A FORWARD -m mark --mark 0x20 -j ACCEPT\n-A FORWARD -m mark --mark 0x21 -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n";
    Backend::Legacy.load(&routed.router, family, rules)?;
    let trace = Trace::start(&["--port", "40021", "--protocol", "udp"])?;
    let told = tells(&trace)?;
    let (from, to) = (routed.client.port(family, 40_021), routed.server.port(family, 9));
    routed.client.netns.enter(|| send::udp(from, to, b"?", 1))?;
    let stories = trace.stories(1)?;
    let is_it =
        |story: &&Story| story.steps.first().is_some_and(|step| step.number("/source/port") == Some(40_021));
    let story = stories.iter().find(is_it).with_context(|| format!("no story: {stories:#?}"))?;
    if told {
        let router = routed.router.inode();
        story.expect(&[
            format!("{router} netfilter early:forward:rule:- continue"),
            format!("{router} netfilter early:forward:policy:- accept"),
            format!("{router} netfilter filter:FORWARD:rule:2 accept"),
        ])?;
    }
    Ok(())
}
