//! What a scenario expects of the drop stream, and the comparison.

use super::answer::{Blame, expects_exact_here};
use crate::bed::backend::Backend;
use crate::bed::droptrace::{Droptrace, Output};
use crate::bed::kernel;
use crate::bed::namespace::Namespace;
use crate::bed::record::Record;
use crate::bed::shared::Shared;
use crate::bed::topology::Family;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

/// Drops that must come, each packet counted once.
#[derive(Clone, Debug)]
pub(super) struct Expect {
    netns: u32,
    count: Count,
    /// Fields that tell these drops from others.
    identity: Vec<(&'static str, Value)>,
    /// Fields that must then have one of these values.
    fields: Vec<(&'static str, Vec<Value>)>,
    /// Lists that must have an element with these fields.
    members: Vec<(&'static str, Value)>,
    reasons: &'static [&'static str],
    functions: &'static [&'static str],
    /// What is to blame, and whether the answer must be exact.
    blame: Option<(Blame, bool)>,
    /// The cause's id.
    cause: Option<&'static str>,
    /// What the node must have said beside it.
    evidence: Vec<Value>,
}

#[derive(Clone, Copy, Debug)]
enum Count {
    Exactly(u64),
    AtLeast(u64),
}

impl Expect {
    /// `count` packets dropped in a netns, each exactly once.
    pub(super) fn drops(count: u64, netns: &Namespace) -> Self {
        Self {
            netns: netns.inode(),
            count: Count::Exactly(count),
            identity: Vec::new(),
            fields: Vec::new(),
            members: Vec::new(),
            reasons: &[],
            functions: &[],
            blame: None,
            cause: None,
            evidence: Vec::new(),
        }
    }

    /// At least so many: where the kernel decides how many.
    pub(super) fn at_least(count: u64, netns: &Namespace) -> Self {
        Self { count: Count::AtLeast(count), ..Self::drops(count, netns) }
    }

    /// The names that the reason has on one kernel or the other. Where this kernel's BTF has none of them, any
    /// reason is right; where it has no reasons at all, null is.
    pub(super) fn reason(mut self, names: &'static [&'static str]) -> Self {
        self.reasons = names;
        self
    }

