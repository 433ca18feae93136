//! Counters of the engine's work.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::calls::Call;
use crate::engine::{Engine, HookTable};

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
    memory: IntGaugeVec,
    remembered: IntCounterVec,
    put_off: IntCounterVec,
    trips: IntCounterVec,
    unsaid: IntCounterVec,
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
    /// Of a plugin: the most linear memory of any run, bytes.
    pub memory: u64,
    /// Of a plugin: times that what it made before was found again.
    pub remembered: u64,
    /// Of a plugin: calls that were not made when they were needed.
    pub put_off: u64,
    /// Of a plugin: lines that it wanted logged and that were not.
    pub unsaid: u64,
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
            memory: IntGaugeVec::new(
                Opts::new("trysail_plugin_memory_peak_bytes", "The most linear memory of any run of a plugin."),
                &["plugin"],
            )
            .expect("the name and labels are well-formed"),
            remembered: counters(
                "trysail_plugin_memo_hits_total",
                "Times that what a plugin made before was found again.",
                &["plugin"],
            ),
            put_off: counters(
                "trysail_plugin_put_off_total",
                "Calls of a plugin that were not made when they were needed, by why.",
                &["plugin", "reason"],
            ),
            trips: counters(
                "trysail_plugin_circuit_opened_total",
                "Times that the circuit of a plugin opened.",
                &["plugin"],
            ),
            unsaid: counters(
                "trysail_plugin_log_lines_dropped_total",
                "Lines that a plugin wanted logged and that were not.",
                &["plugin"],
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

    /// Notes how much linear memory a run of a plugin had.
    pub(crate) fn memory(&self, plugin: &str, bytes: usize) {
        let gauge = self.memory.with_label_values(&[plugin]);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // Two that raise it at once leave one of their values, which differ little.
        if gauge.get() < bytes {
            gauge.set(bytes);
        }
    }

    /// What a call made before was found again.
    pub(crate) fn remembered(&self, call: &Call) {
        if let Call::Plugin { plugin, .. } = call {
            self.remembered.with_label_values(&[name_of(plugin)]).inc();
        }
    }

    /// A call was not made when it was needed.
    pub(crate) fn put_off(&self, plugin: &str, reason: &str) {
        self.put_off.with_label_values(&[plugin, reason]).inc();
    }

    /// A circuit opened.
    pub(crate) fn tripped(&self, plugin: &str) {
        self.trips.with_label_values(&[plugin]).inc();
    }

    /// Lines were not logged.
    pub(crate) fn unsaid(&self, plugin: &str, lines: u64) {
        self.unsaid.with_label_values(&[plugin]).inc_by(lines);
    }

    /// Forgets all but the stages and these plugins: names of plugins come with documents that anybody may write, and go.
    pub(crate) fn keep(&self, hooks: &HookTable, is_stage: &dyn Fn(&str) -> bool) {
        let plugins: BTreeSet<&str> = hooks.values().flatten().map(|hooked| hooked.guest.name()).collect();
        let is_kept = |name: &str| plugins.contains(name) || name == HOST || is_stage(name);
        let counters = [&self.faults, &self.output_bytes, &self.effects, &self.remembered, &self.put_off];
        for vec in counters.into_iter().chain([&self.trips, &self.unsaid]) {
            for gone in series(&vec.collect()).filter(|series| !is_kept(of_whom(series))) {
                // It was there a moment ago; if it is not any more, all the better.
                let _ = vec.remove(&gone);
            }
        }
        for gone in series(&self.seconds.collect()).filter(|series| !is_kept(of_whom(series))) {
            let _ = self.seconds.remove(&gone);
        }
        for gone in series(&self.memory.collect()).filter(|series| !is_kept(of_whom(series))) {
            let _ = self.memory.remove(&gone);
        }
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
            memory: u64::try_from(self.memory.with_label_values(&[guest]).get()).unwrap_or_default(),
            remembered: self.remembered.with_label_values(&[guest]).get(),
            put_off: PUT_OFF.iter().map(|reason| self.put_off.with_label_values(&[guest, reason]).get()).sum(),
            unsaid: self.unsaid.with_label_values(&[guest]).get(),
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
        registry.register(Box::new(self.effects.clone()))?;
        registry.register(Box::new(self.memory.clone()))?;
        registry.register(Box::new(self.remembered.clone()))?;
        registry.register(Box::new(self.put_off.clone()))?;
        registry.register(Box::new(self.trips.clone()))?;
        registry.register(Box::new(self.unsaid.clone()))
    }
}

/// The labels of each series.
fn series(families: &[MetricFamily]) -> impl Iterator<Item = HashMap<&str, &str>> {
    let metrics = families.iter().flat_map(MetricFamily::get_metric);
    metrics.map(|metric| metric.get_label().iter().map(|label| (label.name(), label.value())).collect())
}

/// The plugin or stage that a series is of.
fn of_whom<'a>(series: &HashMap<&str, &'a str>) -> &'a str {
    series.get("plugin").or_else(|| series.get("stage")).copied().unwrap_or_default()
}

/// Whose the faults of calls are that no guest makes.
pub(crate) const HOST: &str = "host";

/// A plugin's name, from its id.
fn name_of(id: &str) -> &str {
    id.split('@').next().unwrap_or(id)
}

/// Why calls are put off.
const PUT_OFF: [&str; 4] = ["circuit", "memory", "share", "slow"];

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

    #[test]
    fn plugins_that_are_gone_leave_no_series() {
        let counters = Counters::default();
        counters.fault("gone", "trap");
        counters.fault("clusters", "trap");
        counters.ran("gone", Duration::from_millis(1), 1);
        counters.put_off("gone", "share");
        counters.memory("gone", 5);
        counters.keep(&HookTable::default(), &|name| name == "clusters");
        assert_eq!(counters.faults.collect().iter().map(|family| family.get_metric().len()).sum::<usize>(), 1);
        assert_eq!(counters.faults("clusters", "trap"), 1);
        let rest = [counters.seconds.collect(), counters.memory.collect(), counters.put_off.collect()];
        assert!(rest.iter().flatten().all(|family| family.get_metric().is_empty()));
    }
}
