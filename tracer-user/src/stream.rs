//! From the running kernel half to records: events and counts merged, named and dated, with what was lost.

use crate::event::{
    decode,
    explain::{explain, explain_counts},
    merge::Merge,
    model::{Cause, Class, Drop, Lost, LostPlace, Record, Timestamp},
};
use crate::probe::{
    clock::{Clock, monotonic_now},
    kernel::Kernel,
    tracer::{Losses, RING_BYTES, Reading, Tracer, TracerError},
};
use std::{collections::HashMap, io, thread, time::Duration};
use tracer_common::{Event, Layout};

/// Records taken from the ring before it is somebody else's turn: as many as can be in it at one moment.
const BATCH: usize = RING_BYTES / size_of::<Event>() + 1;
/// How long the last program runs may take after the program was detached.
const LAST_RUNS: Duration = Duration::from_secs(2);

/// A running trace.
pub struct Stream {
    tracer: Tracer,
    kernel: Kernel,
    clock: Clock,
    node: String,
    merge: Merge,
    /// Class and cause of a slot's last full event: for its lines of counts, which lack what decides it.
    classes: HashMap<u32, (Class, Option<Cause>)>,
    lost: Losses,
    /// End of the last interval, CLOCK_MONOTONIC ns.
    last_tick: u64,
    /// Flow slots in use on the fullest CPU.
    fill: u32,
    retired: Option<Retired>,
}

/// The generation of slots that was in use before.
struct Retired {
    generation: u32,
    /// CPUs that have run no program since.
    quiet: Vec<bool>,
    /// Intervals since.
    age: u32,
}

impl Stream {
    /// Starts with what a running tracer counts from now on.
    ///
    /// # Errors
    /// If the system cannot read its clocks.
    pub fn new(tracer: Tracer, kernel: Kernel, clock: Clock, node: String) -> io::Result<Self> {
        let merge = Merge::new(tracer.layout().total());
        let last_tick = monotonic_now()?;
        let (lost, classes) = (Losses::default(), HashMap::new());
        Ok(Self { tracer, kernel, clock, node, merge, classes, lost, last_tick, fill: 0, retired: None })
    }

    /// The tracer, for its ring's descriptor.
    pub fn tracer(&mut self) -> &mut Tracer {
        &mut self.tracer
    }

    /// The clock, to note that it was set.
    pub fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// Takes what is in the ring. True if there may be more.
    pub fn drain(&mut self, each: &mut dyn FnMut(Record)) -> bool {
        for _ in 0..BATCH {
            let Some(item) = self.tracer.ring().next() else { return false };
            // A record of another length is no event of ours; its drop is counted all the same.
            let Ok(raw) = decode::decode(&item) else { continue };
            drop(item);
            let Some(share) = self.merge.settle(raw.slot, raw.count, raw.segments) else { continue };
            let clock = &self.clock;
            let own = u64::from(raw.gso_segments.max(1));
            if share.count > 1 {
                // Drops of this slot that sent no event came before this one.
                let (count, segments) = (share.count - 1, share.segments.saturating_sub(own));
                let (from, to) =
                    (clock.to_realtime(self.last_tick.min(raw.time)), clock.to_realtime(raw.time));
                let reading = Reading { slot: raw.slot, key: raw.key, count, segments };
                each(Record::Drop(Box::new(self.counted(&reading, from, to))));
            }
            let mut event = explain(&raw, &self.kernel, &|time| clock.to_realtime(time), &self.node);
            event.count = 1;
            event.segments = own;
            self.classes.insert(raw.slot, (event.drop.class, event.drop.cause.clone()));
            each(Record::Drop(Box::new(event)));
        }
        true
    }

    /// Ends an interval: what no event told comes out as counts, and what was lost is said.
    ///
    /// # Errors
    /// If the system cannot read its clocks.
    pub fn tick(&mut self, each: &mut dyn FnMut(Record)) -> io::Result<()> {
        self.tracer.next_interval();
        // First the counters, then the events that were in the ring by then, then the difference (`event::merge`).
        let seen = self.tracer.losses();
        let mut pending = Vec::new();
        if seen.seen != self.lost.seen || self.retired.is_some() {
            for generation in 0..Layout::GENERATIONS {
                if self.in_use(generation) {
                    let merge = &self.merge;
                    let fill = self.tracer.read_slots(generation, |reading| {
                        if merge.is_ahead(reading.slot, reading.count) {
                            pending.push(reading);
                        }
                    });
                    if generation == self.tracer.generation() {
                        self.fill = fill;
                    }
                }
            }
        }
        self.drain(each);
        let now = monotonic_now()?;
        let (from, to) = (self.clock.to_realtime(self.last_tick), self.clock.to_realtime(now));
        self.tell_rest(pending, from, to, each);
        self.last_tick = now;
        self.say_losses(&seen, to, each);
        self.renew_slots(each);
        if self.kernel.refresh() {
            let layout = *self.kernel.layout();
            self.tracer.update_layout(&layout);
        }
        Ok(())
    }

