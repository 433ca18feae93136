//! Debouncing: many changes, one push.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

/// Settings, with istiod's defaults and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// A push starts when nothing changed for so long, `PILOT_DEBOUNCE_AFTER`. 0 means at once.
    pub after: Duration,
    /// A push starts so long after the first change, however much goes on, `PILOT_DEBOUNCE_MAX`. 0 means at once.
    pub max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { after: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

/// Changes read in one go, so that a source that never pauses cannot put off the push.
const MAX_AT_ONCE: usize = 10_000;

/// Changes that one push answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// The changes, merged.
    pub changes: T,
    /// How many they were.
    pub n_events: usize,
    /// When the first one came.
    pub since: Instant,
    /// From the first one to the decision to push.
    pub waited: Duration,
}

/// Decides when changes become a push. It has no clock of its own: it is told the time.
#[derive(Debug)]
pub struct Debouncer<T> {
    config: Config,
    pending: Option<Pending<T>>,
}

#[derive(Debug)]
struct Pending<T> {
    changes: T,
    n_events: usize,
    first: Instant,
    last: Instant,
}

impl<T> Debouncer<T> {
    /// Nothing is pending.
    pub fn new(config: Config) -> Self {
        Debouncer { config, pending: None }
    }

    /// Takes in a change; `merge` adds it to those that wait.
    pub fn event(&mut self, now: Instant, change: T, merge: impl FnOnce(&mut T, T)) {
        match &mut self.pending {
            Some(pending) => {
                merge(&mut pending.changes, change);
                pending.n_events += 1;
                pending.last = now;
            }
            none => *none = Some(Pending { changes: change, n_events: 1, first: now, last: now }),
        }
    }

    /// When the changes that wait are due; `None` when none wait. It may lie in the past.
    pub fn due_at(&self) -> Option<Instant> {
        let pending = self.pending.as_ref()?;
        let quiet = saturating_add(pending.last, self.config.after);
        Some(quiet.min(saturating_add(pending.first, self.config.max)))
    }

    /// The changes that wait, if they are due.
    pub fn take_due(&mut self, now: Instant) -> Option<Batch<T>> {
        if self.due_at()? > now {
            return None;
        }
        self.take(now)
    }

    /// The changes that wait, due or not.
    pub fn take(&mut self, now: Instant) -> Option<Batch<T>> {
        let Pending { changes, n_events, first, .. } = self.pending.take()?;
        Some(Batch { changes, n_events, since: first, waited: now.saturating_duration_since(first) })
    }
}

/// Reads changes until all senders are gone, and calls `push` with merged ones, one call at a time. What waits when the
/// senders go is still pushed.
///
/// While a push runs, changes are read and merged; if they are due when it ends, the next push starts at once. So nothing
/// is lost, and the channel does not fill up behind a slow push.
pub async fn run<T, F: Future<Output = ()>>(
    config: Config,
    mut changes_rx: mpsc::UnboundedReceiver<T>,
    mut merge: impl FnMut(&mut T, T),
    mut push: impl FnMut(Batch<T>) -> F,
) {
    let mut debouncer = Debouncer::new(config);
    let mut is_open = true;
    while is_open || debouncer.pending.is_some() {
        // All that is there already belongs together: with `after` = 0 this is what keeps a burst from being
        // as many pushes.
        for _ in 0..MAX_AT_ONCE {
            let Ok(change) = changes_rx.try_recv() else {
                break;
            };
            debouncer.event(Instant::now(), change, &mut merge);
        }
        let now = Instant::now();
        let batch = if is_open { debouncer.take_due(now) } else { debouncer.take(now) };
        let Some(batch) = batch else {
            is_open = wait(&mut debouncer, &mut changes_rx, &mut merge).await;
            continue;
        };
        let mut running = pin!(push(batch));
        loop {
            tokio::select! {
                () = &mut running => break,
                change = changes_rx.recv(), if is_open => match change {
                    Some(change) => debouncer.event(Instant::now(), change, &mut merge),
                    None => is_open = false,
                },
            }
        }
    }
}

