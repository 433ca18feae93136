//! What the control plane as a whole shows, under istiod's names where it has one. What one crate knows by itself is in that
//! crate's `metrics.rs`.

mod plugins;
mod proxies;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use trysail_facts::FactsSnapshot;
use trysail_facts::dump::Problems;
use trysail_model::{Object, ObjectRef};

pub use plugins::PluginCollector;
pub use proxies::ProxyCollector;

use crate::pages::Pages;
use crate::version;

/// Upper bounds, in seconds, of taking changes in.
const COMMIT_SECONDS: [f64; 6] = [0.01, 0.1, 0.5, 1.0, 3.0, 5.0];

type Result<T> = std::result::Result<T, prometheus::Error>;

fn shown<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// Registers what says who we are and how the process is.
///
/// # Errors
/// When the registry has metrics of these names already.
pub fn register_process(registry: &Registry) -> Result<()> {
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let info = Opts::new("pilot_info", "Version of the control plane.");
    shown(registry, IntGaugeVec::new(info, &["version"])?)?.with_label_values(&[version::line()]).set(1);
    let build = Opts::new("istio_build", "The Istio release that the control plane stands for.");
    shown(registry, IntGaugeVec::new(build, &["component", "tag"])?)?
        .with_label_values(&["pilot", version::ISTIO])
        .set(1);
    let uptime = Gauge::new("istiod_uptime_seconds", "Seconds since the start.")?;
    registry.register(Box::new(Uptime { began: Instant::now(), gauge: uptime }))
}

struct Uptime {
    began: Instant,
    gauge: Gauge,
}

impl Collector for Uptime {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set(self.began.elapsed().as_secs_f64());
        self.gauge.collect()
    }
}

/// What is counted when changes are taken in.
pub struct Commits {
    init: Histogram,
    updates: IntCounterVec,
    config_events: IntCounterVec,
    registry_events: IntCounterVec,
    rejected: IntCounterVec,
}

/// Kinds of which istiod's service registry tells, by the name that it gives them.
const REGISTRY_KINDS: [(&str, &str); 5] = [
    ("EndpointSlice", "EndpointSlice"),
    ("Namespace", "Namespaces"),
    ("Node", "Nodes"),
    ("Pod", "Pods"),
    ("Service", "Services"),
];

impl Commits {
    /// Makes them and shows them in a registry.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Commits> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            shown(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let init = HistogramOpts::new("pilot_pushcontext_init_seconds", "Seconds to take changes in, before any push.");
        Ok(Commits {
            init: shown(registry, Histogram::with_opts(init.buckets(COMMIT_SECONDS.to_vec()))?)?,
            updates: counters(
                "pilot_inbound_updates",
                "Changes that came from the sources, by what changed.",
                &["type"],
            )?,
            config_events: counters("pilot_k8s_cfg_events", "Changes of objects, by kind.", &["type", "event"])?,
            registry_events: counters(
                "pilot_k8s_reg_events",
                "Changes of objects of the service registry, by kind.",
                &["type", "event"],
            )?,
            rejected: counters("pilot_total_rejected_configs", "Objects that were refused.", &["type", "name"])?,
        })
    }

    /// Changes were taken in.
    pub fn took(&self, took: Duration) {
        self.init.observe(took.as_secs_f64());
    }

    /// An object was refused.
    pub fn refused(&self, object: Option<&ObjectRef>) {
        let (kind, name) = match object {
            Some(object) => (object.kind.to_lowercase(), format!("{}/{}", object.namespace, object.name)),
            None => ("unknown".to_owned(), String::new()),
        };
        self.rejected.with_label_values(&[kind, name]).inc();
    }

    /// Objects are about to change; `before` is the state without these changes. Returns the reasons of the push.
    pub fn changes<'a>(
        &self,
        before: &FactsSnapshot,
        objects: impl IntoIterator<Item = (&'a ObjectRef, Option<&'a Arc<Object>>)>,
    ) -> Vec<String> {
        let mut reasons = std::collections::BTreeSet::new();
        for (reference, object) in objects {
            let event = match object {
                None => "delete",
                Some(_) if before.has(reference) => "update",
                Some(_) => "add",
            };
            reasons.insert(self.change(&reference.kind, event));
        }
        reasons.into_iter().map(str::to_owned).collect()
    }

    /// Counts one change; returns why it pushes.
    fn change(&self, kind: &str, event: &str) -> &'static str {
        let name = if kind == "KubernetesGateway" { "Gateway" } else { kind };
        self.config_events.with_label_values(&[name, event]).inc();
        if let Some((_, name)) = REGISTRY_KINDS.iter().find(|(known, _)| *known == kind) {
            self.registry_events.with_label_values(&[*name, event]).inc();
        }
        let (update, reason) = match (kind, event) {
            ("EndpointSlice", _) => ("eds", "endpoint"),
            ("Service", "delete") => ("svcdelete", "service"),
            ("Service", _) => ("svc", "service"),
            ("Secret", _) => ("config", "secret"),
            ("Namespace", _) => ("config", "namespace"),
            ("Pod" | "Node", _) => ("eds", "proxy"),
            _ => ("config", "config"),
        };
        self.updates.with_label_values(&[update]).inc();
        reason
    }
}

/// What follows from the present state, looked up when somebody asks.
pub struct StateCollector {
    /// Pages have the registry's server among them, so not the other way round.
    pages: Weak<Pages>,
    services: IntGauge,
    virtual_services: IntGauge,
    clusters: IntGaugeVec,
    revision: IntGauge,
    refused: IntGaugeVec,
    secret_errors: IntCounter,
    problems: Vec<IntGauge>,
    findings: Vec<IntGauge>,
}

