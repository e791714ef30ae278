//! The live stream, and where it goes: to a printer, for the default command, or to any other sink.

use crate::{
    cause::node::Node,
    cli::{ProbesWhen, Watch},
    event::model::{Record, Stalled},
    identity::{
        host::Host,
        names::Names,
        object::Update,
        sources::{self, Feed},
    },
    output::{End, MEANINGLESS, Now, Outcome, Sink, Stop, Summary, exit_code},
    probe::{clock::StepWatch, connections::Table, tracer::Settings},
    start::{say, start},
    stream::Stream,
};
use anyhow::Context as _;
use std::{
    ffi::OsString,
    io,
    ops::ControlFlow,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Interval, MissedTickBehavior, interval_at, sleep_until, timeout_at},
};

/// The programs' interval: each slot sends a full event at least once in it, and counts come out at its end.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often folded lines are looked at.
const PRINT_INTERVAL: Duration = Duration::from_millis(100);

/// How long the start waits for the names that a filter speaks of.
const NAMES: Duration = Duration::from_secs(2);
/// Updates of names taken before it is the drops' turn.
const UPDATES: usize = 256;
/// How often a filter that lets nothing through is said to.
const STALL: Duration = Duration::from_secs(10);
/// Pods that are listed at the start; more are counted.
const LISTED: usize = 8;

