//! From the kernel's time to the time of day.
//!
//! Events carry CLOCK_MONOTONIC, which nobody can set and which gives the order of the stream. CLOCK_REALTIME runs at
//! the same rate (both are slewed together), so the difference is constant until someone sets the clock, a leap
//! second is put in, or the machine wakes from suspend (CLOCK_MONOTONIC stands still in it): a *step*. The clock
//! keeps all recent differences with the time from which on each was valid, and an event gets the one valid when it
//! happened, also when it is read later.
//!
//! So the time of day grows strictly with the kernel's time as long as the clock is not stepped, whatever a sample's
//! noise. Over a step the time of day jumps just as the machine's does: backwards if the clock was set back. Holding
//! it there would date all events wrong until the wall clock caught up; the stream's order doesn't depend on it.
//!
//! When a step happened is known only to lie between two samples. What was read before the second of them has been
//! dated already; what is read after it is dated as if the step came first, for [`StepWatch`] wakes at the step, and what
//! is still on its way then (a program that has read its clock, but not sent its event) most likely began after it.

use crate::event::model::Timestamp;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A difference smaller than this, in ns, is noise of the measurement.
const STEP: u64 = 1_000_000;
/// Steps remembered. Events are read within seconds; clocks are not set that often.
const MAX_SEGMENTS: usize = 64;
/// Readings taken for one sample.
const READINGS: usize = 3;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// CLOCK_MONOTONIC, ns.
    pub monotonic: u64,
    /// CLOCK_REALTIME, ns since 1970-01-01T00:00:00Z.
    pub realtime: i128,
    /// How far apart the two readings may be, ns.
    pub uncertainty: u64,
}

/// The clock was set, or the machine slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The first time that has the new difference, CLOCK_MONOTONIC ns.
    pub monotonic: u64,
    /// How far the time of day moved, ns; negative: backwards.
    pub by: i128,
}

/// A difference between the clocks, and from when on it is valid.
#[derive(Clone, Copy, Debug)]
struct Segment {
    from: u64,
    offset: i128,
}

/// Translates the kernel's time.
#[derive(Clone, Debug)]
pub struct Clock {
    /// In order of `from`; never empty. The first is valid for all earlier times too.
    segments: VecDeque<Segment>,
    /// CLOCK_MONOTONIC of the newest sample.
    last: u64,
}

impl Clock {
    /// Starts with a first sample, which also serves for what happened before it.
    #[must_use]
    pub fn new(sample: Sample) -> Self {
        let first = Segment { from: sample.monotonic, offset: sample.offset() };
        Self { segments: VecDeque::from([first]), last: sample.monotonic }
    }

    /// Takes another sample: every second, and when [`StepWatch`] wakes, after what had come until then was read.
    /// Returns the step, if there was one; only times up to the sample before keep the old difference. A sample older
    /// than the last step is ignored.
    pub fn record(&mut self, sample: Sample) -> Option<Step> {
        self.record_from(sample, self.last + 1)
    }

    /// Takes a sample that was made for an event newer than all samples before it, `from` being the event's time: a step
    /// that shows now is taken to lie before the event. An event waits in the ring for moments only; what it waited for
    /// most likely is the processor, and a step just before it has not been noticed yet either.
    pub fn record_from(&mut self, sample: Sample, from: u64) -> Option<Step> {
        self.last = self.last.max(sample.monotonic);
        let last = *self.segments.back()?;
        let by = sample.offset() - last.offset;
        let noise = u128::from(STEP) + u128::from(sample.uncertainty);
        if sample.monotonic <= last.from || by.unsigned_abs() <= noise {
            return None;
        }
        if self.segments.len() == MAX_SEGMENTS {
            self.segments.pop_front();
        }
        let from = from.clamp(last.from + 1, sample.monotonic);
        self.segments.push_back(Segment { from, offset: sample.offset() });
        Some(Step { monotonic: from, by })
    }

    /// True if an event is newer than every sample: a step may lie between.
    #[must_use]
    pub fn is_behind(&self, monotonic: u64) -> bool {
        monotonic > self.last
    }

    /// The time of day at a time of the kernel's (`bpf_ktime_get_ns`), as the machine showed it then.
    #[must_use]
    pub fn to_realtime(&self, monotonic: u64) -> Timestamp {
        let after = self.segments.partition_point(|segment| segment.from <= monotonic);
        let segment = self.segments.get(after.saturating_sub(1));
        Timestamp(segment.map_or(0, |segment| segment.offset) + i128::from(monotonic))
    }
}

