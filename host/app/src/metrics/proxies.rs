//! What is odd about the proxies that are connected, looked up when somebody asks.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use trysail_facts::FactsSnapshot;
use trysail_xds::Server;

use super::Result;

/// Connected proxies that no service is for.
pub struct ProxyCollector {
    xds: Server,
    facts: Arc<ArcSwap<FactsSnapshot>>,
    now: IntGauge,
    seen: IntCounterVec,
    /// Connections that are counted already.
    counted: Mutex<BTreeSet<Arc<str>>>,
}

impl ProxyCollector {
    /// Shows the proxies of a server in a registry.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(registry: &Registry, xds: Server, facts: Arc<ArcSwap<FactsSnapshot>>) -> Result<()> {
        let seen = Opts::new(
            "pilot_k8s_proxies_with_no_service_targets",
            "Connections of proxies whose workload no service of the cluster is for, by reason.",
        );
        registry.register(Box::new(ProxyCollector {
            xds,
            facts,
            now: IntGauge::new(
                "pilot_no_ip",
                "Proxies connected now whose workload no service of the cluster is for.",
            )?,
            seen: IntCounterVec::new(seen, &["reason"])?,
            counted: Mutex::default(),
        }))
    }
}

impl Collector for ProxyCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.now.desc().into_iter().chain(self.seen.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let facts = self.facts.load();
        let mut counted = self.counted.lock();
        let mut without = BTreeSet::new();
        for status in self.xds.status() {
            let Some(reason) = facts.lacks_targets(&status.proxy) else { continue };
            if !counted.contains(&status.connection) {
                self.seen.with_label_values(&[reason]).inc();
            }
            without.insert(status.connection);
        }
        self.now.set(i64::try_from(without.len()).unwrap_or(i64::MAX));
        // A connection that finds its service and loses it again counts again, as it would for istiod.
        *counted = without;
        self.now.collect().into_iter().chain(self.seen.collect()).collect()
    }
}
