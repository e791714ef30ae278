//! What IPVS told of flows, and what it is asked: bounded, however many flows are dropped. Nothing here asks anybody.

use super::object::{Flow, Ipvs, Virtual};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an answer holds, and how long nobody asks again: a client may soon use its port for another service.
const KEPT: Duration = Duration::from_secs(5);
/// An answer that has not come by then does not come: whoever gives it is behind, or gone.
const LATE: Duration = Duration::from_secs(1);
/// How often it is asked whether there is IPVS, where there was none.
const AGAIN: Duration = Duration::from_secs(10);
/// Flows that are remembered; others are not asked about before these are old.
const MOST: usize = 4096;
/// Between two looks for old ones, at least.
const SWEEP: Duration = Duration::from_secs(1);

/// The flows.
#[derive(Debug, Default)]
pub struct Flows {
    is_there: bool,
    /// When it was last asked, where there is none.
    looked: Option<Instant>,
    known: HashMap<Flow, State>,
    swept: Option<Instant>,
}

/// What is known of one.
#[derive(Clone, Copy, Debug)]
struct State {
    /// When it was asked, and then when the answer came.
    since: Instant,
    /// `None` until it comes.
    answer: Option<Option<Virtual>>,
}

impl Flows {
    /// What IPVS has of a flow, as far as that is known.
    #[must_use]
    pub fn get(&self, flow: &Flow, now: Instant) -> Option<Virtual> {
        self.known.get(flow).filter(|state| state.is_fresh(now))?.answer?
    }

    /// True if the answer may be on its way.
    #[must_use]
    pub fn is_open(&self, flow: &Flow, now: Instant) -> bool {
        let is_open = |state: &State| state.answer.is_none() && now < state.since + LATE;
        self.is_there && self.known.get(flow).is_some_and(is_open)
    }

    /// Asks, by `ask`, which says whether it could, if that is to be done now.
    pub fn ask(&mut self, flow: Flow, now: Instant, ask: impl FnOnce(Flow) -> bool) {
        if !self.is_there {
            if self.looked.is_none_or(|at| now >= at + AGAIN) && ask(flow) {
                self.looked = Some(now);
            }
            return;
        }
        if self.known.get(&flow).is_some_and(|state| state.is_fresh(now)) {
            return;
        }
        if self.known.len() >= MOST && self.swept.is_none_or(|at| now >= at + SWEEP) {
            self.swept = Some(now);
            self.known.retain(|_, state| state.is_fresh(now));
        }
        if (self.known.len() < MOST || self.known.contains_key(&flow)) && ask(flow) {
            self.known.insert(flow, State { since: now, answer: None });
        }
    }

    /// Takes answers. Those that nobody asked for, or not lately, are none.
    pub fn learn(&mut self, told: Ipvs, now: Instant) {
        self.is_there = told.is_there;
        if !told.is_there {
            self.looked = Some(now);
            self.known.clear();
        }
        for (flow, answer) in told.answers {
            if let Some(state) = self.known.get_mut(&flow) {
                *state = State { since: now, answer: Some(answer) };
            }
        }
    }
}

impl State {
    fn is_fresh(&self, now: Instant) -> bool {
        now < self.since + KEPT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn end(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn flow(port: u16) -> Flow {
        Flow { netns: Some(7), protocol: 6, source: end(port), destination: end(80) }
    }

    fn there(answers: Vec<(Flow, Option<Virtual>)>) -> Ipvs {
        Ipvs { is_there: true, answers }
    }

    /// How many of these flows are asked about.
    fn asked(flows: &mut Flows, ports: std::ops::Range<u16>, now: Instant) -> usize {
        let mut asked = 0;
        for port in ports {
            flows.ask(flow(port), now, |_| {
                asked += 1;
                true
            });
        }
        asked
    }

    #[test]
    fn an_answer_holds_for_some_seconds() {
        let (start, mut flows) = (Instant::now(), Flows::default());
        flows.learn(there(vec![]), start);
        assert_eq!(asked(&mut flows, 1..2, start), 1);
        assert!(flows.is_open(&flow(1), start) && !flows.is_open(&flow(1), start + LATE));
        assert!(flows.get(&flow(1), start).is_none());
        let told = Virtual { address: end(443), is_reply: false };
        flows.learn(there(vec![(flow(1), Some(told)), (flow(2), Some(told))]), start);
        assert!(!flows.is_open(&flow(1), start));
        assert_eq!(flows.get(&flow(1), start), Some(told));
        assert_eq!(flows.get(&flow(2), start), None, "nobody asked");
        assert_eq!(asked(&mut flows, 1..2, start + KEPT / 2), 0);
        assert_eq!(flows.get(&flow(1), start + KEPT), None);
        assert_eq!(asked(&mut flows, 1..2, start + KEPT), 1);
    }

    #[test]
    fn where_there_is_no_ipvs_it_is_seldom_asked_and_nothing_waits() {
        let (start, mut flows) = (Instant::now(), Flows::default());
        assert_eq!(asked(&mut flows, 0..1000, start), 1);
        flows.learn(Ipvs::default(), start);
        assert_eq!(asked(&mut flows, 0..1000, start + AGAIN / 2), 0);
        assert!(!flows.is_open(&flow(0), start));
        assert_eq!(asked(&mut flows, 0..1000, start + AGAIN), 1);
        flows.learn(there(vec![(flow(0), None)]), start + AGAIN);
        assert_eq!(asked(&mut flows, 0..1000, start + AGAIN), 1000);
    }

    #[test]
    fn what_could_not_be_asked_is_asked_again() {
        let (start, mut flows) = (Instant::now(), Flows::default());
        flows.learn(there(vec![]), start);
        flows.ask(flow(1), start, |_| false);
        assert!(!flows.is_open(&flow(1), start));
        assert_eq!(asked(&mut flows, 1..2, start), 1);
    }

    #[test]
    fn a_storm_of_flows_is_not_remembered_whole() {
        let (start, mut flows) = (Instant::now(), Flows::default());
        flows.learn(there(vec![]), start);
        assert_eq!(asked(&mut flows, 0..60_000, start), MOST);
        assert_eq!(asked(&mut flows, 50_000..60_000, start + KEPT), MOST);
    }
}
