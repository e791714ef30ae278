//! Which rule dropped: one shape of rules after the other, on all three backends, compared with what the rule tools
//! list. Every packet has a destination port that only the rule to blame drops.

use super::answer::{Blame, expects_exact_here};
use super::expect::{Expect, Stream, verify, watch, watch_rules_of};
use super::{both, skip};
use crate::bed::backend::Backend;
use crate::bed::droptrace::{Droptrace, command as droptrace};
use crate::bed::ebtables;
use crate::bed::kernel;
use crate::bed::listing::Listed;
use crate::bed::packet;
use crate::bed::program;
use crate::bed::ruleset::{self, Base, Chain, Hook, Id, Rule, Target};
use crate::bed::send;
use crate::bed::topology::{Bridged, Family, Pair, Routed};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

/// Rules, and packets with what is to blame for their drops.
type Shape = fn(Backend) -> (Vec<Chain>, Vec<Shot>);

pub(super) fn trials() -> Vec<Trial> {
    let shapes: [(&str, Shape); 6] = [
        ("every_hook", every_hook),
        ("jump_and_goto", jump_and_goto),
        ("return_then_policy", return_then_policy),
        ("empty_policy", empty_policy),
        ("reject", reject),
        ("several_tables", several_tables),
    ];
    let mut trials = Vec::new();
    for backend in Backend::ALL {
        for (name, shape) in shapes {
            for family in [Family::V4, Family::V6] {
                let name = format!("attribution::{}_{name}::{}", backend.name(), family.name());
                trials.push(super::beside(name, move || check(backend, family, "inet", shape)));
            }
        }
    }
    for (backend, name, shape) in [
        (Backend::Nft, "every_hook", every_hook as Shape),
        (Backend::Nft, "jump_and_goto", jump_and_goto),
        (Backend::IptablesNft, "reject", reject),
        (Backend::Nft, "reject", reject),
    ] {
        let name = format!("attribution::probed_{}_{name}::ipv4", backend.name());
        trials.push(super::beside(name, move || probed(backend, Family::V4, shape)));
    }
    for (name, scenario) in [
        ("attribution::nft_own_family", own_family as fn(Family) -> Result<()>),
        ("attribution::nft_several_chains", |family| check(Backend::Nft, family, "inet", several_chains)),
        ("attribution::nft_verdict_map", |family| check(Backend::Nft, family, "inet", verdict_map)),
        ("attribution::nft_named_map", named_map),
        ("attribution::bpf_program", bpf_program),
        ("attribution::ebtables_legacy", ebtables_legacy),
    ] {
        trials.extend(both(name, scenario));
    }
    trials
}

/// A packet and what drops it.
struct Shot {
    path: Path,
    port: u16,
    hook: Hook,
    blame: Culprit,
}

/// Which way a packet takes at the router.
#[derive(Clone, Copy)]
enum Path {
    In,
    Through,
    Out,
}

enum Culprit {
    Drop(Id),
    Reject(Id),
    /// Of this table; the chain is the hook's. And what that is the cause of.
    Policy(&'static str, &'static str),
}

fn shot(path: Path, port: u16, hook: Hook, blame: Culprit) -> Shot {
    Shot { path, port, hook, blame }
}

/// A base chain under the name that its backend gives it.
fn base(backend: Backend, table: &'static str, hook: Hook, drops: bool, rules: Vec<Rule>) -> Chain {
    let priority = match table {
        "raw" => -300,
        "mangle" => -150,
        _ => 0,
    };
    Chain { table, name: base_name(backend, hook), base: Some(Base { hook, priority, drops }), rules }
}

fn base_name(backend: Backend, hook: Hook) -> String {
    if backend.is_iptables() { hook.upper() } else { hook.lower().to_owned() }
}

fn user(table: &'static str, name: &str, rules: Vec<Rule>) -> Chain {
    Chain { table, name: name.to_owned(), base: None, rules }
}