/// Hands what is seen to the sink until it is told to stop; returns the exit code.
///
/// # Errors
/// What went wrong, for people.
pub fn run(watch: &Watch, arguments: &[OsString], sink: impl Sink) -> anyhow::Result<u8> {
    let (stream, updates) = match begin(watch, false, arguments)? {
        Ok(begun) => begun,
        Err(code) => return Ok(code),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the event loop")?;
    let (end, summary) = runtime.block_on(follow(watch, stream, updates, sink))?;
    Ok(exit_code(&Outcome {
        end,
        drops: summary.drops,
        lost: summary.lost_total(),
        assert_no_drops: watch.run.assert_no_drops,
        strict: watch.run.strict,
    }))
}

/// What comes from the sources of names.
pub(crate) type Updates = mpsc::Receiver<Update>;

/// Starts; the exit code where that has no point here. `trace`: the kernel half gets ready to follow packets.
pub(crate) fn begin(
    watch: &Watch,
    trace: bool,
    arguments: &[OsString],
) -> anyhow::Result<Result<(Stream, Option<Updates>), u8>> {
    let causes = match watch.causes.load() {
        Ok(causes) => causes.with_node(Node::default()),
        Err(error) => {
            say(&format!("error: {error}"));
            return Ok(Err(MEANINGLESS));
        }
    };
    if let Some(error) = causes.unknown(&watch.filter) {
        say(&format!("error: {error}"));
        return Ok(Err(MEANINGLESS));
    }
    let settings =
        Settings { verbose: watch.run.verbose, probes: watch.run.probes == ProbesWhen::Always, trace };
    // They begin first: much of what they tell has come when the kernel half runs.
    let feed = match sources::start(watch.names.sources()) {
        Ok(feed) => Some(feed),
        Err(error) => {
            say(&format!("note: addresses stay without names: {error}"));
            None
        }
    };
    let mut stream = match start(&watch.filter, settings, arguments)? {
        Ok(stream) => stream,
        Err(code) => return Ok(Err(code)),
    };
    if watch.filter.is_empty() {
        stream.measure_cilium();
    } else if !trace && let Err(error) = stream.count_retransmits() {
        say(&format!("note: peers that do not answer are not told of: {error}"));
    }
    let host = Host::here(stream.node());
    let names = |requests| Names::new(&watch.filter, host, requests);
    let (updates, names) = match feed {
        Some(Feed { updates, requests, agent }) => (Some(updates), names(Some(requests)).with_agent(agent)),
        None => (None, names(None)),
    };
    stream.use_names(names);
    stream.use_causes(causes, watch.filter.of_causes());
    Ok(Ok((stream, updates)))
}

/// Waits, for moments, until it is known whom the filter names; those pods come back.
pub(crate) async fn meet(stream: &mut Stream, updates: &mut Option<Updates>) -> anyhow::Result<Vec<String>> {
    let deadline = tokio::time::Instant::now() + NAMES;
    let mut pods = Vec::new();
    while let Some(open) = updates {
        while let Ok(update) = open.try_recv() {
            stream.take_name(update).inspect(|line| say(line));
        }
        pods.extend(stream.follow_names()?.into_iter().flat_map(|news| news.pods));
        if !stream.names().is_filtered() || stream.names().has_matched() {
            break;
        }
        let until = stream.names().due().map_or(deadline, |due| deadline.min(due.into()));
        match timeout_at(until, open.recv()).await {
            Ok(Some(update)) => {
                stream.take_name(update).inspect(|line| say(line));
            }
            Ok(None) => *updates = None,
            Err(_) if until < deadline => {}
            Err(_) => break,
        }
    }
    Ok(pods)
}

/// Says what is watched, once it is known whom the filter names.
async fn announce(watch: &Watch, stream: &mut Stream, updates: &mut Option<Updates>) -> anyhow::Result<()> {
    let pods = meet(stream, updates).await?;
    let what = if watch.filter.is_empty() { "all drops" } else { "the drops that match" };
    let mechanism = if watch.run.probes == ProbesWhen::Always {
        "one program on the tracepoint kfree_skb, and probes on every packet that comes to a netfilter hook"
    } else {
        "one program on the tracepoint kfree_skb, none on packets that are not dropped"
    };
    say(&format!("watching {what} on {}: all network namespaces; {mechanism}; Ctrl-C ends", stream.node()));
    introduce(stream, &pods);
    Ok(())
}

/// Says whom the filter names, or that nobody has such a name.
pub(crate) fn introduce(stream: &Stream, pods: &[String]) {
    list(pods);
    if stream.names().is_filtered() && !stream.names().has_matched() {
        for line in stream.names().nobody() {
            say(&format!("{line}; waiting for it"));
        }
    }
}

/// Says which pods a filter means.
fn list(pods: &[String]) {
    for pod in pods.iter().take(LISTED) {
        say(&format!("pod {pod}"));
    }
    if pods.len() > LISTED {
        say(&format!("and {} pods more", pods.len() - LISTED));
    }
}

/// Takes names that have come, at most some at a time.
pub(crate) fn take_names(
    stream: &mut Stream,
    first: Option<Update>,
    updates: &mut Updates,
) -> anyhow::Result<()> {
    let mut next = first.or_else(|| updates.try_recv().ok());
    for _ in 0..UPDATES {
        let Some(update) = next else { break };
        stream.take_name(update).inspect(|line| say(line));
        next = updates.try_recv().ok();
    }
    if let Some(update) = next {
        stream.take_name(update).inspect(|line| say(line));
    }
    follow_names(stream)
}

/// Lets the filter follow the names, if it is time. What is new for it is said.
fn follow_names(stream: &mut Stream) -> anyhow::Result<()> {
    if let Some(news) = stream.follow_names().context("can't follow the pods that the filter means")? {
        list(&news.pods);
        if news.left_out > 0 {
            say(&format!(
                "note: the filter means more than the kernel half has room for: {} addresses are left out; narrow it",
                news.left_out
            ));
        }
    }
    Ok(())
}

/// Fills the sink until something ends it.
async fn follow(
    watch: &Watch,
    mut stream: Stream,
    mut updates: Option<Updates>,
    mut sink: impl Sink,
) -> anyhow::Result<(End, Summary)> {
    // Before it says that it watches: who reads that may end it at once.
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    announce(watch, &mut stream, &mut updates).await?;
    let began = Instant::now();
    let now = |stream: &mut Stream| Now {
        elapsed: began.elapsed(),
        wall: stream.clock().to_realtime(crate::probe::clock::monotonic_now().unwrap_or(0)),
    };
    let ring = stream.tracer().ring().as_fd().try_clone_to_owned().context("can't wait for events")?;
    // SAFETY: an OwnedFd gives the same open descriptor as long as it lives, which is as long as the AsyncFd.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
    // Without it a step of the clock is found at the next tick.
    let steps = StepWatch::new()
        .ok()
        // SAFETY: likewise, the watch owns its timer.
        .and_then(|watch| unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }.ok());
    let mut log = if watch.run.verbose > 0 { stream.tracer().log() } else { None };
    let messages = match &log {
        // SAFETY: likewise.
        Some(log) => Some(unsafe { AsyncFd::register_with_interest(log.descriptor()?, Interest::READABLE) }?),
        None => None,
    };
    let mut ticks = every(INTERVAL);
    let mut prints = every(PRINT_INTERVAL);
    let mut stalls = every(STALL);
    let mut shown = 0;
    let mut asked: Option<Asked> = None;
    let is_filtered = !watch.filter.is_empty();
    let deadline = watch.run.duration.map(|duration| tokio::time::Instant::now() + duration);

    let mut flow = ControlFlow::Continue(());
    while flow.is_continue() {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = async { sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)).await }, if deadline.is_some() => break,
            ready = readable(steps.as_ref()), if steps.is_some() => {
                ready?;
                let at = now(&mut stream);
                stream.sample_clock(&mut |record| pass(&mut sink, &record, at, &mut flow));
            }
            ready = any_readable(messages.as_ref()), if messages.is_some() => {
                if let Some(log) = &mut log { log.print(); }
                ready?.clear_ready();
            }
            _ = ticks.tick() => {
                let at = now(&mut stream);
                let mut pass = |record: Record| pass(&mut sink, &record, at, &mut flow);
                stream.sample_clock(&mut pass);
                stream.tick(&mut pass).context("can't read the clock")?;
                if flow.is_continue() {
                    flow = sink.tick(now(&mut stream));
                }
            }
            _ = stalls.tick(), if is_filtered => {
                let seen = stream.stalled(&watch.filter, STALL.as_secs());
                if sink.shown() == shown {
                    let connections = stream.connections();
                    asked = Some((seen, spawn_blocking(move || connections.unanswered())));
                }
                shown = sink.shown();
            }
            found = answer(&mut asked), if asked.is_some() => {
                // Unless a drop has come meanwhile.
                if let Some((mut seen, _)) = asked.take() && sink.shown() == shown {
                    if let Some(table) = found {
                        seen = stream.unanswered(&table, &watch.filter, seen);
                    }
                    let at = now(&mut stream);
                    pass(&mut sink, &Record::Stalled(seen), at, &mut flow);
                }
            }
            _ = prints.tick(), if sink.is_waiting() || stream.is_holding() => {
                // What a drop waits for may be among what has come: it must not be let go before that is taken.
                if let Some(updates) = &mut updates {
                    take_names(&mut stream, None, updates)?;
                }
                let at = now(&mut stream);
                stream.release(&mut |record| pass(&mut sink, &record, at, &mut flow));
                if flow.is_continue() {
                    flow = sink.tick(now(&mut stream));
                }
            }
            ready = ring.readable() => {
                let mut ready = ready?;
                // A drop's names may be among what has come.
                if let Some(updates) = &mut updates {
                    take_names(&mut stream, None, updates)?;
                }
                let at = now(&mut stream);
                let mut pass = |record: Record| pass(&mut sink, &record, at, &mut flow);
                if !stream.drain(&mut pass) {
                    ready.clear_ready();
                }
            }
            () = due(stream.names().due()), if stream.names().due().is_some() => follow_names(&mut stream)?,
            update = received(&mut updates), if updates.is_some() => match (update, &mut updates) {
                (Some(update), Some(updates)) => take_names(&mut stream, Some(update), updates)?,
                _ => updates = None,
            }
        }
    }

    if let Some(mut updates) = updates {
        for update in std::iter::from_fn(|| updates.try_recv().ok()).take(UPDATES) {
            stream.take_name(update).inspect(|line| say(line));
        }
    }
    die_of_the_next_signal();
    let at = now(&mut stream);
    let mut pass = |record: Record| pass(&mut sink, &record, at, &mut flow);
    stream.finish(&mut pass)?;
    if let Some(line) = stream.unseen_of_cilium() {
        say(&format!("note: {line}"));
    }
    let names = stream.names();
    let is_unmatched = watch.run.duration.is_some() && names.is_filtered() && !names.has_matched();
    if is_unmatched {
        for line in names.nobody() {
            say(&format!("error: {line}"));
        }
    }
    let (summary, last) = sink.finish(now(&mut stream));
    let end = match (flow, last) {
        (ControlFlow::Break(Stop::Output(error)), _) | (_, ControlFlow::Break(Stop::Output(error))) => {
            say(&format!("error: {}", Stop::Output(error)));
            End::Failed
        }
        _ if is_unmatched => End::Unmatched,
        _ => End::Done,
    };
    Ok((end, summary))
}