    /// Detaches the program and takes what is left. Everything that was counted has come out then.
    ///
    /// # Errors
    /// If the kernel refuses to detach, or the system cannot read its clocks.
    pub fn finish(&mut self, each: &mut dyn FnMut(Record)) -> Result<(), StopError> {
        self.tracer.stop()?;
        let mut quiet = vec![false; self.tracer.layout().cpus as usize];
        let mut waited = Duration::ZERO;
        const STEP: Duration = Duration::from_millis(5);
        while waited < LAST_RUNS {
            // Wait first: a program run may have begun that has not said so yet.
            thread::sleep(STEP);
            waited += STEP;
            self.tracer.note_quiet(&mut quiet);
            if quiet.iter().all(|quiet| *quiet) {
                break;
            }
        }
        while self.drain(each) {}
        self.tick(each)?;
        Ok(())
    }

    fn in_use(&self, generation: u32) -> bool {
        generation == self.tracer.generation()
            || self.retired.as_ref().is_some_and(|retired| retired.generation == generation)
    }

    fn counted(&self, reading: &Reading, from: Timestamp, to: Timestamp) -> Drop {
        let Reading { slot, key, count, segments } = reading;
        let mut event = explain_counts(key, *count, *segments, &self.kernel, from, to, &self.node);
        if let Some((class, cause)) = self.classes.get(slot) {
            event.drop.class = *class;
            event.drop.cause.clone_from(cause);
        }
        event
    }

    fn say_losses(&mut self, now: &Losses, time: Timestamp, each: &mut dyn FnMut(Record)) {
        let before = self.lost;
        let places = [
            (LostPlace::Ring, now.ring - before.ring),
            (LostPlace::Flow, now.flow - before.flow),
            (LostPlace::Overflow, now.overflow - before.overflow),
            (LostPlace::Recursion, now.recursion - before.recursion),
        ];
        for (place, count) in places {
            if count > 0 {
                each(Record::Lost(Lost { time, count, place }));
            }
        }
        self.lost = *now;
    }

    /// Turns to fresh slots when those for flows fill up, and clears the old ones when no program uses them any more.
    fn renew_slots(&mut self, each: &mut dyn FnMut(Record)) {
        let layout = self.tracer.layout();
        if let Some(retired) = &mut self.retired {
            // A program that had just read the old generation's number is running by now, and seen as such.
            retired.age += 1;
            self.tracer.note_quiet(&mut retired.quiet);
            if retired.age > 1 && retired.quiet.iter().all(|quiet| *quiet) {
                let generation = retired.generation;
                self.retired = None;
                self.settle_all(generation, each);
                self.tracer.clear_generation(generation);
                let slots = layout.generation(generation);
                self.merge.forget(slots.clone());
                self.classes.retain(|slot, _| !slots.contains(slot));
            }
            return;
        }
        if self.fill > layout.flow_slots / 2 {
            self.fill = 0;
            let generation = self.tracer.generation();
            self.tracer.turn_generation();
            self.retired = Some(Retired { generation, quiet: vec![false; layout.cpus as usize], age: 0 });
        }
    }

    /// Settles what a generation that no program uses any more has counted since it was last read.
    fn settle_all(&mut self, generation: u32, each: &mut dyn FnMut(Record)) {
        while self.drain(each) {}
        let mut readings = Vec::new();
        self.tracer.read_slots(generation, |reading| readings.push(reading));
        let at = self.clock.to_realtime(self.last_tick);
        self.tell_rest(readings, at, at, each);
    }

    /// Tells, as lines of counts, what counters are ahead of what was told.
    fn tell_rest(
        &mut self,
        readings: Vec<Reading>,
        from: Timestamp,
        to: Timestamp,
        each: &mut dyn FnMut(Record),
    ) {
        for reading in readings {
            if let Some(share) = self.merge.settle(reading.slot, reading.count, reading.segments) {
                let reading = Reading { count: share.count, segments: share.segments, ..reading };
                each(Record::Drop(Box::new(self.counted(&reading, from, to))));
            }
        }
    }
}

/// Why a trace could not be ended in order.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The kernel refuses.
    #[error(transparent)]
    Tracer(#[from] TracerError),
    /// The system cannot read its clocks.
    #[error("can't read the clock: {0}")]
    Clock(#[from] io::Error),
}