    /// The functions one of which frees the packet, on one kernel or the other.
    pub(super) fn at(mut self, functions: &'static [&'static str]) -> Self {
        self.functions = functions;
        self
    }

    /// The rule or policy that is to blame; `exact` demands that droptrace is sure of it.
    pub(super) fn blame(mut self, blame: Blame, exact: bool) -> Self {
        self.blame = Some((blame, exact));
        self
    }

    /// The cause. Where the kernel has none of the reasons that are expected, none is.
    pub(super) fn cause(mut self, id: &'static str) -> Self {
        self.cause = Some(id);
        self
    }

    /// What the node must have said beside the cause: an element with these fields.
    pub(super) fn evidence(mut self, member: Value) -> Self {
        self.evidence.push(member);
        self
    }

    /// Ends with ports.
    pub(super) fn flow(self, transport: &'static str, source: SocketAddr, destination: SocketAddr) -> Self {
        self.destination(transport, destination)
            .identify("/source/address", source.ip().to_string())
            .identify("/source/port", source.port())
    }

    /// As [`flow`](Self::flow), where the sender chose its own port.
    pub(super) fn destination(self, transport: &'static str, destination: SocketAddr) -> Self {
        let family = if destination.is_ipv4() { Family::V4 } else { Family::V6 };
        self.identify("/network/transport", transport)
            .identify("/network/family", family.name())
            .identify("/destination/address", destination.ip().to_string())
            .identify("/destination/port", destination.port())
    }

    /// Ends without ports.
    pub(super) fn ends(self, transport: &'static str, source: IpAddr, destination: IpAddr) -> Self {
        self.identify("/network/transport", transport)
            .identify("/source/address", source.to_string())
            .identify("/destination/address", destination.to_string())
    }

    /// A field that tells these drops from others.
    pub(super) fn identify(mut self, pointer: &'static str, value: impl Into<Value>) -> Self {
        self.identity.push((pointer, value.into()));
        self
    }

    /// `skb->dev`.
    pub(super) fn interface(self, name: &str) -> Self {
        self.field("/network/interface", name)
    }

    /// `skb->dev`, which this path may have overwritten: then null, never garbage.
    pub(super) fn interface_if_known(mut self, name: &str) -> Self {
        self.fields.push(("/network/interface", vec![json!(name), Value::Null]));
        self
    }

    /// A field that must have one of these texts.
    pub(super) fn field_among(mut self, pointer: &'static str, texts: &[&str]) -> Self {
        self.fields.push((pointer, texts.iter().map(|text| json!(text)).collect()));
        self
    }

    /// Likewise, or be unknown.
    pub(super) fn field_among_or_null(mut self, pointer: &'static str, texts: &[&str]) -> Self {
        let texts = texts.iter().map(|text| json!(text));
        self.fields.push((pointer, texts.chain([Value::Null]).collect()));
        self
    }

    /// A field that must have this value.
    pub(super) fn field(mut self, pointer: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((pointer, vec![value.into()]));
        self
    }

    /// A list that must have an element with all fields of `member`.
    pub(super) fn lists(mut self, pointer: &'static str, member: Value) -> Self {
        self.members.push((pointer, member));
        self
    }

    fn matches(&self, record: &Record) -> bool {
        record.netns() == Some(self.netns)
            && self.identity.iter().all(|(pointer, value)| record.get(pointer) == value)
    }

    fn sum(&self, output: &Output) -> u64 {
        output.drops_in(&[self.netns]).filter(|record| self.matches(record)).map(Record::count).sum()
    }

    fn arrived(&self, output: &Output) -> bool {
        match self.count {
            Count::Exactly(count) | Count::AtLeast(count) => self.sum(output) >= count,
        }
    }

    fn check(&self, output: &Output) -> Result<()> {
        let sum = self.sum(output);
        match self.count {
            Count::Exactly(count) => {
                ensure!(sum == count, "{count} packets were dropped, droptrace says {sum}");
            }
            Count::AtLeast(count) => ensure!(sum >= count, "droptrace says {sum}, not {count} or more"),
        }
        for record in output.drops_in(&[self.netns]).filter(|record| self.matches(record)) {
            self.check_record(record).with_context(|| record.brief())?;
        }
        Ok(())
    }

    fn check_record(&self, record: &Record) -> Result<()> {
        let reason = record.text("/drop/reason");
        if !kernel::has_reasons() {
            ensure!(reason.is_none(), "this kernel has no reasons, droptrace says {reason:?}");
        } else if self.reasons.iter().any(|name| kernel::has_reason(name)) {
            let right = reason.is_some_and(|name| self.reasons.contains(&name));
            ensure!(right, "reason {reason:?} is none of {:?}", self.reasons);
        } else {
            ensure!(reason.is_some(), "no reason");
        }
        let function = record.function();
        ensure!(
            self.functions.is_empty() || self.functions.contains(&function),
            "location {function} is none of {:?}",
            self.functions
        );
        if let Some((blame, exact)) = &self.blame {
            blame.verdict_on(record.get("/drop/netfilter"), *exact).map_err(anyhow::Error::msg)?;
        }
        let tells_reason =
            self.reasons.is_empty() || self.reasons.iter().any(|name| kernel::has_reason(name));
        if let Some(id) = self.cause.filter(|_| tells_reason) {
            check_cause(record, id, &self.evidence)?;
        }
        for (pointer, allowed) in &self.fields {
            let value = record.get(pointer);
            ensure!(allowed.contains(value), "{pointer} is {value}, not {}", json!(allowed));
        }
        for (pointer, member) in &self.members {
            let list = record.get(pointer);
            let found = list.as_array().is_some_and(|list| list.iter().any(|one| has_fields(one, member)));
            ensure!(found, "{pointer} is {list}, without {member}");
        }
        ensure!(record.get("/detail") == &json!(true), "no detail");
        Ok(())
    }
}

