//! What services and workloads are made from.

use serde_json::{Value, json};

use super::dice::{ADDRESSES, Dice, EXPORTS, HOSTS, NAMES, NAMESPACES, NODES, VIRTUAL, pruned};

pub fn labels(dice: &mut Dice) -> Value {
    pruned(json!({
        "app": dice.pick(&NAMES),
        "version": dice.pick(&["v1", "v2"]),
        "topology.istio.io/network": dice.maybe(5, json!("net-1")),
        "security.istio.io/tlsMode": dice.maybe(2, json!("istio")),
        "istio.io/rev": dice.maybe(12, json!("other")),
        "istio-locality": dice.maybe(5, json!("r1.z1")),
    }))
}

pub fn metadata(kind: &str, dice: &mut Dice) -> Value {
    match kind {
        "Namespace" => json!({
            "labels": dice.of([json!({"mesh": "on"}), json!({"topology.istio.io/network": "net-2"}), json!({"x": "y"})]),
            "annotations": {"networking.istio.io/traffic-distribution": dice.maybe(3, json!("PreferClose"))},
        }),
        "Node" => json!({"labels": {
            "topology.kubernetes.io/region": dice.pick(&["r1", "r2"]),
            "topology.kubernetes.io/zone": dice.maybe(2, json!("z1")),
        }}),
        "EndpointSlice" => json!({"labels": {"kubernetes.io/service-name": dice.pick(&NAMES)}}),
        "Service" => {
            let exports = dice.pick(&EXPORTS).join(",");
            json!({"labels": labels(dice), "annotations": {
                "networking.istio.io/exportTo": if exports.is_empty() { Value::Null } else { json!(exports) },
                "alpha.istio.io/kubernetes-serviceaccounts": dice.maybe(6, json!("extra")),
            }})
        }
        _ => json!({"labels": labels(dice)}),
    }
}

fn ports(dice: &mut Dice) -> Value {
    dice.of([
        json!([{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]),
        json!([
            {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"},
            {"name": "tcp", "port": 90, "protocol": "TCP", "targetPort": 91},
        ]),
        json!([{"name": "x", "port": 80, "protocol": "TCP"}, {"name": "grpc-y", "port": 81, "protocol": "TCP"}]),
        json!([{"name": "https", "port": 443, "protocol": "TCP"}, {"name": "mongo", "port": 90, "protocol": "TCP"}]),
        json!([{"port": 53, "protocol": "UDP", "targetPort": 53}]),
    ])
}

pub fn service(dice: &mut Dice) -> Value {
    let selector = json!({"app": dice.pick(&NAMES)});
    let selector = if dice.one_in(4) { Value::Null } else { selector };
    let mut spec =
        json!({"type": "ClusterIP", "clusterIP": dice.pick(&VIRTUAL), "ports": ports(dice), "selector": selector});
    match dice.below(8) {
        0 => return json!({"type": "ExternalName", "externalName": dice.pick(&HOSTS[..5]), "ports": ports(dice)}),
        1 => spec["clusterIP"] = json!("None"),
        2 => spec["publishNotReadyAddresses"] = json!(true),
        3 => spec["externalIPs"] = json!(["2.2.2.2"]),
        _ => {}
    }
    spec["clusterIPs"] = json!([spec["clusterIP"]]);
    spec
}

pub fn service_entry(dice: &mut Dice) -> Value {
    let mut spec = json!({
        "hosts": [dice.pick(&HOSTS[..6]), dice.pick(&HOSTS[..6])],
        "resolution": dice.pick(&["STATIC", "DNS", "NONE", "DNS_ROUND_ROBIN"]),
        "location": dice.pick(&["MESH_INTERNAL", "MESH_EXTERNAL"]),
        "exportTo": dice.pick(&EXPORTS),
        "ports": [
            {"number": 80, "name": "http", "protocol": "HTTP"},
            {"number": 90, "name": "tcp", "protocol": dice.pick(&["TCP", "TLS"]), "targetPort": 91},
        ],
    });
    let mut entry = || {
        let address = dice.pick(&["10.0.0.1", "10.0.0.2", "ep.example.com"]);
        json!({"address": address, "labels": {"app": dice.pick(&NAMES)}})
    };
    let entries = json!([entry(), entry()]);
    match dice.below(3) {
        0 => spec["workloadSelector"] = json!({"labels": {"app": dice.pick(&NAMES)}}),
        1 => spec["endpoints"] = entries,
        _ => spec["addresses"] = json!([dice.pick(&ADDRESSES)]),
    }
    spec
}

fn slice_member(dice: &mut Dice) -> Value {
    let target = json!({"kind": "Pod", "namespace": dice.pick(&NAMESPACES), "name": dice.pick(&NAMES)});
    json!({
        "addresses": [dice.pick(&ADDRESSES)],
        "conditions": {"ready": !dice.one_in(5), "serving": true, "terminating": dice.one_in(8)},
        "targetRef": dice.maybe(2, target),
    })
}

/// The spec of a registry's object.
pub fn spec(kind: &str, dice: &mut Dice) -> Value {
    let (x, address) = (dice.pick(&NAMES), dice.pick(&ADDRESSES));
    match kind {
        "Pod" => json!({"serviceAccountName": x, "nodeName": dice.pick(&NODES), "containers": [{
            "ports": [{"name": dice.pick(&["web", "other"]), "containerPort": dice.pick(&[8080, 91, 80])}],
        }]}),
        "Service" => service(dice),
        "ServiceEntry" => service_entry(dice),
        "WorkloadEntry" => json!({
            "address": address,
            "labels": {"app": x},
            "serviceAccount": dice.maybe(2, json!(x)),
            "ports": dice.maybe(2, json!({"http": 7777})),
            "network": dice.maybe(3, json!("net-3")),
            "weight": dice.maybe(3, json!(5)),
        }),
        "WorkloadGroup" => json!({"template": {"serviceAccount": x, "ports": {"http": 7777}, "network": "net-3"}}),
        "KubernetesGateway" => json!({
            "addresses": [{"type": "IPAddress", "value": address}], "listeners": [{"port": 15443, "tls": {}}],
        }),
        _ => Value::Null,
    }
}

/// What stands beside the spec.
pub fn complete(kind: &str, body: &mut Value, dice: &mut Dice) {
    let address = dice.pick(&ADDRESSES);
    match kind {
        "Pod" => {
            body["status"] = json!({
                "phase": dice.pick(&["Running", "Running", "Running", "Succeeded", "Failed"]),
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": dice.pick(&["True", "False"])}],
            });
        }
        "Node" => {
            body["status"] = json!({"addresses": [{"type": "ExternalIP", "address": dice.pick(&["1.1.1.1", ""])}]})
        }
        "EndpointSlice" => {
            body["addressType"] = json!("IPv4");
            body["endpoints"] = (0..dice.below(4)).map(|_| slice_member(dice)).collect();
            body["ports"] = dice.of([
                json!([
                    {"name": "http", "port": 8080, "protocol": "TCP"},
                    {"name": "tcp", "port": 91, "protocol": "TCP"},
                ]),
                json!([{"name": "http", "port": 8081, "protocol": "TCP"}]),
            ]);
        }
        _ => {}
    }
}
