//! Limits on what one party may ask for, and patience for those who ask in vain.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Above so many buckets, those that say nothing are dropped.
const MANY: usize = 10_000;

/// Token buckets by key.
pub struct Buckets<K> {
    per_second: f64,
    burst: f64,
    levels: Mutex<HashMap<K, (f64, Instant)>>,
}

impl<K: Hash + Eq> Buckets<K> {
    /// Buckets that take `burst` at once and `per_second` in the long run; 0 means without limit.
    pub fn new(per_second: f64, burst: f64) -> Buckets<K> {
        Buckets { per_second, burst, levels: Mutex::default() }
    }

    /// Takes one out. False when it is empty.
    pub fn take(&self, key: K) -> bool {
        if self.per_second <= 0.0 {
            return true;
        }
        let now = Instant::now();
        let mut levels = self.levels.lock();
        if levels.len() > MANY {
            // Full ones say nothing that a new one would not.
            levels.retain(|_, bucket| self.level(*bucket, now) < self.burst);
        }
        let before = levels.get(&key).map_or(self.burst, |bucket| self.level(*bucket, now));
        let is_there = before >= 1.0;
        levels.insert(key, (if is_there { before - 1.0 } else { before }, now));
        is_there
    }

    /// Is there one to take?
    pub fn has(&self, key: &K) -> bool {
        self.per_second <= 0.0
            || self.levels.lock().get(key).is_none_or(|bucket| self.level(*bucket, Instant::now()) >= 1.0)
    }

    fn level(&self, (level, at): (f64, Instant), now: Instant) -> f64 {
        (level + now.duration_since(at).as_secs_f64() * self.per_second).min(self.burst)
    }
}

/// Failures that an address may have at once before it has to wait, and in a second in the long run: a node's worth of pods
/// that all come with a token that has just expired.
const FAILURES: (f64, f64) = (20.0, 200.0);
/// How long who fails too often waits before anybody looks at what it brings.
const WAIT: Duration = Duration::from_millis(500);
/// How many may wait; whoever comes on top of them is sent away unheard.
const PLACES: usize = 2048;

/// What keeps a flood of bad requests from those who ask for something: who failed often waits before it is looked at, and so
/// does who asked too often.
///
/// Nobody is refused for an address alone, which honest callers may share with others: they wait, too.
pub struct Patience {
    failures: Buckets<IpAddr>,
    places: Semaphore,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { failures: Buckets::new(FAILURES.0, FAILURES.1), places: Semaphore::new(PLACES) }
    }
}

impl Patience {
    /// Waits if the address failed too often. False when too many wait already.
    pub async fn admits(&self, address: Option<IpAddr>) -> bool {
        match address.map(network) {
            Some(network) if !self.failures.has(&network) => self.wait().await,
            _ => true,
        }
    }

    /// It failed once more.
    pub fn failed(&self, address: Option<IpAddr>) {
        if let Some(address) = address {
            self.failures.take(network(address));
        }
    }

    /// Waits. False when too many wait already.
    pub async fn wait(&self) -> bool {
        let Ok(_place) = self.places.try_acquire() else { return false };
        tokio::time::sleep(WAIT).await;
        true
    }
}

/// Of IPv6 the part that one party has all addresses of.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fails_often_waits_and_nobody_else() {
        let patience = Patience::default();
        let [bad, same, other] = ["fd00::1", "fd00::2", "10.0.0.1"].map(|text| Some(text.parse().unwrap()));
        let took = async |address| {
            let began = tokio::time::Instant::now();
            assert!(patience.admits(address).await);
            began.elapsed()
        };
        for _ in 0..FAILURES.1 as usize {
            assert_eq!(took(bad).await, Duration::ZERO);
            patience.failed(bad);
        }
        assert!(took(bad).await >= WAIT && took(same).await >= WAIT);
        assert_eq!(took(other).await, Duration::ZERO);
        assert_eq!(took(None).await, Duration::ZERO);
        let waiting: Vec<_> = (0..PLACES).map(|_| patience.places.try_acquire().unwrap()).collect();
        assert!(!patience.admits(bad).await, "there is no place to wait");
        assert!(patience.admits(other).await);
        drop(waiting);
        assert!(patience.admits(bad).await);
    }

    #[test]
    fn buckets_are_each_its_own_and_fill_again() {
        let buckets = Buckets::new(1e6, 3.0);
        assert!((0..3).all(|_| buckets.take("a")));
        let unlimited = Buckets::new(0.0, 0.0);
        assert!((0..1000).all(|_| unlimited.take("a")) && unlimited.has(&"a"));
        let slow = Buckets::new(1e-6, 2.0);
        assert!(slow.has(&"a") && slow.take("a") && slow.take("a") && !slow.take("a") && !slow.has(&"a"));
        assert!(slow.take("b"));
    }
}
