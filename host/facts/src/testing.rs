//! Small objects for tests.

use std::sync::Arc;

use serde_json::{Value, json};
use trysail_model::{Object, ObjectRef};

/// An object; `body` holds `spec`, `status` and `metadata` (its labels, annotations and time are taken out of it).
pub fn object(kind: &str, namespace: &str, name: &str, body: Value) -> Object {
    let map = |key| crate::json::text_map(&body, &["metadata", key]).unwrap_or_default();
    let created = crate::json::number(&body, &["metadata", "created"]);
    Object {
        reference: ObjectRef::new(kind, namespace, name),
        api_version: "v1".into(),
        creation_nanos: i128::from(created) * 1_000_000_000,
        labels: Arc::new(map("labels")),
        annotations: Arc::new(map("annotations")),
        body: body.into(),
        origin: "test".into(),
    }
}

/// A running, ready pod of service `app`.
pub fn pod(namespace: &str, name: &str, app: &str, ip: &str) -> Object {
    object(
        "Pod",
        namespace,
        name,
        json!({
            "metadata": {"labels": {"app": app}},
            "spec": {"serviceAccountName": app, "nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
        }),
    )
}

/// A slice of a service with these addresses, each backed by the pod of that name if one is given.
pub fn slice(namespace: &str, service: &str, name: &str, members: &[(&str, &str)]) -> Object {
    let endpoint = |(ip, pod): &(&str, &str)| {
        let mut endpoint = json!({"addresses": [ip], "conditions": {"ready": true}});
        if !pod.is_empty() {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": pod, "namespace": namespace});
        }
        endpoint
    };
    let endpoints: Vec<Value> = members.iter().map(endpoint).collect();
    object(
        "EndpointSlice",
        namespace,
        name,
        json!({
            "metadata": {"labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }),
    )
}
