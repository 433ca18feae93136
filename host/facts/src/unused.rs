//! Objects that nothing takes up, whoever connects: what istiod passes over in silence.
//!
//! It is asked for by people, not by stages, and looks through all objects. What depends on the proxy (a Sidecar's scope, an
//! `exportTo`) is for the stages to say.

use std::fmt;

use trysail_model::ObjectRef;

use crate::config::virtual_service::Virtual;
use crate::config::{self, destination_rule::covers};
use crate::documents::MESH_GATEWAY;
use crate::features::Environment;
use crate::kept::Kept;
use crate::labels::{self, Labels};
use crate::snapshot::FactsSnapshot;
use crate::state::State;
use crate::table::{key, prefix};

/// An object, or a part of it, that makes no difference to anybody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unused {
    /// The object.
    pub object: ObjectRef,
    /// JSON path of the part.
    pub field: String,
    /// Why, in lower case without a final dot.
    pub reason: String,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Warning {} {}: {}", self.object, self.field, self.reason)
    }
}

/// All of them, by object.
pub(crate) fn all(snapshot: &FactsSnapshot) -> Vec<Unused> {
    let state = snapshot.view().state;
    let mut found = Vec::new();
    state.virtuals.iter().for_each(|(_, rule)| virtual_service(state, rule, &mut found));
    for (_, rule) in state.rules.iter() {
        if !is_of_service(state, &rule.host) {
            let reason = format!("no service has the host {}", rule.host);
            found.push(Unused { object: rule.reference.clone(), field: "spec.host".into(), reason });
        }
    }
    selectors(state, &snapshot.base().environment, &mut found);
    found.sort();
    found
}

fn virtual_service(state: &State, found: &Virtual, all: &mut Vec<Unused>) {
    let mut say = |field: String, reason: String| all.push(Unused { object: found.reference.clone(), field, reason });
    for (i, gateway) in found.rule.gateways.iter().enumerate().filter(|(_, gateway)| *gateway != MESH_GATEWAY) {
        let (namespace, name) = gateway.split_once('/').unwrap_or(("", gateway));
        if !state.configs.contains(&key(&["Gateway", namespace, name])) {
            say(format!("spec.gateways[{i}]"), format!("there is no Gateway {gateway}"));
        }
    }
    if !found.is_root() {
        let reference = &found.reference;
        if state.delegations.with_prefix(&prefix(&[&reference.namespace, &reference.name])).next().is_none() {
            say("spec.hosts".into(), "has no hosts, and no VirtualService delegates to it".into());
        }
        return;
    }
    let in_mesh = found.rule.gateways.is_empty() || found.rule.gateways.iter().any(|gateway| gateway == MESH_GATEWAY);
    // Gateways serve hosts whether or not they are services.
    if !in_mesh {
        return;
    }
    let (served, lost): (Vec<_>, Vec<_>) =
        found.rule.hosts.iter().enumerate().partition(|(_, host)| is_of_service(state, host));
    let only_http = found.rule.tcp.is_empty() && found.rule.tls.is_empty();
    // HTTP routes for a service hold on its ports for the other hosts, too.
    if only_http && !served.is_empty() {
        return;
    }
    for (i, host) in lost {
        let only = match (found.rule.http.is_empty(), only_http) {
            (true, _) => "sidecars never use it",
            (false, true) => "sidecars use it for requests to port 80 only",
            (false, false) => "sidecars never use its TCP and TLS routes",
        };
        say(format!("spec.hosts[{i}]"), format!("no service has the host {host}: {only}"));
    }
}

/// Is there a service that the host, which may be a wildcard, stands for?
fn is_of_service(state: &State, host: &str) -> bool {
    if !host.starts_with('*') {
        let exact = state.hosts.with_prefix(&prefix(&[host])).next().is_some();
        let by_alias =
            || state.aliases.iter().any(|(alias, _)| alias.split_once('/').is_some_and(|(_, of)| of == host));
        // A ServiceEntry may have a wildcard for a host, which rules for a name in it apply to.
        let wild = || state.hosts.from("*").map(|(key, _)| &**key).take_while(|key| key.starts_with('*'));
        return exact || by_alias() || wild().any(|key| covers(key.split('\0').next().unwrap_or_default(), host));
    }
    state.hosts.iter().any(|(key, _)| {
        let of_service = key.split('\0').next().unwrap_or_default();
        covers(host, of_service) || covers(of_service, host)
    })
}