fn every_hook(backend: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let places = [
        ("raw", Hook::Prerouting, Path::Through),
        ("filter", Hook::Input, Path::In),
        ("filter", Hook::Forward, Path::Through),
        ("filter", Hook::Output, Path::Out),
        ("mangle", Hook::Postrouting, Path::Through),
    ];
    let mut chains = Vec::new();
    let mut shots = Vec::new();
    for (number, (table, hook, path)) in (0..).zip(places) {
        let (id, port) = (number * 10, 4300 + number as u16);
        let rules = vec![
            Rule::all(id + 1, Target::Count),
            Rule::port(id + 2, 99, Target::Drop),
            Rule::port(id + 3, port, Target::Drop),
            Rule::all(id + 4, Target::Count),
        ];
        chains.push(base(backend, table, hook, false, rules));
        shots.push(shot(path, port, hook, Culprit::Drop(id + 3)));
    }
    (chains, shots)
}

fn jump_and_goto(backend: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let jump = |id, port, to: &str| Rule::port(id, port, Target::Jump(to.to_owned()));
    let input = vec![
        Rule::all(1, Target::Count),
        jump(2, 4301, "ONCE"),
        jump(3, 4302, "TWICE"),
        Rule::port(4, 4303, Target::Goto("GONE".to_owned())),
        jump(5, 4304, "SHARED"),
    ];
    let forward = vec![jump(6, 4304, "SHARED")];
    let chains = vec![
        base(backend, "filter", Hook::Input, false, input),
        base(backend, "filter", Hook::Forward, false, forward),
        user("filter", "ONCE", vec![Rule::all(10, Target::Count), Rule::port(11, 4301, Target::Drop)]),
        user("filter", "TWICE", vec![Rule::port(20, 4399, Target::Drop), jump(21, 4302, "DEEP")]),
        user(
            "filter",
            "DEEP",
            vec![
                Rule::all(30, Target::Count),
                Rule::all(31, Target::Count),
                Rule::port(32, 4302, Target::Drop),
            ],
        ),
        user("filter", "GONE", vec![Rule::port(40, 4303, Target::Drop)]),
        user(
            "filter",
            "SHARED",
            vec![Rule::port(50, 4399, Target::Drop), Rule::port(51, 4304, Target::Drop)],
        ),
    ];
    let shots = vec![
        shot(Path::In, 4301, Hook::Input, Culprit::Drop(11)),
        shot(Path::In, 4302, Hook::Input, Culprit::Drop(32)),
        shot(Path::In, 4303, Hook::Input, Culprit::Drop(40)),
        shot(Path::In, 4304, Hook::Input, Culprit::Drop(51)),
        shot(Path::Through, 4304, Hook::Forward, Culprit::Drop(51)),
    ];
    (chains, shots)
}

/// The last rule that a packet met is one that returns: it is not to blame.
fn return_then_policy(backend: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let input = vec![
        Rule::port(1, 4301, Target::Jump("BACK".to_owned())),
        Rule::port(2, 4302, Target::Return),
        Rule::port(3, 4303, Target::Goto("END".to_owned())),
        Rule::port(4, 4399, Target::Drop),
    ];
    let chains = vec![
        base(backend, "filter", Hook::Input, true, input),
        user("filter", "BACK", vec![Rule::port(10, 4301, Target::Return), Rule::all(11, Target::Drop)]),
        user("filter", "END", vec![Rule::port(20, 4399, Target::Drop), Rule::all(21, Target::Count)]),
    ];
    let policy = |port| shot(Path::In, port, Hook::Input, Culprit::Policy("filter", "chain-policy-drop"));
    (chains, vec![policy(4301), policy(4302), policy(4303), policy(4304)])
}

fn empty_policy(backend: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let chains = vec![base(backend, "filter", Hook::Forward, true, Vec::new())];
    (chains, vec![shot(Path::Through, 4301, Hook::Forward, Culprit::Policy("filter", "forward-policy-drop"))])
}

