//! Maps that are not read anew for each drop: a storm of drops must not become a storm of system calls. Small maps are
//! as good as never old; large ones are kept for longer.

use super::maps::{Authentications, LocalEndpoint, Maps, PolicyMap, Resolved, Unread};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was read is kept this many times as long as reading it took: so reading takes a twentieth of the time at most.
const SHARE: u32 = 20;
/// Policies that are kept at most.
const POLICIES: usize = 256;

/// Maps that are kept for moments.
#[derive(Debug)]
pub struct Cached<M> {
    maps: M,
    endpoints: Option<Kept<Arc<[LocalEndpoint]>>>,
    policies: HashMap<u32, Kept<Arc<PolicyMap>>>,
    authentications: Option<Kept<Arc<Authentications>>>,
}

/// What a map said.
#[derive(Debug)]
struct Kept<T> {
    said: Result<T, Unread>,
    until: Instant,
}

impl<T: Clone> Kept<T> {
    fn read(read: impl FnOnce() -> Result<T, Unread>) -> Self {
        let start = Instant::now();
        let said = read();
        let end = Instant::now();
        Self { said, until: kept_until(start, end) }
    }

    fn at(&self, now: Instant) -> Option<Result<T, Unread>> {
        (now < self.until).then(|| self.said.clone())
    }
}

/// Until when that is good which was read between these times.
fn kept_until(start: Instant, end: Instant) -> Instant {
    const LONGEST: Duration = Duration::from_secs(10);
    end + end.saturating_duration_since(start).saturating_mul(SHARE).min(LONGEST)
}

impl<M: Maps> Cached<M> {
    /// With nothing kept yet.
    pub fn new(maps: M) -> Self {
        Self { maps, endpoints: None, policies: HashMap::new(), authentications: None }
    }

    /// The maps themselves.
    pub fn maps(&self) -> &M {
        &self.maps
    }
}

impl<M: Maps> Maps for Cached<M> {
    fn endpoints(&mut self) -> Result<Arc<[LocalEndpoint]>, Unread> {
        let now = Instant::now();
        if let Some(known) = self.endpoints.as_ref().and_then(|kept| kept.at(now)) {
            return known;
        }
        let kept = Kept::read(|| self.maps.endpoints());
        self.endpoints.insert(kept).said.clone()
    }

    fn policy(&mut self, endpoint: u32) -> Result<Arc<PolicyMap>, Unread> {
        let now = Instant::now();
        if let Some(known) = self.policies.get(&endpoint).and_then(|kept| kept.at(now)) {
            return known;
        }
        let kept = Kept::read(|| self.maps.policy(endpoint));
        let said = kept.said.clone();
        if self.policies.len() >= POLICIES {
            self.policies.retain(|_, kept| kept.until > now);
        }
        if self.policies.len() < POLICIES {
            self.policies.insert(endpoint, kept);
        }
        said
    }

    /// Each time anew: it takes a lookup for each bit of the address, but the map is never read whole.
    fn resolve(&mut self, address: IpAddr) -> Result<Option<Resolved>, Unread> {
        self.maps.resolve(address)
    }

    fn authentications(&mut self) -> Result<Arc<Authentications>, Unread> {
        if let Some(known) = self.authentications.as_ref().and_then(|kept| kept.at(Instant::now())) {
            return known;
        }
        let kept = self.authentications.insert(Kept::read(|| self.maps.authentications()));
        kept.said.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::maps::PolicyLayout;
    use super::*;

    /// Maps that take their time, and count how often they are read.
    struct Slow {
        takes: Duration,
        reads: usize,
    }

    impl Maps for Slow {
        fn endpoints(&mut self) -> Result<Arc<[LocalEndpoint]>, Unread> {
            std::thread::sleep(self.takes);
            self.reads += 1;
            Err(Unread::Absent { looked: vec![] })
        }

        fn policy(&mut self, _: u32) -> Result<Arc<PolicyMap>, Unread> {
            std::thread::sleep(self.takes);
            self.reads += 1;
            Ok(Arc::new(PolicyMap { layout: PolicyLayout::V18, entries: vec![], is_complete: true }))
        }

        fn resolve(&mut self, _: IpAddr) -> Result<Option<Resolved>, Unread> {
            self.reads += 1;
            Ok(None)
        }

        fn authentications(&mut self) -> Result<Arc<Authentications>, Unread> {
            std::thread::sleep(self.takes);
            self.reads += 1;
            Ok(Arc::default())
        }
    }

    #[test]
    fn what_takes_long_is_kept() {
        // Kept for two seconds.
        let mut cached = Cached::new(Slow { takes: Duration::from_millis(100), reads: 0 });
        for _ in 0..5 {
            assert!(cached.endpoints().is_err());
            assert!(cached.policy(7).is_ok());
            assert!(cached.authentications().is_ok());
        }
        assert_eq!(cached.maps().reads, 3);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut cached = Cached::new(Slow { takes: Duration::ZERO, reads: 0 });
        for endpoint in 0..2 * POLICIES as u32 {
            cached.policy(endpoint).unwrap();
        }
        assert_eq!(cached.maps().reads, 2 * POLICIES);
        assert!(cached.policies.len() <= POLICIES);
        for _ in 0..2 {
            cached.resolve(IpAddr::from([10, 0, 0, 1])).unwrap();
        }
        assert_eq!(cached.maps().reads, 2 * POLICIES + 2);
    }

    #[test]
    fn how_long_it_is_kept_is_by_what_it_took() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(kept_until(start, after(10)), after(210));
        assert_eq!(kept_until(start, start), start);
        assert_eq!(kept_until(start, after(60_000)), after(70_000));
        let kept = Kept { said: Ok(7), until: after(210) };
        assert!(kept.at(after(209)).is_some() && kept.at(after(210)).is_none());
    }
}