impl Sample {
    fn offset(&self) -> i128 {
        self.realtime - i128::from(self.monotonic)
    }
}

/// Reads both clocks: of a few tries the one in which they were read closest together, because the scheduler may
/// come in between.
///
/// # Errors
/// If the system cannot read its clocks.
pub fn sample_now() -> io::Result<Sample> {
    let mut best: Option<Sample> = None;
    for _ in 0..READINGS {
        let before = read_clock(libc::CLOCK_MONOTONIC)?;
        let realtime = read_clock(libc::CLOCK_REALTIME)?;
        let uncertainty = u64::try_from(read_clock(libc::CLOCK_MONOTONIC)? - before).unwrap_or(u64::MAX);
        let monotonic = u64::try_from(before).unwrap_or(0).saturating_add(uncertainty / 2);
        if best.is_none_or(|best| uncertainty < best.uncertainty) {
            best = Some(Sample { monotonic, realtime, uncertainty });
        }
    }
    best.ok_or_else(|| io::ErrorKind::Other.into())
}

/// CLOCK_MONOTONIC now, ns.
///
/// # Errors
/// If the system cannot read its clocks.
pub fn monotonic_now() -> io::Result<u64> {
    read_clock(libc::CLOCK_MONOTONIC).map(|time| u64::try_from(time).unwrap_or(0))
}

fn read_clock(clock: libc::clockid_t) -> io::Result<i128> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec))
}

/// Tells when the clock was set: a timer that the kernel cancels then (TFD_TIMER_CANCEL_ON_SET, timerfd_create(2)).
/// Its descriptor becomes readable; wait for it with poll or tokio's `AsyncFd`.
#[derive(Debug)]
pub struct StepWatch {
    timer: OwnedFd,
}

impl StepWatch {
    /// Starts watching.
    ///
    /// # Errors
    /// If the system refuses the timer; sampling every second still finds steps then, only later.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let watch = Self { timer: unsafe { OwnedFd::from_raw_fd(fd) } };
        watch.arm()?;
        Ok(watch)
    }

    /// The timer has to run in order to be cancelled: until the year 2242 (KTIME_MAX is 2262). It stays armed after
    /// a cancellation.
    fn arm(&self) -> io::Result<()> {
        let never = libc::timespec { tv_sec: 1 << 33, tv_nsec: 0 };
        let once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: once, it_value: never };
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: `setting` is a valid itimerspec, and the old one is not asked for.
        let failed = unsafe {
            libc::timerfd_settime(self.timer.as_raw_fd(), flags, &raw const setting, std::ptr::null_mut())
        };
        if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// True if the clock was set since the last call: take a sample. Doesn't wait.
    ///
    /// # Errors
    /// If the timer cannot be read.
    pub fn stepped(&self) -> io::Result<bool> {
        let mut expirations = [0_u8; 8];
        // SAFETY: the buffer is valid for its length.
        let count =
            unsafe { libc::read(self.timer.as_raw_fd(), expirations.as_mut_ptr().cast(), expirations.len()) };
        if count >= 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECANCELED) => Ok(true),
            Some(libc::EAGAIN) => Ok(false),
            _ => Err(error),
        }
    }
}

