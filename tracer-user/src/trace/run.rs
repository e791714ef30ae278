//! A trace, from its beginning to its end.

use super::{
    model::Seen,
    sink::TraceOutput,
    story::{QUIET, Stories},
};
use crate::{
    cli::Trace,
    identity::host::Host,
    live::{self, Updates},
    output::{End, Outcome, Stop, exit_code},
    start::say,
    stream::Stream,
};
use anyhow::Context as _;
use std::{
    collections::BTreeSet,
    ffi::OsString,
    io,
    ops::ControlFlow,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    time::{Duration, Instant},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::sleep_until,
};
use tracer_common::Traced;

/// The kernel half's interval.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked which network namespaces and devices have come and gone: all processes are asked for theirs.
const PLACES: Duration = Duration::from_secs(3);
/// How often finished stories are looked for.
const STORIES: Duration = Duration::from_millis(100);
/// Network namespaces in which programs are put on hooks and devices, where the filter doesn't say which.
const MOST_NETNS: usize = 64;
/// Steps taken before it is something else's turn.
const BATCH: usize = 4096;
/// How often it is said that nothing was followed.
const STALL: Duration = Duration::from_secs(10);

/// Follows packets until it is told to stop; returns the exit code.
///
/// # Errors
/// What went wrong, for people.
pub fn run(settings: &Trace, arguments: &[OsString]) -> anyhow::Result<u8> {
    let (stream, updates) = match live::begin(&settings.watch, true, arguments)? {
        Ok(begun) => begun,
        Err(code) => return Ok(code),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the event loop")?;
    runtime.block_on(follow(settings, stream, updates))
}

/// Where programs look.
struct Places {
    /// Network namespaces that are to have programs.
    wanted: BTreeSet<u32>,
    /// Those that can't be entered, or where the kernel refused: said once.
    refused: BTreeSet<u32>,
}

impl Places {
    /// droptrace's own, those of the filter's pods; all, where the filter names no pods and they are few.
    fn new(stream: &mut Stream) -> Self {
        let own = std::fs::metadata("/proc/self/ns/net").ok().and_then(|file| u32::try_from(file.ino()).ok());
        let mut wanted: BTreeSet<u32> = own.into_iter().collect();
        wanted.extend(stream.names().selected().netns.keys());
        if !stream.names().is_filtered() {
            let all = stream.network_namespaces();
            if all.len() <= MOST_NETNS {
                wanted.extend(all);
            }
        }
        Self { wanted, refused: BTreeSet::new() }
    }

    /// Looks in a network namespace that a packet has come to, if there are no programs yet, for the next packet.
    fn follow(&mut self, seen: &Seen, stream: &mut Stream) {
        if let Some(netns) = seen.view.network.netns
            && !self.refused.contains(&netns)
            && self.wanted.insert(netns)
        {
            self.look_in(netns, stream);
            stream.compare_counters(self.wanted.iter().copied());
        }
    }

    /// Forgets those that are gone, and looks at what is there now: pods and devices come and go.
    fn refresh(&mut self, stream: &mut Stream) {
        stream.tracer().leave_dead();
        let there: BTreeSet<u32> = stream.tracer().path().visited().collect();
        self.wanted.retain(|netns| there.contains(netns));
        self.wanted.extend(stream.names().selected().netns.keys());
        self.look(stream);
    }

    fn look(&mut self, stream: &mut Stream) {
        for netns in self.wanted.clone() {
            if !self.refused.contains(&netns) {
                self.look_in(netns, stream);
            }
        }
        stream.compare_counters(self.wanted.iter().copied());
    }

    fn look_in(&mut self, netns: u32, stream: &mut Stream) {
        if let Err(error) = stream.tracer().look_in(netns) {
            self.refused.insert(netns);
            say(&format!(
                "note: in netns {netns} hooks and tc are not shown ({error}); packets are seen there at devices and sockets"
            ));
        }
    }
}

/// Stories in the making, and where they go.
struct Telling<O: io::Write> {
    began: Instant,
    stories: Stories,
    output: TraceOutput<O>,
    flow: ControlFlow<Stop>,
    told: u64,
}

impl<O: io::Write> Telling<O> {
    fn take(&mut self, seen: Seen) {
        self.stories.take(seen, self.began.elapsed());
    }

    fn tell(&mut self, is_over: bool) {
        let due = if is_over { self.stories.finish() } else { self.stories.due(self.began.elapsed()) };
        for story in due {
            if self.flow.is_break() {
                return;
            }
            self.told += 1;
            self.flow = self.output.story(story);
        }
    }
}

async fn follow(settings: &Trace, mut stream: Stream, mut updates: Option<Updates>) -> anyhow::Result<u8> {
    let watch = &settings.watch;
    // Before it says that it follows: who reads that may end it at once.
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let pods = live::meet(&mut stream, &mut updates).await?;
    stream.arm_trace().context("can't follow packets")?;
    let mut places = Places::new(&mut stream);
    places.look(&mut stream);
    for note in stream.tracer().path().notes() {
        say(&format!("note: {note}"));
    }
    let by = stream.tracer().path().to_string();
    let mut nft = stream.nft_telling().clone();
    say(&format!("following packets on {}: {by}; {nft}; Ctrl-C ends", stream.node()));
    live::introduce(&stream, &pods);

    let host = Host::here(stream.node());
    let output = TraceOutput::new(settings.settings(host.netns), io::stdout());
    let flow = ControlFlow::Continue(());
    let mut telling = Telling { began: Instant::now(), stories: Stories::default(), output, flow, told: 0 };
    let tracer = stream.tracer();
    let ring = tracer.ring().as_fd().try_clone_to_owned().context("can't wait for drops")?;
    // SAFETY: an OwnedFd gives the same open descriptor as long as it lives, which is as long as the AsyncFd.
    let drops = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
    let ring = tracer.steps().context("no ring of steps")?.as_fd().try_clone_to_owned();
    let ring = ring.context("can't wait for steps")?;
    // SAFETY: likewise.
    let steps = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
    let mut ticks = live::every(INTERVAL);
    let mut moves = live::every(PLACES);
    let mut prints = live::every(STORIES);
    let mut stalls = live::every(STALL);
    let mut before = Traced::default();
    let mut told = 0;
    let deadline = watch.run.duration.map(|duration| tokio::time::Instant::now() + duration);
    while telling.flow.is_continue() {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = async { sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)).await }, if deadline.is_some() => break,
            _ = ticks.tick() => {
                stream.sample_clock(&mut |_| {});
                stream.tick(&mut |_| {}).context("can't read the clock")?;
                before = say_left_out(stream.tracer().traced()?, before);
            }
            _ = moves.tick() => {
                places.refresh(&mut stream);
                stream.ask_nft();
                if nft != *stream.nft_telling() {
                    nft = stream.nft_telling().clone();
                    say(&format!("note: {nft}"));
                }
            }
            _ = prints.tick() => telling.tell(false),
            _ = stalls.tick() => {
                if telling.told == told && !telling.stories.is_waiting() {
                    say(&format!("{} s: no packet matched; is the filter right, and does anything send?", STALL.as_secs()));
                }
                told = telling.told;
            }
            update = live::received(&mut updates), if updates.is_some() => {
                match (update, &mut updates) {
                    (Some(update), Some(open)) => live::take_names(&mut stream, Some(update), open)?,
                    _ => updates = None,
                }
            }
            ready = steps.readable() => {
                let mut ready = ready?;
                // The kernel tells of what is new only to who has taken all there was.
                if !take(&mut stream, &mut places, &mut telling) {
                    ready.clear_ready();
                }
            }
            ready = drops.readable() => {
                ready?.clear_ready();
                while stream.drain(&mut |_| {}) {}
            }
        }
    }
    live::die_of_the_next_signal();
    let _ = take(&mut stream, &mut places, &mut telling);
    telling.tell(true);
    if telling.flow.is_continue() {
        telling.flow = telling.output.finish();
    }
    say(&telling.output.summary());
    let lost = say_left_out(stream.tracer().traced()?, before).lost;
    let end = match telling.flow {
        ControlFlow::Break(Stop::Output(error)) => {
            say(&format!("error: {}", Stop::Output(error)));
            End::Failed
        }
        _ => End::Done,
    };
    let strict = watch.run.strict;
    Ok(exit_code(&Outcome {
        end,
        drops: telling.output.dropped(),
        lost,
        assert_no_drops: watch.run.assert_no_drops,
        strict,
    }))
}

/// Takes what was seen by now. True if there may be more.
fn take<O: io::Write>(stream: &mut Stream, places: &mut Places, telling: &mut Telling<O>) -> bool {
    for _ in 0..BATCH {
        let Some(seen) = stream.next_seen() else { return false };
        places.follow(&seen, stream);
        telling.take(seen);
    }
    true
}

/// Says what the kernel half left out since the last time.
fn say_left_out(now: Traced, before: Traced) -> Traced {
    let (refused, lost) = (now.refused - before.refused, now.lost - before.lost);
    if refused > 0 {
        say(&format!(
            "note: {refused} packets that match were not followed: there were too many at once; narrow the filter"
        ));
    }
    if lost > 0 {
        say(&format!(
            "note: {lost} steps were lost, and paths have holes: there were too many at once; narrow the filter"
        ));
    }
    now
}

/// Stories wait for what comes after a packet's last step; what is told at once would miss it.
const _: () = assert!(QUIET.as_millis() > STORIES.as_millis());
