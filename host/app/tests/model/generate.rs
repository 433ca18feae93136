//! Random inputs of a control plane: objects of every kind that stages read, mesh configuration, networks, proxies.

pub mod dice;
mod registry;
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use trysail::render::Scripted;
use trysail_model::{Object, ObjectRef, Proxy};

use dice::{ADDRESSES, Dice, NAMES, NAMESPACES, NODES, pruned};

/// A kind that stands twice is met twice as often.
const KINDS: [&str; 23] = [
    "Namespace",
    "Node",
    "Pod",
    "Pod",
    "EndpointSlice",
    "EndpointSlice",
    "Service",
    "Service",
    "Service",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "VirtualService",
    "VirtualService",
    "DestinationRule",
    "DestinationRule",
    "Sidecar",
    "PeerAuthentication",
    "KubernetesGateway",
    "Gateway",
    "Gateway",
    "EnvoyFilter",
    "EnvoyFilter",
];

/// Kinds of rules; the others make up the registry.
const RULES: [&str; 6] =
    ["VirtualService", "DestinationRule", "Sidecar", "Gateway", "PeerAuthentication", "EnvoyFilter"];

fn body(kind: &str, dice: &mut Dice) -> Value {
    let metadata = registry::metadata(kind, dice);
    let spec = if RULES.contains(&kind) { rules::spec(kind, dice) } else { registry::spec(kind, dice) };
    let mut body = json!({"metadata": metadata, "spec": spec});
    registry::complete(kind, &mut body, dice);
    pruned(body)
}

/// An object.
pub fn object(dice: &mut Dice) -> Arc<Object> {
    let kind = dice.pick(&KINDS);
    let reference = match kind {
        "Namespace" => ObjectRef::new(kind, "", dice.pick(&NAMESPACES)),
        "Node" => ObjectRef::new(kind, "", dice.pick(&NODES)),
        _ => ObjectRef::new(kind, dice.pick(&NAMESPACES), dice.pick(&NAMES)),
    };
    let body = body(kind, dice);
    let map = |key: &str| -> BTreeMap<String, String> {
        let pairs = body["metadata"][key].as_object().cloned().unwrap_or_default();
        pairs.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned())).collect()
    };
    Arc::new(Object {
        reference,
        api_version: "v1".into(),
        creation_nanos: i128::from(dice.next() % 3) * 1_000_000_000,
        labels: Arc::new(map("labels")),
        annotations: Arc::new(map("annotations")),
        body: body.into(),
        origin: "model".into(),
    })
}

/// A MeshConfig, or none.
pub fn mesh(dice: &mut Dice) -> Value {
    dice.of([
        Value::Null,
        Value::Null,
        json!({"trustDomain": "td", "trustDomainAliases": ["old"]}),
        json!({"discoverySelectors": [{"matchLabels": {"mesh": "on"}}]}),
        json!({"defaultServiceExportTo": ["."], "defaultVirtualServiceExportTo": ["."], "connectTimeout": "1s"}),
        json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}, "accessLogFile": "/dev/stdout"}),
        json!({"enableAutoMtls": false, "protocolDetectionTimeout": "5s"}),
        json!({"defaultConfig": {"interceptionMode": "TPROXY"}, "defaultHttpRetryPolicy": {"attempts": 5}}),
    ])
}

/// MeshNetworks, or none.
pub fn networks(dice: &mut Dice) -> Value {
    let gateway = json!({"address": "9.9.9.9", "port": 15443});
    let registered = json!({"registryServiceName": "a.n1.svc.cluster.local", "port": 80});
    dice.of([
        Value::Null,
        json!({"networks": {"net-9": {"endpoints": [{"fromCidr": "10.0.0.2/32"}], "gateways": [gateway]}}}),
        json!({"networks": {"net-8": {"endpoints": [{"fromRegistry": "Kubernetes"}], "gateways": [registered]}}}),
    ])
}

/// A proxy.
pub fn proxy(dice: &mut Dice) -> Scripted {
    let (address, name, namespace) = (dice.pick(&ADDRESSES), dice.pick(&NAMES), dice.pick(&NAMESPACES));
    let interception = dice.pick(&["NONE", "TPROXY"]);
    let metadata = pruned(json!({
        "NAMESPACE": namespace,
        "LABELS": registry::labels(dice),
        "CLUSTER_ID": "Kubernetes",
        "ISTIO_VERSION": dice.pick(&["1.31.0", "1.26.2"]),
        "SERVICE_ACCOUNT": name,
        "INTERCEPTION_MODE": dice.maybe(3, json!(interception)),
        "NETWORK": dice.maybe(4, json!("net-1")),
        "DNS_CAPTURE": dice.maybe(4, json!("true")),
    }));
    let kind = dice.pick(&["sidecar", "sidecar", "router"]);
    let node = format!("{kind}~{address}~{name}.{namespace}~{namespace}.svc.cluster.local");
    let locality = [dice.pick(&["", "r1"]).to_owned(), String::new(), String::new()];
    let proxy = Proxy::from_node(&node, metadata.as_object().cloned().expect("it is an object"), locality);
    Scripted { name: node, ..Scripted::plain(proxy.expect("the node is well-formed")) }
}
