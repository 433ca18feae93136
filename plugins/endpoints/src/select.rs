//! Which endpoints a proxy may use.

use std::collections::BTreeMap;

use trysail_policy::Ports;
use trysail_policy::locality::{LABEL_CLUSTER, LABEL_HOSTNAME, LABEL_NETWORK, LABEL_REGION, LABEL_SUBZONE, LABEL_ZONE};
use trysail_sdk::facts::{Endpoint, Health, Locality, Service};
use trysail_sdk::{Ctx, Failure, Output};

/// Label by which a workload says which tunnels it takes, a list with commas.
const LABEL_TUNNEL: &str = "networking.istio.io/tunnel";
/// The tunnel that exists: HTTP CONNECT with mutual TLS (HBONE).
const TUNNEL_HTTP: &str = "http";
/// Label of what a gateway controller made, and its value for waypoints.
const LABEL_MANAGED: &str = "gateway.istio.io/managed";
const MANAGED_WAYPOINT: &str = "istio.io-mesh-controller";

/// Where an endpoint is as istiod writes it, `region/zone/subzone`, which also orders localities.
pub fn locality_label(locality: Option<&Locality>) -> String {
    match locality {
        Some(l) if !(l.region.is_empty() && l.zone.is_empty() && l.sub_zone.is_empty()) => {
            format!("{}/{}/{}", l.region, l.zone, l.sub_zone)
        }
        _ => String::new(),
    }
}

/// A label of an endpoint as DestinationRules see it: istiod adds where the workload is to what it is labelled with.
pub fn label_of<'e>(endpoint: &'e Endpoint, key: &str) -> Option<&'e str> {
    let own = endpoint.labels.get(key).map(String::as_str);
    let place = endpoint.locality.as_ref();
    let added = match key {
        LABEL_REGION => place.map(|l| l.region.as_str()),
        LABEL_ZONE => place.map(|l| l.zone.as_str()),
        LABEL_SUBZONE => place.map(|l| l.sub_zone.as_str()),
        LABEL_CLUSTER => Some(endpoint.cluster_id.as_str()),
        LABEL_HOSTNAME => Some(endpoint.node_name.as_str()),
        // The label goes before what the registry says of the network.
        LABEL_NETWORK => own.filter(|o| !o.is_empty()).or(Some(endpoint.network.as_str())),
        _ => return own,
    };
    added.filter(|a| !a.is_empty()).or(own)
}

/// Does an endpoint have all labels of a subset?
pub fn in_subset(endpoint: &Endpoint, labels: &BTreeMap<String, String>) -> bool {
    labels.iter().all(|(key, value)| label_of(endpoint, key) == Some(value))
}

/// Does a workload take traffic through HBONE?
pub fn takes_tunnel(endpoint: &Endpoint) -> bool {
    endpoint.labels.get(LABEL_TUNNEL).is_some_and(|list| list.split(',').any(|tunnel| tunnel == TUNNEL_HTTP))
}

/// Must it be reached through HBONE? Waypoints take nothing else.
pub fn wants_tunnel(endpoint: &Endpoint) -> bool {
    endpoint.labels.get(LABEL_MANAGED).is_some_and(|by| by == MANAGED_WAYPOINT) || takes_tunnel(endpoint)
}

/// What decides about endpoints besides themselves.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Endpoints that are not ready are sent too, so that Envoy knows how many there are.
    pub unhealthy: bool,
    /// The service has a persistent session: draining endpoints finish theirs.
    pub sessions: bool,
    /// Label by which a workload says that it drains; empty: none.
    pub draining_label: String,
}

impl Rules {
    /// The health that Envoy is told.
    pub fn health(&self, endpoint: &Endpoint) -> Health {
        let label = endpoint.labels.get(&self.draining_label).filter(|_| !self.draining_label.is_empty());
        if label.is_some_and(|value| !value.is_empty()) { Health::Draining } else { endpoint.health() }
    }

    /// The same as far as anybody knows it: nobody watches workloads that are not pods.
    pub fn told(&self, endpoint: &Endpoint) -> Option<Health> {
        let health = self.health(endpoint);
        (health != Health::Unknown).then_some(health)
    }