fn reject(backend: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let rules = |id: Id, port| vec![Rule::all(id, Target::Count), Rule::port(id + 1, port, Target::Reject)];
    let chains = vec![
        base(backend, "filter", Hook::Input, false, rules(1, 4301)),
        base(
            backend,
            "filter",
            Hook::Forward,
            false,
            vec![Rule::port(11, 4302, Target::Jump("REFUSE".to_owned()))],
        ),
        user("filter", "REFUSE", rules(21, 4302)),
    ];
    let shots = vec![
        shot(Path::In, 4301, Hook::Input, Culprit::Reject(2)),
        shot(Path::Through, 4302, Hook::Forward, Culprit::Reject(22)),
    ];
    (chains, shots)
}

/// Three tables on two hooks; the tables before and behind the one to blame have rules too.
fn several_tables(backend: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let rules = |id: Id, port| vec![Rule::all(id, Target::Count), Rule::port(id + 1, port, Target::Drop)];
    let chains = vec![
        base(backend, "raw", Hook::Prerouting, false, rules(1, 4301)),
        base(backend, "mangle", Hook::Prerouting, false, rules(11, 4302)),
        base(backend, "mangle", Hook::Forward, false, rules(21, 4303)),
        base(backend, "filter", Hook::Forward, false, rules(31, 4304)),
        base(backend, "mangle", Hook::Output, false, rules(41, 4305)),
        base(backend, "filter", Hook::Output, false, rules(51, 4306)),
    ];
    let shots = vec![
        shot(Path::Through, 4301, Hook::Prerouting, Culprit::Drop(2)),
        shot(Path::Through, 4302, Hook::Prerouting, Culprit::Drop(12)),
        shot(Path::Through, 4303, Hook::Forward, Culprit::Drop(22)),
        shot(Path::Through, 4304, Hook::Forward, Culprit::Drop(32)),
        shot(Path::Out, 4305, Hook::Output, Culprit::Drop(42)),
        shot(Path::Out, 4306, Hook::Output, Culprit::Drop(52)),
    ];
    (chains, shots)
}

/// Three base chains of one table on one hook.
fn several_chains(_: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let mut chains = Vec::new();
    let mut shots = Vec::new();
    for (number, priority) in (0..).zip([-10, 0, 10]) {
        let (id, port) = (number * 10 + 1, 4301 + number as u16);
        chains.push(Chain {
            table: "filter",
            name: format!("forward{number}"),
            base: Some(Base { hook: Hook::Forward, priority, drops: false }),
            rules: vec![Rule::all(id, Target::Count), Rule::port(id + 1, port, Target::Drop)],
        });
        shots.push(shot(Path::Through, port, Hook::Forward, Culprit::Drop(id + 1)));
    }
    (chains, shots)
}

/// A verdict map that drops, and jumps to a chain that drops.
fn verdict_map(_: Backend) -> (Vec<Chain>, Vec<Shot>) {
    let map = Target::Map(vec![
        (4301, Target::Drop),
        (4302, Target::Jump("mapped".to_owned())),
        (4303, Target::Goto("mapped".to_owned())),
    ]);
    let input = vec![Rule::all(1, Target::Count), Rule::all(2, map), Rule::port(3, 4399, Target::Drop)];
    let mapped = vec![Rule::port(11, 4302, Target::Drop), Rule::port(12, 4303, Target::Drop)];
    let chains =
        vec![base(Backend::Nft, "filter", Hook::Input, false, input), user("filter", "mapped", mapped)];
    let shots = vec![
        shot(Path::In, 4301, Hook::Input, Culprit::Drop(2)),
        shot(Path::In, 4302, Hook::Input, Culprit::Drop(11)),
        shot(Path::In, 4303, Hook::Input, Culprit::Drop(12)),
    ];
    (chains, shots)
}

/// The same in a table of IPv4's or IPv6's own.
fn own_family(family: Family) -> Result<()> {
    check(Backend::Nft, family, family.pick("ip", "ip6"), every_hook)
}

