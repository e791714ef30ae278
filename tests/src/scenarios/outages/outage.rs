//! An outage and how it is shown: broken, looked at, healed by what was advised, and looked at again.

use super::super::Skip;
use super::node::Node;
use super::printed;
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::kernel;
use crate::bed::mount::with_bpffs;
use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};

/// How soon after its start droptrace must have said what there is to say.
const SOON: Duration = Duration::from_secs(15);
/// How often an outage is built before what is not told counts.
const TRIES: u32 = 3;
/// After what time all drops until now are told: counts are settled every second.
const SETTLED: Duration = Duration::from_millis(1300);

/// What droptrace has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// What dropped the packet, why, and what to do.
    Drop,
    /// That nothing is dropped here, who does not answer, and where to look next.
    Unanswered,
    /// That nothing is dropped here, and nothing else.
    Nothing,
}

/// Where it can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// On this machine, beside others.
    Here,
    /// On this machine, whose limits it changes.
    HereAlone,
    /// In the virtual machine with the newest kernel, which has the modules.
    NewestVm,
}

/// An outage.
pub(super) struct Outage {
    /// Its name, also that of the file with what is printed.
    pub(super) id: &'static str,
    /// In the README's words.
    pub(super) what: &'static str,
    pub(super) place: Where,
    /// The node, healthy; the number is that of its first wire.
    pub(super) node: fn(u8) -> Result<Node>,
    pub(super) breaks: fn(&Node) -> Result<()>,
    /// Sends what suffers; true if it got through.
    pub(super) sends: fn(&Node) -> Result<bool>,
    /// Does what droptrace advised.
    pub(super) heals: fn(&Node) -> Result<()>,
    /// `--pod`
    pub(super) pod: &'static str,
    pub(super) says: Says,
    /// What must be printed, together, by `droptrace --pod`.
    pub(super) facts: &'static [&'static str],
    /// What whoever wants to know more (`-o wide -v`) must be told besides.
    pub(super) more: &'static [&'static str],
    /// What droptrace named to look at next, and what that says then, all in all.
    pub(super) then: &'static [&'static str],
    pub(super) then_facts: &'static [&'static str],
    /// With a bpffs of its own.
    pub(super) bpffs: bool,
}

/// What most outages have in common.
pub(super) const ROUTED: Outage = Outage {
    id: "",
    what: "",
    place: Where::Here,
    node: Node::routed,
    breaks: |_| Ok(()),
    sends: |_| Ok(true),
    heals: |_| Ok(()),
    pod: "shop/cart-0",
    says: Says::Drop,
    facts: &[],
    more: &[],
    then: &[],
    then_facts: &[],
    bpffs: false,
};

impl Outage {
    /// Shows it.
    pub(super) fn run(&self, wire: u8) -> Result<()> {
        let shows = || self.shows(wire).context(self.what);
        if self.bpffs { with_bpffs(shows) } else { shows() }
    }

    fn shows(&self, wire: u8) -> Result<()> {
        let Told { stream, node, text } = self.is_told_soon(wire)?;
        let in_stable_words = node.in_stable_words(&text);
        if self.says == Says::Nothing {
            ensure!(drops(&stop(stream)?) == 0, "healthy traffic is told of");
            return printed::compare(self.id, &in_stable_words);
        }
        (self.heals)(&node).context("heal it")?;
        node.healed();
        if self.says == Says::Drop {
            self.settles(&stream)?;
        }
        let before = drops(&stream.output());
        let gets_through = (self.sends)(&node).context("send once more")?;
        ensure!(gets_through, "what was advised does not help:\n{text}");
        self.settles(&stream)?;
        let output = stop(stream)?;
        let all = || format!("{}\n{}", output.strays.join("\n"), output.stderr);
        ensure!(drops(&output) == before, "healed, and still told:\n{}", all());
        if self.says == Says::Unanswered {
            let last = silences(&output).last().unwrap_or_default();
            ensure!(!last.contains("next:"), "healed, and still: {last}");
        }
        printed::compare(self.id, &in_stable_words)
    }

    /// A busy machine may be too late for what droptrace asks the node within moments: it is tried again, loudly.
    fn is_told_soon(&self, wire: u8) -> Result<Told> {
        for _ in 1..TRIES {
            match self.is_told(wire) {
                Err(error) if !error.is::<Skip>() => eprintln!("AGAIN {}: {error:#}", self.id),
                ended => return ended,
            }
        }
        self.is_told(wire)
    }

