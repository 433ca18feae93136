//! Metrics, with the names that istiod's dashboards read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use trysail_model::ids::type_urls;

use crate::kind::Kind;

/// Upper bounds, in seconds, of pushes and of the debouncer.
const PUSH_SECONDS: [f64; 8] = [0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Upper bounds, in seconds, of waiting and of convergence.
const CONVERGENCE_SECONDS: [f64; 8] = [0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Upper bounds, in bytes, of responses: 4 MB is gRPC's default limit.
const SIZE_BYTES: [f64; 6] = [1.0, 1e4, 1e6, 4e6, 1e7, 4e7];

/// Versions of proxies that `pilot_xds` tells apart; more are counted as `other`, because clients choose the text.
const MAX_VERSIONS: usize = 50;

/// Types with a gauge of who refuses them.
const REJECTED: [(&str, &str); 4] = [
    (type_urls::CLUSTER, "pilot_xds_cds_reject"),
    (type_urls::LISTENER, "pilot_xds_lds_reject"),
    (type_urls::ROUTE, "pilot_xds_rds_reject"),
    (type_urls::ENDPOINT, "pilot_xds_eds_reject"),
];

/// A status code as Go names it.
fn code_name(code: i32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("Unknown")
}

/// Handles of all metrics of this crate. Clones count into the same metrics.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) connected: Connected,
    pushes: IntCounterVec,
    push_time: HistogramVec,
    send_time: Histogram,
    config_size: HistogramVec,
    rejects: IntCounterVec,
    /// By kind of CDS, LDS, RDS and EDS: who refuses, with which status code.
    rejected_by: [IntGaugeVec; 4],
    sent_bytes: IntCounterVec,
    plugin_rejects: IntCounterVec,
    expired_nonce: IntCounterVec,
    internal_errors: IntCounter,
    recv_max: IntGauge,
    queue_time: Histogram,
    convergence_time: Histogram,
    debounce_time: Histogram,
    triggers: IntCounterVec,
}

impl Metrics {
    /// Makes the metrics and shows them in a registry.
    ///
    /// # Errors
    /// A name is registered already, by an earlier call for instance.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let metrics = Metrics::unregistered();
        let Metrics {
            connected,
            pushes,
            push_time,
            send_time,
            config_size,
            rejects,
            rejected_by,
            sent_bytes,
            plugin_rejects,
            expired_nonce,
            internal_errors,
            recv_max,
            queue_time,
            convergence_time,
            debounce_time,
            triggers,
        } = &metrics;
        for gauge in rejected_by {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(sent_bytes.clone()))?;
        registry.register(Box::new(plugin_rejects.clone()))?;
        registry.register(Box::new(connected.gauge.clone()))?;
        registry.register(Box::new(pushes.clone()))?;
        registry.register(Box::new(push_time.clone()))?;
        registry.register(Box::new(send_time.clone()))?;
        registry.register(Box::new(config_size.clone()))?;
        registry.register(Box::new(rejects.clone()))?;
        registry.register(Box::new(expired_nonce.clone()))?;
        registry.register(Box::new(internal_errors.clone()))?;
        registry.register(Box::new(recv_max.clone()))?;
        registry.register(Box::new(queue_time.clone()))?;
        registry.register(Box::new(convergence_time.clone()))?;
        registry.register(Box::new(debounce_time.clone()))?;
        registry.register(Box::new(triggers.clone()))?;
        Ok(metrics)
    }

    /// Metrics that no registry shows.
    pub fn unregistered() -> Metrics {
        Metrics {
            connected: Connected {
                gauge: gauges("pilot_xds", "Number of endpoints connected to this server using xDS.", "version"),
                versions: Arc::default(),
            },
            pushes: counters("pilot_xds_pushes", "Responses sent, by type.", "type"),
            push_time: histograms(
                "pilot_xds_push_time",
                "Seconds from the start of the translation until the response was handed to the transport, by type.",
                "type",
                &PUSH_SECONDS,
            ),
            send_time: histogram(
                "pilot_xds_send_time",
                "Seconds that a response waited for the transport to take the one before.",
                &PUSH_SECONDS,
            ),
            config_size: histograms(
                "pilot_xds_config_size_bytes",
                "Bytes of the resources of a response, by type URL.",
                "type",
                &SIZE_BYTES,
            ),
            rejects: counters("pilot_total_xds_rejects", "Responses rejected by proxies, by type.", "type"),
            rejected_by: REJECTED.map(|(_, name)| {
                let opts =
                    Opts::new(name, "Proxies that refuse what they were sent last, by the status code that they gave.");
                known(IntGaugeVec::new(opts, &["node", "err"]))
            }),
            plugin_rejects: counters(
                "trysail_plugin_rejects_total",
                "Rejected responses with a resource that a plugin had a part in.",
                "plugin",
            ),
            sent_bytes: counters("trysail_sent_bytes_total", "Bytes of resources sent, by type.", "type"),
            expired_nonce: counters("pilot_xds_expired_nonce", "Requests with an expired nonce, by type.", "type"),
            internal_errors: known(IntCounter::new(
                "pilot_total_xds_internal_errors",
                "Internal errors: translations that panicked.",
            )),
            recv_max: known(IntGauge::new("pilot_xds_recv_max", "The largest request so far, in bytes.")),
            queue_time: histogram(
                "pilot_proxy_queue_time",
                "Seconds that a proxy waited in the push queue.",
                &CONVERGENCE_SECONDS,
            ),
            convergence_time: histogram(
                "pilot_proxy_convergence_time",
                "Seconds from a change of configuration until a proxy was sent all of it.",
                &CONVERGENCE_SECONDS,
            ),
            debounce_time: histogram(
                "pilot_debounce_time",
                "Seconds from the first change until the push of a merged set of changes.",
                &PUSH_SECONDS,
            ),
            triggers: counters("pilot_push_triggers", "Pushes, by what triggered them.", "type"),
        }
    }

    /// Counts one decision of the debouncer.
    pub fn debounced(&self, waited: Duration) {
        self.debounce_time.observe(waited.as_secs_f64());
    }

    pub(crate) fn sent(&self, kind: Kind, bytes: usize, took: Duration, waited: Duration) {
        self.pushes.with_label_values(&[kind.short()]).inc();
        self.sent_bytes.with_label_values(&[kind.short()]).inc_by(bytes as u64);
        self.push_time.with_label_values(&[kind.short()]).observe(took.as_secs_f64());
        self.config_size.with_label_values(&[kind.url().as_str()]).observe(bytes as f64);
        self.send_time.observe(waited.as_secs_f64());
    }

    pub(crate) fn rejected(&self, kind: Option<Kind>) {
        self.rejects.with_label_values(&[kind.map_or("unknown", Kind::short)]).inc();
    }

    /// A proxy refuses a type, or no longer does: `before` and `now` are status codes. Series go when they end, else proxies
    /// that are gone would fill the memory.
    pub(crate) fn refuses(&self, kind: Kind, node: &str, before: Option<i32>, now: Option<i32>) {
        let of = REJECTED.iter().position(|(url, _)| *url == kind.url().as_str());
        let Some(gauge) = of.and_then(|index| self.rejected_by.get(index)) else { return };
        if before != now
            && let Some(code) = before
        {
            let _ = gauge.remove_label_values(&[node, code_name(code)]);
        }
        if let Some(code) = now {
            gauge.with_label_values(&[node, code_name(code)]).set(1);
        }
    }

    /// A response was rejected for a resource that a plugin had a part in.
    pub(crate) fn rejected_plugin(&self, plugin: &str) {
        self.plugin_rejects.with_label_values(&[plugin]).inc();
    }

    /// Rejected responses with a resource that a plugin had a part in.
    pub fn plugin_rejects(&self, plugin: &str) -> u64 {
        self.plugin_rejects.with_label_values(&[plugin]).get()
    }

    /// Forgets the plugins that are gone: names come with documents that anybody may write.
    pub fn keep_plugins(&self, is_there: &dyn Fn(&str) -> bool) {
        let families = prometheus::core::Collector::collect(&self.plugin_rejects);
        let labels = families.iter().flat_map(|family| family.get_metric()).flat_map(|metric| metric.get_label());
        for gone in labels.map(|label| label.value()).filter(|name| !is_there(name)) {
            // It was there a moment ago; if it is not any more, all the better.
            let _ = self.plugin_rejects.remove_label_values(&[gone]);
        }
    }

    pub(crate) fn expired_nonce(&self, kind: Kind) {
        self.expired_nonce.with_label_values(&[kind.short()]).inc();
    }

    pub(crate) fn internal_error(&self) {
        self.internal_errors.inc();
    }

    pub(crate) fn received(&self, bytes: usize) {
        let bytes = bytes as i64;
        // Two threads may race; the loser's value is then missing, which a gauge of this kind can bear.
        if bytes > self.recv_max.get() {
            self.recv_max.set(bytes);
        }
    }

    pub(crate) fn queued(&self, waited: Duration) {
        self.queue_time.observe(waited.as_secs_f64());
    }

    pub(crate) fn converged(&self, took: Duration) {
        self.convergence_time.observe(took.as_secs_f64());
    }

    pub(crate) fn triggered(&self, reasons: &[String]) {
        for reason in reasons {
            self.triggers.with_label_values(&[reason.as_str()]).inc();
        }
    }
}