/// Loads the rules in a router, sends the packets, and compares.
fn check(backend: Backend, family: Family, nft_family: &str, shape: Shape) -> Result<()> {
    check_by(&|| watch_rules_of(backend), expects_exact_here(backend), backend, family, nft_family, shape)
}

/// The same by probes, too: what they tell and what the stack tells must agree, or nothing is told.
fn probed(backend: Backend, family: Family, shape: Shape) -> Result<()> {
    let told = droptrace(&["doctor", "--probes", "always"])?.output().context("can't start droptrace")?;
    if !matches!(told.status.code(), Some(0 | 4)) {
        let why = String::from_utf8_lossy(&told.stderr).into_owned();
        ensure!(told.status.code() == Some(3) && why.contains("--probes always: "), "{}: {why}", told.status);
        return Err(skip("this kernel allows no probes; it says so and ends with 3"));
    }
    let start = || Droptrace::start(&["--all", "--probes", "always"]).map(Stream::Own);
    check_by(&start, kernel::version() >= (5, 15), backend, family, "inet", shape)
}

fn check_by(
    start: &dyn Fn() -> Result<Stream>,
    is_exact: bool,
    backend: Backend,
    family: Family,
    nft_family: &str,
    shape: Shape,
) -> Result<()> {
    let (chains, shots) = shape(backend);
    let nft_family = if backend.is_iptables() { family.pick("ip", "ip6") } else { nft_family };
    let routed = Routed::new()?;
    backend.load(&routed.router, family, &ruleset::write_down(&chains, backend, family, nft_family))?;
    let listed = backend.list_with_handles(&routed.router, family)?;
    let stream = start()?;
    let mut expected = Vec::new();
    for shot in &shots {
        let blame = blame(shot, &listed, backend, family, nft_family)?;
        let expect = fire(shot, &routed, family)?.blame(blame, is_exact);
        expected.push(match shot.blame {
            Culprit::Policy(_, cause) if is_exact => expect.cause(cause),
            _ => expect,
        });
    }
    verify(stream, &expected, &[])
}

fn blame(
    shot: &Shot,
    listed: &[Listed],
    backend: Backend,
    family: Family,
    nft_family: &str,
) -> Result<Blame> {
    let rule = |id, verdict| -> Result<Blame> {
        let rule = with_comment(listed, &ruleset::comment(id))?;
        Ok(Blame::rule(backend, rule, verdict).text(&rule.text))
    };
    Ok(match shot.blame {
        Culprit::Drop(id) => rule(id, "drop")?,
        // What nft calls its own default answer is not iptables' word for it.
        Culprit::Reject(id) if backend.is_iptables() => {
            rule(id, "reject")?.reject_with(ruleset::reject_with(family))
        }
        Culprit::Reject(id) => rule(id, "reject")?,
        Culprit::Policy(table, _) => {
            Blame::policy(backend, nft_family, table, &base_name(backend, shot.hook))
        }
    }
    .at(shot.hook))
}

fn with_comment<'a>(listed: &'a [Listed], comment: &str) -> Result<&'a Listed> {
    let has = |rule: &&Listed| rule.comment.as_deref() == Some(comment);
    listed.iter().find(has).with_context(|| format!("no rule {comment} in {listed:?}"))
}

/// Sends a packet, and says what drop it is.
fn fire(shot: &Shot, routed: &Routed, family: Family) -> Result<Expect> {
    let from = routed.client.port(family, 40_000);
    let to = match shot.path {
        Path::In => routed.near.port(family, shot.port),
        Path::Through | Path::Out => routed.server.port(family, shot.port),
    };
    let from = match shot.path {
        Path::In | Path::Through => {
            routed.client.inject(&[packet::udp(from, to, b"unwanted")])?;
            from
        }
        // In process context: the sender itself gets EPERM.
        Path::Out => {
            let from = routed.far.port(family, 40_000);
            let sent = routed.router.enter(|| send::udp(from, to, b"unwanted", 1))?;
            ensure!(sent == 0, "the kernel let the packet to {to} out");
            from
        }
    };
    Ok(Expect::drops(1, &routed.router).flow("udp", from, to).reason(&["NETFILTER_DROP"]))
}

