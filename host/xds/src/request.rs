//! Requests of both protocols in one form, and what a stream's first message must be.

use std::collections::BTreeMap;

use prost_types::Struct;
use prost_types::value::Kind as Wire;
use serde_json::{Map, Number, Value};
use tonic::Status;
use trysail_model::Proxy;
use trysail_model::proxy::NodeError;
use trysail_proto::envoy::config::core::v3::Node;
use trysail_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::nack;

/// Which form of the protocol a stream speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// State of the world: `StreamAggregatedResources`.
    Sotw,
    /// Incremental: `DeltaAggregatedResources`.
    Delta,
}

/// A request of either protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Which protocol it came by.
    pub protocol: Protocol,
    /// Who asks; only read in the first request of a stream.
    pub node: Option<Node>,
    /// The type asked for.
    pub type_url: String,
    /// Nonce of the response that this acknowledges or rejects; empty for a request of its own.
    pub nonce: String,
    /// Status code and Envoy's words, when it rejects a response.
    pub error: Option<(i32, String)>,
    /// State of the world: all names wanted from now on. Delta: names to subscribe to.
    pub names: Vec<String>,
    /// Delta: names no longer wanted.
    pub unsubscribe: Vec<String>,
    /// Delta: versions of what the client has from an earlier stream, by name.
    pub initial_versions: BTreeMap<String, String>,
}

/// Bytes of the message in a status.
const MAX_MESSAGE: usize = 1024;

/// VMs report their health with it: it asks for nothing.
const HEALTH_TYPE: &str = "type.googleapis.com/istio.v1.HealthInformation";

impl Request {
    /// True for a health report of a VM, which is no request for resources.
    pub(crate) fn is_health(&self) -> bool {
        self.type_url == HEALTH_TYPE
    }

    /// True for types that show internals and so need an identity, which a plaintext stream has not.
    pub(crate) fn is_debug(&self) -> bool {
        let debug = self.type_url.strip_prefix("istio.io/debug");
        debug.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) || self.type_url == "istio.io/connect"
    }
}

impl From<DiscoveryRequest> for Request {
    fn from(xds: DiscoveryRequest) -> Self {
        Request {
            protocol: Protocol::Sotw,
            node: xds.node,
            type_url: xds.type_url,
            nonce: xds.response_nonce,
            error: xds.error_detail.map(|status| (status.code, status.message)),
            names: xds.resource_names,
            unsubscribe: Vec::new(),
            initial_versions: BTreeMap::new(),
        }
    }
}

impl From<DeltaDiscoveryRequest> for Request {
    fn from(xds: DeltaDiscoveryRequest) -> Self {
        Request {
            protocol: Protocol::Delta,
            node: xds.node,
            type_url: xds.type_url,
            nonce: xds.response_nonce,
            error: xds.error_detail.map(|status| (status.code, status.message)),
            names: xds.resource_names_subscribe,
            unsubscribe: xds.resource_names_unsubscribe,
            initial_versions: xds.initial_resource_versions,
        }
    }
}

/// Reads the proxy from the first request of a stream, as istiod does. Pure, and total over whatever a client sends.
///
/// # Errors
/// `InvalidArgument` with what is wrong: no node or an empty id, an id that has not four parts, an unknown type of
/// proxy, no IP address, metadata of the wrong JSON type.
pub fn first_message(request: &Request) -> Result<Proxy, Status> {
    // The id is quoted, and a status travels in a header: one that is too long would look like another error.
    let invalid = |error: NodeError| Status::invalid_argument(nack::cut(&error.to_string(), MAX_MESSAGE));
    let node = request.node.as_ref().filter(|node| !node.id.is_empty()).ok_or_else(|| invalid(NodeError::Missing))?;
    let metadata = node.metadata.as_ref().map(object).unwrap_or_default();
    check_types(&metadata)?;
    let locality = node.locality.clone().unwrap_or_default();
    Proxy::from_node(&node.id, metadata, [locality.region, locality.zone, locality.sub_zone]).map_err(invalid)
}

/// Metadata that are text where istiod reads them: it refuses a node whose value is of another JSON type.
const TEXTS: [&str; 12] = [
    "CLUSTER_ID",
    "GENERATOR",
    "INTERCEPTION_MODE",
    "ISTIO_REVISION",
    "ISTIO_VERSION",
    "MESH_ID",
    "NAME",
    "NAMESPACE",
    "NETWORK",
    "NODE_NAME",
    "SERVICE_ACCOUNT",
    "WORKLOAD_NAME",
];
/// Metadata that are objects with text values.
const TEXT_MAPS: [&str; 3] = ["ANNOTATIONS", "LABELS", "STATIC_LABELS"];

fn check_types(metadata: &Map<String, Value>) -> Result<(), Status> {
    let refuse = |key: &str, wanted: &str| {
        Err(Status::invalid_argument(format!("failed to unmarshal node metadata: {key} must be {wanted}")))
    };
    for key in TEXTS {
        if !metadata.get(key).is_none_or(|value| value.is_string() || value.is_null()) {
            return refuse(key, "a string");
        }
    }
    for key in TEXT_MAPS {
        let Some(value) = metadata.get(key).filter(|value| !value.is_null()) else {
            continue;
        };
        let texts = value.as_object().is_some_and(|map| map.values().all(|v| v.is_string() || v.is_null()));
        if !texts {
            return refuse(key, "an object of strings");
        }
    }
    Ok(())
}

