//! What is known of the mesh: services, endpoints, configuration.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::debug::Asked;
use super::page::Page;

/// Services.
pub fn registryz(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&asked.pages.facts.load().dump_services()))
}

/// Endpoints.
pub fn shards(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&asked.pages.facts.load().dump_shards()))
}

/// Configuration objects.
pub fn configz(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&asked.pages.facts.load().dump_configs()))
}

/// Kinds of configuration.
pub fn resourcesz(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&asked.pages.facts.load().dump_kinds()))
}

/// Mesh configuration.
pub fn mesh(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&asked.pages.facts.load().dump_mesh()))
}

/// Gateways to other networks.
pub fn networkz(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&asked.pages.facts.load().dump_network_gateways()))
}

/// Multi-cluster services: null, since one cluster is read.
pub fn mcsz(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&Value::Null))
}

/// Clusters that are read: the own one.
pub fn clusterz(asked: &Asked<'_>) -> Result<Page, Page> {
    let facts = asked.pages.facts.load();
    // Pages are served once the first state is in, and it stays.
    Ok(asked.json(&json!([{"id": facts.base().settings.cluster_id, "secretName": "", "syncStatus": "synced"}])))
}

fn policies(asked: &Asked<'_>) -> Value {
    asked.pages.facts.load().dump_policies("AuthorizationPolicy", "namespace_to_policies")
}

/// Authorization policies.
pub fn authorizationz(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&json!({"authorization_policies": policies(asked)})))
}

/// Telemetry objects; with `?proxyID=` only when that proxy is connected.
pub fn telemetryz(asked: &Asked<'_>) -> Result<Page, Page> {
    if asked.query.get("proxyID").is_some_and(|id| !id.is_empty()) {
        asked.proxy()?;
    }
    let all = asked.pages.facts.load().dump_policies("Telemetry", "namespace_to_telemetries");
    Ok(asked.json(&json!({"telemetries": all})))
}

/// What is odd.
pub fn push_status(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&asked.pages.problems().dump()))
}

/// Policies and network gateways in force.
pub fn push_context(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&json!({
        "AuthorizationPolicies": policies(asked),
        "NetworkGateways": asked.pages.facts.load().dump_network_gateways(),
        "UnresolvedGateways": null,
    })))
}

/// Configuration objects by kind, as the collections that istiod keeps them in.
pub fn krtz(asked: &Asked<'_>) -> Result<Page, Page> {
    let mut kinds: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for object in asked.pages.facts.load().dump_configs().as_array().into_iter().flatten() {
        let metadata = &object["metadata"];
        let key = format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
        kinds.entry(text(&object["kind"])).or_default().insert(key, object.clone());
    }
    let collection = |(uid, (kind, outputs)): (usize, (String, Map<String, Value>))| json!({"name": kind, "state": {"outputs": outputs, "synced": true}, "uid": uid});
    Ok(asked.json(&(1..).zip(kinds).map(collection).collect()))
}

/// What ztunnels are told: nothing, as by an istiod without ambient mode.
pub fn ambientz(asked: &Asked<'_>) -> Result<Page, Page> {
    Ok(asked.json(&json!({"workloads": null, "services": null, "policies": null})))
}

/// Templates of the injector: istiod's answer where it injects nothing.
pub fn inject(_: &Asked<'_>) -> Result<Page, Page> {
    Err(Page::empty(StatusCode::NOT_FOUND))
}