/// Connected proxies by version.
#[derive(Clone)]
pub(crate) struct Connected {
    gauge: IntGaugeVec,
    versions: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Connected {
    /// Counts a proxy in; returns the label that it was counted under.
    pub(crate) fn add(&self, version: &str) -> String {
        let mut versions = self.versions.lock();
        let is_sane = version.len() <= 40 && version.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b));
        let is_new = !versions.contains_key(version);
        let label = if !is_sane || (is_new && versions.len() >= MAX_VERSIONS) { "other" } else { version };
        *versions.entry(label.to_owned()).or_default() += 1;
        self.gauge.with_label_values(&[label]).inc();
        label.to_owned()
    }

    /// Counts a proxy out, by the label that [`Connected::add`] returned.
    pub(crate) fn remove(&self, label: &str) {
        let mut versions = self.versions.lock();
        self.gauge.with_label_values(&[label]).dec();
        if let Some(count) = versions.get_mut(label) {
            *count -= 1;
            if *count == 0 {
                // istiod keeps the series at 0; here it goes, else clients could fill the memory with versions one by one.
                versions.remove(label);
                let _ = self.gauge.remove_label_values(&[label]);
            }
        }
    }
}

fn counters(name: &str, help: &str, label: &str) -> IntCounterVec {
    known(IntCounterVec::new(Opts::new(name, help), &[label]))
}