/// The cause, with words that are no templates any more.
fn check_cause(record: &Record, id: &str, evidence: &[Value]) -> Result<()> {
    let cause = record.get("/drop/cause");
    ensure!(cause["id"] == id, "the cause is {cause}, not {id}");
    for text in ["why", "fix"] {
        let text = cause[text].as_str().unwrap_or_default();
        ensure!(!text.is_empty() && !text.contains(['{', '}', '[']), "{id} says {text:?}");
    }
    for wanted in evidence {
        let list = cause["evidence"].as_array();
        ensure!(
            list.is_some_and(|list| list.iter().any(|it| has_fields(it, wanted))),
            "{cause} is without {wanted}"
        );
    }
    Ok(())
}

/// True if the object has all fields of another one, with their values.
fn has_fields(object: &Value, wanted: &Value) -> bool {
    wanted.as_object().is_some_and(|wanted| wanted.iter().all(|(name, value)| &object[name] == value))
}

/// What a test watches: a droptrace of its own, or its part of one that others watch, too.
#[derive(Debug)]
pub(super) enum Stream {
    Own(Droptrace),
    Shared(Shared),
}

impl From<Droptrace> for Stream {
    fn from(own: Droptrace) -> Self {
        Self::Own(own)
    }
}

impl Stream {
    /// Waits until what it says satisfies the predicate.
    pub(super) fn wait(&self, what: &str, enough: impl FnMut(&Output) -> bool) -> Result<()> {
        match self {
            Self::Own(own) => own.wait(what, enough),
            Self::Shared(shared) => shared.wait(what, enough),
        }
    }

    /// All that it said.
    pub(super) fn stop(self) -> Result<Output> {
        match self {
            Self::Own(own) => own.stop(),
            Self::Shared(shared) => shared.settled(),
        }
    }
}

/// A stream that shows everything, also routine frees: in a virtual machine a shared one.
pub(super) fn watch() -> Result<Stream> {
    if kernel::in_vm() { Ok(Stream::Shared(Shared::join()?)) } else { watch_alone().map(Stream::Own) }
}

/// A droptrace of the test's own that shows everything. What it has to find there when it starts (legacy tables, whose
/// counters it compares with what they were) or nowhere else (a mount namespace's pins) takes this.
pub(super) fn watch_alone() -> Result<Droptrace> {
    Droptrace::start(&["--all"])
}

/// [`watch`], where what drops is a rule of this backend.
pub(super) fn watch_rules_of(backend: Backend) -> Result<Stream> {
    // Where nft's packets are not freed by nft itself its rules' counters tell, too. On 5.10 nothing is sure anyway.
    let by_counters = backend == Backend::Legacy || !expects_exact_here(Backend::Nft);
    if by_counters && expects_exact_here(backend) { watch_alone().map(Stream::Own) } else { watch() }
}

/// Waits for the expected drops, ends the stream, and compares: each packet once, with what was expected, and
/// nothing else but routine frees in the `quiet` namespaces.
pub(super) fn verify(stream: impl Into<Stream>, expected: &[Expect], quiet: &[&Namespace]) -> Result<()> {
    let stream = stream.into();
    let waited = stream.wait("all drops came", |output| expected.iter().all(|e| e.arrived(output)));
    let output = stream.stop()?;
    let inodes: Vec<u32> =
        quiet.iter().map(|netns| netns.inode()).chain(expected.iter().map(|e| e.netns)).collect();
    let compare = || -> Result<()> {
        waited?;
        expected.iter().try_for_each(|expect| expect.check(&output))?;
        let stray = output
            .drops_in(&inodes)
            .filter(|record| !record.is_routine() && !record.is_background())
            .find(|record| !expected.iter().any(|expect| expect.matches(record)));
        if let Some(record) = stray {
            bail!("this was no drop of the test: {}", record.brief());
        }
        Ok(())
    };
    compare().with_context(|| {
        format!(
            "expected {expected:?}\nin the test's namespaces:\n{}\nstandard error:\n{}",
            seen(&output, &inodes),
            output.stderr
        )
    })
}

/// What the stream said of some namespaces, and of none.
pub(super) fn seen(output: &Output, inodes: &[u32]) -> String {
    let ours =
        |record: &&Record| !record.is_drop() || record.netns().is_none_or(|inode| inodes.contains(&inode));
    let lines: Vec<String> = output.records.iter().filter(ours).take(40).map(Record::brief).collect();
    if lines.is_empty() { "  nothing".to_owned() } else { lines.join("\n") }
}
