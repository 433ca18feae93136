//! What is counted.

use prometheus::{IntCounterVec, Opts, Registry};

/// Counters of images.
#[derive(Clone)]
pub struct Metrics {
    fetches: IntCounterVec,
}

impl Metrics {
    /// Makes them and shows them in a registry.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let help = "Images of plugins that were looked for, by what came of it: fetched, cached, or why not.";
        let fetches = IntCounterVec::new(Opts::new("trysail_image_fetches_total", help), &["result"])?;
        registry.register(Box::new(fetches.clone()))?;
        Ok(Metrics { fetches })
    }

    pub(crate) fn came(&self, result: &str) {
        self.fetches.with_label_values(&[result]).inc();
    }
}