    fn healthy_enough(&self, endpoint: &Endpoint) -> bool {
        match endpoint.health() {
            Health::Unhealthy if !self.unhealthy => return false,
            // Never: a pod that goes away must not count as one that is missing.
            Health::Terminating => return false,
            _ => {}
        }
        self.health(endpoint) != Health::Draining || self.sessions
    }
}

/// Endpoints that the proxy may use. Asks of the proxy only what some endpoint makes matter.
pub fn usable<'e>(
    ctx: &Ctx<'_>,
    service: &Service,
    rules: &Rules,
    endpoints: &'e [Endpoint],
) -> Result<Vec<&'e Endpoint>, Failure> {
    let mut chosen: Vec<&Endpoint> = endpoints.iter().filter(|e| rules.healthy_enough(e)).collect();
    if service.node_local {
        let node = ctx.proxy_metadata("NODE_NAME").unwrap_or_default();
        let cluster = ctx.proxy("cluster-id").unwrap_or_default();
        chosen.retain(|e| e.node_name == node && e.cluster_id == cluster);
    }
    if chosen.iter().any(|e| e.cluster_local) {
        let cluster = ctx.proxy("cluster-id").unwrap_or_default();
        chosen.retain(|e| !e.cluster_local || e.cluster_id == cluster);
    }
    if chosen.iter().any(|e| !e.network.is_empty()) {
        let view = ctx.proxy_metadata("REQUESTED_NETWORK_VIEW").unwrap_or_default();
        let networks = list(&view);
        chosen.retain(|e| networks.is_empty() || e.network.is_empty() || networks.contains(&e.network.as_str()));
    }
    Ok(chosen)
}

/// A list of node metadata: with commas, or JSON.
fn list(text: &str) -> Vec<&str> {
    let inside = text.trim().trim_start_matches('[').trim_end_matches(']');
    inside.split(',').map(|item| item.trim().trim_matches('"')).filter(|item| !item.is_empty()).collect()
}

/// The function `tunnels`: ports of a service that have endpoints and whose endpoints all take HBONE.
pub fn tunnels(ctx: &Ctx<'_>, key: &str) -> Result<Output, Failure> {
    let Some(service) = ctx.service(key)? else { return Ok(Output::empty()) };
    let mut ports = Ports::default();
    for port in &service.ports {
        let endpoints = ctx.endpoints(key, port.port)?;
        if !endpoints.is_empty() && endpoints.iter().all(takes_tunnel) {
            ports.ports.push(port.port);
        }
    }
    Ok(if ports.ports.is_empty() { Output::empty() } else { Output::value(&ports) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_include_the_place() {
        let endpoint = Endpoint {
            locality: Some(Locality { region: "r".into(), ..Default::default() }),
            labels: [(LABEL_ZONE.to_owned(), "label".to_owned())].into(),
            network: "n".into(),
            ..Default::default()
        };
        assert_eq!(label_of(&endpoint, LABEL_REGION), Some("r"));
        assert_eq!(label_of(&endpoint, LABEL_ZONE), Some("label"));
        assert_eq!(label_of(&endpoint, LABEL_NETWORK), Some("n"));
        assert_eq!(label_of(&endpoint, "app"), None);
    }

    #[test]
    fn draining_endpoints_need_a_session() {
        let draining = Endpoint { labels: [("drain".to_owned(), "1".to_owned())].into(), ..Default::default() };
        let mut rules = Rules { draining_label: "drain".into(), ..Default::default() };
        assert!(!rules.healthy_enough(&draining));
        rules.sessions = true;
        assert!(rules.healthy_enough(&draining));
        assert_eq!(rules.health(&draining), Health::Draining);
        let gone = Endpoint { health: Health::Terminating.into(), ..Default::default() };
        assert!(!rules.healthy_enough(&gone));
    }

    #[test]
    fn lists_of_metadata() {
        assert_eq!(list("a, b"), ["a", "b"]);
        assert_eq!(list(r#"["a","b"]"#), ["a", "b"]);
    }
}