    /// Breaks it, looks, and finds the facts.
    fn is_told(&self, wire: u8) -> Result<Told> {
        let node = (self.node)(wire)?;
        (self.breaks)(&node)?;
        let began = Instant::now();
        let ways: [&[&str]; 2] = [&["--pod", self.pod], &["--pod", self.pod, "-o", "wide", "-v"]];
        let mut streams = node.watch(if self.more.is_empty() { &ways[..1] } else { &ways })?.into_iter();
        let (stream, more) = (streams.next().context("droptrace")?, streams.next());
        let gets_through = (self.sends)(&node).context("send")?;
        ensure!(gets_through == (self.says == Says::Nothing), "broken, it gets through: {gets_through}");
        if !self.then.is_empty() {
            // While droptrace waits: after it has spoken that would be one more wait until it speaks of the healed node alone.
            self.looks_on(&node).with_context(|| format!("{:?}", self.then))?;
        }
        let text = match self.told(&stream, self.facts) {
            Ok(text) => text,
            // Its last words say whether it missed something.
            Err(error) => return Err(error.context(stop(stream)?.stderr)),
        };
        let taken = began.elapsed();
        ensure!(kernel::in_vm() || taken < SOON, "it took {taken:?} until it was told");
        if let Some(more) = more {
            self.told(&more, self.more).context("with -o wide -v")?;
            stop(more)?;
        }
        Ok(Told { stream, node, text })
    }

    /// Does what droptrace named to do next.
    fn looks_on(&self, node: &Node) -> Result<()> {
        let stream = node.droptrace(self.then)?;
        if self.then.first() == Some(&"trace") {
            stream.wait("packets are followed", |output| output.stderr.contains("following"))?;
            (self.sends)(node)?;
        }
        let lacking = |output: &Output| -> Vec<&str> {
            let text = output.strays.join("\n");
            self.then_facts.iter().copied().filter(|fact| !text.contains(fact)).collect()
        };
        let waited = stream.wait("it is told", |output| lacking(output).is_empty());
        waited.with_context(|| {
            let output = stream.output();
            format!("lacking {:?} in\n{}", lacking(&output), output.strays.join("\n"))
        })
    }

    /// Waits for the facts; returns what was printed with them: a drop and what goes with it, or a line of silence.
    fn told(&self, stream: &Droptrace, facts: &[&str]) -> Result<String> {
        let has_all = |text: &String| facts.iter().all(|fact| text.contains(fact));
        let find = |output: &Output| self.parts(output).into_iter().find(has_all);
        let mut found = None;
        let waited = stream.wait("it is told", |output| {
            found = find(output);
            found.is_some()
        });
        waited.with_context(|| {
            let parts = self.parts(&stream.output());
            let lacks = |part: &String| facts.iter().copied().filter(|fact| !part.contains(fact)).collect();
            let lacking: Vec<Vec<&str>> = parts.iter().map(lacks).collect();
            format!("{}: lacking {lacking:?} in {parts:#?}", self.id)
        })?;
        found.context("nothing was told")
    }

    fn parts(&self, output: &Output) -> Vec<String> {
        if self.says == Says::Drop {
            blocks(&output.strays)
        } else {
            silences(output).map(str::to_owned).collect()
        }
    }

    /// Waits until all is told of what was until now.
    fn settles(&self, stream: &Droptrace) -> Result<()> {
        if self.says == Says::Drop {
            std::thread::sleep(SETTLED);
            return Ok(());
        }
        let before = silences(&stream.output()).count();
        stream.wait("the next line about silence", |output| silences(output).count() > before)
    }
}

/// A broken node, and what droptrace, which goes on, has said of it.
struct Told {
    stream: Droptrace,
    node: Node,
    text: String,
}

/// Ends it.
fn stop(stream: Droptrace) -> Result<Output> {
    stream.signal(libc::SIGINT);
    let ended = stream.end()?;
    ended.expect_code(0)?;
    Ok(ended.output)
}

/// Lines of drops, each with those below it.
fn blocks(lines: &[String]) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in lines {
        match blocks.last_mut().filter(|_| line.starts_with(' ')) {
            Some(last) => *last += &format!("\n{line}"),
            None => blocks.push(line.clone()),
        }
    }
    blocks
}

fn drops(output: &Output) -> usize {
    blocks(&output.strays).len()
}

/// Lines that say that nothing is dropped here.
fn silences(output: &Output) -> impl Iterator<Item = &str> {
    output.stderr.lines().filter(|line| line.contains(" s: 0 drops for "))
}
