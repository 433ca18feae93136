//! Mesh configuration and networks in files of their own, beside the source.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::Config;
use crate::source::Place;

/// The files beside the folder.
pub(super) struct Files {
    pub(super) mesh: Option<Value>,
    pub(super) networks: Option<Value>,
    /// They go before what the source says, as with a cluster's ConfigMap.
    pub(super) go_first: bool,
}

impl Files {
    pub(super) fn read(config: &Config) -> Files {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).ok()?;
            serde_yaml_ng::from_str(&text)
                .inspect_err(
                    |error| tracing::error!(file = %path.display(), %error, "not YAML; the last good version stays"),
                )
                .ok()
        };
        Files {
            mesh: read(&config.mesh_config),
            networks: read(&config.networks_config),
            go_first: matches!(config.place, Place::Cluster(_)),
        }
    }

    pub(super) fn mesh(&self, source: &trysail_discovery::Settings) -> Value {
        self.choose(&self.mesh, &source.mesh)
    }

    pub(super) fn networks(&self, source: &trysail_discovery::Settings) -> Value {
        self.choose(&self.networks, &source.networks)
    }

    fn choose(&self, file: &Option<Value>, source: &Option<Arc<Value>>) -> Value {
        let (file, source) = (file.clone(), source.as_deref().cloned());
        let chosen = if self.go_first { file.or(source) } else { source.or(file) };
        chosen.unwrap_or(Value::Null)
    }
}
