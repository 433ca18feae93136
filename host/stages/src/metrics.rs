//! Counters of the engine's work.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{IntCounterVec, Opts, Registry};

/// What the engine did; tests read it to show that nothing was looked at that a change did not concern.
pub struct Counters {
    /// Calls that a guest ran.
    pub runs: AtomicU64,
    /// Trace trees walked.
    pub walks: AtomicU64,
    /// Nodes found without a look at their children.
    pub hits: AtomicU64,
    /// Nodes put together.
    pub assembled: AtomicU64,
    /// Runs that were run again by the purity audit.
    pub audited: AtomicU64,
    faults: IntCounterVec,
}

/// A reading of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// See [`Counters::runs`].
    pub runs: u64,
    /// See [`Counters::walks`].
    pub walks: u64,
    /// See [`Counters::hits`].
    pub hits: u64,
    /// See [`Counters::assembled`].
    pub assembled: u64,
}

impl Default for Counters {
    fn default() -> Self {
        let opts = Opts::new("trysail_stage_faults_total", "Faults of stages and plugins.");
        Counters {
            runs: AtomicU64::new(0),
            walks: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            assembled: AtomicU64::new(0),
            audited: AtomicU64::new(0),
            faults: IntCounterVec::new(opts, &["stage", "kind"]).expect("the name and labels are well-formed"),
        }
    }
}

impl Counters {
    /// Reads all counters.
    pub fn read(&self) -> Reading {
        Reading {
            runs: self.runs.load(Ordering::Relaxed),
            walks: self.walks.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
            assembled: self.assembled.load(Ordering::Relaxed),
        }
    }

    /// Counts a fault.
    pub fn fault(&self, guest: &str, kind: &str) {
        self.faults.with_label_values(&[guest, kind]).inc();
    }

    /// Number of faults of a guest and kind.
    pub fn faults(&self, guest: &str, kind: &str) -> u64 {
        self.faults.with_label_values(&[guest, kind]).get()
    }

    /// Registers what belongs on a dashboard.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.faults.clone()))
    }
}

impl std::ops::Sub for Reading {
    type Output = Reading;

    fn sub(self, before: Reading) -> Reading {
        Reading {
            runs: self.runs - before.runs,
            walks: self.walks - before.walks,
            hits: self.hits - before.hits,
            assembled: self.assembled - before.assembled,
        }
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