/// istiod's metrics of what stages find, with the code of the finding.
const FINDINGS: [(&str, &str, &str); 4] = [
    ("duplicate-cluster", "pilot_duplicate_envoy_clusters", "Clusters left out, because another has their name."),
    (
        "inbound-listener-conflict",
        "pilot_conflict_inbound_listener",
        "Workload ports that two services want otherwise.",
    ),
    (
        "outbound-listener-conflict",
        "pilot_conflict_outbound_listener_tcp_over_current_tcp",
        "Services left out of a listener, because another has the same connections.",
    ),
    ("duplicate-domain", "pilot_vservice_dup_domain", "Virtual hosts that lost a domain to an older object."),
];

impl StateCollector {
    /// Shows the state of pages in a registry.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(registry: &Registry, pages: &Arc<Pages>) -> Result<()> {
        let refused = Opts::new("trysail_refused_objects", "Objects refused now, by kind.");
        let clusters = Opts::new("istiod_managed_clusters", "Clusters that are read.");
        registry.register(Box::new(StateCollector {
            pages: Arc::downgrade(pages),
            services: IntGauge::new("pilot_services", "Services known.")?,
            virtual_services: IntGauge::new("pilot_virt_services", "VirtualServices known.")?,
            clusters: IntGaugeVec::new(clusters, &["cluster_type"])?,
            revision: IntGauge::new("trysail_revision", "Revision of the state served.")?,
            refused: IntGaugeVec::new(refused, &["kind"])?,
            secret_errors: secret_errors()?,
            problems: Problems::METRICS
                .iter()
                .map(|(name, help)| IntGauge::new(*name, *help))
                .collect::<Result<_>>()?,
            findings: FINDINGS.iter().map(|(_, name, help)| IntGauge::new(*name, *help)).collect::<Result<_>>()?,
        }))
    }
}

fn secret_errors() -> Result<IntCounter> {
    IntCounter::new("pilot_sds_certificate_errors_total", "Times that a secret was asked for and could not be served.")
}

impl Collector for StateCollector {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.services, &self.virtual_services, &self.revision];
        let gauges = gauges.into_iter().chain(&self.problems).chain(&self.findings).flat_map(Collector::desc);
        let others = [self.clusters.desc(), self.refused.desc(), self.secret_errors.desc()];
        gauges.chain(others.into_iter().flatten()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(pages) = self.pages.upgrade() else { return Vec::new() };
        let facts = pages.facts.load();
        self.services.set(facts.n_services() as i64);
        self.virtual_services.set(facts.n_virtual_services() as i64);
        // One cluster is read, the own one.
        self.clusters.with_label_values(&["local"]).set(1);
        self.clusters.with_label_values(&["remote"]).set(0);
        let problems = pages.problems();
        for ((name, _), gauge) in Problems::METRICS.iter().zip(&self.problems) {
            gauge.set(problems.count(name) as i64);
        }
        let findings = pages.engine.findings();
        for ((code, ..), gauge) in FINDINGS.iter().zip(&self.findings) {
            gauge.set(findings.get(*code).copied().unwrap_or_default() as i64);
        }
        let report = pages.report.lock();
        self.revision.set(report.revision as i64);
        self.refused.reset();
        for rejection in &report.folder.rejections {
            let kind = rejection.object.as_ref().map_or("unknown", |object| &object.kind);
            self.refused.with_label_values(&[kind]).inc();
        }
        drop(report);
        // Made anew, since two may look at once.
        let errors = secret_errors().inspect(|errors| errors.inc_by(pages.secrets.n_errors()));
        let gauges = [&self.services, &self.virtual_services, &self.revision];
        let mut families: Vec<MetricFamily> =
            gauges.into_iter().chain(&self.problems).chain(&self.findings).flat_map(Collector::collect).collect();
        families.extend(self.clusters.collect());
        families.extend(self.refused.collect());
        families.extend(errors.into_iter().flat_map(|errors| errors.collect()));
        families
    }
}

#[cfg(test)]
mod tests {
    use trysail_facts::Inputs;

    use super::*;

    #[test]
    fn changes_are_counted_by_kind_and_reason() {
        let registry = Registry::new();
        let commits = Commits::register(&registry).unwrap();
        let object = |kind: &str| {
            Arc::new(Object {
                reference: ObjectRef::new(kind, "n", "a"),
                api_version: "v1".into(),
                creation_nanos: 0,
                labels: Default::default(),
                annotations: Default::default(),
                body: serde_json::Value::Null.into(),
                origin: "test".into(),
            })
        };
        let before = FactsSnapshot::new(Inputs { objects: vec![object("Service")], ..Inputs::default() });
        let (service, slice, gateway) = (object("Service"), object("EndpointSlice"), object("KubernetesGateway"));
        let gone = ObjectRef::new("Service", "n", "b");
        let changes = [&service, &slice, &gateway].map(|object| (&object.reference, Some(object)));
        let reasons = commits.changes(&before, changes.into_iter().chain([(&gone, None)]));
        assert_eq!(reasons, ["config", "endpoint", "service"]);
        let count = |vec: &IntCounterVec, labels: &[&str]| vec.with_label_values(labels).get();
        assert_eq!(count(&commits.config_events, &["Service", "update"]), 1);
        assert_eq!(count(&commits.config_events, &["Gateway", "add"]), 1);
        assert_eq!(count(&commits.registry_events, &["Services", "delete"]), 1);
        assert_eq!(count(&commits.registry_events, &["EndpointSlice", "add"]), 1);
        assert_eq!(["config", "eds", "svc", "svcdelete"].map(|of| count(&commits.updates, &[of])), [1; 4]);
    }
}
