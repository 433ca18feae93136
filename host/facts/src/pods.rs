//! Pods and nodes, as far as the mesh cares.

use std::sync::Arc;

use serde_json::Value;
use trysail_model::{Object, ObjectRef};

use crate::json;
use crate::labels::{self, Labels};

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerPort {
    /// Name, possibly empty.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub transport: String,
    /// Number.
    pub number: u32,
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its object.
    pub reference: ObjectRef,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Service account, `default` is not filled in.
    pub account: String,
    /// First address; empty before one is assigned.
    pub ip: String,
    /// All addresses.
    pub ips: Vec<String>,
    /// Node it runs on.
    pub node: String,
    /// Name that it has in DNS; empty unless it has a subdomain.
    pub hostname: String,
    /// Subdomain, for names of headless services' pods.
    pub subdomain: String,
    /// Name of the workload that it is a replica of.
    pub workload: String,
    /// Ports of the containers, then of native sidecars.
    pub ports: Vec<ContainerPort>,
    /// The API server hides failed pods from istiod.
    pub failed: bool,
    /// Ready and neither ended nor ending: such pods can be selected by ServiceEntries.
    pub in_service: bool,
    /// Failed or succeeded.
    pub ended: bool,
}

impl Pod {
    /// Reads a pod.
    pub fn new(object: &Object) -> Pod {
        let body = &*object.body.read();
        let phase = json::text(body, &["status", "phase"]);
        let ip = json::text(body, &["status", "podIP"]).to_owned();
        let listed = json::list(body, &["status", "podIPs"]).iter();
        let mut ips: Vec<String> = listed.map(|item| json::text(item, &["ip"]).to_owned()).collect();
        if ips.is_empty() && !ip.is_empty() {
            ips.push(ip.clone());
        }
        let conditions = json::list(body, &["status", "conditions"]);
        let ready =
            conditions.iter().any(|c| json::text(c, &["type"]) == "Ready" && json::text(c, &["status"]) == "True");
        let ended = phase == "Failed" || phase == "Succeeded";
        let ending = !json::at(body, &["metadata", "deletionTimestamp"]).is_null();
        let subdomain = json::text(body, &["spec", "subdomain"]).to_owned();
        let hostname = match (subdomain.as_str(), json::text(body, &["spec", "hostname"])) {
            ("", _) => "",
            (_, "") => &object.reference.name,
            (_, name) => name,
        };
        let always = |c: &&Value| json::text(c, &["restartPolicy"]) == "Always";
        let sidecars = json::list(body, &["spec", "initContainers"]).iter().filter(always);
        let containers = json::list(body, &["spec", "containers"]).iter().chain(sidecars);
        let ports = containers.flat_map(|c| json::list(c, &["ports"])).map(|port| ContainerPort {
            name: json::text(port, &["name"]).to_owned(),
            transport: match json::text(port, &["protocol"]) {
                "" => "TCP".to_owned(),
                other => other.to_owned(),
            },
            number: json::number(port, &["containerPort"]),
        });
        Pod {
            hostname: hostname.to_owned(),
            ports: ports.collect(),
            reference: object.reference.clone(),
            labels: object.labels.clone(),
            account: json::text(body, &["spec", "serviceAccountName"]).to_owned(),
            in_service: ready && !ended && !ending && !ip.is_empty(),
            ip,
            ips,
            node: json::text(body, &["spec", "nodeName"]).to_owned(),
            subdomain,
            workload: workload_name(object, body),
            failed: phase == "Failed",
            ended,
        }
    }

    /// The number of a named port of that transport.
    pub fn port(&self, name: &str, transport: &str) -> Option<u32> {
        let found = self.ports.iter().find(|port| port.name == name && port.transport == transport);
        found.map(|port| port.number)
    }
}

