//! Makes stories of what was seen: `steps` tells what happened to a packet between two places and at each, `end` what became
//! of it, and `replies` whether somebody answered.

mod end;
mod replies;
mod steps;
#[cfg(test)]
mod tests;

use super::model::{End, Outcome, Place, Seen, Story};
use crate::output::words;
use end::Reply;
use replies::Replies;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use steps::Trail;

/// How long a packet must not be seen until it is held to have gone, and how long a reply is waited for.
pub const QUIET: Duration = Duration::from_secs(2);
/// The same for a packet whose next hop is being looked for.
const NEIGHBOUR: Duration = Duration::from_secs(5);
/// Packets that are followed at once.
const MAX_PACKETS: usize = 4096;
/// Steps that are kept of all of them together.
const MAX_STEPS: usize = 65_536;
/// Packets whose stories are told, or are not to be, and that are remembered for what comes after.
const MAX_PAST: usize = 2 * MAX_PACKETS;

/// Follows packets, in bounded memory.
#[derive(Debug, Default)]
pub struct Stories {
    /// By the packet's number.
    open: BTreeMap<u64, Open>,
    replies: Replies,
    past: Told,
    /// Steps kept in `open`.
    kept: usize,
    /// Packets that were not followed, since a story last said so.
    unfollowed: u64,
}

/// A packet whose story has not ended.
#[derive(Debug)]
struct Open {
    trail: Trail,
    /// When it was seen last, by the time that the caller tells.
    touched: Duration,
    /// When it was given to a driver last.
    sent: Option<Duration>,
    /// Who answered, and after how long.
    answer: Option<String>,
    /// Its story was told already, and is not over.
    is_late: bool,
}

impl Stories {
    /// Takes what was seen, in order of time. `now` is the time since the run began.
    pub fn take(&mut self, mut seen: Seen, now: Duration) {
        let packet = seen.packet;
        if let Place::Read { process, pid } = &seen.place
            && self.open.get(&packet).is_some_and(|open| open.trail.visit().is_sent())
        {
            // Who reads from a tun or tap device takes it off the node.
            seen.place = Place::Consumed { location: Some(format!("read by {process}, pid {pid}")) };
        }
        if seen.view.network.netns.is_none()
            && matches!(seen.place, Place::Read { .. } | Place::Taken | Place::Consumed { .. })
            && let Some(last) = self.open.get(&packet).and_then(|open| open.trail.last())
        {
            // A socket's buffer keeps no device and no route.
            (seen.view.network.netns, seen.pod) = (last.view.network.netns, last.pod.clone());
        }
        let is_late = match self.past.about(packet) {
            // It was held to have gone, but was only kept for long.
            Some(Past::Gone) if matches!(seen.place, Place::Dropped) => true,
            Some(_) => return,
            None => false,
        };
        let seen = Arc::new(seen);
        self.answer(&seen);
        if !self.open.contains_key(&packet) {
            // Nothing else was seen of it: then that it is freed tells nothing.
            if matches!(seen.place, Place::Consumed { .. }) {
                return;
            }
            if self.open.len() >= MAX_PACKETS {
                self.unfollowed += 1;
                self.past.add(packet, Past::Settled);
                return;
            }
        }
        let open = self.open.entry(packet).or_insert_with(|| Open {
            trail: Trail::new(packet),
            touched: now,
            sent: None,
            answer: None,
            is_late,
        });
        if open.trail.is_over(&seen) {
            return;
        }
        open.touched = now;
        self.kept += open.trail.take(&seen, MAX_STEPS.saturating_sub(self.kept));
        if matches!(seen.place, Place::Sent) {
            open.sent = Some(now);
            if open.trail.asks() {
                open.trail.keys().iter().for_each(|key| self.replies.wait(key, packet));
            }
        }
    }

    /// Whether what was seen answers packets that were sent.
    fn answer(&mut self, seen: &Seen) {
        for packet in self.replies.answered_by(seen) {
            if let Some(open) = self.open.get_mut(&packet).filter(|open| open.answer.is_none())
                && let Some(after) = open.trail.since_sent(seen)
            {
                open.answer = Some(end::answered(after, seen));
            }
        }
    }

    /// The stories that have ended by now, in the order in which they began.
    pub fn due(&mut self, now: Duration) -> Vec<Story> {
        self.close(|open| {
            let quiet = now.saturating_sub(open.touched) >= open.trail.patience();
            let reply = match (&open.answer, open.sent) {
                (Some(answer), _) => Reply::Came(answer.clone()),
                (None, Some(sent)) if open.trail.asks() && now.saturating_sub(sent) < QUIET => Reply::Awaited,
                (None, Some(_)) if open.trail.asks() => Reply::Missing,
                (None, _) => Reply::NotExpected,
            };
            end::end(&open.trail, quiet, &reply)
        })
    }

    /// All others, where the run ends: they are told as far as they went.
    pub fn finish(&mut self) -> Vec<Story> {
        self.close(|open| {
            let reply = match &open.answer {
                Some(answer) => Reply::Came(answer.clone()),
                None if open.trail.asks() => Reply::Unknown,
                None => Reply::NotExpected,
            };
            let mut end = end::end(&open.trail, true, &reply)?;
            end.note.push_str("; the trace ended there");
            Some(end)
        })
    }

    /// Whether a story has not ended.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    fn close(&mut self, mut end: impl FnMut(&Open) -> Option<End>) -> Vec<Story> {
        let ended: Vec<(u64, End)> =
            self.open.iter().filter_map(|(&packet, open)| Some((packet, end(open)?))).collect();
        let mut stories = Vec::with_capacity(ended.len());
        for (packet, mut end) in ended {
            let Some(open) = self.open.remove(&packet) else { continue };
            let is_settled = matches!(end.outcome, Outcome::Dropped | Outcome::Delivered);
            self.past.add(packet, if is_settled { Past::Settled } else { Past::Gone });
            open.trail.keys().iter().for_each(|key| self.replies.forget(key, packet));
            if open.is_late {
                end.note.push_str("; its way to there was told before");
            }
            let (steps, left_out) = open.trail.into_steps();
            self.kept = self.kept.saturating_sub(steps.len());
            if left_out > 0 {
                let s = words::plural(left_out);
                end.note.push_str(&format!("; {} more step{s} not kept", words::thousands(left_out)));
            }
            if self.unfollowed > 0 {
                let (count, s) = (words::thousands(self.unfollowed), words::plural(self.unfollowed));
                end.note
                    .push_str(&format!("; meanwhile {count} other packet{s} not followed: too many at once"));
                self.unfollowed = 0;
            }
            stories.push(Story { steps, end });
        }
        stories.sort_by_key(|story| story.steps.first().map(|step| step.time));
        stories
    }
}

/// What is known of a packet whose story is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Nothing more is to be told of it.
    Settled,
    /// It left, or vanished: only that it was dropped after all is worth telling.
    Gone,
}

/// Packets whose stories are told, by their numbers.
#[derive(Debug, Default)]
struct Told {
    order: VecDeque<u64>,
    all: HashMap<u64, Past>,
}

impl Told {
    fn about(&self, packet: u64) -> Option<Past> {
        self.all.get(&packet).copied()
    }

    fn add(&mut self, packet: u64, past: Past) {
        if self.all.insert(packet, past).is_none() {
            self.order.push_back(packet);
        }
        if self.order.len() > MAX_PAST
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }
}
