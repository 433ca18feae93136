//! What is kept of an object in memory: for the kinds that a cluster has very many of, only what facts are read from.
//!
//! Whoever starts to read another field of these kinds adds it here; the suite that compares a folder with a cluster tells
//! when it was forgotten.

use std::sync::Arc;

use serde_json::{Map, Value};
use trysail_model::Object;

/// Paths that are kept; lists are passed through.
fn kept(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "Pod" => &[
            "metadata.deletionTimestamp",
            "metadata.generateName",
            "metadata.ownerReferences.controller",
            "metadata.ownerReferences.kind",
            "metadata.ownerReferences.name",
            "spec.containers.ports.containerPort",
            "spec.containers.ports.name",
            "spec.containers.ports.protocol",
            "spec.hostNetwork",
            "spec.hostname",
            "spec.initContainers.ports.containerPort",
            "spec.initContainers.ports.name",
            "spec.initContainers.ports.protocol",
            "spec.initContainers.restartPolicy",
            "spec.nodeName",
            "spec.serviceAccountName",
            "spec.subdomain",
            "status.conditions.status",
            "status.conditions.type",
            "status.phase",
            "status.podIP",
            "status.podIPs",
        ],
        "Node" => &["status.addresses"],
        // Mesh configuration, and roots that gateways trust. All else is other programs', and locks that move every few seconds.
        "ConfigMap" => &["data.ca.crl", "data.ca.crt", "data.cacert", "data.crl", "data.mesh", "data.meshNetworks"],
        "EndpointSlice" => &[
            "addressType",
            "endpoints.addresses",
            "endpoints.conditions",
            "endpoints.targetRef.kind",
            "endpoints.targetRef.name",
            "endpoints.targetRef.namespace",
            "ports.name",
            "ports.port",
        ],
        "Service" => &["spec", "status.loadBalancer", "metadata.creationTimestamp"],
        _ => return None,
    })
}

/// Kinds whose status is an input; the status of others is what controllers say to people.
const STATUS_READ: [&str; 8] =
    ["KubernetesGateway", "ListenerSet", "Node", "Pod", "Service", "ServiceEntry", "ServiceImport", "WorkloadEntry"];

/// Where the secret `cacerts` has the authority's key.
const SIGNING_KEY: &str = "ca-key.pem";

/// Label of ConfigMaps that hold components of plugins.
const PLUGIN: &str = "trysail.io/plugin";

/// Copies of the object that tools leave in annotations, and who wrote which field.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Drops what nobody reads.
pub(crate) fn prune(object: &mut Object) {
    let kind = &*object.reference.kind;
    // Of one that holds plugins all is wanted.
    let holds_plugins = kind == "ConfigMap" && object.labels.contains_key(PLUGIN);
    let paths = kept(kind).filter(|_| !holds_plugins);
    let is_kept =
        |key: &str| key != LAST_APPLIED && (paths.is_none() || kind == "Service" || key.contains("istio.io/"));
    if !object.annotations.keys().all(|key| is_kept(key)) {
        Arc::make_mut(&mut object.annotations).retain(|key, _| is_kept(key));
    }
    let mut body = std::mem::replace(&mut object.body, Value::Null.into()).into_value();
    if let Some(paths) = paths {
        body = pick(body, paths);
    }
    // The authority's signing key, should one be plugged in: the signer reads it from its files, and no proxy is served it.
    if kind == "Secret" {
        for values in ["data", "stringData"] {
            body.get_mut(values).and_then(Value::as_object_mut).and_then(|data| data.shift_remove(SIGNING_KEY));
        }
    }
    if kind == "Pod"
        && let Some(conditions) = body.pointer_mut("/status/conditions").and_then(Value::as_array_mut)
    {
        conditions.retain(|condition| condition.get("type").is_some_and(|kind| kind == "Ready"));
    }
    if let Some(body) = body.as_object_mut() {
        if !STATUS_READ.contains(&kind) {
            body.shift_remove("status");
        }
        if let Some(annotations) = body.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")) {
            annotations.as_object_mut().and_then(|annotations| annotations.shift_remove(LAST_APPLIED));
        }
    }
    object.body = body.into();
    // Of these there are very many, and they are read once.
    if paths.is_some() && kind != "ConfigMap" {
        object.body = object.body.packed();
    }
}

/// The parts of a value that paths lead to.
fn pick(value: Value, paths: &[&str]) -> Value {
    match value {
        Value::Object(fields) => {
            let mut picked = Vec::new();
            for (field, value) in fields {
                let below = |path: &&str| path.strip_prefix(&*field).and_then(|rest| rest.strip_prefix('.')).is_some();
                if paths.contains(&&*field) {
                    picked.push((field, value));
                } else if paths.iter().any(below) {
                    let rest: Vec<&str> =
                        paths.iter().filter_map(|path| path.strip_prefix(&*field)?.strip_prefix('.')).collect();
                    let value = pick(value, &rest);
                    picked.push((field, value));
                }
            }
            let mut map = Map::with_capacity(picked.len());
            map.extend(picked);
            Value::Object(map)
        }
        Value::Array(items) => items.into_iter().map(|item| pick(item, paths)).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use trysail_model::ObjectRef;

    fn pruned(kind: &str, body: Value) -> Object {
        let mut object = Object {
            reference: ObjectRef::new(kind, "n", "a"),
            api_version: "v1".into(),
            creation_nanos: 0,
            labels: Arc::default(),
            annotations: Arc::new(
                [("x/y".to_owned(), "1".to_owned()), ("proxy.istio.io/config".to_owned(), "2".to_owned())].into(),
            ),
            body: body.into(),
            origin: "cluster".into(),
        };
        prune(&mut object);
        object
    }

    #[test]
    fn pods_lose_what_nobody_reads() {
        let pod = pruned(
            "Pod",
            json!({"metadata": {"name": "a", "generateName": "a-"}, "spec": {"serviceAccountName": "s", "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1, "hostPort": 2}]}, {"name": "d"}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "1.1.1.1"}], "hostIP": "2.2.2.2",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "t"}, {"type": "Other", "status": "True"}]}}),
        );
        let want = json!({"metadata": {"generateName": "a-"}, "spec": {"serviceAccountName": "s",
            "containers": [{"ports": [{"containerPort": 1}]}, {}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "1.1.1.1"}], "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(*pod.body.read(), want);
        assert_eq!(pod.annotations.keys().collect::<Vec<_>>(), ["proxy.istio.io/config"]);
    }

    #[test]
    fn the_signing_key_is_not_kept() {
        let secret =
            pruned("Secret", json!({"data": {"ca-key.pem": "a2V5", "tls.key": "a2V5", "root-cert.pem": "Yw=="}}));
        assert_eq!(*secret.body.read(), json!({"data": {"tls.key": "a2V5", "root-cert.pem": "Yw=="}}));
    }

    #[test]
    fn status_stays_where_it_is_read() {
        let body = json!({"spec": {"hosts": ["a"]}, "status": {"addresses": []}});
        assert_eq!(*pruned("ServiceEntry", body.clone()).body.read(), body);
        assert_eq!(*pruned("VirtualService", body).body.read(), json!({"spec": {"hosts": ["a"]}}));
    }

    #[test]
    fn config_maps_keep_what_is_configuration() {
        let map = pruned(
            "ConfigMap",
            json!({"data": {"mesh": "m", "ca.crt": "c", "other": "x"}, "binaryData": {"b": "eA=="}}),
        );
        assert_eq!(*map.body.read(), json!({"data": {"mesh": "m", "ca.crt": "c"}}));
    }
}
