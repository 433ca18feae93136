//! The effective mesh configuration: what the operator wrote, laid over istiod's defaults.
//!
//! Every top-level field overrides the default as a whole, except: `defaultConfig` is merged field by field (and in it
//! `proxyMetadata` entry by entry, `proxyHeaders` header by header), `defaultProviders` field by field,
//! `extensionProviders` by name, and `trustDomainAliases` are joined.
//!
//! What cannot be read is left out with a warning and the default holds; nothing rejects the whole.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value, json};
use trysail_codec::json::{Options, from_json};
use trysail_proto::descriptors;
use trysail_proto::istio::mesh::v1alpha1::{LabelSelector, MeshConfig, ProxyConfig};

use crate::labels::{self, Labels};
use crate::wire;

const MESH_CONFIG: &str = "istio.mesh.v1alpha1.MeshConfig";
const PROXY_CONFIG: &str = "istio.mesh.v1alpha1.ProxyConfig";
const DEFAULT_PROVIDERS: &str = "istio.mesh.v1alpha1.MeshConfig.DefaultProviders";

/// The effective mesh configuration.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Decoded.
    pub config: MeshConfig,
    /// Its encoded top-level fields by number.
    fields: BTreeMap<u32, Vec<u8>>,
    /// What could not be read.
    pub warnings: Vec<String>,
}

impl Mesh {
    /// Lays a document (JSON null: nothing) over the defaults.
    pub fn new(overlay: &Value) -> Mesh {
        let mut warnings = Vec::new();
        let empty = Map::new();
        let overlay = overlay.as_object().unwrap_or(&empty);
        let base = message_fields(MESH_CONFIG, &defaults(), &mut warnings);
        let before: MeshConfig = join(&base);
        let mut fields = base;
        override_fields(MESH_CONFIG, &mut fields, overlay, &mut warnings);
        let mut config: MeshConfig = join(&fields);

        let part = |name: &str| overlay.get(name).and_then(Value::as_object);
        let proxy_overlay = part("defaultConfig").or_else(|| part("default_config"));
        let proxy = before.default_config.clone().unwrap_or_default();
        config.default_config = Some(merge_proxy_config(proxy, proxy_overlay.unwrap_or(&empty), &mut warnings));

        let mut providers = wire::fields(&before.default_providers.clone().unwrap_or_default().encode_to_vec());
        let given = part("defaultProviders").or_else(|| part("default_providers"));
        override_fields(DEFAULT_PROVIDERS, &mut providers, given.unwrap_or(&empty), &mut warnings);
        config.default_providers = Some(join(&providers));

        let given = std::mem::replace(&mut config.extension_providers, before.extension_providers);
        for provider in given {
            match config.extension_providers.iter_mut().find(|p| p.name == provider.name) {
                Some(known) => known.provider = provider.provider,
                None => config.extension_providers.push(provider),
            }
        }
        let aliases = before.trust_domain_aliases.into_iter().chain(std::mem::take(&mut config.trust_domain_aliases));
        config.trust_domain_aliases = aliases.collect::<BTreeSet<_>>().into_iter().collect();
        let fields = wire::fields(&config.encode_to_vec());
        Mesh { config, fields, warnings }
    }

    /// The message with only the named top-level fields; unknown names are skipped.
    pub fn project(&self, names: &[String]) -> Bytes {
        project(MESH_CONFIG, &self.fields, names)
    }

    /// True when a top-level field is the same in both.
    pub fn same(&self, other: &Mesh, name: &str) -> bool {
        let number = field_number(MESH_CONFIG, name);
        number.is_none_or(|number| self.fields.get(&number) == other.fields.get(&number))
    }

    /// Does the operator want this namespace's objects read at all?
    pub fn discovers(&self, namespace_labels: &Labels) -> bool {
        let selectors = &self.config.discovery_selectors;
        selectors.is_empty() || selectors.iter().any(|selector| selector_matches(selector, namespace_labels))
    }

    /// The SPIFFE identity of a service account.
    pub fn identity(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.config.trust_domain.replace('@', "."))
    }
}

