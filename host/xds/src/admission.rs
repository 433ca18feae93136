//! How many streams may begin in a second: after a restart all proxies come at once, and each wants everything.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::Status;

/// Nobody waits longer for their turn; it is better to try another replica.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lets streams begin at a rate.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Per second; unset for no limit.
    rate: Option<f64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Turns that are free; below zero: how many have been promised.
    turns: f64,
    at: Instant,
}

impl Admission {
    /// So many a second, and as many at once; 0 is no limit.
    pub(crate) fn new(rate: f64) -> Admission {
        let rate = (rate > 0.0).then_some(rate);
        let turns = rate.unwrap_or_default().max(1.0);
        Admission { rate, state: Mutex::new(State { turns, at: Instant::now() }) }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// When that would take too long.
    pub(crate) async fn turn(&self) -> Result<(), Status> {
        let wait = self.promise(Instant::now())?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// How long until the turn that is promised.
    fn promise(&self, now: Instant) -> Result<Duration, Status> {
        let Some(rate) = self.rate else { return Ok(Duration::ZERO) };
        let mut state = self.state.lock();
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.turns = (state.turns + passed * rate).min(rate.max(1.0));
        state.at = now;
        let wait = Duration::from_secs_f64(((1.0 - state.turns) / rate).max(0.0));
        if wait > PATIENCE {
            return Err(Status::resource_exhausted("request rate limit exceeded: too many streams begin at once"));
        }
        state.turns -= 1.0;
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_turns_are_promised_then_refused() {
        let admission = Admission::new(10.0);
        let start = Instant::now();
        let waits: Vec<Option<u128>> =
            (0..25).map(|_| admission.promise(start).ok().map(|wait| wait.as_millis())).collect();
        assert!(waits[..10].iter().all(|wait| *wait == Some(0)));
        assert_eq!((waits[10], waits[14]), (Some(100), Some(500)));
        assert_eq!(waits[20..], [None; 5], "who would wait for more than a second goes elsewhere");
        assert_eq!(admission.promise(start + Duration::from_secs(10)).unwrap(), Duration::ZERO);
        assert_eq!(Admission::new(0.0).promise(start).unwrap(), Duration::ZERO);
    }
}
