//! Counters of the engine's work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use crate::engine::Engine;

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
    seconds: HistogramVec,
    output_bytes: IntCounterVec,
    effects: IntCounterVec,
}

/// Upper bounds, in seconds, of one run of a guest.
const RUN_SECONDS: [f64; 7] = [1e-5, 3e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0];

/// What a guest did, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestReading {
    /// Runs.
    pub runs: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Bytes of what they made.
    pub output_bytes: u64,
    /// Faults.
    pub faults: u64,
    /// Of a plugin: runs that changed or inserted something.
    pub effective: u64,
    /// Of a plugin: runs that left everything as it was.
    pub ineffective: u64,
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
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("the name and labels are well-formed")
        };
        let seconds = HistogramOpts::new("trysail_stage_seconds", "Seconds of the runs of stages and plugins.");
        let seconds = HistogramVec::new(seconds.buckets(RUN_SECONDS.to_vec()), &["stage"]);
        Counters {
            runs: AtomicU64::new(0),
            walks: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            assembled: AtomicU64::new(0),
            audited: AtomicU64::new(0),
            faults: counters("trysail_stage_faults_total", "Faults of stages and plugins.", &["stage", "kind"]),
            seconds: seconds.expect("the name and labels are well-formed"),
            output_bytes: counters(
                "trysail_stage_output_bytes_total",
                "Bytes that stages and plugins made.",
                &["stage"],
            ),
            effects: counters(
                "trysail_plugin_runs_total",
                "Runs of plugins, by whether they changed something.",
                &["plugin", "effect"],
            ),
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

    /// Counts a run that came to its end.
    pub(crate) fn ran(&self, guest: &str, took: Duration, output_bytes: usize) {
        self.seconds.with_label_values(&[guest]).observe(took.as_secs_f64());
        self.output_bytes.with_label_values(&[guest]).inc_by(output_bytes as u64);
    }

    /// Counts what a run of a plugin did.
    pub(crate) fn effect(&self, plugin: &str, is_effective: bool) {
        self.effects.with_label_values(&[plugin, effect_name(is_effective)]).inc();
    }

    /// What a guest did.
    pub fn of_guest(&self, guest: &str) -> GuestReading {
        let seconds = self.seconds.with_label_values(&[guest]);
        let effects = |is_effective| self.effects.with_label_values(&[guest, effect_name(is_effective)]).get();
        let faults = self.faults.collect();
        let faults = faults.iter().flat_map(MetricFamily::get_metric);
        let faults =
            faults.filter(|metric| metric.get_label().iter().any(|l| l.name() == "stage" && l.value() == guest));
        GuestReading {
            runs: seconds.get_sample_count(),
            seconds: seconds.get_sample_sum(),
            output_bytes: self.output_bytes.with_label_values(&[guest]).get(),
            faults: faults.map(|metric| metric.get_counter().get_value() as u64).sum(),
            effective: effects(true),
            ineffective: effects(false),
        }
    }

    /// Registers all but the atomic counters, which are for [`EngineCollector`].
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.faults.clone()))?;
        registry.register(Box::new(self.seconds.clone()))?;
        registry.register(Box::new(self.output_bytes.clone()))?;
        registry.register(Box::new(self.effects.clone()))
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

fn effect_name(is_effective: bool) -> &'static str {
    if is_effective { "changed" } else { "none" }
}

/// Shows an engine's atomic counters, which are read when somebody looks: counting them is on the hottest path there is.
pub struct EngineCollector {
    engine: Arc<Engine>,
    shown: [IntCounter; 5],
}

/// Names of the atomic counters, in the order of [`EngineCollector::read`].
const ATOMICS: [(&str, &str); 5] = [
    ("trysail_stage_runs_total", "Calls that a guest ran: fragments made anew."),
    ("trysail_memo_walks_total", "Traces of remembered calls that were walked."),
    ("trysail_memo_hits_total", "Results found without a look at what they are made of."),
    ("trysail_assembled_total", "Results put together from parts."),
    ("trysail_audited_runs_total", "Runs that were run again to see that they are pure."),
];

impl EngineCollector {
    /// A collector of an engine's counters.
    pub fn new(engine: Arc<Engine>) -> EngineCollector {
        EngineCollector { engine, shown: ATOMICS.map(atomic) }
    }

    fn read(&self) -> [u64; 5] {
        let Counters { runs, walks, hits, assembled, audited, .. } = &self.engine.counters;
        [runs, walks, hits, assembled, audited].map(|counter| counter.load(Ordering::Relaxed))
    }
}

fn atomic((name, help): (&str, &str)) -> IntCounter {
    IntCounter::new(name, help).expect("the name is well-formed")
}

impl Collector for EngineCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.shown.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Made anew, since two may look at once.
        let show = |(of, value): ((&str, &str), u64)| {
            let shown = atomic(of);
            shown.inc_by(value);
            shown.collect()
        };
        ATOMICS.into_iter().zip(self.read()).flat_map(show).collect()
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_did_is_told_apart_from_what_others_did() {
        let counters = Counters::default();
        counters.ran("limits", Duration::from_millis(2), 100);
        counters.effect("limits", true);
        counters.ran("limits", Duration::from_millis(1), 0);
        counters.effect("limits", false);
        counters.fault("limits", "trap");
        counters.fault("limits", "deadline");
        counters.fault("other", "trap");
        let did = counters.of_guest("limits");
        assert_eq!((did.runs, did.output_bytes, did.faults), (2, 100, 2));
        assert_eq!((did.effective, did.ineffective), (1, 1));
        assert!((did.seconds - 0.003).abs() < 1e-9, "{did:?}");
        assert_eq!(counters.of_guest("nobody"), GuestReading::default());
    }
}
