//! What is known of a connected proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

/// A proxy as it introduced itself, with what the registry adds. Immutable: a change makes a new one.
///
/// The fields are ground facts; which of them a translation may see, and in what form, the query kinds decide.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// `node.id`, `sidecar~10.0.0.1~name.ns~ns.svc.cluster.local`.
    pub node_id: Arc<str>,
    /// First part of the id: `sidecar`, `router`, `waypoint`, `ztunnel`.
    pub proxy_type: Arc<str>,
    /// Third part of the id, `name.namespace`.
    pub id: Arc<str>,
    /// IP addresses: metadata INSTANCE_IPS, else the second part of the id.
    pub addresses: Vec<String>,
    /// Fourth part of the id.
    pub dns_domain: Arc<str>,
    /// Metadata NAMESPACE, else the first label of `dns_domain`.
    pub namespace: Arc<str>,
    /// Node metadata as sent.
    pub metadata: Arc<Map<String, Value>>,
    /// Region, zone, sub-zone of `node.locality`.
    pub node_locality: [String; 3],
    /// Effective labels: those of the workload known by address, else metadata LABELS.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Effective region, zone, sub-zone.
    pub locality: [String; 3],
    /// Effective network.
    pub network: Arc<str>,
    /// The service ports that its workload is an endpoint of, as the facts encode them; empty until the registry was asked.
    pub targets: Arc<[u8]>,
    /// The authenticated identity (SPIFFE id), if the connection has one.
    pub identity: Option<Arc<str>>,
}

/// Why a node was refused; the text is what the client sees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// No node in the first request.
    #[error("missing node information")]
    Missing,
    /// The id does not have four parts.
    #[error("missing parts in the service node {0:?}: expected type~ip~id~domain")]
    Parts(String),
    /// The first part of the id is not a type of proxy.
    #[error("invalid node type in the service node {0:?} (valid types: sidecar, router, waypoint, ztunnel)")]
    Type(String),
    /// Neither INSTANCE_IPS nor the id has an IP address.
    #[error("no valid IP address in the service node {0:?} or its metadata INSTANCE_IPS")]
    Address(String),
}

impl Proxy {
    /// Reads node id and metadata as istiod does.
    ///
    /// # Errors
    /// A [`NodeError`] that says which part of the id is wrong.
    pub fn from_node(id: &str, metadata: Map<String, Value>, locality: [String; 3]) -> Result<Proxy, NodeError> {
        let parts: Vec<&str> = id.split('~').collect();
        let [proxy_type, address, name, domain] = parts[..] else { return Err(NodeError::Parts(id.to_owned())) };
        if !["sidecar", "router", "waypoint", "ztunnel"].contains(&proxy_type) {
            return Err(NodeError::Type(id.to_owned()));
        }
        let instance_ips = metadata.get("INSTANCE_IPS").map(strings).unwrap_or_default();
        let valid = |text: &String| text.parse::<std::net::IpAddr>().is_ok();
        let mut addresses: Vec<String> = instance_ips.into_iter().filter(valid).collect();
        if addresses.is_empty() {
            addresses.extend(Some(address.to_owned()).filter(valid));
        }
        if addresses.is_empty() {
            return Err(NodeError::Address(id.to_owned()));
        }
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
        let namespace = match text("NAMESPACE") {
            "" => domain.split('.').next().unwrap_or_default(),
            given => given,
        };
        let labels = metadata.get("LABELS").and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
        Ok(Proxy {
            node_id: id.into(),
            proxy_type: proxy_type.into(),
            id: name.into(),
            addresses,
            dns_domain: domain.into(),
            namespace: namespace.into(),
            network: text("NETWORK").into(),
            labels: Arc::new(labels),
            locality: locality.clone(),
            node_locality: locality,
            metadata: Arc::new(metadata),
            targets: [].into(),
            identity: None,
        })
    }

    /// A metadata value as text: strings as they are, booleans and numbers printed.
    pub fn metadata_text(&self, key: &str) -> Option<String> {
        match self.metadata.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }
}

/// A list that may be given as a JSON list or as text with commas.
fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text.split(',').map(|part| part.trim().to_owned()).filter(|p| !p.is_empty()).collect(),
        Value::Array(items) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(json: Value) -> Map<String, Value> {
        json.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn reads_a_sidecar() {
        let node = metadata(serde_json::json!({"INSTANCE_IPS": "10.0.0.1, fd00::1", "LABELS": {"app": "a"}}));
        let proxy = Proxy::from_node("sidecar~1.1.1.1~a.ns~ns.svc.cluster.local", node, Default::default()).unwrap();
        assert_eq!(proxy.addresses, ["10.0.0.1", "fd00::1"]);
        assert_eq!(&*proxy.namespace, "ns");
        assert_eq!(proxy.labels["app"], "a");
    }

    #[test]
    fn names_the_part_that_is_wrong() {
        let node = |id| Proxy::from_node(id, Map::new(), Default::default()).unwrap_err();
        assert!(matches!(node("sidecar~1.1.1.1~a"), NodeError::Parts(_)));
        assert!(matches!(node("proxy~1.1.1.1~a~b"), NodeError::Type(_)));
        assert!(matches!(node("sidecar~nowhere~a~b"), NodeError::Address(_)));
    }
}
