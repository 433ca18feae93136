//! How it is with each plugin, looked up when somebody asks. What is counted as it happens is in the crates that see it.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts, Registry};
use trysail_stages::Conduct;
use trysail_xds::Server;

use super::Result;
use crate::pages::Pages;
use crate::pages::own::state;

/// Gauges of plugins by name. There are as many series as there are plugins: those of plugins that are gone go with them.
pub struct PluginCollector {
    /// Pages have the registry's server among them, so not the other way round.
    pages: Weak<Pages>,
    xds: Server,
    in_force: IntGaugeVec,
    circuit_open: IntGaugeVec,
    waiting: IntGaugeVec,
    kept: IntGaugeVec,
    fragments: IntGaugeVec,
    unmet: IntGaugeVec,
}

impl PluginCollector {
    /// Shows the plugins in a registry.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(registry: &Registry, pages: &Arc<Pages>, xds: Server) -> Result<()> {
        let gauges = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        registry.register(Box::new(PluginCollector {
            pages: Arc::downgrade(pages),
            xds,
            in_force: gauges("trysail_plugin_in_force", "1 for a plugin of which a version is loaded.", &["plugin"])?,
            circuit_open: gauges(
                "trysail_plugin_circuit_open",
                "1 for a plugin that is not called for a while, because its runs lost too much time.",
                &["plugin"],
            )?,
            waiting: gauges(
                "trysail_plugin_waiting_calls",
                "Calls of a plugin that wait to be made where nobody waits for them.",
                &["plugin"],
            )?,
            kept: gauges("trysail_plugin_kept_bytes", "What is remembered for a plugin.", &["plugin"])?,
            fragments: gauges(
                "trysail_plugin_fragments",
                "Fragments in use that a plugin was asked about, by whether it changes them.",
                &["plugin", "effect"],
            )?,
            unmet: gauges(
                "trysail_plugin_post_condition_failed",
                "1 for a plugin that changes less than its document says it must.",
                &["plugin"],
            )?,
        }))
    }

    fn all(&self) -> [&IntGaugeVec; 6] {
        [&self.in_force, &self.circuit_open, &self.waiting, &self.kept, &self.fragments, &self.unmet]
    }
}

impl Collector for PluginCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(pages) = self.pages.upgrade() else { return Vec::new() };
        let plugins = pages.report.lock().plugins.clone();
        self.xds.metrics().keep_plugins(&|name| plugins.iter().any(|plugin| plugin.name == name));
        self.all().into_iter().for_each(IntGaugeVec::reset);
        if plugins.is_empty() {
            return Vec::new();
        }
        let (effects, standings) = (pages.engine.plugin_effects(), pages.engine.standings());
        for plugin in &plugins {
            let name = plugin.name.as_str();
            let now = effects.get(name).cloned().unwrap_or_default();
            let standing = standings.get(name).cloned().unwrap_or_default();
            let did = pages.engine.counters().of_guest(name);
            let set = |gauges: &IntGaugeVec, labels: &[&str], value: usize| {
                gauges.with_label_values(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.in_force, &[name], usize::from(plugin.digest.is_some()));
            set(&self.circuit_open, &[name], usize::from(standing.conduct == Conduct::Open));
            set(&self.waiting, &[name], standing.waiting);
            set(&self.kept, &[name], standing.kept);
            set(&self.fragments, &[name, "changed"], now.changed);
            set(&self.fragments, &[name, "none"], now.fragments.saturating_sub(now.changed));
            let is_unmet = state(plugin, &did, &now, &standing) == "post-condition failed";
            set(&self.unmet, &[name], usize::from(is_unmet));
        }
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}
