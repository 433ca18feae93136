//! The facts as debug pages show them, in the shapes of istiod's pages.
//!
//! **Invariant:** a dump is for people and tools that look on. Nothing that is served depends on it, and secrets are not in
//! it because they are not among the facts.

mod configs;
mod problems;
mod registry;

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};
use trysail_codec::json::{Names, to_json_named};

use crate::FactsSnapshot;
pub use problems::Problems;

impl FactsSnapshot {
    /// The effective mesh configuration.
    pub fn dump_mesh(&self) -> Value {
        let bytes = prost::Message::encode_to_vec(&self.base().mesh.config);
        to_json_named("istio.mesh.v1alpha1.MeshConfig", &bytes, Names::Json).unwrap_or_default()
    }

    /// Namespace whose objects hold for the whole mesh.
    pub fn root_namespace(&self) -> &str {
        &self.base().mesh.config.root_namespace
    }
}

/// A map of texts; null when it is empty, as Go prints a map that was never made.
fn text_map<'a>(entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Value {
    let map: Map<String, Value> = entries.into_iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
    if map.is_empty() { Value::Null } else { Value::Object(map) }
}

/// A time as Go prints it; its zero time for an object that has none.
fn time(seconds: i64) -> String {
    let since = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    match since {
        Some(seconds) => prost_types::Timestamp::from(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(),
        None => "0001-01-01T00:00:00Z".to_owned(),
    }
}

#[cfg(test)]
mod tests;
