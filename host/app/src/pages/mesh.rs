//! What is known of the mesh: services, endpoints, configuration.

use serde_json::{Value, json};

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