/// Lays a proxy's own configuration over a base.
pub fn merge_proxy_config(base: ProxyConfig, overlay: &Map<String, Value>, warnings: &mut Vec<String>) -> ProxyConfig {
    let mut fields = wire::fields(&base.encode_to_vec());
    override_fields(PROXY_CONFIG, &mut fields, overlay, warnings);
    let mut merged: ProxyConfig = join(&fields);
    for (key, value) in base.proxy_metadata {
        merged.proxy_metadata.entry(key).or_insert(value);
    }
    if let (Some(headers), Some(before)) = (&mut merged.proxy_headers, base.proxy_headers) {
        if headers.forwarded_client_cert == 0 {
            headers.forwarded_client_cert = before.forwarded_client_cert;
        }
        headers.request_id = headers.request_id.take().or(before.request_id);
        headers.attempt_count = headers.attempt_count.take().or(before.attempt_count);
        headers.server = headers.server.take().or(before.server);
        headers.envoy_debug_headers = headers.envoy_debug_headers.take().or(before.envoy_debug_headers);
    }
    merged
}

/// A ProxyConfig with only the named fields.
pub fn project_proxy_config(config: &ProxyConfig, names: &[String]) -> Bytes {
    project(PROXY_CONFIG, &wire::fields(&config.encode_to_vec()), names)
}