fn object(fields: &Struct) -> Map<String, Value> {
    fields.fields.iter().map(|(key, value)| (key.clone(), json(value))).collect()
}

/// As deep as the message is, which the protobuf decoder limits to 100 levels.
fn json(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Wire::NullValue(_)) => Value::Null,
        Some(Wire::NumberValue(number)) => number_json(*number),
        Some(Wire::StringValue(text)) => Value::String(text.clone()),
        Some(Wire::BoolValue(truth)) => Value::Bool(*truth),
        Some(Wire::StructValue(fields)) => Value::Object(object(fields)),
        Some(Wire::ListValue(list)) => Value::Array(list.values.iter().map(json).collect()),
    }
}

/// Whole numbers as integers, so that a port prints as `8080` and not as `8080.0`; what is no number as null.
fn number_json(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use trysail_proto::envoy::config::core::v3::Locality;

    use super::*;

    const ID: &str = "sidecar~10.0.0.1~a-1.shop~shop.svc.cluster.local";

    fn wire(kind: Wire) -> prost_types::Value {
        prost_types::Value { kind: Some(kind) }
    }

    fn request(id: &str, metadata: &[(&str, Wire)]) -> Request {
        let fields = metadata.iter().map(|(key, kind)| ((*key).to_owned(), wire(kind.clone()))).collect();
        let locality = Locality { region: "r".into(), zone: "z".into(), sub_zone: String::new() };
        let node =
            Node { id: id.into(), metadata: Some(Struct { fields }), locality: Some(locality), ..Node::default() };
        DiscoveryRequest { node: Some(node), ..DiscoveryRequest::default() }.into()
    }

    #[test]
    fn reads_the_node() {
        let text = |text: &str| Wire::StringValue(text.into());
        let labels = Struct { fields: [("app".to_owned(), wire(text("a")))].into() };
        let metadata = [
            ("NAMESPACE", text("other")),
            ("LABELS", Wire::StructValue(labels)),
            ("PORT", Wire::NumberValue(8080.0)),
            ("SHARE", Wire::NumberValue(0.5)),
            ("BAD", Wire::NumberValue(f64::NAN)),
        ];
        let proxy = first_message(&request(ID, &metadata)).unwrap();
        assert_eq!((&*proxy.namespace, &*proxy.id, &*proxy.proxy_type), ("other", "a-1.shop", "sidecar"));
        assert_eq!(proxy.labels["app"], "a");
        assert_eq!(proxy.node_locality, ["r", "z", ""]);
        assert_eq!(proxy.metadata_text("PORT").unwrap(), "8080");
        assert_eq!(proxy.metadata_text("SHARE").unwrap(), "0.5");
        assert_eq!(proxy.metadata_text("BAD"), None);
    }

    #[test]
    fn refuses_what_istiod_refuses() {
        let text = |text: &str| Wire::StringValue(text.into());
        let none: Request = DiscoveryRequest::default().into();
        let cases = [
            (none, "missing node information"),
            (request("", &[]), "missing node information"),
            (request("sidecar~10.0.0.1~a.shop", &[]), "missing parts in the service node"),
            (request("foo~10.0.0.1~a.shop~d", &[]), "invalid node type"),
            (request("sidecar~banana~a.shop~d", &[]), "no valid IP address"),
            (request("sidecar~~a.shop~d", &[]), "no valid IP address"),
            (request(ID, &[("LABELS", text("x"))]), "failed to unmarshal node metadata"),
            (request(ID, &[("NAMESPACE", Wire::BoolValue(true))]), "failed to unmarshal node metadata"),
        ];
        for (request, words) in cases {
            let status = first_message(&request).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(words), "{} should say {words}", status.message());
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        // A cheap stand-in for the fuzz target: every mutation of a good message, byte by byte.
        let good = DiscoveryRequest {
            node: request(ID, &[("NAMESPACE", Wire::StringValue("x".into()))]).node,
            type_url: "t".into(),
            ..DiscoveryRequest::default()
        };
        let bytes = good.encode_to_vec();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                if let Ok(xds) = DiscoveryRequest::decode(&*bytes) {
                    let _ = first_message(&xds.into());
                }
                if let Ok(xds) = DeltaDiscoveryRequest::decode(&*bytes) {
                    let _ = first_message(&xds.into());
                }
            }
        }
    }

    #[test]
    fn debug_types_are_told_apart() {
        let is_debug =
            |url: &str| Request::from(DiscoveryRequest { type_url: url.into(), ..Default::default() }).is_debug();
        assert!(is_debug("istio.io/debug") && is_debug("istio.io/debug/syncz") && is_debug("istio.io/connect"));
        assert!(!is_debug("istio.io/debugging") && !is_debug(""));
    }
}