/// The name of the workload that a pod is a replica of: what owns its ReplicaSet, its CronJob, itself.
fn workload_name(object: &Object, body: &Value) -> String {
    if let Some(name) = object.labels.get(labels::WORKLOAD_NAME) {
        return name.clone();
    }
    let own = &*object.reference.name;
    let owners = json::list(body, &["metadata", "ownerReferences"]);
    let controller = owners.iter().find(|owner| json::flag(owner, &["controller"]) == Some(true));
    // Pods that were not made from a template stand for themselves.
    let Some(controller) = controller.filter(|_| !json::text(body, &["metadata", "generateName"]).is_empty()) else {
        return own.to_owned();
    };
    let owner = json::text(controller, &["name"]);
    let without_hash = |label: &str| {
        let hash = object.labels.get(label).filter(|hash| !hash.is_empty())?;
        owner
            .ends_with(hash.as_str())
            .then(|| owner.strip_suffix(hash.as_str()).and_then(|o| o.strip_suffix('-')).unwrap_or(owner))
    };
    let name = match json::text(controller, &["kind"]) {
        "ReplicaSet" => {
            without_hash("pod-template-hash").or_else(|| without_hash("rollouts-pod-template-hash")).unwrap_or(owner)
        }
        "ReplicationController" => {
            object.labels.get("deploymentconfig").filter(|name| !name.is_empty()).map_or(owner, String::as_str)
        }
        // CronJobs name their jobs after the minute.
        "Job" => match owner.rsplit_once('-') {
            Some((name, minute))
                if !name.is_empty()
                    && (8..=10).contains(&minute.len())
                    && minute.bytes().all(|b| b.is_ascii_digit()) =>
            {
                name
            }
            _ => owner,
        },
        _ => owner,
    };
    if name.is_empty() { own.to_owned() } else { name.to_owned() }
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `region/zone/subzone`, empty when it has none.
    pub locality: String,
    /// First external address; empty when it has none.
    pub external_ip: String,
    /// Its labels, by which NodePort gateways pick nodes.
    pub labels: Arc<Labels>,
}

impl Node {
    /// Reads a node.
    pub fn new(object: &Object) -> Node {
        let label = |key: &str, older: &str| {
            let value = object.labels.get(key).filter(|value| !value.is_empty());
            value.or_else(|| object.labels.get(older)).map_or("", String::as_str)
        };
        let (region, zone) = (label(labels::REGION, labels::OLD_REGION), label(labels::ZONE, labels::OLD_ZONE));
        let subzone = label(labels::SUBZONE, "");
        let none = region.is_empty() && zone.is_empty() && subzone.is_empty();
        let status = object.status();
        let addresses = json::list(&status, &["addresses"]).iter();
        let mut external =
            addresses.filter(|a| json::text(a, &["type"]) == "ExternalIP").map(|a| json::text(a, &["address"]));
        Node {
            locality: if none { String::new() } else { format!("{region}/{zone}/{subzone}") },
            external_ip: external.find(|address| !address.is_empty()).unwrap_or_default().to_owned(),
            labels: object.labels.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::object;

    fn owned(kind: &str, owner: &str, labels: serde_json::Value) -> String {
        let metadata = json!({"generateName": "x-", "labels": labels, "ownerReferences": [{"kind": kind, "name": owner, "controller": true}]});
        Pod::new(&object("Pod", "n", "p", json!({"metadata": metadata}))).workload
    }

    #[test]
    fn workload_names() {
        assert_eq!(owned("ReplicaSet", "web-v1-abc12", json!({"pod-template-hash": "abc12"})), "web-v1");
        assert_eq!(owned("ReplicaSet", "web", json!({})), "web");
        assert_eq!(owned("Job", "tick-28012345", json!({})), "tick");
        assert_eq!(owned("Job", "tick-1", json!({})), "tick-1");
        assert_eq!(owned("StatefulSet", "db", json!({"service.istio.io/workload-name": "other"})), "other");
        assert_eq!(Pod::new(&object("Pod", "n", "p", json!({}))).workload, "p");
    }

    #[test]
    fn readiness() {
        let ready = crate::testing::pod("n", "p", "a", "10.0.0.1");
        assert!(Pod::new(&ready).in_service);
        assert_eq!(Pod::new(&ready).port("web", "TCP"), Some(8080));
        let mut body = ready.body.read().into_owned();
        body["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
        assert!(!Pod::new(&object("Pod", "n", "p", body)).in_service);
    }

    #[test]
    fn node_localities() {
        let node = |labels| Node::new(&object("Node", "", "a", json!({"metadata": {"labels": labels}}))).locality;
        assert_eq!(
            node(json!({"topology.kubernetes.io/region": "r", "failure-domain.beta.kubernetes.io/zone": "z"})),
            "r/z/"
        );
        assert_eq!(node(json!({"other": "x"})), "");
    }
}