/// Does a label selector, with its expressions, accept the labels? An empty one accepts all.
pub fn selector_matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let exact = selector.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v));
    exact
        && selector.match_expressions.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match requirement.operator.as_str() {
                "In" => value.is_some_and(|v| requirement.values.contains(v)),
                "NotIn" => value.is_none_or(|v| !requirement.values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// The labels in a form that comparisons of namespaces need.
pub fn network_of(namespace_labels: &Labels) -> &str {
    namespace_labels.get(labels::NETWORK).map_or("", String::as_str)
}

fn project(message: &str, fields: &BTreeMap<u32, Vec<u8>>, names: &[String]) -> Bytes {
    let numbers: BTreeSet<u32> = names.iter().filter_map(|name| field_number(message, name)).collect();
    let mut out = Vec::new();
    for bytes in numbers.iter().filter_map(|number| fields.get(number)) {
        out.extend_from_slice(bytes);
    }
    out.into()
}

fn field_number(message: &str, name: &str) -> Option<u32> {
    Some(descriptors::pool().get_message_by_name(message)?.get_field_by_name(name)?.number())
}

fn join<M: Message + Default>(fields: &BTreeMap<u32, Vec<u8>>) -> M {
    let bytes: Vec<u8> = fields.values().flatten().copied().collect();
    M::decode(bytes.as_slice()).expect("fields that were encoded from this message decode")
}

fn message_fields(message: &str, json: &Value, warnings: &mut Vec<String>) -> BTreeMap<u32, Vec<u8>> {
    let mut fields = BTreeMap::new();
    let empty = Map::new();
    override_fields(message, &mut fields, json.as_object().unwrap_or(&empty), warnings);
    fields
}

/// Replaces each field that the document has, whatever it was; a null changes nothing.
fn override_fields(
    message: &str,
    fields: &mut BTreeMap<u32, Vec<u8>>,
    overlay: &Map<String, Value>,
    warnings: &mut Vec<String>,
) {
    let descriptor = descriptors::pool().get_message_by_name(message).expect("the pool has Istio's mesh messages");
    for (key, value) in overlay.iter().filter(|(_, value)| !value.is_null()) {
        let Some(field) = descriptor.get_field_by_json_name(key).or_else(|| descriptor.get_field_by_name(key)) else {
            warnings.push(format!("{message} has no field {key:?}"));
            continue;
        };
        let document = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
        match from_json(message, &document, Options::lenient()) {
            Ok(bytes) => {
                for sibling in field.containing_oneof().iter().flat_map(|oneof| oneof.fields()) {
                    fields.remove(&sibling.number());
                }
                fields.remove(&field.number());
                fields.extend(wire::fields(&bytes));
            }
            Err(error) => warnings.push(format!("{message}: {error}")),
        }
    }
}

/// istiod's defaults as its code has them; those of its Helm chart come as a document like any other.
fn defaults() -> Value {
    json!({
        "enableTracing": true,
        "protocolDetectionTimeout": "0s",
        "ingressService": "istio-ingressgateway",
        "ingressControllerMode": "STRICT",
        "ingressClass": "istio",
        "trustDomain": "cluster.local",
        "enableAutoMtls": true,
        "outboundTrafficPolicy": {"mode": "ALLOW_ANY"},
        "inboundTrafficPolicy": {"mode": "PASSTHROUGH"},
        "localityLbSetting": {"enabled": true},
        "defaultConfig": {
            "configPath": "./etc/istio/proxy",
            "serviceCluster": "istio-proxy",
            "drainDuration": "45s",
            "terminationDrainDuration": "5s",
            "proxyAdminPort": 15000,
            "controlPlaneAuthPolicy": "MUTUAL_TLS",
            "discoveryAddress": "istiod.istio-system.svc:15012",
            "binaryPath": "/usr/local/bin/envoy",
            "statNameLength": 189,
            "statusPort": 15020,
        },
        "rootNamespace": "istio-system",
        "proxyListenPort": 15001,
        "proxyInboundListenPort": 15006,
        "connectTimeout": "10s",
        "defaultServiceExportTo": ["*"],
        "defaultVirtualServiceExportTo": ["*"],
        "defaultDestinationRuleExportTo": ["*"],
        "dnsRefreshRate": "60s",
        "enablePrometheusMerge": true,
        "defaultProviders": {},
        "extensionProviders": [
            {"name": "prometheus", "prometheus": {}},
            {"name": "stackdriver", "stackdriver": {}},
            {"name": "envoy", "envoyFileAccessLog": {"path": "/dev/stdout"}},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_all_known() {
        let mesh = Mesh::new(&Value::Null);
        assert_eq!(mesh.warnings, [""; 0]);
        assert_eq!(mesh.config.proxy_inbound_listen_port, 15006);
        assert_eq!(mesh.config.default_config.as_ref().map(|c| c.status_port), Some(15020));
        assert!(mesh.config.protocol_detection_timeout.is_some());
        assert_eq!(mesh.identity("n", "a"), "spiffe://cluster.local/ns/n/sa/a");
    }

    #[test]
    fn overrides_and_merges() {
        let mesh = Mesh::new(&json!({
            "enableTracing": false,
            "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
            "defaultConfig": {"proxyMetadata": {"A": "1"}, "statusPort": 1},
            "extensionProviders": [{"name": "envoy", "envoyFileAccessLog": {"path": "/x"}}, {"name": "z", "zipkin": {"service": "s", "port": 1}}],
            "trustDomainAliases": ["b", "a", "b"],
            "noSuchField": 1,
        }));
        assert!(!mesh.config.enable_tracing);
        let proxy = mesh.config.default_config.clone().unwrap();
        assert_eq!((proxy.status_port, proxy.proxy_admin_port), (1, 15000));
        let names: Vec<&str> = mesh.config.extension_providers.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["prometheus", "stackdriver", "envoy", "z"]);
        assert_eq!(mesh.config.trust_domain_aliases, ["a", "b"]);
        assert_eq!(mesh.warnings.len(), 1);
        let same = Mesh::new(&Value::Null);
        assert!(!mesh.same(&same, "enable_tracing") && mesh.same(&same, "connect_timeout"));
    }

    #[test]
    fn projects_fields() {
        let mesh = Mesh::new(&Value::Null);
        let bytes = mesh.project(&["trust_domain".into(), "nothing".into()]);
        let only = MeshConfig::decode(bytes).unwrap();
        assert_eq!(only, MeshConfig { trust_domain: "cluster.local".into(), ..Default::default() });
    }

    #[test]
    fn discovery_selectors() {
        let mesh = Mesh::new(&json!({"discoverySelectors": [
            {"matchLabels": {"mesh": "on"}}, {"matchExpressions": [{"key": "env", "operator": "In", "values": ["prod"]}]}
        ]}));
        let labels = |k: &str, v: &str| Labels::from([(k.to_owned(), v.to_owned())]);
        assert!(mesh.discovers(&labels("mesh", "on")) && mesh.discovers(&labels("env", "prod")));
        assert!(!mesh.discovers(&labels("env", "dev")) && Mesh::new(&Value::Null).discovers(&Labels::new()));
    }
}