/// The first signal ends the run in order; a second one, or one during the end, ends it at once.
pub(crate) fn die_of_the_next_signal() {
    extern "C" fn die(_signal: libc::c_int) {
        // SAFETY: async-signal-safe (signal-safety(7)).
        unsafe { libc::_exit(130) }
    }
    let die = die as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler does nothing but exit.
        unsafe { libc::signal(signal, die as libc::sighandler_t) };
    }
}

fn pass(sink: &mut impl Sink, record: &Record, at: Now, flow: &mut ControlFlow<Stop>) {
    // What comes after the end still counts in the summary.
    let next = sink.record(record, at);
    if flow.is_continue() {
        *flow = next;
    }
}

pub(crate) async fn any_readable<T: std::os::fd::AsRawFd>(
    fd: Option<&AsyncFd<T>>,
) -> io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, T>> {
    match fd {
        Some(fd) => fd.readable().await,
        None => std::future::pending().await,
    }
}

/// Ticks that far apart, the first one after a period; one that came late delays those after it.
pub(crate) fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

pub(crate) async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A stall, and the connections without an answer, which are being read.
type Asked = (Stalled, JoinHandle<Option<Table>>);

async fn answer(asked: &mut Option<Asked>) -> Option<Table> {
    match asked {
        Some((_, reading)) => reading.await.ok().flatten(),
        None => std::future::pending().await,
    }
}

pub(crate) async fn received(updates: &mut Option<Updates>) -> Option<Update> {
    match updates {
        Some(updates) => updates.recv().await,
        None => std::future::pending().await,
    }
}

async fn readable(watch: Option<&AsyncFd<StepWatch>>) -> io::Result<()> {
    let Some(watch) = watch else { return std::future::pending().await };
    let mut ready = watch.readable().await?;
    while watch.get_ref().stepped()? {}
    ready.clear_ready();
    Ok(())
}