/// Waits for a change or until those that wait are due. False when there will be no more changes.
async fn wait<T>(
    debouncer: &mut Debouncer<T>,
    changes_rx: &mut mpsc::UnboundedReceiver<T>,
    merge: &mut impl FnMut(&mut T, T),
) -> bool {
    let due_at = debouncer.due_at();
    let sleep = async {
        match due_at {
            Some(due_at) => tokio::time::sleep_until(due_at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = sleep => true,
        change = changes_rx.recv() => {
            let is_open = change.is_some();
            if let Some(change) = change {
                debouncer.event(Instant::now(), change, merge);
            }
            is_open
        }
    }
}

/// A time that cannot be represented is as good as a year.
fn saturating_add(at: Instant, by: Duration) -> Instant {
    at.checked_add(by).unwrap_or_else(|| at + Duration::from_secs(365 * 24 * 3600))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn add(sum: &mut Vec<u32>, more: Vec<u32>) {
        sum.extend(more);
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_time_decides() {
        let mut debouncer = Debouncer::new(Config { after: MS(100), max: MS(10_000) });
        let start = Instant::now();
        assert_eq!(debouncer.due_at(), None);
        debouncer.event(start, vec![1], add);
        debouncer.event(start + MS(60), vec![2], add);
        assert_eq!(debouncer.take_due(start + MS(159)), None);
        let batch = debouncer.take_due(start + MS(160)).unwrap();
        assert_eq!((batch.changes, batch.n_events, batch.waited), (vec![1, 2], 2, MS(160)));
        assert_eq!(debouncer.due_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_maximum_decides_when_it_is_never_quiet() {
        let mut debouncer = Debouncer::new(Config { after: MS(100), max: MS(250) });
        let start = Instant::now();
        for n in 0..5 {
            debouncer.event(start + MS(60) * n, vec![n], add);
        }
        assert_eq!(debouncer.due_at(), Some(start + MS(250)));
        assert_eq!(debouncer.take_due(start + MS(250)).unwrap().n_events, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn endless_times_do_not_overflow() {
        let mut debouncer = Debouncer::new(Config { after: Duration::MAX, max: Duration::MAX });
        debouncer.event(Instant::now(), vec![1], add);
        assert!(debouncer.due_at().unwrap() > Instant::now());
    }

    /// Runs the debouncer over changes at given milliseconds; each push takes `cost`. Returns (time, changes) of pushes.
    async fn pushes(config: Config, at: &[u64], cost: Duration) -> Vec<(u64, Vec<u32>)> {
        let (tx, rx) = mpsc::unbounded_channel();
        let start = Instant::now();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let n_running = Rc::new(Cell::new(0));
        let push = |batch: Batch<Vec<u32>>| {
            let (seen, n_running) = (seen.clone(), n_running.clone());
            async move {
                assert_eq!(n_running.replace(1), 0, "one push at a time");
                seen.borrow_mut().push((start.elapsed().as_millis() as u64, batch.changes));
                tokio::time::sleep(cost).await;
                n_running.set(0);
            }
        };
        let feed = async {
            for (n, ms) in at.iter().enumerate() {
                tokio::time::sleep_until(start + MS(*ms)).await;
                tx.send(vec![n as u32]).unwrap();
            }
            // Stay until the last change was quiet long enough, so that the end of the channel is not what pushes.
            tokio::time::sleep(MS(60_000)).await;
            drop(tx);
        };
        tokio::join!(run(config, rx, add, push), feed);
        seen.take()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_one_push() {
        let config = Config { after: MS(100), max: MS(10_000) };
        let seen = pushes(config, &[0, 10, 20, 500], MS(0)).await;
        assert_eq!(seen, [(120, vec![0, 1, 2]), (600, vec![3])]);
    }

    #[tokio::test(start_paused = true)]
    async fn zero_pushes_at_once_and_loses_nothing() {
        let config = Config { after: MS(0), max: MS(0) };
        let seen = pushes(config, &[0, 0, 5, 9, 9], MS(0)).await;
        let all: Vec<u32> = seen.iter().flat_map(|(_, changes)| changes.clone()).collect();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert!(seen.iter().map(|(at, _)| *at).all(|at| [0, 5, 9].contains(&at)), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn zero_after_with_a_maximum_is_zero() {
        let config = Config { after: MS(0), max: MS(10_000) };
        assert_eq!(pushes(config, &[3, 7], MS(0)).await, [(3, vec![0]), (7, vec![1])]);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_during_a_push_are_merged_into_the_next() {
        let config = Config { after: MS(0), max: MS(0) };
        let seen = pushes(config, &[0, 10, 20, 30], MS(100)).await;
        assert_eq!(seen, [(0, vec![0]), (100, vec![1, 2, 3])]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_waits_for_quiet_after_a_long_push() {
        let config = Config { after: MS(100), max: MS(10_000) };
        let seen = pushes(config, &[0, 290], MS(200)).await;
        assert_eq!(seen, [(100, vec![0]), (390, vec![1])]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_flushes_what_waits() {
        let (tx, rx) = mpsc::unbounded_channel();
        tx.send(vec![1]).unwrap();
        tx.send(vec![2]).unwrap();
        drop(tx);
        let seen = RefCell::new(Vec::new());
        let config = Config { after: MS(1_000_000), max: MS(1_000_000) };
        run(config, rx, add, |batch| {
            seen.borrow_mut().push(batch.changes);
            std::future::ready(())
        })
        .await;
        assert_eq!(seen.take(), [vec![1, 2]]);
    }
}
