//! A trace, from its beginning to its end.

use super::{model::Seen, story::Stories};
use crate::{
    cli::Trace,
    live::{self, Updates},
    start::say,
    stream::Stream,
};
use anyhow::Context as _;
use std::{
    collections::BTreeSet,
    ffi::OsString,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

/// The kernel half's interval.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often finished stories are looked for.
const STORIES: Duration = Duration::from_millis(100);
/// Network namespaces in which programs are put on hooks and devices, where the filter doesn't say which.
const MOST_NETNS: usize = 64;
/// Steps taken before it is something else's turn.
const BATCH: usize = 4096;

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
    /// droptrace's own, those of the filter's pods, else all while they are few.
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

    /// A packet has come to a network namespace.
    fn note(&mut self, seen: &Seen) -> bool {
        let Some(netns) = seen.view.network.netns else { return false };
        !self.refused.contains(&netns) && self.wanted.insert(netns)
    }

    /// Forgets those that are gone.
    fn leave(&mut self, stream: &mut Stream) {
        let there: BTreeSet<u32> = stream.tracer().path().visited().collect();
        self.wanted.retain(|netns| there.contains(netns) || self.refused.contains(netns));
    }

    fn look(&mut self, stream: &mut Stream) {
        for netns in
            self.wanted.iter().copied().filter(|netns| !self.refused.contains(netns)).collect::<Vec<_>>()
        {
            if let Err(error) = stream.tracer().look_in(netns) {
                self.refused.insert(netns);
                say(&format!(
                    "note: in netns {netns} hooks and tc are not shown: {error}; packets are seen there at devices and sockets"
                ));
            }
        }
    }
}

async fn follow(settings: &Trace, mut stream: Stream, mut updates: Option<Updates>) -> anyhow::Result<u8> {
    let watch = &settings.watch;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let pods = live::meet(&mut stream, &mut updates).await?;
    stream.arm_trace().context("can't follow packets")?;
    let mut places = Places::new(&mut stream);
    places.look(&mut stream);
    for note in stream.tracer().path().notes() {
        say(&format!("note: {note}"));
    }
    say(&format!("following the packets that match on {}; Ctrl-C ends", stream.node()));
    live::introduce(&stream, &pods);

    let tracer = stream.tracer();
    let ring = tracer.ring().as_fd().try_clone_to_owned().context("can't wait for drops")?;
    // SAFETY: an OwnedFd gives the same open descriptor as long as it lives, which is as long as the AsyncFd.
    let drops = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
    let ring = tracer.steps().context("no ring of steps")?.as_fd().try_clone_to_owned();
    // SAFETY: likewise.
    let steps = unsafe {
        AsyncFd::register_with_interest(ring.context("can't wait for steps")?, Interest::READABLE)
    }?;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut stories = Stories::default();
    let began = std::time::Instant::now();
    let mut prints = interval(STORIES);
    prints.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = watch.run.duration.map(|duration| tokio::time::Instant::now() + duration);
    loop {
        tokio::select! {
                    biased;
                    _ = interrupt.recv() => break,
                    _ = terminate.recv() => break,
                    () = async { sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)).await }, if deadline.is_some() => break,
                    _ = ticks.tick() => {
                        stream.sample_clock(&mut |_| {});
                        stream.tick(&mut |_| {}).context("can't read the clock")?;
                        stream.tracer().leave_dead();
                        places.leave(&mut stream);
                        places.look(&mut stream);
                    }
                    _ = prints.tick() => {
                        for story in stories.due(began.elapsed()) {
                    for step in story.steps { println!("{}", serde_json::to_string(&super::model::Line::Step(Box::new(step)))?); }
                    println!("{}", serde_json::to_string(&super::model::Line::End(Box::new(story.end)))?);
                }
            }
            update = live::received(&mut updates), if updates.is_some() => {
                        match (update, &mut updates) {
                            (Some(update), Some(open)) => live::take_names(&mut stream, Some(update), open)?,
                            _ => updates = None,
                        }
                    }
                    ready = steps.readable() => {
                        ready?.clear_ready();
                        for _ in 0..BATCH {
                            let Some(seen) = stream.next_seen() else { break };
                            if places.note(&seen) {
                                places.look(&mut stream);
                            }
        stories.take(seen, began.elapsed());
                        }
                    }
                    ready = drops.readable() => {
                        ready?.clear_ready();
                        while stream.drain(&mut |_| {}) {}
                    }
                }
    }
    live::die_of_the_next_signal();
    Ok(0)
}