impl AsFd for StepWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl AsRawFd for StepWatch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SECOND_I: i128 = 1_000_000_000;
    const EPOCH: i128 = 1_800_000_000 * SECOND_I;

    /// The clock showed `offset` more than the kernel's at that time.
    fn sample(monotonic: u64, offset: i128) -> Sample {
        Sample { monotonic, realtime: i128::from(monotonic) + offset, uncertainty: 0 }
    }

    #[test]
    fn a_step_that_an_event_brings_to_light_lies_before_it() {
        let at = |monotonic, realtime| Sample { monotonic, realtime, uncertainty: 0 };
        let mut clock = Clock::new(at(1_000, 1_000));
        clock.record(at(2_000, 2_000));
        assert!(clock.is_behind(5_000) && !clock.is_behind(2_000));
        let hour = 3_600_000_000_000;
        assert!(clock.record_from(at(6_000, 6_000 + hour), 5_000).is_some());
        assert_eq!(clock.to_realtime(5_000), Timestamp(5_000 + hour));
        assert_eq!(clock.to_realtime(4_999), Timestamp(4_999));
        assert!(!clock.is_behind(5_500));
    }

    #[test]
    fn without_steps_the_difference_is_constant() {
        let mut clock = Clock::new(sample(100 * SECOND, EPOCH));
        assert_eq!(clock.to_realtime(100 * SECOND), Timestamp(EPOCH + 100 * SECOND_I));
        assert_eq!(clock.to_realtime(1), Timestamp(EPOCH + 1), "before the first sample too");
        assert_eq!(clock.record(sample(101 * SECOND, EPOCH)), None);
        assert_eq!(clock.to_realtime(u64::MAX), Timestamp(EPOCH + i128::from(u64::MAX)));
    }

    #[test]
    fn a_step_lies_between_two_samples() {
        for by in [3600 * SECOND_I, -3600 * SECOND_I, 2 * SECOND_I / 1000] {
            let mut clock = Clock::new(sample(100 * SECOND, EPOCH));
            assert_eq!(clock.record(sample(109 * SECOND, EPOCH)), None);
            let step = clock.record(sample(110 * SECOND, EPOCH + by));
            assert_eq!(step, Some(Step { monotonic: 109 * SECOND + 1, by }));
            assert_eq!(clock.to_realtime(109 * SECOND), Timestamp(EPOCH + 109 * SECOND_I), "read late");
            let on_its_way = 110 * SECOND - 1;
            assert_eq!(clock.to_realtime(on_its_way), Timestamp(EPOCH + by + i128::from(on_its_way)));
            assert_eq!(clock.to_realtime(110 * SECOND), Timestamp(EPOCH + by + 110 * SECOND_I));
            // And once more.
            assert!(clock.record(sample(120 * SECOND, EPOCH)).is_some());
            assert_eq!(clock.to_realtime(110 * SECOND), Timestamp(EPOCH + by + 110 * SECOND_I));
            assert_eq!(clock.to_realtime(120 * SECOND), Timestamp(EPOCH + 120 * SECOND_I));
        }
    }

    #[test]
    fn noise_never_turns_time_back() {
        let mut clock = Clock::new(sample(SECOND, EPOCH));
        let mut last = Timestamp(0);
        for tick in 2..1000_u64 {
            let noise = if tick % 2 == 0 { 900_000 } else { -900_000 };
            assert_eq!(clock.record(sample(tick * SECOND, EPOCH + noise)), None);
            for event in [tick * SECOND, tick * SECOND + 1] {
                assert!(clock.to_realtime(event) > last);
                last = clock.to_realtime(event);
            }
        }
        let unsure = Sample { uncertainty: 5_000_000, ..sample(2000 * SECOND, EPOCH + 5_000_000) };
        assert_eq!(clock.record(unsure), None, "no step: the readings were that far apart");
    }

    #[test]
    fn small_steps_add_up() {
        let mut clock = Clock::new(sample(SECOND, EPOCH));
        assert_eq!(clock.record(sample(2 * SECOND, EPOCH + 600_000)), None);
        assert!(clock.record(sample(3 * SECOND, EPOCH + 1_200_000)).is_some());
    }

    #[test]
    fn old_samples_and_many_steps() {
        let mut clock = Clock::new(sample(1000 * SECOND, EPOCH));
        assert_eq!(clock.record(sample(999 * SECOND, 0)), None, "older than the last");
        for step in 1..=1000_u64 {
            assert!(
                clock.record(sample((1000 + step) * SECOND, i128::from(step) * EPOCH)).is_some() || step == 1
            );
        }
        assert_eq!(clock.segments.len(), MAX_SEGMENTS);
        assert_eq!(clock.to_realtime(2000 * SECOND), Timestamp(1000 * EPOCH + 2000 * SECOND_I));
        assert_eq!(clock.to_realtime(1999 * SECOND), Timestamp(999 * EPOCH + 1999 * SECOND_I));
    }

    #[test]
    fn this_machines_clocks() {
        let before = monotonic_now().unwrap();
        let sample = sample_now().unwrap();
        let after = monotonic_now().unwrap();
        assert!((before..=after).contains(&sample.monotonic));
        let system = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let apart = i128::try_from(system.as_nanos()).unwrap() - sample.realtime;
        assert!((0..60 * SECOND_I).contains(&apart), "{apart}");
    }

    #[test]
    fn an_untouched_clock_has_no_step() {
        let watch = StepWatch::new().unwrap();
        assert!(!watch.stepped().unwrap());
    }
}
