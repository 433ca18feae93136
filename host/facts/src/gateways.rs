//! Gateways through which other networks are reached: stated in MeshNetworks, Kubernetes Services by label or by
//! MeshNetworks, and Gateway API gateways by label.
//!
//! Names of gateways are not resolved here, because a snapshot does no IO: with `RESOLVE_HOSTNAME_GATEWAYS` off they are left
//! out, as in istiod, otherwise they are answered as names.

use std::collections::BTreeSet;

use trysail_model::{Object, ObjectRef};
use trysail_proto::trysail::facts::v1::NetworkGateway;

use crate::inputs::Base;
use crate::json;
use crate::labels::{self, Labels};
use crate::services::Service;
use crate::state::State;

/// Port at which gateways take mutual TLS for other networks.
const MTLS_PORT: u32 = 15443;
/// Port at which gateways take HBONE for other networks.
const HBONE_PORT: u32 = 15008;
/// Annotation: service account of a Gateway API gateway.
const ACCOUNT: &str = "gateway.istio.io/service-account";
/// Class of gateways that stand outside of this cluster.
const REMOTE_CLASS: &str = "istio-remote";
/// Option of a TLS listener, and its value for one that passes traffic between networks.
const LISTENER_MODE: (&str, &str) = ("gateway.istio.io/listener-protocol", "auto-passthrough");

/// The gateways that a Gateway API gateway declares.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Its object.
    pub reference: ObjectRef,
    /// Its gateways.
    pub gateways: Vec<NetworkGateway>,
}

/// Can the service be a gateway of a network?
pub fn may_be_gateway(service: &Service, base: &Base) -> bool {
    service.is_kubernetes()
        && (service.record.labels.get(labels::NETWORK).is_some_and(|network| !network.is_empty())
            || base.networks.services.iter().any(|(host, _)| host == service.host()))
}

/// All gateways, sorted by address and port, with the objects they came from.
pub fn all(state: &State, base: &Base) -> (Vec<NetworkGateway>, Vec<ObjectRef>) {
    let mut found = base.networks.gateways.clone();
    let mut objects = Vec::new();
    for (_, service) in state.gateways.iter() {
        objects.push(service.source.clone());
        let addresses = outside_addresses(service, state);
        for gateway in ports_of(service, base) {
            let at = |address: &String| NetworkGateway {
                address: address.clone(),
                cluster_id: base.settings.cluster_id.clone(),
                ..gateway.clone()
            };
            found.extend(addresses.iter().map(at));
        }
    }
    for (_, declared) in state.gateway_objects.iter() {
        objects.push(declared.reference.clone());
        found.extend(declared.gateways.iter().cloned());
    }
    if !base.environment.flag("RESOLVE_HOSTNAME_GATEWAYS") {
        found.retain(|gateway| gateway.address.parse::<std::net::IpAddr>().is_ok());
    }
    let sort_key = |g: &NetworkGateway| {
        (g.address.clone(), g.port, g.network.clone(), g.cluster_id.clone(), g.hbone_port, g.service_account.clone())
    };
    found.sort_by_key(sort_key);
    found.dedup();
    (found, objects)
}

/// Where a service is reached from outside: its own external addresses, else those of the nodes it is pinned to.
fn outside_addresses(service: &Service, state: &State) -> Vec<String> {
    if !service.record.external_ips.is_empty() {
        return service.record.external_ips.clone();
    }
    let selector = service.record.annotations.get(labels::NODE_SELECTOR);
    let Some(selector) = selector.filter(|_| service.record.kubernetes_type == "NodePort") else { return Vec::new() };
    let selector: Labels = serde_json::from_str(selector).unwrap_or_default();
    let nodes = state.nodes.iter().map(|(_, node)| node).filter(|node| !node.external_ip.is_empty());
    let chosen = nodes.filter(|node| labels::subset(&selector, &node.labels)).map(|node| node.external_ip.clone());
    chosen.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The networks and ports that a service is a gateway of, without addresses.
fn ports_of(service: &Service, base: &Base) -> Vec<NetworkGateway> {
    let record = &service.record;
    let mut found = match record.labels.get(labels::NETWORK).filter(|network| !network.is_empty()) {
        Some(network) => {
            let stated = record.labels.get(labels::GATEWAY_PORT).and_then(|port| port.parse().ok());
            let listens = |number: u32| record.ports.iter().any(|port| port.port == number);
            let port = Some(stated.unwrap_or(MTLS_PORT)).filter(|port| listens(*port));
            let hbone = Some(HBONE_PORT).filter(|port| listens(*port));
            if port.is_none() && hbone.is_none() {
                return Vec::new();
            }
            vec![NetworkGateway {
                network: network.clone(),
                port: port.unwrap_or_default(),
                hbone_port: hbone.unwrap_or_default(),
                ..Default::default()
            }]
        }
        None => {
            let named = base.networks.services.iter().filter(|(host, _)| host == service.host());
            named.map(|(_, gateway)| gateway.clone()).collect()
        }
    };
    if record.kubernetes_type == "NodePort" && record.annotations.contains_key(labels::NODE_SELECTOR) {
        for gateway in &mut found {
            let port = record.ports.iter().rfind(|port| port.port == gateway.port);
            gateway.port = port.map_or(gateway.port, |port| port.node_port);
        }
    }
    found
}

/// Reads a Gateway API gateway; `None` when it is no gateway of a network.
pub fn declared(object: &Object, base: &Base) -> Option<Declared> {
    let network = object.labels.get(labels::NETWORK).filter(|network| !network.is_empty())?;
    if !base.environment.flag("PILOT_MULTI_NETWORK_DISCOVER_GATEWAY_API") {
        return None;
    }
    let spec = &*object.spec();
    let name = &*object.reference.name;
    let account = match object.annotations.get(ACCOUNT).filter(|account| !account.is_empty()) {
        Some(account) => account.clone(),
        None if json::text(spec, &["gatewayClassName"]) == REMOTE_CLASS => format!("{name}-{REMOTE_CLASS}"),
        None => name.to_owned(),
    };
    let expected = object.labels.get(labels::GATEWAY_PORT).cloned().unwrap_or_else(|| MTLS_PORT.to_string());
    let mut gateways = Vec::new();
    let typed = |address: &&serde_json::Value| matches!(json::text(address, &["type"]), "IPAddress" | "Hostname");
    for address in json::list(spec, &["addresses"]).iter().filter(typed) {
        for listener in json::list(spec, &["listeners"]) {
            let port = json::number(listener, &["port"]);
            let gateway = NetworkGateway {
                network: network.clone(),
                cluster_id: base.settings.cluster_id.clone(),
                address: json::text(address, &["value"]).to_owned(),
                port,
                service_account: format!("{}/{account}", object.reference.namespace),
                ..Default::default()
            };
            let tls = json::at(listener, &["tls"]);
            let passes = json::text(tls, &["options", LISTENER_MODE.0]) == LISTENER_MODE.1;
            if !tls.is_null() && (passes || port.to_string() == expected) {
                gateways.push(gateway.clone());
            }
            if json::text(listener, &["protocol"]) == "HBONE" {
                gateways.push(NetworkGateway { hbone_port: port, ..gateway });
            }
        }
    }
    Some(Declared { reference: object.reference.clone(), gateways })
}
