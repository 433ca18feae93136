//! What a snapshot is made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use trysail_model::{Object, ObjectRef};

use crate::features::Environment;
use crate::mesh::Mesh;
use crate::networks::Networks;

/// Settings of the control plane itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Domain of Kubernetes services' names, `cluster.local`.
    pub domain: String,
    /// Name of the cluster, `Kubernetes`.
    pub cluster_id: String,
    /// Namespace of the control plane, `istio-system`.
    pub system_namespace: String,
    /// Revision of the control plane; empty reads all revisions' objects.
    pub revision: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            system_namespace: "istio-system".to_owned(),
            revision: "default".to_owned(),
        }
    }
}

impl Settings {
    /// A setting by its name in the contract.
    pub fn named(&self, name: &str) -> Option<&str> {
        Some(match name {
            "domain" => &self.domain,
            "cluster-id" => &self.cluster_id,
            "system-namespace" => &self.system_namespace,
            "revision" => &self.revision,
            _ => return None,
        })
    }
}

/// Everything that a snapshot is a function of.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The objects that were accepted, in any order; of two with one name the last counts.
    pub objects: Vec<Arc<Object>>,
    /// MeshConfig as the operator wrote it, to be laid over the defaults; JSON null for none.
    pub mesh: Value,
    /// MeshNetworks; JSON null for none.
    pub networks: Value,
    /// Environment variables; those that are no feature variables are skipped.
    pub environment: BTreeMap<String, String>,
    /// Settings.
    pub settings: Settings,
}

/// What changed since the last snapshot.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Objects that are new or have a new version.
    pub upserted: Vec<Arc<Object>>,
    /// Objects that are gone; one that was also upserted in the same change is gone.
    pub deleted: Vec<ObjectRef>,
    /// A new MeshConfig document (JSON null: back to the defaults).
    pub mesh: Option<Value>,
    /// A new MeshNetworks document (JSON null: none).
    pub networks: Option<Value>,
}

/// What rarely changes and almost everything depends on.
#[derive(Clone, Debug)]
pub struct Base {
    /// Settings.
    pub settings: Settings,
    /// Feature variables.
    pub environment: Environment,
    /// Mesh configuration.
    pub mesh: Mesh,
    /// Networks.
    pub networks: Networks,
}

impl Default for Base {
    fn default() -> Self {
        Base::new(Settings::default(), Environment::default(), &Value::Null, &Value::Null)
    }
}

impl Base {
    /// Reads the documents.
    pub fn new(settings: Settings, environment: Environment, mesh: &Value, networks: &Value) -> Base {
        let networks = Networks::new(networks, &settings.cluster_id);
        Base { settings, environment, mesh: Mesh::new(mesh), networks }
    }

    /// What was malformed and left at its default.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.environment.warnings().iter().chain(&self.mesh.warnings).chain(&self.networks.warnings)
    }
}