/// A map with a name, filled after the rule was made: the rule is to blame, not the element.
fn named_map(family: Family) -> Result<()> {
    let routed = Routed::new()?;
    let text = "table inet t {\nmap verdicts {\ntype inet_service : verdict\n}\nchain c {\n\
        type filter hook forward priority 0; policy accept;\n\
        counter comment \"u1\"\nudp dport vmap @verdicts comment \"u2\"\n}\n}\n\
        add element inet t verdicts { 4242 : drop, 4243 : return }\n";
    routed.router.feed("nft -f -", text)?;
    let shot = shot(Path::Through, 4242, Hook::Forward, Culprit::Drop(2));
    let listed = Backend::Nft.list(&routed.router, family)?;
    let blame = blame(&shot, &listed, Backend::Nft, family, "inet")?;
    let stream = watch()?;
    let expect = fire(&shot, &routed, family)?.blame(blame, expects_exact_here(Backend::Nft));
    verify(stream, &[expect], &[&routed.server.netns])
}

/// A legacy table of bridges: its function is known, and that it is a table; which of its rules dropped is not.
fn ebtables_legacy(family: Family) -> Result<()> {
    let Bridged { client, middle, server } = Bridged::new()?;
    ebtables::drop_forwarded(&middle)
        .map_err(|error| skip(format!("no legacy tables of bridges: {error:#}")))?;
    // What the self-test learns from, before 6.4 too.
    middle.run("nft list tables")?;
    middle.run("iptables-legacy -nL")?;
    let (from, to) = (client.port(family, 40_000), server.port(family, 4242));
    let stream = watch()?;
    client.inject(&[packet::udp(from, to, b"unwanted")])?;
    let expect =
        Expect::drops(1, &middle).flow("udp", from, to).reason(&["NETFILTER_DROP"]).at(&["nf_hook_slow"]);
    let expect = if expects_exact_here(Backend::Legacy) {
        expect
            .field("/drop/netfilter/hook", "FORWARD")
            .field("/drop/netfilter/family", "bridge")
            .field_among("/drop/netfilter/function", &["ebt_do_table", "ebt_in_hook", "ebt_filter_hook"])
            .field("/drop/netfilter/backend", "legacy")
            .field("/drop/netfilter/confidence", "ambiguous")
    } else {
        expect
    };
    verify(stream, &[expect], &[&server.netns])
}

/// A BPF program on a hook drops, between two that don't.
fn bpf_program(family: Family) -> Result<()> {
    /// NF_INET_LOCAL_IN
    const INPUT: u32 = 1;
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    let attach = |name, drops, priority| program::attach(netns, name, drops, family, INPUT, priority);
    let before = match attach("before", false, -7) {
        Err(error) if kernel::version() < (6, 4) => {
            return Err(skip(format!("no BPF programs on hooks: {error:#}")));
        }
        attached => attached?,
    };
    let guard = attach("guard", true, 5)?;
    let after = attach("after", true, 6)?;
    let (from, to) = (pair.client.port(family, 40_000), pair.server.port(family, 4242));
    let stream = watch()?;
    pair.client.inject(&[packet::udp(from, to, b"unwanted")])?;
    let expect = Expect::drops(1, netns)
        .flow("udp", from, to)
        .reason(&["NETFILTER_DROP"])
        .at(&["nf_hook_slow"])
        .field("/drop/netfilter/hook", "INPUT")
        .field("/drop/netfilter/family", family.name())
        .field("/drop/netfilter/function", "nf_hook_run_bpf")
        .field("/drop/netfilter/program/id", guard.id)
        .field("/drop/netfilter/program/name", "guard")
        .cause("netfilter-bpf")
        .field("/drop/netfilter/verdict", "drop")
        .field("/drop/netfilter/confidence", "exact");
    verify(stream, &[expect], &[])?;
    ensure!(guard.id != before.id && guard.id != after.id, "each program has its own id");
    Ok(())
}