fn gauges(name: &str, help: &str, label: &str) -> IntGaugeVec {
    known(IntGaugeVec::new(Opts::new(name, help), &[label]))
}

fn histogram(name: &str, help: &str, bounds: &[f64]) -> Histogram {
    known(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec())))
}

fn histograms(name: &str, help: &str, label: &str, bounds: &[f64]) -> HistogramVec {
    known(HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), &[label]))
}

fn known<T>(made: Result<T, prometheus::Error>) -> T {
    made.expect("names, labels and bounds are constants that a test has seen")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_once() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        metrics.sent(Kind::CLUSTER, 10, Duration::ZERO, Duration::ZERO);
        metrics.debounced(Duration::from_millis(100));
        let names: Vec<String> = registry.gather().iter().map(|family| family.name().to_owned()).collect();
        assert!(names.iter().any(|name| name == "pilot_xds_pushes"), "{names:?}");
        assert!(Metrics::register(&registry).is_err());
    }

    #[test]
    fn clients_cannot_make_endless_versions() {
        let metrics = Metrics::unregistered();
        for n in 0..1000 {
            metrics.connected.add(&format!("1.{n}.0"));
        }
        let label = metrics.connected.add("\u{1f600} {}");
        assert_eq!(label, "other");
        assert!(metrics.connected.versions.lock().len() <= MAX_VERSIONS + 1);
        metrics.connected.remove(&label);
    }
}
