//! Configuration objects: their documents, and the summaries that plans read.

pub mod destination_rule;
pub mod envoy_filter;
pub mod virtual_service;

use bytes::Bytes;
use serde_json::Value;
use trysail_model::Object;
use trysail_proto::trysail::facts::v1 as facts;

use crate::documents;
use crate::json;
use crate::services::{creation, reference};
use crate::wire;

/// An object of a kind that has a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Answer of `object`.
    pub record: Bytes,
    /// The document alone.
    pub document: Bytes,
    /// Its entry in `facts.v1.SelectorSummaries`.
    pub summary: Bytes,
    /// Of an EnvoyFilter the answer of `envoy-filter`; of others empty.
    pub patches: Bytes,
}

impl Config {
    /// Reads an object.
    ///
    /// # Errors
    /// The spec does not fit its kind's message.
    pub fn new(object: &Object, domain: &str) -> Result<Config, String> {
        let document = documents::document(object, domain)?;
        let (creation_seconds, _) = creation(object.creation_nanos);
        let record = facts::Object {
            r#ref: Some(reference(&object.reference)),
            api_version: object.api_version.to_string(),
            creation_seconds,
            labels: (*object.labels).clone(),
            annotations: (*object.annotations).clone(),
            spec: document.clone(),
        };
        let spec = object.spec();
        let selector = selector(&object.reference.kind, &spec);
        let has_selector = !selector.is_null();
        let entry = facts::SelectorSummary {
            namespace: object.reference.namespace.to_string(),
            name: object.reference.name.to_string(),
            creation_seconds,
            has_selector,
            selector: pairs(selector),
            target_refs: target_refs(&spec),
            priority: json::at(&spec, &["priority"]).as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
        };
        let mut summary = Vec::new();
        wire::put_message(&mut summary, 1, &entry);
        let patches = match &*object.reference.kind {
            "EnvoyFilter" => wire::encode(&envoy_filter::prepare(object, &documents::decode(&document)?)),
            _ => Bytes::new(),
        };
        Ok(Config { record: wire::encode(&record), document: document.into(), summary: summary.into(), patches })
    }
}

/// The labels that an object selects workloads by; none when it selects none in particular.
pub(crate) fn selected(object: &Object) -> Option<crate::labels::Labels> {
    let spec = object.spec();
    let found = selector(&object.reference.kind, &spec);
    (!found.is_null()).then(|| pairs(found))
}

/// The workload selector of an object, or null.
fn selector<'a>(kind: &str, spec: &'a Value) -> &'a Value {
    match kind {
        "Gateway" => json::at(spec, &["selector"]),
        "DestinationRule" | "EnvoyFilter" | "ServiceEntry" | "Sidecar" => json::at(spec, &["workloadSelector"]),
        _ => json::at(spec, &["selector"]),
    }
}

/// What an object names in place of a selector, in either of the two spellings.
fn target_refs(spec: &Value) -> Vec<facts::selector_summary::TargetRef> {
    let one = |value: &Value| {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        facts::selector_summary::TargetRef {
            group: text("group"),
            kind: text("kind"),
            name: text("name"),
            namespace: text("namespace"),
        }
    };
    let many: Vec<_> = json::at(spec, &["targetRefs"]).as_array().into_iter().flatten().map(one).collect();
    let single = json::at(spec, &["targetRef"]);
    if many.is_empty() && single.is_object() { vec![one(single)] } else { many }
}

/// The labels of a selector, in whichever of the three spellings it has.
fn pairs(selector: &Value) -> crate::labels::Labels {
    let nested = json::text_map(selector, &["labels"]).or_else(|| json::text_map(selector, &["matchLabels"]));
    nested.or_else(|| json::text_map(selector, &[])).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;
    use trysail_proto::istio::networking::v1alpha3::Sidecar;

    use super::*;
    use crate::testing::object;

    fn summary(kind: &str, spec: Value) -> facts::SelectorSummary {
        let config = Config::new(&object(kind, "n", "a", json!({"spec": spec})), "d").unwrap();
        facts::SelectorSummaries::decode(config.summary).unwrap().entries.remove(0)
    }

    #[test]
    fn selectors_of_kinds() {
        assert_eq!(summary("Sidecar", json!({"workloadSelector": {"labels": {"a": "1"}}})).selector["a"], "1");
        assert_eq!(summary("PeerAuthentication", json!({"selector": {"matchLabels": {"a": "1"}}})).selector["a"], "1");
        assert_eq!(summary("Gateway", json!({"selector": {"istio": "x"}})).selector["istio"], "x");
        assert!(!summary("Telemetry", json!({})).has_selector);
        assert!(summary("Sidecar", json!({"workloadSelector": {}})).has_selector);
    }

    #[test]
    fn documents_are_typed() {
        let spec = json!({"egress": [{"hosts": ["./*"]}]});
        let config = Config::new(&object("Sidecar", "n", "a", json!({"spec": spec})), "d").unwrap();
        let record = facts::Object::decode(config.record).unwrap();
        assert_eq!(Sidecar::decode(record.spec.as_slice()).unwrap().egress[0].hosts, ["./*"]);
        let bad = object("Sidecar", "n", "a", json!({"spec": {"egress": 1}}));
        assert!(Config::new(&bad, "d").is_err());
    }
}
