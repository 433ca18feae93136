//! How old connections get: as with gRPC's own servers the age is spread, so that those who came together do not go together.
//!
//! The transport knows one age for all connections. So it announces the end of each at the earliest moment (no new streams),
//! and every stream ends by itself at a moment of its own; with the last one the connection is closed.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Part of the age that a stream may end sooner or later.
const SPREAD: f64 = 0.1;

/// When a connection is told that it ends.
pub(crate) fn announced(age: Duration) -> Duration {
    age.mul_f64(1.0 - SPREAD)
}

/// How long its streams may take then, beside the time for clients that do not go.
pub(crate) fn remaining(age: Duration) -> Duration {
    age.mul_f64(2.0 * SPREAD)
}

/// When a stream ends.
pub(crate) fn of_stream(age: Duration) -> Duration {
    // Keys of the hash are random, which is all that is wanted of it.
    let share = RandomState::new().hash_one(age) as f64 / u64::MAX as f64;
    age.mul_f64(1.0 - SPREAD + 2.0 * SPREAD * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_end_apart_and_within_the_connections_time() {
        let age = Duration::from_secs(1800);
        let all: std::collections::BTreeSet<Duration> = (0..100).map(|_| of_stream(age)).collect();
        assert!(all.len() > 90);
        assert!(all.iter().all(|at| (announced(age)..=announced(age) + remaining(age)).contains(at)));
    }
}
