//! What a snapshot is made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use trysail_model::{Object, ObjectRef};

use crate::config::destination_rule::covers;
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
    /// Hosts, or wildcards, whose endpoints other clusters must not use (true), or may (false).
    cluster_local: BTreeMap<String, bool>,
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
        let mesh = Mesh::new(mesh);
        let cluster_local = cluster_local_hosts(&mesh, &settings.domain);
        Base { settings, environment, mesh, networks, cluster_local }
    }

    /// The same with another mesh configuration or other networks.
    pub fn with(&self, mesh: Option<&Value>, networks: Option<&Value>) -> Base {
        let mesh = mesh.map_or_else(|| self.mesh.clone(), Mesh::new);
        let read = |document| Networks::new(document, &self.settings.cluster_id);
        Base {
            settings: self.settings.clone(),
            environment: self.environment.clone(),
            networks: networks.map_or_else(|| self.networks.clone(), read),
            cluster_local: cluster_local_hosts(&mesh, &self.settings.domain),
            mesh,
        }
    }

    /// Are the endpoints of a host only for proxies of their own cluster? The most specific statement counts.
    pub fn is_cluster_local(&self, host: &str) -> bool {
        if let Some(stated) = self.cluster_local.get(host) {
            return *stated;
        }
        let wildcards = self.cluster_local.iter().filter(|(stated, _)| stated.starts_with('*') && covers(stated, host));
        wildcards.max_by_key(|(stated, _)| stated.len()).is_some_and(|(_, local)| *local)
    }

    /// What was malformed and left at its default.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.environment.warnings().iter().chain(&self.mesh.warnings).chain(&self.networks.warnings)
    }
}

/// What mesh configuration says of hosts, and of those that are local by default unless it says that they are not.
fn cluster_local_hosts(mesh: &Mesh, domain: &str) -> BTreeMap<String, bool> {
    let mut stated = BTreeMap::new();
    let mut defaults = vec![format!("*.kube-system.svc.{domain}"), format!("kubernetes.default.svc.{domain}")];
    let discovery = mesh.config.default_config.as_ref().map_or("", |config| &config.discovery_address);
    let own = discovery.rsplit_once(':').map_or(discovery, |(host, _)| host);
    if !own.is_empty() {
        defaults.push(if own.ends_with(domain) { own.to_owned() } else { format!("{own}.{domain}") });
    }
    for settings in &mesh.config.service_settings {
        let local = settings.settings.as_ref().is_some_and(|settings| settings.cluster_local);
        for host in &settings.hosts {
            if !local {
                defaults.retain(|default| {
                    !(default == host || default.strip_prefix('*').is_some_and(|d| host.ends_with(d)))
                });
            }
            stated.insert(host.clone(), local);
        }
    }
    stated.extend(defaults.into_iter().map(|host| (host, true)));
    stated
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_of_one_cluster() {
        let base = |mesh: Value| Base::new(Settings::default(), Environment::default(), &mesh, &Value::Null);
        let default = base(Value::Null);
        assert!(default.is_cluster_local("dns.kube-system.svc.cluster.local"));
        assert!(default.is_cluster_local("istiod.istio-system.svc.cluster.local"));
        assert!(!default.is_cluster_local("a.n.svc.cluster.local"));
        let stated = base(json!({"serviceSettings": [
            {"settings": {"clusterLocal": true}, "hosts": ["*.n.svc.cluster.local"]},
            {"settings": {"clusterLocal": false}, "hosts": ["a.n.svc.cluster.local", "*.kube-system.svc.cluster.local"]},
        ]}));
        assert!(stated.is_cluster_local("b.n.svc.cluster.local") && !stated.is_cluster_local("a.n.svc.cluster.local"));
        assert!(!stated.is_cluster_local("dns.kube-system.svc.cluster.local"));
    }
}