/// Kinds that select workloads, with the field, and whether of their own namespace only.
const SELECTING: [(&str, &str, bool); 4] = [
    ("DestinationRule", "spec.workloadSelector", true),
    ("Gateway", "spec.selector", false),
    ("PeerAuthentication", "spec.selector", true),
    ("Sidecar", "spec.workloadSelector", true),
];

fn selectors(state: &State, environment: &Environment, all: &mut Vec<Unused>) {
    for (kind, field, own) in SELECTING {
        let own = own || environment.flag("PILOT_SCOPE_GATEWAY_TO_NAMESPACE");
        for (at, _) in state.configs.with_prefix(&prefix(&[kind])) {
            let Some(object) = state.objects.get(at).and_then(Kept::object) else { continue };
            let Some(selector) = config::selected(object) else { continue };
            let namespace = &*object.reference.namespace;
            let is_meant = |labels: &Labels, of: &str| (!own || of == namespace) && labels::subset(&selector, labels);
            let mut pods = state.pods.iter().map(|(_, pod)| (&pod.labels, &*pod.reference.namespace));
            let mut entries = state.workloads.iter().map(|(_, found)| (&found.endpoint.labels, &*found.namespace));
            if !pods.any(|(labels, of)| is_meant(labels, of)) && !entries.any(|(labels, of)| is_meant(labels, of)) {
                let place = if own { " of its namespace" } else { "" };
                all.push(Unused {
                    object: object.reference.clone(),
                    field: field.into(),
                    reason: format!("selects no pod and no WorkloadEntry{place}"),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inputs::Inputs;
    use crate::testing::object;

    fn said(objects: Vec<trysail_model::Object>) -> Vec<String> {
        let objects = objects.into_iter().map(std::sync::Arc::new).collect();
        let snapshot = FactsSnapshot::new(Inputs { objects, ..Inputs::default() });
        snapshot.unused().into_iter().map(|unused| unused.to_string()).collect()
    }

    fn service() -> trysail_model::Object {
        object("Service", "n", "a", json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}))
    }

    #[test]
    fn what_is_used_is_not_named() {
        let entry = json!({"spec": {"hosts": ["*.wild.example"], "ports": [{"number": 443, "protocol": "TLS"}]}});
        let rule = |name: &str, host: &str| object("DestinationRule", "n", name, json!({"spec": {"host": host}}));
        let used = vec![
            service(),
            object("ServiceEntry", "n", "wild", entry),
            rule("short", "a"),
            rule("all", "*"),
            rule("within", "x.wild.example"),
            object("Pod", "edge", "p", json!({"metadata": {"labels": {"app": "gw"}}, "status": {"podIP": "10.1.0.1"}})),
            object(
                "VirtualService",
                "n",
                "v",
                json!({"spec": {"hosts": ["a"], "http": [{"delegate": {"name": "d"}}]}}),
            ),
            object(
                "VirtualService",
                "n",
                "d",
                json!({"spec": {"http": [{"route": [{"destination": {"host": "a"}}]}]}}),
            ),
        ];
        assert_eq!(said(used), [] as [&str; 0]);
    }

    #[test]
    fn what_is_not_used_is_named_with_its_field() {
        let found = said(vec![
            service(),
            object("DestinationRule", "n", "lost", json!({"spec": {"host": "b"}})),
            object("Gateway", "n", "g", json!({"spec": {"selector": {"app": "nobody"}, "servers": []}})),
            object(
                "VirtualService",
                "n",
                "bound",
                json!({"spec": {"hosts": ["x.example"], "gateways": ["other/g", "g"]}}),
            ),
            object("VirtualService", "n", "mesh", json!({"spec": {"hosts": ["x.example"], "tcp": [{"route": []}]}})),
            object("VirtualService", "n", "nobody", json!({"spec": {"http": []}})),
            object("Sidecar", "n", "s", json!({"spec": {"workloadSelector": {"labels": {"app": "gw"}}}})),
            object("Pod", "edge", "p", json!({"metadata": {"labels": {"app": "gw"}}, "status": {"podIP": "10.1.0.1"}})),
        ]);
        let named = [
            ("DestinationRule n/lost", "spec.host"),
            ("Gateway n/g", "spec.selector"),
            ("Sidecar n/s", "spec.workloadSelector"),
            ("VirtualService n/bound", "spec.gateways[0]"),
            ("VirtualService n/mesh", "spec.hosts[0]"),
            ("VirtualService n/nobody", "spec.hosts"),
        ];
        assert_eq!(found.len(), named.len(), "{found:#?}");
        for (line, (object, field)) in found.iter().zip(named) {
            assert!(line.starts_with(&format!("Warning {object} {field}: ")), "{line}");
        }
    }
}
